"""How many samples of each part meet an error that is asked for: as few as a pilot says are enough, or all.

The error over samples of a draw falls with the root of its size, which a pilot draw of each part tells by its
Gauss-Newton rows (Stein 1945). lambda_max of few samples is also too large, and about twice as much so for half as
many: its halves tell that. A part that would need most of its samples is taken whole, and then has no such error.
"""

import logging
from dataclasses import dataclass

import numpy as np

from landscape.analyses import samples as of_samples
from landscape.analyses.samples import GGN_TOL, Samples
from landscape.curvature.kinds import Kind
from landscape.objective import jobs
from landscape.objective.draws import AT, Picked, draw_samples, gathered, pick, uncertainty
from landscape.objective.objective import Objective
from landscape.results import Pilots, inference
from landscape.results.journal import Journal

log = logging.getLogger(__name__)

PILOT = 64
WORTH = 0.7
"""Share of a part's samples beyond which it is taken whole."""
OF_THE_DRAW = 0.85
"""Share of the error that the draw may take; in squares, residual, rows and probes have the rest."""
MARGIN = 1.2
ROUNDS = 4
SPLITS = 8


@dataclass(frozen=True, kw_only=True)
class DrawError:
    """The absolute errors that drawing samples adds to a part's numbers."""

    trace: float  # standard error over draws
    lambda_max: float  # that and the excess of few samples, in squares


def of_draw(told: Samples) -> DrawError:
    """Return the error of a draw, from its Gauss-Newton or Fisher rows.

    Args:
        told: of a part of draws.

    Returns:
        The errors; that of lambda_max is infinite where there are no rows to compute it from.
    """
    known = told.lengths
    trace = inference.stderr(inference.draws(known.traces, known.weights))
    if told.kept is None:
        return DrawError(trace=trace, lambda_max=np.inf)
    gram = told.kept.gram
    value, combination = gram.top(known.weights)
    scatter = inference.stderr(inference.draws(gram.curvatures(combination), known.weights))
    return DrawError(trace=trace, lambda_max=float(np.hypot(scatter, _excess(told, value))))


def draws_of(
    objective: Objective,
    kind: Kind,
    *,
    samples: int | None,
    accuracy: float | None,
    seed: int,
    cache_bytes: int,
    journal: Journal | None = None,
    progress: jobs.Progress | None = None,
) -> Objective:
    """Draw the number of samples of each part that is asked for, or that an accuracy requires.

    Args:
        objective: model, loss and data in parts.
        kind: of matrix, one that scales with the losses.
        samples: how many; None where `accuracy` decides.
        accuracy: standard error of lambda_max and of the trace at most, as fractions of these; None for none.
        seed: of the draws.
        cache_bytes: memory for rows.
        journal: keeps the draws of each part, so that ranks share the pilots, and a repeated call makes none.
        progress: see `jobs.run`.

    Returns:
        The objective of the draws; parts that are taken whole have all their samples, each with the weight of one. The
        objective itself where all samples are taken.
    """
    if samples is not None:
        return draw_samples(objective, samples, seed=seed, even=AT)
    if accuracy is None:
        return objective
    reason = of_samples.refusal(objective, kind)
    if reason is not None:
        log.info("all samples are taken, because %s", reason)
        return objective
    parts = objective.partition.names
    names = {f"draws of {name}": part for part, name in enumerate(parts)}

    def compute(unit: str, report: object) -> Pilots:
        part = names[unit]
        picked = _of_part(objective, kind, part, OF_THE_DRAW * accuracy, seed, cache_bytes)
        index = picked.index[None].astype(float)
        return Pilots(parts=(parts[part],), sample_index=index, factor=picked.factors[None])

    found = jobs.run(list(names), compute, journal, progress)
    picked = []
    for name, members, index, factors in zip(parts, objective.members, found.sample_index, found.factor, strict=True):
        own = np.isfinite(index)
        picked.append(Picked(index[own].astype(np.int64), factors[own]))
        used = int(own.sum())
        how = used if used < len(members) else "all"
        log.info("%s: %s of %d samples are taken for an error of %.3g", name, how, len(members), accuracy)
    return gathered(objective, picked, {"accuracy": accuracy, "seed": seed})


def _of_part(objective: Objective, kind: Kind, part: int, wanted: float, seed: int, cache_bytes: int) -> Picked:
    n, size = len(objective.members[part]), PILOT
    whole = pick(objective, part, n)
    if WORTH * n <= PILOT:
        return whole
    amount = uncertainty(objective, part)
    alone = objective.alone(objective.partition.names[part])
    for _ in range(ROUNDS):
        picked = pick(objective, part, size, seed=seed, amount=amount)
        told = of_samples.samples(gathered(alone, [picked], {}), kind, 0, tol=GGN_TOL, cache_bytes=cache_bytes)
        error, known = of_draw(told), told.lengths
        value = 0.0 if told.kept is None else told.kept.gram.top(known.weights)[0]
        trace = float(known.weights @ known.traces)
        if not (value > 0 and trace != 0):
            return whole
        share = max(error.trace / abs(trace), error.lambda_max / value) / wanted
        if share <= 1:
            return picked
        size = int(np.ceil(MARGIN * share**2 * size))
        if size >= WORTH * n:
            break
    return whole


def _excess(told: Samples, value: float) -> float:
    """Return by how much lambda_max of so few draws is too large: by as much less than that of their halves."""
    weights = told.lengths.weights
    random, halves = np.random.default_rng(0), []
    for _ in range(SPLITS):
        first = random.permutation(len(weights)) < len(weights) // 2
        halves += [told.kept.gram.top(2 * weights * own)[0] for own in (first, ~first)] if told.kept else []
    return max(0.0, float(np.mean(halves)) - value) if halves else 0.0
