"""Draw a few samples that represent a part, in proportion to their uncertainty, with weights that keep means unbiased.

tr M_i, the trace of the loss's Hessian in the logits of sample i, is nearly proportional to the sample's trace of
curvature, and one forward pass gives it. n of the N samples of a part are drawn without replacement, sample i with a
probability pi_i that is nearly proportional to the summed quantity, and 1 where that would be more. With the factor
n / (N pi_i), means over the draws are unbiased for every mean over the N samples (Horvitz and Thompson 1952), and the
samples with pi_i = 1 add nothing to their variance. The samples are put in a random order and drawn systematically
(Hartley and Rao 1962): one wherever the sum of pi_i passes a number of an evenly spaced grid with a random start.

A fraction of the probability is uniform, so that samples with small tr M are drawn too. It is 1/20 for curvature, to
which tr M is nearly proportional; then no factor exceeds 20. It is 1/2 for points away from the checkpoint, where the
losses of all samples may be similar; then no factor exceeds 2.
"""

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from landscape.autodiff import trees
from landscape.autodiff.backward import second_of_each
from landscape.autodiff.differentiable import differentiable_attention
from landscape.autodiff.trees import Tree
from landscape.autodiff.wide import sent, wide
from landscape.callables import checked
from landscape.data.records import Records
from landscape.data.samples import Samples
from landscape.errors import InputError, arg
from landscape.networks import losses
from landscape.objective.objective import Objective
from landscape.objective.weighing import DrawnSamples, Draws, weighed

log = logging.getLogger(__name__)

MOST_OUTPUTS = 512
"""For more outputs per sample, the matrices between Jacobians cost more than they save."""

AT, AWAY = 0.05, 0.5
"""Fraction of the probability that is uniform: for curvature at the checkpoint, and for points away from it."""

_GAIN = 1.5  # below this ratio of the mean square of tr M to its squared mean, weights gain too little


@dataclass(frozen=True, eq=False)
class Picked:
    """Draws from one part."""

    index: np.ndarray  # (n,) the sample that each draw is
    factors: np.ndarray  # (n,) n / (N pi) of each
    uncertainty: float = np.nan  # mean tr M of all samples of the part, if the draws are in proportion to it


@checked
def draw_samples(objective: Objective, n: int, *, seed: int = 0, even: float = AWAY) -> Objective:
    """Draw samples from each part in proportion to tr M, for any analysis that sums over samples.

    A part with at most n samples keeps all of them. If tr M varies little, n samples are drawn uniformly and without
    weights.

    Args:
        objective: model, loss and data in parts.
        n: draws from each part, at least 2.
        seed: of the draws.
        even: fraction of the probability that is uniform; no weight exceeds 1 / even. Use 0.05 for curvature at the
            checkpoint itself, and the default of 0.5 for points away from it, where other samples are uncertain.

    Returns:
        An objective with the same parts; its means over draws estimate the means over samples.

    Raises:
        InputError: fewer than 2 draws, samples that are not in memory or are draws themselves.
    """
    if n < 2:
        raise InputError(f"{arg('samples', n)} is too few: errors over samples need at least 2 of each part")
    picked = [pick(objective, part, n, seed=seed, even=even) for part in range(len(objective.members))]
    at = objective.source.get("checkpoint_sha256") or objective.source["weights_sha256"]
    return gathered(objective, picked, {"samples": n, "seed": seed, "even": even, "at": at})


def pick(
    objective: Objective, part: int, n: int, *, seed: int = 0, amount: np.ndarray | None = None, even: float = AT
) -> Picked:
    """Draw samples from one part, as `draw_samples` does from all parts.

    Args:
        objective: model, loss and data in parts.
        part: position of the part.
        n: number of draws.
        seed: of the draws.
        amount: the return value of `uncertainty` for the part, if it is known.
        even: as for `draw_samples`.

    Returns:
        The draws; all samples if the part has at most n.
    """
    members = objective.members[part]
    if len(members) <= n:
        return Picked(members, np.ones(len(members)))
    name, random = objective.partition.names[part], np.random.default_rng([seed, part])
    if objective.outputs.size > MOST_OUTPUTS and not losses.of_classes(objective.loss, objective.example(part)[1]):
        log.info("%s: samples have more than %d outputs, %d of %d are drawn alike", name, MOST_OUTPUTS, n, len(members))
        return Picked(np.sort(random.choice(members, n, replace=False)), np.ones(n))
    return _drawn(members, uncertainty(objective, part) if amount is None else amount, name, n, random, even)


def gathered(objective: Objective, picked: Sequence[Picked], about: Mapping[str, Any]) -> Objective:
    """Make an objective of draws.

    Args:
        objective: model, loss and data in parts.
        picked: the draws from each part.
        about: how they were drawn, for the provenance.

    Returns:
        An objective with the same parts; its means over draws estimate the means over samples.

    Raises:
        InputError: samples that are not in memory, or are draws themselves.
    """
    if objective.draws is not None:
        raise InputError(f"the samples are draws already: leave {arg('samples')} out, or draw from all of them")
    index = [own.index for own in picked]
    places, factors = np.concatenate(index), np.concatenate([own.factors for own in picked])
    ends = np.cumsum([len(own) for own in index])
    whole = [len(own) == len(members) for own, members in zip(index, objective.members, strict=True)]
    chances = [
        np.full(len(own.index), np.nan if all_of_it else len(own.index) / len(members)) / own.factors
        for own, members, all_of_it in zip(picked, objective.members, whole, strict=True)
    ]
    draws = Draws(
        of=objective,
        index=places,
        factors=factors,
        chances=np.concatenate(chances),
        whole=np.array(whole),
        population=objective.population,
        uncertainty=np.array([own.uncertainty for own in picked]),
    )
    part_of = np.repeat(np.arange(len(index)), [len(own) for own in index])
    return replace(
        objective,
        samples=_with_factors(objective.samples.select(places), factors),
        partition=replace(objective.partition, part_of=part_of),
        members=tuple(np.split(np.arange(len(places)), ends[:-1])),
        loss=weighed(objective.loss, draws),
        draws=draws,
        source={**objective.source, "draws": {**about, "sha256": hashlib.sha256(places.tobytes()).hexdigest()}},
        _kept=None,
    )


