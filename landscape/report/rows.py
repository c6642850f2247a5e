"""The summary table: one row for each part of each model, with the numbers of all results about it.

For results over several checkpoints or epochs, the table shows the last one. Losses and accuracies are from the first
result that has them. A cell is empty if no result has the number. A number that is nan is shown as not existing, such
as the radius at which a loss doubles if it never does.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from landscape.report.sources import Source
from landscape.results import KINDS, Result, columns, groups, tables
from landscape.results import column as of_results


@dataclass(frozen=True, kw_only=True, eq=False)
class Column:
    """A number of each part, from results of one or several kinds."""

    key: str
    heading: str
    of: Mapping[str, of_results.Column]  # by kinds
    form: str  # of its numbers; a "count" is of samples, not a measure of sharpness

    @property
    def meaning(self) -> str:
        """The description of the field in the result, or of a number computed from several fields."""
        kind, column = next(iter(self.of.items()))
        if column.doc:
            return column.doc
        words = str(_metadata(kind, column.field)["doc"])
        error = f"; ± {_metadata(kind, column.error)['doc']}" if column.error else ""
        over = f"{' or ' if error else '; ± '}the error over samples, if that is larger" if column.samples else ""
        return words + error + over


def _columns() -> tuple[Column, ...]:
    """Return the columns of all kinds that have a place in the summary; those of one key are one."""
    found: dict[str, dict[str, of_results.Column]] = {}
    for kind, table in tables.TABLES.items():
        for column in table:
            if column.summary:
                found.setdefault(column.key or column.field, {})[kind] = column
    return tuple(
        Column(
            key=key,
            heading=f"{first.summary}{' %' * (first.form == 'percent')}",
            of=of,
            form=first.form,
        )
        for key, of in found.items()
        for first in [next(iter(of.values()))]
    )


COLUMNS = _columns()
"""What the table has, in this order; columns that no result has are left out."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A number in the table."""

    value: float
    error: float | None
    text: str
    sure: bool = True  # lambda_max has converged


@dataclass(kw_only=True, eq=False)
class Row:
    """A part of a model."""

    model: str
    split: str  # which samples it was evaluated on
    part: str  # its name, and its classes where others of this name have others
    name: str
    samples: float
    classes: tuple[int, ...] | None = None  # None where no result says
    cells: dict[str, Cell] = field(default_factory=dict)  # by the keys of columns

    def is_of(self, name: str, samples: float, classes: tuple[int, ...] | None) -> bool:
        """Say whether a part is this one: a class and a group, or groups of other classes, may share a name."""
        unknown = classes is None or self.classes is None
        return (self.name, self.samples) == (name, samples) and (unknown or classes == self.classes)


def rows_of(sources: Sequence[Source]) -> list[Row]:
    """Collect the numbers of all parts.

    Args:
        sources: the results.

    Returns:
        A row for each part of each model; models and parts in the order of their first occurrence.
    """
    found: dict[str, list[Row]] = {source.model: [] for source in sources}
    every = [columns.last(source.result) for source in sources]
    for source, label in zip(sources, groups.labels(every), strict=True):
        result: Any = columns.last(source.result)
        split = "test" if result.kind == "history" else str(result.provenance.get("split") or "unknown")
        alike = [other for other in every if columns.drawn_as(other) == columns.drawn_as(result)]
        chosen = {c.key: c.of[kind] for c in COLUMNS if (kind := columns.drawn_as(result)) in c.of}
        chosen = {key: c for key, c in chosen.items() if not c.when or c.when(result)}
        chosen = {key: c.beside_samples() if columns.has_samples(c, alike) else c for key, c in chosen.items()}
        numbers = {key: found_of for key, column in chosen.items() if (found_of := column.of(result)) is not None}
        for p, part in enumerate(result.parts):
            samples, classes = float(numbers["samples"][0][p]), groups.classes_of(result, part)
            row = next((row for row in found[source.model] if row.is_of(part, samples, classes)), None)
            if row is None:
                row = Row(model=source.model, split=split, part=part, name=part, samples=samples)
                found[source.model].append(row)
            if classes is not None:
                row.part, row.classes = label[part], classes
            for key, (values, errors) in numbers.items():
                error = None if errors is None else float(errors[p])
                row.cells.setdefault(key, _cell(chosen[key], result, p, float(values[p]), error))
    return [row for rows in found.values() for row in rows]


def columns_of(rows: Sequence[Row]) -> list[Column]:
    """Return the columns that some row has."""
    return [column for column in COLUMNS if any(column.key in row.cells for row in rows)]


def _cell(column: of_results.Column, result: Result, p: int, value: float, error: float | None) -> Cell:
    sure = column.sure is None or bool(getattr(result, column.sure)[p])
    return Cell(value=value, error=error, text=column.text(result, p), sure=sure)


def _metadata(kind: str, name: str) -> Mapping[str, Any]:
    declared = KINDS["surface" if kind == "line" else kind].__dataclass_fields__
    return declared[name].metadata
