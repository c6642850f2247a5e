"""Objectives of a few samples, on which steps are timed, and the costs of passes that several analyses declare."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np

from landscape.autodiff.costs import Work
from landscape.data.partition import Partition
from landscape.objective import points
from landscape.objective.evaluator import Evaluator
from landscape.objective.objective import Objective
from landscape.objective.points import Point, mean_loss


def few(objective: Objective, counts: Sequence[int]) -> Objective:
    """Return an objective of the same network and loss with a part for each number of samples.

    Args:
        objective: the samples are evenly spaced in its largest part, and repeated if it has too few.
        counts: number of samples of each part.

    Returns:
        The objective; the names of its parts are their positions.
    """
    objective = objective.undrawn
    members = max(objective.members, key=len)
    order = [members[np.linspace(0, len(members) - 1, n).round().astype(np.int64)] for n in counts]
    part_of = np.repeat(np.arange(len(counts)), counts)
    partition = Partition.from_index(part_of, [str(k) for k in range(len(counts))])
    return replace(
        objective,
        samples=objective.samples.select(np.concatenate(order)),
        partition=partition,
        members=tuple(partition.indices(p) for p in range(len(partition))),
        _theirs=None,
        _kept=None,
    )


def mean_count(objective: Objective) -> int:
    """Return the average number of samples of a part."""
    return max(1, round(sum(map(len, objective.members)) / len(objective.partition)))


def gradient(objective: Objective) -> Callable[[int], Callable[[], object]]:
    """Return the function that prepares the gradient of n samples' mean loss at the checkpoint, to be timed."""

    def prepare(n: int) -> Callable[[], object]:
        small = few(objective, [n])
        theta = points.origin(small).theta
        return lambda: points.gradient(small, theta, 0)

    return prepare


def passes(objective: Objective, what: str, times: float, *, common: bool = False, halve: str = "") -> Work:
    """Return the cost of passes of the network over all samples, without a gradient.

    Args:
        objective: model, loss and data in parts.
        what: description of the passes.
        times: number of passes.
        common: stages of a run with the same description make these passes only once.
        halve: an option that would halve the number.

    Returns:
        The work.
    """
    total = sum(map(len, objective.members))

    def prepare(n: int) -> Callable[[], object]:
        small = few(objective, [n])

        return lambda: mean_loss(small, small.theta, 0)

    batch = objective.batch_size
    return Work(what=what, prepare=prepare, times=times, samples=total, batch=batch, common=common, halve=halve)


def evaluation(objective: Objective) -> Work:
    """Return the cost of the first pass of each analysis, over all samples: loss and accuracy."""
    return passes(objective, "pass over all samples for loss and accuracy", 1, common=True)


def at_points(
    objective: Objective,
    what: str,
    times: float,
    *,
    point_of: Callable[[], Point] | None = None,
    halve: str = "",
    **evaluator: Any,
) -> Work:
    """Return the cost of passes of the network over all samples, each at a different point.

    Args:
        objective: model, loss and data in parts.
        what: description of the points.
        times: number of points.
        point_of: makes one of the points; None means the objective's own weights.
        halve: an option that would halve the number.
        evaluator: options of `Evaluator`.

    Returns:
        The work.
    """

    def prepare(n: int) -> Callable[[], object]:
        small = few(objective, [n])
        made = cache(lambda: Evaluator(small, **evaluator))  # with the first step, which it is made for
        return lambda: made()(made().centre if point_of is None else point_of())

    total = sum(map(len, objective.members))
    return Work(what=what, prepare=prepare, times=times, samples=total, batch=objective.batch_size, halve=halve)
