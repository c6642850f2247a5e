"""Tables of results: which columns one has, its heads and rows, and the numbers that are compared.

The table that a command prints, the table of a notebook, the cells of `landscape compare` and the summary of a report
are all made from the columns that tables.py declares for each kind. For results over several checkpoints or epochs,
tables show the last one.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from landscape.results import column_values
from landscape.results.column import Column
from landscape.results.tables import TABLES

_OVER_SAMPLES = ("samples", "samples at most")
"""What the error of a column is whose numbers follow from the samples that a result used, and from nothing random."""


def table(result: Any) -> tuple[list[str], list[list[str]]]:
    """Return the heads and the rows of a result's own table.

    Args:
        result: of any kind.

    Returns:
        The heads, "part" first, and a row for each part; no heads for a kind without numbers of parts.
    """
    result = last(result)
    chosen = [
        column
        for column in of_kind(result)
        if column.table and (not column.when or column.when(result)) and (column.cell or column.of(result))
    ]
    if not chosen:
        return [], []
    rows = [[part, *(column.text(result, p) for column in chosen)] for p, part in enumerate(result.parts)]
    return ["part", *(column.heading(result) for column in chosen)], rows


def compared(results: Sequence[Any]) -> list[Column]:
    """Return the columns in which results of one kind are compared: those that at least one of them has.

    If a result has errors over samples, they stand in place of smaller ones.
    """
    chosen = [c for c in of_kind(results[0]) if c.compared and any(c.of(result) for result in results)]
    return [c.beside_samples() if has_samples(c, results) else c for c in chosen]


def has_samples(column: Column, results: Sequence[Any]) -> bool:
    """Say whether any of some results has errors over samples of a column, be they unknown, as those of one sample."""
    return column.samples is not None and any(getattr(result, column.samples) is not None for result in results)


def with_larger_error(result: Any, field: str) -> Column:
    """Return the column of a number, whose error is the one over samples where the result has these and it is larger.

    Args:
        result: of any kind.
        field: of the number.

    Returns:
        The column; a number that has not converged has no star.
    """
    column = next(c for c in of_kind(result) if c.field == field)
    return replace(column.beside_samples() if has_samples(column, [result]) else column, sure=None)


def fields_of(kind: str) -> list[str]:
    """Name the fields of a kind's columns, with the fields of their errors and of their convergence."""
    names = [name for c in TABLES[kind] for name in (c.field, c.error, c.sure) if name and not c.values]
    return list(dict.fromkeys(names))


def derived(result: Any) -> dict[str, np.ndarray]:
    """Return the numbers that columns compute from several fields, for all parts, and their errors, by name."""
    found: dict[str, np.ndarray] = {}
    for column in of_kind(result):
        made = column.of(result) if column.values and (not column.when or column.when(result)) else None
        if made is not None:
            values, errors = made
            found[column.name] = values
            if errors is not None:
                found[f"{column.name}_error"] = errors
    return found


def drawn_as(result: Any) -> str:
    """Return the kind of a result; a surface over one direction is a "line"."""
    return "line" if result.kind == "surface" and result.is_line else str(result.kind)


def of_kind(result: Any) -> Sequence[Column]:
    """Return the columns of a result's kind."""
    return TABLES.get(drawn_as(result), ())


def numbers(result: Any) -> list[tuple[Column, np.ndarray, np.ndarray | None]]:
    """Return the columns of a result's own table with numbers, and the numbers and errors of all parts."""
    chosen = [c for c in of_kind(result) if c.table and not c.cell and c.form != "count"]
    found = [(c, c.of(result)) for c in chosen if not c.when or c.when(result)]
    return [(column, *values) for column, values in found if values is not None]


def last(result: Any) -> Any:
    """Return the result that tables show: the last checkpoint of a series, or the result itself."""
    return getattr(result, "last", result)


def is_exact(column: Column, result: Any, part: int) -> bool:
    """Say whether the number of a part follows from all of its samples, and is no estimate from draws or batches."""
    of_draw = column.after is not None and bool(column_values.drawn(result)[part])
    return column.of_error in _OVER_SAMPLES and not of_draw and not getattr(result, "batch_size", 0)
