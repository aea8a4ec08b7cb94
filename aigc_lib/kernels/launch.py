"""What launchers ask of the device; in the interpreter and for the compiler there is none."""

import torch
from torch import Tensor


def capability(x: Tensor) -> tuple[int, int]:
    """The compute capability that a launch is configured for.

    Args:
        x: any tensor of the launch.

    Returns:
        (major, minor); (8, 0) where there is no CUDA device.
    """
    return torch.cuda.get_device_capability(x.device) if x.is_cuda else (8, 0)


def num_processors(x: Tensor) -> int:
    """The number of multiprocessors, which persistent programs share out the work over.

    Args:
        x: any tensor of the launch.

    Returns:
        How many; 4 where there is no CUDA device.
    """
    if not x.is_cuda:
        return 4
    return torch.cuda.get_device_properties(x.device).multi_processor_count
