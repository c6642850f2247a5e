"""How every figure looks, and how it becomes a file. There is no pyplot here: a figure is a value, not a window."""

from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from landscape.callables import checked
from landscape.errors import InputError, arg, check_choice
from landscape.plots.layout import fitting, paper
from landscape.results import disk, quadrature

STEPS = (1, 2, 5, 10)
"""Distances of ticks on linear axes, times a power of ten."""

# The dates that would make two files of one figure differ.
_METADATA: dict[str, dict[str, Any]] = {
    ".png": {},
    ".pdf": {"CreationDate": None},
    ".svg": {"Date": None},
}


STYLES = {"paper": 1.0, "talk": 1.25, "web": 1.1}
"""What a figure is for, and how large its letters and lines are beside those of a paper's."""

_FAR = 30.0  # below the least value, a logarithmic axis shows so much of bars and bands
_LEAST_ROOM = 1.1  # the factor of a logarithmic axis beyond its values

LEAST_CONTRAST = 4.0
"""Of the ten colours against a dark ground; 3 is what guidelines ask for."""

_chosen: ContextVar[tuple[str, bool]] = ContextVar("style", default=("paper", False))
_made: ContextVar[list[tuple[Figure, paper.Room]] | None] = ContextVar("made", default=None)

_DARK = {
    "figure.facecolor": "#14161a",
    "savefig.facecolor": "#14161a",
    "axes.facecolor": "#23262d",
    "axes.edgecolor": "#23262d",
    "grid.color": "#14161a",
    **dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color"), "#e4e6eb"),
}


_PRINTED = {
    "font.size": 8,
    "figure.titlesize": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 7.5,
    "legend.title_fontsize": 7,
    **dict.fromkeys(("xtick.labelsize", "ytick.labelsize", "legend.fontsize"), 6.5),
}


@checked
@contextmanager
def styled(
    style: str = "paper",
    *,
    dark: bool = False,
    columns: int | None = None,
    title: str | None = None,
    caption: bool = True,
) -> Generator[None, None, None]:
    """Set the style of all figures that are drawn and written within a `with` block.

    Args:
        style: "paper", "talk" or "web".
        dark: use light letters on a dark background.
        columns: 1 or 2 for figures as wide as one or two columns of a paper, `paper.WIDTHS`, with letters of 6 to 9
            points and fewer panels in a row; None for the default size of each figure. Figures on your own axes keep
            their size.
        title: title of the figure, replacing its own; titles of panels are kept.
        caption: False omits the text above and below the panels, for a paper that has its own caption.

    Yields:
        Nothing.

    Raises:
        InputError: an unknown style or number of columns, or columns with a style other than "paper".
    """
    check_choice("style", style, STYLES)
    if columns not in paper.WIDTHS:
        raise InputError(f"{arg('columns')} must be 1 or 2, got {columns!r}")
    if columns is not None and style != "paper":
        raise InputError(
            f"{arg('columns', columns)} sets sizes for a paper: leave out either it or {arg('style', style)}"
        )
    variables: list[tuple[ContextVar[Any], Any]] = [
        (_chosen, (style, dark)),
        (paper.chosen, columns),
        (paper.title, title),
        (paper.captions, caption),
    ]
    tokens = [(variable, variable.set(value)) for variable, value in variables]
    try:
        yield
    finally:
        for variable, token in tokens:
            variable.reset(token)


@contextmanager
def theme() -> Generator[None, None, None]:
    """Set matplotlib's defaults within a `with` block: seaborn's "darkgrid" in the sizes that `styled` chose.

    At its end the figures that were made in it get the title, and are fitted to the columns, that `styled` chose.
    """
    import seaborn  # imports pandas, which takes a second and is not needed for importing this package

    name, dark = _chosen.get()
    style = {
        **seaborn.axes_style("darkgrid"),
        **seaborn.plotting_context("paper", font_scale=STYLES[name]),
        **(_DARK if dark else {}),
        "font.sans-serif": ["DejaVu Sans"],  # comes with matplotlib, so that a figure is the same everywhere
        "axes.titlesize": 9 * STYLES[name],
        "xtick.bottom": True,
        "xtick.major.size": 3,
        "xtick.minor.size": 2,
        "pdf.fonttype": 42,  # letters stay letters; journals refuse Type 3
        "svg.hashsalt": "landscape",
        "savefig.dpi": 200,
        **(_PRINTED if paper.page() else {}),
    }
    made: list[tuple[Figure, paper.Room]] = []
    token = _made.set(made)
    try:
        with matplotlib.rc_context(style):
            yield
            for fig, room in made:
                _reword(fig)
                if paper.page() is not None:
                    fitting.fit(fig, room)
    finally:
        _made.reset(token)


