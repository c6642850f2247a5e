"""Estimates of one matrix from random probes: a Lanczos run for each probe, and from the runs the trace and its error.

The standard deviation of a probe's z^T H z is up to sqrt(2) |H|_F, and a few large eigenvalues make up nearly all of
|H|_F. So these are deflated: with Q the Ritz vectors of *another* probe's run, independent of z,

    t(z) = trace(Q^T H Q) + z'^T H z',   z' = z - Q Q^T z

is unbiased whether or not Q has converged and whatever the multiplicities, and its variance is at most 2 |P H P|_F^2,
with P = I - Q Q^T what is left. Both terms follow from H Q = Q T + beta v e^T without another product. (Hutch++, Meyer
et al. 2021; exchangeable estimates, Epperly, Tropp and Webber 2024.)

A few probes do not determine the spread of t(z): for two the standard error is ten times too small in one case of
twelve. But each run gives H z = |z| (alpha_1 v_1 + beta_1 v_2), and E |P H P z|^2 = |P H P|_F^2. So the bound on the
variance itself is estimated, from one probe on. It is at least the sum over the Ritz values that were not taken out,
|P H P|_F^2 >= sum of t_i^2, which holds for every run (Horn and Johnson 2013, 4.3.P).
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, NoReturn

import numpy as np
import torch
from torch import Tensor

from landscape.autodiff.wide import products, wide
from landscape.curvature import bounded
from landscape.curvature.lanczos import Distribution, Tridiagonal, lanczos, probe, unconverged
from landscape.curvature.places import WHOLE, Place, Room, refuse
from landscape.curvature.trace_probes import draw_until, standard_error
from landscape.errors import arg
from landscape.results.quadrature import Ritz

if TYPE_CHECKING:
    from landscape.curvature.algebra import Operator

log = logging.getLogger(__name__)

_BESIDE = 14  # vectors besides those of the basis: of the recurrence, of sums, and the largest Ritz vectors
DEFLATED = 24
"""Ritz vectors that are taken out of the trace estimate, at most."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Settings for probing a matrix."""

    steps: int  # of each Lanczos run
    probes: int  # runs
    seed: int
    distribution: Distribution = "rademacher"
    sought: int = 0  # the largest Ritz values that must converge with `tol`, lambda_max at least
    vectors: int = 0  # Ritz vectors that are kept from the run with the largest value, at least 3
    tol: float | None = None  # continue until lambda_max has converged to this tolerance; None means `steps` steps
    max_steps: int | None = None  # the largest number of steps with `tol`; None means 4 times `steps`
    trace_tol: float | None = None  # draw trace probes until the relative standard error is this small; None draws none
    room: Room | None = None  # number of vectors of size D that fit into memory; None means no limit

    @property
    def longest(self) -> int:
        """The most vectors that a run keeps."""
        return self.steps + 1 if self.tol is None else int(1.7 * (self.max_steps or 4 * self.steps)) + 1


@dataclass(frozen=True, kw_only=True)
class Runs:
    """The Lanczos runs of one part."""

    alpha: np.ndarray  # (K, m)
    beta: np.ndarray  # (K, m)
    steps: np.ndarray  # (K,)
    norm2: np.ndarray  # (K,)
    ritz: list[Ritz]  # K of them
    best: int  # the run with the largest Ritz value
    values: np.ndarray  # (n,) the largest eigenvalues, descending: Ritz values of the best run, or those of restarts
    residuals: np.ndarray  # (n,) their bounds
    extremes: Tensor  # (r, D) vectors of the first of them; where the basis was kept, also that of the smallest
    trace_samples: np.ndarray  # (J,)
    trace: tuple[float, float]  # their mean and its standard error
    basis: str | None = None  # in words, where the Lanczos basis was, or what replaced it; None for the default


@dataclass(frozen=True)
class _Run:
    """One run, without its basis."""

    alpha: np.ndarray  # (m,)
    beta: np.ndarray  # (m,)
    norm2: float
    solved: Ritz
    product: Tensor  # H z, (d,)


