"""The largest eigenvalue and the trace of each part against its number of training samples."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from landscape.callables import checked
from landscape.errors import InputError
from landscape.plots.figures.density import matrix
from landscape.plots.layout import grids, theme
from landscape.plots.layout.panels import ground
from landscape.plots.layout.parts import by_count
from landscape.results import Spectrum, written

MOST_NAMES = 12
_MARKERS = "os"  # a second shape where the ten colours are used up


@checked
def summary(spectrum: Spectrum, parts: Sequence[str] | None = None) -> Figure:
    """Draw lambda_max, with its residual, and the trace, with its standard error, against the training samples.

    An axis is logarithmic where all its values are positive. Up to 12 parts are named.

    Args:
        spectrum: the result.
        parts: names; None for all.

    Returns:
        A new figure with two axes.

    Raises:
        InputError: no such part.
    """
    chosen = [spectrum.index(name) for name in (spectrum.parts if parts is None else parts)]
    if not chosen:
        raise InputError("there is no part to draw")
    order = by_count(spectrum, chosen)
    sure = spectrum.converged[order]
    with theme.theme():
        fig, (top, trace), _ = grids.grid(2, 2, 8, 3.4)
        _points(top, spectrum, order, spectrum.lambda_max, spectrum.lambda_max_residual, sure)
        _points(trace, spectrum, order, spectrum.trace, spectrum.trace_stderr, np.full(len(order), True))
        top.set_ylabel(r"$\lambda_{\max}$ ± residual (units of the loss)")
        trace.set_ylabel(rf"Tr(${matrix(spectrum)}$) ± s.e. (units of the loss)")
        if not sure.all():
            top.set_title("hollow: not converged")
        if len(order) <= MOST_NAMES:
            handles, _ = trace.get_legend_handles_labels()
            grids.legend(fig, handles)
    return fig


def _points(
    ax: Axes, spectrum: Spectrum, order: Sequence[int], values: np.ndarray, errors: np.ndarray, sure: np.ndarray
) -> None:
    colours = theme.palette()
    counts = spectrum.train_counts[list(order)]
    known = bool(np.isfinite(counts).all())
    alike = not known or (len(order) > 1 and len(set(counts)) == 1)  # of a balanced data set: side by side
    named = len(order) <= MOST_NAMES
    for i, p in enumerate(order):
        colour = colours[i % len(colours)] if named else colours[0]
        ax.errorbar(
            i if alike else counts[i],
            values[p],
            yerr=np.nan_to_num(errors[p]),
            fmt=_MARKERS[i // len(colours)] if named else _MARKERS[0],
            markersize=4,
            color=colour,
            markerfacecolor=colour if sure[i] else ground(),
            elinewidth=1,
            capsize=2,
            label=written.shorten(spectrum.parts[p], 28),
        )
    theme.log_scale(ax.yaxis, values[list(order)])
    if alike:
        ax.set_xticks([])
        ax.set_xlabel(f"parts, each with {counts[0]:,} training samples" if known else "matrices")
    else:
        theme.log_scale(ax.xaxis, counts)
        ax.set_xlabel("training samples of the part")
