"""Traces without random probes, where the structure of the matrix allows it.

With S_i S_i^T = M_i the matrix between the Jacobians of sample i's logits (d^2 l / d z^2, or diag(p) - p p^T),

    tr(1/n sum_i J_i^T M_i J_i) = 1/n sum_i sum_k |J_i^T s_ik|^2,

a sum of squared norms of per-sample gradients: as many backward passes as there are classes. That is the trace of the
Gauss-Newton and Fisher matrices, and of the Hessian of every network that is piecewise linear in each of its parameters
(piecewise.py): its logits add nothing to the trace. Random probes would take thousands of products for the same digits.
"""

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.func import hessian, vmap

from landscape.autodiff import per_sample, single_samples
from landscape.autodiff.piecewise import linear_in_each_parameter
from landscape.errors import LandscapeError
from landscape.networks import models
from landscape.objective.objective import Objective, differentiable_attention

MOST_CLASSES = 512
"""Beyond that, the matrices between the Jacobians take more memory than they are worth."""


def refusal(objective: Objective, kind: str) -> str | None:
    """Say why a trace cannot be had without probes.

    Args:
        objective: model, loss and data in parts.
        kind: "hessian", "ggn", "fisher" or "empirical-fisher".

    Returns:
        The reason, or None if `exact` will work.
    """
    n_classes = len(objective.samples.class_names)
    if kind != "empirical-fisher" and n_classes > MOST_CLASSES:
        return f"{n_classes} classes are more than {MOST_CLASSES}"
    inputs, labels = objective.batch(0, 0)
    with differentiable_attention(), _trainable(objective):
        if kind == "hessian" and not linear_in_each_parameter(objective.logits, objective.theta, inputs):
            return "the logits are not known to be piecewise linear in each parameter"
        try:
            if len(labels) >= 3:
                per_sample.check(objective.model, lambda: objective.loss(_logits(objective, inputs), labels))
            _squares(objective, inputs[:1], labels[:1])
        except (LandscapeError, RuntimeError) as error:
            return (str(error).splitlines() or [type(error).__name__])[0]
    return None


def exact(objective: Objective, kind: str, part: int) -> float:
    """Return the trace of a part's matrix, up to rounding.

    Args:
        objective: model, loss and data in parts, for which `refusal` returns None.
        kind: as in `operators.curvature_operator`.
        part: position of the part.

    Returns:
        The trace, with that of the weight decay.
    """
    total = 0.0
    with differentiable_attention(), _trainable(objective):
        for inputs, labels in objective.batches(part):
            for sign, along in _factors(objective, kind, inputs, labels):
                total += sign * _squares(objective, inputs, labels if along is None else along)
    decay = 0.0 if kind == "empirical-fisher" else objective.weight_decay * objective.layout.size
    return total / int(objective.counts[part]) + decay


@torch.no_grad()
def _factors(objective: Objective, kind: str, inputs: Tensor, labels: Tensor) -> list[tuple[int, Tensor | None]]:
    """Return for each k the s_ik of the batch, (B, C), with their sign; None stands for the gradient of the loss."""
    if kind == "empirical-fisher":
        return [(1, None)]
    z = _logits(objective, inputs).double()
    if kind == "fisher":
        p = z.softmax(1)
        middle = torch.diag_embed(p) - p[:, :, None] * p[:, None]
    else:
        middle = vmap(hessian(lambda z, y: objective.loss(z[None], y[None])[0]))(z, labels)
    values, vectors = torch.linalg.eigh(middle)
    found: list[tuple[int, Tensor | None]] = []
    # A user's loss need not be convex in the logits: what an eigenvalue adds has its sign.
    for sign in (1, -1):
        roots = (sign * values).clamp(min=0).sqrt()
        for k in torch.nonzero(roots.amax(0) > 1e-7 * values.abs().max().sqrt()).flatten().tolist():
            found.append((sign, (roots[:, k, None] * vectors[:, :, k]).to(objective.dtype)))
    return found


def _squares(objective: Objective, inputs: Tensor, along: Tensor) -> float:
    """Add up the squared gradients of each sample's s^T z, or of its loss where labels are given."""

    def value(outputs: Any, along: Tensor) -> Tensor:
        logits = models.logits_of(outputs, len(objective.samples.class_names), objective.logits_index)
        return objective.loss(logits, along) if along.ndim == 1 else (logits * along).sum(1)

    found = single_samples.squared_gradients(objective.model, [(inputs, along)], value, objective.layout.names)
    return float(found.sum())


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
