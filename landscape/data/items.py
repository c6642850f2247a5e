"""Read users' own data item by item, from any map-style data set, into checked tensors and labels.

Every item must be a pair (input, label) and the same each time it is read; anything else that a user's code returns or
raises becomes an error of one line.
"""

import hashlib
import operator
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import IterableDataset, TensorDataset

from landscape.autodiff import randomness
from landscape.callables import failures_of
from landscape.errors import DataError
from landscape.results import disk

IN_MEMORY = 2**30  # bytes; data below this are read once and kept
_EACH_CLASS = 256  # bytes per class, for its name and counts
FIRST_FEW = 8  # number of inputs that represent all, if reading all would take too long


def collect(dataset: Any) -> tuple[torch.Tensor | None, Any | None, np.ndarray]:
    """Read the labels of a data set, and its inputs if they are small enough.

    Args:
        dataset: a map-style data set, a TensorDataset, or a tuple (inputs, labels) of tensors or arrays.

    Returns:
        The inputs (N, ...) if they fit in memory, otherwise the data set; and the labels (N,) int64.

    Raises:
        DataError: the data cannot be used.
    """
    if isinstance(dataset, TensorDataset):
        dataset = dataset.tensors
    if isinstance(dataset, tuple) and all(isinstance(t, torch.Tensor | np.ndarray) for t in dataset):
        return _collect_tensors(dataset)
    if isinstance(dataset, IterableDataset) or not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")):
        raise DataError(
            f"{type(dataset).__name__} cannot be read in any order, as the analysis needs: give a map-style data "
            "set with __len__ and __getitem__ (of a DataLoader its .dataset; of an iterator list(...))"
        )
    n = len(dataset)
    if not n:
        raise DataError("the data set is empty")
    later = np.random.default_rng(n).permutation(np.arange(min(FIRST_FEW, n), n))[:FIRST_FEW]
    _refuse_random(dataset, [*range(min(FIRST_FEW, n)), *later.tolist()])
    (example,) = inputs(dataset, [0])
    if n * example.numel() * example.element_size() < IN_MEMORY:
        before = randomness.state()
        pairs = _pairs(dataset, range(n))
        if randomness.state() != before:  # a few items may be random, but not those that were tested above
            _refuse_random(dataset, range(n), pairs)
        labels = np.array([_label(label, i) for i, (_, label) in enumerate(pairs)], dtype=np.int64)
        return stack(range(n), [_tensor(value, i) for i, (value, _) in enumerate(pairs)]), None, labels
    declared = _declared_labels(dataset)
    if declared is None:
        declared = np.array([_label(_pairs(dataset, [i])[0][1], i) for i in range(n)], dtype=np.int64)
    return None, dataset, declared


def _refuse_random(dataset: Any, indices: Sequence[int], before: Sequence[tuple[Any, Any]] | None = None) -> None:
    """Refuse items that differ each time they are read; `before` are the items of an earlier reading."""
    for i, once, again in zip(indices, before or _pairs(dataset, indices), _pairs(dataset, indices), strict=True):
        if described(_tensor(once[0], i)) != described(_tensor(again[0], i)):
            raise DataError(f"sample {i} differs each time it is read: switch the data set's augmentation off")
        if _label(once[1], i) != _label(again[1], i):
            raise DataError(f"the label of sample {i} differs each time it is read: the analysis needs fixed labels")


def count_classes(labels: np.ndarray, where: str) -> int:
    """Return the number of classes that labels imply, if nothing else states it.

    Args:
        labels: (N,) int64, N > 0.
        where: the data, for messages.

    Returns:
        The largest label + 1.

    Raises:
        DataError: the number of classes is implausible, for example because labels are identifiers.
    """
    largest = int(labels.max())
    try:
        disk.claim(_EACH_CLASS * (largest + 1), f"label {largest}", held=labels.nbytes)
    except disk.ClaimError:
        raise DataError(
            f"{where}: sample {int(labels.argmax())} has label {largest}, of {len(labels)} samples in all: labels must "
            "count the classes from 0"
        ) from None
    return largest + 1


def classes(labels: np.ndarray, names: Any, counts: Any, where: str) -> tuple[tuple[str, ...], np.ndarray]:
    """Return the classes that a data set declares, or else those of its labels.

    Args:
        labels: (N,) int64, N > 0.
        names: names of the classes; None means their numbers.
        counts: training samples of each class; None counts these labels.
        where: the data, for messages.

    Returns:
        The names, and the training samples of each class, (C,) int64.

    Raises:
        DataError: names and counts are no lists of names and counts of the same classes, or a label is no class.
    """
    n_classes = 0
    if counts is None and names is None:
        n_classes = count_classes(labels, where)
    if counts is not None:
        counts = np.asarray(counts)
        if counts.ndim != 1 or not np.issubdtype(counts.dtype, np.integer) or counts.min(initial=0) < 0:
            raise DataError(f"class_counts of {where} must be one count per class, got {counts.tolist()}")
        n_classes = len(counts)
    if names is not None:
        if isinstance(names, str) or not isinstance(names, Iterable):
            raise DataError(f"classes of {where} must be a list of names, got {names!r}")
        names = tuple(str(n) for n in names)
        for name in names:
            disk.check_name(name, f"{where}: the class name", DataError)
        if counts is not None and len(names) != n_classes:
            raise DataError(f"{where} has {len(names)} class names but {n_classes} class counts")
        n_classes = len(names)
    for i in np.flatnonzero((labels < 0) | (labels >= n_classes))[:1]:
        raise DataError(f"{where}: sample {i} has label {labels[i]}, classes are 0 to {n_classes - 1}")
    if counts is None:
        counts = np.bincount(labels, minlength=n_classes)
    return tuple(map(str, range(n_classes))) if names is None else names, counts.astype(np.int64)


