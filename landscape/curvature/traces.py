"""Traces and diagonals without random probes, where the structure of the matrix allows it.

With S_i S_i^T = M_i the matrix between the Jacobians of sample i's logits (d^2 l / d z^2, or diag(p) - p p^T),

    diag(1/n sum_i J_i^T M_i J_i) = 1/n sum_i sum_k (J_i^T s_ik)^2,

a sum of squares of per-sample gradients, entry by entry: as many backward passes as there are classes. That is the
diagonal of the Gauss-Newton and Fisher matrices, and of the Hessian of every network that is piecewise linear in each
of its parameters (piecewise.py): the second derivatives of its logits have no diagonal. The trace is the diagonal's
sum. Random probes would take thousands of products for the same digits.
"""

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from landscape.autodiff import per_sample, single_samples
from landscape.autodiff.differentiable import differentiable_attention
from landscape.autodiff.piecewise import obstacle
from landscape.curvature.kinds import Functions, Kind
from landscape.errors import LandscapeError
from landscape.networks import models
from landscape.objective.objective import Objective

MOST_CLASSES = 512
"""Beyond that, the matrices between the Jacobians take more memory than they are worth."""


def refusal(objective: Objective, kind: Kind) -> str | None:
    """Say why trace and diagonal cannot be had without probes.

    Args:
        objective: model, loss and data in parts.
        kind: of matrix.

    Returns:
        The reason, or None if `trace` and `diagonal` will work.
    """
    n_classes = len(objective.samples.class_names)
    if kind.decomposes and n_classes > MOST_CLASSES:
        return f"{n_classes} classes are more than {MOST_CLASSES}"
    inputs, labels = objective.batch(0, 0)
    with differentiable_attention(), _trainable(objective):
        if kind.bends and (found := obstacle(objective.logits, objective.theta, inputs, objective.model)):
            return f"the logits are not known to be piecewise linear in each parameter: {found}"
        try:
            if len(labels) >= 3:
                per_sample.check(objective.model, lambda: objective.loss(_logits(objective, inputs), labels))
            functions = Functions(logits=objective.logits, loss=objective.loss)
            kind.factors(functions, objective.theta, inputs[:1], labels[:1])
            _squares(objective, inputs[:1], labels[:1])
        except (LandscapeError, RuntimeError) as error:
            return (str(error).splitlines() or [type(error).__name__])[0]
    return None


def trace(objective: Objective, kind: Kind, part: int) -> float:
    """Return the trace of a part's matrix, up to rounding.

    Args:
        objective: model, loss and data in parts, for which `refusal` returns None.
        kind: of matrix.
        part: position of the part.

    Returns:
        The trace, with that of the weight decay.
    """
    total = 0.0
    for sign, squares in _terms(objective, kind, part):
        total += sign * float(squares.sum())
    decay = objective.weight_decay * objective.layout.size if kind.decays else 0.0
    return total / int(objective.counts[part]) + decay


def diagonal(objective: Objective, kind: Kind, part: int) -> Tensor:
    """Return the diagonal of a part's matrix, up to rounding.

    Args:
        objective: as for `trace`.
        kind: of matrix.
        part: position of the part.

    Returns:
        (D,) float64, with the weight decay.
    """
    total = torch.zeros(objective.layout.size, dtype=torch.float64, device=objective.device)
    for sign, squares in _terms(objective, kind, part):
        total += sign * squares
    return total / int(objective.counts[part]) + (objective.weight_decay if kind.decays else 0.0)


def _terms(objective: Objective, kind: Kind, part: int) -> Iterator[tuple[int, Tensor]]:
    """Yield signs and vectors (D,) whose sum is the diagonal of the part's sum over samples."""
    functions = Functions(logits=objective.logits, loss=objective.loss)
    with differentiable_attention(), _trainable(objective):
        for inputs, labels in objective.batches(part):
            for sign, along in kind.factors(functions, objective.theta, inputs, labels):
                yield sign, _squares(objective, inputs, labels if along is None else along)


def _squares(objective: Objective, inputs: Tensor, along: Tensor) -> Tensor:
    """Add up the squared gradients of each sample's s^T z, or of its loss where labels are given; (D,) float64."""

    def value(outputs: Any, along: Tensor) -> Tensor:
        logits = models.logits_of(outputs, len(objective.samples.class_names), objective.logits_index)
        return objective.loss(logits, along) if along.ndim == 1 else (logits * along).sum(1)

    return single_samples.squared_gradients(objective.model, [(inputs, along)], value, objective.layout.names)


def _logits(objective: Objective, inputs: Tensor) -> Tensor:
    return models.logits_of(objective.model(inputs), len(objective.samples.class_names), objective.logits_index)


@contextmanager
def _trainable(objective: Objective) -> Generator[None, None, None]:
    chosen = [p for name, p in objective.model.named_parameters() if name in objective.layout.names]
    try:
        for p in chosen:
            p.requires_grad_(True)
        yield
    finally:
        for p in chosen:
            p.requires_grad_(False)
