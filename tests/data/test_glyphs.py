import ast
import dataclasses
import itertools
import math
import random
from pathlib import Path

import matplotlib.font_manager
import numpy as np
import pytest
import torch
from matplotlib.path import Path as Outline
from matplotlib.transforms import Affine2D
from sklearn.neighbors import KNeighborsClassifier

from aigc_lib.data import glyphs as module
from aigc_lib.data.glyphs import DIGITS, FACES, HELD_OUT_FACES, TRAIN_FACES, binarize, glyphs


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def outline(face, character):
    """matplotlib's own reading of a character, centred, in heights of the face's "0"."""

    def path(text):
        file = Path(matplotlib.get_data_path(), "fonts", "ttf", f"{face}.ttf")
        font = matplotlib.font_manager.get_font(str(file))
        font.set_size(500, 72)
        font.load_char(ord(text), flags=matplotlib.ft2font.LoadFlags.NO_HINTING)
        return Outline(*font.get_path())

    zero, box = path("0").get_extents(), path(character).get_extents()
    x, y = (box.x0 + box.x1) / 2, (box.y0 + box.y1) / 2
    return path(character).transformed(Affine2D().translate(-x, -y).scale(1 / zero.height))


def is_inside(path, points):
    """Inside an odd number of the outline's loops; none of those used here overlap."""
    scale = Affine2D().scale(2000)
    inside = np.zeros(len(points), dtype=bool)
    for polygon in path.transformed(scale).to_polygons(closed_only=True):
        inside ^= Outline(polygon).contains_points(2000 * np.asarray(points))
    return inside


def test_a_master_holds_the_distance_to_the_outline_negative_inside():
    """Point by point in float64, against a fine polygon of the outline and its inside."""
    draw = random.Random(0)
    for face, character in (("DejaVuSans", "8"), ("cmr10", "4"), ("STIXGeneralBolIta", "9")):
        path = outline(face, character)
        scale = Affine2D().scale(2000)
        polygons = [p / 2000 for p in path.transformed(scale).to_polygons(closed_only=True)]
        master, half = module._master(face, character)
        box = path.get_extents()
        assert half == pytest.approx((box.width / 2, box.height / 2), abs=2e-3)
        for _ in range(60):
            row, column = draw.randrange(module._CELLS), draw.randrange(module._CELLS)
            x = module._HALF * ((2 * column + 1) / module._CELLS - 1)
            y = module._HALF * (1 - (2 * row + 1) / module._CELLS)
            want = min(
                math.hypot(x - a[0] - t * (b[0] - a[0]), y - a[1] - t * (b[1] - a[1]))
                for p in polygons
                for a, b in itertools.pairwise(p)
                for t in [along(x, y, a, b)]
            )
            want = -want if is_inside(path, [(x, y)])[0] else want
            assert master[row, column].item() == pytest.approx(want, abs=6e-3)


def along(x, y, a, b):
    """Where on the line from a to b the point nearest to (x, y) lies, from 0 to 1."""
    square = (b[0] - a[0]) ** 2 + (b[1] - a[1]) ** 2
    if square == 0:
        return 0.0
    t = ((x - a[0]) * (b[0] - a[0]) + (y - a[1]) * (b[1] - a[1])) / square
    return min(1.0, max(0.0, t))


@pytest.mark.parametrize("size", [16, 28])
def test_a_pixel_is_the_share_of_it_that_the_warped_outline_covers(size, generator):
    """The warp as a matrix on the outline itself, and 16 × 16 points in each pixel counted."""
    preset = module.Preset(
        upright=False,
        height=(0.6, 0.7),
        rotation=20.0,
        slant=0.3,
        stretch=0.3,
        bolder=(0.0, 0.0),
        shift=0.1,
    )
    ticks = (2 * (torch.arange(16 * size) + 0.5) / (16 * size) - 1).double()
    y, x = torch.meshgrid(-ticks, ticks, indexing="ij")
    points = torch.stack([x, y], 2).reshape(-1, 2)
    for face, character in (("DejaVuSans", "2"), ("DejaVuSerif-Bold", "4"), ("cmti10", "7")):
        master, half = module._master(face, character)
        linear, shift, bolder = module._warps(preset, torch.tensor([half]), size, generator)
        image = module._draw(master[None], linear, shift, bolder, size)[0, 0]
        (a, b), (c, d) = linear[0].tolist()
        # Rows run downwards: the frame's second axis is the outline's, turned over.
        flip = Affine2D().scale(1, -1)
        warp = flip + Affine2D.from_values(a, c, b, d, *shift[0].tolist()) + flip
        inside = is_inside(outline(face, character).transformed(warp), points.numpy())
        share = torch.from_numpy(inside).float().reshape(size, 16, size, 16).mean((1, 3))
        error = (image - share).abs()
        assert error.mean() < 0.01
        assert error.max() < 0.3  # at corners, which a distance rounds


