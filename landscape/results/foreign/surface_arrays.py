"""Surfaces from bare arrays, and from the .npz files of two other programs.

- dnn-mode-connectivity: `plane.npz`, Z[ix, iy] on the plane through a curve's control points, and `curve.npz`, the
  losses along the curve itself. Their `loss` includes the penalty on the weights, their `nll` does not.
- Landscaper: `loss`, indexed by the first direction first, and `coordinates`, one row for each direction.

None of them states the number of samples of a loss, or whether the data were augmented: missing values become nan or
"unknown". Archives are read without pickle, so that no file runs code.
"""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from landscape.errors import StoreError
from landscape.results import Surface, Trajectory
from landscape.results.foreign import numpy_files
from landscape.results.grid import summary
from landscape.results.mesh import Grid

CONNECTIVITY = "dnn-mode-connectivity"
LANDSCAPER = "Landscaper"

_SHORT = {"train": "tr", "test": "te"}


def from_arrays(
    *,
    parts: Sequence[str],
    x: np.ndarray,
    y: np.ndarray | None,
    loss: np.ndarray,
    accuracy: np.ndarray,
    computed: np.ndarray,
    provenance: Mapping[str, Any],
    axes: tuple[str, ...] | None = None,
    unit_length: np.ndarray | None = None,
    cosine: float = float("nan"),
    explained: np.ndarray | None = None,
    radius: float | None = None,
    batch_norm: str = "unknown",
    between: bool = False,
    remark: str = "",
) -> Surface:
    """Make a surface of the known values; the rest is nan, and what follows from the losses is computed.

    Args:
        parts: names of the P parts.
        x: coordinates along the first direction, (nx,).
        y: coordinates along the second one, (ny,); None for a line.
        loss: (P, ny, nx), with ny = 1 for a line; nan where not computed.
        accuracy: fractions, (P, ny, nx); nan where unknown.
        computed: (ny, nx) bool.
        provenance: origin of the numbers.
        axes: description of each direction; None means "x" and "y", or principal components if `explained` is known.
        unit_length: Euclidean length of each direction; None if unknown, which makes radius and rise unknown too.
        cosine: of the two directions.
        explained: fraction of a trajectory's variance along each direction.
        radius: Euclidean radius of the worst rise, as for `grid.summary`.
        batch_norm: keep, interpolate, reestimate or unknown.
        between: the line goes from one network at 0 to another at 1, and has a barrier.
        remark: a further warning for the verdict.

    Returns:
        The surface, without marks. The centre's loss is that of the point at 0, if there is one.
    """
    n_axes, none = (1 if y is None else 2), np.full(len(parts), np.nan)
    unknown = np.full(n_axes, np.nan)
    explained = unknown if explained is None else explained
    grid = Grid(
        xcoordinates=np.asarray(x, dtype=np.float64),
        ycoordinates=np.zeros(1) if y is None else np.asarray(y, dtype=np.float64),
        unit_length=unknown if unit_length is None else unit_length,
        cosine=cosine,
        computed=computed,
    )
    centre_loss = grid.at_centre(loss)
    follows = summary(
        grid,
        parts=parts,
        loss=loss,
        centre_loss=centre_loss,
        radius=radius,
        batch_norm=batch_norm,
        between=between,
        augmented=None,
    )
    if remark:
        follows["verdict"] += f"; {remark}"
    return Surface(
        parts=tuple(parts),
        n_samples=none,
        train_counts=none,
        xcoordinates=grid.xcoordinates,
        ycoordinates=grid.ycoordinates,
        loss=loss,
        accuracy=accuracy,
        computed=computed,
        centre_loss=centre_loss,
        centre_accuracy=grid.at_centre(accuracy),
        axes=axes or axis_names(explained),
        unit_length=grid.unit_length,
        explained=explained,
        marks=(),
        mark_position=np.zeros((0, n_axes)),
        mark_distance=np.zeros(0),
        mark_loss=np.zeros((0, len(parts))),
        mark_accuracy=np.zeros((0, len(parts))),
        cosine=cosine,
        batch_norm=batch_norm,
        provenance={**provenance, "augmented": None},
        **follows,
    )


def with_paths(surface: Surface, paths: Mapping[str, np.ndarray], *, distance: float = float("nan")) -> Trajectory:
    """Draw paths on a surface, in place of its marks.

    Args:
        surface: a plane.
        paths: name -> coordinates of its points, (n, 2), in order.
        distance: of all points from the plane; nan if unknown.

    Returns:
        The trajectory. Losses and epochs of the points are not known.
    """
    held = {item.name: getattr(surface, item.name) for item in fields(Surface)}
    counts = [len(points) for points in paths.values()]
    unknown = np.full((sum(counts), len(surface.parts)), np.nan)
    held |= {
        "marks": tuple(f"{run} {i}" for run, n in zip(paths, counts, strict=True) for i in range(n)),
        "mark_position": np.concatenate([np.zeros((0, 2)), *paths.values()]),
        "mark_distance": np.full(sum(counts), distance),
        "mark_loss": unknown,
        "mark_accuracy": unknown,
    }
    return Trajectory(
        **held,
        runs=tuple(paths),
        mark_run=np.repeat(np.arange(len(counts)), counts),
        mark_epoch=np.full(sum(counts), np.nan),
    )


def axis_names(explained: np.ndarray) -> tuple[str, ...]:
    """Return names for directions, given only the variance that they explain if they are principal components.

    Args:
        explained: (A,) fractions of the variance; nan for other directions.

    Returns:
        (A,) names.
    """
    if np.isfinite(explained).all():
        return tuple(f"principal component {i + 1}" for i in range(len(explained)))
    return ("x", "y")[: len(explained)]


