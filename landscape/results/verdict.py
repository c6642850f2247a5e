"""The verdict on a surface: one line of warnings about its centre, range, steps, values and marks.

The line is part of the result, of the output of `landscape compare` and of figures. grid.py has the arithmetic.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from landscape.results.mesh import SAME, Grid, step_of

NO_STATISTICS = "none"
"""Stands for the policy for running statistics where a network has none."""
_LOWER = 0.01  # of the centre's loss: a checkpoint is never exactly at the minimum of every part
_ROUNDING = 1e-5  # of the loss: rounding of sums of float32 values
_STEPS_ACROSS = 5  # grid steps that show a region's shape
_OFF = 0.1  # of a part's largest loss at a mark
_GUESSES = 4  # times log C: beyond that a contour plot of cross-entropy is usually cut


def verdict(
    grid: Grid,
    *,
    parts: Sequence[str],
    loss: np.ndarray,
    computed: np.ndarray | None = None,
    centre_loss: np.ndarray,
    found: Mapping[str, np.ndarray],
    batch_norm: str,
    marks: Sequence[str] = (),
    mark_loss: np.ndarray | None = None,
    mark_policy_loss: np.ndarray | None = None,
    own_loss: np.ndarray | None = None,
    radius: float = float("nan"),
    n_classes: int | None = None,
    augmented: bool | None = False,
    variance_invalid: np.ndarray | None = None,
) -> str:
    """Return one line that names everything that could mislead a reader of the surface.

    Args:
        grid: coordinates of the points.
        parts: names of the P parts.
        loss: (P, ny, nx).
        computed: (ny, nx), true where the network was evaluated; None for all points.
        centre_loss: (P,) with running statistics as on the grid.
        found: `lowest_loss` (P,), `lowest_position` (P, A) and `doubling_radius` (P,).
        batch_norm: name of the policy for running statistics; "unknown" for a file of another program, "none" for a
            network without such statistics, which is not mentioned.
        marks: names of the M marks.
        mark_loss: (M, P) at the marks themselves.
        mark_policy_loss: (M, P), the same with running statistics as on the grid; None if these are the marks' own.
        own_loss: (P,) at the centre with the checkpoint's own running statistics; None if these are the grid's.
        radius: Euclidean radius of `worst_rise`, which must not be below a grid step.
        n_classes: C; log C is the cross-entropy of a uniform guess. None if unknown or for another loss.
        augmented: whether the data were augmented; None if unknown.
        variance_invalid: (ny, nx), true where a running variance is negative or not finite; None if unknown.

    Returns:
        Clauses joined by "; ": first problems with centre, range and values, then how the surface was computed.
    """
    computed = grid.computed if computed is None else computed
    clauses = [
        *_about_values(computed, loss[:, computed], variance_invalid),
        *_about_centre(grid, parts, centre_loss, found),
        *_about_range(grid, parts, loss, centre_loss, n_classes),
        *_about_steps(grid, parts, loss, centre_loss, found["doubling_radius"], radius),
        *([] if own_loss is None else _about_marks(parts, ["the checkpoint"], own_loss[None], centre_loss[None])),
        *_about_marks(parts, marks, mark_loss, mark_policy_loss),
    ]
    augmentation = {True: "augmented data", False: "augmentation off", None: "augmentation unknown"}[augmented]
    statistics = [] if batch_norm == NO_STATISTICS else [f"batch norm: {batch_norm}"]
    return "; ".join([*(clauses or ["no problem found"]), *statistics, augmentation])


def _about_values(computed: np.ndarray, values: np.ndarray, variance_invalid: np.ndarray | None) -> list[str]:
    clauses = []
    if variance_invalid is not None and variance_invalid.any():
        share = 100 * variance_invalid[computed].mean()
        clauses.append(f"running variances are below zero or not finite at {share:.3g} % of the points")
    if not computed.all():
        clauses.append(f"{100 * computed.mean():.3g} % of the points were computed")
    if values.size and not np.isfinite(values).all():
        clauses.append(f"{100 * (1 - np.isfinite(values).mean()):.3g} % of the computed losses are not finite")
    return clauses


def _about_centre(
    grid: Grid, parts: Sequence[str], centre_loss: np.ndarray, found: Mapping[str, np.ndarray]
) -> list[str]:
    if not grid.holds_centre:
        return ["the checkpoint (0) lies outside the range"]
    drop = centre_loss - found["lowest_loss"]
    lower = np.flatnonzero(drop > np.maximum(_LOWER * np.abs(centre_loss), 0))
    if not len(lower):
        return []
    worst = lower[np.argmax(drop[lower])]
    where = ", ".join(f"{c:.3g}" for c in found["lowest_position"][worst])
    return [
        f"the centre is not the lowest point of {_named(parts, worst, len(lower))}: "
        f"the loss falls from {centre_loss[worst]:.3g} to {found['lowest_loss'][worst]:.3g} at ({where})"
    ]


def _about_range(
    grid: Grid, parts: Sequence[str], loss: np.ndarray, centre_loss: np.ndarray, n_classes: int | None
) -> list[str]:
    values = loss[:, grid.computed]
    finite = np.isfinite(values)
    clauses = []
    if n_classes is not None and n_classes > 1:
        numbers = np.maximum((~np.isnan(values)).sum(axis=1), 1)
        high = (values > _GUESSES * np.log(n_classes)).sum(axis=1) / numbers
        wide = np.flatnonzero(high > 0.5)
        if len(wide):
            worst = wide[np.argmax(high[wide])]
            clauses.append(
                f"range too wide: {100 * high[worst]:.3g} % of the points of {_named(parts, worst, len(wide))} have "
                f"more than {_GUESSES} times the loss of guessing (log {n_classes})"
            )
    spread = np.where(finite, values, -np.inf).max(axis=1, initial=-np.inf)
    spread -= np.where(finite, values, np.inf).min(axis=1, initial=np.inf)
    if values.shape[1] > 1 and finite.any() and np.all(spread <= _ROUNDING * np.abs(centre_loss)):
        clauses.append("range too narrow: the loss changes by no more than rounding")
    return clauses


def _about_steps(
    grid: Grid, parts: Sequence[str], loss: np.ndarray, centre_loss: np.ndarray, radii: np.ndarray, radius: float
) -> list[str]:
    """Find quantities for which the grid is too coarse."""
    clauses = []
    twice = 2 * centre_loss
    jumps = (grid.values(loss, centre_loss)[:, grid.around] > twice[:, None]).any(axis=1) & (twice > 0)
    if jumps.any():
        named = _named(parts, int(np.argmax(jumps)), int(jumps.sum()))
        clauses.append(f"range too wide or too few points: within one step the loss of {named} more than doubles")
    beside = np.linalg.norm(grid.euclidean(grid.vertices[grid.around]), axis=1)
    if not len(beside) or not np.isfinite(beside).all():
        return clauses
    axes = zip((grid.xcoordinates, grid.ycoordinates), grid.unit_length, strict=False)
    step = max(step_of(axis) * unit for axis, unit in axes)
    across = 2 * radii / step
    coarse = np.flatnonzero(across < _STEPS_ACROSS)
    if len(coarse):
        worst = coarse[np.argmin(across[coarse])]
        clauses.append(
            f"few points: the region where the loss is below twice the centre's is {across[worst]:.1f} steps wide for "
            f"{_named(parts, worst, len(coarse))}"
        )
    if radius < beside.max() * (1 - SAME):
        clauses.append(f"no largest rise: its radius {radius:.3g} is less than a step, {beside.max():.3g}")
    return clauses


def _about_marks(
    parts: Sequence[str], marks: Sequence[str], loss: np.ndarray | None, policy: np.ndarray | None
) -> list[str]:
    """Find marks with a loss that differs from the surface's only because of their running statistics."""
    if loss is None or policy is None:
        return []
    size = np.where(np.isfinite(loss), np.abs(loss), 0.0).max(axis=0, initial=0.0)
    with np.errstate(invalid="ignore"):  # of two infinite losses
        off = np.divide(np.abs(policy - loss), size, out=np.zeros_like(loss), where=size > 0)
    off[np.isnan(off)] = 0.0
    if not (off > _OFF).any():
        return []
    m, p = (int(i) for i in np.unravel_index(np.argmax(off), off.shape))
    return [
        f"the running statistics of {_named(marks, m, int((off > _OFF).any(axis=1).sum()))} differ from the surface's: "
        f"the loss of {parts[p]} is {loss[m, p]:.3g} with its own, and {policy[m, p]:.3g} with the surface's"
    ]


def _named(parts: Sequence[str], worst: int, how_many: int) -> str:
    more = "" if how_many < 2 else " and another" if how_many == 2 else f" and {how_many - 1} others"
    return parts[worst] + more
