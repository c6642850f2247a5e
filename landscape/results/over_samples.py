"""Standard errors of a part's numbers over samples, from the fields of single samples in a spectrum.

Sharpness has two factors: trace = mean(tr M) x (trace / mean(tr M)). The first factor, the uncertainty, says how well
the part is fitted; the second says how the network turns uncertainty into curvature. tr M and a sample's trace are
strongly correlated, so the second factor is known from far fewer samples than the trace.

The traces of single samples are those of the Gauss-Newton or Fisher matrix. Where probes estimated the trace of a
Hessian, it is another number than their mean: its error has that of the probes in it and, over samples, the spread of
estimates of the traces of H - G. The identity above is then that of G, whose trace the second factor is made of.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from landscape.results import inference
from landscape.results.spectrum import Spectrum

RESOLVED = 1 / 3
"""A number with a standard error above this fraction of its value is marked as not resolved."""


FEW = 10.0
"""If fewer samples than this have the uncertainty of a part, its intervals may hold less often than they say: in 75 to
89 % of cases for a class that the network has fitted (docs/uncertainty.md)."""


@dataclass(frozen=True, kw_only=True)
class OverSamples:
    """The numbers of one part with their errors over samples; nan if there is none."""

    n: int
    n_random: int  # samples that could have been others: draws that were certain could not
    weighted: bool  # the samples are draws in proportion to uncertainty
    n_effective: float  # samples that have the uncertainty of those that could have been others (`effective`)
    lambda_max: tuple[float, float]  # value and standard error
    lambda_max_interval: tuple[float, float]
    trace: tuple[float, float]  # its error is over samples and of its estimate, together
    trace_interval: tuple[float, float]
    uncertainty: tuple[float, float]
    uncertainty_interval: tuple[float, float]
    trace_ratio: tuple[float, float]  # trace per uncertainty; that of G if `of_gauss_newton`
    trace_ratio_interval: tuple[float, float]
    lambda_max_ratio: tuple[float, float]  # lambda_max per uncertainty
    lambda_max_ratio_interval: tuple[float, float]

    @property
    def of_few(self) -> bool:
        """Whether so few samples have most of the uncertainty that intervals may hold less often than they say."""
        return not self.weighted and self.n_random >= inference.LEAST and self.n_effective < FEW

    @property
    def resolved(self) -> bool:
        """Whether there are enough samples, and lambda_max and trace have relative errors of at most `RESOLVED`."""
        return self.n_random >= (inference.LEAST_WEIGHTED if self.weighted else inference.LEAST) and all(
            error <= RESOLVED * abs(value) for value, error in (self.lambda_max, self.trace)
        )


def of_part(found: Spectrum, p: int, *, level: float = 0.9) -> OverSamples | None:
    """Return the errors of a part over samples.

    Args:
        found: the spectrum.
        p: position of the part.
        level: coverage of the intervals.

    Returns:
        The numbers, or None for a spectrum without fields of single samples: of version 1, or computed without them.
    """
    known = _draws(found, p)
    if known is None or found.lambda_max_crossfit is None or found.lambda_max_crossfit_stderr is None:
        return None
    traces, curvatures, uncertainty, beyond, tell = known
    n, whole = len(traces), traces + beyond
    value, error = float(found.lambda_max[p]), inference.stderr(curvatures)
    crossfit, crossfit_error = float(found.lambda_max_crossfit[p]), float(found.lambda_max_crossfit_stderr[p])
    weighted, n_random = known_exactly(found, p), n if tell is None else int(np.count_nonzero(tell))
    enough = inference.LEAST_WEIGHTED if weighted else inference.LEAST
    interval = partial(inference.interval, level=level, n=n_random, least=enough)
    mean, of_estimate, of_rows = float(whole.mean()), estimate_error(found, p), _estimate_of_rows(found, p)
    least = 0.0 if of_rows and traces.min() >= 0 else -np.inf  # a Hessian's trace by probes may be negative
    widened = partial(inference.widened, least=least, level=level)
    # Around the trace itself: that of a Hessian may differ from the estimates of its samples' traces.
    around = float(found.trace[p]) - mean
    low, high = widened(interval(whole), mean, of_estimate)
    made: dict[str, Any] = {"n": n, "n_random": n_random, "weighted": weighted, "lambda_max": (value, error)}
    made |= factors(found, p)
    made |= {
        "n_effective": inference.effective(uncertainty if tell is None else uncertainty[tell]),
        "trace": (float(found.trace[p]), float(np.hypot(inference.stderr(whole), of_estimate))),
        "trace_interval": (low + around, high + around),
    }
    if weighted:
        below = made["uncertainty"][0]
        ends = inference.around(float(curvatures.mean()), error, n_random, level=level)
        return OverSamples(
            **made,
            lambda_max_interval=inference.around(value, error, n_random, level=level),
            uncertainty_interval=(below, below),
            trace_ratio_interval=_divided(widened(interval(traces), float(traces.mean()), of_rows), below),
            lambda_max_ratio_interval=_divided(ends, below),
        )
    ratio_low, ratio_high = inference.ratio_interval(curvatures, uncertainty, level=level, tell=tell)
    if not np.isnan(ratio_low):  # as for lambda_max itself, the lower end starts from the cross-fitted value
        ratio_low = float(np.maximum(0.0, ratio_low - (value - crossfit) / float(uncertainty.mean())))
    of_traces = inference.ratio_interval(traces, uncertainty, level=level, tell=tell)
    ratio, off = made["trace_ratio"][0], _over(of_rows, float(uncertainty.mean()))
    return OverSamples(
        **made,
        lambda_max_interval=inference.bracket(value, error, crossfit, crossfit_error, n, level=level),
        uncertainty_interval=interval(uncertainty),
        trace_ratio_interval=widened(of_traces, ratio, off),
        lambda_max_ratio_interval=(ratio_low, ratio_high),
    )


def estimate_error(found: Spectrum, p: int) -> float:
    """Return the standard error of the estimate of a part's trace, as far as the spread over samples leaves it out.

    The spread of estimates of each sample's own trace holds their errors. It does not hold the error of probes, which
    are of all samples together, nor the errors of estimates of samples that were certain to be drawn. With a draw, the
    errors of the other samples' estimates count twice: the return value is an upper bound.

    Args:
        found: the spectrum, with fields of single samples.
        p: position of the part.

    Returns:
        The error, in units of the loss; nan if it is unknown.
    """
    return float(found.trace_stderr[p]) if found.drawn[p] or not _is_of_samples(found, p) else 0.0


def _estimate_of_rows(found: Spectrum, p: int) -> float:
    """Return the part of `estimate_error` that the mean of the samples' traces has as well: not that of probes."""
    return estimate_error(found, p) if _is_of_samples(found, p) else 0.0