def _reword(fig: Figure) -> None:
    """Write the title that `styled` has chosen, and leave out the descriptions if they are not wanted."""
    title = paper.title.get()
    if title is None and paper.captions.get():
        return
    own = [ax.title for ax in fig.axes if ax.title.get_gid() == paper.CAPTION]
    for text in own:
        text.set_text("")
    if not isinstance(fig.get_layout_engine(), ConstrainedLayoutEngine):  # `panels.layout` has written the title
        return
    if title is not None and len(own) == 1:
        own[0].set_text(title)
    elif title is not None or fig.get_suptitle():
        fig.suptitle(title or "", parse_math=False)


def palette() -> list[str]:
    """Return ten colours, as hexadecimal text, that readers with colour blindness can tell apart.

    On a dark ground those that would be lost in it are lighter.
    """
    import seaborn

    return [_lightened(shade) for shade in seaborn.color_palette("colorblind").as_hex()]


def hues(n: int) -> list[str]:
    """Return n colours that can be told apart: those of `palette` if they are enough, else `shades`."""
    return palette()[:n] if n <= len(palette()) else shades(n)


def ink() -> str:
    """Return the colour of letters."""
    return _DARK["axes.labelcolor"] if _is_dark() else "0.15"


def shades(n: int) -> list[str]:
    """Return n colours for ranks, from dark to light; on a dark background the first is light enough to be seen.

    Args:
        n: how many, for the most frequent part first.

    Returns:
        Hexadecimal text.
    """
    first, last = (0.42, 1.0) if _is_dark() else (0.0, 0.92)
    return [to_hex(shade) for shade in colormaps["viridis"](np.linspace(first, last, n))]


def contrast(colour: Any, ground: Any) -> float:
    """Return how far two colours are apart in lightness, 1 to 21.

    Args:
        colour: as matplotlib takes it.
        ground: the other colour.

    Returns:
        The contrast ratio; 3 is the least for lines and signs that have to be seen.

    Source: Web Content Accessibility Guidelines 2.2, success criterion 1.4.11.
    """
    low, high = sorted(_luminance(c) for c in (colour, ground))
    return (high + 0.05) / (low + 0.05)


def muted() -> str:
    """Return the colour of lines that stand behind others."""
    return "0.5" if _is_dark() else "0.6"


def _is_dark() -> bool:
    return _chosen.get()[1]


def _luminance(colour: Any) -> float:
    rgb = np.array(to_rgb(colour))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    return float(linear @ (0.2126, 0.7152, 0.0722))


def _lightened(colour: str) -> str:
    """Mix a colour with white until it contrasts with the dark background, where that was chosen."""
    if not _is_dark():
        return colour
    mixed = (np.array(to_rgb(colour)) * (1 - share) + share for share in np.linspace(0, 1, 41))
    return next(to_hex(found) for found in mixed if contrast(found, _DARK["axes.facecolor"]) >= LEAST_CONTRAST)


def figure(width: float, height: float, room: paper.Room | None = None) -> Figure:
    """Make an empty figure.

    Args:
        width: in inches, unless `styled` chose columns.
        height: in inches; with columns that which the panels need, once `fitting.fit` has measured them.
        room: what the panels need; None for panels a quarter wider than high.

    Returns:
        A figure without a window, with a layout that avoids overlaps.
    """
    wide = paper.page()
    fig = Figure(figsize=(width, height) if wide is None else (wide, paper.HIGHEST), layout="constrained")
    made = _made.get()
    if made is not None:
        made.append((fig, room or paper.Room()))
    return fig


def keep_ticks(ax: Axes) -> None:
    """Fix the style of ticks and grid now, since matplotlib makes them later, with the defaults of that moment.

    Args:
        ax: new axes.
    """
    rc: Any = matplotlib.rcParams  # its type has no composed names
    for name, axis in (("x", ax.xaxis), ("y", ax.yaxis)):
        for which in ("major", "minor"):
            axis.set_tick_params(
                which=which,
                length=rc[f"{name}tick.{which}.size"],
                width=rc[f"{name}tick.{which}.width"],
                color=rc[f"{name}tick.color"],
                labelsize=rc[f"{name}tick.labelsize"],
                labelcolor=rc["text.color"],
                grid_color=rc["grid.color"],
                grid_linestyle=rc["grid.linestyle"],
                grid_linewidth=rc["grid.linewidth"],
            )


