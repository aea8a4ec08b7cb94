import math

import numpy as np
import pytest
import torch
import torch.distributions as D

from aigc_lib.objectives.diffusion import (
    bits_per_dim,
    bound_terms,
    denoising_score_loss,
    diffusion_loss,
    discretised_log_likelihood,
    prior_kl,
    step_kl,
)
from aigc_lib.objectives.likelihood import gaussian_log_likelihood
from aigc_lib.schedules import Discrete, cosine, linear
from tests.noise import normal

FEW = Discrete(torch.tensor([0.05, 0.2, 0.45, 0.7], dtype=torch.float64))
SLOPES = (0.9, 0.7, 0.5, 0.2)  # of a model that predicts x̂₀ = slope_t x_t + 0.1
GREYS = torch.arange(256, dtype=torch.float64) / 127.5 - 1


def fill(value, x):
    return torch.full((len(x),), value)


def guess(t, x_t):
    return SLOPES[t] * x_t + 0.1


def by_condition(x_t, condition):
    """The same model, as a network that learns t from the condition alone."""
    told = FEW.condition(torch.arange(4), torch.float64)
    t = (condition[:, None] - told).abs().argmin(1)
    return torch.tensor(SLOPES, dtype=torch.float64)[t, None] * x_t + 0.1


def expected(function, t, x0, order=6):
    """E[function(x_t)], x_t ~ q(x_t|x₀), by quadrature in each example of one number."""
    ticks, weights = np.polynomial.hermite_e.hermegauss(order)
    total = 0
    for tick, weight in zip(ticks, weights / weights.sum(), strict=True):
        total = total + weight * function(FEW.noised(x0, fill(t, x0), torch.full_like(x0, tick)))
    return total


def chain(steps):
    """The Gaussian of all x_n = slope x_{n−1} + shift + deviation z_n, in order."""
    mean = torch.zeros(len(steps), dtype=torch.float64)
    lower = torch.zeros(len(steps), len(steps), dtype=torch.float64)  # of the independent z
    for n, (slope, shift, deviation) in enumerate(steps):
        mean[n] = slope * mean[n - 1] + shift
        lower[n] = slope * lower[n - 1]
        lower[n, n] = deviation
    return D.MultivariateNormal(mean, scale_tril=lower)


def bound_by_linear_algebra(x0, variance):
    """E_q[log q(x_{0…3}|x₀) − log p(x₀, x_{0…3})] from whole covariance matrices."""
    beta, bars = FEW.beta.tolist(), FEW.alpha_bars.tolist()
    q = chain(
        [(0, math.sqrt(bars[0]) * x0, math.sqrt(1 - bars[0]))]
        + [(math.sqrt(1 - b), 0.0, math.sqrt(b)) for b in beta[1:]]
    )
    steps = [(0, 0.0, 1.0)]  # p runs from x_3 to the data
    for t in (3, 2, 1, 0):
        before = bars[t - 1] if t else 1.0
        of_x0 = math.sqrt(before) * beta[t] / (1 - bars[t])
        of_x_t = math.sqrt(1 - beta[t]) * (1 - before) / (1 - bars[t])
        tilde = beta[t] * (1 - before) / (1 - bars[t])
        spread = tilde if variance == "beta_tilde" and t else beta[t]
        steps.append((of_x_t + of_x0 * SLOPES[t], of_x0 * 0.1, math.sqrt(spread)))
    p = chain(steps)
    # E_q of the quadratic −log p at (x_3, …, x_0, the data)
    mean = torch.cat([q.mean.flip(0), torch.tensor([x0], dtype=torch.float64)])
    cov = torch.zeros(5, 5).double()
    cov[:4, :4] = q.covariance_matrix.flip(0, 1)
    minus_log_p = -p.log_prob(mean) + 0.5 * (p.precision_matrix * cov).sum()
    return float(minus_log_p - q.entropy()), float(
        -D.Normal(p.mean[-1], p.covariance_matrix[-1, -1].sqrt()).log_prob(mean[-1])
    )


