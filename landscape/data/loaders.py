"""Use a DataLoader as a data set: its items and its collate_fn are used, its order and its batches are not."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
    default_collate,
)

from landscape.data import items
from landscape.errors import DataError


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """The parts of a DataLoader that are used."""

    dataset: Any
    collate: Callable[[list[Any]], Any] | None  # None means PyTorch's own
    batch_size: int | None  # None if the loader does not have one
    notes: tuple[str, ...]  # sentences about settings that are not used


def opened(data: Any) -> Loaded:
    """Return the data set and the collate function of a DataLoader; any other object is used as a data set itself.

    Args:
        data: a DataLoader, or a data set.

    Returns:
        Its data set. If a sampler draws from fixed positions, only these samples, in ascending order.

    Raises:
        DataError: it reads an iterator, which cannot be read again in the same order.
    """
    if not isinstance(data, DataLoader):
        return Loaded(dataset=data, collate=None, batch_size=None, notes=())
    dataset: Any = data.dataset
    if isinstance(dataset, IterableDataset):
        raise DataError(
            f"the DataLoader reads the iterator {type(dataset).__name__}, which has no order of its own: give a "
            "map-style data set with __len__ and __getitem__, or list(...) of it"
        )
    notes, collate = [], data.collate_fn
    sampler: Any = getattr(data.batch_sampler, "sampler", data.sampler)
    if isinstance(sampler, SubsetRandomSampler):
        chosen = sorted(int(i) for i in sampler.indices)
        dataset = Subset(dataset, chosen)
        notes.append(f"the sampler's {len(chosen)} samples are used, in ascending order")
    elif isinstance(sampler, RandomSampler):
        notes.append("shuffling is undone: every sample is used once, in the data set's order")
    elif not isinstance(sampler, SequentialSampler):
        notes.append(
            f"{type(sampler).__name__} is undone: every sample of the data set is used once, in the data set's order"
        )
    if data.batch_sampler is not None and type(data.batch_sampler) is not BatchSampler:
        notes.append(f"{type(data.batch_sampler).__name__} is undone: batches are made in the data set's order")
    if data.drop_last and data.batch_size and len(dataset) % data.batch_size:
        notes.append("drop_last is undone: the last samples are used too")
    own: Any = None if collate is default_collate else collate
    if data.batch_size is None and data.batch_sampler is None:  # without a batch size, items are returned unchanged
        own = None
    return Loaded(dataset=dataset, collate=own, batch_size=data.batch_size, notes=tuple(notes))


def attribute(dataset: Any, *names: str) -> Any:
    """Return the first of several attributes that a data set, or the one below a `Subset`, has and that is not None."""
    while (found := items.attribute(dataset, *names)) is None and isinstance(dataset, Subset):
        dataset = dataset.dataset
    return found


def column(dataset: Any, name: str) -> Sequence[Any] | np.ndarray:
    """Return the value of a column for each item.

    Args:
        dataset: a data set of dicts, or one with `column_names`, such as those of Hugging Face.
        name: of the column.

    Returns:
        A value for each item.

    Raises:
        DataError: an item has no such column.
    """
    if name in (getattr(dataset, "column_names", None) or ()):
        whole: Sequence[Any] = dataset[name]  # without reading the others
        return whole
    found = []
    for i in range(len(dataset)):
        item = dataset[i]
        if not hasattr(item, "keys") or name not in item:
            held = ", ".join(map(str, item.keys())) if hasattr(item, "keys") else f"a {type(item).__name__}"
            raise DataError(f"sample {i} has no column {name!r}: it holds {held}")
        found.append(item[name])
    return found
