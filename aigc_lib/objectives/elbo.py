"""The evidence lower bound: its two terms, Gaussian divergences, and the bound of many draws.

For a model p(z) p(x|z) and any density q(z|x) that is 0 wherever p(z|x) is,

    log p(x) = ELBO + KL(q(z|x) ‖ p(z|x)),   ELBO = E_q[log p(x|z)] − KL(q(z|x) ‖ p(z)).

The ELBO is maximised, its negative is the loss. Latent numbers are independent Gaussians: q has mu,
μ, and log_var, log σ²; p has prior_mu, m, and prior_log_var, log s²; None means 0. Values are per
example, summed over its axes, in nats, those of Gaussians at least float32. Shapes that differ, no
latent number, a weight that is negative or not finite raise ValueError.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from aigc_lib import expect
from aigc_lib.device import loss_dtype
from aigc_lib.objectives.likelihood import gaussian_log_density, inverse_sigma

Each = Float[Tensor, " B"]
Latent = Float[Tensor, "B *Z"]


def elbo(log_likelihood: Each, kl: Each, *, beta: float = 1.0) -> Each:
    """ELBO_β = log p(x|z) − β KL: reconstruction less rate, each exact or estimated.

    With z ~ q(z|x) and β ≥ 1 its expectation is at most log p(x); with β < 1 it may exceed it.

    Source: Kingma and Welling 2014, equation 3; β: Higgins et al. 2017, equation 4.
    Derived: 20_elbo eq-three-forms
    """
    expect.shaped(("B",), log_likelihood=log_likelihood, kl=kl)
    expect.that(0 <= beta < math.inf, "a finite beta >= 0", beta)
    return log_likelihood - beta * kl


def reparameterize(
    mu: Latent,
    log_var: Latent,
    *,
    generator: torch.Generator | None = None,
    noise: Latent | None = None,
) -> Latent:
    """z = μ + σ ε,   σ = exp(½ log σ²),   ε ~ N(0, I): a draw that lets gradients through.

    ε is the noise or comes from the generator, on mu's device; one of them must be given.

    Source: Kingma and Welling 2014, section 2.4 and equation 10.
    Derived: 20_elbo eq-gradients
    """
    _check(mu=mu, log_var=log_var, noise=noise)
    expect.that((noise is None) != (generator is None), "a generator or noise", "both or neither")
    if noise is None:
        noise = torch.randn(mu.shape, generator=generator, dtype=mu.dtype, device=mu.device)
    return mu + torch.exp(0.5 * log_var) * noise


def gaussian_kl(
    mu: Latent, log_var: Latent, prior_mu: Latent | None = None, prior_log_var: Latent | None = None
) -> Each:
    """KL(N(μ, σ²) ‖ N(m, s²)) = ½ Σ_j [(σ_j² + (μ_j − m_j)²)/s_j² − 1 − log(σ_j²/s_j²)].

    Source: Kingma and Welling 2014, appendix B, for m = 0 and s = 1.
    Derived: 20_elbo eq-gaussian-kl
    """
    return gaussian_kl_per_dim(mu, log_var, prior_mu, prior_log_var).flatten(1).sum(1)


def gaussian_kl_per_dim(
    mu: Latent, log_var: Latent, prior_mu: Latent | None = None, prior_log_var: Latent | None = None
) -> Latent:
    """KL_j = ½ [(σ_j² + (μ_j − m_j)²)/s_j² − 1 − log(σ_j²/s_j²)]: what latent number j adds.

    Source: Kingma and Welling 2014, appendix B, for m = 0 and s = 1.
    Derived: 20_elbo eq-gaussian-kl
    """
    _check(mu=mu, log_var=log_var, prior_mu=prior_mu, prior_log_var=prior_log_var)
    wide = loss_dtype(mu)
    distance, log_ratio = mu.to(wide), log_var.to(wide)
    if prior_mu is not None:
        distance = distance - prior_mu.to(wide)
    if prior_log_var is not None:
        log_ratio = log_ratio - prior_log_var.to(wide)
        distance = distance * inverse_sigma(prior_log_var.to(wide))
    # expm1(r) − r loses fewer digits near r = 0 than exp(r) − 1 − r.
    return 0.5 * (torch.expm1(log_ratio) - log_ratio + distance.square())


def log_normal(z: Latent, mu: Latent | None = None, log_var: Latent | None = None) -> Each:
    """log N(z; μ, σ²) = −½ Σ_j [log 2π + log σ_j² + (z_j − μ_j)²/σ_j²].

    A draw z ~ q weighs log w = log p(x|z) + log p(z) − log q(z|x); S of them come as (S · B, …).

    Source: Kingma and Welling 2014, appendix C.2.
    Derived: 20_elbo eq-weight
    """
    _check(z=z, mu=mu, log_var=log_var)
    mu, log_var = (torch.zeros_like(z) if part is None else part for part in (mu, log_var))
    return gaussian_log_density(z, mu, log_var)


def importance_weighted_bound(log_weights: Float[Tensor, "S B"]) -> Each:
    """L_S = log [(1/S) Σ_s w_s], from S ≥ 1 draws; log w_s as in `log_normal`.

    E[L_1] is the ELBO, and E[L_S] ≤ E[L_{S+1}] ≤ log p(x). With independent draws L_S → log p(x)
    almost surely, if q(z|x) > 0 wherever p(x|z) p(z) > 0; E[L_S] does, too, if w is bounded.

    Source: Burda et al. 2016, equation 8 and theorem 1; k there is S here.
    Derived: 20_elbo eq-iwae
    """
    expect.shaped((None, None), log_weights=log_weights)
    expect.that(len(log_weights) > 0, "S >= 1 rows of log_weights", len(log_weights))
    return log_weights.logsumexp(0) - math.log(len(log_weights))


def free_bits(kl: Float[Tensor, "B G"], floor: float) -> Each:
    """r_b = Σ_g [KL_bg if mean_b(KL_bg) > λ, else λ]: a rate with a floor λ in nats for each group.

    Its mean over the batch is Σ_g max(λ, mean_b KL_bg). A group under the floor gets no gradient.

    Source: Kingma et al. 2016, the objective with free bits.
    Derived: 21_vae eq-free-bits
    """
    expect.shaped((None, None), kl=kl)
    expect.that(0 <= floor < math.inf, "a finite floor >= 0", floor)
    return torch.where(kl.mean(0) > floor, kl, floor).sum(1)


def _check(**parts: Tensor | None) -> None:
    (name, x), *_ = parts.items()
    expect.that(x.ndim > 1 and all(x.shape[1:]), f"{name} of shape (B, Z), Z >= 1", tuple(x.shape))
    expect.alike(**parts)
