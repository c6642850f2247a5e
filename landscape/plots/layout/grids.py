"""How panels, legends and colour bars stand in a figure: in free sizes as asked for, on a page as many as it has room.

On a page one column wide, legends and colour bars go below the panels.
"""

import math
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from landscape.plots.layout import fitting, paper, theme

LEAST = 1.4
"""Inches: narrowest panel that can be read, with its labels."""
LEAST_MAP = 2.4
"""Inches: narrowest map with names at its rows."""
_ROW = 1.3  # height of a row of such panels, with titles
_MOST_ENTRIES = 11  # of a legend as high as such a row
_ENTRY = 0.42  # inches of a legend's entry besides its letters


def grid(
    n: int,
    n_columns: int,
    width: float,
    height: float,
    *,
    least: float = LEAST,
    ratio: float = 0.75,
    **subplots: Any,
) -> tuple[Figure, np.ndarray, int]:
    """Make a figure of panels.

    Args:
        n: number of panels.
        n_columns: number of panels in a row; on a page fewer, if they would be narrower than `least`.
        width: width of the figure in inches; on a page, the page's width is used.
        height: height of the figure in inches; on a page, the height that the panels need is used.
        least: least width of a panel with its labels, in inches.
        ratio: ratio of a panel's height to its width, on a page.
        subplots: arguments of `Figure.subplots`.

    Returns:
        The figure, its axes row by row, and the number of panels in a row.
    """
    page = paper.page()
    if page is not None:
        n_columns = min(n_columns, most_columns(least))
        n_columns = math.ceil(n / math.ceil(n / n_columns))  # rows of similar lengths
    n_rows = -(-n // n_columns)
    fig = theme.figure(width, height, paper.Room(rows=n_rows, ratio=ratio))
    axes = fig.subplots(n_rows, n_columns, squeeze=False, **subplots).ravel()
    free = 1 if paper.is_narrow() and len(axes) > n else 0  # space for a legend
    for ax in axes[n : n + free]:
        ax.set_axis_off()
    for ax in axes[n + free :]:
        ax.remove()
    for ax in axes[:n]:
        theme.keep_ticks(ax)
    if subplots.get("sharex"):
        for ax in axes[:n][-n_columns:]:  # also where the row below is not full
            ax.tick_params(labelbottom=True)
    return fig, axes[:n], n_columns


def most_columns(least: float = LEAST) -> int:
    """Return how many panels of a width in inches stand side by side; without a page more than there ever are."""
    page = paper.page()
    return sys.maxsize if page is None else int(page / least)


def most_panels(free: int) -> int:
    """Return how many panels a figure may have: so many, or what the page has room for."""
    return free if paper.page() is None else min(free, most_columns() * int(paper.HIGHEST / _ROW))


def legend(fig: Figure, handles: Sequence[Any], title: str | None = None) -> None:
    """Write a legend at the right of all panels, in one column below or where a panel is missing; no name is a formula.

    Args:
        fig: with constrained layout.
        handles: with labels.
        title: a line above.
    """
    style: dict[str, Any] = {"loc": "outside right upper", "fontsize": "small"}
    owner: Figure | Axes = fig
    if paper.is_narrow():
        style = {"loc": "outside lower center", "ncols": columns_of_legend(handles)}
        empty = [ax for ax in fig.axes if not ax.axison]
        if empty and style["ncols"] > 1 and len(handles) <= _MOST_ENTRIES:
            owner, style = empty[0], {"loc": "center"}
    found = owner.legend(handles=handles, frameon=False, title=title, **style)
    for text in found.get_texts():
        text.set_parse_math(False)


def columns_of_legend(handles: Sequence[Any]) -> int:
    """Return in how many columns a legend's entries fit on the page."""
    widest = max((fitting.width_of(str(h.get_label()), 6.5) for h in handles), default=0.0) + _ENTRY
    return max(1, min(len(handles), int((paper.page() or 0.0) / widest)))


def shared(*axes: str) -> dict[str, bool]:
    """Let panels share axes on a page, as `Figure.subplots` takes it; where there is room each has its own names."""
    return {} if paper.page() is None else {f"share{axis}": True for axis in axes}


def bar_place() -> dict[str, Any]:
    """Return where a colour bar stands, as `Figure.colorbar` takes it: at the right, or below in one column."""
    return {"location": "bottom"} if paper.is_narrow() else {}
