"""Two-dimensional densities that can be sampled, evaluated and looked at: every claim has a truth.

Each function returns a Density. All fit into the square [−3.5, 3.5]², outside of which lies less
than 1e-9 of the mass: radius + 6 sigma ≤ 3.5. Entropies and log p are in nats.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from aigc_lib import expect

HALF_WIDTH = 3.5
Points = Float[Tensor, "N 2"]


@dataclass(frozen=True, kw_only=True)
class Density:
    """A known density p on the plane."""

    name: str  # for titles
    sampler: Callable[[int, torch.Generator], Tensor]
    log_density: Callable[[Tensor], Tensor]

    def sample(self, num_samples: int, generator: torch.Generator) -> Points:
        """x_1, …, x_N ~ p, independent, in float32; the generator is the only randomness."""
        expect.at_least(1, num_samples=num_samples)
        return self.sampler(num_samples, generator).float()

    def log_prob(self, points: Points) -> Float[Tensor, " N"]:
        """log p(x), −∞ where p is zero; reckoned in float64 on the CPU, given as the points are."""
        expect.shaped((None, 2), points=points)
        return self.log_density(points.cpu().double()).to(points)

    def entropy(self, num_cells: int = 350) -> float:
        """−∫ p log p, by the midpoint rule on num_cells² cells; it may be negative.

        A multiple of 14 puts the checkerboard's edges on cell edges, where the rule is exact.
        """
        points, area = grid(num_cells)
        log_p = self.log_prob(points)
        return float(-torch.xlogy(log_p.exp(), log_p.exp()).sum() * area)


def grid(num_cells: int) -> tuple[Points, float]:
    """Midpoints of num_cells² cells of the square [−3.5, 3.5]², and the area of one cell.

    In float64, rows from bottom to top, for integrals and pictures.
    """
    expect.at_least(1, num_cells=num_cells)
    width = 2 * HALF_WIDTH / num_cells
    ticks = -HALF_WIDTH + width * (torch.arange(num_cells, dtype=torch.float64) + 0.5)
    y, x = torch.meshgrid(ticks, ticks, indexing="ij")
    return torch.stack([x.flatten(), y.flatten()], dim=1), width**2


def mixture(num_modes: int = 8, *, radius: float = 2.0, sigma: float = 0.2) -> Density:
    """p(x) = 1/K Σ_k N(x; c_k, σ² I), the K = num_modes centres c_k evenly on a circle."""
    expect.at_least(1, num_modes=num_modes)
    expect.at_least(0, radius=radius)
    _check_fit(radius, sigma)
    angles = 2 * math.pi * torch.arange(num_modes, dtype=torch.float64) / num_modes
    centres = radius * torch.stack([angles.cos(), angles.sin()], dim=1)

    def sampler(num_samples: int, generator: torch.Generator) -> Tensor:
        mode = torch.randint(num_modes, (num_samples,), generator=generator)
        return centres[mode] + sigma * _normal(num_samples, 2, generator)

    def log_density(x: Tensor) -> Tensor:
        square = (x[:, None] - centres).square().sum(2)
        parts = -square / (2 * sigma**2) - math.log(2 * math.pi * sigma**2 * num_modes)
        return parts.logsumexp(1)

    return Density(name=f"{num_modes} Gaussians", sampler=sampler, log_density=log_density)


def rings(radii: tuple[float, ...] = (1.0, 2.0), *, sigma: float = 0.1) -> Density:
    """p(x) = 1/K Σ_k [N(r; R_k, σ²) + N(−r; R_k, σ²)] / (2πr) with r = |x|.

    Rings with a folded-normal radius, r = |R_k + σ ε|, at a uniform angle.
    """
    whole = len(radii) > 0 and all(radius > 0 for radius in radii)
    expect.that(whole, "one or more radii > 0", radii)
    _check_fit(max(radii), sigma)
    centres = torch.tensor(radii, dtype=torch.float64)

    def sampler(num_samples: int, generator: torch.Generator) -> Tensor:
        ring = torch.randint(len(radii), (num_samples,), generator=generator)
        r = (centres[ring] + sigma * _normal(num_samples, 1, generator)[:, 0]).abs()
        angle = 2 * math.pi * torch.rand(num_samples, generator=generator, dtype=torch.float64)
        return torch.stack([r * angle.cos(), r * angle.sin()], dim=1)

    def log_density(x: Tensor) -> Tensor:
        r = x.norm(dim=1, keepdim=True).clamp_min(torch.finfo(x.dtype).tiny)
        signed = torch.stack([r, -r], dim=2)
        parts = -((signed - centres[:, None]) ** 2) / (2 * sigma**2)
        constant = 0.5 * math.log(2 * math.pi * sigma**2) + math.log(len(radii))
        return parts.flatten(1).logsumexp(1) - constant - (2 * math.pi * r[:, 0]).log()

    return Density(name=f"{len(radii)} rings", sampler=sampler, log_density=log_density)


def moons(*, sigma: float = 0.15) -> Density:
    """p(x) = ½ Σ_m 1/π ∫₀^π N(x; c_m(θ), σ² I) dθ: two interleaved half circles of radius 1.5.

    The integral is evaluated by Gauss–Legendre quadrature with 160 nodes, to about 12 digits for
    the sigmas allowed, 0.05 to 0.2.
    """
    expect.between(0.05, 0.2, sigma=sigma)

    def centre(theta: Tensor, lower: Tensor) -> Tensor:
        sign = 1 - 2 * lower
        x = 1.5 * sign * theta.cos() - 0.75 * sign
        y = 1.5 * sign * theta.sin() - 0.375 * sign
        return torch.stack([x, y], dim=-1)

    nodes, weights = np.polynomial.legendre.leggauss(160)
    theta = torch.from_numpy((nodes + 1) * math.pi / 2).repeat(2)
    log_weight = torch.from_numpy(np.log(weights / 4)).repeat(2)
    path = centre(theta, torch.arange(2).repeat_interleave(160))

    def sampler(num_samples: int, generator: torch.Generator) -> Tensor:
        lower = torch.randint(2, (num_samples,), generator=generator)
        angle = math.pi * torch.rand(num_samples, generator=generator, dtype=torch.float64)
        return centre(angle, lower) + sigma * _normal(num_samples, 2, generator)

    def log_density(x: Tensor) -> Tensor:
        values = []
        for part in x.split(16384):  # All nodes for all points at once would fill the memory.
            square = torch.cdist(part, path, compute_mode="donot_use_mm_for_euclid_dist").square()
            values.append((log_weight - square / (2 * sigma**2)).logsumexp(1))
        return torch.cat(values) - math.log(2 * math.pi * sigma**2)

    return Density(name="two moons", sampler=sampler, log_density=log_density)


def checkerboard() -> Density:
    """p = 1/8 on the 8 dark unit cells of a 4 × 4 board over [−2, 2]², else 0; entropy log 8."""

    def sampler(num_samples: int, generator: torch.Generator) -> Tensor:
        column = torch.randint(4, (num_samples,), generator=generator)
        row = 2 * torch.randint(2, (num_samples,), generator=generator) + column % 2
        corner = torch.stack([column, row], dim=1) - 2
        inside = torch.rand(num_samples, 2, generator=generator, dtype=torch.float64)
        return corner + inside.clamp(max=1 - 2.0**-20)  # else float32 may round into the next cell

    def log_density(x: Tensor) -> Tensor:
        cell = x.floor()
        dark = (cell.sum(1) % 2 == 0) & ((cell >= -2) & (cell < 2)).all(1)
        return torch.where(dark, x.new_tensor(-math.log(8)), x.new_tensor(-math.inf))

    return Density(name="checkerboard", sampler=sampler, log_density=log_density)


def _normal(num_samples: int, dims: int, generator: torch.Generator) -> Tensor:
    return torch.randn(num_samples, dims, generator=generator, dtype=torch.float64)


def _check_fit(radius: float, sigma: float) -> None:
    expect.above(0, sigma=sigma)
    fits = radius + 6 * sigma <= HALF_WIDTH
    expect.that(fits, f"radius + 6 sigma <= {HALF_WIDTH}", f"radius {radius}, sigma {sigma}")
