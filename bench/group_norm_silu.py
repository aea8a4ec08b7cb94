"""GroupNorm and SiLU in one, at the sizes of a U-Net, against torch's own two in a row."""

import functools

import torch
import torch.nn.functional as F
from torch import Tensor

from aigc_lib.ops.group_norm_silu import group_norm_silu
from bench.arms import Case, Goal, compiled, ours, plain


def cases(device: torch.device, *, quick: bool, compiled: bool) -> list[Case]:
    """On CUDA many images and few, on a CPU the two levels of the course's own U-Net."""
    if device.type == "cuda":
        sizes = [(64, 256, 32, 32), (4, 256, 64, 32), (1, 256, 64, 32)]
    else:
        sizes = [(64, 32, 8, 8), (64, 64, 4, 8)]
    if quick:
        sizes = [(8, maps, side, groups) for _, maps, side, groups in sizes]
    return [_case(device, *size, compiled) for size in dict.fromkeys(sizes)]


def _case(device, batch, maps, side, groups, with_compile) -> Case:
    is_cuda = device.type == "cuda"
    dtype = torch.bfloat16 if is_cuda else torch.float32

    def inputs(draw):
        x = torch.randn(batch, maps, side, side, generator=draw, device=draw.device)
        affine = torch.randn(2, maps, generator=draw, device=draw.device)
        return tuple(t.to(dtype) for t in (x, *affine))

    def op(x, weight, bias, impl=None):
        return group_norm_silu(x, groups, weight, bias, impl=impl)

    def eager(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.silu(F.group_norm(x, groups, weight, bias))

    peers = [plain("eager", eager)]
    if not is_cuda:
        peers += [plain("reference", functools.partial(op, impl="reference"))]
    if with_compile:
        peers += [compiled(eager)]
    floor, aim = {"ratio": 1.8 if batch >= 64 else 5.0}, {"ratio": 10.0} if batch == 1 else {}
    goals = [Goal("triton", way, "eager", floor, aim) for way in ("forward", "backward")]
    size = batch * maps * side**2 * dtype.itemsize
    return Case(
        op="group_norm_silu",
        name=f"B {batch}, C {maps}, {side} × {side}, {str(dtype).removeprefix('torch.')}",
        inputs=inputs,
        reference=functools.partial(op, impl="reference"),
        eager=eager,
        arms=ours(op, device),
        peers=tuple(peers),
        goals=tuple(goals) if is_cuda else (),
        # Forward: read x, write y. Backward: read x and the gradient of y, write that of x.
        num_bytes={"forward": 2 * size, "backward": 3 * size},
    )
