"""The spectrum of each part's curvature: one Lanczos run per probe yields density, extremes, trace and negative mass.

Objective -> operator -> Lanczos runs (probing.py) -> quadrature -> result. A matrix that does not come from a network
enters as an operator. It gives the same kind of result, without what needs data: samples, losses and accuracies.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from landscape.analyses import overlap as overlaps
from landscape.analyses.options import Options, Trace, ggn_tol_for
from landscape.analyses.samples import Method
from landscape.analyses.spectrum_parts import OfObjective, OfOperator, Subject
from landscape.callables import checked
from landscape.curvature.kinds import HESSIAN, Kind, KindName, find
from landscape.curvature.lanczos import Distribution
from landscape.curvature.matrices import matrix
from landscape.curvature.operators import CACHE_BYTES, Backend, refuse_draws
from landscape.errors import InputError, arg
from landscape.objective import jobs
from landscape.objective.objective import Objective
from landscape.results import Spectrum, disk, store
from landscape.results.hdf5 import SIGNATURE
from landscape.results.journal import Journal


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
    top: int | None = None,
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
    ggn_tol: float | None = None,
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
        top: number of the largest eigenvalues to compute. Without the density, take steps until all of them have
            converged. None stores ten Ritz values (fewer where no basis fits into memory), of which only those with a
            small residual are eigenvalues.
        vectors: number of the largest Ritz values to keep with their vectors.
        overlap: also multiply the vectors and the gradient of each part by the matrices of all parts; see overlap.py.
        tol: take steps until the residual of lambda_max is at most this fraction of it. None means 1e-3; with the
            density, None takes `steps` steps and records whether 1e-3 was reached.
        gap: without the density, take steps until, with a probability of 99 %, no eigenvalue exceeds lambda_max by more
            than this fraction of it; `largest_at_most` is the bound that was reached. None means the standard error of
            lambda_max over samples, from 0.05 to 0.3; 0.05 if that is not computed, or with `tol` or `accuracy`.
        max_steps: the largest number of steps for `tol`; None means 48, or 12 times `top` if that is more, or 4 times
            `steps` with the density.
        trace: "exact" (see traces.py) is possible for networks that are piecewise linear in each parameter, and for all
            networks with the other matrices; "probes" estimates it; "sampled" estimates it from gradients of single
            samples, at the cost of one product, and is possible wherever "exact" is; "auto" computes it from rows if
            that is possible: from all of them if there are at most four classes or if they also give all eigenvalues,
            otherwise from the longest ones and an estimate of the others without bias (curvature/tails.py).
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
            rows if they fit into `cache_bytes` and are less work.
        ggn_tol: fraction of the trace that rows may leave out; the error of each eigenvalue is at most what is left
            out. None means 1e-4; with `accuracy`, a twentieth of that.
        sampling_errors: also compute standard errors over samples, from each sample's own trace and curvature.
        backend: of an objective's products: "auto", "reverse" or "linearized"; see `operators.curvature_operator`.
        cache_bytes: memory for values of an objective that are kept between products.
        memory_bytes: bytes that this process may use in all, of the GPU's memory if it computes on one; None means four
            fifths of the free memory. If a Lanczos basis does not fit, processes divide it, or the host keeps it for a
            GPU; see curvature/places.py. If it still does not fit, a restarted run computes the largest eigenvalues,
            and runs without a basis compute the density; see curvature/bounded.py. Then other eigenvectors are not
            available and bounds are wider, and a warning says so. `provenance["basis"]` records any of these. Rows
            that do not fit are replaced by products.
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
        kind = _kind_of(subject, operator, samples=samples, accuracy=accuracy)
        name = kind.name
    else:
        _refuse_options_of_objectives(operator, backend, cache_bytes, samples, accuracy, overlap)
        subject = matrix(subject)
        name, density = subject.name, True if density is None else density
    options = Options(
        operator=name,
        density=density,
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
        ggn_tol=ggn_tol_for(accuracy) if ggn_tol is None else ggn_tol,
        sampling_errors=sampling_errors,
    )
    matrices: Subject
    if isinstance(subject, Objective):
        matrices = OfObjective(
            objective=subject,
            kind=kind,
            options=options,
            backend=backend,
            cache_bytes=cache_bytes,
            memory_bytes=memory_bytes,
            overlap=overlap,
        )
    else:
        matrices = OfOperator(operator=subject, options=options, memory_bytes=memory_bytes, fingerprint=fingerprint)
    _refuse_vectors(options, matrices, overlap=overlap)
    jobs.declare(matrices.plan, out)
    return _stored(matrices, partial(_computed, matrices, progress=progress, finished=finished), out, overwrite)


def _kind_of(
    objective: Objective, operator: KindName | Kind | None, *, samples: int | None, accuracy: float | None
) -> Kind:
    kind = find(HESSIAN.name if operator is None else operator)
    if accuracy is not None and not kind.scales:
        refuse_draws(kind, "accuracy")
    if samples is not None or objective.draws is not None:
        refuse_draws(kind)
    return kind


def _refuse_vectors(options: Options, matrices: Subject, *, overlap: bool) -> None:
    """Refuse more vectors than a run can find, or too few vectors for the overlap."""
    most = options.n_steps if options.has_density else options.most
    if options.vectors > min(most, matrices.size):
        raise InputError(
            f"{arg('vectors')} must be at most {min(most, matrices.size)}, for {most} steps; got {options.vectors}"
        )
    if overlap:
        overlaps.refuse(len(matrices.parts), options.vectors)


def _computed(
    matrices: Subject,
    journal: Journal | None,
    *,
    progress: jobs.Progress | None,
    finished: Callable[[Spectrum], object] | None,
) -> Spectrum:
    job = matrices.job(journal, progress)

    def compute(name: str, report: Callable[[float], None]) -> Spectrum:
        found = job.compute(name, report, None if journal is None else journal.work(name))
        if finished is not None:
            finished(found)
        return found

    found = jobs.run(matrices.parts, compute, journal, progress, costs=job.costs, too_large=job.too_large)
    return job.finish(found)


def _stored(
    matrices: Subject, computed: Callable[[Journal | None], Spectrum], out: jobs.Destination | None, overwrite: bool
) -> Spectrum:
    """Compute the result and store it; finished parts are kept if they can be recognised later."""
    identity = matrices.identity
    if out is None or (identity is None and isinstance(out, Journal)):
        return computed(None)
    if identity is None:
        assert not isinstance(out, Journal)
        disk.refuse_taken(Path(out), overwrite=overwrite, signature=SIGNATURE)
        result = computed(None)
        store.save(out, result, overwrite=overwrite)
        return result
    with jobs.open_journal(out, identity, overwrite=overwrite) as journal:
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
