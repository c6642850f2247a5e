"""Spectral densities: one part on its own axes, several as panels, many as a map with a row for each part.

On the "symlog" axis a position is s = sign(x) log10(1 + |x|), linear for small eigenvalues x and logarithmic for
large ones. Gaussians have one width there, and the curve is the density of s: the area under it is one on either axis.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.mathtext import MathTextParser
from matplotlib.ticker import MaxNLocator

from landscape.errors import InputError, arg, check_choice
from landscape.plots.layout import grids, paper, theme
from landscape.plots.layout.drawable import figure
from landscape.plots.layout.panels import ground
from landscape.plots.layout.parts import by_count, named, positions
from landscape.results import Spectrum, matched, quadrature, written
from landscape.results.pool import resampled
from landscape.results.quadrature import Axis

FLOOR = 1e-7
"""Where the density's logarithmic axis begins; lower where one eigenvalue's share would be below it."""
MOST_PANELS = 24
MOST_POINTS = 8192  # columns of a map
MOST_LABELS = 120  # rows of a map

LONGEST_SYMBOL = 80  # characters of the mathtext of a matrix


@dataclass(frozen=True, kw_only=True)
class _View:
    """What all panels have in common."""

    axis: Axis
    linear: float  # scale of the symlog axis
    width: float  # of the Gaussians, in units of the axis
    low: float  # ends of the axis, in units of the axis
    high: float
    floor: float  # lowest density that is shown
    nodes: tuple[float, float]  # smallest and largest node, in units of the axis

    @property
    def limits(self) -> tuple[float, float]:
        """Ends of the axis as eigenvalues."""
        ends = np.array([self.low, self.high])
        low, high = quadrature.symlog_inverse(ends, self.linear) if self.axis == "symlog" else ends
        return float(low), float(high)


def matrix(spectrum: Spectrum) -> str:
    """Return the symbol of the matrix, ready for an index: a sum in brackets, and A for what is no formula."""
    symbol = spectrum.symbol if _is_formula(spectrum.symbol) else "A"
    if " " in symbol:
        return f"({symbol})"
    return symbol if symbol.isalnum() else f"{{{symbol}}}"


@lru_cache
def _is_formula(symbol: str) -> bool:
    if not symbol or len(symbol) > LONGEST_SYMBOL or "$" in symbol:
        return False
    try:
        MathTextParser("path").parse(f"${{{symbol}}}$")
    except ValueError:  # Matplotlib's own error for text that cannot be parsed
        return False
    return True


@figure
def density(
    spectrum: Spectrum,
    part: str | None = None,
    *,
    width: str | float = "auto",
    axis: Axis = "symlog",
    linear: float = 1.0,
    limits: tuple[float, float] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw the spectral density of one part: the mean over the probes, and a band of one standard deviation.

    For eigenvalues from rows there are no probes; the band is the 5 to 95 % range over bootstrap draws of the samples.

    Args:
        spectrum: the result.
        part: name of the part; None if there is only one.
        width: standard deviation of the Gaussians in units of the axis, or a name of `quadrature.WIDTHS`. Densities
            that are compared need one width.
        axis: "symlog" or "linear".
        linear: eigenvalue below which the symlog axis is about linear, in units of the loss.
        limits: eigenvalues at the ends of the axis; None means all. A text below the axis states eigenvalues outside.
        ax: axes to draw on; None makes a new figure.

    Returns:
        The axes, with logarithmic y.

    Raises:
        InputError: no such part, several parts without a choice, an unknown axis or width, or limits without a range.
    """
    if part is None and len(spectrum.parts) != 1:
        shown = ", ".join(spectrum.parts[:10]) + (", ..." if len(spectrum.parts) > 10 else "")
        raise InputError(f"there are {len(spectrum.parts)} parts: name one of {shown}, or draw all by densities()")
    p = 0 if part is None else spectrum.index(part)
    curves, view = _broaden(spectrum, [p], width, axis, linear, limits)
    with theme.theme():
        if ax is None:
            ax = theme.figure(5.5, 3.8).subplots()
            theme.keep_ticks(ax)
        _draw(ax, spectrum, p, curves[0], view, name_length=56)
        _scale(ax, view, curves)
        x, y = _labels(view)
        ax.set_xlabel(x)
        ax.set_ylabel(y)
    return ax


