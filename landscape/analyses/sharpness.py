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

The first two measures are computed in ball.py, the other two in noise.py. Both also compute standard errors over
samples.

Sources: Foret et al. 2021 (SAM); Kwon et al. 2021 (T, adaptive SAM); Neyshabur et al. 2017 and Jiang et al. 2020 (noise
in proportion to the weights); Li et al. 2018 (the filter as the unit).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from landscape.analyses import ball, noise
from landscape.analyses.part_losses import PartLosses
from landscape.autodiff import costs
from landscape.callables import checked
from landscape.errors import InputError, arg
from landscape.objective import jobs, pilot
from landscape.objective.evaluator import Evaluator, evaluate
from landscape.objective.objective import Objective
from landscape.objective.provenance import fingerprint, provenance
from landscape.results import Sharpness
from landscape.results.journal import Journal


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
    jobs.declare(lambda: _costs(objective, options), out)
    if out is None:
        return _run(objective, options, None, progress)
    with jobs.open_journal(out, fingerprint(objective, vars(options)), overwrite=overwrite) as journal:
        result = _run(objective, options, journal, progress)
        journal.finish(result)
    return result


def _run(objective: Objective, options: Options, journal: Journal | None, progress: jobs.Progress | None) -> Sharpness:
    here = objective.undrawn.evaluation
    draw = noise.drawer(objective, options.seed)
    evaluator = Evaluator(objective, batch_norm="keep")
    itself = [evaluator.centre]
    centre = evaluate(evaluator, [0], itself.__getitem__, journal=journal, progress=progress, name="centre").loss[0]
    brackets = noise.brackets(evaluator, draw, options.draws, 2 * centre, journal, progress)
    del evaluator  # and its cached inputs, which the parts do not need
    names = {f"around {name}": p for p, name in enumerate(objective.partition.names)}

    def compute(unit: str, report: Callable[[float], None]) -> Sharpness:
        p, shared = names[unit], objective.shared()
        own = PartLosses(shared, p)
        first, worst = ball.rises_within(
            own,
            rho=options.rho,
            adaptive=options.adaptive,
            ascent_steps=options.ascent_steps,
            seed=options.seed,
            report=lambda share: report(share / 3),
        )
        rise, over_samples = noise.under_noise(
            own, draw, options.sigma, options.draws, lambda share: report((1 + share) / 3)
        )
        crossings = []
        for k in range(options.draws) if centre[p] > 0 else ():
            report((2 + k / options.draws) / 3)
            crossings.append(noise.crossing(own, draw(k), brackets[k][p], 2 * centre[p]))
        radius, spread = noise.median(np.array([c.size for c in crossings] or [np.nan]))
        return Sharpness(
            parts=(objective.partition.names[p],),
            n_samples=objective.population[[p]],
            train_counts=objective.trained[[p]],
            **here.fields(p),
            first_order_rise=np.array([first.rise]),
            first_order_rise_sampling_stderr=np.array([first.stderr]),
            worst_rise=np.array([worst.rise]),
            worst_rise_sampling_stderr=np.array([worst.stderr]),
            noise_rise=np.array([rise[0]]),
            noise_rise_stderr=np.array([rise[1]]),
            noise_rise_sampling_stderr=np.array([over_samples]),
            doubling_radius=np.array([radius]),
            doubling_radius_spread=np.array([spread]),
            doubling_radius_sampling_stderr=np.array([noise.stderr_of_median(own, crossings)]),
            rho=options.rho,
            adaptive=options.adaptive,
            sigma=options.sigma,
            draws=options.draws,
            limit=noise.LIMIT,
            provenance=provenance(objective, vars(options)),
        )

    found = jobs.run(list(names), compute, journal, progress, costs=[float(n) for n in objective.counts])
    objective.verify()
    return found


def _costs(objective: Objective, options: Options) -> costs.Known:
    """Return the cost of the measures, with a typical number of rungs for the doubling radius."""
    n, pieces, batch = pilot.mean_count(objective), len(objective.partition), objective.batch_size
    draw = noise.drawer(objective, options.seed)

    def losses(n: int) -> Callable[[], object]:
        own = PartLosses(pilot.few(objective, [n]), 0)
        return lambda: own.losses(draw(0).at(options.sigma).theta)

    of_parts: dict[str, Any] = {
        "pieces": pieces,
        "samples": n,
        "batch": batch,
        "most": max(map(len, objective.members)),
    }
    works = (
        pilot.evaluation(objective),
        pilot.at_points(objective, "points around the checkpoint", 1 + noise.USUAL_RUNGS * options.draws),
        costs.Work(
            what="gradients of the search for the largest rise",
            prepare=pilot.gradient(objective),
            times=2 + options.ascent_steps,
            halve=arg("ascent_steps", options.ascent_steps // 2),
            **of_parts,
        ),
        costs.Work(
            what="losses of parts under noise and in search of the doubling radius",
            prepare=losses,
            times=(2 + noise.HALVINGS) * options.draws + 6,
            halve=arg("draws", options.draws // 2),
            **of_parts,
        ),
    )
    return costs.Known(works=works, keeps=8 * objective.layout.size * (options.draws + 4), disk=2**16)


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
