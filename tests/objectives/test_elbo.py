import math
from functools import partial

import numpy as np
import pytest
import torch
import torch.distributions as D

from aigc_lib.objectives.elbo import (
    elbo,
    free_bits,
    gaussian_kl,
    gaussian_kl_per_dim,
    importance_weighted_bound,
    log_normal,
    reparameterize,
)
from aigc_lib.objectives.likelihood import gaussian_log_likelihood

B, Z = 4, 2


def normal(*shape, seed=0, scale=1.0):
    draw = torch.Generator().manual_seed(seed)
    return scale * torch.randn(*shape, generator=draw, dtype=torch.float64)


def two_gaussians(*shape):
    """μ, log σ², m, log s²."""
    return tuple(normal(*shape, seed=seed) for seed in range(4))


def one_draw(z, mu, log_var, *prior):
    """log q(z) − log p(z): the divergence on average."""
    return log_normal(z, mu, log_var) - log_normal(z, *prior)


def average(function, mu, log_var, order=3):
    """E[function(z)], z ~ N(μ, σ²), exact for polynomials of degree 2·order − 1 in each axis."""
    ticks, weights = np.polynomial.hermite_e.hermegauss(order)
    ticks, weights = torch.from_numpy(ticks), torch.from_numpy(weights / weights.sum())
    places = torch.cartesian_prod(*[torch.arange(order)] * mu.shape[1]).reshape(-1, mu.shape[1])
    return sum(
        weights[place].prod() * function(reparameterize(mu, log_var, noise=noise.expand_as(mu)))
        for place, noise in zip(places, ticks[places], strict=True)
    )


class LinearGaussian:
    """p(z) = N(0, I), p(x|z) = N(Wz + c, s²I): all of its densities are known."""

    def __init__(self, weight, variance=0.6):
        self.weight, self.variance = weight, variance
        self.shift = normal(len(weight), seed=8)
        self.precision = torch.eye(weight.shape[1]).double() + weight.T @ weight / variance

    def log_evidence(self, x):
        noise = self.variance * torch.eye(len(self.shift)).double()
        return D.MultivariateNormal(self.shift, self.weight @ self.weight.T + noise).log_prob(x)

    def posterior(self, x):
        mean = (x - self.shift) @ self.weight @ self.precision.inverse() / self.variance
        return D.MultivariateNormal(mean, self.precision.inverse())

    def log_likelihood(self, x, z):
        mean = z @ self.weight.T + self.shift
        return gaussian_log_likelihood(x, mean, math.log(self.variance))

    def elbo(self, x, mu, log_var):
        reconstruction = average(lambda z: self.log_likelihood(x, z), mu, log_var)
        return elbo(reconstruction, gaussian_kl(mu, log_var))

    def log_weight(self, x, z, mu, log_var):
        return self.log_likelihood(x, z) + log_normal(z) - log_normal(z, mu, log_var)


TILTED = LinearGaussian(normal(3, Z, seed=5))
STRAIGHT = LinearGaussian(torch.tensor([[1.2, 0.5], [0.6, -1.0], [0.0, 0.0]], dtype=torch.float64))
LINE = LinearGaussian(torch.tensor([[0.9]], dtype=torch.float64))


# Closed forms and brute force: the divergence


def test_a_divergence_worked_out_by_hand():
    mu, log_var = torch.tensor([[1.0, 0.0]]), torch.tensor([[math.log(4), 0.0]])
    assert float(gaussian_kl(mu, log_var)) == pytest.approx(0.5 * (4 + 1 - 1 - math.log(4)))
    prior = torch.tensor([[3.0, 0.0]]), torch.tensor([[math.log(16), 0.0]])
    want = 0.5 * ((4 + 4) / 16 - 1 + math.log(4))
    assert float(gaussian_kl(mu, log_var, *prior)) == pytest.approx(want)
    want = 0.5 * (4 + 4 - 1 - math.log(4))
    assert float(gaussian_kl(mu, log_var, prior[0])) == pytest.approx(want)


