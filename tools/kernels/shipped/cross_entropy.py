"""What cross_entropy and linear_cross_entropy launch: every class of vocabulary."""

from collections.abc import Callable, Iterator

import torch

from aigc_lib.kernels.cross_entropy import kernels


def calls(dtype: torch.dtype) -> Iterator[tuple[str, Callable[[], object]]]:
    """Launch each kernel in each class, with smoothing, which takes more registers."""
    dlosses, lses = torch.empty(2, 2048, device="meta")
    targets = torch.empty(2048, dtype=torch.int64, device="meta")
    # The last is GPT-2's vocabulary, which 16 doesn't divide.
    for num_classes in (112, 1024, 50257):
        z = torch.empty(2048, num_classes, dtype=dtype, device="meta")
        parts, name = z.view(4, 512, num_classes), f"V {num_classes}"
        yield name, lambda z=z: kernels.loss_and_gradient_(z, targets, -100, 0.1)
        yield name, lambda z=parts: kernels.loss(z, targets, -100, 0.1)
        yield name, lambda z=parts: kernels.gradient(dlosses, z, targets, lses, -100, 0.1)
    padded = torch.empty(2048, 50304, dtype=dtype, device="meta")
    yield "V 50304, no smoothing", lambda: kernels.loss_and_gradient_(padded, targets, -100, 0.0)
