"""The spectrum of each part: of the matrices of an objective, and of any other symmetric matrices.

Operator -> Lanczos runs (probing.py), or one run for both ends (extremes.py) -> quadrature -> fields of the result. For
some matrices, the gradients or curvatures of single samples give the whole spectrum without any product.
"""

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from torch import Tensor

from landscape.analyses import overlap as overlaps
from landscape.analyses import row_numbers, sample_fields, summaries
from landscape.analyses import samples as of_samples
from landscape.analyses.accuracy import draws_of
from landscape.analyses.options import (
    Options,
    Trace,
    Way,
    all_rows,
    has_beyond,
    sample_by_sample,
    trace_of,
    way_of_trace,
)
from landscape.analyses.pooled import row_products, to_keep
from landscape.analyses.room import RoomOnce, is_ample, rows_beside, sizes_of, too_large, trial_of
from landscape.analyses.run_costs import costs_of_matrices
from landscape.analyses.spectrum_costs import SpectrumCosts
from landscape.autodiff import distributed, memory
from landscape.autodiff.costs import Plan
from landscape.curvature import extremes, kept, places, probing, rows, traces
from landscape.curvature.algebra import Operator
from landscape.curvature.kinds import Kind
from landscape.curvature.operators import Backend, curvature_operator
from landscape.curvature.places import Room
from landscape.errors import arg
from landscape.objective import jobs
from landscape.objective.objective import Objective
from landscape.objective.provenance import about_run, fingerprint, provenance
from landscape.results import Spectrum
from landscape.results.journal import Journal

log = logging.getLogger(__name__)

Report: TypeAlias = Callable[[float], None]
"""Called with the fraction of a part that is done."""


class Job(ABC):
    """One computation of the spectra of all parts."""

    costs: Sequence[float] | None
    """Relative costs of the parts; None if unknown."""

    @abstractmethod
    def compute(self, name: str, report: Report, work: Path | None) -> Spectrum:
        """Return the spectrum of a part; its products are kept in the file `work`, if there is one."""

    @abstractmethod
    def too_large(self, names: Sequence[str]) -> jobs.Large:
        """Return the parts for which some processes have too little memory; for `jobs.run`."""

    @abstractmethod
    def finish(self, found: Spectrum) -> Spectrum:
        """Complete the spectra of all parts by what needs several parts at the same time."""


class Subject(ABC):
    """The matrices whose spectra are computed, one for each part."""

    @property
    @abstractmethod
    def parts(self) -> Sequence[str]:
        """Names of the parts."""

    @property
    @abstractmethod
    def size(self) -> int:
        """Number of rows of each matrix."""

    @property
    @abstractmethod
    def identity(self) -> Mapping[str, Any] | None:
        """Fingerprint of an unfinished run; None if it cannot be distinguished from others."""

    @abstractmethod
    def plan(self) -> Plan:
        """Return the steps whose costs are declared."""

    @abstractmethod
    def job(self, journal: Journal | None, progress: jobs.Progress | None) -> Job:
        """Begin the computation."""


# The matrices of an objective -----------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, eq=False)
class OfObjective(Subject):
    """One kind of matrix of each part of an objective."""

    objective: Objective
    kind: Kind
    options: Options
    backend: Backend
    cache_bytes: int
    memory_bytes: int | None
    overlap: bool

    @property
    def parts(self) -> Sequence[str]:
        """Names of the parts."""
        return self.objective.partition.names

    @property
    def size(self) -> int:
        """Number of parameters."""
        return self.objective.layout.size

    @property
    def identity(self) -> Mapping[str, Any]:
        """Fingerprint of an unfinished run."""
        return fingerprint(self.objective, asdict(self.options))

    def operator(self, of: Objective) -> Operator:
        """Return the products for an objective: this one, or one with some of its samples."""
        return curvature_operator(of, self.kind, backend=self.backend, cache_bytes=self.cache_bytes)

    def plan(self) -> Plan:
        """Return the steps whose costs are declared."""
        return SpectrumCosts(
            self.objective,
            self.kind,
            self.options,
            self.operator,
            self.cache_bytes,
            self.memory_bytes,
            overlap=self.overlap,
        )

    def job(self, journal: Journal | None, progress: jobs.Progress | None) -> Job:
        """Begin the computation."""
        return _ObjectiveJob(self, journal, progress)