# Closed forms and brute force: the bound


@pytest.mark.parametrize("variance", ["beta", "beta_tilde"])
@pytest.mark.parametrize("data", [-1.3, 0.0, 0.4])
def test_the_terms_sum_to_the_bound_of_the_whole_chain(variance, data):
    x0 = torch.tensor([[data]], dtype=torch.float64)
    decoder = expected(
        lambda x: -gaussian_log_likelihood(x0, guess(0, x), FEW.beta[0].log()), 0, x0
    )
    total = decoder + prior_kl(FEW, x0)
    for t in (1, 2, 3):
        time = fill(t, x0)
        total = total + expected(
            lambda x, t=t, time=time: step_kl(FEW, x0, guess(t, x), x, time, variance), t, x0
        )
    bound, evidence = bound_by_linear_algebra(data, variance)
    assert float(total) == pytest.approx(bound, abs=1e-10)
    assert bound > evidence + 1e-3


@pytest.mark.parametrize("variance", ["beta", "beta_tilde"])
@pytest.mark.parametrize("t", [1, 2, 3])
def test_a_step_is_its_integral(variance, t):
    x0, x0_hat, x_t = (torch.tensor([[v]], dtype=torch.float64) for v in (0.8, 0.1, -0.3))
    mean, tilde = FEW.posterior(x0, x_t, fill(t, x0))
    ours, _ = FEW.posterior(x0_hat, x_t, fill(t, x0))
    own = float(tilde if variance == "beta_tilde" else FEW.beta[t])
    q, p = D.Normal(mean, tilde.sqrt()), D.Normal(ours, math.sqrt(own))
    x = torch.linspace(-12, 12, 200_001, dtype=torch.float64)
    want = (q.log_prob(x).exp() * (q.log_prob(x) - p.log_prob(x))).sum() * (x[1] - x[0])
    got = step_kl(FEW, x0, x0_hat, x_t, fill(t, x0), variance)
    assert float(got) == pytest.approx(float(want), abs=1e-10)


def test_the_prior_is_its_integral():
    x0 = torch.tensor([[0.7]], dtype=torch.float64)
    a = float(FEW.alpha_bars[-1])
    q = D.Normal(torch.tensor(math.sqrt(a) * 0.7).double(), math.sqrt(1 - a))
    x = torch.linspace(-12, 12, 200_001, dtype=torch.float64)
    gap = q.log_prob(x) - D.Normal(0.0, 1.0).log_prob(x)
    want = (q.log_prob(x).exp() * gap).sum() * (x[1] - x[0])
    assert float(prior_kl(FEW, x0)) == pytest.approx(float(want), abs=1e-10)
    assert prior_kl(linear(), normal(2, 5)).max() < 1e-3


def test_a_step_is_a_weighted_error_of_the_noise_or_the_data():
    schedule, x0, eps, wrong = linear(40), normal(4, 3), normal(4, 3, seed=1), normal(4, 3, seed=2)
    t = torch.tensor([1, 5, 20, 39])
    x_t = schedule.noised(x0, t, eps)
    x0_hat = schedule.convert(wrong, x_t, t, source="eps", target="x0")
    beta, bar, before = schedule.beta[t], schedule.alpha_bars[t], schedule.alpha_bars[t - 1]
    weight = beta**2 / (2 * schedule.posterior_variances[t] * (1 - beta) * (1 - bar))
    want = diffusion_loss(wrong, eps, weight)
    got = step_kl(schedule, x0, x0_hat, x_t, t, "beta_tilde")
    assert torch.allclose(got, want, rtol=1e-10)
    weight = 0.5 * (before / (1 - before) - bar / (1 - bar))
    assert torch.allclose(got, diffusion_loss(x0_hat, x0, weight), rtol=1e-10)


