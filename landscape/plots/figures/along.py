"""Numbers of parts along training: curves over the checkpoints of a series, with the edge of stability.

Groups that overlap with the parts, such as all samples beside the classes, are thick lines; the colours of many parts
range from dark for the most frequent to light for the rarest. A band is one standard error to each side.
"""

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from landscape.errors import InputError, arg, said
from landscape.plots.layout import grids, theme
from landscape.plots.layout.drawable import figure
from landscape.plots.layout.panels import ink
from landscape.plots.layout.parts import added, colours, positions
from landscape.results import Series, Spectrum, Surface, written
from landscape.results.series import edge, edge_rule

MOST_NAMES = 12
"""The largest number of curves with names; for more curves, a colour bar shows their order."""
_ROOM = 3.0  # how far beyond the curves the axis includes bands
_LINE = 70  # letters of the title
_FAR = 30.0  # and how far it includes an edge
_INFINITE = "^"  # the sign of a value beyond any axis
_HIGHEST, _STEP, _MOST = 0.97, 0.05, 8  # where such signs stand, as fractions of the axes' height, and how many


@dataclass(frozen=True)
class _Panel:
    """A number of each part that is drawn along training."""

    field: str
    label: str
    errors: tuple[str, ...] = ()  # fields of its errors, which add up in squares
    band: str = ""  # the kind of these errors, if it is none of `_OVER_SAMPLES` and estimates
    edges: bool = False  # it is to be compared with the edge of stability
    of_batches: bool = False  # the sharpness of batches is drawn with it


_PANELS: Mapping[str, Sequence[_Panel]] = {
    "spectrum": (
        _Panel(
            "lambda_max",
            r"$\lambda_{\max}$",
            ("lambda_max_sampling_stderr", "lambda_max_residual"),
            edges=True,
            of_batches=True,
        ),
        _Panel("trace", "trace", ("trace_sampling_stderr", "trace_stderr")),
        _Panel("negative_mass", "share of eigenvalues below 0", ("negative_mass_stderr",)),
        _Panel("critical_sharpness", "critical sharpness", edges=True),
        _Panel("alignment", r"$|\cos(g_p, v_1)|$, $v_1$ of all samples"),
    ),
    "sharpness": (
        _Panel("worst_rise", "worst rise in the ball", ("worst_rise_sampling_stderr",)),
        _Panel("noise_rise", "rise under noise", ("noise_rise_sampling_stderr", "noise_rise_stderr")),
        _Panel(
            "doubling_radius",
            "noise that doubles the loss",
            ("doubling_radius_spread",),
            band="half the interquartile range over directions",
        ),
    ),
    "surface": (
        _Panel("centre_loss", "loss", ("centre_loss_stderr",)),
        _Panel("worst_rise", "worst rise within the radius"),
        _Panel("doubling_radius", "radius that doubles the loss"),
    ),
}
"""What is drawn of each kind, where it was measured."""


_OVER_SAMPLES = frozenset({
    "lambda_max_sampling_stderr", "trace_sampling_stderr", "worst_rise_sampling_stderr", "noise_rise_sampling_stderr",
    "centre_loss_stderr",
})  # fmt: skip


