"""Loss and accuracy along a line, with a curve for each part or for each network, and with barriers if there are any.

A barrier is an arrow from the straight line between the losses at 0 and 1 to the curve, with the length of the barrier.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from landscape.errors import InputError, arg, said
from landscape.plots.layout import panels, paper, theme
from landscape.plots.layout.drawable import figure
from landscape.plots.layout.parts import MOST_PARTS, colours, heading, joined, named, weighting
from landscape.plots.layout.planes import axis_labels, units, without_errors
from landscape.plots.layout.scales import Scale, label, scale
from landscape.results import Surface, inference, written
from landscape.results.regroup import verdict_of

MOST_MARKS = 6
"""More marks than this are not named."""
MOST_ARROWS = 3
"""Of more curves than this only the highest barrier has an arrow; the legend tells the others."""
_ROUNDING = 1e-6  # of the loss


@dataclass(frozen=True, kw_only=True, eq=False)
class _Curve:
    name: str
    colour: Any
    x: np.ndarray  # (n,) ascending, coordinates of what was computed
    unit: float  # length of one unit of the axis
    loss: np.ndarray
    accuracy: np.ndarray
    barrier: float  # nan where it is not known, 0 below rounding
    barrier_error: float | None  # over samples, at most; None where it is not known
    errors: tuple[np.ndarray, np.ndarray] | None  # of loss and accuracy over samples; None where they are not drawn

    @property
    def entry(self) -> str:
        """What the legend says."""
        if np.isnan(self.barrier):
            return self.name
        if not self.barrier and not (self.barrier_error or 0.0) > 0:
            return f"{self.name}\nno barrier"
        error = 0.0 if self.barrier_error is None else self.barrier_error
        return f"{self.name}\nbarrier {written.with_error(self.barrier, error)}"


@figure
def surface_lines(
    surface: Surface,
    parts: Sequence[str] | None = None,
    *,
    log: bool | None = None,
    vmin: float | None = None,
    vmax: float | None = None,
    euclidean: bool = False,
    errors: bool = False,
) -> Figure:
    """Draw loss and accuracy along a line, a curve for each part.

    Args:
        surface: the result, over a line.
        parts: names of parts; None means all, of which more than twelve are joined into groups.
        log: None means a logarithmic axis if the loss spans decades.
        vmin: lower end of the loss axis.
        vmax: upper end of the loss axis.
        euclidean: x is the Euclidean length in parameter space.
        errors: draw a band of one standard error over samples around each curve; around the loss only, if samples or
            the parts of a group have different weights.

    Returns:
        A new figure with two axes, or one if no accuracy is known, and a colour bar for more than twelve parts.

    Raises:
        InputError: no such part, a plane, or options that leave nothing to draw.
    """
    if not surface.is_line:
        raise InputError(f"this surface is a plane: draw it by {said('surface()', '--kind contour')}")
    surface, chosen, joining = joined(surface, parts)
    drawn = [
        _curve(surface, p, named(surface, p), colour, euclidean, errors)
        for p, colour in zip(chosen, colours(surface, chosen), strict=True)
    ]
    shared, cut = _scale(drawn, log, vmin, vmax)
    words = [_signs(surface, drawn, euclidean), *cut, f"Verdict: {surface.verdict}"]
    with theme.theme():
        fig, axes = _figure(drawn, heading(surface, joining), words, shared)
        marks = dict(zip(surface.marks, surface.mark_position[:, 0].tolist(), strict=True))
        _marks(axes, {"checkpoint": 0.0} | marks, drawn[0].unit)
        axes[-1].set_xlabel(_x_label(surface, euclidean), parse_math=False)
        if len(drawn) > MOST_PARTS:
            rank_bar(fig, axes, surface, chosen)
        else:
            panels.legend(axes[0], axes[0].get_legend_handles_labels()[0], "part (training samples)")
    return fig


def compare_lines(
    surfaces: Mapping[str, tuple[Surface, int]],
    title: str,
    *,
    log: bool | None = None,
    vmin: float | None = None,
    vmax: float | None = None,
    euclidean: bool = False,
    errors: bool = False,
) -> Figure:
    """Draw one part of several lines on the same axes.

    Args:
        surfaces: name -> surface over a line, and number of its part.
        title: of the figure.
        log: None means a logarithmic axis if the loss spans decades.
        vmin: lower end of the loss axis.
        vmax: upper end of the loss axis.
        euclidean: x is the Euclidean length in parameter space.
        errors: draw a band of one standard error over samples around each curve.

    Returns:
        A new figure.

    Raises:
        InputError: options that leave nothing to draw.
    """
    shades = theme.hues(len(surfaces))
    drawn = [
        _curve(found, p, written.shorten(name, 28), colour, euclidean, errors)
        for (name, (found, p)), colour in zip(surfaces.items(), shades, strict=True)
    ]
    shared, words = _scale(drawn, log, vmin, vmax)
    for curve, (found, p) in zip(drawn, surfaces.values(), strict=True):
        words.append(f"{curve.name}: {_signs(found, [curve], euclidean)}. Verdict: {verdict_of(found, [p])}")
    first, _ = next(iter(surfaces.values()))
    labels = dict.fromkeys(_x_label(found, euclidean) for found, _ in surfaces.values())
    with theme.theme():
        fig, axes = _figure(drawn, title, words, shared)
        shared_end = first.barrier is not None and len({curve.unit for curve in drawn}) == 1
        _marks(axes, {"checkpoint": 0.0} | ({"the other end": 1.0} if shared_end else {}), drawn[0].unit)
        axes[-1].set_xlabel(next(iter(labels)) if len(labels) == 1 else "coordinate", parse_math=False)
        panels.legend(axes[0], axes[0].get_legend_handles_labels()[0])
    return fig


def _curve(surface: Surface, p: int, name: str, colour: Any, euclidean: bool, errors: bool) -> _Curve:
    unit = float(surface.unit_length[0]) if euclidean else 1.0
    if not np.isfinite(unit):
        raise InputError(f"the length of this surface's direction is unknown: leave {arg('euclidean')} out")
    known = np.flatnonzero(surface.computed[0])
    known = known[np.argsort(surface.xcoordinates[known])]
    loss = surface.loss[p, 0, known]
    barrier = np.nan if surface.barrier is None else float(surface.barrier[p])
    if barrier <= _ROUNDING * np.abs(loss).max():
        barrier = 0.0
    accuracy = np.full(len(known), np.nan) if surface.accuracy is None else surface.accuracy[p, 0, known]
    bands = None
    if errors:
        if surface.loss_stderr is None:
            raise InputError(without_errors())
        bands = surface.loss_stderr[p, 0, known], _accuracy_error(surface, p)[known]
    return _Curve(
        name=name,
        colour=colour,
        x=surface.xcoordinates[known],
        unit=unit,
        loss=loss,
        accuracy=accuracy,
        barrier=barrier,
        barrier_error=None if surface.barrier_stderr is None else float(surface.barrier_stderr[p]),
        errors=bands,
    )


def _scale(
    drawn: Sequence[_Curve], log: bool | None, vmin: float | None, vmax: float | None
) -> tuple[Scale, list[str]]:
    """Return the scale of the losses, wide enough for their bands, and what it cuts off, in words."""
    loss = np.concatenate([curve.loss for curve in drawn])
    found = scale(loss, log=log, vmin=vmin, vmax=vmax)
    ends = [curve.loss + sign * curve.errors[0] for curve in drawn if curve.errors is not None for sign in (-1, 1)]
    bands = np.concatenate([np.zeros(0), *ends])
    bands = bands[np.isfinite(bands)]
    seen = np.concatenate([loss, bands[bands > 0] if found.log else bands])
    wide = scale(seen, log=found.log, vmin=vmin, vmax=vmax)
    cut = ((bands < wide.low) | (bands > wide.high)).any()
    notes = replace(wide, lowest=found.lowest, highest=found.highest).notes
    return wide, [*notes, *(["clipped: bands"] if cut else [])]


def _accuracy_error(surface: Surface, p: int) -> np.ndarray:
    """Return the standard errors of a part's accuracies on the line, (nx,); nan where they are not known."""
    if surface.accuracy_stderr is not None:
        found: np.ndarray = surface.accuracy_stderr[p, 0]
        return found
    # A file of an earlier version. The formula is not valid for samples with different weights.
    weighted = surface.accuracy is None or "draws" in surface.provenance or weighting(surface)
    accuracy = np.full(surface.computed.shape[1], np.nan) if surface.accuracy is None else surface.accuracy[p, 0]
    return inference.share_stderr(accuracy, 1.0 if weighted else float(surface.n_samples[p]))


