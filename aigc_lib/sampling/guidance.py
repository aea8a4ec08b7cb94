"""Guidance: what a label or a text changes in a prediction, made larger than it was learned."""

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from aigc_lib import expect
from aigc_lib.sampling.diffusion import Predict

Told = Mapping[str, Tensor]  # what a net is told besides x and the condition: B rows by name


def guided(
    net: Callable[..., Tensor],
    told: Told,
    untold: Told,
    scale: float,
    interval: tuple[float, float] = (-math.inf, math.inf),
) -> Predict:
    """û = u(x|untold) + s (u(x|told) − u(x|untold)),   u(x|told) = net(x, condition, **told).

    s = 1 is no guidance, s = 0 has only what is `untold`: no label, no text, or a negative prompt,
    of which one row serves all. u may be ε, x₀, v, a velocity or the score: at one x_t they are
    affine in ε, with weights that don't depend on it. Where the condition is not in the interval,
    ends included, s is 1. net is asked once, with 2B rows where s is not 1.

    Source: Ho and Salimans 2022, equation 6, whose w is s − 1; interval: Kynkäänniemi et al. 2024.
    Derived: 43_latent_diffusion eq-guidance
    """
    expect.that(0 <= scale < math.inf, "a finite scale >= 0", scale)
    expect.that(interval[0] < interval[1], "interval, low < high", interval)
    same = bool(told) and told.keys() == untold.keys()
    expect.that(same, "told and untold of the same names", (sorted(told), sorted(untold)))
    for name, x in told.items():
        shape, fitting = tuple(untold[name].shape), (tuple(x.shape), (1, *x.shape[1:]))
        expect.that(shape in fitting, f"untold {name} of one of {fitting}", shape)
    twice = {name: torch.cat([x, untold[name].expand_as(x)]) for name, x in told.items()}

    def predict(x: Tensor, condition: Tensor) -> Tensor:
        inside = (interval[0] <= condition) & (condition <= interval[1])
        if scale == 1 or not inside.any():
            return net(x, condition, **told)
        given, without = net(torch.cat([x, x]), condition.repeat(2), **twice).chunk(2)
        inside = inside.reshape(-1, *[1] * (x.ndim - 1))
        return torch.where(inside, without + scale * (given - without), given)

    return predict