def test_the_warp_turns_slants_stretches_and_resizes_as_its_numbers_say():
    """Each number alone: the box around a point cloud, and what the singular values tell."""
    half = torch.full((400, 2), 0.4)
    plain = {
        "upright": True,
        "height": (0.6, 0.6),
        "rotation": 0.0,
        "slant": 0.0,
        "stretch": 0.0,
        "bolder": (0.0, 0.0),
        "shift": 0.0,
    }

    def warps(**changes):
        return module._warps(module.Preset(**plain | changes), half, 28, seeded(0))

    linear, shift, bolder = warps()
    assert torch.allclose(linear, 1.2 * torch.eye(2).expand(400, 2, 2))
    assert not shift.any()
    assert not bolder.any()
    turned = warps(rotation=15.0)[0]
    angle = torch.atan2(turned[:, 1, 0], turned[:, 0, 0]).rad2deg()
    assert torch.allclose(turned @ turned.mT, 1.44 * torch.eye(2).expand(400, 2, 2), atol=1e-5)
    assert -15 <= angle.min() < -14
    assert 14 < angle.max() <= 15
    slanted = warps(slant=0.2)[0] / 1.2
    assert torch.allclose(slanted[:, [0, 1, 1], [0, 0, 1]], torch.tensor([1.0, 0.0, 1.0]))
    assert 0.19 < slanted[:, 0, 1].abs().max() <= 0.2
    stretched = warps(stretch=0.3)[0]
    ratio = (stretched[:, 0, 0] / stretched[:, 1, 1]).log()
    assert torch.allclose(torch.linalg.det(stretched), torch.tensor(1.44))
    assert 0.28 < ratio.abs().max() <= 0.3001
    # Together: first stretched, then slanted, then turned, each within its own bounds.
    both = warps(rotation=15.0, slant=0.25, stretch=0.3)[0]
    angle = torch.atan2(both[:, 1, 0], both[:, 0, 0])
    back = torch.stack([angle.cos(), angle.sin(), -angle.sin(), angle.cos()], 1).view(-1, 2, 2)
    upright = back @ both
    slant = upright[:, 0, 1] / upright[:, 1, 1]
    assert 14 < angle.rad2deg().abs().max() <= 15
    assert 0.24 < slant.abs().max() <= 0.2501
    heights = warps(height=(0.5, 0.7))[0][:, 0, 0] / 2
    assert 0.5 <= heights.min() < 0.51
    assert 0.69 < heights.max() <= 0.7
    assert 0.09 < warps(shift=0.05)[1].abs().max() <= 0.1
    widths = warps(bolder=(0.01, 0.03))[2]
    assert 0.01 <= widths.min() < 0.011
    assert 0.029 < widths.max() <= 0.03


def test_no_two_draws_of_a_warp_depend_on_each_other():
    half = torch.full((20_000, 2), 0.1)  # so small that nothing has to be shrunk or held back
    linear, shift, bolder = module._warps(module.PRESETS["full"], half, 28, seeded(0))
    height = torch.linalg.det(linear).sqrt()
    angle = torch.atan2(linear[:, 1, 0], linear[:, 0, 0])
    stretch = linear[:, :, 0].norm(dim=1) / height
    cos, sin = angle.cos(), angle.sin()
    slant = (cos * linear[:, 0, 1] + sin * linear[:, 1, 1]) / height * stretch
    draws = torch.stack([height, angle, slant, stretch.log(), bolder, shift[:, 0], shift[:, 1]])
    others = torch.corrcoef(draws) - torch.eye(7)
    assert others.abs().max() < 4.5 / 20_000**0.5


