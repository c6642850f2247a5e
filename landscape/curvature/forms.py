"""Quadratic forms sample by sample: v^T A_i v of each sample's own matrix A_i, for a vector v.

Their mean is v^T A v, and their spread shows how much another draw of samples would change it. The second derivative of
each sample's loss along v comes from two forward tangents (jvp of jvp), or from backward passes alone: with
s(u) = v . grad (sum_i u_i l_i), the sum of u_i v^T H_i v is v . grad s(u). Operations may have no second forward
derivative, or a wrong one (torch 2.13: a transformer's encoder layer), for some inputs only; both ways are compared on
a few samples of each batch, as the backward one takes three times the memory. A batch of so few samples takes it at
once. Matrices J_i^T M_i J_i take J_i v from `push`, which checks itself.
"""

import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.func import jvp

from landscape.autodiff import trees
from landscape.autodiff.backward import push
from landscape.autodiff.differentiable import differentiable_attention
from landscape.autodiff.trees import Tree
from landscape.autodiff.wide import wide
from landscape.curvature.functions import functions_of
from landscape.curvature.kinds import Factors, Functions, Kind, SecondDerivative, Tensors
from landscape.errors import InputError, is_of_memory, one_line
from landscape.objective.objective import Objective

log = logging.getLogger(__name__)

Form: TypeAlias = Callable[[Tree, Tree], Tensor]
"""(inputs, targets) -> v^T A_i v, (B,)."""
_CHECKED = 4  # samples of a batch


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


def forms_along(objective: Objective, kind: Kind, pieces: Sequence[tuple[np.ndarray, Tensor]]) -> list[np.ndarray]:
    """Return v^T A_i v for several sets of samples, each along its own vector.

    Both methods are compared on some samples of each batch, except for those whose samples have been in such batches.

    Args:
        objective: as for `quadratic_forms`.
        kind: of matrix.
        pieces: samples and vector, as for `quadratic_forms`.

    Returns:
        One array for each piece.

    Raises:
        InputError: a matrix that is not known sample by sample.
        NumericalError: PyTorch knows no derivative of the model or the loss.
    """
    functions = functions_of(objective)

    def of(form: Form, some: np.ndarray) -> Tensor:
        batch = objective.samples.batch(some, objective.device, objective.dtype)
        with differentiable_attention():
            return wide(form(*batch).detach())

    found, forward = [], True
    covered = np.empty(0, dtype=np.int64)
    for index, vector in pieces:
        v = tuple(objective.layout.tensors(vector.to(objective.device, objective.dtype)))
        form: Form
        if kind.factors is not None and kind.has_rows:
            form = twin = partial(_of_factors, kind.factors, functions, objective.theta, v)
        elif isinstance(kind, SecondDerivative):
            form, twin = (partial(way, kind, functions, objective.theta, v) for way in (_forward, _backward))
            form = form if forward else twin
        else:
            raise InputError(f"the matrix {kind.name} is not known sample by sample")
        values: list[Tensor] = []
        own = index[objective.team.share(len(index))]
        for start in range(0, len(own), objective.batch_size):
            batch = own[start : start + objective.batch_size]
            if len(batch) <= _CHECKED:  # the comparison would compute all of it
                values.append(of(twin, batch))
                continue
            if form is not twin and not np.isin(batch, covered).all():
                few = batch[np.linspace(0, len(batch) - 1, _CHECKED).round().astype(int)]
                form = _right_one(form, twin, partial(of, some=few), objective.dtype)
                covered = np.append(covered, batch)
            values.append(of(form, batch))
        forward = form is not twin
        each = torch.cat(values).cpu() if values else torch.empty(0, dtype=torch.float64)
        found.append(objective.team.gathered(each).numpy())
    return found


def _right_one(form: Form, twin: Form, values: Callable[[Form], Tensor], dtype: torch.dtype) -> Form:
    """Return a form if it gives the right numbers for some samples; otherwise the same form by backward passes."""
    expected = values(twin)
    try:
        found = values(form)
    except (RuntimeError, NotImplementedError) as error:  # each operation has its own message for a missing derivative
        if is_of_memory(error):
            raise
        log.info("quadratic forms take backward passes, because %s", one_line(error))
        return twin
    off, size = (found - expected).abs().max().item(), expected.abs().max().item()
    if not off <= (1e-3 if dtype == torch.float32 else 1e-9) * size:
        log.info("quadratic forms take backward passes, because forward ones are off by %.3g of %.3g", off, size)
        return twin
    return form


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
    values, theta = kind.curved(functions, theta, (inputs, targets))

    def slopes(t: Tensors) -> Tensor:
        return _slope(values, t, v)

    return _slope(slopes, theta, v)


def _slope(function: Callable[[Tensors], Tensor], theta: Tensors, v: Tensors) -> Tensor:
    found: Tensor = jvp(function, (theta,), (v,))[1]
    return found


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
