"""Two-dimensional densities that can be sampled, evaluated and looked at: every claim has a truth.

Each function returns a Density. All fit into the square [−3.5, 3.5]², outside of which lies less
than 1e-9 of the mass.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

HALF_WIDTH = 3.5


@dataclass(frozen=True, kw_only=True)
class Density:
    """A known density p on the plane.

    Attributes:
        name: for titles.
        sampler: from (num_samples, generator) to points.
        log_density: from points to log p in nats.
    """

    name: str
    sampler: Callable[[int, torch.Generator], Tensor]
    log_density: Callable[[Tensor], Tensor]

    def sample(self, num_samples: int, generator: torch.Generator) -> Float[Tensor, "N 2"]:
        """Draw independent points.

        Args:
            num_samples: N, at least 1.
            generator: the only source of randomness.

        Returns:
            (N, 2) points in float32.

        Raises:
            ValueError: num_samples is below 1.
        """
        if num_samples < 1:
            raise ValueError(f"expected num_samples >= 1, got {num_samples}")
        return self.sampler(num_samples, generator).float()

    def log_prob(self, points: Float[Tensor, "N 2"]) -> Float[Tensor, " N"]:
        """The logarithm of the density, in nats.

        Args:
            points: (N, 2) places on the plane.

        Returns:
            (N,) log p, −∞ where the density is zero; of the points' dtype.

        Raises:
            ValueError: the points are not of shape (N, 2).
        """
        if points.ndim != 2 or points.shape[1] != 2:
            raise ValueError(f"expected points of shape (N, 2), got {tuple(points.shape)}")
        return self.log_density(points.double()).to(points.dtype)

    def entropy(self, num_cells: int = 350) -> float:
        """The differential entropy −∫ p log p, by the midpoint rule, in nats.

        Args:
            num_cells: cells along each side of the square; a multiple of 14 puts the checkerboard's
                edges on cell edges, where the rule is exact.

        Returns:
            The entropy; it may be negative.
        """
        points, area = grid(num_cells)
        log_p = self.log_prob(points)
        return float(-torch.xlogy(log_p.exp(), log_p.exp()).sum() * area)


def grid(num_cells: int) -> tuple[Float[Tensor, "N 2"], float]:
    """Midpoints of a regular grid over the square [−3.5, 3.5]², for integrals and pictures.

    Args:
        num_cells: cells along each side, n; at least 1.

    Returns:
        (n², 2) points in float64, rows from bottom to top, and the area of one cell.

    Raises:
        ValueError: num_cells is below 1.
    """
    if num_cells < 1:
        raise ValueError(f"expected num_cells >= 1, got {num_cells}")
    width = 2 * HALF_WIDTH / num_cells
    ticks = -HALF_WIDTH + width * (torch.arange(num_cells, dtype=torch.float64) + 0.5)
    y, x = torch.meshgrid(ticks, ticks, indexing="ij")
    return torch.stack([x.flatten(), y.flatten()], dim=1), width**2


def mixture(num_modes: int = 8, *, radius: float = 2.0, sigma: float = 0.2) -> Density:
    """Equal round Gaussians on a circle: p(x) = 1/K Σ_k N(x; c_k, σ² I).

    Args:
        num_modes: K, at least 1.
        radius: of the circle on which the centres c_k lie.
        sigma: standard deviation of each mode along each axis; radius + 6 sigma fits the square.

    Returns:
        The density.

    Raises:
        ValueError: a number is out of range.
    """
    _require_fit(num_modes >= 1 and sigma > 0, radius, sigma, f"num_modes {num_modes}")
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
    """Rings with a folded-normal radius: r = |R_k + σ ε|, at a uniform angle.

    p(x) = 1/K Σ_k [N(r; R_k, σ²) + N(−r; R_k, σ²)] / (2πr) with r = |x|.

    Args:
        radii: R_k, one a ring, each equally likely.
        sigma: standard deviation of the radius; max radius + 6 sigma fits the square.

    Returns:
        The density.

    Raises:
        ValueError: a number is out of range.
    """
    enough = len(radii) > 0 and min(radii, default=0) > 0 and sigma > 0
    _require_fit(enough, max(radii, default=0), sigma, f"radii {radii}")
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
    """Two interleaved half circles of radius 1.5, blurred by round Gaussian noise.

    p(x) = ½ Σ_m 1/π ∫₀^π N(x; c_m(θ), σ² I) dθ; the integral is evaluated by Gauss–Legendre
    quadrature with 160 nodes, to about 12 digits for the sigmas allowed.

    Args:
        sigma: standard deviation of the noise along each axis, from 0.05 to 0.2.

    Returns:
        The density.

    Raises:
        ValueError: sigma is out of range.
    """
    if not 0.05 <= sigma <= 0.2:
        raise ValueError(f"expected sigma from 0.05 to 0.2, got {sigma}")

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
        def chunk(part: Tensor) -> Tensor:
            square = torch.cdist(part, path, compute_mode="donot_use_mm_for_euclid_dist").square()
            return (log_weight - square / (2 * sigma**2)).logsumexp(1)

        values = [chunk(part) for part in x.split(16384)]
        return torch.cat(values) - math.log(2 * math.pi * sigma**2)

    return Density(name="two moons", sampler=sampler, log_density=log_density)


def checkerboard() -> Density:
    """Uniform on the eight dark unit cells of a 4 × 4 board over [−2, 2]²: p = 1/8 there, else 0.

    Its entropy is log 8.

    Returns:
        The density.
    """

    def sampler(num_samples: int, generator: torch.Generator) -> Tensor:
        column = torch.randint(4, (num_samples,), generator=generator)
        row = 2 * torch.randint(2, (num_samples,), generator=generator) + column % 2
        corner = torch.stack([column, row], dim=1) - 2
        return corner + torch.rand(num_samples, 2, generator=generator, dtype=torch.float64)

    def log_density(x: Tensor) -> Tensor:
        cell = x.floor()
        dark = (cell.sum(1) % 2 == 0) & ((cell >= -2) & (cell < 2)).all(1)
        return torch.where(dark, x.new_tensor(-math.log(8)), x.new_tensor(-math.inf))

    return Density(name="checkerboard", sampler=sampler, log_density=log_density)


def _normal(num_samples: int, dims: int, generator: torch.Generator) -> Tensor:
    return torch.randn(num_samples, dims, generator=generator, dtype=torch.float64)


def _require_fit(enough: bool, radius: float, sigma: float, what: str) -> None:
    if not (enough and radius >= 0 and radius + 6 * sigma <= HALF_WIDTH):
        raise ValueError(
            f"expected at least one mode, sigma > 0 and radius + 6 sigma <= {HALF_WIDTH}, "
            f"got {what}, radius {radius}, sigma {sigma}"
        )
