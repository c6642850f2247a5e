"""Adjusts a figure to the columns of a paper: sizes of letters, line breaks and height.

Long lines are folded, ticks are left out if their labels would touch, and the height follows from the panels. All sizes
are measured on the drawn figure, so that a kind of figure needs no rules of its own.
"""

import re
import warnings
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis, Tick
from matplotlib.collections import QuadMesh
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.image import AxesImage
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.legend import Legend
from matplotlib.text import Annotation, Text
from matplotlib.textpath import TextToPath
from matplotlib.ticker import FixedLocator
from matplotlib.transforms import Bbox, ScaledTranslation

from landscape.plots.layout import paper
from landscape.results import written

SMALLEST, LARGEST = 6.0, 9.0
"""Points, of letters; indices of formulas are smaller, as in the text of a paper."""
NAMES = 0.3
"""Of the page's width, what names of rows and columns may take."""

BELOW = "below"
"""The gid of legends that stand below their axes, because these have no room between their points."""

_HANDLE = 0.4  # inches in a legend besides its letters
_ROUNDS = 2  # a fold changes the layout, and the layout changes the fold


def fit(fig: Figure, room: paper.Room) -> None:
    """Adjust a figure that has the width of a page.

    Args:
        fig: the complete figure.
        room: height of its panels; if the figure has no layout engine, they are not changed.
    """
    _limit_letters(fig)
    every = [axis for ax in fig.axes for axis in axes_of(ax)]
    for axis in every:
        _shorten_names(axis, NAMES * fig.get_figwidth())
    inside = []
    if isinstance(fig.get_layout_engine(), ConstrainedLayoutEngine):  # other legends have fixed positions
        inside = [(ax, found) for ax in fig.axes if (found := ax.get_legend()) is not None and ax.axison]
    for _, legend in inside:
        legend.set_in_layout(False)
    unfolded: dict[Text, str] = {}
    for _ in range(_ROUNDS):
        _lay_out(fig, room)
        for axis in every:
            _thin(axis)
        for ax in fig.axes:
            _fold_labels(ax, fig.axes, unfolded)
            _fold_inside(ax, unfolded)
        for text in fig.texts:
            _fold(text, fig.get_size_inches()[1 if text.get_rotation() else 0], unfolded)
        for ax, legend in inside:
            _place_legend(ax, legend, _across(ax, fig.axes), unfolded)
    _lay_out(fig, room)
    for ax in fig.axes:
        _drop_numbers(ax)


def folded(lines: Sequence[str], width: float, size: float, *, math: bool = False) -> list[str]:
    """Fold lines between words.

    Args:
        lines: texts, each of one or several lines; empty ones are left out.
        width: in inches.
        size: size of the letters in points.
        math: text between dollar signs is a formula, which is not divided.

    Returns:
        The lines, none wider than `width`, except for wider formulas.
    """
    room = _room(width)
    length = _ruler(size, math=math)
    found = []
    space = length("n n") - 2 * length("n")
    for line in (one for several in lines for one in several.splitlines() if one.strip()):
        words, used = [""], 0.0
        for word in _words(line, math=math):
            whole = math and "$" in word
            most = max(1, int(len(word) * room / max(length(word), 1)))  # letters of a word longer than a line
            for piece in [word] if whole else (word[i : i + most] for i in range(0, len(word), most)):
                needed = length(piece)
                if used + needed > room:
                    words, used = [*words, piece], needed + space
                else:
                    words[-1] += f" {piece}" if words[-1] else piece
                    used += needed + space
        found += [word for word in words if word]
    return found


def _room(width: float) -> float:
    """Return how many points of a width in inches letters may take; rounding to pixels widens small letters most."""
    share = 0.95 if paper.page() is None else 0.93
    return share * (width - 0.1) * 72


def _words(text: str, *, math: bool) -> list[str]:
    return re.findall(r"(?:\$[^$]*\$|\S)+", text) if math else text.split()


def width_of(text: str, size: float) -> float:
    """Return how wide the longest line of a text is, in inches, in letters of a size in points."""
    return max(map(_ruler(size), text.splitlines() or [""])) / 72


def _limit_letters(fig: Figure) -> None:
    for ax in fig.axes:
        for axis in axes_of(ax):
            size = axis.get_tick_params().get("labelsize")  # of ticks that are not yet made
            if isinstance(size, int | float) and size < SMALLEST:
                axis.set_tick_params(labelsize=SMALLEST)
    for text in fig.findobj(Text):
        text.set_fontsize(float(np.clip(text.get_fontsize(), SMALLEST, LARGEST)))


def _shorten_names(axis: Axis, width: float) -> None:
    """Cut the middle out of names at ticks that are longer than a width in inches."""
    ticks = [tick for tick in labelled(axis) if not tick.label1.get_parse_math()]  # numbers may be formulas
    names = [tick.label1.get_text() for tick in ticks]
    if not names:
        return
    length = _ruler(float(ticks[0].label1.get_fontsize()))
    longest = max(map(length, names))
    if longest > 72 * width:
        letters = max(3, int(max(map(len, names)) * 72 * width / longest))
        axis.set_ticks([tick.get_loc() for tick in ticks], labels=[written.shorten(name, letters) for name in names])