def read(dataset: Any, indices: Sequence[int]) -> list[Any]:
    """Read some items, in one call if the data set supports it.

    Args:
        dataset: a map-style data set.
        indices: positions of the items.

    Returns:
        The items.

    Raises:
        DataError: the data set's own code fails; the message names its error, which stays attached as the cause.
    """
    fetch = getattr(dataset, "__getitems__", None)
    with failures_of(lambda: "the data set cannot be read", DataError):
        return list(fetch(list(indices))) if callable(fetch) else [dataset[i] for i in indices]


def inputs(dataset: Any, indices: Sequence[int]) -> list[torch.Tensor]:
    """Read the inputs of some items, in one call if the data set supports it.

    Args:
        dataset: a map-style data set.
        indices: positions of the items.

    Returns:
        One tensor for each.

    Raises:
        DataError: an item cannot be read, is not a pair, or its input is not a tensor or an array of numbers.
    """
    return [_tensor(value, i) for i, (value, _) in zip(indices, _pairs(dataset, indices), strict=True)]


def stack(indices: Sequence[int], tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Stack inputs to a batch.

    Args:
        indices: their positions in the data set, for messages.
        tensors: B inputs.

    Returns:
        (B, ...).

    Raises:
        DataError: they differ in shape or type.
    """
    for i, tensor in zip(indices, tensors, strict=True):
        if tensor.shape != tensors[0].shape or tensor.dtype != tensors[0].dtype:
            raise DataError(
                f"inputs must agree in shape and type: sample {indices[0]} is {tensors[0].dtype} "
                f"{tuple(tensors[0].shape)}, sample {i} is {tensor.dtype} {tuple(tensor.shape)}"
            )
    return torch.stack(list(tensors))


def described(tensor: torch.Tensor) -> bytes:
    """Return type, shape and a digest of the content of a tensor, as bytes."""
    content = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return f"{tensor.dtype} {tuple(tensor.shape)}".encode() + hashlib.sha256(content.data).digest()


def attribute(dataset: Any, *names: str) -> Any:
    """Return the first of several attributes that exists and is not None, else None."""
    found = (getattr(dataset, name, None) for name in names)
    return next((value for value in found if value is not None), None)


def _collect_tensors(tensors: tuple[Any, ...]) -> tuple[torch.Tensor, None, np.ndarray]:
    if len(tensors) != 2:
        raise DataError(f"a data set of tensors must be two, inputs and labels, got {len(tensors)}")
    values, labels = (torch.as_tensor(t).detach() for t in tensors)
    if labels.ndim != 1 or labels.is_floating_point() or labels.is_complex():
        raise DataError(f"labels must be a vector of integers, got {labels.dtype} {tuple(labels.shape)}")
    if values.ndim == 0 or len(values) != len(labels):
        raise DataError(f"there are {len(labels)} labels for inputs of shape {tuple(values.shape)}: each needs one")
    if not len(labels):
        raise DataError("the data set is empty")
    return values, None, labels.cpu().numpy().astype(np.int64)


def _declared_labels(dataset: Any) -> np.ndarray | None:
    """Return `targets` or `labels` of a data set if they agree with its items."""
    try:
        labels = np.array([operator.index(v) for v in attribute(dataset, "targets", "labels")], dtype=np.int64)
    except (TypeError, OverflowError):  # no such attribute, or not integers of 64 bits
        return None
    if len(labels) != len(dataset):
        return None
    # test one item per class: a data set that maps labels on reading returns other labels than it declares
    _, positions = np.unique(labels, return_index=True)
    read = [_label(label, i) for i, (_, label) in zip(positions, _pairs(dataset, positions.tolist()), strict=True)]
    return labels if np.array_equal(read, labels[positions]) else None


def _pairs(dataset: Any, indices: Sequence[int]) -> list[tuple[Any, Any]]:
    items = read(dataset, indices)
    for i, item in zip(indices, items, strict=True):
        if not isinstance(item, tuple | list) or len(item) != 2:
            length = f" of {len(item)}" if isinstance(item, tuple | list) else ""
            raise DataError(f"sample {i} must be a pair (input, label), got {type(item).__name__}{length}")
    return items


def _tensor(value: Any, i: int) -> torch.Tensor:
    if isinstance(value, torch.Tensor):
        return value.detach()
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
        return torch.tensor(value)
    raise DataError(
        f"the input of sample {i} must be a tensor or an array of numbers, got {type(value).__name__}: "
        "let the data set convert it"
    )


def _label(value: Any, i: int) -> int:
    try:
        label = operator.index(value)
        if abs(label) >= 2**63:
            raise DataError(f"the label of sample {i} is beyond 64 bits: labels must count the classes from 0")
        return label
    except TypeError:
        shown = f"a tensor {tuple(value.shape)}" if getattr(value, "ndim", 0) else repr(value)
        raise DataError(f"the label of sample {i} must be an integer, got {shown}") from None
