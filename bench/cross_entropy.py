"""Cross-entropy of logits that are already there, one loss for each row."""

import functools
import importlib

import torch
import torch.nn.functional as F
from torch import Tensor

from aigc_lib.ops.cross_entropy import cross_entropy
from bench.arms import Arm, Case, Goal, compiled, has_liger, ours, plain


def cases(device: torch.device, *, quick: bool, compiled: bool) -> list[Case]:
    """Rows over GPT-2's vocabulary, padded to a multiple of 128."""
    rows, words = (8192, 50304) if device.type == "cuda" else (512, 50304)
    if quick:
        rows, words = 64, 1003
    return [_case(device, rows, words, compiled)]


def _case(device, rows, words, with_compile) -> Case:
    is_cuda = device.type == "cuda"
    dtype = torch.bfloat16 if is_cuda else torch.float32

    def inputs(draw):
        logits = 3 * torch.randn(rows, words, generator=draw, device=draw.device)
        targets = torch.randint(words, (rows,), generator=draw, device=draw.device)
        targets[::7] = -100
        return logits.to(dtype), targets

    peers = [plain("eager", _torch)]
    if not is_cuda:
        peers += [plain("reference", functools.partial(cross_entropy, impl="reference"))]
    if with_compile:
        peers += [compiled(_torch)]
    if is_cuda and has_liger():
        peers += [Arm(name="liger", build=_liger)]
    goals = (
        Goal("triton", "both", "compile", {"ratio": 1.0, "memory_ratio": 1.0}, {"ratio": 1.15}),
    )
    size = rows * words * dtype.itemsize
    return Case(
        op="cross_entropy",
        name=f"N {rows}, V {words}, {str(dtype).removeprefix('torch.')}",
        inputs=inputs,
        reference=functools.partial(cross_entropy, impl="reference"),
        eager=_torch,
        arms=ours(cross_entropy, device),
        peers=tuple(peers),
        directions=("forward", "backward", "both") if is_cuda else ("forward", "both"),
        goals=goals if is_cuda else (),
        num_bytes={"forward": size, "backward": 2 * size, "both": 3 * size},
    )


def _torch(logits: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(logits, targets, reduction="none")


def _liger(*inputs):
    """Liger's kernel; in training it writes the gradient over the logits, hence its memory."""
    functional = importlib.import_module("liger_kernel.transformers.functional")
    return functools.partial(functional.liger_cross_entropy, reduction="none")
