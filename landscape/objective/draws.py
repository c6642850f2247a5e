"""Draw a few samples that represent a part, in proportion to their uncertainty, with weights that keep means unbiased.

tr M_i, the trace of the loss's Hessian in the logits of sample i, is nearly proportional to the sample's trace of
curvature, and one forward pass gives it. m draws with replacement and probabilities pi_i, each weighted by
1 / (N pi_i), have means that are unbiased for every mean over the N samples (Hansen and Hurwitz 1943). Their variance
is small if pi_i is nearly proportional to the summed quantity. A fraction of the probability is uniform, so that
samples with small tr M are drawn too. It is 1/20 for curvature, to which tr M is nearly proportional; then no weight
exceeds 20. It is 1/2 for points away from the checkpoint, where the losses of all samples may be similar; then no
weight exceeds 2.
"""

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

    index: np.ndarray  # (m,) the sample that each draw is
    factors: np.ndarray  # (m,) 1 / (N pi) of each


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
    draws = Draws(of=objective, index=places, factors=factors, whole=np.array(whole), population=objective.population)
    part_of = np.repeat(np.arange(len(index)), [len(own) for own in index])
    return replace(
        objective,
        samples=_with_factors(objective.samples.select(places), factors),
        partition=replace(objective.partition, part_of=part_of),
        members=tuple(np.split(np.arange(len(places)), ends[:-1])),
        loss=weighed(objective.loss, draws),
        draws=draws,
        source={**objective.source, "draws": dict(about)},
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
        (n,) float64; for a loss that is not convex in the logits, the absolute value.
    """
    found = []
    with differentiable_attention(), torch.no_grad():
        for inputs, targets in objective.batches(part):
            z = objective.logits(objective.theta, inputs)
            if losses.of_classes(objective.loss, targets):  # any number of them
                found.append(1 - wide(z).softmax(1).square().sum(1))
            else:
                middle = second_of_each(partial(_loss, objective, targets), z)
                found.append(wide(middle.diagonal(dim1=1, dim2=2).sum(1).abs()))
    return torch.cat(found).clamp(min=0).cpu().numpy()


def _loss(objective: Objective, targets: Tree, z: Tensor) -> Tensor:
    return objective.loss(z, targets)


def _drawn(
    members: np.ndarray, amount: np.ndarray, name: str, n: int, random: np.random.Generator, even: float
) -> Picked:
    """Return n draws from the samples of a part."""
    largest = amount.max()
    if 0 < largest < np.inf:
        amount = amount / largest  # its squares are in range
    if not 0 < largest < np.inf or (amount**2).mean() < _GAIN * amount.mean() ** 2:
        reason = "varies little" if np.isfinite(largest) else "is not finite"
        log.info("%s: tr M %s, %d of %d samples are drawn alike", name, reason, n, len(members))
        return Picked(np.sort(random.choice(members, n, replace=False)), np.ones(n))
    chance = (1 - even) * amount / amount.sum() + even / len(members)
    chosen = np.sort(random.choice(len(members), n, p=chance))
    return Picked(members[chosen], 1 / (len(members) * chance[chosen]))
