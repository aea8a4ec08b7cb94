"""Which implementation an op takes, and why.

Every op has the formula in plain torch ("reference") and torch's own fast path ("torch"); some also
have a Triton kernel ("triton"). Nobody picks a kernel because it ought to be fast: without an
explicit choice it runs only where a committed measurement shows that it is.
"""

import importlib.util
import os

import torch
from torch import Tensor

IMPLEMENTATIONS = ("reference", "torch", "triton")

# The ops that have a kernel, in the order in which doctor lists them.
OPS = (
    "attention",
    "layer_norm",
    "rms_norm",
    "cross_entropy",
    "linear_cross_entropy",
    "sample_token",
)

# (op, capability) → the file in bench/results that shows the kernel above its floor there.
PROVEN: dict[tuple[str, tuple[int, int]], str] = {}

HAS_TRITON = importlib.util.find_spec("triton") is not None
# Triton's interpreter runs kernels on the CPU, slowly; it must be asked for before Triton is
# imported, and a process that does so can't compile.
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

# Older cards have neither bfloat16 nor asynchronous copies, and the configurations spill there.
OLDEST = (8, 0)
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def choose(op: str, impl: str | None, *tensors: Tensor, refusal: str | None = None) -> str:
    """Decide which implementation a call takes.

    Args:
        op: the op's name.
        impl: what the caller asked for; None leaves the choice to us.
        *tensors: the floating-point inputs, at least one.
        refusal: why the op's kernel can't take this call, None if it can.

    Returns:
        "reference", "torch" or "triton".

    Raises:
        ValueError: no such implementation, or "triton" can't run here; says why.
    """
    if impl is None:
        if not PROVEN or refusal or tensors[0].device.type != "cuda":
            return "torch"
        proven = (op, _capability(tensors[0].device.index)) in PROVEN
        return "triton" if proven and not _missing(tensors) else "torch"
    if impl not in IMPLEMENTATIONS:
        raise ValueError(f'expected impl "reference", "torch", "triton" or None, got {impl!r}')
    if impl == "triton":
        reason = _missing(tensors) or refusal
        if reason:
            raise ValueError(f'impl="triton" can\'t run {op} here: {reason}')
    return impl


def decision(op: str, capability: tuple[int, int] | None) -> str:
    """Say what `impl=None` takes for an op, and what that rests on.

    Args:
        op: the op's name.
        capability: of the CUDA device, None without one.

    Returns:
        A sentence for `doctor`.
    """
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


def _missing(tensors) -> str | None:
    """Why Triton can't run on these tensors, None if it can."""
    if not HAS_TRITON:
        return "Triton is not installed (it exists for Linux on x86-64: pip install -e .[kernels])"
    for x in tensors:
        if x.dtype not in DTYPES:
            return f"it takes float32, float16 and bfloat16, got {_name(x)}"
        if INTERPRETED:
            if x.dtype == torch.bfloat16:
                return "Triton's interpreter gets bfloat16 wrong; use float32 or float16"
        elif x.device.type != "cuda":
            return f"it needs tensors on a CUDA device, got one on {x.device}"
        elif _capability(x.device.index) < OLDEST:
            have = _dotted(_capability(x.device.index))
            return f"it needs capability {_dotted(OLDEST)}, this device has {have}"
    return None


@torch.compiler.assume_constant_result
def _capability(index: int | None) -> tuple[int, int]:
    return torch.cuda.get_device_capability(index)


def _dotted(capability) -> str:
    return ".".join(map(str, capability))


def _name(x) -> str:
    return str(x.dtype).removeprefix("torch.")
