"""Tests of parts of different size: numbers of one beside those of equally many samples of both parts together."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from landscape.errors import InputError

RATIO = 2.0
"""True ratio for which the power of a test is estimated."""
TRIALS = 40
"""Tests of parts with this ratio; their share that finds it has a standard error of at most 8 %."""
_DRAWS = 39  # of each of these tests: for a number beyond all of them, p is 0.05


@dataclass(frozen=True, kw_only=True)
class Matched:
    """A part's number, compared with numbers of equally many samples drawn from it and another part together."""

    value: float  # of the smaller part
    low: float  # 5 % quantile of the pool's draws
    median: float
    high: float  # 95 % quantile
    p: float  # two-sided
    resolution: float  # the smallest p that this many draws, and this many samples, can give
    power: float  # estimated probability that a true ratio of `RATIO` gives a p of at most 5 %; nan if left out
    above: float  # the value is at most so much larger, because it is only known from below; nan if that is unknown
    range_above: float  # and so are the quantiles


def matched(
    statistic: Callable[[np.ndarray, np.ndarray], np.ndarray],
    first: np.ndarray,
    copies: np.ndarray,
    *,
    errors: np.ndarray | float = 0.0,
    above: Callable[[np.ndarray], np.ndarray] | None = None,
    repetitions: int = 1000,
    trials: int = TRIALS,
    seed: int = 0,
) -> list[Matched]:
    """Test a part's numbers against draws of equally many samples from the pool of two parts.

    If both parts are samples of one population, the first part is such a draw itself (a permutation test). With draws
    from the other part alone, the test would ignore the scatter of the first part and reject too often, unless the
    other part is about 20 times larger.

    A part that is `RATIO` times as sharp is in the pool too, so the test finds it less often the larger its share of
    the pool. So the power is simulated: samples of the pool are taken at random for the part, their curvature is
    multiplied by the ratio, and the test is repeated.

    A part may be known from draws with weights, which stand for several of its samples. If its numbers are off by e and
    those of the other part, with a share s of the pool, by f, the pool's are off by (1 - s) e + s f, and the difference
    by s (e - f). Normal numbers with this standard deviation are added to those of the pool's draws.

    Args:
        statistic: weights of the pool's samples, (n,), that sum to 1, and factors of their curvature, (n,) -> the
            numbers, (k,).
        first: (n,) whether each of the pool's samples is in the first part.
        copies: as many samples as each of the pool stands for, (n,): 1, or others where the samples of a part are draws
            with weights.
        errors: (2, k) standard errors of the numbers of both parts because these are known from draws.
        above: weights -> by how much each number is at most larger, (k,), if it is only known from below.
        repetitions: number of draws, the same for all numbers.
        trials: number of simulated tests for the power; 0 leaves it out.
        seed: of the draws.

    Returns:
        The comparison of each number.

    Raises:
        InputError: the pool has fewer samples than are to be drawn.

    Source: Phipson and Smyth 2010, "Permutation p-values should never be zero".
    """
    size, same = round(float(copies[first].sum())), np.ones(len(copies))
    own, other = np.broadcast_to(errors, (2, 1) if np.ndim(errors) == 0 else np.shape(errors))
    share = float(copies[~first].sum() / copies.sum())
    plain, off = [], []
    for weights in drawn(copies, size, repetitions, seed):
        plain.append(statistic(weights, same))
        off.append(np.zeros(len(plain[0])) if above is None else above(weights))
    null = _scattered(plain, share * np.hypot(own, other), seed)
    of_first = np.where(first, copies, 0) / copies[first].sum()
    values = statistic(of_first, same)
    most = np.zeros(len(values)) if above is None else above(of_first)
    sharper = share * np.hypot(RATIO * own, other)
    found = [
        _rejected(statistic, weights, copies, size, sharper, seed + 1 + k)
        for k, weights in enumerate(drawn(copies, size, trials, seed + 1))
    ]
    power = np.mean(found, axis=0) if found else np.full(len(values), np.nan)
    least = max(2 / (1 + repetitions), min(1.0, 2 / math.comb(round(copies.sum()), size)))
    return [
        _beside(float(value), one, least, float(chance), float(more), more_of_draws)
        for value, one, chance, more, more_of_draws in zip(values, null.T, power, most, np.transpose(off), strict=True)
    ]


