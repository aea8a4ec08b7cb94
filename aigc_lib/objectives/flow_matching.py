"""Flow matching on the straight path x_t = (1 − t) x₀ + t ε of `schedules.Straight`.

Losses are per example, summed over its axes, at least float32. Shapes that differ raise ValueError,
whole numbers for data TypeError.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from aigc_lib import expect
from aigc_lib.device import loss_dtype
from aigc_lib.objectives.diffusion import diffusion_loss

Each = Float[Tensor, " B"]
Data = Float[Tensor, "B *D"]


def flow_matching_loss(velocity: Data, x0: Data, eps: Data, weight: Each | None = None) -> Each:
    """w Σ_d (u_d − (ε_d − x₀_d))²,   u = velocity(x_t, t); w = 1 for None.

    Source: Lipman et al. 2023, equation 23 for σ_min = 0, with the data at t = 1 there.
    Derived: —
    """
    expect.floating(velocity=velocity, x0=x0, eps=eps)
    expect.alike(velocity=velocity, x0=x0, eps=eps)
    wide = loss_dtype(velocity)
    return diffusion_loss(velocity, eps.to(wide) - x0.to(wide), weight)


def logit_normal_times(
    count: int,
    *,
    mean: float = 0.0,
    std: float = 1.0,
    generator: torch.Generator | None = None,
) -> Float[Tensor, " B"]:
    """t = sigmoid(mean + std Φ⁻¹(u)),   u uniform: one in each of `count` equal slices, rising.

    A larger mean is more noise. They are the generator's device's.

    Source: Esser et al. 2024, equation 19 with m and s; the slices are not in the paper.
    Derived: —
    """
    expect.count(count=count)
    expect.finite(mean=mean, std=std)
    expect.above(0, std=std)
    device = getattr(generator, "device", "cpu")
    u = torch.rand(count, generator=generator, dtype=torch.float64, device=device)
    u = (torch.arange(count, device=device) + u) / count
    return torch.sigmoid(mean + std * torch.special.ndtri(u)).to(torch.get_default_dtype())
