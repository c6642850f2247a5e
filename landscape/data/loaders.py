"""Use a DataLoader as a data set: its items and its collate_fn are used, its order and its batches are not."""

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor
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
        Its data set. If a sampler has fixed positions, only these samples, in ascending order, and one that it names
        twice is there twice.

    Raises:
        DataError: it reads an iterator, which cannot be read again in the same order, or a sampler names positions that
            the data set does not have.
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
    batches: Any = data.batch_sampler
    sampler: Any = getattr(batches, "sampler", data.sampler)
    chosen = _positions([i for batch in batches for i in batch] if _listed(batches) else sampler, len(dataset))
    if chosen is not None and chosen != list(range(len(dataset))):
        dataset = Subset(dataset, chosen)
        notes.append(f"the sampler's {len(chosen)} samples are used, in ascending order")
    elif isinstance(sampler, RandomSampler):
        notes.append("shuffling is undone: every sample is used once, in the data set's order")
    elif chosen is None:
        notes.append(
            f"{type(sampler).__name__} is undone: every sample of the data set is used once, in the data set's order"
        )
    if batches is not None and type(batches) is not BatchSampler and not _listed(batches):
        notes.append(f"{type(batches).__name__} is undone: batches are made in the data set's order")
    size = getattr(batches, "batch_size", data.batch_size)
    if getattr(batches, "drop_last", data.drop_last) and size and len(dataset) % size:
        notes.append("drop_last is undone: the last samples are used too")
    own: Any = None if collate is default_collate else collate
    if data.batch_size is None and data.batch_sampler is None:  # without a batch size, items are returned unchanged
        own = None
    return Loaded(dataset=dataset, collate=own, batch_size=data.batch_size, notes=tuple(notes))


def _listed(given: Any) -> bool:
    return isinstance(given, Sequence | np.ndarray | Tensor)


def _positions(sampler: Any, size: int) -> list[int] | None:
    """Return the positions that a sampler has in every epoch, in ascending order; None if it may draw others."""
    if isinstance(sampler, SubsetRandomSampler):
        sampler = sampler.indices
    elif type(sampler) is SequentialSampler or (type(sampler) is RandomSampler and not sampler.replacement):
        sampler = range(len(sampler.data_source))  # which may be a part of the data set
    if not _listed(sampler):
        return None
    try:
        chosen = sorted(operator.index(i) for i in sampler)
    except TypeError:  # keys of another kind
        return None
    if chosen and not (-size <= chosen[0] and chosen[-1] < size):
        outside = chosen[0] if chosen[0] < -size else chosen[-1]
        raise DataError(f"the sampler of the DataLoader has position {outside}, and the data set has {size} samples")
    return sorted(i % size for i in chosen)


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
