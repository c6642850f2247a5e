"""The loss of one part around the checkpoint, sample by sample: all that measures of sharpness need."""

import math
from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from landscape.autodiff import trees
from landscape.autodiff.backward import push
from landscape.autodiff.differentiable import differentiable_attention
from landscape.autodiff.trees import Tree
from landscape.autodiff.wide import wide, zeros
from landscape.objective import points
from landscape.objective.objective import Objective
from landscape.results import inference


class PartLosses:
    """The losses of the samples of one part at points of parameter space, with their mean and its error."""

    def __init__(self, objective: Objective, part: int) -> None:
        """Prepare the losses of one part, given by its position."""
        self.objective, self.part = objective, part
        self.theta = points.origin(objective).theta

    def losses(self, theta: Tensor) -> np.ndarray:
        """Return the losses of this process's samples at a point, (n,) float64."""
        objective, found = self.objective, [zeros(0, self.objective.device)]
        at = objective.layout.tensors(theta)
        with differentiable_attention(), torch.no_grad():
            found += [wide(objective.losses(at, x, y)) for x, y in objective.batches(self.part)]
        return torch.cat(found).cpu().numpy()  # read once: the host waits for each read

    def mean(self, each: np.ndarray) -> float:
        """Return the mean of `each`, a result of `losses`, over the samples of all processes."""
        return self.objective.team.total_of(float(each.sum())) / len(self.objective.members[self.part])

    def stderr(self, each: np.ndarray) -> float:
        """Return the standard error of that mean; nan if a value is not finite, or for one sample."""
        values = self.objective.team.gathered(torch.from_numpy(np.ascontiguousarray(each))).numpy()
        finite = bool(np.isfinite(values).all())
        return inference.stderr(self.objective.as_drawn(self.part, values)) if finite else math.nan

    def slopes(self, along: Tensor) -> np.ndarray:
        """Return the derivative of each of this process's losses along a vector at the checkpoint, (n,)."""
        found: np.ndarray = slopes(self.objective, self.objective.batches(self.part), along[None])[0]
        return found


def slopes(objective: Objective, batches: Iterable[tuple[Tree, Tree]], vectors: Tensor) -> np.ndarray:
    """Return the derivative of each sample's loss along vectors at the checkpoint.

    Args:
        objective: model and loss.
        batches: inputs and targets of n samples in all.
        vectors: (V, D).

    Returns:
        (V, n) float64.
    """
    found: np.ndarray = with_slopes(objective, batches, vectors)[1:]
    return found


def with_slopes(objective: Objective, batches: Iterable[tuple[Tree, Tree]], vectors: Tensor) -> np.ndarray:
    """Return the loss of each sample and its derivatives along vectors: (1 + V, n); arguments are those of `slopes`."""
    theta = tuple(t.detach().requires_grad_() for t in objective.theta)
    along = [tuple(objective.layout.tensors(v)) for v in vectors.to(theta[0])]
    found = [zeros((1 + len(along), 0), theta[0].device)]
    with differentiable_attention():
        for batch in batches:

            def losses(some: slice, batch: tuple[Tree, Tree] = batch) -> Tensor:
                return objective.losses(theta, *trees.take(batch, some))

            value, tangents = push(losses, theta, along)
            found.append(wide(torch.stack([value, *tangents]).detach()))
    return torch.cat(found, dim=1).cpu().numpy()
