import math

import pytest
import torch

from aigc_lib.data import toy2d

DENSITIES = [
    toy2d.mixture(),
    toy2d.mixture(1, radius=0.0, sigma=0.5),
    toy2d.rings(),
    toy2d.moons(),
    toy2d.moons(sigma=0.05),
    toy2d.checkerboard(),
]
every = pytest.mark.parametrize("density", DENSITIES, ids=lambda d: d.name)


@every
def test_the_density_integrates_to_one(density):
    points, area = toy2d.grid(350)
    assert float(density.log_prob(points).exp().sum() * area) == pytest.approx(1, abs=1e-9)


@every
def test_samples_follow_the_density(density, generator):
    """Counts in cells against the integral of the density over each cell, in standard errors."""
    num, cells = 40_000, 14
    points, area = toy2d.grid(350)
    mass = (density.log_prob(points).exp() * area).reshape(cells, 25, cells, 25).sum((1, 3))
    x = density.sample(num, generator)
    assert x.shape == (num, 2)
    assert x.dtype == torch.float32
    assert x.abs().max() < toy2d.HALF_WIDTH
    column, row = ((x + toy2d.HALF_WIDTH) * cells / (2 * toy2d.HALF_WIDTH)).long().T
    counts = torch.zeros(cells * cells).index_add(0, row * cells + column, torch.ones(num))
    expected = num * mass.flatten()
    chi_square = ((counts - expected) ** 2 / expected.clamp_min(1e-3))[expected > 5].sum()
    freedom = int((expected > 5).sum()) - 1
    assert chi_square < freedom + 5 * math.sqrt(2 * freedom)
    assert counts[expected < 1e-3].sum() == 0


@every
def test_the_mean_log_density_of_samples_is_minus_the_entropy(density, generator):
    log_p = density.log_prob(density.sample(20_000, generator).double())
    error = 4 * float(log_p.std()) / math.sqrt(20_000) + 1e-6
    assert -float(log_p.mean()) == pytest.approx(density.entropy(), abs=error)


@every
def test_a_seed_gives_the_same_points(density):
    first, again, other = (
        density.sample(8, torch.Generator().manual_seed(seed)) for seed in (3, 3, 4)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@every
def test_log_prob_keeps_the_dtype(density):
    points = torch.zeros(3, 2)
    assert density.log_prob(points).dtype == torch.float32
    assert density.log_prob(points.double()).dtype == torch.float64


def test_known_entropies():
    one = toy2d.mixture(1, radius=0.0, sigma=0.5)
    assert one.entropy() == pytest.approx(math.log(2 * math.pi * math.e * 0.25), abs=1e-9)
    apart = toy2d.mixture(2, radius=2.0, sigma=0.1)
    assert apart.entropy() == pytest.approx(
        math.log(2) + math.log(2 * math.pi * math.e * 0.01), abs=1e-9
    )
    assert toy2d.checkerboard().entropy() == pytest.approx(math.log(8), abs=1e-12)


def test_an_entropy_may_be_negative():
    assert toy2d.mixture(1, radius=0.0, sigma=0.1).entropy() < 0


def test_moons_agree_with_a_brute_force_integral():
    theta = (torch.arange(20_000, dtype=torch.float64) + 0.5) * math.pi / 20_000
    upper = torch.stack([1.5 * theta.cos() - 0.75, 1.5 * theta.sin() - 0.375], dim=1)
    path = torch.cat([upper, -upper])
    x = torch.tensor([[0.0, 0.0], [-0.75, 1.125], [1.0, -1.5], [3.0, 3.0]], dtype=torch.float64)
    kernel = -(x[:, None] - path).square().sum(2) / (2 * 0.15**2)
    expected = kernel.logsumexp(1) - math.log(40_000) - math.log(2 * math.pi * 0.15**2)
    assert toy2d.moons().log_prob(x).tolist() == pytest.approx(expected.tolist(), rel=1e-6)


def test_checkerboard_is_zero_on_the_light_cells():
    p = toy2d.checkerboard()
    dark, light = torch.tensor([[-1.5, -1.5], [0.5, 0.5]]), torch.tensor([[-0.5, 0.5], [2.5, 0.5]])
    assert p.log_prob(dark).tolist() == pytest.approx([-math.log(8)] * 2)
    assert p.log_prob(light).tolist() == [-math.inf] * 2


def test_grid_covers_the_square_from_bottom_to_top():
    points, area = toy2d.grid(2)
    assert points.tolist() == [[-1.75, -1.75], [1.75, -1.75], [-1.75, 1.75], [1.75, 1.75]]
    assert area == 3.5**2


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: toy2d.mixture(0), "got num_modes 0"),
        (lambda: toy2d.mixture(sigma=-1.0), r"sigma -1\.0"),
        (lambda: toy2d.mixture(radius=3.4), r"radius \+ 6 sigma <= 3\.5"),
        (lambda: toy2d.rings(()), r"radii \(\)"),
        (lambda: toy2d.rings((0.0,)), r"radii \(0\.0,\)"),
        (lambda: toy2d.moons(sigma=0.5), r"expected sigma from 0\.05 to 0\.2, got 0\.5"),
        (lambda: toy2d.grid(0), "expected num_cells >= 1, got 0"),
        (lambda: toy2d.moons().sample(0, torch.Generator()), "expected num_samples >= 1, got 0"),
        (lambda: toy2d.moons().log_prob(torch.zeros(3)), r"shape \(N, 2\), got \(3,\)"),
    ],
)
def test_bad_input_is_named(hook_off, make, message):
    with pytest.raises(ValueError, match=message):
        make()
