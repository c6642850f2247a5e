"""The checkpoints of a run: which ones a word names, and the epoch and step of each.

A word is a file, a pattern, or the folder of a run. The epoch and the step are read from the checkpoint or, if it does
not contain them, from its name. The learning rate is read from the run's history, or from the state of the optimizer.
"""

import glob
import hashlib
import logging
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from os import PathLike, fspath
from pathlib import Path
from typing import Any, TypeAlias

from torch import Tensor

from landscape.data.items import described
from landscape.errors import InputError, StoreError, arg
from landscape.networks import checkpoint_folders, checkpoints
from landscape.results import History, series, store

log = logging.getLogger(__name__)

_LARGE = 1e9  # no momentum is

MAGIC = re.compile(r"[*?[]")
"""Characters that make a word a pattern."""

Word: TypeAlias = str | PathLike[str] | tuple[str | PathLike[str], float]
"""A file, a pattern or a folder; or a file and its epoch."""


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    """The known settings of the optimizer at a checkpoint."""

    rate: float  # the learning rate
    momentum: float = 0.0
    nesterov: bool = False
    dampening: float = 0.0
    is_sgd: bool = True  # the edge of others is one of a preconditioned matrix

    @property
    def edge(self) -> tuple[float, str]:
        """The largest lambda_max at which the optimizer is stable, and the rule; nan and "" if there is none."""
        if not self.is_sgd or math.isnan(self.rate):
            return math.nan, ""
        value = series.edge(self.rate, self.momentum, nesterov=self.nesterov, dampening=self.dampening)
        return value, "" if math.isnan(value) else series.edge_rule(self.momentum, nesterov=self.nesterov)


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A checkpoint and its position in the training; nan for unknown numbers."""

    path: Path
    epoch: float
    step: float
    optimizer: Optimizer | None


def stages(words: Word | Sequence[Word], *, ckpt_key: str | None = None, trust_pickle: bool = False) -> list[Stage]:
    """Find the checkpoints of a series, in the order of training.

    Args:
        words: one or several.
        ckpt_key: key of the weights in the files, as for `checkpoints.read`.
        trust_pickle: let the files run code, as for `checkpoints.read`.

    Returns:
        The checkpoints, each once, sorted by epoch if all epochs are known and distinct, else by step.

    Raises:
        InputError: nothing is found, a file is no checkpoint, or a position is unknown or occurs twice.
    """
    one = isinstance(words, str | PathLike) or _is_pair(words)
    listed: Any = [words] if one else words
    found = _listed(listed, ckpt_key, trust_pickle)
    for place in ("epoch", "step"):
        values = [getattr(stage, place) for stage in found]
        if not any(map(math.isnan, values)) and len(set(values)) == len(values):
            return sorted(found, key=lambda stage: float(getattr(stage, place)))
    raise InputError(f"{arg('checkpoints')}: {_disorder(found)}")


def _disorder(found: Sequence[Stage]) -> str:
    """Say why checkpoints have no order: one has no known position, or two have the same."""
    lost = next((s for s in found if math.isnan(s.epoch) and math.isnan(s.step)), None)
    if lost is not None:
        return (
            f"{lost.path} says neither its epoch nor its step, and so has no place in a series: name files as "
            "epoch-0010.pt or step-500.pt, or name the others by a pattern"
        )
    by = "step" if any(math.isnan(s.epoch) for s in found) else "epoch"
    places: dict[float, Path] = {}
    for stage in found:
        value = getattr(stage, by)
        if value in places:
            return f"{places[value]} and {stage.path} are both of {by} {value:.12g}: give one of them, or one run"
        places[value] = stage.path
    lost = next(s for s in found if math.isnan(getattr(s, by)))
    return f"{lost.path} does not say its {by}, and others do not say their epoch: name those that do by a pattern"


def is_single(word: str) -> bool:
    """Say whether a word names a single checkpoint, and is neither a pattern nor the folder of a run."""
    path = Path(word)
    return _is_one(path) if path.is_dir() else path.exists() or not MAGIC.search(word)


def checkpoint_list(text: str, *, ckpt_key: str | None = None, trust_pickle: bool = False) -> list[tuple[Path, float]]:
    """Find the checkpoints that one word names: a file, a pattern of files, or the folder of a run.

    The folder of a run means its snapshots or, if there are none, its `last.pt`; any other folder means all checkpoints
    in it, without states of optimizers. Copies are left out, such as that of the best epoch: they have the same weights
    and the same epoch, or no epoch. The epoch is read from the checkpoint, else from its name: the number after "epoch"
    or, with several files, the number at the end of the name.

    Args:
        text: --ckpt, such as 'runs/ce/last.pt', 'runs/ce/snapshots/*.pt' or 'runs/ce'.
        ckpt_key: key of the weights in the files, as for `checkpoints.read`.
        trust_pickle: let the files run code, as for `checkpoints.read`.

    Returns:
        At least one file with its epoch, nan if unknown; sorted by epoch, unknown ones last, then by name.

    Raises:
        InputError: nothing is found, or a file is no checkpoint.
    """
    found = [(stage.path, stage.epoch) for stage in _listed([text], ckpt_key, trust_pickle)]
    return sorted(found, key=lambda f: (math.isnan(f[1]), 0 if math.isnan(f[1]) else f[1]))


def path_of_training(text: str, *, ckpt_key: str | None = None, trust_pickle: bool = False) -> list[tuple[Path, float]]:
    """Find the checkpoints of a path, in the order of their epochs; arguments as for `checkpoint_list`.

    Returns:
        The files with their epochs; all are nan if no file has an epoch.

    Raises:
        InputError: only some have an epoch, so that the others have no position on the path.
    """
    listed = checkpoint_list(text, ckpt_key=ckpt_key, trust_pickle=trust_pickle)
    without = [path for path, epoch in listed if math.isnan(epoch)]
    if without and len(without) < len(listed):
        raise InputError(
            f"{without[0]} does not say of which epoch it is, and so has no place on a path: name the others by a "
            "pattern, as 'RUN/epoch-*.pt'"
        )
    return listed


def _listed(words: Iterable[Any], key: str | None, trust: bool) -> list[Stage]:
    """Read the checkpoints that words name, each once, without copies, in the natural order of their names."""
    given = {Path(word[0]): float(word[1]) for word in words if _is_pair(word)}
    paths = list(dict.fromkeys(path for word in words for path in _checkpoints(word)))
    if not paths:
        raise InputError("there is no checkpoint: give at least one file")
    order = {path: i for i, path in enumerate(paths)}
    found: list[Stage] = []
    known: dict[str, list[float]] = {}  # weights -> epochs of the files that have them
    history = cache(_history)
    for path in sorted(paths, key=lambda p: math.isnan(_epoch_in_name(p, alone=False))):  # a copy's name has no number
        file = checkpoints.read(path, key=key, trust_pickle=trust)
        stated = given.get(path, file.found.get("epoch"))
        epoch = _epoch_in_name(path, alone=len(paths) == 1) if stated is None else float(stated)
        others = known.setdefault(_digest(file.state), [])
        if others and (math.isnan(epoch) or epoch in others):
            log.info("%s is a copy of another checkpoint, and left out", path)
            continue
        others.append(epoch)
        step = file.found.get("step", file.found.get("global_step", _step_in_name(path)))
        optimizer = _of_history(history, path, epoch) or of_groups(file.optimizer)
        found.append(Stage(path=path, epoch=epoch, step=float(step), optimizer=optimizer))
    return sorted(found, key=lambda stage: order[stage.path])


def _is_pair(word: Any) -> bool:
    """Say whether a word is a file with its epoch, not a list of two files."""
    return isinstance(word, tuple) and len(word) == 2 and isinstance(word[1], int | float)


def _digest(state: Mapping[str, Tensor]) -> str:
    found = hashlib.sha256()
    for name in sorted(state):
        found.update(name.encode() + described(state[name]))
    return found.hexdigest()


# Names ----------------------------------------------------------------------------------------------------------------


def _checkpoints(word: Any) -> list[Path]:
    """Return the files that a word names, in the natural order of their names: 9 before 10."""
    text = fspath(word[0] if _is_pair(word) else word)
    path = Path(text)
    if is_single(text):  # a name may hold brackets itself
        return [path]
    if path.is_dir():
        found = _in_folder(path / "snapshots")
        found = found or ([path / "last.pt"] if (path / "last.pt").is_file() else _in_folder(path))
        problem = f"is a folder without checkpoints: {arg('ckpt')} takes a file, a pattern, or the folder of a run"
    else:
        found = [p for p in map(Path, glob.glob(text, recursive=True)) if _is_file(p) or (p.is_dir() and _is_one(p))]
        problem = "matches no file: is the path right, seen from the current folder?"
    if not found:
        raise InputError(f"{text} {problem}")
    return sorted(found, key=lambda p: [(int(w), "") if w.isdecimal() else (-1, w) for w in _words(p)])


def _in_folder(folder: Path) -> list[Path]:
    """Return the checkpoints in a folder: files or, if there are none, folders that are checkpoints."""
    files = [p for p in checkpoint_folders.named(folder) if _is_file(p)]
    return files or [p for p in folder.glob("*") if p.name[0] != "." and p.is_dir() and _is_one(p)]


def _is_file(path: Path) -> bool:
    """Say whether a path is a file, or a link to nowhere, which is refused when it is read."""
    return path.is_file() or (path.is_symlink() and not path.exists())


def _is_one(folder: Path) -> bool:
    """Say whether a folder is one checkpoint: of Hugging Face, or in shards."""
    return checkpoint_folders.is_sharded(str(folder)) or bool(checkpoint_folders.weight_files(str(folder)))


def _words(path: Path) -> list[str]:
    return re.split(r"(\d+)", str(path))


def _epoch_in_name(path: Path, *, alone: bool) -> float:
    """Return the epoch in a file's name, or nan. "resnet-32.th" alone names no epoch."""
    stem = path.name.split(".")[0] if path.suffix == ".tar" else path.stem
    found = re.search(r"epoch[-_=. ]?(\d+)", stem, re.IGNORECASE)
    if not (found or alone or path.is_dir() or not math.isnan(_step_in_name(path))):
        found = re.search(r"(\d+)$", stem)
    return float(found[1]) if found else math.nan


