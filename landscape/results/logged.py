"""Log the numbers of a result with a tracking client: TensorBoard, Weights & Biases, MLflow, trackio.

Nothing is imported here. The user makes the writer with its own package; it is recognised by its method for numbers.
So offline mode, tags and projects work as in that package.
"""

import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from landscape.errors import InputError, arg
from landscape.results import Series, columns

_UNKNOWN_TO_MLFLOW = re.compile(r"[^\w\-. :/]", re.ASCII)


def numbers(result: Any) -> dict[str, float]:
    """Return the numbers to log: the finite numbers of the result's own table.

    Args:
        result: of any kind; for several checkpoints or epochs, the last one is used.

    Returns:
        Numbers by "kind/field/part", such as "spectrum/lambda_max/truck", and their errors by "kind/field_error/part".
    """
    found: dict[str, float] = {}
    for column, values, errors in columns.numbers(result):
        for suffix, row in (("", values), ("_error", errors)):
            for part, value in zip(result.parts, () if row is None else row, strict=row is not None):
                if math.isfinite(value):
                    found[f"{result.kind}/{column.name}{suffix}/{part}"] = float(value)
    return found


def log(result: Any, writer: Any, step: int | None) -> None:
    """Log numbers with a writer; see `Result.log`."""
    if isinstance(result, Series):
        if step is not None:
            raise InputError(f"each checkpoint of a series has a step of its own: leave {arg('step')} out")
        for k, place in enumerate(_steps(result)):
            _give(numbers(result.at(k)), writer, place)
        return
    if step is None:
        raise InputError(f"a {result.kind} has no step of the training: give {arg('step')}")
    if isinstance(step, bool) or not isinstance(step, int | np.integer) or step < 0:
        raise InputError(f"{arg('step')} must be a whole number, at least 0, got {step!r:.40}")
    found = numbers(result)
    if not found:
        raise InputError(f"a {result.kind} has no finite numbers of parts to log")
    _give(found, writer, int(step))


def _steps(series: Series) -> list[int]:
    """Return whole numbers that differ: the steps of the training, else the epochs, else positions in the series."""
    for places in (series.training_step, series.epoch):
        steps = [round(float(place)) for place in places if math.isfinite(place)]
        if len(set(steps)) == len(places):
            return steps
    return list(range(len(series.checkpoints)))


def _give(found: Mapping[str, float], writer: Any, step: int) -> None:
    if hasattr(writer, "add_scalar"):
        for name, value in found.items():
            writer.add_scalar(name, value, step)
    elif hasattr(writer, "log_metrics"):
        writer.log_metrics(_named_plainly(found), step=step)
    elif hasattr(writer, "log"):
        writer.log(dict(found), step=step)
    else:
        raise InputError(
            f"{type(writer).__name__} does not log numbers: give a SummaryWriter of TensorBoard, a run of wandb or "
            "trackio, the module mlflow, or a logger of Lightning"
        )


def _named_plainly(found: Mapping[str, float]) -> dict[str, float]:
    """Return the numbers under names that consist only of letters, digits and _-./: as MLflow requires."""
    plain = {_UNKNOWN_TO_MLFLOW.sub("_", name): value for name, value in found.items()}
    if len(plain) < len(found):
        raise InputError("names of parts differ only in characters that MLflow does not accept: rename the parts")
    return plain