@pytest.mark.parametrize("seed", range(4))
def test_the_divergence_is_its_integral(seed):
    mu, log_var, m, log_s2 = (float(normal(1, seed=10 * seed + k)) for k in range(4))
    z = torch.linspace(mu - 40, mu + 40, 80_001, dtype=torch.float64)
    log_q = -0.5 * (math.log(2 * math.pi) + log_var + (z - mu) ** 2 / math.exp(log_var))
    log_p = -0.5 * (math.log(2 * math.pi) + log_s2 + (z - m) ** 2 / math.exp(log_s2))
    want = float((log_q.exp() * (log_q - log_p)).sum()) * 1e-3
    got = gaussian_kl(*(torch.tensor([[v]], dtype=torch.float64) for v in (mu, log_var, m, log_s2)))
    assert float(got) == pytest.approx(want, abs=1e-10)


def test_the_divergence_is_zero_at_the_prior_alone():
    mu, log_var, m, log_s2 = two_gaussians(B, Z)
    assert gaussian_kl(mu, log_var, mu, log_var).abs().max() < 1e-15
    assert gaussian_kl(torch.zeros(B, Z), torch.zeros(B, Z)).abs().max() == 0
    assert (gaussian_kl(mu, log_var, m, log_s2) > 0.1).all()
    there, back = gaussian_kl(mu, log_var, m, log_s2), gaussian_kl(m, log_s2, mu, log_var)
    assert not torch.allclose(there, back, rtol=0.01)


def test_one_draw_is_right_on_average():
    mu, log_var, m, log_s2 = two_gaussians(B, Z)
    for prior in ((), (m,), (None, log_s2), (m, log_s2)):
        got = average(lambda z, p=prior: one_draw(z, mu, log_var, *p), mu, log_var)
        assert torch.allclose(got, gaussian_kl(mu, log_var, *prior), atol=1e-12)


def test_the_gradient_of_one_draw_is_right_on_average():
    mu, log_var, m, log_s2 = (x.requires_grad_() for x in two_gaussians(B, Z))
    parts = mu, log_var, m, log_s2
    drawn = average(lambda z: one_draw(z, *parts), mu, log_var)
    wanted = torch.autograd.grad(gaussian_kl(*parts).sum(), parts)
    for a, b in zip(torch.autograd.grad(drawn.sum(), parts), wanted, strict=True):
        assert torch.allclose(a, b, atol=1e-12)


# Closed forms and brute force: the bound


@pytest.mark.parametrize("model", [TILTED, STRAIGHT])
def test_the_evidence_is_the_bound_plus_the_divergence_from_the_posterior(model):
    x, mu, log_var = normal(B, 3, seed=6, scale=2), normal(B, Z), normal(B, Z, seed=1)
    q = D.MultivariateNormal(mu, torch.diag_embed(log_var.exp()))
    gap = D.kl_divergence(q, model.posterior(x))
    assert (gap > 0.1).all()
    bound = model.elbo(x, mu, log_var)
    assert torch.allclose(bound + gap, model.log_evidence(x), atol=1e-11)


def test_the_bound_is_tight_at_the_posterior():
    x = normal(B, 3, seed=6, scale=2)
    posterior = STRAIGHT.posterior(x)
    mu, log_var = posterior.mean, posterior.variance.log()
    assert torch.allclose(STRAIGHT.elbo(x, mu, log_var), STRAIGHT.log_evidence(x), atol=1e-12)


def test_the_best_independent_latents_leave_a_known_gap():
    x = normal(B, 3, seed=6, scale=2)
    mu = TILTED.posterior(x).mean
    diagonal = TILTED.precision.diagonal()
    gap = 0.5 * (diagonal.log().sum() - TILTED.precision.logdet())
    assert float(gap) > 0.01
    bound = TILTED.elbo(x, mu, (-diagonal.log()).expand(B, Z))
    assert torch.allclose(TILTED.log_evidence(x) - bound, gap.expand(B), atol=1e-12)


def test_every_draw_from_the_posterior_weighs_the_evidence():
    x = normal(B, 3, seed=6, scale=2)
    posterior = STRAIGHT.posterior(x)
    mu, log_var = posterior.mean, posterior.variance.log()
    for seed in range(3):
        z = reparameterize(mu, log_var, noise=3 * normal(B, Z, seed=seed))
        log_weight = STRAIGHT.log_weight(x, z, mu, log_var)
        assert torch.allclose(log_weight, STRAIGHT.log_evidence(x), atol=1e-11)


