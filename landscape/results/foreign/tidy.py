"""Many results as one tidy table, with a row for each number of each part of each file, for programs that read CSV."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from landscape.results import History, Result, Series, Spectrum, column_values, columns
from landscape.results.base import OfPoints
from landscape.results.column import Column

COLUMNS = (
    "file", "kind", "checkpoint", "epoch", "method", "data", "split", "matrix", "part", "n_samples", "quantity",
    "value", "error", "of_error", "exactness",
)  # fmt: skip
"""The columns of the table. `exactness` is "exact" (over all samples, at the points of a line, up to rounding),
"converged" or "not converged" (for eigenvalues), "bounded" (at most the error in its row larger: rows that are left
out have this trace, which is itself an estimate for a Hessian of more than four classes), "estimated" (with the error
in its row), "rounding" (nothing else may be left of the number), or empty if none of these is known, as for bounds and
for draws without an error. `matrix` is that of the number: of groups of a Hessian, lambda_max is of its Gauss-Newton
part."""


def rows(results: Mapping[Path, Result]) -> Iterator[list[Any]]:
    """Return the rows of a tidy table.

    Args:
        results: by their files. Results over several checkpoints or epochs have rows for each.

    Yields:
        The values of `COLUMNS`: the numbers of each result's own table, and the largest eigenvalues of spectra. A nan
        has no row.
    """
    for file, result in results.items():
        if isinstance(result, Series):
            for k, (name, epoch) in enumerate(zip(result.checkpoints, result.epoch.tolist(), strict=True)):
                yield from _of_checkpoint(file, result.at(k), {"checkpoint": name, "epoch": epoch})
        elif isinstance(result, OfPoints | History):
            for k, epoch in enumerate(result.epoch.tolist()):
                points = result.points if isinstance(result, OfPoints) else ()
                facts = {"checkpoint": points[k]} if len(points) > 1 else {}
                yield from _of_checkpoint(file, result.only(k), facts | {"epoch": "" if np.isnan(epoch) else epoch})
        else:
            yield from _of_checkpoint(file, result, {})


def _of_checkpoint(file: Path, result: Any, series_facts: Mapping[str, Any]) -> Iterator[list[Any]]:
    about = {**result.provenance, **series_facts}
    data = about.get("data")
    head = [
        str(file),
        result.kind,
        about.get("checkpoint", ""),
        about.get("epoch", ""),
        about.get("method") or "",
        data.get("name", "") if isinstance(data, Mapping) else "",
        about.get("split", ""),
    ]
    counts = getattr(result, "n_samples", None)
    for p, part in enumerate(getattr(result, "parts", ())):
        for number in _numbers(result, p):
            matrix, *numbers = number
            yield [*head, matrix, part, "" if counts is None else counts[p], *numbers]


def _numbers(result: Any, p: int) -> Iterator[list[Any]]:
    """Return the matrix, quantity, value, error, kind of error, and exactness of each number."""
    for column, values, errors in columns.numbers(result):
        value, error = float(values[p]), None if errors is None else float(errors[p])
        if not np.isnan(value):
            matrix, exactness = getattr(result, column.matrix, ""), _exactness(column, result, p, error)
            yield [matrix, column.name, value, "" if error is None else error, *exactness]
    if isinstance(result, Spectrum):
        values, residuals = result.ritz_values[p], result.ritz_residuals[p]
        exact = (residuals == 0) & ~result.drawn[p]
        known = np.where(exact, "exact", np.where(result.ritz_converged[p], "converged", "not converged")).tolist()
        for k, (value, residual, exactness) in enumerate(zip(values, residuals, known, strict=True), 1):
            if not np.isnan(value):
                yield [result.operator, f"eigenvalue {k}", float(value), float(residual), "residual", exactness]


def _exactness(column: Column, result: Any, p: int, error: float | None) -> tuple[str, str]:
    """Return the kind of error, and the exactness of the number."""
    if column.rounding is not None and bool(column.rounding(result)[p]):
        return "" if error is None else column.of_error, "rounding"
    exact = columns.is_exact(column, result, p)
    if error is None or exact:
        return "" if error is None else column.of_error, "exact" if exact else ""
    if error == 0 and not column_values.drawn(result)[p]:
        return column.of_error, "exact"
    if column.sure is not None:
        return column.of_error, "converged" if bool(getattr(result, column.sure)[p]) else "not converged"
    known = "bounded" if column.above else "estimated"
    return column.of_error, known if np.isfinite(error) and error else ""
