"""Other people's formats: PyHessian's lists, Saddle-LongTail's arrays, and tables for any program (CSV, JSON).

PyHessian's `density()` returns two lists with one list for each probe: the eigenvalues of the tridiagonal matrix
and the squared first components of its eigenvectors, in no order. They are the nodes and weights of the quadrature,
and the weights of a probe sum to 1. It takes the eigenvectors of a symmetric matrix by `torch.linalg.eig`, which
answers in complex numbers. Saddle-LongTail saves the same two lists for each class as NumPy arrays.
"""

import csv
import json
import math
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from landscape.errors import InputError, StoreError
from landscape.results import Spectrum

_ROUNDING = 1e-3  # of float32 weights from a general eigensolver; wrong weights miss by far more


def to_pyhessian(
    nodes: np.ndarray, weights: np.ndarray, steps: np.ndarray
) -> tuple[list[list[float]], list[list[float]]]:
    """Give one part's quadrature the form that PyHessian's `density()` returns.

    Args:
        nodes: (K, m) in units of the loss; those of probe k are the first `steps[k]`.
        weights: (K, m), which sum to 1 for each probe.
        steps: (K,) Lanczos steps of each probe. PyHessian's own plot asks for equal ones.

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


def from_pyhessian(
    eigenvalues: Sequence[Sequence[complex]] | np.ndarray, weights: Sequence[Sequence[complex]] | np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Take what PyHessian's `density()` returned.

    Args:
        eigenvalues: for each of K probes its eigenvalues, real or complex with imaginary parts near 0.
        weights: for each probe as many weights.

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
    return from_pyhessian(_read_npy(Path(eigen_npy)), _read_npy(Path(weights_npy)))


def to_csv(spectrum: Spectrum, path: str | Path, *, overwrite: bool = False) -> None:
    """Write the numbers of each part as a table: a header of field names, a row for each part.

    Args:
        spectrum: the result.
        path: the file, in UTF-8. Floats keep all their digits; nan and inf are written so.
        overwrite: replace a file of this name.

    Raises:
        StoreError: the file exists or cannot be written.
    """
    rows = _rows(spectrum)
    try:
        with open(path, "w" if overwrite else "x", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, rows[0].keys() if rows else ["part"])
            writer.writeheader()
            writer.writerows(rows)
    except FileExistsError:
        raise StoreError(f"{path} exists: pass --overwrite to replace it, or choose another --out") from None
    except OSError as error:
        raise StoreError(f"{path} cannot be written: {error.strerror}; choose another --out") from None


def to_json(spectrum: Spectrum) -> str:
    """Write the numbers of each part, and those that hold for all, as JSON.

    Args:
        spectrum: the result.

    Returns:
        Strict JSON: an object with `kind`, `version`, the scalars by their field names, and `parts`, a list with
        an object for each part. JSON has no nan and no inf: both are null.
    """
    scalars = {
        item.name: getattr(spectrum, item.name)
        for item in fields(spectrum)
        if item.metadata["axes"] is None and item.name != "provenance"
    }
    whole = {"kind": spectrum.kind, "version": spectrum.version} | _finite(scalars)
    whole["parts"] = [_finite(row) for row in _rows(spectrum)]
    return json.dumps(whole, indent=2, ensure_ascii=False, allow_nan=False)


def _rows(spectrum: Spectrum) -> list[dict[str, Any]]:
    columns = {
        item.name: np.asarray(getattr(spectrum, item.name)).tolist()
        for item in fields(spectrum)
        if item.metadata["axes"] == ("part",)
    }
    columns = {"part": columns.pop("parts")} | columns
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _finite(numbers: dict[str, Any]) -> dict[str, Any]:
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in numbers.items()}


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


def _read_npy(path: Path) -> np.ndarray:
    try:
        with open(path, "rb") as file:
            return np.lib.format.read_array(file, allow_pickle=False)
    except FileNotFoundError:
        raise StoreError(f"there is no file {path}") from None
    except (OSError, ValueError) as error:
        cause = " ".join(str(error).split())
        raise StoreError(f"{path} cannot be read as a NumPy array of numbers ({cause:.100})") from None
