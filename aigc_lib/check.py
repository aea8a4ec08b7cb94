"""How a chapter proves a claim: each function prints it in stable words, or raises ClaimFailed.

What is printed names the tolerance and never the measured error, so that it is the same text on
every machine; the measured error is what the function returns, and a notebook does not show it.
A number that is not finite fails every claim. ValueError stands for what cannot be compared: other
shapes, nothing at all, or a sample too small. Every message begins with the claim.
"""

import ast
import copy
import inspect
import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

Side = Tensor | Sequence | float


class ClaimFailed(AssertionError):
    """A claim that a chapter makes does not hold."""


class Measured(float):
    """A number that differs from machine to machine, so a cell that ends in it shows nothing."""

    def _ipython_display_(self):
        pass


def identity(claim: str, left: Side, right: Side, *, tol: float = 1e-10) -> float:
    """Two sides of an equation agree: max |left − right| / max(1, max |right|) < tol.

    The sides have one shape. Returns the error, measured in float64.
    """
    error = _error(_tensor(left), _tensor(right), claim)
    _require(error < tol, claim, f"expected an error < {tol:g}, got {error:.3g}")
    print(f"{claim}: holds, error < {tol:g}")
    return Measured(error)


def monte_carlo(
    claim: str, samples: Tensor, expected: Tensor | float, *, shift: float | None = None
) -> float:
    """A mean is the expectation: |mean − expected| ≤ 4 standard errors, in every component.

    `samples` (N, …) holds N ≥ 2 independent draws of the shape of `expected`. The check must be
    able to fail, so four standard errors must be under a quarter of `shift`, what a wrong sign or a
    factor of two would move the value by: by default half of the smallest |expected|; it must be
    given where that is 0. Returns the largest distance, in standard errors.
    """
    expected, draws = _tensor(expected), _tensor(samples)
    shapes = f"samples of shape {tuple(expected.shape)}, got {tuple(draws.shape)}"
    fits = draws.ndim > 0 and len(draws) >= 2 and draws.shape[1:] == expected.shape
    _require(fits, claim, f"expected 2 or more {shapes} in all", ValueError)
    finite = bool(draws.isfinite().all() and expected.isfinite().all())
    _require(finite, claim, "expected finite numbers, got NaN or infinity")
    shift = float(expected.abs().min()) / 2 if shift is None else shift
    wanted = f"expected 0 < shift < ∞ (give it where a value is 0), got {shift}"
    _require(0 < shift < math.inf, claim, wanted, ValueError)
    error = draws.std(0) / len(draws) ** 0.5
    wanted = f"expected four standard errors under {shift / 4:.3g}, got {4 * error.max():.3g}"
    _require(bool(4 * error.max() < shift / 4), claim, f"{wanted}; draw more samples", ValueError)
    distance = (draws.mean(0) - expected).abs()
    rounded = distance <= 1e-12 * (1 + expected.abs())  # a constant has no other error
    off = float(torch.where(rounded, 0.0, distance / error).max())
    _require(off <= 4, claim, f"expected at most 4 standard errors, got {off:.1f}")
    print(f"{claim}: holds within 4 standard errors")
    return Measured(off)


def band(
    claim: str,
    value: Tensor | float,
    low: float,
    high: float,
    *,
    wrong: Mapping[str, Tensor | float] | None = None,
) -> float:
    """A measured result lies in the band that five seeds set: low ≤ value ≤ high. Returns it.

    `wrong` are the nearest wrong alternatives by name: no value of theirs may lie in the band.
    """
    _require(low < high, claim, f"expected low < high, got [{low:g}, {high:g}]", ValueError)
    value = float(value)
    within = low <= value <= high and math.isfinite(value)
    _require(within, claim, f"expected within [{low:g}, {high:g}], got {value:.6g}")
    for name, other in (wrong or {}).items():
        apart = f"expected {name} outside [{low:g}, {high:g}], got {other:.6g}"
        _require(not low <= float(other) <= high, claim, apart)
    others = f"; not so: {', '.join(wrong)}" if wrong else ""
    print(f"{claim}: within [{low:g}, {high:g}]{others}")
    return Measured(value)


def same_function(
    teaching: Callable, library: Callable, *inputs: Any, tol: float = 1e-10, seed: int = 0
) -> float:
    """Two functions are one: equal outputs and equal gradients in every floating-point input.

    Inputs are taken to float64, errors measured as in `identity`, the largest returned. Each
    gradient, of the outputs' sum with seeded normal weights, must not be zero, or the comparison
    could not fail. Outputs: one tensor or several.
    """
    claim = f"{_name(teaching, 'the teaching form')} and {_name(library, 'the library form')}"
    ours, theirs = (_outputs_and_gradients(f, {}, inputs, claim, seed) for f in (teaching, library))
    return _compare(claim, ours, theirs, tol, "same outputs and gradients")


