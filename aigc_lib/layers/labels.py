"""Class labels that a model may be told: one place that refuses those that do not fit."""

import torch
from jaxtyping import Int
from torch import Tensor


def are_used(labels: Int[Tensor, " B"] | None, *, num_classes: int, batch: int) -> bool:
    """Whether a model with so many classes is to use these labels.

    Args:
        labels: from 0 to num_classes − 1, or None.
        num_classes: of the model's config; 0 for a model that is told no labels.
        batch: B, number of examples that the labels belong to.

    Returns:
        True for a model with classes, False for one without.

    Raises:
        ValueError: labels missing, not wanted, of another shape or kind, or out of range; the last
            is seen on the CPU alone, on a GPU the question would stop the queue.
    """
    if not num_classes:
        if labels is not None:
            raise ValueError("expected no labels, the config has num_classes 0, got some")
        return False
    last = num_classes - 1
    if labels is None:
        raise ValueError(f"expected labels from 0 to {last}, got None")
    if labels.shape != (batch,) or labels.dtype not in (torch.int64, torch.int32):
        raise ValueError(
            f"expected whole labels of shape ({batch},), got {labels.dtype} of shape "
            f"{tuple(labels.shape)}"
        )
    if labels.device.type == "cpu" and not torch.compiler.is_compiling() and batch:
        least, most = (limit.item() for limit in labels.aminmax())
        if least < 0 or most > last:
            raise ValueError(f"expected labels from 0 to {last}, got {least} to {most}")
    return True
