"""How many probes a trace takes, and the standard error of their mean; see probing.py for one probe's estimate."""

import logging
import math
from collections.abc import Callable, Sequence

import numpy as np

from landscape.autodiff.distributed import ALONE, Team
from landscape.results import quadrature

log = logging.getLogger(__name__)

PILOT = 6
"""Trace probes that are drawn before their error is looked at."""
_GROWTH = 3
"""Times the trace probes so far that the next stage may have: their mean may be near zero by chance."""
OWN_SPREAD = 30
"""Samples whose own spread is taken for the error of their mean; that of fewer is bounded."""
MOST_TRACE_PROBES = 400


def standard_error(samples: Sequence[float], rests: Sequence[float], left: Sequence[float]) -> float:
    """Return the standard error of the mean of trace samples, or a bound on it where they are few.

    Args:
        samples: t(z) of each probe, (K,).
        rests: |P H P z|^2 of probes.
        left: lower bounds of |P H P|_F^2.
    """
    if len(samples) >= OWN_SPREAD:
        return quadrature.mean_and_stderr(np.array(samples))[1]
    rest = max(float(np.mean(rests)), *left)
    return float(np.sqrt(2 * rest / len(samples)))


def draw_until(
    samples: Sequence[float],
    draw: Callable[[int], float],
    error_of: Callable[[Sequence[float]], float],
    tol: float,
    team: Team = ALONE,
) -> list[float]:
    """Add samples until the error of their mean, as it is reported, is at most a fraction of the mean.

    Each stage has as many as the error so far predicts: looking after every sample would end where the error happens to
    be small. A warning is logged if `MOST_TRACE_PROBES` do not suffice.

    Args:
        samples: the samples drawn so far.
        draw: returns the sample with a given number, counted from 0.
        error_of: returns the standard error of the mean of some samples.
        tol: standard error of the mean as a fraction of the mean.
        team: processes that draw together.

    Returns:
        All samples.
    """
    found, drawn, goal = list(samples), 0, max(PILOT, len(samples))
    while True:
        added = goal - len(found)
        found += [draw(n) for n in range(drawn, drawn + added)]
        drawn += added
        error, mean = team.agreed(np.array([error_of(found), np.mean(found)])).tolist()
        allowed = tol * abs(mean)
        if not error > allowed:
            return found
        needed = len(found) * (error / allowed) ** 2 if allowed else math.inf
        if len(found) >= MOST_TRACE_PROBES:
            log.warning(
                "the standard error of the trace is %.2g of it after %d probes, above the requested %g, which about "
                "%.2g would reach", error / abs(mean) if mean else math.inf, len(found), tol, needed,
            )  # fmt: skip
            return found
        goal = max(len(found) + 1, math.ceil(min(needed, _GROWTH * len(found), MOST_TRACE_PROBES)))
