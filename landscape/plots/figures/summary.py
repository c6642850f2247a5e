"""The largest eigenvalue and the trace of each part, and their factors, against its training samples."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from landscape.plots.layout import grids, theme
from landscape.plots.layout.drawable import figure
from landscape.plots.layout.panels import ground
from landscape.plots.layout.parts import by_count, colours, name_places, places, positions
from landscape.plots.layout.symbols import matrix
from landscape.results import Spectrum, matched, over_samples, written
from landscape.results.pool import decay_of

MOST_NAMES = 12
_MARKERS = "os"  # a second shape where the ten colours are used up
_OF_BAND = "D"  # the number that a band is of, where it is not the point
_NEAR = 0.015  # closer than this fraction of the axis, it would be drawn over the point


@figure
def summary(spectrum: Spectrum, parts: Sequence[str] | None = None) -> Figure:
    """Draw lambda_max and trace, and their factors, with their errors against the training samples.

    If the spectrum has the fields of single samples, bars are standard errors over samples (for a part that is marked
    (draw), those of its draw), together with that of the estimate of the trace where they leave it out, and two more
    panels show the two factors of the trace: the uncertainty, mean tr M, and the trace per uncertainty. Otherwise bars
    are the residual and the error of probes. A grey band is the 5 to 95 % range of the number of as many samples of the
    part and the largest part together: a number inside the band may differ only because the part is small. For a
    Hessian the bands are of its Gauss-Newton part G, because the eigenvalues of few samples are known of G only; they
    are without weight decay. A hollow diamond is then the part's own number of G, which is to be compared with the
    band; the legend says how much larger lambda_max may be if rows are not stored. An axis is logarithmic if
    all its values are positive. Up to 12 parts are named.

    Args:
        spectrum: the result.
        parts: names of the parts to draw; None for all.

    Returns:
        A new figure with two axes, or four.

    Raises:
        InputError: no such part.
    """
    chosen = positions(spectrum, parts)
    order = by_count(spectrum, chosen)
    sure = spectrum.converged[order]
    known = [one for p in range(len(spectrum.parts)) if (one := over_samples.of_part(spectrum, p)) is not None]
    every = np.full(len(order), True)
    points: dict[Axes, np.ndarray] = {}
    handles: list[Line2D] = []
    with theme.theme():
        if not known:
            fig, (top, trace), _ = grids.grid(2, 2, 8, 3.4)
            _points(top, spectrum, order, spectrum.lambda_max, spectrum.lambda_max_residual, sure)
            _points(trace, spectrum, order, spectrum.trace, spectrum.trace_stderr, every)
            error = ("residual", "s.e. ")
        else:
            fig, axes, _ = grids.grid(4, 2, 8, 6.2)
            top, trace, uncertainty, ratio = axes
            names = ("lambda_max", "trace", "uncertainty", "trace_ratio")
            for ax, name in zip(axes, names, strict=True):
                values, errors = np.array([getattr(one, name) for one in known]).T
                _points(ax, spectrum, order, values, errors, sure if ax is top else every)
                points[ax] = values
            estimated = any(over_samples.estimate_error(spectrum, p) > 0 for p in order)
            error = ("samples", "samples, estimate\n" if estimated else "samples ")
            own = r"Tr($G$)" if over_samples.of_gauss_newton(spectrum) else "trace"
            uncertainty.set_ylabel("uncertainty, mean tr M ± samples")
            ratio.set_ylabel(f"{own} / uncertainty ± samples")
            handles = _bands(fig, {ax: points[ax] for ax in (top, trace, ratio)}, spectrum, order)
        top.set_ylabel(rf"$\lambda_{{\max}}$ ± {error[0]} (units of the loss)")
        trace.set_ylabel(rf"Tr(${matrix(spectrum)}$) ± {error[1]}(units of the loss)")
        if not sure.all():
            top.set_title("hollow circle: not converged")
        named = trace.get_legend_handles_labels()[0] if len(order) <= MOST_NAMES else []
        if named or handles:
            grids.legend(fig, [*named, *handles])
    return fig


def _bands(fig: Figure, points: Mapping[Axes, np.ndarray], spectrum: Spectrum, order: Sequence[int]) -> list[Line2D]:
    """Draw the range of the numbers of as many samples of both, each part and the largest, and a title that says so.

    Args:
        fig: the figure.
        points: the numbers of all parts that lambda_max, trace and its factor are drawn as, by their panels.
        spectrum: the result.
        order: positions of the parts.

    Returns:
        Entries of a legend.
    """
    if matched.refusal(spectrum) is not None:
        return []
    found, own = matched.as_many_of_both(spectrum), matched.own_numbers(spectrum)
    apart, any_band = False, False
    for (ax, drawn), name in zip(points.items(), ("lambda_max", "trace", "trace per uncertainty"), strict=True):
        if name in found and np.isfinite(found[name][list(order)]).all(axis=1).any():
            apart |= _band(ax, spectrum, order, found[name], own[name], drawn)
            any_band = True
    if not any_band:
        return []
    hessian, without = spectrum.operator == "hessian", ", without decay" if decay_of(spectrum) else ""
    words = "G, which the band is of" if hessian else "as compared with the band"
    who = written.shorten(spectrum.parts[matched.reference(spectrum)], 12)
    handle = Line2D(
        [],
        [],
        marker=_OF_BAND,
        markersize=5,
        color=theme.muted(),
        markerfacecolor=ground(),
        linestyle="none",
        label=words + without.replace(" ", "\n", 1) + _of_kept_rows(spectrum, order, own.get("lambda_max")),
    )
    title = f"grey: {'G of ' * hessian}as many samples of the part and {who}{without}"
    fig.suptitle(title, fontsize=9, parse_math=False)
    return [handle] if apart else []


def _of_kept_rows(spectrum: Spectrum, order: Sequence[int], own: np.ndarray | None) -> str:
    """Say how much larger lambda_max of these rows may be, if that is more than a little."""
    above = np.zeros(len(spectrum.parts)) if own is None else matched.own_above(spectrum)
    more = max((above[p] / own[p] for p in order if own is not None and own[p] > 0 and above[p] >= 0), default=0.0)
    return f",\nlambda_max of kept rows:\nat most {more:.0%} larger" if more > matched.MARKED else ""


def _band(
    ax: Axes, spectrum: Spectrum, order: Sequence[int], found: np.ndarray, own: np.ndarray, points: np.ndarray
) -> bool:
    """Draw the bands of one number, and the numbers that these are of; say whether some of them are not the points.

    Args:
        ax: of the number; the points are drawn.
        spectrum: the result.
        order: positions of the parts.
        found: (P, 3) lower ends, middles and upper ends of the bands; nan for none, but not for all.
        own: (P,) the parts' numbers of which the bands are.
        points: (P,) those that are drawn.

    Returns:
        Whether some are drawn beside the points.
    """
    there = [p for p in order if np.isfinite(found[p]).all()]
    logarithmic = ax.get_yscale() == "log"
    shades = _colours(spectrum, order)
    place = dict(zip(order, places(spectrum, order)[0], strict=True))
    drawable = [p for p in there if not logarithmic or min(own[p], points[p]) > 0]
    on_axis = np.log if logarithmic else np.asarray
    ends = np.concatenate([ax.get_ylim(), found[there].ravel()])
    height = np.ptp(on_axis(theme.limits(ax.yaxis, points[list(order)], ends)))
    sides = np.stack([own, points])[..., None] > found[:, [0, 2]]
    hollow = [
        p
        for p in drawable
        if abs(on_axis(own[p]) - on_axis(points[p])) > _NEAR * height or (sides[0, p] != sides[1, p]).any()
    ]
    limits = theme.limits(ax.yaxis, np.concatenate([points[list(order)], own[hollow]]), ends)
    x = [place[p] for p in there]
    low, middle, high = np.maximum(found[there], limits[0]).T  # what reaches 0 goes to the edge of a logarithmic axis
    if len(there) == 1:  # a band needs two places
        ax.vlines(x, low, high, color=theme.muted(), alpha=0.35, linewidth=8, zorder=0)
        ax.plot(x, middle, "_", color=theme.muted(), markersize=8, zorder=0, clip_on=False)
    else:
        ax.fill_between(x, low, high, color=theme.muted(), alpha=0.35, linewidth=0, zorder=0)
        ax.plot(x, middle, color=theme.muted(), linewidth=0.8, zorder=0)
    for p in hollow:
        ax.plot(
            place[p], own[p], _OF_BAND, markersize=5, color=shades[order.index(p)], markerfacecolor=ground(), zorder=3
        )
    ax.set_ylim(limits)
    return bool(hollow)


def _colours(spectrum: Spectrum, order: Sequence[int]) -> list[str]:
    """Return the colours of parts that are named; those of many parts are all the same."""
    return colours(spectrum, order) if len(order) <= MOST_NAMES else theme.palette()[:1] * len(order)


def _points(
    ax: Axes, spectrum: Spectrum, order: Sequence[int], values: np.ndarray, errors: np.ndarray, sure: np.ndarray
) -> None:
    shades = _colours(spectrum, order)
    x = places(spectrum, order)[0]
    named = len(order) <= MOST_NAMES
    for i, p in enumerate(order):
        ax.errorbar(
            x[i],
            values[p],
            yerr=np.nan_to_num(errors[p]),
            fmt=_MARKERS[i // len(theme.palette())] if named else _MARKERS[0],
            markersize=4,
            color=shades[i],
            markerfacecolor=shades[i] if sure[i] else ground(),
            elinewidth=1,
            capsize=2,
            label=written.shorten(spectrum.parts[p], 28) + (" (draw)" if spectrum.drawn[p] else ""),
        )
    shown, size = values[list(order)], np.nan_to_num(errors[list(order)])
    theme.log_scale(ax.yaxis, shown)
    ax.set_ylim(theme.limits(ax.yaxis, shown, np.concatenate([shown - size, shown + size])))
    name_places(ax, spectrum, order)
