"""The largest eigenvalue and the trace of each part, and their factors, against its training samples."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from landscape.plots.layout import grids, theme
from landscape.plots.layout.drawable import figure
from landscape.plots.layout.panels import ground
from landscape.plots.layout.parts import by_count, name_places, places, positions
from landscape.plots.layout.symbols import matrix
from landscape.results import Spectrum, matched, over_samples, written

MOST_NAMES = 12
_MARKERS = "os"  # a second shape where the ten colours are used up


@figure
def summary(spectrum: Spectrum, parts: Sequence[str] | None = None) -> Figure:
    """Draw lambda_max and trace, and their factors, with their errors against the training samples.

    If the spectrum has the fields of single samples, bars are standard errors over samples (for a part that is marked
    (draw), those of its draw), and two more panels show the two factors of the trace: the uncertainty, mean tr M, and
    the trace per uncertainty. Otherwise bars are the residual and the error of probes. A grey band is the 5 to 95 %
    range of the number of as many samples of the part and the largest part together: a number inside the band may
    differ only because the part is small. An axis is logarithmic if all its values are positive. Up to 12 parts are
    named.

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
    with theme.theme():
        if not known:
            fig, (top, trace), _ = grids.grid(2, 2, 8, 3.4)
            _points(top, spectrum, order, spectrum.lambda_max, spectrum.lambda_max_residual, sure)
            _points(trace, spectrum, order, spectrum.trace, spectrum.trace_stderr, every)
            error = ("residual", "s.e.")
        else:
            fig, axes, _ = grids.grid(4, 2, 8, 6.2)
            top, trace, uncertainty, ratio = axes
            names = ("lambda_max", "trace", "uncertainty", "trace_ratio")
            for ax, name in zip(axes, names, strict=True):
                values, errors = np.array([getattr(one, name) for one in known]).T
                _points(ax, spectrum, order, values, errors, sure if ax is top else every)
            uncertainty.set_ylabel("uncertainty, mean tr M ± samples")
            ratio.set_ylabel("trace / uncertainty ± samples")
            _bands((top, trace, ratio), spectrum, order)
            error = ("samples", "samples")
        top.set_ylabel(rf"$\lambda_{{\max}}$ ± {error[0]} (units of the loss)")
        trace.set_ylabel(rf"Tr(${matrix(spectrum)}$) ± {error[1]} (units of the loss)")
        if not sure.all():
            top.set_title("hollow: not converged")
        if len(order) <= MOST_NAMES:
            handles, _ = trace.get_legend_handles_labels()
            grids.legend(fig, handles)
    return fig


def _bands(axes: Sequence[Axes], spectrum: Spectrum, order: Sequence[int]) -> None:
    """Draw the range of the numbers of as many samples of both, each part and the largest."""
    if matched.refusal(spectrum) is not None:
        return
    found = matched.as_many_of_both(spectrum, repetitions=100)
    x = places(spectrum, order)[0]
    for ax, name in zip(axes, ("lambda_max", "trace", "trace per uncertainty"), strict=True):
        if name not in found:
            continue
        ends = found[name][list(order)]
        there = np.flatnonzero(np.isfinite(ends[:, 0]))
        if not len(there):
            continue
        positive = np.maximum(ends, np.finfo(float).tiny) if ax.get_yscale() == "log" else ends
        limits = ax.get_ylim()
        ax.fill_between(
            x[there],
            positive[there, 0],
            positive[there, 2],
            color=theme.muted(),
            alpha=0.35,
            linewidth=0,
            zorder=0,
        )
        ax.plot(x[there], positive[there, 1], color=theme.muted(), linewidth=0.8, zorder=0)
        low = min(limits[0], float(positive[there, 1].min()))
        ax.set_ylim(low * (0.7 if ax.get_yscale() == "log" else 1), max(limits[1], float(positive[there, 2].max())))
    who = written.shorten(spectrum.parts[matched.reference(spectrum)], 20)
    if found:
        axes[0].set_title(f"grey: as many samples of it and {who}", parse_math=False)


def _points(
    ax: Axes, spectrum: Spectrum, order: Sequence[int], values: np.ndarray, errors: np.ndarray, sure: np.ndarray
) -> None:
    colours = theme.palette()
    x = places(spectrum, order)[0]
    named = len(order) <= MOST_NAMES
    for i, p in enumerate(order):
        colour = colours[i % len(colours)] if named else colours[0]
        ax.errorbar(
            x[i],
            values[p],
            yerr=np.nan_to_num(errors[p]),
            fmt=_MARKERS[i // len(colours)] if named else _MARKERS[0],
            markersize=4,
            color=colour,
            markerfacecolor=colour if sure[i] else ground(),
            elinewidth=1,
            capsize=2,
            label=written.shorten(spectrum.parts[p], 28) + (" (draw)" if spectrum.drawn[p] else ""),
        )
    theme.log_scale(ax.yaxis, values[list(order)])
    name_places(ax, spectrum, order)
