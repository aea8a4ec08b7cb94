"""Log-likelihoods of images: what a decoder's answer says about the pixels it should explain.

Each is summed over all axes of one example, one number per example, in nats; averaging over the
batch is the caller's. Two are logarithms of probabilities, hence at most 0: Bernoulli of binary
pixels and the discretised logistic. The Gaussian is the logarithm of a density, which may exceed 0
and changes with the unit that pixels are measured in: it is compared with no probability.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from aigc_lib.ops.cross_entropy import loss_dtype

# exp(±80) is about as far as float32 reaches.
_WIDEST_LOG_SCALE = 80.0


def bernoulli_log_likelihood(
    x: Float[Tensor, "B *D"], logits: Float[Tensor, "B *D"]
) -> Float[Tensor, " B"]:
    """How well independent coins explain binary pixels, each with a chance of its own.

    log p(x) = Σ_d [x_d log π_d + (1 − x_d) log(1 − π_d)] = Σ_d [x_d ℓ_d − log(1 + exp ℓ_d)],

    π = sigmoid(ℓ), in nats, summed over all axes of an example. For x_d ∈ {0, 1} it is the
    logarithm of a probability. A grey pixel gives the mean of that over pixels drawn as 1 with
    chance x_d: minus a cross-entropy, fit to train with, but of no distribution over grey values.

    Source: Kingma and Welling 2014, equation 11, y there is π here.
    Derived: 21_vae eq-bernoulli

    Args:
        x: pixels from 0 to 1.
        logits: ℓ, finite, one for each pixel.

    Returns:
        (B,), at least float32. On a GPU or while compiling, where looking would wait, NaN for an
        example with a pixel out of range.

    Raises:
        ValueError: the shapes differ, or (seen on the CPU alone) a pixel is not in [0, 1].
    """
    _check(x, logits, "logits")
    wide = loss_dtype(logits)
    # PyTorch's own form of it: no overflow, and half the time of the formula as it stands above.
    costs = F.binary_cross_entropy_with_logits(logits.to(wide), x.to(wide), reduction="none")
    return _require_range(x, 0.0, 1.0, -_sum(costs))


def gaussian_log_likelihood(
    x: Float[Tensor, "B *D"],
    mean: Float[Tensor, "B *D"],
    log_var: Float[Tensor, "..."] | float,
) -> Float[Tensor, " B"]:
    """How well independent Gaussians explain real numbers: the logarithm of a density.

    log p(x) = −½ Σ_d [log 2π + log σ_d² + (x_d − μ_d)²/σ_d²],

    in nats, summed over all axes of an example. It has no upper limit: where means can meet the
    data exactly, as they can pixels that are always black, a learned σ runs to 0.

    Source: Kingma and Welling 2014, equation 12.
    Derived: 20_elbo eq-reconstruction

    Args:
        x: finite numbers.
        mean: μ, one for each number.
        log_var: log σ², of the mean's shape, or one for all numbers: a tensor without axes (it may
            be learned) or a number.

    Returns:
        (B,), at least float32. On a GPU or while compiling, where looking would wait, NaN for an
        example with a number that is not finite.

    Raises:
        ValueError: the shapes differ, or (seen on the CPU alone) x is not finite.
    """
    _check(x, mean, "mean")
    log_var = _one_or_each(log_var, mean, "log_var")
    largest = torch.finfo(x.dtype).max
    return _require_range(x, -largest, largest, gaussian_log_density(x, mean, log_var))


def gaussian_log_density(x: Tensor, mean: Tensor, log_var: Tensor) -> Tensor:
    """The formula of `gaussian_log_likelihood`, without its checks."""
    wide = loss_dtype(mean)
    log_var = log_var.to(wide)
    squares = (x.to(wide) - mean.to(wide)).square() * torch.exp(-log_var)
    return -0.5 * _sum(math.log(2 * math.pi) + log_var + squares)


def discretized_logistic_log_likelihood(
    x: Float[Tensor, "B *D"],
    mean: Float[Tensor, "B *D"],
    log_scale: Float[Tensor, "..."] | float,
    num_bins: int = 256,
) -> Float[Tensor, " B"]:
    """How well logistic distributions, cut into bins, explain pixels of a few levels.

    Level k of n = num_bins is the pixel k/(n − 1), and its bin reaches half a step, h = ½/(n − 1),
    to either side; the two outermost bins take the tails, so that the n probabilities sum to one:

    log p(x) = Σ_d log [sigmoid(a_d) − sigmoid(b_d)],   a, b = (x ± h − μ)/s,

    in nats, summed over all axes of an example, with b = −∞ in the lowest bin and a = ∞ in the
    highest. It is computed as log sigmoid(a) + log sigmoid(−b) + log(1 − exp(b − a)), the same
    without a difference of two numbers that are nearly equal.

    Source: Salimans et al. 2017, equation 2, for one component, and Kingma et al. 2016; pixels
    there are 0 … 255, here 0 … 1.
    Derived: 21_vae eq-logistic

    Args:
        x: pixels from 0 to 1; each stands for the level nearest to it.
        mean: μ, in the unit of the pixels, one for each.
        log_scale: log s, of the mean's shape, or one for all pixels: a tensor without axes or a
            number. It is clipped to −80 … 80.
        num_bins: n, at least 2.

    Returns:
        (B,), at least float32, never above 0. On a GPU or while compiling, where looking would
        wait, NaN for an example with a pixel out of range.

    Raises:
        ValueError: the shapes differ, there are too few bins, or (seen on the CPU alone) a pixel is
            not in [0, 1].
    """
    _check(x, mean, "mean")
    if num_bins < 2:
        raise ValueError(f"expected num_bins >= 2, got {num_bins}")
    wide, last = loss_dtype(mean), num_bins - 1
    log_scale = _one_or_each(log_scale, mean, "log_scale")
    per_scale = torch.exp(-log_scale.clamp(-_WIDEST_LOG_SCALE, _WIDEST_LOG_SCALE))
    level = (x.to(wide) * last).round()
    distance = level / last - mean.to(wide)
    above = F.logsigmoid((distance + 0.5 / last) * per_scale)
    below = F.logsigmoid((0.5 / last - distance) * per_scale)
    width = torch.log(-torch.expm1(-per_scale / last)).expand_as(level)
    is_lowest, is_highest = level == 0, level == last
    terms = above.masked_fill(is_highest, 0) + below.masked_fill(is_lowest, 0)
    terms = terms + width.masked_fill(is_lowest | is_highest, 0)
    return _require_range(x, 0.0, 1.0, _sum(terms))


def _sum(terms: Tensor) -> Tensor:
    return terms.flatten(1).sum(1)


def _check(x, expected, name) -> None:
    if x.ndim < 2 or x.shape != expected.shape:
        raise ValueError(
            f"expected x and {name} of one shape (B, …), got {tuple(x.shape)} and "
            f"{tuple(expected.shape)}"
        )
    if not (x.is_floating_point() and expected.is_floating_point()):
        raise ValueError(f"expected floating-point numbers, got {x.dtype} and {expected.dtype}")


def _one_or_each(value: Tensor | float, mean: Tensor, name: str) -> Tensor:
    wide = loss_dtype(mean)
    if not isinstance(value, Tensor):
        return mean.new_full((), value, dtype=wide)
    if value.ndim and value.shape != mean.shape:
        raise ValueError(
            f"expected {name} of the mean's shape {tuple(mean.shape)} or without axes, got "
            f"{tuple(value.shape)}"
        )
    return value.to(wide)


def _require_range(x: Tensor, low: float, high: float, values: Tensor) -> Tensor:
    """The values, if all of x is in range: else an error, or NaN where looking would wait."""
    if not x.numel():
        return values
    if torch.compiler.is_compiling() or x.device.type != "cpu":
        least, most = x.detach().flatten(1).aminmax(dim=1)
        return torch.where((least >= low) & (most <= high), values, math.nan)
    least, most = (limit.item() for limit in x.detach().aminmax())
    if not (least >= low and most <= high):  # NaN, too, ends up here
        wanted = "pixels in [0, 1]" if high == 1 else "finite numbers"
        raise ValueError(f"expected {wanted}, got {_range(least, most)}")
    return values


def _range(least: float, most: float) -> str:
    return "NaN" if math.isnan(least) else f"values from {least:g} to {most:g}"
