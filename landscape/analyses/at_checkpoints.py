"""Loop over the checkpoints of an analysis: each checkpoint is one unit of work."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from torch import nn

from landscape.objective import jobs, snapshots
from landscape.objective.objective import Objective
from landscape.objective.provenance import fingerprint, provenance
from landscape.objective.snapshots import File
from landscape.results import Result

R = TypeVar("R", bound=Result)
Report = Callable[[float], None]
"""Called with the completed fraction of the work on a checkpoint."""


def at_checkpoints(
    kind: Callable[..., R],
    objective: Objective,
    checkpoints: Sequence[File] | None,
    measure: Callable[[nn.Module, Report], Mapping[str, Any]],
    *,
    options: Mapping[str, Any],
    ckpt_key: str | None,
    trust_pickle: bool,
    out: str | Path | None,
    overwrite: bool,
    progress: jobs.Progress | None,
) -> R:
    """Measure something at each checkpoint.

    Args:
        kind: class of the result; called with its fields.
        objective: model, loss and data.
        checkpoints: files with weights that replace those of the model; None for the objective's own model.
        measure: returns the result's fields for a network; `objective.model` stands for the objective's own weights.
        options: of the analysis, without those that change no number.
        ckpt_key: key of the weights in the files; None finds them automatically.
        trust_pickle: let the files run code when they are read.
        out: result file, beside which finished checkpoints are kept until it is complete; None keeps nothing.
        overwrite: replace an existing result file.
        progress: see `jobs.run`.

    Returns:
        The result of all checkpoints, in the order given.

    Raises:
        InputError: a checkpoint that does not fit, or an error of `measure`.
        NumericalError: a weight is not finite, or an error of `measure`.
        StoreError: the result file cannot be written, or an unfinished run beside it had other options.
    """
    read: dict[str, Any] = {"key": ckpt_key, "trust_pickle": trust_pickle}
    points = {s.path or s.name: s for s in snapshots.find(objective, checkpoints, **read)}
    files = {s.path: s.sha256 for s in points.values() if s.path is not None}
    about = provenance(objective, options) | {"checkpoints": files}

    def compute(unit: str, report: Report) -> R:
        point = points[unit]
        with snapshots.named(point.path):
            found = measure(snapshots.network(objective, point, **read), report)
        return kind(**found, points=(point.name,), epoch=np.array([point.epoch]), provenance=about)

    if out is None:
        result = jobs.run(list(points), compute, None, progress)
        objective.verify()
        return result
    begun = fingerprint(objective, options) | {"the weights of": files}
    with jobs.open_journal(out, begun, overwrite=overwrite) as journal:
        result = jobs.run(list(points), compute, journal, progress, costs=[1.0] * len(points))
        objective.verify()
        journal.finish(result)
    return result
