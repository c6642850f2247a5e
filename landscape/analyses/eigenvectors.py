"""The largest eigenvalues of a part's Hessian and their eigenvectors, used as directions, and their cost.

All processes of a run compute them together: each takes some of the samples, they agree on what fits into the memory of
each, and all have the same vectors at the end.
"""

from collections.abc import Callable, Sequence
from functools import cache

import numpy as np
from torch import Tensor

from landscape.autodiff import costs, distributed, memory
from landscape.autodiff.costs import sizes, warming
from landscape.curvature import pairs, places
from landscape.curvature.algebra import Operator
from landscape.curvature.lanczos import probe
from landscape.curvature.operators import CACHE_BYTES, curvature_operator
from landscape.curvature.places import Room
from landscape.errors import InputError, arg
from landscape.objective import pilot
from landscape.objective.objective import Objective

STEPS = 30
"""Lanczos steps before the first convergence test."""
_TOL = 1e-3
_MOST = 8  # times as many steps at most


def work(
    objective: Objective, parts: Sequence[str], n: int, steps: int, *, memory_bytes: int | None, halve: str = ""
) -> costs.Known:
    """Return the cost of eigenvectors of parts: `steps` products with each Hessian, if these suffice.

    Args:
        objective: of the network.
        parts: whose Hessians these are.
        n: number of eigenvectors of each.
        steps: as for `eigenpairs`.
        memory_bytes: as for `eigenpairs`.
        halve: an option that would halve the cost.

    Returns:
        The plan.

    Raises:
        InputError: too few vectors fit into memory.
    """
    samples, batch = max(len(objective.alone(part).members[0]) for part in parts), objective.batch_size
    counts = (warming(samples), *sizes(samples, batch))
    small = pilot.few(objective, counts)
    operator = cache(lambda: _hessian(small, memory_bytes))
    entry = objective.layout.size * objective.dtype.itemsize
    with distributed.together():
        team = distributed.team()
    on_device, on_host = team.least(np.array(places.free(objective.device, memory_bytes)) // entry)
    room = Room(int(on_device), int(on_host), team)
    kept, place, is_basis = pairs.n_kept(room, objective.layout.size, objective.dtype, n, _MOST * steps)
    kept = 0 if place.on_host else place.team.largest(steps + 1 if is_basis else kept)

    def prepare(n: int) -> Callable[[], object]:
        own = operator()[str(counts.index(n))]
        z = probe(own.size, seed=0, number=0).to(own.device, own.dtype)[None, None]
        return lambda: own.matvec(z)

    products = costs.Work(
        what="products for the directions",
        prepare=prepare,
        times=steps,
        pieces=len(parts),
        samples=samples,
        batch=batch,
        halve=halve,
    )
    return costs.Known(works=(products,), keeps=(kept if place.is_whole else kept + n) * entry)


def _hessian(objective: Objective, memory_bytes: int | None) -> Operator:
    """Return the Hessian of an objective; what its products keep leaves half of the memory to vectors."""
    cache_bytes = min(CACHE_BYTES, memory.room(objective.device, memory_bytes) // 2)
    return curvature_operator(objective, cache_bytes=cache_bytes)


def eigenpairs(
    objective: Objective, part: str, n: int, *, seed: int = 0, steps: int = STEPS, memory_bytes: int | None = None
) -> tuple[Tensor, np.ndarray, np.ndarray]:
    """Return the largest eigenvalues of a part's Hessian with their eigenvectors.

    With several processes, every one must call this: they share the work.

    Args:
        objective: of the network.
        part: a part, or a group that `Objective.alone` knows.
        n: number of eigenvalues.
        seed: of the Lanczos starting vector, which also determines the signs.
        steps: Lanczos steps before the first convergence test.
        memory_bytes: bytes that this process may use in all, of the GPU's memory if it computes on one; None means
            four fifths of the free memory. If a Lanczos basis does not fit, processes divide it, or a restarted run
            needs fewer vectors.

    Returns:
        Unit vectors (n, D), the same in all processes; Ritz values (n,), descending; residuals (n,): each Ritz value
        has an eigenvalue within its residual.

    Raises:
        InputError: no such part, its Hessian has fewer distinct eigenvalues, or too few vectors fit into memory; on
            all processes, also if one of them has too little.
        NumericalError: a product is not finite, or the loss has no second derivative.
    """
    distributed.refuse_disagreement({**objective.source, "of": part, "n": n, "seed": seed, "steps": steps})
    alone = objective.alone(part)
    with distributed.together():
        values, residuals, vectors = memory.halving(lambda: _pairs(alone, n, seed, steps, memory_bytes))
    if len(values) < n:
        raise InputError(f"the Hessian of {part} has fewer than {n} distinct eigenvalues: choose another {arg('of')}")
    return vectors, values, residuals


def _pairs(
    objective: Objective, n: int, seed: int, steps: int, memory_bytes: int | None
) -> tuple[np.ndarray, np.ndarray, Tensor]:
    operator = _hessian(objective, memory_bytes).shared()
    z = probe(operator.size, seed=seed, number=0, stream="eigen").to(operator.device, operator.dtype)
    return pairs.largest(operator, z, n, tol=_TOL, steps=steps, max_steps=_MOST * steps, memory_bytes=memory_bytes)
