import math

import pytest
import torch
import torch.nn.functional as F

from aigc_lib.objectives.adversarial import (
    discriminator_loss,
    hinge_discriminator_loss,
    hinge_generator_loss,
    non_saturating_generator_loss,
    probability_generator_loss,
    saturating_generator_loss,
)

PAIRS = [discriminator_loss, hinge_discriminator_loss]
GENERATORS = [
    saturating_generator_loss,
    non_saturating_generator_loss,
    probability_generator_loss,
    hinge_generator_loss,
]
LOGITS = torch.linspace(-8, 8, 33, dtype=torch.float64)
P = torch.tensor([0.5, 0.3, 0.2, 0.0], dtype=torch.float64)
Q = torch.tensor([0.1, 0.3, 0.2, 0.4], dtype=torch.float64)


def by_hand(loss, a):
    d = 1 / (1 + math.exp(-a))
    return {
        saturating_generator_loss: math.log(1 - d),
        non_saturating_generator_loss: -math.log(d),
        probability_generator_loss: -d,
        hinge_generator_loss: -a,
    }[loss]


def slope(loss, *logits):
    logits = [a.clone().requires_grad_() for a in logits]
    return torch.autograd.grad(loss(*logits).sum(), logits)


# Closed forms and brute force


@pytest.mark.parametrize("loss", GENERATORS)
def test_a_generators_loss_is_its_formula_in_the_probability(loss):
    expected = torch.tensor([by_hand(loss, a) for a in LOGITS.tolist()], dtype=torch.float64)
    assert torch.allclose(loss(LOGITS), expected, rtol=1e-11, atol=1e-12)


def test_a_discriminators_loss_is_its_formula_for_every_pair():
    real, fake = torch.cartesian_prod(LOGITS, LOGITS).unbind(1)
    expected = [
        -math.log(1 / (1 + math.exp(-a))) - math.log(1 - 1 / (1 + math.exp(-b)))
        for a, b in zip(real.tolist(), fake.tolist(), strict=True)
    ]
    assert torch.allclose(
        discriminator_loss(real, fake), torch.tensor(expected, dtype=torch.float64), rtol=1e-11
    )
    hinge = [
        max(0, 1 - a) + max(0, 1 + b) for a, b in zip(real.tolist(), fake.tolist(), strict=True)
    ]
    hinge = torch.tensor(hinge, dtype=torch.float64)
    assert torch.equal(hinge_discriminator_loss(real, fake), hinge)


def test_the_slopes_are_those_of_the_table():
    d = torch.sigmoid(LOGITS)
    for loss, expected in zip(
        GENERATORS, [-d, -(1 - d), -d * (1 - d), -torch.ones_like(d)], strict=True
    ):
        assert torch.allclose(slope(loss, LOGITS)[0], expected, rtol=1e-12, atol=1e-14)
    real, fake = slope(discriminator_loss, LOGITS, LOGITS)
    assert torch.allclose(real, -(1 - d), atol=1e-14)
    assert torch.allclose(fake, d, atol=1e-14)
    real, fake = slope(hinge_discriminator_loss, LOGITS, LOGITS)
    assert torch.equal(real, -(LOGITS < 1).double())
    assert torch.equal(fake, (LOGITS > -1).double())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_losses_and_slopes_hold_where_a_probability_would_be_rounded_to_0_or_1(dtype):
    a = torch.tensor([-1000.0, -80, -40, 40, 80, 1000], dtype=dtype)
    sure = torch.tensor([0, 0, 0, 1, 1, 1], dtype=dtype)
    tiny = torch.exp(-a.abs())
    relu, down = a.clamp_min(0), (-a).clamp_min(0)
    close = {"rtol": 1e-6 if dtype == torch.float32 else 1e-13, "atol": 0.0}
    assert torch.allclose(non_saturating_generator_loss(a), down + (a > 0) * tiny, **close)
    assert torch.allclose(saturating_generator_loss(a), -relu - (a < 0) * tiny, **close)
    zero = torch.zeros_like(a)
    assert torch.allclose(discriminator_loss(a, zero), down + (a > 0) * tiny + math.log(2), **close)
    assert torch.allclose(discriminator_loss(zero, a), relu + (a < 0) * tiny + math.log(2), **close)
    small = {"rtol": 1e-6, "atol": 0.0}
    assert torch.allclose(slope(saturating_generator_loss, a)[0][:3], -tiny[:3], **small)
    assert torch.allclose(slope(saturating_generator_loss, a)[0][3:], -sure[3:])
    assert torch.allclose(slope(non_saturating_generator_loss, a)[0][:3], sure[:3] - 1)


