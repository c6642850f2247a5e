"""How every analysis of a checkpoint begins: its ranks, its objective, and the line that shows what was loaded."""

import glob
import hashlib
import logging
import math
import re
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from landscape.autodiff import distributed, trees
from landscape.autodiff.differentiable import differentiable_attention
from landscape.autodiff.threads import settle
from landscape.autodiff.trees import Tree
from landscape.cli.console import Console
from landscape.data.items import described
from landscape.errors import InputError
from landscape.networks import checkpoints
from landscape.networks.checkpoint_folders import SUFFIXES
from landscape.objective.loading import load_objective
from landscape.objective.objective import Objective

log = logging.getLogger(__name__)

_MAGIC = re.compile(r"[*?[]")


@contextmanager
def begin(
    *,
    ckpt: str,
    per_class: bool = False,
    partition: str | None = None,
    default: str = "all",
    quiet: bool = False,
    as_json: bool = False,
    threads: int | None = None,
    **loading: Any,
) -> Generator[tuple[Objective, Console], None, None]:
    """Join the ranks, load a checkpoint and say how well it does; the ranks are left at the end of the block.

    Args:
        ckpt: the checkpoint.
        per_class: short for the partition "class".
        partition: as given on the command line, or None.
        default: the partition where none is given.
        quiet: print errors only.
        as_json: print one JSON document only.
        threads: of this process; None for what the environment says, or else the fastest number.
        loading: the options of `options.LOADING`.

    Yields:
        The objective, and a console that speaks on the main rank only.

    Raises:
        InputError: options that are unknown or contradict each other, or a checkpoint that does not fit.
    """
    if per_class and partition not in (None, "class"):
        raise InputError(f"--per-class and --partition {partition} contradict each other: leave one out")
    distributed.start()
    try:
        chosen = "class" if per_class else partition or default
        objective = load_objective(ckpt, partition=chosen, **loading)
        distributed.refuse_disagreement(objective.source)
        batch = objective.example(0)
        settle(lambda: _pass(objective, *batch), threads, measure=objective.device.type == "cpu")
        console = Console(quiet=quiet or not distributed.is_main(), json=as_json)
        with distributed.together():
            introduce(console, objective)
        yield objective, console
    finally:
        distributed.stop()


@torch.no_grad()
def _pass(objective: Objective, inputs: Tree, targets: Tree) -> None:
    with differentiable_attention():
        objective.losses(objective.theta, trees.clone(inputs), targets)  # a model may overwrite what it is given


def introduce(console: Console, objective: Objective) -> None:
    """Say what was loaded and how well it does, so that a wrongly loaded model is seen at once.

    Args:
        console: where to.
        objective: what was loaded.
    """
    samples, source = objective.samples, objective.source
    with console.progress() as progress:
        found = objective.evaluate(progress)
    loss, accuracy = found.overall
    normalised = ""
    if samples.mean is not None and samples.std is not None:
        normalised = f", normalised {_tuple(samples.mean)} / {_tuple(samples.std)}"
    console.note(
        f"{source.get('model')} on {samples.name}, {samples.split} split, {int(found.counts.sum()):,} samples"
        f"{f' in {len(found.parts)} parts' if len(found.parts) > 1 else ''}{normalised}"
    )
    for note in source.get("checkpoint_notes", ()):
        console.note(f"weights: {note}")
    for note in getattr(samples, "notes", ()):
        console.note(f"data: {note}")
    numbers = [] if accuracy is None else [f"accuracy {100 * accuracy:.2f} %"]
    numbers += [f"{name} {value:.4g}" for name, value in found.whole.items()]
    console.note(", ".join([*numbers, f"mean loss {loss:.4f} ({source['loss']})"]))