def _figure(drawn: Sequence[_Curve], title: str, words: Sequence[str], shared: Scale) -> tuple[Figure, list[Axes]]:
    """Draw all curves on an axes for the loss and, if accuracies are known, one for the accuracy below."""
    both = any(np.isfinite(curve.accuracy).any() for curve in drawn)
    fig, axes = panels.layout([2.3, 1.25][: 1 + both], [4.1], heading=title, caption=words, above=0.22, right=2.05)
    highest = sorted((c for c in drawn if c.barrier > 0), key=lambda c: -c.barrier)
    shown = highest if len(drawn) <= MOST_ARROWS else highest[:1]
    for curve in drawn:
        style: dict[str, Any] = {"color": curve.colour, "linewidth": 1.3, "markersize": 4}
        style["marker"] = "." if len(curve.x) <= 31 else ""
        axes[0].plot(curve.x * curve.unit, curve.loss, label=curve.entry, **style)
        holes = ~np.isfinite(curve.loss)
        floor = np.full(int(holes.sum()), 0.03)
        axes[0].plot(
            curve.x[holes] * curve.unit, floor, "x", color=curve.colour, markersize=4,
            transform=axes[0].get_xaxis_transform(),
        )  # fmt: skip
        if both:
            axes[1].plot(curve.x * curve.unit, curve.accuracy, **style)
        for ax, values, error in zip(axes, (curve.loss, curve.accuracy), curve.errors or (), strict=False):
            low, high = values - error, values + error
            if ax is axes[0] and shared.log:
                low = np.maximum(low, shared.low)  # a logarithmic axis cannot show less
            ax.fill_between(curve.x * curve.unit, low, high, color=curve.colour, alpha=0.25, linewidth=0)
        if curve in shown:
            _arrow(axes[0], curve)
    loss_axis(axes[0], shared)
    if both:
        axes[0].sharex(axes[1])
        axes[0].tick_params(labelbottom=False)
        axes[1].set_ylim(-0.03, 1.03)
        axes[1].set_ylabel("accuracy")
        axes[1].yaxis.set_major_locator(MaxNLocator(4, steps=theme.STEPS))
    axes[-1].xaxis.set_major_locator(MaxNLocator(6, steps=theme.STEPS))
    for ax in axes:
        ax.tick_params(labelsize=7.5)
        ax.xaxis.label.set_fontsize(8.5)
        ax.yaxis.label.set_fontsize(8.5)
    fig.align_ylabels(axes)
    return fig, axes


