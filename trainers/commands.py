"""`landscape train` and `landscape demo`: what the entry points of this package add to the command line."""

import shlex
import subprocess
import sys
from collections.abc import Callable
from dataclasses import Field, fields
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import click
import cloup
import numpy as np
import torch

from landscape.autodiff import costs, distributed
from landscape.autodiff.threads import cores, settle
from landscape.cli import dry
from landscape.cli.console import Console
from landscape.cli.options import DRY_RUN, THREADS, Choice, Decorator, command, listed, option
from landscape.cli.processes import PROCESSES
from landscape.errors import InputError, unknown
from landscape.results import History
from landscape.results.history import never_begun
from trainers import data, evaluation, folder, methods, recipes, rules, run
from trainers.methods import BENCHMARKS, METHODS
from trainers.recipes import Recipe
from trainers.variants import VARIANTS

F = TypeVar("F", bound=Callable[..., Any])


class _Numbers(click.ParamType[tuple[float, ...]]):
    """Numbers separated by commas."""

    name = "numbers"

    def __init__(self, kind: type[int] | type[float]) -> None:
        self._kind = kind

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float, ...]:
        try:
            return tuple(self._kind(word) for word in str(value).split(","))
        except ValueError:
            self.fail(f"{value!r} is not a list of numbers such as 160,180", param, ctx)


class _Folder(click.ParamType[Path]):
    """A folder with a name that is not empty: an unset shell variable would otherwise mean the current folder."""

    name = "folder"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        if not str(value).strip():
            self.fail("the name of the folder is empty: pass a name, or . for the current folder", param, ctx)
        return Path(value)


_TYPES: dict[Any, Any] = {
    tuple[int, ...] | None: _Numbers(int),
    tuple[float, float]: _Numbers(float),
    str | None: str,
    int | None: int,
    float | None: float,
    bool | None: bool,
}
_METAVARS = {int: "N", float: "X", _TYPES[tuple[int, ...] | None]: "N,N", _TYPES[tuple[float, float]]: "X,X"}
"""How the help writes values."""


def _recipe_options(command: F) -> F:
    """Add an option for each field of a recipe, under its heading; options that are not given are None."""
    headings: dict[str, list[Decorator[Any]]] = {}
    for item in fields(Recipe):
        if item.name in recipes.HEADINGS:
            headings[recipes.HEADINGS[item.name]] = under = []
        under.append(_recipe_option(item))
    for heading, under in reversed(headings.items()):
        command = cloup.option_group(heading, *under)(command)
    return command


def _recipe_option(item: Field[Any]) -> Decorator[Any]:
    name, kind = recipes.flag(item.name), _TYPES.get(item.type, item.type)
    choices, default = item.metadata["choices"], item.default
    shown = ",".join(map(str, default)) if isinstance(default, tuple) else str(default)
    shown = item.metadata["otherwise"] or ("" if kind is bool or default in {None, ""} else shown)
    if shown and any(item.name in schedule for schedule in BENCHMARKS.values()):
        shown = f"that of --preset, or {shown}"
    return option(
        f"{name}/--no-{name[2:]}" if kind is bool else name,
        default=None,
        type=None if kind is bool else Choice(choices, own=item.name in rules.OWN) if choices else kind,
        metavar=None if choices or kind is bool else _METAVARS.get(kind, "TEXT"),
        help=item.metadata["help"],
        show_default=shown or False,
    )


