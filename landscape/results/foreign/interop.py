"""Formats of other programs: PyHessian's lists, Saddle-LongTail's arrays, and tables for any program (CSV, JSON).

PyHessian's `density()` returns two lists with one list for each probe: the eigenvalues of the tridiagonal matrix
and the squared first components of its eigenvectors, in no order. They are the nodes and weights of the quadrature,
and the weights of a probe sum to 1. It computes the eigenvectors of a symmetric matrix by `torch.linalg.eig`, which
returns complex numbers. Saddle-LongTail saves the same two lists for each class as NumPy arrays.
"""

import csv
import io
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from landscape.callables import checked
from landscape.errors import InputError
from landscape.results import Result, Series, Sharpness, Spectrum, Surface, Traces, disk, store
from landscape.results.axes import SECOND, distinct, labels_of
from landscape.results.foreign import numpy_files
from landscape.results.series import AXIS

if TYPE_CHECKING:
    import xarray as xr

_RAW = frozenset({"parameter", "buffer", "vector", "probe", "step", "trace_probe", "gram_row", "image", "height"})
"""Axes of arrays that are only in the result file."""
_ROUNDING = 1e-3  # error of float32 weights from a general eigensolver; wrong weights are off by far more


@checked
def to_pyhessian(
    nodes: np.ndarray, weights: np.ndarray, steps: np.ndarray
) -> tuple[list[list[float]], list[list[float]]]:
    """Convert one part's quadrature to the form that PyHessian's `density()` returns.

    Args:
        nodes: (K, m) in units of the loss; those of probe k are the first `steps[k]`.
        weights: (K, m), which sum to 1 for each probe.
        steps: (K,) Lanczos steps of each probe. PyHessian's own plot needs equal numbers.

    Returns:
        `eigen_list_full` and `weight_list_full`: for each probe a list of floats.

    Raises:
        InputError: shapes that do not fit, nodes that are not finite, or weights that do not sum to 1.
    """
    if nodes.ndim != 2 or weights.shape != nodes.shape or steps.shape != nodes.shape[:1]:
        raise InputError(
            f"nodes and weights must have axes (probe, step) and steps (probe), "
            f"got shapes {nodes.shape}, {weights.shape} and {steps.shape}"
        )
    eigen_list_full = [row[:m].tolist() for row, m in zip(nodes, steps, strict=True)]
    weight_list_full = [row[:m].tolist() for row, m in zip(weights, steps, strict=True)]
    _check(eigen_list_full, weight_list_full)
    return eigen_list_full, weight_list_full


