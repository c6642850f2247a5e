"""The spectrum of each part's curvature: one Lanczos run per probe yields density, extremes, trace and negative mass.

Objective -> operator -> runs of Lanczos (probing.py) -> quadrature -> result. A matrix that is no network's enters as
an operator, and leaves as the same result, less what only data have: samples, losses and accuracies.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import numpy as np

from landscape.analyses import overlap as overlaps
from landscape.analyses import samples as of_samples
from landscape.analyses.pooled import row_products
from landscape.analyses.samples import GGN_TOL, METHODS, Method
from landscape.callables import checked
from landscape.curvature import probing, rows
from landscape.curvature.algebra import Operator
from landscape.curvature.kinds import HESSIAN, KINDS, Kind, KindName, find
from landscape.curvature.lanczos import DISTRIBUTIONS, Distribution
from landscape.curvature.matrices import matrix
from landscape.curvature.operators import CACHE_BYTES, Backend, curvature_operator
from landscape.curvature.probing import Plan, Runs
from landscape.errors import InputError, arg, check_choice
from landscape.objective import jobs
from landscape.objective.draws import draw
from landscape.objective.objective import Objective
from landscape.objective.provenance import about_run, fingerprint, provenance
from landscape.results import Spectrum, disk, quadrature, store
from landscape.results.hdf5 import SIGNATURE
from landscape.results.journal import Journal

log = logging.getLogger(__name__)

Trace: TypeAlias = Literal["auto", "exact", "probes"]
TRACES: tuple[Trace, ...] = get_args(Trace)
DEFAULT_TOL = 1e-3

Facts: TypeAlias = Callable[[str], dict[str, np.ndarray]]
"""What is known of the data of a part, by its name, as fields of the result."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """What determines the numbers of a spectrum, apart from the objective."""

    operator: str
    steps: int
    probes: int
    seed: int
    distribution: Distribution
    top: int
    vectors: int
    tol: float | None
    max_steps: int | None
    trace: Trace
    trace_tol: float | None
    negative_tol: float
    samples: int | None
    method: Method
    ggn_tol: float
    sampling_errors: bool

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
        if not 0 <= self.ggn_tol < 1:
            raise InputError(f"{arg('ggn_tol')} is a share, at least 0 and below 1, got {self.ggn_tol:g}")
        check_choice("method", self.method, METHODS)
        if self.samples is not None and self.samples < 2:
            raise InputError(f"{arg('samples')} must be at least 2, got {self.samples}")
        check_choice("trace", self.trace, TRACES)
        check_choice("distribution", self.distribution, DISTRIBUTIONS)

    @property
    def plan(self) -> Plan:
        """How each part's matrix is probed."""
        return Plan(**{item.name: getattr(self, item.name) for item in fields(Plan)})