@figure
def densities(
    spectrum: Spectrum,
    parts: Sequence[str] | None = None,
    *,
    width: str | float = "auto",
    axis: Axis = "symlog",
    linear: float = 1.0,
    limits: tuple[float, float] | None = None,
    columns: int | None = None,
) -> Figure:
    """Draw the spectral densities of several parts with one width and the same axes.

    Args:
        spectrum: the result.
        parts: names of parts, in the order of the panels; None means all.
        width: as for `density`; a named width is computed from the common range of the parts.
        axis: "symlog" or "linear".
        linear: as for `density`.
        limits: as for `density`.
        columns: panels per row. None chooses, and draws more than 24 parts as a map with a row for each part, the one
            with the most training samples on top, colours for the density, and lambda_max and the trace beside it. On a
            page that `styled` chose, a map is drawn as soon as panels do not fit.

    Returns:
        A new figure.

    Raises:
        InputError: no such part, an unknown axis or width, limits without a range, no columns, or a width too narrow
            for a map.
    """
    chosen = positions(spectrum, parts)
    if columns is not None and columns < 1:
        raise InputError(f"columns must be at least 1, got {columns}")
    if columns is None and len(chosen) > grids.most_panels(MOST_PANELS):
        return _map(spectrum, chosen, width, axis, linear, limits)
    curves, view = _broaden(spectrum, chosen, width, axis, linear, limits)
    n_columns = min(len(chosen), columns or max(3, math.isqrt(len(chosen) - 1) + 1))
    n_rows = -(-len(chosen) // n_columns)
    with theme.theme():
        size = max(5.0, 2.6 * n_columns), max(3.6, 2.3 * n_rows + 0.5)
        fig, panels, n_columns = grids.grid(len(chosen), n_columns, *size, sharex=True, sharey=True)
        for ax, p, curve in zip(panels, chosen, curves, strict=True):
            _draw(ax, spectrum, p, curve, view, name_length=56 if n_columns == 1 else 30)
        _scale(panels[0], view, curves)
        x, y = _labels(view)
        fig.supxlabel(x, fontsize="medium")
        fig.supylabel(y, fontsize="medium")
    return fig


@figure
def density_grid(
    spectra: Mapping[str, Spectrum],
    parts: Sequence[str],
    *,
    width: str | float = "auto",
    axis: Axis = "symlog",
    linear: float = 1.0,
    limits: tuple[float, float] | None = None,
) -> Figure:
    """Draw densities of several checkpoints side by side, a row for each part: the layout of the paper's Figure 9.

    Below a panel there is a comparison at equal numbers of samples: the ratio of its part's lambda_max, trace, and
    trace per uncertainty to those of equally many samples drawn from it and the spectrum's largest part together, with
    p values for all tests of the spectrum (results/matched.py). `limits=(-100, 100)` gives the paper's axis. On a page
    that is too narrow for all checkpoints, but not for all parts, rows and columns are exchanged.

    Args:
        spectra: a column for each, by name, such as {"CE": ..., "CE + SAM": ...}.
        parts: a row for each, such as ("head", "tail"); all spectra must have them.
        width: as for `density`; a named width is computed from the common range of all panels.
        axis: "symlog" or "linear".
        linear: as for `density`.
        limits: as for `density`.

    Returns:
        A new figure; all panels have the same width of Gaussians and the same axes.

    Raises:
        InputError: no spectra or parts, a part that a spectrum does not have, an unknown axis or width, or limits
            without a range.
    """
    if not spectra or not parts:
        raise InputError("a grid of densities needs at least one spectrum and one part")
    cells = [(part, name, spectrum, spectrum.index(part)) for part in parts for name, spectrum in spectra.items()]
    turned = len(spectra) > grids.most_columns() >= len(parts)
    if turned:
        cells = [cell for name in spectra for cell in cells if cell[1] == name]
    ranges = [_broaden(spectrum, [p], "auto", axis, linear)[1] for _, _, spectrum, p in cells]
    steps = max(_steps(spectrum) for spectrum in spectra.values())
    low, high = min(v.nodes[0] for v in ranges), max(v.nodes[1] for v in ranges)
    sigma = quadrature.width_of(width, low, high, steps)
    drawn = [_broaden(spectrum, [p], sigma, axis, linear, limits) for _, _, spectrum, p in cells]
    view = replace(
        drawn[0][1],
        low=min(v.low for _, v in drawn),
        high=max(v.high for _, v in drawn),
        floor=min(v.floor for _, v in drawn),
        nodes=(low, high),
    )
    curves = [found[0] for found, _ in drawn]
    at_equal_size = {name: _at_equal_size(spectrum[list(parts)]) for name, spectrum in spectra.items()}
    with theme.theme():
        n_columns = len(parts) if turned else len(spectra)
        size = max(3.4, 2.5 * len(spectra)), 2.3 * len(parts) + 0.7
        fig, panels, _ = grids.grid(len(cells), n_columns, *size, sharex=True, sharey=True)
        for ax, (_, name, spectrum, p), curve in zip(panels, cells, curves, strict=True):
            _draw(ax, spectrum, p, curve, view, name_length=30)
            ax.set_title(f"{written.shorten(name, 24)}: {_title(spectrum, p, 30)}", parse_math=False)
            ax.set_xlabel(at_equal_size[name].get(spectrum.parts[p], ""), fontsize="x-small")
        _scale(panels[0], view, curves)
        x, y = _labels(view)
        fig.supxlabel(x, fontsize="medium")
        fig.supylabel(y, fontsize="medium")
    return fig


def _at_equal_size(spectrum: Spectrum) -> dict[str, str]:
    """Write a comparison at equal numbers of samples for each part but the largest; nothing without samples."""
    if spectrum.sample_trace is None or matched.refusal(spectrum) is not None:
        return {}
    lines: dict[str, list[str]] = {}
    short = {"lambda_max": r"$\lambda_{\max}$", "trace": "trace", "trace per uncertainty": "trace / unc."}
    for one in matched.against_largest(spectrum):
        if one.number in short:
            times = f" {one.test.value / one.test.median:.2g} times" if one.test.median > 0 else ""
            p = f"p = {one.p:.2g}" if one.p >= 0.001 else "p < 0.001"
            lines.setdefault(one.part, []).append(f"{short[one.number]}{times}, {p}")
    largest = written.shorten(spectrum.parts[matched.reference(spectrum)], 16)
    return {part: f"at equal n, with {largest}:\n" + "\n".join(found) for part, found in lines.items()}


def _steps(spectrum: Spectrum) -> int:
    """Return the Lanczos steps for named widths; all eigenvalues resolve at least as much as the default steps."""
    return 80 if spectrum.alpha is None else spectrum.alpha.shape[2] or 80


def _broaden(
    spectrum: Spectrum,
    chosen: Sequence[int],
    width: str | float,
    axis: Axis,
    linear: float,
    limits: tuple[float, float] | None = None,
    *,
    common: bool = False,
) -> tuple[list[quadrature.Density], _View]:
    """Return the densities of some parts at one width; `common`: on the same points, evenly spaced on the axis."""
    check_choice("axis", axis, quadrature.AXES)
    if not linear > 0:
        raise InputError(f"the linear range of the symlog axis must be positive, got {linear}")
    found = [quadrature.of_part(spectrum, p) for p in chosen]
    nodes = np.concatenate([n[np.isfinite(n)] for n, _ in found])
    centres = quadrature.symlog(nodes, linear) if axis == "symlog" else nodes
    low, high = float(centres.min()), float(centres.max())
    sigma = quadrature.width_of(width, low, high, _steps(spectrum))
    margin = max(6 * sigma, 0.05 * (high - low))
    ends = (low - margin, high + margin) if limits is None else _ends(limits, axis, linear)
    one_eigenvalue = 1 / (math.sqrt(2 * math.pi) * sigma * spectrum.size)
    view = _View(
        axis=axis,
        linear=linear,
        width=sigma,
        low=ends[0],
        high=ends[1],
        floor=min(FLOOR, 0.1 * one_eigenvalue),
        nodes=(low, high),
    )
    grid = None
    if common:
        n_points = max(512, math.ceil((view.high - view.low) / (sigma / 4)))
        if n_points > MOST_POINTS:
            least = (view.high - view.low) * 4 / MOST_POINTS
            raise InputError(
                f"{arg('width', float(f'{sigma:.3g}'))} is too narrow for a map of {len(chosen)} parts: "
                f"take at least {least:.1g}, or at most {MOST_PANELS} parts"
            )
        grid = np.linspace(view.low, view.high, n_points)
        grid = quadrature.symlog_inverse(grid, linear) if axis == "symlog" else grid
    return [quadrature.density(n, w, width=sigma, axis=axis, grid=grid, linear=linear) for n, w in found], view


def _ends(limits: tuple[float, float], axis: Axis, linear: float) -> tuple[float, float]:
    """Return limits in units of the axis."""
    low, high = limits
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise InputError(f"the axis of the eigenvalues cannot go from {low:g} to {high:g}")
    low, high = quadrature.symlog(np.array(limits), linear) if axis == "symlog" else limits
    return float(low), float(high)


def _draw(ax: Axes, spectrum: Spectrum, p: int, curve: quadrature.Density, view: _View, *, name_length: int) -> None:
    colour = theme.palette()[0]
    mean, spread = curve.mean, curve.spread
    ends = (mean - spread, mean + spread) if len(curve.curves) > 1 else _over_samples(spectrum, p, curve, view)
    if ends is not None:
        lower, upper = (np.maximum(end, view.floor) for end in ends)  # a logarithmic axis cannot show less
        ax.fill_between(curve.eigenvalues, lower, upper, color=colour, alpha=0.3, linewidth=0)
    ax.plot(curve.eigenvalues, mean, color=colour, linewidth=0.8)
    ax.text(
        0.98,
        0.97,
        _corner(spectrum, p),
        transform=ax.transAxes,
        ha="right",
        va="top",
        fontsize="small",
        linespacing=1.3,
    )
    # A dollar sign in the name of a class must not begin a formula.
    ax.set_title(_title(spectrum, p, name_length), parse_math=False)


def _over_samples(
    spectrum: Spectrum, p: int, curve: quadrature.Density, view: _View
) -> tuple[np.ndarray, np.ndarray] | None:
    """Return the 90 % range of the density over bootstrap draws of the samples; None without rows."""
    found = resampled(spectrum, p)
    if found is None:
        return None
    again = quadrature.density(*found, width=view.width, axis=view.axis, grid=curve.eigenvalues, linear=view.linear)
    low, high = np.quantile(again.curves, [0.05, 0.95], axis=0)
    return low, high


def _corner(spectrum: Spectrum, p: int) -> str:
    if spectrum.converged[p]:
        top = written.number(spectrum.lambda_max[p])
    else:
        top = written.with_error(spectrum.lambda_max[p], spectrum.lambda_max_residual[p]) + ", not converged"
    trace = written.with_error(spectrum.trace[p], spectrum.trace_stderr[p])
    return rf"$\lambda_{{\max}}$ = {top}" + "\n" + rf"Tr(${matrix(spectrum)}$) = {trace}"


def _title(spectrum: Spectrum, p: int, name_length: int) -> str:
    n, used, trained = (float(v[p]) for v in (spectrum.n_samples, spectrum.n_used, spectrum.train_counts))
    lines = [written.shorten(spectrum.parts[p], name_length)]
    if np.isfinite(n):  # a matrix without data has no samples
        lines.append(f"n = {n:,.0f}" + (f" ({trained:,.0f} in training)" if trained != n else ""))
        lines += [f"{used:,.0f} summed over"] if used != n else []
    return "\n".join(lines)


def _labels(view: _View) -> tuple[str, str]:
    eigenvalue = r"eigenvalue $\lambda$ (units of the loss)"
    beyond = _beyond(view)
    if view.axis == "linear":
        return eigenvalue + beyond, r"density per unit of $\lambda$"
    share = r"|\lambda|" if view.linear == 1 else rf"|\lambda| / {view.linear:g}"
    scale = rf" on $s = \mathrm{{sign}}(\lambda)\,\log_{{10}}(1 + {share})$"
    return eigenvalue + scale + beyond, r"density per unit of $s$"


def _beyond(view: _View) -> str:
    """Return text about the eigenvalues outside the axis."""
    ends = np.array(view.nodes)
    low, high = quadrature.symlog_inverse(ends, view.linear) if view.axis == "symlog" else ends
    found = [f"down to {written.number(low)}"] * (view.nodes[0] < view.low)
    found += [f"up to {written.number(high)}"] * (view.nodes[1] > view.high)
    return ("\nbeyond the axis: " + " and ".join(found)).replace("-", "\N{MINUS SIGN}") if found else ""


def _scale(ax: Axes, view: _View, curves: Sequence[quadrature.Density]) -> None:
    _scale_x(ax, view)
    peak = max(float((c.mean + np.nan_to_num(c.spread)).max()) for c in curves)
    ax.set_yscale("log")
    ax.set_ylim(view.floor, peak * (peak / view.floor) ** 0.4)  # room for the corner's text


def _scale_x(ax: Axes, view: _View) -> None:
    if view.axis == "symlog":
        theme.symlog_scale(ax, *view.limits, view.linear)
    else:
        ax.xaxis.set_major_locator(MaxNLocator(5, steps=theme.STEPS))
    ax.set_xlim(view.limits)


def _map(
    spectrum: Spectrum,
    chosen: Sequence[int],
    width: str | float,
    axis: Axis,
    linear: float,
    limits: tuple[float, float] | None,
) -> Figure:
    order = by_count(spectrum, chosen)
    curves, view = _broaden(spectrum, order, width, axis, linear, limits, common=True)
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
        _scale_x(image, view)
        x, y = _labels(view)
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
        _beside(top, rows, spectrum.lambda_max[order], spectrum.lambda_max_residual[order], spectrum.converged[order])
        _beside(trace, rows, spectrum.trace[order], spectrum.trace_stderr[order], np.full(len(order), True))
        hollow = "" if spectrum.converged[order].all() else "\nhollow: not converged"
        top.set_xlabel(rf"$\lambda_{{\max}}$ ± {'error' if paper.is_narrow() else 'residual'}" + hollow)
        trace.set_xlabel(rf"Tr(${matrix(spectrum)}$) ± s.e.")
    return fig


def _beside(ax: Axes, rows: np.ndarray, values: np.ndarray, errors: np.ndarray, sure: np.ndarray) -> None:
    colour = theme.palette()[3]
    ax.errorbar(values, rows, xerr=np.nan_to_num(errors), fmt="none", ecolor=colour, elinewidth=0.8)
    area = 9 if len(rows) <= MOST_LABELS else 2
    ax.scatter(values[sure], rows[sure], s=area, color=colour)
    ax.scatter(values[~sure], rows[~sure], s=area, facecolor=ground(), edgecolor=colour, linewidth=0.8, zorder=3)
    theme.log_scale(ax.xaxis, values)
    ax.tick_params(labelleft=False)