@figure
def along(
    series: Series, parts: Sequence[str] | None = None, *, lr: float | None = None, momentum: float | None = None
) -> Figure:
    """Draw numbers of each part along training; for spectra, lambda_max with the edge of stability, and the trace.

    The edge is drawn if the learning rate is known: 2 / lr or, with momentum beta, 2 (1 + beta) / lr.

    Args:
        series: the result.
        parts: names of parts; None means all.
        lr: learning rate for the edge; None means the one that is stored with each checkpoint.
        momentum: for the edge, if `lr` is given; None means 0.

    Returns:
        A new figure with an axes for each number.

    Raises:
        InputError: no such part, a single checkpoint, or a learning rate that is not positive.

    Source: Cohen et al. 2021, "Gradient descent on neural networks typically occurs at the edge of stability".
    """
    place, unit = series.place
    if len(place) < 2:
        several = said("several checkpoints", "several by --ckpt the folder of a run, or a pattern")
        raise InputError(f"one checkpoint shows no course of training: analyse {several}")
    chosen = _chosen(series, parts)
    edges, rule = _edges(series, lr, momentum)
    panels = [p for p in _PANELS[series.of.kind] if _known(series, p.field, chosen)]
    if not panels:
        raise InputError("none of the numbers that are drawn along training was measured")
    with theme.theme():
        n = len(panels)
        per_row = n if n <= 3 else 2 if n == 4 else 3
        fig, axes, _ = grids.grid(n, per_row, max(5.0, 3.3 * per_row + 1.4), 3.3 * -(-n // per_row), sharex=True)
        styles = _styles(series, chosen)
        for ax, panel in zip(axes, panels, strict=True):
            _curves(ax, series, panel, chosen, styles, edges if panel.edges else None)
            ax.set_ylabel(panel.label)
        for ax in axes:
            if ax.xaxis.get_tick_params()["labelbottom"]:
                ax.set_xlabel(unit)
            ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        _explain(fig, series, chosen, styles, rule if edges is not None and any(p.edges for p in panels) else None)
        fig.suptitle(_about(series, panels), fontsize=9, parse_math=False)
    return fig


def _chosen(series: Series, parts: Sequence[str] | None) -> list[int]:
    """Return parts by their positions: groups that were added first, then by their training samples."""
    found = positions(series, parts)
    groups = added(series)
    return sorted(found, key=lambda p: (series.parts[p] not in groups, -np.nan_to_num(series.train_counts[p])))


def _known(series: Series, field: str, chosen: Sequence[int]) -> bool:
    return bool(np.isfinite(_drawn(series, field)[:, chosen]).any())


def _drawn(series: Series, field: str) -> np.ndarray:
    """Return the values that are drawn, (checkpoints, P); nan where there is none."""
    values = getattr(series, field)
    if values is None:
        return np.full((len(series.checkpoints), len(series.parts)), np.nan)
    found = np.asarray(values, dtype=float)
    # A critical sharpness of 0: no step up to the largest that was tried raised the loss.
    return np.where(found > 0, found, np.nan) if field == "critical_sharpness" else found


def _edges(series: Series, lr: float | None, momentum: float | None) -> tuple[np.ndarray | None, str]:
    """Return the edge at each checkpoint and its rule; None where it is unknown."""
    if lr is None:
        if momentum is not None:
            raise InputError(f"{arg('momentum')} goes with {arg('lr')}: give both")
        known = np.isfinite(series.edge).any()
        return (series.edge if known else None), series.edge_rule
    if not lr > 0 or not 0 <= (momentum or 0.0) < 1:
        raise InputError(f"{arg('lr')} must be positive and {arg('momentum')} at least 0 and below 1")
    return np.full(len(series.checkpoints), edge(lr, momentum or 0.0)), edge_rule(momentum or 0.0)


_Styles = Mapping[int, Mapping[str, Any]]


def _styles(series: Series, chosen: Sequence[int]) -> _Styles:
    """Return how the curve of each part looks: groups thick, parts thin."""
    groups = added(series)
    return {
        p: {"color": colour, **({"linewidth": 2.0, "zorder": 3} if series.parts[p] in groups else {"linewidth": 1.1})}
        for p, colour in zip(chosen, colours(series, chosen), strict=True)
    }


def _curves(
    ax: Axes, series: Series, panel: _Panel, chosen: Sequence[int], styles: _Styles, edges: np.ndarray | None
) -> None:
    """Draw a curve with its band for each part, and the edge."""
    place, _ = series.place
    values = _drawn(series, panel.field)
    squares = np.zeros(values.shape)
    for name in panel.errors:
        own = getattr(series, name, None)
        squares += 0.0 if own is None else np.nan_to_num(np.asarray(own, dtype=float), posinf=0.0) ** 2
    error = np.sqrt(squares)
    for p in reversed(chosen):
        y, e = np.where(np.isfinite(values[:, p]), values[:, p], np.nan), error[:, p]
        shown = np.isfinite(y) if np.isfinite(y).sum() < 20 else _alone(y)
        ax.plot(place, y, marker="o", markevery=np.flatnonzero(shown).tolist(), markersize=2.8, **styles[p])
        if e[np.isfinite(y)].any():
            ax.fill_between(place, y - e, y + e, color=styles[p]["color"], alpha=0.2, linewidth=0)
    drawn, ends = values[:, chosen], np.stack([values - error, values + error])[:, :, chosen]
    batches = getattr(series, "batch_sharpness", None) if panel.of_batches else None
    if batches is not None and np.isfinite(batches).any():
        spread = np.nan_to_num(series.batch_sharpness_stderr)
        finite = np.where(np.isfinite(batches), batches, np.nan)
        ax.errorbar(place, finite, yerr=spread, color=ink(), linestyle=":", linewidth=1.2, capsize=2, marker="x", ms=3)
        drawn = np.concatenate([drawn, batches[:, None]], axis=1)
    shades = [styles[p]["color"] for p in chosen] + [ink()]  # the last is that of batches
    for k, j in np.argwhere(np.isinf(drawn)):
        above = int(np.isinf(drawn[k, :j]).sum())  # signs of one checkpoint stand one below the other
        at = place[k], _HIGHEST - _STEP * (above % _MOST)
        ax.plot(*at, _INFINITE, color=shades[j], markersize=4, transform=ax.get_xaxis_transform(), zorder=5)
    drawn, ends = drawn[np.isfinite(drawn)], ends[np.isfinite(ends)]
    if edges is not None:
        drawn = _draw_edge(ax, place, edges, drawn)
    theme.log_scale(ax.yaxis, drawn)
    _set_limits(ax, drawn, np.concatenate([ends, drawn]))


def _alone(values: np.ndarray) -> np.ndarray:
    """Say which values have no known one beside them, so that no line reaches them."""
    unknown = np.concatenate([[True], np.isnan(values), [True]])
    return np.asarray(~unknown[1:-1] & unknown[:-2] & unknown[2:])


def _set_limits(ax: Axes, values: np.ndarray, ends: np.ndarray) -> None:
    """Set limits that contain the values and their bands, except a band that is far wider than all values."""
    low, high = float(values.min()), float(values.max())
    if ax.get_yscale() == "log":
        least, most = max(ends.min(), low / _ROOM), min(ends.max(), high * _ROOM)
        ax.set_ylim(least / 1.3, most * 1.3)
    else:
        room = high - low or abs(high) or 1.0
        least, most = max(ends.min(), low - room / 2), min(ends.max(), high + room / 2)
        ax.set_ylim(least - 0.06 * room, most + 0.06 * room)


def _draw_edge(ax: Axes, place: np.ndarray, edges: np.ndarray, drawn: np.ndarray) -> np.ndarray:
    """Draw the edge; return the values that the panel must show: the curves, and the part of the edge near them."""
    known = np.isfinite(edges)
    ax.plot(place, np.where(known, edges, np.nan), **_EDGE, color=ink(), drawstyle=_drawstyle(edges[known]))
    low, high = drawn.min(), drawn.max()
    near = edges[known & (edges <= _FAR * high) & (edges >= low / _FAR)]
    if not len(near):
        ax.set_title("the edge is beyond the panel", fontsize=8)
    return np.concatenate([drawn, near])


def _drawstyle(edges: np.ndarray) -> Literal["default", "steps-mid"]:
    """Return how to join the edges of successive checkpoints: by steps if the learning rate is mostly constant.

    A step is midway between two checkpoints. Whether the rate of a checkpoint is that of the steps before or after it
    depends on whether the training saved it before or after its scheduler changed the rate.
    """
    constant = np.diff(edges) == 0
    return "steps-mid" if 2 * constant.sum() >= len(constant) else "default"


_EDGE: dict[str, Any] = {"linestyle": "--", "linewidth": 1.4, "zorder": 4}


def _explain(fig: Figure, series: Series, chosen: Sequence[int], styles: _Styles, rule: str | None) -> None:
    """Write the legend: groups, parts or a bar of their order, the edge and the sharpness of batches."""
    groups = [p for p in chosen if series.parts[p] in added(series)]
    parts = [p for p in chosen if p not in groups]
    named = [*groups, *(parts if len(parts) <= MOST_NAMES else [])]
    handles = [Line2D([], [], **styles[p], label=_named(series, p)) for p in named]
    if rule:
        handles.append(Line2D([], [], **_EDGE, color=ink(), label=f"edge: {rule}"))
    batches = getattr(series, "batch_sharpness", None)
    if batches is not None and np.isfinite(batches).any():
        handles.append(Line2D([], [], color=ink(), linestyle=":", marker="x", markersize=3, label="batch sharpness"))
    if any(line.get_marker() == _INFINITE for ax in fig.axes for line in ax.lines):
        handles.append(
            Line2D([], [], color=theme.muted(), linestyle="", marker=_INFINITE, markersize=4, label="infinite")
        )
    if handles:
        grids.legend(fig, handles, "part (training samples)")
    if len(parts) > MOST_NAMES:
        bar = ScalarMappable(Normalize(1, len(parts)), ListedColormap(theme.shades(256)))
        label = "rank of the part by training samples, 1 the most frequent"
        fig.colorbar(bar, ax=fig.axes[: len(fig.axes)], label=label, **grids.bar_place())


def _named(series: Series, p: int) -> str:
    count = series.train_counts[p]
    return written.shorten(series.parts[p], 20) + ("" if np.isnan(count) else f" ({int(count):,})")


def _about(series: Series, panels: Sequence[_Panel]) -> str:
    """Return a description of the figure and of its bands."""
    own = series.last
    if isinstance(own, Surface):
        what = own.titled([series.at(k) for k in range(len(series.checkpoints))])
    else:
        what = f"{own.operator} of {own.size:,} parameters" if isinstance(own, Spectrum) else own.title
    method = series.provenance.get("method")
    bands = dict.fromkeys(filter(None, (_band(series, panel) for panel in panels)))
    band = f"band: {' or '.join(bands)}" if bands else ""
    text = "; ".join(filter(None, (str(method) if method else "", what, band)))
    return textwrap.fill(text, _LINE)  # the legend is to the right of it


def _band(series: Series, panel: _Panel) -> str:
    """Return what the bands of a panel are; empty if it has none."""
    known = [name for name in panel.errors if _has_errors(series, name)]
    if not known or panel.band:
        return panel.band if known else ""
    over = [name for name in known if name in _OVER_SAMPLES]
    return "s.e. " + ", ".join(["over samples"] * bool(over) + ["of the estimate"] * (over != known))


def _has_errors(series: Series, name: str) -> bool:
    values = getattr(series, name, None)
    return values is not None and bool(np.nan_to_num(np.asarray(values, dtype=float)).any())
