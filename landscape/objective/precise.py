"""The loss of given outputs, computed in float64.

In a fitted sample's loss and its derivatives numbers near 1 cancel: the cross-entropy is -log p, its derivatives in the
logits are p - e_y and diag(p) - p p^T, and all are of the size of the loss itself, whereas p (v - p.v) in float32 has
an error of 1e-7 |v|. Nothing else of a network cancels like this. So the network runs in the objective's dtype, and the
loss of its outputs, which takes hardly any of the time, in float64. Then losses, gradients and products are exact
relative to their size; for the cross-entropy also where p rounds to 1 in float64 (autodiff/softmax.py). A user's own
formula, such as logsumexp(z) - z_y, then loses what it subtracts.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from landscape.autodiff import trees
from landscape.autodiff.backward import second
from landscape.autodiff.differentiable import differentiable_attention
from landscape.autodiff.trees import Tree
from landscape.autodiff.wide import wide
from landscape.errors import is_of_memory, one_line
from landscape.networks.outputs import OwnLoss

if TYPE_CHECKING:
    from landscape.objective.objective import Objective

MOST_OUTPUTS = 2**16
"""Numbers for each sample, beyond which float64 would take time and memory beside the network itself: of many tokens
or pixels, hardly ever fitted as closely as classes are."""


def values(loss: Callable[[Tensor, Tree], Tensor], z: Tensor, targets: Tree) -> Tensor:
    """Return the values of a loss, (B,) float64, through which derivatives flow back to outputs (B, K) of any dtype."""
    z = wide(z)
    return loss(z, trees.to(targets, z.device, z.dtype))


def widens(objective: "Objective") -> bool:
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


def _refusal(objective: "Objective", loss: Callable[[Tensor, Tree], Tensor]) -> str | None:
    """Say why a loss has no second derivative in float64; None if it has one."""
    inputs, targets = trees.take(objective.example(0), slice(1))
    try:
        with differentiable_attention(), torch.enable_grad():
            z = wide(objective.logits(objective.theta, inputs).detach()).requires_grad_()
            second(loss(z, trees.to(targets, z.device, z.dtype)), (z,), [(torch.ones_like(z),)])
    except Exception as error:  # a loss of the user may raise any
        if is_of_memory(error):
            raise
        return one_line(error)
    return None
