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
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import numpy as np

from landscape.analyses import displacements
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
from landscape.objective.provenance import fingerprint, provenance
from landscape.results import Distances, grid, inference
from landscape.results.journal import Journal

Over: TypeAlias = Literal["encoder", "all"]
OVER: tuple[str, ...] = get_args(Over)
"""Choices of the parameters over which distances are computed."""

_Samples: TypeAlias = tuple[np.ndarray, np.ndarray | None]
"""Loss of each sample at a point, and whether it is predicted correctly."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Run:
    """The points of one run; all runs have points of the same names."""

    name: str
    points: Mapping[str, tuple[Point, float]]  # convergence points of parts, then other models, each with its epoch
    start: Point  # the common start of all points
    computed: Collection[str] = ()  # names of points that follow from the start as `source` says, but for rounding
    snapshots: Sequence[tuple[Point, float]] = field(default=())  # along training, with their epochs


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
) -> Distances:
    """Compare convergence points.

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

    Returns:
        All distances.

    Raises:
        InputError: no runs, runs with different points or epochs, or options out of their range.
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
        "points": list(runs[0].points),
        "vectors_sha256": points.digest([p for run in runs for p, _ in (*run.points.values(), *run.snapshots)]),
    }
    jobs.declare(
        lambda: _costs(objective, runs, barrier_points, batch_norm, training, training_samples, curvature), out
    )
    evaluator = Evaluator(
        objective, batch_norm=batch_norm, training=training, training_samples=training_samples, seed=seed
    )
    given = _Given(
        objective=objective,
        evaluator=evaluator,
        chosen=displacements.chosen_of(objective, over),
        source=source,
        over=over,
        barrier_points=barrier_points,
        curvature=curvature,
        about=provenance(objective, asked),
    )
    if out is None:
        return _compute(given, runs, None, progress)
    begun = {**asked, "starts and points of SHA-256": points.digest(p for run in runs for p in _exact(run))}
    del begun["vectors_sha256"]
    with jobs.open_journal(out, fingerprint(objective, begun), overwrite=overwrite) as journal:
        result = _compute(given, runs, journal, progress)
        journal.finish(result)
    return result


@dataclass(frozen=True, kw_only=True, eq=False)
class _Given:
    """The arguments that are the same for all runs."""

    objective: Objective
    evaluator: Evaluator
    chosen: displacements.Chosen
    source: str
    over: str
    barrier_points: int
    curvature: bool
    about: Mapping[str, Any]


def _exact(run: Run) -> list[Point]:
    """Return the points of a run that are the same in every attempt; all that follows from one is one unit of work."""
    return [
        run.start,
        *(p for n, (p, _) in run.points.items() if n not in run.computed),
        *(p for p, _ in run.snapshots),
    ]


def _check(runs: Sequence[Run]) -> None:
    if not runs:
        raise InputError("there is no run to compare: give at least one")
    names, epochs = list(runs[0].points), [e for _, e in runs[0].snapshots]
    for run in runs:
        if list(run.points) != names:
            raise InputError(
                f"{run.name} has the points {', '.join(run.points)}, {runs[0].name} has {', '.join(names)}: compare "
                "runs with the same points"
            )
        if not np.array_equal([e for _, e in run.snapshots], epochs, equal_nan=True):
            raise InputError(f"{run.name} has snapshots of other epochs than {runs[0].name}: train both alike")
    if len({run.name for run in runs}) < len(runs):
        raise InputError("two runs have the same name: rename the folder of one")


def _compute(given: _Given, runs: Sequence[Run], journal: Journal | None, progress: jobs.Progress | None) -> Distances:
    by_name = {run.name: run for run in runs}

    def compute(name: str, report: Callable[[float], None]) -> Distances:
        return _Measured(given, by_name[name], report).distances()

    found = jobs.run(list(by_name), compute, journal, progress)
    given.objective.verify()
    return found