@checked
def spectrum(
    subject: Any,
    *,
    operator: KindName | Kind | None = None,
    steps: int = 80,
    probes: int = 4,
    seed: int = 0,
    distribution: Distribution = "rademacher",
    top: int = 10,
    vectors: int = 0,
    overlap: bool = False,
    tol: float | None = None,
    max_steps: int | None = None,
    trace: Trace = "auto",
    trace_tol: float | None = None,
    negative_tol: float = 1e-3,
    samples: int | None = None,
    method: Method = "auto",
    ggn_tol: float = GGN_TOL,
    sampling_errors: bool = True,
    backend: Backend = "auto",
    cache_bytes: int = CACHE_BYTES,
    out: str | Path | None = None,
    fingerprint: str | None = None,
    overwrite: bool = False,
    progress: jobs.Progress | None = None,
) -> Spectrum:
    """Compute the spectrum of a curvature matrix of each part of an objective, or of any symmetric matrices.

    Args:
        subject: an objective; an operator, as `hessian(objective) - ggn(objective)`; or what `matrix` takes: a dense
            matrix, a stack of them, a SciPy operator, any object with a shape and a product.
        operator: of an objective: the matrix, by its name in `curvature.kinds.KINDS`, or a `Kind` of your own; None
            for the Hessian.
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
        samples: of an objective: draw so many samples of each part in proportion to their uncertainty, with weights,
            see objective/draws.py; the errors over samples are then those of the draw. None takes all.
        method: of an objective: "rows" for all eigenvalues of a Gauss-Newton or Fisher matrix from gradients of single
            samples, without probes; "lanczos" for products with probes, which the Hessian always takes; "auto" for
            rows where they fit.
        ggn_tol: share of the trace that rows may leave out; no eigenvalue is off by more than what is left out.
        sampling_errors: of an objective: also take standard errors over samples, from each sample's own trace and
            curvature.
        backend: of an objective's products: "auto", "reverse" or "linearized", see `operators.curvature_operator`.
        cache_bytes: of an objective: memory for what is kept between products.
        out: result file to write; finished parts are kept beside it until it is complete, and a repeated call with
            the same options takes them up.
        fingerprint: a text that changes whenever a matrix that is known by its products alone does. Without it nobody
            can tell whether unfinished work is of the same matrix, so that none is kept. Dense matrices and operators
            of objectives have their own.
        overwrite: replace an existing result file.
        progress: called with (done, total, text).

    Returns:
        The spectrum of all parts. Of matrices without data the numbers of samples, losses and accuracies are nan.

    Raises:
        InputError: an option out of its range.
        NumericalError: a product is not finite, or the loss has no second derivative.
        StoreError: the result file cannot be written, or an unfinished run beside it had other options.
    """
    if isinstance(subject, Objective):
        kind = find(HESSIAN.name if operator is None else operator)
        if samples is not None and not kind.scales:
            raise InputError(f"{arg('samples')} weighs losses, which the {kind.name} does not: leave one of them out")
        name, parts, size = kind.name, subject.partition.names, subject.layout.size
    else:
        _refuse_options_of_objectives(operator, backend, cache_bytes, samples, overlap)
        subject = matrix(subject)
        name, parts, size = subject.name, subject.parts, subject.size
    options = Options(
        operator=name,
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
        samples=samples,
        method=method,
        ggn_tol=ggn_tol,
        sampling_errors=sampling_errors,
    )
    if vectors > min(steps, size):
        raise InputError(
            f"{arg('vectors', vectors)} asks for more than {arg('steps', steps)} give of {size} parameters"
        )
    if overlap:
        overlaps.refuse(len(parts), vectors)
    if isinstance(subject, Objective):
        made = _of_objective(subject, kind, options, backend, cache_bytes)
    else:
        made = _of_operator(subject, options, fingerprint)

    def computed(journal: Journal | None) -> Spectrum:
        found = jobs.run(parts, made.compute, journal, progress)
        if isinstance(subject, Objective):
            subject.verify()
        made.forget()  # with what it keeps, before the second stage keeps its own
        found = made.between(found, journal, progress)
        if not overlap:
            return found
        return overlaps.overlap(
            subject, found, backend=backend, cache_bytes=cache_bytes, journal=journal, progress=progress
        )

    if out is None:
        return computed(None)
    if made.fingerprint is None:
        disk.refuse_taken(Path(out), overwrite=overwrite, signature=SIGNATURE)
        result = computed(None)
        store.save(out, result, overwrite=overwrite)
        return result
    with jobs.open_journal(out, made.fingerprint, overwrite=overwrite) as journal:
        result = computed(journal)
        journal.finish(result)
    return result


def _refuse_options_of_objectives(
    operator: object,
    backend: str,
    cache_bytes: int,
    samples: int | None,
    overlap: bool,
) -> None:
    given = {
        "operator": operator is not None,
        "backend": backend != "auto",
        "cache_bytes": cache_bytes != CACHE_BYTES,
        "samples": samples is not None,
        "overlap": overlap,
    }
    for name, asked in given.items():
        if asked:
            raise InputError(f"{arg(name)} is for an objective, and the spectrum is of a matrix: leave it out")


