"""Choose where a model runs and in which precision, seed everything, keep threads polite."""

import os
import random

import numpy as np
import torch


def best(name: str | None = None) -> torch.device:
    """The device to compute on: the named one, else CUDA, else Apple's MPS, else the CPU.

    Args:
        name: "cpu", "cuda", "cuda:1", "mps", or None to choose.

    Returns:
        A device that this machine has.

    Raises:
        ValueError: the name is not a device of this machine; the message lists those that are.
    """
    available = ["cpu"]
    if torch.backends.mps.is_available():
        available.insert(0, "mps")
    if torch.cuda.is_available():
        available[:0] = ["cuda", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
    if name is None:
        return torch.device(available[0])
    if name not in available:
        raise ValueError(
            f"expected a device of this machine ({', '.join(available)}), got {name!r}"
        )
    return torch.device(name)


def best_dtype(device: torch.device) -> torch.dtype:
    """The precision to train in: bfloat16 on CUDA cards with fast support for it, else float32.

    On CPUs and on older cards half precision is emulated and slower than float32.

    Args:
        device: where the model runs.

    Returns:
        torch.bfloat16 on CUDA devices of capability 8.0 or newer, otherwise torch.float32.
    """
    if device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0):
        return torch.bfloat16
    return torch.float32


def loss_dtype(x: torch.Tensor) -> torch.dtype:
    """What a loss of x is computed and returned in: x's precision, at least float32."""
    return torch.promote_types(x.dtype, torch.float32)


def seed_everything(seed: int) -> torch.Generator:
    """Seed Python, NumPy and torch (every device), and return a CPU generator of the same seed.

    The same seed gives the same numbers on the same machine and versions; CPUs of another type and
    GPUs may differ in the last digits.

    Args:
        seed: from 0 to 2³² − 1, the range that NumPy accepts.

    Returns:
        A generator for code that wants randomness of its own, such as a data loader.

    Raises:
        ValueError: the seed is out of range.
    """
    if not 0 <= seed < 2**32:
        raise ValueError(f"expected a seed from 0 to 2**32 - 1, got {seed}")
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002  (the global generator is what other libraries draw from)
    torch.manual_seed(seed)
    return torch.Generator().manual_seed(seed)


def limit_threads(maximum: int = 2) -> int:
    """Let torch use at most so many CPU threads; small models get slower, not faster, with more.

    `OMP_NUM_THREADS`, where set, stays the upper limit.

    Args:
        maximum: at least 1.

    Returns:
        The number of threads now in use.

    Raises:
        ValueError: the maximum is below 1.
    """
    if maximum < 1:
        raise ValueError(f"expected at least 1 thread, got {maximum}")
    cores = os.cpu_count() or 1
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    limit = int(wanted) if wanted.isdigit() and int(wanted) > 0 else cores
    torch.set_num_threads(min(maximum, limit, cores))
    return torch.get_num_threads()
