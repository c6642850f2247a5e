"""The folder of a run: the files that belong to the run, its lock, and the rules for refusing a folder.

The file `state.pt` determines the content of the folder: it states which epochs count, and without it a run cannot
continue. It is therefore written last and removed first.
"""

import contextlib
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import filelock

from landscape.errors import InputError, StoreError, arg
from landscape.networks import checkpoints
from landscape.results import disk
from trainers import methods, recipes
from trainers.recipes import Recipe

OWN = (
    "state.pt", "last.pt", "best.pt", "snapshots", "bank", "history.csv", "history.h5", "monitor.h5", "tensorboard",
    "config.toml",
)  # fmt: skip
"""The files of a run, in the order of removal; the last one identifies the run to which the others belong."""

_EPOCH = r"epoch-\d{4,}\.pt"
_INSIDE = {"snapshots": _EPOCH, "bank": _EPOCH, "tensorboard": r"events\.out\.tfevents\..+"}
_GROUPS = r"groups-\d{4,}\.pt"
PLACES = ("data_root", "train_list", "test_list")
"""Fields of a recipe with paths of the data; the fingerprint identifies the data themselves."""


def refuse_place(out: Path) -> None:
    """Refuse a path at which there can be no folder, before anything is computed.

    Args:
        out: the folder, which may not exist yet.

    Raises:
        StoreError: there is a file in its way, or no file can have this name.
    """
    path, reason = out.absolute(), ""
    try:
        while not _is_there(path):
            path = path.parent
        if not stat.S_ISDIR(path.stat().st_mode):
            reason = f"{path} is a file"
    except (OSError, ValueError) as error:  # links in a loop, or to nowhere; NUL, or half a surrogate pair
        reason = getattr(error, "strerror", None) or "no file has such a name"
    if reason:
        raise StoreError(f"{arg('out', out)} cannot be the folder of a run: {reason}")


def _is_there(path: Path) -> bool:
    try:
        path.lstat()
    except FileNotFoundError:
        return False
    return True


def refuse(out: Path, recipe: Recipe, fingerprint: str | None = None, *, overwrite: bool) -> None:
    """Raise StoreError if a folder cannot be used for this run, because it has another run or is no folder.

    Args:
        out: the folder.
        recipe: of the run.
        fingerprint: of its data; None if they have not been read yet.
        overwrite: existing files may be replaced.

    Raises:
        StoreError: the folder cannot be used.
    """
    refuse_place(out)
    if overwrite:
        return
    state, config = out / "state.pt", out / "config.toml"
    remedy = f"pass {arg('overwrite', True)} to replace it, or choose another folder"
    theirs, data = None, fingerprint
    if state.exists():
        meta = _meta(state, remedy)
        if not {"epoch", "recipe", "data_sha256"} <= meta.keys():
            raise StoreError(f"{state} is not the state of a run: {remedy}")
        theirs, data = meta["recipe"], meta["data_sha256"]
    else:
        theirs = _begun(out, remedy) if config.exists() else None
        for path in () if theirs else _taken(out):
            raise StoreError(f"{path} exists: {remedy}")
    unknown = [name for name in theirs or () if name not in Recipe.__dataclass_fields__]
    if unknown:
        raise StoreError(f"{out} holds a run of another version, with {arg(unknown[0])}, unknown here: {remedy}")
    if theirs:  # fields that an older version did not have had their default values
        theirs, ours = recipes.plain(Recipe()) | theirs, recipes.plain(recipe)
        if fingerprint is None:  # the data may still decide the fields that are None
            theirs = {name: value for name, value in theirs.items() if name in ours}
        both = ({**r, **dict.fromkeys(PLACES)} for r in (theirs, ours))
        difference = recipes.first_difference(*both)
        if difference:
            name, before, now = difference
            found, method, own = f"with {arg(name, before)}", methods.label(Recipe(**theirs)), methods.label(recipe)
            if method != own:  # users type its name, and not its components
                found, now = f"of {method}", own
            raise StoreError(
                f"{out} holds a run {found}, now it is {now}: repeat the options, or pass "
                f"{arg('overwrite', True)}, or choose another folder"
            )
    if fingerprint and data != fingerprint:
        raise StoreError(f"{out} holds a run on other data than those that are there now: {remedy}")


