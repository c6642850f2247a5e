"""Results in HDF5 files.

What a file holds; nothing but this is promised, and any HDF5 from 1.8 on reads it:

- The root has the text attributes `format` = "landscape" and `kind`, and the integer attribute `version`, which
  counts the versions of that kind. A reader MUST refuse a kind that it does not know and a newer version.
- Each array of the result is a dataset at the root under the field's name. Its dimension labels (HDF5's attribute
  DIMENSION_LABELS) name its axes, and axes of one name have one length. It has the text attributes `unit`, empty
  for pure numbers, and `description`. Floats are kept to the bit; nan means that there is no value.
- A tuple of strings is a dataset of variable-length UTF-8. A field that is None has no dataset.
- Each number or string of the result is an attribute of the root.
- `provenance` is a root attribute of JSON text in which NaN, Infinity and -Infinity may stand. For readers without
  JSON, the empty group `provenance` MAY repeat its strings, numbers and booleans as attributes; the text counts.
- There MAY be other datasets, groups and attributes; a reader MUST ignore those that it does not know.

A file is never changed in place: it is written aside, synced and renamed, so that a reader, a kill or a full disk
meets the old file or the new one. For the same reason no HDF5 lock is taken. h5py is given a Python file, not a
path: on a full disk HDF5's own driver fails at the close and brings the interpreter down when it ends, whereas
through a Python file the operating system's error arrives as it is.
"""

import errno
import json
import os
import secrets
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import fields
from pathlib import Path
from typing import Any, BinaryIO, get_args

import h5py
import numpy as np

from landscape.errors import InputError, StoreError
from landscape.results import KINDS, Result

FORMAT = "landscape"
"""The root attribute `format` of every file of this package."""

ASIDE = ".landscape-"
"""How the names of unfinished files begin."""

SIGNATURE = b"\x89HDF\r\n\x1a\n"
"""How HDF5 files begin."""


def save(path: str | Path, result: Result, *, overwrite: bool = False) -> None:
    """Write a result to an HDF5 file, all of it or nothing.

    Args:
        path: the file; its folder must exist. A link is followed.
        result: an instance of one of `results.KINDS`.
        overwrite: replace a file of this name.

    Raises:
        StoreError: the file exists, it cannot be written, or the result holds what the format cannot.
    """
    path = Path(path)
    with writing(path):
        refuse_taken(path, overwrite=overwrite, signature=SIGNATURE)
        write_result(path, result)


def load(path: str | Path) -> Result:
    """Read a result.

    Args:
        path: a file that `save` wrote.

    Returns:
        The result, of the class that the file's `kind` names.

    Raises:
        StoreError: the file is missing, damaged, somebody else's, or of a newer version.
    """
    return read_result(Path(path))[0]


def is_result(path: str | Path) -> bool:
    """Say whether a file is a result of this package, of whatever kind and version.

    Args:
        path: any path.

    Returns:
        True if it is a readable HDF5 file whose `format` is this package's.
    """
    try:
        with _opened(Path(path)) as root:
            return bool(_attribute(root, "format") == FORMAT)
    except StoreError:
        return False


@contextmanager
def writing(path: Path) -> Generator[None, None, None]:
    """Turn an OSError inside the block into a StoreError that says which file, why, and what to do."""
    try:
        yield
    except OSError as error:
        cause = os.strerror(error.errno) if error.errno else str(error)
        remedy = "free some space" if error.errno in {errno.ENOSPC, errno.EDQUOT} else "check its folder"
        raise StoreError(f"{path} cannot be written: {cause}; {remedy}, or choose another --out") from error


def refuse_taken(path: Path, *, overwrite: bool, signature: bytes | None = None) -> None:
    """Raise StoreError if a file must not be written here.

    Args:
        path: the file.
        overwrite: a file that is there may be replaced, if it is of the kind that is to be written.
        signature: how files of that kind begin, b"" for text; None does not look.

    Raises:
        StoreError: there is a file and no leave to replace it, a file of another kind (a slip of --out must not cost
            a checkpoint), or something that is not a file.
    """
    if not path.exists():
        return
    if not overwrite:
        raise StoreError(f"{path} exists: pass --overwrite to replace it, or choose another --out")
    if not path.is_file():  # root's rename would even replace a device
        raise StoreError(f"{path} is not a file: choose another --out")
    if signature is None or not path.stat().st_size:
        return
    with open(path, "rb") as file:
        head = file.read(512)
    if not head.startswith(signature) or (not signature and b"\0" in head):
        raise StoreError(f"{path} is a file of another kind and is kept: choose another --out, or remove it")


