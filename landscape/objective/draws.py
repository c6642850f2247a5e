"""Few samples that stand for a part: drawn in proportion to their uncertainty, with weights that make up for it.

tr M_i, the trace of the loss's Hessian in the logits of sample i, is nearly proportional to the sample's trace of
curvature, and one forward pass gives it. m draws with replacement by chances pi_i, each weighted by 1 / (N pi_i), have
means that are unbiased for every sum over the N samples (Hansen and Hurwitz 1943), and where pi_i is near proportional
to what is summed they scatter little. A twentieth of the chances is spread evenly: nothing has a weight beyond 20, and
what tr M does not see is drawn too.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from landscape.autodiff.backward import second_of_each
from landscape.autodiff.differentiable import differentiable_attention
from landscape.autodiff.trees import Tree
from landscape.autodiff.wide import wide
from landscape.data.records import Records
from landscape.data.samples import Samples
from landscape.errors import InputError, arg
from landscape.networks import losses
from landscape.objective.objective import Objective

log = logging.getLogger(__name__)

MOST_OUTPUTS = 512
"""Numbers of a sample's output beyond which the matrices between Jacobians take more than they are worth."""

_EVEN = 0.05  # share of the chances that is spread evenly
_GAIN = 1.5  # mean square of tr M over its squared mean, below which weights gain too little


@dataclass(frozen=True, kw_only=True, eq=False)
class Drawn:
    """An objective on draws from another one's parts, each of which counts with its weight."""

    objective: Objective  # a sample is one draw; its label is the draw's number, and its loss has the weight in it
    index: np.ndarray  # (M,) the sample of the other objective's data that each draw is
    labels: np.ndarray  # (M,) its class
    factors: np.ndarray  # (M,) 1 / (N pi) of each draw, 1 where all samples count alike
    whole: np.ndarray  # (P,) whether a part has all its samples


@dataclass(frozen=True, eq=False)
class Picked:
    """Draws from one part."""

    index: np.ndarray  # (m,) the sample that each draw is
    factors: np.ndarray  # (m,) 1 / (N pi) of each


@dataclass(frozen=True, eq=False)
class _Paired:
    """The loss of each draw times its factor, which stands beside the target."""

    loss: Callable[[Tensor, Tree], Tensor]

    def __call__(self, logits: Tensor, targets: tuple[Tree, Tensor]) -> Tensor:
        return targets[1].to(logits.dtype) * self.loss(logits, targets[0])


@dataclass(frozen=True, eq=False)
class _Weighted:
    """The loss of each draw times its factor, of labels."""

    loss: Callable[[Tensor, Tree], Tensor]
    labels: Tensor  # (M,)
    factors: Tensor  # (M,)

    def __call__(self, logits: Tensor, draws: Tensor) -> Tensor:
        factors, labels = (t[draws].to(logits.device) for t in (self.factors, self.labels))
        return factors.to(logits.dtype) * self.loss(logits, labels)


def draw(objective: Objective, n: int, *, seed: int = 0) -> Drawn:
    """Draw samples from each part in proportion to tr M.

    A part of at most n samples is taken whole; where tr M varies little, n samples are drawn alike, without weights.

    Args:
        objective: model, loss and data in parts.
        n: draws from each part, at least 2.
        seed: of the draws.

    Returns:
        An objective with the same parts, whose means over draws stand for those over samples.

    Raises:
        InputError: fewer than 2 draws, or samples that are not in memory.
    """
    if n < 2:
        raise InputError(f"{arg('samples', n)}: at least 2 samples are drawn, which tell their own spread")
    return gathered(objective, [pick(objective, part, n, seed=seed) for part in range(len(objective.members))])


