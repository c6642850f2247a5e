"""Surfaces in three dimensions: the loss as a height, with its contour lines on the floor.

Cells with a corner that is not finite are left out, so that holes are visible. Above `zmax` the surface is replaced by
a grey plateau, which the text below the figure states.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator
from mpl_toolkits.mplot3d.art3d import Poly3DCollection

from landscape.errors import InputError, arg
from landscape.plots.layout import drawing, panels, paper, planes, theme
from landscape.plots.layout.drawable import figure
from landscape.plots.layout.parts import heading, joined, title
from landscape.plots.layout.scales import Scale, label, scale
from landscape.results import Surface

_PLATEAU = (0.75, 0.75, 0.75, 1.0)
_CORNER = 0.08  # of an axis, without ticks at either end
_APART = 0.15  # of the axis of heights, between ticks
_ROOM = 0.32  # inches that panels leave free at their left for the numbers of a flat figure


@figure
def surface_3d(
    surface: Surface,
    parts: Sequence[str] | None = None,
    *,
    log: bool | None = None,
    vmin: float | None = None,
    vmax: float | None = None,
    zmax: float | None = None,
    euclidean: bool = False,
    elevation: float = 32.0,
    azimuth: float = -58.0,
) -> Figure:
    """Draw the loss as a height over the plane, a panel for each part, all with the same heights and colours.

    Args:
        surface: the result, over a plane.
        parts: names of the parts, in the order of the panels; None for all. More than twelve are joined into groups.
        log: the height is the logarithm of the loss; None means so if the loss spans decades.
        vmin: lower losses have the colour of this loss.
        vmax: higher losses have the colour of this loss.
        zmax: loss at which the surface is cut off.
        euclidean: draw lengths to scale, as in parameter space.
        elevation: of the camera above the plane, in degrees.
        azimuth: of the camera around the surface, in degrees.

    Returns:
        A new figure.

    Raises:
        InputError: no such part, a line, or options that leave nothing to draw.
    """
    planes.check_plane(surface)
    surface, chosen, joining = joined(surface, parts)
    values = planes.filled(surface)[chosen]
    top = np.inf if zmax is None else zmax
    lowest, highest = np.nanmin(values, initial=np.inf), np.nanmax(values, initial=-np.inf)
    if highest >= lowest > top or np.isnan(top):
        raise InputError(f"{arg('zmax', top)} leaves nothing to draw: the lowest loss is {lowest:.4g}")
    shared = scale(np.minimum(values, top), log=log, vmin=vmin, vmax=vmax)
    cut, top = int(highest > top), min(highest, top)
    size = panels.sizes(len(chosen))
    names = planes.axis_labels(surface, euclidean=euclidean)
    cramped = paper.page() is not None and not size.contours
    roomy = panels.columns_of(len(chosen)) <= 2 and not cramped
    zoom = 0.92 if roomy else 1.02
    if paper.page() is not None and not cramped:
        zoom = 0.75  # of panels that are small relative to their letters
    words = drawing.caption(surface, values, shared, euclidean=euclidean, kind="heights")
    words[1:1] = [f"cut off: loss above {top:.4g} is the grey plateau (up to {highest:.3g})"] * cut
    words[:0] = [] if roomy else [f"x: {names[0]}; y: {names[1]}"]
    with theme.theme():
        fig, axes = panels.small_multiples(
            len(chosen),
            heading=heading(surface, joining),
            caption=words,
            aspect=0.95 if roomy else 1.12,
            projection="3d",
        )
        x, y = planes.mesh(surface, euclidean=euclidean)
        sides = (np.ptp(x), np.ptp(y)) if euclidean else (1.0, 1.0)
        for ax, p, heights in zip(axes, chosen, values, strict=True):
            _relief(ax, x, y, heights, shared, top)
            _frame(ax, x, y, shared, top, names if roomy else ("x", "y"), size)
            depth: Any = ax  # matplotlib's types do not name Axes3D
            depth.set_box_aspect((*sides, 0.8 * max(sides)), zoom=zoom)
            if cramped:  # the colours show the heights
                ax.tick_params(labelbottom=False, labelleft=False)
            depth.view_init(elev=elevation, azim=azimuth)
            ax.set_title(title(surface, p, size.length), parse_math=False)
        panels.colour_bar(fig, ScalarMappable(shared.continuous, drawing.COLOURS["loss"]), axes, shared)
        if paper.page() is None:
            _make_room(fig, axes)
    return fig


def _make_room(fig: Figure, axes: Sequence[Axes]) -> None:
    """Move panels to the left, which is empty: the numbers of heights are at their right, before the colours."""
    for ax in axes:
        box = ax.get_position(original=True)
        ax.set_position(box.translated(-_ROOM / fig.get_figwidth(), 0))


def _height(values: Any, shared: Scale) -> Any:
    """Return the drawn heights; values below a logarithmic scale are at its low end."""
    return np.log10(np.maximum(values, shared.low)) if shared.log else values


def _relief(ax: Any, x: np.ndarray, y: np.ndarray, values: np.ndarray, shared: Scale, top: float) -> None:
    """Draw the cells whose corners are all known, and the contour lines on the floor."""
    corners = np.stack([x, y, _height(np.minimum(values, top), shared)], axis=-1)
    quads = np.stack([corners[:-1, :-1], corners[:-1, 1:], corners[1:, 1:], corners[1:, :-1]], axis=-2)
    known = np.isfinite(quads).all(axis=(-1, -2))
    of_cells = np.stack([values[:-1, :-1], values[:-1, 1:], values[1:, 1:], values[1:, :-1]], axis=-1)[known]
    paint = colormaps[drawing.COLOURS["loss"]](shared.continuous(np.maximum(of_cells.mean(axis=-1), shared.low)))
    paint[of_cells.min(axis=-1) > top] = _PLATEAU
    edges = np.where(_luminous(paint)[:, None], (0.0, 0.0, 0.0, 0.35), (1.0, 1.0, 1.0, 0.35))
    ax.add_collection3d(Poly3DCollection(quads[known], facecolors=paint, edgecolors=edges, linewidths=0.3))
    inside = np.ma.masked_invalid(np.where(values <= top, values, np.nan))
    floor = _floor(shared, top)
    levels = shared.levels[shared.levels <= top]
    if len(levels) > 1 and inside.count():
        ax.contour(x, y, inside, levels=levels, norm=shared.steps, cmap=drawing.COLOURS["loss"], offset=floor,
                   linewidths=0.7)  # fmt: skip


def _luminous(paint: np.ndarray) -> np.ndarray:
    """Say which colours are light, so that the edges of cells, which show the shape, are seen on them."""
    return np.asarray(paint[:, :3] @ (0.2, 0.7, 0.1) > 0.45)


def _inner(low: float, high: float) -> FixedLocator:
    """Return ticks that stay away from the corners, where the numbers of two axes would meet."""
    margin = _CORNER * (high - low)
    ticks = MaxNLocator(5, steps=theme.STEPS).tick_values(low, high)
    return FixedLocator([float(tick) for tick in ticks if low + margin <= tick <= high - margin])


def _apart(places: Sequence[float], extent: float) -> list[float]:
    """Leave out ticks whose numbers would touch those of the one before, on an axis so long."""
    kept: list[float] = []
    for place in places:
        if not kept or place - kept[-1] >= _APART * extent:
            kept.append(place)
    return kept


def _floor(shared: Scale, top: float) -> float:
    low, high = _height(shared.low, shared), _height(top, shared)
    return float(low - 0.25 * (high - low))


def _frame(
    ax: Any, x: np.ndarray, y: np.ndarray, shared: Scale, top: float, names: Sequence[str], size: panels.Sizes
) -> None:
    ax.set_xlim(x.min(), x.max())
    ax.set_ylim(y.min(), y.max())
    ax.set_zlim(_floor(shared, top), float(_height(top, shared)))
    for axis, name, along in zip((ax.xaxis, ax.yaxis), names, (x, y), strict=True):
        axis.set_label_text(name, fontsize=size.axes - 1, parse_math=False)
        axis.set_major_locator(_inner(along.min(), along.max()))
    ax.patch.set_visible(False)
    if shared.log:
        ticks = shared.ticks(6)
        places = np.log10(ticks[(ticks >= shared.low) & (ticks <= top)]).tolist()
        ax.zaxis.set_major_locator(FixedLocator(_apart(places, _height(top, shared) - _floor(shared, top))))
        ax.zaxis.set_major_formatter(FuncFormatter(lambda z, _: label(10**z)))
    else:
        ax.zaxis.set_major_locator(MaxNLocator(4, steps=theme.STEPS))
        ax.zaxis.set_major_formatter(FuncFormatter(lambda z, _: label(z)))
    for axis in (ax.xaxis, ax.yaxis, ax.zaxis):
        axis.set_pane_color(panels.ground())
        axis.set_tick_params(labelsize=size.axes - 2, pad=2 if axis is ax.zaxis else -2)
        axis.labelpad = -5
