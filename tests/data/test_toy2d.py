import functools
import math

import pretend
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
CELLS = 210  # A multiple of 14 puts the checkerboard's edges on cell edges.


@functools.cache
def mass(density):
    points, area = toy2d.grid(CELLS)
    return density.log_prob(points).exp() * area


@every
def test_the_density_integrates_to_one(density):
    assert mass(density).sum().item() == pytest.approx(1, abs=1e-9)


@every
def test_samples_follow_the_density(density, generator):
    """Counts in cells against the integral of the density over each cell, in standard errors."""
    num, cells = 40_000, 14
    share = mass(density).reshape(cells, CELLS // cells, cells, CELLS // cells).sum((1, 3))
    x = density.sample(num, generator)
    assert x.shape == (num, 2)
    assert x.dtype == torch.float32
    assert x.abs().max() < toy2d.HALF_WIDTH
    column, row = ((x + toy2d.HALF_WIDTH) * cells / (2 * toy2d.HALF_WIDTH)).long().T
    counts = torch.zeros(cells * cells).index_add(0, row * cells + column, torch.ones(num))
    expected = num * share.flatten()
    chi_square = ((counts - expected) ** 2 / expected.clamp_min(1e-3))[expected > 5].sum()
    freedom = int((expected > 5).sum()) - 1
    assert chi_square < freedom + 5 * math.sqrt(2 * freedom)
    assert counts[expected < 1e-3].sum() == 0


@every
def test_the_mean_log_density_of_samples_is_minus_the_entropy(density, generator):
    log_p = density.log_prob(density.sample(20_000, generator).double())
    error = 4 * float(log_p.std()) / math.sqrt(20_000) + 1e-6
    assert -float(log_p.mean()) == pytest.approx(density.entropy(CELLS), abs=error)


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


def test_a_ring_as_wide_as_its_radius_is_folded_over_the_origin(generator):
    """∫ p(r) 2πr dr along a ray, to each of some radii, against the share of samples within."""
    ring = toy2d.rings((0.3,), sigma=0.5)
    r = (torch.arange(35_000, dtype=torch.float64) + 0.5) / 10_000
    density = ring.log_prob(torch.stack([r, 0 * r], 1)).exp() * 2 * math.pi * r / 10_000
    assert density.sum().item() == pytest.approx(1, abs=1e-8)
    drawn = ring.sample(40_000, generator).norm(dim=1)
    for radius in (0.1, 0.3, 0.6, 1.0):
        share = density[r < radius].sum().item()
        error = 4 * math.sqrt(share * (1 - share) / len(drawn))
        assert (drawn < radius).double().mean().item() == pytest.approx(share, abs=error)


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
    ("make", "name"),
    [
        (lambda: toy2d.mixture(0), "num_modes"),
        (lambda: toy2d.mixture(sigma=-1.0), "sigma"),
        (lambda: toy2d.mixture(radius=-0.1), "radius"),
        (lambda: toy2d.mixture(radius=3.4), r"radius \+ 6 sigma"),
        (lambda: toy2d.rings(()), "radii"),
        (lambda: toy2d.rings((1.0, 0.0)), "radii"),
        (lambda: toy2d.rings(sigma=0.0), "sigma"),
        (lambda: toy2d.rings((1.0, 3.0)), r"radius \+ 6 sigma"),
        (lambda: toy2d.moons(sigma=0.5), "sigma"),
        (lambda: toy2d.grid(0), "num_cells"),
        (lambda: toy2d.moons().sample(0, torch.Generator()), "num_samples"),
        (lambda: toy2d.moons().log_prob(torch.zeros(3)), "points"),
        (lambda: toy2d.moons().log_prob(torch.zeros(3, 3)), "points"),
    ],
)
def test_bad_input_is_named(hook_off, make, name):
    with pytest.raises(ValueError, match=f"expected .*{name}"):
        make()


def test_no_point_of_the_board_is_rounded_out_of_its_cell(monkeypatch):
    largest = torch.full((1,), 1 - 2.0**-53, dtype=torch.float64)
    monkeypatch.setattr(torch, "rand", lambda *shape, **_: largest.expand(shape))
    board = toy2d.checkerboard()
    points = board.sample(64, torch.Generator().manual_seed(0))
    assert torch.allclose(board.log_prob(points), torch.tensor(-math.log(8)))


@pytest.mark.parametrize("density", [toy2d.mixture(), toy2d.rings(), toy2d.checkerboard()])
def test_points_on_a_device_without_float64_have_their_densities(density, generator):
    points = density.sample(50, generator)
    with pretend.Mps() as mps:
        got = density.log_prob(mps.put(points))
        assert got.device == pretend.MPS
        assert torch.equal(got.cpu(), density.log_prob(points))
