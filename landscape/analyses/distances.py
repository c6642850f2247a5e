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
from itertools import product
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import torch

from landscape.analyses import displacements
from landscape.analyses.convergence import Tuning
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
from landscape.results import Displacements, Distances, Points, Tuned, grid, inference
from landscape.results.journal import Journal

Over: TypeAlias = Literal["encoder", "all"]
OVER: tuple[str, ...] = get_args(Over)
"""Choices of the parameters over which distances are computed."""

_Sizes: TypeAlias = tuple[np.ndarray, np.ndarray]
"""Sizes of the displacements from a point to all points of its run, and their standard errors."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Run:
    """The points of one run; all runs have points of the same names."""

    name: str
    points: Mapping[str, tuple[Point, float]]  # convergence points of parts, then other models, each with its epoch
    start: Point  # the common start of all points
    computed: Collection[str] = ()  # names of points that follow from the start as `source` says, but for rounding
    tuned: Mapping[str, Tuning] = field(default_factory=dict)  # convergence points to compute, which come first
    snapshots: Sequence[tuple[Point, float]] = field(default=())  # along training, with their epochs

    @property
    def names(self) -> list[str]:
        """The names of all points."""
        return [*self.tuned, *self.points]


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
        NumericalError: a training on a part diverges.
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
    given = _Given(
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
        begun |= {_of(run, f"training on {name}", len(runs) > 1): own.options for name, own in run.tuned.items()}
    with jobs.open_journal(out, fingerprint(objective, begun), overwrite=overwrite) as journal:
        result = _compute(given, runs, journal)
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
    asked: Mapping[str, Any]
    progress: jobs.Progress | None
    settled: Callable[[Sequence[Run]], object] | None


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


def _compute(given: _Given, runs: Sequence[Run], journal: Journal | None) -> Distances:
    runs = _settled(given, runs, journal)
    if given.settled is not None:
        given.settled(runs)
    found = _Measured(given, runs, journal).distances()
    given.objective.verify()
    return found


def _settled(given: _Given, runs: Sequence[Run], journal: Journal | None) -> list[Run]:
    """Return the runs with all points, as the first attempt has computed them or was given them."""
    several = len(runs) > 1
    units = {
        _of(run, f"training on {name}" if name in run.tuned else f"point {name}", several): (run, name)
        for run in runs
        for name in (*run.tuned, *(name for name in run.points if name in run.computed))
    }

    def compute(unit: str, report: Callable[[float], None]) -> Tuned:
        run, name = units[unit]
        point = run.tuned[name].point(report) if name in run.tuned else run.points[name][0]
        theta, buffers = (wide(t).cpu().numpy()[None] for t in (point.theta, point.buffers))
        return Tuned(points=(_of(run, name, several),), theta=theta, buffers=buffers)

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


def _of(run: Run, text: str, several: bool) -> str:
    return f"{run.name}: {text}" if several else text


class _Measured:
    """The measurements of all runs: passes over the data at their points and between them, and matrices at points.

    The points of all runs are numbered, n of each run. Each point, each pair of points and each matrix is a unit.
    """

    def __init__(self, given: _Given, runs: Sequence[Run], journal: Journal | None) -> None:
        self.given, self.runs, self.journal = given, runs, journal
        self.names = runs[0].names
        self.n = len(self.names)
        self.at = [point for run in runs for point, _ in run.points.values()]
        # whether statistics at the ends of a segment differ from the stored ones
        self.moved = not given.evaluator.policy.moves
        self.ends: dict[int, np.ndarray] = {}  # losses of all samples at the ends of segments, by number

    def distances(self) -> Distances:
        """Return the distances of all runs."""
        given, runs, objective = self.given, self.runs, self.given.objective
        at_points, of_pairs = self._at_points(), self._of_pairs()
        of_vectors = [
            _of_vectors(objective, run, self.at[self.n * r : self.n * (r + 1)], given.chosen)
            for r, run in enumerate(runs)
        ]
        asked = {**given.asked, "vectors_sha256": points.digest([*self.at, *(p for r in runs for p, _ in r.snapshots)])}
        return Distances(
            runs=tuple(run.name for run in runs),
            points=tuple(self.names),
            parts=objective.partition.names,
            n_samples=objective.population,
            train_counts=objective.trained,
            point_epoch=np.array([[epoch for _, epoch in run.points.values()] for run in runs], dtype=np.float64),
            epoch=np.array([epoch for _, epoch in runs[0].snapshots], dtype=np.float64),
            source=given.source,
            parameters=given.over,
            size=int(given.chosen.mask.sum()),
            provenance=provenance(objective, asked),
            **at_points,
            **of_pairs,
            **{key: np.stack([own[key] for own in of_vectors]) for key in of_vectors[0]},
        )

    def _name(self, number: int) -> str:
        return self.names[number % self.n]

    def _unit(self, text: str, number: int) -> str:
        return _of(self.runs[number // self.n], text, len(self.runs) > 1)

    def _at_points(self) -> dict[str, np.ndarray]:
        """Return losses and accuracies at the points, and their standard errors."""
        objective, evaluator = self.given.objective, self.given.evaluator
        units = {self._unit(f"at {self._name(number)}", number): number for number in range(len(self.at))}

        def compute(unit: str, report: Callable[[float], None]) -> Points:
            number = units[unit]
            each = evaluator.each(self.at[number], report, as_it_is=True)
            if self.given.barrier_points and not self.moved:
                self.ends[number] = each[0]
            loss, accuracy, loss_stderr, accuracy_stderr = (
                None if value is None else value[None] for value in evaluator.means(*each)
            )
            assert loss is not None
            return Points(
                parts=objective.partition.names,
                n_samples=objective.population,
                point=np.array([number]),
                loss=loss,
                loss_stderr=loss_stderr,
                accuracy=accuracy,
                accuracy_stderr=accuracy_stderr,
            )

        found = jobs.run(list(units), compute, self.journal, self.given.progress)
        names = ("loss", "loss_stderr", "accuracy", "accuracy_stderr")
        values = {name: getattr(found, name) for name in names}
        shape = (len(self.runs), self.n, -1)
        return {name: value.reshape(shape) for name, value in values.items() if value is not None}

    def _of_pairs(self) -> dict[str, np.ndarray]:
        """Return the barriers, the distances by Fisher and the rises by Hessians that are wanted, with their errors."""
        given, runs, n = self.given, len(self.runs), self.n
        n_parts = len(given.objective.partition)
        measures = {"fisher": displacements.by_fisher}
        if given.curvature:
            measures["hessian_rise"] = displacements.rises_by_hessian
        units: dict[str, Callable[[Callable[[float], None]], Displacements]] = {}
        for number, (name, measure) in product(range(len(self.at)), measures.items()):
            units[self._unit(f"{name} at {self._name(number)}", number)] = partial(self._matrix, name, measure, number)
        pairs = [(r * n + i, r * n + j) for r in range(runs) for i in range(n) for j in range(i)]
        for i, j in pairs if given.barrier_points else ():
            units[self._unit(f"from {self._name(i)!r} to {self._name(j)!r}", i)] = partial(self._segment, i, j)

        found = jobs.run(list(units), lambda unit, report: units[unit](report), self.journal, given.progress)
        filled: dict[str, np.ndarray] = {
            name + end: np.full((runs, n, n), np.nan) for name in measures for end in ("", "_stderr")
        }
        none = np.full((runs, n, n, n_parts), 0.0 if given.barrier_points else np.nan)
        filled |= {"barrier": none, "barrier_stderr": none.copy()}
        for name, a, b, *both in zip(
            found.measures, found.begin, found.end, found.size, found.size_stderr, strict=True
        ):
            run, (i, j) = a // n, (a % n, b % n)
            for key, value in zip((name, f"{name}_stderr"), both, strict=True):
                if name == "barrier":
                    filled[key][run, i, j] = filled[key][run, j, i] = value
                else:
                    filled[key][run, i, j] = value[0]
        return filled

    def _matrix(
        self, name: str, measure: displacements.Measure, number: int, report: Callable[[float], None]
    ) -> Displacements:
        """Return the sizes of the displacements from a point by its matrix."""
        given, first = self.given, number // self.n * self.n
        others = self.at[first : first + self.n]
        sizes: _Sizes = measure(given.objective, self.at[number], self._name(number), others, given.chosen)
        return _displacements(name, [number] * self.n, range(first, first + self.n), *(v[:, None] for v in sizes))

    def _segment(self, i: int, j: int, report: Callable[[float], None]) -> Displacements:
        """Return the barrier between two points."""
        given = self.given
        t = np.linspace(0, 1, given.barrier_points + 2)
        between = partial(
            points.between, given.objective, self.at[i], self.at[j], moves=given.evaluator.policy.movement
        )
        inside = []
        for k, s in enumerate(t[1:-1]):
            inside.append(given.evaluator.each(between(s))[0])
            report((k + 1) / len(t))
        losses = np.stack([self._end(i), *inside, self._end(j)])
        return _displacements("barrier", [i], [j], *(v[None] for v in _barrier(t, losses, given.objective)))

    def _end(self, number: int) -> np.ndarray:
        """Return the losses of all samples at an end of segments."""
        if number not in self.ends:
            self.ends[number] = self.given.evaluator.each(self.at[number], as_it_is=not self.moved)[0]
        return self.ends[number]


def _displacements(
    measure: str, begin: Sequence[int], end: Sequence[int], size: np.ndarray, error: np.ndarray
) -> Displacements:
    return Displacements(
        measures=(measure,) * len(begin), begin=np.array(begin), end=np.array(end), size=size, size_stderr=error
    )


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


def _of_vectors(
    objective: Objective, run: Run, at: Sequence[Point], chosen: displacements.Chosen
) -> dict[str, np.ndarray]:
    """Return what the vectors of a run's points give without data."""
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
        "euclidean": euclidean,
        "cosine": np.clip(cosine, -1, 1),
        "filter_normalised": filters,
        "norm": norms,
        "along_training": np.array(along).reshape(len(run.snapshots), n),
    }
