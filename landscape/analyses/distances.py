"""Distances between the convergence points of parts, and the loss of each part at the points of the others.

Between points a and b, over the chosen parameters, there are: the Euclidean distance; the cosine of their displacements
from the start; the filter-normalised distance, which is the root mean square over filters f of
|a_f - b_f| / mean(|a_f|, |b_f|) and does not depend on the scale of a network; and the Fisher-weighted distance,
sqrt(sum_i F_i (a_i - b_i)^2) with the diagonal of a's Fisher information, which weights a parameter by its importance
for a's part. On request, there is (b - a)^T H_a (b - a) / 2, the rise that the Hessian of a's part predicts: it has the
unit of the loss, and may be negative. The result also has the loss of every part at every point, and the barriers on
the segments between points.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import torch

from landscape.analyses import displacements
from landscape.analyses.between import Given, Measured, Run
from landscape.autodiff import costs
from landscape.autodiff.wide import wide
from landscape.callables import checked
from landscape.data.datasets import Samples
from landscape.errors import InputError, arg, check_choice
from landscape.objective import jobs, pilot, points
from landscape.objective.batch_norm import DEFAULT, POLICIES, BatchNorm, estimated_on
from landscape.objective.evaluator import Evaluator
from landscape.objective.objective import Objective
from landscape.objective.points import Point
from landscape.objective.provenance import fingerprint
from landscape.results import Distances, Tuned
from landscape.results.journal import Journal

Over: TypeAlias = Literal["encoder", "all"]
OVER: tuple[str, ...] = get_args(Over)
"""Choices of the parameters over which distances are computed."""


@checked
def distances(
    objective: Objective,
    runs: Sequence[Run],
    *,
    source: str,
    over: Over = "encoder",
    barrier_points: int = 0,
    batch_norm: BatchNorm = DEFAULT,
    training: Samples | None = None,
    training_samples: int = 2048,
    seed: int = 0,
    curvature: bool = False,
    out: str | Path | None = None,
    overwrite: bool = False,
    progress: jobs.Progress | None = None,
    settled: Callable[[Sequence[Run]], object] | None = None,
) -> Distances:
    """Compare convergence points.

    Points that are computed, or have been, are kept with the unfinished work: if this is repeated, they are those of
    the first attempt. Several processes divide the trainings, the points and the pairs of points among them.

    Args:
        objective: model, loss and data in parts; losses are those of these data.
        runs: one run, or several that differ in their seed; their spread is the uncertainty.
        source: description of the origin of the points, for the provenance.
        over: parameters for the distances: "encoder", all before the classifier; or "all" chosen ones.
        barrier_points: number of points between the ends of each segment at which losses are computed for the barrier;
            0 for no barriers. Each pair of points needs this many passes over the data.
        batch_norm: running statistics on these segments and, only for barriers, at their ends; see `surface.surface`.
        training: data on which statistics are re-estimated; None means the objective's own data.
        training_samples: the largest number of samples of `training` that are used.
        seed: of the draw of these samples.
        curvature: also compute each point's Hessian along the directions to all other points; each point needs as many
            products as there are points.
        out: result file to write; finished work is kept beside it until it is complete.
        overwrite: replace an existing result file.
        progress: called with (done, total, text).
        settled: called with the runs as soon as all of their points are known.

    Returns:
        All distances.

    Raises:
        InputError: no runs, runs with different points or epochs, or options out of their range.
        NumericalError: a training on a part diverges, or the second derivative for `curvature` is wrong.
        StoreError: the result file cannot be written, or an unfinished run beside it had other options.
    """
    if barrier_points < 0:
        raise InputError(f"{arg('barrier_points')} must not be negative, got {barrier_points}")
    check_choice("over", over, OVER)
    _check(runs)
    asked: dict[str, Any] = {
        "source": source,
        "over": over,
        "barriers": barrier_points,
        "batch_norm": batch_norm,
        "training_samples": training_samples,
        **estimated_on(batch_norm, objective, training),
        "seed": seed,
        "curvature": curvature,
        "runs": [run.name for run in runs],
        "points": runs[0].names,
    }
    objective.refuse_stale()
    tunings = [tuning for run in runs for tuning in run.tuned.values()]
    for tuning in tunings if costs.wanted() else ():
        costs.noted(partial(tuning.plan, divided=len(tunings) > 1))
    jobs.declare(
        lambda: _costs(objective, runs, barrier_points, batch_norm, training, training_samples, curvature), out
    )
    evaluator = Evaluator(
        objective, batch_norm=batch_norm, training=training, training_samples=training_samples, seed=seed
    )
    given = Given(
        objective=objective,
        evaluator=evaluator,
        chosen=displacements.chosen_of(objective, over),
        source=source,
        over=over,
        barrier_points=barrier_points,
        curvature=curvature,
        asked=asked,
        progress=progress,
        settled=settled,
    )
    if out is None:
        return _compute(given, runs, None)
    begun = {**asked, "starts and points of SHA-256": points.digest(p for run in runs for p in _exact(run))}
    for run in runs:
        begun |= {
            run.unit(f"training on {name}", several=len(runs) > 1): own.options for name, own in run.tuned.items()
        }
    with jobs.open_journal(out, fingerprint(objective, begun), overwrite=overwrite) as journal:
        result = _compute(given, runs, journal)
        journal.finish(result)
    return result


def _exact(run: Run) -> list[Point]:
    """Return the points of a run that are the same in every attempt, and what those follow from that are computed."""
    return [
        run.start,
        *(points.origin(tuning.start) for tuning in run.tuned.values()),
        *(p for n, (p, _) in run.points.items() if n not in run.computed),
        *(p for p, _ in run.snapshots),
    ]


def _check(runs: Sequence[Run]) -> None:
    if not runs:
        raise InputError("there is no run to compare: give at least one")
    names, epochs = runs[0].names, [e for _, e in runs[0].snapshots]
    for run in runs:
        if run.names != names:
            raise InputError(
                f"{run.name} has the points {', '.join(run.names)}, {runs[0].name} has {', '.join(names)}: compare "
                "runs with the same points"
            )
        if not np.array_equal([e for _, e in run.snapshots], epochs, equal_nan=True):
            raise InputError(f"{run.name} has snapshots of other epochs than {runs[0].name}: train both alike")
    if len(set(names)) < len(names):
        raise InputError(f"two points have the same name: {', '.join(names)}")
    if len({run.name for run in runs}) < len(runs):
        raise InputError("two runs have the same name: rename the folder of one")


def _compute(given: Given, runs: Sequence[Run], journal: Journal | None) -> Distances:
    runs = _settled(given, runs, journal)
    if given.settled is not None:
        given.settled(runs)
    found = Measured(given, runs, journal).distances()
    given.objective.verify()
    return found


def _settled(given: Given, runs: Sequence[Run], journal: Journal | None) -> list[Run]:
    """Return the runs with all points, as the first attempt has computed them or was given them."""
    several = len(runs) > 1
    units = {
        run.unit(f"training on {name}" if name in run.tuned else f"point {name}", several=several): (run, name)
        for run in runs
        for name in (*run.tuned, *(name for name in run.points if name in run.computed))
    }

    def compute(unit: str, report: Callable[[float], None]) -> Tuned:
        run, name = units[unit]
        point = run.tuned[name].point(report) if name in run.tuned else run.points[name][0]
        theta, buffers = (wide(t).cpu().numpy()[None] for t in (point.theta, point.buffers))
        return Tuned(points=(run.unit(name, several=several),), theta=theta, buffers=buffers)

    if not units:
        return list(runs)
    found = jobs.run(list(units), compute, journal, given.progress)
    known: dict[str, dict[str, tuple[Point, float]]] = {run.name: {} for run in runs}
    for (run, name), *vectors in zip(units.values(), found.theta, found.buffers, strict=True):
        theta, buffers = (
            torch.from_numpy(vector).to(like)
            for vector, like in zip(vectors, (run.start.theta, run.start.buffers), strict=True)
        )
        epoch = run.points[name][1] if name in run.points else math.nan
        known[run.name][name] = Point(theta, buffers), epoch
    return [
        replace(run, points={name: known[run.name].get(name) or run.points[name] for name in run.names}, tuned={})
        for run in runs
    ]


def _costs(
    objective: Objective,
    runs: Sequence[Run],
    barrier_points: int,
    batch_norm: BatchNorm,
    training: Samples | None,
    training_samples: int,
    curvature: bool,
) -> costs.Known:
    """Return the cost of the distances between all points."""
    n, size = len(runs[0].names), objective.layout.size
    of_ends = n * (1 + (barrier_points > 0 and not POLICIES[batch_norm].moves))
    passes = len(runs) * (of_ends + barrier_points * n * (n - 1) // 2)
    of_batch_norm: dict[str, Any] = {
        "batch_norm": batch_norm, "training": training, "training_samples": training_samples,
    }  # fmt: skip
    halve, batch = arg("barriers", barrier_points // 2), objective.batch_size

    def at_a_point(count: int, measure: displacements.Measure) -> Callable[[], object]:
        small = pilot.few(objective, [count])
        here, every = points.origin(small), displacements.chosen_of(small, "all")
        others = [here] + [replace(here, theta=1.01 * here.theta)] * (n - 1)
        return lambda: measure(small, here, "", others, every)

    at_points: dict[str, Any] = {
        "times": len(runs) * n, "samples": _per_point(objective, runs[0]), "batch": batch,
    }  # fmt: skip
    fisher, rises = (
        partial(at_a_point, measure=measure) for measure in (displacements.by_fisher, displacements.rises_by_hessian)
    )
    works = [
        pilot.evaluation(objective),
        pilot.at_points(objective, "passes over all samples, at points and between them", passes, halve=halve,
                        **of_batch_norm),
        costs.Work(what="passes for the Fisher information", prepare=fisher, **at_points),
    ]  # fmt: skip
    if curvature:
        what = "second derivatives at points towards the others"
        works.append(costs.Work(what=what, prepare=rises, halve=arg("curvature", False), **at_points))
    keeps = (2 * n + 4) * 8 * size
    stored = sum(len(run.tuned) + len(run.computed) for run in runs) * 8 * size  # until the result is written
    disk = 2**16 + 2 * 8 * len(runs) * n * (n + 2) * len(objective.partition) + stored
    return costs.Known(works=works, keeps=keeps, disk=disk)


def _per_point(objective: Objective, run: Run) -> int:
    """Return the average number of samples for the matrices of one point."""
    counts = [sum(len(objective.members[p]) for p in displacements.parts_of(objective, name)) for name in run.names]
    return max(1, round(sum(counts) / len(counts)))
