"""Quadratic forms sample by sample: v^T A_i v of each sample's own matrix A_i, for a vector v.

Their mean is v^T A v, and their spread shows how much another draw of samples would change it. The second derivative of
each sample's loss along v comes from two forward tangents (jvp of jvp), or from backward passes alone: with
s(u) = v . grad (sum_i u_i l_i), the sum of u_i v^T H_i v is v . grad s(u), whose derivative in u is a third pass. Where
there is enough work, the tangents are traced, as products are (linearize.py): a third of their operations are repeats,
and batch norm is folded, so that they take a third of the time. Operations may have no second forward derivative or no
third backward one, or a wrong one, for some inputs only. So each way is compared, on a few samples of each batch, with
a product, which needs second derivatives only. Where none agrees, each sample takes a product of its own; a batch of so
few samples takes these at once. Matrices J_i^T M_i J_i take J_i v from `push`, which checks itself.
"""

import logging
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from landscape.autodiff import trees
from landscape.autodiff.backward import push, second
from landscape.autodiff.differentiable import differentiable_attention
from landscape.autodiff.linearize import Stages, linearize, n_bytes
from landscape.autodiff.trees import Tree
from landscape.autodiff.wide import wide
from landscape.curvature.checks import some_of
from landscape.curvature.functions import functions_of, work_of
from landscape.curvature.kinds import Batch, Factors, Functions, Kind, SecondDerivative, Tensors
from landscape.errors import InputError, is_of_memory, one_line
from landscape.networks.outputs import OwnLoss
from landscape.objective.objective import Objective

log = logging.getLogger(__name__)

Way: TypeAlias = Callable[[Tensors, Tree, Tree], Tensor]
"""(v, inputs, targets) -> v^T A_i v, (B,)."""
_CHECKED = 4  # samples of a batch
_ROUNDING = 3
"""Times the estimate of their rounding by which forms may be off: they are by up to 0.4 times, in fitted networks."""
_WORTH = 2e10
"""Multiplications of the forward passes of all forms from which on a trace saves more time than it takes (measured for
a ResNet-20 on one thread of a CPU: some 500 forms)."""
_BYTES = 2**29
"""Memory for what the tangents of some samples need, beside that of one sample."""


def quadratic_forms(objective: Objective, kind: Kind, index: np.ndarray, vector: Tensor) -> np.ndarray:
    """Return v^T A_i v for some samples.

    Args:
        objective: model and loss; weight decay is not included, because it does not depend on the samples. The
            processes of its team divide the samples.
        kind: the kind of matrix.
        index: positions of the samples in the data, (n,).
        vector: v, (D,).

    Returns:
        (n,) float64.

    Raises:
        InputError: a matrix that is not known sample by sample.
        NumericalError: PyTorch knows no derivative of the model or the loss.
    """
    return forms_along(objective, kind, [(index, vector)])[0]


def forms_along(
    objective: Objective, kind: Kind, pieces: Sequence[tuple[np.ndarray, Tensor]], *, in_all: int | None = None
) -> list[np.ndarray]:
    """Return v^T A_i v for several sets of samples, each along its own vector.

    Ways are compared on some samples of each batch, except for those whose samples have been in such batches. If none
    is right, each sample takes a product of its own, and a warning is logged once.

    Args:
        objective: as for `quadratic_forms`.
        kind: of matrix.
        pieces: samples and vector, as for `quadratic_forms`.
        in_all: about how many forms are computed of this network, in this call and others; None for those of this one.

    Returns:
        One array for each piece.

    Raises:
        InputError: a matrix that is not known sample by sample.
        NumericalError: PyTorch knows no derivative of the model or the loss.
    """
    found, ways = [], _ways(objective, kind, pieces, in_all)
    covered: dict[object, np.ndarray] = {}  # by shape: longer sequences may take another way
    for index, vector in pieces:
        v = tuple(objective.layout.tensors(vector.to(objective.device, objective.dtype)))
        values: list[Tensor] = []
        own = index[objective.team.share(len(index))]
        for start in range(0, len(own), objective.batch_size):
            some = own[start : start + objective.batch_size]
            batch = objective.samples.batch(some, objective.device, objective.dtype)
            before = covered.get(shape := trees.shape(batch), np.empty(0, dtype=np.int64))
            if isinstance(kind, SecondDerivative) and len(ways) > 1 and not np.isin(some, before).all():
                if len(some) <= _CHECKED:  # the comparison would compute all of it
                    values.append(_values(ways[-1], v, batch))
                    continue
                ways = _right_ones(objective, kind, ways, v, some_of(batch, _CHECKED))
                covered[shape] = np.append(before, some)
            values.append(_values(ways[0], v, batch))
        each = torch.cat(values).cpu() if values else torch.empty(0, dtype=torch.float64)
        found.append(objective.team.gathered(each).numpy())
    return found


