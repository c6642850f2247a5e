"""The Lanczos process with full re-orthogonalisation, for blocks of independent probes. It knows nothing of networks.

From a symmetric A and a probe z, m steps make an orthonormal basis V of the Krylov space and a tridiagonal
T = V^T A V:

    A V = V T + beta_m v_{m+1} e_m^T

In finite precision the basis loses its orthogonality as soon as a Ritz value converges, and copies of it appear (Paige
1976). Each new vector is therefore orthogonalised against all earlier ones, twice ("twice is enough", Parlett 1998,
section 6.9), by matrix products on one flat basis. Twice is enough only if the inner products have about half of their
digits, so they are added up in float64.

If the basis does not fit into memory, three vectors are enough. Without the earlier ones copies appear, but each copy
is at an eigenvalue, and the weights of the copies sum to the eigenvalue's own weight (Greenbaum 1989; Chen, Trogdon and
Ubaru 2021). So the density is correct, at the resolution of fewer steps, but no eigenvectors are available.
"""

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import numpy as np
import torch
from torch import Tensor

from landscape.autodiff import devices
from landscape.autodiff.distributed import ALONE, Team
from landscape.autodiff.wide import wide
from landscape.callables import checked
from landscape.curvature import ranges
from landscape.curvature.places import PIECE, WHOLE, Place, dots
from landscape.errors import InputError, NumericalError, arg, check_choice
from landscape.results import quadrature
from landscape.results.converged import converged
from landscape.results.quadrature import Ritz

Distribution: TypeAlias = Literal["rademacher", "gaussian"]
DISTRIBUTIONS: tuple[Distribution, ...] = get_args(Distribution)
BREAKDOWN = 100.0
"""A remainder below this many rounding units of |A| is noise: the Krylov space is invariant and the run ends."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Tridiagonal:
    """The coefficients of P K runs of Lanczos; after the last step of a run they are nan."""

    alpha: np.ndarray  # (P, K, m) float64, the diagonals
    beta: np.ndarray  # (P, K, m) float64, beta[j] couples steps j and j + 1; the last one is the residual's norm
    steps: np.ndarray  # (P, K) int64
    norm2: np.ndarray  # (P, K) squared length of each probe
    basis: Tensor  # (P, K, m + 1, d), orthonormal rows; the row `steps` is v_{m+1}, zero where beta is rounding. Of
    # runs that keep no basis m is 1: the probe and the vector after it
    place: Place = WHOLE  # of the basis: d of its D entries are on this process

    def solved(self, part: int, probe: int) -> Ritz:
        """Return the Ritz values of one run, with residual bounds that include the rounding of the basis' dtype."""
        eps = torch.finfo(self.basis.dtype).eps
        return quadrature.ritz(self.alpha[part, probe], self.beta[part, probe], int(self.steps[part, probe]), eps)

    def ritz_vectors(self, part: int, probe: int, coefficients: np.ndarray) -> Tensor:
        """Combine the basis into Ritz vectors.

        Args:
            part: position of the part.
            probe: position of the probe.
            coefficients: (m, r) eigenvectors of this run's tridiagonal matrix.

        Returns:
            Orthonormal vectors, (r, d): as the basis is kept.
        """
        # The sign of an eigenvector depends on rounding, and each process may have its own entries of the basis.
        coefficients = self.place.team.agreed(coefficients)
        rows = self.basis[part, probe, : len(coefficients)]
        return torch.as_tensor(coefficients.T.copy(), dtype=rows.dtype, device=rows.device) @ rows


def unconverged(tol: float, n: int = 1) -> Callable[[Tridiagonal], bool]:
    """Return a rule for `more` of `lanczos`, which continues until the largest Ritz values have converged.

    Args:
        tol: relative tolerance, as of `converged`, with |lambda_max| as the scale.
        n: number of the largest values that must converge.

    Returns:
        A function that is True while one of these values of a run has not converged.
    """

    def more(runs: Tridiagonal) -> bool:
        found = [runs.solved(p, k) for p, k in np.ndindex(runs.steps.shape)]
        return not all(converged(r.values, r.residuals, tol=tol, scale=r.values[-1])[-n:].all() for r in found)

    return more


