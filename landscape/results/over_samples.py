"""What another draw of samples would change in a part's numbers, from what a spectrum keeps of single samples.

Sharpness has two factors: trace = mean(tr M) x (trace / mean(tr M)). The first, the uncertainty, says how well the
part is fitted; the second how the network turns uncertainty into curvature. tr M and a sample's trace rise and fall
together, so that the second is known from far fewer samples than the trace.
"""

from dataclasses import dataclass

import numpy as np

from landscape.results import inference
from landscape.results.spectrum import Spectrum

RESOLVED = 1 / 3
"""A number whose standard error over samples is a larger share of it is marked as not resolved."""


@dataclass(frozen=True, kw_only=True)
class OverSamples:
    """The numbers of one part with their errors over samples; nan where there is none."""

    n: int
    lambda_max: tuple[float, float]  # value and standard error
    lambda_max_interval: tuple[float, float]
    trace: tuple[float, float]
    trace_interval: tuple[float, float]
    uncertainty: tuple[float, float]
    trace_ratio: tuple[float, float]  # trace per uncertainty
    lambda_max_ratio: tuple[float, float]  # lambda_max per uncertainty

    @property
    def resolved(self) -> bool:
        """Whether lambda_max and trace are known to better than `RESOLVED` over samples, from enough of them."""
        return self.n >= inference.LEAST and all(
            error <= RESOLVED * abs(value) for value, error in (self.lambda_max, self.trace)
        )


def of_part(found: Spectrum, p: int, *, level: float = 0.9) -> OverSamples | None:
    """Return the errors of a part over samples.

    Args:
        found: the spectrum.
        p: position of the part.
        level: how often the intervals are to hold.

    Returns:
        The numbers, or None for a spectrum that keeps nothing of its samples: of version 1, or computed without.
    """
    if (
        found.sample_trace is None
        or found.sample_curvature is None
        or found.sample_uncertainty is None
        or found.sample_weight is None
        or found.lambda_max_crossfit is None
        or found.lambda_max_crossfit_stderr is None
    ):
        return None
    own = np.isfinite(found.sample_trace[p])
    weights, n = found.sample_weight[p][own], int(own.sum())
    traces, curvatures, uncertainty = (
        inference.draws(values[p][own], weights)
        for values in (found.sample_trace, found.sample_curvature, found.sample_uncertainty)
    )
    value, error = float(found.lambda_max[p]), inference.stderr(curvatures)
    crossfit, crossfit_error = float(found.lambda_max_crossfit[p]), float(found.lambda_max_crossfit_stderr[p])
    # Around the trace itself, which for a Hessian may hold more than the traces of the samples' Gauss-Newton parts.
    low, high = (end + float(found.trace[p] - traces.mean()) for end in inference.interval(traces, level=level))
    return OverSamples(
        n=n,
        lambda_max=(value, error),
        lambda_max_interval=inference.bracket(value, error, crossfit, crossfit_error, n, level=level),
        trace=(float(found.trace[p]), inference.stderr(traces)),
        trace_interval=(low, high),
        uncertainty=(float(uncertainty.mean()), inference.stderr(uncertainty)),
        trace_ratio=inference.ratio(traces, uncertainty),
        lambda_max_ratio=inference.ratio(curvatures, uncertainty),
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class Held:
    """How much of lambda_max and of the trace of a part its images hold, the sharpest first."""

    place: np.ndarray  # (k,) position of each image, once where it was drawn several times, among the part's samples
    weight: np.ndarray  # (k,) its share of the part's samples
    lambda_max: np.ndarray  # (k,) share of the curvature along the part's top vector
    trace: np.ndarray  # (k,) share of the trace of the Gauss-Newton or Fisher matrix

    def by(self, share: float) -> tuple[float, float]:
        """Return the fractions of lambda_max and trace that a fraction of the images holds, the sharpest first.

        Args:
            share: of the images; less than one image counts as one.

        Returns:
            Of lambda_max and of the trace, between images by interpolation.
        """
        ends = np.cumsum(self.weight / self.weight.sum())
        least = max(share, float(ends[0]))
        first, second = (float(np.interp(least, ends, np.cumsum(held))) for held in (self.lambda_max, self.trace))
        return first, second


def held(found: Spectrum, p: int) -> Held | None:
    """Return which images make a part sharp.

    Args:
        found: the spectrum.
        p: position of the part.

    Returns:
        The images, or None for a spectrum that keeps nothing of its samples or a part without curvature.
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
