"""From a model and data in memory to an objective: what a notebook has."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from landscape.callables import checked
from landscape.data import loaders, taking
from landscape.data.samples import Samples
from landscape.objective.loading import DTYPES, DtypeName, fitted, taken
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
    """Join a model and data into an objective, for any task.

    The contract is one line: a loss is a function of (the model's output, the target) with one value per sample. The
    task gives all else; it is inferred from the loss or the targets where they determine it. Inputs are tensors, or
    tuples or dicts of them: a dict is handed to the model by keyword, a tuple one after the other.

    Args:
        model: any network. It is copied; the caller's is not touched.
        data: a DataLoader, whose data set and collate_fn are used, without shuffling or dropping; a map-style data set
            of pairs (input, target) or of dicts; or a pair (inputs, targets) of tensors, or of tuples or dicts of them.
        loss: a function (the model's output, targets) -> (B,), `package.module:callable`, a name of
            `tasks.loss_names()`, or "model" for the loss that the model returns, sample by sample.
        task: a name of `tasks.names()`.
        parts: "all"; of classes "class", "head-tail", "many-medium-few" or a mapping name -> classes; of any samples
            "quantiles:4" of the targets, "column:NAME" of the data set, a value for each sample, a function (input,
            target) -> name, or a `Partition`.
        target: which entry of an item is the target: a key of a dict, a position in a tuple. None for the second of a
            pair, or one of "labels", "label", "targets", "target", "y".
        classes: keep these parts only.
        params: see `Objective.build`.
        device: see `Objective.build`.
        dtype: "float32" or "float64", or PyTorch's type of that name.
        batch_size: samples at a time; None for the DataLoader's, or 128. It changes no result.
        weight_decay: see `Objective.build`.
        logits_index: see `Objective.build`.
        many: see `Objective.build`.
        few: see `Objective.build`.
        ends: see `Objective.build`.

    Returns:
        The objective.

    Raises:
        InputError: something does not fit; the message says what and what to do.
        DataError: the data cannot be used.
        NumericalError: the loss is not finite.
    """
    kind = DTYPES[dtype] if isinstance(dtype, str) else dtype
    samples = data if isinstance(data, Samples) else taken(data, loss=loss, task=task, target=target)
    if not isinstance(data, Samples) and not taking.declares_classes(data):
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
        source={"model": type(model).__qualname__, "checkpoint": None},
    )
