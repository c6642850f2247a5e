"""Quadratic forms sample by sample: v^T A_i v of each sample's own matrix A_i, for a vector v.

Their mean is v^T A v, and their spread says how far another draw of samples would change it. The second derivative of
each sample's loss along v comes from two forward tangents (jvp of jvp), or from backward passes alone: with
s(u) = v . grad (sum_i u_i l_i), the sum of u_i v^T H_i v is v . grad s(u). Operations may have no second forward
derivative, or a wrong one (torch 2.13: a transformer's encoder layer); both ways are compared on a few samples.
"""

import logging
from collections.abc import Callable, Mapping
from functools import partial
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.func import grad, jvp

from landscape.autodiff.differentiable import differentiable_attention
from landscape.errors import check_choice
from landscape.objective.objective import Objective

log = logging.getLogger(__name__)

Tensors: TypeAlias = tuple[Tensor, ...]
Form: TypeAlias = Callable[..., Tensor]
_CHECKED = 4  # samples


def quadratic_forms(objective: Objective, kind: str, index: np.ndarray, vector: Tensor) -> np.ndarray:
    """Return v^T A_i v of some samples.

    Args:
        objective: model and loss; weight decay, which is no sample's, does not enter.
        kind: a name of `kinds.KINDS`.
        index: positions of the samples in the data, (n,).
        vector: v, (D,).

    Returns:
        (n,) float64.

    Raises:
        InputError: a matrix that is not known sample by sample.
    """
    check_choice("kind", kind, FORMS)
    v = tuple(objective.layout.tensors(vector.to(objective.device, objective.dtype)))

    def of(form: Form, some: np.ndarray) -> Tensor:
        inputs, labels = objective.samples.batch(some, objective.device, objective.dtype)
        with differentiable_attention():
            return form(objective, inputs, labels, v).detach().double().cpu()

    form = FORMS[kind]
    if kind in {"hessian", "residual"} and len(index):
        form = _checked(form, lambda form: of(form, index[:_CHECKED]), objective.dtype)
    starts = range(0, len(index), objective.batch_size)
    found = [of(form, index[start : start + objective.batch_size]) for start in starts]
    return torch.cat(found).numpy() if found else np.empty(0)


def _checked(form: Form, values: Callable[[Form], Tensor], dtype: torch.dtype) -> Form:
    """Return a form that is right on some samples: the given one, or its twin by backward passes."""
    twin = partial(form, backward=True)
    expected = values(twin)
    try:
        found = values(form)
    except (RuntimeError, NotImplementedError) as error:  # each operation says in its own words that it has none
        log.info("quadratic forms take backward passes, because %s", (str(error).splitlines() or [""])[0])
        return twin
    off, size = (found - expected).abs().max().item(), expected.abs().max().item()
    if not off <= (1e-3 if dtype == torch.float32 else 1e-9) * size:
        log.info("quadratic forms take backward passes, because forward ones are off by %.3g of %.3g", off, size)
        return twin
    return form


def _hessian(objective: Objective, inputs: Tensor, labels: Tensor, v: Tensors, *, backward: bool = False) -> Tensor:
    def losses(theta: Tensors) -> Tensor:
        return objective.losses(theta, inputs, labels)

    def slopes(theta: Tensors) -> Tensor:
        return _slope(losses, theta, v)

    return _backward(losses, objective.theta, v) if backward else _slope(slopes, objective.theta, v)


def _slope(function: Callable[[Tensors], Tensor], theta: Tensors, v: Tensors) -> Tensor:
    found: Tensor = jvp(function, (theta,), (v,))[1]
    return found


def _backward(losses: Callable[[Tensors], Tensor], theta: Tensors, v: Tensors) -> Tensor:
    theta = tuple(t.detach().requires_grad_() for t in theta)
    values = losses(theta)
    u = torch.ones_like(values, requires_grad=True)
    summed = u @ values
    for _ in range(2):
        slopes = torch.autograd.grad(summed, theta, create_graph=True, materialize_grads=True)
        summed = torch.stack([(s * t).sum() for s, t in zip(slopes, v, strict=True)]).sum()
    return torch.autograd.grad(summed, u, materialize_grads=True)[0]


def _ggn(objective: Objective, inputs: Tensor, labels: Tensor, v: Tensors) -> Tensor:
    def summed(z: Tensor) -> Tensor:
        return objective.loss(z, labels).sum()

    z, along = _logits(objective, inputs, v)
    bent: Tensor = jvp(grad(summed), (z,), (along,))[1]
    return (along * bent).sum(1)


def _residual(objective: Objective, inputs: Tensor, labels: Tensor, v: Tensors, *, backward: bool = False) -> Tensor:
    return _hessian(objective, inputs, labels, v, backward=backward) - _ggn(objective, inputs, labels, v)


def _fisher(objective: Objective, inputs: Tensor, labels: Tensor, v: Tensors) -> Tensor:
    z, along = _logits(objective, inputs, v)
    p = z.softmax(1)
    return (p * (along - (p * along).sum(1, keepdim=True)).square()).sum(1)


def _squares(objective: Objective, inputs: Tensor, labels: Tensor, v: Tensors) -> Tensor:
    def losses(theta: Tensors) -> Tensor:
        return objective.losses(theta, inputs, labels)

    return _slope(losses, objective.theta, v).square()


def _logits(objective: Objective, inputs: Tensor, v: Tensors) -> tuple[Tensor, Tensor]:
    def logits(theta: Tensors) -> Tensor:
        return objective.logits(theta, inputs)

    z, along = jvp(logits, (objective.theta,), (v,))[:2]
    return z, along


FORMS: Mapping[str, Form] = {
    "hessian": _hessian,
    "ggn": _ggn,
    "residual": _residual,
    "fisher": _fisher,
    "empirical-fisher": _squares,
}
"""By the matrix's name: (objective, inputs, labels, v) -> (B,)."""
