"""Layer norm and RMS norm against torch, torch.compile and Liger's kernels."""

import functools
import importlib

import torch
import torch.nn.functional as F
from torch import Tensor

from aigc_lib.ops.norm import layer_norm, rms_norm
from bench.arms import Arm, Case, Goal, compiled, has_liger, ours, plain

EPS = {"layer_norm": 1e-5, "rms_norm": 1e-6}


def cases(device: torch.device, *, quick: bool, compiled: bool) -> list[Case]:
    """Both norms over rows as wide as GPT-2's small and a large model's; a CPU also over one token.

    A step of decoding has dozens of such rows, and there only the calls cost.
    """
    is_cuda = device.type == "cuda"
    sizes = [(32768, 768), (8192, 4096)] if is_cuda else [(4096, 768), (1, 96)]
    if quick:
        sizes = [(min(rows, 256), width) for rows, width in sizes]
    return [_case(device, op, *size, compiled) for op in EPS for size in sizes]


def _case(device, op, rows, width, with_compile) -> Case:
    is_cuda = device.type == "cuda"
    dtype = torch.bfloat16 if is_cuda else torch.float32
    num_weights = 2 if op == "layer_norm" else 1

    def inputs(draw):
        x = torch.randn(rows, width, generator=draw, device=draw.device)
        weights = torch.randn(num_weights, width, generator=draw, device=draw.device)
        return tuple(t.to(dtype) for t in (x, *weights))

    ours_function = layer_norm if op == "layer_norm" else rms_norm
    builtin = _torch_layer_norm if op == "layer_norm" else _torch_rms_norm
    peers = [plain("eager", builtin)]
    if not is_cuda:
        peers += [plain("reference", functools.partial(ours_function, impl="reference"))]
    if with_compile:
        peers += [compiled(builtin)]
    if is_cuda and has_liger():
        peers += [_liger(op)]
    size = rows * width * dtype.itemsize
    return Case(
        op=op,
        name=f"N {rows}, C {width}, {str(dtype).removeprefix('torch.')}",
        inputs=inputs,
        reference=functools.partial(ours_function, impl="reference"),
        eager=builtin,
        arms=ours(ours_function, device),
        peers=tuple(peers),
        goals=_goals() if is_cuda else (),
        # Forward: read x, write y. Backward: read x and the gradient of y, write that of x.
        num_bytes={"forward": 2 * size, "backward": 3 * size},
    )


def _goals() -> tuple[Goal, ...]:
    return (
        Goal("triton", "forward", "compile", {"ratio": 0.95}, {"copy_fraction": 0.9}),
        Goal("triton", "backward", "compile", {"ratio": 1.0}, {"copy_fraction": 0.7}),
        Goal("triton", "backward", "liger", {}, {"ratio": 1.5}),
    )


def _torch_layer_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], weight, bias, EPS["layer_norm"])


def _torch_rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    return F.rms_norm(x, x.shape[-1:], weight, EPS["rms_norm"])


def _liger(op: str) -> Arm:
    """Liger's kernel; not in place, where it would overwrite the gradient that it is given."""

    def build(*inputs):
        functional = importlib.import_module("liger_kernel.transformers.functional")
        if op == "layer_norm":
            return functools.partial(functional.liger_layer_norm, eps=EPS[op])
        return lambda x, weight: functional.liger_rms_norm(x, weight, EPS[op], in_place=False)

    return Arm(name="liger", build=build)
