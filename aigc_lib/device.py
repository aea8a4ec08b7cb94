"""Choose where a model runs and in which precision, seed everything, keep threads polite."""

import os
import random

import numpy as np
import torch

from aigc_lib import expect

WITHOUT_FLOAT64 = {"mps"}


def best(name: str | None = None) -> torch.device:
    """The device of that name, such as "cuda:1"; else CUDA, else Apple's MPS, else the CPU.

    ValueError for a name that is no device of this machine; it lists those that are.
    """
    available = ["cpu"]
    if torch.backends.mps.is_available():
        available.insert(0, "mps")
    if torch.cuda.is_available():
        available[:0] = ["cuda", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
    if name is None:
        return torch.device(available[0])
    expect.one_of(available, name=name)
    return torch.device(name)


def widest_float(device: torch.device) -> torch.dtype:
    """float64; float32 on Apple's MPS, which has no other."""
    return torch.float32 if device.type in WITHOUT_FLOAT64 else torch.float64


def loss_dtype(x: torch.Tensor) -> torch.dtype:
    """What a loss of x is computed and returned in: x's precision, at least float32."""
    return torch.promote_types(x.dtype, torch.float32)


def seed_everything(seed: int) -> torch.Generator:
    """Seed Python, NumPy and torch (every device); returns a CPU generator of the same seed.

    The same seed, from 0 to 2³² − 1, gives the same numbers on the same machine and versions; CPUs
    of another type and GPUs may differ in the last digits.
    """
    expect.between(0, 2**32 - 1, seed=seed)
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002  (the global generator is what other libraries draw from)
    torch.manual_seed(seed)
    return torch.Generator().manual_seed(seed)


def limit_threads(maximum: int = 2) -> int:
    """Let torch use min(maximum, cores, OMP_NUM_THREADS if set) CPU threads; returns their number.

    Small models get slower, not faster, with more.
    """
    expect.at_least(1, maximum=maximum)
    cores = os.cpu_count() or 1
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    limit = int(wanted) if wanted.isdigit() and int(wanted) > 0 else cores
    torch.set_num_threads(min(maximum, limit, cores))
    return torch.get_num_threads()