def of_gauss_newton(found: Spectrum) -> bool:
    """Say whether traces of single samples are those of G while the parts' traces are those of the Hessian H.

    So it is if probes estimated the traces of H: of a network that is not known to be piecewise linear in each of its
    parameters. Otherwise H and G have the same traces.

    Args:
        found: the spectrum.

    Returns:
        Whether they are; not for a spectrum without fields of single samples.
    """
    return found.operator == "hessian" and not all(_is_of_samples(found, p) for p in range(len(found.parts)))


def _is_of_samples(found: Spectrum, p: int) -> bool:
    """Say whether a part's trace is the mean of its samples' traces, with the weight decay; true without samples."""
    if (known := _draws(found, p)) is None or not len(known[0]) or found.trace_stderr[p] == 0:
        return True  # a trace by probes has an error, if only of rounding, and seldom equals this mean to nine digits
    decay = found.stated("weight_decay", of=float) or found.stated("weight_decay", of=int) or 0
    mean, of_decay = float(known[0].mean()), found.size * decay  # not every matrix has the second one
    return any(abs(found.trace[p] - other) <= 1e-9 * (abs(mean) + of_decay) for other in (mean, mean + of_decay))


def _over(value: float, by: float) -> float:
    return value / by if by > 0 else np.nan


def _divided(ends: tuple[float, float], by: float) -> tuple[float, float]:
    return _over(ends[0], by), _over(ends[1], by)


def factors(found: Spectrum, p: int) -> dict[str, tuple[float, float]]:
    """Return the uncertainty of a part, and trace and lambda_max of its data per uncertainty.

    If `of_gauss_newton`, the trace is that of G, which is known without probes; lambda_max is that of H.

    Args:
        found: the spectrum.
        p: position of the part.

    Returns:
        "uncertainty", "trace_ratio" and "lambda_max_ratio", each with its standard error; nan where it is unknown.
    """
    if (known := _draws(found, p)) is None:
        return dict.fromkeys(("uncertainty", "trace_ratio", "lambda_max_ratio"), (np.nan, np.nan))
    traces, curvatures, uncertainty, *_ = known
    below = float(uncertainty.mean()), inference.stderr(uncertainty)
    if known_exactly(found, p) and found.uncertainty is not None:
        below = float(found.uncertainty[p]), 0.0
        of_trace, of_top = (_divided((float(x.mean()), inference.stderr(x)), below[0]) for x in (traces, curvatures))
    else:
        of_trace, of_top = (inference.ratio(x, uncertainty) for x in (traces, curvatures))
    error = float(np.hypot(of_trace[1], _over(_estimate_of_rows(found, p), below[0])))
    return {"uncertainty": below, "trace_ratio": (of_trace[0], error), "lambda_max_ratio": of_top}