@dataclass(frozen=True, kw_only=True)
class _Job:
    """How the spectrum of a part is computed, and what an unfinished run is known by."""

    compute: Callable[[str, Callable[[float], None]], Spectrum]
    fingerprint: Mapping[str, Any] | None
    forget: Callable[[], None]
    between: Callable[[Spectrum, Journal | None, jobs.Progress | None], Spectrum] = lambda found, *_: found


def _of_objective(objective: Objective, kind: Kind, options: Options, backend: Backend, cache_bytes: int) -> _Job:
    facts = _facts(objective)
    drawn = None if options.samples is None else draw(objective, options.samples, seed=options.seed)
    used = objective if drawn is None else drawn.objective
    about = provenance(objective, asdict(options))
    lengths: dict[int, rows.Lengths] = {}

    @cache  # traced once, when the first unfinished part needs it
    def whole() -> tuple[Operator, bool]:
        operator = curvature_operator(used, kind, backend=backend, cache_bytes=cache_bytes)
        return operator, _exact(operator, options)

    @cache
    def sample_by_sample() -> bool:
        return _sample_by_sample(used, kind, options)

    def compute(name: str, report: Callable[[float], None]) -> Spectrum:
        part, told, of_part = objective.part(name), None, facts(name)
        of_part |= {"n_used": np.array([len(used.members[part])])}
        if sample_by_sample():
            told = of_samples.samples(used, kind, part, tol=options.ggn_tol, cache_bytes=cache_bytes, drawn=drawn)
            lengths[part] = told.lengths
            of_part |= of_samples.eigenvalues(told)
            if told.kept is not None and kind.has_rows and options.method != "lanczos":
                return _by_rows(told, told.kept, options, of_part | {"provenance": about})
        operator, exact = whole()
        own = operator[name]
        found = probing.run(own, options.plan, report, estimate=not exact)
        if told is not None and options.sampling_errors:
            along = of_samples.along_vector(told, found.extremes[0])
            of_part |= of_samples.statistics(told, *along)
        trace = None if not exact else own.exact.trace(name) if told is None else told.trace
        return _summary(found, own, options, trace, **of_part, provenance=about)

    def between(found: Spectrum, journal: Journal | None, progress: jobs.Progress | None) -> Spectrum:
        if kind.factors is None or not options.sampling_errors or not sample_by_sample():
            return found
        return row_products(
            used, found, kind.factors, lengths, drawn=drawn, cache_bytes=cache_bytes, journal=journal, progress=progress
        )

    known = fingerprint(objective, asdict(options))
    return _Job(compute=compute, fingerprint=known, forget=whole.cache_clear, between=between)


def _of_operator(operator: Operator, options: Options, given: str | None) -> _Job:
    exact = cache(lambda: _exact(operator, options))
    source = {"fingerprint": given} if given is not None else operator.source()
    objective = operator.objective
    facts: Facts = _unknown if objective is None else _facts(objective)
    if objective is None:
        about = about_run(asdict(options), operator.device, operator.dtype) | dict(source or {})
    else:
        about = provenance(objective, asdict(options))

    def compute(name: str, report: Callable[[float], None]) -> Spectrum:
        own = operator[name]
        found = probing.run(own, options.plan, report, estimate=not exact())
        trace = own.exact.trace(name) if exact() else None
        return _summary(found, own, options, trace, **facts(name), provenance=about)

    known = (
        None if source is None else asdict(options) | {"dtype": about["dtype"], "parts": list(operator.parts), **source}
    )
    return _Job(compute=compute, fingerprint=known, forget=exact.cache_clear)


def _facts(objective: Objective) -> Facts:
    evaluation, counts = objective.evaluation, objective.samples.class_counts

    def of(name: str) -> dict[str, np.ndarray]:
        part, classes = objective.part(name), objective.partition.classes
        return {
            "n_samples": np.array([objective.counts[part]]),
            "n_used": np.array([len(objective.members[part])]),
            "train_counts": np.array([counts[list(classes[part])].sum() if classes else counts.sum()]),
            "loss": evaluation.loss[[part]],
            "accuracy": evaluation.accuracy[[part]],
        }

    return of


