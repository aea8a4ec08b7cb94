"""What launchers ask of the device; in the interpreter and for the compiler there is none."""

import torch
from torch import Tensor


def capability(x: Tensor) -> tuple[int, int]:
    """The compute capability that a launch is configured for; (8, 0) without a CUDA device."""
    return torch.cuda.get_device_capability(x.device) if x.is_cuda else (8, 0)


def num_processors(x: Tensor) -> int:
    """How many multiprocessors persistent programs share the work over; 4 without a CUDA device."""
    if not x.is_cuda:
        return 4
    return torch.cuda.get_device_properties(x.device).multi_processor_count
