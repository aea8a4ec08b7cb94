"""The course's figures: one palette, one style, pictures of densities, curves and image grids."""

from collections.abc import Callable, Sequence

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
    """Draw small grey images side by side, row by row, with a line between them and no axes.

    Pixels (N, 1, Y, X) go from 0, black, to 1, white. ValueError unless N fills rows of `columns`.
    """
    expect.shaped((None, 1, None, None), pixels=pixels)
    fits = columns >= 1 and len(pixels) > 0 and len(pixels) % columns == 0
    expect.that(fits, f"images that fill rows of columns = {columns}", len(pixels))
    framed = F.pad(pixels.detach().cpu().double(), (1, 1, 1, 1), value=0.5)
    rows = framed[:, 0].unflatten(0, (-1, columns)).transpose(1, 2).flatten(2).flatten(0, 1)
    ax.imshow(rows.numpy(), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    ax.set_axis_off()


def curve(ax: Axes, values: Sequence[float], *, label: str, color: str, smooth: int = 1) -> None:
    """Draw a value per step, averaged over whole windows of `smooth` steps, at their middles."""
    expect.between(1, len(values), smooth=smooth)
    whole = len(values) // smooth * smooth
    means = np.asarray(values[:whole], dtype=float).reshape(-1, smooth).mean(1)
    ax.plot((np.arange(len(means)) + 0.5) * smooth, means, label=label, color=PALETTE[color])


def _plane(ax: Axes) -> None:
    ax.set_aspect("equal")
    ax.set_xlabel("$x_1$")
    ax.set_ylabel("$x_2$")
