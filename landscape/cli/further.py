"""The eigenvalues of a spectrum after the largest one: their table, and which have not converged."""

import math

import numpy as np

from landscape.analyses.options import Options
from landscape.cli.console import Console
from landscape.results import Spectrum
from landscape.results.converged import converged
from landscape.results.written import with_error


def show(console: Console, found: Spectrum, n: int) -> None:
    """Print the n largest eigenvalues of each part, with their errors over samples if these are known."""
    errors, rows = found.ritz_sampling_stderr, []
    for p, part in enumerate(found.parts):
        values = found.ritz_values[p, :n]
        known = np.zeros(n) if errors is None else errors[p, :n]
        cells = [
            "" if math.isnan(value) else with_error(value, error) for value, error in zip(values, known, strict=True)
        ]
        rows.append([part, *cells])
    title = "largest eigenvalues" + ("" if errors is None else " ± samples")
    console.table(["part", *map(str, range(1, n + 1))], rows, title=title)


def warn(console: Console, found: Spectrum, options: Options) -> None:
    """Name the parts of which not all eigenvalues of --top have converged."""
    n = options.top or 0
    sure = converged(found.ritz_values, found.ritz_residuals, tol=found.tol, scale=found.lambda_max[:, None])
    for p, part in enumerate(found.parts):
        wrong = np.count_nonzero(~sure[p, :n] & np.isfinite(found.ritz_values[p, :n]))
        if wrong and found.converged[p]:
            longer = "raise --steps" if found.ran(p) else "raise --max-steps with --tol"
            console.note(f"{wrong} of the {n} largest eigenvalues of {part} have not converged: {longer}")
