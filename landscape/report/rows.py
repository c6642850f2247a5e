"""The summary table: one row for each part of each model, with the numbers of all results about it.

Of results over several checkpoints or epochs the last one counts. Losses and accuracies are the first result's that has
them. What a result does not have is not there; what it has as nan does not exist, such as the radius at which a loss
doubles that never does.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from landscape.report.sources import Source, kind_of
from landscape.results import KINDS, Distances, Result, Spectrum, written


@dataclass(frozen=True, kw_only=True, eq=False)
class Column:
    """A number that parts have."""

    key: str
    heading: str
    of: Mapping[str, tuple[str, str | None]]  # kind -> its field, and the field of its error
    share: bool = False  # written in percent
    count: bool = False  # a number of samples, which is no measure of sharpness
    missing: str = "nan"  # what a nan means
    endless: str = "inf"  # what an infinite number means

    @property
    def meaning(self) -> str:
        """The description of the field in the result."""
        kind, (name, error) = next(iter(self.of.items()))
        words = str(_metadata(kind, name)["doc"])
        return f"{words}; ± {_metadata(kind, error)['doc']}" if error else words


def _everywhere(name: str, *kinds: str) -> dict[str, tuple[str, str | None]]:
    return {kind: (name, None) for kind in kinds}


_PARTS = ("spectrum", "line", "surface", "trajectory", "sharpness", "distances", "gradients", "features")
_PLANE = ("surface", "trajectory")

COLUMNS = (
    Column(
        key="trained",
        heading="training samples",
        of=_everywhere("train_counts", *_PARTS, "history"),
        count=True,
        missing="unknown",
    ),
    Column(
        key="samples",
        heading="samples",
        of=_everywhere("n_samples", *_PARTS) | _everywhere("test_counts", "history"),
        count=True,
        missing="unknown",
    ),
    Column(
        key="loss",
        heading="loss",
        of=_everywhere("loss", "spectrum", "sharpness", "features")
        | _everywhere("centre_loss", "line", *_PLANE)
        | _everywhere("test_loss_per_class", "history"),
    ),
    Column(
        key="accuracy",
        heading="accuracy",
        of=_everywhere("accuracy", "spectrum", "sharpness", "features")
        | _everywhere("centre_accuracy", "line", *_PLANE)
        | _everywhere("test_accuracy_per_class", "history"),
        share=True,
    ),
    Column(key="lambda_max", heading="lambda_max", of={"spectrum": ("lambda_max", "lambda_max_residual")}),
    Column(key="lambda_min", heading="lambda_min", of={"spectrum": ("lambda_min", "lambda_min_residual")}),
    Column(key="trace", heading="trace", of={"spectrum": ("trace", "trace_stderr")}),
    Column(
        key="negative",
        heading="negative curvature",
        of={"spectrum": ("negative_curvature", "negative_curvature_stderr")},
        share=True,
    ),
    Column(
        key="doubling_radius",
        heading="doubling radius in the plane",
        of=_everywhere("doubling_radius", *_PLANE),
        missing="unknown",
        endless="none",
    ),
    Column(
        key="doubling_on_line",
        heading="doubling radius on the line",
        of=_everywhere("doubling_radius", "line"),
        missing="unknown",
        endless="none",
    ),
    Column(key="plane_rise", heading="worst rise in the plane", of=_everywhere("worst_rise", *_PLANE)),
    Column(key="line_rise", heading="worst rise on the line", of=_everywhere("worst_rise", "line")),
    Column(key="barrier", heading="barrier", of=_everywhere("barrier", "line")),
    Column(key="ball_rise", heading="worst rise in the ball", of=_everywhere("worst_rise", "sharpness")),
    Column(key="noise_rise", heading="rise under noise", of={"sharpness": ("noise_rise", "noise_rise_stderr")}),
    Column(
        key="doubling_noise",
        heading="doubling noise",
        of={"sharpness": ("doubling_radius", "doubling_radius_spread")},
        missing="unknown",
        endless="none",
    ),
    Column(key="gradient", heading="gradient norm", of={"gradients": ("norm", "norm_stderr")}),
    Column(key="agreement", heading="cosine with the whole gradient", of={"gradients": ("cosine", "cosine_stderr")}),
    Column(key="quality", heading="feature quality", of=_everywhere("quality", "features", "history")),
    Column(key="way", heading="way to the convergence point", of=_everywhere("norm", "distances")),
)
"""What the table has, in this order; columns that no result has are left out."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A number in the table."""

    value: float
    error: float | None
    text: str
    sure: bool = True  # lambda_max has converged