def unsettled(tol: float, gap: float, mass: float, n: int = 1) -> Callable[[Tridiagonal], bool]:
    """Return a rule for `more` of one run, which continues until lambda_max is certainly the largest eigenvalue.

    Args:
        tol: as for `unconverged`.
        gap: the largest possible excess of an eigenvalue over lambda_max at the end, as a fraction of it.
        mass: lower bound of the start's squared component along every direction; see `quadrature.beyond`.
        n: as for `unconverged`.

    Returns:
        A function that is True while an eigenvalue may exceed this gap, or `unconverged` is True.
    """
    converging = unconverged(tol, n)

    def more(runs: Tridiagonal) -> bool:
        top = float(runs.solved(0, 0).values[-1])
        _, above = quadrature.beyond(runs.alpha[0, 0], runs.beta[0, 0], mass)
        return above - top > gap * abs(top) or converging(runs)

    return more


def probe(
    size: int, *, seed: int, number: int, distribution: Distribution = "rademacher", stream: str = "lanczos"
) -> Tensor:
    """Draw one random vector z with E[z z^T] = I.

    It depends only on its arguments, not on the device, the batch size, or earlier draws. All parts use the same
    probes, so that differences between parts are not differences between probes.

    Args:
        size: D.
        seed: of the whole analysis.
        number: number of the probe in its stream.
        distribution: "rademacher" (signs; the smaller variance for a trace) or "gaussian".
        stream: name of an independent sequence.

    Returns:
        The vector, (D,) float32 on the CPU.

    Raises:
        InputError: an unknown distribution or a negative seed.
    """
    if seed < 0:
        raise InputError(f"{arg('seed')} must not be negative, got {seed}")
    check_choice("distribution", distribution, DISTRIBUTIONS)
    state = np.random.SeedSequence([seed, number, zlib.crc32(stream.encode())]).generate_state(2, np.uint32)
    generator = torch.Generator().manual_seed(int(state[0]) << 32 | int(state[1]))
    if distribution == "rademacher":
        return torch.randint(0, 2, (size,), generator=generator, dtype=torch.float32) * 2 - 1
    return torch.randn(size, generator=generator, dtype=torch.float32)


