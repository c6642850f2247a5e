"""Spectral densities: one part on its own axes, several as panels, many as a map with a row for each part.

On the "symlog" axis a position is s = sign(x) log10(1 + |x|), linear for small eigenvalues x and logarithmic for
large ones. Gaussians have one width there, and the curve is the density of s: the area under it is one on either axis.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from landscape.errors import InputError
from landscape.plots.figures.broadened import MOST_PANELS, View, broaden, labels, scale, steps_of
from landscape.plots.figures.density_map import density_map
from landscape.plots.layout import grids, theme
from landscape.plots.layout.drawable import figure
from landscape.plots.layout.parts import positions
from landscape.plots.layout.symbols import matrix
from landscape.results import Spectrum, matched, quadrature, written
from landscape.results.columns import with_larger_error
from landscape.results.pool import MOST_RESAMPLED, decay_of, resampled
from landscape.results.quadrature import Axis


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
    It comes from the stored rows, which hold at least 80 % of the trace; a panel says if there are too many for a band.
    The density of one probe has no band.

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
    curves, view = broaden(spectrum, [p], width, axis, linear, limits)
    with theme.theme():
        if ax is None:
            ax = theme.figure(5.5, 3.8).subplots()
            theme.keep_ticks(ax)
        _draw(ax, spectrum, p, curves[0], view, name_length=56)
        scale(ax, view, curves)
        x, y = labels(view)
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
        return density_map(spectrum, chosen, width, axis, linear, limits)
    curves, view = broaden(spectrum, chosen, width, axis, linear, limits)
    n_columns = min(len(chosen), columns or max(3, math.isqrt(len(chosen) - 1) + 1))
    n_rows = -(-len(chosen) // n_columns)
    with theme.theme():
        size = max(5.0, 2.6 * n_columns), max(3.6, 2.3 * n_rows + 0.5)
        fig, panels, n_columns = grids.grid(len(chosen), n_columns, *size, sharex=True, sharey=True)
        for ax, p, curve in zip(panels, chosen, curves, strict=True):
            _draw(ax, spectrum, p, curve, view, name_length=56 if n_columns == 1 else 30)
        scale(panels[0], view, curves)
        x, y = labels(view)
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
    p values for all tests of the drawn parts (results/matched.py); all of these are of G if the spectrum is of a
    Hessian. `limits=(-100, 100)` gives the paper's axis. On a page that is too narrow for all checkpoints, but not for
    all parts, rows and columns are exchanged.

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
    ranges = [broaden(spectrum, [p], "auto", axis, linear)[1] for _, _, spectrum, p in cells]
    steps = max(steps_of(spectrum) for spectrum in spectra.values())
    low, high = min(v.nodes[0] for v in ranges), max(v.nodes[1] for v in ranges)
    sigma = quadrature.width_of(width, low, high, steps)
    drawn = [broaden(spectrum, [p], width, axis, linear, limits, known=sigma) for _, _, spectrum, p in cells]
    view = replace(
        drawn[0][1],
        low=min(v.low for _, v in drawn),
        high=max(v.high for _, v in drawn),
        floor=min(v.floor for _, v in drawn),
        nodes=(low, high),
    )
    curves = [found[0] for found, _ in drawn]
    at_equal_size = {name: _at_equal_size(spectrum, parts) for name, spectrum in spectra.items()}
    with theme.theme():
        n_columns = len(parts) if turned else len(spectra)
        size = max(4.4, 2.5 * len(spectra)), 2.3 * len(parts) + 0.7  # the label of the axis needs 4.2
        fig, panels, _ = grids.grid(len(cells), n_columns, *size, sharex=True, sharey=True)
        for ax, (_, name, spectrum, p), curve in zip(panels, cells, curves, strict=True):
            _draw(ax, spectrum, p, curve, view, name_length=30)
            ax.set_title(f"{written.shorten(name, 24)}: {_title(spectrum, p, 30)}", parse_math=False)
            ax.set_xlabel(at_equal_size[name].get(spectrum.parts[p], ""), fontsize="x-small")
        scale(panels[0], view, curves)
        x, y = labels(view)
        fig.supxlabel(x, fontsize="medium")
        fig.supylabel(y, fontsize="medium")
    return fig


def _at_equal_size(spectrum: Spectrum, parts: Sequence[str]) -> dict[str, str]:
    """Write a comparison of parts with the largest at equal numbers of samples, for each; nothing without samples."""
    if spectrum.sample_trace is None or matched.refusal(spectrum) is not None:
        return {}
    largest = spectrum.parts[matched.reference(spectrum)]
    if (chosen := list(dict.fromkeys([*parts, largest]))) == [largest]:
        return {}
    spectrum = spectrum[chosen]
    lines: dict[str, list[str]] = {}
    short = {"lambda_max": r"$\lambda_{\max}$", "trace": "trace", "trace per uncertainty": "trace / unc."}
    for one in matched.against_largest(spectrum, trials=0):
        if one.number in short:
            times = f" {one.test.value / one.test.median:.2g} times" if one.test.median > 0 else ""
            p = f"p = {one.p:.2g}" if one.p >= 0.001 else "p < 0.001"
            of_kept = " (kept rows)" if one.test.above > matched.MARKED * one.test.value else ""
            lines.setdefault(one.part, []).append(f"{short[one.number]}{times}, {p}{of_kept}")
    largest = written.shorten(largest, 16)
    of = "of G, " if spectrum.operator == "hessian" else ""  # pools of samples have no Hessian
    of += "without decay, " if decay_of(spectrum) else ""
    return {part: f"at equal n, {of}with {largest}:\n" + "\n".join(found) for part, found in lines.items()}


def _draw(ax: Axes, spectrum: Spectrum, p: int, curve: quadrature.Density, view: View, *, name_length: int) -> None:
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
    spectrum: Spectrum, p: int, curve: quadrature.Density, view: View
) -> tuple[np.ndarray, np.ndarray] | None:
    """Return the 90 % range of a density by rows over bootstrap draws of the samples; None for one of a probe.

    Rows are those of G: their range is not that of the density of another matrix.
    """
    found = None if spectrum.ran(p) else resampled(spectrum, p, most=MOST_RESAMPLED)
    if found is None:
        return None
    again = quadrature.density(*found, width=view.width, axis=view.axis, grid=curve.eigenvalues, linear=view.linear)
    low, high = np.quantile(again.curves, [0.05, 0.95], axis=0)
    return low, high


def _corner(spectrum: Spectrum, p: int) -> str:
    over_samples = spectrum.lambda_max_sampling_stderr is not None
    if over_samples or not spectrum.converged[p]:
        top = with_larger_error(spectrum, "lambda_max").text(spectrum, p) + ", not converged" * int(
            not spectrum.converged[p]
        )
    else:
        top = written.number(spectrum.lambda_max[p])
    lines = [
        rf"$\lambda_{{\max}}$ = {top}",
        rf"Tr(${matrix(spectrum)}$) = {with_larger_error(spectrum, 'trace').text(spectrum, p)}",
    ]
    lines += ["± samples"] if over_samples else []
    return "\n".join([*lines, *_why_no_band(spectrum, p)])


def _why_no_band(spectrum: Spectrum, p: int) -> list[str]:
    """Say that a density by rows has no band over samples because it has too many rows."""
    if spectrum.ran(p) or spectrum.sample_trace is None:
        return []
    stored = 0 if spectrum.gram is None else np.count_nonzero(spectrum.gram_part == p)
    if 1 <= stored <= MOST_RESAMPLED:
        return []
    return [f"no band: {stored:,} rows" if stored else "no band: rows not stored"]


def _title(spectrum: Spectrum, p: int, name_length: int) -> str:
    n, used, trained = (float(v[p]) for v in (spectrum.n_samples, spectrum.n_used, spectrum.train_counts))
    lines = [written.shorten(spectrum.parts[p], name_length)]
    if np.isfinite(n):  # a matrix without data has no samples
        known = np.isfinite(trained) and trained != n
        lines.append(f"n = {n:,.0f}" + (f" ({trained:,.0f} in training)" if known else ""))
        lines += [f"{used:,.0f} summed over"] if used != n else []
    return "\n".join(lines)
