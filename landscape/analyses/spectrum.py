"""The spectrum of each part's curvature: one Lanczos run per probe yields density, extremes, trace and negative mass.

The trace needs more care than the rest. A probe's z^T H z varies by up to sqrt(2) |H|_F, and a few large eigenvalues
hold nearly all of |H|_F. So they are deflated: with Q the Ritz vectors of *another* probe's run, independent of z,

    t(z) = trace(Q^T H Q) + z'^T H z',   z' = z - Q Q^T z

is unbiased whether or not Q has converged and whatever the multiplicities, and its variance is that of the rest of the
spectrum. Both terms follow from H Q = Q T + beta v e^T without another product. (Hutch++, Meyer et al. 2021;
exchangeable estimates, Epperly, Tropp and Webber 2024.) Where traces.py can do without probes, none is estimated.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from landscape.analyses import overlap as overlaps
from landscape.curvature.algebra import Operator
from landscape.curvature.kinds import find
from landscape.curvature.lanczos import DISTRIBUTIONS, Tridiagonal, lanczos, probe
from landscape.curvature.operators import CACHE_BYTES, Backend, curvature_operator
from landscape.errors import InputError, arg, check_choice
from landscape.objective import jobs
from landscape.objective.objective import Objective
from landscape.objective.provenance import fingerprint, provenance
from landscape.results import Spectrum, quadrature
from landscape.results.journal import Journal
from landscape.results.quadrature import Ritz

log = logging.getLogger(__name__)

TRACES = ("auto", "exact", "probes")
DEFLATED = 24
"""Ritz vectors that are taken out of the trace estimate, at most."""
PILOT = 6
"""Probes that estimate the spread before the number of trace probes is fixed (Stein 1945)."""
MOST_TRACE_PROBES = 400
DEFAULT_TOL = 1e-3


@dataclass(frozen=True, kw_only=True)
class Options:
    """What determines the numbers of a spectrum, apart from the objective."""

    operator: str
    steps: int
    probes: int
    seed: int
    distribution: str
    top: int
    vectors: int
    tol: float | None
    max_steps: int | None
    trace: str
    trace_tol: float | None
    negative_tol: float
    residual_mass: float | None

    def __post_init__(self) -> None:
        """Raise InputError for a value out of its range, as far as that does not depend on the objective."""
        at_least = {"steps": (self.steps, 1), "probes": (self.probes, 1), "top": (self.top, 1)}
        at_least |= {"vectors": (self.vectors, 0), "seed": (self.seed, 0)}
        for name, (value, least) in at_least.items():
            if value < least:
                raise InputError(f"{arg(name)} must be at least {least}, got {value}")
        for name, number in {"tol": self.tol, "trace_tol": self.trace_tol}.items():
            if number is not None and not 0 < number < 1:
                raise InputError(f"{arg(name)} is a share between 0 and 1, got {number:g}")
        if not 0 <= self.negative_tol < 1:
            raise InputError(f"{arg('negative_tol')} is a share between 0 and 1, got {self.negative_tol:g}")
        if self.max_steps is not None and (self.tol is None or self.max_steps < self.steps):
            raise InputError(
                f"{arg('max_steps', self.max_steps)} goes with {arg('tol')}, and must be at least "
                f"{arg('steps', self.steps)}"
            )
        find(self.operator)
        check_choice("trace", self.trace, TRACES)
        check_choice("distribution", self.distribution, DISTRIBUTIONS)


def spectrum(
    objective: Objective,
    *,
    operator: str = "hessian",
    steps: int = 80,
    probes: int = 4,
    seed: int = 0,
    distribution: str = "rademacher",
    top: int = 10,
    vectors: int = 0,
    overlap: bool = False,
    tol: float | None = None,
    max_steps: int | None = None,
    trace: str = "auto",
    trace_tol: float | None = None,
    negative_tol: float = 1e-3,
    residual_mass: float | None = None,
    backend: Backend = "auto",
    cache_bytes: int = CACHE_BYTES,
    out: str | Path | None = None,
    overwrite: bool = False,
    progress: jobs.Progress | None = None,
) -> Spectrum:
    """Compute the spectrum of each part of an objective.

    Args:
        objective: model, loss and data in parts.
        operator: "hessian", "ggn", "residual", "fisher" or "empirical-fisher", see curvature/kinds.py.
        steps: Lanczos steps per probe; 40 for a look, 80 to 100 for a figure. lambda_max converges long before.
        probes: runs per part; 4 show how much the density owes to the probe, 1 is enough for lambda_max.
        seed: of the probes; the same seed gives the same probes on any device and for any batch size.
        distribution: "rademacher" or "gaussian" probes.
        top: how many of the largest Ritz values to keep, at least.
        vectors: how many of the largest Ritz vectors to keep, with their values.
        overlap: also multiply vectors and gradient of each part by the matrices of all parts, see overlap.py.
        tol: go on until the residual of lambda_max is at most this share of it; None takes `steps` and says whether
            1e-3 was reached.
        max_steps: where `tol` gives up; None for 4 times `steps`.
        trace: "exact", see traces.py: for networks that are piecewise linear in each parameter, and for all with
            the other matrices; "probes" for an estimate; "auto" for the exact one where it can be had and there
            are no more classes than Lanczos steps, each of which costs about the same.
        trace_tol: draw trace probes (one product each) until the standard error is at most this share of the trace;
            None takes the Lanczos probes alone.
        negative_tol: eigenvalues above -negative_tol * max |eigenvalue| do not count as negative mass.
        residual_mass: keep only the samples that hold this share of each part's residual mass, as 0.9999; the
            error is measured on the final Ritz vectors with all samples. None keeps all.
        backend: "auto", "reverse" or "linearized", see `operators.curvature_operator`.
        cache_bytes: memory for what is kept between products.
        out: result file to write; finished parts are kept beside it until it is complete, and a repeated call with
            the same options takes them up.
        overwrite: replace an existing result file.
        progress: called with (done, total, text).

    Returns:
        The spectrum of all parts.

    Raises:
        InputError: an option out of its range.
        NumericalError: a product is not finite, or the loss has no second derivative.
        StoreError: the result file cannot be written, or an unfinished run beside it had other options.
    """
    options = Options(
        operator=operator,
        steps=steps,
        probes=probes,
        seed=seed,
        distribution=distribution,
        top=top,
        vectors=vectors,
        tol=tol,
        max_steps=max_steps,
        trace=trace,
        trace_tol=trace_tol,
        negative_tol=negative_tol,
        residual_mass=residual_mass,
    )
    if vectors > min(steps, objective.layout.size):
        raise InputError(
            f"{arg('vectors', vectors)} asks for more than {arg('steps', steps)} give of {objective.layout.size} "
            "parameters"
        )
    if overlap:
        overlaps.refuse(len(objective.partition), vectors)
    if out is None:
        return _run(objective, options, overlap, backend, cache_bytes, None, progress)
    with jobs.open_journal(out, fingerprint(objective, vars(options)), overwrite=overwrite) as journal:
        result = _run(objective, options, overlap, backend, cache_bytes, journal, progress)
        journal.finish(result)
    return result


def _run(
    objective: Objective,
    options: Options,
    overlap: bool,
    backend: Backend,
    cache_bytes: int,
    journal: Journal | None,
    progress: jobs.Progress | None,
) -> Spectrum:
    evaluation = objective.evaluation
    used = objective if options.residual_mass is None else objective.truncated(options.residual_mass)
    about = provenance(objective, vars(options))

    @cache  # traced once, when the first unfinished part needs it
    def whole() -> tuple[Operator, bool]:
        operator = curvature_operator(used, find(options.operator), backend=backend, cache_bytes=cache_bytes)
        return operator, _exact(operator, len(used.samples.class_names), options)

    def compute(name: str, report: Callable[[float], None]) -> Spectrum:
        operator, without_probes = whole()
        part = objective.part(name)
        trace = operator.exact.trace(name) if without_probes else None
        found = _runs(operator.restrict([part]), options, report, trace)
        check = 0.0
        if len(used.members[part]) < len(objective.members[part]):
            check = _truncation_error(objective, part, options.operator, found)
        counts, classes = objective.samples.class_counts, objective.partition.classes
        return _summary(
            found,
            options,
            eps=torch.finfo(objective.dtype).eps,
            parts=(name,),
            n_samples=np.array([objective.counts[part]]),
            n_used=np.array([len(used.members[part])]),
            train_counts=np.array([counts[list(classes[part])].sum() if classes else counts.sum()]),
            loss=evaluation.loss[[part]],
            accuracy=evaluation.accuracy[[part]],
            truncation_error=np.array([check]),
            size=objective.layout.size,
            provenance=about,
        )

    found = jobs.run(objective.partition.names, compute, journal, progress)
    if not overlap:
        return found
    whole.cache_clear()  # with what it keeps, before the second stage keeps its own
    return overlaps.overlap(
        objective, found, backend=backend, cache_bytes=cache_bytes, journal=journal, progress=progress
    )


@dataclass(frozen=True, kw_only=True)
class _Runs:
    """The Lanczos runs of one part."""

    alpha: np.ndarray  # (K, m)
    beta: np.ndarray  # (K, m)
    steps: np.ndarray  # (K,)
    norm2: np.ndarray  # (K,)
    ritz: list[Ritz]  # K of them
    best: int  # the run that saw the largest Ritz value
    columns: list[int]  # (r,) positions of the best run's largest Ritz values, descending, and of its smallest
    extremes: Tensor  # (r, D) their Ritz vectors
    trace_samples: np.ndarray  # (J,)
    trace: float | None  # without probes


@dataclass(frozen=True)
class _Deflation:
    """Ritz vectors of one run, and H times them without another product."""

    vectors: Tensor  # Q, (r, D)
    values: np.ndarray  # (r,)
    remainder: np.ndarray  # (r,) beta_m times the last components: H q_i = t_i q_i + remainder_i v
    next: Tensor  # v_{m+1}, (D,)

    def sample(self, z: Tensor, quadratic_form: float) -> float:
        """Return t(z) from z and z^T H z; see the head of this file."""
        z = z.to(self.vectors)
        a = (self.vectors @ z).double().cpu().numpy()
        across = a * (self.values * a + self.remainder * float(self.next @ z))
        return float(self.values.sum() + quadratic_form - 2 * across.sum() + (self.values * a**2).sum())


def _exact(operator: Operator, n_classes: int, options: Options) -> bool:
    """Say whether traces are taken without probes; an InputError where they must be and cannot."""
    if options.trace == "probes" or (options.trace == "auto" and n_classes > options.steps * options.probes):
        return False
    reason = operator.exact.refusal()
    if reason is None:
        return True
    if options.trace == "exact":
        raise InputError(f"{arg('trace', 'exact')} cannot be had: {reason}; {arg('trace', 'probes')} estimates it")
    log.info("the trace is estimated by probes, because %s", reason)
    return False


def _runs(operator: Operator, options: Options, report: Callable[[float], None], trace: float | None) -> _Runs:
    def draw(number: int, stream: str = "lanczos") -> Tensor:
        return probe(
            operator.size, seed=options.seed, number=number, distribution=options.distribution, stream=stream
        ).to(operator.device, operator.dtype)

    eps = torch.finfo(operator.dtype).eps

    def unconverged(runs: Tridiagonal) -> bool:
        tops = [
            quadrature.ritz(a, b, int(m), eps)
            for a, b, m in zip(runs.alpha[0], runs.beta[0], runs.steps[0], strict=True)
        ]
        return any(t.residuals[-1] > (options.tol or 0) * abs(t.values[-1]) for t in tops)

    # Where all that does not depend on the vector is kept, probes gain nothing from advancing together, and one
    # basis at a time takes less memory.
    block = 1 if operator.cached else options.probes
    alphas, betas, steps, norms = [], [], [], []
    solved: list[Ritz] = []
    deflations: list[_Deflation] = []
    best, columns, extremes = -1, list[int](), torch.empty(0)

    def advance(begin: int, step: int) -> None:
        report(min(0.99, (begin + block * step / max(step, options.steps)) / options.probes))

    for begin in range(0, options.probes, block):
        numbers = range(begin, min(begin + block, options.probes))
        runs = lanczos(
            operator.matvec,
            torch.stack([draw(n) for n in numbers])[None],
            options.steps,
            more=unconverged if options.tol is not None else None,
            max_steps=(options.max_steps or 4 * options.steps) if options.tol is not None else None,
            progress=partial(advance, begin),
        )
        for k in range(len(numbers)):
            taken = int(runs.steps[0, k])
            alphas.append(runs.alpha[0, k])
            betas.append(runs.beta[0, k])
            steps.append(taken)
            norms.append(runs.norm2[0, k])
            solved.append(quadrature.ritz(runs.alpha[0, k], runs.beta[0, k], taken, eps))
            if len(deflations) < 2:
                deflations.append(_deflation(runs, k, solved[-1]))
            if best < 0 or solved[-1].values[-1] > solved[best].values[-1]:
                best = len(solved) - 1
                columns = _extreme_columns(solved[-1], max(options.vectors, 3))
                extremes = runs.ritz_vectors(0, k, solved[-1].vectors[:, columns])
        del runs  # its basis, before the next block makes its own

    def quadratic_form(z: Tensor) -> float:
        return float(torch.linalg.vecdot(operator.matvec(z[None, None])[0, 0].double(), z.double()))

    forms = [norm * alpha[0] for norm, alpha in zip(norms, alphas, strict=True)]  # z^T H z = |z|^2 alpha_1
    samples = [deflations[0 if k else 1].sample(draw(k), form) for k, form in enumerate(forms) if len(forms) > 1]
    if options.trace_tol is not None and trace is None:
        samples = _trace_samples(
            samples, lambda n: deflations[0].sample(z := draw(n, "trace"), quadratic_form(z)), options.trace_tol
        )
    width = max(len(a) for a in alphas)
    return _Runs(
        alpha=np.stack([np.pad(a, (0, width - len(a)), constant_values=np.nan) for a in alphas]),
        beta=np.stack([np.pad(b, (0, width - len(b)), constant_values=np.nan) for b in betas]),
        steps=np.array(steps),
        norm2=np.array(norms),
        ritz=solved,
        best=best,
        columns=columns,
        extremes=extremes,
        trace_samples=np.array(samples or forms),
        trace=trace,
    )


def _extreme_columns(solved: Ritz, n_top: int) -> list[int]:
    """Return the positions of the largest Ritz values, descending, and of the smallest one."""
    last = len(solved.values) - 1
    top = list(range(last, max(-1, last - n_top), -1))
    return top if 0 in top else [*top, 0]


def _deflation(runs: Tridiagonal, k: int, solved: Ritz) -> _Deflation:
    order = np.argsort(-np.abs(solved.values))
    scale = np.abs(solved.values[order[0]])
    # Vectors that have not converged would not bias the trace, but they take nothing out of its variance either.
    chosen = [i for i in order[:DEFLATED] if solved.residuals[i] <= 0.1 * scale and solved.values[i] != 0]
    taken = int(runs.steps[0, k])
    return _Deflation(
        vectors=runs.ritz_vectors(0, k, solved.vectors[:, chosen]),
        values=solved.values[chosen],
        remainder=runs.beta[0, k, taken - 1] * solved.vectors[-1, chosen],
        next=runs.basis[0, k, taken].clone(),
    )


def _trace_samples(samples: list[float], draw: Callable[[int], float], tol: float) -> list[float]:
    """Add as many samples as a pilot's spread says that the standard error needs."""
    # Stopping when the running error happens to be small makes it too small on average; Stein's two stages do not.
    pilot = samples + [draw(n) for n in range(max(0, PILOT - len(samples)))]
    drawn = len(pilot) - len(samples)
    spread, mean = np.std(pilot, ddof=1), abs(np.mean(pilot))
    needed = MOST_TRACE_PROBES if mean == 0 < spread else int(np.ceil((spread / (tol * mean)) ** 2)) if spread else 0
    if needed > MOST_TRACE_PROBES:
        log.warning(
            "the trace would need %d probes for a relative error of %g; %d are drawn", needed, tol, MOST_TRACE_PROBES
        )
    missing = min(needed, MOST_TRACE_PROBES) - len(pilot)
    return pilot + [draw(n) for n in range(drawn, drawn + max(0, missing))]


