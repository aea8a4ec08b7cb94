"""Diffusion's objectives: the regression that trains, and the bound that it comes from.

With x_t for t = 0 … S − 1 and the data x₀ before t = 0, as in `schedules`,

    −log p(x₀) ≤ E[−log p(x₀|x_{t=0}) + Σ_{t=1}^{S−1} KL(q(x_{t−1}|x_t, x₀) ‖ p(x_{t−1}|x_t))]
                 + KL(q(x_{S−1}|x₀) ‖ N(0, I)).

Values are per example, summed over its axes, in nats, at least float32. Shapes that differ and a
time outside the schedule raise ValueError, whole numbers for data TypeError.
"""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from aigc_lib import expect
from aigc_lib.device import loss_dtype
from aigc_lib.objectives.elbo import gaussian_kl
from aigc_lib.objectives.likelihood import gaussian_log_likelihood
from aigc_lib.schedules import Discrete, spread

Each = Float[Tensor, " B"]
Data = Float[Tensor, "B *D"]


def diffusion_loss(prediction: Data, target: Data, weight: Each | None = None) -> Each:
    """w Σ_d (prediction_d − target_d)², the target being ε, x₀, v or a score; w = 1 for None.

    Source: Ho et al. 2020, equation 14, for ε.
    Derived: 40_ddpm eq-simple
    """
    expect.floating(prediction=prediction, target=target, weight=weight)
    expect.shaped((None, ..., None), prediction=prediction)
    expect.alike(prediction=prediction, target=target)
    expect.shaped((len(prediction),), weight=weight)
    wide = loss_dtype(prediction)
    squares = (prediction.to(wide) - target.to(wide)).square().flatten(1).sum(1)
    return squares if weight is None else weight.to(wide) * squares


def denoising_score_loss(score: Data, eps: Data, sigma: Each, weight: Each | None = None) -> Each:
    """½ w Σ_d (score_d + ε_d/σ)²: of x_t = signal x₀ + σ ε, whose score given x₀ is −ε/σ.

    w is 1 for None; w = σ² makes all times weigh about the same.

    Source: Vincent 2011; w = σ²: Song and Ermon 2019, section 4.2.
    Derived: 41_score_and_sde eq-denoising
    """
    expect.shaped((len(eps),), sigma=sigma)
    return 0.5 * diffusion_loss(score, -eps / spread(sigma, eps), weight)


def step_kl(
    schedule: Discrete, x0: Data, x0_hat: Data, x_t: Data, t: Int[Tensor, " B"], variance="beta"
) -> Each:
    """L_{t−1} = KL(q(x_{t−1}|x_t, x₀) ‖ N(mean of q(x_{t−1}|x_t, x̂₀), β_t or β̃_t)), t ≥ 1.

    Source: Ho et al. 2020, equations 5 and 8; the variances: section 3.2.
    Derived: 40_ddpm eq-weighted
    """
    expect.one_of(("beta", "beta_tilde"), variance=variance)
    expect.values_in(1, schedule.num_steps - 1, t=t)
    expect.alike(x0=x0, x0_hat=x0_hat)
    mean, beta_tilde = schedule.posterior(x0, x_t, t)
    guess, _ = schedule.posterior(x0_hat, x_t, t)
    own = beta_tilde if variance == "beta_tilde" else schedule.diffusion(t).square()
    log_var, own = (spread(v, mean).expand_as(mean).log() for v in (beta_tilde, own))
    return gaussian_kl(mean, log_var, guess, own)


def prior_kl(schedule: Discrete, x0: Data) -> Each:
    """L_T = KL(q(x_{S−1}|x₀) ‖ N(0, I)).

    Source: Ho et al. 2020, equation 5.
    Derived: 40_ddpm eq-bound
    """
    t = torch.full((len(x0),), schedule.num_steps - 1, device=x0.device)
    signal, sigma = (spread(v, x0).expand_as(x0) for v in (schedule.signal(t), schedule.sigma(t)))
    return gaussian_kl(signal * x0, 2 * sigma.log())


