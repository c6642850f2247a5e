"""How far the loss of each part rises around a checkpoint, by four definitions of sharpness in all of parameter space.

With L_p the mean loss of part p, g_p its gradient at theta, and T = I, or diag |theta| where the ball is adaptive:

    first order   L_p(theta + rho T^2 g_p / |T g_p|) - L_p(theta)           one step of SAM
    worst         max over |T^-1 e| <= rho of L_p(theta + e) - L_p(theta)   what that step stands for
    noise         mean over draws +-d of L_p(theta + sigma d) - L_p(theta)
    doubling      the smallest r with L_p(theta + r d) = 2 L_p(theta), median over the draws

A draw d is a random direction normalised by filter (directions.py): in each filter it has the filter's own length, so
that sigma and r are relative sizes, and it leaves biases and batch norm alone. Noise is added and taken away: the mean
is the same, and the slope, which makes most of its error, cancels. The parts share the draws, and a pass over the data
serves all of them. Running statistics stay those of the checkpoint.

The worst rise is looked for by projected gradient ascent, which ends at a local maximum at best: a lower bound.

Sources: Foret et al. 2021 (SAM); Kwon et al. 2021 (T, adaptive SAM); Neyshabur et al. 2017 and Jiang et al. 2020 (noise
in proportion to the weights); Li et al. 2018 (the filter as the unit).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from landscape.analyses import directions
from landscape.analyses.directions import Directions
from landscape.autodiff import costs
from landscape.autodiff.differentiable import differentiable_attention
from landscape.autodiff.wide import wide
from landscape.callables import checked
from landscape.curvature.lanczos import probe
from landscape.errors import InputError, arg
from landscape.objective import jobs, pilot, points
from landscape.objective.evaluator import Evaluator, evaluate
from landscape.objective.objective import Objective
from landscape.objective.points import Point
from landscape.objective.provenance import fingerprint, provenance
from landscape.results import Sharpness, quadrature
from landscape.results.journal import Journal

LIMIT = 2.0
"""Largest relative size of noise that is tried for the doubling radius: filters are then far smaller than the noise."""
_RUNGS = tuple(LIMIT / 2**j for j in range(16, -1, -1))  # relative sizes at which all parts are evaluated together
_FIRST_RUNG = _RUNGS.index(LIMIT / 16)
_USUAL_RUNGS = 3  # are tried
_HALVINGS = 6  # of the rung's width, before the last stretch is taken to be straight
_KEPT_BYTES = 2**30  # of directions; what is beyond is drawn again for each part


@dataclass(frozen=True, kw_only=True)
class Options:
    """What determines the numbers, apart from the objective."""

    rho: float
    adaptive: bool
    ascent_steps: int
    sigma: float
    draws: int
    seed: int


@checked
def sharpness(
    objective: Objective,
    *,
    rho: float = 0.05,
    adaptive: bool = False,
    ascent_steps: int = 20,
    sigma: float = 0.1,
    draws: int = 8,
    seed: int = 0,
    out: jobs.Destination | None = None,
    overwrite: bool = False,
    progress: jobs.Progress | None = None,
) -> Sharpness:
    """Measure how far the loss of each part rises around the objective's own weights.

    Args:
        objective: model, loss and data in parts. The balls are those of its `params`.
        rho: Euclidean radius of the ball, 0.05 as in SAM; where `adaptive`, a size relative to each weight, of which
            0.5 to 2 is usual.
        adaptive: scale the ball by |theta| entry by entry, so that rescaling the weights of ReLU networks does not
            change the rise.
        ascent_steps: gradient steps of the search for the largest rise, beyond the first-order one. 20 come near to
            the largest of a smooth loss; more never find less.
        sigma: size of the noise, relative to each filter.
        draws: random directions, for the noise and the doubling radius. 8 show their spread.
        seed: of the directions; the first is that of `directions.random`.
        out: result file to write; what is finished is kept beside it until it is complete, and a repeated call with
            the same options takes it up.
        overwrite: replace an existing result file.
        progress: called with (done, total, text).

    Returns:
        The figures of all parts. A loss that is not finite makes the numbers that depend on it nan or inf.

    Raises:
        InputError: an option out of its range, weight decay, or parameters without a filter among them.
        NumericalError: the loss at the checkpoint is not finite.
        StoreError: the result file cannot be written, or an unfinished run beside it had other options.
    """
    options = Options(rho=rho, adaptive=adaptive, ascent_steps=ascent_steps, sigma=sigma, draws=draws, seed=seed)
    _check(objective, options)
    costs.declare(lambda: _costs(objective, options))
    if out is None:
        return _run(objective, options, None, progress)
    with jobs.open_journal(out, fingerprint(objective, vars(options)), overwrite=overwrite) as journal:
        result = _run(objective, options, journal, progress)
        journal.finish(result)
    return result


def _run(objective: Objective, options: Options, journal: Journal | None, progress: jobs.Progress | None) -> Sharpness:
    here = objective.evaluation
    draw = _drawer(objective, options.seed)
    evaluator = Evaluator(objective, batch_norm="keep")
    centre, noisy = _under_noise(evaluator, draw, options, journal, progress)
    brackets = _brackets(evaluator, draw, options.draws, 2 * centre, journal, progress)
    del evaluator  # with its inputs, which the parts do not need
    names = {f"around {name}": p for p, name in enumerate(objective.partition.names)}

    def compute(unit: str, report: Callable[[float], None]) -> Sharpness:
        p, shared = names[unit], objective.shared()
        first, worst = _within_ball(shared, p, options, lambda share: report(share / 2))
        radii = np.full(options.draws, np.nan)
        for k in range(options.draws) if centre[p] > 0 else ():
            report(0.5 + k / (2 * options.draws))
            radii[k] = _crossing(_along(shared, p, draw(k)), brackets[k][p], 2 * centre[p])
        with np.errstate(invalid="ignore"):  # of infinite rises the mean is infinite, the error nan
            rise = quadrature.mean_and_stderr(noisy[:, p] - centre[p])
        radius, spread = _median(radii)
        return Sharpness(
            parts=(objective.partition.names[p],),
            n_samples=objective.counts[[p]],
            train_counts=objective.trained[[p]],
            loss=here.loss[[p]],
            accuracy=None if here.accuracy is None else here.accuracy[[p]],
            **here.predicted(p),
            first_order_rise=np.array([first]),
            worst_rise=np.array([worst]),
            noise_rise=np.array([rise[0]]),
            noise_rise_stderr=np.array([rise[1]]),
            doubling_radius=np.array([radius]),
            doubling_radius_spread=np.array([spread]),
            rho=options.rho,
            adaptive=options.adaptive,
            sigma=options.sigma,
            draws=options.draws,
            limit=LIMIT,
            provenance=provenance(objective, vars(options)),
        )

    found = jobs.run(list(names), compute, journal, progress, costs=[float(n) for n in objective.counts])
    objective.verify()
    return found


def _costs(objective: Objective, options: Options) -> costs.Known:
    """Return what the figures take; of the doubling radius as many rungs as are usual."""
    n, pieces, batch = pilot.mean_count(objective), len(objective.partition), objective.batch_size
    draw = _drawer(objective, options.seed)

    def gradients(n: int) -> Callable[[], object]:
        small = pilot.few(objective, [n])
        theta = points.origin(small).theta
        return lambda: points.gradient(small, theta, 0)

    def losses(n: int) -> Callable[[], object]:
        loss = _along(pilot.few(objective, [n]), 0, draw(0))
        return lambda: loss(options.sigma)

    of_parts: dict[str, Any] = {"pieces": pieces, "samples": n, "batch": batch}
    works = (
        pilot.evaluation(objective),
        pilot.at_points(objective, "points around the checkpoint", 1 + (2 + _USUAL_RUNGS) * options.draws),
        costs.Work(
            what="gradients of the search for the largest rise",
            prepare=gradients,
            times=2 + options.ascent_steps,
            halve=arg("ascent_steps", options.ascent_steps // 2),
            **of_parts,
        ),
        costs.Work(
            what="losses of parts in search of the doubling radius",
            prepare=losses,
            times=_HALVINGS * options.draws,
            halve=arg("draws", options.draws // 2),
            **of_parts,
        ),
    )
    return costs.Known(works=works, keeps=8 * objective.layout.size * (options.draws + 4), disk=2**16)


# Within a ball --------------------------------------------------------------------------------------------------------


def _within_ball(
    objective: Objective, part: int, options: Options, report: Callable[[float], None]
) -> tuple[float, float]:
    """Return the first-order and the largest rise found of one part, both nan where its gradient is not finite."""
    theta = points.origin(objective).theta
    scale = theta.abs() if options.adaptive else torch.ones_like(theta)

    def at(u: Tensor) -> tuple[float, Tensor]:
        """Return the rise at theta + T u and its gradient by u."""
        loss, g = points.gradient(objective, theta + scale * u, part)
        return loss - centre, scale * g

    centre, g = points.gradient(objective, theta, part)
    slope = scale * g
    if not math.isfinite(length := float(slope.norm())):
        return math.nan, math.nan
    if length > 0:
        return _ascend(at, options.rho * slope / length, options, report)
    # SAM does not move here; the loss may bend all the same, and any direction leads to where it does.
    z = probe(len(theta), seed=options.seed, number=0, distribution="gaussian", stream="ascent").to(theta)
    return 0.0, _ascend(at, options.rho * z / z.norm(), options, report)[1]


def _ascend(
    at: Callable[[Tensor], tuple[float, Tensor]], u: Tensor, options: Options, report: Callable[[float], None]
) -> tuple[float, float]:
    """Return the rise at u, and the largest that is found from there in the ball: at least 0, nan where a rise is nan.

    Steps grow while they succeed. Long ones turn u into the gradient's direction, as power iteration does, by which the
    rise of a convex function always grows; where it does not, short ones climb.
    """
    rise, slope = at(u)
    first, largest, step = rise, max(rise, 0.0), math.nan
    for number in range(options.ascent_steps):
        if not 0 < (length := float(slope.norm())) < math.inf:
            break
        report((1 + number) / (1 + options.ascent_steps))
        step = options.rho / length if math.isnan(step) else step
        tried = u + step * slope
        tried *= options.rho / max(options.rho, float(tried.norm()))
        found, found_slope = at(tried)
        largest = max(largest, found)
        if found > rise:
            u, rise, slope, step = tried, found, found_slope, 2 * step
        elif math.isnan(found):
            return first, math.nan
        else:
            step /= 4
    return first, math.nan if math.isnan(first) else largest


# Under noise ----------------------------------------------------------------------------------------------------------


def _drawer(objective: Objective, seed: int) -> Callable[[int], Directions]:
    """Return a function that makes one of the random directions, each depending on its number and the seed alone."""

    @lru_cache(maxsize=max(1, _KEPT_BYTES // (8 * objective.layout.size)))
    def draw(number: int) -> Directions:
        raw = probe(objective.layout.size, seed=seed, number=number, distribution="gaussian", stream="direction")
        found = directions.of_vectors(objective, raw[None], [f"random {number + 1} (seed {seed})"])
        return directions.normalised(objective, found, "filter", "biasbn")

    return draw


def _under_noise(
    evaluator: Evaluator,
    draw: Callable[[int], Directions],
    options: Options,
    journal: Journal | None,
    progress: jobs.Progress | None,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the losses at the checkpoint, (P,), and with noise of the asked size, means over its two signs, (K, P)."""

    def point(number: int) -> Point:
        k, sign = (number - 1) // 2, 2 * (number % 2) - 1
        return draw(k).at(sign * options.sigma) if number else evaluator.centre

    wanted = range(2 * options.draws + 1)
    found = evaluate(evaluator, wanted, point, journal=journal, progress=progress, name="noise")
    return found.loss[0], found.loss[1:].reshape(options.draws, 2, -1).mean(axis=1)


