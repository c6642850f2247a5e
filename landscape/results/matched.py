"""Compare parts of different size at equal numbers of samples, and models on the images that they have in common.

Numbers from few samples scatter, and lambda_max of few samples is biased upwards, by up to several times its value. The
pooled test compares the number of the smaller part with numbers of equally many samples drawn from both parts together.
lambda_max is that of the Gauss-Newton or Fisher matrix, from the rows that the file stores for both parts.
"""

from dataclasses import dataclass

import numpy as np
from scipy.special import stdtr

from landscape.errors import InputError, arg
from landscape.results import inference
from landscape.results.inference import Matched
from landscape.results.pool import Pool, pool
from landscape.results.spectrum import Spectrum

NUMBERS = ("trace", "trace per uncertainty", "lambda_max", "lambda_max per uncertainty")
"""The compared numbers; those of lambda_max need rows."""


@dataclass(frozen=True, kw_only=True)
class Against:
    """One number of a part, compared with the largest part at the size of the smaller part."""

    part: str
    number: str
    n: int
    test: Matched
    p: float  # p value of the test, adjusted for all tests of the file (Holm)


@dataclass(frozen=True, kw_only=True)
class Paired:
    """The difference of one number of a part between two models, over common images."""

    part: str
    number: str
    n: int
    difference: float  # second minus first
    stderr: float
    p: float  # by Student's t, adjusted for all tests of the pair of files (Holm)


def reference(found: Spectrum) -> int:
    """Return the position of the part with the most samples; the first one if several have as many."""
    return int(np.argmax(found.n_samples))


def refusal(found: Spectrum) -> str | None:
    """Say why parts cannot be compared at equal numbers of samples.

    Weighted draws estimate a part's mean well from few samples, but they are not a random sample of it: numbers of
    another draw depend on samples that were very unlikely to be drawn.

    Args:
        found: a spectrum with the fields of single samples.

    Returns:
        The reason and the remedy; None if they can be compared.
    """
    if len(found.parts) < 2:
        return "parts are compared at equal numbers of samples, and there is one part"
    for p, name in enumerate(found.parts):
        weights = pool(found, (p,)).weights
        if np.ptp(weights) > 1e-9 * weights.max():
            return (
                f"the samples of {name} were drawn with weights, and tell nothing of equal numbers of samples: compute "
                f"all of them, or {arg('samples_per_class', len(weights))}"
            )
    return None


def against_largest(
    found: Spectrum, *, repetitions: int | None = None, trials: int = inference.TRIALS, seed: int = 0
) -> list[Against]:
    """Compare each part with the largest part at the number of samples of the smaller part.

    Args:
        found: a spectrum with the fields of single samples and at least two parts.
        repetitions: draws of each test; None means 100 times the number of tests of the file, at least 1,000 and at
            most 4,000, so that the smallest possible p, times the number of tests, is small.
        trials: of each test, for its power; 0 leaves that out.
        seed: of the draws.

    Returns:
        For each part but the largest, one comparison for each of `NUMBERS`.

    Raises:
        InputError: the spectrum has no fields of single samples, has one part, or was drawn with weights.
    """
    if (why := refusal(found)) is not None:
        raise InputError(why)
    largest = reference(found)
    others = [p for p in range(len(found.parts)) if p != largest]
    tests = []
    for p in others:
        together = pool(found, (p, largest))
        size, names = int((together.part == 0).sum()), list(_numbers(together, together.of(0)))

        def statistic(weights: np.ndarray, factors: np.ndarray, together: Pool = together) -> np.ndarray:
            return np.array(list(_numbers(together, weights, factors).values()))

        made = inference.matched(
            statistic,
            size,
            len(together.part),
            repetitions=repetitions or int(np.clip(100 * len(names) * len(others), 1000, 4000)),
            trials=trials,
            seed=seed,
        )
        tests += [(found.parts[p], name, size, test) for name, test in zip(names, made, strict=True)]
    adjusted = inference.adjusted(np.array([test.p for *_, test in tests]))
    return [
        Against(part=part, number=name, n=n, test=test, p=float(p))
        for (part, name, n, test), p in zip(tests, adjusted, strict=True)
    ]


def as_many_of_both(found: Spectrum, *, repetitions: int = 200, seed: int = 0) -> dict[str, np.ndarray]:
    """Return the numbers of as many samples as each part has, drawn from it and the largest part together.

    Args:
        found: a spectrum with the fields of single samples.
        repetitions: number of draws.
        seed: of the draws.

    Returns:
        For each available one of `NUMBERS`, the 5 %, 50 % and 95 % quantiles, (P, 3); nan for the largest part.

    Raises:
        InputError: the spectrum has no fields of single samples, or was drawn with weights.
    """
    if (why := refusal(found)) is not None:
        raise InputError(why)
    largest = reference(found)
    quantiles: dict[str, np.ndarray] = {}
    for p in range(len(found.parts)):
        if p == largest:
            continue
        together = pool(found, (p, largest))
        size = int((together.part == 0).sum())
        numbers = [_numbers(together, w) for w in inference.drawn(len(together.part), size, repetitions, seed)]
        for name in numbers[0]:
            ends = quantiles.setdefault(name, np.full((len(found.parts), 3), np.nan))
            ends[p] = np.quantile([one[name] for one in numbers], [0.05, 0.5, 0.95])
    return quantiles


