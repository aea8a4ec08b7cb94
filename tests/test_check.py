import functools
import inspect
import math

import pretend
import pytest
import torch
from IPython.core.formatters import DisplayFormatter
from noise import normal
from torch import nn

from aigc_lib import check

# identity


def test_identity_prints_the_tolerance_and_returns_the_error(capsys):
    assert check.identity("2 = 2 + 1e-12", 2 + 1e-12, 2.0) == pytest.approx(0.5e-12, rel=1e-3)
    assert capsys.readouterr().out == "2 = 2 + 1e-12: holds, error < 1e-10\n"


def moved(right, place, by):
    left = right.clone()
    left[place] += by
    return left


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3, -1e3])
@pytest.mark.parametrize("place", [(0, 0), (1, 2)])
@pytest.mark.parametrize("sign", [1, -1])
def test_identity_has_one_limit_relative_above_one_and_absolute_below(scale, place, sign):
    right = torch.full((2, 3), 0.5 * scale, dtype=torch.float64)
    right[1, 0] = scale
    limit = sign * 1e-10 * max(1, abs(scale))
    inside, outside = (moved(right, place, part * limit) for part in (0.98, 1.02))
    assert 0.9e-10 < check.identity("inside", inside, right) < 1e-10
    with pytest.raises(check.ClaimFailed, match=r"^outside: expected an error < 1e-10, got 1"):
        check.identity("outside", outside, right)


def test_identity_takes_the_size_of_its_right_side_and_any_tolerance():
    check.identity("small against large", 1.0, 10.0, tol=0.91)
    with pytest.raises(check.ClaimFailed):
        check.identity("small against large", 1.0, 10.0, tol=0.89)
    with pytest.raises(check.ClaimFailed):
        check.identity("large against small", 10.0, 1.0, tol=0.91)
    with pytest.raises(check.ClaimFailed):
        check.identity("at the limit", 1.5, 1.0, tol=0.5)


@pytest.mark.parametrize(
    ("left", "right", "other"),
    [
        (3, 3.0, 4),
        ([1.0, 2.0], (1, 2), [1.0, 2.1]),
        (torch.tensor(0.1, dtype=torch.float64), 0.1, torch.tensor(0.1)),
        (torch.tensor([1, 2]), torch.tensor([1.0, 2.0]), torch.tensor([1, 3])),
        (torch.tensor([True, False]), torch.tensor([1, 0]), torch.tensor([True, True])),
        (torch.tensor([1 + 2j]), torch.tensor([1 + 2j]), torch.tensor([1 + 3j])),
        (torch.tensor([1 + 0j]), torch.tensor([1.0]), torch.tensor([1 + 1j])),
        (nn.Parameter(torch.ones(1)), torch.ones(1).half(), nn.Parameter(torch.zeros(1))),
    ],
)
def test_identity_of_numbers_sequences_and_tensors_of_every_dtype(left, right, other):
    assert check.identity("same", left, right) == 0
    with pytest.raises(check.ClaimFailed):
        check.identity("other", other, right)
    with pytest.raises(check.ClaimFailed):
        check.identity("other", right, other)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_identity_never_accepts_a_number_that_is_not_finite(bad):
    for left, right in (([0, bad], [0, bad]), ([0, bad], [0, 1]), ([0, 1], [0, bad])):
        with pytest.raises(check.ClaimFailed, match="expected finite numbers"):
            check.identity("bad", left, right)


@pytest.mark.parametrize(
    ("left", "right"),
    [([1.0], [1.0, 1.0]), ([], []), (1.0, [1.0]), (torch.ones(2, 1), torch.ones(1, 2))],
)
def test_identity_refuses_shapes_that_cannot_be_compared(left, right):
    with pytest.raises(ValueError, match=r"^shapes: expected two sides of one non-empty shape"):
        check.identity("shapes", left, right)


# monte_carlo