@dataclass(frozen=True)
class _Bracket:
    """Two relative sizes between which a loss reaches a level, with the losses there."""

    low: float
    high: float  # inf if the level is not reached, nan if a loss on the way is nan
    below: float
    above: float


def _brackets(
    evaluator: Evaluator,
    draw: Callable[[int], Directions],
    draws: int,
    wanted: np.ndarray,
    journal: Journal | None,
    progress: jobs.Progress | None,
) -> list[list[_Bracket]]:
    """Find two neighbouring rungs between which the loss reaches its level, along each direction and for each part.

    All parts are evaluated together, on the rungs that some part needs: down until no loss has reached its level, and
    up until all have. Parts whose level is not positive need none.

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
    beyond = ~(fill(rung) < wanted)  # a nan counts: what happens below it is to be known
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


def _bracket(sizes: np.ndarray, losses: np.ndarray, wanted: float) -> _Bracket:
    reached = np.flatnonzero(~(losses < wanted))
    if not len(reached):
        return _Bracket(float(sizes[-1]), math.inf, float(losses[-1]), math.nan)
    i = reached[0]
    if np.isnan(losses[i]):
        return _Bracket(0.0, math.nan, math.nan, math.nan)
    return _Bracket(*map(float, (sizes[i - 1], sizes[i], losses[i - 1], losses[i])))


def _along(objective: Objective, part: int, direction: Directions) -> Callable[[float], float]:
    """Return the mean loss of one part as a function of the relative size of noise in one direction."""

    def loss(size: float) -> float:
        theta = objective.layout.tensors(direction.at(size).theta)
        with differentiable_attention(), torch.no_grad():
            total = sum(wide(objective.losses(theta, x, y)).sum().item() for x, y in objective.batches(part))
        return objective.team.total_of(total) / len(objective.members[part])

    return loss


def _crossing(loss: Callable[[float], float], bracket: _Bracket, wanted: float) -> float:
    """Return where a loss reaches a level within a bracket; inf or nan as the bracket says, nan for a loss of nan."""
    low, high, below, above = bracket.low, bracket.high, bracket.below, bracket.above
    for _ in range(_HALVINGS if math.isfinite(high) else 0):
        middle = (low + high) / 2
        value = loss(middle)
        if math.isnan(value):
            return math.nan
        if value >= wanted:
            high, above = middle, value
        else:
            low, below = middle, value
    return low + (high - low) * (wanted - below) / (above - below) if math.isfinite(high) else high


def _median(radii: np.ndarray) -> tuple[float, float]:
    """Return the median and half the interquartile range; inf is a radius beyond the limit, nan an unknown one."""
    if np.isnan(radii).any():
        return math.nan, math.nan
    quarter, three = np.quantile(radii, [0.25, 0.75], method="inverted_cdf")  # those of the sample: inf stays out
    middle = float(np.median(radii))  # of an even number inf where one of the middle two is
    spread = float(three - quarter) / 2 if len(radii) > 1 and math.isfinite(three) else math.nan
    return middle, spread


def _check(objective: Objective, options: Options) -> None:
    for name, size in (("rho", options.rho), ("sigma", options.sigma)):
        if not 0 < size < math.inf:
            raise InputError(f"{arg(name)} must be a positive number, got {size:g}")
    for name, number, least in (
        ("ascent_steps", options.ascent_steps, 0),
        ("draws", options.draws, 1),
        ("seed", options.seed, 0),
    ):
        if number < least:
            raise InputError(f"{arg(name)} must be at least {least}, got {number}")
    if objective.weight_decay:
        raise InputError(
            f"{arg('weight_decay', objective.weight_decay)} is for curvature: rises are those of the data, leave it out"
        )
    if all(len(shape) < 2 for shape in objective.layout.shapes):
        raise InputError(
            f"{arg('params', objective.source['params'])} takes biases and batch norm only: noise is relative to "
            "filters, of "
            "which there is none; choose a weight too"
        )
