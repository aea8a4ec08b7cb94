import math

import numpy as np
import pytest
import torch
from torch import nn

from aigc_lib import grading


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
    with pytest.raises(grading.NotYet, match=words) as caught, grading.task("Task 1"):
        solve(error)
    assert caught.value._render_traceback_() == [str(caught.value)]


@pytest.mark.parametrize("code", ["1 / 0", "assert 1 == 2"])
def test_a_task_names_the_line_of_a_notebook(code):
    names = {}
    exec(compile(f"def f():\n    {code}", "<cell>", "exec"), names)
    with pytest.raises(grading.NotYet, match=r" \(in `f`, line 2: "), grading.task("Task 1"):
        names["f"]()


@pytest.mark.parametrize(
    ("code", "words"),
    [("solve(1)", "not solved yet, or not run: name 'solve'"), ("f()", "NameError: name 'lefft'")],
)
def test_a_missing_name_is_the_tests_or_the_students_own(code, words):
    names = {"task": grading.task}
    exec(compile("def f():\n    return lefft", "<cell>", "exec"), names)
    with pytest.raises(grading.NotYet, match=words):
        exec(compile(f"with task('Task 1'):\n    {code}", "<test>", "exec"), names)


def test_a_task_that_is_solved_says_nothing_and_a_stop_is_no_failure(capsys):
    with grading.task("Task 1"):
        pass
    with pytest.raises(KeyboardInterrupt), grading.task("Task 1"):
        raise KeyboardInterrupt
    assert capsys.readouterr().out == ""


def double(*numbers):
    return torch.tensor(numbers, dtype=torch.float64)


INSIDE_AND_OUTSIDE = [
    # One limit for all values: tol · max(1, the largest finite one), for numbers and tensors.
    (1 + 0.9e-6, 1 + 1.1e-6, 1.0),
    (1 - 0.9e-6, 1 - 1.1e-6, 1.0),
    (0.9e-6, 1.1e-6, 0.0),
    (-1000 + 0.9e-3, -1000 + 1.1e-3, -1000),
    (torch.tensor(2.0), torch.tensor(2.01), 2),
    (torch.tensor([[2]]), torch.tensor([[3]]), 2.0),
    (True, False, True),
    (3, 4, 3.0),
    (double(0.9e-3, 1000), double(1.1e-3, 1000), double(0, 1000)),
    (double(1000, 0.9e-3), double(1000, -1.1e-3), double(1000, 0)),
    (double(0, -1000 - 0.9e-3), double(0, -1000 - 1.1e-3), double(0, -1000)),
    (double(0.9e-6, math.inf), double(1.1e-6, math.inf), double(0, math.inf)),
    (double(0, -math.inf), double(0, math.inf), double(0, -math.inf)),
    (double(0, math.inf), double(0, 1e308), double(0, math.inf)),
    (torch.eye(2), torch.eye(2).flip(0), torch.eye(2, dtype=torch.float64)),
    (nn.Parameter(torch.ones(1)), nn.Parameter(torch.zeros(1)), torch.ones(1)),
    (torch.tensor([1, 0]), torch.tensor([1, 1]), torch.tensor([True, False])),
    (torch.tensor([2.0]).bfloat16(), torch.tensor([3.0]).bfloat16(), torch.tensor([2])),
    (torch.tensor([1 + 2j]), torch.tensor([1 + 3j]), torch.tensor([1 + 2j])),
]


@pytest.mark.parametrize(("inside", "outside", "expected"), INSIDE_AND_OUTSIDE)
def test_an_answer_passes_just_inside_its_limit_and_fails_just_outside(inside, outside, expected):
    grading.answer("x", inside, expected)
    with pytest.raises(AssertionError, match=r"^x: expected .*, got"):
        grading.answer("x", outside, expected)


def test_the_limit_is_the_tolerance_asked_for():
    grading.answer("x", 1.09, 1.0, tol=0.1)
    with pytest.raises(AssertionError):
        grading.answer("x", 1.11, 1.0, tol=0.1)


@pytest.mark.parametrize("big", [2**53, 2**62])
def test_equality_of_whole_numbers_is_exact(big):
    for make in (int, lambda n: torch.tensor([n])):
        grading.answer("x", make(big), make(big), tol=0)
        with pytest.raises(AssertionError):
            grading.answer("x", make(big + 1), make(big), tol=0)


class Flatterer(torch.Tensor):
    def __eq__(self, other):
        return True


class Yes:
    def __eq__(self, other):
        return True


class Like(float):
    def __eq__(self, other):
        return True


@pytest.mark.parametrize(
    ("got", "expected", "words"),
    [
        (torch.zeros(2, 1), torch.zeros(2), r"of shape \(2,\), got \(2, 1\)"),
        (torch.zeros(3), torch.zeros(2), r"of shape \(2,\), got \(3,\)"),
        (torch.zeros(()), torch.zeros(1), r"of shape \(1,\), got \(\)"),
        (torch.zeros(2).as_subclass(Flatterer), torch.zeros(2), "got Flatterer"),
        ([0.0, 0.0], torch.zeros(2), "expected a torch.Tensor, got list"),
        (np.zeros(2), torch.zeros(2), "expected a torch.Tensor, got ndarray"),
        (0.0, torch.zeros(()), "expected a torch.Tensor, got float"),
        (Yes(), 1.0, "expected a number, got Yes"),
        (Like(3), 1.0, "expected a number, got Like"),
        (None, 1.0, "expected a number, got NoneType"),
        ("1", 1.0, "expected a number, got str"),
        (1j, 1.0, "expected a number, got complex"),
        (torch.zeros(2), 0.0, "expected a number, got Tensor"),
        (torch.zeros(0), 0.0, "expected a number, got Tensor"),
        (torch.zeros(()).as_subclass(Flatterer), 0.0, "expected a number, got Flatterer"),
        (float("nan"), float("nan"), "got nan"),
        (float("nan"), 1.0, "got nan"),
        (float("inf"), 1.0, "got inf"),
        (1.0, float("inf"), "expected inf"),
        (double(0, math.nan), double(0, 1), "got nan"),
        (double(0, math.nan), double(0, math.nan), "got nan"),
        (double(0, math.inf), double(0, 1), "got inf"),
        (double(0, -math.inf), double(0, math.inf), "got -inf"),
    ],
)
def test_a_wrong_answer_fails_whatever_it_says_of_itself(got, expected, words):
    with pytest.raises(AssertionError, match=f"^x: .*{words}"):
        grading.answer("x", got, expected)
