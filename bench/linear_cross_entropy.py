"""The last layer and its loss in one: time and memory without the full matrix of logits."""

import functools
import importlib

import torch
import torch.nn.functional as F
from torch import Tensor

from aigc_lib.ops.linear_cross_entropy import linear_cross_entropy
from bench.arms import Arm, Case, Goal, compiled, has_liger, ours, plain

WORDS = 50304  # GPT-2's vocabulary, padded to a multiple of 128


def cases(device: torch.device, *, quick: bool, compiled: bool) -> list[Case]:
    """The head of a GPT-2 small, and on the CPU that of a model of width 128 too."""
    if quick:
        return [_case(device, 256, 1003, 64, compiled)]
    if device.type == "cuda":
        return [_case(device, rows, WORDS, 768, compiled) for rows in (8192, 32768)]
    return [_case(device, 2048, WORDS, width, compiled) for width in (768, 128)]


def _case(device, rows, words, width, with_compile) -> Case:
    is_cuda = device.type == "cuda"
    dtype = torch.bfloat16 if is_cuda else torch.float32
    peers = [plain("eager", _torch)]
    if with_compile:
        peers += [compiled(_torch)]
    if is_cuda and has_liger():
        peers += [Arm(name="liger", build=_liger)]
    return Case(
        op="linear_cross_entropy",
        name=f"N {rows}, V {words}, C {width}, {str(dtype).removeprefix('torch.')}",
        inputs=functools.partial(_inputs, rows, words, width, dtype=dtype),
        reference=functools.partial(linear_cross_entropy, impl="reference"),
        eager=_torch,
        arms=ours(linear_cross_entropy, device),
        peers=tuple(peers),
        # The gradients are made during the forward: a backward of its own would only scale them.
        directions=("forward", "both") if is_cuda else ("both",),
        goals=_cuda_goals() if is_cuda else _cpu_goals(),
        # The number of rows is what decides the chunks; float64 matrix products are slow on a CPU.
        gate_inputs=_gate_inputs(rows, words, width, dtype, is_cuda),
        cpu_memory=True,
    )


def _gate_inputs(rows, words, width, dtype, is_cuda):
    """The same chunks at a cost that float64 can pay: narrow on the CPU, fewer rows on CUDA."""
    if is_cuda:
        return functools.partial(_inputs, min(rows, 8192), words, width, dtype=dtype)
    return functools.partial(_inputs, rows, min(words, 5003), min(width, 32), dtype=dtype)


def _cuda_goals() -> tuple[Goal, ...]:
    floor = {"ratio": 1 / 1.05, "memory_ratio": 1 / 3}
    aim = {"ratio": 1.15, "memory_ratio": 1 / 5}
    return (Goal("triton", "both", "compile", floor, aim),)


def _cpu_goals() -> tuple[Goal, ...]:
    floor = {"ratio": 0.85, "memory_ratio": 0.25}
    return (Goal("torch", "both", "eager", floor, {"ratio": 1.0, "memory_ratio": 0.15}),)


def _inputs(rows, words, width, draw, dtype) -> tuple[Tensor, ...]:
    features = torch.randn(rows, width, generator=draw, device=draw.device)
    weight = torch.randn(words, width, generator=draw, device=draw.device) / width**0.5
    targets = torch.randint(words, (rows,), generator=draw, device=draw.device)
    targets[::7] = -100
    return features.to(dtype), weight.to(dtype), targets


def _torch(features: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(features @ weight.T, targets)


def _liger(*inputs):
    functional = importlib.import_module("liger_kernel.transformers.functional")
    return functional.liger_fused_linear_cross_entropy
