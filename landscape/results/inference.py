"""Uncertainty over samples: standard errors, intervals, and tests at equal numbers of samples.

A number of a part is a weighted sum over its n samples, sum_i w_i y_i: the mean of the values x_i = n w_i y_i. If all
samples have equal weight, w_i = 1/n, x is y. The values are independent if the samples are taken for draws from all
images of their class. Samples that were drawn from a known part without replacement, sample i with probability pi_i,
estimate the mean of this part better than independent draws: a sample with pi_i = 1 is always drawn and adds no error.
With B the mean of x weighted by the roots of 1 - pi_i, the variance of the mean is about (Hajek 1964)

    m / (m - 1) / n^2 sum_i (1 - pi_i) (x_i - B)^2,        m: number of samples with pi_i < 1

which for equal pi_i = n / N is the known (1 - n / N) s^2 / n. `draws` moves each x_i towards the mean by about the root
of 1 - pi_i, so that every statistic of independent values gives the errors of this draw (Rao and Wu 1988).

The values of a fitted network are skewed: few samples have most of the curvature. docs/uncertainty.md reports which
intervals have the stated coverage: bootstrap-t for means; for lambda_max, which is biased upwards, the bracket of the
cross-fitted and the plug-in value, each widened by its own error. Bootstrap percentiles fail for lambda_max.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtrit

LEAST = 25
"""With fewer samples no interval is given: for a fitted class, none that was tried has its stated coverage of 90 %."""

LEAST_WEIGHTED = 6
"""The same for draws in proportion to uncertainty that are not certain: their weighted values are nearly alike."""

LEAST_EFFECTIVE = 2.0
"""If a ratio rests on fewer draws than this (see `effective`), no interval is given: nothing shows its spread."""

OF_ESTIMATE = 5
"""Degrees of freedom of Student's t for the error of an estimated trace. At 90 % these are two errors, which contain
the trace in nine of ten estimates by few probes (curvature/probing.py)."""

_AT_ONCE = 2**22  # values of bootstrap draws that are kept in memory


def draws(values: np.ndarray, weights: np.ndarray, chances: np.ndarray | None = None) -> np.ndarray:
    """Return the value of each sample; the mean of these is the weighted sum of the values.

    Args:
        values: y, (..., n).
        weights: w, (n,).
        chances: pi, (n,), the probability with which each sample was drawn from a known part without replacement; nan
            or None for samples that are not such draws.

    Returns:
        x, (..., n); for draws, moved towards their mean, so that their standard error is that of the draw.
    """
    n = len(weights)
    x: np.ndarray = n * weights * values
    of_draw = left(chances, n)
    if n < 2 or (of_draw == 1).all():
        return x
    mean, m, root = x.mean(axis=-1, keepdims=True), np.count_nonzero(of_draw), np.sqrt(of_draw)
    if m == 0:
        return np.broadcast_to(mean, x.shape).copy()
    off = root * (x - (x @ root / root.sum())[..., None])  # their mean is zero
    moved: np.ndarray = mean + np.sqrt(m * (n - 1) / ((m - 1) * n)) * off
    return moved


def left(chances: np.ndarray | None, n: int) -> np.ndarray:
    """Return the fraction of each sample's variance that other draws would show.

    Args:
        chances: as for `draws`.
        n: number of samples.

    Returns:
        1 - pi, (n,). Ones for samples that are not draws, and where too few draws are uncertain to show how much
        another draw would differ: independent draws are then an upper bound.
    """
    if chances is None or not np.isfinite(chances).all():
        return np.ones(n)
    found: np.ndarray = np.maximum(1 - chances, 0)
    few = 0 < np.count_nonzero(found) < (2 if np.ptp(chances) == 0 else LEAST_WEIGHTED)
    return np.ones(n) if few else found


def stderr(x: np.ndarray) -> float:
    """Return the standard error of a mean of independent values; nan for one value, because its spread is unknown."""
    return float(x.std(ddof=1) / np.sqrt(len(x))) if len(x) > 1 else float("nan")


def variance_of_mean(x: np.ndarray) -> np.ndarray:
    """Return the square of `stderr` of values along the last axis; nan for one value."""
    n = x.shape[-1]
    found: np.ndarray = x.var(axis=-1, ddof=1) / n if n > 1 else np.full(x.shape[:-1], np.nan)
    return found


def joined_stderr(means: np.ndarray, errors: np.ndarray, n: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """Return the standard error of the mean over several parts whose samples count alike, as if they were one part.

    It is that of `stderr` over all their samples: the spread within the parts, which follows from their errors, and
    that between them.

    Args:
        means: of each part, (P, ...).
        errors: standard errors of these, (P, ...); that of a single sample does not matter.
        n: number of samples of each part, (P,).
        shares: of each part in the mean, (P,).

    Returns:
        The error, (...); nan for one sample in all.
    """
    n, shares = (x.reshape(-1, *[1] * (means.ndim - 1)) for x in (n, shares))
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):  # of losses beyond all numbers
        within = np.where(n > 1, (n - 1) * errors**2, 0.0)
        between = (means - (shares * means).sum(axis=0)) ** 2
        found: np.ndarray = np.sqrt((shares**2 * (within + between) / n).sum(axis=0) * n.sum() / (n.sum() - 1))
    return found


@dataclass(frozen=True, kw_only=True, eq=False)
class Scatter:
    """Errors of means over the samples of several parts, from sums over the samples instead of single values.

    The sums are those of left x^2, left x and sqrt(left) x, (3, P), with `left` of the function of this name and the
    values x of which the means are. The errors are those that `stderr` gives of the return value of `draws`.
    """

    n: np.ndarray  # (P,) samples
    m: np.ndarray  # (P,) those with left > 0
    left: np.ndarray  # (P,) sum of left
    root: np.ndarray  # (P,) sum of sqrt(left)
    every: np.ndarray  # (3, P) the sums of the values that samples have where all are predicted wrongly

    @classmethod
    def of(cls, parts: Sequence[np.ndarray], factors: Sequence[np.ndarray]) -> "Scatter":
        """Return what does not depend on the values.

        Args:
            parts: `left` of the samples of each part.
            factors: the factor with which the value of each sample counts, 1 for all samples of a part.
        """
        with np.errstate(over="ignore"):
            every = [np.array([of @ f**2, of @ f, np.sqrt(of) @ f]) for of, f in zip(parts, factors, strict=True)]
        return cls(
            n=np.array([float(len(of)) for of in parts]),
            m=np.array([float(np.count_nonzero(of)) for of in parts]),
            left=np.array([of.sum() for of in parts]),
            root=np.array([np.sqrt(of).sum() for of in parts]),
            every=np.stack(every, axis=1),
        )

    def stderr(self, sums: np.ndarray) -> np.ndarray:
        """Return the standard errors of means, (P,); nan for one sample, and where a sum is not finite."""
        return self._stderr(sums, self.left, self.root)

    def share_stderr(self, sums: np.ndarray) -> np.ndarray:
        """Return the standard errors of accuracies, (P,), from the sums of the values of wrong predictions.

        As in the function `share_stderr`, which gives the same for samples that count alike, one more sample on each
        side is counted: the average of those that are not certain to be drawn. Otherwise the error of a part would be
        zero where all draws are right, although some of the other samples may be wrong.

        Args:
            sums: of x = factor for wrong predictions and x = 0 for right ones.
        """
        with np.errstate(invalid="ignore", divide="ignore"):  # a part without uncertain samples has error 0
            more = (self.m + 2) / self.m
            return self._stderr(sums + self.every / self.m, more * self.left, more * self.root, 1 / more)

    def _stderr(
        self, sums: np.ndarray, left: np.ndarray, root: np.ndarray, scale: np.ndarray | float = 1.0
    ) -> np.ndarray:
        with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
            centre = sums[2] / root
            squares = np.maximum(sums[0] - 2 * centre * sums[1] + centre**2 * left, 0)
            errors = np.sqrt(scale * squares * self.m / (self.m - 1)) / self.n
        known = np.where(self.m == 0, 0.0, np.where(np.isfinite(errors), errors, np.nan))
        return np.where(self.n > 1, known, np.nan)


def share_stderr(share: np.ndarray, n: float) -> np.ndarray:
    """Return the standard errors of shares of n samples that count alike, such as accuracies.

    One more sample on each side is counted, so that a share of 0 or 1 among few samples is not taken for certain.

    Args:
        share: of any shape.
        n: samples.

    Returns:
        The errors; nan for one sample, whose spread is not known, and for what is no share.

    Source: Agresti and Coull 1998, "Approximate is better than exact for interval estimation of binomial proportions".
    """
    if not n > 1:
        return np.full(np.shape(share), np.nan)
    shrunk = (np.asarray(share) * n + 1) / (n + 2)
    with np.errstate(invalid="ignore"):  # of a share beyond 1, in a damaged file
        error: np.ndarray = np.sqrt(shrunk * (1 - shrunk) / (n - 1))
    return error


def ratio(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Return the ratio of two means over the same draws, and its standard error by the jackknife.

    Where few draws have most of y, the ratio follows these, and what they are off by looks small: the error by
    linearisation is too small by a third for six draws. The jackknife leaves each draw out in turn.

    Args:
        x: (m,).
        y: (m,), with a positive mean.

    Returns:
        Ratio and standard error. nan if the mean of y is not positive; the error is nan for one draw.

    Source: Efron and Tibshirani 1993, chapter 11.
    """
    below = float(y.mean())
    if not below > 0:
        return float("nan"), float("nan")
    return float(x.mean()) / below, jackknife(without_each(x, y))


