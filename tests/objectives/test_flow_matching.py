import math

import numpy as np
import pytest
import torch
import torch.distributions as D
from noise import normal

from aigc_lib.objectives.diffusion import diffusion_loss
from aigc_lib.objectives.flow_matching import flow_matching_loss, logit_normal_times
from aigc_lib.schedules import Straight

# Closed forms and brute force


def test_losses_worked_out_by_hand():
    u = torch.tensor([[1.0, 2.0], [0.0, 4.0]])
    x0, eps = torch.tensor([[1.0, 1.0], [0.0, 0.0]]), torch.tensor([[3.0, 0.0], [0.0, 1.0]])
    # (1 − 2)² + (2 + 1)², (0 − 0)² + (4 − 1)²
    assert flow_matching_loss(u, x0, eps).tolist() == [10, 9]
    assert flow_matching_loss(u, x0, eps, torch.tensor([2.0, 0.5])).tolist() == [20, 4.5]
    assert flow_matching_loss(eps - x0, x0, eps).tolist() == [0, 0]


def test_it_is_the_regression_of_the_velocity_of_the_path():
    x0, eps, u, t = normal(4, 3), normal(4, 3, seed=1), normal(4, 3, seed=2), torch.rand(4).double()
    x_t = Straight().noised(x0, t, eps)
    target = Straight().convert(eps, x_t, t, source="eps", target="velocity")
    assert torch.allclose(flow_matching_loss(u, x0, eps), diffusion_loss(u, target), rtol=1e-12)


@pytest.mark.parametrize("t", [0.5, 0.8])
def test_it_ranks_fields_as_their_distance_from_the_marginal_one(t):
    """Both losses differ by a constant, here for data of two points: by quadrature, exact."""
    points = torch.tensor([-1.0, 1.5]).double()
    ticks, weights = np.polynomial.hermite_e.hermegauss(120)
    eps = torch.tensor(ticks).repeat(2)[:, None]
    weights = torch.tensor(weights / weights.sum()).repeat(2) / 2
    x0 = points.repeat_interleave(120)[:, None]
    x = (1 - t) * x0 + t * eps
    chances = D.Normal((1 - t) * points, t).log_prob(x).softmax(1)
    marginal = (chances * (x - points) / t).sum(1, keepdim=True)  # E[ε − x₀|x], u = (x − x₀)/t
    gaps, gradients = [], []
    for model in (torch.sin, lambda x: -x / 2, lambda x: 0.3 * x**2):
        a = torch.ones((), dtype=torch.float64, requires_grad=True)
        each = flow_matching_loss(a * model(x), x0, eps)
        whole = (a * model(x) - marginal).square().sum(1)
        losses = (weights * each).sum(), (weights * whole).sum()
        gaps.append(float(losses[0].detach() - losses[1].detach()))
        gradients.append([torch.autograd.grad(loss, a)[0].item() for loss in losses])
    assert gaps[1:] == pytest.approx(gaps[:1] * 2, abs=1e-7)
    assert gaps[0] > 0.1
    for ours, theirs in gradients:
        assert ours == pytest.approx(theirs, abs=1e-7)


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (-0.8, 0.5), (1.2, 2.0)])
def test_there_is_a_time_in_each_slice(generator, mean, std):
    t = logit_normal_times(50, mean=mean, std=std, generator=generator).double()
    u = D.Normal(mean, std).cdf(t.logit())
    slices = torch.arange(50) / 50
    assert (u > slices - 1e-5).all()
    assert (u < slices + 1 / 50 + 1e-5).all()
    assert (50 * (u - slices)).std() == pytest.approx(12**-0.5, rel=0.3)  # anywhere in its slice


def test_times_have_the_moments_asked_for(generator):
    logits = logit_normal_times(20_000, mean=0.4, std=1.5, generator=generator).double().logit()
    assert float(logits.mean()) == pytest.approx(0.4, abs=2e-3)
    assert float(logits.std()) == pytest.approx(1.5, abs=5e-3)
    usual = logit_normal_times(20_000, generator=generator).double().logit()
    assert float(usual.mean()) == pytest.approx(0, abs=2e-3)
    assert float(usual.std()) == pytest.approx(1, abs=5e-3)


# Invariances


def test_the_generator_decides_alone():
    t = [logit_normal_times(6, generator=torch.Generator().manual_seed(k)) for k in (0, 0, 1)]
    assert torch.equal(t[0], t[1])
    assert not torch.equal(t[0], t[2])
    assert t[0].dtype == torch.float32
    assert t[0].shape == (6,)


def test_low_precision_is_summed_in_float32():
    u, x0, eps = (normal(2, 500, seed=k).bfloat16() for k in range(3))
    got = flow_matching_loss(u, x0, eps)
    assert got.dtype == torch.float32
    want = flow_matching_loss(u.double(), x0.double(), eps.double())
    assert torch.allclose(got.double(), want, rtol=1e-5)


# Behaviour


def test_it_teaches_the_field_of_a_gaussian(generator):
    """Of data N(m, s²) the velocity is linear in x: a regression at one time finds both numbers."""
    m, s, t = 0.7, 0.4, 0.6
    x0 = m + s * torch.randn(20_000, 1, generator=generator).double()
    eps = torch.randn(20_000, 1, generator=generator).double()
    x = (1 - t) * x0 + t * eps
    net = torch.nn.Linear(1, 1).double()
    optimizer = torch.optim.LBFGS(net.parameters(), max_iter=20)

    def loss():
        optimizer.zero_grad()
        value = flow_matching_loss(net(x), x0, eps).mean()
        value.backward()
        return value

    optimizer.step(loss)
    variance = (1 - t) ** 2 * s**2 + t**2
    slope = (t - (1 - t) * s**2) / variance  # cov(ε − x₀, x)/var x
    assert net.weight.item() == pytest.approx(slope, abs=0.02)
    assert net.bias.item() == pytest.approx(-m - slope * (1 - t) * m, abs=0.02)


# Bad input

X, S = torch.zeros(3, 2), torch.ones(3)


@pytest.mark.usefixtures("hook_off")
@pytest.mark.parametrize(
    ("kind", "name", "call"),
    [
        (ValueError, "x0", lambda: flow_matching_loss(X, X[:, :1], X)),
        (ValueError, "eps", lambda: flow_matching_loss(X, X, X[:2])),
        (ValueError, "eps", lambda: flow_matching_loss(X, X, X[:, :1])),
        (TypeError, "velocity", lambda: flow_matching_loss(X.long(), X, X)),
        (TypeError, "x0", lambda: flow_matching_loss(X, X.long(), X)),
        (TypeError, "eps", lambda: flow_matching_loss(X, X, X.long())),
        (ValueError, "prediction", lambda: flow_matching_loss(S, S, S)),
        (ValueError, "weight", lambda: flow_matching_loss(X, X, X, S[:2])),
        (ValueError, "count", lambda: logit_normal_times(0)),
        (ValueError, "count", lambda: logit_normal_times(2.5)),
        (ValueError, "std", lambda: logit_normal_times(3, std=0.0)),
        (ValueError, "std", lambda: logit_normal_times(3, std=math.nan)),
        (ValueError, "mean", lambda: logit_normal_times(3, mean=math.inf)),
    ],
)
def test_what_does_not_fit_is_named(kind, name, call):
    with pytest.raises(kind, match=f"^expected .*{name}"):
        call()
