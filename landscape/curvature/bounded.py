"""Probe a matrix when a Lanczos basis does not fit into memory.

A restarted run (restarted.py) finds the largest eigenvalues t_i and their vectors Q, with few vectors in memory. Each
probe z is then split, z = Q Q^T z + z', and Lanczos runs from z' on P A P, P = I - Q Q^T, without storing a basis. That
run cannot make copies of the deflated eigenvalues, and these are nearly all the copies that full orthogonalisation
would prevent. The spectral measure of z is the sum of both: t_i with weight (q_i . z)^2 / |z|^2, and the nodes of the
run with their weights times |z'|^2 / |z|^2. One tridiagonal matrix has exactly these nodes and weights (Gragg and
Harrod 1984); it is stored like that of any other run.

P A P has the eigenvalue 0 for each q_i, which A need not have. The run is on A within the space that P projects onto,
and knows nothing of it as long as its vectors stay there. If 0 is beyond the eigenvalues in that space, the recurrence
enlarges what rounding leaves of q_i in a vector by the same factor at every step, as it does to all that is far from
the spectrum. So P is applied to each new vector, after the recurrence (Parlett and Scott 1979).

This ignores the coupling of the two, of size |remainder| in A Q^T = Q^T diag(t) + next remainder^T. The coupling is the
only error of an eigenvalue (Weyl), and is added to the bounds, with the rounding of products with A, which may be much
larger than what is left of it. Vectors other than Q are not available. Eigenvalues that
converge within the run may have copies; the sum of their weights is still correct, but the resolution is lower.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from landscape.curvature import lanczos, restarted
from landscape.curvature.places import Place, dots
from landscape.results import quadrature
from landscape.results.converged import converged
from landscape.results.quadrature import Ritz

if TYPE_CHECKING:
    from landscape.curvature.algebra import Operator

LEAST = 8
"""The smallest number of vectors of the restarted run in addition to the wanted ones."""
BESIDE = 8
"""Whole vectors beside those of the restarted run: three of the recurrence, a probe, and room for sums."""
_MOST = 48  # vectors of the restarted run in addition to the wanted ones; more do not help


@dataclass(frozen=True, kw_only=True, eq=False)
class Split:
    """A matrix from which its largest eigenvalues and their vectors were removed."""

    product: Callable[[Tensor], Tensor]  # of the whole matrix, (D,) -> (D,)
    pairs: restarted.Pairs
    operator: "Operator"
    capacity: int  # vectors of the restarted run
    place: Place  # of these
    samples: list[float] = field(default_factory=list)  # estimates of the trace
    rests: list[float] = field(default_factory=list)  # estimates of |P A P|_F^2

    def without(self, z: Tensor) -> tuple[np.ndarray, Tensor]:
        """Return Q z and z' = z - Q^T Q z, whole."""
        Q, own = self.pairs.vectors, self.place.kept(z)
        along = self.place.dots(Q, own)
        rest = own - along.to(own) @ Q
        rest -= self.place.dots(Q, rest).to(own) @ Q  # once more, to remove rounding errors
        return along.cpu().numpy(), self.place.whole(rest, z.device)

    def run(self, z: Tensor, steps: int, progress: Callable[[int], None]) -> tuple[np.ndarray, np.ndarray, float, Ritz]:
        """Run from one probe.

        Args:
            z: (D,).
            steps: number of products.
            progress: called with the number of finished products.

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
        scale = float(np.abs(values).max())
        runs = lanczos.lanczos(
            lambda V: self.product(V[0, 0])[None, None],
            rest[None, None],
            steps,
            progress=progress,
            team=self.operator.team,
            keep=False,
            without=lambda W: self.without(W[0])[1][None],
            scale=scale,
            of=self.operator,
        )
        solved = runs.solved(0, 0)
        self.samples.append(float(values.sum()) + rest_norm2 * runs.alpha[0, 0, 0])
        self.rests.append(rest_norm2 * (runs.alpha[0, 0, 0] ** 2 + runs.beta[0, 0, 0] ** 2))
        nodes = np.append(values, solved.values)
        weights = np.append(along**2, rest_norm2 * solved.weights) / norm2
        order = np.argsort(nodes, kind="stable")
        alpha, beta = quadrature.jacobi(nodes[order], weights[order])
        rounding = 10 * torch.finfo(z.dtype).eps * scale  # of products with the whole matrix
        bounds = np.append(residuals, solved.residuals + coupling + rounding)
        found = Ritz(values=nodes[order], weights=weights[order], residuals=bounds[order], vectors=np.empty((0, 0)))
        return alpha, np.append(beta, runs.beta[0, 0, len(solved.values) - 1]), norm2, found

    def draw(self, z: Tensor) -> float:
        """Return another estimate of the trace, from one product."""
        _, rest = self.without(z)
        _, product = self.without(self.product(rest))
        self.rests.append(float(dots(product[None], product[None])))
        return float(self.pairs.values.sum() + dots(product[None], rest[None]))


def n_restarted(capacity: int, wanted: int = 3) -> int:
    """Return the number of vectors of the restarted run, given how many vectors fit into memory."""
    return min(capacity, _MOST + wanted)


def split(
    operator: "Operator",
    start: Tensor,
    wanted: int,
    capacity: int,
    tol: float,
    most: int,
    report: Callable[[int], None],
    place: Place,
) -> Split:
    """Deflate the largest eigenvalues of a matrix.

    Args:
        operator: of one part.
        start: (D,) random, independent of the probes.
        wanted: number of pairs that must converge; other converged pairs are deflated as well.
        capacity: number of vectors of the restarted run that fit, at least `wanted` + `LEAST`.
        tol: residual of each wanted pair, as a fraction of the largest value.
        most: the largest number of products of the search.
        report: called with the number of finished products.
        place: of the vectors.

    Returns:
        The matrix without these eigenvalues.
    """

    def product(v: Tensor) -> Tensor:
        return operator.matvec(v[None, None])[0, 0]

    m = n_restarted(capacity, wanted)
    pairs = restarted.largest(
        product,
        start,
        wanted,
        capacity=m,
        tol=tol,
        most=most,
        progress=report,
        team=operator.team,
        place=place,
        of=operator,
    )
    good = np.arange(len(pairs.values)) < wanted
    good |= converged(pairs.values, pairs.residuals, tol=tol, scale=np.abs(pairs.values).max(initial=0))
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
    return Split(product=product, pairs=pairs, operator=operator, capacity=m, place=place)
