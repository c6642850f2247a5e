"""How much the loss of each part rises around a checkpoint, against its number of training samples."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from landscape.plots.layout import grids, theme
from landscape.plots.layout.drawable import figure
from landscape.plots.layout.panels import ground
from landscape.plots.layout.parts import by_name, colours, name_places, named, places
from landscape.results import Sharpness

MOST_NAMES = 12
_MARKERS = "os"  # a second shape where the ten colours are used up


@figure
def rises(sharpness: Sharpness, parts: Sequence[str] | None = None) -> Figure:
    """Draw the rise within the ball, the rise under noise and the noise that doubles the loss.

    In the first panel, a line connects the rise of SAM's step (hollow) with the largest rise that was found (filled),
    with standard errors over samples. In the second panel, lines are standard errors over random directions and samples
    together; in the third, they are spreads over the directions. An axis is logarithmic if all its values are positive.
    Up to 12 parts are named.

    Args:
        sharpness: the result.
        parts: names of the parts to draw; None for all.

    Returns:
        A new figure with three axes.

    Raises:
        InputError: no such part.
    """
    order = by_name(sharpness, parts)
    with theme.theme():
        fig, (ball, noise, doubling), _ = grids.grid(3, 3, 11.4, 3.5)
        x = places(sharpness, order)[0]
        for ax in (ball, noise, doubling):
            name_places(ax, sharpness, order)
        shades = _colours(sharpness, order)
        first, worst = sharpness.first_order_rise[order], sharpness.worst_rise[order]
        for i in range(len(order)):
            ball.plot([x[i]] * 2, [first[i], worst[i]], color=shades[i], linewidth=1)
        errors = [_over_samples(sharpness, name, order) for name in ("worst_rise", "first_order_rise")]
        _points(ball, x, worst, errors[0], shades)
        _points(ball, x, first, errors[1], shades, hollow=True)
        theme.log_scale(ball.yaxis, _known(first - errors[1], worst - errors[0]))
        kind = "adaptive " if sharpness.adaptive else ""
        ball.set_ylabel("rise (units of the loss)")
        ball.set_title(
            f"within {kind}rho = {sharpness.rho:g}\nfilled: largest found; hollow: one step of SAM"
            + _not_finite(worst, first)
        )
        over_samples = _over_samples(sharpness, "noise_rise", order)
        both = np.hypot(np.nan_to_num(sharpness.noise_rise_stderr[order]), over_samples)
        _errors(noise, x, sharpness.noise_rise[order], both, shades)
        noise.set_ylabel("rise (units of the loss)")
        over = f"mean ± s.e. over {sharpness.draws} directions" if sharpness.draws > 1 else "in one direction"
        over += (" and" if sharpness.draws > 1 else ", ± s.e. over") + " samples" if over_samples.any() else ""
        noise.set_title(
            f"under noise of {sharpness.sigma:g} of each filter\n{over}{_not_finite(sharpness.noise_rise[order])}"
        )
        radius, spread = sharpness.doubling_radius[order], sharpness.doubling_radius_spread[order]
        _errors(doubling, x, np.where(np.isinf(radius), np.nan, radius), spread, shades)
        doubling.set_ylabel("noise relative to filters")
        words = ((np.isinf(radius), f"have none up to {sharpness.limit:g}"), (np.isnan(radius), "are unknown"))
        missing = [f"{int(which.sum())} {what}" for which, what in words if which.any()]
        beyond = f"\nof {len(order)}, {' and '.join(missing)}" if missing else ""
        doubling.set_title(f"noise that doubles the loss\nmedian ± half the interquartile range{beyond}")
        if len(order) <= MOST_NAMES:
            _legend(fig, sharpness, order, shades)
        fig.suptitle(_about(sharpness), fontsize=9, parse_math=False)
    return fig


def _over_samples(sharpness: Sharpness, name: str, order: Sequence[int]) -> np.ndarray:
    """Return the standard errors over samples of a number; zeros where the file has none."""
    found = getattr(sharpness, f"{name}_sampling_stderr")
    errors: np.ndarray = np.zeros(len(order)) if found is None else np.nan_to_num(found[list(order)])
    return errors


def _colours(sharpness: Sharpness, order: Sequence[int]) -> list[str]:
    """Return the colours of parts that are named; those of many parts are all the same."""
    return colours(sharpness, order) if len(order) <= MOST_NAMES else theme.palette()[:1] * len(order)


def _marker(i: int, n: int) -> str:
    return _MARKERS[i // len(theme.palette())] if n <= MOST_NAMES else _MARKERS[0]


def _points(
    ax: Axes,
    x: np.ndarray,
    values: np.ndarray,
    errors: np.ndarray | None,
    shades: Sequence[str],
    *,
    hollow: bool = False,
) -> None:
    for i, colour in enumerate(shades):
        ax.errorbar(
            x[i],
            values[i],
            yerr=None if errors is None else np.nan_to_num(errors[i]),
            fmt=_marker(i, len(shades)),
            markersize=4.5 if len(shades) <= MOST_NAMES else 3,
            color=colour,
            markerfacecolor=ground() if hollow else colour,
            elinewidth=1,
            capsize=2,
        )


def _errors(ax: Axes, x: np.ndarray, values: np.ndarray, errors: np.ndarray, shades: Sequence[str]) -> None:
    _points(ax, x, values, errors, shades)
    # An error that reaches zero has no end on a logarithmic axis.
    theme.log_scale(ax.yaxis, _known(values - np.nan_to_num(errors), values))


def _not_finite(*values: np.ndarray) -> str:
    """Return a line of a title that says of how many parts numbers are missing."""
    missing = int((~np.isfinite(np.stack(values))).any(axis=0).sum())
    return f"\nof {len(values[0])}, {missing} {'is' if missing == 1 else 'are'} not finite" if missing else ""


def _known(*values: np.ndarray) -> np.ndarray:
    """Return the finite values; if there are none, a value that is valid on any axis."""
    joined = np.concatenate(values)
    return joined[np.isfinite(joined)] if np.isfinite(joined).any() else np.ones(1)


def _legend(fig: Figure, sharpness: Sharpness, order: Sequence[int], shades: Sequence[str]) -> None:
    handles = [
        Line2D(
            [],
            [],
            color=colour,
            marker=_marker(i, len(order)),
            markersize=4.5,
            linestyle="",
            label=named(sharpness, p, 20),
        )
        for i, (p, colour) in enumerate(zip(order, shades, strict=True))
    ]
    grids.legend(fig, handles, "part (training samples)")


def _about(sharpness: Sharpness) -> str:
    source = sharpness.provenance
    data = sharpness.stated("data", "name", of=str)
    run = " ".join(str(word) for word in (source.get("method"), source.get("model")) if word)
    return f"{run}{' on ' if run else ''}{data}, {source.get('split')} samples" if data else run