def draws(*errors, number=10_000, mean=1.0):
    """Samples whose means and standard errors are exactly these, one column each."""
    pair = torch.tensor([1.0, -1.0], dtype=torch.float64).repeat(number // 2)[:, None]
    errors = torch.tensor(errors, dtype=torch.float64)
    return mean + pair * errors * (number - 1) ** 0.5


def test_the_samples_of_these_tests_are_what_they_say():
    samples = draws(0.01, 0.02)
    assert torch.allclose(samples.mean(0), torch.ones(2, dtype=torch.float64), atol=1e-12)
    error = samples.std(0) / len(samples) ** 0.5
    assert torch.allclose(error, torch.tensor([0.01, 0.02], dtype=torch.float64))


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("column", [0, 1])
def test_monte_carlo_allows_four_standard_errors_in_every_component(sign, column, capsys):
    samples = draws(0.01, 0.02)
    for off in (3.0, 3.9):
        expected = moved(torch.ones(2), column, sign * off * (0.01, 0.02)[column])
        assert check.monte_carlo("mean", samples, expected) == pytest.approx(off, rel=1e-4)
    assert capsys.readouterr().out == "mean: holds within 4 standard errors\n" * 2
    for off in (4.1, 5.0):
        expected = moved(torch.ones(2), column, sign * off * (0.01, 0.02)[column])
        with pytest.raises(check.ClaimFailed, match=r"^mean: expected at most 4 standard errors"):
            check.monte_carlo("mean", samples, expected)


@pytest.mark.parametrize("column", [0, 1])
def test_monte_carlo_wants_every_component_sharp(column):
    """Four errors under a quarter of the shift, which is half of the smallest value: 1 / 32."""
    for error, sharp in ((0.98 / 32, True), (1.02 / 32, False)):
        errors = [1e-6, 1e-6]
        errors[column] = error
        if sharp:
            check.monte_carlo("sharp", draws(*errors), torch.ones(2))
        else:
            with pytest.raises(ValueError, match=r"^noisy: .* draw more samples"):
                check.monte_carlo("noisy", draws(*errors), torch.ones(2))


def test_monte_carlo_takes_the_smallest_value_or_the_shift_given():
    samples = draws(0.02, 0.02)
    samples[:, 0] -= 0.5
    with pytest.raises(ValueError, match="draw more samples"):
        check.monte_carlo("half as large", samples, torch.tensor([0.5, 1.0]))
    check.monte_carlo("shift", samples, torch.tensor([0.5, 1.0]), shift=0.33)
    with pytest.raises(ValueError, match="draw more samples"):
        check.monte_carlo("shift", samples, torch.tensor([0.5, 1.0]), shift=0.31)
    samples[:, 0] -= 1.0
    check.monte_carlo("a negative value", samples, torch.tensor([-0.5, 1.0]), shift=0.33)


def test_monte_carlo_wants_a_shift_where_a_value_is_zero():
    samples = draws(0.01, 0.01)
    samples[:, 1] -= 1
    for shift in (None, 0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="shift"):
            check.monte_carlo("zero", samples, torch.tensor([1.0, 0.0]), shift=shift)
    check.monte_carlo("zero", samples, torch.tensor([1.0, 0.0]), shift=1.0)


def test_monte_carlo_of_a_constant_allows_rounding_alone():
    samples = draws(0.01, 0.0)
    samples[:, 1] = 0.1
    check.monte_carlo("constant", samples, torch.tensor([1.0, 0.1], dtype=torch.float64), shift=1)
    assert check.monte_carlo("constant", torch.full((10,), 0.5), 0.5, shift=1) == 0
    for wrong in (0.6, 0.5 + 1e-9):
        with pytest.raises(check.ClaimFailed):
            check.monte_carlo("constant", torch.full((10,), 0.5), wrong, shift=1)


@pytest.mark.parametrize("make", [torch.Tensor.long, torch.Tensor.bool, torch.Tensor.half])
def test_monte_carlo_of_whole_numbers_and_low_precision(make):
    samples = make(torch.tensor([0.0, 1.0]).repeat(5000))
    check.monte_carlo("coin", samples, 0.5)
    with pytest.raises(check.ClaimFailed):
        check.monte_carlo("coin", samples, 0.55)


def test_monte_carlo_of_complex_numbers():
    samples = draws(0.01)[:, 0] + 1j
    check.monte_carlo("complex", samples, torch.tensor(1 + 1j))
    with pytest.raises(check.ClaimFailed):
        check.monte_carlo("complex", samples, torch.tensor(1 + 1.1j))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_monte_carlo_never_accepts_a_number_that_is_not_finite(bad):
    samples = draws(0.01, 0.01)
    for shift in (None, 1.0):
        with pytest.raises(check.ClaimFailed, match="finite"):
            check.monte_carlo("expected", samples, torch.tensor([1.0, bad]), shift=shift)
        with pytest.raises(check.ClaimFailed, match="finite"):
            check.monte_carlo("drawn", moved(samples, (3, 1), bad), torch.ones(2), shift=shift)


@pytest.mark.parametrize(
    ("samples", "expected"),
    [
        (torch.ones(1), 1.0),
        (torch.ones(()), 1.0),
        (torch.ones(5, 2), 1.0),
        (torch.ones(5), torch.ones(5)),
        (torch.ones(5, 2), torch.ones(3)),
        (torch.ones(5, 2), torch.ones(1, 2)),
    ],
)
def test_monte_carlo_refuses_other_shapes(samples, expected):
    with pytest.raises(ValueError, match=r"^shapes: expected 2 or more samples of shape"):
        check.monte_carlo("shapes", samples, expected, shift=1.0)


def test_monte_carlo_of_two_draws_divides_their_squares_by_one():
    samples = torch.tensor([0.999, 1.001], dtype=torch.float64)  # a standard error of 0.001
    assert check.monte_carlo("two draws", samples, 1.0035) == pytest.approx(3.5)
    with pytest.raises(check.ClaimFailed, match=r"got 4\.5"):
        check.monte_carlo("two draws", samples, 1.0045)


@pytest.mark.parametrize("shift", [0, 0.0])
def test_monte_carlo_does_not_take_a_shift_of_zero_for_none(shift):
    with pytest.raises(ValueError, match="expected 0 < shift"):
        check.monte_carlo("mean", draws(0.01, 0.01), torch.ones(2), shift=shift)


# band


@pytest.mark.parametrize("make", [float, torch.tensor])
def test_band_includes_both_limits_and_nothing_outside(make, capsys):
    for value in (1, 1.5, 2):
        assert check.band("loss", make(value), 1, 2) == value
    assert capsys.readouterr().out == "loss: within [1, 2]\n" * 3
    for value in (0.999, 2.001, -1.5, math.nan, math.inf, -math.inf):
        with pytest.raises(check.ClaimFailed, match=r"^loss: expected within \[1, 2\]"):
            check.band("loss", make(value), 1, 2)


@pytest.mark.parametrize("make", [float, torch.tensor])
def test_a_band_holds_no_wrong_alternative(make, capsys):
    check.band("loss", 1.5, 1, 2, wrong={"half": make(0.99), "untrained": make(2.01)})
    assert capsys.readouterr().out == "loss: within [1, 2]; not so: half, untrained\n"
    for value in (1.0, 1.99, 2.0):
        with pytest.raises(check.ClaimFailed, match=r"^loss: .* untrained outside"):
            check.band("loss", 1.5, 1, 2, wrong={"half": 0.5, "untrained": make(value)})


def test_what_is_not_finite_lies_in_no_band():
    for value, low, high in ((math.inf, 0, math.inf), (-math.inf, -math.inf, 0)):
        with pytest.raises(check.ClaimFailed, match=r"^loss: expected within"):
            check.band("loss", value, low, high)


@pytest.mark.parametrize(("low", "high"), [(2.0, 1.0), (1.0, 1.0), (math.nan, 1.0)])
def test_an_empty_band_is_refused(low, high):
    with pytest.raises(ValueError, match=r"^loss: expected low < high"):
        check.band("loss", 1.0, low, high)


def test_band_prints_its_limits_with_all_their_digits(capsys):
    check.band("loss", 1.2346, 1.23456, 1.23467)
    assert capsys.readouterr().out == "loss: within [1.23456, 1.23467]\n"


# same_function and same_module


def shifted(index, by, weigh):
    """Three outputs of two inputs, one of them off by so much of the output or of its gradient."""

    def form(x, y):
        outputs = [x.exp() * y, (x * y).sum(), x + y]
        off = by * (outputs[index] - (0 if weigh == "both" else outputs[index].detach()))
        outputs[index] = outputs[index] + off
        return tuple(outputs)

    return form


@pytest.mark.parametrize("index", [0, 1, 2])
@pytest.mark.parametrize("weigh", ["both", "gradient"])
def test_same_function_compares_every_output_and_gradient(index, weigh):
    inputs = 0.1 * normal(4), 0.1 * normal(4, seed=1)  # all outputs below one
    right = shifted(0, 0.0, "both")
    assert check.same_function(right, shifted(index, 0.0, weigh), *inputs) == 0
    error = check.same_function(right, shifted(index, 1e-3, weigh), *inputs, tol=0.1)
    assert 1e-6 < error < 0.1
    check.same_function(right, shifted(index, 1e-3, weigh), *inputs, tol=1.01 * error)
    with pytest.raises(check.ClaimFailed, match="to differ by < "):
        check.same_function(right, shifted(index, 1e-3, weigh), *inputs, tol=0.99 * error)


@pytest.mark.parametrize("which", [0, 1, 2])
def test_same_function_compares_the_gradient_of_every_input(which):
    inputs = [normal(4, seed=i) for i in range(3)]

    def form(*inputs):
        return sum(x.square().sum() for x in inputs)

    def other(*inputs):
        x = inputs[which]
        return form(*inputs) + 1e-3 * (x - x.detach()).sum()

    with pytest.raises(check.ClaimFailed, match=f"gradient of input {which} to differ"):
        check.same_function(form, other, *inputs)


@pytest.mark.parametrize("seed", range(5))
def test_same_function_sees_outputs_exchanged_whatever_the_seed(seed):
    with pytest.raises(check.ClaimFailed):
        check.same_function(lambda x: (x, 2 * x), lambda x: (2 * x, x), normal(3), seed=seed)


def test_same_function_weighs_outputs_by_its_seed():
    def form(factor):
        return lambda x: x.detach() + factor * (x - x.detach())

    errors = [
        check.same_function(form(1.0), form(0.1), normal(3), tol=10, seed=seed)
        for seed in (0, 0, 1)
    ]
    assert errors[0] == errors[1] != errors[2]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (lambda x: x, lambda x: (x, x)),
        (lambda x: x, lambda x: (x, x.detach())),
        (lambda x: x, lambda x: x[:, None]),
        (lambda x: (x, x), lambda x: (x, x[:2])),
        (lambda x: (x, x > 0), lambda x: (x, x >= 1e-3)),
        (lambda x: (x, x.argmax()), lambda x: (x, x.argmin())),
        (lambda x: x + 0j, lambda x: x + 1j),
        (lambda x: torch.complex(x, x), lambda x: torch.complex(x, x.detach())),
        (lambda x: x.float().double(), lambda x: x),
        (lambda x: x, lambda x: x / (x > 9)),
    ],
    ids=[
        "number",
        "constant",
        "shape",
        "shape of one",
        "truth",
        "whole",
        "complex",
        "half",
        "float",
        "inf",
    ],
)
def test_same_function_rejects_other_numbers_shapes_and_dtypes(one, other):
    x = normal(4).abs() * 1e-3
    check.same_function(one, one, x)
    for forms in ((one, other), (other, one)):
        with pytest.raises(check.ClaimFailed):
            check.same_function(*forms, x)


