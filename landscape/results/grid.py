"""From the losses on a line or a grid to numbers: lowest point, radii, rises and barrier.

Between points the loss is interpolated linearly, along a line and within the triangles of a grid (mesh.py). A triangle
with a corner that is not finite is a hole and is not interpolated. For a smooth loss the error is of the order of the
squared step. Near a minimum, within the first step, that is more than the loss itself, so numbers that would depend on
it are nan.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from scipy.interpolate import LinearNDInterpolator, PchipInterpolator

from landscape.results.mesh import SAME, Grid, floor_of, smooth, spanning, step_of
from landscape.results.verdict import verdict

__all__ = ["Grid", "barrier", "barrier_stderr", "doubling_radius", "lowest", "summary", "worst_rise"]


def lowest(grid: Grid, loss: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Find the lowest point of each part; among points of equal loss, the nearest to the centre.

    Args:
        grid: coordinates of the points.
        loss: (P, ny, nx); values that are not finite are ignored.

    Returns:
        The loss (P,) and its coordinates (P, A); nan for a part without a finite value.
    """
    order = np.argsort((grid.coordinates**2).sum(axis=1), kind="stable")
    values = loss[:, grid.computed][:, order]
    finite = np.isfinite(values)
    found, position = np.full(len(loss), np.nan), np.full((len(loss), len(grid.unit_length)), np.nan)
    for p in np.flatnonzero(finite.any(axis=1)):
        best = np.argmin(np.where(finite[p], values[p], np.inf))
        found[p] = values[p, best]
        position[p] = grid.coordinates[order[best], : len(grid.unit_length)]
    return found, position


def doubling_radius(grid: Grid, loss: np.ndarray, centre_loss: np.ndarray) -> np.ndarray:
    """Return the smallest distance from the centre at which each part's loss reaches twice the centre's.

    Args:
        grid: coordinates of the points.
        loss: (P, ny, nx).
        centre_loss: (P,) at the checkpoint itself.

    Returns:
        Euclidean distances (P,). inf if no point of the grid reaches twice the centre's loss. nan if the distance is
        unknown: if the points next to the centre already exceed it, so that the grid is too coarse; if a computed point
        that is nan is nearer; if the centre's loss is not positive and finite; if the grid does not contain the centre
        or has no other point; or if units are unknown.
    """
    radii = np.full(len(loss), np.nan)
    corners = grid.euclidean(grid.vertices)
    distance = np.linalg.norm(corners, axis=1)
    if not grid.holds_centre or not len(grid.around) or not np.isfinite(distance).all():
        return radii
    for p, values in enumerate(grid.values(loss, centre_loss)):
        twice = 2 * centre_loss[p]
        if not 0 < twice < np.inf or np.any(values[grid.around] > twice):
            continue
        ends = _level_segments(corners, values, grid.simplices, twice)
        nearest = np.concatenate([distance[values >= twice], _distance_of_segments(*ends)]).min(initial=np.inf)
        if nearest <= distance[np.isnan(values)].min(initial=np.inf):
            radii[p] = nearest
    return radii


def worst_rise(grid: Grid, loss: np.ndarray, centre_loss: np.ndarray, radius: float) -> np.ndarray:
    """Return how much the loss of each part rises above the centre's within a distance, in the plane.

    Candidates for the largest value are the points within the distance and the points at which edges cross the circle.
    The result is a lower bound of SAM's worst case, which is over all directions.

    Args:
        grid: coordinates of the points.
        loss: (P, ny, nx).
        centre_loss: (P,) at the checkpoint itself; its rise is 0.
        radius: Euclidean distance, or nan for none; parts of the disc outside the grid are not searched.

    Returns:
        Rises (P,), at least 0; inf if a loss within the distance is inf. nan if not all points next to the centre are
        within the distance, so that the grid is too coarse; if a computed value within, or the centre's, is nan; or if
        the grid does not contain the centre, or units or radius are unknown.
    """
    corners = grid.euclidean(grid.vertices)
    distance = np.linalg.norm(corners, axis=1)
    if not len(grid.around) or not distance[grid.around].max() <= radius * (1 + SAME):
        return np.full(len(loss), np.nan)
    values = grid.values(loss, centre_loss)
    inside = distance <= radius * (1 + SAME)
    largest = values[:, inside].max(axis=1, initial=-np.inf)
    edges = grid.edges
    for share, (a, b) in _on_circle(corners[edges[:, 0]], corners[edges[:, 1]], edges, radius):
        with np.errstate(invalid="ignore"):  # from an infinite loss; the next line leaves it out
            between = (1 - share) * values[:, a] + share * values[:, b]
        between = np.where(np.isfinite(values[:, a]) & np.isfinite(values[:, b]), between, -np.inf)
        largest = np.maximum(largest, between.max(axis=1, initial=-np.inf))
    rise: np.ndarray = np.maximum(largest - centre_loss, 0.0)
    return rise


