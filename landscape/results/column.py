"""A column of a table: a number that each part has, its error, and how both are written."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from landscape.results.written import number, share_with_error, with_error


@dataclass(frozen=True, kw_only=True)
class Column:
    """A number that each part has."""

    head: str  # above the column
    field: str  # of the result
    error: str | None = None  # the field of its error
    of_error: str = "s.e."  # what the error is
    above: bool = False  # the error is no standard error: the true number is at most so much larger
    form: Literal["number", "percent", "count"] = "number"
    missing: str = "-"  # what stands for nan
    endless: str = "inf"  # what stands for infinity
    sure: str | None = None  # a Boolean field; where it is false, the number gets a star
    rounding: Callable[[Any], np.ndarray] | None = None  # which parts' numbers may be nothing but rounding
    samples: str | None = None  # the field of its error over samples; see `beside_samples`
    after_samples: Callable[[Any, int], str] | None = None  # text after the number of a part with this error
    after: Callable[[Any, int], str] | None = None  # text after the number of a part
    detail: Callable[[Any], str] | None = None  # text after `head`, shown if all results have the same
    cell: Callable[[Any, int], str] | None = None  # the text for a part by its position, if no number
    values: Callable[[Any], tuple[np.ndarray, np.ndarray | None] | None] | None = None  # if not those of the field
    matrix: str = "operator"  # the field that names the matrix it is of, in results about matrices
    doc: str = ""  # description of `values`; a field has its own description
    when: Callable[[Any], bool] | None = None  # whether the table shows it
    table: bool = True  # whether it is a column of the result's own table
    compared: bool = False  # whether the cells of a comparison show it
    summary: str | None = None  # its heading in the summary of all kinds of results; None if it is not in it
    key: str = ""  # columns with the same key are one column in the summary; by default the name of the field

    def __post_init__(self) -> None:
        """Refuse numbers made of several fields without a name and a description of their own.

        Raises:
            ValueError: `values` without `key` or `doc`.
        """
        if self.values is not None and not (self.key and self.doc):
            raise ValueError(f"the column {self.head} has values of its own: give it a key and a doc")

    @property
    def name(self) -> str:
        """The name of the number in files and logs: its field, or the key of a number made of several fields."""
        return (self.key if self.values else "") or self.field

    def heading(self, *results: Any) -> str:
        """The heading of the column in a table of these results."""
        details = {self.detail(result) for result in results} if self.detail else set()
        has_error = self.error and self.cell is None and any(self._errors(result) is not None for result in results)
        error = f" ± {self.of_error}" if has_error or (self.values and self.error) else ""
        unit = " %" if self.form == "percent" else ""
        return self.head + (f" {details.pop()}" if len(details) == 1 else "") + unit + error

    def of(self, result: Any) -> tuple[np.ndarray, np.ndarray | None] | None:
        """Return the numbers of all parts and their errors; None if the result does not have them."""
        if self.values is not None:
            return self.values(result)
        if getattr(result, self.field) is None:
            return None
        errors = self._errors(result)
        return _last(getattr(result, self.field)), None if errors is None else _last(errors)

    def _errors(self, result: Any) -> np.ndarray | None:
        """Return the errors that a result has of the number, if it has any."""
        found: np.ndarray | None = getattr(result, self.error) if self.error else None
        return found

    def text(self, result: Any, part: int) -> str:
        """Return the text of the cell of a part, given the part's position."""
        if self.cell is not None:
            return self.cell(result, part)
        found = self.of(result)
        if found is None:
            return "-"
        value, error = float(found[0][part]), None if found[1] is None else float(found[1][part])
        sure = self.sure is None or bool(getattr(result, self.sure)[part])
        after = " (rounding)" * (self.rounding is not None and bool(self.rounding(result)[part]))
        after += "" if self.after is None or math.isnan(value) else self.after(result, part)
        return self.written(value, error) + "*" * (not sure) + after

    def beside_samples(self) -> "Column":
        """Return the column with the larger one of a part's errors: over samples, or the own one, which is then named.

        For a result without errors over samples, the own one is larger.
        """
        field, own, of_own = self.samples, self.error, self.of_error
        if field is None:
            return self

        def larger(result: Any) -> tuple[np.ndarray, np.ndarray | None] | None:
            if getattr(result, self.field) is None:
                return None
            values = _last(getattr(result, self.field))
            over, other = errors(result)
            if over is None or other is None:
                return values, other if over is None else over
            return values, np.where(np.isnan(over), np.nan, np.fmax(over, other))

        def which(result: Any, part: int) -> str:
            over, other = errors(result)
            if over is None or (other is not None and other[part] > over[part]):
                return "" if other is None else f" ({of_own})"
            unknown = f" ({of_own} ?)" if other is not None and math.isnan(other[part]) else ""
            return ("" if self.after_samples is None else self.after_samples(result, part)) + unknown

        def errors(result: Any) -> tuple[np.ndarray | None, np.ndarray | None]:
            over, other = (None if name is None else getattr(result, name) for name in (field, own))
            return None if over is None else _last(over), None if other is None else _last(other)

        words = self.doc or f"{self.field}; its error is the larger of {field} and {own}"
        return replace(
            self, values=larger, key=self.key or self.field, doc=words, error=field, of_error="samples", after=which
        )

    def written(self, value: float, error: float | None) -> str:
        """Return the text of a number."""
        if math.isnan(value):
            return self.missing
        if math.isinf(value):
            return self.endless if value > 0 else "-inf"
        if self.form == "count":
            return f"{int(value):,}"
        if self.form == "percent":
            return share_with_error(value, 0.0 if error is None else error)
        return number(value) if error is None else with_error(value, error)


def _last(values: np.ndarray) -> np.ndarray:
    while values.ndim > 1:
        values = values[-1]
    return values
