"""Traces and diagonals without random probes, if the structure of the matrix allows it.

With S_i S_i^T = M_i the matrix between the Jacobians of sample i's logits (d^2 l / d z^2, or diag(p) - p p^T),

    diag(1/n sum_i J_i^T M_i J_i) = 1/n sum_i sum_k (J_i^T s_ik)^2,

a sum of squares of per-sample gradients, entry by entry: as many backward passes as there are classes. That is the
diagonal of the Gauss-Newton and Fisher matrices, and of the Hessian of every network that is piecewise linear in each
of its parameters (piecewise.py): the second derivatives of its logits have no diagonal. The trace is the diagonal's
sum. Random probes would take thousands of products for the same digits.

An estimate costs a single backward pass for as many rows s_ik as there are samples. The length of J_i^T u_ik, with
u_ik = s_ik / |s_ik|, varies little between rows, while |s_ik|^2 varies by orders of magnitude and is known from the
forward pass. So rows are drawn in proportion to |s_ik|^2, and the trace is the sum of these (each with the sign of its
eigenvalue) times the mean of |J_i^T u_ik|^2.
"""

import numpy as np
import torch
from torch import Tensor

from landscape.autodiff import trees
from landscape.autodiff.differentiable import differentiable_attention
from landscape.autodiff.piecewise import obstacle
from landscape.autodiff.wide import zeros
from landscape.curvature import rows
from landscape.curvature.kinds import Batch, Factors, Kind
from landscape.curvature.outputs import chunks, outputs
from landscape.objective.objective import Objective
from landscape.results import quadrature

_LEAST_DRAWS = 32
_ALL = 32  # up to so many rows of a part are all computed: few draws, most of one row, understate their own error


def refusal(objective: Objective, kind: Kind) -> str | None:
    """Say why trace and diagonal cannot be computed without probes.

    Args:
        objective: model, loss and data in parts.
        kind: of matrix.

    Returns:
        The reason, or None if `trace` and `diagonal` will work.
    """
    reason = of_bends(objective, kind)
    return reason if reason or kind.factors is None else rows.refusal(objective, kind.factors)


def of_bends(objective: Objective, kind: Kind) -> str | None:
    """Say why a matrix may have another trace than its rows.

    Args:
        objective: model, loss and data in parts.
        kind: of matrix.

    Returns:
        The reason, or None.
    """
    if kind.bends:
        inputs = objective.example(0)[0]
        key = "piecewise", objective.layout.names, objective.dtype, objective.device, trees.shape(inputs)
        found = objective.known.get(key)
        if found is None:
            found = obstacle(objective.logits, objective.theta, inputs, objective.model) or ""
            objective.known.put(key, found)
        if found:
            return f"the logits are not known to be piecewise linear in each parameter: {found}"
    return None


def trace(objective: Objective, kind: Kind, part: int) -> float:
    """Return the trace of a part's matrix, up to rounding.

    Args:
        objective: model, loss and data in parts; `refusal` must return None for it.
        kind: of matrix.
        part: position of the part.

    Returns:
        The trace, including that of the weight decay.
    """
    return float(diagonal(objective, kind, part).sum())


def diagonal(objective: Objective, kind: Kind, part: int) -> Tensor:
    """Return the diagonal of a part's matrix, up to rounding.

    Args:
        objective: as for `trace`.
        kind: of matrix.
        part: position of the part.

    Returns:
        (D,) float64, including the weight decay.
    """
    total = zeros(objective.layout.size, objective.device)
    with differentiable_attention(), objective.trainable():
        for batch in objective.batches(part):
            _add(total, objective, kind, batch)
    total = objective.team.total(total)
    return total / int(objective.counts[part]) + (objective.weight_decay if kind.decays else 0.0)


