"""What columns of tables compute from several fields of a result."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from landscape.results.written import matrix


def ways(distances: Any) -> tuple[np.ndarray, np.ndarray | None]:
    """Return the distance of each part's convergence point from the start, mean and standard deviation over runs."""
    ways = np.full((len(distances.runs), len(distances.parts)), np.nan)
    for p, part in enumerate(distances.parts):
        if part in distances.points:
            ways[:, p] = distances.norm[:, distances.points.index(part)]
    return ways.mean(axis=0), ways.std(axis=0, ddof=1) if len(ways) > 1 else None


def nearest(features: Any, part: int) -> str:
    """Return the name of the nearest part."""
    nearest = int(features.nearest[-1, part])
    return features.parts[nearest] if 0 <= nearest < len(features.parts) else "-"


def strongest(sensitivity: Any) -> tuple[np.ndarray, np.ndarray | None]:
    """Return each part's change along the eigenvector that changes its loss most, and its error."""
    at = sensitivity.strongest(), np.arange(len(sensitivity.parts))
    return sensitivity.mean_loss_change[at], sensitivity.mean_loss_change_stderr[at]


def accuracy_there(sensitivity: Any) -> tuple[np.ndarray, np.ndarray | None]:
    """Return the change of accuracy along the same eigenvector, and its error."""
    at = sensitivity.strongest(), np.arange(len(sensitivity.parts))
    return sensitivity.mean_accuracy_change[at], sensitivity.mean_accuracy_change_stderr[at]


def conflicts(gradients: Any, part: int) -> str:
    """Return how often the part's gradient has a negative cosine with others, over batches or over the other parts."""
    others = np.delete(gradients.conflict[-1, part], part)
    known = others[~np.isnan(others)]
    if not known.size:
        return "-"
    return f"{100 * known.mean():.0f} %" if gradients.batch_size else f"{int(known.sum())} of {known.size}"


def drawn(result: Any) -> np.ndarray:
    """Say which parts' numbers, or some of which groups', are of a draw from their samples, (P,)."""
    known: np.ndarray | None = getattr(result, "drawn", None)
    if known is not None:
        return known
    if (groups := _drawn_groups(result)) is not None:
        return np.array([part in groups for part in result.parts])
    about = result.provenance.get("draws")
    n = about.get("samples") if isinstance(about, Mapping) else None
    return np.array([isinstance(n, int) and bool(of > n) for of in result.n_samples])


def of_draw(result: Any, part: int) -> str:
    """Mark a number of a part that was drawn, or of a group with such parts: its error is that of the draw."""
    if not drawn(result)[part]:
        return ""
    some = (_drawn_groups(result) or {}).get(result.parts[part]) == "some"
    return " (partly draw)" if some else " (draw)"


def _drawn_groups(result: Any) -> Mapping[str, Any] | None:
    """Return "all" or "some" for each group of which all or some parts were drawn; None for parts themselves."""
    groups = result.provenance.get("regrouped")
    found = groups.get("drawn", {}) if isinstance(groups, Mapping) else None
    return found if isinstance(found, Mapping) else None


def of_matrix(field: str) -> Callable[[Any], str]:
    """Return the function that names the matrix which a field of results states, as text after a heading."""

    def words(result: Any) -> str:
        name = matrix(getattr(result, field))
        return f"of {name}" if name else ""

    return words


def factor(name: str) -> Callable[[Any], tuple[np.ndarray, np.ndarray | None]]:
    """Return the function that gives one of the factors of sharpness, and its error over samples, of each part."""

    def values(spectrum: Any) -> tuple[np.ndarray, np.ndarray | None]:
        from landscape.results.over_samples import factors  # it is about spectra, whose tables are made here

        found = np.array([factors(spectrum, p)[name] for p in range(len(spectrum.parts))])
        return found[:, 0], found[:, 1]

    return values


def trace_factor(*, g: bool) -> Callable[[Any], tuple[np.ndarray, np.ndarray | None] | None]:
    """Return the function that gives the trace per uncertainty; None for results where it is of the other matrix.

    Args:
        g: of the trace of G beside a Hessian of another trace; else of the trace of the result's own matrix.
    """

    def values(spectrum: Any) -> tuple[np.ndarray, np.ndarray | None] | None:
        from landscape.results.over_samples import of_gauss_newton  # as above

        return factor("trace_ratio")(spectrum) if of_gauss_newton(spectrum) == g else None

    return values


def has_samples(spectrum: Any) -> bool:
    """Say whether a spectrum has the numbers of single samples."""
    return spectrum.sample_trace is not None and bool(np.isfinite(spectrum.sample_uncertainty).any())


FACTORS = (
    ("uncertainty", "uncertainty", factor("uncertainty"), "mean tr M, with its standard error over samples"),
    ("trace_ratio", "trace / unc.", trace_factor(g=False), "trace of the data divided by the uncertainty, likewise"),
    (
        "ggn_trace_ratio",
        "tr G / unc.",
        trace_factor(g=True),
        "trace of the data's Gauss-Newton matrix divided by the uncertainty, likewise; for Hessians whose own trace "
        "was estimated by probes",
    ),
    (
        "lambda_max_ratio",
        "lambda_max / unc.",
        factor("lambda_max_ratio"),
        "lambda_max of the data divided by it, likewise",
    ),
)
"""Key, heading, function and description of the numbers that factors of sharpness are shown by."""