@dataclass(frozen=True, kw_only=True)
class Row:
    """A part of a model."""

    model: str
    split: str  # which samples it was evaluated on
    part: str
    cells: dict[str, Cell] = field(default_factory=dict)  # by the keys of columns


def rows_of(sources: Sequence[Source]) -> list[Row]:
    """Collect the numbers of all parts.

    Args:
        sources: the results.

    Returns:
        A row for each part of each model, models and parts in the order in which they come first.
    """
    found: dict[str, dict[tuple[str, float], Row]] = {source.model: {} for source in sources}
    for source in sources:
        result: Any = source.result
        split = "test" if result.kind == "history" else str(result.provenance.get("split") or "unknown")
        numbers = {c.key: _values(result, c) for c in COLUMNS if kind_of(result) in c.of}
        for p, part in enumerate(result.parts):
            # A class and a group may share a name, but not the number of samples too.
            key = part, float(numbers["samples"][0][p])
            row = found[source.model].setdefault(key, Row(model=source.model, split=split, part=part))
            for column in COLUMNS:
                values, errors = numbers.get(column.key, _NOTHING)
                if values is not None:
                    error = None if errors is None else float(errors[p])
                    row.cells.setdefault(column.key, _cell(column, result, p, float(values[p]), error))
    return [row for rows in found.values() for row in rows.values()]


def columns_of(rows: Sequence[Row]) -> list[Column]:
    """Return the columns that some row has."""
    return [column for column in COLUMNS if any(column.key in row.cells for row in rows)]


_NOTHING = (None, None)


def _values(result: Result, column: Column) -> Any:
    """Return the values of all parts and their errors, or None where the result does not have them."""
    name, error = column.of[kind_of(result)]
    if isinstance(result, Distances) and name == "norm":
        return _ways(result)
    if getattr(result, name) is None:
        return _NOTHING
    return _last(result, name), None if error is None else _last(result, error)


def _last(result: Result, name: str) -> np.ndarray:
    values: np.ndarray = getattr(result, name)
    return values[-1] if _metadata(result.kind, name)["axes"] != ("part",) else values


def _ways(distances: Distances) -> tuple[np.ndarray, np.ndarray | None]:
    """Return how far each part's convergence point is from the start, mean and standard deviation over the runs."""
    ways = np.full((len(distances.runs), len(distances.parts)), np.nan)
    for p, part in enumerate(distances.parts):
        if part in distances.points:
            ways[:, p] = distances.norm[:, distances.points.index(part)]
    return ways.mean(axis=0), ways.std(axis=0, ddof=1) if len(ways) > 1 else None


def _cell(column: Column, result: Result, p: int, value: float, error: float | None) -> Cell:
    sure = not (isinstance(result, Spectrum) and column.key == "lambda_max" and not result.converged[p])
    return Cell(value=value, error=error, text=_text(column, value, error) + "*" * (not sure), sure=sure)


def _text(column: Column, value: float, error: float | None) -> str:
    if math.isnan(value):
        return column.missing
    if math.isinf(value):
        return column.endless if value > 0 else "-inf"
    if column.count:
        return f"{int(value):,}"
    if not column.share:
        return written.number(value) if error is None else written.with_error(value, error)
    known = error is not None and math.isfinite(error) and error > 0
    return f"{100 * value:.1f}" + (f" ± {100 * error:.1g} %" if known and error is not None else " %")


def _metadata(kind: str, name: str) -> Mapping[str, Any]:
    declared = KINDS["surface" if kind == "line" else kind].__dataclass_fields__
    return declared[name].metadata
