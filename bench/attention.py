"""Attention: our kernel and torch's choice against each backend of SDPA and FlexAttention."""

import functools
import math

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from aigc_lib.ops.attention import attention
from bench.arms import Arm, Case, Goal, ours, plain

BACKENDS = {
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
}


def cases(device: torch.device, *, quick: bool, compiled: bool) -> list[Case]:
    """Causal attention at two head widths, and a window of an eighth of the tokens."""
    if device.type == "cuda":
        sizes = [((4, 12, 4096, 64), None), ((4, 12, 4096, 128), None), ((4, 12, 4096, 64), 512)]
        dtype = torch.bfloat16
    else:
        sizes = [((1, 12, 1024, 64), None), ((1, 12, 1024, 64), 128)]
        dtype = torch.float32
    if quick:
        sizes = [((1, 2, 256, shape[3]), window and 32) for shape, window in sizes]
    return [_case(device, shape, window, dtype, compiled) for shape, window in sizes]


def _case(device, shape, window, dtype, compiled) -> Case:
    def inputs(draw):
        return tuple(
            torch.randn(shape, generator=draw, device=draw.device, dtype=dtype) for _ in range(3)
        )

    def op(q, k, v, impl):
        return attention(q, k, v, is_causal=True, window=window, impl=impl)

    batch, heads, tokens, width = shape
    is_cuda = device.type == "cuda"
    return Case(
        op="attention",
        name=f"B {batch}, H {heads}, T {tokens}, K {width}, causal, "
        f"{f'window {window}, ' if window else ''}{str(dtype).removeprefix('torch.')}",
        inputs=inputs,
        reference=functools.partial(op, impl="reference"),
        eager=functools.partial(_eager, window=window),
        arms=tuple(_telling(arm, window) for arm in ours(op, device)),
        peers=_cuda_peers(window, compiled) if is_cuda else _cpu_peers(op, window),
        goals=_goals(width, window) if is_cuda else (),
        # On CUDA float64 scores of all heads at once would not fit beside their gradients.
        gate_inputs=(lambda draw: tuple(x[:1, :2].contiguous() for x in inputs(draw))),
    )


def _goals(width: int, window: int | None) -> tuple[Goal, ...]:
    if window:
        floors = [
            Goal("triton", direction, "flex", {"ratio": 0.9})
            for direction in ("forward", "backward")
        ]
        return (*floors, Goal("triton", "forward", "dense cudnn", {}, {"ratio": 2.0}))
    if width == 64:  # at 128 torch's fused kernels are not worth a race; the row is for the record
        return (Goal("triton", "forward", "cudnn", {"ratio": 0.8}, {"ratio": 0.95}),)
    return ()


def _cpu_peers(op, window) -> tuple[Arm, ...]:
    return (
        plain("reference", functools.partial(op, impl="reference")),
        plain("eager", functools.partial(_eager, window=window)),
    )


def _cuda_peers(window, compiled) -> tuple[Arm, ...]:
    eager = plain("eager", functools.partial(_eager, window=window))
    flex = (Arm(name="flex", build=functools.partial(_flex, window), compiled=True),)
    flex = flex if compiled else ()
    if window is None:
        fused = [_sdpa(name, backend) for name, backend in BACKENDS.items()]
        return (eager, *fused, *flex)
    # Flash attention takes no mask. The dense one attends to everything earlier, window or not:
    # what a model pays that has no kernel for windows.
    masked = [_sdpa(name, BACKENDS[name], window) for name in ("cudnn", "efficient")]
    dense = _sdpa("dense cudnn", SDPBackend.CUDNN_ATTENTION, reference=_eager)
    return (eager, *masked, dense, *flex)


def _sdpa(name: str, backend: SDPBackend, window: int | None = None, reference=None) -> Arm:
    """One backend of torch's fused attention and no other; where it can't run, it says so."""

    def build(q, k, v):
        mask = None if window is None else _allowed(q.shape[2], window, q.device)

        def call(q, k, v):
            return F.scaled_dot_product_attention(q, k, v, mask, is_causal=mask is None)

        return call

    return Arm(
        name=name,
        build=build,
        around=lambda: sdpa_kernel([backend]),
        backend=lambda *inputs: backend.name,
        reference=reference,
    )


def _flex(window: int | None, q: Tensor, k: Tensor, v: Tensor):
    """FlexAttention, compiled; its block mask is made here, outside the clock."""

    def may_attend(b, h, query, key):
        if window is None:
            return query >= key
        return (query >= key) & (query - key < window)

    tokens = q.shape[2]
    block_mask = create_block_mask(may_attend, None, None, tokens, tokens, device=q.device)
    function = torch.compile(
        flex_attention, fullgraph=True, dynamic=False, mode="max-autotune-no-cudagraphs"
    )
    return functools.partial(function, block_mask=block_mask)


def _telling(arm: Arm, window: int | None) -> Arm:
    """Let the arm that leaves the choice of a backend to torch say which it was."""
    if arm.name != "torch":
        return arm

    def backend(q, k, v):
        mask = None if window is None else _allowed(q.shape[2], window, q.device)
        chosen = torch._fused_sdp_choice(q, k, v, mask, is_causal=mask is None)
        return SDPBackend(chosen).name

    return Arm(name=arm.name, build=arm.build, backend=backend)


def _eager(q: Tensor, k: Tensor, v: Tensor, window: int | None = None) -> Tensor:
    """The formula as one would write it, every step in the inputs' dtype."""
    scores = q @ k.transpose(2, 3) / math.sqrt(q.shape[3])
    allowed = _allowed(q.shape[2], window, q.device)
    return scores.masked_fill(~allowed, -torch.inf).softmax(3) @ v


def _allowed(tokens: int, window: int | None, device: torch.device) -> Tensor:
    place = torch.arange(tokens, device=device)
    behind = place[:, None] - place
    return (behind >= 0) & (behind < (window or tokens))