def test_the_best_logits_give_log_4_less_twice_the_divergence():
    # Four values of x; an infinite logit is a place that only one of the two can reach.
    best = (P / Q).log()
    value = torch.tensor(0.0, dtype=torch.float64)
    for i in range(4):
        for j in range(4):
            if P[i] * Q[j] > 0:
                pair = discriminator_loss(best[i : i + 1], best[j : j + 1])
                value += P[i] * Q[j] * pair[0]
    middle = (P + Q) / 2
    divergence = 0.5 * sum(torch.xlogy(r, r / middle).sum() for r in (P, Q))
    assert value.item() == pytest.approx(math.log(4) - 2 * divergence.item(), rel=1e-12)


# Invariances


@pytest.mark.parametrize("loss", PAIRS)
def test_real_and_fake_change_roles_when_the_logits_change_sign(loss):
    real, fake = torch.randn(2, 50, dtype=torch.float64)
    assert torch.equal(loss(real, fake), loss(-fake, -real))
    assert not torch.allclose(loss(real, fake), loss(fake, real))


@pytest.mark.parametrize("loss", PAIRS + GENERATORS)
def test_each_example_has_a_loss_of_its_own(loss):
    arguments = torch.randn(2 if loss in PAIRS else 1, 6, dtype=torch.float64)
    order = torch.tensor([3, 1, 5, 0, 2, 4])
    assert loss(*arguments).shape == (6,)
    assert torch.equal(loss(*arguments)[order], loss(*arguments[:, order]))


@pytest.mark.parametrize("loss", GENERATORS)
def test_every_generators_loss_falls_as_the_logit_rises(loss):
    assert (loss(LOGITS).diff() < 0).all()


@pytest.mark.parametrize("loss", PAIRS)
def test_a_discriminator_gains_by_raising_real_and_lowering_fake(loss):
    real, fake = slope(loss, torch.zeros(5), torch.zeros(5))
    assert (real < 0).all()
    assert (fake > 0).all()


# Independent references


def test_the_logarithms_are_torchs_binary_cross_entropy():
    real, fake = 5 * torch.randn(2, 100, dtype=torch.float64)
    one, zero = torch.ones_like(real), torch.zeros_like(fake)
    entropy = F.binary_cross_entropy_with_logits
    expected = entropy(real, one, reduction="none") + entropy(fake, zero, reduction="none")
    assert torch.allclose(discriminator_loss(real, fake), expected, rtol=1e-13)
    expected = entropy(fake, one, reduction="none")
    assert torch.allclose(non_saturating_generator_loss(fake), expected, rtol=1e-13)
    expected = -entropy(fake, zero, reduction="none")
    assert torch.allclose(saturating_generator_loss(fake), expected, rtol=1e-13)


@pytest.mark.parametrize("loss", PAIRS + GENERATORS)
def test_low_precision_is_computed_in_float32(loss):
    arguments = 4 * torch.randn(2 if loss in PAIRS else 1, 64)
    low = [a.bfloat16() for a in arguments]
    assert loss(*low).dtype == torch.float32
    assert torch.equal(loss(*low), loss(*[a.float() for a in low]))


# Behaviour


def test_descent_finds_the_best_discriminator_on_four_points():
    logits = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    i, j = torch.cartesian_prod(torch.arange(4), torch.arange(4)).unbind(1)
    for _ in range(400):
        loss = (P[i] * Q[j] * discriminator_loss(logits[i], logits[j])).sum()
        (gradient,) = torch.autograd.grad(loss, logits)
        logits.data -= 2.0 * gradient
    found, best = torch.sigmoid(logits.detach()), P / (P + Q)
    assert torch.allclose(found[:3], best[:3], atol=1e-6)
    assert found[3] < 0.01  # falls for ever, ever more slowly


# Bad input


@pytest.mark.parametrize(
    ("loss", "shapes", "name"),
    [
        *((loss, [(4,), (3,)], "fake") for loss in PAIRS),
        *((loss, [(4, 1), (4, 1)], "real") for loss in PAIRS),
        *((loss, [(4,), ()], "fake") for loss in PAIRS),
        *((loss, [(4, 1)], "fake") for loss in GENERATORS),
    ],
)
def test_logits_of_another_shape_are_named(loss, shapes, name, hook_off):
    with pytest.raises(ValueError, match=f"expected {name} "):
        loss(*map(torch.zeros, shapes))
