"""Checks of a product when it is first computed: is the second derivative of the loss right, and the traced graph.

Derivatives can be wrong without an error. An autograd.Function that keeps an intermediate result, `detach()` inside a
normalisation: the second backward pass treats a variable as a constant. The traced product uses forward mode, which
has other errors, perhaps for some batches only. So

1. for each part, a product with the second derivative is compared with differences of the gradient: in float64, on a
   few samples, along one random direction with a step so small that no ReLU changes its sign. If units are exactly at
   their kink, differences scatter, and the comparison is repeated at a point nearby; if they scatter there too, u . H v
   is compared with v . H u instead;
2. for each batch, the traced product of a few samples is compared with that by backward passes;
3. Lanczos compares u . A v with v . A u for its first two vectors, over all samples of the part (lanczos.py).

Parameters with a gradient of exactly zero are left out of the direction. An example is the padding vector of an
embedding: it enters the loss, but autograd treats it as a constant.
"""

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from landscape.autodiff import trees
from landscape.autodiff.backward import Tensors, inner, norm, pull, second
from landscape.autodiff.differentiable import differentiable_attention
from landscape.autodiff.trees import Tree
from landscape.autodiff.wide import place, wide
from landscape.curvature.kinds import Batch, Factors, Functions, Kind, Loss, Losses
from landscape.errors import NumericalError, arg, is_of_memory

log = logging.getLogger(__name__)

_STEPS = {torch.float64: (1e-7, 1e-6, 1e-8), torch.float32: (1e-2, 3e-2, 3e-3)}
"""Lengths of the steps of differences, the first of which is enough as a rule; the others tell noise from error."""
_TOLERANCE = {torch.float64: 1e-3, torch.float32: 3e-2}
"""Of the product: what differences miss by is far less in float64, and what is wrong by less does not matter."""
_BESIDE = 1e-3
"""How far off kinks are left, as a fraction of the point's length."""


_OUTPUTS = 3  # random outputs at which a loss is tested: at those of a fitted model it may be flat


def some_of(batch: Batch, n: int) -> Batch:
    """Return a few samples of a batch: the first, the last, and some between."""
    size = trees.size(batch)
    index = torch.linspace(0, size - 1, min(n, size), device=trees.device(batch)).round().long()
    return trees.take(batch[0], index), trees.take(batch[1], index)


def fault_of_second_derivative(kind: Kind, functions: Functions, theta: Tensors, batch: Batch) -> str | None:
    """Compare products with the second derivative that a kind of matrix takes with differences of the gradient.

    Args:
        kind: the kind of matrix.
        functions: logits and loss.
        theta: the point, in float64 if the model runs in it.
        batch: a few samples.

    Returns:
        A description of the error; None if there is none, or if the kind of matrix needs no second derivative.

    Raises:
        NumericalError: PyTorch has no second derivative.
    """
    with differentiable_attention():
        curved = kind.curved(functions, tuple(t.detach().requires_grad_() for t in theta), batch)
        if curved is None:
            return None
        values, at = curved[0], tuple(t.detach() for t in curved[1])
        fault = _fault(values, at, at[0].dtype, kind.remedy)
        if fault is not None and at[0].dtype == torch.float64:
            with _Precision() as precision:
                kind.curved(functions, theta, batch)
                values(at)
            if precision.lowest != torch.float64:
                fault = _fault(values, at, torch.float32, kind.remedy)
    return fault


def refuse_fault(kind: Kind, fault: str | None, name: str) -> None:
    """Refuse a second derivative that is wrong.

    Args:
        kind: the kind of matrix.
        fault: from `fault_of_second_derivative`; None for none.
        name: of the part whose samples show it.

    Raises:
        NumericalError: there is a fault.
    """
    if fault is not None:
        raise NumericalError(
            f"PyTorch's second derivative of this model and loss is wrong: on samples of {name}, {fault}. An "
            "autograd.Function whose backward uses more than its inputs, detach() in a normalisation, or a "
            f"gradient that is not the loss's does that: write it in plain operations; {kind.remedy}"
        )


