"""Class labels that a model may be told: one place that refuses those that do not fit."""

from jaxtyping import Int
from torch import Tensor

from aigc_lib import expect


def require_labels(labels: Int[Tensor, " B"] | None, *, num_classes: int, batch: int) -> None:
    """B whole labels from 0 to num_classes − 1; none at all if the model has 0 classes.

    The range is looked at on the CPU alone: on a GPU the question would stop the queue.
    """
    wanted = f"labels from 0 to {num_classes - 1}" if num_classes else "no labels, num_classes is 0"
    given = "None" if labels is None else "some"
    expect.that((labels is not None) == (num_classes > 0), wanted, given)
    expect.shaped((batch,), labels=labels)
    expect.whole(labels=labels)
    expect.values_in(0, num_classes - 1, labels=labels)
