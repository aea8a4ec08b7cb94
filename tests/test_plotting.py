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


def test_images_in_colour_stand_as_grey_ones_do():
    _, (grey, colour) = plotting.panels(["grey", "colour"])
    pixels = torch.rand(6, 3, 2, 2)
    plotting.images(colour, pixels, columns=3)
    picture = colour.images[0].get_array()
    for channel in range(3):
        plotting.images(grey, pixels[:, channel : channel + 1], columns=3)
        assert (picture[..., channel] == grey.images[-1].get_array()).all()


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
        (lambda ax: plotting.images(ax, torch.zeros(4, 2, 2, 2), columns=2), "channels"),
        (lambda ax: plotting.images(ax, torch.zeros(4, 1, 2, 2), columns=3), "columns"),
        (lambda ax: plotting.images(ax, torch.zeros(4, 1, 2, 2), columns=0), "columns"),
        (lambda ax: plotting.images(ax, torch.zeros(0, 1, 2, 2), columns=1), "columns"),
    ],
)
def test_bad_input_is_named(call, name):
    _, (ax,) = plotting.panels(["panel"])
    with pytest.raises(ValueError, match=f"expected.* {name}"):
        call(ax)


# Pictures


@pytest.fixture
def picture():
    """An empty canvas of 6 by 3 inches."""
    return plotting.canvas(6, 3)[1]


def words(ax):
    return {text.get_text(): text.get_position() for text in ax.texts if text.get_text()}


def test_a_canvas_is_measured_in_inches(picture):
    picture.figure.canvas.draw()
    corners = picture.transData.transform([(0, 0), (6, 3)]) / picture.figure.dpi
    np.testing.assert_allclose(corners, [(0, 0), (6, 3)], atol=1e-6)


def test_a_tensor_stands_around_its_place_with_its_first_row_on_top(picture):
    values = torch.tensor([[1.0, -2.0, 3.0], [4.0, 5.0, 6.0]])
    part = plotting.tensor(
        picture, values, (3, 1), name="Q", rows="T", columns="K", cell=0.5, digits=1
    )
    np.testing.assert_allclose(part, [(2.25, 1), (3.75, 1), (3, 1.5), (3, 0.5)])
    said = words(picture)
    assert said["1.0"] == pytest.approx((2.5, 1.25))
    assert said["\N{MINUS SIGN}2.0"] == pytest.approx((3.0, 1.25))
    assert said["6.0"] == pytest.approx((3.5, 0.75))
    assert said["Q"][1] > 1.5
    assert said["T"][0] < 2.25
    assert said["K"][1] < 0.5
    (mesh,) = picture.collections
    assert mesh.get_array().ravel().tolist() == [1, -2, 3, 4, 5, 6]


def test_colours_of_a_tensor_tell_signs_and_size(picture):
    plotting.tensor(picture, torch.tensor([[0.0, 2.0]]), (1, 1))
    plotting.tensor(picture, torch.tensor([[-1.0, 0.0, 1.0]]), (1, 2), most=2)
    plotting.tensor(picture, torch.zeros(1, 2), (3, 2))
    positive, signed, zero = (mesh.to_rgba(mesh.get_array()) for mesh in picture.collections)
    white, blue = positive.reshape(-1, 4)[:, :3]
    assert white.min() > 0.95
    assert blue[2] > blue[0]
    minus, middle, plus = signed.reshape(-1, 4)[:, :3]
    assert minus[2] > minus[0]
    assert plus[0] > plus[2]
    assert middle.min() > 0.95
    assert minus.mean() > 0.5  # half of `most` is half as dark
    assert zero[..., :3].min() > 0.95
    with pytest.raises(ValueError, match="values"):
        plotting.tensor(picture, torch.zeros(3), (1, 1))


