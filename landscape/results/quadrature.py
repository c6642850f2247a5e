"""From Lanczos coefficients to results: nodes and weights, extreme eigenvalues, density, negative mass.

A probe z and m Lanczos steps on H give a tridiagonal T. Its eigenvalues t_i and the squared first components w_i of its
eigenvectors are the Gauss quadrature of H's spectral measure for z: sums of w_i f(t_i) are exact for polynomials
up to degree 2m - 1, and their mean over probes estimates 1/D * trace f(H) (Golub and Meurant 2010, ch. 6 and 7; Ubaru,
Chen and Saad 2017).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import numpy as np
from scipy.linalg import eigh_tridiagonal, hessenberg

from landscape.callables import checked
from landscape.errors import InputError, arg, check_choice
from landscape.results import inference
from landscape.results.spectrum import Spectrum

Axis: TypeAlias = Literal["linear", "symlog"]
AXES: tuple[str, ...] = get_args(Axis)


@dataclass(frozen=True, kw_only=True, eq=False)
class Ritz:
    """Eigenvalues of one run's tridiagonal matrix, ascending, with weights and bounds from its eigenvectors."""

    values: np.ndarray  # (m,)
    weights: np.ndarray  # (m,) squared first components, sum to 1
    residuals: np.ndarray  # (m,) an eigenvalue of H lies within this distance of the value
    vectors: np.ndarray  # (m, m) eigenvectors of T in columns


def ritz(alpha: np.ndarray, beta: np.ndarray, steps: int, eps: float = 2.0**-52) -> Ritz:
    """Solve one run's tridiagonal matrix.

    Args:
        alpha: (m,) diagonal; entries beyond `steps` are not used.
        beta: (m,) off-diagonal; the entry steps - 1 is the norm of the last residual.
        steps: Lanczos steps of the run.
        eps: rounding of the products, relative to |H|; it is added to the bounds.

    Returns:
        Values, weights and residual bounds |H q - t q| <= beta_m |s_m| + 10 eps |T| (Parlett 1998, section 13.2).
    """
    values, vectors = eigh_tridiagonal(alpha[:steps], beta[: steps - 1])
    rounding = 10 * eps * np.abs(values).max()
    residuals = np.abs(beta[steps - 1] * vectors[-1]) + rounding
    return Ritz(values=values, weights=vectors[0] ** 2, residuals=residuals, vectors=vectors)


def beyond(alpha: np.ndarray, beta: np.ndarray, mass: float) -> tuple[float, float]:
    """Return bounds on all eigenvalues with an eigenvector that has a given component in the starting vector.

    A point x of a measure has at most the mass 1 / sum_j p_j(x)^2, the Christoffel function, with p_j the orthonormal
    polynomials of the measure. The coefficients of m steps determine p_0 to p_m, which grow without bound outside the
    range of the nodes.

    Args:
        alpha: (m,) diagonal of one run.
        beta: (m,) off-diagonal; the last entry is the norm of the last residual.
        mass: lower bound of the squared component of the unit starting vector along the eigenvector, in (0, 1).

    Returns:
        Lower and upper bound; the smallest and the largest node if the run ended in an invariant subspace.

    Source: Akhiezer 1965, section 2.5.
    """
    taken = int(np.isfinite(alpha).sum())
    alpha, beta = alpha[:taken], beta[:taken]
    values = eigh_tridiagonal(alpha, beta[:-1], eigvals_only=True)
    scale = float(np.abs(values).max())
    if beta[-1] <= np.finfo(np.float64).eps * scale:
        return float(values[0]), float(values[-1])

    def too_heavy(x: float, sign: float) -> bool:
        """Say whether a mass at x is too large for the spectral measure of the matrix times the sign."""
        before, now, total = 0.0, 1.0, 1.0
        for j in range(taken):
            before, now = now, ((x - sign * alpha[j]) * now - (beta[j - 1] * before if j else 0.0)) / beta[j]
            total += now * now
            if total * mass > 1:
                return True
        return False

    found = []
    for sign, end in ((-1.0, -float(values[0])), (1.0, float(values[-1]))):
        step = scale
        while not too_heavy(end + step, sign):
            step *= 2
        low, high = end, end + step
        while high - low > 1e-6 * scale:
            middle = (low + high) / 2
            low, high = (low, middle) if too_heavy(middle, sign) else (middle, high)
        found.append(sign * high)
    return found[0], found[1]