def loss_axis(ax: Axes, shared: Scale) -> None:
    """Give the y axis the limits of a scale, and ticks that can be read on it.

    Args:
        ax: axes with losses on the y axis.
        shared: the scale.
    """
    if shared.log:
        ax.set_yscale("log")
        ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if shared.high < 500 * shared.low else (1,)))
        ax.yaxis.set_major_formatter(FuncFormatter(lambda x, _: theme.decade(x)))
        ax.yaxis.set_minor_formatter(NullFormatter())
    else:
        ax.yaxis.set_major_locator(MaxNLocator(5, steps=theme.STEPS))
        ax.yaxis.set_major_formatter(FuncFormatter(lambda x, _: label(x)))
    ax.set_ylim(shared.low, shared.high)
    ax.set_ylabel("mean loss")


def _arrow(ax: Axes, curve: _Curve) -> None:
    """Draw the straight line between the ends, and an arrow from it to the curve where this is highest above it."""
    first, last = np.interp([0.0, 1.0], curve.x, curve.loss)
    between = (curve.x >= -1e-9) & (curve.x <= 1 + 1e-9)
    x, loss = curve.x[between], curve.loss[between]
    chord = (1 - x) * first + x * last
    top = int(np.nanargmax(loss - chord))
    t = np.linspace(0, 1, 101)  # on a logarithmic axis it is not straight
    ax.plot(t * curve.unit, (1 - t) * first + t * last, color=curve.colour, linewidth=0.9, linestyle=":")
    style = {"arrowstyle": "<->", "color": panels.ink(), "shrinkA": 0, "shrinkB": 0, "linewidth": 0.9}
    place = x[top] * curve.unit
    ax.annotate("", (place, loss[top]), (place, chord[top]), arrowprops=style | {"mutation_scale": 7}, zorder=4)
    ax.annotate(
        written.number(curve.barrier),
        (place, (loss[top] + chord[top]) / 2),
        (4, 0),
        textcoords="offset points",
        va="center",
        fontsize=7,
        path_effects=[withStroke(linewidth=1.6, foreground=panels.ground())],
        zorder=4,
    )


