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
    """A row, or several rows, of titled axes.

    Args:
        titles: one for each panel, row by row.
        rows: number of rows; must divide the number of titles.
        width: of one panel, in inches.
        height: of one panel, in inches.

    Returns:
        The figure and its axes in the order of the titles.

    Raises:
        ValueError: the panels do not fill the rows.
    """
    if rows < 1 or not titles or len(titles) % rows:
        raise ValueError(f"expected titles that fill {rows} rows, got {len(titles)} titles")
    columns = len(titles) // rows
    figure, grid = plt.subplots(
        rows,
        columns,
        figsize=(width * columns, height * rows),
        squeeze=False,
        layout="constrained",
    )
    axes = list(grid.flat)
    for ax, title in zip(axes, titles, strict=True):
        ax.set_title(title)
    return figure, axes


def density(
    ax: Axes,
    log_density: Callable[[Tensor], Tensor],
    points: Tensor,
    *,
    vmax: float | None = None,
) -> None:
    """Draw a density on a square grid as a picture.

    Args:
        ax: where to draw.
        log_density: from (N, 2) points to (N,) log densities.
        points: (N, 2) midpoints of a square grid, as `toy2d.grid` gives them.
        vmax: density of the brightest colour; give several panels the same to compare them.
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
    """Draw points of the plane as small dots.

    Args:
        ax: where to draw.
        points: (N, 2).
        half_width: the axes run from −half_width to half_width.
        color: a name of the palette.
    """
    x, y = points.detach().cpu().double().numpy().T
    ax.plot(x, y, ".", markersize=1.6, alpha=0.6, color=PALETTE[color])
    ax.set_xlim(-half_width, half_width)
    ax.set_ylim(-half_width, half_width)
    _plane(ax)


def images(ax: Axes, pixels: Tensor, *, columns: int) -> None:
    """Draw small grey images side by side, row by row, with a line between them and no axes.

    Args:
        ax: where to draw.
        pixels: (N, 1, Y, X) from 0, black, to 1, white; N fills the rows.
        columns: images in a row.

    Raises:
        ValueError: the images are of another shape, or do not fill the rows.
    """
    if pixels.ndim != 4 or pixels.shape[1] != 1 or not len(pixels):
        raise ValueError(f"expected images of shape (N, 1, Y, X), got {tuple(pixels.shape)}")
    if columns < 1 or len(pixels) % columns:
        raise ValueError(f"expected images that fill rows of {columns}, got {len(pixels)}")
    framed = F.pad(pixels.detach().cpu().double(), (1, 1, 1, 1), value=0.5)
    rows = framed[:, 0].unflatten(0, (-1, columns)).transpose(1, 2).flatten(2).flatten(0, 1)
    ax.imshow(rows.numpy(), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    ax.set_axis_off()


def curve(ax: Axes, values: Sequence[float], *, label: str, color: str, smooth: int = 1) -> None:
    """Draw a value per step, averaged over windows of `smooth` steps.

    Args:
        ax: where to draw.
        values: one for each step, at least `smooth`.
        label: for the legend.
        color: a name of the palette.
        smooth: number of steps in one average.

    Raises:
        ValueError: there are fewer values than one window holds.
    """
    if not 1 <= smooth <= len(values):
        raise ValueError(f"expected 1 <= smooth <= {len(values)} values, got {smooth}")
    whole = len(values) // smooth * smooth
    means = np.asarray(values[:whole], dtype=float).reshape(-1, smooth).mean(1)
    ax.plot((np.arange(len(means)) + 0.5) * smooth, means, label=label, color=PALETTE[color])


def _plane(ax: Axes) -> None:
    ax.set_aspect("equal")
    ax.set_xlabel("$x_1$")
    ax.set_ylabel("$x_2$")
