"""The journal of an unfinished run: finished work is stored, so that a repeated run computes only the rest."""

import hashlib
import json
import os
import socket
from collections.abc import Mapping, Sequence
from contextlib import suppress
from math import isfinite
from pathlib import Path
from typing import Any, Self

import filelock
import numpy as np

from landscape.errors import StoreError, arg, said
from landscape.results import Result, disk, hdf5, store
from landscape.results.axes import concatenate

_UNITS = "unit-*.h5"
_WORK = "work-*.bin"


class Journal:
    """The finished units of a run with an incomplete result: a folder OUT.partial beside the file OUT.

    It contains `run.json`, the fingerprint of the run, and one result file for each finished unit. Unfinished units may
    have files that `work` names; they are removed when the unit is finished. `open` creates the folder; the end of a
    `with` block releases it and keeps it for the next attempt, and a KeyboardInterrupt without a message then
    advises it; `finish` replaces it by OUT.
    """

    def __init__(self, out: Path, lock: filelock.BaseFileLock | None) -> None:
        self.out = out
        self.folder = _folder(out)
        self._lock = lock  # None on ranks that do not own the folder, for a piece of the run, and after `close`
        self._replaces = False
        self._piece = ""

    @classmethod
    def open(
        cls,
        out: str | Path,
        fingerprint: Mapping[str, Any],
        *,
        overwrite: bool = False,
        replaces: bool = False,
        owner: bool = True,
    ) -> "Journal":
        """Begin a run, or continue it if its journal was begun with the same fingerprint.

        Problems that would prevent writing OUT are found here, before anything is computed. A journal that was begun
        with `overwrite` stores this permission: to continue it, leave `overwrite` out.

        Args:
            out: the file of the final result.
            fingerprint: everything that changes the numbers, as JSON values; not the device or the batch size. Errors
                name a key that is a Python name as an argument.
            overwrite: begin from the start, whatever the journal contains, and replace OUT when the new result is
                complete.
            replaces: replace OUT when the new result is complete, but continue with what the journal contains.
            owner: this process locks the folder. With several ranks, one is the owner and opens first; the others join
                with `owner=False`, for which `overwrite` has no effect.

        Returns:
            The open journal.

        Raises:
            StoreError: OUT exists or cannot be written, another process works on it, or the journal was begun
                with other options.
        """
        path = Path(out)
        now = json.loads(store.to_json(fingerprint, "the fingerprint of the run"))
        with disk.writing(path):
            _refuse_folder(path)
            path = Path(os.path.realpath(path)) if path.is_symlink() else path
            if not owner:
                journal = cls(path, None)
                journal._join(now)
                return journal
            _folder(path).mkdir(exist_ok=True)
            journal = cls(path, _locked(_folder(path)))
            try:
                journal._begin(now, overwrite=overwrite, replaces=replaces)
            except BaseException:
                journal.close()
                raise
            return journal

    @classmethod
    def refuse(cls, out: str | Path) -> None:
        """Refuse a file as `open` does with `overwrite`, without beginning a run.

        Args:
            out: as for `open`. A result that exists is not refused, because nothing is written.

        Raises:
            StoreError: OUT is of another kind or cannot be written.
        """
        path = Path(out)
        with disk.writing(path):
            _refuse_folder(path)
            disk.refuse_taken(path, overwrite=True, signature=hdf5.SIGNATURE)
            folder = Path(os.path.realpath(path)).parent
            os.stat(folder)
            if not os.access(folder, os.W_OK):
                raise StoreError(f"{path} cannot be written: its folder is read-only; choose another file")

    def within(self, piece: str) -> "Journal":
        """Return a journal of one piece of the run, such as a checkpoint of several, in the same folder.

        Args:
            piece: any string that is unique among the pieces.

        Returns:
            A journal with its own units. Its `finish` and `close` do nothing: the journal of the whole run does that.
        """
        journal = Journal(self.out, None)
        journal._piece = f"{_digest(self._piece + piece)[:16]}-"
        return journal

    def _begin(self, fingerprint: dict[str, Any], *, overwrite: bool, replaces: bool) -> None:
        begun = _read_run(self.folder) if self._unit_files() and not overwrite else None
        in_work = any(self.folder.glob(_WORK)) and (self.folder / "run.json").exists()
        if begun is None and in_work and not overwrite:
            begun = _read_run(self.folder)
            if json.dumps(begun["fingerprint"]) != json.dumps(fingerprint):
                begun = None  # nothing is finished, so another run may begin here
        self._replaces = overwrite or replaces or (begun is not None and begun["replaces"])
        disk.refuse_taken(self.out, overwrite=self._replaces, signature=hdf5.SIGNATURE)
        if begun is not None:
            _compare(self.folder, begun["fingerprint"], fingerprint)
        else:
            self._clear(_UNITS)
            self._clear(_WORK)
            text = json.dumps({"replaces": self._replaces, "fingerprint": fingerprint}, indent=1)
            disk.write_aside(self.folder / "run.json", lambda file: file.write(text.encode()))
        self._clear(f"{disk.ASIDE}*")
        (self.folder / "owner").write_text(f"process {os.getpid()} on {socket.gethostname()}", encoding="utf-8")

    def _join(self, fingerprint: dict[str, Any]) -> None:
        if not (self.folder / "run.json").exists():
            raise StoreError(f"{self.folder} was not begun by the first process: do all processes share the folder?")
        _compare(self.folder, _read_run(self.folder)["fingerprint"], fingerprint)

    def done(self) -> set[str]:
        """Name the finished units.

        Returns:
            The units with a complete file; damaged files are ignored.
        """
        finished = set()
        for path in self._unit_files():
            with suppress(StoreError):
                finished.add(store.read_result(path)[1])
        return {unit for unit in finished if unit is not None}

    def has(self, unit: str) -> bool:
        """Say whether there is a file for a unit, without reading it.

        Args:
            unit: any string.

        Returns:
            True if the unit was written.
        """
        return self._path(unit).exists()

    def write(self, unit: str, result: Result) -> None:
        """Store the result of a finished unit.

        Args:
            unit: any string that is unique among the units; it may contain slashes.
            result: the unit's contribution to the whole result.

        Raises:
            StoreError: it cannot be written.
        """
        path = self._path(unit)
        with disk.writing(path):
            store.write_result(path, result, unit=unit)
        with suppress(OSError):
            self.work(unit).unlink(missing_ok=True)

    def work(self, unit: str) -> Path:
        """Return the path of a file for intermediate values of a unit; `write` removes it.

        Args:
            unit: any string.

        Returns:
            The path; the file need not exist.
        """
        return self.folder / _WORK.replace("*", self._path(unit).stem.partition("-")[2])

    def in_work(self) -> bool:
        """Say whether an unfinished unit has stored intermediate values."""
        return any(self.folder.glob(_WORK))

    def advice(self) -> str:
        """Say how to go on after an interruption, or that nothing is kept; also by other pieces of the run."""
        again = f"repeat the command, without {arg('overwrite', True)}, to go on from there"
        return again if self._keeps() else "nothing is kept"

    def read(self, unit: str) -> Result:
        """Read the result of a finished unit.

        Args:
            unit: the string with which it was written.

        Returns:
            The result that was written.

        Raises:
            StoreError: the unit is not finished, or its file cannot be read.
        """
        if not self.has(unit):
            raise StoreError(f"{self.folder} does not hold {unit!r}, which is not finished: repeat the command")
        return store.read_result(self._path(unit))[0]

    def merge(self, units: Sequence[str]) -> Result:
        """Join the results of finished units.

        Args:
            units: at least one finished unit, in the order of the parts of the result.

        Returns:
            One result with the parts of all.

        Raises:
            StoreError: a unit is not finished, or its file cannot be read.
            InputError: the results do not fit together.
        """
        return concatenate([self.read(unit) for unit in units])

    def finish(self, result: Result) -> None:
        """Write the whole result to OUT, then remove the journal; a rank that does not own it only closes.

        Args:
            result: the complete result.

        Raises:
            StoreError: it cannot be written; the journal is kept.
        """
        if self._lock is not None:
            with disk.writing(self.out):
                if self.out.exists() and not self._replaces:
                    raise StoreError(f"{self.out} appeared during the run: move it away and repeat the command")
                store.write_result(self.out, result, aside=self.folder)
            with suppress(OSError):
                self._clear(_UNITS)
                self._clear(_WORK)
        self.close()

    def close(self) -> None:
        """Unlock the folder; remove it if it contains neither a finished nor an unfinished unit."""
        if self._lock is None:
            return
        with suppress(OSError):  # files that cannot be removed stay: nothing of value is lost
            self._clear("owner")
            if not self._unit_files() and not self.in_work():
                for pattern in ("run.json", f"{disk.ASIDE}*", "lock"):
                    self._clear(pattern)
                self.folder.rmdir()
        self._lock.release()
        self._lock = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if isinstance(error, KeyboardInterrupt) and not error.args and self._keeps():
            error.args = (f"interrupted: {self.advice()}",)
        self.close()

    def _keeps(self) -> bool:
        return any(self.folder.glob(_UNITS)) or self.in_work()

    def _path(self, unit: str) -> Path:
        # Class names may contain slashes or differ only in case: a digest is a safe name on every file system.
        return self.folder / _UNITS.replace("*", self._piece + _digest(unit)[:32])

    def _unit_files(self) -> list[Path]:
        return sorted(self.folder.glob(_UNITS.replace("*", f"{self._piece}*")))

    def _clear(self, pattern: str) -> None:
        for path in self.folder.glob(pattern):
            path.unlink(missing_ok=True)