def _marks(axes: Sequence[Axes], found: Mapping[str, float], unit: float) -> None:
    """Draw a line at the checkpoint and at each other point of interest, with its name on top."""
    for ax in axes:
        limits = ax.get_xlim()
        for x in found.values():
            ax.axvline(x * unit, color=panels.ink(), alpha=0.7, linewidth=0.7, linestyle="--", zorder=1)
        ax.set_xlim(limits)
    if len(found) > MOST_MARKS:
        found = {"checkpoint": 0.0}
    top = axes[0]
    low, high = top.get_xlim()
    for name, x in found.items():
        share = (x * unit - low) / (high - low)
        if 0 <= share <= 1:
            at = "left" if share < 0.15 else "right" if share > 0.85 else "center"
            top.text(
                x * unit, 1.02, written.shorten(name, 20), transform=top.get_xaxis_transform(), ha=at, va="bottom",
                fontsize=7, parse_math=False,
            )  # fmt: skip


def _x_label(surface: Surface, euclidean: bool) -> str:
    (name,) = axis_labels(surface)
    return f"length along {name}" if euclidean else name


def _signs(surface: Surface, drawn: Sequence[_Curve], euclidean: bool) -> str:
    signs = []
    if any(curve.barrier > 0 for curve in drawn):
        signs.append("dotted: the straight line between the losses at 0 and 1; arrow: barrier")
    if any(not np.isfinite(curve.loss).all() for curve in drawn):
        signs.append("\N{MULTIPLICATION SIGN} not finite")
    n, of = int(surface.computed.sum()), surface.computed.size
    if n < of:
        signs.append(f"{n:,} of {of:,} points computed")
    if len(surface.marks) >= MOST_MARKS:
        signs.append(f"{len(surface.marks)} marks without names")
    if any(curve.errors is not None for curve in drawn):
        signs.append("bands: one standard error over samples")
    signs.append("lengths are to scale" if euclidean else units(surface))
    return "; ".join(signs)


def rank_bar(fig: Figure, axes: Sequence[Axes], surface: Surface, chosen: Sequence[int]) -> None:
    """Draw a colour bar of many parts, labelled with their training samples.

    Args:
        fig: the figure.
        axes: beside which, from the upper to the lower; in one column below them.
        surface: of which the parts are.
        chosen: their numbers, in the order of the colours.
    """
    n, width = len(chosen), fig.get_figwidth()
    below = paper.is_narrow()
    if below:
        bar_axes = panels.bar_axes_below(fig, axes)
    else:
        boxes = [ax.get_position() for ax in axes]
        low = min(b.y0 for b in boxes)
        bar_axes = fig.add_axes((boxes[0].x1 + 0.15 / width, low, 0.13 / width, boxes[0].y1 - low))
    shades = ListedColormap(theme.shades(n))
    mappable = ScalarMappable(BoundaryNorm(np.arange(n + 1) - 0.5, n), shades)
    bar = fig.colorbar(mappable, cax=bar_axes, orientation="horizontal" if below else "vertical")
    axis = bar_axes.xaxis if below else bar_axes.yaxis
    places = np.unique(np.linspace(0, n - 1, 3 if below else min(n, 8)).round().astype(int))
    names = [named(surface, chosen[i], 16) for i in places]
    axis.set_ticks(places, labels=names, fontsize=7, parse_math=False)
    axis.set_minor_locator(MaxNLocator(1))
    axis.set_inverted(not below)
    bar_axes.grid(visible=False)
    bar_axes.set_title("part (training samples)", fontsize=7, loc="left")
    bar.outline.set_linewidth(0.5)