def without_each(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return the ratios of two means over all draws but one, (m,) for draws (m,); nan where none is left."""
    left = y.sum() - y
    found: np.ndarray = np.divide(x.sum() - x, left, out=np.full(len(y), np.nan), where=left > 0)
    return found


def jackknife(without: np.ndarray) -> float:
    """Return the standard error of a number, given its values without each of the draws, (m,); nan for one draw."""
    m = len(without)
    return float(np.sqrt((m - 1) / m * ((without - without.mean()) ** 2).sum())) if m > 1 else float("nan")


def effective(y: np.ndarray) -> float:
    """Return as many draws as tell of a ratio to the mean of y, (m,): 1 where one has all of y, m where all are alike.

    Student's t of this number less 1 degrees of freedom gives a ratio's intervals their coverage, and its tests their
    level, also where a class is fitted so that few images have most of its uncertainty.
    """
    squares = float((y**2).sum())
    return float(y.sum()) ** 2 / squares if squares > 0 else float("nan")


def ratio_interval(
    x: np.ndarray, y: np.ndarray, *, level: float = 0.9, tell: np.ndarray | None = None
) -> tuple[float, float]:
    """Return an interval for a ratio of means over the same draws, by Student's t and the jackknife.

    Args:
        x: (m,).
        y: (m,), with a positive mean.
        level: coverage of the interval.
        tell: (m,) the draws that could have been others; None for all.

    Returns:
        Lower end, at least 0 if all of x are, and upper end; nan if the draws tell less than `LEAST_EFFECTIVE` would.
    """
    value, error = ratio(x, y)
    known = effective(y if tell is None else y[tell])
    if not known >= LEAST_EFFECTIVE:
        return float("nan"), float("nan")
    off = float(stdtrit(known - 1, (1 + level) / 2)) * error
    return value - off if x.min() < 0 else max(0.0, value - off), value + off


def interval(
    x: np.ndarray,
    *,
    n: int | None = None,
    least: int | None = None,
    level: float = 0.9,
    repetitions: int = 2000,
    seed: int = 0,
) -> tuple[float, float]:
    """Return an interval for the mean of independent, possibly skewed values, by the bootstrap of Student's t.

    Args:
        x: (m,).
        n: number of values that could have been others; None means all.
        least: with fewer of these no interval is given; None means `LEAST`.
        level: coverage of the interval.
        repetitions: number of bootstrap draws.
        seed: of the draws.

    Returns:
        Lower end, at least 0 if all values are, and upper end; nan for fewer than `least` values.

    Source: Efron and Tibshirani 1993, section 12.5.
    """
    if (len(x) if n is None else n) < (LEAST if least is None else least):
        return float("nan"), float("nan")
    own = stderr(x)
    if own == 0:
        return float(x.mean()), float(x.mean())
    random, errors, off = np.random.default_rng(seed), np.zeros(repetitions), np.zeros(repetitions)
    for which in np.array_split(np.arange(repetitions), -(-repetitions * len(x) // _AT_ONCE)):
        again = x[random.integers(len(x), size=(len(which), len(x)))]
        errors[which] = again.std(axis=1, ddof=1) / np.sqrt(len(x))
        off[which] = again.mean(axis=1) - x.mean()
    # A draw that repeats a single value has no error: it counts as a deviation larger than all others.
    t = np.divide(off, errors, out=np.where(off < 0, -np.inf, np.inf), where=errors > 0)
    low, high = np.quantile(t, [(1 - level) / 2, (1 + level) / 2], method="higher")
    least_end = float(x.mean() - high * own)
    return max(0.0, least_end) if x.min() >= 0 else least_end, float(x.mean() - low * own)


def widened(
    ends: tuple[float, float], value: float, error: float, *, least: float = -np.inf, level: float = 0.9
) -> tuple[float, float]:
    """Return an interval that an independent error of the same number is added to.

    The distance of each end from the value and that of an interval for the error alone add up in squares, so that a
    skewed interval remains one.

    Args:
        ends: of the interval without this error.
        value: the number.
        error: its other standard error, as of an estimate by probes; nan if it is unknown.
        least: the number is known not to be below this.
        level: coverage of the interval.

    Returns:
        Lower and upper end; nan where the other error or an end is unknown.

    Source: Zou and Donner 2008, "Construction of confidence limits about effect measures: a general approach".
    """
    if error == 0:
        return ends
    off = float(stdtrit(OF_ESTIMATE, (1 + level) / 2)) * error
    low, high = (float(np.hypot(np.maximum(0.0, distance), off)) for distance in (value - ends[0], ends[1] - value))
    return float(np.maximum(least, value - low)), value + high


def bracket(
    value: float, error: float, crossfit: float, crossfit_error: float, n: int, *, level: float = 0.9
) -> tuple[float, float]:
    """Return an interval for a class's lambda_max, between the cross-fitted and the plug-in value.

    Args:
        value: lambda_max of the samples; its expectation is at least that of the class.
        error: standard error of `value` over samples.
        crossfit: curvature on held-out samples; its expectation is at most lambda_max of the class.
        crossfit_error: standard error of `crossfit` over samples.
        n: number of samples.
        level: coverage of the interval.

    Returns:
        Lower end, at least 0, and upper end, each widened by Student's t times its error; nan for fewer than `LEAST`
        samples, and for an end whose value is unknown.
    """
    if n < LEAST:
        return float("nan"), float("nan")
    t = float(stdtrit(n - 1, (1 + level) / 2))
    return float(np.maximum(0.0, crossfit - t * crossfit_error)), value + t * error


def around(value: float, error: float, n: int, *, level: float = 0.9) -> tuple[float, float]:
    """Return an interval for lambda_max of a part from weighted draws: the bias of a bracket's value is small for them.

    Args:
        value: lambda_max of the draws.
        error: standard error of `value`.
        n: number of draws that could have been others.
        level: coverage of the interval.

    Returns:
        Lower end, at least 0, and upper end: Student's t times the error away; nan for fewer than `LEAST_WEIGHTED`.
    """
    if n < LEAST_WEIGHTED:
        return float("nan"), float("nan")
    off = float(stdtrit(n - 1, (1 + level) / 2)) * error
    return max(0.0, value - off), value + off