def test_same_function_takes_inputs_to_float64_and_leaves_them_and_the_others_alone():
    x, index = torch.linspace(0, 1, 5), torch.tensor([1, 3])
    before = x.clone()
    seen = []

    def form(x, index, power):
        seen.append((x.dtype, index.dtype, power))
        return x[index] ** power

    assert check.same_function(form, lambda x, i, p: x[i].square(), x, index, 2) < 1e-15
    assert seen == [(torch.float64, torch.int64, 2)]
    assert torch.equal(x, before)
    assert not x.requires_grad
    assert x.grad is None


def test_same_function_of_complex_inputs():
    z = torch.complex(normal(3), normal(3, seed=1))
    check.same_function(lambda z: z * z, torch.square, z)

    def off(z):  # the same values with another gradient, of the real part alone
        return z * z + 1e-3 * (z.real - z.real.detach())

    with pytest.raises(check.ClaimFailed, match="gradient of input 0 to differ"):
        check.same_function(torch.square, off, z)


def test_same_function_names_both_forms(capsys):
    x = normal(5)
    check.same_function(lambda x: x * x, torch.square, x)
    check.same_function(torch.square, lambda x: x * x, x)
    first, second = capsys.readouterr().out.splitlines()
    words = "same outputs and gradients, error < 1e-10"
    assert first == f"the teaching form and square: {words}"
    assert second == f"square and the library form: {words}"