def read_npz(path: str | Path, *, radius: float | None = None) -> Surface:
    """Read a surface or curve of dnn-mode-connectivity or Landscaper, recognised by the names of its arrays.

    Args:
        path: the .npz file.
        radius: Euclidean radius of the worst rise; it has an effect only if lengths are known, on the plane of a curve.

    Returns:
        The surface. The plane of a curve is a trajectory; its runs are the curve and its control points.

    Raises:
        StoreError: the file is missing, damaged, or no surface.
    """
    path = Path(path)
    arrays = numpy_files.archive(path)
    if {"alphas", "betas", "grid"} <= set(arrays):
        return _plane(path, arrays, radius)
    if {"ts", "dl"} <= set(arrays):
        return _curve(path, arrays)
    if {"loss", "coordinates"} <= set(arrays):
        return _landscaper(path, arrays)
    held = ", ".join(sorted(arrays)[:6]) or "no array of numbers"
    raise StoreError(
        f"{path} holds {held}: a plane of {CONNECTIVITY} has alphas, betas and grid, a curve ts and dl, a surface of "
        f"{LANDSCAPER} loss and coordinates"
    )


def _plane(path: Path, arrays: Mapping[str, np.ndarray], radius: float | None) -> Trajectory:
    """Return the plane of a curve; its grid has Euclidean lengths along two orthonormal directions."""
    shape = len(arrays["alphas"]), len(arrays["betas"])
    grid = arrays["grid"]
    if grid.shape != (*shape, 2):
        raise StoreError(f"{path}: grid has shape {grid.shape}, alphas and betas ask for {(*shape, 2)}")
    parts, loss, accuracy = _by_split(path, arrays, shape)
    surface = from_arrays(
        parts=parts,
        x=grid[:, 0, 0],
        y=grid[0, :, 1],
        loss=loss.transpose(0, 2, 1),
        accuracy=accuracy.transpose(0, 2, 1),
        computed=np.ones(shape[::-1], dtype=bool),
        unit_length=np.ones(2),
        cosine=0.0,
        radius=radius,
        batch_norm="reestimate",
        provenance={"source": CONNECTIVITY, "file": str(path)},
    )
    paths = {
        name.removesuffix("_coordinates"): arrays[name]
        for name in ("curve_coordinates", "bend_coordinates")
        if name in arrays
    }
    for name, points in paths.items():
        if points.ndim != 2 or points.shape[1] != 2:
            raise StoreError(f"{path}: {name}_coordinates must be pairs of numbers, got shape {points.shape}")
    # The first three control points span the plane: further ones, and then the curve, are outside it.
    in_plane = len(paths.get("bend", ())) == 3
    return with_paths(surface, paths, distance=0.0 if in_plane else float("nan"))


def _curve(path: Path, arrays: Mapping[str, np.ndarray]) -> Surface:
    """Return the losses along a curve as those of a line; its ends are two networks, so it has a barrier."""
    t = arrays["ts"]
    if t.ndim != 1:
        raise StoreError(f"{path}: ts must be one row, got shape {t.shape}")
    parts, loss, accuracy = _by_split(path, arrays, t.shape)
    return from_arrays(
        parts=parts,
        x=t,
        y=None,
        loss=loss[:, None],
        accuracy=accuracy[:, None],
        computed=np.ones((1, len(t)), dtype=bool),
        axes=("t along a curve",),
        between=True,
        batch_norm="reestimate",
        provenance={"source": CONNECTIVITY, "file": str(path), "length": float(arrays["dl"].sum())},
    )


def _by_split(
    path: Path, arrays: Mapping[str, np.ndarray], shape: tuple[int, ...]
) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Return the splits, their losses without the penalty on the weights, and their accuracies as fractions."""
    parts = [split for split, short in _SHORT.items() if f"{short}_nll" in arrays]
    if not parts:
        raise StoreError(f"{path} has neither tr_nll nor te_nll: it is no result of {CONNECTIVITY}")
    for name in [f"{_SHORT[part]}_{what}" for part in parts for what in ("nll", "acc")]:
        if name not in arrays or arrays[name].shape != shape:
            found = f"has shape {arrays[name].shape}" if name in arrays else "is missing"
            raise StoreError(f"{path}: {name} {found}, its coordinates ask for {shape}")
    loss = np.stack([arrays[f"{_SHORT[part]}_nll"] for part in parts])
    return parts, loss, np.stack([arrays[f"{_SHORT[part]}_acc"] for part in parts]) / 100


def _landscaper(path: Path, arrays: Mapping[str, np.ndarray]) -> Surface:
    loss, coordinates = arrays["loss"], np.atleast_2d(arrays["coordinates"])
    if loss.ndim not in {1, 2} or coordinates.shape != (loss.ndim, loss.shape[0]) or loss.shape[0] != loss.shape[-1]:
        raise StoreError(
            f"{path}: loss has shape {loss.shape} and coordinates {coordinates.shape}; lines and square planes are read"
        )
    values = loss[None] if loss.ndim == 1 else loss.T
    return from_arrays(
        parts=["all"],
        x=coordinates[0],
        y=None if loss.ndim == 1 else coordinates[1],
        loss=values[None],
        accuracy=np.full((1, *values.shape), np.nan),
        computed=np.ones(values.shape, dtype=bool),
        remark=f"{LANDSCAPER} replaces losses that are not finite, and steps short of the coordinates that it writes",
        provenance={"source": LANDSCAPER, "file": str(path)},
    )
