"""Derivatives by backward passes only: autograd must support the model's operations, and nothing else is needed."""

import logging
from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

from landscape.autodiff.wide import wide
from landscape.errors import NumericalError, arg, is_of_memory, one_line

log = logging.getLogger(__name__)

Tensors: TypeAlias = tuple[Tensor, ...]


def pull(outputs: Tensor | Tensors, inputs: Tensors, cotangents: Tensor | Tensors | None) -> Tensors:
    """Return J^T u, with zeros if an output does not depend on an input; the graph is kept for the next vector.

    Args:
        outputs: one tensor or several.
        inputs: tensors that require a gradient.
        cotangents: u, in the outputs' shapes; None for 1 if the output is one number.

    Returns:
        J^T u, in tensors of the inputs' shapes.

    Raises:
        NumericalError: PyTorch knows no such derivative.
        RuntimeError: memory has run out.
    """
    try:
        return _pull(outputs, inputs, cotangents)
    except RuntimeError as error:
        if is_of_memory(error):
            raise
        raise NumericalError(
            f"the model or the loss has no derivative that PyTorch knows: {one_line(error)}"
        ) from error


def _pull(
    outputs: Tensor | Tensors, inputs: Tensors, cotangents: Tensor | Tensors | None, *, create_graph: bool = False
) -> Tensors:
    values = (outputs,) if isinstance(outputs, Tensor) else outputs
    given = (cotangents,) if cotangents is None or isinstance(cotangents, Tensor) else cotangents
    pairs = [(o, c) for o, c in zip(values, given, strict=True) if o.requires_grad]
    if not pairs:
        return tuple(torch.zeros_like(t) for t in inputs)
    found: Tensors = torch.autograd.grad(
        [o for o, _ in pairs],
        inputs,
        grad_outputs=[c for _, c in pairs],
        retain_graph=True,
        create_graph=create_graph,
        materialize_grads=True,
    )
    return found if create_graph else tuple(t.detach() for t in found)  # some versions make zeros that require one


def push(outputs: Callable[[slice], Tensor], theta: Tensors, vs: list[Tensors]) -> tuple[Tensor, list[Tensor]]:
    """Return outputs and their first derivatives J v along vectors.

    The derivative of u -> J^T u along v is J v, for the price of a backward pass, where each operation on the way has a
    second derivative. Where one has none, or loses it without an error, J is computed row by row: a backward pass for
    each number of each sample. For any u, u . J v = v . J^T u tells, and that needs first derivatives only.

    Args:
        outputs: of some of the samples, (b, ...), at theta.
        theta: tensors that require a gradient.
        vs: vectors in tensors of these shapes.

    Returns:
        The outputs of all samples with their graph, (B, ...), and J v of the same shape for each vector.

    Raises:
        NumericalError: the outputs have no first derivative.
        RuntimeError: memory has run out.
    """
    value = outputs(slice(None))
    probe = torch.zeros_like(value, requires_grad=True)
    try:
        pulled = _pull(value, theta, probe, create_graph=True)
        tangents = [_pull(pulled, (probe,), v)[0] for v in vs]
        reason = _mismatch(value, theta, vs, tangents)
    except RuntimeError as error:
        if is_of_memory(error):
            raise
        reason = one_line(error)
    if reason is None:
        return value, tangents
    log.info("the Jacobian is computed row by row, because its transpose has no right derivative: %s", reason)
    of_each = [_push_by_rows(outputs(slice(i, i + 1)), theta, vs) for i in range(len(value))]
    return value, [torch.cat(pieces) for pieces in zip(*of_each, strict=True)]


def _mismatch(value: Tensor, theta: Tensors, vs: list[Tensors], tangents: list[Tensor]) -> str | None:
    generator = torch.Generator().manual_seed(0)
    u = torch.randn(value.shape, generator=generator, dtype=torch.float64).to(value)
    back = pull(value, theta, u)
    eps = max(torch.finfo(t.dtype).eps for t in (value, *theta))  # losses may be wider than what they are made of
    pairs: list[tuple[Tensors, Tensors]] = []
    for v, tangent in zip(vs, tangents, strict=True):
        pairs += [((u,), (tangent,)), (v, back), ((tangent,), (tangent,)), (v, v), (back, back)]
    numbers = torch.stack([_inner(*pair) for pair in pairs])
    for ours, theirs, square, of_v, of_back in numbers.reshape(-1, 5).tolist():  # read once: the host waits for it
        # Rounding of deep networks is some thousand units of the lengths, and less in their product's many terms.
        room = 1e3 * eps * (square**0.5 + (of_v * of_back) ** 0.5)
        if not abs(ours - theirs) <= room:
            return f"u.(J v) = {ours:.6g}, v.(J^T u) = {theirs:.6g}"
    return None


