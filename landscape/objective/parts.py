"""From a name, a file or a mapping to the parts that samples are divided into."""

from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path

from landscape.data.datasets import Samples
from landscape.data.partition import Partition
from landscape.errors import DataError, InputError, arg
from landscape.results import disk
from landscape.results.grouping import GROUPINGS, NAMES

GROUPS = {"all": "all"} | {group: name for name, grouping in GROUPINGS.items() for group in grouping.groups}
"""Groups of classes that have a name of their own, and the partition that each is a part of."""


def make_partition(
    samples: Samples,
    spec: str | PathLike[str] | Partition | Mapping[str, Sequence[int]],
    *,
    many: int = 100,
    few: int = 20,
    ends: int = 1,
) -> Partition:
    """Divide samples into parts by a name, a file or a mapping.

    Args:
        samples: the data.
        spec: "all", "class", "many-medium-few", "head-tail", a JSON file {"name": [class, ...]}, the same as a
            mapping, or a finished partition.
        many: "many" classes have more training samples than this.
        few: "few" classes have fewer training samples than this.
        ends: number of classes in each end of "head-tail".

    Returns:
        The partition.

    Raises:
        InputError: an unknown name, an unreadable file, or groups that do not fit the classes.
    """
    labels, counts = samples.labels, samples.class_counts
    if isinstance(spec, Partition):
        if len(spec.part_of) != len(labels):
            raise InputError(f"the partition is of {len(spec.part_of)} samples, the data has {len(labels)}")
        return spec
    if isinstance(spec, Mapping):
        return Partition.by_groups(labels, spec, len(counts))
    if spec == "all":
        return Partition.whole(len(labels))
    if spec == "class":
        return Partition.by_class(labels, samples.class_names)
    if spec in GROUPINGS:
        return Partition.by_frequency(labels, counts, str(spec), many=many, few=few, ends=ends)
    path = Path(spec)
    if path.suffix != ".json":
        raise InputError(f"{arg('partition', spec)} is unknown: choose {', '.join(NAMES)} or a .json file of groups")
    groups = disk.read_json(path, InputError)
    if not isinstance(groups, dict) or not all(isinstance(g, list) for g in groups.values()):
        raise InputError(f'{spec} must hold {{"name": [class, ...]}}')
    return Partition.by_groups(labels, groups, len(counts))


def refuse_empty(parts: Partition, samples: Samples) -> None:
    """Raise DataError where a part has no samples."""
    for part, count in enumerate(parts.counts):
        if count == 0:
            name = parts.names[part]
            other = "test" if samples.split == "train" else "train"
            raise DataError(
                f"part {name} has no samples in the {samples.split} split of {samples.name}; "
                f"choose others with {arg('classes')} or pass {arg('split', other)}"
            )
