"""Paths of training over the loss surface of each part, and the true losses along the paths.

A path does not lie in its plane. A panel below the contours shows the distance of each checkpoint from the plane; a
second figure shows the true losses at the checkpoints, and the losses of the surface at their projections.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from landscape.errors import InputError
from landscape.plots.figures.lines import loss_axis, rank_bar
from landscape.plots.layout import drawing, panels, planes, theme
from landscape.plots.layout.drawable import figure
from landscape.plots.layout.marks import draw_marks, run_colours, run_handles
from landscape.plots.layout.parts import MOST_PARTS, colours, heading, joined, named, title
from landscape.plots.layout.scales import Scale, scale
from landscape.results import Trajectory, written
from landscape.results.grid import interpolate
from landscape.results.regroup import grid_of

_OFF_PLANE = 0.85  # height of the axes of distances in inches


@figure
def trajectory(
    trajectory: Trajectory,
    parts: Sequence[str] | None = None,
    *,
    levels: int | Sequence[float] | None = None,
    log: bool | None = None,
    vmin: float | None = None,
    vmax: float | None = None,
    euclidean: bool = False,
    errors: bool = False,
    names: Mapping[str, str] | None = None,
) -> Figure:
    """Draw the paths of all runs over the loss of each part, and below it their distances from the plane.

    The paper's Figure 1 has two parts, the tail and all samples, and names for three checkpoints.

    Args:
        trajectory: the result.
        parts: names of the parts, in the order of the panels; None for all. More than twelve are joined into groups.
        levels: about how many, or which.
        log: None for logarithmic levels where the loss spans decades.
        vmin: lowest level.
        vmax: highest level.
        euclidean: draw lengths to scale, as they are in parameter space.
        errors: draw the standard error of the loss over samples, in place of the loss.
        names: what checkpoints are called in the figure, by their names; None names those that are on no path.

    Returns:
        A new figure.

    Raises:
        InputError: no such part, a line, errors of a plane that has none, or options that leave nothing to draw.
    """
    trajectory, chosen, joining = joined(_called(trajectory, names or {}), parts)
    known = bool(np.isfinite(trajectory.mark_distance).any())
    below = panels.room_for(_OFF_PLANE) if known else 0.0
    if not trajectory.computed.any() and not errors:
        return _bare(trajectory, below, euclidean, names)
    planes.check_plane(trajectory)
    what = "loss_stderr" if errors else "loss"
    values = planes.filled(trajectory, what)[chosen]
    shared = scale(values, levels=levels, log=log, vmin=vmin, vmax=vmax, what=what)
    words = drawing.caption(trajectory, values, shared, euclidean=euclidean)
    shape = planes.aspect(trajectory) if euclidean else 1.0
    size = panels.sizes(len(chosen))
    with theme.theme():
        above = heading(trajectory, joining)
        fig, axes = panels.small_multiples(len(chosen), heading=above, caption=words, aspect=shape, below=below)
        for i, (ax, p, heights) in enumerate(zip(axes, chosen, values, strict=True)):
            fill = drawing.panel(ax, trajectory, p, heights, shared, euclidean=euclidean, size=size, names=names)
            letter = f"({chr(ord('a') + i)}) " if 1 < len(chosen) <= MOST_PARTS else ""
            ax.set_title(letter + title(trajectory, p, size.length), parse_math=False)
        panels.outer_labels(axes)
        panels.colour_bar(fig, fill, axes, shared)
        if known:
            _off_plane(panels.add_below(fig, axes, _OFF_PLANE), trajectory)
        else:
            panels.legend(axes[0], run_handles(trajectory), inside=True)
    return fig


@figure
def trajectory_along(
    trajectory: Trajectory,
    parts: Sequence[str] | None = None,
    *,
    log: bool | None = None,
    vmin: float | None = None,
    vmax: float | None = None,
    errors: bool = False,
) -> Figure:
    """Draw true loss and accuracy of each part along each run; dashed: the values of the surface at the projections.

    Where solid and dashed lines differ, contours mislead; the distance from the plane, below, shows why. If the surface
    has other running statistics than the checkpoints, a dotted line shows the checkpoints with those of the surface.

    Args:
        trajectory: the result.
        parts: names of the parts; None for all. More than twelve are joined into groups.
        log: None for a logarithmic axis where the loss spans decades.
        vmin: lower end of the loss axis.
        vmax: upper end of the loss axis.
        errors: draw a band of one standard error over samples around the true losses and accuracies.

    Returns:
        A new figure, a column for each run.

    Raises:
        InputError: no such part, no run with two checkpoints, errors of a trajectory that has none, or options that
            leave nothing to draw.
    """
    trajectory, chosen, joining = joined(trajectory, parts)
    paths = _paths(trajectory)
    if not paths:
        raise InputError("no run has two checkpoints, so that there is no path to draw")
    if errors and trajectory.mark_loss_stderr is None:
        raise InputError(planes.without_errors())
    surface = _Projected(*(_at_projections(trajectory, what) for what in ("loss", "accuracy")))
    marks = np.concatenate(list(paths.values()))
    drawn = np.concatenate([trajectory.mark_loss[marks][:, chosen].ravel(), surface.loss[chosen][:, marks].ravel()])
    shared = scale(drawn, log=log, vmin=vmin, vmax=vmax)
    x, label = _course(trajectory, paths)
    dotted = "" if trajectory.mark_policy_loss is None else " dotted: with the running statistics of the surface;"
    words = [f"solid: at the checkpoint itself;{dotted} dashed: the surface at its projection, none outside the grid"]
    words[0] += "; bands: one standard error over samples" * errors
    words += [*shared.notes, f"Verdict: {trajectory.verdict}"]
    column = max(1.3, (panels.SEVERAL - panels.LEFT - 2.05) / len(paths) - 0.15)
    n_columns = panels.most_columns(len(paths), 2.05)  # of runs; the other runs are below
    n_rows = -(-len(paths) // n_columns)
    shades = dict(zip(chosen, colours(trajectory, chosen), strict=True))
    with theme.theme():
        fig, axes = panels.layout(
            [1.8, 1.15, 0.85] * n_rows,
            [column] * n_columns,
            heading=heading(trajectory, joining),
            caption=words,
            gap=0.15,
            above=[0.2, 0.2, 0.2, *[0.65, 0.2, 0.2] * (n_rows - 1)],
            right=2.05,
        )
        for k, (run, own) in enumerate(paths.items()):
            row, place = divmod(k, n_columns)
            loss, accuracy, distance = of_run = axes[3 * n_columns * row + place :: n_columns][:3]
            _draw_run(of_run, trajectory, own, x[own], surface, shades)
            if errors:
                _draw_bands(of_run, trajectory, own, x[own], shades, shared)
            loss.set_title(written.shorten(run, 30), parse_math=False)
            _scales(loss, accuracy, distance, trajectory, shared)
            for ax in of_run:
                ax.set_xlim(_padded(x[marks], 0.03))
                ax.xaxis.set_major_locator(MaxNLocator(4, integer=True))
                ax.tick_params(labelleft=place == 0, labelbottom=ax is distance, labelsize=7.5)
                ax.yaxis.label.set(visible=place == 0, size=8.5)
            distance.set_xlabel(label, fontsize=8.5)
        for ax in axes:
            if not ax.lines:  # of the last row
                ax.remove()
        fig.align_ylabels(axes)
        beside = axes[n_columns - 1 : 3 * n_columns : n_columns]
        if len(chosen) > MOST_PARTS:
            rank_bar(fig, beside, trajectory, chosen)
        else:
            handles = [Line2D([], [], color=c, label=named(trajectory, p)) for p, c in shades.items()]
            panels.legend(beside[0], handles, "part (training samples)")
    return fig


@dataclass(frozen=True, eq=False)
class _Projected:
    """What the surface has at the projections of the marks, (P, M); nan outside."""

    loss: np.ndarray
    accuracy: np.ndarray


def _draw_run(
    axes: Sequence[Axes],
    trajectory: Trajectory,
    own: np.ndarray,
    x: np.ndarray,
    surface: _Projected,
    shades: Mapping[int, Any],
) -> None:
    """Draw losses, accuracies and distances of one run.

    Args:
        axes: one for each of the three.
        trajectory: the result.
        own: numbers of the marks of the run.
        x: their positions on the x axis.
        surface: what is dashed.
        shades: the colour of each part that is drawn.
    """
    loss, accuracy, distance = axes
    policy = trajectory.mark_policy_loss
    for p, colour in shades.items():
        solid: dict[str, Any] = {"color": colour, "linewidth": 1.3, "markersize": 3.5}
        dashed, dotted = solid | {"linewidth": 0.9}, solid | {"linewidth": 1.1}
        loss.plot(x, trajectory.mark_loss[own, p], marker=".", **solid, label=named(trajectory, p))
        if trajectory.mark_accuracy is not None:
            accuracy.plot(x, trajectory.mark_accuracy[own, p], marker=".", **solid)
        loss.plot(x, surface.loss[p, own], linestyle="--", **dashed)
        if policy is not None:
            loss.plot(x, policy[own, p], linestyle=":", **dotted)
        accuracy.plot(x, surface.accuracy[p, own], linestyle="--", **dashed)
    distance.plot(x, trajectory.mark_distance[own], color=panels.ink(), linewidth=1.2, marker=".", markersize=3.5)


def _draw_bands(
    axes: Sequence[Axes],
    trajectory: Trajectory,
    own: np.ndarray,
    x: np.ndarray,
    shades: Mapping[int, Any],
    shared: Scale,
) -> None:
    """Draw one standard error around the losses and accuracies of one run; arguments as of `_draw_run`."""
    for ax, what in zip(axes, ("mark_loss", "mark_accuracy"), strict=False):
        values, errors = getattr(trajectory, what), getattr(trajectory, f"{what}_stderr")
        if errors is None:
            continue
        lowest = shared.low if what == "mark_loss" and shared.log else -np.inf  # a logarithmic axis cannot show less
        for p, colour in shades.items():
            low, high = values[own, p] - errors[own, p], values[own, p] + errors[own, p]
            ax.fill_between(x, np.maximum(low, lowest), high, color=colour, alpha=0.25, linewidth=0)


def _called(trajectory: Trajectory, names: Mapping[str, str]) -> Trajectory:
    """Name the checkpoint in the label of an axis towards it as in the figure."""
    towards = {f"towards {name}": f"towards {called}" for name, called in names.items()}
    return replace(trajectory, axes=tuple(towards.get(axis, axis) for axis in trajectory.axes))


def _paths(trajectory: Trajectory) -> dict[str, np.ndarray]:
    """Return the numbers of the marks of each run that has at least two."""
    found = {name: np.flatnonzero(trajectory.mark_run == r) for r, name in enumerate(trajectory.runs)}
    return {name: own for name, own in found.items() if len(own) > 1}


def _course(trajectory: Trajectory, paths: Mapping[str, np.ndarray]) -> tuple[np.ndarray, str]:
    """Return the position of each mark on the x axis, and the label of that axis."""
    epochs = trajectory.mark_epoch
    if all(np.isfinite(epochs[own]).all() and (np.diff(epochs[own]) > 0).all() for own in paths.values()):
        return epochs, "epoch"
    order = np.full(len(trajectory.marks), np.nan)
    for own in paths.values():
        order[own] = np.arange(len(own))
    return order, "checkpoint, in order"


def _at_projections(trajectory: Trajectory, what: str) -> np.ndarray:
    """Return losses or accuracies that the surface has at the projections of the marks, (P, M); nan outside."""
    nothing = np.full((len(trajectory.parts), len(trajectory.marks)), np.nan)
    if not trajectory.computed.any():
        return nothing
    grid = grid_of(trajectory)
    if grid.simplices.shape[1] < 3:
        return nothing
    if getattr(trajectory, what) is None:
        return nothing
    values = grid.values(getattr(trajectory, what), getattr(trajectory, f"centre_{what}"))
    return interpolate(grid, values, trajectory.mark_position)


def _scales(loss: Axes, accuracy: Axes, distance: Axes, trajectory: Trajectory, shared: Scale) -> None:
    loss_axis(loss, shared)
    accuracy.set_ylim(-0.03, 1.03)
    accuracy.set_ylabel("accuracy")
    accuracy.yaxis.set_major_locator(MaxNLocator(4, steps=theme.STEPS))
    _distance_axis(distance, trajectory)


def _distance_axis(ax: Axes, trajectory: Trajectory) -> None:
    known = trajectory.mark_distance[np.isfinite(trajectory.mark_distance)]
    ax.set_ylim(0, 1.08 * (known.max(initial=0.0) or 1.0))
    ax.yaxis.set_major_locator(MaxNLocator(3, steps=theme.STEPS))
    ax.set_ylabel("off plane")


def _off_plane(ax: Axes, trajectory: Trajectory) -> None:
    """Draw how far the checkpoints of each run are from the plane, with the legend of the runs."""
    paths = _paths(trajectory)
    x, label = _course(trajectory, paths)
    for name, colour in zip(trajectory.runs, run_colours(trajectory), strict=True):
        if name in paths:
            own = paths[name]
            ax.plot(x[own], trajectory.mark_distance[own], color=colour, linewidth=1.3, marker=".", markersize=4)
    _distance_axis(ax, trajectory)
    ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    ax.set_xlabel(label, fontsize=7.5)
    ax.set_ylabel("distance\nfrom the plane", fontsize=7.5)
    panels.legend(ax, run_handles(trajectory))


def _padded(values: np.ndarray, share: float) -> tuple[float, float]:
    low, high = float(values.min()), float(values.max())
    beyond = share * ((high - low) or 1.0)
    return low - beyond, high + beyond


def _bare(trajectory: Trajectory, below: float, euclidean: bool, names: Mapping[str, str] | None) -> Figure:
    """Draw paths on a plane that was not evaluated."""
    words = ["\N{WHITE CIRCLE} start; \N{BLACK SQUARE} end of a run; the loss on the plane was not computed"]
    positions = planes.place(trajectory, trajectory.mark_position, euclidean=euclidean)
    with theme.theme():
        above = heading(trajectory)
        fig, (ax,) = panels.layout([3.0], [3.6], heading=above, caption=words, below=below, right=1.0)
        ax.set_xlim(_padded(positions[:, 0], 0.1))
        ax.set_ylim(_padded(positions[:, 1], 0.1))
        draw_marks(ax, trajectory, None, euclidean=euclidean, names=names)
        planes.label_axes(ax, trajectory, euclidean=euclidean)
        if below:
            _off_plane(panels.add_below(fig, [ax], _OFF_PLANE), trajectory)
        else:
            panels.legend(ax, run_handles(trajectory))
    return fig
