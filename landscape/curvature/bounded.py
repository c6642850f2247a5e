"""Probing a matrix where a Lanczos basis does not fit into memory.

A restarted run (restarted.py) finds the largest eigenvalues t_i and their vectors Q, with few vectors in memory. Each
probe z is then taken apart, z = Q Q^T z + z', and Lanczos runs from z' on P A P, P = I - Q Q^T, keeping no basis. That
run cannot make copies of what has been taken out, which are nearly all that full orthogonalisation would prevent. The
spectrum as z sees it is that of both together: t_i with weight (q_i . z)^2 / |z|^2, and the nodes of the run with its
weights times |z'|^2 / |z|^2. One tridiagonal matrix has exactly these nodes and weights (Gragg and Harrod 1984), and is
kept as that of any other run.

What it leaves out is the coupling of the two, of size |remainder| where A Q^T = Q^T diag(t) + next remainder^T: by it
alone an eigenvalue may be off (Weyl), and it is added to the bounds. What is lost: vectors other than Q, and copies of
eigenvalues that converge within the run, whose weights still sum up rightly, at the cost of resolution.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from landscape.curvature import lanczos, restarted
from landscape.curvature.lanczos import dots
from landscape.results import quadrature
from landscape.results.quadrature import Ritz

if TYPE_CHECKING:
    from landscape.curvature.algebra import Operator

LEAST = 16
"""Vectors that this takes at least, those of the recurrence among them."""
_OTHERS = 8  # vectors beside those of the restarted run: three of the recurrence, a probe, and room for sums
_MOST = 48  # vectors of the restarted run, beyond which more do not help


@dataclass(frozen=True, kw_only=True, eq=False)
class Split:
    """A matrix without its largest eigenvalues, which are known with their vectors."""

    product: Callable[[Tensor], Tensor]  # of the whole matrix, (D,) -> (D,)
    pairs: restarted.Pairs
    operator: "Operator"
    capacity: int  # vectors of the restarted run
    samples: list[float] = field(default_factory=list)  # estimates of the trace
    rests: list[float] = field(default_factory=list)  # estimates of |P A P|_F^2

    def without(self, z: Tensor) -> tuple[np.ndarray, Tensor]:
        """Return Q z and z' = z - Q^T Q z."""
        Q = self.pairs.vectors
        along = dots(Q, z)
        rest = z - along.to(z) @ Q
        return along.cpu().numpy(), rest - dots(Q, rest).to(z) @ Q  # what rounding has left

    def run(self, z: Tensor, steps: int, progress: Callable[[int], None]) -> tuple[np.ndarray, np.ndarray, float, Ritz]:
        """Run from one probe.

        Args:
            z: (D,).
            steps: products.
            progress: called with the number of products done.

        Returns:
            Coefficients alpha and beta of the tridiagonal matrix of nodes and weights, |z|^2, and the nodes with their
            bounds.
        """
        values, residuals, coupling = (
            self.pairs.values,
            self.pairs.residuals,
            float(np.linalg.norm(self.pairs.remainder)),
        )
        norm2 = float(dots(z[None], z[None]))
        along, rest = self.without(z)
        rest_norm2 = float(dots(rest[None], rest[None]))
        runs = lanczos.lanczos(
            lambda V: self.without(self.product(V[0, 0]))[1][None, None],
            rest[None, None],
            steps,
            progress=progress,
            team=self.operator.team,
            keep=False,
        )
        solved = runs.solved(0, 0)
        self.samples.append(float(values.sum()) + rest_norm2 * runs.alpha[0, 0, 0])
        self.rests.append(rest_norm2 * (runs.alpha[0, 0, 0] ** 2 + runs.beta[0, 0, 0] ** 2))
        nodes = np.append(values, solved.values)
        weights = np.append(along**2, rest_norm2 * solved.weights) / norm2
        order = np.argsort(nodes, kind="stable")
        alpha, beta = quadrature.jacobi(nodes[order], weights[order])
        bounds = np.append(residuals, solved.residuals + coupling)
        found = Ritz(values=nodes[order], weights=weights[order], residuals=bounds[order], vectors=np.empty((0, 0)))
        return alpha, np.append(beta, runs.beta[0, 0, len(solved.values) - 1]), norm2, found

    def draw(self, z: Tensor) -> float:
        """Return one more estimate of the trace, from one product."""
        _, rest = self.without(z)
        _, product = self.without(self.product(rest))
        self.rests.append(float(dots(product[None], product[None])))
        return float(self.pairs.values.sum() + dots(product[None], rest[None]))


def split(
    operator: "Operator",
    start: Tensor,
    wanted: int,
    capacity: int,
    tol: float,
    most: int,
    report: Callable[[int], None],
) -> Split:
    """Take the largest eigenvalues out of a matrix.

    Args:
        operator: of one part.
        start: (D,) random, independent of the probes.
        wanted: how many pairs have to converge; others that have are taken out as well.
        capacity: vectors of its size that fit into memory, at least `wanted` + `LEAST`.
        tol: residual of each wanted pair, as a fraction of the largest value.
        most: products after which the search ends.
        report: called with the number of products done.

    Returns:
        The matrix without them.
    """

    def product(v: Tensor) -> Tensor:
        return operator.matvec(v[None, None])[0, 0]

    m = min(capacity - _OTHERS, _MOST + wanted)
    pairs = restarted.largest(
        product, start, wanted, capacity=m, tol=tol, most=most, progress=report, team=operator.team
    )
    good = np.arange(len(pairs.values)) < wanted
    good |= pairs.residuals <= tol * np.abs(pairs.values).max(initial=0)
    n = int(good.argmin()) if not good.all() else len(good)
    pairs = restarted.Pairs(
        values=pairs.values[:n],
        residuals=pairs.residuals[:n],
        vectors=pairs.vectors[:n].clone(),
        remainder=pairs.remainder[:n],
        next=pairs.next,
        left=pairs.left + float((pairs.values[n:] ** 2).sum()),
        products=pairs.products,
    )
    return Split(product=product, pairs=pairs, operator=operator, capacity=m)
