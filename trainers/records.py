"""Records of a run besides its checkpoints: the history as a table, versions, scalars."""

import csv
import io
import platform
from collections.abc import Mapping, Sequence
from dataclasses import fields
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from landscape.callables import resolve
from landscape.data.datasets import Samples
from landscape.errors import InputError, arg
from landscape.results import History


def columns() -> list[str]:
    """List the fields of a history with a row for each epoch."""
    return [item.name for item in fields(History) if (item.metadata["axes"] or ("",))[0] == History.along]


def table(rows: Mapping[str, Sequence[Any]], class_names: Sequence[str]) -> str:
    """Return a history as CSV: a row for each epoch, a column for each class's test accuracy.

    Args:
        rows: for each column, its value after each epoch.
        class_names: of the test samples, (C,).

    Returns:
        The text.
    """
    text = io.StringIO()
    single = [name for name, values in rows.items() if np.ndim(values[0]) == 0]
    single.sort(key=lambda name: name != "epoch")
    accuracies = np.array(rows["test_accuracy_per_class"])
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*single, *(f"test_accuracy of {name}" for name in class_names)])
    writer.writerows(zip(*(rows[name] for name in single), *accuracies.T, strict=True))
    return text.getvalue()


def blank(class_names: Sequence[str], epochs: int) -> History:
    """Return a history of zeros, whose file takes as long to write as that of a run.

    Args:
        class_names: of the training samples, (C,).
        epochs: rows.

    Returns:
        The history.
    """
    lengths = {"part": len(class_names), "epoch": epochs}
    shapes = {item.name: item.metadata["axes"] for item in fields(History) if item.metadata["axes"]}
    arrays: dict[str, Any] = {name: np.zeros([lengths[axis] for axis in axes]) for name, axes in shapes.items()}
    return History(**arrays | {"parts": tuple(class_names)}, method="", provenance={})


def versions() -> dict[str, str]:
    """Return the versions of the packages that affect the numbers."""
    return dict(_versions())


@cache
def _versions() -> Mapping[str, str]:
    packages = {"landscape": "loss-landscape-per-class", "torch": "torch", "numpy": "numpy"}
    return {name: _version(package) for name, package in packages.items()} | {"python": platform.python_version()}


_version = cache(metadata.version)  # which reads files, and every epoch asks for it


def state_of(model: nn.Module) -> dict[str, Tensor]:
    """Return a copy of a model's state_dict on the CPU."""
    return {name: t.detach().cpu().clone() for name, t in model.state_dict().items()}


def monitor(
    model: nn.Module,
    samples: Samples,
    optimizer: torch.optim.Optimizer,
    *,
    out: Path | None,
    done: int,
    of_epoch: int,
    batch_size: int,
) -> Any:
    """Return the monitor of every class during training, see `landscape.analyses.monitor`.

    The module is loaded by name, not imported: training does not depend on analyses.

    Args:
        model: the network in training.
        samples: the training data.
        optimizer: of the training.
        out: result file; None keeps the result in memory at first.
        done: number of finished steps.
        of_epoch: number of steps in an epoch.
        batch_size: of the training.

    Returns:
        A monitor.
    """
    made = resolve("landscape.analyses.monitor:of_training", "monitor")
    return made(model, samples, optimizer, out=out, start=done, of_epoch=of_epoch, batch_size=batch_size)


def tensorboard_writer() -> Any:
    """Return the class that writes scalars for TensorBoard.

    Raises:
        InputError: TensorBoard is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise InputError(
            f"{arg('tensorboard', True)} needs the package tensorboard: pip install tensorboard"
        ) from error
    return SummaryWriter
