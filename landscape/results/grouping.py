"""Named groups of classes: head and tail; many, medium and few. They depend on numbers of training samples.

The partition of samples (data/partition.py) and the joining of results (regroup.py) use the groups of this module.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from landscape.errors import InputError, arg

Groups = dict[str, np.ndarray]
"""Names of groups, and the classes of each in ascending order."""

MANY, FEW, ENDS = 100, 20, 1
"""Default `Thresholds`: those of Liu et al. 2019, and of the paper's Figure 9."""


@dataclass(frozen=True, kw_only=True)
class Thresholds:
    """The boundaries between groups."""

    many: int = MANY  # "many" classes have more training samples than this
    few: int = FEW  # "few" classes have fewer training samples than this
    ends: int = ENDS  # number of classes at each end of "head-tail"


@dataclass(frozen=True, kw_only=True)
class Grouping:
    """A way to put classes into groups."""

    groups: tuple[str, ...]
    make: Callable[[np.ndarray, Thresholds], Groups]
    """(training samples of each class (C,), thresholds) -> groups, without empty ones."""


def head_tail(train_counts: np.ndarray, thresholds: Thresholds) -> Groups:
    """Group the most frequent and the rarest classes; the classes between them are left out.

    Args:
        train_counts: (C,) training samples of each class.
        thresholds: `ends` is used.

    Returns:
        The groups head and tail; among classes with equal counts, lower labels are nearer to the head.

    Raises:
        InputError: the two ends would overlap.
    """
    order = np.argsort(-np.asarray(train_counts), kind="stable")
    ends = thresholds.ends
    if not 1 <= ends <= len(order) // 2:
        most = len(order) // 2
        raise InputError(f"{arg('ends')} must be from 1 to {most}, half of the {len(order)} classes; got {ends}")
    return {"head": np.sort(order[:ends]), "tail": np.sort(order[-ends:])}


def many_medium_few(train_counts: np.ndarray, thresholds: Thresholds) -> Groups:
    """Group classes by their number of training samples: more than `many`, `few` to `many`, fewer than `few`.

    Args:
        train_counts: (C,) samples of each class in the training split, even if another split is analysed.
        thresholds: `many` and `few` are used.

    Returns:
        The groups many, medium and few, without empty ones.

    Raises:
        InputError: `few` is larger than `many` + 1, so that a class could be in both.

    Source: Liu et al. 2019, "Large-scale long-tailed recognition in an open world".
    """
    many, few = thresholds.many, thresholds.few
    if few > many + 1:
        raise InputError(f"{arg('few', few)} is too large: with {arg('many', many)} it must be at most {many + 1}")
    counts = np.asarray(train_counts)
    found = {"many": counts > many, "medium": (counts <= many) & (counts >= few), "few": counts < few}
    return {name: np.flatnonzero(inside) for name, inside in found.items() if inside.any()}


GROUPINGS: Mapping[str, Grouping] = {
    "head-tail": Grouping(groups=("head", "tail"), make=head_tail),
    "many-medium-few": Grouping(groups=("many", "medium", "few"), make=many_medium_few),
}

NAMES = ("all", "class", *GROUPINGS)
"""Names of all divisions: all data, single classes, and groups of classes. A mapping or a JSON file defines others."""