def _push_by_rows(value: Tensor, theta: Tensors, vs: list[Tensors]) -> list[Tensor]:
    """Return J v of one sample, (1, ...), for each vector."""
    seeds = torch.eye(value.numel(), dtype=value.dtype, device=value.device).reshape(-1, *value.shape)
    rows = [pull(value, theta, seed) for seed in seeds]
    return [
        torch.stack([torch.stack([(r * t).sum() for r, t in zip(row, v, strict=True)]).sum() for row in rows]).view_as(
            value
        )
        for v in vs
    ]


def first_only() -> str:
    """Return advice for the case that PyTorch has no second derivative, or a wrong one."""
    return f"{arg('operator', 'empirical-fisher')} needs only the first"


def second(values: Tensor, at: Tensors, vs: list[Tensors], remedy: str | None = None) -> list[Tensors]:
    """Multiply the second derivative of summed values by vectors.

    Args:
        values: (B,), one for each sample.
        at: the tensors with respect to which they are differentiated.
        vs: vectors in tensors of these shapes.
        remedy: advice at the end of the message if there is no second derivative; None for `first_only`.

    Returns:
        A product for each vector.

    Raises:
        NumericalError: the values have no second derivative.
        RuntimeError: memory has run out.
    """
    return _second(values, at, lambda slopes: vs, remedy)[1]


def along_gradient(values: Tensor, at: tuple[Tensor, ...], remedy: str | None = None) -> tuple[Tensors, Tensors]:
    """Return the gradient g of summed values, and their second derivative times g; arguments and errors as `second`."""
    g, (product,) = _second(values, at, lambda slopes: [tuple(s.detach() for s in slopes)], remedy)
    return g, product


def _second(
    values: Tensor, at: Tensors, vectors: Callable[[Tensors], list[Tensors]], remedy: str | None
) -> tuple[Tensors, list[Tensors]]:
    """Return the gradient, and the second derivative times the vectors that are made of it."""
    # If weights require a gradient, every backward function receives one that requires a gradient too. With a constant
    # cotangent, an autograd.Function marked once_differentiable could not be detected, see _lost_derivatives.
    weights = torch.ones_like(values, requires_grad=True)
    try:
        slopes = _pull(values @ weights, at, None, create_graph=True)
        if not _lost_derivatives(slopes):
            products = [_pull(slopes, at, v) for v in vectors(slopes)]
            return tuple(s.detach() for s in slopes), products
        reason = "it uses an autograd.Function marked once_differentiable"
    except RuntimeError as error:
        if is_of_memory(error):
            raise
        reason = one_line(error)
    remedy = first_only() if remedy is None else remedy
    raise NumericalError(f"the model or the loss has no second derivative that PyTorch knows: {reason}; {remedy}")


def second_of_each(function: Callable[[Tensor], Tensor], z: Tensor, remedy: str | None = None) -> Tensor:
    """Return the second derivative of each sample's value with respect to its own row.

    Args:
        function: (B, C) -> (B,), row by row; it must have a second derivative.
        z: (B, C).
        remedy: as for `second`.

    Returns:
        (B, C, C).

    Raises:
        NumericalError: the values have no second derivative.
        RuntimeError: memory has run out.
    """
    z = z.detach().requires_grad_()
    with torch.enable_grad():
        along: list[Tensors] = [(e.expand_as(z),) for e in torch.eye(z.shape[1], dtype=z.dtype, device=z.device)]
        columns = second(function(z), (z,), along, remedy)
    return torch.stack([column.detach() for (column,) in columns], dim=2)


def _lost_derivatives(slopes: Tensors) -> bool:
    """Find derivatives that PyTorch would silently treat as constants in the second pass."""
    nodes = [slope.grad_fn for slope in slopes if slope.grad_fn is not None]
    seen = set(nodes)
    while nodes:
        node = nodes.pop()
        if node.name().endswith("Error"):  # DelayedError, as PyTorch names it in a graph
            return True
        new = {n for n, _ in node.next_functions if n is not None} - seen
        seen |= new
        nodes.extend(new)
    return False


def inner(a: Tensors, b: Tensors) -> float:
    """Return the inner product of two vectors in tensors, summed in float64."""
    return float(_inner(a, b))


def _inner(a: Tensors, b: Tensors) -> Tensor:
    return torch.stack([(wide(s.detach()) * wide(t.detach())).sum() for s, t in zip(a, b, strict=True)]).sum()


def norm(a: Tensors) -> float:
    """Return the length of a vector in tensors."""
    return float(inner(a, a) ** 0.5)
