"""Planes of a surface, a panel for each part: filled contours of loss or accuracy, and the computed values of the grid.

All panels of a figure share levels and colours. The text below the figure states what is cut off, interpolated, not
finite or outside, and the verdict on the surface.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from landscape.errors import InputError
from landscape.plots.layout import drawing, panels, planes, theme
from landscape.plots.layout.drawable import figure
from landscape.plots.layout.parts import heading, joined, title
from landscape.plots.layout.scales import scale
from landscape.results import Surface


@figure
def contours(
    surface: Surface,
    part: str | None = None,
    *,
    ax: Axes | None = None,
    what: str = "loss",
    levels: int | Sequence[float] | None = None,
    log: bool | None = None,
    vmin: float | None = None,
    vmax: float | None = None,
    euclidean: bool = False,
    bar: bool = True,
    names: Mapping[str, str] | None = None,
) -> Axes:
    """Draw filled contours of one part.

    Args:
        surface: the result, over a plane; for a trajectory, its paths are drawn too.
        part: name of the part; None if there is only one.
        ax: axes to draw on; None makes a new figure with the verdict below.
        what: "loss", "accuracy", or the standard error of either over samples: "loss_stderr", "accuracy_stderr".
        levels: approximate number of levels, or the levels; use the same levels in figures that are compared.
        log: None means logarithmic levels if the values span decades.
        vmin: lowest level.
        vmax: highest level.
        euclidean: draw lengths to scale, as in parameter space.
        bar: add a colour bar beside the axes.
        names: labels of marks in the figure, by their names.

    Returns:
        The axes.

    Raises:
        InputError: no such part, several parts without a choice, a line, or options that leave nothing to draw.
    """
    planes.check_plane(surface)
    if what not in panels.UNITS:
        raise InputError(f"what must be one of {', '.join(panels.UNITS)}, got {what!r}")
    if part is None and len(surface.parts) != 1:
        shown = ", ".join(surface.parts[:10]) + (", ..." if len(surface.parts) > 10 else "")
        raise InputError(f"there are {len(surface.parts)} parts: name one of {shown}, or draw all by surface()")
    surface, (p,), _ = joined(surface, [surface.parts[0] if part is None else part])
    values = planes.filled(surface, what)[[p]]
    shared = scale(values, levels=levels, log=log, vmin=vmin, vmax=vmax, what=what)
    size = panels.sizes(1)
    with theme.theme():
        own = ax is None
        if ax is None:
            words = drawing.caption(surface, values, shared, euclidean=euclidean)
            shape = planes.aspect(surface) if euclidean else 1.0
            _, (ax,) = panels.small_multiples(1, heading="", caption=words, aspect=shape)
        fill = drawing.panel(ax, surface, p, values[0], shared, euclidean=euclidean, size=size, names=names)
        ax.set_title(title(surface, p, size.length), parse_math=False)
        if bar:
            panels.colour_bar(ax.figure, fill, [ax], shared, beside=not own)
    return ax


@figure
def surface(
    surface: Surface,
    parts: Sequence[str] | None = None,
    *,
    levels: int | Sequence[float] | None = None,
    log: bool | None = None,
    vmin: float | None = None,
    vmax: float | None = None,
    euclidean: bool = False,
    errors: bool = False,
) -> Figure:
    """Draw filled contours of the loss, a panel for each part, all with the same levels.

    Args:
        surface: the result, over a plane.
        parts: names of the parts, in the order of the panels; None for all. More than twelve are joined into groups.
        levels: about how many, or which.
        log: None for logarithmic levels where the loss spans decades.
        vmin: lowest level.
        vmax: highest level.
        euclidean: draw lengths to scale, as they are in parameter space.
        errors: draw the standard error of the loss over samples, in place of the loss.

    Returns:
        A new figure.

    Raises:
        InputError: no such part, a line, errors of a surface that has none, or options that leave nothing to draw.
    """
    return _figure(surface, parts, _or_errors("loss", errors), euclidean, levels=levels, log=log, vmin=vmin, vmax=vmax)


@figure
def surface_accuracy(
    surface: Surface,
    parts: Sequence[str] | None = None,
    *,
    levels: int | Sequence[float] | None = None,
    vmin: float | None = None,
    vmax: float | None = None,
    euclidean: bool = False,
    errors: bool = False,
) -> Figure:
    """Draw filled contours of the accuracy, a panel for each part, all with the same levels.

    Args:
        surface: the result, over a plane.
        parts: as for `surface`.
        levels: about how many, or which.
        vmin: lowest level.
        vmax: highest level.
        euclidean: draw lengths to scale.
        errors: draw the standard error of the accuracy over samples, in place of the accuracy.

    Returns:
        A new figure.

    Raises:
        InputError: no such part, a line, a surface without these values, or options that leave nothing to draw.
    """
    what = _or_errors("accuracy", errors)
    return _figure(surface, parts, what, euclidean, levels=levels, log=False, vmin=vmin, vmax=vmax)


@figure
def surface_heat(
    surface: Surface,
    parts: Sequence[str] | None = None,
    *,
    log: bool | None = None,
    vmin: float | None = None,
    vmax: float | None = None,
    euclidean: bool = False,
    errors: bool = False,
) -> Figure:
    """Draw the losses of the grid without interpolation, a cell for each point; cells that were not computed are empty.

    Args:
        surface: the result, over a plane.
        parts: as for `surface`.
        log: None for logarithmic colours where the loss spans decades.
        vmin: lowest loss with a colour of its own.
        vmax: highest loss with a colour of its own.
        euclidean: draw lengths to scale.
        errors: draw the standard error of the loss over samples, in place of the loss.

    Returns:
        A new figure.

    Raises:
        InputError: no such part, a line, errors of a surface that has none, or options that leave nothing to draw.
    """
    return _figure(surface, parts, _or_errors("loss", errors), euclidean, cells=True, log=log, vmin=vmin, vmax=vmax)


def _or_errors(what: str, errors: bool) -> str:
    return f"{what}_stderr" if errors else what


def _figure(
    surface: Surface, parts: Sequence[str] | None, what: str, euclidean: bool, *, cells: bool = False, **options: Any
) -> Figure:
    """Draw a panel for each part, as contours or as cells."""
    planes.check_plane(surface, cells=cells)
    surface, chosen, joining = joined(surface, parts)
    values = (planes.stored if cells else planes.filled)(surface, what)[chosen]
    shared = scale(values, what=what, **options)
    size = panels.sizes(len(chosen))
    words = drawing.caption(surface, values, shared, euclidean=euclidean, kind="cells" if cells else "contours")
    shape = planes.aspect(surface) if euclidean else 1.0
    with theme.theme():
        fig, axes = panels.small_multiples(len(chosen), heading=heading(surface, joining), caption=words, aspect=shape)
        draw = drawing.cell_panel if cells else drawing.panel
        for ax, p, heights in zip(axes, chosen, values, strict=True):
            colours = draw(ax, surface, p, heights, shared, euclidean=euclidean, size=size)
            ax.set_title(title(surface, p, size.length), parse_math=False)
        panels.outer_labels(axes)
        panels.colour_bar(fig, colours, axes, shared)
    return fig