def jacobi(nodes: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the tridiagonal matrix whose quadrature has given nodes and weights; the inverse of `ritz`.

    Args:
        nodes: (m,).
        weights: (m,) that sum to 1, not negative.

    Returns:
        Its diagonal (m,) and off-diagonal (m - 1,), not negative.

    Source: Gragg and Harrod 1984; by orthogonal similarity, which keeps the first vector, and so the weights.
    """
    n = len(nodes)
    bordered = np.zeros((n + 1, n + 1))
    bordered[0, 1:] = bordered[1:, 0] = np.sqrt(weights)
    bordered[np.arange(1, n + 1), np.arange(1, n + 1)] = nodes
    reduced = hessenberg(bordered)
    return np.diag(reduced)[1:].copy(), np.abs(np.diag(reduced, -1)[1:])


@checked
def nodes_and_weights(alpha: np.ndarray, beta: np.ndarray, steps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the quadrature of each probe of one part.

    Args:
        alpha: (K, m).
        beta: (K, m).
        steps: (K,).

    Returns:
        Nodes (K, m), ascending, and weights (K, m) that sum to 1 for each probe; nan beyond a run's steps.
    """
    nodes, weights = np.full(alpha.shape, np.nan), np.full(alpha.shape, np.nan)
    for k, taken in enumerate(steps):
        found = ritz(alpha[k], beta[k], int(taken))
        nodes[k, :taken], weights[k, :taken] = found.values, found.weights
    return nodes, weights


def of_part(spectrum: Spectrum, p: int) -> tuple[np.ndarray, np.ndarray]:
    """Return nodes and weights of a part: all eigenvalues if rows gave them, else the Gauss quadrature of probes.

    Args:
        spectrum: the result.
        p: position of the part.

    Returns:
        Nodes (K, m), ascending, and weights (K, m) that sum to 1 for each probe; nan beyond a run's steps. K is 1 for
        rows.

    Raises:
        InputError: the spectrum has only its two ends and the trace.
    """
    if (
        spectrum.ran(p)
        or spectrum.eigenvalues is None
        or spectrum.eigenvalue_rest is None
        or np.isnan(spectrum.eigenvalue_rest[p])
    ):
        return nodes_and_weights(*spectrum.runs(p))
    own = spectrum.eigenvalues[p][np.isfinite(spectrum.eigenvalues[p])]
    nodes = np.append(own, spectrum.eigenvalue_rest[p])
    weights = np.append(np.full(len(own), 1 / spectrum.size), 1 - len(own) / spectrum.size)
    order = np.argsort(nodes, kind="stable")
    return nodes[order][None], weights[order][None]


def negative_mass(nodes: np.ndarray, weights: np.ndarray, tol: float) -> np.ndarray:
    """Return each probe's estimate of the fraction of eigenvalues that are clearly negative.

    Args:
        nodes: (K, m).
        weights: (K, m).
        tol: values above -tol * max |node| do not count: a hundred steps do not resolve the sign of the bulk near zero.

    Returns:
        One fraction per probe, (K,).
    """
    threshold = -tol * np.nanmax(np.abs(nodes), axis=1, keepdims=True)
    mass: np.ndarray = np.nansum(np.where(nodes < threshold, weights, 0.0), axis=1)
    return mass


def negative_curvature(nodes: np.ndarray, weights: np.ndarray) -> tuple[float, float]:
    """Estimate the sum of |eigenvalue| over negative ones, as a fraction of the sum over all.

    Both sums are means over probes. Of one probe a few large eigenvalues make the sum over all much too large or too
    small, so that a mean of single probes' fractions would be too large, however many there are. What remains of that
    falls with the number of probes.

    Args:
        nodes: (K, m).
        weights: (K, m).

    Returns:
        The fraction and its standard error over probes by the jackknife, which is nan for one probe; both are nan for a
        zero matrix, for which the fraction is not defined.
    """
    size = np.nansum(weights * np.abs(nodes), axis=1)
    return inference.ratio(np.nansum(weights * np.maximum(-nodes, 0.0), axis=1), size)


def mean_and_stderr(samples: np.ndarray) -> tuple[float, float]:
    """Return mean and standard error; the error is nan for one sample, because its spread is unknown."""
    error = samples.std(ddof=1) / np.sqrt(len(samples)) if len(samples) > 1 else np.nan
    return float(samples.mean()), float(error)


def symlog(x: np.ndarray, linear: float = 1.0) -> np.ndarray:
    """Map x to sign(x) log10(1 + |x| / linear): linear near zero, logarithmic beyond +-`linear`."""
    u: np.ndarray = np.sign(x) * np.log10(1 + np.abs(x) / linear)
    return u


def symlog_inverse(u: np.ndarray, linear: float = 1.0) -> np.ndarray:
    """Undo `symlog`."""
    x: np.ndarray = np.sign(u) * linear * (10 ** np.abs(u) - 1)
    return x


WIDTHS: Mapping[str, str] = {
    "auto": "0.5 % of the range of the nodes on the chosen axis; for several parts, of their common range",
    "pyhessian": "variance 1e-5 * max(1, range), as PyHessian's density plot and google/spectral-density",
    "papyan": "standard deviation 0.37 % of the range, kappa = 3 at 100 steps (Papyan 2020, curvlinops)",
    "eigenthings": "standard deviation range / steps, as hessian-eigenthings",
}


def width_of(name: str | float, low: float, high: float, steps: int) -> float:
    """Return the standard deviation of the broadening by its name.

    Args:
        name: a positive number, or one of `WIDTHS`.
        low: smallest node on the chosen axis.
        high: largest node on the chosen axis.
        steps: Lanczos steps.

    Returns:
        The standard deviation in the units of the axis, positive.

    Raises:
        InputError: an unknown name, or a width that is not positive or shows nothing on an axis of this range.
    """
    span = high - low
    if isinstance(name, str) and name in WIDTHS:
        known = {
            "auto": 0.005 * span,
            "pyhessian": np.sqrt(1e-5 * max(1.0, span)),
            "papyan": 0.0037 * span,
            "eigenthings": span / steps,
        }
        return float(known[name]) or 1e-3  # a spectrum of one value has no range
    try:
        width = float(name)
    except ValueError:
        raise InputError(f"{arg('width', name)} is neither a number nor one of {', '.join(WIDTHS)}") from None
    width = _positive(width)
    span = high - low or max(abs(high), 1.0)
    if not 1e-6 * span <= width <= 1e3 * span:
        raise InputError(
            f"{arg('width', name)} shows nothing on an axis of length {span:.3g}: choose 1e-6 to 1e3 times that"
        )
    return width


def _positive(width: float) -> float:
    if not (np.isfinite(width) and width > 0):
        raise InputError(f"{arg('width')} must be positive, got {width}")
    return width


@dataclass(frozen=True, kw_only=True, eq=False)
class Density:
    """A broadened spectral density of one part; each curve integrates to one over its axis."""

    eigenvalues: np.ndarray  # (G,) where it is evaluated, in units of the loss
    position: np.ndarray  # (G,) the same on the axis: equal for "linear", symlog(eigenvalues) for "symlog"
    curves: np.ndarray  # (K, G) one density per probe, per unit of the axis
    width: float  # standard deviation of the Gaussians, in units of the axis
    axis: Axis

    @property
    def mean(self) -> np.ndarray:
        """Mean over the probes, (G,)."""
        mean: np.ndarray = self.curves.mean(axis=0)
        return mean

    @property
    def spread(self) -> np.ndarray:
        """Standard deviation over the probes, (G,); nan for one probe."""
        if len(self.curves) == 1:
            return np.full(self.curves.shape[1], np.nan)
        spread: np.ndarray = self.curves.std(axis=0, ddof=1)
        return spread


@checked
def density(
    nodes: np.ndarray,
    weights: np.ndarray,
    *,
    width: str | float = "auto",
    axis: Axis = "linear",
    grid: np.ndarray | None = None,
    linear: float = 1.0,
) -> Density:
    """Broaden quadratures into a density, sum over i of w_i N(x; t_i, width^2).

    Args:
        nodes: (K, m) of one part, nan where a run had fewer steps.
        weights: (K, m).
        width: standard deviation on the axis, or a name of `WIDTHS`. Use one width for parts that are compared.
        axis: "linear", or "symlog" for Gaussians of equal width on x -> sign(x) log10(1 + |x| / linear).
        grid: eigenvalues to evaluate at; None takes points that resolve every Gaussian.
        linear: the scale of the symlog axis below which it is linear.

    Returns:
        One curve per probe.

    Raises:
        InputError: an unknown axis or width.

    Source: Lin, Saad and Yang 2016; Ghorbani et al. 2019; the axis is ours.
    """
    check_choice("axis", axis, AXES)
    centres = symlog(nodes, linear) if axis == "symlog" else nodes
    low, high = float(np.nanmin(centres)), float(np.nanmax(centres))
    steps = nodes.shape[1]
    # A number is taken as it is: it fits parts that are compared, whose common range may be far wider.
    sigma = width_of(width, low, high, steps) if isinstance(width, str) else _positive(width)
    if grid is None:
        position = _grid(centres[np.isfinite(centres)], sigma, low, high)
    else:
        position = symlog(grid, linear) if axis == "symlog" else np.asarray(grid, dtype=float)
    curves = np.zeros((len(nodes), len(position)))
    for k in range(len(nodes)):
        for t, w in zip(centres[k], weights[k], strict=True):
            if np.isfinite(t):
                curves[k] += w * _gaussian((position - t) / sigma) / sigma
    eigenvalues = symlog_inverse(position, linear) if axis == "symlog" else position
    return Density(eigenvalues=eigenvalues, position=position, curves=curves, width=sigma, axis=axis)


def _gaussian(z: np.ndarray) -> np.ndarray:
    # scipy.stats has this function, but its import takes longer than the imports of all other modules that read and
    # show results.
    density: np.ndarray = np.exp(-(z**2) / 2) / np.sqrt(2 * np.pi)
    return density


def _grid(centres: np.ndarray, sigma: float, low: float, high: float) -> np.ndarray:
    """Return points of a regular lattice: all within six sigma of a node, and some between.

    On an even lattice the trapezoidal rule integrates a Gaussian to rounding, so that the curve's integral is one.
    """
    step = sigma / 4
    margin = max(6 * sigma, 0.05 * (high - low))
    near = np.unique(np.round(centres / step))
    fine = (near[:, None] + np.arange(-25, 26)).ravel()
    coarse = np.round(np.linspace(low - margin, high + margin, 1024) / step)
    return np.unique(np.concatenate([coarse, fine])) * step