@dataclass(frozen=True, kw_only=True)
class Deflation:
    """Ritz vectors of one run, and H times them without another product; vectors are as `place` keeps them."""

    vectors: Tensor  # Q, (r, d)
    values: np.ndarray  # (r,)
    remainder: np.ndarray  # (r,) beta_m times the last components: H q_i = t_i q_i + remainder_i v
    next: Tensor  # v_{m+1}, (d,)
    left: float  # sum of the squares of the other Ritz values: a lower bound of |P H P|_F^2
    place: Place = WHOLE

    def sample(self, z: Tensor, quadratic_form: float) -> float:
        """Return the trace estimate t(z) of a probe.

        Args:
            z: the probe, independent of the run, (d,).
            quadratic_form: z^T H z.

        Returns:
            The unbiased estimate of the trace at the head of this file.
        """
        z = z.to(self.vectors)
        sums = torch.cat([products(vectors, z[None])[:, 0] for vectors in (self.vectors, self.next[None])])
        *along, last = self.place.team.total(sums).tolist()
        a = np.array(along)
        across = a * (self.values * a + self.remainder * last)
        return float(self.values.sum() + quadratic_form - 2 * across.sum() + (self.values * a**2).sum())

    def rest(self, z: Tensor, product: Tensor) -> float:
        """Return |P H P z|^2, whose expectation bounds the estimates' variance.

        Args:
            z: the probe, (d,).
            product: H z, (d,).

        Returns:
            The square.
        """
        a = self._along(z)
        values, remainder = (torch.as_tensor(x).to(a) for x in (self.values, self.remainder))
        w = product - self.next * (remainder @ a) - (values * a) @ self.vectors
        w -= self._along(w) @ self.vectors
        return float(self.place.dots(w[None], w[None]))

    def _along(self, z: Tensor) -> Tensor:
        """Return Q z, (r,) in the dtype of Q."""
        return self.place.products(self.vectors, z[None].to(self.vectors))[:, 0].to(self.vectors)


def run(operator: "Operator", plan: Plan, report: Callable[[float], None], *, estimate: bool = True) -> Runs:
    """Probe the matrix of an operator that has one part.

    Args:
        operator: an operator with one part.
        plan: the settings.
        report: called with the finished fraction of the Lanczos runs.
        estimate: draw probes until `trace_tol` is reached; False if the trace is known without probes.

    Returns:
        The runs and the trace.
    """
    block, place = at_a_time(operator, plan)
    if not block:
        return _without_basis(operator, plan, place, report, estimate=estimate)
    found: list[_Run] = []
    deflations: list[Deflation] = []
    best, extremes = -1, torch.empty(0)

    def advance(begin: int, step: int) -> None:
        report(min(0.99, (begin + block * step / max(step, plan.steps)) / plan.probes))

    for begin in range(0, plan.probes, block):
        numbers = range(begin, min(begin + block, plan.probes))
        runs = lanczos(
            operator.matvec,
            torch.stack([_drawn(operator, plan, n) for n in numbers])[None],
            plan.steps,
            more=unconverged(plan.tol, max(plan.sought, 1)) if plan.tol is not None else None,
            max_steps=(plan.max_steps or 4 * plan.steps) if plan.tol is not None else None,
            progress=partial(advance, begin),
            team=operator.team,
            place=place,
            of=operator,
        )
        for k in range(len(numbers)):
            solved = runs.solved(0, k)
            found.append(_Run(runs.alpha[0, k], runs.beta[0, k], runs.norm2[0, k], solved, _product(runs, k)))
            if len(deflations) < 2:
                deflations.append(deflation(runs, k, solved))
            if best < 0 or solved.values[-1] > found[best].solved.values[-1]:
                best = len(found) - 1
                extremes = runs.ritz_vectors(0, k, solved.vectors[:, extreme_columns(solved, max(plan.vectors, 3))])
        del runs  # its basis, before the next block makes its own

    extremes = place.whole(extremes, operator.device)
    samples, trace = _trace(operator, plan, found, deflations, more=estimate and plan.trace_tol is not None)
    width = max(len(one.alpha) for one in found)
    return Runs(
        alpha=np.stack([np.pad(one.alpha, (0, width - len(one.alpha)), constant_values=np.nan) for one in found]),
        beta=np.stack([np.pad(one.beta, (0, width - len(one.beta)), constant_values=np.nan) for one in found]),
        steps=np.array([len(one.solved.values) for one in found]),
        norm2=np.array([one.norm2 for one in found]),
        ritz=[one.solved for one in found],
        best=best,
        values=found[best].solved.values[::-1],
        residuals=found[best].solved.residuals[::-1],
        extremes=extremes,
        trace_samples=np.array(samples),
        trace=trace,
        basis=place.note,
    )


