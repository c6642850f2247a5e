"""What a step of gradient descent does to the loss of each part: slopes, critical and batch sharpness, alignment.

Definitions and sources are in monitor.py, which calls this module.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor

from landscape.autodiff.backward import along_gradient
from landscape.autodiff.differentiable import differentiable_attention
from landscape.autodiff.wide import wide, zeros
from landscape.curvature.kinds import HESSIAN
from landscape.curvature.operators import problem_of
from landscape.curvature.products import by_reverse
from landscape.objective import points
from landscape.objective.evaluator import Evaluator
from landscape.objective.objective import Objective
from landscape.objective.points import Point

PASSES = 10
"""The largest number of passes over the samples of a part in the search for the step at which its loss rises."""


@dataclass(frozen=True, kw_only=True)
class Slopes:
    """Gradients of parts compared with the gradient over all samples."""

    whole: Tensor  # (D,) the gradient g of all samples
    loss: np.ndarray  # (P,)
    along: np.ndarray  # (P,) <g_p, g>
    alignment: np.ndarray  # (P,) |cos(g_p, v)|; nan where a gradient is zero or v is not known


def slopes(objectives: Sequence[Objective], sharpest: Tensor | None) -> Slopes:
    """Return the slopes of all parts of several objectives.

    Args:
        objectives: at the same weights; the first has a single part with all samples.
        sharpest: a direction, (D,); None for none.

    Returns:
        The numbers of the parts of all objectives, in order.
    """
    theta = points.origin(objectives[0]).theta
    places = [(objective, part) for objective in objectives for part in range(len(objective.partition))]
    first = points.gradient(objectives[0], theta, 0)
    whole = wide(first[1])
    loss, along, alignment = (np.full(len(places), np.nan) for _ in range(3))
    for row, (objective, part) in enumerate(places):
        value, g = points.gradient(objective, theta, part) if row else first
        g = wide(g)
        loss[row], along[row], length = value, float(g @ whole), float(g.norm())
        if sharpest is not None and length > 0:
            alignment[row] = abs(float(g @ sharpest.to(g))) / length
    return Slopes(whole=whole, loss=loss, along=along, alignment=alignment)


def critical_sharpness(objectives: Sequence[Objective], known: Slopes, first: float) -> np.ndarray:
    """Find 2 / the smallest step along the gradient of all samples at which the loss of each part rises.

    Args:
        objectives: as for `slopes`.
        known: what that returned.
        first: initial step size.

    Returns:
        (P,), in units of the loss; inf if every step raises the loss, 0 if no step up to the largest one did, nan if
        the gradient is zero.
    """
    if not float(known.whole.norm()) > 0:
        return np.full(len(known.loss), np.nan)
    parts = [one.alone(name) for one in objectives for name in one.partition.names]
    return np.array([
        _critical(part, known.whole, loss, slope, first)
        for part, loss, slope in zip(parts, known.loss.tolist(), known.along.tolist(), strict=True)
    ])


def _critical(objective: Objective, direction: Tensor, loss: float, slope: float, first: float) -> float:
    """Return the critical sharpness of one part; the search decides how many passes over its samples are made."""
    if slope <= 0:
        return math.inf
    evaluator = Evaluator(objective, plain=True)
    centre = evaluator.centre

    def rises(step: float) -> float:
        point = Point((wide(centre.theta) - step * direction).to(centre.theta), centre.buffers)
        with np.errstate(invalid="ignore"):
            return (float(evaluator(point)[0][0]) - loss) / step

    tried = {first: rises(first)}
    while len(tried) < PASSES:
        low, high = min(tried), max(tried)
        if tried[high] <= 0:
            tried[2 * high] = rises(2 * high)
        elif not tried[low] <= 0:  # also if it is nan
            tried[low / 2] = rises(low / 2)
        else:
            break
    steps = sorted(tried)
    return _crossing(slope, steps, [tried[step] for step in steps])


def _crossing(slope: float, steps: Sequence[float], rises: Sequence[float]) -> float:
    """Return 2 divided by the step at which the rise becomes positive; the interpolation is exact for a parabola."""
    before, below = 0.0, -slope
    for step, rise in zip(steps, rises, strict=True):
        if not rise <= 0:  # also if the loss is nan or infinite
            share = below / (below - rise) if math.isfinite(rise) else 0.5
            return 2 / (before + share * (step - before))
        before, below = step, rise
    return 0.0


def batch_sharpness(objective: Objective, size: int, batches: int, seed: int) -> tuple[float, float]:
    """Return the mean over random batches of the curvature of their loss along their gradient, and its error.

    Args:
        objective: of one part, all samples.
        size: samples per batch; at most all samples.
        batches: number of batches.
        seed: of the draw.

    Returns:
        Mean and standard error over batches. The error is nan for one batch; both are nan if no batch has a gradient.
    """
    (own,) = objective.members
    generator, theta = np.random.default_rng(seed), objective.theta
    found = []
    for _ in range(batches):
        some = np.sort(generator.choice(own, min(size, len(own)), replace=False))
        total, curved = (zeros(objective.layout.size, objective.device) for _ in range(2))
        one = replace(objective, members=(some,))
        if one.n_batches(0) == 1:  # one graph then gives both the gradient and the product with it
            leaves = tuple(t.detach().requires_grad_() for t in theta)
            with differentiable_attention():
                g, product = along_gradient(objective.losses(leaves, *one.batch(0, 0)), leaves, HESSIAN.remedy)
            total, curved = (wide(objective.layout.flat(list(t))) for t in (g, product))
        else:
            mean = points.gradient(one, points.origin(objective).theta, 0)[1]
            total += wide(mean) * len(some)
            for batch in one.batches(0):
                product = tuple(by_reverse(problem_of(objective), HESSIAN, batch, [objective.layout.tensors(mean)])[0])
                curved += wide(objective.layout.flat(product)) * len(some)
        square = float(total.square().sum())
        if square > 0:
            found.append(float(curved @ total) / square / len(some))
    if not found:
        return math.nan, math.nan
    error = float(np.std(found, ddof=1) / math.sqrt(len(found))) if len(found) > 1 else math.nan
    return float(np.mean(found)), error
