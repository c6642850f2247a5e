"""The first steps of every analysis of a checkpoint: join the ranks, load the objective, print what was loaded."""

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from landscape.autodiff import costs, distributed
from landscape.autodiff.differentiable import differentiable_attention
from landscape.autodiff.threads import settle, tell_idle
from landscape.autodiff.trees import Tree
from landscape.cli import dry
from landscape.cli.console import Console
from landscape.errors import InputError
from landscape.objective.draws import draw_samples
from landscape.objective.loading import HELD_OUT, load_objective
from landscape.objective.objective import Objective
from landscape.objective.runs import MAGIC
from landscape.results import written


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
    dry_run: bool = False,
    samples: int | None = None,
    **loading: Any,
) -> Generator[tuple[Objective, Console], None, None]:
    """Join the ranks, load a checkpoint and print its loss and accuracy; leave the ranks at the end of the block.

    Args:
        ckpt: the checkpoint.
        per_class: short for the partition "class".
        partition: as given on the command line, or None.
        default: the partition if none is given.
        quiet: print only errors.
        as_json: print only one JSON document.
        threads: number of threads of this process; None for the environment's setting, or else the fastest number.
        dry_run: estimate and print the costs of the block instead of running it to its end.
        samples: draw this number of samples of each part, with weights; None uses all.
        loading: the options of `options.LOADING`.

    Yields:
        The objective, and a console that speaks on the main rank only.

    Raises:
        InputError: options that are unknown or contradict each other, or a checkpoint that does not fit.
    """
    if per_class and partition not in (None, "class"):
        raise InputError(f"--per-class and --partition {partition} contradict each other: leave one out")
    distributed.start()
    before = torch.get_num_threads()
    try:
        chosen = "class" if per_class else partition or default
        objective = load_objective(ckpt, partition=chosen, **loading)
        distributed.refuse_disagreement(objective.source)
        batch = objective.example(0)
        on_host = objective.device.type == "cpu"
        settle(lambda: _pass(objective, *batch), threads, measure=on_host)
        if on_host and distributed.world() == 1:
            tell_idle(len(objective.partition))
        console = Console(quiet=quiet or not distributed.is_main(), json=as_json)

        def used() -> Objective:
            seed = loading.get("data_seed") or 0
            return objective if samples is None else draw_samples(objective, samples, seed=seed)

        if dry_run:
            with costs.asking() as plans:
                yield used(), console
            dry.show(console, costs.measured(plans, ranks=distributed.speedup()))
            return
        with distributed.together():
            introduce(console, objective)  # the same pass gives the uncertainty, in proportion to which some are drawn
        drawn = used()
        if samples is not None:
            weighted = drawn.draws is not None and bool(drawn.draws.factors.max() > 1)
            how = "in proportion to their uncertainty" if weighted else "alike, as their uncertainty varies little"
            console.note(told_draws(drawn.partition.names, drawn.counts, drawn.population, how))
        yield drawn, console
    finally:
        torch.set_num_threads(before)  # a program or a notebook that calls the command may have chosen them
        distributed.stop()


def told_draws(parts: Sequence[str], used: np.ndarray, population: np.ndarray, how: str) -> str:
    """Say how many samples are used to represent all, and which parts' samples were drawn.

    Args:
        parts: names of the parts.
        used: samples that are used, (P,).
        population: samples that there are, (P,).
        how: how samples were drawn.

    Returns:
        A sentence.
    """
    drawn = [f"{part} ({n:,.0f} of {of:,.0f})" for part, n, of in zip(parts, used, population, strict=True) if n < of]
    if not drawn:
        return f"all {population.sum():,.0f} samples are used: no part has more than were asked for"
    which = "each part" if 1 < len(parts) == len(drawn) else written.few(drawn)
    return (
        f"{used.sum():,.0f} of {population.sum():,.0f} samples are used. Drawn {how}: {which}; errors over samples are "
        "there those of the draw"
    )


@torch.no_grad()
def _pass(objective: Objective, inputs: Tree, targets: Tree) -> None:
    with differentiable_attention():
        objective.losses(objective.theta, inputs, targets)


def introduce(console: Console, objective: Objective) -> None:
    """Print what was loaded with its loss and accuracy, so that a wrongly loaded model is noticed at once.

    Args:
        console: the console to print to.
        objective: the loaded objective.
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
    if HELD_OUT in source and samples.split == "train":
        console.note("data: without the samples that the run held out for validation")
    for note in samples.notes:
        console.note(f"data: {note}")
    numbers = [] if accuracy is None else [f"accuracy {100 * accuracy:.2f} %"]
    numbers += [f"{name} {value:.4g}" for name, value in found.whole.items()]
    console.note(", ".join([*numbers, f"mean loss {loss:.4f} ({source['loss']})"]))


def result_path(out: str | None, ckpt: str, command: str) -> Path:
    """Return the path of a result: as requested, or in the folder of the checkpoint.

    Args:
        out: --out, or None.
        ckpt: the checkpoint; or a folder or a glob for several, and then the result has the name of the command.
        command: name of the analysis, as in last.hessian.h5 or hessian.h5.

    Returns:
        The path.
    """
    path = Path(ckpt)
    if out:
        return Path(out)
    if path.is_dir():
        return path / f"{command}.h5"
    if not path.is_file() and MAGIC.search(ckpt):
        first = next(i for i, part in enumerate(path.parts) if MAGIC.search(part))
        return Path(*path.parts[:first]) / f"{command}.h5"
    return path.with_suffix(f".{command}.h5")


def _tuple(values: Sequence[float]) -> str:
    return ",".join(f"{v:g}" for v in values)
