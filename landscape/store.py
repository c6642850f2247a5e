"""Results in HDF5 files, and the journal that keeps the finished units of an unfinished run.

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
import hashlib
import json
import os
import secrets
import socket
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import fields
from pathlib import Path
from typing import Any, BinaryIO, Self

import filelock
import h5py
import numpy as np

from landscape.errors import InputError, StoreError
from landscape.results import KINDS, Spectrum, concatenate

FORMAT = "landscape"
"""The root attribute `format` of every file of this package."""

_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_ASIDE = ".landscape-"  # how the names of unfinished files begin
_UNITS = "unit-*.h5"


def save(path: str | Path, result: Spectrum, *, overwrite: bool = False) -> None:
    """Write a result to an HDF5 file, all of it or nothing.

    Args:
        path: the file; its folder must exist. A link is followed.
        result: an instance of one of `results.KINDS`.
        overwrite: replace a file of this name.

    Raises:
        StoreError: the file exists, it cannot be written, or the result holds what the format cannot.
    """
    path = Path(path)
    with _writing(path):
        if not overwrite:
            _refuse_existing(path)
        _write(path, lambda file: _fill(file, result))


def load(path: str | Path) -> Spectrum:
    """Read a result.

    Args:
        path: a file that `save` wrote.

    Returns:
        The result, of the class that the file's `kind` names.

    Raises:
        StoreError: the file is missing, damaged, somebody else's, or of a newer version.
    """
    return _load(Path(path))[0]


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


class Journal:
    """The finished units of a run whose result is not complete: a folder OUT.partial beside the file OUT.

    It holds `run.json`, the fingerprint of the run, and one result file for each finished unit. It begins with
    `open`; a `with` block lets go of the folder at its end and leaves it for the next attempt; `finish` turns it
    into OUT.
    """

    def __init__(self, out: Path, lock: filelock.BaseFileLock | None) -> None:
        self.out = out
        self.folder = _folder(out)
        self._lock = lock  # None on a rank that is not the owner, and after `close`
        self._replaces = False

    @classmethod
    def open(
        cls, out: str | Path, fingerprint: Mapping[str, Any], *, overwrite: bool = False, owner: bool = True
    ) -> "Journal":
        """Begin a run, or continue it if its journal was begun with the same fingerprint.

        What could keep OUT from being written is found out here, before anything is computed. A journal that was
        begun with `overwrite` remembers this leave: to continue it, `overwrite` is left out.

        Args:
            out: the file that the result will go to.
            fingerprint: everything that changes the numbers, as JSON can hold it; not device or batch size. A key
                that is a Python name is quoted in errors as an option: "negative_tol" is --negative-tol.
            overwrite: begin anew, whatever the journal holds, and replace OUT when the new result is complete.
            owner: this process holds the folder against others. Of several ranks one is the owner and opens
                first; the others join with `owner=False`, where `overwrite` has no effect.

        Returns:
            The open journal.

        Raises:
            StoreError: OUT exists or cannot be written, another process works on it, or the journal was begun
                with other options.
        """
        path = Path(out)
        if not path.name or path.is_dir():
            raise StoreError(f"{out} is a folder, not a result file: name one, as in --out {path / 'result.h5'}")
        now = json.loads(_json(fingerprint, "the fingerprint of the run"))
        with _writing(path):
            path = path.resolve() if path.is_symlink() else path
            if not owner:
                journal = cls(path, None)
                journal._join(now)
                return journal
            _folder(path).mkdir(exist_ok=True)
            journal = cls(path, _locked(_folder(path)))
            try:
                journal._begin(now, overwrite=overwrite)
            except BaseException:
                journal.close()
                raise
            return journal

    def _begin(self, fingerprint: dict[str, Any], *, overwrite: bool) -> None:
        begun = _read_run(self.folder) if self._unit_files() and not overwrite else None
        self._replaces = overwrite or (begun is not None and begun["replaces"])
        if not self._replaces:
            _refuse_existing(self.out)
        _refuse_other(self.out)
        if begun is not None:
            _compare(self.folder, begun["fingerprint"], fingerprint)
        else:
            self._clear(_UNITS)
            text = json.dumps({"replaces": overwrite, "fingerprint": fingerprint}, indent=1)
            _write(self.folder / "run.json", lambda file: file.write(text.encode()))
        self._clear(f"{_ASIDE}*")
        (self.folder / "owner").write_text(f"process {os.getpid()} on {socket.gethostname()}", encoding="utf-8")

    def _join(self, fingerprint: dict[str, Any]) -> None:
        if not (self.folder / "run.json").exists():
            raise StoreError(f"{self.folder} was not begun by the first process: do all processes share the folder?")
        _compare(self.folder, _read_run(self.folder)["fingerprint"], fingerprint)

    def done(self) -> set[str]:
        """Name the finished units.

        Returns:
            The units whose files can be read to their end; a damaged file counts as none.
        """
        finished = set()
        for path in self._unit_files():
            with suppress(StoreError):
                finished.add(_load(path)[1])
        return {unit for unit in finished if unit is not None}

    def has(self, unit: str) -> bool:
        """Say whether there is a file for a unit, without reading it.

        Args:
            unit: any string.

        Returns:
            True if the unit was written.
        """
        return self._path(unit).exists()

    def write(self, unit: str, result: Spectrum) -> None:
        """Keep the result of a finished unit.

        Args:
            unit: any string that tells the unit from the others, with slashes if need be.
            result: what the unit adds to the whole.

        Raises:
            StoreError: it cannot be written.
        """
        path = self._path(unit)
        with _writing(path):
            _write(path, lambda file: _fill(file, result, unit=unit))

    def read(self, unit: str) -> Spectrum:
        """Read the result of a finished unit.

        Args:
            unit: the string that it was written under.

        Returns:
            The result that was written.

        Raises:
            StoreError: the unit is not finished, or its file cannot be read.
        """
        if not self.has(unit):
            raise StoreError(f"{self.folder} does not hold {unit!r}, which is not finished: repeat the command")
        return _load(self._path(unit))[0]

    def merge(self, units: Sequence[str]) -> Spectrum:
        """Join the results of finished units.

        Args:
            units: at least one finished unit, in the order that their parts shall have.

        Returns:
            One result with the parts of all.

        Raises:
            StoreError: a unit is not finished, or its file cannot be read.
            InputError: the results do not fit together.
        """
        return concatenate([self.read(unit) for unit in units])

    def finish(self, result: Spectrum) -> None:
        """Write the whole result to OUT, then remove the journal; a rank that is not the owner only closes.

        Args:
            result: the complete result.

        Raises:
            StoreError: it cannot be written; the journal is kept.
        """
        if self._lock is not None:
            with _writing(self.out):
                if self.out.exists() and not self._replaces:
                    raise StoreError(f"{self.out} appeared during the run: move it away and repeat the command")
                _write(self.out, lambda file: _fill(file, result), aside=self.folder)
            with suppress(OSError):
                self._clear(_UNITS)
        self.close()

    def close(self) -> None:
        """Let go of the folder; one without a finished unit is removed."""
        if self._lock is None:
            return
        with suppress(OSError):  # nothing of value is at stake: what cannot be removed is left lying
            self._clear("owner")
            if not self._unit_files():
                for pattern in ("run.json", f"{_ASIDE}*", "lock"):
                    self._clear(pattern)
                self.folder.rmdir()
        self._lock.release()
        self._lock = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _path(self, unit: str) -> Path:
        # Names of classes hold slashes or differ in case only: a digest is a safe name on every file system.
        digest = hashlib.sha256(unit.encode("utf-8", "surrogatepass")).hexdigest()
        return self.folder / _UNITS.replace("*", digest[:32])

    def _unit_files(self) -> list[Path]:
        return sorted(self.folder.glob(_UNITS))

    def _clear(self, pattern: str) -> None:
        for path in self.folder.glob(pattern):
            path.unlink(missing_ok=True)


def _folder(out: Path) -> Path:
    return out.with_name(f"{out.name}.partial")


def _locked(folder: Path) -> filelock.BaseFileLock:
    lock = filelock.FileLock(folder / "lock", timeout=0)
    try:
        lock.acquire()
    except filelock.Timeout:
        owner = folder / "owner"
        who = owner.read_text(encoding="utf-8") if owner.exists() else "another process"
        raise StoreError(f"{folder} is in use by {who}: wait until it ends, or choose another --out") from None
    return lock


def _read_run(folder: Path) -> dict[str, Any]:
    path = folder / "run.json"
    try:
        run = json.loads(path.read_text(encoding="utf-8"))
        return {"replaces": bool(run["replaces"]), "fingerprint": dict(run["fingerprint"])}
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        raise StoreError(f"{path} is damaged: pass --overwrite to begin anew, or choose another --out") from None


def _compare(folder: Path, begun: dict[str, Any], now: dict[str, Any]) -> None:
    for key in begun | now:
        # As text, so that nan is equal to itself.
        if key not in begun or key not in now or json.dumps(begun[key]) != json.dumps(now[key]):
            raise StoreError(
                f"{folder} was begun {_option(begun, key)}, now {_option(now, key)}: "
                f"repeat the options, or --overwrite, or another --out"
            )


def _option(fingerprint: dict[str, Any], key: str) -> str:
    name = f"--{key.replace('_', '-')}" if key.isidentifier() else key
    if key not in fingerprint:
        return f"without {name}"
    value = fingerprint[key]
    return f"with {name} {value if isinstance(value, str) else json.dumps(value):.80}"


def _refuse_existing(path: Path) -> None:
    if path.exists():
        raise StoreError(f"{path} exists: pass --overwrite to replace it, or choose another --out")


def _refuse_other(path: Path) -> None:
    if path.exists() and not path.is_file():  # root's rename would even replace a device
        raise StoreError(f"{path} is not a file: choose another --out")


@contextmanager
def _writing(path: Path) -> Generator[None, None, None]:
    try:
        yield
    except OSError as error:
        cause = os.strerror(error.errno) if error.errno else str(error)
        remedy = "free some space" if error.errno in {errno.ENOSPC, errno.EDQUOT} else "check its folder"
        raise StoreError(f"{path} cannot be written: {cause}; {remedy}, or choose another --out") from error


def _write(path: Path, fill: Callable[[BinaryIO], object], *, aside: Path | None = None) -> None:
    _refuse_other(path)
    path = Path(os.path.realpath(path))
    unfinished = (aside or path.parent) / f"{_ASIDE}{secrets.token_hex(8)}.tmp"
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


def _fill(file: BinaryIO, result: Spectrum, *, unit: str | None = None) -> None:
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
    root.attrs["provenance"] = _json(provenance, "provenance")
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


def _json(value: Any, name: str) -> str:
    try:
        return json.dumps(value, default=_jsonable)
    except (TypeError, ValueError) as error:
        raise StoreError(f"{name} cannot be stored as JSON: {error}") from None


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
            if file.read(len(_SIGNATURE)) != _SIGNATURE:
                raise StoreError(f"{path} is not an HDF5 file: results are, and end in .h5")
            with h5py.File(file, "r") as root:
                yield root
    except FileNotFoundError:
        raise StoreError(f"there is no file {path}") from None
    except (PermissionError, IsADirectoryError, NotADirectoryError) as error:
        raise StoreError(f"{path} cannot be read: {error.strerror}") from None
    except (OSError, RuntimeError, KeyError, ValueError, TypeError) as error:  # what h5py raises on damaged files
        raise StoreError(f"{path} is damaged ({' '.join(str(error).split()):.150}): compute it again") from error


def _load(path: Path) -> tuple[Spectrum, str | None]:
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
                values[item.name] = _array(root[item.name], item.type == tuple[str, ...], where)
        unit = json.loads(root.attrs["journal_unit"]) if "journal_unit" in root.attrs else None
    try:
        return kind(**values), unit
    except InputError as error:
        raise StoreError(f"{path}: {error}; compute the file again") from error


def _known_kind(path: Path, root: h5py.File) -> type[Spectrum]:
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
