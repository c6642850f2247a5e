"""The Lanczos process with full re-orthogonalisation, for blocks of independent probes. It knows nothing of networks.

From a symmetric A and a probe z, m steps make an orthonormal basis V of the Krylov space and a tridiagonal
T = V^T A V:

    A V = V T + beta_m v_{m+1} e_m^T

In finite precision the basis loses its orthogonality as soon as a Ritz value converges, and copies of it appear (Paige
1976). Each new vector is therefore orthogonalised against all earlier ones, twice ("twice is enough", Parlett 1998,
section 6.9), by two matrix products on one flat basis.

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

from landscape.autodiff.distributed import ALONE, Team
from landscape.autodiff.wide import wide
from landscape.callables import checked
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
    """The coefficients of B = P K runs of Lanczos; beyond a run's own number of steps they are nan."""

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
    place: Place = WHOLE,
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
        place: of the basis, as it is kept.

    Returns:
        Coefficients in float64 and the basis.

    Raises:
        InputError: no steps, or a probe of length zero.
        NumericalError: the products are not those of a symmetric matrix.
    """
    n_parts, n_probes, size = probes.shape
    if steps < 1:
        raise InputError(f"{arg('steps')} must be at least 1, got {steps}")
    limit = min(size, max(steps, max_steps or steps))
    rows = n_parts * n_probes
    eps = torch.finfo(probes.dtype).eps
    norm = dots(probes.reshape(rows, size), probes.reshape(rows, size)).sqrt()
    if not (norm > 0).all():
        raise InputError("a probe has length zero")

    capacity = min(limit, steps)
    v, before = _unit(probes.reshape(rows, size), norm), torch.zeros(0)
    own = place.kept(v)
    basis = own.new_zeros((rows, (capacity if keep else 1) + 1, own.shape[-1]))
    basis[:, 0] = own
    v = basis[:, 0] if place.is_whole else v
    alpha, beta = np.full((rows, limit), np.nan), np.full((rows, limit), np.nan)
    done = np.full(rows, 0)
    running = np.ones(rows, dtype=bool)
    scale = np.zeros(rows)  # the largest coefficients so far, a lower estimate of |A| up to a factor

    def result() -> Tridiagonal:
        taken = int(done.max())
        return Tridiagonal(
            alpha=alpha[:, :taken].reshape(n_parts, n_probes, taken).copy(),
            beta=beta[:, :taken].reshape(n_parts, n_probes, taken).copy(),
            steps=done.reshape(n_parts, n_probes).copy(),
            norm2=(norm**2).cpu().numpy().reshape(n_parts, n_probes),
            basis=basis[:, : taken + 1].reshape(n_parts, n_probes, -1, basis.shape[-1]),
            place=place,
        )

    for j in range(limit):
        if j == capacity:
            if not (running.any() and more is not None and more(result())):
                break
            capacity = min(limit, j + max(1, steps // 2))
            if keep:
                basis = torch.cat([basis, basis.new_zeros((rows, capacity - j, basis.shape[-1]))], dim=1)
                v = basis[:, j] if place.is_whole else v
        w = matvec(v.reshape(n_parts, n_probes, size)).reshape(rows, size).clone()
        # float64 for the coefficients: the tridiagonal matrix is tiny, its rounding is not.
        a = dots(v, w)
        if j == 1:
            back = team.agreed(place.dots(basis[:, 0], place.kept(w)).cpu().numpy())
            off = np.where(running, np.abs(beta[:, 0] - back) / scale, 0)
            # Rounding is a few hundred units of eps, along the same vectors as the products themselves.
            if (off > 3 * eps**0.5).any():
                _refuse_asymmetric(matvec, v.reshape(n_parts, n_probes, size), off, beta[:, 0], back, scale)
        if keep:
            earlier, own = basis[:, : j + 1], place.kept(w)
            for _ in range(2):
                own -= torch.bmm(place.team.total(torch.bmm(own[:, None], earlier.mT)), earlier)[:, 0]
            w = place.whole(own, w.device)
        else:  # in the order with the least rounding error (Paige 1972)
            if j:
                w -= before * torch.from_numpy(np.nan_to_num(beta[:, j - 1])).to(w)[:, None]
                a = dots(v, w)
            w -= v * a.to(w)[:, None]
        b = dots(w, w).sqrt()
        a_host, b_host = team.agreed(torch.stack([a, b]).cpu().numpy())
        alpha[running, j], beta[running, j] = a_host[running], b_host[running]
        done[running] = j + 1
        scale = np.maximum(scale, np.abs(a_host) + b_host)
        running &= b_host > BREAKDOWN * eps * scale
        before = before if keep else v
        v = w.mul_(torch.as_tensor(running / np.where(running, b_host, 1.0)).to(w)[:, None])
        if j + 1 < basis.shape[1]:
            basis[:, j + 1] = place.kept(v)
            v = basis[:, j + 1] if place.is_whole else v
        if progress is not None:
            progress(j + 1)
        if not running.any():
            break
    return result()


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
        raise NumericalError(
            f"the matrix is not symmetric: u.Av = {there[k]:.6g} and v.Au = {back[k]:.6g} for its first two "
            f"vectors, so its products are wrong; try {arg('backend', 'reverse')}"
        )
