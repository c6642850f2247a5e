"""Measurements of several runs: at their points, between each two points of a run, and by the matrices at points."""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from typing import Any, TypeAlias

import numpy as np

from landscape.analyses import displacements
from landscape.analyses.convergence import Tuning
from landscape.autodiff.wide import wide
from landscape.objective import jobs, points
from landscape.objective.evaluator import Evaluator
from landscape.objective.objective import Objective
from landscape.objective.points import Point
from landscape.objective.provenance import provenance
from landscape.results import Displacements, Distances, Points, grid, inference
from landscape.results.journal import Journal

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

    def unit(self, text: str, *, several: bool) -> str:
        """Return the name of a unit of work, which begins with the run's if there are several."""
        return f"{self.name}: {text}" if several else text


@dataclass(frozen=True, kw_only=True, eq=False)
class Given:
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


class Measured:
    """The measurements of all runs: passes over the data at their points and between them, and matrices at points.

    The points of all runs are numbered, n of each run. Each point, each pair of points and each matrix is a unit.
    """

    def __init__(self, given: Given, runs: Sequence[Run], journal: Journal | None) -> None:
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
        return self.runs[number // self.n].unit(text, several=len(self.runs) > 1)

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
