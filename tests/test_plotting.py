import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

from aigc_lib import plotting
from aigc_lib.data import toy2d


@pytest.fixture(autouse=True)
def _canvas():
    mpl.use("agg")
    with mpl.rc_context():
        yield
    plt.close("all")


def test_the_style_is_opaque_and_uses_the_palette():
    plotting.use_style()
    assert plt.rcParams["figure.facecolor"] == "white"
    assert plt.rcParams["axes.prop_cycle"].by_key()["color"] == list(plotting.PALETTE.values())


def test_palette_colours_stay_apart():
    rgb = np.array([mpl.colors.to_rgb(c) for c in plotting.PALETTE.values()])
    distance = np.linalg.norm(rgb[:, None] - rgb, axis=2) + np.eye(len(rgb))
    assert distance.min() > 0.25


def test_density_is_drawn_upright():
    """The top half of the plane is the top of the picture."""
    _, (ax,) = plotting.panels(["density"])
    points, _ = toy2d.grid(10)
    plotting.density(ax, lambda x: torch.where(x[:, 1] > 0, 0.0, -50.0), points)
    picture = ax.images[0]
    assert picture.origin == "lower"
    assert picture.get_array()[5:].min() > picture.get_array()[:5].max()
    assert ax.get_xlabel() == "$x_1$"
    assert ax.get_ylabel() == "$x_2$"


def test_scatter_draws_every_point_on_its_axis():
    _, (ax,) = plotting.panels(["points"])
    plotting.scatter(ax, torch.tensor([[1.0, 2.0], [3.0, -1.0]]), half_width=3.5, color="sky")
    assert ax.get_xlim() == ax.get_ylim() == (-3.5, 3.5)
    assert ax.lines[0].get_color() == plotting.PALETTE["sky"]
    assert ax.lines[0].get_xdata().tolist() == [1, 3]
    assert ax.lines[0].get_ydata().tolist() == [2, -1]


def test_curve_averages_whole_windows():
    _, (ax,) = plotting.panels(["curve"])
    plotting.curve(ax, [1.0, 3.0, 5.0, 7.0, 9.0], label="loss", color="blue", smooth=2)
    assert ax.lines[0].get_ydata().tolist() == [2, 6]
    assert ax.lines[0].get_xdata().tolist() == [1, 3]


def test_images_stand_row_by_row_and_upright():
    _, (ax,) = plotting.panels(["images"])
    pixels = torch.arange(6 * 2 * 3).reshape(6, 1, 2, 3) / 36
    plotting.images(ax, pixels, columns=3)
    picture = ax.images[0].get_array()
    assert picture.shape == (2 * 4, 3 * 5)
    for i, image in enumerate(pixels[:, 0]):
        y, x = i // 3 * 4 + 1, i % 3 * 5 + 1
        assert np.allclose(picture[y : y + 2, x : x + 3], image)
    assert ax.images[0].origin == "upper"
    assert ax.images[0].get_clim() == (0, 1)


def test_panels_stand_row_by_row_in_the_size_asked_for():
    figure, axes = plotting.panels(["a", "b", "c", "d", "e", "f"], rows=2, width=2, height=1.5)
    assert [ax.get_title() for ax in axes] == ["a", "b", "c", "d", "e", "f"]
    places = [ax.get_subplotspec() for ax in axes]
    assert [(p.rowspan.start, p.colspan.start) for p in places[::3]] == [(0, 0), (1, 0)]
    assert figure.get_size_inches().tolist() == [6, 3]


def test_a_density_is_drawn_to_scale():
    _, (ax,) = plotting.panels(["density"])
    points, _ = toy2d.grid(4)
    plotting.density(ax, lambda x: x[:, 0].log().nan_to_num(-9.0), points, vmax=5.0)
    picture = ax.images[0]
    assert picture.get_clim() == (0, 5)
    right = points[:, 0].reshape(4, 4)[:, -1].exp().log().double()
    assert np.allclose(picture.get_array()[:, -1], right)
    low, high = points.min().item(), points.max().item()
    assert picture.get_extent() == [low, high, low, high]
    assert ax.get_aspect() == 1


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda ax: plotting.panels(["a", "b", "c"], rows=2), "rows"),
        (lambda ax: plotting.panels(["a"], rows=0), "rows"),
        (lambda ax: plotting.panels([]), "rows"),
        (lambda ax: plotting.curve(ax, [1.0], label="", color="blue", smooth=2), "smooth"),
        (lambda ax: plotting.curve(ax, [1.0], label="", color="blue", smooth=0), "smooth"),
        (lambda ax: plotting.images(ax, torch.zeros(4, 3), columns=2), "pixels"),
        (lambda ax: plotting.images(ax, torch.zeros(4, 3, 2, 2), columns=2), "pixels"),
        (lambda ax: plotting.images(ax, torch.zeros(4, 1, 2, 2), columns=3), "columns"),
        (lambda ax: plotting.images(ax, torch.zeros(4, 1, 2, 2), columns=0), "columns"),
        (lambda ax: plotting.images(ax, torch.zeros(0, 1, 2, 2), columns=1), "columns"),
    ],
)
def test_bad_input_is_named(call, name):
    _, (ax,) = plotting.panels(["panel"])
    with pytest.raises(ValueError, match=f"expected.* {name}"):
        call(ax)