def same_module(
    teaching: nn.Module, library: nn.Module, *inputs: Any, tol: float = 1e-10, seed: int = 0
) -> float:
    """Two modules are one: the same parameters by name, and outputs and gradients in all of them.

    Works on float64 copies; the modules stay as they are. Parameters are filled with seeded noise
    first, since a layer initialised to zero would make any two modules equal; the library's buffers
    are set to the teaching form's. All else is as in `same_function`.
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
    """Print the source of a function or class without its docstrings."""
    source = textwrap.dedent(inspect.getsource(thing))
    lines = source.splitlines()
    owners = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, owners) and ast.get_docstring(node) and len(node.body) > 1:
            first, last = node.body[0].lineno, node.body[0].end_lineno
            lines[first - 1 : last] = [None] * (last - first + 1)
    print("\n".join(line for line in lines if line is not None))


def _require(holds: bool, claim: str, otherwise: str, error: type = ClaimFailed) -> None:
    if not holds:
        raise error(f"{claim}: {otherwise}")


def _name(thing: Any, if_nameless: str) -> str:
    if isinstance(thing, nn.Module):
        return type(thing).__name__
    name = getattr(thing, "__name__", "<lambda>")
    return if_nameless if name == "<lambda>" else name


def _has_gradients(x: Any) -> bool:
    return isinstance(x, Tensor) and (x.is_floating_point() or x.is_complex())


def _double(x: Tensor) -> Tensor:
    return x.detach().to(torch.complex128 if x.is_complex() else torch.float64)


def _tensor(value: Any) -> Tensor:
    tensor = value if isinstance(value, Tensor) else torch.as_tensor(value, dtype=torch.float64)
    return _double(tensor.cpu())


def _error(left: Tensor, right: Tensor, claim: str) -> float:
    shapes = f"{tuple(left.shape)} and {tuple(right.shape)}"
    comparable = left.shape == right.shape and left.numel() > 0
    wanted = f"expected two sides of one non-empty shape, got {shapes}"
    _require(comparable, claim, wanted, ValueError)
    finite = bool(left.isfinite().all() and right.isfinite().all())
    _require(finite, claim, "expected finite numbers, got NaN or infinity")
    return float((left - right).abs().max() / right.abs().max().clamp_min(1))


def _outputs_and_gradients(
    function: Callable, parameters: dict[str, Tensor], inputs: tuple, claim: str, seed: int
) -> dict[str, Tensor]:
    arguments = [_double(x).requires_grad_() if _has_gradients(x) else x for x in inputs]
    moving = {f"input {i}": x for i, x in enumerate(arguments) if _has_gradients(x)}
    leaves = {**parameters, **moving}
    outputs = function(*arguments)
    outputs = (outputs,) if isinstance(outputs, Tensor) else tuple(outputs)
    found = {f"output {i}": _tensor(y) for i, y in enumerate(outputs)}
    generator, total = torch.Generator().manual_seed(seed), torch.zeros(())
    for y in filter(_has_gradients, outputs):
        weights = torch.randn(y.shape, generator=generator, dtype=y.dtype).to(y.device)
        total = total + (y * weights).sum().real
    depends = bool(leaves) and total.requires_grad
    _require(depends, claim, "expected outputs that depend on a floating-point input, got none")
    gradients = torch.autograd.grad(total, list(leaves.values()), allow_unused=True)
    for name, gradient in zip(leaves, gradients, strict=True):
        has_gradient = gradient is not None and bool(gradient.count_nonzero())
        _require(has_gradient, claim, f"expected a non-zero gradient for {name}, got none")
        found[f"gradient of {name}"] = _tensor(gradient)
    return found


def _compare(claim: str, ours: dict, theirs: dict, tol: float, words: str) -> float:
    _require(ours.keys() == theirs.keys(), claim, f"expected {list(ours)}, got {list(theirs)}")
    worst = 0.0
    for name, value in ours.items():
        shapes = f"{tuple(value.shape)}, got {tuple(theirs[name].shape)}"
        same_shape = value.shape == theirs[name].shape
        _require(same_shape, claim, f"expected {name} of shape {shapes}")
        error = _error(value, theirs[name], f"{claim}, {name}")
        _require(error < tol, claim, f"expected {name} to differ by < {tol:g}, got {error:.3g}")
        worst = max(worst, error)
    print(f"{claim}: {words}, error < {tol:g}")
    return Measured(worst)
