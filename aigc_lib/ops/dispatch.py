"""Which implementation an op takes, and why.

Every op has the formula in plain torch ("reference") and torch's own fast path ("torch"); some also
a Triton kernel ("triton"). Unless asked for, a kernel runs only where a measurement made it PROVEN.
"""

import importlib.util
import os
from collections.abc import Callable

import torch
from torch import Tensor

from aigc_lib import expect
from aigc_lib.ops.registry import WITHOUT_KERNEL

IMPLEMENTATIONS = ("reference", "torch", "triton")

# (op, capability) → the file in bench/results that shows the kernel above its floor there.
PROVEN: dict[tuple[str, tuple[int, int]], str] = {}

HAS_TRITON = importlib.util.find_spec("triton") is not None
# Triton's interpreter runs kernels on the CPU, slowly; it must be asked for before Triton is
# imported, and a process that does so can't compile.
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

# Older cards have neither bfloat16 nor asynchronous copies, and the configurations spill there.
OLDEST = (8, 0)
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def choose(
    op: str, impl: str | None, *tensors: Tensor, refusal: Callable[..., str | None] | None = None
) -> str:
    """The implementation that a call takes: "reference", "torch" or "triton".

    `impl` is the caller's wish, None leaves it to us; `refusal` says why the op's kernel can't take
    these tensors, None if it can. ValueError, with the reason, where "triton" can't run.
    """
    if impl is None:
        if not PROVEN or tensors[0].device.type != "cuda":
            return "torch"
        proven = (op, _capability(tensors[0].device.index)) in PROVEN
        return "triton" if proven and not _missing(op, tensors, refusal) else "torch"
    expect.one_of((*IMPLEMENTATIONS, None), impl=impl)
    if impl == "triton" and (reason := _missing(op, tensors, refusal)):
        raise ValueError(f'impl="triton" can\'t run {op} here: {reason}')
    return impl


def autocast(*tensors: Tensor) -> tuple[Tensor, ...]:
    """What torch's own ops make of their inputs under autocast: its dtype, but for float64."""
    device = tensors[0].device.type
    if device == "meta" or not torch.is_autocast_enabled(device):  # meta has none
        return tensors
    dtype = torch.get_autocast_dtype(device)
    keeps = (x.dtype == torch.float64 or not x.is_floating_point() for x in tensors)
    return tuple(x if kept else x.to(dtype) for x, kept in zip(tensors, keeps, strict=True))


def decision(op: str, capability: tuple[int, int] | None) -> str:
    """For doctor: what `impl=None` takes on a CUDA device, None for no such device, and why."""
    if op in WITHOUT_KERNEL:
        return "torch: it has no kernel"
    if capability is None:
        return "torch: the kernel needs a CUDA device"
    if capability < OLDEST:
        return f"torch: the kernel needs capability {_dotted(OLDEST)}"
    if not HAS_TRITON:
        return "torch: Triton is not installed"
    result = PROVEN.get((op, capability))
    if result is None:
        return f"torch: the kernel was not measured at capability {_dotted(capability)}"
    return f"triton: bench/results/{result}"


def _missing(op, tensors, refusal) -> str | None:
    """Why the kernel can't run on these tensors, None if it can."""
    if op in WITHOUT_KERNEL:
        return "it has no kernel"
    if not HAS_TRITON:
        return "Triton is not installed (it exists for Linux on x86-64: pip install -e .[kernels])"
    for x in tensors:
        if x.dtype not in DTYPES:
            return f"it takes float32, float16 and bfloat16, got {x.dtype}"
        if INTERPRETED:
            if x.dtype == torch.bfloat16:
                return "Triton's interpreter gets bfloat16 wrong; use float32 or float16"
        elif x.device.type != "cuda":
            return f"it needs tensors on a CUDA device, got one on {x.device}"
        elif _capability(x.device.index) < OLDEST:
            have = _dotted(_capability(x.device.index))
            return f"it needs capability {_dotted(OLDEST)}, this device has {have}"
    return refusal(*tensors) if refusal else None


def _capability(index: int | None) -> tuple[int, int]:
    return torch.cuda.get_device_capability(index)


# All that torch.compiler.assume_constant_result does; to call it imports Dynamo, for seconds.
_capability._dynamo_marked_constant = True


def _dotted(capability) -> str:
    return ".".join(map(str, capability))
