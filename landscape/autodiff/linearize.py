"""The fast form of a curvature product: values that do not depend on the vector are computed once and kept.

A product H v of one batch is traced once into a graph of tensor operations, a function of (state, batch, v), where the
state is theta with all other parameters and buffers. Its nodes fall into three stages: those that depend on the state
alone, those that depend on the batch, and those that depend on v. The first runs once, the second once per batch, and
only the third runs at every Lanczos step: 6 forward-equivalents (a tangent pass forwards and backwards) instead of the
9 and more of double backward. The graph holds no weights, so that all checkpoints of one network can share it.

While tracing, batch norm in eval mode is folded into the convolution or linear map before it (tracing.py): the same
function of the same parameters, so the Hessian stays that of W, gamma and beta.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from landscape.autodiff import trees
from landscape.autodiff.tracing import graph_for_batches, reuse_memory, stages, without_repeats
from landscape.autodiff.trees import Tree

Product = Callable[[tuple[Tensor, ...], Tree, Tree, tuple[Tensor, ...]], tuple[Tensor, ...]]
"""(state, inputs, targets, v) -> the product summed over the batch, in tensors of the parameters' shapes."""


@dataclass(frozen=True)
class Linearized:
    """The three stages of a product at one point, for any batch size."""

    shared: tuple[Tensor, ...]  # nodes that depend only on the state
    _residuals: fx.GraphModule
    _tangent: fx.GraphModule

    def residuals(self, inputs: Tree, targets: Tree) -> tuple[Any, ...]:
        """Compute everything that a product with this batch needs and that does not depend on the vector.

        Args:
            inputs: of the batch, in the structure and the shapes that were traced.
            targets: the same.

        Returns:
            Tensors and integers to pass to `product`.
        """
        with torch.no_grad():
            found: tuple[Any, ...] = self._residuals.forward(*self.shared, *trees.leaves((inputs, targets)))
        return found

    def product(self, residuals: Sequence[Any], v: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Multiply by a vector.

        Args:
            residuals: of one batch.
            v: tensors of the parameters' shapes.

        Returns:
            The product summed over the batch, in tensors of the parameters' shapes.
        """
        with torch.no_grad():
            found: tuple[Tensor, ...] = self._tangent.forward(*self.shared, *residuals, *v)
        return found


@dataclass(frozen=True)
class Stages:
    """The three stages of a product at any point."""

    _shared: fx.GraphModule
    _residuals: fx.GraphModule
    _tangent: fx.GraphModule

    def at(self, state: Sequence[Tensor]) -> Linearized:
        """Compute the values that depend only on the state.

        Args:
            state: in the order and the shapes that were traced.

        Returns:
            The product at this point.
        """
        with torch.no_grad():
            shared: tuple[Tensor, ...] = self._shared.forward(*state)
        return Linearized(shared=shared, _residuals=self._residuals, _tangent=self._tangent)


def n_bytes(values: Iterable[Any]) -> int:
    """Return the memory that tensors hold, each storage counted once."""
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in values if isinstance(t, Tensor)}
    return sum(storages.values())


def linearize(
    product: Product,
    theta: tuple[Tensor, ...],
    inputs: Tree,
    targets: Tree,
    fixed: tuple[Tensor, ...] = (),
    *,
    repeats: bool = False,
) -> Stages:
    """Trace a product and divide it into the three stages.

    Args:
        product: a function of (state, inputs, targets, v) that `torch.func` can transform.
        theta: the point, the first tensors of the state.
        inputs: an example batch with at least one sample.
        targets: targets of the same samples.
        fixed: the other tensors of the state.
        repeats: the product repeats operations, which are to be executed once.

    Returns:
        The stages.

    Raises:
        NotTraceableError: the model has control flow that depends on data, an operation without a forward-mode
            derivative, or in-place changes that cannot be undone.
    """
    state = (*theta, *fixed)
    traced = graph_for_batches(product, state, (inputs, targets), tuple(torch.ones_like(t) for t in theta))
    if repeats:
        traced = without_repeats(traced)
    graphs = stages(traced, (len(state), len(trees.leaves((inputs, targets))), len(theta)))
    reuse_memory(graphs[2].graph)
    graphs[2].recompile()
    return Stages(*graphs)
