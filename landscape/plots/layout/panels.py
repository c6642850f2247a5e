"""Places panels in a figure as wide as a journal's column or page, with one colour bar and text around them.

All distances are inches: panels are as large as the width allows, and the height follows from what stands in it. In a
figure one column wide, bars and legends go below the panels.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib import rcParams
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter

from landscape.plots.layout import grids, paper, theme
from landscape.plots.layout.fitting import folded
from landscape.plots.layout.scales import Scale, label, name_of

ONE_PANEL, SEVERAL = 3.5, 7.16
"""Widths of figures where none was chosen, those of a journal's columns."""
LEFT, RIGHT = 0.66, 1.02
"""Room for the names and numbers of axes, and for a colour bar."""
EDGE = 0.12
"""Room at the right where nothing stands there."""

UNITS = {"loss": "mean loss"} | {what: name_of(what) for what in ("accuracy", "loss_stderr", "accuracy_stderr")}

_HEADING, _SMALL = 9.0, 6.5  # points, of the words above and below the panels
_NUMBERS = 0.5  # below the lowest panels
_LINE = 1.3 / 72  # height of a line for each point of its letters
_COMFORTABLE = 12  # panels; more are drawn small, without numbers on contour lines
_LEAST, _MOST = 1.15, 2.6  # side of a panel on a page
_TALL = 6.5  # of all panels on a page; where they would be taller, more of them stand side by side
_GAP = 0.22  # between panels on a page
_BAR = 0.5  # height of a colour bar below, with its numbers and its name


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How large the signs in a panel are."""

    title: float  # points
    length: int  # characters of a name
    axes: float  # names of axes, points
    contours: float  # numbers on contour lines, points; 0 for none
    marks: float  # of their usual size
    gap: float  # between columns


def ink() -> str:
    """Return the colour of letters: black on a light background, nearly white on a dark one."""
    return str(rcParams["text.color"])


def ground() -> str:
    """Return the background colour of an axes."""
    return str(rcParams["axes.facecolor"])


def columns_of(n: int, wanted: int | None = None) -> int:
    """Return how many of n panels stand in a row: as many as asked for, if the page is wide enough for them."""
    if wanted is not None and most_columns(wanted) == wanted:
        return wanted
    free = _free_columns(n)
    if paper.page() is None:
        return free
    n_columns = most_columns(free)
    while n_columns < free and -(-n // n_columns) * (side(n_columns) + 0.35) > _TALL:
        n_columns += 1
    return n_columns


def most_columns(n: int, right: float = RIGHT) -> int:
    """Return how many of n panels fit side by side, with room for something at the right of them."""
    page = paper.page()
    return n if page is None else min(n, int((page - sum(margins(right))) / _LEAST))


def margins(right: float = RIGHT) -> tuple[float, float]:
    """Return the widths at the left and at the right of panels that are kept free for labels and legends."""
    return LEFT, EDGE if paper.is_narrow() else right


def side(n_columns: int) -> float:
    """Return the width of panels that stand side by side on a page."""
    gaps = (n_columns - 1) * _GAP
    return min(_MOST, ((paper.page() or SEVERAL) - sum(margins()) - gaps) / n_columns)


def _free_columns(n: int) -> int:
    if n <= 3:
        return n
    if n in {5, 6, 9}:
        return 3
    return 4 if n <= _COMFORTABLE else min(10, math.isqrt(n - 1) + 1)


def sizes(n: int, wanted: int | None = None) -> Sizes:
    """Return the sizes for n panels in a figure; arguments as of `columns_of`."""
    n_columns = columns_of(n, wanted)
    if paper.page() is not None:
        if side(n_columns) >= 1.8:
            return Sizes(title=8, length=34, axes=7.5, contours=6, marks=0.9, gap=_GAP)
        if side(n_columns) >= 1:
            return Sizes(title=7, length=22, axes=7, contours=6 if side(n_columns) >= 1.3 else 0, marks=0.7, gap=_GAP)
        return Sizes(title=6, length=14, axes=6.5, contours=0, marks=0.5, gap=_GAP)
    if n_columns <= 2:
        return Sizes(title=9, length=40, axes=8.5, contours=6.5, marks=1, gap=0.32)
    if n_columns == 3:
        return Sizes(title=8, length=28, axes=7.5, contours=5.5, marks=0.9, gap=0.26)
    if n <= _COMFORTABLE:
        return Sizes(title=7, length=22, axes=7, contours=5, marks=0.8, gap=0.24)
    return Sizes(title=5.5, length=16, axes=6.5, contours=0, marks=0.45, gap=0.12)


def small_multiples(
    n: int,
    *,
    heading: str,
    caption: Sequence[str],
    aspect: float = 1.0,
    below: float = 0.0,
    n_columns: int | None = None,
    **projection: Any,
) -> tuple[Figure, list[Axes]]:
    """Make a figure of n panels alike: as wide as a column for one, and as the page for more.

    Args:
        n: number of panels.
        heading: lines above all panels.
        caption: sentences below them, in small type.
        aspect: height of a panel divided by its width.
        below: height to keep free between panels and caption.
        n_columns: panels in a row, if the page is wide enough for them; None for a number that depends on n.
        projection: projection of the axes, see matplotlib's `add_axes`.

    Returns:
        The figure and its axes, row by row.
    """
    size, n_columns = sizes(n, n_columns), columns_of(n, n_columns)
    width = ONE_PANEL if n == 1 else SEVERAL if n_columns <= 4 else 1.05 * n_columns + 1
    free = (width - LEFT - RIGHT - (n_columns - 1) * size.gap) / n_columns
    wide = free if paper.page() is None else side(n_columns)
    fig, axes = layout(
        [wide * aspect] * -(-n // n_columns),
        [wide] * n_columns,
        heading=heading,
        caption=caption,
        gap=size.gap,
        above=2 * size.title * _LINE + (0.15 if paper.page() is None else 0.2),
        below=below,
        only=n,
        **projection,
    )
    for ax in axes:
        ax.tick_params(labelsize=size.axes - 1)  # on a page, at least as large as in `fitting`
        ax.xaxis.label.set_fontsize(size.axes)
        ax.yaxis.label.set_fontsize(size.axes)
        ax.title.set_fontsize(size.title)
    return fig, axes


def layout(
    rows: Sequence[float],
    columns: Sequence[float],
    *,
    heading: str,
    caption: Sequence[str],
    gap: float = 0.3,
    above: float | Sequence[float] = 0.15,
    below: float = 0.0,
    right: float | None = None,
    only: int | None = None,
    **projection: Any,
) -> tuple[Figure, list[Axes]]:
    """Make a figure of panels in rows and columns; on a page that is too narrow for them, with all alike made smaller.

    Args:
        rows: heights of the panels.
        columns: widths of the panels.
        heading: lines above all panels, folded to the width.
        caption: sentences below them, in small type, folded; empty ones are left out.
        gap: between columns.
        above: for what stands above each row, or above one after the other.
        below: to keep free between panels and caption.
        right: for what stands at the right of the panels; None is enough for a colour bar.
        only: so many of the panels.
        projection: of the axes, as matplotlib's `add_axes` takes it.

    Returns:
        The figure, which has no layout engine, and its axes row by row.
    """
    left, right = margins(RIGHT if right is None else right)
    gaps = (len(columns) - 1) * gap
    if paper.title.get() is not None or not paper.captions.get():
        heading = paper.title.get() or ""
    caption = caption if paper.captions.get() else ()
    page = paper.page()
    scale = 1.0 if page is None else min(1.0, (page - left - right - gaps) / sum(columns))
    rows, columns = [scale * row for row in rows], [scale * column for column in columns]
    width = left + sum(columns) + gaps + right
    if page is not None:
        left, width = left + (page - width) / 2, page
    above = [above] * len(rows) if isinstance(above, int | float) else list(above)
    head, foot = folded([heading], width, _HEADING), folded(caption, width, _SMALL)
    bottom = len(foot) * _SMALL * _LINE + 0.1 + below + _NUMBERS
    height = bottom + sum(rows) + sum(above) + len(head) * _HEADING * _LINE + 0.1
    fig = theme.figure(width, height)
    fig.set_layout_engine("none")
    fig.set_figheight(height)
    axes = []
    for i in range(len(rows) * len(columns) if only is None else only):
        row, column = divmod(i, len(columns))
        x = left + sum(columns[:column]) + column * gap
        y = bottom + sum(rows[row + 1 :]) + sum(above[row + 1 :])
        box = x / width, y / height, columns[column] / width, rows[row] / height
        ax = fig.add_axes(box, **projection)
        theme.keep_ticks(ax)
        axes.append(ax)
    if head:
        fig.suptitle("\n".join(head), y=1 - 0.06 / height, va="top", fontsize=_HEADING, parse_math=False)
    if foot:
        text = "\n".join(foot)
        place = {"x": 0.06 / width, "y": 0.05 / height, "ha": "left", "va": "bottom"}
        fig.supxlabel(text, **place, fontsize=_SMALL, alpha=0.75, linespacing=1.25, parse_math=False)
    return fig, axes


def add_below(fig: Figure, panels: Sequence[Axes], height: float) -> Axes:
    """Add an axes to the room that was kept free below all panels, with more room for a legend at its right.

    Args:
        fig: from `small_multiples`, with `below=room_for(height)`.
        panels: all of its axes.
        height: of the axes.

    Returns:
        The axes.
    """
    width, whole = fig.get_figwidth(), fig.get_figheight()
    boxes = [ax.get_position(original=True) for ax in panels]
    left, right = min(b.x0 for b in boxes), max(b.x1 for b in boxes)
    low = min(ax.get_position(original=True).y0 for ax in fig.axes) - room_for(height) / whole
    ax = fig.add_axes((left, low, right - left - 0.3 / width, height / whole))
    theme.keep_ticks(ax)
    ax.tick_params(labelsize=6.5)
    return ax


def room_for(height: float) -> float:
    """Return what an axes of a height takes below others, with the names of their axes."""
    return height + _NUMBERS


def outer_labels(panels: Sequence[Axes], wanted: int | None = None) -> None:
    """Leave names and numbers of axes to the left column and the lowest panels; of many to the one in the corner.

    Args:
        panels: row by row.
        wanted: panels in a row, as for `columns_of`.
    """
    n, n_columns = len(panels), columns_of(len(panels), wanted)
    corner = (n - 1) // n_columns * n_columns
    for i, ax in enumerate(panels):
        left, low = i % n_columns == 0, i + n_columns >= n
        if n > _COMFORTABLE:
            left = low = i == corner
        ax.tick_params(labelleft=left, labelbottom=low)
        if not left:
            ax.set_ylabel("")
        if not low:
            ax.set_xlabel("")


def colour_bar(fig: Any, mappable: Any, panels: Sequence[Axes], scale: Scale, *, beside: bool = False) -> None:
    """Draw one colour bar for all panels, labelled with the levels.

    Args:
        fig: the figure.
        mappable: what has the colours.
        panels: at their right.
        scale: of the panels.
        beside: take the room from the panels' own, for a figure that was laid out by others.
    """
    words = UNITS[scale.what] + (" (logarithmic)" if scale.log else "")
    most = 11
    how: dict[str, Any] = {"ax": panels, "fraction": 0.08, "pad": 0.03, "aspect": 25}
    if paper.is_narrow() and not beside:
        how = {"cax": bar_axes_below(fig, panels), "orientation": "horizontal"}
    elif not beside:
        width, boxes = fig.get_figwidth(), [ax.get_position(original=True) for ax in panels]
        low, high = min(b.y0 for b in boxes), max(b.y1 for b in boxes)
        right = max(b.x1 for b in boxes)
        most = max(3, int((high - low) * fig.get_figheight() / 0.16))
        how = {"cax": fig.add_axes((right + 0.12 / width, low, 0.13 / width, high - low))}
    levels, numbers = FixedLocator(scale.ticks(most).tolist()), FuncFormatter(lambda x, _: label(x))
    bar = fig.colorbar(mappable, **how, extend=scale.extend, extendfrac=0.03, ticks=levels, format=numbers)
    bar.set_label(words, size=8, labelpad=2)
    bar.ax.tick_params(labelsize=7, width=0.6, length=2.5)
    bar.minorticks_off()
    bar.ax.grid(visible=False)
    bar.outline.set_linewidth(0.5)


def legend(ax: Axes, handles: Sequence[Any], title: str | None = None, *, inside: bool = False) -> None:
    """Write a legend at the right of a panel or in its corner, in one column below all; in it no name is a formula.

    Args:
        ax: the panel.
        handles: with labels.
        title: a line above.
        inside: in the upper left corner of the panel.
    """
    style: dict[str, Any] = {"bbox_to_anchor": (0.0, 1.0) if inside else (1.01, 1.02), "frameon": inside}
    if paper.is_narrow():
        style = {"frameon": False, "ncols": grids.columns_of_legend(handles)}
    found = ax.legend(handles=handles, loc="upper left", fontsize=7, title=title, handlelength=1.4, **style)
    found.get_title().set_fontsize(7.5)
    for text in found.get_texts():
        text.set_parse_math(False)
    if paper.is_narrow():
        fig: Any = ax.figure
        middle = room_below(fig, found.get_window_extent().height / fig.dpi + 0.05)
        found.set_loc("upper center")
        found.set_bbox_to_anchor((0.5, middle), fig.transFigure)


def room_below(fig: Figure, height: float) -> float:
    """Make a figure higher, for something below all its axes and the names and numbers of these.

    Args:
        fig: from `layout`.
        height: of the room, in inches.

    Returns:
        The upper end of the room as a fraction of the figure's height.
    """
    old = fig.get_figheight()
    new = old + height
    fig.set_figheight(new)
    for ax in fig.axes:
        box = ax.get_position(original=True)
        ax.set_position((box.x0, (box.y0 * old + height) / new, box.width, box.height * old / new))
    for text in fig.texts:
        x, y = text.get_position()
        text.set_position((x, (y * old + (height if y > 0.5 else 0)) / new))
    return float(min(ax.get_position(original=True).y0 for ax in fig.axes)) - _NUMBERS / new


def bar_axes_below(fig: Figure, panels: Sequence[Axes]) -> Axes:
    """Add an axes for a horizontal colour bar below panels, as wide as these."""
    top, height = room_below(fig, _BAR), fig.get_figheight()
    boxes = [ax.get_position(original=True) for ax in panels]
    left, right = min(b.x0 for b in boxes), max(b.x1 for b in boxes)
    return fig.add_axes((left, top - 0.1 / height, right - left, 0.1 / height))
