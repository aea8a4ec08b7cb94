"""What cross_entropy and linear_cross_entropy launch: every class of vocabulary."""

from collections.abc import Callable, Iterator

import torch

from aigc_lib.kernels import cross_entropy as kernels


def calls(dtype: torch.dtype) -> Iterator[tuple[str, Callable[[], object]]]:
    """Launch each configuration once, with smoothing where that takes more registers.

    Args:
        dtype: of the logits.

    Yields:
        A label, and what to call.
    """

    def label(rows, smoothing):
        return f"V {rows.shape[1]}, smoothing {smoothing}"

    dlosses, lses = torch.empty(2, 2048, device="meta")
    targets = torch.empty(2048, dtype=torch.int64, device="meta")
    # The short rows' classes: this kernel holds the loops of the other two.
    for num_classes in (112, 1024):
        few = torch.empty(2048, num_classes, dtype=dtype, device="meta")
        settings = targets, -100, 0.1
        yield label(few, 0.1), lambda z=few, s=settings: kernels.loss_and_gradient_(z, *s)
    # GPT-2's vocabulary, padded and not: 16 doesn't divide 50257.
    for num_classes, smoothing in ((50304, 0.0), (50257, 0.1)):
        rows = torch.empty(2048, num_classes, dtype=dtype, device="meta")
        settings = targets, -100, smoothing
        saved = targets, lses, -100, smoothing
        name = label(rows, smoothing)
        yield name, lambda z=rows, s=settings: kernels.loss_and_gradient_(z, *s)
        yield name, lambda z=rows, s=settings: kernels.loss(z.view(4, 512, -1), *s)
        yield name, lambda z=rows, s=saved: kernels.gradient(dlosses, z.view(4, 512, -1), *s)
