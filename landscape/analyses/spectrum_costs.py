"""The cost of a spectrum: the steps that `spectrum` takes for each part, and their number."""

from collections.abc import Callable, Generator
from dataclasses import replace
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from landscape.analyses import pooled
from landscape.analyses import samples as of_samples
from landscape.analyses.options import Options, Trace, all_rows, sample_by_sample, trace_of, way_of_trace
from landscape.autodiff import distributed
from landscape.autodiff.costs import Known, Work, sizes, warming
from landscape.autodiff.distributed import ALONE, Team
from landscape.curvature import bounded, extremes, probing, rows, traces
from landscape.curvature.algebra import Operator
from landscape.curvature.forms import forms_along
from landscape.curvature.kinds import Kind
from landscape.curvature.lanczos import lanczos, probe
from landscape.curvature.places import Room
from landscape.errors import arg
from landscape.objective import jobs, pilot
from landscape.objective.objective import Objective

_COLUMNS = 2**18  # of the rows whose inner products are timed
_ROWS = 128
_PILOT = 32  # samples of the run that shows how many products are needed


class SpectrumCosts:
    """The steps of a spectrum, each of which is timed on a few samples; a `costs.Plan`."""

    def __init__(
        self,
        objective: Objective,
        kind: Kind,
        options: Options,
        make: Callable[[Objective], Operator],
        cache_bytes: int,
        memory_bytes: int | None,
        *,
        overlap: bool,
    ) -> None:
        """Choose the samples on which steps are timed.

        Args:
            objective: model, loss and data in parts.
            kind: of matrix.
            options: of the spectrum.
            make: traces the products of an objective.
            cache_bytes: for rows.
            memory_bytes: of this process; None for most of what is free.
            overlap: whether vectors are also multiplied by the matrices of other parts.
        """
        self.objective, self.kind, self.options, self.overlap = objective, kind, options, overlap
        self.cache_bytes, self.memory_bytes = cache_bytes, memory_bytes
        self.all = pilot.mean_count(objective), max(map(len, objective.members))
        self.samples, self.most = (min(n, options.samples or n) for n in self.all)
        self.pieces = len(objective.partition)
        self.counts = sizes(self.samples, objective.batch_size, self.most)
        of_all = sizes(self.all[0], objective.batch_size, self.all[1]) if overlap else ()
        self.parts = (*self.counts, *of_all, warming(self.samples), min(_PILOT, self.samples))
        self.small = pilot.few(objective, self.parts)
        self.operator: Callable[[], Operator] = cache(partial(make, self.small))
        self.per_sample: Callable[[int], of_samples.Samples] = cache(self._per_sample)
        self.by_samples = sample_by_sample(self.small, kind, options)
        self.complete = all_rows(self.small, kind, options)
        self.vector = objective.layout.size * objective.dtype.itemsize  # bytes of one

    @property
    def works(self) -> Generator[Work, None, None]:
        """All steps."""
        options = self.options
        yield pilot.evaluation(self.objective)
        if self.by_samples:
            yield self._work("passes for single samples' gradients and curvatures", self._of_samples, 1.0)
        if not self._by_rows:
            yield Work(what="tracing of the product, with its checks", prepare=lambda n: self.operator)
            yield from self._products()
            way = self._way
            if not self.by_samples and way != "probes":
                yield self._work(
                    f"{way} traces",
                    lambda n: partial(trace_of, self.operator(), self._part(n), way, options.seed),
                    1.0,
                    arg("trace", "sampled" if way == "exact" else "probes"),
                )
        if self._pooled:
            yield self._work("passes for the rows of all parts", self._rows_again, 1.0, arg("sampling_errors", False))
            yield Work(
                what="inner products of the rows of all parts",
                prepare=self._tile,
                times=(self._pooled / _ROWS) ** 2 * self.objective.layout.size / self._columns,
            )
        if self.overlap:
            times, halve = (options.vectors + 1) * self.pieces, arg("vectors", options.vectors // 2)
            of_all, most = self.all
            yield replace(self._multiplied("products for the overlap", times, 1, halve), samples=of_all, most=most)

    @property
    def keeps(self) -> int:
        """Bytes of a basis and of rows."""
        rows_and_basis = self._n_rows + self._pooled
        if not self._by_rows:
            rows_and_basis += self._n_basis
        return rows_and_basis * self.vector

    @property
    def disk(self) -> int:
        """Bytes of the result file, and of finished parts beside it."""
        options = self.options
        vectors = 8 * options.vectors * self.objective.layout.size
        runs = 16 * options.n_steps * options.n_probes * options.has_density
        return 2 * (2**13 + self.pieces * (vectors + runs + 100 * self.samples * self.by_samples) + 8 * self._pooled**2)

    @property
    def spare(self) -> str:
        """The option that would save memory."""
        return f"{arg('batch_size')}, {arg('cache_bytes')}"

    @property
    def _n_basis(self) -> int:
        """Number of vectors of a Lanczos basis that this process keeps on the device, counted in whole vectors."""
        options, operator, world = self.options, self.operator(), distributed.world()
        shared = jobs.n_shared(sorted(map(len, self.objective.members), reverse=True), world)
        room = replace(Room.beside(operator, self.memory_bytes), team=Team(0, world) if shared else ALONE)
        place, number = options.place_of_ends(room), 3 * extremes.FIRST
        if place is None:
            block, place = probing.at_a_time(operator, options.plan(room))
            number = block * (options.n_steps + 1) if block else bounded.n_restarted(room.fits(place, bounded.BESIDE))
        return 0 if place.on_host else place.team.largest(number)

    @property
    def _by_rows(self) -> bool:
        return self.by_samples and self.complete and self.options.method != "lanczos" and self._n_rows > 0

    @property
    def _way(self) -> Trace:
        refusal = partial(traces.of_bends, self.small, self.kind) if self.by_samples else None
        return way_of_trace(self.operator(), self.options, refusal)

    def _part(self, n: int) -> str:
        return str(self.parts.index(n))

    def _per_sample(self, part: int) -> of_samples.Samples:
        given: dict[str, Any] = self.options.of_samples | {"cache_bytes": self.cache_bytes, "complete": self.complete}
        return of_samples.samples(self.small, self.kind, part, **given)

    @property
    def _n_rows(self) -> int:
        """Number of rows kept of a part, extrapolated from the few samples; 0 for none or too many."""
        last = len(self.counts) - 1
        kept = self.per_sample(last).kept if self.by_samples else None
        return 0 if kept is None else round(len(kept.rows.sample) * self.samples / self.counts[last])

    def _of_samples(self, n: int) -> Callable[[], object]:
        part = self.parts.index(n)
        top, value = self._sharpest(part) if self.options.sampling_errors else (None, 0.0)

        def once() -> None:
            per_sample = self._per_sample(part)
            if top is None:
                return
            if per_sample.kept is not None and self.complete:
                of_samples.along_rows(per_sample, per_sample.kept)
            else:
                of_samples.along_vector(per_sample, top, value)

        return once

    def _sharpest(self, part: int) -> tuple[Tensor, float]:
        """Return a unit vector that is close to that of lambda_max, and the curvature along it."""
        per_sample = self.per_sample(part)
        if per_sample.guess is None or self.kind.has_rows:
            return self._vector(), 0.0
        top = per_sample.guess / per_sample.guess.norm()
        (curvatures,) = forms_along(self.small, self.kind, [(per_sample.members, top)])
        return top, float(per_sample.lengths.weights @ curvatures)

    def _vector(self) -> Tensor:
        v = probe(self.small.layout.size, seed=0, number=0).to(self.small.device, self.small.dtype)
        unit: Tensor = v / v.norm()
        return unit

    def _products(self) -> Generator[Work, None, None]:
        """Return the products of each part, and the work on their vectors."""
        options, block, times = self.options, 1, self._n_products()
        halve = f"{arg('tol', 0.01)} or {arg('samples', self.samples // 2)}"
        if options.has_density:
            block = 1 if self.operator().cached else options.n_probes
            halve = f"{arg('steps', options.n_steps // 2)} or {arg('probes', options.n_probes // 2)}"
        yield self._multiplied(f"products with the {self.kind.name}", times, block, halve)
        steps = min(options.n_steps if options.has_density else times, self.objective.layout.size)
        start = self._vector()[None, None]
        yield Work(
            what="runs of Lanczos beside their products",
            prepare=lambda n: lambda: lanczos(lambda V: V + 0, start, steps),
            times=times / steps,
            pieces=self.pieces,
        )

    def _n_products(self) -> int:
        """Return the number of products of a part: as requested, or as a run on a few samples needs."""
        options = self.options
        if options.has_density:
            return options.n_steps * options.n_probes
        last = len(self.parts) - 1
        own, most = self.operator()[str(last)], options.max_steps or extremes.MOST
        per_sample = self.per_sample(last) if self.by_samples else None
        guess, error = (None, None) if per_sample is None else (per_sample.guess, per_sample.relative_error)
        given: dict[str, Any] = {"seed": options.seed, "tol": options.residual, "gap": options.gap_for(error)}
        found = extremes.ends(own, guess, **given, vectors=options.vectors, max_products=most)
        of_trace = extremes.TRACE_PROBES if self._way == "probes" else 0
        return len(found.alpha) + of_trace

    def _multiplied(self, what: str, times: float, block: int, halve: str) -> Work:
        def prepare(n: int) -> Callable[[], object]:
            own = self.operator()[self._part(n)]
            vectors = self._vector().expand(1, block, -1)
            return lambda: own.matvec(vectors)

        return self._work(what, prepare, times / block, halve, each=block)

    @property
    def _pooled(self) -> int:
        """Number of rows of all parts that are multiplied with each other; 0 for none or too many."""
        if not (self.by_samples and self.options.sampling_errors):
            return 0
        most = min(pooled.MOST_ROWS, self.cache_bytes // self.vector)
        if not self.complete:
            most = min(most, self.pieces * max(of_samples.DIRECTION_ROWS, self.samples))
        last = len(self.counts) - 1
        scale = self.pieces * self.samples / self.counts[last]
        numbers = [round(scale * len(self.per_sample(last).lengths.longest(tol)[0])) for tol in pooled.LEFT_OUT]
        return next((n for n in numbers if n <= most), 0)

    def _rows_again(self, n: int) -> Callable[[], object]:
        part, factors = self.parts.index(n), self.kind.factors
        lengths = self.per_sample(part).lengths
        most = self._pooled * n / (self.pieces * self.samples)
        tol = next((t for t in pooled.LEFT_OUT if len(lengths.longest(t)[0]) <= most), pooled.LEFT_OUT[-1])
        return lambda: factors is not None and rows.rows(self.small, factors, part, lengths, tol)

    @property
    def _columns(self) -> int:
        return min(self.objective.layout.size, _COLUMNS)

    def _tile(self, n: int) -> Callable[[], object]:
        some = torch.ones(_ROWS, self._columns, dtype=self.small.dtype, device=self.small.device)
        return lambda: rows.products(some, some)

    def _work(
        self,
        what: str,
        prepare: Callable[[int], Callable[[], object]],
        times: float,
        halve: str = "",
        *,
        each: int = 1,
    ) -> Work:
        return Work(
            what=what,
            prepare=prepare,
            times=times,
            each=each,
            pieces=self.pieces,
            samples=self.samples,
            most=self.most,
            batch=self.objective.batch_size,
            halve=halve,
        )


def costs_of_matrices(operator: Operator, options: Options) -> Known:
    """Return the cost of the spectra of any matrices, which is that of their products.

    Args:
        operator: of the matrices.
        options: of the spectrum.

    Returns:
        The plan; if runs stop by themselves, it states the largest cost.
    """
    times = options.n_steps * options.n_probes if options.has_density else options.max_steps or extremes.MOST
    own = operator[operator.parts[0]]
    v = probe(operator.size, seed=0, number=0).to(operator.device, operator.dtype)[None, None]
    work = Work(
        what=f"products with the {operator.name}",
        prepare=lambda n: lambda: own.matvec(v),
        times=times,
        pieces=len(operator.parts),
        halve=arg("steps", options.n_steps // 2),
    )
    keeps = (options.n_steps + 1) * operator.size * operator.dtype.itemsize
    return Known(works=(work,), keeps=keeps, disk=16 * options.vectors * operator.size * len(operator.parts))
