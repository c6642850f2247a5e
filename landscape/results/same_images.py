"""Compare two models on the images that they have in common.

Traces and curvatures of single samples are compared: of a Hessian, the curvatures are its own, and the traces are those
of its Gauss-Newton part. Each comparison names its matrix. Weight decay is left out, and stated.
"""

from dataclasses import dataclass

import numpy as np
from scipy.special import stdtr

from landscape.results import inference, over_samples, permutation
from landscape.results.matched import NUMBERS
from landscape.results.pool import decay_of, pool
from landscape.results.spectrum import Spectrum
from landscape.results.traces import of_rows

TIES = 100
"""Numbers of an image that differ by at most so many units of rounding, of them or of the part's mean, are equal."""


@dataclass(frozen=True, kw_only=True)
class Paired:
    """The difference of one number of a part between two models, over common images."""

    part: str
    number: str
    matrix: str  # whose number it is; "hessian less ggn" where that of the second is not that of the first
    n: int
    difference: float  # second minus first
    stderr: float
    p: float  # by Student's t, adjusted for all tests of the pair of files (Holm)
    # what the weight decay adds to each eigenvalue of the matrices of the first model and of the second
    decay_left_out: tuple[float, float]


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
    eps = max(_eps(first), _eps(second))
    matrices = {name: _matrix(first, second, name) for name in NUMBERS}
    for part in (part for part in first.parts if part in second.parts and part not in others):
        one, other = (_of_each(spectrum, spectrum.parts.index(part)) for spectrum in (first, second))
        traces, curvature, uncertainty = (_tied(a, b, TIES * eps) for a, b in zip(one, other, strict=True))
        other = traces, curvature, uncertainty
        found += [(part, name, len(one[0]), *difference(one, other, name)) for name in NUMBERS]
    adjusted = permutation.adjusted(np.array([one[-1] for one in found]))
    return [
        Paired(
            part=part,
            number=name,
            matrix=matrices[name],
            n=n,
            difference=difference,
            stderr=error,
            p=float(p),
            decay_left_out=(decay_of(first), decay_of(second)),
        )
        for (part, name, n, difference, error, _), p in zip(found, adjusted, strict=True)
    ]


def _eps(found: Spectrum) -> float:
    """Return the unit of rounding of the dtype in which a spectrum was computed; that of float32 if it is unknown."""
    return float(np.finfo("float64" if found.provenance.get("dtype") == "float64" else "float32").eps)


def _tied(one: np.ndarray, other: np.ndarray, tol: float) -> np.ndarray:
    """Return the other numbers, or the first ones where the difference is at most a fraction of them or their mean."""
    scale = np.maximum(np.maximum(np.abs(one), np.abs(other)), np.abs(one).mean())
    found: np.ndarray = np.where(np.abs(other - one) <= tol * scale, one, other)
    return found


def _matrix(first: Spectrum, second: Spectrum, number: str) -> str:
    """Return the matrix whose numbers of two models are compared, or both matrices.

    Of single samples a file has the traces of G, and curvatures of its own matrix. Where H has the traces of G, both
    are of H.
    """
    both = [first, second]
    names = [found.operator for found in both]
    if number.startswith("trace") and (names[0] != names[1] or any(map(over_samples.of_gauss_newton, both))):
        names = [of_rows(name) for name in names]
    return names[0] if names[0] == names[1] else f"{names[1]} less {names[0]}"


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
        The number of the other model less that of the first, its error, and p: 1 if no image differs.
    """
    values, without, known = [], [], []
    for traces, curvature, uncertainty in (one, other):
        x = traces if name.startswith("trace") else curvature
        y = uncertainty if name.endswith("per uncertainty") else np.ones(len(x))
        values.append(inference.ratio(x, y)[0])
        without.append(inference.without_each(x, y))
        known.append(inference.effective(y))
    off, error = values[1] - values[0], inference.jackknife(without[1] - without[0])
    if off == error == 0:
        return off, error, 1.0
    p = 2 * float(stdtr(min(known) - 1, -abs(off) / error)) if error > 0 else float("nan")
    return off, error, p