def at_a_time(operator: "Operator", plan: Plan) -> tuple[int, Place]:
    """Choose how many runs advance together, and where their vectors are kept.

    Args:
        operator: an operator with one part.
        plan: the settings.

    Returns:
        The number, 0 if the basis of one run does not fit into memory, and the place: of the bases, or else of the
        vectors of the restarted run.
    """
    # If everything that does not depend on the vector is kept, running probes together saves no time, and one basis at
    # a time takes less memory.
    wanted = 1 if operator.team.all(operator.cached) else plan.probes
    if plan.room is None:
        return wanted, WHOLE
    for place in plan.room.places:
        block = min(wanted, _bases(plan, plan.room, place, operator.size))
        if block > 0:
            log.info("the Lanczos basis is kept %s", place.note or "whole on the device")
            return block, place
    return 0, plan.room.largest


def _bases(plan: Plan, room: Room, place: Place, size: int) -> int:
    """Return how many runs can keep their basis at a place; less than 1 for none."""
    spare = room.fits(place, plan.vectors + _BESIDE) - 2 * DEFLATED - plan.probes  # what is kept of a run
    return spare // min(plan.longest, size + 1)


def keeps_basis(plan: Plan, size: int) -> bool:
    """Say whether the basis of a run fits into memory.

    Args:
        plan: the settings.
        size: D.

    Returns:
        Whether it fits at one of the places.
    """
    room = plan.room
    return room is None or any(_bases(plan, room, place, size) > 0 for place in room.places)


def can_restart(plan: Plan, size: int) -> bool:
    """Say whether the vectors of a restarted run fit into memory; arguments as for `keeps_basis`."""
    room = plan.room or Room(0)
    return room.fits(room.largest, bounded.BESIDE) >= _wanted(plan, size) + bounded.LEAST


def capacity(operator: "Operator", plan: Plan, place: Place) -> int:
    """Return the number of vectors of a restarted run that fit into memory.

    Args:
        operator: an operator with one part.
        plan: the settings.
        place: of the vectors.

    Returns:
        The number.

    Raises:
        InputError: they are too few for a restarted run.
    """
    room = plan.room or Room(0)
    found = room.fits(place, bounded.BESIDE)
    if found < _wanted(plan, operator.size) + bounded.LEAST:
        refuse_restart(operator, plan)
    return found


def refuse_restart(operator: "Operator", plan: Plan, *, part: str = "", process: int | None = None) -> NoReturn:
    """Refuse a matrix for which the vectors of a restarted run do not fit; see `places.refuse`."""
    room, least = plan.room or Room(0), _wanted(plan, operator.size) + bounded.LEAST
    needed = bounded.BESIDE + (0 if room.largest.on_host else room.largest.team.largest(least))
    lower = f"{arg('cache_bytes')} or {arg('batch_size')}"
    refuse(room, operator.size, operator.dtype, needed, lower, part=part, process=process)


def _wanted(plan: Plan, size: int) -> int:
    return min(max(plan.vectors, plan.sought, 3), size - 3)


