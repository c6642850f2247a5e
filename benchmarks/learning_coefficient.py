"""How far the usual estimate of the local learning coefficient is from values that are known in closed form.

    python benchmarks/learning_coefficient.py

The estimate of Lau et al. 2023 is n b (E[L(w)] - L(w*)), b = 1 / log n, with w drawn near w* from
exp(-n b L(w) - gamma / 2 |w - w*|^2) by Langevin steps of size eps. Here L is the loss without noise, so that what is
left is the estimate's own error: of its definition at finite n and gamma, which the column `exact` has by integration,
and of the steps. The column `found` has the mean over chains with its standard error, which knows of neither.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from scipy.integrate import trapezoid

CHAINS, STEPS, BURN = 64, 6000, 2000


@dataclass(frozen=True)
class Case:
    """A loss whose coefficient at a minimum is known."""

    name: str
    value: float
    loss: Callable[[np.ndarray], np.ndarray]  # (K, d) -> (K,)
    gradient: Callable[[np.ndarray], np.ndarray]
    minimum: np.ndarray
    exact: Callable[[float, float], float] | None = None  # (n b, gamma) -> what the estimate is without sampling


def found(case: Case, nb: float, gamma: float, eps: float, rng: np.random.Generator) -> tuple[float, float]:
    """Return the estimate and its standard error over chains."""
    w = np.tile(case.minimum, (CHAINS, 1))
    total = np.zeros(CHAINS)
    for step in range(STEPS):
        drift = nb * case.gradient(w) + gamma * (w - case.minimum)
        w = w - eps / 2 * drift + np.sqrt(eps) * rng.standard_normal(w.shape)
        total += case.loss(w) if step >= BURN else 0.0
    each = nb * total / (STEPS - BURN)
    return float(each.mean()), float(each.std(ddof=1) / np.sqrt(CHAINS))


def quadratic(name: str, curvatures: np.ndarray) -> Case:
    """Return a regular minimum, of coefficient d / 2."""
    return Case(
        name,
        len(curvatures) / 2,
        lambda w: 0.5 * (curvatures * w**2).sum(1),
        lambda w: curvatures * w,
        np.zeros(len(curvatures)),
        lambda nb, gamma: float((nb * curvatures / (nb * curvatures + gamma)).sum() / 2),
    )


def crossing() -> Case:
    """Return w1^2 w2^2, of coefficient 1/2 and multiplicity 2."""

    def exact(nb: float, gamma: float) -> float:
        x = np.concatenate([[0.0], np.geomspace(1e-8, 6 / np.sqrt(gamma), 3000)])
        loss = np.multiply.outer(x, x) ** 2
        weight = np.exp(-nb * loss - gamma / 2 * np.add.outer(x**2, x**2))
        top, bottom = (trapezoid(trapezoid(values, x), x) for values in (nb * loss * weight, weight))
        return float(top / bottom)

    return Case(
        "w1² w2²",
        0.5,
        lambda w: (w[:, 0] * w[:, 1]) ** 2,
        lambda w: 2 * w * w[:, ::-1] ** 2,
        np.zeros(2),
        exact,
    )


def reduced_rank() -> Case:
    """Return a linear network of two 2 x 2 layers whose product has rank 1: coefficient 2 (Aoyagi, Watanabe 2005)."""
    target = np.diag([1.0, 0.0])

    def layers(w: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        a, b = w[:, :4].reshape(-1, 2, 2), w[:, 4:].reshape(-1, 2, 2)
        return a, b, a @ b - target

    def gradient(w: np.ndarray) -> np.ndarray:
        a, b, rest = layers(w)
        return np.concatenate([(rest @ b.swapaxes(1, 2)).reshape(-1, 4), (a.swapaxes(1, 2) @ rest).reshape(-1, 4)], 1)

    start = np.array([1.0, 0, 0, 0, 1, 0, 0, 0])
    return Case("reduced rank", 2.0, lambda w: 0.5 * (layers(w)[2] ** 2).sum((1, 2)), gradient, start)


def rows() -> Iterator[list[str]]:
    """Yield the cells of the table."""
    rng = np.random.default_rng(0)
    cases = (
        (quadratic("quadratic, curvatures 1", np.ones(10)), 10**4, (1e-4, 1e-3)),
        (quadratic("quadratic, curvatures 0.001 to 10", np.logspace(-3, 1, 10)), 10**4, (1e-4,)),
        (crossing(), 10**4, (1e-4, 1e-3)),
        (reduced_rank(), 10**4, (1e-5, 1e-4)),
        (reduced_rank(), 10**6, (1e-5,)),
    )
    for case, n, sizes in cases:
        nb = n / np.log(n)
        for gamma in (1.0, 100.0):
            exact = "" if case.exact is None else f"{case.exact(nb, gamma):.3f}"
            for eps in sizes:
                with np.errstate(all="ignore"):  # of chains that leave
                    mean, error = found(case, nb, gamma, eps, rng)
                yield [
                    case.name,
                    f"{n:,}",
                    f"{gamma:g}",
                    f"{eps:g}",
                    f"{case.value:g}",
                    exact,
                    f"{mean:.3f} ± {error:.3f}",
                ]


if __name__ == "__main__":
    print("| loss | n | gamma | eps | value | exact | found |\n|---|---|---|---|---|---|---|")
    for cells in rows():
        print(f"| {' | '.join(cells)} |", flush=True)