def test_the_rows_of_the_bound_are_its_terms(generator):
    data = torch.tensor([[-1.3], [0.4]], dtype=torch.float64)
    x0 = data.repeat(4000, 1)
    for variance in ("beta", "beta_tilde"):
        settings = {"parameterisation": "x0", "variance": variance, "decoder": "gaussian"}
        rows = bound_terms(by_condition, FEW, x0, **settings, generator=generator)
        assert rows.shape == (5, 8000)
        for n, value in enumerate(data):
            draws = rows.sum(0)[n::2]
            want, _ = bound_by_linear_algebra(float(value), variance)
            error = float(draws.std()) / math.sqrt(len(draws))
            assert abs(float(draws.mean()) - want) < 4 * error
            assert error < 0.03 * want
        assert torch.allclose(rows[4], prior_kl(FEW, x0))


@pytest.mark.parametrize("variance", ["beta", "beta_tilde"])
def test_who_knows_the_data_pays_for_the_variance_and_the_last_step_alone(generator, variance):
    x0 = GREYS[torch.tensor([[3, 200], [0, 255]])]
    settings = {"parameterisation": "x0", "variance": variance, "generator": generator}
    rows = bound_terms(lambda x, c: x0, FEW, x0, decoder="gaussian", **settings)
    assert torch.allclose(rows[0], torch.log(2 * math.pi * FEW.beta[0]).expand(2))
    ratio = FEW.posterior_variances[1:] / FEW.beta[1:]
    cost = 0 * ratio if variance == "beta_tilde" else ratio - 1 - ratio.log()  # of two numbers
    assert torch.allclose(rows[1:4], cost[:, None].expand(3, 2), atol=1e-12)
    rows = bound_terms(lambda x, c: x0, FEW, x0, **settings)
    want = -discretised_log_likelihood(x0, x0, 0.5 * math.log(0.05))
    assert torch.allclose(rows[0], want)


def test_the_bound_takes_every_parameterisation():
    x0 = normal(3, 2).clamp(-1, 1)
    rows = {}
    for name in ("eps", "x0", "v", "score"):
        seen = iter(range(4))

        def predict(x_t, condition, name=name, seen=seen):
            t = fill(next(seen), x_t)
            return FEW.convert(0.3 * x_t, x_t, t, source="x0", target=name)

        draw = torch.Generator().manual_seed(1)
        rows[name] = bound_terms(predict, FEW, x0, parameterisation=name, generator=draw)
    for name in ("eps", "v", "score"):
        assert torch.allclose(rows[name], rows["x0"], rtol=1e-9)


# Closed forms: grey values


@pytest.mark.parametrize("log_scale", [-7.0, -4.0, -1.0, 1.0])
@pytest.mark.parametrize("mean", [-1.4, -1.0, 0.123, 0.99])
def test_the_256_probabilities_sum_to_one(log_scale, mean):
    x = GREYS[:, None]
    log_p = discretised_log_likelihood(x, torch.full_like(x, mean), log_scale)
    assert float(log_p.exp().sum()) == pytest.approx(1, abs=1e-10)
    assert (log_p <= 0).all()
    assert log_p.isfinite().all()


def test_a_grey_value_has_the_mass_between_its_edges():
    x, mean, scale = GREYS[:, None], torch.full((256, 1), 0.2).double(), 0.3
    cdf = D.Normal(0.2, scale).cdf
    upper, lower = cdf(GREYS + 1 / 255), cdf(GREYS - 1 / 255)
    upper[-1], lower[0] = 1, 0
    got = discretised_log_likelihood(x, mean, math.log(scale))
    assert torch.allclose(got, (upper - lower).log(), atol=1e-9)
    both = discretised_log_likelihood(GREYS.reshape(2, 128), mean.reshape(2, 128), math.log(scale))
    assert torch.allclose(both, got.reshape(2, 128).sum(1))
    rough = discretised_log_likelihood(x + 1e-3 * (1 - 2 * (x > 0)), mean, math.log(scale))
    assert torch.equal(rough, got)