def _with_factors(samples: Samples, factors: np.ndarray) -> Samples:
    """Return samples with a pair of target and factor as the target of each."""
    if not isinstance(samples, Records):
        return DrawnSamples(**{f.name: getattr(samples, f.name) for f in fields(Samples)}, factors=factors)
    if samples.held is None:
        raise InputError(f"{arg('samples')} needs data in memory, these are read batch by batch: leave it out")
    inputs, targets = samples.held
    return replace(samples, held=(inputs, (targets, sent(torch.from_numpy(factors), trees.device(inputs)))))


def uncertainty(objective: Objective, part: int) -> np.ndarray:
    """Return tr M of each sample of a part, the trace of its loss's Hessian in the logits.

    Args:
        objective: model, loss and data in parts.
        part: position of the part.

    Returns:
        (n,) float64; it may be negative for a loss that is not convex in the logits.
    """
    if objective.evaluated is not None and objective.evaluated.uncertainty is not None:
        return objective.evaluated.uncertainty[part]
    found = []
    with differentiable_attention(), torch.no_grad():
        for inputs, targets in objective.batches(part):
            z = objective.logits(objective.theta, inputs)
            if losses.of_classes(objective.loss, targets):  # any number of them
                found.append(losses.uncertainty(z))
            else:
                middle = second_of_each(partial(_loss, objective, targets), z)
                found.append(wide(middle.diagonal(dim1=1, dim2=2).sum(1)))
    return torch.cat(found).cpu().numpy()


def _loss(objective: Objective, targets: Tree, z: Tensor) -> Tensor:
    return objective.values(z, targets)


def _drawn(
    members: np.ndarray, amount: np.ndarray, name: str, n: int, random: np.random.Generator, even: float
) -> Picked:
    """Return n draws from the samples of a part, in proportion to the absolute value of tr M."""
    size = np.abs(amount)
    if not varies(size):
        reason = "varies little" if np.isfinite(amount).all() else "is not finite"
        log.info("%s: tr M %s, %d of %d samples are drawn alike", name, reason, n, len(members))
        return Picked(np.sort(random.choice(members, n, replace=False)), np.ones(n))
    chances = inclusion(size, n, even)
    chosen = systematic(chances, random)
    return Picked(members[chosen], len(chosen) / (len(members) * chances[chosen]), float(amount.mean()))


def systematic(chances: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Draw samples without replacement, each with its own probability.

    Args:
        chances: probability of each sample, (N,); their sum is a whole number.
        random: generator.

    Returns:
        Positions of the drawn samples, ascending; as many as the sum of the probabilities.

    Source: Hartley and Rao 1962, "Sampling with unequal probabilities and without replacement".
    """
    order = random.permutation(len(chances))
    passed = np.floor(np.cumsum(chances[order]) - 1 + random.random())  # grows where the sum passes the grid
    return np.sort(order[np.diff(passed, prepend=-1) > 0])


def varies(amount: np.ndarray) -> bool:
    """Say whether tr M, (N,), varies so much that draws in proportion to it gain enough; not if it is not finite."""
    largest = amount.max()
    if not 0 < largest < np.inf:
        return False
    amount = amount / largest  # its squares are in range
    return bool((amount**2).mean() >= _GAIN * amount.mean() ** 2)


def variance(amount: np.ndarray, n: int, *, even: float = AT) -> float:
    """Return the variance of the sum of tr M estimated from a draw, up to a factor that does not depend on n.

    Args:
        amount: the return value of `uncertainty`, (N,).
        n: number of draws, fewer than N.
        even: as for `draw_samples`.

    Returns:
        The sum of (1 - pi_i) / pi_i a_i^2 with a_i = tr M_i; draws in proportion to a_i would estimate their own sum
        without error, but any other sum of the samples has such a term. Equal a_i if samples are drawn alike.
    """
    if not varies(amount):
        return len(amount) / n - 1
    chances = inclusion(amount, n, even)
    a = amount / amount.max()
    return float(((1 - chances) / chances) @ a**2)


def inclusion(amount: np.ndarray, n: int, even: float) -> np.ndarray:
    """Return the probability with which each sample is among n draws without replacement, (N,).

    Args:
        amount: (N,), not negative; their sum is positive.
        n: number of draws, fewer than N.
        even: as for `draw_samples`.

    Returns:
        Probabilities; their sum is n.
    """
    amount = amount / amount.max()  # the sum is in range
    return proportional((1 - even) * amount / amount.sum() + even / len(amount), n)


def proportional(sizes: np.ndarray, total: float) -> np.ndarray:
    """Return probabilities in proportion to sizes, and 1 where that would be more.

    Args:
        sizes: (N,), not negative.
        total: the sum of the probabilities.

    Returns:
        (N,); all are 1 if fewer sizes than `total` are positive.
    """
    sure = np.zeros(len(sizes), dtype=bool)
    while (rest := sizes[~sure].sum()) > 0:
        found = np.where(sure, 1.0, (total - np.count_nonzero(sure)) * sizes / rest)
        if not (found > 1).any():
            return found
        sure |= found > 1
    return np.ones(len(sizes))
