"""The rule by which an eigenvalue counts as converged: for the runs that compute it, and for all that shows it."""

import numpy as np


def converged(values: np.ndarray, residuals: np.ndarray, *, tol: float, scale: np.ndarray | float) -> np.ndarray:
    """Say which eigenvalues have converged: those with a residual of at most `tol` times the scale.

    An eigenvalue of the matrix lies within the residual of each value. The rule does not need the values themselves;
    another rule, such as one by the gaps between them, may.

    Args:
        values: approximate eigenvalues.
        residuals: their residuals, of the same shape; nan is not converged.
        tol: relative tolerance.
        scale: size of the spectrum, such as lambda_max; its sign does not matter.

    Returns:
        A Boolean for each value.
    """
    limit: np.ndarray = residuals <= tol * np.abs(scale)
    return np.broadcast_to(limit, values.shape)
