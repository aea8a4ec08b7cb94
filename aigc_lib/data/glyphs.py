"""Printed digits and letters as small grey images, drawn from a seed: the course's image data.

The outlines come from 16 faces that matplotlib brings along, so nothing is downloaded. Each outline
is turned once into a master: a grid of signed distances to its edge. An image is a master warped
(turned, slanted, stretched, resized, made bolder or lighter, shifted) and cut off softly over one
pixel, which is antialiasing: a pixel's value is about the share of it that the stroke covers.

Faces are split, once and for all, into those to train on and those held out. Two draws with
different seeds from the same faces differ in every warp; faces that are held out show whether a
model knows digits or only these faces.

Two presets, the same for every chapter: "full" has all faces of the split and visible warps;
"easy" has the upright faces alone and mild warps. The course binarises by one rule, `binarize`.
"""

import functools
import math
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from aigc_lib import expect

DIGITS = "0123456789"
TRAIN_FACES = (
    *("DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSans-BoldOblique"),
    *("DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSerif-Italic", "DejaVuSerif-BoldItalic"),
    *("STIXGeneralBol", "STIXGeneralItalic", "cmr10", "cmti10"),
)
HELD_OUT_FACES = ("STIXGeneral", "STIXGeneralBolIta", "cmss10", "cmtt10")
FACES = TRAIN_FACES + HELD_OUT_FACES
SPLITS = {"train": TRAIN_FACES, "held_out": HELD_OUT_FACES, "all": FACES}

# Half the side of a master, in heights of the face's "0", and its number of cells along a side.
_HALF, _CELLS = 0.8, 64
# No glyph is wider or higher than so many heights of the "0"; larger letters are shrunk.
_LARGEST = 1.2
# Size in pixels at which outlines are read; their curves are cut into lines at this size.
_OUTLINE = 64
_CHUNK = 2048


@dataclass(frozen=True, kw_only=True)
class Preset:
    """Which faces are drawn, and the range or greatest size of each draw; all draws are uniform."""

    upright: bool = False  # leave out slanted faces
    height: tuple[float, float] = (0.54, 0.76)  # of a "0", as a share of the image's side
    rotation: float = 15.0  # to either side, in degrees
    slant: float = 0.25  # horizontal shear to either side
    stretch: float = 0.25  # |log(width / height)| added
    bolder: tuple[float, float] = (0.005, 0.035)  # on each side of a stroke, in heights of a "0"
    shift: float = 0.08  # along each axis, as a share of the side; less where a glyph would leave


PRESETS = {
    "full": Preset(),
    "easy": Preset(
        upright=True,
        height=(0.64, 0.7),
        rotation=4.0,
        slant=0.05,
        stretch=0.06,
        bolder=(0.015, 0.03),
        shift=0.03,
    ),
}


@dataclass(frozen=True, kw_only=True)
class Glyphs:
    """Images of characters, white on black, with what they show."""

    images: Float[Tensor, "N 1 Y X"]  # from 0, black, to 1, white; rows from top to bottom
    labels: Int[Tensor, " N"]  # which of the characters, as a place in the string asked for
    faces: Int[Tensor, " N"]  # places in FACES


def glyphs(
    count: int,
    generator: torch.Generator,
    *,
    size: int = 28,
    preset: str = "full",
    split: str = "train",
    characters: str = DIGITS,
) -> Glyphs:
    """Draw images of characters; each character, and each face, is equally likely.

    The same state of the generator, on whose device the tensors are made, gives the same labels and
    faces everywhere, and the same pixels up to rounding. No stroke touches the outermost pixels.
    The course uses sizes 16 and 28; each of the characters must be in every face.
    """
    expect.at_least(1, count=count)
    expect.at_least(12, size=size)
    once = 0 < len(set(characters)) == len(characters)
    expect.that(once, "characters, each of them once", repr(characters))
    names, device = faces(preset, split), generator.device
    masters, halves = (t.to(device) for t in _masters(names, characters))
    labels, chosen = (
        torch.randint(n, (count,), generator=generator, device=device)
        for n in (len(characters), len(names))
    )
    glyph = chosen * len(characters) + labels
    linear, shift, bolder = _warps(PRESETS[preset], halves[glyph], size, generator)
    images = [
        _draw(masters[glyph[part]], linear[part], shift[part], bolder[part], size)
        for part in torch.arange(count, device=device).split(_CHUNK)
    ]
    places = torch.tensor([FACES.index(name) for name in names], device=device)
    return Glyphs(images=torch.cat(images), labels=labels, faces=places[chosen])


def faces(preset: str = "full", split: str = "train") -> tuple[str, ...]:
    """The faces that a preset draws from in a split, out of FACES."""
    expect.one_of(PRESETS, preset=preset)
    expect.one_of(SPLITS, split=split)
    slanted = ("Oblique", "Italic", "BolIta", "cmti10")
    return tuple(
        face for face in SPLITS[split] if not (PRESETS[preset].upright and face.endswith(slanted))
    )


