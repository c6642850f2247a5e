"""`landscape train` and `landscape demo`: what the entry points of this package add to the command line."""

import csv
import os
import platform
import secrets
import shlex
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from torch import nn

from landscape import checkpoints, datasets, losses, models
from landscape.cli.console import Console
from landscape.datasets import Samples
from landscape.errors import InputError, StoreError
from trainers import loop
from trainers.loop import History


@click.group(no_args_is_help=False)  # else the one line of its error would be the whole help
def train() -> None:
    """Train a network and write a checkpoint that every analysis reads without further options."""


@train.command()
@click.option("--dataset", required=True, metavar="NAME", help="digits-lt, cifar10, ... or package.module:callable.")
@click.option("--data-root", metavar="DIR", help="Folder of the data; digits-lt needs none.")
@click.option("--imbalance", type=float, metavar="R", help="Largest over smallest class: makes the long tail.")
@click.option("--imbalance-type", default="exp", show_default=True, help="exp or step.")
@click.option("--data-seed", default=0, show_default=True, help="Of the long tail.")
@click.option("--normalize", metavar="TEXT", help="imagenet, none, or m,m,m/s,s,s.  [default: the data set's own]")
@click.option("--model", default="small-resnet", show_default=True, help="resnet32, ... or package.module:callable.")
@click.option("--epochs", default=200, show_default=True, help="Passes over the training set.")
@click.option("--batch-size", default=64, show_default=True, help="Samples of one step, at most.")
@click.option("--lr", default=0.1, show_default=True, help="Learning rate after the warm-up; falls along a cosine.")
@click.option("--warmup-epochs", default=1, show_default=True, help="Over which the learning rate rises to --lr.")
@click.option("--momentum", default=0.9, show_default=True, help="Of the gradient.")
@click.option("--nesterov", is_flag=True, help="Look ahead along the momentum.")
@click.option("--weight-decay", default=5e-4, show_default=True, help="Of all parameters.")
@click.option("--seed", default=0, show_default=True, help="Of the first weights and the order of samples.")
@click.option("--device", help="cpu, cuda, cuda:1.  [default: a GPU where there is one]")
@click.option("-o", "--out", required=True, metavar="DIR", type=click.Path(path_type=Path), help="Folder of the run.")
@click.option("--overwrite", is_flag=True, help="Replace the checkpoint of an earlier run.")
@click.option("-q", "--quiet", is_flag=True, help="Print errors only.")
def ce(
    *,
    dataset: str,
    data_root: str | None,
    imbalance: float | None,
    imbalance_type: str,
    data_seed: int,
    normalize: str | None,
    model: str,
    device: str | None,
    out: Path,
    overwrite: bool,
    quiet: bool,
    **recipe: Any,
) -> None:
    """Train with plain cross-entropy; write last.pt and history.csv into a folder.

    landscape train ce --dataset digits-lt -o runs/ce
    """
    target = _claimed(out, overwrite)
    train_samples, test_samples = (
        datasets.load(
            dataset,
            root=data_root,
            split=split,
            imbalance=imbalance,
            imbalance_type=imbalance_type,
            seed=data_seed,
            normalize=normalize,
        )
        for split in ("train", "test")
    )
    network, in_channels = _network(model, train_samples, recipe["seed"])
    console = Console(quiet=quiet)
    counts = train_samples.class_counts
    console.note(
        f"{model}, {sum(p.numel() for p in network.parameters()):,} parameters, on {train_samples.name}, "
        f"{len(train_samples):,} samples of {len(counts)} classes with {counts.max()} to {counts.min()} each"
    )
    with console.progress() as progress:
        history = loop.train(network, train_samples, test_samples, device=device, progress=progress, **recipe)
    _, correct = loop.evaluate(network, train_samples, losses.cross_entropy)
    train_accuracy, test_accuracy = float(correct.sum() / len(train_samples)), float(history.test_accuracy[-1])

    _write_history(out / "history.csv", history, train_samples.class_names)
    meta = {
        "model": model,
        "n_classes": len(counts),
        "in_channels": in_channels,
        "cosine": False,
        **_data(train_samples),
        "method": "ce",
        "loss": "ce",
        "epoch": recipe["epochs"],
        "seed": recipe["seed"],
        "options": recipe,
        "device": str(next(network.parameters()).device),
        "train_accuracy": train_accuracy,
        "test_accuracy": test_accuracy,
        "versions": _versions(),
    }
    checkpoints.write(target, network.state_dict(), meta)
    worst = int(np.nanargmin(history.test_accuracy_per_class[-1]))
    console.say(
        f"accuracy {100 * train_accuracy:.2f} % train, {100 * test_accuracy:.2f} % test, of the test classes lowest in "
        f"{train_samples.class_names[worst]}: {100 * history.test_accuracy_per_class[-1, worst]:.2f} %"
    )
    console.say(f"checkpoint: {target}\nanalysis: landscape hessian --ckpt {shlex.quote(str(target))} --per-class")