@pytest.mark.parametrize(
    ("form", "inputs", "words"),
    [
        (lambda x, y: x + 0 * y, (normal(3), normal(3)), "non-zero gradient for input 1"),
        (lambda x, y: x, (normal(3), normal(3)), "non-zero gradient for input 1"),
        (lambda x: x.detach(), (normal(3),), "outputs that depend on a floating-point input"),
        (lambda x: x.argmax(), (normal(3),), "outputs that depend on a floating-point input"),
        (lambda i: 2.0 * i, (torch.arange(3),), "outputs that depend on a floating-point input"),
    ],
)
def test_same_function_demands_a_gradient(form, inputs, words):
    with pytest.raises(check.ClaimFailed, match=f"expected a? ?{words}"):
        check.same_function(form, form, *inputs)
    with pytest.raises(check.ClaimFailed):
        check.same_function(lambda *inputs: sum(map(torch.square, inputs)), form, *inputs)


def test_same_function_sees_gradients_exchanged_between_outputs():
    def form(*factors):
        return lambda x: tuple(x.detach() + f * (x - x.detach()) for f in factors)

    with pytest.raises(check.ClaimFailed, match="gradient of input 0 to differ"):
        check.same_function(form(1, 2), form(2, 1), normal(3))


def test_same_function_takes_the_size_of_the_library_form():
    forms = (lambda x: x, lambda x: 10 * x)
    check.same_function(*forms, torch.ones(1), tol=0.95)
    with pytest.raises(check.ClaimFailed, match="output 0"):
        check.same_function(*reversed(forms), torch.ones(1), tol=0.95)


