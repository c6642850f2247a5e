"""Points of interest on a plane: the checkpoint, lowest points, other checkpoints by name, and the paths of runs."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke

from landscape.plots import theme
from landscape.plots.planes import place
from landscape.results import Surface, Trajectory

MOST_NAMES = 12
"""More marks than this that are on no path are not named."""

_HALO = withStroke(linewidth=1.6, foreground="w")


def draw_marks(
    ax: Axes,
    surface: Surface,
    p: int | None,
    *,
    euclidean: bool,
    size: float = 1.0,
    names: Mapping[str, str] | None = None,
) -> None:
    """Draw the checkpoint at the centre, the lowest point of a part, and named points or the paths of a trajectory.

    Args:
        ax: where; its limits are kept.
        surface: of which the points are.
        p: number of the part whose lowest point is drawn; None for none.
        euclidean: positions are Euclidean.
        size: of the signs, 1 in a large panel.
        names: what marks are called in the figure, by their names; None for their own.
    """
    limits = ax.get_xlim(), ax.get_ylim()
    signs: dict[str, Any] = {"color": "w", "markeredgecolor": "k", "markeredgewidth": 0.8 * size}
    ink = [withStroke(linewidth=2.6 * size, foreground="k")]
    if not ends_at_centre(surface):
        ax.plot(0, 0, "+", color="w", markersize=8 * size, markeredgewidth=1.4 * size, path_effects=ink, zorder=4)
    if p is not None and np.isfinite(surface.lowest_position[p]).all():
        x, y = place(surface, surface.lowest_position[p], euclidean=euclidean)
        ax.plot(x, y, "v", markersize=5.5 * size, **signs, zorder=3.9, clip_on=False)  # it may lie on the border
    positions = place(surface, surface.mark_position, euclidean=euclidean)
    if isinstance(surface, Trajectory):
        draw_paths(ax, surface, positions, size=size)
    on_path = on_paths(surface)
    single, names = np.flatnonzero(~on_path), names or {}
    for k in single:
        ax.plot(*positions[k], "D", markersize=4 * size, **signs, zorder=4)
    for i, name in enumerate(surface.marks):
        if name in names or (not on_path[i] and len(single) <= MOST_NAMES):
            _name(ax, positions[i], names.get(name, name), limits, size)
    ax.set_xlim(limits[0])
    ax.set_ylim(limits[1])


def on_paths(surface: Surface) -> np.ndarray:
    """Say which marks are on a path, (M,): those of runs with two checkpoints or more."""
    if not isinstance(surface, Trajectory):
        return np.zeros(len(surface.marks), dtype=bool)
    long = [r for r in range(len(surface.runs)) if (surface.mark_run == r).sum() > 1]
    return np.isin(surface.mark_run, long)


def draw_paths(ax: Axes, trajectory: Trajectory, positions: np.ndarray, *, size: float = 1.0) -> None:
    """Draw the path of each run with a dot for each checkpoint, a ring at its start and a square at its end.

    Args:
        ax: where.
        trajectory: the result.
        positions: of its marks, (M, 2).
        size: of the signs, 1 in a large panel.
    """
    drawn = on_paths(trajectory)
    for r, colour in enumerate(run_colours(trajectory)):
        own = drawn & (trajectory.mark_run == r)
        if not own.any():
            continue
        x, y = positions[own].T
        casing = [withStroke(linewidth=3 * size, foreground="w")]
        ax.plot(x, y, color=colour, linewidth=1.5 * size, path_effects=casing, zorder=2.5, label=trajectory.runs[r])
        dots: dict[str, Any] = {"markersize": 2.6 * size, "markeredgecolor": "w", "markeredgewidth": 0.4 * size}
        ax.plot(x, y, "o", color=colour, **dots, zorder=2.6)
        for k, sign, face, edge in ((0, "o", "w", colour), (-1, "s", colour, "w")):
            style: dict[str, Any] = {"color": face, "markeredgecolor": edge, "markeredgewidth": 1.2 * size, "zorder": 3}
            ax.plot(x[k], y[k], sign, markersize=6 * size, **style)


def ends_at_centre(surface: Surface) -> bool:
    """Say whether the centre is a checkpoint of a path, which has a sign of its own."""
    if not isinstance(surface, Trajectory):
        return False
    extent = np.ptp(surface.mark_position, axis=0).max() if len(surface.marks) else 0.0
    return bool((np.abs(surface.mark_position).max(axis=1, initial=0.0) <= 1e-9 * extent).any())


def run_colours(trajectory: Trajectory) -> list[str]:
    """Return a colour for each run that is seen on dark and light steps alike."""
    palette = theme.palette()
    order = (4, 1, 9, 3, 6, 5, 0, 2, 8, 7)  # the first are not those of parts
    return [palette[order[r % len(order)]] for r in range(len(trajectory.runs))]


def run_handles(trajectory: Trajectory) -> list[Line2D]:
    """Return what a legend says of the runs that have a path."""
    numbers = np.unique(trajectory.mark_run[on_paths(trajectory)])
    shades = run_colours(trajectory)
    style: dict[str, Any] = {"linewidth": 1.5, "marker": "o", "markersize": 3}
    return [Line2D([], [], color=shades[r], label=theme.shorten(trajectory.runs[r], 12), **style) for r in numbers]


def outside(surface: Surface) -> int:
    """Count the marks that lie beyond the grid, where no panel shows them."""
    if not surface.computed.size:
        return 0
    x, y = surface.mark_position.T
    (left, right), (low, high) = ((v.min(), v.max()) for v in (surface.xcoordinates, surface.ycoordinates))
    return int(((x < left) | (x > right) | (y < low) | (y > high)).sum())


def _name(
    ax: Axes, position: np.ndarray, name: str, limits: tuple[tuple[float, float], tuple[float, float]], size: float
) -> None:
    (left, right), (low, high) = limits
    x, y = position
    if not (min(left, right) <= x <= max(left, right) and min(low, high) <= y <= max(low, high)):
        return
    at_right, at_top = (x - left) / (right - left) > 0.6, (y - low) / (high - low) > 0.9
    ax.annotate(
        theme.shorten(name, 18),
        (x, y),
        (-5 if at_right else 5, -5 if at_top else 5),
        textcoords="offset points",
        ha="right" if at_right else "left",
        va="top" if at_top else "bottom",
        fontsize=max(4.5, 7 * size),
        color="k",
        path_effects=[_HALO],
        parse_math=False,
        zorder=5,
    )
