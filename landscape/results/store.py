"""Results in HDF5 files.

This is the specification of a file; any HDF5 library from version 1.8 on can read it:

- The root has the text attributes `format` = "landscape" and `kind`, and the integer attribute `version`, which
  counts the versions of that kind. A reader MUST refuse a kind that it does not know and a newer version.
- Each array of the result is a dataset at the root under the field's name. Its dimension labels (HDF5's attribute
  DIMENSION_LABELS) name its axes, and axes of one name have one length. It has the text attributes `unit`, empty
  for pure numbers, and `description`. Floats are kept to the bit; nan means that there is no value.
- Each axis has a dimension scale of its name, as in netCDF-4: a dataset with the names or coordinates along the axis,
  or without values. The second axis of a matrix over pairs has one with "_2" behind the name. A reader MAY ignore them.
- A tuple of strings is a dataset of variable-length UTF-8. A field that is None has no dataset.
- Each number or string of the result is an attribute of the root.
- `provenance` is a root attribute of JSON text, which may contain NaN, Infinity and -Infinity. For readers without
  JSON, the empty group `provenance` MAY repeat its strings, numbers and booleans as attributes; the text has priority.
- There MAY be other datasets, groups and attributes; a reader MUST ignore those that it does not know.

A file is never changed in place (see `disk`), so HDF5's lock is not used. h5py gets a Python file, not a path: on a
full disk HDF5's own driver fails when it closes the file and crashes the interpreter at its end, whereas a Python file
raises the operating system's error. `hdf5` checks sizes before it allocates memory.
"""

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import fields
from os import PathLike
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias, get_args, overload

import h5py
import numpy as np

from landscape.callables import checked
from landscape.errors import InputError, StoreError
from landscape.results import KINDS, R, Result, disk, hdf5
from landscape.results.axes import SECOND, distinct, labels_of

Files: TypeAlias = list[str] | list[Path] | tuple[str | PathLike[str], ...]

_NO_VARIABLE = "This is a netCDF dimension but not a netCDF variable."  # as netCDF-4 itself writes

ERRORS = ("_stderr", "_residual", "_residuals", "_spread")
"""Suffixes of the names of fields with errors, which are never negative."""

FORMAT = "landscape"
"""The root attribute `format` of every file of this package."""


@checked
def save(path: str | PathLike[str], result: Result, *, overwrite: bool = False) -> None:
    """Write a result to an HDF5 file, completely or not at all.

    Args:
        path: the file; its folder must exist. A link is followed.
        result: an instance of one of `results.KINDS`.
        overwrite: replace a file of this name.

    Raises:
        StoreError: the file exists, it cannot be written, or the result contains something that the format cannot.
    """
    path = Path(path)
    with disk.writing(path):
        disk.refuse_taken(path, overwrite=overwrite, signature=hdf5.SIGNATURE)
        write_result(path, result)


@overload
def load(path: str | PathLike[str]) -> Result: ...


@overload
def load(path: str | PathLike[str], kind: type[R]) -> R: ...


@overload
def load(path: Files) -> list[Result]: ...


@overload
def load(path: Files, kind: type[R]) -> list[R]: ...


@checked
def load(path: str | PathLike[str] | Files, kind: type[Any] | None = None) -> Any:
    """Read a result, or several.

    Args:
        path: a file that `save` wrote, or a list of several.
        kind: the expected class, such as `Spectrum`; None accepts any.

    Returns:
        The result, of the class that the file's `kind` names; for several files, a list in their order.

    Raises:
        StoreError: a file is missing, damaged, of another program, of a newer version, or not of the expected kind.
    """
    if not isinstance(path, str | PathLike):
        return [load(one, kind) if kind else load(one) for one in path]
    result = read_result(Path(path))[0]
    if kind is not None and not isinstance(result, kind):
        raise StoreError(f"{path} holds a {result.kind}, not a {kind.kind}")
    return result


