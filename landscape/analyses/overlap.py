"""Curvature overlap of parts: are the sharp directions of one part, or its gradient, sharp for another?

With V_a the stored Ritz vectors of part a's matrix (orthonormal rows, of its largest Ritz values; spectrum.py), u_a the
normalised gradient of a's loss, and H_b the matrix of part b over all of its samples,

    overlap[a, b]            = tr(V_a H_b V_a^T) / tr(V_b H_b V_b^T)    curvature of b along a's sharpest directions
    gradient_curvature[a, b] = u_a^T H_b u_a                            curvature of b along a's steepest direction
    principal_angles[a, b]   = theta_1 <= theta_2 <= ...                between the spaces of V_a and V_b
    subspace_overlap[a, b]   = |V_a V_b^T|_F^2 / min(k_a, k_b)          mean of cos^2 theta_i

The first and the last are 1 for a part with itself. The first is the curvature of b along a's sharp directions, as a
fraction of that along b's own sharpest directions. No k orthonormal vectors give more than the k largest eigenvalues
(Fan 1949), so it exceeds 1 only if b's vectors have not converged, miss copies of a multiple eigenvalue, or are those
of draws (`samples`, `accuracy`), which are not the sharpest directions of all samples of b. It is not
symmetric: directions of a may hurt b, but not the other way round. The angles depend on directions only, not on the
curvature along them (Bjorck and Golub 1973; small angles are computed from their sines: Knyazev and Argentati 2002).
"""

import logging
from collections.abc import Callable
from dataclasses import replace
from functools import cache

import numpy as np
import torch
from scipy.linalg import subspace_angles

from landscape.autodiff.wide import wide
from landscape.callables import checked
from landscape.curvature import gram
from landscape.curvature.algebra import Operator
from landscape.curvature.kinds import find
from landscape.curvature.operators import CACHE_BYTES, Backend, curvature_operator
from landscape.errors import InputError, arg
from landscape.objective import jobs
from landscape.objective.objective import Objective
from landscape.results import Overlap, Spectrum
from landscape.results.journal import Journal

log = logging.getLogger(__name__)

SAME = ("weights_sha256", "data_sha256", "partition_sha256", "loss", "loss_values", "params", "weight_decay")
"""Entries of provenance that must agree between the vectors and the matrices."""


@checked
def overlap(
    objective: Objective,
    spectrum: Spectrum,
    *,
    backend: Backend = "auto",
    cache_bytes: int = CACHE_BYTES,
    journal: Journal | None = None,
    progress: jobs.Progress | None = None,
) -> Spectrum:
    """Multiply the stored vectors and the gradient of every part by the matrices of all parts.

    The number of products with each part's matrix is the number of stored vectors and gradients of all parts together,
    which is far less than the spectrum needed.

    Args:
        objective: model, loss and data in parts from which the spectrum was computed.
        spectrum: with `ritz_vectors`. If a part has fewer vectors than others, all that it has are used.
        backend: as for `operators.curvature_operator`.
        cache_bytes: memory for values that are kept between products.
        journal: stores finished work; see `jobs.run`.
        progress: called with (done, total, text).

    Returns:
        The spectrum with `overlap`, `subspace_overlap`, `principal_angles` and `gradient_curvature`. A fraction of a
        trace that is not positive is nan. Gradients are those of the data's loss, without weight decay.

    Raises:
        InputError: a spectrum without vectors, of one part, or of another objective.
        NumericalError: a product is not finite.
    """
    refuse(len(spectrum.parts), 0 if spectrum.ritz_vectors is None else spectrum.ritz_vectors.shape[1])
    _check(objective, spectrum)
    if spectrum.drawn.any():
        log.info("vectors are of draws, matrices of the overlap of all samples, with the costs of these")
    vectors = [_known(v) for v in np.asarray(spectrum.ritz_vectors)]
    units = {f"directions along the curvature of {name}": b for b, name in enumerate(spectrum.parts)}

    @cache  # traced once, when the first unfinished part needs it
    def whole() -> Operator:
        return curvature_operator(objective, find(spectrum.operator), backend=backend, cache_bytes=cache_bytes)

    @cache
    def steepest() -> list[np.ndarray]:
        return [gram.direction(objective, part).cpu().numpy() for part in range(len(vectors))]

    def compute(unit: str, report: Callable[[float], None]) -> Overlap:
        b = units[unit]
        operator, traces, along = whole().restrict([b]).shared(), [], []
        for a, (rows, u) in enumerate(zip(vectors, steepest(), strict=True)):
            report(a / len(vectors))
            V = torch.as_tensor(np.vstack([rows, u]), dtype=operator.dtype, device=operator.device)
            products = operator.matvec(V[None])[0]
            forms = torch.linalg.vecdot(wide(products), wide(V))
            traces.append(forms[:-1].sum().item())
            along.append(forms[-1].item() if u.any() else np.nan)
        return Overlap(
            parts=spectrum.parts,
            matrices=(spectrum.parts[b],),
            trace=np.array([traces]),
            along_gradient=np.array([along]),
        )

    found = jobs.run(list(units), compute, journal, progress, costs=[float(len(own)) for own in objective.members])
    trace = found.trace.T  # (a, b)
    own = np.diag(trace)
    angles = _principal_angles(vectors)
    return replace(
        spectrum,
        overlap=np.divide(trace, own, out=np.full_like(trace, np.nan), where=own > 0),
        subspace_overlap=np.nanmean(np.cos(angles) ** 2, axis=2),
        principal_angles=np.degrees(angles),
        gradient_curvature=found.along_gradient.T,
    )


def refuse(n_parts: int, n_vectors: int) -> None:
    """Refuse an overlap without vectors or without two parts.

    Args:
        n_parts: number of parts.
        n_vectors: number of stored vectors of each part.

    Raises:
        InputError: there are no vectors, or fewer than two parts.
    """
    if n_vectors < 1:
        raise InputError(
            f"{arg('overlap', True)} needs the eigenvectors of each part: keep some, as with {arg('vectors', 5)}"
        )
    if n_parts < 2:
        raise InputError(
            f"{arg('overlap', True)} compares parts, and there is one: divide the data by "
            f"{arg('partition', 'class')} or another {arg('partition')}"
        )


def _known(vectors: np.ndarray) -> np.ndarray:
    """Return the vectors that are not nan; a matrix with few distinct eigenvalues has fewer than were requested."""
    known: np.ndarray = vectors[np.isfinite(vectors).all(axis=1)]
    return known


def _principal_angles(vectors: list[np.ndarray]) -> np.ndarray:
    """Return the angles in radians, ascending, (P, P, k); nan if a part has fewer vectors."""
    n_parts, k = len(vectors), max(map(len, vectors))
    found = np.full((n_parts, n_parts, k), np.nan)
    # Coordinates of all vectors in a basis of their span: one for each vector instead of one for each parameter.
    coordinates = np.linalg.qr(np.concatenate(vectors).T, mode="r")
    spaces = np.split(coordinates, np.cumsum([len(V) for V in vectors])[:-1], axis=1)
    for a, V in enumerate(spaces):
        for b, W in enumerate(spaces[: a + 1]):
            angles = subspace_angles(V, W)[::-1]
            found[a, b, : len(angles)] = found[b, a, : len(angles)] = angles
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
