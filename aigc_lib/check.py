"""How a chapter proves a claim: each function prints it in stable words, or raises ClaimFailed.

`task` and `answer` are what an assignment's tests are made of; they print nothing.

What is printed names the tolerance and never the measured error, so that it is the same text on
every machine; the measured error is what the function returns, and a notebook does not show it.
"""

import ast
import contextlib
import copy
import inspect
import math
import os
import textwrap
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn


class ClaimFailed(AssertionError):
    """A claim that a chapter makes does not hold."""


class NotYet(AssertionError):
    """A test of an assignment does not pass; a notebook shows its sentence without a traceback."""

    def _render_traceback_(self) -> list[str]:
        return [str(self)]


class Measured(float):
    """A number that differs from machine to machine, so a cell that ends in it shows nothing."""

    def _ipython_display_(self):
        pass


def identity(
    claim: str,
    left: Tensor | Sequence | float,
    right: Tensor | Sequence | float,
    *,
    tol: float = 1e-10,
) -> float:
    """Check that two sides of an equation are the same numbers.

    The error is max |left − right| / max(1, max |right|).

    Args:
        claim: the statement, as it is printed.
        left: one side, of any shape.
        right: the other side, of the same shape.
        tol: largest error for which the claim holds.

    Returns:
        The measured error.

    Raises:
        ClaimFailed: the error reaches the tolerance, or a number is not finite.
        ValueError: the shapes differ, or there is nothing to compare.
    """
    error = _error(_tensor(left), _tensor(right), claim)
    _require(error < tol, claim, f"expected an error < {tol:g}, got {error:.3g}")
    print(f"{claim}: holds, error < {tol:g}")
    return Measured(error)


def monte_carlo(
    claim: str, samples: Tensor, expected: Tensor | float, *, shift: float | None = None
) -> float:
    """Check an expectation by sampling: the mean lies within four standard errors of its value.

    The check must be able to fail, so four standard errors must be under a quarter of `shift`, what
    a wrong sign or a factor of two would move the value by.

    Args:
        claim: the statement, as it is printed.
        samples: (N, ...) independent draws along the first axis, N ≥ 2.
        expected: the exact expectation, a number or the shape of one draw.
        shift: by default half of the smallest |expected|, which is what a factor of one half moves
            it by; must be given where an expected value is zero.

    Returns:
        The largest distance of a mean from its expectation, in standard errors.

    Raises:
        ClaimFailed: a mean is further off, or a number is not finite.
        ValueError: too few samples to tell the claim from a wrong one, or the shapes differ.
    """
    expected = _tensor(expected)
    draws = samples.detach().to("cpu", torch.float64)
    if len(draws) < 2 or draws.shape[1:] != expected.shape:
        raise ValueError(
            f"{claim}: expected at least 2 samples of shape {tuple(expected.shape)}, "
            f"got samples of shape {tuple(samples.shape)}"
        )
    shift = float(expected.abs().min()) / 2 if shift is None else shift
    if not shift > 0:
        raise ValueError(f"{claim}: expected shift > 0 (give it where a value is 0), got {shift}")
    _require(bool(draws.isfinite().all()), claim, "expected finite samples, got NaN or infinity")
    standard_error = draws.std(0) / len(draws) ** 0.5
    if 4 * standard_error.max() >= shift / 4:
        raise ValueError(
            f"{claim}: expected four standard errors under {shift / 4:.3g}, "
            f"got {4 * standard_error.max():.3g}; draw more samples"
        )
    distance = (draws.mean(0) - expected).abs()
    off = float((distance / standard_error.clamp_min(torch.finfo(torch.float64).tiny)).max())
    off = 0.0 if bool((distance <= 1e-12 * (1 + expected.abs())).all()) else off
    _require(off <= 4, claim, f"expected at most 4 standard errors, got {off:.1f}")
    print(f"{claim}: holds within 4 standard errors")
    return Measured(off)


def band(claim: str, value: Tensor | float, low: float, high: float) -> float:
    """Check that a measured result lies in the band that five seeds set.

    Args:
        claim: what was measured, as it is printed.
        value: the measured number.
        low: lower limit, included.
        high: upper limit, included.

    Returns:
        The value.

    Raises:
        ClaimFailed: the value lies outside.
        ValueError: the band is empty.
    """
    if not low < high:
        raise ValueError(f"{claim}: expected low < high, got [{low:g}, {high:g}]")
    value = float(value)
    _require(low <= value <= high, claim, f"expected within [{low:g}, {high:g}], got {value:.6g}")
    print(f"{claim}: within [{low:g}, {high:g}]")
    return Measured(value)


