"""Sizes of the displacements between points: by filters, by a part's Fisher information and by its Hessian."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from landscape.autodiff import single_samples, trees
from landscape.autodiff.differentiable import differentiable_attention
from landscape.autodiff.trees import Tree
from landscape.autodiff.wide import place, wide, zeros
from landscape.curvature.checks import fault_of_second_derivative, refuse_fault
from landscape.curvature.forms import forms_along
from landscape.curvature.functions import functions_of
from landscape.curvature.kinds import HESSIAN
from landscape.errors import InputError, arg
from landscape.networks import classifiers, filters
from landscape.networks.outputs import OwnLoss
from landscape.objective import points
from landscape.objective.objective import Objective
from landscape.objective.points import Point
from landscape.objective.weighing import weighed
from landscape.results import inference


@dataclass(frozen=True, eq=False)
class Chosen:
    """Names of the parameters that count, and a mask for all entries, (D,) bool."""

    names: tuple[str, ...]
    mask: Tensor


Measure: TypeAlias = Callable[[Objective, Point, str, Sequence[Point], Chosen], tuple[np.ndarray, np.ndarray]]
"""(objective, point, its name, K other points, parameters that count) -> a size of each displacement, and its error."""


def chosen_of(objective: Objective, over: str) -> Chosen:
    """Return the parameters that count.

    Args:
        objective: model, loss and data in parts.
        over: "encoder", all before the classifier, or "all" chosen ones.

    Returns:
        The parameters.

    Raises:
        InputError: there is no classifier, or no chosen parameter before it.
    """
    layout, names = objective.layout, set(objective.layout.names)
    if over == "encoder":
        task = objective.task.name
        try:
            run = partial(objective.logits_of, objective.model, trees.take(objective.example(0)[0], slice(4)))
            head = classifiers.find(objective.model, len(objective.samples.class_names), run)
        except InputError as error:
            if task == "classification":
                raise
            raise InputError(
                f"{arg('over', 'encoder')} needs a classifier, and a model of the task {task} has none: pass "
                f"{arg('over', 'all')}"
            ) from error
        with objective.trainable():
            names = set(classifiers.encoder(objective.model, head))
        if not names:
            raise InputError(
                f"{arg('over', 'encoder')}: no chosen parameter is before the classifier; pass {arg('over', 'all')}"
            )
    flags = [torch.full((size,), name in names) for name, size in zip(layout.names, layout.sizes, strict=True)]
    return Chosen(tuple(n for n in layout.names if n in names), torch.cat(flags).to(place(objective.device)))


def by_filters(objective: Objective, a: Tensor, b: Tensor, names: Sequence[str]) -> float:
    """Return the root mean square over filters of |a_f - b_f| / mean(|a_f|, |b_f|); a zero filter counts as 0."""
    groups, layout, total, count = filters.groups(objective.model), objective.layout, 0.0, 0
    pairs = zip(layout.names, layout.tensors(wide(a)), layout.tensors(wide(b)), strict=True)
    for name, x, y in pairs:
        if name in names:
            apart, first, second = (filters.rows(t, name, groups).norm(dim=1) for t in (x - y, x, y))
            size = (first + second) / 2
            total += torch.where(size > 0, apart / torch.where(size > 0, size, 1.0), 0.0).square().sum().item()
            count += apart.numel()
    return math.sqrt(total / count)


def parts_of(objective: Objective, name: str) -> list[int]:
    """Return the part to which a point belongs, or all parts if it belongs to none."""
    known = objective.partition.names
    return [known.index(name)] if name in known else list(range(len(known)))


def rises_by_hessian(
    objective: Objective, point: Point, name: str, others: Sequence[Point], chosen: Chosen
) -> tuple[np.ndarray, np.ndarray]:
    """Return d^T H d / 2 with H the Hessian of the part's mean loss at a point, for each displacement d to another.

    Also return their standard errors: d^T H d is the mean over samples of d^T H_i d, and weight decay, if any, adds the
    same to each. Arguments and shapes are those of `by_fisher`; for a displacement of zero both are zero.
    """
    own = parts_of(objective, name)
    here = points.objective_at(objective, point)
    mask = chosen.mask.to(point.theta.device)
    ways = {k: (other.theta - point.theta) * mask for k, other in enumerate(others)}
    moved = [k for k, way in ways.items() if way.any()]
    shares = objective.shares[own] / objective.shares[own].sum()
    rises = np.array([objective.weight_decay * wide(way).square().sum().item() / 2 for way in ways.values()])
    variances = np.zeros(len(others))
    for p, share in zip(own, shares, strict=True):
        _refuse_wrong(here, p)
        each = forms_along(here, HESSIAN, [(objective.members[p], ways[k]) for k in moved])
        for k, values in zip(moved, each, strict=True):
            of_samples = objective.as_drawn(p, values / 2)
            rises[k] += share * of_samples.mean()
            variances[k] += share**2 * inference.variance_of_mean(of_samples)
    return rises, np.sqrt(variances)


def _refuse_wrong(objective: Objective, part: int) -> None:
    """Refuse a part on whose first samples the second derivative is not that of the loss, as products do."""
    batch = objective.samples.batch(objective.members[part][:2], objective.device, objective.dtype)
    fault = fault_of_second_derivative(HESSIAN, functions_of(objective), tuple(objective.theta), batch)
    refuse_fault(HESSIAN, fault, objective.partition.names[part])


def by_fisher(
    objective: Objective, point: Point, name: str, others: Sequence[Point], chosen: Chosen
) -> tuple[np.ndarray, np.ndarray]:
    """Return the distance from a point to others by the diagonal of its empirical Fisher, and its standard errors.

    The Fisher is that of the point's part or, if it has none, of all samples. The square of the distance is a mean over
    samples, so that its error is that of this mean.

    Args:
        objective: model, loss and data in parts.
        point: the point.
        name: of the point.
        others: K points.
        chosen: the parameters that count.

    Returns:
        (K,) and (K,); no error for a distance of zero, and nan for one sample.
    """
    model = points.network_at(objective, point).requires_grad_(True)
    own, mask = parts_of(objective, name), chosen.mask
    shares = objective.shares[own] / objective.shares[own].sum()
    values = weighed(objective.undrawn.values, objective.draws, power=0.5)  # gradients of this loss are squared

    def loss(outputs: Any, targets: Tree) -> Tensor:
        return values(objective.outputs.read(outputs), targets)

    # As fractions of the largest: squares of small steps may underflow.
    ways = torch.empty(len(others), int(mask.sum()), dtype=objective.dtype, device=objective.device)
    scale = zeros((len(others), 1), objective.device)
    for k, other in enumerate(others):
        way = (wide(other.theta)[mask] - wide(point.theta)[mask]).square()
        scale[k] = way.amax().clamp(min=torch.finfo(way.dtype).tiny, max=torch.finfo(way.dtype).max)
        ways[k] = way / scale[k]
    square, variance = np.zeros((2, len(others)))
    for p, share in zip(own, shares, strict=True):
        batches = objective.batches(p)
        if isinstance(objective.outputs, OwnLoss):
            batches = (one for batch in batches for one in trees.each(batch))
        with differentiable_attention():
            each = single_samples.weighted_squares(model, batches, loss, ways, chosen.names)
        of_samples = objective.as_drawn(p, (scale.to(each) * each).cpu().numpy())
        with np.errstate(over="ignore", invalid="ignore"):  # of weights that are not finite
            square += share * of_samples.mean(axis=1)
            variance += share**2 * inference.variance_of_mean(of_samples)
    distance = np.sqrt(square)
    error = np.divide(np.sqrt(variance), 2 * distance, out=np.zeros(len(others)), where=distance != 0)
    return distance, error