def test_grey_values_far_from_the_mean_keep_value_and_gradient():
    mean = torch.tensor([[-0.9, 0.0, 1.0, 0.5]], requires_grad=True)
    x, log_scale = torch.tensor([[1.0, 1.0, -1.0, -0.2]]), torch.tensor(-7.0, requires_grad=True)
    value = discretised_log_likelihood(x, mean, log_scale)
    value.sum().backward()
    assert value.isfinite().all()
    assert mean.grad.isfinite().all()
    assert log_scale.grad.isfinite()
    assert (mean.grad.sign() == (x - mean).sign()).all()


def test_a_uniform_grey_costs_eight_bits():
    log_p = torch.full((4,), -3 * math.log(256))
    assert torch.allclose(bits_per_dim(-log_p, 3), torch.tensor(8.0))
    x = GREYS[:, None]
    wide = discretised_log_likelihood(x, torch.zeros_like(x), math.log(0.6))
    assert 7 < float(bits_per_dim(-wide.mean(), 1)) < 9


# Closed forms: the regressions


def test_losses_worked_out_by_hand():
    a, b = torch.tensor([[1.0, 2.0], [0.0, 4.0]]), torch.tensor([[0.0, 0.0], [0.0, 1.0]])
    assert diffusion_loss(a, b).tolist() == [5, 9]
    assert diffusion_loss(a, b, torch.tensor([2.0, 0.5])).tolist() == [10, 4.5]
    sigma = torch.tensor([2.0, 0.5])
    # ½ (1 + 0/2)² + ½ (2 + 0/2)², ½ (0 + 0)² + ½ (4 + 1/0.5)²
    assert denoising_score_loss(a, b, sigma).tolist() == [2.5, 18]
    assert denoising_score_loss(a, b, sigma, sigma**2).tolist() == [10, 4.5]
    score = -b / sigma[:, None]
    assert denoising_score_loss(score, b, sigma).tolist() == [0, 0]


def test_denoising_ranks_scores_as_their_distance_from_the_true_one():
    """Vincent's theorem: the losses differ by a constant, here for data of two points."""
    a, s = 0.8, 0.6
    points = torch.tensor([-1.0, 1.5]).double()
    ticks, weights = np.polynomial.hermite_e.hermegauss(120)
    eps, weights = torch.tensor(ticks), torch.tensor(weights / weights.sum())
    x0 = points.repeat_interleave(120)[:, None]
    eps, weights = eps.repeat(2)[:, None], weights.repeat(2) / 2
    x = (a * x0 + s * eps).requires_grad_()
    marginal = D.Normal(a * points, s).log_prob(x).logsumexp(1)
    (true,) = torch.autograd.grad(marginal.sum(), x)
    x = x.detach()
    gaps = []
    for model in (torch.sin(x), -x / 2, 0.3 * x**2):
        denoising = denoising_score_loss(model, eps, fill(s, x).double())
        explicit = 0.5 * (model - true).square().sum(1)
        gaps.append(float((weights * (denoising - explicit)).sum()))
    assert gaps[1:] == pytest.approx(gaps[:1] * 2, abs=1e-7)


def test_low_precision_is_summed_in_float32():
    x, y = normal(2, 500).bfloat16(), normal(2, 500, seed=1).bfloat16()
    assert diffusion_loss(x, y).dtype == torch.float32
    assert torch.allclose(diffusion_loss(x, y).double(), diffusion_loss(x.double(), y.double()))


# Behaviour


