"""The largest eigenvalues of a matrix and their vectors, by the way that fits into memory.

A Lanczos run takes the fewest products, but its basis grows until all values have converged. If it might not fit, a
restarted run (restarted.py) finds them with room for a few vectors more than are wanted. Processes that compute
products together divide the vectors if they do not fit into the memory of each (places.py).
"""

import logging
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from landscape.autodiff import devices
from landscape.curvature import bounded, restarted
from landscape.curvature.lanczos import lanczos, unconverged
from landscape.curvature.places import Place, Room, dots, refuse
from landscape.errors import arg

if TYPE_CHECKING:
    from landscape.curvature.algebra import Operator

log = logging.getLogger(__name__)


def n_kept(room: Room, size: int, dtype: torch.dtype, n: int, longest: int) -> tuple[int, Place, bool]:
    """Return how many vectors a search for the largest eigenvalues keeps, and where.

    Args:
        room: for vectors.
        size: D.
        dtype: of the vectors.
        n: number of eigenvalues.
        longest: the largest number of products.

    Returns:
        The number, the place, and whether the number is that of a basis of all vectors.

    Raises:
        InputError: too few vectors fit into memory, even for a restarted run.
    """
    whole, least = 2 * min(longest, size), n + bounded.LEAST  # a basis that grows is copied
    place = room.place(whole, bounded.BESIDE + n)
    if place is not None:
        return whole, place, True
    place = room.largest
    beside = bounded.BESIDE + (0 if place.is_whole else n)  # whole vectors are made of those that are found
    fit = room.fits(place, beside)
    if fit < least:
        needed = beside + (0 if place.on_host else place.team.largest(least))
        refuse(room, size, dtype, needed, arg("batch_size"))
    return bounded.n_restarted(fit, n), place, False


@devices.full_precision()
def largest(
    operator: "Operator",
    start: Tensor,
    n: int,
    *,
    tol: float,
    steps: int,
    max_steps: int,
    memory_bytes: int | None = None,
) -> tuple[np.ndarray, np.ndarray, Tensor]:
    """Find the largest eigenvalues of an operator's only part; the processes of its team do this together.

    Args:
        operator: of one part.
        start: (D,), not zero.
        n: number of eigenvalues.
        tol: residual of each, as a fraction of lambda_max, at which the search ends.
        steps: products before the first convergence test.
        max_steps: the largest number of products.
        memory_bytes: bytes that this process may use in all; None for most of the free memory.

    Returns:
        Ritz values, descending, their residuals, and their unit vectors (r, D), which point towards the start; fewer
        than n if the space is smaller.

    Raises:
        InputError: too few vectors fit into memory.
        NumericalError: a product is not finite.
    """

    def product(v: Tensor) -> Tensor:
        return operator.matvec(v[None, None])[0, 0]

    if memory_bytes is not None:
        product(start)  # shows how much memory it needs for a moment
    room, team = Room.beside(operator, memory_bytes), operator.team
    number, place, is_basis = n_kept(room, operator.size, operator.dtype, n, max_steps)
    if not is_basis:
        log.warning(
            "%s: a Lanczos basis does not fit into memory: a restarted run with %d vectors finds the largest "
            "eigenvalues", operator.parts[0], number,
        )  # fmt: skip
        pairs = restarted.largest(
            product, start, n, capacity=number, tol=tol, most=max_steps, team=team, place=place, of=operator
        )
        return pairs.values[:n], pairs.residuals[:n], _towards(start, pairs.vectors[:n].clone(), place)
    run = lanczos(
        operator.matvec,
        start[None, None],
        steps,
        more=unconverged(tol, n),
        max_steps=max_steps,
        team=team,
        place=place,
        of=operator,
    )
    solved = run.solved(0, 0)
    count = min(n, len(solved.values))
    vectors = run.ritz_vectors(0, 0, solved.vectors[:, ::-1][:, :count].copy())
    return solved.values[::-1][:count], solved.residuals[::-1][:count], _towards(start, vectors, place)


def _towards(start: Tensor, kept: Tensor, place: Place) -> Tensor:
    """Return whole vectors with the signs with which they point towards the start, whatever the way to them."""
    vectors = place.whole(kept, start.device)
    backwards = dots(vectors, start) < 0
    return vectors.mul_(1 - 2 * backwards.to(vectors)[:, None])
