"""The evidence lower bound: its two terms, Gaussian divergences, and the bound of many draws.

For a model p(z) p(x|z) and any density q(z|x) that is 0 wherever p(z|x) is,

    log p(x) = ELBO + KL(q(z|x) ‖ p(z|x)),   ELBO = E_q[log p(x|z)] − KL(q(z|x) ‖ p(z)).

Everything is per example and in nats; the ELBO is maximised, its negative is the loss. Gaussians
are given by mu and log_var = log σ², one of each for every latent number, which are independent.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from aigc_lib.objectives.likelihood import gaussian_log_density
from aigc_lib.ops.cross_entropy import loss_dtype


def elbo(
    log_likelihood: Float[Tensor, " B"], kl: Float[Tensor, " B"], *, beta: float = 1.0
) -> Float[Tensor, " B"]:
    """The bound from its two terms, reconstruction and rate.

    ELBO_β = log p(x|z) − β KL,   in nats per example.

    With z ~ q(z|x) and β ≥ 1 its expectation is at most log p(x); with β < 1 it may exceed it.

    Source: Kingma and Welling 2014, equation 3; β: Higgins et al. 2017, equation 4.
    Derived: 20_elbo eq-three-forms

    Args:
        log_likelihood: log p(x|z), of one draw or averaged over several.
        kl: KL(q(z|x) ‖ p(z)), exact or estimated.
        beta: β, 0 or more.

    Returns:
        (B,).

    Raises:
        ValueError: the shapes differ, or β is negative or not finite.
    """
    if log_likelihood.ndim != 1 or log_likelihood.shape != kl.shape:
        raise ValueError(
            f"expected one log-likelihood and one KL per example, (B,), got "
            f"{tuple(log_likelihood.shape)} and {tuple(kl.shape)}"
        )
    if not 0 <= beta < math.inf:
        raise ValueError(f"expected a finite beta >= 0, got {beta}")
    return log_likelihood - beta * kl


def reparameterize(
    mu: Float[Tensor, "B *Z"],
    log_var: Float[Tensor, "B *Z"],
    *,
    generator: torch.Generator | None = None,
    noise: Float[Tensor, "B *Z"] | None = None,
) -> Float[Tensor, "B *Z"]:
    """Draw from a Gaussian so that gradients reach its parameters.

    z = μ + σ ε,   σ = exp(½ log σ²),   ε ~ N(0, I).

    Source: Kingma and Welling 2014, section 2.4 and equation 10.
    Derived: 20_elbo eq-gradients

    Args:
        mu: μ.
        log_var: log σ².
        generator: draws ε; on the device of mu. This or `noise`.
        noise: ε itself.

    Returns:
        (B, …) draws, of mu's dtype.

    Raises:
        ValueError: the shapes differ, or not exactly one source of noise is given.
    """
    _check(mu=mu, log_var=log_var, noise=noise)
    if (generator is None) == (noise is None):
        raise ValueError(
            f"expected a generator or noise, got {'neither' if noise is None else 'both'}"
        )
    if noise is None:
        noise = torch.randn(mu.shape, generator=generator, dtype=mu.dtype, device=mu.device)
    return mu + torch.exp(0.5 * log_var) * noise


def gaussian_kl(
    mu: Float[Tensor, "B *Z"],
    log_var: Float[Tensor, "B *Z"],
    prior_mu: Float[Tensor, "B *Z"] | None = None,
    prior_log_var: Float[Tensor, "B *Z"] | None = None,
) -> Float[Tensor, " B"]:
    """How far one Gaussian is from another, exactly: KL(N(μ, σ²) ‖ N(m, s²)).

    KL = ½ Σ_j [(σ_j² + (μ_j − m_j)²)/s_j² − 1 − log(σ_j²/s_j²)],

    in nats, summed over all axes of an example.

    Source: Kingma and Welling 2014, appendix B, for m = 0 and s = 1.
    Derived: 20_elbo eq-gaussian-kl

    Args:
        mu: μ.
        log_var: log σ².
        prior_mu: m; None means 0.
        prior_log_var: log s²; None means 0.

    Returns:
        (B,), at least float32.

    Raises:
        ValueError: the shapes differ.
    """
    return gaussian_kl_per_dim(mu, log_var, prior_mu, prior_log_var).flatten(1).sum(1)


def gaussian_kl_per_dim(
    mu: Float[Tensor, "B *Z"],
    log_var: Float[Tensor, "B *Z"],
    prior_mu: Float[Tensor, "B *Z"] | None = None,
    prior_log_var: Float[Tensor, "B *Z"] | None = None,
) -> Float[Tensor, "B *Z"]:
    """What each latent number adds to `gaussian_kl`; one that says nothing about x adds 0.

    KL_j = ½ [(σ_j² + (μ_j − m_j)²)/s_j² − 1 − log(σ_j²/s_j²)],   in nats.

    Source: Kingma and Welling 2014, appendix B, for m = 0 and s = 1.
    Derived: 20_elbo eq-gaussian-kl

    Args:
        mu: as in `gaussian_kl`, like the next three.
        log_var: log σ².
        prior_mu: m; None means 0.
        prior_log_var: log s²; None means 0.

    Returns:
        (B, …) of mu's shape, at least float32.

    Raises:
        ValueError: the shapes differ.
    """
    _check(mu=mu, log_var=log_var, prior_mu=prior_mu, prior_log_var=prior_log_var)
    wide = loss_dtype(mu)
    distance, log_ratio = mu.to(wide), log_var.to(wide)
    if prior_mu is not None:
        distance = distance - prior_mu.to(wide)
    squares = distance.square()
    if prior_log_var is not None:
        log_ratio = log_ratio - prior_log_var.to(wide)
        squares = squares * torch.exp(-prior_log_var.to(wide))
    # expm1(r) − r loses fewer digits near r = 0 than exp(r) − 1 − r.
    return 0.5 * (torch.expm1(log_ratio) - log_ratio + squares)


def gaussian_kl_monte_carlo(
    z: Float[Tensor, "B *Z"],
    mu: Float[Tensor, "B *Z"],
    log_var: Float[Tensor, "B *Z"],
    prior_mu: Float[Tensor, "B *Z"] | None = None,
    prior_log_var: Float[Tensor, "B *Z"] | None = None,
) -> Float[Tensor, " B"]:
    """What one draw says about `gaussian_kl`: right on average, and negative now and then.

    log q(z) − log p(z),   z ~ q = N(μ, σ²), p = N(m, s²), in nats; its mean over draws is the KL.

    Source: Kingma and Welling 2014, equation 6, less log p(x|z) and with the sign turned.
    Derived: 20_elbo eq-identity

    Args:
        z: a draw from N(μ, σ²), such as `reparameterize` gives.
        mu: μ.
        log_var: log σ².
        prior_mu: m; None means 0.
        prior_log_var: log s²; None means 0.

    Returns:
        (B,), at least float32.

    Raises:
        ValueError: the shapes differ.
    """
    return log_normal(z, mu, log_var) - log_normal(z, prior_mu, prior_log_var)


def log_normal(
    z: Float[Tensor, "B *Z"],
    mu: Float[Tensor, "B *Z"] | None = None,
    log_var: Float[Tensor, "B *Z"] | None = None,
) -> Float[Tensor, " B"]:
    """The log density of a Gaussian at latent points; without parameters that of N(0, I).

    log N(z; μ, σ²) = −½ Σ_j [log 2π + log σ_j² + (z_j − μ_j)²/σ_j²],

    in nats, summed over all axes of an example. The log weight of a draw z ~ q(z|x) is made of it:

    log w = log p(x|z) + log p(z) − log q(z|x),   log q(z|x) = log_normal(z, mu, log_var).

    Source: Kingma and Welling 2014, appendix C.2.
    Derived: 20_elbo eq-weight

    Args:
        z: points; the first axis counts examples, so S draws for each of B examples come as S · B.
        mu: μ; None means 0.
        log_var: log σ²; None means 0.

    Returns:
        (B,), at least float32.

    Raises:
        ValueError: the shapes differ.
    """
    _check(z=z, mu=mu, log_var=log_var)
    mu, log_var = (torch.zeros_like(z) if part is None else part for part in (mu, log_var))
    return gaussian_log_density(z, mu, log_var)


def importance_weighted_bound(log_weights: Float[Tensor, "S B"]) -> Float[Tensor, " B"]:
    """The bound that S draws give together, at least as tight on average as that of fewer.

    L_S = log [(1/S) Σ_s w_s],   in nats per example.

    E[L_1] is the ELBO, and E[L_S] ≤ E[L_{S+1}] ≤ log p(x). With independent draws L_S → log p(x)
    almost surely, if q(z|x) > 0 wherever p(x|z) p(z) > 0; E[L_S] does, too, if w is bounded.

    Source: Burda et al. 2016, equation 8 and theorem 1; k there is S here.
    Derived: 20_elbo eq-iwae

    Args:
        log_weights: log w_s = log p(x|z_s) + log p(z_s) − log q(z_s|x), see `log_normal`; the S
            draws for an example along the first axis.

    Returns:
        (B,).

    Raises:
        ValueError: there are not two axes, or no draws.
    """
    if log_weights.ndim != 2 or not len(log_weights):
        raise ValueError(
            f"expected log weights of shape (S, B) with S >= 1, got {tuple(log_weights.shape)}"
        )
    return log_weights.logsumexp(0) - math.log(len(log_weights))


def free_bits(kl: Float[Tensor, "B G"], floor: float) -> Float[Tensor, " B"]:
    """A rate that costs no less than a floor in each group, so that using less of it gains nothing.

    r_b = Σ_g [KL_bg if mean_b(KL_bg) > λ, else λ],   in nats; for `elbo` in place of the KL.

    Its mean over the batch is Σ_g max(λ, mean_b KL_bg): the mean, not each example, is held against
    the floor. A group under it gets no gradient from the rate.

    Source: Kingma et al. 2016, the objective with free bits.
    Derived: 21_vae eq-free-bits

    Args:
        kl: the KL of each group of latent numbers, such as `gaussian_kl_per_dim` gives.
        floor: λ, in nats per group, 0 or more.

    Returns:
        (B,).

    Raises:
        ValueError: there are not two axes, or the floor is negative or not finite.
    """
    if kl.ndim != 2:
        raise ValueError(f"expected KLs of shape (B, G), got {tuple(kl.shape)}")
    if not 0 <= floor < math.inf:
        raise ValueError(f"expected a finite floor >= 0, got {floor}")
    return torch.where(kl.mean(0) > floor, kl, floor).sum(1)


def _check(**parts: Tensor | None) -> None:
    """Refuse tensors that are not of one shape (B, …), with at least one latent number."""
    first, *others = [(name, x.shape) for name, x in parts.items() if x is not None]
    if len(first[1]) < 2 or 0 in first[1][1:]:
        raise ValueError(f"expected {first[0]} of shape (B, Z) with Z >= 1, got {tuple(first[1])}")
    for name, shape in others:
        if shape != first[1]:
            raise ValueError(
                f"expected {name} of {first[0]}'s shape {tuple(first[1])}, got {tuple(shape)}"
            )
