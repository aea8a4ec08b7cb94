import pytest
import torch
from IPython.core.formatters import DisplayFormatter
from torch import nn

from aigc_lib import check


def test_identity_prints_the_tolerance_and_returns_the_error(capsys):
    assert check.identity("2 = 2 + 1e-12", 2 + 1e-12, 2.0) == pytest.approx(0.5e-12, rel=1e-3)
    assert capsys.readouterr().out == "2 = 2 + 1e-12: holds, error < 1e-10\n"


def test_identity_is_relative_above_one_and_absolute_below():
    assert check.identity("large", [2000.0, 4000.0], [2000.0, 4002.0], tol=1e-3) < 1e-3
    with pytest.raises(check.ClaimFailed):
        check.identity("small", [0.001], [0.003], tol=1e-3)


def test_plain_numbers_keep_their_double_precision():
    assert check.identity("0.1", torch.tensor(0.1, dtype=torch.float64), 0.1, tol=1e-15) == 0


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_identity_never_accepts_a_number_that_is_not_finite(bad):
    with pytest.raises(check.ClaimFailed, match="expected finite numbers"):
        check.identity("bad", bad, bad)


@pytest.mark.parametrize(("left", "right"), [([1.0], [1.0, 1.0]), ([], [])])
def test_identity_refuses_shapes_that_cannot_be_compared(left, right):
    with pytest.raises(ValueError, match="expected two sides of one non-empty shape"):
        check.identity("shapes", left, right)


def test_monte_carlo_accepts_the_truth_and_rejects_wrong_signs_and_factors(generator, capsys):
    samples = 3 + torch.randn(20_000, generator=generator)
    assert check.monte_carlo("mean is 3", samples, 3.0) <= 4
    assert capsys.readouterr().out == "mean is 3: holds within 4 standard errors\n"
    for wrong in (-3.0, 6.0, 1.5):
        with pytest.raises(check.ClaimFailed, match="at most 4 standard errors"):
            check.monte_carlo("wrong", samples, wrong)


def test_monte_carlo_refuses_a_sample_too_small_to_fail(generator):
    with pytest.raises(ValueError, match="draw more samples"):
        check.monte_carlo("vague", 3 + torch.randn(50, generator=generator), 3.0)


def test_monte_carlo_wants_a_shift_where_the_value_is_zero(generator):
    samples = torch.randn(50_000, generator=generator)
    with pytest.raises(ValueError, match="expected shift > 0"):
        check.monte_carlo("zero", samples, 0.0)
    assert check.monte_carlo("zero", samples, 0.0, shift=1.0) <= 4


def test_monte_carlo_looks_at_every_component(generator):
    samples = torch.randn(50_000, 2, generator=generator) + torch.tensor([1.0, 2.0])
    assert check.monte_carlo("both", samples, torch.tensor([1.0, 2.0])) <= 4
    with pytest.raises(check.ClaimFailed):
        check.monte_carlo("second is wrong", samples, torch.tensor([1.0, 1.5]))


def test_monte_carlo_of_a_constant(generator):
    assert check.monte_carlo("constant", torch.full((10,), 0.5), 0.5, shift=1) == 0
    with pytest.raises(check.ClaimFailed):
        check.monte_carlo("constant", torch.full((10,), 0.5), 0.6)


def test_band_includes_its_limits_and_rejects_nan(capsys):
    assert check.band("loss", 1.0, 1.0, 2.0) == 1.0
    assert capsys.readouterr().out == "loss: within [1, 2]\n"
    for value in (0.999, 2.001, float("nan")):
        with pytest.raises(check.ClaimFailed, match=r"expected within \[1, 2\]"):
            check.band("loss", value, 1.0, 2.0)
    with pytest.raises(ValueError, match="expected low < high"):
        check.band("loss", 1.0, 2.0, 1.0)


def test_same_function_accepts_two_forms_and_rejects_a_wrong_gradient(generator):
    x = torch.randn(5, generator=generator, dtype=torch.float64)
    assert check.same_function(lambda x: x.exp() / x.exp().sum(), lambda x: x.softmax(0), x) < 1e-10

    def detached(x):
        return (x - x.detach().max()).exp() / x.exp().sum().detach() * x.detach().max().exp()

    with pytest.raises(check.ClaimFailed, match="gradient of input 0"):
        check.same_function(lambda x: x.softmax(0), detached, x)


def test_same_function_names_both_forms(generator, capsys):
    x = torch.randn(5, generator=generator)
    check.same_function(lambda x: x * x, torch.square, x)
    check.same_function(torch.square, lambda x: x * x, x)
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("the teaching form and square: same outputs and gradients")
    assert second.startswith("square and the library form: same outputs and gradients")


def test_same_function_demands_a_gradient(generator):
    x = torch.randn(5, generator=generator)
    with pytest.raises(check.ClaimFailed, match="expected a non-zero gradient for input 1"):
        check.same_function(lambda x, y: x + 0 * y, lambda x, y: x + 0 * y, x, x)


