"""The course's figures: one palette, one style, and two kinds of drawings on it.

Plots show densities, points, curves and images. Pictures show what a model is made of: `canvas`,
then `tensor`, `box` and `operation` on it, joined by `arrow` and summed up by `brace`. On a canvas
all is measured in inches, x to the right and y upwards; a place is the centre of what is put there.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from aigc_lib import expect

# Okabe and Ito 2008: eight colours that stay apart for colour-blind readers.
PALETTE = {
    "blue": "#0072B2",
    "orange": "#E69F00",
    "green": "#009E73",
    "vermilion": "#D55E00",
    "purple": "#CC79A7",
    "sky": "#56B4E9",
    "yellow": "#F0E442",
    "black": "#000000",
}
DENSITY_MAP = "viridis"
SIGNED_MAP, POSITIVE_MAP = "RdBu_r", "Blues"
BRACE = [1, 3, 3, 2, 3, 3, 3, 3, 2, 3, 3]  # a move, then curves of two points each, and lines
Place = tuple[float, float]


class Part(NamedTuple):
    """What stands on a canvas: the middles of its sides, where arrows start and end."""

    left: Place
    right: Place
    top: Place
    bottom: Place


def use_style() -> None:
    """Set matplotlib up for the course: palette, sizes, opaque white background."""
    plt.rcParams.update(
        {
            "axes.prop_cycle": mpl.cycler(color=list(PALETTE.values())),
            "axes.spines.right": False,
            "axes.spines.top": False,
            "axes.titlesize": 11,
            "figure.dpi": 90,
            "figure.facecolor": "white",
            "font.size": 10,
            "image.interpolation": "nearest",
            "legend.frameon": False,
            "lines.linewidth": 1.8,
            "savefig.facecolor": "white",
        }
    )


def panels(
    titles: Sequence[str], *, rows: int = 1, width: float = 3.0, height: float = 3.0
) -> tuple[Figure, list[Axes]]:
    """Titled axes in so many rows, one for each title; width and height of one in inches.

    Returns the figure and its axes, row by row. ValueError for titles that do not fill the rows.
    """
    fits = rows >= 1 and bool(titles) and len(titles) % rows == 0
    expect.that(fits, f"titles that fill rows = {rows}", f"{len(titles)} titles")
    columns = len(titles) // rows
    size = (width * columns, height * rows)
    figure, grid = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")
    axes = list(grid.flat)
    for ax, title in zip(axes, titles, strict=True):
        ax.set_title(title)
    return figure, axes


def density(
    ax: Axes, log_density: Callable[[Tensor], Tensor], points: Tensor, *, vmax: float | None = None
) -> None:
    """Draw exp(log_density(x)) on a square grid as a picture; `vmax` is the brightest colour.

    `points` (N, 2) are the grid's midpoints as `toy2d.grid` gives them, and their (N,) densities
    come in natural logarithms. Several panels compare with one `vmax`.
    """
    side = round(len(points) ** 0.5)
    with torch.no_grad():
        values = log_density(points).exp().reshape(side, side).double().numpy()
    low, high = float(points.min()), float(points.max())
    ax.imshow(
        values, origin="lower", extent=(low, high, low, high), cmap=DENSITY_MAP, vmin=0, vmax=vmax
    )
    _plane(ax)


def scatter(ax: Axes, points: Tensor, *, half_width: float, color: str = "blue") -> None:
    """Draw points (N, 2) of the plane as small dots, on axes from −half_width to half_width."""
    x, y = points.detach().cpu().double().numpy().T
    ax.plot(x, y, ".", markersize=1.6, alpha=0.6, color=PALETTE[color])
    ax.set_xlim(-half_width, half_width)
    ax.set_ylim(-half_width, half_width)
    _plane(ax)


def images(ax: Axes, pixels: Tensor, *, columns: int) -> None:
    """Draw small images side by side, row by row, with a line between them and no axes.

    Pixels (N, 1, Y, X) or in colour (N, 3, Y, X) go from 0, black, to 1, white. ValueError unless N
    fills rows of `columns`.
    """
    expect.shaped((None, None, None, None), pixels=pixels)
    expect.one_of((1, 3), channels=pixels.shape[1])
    fits = columns >= 1 and len(pixels) > 0 and len(pixels) % columns == 0
    expect.that(fits, f"images that fill rows of columns = {columns}", len(pixels))
    framed = F.pad(pixels.detach().cpu().double(), (1, 1, 1, 1), value=0.5).movedim(1, -1)
    rows = framed.unflatten(0, (-1, columns)).transpose(1, 2).flatten(2, 3).flatten(0, 1)
    ax.imshow(rows.squeeze(-1).numpy(), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    ax.set_axis_off()


def curve(ax: Axes, values: Sequence[float], *, label: str, color: str, smooth: int = 1) -> None:
    """Draw a value per step, averaged over whole windows of `smooth` steps, at their middles."""
    expect.between(1, len(values), smooth=smooth)
    whole = len(values) // smooth * smooth
    means = np.asarray(values[:whole], dtype=float).reshape(-1, smooth).mean(1)
    ax.plot((np.arange(len(means)) + 0.5) * smooth, means, label=label, color=PALETTE[color])


def canvas(width: float, height: float) -> tuple[Figure, Axes]:
    """An empty picture of so many inches, without axes."""
    figure = plt.figure(figsize=(width, height))
    ax = figure.add_axes((0, 0, 1, 1))
    ax.set(xlim=(0, width), ylim=(0, height), aspect="equal")
    ax.set_axis_off()
    return figure, ax


def tensor(
    ax: Axes,
    values: Tensor,
    at: Place,
    *,
    name: str = "",
    rows: str = "",
    columns: str = "",
    cell: float = 0.22,
    digits: int | None = None,
    most: float | None = None,
) -> Part:
    """A matrix (R, C) as a heat map, its name above, its shape's letters left of it and below.

    Blue is negative, red positive; a matrix without negative numbers goes from white to blue. Full
    colour is reached at `most`, by default the largest magnitude. `cell` is a cell's side, and with
    `digits` each cell shows its number, with so many decimals.
    """
    expect.shaped((None, None), values=values)
    numbers = values.detach().cpu().double().numpy()
    part = _part(at, cell * numbers.shape[1], cell * numbers.shape[0])
    signed = bool((numbers < 0).any())
    most = most or float(np.abs(numbers).max()) or 1.0
    colours = mpl.colormaps[SIGNED_MAP if signed else POSITIVE_MAP]
    shade = mpl.colors.Normalize(-most if signed else 0, most)
    x, y = (cell * np.arange(count + 1) for count in reversed(numbers.shape))
    x, y = part.left[0] + x, part.top[1] - y
    ax.pcolormesh(x, y, numbers, cmap=colours, norm=shade, edgecolors="0.6", linewidth=0.5)
    for (row, column), number in np.ndenumerate(numbers) if digits is not None else ():
        ink = "white" if np.mean(colours(shade(number))[:3]) < 0.5 else "black"
        text = f"{number:.{digits}f}".replace("-", "\N{MINUS SIGN}")
        label(ax, text, (x[column] + cell / 2, y[row] - cell / 2), size=26 * cell, color=ink)
    label(ax, name, (part.top[0], part.top[1] + 0.14), size=11)
    label(ax, rows, (part.left[0] - 0.12, part.left[1]), color="0.35")
    label(ax, columns, (part.bottom[0], part.bottom[1] - 0.13), color="0.35")
    return part


def box(
    ax: Axes, text: str, at: Place, *, size: tuple[float, float] = (1.1, 0.45), color: str = "sky"
) -> Part:
    """A part of a model: its name in a rounded box of that width and height."""
    part, ink = _part(at, *size), PALETTE[color]
    corner, face = (part.left[0], part.bottom[1]), (*mpl.colors.to_rgb(ink), 0.25)
    style = {"boxstyle": "round,pad=0,rounding_size=0.08", "fc": face, "ec": ink}
    ax.add_patch(mpl.patches.FancyBboxPatch(corner, *size, **style))
    label(ax, text, at)
    return part


def operation(ax: Axes, text: str, at: Place, *, radius: float = 0.16) -> Part:
    """What is done to what its arrows bring: a sign in a circle."""
    ax.add_patch(plt.Circle(at, radius, fc="white", ec="black", zorder=3))
    label(ax, text, at)
    return _part(at, 2 * radius, 2 * radius)


def arrow(
    ax: Axes, start: Place, end: Place, *, text: str = "", bend: float = 0.0, color: str = "black"
) -> None:
    """What flows from a place to another, with words beside it; `bend` > 0 curves it rightwards."""
    style = {"arrowstyle": "-|>", "mutation_scale": 10, "shrinkA": 2, "shrinkB": 2, "lw": 1.1}
    style["connectionstyle"] = f"arc3,rad={bend}"
    ax.add_patch(mpl.patches.FancyArrowPatch(start, end, color=PALETTE[color], **style))
    (x0, y0), (x1, y1) = start, end
    x, y = (x0 + x1 + bend * (y1 - y0)) / 2, (y0 + y1 - bend * (x1 - x0)) / 2
    upright = abs(x1 - x0) < abs(y1 - y0)
    place, align = ((x + 0.08, y), "left") if upright else ((x, y + 0.13), "center")
    label(ax, text, place, color=PALETTE[color], align=align)


def brace(ax: Axes, start: Place, end: Place, text: str, *, depth: float = 0.12) -> None:
    """A brace from a place to another, on the right of that way, and what it sums up."""
    along = np.subtract(end, start)
    length = float(np.hypot(*along))
    along = along / length
    out, half = np.array([along[1], -along[0]]), length / 2
    r = min(depth / 2, half / 2)
    steps = [(0, 0), (0, r), (r, r), (half - r, r), (half, r), (half, 2 * r)]
    steps += [(half, r), (half + r, r), (length - r, r), (length, r), (length, 0)]
    path = mpl.path.Path([start + a * along + b * out for a, b in steps], BRACE)
    ax.add_patch(mpl.patches.PathPatch(path, fc="none", ec="black", lw=1.1))
    sideways = abs(out[0]) > abs(out[1])
    place = start + half * along + (2 * r + (0.08 if sideways else 0.14)) * out
    align = ("left" if out[0] > 0 else "right") if sideways else "center"
    label(ax, text, tuple(place), align=align)


def label(
    ax: Axes, text: str, at: Place, *, size: float = 10, color: str = "black", align: str = "center"
) -> None:
    """Words at a place, which is their middle, or where they begin ("left") or end ("right")."""
    ax.text(*at, text, ha=align, va="center", fontsize=size, color=color, zorder=4)


def _part(at: Place, width: float, height: float) -> Part:
    (x, y), a, b = at, width / 2, height / 2
    return Part(left=(x - a, y), right=(x + a, y), top=(x, y + b), bottom=(x, y - b))


def _plane(ax: Axes) -> None:
    ax.set_aspect("equal")
    ax.set_xlabel("$x_1$")
    ax.set_ylabel("$x_2$")
