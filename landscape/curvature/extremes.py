"""The two ends of a matrix's spectrum, and its trace, from about ten products.

One Lanczos run starts from an equal mixture of a guess of the sharpest direction (that of the Gauss-Newton part, which
rows give) and Gaussian noise. The guess makes it fast; the noise makes it reliable: whatever the guess is, with
probability `SURE` the start has at least a known component along every direction. From this component and the
coefficients follows a bound on all eigenvalues (`quadrature.beyond`), so that lambda_max is not only an eigenvalue, but
the largest. The run ends when both the residual and the gap to that bound are small.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from landscape.autodiff.wide import wide
from landscape.curvature.lanczos import Distribution, lanczos, probe, unsettled
from landscape.curvature.places import WHOLE, Place
from landscape.curvature.probing import Deflation, deflation, extreme_columns
from landscape.curvature.trace_probes import draw_until, standard_error
from landscape.results import quadrature
from landscape.results.quadrature import Ritz

if TYPE_CHECKING:
    from landscape.curvature.algebra import Operator
    from landscape.curvature.rows import Stored

SURE = 0.99
"""Probability, over draws of the noise, that no eigenvalue is beyond the stated bounds."""
GAP = 0.05
"""Default: the run continues while an eigenvalue may exceed lambda_max by more than this fraction of it."""
WIDEST_GAP = 0.3
"""The widest gap that a large error over samples allows by default."""
FIRST, FIRST_COARSE = 6, 3
"""Products before the first convergence test; the second if the gap may be wider than `GAP`."""
MOST = 48
"""Default for the largest number of products."""
TRACE_PROBES = 4


def gap_beside(error: float) -> float:
    """Return the default for the gap, as a fraction of lambda_max, beside an error of lambda_max over samples.

    Args:
        error: as a fraction of lambda_max.

    Returns:
        The error, but at least `GAP` and at most `WIDEST_GAP`.
    """
    return min(max(error, GAP), WIDEST_GAP) if math.isfinite(error) else GAP


@dataclass(frozen=True, kw_only=True)
class Ends:
    """The results of one Lanczos run for the matrix of one part."""

    ritz: Ritz
    above: float  # no eigenvalue is larger, with `SURE` probability
    below: float  # and none is smaller
    vectors: Tensor  # (r, D) Ritz vectors of the largest values, descending, and of the smallest
    basis: Tensor  # (m, d), as it is stored
    alpha: np.ndarray  # (m,)
    beta: np.ndarray  # (m,) the last one is the residual's norm
    next: Tensor  # v_{m+1}, (d,)
    deflation: Deflation
    place: Place  # of the basis


def ends(
    operator: "Operator",
    guess: Tensor | None,
    *,
    seed: int,
    tol: float,
    gap: float = GAP,
    sought: int = 0,
    vectors: int = 0,
    max_products: int = MOST,
    report: Callable[[float], None] = lambda share: None,
    place: Place = WHOLE,
) -> Ends:
    """Find both ends of the spectrum of an operator's only part.

    Args:
        operator: of one part.
        guess: a vector that may be close to the eigenvector of lambda_max, (D,); None for none.
        seed: of the noise.
        tol: residual, as a fraction of lambda_max, of all Ritz values that must converge before the run ends.
        gap: the largest possible excess of an eigenvalue over lambda_max, as a fraction of it, when the run may end.
        sought: number of the largest Ritz values that must converge, lambda_max at least.
        vectors: number of Ritz vectors that must converge.
        max_products: the largest number of products.
        report: called with the completed fraction.
        place: where the basis is kept.

    Returns:
        The ends and their bounds.
    """
    noise = probe(operator.size, seed=seed, number=0, distribution="gaussian", stream="ends")
    noise = (noise / float(wide(noise).norm())).to(operator.device, operator.dtype)
    length = 0.0 if guess is None else float(torch.linalg.vector_norm(wide(guess)))
    start, share = noise, 1.0
    if guess is not None and length > 0:
        start = noise + guess.to(noise) / length
        share = 1 / float(torch.linalg.vector_norm(wide(start)))
    # A uniform unit vector's component along a direction has a density of at most sqrt(D / 2 pi); a guess shifts it.
    mass = (share * (1 - SURE) * math.sqrt(math.pi / (2 * operator.size))) ** 2

    runs = lanczos(
        operator.matvec,
        start[None, None],
        min(FIRST_COARSE if gap > GAP else FIRST, max_products),
        more=unsettled(tol, gap, mass, max(1, sought, vectors)),
        max_steps=max_products,
        progress=lambda step: report(min(0.99, step / (2 * FIRST))),
        team=operator.team,
        place=place,
        of=operator,
    )
    solved = runs.solved(0, 0)
    below, above = quadrature.beyond(runs.alpha[0, 0], runs.beta[0, 0], mass)
    columns = extreme_columns(solved, max(vectors, 1))
    taken = len(solved.values)
    rounding = 10 * torch.finfo(operator.dtype).eps * float(np.abs(solved.values).max())
    return Ends(
        ritz=solved,
        above=above + rounding,
        below=below - rounding,
        vectors=place.whole(runs.ritz_vectors(0, 0, solved.vectors[:, columns]), operator.device),
        basis=runs.basis[0, 0, :taken],
        alpha=runs.alpha[0, 0, :taken],
        beta=runs.beta[0, 0, :taken],
        next=runs.basis[0, 0, taken],
        deflation=deflation(runs, 0, solved),
        place=place,
    )


def beyond_gauss_newton(
    found: Ends, rows: "Stored", weights: np.ndarray, decay: float
) -> tuple[np.ndarray, np.ndarray]:
    """Find the ends of H - G in the Krylov space of a run on H, without another product: the rows give G.

    Args:
        found: the run on the Hessian H of a part.
        rows: of its Gauss-Newton matrix G.
        weights: (n,) of the part's samples.
        decay: multiple of the identity that both contain.

    Returns:
        Smallest and largest Ritz value of H - G, (2,), and for each a distance within which there is an eigenvalue,
        (2,).
    """
    place = rows.place
    basis, following = found.basis, found.next
    if found.place.team.size < place.team.size:  # the basis is whole
        basis, following = place.kept(basis), place.kept(following)
    own = rows.vectors.to(basis.device)
    along = place.products(own, basis)  # (rows, m)
    signed = torch.from_numpy(rows.sign * weights[rows.sample]).to(along.device)
    T = torch.from_numpy(np.diag(found.alpha - decay) + np.diag(found.beta[:-1], 1) + np.diag(found.beta[:-1], -1))
    T = T.to(along)
    values, turned = torch.linalg.eigh(T - along.mT @ (signed[:, None] * along))
    ends, errors = [], []
    rounding = 10 * torch.finfo(found.basis.dtype).eps * float(np.abs(found.ritz.values).max())
    for column in (0, -1):
        y, value = turned[:, column], float(values[column])
        # H q = (T y) V + beta_m y_m v_{m+1}
        off = (T @ y - value * y).to(basis) @ basis + float(found.beta[-1] * y[-1]) * following
        off -= (signed * (along @ y)).to(own) @ own
        ends.append(value)
        errors.append(float(place.dots(off[None], off[None]).sqrt()) + max(rows.tau_plus, rows.tau_minus) + rounding)
    return np.array(ends), np.array(errors)


def trace(
    operator: "Operator", found: Ends, *, seed: int, distribution: Distribution, tol: float | None
) -> tuple[float, float]:
    """Estimate the trace of an operator's only part by probes, deflated by the run's Ritz vectors.

    Args:
        operator: of one part.
        found: from `ends`.
        seed: of the probes.
        distribution: of the probes.
        tol: draw probes until the standard error is at most this fraction of the trace; None draws `TRACE_PROBES`.

    Returns:
        The trace, and its standard error or a bound on it; see probing.py.
    """
    rests: list[float] = []

    def sample(number: int) -> float:
        z = probe(operator.size, seed=seed, number=number, distribution=distribution, stream="trace")
        z = z.to(operator.device, operator.dtype)
        product = operator.matvec(z[None, None])[0, 0]
        rests.append(found.deflation.rest(found.place.kept(z), found.place.kept(product)))
        return found.deflation.sample(found.place.kept(z), float(torch.linalg.vecdot(wide(product), wide(z))))

    error_of = partial(standard_error, rests=rests, left=[found.deflation.left])
    if tol is None:
        samples = [sample(n) for n in range(TRACE_PROBES)]
    else:
        samples = draw_until([], sample, error_of, tol, operator.team)
    rounding = 10 * torch.finfo(operator.dtype).eps * float(np.abs(found.ritz.values).max())
    return float(np.mean(samples)), max(error_of(samples), rounding)