class _Measured:
    """The measurements of one run: passes over the data at its points and between them, and matrices at its points."""

    def __init__(self, given: _Given, run: Run, report: Callable[[float], None]) -> None:
        self.given, self.run, self.report = given, run, report
        self.at = [point for point, _ in run.points.values()]
        n = len(self.at)
        self.pairs = [(i, j) for i in range(n) for j in range(i)] if given.barrier_points else []
        # whether statistics at the ends of a segment differ from the stored ones
        self.moved = bool(self.pairs) and not given.evaluator.policy.moves
        self.total = n * (2 + self.moved + given.curvature) + len(self.pairs) * given.barrier_points
        self.done = 0

    def distances(self) -> Distances:
        """Return the distances of the run."""
        given, run, objective = self.given, self.run, self.given.objective
        own = [self._each(point, as_it_is=True) for point in self.at]
        measured = [given.evaluator.means(*found) for found in own]
        accuracies = [(accuracy, error) for _, accuracy, _, error in measured if accuracy is not None]
        barriers, errors = self._barriers([self._each(point) for point in self.at] if self.moved else own)
        of_matrices = self._of_matrices()
        return Distances(
            runs=(run.name,),
            points=tuple(run.points),
            parts=objective.partition.names,
            n_samples=objective.population,
            train_counts=objective.trained,
            barrier=barriers[None],
            barrier_stderr=errors[None],
            loss=np.stack([loss for loss, *_ in measured])[None],
            loss_stderr=np.stack([error for _, _, error, _ in measured])[None],
            accuracy=np.stack([accuracy for accuracy, _ in accuracies])[None] if accuracies else None,
            accuracy_stderr=np.array([error for _, error in accuracies])[None] if accuracies else None,
            point_epoch=np.array([[epoch for _, epoch in run.points.values()]], dtype=np.float64),
            epoch=np.array([epoch for _, epoch in run.snapshots], dtype=np.float64),
            source=given.source,
            parameters=given.over,
            size=int(given.chosen.mask.sum()),
            provenance=given.about,
            **of_matrices,
            **_matrices(objective, run, self.at, given.chosen),
        )

    def _advance(self) -> None:
        self.done += 1
        self.report(self.done / self.total)

    def _each(self, point: Point, *, as_it_is: bool = False) -> _Samples:
        found = self.given.evaluator.each(point, as_it_is=as_it_is)
        self._advance()
        return found

    def _barriers(self, ends: Sequence[_Samples]) -> tuple[np.ndarray, np.ndarray]:
        """Return the barriers between all points and their standard errors, (n, n, P) each; nan if none are wanted."""
        given, n = self.given, len(self.at)
        shape = (n, n, len(given.objective.partition))
        barriers, errors = np.full((2, *shape), 0.0 if given.barrier_points else np.nan)
        t = np.linspace(0, 1, given.barrier_points + 2)
        moves = given.evaluator.policy.movement
        for i, j in self.pairs:
            between = [
                self._each(points.between(given.objective, self.at[i], self.at[j], s, moves=moves)) for s in t[1:-1]
            ]
            segment = np.stack([losses for losses, _ in (ends[i], *between, ends[j])])
            found = _barrier(t, segment, given.objective)
            (barriers[i, j], errors[i, j]), (barriers[j, i], errors[j, i]) = found, found
        return barriers, errors

    def _of_matrices(self) -> dict[str, np.ndarray]:
        """Return the distances by each point's Fisher and, if they are wanted, the rises that its Hessian predicts."""
        given, measures = self.given, {"fisher": displacements.by_fisher}
        if given.curvature:
            measures["hessian_rise"] = displacements.rises_by_hessian
        found: dict[str, list[np.ndarray]] = {name + end: [] for name in measures for end in ("", "_stderr")}
        for own, point in zip(self.run.points, self.at, strict=True):
            for name, measure in measures.items():
                value, error = measure(given.objective, point, own, self.at, given.chosen)
                found[name].append(value)
                found[f"{name}_stderr"].append(error)
                self._advance()
        return {key: np.stack(values)[None] for key, values in found.items()}


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
    n, size = len(runs[0].points), objective.layout.size
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
    works[1:] = [replace(work, divided=len(runs) > 1) for work in works[1:]]  # runs are dealt
    keeps = (2 * n + 4) * 8 * size
    return costs.Known(
        works=works, keeps=keeps, disk=2**16 + 2 * 8 * len(runs) * n * (n + 2) * len(objective.partition)
    )


def _per_point(objective: Objective, run: Run) -> int:
    """Return the average number of samples for the matrices of one point."""
    counts = [sum(len(objective.members[p]) for p in displacements.parts_of(objective, name)) for name in run.points]
    return max(1, round(sum(counts) / len(counts)))


def _barrier(t: np.ndarray, each: np.ndarray, objective: Objective) -> tuple[np.ndarray, np.ndarray]:
    """Return the barrier of each part on a segment, and its standard error over samples, (P,) and (P,).

    The barrier is the largest rise. To first order, another draw of the samples changes it as much as the rise at the
    same point (Danskin), so the standard error comes from each sample's rise there.

    Args:
        t: (T,) from 0 to 1.
        each: losses of all samples at these points, (T, N), part after part.
        objective: of the parts.
    """
    heights, errors = np.empty((2, len(objective.partition)))
    for p, own in enumerate(np.split(each, np.cumsum(objective.counts)[:-1], axis=1)):
        heights[p] = grid.barrier(t, own.mean(axis=1)[None])[0]
        rises = own - (1 - t[:, None]) * own[0] - t[:, None] * own[-1]
        mean = rises.mean(axis=1)
        known = np.isfinite(mean).all()
        # At the ends all rises are zero, and say nothing of the error of a barrier of zero.
        inside = 1 + np.argmax(mean[1:-1]) if known and len(t) > 2 else None
        errors[p] = np.nan if inside is None else inference.stderr(objective.as_drawn(p, rises[inside]))
    return heights, errors


def _matrices(
    objective: Objective, run: Run, at: Sequence[Point], chosen: displacements.Chosen
) -> dict[str, np.ndarray]:
    mask = chosen.mask
    vectors = [wide(p.theta)[mask] for p in at]
    moved = [v - wide(run.start.theta)[mask] for v in vectors]
    norms = np.array([m.norm().item() for m in moved])
    n = len(at)
    euclidean, cosine, filters = (np.zeros((n, n)) for _ in range(3))
    for i in range(n):
        for j in range(n):
            euclidean[i, j] = (vectors[i] - vectors[j]).norm().item()
            scale = norms[i] * norms[j]
            cosine[i, j] = (moved[i] @ moved[j]).item() / scale if scale else math.nan
            filters[i, j] = displacements.by_filters(objective, at[i].theta, at[j].theta, chosen.names)
    along = [[(v - wide(point.theta)[mask]).norm().item() for v in vectors] for point, _ in run.snapshots]
    return {
        "euclidean": euclidean[None],
        "cosine": np.clip(cosine, -1, 1)[None],
        "filter_normalised": filters[None],
        "norm": norms[None],
        "along_training": np.array(along).reshape(1, len(run.snapshots), n),
    }