class Linear(nn.Module):
    def __init__(self, *, zero=False, bias=True):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2, 3) if zero else torch.ones(2, 3))
        self.bias = nn.Parameter(torch.zeros(2)) if bias else None

    def forward(self, x):
        y = x @ self.weight.T
        return y if self.bias is None else y + self.bias


class Doubled(Linear):
    def forward(self, x):
        return 2 * super().forward(x)


def test_same_module_compares_by_name_and_leaves_the_modules_alone(generator, capsys):
    mine, theirs = Linear(), nn.Linear(3, 2)
    before = theirs.weight.clone()
    check.same_module(mine, theirs, torch.randn(4, 3, generator=generator))
    assert "Linear and Linear: same outputs and gradients, 2 parameters" in capsys.readouterr().out
    assert torch.equal(mine.weight, torch.ones(2, 3))
    assert mine.weight.dtype == torch.float32
    assert torch.equal(theirs.weight, before)


def test_same_module_is_not_fooled_by_zero_initialisation(generator):
    with pytest.raises(check.ClaimFailed, match="output 0"):
        check.same_module(Linear(zero=True), Doubled(zero=True), torch.randn(4, 3))


def test_same_module_wants_the_same_names():
    with pytest.raises(check.ClaimFailed, match="expected the same parameters"):
        check.same_module(Linear(bias=False), Linear(), torch.randn(4, 3))


def test_same_module_compares_in_float64(generator):
    assert check.same_module(Linear(), nn.Linear(3, 2), torch.randn(64, 3)) < 1e-12


def test_a_notebook_shows_no_measured_number():
    assert DisplayFormatter().format(check.identity("a", 1, 1)) == ({}, {})
    assert DisplayFormatter().format(check.band("b", 1, 0, 2)) == ({}, {})
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
    check.show(Doubled)
    assert "return 2 * super().forward(x)" in capsys.readouterr().out


def solve(error):
    raise error


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (NotImplementedError(), "Task 1: not solved yet. Replace"),
        (NameError("name 'f' is not defined"), "name 'f' is not defined. Run the cells"),
        (AssertionError("row 3 sees key 0"), "^Task 1: row 3 sees key 0$"),
        (AssertionError(), "^Task 1: a test does not hold.$"),
        (TypeError("no"), "the code raised TypeError: no.$"),
    ],
)
def test_a_task_fails_in_one_sentence(error, words):
    with pytest.raises(check.NotYet, match=words) as caught, check.task("Task 1"):
        solve(error)
    assert caught.value._render_traceback_() == [str(caught.value)]


def test_a_task_names_the_line_of_a_notebook():
    names = {}
    exec(compile("def f():\n    return 1 / 0", "<cell>", "exec"), names)
    words = r"ZeroDivisionError: .* \(in `f`, line 2"
    with pytest.raises(check.NotYet, match=words), check.task("Task 1"):
        names["f"]()


def test_a_task_that_is_solved_says_nothing_and_a_stop_is_no_failure(capsys):
    with check.task("Task 1"):
        pass
    with pytest.raises(KeyboardInterrupt), check.task("Task 1"):
        raise KeyboardInterrupt
    assert capsys.readouterr().out == ""


def test_a_right_answer_passes():
    check.answer("x", torch.eye(2), torch.eye(2, dtype=torch.float64), tol=0)
    check.answer("x", nn.Parameter(torch.ones(1)), torch.ones(1))
    check.answer("x", torch.tensor(2.0), 2)
    check.answer("x", 1 + 5e-7, 1.0)
    check.answer("x", 1000.0001, 1000.0)
    check.answer("x", True, True)
    check.answer("x", torch.tensor([0.0, float("-inf")]), torch.tensor([0.0, float("-inf")]))


class Flatterer(torch.Tensor):
    def __eq__(self, other):
        return True


class Yes:
    def __eq__(self, other):
        return True


@pytest.mark.parametrize(
    ("got", "expected", "words"),
    [
        (torch.tensor([0.0, 1.1]), torch.tensor([0.0, 1.0]), "expected 1, got 1.1"),
        (torch.tensor([0.0, float("nan")]), torch.tensor([0.0, 1.0]), "got nan"),
        (torch.zeros(2, 1), torch.zeros(2), r"of shape \(2,\), got \(2, 1\)"),
        (torch.zeros(2).as_subclass(Flatterer), torch.zeros(2), "got Flatterer"),
        ([0.0, 0.0], torch.zeros(2), "expected a torch.Tensor, got list"),
        (Yes(), 1.0, "expected a number, got Yes"),
        (None, 1.0, "expected a number, got NoneType"),
        (torch.zeros(2), 0.0, "expected a number, got Tensor"),
        (float("nan"), float("nan"), "got nan"),
        (float("inf"), 1.0, "got inf"),
        (1 + 3e-6, 1.0, "expected 1, got 1"),
        (1 + 1e-12, 1, "expected 1"),
    ],
)
def test_a_wrong_answer_fails_whatever_it_says_of_itself(got, expected, words):
    tol = 0 if type(expected) is int else 1e-6
    with pytest.raises(AssertionError, match=f"^x: .*{words}"):
        check.answer("x", got, expected, tol=tol)