def _digest(name: str) -> str:
    return hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()


def _refuse_folder(path: Path) -> None:
    if not path.name or path.is_dir():
        raise StoreError(f"{path} is a folder, not a result file: name one, as in {arg('out', path / 'result.h5')}")


def _folder(out: Path) -> Path:
    return out.with_name(f"{out.name}.partial")


def _locked(folder: Path) -> filelock.BaseFileLock:
    lock = filelock.FileLock(folder / "lock", timeout=0)
    try:
        lock.acquire()
    except filelock.Timeout:
        owner = folder / "owner"
        who = owner.read_text(encoding="utf-8") if owner.exists() else "another process"
        raise StoreError(f"{folder} is in use by {who}: wait until it ends, or choose another file") from None
    return lock


def _read_run(folder: Path) -> dict[str, Any]:
    path = folder / "run.json"
    try:
        run = disk.parse_json(path.read_text(encoding="utf-8"))
        return {"replaces": bool(run["replaces"]), "fingerprint": dict(run["fingerprint"])}
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        raise StoreError(
            f"{path} is damaged: pass {arg('overwrite', True)} to begin anew, or choose another file"
        ) from None


_FORMERLY = {"top": 10}
"""What earlier versions stored for an option that was left out, where None is stored now."""


def same(name: str, before: object, now: object) -> bool:
    """Say whether an entry or option of a run or a file has the value that it has now.

    Args:
        name: of the entry or option.
        before: its value in the run or file, as it was read from JSON.
        now: its value now, in the same form.

    Returns:
        Whether both are equal; also if the option is left out now, and the run or file has the number that earlier
        versions stored then.
    """
    if now is None and name in _FORMERLY and before == _FORMERLY[name]:
        return True
    return json.dumps(before) == json.dumps(now)  # as text, so that nan is equal to itself