def is_result(path: str | Path) -> bool:
    """Say whether a file is a result of this package, of whatever kind and version.

    Args:
        path: any path.

    Returns:
        True if it is a readable HDF5 file whose `format` is this package's.
    """
    try:
        with hdf5.opened(Path(path)) as root:
            return bool(hdf5.attribute(root, "format") == FORMAT)
    except StoreError:
        return False


def write_result(path: Path, result: Result, *, unit: str | None = None, aside: Path | None = None) -> None:
    """Write a result with `disk.write_aside`, and the name of the unit of a run if it is the result of one."""
    disk.write_aside(path, lambda file: fill(file, result, unit), aside=aside)


def read_result(path: Path) -> tuple[Result, str | None]:
    """Read a result and the unit's name that `write_result` stored; errors are those of `load`."""
    with hdf5.opened(path) as root:
        kind = _known_kind(path, root)
        values: dict[str, Any] = {}
        for item in fields(kind):
            place = root.attrs if item.metadata["axes"] is None else root
            where = f"{path}:/{item.name}"
            if item.name not in place:
                if item.metadata["optional"]:
                    continue
                raise StoreError(f"{where} is missing, a {kind.kind} needs it: compute the file again")
            if item.name == "provenance":
                values[item.name] = disk.parse_json(_scalar(root, item.name, str, where))
                if not isinstance(values[item.name], dict):
                    raise StoreError(f"{where} must be a JSON object: compute the file again")
            elif item.metadata["axes"] is None:
                values[item.name] = _scalar(root, item.name, item.type, where)
            else:
                words = tuple[str, ...] in (item.type, *get_args(item.type))
                values[item.name] = (hdf5.texts if words else hdf5.numbers)(root, item.name, path)
        unit = hdf5.attribute(root, "journal_unit")
        unit = disk.parse_json(unit) if isinstance(unit, str) else None
        unit = unit if isinstance(unit, str) else None
    try:
        result = kind(**values)
    except InputError as error:
        raise StoreError(f"{path}: {error}; compute the file again") from error
    for name, value in values.items():
        if name.endswith(ERRORS) and np.any(value < 0):
            found = f"{value[value < 0][0]:.3g}, but an error is at least zero"
            raise StoreError(f"{path}:/{name} has {found}: compute the file again")
    return result, unit


def to_json(value: Any, name: str) -> str:
    """Return a value as JSON text; NumPy numbers and arrays become plain ones, and paths strings."""
    try:
        return json.dumps(value, default=_jsonable)
    except (TypeError, ValueError) as error:
        raise StoreError(f"{name} cannot be stored as JSON: {error}") from None


def fill(file: BinaryIO, result: Result, unit: str | None = None) -> None:
    """Write a result into an open, empty file, and the name of the unit of a run if it is the result of one."""
    # HDF5 1.8's layout has checksums on its metadata; in the older default a flipped bit can crash a reader.
    with h5py.File(file, "w", libver=("v108", "v108")) as root:
        root.attrs["format"] = FORMAT
        root.attrs["kind"] = result.kind
        root.attrs["version"] = result.version
        if unit is not None:
            root.attrs["journal_unit"] = json.dumps(unit)  # JSON, as a name may hold what HDF5 text cannot
        datasets: dict[str, Any] = {}  # a look-up in the file takes ten times as long
        for item in fields(result):
            value = getattr(result, item.name)
            if item.name == "provenance":
                _fill_provenance(root, value)
            elif item.metadata["axes"] is None:
                root.attrs[item.name] = _plain(value, item.name)
            elif value is not None:
                dataset = datasets[item.name] = _dataset(root, item.name, value)
                dataset.attrs["unit"] = item.metadata["unit"]
                dataset.attrs["description"] = item.metadata["doc"]
                for i, axis in enumerate(item.metadata["axes"]):
                    dataset.dims[i].label = axis
        _add_scales(root, result, datasets)


