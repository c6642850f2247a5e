"""Make an objective from a model and data in memory, as in a notebook."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from landscape.callables import checked
from landscape.data import loaders, taking
from landscape.data.samples import Samples
from landscape.objective.loading import DTYPES, DtypeName, counts_of, fitted, taken
from landscape.objective.objective import Loss, Objective
from landscape.objective.parts import Parts
from landscape.results.grouping import ENDS, FEW, MANY


@checked
def make_objective(
    model: nn.Module,
    data: Any,
    *,
    loss: str | Loss | None = None,
    task: str | None = None,
    parts: Parts = "all",
    target: str | int | None = None,
    split: str = "train",
    class_counts: Sequence[int] | np.ndarray | None = None,
    classes: str | Sequence[str | int] | None = None,
    params: str | None = None,
    device: str | torch.device | None = None,
    dtype: DtypeName | torch.dtype = "float32",
    batch_size: int | None = None,
    weight_decay: float = 0.0,
    logits_index: int | None = None,
    many: int = MANY,
    few: int = FEW,
    ends: int = ENDS,
) -> Objective:
    """Combine a model and data into an objective, for any task.

    The only requirement is that the loss is a function of (the model's output, the target) with one value per sample.
    The task determines everything else; it is inferred from the loss or the targets if possible. Inputs are tensors, or
    tuples or dicts of tensors: the entries of a dict become keyword arguments of the model, those of a tuple positional
    ones.

    Args:
        model: any network. It is copied; the caller's model is not changed.
        data: a DataLoader, of which the data set and collate_fn are used, without shuffling or dropping; a map-style
            data set of pairs (input, target) or of dicts; or a pair (inputs, targets) of tensors, or of tuples or dicts
            of tensors.
        loss: a function (the model's output, targets) -> (B,), `package.module:callable`, a name of
            `tasks.loss_names()`, or "model" for the loss that the model itself returns for each sample.
        task: a name of `tasks.names()`; None infers it.
        parts: "all"; for classes, "class", "head-tail", "many-medium-few" or a mapping of names to classes; for any
            samples, "quantiles:4" of the targets, "column:NAME" of the data set, a value for each sample, a function
            (input, target) -> name, or a `Partition`.
        target: entry of an item that is the target: a key of a dict, or a position in a tuple. None means the second
            entry of a pair, or one of "labels", "label", "targets", "target", "y".
        split: "train", or another name for data that are not the training set, such as "test".
        class_counts: (C,) training samples of each class. Groups by frequency and losses for long tails go by them;
            None means the data set's attribute `class_counts`, or else the counts of these data if they are the
            training set.
        classes: keep only these parts, by name or position.
        params: see `Objective.build`.
        device: see `Objective.build`.
        dtype: "float32" or "float64", or PyTorch's type of that name.
        batch_size: samples at a time; None means that of the DataLoader, or 128. It changes no result.
        weight_decay: see `Objective.build`.
        logits_index: see `Objective.build`.
        many: see `Objective.build`.
        few: see `Objective.build`.
        ends: see `Objective.build`.

    Returns:
        The objective.

    Raises:
        InputError: arguments do not fit together; the message names the cause and the remedy.
        DataError: the data cannot be used.
        NumericalError: the loss is not finite.
    """
    kind = DTYPES[dtype] if isinstance(dtype, str) else dtype
    counted = counts_of(data, class_counts)
    own = not isinstance(data, Samples)
    samples = taken(data, loss=loss, task=task, target=target, split=split, **counted) if own else data
    if own and not counted and not taking.declares_classes(data):
        samples, task = fitted(model, samples, loss=loss, task=task, device=device, dtype=kind)
    opened = loaders.opened(data)
    return Objective.build(
        model,
        samples,
        loss=loss,
        task=task,
        partition=parts,
        classes=classes,
        params=params,
        device=device,
        dtype=kind,
        batch_size=batch_size or opened.batch_size or 128,
        weight_decay=weight_decay,
        logits_index=logits_index,
        many=many,
        few=few,
        ends=ends,
        source={"model": type(model).__qualname__, "checkpoint": None} | counted,
    )
