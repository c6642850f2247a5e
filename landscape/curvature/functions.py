"""The functions of an objective that define its matrices; the losses among them are computed in float64.

In the derivatives of a fitted sample's loss numbers near 1 cancel: those of the cross-entropy in the logits are p - e_y
and diag(p) - p p^T, of the size of the loss itself, and p (v - p.v) in float32 has an error of 1e-7 |v|. Nothing else
of a product cancels like this. So the network runs in the objective's dtype, and the loss of its outputs, which takes
hardly any of the time, in float64. Then products are equally exact for every loss, relative to the matrix.
"""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from landscape.autodiff import trees
from landscape.autodiff.backward import second
from landscape.autodiff.differentiable import differentiable_attention
from landscape.autodiff.wide import wide
from landscape.curvature.checks import some_of
from landscape.curvature.kinds import Functions, Loss
from landscape.errors import is_of_memory, one_line
from landscape.networks.outputs import OwnLoss
from landscape.objective.objective import Objective

MOST_OUTPUTS = 2**16
"""Numbers for each sample, beyond which float64 would take time and memory beside the network itself: of many tokens
or pixels, hardly ever fitted as closely as classes are."""


def functions_of(objective: Objective, fixed: Sequence[Tensor] | None = None) -> Functions:
    """Return the functions that define the matrices of an objective.

    Args:
        objective: model and loss.
        fixed: parameters and buffers that do not vary, as for `Objective.logits`; None for the model's own.

    Returns:
        The functions.
    """
    return Functions(
        logits=objective.logits if fixed is None else partial(objective.logits, fixed=fixed),
        loss=objective.loss,
        likelihood=objective.likelihood,
        widens=_widens(objective),
    )


def _widens(objective: Objective) -> bool:
    """Say whether the losses can be computed in float64; a user's loss may have float32 numbers of its own."""
    if objective.dtype == torch.float64 or isinstance(objective.outputs, OwnLoss):
        return False
    if objective.outputs.size > MOST_OUTPUTS:
        return False
    key, of = ("float64", objective.device), (objective.loss, objective.likelihood)
    found: bool | None = objective.known.get(key, of)
    if found is None:
        reasons = [_refusal(objective, loss) for loss in of if loss is not None]
        found = not any(reasons)
        objective.known.put(key, found, of)
    return found


def _refusal(objective: Objective, loss: Loss) -> str | None:
    """Say why a loss has no second derivative in float64; None if it has one."""
    inputs, targets = some_of(objective.example(0), 1)
    try:
        with differentiable_attention():
            with torch.no_grad():
                z = wide(objective.logits(objective.theta, inputs))
            z.requires_grad_()
            values = loss(z, trees.to(targets, z.device, z.dtype))
            second(values, (z,), [(torch.ones_like(z),)])
    except Exception as error:  # a loss of the user may raise any
        if is_of_memory(error):
            raise
        return one_line(error)
    return None