def _truncation_error(objective: Objective, part: int, kind: str, found: _Runs) -> float:
    """Return the largest change of a checked Ritz value's Rayleigh quotient when all samples are used."""
    exact = curvature_operator(objective, find(kind), backend="reverse").restrict([part])
    products = exact.matvec(found.extremes[None])[0]
    quotients = torch.linalg.vecdot(products.double(), found.extremes.double()).cpu().numpy()
    return float(np.abs(quotients - found.ritz[found.best].values[found.columns]).max())


def _summary(found: _Runs, options: Options, *, eps: float, **about: Any) -> Spectrum:
    """Turn the runs of one part into a result with one part."""
    nodes, weights = quadrature.nodes_and_weights(found.alpha, found.beta, found.steps)
    lowest = min(found.ritz, key=lambda r: float(r.values[0]))
    highest = found.ritz[found.best]
    mass = quadrature.mean_and_stderr(quadrature.negative_mass(nodes, weights, options.negative_tol))
    share = quadrature.mean_and_stderr(quadrature.negative_curvature(nodes, weights))
    ends = np.array([[abs(r.values[0]), abs(r.values[-1])] for r in found.ritz])
    ratio = quadrature.mean_and_stderr(
        np.divide(ends[:, 0], ends[:, 1], out=np.full(len(ends), np.nan), where=ends[:, 1] > 0)
    )
    trace = (found.trace, 0.0) if found.trace is not None else quadrature.mean_and_stderr(found.trace_samples)
    tol = DEFAULT_TOL if options.tol is None else options.tol

    def first(values: np.ndarray) -> np.ndarray:
        n = max(options.top, options.vectors)
        kept = values[::-1][:n]
        return np.pad(kept, (0, n - len(kept)), constant_values=np.nan)[None]

    kept_vectors = None
    if options.vectors:
        kept_vectors = np.full((1, options.vectors, found.extremes.shape[1]), np.nan)
        available = min(options.vectors, len(highest.values))
        kept_vectors[0, :available] = found.extremes[:available].double().cpu().numpy()
    return Spectrum(
        lambda_max=highest.values[[-1]],
        lambda_max_residual=highest.residuals[[-1]],
        lambda_min=lowest.values[[0]],
        lambda_min_residual=lowest.residuals[[0]],
        converged=np.array([highest.residuals[-1] <= tol * abs(highest.values[-1])]),
        trace=np.array([trace[0]]),
        trace_stderr=np.array([trace[1]]),
        negative_mass=np.array([mass[0]]),
        negative_mass_stderr=np.array([mass[1]]),
        negative_curvature=np.array([share[0]]),
        negative_curvature_stderr=np.array([share[1]]),
        saddle_ratio=np.array([ratio[0]]),
        saddle_ratio_stderr=np.array([ratio[1]]),
        ritz_values=first(highest.values),
        ritz_residuals=first(highest.residuals),
        ritz_vectors=kept_vectors,
        alpha=found.alpha[None],
        beta=found.beta[None],
        steps=found.steps[None],
        probe_norm2=found.norm2[None],
        trace_samples=found.trace_samples[None],
        operator=options.operator,
        symbol=find(options.operator).symbol,
        tol=tol,
        negative_tol=options.negative_tol,
        residual_mass=options.residual_mass or 1.0,
        **about,
    )
