"""The fields of a surface: losses of all parts on the points of a line or a plane, and at the marks themselves.

`surface` and `trajectory` make a `Request` and call `compute`. Every list of points is evaluated in resumable blocks.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

import numpy as np

from landscape.analyses import directions, refinement
from landscape.analyses.directions import Directions
from landscape.autodiff import costs, distributed, trees
from landscape.autodiff.batch_statistics import running
from landscape.data.datasets import Samples
from landscape.errors import InputError, StoreError, arg
from landscape.objective import jobs, pilot, points
from landscape.objective.batch_norm import DEFAULT, POLICIES, BatchNorm, estimated_on
from landscape.objective.evaluator import INPUT_BYTES, Evaluator, evaluate
from landscape.objective.objective import Objective
from landscape.objective.points import Point
from landscape.objective.provenance import provenance
from landscape.results import Plane, Points, grid, store
from landscape.results.journal import Journal
from landscape.results.verdict import NO_STATISTICS


@dataclass(frozen=True, kw_only=True)
class Options:
    """What determines the numbers of a surface, apart from the objective and the directions."""

    batch_norm: BatchNorm = DEFAULT
    training_samples: int = 2048
    seed: int = 0
    bf16: bool = False
    refine: float | None = None
    radius: float | None = None
    between: bool = False

    def __post_init__(self) -> None:
        """Raise InputError for an option out of its range."""
        if self.refine is not None and not 0 < self.refine < 1:
            raise InputError(f"{arg('refine')} must be a fraction of the loss between 0 and 1, got {self.refine:g}")
        if self.radius is not None and not 0 < self.radius < np.inf:
            raise InputError(f"{arg('radius')} must be a positive number, got {self.radius:g}")


@dataclass(frozen=True, kw_only=True, eq=False)
class Request:
    """A surface to compute."""

    objective: Objective
    along: Directions
    axes: tuple[np.ndarray, np.ndarray]  # (X,) and (Y,) coordinates; the second axis of a line is the single number 0
    marks: Mapping[str, Point]
    options: Options
    training: Samples | None  # data for running statistics; None means the objective's own

    @property
    def shape(self) -> tuple[int, int]:
        """Numbers of rows and columns of the grid."""
        x, y = self.axes
        return len(y), len(x)

    @property
    def statistics(self) -> str:
        """The policy for running statistics, as the result states it."""
        return self.options.batch_norm if running(self.objective.model) else NO_STATISTICS

    @property
    def others(self) -> bool:
        """Whether the surface may use other running statistics at a checkpoint than that has itself."""
        return bool(len(self.along.origin.buffers)) and not POLICIES[self.options.batch_norm].moves

    @property
    def passes(self) -> dict[str, Any]:
        """Arguments that say how a point is evaluated, as `Evaluator` has them."""
        names = ("bf16", "batch_norm", "training_samples", "seed")
        return {name: getattr(self.options, name) for name in names} | {"training": self.training}

    def coordinates(self, row: int, column: int) -> tuple[float, ...]:
        """Return the coordinates of a point of the grid, one for each direction."""
        x, y = self.axes
        return (x[column],) if len(self.along.axes) == 1 else (x[column], y[row])

    def asked(self) -> dict[str, Any]:
        """Return everything apart from the objective that determines the numbers, for the fingerprint."""
        along, (x, y) = self.along, self.axes
        vectors = [Point(along.theta, along.buffers), along.origin, *self.marks.values()]
        return {
            "directions": list(along.axes),
            "norm": along.normalisation,
            "ignore": along.ignored,
            "x": x.tolist(),
            "y": y.tolist(),
            "marks": list(self.marks),
            "vectors_sha256": points.digest(vectors),
            **vars(self.options),
            **estimated_on(self.options.batch_norm, self.objective, self.training),
        }

    def begun(self) -> dict[str, Any]:
        """Return the same up to rounding: from what computed directions follow stands in place of their vectors."""
        along, found = self.along, self.asked()
        sha256 = found.pop("vectors_sha256")
        if not along.made:
            return {**found, "directions and marks of SHA-256": sha256}
        exact = points.digest([along.origin, *self.marks.values()])
        return {**found, **along.made, "number of directions": len(along.axes), "checkpoints and marks": exact}

    def costs(self) -> costs.Known:
        """Return the cost of the surface; with refinement, the cost of all points of the grid as an upper bound."""
        objective, n = self.objective, self.shape[0] * self.shape[1]
        work = pilot.at_points(
            objective,
            "points, each a pass over all samples",
            n + (1 + len(self.marks)) * (1 + self.others),
            point_of=lambda: self.along.at(*self.coordinates(0, 0)),
            halve=arg("refine", 0.01),
            **self.passes,
        )
        kept = min(INPUT_BYTES, trees.n_bytes(objective.example(0)) * len(objective.samples) // objective.batch_size)
        disk = 2 * 8 * (5 if self.options.radius is None else 6) * n * len(objective.partition)
        disk += 8 * (len(self.along.axes) + 1) * objective.layout.size if self.along.rough else 0  # for `settled`
        return costs.Known(works=(pilot.evaluation(objective), work), keeps=kept, disk=disk, spare=arg("batch_size"))


def settled(objective: Objective, along: Directions, journal: Journal) -> Directions:
    """Return directions as an unfinished run began with them; the first attempt keeps them beside its points.

    Otherwise a run that goes on with another batch size, number of threads or device would have points on two planes.

    Args:
        objective: of the network.
        along: the directions as they are computed now.
        journal: of the run.

    Returns:
        The same ones, or those of the first attempt if rounding may change them visibly.

    Raises:
        StoreError: the file that keeps them cannot be written or read.
    """
    if not along.rough:
        return along
    file = journal.work("directions")
    try:
        if distributed.is_main() and not file.exists():
            store.write_result(file, directions.to_plane(objective, along, {}))
    finally:
        distributed.barrier()
    kept = store.read_result(file)[0]
    if not isinstance(kept, Plane):
        raise StoreError(f"{file} is damaged: pass {arg('overwrite', True)} to begin anew, or choose another file")
    return replace(directions.from_plane(objective, kept, own_origin=False), made=along.made, rough=True)


def compute(request: Request, journal: Journal | None, progress: jobs.Progress | None) -> dict[str, Any]:
    """Return the fields of a `Surface`; see `surface.surface`."""
    objective, along, (x, y) = request.objective, request.along, request.axes
    evaluator = Evaluator(objective, **request.passes)
    evaluated = partial(evaluate, evaluator, journal=journal, progress=progress)
    marks = _at_marks(request, evaluated)
    heights = _over_grid(request, evaluator, evaluated)
    invalid = _invalid_variances(request, evaluator, heights.computed)
    guessing = len(objective.samples.class_names) if objective.source["loss"] == "ce" else None
    summary = _summary(request, heights, marks, invalid, guessing)
    objective.verify()
    about = provenance(objective, request.asked())
    return {
        "parts": objective.partition.names,
        "n_samples": objective.population,
        "train_counts": objective.trained,
        "xcoordinates": x,
        "ycoordinates": y,
        "variance_invalid": invalid,
        **vars(heights),
        **objective.evaluation.predicted(),
        "axes": along.axes,
        "unit_length": along.unit_length,
        "explained": np.array(along.explained or [np.nan] * len(along.axes)),
        "cosine": along.cosine,
        **_fields_of_marks(request, marks),
        "batch_norm": request.statistics,
        "provenance": {**about, "n_classes": guessing, "fast_pass": evaluator.traced},
        **summary,
    }


class _Evaluated(Protocol):
    """The function `evaluate`, after its evaluator, journal and progress are set."""

    def __call__(
        self, points: Sequence[int], point_of: Callable[[int], Point], *, name: str = ..., as_it_is: bool = ...
    ) -> Points: ...


@dataclass(frozen=True, eq=False)
class _Marks:
    """The losses at the origin and at the marks, each at its own weights."""

    own: Points  # with their own running statistics: the origin, then the marks
    policy_loss: np.ndarray | None = None  # (M, P) with the surface's running statistics; None if these are the same
    centre_policy_loss: np.ndarray | None = None  # (P,), likewise at the origin


def _at_marks(request: Request, evaluated: _Evaluated) -> _Marks:
    marks = list(request.marks.values())
    at = [request.along.origin, *marks]
    own = evaluated(range(len(at)), at.__getitem__, name="marks", as_it_is=True)
    if not request.others:
        return _Marks(own)
    centre = evaluated([0], at.__getitem__, name="the centre as on the surface").loss[0]
    same = np.array_equal(centre, own.loss[0], equal_nan=True)
    found = _Marks(own, centre_policy_loss=None if same else centre)
    if not marks:
        return found
    of_marks = evaluated(range(len(marks)), marks.__getitem__, name="marks as on the surface").loss
    return replace(found, policy_loss=of_marks)


def _fields_of_marks(request: Request, found: _Marks) -> dict[str, Any]:
    own, names = found.own, tuple(request.marks)
    placed = [request.along.project(mark) for mark in request.marks.values()]
    fields: dict[str, Any] = {
        "marks": names,
        "mark_position": np.array([position for position, _ in placed]).reshape(len(names), len(request.along.axes)),
        "mark_distance": np.array([distance for _, distance in placed]),
        "mark_policy_loss": found.policy_loss,
        "centre_policy_loss": found.centre_policy_loss,
    }
    for what in ("loss", "loss_stderr", "accuracy", "accuracy_stderr"):
        values = getattr(own, what)
        fields |= {f"centre_{what}": None, f"mark_{what}": None}
        if values is not None:
            fields |= {f"centre_{what}": values[0], f"mark_{what}": values[1:]}
    return fields


@dataclass(frozen=True, kw_only=True, eq=False)
class _Heights:
    """The numbers at the points of the grid, (P, ny, nx); nan at points that are not computed."""

    loss: np.ndarray
    loss_stderr: np.ndarray
    accuracy: np.ndarray | None
    accuracy_stderr: np.ndarray | None
    computed: np.ndarray  # (ny, nx)

    def put(self, found: Points) -> None:
        """Enter the points that were evaluated; their numbers are in row-major order."""
        rows, columns = np.divmod(found.point, self.computed.shape[1])
        for name in ("loss", "loss_stderr", "accuracy", "accuracy_stderr"):
            values, entered = getattr(found, name), getattr(self, name)
            if values is not None and entered is not None:
                entered[:, rows, columns] = values.T
        self.computed[rows, columns] = True


def _over_grid(request: Request, evaluator: Evaluator, evaluated: _Evaluated) -> _Heights:
    """Evaluate all points of the grid or, with refinement, those that it needs."""
    objective, (n_rows, n_columns), moves = request.objective, request.shape, evaluator.policy.movement
    n_parts = len(objective.partition)
    loss, loss_stderr, accuracy, accuracy_stderr = np.full((4, n_parts, n_rows, n_columns), np.nan)
    heights = _Heights(
        loss=loss,
        loss_stderr=loss_stderr,
        accuracy=None if objective.correct is None else accuracy,
        accuracy_stderr=None if objective.correct is None else accuracy_stderr,
        computed=np.zeros((n_rows, n_columns), dtype=bool),
    )

    def point_of(number: int) -> Point:
        return request.along.at(*request.coordinates(*divmod(number, n_columns)), moves=moves)

    def fill(numbers: Sequence[int], name: str) -> None:
        heights.put(evaluated(numbers, point_of, name=name))

    tol = request.options.refine
    if tol is None:
        fill(range(n_rows * n_columns), "points")
    else:
        weights = np.stack([objective.shares, np.full(n_parts, 1 / n_parts)])
        refinement.refine(fill, heights.loss, heights.computed, tol=tol, weights=weights)
    return heights


def _invalid_variances(request: Request, evaluator: Evaluator, computed: np.ndarray) -> np.ndarray:
    """Say at which points a running variance is negative, (ny, nx); estimated variances never are."""
    along, policy, invalid = request.along, evaluator.policy, np.zeros_like(computed)
    if policy.trains or policy.batches:
        return invalid
    eps = points.variance_eps(evaluator.objective.model).to(along.eps.device)
    for row, column in np.argwhere(computed):
        at = request.coordinates(row, column)
        if policy.moves:  # the buffers alone are enough
            found = [along.buffers_at(*at, moves=policy.moves)]
        else:
            found = [point.buffers for point in evaluator.with_statistics(along.at(*at))]
        invalid[row, column] = not all(points.variances_valid(eps, buffers) for buffers in found)
    return invalid


def _summary(
    request: Request, heights: _Heights, marks: _Marks, invalid: np.ndarray, n_classes: int | None
) -> dict[str, Any]:
    """Return the fields that follow from the losses; see `grid.summary`."""
    along, options, (x, y) = request.along, request.options, request.axes
    where = grid.Grid(
        xcoordinates=x,
        ycoordinates=y,
        unit_length=along.unit_length,
        cosine=along.cosine,
        computed=heights.computed,
    )
    return grid.summary(
        where,
        parts=request.objective.partition.names,
        loss=heights.loss,
        centre_loss=marks.own.loss[0],
        variance_invalid=invalid,
        loss_stderr=heights.loss_stderr,
        radius=options.radius,
        batch_norm=request.statistics,
        marks=tuple(request.marks),
        mark_loss=marks.own.loss[1:],
        mark_policy_loss=marks.policy_loss,
        centre_policy_loss=marks.centre_policy_loss,
        between=options.between,
        n_classes=n_classes,
    )
