"""Log-likelihoods of images: what a decoder's answer says about the pixels it should explain.

Each is summed over all axes of one example, in nats, at least float32; averaging over the batch is
the caller's. Two are logarithms of probabilities, hence at most 0: Bernoulli of binary pixels and
the discretised logistic. The Gaussian is the logarithm of a density, which may exceed 0 and changes
with the unit of the pixels: it is compared with no probability. log_var and log_scale are of the
mean's shape or one for all pixels: a number, or a tensor without axes, which may be learned.
Other shapes raise ValueError, whole numbers TypeError, and x out of range ValueError on the CPU; on
a GPU or while compiling, where looking would wait, it makes the example NaN.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from aigc_lib import expect
from aigc_lib.device import loss_dtype

Each = Float[Tensor, " B"]
Data = Float[Tensor, "B *D"]
# exp(±80) is about as far as float32 reaches.
_WIDEST_LOG_SCALE = 80.0


def bernoulli_log_likelihood(x: Data, logits: Data) -> Each:
    """log p(x) = Σ_d [x_d log π_d + (1 − x_d) log(1 − π_d)] with π = sigmoid(ℓ), ℓ finite logits.

    A grey pixel x_d ∈ [0, 1] gives the mean over binary ones, 1 with chance x_d: minus a
    cross-entropy, fit to train with, but of no distribution over grey values.

    Source: Kingma and Welling 2014, equation 11, y there is π here.
    Derived: 21_vae eq-bernoulli
    """
    _check(x=x, logits=logits)
    wide = loss_dtype(logits)
    # PyTorch's own form, x ℓ − log(1 + exp ℓ): no overflow, and half the time of the one above.
    costs = F.binary_cross_entropy_with_logits(logits.to(wide), x.to(wide), reduction="none")
    return _in_range(x, 0, 1, -_sum(costs))


def gaussian_log_likelihood(x: Data, mean: Data, log_var: Float[Tensor, "..."] | float) -> Each:
    """log p(x) = −½ Σ_d [log 2π + log σ_d² + (x_d − μ_d)²/σ_d²], the logarithm of a density.

    x is finite. Where means can meet it exactly, as pixels always black, a learned σ runs to 0.

    Source: Kingma and Welling 2014, equation 12.
    Derived: 20_elbo eq-reconstruction
    """
    _check(x=x, mean=mean)
    log_var = _spread(log_var, mean)
    expect.alike(mean=mean, log_var=log_var if log_var.ndim else None)
    largest = torch.finfo(x.dtype).max
    return _in_range(x, -largest, largest, gaussian_log_density(x, mean, log_var))


def gaussian_log_density(x: Tensor, mean: Tensor, log_var: Tensor) -> Tensor:
    """The formula of `gaussian_log_likelihood`, without its checks."""
    wide = loss_dtype(mean)
    log_var = log_var.to(wide)
    scores = (x.to(wide) - mean.to(wide)) * inverse_sigma(log_var)
    return -0.5 * _sum(math.log(2 * math.pi) + log_var + scores.square())


def inverse_sigma(log_var: Tensor) -> Tensor:
    """1/σ = exp(−½ log σ²), with log σ² < −160 taken for −160: finite, and 0 times it is 0."""
    return torch.exp((-0.5 * log_var).clamp(max=_WIDEST_LOG_SCALE))


def discretized_logistic_log_likelihood(
    x: Data, mean: Data, log_scale: Float[Tensor, "..."] | float, num_bins: int = 256
) -> Each:
    """log p(x) = Σ_d log [sigmoid(a_d) − sigmoid(b_d)],   a, b = (x ± h − μ)/s,   h = ½/(n − 1).

    The n = num_bins ≥ 2 levels k/(n − 1) have bins that reach h to either side; x ∈ [0, 1] stands
    for the nearest. The outermost take the tails, b = −∞ and a = ∞, so that the n probabilities sum
    to one. log s is clipped to −80 … 80.

    Source: Salimans et al. 2017, equation 2, for one component, and Kingma et al. 2016; pixels
    there are 0 … 255, here 0 … 1.
    Derived: 21_vae eq-logistic
    """
    _check(x=x, mean=mean)
    expect.at_least(2, num_bins=num_bins)
    log_scale = _spread(log_scale, mean)
    expect.alike(mean=mean, log_scale=log_scale if log_scale.ndim else None)
    wide, last = loss_dtype(mean), num_bins - 1
    per_scale = torch.exp(-log_scale.clamp(-_WIDEST_LOG_SCALE, _WIDEST_LOG_SCALE))
    level = (x.to(wide) * last).round()
    distance = level / last - mean.to(wide)
    # log sigmoid(a) + log sigmoid(−b) + log(1 − exp(b − a)): no difference of near equals.
    above = F.logsigmoid((distance + 0.5 / last) * per_scale)
    below = F.logsigmoid((0.5 / last - distance) * per_scale)
    width = torch.log(-torch.expm1(-per_scale / last)).expand_as(level)
    is_lowest, is_highest = level == 0, level == last
    terms = above.masked_fill(is_highest, 0) + below.masked_fill(is_lowest, 0)
    terms = terms + width.masked_fill(is_lowest | is_highest, 0)
    return _in_range(x, 0, 1, _sum(terms))


def _sum(terms: Tensor) -> Tensor:
    return terms.flatten(1).sum(1)


def _check(**data: Tensor) -> None:
    expect.shaped((None, ..., None), **data)
    expect.floating(**data)
    expect.alike(**data)


def _spread(value: Tensor | float, mean: Tensor) -> Tensor:
    wide = loss_dtype(mean)
    return value.to(wide) if isinstance(value, Tensor) else mean.new_full((), value, dtype=wide)


def _in_range(x: Tensor, low: float, high: float, values: Tensor) -> Tensor:
    """The values, if all of x is in range: else an error, or NaN where looking would wait."""
    if torch.compiler.is_compiling() or x.device.type != "cpu":
        fits = (x >= low) & (x <= high)
        return torch.where(fits.flatten(1).all(1), values, math.nan)
    for value in x.detach().aminmax() if x.numel() else ():
        expect.between(low, high, x=value.item())
    return values
