"""What a function expects of its input, in one line each at the public boundary.

Every failure is one sentence, "expected …, got …", that names the argument. Shapes and values raise
ValueError, dtypes TypeError. An argument that is None was not given and is not looked at.
"""

import math
from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor

WHOLE = (torch.int64, torch.int32)


def that(holds: bool, expected: str, got: Any) -> None:
    """Anything else: raise "expected {expected}, got {got}" unless it holds."""
    if not holds:
        raise ValueError(f"expected {expected}, got {got}")


def shaped(shape: tuple, **tensors: Tensor | None) -> None:
    """Axes of these sizes: a number, None for any, a letter for one size within the call.

    `...` stands for any axes: `expect.shaped(("B", ..., 3), x=x)`.
    """
    sizes: dict[str, int] = {}
    for name, x in tensors.items():
        if x is None:
            continue
        have, want = tuple(x.shape), shape
        if ... in shape:
            cut = shape.index(...)
            after = len(shape) - cut - 1
            want = shape[:cut] + (None,) * (len(have) - cut - after) + shape[cut + 1 :]
        fits = len(have) == len(want)
        for axis, size in zip(have, want, strict=False):
            if isinstance(size, str):
                size = sizes.setdefault(size, axis)
            fits = fits and size in (None, axis)
        if not fits:
            axes = ("…" if s is ... else "any" if s is None else sizes.get(s, s) for s in shape)
            wanted = ", ".join(map(str, axes)) + "," * (len(shape) == 1)
            raise ValueError(f"expected {name} of shape ({wanted}), got {have}")


def alike(**tensors: Tensor | None) -> None:
    """All of the first one's shape."""
    given = [(name, tuple(x.shape)) for name, x in tensors.items() if x is not None]
    for name, shape in given[1:]:
        if shape != given[0][1]:
            raise ValueError(f"expected {name} of {given[0][0]}'s shape {given[0][1]}, got {shape}")


def together(**tensors: Tensor | None) -> None:
    """All on the first one's device."""
    given = [(name, x.device) for name, x in tensors.items() if x is not None]
    for name, device in given[1:]:
        if device != given[0][1]:
            raise ValueError(
                f"expected {name} on {given[0][0]}'s device {given[0][1]}, got {device}"
            )


def of_dtype(dtypes: Collection[torch.dtype], **tensors: Tensor | None) -> None:
    """One of these dtypes."""
    for name, x in tensors.items():
        kind = getattr(x, "dtype", type(x))
        if x is not None and kind not in dtypes:
            raise TypeError(f"expected {name} of {' or '.join(map(str, dtypes))}, got {kind}")


def whole(**tensors: Tensor | None) -> None:
    """int64 or int32."""
    of_dtype(WHOLE, **tensors)


def floating(**tensors: Tensor | None) -> None:
    """Any floating-point dtype."""
    for name, x in tensors.items():
        if x is not None and not x.is_floating_point():
            raise TypeError(f"expected {name} of a floating-point dtype, got {x.dtype}")


def at_least(least: float, **numbers: float | None) -> None:
    """Numbers ≥ least, and not NaN."""
    for name, value in numbers.items():
        if value is not None and not value >= least:
            raise ValueError(f"expected {name} >= {least}, got {value}")


def count(**numbers: float | None) -> None:
    """Whole numbers ≥ 1."""
    for name, value in numbers.items():
        if value is not None and not (type(value) is int and value >= 1):
            raise ValueError(f"expected a whole {name} >= 1, got {value!r}")


def above(limit: float, **numbers: float | None) -> None:
    """Numbers > limit, and not NaN."""
    for name, value in numbers.items():
        if value is not None and not value > limit:
            raise ValueError(f"expected {name} > {limit}, got {value}")


def below(limit: float, **numbers: float | None) -> None:
    """Numbers < limit, and not NaN."""
    for name, value in numbers.items():
        if value is not None and not value < limit:
            raise ValueError(f"expected {name} < {limit}, got {value}")


def between(low: float, high: float, **numbers: float | None) -> None:
    """Numbers in [low, high]."""
    for name, value in numbers.items():
        if value is not None and not low <= value <= high:
            raise ValueError(f"expected {name} in [{low}, {high}], got {value}")


def finite(**numbers: float | None) -> None:
    """Neither infinite nor NaN."""
    for name, value in numbers.items():
        if value is not None and not math.isfinite(value):
            raise ValueError(f"expected a finite {name}, got {value}")


def one_of(options: Collection, **values: Any) -> None:
    """One of these; None counts as a value here."""
    for name, value in values.items():
        if value not in options:
            known = ", ".join(map(repr, options))
            raise ValueError(f"expected {name} to be one of {known}, got {value!r}")


def values_in(
    low: int, high: int, *, except_for: int | None = None, **tensors: Tensor | None
) -> None:
    """Every element in low … high and not NaN, or the one exception. Looked at on the CPU alone.

    On a GPU the question would stop the queue, and under a compiler break the graph.
    """
    for name, x in tensors.items():
        if x is None or x.device.type != "cpu" or torch.compiler.is_compiling() or not x.numel():
            continue
        least, greatest = x.detach().aminmax()  # NaN if there is one
        if low <= least.item() and greatest.item() <= high:  # nearly always, and the least work
            continue
        fits = (x >= low) & (x <= high)
        if except_for is not None:
            fits |= x == except_for
        if not fits.all():
            exception = "" if except_for is None else f" or {except_for}"
            raise ValueError(
                f"expected {name} in {low} … {high}{exception}, got {x[~fits][0].item()}"
            )
