"""Many spectral densities as a map: a row of colours for each part, with lambda_max and the trace beside it."""

from collections.abc import Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from landscape.plots.figures.broadened import broaden, labels, scale_x
from landscape.plots.layout import paper, theme
from landscape.plots.layout.panels import ground
from landscape.plots.layout.parts import by_count, named
from landscape.plots.layout.symbols import matrix
from landscape.results import Spectrum
from landscape.results.columns import with_larger_error
from landscape.results.quadrature import Axis

MOST_LABELS = 120  # rows of a map


def density_map(
    spectrum: Spectrum,
    chosen: Sequence[int],
    width: str | float,
    axis: Axis,
    linear: float,
    limits: tuple[float, float] | None,
) -> Figure:
    """Draw the densities of many parts, the most frequent first; see `density.densities`."""
    order = by_count(spectrum, chosen)
    curves, view = broaden(spectrum, order, width, axis, linear, limits, common=True)
    rows = np.arange(len(order))
    row_height = min(0.16, max(0.105, 3 / len(order))) if len(order) <= MOST_LABELS else 12.6 / len(order)
    with theme.theme():
        height = row_height * len(order)
        room = min(height, paper.LONGEST_MAP)
        fig = theme.figure(10, 1.4 + height, paper.Room(least=room, most=room))
        ratios = [6, 1.1, 1.1] if paper.is_narrow() else [5, 1.3, 1.3]
        image, top, trace = fig.subplots(1, 3, sharey=True, width_ratios=ratios)
        for ax in (image, top, trace):
            theme.keep_ticks(ax)
        values = np.stack([c.mean for c in curves])
        colours = colormaps["viridis"]
        mesh = image.pcolormesh(
            curves[0].eigenvalues,
            rows,
            values,
            norm=LogNorm(view.floor, values.max()),
            cmap=colours.with_extremes(bad=colours(0), under=colours(0)),  # a density of zero is below the floor
            shading="nearest",
            rasterized=True,
        )
        scale_x(image, view)
        x, y = labels(view)
        image.set_xlabel(x)
        image.grid(visible=False)
        shown = -(-len(order) // MOST_LABELS)  # one label in so many rows
        names = [named(spectrum, p, 28) for p in order]
        size = min(8.0, 0.8 * 72 * row_height * shown)
        image.set_yticks(rows[::shown], labels=names[::shown], fontsize=size, parse_math=False)
        image.set_ylim(len(order) - 0.5, -0.5)
        image.text(0, 1.005, "part (training samples)  ", transform=image.transAxes, ha="right", fontsize=size)
        fig.colorbar(
            mesh,
            ax=image,
            label=y,
            extend="min",
            location="top",
            shrink=0.5,
            aspect=12 if paper.is_narrow() else 30,
            fraction=0.1 / height,  # of the axes' height, which is in inches
            pad=0.05 / height,
        )
        every = np.full(len(spectrum.parts), True)
        for ax, field, sure in ((top, "lambda_max", spectrum.converged), (trace, "trace", every)):
            known = with_larger_error(spectrum, field).of(spectrum)
            if known is not None and known[1] is not None:
                _beside(ax, rows, known[0][order], known[1][order], sure[order])
        hollow = "" if spectrum.converged[order].all() else "\nhollow: not converged"
        if paper.is_narrow():  # no word fits below the narrow panel
            image.set_xlabel(x + hollow)
            hollow = ""
        errors = [with_larger_error(spectrum, field).of_error for field in ("lambda_max", "trace")]
        errors = ["draw" if name == "samples" and spectrum.drawn[order].all() else name for name in errors]
        top.set_xlabel(rf"$\lambda_{{\max}}$ ± {'error' if paper.is_narrow() else errors[0]}" + hollow)
        trace.set_xlabel(rf"Tr(${matrix(spectrum)}$) ± {'s.e.' if errors[1] == 'estimate' else errors[1]}")
    return fig


def _beside(ax: Axes, rows: np.ndarray, values: np.ndarray, errors: np.ndarray, sure: np.ndarray) -> None:
    colour = theme.palette()[3]
    ax.errorbar(values, rows, xerr=np.nan_to_num(errors), fmt="none", ecolor=colour, elinewidth=0.8)
    area = 9 if len(rows) <= MOST_LABELS else 2
    ax.scatter(values[sure], rows[sure], s=area, color=colour)
    ax.scatter(values[~sure], rows[~sure], s=area, facecolor=ground(), edgecolor=colour, linewidth=0.8, zorder=3)
    ends = np.concatenate([values - np.nan_to_num(errors), values + np.nan_to_num(errors)])
    positive = (values > 0).all()
    theme.log_scale(ax.xaxis, np.concatenate([values, ends[ends > values.min() / 30] if positive else ends]))
    ax.set_xlim(theme.limits(ax.xaxis, values, ends))
    ax.tick_params(labelleft=False)
