"""How every analysis of a checkpoint begins: its ranks, its objective, and the line that shows what was loaded."""

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from landscape import distributed
from landscape.cli.console import Console
from landscape.errors import InputError
from landscape.loading import load_objective
from landscape.objective import Objective


@contextmanager
def begin(
    *,
    ckpt: str,
    per_class: bool = False,
    partition: str | None = None,
    default: str = "all",
    quiet: bool = False,
    as_json: bool = False,
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
        console = Console(quiet=quiet or not distributed.is_main(), json=as_json)
        introduce(console, objective)
        yield objective, console
    finally:
        distributed.stop()


def introduce(console: Console, objective: Objective) -> None:
    """Say what was loaded and how well it does, so that a wrongly loaded model is seen at once.

    Args:
        console: where to.
        objective: what was loaded.
    """
    samples, source, found = objective.samples, objective.source, objective.evaluation
    loss, accuracy = found.overall
    normalised = ""
    if samples.mean is not None and samples.std is not None:
        normalised = f", normalised {_tuple(samples.mean)} / {_tuple(samples.std)}"
    console.note(
        f"{source.get('model')} on {samples.name}, {samples.split} split, {int(found.counts.sum()):,} samples in "
        f"{len(found.parts)} parts{normalised}"
    )
    console.note(f"accuracy {100 * accuracy:.2f} %, mean loss {loss:.4f} ({source['loss']})")


def result_path(out: str | None, ckpt: str, command: str) -> Path:
    """Return where a result goes: as asked for, or beside the checkpoint.

    Args:
        out: --out, or None.
        ckpt: the checkpoint.
        command: which analysis, as in last.hessian.h5.

    Returns:
        The path.
    """
    return Path(out) if out else Path(ckpt).with_suffix(f".{command}.h5")


def _tuple(values: Sequence[float]) -> str:
    return ",".join(f"{v:g}" for v in values)