def deflated(operator: "Operator", plan: Plan, place: Place, report: Callable[[int], None]) -> bounded.Split:
    """Deflate the largest eigenvalues of a matrix, by a restarted run.

    Args:
        operator: an operator with one part.
        plan: the settings.
        place: of the vectors.
        report: called with the number of finished products.

    Returns:
        The matrix without these eigenvalues.

    Raises:
        InputError: too few vectors fit into memory.
    """
    fit, start = capacity(operator, plan, place), _drawn(operator, plan, 0, "restart")
    most = plan.max_steps or 4 * plan.steps
    return bounded.split(operator, start, _wanted(plan, operator.size), fit, plan.tol or 1e-3, most, report, place)


def _without_basis(
    operator: "Operator", plan: Plan, place: Place, report: Callable[[float], None], *, estimate: bool
) -> Runs:
    """Probe a matrix without keeping a Lanczos basis, see bounded.py."""
    entry = operator.size * operator.dtype.itemsize
    total = plan.steps * (plan.probes + 1)
    split = deflated(operator, plan, place, lambda done: report(min(0.5, done / total)))
    log.warning(
        "%s: the Lanczos basis takes %.3g GB and does not fit into memory: the %d largest eigenvalues come from %d "
        "products with %d vectors, the density from runs without a basis",
        operator.parts[0], plan.longest * entry / 1e9, len(split.pairs.values), split.pairs.products, split.capacity,
    )  # fmt: skip
    runs = []
    for k in range(plan.probes):
        begun = plan.steps * (k + 1)

        def advance(done: int, before: int = begun) -> None:
            report(min(0.99, (before + done) / total))

        runs.append(split.run(_drawn(operator, plan, k), plan.steps, advance))
    samples = list(split.samples)
    error_of = partial(standard_error, rests=split.rests, left=[split.pairs.left])
    if estimate and plan.trace_tol is not None:

        def drawn(number: int) -> float:
            return split.draw(_drawn(operator, plan, number, "trace"))

        samples = draw_until(samples, drawn, error_of, plan.trace_tol, operator.team)
    error = error_of(samples)
    width = max(len(alpha) for alpha, _, _, _ in runs)
    best = int(np.argmax([solved.values[-1] for _, _, _, solved in runs]))
    return Runs(
        alpha=np.stack([np.pad(a, (0, width - len(a)), constant_values=np.nan) for a, _, _, _ in runs]),
        beta=np.stack([np.pad(b, (0, width - len(b)), constant_values=np.nan) for _, b, _, _ in runs]),
        steps=np.array([len(alpha) for alpha, _, _, _ in runs]),
        norm2=np.array([norm2 for _, _, norm2, _ in runs]),
        ritz=[solved for _, _, _, solved in runs],
        best=best,
        values=split.pairs.values,  # the runs may have copies of others
        residuals=split.pairs.residuals,
        extremes=place.whole(split.pairs.vectors[: _wanted(plan, operator.size)], operator.device),
        trace_samples=np.array(samples),
        trace=(float(np.mean(samples)), max(error, _rounding(operator, [(s, norm2) for _, _, norm2, s in runs]))),
        basis=f"not kept: {len(split.pairs.values)} eigenvectors by restarts with {split.capacity} vectors; others are "
        "not known, and bounds are wider",
    )


def _drawn(operator: "Operator", plan: Plan, number: int, stream: str = "lanczos") -> Tensor:
    z = probe(operator.size, seed=plan.seed, number=number, distribution=plan.distribution, stream=stream)
    return z.to(operator.device, operator.dtype)


def _trace(
    operator: "Operator", plan: Plan, found: Sequence[_Run], deflations: Sequence[Deflation], *, more: bool
) -> tuple[list[float], tuple[float, float]]:
    """Return the samples of the trace, and their mean with its standard error or a bound on it."""
    samples, error = _samples(operator, plan, found, deflations, more=more)
    rounding = _rounding(operator, [(one.solved, one.norm2) for one in found])
    return samples, (float(np.mean(samples)), max(error, rounding))