def test_the_evidence_is_the_integral_over_the_latent_line():
    z = torch.linspace(-30, 30, 60_001, dtype=torch.float64)[:, None]
    x = torch.tensor([[0.7]], dtype=torch.float64)
    joint = LINE.log_likelihood(x.expand_as(z), z) + log_normal(z)
    evidence = float(joint.exp().sum()) * 1e-3
    assert float(LINE.log_evidence(x)) == pytest.approx(math.log(evidence), abs=1e-10)
    mu, log_var = (torch.tensor([[v]], dtype=torch.float64) for v in (0.2, -0.3))
    log_q = log_normal(z, mu.expand_as(z), log_var.expand_as(z))
    bound = float((log_q.exp() * (joint - log_q)).sum()) * 1e-3
    assert float(LINE.elbo(x, mu, log_var)) == pytest.approx(bound, abs=1e-10)


# Closed forms and brute force: the bound of many draws


def bound_of_many(num_draws, log_var, order=60):
    """E[L_S] on the line for q = N(0.1, σ²), by quadrature over all S draws together."""
    ticks, weights = np.polynomial.hermite_e.hermegauss(order)
    mu, log_var = (torch.full((order, 1), v, dtype=torch.float64) for v in (0.1, log_var))
    z = reparameterize(mu, log_var, noise=torch.from_numpy(ticks)[:, None])
    x = torch.full((order, 1), 0.7, dtype=torch.float64)
    log_weight = LINE.log_weight(x, z, mu, log_var)
    places = torch.cartesian_prod(*[torch.arange(order)] * num_draws).reshape(-1, num_draws)
    chances = torch.from_numpy(weights / weights.sum())[places].prod(1)
    return float((chances * importance_weighted_bound(log_weight[places].T)).sum())


def test_more_draws_bound_the_evidence_more_tightly_on_average():
    x, mu, log_var = (torch.tensor([[v]], dtype=torch.float64) for v in (0.7, 0.1, -1.5))
    bounds = [bound_of_many(num_draws, -1.5) for num_draws in (1, 2, 3)]
    assert bounds[0] == pytest.approx(float(LINE.elbo(x, mu, log_var)), abs=1e-10)
    evidence = float(LINE.log_evidence(x))
    gaps = [evidence - bound for bound in bounds]
    assert gaps[0] > gaps[1] + 0.005
    assert gaps[1] > gaps[2] + 0.002
    assert gaps[2] > 0.002


def importance_sampler(x, mu, log_var, noise):
    """log p(x) on the line, with one loop over the draws; knows nothing of the library."""
    weight, shift = float(LINE.weight), float(LINE.shift)

    def density(value, mean, variance):
        return math.exp(-((value - mean) ** 2) / (2 * variance)) / math.sqrt(2 * math.pi * variance)

    total = 0.0
    for eps in noise:
        z = mu + math.sqrt(math.exp(log_var)) * eps
        joint = density(z, 0, 1) * density(x, weight * z + shift, LINE.variance)
        total += joint / density(z, mu, math.exp(log_var))
    return math.log(total / len(noise))


def test_many_draws_agree_with_an_importance_sampler_and_reach_the_evidence():
    num_draws, mu, log_var = 20_000, 0.1, 0.2
    noise = normal(num_draws, seed=3)
    spread = (torch.full((num_draws, 1), v, dtype=torch.float64) for v in (0.7, mu, log_var))
    x, mus, log_vars = spread
    z = reparameterize(mus, log_vars, noise=noise[:, None])
    log_weights = LINE.log_weight(x, z, mus, log_vars)
    got = float(importance_weighted_bound(log_weights[:, None]))
    sampler = importance_sampler(0.7, mu, log_var, noise.tolist())
    assert got == pytest.approx(sampler, abs=1e-11)
    relative = (log_weights - got).exp()
    error = float(relative.std()) / math.sqrt(num_draws)
    assert error < 0.01
    assert got == pytest.approx(float(LINE.log_evidence(x[:1])), abs=4 * error)


