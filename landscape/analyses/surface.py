"""Loss and accuracy of every part on a line or a plane through parameter space.

L_p(x, y) = L_p(theta + x d1 + y d2) for all parts p at once, in one pass over the data for each point. What is stored
is per part, so that any grouping or weighting of the classes is drawn afterwards (regroup.py); the directions'
Euclidean lengths and angle are stored with them, so that paths and distances are to scale.

With refinement a coarse grid comes first. Where the loss at a new point is off what is interpolated from the points
before it by more than a tolerance, the cells around it are divided again: at half the distance cubic interpolation
(`mesh.smooth`) errs by an eighth or less, linear by a quarter.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from typing import Any, TypedDict, Unpack

import numpy as np

from landscape.analyses import directions
from landscape.analyses.directions import Directions
from landscape.autodiff import costs, trees
from landscape.callables import checked
from landscape.data.datasets import Samples
from landscape.errors import InputError, arg
from landscape.objective import jobs, pilot, points
from landscape.objective.batch_norm import DEFAULT, BatchNorm
from landscape.objective.evaluator import INPUT_BYTES, Evaluator, evaluate
from landscape.objective.objective import Objective
from landscape.objective.points import Point
from landscape.objective.provenance import fingerprint, provenance
from landscape.results import Surface, grid
from landscape.results.journal import Journal
from landscape.results.mesh import floor_of, smooth

COARSEST = 8
"""Grid steps between the points of the first pass with refinement."""


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
    """Evaluate every part on a line or a grid.

    Args:
        objective: model, loss and data in parts; per class is the finest, and costs no more.
        along: one direction for a line, two for a plane.
        x: coordinates along the first, ascending, in units of the direction.
        y: coordinates along the second; None for a line.
        marks: other checkpoints to show, evaluated where they are.
        batch_norm: what running statistics do, one of `batch_norm.POLICIES`: "log-interpolate": they move with the
            point towards another checkpoint, variances by their logarithm; "interpolate": all in a straight line, on
            which variances may end below zero and there is no loss; "keep": those of the origin everywhere;
            "reestimate": measured at each point.
        training: what statistics are re-estimated on; None takes the objective's own data.
        training_samples: at most so many of them.
        seed: of the draw of these.
        bf16: run the network in bfloat16; losses are off by some 1e-3 of themselves.
        refine: compute only so many points that interpolation of the mean loss, over samples and over parts, is about
            this share of it off, as 0.01; None computes all.
        radius: Euclidean radius in the plane within which `worst_rise` looks for the largest loss; None takes that of
            the points next to the centre.
        between: the line leads from one checkpoint at 0 to another at 1: state the barrier between them.
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
    costs.declare(lambda: costs_of(objective, along, axes, len(marks or {}), options, training))
    if out is None:
        return Surface(**compute(objective, along, axes, marks or {}, options, training, None, progress))
    with jobs.open_journal(out, fingerprint(objective, asked), overwrite=overwrite) as journal:
        result = Surface(**compute(objective, along, axes, marks or {}, options, training, journal, progress))
        journal.finish(result)
    return result


class Keywords(TypedDict, total=False):
    """What `surface1d` and `surface2d` hand on to `surface`."""

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


@checked
def surface1d(
    objective: Objective,
    along: Directions | None = None,
    n: int = 51,
    *,
    x: np.ndarray | Sequence[float] | None = None,
    **options: Unpack[Keywords],
) -> Surface:
    """Evaluate every part on a line: `surface` with its defaults; a random direction if none is given.

    Args:
        objective: as for `surface`.
        along: one direction.
        n: points from -1 to 1.
        x: other points, (X,), in place of these.
        options: of `surface`.

    Returns:
        The surface.
    """
    line = along or directions.random(objective, 1)
    return surface(objective, line, np.linspace(-1, 1, n) if x is None else x, **options)


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
    """Evaluate every part on a plane: `surface` with its defaults; random directions if none are given.

    Args:
        objective: as for `surface`.
        along: two directions.
        n: points from -1 to 1 along each.
        x: other points along the first, (X,), in place of these.
        y: other points along the second, (Y,); those of `x` if only that is given.
        options: of `surface`.

    Returns:
        The surface.
    """
    plane = along or directions.random(objective, 2)
    across = np.linspace(-1, 1, n) if x is None else x
    return surface(objective, plane, across, across if y is None else y, **options)