def checkpoint_list(text: str, *, ckpt_key: str | None = None, trust_pickle: bool = False) -> list[tuple[Path, float]]:
    """Find the checkpoints that one word names: a file, a glob of files, or the folder of a run.

    Of a run's folder its snapshots are meant or, where it kept none, `last.pt`; of any other folder all checkpoints in
    it. A copy of another one, as of the best epoch, is left out: the same weights of the same epoch, or of none. An
    epoch is what the checkpoint says of itself, or else the number in its name: the one after "epoch", or, of several
    files, the one at the name's end.

    Args:
        text: --ckpt, as 'runs/ce/last.pt', 'runs/ce/snapshots/*.pt' or 'runs/ce'.
        ckpt_key: where in the files the weights are, as for `checkpoints.read`.
        trust_pickle: let the files run code, as for `checkpoints.read`.

    Returns:
        At least one file with its epoch, nan where that is unknown; by epoch, unknown ones last, then by name.

    Raises:
        InputError: nothing is found, or a file is no checkpoint.
    """
    paths = _checkpoints(text)
    listed: list[tuple[Path, float]] = []
    known: dict[str, list[float]] = {}  # weights -> epochs of the files that have them
    for path in sorted(paths, key=lambda p: math.isnan(_epoch_in_name(p, alone=False))):  # a copy's name has no number
        file = checkpoints.read(path, key=ckpt_key, trust_pickle=trust_pickle)
        stated = file.found.get("epoch")
        epoch = _epoch_in_name(path, alone=len(paths) == 1) if stated is None else float(stated)
        others = known.setdefault(_digest(file.state), [])
        if others and (math.isnan(epoch) or epoch in others):
            log.info("%s is a copy of another checkpoint, and left out", path)
            continue
        others.append(epoch)
        listed.append((path, epoch))
    order = {path: i for i, path in enumerate(paths)}
    return sorted(listed, key=lambda f: (math.isnan(f[1]), 0 if math.isnan(f[1]) else f[1], order[f[0]]))


def path_of_training(text: str, *, ckpt_key: str | None = None, trust_pickle: bool = False) -> list[tuple[Path, float]]:
    """Find the checkpoints of a path, in the order of their epochs; arguments as for `checkpoint_list`.

    Returns:
        The files with their epochs; all are nan where no file tells one.

    Raises:
        InputError: some have an epoch and others do not, which have no place on the path.
    """
    listed = checkpoint_list(text, ckpt_key=ckpt_key, trust_pickle=trust_pickle)
    without = [path for path, epoch in listed if math.isnan(epoch)]
    if without and len(without) < len(listed):
        raise InputError(
            f"{without[0]} does not say of which epoch it is, and so has no place on a path: name the others by a "
            "pattern, as 'RUN/epoch-*.pt'"
        )
    return listed


def _digest(state: Mapping[str, Tensor]) -> str:
    found = hashlib.sha256()
    for name in sorted(state):
        found.update(name.encode() + described(state[name]))
    return found.hexdigest()


def _checkpoints(text: str) -> list[Path]:
    """Return the files that are meant, in the natural order of their names: 9 before 10."""
    path = Path(text)
    if path.is_dir():
        found = _in_folder(path / "snapshots")
        found = found or ([path / "last.pt"] if (path / "last.pt").is_file() else _in_folder(path))
        problem = "is a folder without checkpoints: --ckpt takes a file, a glob, or the folder of a run"
    elif path.is_file() or not _MAGIC.search(text):  # a name may hold brackets itself
        return [path]
    else:
        found = [p for p in map(Path, glob.glob(text, recursive=True)) if p.is_file()]
        problem = "matches no file: is the path right, seen from the current folder?"
    if not found:
        raise InputError(f"--ckpt {text} {problem}")
    return sorted(found, key=lambda p: [(int(w), "") if w.isdecimal() else (-1, w) for w in _words(p)])


def _in_folder(folder: Path) -> list[Path]:
    return [p for p in folder.glob("*") if p.suffix.lower() in SUFFIXES and p.is_file() and p.name[0] != "."]


def _words(path: Path) -> list[str]:
    return re.split(r"(\d+)", str(path))


def _epoch_in_name(path: Path, *, alone: bool) -> float:
    """Return the epoch in a file's name, or nan. In the name of a single file, "resnet-32.th", the number is none."""
    stem = path.name.split(".")[0] if path.suffix == ".tar" else path.stem
    found = re.search(r"epoch[-_=. ]?(\d+)", stem, re.IGNORECASE) or (None if alone else re.search(r"(\d+)$", stem))
    return float(found[1]) if found else math.nan


def result_path(out: str | None, ckpt: str, command: str) -> Path:
    """Return where a result goes: as asked for, or beside the checkpoint.

    Args:
        out: --out, or None.
        ckpt: the checkpoint; a folder or a glob for several, beside which the result is called after the command.
        command: which analysis, as in last.hessian.h5 or hessian.h5.

    Returns:
        The path.
    """
    path = Path(ckpt)
    if out:
        return Path(out)
    if path.is_dir():
        return path / f"{command}.h5"
    if not path.is_file() and _MAGIC.search(ckpt):
        first = next(i for i, part in enumerate(path.parts) if _MAGIC.search(part))
        return Path(*path.parts[:first]) / f"{command}.h5"
    return path.with_suffix(f".{command}.h5")


def _tuple(values: Sequence[float]) -> str:
    return ",".join(f"{v:g}" for v in values)
