"""Points of interest on a plane: the checkpoint, lowest points, other checkpoints by name, and the paths of runs."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from matplotlib.transforms import Bbox

from landscape.plots.layout import theme
from landscape.plots.layout.fitting import width_of
from landscape.plots.layout.planes import place
from landscape.results import Surface, Trajectory, written

MOST_NAMES = 12
"""More marks than this that are on no path are not named."""

_OFFSET, _REACH = 5, 3  # points, from a mark to its name and to its own border
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
        p: index of the part of which to draw the lowest point; None for none.
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
    ax.set_xlim(limits[0])
    ax.set_ylim(limits[1])
    named = [i for i, m in enumerate(surface.marks) if m in names or (not on_path[i] and len(single) <= MOST_NAMES)]
    _write_names(ax, positions[named], [names.get(surface.marks[i], surface.marks[i]) for i in named], size)


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
    return [Line2D([], [], color=shades[r], label=written.shorten(trajectory.runs[r], 12), **style) for r in numbers]


def outside(surface: Surface) -> int:
    """Count the marks that lie beyond the grid, where no panel shows them."""
    if not surface.computed.size:
        return 0
    x, y = surface.mark_position.T
    (left, right), (low, high) = ((v.min(), v.max()) for v in (surface.xcoordinates, surface.ycoordinates))
    return int(((x < left) | (x > right) | (y < low) | (y > high)).sum())


def _write_names(ax: Axes, positions: np.ndarray, names: Sequence[str], size: float) -> None:
    """Write the names of marks within the axes, each at the first place beside its mark where it covers nothing."""
    figure: Any = ax.figure  # matplotlib's types also allow a part of a figure, which has no size
    inches = np.array([ax.get_position().width, ax.get_position().height]) * figure.get_size_inches()
    (left, right), (low, high) = ax.get_xlim(), ax.get_ylim()
    shares = (positions - (left, low)) / (right - left, high - low)
    seen = np.flatnonzero(((shares >= 0) & (shares <= 1)).all(axis=1)).tolist()
    font = max(4.5, 7 * size)
    taken = [_box(shares[i] * inches - _REACH / 72, np.full(2, 2 * _REACH / 72), 1, 1) for i in seen]
    for i in seen:
        text = written.shorten(names[i], 18)
        extent = np.array([width_of(text, font), 1.2 * font / 72])
        across, up = -1 if shares[i, 0] > 0.6 else 1, -1 if shares[i, 1] > 0.9 else 1
        corners = [(across, up), (across, -up), (-across, up), (-across, -up)]
        offsets = [(_OFFSET * a, (_OFFSET + lines * 1.3 * font) * b) for lines in range(3) for a, b in corners]
        boxes = [_box(shares[i] * inches + np.array(o) / 72, extent, *np.sign(o)) for o in offsets]
        free = [k for k, b in enumerate(boxes) if _within(b, inches) and not any(b.overlaps(t) for t in taken)]
        chosen = free[0] if free else 0
        taken.append(boxes[chosen])
        ax.annotate(
            text,
            positions[i],
            offsets[chosen],
            textcoords="offset points",
            ha="left" if offsets[chosen][0] > 0 else "right",
            va="bottom" if offsets[chosen][1] > 0 else "top",
            fontsize=font,
            color="k",
            path_effects=[_HALO],
            parse_math=False,
            zorder=5,
        )


def _box(corner: np.ndarray, extent: np.ndarray, across: float, up: float) -> Bbox:
    """Return the box that goes from a corner into a direction, in inches of the axes."""
    other = corner + extent * (across, up)
    return Bbox([np.minimum(corner, other), np.maximum(corner, other)])


def _within(box: Bbox, inches: np.ndarray) -> bool:
    return bool(min(box.x0, box.y0) >= 0 and box.x1 <= inches[0] and box.y1 <= inches[1])