def test_same_function_of_what_has_no_name(capsys):
    check.same_function(functools.partial(torch.pow, exponent=2), torch.square, normal(3))
    assert capsys.readouterr().out.startswith("the teaching form and square: ")


def test_same_function_leaves_inputs_of_float64_alone():
    x = normal(3)
    check.same_function(torch.square, lambda x: x * x, x)
    assert not x.requires_grad
    assert x.grad is None


def test_complex_numbers_keep_all_their_digits():
    with pytest.raises(check.ClaimFailed):
        check.identity("complex", torch.tensor(1 + 1e-9j, dtype=torch.complex128), 1.0)
    seen = []

    def form(z):
        seen.append(z.dtype)
        return z * z

    check.same_function(form, torch.square, torch.tensor([1 + 1j]))
    assert seen == [torch.complex128]


class Linear(nn.Module):
    def __init__(self, *, zero=False, bias=True, width=3):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2, width) if zero else torch.ones(2, width))
        self.bias = nn.Parameter(torch.zeros(2)) if bias else None

    def forward(self, x):
        y = x @ self.weight.T
        return y if self.bias is None else y + self.bias


class Doubled(Linear):
    def forward(self, x):
        return 2 * super().forward(x)


class Several(Linear):
    """Two outputs, of which one, or a parameter's gradient alone, may be off."""

    def __init__(self, fault=""):
        super().__init__()
        self.fault = fault

    def forward(self, x):
        y = super().forward(x)
        z = y.square()
        if self.fault in ("weight", "bias"):
            parameter = getattr(self, self.fault)
            z = z + 1e-3 * (parameter - parameter.detach()).sum()
        return y + 1e-3 * (self.fault == "0"), z + 1e-3 * (self.fault == "1")


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("0", "output 0"),
        ("1", "output 1"),
        ("weight", "gradient of weight"),
        ("bias", "gradient of bias"),
    ],
)
def test_same_module_compares_every_output_and_gradient(fault, words):
    x = normal(4, 3)
    check.same_module(Several(), Several(), x)
    error = check.same_module(Several(), Several(fault), x, tol=0.1)
    check.same_module(Several(), Several(fault), x, tol=1.01 * error)
    with pytest.raises(check.ClaimFailed, match=f"expected {words} to differ by < "):
        check.same_module(Several(), Several(fault), x, tol=0.99 * error)