def _compare(folder: Path, begun: dict[str, Any], now: dict[str, Any]) -> None:
    for key in begun | now:
        if key not in begun or key not in now or not same(key, begun[key], now[key]):
            raise StoreError(
                f"{folder} was begun {_option(begun, key)}, now {_option(now, key)}: "
                f"repeat that, or pass {arg('overwrite', True)}, or choose another file"
            )


def _option(fingerprint: dict[str, Any], key: str) -> str:
    if key not in fingerprint:
        return f"without {arg(key)}"
    value = fingerprint[key]
    if grid := spaced(value):
        numbers = grid.replace(":", ", ")
        return f"with {said(f'{key}=np.linspace({numbers})', arg(key, grid))}"
    return f"with {cut(arg(key, value) if key.isidentifier() else f'{key} {value}')}"


def spaced(value: object) -> str:
    """Write evenly spaced ascending numbers as options are written.

    Args:
        value: any value.

    Returns:
        "first:last:number"; an empty text if it is no list of at least three such numbers.
    """
    if not isinstance(value, list) or len(value) < 3 or not all(isinstance(x, float) and isfinite(x) for x in value):
        return ""
    low, high, n = value[0], value[-1], len(value)
    if low >= high or value != np.linspace(low, high, n).tolist():
        return ""
    return ":".join(str(x).removesuffix(".0") for x in (low, high, n))


def cut(text: str, most: int = 80) -> str:
    """Shorten a text for a message, between two of its items if it is a list.

    Args:
        text: of any length.
        most: number of letters that are kept.

    Returns:
        The text, or its beginning with " ..." after it.
    """
    return text if len(text) <= most else f"{text[:most].rpartition(',')[0] or text[:most]} ..."
