"""Compare parts of different size at equal numbers of samples.

Numbers from few samples scatter, and lambda_max of few samples is biased upwards, by up to several times its value. The
pooled test compares the number of the smaller part with numbers of equally many samples drawn from both parts together.
lambda_max is that of the Gauss-Newton or Fisher matrix, from the rows that the file stores for both parts; those that
are not stored bound by how much it is too small. Each comparison names its matrix. All numbers are of the data: weight
decay, which adds as much to the number of any samples, is left out, and stated.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import brentq

from landscape.errors import InputError, arg
from landscape.results import inference, permutation
from landscape.results.permutation import Matched
from landscape.results.pool import Pool, decay_of, pool
from landscape.results.spectrum import Spectrum
from landscape.results.traces import of_rows

NUMBERS = ("trace", "trace per uncertainty", "lambda_max", "lambda_max per uncertainty")
"""The compared numbers; those of lambda_max need rows."""

MARKED = 0.02
"""Figures mark lambda_max if rows that are not stored may add more than this fraction to it."""
LEAST_DRAWS = 50
"""Of fewer draws with weights, too many are alike: with 10 to 25 the test rejects a true hypothesis in 10 to 25 %."""
_FEW_PARTS = 20  # for which a thousand draws of each take no longer than drawing the figure


@dataclass(frozen=True, kw_only=True)
class Against:
    """One number of a part, compared with the largest part at the size of the smaller part."""

    part: str
    number: str
    matrix: str  # whose number it is: "ggn" for a Hessian, of which a pool knows no eigenvalues
    n: int
    test: Matched
    p: float  # p value of the test, adjusted for all tests of the file (Holm)
    decay_left_out: float  # what the weight decay adds to each eigenvalue of the matrix, and the number does not have


def reference(found: Spectrum) -> int:
    """Return the position of the part with the most samples; the first one if several have as many."""
    return int(np.argmax(found.n_samples))


def refusal(found: Spectrum) -> str | None:
    """Say why parts cannot be compared at equal numbers of samples.

    Args:
        found: a spectrum with the fields of single samples.

    Returns:
        The reason and the remedy; None if they can be compared.

    Raises:
        InputError: the spectrum has no fields of single samples.
    """
    if len(found.parts) < 2:
        return "parts are compared at equal numbers of samples, and there is one part"
    for p, name in enumerate(found.parts):
        weights = pool(found, (p,)).weights
        if _varies(weights) and len(weights) < LEAST_DRAWS:
            return (
                f"{len(weights)} draws from the samples of {name} show too little of how these scatter: compare all "
                f"samples, or give {arg('samples', LEAST_DRAWS)} or more"
            )
    return None


def _varies(weights: np.ndarray) -> bool:
    """Say whether samples were drawn with weights."""
    return bool(np.ptp(weights) > 1e-9 * weights.max())


@dataclass(frozen=True, kw_only=True, eq=False)
class Pair:
    """A part and another one together, and the size at which they are compared.

    Samples that were drawn with weights stand for all of their part: sample i for n w_i of its n samples. Those that
    were drawn alike stand for themselves, because lambda_max of few samples is not that of many.
    """

    together: Pool
    copies: np.ndarray  # as many samples as each one stands for
    size: int

    @property
    def names(self) -> list[str]:
        """The available ones of `NUMBERS`: those per uncertainty need parts whose uncertainty is known and positive."""
        divisible = all(self.together.of(p) @ self.together.uncertainty > 0 for p in range(2))
        there = NUMBERS if self.together.gram is not None else NUMBERS[:2]
        return [name for name in there if divisible or not name.endswith("per uncertainty")]

    def numbers(self, weights: np.ndarray, factors: np.ndarray | float = 1.0) -> np.ndarray:
        """Return the numbers for any weights of the samples and factors of their curvature, both (n,)."""
        below, own = float(weights @ self.together.uncertainty), weights * factors
        found = {"trace": float(own @ self.together.traces)}
        if self.together.gram is not None:
            found["lambda_max"] = self.together.gram.top(own)[0]
        found |= {f"{name} per uncertainty": n / below if below > 0 else 0.0 for name, n in found.items()}
        return np.array([found[name] for name in self.names])

    @property
    def own(self) -> np.ndarray:
        """The numbers of the first part that the tests compare, (k,)."""
        first = np.where(self.together.part == 0, self.copies, 0.0)
        return self.numbers(first / first.sum())

    def above(self, weights: np.ndarray) -> np.ndarray:
        """Return by how much the numbers for any weights are at most larger with the rows that are not stored, (k,)."""
        below, left = float(weights @ self.together.uncertainty), self.together.left_out(weights)
        found = {"lambda_max": left, "lambda_max per uncertainty": left / below if below > 0 else 0.0}
        return np.array([found.get(name, 0.0) for name in self.names])

    @property
    def errors(self) -> np.ndarray:
        """Standard errors of the numbers of both parts because their samples are draws, (2, k)."""
        return np.array([_of_draw(self.together, self.copies, p, self.names) for p in range(2)])

    def tests(self, *, repetitions: int, trials: int = permutation.TRIALS, seed: int = 0) -> dict[str, Matched]:
        """Compare the part's numbers with those of as many samples drawn from both, as `permutation.matched` does.

        Args:
            repetitions: draws of each test.
            trials: of each test, for its power; 0 leaves that out.
            seed: of the draws.

        Returns:
            The comparison of each available one of `NUMBERS`.
        """
        made = permutation.matched(
            self.numbers,
            self.together.part == 0,
            self.copies,
            errors=self.errors,
            above=self.above,
            repetitions=repetitions,
            trials=trials,
            seed=seed,
        )
        return dict(zip(self.names, made, strict=True))


def pair(together: Pool, n_samples: Sequence[int] | np.ndarray, uncertainty: Sequence[float] | np.ndarray) -> Pair:
    """Return a part and another one, ready to be compared.

    Args:
        together: their samples; the first part is compared with draws from both.
        n_samples: of the parts, (2,), from which the pool's may be draws.
        uncertainty: mean tr M of these samples, (2,).

    Returns:
        The pair.
    """
    copies = np.ones(len(together.part))
    for q, (n, mean) in enumerate(zip(n_samples, uncertainty, strict=True)):
        own = together.part == q
        weights = together.weights[own]
        if _varies(weights):
            amount = together.uncertainty[own]  # if it is unknown, the number alone is made right
            amount = amount if np.isfinite(amount).all() else np.zeros(len(amount))
            copies[own] = _stand_for(int(n) * weights, amount, int(n), float(mean))
    return Pair(together=together, copies=copies, size=round(float(copies[together.part == 0].sum())))


def _stand_for(copies: np.ndarray, uncertainty: np.ndarray, n: int, mean: float) -> np.ndarray:
    """Return for how many samples of a part each draw stands, so that these have the part's number and uncertainty.

    The sum of the weights scatters much, because few draws stand for most samples, those with little uncertainty. What
    draws stand for beyond themselves is multiplied by exp(a + b tr M), with the a and b for which both sums are right.

    Args:
        copies: n times the weights of the draws, (m,).
        uncertainty: tr M of the draws, (m,).
        n: samples of the part.
        mean: of tr M over all of them.

    Returns:
        (m,).

    Source: Deville and Sarndal 1992, "Calibration estimators in survey sampling" (raking).
    """
    least = np.minimum(copies, 1)
    more = np.flatnonzero(copies > 1)
    left = n - float(least.sum())
    if not len(more) or left <= 0:
        return copies
    beyond, amount = copies[more] - 1, uncertainty[more]
    wanted, widest = (n * mean - float(least @ uncertainty)) / left, float(np.ptp(amount))

    def shares(b: float) -> np.ndarray:
        tilted = np.log(beyond) + b * (amount - amount[0])
        weights = np.exp(tilted - tilted.max())
        found: np.ndarray = weights / weights.sum()
        return found

    def off(b: float) -> float:
        return float(shares(b) @ amount) - wanted

    b, most = 0.0, 50 / widest if widest > 0 else 0.0
    if widest > 0 and np.isfinite(wanted):
        b = brentq(off, -most, most) if off(-most) < 0 < off(most) else np.copysign(most, -off(0.0))
    found: np.ndarray = least.copy()
    found[more] += left * shares(b)
    return found


def _of_draw(together: Pool, copies: np.ndarray, p: int, names: Sequence[str]) -> np.ndarray:
    """Return the standard errors of a part's numbers because its samples are draws; zero for all samples of a part."""
    own = together.part == p
    if (copies[own] == 1).all():
        return np.zeros(len(names))
    weights, chances = together.weights[own], together.chances[own]
    each = {"trace": together.traces}
    if together.gram is not None:
        each["lambda_max"] = together.gram.curvatures(together.gram.top(together.of(p))[1])
    x = {name: inference.draws(values[own], weights, chances) for name, values in each.items()}
    below = inference.draws(together.uncertainty[own], weights, chances)
    errors = {name: inference.stderr(values) for name, values in x.items()}
    errors |= {f"{name} per uncertainty": inference.ratio(values, below)[1] for name, values in x.items()}
    return np.array([errors[name] for name in names])


