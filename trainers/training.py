"""`train`: the function behind `landscape train`."""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from landscape.callables import checked
from landscape.data import datasets
from landscape.data.datasets import Samples
from landscape.errors import InputError
from landscape.results import History
from trainers import data, methods, rules, run
from trainers.recipes import Recipe


@dataclass(frozen=True, kw_only=True, eq=False)
class Trained:
    """The result of a training."""

    model: nn.Module  # the given network, or the one that was built
    history: History
    folder: Path | None  # of the run; None if nothing was stored


@checked
def train(
    model: nn.Module | str | None,
    samples: Samples | tuple[Any, Any] | None,
    recipe: Recipe | str,
    *,
    out: str | Path | None = None,
    device: str | torch.device | None = None,
    workers: int = 0,
    overwrite: bool = False,
    progress: run.Progress | None = None,
) -> Trained:
    """Train a network by a recipe.

        train(None, None, recipe("gsa-gkp", dataset="digits-lt"), out="runs/gsa-gkp")
        train(my_network, (my_training_set, my_test_set), "sam")

    Args:
        model: a network, which is trained in place; a name of a network of this package, or package.module:callable;
            None means that of the recipe.
        samples: training and test set, each `Samples` or an argument of `datasets.from_dataset` (a data set, or a pair
            of tensors); None means the data set of the recipe. Test samples are only evaluated.
        recipe: from `methods.recipe`, or the name of a method.
        out: folder of the run, with the same files as from `landscape train`; an interrupted run continues from it, and
            a finished one is returned. None stores nothing.
        device: "cpu", "cuda", "cuda:1" or a torch.device; None means a GPU if there is one.
        workers: number of processes that read images from files.
        overwrite: replace a run in the folder.
        progress: called with (finished epochs, number of epochs, a line of text).

    Returns:
        The trained network, the history, and the folder.

    Raises:
        InputError: recipe, model and data do not fit together.
        DataError: the data cannot be used.
        StoreError: the folder holds another run, is in use, or cannot be written.
        NumericalError: the loss is not finite.
    """
    recipe = methods.recipe(recipe) if isinstance(recipe, str) else recipe
    own = model if isinstance(model, nn.Module) else None
    if isinstance(model, str):
        recipe = methods.changed(recipe, model=model)
    elif own is not None:
        recipe = methods.changed(recipe, model=f"{type(own).__module__}:{type(own).__qualname__}")
    rules.check(recipe)  # its fields may have been replaced since it was made
    if samples is None:
        if recipe.dataset == methods.OWN:
            raise InputError("there is no data: pass samples, or a recipe with a dataset")
        recipe, loaded = data.load(recipe)
    else:
        recipe, loaded = data.fitted(recipe, *_both(samples))
    with tempfile.TemporaryDirectory() as temporary:
        this = run.Run(
            recipe,
            loaded,
            Path(temporary) / "run" if out is None else Path(out),
            method=methods.label(recipe),
            model=own,
            device=device,
            workers=workers,
            overwrite=overwrite,
        )
        try:
            this.train(progress)
            return Trained(model=this.trainer.model, history=this.history(), folder=None if out is None else Path(out))
        finally:
            this.close()


def _both(samples: Samples | tuple[Any, Any]) -> tuple[Samples, Samples]:
    """Return training and test samples; the classes of both are named and counted by the first."""
    if isinstance(samples, Samples) or len(samples) != 2:
        raise InputError("samples must be a pair of the training and the test set; test samples are only evaluated")
    first, second = samples
    whole = first if isinstance(first, Samples) else datasets.from_dataset(first, name="training set")
    if isinstance(second, Samples):
        return whole, second
    names, counts = whole.class_names, whole.class_counts
    return whole, datasets.from_dataset(second, name="test set", split="test", class_names=names, class_counts=counts)
