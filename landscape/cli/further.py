"""The eigenvalues of a spectrum after the largest one: their table, and which have not converged."""

import math

import numpy as np

from landscape.cli.console import Console
from landscape.results import Spectrum
from landscape.results.written import with_error


def show(console: Console, found: Spectrum, n: int) -> None:
    """Print the n largest eigenvalues of each part; those that have not converged get a star.

    The error is the one over samples, or the residual, which is then named, where that is larger. Without errors over
    samples it is the residual.
    """
    errors = found.ritz_sampling_stderr
    rows = []
    for p, part in enumerate(found.parts):
        over_samples = np.full(n, -1.0) if errors is None else errors[p, :n]  # any residual is larger
        numbers = zip(
            found.ritz_values[p, :n],
            found.ritz_residuals[p, :n],
            over_samples,
            found.ritz_converged[p, :n],
            strict=True,
        )
        rows.append([part, *("" if math.isnan(one[0]) else _cell(*one, named=errors is not None) for one in numbers)])
    title = "largest eigenvalues ± " + ("residual" if errors is None else "samples")
    console.table(["part", *map(str, range(1, n + 1))], rows, title=title)


def _cell(value: float, residual: float, over_samples: float, sure: bool, *, named: bool) -> str:
    by_residual = residual > over_samples or (math.isnan(over_samples) and not sure)
    text = with_error(value, residual if by_residual else over_samples) + "*" * (not sure)
    return text + " (residual)" * (by_residual and named)


def warn(console: Console, found: Spectrum, n: int) -> None:
    """Name the parts of which not all of the n largest eigenvalues have converged."""
    for p, part in enumerate(found.parts):
        residuals = found.ritz_residuals[p, :n]
        wrong = ~found.ritz_converged[p, :n] & np.isfinite(found.ritz_values[p, :n])
        if wrong.any():
            console.note(
                f"* {wrong.sum()} of the {n} largest eigenvalues of {part} have not converged: residuals up to "
                f"{residuals[wrong].max():.2g}, and eigenvalues between them may be missing; {remedy(found, p)}"
            )


def remedy(found: Spectrum, p: int) -> str:
    """Say which options let the eigenvalues of the part at a position converge."""
    if found.ran(p):
        return "raise --steps or set --tol"
    if found.eigenvalues is not None and np.isfinite(found.eigenvalues[p]).any():
        rounding = found.eigenvalue_rounding
        rounded = rounding is not None and rounding[p] > found.lambda_max_residual[p] / 2
        return "use --dtype float64" if rounded else "lower --ggn-tol"
    options = found.provenance["options"]
    by_accuracy = options["accuracy"] is not None and options["tol"] is None
    return "raise --accuracy, which sets its tolerance" if by_accuracy else "set --tol and --max-steps"
