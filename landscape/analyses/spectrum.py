"""The spectrum of each part's curvature: one Lanczos run per probe yields density, extremes, trace and negative mass.

Objective -> operator -> Lanczos runs (probing.py) -> quadrature -> result. A matrix that does not come from a network
enters as an operator. It gives the same kind of result, without what needs data: samples, losses and accuracies.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch

from landscape.analyses import overlap as overlaps
from landscape.analyses import samples as of_samples
from landscape.analyses import summaries
from landscape.analyses.accuracy import draws_of
from landscape.analyses.options import Options, Trace, sample_by_sample, trace_of, way_of_trace
from landscape.analyses.pooled import fitting, row_products
from landscape.analyses.samples import GGN_TOL, Method
from landscape.analyses.spectrum_costs import SpectrumCosts, costs_of_matrices
from landscape.callables import checked
from landscape.curvature import extremes, kept, probing, rows, traces
from landscape.curvature.algebra import Operator
from landscape.curvature.extremes import Ends
from landscape.curvature.kinds import HESSIAN, Kind, KindName, find
from landscape.curvature.lanczos import Distribution
from landscape.curvature.matrices import matrix
from landscape.curvature.operators import CACHE_BYTES, Backend, curvature_operator, refuse_draws
from landscape.curvature.places import Place, Room
from landscape.errors import InputError, arg
from landscape.objective import jobs
from landscape.objective.objective import Objective
from landscape.objective.provenance import about_run, fingerprint, provenance
from landscape.results import Spectrum, disk, store
from landscape.results.hdf5 import SIGNATURE
from landscape.results.journal import Journal

log = logging.getLogger(__name__)

Facts: TypeAlias = Callable[[str], dict[str, Any]]
"""Returns what is known of the data of a part, given its name, as fields of the result."""


@checked
def spectrum(
    subject: Any,
    *,
    operator: KindName | Kind | None = None,
    density: bool | None = None,
    steps: int | None = None,
    probes: int | None = None,
    seed: int = 0,
    distribution: Distribution = "rademacher",
    top: int = 10,
    vectors: int = 0,
    overlap: bool = False,
    tol: float | None = None,
    gap: float | None = None,
    max_steps: int | None = None,
    trace: Trace = "auto",
    trace_tol: float | None = None,
    negative_tol: float = 1e-3,
    samples: int | None = None,
    accuracy: float | None = None,
    method: Method = "auto",
    ggn_tol: float = GGN_TOL,
    sampling_errors: bool = True,
    backend: Backend = "auto",
    cache_bytes: int = CACHE_BYTES,
    memory_bytes: int | None = None,
    out: jobs.Destination | None = None,
    fingerprint: str | None = None,
    overwrite: bool = False,
    progress: jobs.Progress | None = None,
    finished: Callable[[Spectrum], object] | None = None,
) -> Spectrum:
    """Compute the spectrum of a curvature matrix of each part of an objective, or of any symmetric matrices.

    For an objective, about ten products per part give the largest eigenvalue, with a certificate that it is the
    largest; the smallest eigenvalue as far as it has converged by then; and the trace. The density needs `steps` times
    `probes` products.

    Args:
        subject: an objective; an operator, such as `hessian(objective) - ggn(objective)`; or an argument of `matrix`: a
            dense matrix, a stack of matrices, a SciPy operator, or any object with a shape and a product.
        operator: the matrix of an objective, by its name in `curvature.kinds.KINDS`, or your own `Kind`; None means the
            Hessian.
        density: also compute the density by quadrature, and what follows from it, such as the negative mass. None does
            so if `steps` or `probes` is given, and for matrices that do not come from an objective.
        steps: Lanczos steps per probe of the density; 40 for a first look, 80 to 100 for a figure. None means 80.
        probes: runs per part for the density; 4 show how much it depends on the probe. None means 4.
        seed: of the probes; the same seed gives the same probes on any device and for any batch size.
        distribution: "rademacher" or "gaussian" probes.
        top: the smallest number of the largest Ritz values to keep.
        vectors: number of the largest Ritz values to keep with their vectors.
        overlap: also multiply the vectors and the gradient of each part by the matrices of all parts; see overlap.py.
        tol: take steps until the residual of lambda_max is at most this fraction of it. None means 1e-3; with the
            density, None takes `steps` steps and records whether 1e-3 was reached.
        gap: without the density, take steps until, with a probability of 99 %, no eigenvalue exceeds lambda_max by more
            than this fraction of it; `largest_at_most` is the bound that was reached. None means the standard error of
            lambda_max over samples, from 0.05 to 0.3; 0.05 if that is not computed, or with `tol` or `accuracy`.
        max_steps: the largest number of steps for `tol`; None means 48, or 4 times `steps` with the density.
        trace: "exact" (see traces.py) is possible for networks that are piecewise linear in each parameter, and for all
            networks with the other matrices; "probes" estimates it; "sampled" estimates it from gradients of single
            samples, at the cost of one product, and is possible wherever "exact" is; "auto" computes it from rows if
            that is possible and there are no more classes than Lanczos steps, because a class costs about as much as a
            step: exactly or, for the Hessian of more than four classes, the longest rows exactly, and the others
            without bias (curvature/tails.py).
        trace_tol: compute all rows for the trace, or draw probes (one product each), until its standard error is at
            most this fraction of it. None uses the longest rows, the Lanczos probes of the density, or four probes.
        negative_tol: eigenvalues above -negative_tol * max |eigenvalue| do not count as negative mass.
        samples: draw this many samples of each part of an objective in proportion to their uncertainty, with weights;
            see objective/draws.py. The errors over samples are then those of the draw. None uses all samples.
        accuracy: draw as many samples of each part of an objective as are needed for errors of lambda_max and of the
            trace below this fraction of their values; the errors include draws, steps, rows and probes. A part that
            would need most of its samples uses all of them. `lambda_max_error` and `trace_error` are the final errors.
        method: "rows" computes all eigenvalues of an objective's Gauss-Newton or Fisher matrix from gradients of single
            samples, without probes; "lanczos" uses products with probes, as the Hessian always does; "auto" chooses
            rows if there are few enough.
        ggn_tol: fraction of the trace that rows may leave out; the error of each eigenvalue is at most what is left
            out.
        sampling_errors: also compute standard errors over samples, from each sample's own trace and curvature.
        backend: of an objective's products: "auto", "reverse" or "linearized"; see `operators.curvature_operator`.
        cache_bytes: memory for values of an objective that are kept between products.
        memory_bytes: the memory that this process may use in all, on a GPU of that; None means most of the free memory.
            If a Lanczos basis does not fit, processes divide it, or the host keeps it for a GPU; see
            curvature/places.py. If it still does not fit, a restarted run computes the largest eigenvalues, and runs
            without a basis compute the density; see curvature/bounded.py. Then other eigenvectors are not available and
            bounds are wider, and a warning says so. `provenance["basis"]` records any of these.
        out: result file to write; finished parts are kept beside it until it is complete, and a repeated call with
            the same options continues from them.
        fingerprint: text that you change whenever a matrix changes that only has products. Without it, unfinished work
            cannot be recognised, and none is kept. Dense matrices and operators of objectives have their own.
        overwrite: replace an existing result file.
        progress: called with (done, total, text).
        finished: called with the spectrum of each part as soon as it is computed.

    Returns:
        The spectrum of all parts. For matrices without data, the numbers of samples, losses and accuracies are nan.

    Raises:
        InputError: an option out of its range.
        NumericalError: a product is not finite, or the loss has no second derivative.
        StoreError: the result file cannot be written, or an unfinished run beside it had other options.
    """
    if isinstance(subject, Objective):
        kind = find(HESSIAN.name if operator is None else operator)
        if accuracy is not None and not kind.scales:
            refuse_draws(kind, "accuracy")
        if samples is not None or subject.draws is not None:
            refuse_draws(kind)
        name, parts, size = kind.name, subject.partition.names, subject.layout.size
    else:
        _refuse_options_of_objectives(operator, backend, cache_bytes, samples, accuracy, overlap)
        subject = matrix(subject)
        name, parts, size = subject.name, subject.parts, subject.size
    options = Options(
        operator=name,
        density=True if density is None and not isinstance(subject, Objective) else density,
        steps=steps,
        probes=probes,
        seed=seed,
        distribution=distribution,
        top=top,
        vectors=vectors,
        tol=tol,
        gap=gap,
        max_steps=max_steps,
        trace=trace,
        trace_tol=trace_tol,
        negative_tol=negative_tol,
        samples=samples,
        accuracy=accuracy,
        method=method,
        ggn_tol=ggn_tol,
        sampling_errors=sampling_errors,
    )
    most = options.n_steps if options.has_density else max_steps or extremes.MOST
    if vectors > min(most, size):
        raise InputError(f"{arg('vectors')} must be at most {min(most, size)}, for {most} steps; got {vectors}")
    if overlap:
        overlaps.refuse(len(parts), vectors)
    if isinstance(subject, Objective):
        traced = partial(curvature_operator, kind=kind, backend=backend, cache_bytes=cache_bytes)
        plan = partial(SpectrumCosts, subject, kind, options, traced, cache_bytes, memory_bytes, overlap=overlap)
        jobs.declare(plan, out, overwrite=overwrite)
    else:
        jobs.declare(partial(costs_of_matrices, subject, options), out, overwrite=overwrite)
    source = None if isinstance(subject, Objective) else _source(subject, fingerprint)
    known = _known(subject, options, source)

    def computed(journal: Journal | None) -> Spectrum:
        if isinstance(subject, Objective):
            made = _of_objective(subject, kind, options, backend, cache_bytes, memory_bytes, journal, progress)
        else:
            made = _of_operator(subject, options, source, memory_bytes)

        def compute(name: str, report: Callable[[float], None]) -> Spectrum:
            found = made.compute(name, report, None if journal is None else journal.work(name))
            if finished is not None:
                finished(found)
            return found

        found = jobs.run(parts, compute, journal, progress, costs=made.costs)
        if found.steps is not None and not found.steps.any():  # all of it by rows
            nothing: dict[str, Any] = dict.fromkeys(summaries.QUADRATURE)
            found = replace(found, **nothing)
        if isinstance(subject, Objective):
            subject.verify()
        made.forget()  # with what it keeps, before the second stage keeps its own
        found = made.between(found, journal, progress)
        if not overlap:
            return found
        return overlaps.overlap(
            subject, found, backend=backend, cache_bytes=cache_bytes, journal=journal, progress=progress
        )

    if out is None or (known is None and isinstance(out, Journal)):
        return computed(None)
    if known is None:
        assert not isinstance(out, Journal)
        disk.refuse_taken(Path(out), overwrite=overwrite, signature=SIGNATURE)
        result = computed(None)
        store.save(out, result, overwrite=overwrite)
        return result
    with jobs.open_journal(out, known, overwrite=overwrite) as journal:
        result = computed(journal)
        journal.finish(result)
    return result


def _refuse_options_of_objectives(
    operator: object,
    backend: str,
    cache_bytes: int,
    samples: int | None,
    accuracy: float | None,
    overlap: bool,
) -> None:
    given = {
        "operator": operator is not None,
        "backend": backend != "auto",
        "cache_bytes": cache_bytes != CACHE_BYTES,
        "samples": samples is not None,
        "accuracy": accuracy is not None,
        "overlap": overlap,
    }
    for name, asked in given.items():
        if asked:
            raise InputError(f"{arg(name)} needs an objective, but this is the spectrum of a matrix: leave it out")


@dataclass(frozen=True, kw_only=True)
class _Job:
    """The functions that compute the spectrum of a part."""

    compute: Callable[[str, Callable[[float], None], Path | None], Spectrum]  # the last: a file for its products
    costs: Sequence[float] | None
    forget: Callable[[], None]
    between: Callable[[Spectrum, Journal | None, jobs.Progress | None], Spectrum] = lambda found, *_: found


def _of_objective(
    objective: Objective,
    kind: Kind,
    options: Options,
    backend: Backend,
    cache_bytes: int,
    memory_bytes: int | None,
    journal: Journal | None,
    progress: jobs.Progress | None,
) -> _Job:
    facts = _facts(objective)
    sizes: dict[str, Any] = {"samples": options.samples, "accuracy": options.accuracy, "seed": options.seed}
    used = draws_of(objective, kind, **sizes, cache_bytes=cache_bytes, journal=journal, progress=progress)
    about, identity = provenance(objective, asdict(options)), _known(objective, options, None)
    lengths: dict[int, rows.Lengths] = {}
    later = fitting(used, cache_bytes // 2) // len(used.members) if options.sampling_errors else 0

    @cache  # traced once, when the first unfinished part needs it
    def whole() -> tuple[Operator, Trace]:
        operator = curvature_operator(used, kind, backend=backend, cache_bytes=cache_bytes)
        refusal = partial(traces.of_bends, used, kind) if by_samples() else None  # rows have been tried
        return operator, way_of_trace(operator, options, refusal)

    room = _once(memory_bytes)

    @cache
    def by_samples() -> bool:
        return sample_by_sample(used, kind, options)

    def measured(shared: Objective, part: int) -> of_samples.Samples:
        return of_samples.samples(shared, kind, part, **options.of_samples, cache_bytes=cache_bytes, later=later)

    def compute(name: str, report: Callable[[float], None], work: Path | None) -> Spectrum:
        part, per_sample, of_part, shared = objective.part(name), None, facts(name), used.shared()
        of_part |= {"n_used": np.array([len(used.members[part])])}
        if by_samples():
            per_sample = measured(shared, part)
            lengths[part] = per_sample.lengths
            of_part |= of_samples.eigenvalues(per_sample)
            if per_sample.kept is not None and kind.has_rows and options.method != "lanczos":
                return summaries.of_rows(per_sample, per_sample.kept, options, of_part | {"provenance": about})
        operator, way = whole()
        own = kept.kept(operator[name].shared(), work, identity)
        by_rows = way != "probes" and per_sample is not None
        known = per_sample.trace if per_sample and by_rows else trace_of(own, name, way, options.seed)
        place = options.place_of_ends(room(own))
        if place is None:
            found = probing.run(own, options.plan(room(own)), report, estimate=known is None)
            top, basis = found.extremes[0], found.basis
            made = summaries.of_runs(found, own, options, known)
        else:
            ends, trace = _ends(own, options, per_sample, known, report, place)
            top, basis = ends.vectors[0], place.note
            made = summaries.of_ends(ends, own, options, trace, per_sample)
        if per_sample is not None and options.sampling_errors:
            of_part |= of_samples.statistics(
                per_sample, *of_samples.along_vector(per_sample, top, float(made["lambda_max"][0]))
            )
        if options.accuracy is not None:
            made |= summaries.errors(made, per_sample)
        return Spectrum(**made, **of_part, provenance=about | ({} if basis is None else {"basis": basis}))

    def between(found: Spectrum, journal: Journal | None, progress: jobs.Progress | None) -> Spectrum:
        if kind.factors is None or not options.sampling_errors or not by_samples():
            return found

        def again(shared: Objective, part: int) -> rows.Lengths:
            return measured(shared, part).lengths

        given: dict[str, Any] = {"cache_bytes": cache_bytes, "journal": journal, "progress": progress}
        return row_products(used, found, kind.factors, lengths, again, **given)

    costs = [float(len(own)) for own in used.members]
    return _Job(compute=compute, costs=costs, forget=whole.cache_clear, between=between)


def _once(memory_bytes: int | None) -> Callable[[Operator], Room]:
    """Return a function that says how many vectors fit into memory, as it was when it was first asked."""
    known: list[int] = []  # later the basis of another part may lie there, whose place is free again when it is needed

    def room(operator: Operator) -> Room:
        if not known:
            if memory_bytes is not None:  # a product shows how much memory it needs temporarily
                operator.matvec(torch.ones(1, 1, operator.size, dtype=operator.dtype, device=operator.device))
            found = Room.beside(operator, memory_bytes)
            known.extend((found.on_device, found.on_host))
        on_device, on_host = (int(n) for n in operator.team.agreed(np.array(known)))
        return Room(on_device, on_host, operator.team)

    return room


def _source(operator: Operator, given: str | None) -> Mapping[str, Any] | None:
    """Return what distinguishes an operator from others; None if nothing does."""
    return {"fingerprint": given} if given is not None else operator.source()


def _known(
    subject: Objective | Operator, options: Options, source: Mapping[str, Any] | None
) -> Mapping[str, Any] | None:
    """Return the fingerprint of an unfinished run; None if it cannot be distinguished from others."""
    if isinstance(subject, Objective):
        return fingerprint(subject, asdict(options))
    if source is None:
        return None
    dtype = str(subject.dtype).removeprefix("torch.")
    return asdict(options) | {"dtype": dtype, "parts": list(subject.parts), **source}


def _of_operator(
    operator: Operator, options: Options, source: Mapping[str, Any] | None, memory_bytes: int | None
) -> _Job:
    room = _once(memory_bytes)
    way = cache(lambda: way_of_trace(operator, options))
    objective = operator.objective
    facts: Facts = _unknown if objective is None else _facts(objective)
    if objective is None:
        about = about_run(asdict(options), operator.device, operator.dtype) | dict(source or {})
    else:
        about = provenance(objective, asdict(options))
    identity = _known(operator, options, source)

    def compute(name: str, report: Callable[[float], None], work: Path | None) -> Spectrum:
        own = kept.kept(operator[name].shared(), work, identity)
        known = trace_of(own, name, way(), options.seed)
        place = options.place_of_ends(room(own))
        if place is None:
            runs = probing.run(own, options.plan(room(own)), report, estimate=known is None)
            made, basis = summaries.of_runs(runs, own, options, known), runs.basis
        else:
            ends, trace = _ends(own, options, None, known, report, place)
            made, basis = summaries.of_ends(ends, own, options, trace, None), place.note
        return Spectrum(**made, **facts(name), provenance=about | ({} if basis is None else {"basis": basis}))

    costs = None if objective is None else [float(len(own)) for own in objective.members]
    return _Job(compute=compute, costs=costs, forget=way.cache_clear)


def _ends(
    operator: Operator,
    options: Options,
    per_sample: of_samples.Samples | None,
    known: tuple[float, float] | None,
    report: Callable[[float], None],
    place: Place,
) -> tuple[Ends, tuple[float, float]]:
    """Return the two ends of a part's spectrum, and its trace with the standard error, exact or from probes."""
    found = extremes.ends(
        operator,
        None if per_sample is None else per_sample.guess,
        seed=options.seed,
        tol=options.residual,
        gap=options.gap_for(None if per_sample is None else per_sample.relative_error),
        vectors=options.vectors,
        max_products=options.max_steps or extremes.MOST,
        report=report,
        place=place,
    )
    if known is not None:
        return found, known
    drawn: dict[str, Any] = {"seed": options.seed, "distribution": options.distribution, "tol": options.of_trace}
    return found, extremes.trace(operator, found, **drawn)


def _facts(objective: Objective) -> Facts:
    evaluation = objective.undrawn.evaluation

    def of(name: str) -> dict[str, Any]:
        part = objective.part(name)
        return {
            "n_samples": np.array([objective.population[part]]),
            "n_used": np.array([len(objective.members[part])]),
            "train_counts": objective.trained[[part]],
            "loss": evaluation.loss[[part]],
            "accuracy": None if evaluation.accuracy is None else evaluation.accuracy[[part]],
            **evaluation.predicted(part),
        }

    return of


def _unknown(name: str) -> dict[str, Any]:
    """Return nan for the fields that need data."""
    return dict.fromkeys(("n_samples", "n_used", "train_counts", "loss", "accuracy"), np.full(1, np.nan))
