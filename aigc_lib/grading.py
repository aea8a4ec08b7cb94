"""What an assignment's tests are made of: `answer` within a `with task(…)`; they print nothing."""

import cmath
import contextlib
import os
import traceback
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn


class NotYet(AssertionError):
    """A test of an assignment does not pass; a notebook shows its sentence without a traceback."""

    def _render_traceback_(self) -> list[str]:
        return [str(self)]


@contextlib.contextmanager
def task(name: str) -> Iterator[None]:
    """Turn whatever fails inside the block into one sentence that begins with the name: NotYet.

    It says that the task is not solved yet (NotImplementedError, a NameError of the test itself),
    what a test found (AssertionError), or where the code stopped and why.
    """
    try:
        yield
    except NotImplementedError:
        sentence = "not solved yet. Replace `raise NotImplementedError()` in the cell above."
    except AssertionError as error:
        sentence = str(error) or f"a test does not hold{_place(error)}."
    except Exception as error:
        sentence = f"the code raised {type(error).__name__}: {error}{_place(error)}."
        if isinstance(error, NameError) and len(_written(error)) < 2:  # the test's own line
            sentence = f"not solved yet, or not run: {error}. Run the cells from the top."
    else:
        return
    raise NotYet(f"{name}: {sentence}")


def answer(what: str, got: Any, expected: Tensor | float, *, tol: float = 1e-6) -> None:
    """A student's result is the right one: |got − expected| ≤ tol · max(1, max |expected|).

    Plain numbers are compared, and a tensor must be a torch.Tensor and no subclass, so that no
    object that calls itself equal to everything passes; where a number is expected, a tensor of one
    number will do. Infinities are right where they are expected, NaN never; tol = 0 wants equality.
    AssertionError, which begins with `what`, if type, shape or a value is wrong.
    """
    if isinstance(expected, Tensor):
        if type(got) not in (Tensor, nn.Parameter):
            raise AssertionError(f"{what}: expected a torch.Tensor, got {type(got).__name__}")
        if got.shape != expected.shape:
            shapes = f"{tuple(expected.shape)}, got {tuple(got.shape)}"
            raise AssertionError(f"{what}: expected a tensor of shape {shapes}")
        theirs, ours = (x.detach().flatten().tolist() for x in (got, expected))
    else:
        if type(got) is Tensor and got.numel() == 1:
            got = got.item()
        if type(got) not in (bool, int, float):
            raise AssertionError(f"{what}: expected a number, got {type(got).__name__}")
        theirs, ours = [got], [expected]
    scale = max([1.0, *(abs(value) for value in ours if cmath.isfinite(value))])
    for mine, right in zip(theirs, ours, strict=True):
        if not (mine == right or abs(mine - right) <= tol * scale):  # NaN is never near
            raise AssertionError(f"{what}: expected {right:.6g}, got {mine:.6g}")


def _place(error: Exception) -> str:
    if not (written := _written(error)):
        return ""
    last = written[-1]
    return f' (in `{last.name}`, line {last.lineno}: "{last.line}")'


def _written(error: Exception) -> list[traceback.FrameSummary]:
    """The frames of what was written in the notebook, the test's own first."""
    frames = traceback.extract_tb(error.__traceback__)
    return [frame for frame in frames if not os.path.exists(frame.filename)]
