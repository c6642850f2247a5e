"""Panels of a plane: filled contours or cells of one part, its holes and the points that were computed."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.contour import ContourSet

from landscape.plots.layout.marks import MOST_NAMES, draw_marks, ends_at_centre, on_paths, outside
from landscape.plots.layout.panels import Sizes
from landscape.plots.layout.planes import holes, label_axes, mesh, place, units
from landscape.plots.layout.scales import Scale, label
from landscape.results import Surface, Trajectory
from landscape.results.regroup import grid_of

COLOURS = {"loss": "viridis", "accuracy": "cividis", "loss_stderr": "magma", "accuracy_stderr": "magma"}
BULLET = "\N{BULLET} "


def panel(
    ax: Axes,
    surface: Surface,
    p: int,
    values: np.ndarray,
    scale: Scale,
    *,
    euclidean: bool,
    size: Sizes,
    names: Mapping[str, str] | None = None,
) -> Any:
    """Draw the contours of one part with all that belongs to them.

    Args:
        ax: the axes.
        surface: the result.
        p: index of the part.
        values: (ny, nx) of the part, from `filled`.
        scale: colours and levels of all panels.
        euclidean: positions are Euclidean.
        size: size of the signs.
        names: mark's name -> its name in the figure.

    Returns:
        The object with the colours, for a colour bar.
    """
    draw_holes(ax, surface, values, euclidean=euclidean)
    fill = draw_contours(ax, surface, values, scale, euclidean=euclidean, font=size.contours)
    draw_points(ax, surface, euclidean=euclidean)
    draw_marks(ax, surface, _lowest(p, scale), euclidean=euclidean, size=size.marks, names=names)
    label_axes(ax, surface, euclidean=euclidean)
    return fill


def _lowest(p: int, scale: Scale) -> int | None:
    """Return the part whose lowest loss is marked: of a panel of losses its own, of others none."""
    return p if scale.what == "loss" else None


def cell_panel(
    ax: Axes, surface: Surface, p: int, values: np.ndarray, scale: Scale, *, euclidean: bool, size: Sizes
) -> Any:
    """Draw the cells of one part, with marks; as `panel`, of values as they were computed."""
    cells = draw_cells(ax, surface, values, scale, euclidean=euclidean)
    draw_marks(ax, surface, _lowest(p, scale), euclidean=euclidean, size=size.marks)
    label_axes(ax, surface, euclidean=euclidean)
    return cells


def signs(
    surface: Surface, values: np.ndarray, scale: Scale, *, euclidean: bool, kind: str = "contours"
) -> dict[str, None]:
    """Say what the signs of a panel mean, what was interpolated, and what is not seen.

    Args:
        surface: the result.
        values: (..., ny, nx) the drawn values.
        scale: colours and levels of the panels.
        euclidean: positions are Euclidean.
        kind: "contours"; "cells", of computed values; or "heights", which have no marks.

    Returns:
        Sentences, as the keys of a mapping, so that those of several surfaces can be joined.
    """
    found = []
    if kind != "heights":
        found += ["+ checkpoint"] if grid_of(surface).holds_centre and not ends_at_centre(surface) else []
        if scale.what == "loss":
            found.append("\N{WHITE DOWN-POINTING TRIANGLE} lowest loss")
        if isinstance(surface, Trajectory):
            found += ["\N{WHITE CIRCLE} start", "\N{BLACK SQUARE} end of a run"]
        unnamed = int((~on_paths(surface)).sum())
        if unnamed > MOST_NAMES:
            found.append(f"\N{WHITE DIAMOND} {unnamed} other checkpoints")
        far = outside(surface)
        if far:
            found.append(f"{far} of {len(surface.marks)} marks lie outside")
    if (surface.computed & ~np.isfinite(values)).any():
        why = "unknown" if scale.what.endswith("_stderr") else "not finite"  # the error of one sample's loss
        found.append(f"{'holes' if kind == 'heights' else 'hatched'}: {why}")
    n, of = int(surface.computed.sum()), surface.computed.size
    if n < of:
        found.append(
            f"empty: not computed ({n:,} of {of:,} were)"
            if kind == "cells"
            else f"{'' if kind == 'heights' else BULLET}{n:,} of {of:,} points computed, the others interpolated"
        )
    if euclidean:
        found.append("lengths are to scale")
    return dict.fromkeys(found)


def caption(
    surface: Surface, values: np.ndarray, scale: Scale, *, euclidean: bool, kind: str = "contours"
) -> list[str]:
    """Return the lines below a figure: its signs, lengths, what is cut off, the verdict; arguments as of `signs`."""
    found = signs(surface, values, scale, euclidean=euclidean, kind=kind)
    return ["; ".join([*found, *([] if euclidean else [units(surface)])]), *scale.notes, f"Verdict: {surface.verdict}"]


def draw_contours(
    ax: Axes, surface: Surface, values: np.ndarray, scale: Scale, *, euclidean: bool, font: float
) -> ContourSet:
    """Fill the steps between levels and draw the levels' lines.

    Args:
        ax: where.
        surface: of which the values are.
        values: (ny, nx) of one part, from `filled`.
        scale: its levels.
        euclidean: positions are Euclidean.
        font: size of the lines' labels; 0 for none.

    Returns:
        The filled contours, for a colour bar.
    """
    x, y = mesh(surface, euclidean=euclidean)
    z = np.ma.masked_invalid(values)
    colours = colormaps[COLOURS[scale.what]]
    fill = ax.contourf(
        x, y, z, levels=scale.levels, norm=scale.steps, cmap=colours, extend=scale.extend, antialiased=False, zorder=1.1
    )
    # Lines and their labels are light on dark steps, dark on light ones.
    light = [np.dot(colours(scale.steps(level))[:3], (0.2, 0.7, 0.1)) > 0.45 for level in scale.levels]
    shades = ["0.15" if bright else "0.95" for bright in light]
    lines = ax.contour(x, y, z, levels=scale.levels, colors=shades, linewidths=0.5, alpha=0.8, zorder=1.2)
    if font:
        ax.clabel(lines, fontsize=font, inline_spacing=2, fmt=label)
    return fill


def draw_cells(ax: Axes, surface: Surface, values: np.ndarray, scale: Scale, *, euclidean: bool) -> Any:
    """Colour a cell around each point that was computed; what was not computed stays empty.

    Args:
        ax: where.
        surface: of which the values are.
        values: (ny, nx) of one part.
        scale: its colours.
        euclidean: positions are Euclidean.

    Returns:
        The mesh, for a colour bar.
    """
    mesh(surface, euclidean=euclidean)  # refuses unknown lengths
    edges = np.stack(np.meshgrid(_edges(surface.xcoordinates), _edges(surface.ycoordinates)), axis=-1)
    x, y = np.moveaxis(place(surface, edges, euclidean=euclidean), -1, 0)
    shown = np.maximum(values, scale.low) if scale.log else values  # a loss of 0 has the lowest colour, it is no hole
    known = np.ma.masked_invalid(np.where(surface.computed, shown, np.nan))
    _hatch(ax, np.stack([x, y], axis=-1), surface.computed & ~np.isfinite(values))
    colours = colormaps[COLOURS[scale.what]]
    cells = ax.pcolormesh(x, y, known, norm=scale.continuous, cmap=colours, rasterized=True, zorder=1.1)
    _limits(ax, x, y)
    return cells


def draw_holes(ax: Axes, surface: Surface, values: np.ndarray, *, euclidean: bool) -> bool:
    """Hatch the cells that touch a hole, to be drawn over by what is known of them.

    Args:
        ax: where.
        surface: of which the values are.
        values: (ny, nx) of one part, from `filled`.
        euclidean: positions are Euclidean.

    Returns:
        Whether there are holes.
    """
    x, y = mesh(surface, euclidean=euclidean)
    hole = holes(surface, values)
    cells = hole[1:, 1:] | hole[1:, :-1] | hole[:-1, 1:] | hole[:-1, :-1]
    _hatch(ax, np.stack([x, y], axis=-1), cells)
    _limits(ax, x, y)
    return bool(cells.any())


def draw_points(ax: Axes, surface: Surface, *, euclidean: bool) -> None:
    """Show as dots which points of an adaptive grid were computed; of a full grid all were, and none is drawn.

    Args:
        ax: where.
        surface: of which the points are.
        euclidean: positions are Euclidean.
    """
    if surface.computed.all():
        return
    x, y = mesh(surface, euclidean=euclidean)
    style = {"marker": ".", "markersize": 1.6, "linestyle": "none", "color": "k", "alpha": 0.7, "zorder": 1.3}
    ax.plot(x[surface.computed], y[surface.computed], label="computed", **style)  # type: ignore[arg-type]


def _hatch(ax: Axes, corners: np.ndarray, cells: np.ndarray) -> None:
    """Hatch cells (ny, nx) of the mesh with these corners (ny + 1, nx + 1, 2)."""
    if not cells.any():
        return
    quads = np.stack([corners[:-1, :-1], corners[:-1, 1:], corners[1:, 1:], corners[1:, :-1]], axis=-2)[cells]
    hatched = PolyCollection(list(quads), facecolor="0.88", edgecolor="0.6", hatch="//////", linewidth=0, zorder=1)
    ax.add_collection(hatched, autolim=False)


def _limits(ax: Axes, x: np.ndarray, y: np.ndarray) -> None:
    ax.set_xlim(x.min(), x.max())
    ax.set_ylim(y.min(), y.max())


def _edges(axis: np.ndarray) -> np.ndarray:
    """Return the borders of the cells around ascending coordinates, one more than these."""
    if len(axis) == 1:
        return np.asarray(axis[0] + np.array([-0.5, 0.5]))
    between = (axis[1:] + axis[:-1]) / 2
    return np.array([2 * axis[0] - between[0], *between, 2 * axis[-1] - between[-1]])