def _unknown(name: str) -> dict[str, np.ndarray]:
    """Return nan for what is known of data only."""
    return dict.fromkeys(("n_samples", "n_used", "train_counts", "loss", "accuracy"), np.full(1, np.nan))


def _exact(operator: Operator, options: Options) -> bool:
    """Say whether traces are taken without probes; an InputError where they must be and cannot."""
    if options.trace == "probes" or (options.trace == "auto" and operator.exact.cost > options.steps * options.probes):
        return False
    reason = operator.exact.refusal()
    if reason is None:
        return True
    if options.trace == "exact":
        raise InputError(f"{arg('trace', 'exact')} cannot be had: {reason}; {arg('trace', 'probes')} estimates it")
    log.info("the trace is estimated by probes, because %s", reason)
    return False


def _sample_by_sample(objective: Objective, kind: Kind, options: Options) -> bool:
    """Say whether rows and numbers of single samples are taken; an InputError where they must be and cannot."""
    if options.method == "rows" and not kind.has_rows:
        others = ", ".join(name for name, other in KINDS.items() if other.has_rows)
        raise InputError(f"{arg('method', 'rows')}: the {kind.name} has no rows; {others} have")
    by_rows = options.method != "lanczos" and kind.has_rows
    if not (by_rows or options.sampling_errors):
        return False
    reason = of_samples.refusal(objective, kind)
    n_classes, products = len(objective.samples.class_names), options.steps * options.probes
    if reason is None and options.method != "rows" and n_classes > products:
        reason = f"{n_classes} backward passes are more than {products} products"
    if reason is None:
        return True
    if options.method == "rows":
        raise InputError(f"{arg('method', 'rows')} cannot be had: {reason}; {arg('method', 'lanczos')} takes products")
    log.info("there are no rows and no errors over samples, because %s", reason)
    return False


def _by_rows(told: of_samples.Samples, kept: of_samples.Kept, options: Options, of_part: dict[str, Any]) -> Spectrum:
    """Turn the rows of one part into a result with one part."""
    tol = DEFAULT_TOL if options.tol is None else options.tol
    if options.sampling_errors:
        of_part |= of_samples.statistics(told, *of_samples.along_rows(told, kept))
    fields = of_samples.by_rows(
        told,
        kept,
        top=options.top,
        vectors=options.vectors,
        tol=tol,
        negative_tol=options.negative_tol,
        probes=options.probes,
    )
    return Spectrum(
        **fields,
        parts=(told.objective.partition.names[told.part],),
        size=told.objective.layout.size,
        operator=told.kind.name,
        symbol=told.kind.symbol,
        tol=tol,
        negative_tol=options.negative_tol,
        **of_part,
    )


def _summary(found: Runs, operator: Operator, options: Options, known: float | None, **about: Any) -> Spectrum:
    """Turn the runs of one part, and its trace if that is known without probes, into a result with one part."""
    nodes, weights = quadrature.nodes_and_weights(found.alpha, found.beta, found.steps)
    lowest = min(found.ritz, key=lambda r: float(r.values[0]))
    highest = found.ritz[found.best]
    mass = quadrature.mean_and_stderr(quadrature.negative_mass(nodes, weights, options.negative_tol))
    share = quadrature.mean_and_stderr(quadrature.negative_curvature(nodes, weights))
    ends = np.array([[abs(r.values[0]), abs(r.values[-1])] for r in found.ritz])
    ratio = quadrature.mean_and_stderr(
        np.divide(ends[:, 0], ends[:, 1], out=np.full(len(ends), np.nan), where=ends[:, 1] > 0)
    )
    trace = found.trace if known is None else (known, 0.0)
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
        parts=operator.parts,
        size=operator.size,
        operator=operator.name,
        symbol=operator.symbol,
        tol=tol,
        negative_tol=options.negative_tol,
        **about,
    )
