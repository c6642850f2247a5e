"""Loss and accuracy of every part on a line or a plane through parameter space.

L_p(x, y) = L_p(theta + x d1 + y d2) is computed for all parts p at once, with one pass over the data for each point.
Losses are stored for each part, so that a figure can later group and weight the classes in any way (regroup.py). The
Euclidean lengths of the directions and their angle are stored too, so that paths and distances are to scale.
`surface_fields.py` computes the points, and `refinement.py` chooses them where not all are needed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TypedDict, Unpack

import numpy as np

from landscape.analyses import directions
from landscape.analyses.directions import Directions
from landscape.analyses.surface_fields import Options, Request, compute, settled
from landscape.callables import checked
from landscape.data.datasets import Samples
from landscape.errors import InputError, arg
from landscape.objective import jobs
from landscape.objective.batch_norm import DEFAULT, BatchNorm
from landscape.objective.objective import Objective
from landscape.objective.points import Point
from landscape.objective.provenance import fingerprint
from landscape.results import Surface

MOST_POINTS = 10_000_000
"""The largest number of points of a grid."""


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
            this fraction of it, such as 0.01: most errors are smaller, the largest two to three times as large. None
            computes all points.
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
    request = Request(
        objective=objective,
        along=along,
        axes=_coordinates(along, x, y),
        marks=marks or {},
        options=options,
        training=training,
    )
    jobs.declare(request.costs, out)
    if out is None:
        return Surface(**compute(request, None, progress))
    with jobs.open_journal(out, fingerprint(objective, request.begun()), overwrite=overwrite) as journal:
        request = replace(request, along=settled(objective, along, journal))
        result = Surface(**compute(request, journal, progress))
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


def _coordinates(
    along: Directions, x: np.ndarray | Sequence[float], y: np.ndarray | Sequence[float] | None
) -> tuple[np.ndarray, np.ndarray]:
    """Check coordinates and return both axes; the second axis of a line is the single number 0."""
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
    return axes