def _step_in_name(path: Path) -> float:
    """Return the step in a name, or nan; Hugging Face's folders are called "checkpoint-500"."""
    word = r"(?:step|iter(?:ation)?|checkpoint)" if path.is_dir() else r"(?:step|iter(?:ation)?)"
    found = re.search(rf"{word}s?[-_=. ]?(\d+)", path.name, re.IGNORECASE)
    return float(found[1]) if found else math.nan


# Learning rates -------------------------------------------------------------------------------------------------------


def _history(folder: Path) -> History | None:
    """Return the history in the folder of a run; None if there is none that can be read."""
    try:
        return store.load(folder / "history.h5", History)
    except StoreError:
        return None


def _of_history(history: Any, path: Path, epoch: float) -> Optimizer | None:
    """Return the optimizer of the last step before a checkpoint that `landscape train` wrote, by the run's history."""
    found = history(path.parent) or history(path.parent.parent)
    if found is None or epoch not in found.epoch:
        return None
    rate = float(found.learning_rate[found.epoch == epoch][0])
    recipe = found.stated("recipe", of=dict) or {}
    options = {name: recipe[name] for name in ("momentum", "nesterov") if name in recipe}
    perturbed = {} if recipe.get("sharpness", "none") == "none" else {"rho": recipe.get("rho")}
    return of_groups([{"momentum": 0.0, **options, **perturbed, "lr": rate}])


def of_groups(groups: Sequence[Mapping[str, Any]]) -> Optimizer | None:
    """Return an optimizer's settings from its parameter groups; None if they have different learning rates.

    Args:
        groups: PyTorch's `param_groups`, or their plain numbers.

    Returns:
        The optimizer; None also if its momentum is no number. SGD is recognised by its `momentum`, which most others
        do not have, and by what only others have beside it: RMSprop's `alpha`, and radii of SAM and its family.
    """
    rates = {float(rate) for group in groups if isinstance(rate := group.get("lr"), int | float | Tensor)}
    if len(rates) != 1:
        return None
    first = groups[0]
    settings = {"momentum": first.get("momentum", 0.0), "dampening": first.get("dampening", 0.0)}
    if not all(isinstance(value, int | float) and abs(value) < _LARGE for value in settings.values()):
        return None
    return Optimizer(
        rate=rates.pop(),
        momentum=float(settings["momentum"]),
        nesterov=first.get("nesterov", False) is True,
        dampening=float(settings["dampening"]),
        is_sgd="momentum" in first and not {"alpha", "rho", "radius_scale"} & first.keys(),
    )
