"""Choose how many samples of each part are needed for a requested accuracy.

A pilot draw of each part estimates the error of the draw from its Gauss-Newton rows (Stein 1945). With more draws its
square falls as much as that of the sum of tr M, which is known for every number of draws. lambda_max of few samples is
also biased upwards, in proportion to this square; halves of the draw show the bias. A part that would need most of its
samples uses all of them, and then has no such error.
"""

import logging
import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from landscape.analyses import samples as of_samples
from landscape.analyses.samples import GGN_TOL, Samples
from landscape.autodiff import distributed, memory
from landscape.curvature.kinds import Kind
from landscape.objective import jobs
from landscape.objective.draws import AT, Picked, draw_samples, gathered, pick, uncertainty, variance
from landscape.objective.objective import Objective
from landscape.results import Pilots
from landscape.results.gram import Gram
from landscape.results.journal import Journal

log = logging.getLogger(__name__)

PILOT = 64
"""Draws of the first pilot. Smaller ones stop too early, at draws that look good by chance: of classes of 124 and 200
samples, asked for 5 %, the trace was within it in 80 to 94 % of simulations with a quarter, in 88 to 100 % with 64."""
WORTH = 0.7
"""If a draw would need more than this fraction of a part's samples, all of them are used."""
OF_THE_DRAW = 0.92
"""Fraction of the requested error that the draw may have; errors add in squares, so residual, rows and probes share
the rest."""
MARGIN = 1.1
"""More draws than the error of a pilot asks for, because it is only an estimate."""
GROWTH = 1.25
"""Each pilot has at least this many times the draws of the one before."""
SPLITS = 8


@dataclass(frozen=True, kw_only=True)
class DrawError:
    """The absolute errors of a part's numbers that come from drawing samples."""

    trace: float  # standard error over draws
    lambda_max: float  # the same
    bias: float = 0.0  # how much lambda_max of few samples is too large

    @property
    def of_lambda_max(self) -> float:
        """Standard error and bias together."""
        return float(np.hypot(self.lambda_max, self.bias))


def of_draw(per_sample: Samples) -> DrawError:
    """Return the error of a draw, computed from its Gauss-Newton or Fisher rows.

    Args:
        per_sample: the samples of a part that consists of draws.

    Returns:
        The errors; that of lambda_max is infinite if there are no rows to compute it from.
    """
    known = per_sample.lengths
    trace = per_sample.stderr(known.traces)
    if per_sample.kept is None:
        return DrawError(trace=trace, lambda_max=np.inf)
    gram = per_sample.kept.gram
    value, combination = gram.top(known.weights)
    scatter = per_sample.stderr(gram.curvatures(combination))
    return DrawError(trace=trace, lambda_max=scatter, bias=_excess(per_sample, gram, value))


@dataclass(frozen=True, kw_only=True, eq=False)
class Drawn:
    """Draws from each part, or all of its samples."""

    objective: Objective  # of the draws; parts that are used as a whole have all their samples, each with weight 1
    pilots: dict[int, Samples] = field(default_factory=dict)
    """The numbers of the draws of some parts, where this process has made the last pilot, which consists of them."""


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
) -> Drawn:
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
        The draws; of the objective itself if all samples of all parts are used.
    """
    if samples is not None:
        return Drawn(objective=draw_samples(objective, samples, seed=seed, even=AT))
    if accuracy is None:
        return Drawn(objective=objective)
    with distributed.together():
        reason = memory.halving(partial(of_samples.refusal, objective, kind))
        if not distributed.team().all(reason is None):
            log.info("all samples are taken, because %s", reason or "another process cannot draw")
            return Drawn(objective=objective)
        _ = objective.evaluation  # its pass over all samples also gives their uncertainty
    parts = objective.partition.names
    names = {f"draws of {name}": part for part, name in enumerate(parts)}
    pilots: dict[int, Samples] = {}

    def compute(unit: str, report: object) -> Pilots:
        part = names[unit]
        picked, pilot = _of_part(objective, kind, part, OF_THE_DRAW * accuracy, seed, cache_bytes)
        if pilot is not None and _bytes([*pilots.values(), pilot]) <= cache_bytes:
            pilots[part] = pilot
        index = picked.index[None].astype(float)
        mean = np.array([picked.uncertainty])
        return Pilots(parts=(parts[part],), sample_index=index, factor=picked.factors[None], uncertainty=mean)

    found = jobs.run(list(names), compute, journal, progress)
    picked = []
    rows = zip(parts, objective.members, found.sample_index, found.factor, found.uncertainty, strict=True)
    for name, members, index, factors, mean in rows:
        own = np.isfinite(index)
        picked.append(Picked(index[own].astype(np.int64), factors[own], float(mean)))
        used = int(own.sum())
        how = used if used < len(members) else "all"
        log.info("%s: %s of %d samples are taken for an error of %.3g", name, how, len(members), accuracy)
    return Drawn(objective=gathered(objective, picked, {"accuracy": accuracy, "seed": seed}), pilots=pilots)


def _bytes(pilots: Sequence[Samples]) -> int:
    return sum(pilot.kept.rows.n_bytes for pilot in pilots if pilot.kept is not None)


def _of_part(
    objective: Objective, kind: Kind, part: int, wanted: float, seed: int, cache_bytes: int
) -> tuple[Picked, Samples | None]:
    """Return the draws of a part, and their pilot; all samples without one if a draw would need most of them."""
    n, size = len(objective.members[part]), PILOT
    whole = pick(objective, part, n)
    if size >= WORTH * n:
        return whole, None
    amount = uncertainty(objective, part)
    spread = np.abs(amount)  # to which the chances of draws are proportional
    alone = objective.alone(objective.partition.names[part])
    while size < WORTH * n:
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
            return whole, None
        if max(error.trace / abs(trace), error.of_lambda_max / value) <= wanted:
            return picked, per_sample
        of_both = (error.trace / abs(trace), 0.0), (error.lambda_max / value, error.bias / value)
        allowed = min(_share(*of_one, wanted) for of_one in of_both) * variance(spread, size) / MARGIN
        larger = bisect_left(range(n), True, lo=size + 1, key=lambda m: variance(spread, m) <= allowed)
        size = max(larger, math.ceil(GROWTH * size))
    return whole, None


def _share(error: float, bias: float, wanted: float) -> float:
    """Return the share x of a draw's variance for which x error^2 + x^2 bias^2 is wanted^2."""
    if bias == 0:
        return (wanted / error) ** 2 if error > 0 else math.inf
    return (math.hypot(error**2, 2 * bias * wanted) - error**2) / (2 * bias**2)


def _excess(per_sample: Samples, gram: Gram, value: float) -> float:
    """Estimate the bias of lambda_max of these draws: compare it with lambda_max of each half of the draws.

    Halves differ from the draws as much as the draws differ from all samples of the part, if those that are certain to
    be drawn are in both; see `inference.draws`.

    Args:
        per_sample: the samples of a part that consists of draws.
        gram: of its rows.
        value: lambda_max of the rows.

    Returns:
        The bias, at least 0.
    """
    weights, random = per_sample.lengths.weights, np.random.default_rng(0)
    left = np.sqrt(1 - np.nan_to_num(per_sample.chances))
    halves = []
    for _ in range(SPLITS):
        sign = np.where(random.permutation(len(weights)) < len(weights) // 2, 1, -1)
        halves += [gram.top(weights * (1 + side * left))[0] for side in (sign, -sign)]
    return max(0.0, float(np.mean(halves)) - value)