def test_one_draw_is_the_bound_itself():
    x, mu, log_var = normal(B, 3, seed=6), normal(B, Z), normal(B, Z, seed=1)
    z = reparameterize(mu, log_var, noise=normal(B, Z, seed=2))
    log_weight = TILTED.log_weight(x, z, mu, log_var)
    one = elbo(TILTED.log_likelihood(x, z), one_draw(z, mu, log_var))
    assert torch.allclose(importance_weighted_bound(log_weight[None]), one, atol=1e-12)


def test_the_bound_of_many_is_a_mean_of_weights_for_each_example():
    log_weights = normal(5, 3)
    for b in range(3):
        mean = sum(math.exp(float(w)) for w in log_weights[:, b]) / 5
        got = importance_weighted_bound(log_weights)
        assert float(got[b]) == pytest.approx(math.log(mean), abs=1e-13)
    shifted = importance_weighted_bound(log_weights - 5000)
    assert torch.allclose(shifted, got - 5000, atol=1e-10)
    assert torch.allclose(importance_weighted_bound(log_weights.flip(0)), got, atol=1e-13)
    assert importance_weighted_bound(torch.full((7, 2), -3.0)).tolist() == pytest.approx([-3, -3])


# Draws


def test_a_draw_is_the_mean_plus_the_deviation_times_the_noise():
    mu, log_var, noise = normal(B, Z), normal(B, Z, seed=1), normal(B, Z, seed=2)
    z = reparameterize(mu, log_var, noise=noise)
    for b in range(B):
        for j in range(Z):
            want = float(mu[b, j]) + math.sqrt(math.exp(float(log_var[b, j]))) * float(noise[b, j])
            assert float(z[b, j]) == pytest.approx(want, abs=1e-14)


def test_draws_follow_the_gaussian_and_each_other_in_no_way(generator):
    mu, log_var = torch.tensor([[1.0, -2.0]] * 4), torch.tensor([[0.0, 1.4]] * 4)
    draws = torch.stack([reparameterize(mu, log_var, generator=generator) for _ in range(5000)])
    draws = (draws.double() - mu) / log_var.mul(0.5).exp()
    flat = torch.cat([draws[:-1], draws[1:]], 1).flatten(1)  # two successive draws side by side
    assert flat.mean(0).abs().max() < 4.5 / math.sqrt(5000)
    covariance = flat.T @ flat / len(flat)
    assert (covariance - torch.eye(16)).abs().max() < 4.5 * math.sqrt(2 / 5000)
    assert float((flat**4).mean()) == pytest.approx(3, abs=0.15)


def test_the_same_generator_gives_the_same_draw_and_moves_on():
    mu, log_var = normal(B, Z), normal(B, Z, seed=1)
    first, second = (torch.Generator().manual_seed(3) for _ in range(2))
    z = reparameterize(mu, log_var, generator=first)
    assert torch.equal(z, reparameterize(mu, log_var, generator=second))
    assert not torch.isclose(z, reparameterize(mu, log_var, generator=first)).any()
    noise = torch.randn(B, Z, dtype=torch.float64, generator=first.manual_seed(3))
    assert torch.equal(z, reparameterize(mu, log_var, noise=noise))
    assert z.dtype == torch.float64
    assert reparameterize(mu.half(), log_var.half(), generator=first).dtype == torch.float16


def test_gradients_reach_mean_and_variance_through_a_draw():
    mu, log_var = (x.requires_grad_() for x in (normal(B, Z), normal(B, Z, seed=1)))
    second_moment = average(lambda z: (z**2).sum(1), mu, log_var)
    by_mu, by_log_var = torch.autograd.grad(second_moment.sum(), (mu, log_var))
    assert torch.allclose(by_mu, 2 * mu, atol=1e-12)
    assert torch.allclose(by_log_var, log_var.exp(), atol=1e-12)


# Weights on the terms


def test_beta_weighs_the_rate_alone():
    log_likelihood, kl = torch.tensor([-100.0, -80.0]), torch.tensor([10.0, 20.0])
    assert elbo(log_likelihood, kl).tolist() == [-110, -100]
    assert elbo(log_likelihood, kl, beta=0.5).tolist() == [-105, -90]
    assert elbo(log_likelihood, kl, beta=0).tolist() == log_likelihood.tolist()
    assert elbo(log_likelihood, kl, beta=3).tolist() == [-130, -140]