def _ways(
    objective: Objective, kind: Kind, pieces: Sequence[tuple[np.ndarray, Tensor]], in_all: int | None
) -> list[Way]:
    """Return the ways to compute forms, the fastest first; the last one takes products and is right."""
    functions, theta = functions_of(objective), objective.theta
    if kind.factors is not None and kind.has_rows:
        return [partial(_of_factors, kind.factors, functions, theta)]
    if not isinstance(kind, SecondDerivative):
        raise InputError(f"the matrix {kind.name} is not known sample by sample")
    ways: list[Way] = [partial(way, kind, functions, theta) for way in (_forward, _backward, _one_by_one)]
    n, largest = sum(len(index) for index, _ in pieces), max((index for index, _ in pieces), key=len, default=())
    useful = min(len(largest), objective.batch_size) > _CHECKED and not isinstance(objective.outputs, OwnLoss)
    if useful and max(n, in_all or 0) * work_of(objective) >= _WORTH:
        traced = _traced(objective, kind, np.asarray(largest), ways[-2])
        ways = ways if traced is None else [traced, *ways]
    return ways


def _traced(objective: Objective, kind: SecondDerivative, index: np.ndarray, otherwise: Way) -> Way | None:
    """Return the way by a graph of the two tangents, which all points of the network share; None if there is none.

    Samples of another shape than the traced ones, such as longer sequences, are taken `otherwise`.
    """
    example = objective.samples.batch(index[:_CHECKED], objective.device, objective.dtype)
    of = (kind, objective.loss, objective.likelihood)
    shape = trees.shape(example)
    key = "form", objective.layout.names, objective.dtype, objective.device, shape
    known, n = objective.known.get(key, of), len(objective.theta)

    def form(state: Tensors, inputs: Tree, targets: Tree, v: Tensors) -> Tensors:
        return (kind.along(functions_of(objective, state[n:]), state[:n], (inputs, targets), v),)

    with differentiable_attention():
        try:
            if known is None:
                known = linearize(form, objective.theta, *example, objective.fixed, repeats=True)
            if isinstance(known, Stages):
                graph = known.at((*objective.theta, *objective.fixed))
                size = max(1, _BYTES * trees.size(example) // max(1, n_bytes(graph.residuals(*example))))
        except Exception as error:  # tracing runs a user's model, which may fail in any way
            if is_of_memory(error):
                raise
            known = one_line(error)
    objective.known.put(key, known, of)
    if not isinstance(known, Stages):
        log.info("quadratic forms are not traced, because %s", known)
        return None

    def way(v: Tensors, inputs: Tree, targets: Tree) -> Tensor:
        if trees.shape((inputs, targets)) != shape:
            return otherwise(v, inputs, targets)
        starts = range(0, trees.size(inputs), size)
        some = (trees.take((inputs, targets), slice(start, start + size)) for start in starts)
        return torch.cat([graph.product(graph.residuals(*batch), v)[0] for batch in some])

    return way


def _values(way: Way, v: Tensors, batch: Batch) -> Tensor:
    """Return the forms of a batch by one way, (B,) float64."""
    with differentiable_attention():
        return wide(way(v, *batch).detach())


def _right_ones(objective: Objective, kind: SecondDerivative, ways: list[Way], v: Tensors, batch: Batch) -> list[Way]:
    """Return the ways from the first one on whose forms of some samples add up to those of a product."""
    functions, theta, reason = functions_of(objective), objective.theta, ""
    u = torch.arange(1.0, trees.size(batch) + 1, dtype=torch.float64)  # of different weights errors do not cancel
    tolerance = 1e-3 if objective.dtype == torch.float32 else 1e-9
    with differentiable_attention():
        expected = _summed(kind, functions, theta, u, v, batch).item()

    @cache
    def rounding() -> float:
        with differentiable_attention():
            return _ROUNDING * _rounding(functions, theta, u, v, batch)

    for k, way in enumerate(ways[:-1]):
        try:
            found = u * _values(way, v, batch).cpu()
        except Exception as error:  # each operation has its own message for a missing derivative
            if is_of_memory(error):
                raise
            reason = one_line(error)
        else:
            off, size = abs(found.sum().item() - expected), found.abs().max().item()
            if off <= tolerance * size or off <= rounding():
                return ways[k:]
            reason = f"one is off by {off:.3g} of {size:.3g}"
        log.info("quadratic forms are computed in another way, because %s", reason)
    if objective.known.first("forms one by one"):
        log.warning(
            "curvatures of single samples along a vector are computed one by one, which is slow, because no way for "
            "several samples at a time is right: the last one needs a third derivative by backward passes, and %s",
            reason,
        )
    return ways[-1:]


def _of_factors(
    factors: Factors, functions: Functions, theta: Tensors, v: Tensors, inputs: Tree, targets: Tree
) -> Tensor:
    """Add up sign_ik (s_ik . J_i v)^2."""
    theta = tuple(t.detach().requires_grad_() for t in theta)

    def outputs(some: slice) -> Tensor:
        x, y = trees.take((inputs, targets), some)
        return factors.outputs(functions, functions.logits(theta, x), y)

    value, (along,) = push(outputs, theta, [v])
    middle = factors.split(functions, value.detach(), targets)
    slopes = middle.along(wide(along.detach()).cpu().reshape(len(along), -1))
    return (middle.signs * slopes.square()).sum(1)


def _forward(
    kind: SecondDerivative, functions: Functions, theta: Tensors, v: Tensors, inputs: Tree, targets: Tree
) -> Tensor:
    return kind.along(functions, theta, (inputs, targets), v)


def _backward(
    kind: SecondDerivative, functions: Functions, theta: Tensors, v: Tensors, inputs: Tree, targets: Tree
) -> Tensor:
    theta = tuple(t.detach().requires_grad_() for t in theta)
    values = kind.curved(functions, theta, (inputs, targets))[0](theta)
    u = torch.ones_like(values, requires_grad=True)
    summed = u @ values
    for _ in range(2):
        slopes = torch.autograd.grad(summed, theta, create_graph=True, materialize_grads=True)
        summed = torch.stack([(s * t).sum() for s, t in zip(slopes, v, strict=True)]).sum()
    return torch.autograd.grad(summed, u, materialize_grads=True)[0]


def _one_by_one(
    kind: SecondDerivative, functions: Functions, theta: Tensors, v: Tensors, inputs: Tree, targets: Tree
) -> Tensor:
    """Take a product with each sample alone."""
    return torch.stack([
        _summed(kind, functions, theta, torch.ones(1), v, one) for one in trees.each((inputs, targets))
    ])


def _summed(
    kind: SecondDerivative, functions: Functions, theta: Tensors, u: Tensor, v: Tensors, batch: Batch
) -> Tensor:
    """Return v^T (sum_i u_i A_i) v by a product, which needs second derivatives only."""
    theta = tuple(t.detach().requires_grad_() for t in theta)
    return _along(kind.curved(functions, theta, batch)[0](theta), theta, u, v, kind.remedy)


def _rounding(functions: Functions, theta: Tensors, u: Tensor, v: Tensors, batch: Batch) -> float:
    """Return the rounding of sum_i u_i v^T H_i v: numbers near 1 cancel in the loss of fitted samples, as in p - 1.

    It is that of a loss which has the slope 1 in each output and the second derivative 1.
    """
    theta = tuple(t.detach().requires_grad_() for t in theta)
    z = functions.logits(theta, batch[0])
    eps = torch.finfo(torch.float64 if functions.widens else z.dtype).eps
    return eps * abs(_along((z - z.detach() + 1).square().reshape(len(z), -1).sum(1) / 2, theta, u, v).item())


def _along(values: Tensor, theta: Tensors, u: Tensor, v: Tensors, remedy: str | None = None) -> Tensor:
    """Return the second derivative along v of sum_i u_i values_i."""
    (product,) = second(u.to(values) * values, theta, [v], remedy)
    return torch.stack([(wide(s) * wide(t)).sum() for s, t in zip(v, product, strict=True)]).sum()