def refuse_zero(of: Losses, factors: Factors, z: Tensor, targets: Tree) -> None:
    """Refuse a matrix J^T M J in which M is zero for all outputs, as for an absolute error or a hinge loss.

    Args:
        of: the losses.
        factors: those of the kind of matrix.
        z: outputs of a few samples, (B, C).
        targets: targets of the same samples.

    Raises:
        InputError: the loss has no distribution that the matrix needs.
        NumericalError: the loss is linear in the outputs, between kinks.
    """
    if factors.middle is None:
        return
    loss, z = factors.middle(of), z.detach()
    generator = torch.Generator().manual_seed(0)
    drawn = [torch.randn(z.shape, generator=generator, dtype=torch.float64).to(z) for _ in range(_OUTPUTS)]
    first = trees.leaves(targets)[0]  # draws have weights beside the targets
    if first.is_floating_point() and first.numel() == z.numel():
        drawn.append(first.reshape(z.shape) + 0.1 * drawn[0])  # a robust loss is curved only near its targets
    for at in (z, *drawn):
        if _bends(loss, at, targets):
            return
    try:  # a number that is zero in float32 only is no property of the loss: products say so
        if any(_bends(loss, wide(at), trees.to(targets, place(at.device), torch.float64)) for at in (z, *drawn)):
            return
    except Exception as error:  # a loss of the user may be written for float32 only, and then raise any error
        if is_of_memory(error):
            raise
    raise NumericalError(
        "the second derivative of the loss in the model's outputs is zero, and so is a matrix that is made of it: it "
        f"says nothing of this loss; {arg('operator', 'hessian')} and {arg('operator', 'empirical-fisher')} do"
    )


def _bends(loss: Loss, z: Tensor, targets: Tree) -> bool:
    leaf = z.clone().requires_grad_()
    with torch.enable_grad():
        (found,) = second(loss(leaf, targets), (leaf,), [(torch.ones_like(leaf).cumsum(1),)])
    return bool(found[0].count_nonzero())


class _Precision(TorchDispatchMode):
    """Records the lowest precision that is used for real numbers: a model may convert float64 inputs to float32."""

    lowest = torch.float64

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        found = func(*args, **(kwargs or {}))
        for t in found if isinstance(found, tuple | list) else (found,):
            if isinstance(t, Tensor) and t.is_floating_point() and t.dtype.itemsize < self.lowest.itemsize:
                self.lowest = t.dtype
        return found


def _fault(
    values: Callable[[Tensors], Tensor], at: Tensors, dtype: torch.dtype, remedy: str, *, beside: bool = False
) -> str | None:
    """Say what is wrong with the products of the second derivative of summed values, computed in `dtype`."""

    def slopes(t: Tensors) -> Tensors:
        t = tuple(s.detach().requires_grad_() for s in t)
        return pull(values(t).sum(), t, None)

    eps, tolerance = torch.finfo(dtype).eps, _TOLERANCE[dtype]
    gradient = slopes(at)
    v, u = (_direction(gradient, seed) for seed in (0, 1))
    length = norm(gradient)
    if not length:
        return None
    leaves = tuple(t.detach().requires_grad_() for t in at)
    (Hv,) = second(values(leaves), leaves, [v], remedy)
    size = norm(Hv)
    found: list[Tensors] = []
    for step in _STEPS[dtype]:
        ends = [slopes(tuple(t + s * step * d for t, d in zip(at, v, strict=True))) for s in (1, -1)]
        found.append(tuple((a - b) / (2 * step) for a, b in zip(*ends, strict=True)))
        off = norm(_minus(found[-1], Hv))
        # The gradient of a fitted sample, p - 1, is a difference of numbers near 1, and has their rounding error.
        if off <= tolerance * max(size, norm(found[-1])) + 10 * eps * max(length, 1.0) / step:
            return None
    apart = [norm(_minus(found[0], other)) for other in found[1:]]
    if min(apart) <= tolerance * norm(found[0]):  # differences agree with each other
        off = norm(_minus(found[0], Hv))
        return f"H v is off by {off:.3g} of {norm(found[0]):.3g} from differences of the gradient"
    if not beside:  # the differences scatter here: try a point nearby
        away = _BESIDE * norm(at)
        return _fault(values, tuple(t + away * d for t, d in zip(at, u, strict=True)), dtype, remedy, beside=True)
    (Hu,) = second(values(leaves), leaves, [u], remedy)
    one, other = inner(u, Hv), inner(v, Hu)
    if not abs(one - other) <= eps**0.5 * (size + norm(Hu)) + 1e3 * eps * length:
        return f"u.Hv = {one:.6g}, but v.Hu = {other:.6g}"
    log.info("differences of the gradient scatter too much to tell whether the second derivative is right")
    return None


def _direction(gradient: Tensors, seed: int) -> Tensors:
    """Return a random vector of length 1, zero where the gradient is exactly zero."""
    generator = torch.Generator().manual_seed(seed)
    found = tuple(
        torch.randn(g.shape, generator=generator, dtype=torch.float64).to(g.device, g.dtype) * (g != 0)
        for g in gradient
    )
    length = norm(found) or 1.0
    return tuple(t / length for t in found)


def _minus(a: Tensors, b: Tensors) -> Tensors:
    return tuple(s - t for s, t in zip(a, b, strict=True))
