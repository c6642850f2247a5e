"""Choose how many samples of each part are needed for a requested accuracy.

The standard error of a draw falls with the square root of its size. A pilot draw of each part estimates this error from
its Gauss-Newton rows (Stein 1945). lambda_max of few samples is also biased upwards, by about twice as much for half as
many samples; the two halves of the draw show this bias. A part that would need most of its samples uses all of them,
and then has no such error.
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
from landscape.results import Pilots
from landscape.results.journal import Journal

log = logging.getLogger(__name__)

PILOT = 64
WORTH = 0.7
"""If a draw would need more than this fraction of a part's samples, all of them are used."""
OF_THE_DRAW = 0.85
"""Fraction of the requested error that the draw may have; errors add in squares, so residual, rows and probes share
the rest."""
MARGIN = 1.2
MORE = 4
ROUNDS = 4
SPLITS = 8


@dataclass(frozen=True, kw_only=True)
class DrawError:
    """The absolute errors of a part's numbers that come from drawing samples."""

    trace: float  # standard error over draws
    lambda_max: float  # root of the squared standard error plus the squared bias of few samples


def of_draw(per_sample: Samples) -> DrawError:
    """Return the error of a draw, computed from its Gauss-Newton or Fisher rows.

    Args:
        per_sample: the samples of a part that consists of draws.

    Returns:
        The errors; that of lambda_max is infinite if there are no rows to compute it from, and both are nan if a single
        sample was drawn each time.
    """
    known = per_sample.lengths
    trace = per_sample.stderr(known.traces)
    if per_sample.kept is None:
        return DrawError(trace=trace, lambda_max=np.inf)
    gram = per_sample.kept.gram
    value, combination = gram.top(known.weights)
    scatter = per_sample.stderr(gram.curvatures(combination))
    return DrawError(trace=trace, lambda_max=float(np.hypot(scatter, _excess(per_sample, value))))


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
    """Draw `samples` samples of each part, or as many as `accuracy` requires.

    Args:
        objective: model, loss and data in parts.
        kind: of matrix, one that scales with the losses.
        samples: number of samples of each part; None if `accuracy` decides.
        accuracy: the largest standard error of lambda_max and of the trace, as a fraction of each; None for no limit.
        seed: of the draws.
        cache_bytes: memory for rows.
        journal: keeps the draws of each part, so that ranks share the pilots, and a repeated call makes none.
        progress: see `jobs.run`.

    Returns:
        The objective of the draws; a part that is used as a whole has all its samples, each with weight 1. The
        objective itself if all samples of all parts are used.
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
        per_sample = of_samples.samples(
            gathered(alone, [picked], {}),
            kind,
            0,
            tol=GGN_TOL,
            cache_bytes=cache_bytes,
            seed=seed,
            trace_tol=None,
            complete=False,
        )
        error, known = of_draw(per_sample), per_sample.lengths
        value = 0.0 if per_sample.kept is None else per_sample.kept.gram.top(known.weights)[0]
        trace = float(known.weights @ known.traces)
        if not (value > 0 and trace != 0):
            return whole
        share = max(error.trace / abs(trace), error.lambda_max / value) / wanted
        if share <= 1:
            return picked
        # The error is unknown where all draws are of one sample: others need more of them.
        size = int(np.ceil(MARGIN * share**2 * size)) if np.isfinite(share) else MORE * size
        if size >= WORTH * n:
            break
    return whole


def _excess(per_sample: Samples, value: float) -> float:
    """Estimate the bias of lambda_max of these draws: compare it with lambda_max of each half of the draws."""
    weights = per_sample.lengths.weights
    random, halves = np.random.default_rng(0), []
    for _ in range(SPLITS):
        first = random.permutation(len(weights)) < len(weights) // 2
        halves += [per_sample.kept.gram.top(2 * weights * own)[0] for own in (first, ~first)] if per_sample.kept else []
    return max(0.0, float(np.mean(halves)) - value) if halves else 0.0
