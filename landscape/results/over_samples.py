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