def test_boxes_and_operations_give_the_middles_of_their_sides(picture):
    box = plotting.box(picture, "block", (2, 1), size=(1, 0.5), color="green")
    np.testing.assert_allclose(box, [(1.5, 1), (2.5, 1), (2, 1.25), (2, 0.75)])
    circle = plotting.operation(picture, "+", (4, 1), radius=0.2)
    np.testing.assert_allclose(circle, [(3.8, 1), (4.2, 1), (4, 1.2), (4, 0.8)])
    assert words(picture) == {"block": (2, 1), "+": (4, 1)}


@pytest.mark.parametrize(
    ("end", "bend", "place"),
    [((3, 1), 0, (2, 1.13)), ((1, 3), 0, (1.08, 2)), ((3, 1), 0.5, (2, 0.63))],
)
def test_an_arrow_ends_where_it_should_and_its_words_stand_beside_it(picture, end, bend, place):
    plotting.arrow(picture, (1, 1), end, text="x", bend=bend, color="vermilion")
    (arrow,) = picture.patches
    assert words(picture)["x"] == pytest.approx(place)
    drawn = arrow.get_extents().transformed(picture.transData.inverted())
    np.testing.assert_allclose((drawn.x1, drawn.y1), np.maximum((1, 1), end), atol=0.2)
    assert (drawn.y0 < 0.9) == bool(bend)  # to the right of the way


def test_a_brace_points_to_the_right_of_its_way(picture):
    plotting.brace(picture, (1, 1), (3, 1), "below")
    plotting.brace(picture, (5, 2), (5, 1), "left")
    below, left = (patch.get_path().vertices for patch in picture.patches)
    assert below[[0, -1]].tolist() == [[1, 1], [3, 1]]
    assert below[:, 1].min() == below[5, 1] < 1
    assert left[:, 0].min() == left[5, 0] < 5
    said = words(picture)
    assert said["below"][0] == 2
    assert said["below"][1] < below[5, 1]
    assert said["left"][1] == 1.5
    assert said["left"][0] < left[5, 0]


def test_words_stand_where_they_are_put(picture):
    plotting.label(picture, "begins", (1, 2), align="left", size=7, color="0.35")
    (text,) = picture.texts
    assert (text.get_position(), text.get_ha(), text.get_fontsize()) == ((1, 2), "left", 7)


def test_no_decimals_are_not_no_digits(picture):
    plotting.tensor(picture, torch.tensor([[1.0, 2.0]]), (1, 1), digits=0)
    assert list(words(picture)) == ["1", "2"]
    plotting.tensor(picture, torch.tensor([[3.0, 4.0]]), (1, 2))
    assert list(words(picture)) == ["1", "2"]


def test_what_a_brace_sums_up_stands_clear_of_it(picture):
    plotting.brace(picture, (1, 1), (3, 1), "below")
    plotting.brace(picture, (5, 2), (5, 1), "left")
    plotting.brace(picture, (4, 1), (4, 2), "right")
    align = {text.get_text(): text.get_ha() for text in picture.texts}
    assert align == {"below": "center", "left": "right", "right": "left"}


def test_a_short_brace_does_not_cross_itself(picture):
    plotting.brace(picture, (1, 1), (1.1, 1), "short")
    x, y = picture.patches[0].get_path().vertices.T
    assert (np.diff(x) >= -1e-12).all()
    assert (x.min(), x.max()) == pytest.approx((1, 1.1))
    assert y.min() == pytest.approx(0.95)


@pytest.mark.parametrize(("end", "align"), [((3, 1), "center"), ((1, 3), "left"), ((1, 0), "left")])
def test_words_beside_an_upright_arrow_begin_there(picture, end, align):
    plotting.arrow(picture, (1, 1), end, text="x")
    assert picture.texts[0].get_ha() == align


def test_the_head_of_an_arrow_is_at_its_end(picture):
    plotting.arrow(picture, (1, 1), (3, 1))
    (arrow,) = picture.patches
    path = arrow.get_path()
    corners = path.vertices[path.codes != mpl.path.Path.CLOSEPOLY]
    beside = corners[np.abs(corners[:, 1] - 1) > 0.01]  # of the line
    assert len(beside) >= 2
    assert beside[:, 0].min() > 2.8
