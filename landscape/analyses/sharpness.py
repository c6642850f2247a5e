"""How much the loss of each part rises around a checkpoint, by four definitions of sharpness in parameter space.

With L_p the mean loss of part p, g_p its gradient at theta, and T = I, or diag |theta| for an adaptive ball:

    first order   L_p(theta + rho T^2 g_p / |T g_p|) - L_p(theta)           one step of SAM
    worst         max over |T^-1 e| <= rho of L_p(theta + e) - L_p(theta)   what SAM's step approximates
    noise         mean over draws +-d of L_p(theta + sigma d) - L_p(theta)
    doubling      the smallest r with L_p(theta + r d) = 2 L_p(theta), median over the draws

A draw d is a filter-normalised random direction (directions.py): each of its filters has the norm of the network's
filter, so that sigma and r are relative sizes; biases and batch norm do not move. Noise is added with both signs: the
mean is the same, and the slope, which causes most of its error, cancels. All parts use the same draws, so one pass over
the data serves all of them. Running statistics are those of the checkpoint.

Projected gradient ascent searches for the worst rise. It ends at a local maximum at best, so it gives a lower bound.

Standard errors over samples follow, to first order, from the contribution of each sample: for noise and the worst rise,
its rise at the same point (moving the worst point has no effect of first order, Danskin); for SAM's step, also the
effect of the sample's gradient on that point; for the radius, the sample's loss there minus twice its loss at theta,
divided by the slope there.

Sources: Foret et al. 2021 (SAM); Kwon et al. 2021 (T, adaptive SAM); Neyshabur et al. 2017 and Jiang et al. 2020 (noise
in proportion to the weights); Li et al. 2018 (the filter as the unit).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from landscape.analyses import directions
from landscape.analyses.directions import Directions
from landscape.autodiff import costs, trees
from landscape.autodiff.backward import push
from landscape.autodiff.differentiable import differentiable_attention
from landscape.autodiff.wide import wide, zeros
from landscape.callables import checked
from landscape.curvature.lanczos import probe
from landscape.errors import InputError, arg
from landscape.objective import jobs, pilot, points
from landscape.objective.evaluator import Evaluator, evaluate
from landscape.objective.objective import Objective
from landscape.objective.provenance import fingerprint, provenance
from landscape.results import Sharpness, inference, quadrature
from landscape.results.journal import Journal

LIMIT = 2.0
"""Largest relative size of noise that is tried for the doubling radius: such noise is far larger than the filters."""
_RUNGS = tuple(LIMIT / 2**j for j in range(16, -1, -1))  # relative sizes at which all parts are evaluated together
_FIRST_RUNG = _RUNGS.index(LIMIT / 16)
_USUAL_RUNGS = 3  # are tried
_HALVINGS = 6  # of the interval between two rungs, before the loss is interpolated linearly
_KEPT_BYTES = 2**30  # memory for directions; others are drawn again for each part


@dataclass(frozen=True, kw_only=True)
class Options:
    """The options that determine the numbers; see `sharpness`."""

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
    """Measure how much the loss of each part rises around the objective's own weights.

    Args:
        objective: model, loss and data in parts. The balls are in the space of its `params`.
        rho: Euclidean radius of the ball, 0.05 as in SAM; with `adaptive`, a size relative to each weight, for which
            0.5 to 2 is usual.
        adaptive: scale the ball by |theta| entry by entry, so that rescaling the weights of ReLU networks does not
            change the rise.
        ascent_steps: gradient steps of the search for the largest rise, after the first-order step. 20 come close to
            the maximum for a smooth loss; more steps never find a smaller rise.
        sigma: size of the noise, relative to the norm of each filter.
        draws: number of random directions for the noise and the doubling radius. 8 show their spread.
        seed: of the directions; the first is that of `directions.random`.
        out: result file to write; finished work is kept beside it until it is complete, and a repeated call with the
            same options continues from it.
        overwrite: replace an existing result file.
        progress: called with (done, total, text).

    Returns:
        The measures of all parts. If a loss is not finite, the numbers that depend on it are nan or inf.

    Raises:
        InputError: an option out of its range, weight decay, or parameters that contain no filter.
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
    here = objective.undrawn.evaluation
    draw = _drawer(objective, options.seed)
    evaluator = Evaluator(objective, batch_norm="keep")
    itself = [evaluator.centre]
    centre = evaluate(evaluator, [0], itself.__getitem__, journal=journal, progress=progress, name="centre").loss[0]
    brackets = _brackets(evaluator, draw, options.draws, 2 * centre, journal, progress)
    del evaluator  # and its cached inputs, which the parts do not need
    names = {f"around {name}": p for p, name in enumerate(objective.partition.names)}

    def compute(unit: str, report: Callable[[float], None]) -> Sharpness:
        p, shared = names[unit], objective.shared()
        own = _Part(shared, p)
        first, worst = _within_ball(own, options, lambda share: report(share / 3))
        rise, over_samples = _under_noise(own, draw, options, lambda share: report((1 + share) / 3))
        crossings = []
        for k in range(options.draws) if centre[p] > 0 else ():
            report((2 + k / options.draws) / 3)
            crossings.append(_crossing(own, draw(k), brackets[k][p], 2 * centre[p]))
        radius, spread = _median(np.array([c.size for c in crossings] or [np.nan]))
        return Sharpness(
            parts=(objective.partition.names[p],),
            n_samples=objective.population[[p]],
            train_counts=objective.trained[[p]],
            loss=here.loss[[p]],
            accuracy=None if here.accuracy is None else here.accuracy[[p]],
            **here.predicted(p),
            first_order_rise=np.array([first.rise]),
            first_order_rise_sampling_stderr=np.array([first.stderr]),
            worst_rise=np.array([worst.rise]),
            worst_rise_sampling_stderr=np.array([worst.stderr]),
            noise_rise=np.array([rise[0]]),
            noise_rise_stderr=np.array([rise[1]]),
            noise_rise_sampling_stderr=np.array([over_samples]),
            doubling_radius=np.array([radius]),
            doubling_radius_spread=np.array([spread]),
            doubling_radius_sampling_stderr=np.array([_stderr_of_median(own, crossings)]),
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
    """Return the cost of the measures, with a typical number of rungs for the doubling radius."""
    n, pieces, batch = pilot.mean_count(objective), len(objective.partition), objective.batch_size
    draw = _drawer(objective, options.seed)

    def gradients(n: int) -> Callable[[], object]:
        small = pilot.few(objective, [n])
        theta = points.origin(small).theta
        return lambda: points.gradient(small, theta, 0)

    def losses(n: int) -> Callable[[], object]:
        own = _Part(pilot.few(objective, [n]), 0)
        return lambda: own.losses(draw(0).at(options.sigma).theta)

    of_parts: dict[str, Any] = {
        "pieces": pieces,
        "samples": n,
        "batch": batch,
        "most": max(map(len, objective.members)),
    }
    works = (
        pilot.evaluation(objective),
        pilot.at_points(objective, "points around the checkpoint", 1 + _USUAL_RUNGS * options.draws),
        costs.Work(
            what="gradients of the search for the largest rise",
            prepare=gradients,
            times=2 + options.ascent_steps,
            halve=arg("ascent_steps", options.ascent_steps // 2),
            **of_parts,
        ),
        costs.Work(
            what="losses of parts under noise and in search of the doubling radius",
            prepare=losses,
            times=(2 + _HALVINGS) * options.draws + 6,
            halve=arg("draws", options.draws // 2),
            **of_parts,
        ),
    )
    return costs.Known(works=works, keeps=8 * objective.layout.size * (options.draws + 4), disk=2**16)


class _Part:
    """One part of an objective, sample by sample."""

    def __init__(self, objective: Objective, part: int) -> None:
        self.objective, self.part = objective, part
        self.theta = points.origin(objective).theta

    def losses(self, theta: Tensor) -> np.ndarray:
        """Return the losses of this process's samples at a point, (n,) float64."""
        objective, found = self.objective, [zeros(0, self.objective.device)]
        at = objective.layout.tensors(theta)
        with differentiable_attention(), torch.no_grad():
            found += [wide(objective.losses(at, x, y)) for x, y in objective.batches(self.part)]
        return torch.cat(found).cpu().numpy()  # read once: the host waits for each read

    def mean(self, each: np.ndarray) -> float:
        """Return the mean of `each`, a result of `losses`, over the samples of all processes."""
        return self.objective.team.total_of(float(each.sum())) / len(self.objective.members[self.part])

    def stderr(self, each: np.ndarray) -> float:
        """Return the standard error of that mean; nan if a value is not finite."""
        values = self.objective.team.gathered(torch.from_numpy(np.ascontiguousarray(each))).numpy()
        return inference.stderr(values) if np.isfinite(values).all() else math.nan

    def slopes(self, along: Tensor) -> np.ndarray:
        """Return the derivative of each of this process's losses along a vector at the checkpoint, (n,)."""
        objective, found = self.objective, [torch.empty(0, dtype=torch.float64)]
        theta = tuple(t.detach().requires_grad_() for t in objective.theta)
        v = tuple(objective.layout.tensors(along.to(theta[0])))
        with differentiable_attention():
            for batch in objective.batches(self.part):

                def losses(some: slice, batch: Any = batch) -> Tensor:
                    return objective.losses(theta, *trees.take(batch, some))

                found.append(wide(push(losses, theta, [v])[1][0].detach()).cpu())
        return torch.cat(found).numpy()


# Within a ball --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Rise:
    """A rise of the loss and its standard error over samples."""

    rise: float
    stderr: float


def _within_ball(own: _Part, options: Options, report: Callable[[float], None]) -> tuple[_Rise, _Rise]:
    """Return the first-order rise and the largest rise found for one part; nan if its gradient is not finite."""
    theta, objective = own.theta, own.objective
    scale = theta.abs() if options.adaptive else torch.ones_like(theta)

    def at(u: Tensor) -> tuple[float, Tensor]:
        """Return the rise at theta + T u and its gradient with respect to u."""
        loss, g = points.gradient(objective, theta + scale * u, own.part)
        return loss - centre, scale * g

    centre, g = points.gradient(objective, theta, own.part)
    slope = scale * g
    if not math.isfinite(length := float(slope.norm())):
        return _Rise(math.nan, math.nan), _Rise(math.nan, math.nan)
    begun = own.losses(theta)
    if length > 0:
        unit = slope / length
        first, worst, where = _ascend(at, options.rho * unit, options, report)
        # u = rho s / |s| turns with s, the part's slope: another gradient of a sample moves the rise by its product
        # with rho / |s| (1 - s s^T / |s|^2) of the slope at u.
        moved = at(options.rho * unit)[1]
        turned = options.rho / length * scale * (moved - (unit @ moved) * unit)
        each = own.losses(theta + options.rho * scale * unit) - begun + own.slopes(turned)
        found = _Rise(first, own.stderr(each))
    else:  # SAM's step is zero here, but the loss may have curvature: begin in an arbitrary direction
        z = probe(len(theta), seed=options.seed, number=0, distribution="gaussian", stream="ascent").to(theta)
        _, worst, where = _ascend(at, options.rho * z / z.norm(), options, report)
        found = _Rise(0.0, math.nan)
    return found, _Rise(worst, 0.0 if where is None else own.stderr(own.losses(theta + scale * where) - begun))


def _ascend(
    at: Callable[[Tensor], tuple[float, Tensor]], u: Tensor, options: Options, report: Callable[[float], None]
) -> tuple[float, float, Tensor | None]:
    """Return the rise at u, the largest rise found from there in the ball (at least 0, or nan), and its position.

    The position is None at the centre.

    Steps grow while they succeed. Long steps turn u into the gradient's direction, as in power iteration, which always
    raises a convex function; if that fails, short steps ascend.
    """
    rise, slope = at(u)
    first, largest, step = rise, max(rise, 0.0), math.nan
    where = u if rise > 0 else None
    for number in range(options.ascent_steps):
        if not 0 < (length := float(slope.norm())) < math.inf:
            break
        report((1 + number) / (1 + options.ascent_steps))
        step = options.rho / length if math.isnan(step) else step
        tried = u + step * slope
        tried *= options.rho / max(options.rho, float(tried.norm()))
        found, found_slope = at(tried)
        largest, where = (found, tried) if found > largest else (largest, where)
        if found > rise:
            u, rise, slope, step = tried, found, found_slope, 2 * step
        elif math.isnan(found):
            return first, math.nan, tried
        else:
            step /= 4
    return (first, math.nan, u) if math.isnan(first) else (first, largest, where)


# Under noise ----------------------------------------------------------------------------------------------------------


def _drawer(objective: Objective, seed: int) -> Callable[[int], Directions]:
    """Return a function that makes a random direction, which depends only on its number and the seed."""

    @lru_cache(maxsize=max(1, _KEPT_BYTES // (8 * objective.layout.size)))
    def draw(number: int) -> Directions:
        raw = probe(objective.layout.size, seed=seed, number=number, distribution="gaussian", stream="direction")
        found = directions.of_vectors(objective, raw[None], [f"random {number + 1} (seed {seed})"])
        return directions.normalised(objective, found, "filter", "biasbn")

    return draw


def _under_noise(
    own: _Part, draw: Callable[[int], Directions], options: Options, report: Callable[[float], None]
) -> tuple[tuple[float, float], float]:
    """Return the mean rise under noise of both signs, and its standard errors over draws and over samples."""
    begun, rises = own.losses(own.theta), []
    for k in range(options.draws):
        report(k / options.draws)
        with np.errstate(invalid="ignore"):
            noisy = (own.losses(draw(k).at(sign * options.sigma).theta) for sign in (1, -1))
            rises.append(sum(noisy) / 2 - begun)
    with np.errstate(invalid="ignore"):  # the mean of infinite rises is infinite, its error nan
        over_draws = quadrature.mean_and_stderr(np.array([own.mean(rise) for rise in rises]))
        return over_draws, own.stderr(np.mean(rises, axis=0))


@dataclass(frozen=True)
class _Bracket:
    """Two relative sizes between which a loss reaches a level, with the losses at both."""

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


def _bracket(sizes: np.ndarray, losses: np.ndarray, wanted: float) -> _Bracket:
    reached = np.flatnonzero(~(losses < wanted))
    if not len(reached):
        return _Bracket(float(sizes[-1]), math.inf, float(losses[-1]), math.nan)
    i = reached[0]
    if np.isnan(losses[i]):
        return _Bracket(0.0, math.nan, math.nan, math.nan)
    return _Bracket(*map(float, (sizes[i - 1], sizes[i], losses[i - 1], losses[i])))


@dataclass(frozen=True)
class _Crossing:
    """The size at which the loss reaches a level along a direction."""

    size: float  # relative; inf if it is not reached, nan if a loss on the way is nan
    slope: float  # of the loss there
    direction: Directions


def _crossing(own: _Part, direction: Directions, bracket: _Bracket, wanted: float) -> _Crossing:
    """Find where the loss of a part reaches a level within a bracket."""
    low, high, below, above = bracket.low, bracket.high, bracket.below, bracket.above
    for _ in range(_HALVINGS if math.isfinite(high) else 0):
        middle = (low + high) / 2
        value = own.mean(own.losses(direction.at(middle).theta))
        if math.isnan(value):
            return _Crossing(math.nan, math.nan, direction)
        if value >= wanted:
            high, above = middle, value
        else:
            low, below = middle, value
    if not math.isfinite(high):
        return _Crossing(high, math.nan, direction)
    return _Crossing(low + (high - low) * (wanted - below) / (above - below), (above - below) / (high - low), direction)


def _stderr_of_median(own: _Part, crossings: Sequence[_Crossing]) -> float:
    """Return the standard error over samples of the median radius, from the middle draw or the middle two."""
    ordered = sorted(crossings, key=lambda c: c.size)
    middle = ordered[(len(ordered) - 1) // 2 : len(ordered) // 2 + 1]
    if not middle or any(math.isnan(c.size) for c in ordered) or not all(math.isfinite(c.size) for c in middle):
        return math.nan
    begun = own.losses(own.theta)
    moved = [(2 * begun - own.losses(c.direction.at(c.size).theta)) / c.slope for c in middle]
    return own.stderr(np.mean(moved, axis=0))


def _median(radii: np.ndarray) -> tuple[float, float]:
    """Return the median and half the interquartile range; a radius is inf beyond the limit, nan if unknown."""
    if np.isnan(radii).any():
        return math.nan, math.nan
    quarter, three = np.quantile(radii, [0.25, 0.75], method="inverted_cdf")  # no interpolation, which inf would spoil
    middle = float(np.median(radii))  # for an even number, inf if one of the middle two is
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
            f"{arg('weight_decay', objective.weight_decay)} is for curvature only: leave it out, since rises are those "
            "of the data's loss"
        )
    if all(len(shape) < 2 for shape in objective.layout.shapes):
        raise InputError(
            f"{arg('params', objective.source['params'])} selects only biases and batch norm, but noise is relative to "
            "filters: also select a weight"
        )
