"""The functions of an objective that define its matrices."""

from collections.abc import Sequence
from functools import partial

from torch import Tensor

from landscape.autodiff import trees
from landscape.autodiff.operations import multiplications
from landscape.curvature.kinds import Functions
from landscape.objective import precise
from landscape.objective.objective import Objective


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
        widens=precise.widens(objective),
    )


def work_of(objective: Objective) -> int:
    """Return the number of multiplications of a forward pass of one sample, at least one for each parameter."""
    inputs = trees.one(objective.example(0)[0], 0)
    key = "multiplications", trees.shape(inputs)
    found = objective.known.get(key)
    if found is None:
        found = max(objective.layout.size, multiplications(lambda: objective.logits(objective.theta, inputs)))
        objective.known.put(key, found)
    return int(found)
