"""The numbers of a result for those who watch a training: TensorBoard, Weights & Biases, MLflow, trackio.

Nothing is imported here. A writer is made by its own package, and known by the method that it takes numbers by; so it
works offline, with tags and projects, as its package says.
"""

import math
import re
from collections.abc import Mapping
from typing import Any

from landscape.errors import InputError
from landscape.results import columns

_UNKNOWN_TO_MLFLOW = re.compile(r"[^\w\-. :/]", re.ASCII)


def numbers(result: Any) -> dict[str, float]:
    """Return what is logged: the numbers of the result's own table, those that are finite.

    Args:
        result: of any kind. Of results over several checkpoints or epochs the last one counts.

    Returns:
        Numbers by "kind/field/part", such as "spectrum/lambda_max/truck", and their errors by "kind/field_error/part".
    """
    found: dict[str, float] = {}
    for column in columns.of_kind(result):
        values = None if column.cell or not column.table else column.of(result)
        if values is None or (column.when and not column.when(result)):
            continue
        for suffix, row in zip(("", "_error"), values, strict=True):
            for part, value in zip(result.parts, row if row is not None else (), strict=False):
                if math.isfinite(value):
                    found.setdefault(f"{result.kind}/{column.name}{suffix}/{part}", float(value))
    return found


def log(result: Any, writer: Any, step: int) -> None:
    """Give numbers to a writer; see `Result.log`."""
    found = numbers(result)
    if not found:
        raise InputError(f"a {result.kind} has no finite numbers of parts to log")
    if hasattr(writer, "add_scalar"):
        for name, value in found.items():
            writer.add_scalar(name, value, step)
    elif hasattr(writer, "log_metrics"):
        writer.log_metrics(_named_plainly(found), step=step)
    elif hasattr(writer, "log"):
        writer.log(found, step=step)
    else:
        raise InputError(
            f"{type(writer).__name__} takes no numbers: give a SummaryWriter of TensorBoard, a run of wandb or "
            "trackio, the module mlflow, or a logger of Lightning"
        )


def _named_plainly(found: Mapping[str, float]) -> dict[str, float]:
    """Return numbers under names of letters, digits and _-./: alone, which is what MLflow takes."""
    plain = {_UNKNOWN_TO_MLFLOW.sub("_", name): value for name, value in found.items()}
    if len(plain) < len(found):
        raise InputError("names of parts differ in signs only that MLflow does not take: rename the parts")
    return plain