def coordinates(
    along: Directions, x: np.ndarray | Sequence[float], y: np.ndarray | Sequence[float] | None, options: Options
) -> tuple[np.ndarray, np.ndarray]:
    """Check coordinates and options; return both axes, the second of a line being 0 alone.

    Raises:
        InputError: they do not fit the directions, or are out of range.
    """  # ruff: ignore[docstring-missing-returns]
    axes = np.asarray(x, dtype=np.float64), np.zeros(1) if y is None else np.asarray(y, dtype=np.float64)
    if len(along.axes) != (1 if y is None else 2):
        raise InputError(f"a surface over {len(along.axes)} direction(s) needs as many lists of coordinates")
    for name, values in zip("xy", axes, strict=True):
        if values.ndim != 1 or not len(values) or not np.isfinite(values).all() or (np.diff(values) <= 0).any():
            raise InputError(f"{arg(name)} must be finite numbers that ascend, at least one")
    if options.refine is not None and not 0 < options.refine < 1:
        raise InputError(f"{arg('refine')} is a share of the loss between 0 and 1, got {options.refine:g}")
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
    """Return what a surface takes; with refinement all points of the grid, which is the most that it may take."""
    x, y = axes
    n, halve = len(x) * len(y), arg("refine", 0.01)
    size = 4 if options.radius is None else 5
    work = pilot.at_points(
        objective,
        "points, each a pass over all samples",
        n + 1 + 2 * n_marks,
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
    """Return what the numbers depend on apart from the objective, for the fingerprint."""
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
        _refined(fill, loss, computed, options.refine, np.stack([shares, np.full(n_parts, 1 / n_parts)]))

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
    """Say at which points a running variance is none, (ny, nx); measured ones always are."""
    invalid, (x, y) = np.zeros_like(computed), axes
    eps = points.variance_eps(evaluator.objective.model).to(along.eps.device)
    for row, column in np.argwhere(computed):
        at = (x[column],) if len(along.axes) == 1 else (x[column], y[row])
        if evaluator.policy.moves:
            found = along.buffers_at(*at, moves=evaluator.policy.moves)
            invalid[row, column] = not points.variances_valid(eps, found)
        elif evaluator.policy.keeps:
            invalid[row, column] = not points.variances_valid(eps, evaluator.centre.buffers)
    return invalid


def _refined(
    fill: Callable[[Sequence[int], str], None],
    loss: np.ndarray,
    computed: np.ndarray,
    tol: float,
    weights: np.ndarray,
) -> None:
    """Compute a coarse grid, then what interpolation does not give to a share of the loss.

    `fill` computes points by their numbers and enters them into `loss` (P, ny, nx) and `computed` (ny, nx); `weights`
    (W, P) make the means that count.
    """
    ny, nx = computed.shape
    step = COARSEST
    while step > 1 and step >= max(nx, ny):
        step //= 2
    cells = _cells(_every(ny, step), _every(nx, step))
    _fill_missing(fill, computed, product(_every(ny, step), _every(nx, step)), f"every {step}")
    while step > 1 and cells:
        step //= 2
        rows, columns = _every(ny, step), _every(nx, step)
        wanted = [p for cell in cells for p in _inside(cell, rows, columns)]
        before = computed.copy()
        _fill_missing(fill, computed, wanted, f"every {step}")
        mean = np.tensordot(weights, loss, 1)
        off = _misses(mean, before, computed & ~before)
        if off is None:
            divided = [cell for cell in cells if _bends(mean, cell, rows, columns, 4 * tol)]
        else:
            divided = [cell for cell in cells if _is_off(mean, off, cell, 8 * tol)]
        cells = [
            small
            for r0, r1, c0, c1 in divided
            for small in _cells([r for r in rows if r0 <= r <= r1], [c for c in columns if c0 <= c <= c1])
        ]


def _every(n: int, step: int) -> list[int]:
    return sorted({*range(0, n, step), n - 1})


def _cells(rows: Sequence[int], columns: Sequence[int]) -> list[tuple[int, int, int, int]]:
    """Return the cells between neighbours; an axis of one point has one cell without extent."""
    spans = [list(pairwise(axis)) or [(axis[0], axis[0])] for axis in (rows, columns)]
    return [(*r, *c) for r, c in product(*spans)]


def _inside(cell: tuple[int, int, int, int], rows: Sequence[int], columns: Sequence[int]) -> Iterable[tuple[int, int]]:
    r0, r1, c0, c1 = cell
    return product([r for r in rows if r0 <= r <= r1], [c for c in columns if c0 <= c <= c1])


def _fill_missing(
    fill: Callable[[Sequence[int], str], None], computed: np.ndarray, wanted: Iterable[tuple[int, int]], name: str
) -> None:
    numbers = sorted({r * computed.shape[1] + c for r, c in wanted if not computed[r, c]})
    if numbers:
        fill(numbers, name)


def _misses(mean: np.ndarray, known: np.ndarray, new: np.ndarray) -> np.ndarray | None:
    """Return the relative error of interpolation at each new point, (W, ny, nx); 0 at the others.

    Where some are zero, the smallest of the others is added to the divisor. None where cubic interpolation does not
    apply: to lines, and to means that are negative.
    """
    used = known & np.isfinite(mean).all(axis=0)
    if min(known.shape) < 2 or used.sum() < 4 or (mean[:, used] < 0).any():
        return None
    off, found = np.zeros_like(mean), mean[:, new]
    miss = np.abs(smooth(np.argwhere(used), mean[:, used], np.argwhere(new)) - found)
    size = found + floor_of(mean[:, used])
    off[:, new] = np.divide(miss, size, out=np.full_like(found, np.inf), where=np.isfinite(found) & (size > 0))
    return off


def _is_off(mean: np.ndarray, off: np.ndarray, cell: tuple[int, int, int, int], tol: float) -> bool:
    """Say whether a mean in a cell is off by more than a share of itself, or the border of a hole runs through it."""
    r0, r1, c0, c1 = cell
    corners = np.isfinite(mean[:, [r0, r0, r1, r1], [c0, c1, c0, c1]])
    if not corners.all():
        return bool(corners.any())
    return not (off[:, r0 : r1 + 1, c0 : c1 + 1] <= tol).all()


def _bends(
    mean: np.ndarray, cell: tuple[int, int, int, int], rows: Sequence[int], columns: Sequence[int], tol: float
) -> bool:
    """Say whether a mean inside a cell is off the interpolation of its corners by more than a share of itself."""
    # Corners that are not finite have no interpolation; where only some are, the border runs through the cell.
    r0, r1, c0, c1 = cell
    corners = mean[:, [r0, r0, r1, r1], [c0, c1, c0, c1]]
    if not np.isfinite(corners).all():
        return bool(np.isfinite(corners).any())
    for r, c in _inside(cell, rows, columns):
        v = (r - r0) / (r1 - r0) if r1 > r0 else 0.0
        u = (c - c0) / (c1 - c0) if c1 > c0 else 0.0
        expected = corners @ np.array([(1 - v) * (1 - u), (1 - v) * u, v * (1 - u), v * u])
        if not (np.abs(mean[:, r, c] - expected) <= tol * np.abs(mean[:, r, c])).all():
            return True
    return False