def test_free_bits_hold_the_mean_of_a_group_against_the_floor():
    kl = torch.tensor([[0.0, 3.0, 0.3], [2.0, 1.0, 0.5]], dtype=torch.float64, requires_grad=True)
    rate = free_bits(kl, 0.5)
    assert rate.tolist() == pytest.approx([0 + 3 + 0.5, 2 + 1 + 0.5])
    want = sum(max(0.5, float(group)) for group in kl.detach().mean(0))
    assert float(rate.detach().mean()) == pytest.approx(want)
    (slope,) = torch.autograd.grad(rate.sum(), kl)
    assert slope.tolist() == [[1, 1, 0], [1, 1, 0]]
    assert torch.equal(free_bits(kl, 0), kl.sum(1))
    assert free_bits(kl, 100.0).tolist() == [300, 300]
    assert free_bits(torch.tensor([[1.0], [3.0]]), 2.0).tolist() == [2, 2]


# Invariances


def test_a_divergence_is_summed_over_each_example_and_over_nothing_else():
    parts = two_gaussians(B, 3, 2, 2)
    each = gaussian_kl_per_dim(*parts)
    assert each.shape == (B, 3, 2, 2)
    got = gaussian_kl(*parts)
    assert torch.allclose(got, each.sum((1, 2, 3)), atol=1e-12)
    assert torch.allclose(gaussian_kl(*(x.flatten(1) for x in parts)), got, atol=1e-12)
    order = torch.tensor([2, 0, 3, 1])
    assert torch.allclose(gaussian_kl(*(x[order] for x in parts)), got[order], atol=1e-12)
    assert torch.allclose(gaussian_kl(*(x[:1] for x in parts)), got[:1], atol=1e-12)
    alone = gaussian_kl(*(x.reshape(-1, 1) for x in parts))
    assert torch.allclose(alone, each.flatten(), atol=1e-13)


def test_a_divergence_knows_neither_origin_nor_unit():
    mu, log_var, m, log_s2 = two_gaussians(B, Z)
    want = gaussian_kl(mu, log_var, m, log_s2)
    moved = gaussian_kl(mu + 3, log_var, m + 3, log_s2)
    unit = 2 * math.log(10)
    scaled = gaussian_kl(10 * mu, log_var + unit, 10 * m, log_s2 + unit)
    assert torch.allclose(moved, want, atol=1e-12)
    assert torch.allclose(scaled, want, atol=1e-11)


# Independent references


@pytest.mark.parametrize("shape", [(B, Z), (B, 3, 2, 2)])
def test_densities_and_divergences_agree_with_torch_distributions(shape):
    mu, log_var, m, log_s2 = two_gaussians(*shape)
    axes = len(shape) - 1
    q = D.Independent(D.Normal(mu, log_var.mul(0.5).exp()), axes)
    p = D.Independent(D.Normal(m, log_s2.mul(0.5).exp()), axes)
    standard = D.Independent(D.Normal(torch.zeros_like(mu), torch.ones_like(mu)), axes)
    z = normal(*shape, seed=9)
    for got, want in (
        (gaussian_kl(mu, log_var, m, log_s2), D.kl_divergence(q, p)),
        (gaussian_kl(mu, log_var), D.kl_divergence(q, standard)),
        (log_normal(z, mu, log_var), q.log_prob(z)),
        (log_normal(z), standard.log_prob(z)),
        (one_draw(z, mu, log_var), q.log_prob(z) - standard.log_prob(z)),
        (one_draw(z, mu, log_var, m, log_s2), q.log_prob(z) - p.log_prob(z)),
    ):
        assert torch.allclose(got, want, atol=1e-11)


def test_the_gradient_of_the_divergence_is_that_of_finite_differences():
    parts = [x.requires_grad_() for x in two_gaussians(2, 2)]
    assert torch.autograd.gradcheck(gaussian_kl, parts)


# Behaviour