@checked
def from_pyhessian(
    eigenvalues: Sequence[Sequence[complex]] | np.ndarray, weights: Sequence[Sequence[complex]] | np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Convert the return value of PyHessian's `density()` to nodes and weights.

    Args:
        eigenvalues: for each of K probes its eigenvalues, real or complex with imaginary parts near 0.
        weights: for each probe, one weight per eigenvalue.

    Returns:
        Nodes and weights, (K, m) float64 in the order given; nan beyond the end of a probe with fewer than m.

    Raises:
        InputError: not one list for each probe, lengths that differ between the two, imaginary parts that are not
            rounding, numbers that are not finite, or weights that do not sum to 1.
    """
    nodes_rows, weight_rows = _real_rows(eigenvalues, "eigenvalues"), _real_rows(weights, "weights")
    _check(nodes_rows, weight_rows)
    shape = len(nodes_rows), max(map(len, nodes_rows))
    found_nodes, found_weights = np.full(shape, np.nan), np.full(shape, np.nan)
    for k, (row, shares) in enumerate(zip(nodes_rows, weight_rows, strict=True)):
        found_nodes[k, : len(row)], found_weights[k, : len(row)] = row, shares
    return found_nodes, found_weights


def read_saddle_longtail(eigen_npy: str | Path, weights_npy: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """Read the density of one class as Saddle-LongTail saves it.

    Args:
        eigen_npy: the file `<class>_density_eigen.npy`, (K, m) for K probes.
        weights_npy: the file `<class>_density_weights.npy` of the same class.

    Returns:
        Nodes and weights, (K, m) float64.

    Raises:
        StoreError: a file is missing or not an array of numbers.
        InputError: the arrays are not nodes and weights, as for `from_pyhessian`.
    """
    return from_pyhessian(numpy_files.array(Path(eigen_npy)), numpy_files.array(Path(weights_npy)))


def to_csv(result: Result, path: str | Path, *, overwrite: bool = False) -> None:
    """Write the numbers of a result as one table, under a header.

    The table of a spectrum or sharpness has a row for each part, that of a series a row for each part at each
    checkpoint; columns have the names of fields, and those of spectra and groups begin with the matrices that the
    numbers are of. The table of a surface or trajectory has a row for each part at each point, first grid points, then
    marks. Any other result is in long form, with a row for each number: its field, its
    position along each axis (by name if there are names), and its value.

    Args:
        result: of any kind. Arrays over parameters, probes or steps stay in the result file.
        path: the file, in UTF-8. Floats have all their digits; nan and inf are written as such.
        overwrite: replace a file of this name.

    Raises:
        StoreError: the file exists or cannot be written.
    """
    write_table(*_table(result), path, overwrite=overwrite)


def write_table(columns: Sequence[str], rows: Iterable[Sequence[Any]], path: str | Path, *, overwrite: bool) -> None:
    """Write a table as CSV, as `to_csv` does."""

    def fill(file: BinaryIO) -> None:
        text = io.TextIOWrapper(file, encoding="utf-8", newline="")
        writer = csv.writer(text)
        writer.writerow(columns)
        writer.writerows(rows)
        text.detach()  # detach() flushes, and does not close the owner's file

    path = Path(path)
    with disk.writing(path):
        disk.refuse_taken(path, overwrite=overwrite, signature=b"")
        disk.write_aside(path, fill)


def to_json(result: Result) -> str:
    """Write the numbers of a result as JSON.

    Args:
        result: of any kind. Arrays over parameters, probes or steps stay in the result file.

    Returns:
        Strict JSON: an object with `kind`; `version`; the scalars by their field names; `parts`, a list with an object
        for each part; and `arrays`, with the `axes` and `values` of each other array, nested in the order of the axes.
        JSON has no nan and no inf: both become null.
    """
    whole: dict[str, Any] = {"kind": result.kind, "version": result.version}
    arrays = {}
    for item in fields(result):
        axes, value = item.metadata["axes"], getattr(result, item.name)
        if axes is None and item.name != "provenance":
            whole[item.name] = _finite(value)
        elif axes not in {None, ("part",)} and value is not None and _shown(axes):
            arrays[item.name] = {"axes": axes, "values": _finite(np.asarray(value).tolist())}
    columns, rows = part_table(result)
    whole["parts"] = [_finite(dict(zip(columns, row, strict=True))) for row in rows]
    whole["arrays"] = arrays
    return json.dumps(whole, indent=2, ensure_ascii=False, allow_nan=False)


def matrices(result: Result) -> dict[str, str]:
    """Return what a result states of the matrices that its numbers are of, by the fields; empty for other kinds."""
    return {name: getattr(result, name) for name in ("operator", "lambda_max_matrix") if hasattr(result, name)}


def _table(result: Result) -> tuple[list[str], Iterable[Sequence[Any]]]:
    if isinstance(result, (Spectrum, Traces, Sharpness, Series)):
        columns, rows = part_table(result)
        after, about = columns.index("part") + 1, matrices(result)
        named = ((*row[:after], *about.values(), *row[after:]) for row in rows)
        return [*columns[:after], *about, *columns[after:]], named
    if isinstance(result, Surface):
        accuracy = [] if result.accuracy is None else ["accuracy"]
        return ["part", "mark", "x", "y", "loss", *accuracy, "computed", "distance"], _points(result)
    return long_table(result)


def part_table(result: Result) -> tuple[list[str], list[tuple[Any, ...]]]:
    """Return the columns and rows of a table with a row for each part and all fields with one number per part.

    For a series, there is a row for each part at each checkpoint.
    """
    if isinstance(result, Series):
        return _along(result)
    columns = {
        item.name: np.asarray(getattr(result, item.name)).tolist()
        for item in fields(result)
        if item.metadata["axes"] == ("part",) and getattr(result, item.name) is not None
    }
    columns = {"part": columns.pop("parts", [])} | columns
    return list(columns), list(zip(*columns.values(), strict=True))


def _along(series: Series) -> tuple[list[str], list[tuple[Any, ...]]]:
    """Return one table for all checkpoints; columns with fields of the checkpoint come first."""
    axes = {item.name: item.metadata["axes"] for item in fields(series) if getattr(series, item.name) is not None}
    about = [name for name, of in axes.items() if of == (AXIS,) and name != "checkpoints"]
    shape = len(series.checkpoints), len(series.parts)
    numbers = [name for name, of in axes.items() if of in {(AXIS, "part"), ("part",)} and name != "parts"]
    values = [np.broadcast_to(getattr(series, name), shape) for name in numbers]
    rows = []
    for k, name in enumerate(series.checkpoints):
        own = [np.asarray(getattr(series, field))[k].item() for field in about]
        rows += [(name, *own, part, *(v[k, p].item() for v in values)) for p, part in enumerate(series.parts)]
    return [AXIS, *about, "part", *numbers], rows


def _points(surface: Surface) -> Iterator[Sequence[Any]]:
    x, y = np.meshgrid(surface.xcoordinates, surface.ycoordinates)
    position = np.zeros((len(surface.marks), 2))
    position[:, : surface.mark_position.shape[1]] = surface.mark_position
    for p, part in enumerate(surface.parts):
        accuracy = [] if surface.accuracy is None else [surface.accuracy[p]]
        grid = (x, y, surface.loss[p], *accuracy, surface.computed)
        for row in zip(*(values.ravel().tolist() for values in grid), strict=True):
            yield [part, "", *row, 0.0]
        of_marks = [] if surface.mark_accuracy is None else [surface.mark_accuracy[:, p]]
        marks = (*position.T, surface.mark_loss[:, p], *of_marks)
        columns = zip(surface.marks, *(values.tolist() for values in marks), surface.mark_distance, strict=True)
        for name, *numbers, distance in columns:
            yield [part, name, *numbers, True, distance]


def long_table(result: Result) -> tuple[list[str], Iterator[Sequence[Any]]]:
    """Return the columns and rows of a table with a row for each number: field, position along each axis, value."""
    shown = [
        (item.name, item.metadata["axes"], np.asarray(getattr(result, item.name)))
        for item in fields(result)
        if item.metadata["axes"] and getattr(result, item.name) is not None and _shown(item.metadata["axes"])
    ]
    labels = {axis: values.tolist() for axis, (_, values) in labels_of(result).items()}
    numbers = [(name, distinct(axes), values) for name, axes, values in shown if values.dtype.kind != "U"]
    columns = list(dict.fromkeys(axis for _, axes, _ in numbers for axis in axes))

    def rows() -> Iterator[Sequence[Any]]:
        for name, axes, values in numbers:
            flat = values.ravel().tolist()
            for place, value in zip(np.ndindex(values.shape), flat, strict=True):
                at = dict(zip(axes, place, strict=True))
                found = {axis: labels.get(axis.removesuffix(SECOND), range(i + 1))[i] for axis, i in at.items()}
                yield [name, *(found.get(axis, "") for axis in columns), value]

    return ["field", *columns, "value"], rows()


def to_xarray(result: Result) -> "xr.Dataset":
    """Return all arrays of a result as an xarray data set; see `Result.to_xarray`."""
    try:
        import xarray as xr
    except ImportError as error:
        raise InputError("to_xarray needs the package xarray: pip install xarray") from error
    labels = labels_of(result)
    variables: dict[str, Any] = {}
    for item in fields(result):
        axes, value = item.metadata["axes"], getattr(result, item.name)
        if axes is not None and value is not None:
            variables[item.name] = (distinct(axes), np.asarray(value), _attributes(item))
    coordinates: dict[str, Any] = {}
    for dims, _, _ in list(variables.values()):
        for dim in dims:
            if (axis := dim.removesuffix(SECOND)) in labels:
                name, values = labels[axis]
                coordinates[dim] = (dim, values, variables.get(name, (None, None, {}))[2])
    for name, _ in labels.values():
        del variables[name]  # it is a coordinate
    scalars = {i.name: getattr(result, i.name) for i in fields(result) if i.metadata["axes"] is None}
    provenance = store.to_json(scalars.pop("provenance"), "provenance")
    scalars = {name: int(value) if isinstance(value, bool) else value for name, value in scalars.items()}
    about = {"kind": result.kind, "version": result.version, **scalars, "provenance": provenance}
    return xr.Dataset(variables, coordinates, about)


def _attributes(item: Any) -> dict[str, str]:
    return {"units": item.metadata["unit"], "long_name": item.metadata["doc"]}


def _shown(axes: Sequence[str]) -> bool:
    return _RAW.isdisjoint(axes)


def _finite(value: Any) -> Any:
    """Return a value with null for every number that JSON does not have."""
    if isinstance(value, list):
        return [_finite(v) for v in value]
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _check(nodes: Sequence[Sequence[float]], weights: Sequence[Sequence[float]]) -> None:
    if len(nodes) != len(weights) or not nodes:
        raise InputError(f"there are eigenvalues of {len(nodes)} probes and weights of {len(weights)}")
    for k, (row, shares) in enumerate(zip(nodes, weights, strict=True)):
        if len(row) != len(shares) or not len(row):
            raise InputError(f"probe {k} has {len(row)} eigenvalues and {len(shares)} weights")
        if not np.isfinite(row).all():
            raise InputError(f"probe {k} has an eigenvalue that is not finite")
        if not abs(sum(shares) - 1) <= _ROUNDING:
            raise InputError(f"the weights of probe {k} sum to {sum(shares):.6g}, they must sum to 1")


def _real_rows(rows: Sequence[Sequence[complex]] | np.ndarray, name: str) -> list[list[float]]:
    found = []
    for k, row in enumerate(rows):
        values = np.asarray(row)
        if values.ndim != 1 or values.dtype.kind not in "iufc":
            raise InputError(
                f"{name} must be one list of numbers for each probe, got {values.dtype} {values.shape} at probe {k}"
            )
        if values.dtype.kind == "c" and not np.abs(values.imag).max(initial=0.0) <= _ROUNDING * np.abs(values).max():
            raise InputError(f"{name} of probe {k} have imaginary parts up to {np.abs(values.imag).max():.3g}")
        found.append(values.real.astype(np.float64).tolist())
    return found