def pick(objective: Objective, part: int, n: int, *, seed: int = 0, amount: np.ndarray | None = None) -> Picked:
    """Draw samples from one part, as `draw` does from all.

    Args:
        objective: model, loss and data in parts.
        part: position of the part.
        n: draws.
        seed: of the draws.
        amount: what `uncertainty` returns for the part, if that is known.

    Returns:
        The draws; all samples of a part of at most n.
    """
    members = objective.members[part]
    if len(members) <= n:
        return Picked(members, np.ones(len(members)))
    name, random = objective.partition.names[part], np.random.default_rng([seed, part])
    if objective.outputs.size > MOST_OUTPUTS:
        log.info("%s: samples have more than %d outputs, %d of %d are drawn alike", name, MOST_OUTPUTS, n, len(members))
        return Picked(np.sort(random.choice(members, n, replace=False)), np.ones(n))
    return _drawn(members, uncertainty(objective, part) if amount is None else amount, name, n, random)


def gathered(objective: Objective, picked: Sequence[Picked]) -> Drawn:
    """Make an objective of draws.

    Args:
        objective: model, loss and data in parts.
        picked: the draws from each part.

    Returns:
        An objective with the same parts, whose means over draws stand for those over samples.

    Raises:
        InputError: samples that are not in memory.
    """
    index = [own.index for own in picked]
    places, weights = np.concatenate(index), np.concatenate([own.factors for own in picked])
    part_of = np.repeat(np.arange(len(index)), [len(own) for own in index])
    ends = np.cumsum([len(own) for own in index])
    selected = objective.samples.select(places)
    labels = objective.samples.labels[places]
    factors_of = torch.from_numpy(weights).to(objective.device, objective.dtype)
    of_draws: Samples
    weighted: Callable[[Tensor, Any], Tensor]
    if isinstance(selected, Records):
        if selected.held is None:
            raise InputError(f"{arg('samples')}: draws are of samples in memory, these are collated batch by batch")
        inputs, targets = selected.held
        of_draws, weighted = replace(selected, held=(inputs, (targets, factors_of))), _Paired(objective.loss)
    else:
        of_draws = replace(selected, labels=np.arange(len(places)))
        weighted = _Weighted(objective.loss, torch.from_numpy(labels).to(objective.device), factors_of)
    drawn = replace(
        objective,
        samples=of_draws,
        partition=replace(objective.partition, part_of=part_of),
        members=tuple(np.split(np.arange(len(places)), ends[:-1])),
        loss=weighted,
    )
    whole = [len(own.index) == len(members) for own, members in zip(picked, objective.members, strict=True)]
    return Drawn(objective=drawn, index=places, labels=labels, factors=weights, whole=np.array(whole))


def uncertainty(objective: Objective, part: int) -> np.ndarray:
    """Return tr M of each sample of a part, the trace of its loss's Hessian in the logits.

    Args:
        objective: model, loss and data in parts.
        part: position of the part.

    Returns:
        (n,) float64; the absolute value where a loss is not convex in the logits.
    """
    found = []
    with differentiable_attention(), torch.no_grad():
        for inputs, targets in objective.batches(part):
            z = objective.logits(objective.theta, inputs)
            if objective.loss is losses.cross_entropy and not targets.is_floating_point():
                found.append(1 - wide(z).softmax(1).square().sum(1))
            else:
                middle = second_of_each(partial(_loss, objective, targets), z)
                found.append(wide(middle.diagonal(dim1=1, dim2=2).sum(1).abs()))
    return torch.cat(found).clamp(min=0).cpu().numpy()


def _loss(objective: Objective, targets: Tree, z: Tensor) -> Tensor:
    return objective.loss(z, targets)


def _drawn(members: np.ndarray, amount: np.ndarray, name: str, n: int, random: np.random.Generator) -> Picked:
    """Return n draws from the samples of a part."""
    mean = amount.mean()
    if not mean > 0 or (amount**2).mean() < _GAIN * mean**2:
        log.info("%s: tr M varies little, %d of %d samples are drawn alike", name, n, len(members))
        return Picked(np.sort(random.choice(members, n, replace=False)), np.ones(n))
    chance = (1 - _EVEN) * amount / amount.sum() + _EVEN / len(members)
    chosen = np.sort(random.choice(len(members), n, p=chance))
    return Picked(members[chosen], 1 / (len(members) * chance[chosen]))
