"""The largest eigenvalues and their vectors if only few vectors fit into memory: Lanczos with thick restarts.

After m steps the space is reduced to its p best Ritz vectors and the next Lanczos vector, and Lanczos continues from
it:

    A V_p = V_p diag(t) + v b^T,     b_i = beta_m s_mi

so that converged vectors are kept, and m + 1 vectors are enough for any number of products. The projected matrix is
computed from the products themselves, and each new vector is orthogonalised twice against all vectors that are kept.

Source: Wu and Simon 2000, "Thick-restart Lanczos method for large symmetric eigenvalue problems".
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from landscape.autodiff.distributed import ALONE, Team
from landscape.curvature import ranges
from landscape.curvature.lanczos import BREAKDOWN
from landscape.curvature.places import PIECE, WHOLE, Place, dots
from landscape.errors import InputError
from landscape.results.converged import converged


@dataclass(frozen=True, kw_only=True, eq=False)
class Pairs:
    """The largest Ritz pairs of a matrix: A Q^T = Q^T diag(values) + next remainder^T, Q the rows of `vectors`."""

    values: np.ndarray  # (r,) descending
    residuals: np.ndarray  # (r,) an eigenvalue lies within this distance of the value
    vectors: Tensor  # (r, d), orthonormal rows, as their place keeps them
    remainder: np.ndarray  # (r,)
    next: Tensor  # (d,)
    left: float  # sum of the squares of the last space's other Ritz values
    products: int


def largest(
    product: Callable[[Tensor], Tensor],
    start: Tensor,
    wanted: int,
    *,
    capacity: int,
    tol: float,
    most: int,
    progress: Callable[[int], None] | None = None,
    team: Team = ALONE,
    place: Place = WHOLE,
    of: ranges.Subject | None = None,
) -> Pairs:
    """Find the largest eigenvalues of a symmetric matrix with few vectors in memory.

    Args:
        product: (D,) -> (D,).
        start: (D,), not zero; its dtype is that of the vectors.
        wanted: the number of pairs that must converge; about half of `capacity` are returned, the others unconverged.
        capacity: m, the number of vectors that are kept besides the next one; at least `wanted` + 3.
        tol: continue until the residual of each wanted pair is at most this fraction of the largest |value|.
        most: stop after this number of products; the residuals then exceed `tol`.
        progress: called with the number of finished products.
        team: processes that compute each product together; all run the same steps.
        place: of the vectors, as they are kept.
        of: whose products they are, for messages.

    Returns:
        The pairs.

    Raises:
        InputError: the capacity is too small, or the start vector is zero.
        NumericalError: the products are too small or too large.
    """
    if wanted < 1 or capacity < wanted + 3:
        raise InputError(f"{wanted} eigenvectors need {wanted + 3} vectors in memory at least, {capacity} fit")
    eps = torch.finfo(start.dtype).eps
    capacity = min(capacity, len(start))
    first = place.kept(start)
    V = first.new_empty(capacity + 1, len(first))
    norm = dots(start[None], start[None]).sqrt()
    if not norm > 0:
        raise InputError("the start has length zero")
    V[0] = first / norm.to(first)
    T = np.zeros((capacity, capacity))
    begin, taken, scale = 0, 0, 0.0
    while True:
        size, rest = capacity, 0.0
        for j in range(begin, capacity):
            w = product(place.whole(V[j], start.device))
            if not taken:
                ranges.refuse(w[None], of)
            w = place.kept(w).clone()
            taken += 1
            along = np.zeros(j + 1)
            for _ in range(2):
                found = place.dots(V[: j + 1], w)
                w -= found.to(w) @ V[: j + 1]
                along += found.cpu().numpy()
            agreed = team.agreed(np.append(along, place.dots(w[None], w[None]).sqrt().cpu().numpy()))
            along, rest = agreed[:-1], float(agreed[-1])
            T[: j + 1, j] = T[j, : j + 1] = along
            scale = max(scale, float(np.abs(along).max()) + rest)
            V[j + 1] = w / rest if rest > BREAKDOWN * eps * scale else 0
            if progress is not None:
                progress(taken)
            if rest <= BREAKDOWN * eps * scale or (taken >= most and j + 1 >= min(wanted, capacity)):
                size = j + 1
                break
        values, S = np.linalg.eigh(T[:size, :size])
        both = team.agreed(np.vstack([values, S])[:, ::-1])  # rounding, which decides on signs, may differ
        values, S = both[0], both[1:]
        # The last term is the rounding of the products, as in the bounds of quadrature.ritz.
        residuals = np.abs(rest * S[-1]) + 10 * eps * np.abs(values).max()
        sure = converged(values, residuals, tol=max(tol, 20 * eps), scale=np.abs(values).max())
        ended = taken >= most or rest <= BREAKDOWN * eps * scale
        done = ended or bool(sure[:wanted].all())
        kept = min(size, max(wanted, (capacity - 1) // 2)) if done else wanted + (capacity - wanted) // 2
        _combine(V, S[:, :kept])
        V[kept] = V[size]
        if done:
            break
        T[:] = 0
        T[np.arange(kept), np.arange(kept)] = values[:kept]
        begin = kept
    return Pairs(
        values=values[:kept].copy(),
        residuals=residuals[:kept].copy(),
        vectors=V[:kept],
        remainder=rest * S[-1, :kept],
        next=V[kept].clone(),
        left=float((values[kept:] ** 2).sum()),
        products=taken,
    )


def _combine(V: Tensor, coefficients: np.ndarray) -> None:
    """Overwrite the first rows by combinations of all, coefficients (m, r), a piece of the columns at a time."""
    S = torch.as_tensor(coefficients.T.copy(), dtype=V.dtype, device=V.device)
    for piece in torch.split(V, max(1, PIECE // len(V)), dim=1):
        piece[: len(S)] = S @ piece[: S.shape[1]]