@command(
    "landscape train ce --dataset digits-lt -o runs/ce",
    "landscape train gsa-gkp --dataset cifar10 --data-root DIR --imbalance 100 -o runs/gsa-gkp",
)
@cloup.argument("method", required=False, help=f"A preset of loss, re-weighting, sharpness and GKP: {listed(METHODS)}.")
@cloup.option_group(
    "Recipe",
    option(
        "--preset",
        metavar="NAME",
        help=f"Use the schedule of this benchmark: {listed(BENCHMARKS)}.",
        show_default="that of the data set",
    ),
    option(
        "--as",
        "variant",
        type=Choice(tuple(VARIANTS)),
        help="Follow the paper to the letter, or its released code, or the paper that introduced METHOD.",
        show_default="the choices of docs/training.md",
    ),
    option(
        "--config",
        type=click.Path(path_type=Path),
        metavar="FILE.toml",
        help="Read options from this file. Options on the command line have priority.",
    ),
)
@_recipe_options
@cloup.option_group(
    "Run",
    option("-o", "--out", required=True, metavar="DIR", type=_Folder(), help="Write the run into this folder."),
    option(
        "--overwrite", is_flag=True, help="Replace an earlier run in the folder, after the first epoch of this one."
    ),
    option("--device", metavar="NAME", help="Train on cpu, cuda or cuda:1.", show_default="a GPU where there is one"),
    option("--threads", type=THREADS, metavar="N", help="Compute with N threads.", show_default="OMP_NUM_THREADS"),
    PROCESSES,
    option(
        "--workers",
        type=int,
        metavar="N",
        help="Read image files with N processes.",
        show_default="4, at most one a core",
    ),
    DRY_RUN,
    option("--tensorboard", is_flag=True, help="Also write scalars for TensorBoard."),
    option(
        "--monitor",
        is_flag=True,
        help="Measure the curvature of each class during the training: before the first epoch and after "
        "every twentieth. landscape plot monitor.h5 draws it.",
    ),
    option("-q", "--quiet", is_flag=True, help="Print errors only."),
)
def train(
    *,
    method: str | None,
    preset: str | None,
    variant: str | None,
    config: Path | None,
    out: Path,
    overwrite: bool,
    device: str | None,
    threads: int | None,
    workers: int | None,
    tensorboard: bool,
    monitor: bool,
    dry_run: bool,
    quiet: bool,
    **options: Any,
) -> None:
    """Train a network and write checkpoints that every analysis reads without further options.

    Options change single settings of METHOD. The schedule is that of the data set's benchmark, or of --preset. To
    continue an interrupted run, repeat the command.
    """
    given = {name: value for name, value in options.items() if value is not None}
    recipe = methods.compose(given, method=method, benchmark=preset, config=config, variant=variant)
    rules.refuse_idle(recipe, given)
    folder.refuse_place(out)
    if not (overwrite or dry_run) and not (out / "config.toml").exists():
        folder.refuse(out, recipe, overwrite=False)  # before the data are read, which may take long
    distributed.start()
    before = torch.get_num_threads()
    settle(lambda: None, threads, measure=False)
    try:
        console = Console(quiet=quiet or not distributed.is_main())
        recipe, loaded = data.load(recipe)
        begin = partial(
            run.Run,
            recipe,
            loaded,
            out,
            method=methods.label(recipe),
            device=device,
            workers=min(4, cores()) if workers is None else workers,
            overwrite=overwrite,
            tensorboard=tensorboard,
            monitor=monitor,
        )
        if dry_run:
            with costs.asking() as plans:
                begin()
            ranks = distributed.world()
            if distributed.is_main():  # each by its own clock would take another number of steps, for which all meet
                with distributed.apart():
                    dry.show(console, costs.measured(plans, ranks=ranks))
            distributed.barrier(patient=True)
            return
        this = begin()
        try:
            _introduce(console, this)
            with console.progress() as progress:
                this.train(progress)
        finally:
            this.close()
        if distributed.is_main():
            _conclude(console, this, this.history())
    finally:
        torch.set_num_threads(before)  # a program or a notebook that calls the command may have chosen them
        distributed.stop()