def test_a_small_divergence_keeps_its_digits_in_float32():
    log_var = torch.full((1, 1), 1e-4)
    want = gaussian_kl(log_var.double() * 0, log_var.double())
    got = gaussian_kl(log_var * 0, log_var)
    assert float(got) == pytest.approx(float(want), rel=2e-3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_low_precision_is_computed_and_returned_in_float32(dtype):
    parts = [x.to(dtype) for x in two_gaussians(B, Z)]
    z = normal(B, Z, seed=9).to(dtype)
    for function, arguments in (
        (gaussian_kl, parts),
        (log_normal, [z, *parts[:2]]),
        (log_normal, [z]),
    ):
        got = function(*arguments)
        assert got.dtype == torch.float32
        want = function(*(x.double() for x in arguments))
        assert torch.allclose(got.double(), want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_a_log_variance_may_be_anything_that_its_dtype_holds(dtype):
    most = torch.finfo(dtype).max
    narrow = torch.tensor([[-most]], dtype=dtype)
    zero, one = torch.zeros_like(narrow), torch.ones_like(narrow)
    half = float(narrow.double()) / -2
    constant = -0.5 * math.log(2 * math.pi)
    for got, want in (
        (gaussian_kl(one, narrow), half),
        (gaussian_kl(one, zero, None, -narrow), half - 0.5),
        (log_normal(one, zero, -narrow), constant - half),
        (one_draw(one, zero, -narrow), constant - half - constant + 0.5),
        (gaussian_log_likelihood(one, zero, -narrow), constant - half),
        (gaussian_log_likelihood(one, zero, float(-narrow)), constant - half),
        (reparameterize(one, narrow, noise=one), 1),
    ):
        assert float(got) == pytest.approx(want, rel=1e-6)
    # As far as float32 reaches; beyond, what is infinite stays so and never turns into NaN.
    wide = torch.tensor([[80.0, -80.0]], dtype=torch.promote_types(dtype, torch.float32))
    wide = wide.to(dtype)
    mu, other = torch.full_like(wide, 3.0), torch.full_like(wide, 1.0)
    want = 0.5 * ((math.exp(80) - 1 - 80 + 9) + (math.exp(-80) - 1 + 80 + 9))
    assert float(gaussian_kl(mu, wide)) == pytest.approx(want, rel=1e-5)
    want = 0.5 * ((math.exp(-80) * 5 - 1 + 80) + (math.exp(80) * 5 - 1 - 80))
    assert float(gaussian_kl(mu, 0 * wide, other, wide)) == pytest.approx(want, rel=1e-5)
    want = 2 * constant - 0.5 * 4 * (math.exp(-80) + math.exp(80))
    assert float(log_normal(mu, other, wide)) == pytest.approx(want, rel=1e-5)
    assert gaussian_kl(one, -narrow).isposinf().all()
    far = 2 * math.log(torch.finfo(dtype).max) - 1
    spread = torch.tensor([[far, 4 - far]], dtype=dtype)
    got = reparameterize(0 * spread, spread, noise=0 * spread + 1).double()
    rtol = 8 * torch.finfo(dtype).eps
    assert torch.allclose(got, spread.double().mul(0.5).exp(), rtol=rtol, atol=0)


def test_climbing_the_bound_finds_the_posterior(generator):
    x = torch.tensor([[0.7]], dtype=torch.float64)
    mu, log_var = (torch.zeros(1, 1, dtype=torch.float64, requires_grad=True) for _ in range(2))
    for _ in range(300):
        many = mu.expand(8, 1), log_var.expand(8, 1)
        z = reparameterize(*many, generator=generator)
        bound = elbo(LINE.log_likelihood(x.expand(8, 1), z), gaussian_kl(*many)).mean()
        for part, slope in zip(
            (mu, log_var), torch.autograd.grad(bound, (mu, log_var)), strict=True
        ):
            part.data += 0.03 * slope
    posterior = LINE.posterior(x)
    gap = D.kl_divergence(D.MultivariateNormal(mu, torch.diag_embed(log_var.exp())), posterior)
    assert float(gap.detach()) < 0.02


def test_nothing_waits_for_another_device(hook_off):
    part = torch.empty(B, Z, device="meta")  # to look at a number of it is an error
    bound = elbo(log_normal(part), gaussian_kl(part, part, part, part))
    assert importance_weighted_bound(bound[None]).shape == (B,)
    assert reparameterize(part, part, noise=part).shape == (B, Z)
    assert free_bits(gaussian_kl_per_dim(part, part), 0.1).shape == (B,)


def test_a_whole_loss_compiles(hook_off):
    mu, log_var, noise, x = (normal(B, Z, seed=seed) for seed in range(4))

    def loss(mu, log_var, noise, x):
        z = reparameterize(mu, log_var, noise=noise)
        rate = free_bits(gaussian_kl_per_dim(mu, log_var), 0.3)
        return elbo(gaussian_log_likelihood(x, z, 0.0), rate, beta=0.7)

    compiled = torch.compile(loss, fullgraph=True, backend="eager")
    arguments = mu, log_var, noise, x
    assert torch.allclose(compiled(*arguments), loss(*arguments), atol=1e-12)


# Bad input

ONE, PART = torch.zeros(B), torch.zeros(B, Z)
OF_TWO = {
    gaussian_kl: "mu",
    gaussian_kl_per_dim: "mu",
    lambda mu, log_var: log_normal(mu, mu, log_var): "z",
    lambda mu, log_var: reparameterize(mu, log_var, noise=mu): "mu",
}


@pytest.mark.parametrize(
    ("name", "call"),
    [
        *(("beta", partial(elbo, ONE, ONE, beta=beta)) for beta in (-0.1, math.nan, math.inf)),
        ("kl", lambda: elbo(ONE, ONE[:1])),
        ("kl", lambda: elbo(ONE, ONE[0])),
        ("log_likelihood", lambda: elbo(ONE[:, None], ONE)),
        ("log_likelihood", lambda: elbo(ONE[0], ONE[0])),
        *(
            ("log_var", partial(function, PART, torch.zeros(shape)))
            for function in OF_TWO
            for shape in ((B, 1), (B,), (Z,), ())
        ),
        *(
            (name, partial(function, torch.zeros(shape), torch.zeros(shape)))
            for function, name in OF_TWO.items()
            for shape in ((B, 0), (B,), ())
        ),
        ("prior_mu", lambda: gaussian_kl(PART, PART, PART[0])),
        ("prior_log_var", lambda: gaussian_kl(PART, PART, None, PART[:1])),
        ("mu", lambda: log_normal(PART, PART[:1])),
        ("generator", lambda: reparameterize(PART, PART)),
        ("noise", lambda: reparameterize(PART, PART, generator=torch.Generator(), noise=PART)),
        ("noise", lambda: reparameterize(PART, PART, noise=PART[:1])),
        *(
            ("log_weights", partial(importance_weighted_bound, torch.zeros(shape)))
            for shape in ((3,), (0, 3), (2, 3, 1))
        ),
        *(("floor", partial(free_bits, PART, floor)) for floor in (-1, math.nan, math.inf)),
        ("kl", lambda: free_bits(ONE, 1.0)),
    ],
)
def test_bad_input_is_named(name, call, hook_off):
    with pytest.raises(ValueError, match=rf"^expected .*\b{name}\b.*, got"):
        call()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("log_var", [-300.0, -170.0, -95.0, -1.0, 0.0, 40.0, 85.0])
def test_a_divergence_from_itself_is_zero_at_any_width(dtype, log_var):
    mu, log_var = torch.ones(2, 3, dtype=dtype), torch.full((2, 3), log_var, dtype=dtype)
    parts = [part.clone().requires_grad_() for part in (mu, log_var, mu, log_var)]
    divergence = gaussian_kl(*parts)
    assert divergence.tolist() == [0, 0]
    divergence.sum().backward()
    assert all(part.grad.isfinite().all() for part in parts)


def test_a_narrow_prior_weighs_the_distance_by_its_own_width():
    mu, log_var = torch.full((1, 1), 1e-20).double(), torch.full((1, 1), -95.0).double()
    got = gaussian_kl(mu.float(), log_var.float(), torch.zeros(1, 1), log_var.float())
    assert torch.allclose(got.double(), 0.5 * mu[0].square() * math.exp(95), rtol=1e-5)