def write_aside(path: Path, fill: Callable[[BinaryIO], object], *, aside: Path | None = None) -> None:
    """Write a file, all of it or nothing; what was there is replaced. A link is followed.

    Args:
        path: the file.
        fill: writes the content to the binary file that it is given.
        aside: where the unfinished file lies, on the file system of `path`; None is beside it.

    Raises:
        StoreError: there is something that is not a file.
        OSError: what the system says.
    """
    refuse_taken(path, overwrite=True)
    path = Path(os.path.realpath(path))
    unfinished = (aside or path.parent) / f"{ASIDE}{secrets.token_hex(8)}.tmp"
    try:
        with open(unfinished, "x+b") as file:
            fill(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def write_result(path: Path, result: Result, *, unit: str | None = None, aside: Path | None = None) -> None:
    """Write a result by `write_aside`, with the unit of a run that it is of, if it is of one."""
    write_aside(path, lambda file: _fill(file, result, unit), aside=aside)


def read_result(path: Path) -> tuple[Result, str | None]:
    """Read a result and the unit that `write_result` was given; errors are those of `load`."""
    with _opened(path) as root:
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
                values[item.name] = json.loads(_scalar(root, item.name, str, where))
            elif item.metadata["axes"] is None:
                values[item.name] = _scalar(root, item.name, item.type, where)
            else:
                values[item.name] = _array(root[item.name], tuple[str, ...] in (item.type, *get_args(item.type)), where)
        unit = json.loads(root.attrs["journal_unit"]) if "journal_unit" in root.attrs else None
    try:
        return kind(**values), unit
    except InputError as error:
        raise StoreError(f"{path}: {error}; compute the file again") from error


def to_json(value: Any, name: str) -> str:
    """Return a value as JSON text, NumPy's numbers and arrays as plain ones and paths as strings."""
    try:
        return json.dumps(value, default=_jsonable)
    except (TypeError, ValueError) as error:
        raise StoreError(f"{name} cannot be stored as JSON: {error}") from None


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network file systems cannot sync a folder: they have no firmer promise than the rename.
        if error.errno not in {errno.EINVAL, errno.ENOTSUP}:
            raise
    finally:
        os.close(descriptor)


def _fill(file: BinaryIO, result: Result, unit: str | None) -> None:
    # HDF5 1.8's layout has checksums on its metadata; in the older default a flipped bit can bring a reader down.
    with h5py.File(file, "w", libver=("v108", "v108")) as root:
        root.attrs["format"] = FORMAT
        root.attrs["kind"] = result.kind
        root.attrs["version"] = result.version
        if unit is not None:
            root.attrs["journal_unit"] = json.dumps(unit)  # JSON, as a name may hold what HDF5 text cannot
        for item in fields(result):
            value = getattr(result, item.name)
            if item.name == "provenance":
                _fill_provenance(root, value)
            elif item.metadata["axes"] is None:
                root.attrs[item.name] = _plain(value, item.name)
            elif value is not None:
                dataset = _dataset(root, item.name, value)
                dataset.attrs["unit"] = item.metadata["unit"]
                dataset.attrs["description"] = item.metadata["doc"]
                for i, axis in enumerate(item.metadata["axes"]):
                    dataset.dims[i].label = axis


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
        # What an attribute cannot hold (a list, None, an integer beyond 64 bits) stands in the JSON text alone.
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


@contextmanager
def _opened(path: Path) -> Generator[h5py.File, None, None]:
    try:
        with open(path, "rb") as file:
            if file.read(len(SIGNATURE)) != SIGNATURE:
                raise StoreError(f"{path} is not an HDF5 file: results are, and end in .h5")
            with h5py.File(file, "r") as root:
                yield root
    except FileNotFoundError:
        raise StoreError(f"there is no file {path}") from None
    except (PermissionError, IsADirectoryError, NotADirectoryError) as error:
        raise StoreError(f"{path} cannot be read: {error.strerror}") from None
    except (OSError, RuntimeError, KeyError, ValueError, TypeError) as error:  # what h5py raises on damaged files
        raise StoreError(f"{path} is damaged ({' '.join(str(error).split()):.150}): compute it again") from error


def _known_kind(path: Path, root: h5py.File) -> type[Result]:
    if _attribute(root, "format") != FORMAT:
        if "xcoordinates" in root or "train_loss" in root:
            raise StoreError(f"{path} is a surface of tomgoldstein/loss-landscape, not a result of landscape")
        raise StoreError(f"{path} is an HDF5 file of another program, not a result of landscape")
    name, version = _attribute(root, "kind"), _attribute(root, "version")
    if not isinstance(name, str) or not isinstance(version, np.integer):
        raise StoreError(f"{path} does not say of which kind and version it is: compute it again")
    if name not in KINDS:
        raise StoreError(f"{path} holds a {name}, this landscape reads {', '.join(KINDS)}: upgrade")
    if version > KINDS[name].version:
        known = KINDS[name].version
        raise StoreError(f"{path} holds {name} version {version}, this landscape reads up to {known}: upgrade")
    return KINDS[name]


def _attribute(root: h5py.File, name: str) -> Any:
    value = root.attrs.get(name)
    return value if np.ndim(value) == 0 else None


def _scalar(root: h5py.File, name: str, kind: Any, where: str) -> Any:
    value = _attribute(root, name)
    value = value.item() if isinstance(value, np.generic) else value
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        raise StoreError(f"{where} must be of type {kind.__name__}, got {value!r:.60}: compute the file again")
    return value


def _array(dataset: Any, words: bool, where: str) -> Any:
    if not isinstance(dataset, h5py.Dataset):
        raise StoreError(f"{where} must be a dataset, not a group: compute the file again")
    if words and h5py.check_string_dtype(dataset.dtype) and dataset.ndim == 1:
        return tuple(str(word) for word in dataset.asstr()[...])
    if words or dataset.dtype.kind not in "biufc":
        expected = "a list of strings" if words else "an array of numbers"
        raise StoreError(f"{where} must be {expected}, got {dataset.dtype} {dataset.shape}: compute it again")
    return dataset[()]
