"""What columns of tables compute from several fields of a result."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np


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


def of_draw(result: Any, part: int) -> str:
    """Name the error over samples of a part that was drawn: it is that of the draw, not of the class."""
    if (drawn := getattr(result, "drawn", None)) is not None:
        return " (draw)" if drawn[part] else ""
    about = result.provenance.get("draws")
    n = about.get("samples") if isinstance(about, Mapping) else None
    return " (draw)" if isinstance(n, int) and result.n_samples[part] > n else ""


def of_draws(traces: Any, part: int) -> str:
    """Say whether a group consists of parts that were drawn."""
    group = traces.parts[part]
    drawn = traces.provenance.get("regrouped", {}).get("drawn", {}).get(group)
    return "" if not drawn else " (draw)" if drawn == "all" else " (partly draw)"


def factor(name: str) -> Callable[[Any], tuple[np.ndarray, np.ndarray | None]]:
    """Return the function that gives one of the factors of sharpness, and its error over samples, of each part."""

    def values(spectrum: Any) -> tuple[np.ndarray, np.ndarray | None]:
        from landscape.results.over_samples import factors  # it is about spectra, whose tables are made here

        found = np.array([factors(spectrum, p)[name] for p in range(len(spectrum.parts))])
        return found[:, 0], found[:, 1]

    return values


def has_samples(spectrum: Any) -> bool:
    """Say whether a spectrum has the numbers of single samples."""
    return spectrum.sample_trace is not None and bool(np.isfinite(spectrum.sample_uncertainty).any())