def interpolate(grid: Grid, values: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Interpolate linearly within the triangles of the computed points.

    Args:
        grid: coordinates of the points, which must span a plane.
        values: (P, V) at its vertices; values that are not finite are holes.
        positions: (N, 2) coordinates.

    Returns:
        (P, N); nan outside the triangles, and in triangles with a corner that is not finite and has a weight.
    """
    finite = np.isfinite(values)
    both = np.concatenate([np.where(finite, values, 0.0), finite])
    with spanning():
        found = LinearNDInterpolator(grid.vertices, both.T, rescale=True)(positions).T
    height, share = np.split(found, 2)
    filled: np.ndarray = np.where(share > 1 - 1e-9, height, np.nan)
    return filled


def filled(grid: Grid, values: np.ndarray, centre: np.ndarray, *, cubic: bool = True) -> np.ndarray:
    """Return values at all points of a grid, interpolated at points that were not computed.

    Args:
        grid: coordinates of the points; the computed points must span its line or plane.
        values: (P, ny, nx).
        centre: (P,) at the checkpoint itself.
        cubic: interpolate by cubic polynomials in the logarithm if no value of the part is negative, otherwise
            linearly.

    Returns:
        (P, ny, nx); nan where values are not finite, in the triangles around these, and outside the computed points.
    """
    found = np.where(np.isfinite(values), values, np.nan)
    rows, columns = np.nonzero(~grid.computed)
    if not len(rows):
        return found
    places = np.stack([grid.xcoordinates[columns], grid.ycoordinates[rows]], axis=1)
    if min(found.shape[1:]) == 1:
        axis = grid.xcoordinates if found.shape[1] == 1 else grid.ycoordinates
        on_line = found.reshape(len(found), -1)
        return np.stack([_filled_line(axis, grid.computed.ravel(), v, cubic=cubic) for v in on_line]).reshape(
            found.shape
        )
    heights = grid.values(found, centre)
    between = interpolate(grid, heights, places)
    steps = step_of(grid.xcoordinates), step_of(grid.ycoordinates)
    for p, known in enumerate(heights if cubic else ()):
        finite = np.isfinite(known)
        if finite.sum() > 3 and (known[finite] >= 0).all():
            curved = smooth(grid.vertices[finite] / steps, known[finite][None], places / steps)[0]
            between[p] = np.where(np.isnan(between[p]) | np.isnan(curved), between[p], curved)
    found[:, rows, columns] = between
    return found


def _filled_line(t: np.ndarray, computed: np.ndarray, values: np.ndarray, *, cubic: bool) -> np.ndarray:
    """Return values (N,) at all places t, (N,) ascending; nan beside values that are not finite, and outside all."""
    order = np.argsort(t)
    places, known, whole = t[order], computed[order], values[order]
    finite = known & np.isfinite(whole)
    if finite.sum() < 2:
        return values
    at, heights = places[finite], whole[finite]
    share = np.interp(places, places[known], finite[known].astype(float), left=0, right=0)
    between = np.interp(places, at, heights)
    if cubic and (heights >= 0).all():
        raised = floor_of(heights[None])[0]
        between = np.maximum(np.exp(PchipInterpolator(at, np.log(heights + raised))(places)) - raised, 0)
    found = np.empty_like(values)
    found[order] = np.where(finite, whole, np.where(~known & (share > 1 - 1e-9), between, np.nan))
    return found


def reach(grid: Grid) -> float:
    """Return the distance from the centre to the farthest of the points next to it; nan where lengths are unknown."""
    distances = np.linalg.norm(grid.euclidean(grid.vertices[grid.around]), axis=1)
    return float(distances.max()) if len(distances) else math.nan


def barrier(t: np.ndarray, loss: np.ndarray) -> np.ndarray:
    """Return the largest rise of the loss above the straight line between its values at t = 0 and t = 1.

        max over t in [0, 1] of L(t) - ((1 - t) L(0) + t L(1))

    The values at 0 and 1 are points of the line or are interpolated. To compute the barrier of a group, pass the loss
    of the group: it is not an average of barriers.

    Args:
        t: (n,) coordinates of the computed points, in any order; 0 is one model, 1 the other.
        loss: (P, n).

    Returns:
        Barriers (P,), at least 0; nan if the line does not extend from 0 to 1, or has a nan in between.

    Source: Frankle et al. 2020, "Linear mode connectivity and the lottery ticket hypothesis".
    """
    order = np.argsort(t)
    t, loss = t[order], loss[:, order]
    if not len(t) or t[0] > SAME or t[-1] < 1 - SAME:
        return np.full(len(loss), np.nan)
    between = (t >= -SAME) & (t <= 1 + SAME)
    found = np.zeros(len(loss))
    for p, values in enumerate(loss):
        first, last = np.interp([0.0, 1.0], t, values)
        rise = values[between] - ((1 - t[between]) * first + t[between] * last)
        found[p] = rise.max(initial=0.0)
    return found


def barrier_stderr(t: np.ndarray, loss: np.ndarray, stderr: np.ndarray) -> np.ndarray:
    """Return upper bounds of the standard errors of barriers over samples.

    The errors at 0, at 1 and at the highest point add up if they are fully correlated, and otherwise their sum is an
    upper bound. This is the error of the rise at this point; the largest rise of few samples is too large on average.

    Args:
        t: as for `barrier`.
        loss: (P, n).
        stderr: standard errors of the losses, (P, n).

    Returns:
        (P,); nan where the barrier or an error is unknown.
    """
    order = np.argsort(t)
    t, loss, stderr = t[order], loss[:, order], stderr[:, order]
    found = np.full(len(loss), np.nan)
    if not len(t) or t[0] > SAME or t[-1] < 1 - SAME:
        return found
    between = np.flatnonzero((t >= -SAME) & (t <= 1 + SAME))
    for p, (values, errors) in enumerate(zip(loss, stderr, strict=True)):
        if not np.isfinite(values[between]).all():
            continue
        first, last = np.interp([0.0, 1.0], t, values)
        top = between[np.argmax(values[between] - ((1 - t[between]) * first + t[between] * last))]
        ends = np.interp([0.0, 1.0], t, errors)
        found[p] = errors[top] + (1 - t[top]) * ends[0] + t[top] * ends[1]
    return found


def summary(
    grid: Grid,
    *,
    parts: Sequence[str],
    loss: np.ndarray,
    centre_loss: np.ndarray,
    radius: float | None,
    batch_norm: str,
    loss_stderr: np.ndarray | None = None,
    marks: Sequence[str] = (),
    mark_loss: np.ndarray | None = None,
    mark_policy_loss: np.ndarray | None = None,
    centre_policy_loss: np.ndarray | None = None,
    between: bool = False,
    n_classes: int | None = None,
    augmented: bool | None = False,
    variance_invalid: np.ndarray | None = None,
) -> dict[str, Any]:
    """Return the fields of a surface that follow from its losses, by their names in `results.Surface`.

    Args:
        grid: coordinates of the points.
        parts: names of the P parts.
        loss: (P, ny, nx), nan where not computed.
        centre_loss: (P,) at the checkpoint itself.
        radius: Euclidean radius of `worst_rise`; None means the smallest one that the grid resolves, its `reach`.
        batch_norm: name of the policy for running statistics, for the verdict.
        loss_stderr: (P, ny, nx) standard errors of the losses; None where these are unknown.
        marks: names of the M marks.
        mark_loss: (M, P) at the marks themselves.
        mark_policy_loss: (M, P), the same with running statistics as on the grid; None if these are the marks' own.
        centre_policy_loss: (P,) at the checkpoint with these, above which rises are; None if they are its own.
        between: the line goes from one checkpoint at 0 to another at 1, and has a barrier.
        n_classes: C; log C is the cross-entropy of a uniform guess. None if unknown or for another loss.
        augmented: whether the data were augmented; None if unknown.
        variance_invalid: (ny, nx), true where a running variance is negative or not finite; None if unknown.

    Returns:
        `lowest_loss`, `lowest_position`, `doubling_radius`, `worst_rise`, `barrier`, `barrier_stderr`, `radius` and
        `verdict`.
    """
    low, position = lowest(grid, loss)
    own_loss, centre_loss = centre_loss, centre_loss if centre_policy_loss is None else centre_policy_loss
    whole, heights = grid, loss
    if not grid.computed.all() and (grid.simplices.shape[1] == 3 or min(loss.shape[1:]) == 1):
        heights = np.where(grid.computed, loss, filled(grid, loss, centre_loss))
        whole = replace(grid, computed=grid.computed | np.isfinite(heights).all(axis=0))
    radius = reach(whole) if radius is None else radius
    found = {
        "lowest_loss": low,
        "lowest_position": position,
        "doubling_radius": doubling_radius(whole, heights, centre_loss),
    }
    errors = None
    if between and loss_stderr is not None:
        errors = barrier_stderr(grid.coordinates[:, 0], loss[:, grid.computed], loss_stderr[:, grid.computed])
    return {
        **found,
        "barrier_stderr": errors,
        "worst_rise": worst_rise(whole, heights, centre_loss, radius),
        "barrier": barrier(grid.coordinates[:, 0], loss[:, grid.computed]) if between else None,
        "radius": radius,
        "verdict": verdict(
            whole,
            parts=parts,
            loss=heights,
            computed=grid.computed,
            centre_loss=centre_loss,
            found=found,
            batch_norm=batch_norm,
            marks=marks,
            mark_loss=mark_loss,
            mark_policy_loss=mark_policy_loss,
            own_loss=None if centre_policy_loss is None else own_loss,
            radius=radius,
            n_classes=n_classes,
            augmented=augmented,
            variance_invalid=variance_invalid,
        ),
    }


def _level_segments(
    corners: np.ndarray, values: np.ndarray, simplices: np.ndarray, level: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return the ends of the segments of the level line, (S, 2) each; on a line of points a segment is one point."""
    above = (values >= level)[simplices]
    simplices = simplices[above.any(axis=1) & ~above.all(axis=1)]
    simplices = simplices[np.isfinite(values[simplices]).all(axis=1)]
    pairs = [(0, 1)] if simplices.shape[1] == 2 else [(0, 1), (1, 2), (2, 0)]
    a, b = simplices[:, [i for i, _ in pairs]], simplices[:, [j for _, j in pairs]]
    crossed = (values[a] < level) != (values[b] < level)
    a, b = a[crossed], b[crossed]
    share = ((level - values[a]) / (values[b] - values[a]))[:, None]
    points = (1 - share) * corners[a] + share * corners[b]
    if simplices.shape[1] == 2:
        return points, points
    return points[::2], points[1::2]  # two of a triangle's three edges are crossed; they are neighbours in the list


def _distance_of_segments(start: np.ndarray, end: np.ndarray) -> np.ndarray:
    step = end - start
    length2 = (step**2).sum(axis=1)
    nearest = np.divide(-(start * step).sum(axis=1), length2, out=np.zeros(len(step)), where=length2 > 0)
    distances: np.ndarray = np.linalg.norm(start + np.clip(nearest, 0, 1)[:, None] * step, axis=1)
    return distances


def _on_circle(
    start: np.ndarray, end: np.ndarray, edges: np.ndarray, radius: float
) -> list[tuple[np.ndarray, tuple[np.ndarray, np.ndarray]]]:
    """Return, for both roots, the position of each crossing of the circle along its edge, and the edge's vertices."""
    step = end - start
    a, b, c = (step**2).sum(axis=1), (start * step).sum(axis=1), (start**2).sum(axis=1) - radius**2
    crossing = (a > 0) & (b**2 >= a * c)
    a, b, c, edges = a[crossing], b[crossing], c[crossing], edges[crossing]
    found = []
    for sign in (-1, 1):
        share = (-b + sign * np.sqrt(b**2 - a * c)) / a
        on = (share >= 0) & (share <= 1)
        found.append((share[on], (edges[on, 0], edges[on, 1])))
    return found