def _rejected(
    statistic: Callable[[np.ndarray, np.ndarray], np.ndarray],
    weights: np.ndarray,
    copies: np.ndarray,
    size: int,
    scatter: np.ndarray,
    seed: int,
) -> np.ndarray:
    """Say of each number whether the test finds a part with these weights whose curvature is `RATIO` times as large."""
    sharper = np.where(weights > 0, RATIO, 1.0)
    if (copies == 1).all():
        others = ((own, sharper) for own in drawn(copies, size, _DRAWS, seed))
    else:  # some samples stand for images of the part and for others: these are drawn apart
        inside = size * weights
        apart = drawn(np.append(inside, np.maximum(copies - inside, 0)), size, _DRAWS, seed)
        pairs = (own.reshape(2, -1) for own in apart)
        others = ((own.sum(axis=0), _mean_factor(*own)) for own in pairs)
    null = _scattered([statistic(*own) for own in others], scatter, seed)
    (values,) = _scattered([statistic(weights, sharper)], scatter, seed + 1)
    rejected: np.ndarray = np.logical_or(np.all(null < values, axis=0), np.all(null > values, axis=0))
    return rejected


def _mean_factor(sharper: np.ndarray, alike: np.ndarray) -> np.ndarray:
    """Return the factors of samples of which some images, with these weights, are `RATIO` times as sharp."""
    whole = sharper + alike
    found: np.ndarray = np.divide(RATIO * sharper + alike, whole, out=np.ones(len(whole)), where=whole > 0)
    return found


def _scattered(values: Sequence[np.ndarray], scatter: np.ndarray, seed: int) -> np.ndarray:
    """Return numbers, (R, k), with normal numbers of these standard deviations added."""
    found = np.array(values)
    if np.any(scatter):
        found = found + scatter * np.random.default_rng([seed, 1]).standard_normal(found.shape)
    return found


def drawn(copies: np.ndarray, size: int, repetitions: int, seed: int) -> Iterator[np.ndarray]:
    """Draw samples from a pool repeatedly, each draw without replacement.

    Args:
        copies: (n,) as many samples as each of the pool stands for; fractions are rounded up or down at random.
        size: number of samples per draw.
        repetitions: number of draws.
        seed: of the draws.

    Yields:
        Weights of the pool's samples, (n,), that sum to 1.

    Raises:
        InputError: the pool has fewer samples than are to be drawn.
    """
    n, total = len(copies), round(float(copies.sum()))
    if size > total:
        raise InputError(f"{size} samples cannot be drawn from a pool of {total}")
    random = np.random.default_rng(seed)
    for _ in range(repetitions):
        if (copies == 1).all():
            weights = np.zeros(n)
            weights[random.choice(n, size, replace=False)] = 1 / size
        else:
            ends = np.floor(np.append(0, copies.cumsum()) + random.random()).astype(np.int64)
            weights = random.multivariate_hypergeometric(np.diff(ends), size, method="marginals") / size
        yield weights


def _beside(
    value: float, null: np.ndarray, least: float, power: float, above: float, null_above: np.ndarray
) -> Matched:
    """Compare a number with the numbers of draws from the pool, (R,), which are at most so much larger, (R,)."""
    tail = min((null >= value).sum(), (null <= value).sum())
    low, median, high = found = np.quantile(null, [0.05, 0.5, 0.95])
    most = np.quantile(null + null_above, [0.05, 0.5, 0.95])
    return Matched(
        value=value,
        low=float(low),
        median=float(median),
        high=float(high),
        p=min(1.0, 2 * (1 + int(tail)) / (1 + len(null))),
        resolution=least,
        power=power,
        above=above,
        range_above=float((most - found).max()),
    )


def adjusted(p: np.ndarray) -> np.ndarray:
    """Return p values adjusted for the number of tests.

    Args:
        p: (k,); nan for a test that was not made.

    Returns:
        (k,); the probability that any of the true null hypotheses gets a value below 0.05 is at most 5 %.

    Source: Holm 1979.
    """
    found = np.full(len(p), np.nan)
    made = np.flatnonzero(np.isfinite(p))
    order = made[np.argsort(p[made])]
    found[order] = np.minimum(1, np.maximum.accumulate(p[order] * np.arange(len(order), 0, -1)))
    return found
