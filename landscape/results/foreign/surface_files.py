"""Surfaces, directions and paths in the HDF5 files of tomgoldstein/loss-landscape, both ways.

- A surface has `xcoordinates`, `ycoordinates` (none for a line), `train_loss`, `train_acc` in percent, and the same for
  `test`; -1 is "not computed". Its arrays have the shape (nx, ny) but the order of (ny, nx), so that Z[iy, ix] is
  Z.ravel().reshape(ny, nx), whatever their shape says.
- Directions are in a separate file, in the groups `xdirection` and `ydirection`: an array for each parameter, under
  the names "0", "1", ...; principal components also have `explained_variance_ratio_`.
- A projected path is in a third file, as `proj_xcoord` and `proj_ycoord`.

None of them states the number of samples of a loss, and only directions contain lengths in parameter space: missing
values become nan.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import h5py
import numpy as np

from landscape.errors import InputError, StoreError, said
from landscape.results import Plane, Surface, Trajectory, disk, hdf5, store
from landscape.results.foreign.surface_arrays import axis_names, from_arrays, read_npz, with_paths
from landscape.results.regroup import regroup

GOLDSTEIN = "tomgoldstein/loss-landscape"

_ZIP = b"PK\x03\x04"
_SPLITS = ("train", "test")


@dataclass(frozen=True, kw_only=True, eq=False)
class DirectionFile:
    """The directions of a file of tomgoldstein/loss-landscape: for each axis an array for each tensor, in order."""

    arrays: tuple[tuple[np.ndarray, ...], ...]  # (A, tensors)
    explained: np.ndarray  # (A,) fraction of a trajectory's variance; nan for other than principal components

    @property
    def gram(self) -> np.ndarray:
        """Inner products of the directions, (A, A), without scalars such as counters of batches."""
        flat = [np.concatenate([a.ravel() for a in axis if a.ndim]).astype(np.float64) for axis in self.arrays]
        return np.array([[a @ b for b in flat] for a in flat])

    @property
    def unit_length(self) -> np.ndarray:
        """Euclidean length of each direction, (A,)."""
        lengths: np.ndarray = np.sqrt(np.diag(self.gram))
        return lengths

    @property
    def cosine(self) -> float:
        """Cosine of the angle between two directions; nan for one direction, or if one is zero."""
        if len(self.arrays) == 1 or not self.unit_length.all():
            return float("nan")
        return float(np.clip(self.gram[0, 1] / self.unit_length.prod(), -1, 1))


def is_foreign(path: str | Path) -> bool:
    """Say by its content whether `read` may accept a file.

    Args:
        path: any path.

    Returns:
        True for an .npz archive, and for HDF5 that is not a result of this package.
    """
    try:
        with open(path, "rb") as file:
            head = file.read(len(hdf5.SIGNATURE))
    except OSError:
        return False
    return head.startswith(_ZIP) or (head == hdf5.SIGNATURE and not store.is_result(path))


def read(path: str | Path, *, directions: str | Path | None = None, radius: float | None = None) -> Surface:
    """Read a surface or a curve from the file of another program, which is recognised by its content.

    Args:
        path: the file.
        directions: the file with the directions, for tomgoldstein/loss-landscape; None looks for it beside the surface,
            under the name that the surface states.
        radius: Euclidean radius of the worst rise; it has an effect only if lengths are known.

    Returns:
        The surface; its parts are the splits in the file. `surface_arrays.read_npz` reads an .npz.

    Raises:
        StoreError: the file is missing, damaged, or no surface.
        InputError: a file with directions for an .npz, which has none.
    """
    path = Path(path)
    try:
        with open(path, "rb") as file:
            head = file.read(len(hdf5.SIGNATURE))
    except FileNotFoundError:
        raise StoreError(f"there is no file {path}") from None
    except OSError as error:
        raise StoreError(f"{path} cannot be read: {error.strerror}") from None
    if head == hdf5.SIGNATURE:
        return _goldstein(path, directions, radius)
    if head.startswith(_ZIP):
        if directions is not None:
            option = said("directions", "--dir-file")
            raise InputError(f"{option} is for surfaces of {GOLDSTEIN}, {path} is an .npz: leave it out")
        return read_npz(path, radius=radius)
    raise StoreError(f"{path} is neither HDF5 nor .npz: surfaces of {GOLDSTEIN} are .h5, of others .npz")


def read_eigenvalues(path: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """Read the Hessian's extreme eigenvalues at each point of a surface of tomgoldstein/loss-landscape.

    That program computes them for the sum of the batches' mean losses without dividing it, so that they grow with the
    number of batches: only their ratio is that of the mean loss.

    Args:
        path: a file with `min_eig` and `max_eig`.

    Returns:
        The smallest and the largest eigenvalue, (ny, nx) each; nan where not computed.

    Raises:
        StoreError: the file is missing, damaged, or has no eigenvalues.
    """
    path = Path(path)
    with hdf5.opened(path) as root:
        x, y = _coordinates(path, root)
        ny = 1 if y is None else len(y)
        low, high = (_values(path, root, name, ny, len(x)) for name in ("min_eig", "max_eig"))
    missing = (high == -1) & (low == 1)
    return np.where(missing, np.nan, low), np.where(missing, np.nan, high)


def read_directions(path: str | Path) -> DirectionFile:
    """Read directions, random ones or principal components, of tomgoldstein/loss-landscape.

    Args:
        path: the direction file.

    Returns:
        One or two directions, with the fraction of variance if they are principal components.

    Raises:
        StoreError: the file is missing or damaged, or has no directions.
    """
    path = Path(path)
    with hdf5.opened(path) as root:
        names = [name for name in ("xdirection", "ydirection") if name in root]
        if not names or names[0] != "xdirection":
            raise StoreError(f"{path} has no group xdirection: it is no direction file of {GOLDSTEIN}")
        axes = tuple(_tensors(path, root, name) for name in names)
        explained = np.full(len(axes), np.nan)
        if "explained_variance_ratio_" in root:
            explained = _numbers(path, root, "explained_variance_ratio_").ravel()[: len(axes)]
    shapes = [[a.shape for a in axis] for axis in axes]
    if shapes[0] != shapes[-1] or len(explained) != len(axes):
        raise StoreError(f"{path}: xdirection and ydirection are not of one network: make the directions again")
    return DirectionFile(arrays=axes, explained=explained)


def read_plane(
    path: str | Path,
    parameters: Mapping[str, np.ndarray],
    buffers: Mapping[str, np.ndarray] | None = None,
    order: Sequence[str] | None = None,
) -> Plane:
    """Read directions of tomgoldstein/loss-landscape as a plane through a network's parameters.

    Args:
        path: the direction file.
        parameters: name -> values at the origin, in the order of `named_parameters()`.
        buffers: name -> values of the floating-point buffers, in their order; None means no buffers.
        order: names in the order of `state_dict()`, for a file that was made with --dir_type states. Tensors in neither
            mapping, such as counters of batches, do not move.

    Returns:
        The plane.

    Raises:
        StoreError: the file is missing, damaged, or holds no directions.
        InputError: the directions are of another network.
    """
    path, found, buffers = Path(path), read_directions(path), buffers or {}
    names = list(parameters)
    if len(found.arrays[0]) != len(names):
        names = list(order or ())
    if len(found.arrays[0]) != len(names):
        raise InputError(
            f"{path} has {len(found.arrays[0])} tensors, the network {len(parameters)} parameters"
            + (f" and {len(names)} entries in its state_dict" if order else "; pass order= for a file of states")
        )
    steps = [dict(zip(names, axis, strict=True)) for axis in found.arrays]
    for name, origin in (*parameters.items(), *buffers.items()):
        if name in steps[0] and steps[0][name].shape != np.shape(origin):
            raise InputError(f"{path}: {name} has shape {steps[0][name].shape}, in the network {np.shape(origin)}")
    small = [a for axis in found.arrays for a in axis if a.ndim <= 1]
    normalised = re.search(r"_xnorm=(filter|layer|weight)", path.name)
    directions = np.stack([_flat(step, parameters) for step in steps])
    lengths = np.linalg.norm(directions, axis=1)
    return Plane(
        axes=axis_names(found.explained),
        directions=directions,
        buffer_directions=np.stack([_flat(step, buffers) for step in steps]),
        origin=_flat(parameters, parameters),
        buffer_origin=_flat(buffers, buffers),
        unit_length=lengths,
        explained=found.explained,
        tensors=tuple(parameters),
        sizes=np.array([np.size(value) for value in parameters.values()], dtype=np.int64),
        cosine=float(directions[0] @ directions[1] / lengths.prod()) if len(lengths) == 2 and lengths.all() else np.nan,
        normalisation=normalised[1] if normalised else "none",
        ignored="biasbn" if small and not any(a.any() for a in small) else "none",
        provenance={"source": GOLDSTEIN, "file": str(path)},
    )


def with_path(surface: Surface, path: str | Path) -> Trajectory:
    """Draw a projected path of tomgoldstein/loss-landscape on a surface, in the surface's coordinates.

    That program's method "cos" stores lengths along each direction, whereas the coordinates of a surface are multiples
    of directions; the two differ if directions are not unit vectors, or not orthogonal. With the Gram matrix G of the
    directions and the lengths l, coordinates are G^-1 (l_1 |d1|, l_2 |d2|). Its method "lstsq" stores coordinates.

    Args:
        surface: a plane; its lengths must be known unless the path's name contains "lstsq".
        path: the projection file.

    Returns:
        The surface with the path's points as marks; their losses and distances from the plane are not known.

    Raises:
        StoreError: the file is missing or damaged, or has no path.
        InputError: the surface is a line, or its lengths are unknown.
    """
    path = Path(path)
    if surface.is_line:
        raise InputError(f"{path} is a path in a plane, the surface is a line")
    with hdf5.opened(path) as root:
        if "proj_xcoord" not in root or "proj_ycoord" not in root:
            raise StoreError(f"{path} has no proj_xcoord and proj_ycoord: it is no projected path of {GOLDSTEIN}")
        along = [_numbers(path, root, name).ravel() for name in ("proj_xcoord", "proj_ycoord")]
    if len(along[0]) != len(along[1]):
        raise StoreError(f"{path}: proj_xcoord has {len(along[0])} points, proj_ycoord {len(along[1])}: project again")
    position = np.stack(along, axis=1)
    if "proj_lstsq" not in path.name:
        if not np.isfinite([*surface.unit_length, surface.cosine]).all():
            raise InputError(
                f"{path} holds lengths, but those of the surface's directions are unknown: put their file beside it"
            )
        first, second = surface.unit_length
        inner = first * second * surface.cosine
        gram = np.array([[first**2, inner], [inner, second**2]])
        position = np.linalg.lstsq(gram, (position * surface.unit_length).T)[0].T
    return with_paths(surface, {path.stem: position})


def write_goldstein(path: str | Path, surface: Surface, *, overwrite: bool = False) -> None:
    """Write a surface so that both tomgoldstein/loss-landscape's plotters and this package can read the file.

    The file is a result file of this package, with all parts and the provenance. It also has the root datasets that the
    plotters look for by name: the mean loss over all samples of all parts, and the accuracy in percent; -1 is "not
    computed". Their names begin with `train_` or `test_`, after the split. A plane is written as rows of y, (ny, nx):
    this is both the order of that program's values and the shape that its contour plot needs, for any grid.

    Args:
        path: the file.
        surface: the result.
        overwrite: replace a file of this name.

    Raises:
        StoreError: the file exists, or cannot be written.
        InputError: the surface has several parts and does not state their numbers of samples.
    """
    path = Path(path)
    theirs = _their_arrays(surface)

    def fill(file: BinaryIO) -> None:
        store.fill(file, surface)
        with h5py.File(file, "r+") as root:
            root["dir_file"] = str(surface.provenance.get("dir_file", ""))
            for name, values in theirs.items():
                root[name] = values
                root[name].attrs["array_order"] = "rows of y: shape (ny, nx), C order; -1: not computed"

    with disk.writing(path):
        disk.refuse_taken(path, overwrite=overwrite, signature=hdf5.SIGNATURE)
        disk.write_aside(path, fill)


def _their_arrays(surface: Surface) -> dict[str, np.ndarray]:
    if set(surface.parts) <= set(_SPLITS):
        whole, places = surface, {name: p for p, name in enumerate(surface.parts)}
    else:
        whole = regroup(surface, "all")
        split = "test" if surface.provenance.get("split") == "test" else "train"
        places = {split: 0}
    arrays = {}
    for split, p in places.items():
        found = {f"{split}_loss": whole.loss[p]}
        if whole.accuracy is not None:
            found[f"{split}_acc"] = 100 * whole.accuracy[p]
        for name, values in found.items():
            values = np.where(surface.computed, values, -1.0)
            arrays[name] = values[0] if surface.is_line else values
    return arrays


def _goldstein(path: Path, directions: str | Path | None, radius: float | None) -> Surface:
    with hdf5.opened(path) as root:
        splits = [split for split in _SPLITS if f"{split}_loss" in root]
        _refuse_no_surface(path, root, splits)
        x, y = _coordinates(path, root)
        shape = (1 if y is None else len(y)), len(x)
        loss = {s: _values(path, root, f"{s}_loss", *shape) for s in splits}
        percent = {s: _values(path, root, f"{s}_acc", *shape) for s in splits if f"{s}_acc" in root}
        dir_file = hdf5.text(root, "dir_file", path) if "dir_file" in root else ""
    splits = [s for s in splits if (loss[s] != -1).any()] or splits[:1]  # only datasets with computed points
    computed = np.logical_and.reduce([loss[s] != -1 for s in splits])
    percents = [percent.get(s, np.full(shape, -1.0)) for s in splits]
    found = _directions(path, directions, dir_file)
    n_axes = 1 if y is None else 2
    if found is not None and len(found.arrays) < n_axes:
        raise InputError(f"{path} is a plane, and its directions are one: give the right direction file")
    kind = re.search(r"_(weights|states)(?![a-z])", Path(dir_file or path.name).name)
    return from_arrays(
        parts=splits,
        x=x,
        y=y,
        loss=np.where(computed, np.stack([loss[s] for s in splits]), np.nan),
        accuracy=np.stack([np.where(computed & (p != -1), p / 100, np.nan) for p in percents]),
        computed=computed,
        unit_length=None if found is None else found.unit_length[:n_axes],
        cosine=np.nan if found is None or y is None else found.cosine,
        explained=None if found is None else found.explained[:n_axes],
        radius=radius,
        batch_norm={"weights": "keep", "states": "interpolate"}[kind[1]] if kind else "unknown",
        provenance={"source": GOLDSTEIN, "file": str(path), "dir_file": dir_file},
    )


def _refuse_no_surface(path: Path, root: h5py.File, splits: Sequence[str]) -> None:
    if "xcoordinates" in root and splits:
        return
    if "xdirection" in root:
        raise StoreError(f"{path} holds directions of {GOLDSTEIN}, no surface: give the surface file")
    if "proj_xcoord" in root:
        raise StoreError(
            f"{path} holds a projected path of {GOLDSTEIN}: give the surface, and this file "
            f"{said('to with_path()', 'as --proj-file')}"
        )
    if "xcoordinates" in root:
        held = "Hessian eigenvalues only" if "max_eig" in root else "no train_loss and no test_loss"
        raise StoreError(f"{path} is a file of {GOLDSTEIN} with {held}: nothing to draw as a surface")
    raise StoreError(f"{path} is an HDF5 file of another program, neither a result nor a surface of {GOLDSTEIN}")


def _directions(path: Path, given: str | Path | None, dir_file: str) -> DirectionFile | None:
    """Return the given directions, or those in the file beside the surface that the surface names."""
    if given is not None:
        return read_directions(given)
    beside = path.parent / Path(dir_file).name
    try:
        return read_directions(beside) if dir_file and beside != path and beside.is_file() else None
    except StoreError:
        return None  # the surface can be shown without


def _coordinates(path: Path, root: h5py.File) -> tuple[np.ndarray, np.ndarray | None]:
    names = [name for name in ("xcoordinates", "ycoordinates") if name == "xcoordinates" or name in root]
    found = [_numbers(path, root, name) for name in names]
    for name, values in zip(names, found, strict=True):
        if values.ndim != 1 or not values.size or not np.isfinite(values).all():
            raise StoreError(f"{path}: {name} must be finite numbers in one row, got shape {values.shape}")
    return found[0], found[1] if len(found) == 2 else None


def _values(path: Path, root: h5py.File, name: str, ny: int, nx: int) -> np.ndarray:
    values = _numbers(path, root, name)
    if values.size != ny * nx:
        raise StoreError(f"{path}: {name} has {values.shape} values, its coordinates ask for {ny} rows of {nx}")
    return values.ravel().reshape(ny, nx)  # their order, whatever their declared shape


def _numbers(path: Path, root: Any, name: str) -> np.ndarray:
    return hdf5.numbers(root, name, path).astype(np.float64)


def _tensors(path: Path, root: h5py.File, name: str) -> tuple[np.ndarray, ...]:
    group = hdf5.group(root, name, path)
    return tuple(_numbers(path, group, str(i)) for i in range(len(group)))


def _flat(values: Mapping[str, np.ndarray], like: Mapping[str, np.ndarray]) -> np.ndarray:
    """Concatenate values in the order of `like`; zeros for missing ones."""
    arrays = [np.asarray(values.get(name, np.zeros(np.shape(like[name]))), dtype=np.float64) for name in like]
    return np.concatenate([np.zeros(0), *[a.ravel() for a in arrays]])