def log_scale(axis: Axis, values: np.ndarray) -> None:
    """Make an axis logarithmic where its values are positive and span decades.

    Args:
        axis: `ax.xaxis` or `ax.yaxis`.
        values: what is drawn along it.
    """
    if not (values > 0).all() or values.max() < 5 * values.min():
        axis.set_major_locator(MaxNLocator(4, steps=STEPS))
        return
    (axis.axes.set_xscale if axis is axis.axes.xaxis else axis.axes.set_yscale)("log")
    # matplotlib labels 2, 3, 4 and 6 times a power of ten where the axis is short, one over the other.
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if values.max() < 50 * values.min() else (1,), numticks=5))
    axis.set_minor_formatter(NullFormatter())
    axis.set_major_formatter(FuncFormatter(lambda x, _: decade(x)))


def limits(axis: Axis, values: np.ndarray, ends: np.ndarray) -> tuple[float, float]:
    """Return limits of an axis that contain values and the ends of their bars and bands, with room for markers.

    On a logarithmic axis an end that is 0, or far below all values, is beyond the lower limit: what reaches so far goes
    to the edge.

    Args:
        axis: with its scale.
        values: what is drawn as points, positive on a logarithmic axis.
        ends: of bars and bands.

    Returns:
        The lower and the upper limit.
    """
    values, ends = values[np.isfinite(values)], ends[np.isfinite(ends)]
    every = np.concatenate([values, ends]) if values.size else np.append(ends, 1.0)
    if axis.get_scale() != "log":
        low, high = float(every.min()), float(every.max())
        room = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
        return low - room, high + room
    positive = every[every > 0]
    low = max(float(positive.min()), float(values.min()) / _FAR)
    room = (float(positive.max()) / low) ** 0.05
    return low / max(room, _LEAST_ROOM), float(positive.max()) * max(room, _LEAST_ROOM)


def symlog_scale(ax: Axes, low: float, high: float, linear: float) -> None:
    """Give the x axis the scale of `quadrature.symlog`, with zero and the powers of ten as ticks.

    Args:
        ax: axes whose x are eigenvalues.
        low: end of the axis.
        high: end of the axis.
        linear: where the scale turns from linear to logarithmic.
    """
    ax.set_xscale(
        "function",
        functions=(lambda x: quadrature.symlog(x, linear), lambda u: quadrature.symlog_inverse(u, linear)),
    )
    end = max(-low, high, linear)
    powers = [linear * 10.0**k for k in range(int(np.log10(end / linear)) + 1)]
    ticks = [x for x in (0.0, *(sign * x for x in reversed(powers) for sign in (1, -1))) if low <= x <= high]
    places = quadrature.symlog(np.array(ticks), linear)
    room = 0.09 * np.ptp(quadrature.symlog(np.array([low, high]), linear))
    labelled: list[int] = []
    for i, place in enumerate(places):  # zero first, then from the ends inwards
        if all(abs(place - places[j]) >= room for j in labelled):
            labelled.append(i)
    if len(labelled) < 3:  # the axis is within its linear range
        ax.xaxis.set_major_locator(MaxNLocator(4, steps=STEPS))
        return
    ax.xaxis.set_major_locator(FixedLocator([ticks[i] for i in labelled]))
    ax.xaxis.set_minor_locator(FixedLocator([x for i, x in enumerate(ticks) if i not in labelled]))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: decade(x)))
    ax.xaxis.set_minor_formatter(NullFormatter())


def decade(x: float) -> str:
    """Write the label of a tick, "500", or as a power of ten where that is shorter."""
    text = f"{x:g}"
    if "e" not in text:
        return text.replace("-", "\N{MINUS SIGN}")
    digits, power = text.split("e")
    factor = {"1": "", "-1": "-"}.get(digits, rf"{digits}\cdot ")
    return f"${factor}10^{{{int(power)}}}$"


@checked
def write(fig: Figure, path: str | Path) -> None:
    """Write a figure to a file, completely or not at all; an existing file is replaced.

    The same figure gives the same bytes: no dates, no random names.

    Args:
        fig: the figure.
        path: the file; its suffix .png, .pdf or .svg is its format.

    Raises:
        InputError: another suffix.
        StoreError: the file cannot be written.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in _METADATA:
        raise InputError(f"a figure cannot be written as {str(path)!r}: end the name in .png, .pdf or .svg")
    with disk.writing(path), theme():
        disk.write_aside(path, lambda file: fig.savefig(file, format=suffix[1:], metadata=_METADATA[suffix]))