def test_the_bound_teaches_a_denoiser(generator):
    x0 = (0.2 * torch.randn(256, 1, generator=generator)).sign() * 0.5
    schedule = cosine(8)
    net = torch.nn.Sequential(torch.nn.Linear(2, 16), torch.nn.Tanh(), torch.nn.Linear(16, 1))
    optimizer = torch.optim.Adam(net.parameters(), 0.02)

    def predict(x, condition):
        return net(torch.cat([x, condition[:, None]], 1))

    costs = []
    for _ in range(60):
        bound = bound_terms(predict, schedule, x0, parameterisation="x0", generator=generator)
        loss = bits_per_dim(bound.sum(0), 1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        costs.append(loss.item())
    assert costs[-1] < costs[0] - 2


# Bad input

X, S = torch.zeros(3, 2), torch.ones(3)
T = torch.tensor([1, 2, 3])


@pytest.mark.usefixtures("hook_off")
@pytest.mark.parametrize(
    ("kind", "name", "call"),
    [
        (ValueError, "target", lambda: diffusion_loss(X, X[:, :1])),
        (ValueError, "prediction", lambda: diffusion_loss(S, S)),
        (TypeError, "target", lambda: diffusion_loss(X, X.long())),
        (ValueError, "weight", lambda: diffusion_loss(X, X, S[:2])),
        (ValueError, "sigma", lambda: denoising_score_loss(X, X, S[:1])),
        (ValueError, "target", lambda: denoising_score_loss(X[:, :1], X, S)),
        (ValueError, "variance", lambda: step_kl(FEW, X, X, X, T, "beta_hat")),
        (ValueError, "t in", lambda: step_kl(FEW, X, X, X, T - 1)),
        (ValueError, "t in", lambda: step_kl(FEW, X, X, X, T + 1)),
        (TypeError, "t ", lambda: step_kl(FEW, X, X, X, T.float())),
        (ValueError, "x_t", lambda: step_kl(FEW, X, X, X[:, :1], T)),
        (ValueError, "x0_hat", lambda: step_kl(FEW, X, X[:, :1], X, T)),
        (ValueError, "decoder", lambda: bound_terms(guess, FEW, X, decoder="logistic")),
        (ValueError, "variance", lambda: bound_terms(lambda x, c: x, FEW, X, variance="x")),
        (ValueError, "source", lambda: bound_terms(lambda x, c: x, FEW, X, parameterisation="e")),
        (ValueError, "x0 in", lambda: bound_terms(lambda x, c: x, FEW, X + 1.1)),
        (ValueError, "x0 in", lambda: discretised_log_likelihood(X - 1.01, X, 0.0)),
        (ValueError, "x0 in", lambda: discretised_log_likelihood(X + math.nan, X, 0.0)),
        (TypeError, "x0", lambda: discretised_log_likelihood(X.long(), X, 0.0)),
        (ValueError, "mean", lambda: discretised_log_likelihood(X, X[:, :1], 0.0)),
        (ValueError, "x0", lambda: discretised_log_likelihood(S, S, 0.0)),
        (ValueError, "num_dims", lambda: bits_per_dim(S, 0)),
    ],
)
def test_what_does_not_fit_is_named(kind, name, call):
    with pytest.raises(kind, match=f"^expected .*{name}"):
        call()


def test_by_default_the_bound_is_of_noise_predicted_and_of_beta():
    x0, options = normal(3, 2).clamp(-1, 1), {"parameterisation": "eps", "variance": "beta"}
    rows = [
        bound_terms(lambda x, c: 0.3 * x, FEW, x0, generator=torch.Generator().manual_seed(1), **o)
        for o in ({}, options | {"decoder": "discretised"})
    ]
    assert torch.equal(*rows)


def test_every_level_of_the_bound_has_noise_of_its_own(generator):
    x0, drawn = normal(3, 2).clamp(-1, 1), []

    def predict(x_t, condition):
        assert condition.dtype == x_t.dtype == torch.float64
        t = torch.full((3,), len(drawn))
        assert torch.equal(condition, FEW.condition(t, torch.float64))
        drawn.append(FEW.convert(x0, x_t, t, source="x0", target="eps").flatten())
        return x_t

    bound_terms(predict, FEW, x0, generator=generator)
    assert torch.pdist(torch.stack(drawn)).min() > 0.1