def sampled(objective: Objective, kind: Kind, part: int, seed: int) -> tuple[float, float]:
    """Estimate the trace of a part's matrix from randomly drawn rows: as many as it has samples, or `_LEAST_DRAWS`.

    Of a part with few rows all are computed.

    Processes that work together all compute the same.

    Args:
        objective: as for `trace`.
        kind: of matrix.
        part: position of the part.
        seed: of the draw.

    Returns:
        The trace, including that of the weight decay, without bias; and the standard error of the estimate over draws,
        nan if all draws are of one row of several.
    """
    factors = kind.factors
    decay = objective.weight_decay * objective.layout.size if kind.decays else 0.0
    if factors is None:
        return decay, 0.0
    sizes = outputs(objective, factors, part).sizes
    total = float(sizes.sum())
    if total == 0:
        return decay, 0.0
    n, real = max(_LEAST_DRAWS, len(sizes)), np.flatnonzero(sizes)
    if len(real) <= _ALL:
        rows_of = np.unravel_index(real, sizes.shape)
        exact = sizes[rows_of] @ _signed_squares(objective, factors, part, *rows_of) / int(objective.counts[part])
        return float(objective.team.agreed(np.array([exact]))[0]) + decay, 0.0
    drawn = np.random.default_rng(seed).choice(sizes.size, n, p=sizes.ravel() / total)
    chosen, times = np.unique(drawn, return_counts=True)
    found = _signed_squares(objective, factors, part, *np.unravel_index(chosen, sizes.shape))
    mean, error = quadrature.mean_and_stderr(np.repeat(found, times) * total / int(objective.counts[part]))
    if len(chosen) == 1 and np.count_nonzero(sizes) > 1:  # how far the other rows are from this one is not known
        error = np.nan
    mean, error = objective.team.agreed(np.array([mean, error])).tolist()
    return mean + decay, error


def _add(total: Tensor, objective: Objective, kind: Kind, batch: Batch) -> None:
    """Add to `total`, (D,), the diagonal of a batch's sum over samples."""
    if kind.factors is None:
        return
    places = dict(zip(objective.layout.names, torch.split(total, objective.layout.sizes), strict=True))
    run = rows.recorded(objective, kind.factors, *batch)
    middle = kind.factors.split(objective, run.values.detach(), batch[1])
    # A user's loss may be nonconvex in the logits, so each eigenvalue contributes with its sign.
    for sign in (1, -1):
        own = middle.signs == sign
        for k in torch.nonzero(own.any(0)).flatten():
            along = torch.where(own[:, k, None], middle.vectors(torch.arange(len(own)), k), 0)
            for name, squares in run.squares(along.reshape(run.values.shape).to(run.values), keep=True):
                places[name] += (sign * squares).to(total.device)


def _signed_squares(
    objective: Objective, factors: Factors, part: int, sample: np.ndarray, row: np.ndarray
) -> np.ndarray:
    """Compute sign(mu_ik) |J_i^T u_ik|^2 of some rows of a part by a forward and a backward pass.

    Args:
        objective: as for `rows.lengths`.
        factors: as for `rows.lengths`.
        part: position of the part.
        sample: (m,) positions of samples in the part.
        row: (m,) which row of each.

    Returns:
        (m,) float64.
    """
    found = []
    with differentiable_attention(), objective.trainable():
        for chunk in chunks(objective, len(sample))[0]:
            index = objective.members[part][sample[chunk]]
            inputs, targets = objective.samples.batch(index, objective.device, objective.dtype)
            run = rows.recorded(objective, factors, inputs, targets)
            middle = factors.split(objective, run.values.detach(), targets)
            picked = torch.arange(len(index)), torch.from_numpy(row[chunk])
            along = middle.vectors(*picked)
            along /= torch.linalg.vector_norm(along, dim=1, keepdim=True).clamp(min=torch.finfo(along.dtype).tiny)
            norms, _ = run.square_norms(along.reshape(1, *run.values.shape).to(run.values))
            found.append((middle.signs[picked] * norms[0].cpu()).numpy())
    return np.concatenate(found)
