"""A run's folder: which files in it are the run's, who may use it, and when it is refused.

The file `state.pt` decides what the folder holds: an epoch counts when it says so, and a folder without it holds no run
that could go on. It is therefore written last and removed first.
"""

import re
import shutil
import time
from pathlib import Path

import filelock

from landscape import checkpoints, store
from landscape.errors import StoreError
from trainers import methods
from trainers.methods import Recipe

OWN = ("state.pt", "config.toml", "last.pt", "best.pt", "snapshots", "bank", "history.csv", "history.h5", "tensorboard")
PLACES = ("data_root", "train_list", "test_list")
"""Fields of a recipe that say where the data lie; what they are is told by their fingerprint."""

_STALE = 600  # seconds; no file takes so long to write


def refuse(out: Path, recipe: Recipe, fingerprint: str | None = None, *, overwrite: bool) -> None:
    """Raise StoreError if a folder cannot take this run: another run's, a finished one's, or no folder.

    Args:
        out: the folder.
        recipe: of the run.
        fingerprint: of its data; None where they have not been read yet.
        overwrite: what is there may be replaced.

    Raises:
        StoreError: it cannot.
    """
    if overwrite:
        return
    state, config, last = out / "state.pt", out / "config.toml", out / "last.pt"
    remedy = "pass --overwrite to replace it, or choose another --out"
    done, theirs, data = 0, None, fingerprint
    if state.exists():
        meta = checkpoints.read(state).meta
        if not {"epoch", "recipe", "data_sha256"} <= meta.keys():
            raise StoreError(f"{state} is not the state of a run: {remedy}")
        done, theirs, data = meta["epoch"], meta["recipe"], meta["data_sha256"]
    elif config.exists():  # a run that was killed in its first epoch, or one whose state somebody has removed
        theirs = methods.plain(methods.compose({}, config=config))
        epochs = checkpoints.read(last).meta.get("epoch", 0) if last.exists() else 0
        if epochs > 1:
            raise StoreError(f"{out} holds {epochs} epochs of a run without its state.pt, it cannot go on: {remedy}")
    elif last.exists():
        raise StoreError(f"{last} exists: {remedy}")
    ours = methods.plain(recipe)
    difference = theirs and methods.first_difference(*({**r, **dict.fromkeys(PLACES)} for r in (theirs, ours)))
    if difference:
        name, before, now = difference
        raise StoreError(
            f"{out} holds a run with {methods.flag(name)} {before}, now it is {now}: repeat the options, or pass "
            "--overwrite, or choose another --out"
        )
    if fingerprint and data != fingerprint:
        raise StoreError(f"{out} holds a run on other data than those that are there now: {remedy}")
    if done >= recipe.epochs:
        raise StoreError(f"{out} holds this run, complete: pass --overwrite to repeat it, or choose another --out")


def take(out: Path) -> filelock.BaseFileLock:
    """Make a folder, keep other processes out of it, and remove files that a killed one left unfinished.

    Args:
        out: the folder.

    Returns:
        The lock, to be released.

    Raises:
        StoreError: the folder is in use, or it cannot be made.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(out / ".lock", timeout=0)
        lock.acquire()
        for path in (p for place in (".", "snapshots", "bank") for p in (out / place).glob(f"{store.ASIDE}*.tmp")):
            if time.time() - path.stat().st_mtime > _STALE:  # younger ones may be of an analysis that writes here
                path.unlink(missing_ok=True)
    except filelock.Timeout:
        raise StoreError(f"{out} is in use by another process: wait until it ends, or choose another --out") from None
    except OSError as error:
        raise StoreError(f"--out {out} cannot be the folder of a run: {error.strerror}") from error
    return lock


def clear(out: Path) -> None:
    """Remove what an earlier run left, and nothing else.

    Args:
        out: the folder.

    Raises:
        StoreError: something cannot be removed.
    """
    with store.writing(out):
        for name in OWN:
            path = out / name
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)
    keep_groups(out, None)


def keep_groups(out: Path, name: str | None) -> None:
    """Remove the files of all groupings but one.

    Args:
        out: the folder.
        name: of the file that stays, such as groups-0020.pt; None removes all.

    Raises:
        StoreError: a file cannot be removed.
    """
    with store.writing(out):
        for path in out.glob("groups-*.pt"):
            if path.name != name and re.fullmatch(r"groups-\d{4,}\.pt", path.name):
                path.unlink(missing_ok=True)
