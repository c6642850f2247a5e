"""Loss and accuracy of every part on a line or a plane through parameter space.

L_p(x, y) = L_p(theta + x d1 + y d2) is computed for all parts p at once, with one pass over the data for each point.
Losses are stored for each part, so that a figure can later group and weight the classes in any way (regroup.py). The
Euclidean lengths of the directions and their angle are stored too, so that paths and distances are to scale.
`refinement.py` computes only some points of the grid.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict, Unpack

import numpy as np

from landscape.analyses import directions, refinement
from landscape.analyses.directions import Directions
from landscape.autodiff import costs, trees
from landscape.callables import checked
from landscape.data.datasets import Samples
from landscape.errors import InputError, arg
from landscape.objective import jobs, pilot, points
from landscape.objective.batch_norm import DEFAULT, POLICIES, BatchNorm
from landscape.objective.evaluator import INPUT_BYTES, Evaluator, evaluate
from landscape.objective.objective import Objective
from landscape.objective.points import Point
from landscape.objective.provenance import fingerprint, provenance
from landscape.results import Surface, grid
from landscape.results.journal import Journal

MOST_POINTS = 10_000_000
"""The largest number of points of a grid."""


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


@checked
def surface(
    objective: Objective,
    along: Directions,
    x: np.ndarray | Sequence[float],
    y: np.ndarray | Sequence[float] | None = None,
    *,
    marks: Mapping[str, Point] | None = None,
    batch_norm: BatchNorm = DEFAULT,
    training: Samples | None = None,
    training_samples: int = 2048,
    seed: int = 0,
    bf16: bool = False,
    refine: float | None = None,
    radius: float | None = None,
    between: bool = False,
    out: jobs.Destination | None = None,
    overwrite: bool = False,
    progress: jobs.Progress | None = None,
) -> Surface:
    """Compute the loss and the accuracy of every part on a line or a grid.

    Args:
        objective: model, loss and data in parts. Use one part per class: it costs no more, and groups can be formed
            later.
        along: one direction for a line, two for a plane.
        x: (X,) coordinates along the first direction, ascending, as multiples of the direction.
        y: (Y,) coordinates along the second direction; None for a line.
        marks: other checkpoints to show; each is evaluated at its own weights, not at its projection.
        batch_norm: the running statistics at each point, by a name of `batch_norm.POLICIES`. "log-interpolate"
            interpolates between those of the checkpoints, variances by their logarithm; "interpolate" interpolates all
            of them linearly, so that a variance may become negative and the loss undefined; "keep" uses those of the
            origin everywhere; "reestimate" estimates them at each point.
        training: data on which statistics are re-estimated; None means the objective's own data.
        training_samples: the largest number of samples of `training` that are used.
        seed: of the draw of these samples.
        bf16: run the network in bfloat16; losses change by a fraction of about 1e-3.
        refine: skip points at which interpolation predicts the mean loss, over samples and over parts, to within about
            this fraction of it, such as 0.01; None computes all points.
        radius: Euclidean radius in the plane within which `worst_rise` searches for the largest loss; None means the
            distance of the points next to the centre.
        between: the line leads from one checkpoint at 0 to another at 1; also compute the barrier between them.
        out: result file to write; finished blocks of points are kept beside it until it is complete.
        overwrite: replace an existing result file.
        progress: called with (done, total, text).

    Returns:
        The surface of all parts.

    Raises:
        InputError: coordinates or options out of their range.
        StoreError: the result file cannot be written, or an unfinished run beside it had other options.
    """
    options = Options(
        batch_norm=batch_norm,
        training_samples=training_samples,
        seed=seed,
        bf16=bf16,
        refine=refine,
        radius=radius,
        between=between,
    )
    axes = coordinates(along, x, y, options)
    asked = asked_for(along, axes, marks or {}, options)
    jobs.declare(
        lambda: costs_of(objective, along, axes, len(marks or {}), options, training), out, overwrite=overwrite
    )
    if out is None:
        return Surface(**compute(objective, along, axes, marks or {}, options, training, None, progress))
    with jobs.open_journal(out, fingerprint(objective, asked), overwrite=overwrite) as journal:
        result = Surface(**compute(objective, along, axes, marks or {}, options, training, journal, progress))
        journal.finish(result)
    return result


class Keywords(TypedDict, total=False):
    """Keyword arguments that `surface1d` and `surface2d` pass on to `surface`."""

    marks: Mapping[str, Point] | None
    batch_norm: BatchNorm
    training: Samples | None
    training_samples: int
    seed: int
    bf16: bool
    refine: float | None
    radius: float | None
    between: bool
    out: jobs.Destination | None
    overwrite: bool
    progress: jobs.Progress | None


def _even(n: int) -> np.ndarray:
    if n < 1:
        raise InputError(f"{arg('n')} must be at least 1, got {n}")
    return np.linspace(-1, 1, n)


@checked
def surface1d(
    objective: Objective,
    along: Directions | None = None,
    n: int = 51,
    *,
    x: np.ndarray | Sequence[float] | None = None,
    **options: Unpack[Keywords],
) -> Surface:
    """Compute the loss and the accuracy of every part on a line; see `surface`.

    Args:
        objective: as for `surface`.
        along: one direction; None means a random one.
        n: number of points from -1 to 1.
        x: (X,) coordinates to use instead of these points.
        options: further arguments of `surface`.

    Returns:
        The surface.
    """
    line = along or directions.random(objective, 1)
    return surface(objective, line, _even(n) if x is None else x, **options)


@checked
def surface2d(
    objective: Objective,
    along: Directions | None = None,
    n: int = 51,
    *,
    x: np.ndarray | Sequence[float] | None = None,
    y: np.ndarray | Sequence[float] | None = None,
    **options: Unpack[Keywords],
) -> Surface:
    """Compute the loss and the accuracy of every part on a plane; see `surface`.

    Args:
        objective: as for `surface`.
        along: two directions; None means random ones.
        n: number of points from -1 to 1 along each direction.
        x: (X,) coordinates along the first direction to use instead of these points.
        y: (Y,) coordinates along the second direction; None means those of `x`.
        options: further arguments of `surface`.

    Returns:
        The surface.
    """
    plane = along or directions.random(objective, 2)
    across = _even(n) if x is None else x
    return surface(objective, plane, across, across if y is None else y, **options)


def coordinates(
    along: Directions, x: np.ndarray | Sequence[float], y: np.ndarray | Sequence[float] | None, options: Options
) -> tuple[np.ndarray, np.ndarray]:
    """Check coordinates and options, and return both axes; the second axis of a line is the single number 0.

    Raises:
        InputError: they do not fit the directions, or are out of range.
    """  # ruff: ignore[docstring-missing-returns]
    axes = np.asarray(x, dtype=np.float64), np.zeros(1) if y is None else np.asarray(y, dtype=np.float64)
    if len(along.axes) != (1 if y is None else 2):
        raise InputError(
            f"there are {len(along.axes)} direction(s): give one list of coordinates for each ({arg('x')}, {arg('y')})"
        )
    for name, values in zip("xy", axes, strict=True):
        if values.ndim != 1 or not len(values) or not np.isfinite(values).all() or (np.diff(values) <= 0).any():
            raise InputError(f"{arg(name)} must be a list of finite numbers in ascending order")
    if len(axes[0]) * len(axes[1]) > MOST_POINTS:
        n_points = f"{len(axes[0]):,} x {len(axes[1]):,}"
        raise InputError(f"{arg('x')} and {arg('y')} ask for {n_points} points: at most {MOST_POINTS:,}")
    if options.refine is not None and not 0 < options.refine < 1:
        raise InputError(f"{arg('refine')} must be a fraction of the loss between 0 and 1, got {options.refine:g}")
    if options.radius is not None and not 0 < options.radius < np.inf:
        raise InputError(f"{arg('radius')} must be a positive number, got {options.radius:g}")
    return axes


def costs_of(
    objective: Objective,
    along: Directions,
    axes: tuple[np.ndarray, np.ndarray],
    n_marks: int,
    options: Options,
    training: Samples | None,
) -> costs.Known:
    """Return the cost of a surface; with refinement, the cost of all points of the grid, which is an upper bound."""
    x, y = axes
    n, halve = len(x) * len(y), arg("refine", 0.01)
    size = 4 if options.radius is None else 5
    again = bool(len(along.origin.buffers)) and not POLICIES[options.batch_norm].moves  # as on the surface
    work = pilot.at_points(
        objective,
        "points, each a pass over all samples",
        n + 1 + n_marks * (1 + again),
        point_of=lambda: along.at(*(axis[0] for axis in axes[: len(along.axes)])),
        halve=halve,
        bf16=options.bf16,
        batch_norm=options.batch_norm,
        training=training,
        training_samples=options.training_samples,
        seed=options.seed,
    )
    kept = min(INPUT_BYTES, trees.n_bytes(objective.example(0)) * len(objective.samples) // objective.batch_size)
    disk = 2 * 8 * size * n * len(objective.partition)
    return costs.Known(works=(pilot.evaluation(objective), work), keeps=kept, disk=disk, spare=arg("batch_size"))


def asked_for(
    along: Directions, axes: tuple[np.ndarray, np.ndarray], marks: Mapping[str, Point], options: Options
) -> dict[str, Any]:
    """Return everything apart from the objective that determines the numbers, for the fingerprint."""
    vectors = [Point(along.theta, along.buffers), along.origin, *marks.values()]
    about = {"directions": list(along.axes), "norm": along.normalisation, "ignore": along.ignored}
    return {
        **about,
        "x": axes[0].tolist(),
        "y": axes[1].tolist(),
        "marks": list(marks),
        "vectors_sha256": points.digest(vectors),
        **vars(options),
    }


def compute(
    objective: Objective,
    along: Directions,
    axes: tuple[np.ndarray, np.ndarray],
    marks: Mapping[str, Point],
    options: Options,
    training: Samples | None,
    journal: Journal | None,
    progress: jobs.Progress | None,
) -> dict[str, Any]:
    """Return the fields of a `Surface`; see `surface`."""
    evaluator = Evaluator(
        objective,
        bf16=options.bf16,
        batch_norm=options.batch_norm,
        training=training,
        training_samples=options.training_samples,
        seed=options.seed,
    )
    x, y = axes
    is_line = len(along.axes) == 1

    moves = evaluator.policy.movement

    def on_plane(number: int) -> Point:
        row, column = divmod(number, len(x))
        return along.at(*((x[column],) if is_line else (x[column], y[row])), moves=moves)

    itself = [along.origin, *marks.values()]
    true = evaluate(
        evaluator,
        range(len(itself)),
        itself.__getitem__,
        journal=journal,
        progress=progress,
        name="marks",
        as_it_is=True,
    )
    policy = None
    if marks and not evaluator.policy.moves and len(along.origin.buffers):
        policy = evaluate(
            evaluator,
            range(len(marks)),
            itself[1:].__getitem__,
            journal=journal,
            progress=progress,
            name="marks as on the surface",
        ).loss
    n_parts = len(objective.partition)
    loss = np.full((n_parts, len(y), len(x)), np.nan)
    stderr = np.full_like(loss, np.nan)
    accuracy = None if objective.correct is None else np.full_like(loss, np.nan)
    computed = np.zeros((len(y), len(x)), dtype=bool)

    def fill(numbers: Sequence[int], name: str) -> None:
        found = evaluate(evaluator, numbers, on_plane, journal=journal, progress=progress, name=name)
        rows, columns = np.divmod(found.point, len(x))
        loss[:, rows, columns] = found.loss.T
        if found.loss_stderr is not None:
            stderr[:, rows, columns] = found.loss_stderr.T
        if accuracy is not None and found.accuracy is not None:
            accuracy[:, rows, columns] = found.accuracy.T
        computed[rows, columns] = True

    if options.refine is None:
        fill(range(len(x) * len(y)), "points")
    else:
        shares = objective.shares
        refinement.refine(
            fill, loss, computed, tol=options.refine, weights=np.stack([shares, np.full(n_parts, 1 / n_parts)])
        )

    placed = [along.project(mark) for mark in marks.values()]
    where = grid.Grid(
        xcoordinates=x, ycoordinates=y, unit_length=along.unit_length, cosine=along.cosine, computed=computed
    )
    invalid = _invalid_variances(along, evaluator, axes, computed)
    guessing = len(objective.samples.class_names) if objective.source["loss"] == "ce" else None
    found = grid.summary(
        where,
        parts=objective.partition.names,
        loss=loss,
        centre_loss=true.loss[0],
        variance_invalid=invalid,
        loss_stderr=stderr,
        radius=options.radius,
        batch_norm=options.batch_norm,
        marks=tuple(marks),
        mark_loss=true.loss[1:],
        mark_policy_loss=policy,
        between=options.between,
        n_classes=guessing,
    )
    objective.verify()
    about = provenance(objective, asked_for(along, axes, marks, options))
    return {
        "parts": objective.partition.names,
        "n_samples": objective.population,
        "train_counts": objective.trained,
        "xcoordinates": x,
        "ycoordinates": y,
        "loss": loss,
        "loss_stderr": stderr,
        "accuracy": accuracy,
        "computed": computed,
        "variance_invalid": invalid,
        "centre_loss": true.loss[0],
        "centre_loss_stderr": None if true.loss_stderr is None else true.loss_stderr[0],
        "centre_accuracy": None if true.accuracy is None else true.accuracy[0],
        **objective.evaluation.predicted(),
        "axes": along.axes,
        "unit_length": along.unit_length,
        "explained": np.array(along.explained or [np.nan] * len(along.axes)),
        "cosine": along.cosine,
        "marks": tuple(marks),
        "mark_position": np.array([position for position, _ in placed]).reshape(len(marks), len(along.axes)),
        "mark_distance": np.array([distance for _, distance in placed]),
        "mark_loss": true.loss[1:],
        "mark_loss_stderr": None if true.loss_stderr is None else true.loss_stderr[1:],
        "mark_accuracy": None if true.accuracy is None else true.accuracy[1:],
        "mark_policy_loss": policy,
        "batch_norm": options.batch_norm,
        "provenance": {**about, "n_classes": guessing, "fast_pass": evaluator.traced},
        **found,
    }


def _invalid_variances(
    along: Directions, evaluator: Evaluator, axes: tuple[np.ndarray, np.ndarray], computed: np.ndarray
) -> np.ndarray:
    """Say at which points a running variance is negative, (ny, nx); estimated variances never are."""
    invalid, (x, y), policy = np.zeros_like(computed), axes, evaluator.policy
    if policy.trains or policy.batches:
        return invalid
    eps = points.variance_eps(evaluator.objective.model).to(along.eps.device)
    for row, column in np.argwhere(computed):
        at = (x[column],) if len(along.axes) == 1 else (x[column], y[row])
        if policy.moves:  # the buffers alone are enough
            found = [along.buffers_at(*at, moves=policy.moves)]
        else:
            found = [point.buffers for point in evaluator.with_statistics(along.at(*at))]
        invalid[row, column] = not all(points.variances_valid(eps, buffers) for buffers in found)
    return invalid
