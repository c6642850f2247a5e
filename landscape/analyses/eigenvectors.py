"""The largest eigenvalues of a part's Hessian and their eigenvectors, used as directions, and their cost."""

from collections.abc import Callable, Sequence
from functools import cache

import numpy as np
from torch import Tensor

from landscape.autodiff import costs
from landscape.autodiff.costs import sizes, warming
from landscape.curvature.lanczos import lanczos, probe, unconverged
from landscape.curvature.operators import hessian
from landscape.errors import InputError, arg
from landscape.objective import pilot
from landscape.objective.objective import Objective

STEPS = 30
"""Lanczos steps before the first convergence test."""
_TOL = 1e-3


def work(objective: Objective, parts: Sequence[str], steps: int, halve: str = "") -> costs.Known:
    """Return the cost of eigenvectors of parts: `steps` products with each Hessian, if these suffice."""
    samples, batch = max(len(objective.alone(part).members[0]) for part in parts), objective.batch_size
    counts = (warming(samples), *sizes(samples, batch))
    small = pilot.few(objective, counts)
    operator = cache(lambda: hessian(small))

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
        divided=False,
    )
    return costs.Known(works=(products,), keeps=(steps + 1) * objective.layout.size * objective.dtype.itemsize)


def eigenpairs(
    objective: Objective, part: str, n: int, *, seed: int = 0, steps: int = STEPS
) -> tuple[Tensor, np.ndarray, np.ndarray]:
    """Return the largest eigenvalues of a part's Hessian with their eigenvectors.

    Args:
        objective: of the network.
        part: a part, or a group that `Objective.alone` knows.
        n: number of eigenvalues.
        seed: of the Lanczos starting vector, which also determines the signs.
        steps: Lanczos steps before the first convergence test.

    Returns:
        Unit vectors (n, D); Ritz values (n,), descending; residuals (n,): each Ritz value has an eigenvalue within its
        residual.

    Raises:
        InputError: no such part, or its Hessian has fewer distinct eigenvalues.
        NumericalError: a product is not finite, or the loss has no second derivative.
    """
    operator = hessian(objective.alone(part))
    z = probe(operator.size, seed=seed, number=0, stream="eigen").to(operator.device, operator.dtype)
    run = lanczos(operator.matvec, z[None, None], steps, more=unconverged(_TOL, n), max_steps=8 * steps)
    solved = run.solved(0, 0)
    if len(solved.values) < n:
        raise InputError(f"the Hessian of {part} has fewer than {n} distinct eigenvalues: choose another {arg('of')}")
    vectors = run.ritz_vectors(0, 0, solved.vectors[:, ::-1][:, :n].copy())
    return vectors, solved.values[::-1][:n], solved.residuals[::-1][:n]