def _lay_out(fig: Figure, room: paper.Room) -> None:
    """Update the layout, and make the figure as high as its largest axes needs."""
    engine = fig.get_layout_engine()
    if not isinstance(engine, ConstrainedLayoutEngine):
        if any(ax.name == "3d" for ax in fig.axes):
            fig.draw_without_rendering()
            return
        for ax in fig.axes:
            ax.apply_aspect()
        return
    if not _has_room(fig, engine):
        fig.set_figheight(paper.HIGHEST)
        engine.execute(fig)
    width, height = fig.get_size_inches()
    box = max((ax.get_position(original=True) for ax in fig.axes), key=lambda b: b.width * b.height)
    wanted = float(np.clip(room.ratio * box.width * width, room.least, room.most))
    beside = max((legend.get_window_extent().height / fig.dpi + 0.1 for legend in fig.legends), default=0.0)
    fig.set_figheight(min(paper.HIGHEST, max(beside, height + room.rows * (wanted - box.height * height))))


def _has_room(fig: Figure, engine: ConstrainedLayoutEngine) -> bool:
    """Update the layout; say whether what is around the panels leaves room for these, without which nothing changes."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        engine.execute(fig)
    return not said


def _fold_labels(ax: Axes, others: Sequence[Axes], unfolded: dict[Text, str]) -> None:
    """Fold the title and the names of axes where they would reach those of the next panel, or leave the page."""
    if ax.name == "3d":  # whose names are rotated
        return
    own, boxes = _inches(ax), [_inches(other) for other in others if other is not ax]
    above = [(b.y0, b.y1) for b in boxes if b.x0 < own.x1 and b.x1 > own.x0]
    upright = _between((own.y0, own.y1), above, _below_title(ax))
    across = _across(ax, others)
    fixed = not isinstance(ax.figure.get_layout_engine(), ConstrainedLayoutEngine)  # no room for further lines
    if fixed:
        _shorten_lines(ax.title, across)
    for text, width in (
        *([] if fixed else [(ax.title, across)]),
        (ax.xaxis.label, across),
        (ax.yaxis.label, upright),
    ):
        _fold(text, width, unfolded)


def _below_title(ax: Axes) -> float:
    """Return how high in inches the figure is below its title."""
    figure: Any = ax.figure
    titles = [
        text for text in figure.texts if text.get_text() and not text.get_rotation() and text.get_position()[1] > 0.9
    ]
    edges = [float(text.get_window_extent().y0) / float(figure.dpi) for text in titles]
    return min([_size(ax)[1], *edges])


def _shorten_lines(text: Text, width: float) -> None:
    """Cut the middle out of lines that are longer than a width in inches in the smallest letters."""
    size, room = float(text.get_fontsize()), _room(width + 0.06)
    lines = text.get_text().splitlines()
    longest = max((_length(line, size, False) for line in lines), default=0.0)
    if longest <= room:
        return
    size = max(SMALLEST, size * room / longest)
    text.set_fontsize(size)
    letters = [max(3, int(len(line) * room / max(_length(line, size, False), 1.0))) for line in lines]
    text.set_text("\n".join(written.shorten(line, n) for line, n in zip(lines, letters, strict=True)))


def _fold_inside(ax: Axes, unfolded: dict[Text, str]) -> None:
    """Fold text in a corner of an axes that would reach beyond the other side."""
    for text in ax.texts:
        x, y = text.get_position()
        if text.get_transform() is ax.transAxes and 0 < x < 1 and 0 < y < 1 and not text.get_rotation():
            _fold(text, _inches(ax).width, unfolded)


def _fold(text: Text, width: float, unfolded: dict[Text, str]) -> None:
    """Fold the original text; make its letters smaller if a word would have to be divided."""
    whole = unfolded.setdefault(text, text.get_text())
    size, math = float(text.get_fontsize()), bool(text.get_parse_math())
    room = width + 0.06  # of which `folded` uses less
    longest = max(map(_ruler(size, math=math), _words(whole, math=math)), default=0.0)
    most = _room(room)
    if longest > max(0.0, most):
        text.set_fontsize(max(SMALLEST, size * most / longest))
    lines = "\n".join(folded([whole], room, float(text.get_fontsize()), math=math))
    if lines != text.get_text():
        text.set_text(lines)


def _place_legend(ax: Axes, legend: Legend, across: float, unfolded: dict[Text, str]) -> None:
    """Move a legend that would fill its axes below the name of the x axis, and fold its text."""
    drawn, own = legend.get_window_extent(), ax.get_window_extent()
    small = drawn.width < 0.7 * own.width and drawn.height < 0.5 * own.height
    if not legend.get_in_layout() and small and legend.get_gid() != BELOW:
        return
    dpi = ax.figure.dpi
    for text in legend.get_texts():
        _fold(text, across - _HANDLE, unfolded)
    names: Any = ax.xaxis.get_tightbbox()  # None only for an axis that is hidden
    below = (names.y0 - own.y0) / dpi
    legend.set_loc("upper center")
    legend.set_bbox_to_anchor((0.5, 0.0), ax.transAxes + ScaledTranslation(0, below, ax.figure.dpi_scale_trans))
    legend.set_in_layout(True)


def _across(ax: Axes, others: Sequence[Axes]) -> float:
    """Return how wide in inches a text may be that stands in the middle above or below an axes."""
    own, boxes = _inches(ax), [_inches(other) for other in others if other is not ax]
    beside = [(b.x0, b.x1) for b in boxes if b.y0 < own.y1 and b.y1 > own.y0]
    return _between((own.x0, own.x1), beside, _size(ax)[0])


def _between(own: tuple[float, float], others: Sequence[tuple[float, float]], end: float) -> float:
    """Return how long a text in the middle of an axes may be: as far as half way to its neighbours."""
    low = max(((own[0] + high) / 2 for _, high in others if high <= own[0]), default=0.0)
    high = min(((own[1] + low) / 2 for low, _ in others if low >= own[1]), default=end)
    middle = (own[0] + own[1]) / 2
    return 2 * min(middle - low, high - middle)


def _size(ax: Axes) -> tuple[float, float]:
    figure: Any = ax.figure  # matplotlib's types also allow a part of a figure, which has no size
    width, height = figure.get_size_inches()
    return float(width), float(height)


def _inches(ax: Axes) -> Bbox:
    width, height = _size(ax)
    box = ax.get_position()
    return Bbox([[box.x0 * width, box.y0 * height], [box.x1 * width, box.y1 * height]])


def _thin(axis: Axis) -> None:
    """Remove ticks until no two labels of an axis touch."""
    ticks = labelled(axis)
    boxes = [tick.label1.get_window_extent() for tick in ticks]
    if not touch(boxes):
        return
    places = [float(tick.get_loc()) for tick in ticks]
    gaps = np.abs(np.diff(axis.get_transform().transform(np.array(places))))
    kept = _kept(places, boxes, even=bool(np.ptp(gaps) < 0.1 * gaps.max()))
    axis.set_major_locator(FixedLocator([places[i] for i in kept]))


def _kept(places: Sequence[float], boxes: Sequence[Bbox], *, even: bool) -> list[int]:
    """Choose every second or third tick, including zero; of uneven ticks, zero and those that fit from the ends on."""
    n, first = len(places), places.index(0) if 0 in places else 0
    if even:
        steps = ([i for i in range(n) if (i - first) % step == 0] for step in range(2, n + 1))
        return next(kept for kept in steps if not touch([boxes[i] for i in kept]))
    kept: list[int] = []
    for i in [first, *(i for pair in zip(range(n - 1, -1, -1), range(n), strict=True) for i in pair)]:
        if i not in kept and not touch([boxes[j] for j in sorted([*kept, i])]):
            kept.append(i)
    return sorted(kept)


def _drop_numbers(ax: Axes) -> None:
    """Remove the numbers of a map where some would touch each other or leave their cells; the colours stay."""
    if not any(isinstance(artist, AxesImage | QuadMesh) for artist in ax.get_children()):
        return
    numbers = [text for text in ax.texts if text.get_transform() is ax.transData and not isinstance(text, Annotation)]
    boxes = [text.get_window_extent() for text in numbers]
    cell = np.abs(np.diff(ax.transData.transform([(0, 0), (1, 1)]), axis=0)[0])  # cells have the size 1
    if touch(boxes) or any(box.width > cell[0] or box.height > cell[1] for box in boxes):
        for text in numbers:
            text.remove()


def axes_of(ax: Any) -> list[Axis]:
    """Return the two or three axis objects of an axes."""
    return [ax.xaxis, ax.yaxis, *([ax.zaxis] if ax.name == "3d" else [])]


def labelled(axis: Axis) -> list[Tick]:
    """Return the ticks that are seen and have a label."""
    if axis.axes.name != "3d":  # drawing positions the labels
        axis.get_majorticklabels()  # updates the ticks
    low, high = sorted(axis.get_view_interval())
    beyond = 1e-9 * (high - low)
    return [
        tick
        for tick in axis.get_major_ticks()
        if tick.label1.get_visible() and tick.label1.get_text() and low - beyond <= tick.get_loc() <= high + beyond
    ]


def touch(boxes: Sequence[Bbox]) -> bool:
    """Say whether two of some boxes in pixels have less than a pixel between them."""
    x0, y0, x1, y1 = np.array([b.extents for b in boxes]).reshape(-1, 4).T
    over = (x0[:, None] < x1 + 1) & (x0 < x1[:, None] + 1) & (y0[:, None] < y1 + 1) & (y0 < y1[:, None] + 1)
    return bool(over.sum() > len(boxes))


def _ruler(size: float, *, math: bool = False) -> Callable[[str], float]:
    """Return a function that measures the width of a text in letters of a size, in points."""
    return lambda text: _length(text, size, math and "$" in text)


@lru_cache(maxsize=4096)
def _length(text: str, size: float, formula: bool) -> float:
    return float(TextToPath().get_text_width_height_descent(text, FontProperties(size=size), ismath=formula)[0])