def _two(found: Spectrum, p: int, largest: int) -> Pair:
    """Return a part of a spectrum and the largest one."""
    two = [p, largest]
    together = pool(found, two)
    mean = [float(together.of(q) @ together.uncertainty) for q in range(2)]
    known = mean if found.uncertainty is None else np.where(found.drawn[two], found.uncertainty[two], mean)
    return pair(together, found.n_samples[two], known)


def against_largest(
    found: Spectrum, *, repetitions: int | None = None, trials: int = permutation.TRIALS, seed: int = 0
) -> list[Against]:
    """Compare each part with the largest part at the number of samples of the smaller part.

    Where samples were drawn with weights, the pool's draws are of all samples for which they stand, and the error of
    the draw is added to them.

    Args:
        found: a spectrum with the fields of single samples and at least two parts.
        repetitions: draws of each test; None means 100 times the number of tests of the file, at least 1,000 and at
            most 4,000, so that the smallest possible p, times the number of tests, is small.
        trials: of each test, for its power; 0 leaves that out.
        seed: of the draws.

    Returns:
        For each part but the largest, one comparison for each of `NUMBERS`.

    Raises:
        InputError: the spectrum has no fields of single samples, or has one part.
    """
    if (why := refusal(found)) is not None:
        raise InputError(why)
    largest = reference(found)
    others = [p for p in range(len(found.parts)) if p != largest]
    tests = []
    for p in others:
        two = _two(found, p, largest)
        tells = repetitions or int(np.clip(100 * len(two.names) * len(others), 1000, 4000))
        made = two.tests(repetitions=tells, trials=trials, seed=seed)
        tests += [(found.parts[p], name, two.size, test) for name, test in made.items()]
    adjusted = permutation.adjusted(np.array([test.p for *_, test in tests]))
    return [
        Against(
            part=part,
            number=name,
            matrix=of_rows(found.operator),
            n=n,
            test=test,
            p=float(p),
            decay_left_out=decay_of(found),
        )
        for (part, name, n, test), p in zip(tests, adjusted, strict=True)
    ]