@click.command()
@click.option("-o", "--out", default="demo", show_default=True, metavar="DIR", help="Folder for everything it makes.")
@click.option("--seed", default=0, show_default=True, help="Of the training and of the probes.")
@click.option("--epochs", default=40, show_default=True, help="Of the training.")
@click.option("--steps", default=40, show_default=True, help="Lanczos steps of the analysis.")
def demo(out: str, seed: int, epochs: int, steps: int) -> None:
    """Train on a small data set that comes with the package, analyse, draw: the commands are shown as they run.

    What is in the way of its own files is replaced; all else in the folder stays.
    """
    checkpoint, result, figure = (shlex.quote(str(Path(out) / name)) for name in ("ce/last.pt", "ce.h5", "ce.png"))
    run = shlex.quote(str(Path(out) / "ce"))
    console = Console()
    for line in (
        f"train ce --dataset digits-lt --epochs {epochs} --batch-size 32 --seed {seed} --out {run} --overwrite",
        f"hessian --ckpt {checkpoint} --per-class --steps {steps} --seed {seed} --out {result} --overwrite",
        f"plot {result} --out {figure}",
        f"compare {result}",
    ):
        console.say(f"$ landscape {line}")
        done = subprocess.run([sys.executable, "-m", "landscape", *shlex.split(line)], check=False)
        if done.returncode:  # the command has said why
            click.get_current_context().exit(done.returncode)
        console.say("")
    console.say(f"result: {result}\nfigure: {figure}\ncheckpoint: {checkpoint}")


def _claimed(out: Path, overwrite: bool) -> Path:
    """Make the folder of a run and return where its checkpoint will be; better an error now than after hours."""
    target = out / "last.pt"
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--out {out} cannot be the folder of a run: {error.strerror}") from error
    if target.exists() and not overwrite:
        raise InputError(f"{target} exists: pass --overwrite to replace it, or choose another --out")
    return target


def _network(name: str, samples: Samples, seed: int) -> tuple[nn.Module, int | None]:
    """Build the model for the data, and say how many channels the images have; None if they are no images."""
    inputs, _ = samples.batch(np.zeros(1, dtype=np.int64))
    in_channels = inputs.shape[1] if inputs.ndim == 4 else None
    if in_channels is None and ":" not in name:
        raise InputError(
            f"--model {name} is for images (channels, height, width), {samples.name} has inputs "
            f"{tuple(inputs.shape[1:])}: pass --model package.module:callable"
        )
    with loop.seeded(seed, torch.device("cpu")):  # on the CPU, so that every device begins with the same weights
        return models.build(name, len(samples.class_names), in_channels=in_channels), in_channels


def _data(samples: Samples) -> dict[str, Any]:
    """Describe the training data so that `datasets.load(**meta["dataset"])` gives the same."""
    known = samples.mean is not None and samples.std is not None
    return {
        "dataset": samples.options,
        "data_sha256": samples.fingerprint,
        "normalisation": [samples.mean, samples.std] if known else None,
        "class_counts": samples.class_counts.tolist(),
        "class_names": samples.class_names,
    }


def _versions() -> dict[str, str]:
    packages = {"landscape": "loss-landscape-per-class", "torch": "torch", "numpy": "numpy"}
    return {name: metadata.version(package) for name, package in packages.items()} | {
        "python": platform.python_version()
    }


def _write_history(path: Path, history: History, class_names: tuple[str, ...]) -> None:
    """Write a row for each epoch; the file appears when it is complete."""
    columns = {
        "epoch": range(1, len(history.train_loss) + 1),
        "learning_rate": history.learning_rate,
        "train_loss": history.train_loss,
        "train_accuracy": history.train_accuracy,
        "test_loss": history.test_loss,
        "test_accuracy": history.test_accuracy,
    }
    of_classes = [f"test_accuracy of {name}" for name in class_names]
    unfinished = path.with_name(f".landscape-{secrets.token_hex(8)}.tmp")
    try:
        with open(unfinished, "x", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow([*columns, *of_classes])
            writer.writerows(zip(*columns.values(), *history.test_accuracy_per_class.T, strict=True))
        os.replace(unfinished, path)
    except OSError as error:
        unfinished.unlink(missing_ok=True)
        raise StoreError(f"{path} cannot be written: {error.strerror}") from error
