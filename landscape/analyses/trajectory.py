"""Paths of training on a plane, with the surface of every part under them.

The plane contains an origin, which is the last checkpoint of the first run unless another is given. It is spanned by
the principal components of the differences of all checkpoints from the origin, or contains chosen checkpoints as in
Figure 1 of the paper: the start, an optimum of the tail, an optimum of all. A path in D dimensions does not lie in the
plane. Each projected checkpoint therefore has its true losses and its distance from the plane: the contour at its
projection can mislead.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from landscape.analyses import directions
from landscape.analyses.directions import Directions
from landscape.analyses.surface import MOST_POINTS
from landscape.analyses.surface_fields import Options, Request, compute, settled
from landscape.autodiff.batch_statistics import running
from landscape.callables import checked
from landscape.data.datasets import Samples
from landscape.errors import InputError, arg
from landscape.objective import jobs, points
from landscape.objective.batch_norm import DEFAULT, BatchNorm
from landscape.objective.objective import Objective
from landscape.objective.points import Point
from landscape.objective.provenance import fingerprint
from landscape.results import Trajectory

MARGIN = 0.2
"""Default extension of the grid beyond the path, as a fraction of the path's extent along each axis."""

Checkpoints = Mapping[str, tuple[Point, float]]
"""Checkpoints of one run, in order: name -> the point and its epoch; nan if the epoch is unknown."""


@checked
def trajectory(
    objective: Objective,
    paths: Mapping[str, Checkpoints],
    *,
    anchors: Mapping[str, Point] | None = None,
    plane: Directions | None = None,
    n: int = 21,
    margin: float = MARGIN,
    batch_norm: BatchNorm | None = None,
    training: Samples | None = None,
    training_samples: int = 2048,
    seed: int = 0,
    bf16: bool = False,
    refine: float | None = None,
    out: str | Path | None = None,
    overwrite: bool = False,
    progress: jobs.Progress | None = None,
) -> Trajectory:
    """Project the checkpoints of one or several runs onto one plane, and compute the loss surface on this plane.

    Args:
        objective: model, loss and data in parts, at the origin of the plane.
        paths: the runs.
        anchors: two checkpoints that the plane contains besides the origin; None means the principal components
            of all paths.
        plane: an existing plane, so that runs of several calls are drawn on the same plane.
        n: points of the grid along each axis; the grid contains all checkpoints.
        margin: extension of the grid beyond them, as a fraction of their extent.
        batch_norm: running statistics on the grid, see `surface.surface`; checkpoints use their own. None means
            "log-interpolate" on a plane along which the statistics change, else "reestimate".
        training: see `surface.surface`.
        training_samples: see `surface.surface`.
        seed: of the draw of training samples.
        bf16: see `surface.surface`.
        refine: see `surface.surface`.
        out: result file to write; finished work is kept beside it until it is complete.
        overwrite: replace an existing result file.
        progress: called with (done, total, text).

    Returns:
        Paths, true losses, and the surface.

    Raises:
        InputError: fewer checkpoints than a plane needs, or options out of their range.
        StoreError: the result file cannot be written, or an unfinished run beside it had other options.
    """
    if n < 2 or not 0 <= margin < math.inf:
        raise InputError(
            f"{arg('n')} must be at least 2 and {arg('margin')} a share, at least 0; got {n} and {margin:g}"
        )
    if plane is not None and anchors:
        raise InputError("a stored plane cannot be combined with checkpoints that the plane contains: give one of them")
    marks = {
        (name if len(paths) == 1 else f"{run}/{name}"): point
        for run, path in paths.items()
        for name, (point, _) in path.items()
    }
    along = plane or plane_of(objective, list(marks.values()), anchors or {})
    named = points.joined(marks, anchors or {})
    policy = batch_norm or policy_on(objective, along, through=bool(anchors))
    options = Options(batch_norm=policy, training_samples=training_samples, seed=seed, bf16=bf16, refine=refine)
    if n**2 > MOST_POINTS:
        raise InputError(f"{arg('n')} must be at most {math.isqrt(MOST_POINTS):,}, got {n:,}")

    def requested(along: Directions) -> Request:
        positions = np.array([along.project(point)[0] for point in named.values()] + [np.zeros(2)])
        return Request(
            objective=objective,
            along=along,
            axes=(_around(positions[:, 0], n, margin), _around(positions[:, 1], n, margin)),
            marks=named,
            options=options,
            training=training,
        )

    request = requested(along)
    jobs.declare(request.costs, out)
    runs = [r for r, path in enumerate(paths.values()) for _ in path]
    epochs = [epoch for path in paths.values() for _, epoch in path.values()]
    extra = len(named) - len(marks)
    about: dict[str, Any] = {
        "runs": tuple(paths),
        "mark_run": np.array(runs + [-1] * extra),
        "mark_epoch": np.array([*epochs, *[np.nan] * extra], dtype=np.float64),
    }
    if out is None:
        return Trajectory(**compute(request, None, progress), **about)
    begun = {**request.begun(), "runs": list(paths), "n": n, "margin": margin}
    begun = {name: value for name, value in begun.items() if name not in ("x", "y")}  # they follow, up to rounding
    with jobs.open_journal(out, fingerprint(objective, begun), overwrite=overwrite) as journal:
        request = requested(settled(objective, along, journal))
        result = Trajectory(**compute(request, journal, progress), **about)
        journal.finish(result)
    return result


def plane_of(objective: Objective, path: Sequence[Point], anchors: Mapping[str, Point]) -> Directions:
    """Return the plane that contains the origin and the anchors, or else the one along the principal components.

    Args:
        objective: at the origin of the plane.
        path: all checkpoints of all paths.
        anchors: two checkpoints by their names; none for the principal components of the path.

    Returns:
        Two directions.

    Raises:
        InputError: fewer checkpoints than a plane needs.
    """
    if not anchors:
        return directions.principal(objective, path)
    along = directions.towards(objective, list(anchors.values()), list(anchors))
    if len(along.axes) < 2:
        raise InputError(f"a plane through checkpoints needs two of them besides the origin: give two {arg('anchors')}")
    return along.orthogonalised()


def policy_on(objective: Objective, along: Directions | None, *, through: bool) -> BatchNorm:
    """Return the policy for batch norm on a plane if none is given.

    Args:
        objective: at the origin of the plane.
        along: the plane; None for that of principal components, which does not move statistics.
        through: whether the plane contains checkpoints besides the origin.

    Returns:
        Interpolation where statistics move along the plane or there are none, else a new estimate at each point.
    """
    moves = through or (along is not None and bool(along.buffers.any()))
    return DEFAULT if moves or not running(objective.model) else "reestimate"


def _around(positions: np.ndarray, n: int, margin: float) -> np.ndarray:
    """Return n coordinates whose range contains the positions and the margin."""
    low, high = positions.min(), positions.max()
    beyond = margin * ((high - low) or 1.0)
    return np.linspace(low - beyond, high + beyond, n)


def of_runs(found: Sequence[tuple[str, Checkpoints]]) -> dict[str, Checkpoints]:
    """Combine runs under distinct names.

    Args:
        found: name and path of each run, in order.

    Returns:
        The runs.

    Raises:
        InputError: two runs have one name.
    """
    names = [name for name, _ in found]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"two runs are called {name!r}: give their folders other names")
    return dict(found)