def own_numbers(found: Spectrum) -> dict[str, np.ndarray]:
    """Return the numbers of each part that are compared with as many samples of both, of the matrix of the rows.

    They are not those of the tables where these are of the Hessian, hold the weight decay, or are sums over draws.

    Args:
        found: a spectrum with the fields of single samples.

    Returns:
        Each available one of `NUMBERS`, (P,); nan for the largest part.

    Raises:
        InputError: the spectrum has no fields of single samples, or has one part.
    """
    if (why := refusal(found)) is not None:
        raise InputError(why)
    largest, made = reference(found), dict[str, np.ndarray]()
    for p in (p for p in range(len(found.parts)) if p != largest):
        two = _two(found, p, largest)
        for name, value in zip(two.names, two.own, strict=True):
            made.setdefault(name, np.full(len(found.parts), np.nan))[p] = value
    return made


def own_above(found: Spectrum) -> np.ndarray:
    """Return by how much lambda_max of `own_numbers` is at most larger with the rows that are not stored.

    Args:
        found: as for `own_numbers`, of which `refusal` is None.

    Returns:
        (P,); nan for the largest part, without rows, and where it is unknown.
    """
    largest, above = reference(found), np.full(len(found.parts), np.nan)
    for p in (p for p in range(len(found.parts)) if p != largest):
        two = _two(found, p, largest)
        first = np.where(two.together.part == 0, two.copies, 0.0)
        above[p] = two.together.left_out(first / first.sum())
    return above


def as_many_of_both(found: Spectrum, *, repetitions: int | None = None, seed: int = 0) -> dict[str, np.ndarray]:
    """Return the numbers of as many samples as each part has, drawn from it and the largest part together.

    Args:
        found: a spectrum with the fields of single samples.
        repetitions: number of draws; None means 1,000, with which the ends of a band are known as well as the p of
            `against_largest`, and 200 for more than 20 parts.
        seed: of the draws.

    Returns:
        For each available one of `NUMBERS`, the 5 %, 50 % and 95 % quantiles, (P, 3); nan for the largest part.

    Raises:
        InputError: the spectrum has no fields of single samples, or has one part.
    """
    if (why := refusal(found)) is not None:
        raise InputError(why)
    largest, draws = reference(found), repetitions or (1000 if len(found.parts) <= _FEW_PARTS else 200)
    quantiles: dict[str, np.ndarray] = {}
    for p in range(len(found.parts)):
        if p == largest:
            continue
        for name, test in _two(found, p, largest).tests(repetitions=draws, trials=0, seed=seed).items():
            ends = quantiles.setdefault(name, np.full((len(found.parts), 3), np.nan))
            ends[p] = test.low, test.median, test.high
    return quantiles
