"""Comparisons of surfaces: several parts in one panel, and the same parts of several networks side by side."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from landscape.errors import InputError, arg, unknown
from landscape.plots.figures.lines import compare_lines
from landscape.plots.layout import drawing, panels, planes, theme
from landscape.plots.layout.drawable import figure
from landscape.plots.layout.marks import draw_marks, run_handles
from landscape.plots.layout.parts import colours, heading, joined, named
from landscape.plots.layout.scales import Scale, label, scale
from landscape.results import Surface, Trajectory, groups, written
from landscape.results.regroup import regroup, verdict_of

_STYLES = ("-", "--", "-.", ":")  # as many parts are drawn where none is named


@figure
def surface_overlay(
    surface: Surface,
    parts: Sequence[str] | None = None,
    *,
    levels: int | Sequence[float] | None = None,
    log: bool | None = None,
    vmin: float | None = None,
    vmax: float | None = None,
    euclidean: bool = False,
) -> Figure:
    """Draw the contour lines of two or more parts in one panel, each with its own lowest point.

    Args:
        surface: the result, over a plane.
        parts: names of the parts; None for all if there are at most four, else for the most frequent and the rarest.
        levels: about how many, or which; all parts have the same.
        log: None for logarithmic levels where the loss spans decades.
        vmin: lowest level.
        vmax: highest level.
        euclidean: draw lengths to scale, as they are in parameter space.

    Returns:
        A new figure with one axes.

    Raises:
        InputError: no such part, fewer than two, a line, or options that leave nothing to draw.
    """
    planes.check_plane(surface)
    surface, chosen, joining = joined(surface, parts)
    if len(chosen) < 2:
        raise InputError(
            f"an overlay needs two parts or more: name them by {arg('parts')}, or compute with "
            f"{arg('partition', 'class')}"
        )
    if parts is None and len(chosen) > len(_STYLES):
        joining = f"of {len(chosen)} parts the most frequent and the rarest"
        chosen = [chosen[0], chosen[-1]]
        surface = replace(surface, verdict=verdict_of(surface, chosen))
    values = planes.filled(surface)[chosen]
    shared = scale(values, levels=levels, log=log, vmin=vmin, vmax=vmax)
    words = drawing.caption(surface, values, shared, euclidean=euclidean)
    shape = planes.aspect(surface) if euclidean else 1.0
    with theme.theme():
        title = "\n".join(filter(None, [heading(surface, joining), "contour lines of the mean loss"]))
        fig, (ax,) = panels.layout([3.2 * shape], [3.2], heading=title, caption=words, right=2.05)
        anywhere = np.where(np.isnan(values).any(axis=0), np.nan, 0.0)
        drawing.draw_holes(ax, surface, anywhere, euclidean=euclidean)
        x, y = planes.mesh(surface, euclidean=euclidean)
        handles = []
        for i, (p, colour) in enumerate(zip(chosen, colours(surface, chosen), strict=True)):
            style: Any = _STYLES[i % len(_STYLES)]
            heights = np.ma.masked_invalid(values[i])
            lines = ax.contour(x, y, heights, levels=shared.levels, colors=[colour], linestyles=style, linewidths=1.1)
            ax.clabel(lines, fontsize=6.5, inline_spacing=2, fmt=label)
            lowest = planes.place(surface, surface.lowest_position[p], euclidean=euclidean)
            ax.plot(
                *lowest,
                "v",
                color=colour,
                markersize=7,
                markeredgecolor="k",
                markeredgewidth=0.7,
                zorder=4,
                clip_on=False,
            )
            handles.append(
                Line2D([], [], color=colour, linestyle=style, marker="v", markersize=5, label=named(surface, p))
            )
        drawing.draw_points(ax, surface, euclidean=euclidean)
        draw_marks(ax, surface, None, euclidean=euclidean)
        planes.label_axes(ax, surface, euclidean=euclidean)
        ax.tick_params(labelsize=7.5)
        for axis in (ax.xaxis, ax.yaxis):
            axis.label.set_fontsize(8.5)
        handles += run_handles(surface) if isinstance(surface, Trajectory) else []
        panels.legend(ax, handles, "part (training samples)")
    return fig


@figure
def compare_surfaces(
    surfaces: Mapping[str, Surface],
    parts: Sequence[str] | None = None,
    *,
    levels: int | Sequence[float] | None = None,
    log: bool | None = None,
    vmin: float | None = None,
    vmax: float | None = None,
    euclidean: bool = False,
    errors: bool = False,
) -> Figure:
    """Draw the same parts of several surfaces with the same levels, or one part of several lines on the same axes.

    For one part, the surfaces are side by side; for several parts, each surface has a row.

    Args:
        surfaces: name, such as the method -> its surface; all over planes, or all over lines.
        parts: names, which all of them have; None for the mean over all samples.
        levels: about how many, or which; of planes.
        log: None for logarithmic levels where the loss spans decades.
        vmin: lowest level.
        vmax: highest level.
        euclidean: draw lengths to scale, on the same axes: the units of two networks' coordinates may differ in length.
        errors: of lines, a band of one standard error over samples around each curve; of planes, the standard errors of
            the loss in place of the losses.

    Returns:
        A new figure.

    Raises:
        InputError: no surface, lines among planes, several parts of lines, a surface that lacks a part, errors of one
            that has none, or options that leave nothing to draw.
    """
    if not surfaces or not (parts is None or len(parts)):
        raise InputError("there is no surface to draw")
    drawn = {name: found if parts is not None else regroup(found, "all") for name, found in surfaces.items()}
    for name, found in drawn.items():
        for part in parts or ():
            if part not in found.parts:
                raise InputError(unknown(part, found.parts, where=f" in {name}"))
    are_lines = {found.is_line for found in drawn.values()}
    if len(are_lines) > 1:
        raise InputError("lines and planes cannot be compared: give surfaces of one kind")
    one = "all samples" if parts is None else parts[0] if len(parts) == 1 else ""
    if one and len({groups.classes_of(found, one if parts else "all") for found in drawn.values()}) > 1:
        one = f"{one} of each file"  # they are of other classes
    title = f"{written.shorten(one, 60)}, " * bool(one)
    if are_lines == {True}:
        if not one:
            raise InputError(f"lines are compared one part at a time, these are {len(parts or ())}: name one")
        of_one = {name: (found, 0 if parts is None else found.parts.index(parts[0])) for name, found in drawn.items()}
        return compare_lines(
            of_one, f"{title}on one scale", log=log, vmin=vmin, vmax=vmax, euclidean=euclidean, errors=errors
        )
    what = "loss_stderr" if errors else "loss"
    cells = _cells(drawn, parts, what)
    heights = np.concatenate([cell.heights.ravel() for cell in cells])
    shared = scale(heights, levels=levels, log=log, vmin=vmin, vmax=vmax, what=what)
    words = _words(cells, shared, euclidean=euclidean)
    return _planes(cells, shared, f"{title}the same levels for all", words, one=bool(one), euclidean=euclidean)


@dataclass(frozen=True, eq=False)
class _Cell:
    """A panel: one part of one surface."""

    name: str  # of the surface
    surface: Surface
    part: int
    heights: np.ndarray  # (ny, nx)


def _cells(drawn: Mapping[str, Surface], parts: Sequence[str] | None, what: str) -> list[_Cell]:
    """Return the panels; those of one surface follow each other."""
    for found in drawn.values():
        planes.check_plane(found)
    cells = []
    for name, found in drawn.items():
        chosen = [found.parts.index(part) for part in parts or found.parts]
        cells += [_Cell(name, found, p, own) for p, own in zip(chosen, planes.filled(found, what)[chosen], strict=True)]
    return cells


def _words(cells: Sequence[_Cell], shared: Scale, *, euclidean: bool) -> list[str]:
    """Return the caption: what signs mean, what the scale leaves out, and the verdict of each surface."""
    signs: dict[str, None] = {}
    verdicts = []
    for name, own in groupby(cells, key=lambda cell: cell.name):
        some = list(own)
        found, heights = some[0].surface, np.stack([cell.heights for cell in some])
        signs |= drawing.signs(found, heights, shared, euclidean=euclidean)
        lengths = "" if euclidean else f"{planes.units(found)}. "
        verdict = verdict_of(found, [cell.part for cell in some])
        verdicts.append(f"{written.shorten(name, 40)}: {lengths}Verdict: {verdict}")
    return ["; ".join(signs), *shared.notes, *verdicts]


def _planes(
    cells: Sequence[_Cell], shared: Scale, title: str, words: Sequence[str], *, one: bool, euclidean: bool
) -> Figure:
    """Draw the panels; surfaces are side by side if `one` part of each is drawn, else each has a row."""
    surfaces = {cell.name: cell.surface for cell in cells}
    directions = {tuple(planes.axis_labels(found, euclidean=euclidean)) for found in surfaces.values()}
    shape = max(planes.aspect(found) for found in surfaces.values()) if euclidean else 1.0
    n_columns = None if one else len(cells) // len(surfaces)
    size = panels.sizes(len(cells), n_columns)
    with theme.theme():
        fig, axes = panels.small_multiples(len(cells), heading=title, caption=words, aspect=shape, n_columns=n_columns)
        for ax, cell in zip(axes, cells, strict=True):
            fill = drawing.panel(ax, cell.surface, cell.part, cell.heights, shared, euclidean=euclidean, size=size)
            below = "" if one else f"\n{named(cell.surface, cell.part, size.length)}"
            ax.set_title(written.shorten(cell.name, size.length) + below, parse_math=False)
            if len(directions) > 1:
                ax.set_xlabel("first direction")
                ax.set_ylabel("second direction")
        panels.outer_labels(axes, n_columns)
        if euclidean:
            _align(axes)
        panels.colour_bar(fig, fill, axes, shared)
    return fig


def _align(axes: Sequence[Axes]) -> None:
    """Give all axes the same limits."""
    x, y = (np.array([getattr(ax, f"get_{axis}lim")() for ax in axes]) for axis in "xy")
    for ax in axes:
        ax.set_xlim(x.min(), x.max())
        ax.set_ylim(y.min(), y.max())