def test_same_module_compares_by_name_and_leaves_the_modules_alone(capsys):
    mine, theirs = Linear(), nn.Linear(3, 2)
    before = theirs.weight.clone()
    check.same_module(mine, theirs, torch.randn(4, 3))
    printed = "Linear and Linear: same outputs and gradients, 2 parameters, error < 1e-10\n"
    assert capsys.readouterr().out == printed
    assert torch.equal(mine.weight, torch.ones(2, 3))
    assert mine.weight.dtype == torch.float32
    assert torch.equal(theirs.weight, before)
    assert mine.weight.grad is theirs.weight.grad is None


def test_same_module_fills_every_parameter_with_noise_of_its_seed_alone():
    """Not the global generator's: a notebook that repeats a cell must see the same."""
    seen = []

    class Spy(Linear):
        def forward(self, x):
            seen.append([p.detach().clone() for p in self.parameters()])
            return super().forward(x)

    for seed in (0, 0, 1):
        check.same_module(Spy(zero=True), Spy(zero=True), normal(4, 3), seed=seed)
        torch.manual_seed(seed + 5)
    for weights in zip(*seen, strict=True):
        first, second, third, fourth, fifth, sixth = weights
        assert torch.equal(first, second)
        assert torch.equal(first, third)
        assert torch.equal(third, fourth)
        assert torch.equal(fifth, sixth)
        assert not torch.equal(first, fifth)
        assert first.unique().numel() == first.numel()
        assert 0 < first.std() < 1


def test_no_check_draws_from_the_global_generator():
    linear = nn.Linear(3, 2)
    before = torch.get_rng_state()
    check.same_module(Linear(), linear, normal(4, 3))
    check.same_function(torch.square, lambda x: x * x, normal(3))
    check.monte_carlo("mean", draws(0.01)[:, 0], 1.0)
    assert torch.equal(torch.get_rng_state(), before)


def test_same_module_is_not_fooled_by_zero_initialisation():
    with pytest.raises(check.ClaimFailed, match="output 0"):
        check.same_module(Linear(zero=True), Doubled(zero=True), torch.randn(4, 3))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (Linear(bias=False), Linear()),
        (Linear(), Linear(bias=False)),
        (Linear(), Linear(width=4)),
        (nn.Sequential(Linear()), Linear()),
    ],
    ids=["one more", "one less", "shape", "name"],
)
def test_same_module_wants_the_same_names_and_shapes(one, other):
    with pytest.raises(check.ClaimFailed, match="expected the same parameters"):
        check.same_module(one, other, torch.randn(4, 3))


def test_same_module_demands_a_gradient_for_every_parameter():
    class Idle(Linear):
        def forward(self, x):
            return x @ self.weight.T

    with pytest.raises(check.ClaimFailed, match="non-zero gradient for bias"):
        check.same_module(Idle(), Idle(), torch.randn(4, 3))


def test_same_module_takes_over_buffers_and_works_with_whole_inputs():
    class Table(nn.Module):
        def __init__(self, scale):
            super().__init__()
            self.rows = nn.Parameter(torch.zeros(5, 2))
            self.register_buffer("scale", torch.tensor(scale))

        def forward(self, index):
            return self.scale * self.rows[index]

    class Unscaled(Table):
        def forward(self, index):
            return self.rows[index]

    everything = torch.arange(5)
    check.same_module(Table(2.0), Table(3.0), everything)
    with pytest.raises(check.ClaimFailed, match="output 0"):
        check.same_module(Table(2.0), Unscaled(2.0), everything)