class _ObjectiveJob(Job):
    """The computation for an objective; products are traced once, when the first unfinished part needs them."""

    def __init__(self, subject: OfObjective, journal: Journal | None, progress: jobs.Progress | None) -> None:
        objective, kind, options = subject.objective, subject.kind, subject.options
        self.subject = subject
        self.objective, self.kind, self.options = objective, kind, options
        self.row_bytes = _least(row_numbers.row_bytes(objective.device, subject.cache_bytes, subject.memory_bytes))
        self.given: dict[str, Any] = {"journal": journal, "progress": progress}
        self.drawn = draws_of(
            objective, kind, samples=options.samples, accuracy=options.accuracy, seed=options.seed,
            cache_bytes=self.row_bytes, **self.given,
        )  # fmt: skip
        self.used = self.drawn.objective
        self.costs = [float(len(own)) for own in self.used.members]
        self.about, self.identity = provenance(objective, asdict(options)), subject.identity
        self.room = RoomOnce(subject.memory_bytes)
        self.lengths: dict[int, rows.Lengths] = {}  # of the rows of the parts that were computed here
        self.own_way = cache(self._own_way)

    @property
    def by_samples(self) -> bool:
        return distributed.team().all(self.own_by_samples)

    @cached_property
    def own_by_samples(self) -> bool:
        return sample_by_sample(self.used, self.kind, self.options)

    @cached_property
    def operator(self) -> Operator:
        return self.subject.operator(self.used)

    @property
    def way_of_trace(self) -> Trace:
        return _agreed(self.own_way(by_samples=self.by_samples))

    @property
    def has_beyond(self) -> bool:
        """Whether the traces of samples' H - G are estimated."""
        return distributed.team().all(has_beyond(self.used, self.kind, self.options, self.way_of_trace))

    def _own_way(self, *, by_samples: bool) -> Trace:
        refusal = partial(traces.of_bends, self.used, self.kind) if by_samples else None  # rows have been tried
        return way_of_trace(self.operator, self.options, refusal)

    def compute(self, name: str, report: Report, work: Path | None) -> Spectrum:
        options, part, shared = self.options, self.objective.part(name), self.used.shared()
        fields = _facts(self.objective, name) | {"n_used": np.array([len(self.used.members[part])])}
        per_sample = None
        if self.by_samples:  # as all that decides on sums, the same in the processes of a team
            per_sample = self._per_sample(shared, part, report)
            if per_sample.complete and per_sample.kept is None:
                self._leave_rows(name, shared, per_sample.needed)
                if options.method == "auto":  # the lengths of rows have been reported
                    report = partial(_goes_on, report)
            self.lengths[part] = per_sample.lengths
            fields |= sample_fields.eigenvalues(per_sample)
            if per_sample.kept is not None and per_sample.complete and options.method != "lanczos":
                return summaries.of_rows(per_sample, per_sample.kept, options, fields | {"provenance": self.about})
        own = kept.kept(self.operator[name].shared(), work, self.identity)
        room = self._room(own, part, per_sample)
        found = _by_products(own, options, self._trace(own, name, per_sample), room, report, per_sample)
        made = found.fields
        if per_sample is not None and options.sampling_errors:
            along_top = of_samples.along_vector(per_sample, found.top, float(made["lambda_max"][0]))
            beyond = of_samples.beyond_traces(per_sample, options.seed) if self.has_beyond else None
            fields |= sample_fields.statistics(per_sample, *along_top, beyond)
            if made["ritz_vectors"] is not None:
                fields |= sample_fields.of_eigenvalues(per_sample, made["ritz_values"], made["ritz_vectors"])
        if options.accuracy is not None:
            if per_sample is not None and self.used.draws is not None and not self.used.draws.whole[part]:
                per_sample = of_samples.with_directions(per_sample, self.row_bytes)  # the pilot's, for its error
            of_rows = self.kind.has_rows or self.way_of_trace != "probes" or not traces.of_bends(self.used, self.kind)
            made |= summaries.errors(made | fields, self.used, part, per_sample, trace_of_rows=of_rows)
        return Spectrum(**made, **fields, provenance=self.about | found.notes)

    def _leave_rows(self, name: str, shared: Objective, needed: int) -> None:
        """Say that a part's matrix has too many rows; raise InputError if the options require them."""
        most, cache_bytes = row_numbers.most_rows(shared, self.row_bytes), self.subject.cache_bytes
        if self.options.method == "rows":
            row_numbers.refuse_number(shared, name, self.row_bytes, cache_bytes)
        if most < min(needed, row_numbers.most_rows(shared, cache_bytes)):
            log.warning(
                "%s: %d rows are needed, and only %d fit into memory: products replace them", name, needed, most
            )

    def _room(self, own: Operator, part: int, per_sample: of_samples.Samples | None) -> Room:
        """Return the room for the vectors of a part; if it is too small, rows kept of other parts leave it."""
        trial = self._trial(own, part)
        room = self.room(own, self._row_bytes(per_sample), trial)
        if self.options.way(room, own.size) is Way.BASIS:
            return room
        self.lengths = {p: found for p, found in self.lengths.items() if p == part}  # the others are measured again
        return self.room(own, self._row_bytes(per_sample), trial)

    def _row_bytes(self, per_sample: of_samples.Samples | None) -> int:
        """Return the memory of the rows of this part, and of those that are kept until all parts are done."""
        own = 0 if per_sample is None or per_sample.kept is None else per_sample.kept.rows.n_bytes
        return own + sum(known.kept.vectors.nbytes for known in self.lengths.values() if known.kept is not None)

    def _trial(self, own: Operator, part: int) -> Operator:
        """Return the operator of a larger part, if its products need more memory for a moment than a part's own."""
        sizes = [len(members) for members in self.used.members]
        trial = trial_of(sizes, self.used.batch_size)
        return own if own.team.size > 1 or sizes[part] >= sizes[trial] else self.operator.restrict([trial])

    def too_large(self, names: Sequence[str]) -> jobs.Large:
        options, used, entry = self.options, self.used, self.used.layout.size * self.used.dtype.itemsize
        if options.method == "rows":
            return jobs.Large()
        row_bytes, complete = self.row_bytes * self.by_samples, all_rows(used, self.kind, options)
        has_vectors = not (row_bytes and complete and options.method == "auto")
        if not has_vectors and distributed.team().size == 1:
            return jobs.Large()

        def rows_of(name: str) -> int:
            n = len(used.members[self.objective.part(name)])
            return rows_beside(options, row_bytes, entry, n, complete=complete)

        if self.subject.memory_bytes is None:  # else only a product shows how much is left
            free = distributed.team().least(np.array(places.free(used.device, None)))
            if is_ample(options, used.layout.size, entry, free, self.subject.cache_bytes + max(map(rows_of, names))):
                return jobs.Large()
        return too_large(names, self.operator, options, self.room, rows_of, has_vectors=has_vectors)

    def _per_sample(self, objective: Objective, part: int, report: Report | None = None) -> of_samples.Samples:
        later = to_keep(self.used, self.row_bytes // 2) if self.options.sampling_errors else None
        pilot, complete = self.drawn.pilots.pop(part, None), all_rows(self.used, self.kind, self.options)
        exact = pilot is not None and pilot.lengths.exact_to(self.options.of_samples["trace_tol"])
        if pilot is not None and exact and objective.team.size == 1 and not complete:
            return of_samples.with_rows_for_later(replace(pilot, objective=objective, part=part), later)
        given: dict[str, Any] = self.options.of_samples | {
            "cache_bytes": self.row_bytes,
            "later": later,
            "report": report if self.options.method != "lanczos" else None,  # whose products have their own
        }
        return of_samples.samples(objective, self.kind, part, **given, complete=complete)

    def _trace(self, own: Operator, name: str, per_sample: of_samples.Samples | None) -> tuple[float, float] | None:
        if per_sample is not None and self.way_of_trace != "probes":
            if self.options.trace == "sampled" and self.objective.known.first("no sampled trace"):
                log.warning(
                    "the trace is that of the rows which errors over samples need: %s draws it as %s says",
                    arg("sampling_errors", False), arg("trace", "sampled"),
                )  # fmt: skip
            return per_sample.trace
        return trace_of(own, name, self.way_of_trace, self.options.seed)

    def finish(self, found: Spectrum) -> Spectrum:
        self.objective.verify()
        self.__dict__.pop("operator", None)  # with what it keeps, before the next stage keeps its own
        with distributed.together():
            by_samples = memory.halving(lambda: self.by_samples)
        if self.kind.factors is not None and self.options.sampling_errors and by_samples:
            found = row_products(
                self.used, found, self.kind.factors, self.lengths, self._lengths, cache_bytes=self.row_bytes,
                **self.given,
            )  # fmt: skip
        if self.subject.overlap:
            found = overlaps.overlap(
                self.objective, found, backend=self.subject.backend, cache_bytes=self.subject.cache_bytes, **self.given
            )
        return found

    def _lengths(self, shared: Objective, part: int) -> rows.Lengths:
        return self._per_sample(shared, part).lengths


def _goes_on(report: Report, done: float) -> None:
    """Report the fraction of what follows where the lengths of rows were only the beginning."""
    report(of_samples.LENGTHS + (1 - of_samples.LENGTHS) * done)


def _least(number: int) -> int:
    """Return the least of the numbers of all processes, so that all keep the same rows."""
    with distributed.together():
        return int(distributed.team().least(np.array([number]))[0])


def _facts(objective: Objective, name: str) -> dict[str, Any]:
    """Return what is known of the data of a part, as fields of the result."""
    evaluation, part = objective.undrawn.evaluation, objective.part(name)
    return {
        "n_samples": np.array([objective.population[part]]),
        "n_used": np.array([len(objective.members[part])]),
        "train_counts": objective.trained[[part]],
        **evaluation.fields(part),
    }


# Any other matrices ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, eq=False)
class OfOperator(Subject):
    """Matrices that are given as an operator."""

    operator: Operator
    options: Options
    memory_bytes: int | None
    fingerprint: str | None  # the user's text for matrices that only have products

    @property
    def parts(self) -> Sequence[str]:
        """Names of the parts."""
        return self.operator.parts

    @property
    def size(self) -> int:
        """Number of rows of each matrix."""
        return self.operator.size

    @cached_property
    def source(self) -> Mapping[str, Any] | None:
        """What distinguishes the operator from others; None if nothing does."""
        return self.operator.source() if self.fingerprint is None else {"fingerprint": self.fingerprint}

    @property
    def identity(self) -> Mapping[str, Any] | None:
        """Fingerprint of an unfinished run; None if it cannot be distinguished from others."""
        if self.source is None:
            return None
        dtype = str(self.operator.dtype).removeprefix("torch.")
        return {**self.source, "dtype": dtype, "parts": list(self.parts), **asdict(self.options)}

    def plan(self) -> Plan:
        """Return the steps whose costs are declared."""
        return costs_of_matrices(self.operator, self.options, self.memory_bytes)

    def job(self, journal: Journal | None, progress: jobs.Progress | None) -> Job:
        """Begin the computation."""
        return _OperatorJob(self)


class _OperatorJob(Job):
    def __init__(self, subject: OfOperator) -> None:
        operator, options = subject.operator, subject.options
        self.operator, self.options, self.identity = operator, options, subject.identity
        self.objective = operator.objective
        self.room = RoomOnce(subject.memory_bytes)
        self.costs = None if self.objective is None else list(map(float, sizes_of(operator.parts, self.objective)))
        if self.objective is None:
            self.about = about_run(asdict(options), operator.device, operator.dtype) | dict(subject.source or {})
        else:
            self.about = provenance(self.objective, asdict(options))

    @cached_property
    def own_way(self) -> Trace:
        return way_of_trace(self.operator, self.options)

    def compute(self, name: str, report: Report, work: Path | None) -> Spectrum:
        own = kept.kept(self.operator[name].shared(), work, self.identity)
        known = trace_of(own, name, _agreed(self.own_way), self.options.seed)
        found = _by_products(own, self.options, known, self.room(own), report)
        facts = _unknown() if self.objective is None else _facts(self.objective, name)
        return Spectrum(**found.fields, **facts, provenance=self.about | found.notes)

    def too_large(self, names: Sequence[str]) -> jobs.Large:
        return too_large(names, self.operator, self.options, self.room)

    def finish(self, found: Spectrum) -> Spectrum:
        return found


def _unknown() -> dict[str, Any]:
    """Return nan for the fields that need data."""
    return dict.fromkeys(("n_samples", "n_used", "train_counts", "loss", "accuracy"), np.full(1, np.nan))


# What both have -------------------------------------------------------------------------------------------------------


def _agreed(own: Trace) -> Trace:
    """Return the way of the trace that is possible in all processes that work together."""
    return own if distributed.team().all(own != "probes") else "probes"


@dataclass(frozen=True, eq=False)
class _Found:
    """The numbers that products with the matrix of a part give."""

    fields: dict[str, Any]
    top: Tensor  # the eigenvector of lambda_max
    notes: dict[str, str]  # for the provenance: where the basis was kept, if not as a whole on the device


def _by_products(
    own: Operator,
    options: Options,
    known: tuple[float, float] | None,
    room: Room,
    report: Report,
    per_sample: of_samples.Samples | None = None,
) -> _Found:
    """Compute the density of a part's spectrum, or its two ends and its trace; `known` is the trace if it is known."""
    place = options.place_of_ends(room)
    if place is None:
        runs = probing.run(own, options.plan(room), report, estimate=known is None)
        top, basis, fields = runs.extremes[0], runs.basis, summaries.of_runs(runs, own, options, known)
        return _Found(fields, top, {} if basis is None else {"basis": basis})
    ends = extremes.ends(
        own,
        None if per_sample is None else per_sample.guess,
        seed=options.seed,
        tol=options.residual,
        gap=options.gap_for(None if per_sample is None else per_sample.relative_error),
        sought=options.sought,
        vectors=options.vectors,
        max_products=options.most,
        report=report,
        place=place,
    )
    trace = known or extremes.trace(
        own, ends, seed=options.seed, distribution=options.distribution, tol=options.of_trace
    )
    fields = summaries.of_ends(ends, own, options, trace, per_sample)
    return _Found(fields, ends.vectors[0], {} if place.note is None else {"basis": place.note})
