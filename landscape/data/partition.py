"""The assignment of samples to parts: classes, groups of classes, head and tail, all samples, or any other division.

A partition is an index array over samples, so that no analysis needs a special case for any of these. Additive
quantities (loss, gradient, trace) satisfy: whole = sum over parts of share times part.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from landscape.callables import checked
from landscape.errors import DataError, InputError, arg, check_choice, one_line, unknown
from landscape.results import disk
from landscape.results.grouping import ENDS, FEW, GROUPINGS, MANY, Thresholds

LEFT_OUT = -1
"""The value of `part_of` for a sample that is in no part."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Partition:
    """Names of P parts, and the part of each of N samples."""

    names: tuple[str, ...]  # (P,)
    part_of: np.ndarray  # (N,) int64, LEFT_OUT for a sample in no part
    classes: tuple[tuple[int, ...], ...] = ()  # (P,) the classes of each part; empty where parts are not classes

    def __post_init__(self) -> None:
        for name in self.names:
            disk.check_name(name, "the name of a part", InputError)
        if len(set(self.names)) != len(self.names):
            raise InputError(f"names of parts must differ, got {', '.join(self.names)}")
        if self.part_of.ndim != 1 or not np.issubdtype(self.part_of.dtype, np.integer):
            raise InputError(f"part_of must be a vector of integers, got {self.part_of.dtype} {self.part_of.shape}")
        if self.part_of.size and not LEFT_OUT <= self.part_of.min() <= self.part_of.max() < len(self.names):
            raise InputError(
                f"part_of must lie between {LEFT_OUT} and {len(self.names) - 1}, "
                f"got {self.part_of.min()} to {self.part_of.max()}"
            )

    def __len__(self) -> int:
        return len(self.names)

    @property
    def counts(self) -> np.ndarray:
        """Number of samples in each part, (P,) int64."""
        inside = self.part_of[self.part_of != LEFT_OUT]
        return np.bincount(inside, minlength=len(self.names)).astype(np.int64)

    @property
    def shares(self) -> np.ndarray:
        """The share n_p / N of each part, among the samples that are in a part, (P,)."""
        counts = self.counts
        shares: np.ndarray = counts / max(1, counts.sum())
        return shares

    def indices(self, part: int) -> np.ndarray:
        """Return the samples of a part, in ascending order.

        Args:
            part: position of the part.

        Returns:
            Indices of samples, (n,) int64.
        """
        return np.flatnonzero(self.part_of == part)

    @classmethod
    @checked
    def whole(cls, n_samples: int) -> "Partition":
        """Put every sample into one part named "all".

        Args:
            n_samples: N.

        Returns:
            A partition with one part.
        """
        return cls(names=("all",), part_of=np.zeros(n_samples, dtype=np.int64))

    @classmethod
    @checked
    def from_index(cls, part_of: np.ndarray, names: Sequence[str]) -> "Partition":
        """Use any attribute of the samples as the partition.

        Args:
            part_of: (N,) integers, -1 for samples that are left out.
            names: (P,) names of the parts.

        Returns:
            The partition.

        Raises:
            InputError: `part_of` is not a vector of integers from -1 to P - 1.
        """
        index = cls(names=tuple(names), part_of=np.asarray(part_of))  # checked before it is converted
        return replace(index, part_of=index.part_of.astype(np.int64))

    @classmethod
    @checked
    def from_values(cls, values: Sequence[Any] | np.ndarray) -> "Partition":
        """Make a part of all samples that have the same value, such as a domain or an annotator.

        Args:
            values: (N,) any values with a text form; None leaves a sample out.

        Returns:
            The partition. Parts are sorted by their values or, if these have no order, by their texts.

        Raises:
            InputError: all values are None, one is a list or has several numbers, or two different values have the same
                text.
        """
        try:
            plain = [v.item() if hasattr(v, "item") else v for v in values]
            known = list(dict.fromkeys(v for v in plain if v is not None))
        except (TypeError, ValueError, RuntimeError) as error:  # of several numbers, or of what has no hash
            raise InputError(
                f"the part of a sample is one value, such as a number or a text ({one_line(error)}): give one for each"
            ) from error
        if not known:
            raise InputError("no sample has a value: give a value for each sample, or None for those to leave out")
        try:
            known.sort()
        except TypeError:
            known.sort(key=str)
        place = {v: p for p, v in enumerate(known)} | {None: LEFT_OUT}
        return cls(names=tuple(map(str, known)), part_of=np.array([place[v] for v in plain], dtype=np.int64))

    @classmethod
    @checked
    def by_quantiles(cls, values: np.ndarray, n: int) -> "Partition":
        """Divide samples by the quantiles of a number, such as the target of a regression.

        Args:
            values: (N,).
            n: number of parts; their numbers of samples are as equal as repeated values allow.

        Returns:
            The parts q1 (the lowest values) to qn; a value at a boundary belongs to the lower part.

        Raises:
            InputError: n is below 2 or above N, a value is not finite, or values repeat so often that a part has no
                sample.
        """
        if not 2 <= n <= len(values):
            raise InputError(f"{len(values)} values are divided into at least 2 parts and at most as many, got {n}")
        if not np.isfinite(values).all():
            raise InputError(f"sample {int(np.argmin(np.isfinite(values)))} has a value that is not finite")
        bounds = np.quantile(values, np.arange(1, n) / n)
        part_of = np.searchsorted(bounds, values, side="left")
        if len(np.unique(part_of)) < n:
            raise InputError(f"values repeat so often that some of {n} parts would have no sample: choose fewer parts")
        return cls(names=tuple(f"q{k + 1}" for k in range(n)), part_of=part_of.astype(np.int64))

    @classmethod
    @checked
    def by_class(cls, labels: np.ndarray, class_names: Sequence[str]) -> "Partition":
        """Make each class a part.

        Args:
            labels: (N,) class of each sample.
            class_names: (C,) names of the classes.

        Returns:
            A partition with C parts; the part of a class without samples is empty.

        Raises:
            DataError: a label is not one of the C classes.
        """
        labels = _checked(labels, len(class_names))
        return cls(names=tuple(class_names), part_of=labels, classes=tuple((c,) for c in range(len(class_names))))

    @classmethod
    @checked
    def by_groups(cls, labels: np.ndarray, groups: Mapping[str, Sequence[int]], n_classes: int) -> "Partition":
        """Make each named group of classes a part; classes in no group are left out.

        Args:
            labels: (N,) class of each sample.
            groups: name -> its classes.
            n_classes: C.

        Returns:
            A partition with a part for each group.

        Raises:
            InputError: no group, a group without a class, an unknown class, or a class in two groups.
        """
        if not groups:
            raise InputError("there are no groups: name at least one, with its members")
        part_of_class = np.full(n_classes, LEFT_OUT, dtype=np.int64)
        for part, (name, members) in enumerate(groups.items()):
            if not len(members):
                raise InputError(f"the group {name!r} is empty: name its classes, or leave it out")
            for c in members:
                if isinstance(c, bool) or not isinstance(c, (int, np.integer)) or not 0 <= c < n_classes:
                    raise InputError(f"group {name!r}: {c!r} is not a class; classes are 0 to {n_classes - 1}")
                if part_of_class[c] != LEFT_OUT:
                    raise InputError(f"class {c} is in two groups or twice in group {name!r}")
                part_of_class[c] = part
        classes = tuple(tuple(int(c) for c in members) for members in groups.values())
        return cls(names=tuple(groups), part_of=part_of_class[_checked(labels, n_classes)], classes=classes)

    @classmethod
    @checked
    def by_frequency(
        cls,
        labels: np.ndarray,
        train_counts: np.ndarray,
        grouping: str,
        *,
        many: int = MANY,
        few: int = FEW,
        ends: int = ENDS,
    ) -> "Partition":
        """Group classes by their numbers of training samples.

        Args:
            labels: (N,) class of each sample.
            train_counts: (C,) samples of each class in the training split, even if another split is analysed.
            grouping: "head-tail" or "many-medium-few", see `results.grouping.GROUPINGS`.
            many: a class with more training samples than this is in "many".
            few: a class with fewer training samples than this is in "few".
            ends: number of classes at each end of "head-tail"; the paper's Figure 9 uses 1.

        Returns:
            A partition with the groups that have classes; classes that are in no group are left out.

        Raises:
            InputError: an unknown grouping, or thresholds that make groups overlap.
        """
        check_choice("grouping", grouping, GROUPINGS)
        found = GROUPINGS[grouping].make(train_counts, Thresholds(many=many, few=few, ends=ends))
        return cls.by_groups(labels, {name: of.tolist() for name, of in found.items()}, len(train_counts))

    @checked
    def select(self, chosen: str | Sequence[str | int]) -> "Partition":
        """Keep some of the parts; the samples of the others are left out.

        Args:
            chosen: names or positions of parts, in a list or separated by commas: "head,tail" or "0,9"; if a text is
                both, it is a name.

        Returns:
            A partition with the chosen parts, in the given order.

        Raises:
            InputError: a part does not exist or is named twice.
        """
        kept: list[int] = []
        if isinstance(chosen, str):
            words = (
                [chosen] if chosen in self.names else [w.strip() for w in chosen.split(",")]
            )  # a name may have commas
        else:
            words = [str(word) for word in chosen]
        for word in words:
            if word in self.names:
                part = self.names.index(word)
            elif word.isdecimal() and int(word) < len(self.names):
                part = int(word)
            else:
                raise InputError(unknown(word, self.names, more=self._others()))
            if part in kept:
                raise InputError(f"part {word!r} is named twice in {chosen!r}")
            kept.append(part)
        new = np.full(len(self.names) + 1, LEFT_OUT, dtype=np.int64)  # the last entry serves LEFT_OUT = -1
        new[kept] = np.arange(len(kept))
        classes = tuple(self.classes[p] for p in kept) if self.classes else ()
        return Partition(names=tuple(self.names[p] for p in kept), part_of=new[self.part_of], classes=classes)

    def _others(self) -> str:
        if len(self.names) == 1:
            return f", or divide the data by {arg('partition', 'class')}"
        return f", or a position from 0 to {len(self.names) - 1}"

    @checked
    def coarsen(self, groups: Mapping[str, Sequence[str]]) -> "Partition":
        """Join parts into larger ones; parts in no group are left out.

        Args:
            groups: name of the new part -> names of the parts that it joins.

        Returns:
            A partition with a part for each group.

        Raises:
            InputError: no group, a group without parts, a part that does not exist, or one that is in two groups.
        """
        if not groups:
            raise InputError("there are no groups: name at least one, with its members")
        new = np.full(len(self.names) + 1, LEFT_OUT, dtype=np.int64)  # the last entry serves LEFT_OUT = -1
        for group, (name, members) in enumerate(groups.items()):
            if not len(members):
                raise InputError(f"the group {name!r} is empty: name the parts that it joins, or leave it out")
            for member in members:
                if member not in self.names:
                    raise InputError(unknown(member, self.names, where=f" for the group {name!r}"))
                part = self.names.index(member)
                if new[part] != LEFT_OUT:
                    raise InputError(f"part {member!r} is in two groups or twice in group {name!r}")
                new[part] = group
        classes: tuple[tuple[int, ...], ...] = ()
        if self.classes:
            joined = [[self.names.index(n) for n in members] for members in groups.values()]
            classes = tuple(tuple(c for p in parts for c in self.classes[p]) for parts in joined)
        return Partition(names=tuple(groups), part_of=new[self.part_of], classes=classes)


def _checked(labels: np.ndarray, n_classes: int) -> np.ndarray:
    labels = np.asarray(labels)
    if not np.issubdtype(labels.dtype, np.integer):
        raise DataError(f"labels must be integers, got {labels.dtype}")
    if labels.size and not 0 <= labels.min() <= labels.max() < n_classes:
        raise DataError(f"labels must lie between 0 and {n_classes - 1}, got {labels.min()} to {labels.max()}")
    return labels.astype(np.int64)
