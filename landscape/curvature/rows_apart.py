"""Rows that do not fit into memory: their inner products come from some of their columns at a time.

The products of rows are sums over the parameters. So the rows are computed several times, each time with respect to
some of the parameters, and only the products are kept. What else is needed of the rows takes one pass each:

    sum_j f_j a_j = sum_i J_i^T (sum_k f_ik s_ik)        a_ik . v = s_ik . J_i v

The gradients of one tensor for all rows must fit, as they do for the rows of a few hundred samples of a ResNet-50.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from landscape.autodiff import trees
from landscape.autodiff.backward import push
from landscape.autodiff.differentiable import differentiable_attention
from landscape.autodiff.trees import Tree
from landscape.autodiff.wide import wide, zeros
from landscape.curvature.functions import functions_of
from landscape.curvature.inner_products import products
from landscape.curvature.kinds import Factors, Tensors
from landscape.curvature.rows import Lengths, Rows, computed, facts, seeds_of
from landscape.objective.objective import Objective

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, eq=False)
class Apart(Rows):
    """Rows of a part that are computed when they are needed, some of their columns at a time."""

    objective: Objective
    factors: Factors
    part: int
    seeds: Tensor  # (m, C) s_ik, float64 on the CPU
    cache_bytes: int  # memory for columns

    @cached_property
    def products(self) -> np.ndarray:
        """See `Rows.products`."""
        return products_of([self], self.cache_bytes)

    @property
    def n_bytes(self) -> int:
        """See `Rows.n_bytes`."""
        return 0

    def combined(self, factors: np.ndarray) -> Tensor:
        """See `Rows.combined`."""
        factors = self.objective.team.agreed(factors)
        samples, place = np.unique(self.sample, return_inverse=True)
        seeds = torch.zeros(len(samples), self.seeds.shape[1], dtype=torch.float64)
        seeds.index_add_(0, torch.from_numpy(place), torch.from_numpy(factors)[:, None] * self.seeds)
        layout, total = self.objective.layout, zeros(self.objective.layout.size, self.objective.device)
        for here, theta, outputs in self._batches(samples):
            values = outputs(slice(None))
            found = torch.autograd.grad(
                values, theta, seeds[here].reshape(values.shape).to(values), materialize_grads=True
            )
            total += layout.flat(found).to(total.device)
        return self.objective.team.total(total).to(self.objective.theta[0])

    def along(self, vector: Tensor) -> np.ndarray:
        """See `Rows.along`."""
        samples, place = np.unique(self.sample, return_inverse=True)
        slopes = zeros((len(samples), self.seeds.shape[1]), self.objective.device)
        v = tuple(self.objective.layout.tensors(vector.to(self.objective.theta[0])))
        for here, theta, outputs in self._batches(samples):
            _, (found,) = push(outputs, theta, [v])
            slopes[here] = wide(found.detach()).reshape(len(found), -1)
        slopes = self.objective.team.total(slopes.cpu())
        along: np.ndarray = (self.seeds * slopes[torch.from_numpy(place)]).sum(1).numpy()
        return along

    def _batches(self, samples: np.ndarray) -> Iterator[tuple[slice, Tensors, Callable[[slice], Tensor]]]:
        """Yield the positions of a batch among some samples of the part, a point, and the outputs there."""
        objective, own = self.objective, self.objective.team.share(len(samples))
        for start in range(own.start, own.stop, objective.batch_size):
            here = slice(start, min(start + objective.batch_size, own.stop))
            index = objective.members[self.part][samples[here]]
            batch = objective.samples.batch(index, objective.device, objective.dtype)
            theta = tuple(t.detach().requires_grad_() for t in objective.theta)

            def outputs(some: slice, theta: Tensors = theta, batch: tuple[Tree, Tree] = batch) -> Tensor:
                inputs, targets = trees.take(batch, some)
                return self.factors.outputs(functions_of(objective), objective.logits(theta, inputs), targets)

            with differentiable_attention():
                yield here, theta, outputs


def apart(objective: Objective, factors: Factors, part: int, known: Lengths, tol: float, cache_bytes: int) -> Apart:
    """Return the longest rows of a part without storing them.

    Args:
        objective: as for `rows.lengths`.
        factors: as for `rows.lengths`.
        part: position of the part.
        known: the result of `rows.lengths` for them.
        tol: as for `rows.rows`.
        cache_bytes: memory for columns of the rows.

    Returns:
        The rows, in the order of the samples.
    """
    sample, row = known.longest(tol)
    return Apart(
        **facts(known, sample, row),
        objective=objective,
        factors=factors,
        part=part,
        seeds=seeds_of(objective, factors, known, sample, row),
        cache_bytes=cache_bytes,
    )


def products_of(found: Sequence[Apart], cache_bytes: int) -> np.ndarray:
    """Return the inner products of the rows of several parts with each other.

    Args:
        found: the rows of each part of one objective.
        cache_bytes: memory for columns of the rows.

    Returns:
        (m, m) float64, part after part.
    """
    objective, n_rows = found[0].objective, sum(len(own.sample) for own in found)
    total = np.zeros((n_rows, n_rows))
    entry = -(-n_rows * objective.dtype.itemsize // objective.team.size)
    pieces = objective.layout.pieces(entry, cache_bytes)
    log.info("%d rows are computed in %d pieces, as not all of their columns fit into memory", n_rows, len(pieces))
    for names in pieces:
        columns = torch.cat([computed(objective, own.factors, own.part, own.sample, own.seeds, names) for own in found])
        total += products(columns, columns, objective.team)
    return total