def repeated(found: Spectrum, p: int) -> bool:
    """Say whether a part's draws are all one sample, as earlier versions, which drew with replacement, could make them.

    Args:
        found: the spectrum.
        p: position of the part.

    Returns:
        Whether they are; then their spread is unknown.
    """
    if found.sample_index is None:
        return False
    index = found.sample_index[p][np.isfinite(found.sample_index[p])]
    return len(index) > 1 and len(np.unique(index)) == 1


def known_exactly(found: Spectrum, p: int) -> bool:
    """Say whether a part's samples are draws in proportion to tr M, which is then known of all of its samples.

    Args:
        found: the spectrum.
        p: position of the part.

    Returns:
        Whether they are; not for draws of earlier versions, with replacement.
    """
    if found.sample_weight is None or found.sample_chance is None or not np.isfinite(found.sample_chance[p]).any():
        return False
    known = found.sample_weight[p][np.isfinite(found.sample_weight[p])]
    return bool(np.ptp(known) > 1e-9 * known.max())


def _draws(found: Spectrum, p: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray | None] | None:
    """Return numbers of a part's samples as `inference.draws` does, and which samples tell.

    The numbers are traces, curvatures, uncertainty, and traces of H - G, which are 0 where these are not estimated. The
    last one is None if all samples could have been others: draws that were certain could not. All is None for a
    spectrum without fields of single samples.
    """
    if (
        found.sample_trace is None
        or found.sample_curvature is None
        or found.sample_uncertainty is None
        or found.sample_weight is None
    ):
        return None
    own = np.isfinite(found.sample_trace[p])
    weights = found.sample_weight[p][own]
    if repeated(found, p):
        own, weights = np.flatnonzero(own)[:1], weights.sum(keepdims=True)
    chances = None if found.sample_chance is None else found.sample_chance[p][own]
    beyond = np.zeros_like(found.sample_trace) if found.sample_beyond is None else np.nan_to_num(found.sample_beyond)
    traces, curvatures, uncertainty, beyond = (
        inference.draws(values[p][own], weights, chances)
        for values in (found.sample_trace, found.sample_curvature, found.sample_uncertainty, beyond)
    )
    return traces, curvatures, uncertainty, beyond, None if chances is None or np.isnan(chances).any() else chances < 1


@dataclass(frozen=True, kw_only=True, eq=False)
class Held:
    """How much each image contributes to lambda_max and trace of a part, the sharpest image first."""

    place: np.ndarray  # (k,) position of each image among the part's samples; repeated draws count as one
    weight: np.ndarray  # (k,) its share of the part's samples
    lambda_max: np.ndarray  # (k,) share of the curvature along the part's top vector
    trace: np.ndarray  # (k,) share of the trace of the Gauss-Newton or Fisher matrix

    def by(self, share: float) -> tuple[float, float]:
        """Return the fractions of lambda_max and trace that come from the sharpest fraction of the images.

        Args:
            share: fraction of the images; less than one image counts as one.

        Returns:
            The fractions of lambda_max and of the trace, interpolated between images.
        """
        ends = np.cumsum(self.weight / self.weight.sum())
        least = max(share, float(ends[0]))
        first, second = (float(np.interp(least, ends, np.cumsum(held))) for held in (self.lambda_max, self.trace))
        return first, second


def held(found: Spectrum, p: int) -> Held | None:
    """Return how much each image contributes to the sharpness of a part.

    Args:
        found: the spectrum.
        p: position of the part.

    Returns:
        The images, or None for a spectrum without fields of single samples or a part without curvature.
    """
    if (
        found.sample_curvature is None
        or found.sample_trace is None
        or found.sample_weight is None
        or found.sample_index is None
    ):
        return None
    own = np.isfinite(found.sample_curvature[p]) & np.isfinite(found.sample_trace[p])
    _, first, image = np.unique(found.sample_index[p][own], return_index=True, return_inverse=True)
    weight = found.sample_weight[p][own]
    each = [
        np.bincount(image, weight * values)
        for values in (np.ones(len(weight)), found.sample_curvature[p][own], found.sample_trace[p][own])
    ]
    if not own.any() or each[1].sum() == 0 or each[2].sum() == 0:
        return None
    order = np.argsort(-each[1] / each[0], kind="stable")
    weights, curvatures, traces = (values[order] for values in each)
    return Held(
        place=np.flatnonzero(own)[first[order]],
        weight=weights,
        lambda_max=curvatures / curvatures.sum(),
        trace=traces / traces.sum(),
    )
