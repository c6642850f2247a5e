"""Curvature overlap of parts: are the sharp directions of one part sharp for another?

With V_a the stored Ritz vectors of part a's matrix (orthonormal rows, of its largest Ritz values; spectra.py) and H_b
the matrix of part b over all of its samples,

    overlap[a, b]          = tr(V_a H_b V_a^T) / tr(V_b H_b V_b^T)      curvature of b along a's sharpest directions
    subspace_overlap[a, b] = |V_a V_b^T|_F^2 / min(k_a, k_b)            mean squared cosine of the principal angles

Both are 1 for a part with itself. The first says what it costs b to move where a is sharp, as a share of what its own
sharpest directions cost. No k orthonormal vectors give more than the k largest eigenvalues (Fan 1949), so it exceeds 1
only where b's vectors have not converged, or miss copies of a multiple eigenvalue. It is not symmetric: directions of a
may hurt b, but not the other way round. The second knows directions only, and not how much the loss bends along them
(Bjorck and Golub 1973).
"""

from collections.abc import Callable
from dataclasses import replace
from functools import cache

import numpy as np
import torch

from landscape import jobs
from landscape.errors import InputError
from landscape.journal import Journal
from landscape.objective import Objective
from landscape.operators import CACHE_BYTES, Operator, curvature
from landscape.results import Overlap, Spectrum

SAME = ("weights_sha256", "data_sha256", "partition_sha256", "loss", "params", "weight_decay")
"""Entries of provenance that must agree between the vectors and the matrices."""


def curvature_overlap(
    objective: Objective,
    spectrum: Spectrum,
    *,
    backend: str = "auto",
    cache_bytes: int = CACHE_BYTES,
    journal: Journal | None = None,
    progress: jobs.Progress | None = None,
) -> Spectrum:
    """Multiply the stored vectors of every part by the matrices of all parts.

    That is as many products with each part's matrix as there are stored vectors of all parts together: far fewer than
    the spectrum took.

    Args:
        objective: model, loss and data in parts that the spectrum was computed from.
        spectrum: with `ritz_vectors`. Of a part with fewer vectors than others those that it has are used.
        backend: as for `operators.curvature`.
        cache_bytes: memory for what is kept between products.
        journal: keeps what is finished; see `jobs.run`.
        progress: called with (done, total, text).

    Returns:
        The spectrum with `overlap` and `subspace_overlap`. A share of a trace that is not positive is nan.

    Raises:
        InputError: a spectrum without vectors, of one part, or of another objective.
        NumericalError: a product is not finite.
    """
    refuse(len(spectrum.parts), 0 if spectrum.ritz_vectors is None else spectrum.ritz_vectors.shape[1])
    _check(objective, spectrum)
    vectors = [_known(v) for v in np.asarray(spectrum.ritz_vectors)]
    units = {f"directions along the curvature of {name}": b for b, name in enumerate(spectrum.parts)}

    @cache  # traced once, when the first unfinished part needs it
    def whole() -> Operator:
        return curvature(objective, spectrum.operator, backend=backend, cache_bytes=cache_bytes)

    def compute(unit: str, report: Callable[[float], None]) -> Overlap:
        b = units[unit]
        operator, traces = whole().restrict([b]), []
        for a, rows in enumerate(vectors):
            report(a / len(vectors))
            V = torch.as_tensor(rows, dtype=operator.dtype, device=operator.device)
            products = operator.matvec(V[None])[0]
            traces.append(torch.linalg.vecdot(products.double(), V.double()).sum().item())
        return Overlap(parts=spectrum.parts, matrices=(spectrum.parts[b],), trace=np.array([traces]))

    trace = jobs.run(list(units), compute, journal, progress).trace.T  # (a, b)
    own = np.diag(trace)
    share = np.divide(trace, own, out=np.full_like(trace, np.nan), where=own > 0)
    return replace(spectrum, overlap=share, subspace_overlap=_subspace_overlap(vectors))


def refuse(n_parts: int, n_vectors: int) -> None:
    """Refuse to compare nothing.

    Args:
        n_parts: number of parts.
        n_vectors: number of vectors that are kept of each.

    Raises:
        InputError: there are no vectors, or fewer than two parts.
    """
    if n_vectors < 1:
        raise InputError("--overlap needs the eigenvectors of each part: keep some, as with --vectors 5")
    if n_parts < 2:
        raise InputError("--overlap compares parts, and there is one: divide the data by --per-class or --partition")


def _known(vectors: np.ndarray) -> np.ndarray:
    """Return the vectors that exist: a part whose matrix has few distinct eigenvalues has fewer than were asked for."""
    known: np.ndarray = vectors[np.isfinite(vectors).all(axis=1)]
    return known


def _subspace_overlap(vectors: list[np.ndarray]) -> np.ndarray:
    found = np.empty((len(vectors), len(vectors)))
    for a, V in enumerate(vectors):
        for b, W in enumerate(vectors[: a + 1]):
            # Squared singular values of V W^T, whose sum is that of all squared entries.
            found[a, b] = found[b, a] = np.square(V @ W.T).sum() / min(len(V), len(W))
    return found


def _check(objective: Objective, spectrum: Spectrum) -> None:
    if spectrum.parts != objective.partition.names or spectrum.size != objective.layout.size:
        raise InputError(
            f"the vectors are of {spectrum.size:,} parameters in parts {', '.join(spectrum.parts)}; the objective has "
            f"{objective.layout.size:,} and {', '.join(objective.partition.names)}: load it as that of the spectrum"
        )
    for key in SAME:
        stored, now = spectrum.provenance.get(key), objective.source.get(key)
        if stored is not None and stored != now:
            raise InputError(
                f"the vectors are of another {key.replace('_', ' ')}, {stored!s:.12} in place of {now!s:.12}: load the "
                "objective as that of the spectrum"
            )
