"""The loop of an analysis that looks at one or several checkpoints of a network: one unit of work for each."""

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
"""Is called with the fraction of a checkpoint's work that is done."""


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
        kind: makes the result of its fields.
        objective: model, loss and data.
        checkpoints: files whose weights take the place of the model's; None for the objective's own model.
        measure: returns the result's fields for a network, which is `objective.model` for the objective's own.
        options: of the analysis; those that change no number are left out.
        ckpt_key: where in the files the weights are; None to find them.
        trust_pickle: let the files run code when they are read.
        out: result file, beside which finished checkpoints are kept until it is complete; None keeps nothing.
        overwrite: replace an existing result file.
        progress: see `jobs.run`.

    Returns:
        The result of all checkpoints, in the order given.

    Raises:
        InputError: a checkpoint that does not fit, or what `measure` refuses.
        NumericalError: a weight is not finite, or what `measure` refuses.
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