@checked
@devices.full_precision()
def lanczos(
    matvec: Callable[[Tensor], Tensor],
    probes: Tensor,
    steps: int,
    *,
    more: Callable[[Tridiagonal], bool] | None = None,
    max_steps: int | None = None,
    progress: Callable[[int], None] | None = None,
    team: Team = ALONE,
    keep: bool = True,
    without: Callable[[Tensor], Tensor] | None = None,
    place: Place = WHOLE,
    scale: float = 0.0,
    of: ranges.Subject | None = None,
) -> Tridiagonal:
    """Run the Lanczos process from each probe, all runs in lock-step.

    A run ends early, with fewer steps, if its Krylov space is invariant: the number of steps is then the number of
    distinct eigenvalues with a component in the probe, or one for a zero matrix.

    Args:
        matvec: (P, K, D) -> (P, K, D), the same symmetric matrix for all vectors of a part.
        probes: (P, K, D), not zero; their dtype is that of the basis.
        steps: products per run, at most D.
        more: called after `steps` products and then after every half as many again; True continues.
        max_steps: the largest number of products, whatever `more` returns; None means `steps`.
        progress: called with the number of finished steps.
        team: processes that compute each product together; each runs the same steps.
        keep: store the basis, and orthogonalise against it; otherwise see the docstring of this module.
        without: projects vectors, (P K, D) -> (P K, D), onto a subspace that contains the probes and is nearly
            invariant; the coefficients are then those of the matrix within it. Every new vector is projected: from a
            projection of the products alone, rounding leads out of the subspace if the matrix is definite in it.
        place: of the basis, as it is kept.
        scale: largest |eigenvalue| that was removed from the matrix, whose rounding its products have.
        of: whose products they are, for messages.

    Returns:
        Coefficients in float64 and the basis.

    Raises:
        InputError: no steps, or a probe of length zero.
        NumericalError: the products are not those of a symmetric matrix, or they are too small or too large.
    """
    if steps < 1:
        raise InputError(f"{arg('steps')} must be at least 1, got {steps}")
    limit = min(probes.shape[-1], max(steps, max_steps or steps))
    runs = _Runs(
        probes, min(limit, steps), limit, team=team, place=place, keep=keep, without=without, scale=scale, of=of
    )
    while runs.running.any() and runs.taken < limit:
        if runs.taken == runs.capacity:
            if more is None or not team.agreed(np.array([more(runs.result())]))[0]:
                break
            runs.extend(min(limit, runs.taken + max(1, steps // 2)))
        runs.step(matvec)
        if progress is not None:
            progress(runs.taken)
    return runs.result()


class _Runs:
    """The state of all P K runs; arrays have one row for each run, and run (p, k) is row p K + k."""

    def __init__(
        self,
        probes: Tensor,
        capacity: int,
        limit: int,
        *,
        team: Team,
        place: Place,
        keep: bool,
        without: Callable[[Tensor], Tensor] | None,
        scale: float,
        of: ranges.Subject | None,
    ) -> None:
        n_parts, n_probes, size = probes.shape
        n_runs, flat = n_parts * n_probes, probes.reshape(-1, size)
        self.norm = dots(flat, flat).sqrt()
        if not (self.norm > 0).all():
            raise InputError("a probe has length zero")
        self.shape, self.team, self.place, self.keep, self.without = probes.shape, team, place, keep, without
        self.of = of
        self.capacity, self.taken = capacity, 0  # steps for which there is room, and those that are finished
        self.v, self.before = _unit(flat, self.norm), torch.zeros(0)  # the last vectors, and those before them
        own = place.kept(self.v)
        self.basis = own.new_zeros((n_runs, (capacity if keep else 1) + 1, own.shape[-1]))
        self._put(0)
        self.alpha, self.beta = np.full((n_runs, limit), np.nan), np.full((n_runs, limit), np.nan)
        self.done = np.full(n_runs, 0)
        self.running = np.ones(n_runs, dtype=bool)
        self.scale = np.full(n_runs, scale)  # the largest coefficients so far, a lower estimate of |A| up to a factor

    def result(self) -> Tridiagonal:
        """Return the coefficients and the basis of the steps that are finished."""
        n_parts, n_probes, _ = self.shape
        taken = int(self.done.max())
        return Tridiagonal(
            alpha=self.alpha[:, :taken].reshape(n_parts, n_probes, taken).copy(),
            beta=self.beta[:, :taken].reshape(n_parts, n_probes, taken).copy(),
            steps=self.done.reshape(n_parts, n_probes).copy(),
            norm2=(self.norm**2).cpu().numpy().reshape(n_parts, n_probes),
            basis=self.basis[:, : taken + 1].reshape(n_parts, n_probes, -1, self.basis.shape[-1]),
            place=self.place,
        )

    def extend(self, capacity: int) -> None:
        """Make room for more steps."""
        if self.keep:
            shape = (len(self.basis), capacity - self.capacity, self.basis.shape[-1])
            self.basis = torch.cat([self.basis, self.basis.new_zeros(shape)], dim=1)
            self.v = self.basis[:, self.taken] if self.place.is_whole else self.v
        self.capacity = capacity

    def step(self, matvec: Callable[[Tensor], Tensor]) -> None:
        """Take the next step of all runs; those that have ended stay at zero."""
        j, eps = self.taken, torch.finfo(self.v.dtype).eps
        w = matvec(self.v.reshape(self.shape)).reshape(self.v.shape).clone()
        if j == 0:
            ranges.refuse(w, self.of)
        if j == 1:
            self._check_symmetric(matvec, w)
        # float64 for the coefficients: the tridiagonal matrix is tiny, its rounding is not.
        a = dots(self.v, w)
        if self.keep:
            w = self._orthogonalised(w)
        else:  # in the order with the least rounding error (Paige 1972)
            if j:
                w -= self.before * torch.from_numpy(np.nan_to_num(self.beta[:, j - 1])).to(w)[:, None]
                a = dots(self.v, w)
            w -= self.v * a.to(w)[:, None]
            self.before = self.v
        if self.without is not None:
            w = self.without(w)
        b = dots(w, w).sqrt()
        alpha, beta = self.team.agreed(torch.stack([a, b]).cpu().numpy())
        self.alpha[self.running, j], self.beta[self.running, j] = alpha[self.running], beta[self.running]
        self.taken += 1
        self.done[self.running] = self.taken
        self.scale = np.maximum(self.scale, np.abs(alpha) + beta)
        self.running &= beta > BREAKDOWN * eps * self.scale
        inverse = self.running / np.where(self.running, beta, 1.0)
        if inverse.max() > torch.finfo(w.dtype).max:
            kind = str(w.dtype).removeprefix("torch.")
            raise NumericalError(
                f"products of size {beta[self.running].min():.1g} are too small for {kind}: use float64, or multiply "
                "the matrix by a number"
            )
        self.v = w.mul_(torch.as_tensor(inverse).to(w)[:, None])
        if self.taken < self.basis.shape[1]:
            self._put(self.taken)

    def _put(self, j: int) -> None:
        """Store the last vectors in the basis; if the basis is whole, they share its memory from then on."""
        self.basis[:, j] = self.place.kept(self.v)
        self.v = self.basis[:, j] if self.place.is_whole else self.v

    def _orthogonalised(self, w: Tensor) -> Tensor:
        """Return w without its components along all earlier vectors, which are removed twice."""
        earlier, own = self.basis[:, : self.taken + 1], self.place.kept(w)
        for _ in range(2):
            own[:, None].baddbmm_(self.place.products(own[:, None], earlier).to(own), earlier, alpha=-1)
        return self.place.whole(own, w.device)

    def _check_symmetric(self, matvec: Callable[[Tensor], Tensor], w: Tensor) -> None:
        """Compare u . A v with v . A u for the first two vectors, where w = A v is the second product."""
        there = self.beta[:, 0]
        back = self.team.agreed(self.place.dots(self.basis[:, 0], self.place.kept(w)).cpu().numpy())
        off = np.where(self.running, np.abs(there - back) / self.scale, 0)
        # Rounding is a few hundred units of eps, along the same vectors as the products themselves.
        if (off > 3 * torch.finfo(w.dtype).eps ** 0.5).any():
            _refuse_asymmetric(matvec, self.v.reshape(self.shape), off, there, back, self.scale, self.of)


def _unit(vectors: Tensor, lengths: Tensor) -> Tensor:
    """Return vectors (n, D) divided by their lengths (n,), a piece at a time in float64."""
    found = torch.empty_like(vectors)
    for unit, z in zip(torch.split(found, PIECE, 1), torch.split(vectors, PIECE, 1), strict=True):
        unit[:] = (wide(z) / lengths[:, None]).to(unit)
    return found


def _refuse_asymmetric(
    matvec: Callable[[Tensor], Tensor],
    like: Tensor,
    off: np.ndarray,
    there: np.ndarray,
    back: np.ndarray,
    scale: np.ndarray,
    of: ranges.Subject | None,
) -> None:
    """Refuse the matrix if u . A v differs from v . A u for the first two vectors of a run; only one product is new.

    A Rademacher probe may be in the null space of a small matrix, such as that of a linear classifier. Its products are
    then only rounding, which has no symmetry.

    Raises:
        NumericalError: the products are not those of a symmetric matrix.
    """
    eps = torch.finfo(like.dtype).eps
    other = torch.randn(like.shape[-1], generator=torch.Generator().manual_seed(0)).to(like)
    product = matvec((other / other.norm()).expand_as(like).contiguous()).reshape(len(off), -1)
    rounding = 1e3 * eps * dots(product, product).sqrt().cpu().numpy()
    off = np.where(scale > rounding, off, 0)
    if (off > 3 * eps**0.5).any():
        k = int(off.argmax())
        name = ranges.named(of, k, len(off))
        found = f"u.Av = {there[k]:.6g} and v.Au = {back[k]:.6g} for its first two vectors"
        if of is None or of.objective is None:
            raise NumericalError(f"{name} is not symmetric: {found}; give (A + A^T) / 2")
        # The loss of a fitted sample has derivatives in which float32 may lose all digits, see objective/precise.py.
        narrow = like.dtype == torch.float32
        coarse = ", or float32 is too coarse for them" if narrow else ""
        remedies = [arg("dtype", "float64")] * narrow + [arg("backend", "reverse")]
        raise NumericalError(
            f"{name} is not symmetric: {found}, so its products are wrong{coarse}, or the losses of its samples are so "
            f"small that their derivatives have cancelled to rounding; try {' or '.join(remedies)}"
        )
