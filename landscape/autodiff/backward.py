"""Derivatives by backward passes alone: they ask nothing of a model but that autograd knows its operations."""

from typing import TypeAlias

import torch
from torch import Tensor

from landscape.errors import NumericalError, arg

Tensors: TypeAlias = tuple[Tensor, ...]


def pull(
    outputs: Tensor | Tensors, inputs: Tensors, cotangents: Tensor | Tensors | None, *, create_graph: bool = False
) -> Tensors:
    """Return J^T u, zero where an output does not depend on an input; the graph is kept for the next vector.

    Args:
        outputs: one tensor or several.
        inputs: tensors that require a gradient.
        cotangents: u, in the outputs' shapes; None for 1 where the output is one number.
        create_graph: the result shall have derivatives itself.

    Returns:
        J^T u, in tensors of the inputs' shapes.

    Raises:
        NumericalError: PyTorch knows no such derivative.
    """
    values = (outputs,) if isinstance(outputs, Tensor) else outputs
    given = (cotangents,) if cotangents is None or isinstance(cotangents, Tensor) else cotangents
    pairs = [(o, c) for o, c in zip(values, given, strict=True) if o.requires_grad]
    if not pairs:
        return tuple(torch.zeros_like(t) for t in inputs)
    try:
        found = torch.autograd.grad(
            [o for o, _ in pairs],
            inputs,
            grad_outputs=[c for _, c in pairs],
            retain_graph=True,
            create_graph=create_graph,
            materialize_grads=True,
        )
    except RuntimeError as error:
        raise NumericalError(
            "the model or the loss has no second derivative that PyTorch knows: "
            f"{str(error).splitlines()[0]}; {arg('operator', 'empirical-fisher')} needs only the first"
        ) from error
    return found


def second(values: Tensor, at: Tensors, vs: list[Tensors]) -> list[Tensors]:
    """Multiply the second derivative of summed values by vectors.

    Args:
        values: (B,), one for each sample.
        at: the tensors that they are differentiated by.
        vs: vectors in tensors of these shapes.

    Returns:
        A product for each vector.

    Raises:
        NumericalError: the values have no second derivative.
    """
    # Weights that require a gradient hand one to every backward function. For a constant cotangent an
    # autograd.Function that is marked once_differentiable leaves no trace at all, see _refuse_lost_derivatives.
    weights = torch.ones_like(values, requires_grad=True)
    slopes = pull(values @ weights, at, None, create_graph=True)
    _refuse_lost_derivatives(slopes)
    return [pull(slopes, at, v) for v in vs]


def _refuse_lost_derivatives(slopes: Tensors) -> None:
    """Look for derivatives that PyTorch would take for constants in the second pass: a wrong product and no error."""
    nodes = [slope.grad_fn for slope in slopes if slope.grad_fn is not None]
    seen = set(nodes)
    while nodes:
        node = nodes.pop()
        if node.name().endswith("Error"):  # DelayedError, as PyTorch names it in a graph
            raise NumericalError(
                "the model or the loss uses an autograd.Function marked once_differentiable: it has no second "
                f"derivative; {arg('operator', 'empirical-fisher')} needs only the first"
            )
        new = {n for n, _ in node.next_functions if n is not None} - seen
        seen |= new
        nodes.extend(new)