def _numbers(together: Pool, weights: np.ndarray, factors: np.ndarray | float = 1.0) -> dict[str, float]:
    """Return the available ones of `NUMBERS`, for any weights of the samples and factors of their curvature."""
    below, own = float(weights @ together.uncertainty), weights * factors
    numbers = {"trace": float(own @ together.traces)}
    if together.gram is not None:
        numbers["lambda_max"] = together.gram.top(own)[0]
    if not np.isnan(below):
        numbers |= {f"{name} per uncertainty": n / below if below > 0 else 0.0 for name, n in numbers.items()}
    return {name: numbers[name] for name in NUMBERS if name in numbers}


def paired(first: Spectrum, second: Spectrum) -> list[Paired]:
    """Compare two models, part by part, over the images on which both were computed.

    Args:
        first: a spectrum with the fields of single samples.
        second: another one of the same data.

    Returns:
        For each part that both have with the same images, one comparison for each of `NUMBERS`.

    Raises:
        InputError: one has no fields of single samples.
    """
    found, others = [], unpaired(first, second)
    for part in (part for part in first.parts if part in second.parts and part not in others):
        one, other = (_of_each(spectrum, spectrum.parts.index(part)) for spectrum in (first, second))
        found += [(part, name, len(one[0]), *difference(one, other, name)) for name in NUMBERS]
    adjusted = inference.adjusted(np.array([one[-1] for one in found]))
    return [
        Paired(part=part, number=name, n=n, difference=difference, stderr=error, p=float(p))
        for (part, name, n, difference, error, _), p in zip(found, adjusted, strict=True)
    ]


def _of_each(found: Spectrum, p: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return each sample's trace, its curvature along the part's top vector, and its uncertainty."""
    together = pool(found, (p,))
    curvature = np.full(len(together.part), np.nan)
    if found.sample_curvature is not None:
        curvature = found.sample_curvature[p][: len(curvature)]
    return together.traces, curvature, together.uncertainty


def unpaired(first: Spectrum, second: Spectrum) -> dict[str, str]:
    """Say which parts of two models cannot be compared image by image, and why.

    Args:
        first: a spectrum with the fields of single samples.
        second: another one.

    Returns:
        The reason for each of these parts.

    Raises:
        InputError: one has no fields of single samples.
    """
    found = {}
    for part in (part for part in first.parts if part in second.parts):
        places = (first, first.parts.index(part)), (second, second.parts.index(part))
        one, other = (np.empty(0) if s.sample_index is None else s.sample_index[p] for s, p in places)
        if first.provenance.get("data_sha256") != second.provenance.get("data_sha256"):
            found[part] = "the data differ"
        elif not len(one) or not len(other) or not np.array_equal(one[np.isfinite(one)], other[np.isfinite(other)]):
            found[part] = "the images differ, or are unknown"
        elif any(np.ptp(pool(s, (p,)).weights) > 0 for s, p in places):
            found[part] = "the images were drawn with weights"
    return found


def difference(
    one: tuple[np.ndarray, np.ndarray, np.ndarray], other: tuple[np.ndarray, np.ndarray, np.ndarray], name: str
) -> tuple[float, float, float]:
    """Return the difference of a number of two models on the same images, its standard error, and p.

    Images are left out of both models together (the jackknife). Student's t has the degrees of freedom of the model for
    which fewer images tell (`inference.effective`): otherwise, where a class is fitted, a true hypothesis on a number
    per uncertainty is rejected in up to 25 % of cases at 5 %. The derivative of lambda_max with respect to the weight
    of an image is its curvature along the top vector: the change of the vector has an effect of second order.

    Args:
        one: traces, curvatures along the top vector, and uncertainties of the images, (n,) each.
        other: the same of the other model.
        name: one of `NUMBERS`.

    Returns:
        The number of the other model less that of the first, its error, and p.
    """
    values, without, known = [], [], []
    for traces, curvature, uncertainty in (one, other):
        x = traces if name.startswith("trace") else curvature
        y = uncertainty if name.endswith("per uncertainty") else np.ones(len(x))
        values.append(inference.ratio(x, y)[0])
        without.append(inference.without_each(x, y))
        known.append(inference.effective(y))
    off, error = values[1] - values[0], inference.jackknife(without[1] - without[0])
    p = 2 * float(stdtr(min(known) - 1, -abs(off) / error)) if error > 0 else float("nan")
    return off, error, p