def _introduce(console: Console, this: run.Run) -> None:
    recipe, train_samples = this.recipe, this.trainer.train
    counts = train_samples.class_counts
    size = sum(p.numel() for p in this.trainer.model.parameters())
    console.note(
        f"{this.method}: {recipe.model}, {size:,} parameters, on {train_samples.name}, {len(train_samples):,} samples "
        f"of {len(counts)} classes with {counts.max()} to {counts.min()} each; {recipe.epochs} epochs, augmentation "
        f"{recipe.augment}, {this.trainer.device}"
    )
    for note in train_samples.notes:
        console.note(f"data: {note}")
    if this.resumed:
        done = this.trainer.epoch >= recipe.epochs
        rest = "it is complete, nothing is left to do" if done else "it goes on from there"
        console.note(f"{this.out} holds {this.trainer.epoch} epochs of this run: {rest}")
    if not this.features_known:
        console.note("the model has no linear layer at its end: the history is without feature quality")
    for sentence in never_begun(recipes.plain(recipe)):
        console.note(f"attention: {sentence}")


def _conclude(console: Console, this: run.Run, history: History) -> None:
    accuracy, *by_count = evaluation.by_frequency(history)
    shots = ", ".join(
        f"{name} {100 * value:.2f} %"
        for name, value in zip(evaluation.BY_COUNT.groups, by_count, strict=True)
        if not np.isnan(value)
    )
    console.say(f"test accuracy {100 * accuracy:.2f} %: {shots}")
    if this.recipe.grouped:
        sizes = np.bincount(history.group[-1].astype(int)).tolist()
        console.say(f"groups: {len(sizes)}, of {', '.join(map(str, sizes))} classes")
    for sentence in history.idle:
        console.say(f"attention: {sentence}")
    if (this.out / "monitor.h5").exists():
        console.say(f"monitor: landscape plot {shlex.quote(str(this.out / 'monitor.h5'))}")
    last = this.out / "last.pt"
    console.say(f"checkpoint: {last}\nanalysis: landscape hessian --ckpt {shlex.quote(str(last))} --per-class")


@command("landscape demo", "landscape demo --methods ce,sam --epochs 10 -o quick")
@cloup.option_group(
    "Demo",
    option("-o", "--out", default="demo", show_default=True, metavar="DIR", help="Write everything into this folder."),
    option(
        "--methods", "names", default="ce,sam,gsa-gkp", show_default=True, metavar="LIST", help="Compare these methods."
    ),
    option("--seed", default=0, show_default=True, metavar="N", help="Seed the training and the probes."),
    option("--epochs", default=40, show_default=True, metavar="N", help="Train for N epochs."),
    option("--steps", default=40, show_default=True, metavar="M", help="Take M Lanczos steps in the analysis."),
)
def demo(out: str, names: str, seed: int, epochs: int, steps: int) -> None:
    """Train by several methods on a small data set that comes with the package, then analyse, compare and draw.

    Each command is printed before it runs. Files of an earlier demo in the folder are replaced; all others stay.
    """
    chosen = methods_of(names)
    folder = {name: shlex.quote(str(Path(out) / name)) for name in chosen}
    lines = []
    for name, place in folder.items():
        lines += [
            f"train {name} --dataset digits-lt --epochs {epochs} --seed {seed} --out {place} --overwrite",
            f"hessian --ckpt {place}/last.pt --per-class --steps {steps} --seed {seed} --out {place}.h5 --overwrite",
            f"plot {place}.h5 --out {place}.png",
        ]
    lines.append("compare " + " ".join(f"{place}.h5" for place in folder.values()))
    console = Console()
    for line in lines:
        console.say(f"$ landscape {line}")
        done = subprocess.run([sys.executable, "-m", "landscape", *shlex.split(line)], check=False)
        if done.returncode:  # the command has printed the reason
            click.get_current_context().exit(done.returncode)
        console.say("")
    for name, place in folder.items():
        console.say(f"{name}: result {place}.h5, figure {place}.png, checkpoint {place}/last.pt")


def methods_of(text: str) -> list[str]:
    """Return the names of methods in a list with commas.

    Args:
        text: such as "ce,sam".

    Returns:
        The names, each once.

    Raises:
        InputError: there is no such method.
    """
    names = list(dict.fromkeys(word.strip() for word in text.split(",")))
    for name in names:
        if name not in METHODS:
            raise InputError(unknown(name, METHODS, "method", where=" for --methods"))
    return names