def _begun(out: Path, remedy: str) -> dict[str, Any]:
    """Return the recipe of a run that was killed in its first epoch; only the files of that run may be replaced."""
    config = out / "config.toml"
    try:
        recipe = recipes.plain(methods.compose({}, config=config))
    except InputError:
        recipe = {}
    if config.read_bytes() != recipes.to_toml(recipe).encode():
        raise StoreError(f"{config} exists, and no run has left it: {remedy}")
    for path in (p for name in ("last.pt", "best.pt") if (p := out / name).exists()):
        meta = _meta(path, remedy)
        if meta.get("options") != recipe:
            raise StoreError(f"{path} exists, and the run of {config} has not left it: {remedy}")
        if meta["epoch"] > 1:
            raise StoreError(
                f"{out} holds {meta['epoch']} epochs of a run without its state.pt, it cannot go on: {remedy}"
            )
    return recipe


def _taken(out: Path) -> Iterator[Path]:
    """List conflicting files: those with a run's names and, in its folders, all except files of killed processes."""
    for name in OWN:
        path = out / name
        unfinished = path.is_dir() and all(p.match(f"{disk.ASIDE}*.tmp") for p in path.iterdir())
        if (path.exists() or path.is_symlink()) and not unfinished:
            yield path
    yield from _matching(out, _GROUPS)


def _meta(path: Path, remedy: str) -> dict[str, Any]:
    try:
        return checkpoints.read(path).meta
    except InputError as error:
        raise StoreError(f"{error}; {remedy}") from error


class Hold:
    """A lock on a folder."""

    def __init__(self, out: Path) -> None:
        """Make the folder, lock it, and remove files that a killed process left unfinished.

        Args:
            out: the folder.

        Raises:
            StoreError: the folder is in use, or it cannot be made.
        """
        self._out = out
        self._made = [path for path in (out, *out.parents) if not path.exists()]
        try:
            out.mkdir(parents=True, exist_ok=True)
            self._lock = filelock.FileLock(out / ".lock", timeout=0)
            self._lock.acquire()
            for place in (out, out / "snapshots", out / "bank"):
                disk.clear_unfinished(place)
        except filelock.Timeout:
            raise StoreError(
                f"{out} is in use by another process: wait until it ends, or choose another folder"
            ) from None
        except OSError as error:
            raise StoreError(f"{arg('out', out)} cannot be the folder of a run: {error.strerror}") from error

    def release(self) -> None:
        """Unlock the folder; remove it if it was made for this run and is empty."""
        with contextlib.suppress(OSError):  # it may be gone, or have new files, which are kept
            if self._made and [path.name for path in self._out.iterdir()] == [".lock"]:
                (self._out / ".lock").unlink()
                for path in self._made:
                    path.rmdir()
        self._lock.release()


def clear(out: Path) -> None:
    """Remove the files of an earlier run by their names, so that no other files are removed.

    Args:
        out: the folder.

    Raises:
        StoreError: something cannot be removed.
    """
    with disk.writing(out):
        for name in OWN:
            path = out / name
            if name not in _INSIDE:
                path.unlink(missing_ok=True)
                continue
            for file in _matching(path, _INSIDE[name]):
                file.unlink(missing_ok=True)
            if path.is_dir() and not path.is_symlink() and not any(path.iterdir()):
                path.rmdir()
    keep_groups(out, None)


def keep_groups(out: Path, name: str | None) -> None:
    """Remove the files of all groupings but one.

    Args:
        out: the folder.
        name: of the file to keep, such as groups-0020.pt; None removes all.

    Raises:
        StoreError: a file cannot be removed.
    """
    with disk.writing(out):
        for path in _matching(out, _GROUPS):
            if path.name != name:
                path.unlink(missing_ok=True)


def _matching(place: Path, pattern: str) -> list[Path]:
    """List the files of a folder, if it exists, with names of a run's files."""
    return sorted(p for p in place.iterdir() if re.fullmatch(pattern, p.name)) if place.is_dir() else []
