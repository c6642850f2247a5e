"""What follows from inner products of rows: eigenvalues, curvature of each sample, and any re-weighting of the samples.

The rows a_j of curvature/rows.py belong to n samples, and G = sum_j sign_j w_s(j) a_j a_j^T for weights w of the
samples. Given the products a_i . a_j, other weights (a sub-sample, a bootstrap draw, all samples but a fold) need only
an eigenvalue problem whose size is the number of rows with a weight.
"""

from collections.abc import Generator
from dataclasses import dataclass

import numpy as np
from scipy.linalg import eigh
from scipy.sparse.linalg import eigsh

_DENSE = 256
"""Up to this number of rows a full eigenvalue solver finds the largest eigenvalue; for more rows, Lanczos is faster."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Eigen:
    """Eigenvalues of sum_j sign_j w_j a_j a_j^T, without the zeros beyond its rank."""

    values: np.ndarray  # (m,) descending
    combinations: np.ndarray  # (m, m) column r: coefficients of sum_j c_jr a_j, the unit eigenvector of value r


@dataclass(frozen=True, kw_only=True, eq=False)
class Gram:
    """Inner products of m rows that belong to n samples."""

    products: np.ndarray  # (m, m) a_i . a_j, without weights and signs
    sign: np.ndarray  # (m,) 1 or -1
    sample: np.ndarray  # (m,) 0 to n - 1
    n: int

    def eigen(self, weights: np.ndarray) -> Eigen:
        """Return eigenvalues and eigenvectors for weights of the samples.

        With K = B B^T for the weighted rows B, and S the signs, they are those of B^T S B. Where all signs are positive
        its nonzero eigenvalues are those of K. Else K = C C^T by its own eigenvectors, and they are those of C^T S C.

        Args:
            weights: (n,), not negative.

        Returns:
            One eigenvalue per row, descending. The combination is zero for an eigenvalue that is only rounding.
        """
        roots = np.sqrt(weights)[self.sample]
        kappa, basis = np.linalg.eigh(roots[:, None] * self.products * roots)
        kappa, basis = np.maximum(kappa[::-1], 0), basis[:, ::-1]
        # Linearly dependent rows give eigenvalues of K that are only rounding; these have no meaningful vectors.
        sure = kappa > len(kappa) * np.finfo(np.float64).eps * kappa.max(initial=0)
        inverse = np.divide(1, np.sqrt(kappa), out=np.zeros_like(kappa), where=sure)
        values, turned = kappa, basis * inverse
        if (self.sign < 0).any():
            half = basis * np.sqrt(kappa)
            found, vectors = np.linalg.eigh(half.T @ (self.sign[:, None] * half))
            values, turned = found[::-1], turned @ vectors[:, ::-1]
            size = np.abs(values)
            turned[:, size <= len(size) * np.finfo(np.float64).eps * size.max(initial=0)] = 0
        return Eigen(values=values, combinations=roots[:, None] * turned)

    def top(self, weights: np.ndarray) -> tuple[float, np.ndarray]:
        """Return the largest eigenvalue for weights of the samples, and its eigenvector.

        Args:
            weights: (n,), not negative.

        Returns:
            The eigenvalue, at least 0 as the rank is below the number of parameters, and the combination of rows, (m,).
        """
        own = self.with_weight(weights)
        combination = np.zeros(len(self.sample))
        if not len(own):
            return 0.0, combination
        if (self.sign[own] < 0).any():
            found = self.restricted(own).eigen(weights)
            combination[own] = found.combinations[:, 0]
            return max(0.0, float(found.values[0])), combination
        roots = np.sqrt(weights[self.sample[own]])
        value, vector = _largest(roots[:, None] * self.products[np.ix_(own, own)] * roots)
        if value > 0:
            combination[own] = roots * vector / np.sqrt(value)
        return value, combination

    @property
    def traces(self) -> np.ndarray:
        """The trace of each sample's stored rows, (n,)."""
        return self._of_samples(self.products.diagonal())

    def with_weight(self, weights: np.ndarray) -> np.ndarray:
        """Return the positions of the rows of samples with a weight."""
        return np.flatnonzero(weights[self.sample] > 0)

    def curvatures(self, combination: np.ndarray) -> np.ndarray:
        """Return v^T J_i^T M_i J_i v of each sample, for a vector v that is a combination of the rows.

        Args:
            combination: (m,).

        Returns:
            (n,); their weighted sum is v^T G v.
        """
        return self.along(self.products @ combination)

    def along(self, projections: np.ndarray) -> np.ndarray:
        """Return v^T J_i^T M_i J_i v of each sample from the inner products of the rows with a vector v.

        Args:
            projections: (m,).

        Returns:
            (n,) float64.
        """
        return self._of_samples(projections**2)

    def _of_samples(self, squares: np.ndarray) -> np.ndarray:
        """Add the rows' own numbers, (m,), with their signs, up for each sample."""
        found = np.bincount(self.sample, self.sign * squares, minlength=self.n)
        return found.astype(np.float64)  # without any row it would be integers, and cut what is assigned to it

    def restricted(self, rows: np.ndarray) -> "Gram":
        """Return the products of some of the rows; the samples do not change."""
        products = self.products[np.ix_(rows, rows)]
        return Gram(products=products, sign=self.sign[rows], sample=self.sample[rows], n=self.n)

    def folds(
        self, weights: np.ndarray, *, folds: int = 5, seed: int = 0
    ) -> Generator[tuple[np.ndarray, np.ndarray], None, None]:
        """Divide the samples at random and find the sharpest direction of all but each fold.

        Args:
            weights: (n,) of the samples.
            folds: number of folds; with fewer samples, each fold has one sample.
            seed: of the division.

        Yields:
            Positions of a fold's samples, and the combination of rows that is the sharpest direction of all others;
            nothing for fewer than two samples.
        """
        if self.n < 2:
            return
        fold = np.random.default_rng(seed).permutation(self.n) % min(folds, self.n)
        for f in range(fold.max() + 1):
            yield np.flatnonzero(fold == f), self.top(np.where(fold == f, 0.0, weights))[1]

    def crossfitted(self, weights: np.ndarray, *, folds: int = 5, seed: int = 0) -> np.ndarray:
        """Return each sample's curvature along the sharpest direction of the other folds' samples.

        That direction is independent of the sample, so the expectation of the mean is at most lambda_max of the class.
        (The expectation of the largest eigenvalue of samples is at least lambda_max of the class.)

        Args:
            weights: as for `folds`.
            folds: as for `folds`.
            seed: as for `folds`.

        Returns:
            (n,); nan for fewer than two samples.
        """
        found = np.full(self.n, np.nan)
        for members, combination in self.folds(weights, folds=folds, seed=seed):
            found[members] = self.curvatures(combination)[members]
        return found


def _largest(matrix: np.ndarray) -> tuple[float, np.ndarray]:
    """Return the largest eigenvalue of a positive semidefinite matrix, (m, m), m > 0, and its unit eigenvector."""
    lengths = np.sqrt(matrix.diagonal())
    if not lengths.any():
        return 0.0, lengths
    last = len(matrix) - 1
    if last < _DENSE:
        values, vectors = eigh(matrix, subset_by_index=[last, last], check_finite=False)
    else:  # the same starting vector each time
        values, vectors = eigsh(matrix, k=1, which="LA", v0=lengths)
    return max(0.0, float(values[0])), vectors[:, 0]
