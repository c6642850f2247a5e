"""Adaptive refinement of a surface: compute a point only where interpolation does not predict the loss.

A coarse grid comes first. Each step halves the distance between points inside the cells that are still refined. If the
loss at a new point differs from the interpolation of the earlier points by more than a tolerance, the cells around the
new point are divided again. At half the distance, the error of cubic interpolation (`mesh.smooth`) would fall to an
eighth, and that of linear interpolation to a quarter, if the coarse grid resolved the loss. As it may not, half of
these factors are counted on: then the error of most points is below the tolerance, and the largest about two to three
times of it.
"""

from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise, product

import numpy as np

from landscape.results.mesh import floor_of, smooth

COARSEST = 8
"""Grid steps between the points of the first pass."""


def refine(
    fill: Callable[[Sequence[int], str], None],
    loss: np.ndarray,
    computed: np.ndarray,
    *,
    tol: float,
    weights: np.ndarray,
) -> None:
    """Compute a coarse grid, then the points that interpolation does not predict to within a fraction of the loss.

    Args:
        fill: computes points, given by their numbers in row-major order and a name for the progress, and writes them
            into `loss` and `computed`.
        loss: (P, ny, nx) losses of the parts; nan where a point is not computed.
        computed: (ny, nx) whether a point is computed.
        tol: the largest relative error of interpolation, as a fraction of the mean loss.
        weights: (W, P) weights of the parts in each of the W mean losses that must meet `tol`.
    """
    ny, nx = computed.shape
    step = COARSEST
    while step > 1 and step >= max(nx, ny):
        step //= 2
    cells = _cells(_every(ny, step), _every(nx, step))
    _fill_missing(fill, computed, product(_every(ny, step), _every(nx, step)), f"every {step}")
    while step > 1 and cells:
        step //= 2
        rows, columns = _every(ny, step), _every(nx, step)
        wanted = [p for cell in cells for p in _inside(cell, rows, columns)]
        before = computed.copy()
        _fill_missing(fill, computed, wanted, f"every {step}")
        mean = np.tensordot(weights, loss, 1)
        off = _misses(mean, before, computed & ~before)
        if off is None:
            divided = [cell for cell in cells if _bends(mean, cell, rows, columns, 2 * tol)]
        else:
            divided = [cell for cell in cells if _is_off(mean, off, cell, 4 * tol)]
        cells = [
            small
            for r0, r1, c0, c1 in divided
            for small in _cells([r for r in rows if r0 <= r <= r1], [c for c in columns if c0 <= c <= c1])
        ]


def _every(n: int, step: int) -> list[int]:
    return sorted({*range(0, n, step), n - 1})


def _cells(rows: Sequence[int], columns: Sequence[int]) -> list[tuple[int, int, int, int]]:
    """Return the cells between neighbouring points; an axis of one point has one cell of zero width."""
    spans = [list(pairwise(axis)) or [(axis[0], axis[0])] for axis in (rows, columns)]
    return [(*r, *c) for r, c in product(*spans)]


def _inside(cell: tuple[int, int, int, int], rows: Sequence[int], columns: Sequence[int]) -> Iterable[tuple[int, int]]:
    r0, r1, c0, c1 = cell
    return product([r for r in rows if r0 <= r <= r1], [c for c in columns if c0 <= c <= c1])


def _fill_missing(
    fill: Callable[[Sequence[int], str], None], computed: np.ndarray, wanted: Iterable[tuple[int, int]], name: str
) -> None:
    numbers = sorted({r * computed.shape[1] + c for r, c in wanted if not computed[r, c]})
    if numbers:
        fill(numbers, name)


def _misses(mean: np.ndarray, known: np.ndarray, new: np.ndarray) -> np.ndarray | None:
    """Return the relative error of interpolation at each new point, (W, ny, nx); 0 at the other points.

    If some means are zero, the smallest positive one is added to the divisor. None if cubic interpolation does not
    apply, which is so for lines and for negative means.
    """
    used = known & np.isfinite(mean).all(axis=0)
    if min(known.shape) < 2 or used.sum() < 4 or (mean[:, used] < 0).any():
        return None
    off, found = np.zeros_like(mean), mean[:, new]
    miss = np.abs(smooth(np.argwhere(used), mean[:, used], np.argwhere(new)) - found)
    size = found + floor_of(mean[:, used])
    off[:, new] = np.divide(miss, size, out=np.full_like(found, np.inf), where=np.isfinite(found) & (size > 0))
    return off


def _is_off(mean: np.ndarray, off: np.ndarray, cell: tuple[int, int, int, int], tol: float) -> bool:
    """Say whether a relative error in a cell exceeds `tol`, or only some of the cell's corners are finite."""
    r0, r1, c0, c1 = cell
    corners = np.isfinite(mean[:, [r0, r0, r1, r1], [c0, c1, c0, c1]])
    if not corners.all():
        return bool(corners.any())
    return not (off[:, r0 : r1 + 1, c0 : c1 + 1] <= tol).all()


def _bends(
    mean: np.ndarray, cell: tuple[int, int, int, int], rows: Sequence[int], columns: Sequence[int], tol: float
) -> bool:
    """Say whether linear interpolation from a cell's corners misses a mean inside by more than a fraction `tol`."""
    # Without finite corners there is no interpolation; if only some are finite, a border runs through the cell.
    r0, r1, c0, c1 = cell
    corners = mean[:, [r0, r0, r1, r1], [c0, c1, c0, c1]]
    if not np.isfinite(corners).all():
        return bool(np.isfinite(corners).any())
    for r, c in _inside(cell, rows, columns):
        v = (r - r0) / (r1 - r0) if r1 > r0 else 0.0
        u = (c - c0) / (c1 - c0) if c1 > c0 else 0.0
        expected = corners @ np.array([(1 - v) * (1 - u), (1 - v) * u, v * (1 - u), v * u])
        if not (np.abs(mean[:, r, c] - expected) <= tol * np.abs(mean[:, r, c])).all():
            return True
    return False
