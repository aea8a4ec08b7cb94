"""Each expectation: passes just inside its limit, fails just outside, and names the argument."""

import math
import re

import pytest
import torch

from aigc_lib import expect

x = torch.zeros(2, 3)
GOOD = [
    lambda: expect.that(True, "sense", "none"),
    lambda: expect.shaped((2, None), x=x, y=None),
    lambda: expect.shaped(("B", "Z"), x=x, y=x),
    lambda: expect.shaped((..., 3), x=x, y=torch.zeros(3), z=torch.zeros(1, 2, 3)),
    lambda: expect.shaped(("B", ..., 3), x=x, y=torch.zeros(2, 5, 5, 3)),
    lambda: expect.alike(x=x, y=None, z=torch.ones(2, 3)),
    lambda: expect.together(x=x, y=None, z=torch.ones(1)),
    lambda: expect.of_dtype((torch.float32,), x=x, y=None),
    lambda: expect.whole(x=x.int(), y=x.long(), z=None),
    lambda: expect.floating(x=x.half(), y=None),
    lambda: expect.at_least(1, x=1, y=None, z=math.inf),
    lambda: expect.count(x=1, y=None, z=10**9),
    lambda: expect.above(0, x=1e-9, y=None),
    lambda: expect.below(1, x=0.999, y=None),
    lambda: expect.between(0, 1, x=0, y=1, z=None),
    lambda: expect.finite(x=-1e300, y=None),
    lambda: expect.one_of(("a", None), x="a", y=None),
    lambda: expect.values_in(0, 3, x=torch.tensor([0, 3]), y=torch.tensor([], dtype=int), z=None),
    lambda: expect.values_in(0, 3, except_for=-100, x=torch.tensor([0, -100])),
]
BAD = [
    (ValueError, "expected sense, got none", lambda: expect.that(False, "sense", "none")),
    (ValueError, "expected y of shape (2, any), got (3, 3)",
     lambda: expect.shaped((2, None), x=x, y=torch.zeros(3, 3))),
    (ValueError, "expected y of shape (2, 3), got (2, 2)",
     lambda: expect.shaped(("B", "Z"), x=x, y=torch.zeros(2, 2))),
    (ValueError, "expected x of shape (4,), got (2, 3)", lambda: expect.shaped((4,), x=x)),
    (ValueError, "expected x of shape (…, 4), got (2, 3)", lambda: expect.shaped((..., 4), x=x)),
    (ValueError, "expected x of shape (2, …, 3, 3), got (2, 3)",
     lambda: expect.shaped((2, ..., 3, 3), x=x)),
    (ValueError, "expected z of x's shape (2, 3), got (3, 2)",
     lambda: expect.alike(x=x, y=x, z=x.T)),
    (ValueError, "expected z on x's device cpu, got meta",
     lambda: expect.together(x=x, y=x, z=x.to("meta"))),
    (TypeError, "expected y of torch.bool, got torch.float32",
     lambda: expect.of_dtype((torch.bool,), x=x.bool(), y=x)),
    (TypeError, "expected x of torch.bool, got <class 'list'>",
     lambda: expect.of_dtype((torch.bool,), x=[True])),
    (TypeError, "expected x of torch.int64 or torch.int32, got torch.int8",
     lambda: expect.whole(x=x.to(torch.int8))),
    (TypeError, "expected x of a floating-point dtype, got torch.int64",
     lambda: expect.floating(x=x.long())),
    (ValueError, "expected y >= 1, got 0.9999999999", lambda: expect.at_least(1, x=1, y=1 - 1e-10)),
    (ValueError, "expected x >= 1, got nan", lambda: expect.at_least(1, x=math.nan)),
    (ValueError, "expected a whole y >= 1, got 0", lambda: expect.count(x=1, y=0)),
    (ValueError, "expected a whole x >= 1, got 2.0", lambda: expect.count(x=2.0)),
    (ValueError, "expected a whole x >= 1, got True", lambda: expect.count(x=True)),
    (ValueError, "expected x > 0, got 0", lambda: expect.above(0, x=0)),
    (ValueError, "expected x < 1, got 1", lambda: expect.below(1, x=1)),
    (ValueError, "expected x < 1, got nan", lambda: expect.below(1, x=math.nan)),
    (ValueError, "expected y in [0, 1], got 1.0000000001",
     lambda: expect.between(0, 1, x=1, y=1 + 1e-10)),
    (ValueError, "expected x in [0, 1], got -1e-10", lambda: expect.between(0, 1, x=-1e-10)),
    (ValueError, "expected a finite x, got inf", lambda: expect.finite(x=math.inf)),
    (ValueError, "expected x to be one of 'a', 'b', got 'c'",
     lambda: expect.one_of(("a", "b"), x="c")),
    (ValueError, "expected x to be one of 'a', got None",
     lambda: expect.one_of(("a",), x=None)),
    (ValueError, "expected x in 0 … 3, got 4",
     lambda: expect.values_in(0, 3, x=torch.tensor([0, 4]))),
    (ValueError, "expected x in 0 … 3, got -1",
     lambda: expect.values_in(0, 3, x=torch.tensor([0, -1]))),
    (ValueError, "expected x in 0 … 3, got nan",
     lambda: expect.values_in(0, 3, x=torch.tensor([0, math.nan]))),
    (ValueError, "expected x in 0 … 3 or -100, got -99",
     lambda: expect.values_in(0, 3, except_for=-100, x=torch.tensor([-100, -99]))),
]  # fmt: skip


@pytest.mark.parametrize("call", GOOD)
def test_what_fits_passes(call):
    assert call() is None


@pytest.mark.usefixtures("hook_off")
@pytest.mark.parametrize(("kind", "sentence", "call"), BAD)
def test_what_does_not_fit_raises_one_sentence(kind, sentence, call):
    with pytest.raises(kind, match=f"^{re.escape(sentence)}$"):
        call()


def test_values_are_not_looked_at_off_the_cpu():
    expect.values_in(0, 3, x=torch.zeros(2, dtype=torch.int64, device="meta"))


def test_expectations_compile_into_one_graph():
    def checked(x, y):
        expect.shaped(("B", 3), x=x, y=y)
        expect.alike(x=x, y=y)
        expect.floating(x=x)
        expect.values_in(0, 3, x=x)
        return x + y

    compiled = torch.compile(checked, backend="eager", fullgraph=True)
    assert torch.equal(compiled(x, x + 1), x + 1)
