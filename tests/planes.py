"""Surfaces to be drawn, and what can be read from their figures."""

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from mpl_toolkits.mplot3d.art3d import Poly3DCollection
from surfaces import grid, paraboloid, surface


def pixel(ax, x, y):
    """The colour that a figure has at a point of an axes, 0 to 255."""
    canvas = FigureCanvasAgg(ax.figure)
    canvas.draw()
    column, row = ax.transData.transform((x, y))
    image = np.asarray(canvas.buffer_rgba())[::-1]
    return image[int(row), int(column), :3].astype(int)


def is_grey(colour):
    return np.ptp(colour) <= 8


def many(n, nx=5, ny=5, counts=None, **about):
    """A paraboloid for each of n classes, steeper towards the rarest."""
    of = grid(np.linspace(-1, 1, nx), np.linspace(-1, 1, ny))
    loss = np.concatenate([paraboloid(of, 0.1 + 0.01 * p, 1 + p / n) for p in range(n)])
    counts = np.linspace(500, 5, n).astype(int) if counts is None else np.asarray(counts)
    return surface(
        of, loss, parts=tuple(f"class {p}" for p in range(n)), n_samples=counts, train_counts=counts, **about
    )


def with_hole(hole=(slice(2, 5), slice(5, 8)), nx=11, ny=11, computed=None):
    """A paraboloid whose loss is nan in some rows and columns."""
    of = grid(np.linspace(-1, 1, nx), np.linspace(-1, 1, ny), computed=computed)
    loss = paraboloid(of)
    loss[0][hole] = np.nan
    return surface(of, loss, centre_loss=np.array([0.3]))


def heights(ax):
    (relief,) = [c for c in ax.collections if isinstance(c, Poly3DCollection)]
    return relief._faces  # (cells, 4, 3): what matplotlib projects
