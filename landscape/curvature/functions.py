"""The functions of an objective that define its matrices."""

from collections.abc import Sequence
from functools import partial

from torch import Tensor

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
