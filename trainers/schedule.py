"""Schedules over a run: the learning rate, the share of GSA in the objective, SAM's radius, the groups."""

import bisect
import math
from collections.abc import Sequence


def warmup(step: int, length: int) -> float:
    """Rise linearly: (t + 1) / W for t < W, then 1 (Goyal et al. 2017, section 2.2).

    Args:
        step: t, from 0.
        length: W.

    Returns:
        A factor of the learning rate, above 0 and at most 1.
    """
    return (step + 1) / length if step < length else 1.0


def cosine(step: int, steps: int, length: int = 0) -> float:
    """Fall along half a cosine from 1 to 0 after a warm-up (Loshchilov and Hutter 2017, equation 5, no restarts).

    Args:
        step: t, from 0 to steps - 1.
        steps: T.
        length: W, steps of the warm-up, in which the factor is 1.

    Returns:
        (1 + cos(pi (t - W) / (T - W))) / 2 for t >= W.
    """
    return (1 + math.cos(math.pi * (step - length) / (steps - length))) / 2 if step >= length else 1.0


def multistep(epoch: int, milestones: Sequence[int], gamma: float = 0.1) -> float:
    """Fall by a factor at each milestone.

    Args:
        epoch: from 0.
        milestones: epochs from which on the next factor applies, ascending.
        gamma: the factor.

    Returns:
        gamma to the power of the milestones passed.
    """
    return gamma ** bisect.bisect_right(milestones, epoch)


def mixing(epoch: int, epochs: int, start: float = 0.95, end: float = 0.6) -> float:
    """Return the weight alpha of the sharpness term in the objective; that of GKP is 1 - alpha.

        alpha(t) = end + (start - end) / 2 * (1 + cos(pi t / T))            (S20)

    Args:
        epoch: t, from 0.
        epochs: T.
        start: alpha(0).
        end: alpha(T).

    Returns:
        alpha.
    """
    return end + (start - end) / 2 * (1 + math.cos(math.pi * epoch / epochs))


def radius(epoch: int, epochs: int, kind: str, first: float, last: float, late: float = 0.8) -> float:
    """Return SAM's radius in an epoch.

    Args:
        epoch: from 0 to epochs - 1.
        epochs: of the run.
        kind: "constant" (`first`), "linear" (from `first` in epoch 0 to `last` in the last epoch) or "step" (`first`,
            and `last` as soon as deferred re-weighting begins, as in Rangwani et al. 2022).
        first: radius at the start.
        last: radius at the end.
        late: fraction of the run before a step.

    Returns:
        rho.
    """
    if kind == "constant":
        return first
    if kind == "step":
        return last if epoch >= deferred(epochs, late) else first
    return first + (last - first) * epoch / max(1, epochs - 1)


def banking(epoch: int, warmup: int, every: int) -> bool:
    """Say whether the memory bank may store the model of an epoch: from the end of the warm-up on.

    Args:
        epoch: number of finished epochs, from 1.
        warmup: epochs of the learning rate's warm-up, in which features are not yet representative.
        every: epochs between the class statistics of the training set.

    Returns:
        Whether the model may be stored.
    """
    return epoch > warmup and epoch % every == 0


def needed(groups: int) -> int:
    """Return the number of epochs in the bank before groups are made: several, because one can give only one group."""
    return max(2, min(groups, 3))


def filled(n: int, warmup: int, every: int) -> int:
    """Return the epoch after which the memory bank has seen n epochs; for the arguments see `banking`."""
    return (warmup // every + n) * every


def grouping(epoch: int, epochs: int, after: float, every: float, ready: int = 1) -> bool:
    """Say whether classes are grouped after an epoch.

    Args:
        epoch: number of finished epochs, from 1.
        epochs: of the run; at its end groups are no longer needed.
        after: fraction of the run before the first grouping.
        every: fraction of the run between groupings, at least an epoch; 0 means a single grouping.
        ready: the first epoch with a grouping, whatever `after` says; see `filled`.

    Returns:
        Whether classes are grouped.
    """
    first = max(ready, round(after * epochs))
    apart = max(1, round(every * epochs)) if every else epochs
    return first <= epoch < epochs and (epoch - first) % apart == 0


def deferred(epochs: int, start: float = 0.8) -> int:
    """Return the epoch from which deferred re-weighting applies: 160 of 200, as in Cao et al. 2019.

    Args:
        epochs: of the run.
        start: fraction of the run before it.

    Returns:
        The first epoch, from 0.
    """
    return math.ceil(start * epochs - 1e-9)  # 0.55 * 20 exceeds 11 by rounding
