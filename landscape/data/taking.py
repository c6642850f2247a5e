"""Convert any user's data: labelled tensors to `Samples`, everything else to `Records`."""

import operator
from dataclasses import replace
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import TensorDataset

from landscape.data import datasets, items, loaders, records
from landscape.data.samples import Samples


def taken(
    data: Any,
    *,
    name: str = "dataset",
    split: str = "train",
    target: str | int | None = None,
    with_target: bool = False,
    causal: bool = False,
    classes: bool | None = None,
    **declared: Any,
) -> Samples:
    """Convert a user's data to samples.

    Args:
        data: a DataLoader, a map-style data set, or a pair (inputs, targets) of tensors, or of tuples or dicts of them.
        name: see `records.read`.
        split: see `records.read`.
        target: see `records.read`.
        with_target: see `records.read`.
        causal: see `records.read`.
        classes: see `records.read`.
        declared: names and counts of the classes, as for `datasets.from_dataset`.

    Returns:
        The samples.

    Raises:
        DataError: the data cannot be used.
    """
    loaded = loaders.opened(data)
    plain = loaded.collate is None and target is None and classes is not False and not with_target
    if plain and _labelled(loaded.dataset):
        if declared.get("class_names") is None:
            declared["class_names"] = loaders.attribute(loaded.dataset, "classes", "class_names")
        found = datasets.from_dataset(loaded.dataset, name=name, split=split, **declared)
        return replace(found, notes=loaded.notes)
    return records.read(
        loaded,
        name=name,
        split=split,
        target=target,
        with_target=with_target,
        causal=causal,
        classes=classes,
        soft=bool(classes),
        **declared,
    )


def declares_classes(data: Any) -> bool:
    """Say whether data state the number of classes; labels alone do not show it if the last classes have no sample."""
    names = ("classes", "class_names", "class_counts")
    return loaders.attribute(loaders.opened(data).dataset, *names) is not None


def _labelled(dataset: Any) -> bool:
    """Say whether the first item is, or seems intended as, a pair (tensor, integer), to which messages refer."""
    if isinstance(dataset, TensorDataset):
        dataset = dataset.tensors
    if isinstance(dataset, tuple) and len(dataset) == 2 and all(isinstance(t, Tensor | np.ndarray) for t in dataset):
        return dataset[1].ndim == 1 and not _real(dataset[1])
    if not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")) or not len(dataset):
        return True
    (item,) = items.read(dataset, [0])
    if not isinstance(item, tuple | list) or len(item) != 2 or not isinstance(item[0], Tensor | np.ndarray):
        return False
    try:
        operator.index(item[1])
    except TypeError:
        return False
    return True


def _real(values: Tensor | np.ndarray) -> bool:
    return values.is_floating_point() if isinstance(values, Tensor) else values.dtype.kind == "f"
