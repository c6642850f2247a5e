"""Parts of different size compared at equal numbers of samples, and models by the images that both saw.

A number of few samples scatters, and some are biased for their size alone. The pooled test asks what as many samples
as the smaller part has, drawn from both parts together, would give. lambda_max would need the rows of both parts in one
file and is not compared here: its bias by size alone is up to several times its value.
"""

from dataclasses import dataclass

import numpy as np
from scipy.special import stdtr

from landscape.errors import InputError
from landscape.results import inference
from landscape.results.inference import Matched
from landscape.results.spectrum import Spectrum

NUMBERS = ("trace", "trace per uncertainty")
"""What is compared, by names of the fields below."""


@dataclass(frozen=True, kw_only=True)
class Against:
    """One number of a part against that of the largest part, at the size of the smaller."""

    part: str
    number: str
    n: int
    test: Matched
    p: float  # that of the test, adjusted for all tests of the file (Holm)


@dataclass(frozen=True, kw_only=True)
class Paired:
    """One number of a part for two models, over the images that both have."""

    part: str
    number: str
    n: int
    difference: float  # second less first
    stderr: float
    p: float  # adjusted for all tests of the pair of files (Holm)


def reference(found: Spectrum) -> int:
    """Return the position of the part with most samples, the first of several."""
    return int(np.argmax(found.n_samples))


def against_largest(found: Spectrum, *, repetitions: int = 1000, seed: int = 0) -> list[Against]:
    """Compare each part with the largest one at the part's own size.

    Args:
        found: a spectrum that keeps what belongs to single samples, with at least two parts.
        repetitions: draws of each test.
        seed: of these.

    Returns:
        For each part but the largest, one comparison for each of `NUMBERS`.

    Raises:
        InputError: it keeps nothing of its samples, or has one part.
    """
    if len(found.parts) < 2:
        raise InputError("parts are compared at equal numbers of samples, and there is one part")
    largest = reference(found)
    sizes = found.n_samples.astype(float)
    tests = []
    for p, part in enumerate(found.parts):
        if p == largest:
            continue
        (t, u, w), (pool_t, pool_u, pool_w) = _samples(found, p), _samples(found, largest)
        traces, uncertainty = np.append(t, pool_t), np.append(u, pool_u)
        chance = np.append(sizes[p] * w, sizes[largest] * pool_w)
        for name in NUMBERS:
            below = uncertainty if name == NUMBERS[1] else np.ones(len(traces))

            def statistic(weights: np.ndarray, below: np.ndarray = below, traces: np.ndarray = traces) -> float:
                return float(weights @ traces / (weights @ below)) if weights @ below > 0 else 0.0

            own = np.append(w / w.sum(), np.zeros(len(pool_t)))
            test = inference.matched(
                statistic,
                statistic(own),
                int(sizes[p]),
                chance / chance.sum(),
                repetitions=repetitions,
                seed=seed,
            )
            tests.append((part, name, int(sizes[p]), test))
    adjusted = inference.adjusted(np.array([test.p for *_, test in tests]))
    return [
        Against(part=part, number=name, n=n, test=test, p=float(p))
        for (part, name, n, test), p in zip(tests, adjusted, strict=True)
    ]


def paired(first: Spectrum, second: Spectrum) -> list[Paired]:
    """Compare two models, part by part, over the images that both were computed on.

    Args:
        first: a spectrum that keeps what belongs to single samples.
        second: another one of the same data.

    Returns:
        For each part that both have with the same images, one comparison for each of `NUMBERS`; none where data differ.

    Raises:
        InputError: one keeps nothing of its samples.
    """
    if first.provenance.get("data_sha256") != second.provenance.get("data_sha256"):
        return []
    found = []
    for part in (part for part in first.parts if part in second.parts):
        p, q = first.parts.index(part), second.parts.index(part)
        one, other = _samples(first, p), _samples(second, q)
        if not _same_images(first, p, second, q):
            continue
        for name in NUMBERS:
            (a, x), (b, y) = (_linear(sample, name) for sample in (one, other))
            difference, error, n = b - a, inference.stderr(y - x), len(x)
            p_value = 2 * float(stdtr(n - 1, -abs(difference) / error)) if error > 0 else float("nan")
            found.append((part, name, n, difference, error, p_value))
    adjusted = inference.adjusted(np.array([one[-1] for one in found]))
    return [
        Paired(part=part, number=name, n=n, difference=difference, stderr=error, p=float(p))
        for (part, name, n, difference, error, _), p in zip(found, adjusted, strict=True)
    ]


def _samples(found: Spectrum, p: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return traces, uncertainties and weights of a part's samples."""
    if found.sample_trace is None or found.sample_uncertainty is None or found.sample_weight is None:
        raise InputError(
            "a spectrum keeps nothing of its samples: it is of an earlier version or was computed without errors over "
            "samples; compute it again"
        )
    own = np.isfinite(found.sample_trace[p])
    return found.sample_trace[p][own], found.sample_uncertainty[p][own], found.sample_weight[p][own]


def _same_images(first: Spectrum, p: int, second: Spectrum, q: int) -> bool:
    if first.sample_index is None or second.sample_index is None:
        return False
    a, b = first.sample_index[p], second.sample_index[q]
    equal = np.array_equal(a[np.isfinite(a)], b[np.isfinite(b)])
    return equal and all(np.ptp(_samples(found, r)[2]) == 0 for found, r in ((first, p), (second, q)))


def _linear(sample: tuple[np.ndarray, np.ndarray, np.ndarray], name: str) -> tuple[float, np.ndarray]:
    """Return a number and the values whose mean's scatter is that of the number."""
    traces, uncertainty, _ = sample
    if name == NUMBERS[0]:
        return float(traces.mean()), traces
    value, _ = inference.ratio(traces, uncertainty)
    return value, (traces - value * uncertainty) / uncertainty.mean() if uncertainty.mean() > 0 else traces * np.nan
