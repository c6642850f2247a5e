"""One scale for all panels of a figure: which losses it shows, at which levels, and what it cuts off.

A scale is logarithmic where the loss spans decades. Levels are round numbers: on a logarithmic scale some of 1, 1.2,
1.5, 2, ... 8 times powers of ten, so many of them as come nearest to the number asked for.
"""

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.colors import BoundaryNorm, LogNorm, Normalize
from matplotlib.ticker import MaxNLocator

from landscape.errors import InputError, arg

LEVELS = 12
SPANS = 30.0
"""From this ratio of the highest and the lowest loss on a scale is logarithmic."""
ALIKE = 1e-4
"""A logarithmic scale tells no losses apart that are below this, and below this share of the highest."""
MOST_LEVELS = 60

_MANTISSAS = ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 5, 7), (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8))


@dataclass(frozen=True, kw_only=True, eq=False)
class Scale:
    """Levels and colours that all panels of a figure share."""

    what: str  # as for `planes.stored`
    log: bool
    levels: np.ndarray  # ascending, at least two
    lowest: float  # of the values
    highest: float

    @property
    def low(self) -> float:
        """Lowest value with a colour of its own; lower ones are drawn like it."""
        return float(self.levels[0])

    @property
    def high(self) -> float:
        """Highest value with a colour of its own; higher ones are drawn like it."""
        return float(self.levels[-1])

    @property
    def extend(self) -> Any:
        """At which ends values are cut off, in matplotlib's words."""
        below, above = self.lowest < self.low, self.highest > self.high
        return "both" if below and above else "min" if below else "max" if above else "neither"

    @property
    def steps(self) -> BoundaryNorm:
        """Colours of the steps between levels, evenly spread whatever the levels are."""
        return BoundaryNorm(self.levels, 256, extend=self.extend)

    @property
    def continuous(self) -> Normalize:
        """Colours of single values."""
        return LogNorm(self.low, self.high) if self.log else Normalize(self.low, self.high)

    @property
    def notes(self) -> list[str]:
        """Say what is cut off."""
        found = []
        if self.highest > self.high:
            found.append(f"clipped: {name_of(self.what)} above {self.high:.4g} (up to {self.highest:.3g})")
        if self.lowest < self.low:
            found.append(f"clipped: {name_of(self.what)} below {self.low:.4g} (down to {self.lowest:.3g})")
        return found

    def ticks(self, most: int) -> np.ndarray:
        """Return levels for the labels of a colour bar, not more than can be read."""
        every = -(-len(self.levels) // most)
        return self.levels[::every]


def name_of(what: str) -> str:
    """Return the words for values that are drawn; see `planes.stored`."""
    of = what.removesuffix("_stderr")
    return what if of == what else f"s.e. of the {of}"


def scale(
    values: np.ndarray,
    *,
    levels: int | Sequence[float] | None = None,
    log: bool | None = None,
    vmin: float | None = None,
    vmax: float | None = None,
    what: str = "loss",
) -> Scale:
    """Choose the scale for some values.

    Args:
        values: any shape; those that are not finite do not count.
        levels: about how many, or which; None for about twelve.
        log: None is logarithmic where the values span decades.
        vmin: lowest level; None for what the values need.
        vmax: highest level.
        what: the values are, as for `planes.stored`.

    Returns:
        The scale.

    Raises:
        InputError: no value is finite, or options that leave nothing to draw.
    """
    finite, words = values[np.isfinite(values)], name_of(what)
    if not finite.size:
        raise InputError(f"there is no finite {words} to draw")
    lowest, highest = float(finite.min()), float(finite.max())
    for name, bound in (("vmin", vmin), ("vmax", vmax)):
        if bound is not None and not math.isfinite(bound):
            raise InputError(f"{arg(name)} must be a finite number, got {bound}")
    if log and (lowest < 0 or highest <= 0):
        raise InputError(
            f"{arg('log', True)}: the {words} is {lowest:.4g} at its lowest, and a logarithm needs positive numbers"
        )
    if not isinstance(levels, int | None):
        given = _given(levels)
        return Scale(what=what, log=bool(log), levels=given, lowest=lowest, highest=highest)
    if levels is not None and not 2 <= levels <= MOST_LEVELS:
        raise InputError(f"{arg('levels')} must be 2 to {MOST_LEVELS}, got {levels}")
    if vmin is not None and vmax is not None and vmin >= vmax:
        raise InputError(f"{arg('vmin', vmin)} is not below {arg('vmax', vmax)}: the first is the lower end")
    log = spans_decades(finite) if log is None else log
    if log and vmin is not None and vmin <= 0:
        raise InputError(
            f"{arg('vmin', vmin)}: a logarithmic scale begins above zero; give a positive one, or {arg('log', False)}"
        )
    high = highest if vmax is None else vmax
    low = vmin if vmin is not None else max(lowest, min(ALIKE, ALIKE * high)) if log else lowest
    for name, bound in (("vmin", vmin), ("vmax", vmax)):
        if bound is not None and not low < high:
            raise InputError(
                f"{arg(name, bound)} leaves nothing to draw: the {words} is between {lowest:.4g} and {highest:.4g}"
            )
    chosen = _nice(low, high, levels or LEVELS, log)
    if vmin is not None:
        chosen = np.array([vmin, *chosen[chosen > vmin]])
    if vmax is not None:
        chosen = np.array([*chosen[chosen < vmax], vmax])
    return Scale(what=what, log=log, levels=chosen, lowest=lowest, highest=highest)


def spans_decades(values: np.ndarray) -> bool:
    """Say whether values are nowhere negative, and far enough apart for a logarithmic scale.

    Args:
        values: finite ones.

    Returns:
        True if the highest is more than `SPANS` times the lowest.
    """
    return bool(values.min() >= 0 and values.max() > 0 and values.max() >= SPANS * values.min())


def label(value: float) -> str:
    """Write a level, short: "0.05", "200", "1e+06"."""
    return f"{value:.4g}".replace("-", "\N{MINUS SIGN}")


def _given(levels: Sequence[float] | None) -> np.ndarray:
    found = np.asarray(levels, dtype=np.float64)
    if found.ndim != 1 or len(found) < 2 or not np.isfinite(found).all() or (np.diff(found) <= 0).any():
        raise InputError("levels must be at least two finite numbers that ascend")
    return found


def _nice(low: float, high: float, n: int, log: bool) -> np.ndarray:
    """Return about n round levels that span the range from `low` to `high`."""
    if high - low <= 1e-6 * max(abs(low), abs(high)):  # a flat surface
        margin = 0.1 * max(abs(low), abs(high)) or 0.1
        low, high = low - margin, high + margin
        log = log and low > 0
    found: Any = MaxNLocator(n, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)
    if log:
        found = found[found > 0]
        decades = min((_decades(low, high, n, m) for m in _MANTISSAS), key=lambda levels: abs(len(levels) - n))
        if len(decades) >= min(n, 5) - 1:  # fewer than n levels within half a decade
            found = decades
    found[0], found[-1] = min(found[0], low), max(found[-1], high)  # ticks may miss the ends by rounding
    return np.asarray(found)


def _decades(low: float, high: float, n: int, mantissas: Sequence[float]) -> np.ndarray:
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    every = max(1, round((last - first) / n)) if len(mantissas) == 1 else 1
    exponents = range(first, min(last + every, sys.float_info.max_10_exp), every)  # beyond is no number
    found = np.array([m * 10.0**k for k in exponents for m in mantissas])
    begin = np.searchsorted(found, low * (1 + 1e-9), side="right") - 1
    end = np.searchsorted(found, high * (1 - 1e-9), side="left")
    return found[max(0, begin) : end + 1]