def test_same_module_compares_in_float64():
    assert check.same_module(Linear(), nn.Linear(3, 2), torch.randn(64, 3)) < 1e-12


def test_same_module_compares_the_gradient_of_its_input():
    class Pulled(Linear):
        def forward(self, x):
            return super().forward(x) + 1e-3 * (x - x.detach()).sum()

    with pytest.raises(check.ClaimFailed, match="expected gradient of input 0 to differ"):
        check.same_module(Linear(), Pulled(), normal(4, 3))


def test_same_module_names_the_teaching_form_first(capsys):
    class Mine(Linear):
        pass

    check.same_module(Mine(), Linear(), normal(4, 3))
    assert capsys.readouterr().out.startswith("Mine and Linear: ")
    with pytest.raises(check.ClaimFailed, match=r"^Mine and Doubled"):
        check.same_module(Mine(), Doubled(), normal(4, 3))


def test_same_module_weighs_outputs_by_its_seed():
    class Scaled(nn.Module):
        def __init__(self, factor):
            super().__init__()
            self.factor, self.part = factor, nn.Parameter(torch.zeros(3))

        def forward(self):
            return self.factor * (self.part - self.part.detach())

    errors = [check.same_module(Scaled(1.0), Scaled(0.1), tol=10, seed=seed) for seed in (0, 0, 1)]
    assert errors[0] == errors[1] != errors[2]


# What a notebook shows


def test_a_notebook_shows_no_measured_number():
    samples, square = draws(0.01)[:, 0], (torch.square, torch.square, normal(3))
    for measured in (
        check.identity("a", 1, 1),
        check.band("b", 1, 0, 2),
        check.monte_carlo("c", samples, 1.0),
        check.same_function(*square),
        check.same_module(Linear(), Linear(), normal(4, 3)),
    ):
        assert DisplayFormatter().format(measured) == ({}, {})
    assert DisplayFormatter().format(1.0) == ({"text/plain": "1.0"}, {})


def example(x: int) -> int:
    """Words that must not show.

    More of them.
    """
    # a comment stays
    return x + 1


def test_show_prints_the_source_without_docstrings(capsys):
    check.show(example)
    printed = capsys.readouterr().out
    assert printed == "def example(x: int) -> int:\n    # a comment stays\n    return x + 1\n"


def test_show_of_a_class_drops_the_docstrings_of_its_methods(capsys):
    check.show(check.ClaimFailed)
    assert "class ClaimFailed" in capsys.readouterr().out
    check.show(Several)
    printed = capsys.readouterr().out
    assert "Two outputs" not in printed
    assert "z = y.square()" in printed


def test_show_keeps_a_docstring_that_is_all_there_is(capsys):
    check.show(check.ClaimFailed)
    assert capsys.readouterr().out == inspect.getsource(check.ClaimFailed)


def test_show_of_a_method_begins_at_the_margin(capsys):
    check.show(Linear.forward)
    assert capsys.readouterr().out.startswith("def forward(self, x):\n    y = x @ self.weight.T\n")


def test_show_keeps_blank_lines(capsys):
    check.show(Linear)
    assert capsys.readouterr().out == inspect.getsource(Linear)


async def waiting(x):
    """Words that must not show."""
    return x


def test_show_of_a_coroutine_drops_its_docstring(capsys):
    check.show(waiting)
    assert capsys.readouterr().out == "async def waiting(x):\n    return x\n"


class Documented:
    """Words that must not show."""

    def method(self):
        """Words that must not show."""

        def inner():
            """Words that must not show."""
            return 1

        return inner


def test_show_drops_docstrings_at_every_depth(capsys):
    check.show(Documented)
    printed = capsys.readouterr().out
    assert "Words" not in printed
    assert "            return 1\n\n        return inner\n" in printed


def test_a_claim_about_numbers_on_a_device_without_float64_is_checked():
    with pretend.Mps() as mps:
        x = mps.put(torch.ones(3))
        assert check.identity("one is one", x, [1.0, 1.0, 1.0]) == 0
        with pytest.raises(check.ClaimFailed):
            check.identity("one is two", x, [2.0, 2.0, 2.0])