def _add_scales(root: h5py.File, result: Result, datasets: dict[str, Any]) -> None:
    """Give each axis a dimension scale, so that xarray and netCDF read the file with named dimensions.

    A scale has the names of parts, the epochs or the coordinates along its axis, or no values if there are none of
    these.
    """
    labels = labels_of(result)
    for item in fields(result):
        if item.name not in datasets:
            continue
        for i, scale in enumerate(distinct(item.metadata["axes"])):
            if scale not in datasets:
                axis = scale.removesuffix(SECOND)
                length = datasets[item.name].shape[i]
                _, values = labels.get(axis, (None, None))
                if values is None:
                    made = root.create_dataset(scale, shape=(length,), dtype="f4")
                    made.make_scale(f"{_NO_VARIABLE}{length:10d}")
                else:
                    made = _dataset(root, scale, tuple(values.tolist()) if values.dtype.kind == "U" else values)
                    made.make_scale(scale)
                datasets[scale] = made
            if item.name != scale:
                datasets[item.name].dims[i].attach_scale(datasets[scale])


def _dataset(root: h5py.File, name: str, value: Any) -> Any:
    if isinstance(value, tuple):
        words = np.array([_plain(word, name) for word in value], dtype=object)
        return root.create_dataset(name, data=words, dtype=h5py.string_dtype())
    numbers = np.asarray(value)
    if numbers.dtype.kind not in "biufc":
        raise StoreError(f"{name} is an array of {numbers.dtype}: only numbers and booleans can be stored")
    return root.create_dataset(name, data=numbers)


def _fill_provenance(root: h5py.File, provenance: Mapping[str, Any]) -> None:
    root.attrs["provenance"] = to_json(provenance, "provenance")
    group = root.create_group("provenance")
    for key, value in provenance.items():
        # Values that an attribute cannot have (a list, None, an integer beyond 64 bits) are only in the JSON text.
        with suppress(StoreError):
            group.attrs[_plain(key, "provenance")] = _plain(value, "provenance")


def _plain(value: Any, name: str) -> Any:
    if isinstance(value, str):
        if "\0" in value or any("\ud800" <= c <= "\udfff" for c in value):
            raise StoreError(f"{name} {value!r} holds NUL or half a surrogate pair, which HDF5 text cannot: rename it")
    elif not isinstance(value, (bool, int, float, np.number, np.bool_)) or np.asarray(value).dtype == object:
        raise StoreError(f"{name} {value!r:.60} cannot be stored: only strings and numbers of up to 64 bits can")
    return value


def _jsonable(value: Any) -> Any:
    if isinstance(value, (np.generic, np.ndarray)):
        return value.tolist()
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"it holds {value!r:.60} of type {type(value).__name__}")


def _known_kind(path: Path, root: h5py.File) -> type[Result]:
    if hdf5.attribute(root, "format") != FORMAT:
        if "xcoordinates" in root or "train_loss" in root:
            raise StoreError(f"{path} is a surface of tomgoldstein/loss-landscape, not a result of landscape")
        raise StoreError(f"{path} is an HDF5 file of another program, not a result of landscape")
    name, version = hdf5.attribute(root, "kind"), hdf5.attribute(root, "version")
    if not isinstance(name, str) or not isinstance(version, int):
        raise StoreError(f"{path} does not say of which kind and version it is: compute it again")
    if name not in KINDS:
        raise StoreError(f"{path} holds a {name}, this landscape reads {', '.join(KINDS)}: upgrade")
    if version > KINDS[name].version:
        known = KINDS[name].version
        raise StoreError(f"{path} holds {name} version {version}, this landscape reads up to {known}: upgrade")
    return KINDS[name]


def _scalar(root: h5py.File, name: str, kind: Any, where: str) -> Any:
    value = hdf5.attribute(root, name)
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        raise StoreError(f"{where} must be of type {kind.__name__}, got {value!r:.60}: compute the file again")
    return value
