"""The rise of a part's loss under noise, and the size of noise that doubles it.

A draw d is a filter-normalised random direction (directions.py); sizes are relative to the norms of the filters. All
parts use the same draws. For the doubling radius, all parts are first evaluated together on a ladder of sizes, its
rungs, until the loss of each part lies between two of them; then each part's interval is halved.

Standard errors over samples follow, to first order, from the contribution of each sample: under noise the sample's mean
rise; for the radius, the sample's loss there minus twice its loss at the checkpoint, divided by the slope there.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from landscape.analyses import directions
from landscape.analyses.directions import Directions
from landscape.analyses.part_losses import PartLosses
from landscape.curvature.lanczos import probe
from landscape.objective import jobs
from landscape.objective.evaluator import Evaluator, evaluate
from landscape.objective.objective import Objective
from landscape.results import quadrature
from landscape.results.journal import Journal

LIMIT = 2.0
"""Largest relative size of noise that is tried for the doubling radius: such noise is far larger than the filters."""
_RUNGS = tuple(LIMIT / 2**j for j in range(16, -1, -1))  # relative sizes at which all parts are evaluated together
_FIRST_RUNG = _RUNGS.index(LIMIT / 16)
USUAL_RUNGS = 3
"""The number of rungs on which parts are usually evaluated, for the estimate of costs."""
HALVINGS = 6
"""Halvings of the interval between two rungs, before the loss is interpolated linearly."""
_KEPT_BYTES = 2**30  # memory for directions; others are drawn again for each part


def drawer(objective: Objective, seed: int) -> Callable[[int], Directions]:
    """Return a function that makes a random direction, which depends only on its number and the seed."""

    @lru_cache(maxsize=max(1, _KEPT_BYTES // (8 * objective.layout.size)))
    def draw(number: int) -> Directions:
        raw = probe(objective.layout.size, seed=seed, number=number, distribution="gaussian", stream="direction")
        found = directions.of_vectors(objective, raw[None], [f"random {number + 1} (seed {seed})"])
        return directions.normalised(objective, found, "filter", "biasbn")

    return draw


def under_noise(
    own: PartLosses, draw: Callable[[int], Directions], sigma: float, draws: int, report: Callable[[float], None]
) -> tuple[tuple[float, float], float]:
    """Return the mean rise under noise of both signs, and its standard errors over draws and over samples."""
    begun, rises = own.losses(own.theta), []
    for k in range(draws):
        report(k / draws)
        with np.errstate(invalid="ignore"):
            noisy = (own.losses(draw(k).at(sign * sigma).theta) for sign in (1, -1))
            rises.append(sum(noisy) / 2 - begun)
    with np.errstate(invalid="ignore"):  # the mean of infinite rises is infinite, its error nan
        over_draws = quadrature.mean_and_stderr(np.array([own.mean(rise) for rise in rises]))
        return over_draws, own.stderr(np.mean(rises, axis=0))


@dataclass(frozen=True)
class Bracket:
    """Two relative sizes between which a loss reaches a level, with the losses at both."""

    low: float
    high: float  # inf if the level is not reached, nan if a loss on the way is nan
    below: float
    above: float


def brackets(
    evaluator: Evaluator,
    draw: Callable[[int], Directions],
    draws: int,
    wanted: np.ndarray,
    journal: Journal | None,
    progress: jobs.Progress | None,
) -> list[list[Bracket]]:
    """Find two neighbouring rungs between which the loss reaches its level, along each direction and for each part.

    All parts are evaluated together, on the rungs that some part needs: down until no loss has reached its level, and
    up until all have. A part with a level that is not positive needs none.

    Returns:
        A bracket for each of the K directions and P parts.
    """
    counted = wanted > 0
    losses: dict[int, np.ndarray] = {}

    def fill(rung: int) -> np.ndarray:
        found = evaluate(
            evaluator,
            range(rung * draws, (rung + 1) * draws),
            lambda number: draw(number % draws).at(_RUNGS[number // draws]),
            journal=journal,
            progress=progress,
            name="doubling",
        )
        losses[rung] = found.loss  # (K, P)
        return found.loss

    lowest = rung = _FIRST_RUNG
    beyond = ~(fill(rung) < wanted)  # a nan counts as reached, so that the rungs below it are evaluated
    settled = beyond
    while lowest > 0 and beyond[:, counted].any():
        lowest -= 1
        beyond = ~(fill(lowest) < wanted)
        settled = settled | beyond
    while rung < len(_RUNGS) - 1 and not settled[:, counted].all():
        rung += 1
        settled = settled | ~(fill(rung) < wanted)
    sizes = np.array([0.0, *_RUNGS[lowest : rung + 1]])
    start = np.broadcast_to(wanted / 2, losses[rung].shape)
    ladder = np.stack([start, *(losses[i] for i in range(lowest, rung + 1))])  # (J, K, P)
    return [[_bracket(sizes, ladder[:, k, p], wanted[p]) for p in range(len(wanted))] for k in range(draws)]


def _bracket(sizes: np.ndarray, losses: np.ndarray, wanted: float) -> Bracket:
    reached = np.flatnonzero(~(losses < wanted))
    if not len(reached):
        return Bracket(float(sizes[-1]), math.inf, float(losses[-1]), math.nan)
    i = reached[0]
    if np.isnan(losses[i]):
        return Bracket(0.0, math.nan, math.nan, math.nan)
    return Bracket(*map(float, (sizes[i - 1], sizes[i], losses[i - 1], losses[i])))


@dataclass(frozen=True)
class Crossing:
    """The size at which the loss reaches a level along a direction."""

    size: float  # relative; inf if it is not reached, nan if a loss on the way is nan
    slope: float  # of the loss there
    direction: Directions


def crossing(own: PartLosses, direction: Directions, bracket: Bracket, wanted: float) -> Crossing:
    """Find where the loss of a part reaches a level within a bracket."""
    low, high, below, above = bracket.low, bracket.high, bracket.below, bracket.above
    for _ in range(HALVINGS if math.isfinite(high) else 0):
        middle = (low + high) / 2
        value = own.mean(own.losses(direction.at(middle).theta))
        if math.isnan(value):
            return Crossing(math.nan, math.nan, direction)
        if value >= wanted:
            high, above = middle, value
        else:
            low, below = middle, value
    if not math.isfinite(high):
        return Crossing(high, math.nan, direction)
    return Crossing(low + (high - low) * (wanted - below) / (above - below), (above - below) / (high - low), direction)


def stderr_of_median(own: PartLosses, crossings: Sequence[Crossing]) -> float:
    """Return the standard error over samples of the median radius, from the middle draw or the middle two."""
    ordered = sorted(crossings, key=lambda c: c.size)
    middle = ordered[(len(ordered) - 1) // 2 : len(ordered) // 2 + 1]
    if not middle or any(math.isnan(c.size) for c in ordered) or not all(math.isfinite(c.size) for c in middle):
        return math.nan
    begun = own.losses(own.theta)
    moved = [(2 * begun - own.losses(c.direction.at(c.size).theta)) / c.slope for c in middle]
    return own.stderr(np.mean(moved, axis=0))


def median(radii: np.ndarray) -> tuple[float, float]:
    """Return the median and half the interquartile range; a radius is inf beyond the limit, nan if unknown."""
    if np.isnan(radii).any():
        return math.nan, math.nan
    quarter, three = np.quantile(radii, [0.25, 0.75], method="inverted_cdf")  # no interpolation, which inf would spoil
    middle = float(np.median(radii))  # for an even number, inf if one of the middle two is
    spread = float(three - quarter) / 2 if len(radii) > 1 and math.isfinite(three) else math.nan
    return middle, spread
