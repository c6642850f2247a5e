"""Samples of any structure: inputs and targets are tensors, or nested tuples and dicts of tensors.

`Samples` is for labelled tensors, `Records` for everything else: dict batches, float targets, sequences that the user's
collate_fn pads. Data below 1 GiB are read once and kept in memory if every batch has the same shapes; other data are
read and collated batch by batch.
"""

import dataclasses
import hashlib
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Subset, TensorDataset, default_collate

from landscape.autodiff import randomness, trees
from landscape.autodiff.trees import Tree
from landscape.autodiff.wide import sent
from landscape.callables import failures_of
from landscape.data import items, loaders
from landscape.data.loaders import Loaded
from landscape.data.samples import Samples, positions
from landscape.errors import DataError, arg

TARGETS = ("labels", "label", "targets", "target", "y")
"""Default names of the target in items that are dicts."""

_READ = 64  # items that are collated at a time


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reader:
    """Reads items of a data set by their positions, and converts them to inputs and targets."""

    dataset: Any
    collate: Callable[[list[Any]], Any] | None = None  # None for PyTorch's own
    target: str | int | None = None  # key or position of the target in an item; None to find it
    with_target: bool = False  # the model takes it too
    causal: bool = False  # the tokens are their own targets, where there are no others
    names: tuple[str, ...] | None = None  # of the inputs that the model takes; None for all
    single: bool = False  # the model takes a tuple or a dict as one argument

    def __len__(self) -> int:
        return len(self.dataset)

    def batch(self, indices: Sequence[int]) -> tuple[Tree, Tree]:
        """Read some items.

        Args:
            indices: their positions.

        Returns:
            Inputs and targets.

        Raises:
            DataError: an item cannot be read, the items cannot be collated, or there is no target.
        """
        some = items.read(self.dataset, indices)
        remedy = "" if self.collate else "; sequences of several lengths need a DataLoader whose collate_fn pads"
        with failures_of(lambda: f"samples {indices[0]} to {indices[-1]} make no batch", DataError, remedy):
            found = default_collate([_numbers(item) for item in some]) if self.collate is None else self.collate(some)
        inputs, targets = self._divided(_plain(found))
        for tree, what in ((inputs, "inputs"), (targets, "targets")):
            _check(tree, len(some), what)
        return inputs, targets

    def _divided(self, batch: Any) -> tuple[Tree, Tree]:
        if isinstance(batch, dict):
            return self._by_name(batch)
        place = 1 if self.target is None and isinstance(batch, tuple) and len(batch) == 2 else self.target
        if not isinstance(batch, tuple) or not isinstance(place, int) or not -len(batch) <= place < len(batch):
            held = f"{len(batch)} values" if isinstance(batch, tuple) else f"a {type(batch).__name__}"
            raise DataError(
                f"an item must be a pair (input, target) or a dict with one of {', '.join(TARGETS)}; it is {held}: "
                f"say which is the target by {arg('target')}, a position or a key"
            )
        rest = tuple(value for i, value in enumerate(batch) if i != place % len(batch))
        inputs = rest if len(rest) > 1 or self.with_target else rest[0]
        if self.with_target:
            inputs = (*rest, batch[place])
        return self._taken(inputs), batch[place]

    def _by_name(self, batch: dict[str, Any]) -> tuple[Tree, Tree]:
        found = [name for name in TARGETS if name in batch] if self.target is None else [self.target]
        if not found and self.causal and "input_ids" in batch:
            ids = batch["input_ids"]
            kept = batch.get("attention_mask")
            targets = ids if kept is None else ids.where(kept.bool(), -100)
            given = batch | ({"labels": targets} if self.with_target else {})
            return self._taken(given), targets
        if len(found) != 1 or found[0] not in batch:
            raise DataError(f"an item holds {', '.join(map(str, batch))}: say which is the target by {arg('target')}")
        name = found[0]
        rest = batch if self.with_target else {key: value for key, value in batch.items() if key != name}
        return self._taken(rest), batch[name]

    def _taken(self, inputs: Any) -> Tree:
        if isinstance(inputs, dict) and self.names is not None:
            inputs = {name: value for name, value in inputs.items() if name in self.names}
        return (inputs,) if self.single else inputs


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Records(Samples):
    """N samples in a fixed order, of any structure. Make them with `read`.

    A label is -1 if the sample has no class; then there are no class names.
    """

    reader: Reader
    held: tuple[Tree, Tree] | None  # inputs and targets of all samples, in memory

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over inputs and targets in memory; for data that are read batch by batch, over the first eight."""
        digest = hashlib.sha256(np.ascontiguousarray(self.labels).data)
        some = self.held or self.reader.batch(range(min(items.FIRST_FEW, len(self))))
        digest.update(repr(trees.shape(some)[0]).encode())
        for tensor in trees.leaves(some):
            digest.update(items.described(tensor))
        return digest.hexdigest()

    @property
    def ragged(self) -> bool:
        """Whether batches are collated one by one, so that their shapes may differ."""
        return self.held is None

    def batch(
        self,
        indices: np.ndarray | Tensor,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> tuple[Tree, Tree]:
        """Return some samples; see `Samples.batch`.

        Returns:
            Inputs and targets; floating-point numbers in `dtype`, integers in their own dtype.
        """
        order = positions(indices)
        if self.held is None:
            some = self.reader.batch(order.tolist())
        else:
            some = trees.take(self.held, torch.from_numpy(order).to(trees.device(self.held)))
        return trees.to(some[0], device, dtype), trees.to(some[1], device, dtype)

    def select(self, indices: np.ndarray | Tensor | Sequence[int]) -> "Records":
        """Return some of the samples; see `Samples.select`."""
        order = self.checked(indices)
        held = None
        if self.held is not None:
            held = trees.take(self.held, torch.from_numpy(order).to(trees.device(self.held)))
        reader = dataclasses.replace(self.reader, dataset=Subset(self.reader.dataset, order.tolist()))
        return dataclasses.replace(self, held=held, reader=reader, labels=self.labels[order])

    def on(self, device: torch.device) -> "Records":
        """Return the samples with their tensors on a device."""
        return (
            self
            if self.held is None
            else dataclasses.replace(self, held=trees.mapped(lambda t: sent(t, device), self.held))
        )

    def column(self, name: str) -> Sequence[Any] | np.ndarray:
        """Return one value of each sample; see `loaders.column`."""
        return loaders.column(self.reader.dataset, name)

    def taken_by(self, arguments: Callable[[Tree], tuple[tuple[str, ...] | None, bool]]) -> "Records":
        """Return the records with only the inputs that a model accepts.

        Args:
            arguments: returns the names of a dict that the model accepts, None for all, and whether it accepts the
                inputs as a single argument.

        Returns:
            The records; `notes` names the inputs that are left out. Records whose inputs are a single argument already
            are returned unchanged.
        """
        if self.reader.single:
            return self
        inputs = self.held[0] if self.held is not None else self.reader.batch([0])[0]
        names, single = arguments(inputs)
        notes = self.notes
        if isinstance(inputs, dict) and names is not None and set(names) < set(inputs):
            out = ", ".join(name for name in inputs if name not in names)
            notes = (*notes, f"the model takes no {out}: left out of its inputs")
            inputs = {name: inputs[name] for name in inputs if name in names}
        held = None if self.held is None else ((inputs,) if single else inputs, self.held[1])
        return dataclasses.replace(
            self, held=held, notes=notes, reader=dataclasses.replace(self.reader, names=names, single=single)
        )


def read(
    loaded: Loaded,
    *,
    name: str = "dataset",
    split: str = "train",
    target: str | int | None = None,
    with_target: bool = False,
    causal: bool = False,
    classes: bool | None = None,
    soft: bool = False,
    class_names: Sequence[str] | None = None,
    class_counts: Sequence[int] | np.ndarray | None = None,
) -> Records:
    """Read a user's data of any structure.

    Args:
        loaded: from `loaders.opened`.
        name: for messages and results.
        split: for messages and results.
        target: key or position of the target in an item; None means the second of a pair, or one of `TARGETS` in a
            dict.
        with_target: the model needs the target as an input too.
        causal: items without a target are tokens, `input_ids`, which are also their own targets.
        classes: whether a target is the sample's class; None means that it is if it is one integer.
        soft: targets are probabilities of the classes; the most probable class is the label.
        class_names: names of the classes; None means those of the data set, or else the numbers of the labels.
        class_counts: training samples of each class; None means those that the data set states, or else the counts of
            these labels, see `datasets.from_dataset`.

    Returns:
        The samples.

    Raises:
        DataError: there are no samples, they are random, they cannot be collated into inputs and targets, or a label is
            no class.
    """
    dataset = loaded.dataset
    if isinstance(dataset, TensorDataset) and len(dataset.tensors) == 2 and loaded.collate is None:
        dataset = dataset.tensors
    if isinstance(dataset, tuple) and len(dataset) == 2 and all(trees.leaves(_plain(half)) for half in dataset):
        dataset = _Held(_plain(dataset[0]), _plain(dataset[1]), with_target)
    if not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")) or isinstance(dataset, str | Mapping):
        raise DataError(
            f"{type(dataset).__name__} cannot be read in any order, as the analysis needs: give a map-style data set "
            "with __len__ and __getitem__, a DataLoader, or a pair (inputs, targets) of tensors"
        )
    n = len(dataset)
    if not n:
        raise DataError("the data set is empty")
    of_pairs = isinstance(dataset, _Held)
    reader = Reader(
        dataset=dataset,
        collate=loaded.collate,
        target=1 if of_pairs else target,
        with_target=with_target and not of_pairs,
        causal=causal,
    )
    if isinstance(dataset, _Held):
        _check(dataset.inputs, n, "inputs")
        _check(dataset.targets, n, "targets")
        held: tuple[Tree, Tree] | None = dataset[:]
    else:
        refuse_random(reader, n)
        held = _all(reader, n)
    labels = _labels(reader, held, n, classes, soft)
    names: tuple[str, ...] = ()
    counts: np.ndarray = np.zeros(0, dtype=np.int64)
    if class_counts is None:
        class_counts = items.attribute(loaded.dataset, "class_counts")
    if labels is not None:
        if class_names is None:
            class_names = loaders.attribute(loaded.dataset, "classes", "class_names")
        names, counts = items.classes(labels, class_names, class_counts, name)
    return Records(
        name=name,
        split=split,
        inputs=None,
        dataset=dataset,
        labels=np.full(n, -1) if labels is None else labels,
        class_names=names,
        class_counts=counts,
        counts_known=split == "train" or class_counts is not None,
        options={"name": name, "split": split},
        reader=reader,
        held=held,
        notes=loaded.notes,
    )


@dataclasses.dataclass(frozen=True)
class _Held:
    """Inputs and targets in memory, as a data set."""

    inputs: Tree
    targets: Tree
    with_target: bool  # the model takes it too

    def __len__(self) -> int:
        return trees.size(self.inputs)

    def __getitem__(self, i: int | slice) -> tuple[Tree, Tree]:
        inputs, targets = trees.take(self.inputs, i), trees.take(self.targets, i)
        if self.with_target and isinstance(inputs, dict):
            inputs = inputs | {"labels": targets}
        elif self.with_target:
            inputs = (*inputs, targets) if isinstance(inputs, tuple) else (inputs, targets)
        return inputs, targets


def refuse_random(reader: Reader, n: int) -> None:
    """Refuse data if a few items differ each time they are read.

    Args:
        reader: of the items.
        n: number of items.

    Raises:
        DataError: an item differs.
    """
    few = list(range(min(items.FIRST_FEW, n)))
    later = np.random.default_rng(n).permutation(np.arange(len(few), n))[: items.FIRST_FEW]
    for indices in (few, np.sort(later).tolist()):
        once, again = (trees.leaves(reader.batch(indices)) if indices else [] for _ in range(2))
        for a, b in zip(once, again, strict=True):
            if a.shape != b.shape or not torch.equal(a.nan_to_num(), b.nan_to_num()):
                raise DataError(
                    f"samples {indices[0]} to {indices[-1]} differ each time they are read: switch the data set's "
                    "augmentation off"
                )


def _all(reader: Reader, n: int) -> tuple[Tree, Tree] | None:
    """Read everything; None if it does not fit in memory, or if batches differ in shape."""
    example = reader.batch([0])
    if n * trees.n_bytes(example) >= items.IN_MEMORY:
        return None
    found = []
    before = randomness.state()
    for start in range(0, n, _READ):
        some = reader.batch(range(start, min(start + _READ, n)))
        if trees.shape(some) != trees.shape(example):
            return None
        found.append(some)
    if randomness.state() != before:
        for start, kept in zip(range(0, n, _READ), found, strict=True):
            again = reader.batch(range(start, min(start + _READ, n)))
            if not all(torch.equal(a, b) for a, b in zip(trees.leaves(again), trees.leaves(kept), strict=True)):
                raise DataError(
                    f"samples from {start} on differ each time they are read: switch the data set's augmentation off"
                )
    return trees.join([x for x, _ in found]), trees.join([y for _, y in found])


def _labels(
    reader: Reader, held: tuple[Tree, Tree] | None, n: int, classes: bool | None, soft: bool
) -> np.ndarray | None:
    """Return the class of each sample, or None if targets are not classes."""
    first = reader.batch([0])[1] if held is None else trees.one(held[1], 0)
    single = (
        isinstance(first, Tensor)
        and first.numel() == 1
        and (not first.is_floating_point() or bool(classes))
        and (first.ndim == 1 or bool(classes))
    )
    shares = soft and isinstance(first, Tensor) and first.is_floating_point() and first.ndim == 2
    if classes is False or not (single or shares):
        return None
    whole = (
        held[1]
        if held is not None
        else trees.join([reader.batch(range(start, min(start + _READ, n)))[1] for start in range(0, n, _READ)])
    )
    found: Tensor = whole.argmax(1) if shares else whole.reshape(n)
    if found.is_floating_point() and not torch.equal(found, found.round()):
        raise DataError("targets are classes, and some are no whole numbers: choose another task")
    labels: np.ndarray = found.cpu().numpy().astype(np.int64)
    return labels


def _numbers(item: Any) -> Any:
    """Return an item with lists of numbers as tensors, because PyTorch's collate treats a list as several values."""
    if isinstance(item, Mapping):
        return {name: _numbers(value) for name, value in item.items()}
    if isinstance(item, list) and item and not isinstance(item[0], Tensor | Mapping | tuple | np.ndarray | str):
        return torch.as_tensor(item)
    return tuple(map(_numbers, item)) if isinstance(item, tuple | list) else item


def _plain(batch: Any) -> Any:
    """Return a batch of tuples, dicts and tensors: lists become tuples, arrays tensors; other entries are dropped."""
    if isinstance(batch, np.ndarray) and batch.dtype.kind in "biuf":
        return torch.as_tensor(batch)
    if isinstance(batch, Tensor):
        return batch.detach()
    if isinstance(batch, Mapping):
        found = {str(name): _plain(value) for name, value in batch.items()}
        return {name: value for name, value in found.items() if trees.leaves(value)}
    if isinstance(batch, tuple | list) and any(
        isinstance(value, Tensor | np.ndarray | Mapping | tuple | list) for value in batch
    ):
        return tuple(map(_plain, batch))
    return batch


def _check(tree: Tree, n: int, what: str) -> None:
    found = trees.leaves(tree)
    if not found:
        raise DataError(f"the {what} hold no tensor but {trees.shown(tree)}: let the collate_fn convert them")
    for tensor in found:
        if not tensor.ndim or len(tensor) != n:
            raise DataError(
                f"the {what} of {n} samples are {trees.shown(tree)}: each tensor needs a row for each sample, along "
                "its first axis"
            )