def binarize(images: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
    """1 where a pixel is above 0.5, else 0: the course's one rule for black-and-white images."""
    expect.floating(images=images)
    if not ((images >= 0) & (images <= 1)).all():  # False for NaN, too
        raise ValueError(f"expected images in [0, 1], got {images.min()} to {images.max()}")
    return (images > 0.5).to(images.dtype)


def _warps(preset: Preset, halves: Tensor, size: int, generator) -> tuple[Tensor, Tensor, Tensor]:
    """Map x → linear · x + shift from a glyph's place to the frame's [−1, 1]², and how much bolder.

    The glyph lies within ± halves around the origin, and so does its warped box within the frame
    less one pixel: that bounds the shift, and shrinks what would not fit at all.
    """
    device = halves.device
    u = torch.rand(len(halves), 7, generator=generator, device=device)
    signed = 2 * u - 1
    low, high = preset.height
    height = 2 * (low + (high - low) * u[:, 0])
    angle = math.radians(preset.rotation) * signed[:, 1]
    slant, stretch = preset.slant * signed[:, 2], (0.5 * preset.stretch * signed[:, 3]).exp()
    bolder = preset.bolder[0] + (preset.bolder[1] - preset.bolder[0]) * u[:, 4]
    cos, sin = angle.cos(), angle.sin()
    turn = torch.stack([cos, -sin, sin, cos], 1).reshape(-1, 2, 2)
    zero = torch.zeros_like(slant)
    shape = torch.stack([stretch, slant / stretch, zero, 1 / stretch], 1).reshape(-1, 2, 2)
    linear = height[:, None, None] * turn @ shape
    extent = (linear.abs() @ (halves + bolder[:, None])[:, :, None])[:, :, 0]
    room = 1 - 2.5 / size
    fit = (room / extent.amax(1)).clamp(max=1)
    linear, extent = linear * fit[:, None, None], extent * fit[:, None]
    shift = torch.minimum(room - extent, extent.new_tensor(2 * preset.shift)) * signed[:, 5:]
    return linear, shift, bolder


def _draw(masters: Tensor, linear: Tensor, shift: Tensor, bolder: Tensor, size: int) -> Tensor:
    back = torch.linalg.inv(linear)
    theta = torch.cat([back, -back @ shift[:, :, None]], 2) / _HALF
    grid = F.affine_grid(theta, [len(theta), 1, size, size], align_corners=False)
    distance = F.grid_sample(masters[:, None], grid, padding_mode="border", align_corners=False)
    # The frame is 2 wide: a height of the "0" is √det/2 of it, or √det/2 · size pixels.
    pixels = torch.linalg.det(linear).sqrt() * size / 2
    edge = (bolder[:, None, None, None] - distance) * pixels[:, None, None, None]
    return (0.5 + edge).clamp(0, 1)


@functools.cache
def _masters(names: tuple[str, ...], characters: str) -> tuple[Tensor, Tensor]:
    """Signed distances (faces × characters, cells, cells), and half of each width and height."""
    pairs = [_master(name, character) for name in names for character in characters]
    masters, halves = zip(*pairs, strict=True)
    return torch.stack(masters), torch.tensor(halves)


@functools.cache
def _master(name: str, character: str) -> tuple[Tensor, tuple[float, float]]:
    """Distance to the outline, negative inside, in heights of the "0"; rows from top to bottom."""
    a, b = _segments(name, character)
    zero = _segments(name, "0")[0][:, 1]
    low, high = a.amin(0), a.amax(0)
    unit = max(float(zero.max() - zero.min()), float((high - low).max()) / _LARGEST)
    a, b = ((p - (low + high) / 2) / unit for p in (a, b))
    ticks = _HALF * ((2 * torch.arange(_CELLS) + 1) / _CELLS - 1)
    (ax, ay), (along_x, along_y) = (p.T[:, :, None, None] for p in (a, b - a))
    x, y = ticks - ax, -ticks[:, None] - ay  #                             segments, a row or column
    square = along_x**2 + along_y**2
    t = (x * (along_x / square) + y * (along_y / square)).clamp_(0, 1)  #  segments cells cells
    across_x = torch.addcmul(x, t, along_x, value=-1).square_()
    across_y = torch.addcmul(y, t, along_y, value=-1).square_()
    distance = across_x.add_(across_y).amin(0).sqrt()
    # The winding number: signed crossings of the outline with the ray to the right.
    turns = (y >= 0).float() - (y - along_y >= 0).float()
    crossing = along_x * y / torch.where(turns == 0, 1, along_y)
    winding = (turns * (crossing > x)).sum(0)
    width, height = ((high - low) / (2 * unit)).tolist()
    return torch.where(winding != 0, -distance, distance), (width, height)


@functools.cache
def _segments(name: str, character: str) -> tuple[Tensor, Tensor]:
    """Where the straight pieces of an outline begin and end, y upwards."""
    try:
        import matplotlib
        from matplotlib.ft2font import FT2Font, LoadFlags
        from matplotlib.path import Path as Outline
    except ImportError as error:
        raise ImportError(
            'the faces come with matplotlib; install it first (pip install "matplotlib")'
        ) from error
    font = FT2Font(str(Path(matplotlib.get_data_path(), "fonts", "ttf", f"{name}.ttf")))
    font.set_size(_OUTLINE, 72)
    polygons = []
    if font.get_char_index(ord(character)):
        font.load_char(ord(character), flags=LoadFlags.NO_HINTING)
        polygons = Outline(*font.get_path()).to_polygons(closed_only=True)
    if not polygons:
        raise ValueError(f"expected characters that {name} can draw, got {character!r}")
    pieces = [torch.from_numpy(p).float() for p in polygons]
    a, b = torch.cat([p[:-1] for p in pieces]), torch.cat([p[1:] for p in pieces])
    real = (a != b).any(1)
    return a[real], b[real]