def same_function(
    teaching: Callable, library: Callable, *inputs: Any, tol: float = 1e-10, seed: int = 0
) -> float:
    """Check that two functions are one: equal outputs and equal gradients in every input.

    Floating-point tensors among the inputs are compared in float64; each must receive a gradient
    that is not zero, or the comparison could not fail.

    Args:
        teaching: the form that the chapter derived.
        library: the form that the library ships.
        *inputs: what both are called with.
        tol: largest error, measured as in `identity`.
        seed: draws the direction in which the outputs are differentiated.

    Returns:
        The largest error over outputs and gradients.

    Raises:
        ClaimFailed: an output or a gradient differs, or a gradient is zero.
    """
    claim = f"{_name(teaching, 'the teaching form')} and {_name(library, 'the library form')}"
    ours, theirs = (_outputs_and_gradients(f, {}, inputs, claim, seed) for f in (teaching, library))
    return _compare(claim, ours, theirs, tol, "same outputs and gradients")


def same_module(
    teaching: nn.Module, library: nn.Module, *inputs: Any, tol: float = 1e-10, seed: int = 0
) -> float:
    """Check that two modules are one: the same parameters by name, outputs and gradients.

    Works on float64 copies; the modules themselves stay as they are. Every parameter is filled with
    seeded noise first, since a layer initialised to zero would make any two modules equal, and each
    parameter must receive a gradient that is not zero.

    Args:
        teaching: the module that the chapter built.
        library: the module that the library ships.
        *inputs: what both are called with.
        tol: largest error, measured as in `identity`.
        seed: draws the parameters and the direction of differentiation.

    Returns:
        The largest error over outputs and gradients.

    Raises:
        ClaimFailed: names or shapes of parameters differ, an output or a gradient differs, or a
            gradient is zero.
    """
    claim = f"{_name(teaching, 'the teaching form')} and {_name(library, 'the library form')}"
    teaching, library = (copy.deepcopy(module).double() for module in (teaching, library))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in teaching.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.copy_(0.3 * noise)
    try:
        library.load_state_dict(teaching.state_dict(), strict=True)
    except RuntimeError as error:
        raise ClaimFailed(f"{claim}: expected the same parameters, got {error}") from None
    ours, theirs = (
        _outputs_and_gradients(m, dict(m.named_parameters()), inputs, claim, seed)
        for m in (teaching, library)
    )
    number = len(list(teaching.parameters()))
    return _compare(claim, ours, theirs, tol, f"same outputs and gradients, {number} parameters")


def show(thing: Callable | type) -> None:
    """Print the source of a function or class without its docstrings.

    Args:
        thing: a function or class whose source is at hand.
    """
    source = textwrap.dedent(inspect.getsource(thing))
    lines = source.splitlines()
    owners = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, owners) and ast.get_docstring(node) and len(node.body) > 1:
            docstring = node.body[0]
            lines[docstring.lineno - 1 : docstring.end_lineno] = [None] * (
                docstring.end_lineno - docstring.lineno + 1
            )
    print("\n".join(line for line in lines if line is not None))


@contextlib.contextmanager
def task(name: str) -> Iterator[None]:
    """Turn whatever fails inside the block into one sentence that helps: a context manager.

    Args:
        name: number and title of the task, the beginning of the sentence.

    Yields:
        Nothing.

    Raises:
        NotYet: the block raised. Says that the task is not solved yet (NotImplementedError,
            NameError), what a test found (AssertionError), or where the code stopped and why.
    """
    try:
        yield
    except NotImplementedError:
        sentence = "not solved yet. Replace `raise NotImplementedError()` in the cell above."
    except NameError as error:
        sentence = f"not solved yet, or not run: {error}. Run the cells from the top."
    except AssertionError as error:
        sentence = str(error) or f"a test does not hold{_place(error)}."
    except Exception as error:
        sentence = f"the code raised {type(error).__name__}: {error}{_place(error)}."
    else:
        return
    raise NotYet(f"{name}: {sentence}")