def _rounding(operator: "Operator", runs: Sequence[tuple[Ritz, float]]) -> float:
    """Return the rounding error of z^T H z; it matters because the terms cancel if the deflated matrix is zero."""
    sizes = [(np.abs(solved.values), norm2 * solved.weights) for solved, norm2 in runs]
    largest = max(float(max(values.max(), weights @ values)) for values, weights in sizes)
    return float(10 * torch.finfo(operator.dtype).eps * largest)


def _samples(
    operator: "Operator", plan: Plan, found: Sequence[_Run], deflations: Sequence[Deflation], *, more: bool
) -> tuple[list[float], float]:
    """Return the samples of the trace, and the standard error of their mean or a bound on it."""
    forms = [one.norm2 * one.alpha[0] for one in found]  # z^T H z = |z|^2 alpha_1
    if len(found) == 1 and not more:
        one = found[0]
        rest = max(one.norm2 * (one.alpha[0] ** 2 + one.beta[0] ** 2), (one.solved.values**2).sum())
        return forms, float(np.sqrt(2 * rest))
    others = [deflations[0 if k else 1] for k in range(len(found)) if len(found) > 1]
    samples, rests = list[float](), list[float]()
    for k, other in enumerate(others):
        z = other.place.kept(_drawn(operator, plan, k))
        samples.append(other.sample(z, forms[k]))
        rests.append(other.rest(z, found[k].product))

    def draw(number: int) -> float:
        z = _drawn(operator, plan, number, "trace")
        product = operator.matvec(z[None, None])[0, 0]
        first, form = deflations[0], float(torch.linalg.vecdot(wide(product), wide(z)))
        rests.append(first.rest(first.place.kept(z), first.place.kept(product)))
        return first.sample(first.place.kept(z), form)

    error_of = partial(standard_error, rests=rests, left=[deflation.left for deflation in deflations])
    if more:
        samples = draw_until(samples, draw, error_of, plan.trace_tol or 1.0, operator.team)
    return samples, error_of(samples)


def extreme_columns(solved: Ritz, n_top: int) -> list[int]:
    """Find the largest Ritz values and the smallest one.

    Args:
        solved: a run's Ritz values.
        n_top: how many of the largest.

    Returns:
        Their positions, descending, and that of the smallest.
    """
    last = len(solved.values) - 1
    top = list(range(last, max(-1, last - n_top), -1))
    return top if 0 in top else [*top, 0]


def _product(runs: Tridiagonal, k: int) -> Tensor:
    """Return H z for the probe z of a run, (d,)."""
    length, first = float(np.sqrt(runs.norm2[0, k])), runs.basis[0, k, :2]
    return length * (float(runs.alpha[0, k, 0]) * first[0] + float(runs.beta[0, k, 0]) * first[1])


def deflation(runs: Tridiagonal, k: int, solved: Ritz) -> Deflation:
    """Choose the Ritz vectors of a run by which the estimates of other runs are deflated.

    Args:
        runs: of one part.
        k: which run.
        solved: its Ritz values.

    Returns:
        The Ritz vectors and what estimates need besides.
    """
    order = np.argsort(-np.abs(solved.values))
    scale = np.abs(solved.values[order[0]])
    # Vectors that have not converged would not bias the trace, but they would not reduce its variance either.
    chosen = [i for i in order[:DEFLATED] if solved.residuals[i] <= 0.1 * scale and solved.values[i] != 0]
    taken = int(runs.steps[0, k])
    return Deflation(
        vectors=runs.ritz_vectors(0, k, solved.vectors[:, chosen]),
        values=solved.values[chosen],
        remainder=runs.beta[0, k, taken - 1] * solved.vectors[-1, chosen],
        next=runs.basis[0, k, taken].clone(),
        left=float((np.delete(solved.values, chosen) ** 2).sum()),
        place=runs.place,
    )
