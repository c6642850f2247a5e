"""Divide samples into parts, by a name, a file or a mapping."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from landscape.autodiff import trees
from landscape.autodiff.trees import Tree
from landscape.autodiff.wide import wide
from landscape.callables import failures_of, resolve
from landscape.data.datasets import Samples
from landscape.data.partition import Partition
from landscape.data.records import Records
from landscape.data.samples import check_counts
from landscape.errors import DataError, InputError, arg, nearest
from landscape.results import disk
from landscape.results.grouping import ENDS, FEW, GROUPINGS, MANY, NAMES

log = logging.getLogger(__name__)

GROUPS = {"all": "all"} | {group: name for name, grouping in GROUPINGS.items() for group in grouping.groups}
"""Named groups of classes, and the partition to which each belongs."""


Parts: TypeAlias = (
    str
    | PathLike[str]
    | Partition
    | Mapping[str, Sequence[int]]
    | Callable[..., Any]
    | Sequence[Any]
    | np.ndarray
    | Tensor
)
"""The ways to divide samples, see `make_partition`."""

_READ = 256  # number of samples that are read at a time
_DIGITS = 18  # of a number of parts


def make_partition(
    samples: Samples,
    spec: Parts,
    *,
    many: int = MANY,
    few: int = FEW,
    ends: int = ENDS,
) -> Partition:
    """Divide samples into parts by a name, a file or a mapping.

    Args:
        samples: the data.
        spec: "all"; for classes, "class", "many-medium-few", "head-tail", a JSON file {"name": [class, ...]} or such a
            mapping; for any samples, "quantiles:4" of the targets, "column:NAME" of the data set, a value for each
            sample, a function (input, target) of one sample that returns the name of its part, that function as
            "package.module:function", or a partition.
        many: "many" classes have more training samples than this.
        few: "few" classes have fewer training samples than this.
        ends: number of classes in each end of "head-tail".

    Returns:
        The partition.

    Raises:
        InputError: an unknown name, an unreadable file, groups that do not fit the classes, or groups by frequency of
            data that do not state their training samples.
    """
    labels, counts = samples.labels, samples.class_counts
    if isinstance(spec, str) and (found := _of_any_samples(samples, spec)) is not None:
        return found
    if callable(spec):
        return _by_function(samples, spec)
    if isinstance(spec, Sequence | np.ndarray | Tensor) and not isinstance(spec, str):
        spec = Partition.from_values(spec.tolist() if isinstance(spec, Tensor) else spec)
    if isinstance(spec, Partition):
        if len(spec.part_of) != len(labels):
            raise InputError(
                f"the partition is of {len(spec.part_of)} samples, the data have {len(labels)}: divide the same data"
            )
        return spec
    if spec != "all" and not samples.class_names:
        raise InputError(
            f"{arg('partition', spec)} divides classes, and the data have none: take quantiles:4, column:NAME or a "
            "function of (input, target)"
        )
    if isinstance(spec, Mapping):
        return Partition.by_groups(labels, spec, len(counts))
    if spec == "all":
        return Partition.whole(len(labels))
    if spec == "class":
        return Partition.by_class(labels, samples.class_names)
    if spec in GROUPINGS:
        check_counts(samples, "partition", spec)
        return Partition.by_frequency(labels, counts, str(spec), many=many, few=few, ends=ends)
    path = Path(spec)
    if path.suffix != ".json":
        raise InputError(
            f"{arg('partition', spec)} is unknown: {nearest(spec, NAMES)}choose {', '.join(NAMES)}, quantiles:N, "
            "column:NAME, package.module:function or a .json file of groups"
        )
    groups = disk.read_json(path, InputError)
    if not isinstance(groups, dict) or not all(isinstance(g, list) for g in groups.values()):
        raise InputError(f'{spec} must hold {{"name": [class, ...]}}')
    return Partition.by_groups(labels, groups, len(counts))


def _of_any_samples(samples: Samples, spec: str) -> Partition | None:
    """Return the parts for a text that does not need classes; None for other texts."""
    word, colon, rest = spec.partition(":")
    if not colon:
        return None
    if word == "quantiles":
        if not rest.isdecimal() or len(rest) > _DIGITS:
            raise InputError(f"{arg('partition', spec)} has no number of parts: write quantiles:4")
        return Partition.by_quantiles(_numbers(samples), int(rest))
    if word == "column":
        if not isinstance(samples, Records):
            raise InputError(
                f"{arg('partition', spec)} needs items that are dicts: these are pairs (input, label) without columns"
            )
        return Partition.from_values(samples.column(rest))
    return _by_function(samples, resolve(spec, "partition"))


def _numbers(samples: Samples) -> np.ndarray:
    """Return the targets, which must be one number each, (N,)."""
    found = []
    for _, targets in _read(samples):
        if not isinstance(targets, Tensor) or targets.numel() != len(targets):
            raise InputError(
                f"quantiles need targets that are one number each, and these are {trees.shown(targets)}: give a "
                "function of (input, target)"
            )
        found.append(wide(targets.reshape(-1)).cpu().numpy())
    return np.concatenate(found)


def _by_function(samples: Samples, function: Callable[..., Any]) -> Partition:
    values = []
    for inputs, targets in _read(samples):
        for i in range(trees.size(targets)):
            with failures_of(lambda: f"the function of {arg('partition')} fails"):
                values.append(function(trees.take(inputs, i), trees.take(targets, i)))
    return Partition.from_values(values)


def _read(samples: Samples) -> Iterator[tuple[Tree, Tree]]:
    for start in range(0, len(samples), _READ):
        yield samples.batch(np.arange(start, min(start + _READ, len(samples))), dtype=torch.float64)


def chosen_parts(
    samples: Samples,
    spec: Parts,
    classes: str | Sequence[str | int] | None,
    thresholds: Mapping[str, int],
) -> Partition:
    """Divide samples and keep only the chosen parts; of classes that are not chosen by name, those with samples.

    Args:
        samples: the data.
        spec: as for `make_partition`.
        classes: the parts to keep; None for all.
        thresholds: `many`, `few` and `ends` of `make_partition`.

    Returns:
        The partition.

    Raises:
        InputError: as `make_partition`, or there is no such part.
        DataError: a part has no samples.
    """
    parts = make_partition(samples, spec, **thresholds)
    if classes is not None:
        parts = parts.select(classes)
    elif isinstance(spec, str) and spec == "class":
        parts = _of_classes_with_samples(parts)
    refuse_empty(parts, samples)
    return parts


def _of_classes_with_samples(parts: Partition) -> Partition:
    """Leave out the classes without samples, as of a `Subset`, and log their names."""
    empty = [name for name, count in zip(parts.names, parts.counts, strict=True) if not count]
    if not empty or len(empty) == len(parts):
        return parts
    more = f" and {len(empty) - 5} more" if len(empty) > 5 else ""
    log.warning("no parts are made of classes without samples: %s%s", ", ".join(empty[:5]), more)
    return parts.select([name for name in parts.names if name not in empty])


def refuse_empty(parts: Partition, samples: Samples) -> None:
    """Raise DataError if a part has no samples."""
    for part, count in enumerate(parts.counts):
        if count == 0:
            name = parts.names[part]
            other = "test" if samples.split == "train" else "train"
            raise DataError(
                f"part {name} has no samples in the {samples.split} split of {samples.name}; "
                f"choose others with {arg('classes')} or pass {arg('split', other)}"
            )