def answer(what: str, got: Any, expected: Tensor | float, *, tol: float = 1e-6) -> None:
    """Compare a student's result with the right one, as plain numbers.

    A tensor must be a torch.Tensor and no subclass, so that no object that calls itself equal to
    everything passes. The error is |got − expected| / max(1, max |expected|).

    Args:
        what: what was asked for, the beginning of the sentence.
        got: the result: a tensor, or a number where a number is expected.
        expected: the right result.
        tol: largest error that is accepted; 0 for equality.

    Raises:
        AssertionError: type, shape or a value is wrong, or a number is not finite.
    """
    if isinstance(expected, Tensor):
        if type(got) not in (Tensor, nn.Parameter):
            raise AssertionError(f"{what}: expected a torch.Tensor, got {type(got).__name__}")
        if got.shape != expected.shape:
            shapes = f"{tuple(expected.shape)}, got {tuple(got.shape)}"
            raise AssertionError(f"{what}: expected a tensor of shape {shapes}")
        theirs, ours = (x.detach().double().flatten().tolist() for x in (got, expected))
    else:
        if type(got) is Tensor and got.numel() == 1:
            got = got.item()
        if type(got) not in (bool, int, float):
            raise AssertionError(f"{what}: expected a number, got {type(got).__name__}")
        theirs, ours = [float(got)], [float(expected)]
    scale = max([1.0, *(abs(value) for value in ours if math.isfinite(value))])
    for mine, right in zip(theirs, ours, strict=True):
        if not (mine == right or abs(mine - right) <= tol * scale):  # NaN is never near
            raise AssertionError(f"{what}: expected {right:.6g}, got {mine:.6g}")


def _place(error: Exception) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    written = [frame for frame in frames if not os.path.exists(frame.filename)]
    if not written:
        return ""
    last = written[-1]
    return f' (in `{last.name}`, line {last.lineno}: "{last.line}")'


def _require(holds: bool, claim: str, otherwise: str) -> None:
    if not holds:
        raise ClaimFailed(f"{claim}: {otherwise}")


def _name(thing: Any, if_nameless: str) -> str:
    if isinstance(thing, nn.Module):
        return type(thing).__name__
    name = getattr(thing, "__name__", "<lambda>")
    return if_nameless if name == "<lambda>" else name


def _tensor(value: Any) -> Tensor:
    tensor = value if isinstance(value, Tensor) else torch.as_tensor(value, dtype=torch.float64)
    return tensor.detach().to("cpu", torch.float64)


def _error(left: Tensor, right: Tensor, claim: str) -> float:
    if left.shape != right.shape or left.numel() == 0:
        raise ValueError(
            f"{claim}: expected two sides of one non-empty shape, "
            f"got {tuple(left.shape)} and {tuple(right.shape)}"
        )
    finite = bool(left.isfinite().all() and right.isfinite().all())
    _require(finite, claim, "expected finite numbers, got NaN or infinity")
    return float((left - right).abs().max() / right.abs().max().clamp_min(1))


def _outputs_and_gradients(
    function: Callable, parameters: dict[str, Tensor], inputs: tuple, claim: str, seed: int
) -> dict[str, Tensor]:
    arguments = [
        x.detach().to(torch.float64).requires_grad_()
        if isinstance(x, Tensor) and x.is_floating_point()
        else x
        for x in inputs
    ]
    leaves = dict(parameters)
    leaves |= {
        f"input {i}": x
        for i, x in enumerate(arguments)
        if isinstance(x, Tensor) and x.requires_grad
    }
    outputs = function(*arguments)
    outputs = (outputs,) if isinstance(outputs, Tensor) else tuple(outputs)
    generator = torch.Generator().manual_seed(seed)
    total = sum(
        (y * torch.randn(y.shape, generator=generator, dtype=y.dtype).to(y.device)).sum()
        for y in outputs
    )
    gradients = torch.autograd.grad(total, list(leaves.values()), allow_unused=True)
    found = {f"output {i}": _tensor(y) for i, y in enumerate(outputs)}
    for name, gradient in zip(leaves, gradients, strict=True):
        has_gradient = gradient is not None and bool(gradient.count_nonzero())
        _require(has_gradient, claim, f"expected a non-zero gradient for {name}, got none")
        found[f"gradient of {name}"] = _tensor(gradient)
    return found


def _compare(claim: str, ours: dict, theirs: dict, tol: float, words: str) -> float:
    _require(ours.keys() == theirs.keys(), claim, f"expected {list(ours)}, got {list(theirs)}")
    worst = 0.0
    for name, value in ours.items():
        same_shape = value.shape == theirs[name].shape
        shapes = f"{tuple(value.shape)}, got {tuple(theirs[name].shape)}"
        _require(same_shape, claim, f"expected {name} of shape {shapes}")
        error = _error(value, theirs[name], f"{claim}, {name}")
        _require(error < tol, claim, f"expected {name} to differ by < {tol:g}, got {error:.3g}")
        worst = max(worst, error)
    print(f"{claim}: {words}, error < {tol:g}")
    return Measured(worst)