def test_bolder_strokes_have_edges_that_lie_so_much_farther_out():
    master = module._master("DejaVuSans", "1")[0][None]
    linear, still = 1.2 * torch.eye(2)[None], torch.zeros(1, 2)
    size = 64
    widths = [
        module._draw(master, linear, still, torch.tensor([bolder]), size)[0, 0, size // 2].sum()
        for bolder in (0.0, 0.05)
    ]
    assert (widths[1] - widths[0]).item() == pytest.approx(2 * 0.05 * 0.6 * size, abs=0.3)


@pytest.mark.parametrize("preset", module.PRESETS)
@pytest.mark.parametrize("size", [12, 16, 28, 40])
def test_no_stroke_touches_the_border_and_the_paper_is_black(size, preset):
    characters = DIGITS + "ABQWgjy"
    data = glyphs(600, seeded(1), size=size, preset=preset, split="all", characters=characters)
    x = data.images
    assert x.shape == (600, 1, size, size)
    assert x.dtype == torch.float32
    border = torch.cat([x[:, 0, 0], x[:, 0, -1], x[:, 0, :, 0], x[:, 0, :, -1]], 1)
    assert border.max() == 0
    assert x.min() == 0
    assert (x.amax((1, 2, 3)) > 0.5).all()
    ink = x.mean((1, 2, 3))
    assert ink.min() > 0.02
    assert ink.max() < 0.45
    assert 0.1 < ink.mean() < 0.25


def test_the_middle_of_the_ink_is_near_the_middle_of_the_image():
    x = glyphs(500, seeded(0)).images[:, 0]
    ticks = torch.linspace(-0.5, 0.5, 28)
    for axis in (1, 2):
        place = (x.sum(3 - axis) * ticks).sum(1) / x.sum((1, 2))
        assert place.abs().max() < 0.2
        assert place.mean().abs() < 0.03


def test_the_generator_is_the_only_randomness_and_chunks_do_not_matter(monkeypatch):
    first = glyphs(70, seeded(3), size=16)
    torch.manual_seed(9)
    monkeypatch.setattr(module, "_CHUNK", 32)
    again = glyphs(70, seeded(3), size=16)
    other = glyphs(70, seeded(4), size=16)
    assert first.labels.equal(again.labels)
    assert first.faces.equal(again.faces)
    assert torch.allclose(first.images, again.images, atol=1e-6)
    assert not first.labels.equal(other.labels)
    assert not torch.allclose(first.images, other.images)
    draw = seeded(3)
    assert not glyphs(70, draw, size=16).labels.equal(glyphs(70, draw, size=16).labels)


def test_labels_and_faces_do_not_depend_on_the_size_of_the_images():
    small, large = (glyphs(50, seeded(5), size=size) for size in (16, 28))
    assert small.labels.equal(large.labels)
    assert small.faces.equal(large.faces)


def test_each_character_and_each_face_is_equally_likely():
    data = glyphs(4800, seeded(0), size=12)
    for values, number in ((data.labels, 10), (data.faces, len(TRAIN_FACES))):
        counts = values.bincount(minlength=number)
        assert len(counts) == number
        expected = 4800 / number
        assert ((counts - expected).abs() < 4.5 * expected**0.5).all()
    table = torch.zeros(10, len(TRAIN_FACES)).index_put(
        (data.labels, data.faces), torch.ones(4800), accumulate=True
    )
    assert table.min() > 15


def test_faces_to_train_on_and_faces_held_out_never_meet():
    assert not set(TRAIN_FACES) & set(HELD_OUT_FACES)
    assert (*TRAIN_FACES, *HELD_OUT_FACES) == FACES
    assert (len(TRAIN_FACES), len(HELD_OUT_FACES)) == (12, 4)
    for preset in module.PRESETS:
        train, held_out, every = (module.faces(preset, split) for split in module.SPLITS)
        assert set(train) <= set(TRAIN_FACES)
        assert set(held_out) <= set(HELD_OUT_FACES)
        assert every == train + held_out
        for split, names in (("train", train), ("held_out", held_out), ("all", every)):
            data = glyphs(400, seeded(0), size=12, preset=preset, split=split)
            assert {FACES[i] for i in data.faces.tolist()} == set(names)
    assert module.faces("full", "all") == FACES
    assert module.faces("easy") == (
        *("DejaVuSans", "DejaVuSans-Bold", "DejaVuSerif", "DejaVuSerif-Bold"),
        *("STIXGeneralBol", "cmr10"),
    )


def test_labels_tell_what_the_images_show():
    """Nearest neighbours, fitted on faces to train on, read faces that were held out."""
    for characters in (DIGITS, "AEKMRTX"):
        train = glyphs(3000, seeded(0), size=16, characters=characters)
        test = glyphs(300, seeded(1), size=16, split="held_out", characters=characters)
        reader = KNeighborsClassifier(3).fit(train.images.flatten(1), train.labels)
        assert reader.score(test.images.flatten(1), test.labels) > 0.85


def test_the_presets_are_those_that_committed_results_and_weights_know():
    full = (False, (0.54, 0.76), 15.0, 0.25, 0.25, (0.005, 0.035), 0.08)
    easy = (True, (0.64, 0.7), 4.0, 0.05, 0.06, (0.015, 0.03), 0.03)
    found = {name: dataclasses.astuple(preset) for name, preset in module.PRESETS.items()}
    assert found == {"full": full, "easy": easy}


def test_the_easy_preset_varies_less():
    spread = [
        glyphs(1500, seeded(0), size=16, preset=preset, characters="5").images.var(0).sum()
        for preset in ("full", "easy")
    ]
    assert spread[1] < 0.7 * spread[0]


def test_letters_keep_their_proportions_unless_they_are_too_large():
    half = {c: module._master("DejaVuSans", c)[1] for c in "oxW0"}
    assert half["x"][1] == pytest.approx(0.38, abs=0.02)  # the x-height
    assert half["0"][1] == pytest.approx(0.5, abs=1e-3)
    assert max(half["W"]) == pytest.approx(module._LARGEST / 2, abs=1e-3)


def test_binarising_cuts_at_one_half():
    x = torch.tensor([0.0, 0.25, 0.5, 0.5001, 1.0], dtype=torch.float64)
    assert binarize(x).tolist() == [0, 0, 0, 1, 1]
    assert binarize(x).dtype == torch.float64
    images = glyphs(50, seeded(0)).images
    once = binarize(images)
    assert once.shape == images.shape
    assert binarize(once).equal(once)
    assert (once - images).abs().max() <= 0.5


@pytest.mark.parametrize(
    "x",
    [
        torch.tensor([0.2, 1.1]),
        torch.tensor([-0.1]),
        torch.tensor([math.nan]),
        torch.tensor([0, 1]),
        torch.tensor([True]),
    ],
)
def test_pixels_that_are_none_are_not_binarised(x, hook_off):
    error = ValueError if x.is_floating_point() else TypeError
    with pytest.raises(error, match="expected images"):
        binarize(x)


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"count": 0}, "count"),
        ({"count": -1}, "count"),
        ({"size": 0}, "size"),
        ({"size": 11}, "size"),
        ({"preset": "hard"}, "preset"),
        ({"split": "test"}, "split"),
        ({"characters": ""}, "characters"),
        ({"characters": "00"}, "characters"),
        ({"characters": "121"}, "characters"),
        *(({"characters": f"0{c}"}, f"characters .*{c!r}") for c in ("中", " ", "é")),
        ({"characters": "0\0"}, r"characters .*\\x00"),
    ],
)
def test_bad_settings_are_refused(settings, name, generator, hook_off):
    with pytest.raises(ValueError, match=name):
        glyphs(**{"count": 5, "generator": generator, **settings})


def test_matplotlib_is_imported_only_when_something_is_drawn():
    tree = ast.parse(Path(module.__file__).read_text(encoding="utf-8"))
    top = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    assert not any("matplotlib" in ast.unparse(node) for node in top)


def test_without_matplotlib_the_error_says_what_to_install(monkeypatch, generator):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.ft2font", None)
    for function in (module._segments, module._master, module._masters):
        function.cache_clear()
    with pytest.raises(ImportError, match="come with matplotlib; install it first"):
        glyphs(5, generator)
