"""The groups of parts of a finished result: which parts a group has, and the weight of each in its mean.

With n_c the number of evaluated samples of class c, and N_c the number of its training samples, w_c is

    natural    n_c                                  the mean over the evaluated samples
    balanced   1                                    equal weight of each class
    training   N_c                                  the training distribution, whichever split was evaluated
    drw        N_c (1 - beta) / (1 - beta^N_c)      deferred re-weighting: samples weighted by effective number
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from landscape.errors import InputError, arg, nearest, unknown
from landscape.results import Result, Spectrum, Surface, disk
from landscape.results.grouping import GROUPINGS, NAMES, Thresholds

WEIGHTS = ("natural", "balanced", "training", "drw")
"""Names of weightings; a mapping or a JSON file defines others."""
_MOST_WEIGHT = 1e300  # the sum over any number of parts is finite


def _inverse_effective_numbers(train_counts: np.ndarray, beta: float) -> np.ndarray:
    """Return (1 - beta) / (1 - beta^N_c), (C,) (Cui et al. 2019, equation 2); 0 for a class without samples."""
    if not 0 <= beta < 1:
        raise InputError(f"beta of the effective number of samples must be at least 0 and below 1, got {beta:g}")
    counts = np.asarray(train_counts, dtype=np.float64)
    effective = (1 - beta**counts) / (1 - beta)
    weights: np.ndarray = np.divide(1.0, effective, out=np.zeros_like(effective), where=counts > 0)
    return weights


def members_of(
    result: Surface | Spectrum, groups: str | Mapping[str, Sequence[int | str]], *, many: int, few: int, ends: int
) -> dict[str, np.ndarray]:
    """Return the parts of each group.

    Args:
        result: a surface or spectrum.
        groups: as for `regroup`.
        many: threshold of "many".
        few: threshold of "few".
        ends: number of classes at each end of "head-tail".

    Returns:
        Positions of parts by the names of the groups.

    Raises:
        InputError: unknown names, a group without members, or counts that the groups need but the result does not have.
    """
    everything = np.arange(len(result.parts))
    if isinstance(groups, str):
        if groups == "all":
            return {"all": everything}
        if groups == "class":
            return {name: everything[[p]] for p, name in enumerate(result.parts)}
        if groups in GROUPINGS:
            thresholds = Thresholds(many=many, few=few, ends=ends)
            return GROUPINGS[groups].make(_class_counts(result, groups), thresholds)
        groups = _from_file(groups)
    if not groups:
        raise InputError(f"{arg('groups')} is empty: name at least one group, with its parts")
    return {name: _positions(result, name, of) for name, of in groups.items()}


def _positions(result: Surface | Spectrum, name: str, members: Sequence[int | str]) -> np.ndarray:
    partition = partition_of(result)
    part_of_class = {tuple(of): p for p, of in enumerate(partition)} if partition else {}
    found: list[int] = []
    for member in members:
        if isinstance(member, str) and member in result.parts:
            part = result.parts.index(member)
        elif isinstance(member, (int, np.integer)) and not isinstance(member, bool) and (int(member),) in part_of_class:
            part = part_of_class[int(member),]
        elif not partition and isinstance(member, (int, np.integer)) and 0 <= member < len(result.parts):
            part = int(member)
        else:
            raise InputError(unknown(member, result.parts, where=f" for the group {name!r}"))
        if part in found:
            raise InputError(f"group {name!r} holds {result.parts[part]!r} twice")
        found.append(part)
    if not found:
        raise InputError(f"the group {name!r} is empty: name the parts that it joins, or leave it out")
    return np.array(found)


def partition_of(result: Surface | Spectrum) -> list[list[int]] | None:
    """Return the classes of each part, or None if the result does not contain them."""
    found = [result.stated("partition", name, of=list) for name in result.parts]
    whole = [classes for classes in found if classes is not None]
    return whole if len(whole) == len(found) else None


def classes_of(result: Result, part: str) -> tuple[int, ...] | None:
    """Return the numbers of the classes of a part, ascending, or None if the result does not contain them.

    Parts of one name may have other classes: head and tail follow from the counts of training samples.
    """
    found = result.stated("partition", part, of=list)
    known = found is not None and all(isinstance(c, int) for c in found)
    return tuple(sorted(found)) if found is not None and known else None


def labels(results: Sequence[Any]) -> list[dict[str, str]]:
    """Return a label for each part of each result: its name, and its classes where other results have others."""
    known: dict[str, set[tuple[int, ...]]] = {}
    for result in results:
        for part in result.parts:
            if (classes := classes_of(result, part)) is not None:
                known.setdefault(part, set()).add(classes)

    def label(part: str, classes: tuple[int, ...] | None) -> str:
        if classes is None or len(known[part]) == 1:
            return part
        return f"{part} (class{'es' * (len(classes) != 1)} {', '.join(map(str, classes))})"

    return [{part: label(part, classes_of(result, part)) for part in result.parts} for result in results]


def _class_counts(result: Surface | Spectrum, groups: str) -> np.ndarray:
    for name, classes in zip(result.parts, partition_of(result) or [], strict=False):
        if len(classes) != 1:
            raise InputError(
                f"{groups} groups classes, and {name!r} has {len(classes)}: compute with {arg('partition', 'class')}"
            )
    return _counts(result, "train_counts", f"{groups} goes by training samples")


def _counts(result: Surface | Spectrum, field: str, why: str) -> np.ndarray:
    counts = np.asarray(getattr(result, field), dtype=np.float64)
    if not np.isfinite(counts).all():
        raise InputError(f"{why}, which the file does not contain: name the parts of groups, or use other weights")
    return counts


def _from_file(name: str) -> dict[str, list[int | str]]:
    if not name.endswith(".json"):
        near = nearest(name, NAMES)
        raise InputError(f"{arg('groups', name)} is unknown: {near}choose {', '.join(NAMES)} or a .json file of groups")
    groups = _read(name, "groups")
    if not all(isinstance(of, list) for of in groups.values()):
        raise InputError(f'{name} must hold {{"name": [class, ...]}}')
    return groups


def read_weights(weights: str | Mapping[str, float]) -> str | Mapping[str, float]:
    """Return weights, which are read if they are the name of a .json file.

    Args:
        weights: a name of `WEIGHTS`, a mapping of part names to weights, or the name of a file.

    Returns:
        A name of `WEIGHTS`, or the mapping.

    Raises:
        InputError: the file cannot be read, or has no such mapping.
    """
    if not isinstance(weights, str) or not weights.endswith(".json"):
        return weights
    found = _read(weights, "weights")
    if not all(isinstance(w, (int, float)) and not isinstance(w, bool) for w in found.values()):
        raise InputError(f'{weights} must hold {{"name": weight}}, the weight of each part')
    return found


def _read(name: str, what: str) -> dict[str, Any]:
    found = disk.read_json(name, InputError)
    if not isinstance(found, dict):
        raise InputError(f"{name} must hold an object, with the {what} by name")
    return found


def _weights(result: Surface | Spectrum, weights: str | Mapping[str, float], beta: float) -> np.ndarray:
    """Return the weight of each part, (P,); nan where it is unknown."""
    train_counts = np.asarray(result.train_counts, dtype=np.float64)
    if isinstance(weights, Mapping):
        for name, value in weights.items():
            if name not in result.parts:
                raise InputError(unknown(name, result.parts, where=f" for {arg('weights')}"))
            if not 0 <= value <= _MOST_WEIGHT:
                raise InputError(f"the weight of {name!r} must be a number from 0 to {_MOST_WEIGHT:g}, got {value}")
        for name in result.parts:
            if name not in weights:
                raise InputError(f"{arg('weights')} has no number for the part {name!r}: give 0 to leave it out")
        return np.array([weights[name] for name in result.parts], dtype=np.float64)
    if weights == "natural":
        return np.asarray(result.n_samples, dtype=np.float64)
    if weights == "balanced":
        return np.ones(len(result.parts))
    if weights == "training":
        return train_counts
    if weights == "drw":
        if partition_of(result):
            train_counts = _class_counts(result, "drw")
        of_classes: np.ndarray = train_counts * _inverse_effective_numbers(train_counts, beta)
        return of_classes
    near = nearest(weights, WEIGHTS)
    raise InputError(f"{arg('weights', weights)} is unknown: {near}choose {', '.join(WEIGHTS)} or a .json file")


def shares_of(
    result: Surface | Spectrum, members: Mapping[str, np.ndarray], weights: str | Mapping[str, float], beta: float
) -> list[list[tuple[int, float]]]:
    """Return the share of each part in the mean of its group.

    Args:
        result: a surface or spectrum.
        members: the return value of `members_of`.
        weights: the return value of `read_weights`.
        beta: of the effective number of samples.

    Returns:
        For each group, its parts with their shares, which sum to 1; parts of share 0 are left out.

    Raises:
        InputError: weights that are unknown or invalid, or a group without weight.
    """
    weight_of = _weights(result, weights, beta)
    empty = np.asarray(result.n_samples) == 0
    shares = []
    for name, parts in members.items():
        inside = np.where(empty[parts], 0.0, weight_of[parts])
        if len(parts) == 1 and not empty[parts[0]]:
            inside = np.ones(1)  # a part alone is itself, whatever its weight
        if np.isnan(inside).any():
            of = "the samples of each part" if weights == "natural" else "the training samples of each class"
            raise InputError(
                f"{weights} weights need {of}, which the file does not contain: use {arg('weights', 'balanced')}"
            )
        if not inside.sum() > 0:
            what = weights if isinstance(weights, str) else "these"
            raise InputError(f"group {name!r} has no samples, or {what} weights give it no weight: leave it out")
        inside = inside / inside.sum()
        shares.append([(int(p), float(w)) for p, w in zip(parts, inside, strict=True) if w > 0])
    return shares