def bound_terms(
    predict: Callable[[Tensor, Tensor], Tensor],
    schedule: Discrete,
    x0: Data,
    *,
    parameterisation: str = "eps",
    variance: str = "beta",
    decoder: str = "discretised",
    generator: torch.Generator | None = None,
) -> Float[Tensor, "N B"]:
    """Rows: t = 0, the decoder's −log p(x₀|x_{t=0}); t = 1 … S − 1, `step_kl`; S, `prior_kl`.

    One x_t ~ q(x_t|x₀) each, ε from the generator; their sum estimates the bound on −log p(x₀).
    The decoder is N(x̂₀, β_0), as a density, or its chance of the 8-bit value ("discretised").

    Source: Ho et al. 2020, equations 5 and 13.
    Derived: 40_ddpm eq-bound
    """
    expect.one_of(("discretised", "gaussian"), decoder=decoder)
    rows = []
    for place in range(schedule.num_steps):
        t = torch.full((len(x0),), place, device=x0.device)
        device = getattr(generator, "device", x0.device)
        eps = torch.randn(x0.shape, generator=generator, dtype=x0.dtype, device=device).to(x0)
        x_t = schedule.noised(x0, t, eps)
        output = predict(x_t, schedule.condition(t, x0.dtype))
        x0_hat = schedule.convert(output, x_t, t, source=parameterisation, target="x0")
        if place:
            rows.append(step_kl(schedule, x0, x0_hat, x_t, t, variance))
        elif decoder == "gaussian":
            rows.append(-gaussian_log_likelihood(x0, x0_hat, schedule.beta[0].log()))
        else:
            rows.append(-discretised_log_likelihood(x0, x0_hat, 0.5 * schedule.beta[0].log()))
    return torch.stack([*rows, prior_kl(schedule, x0)])


def discretised_log_likelihood(
    x0: Data, mean: Data, log_scale: Float[Tensor, "..."] | float
) -> Each:
    """log p(x₀) = Σ_d log [Φ((x_d + h − μ_d)/σ) − Φ((x_d − h − μ_d)/σ)],   h = 1/255.

    8-bit values k as x = 2k/255 − 1, others stand for the nearest; the outermost take the tails, so
    that the 256 probabilities sum to one. On the CPU, x₀ outside −1 … 1 raises ValueError.

    Source: Ho et al. 2020, equation 13.
    Derived: —
    """
    expect.floating(x0=x0, mean=mean)
    expect.shaped((None, ..., None), x0=x0)
    expect.alike(x0=x0, mean=mean)
    expect.values_in(-1, 1, x0=x0)
    wide = loss_dtype(mean)
    level = (127.5 * (x0.to(wide) + 1)).round()
    distance = level / 127.5 - 1 - mean.to(wide)
    per_scale = torch.exp(-torch.as_tensor(log_scale, dtype=wide, device=x0.device))
    log_cdf = torch.special.log_ndtr
    # Φ(a) − Φ(b) = Φ(−b) − Φ(−a): on the side where Φ is small, no digits are lost.
    side = -distance.abs()
    above, below = (log_cdf((side + h) * per_scale) for h in (1 / 255, -1 / 255))
    terms = above + torch.log(-torch.expm1((below - above).clamp(max=-1e-30)))
    terms = torch.where(level == 0, log_cdf((1 / 255 + distance) * per_scale), terms)
    terms = torch.where(level == 255, log_cdf((1 / 255 - distance) * per_scale), terms)
    return terms.flatten(1).sum(1)


def bits_per_dim(nats: Float[Tensor, "*B"], num_dims: int) -> Float[Tensor, "*B"]:
    """nats/(D log 2), for costs −log p(x) of D numbers each."""
    expect.count(num_dims=num_dims)
    return nats / (num_dims * math.log(2))
