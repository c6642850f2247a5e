"""The cost of a spectrum: the steps that `spectrum` takes for each part, and their number."""

from collections.abc import Callable, Generator
from dataclasses import dataclass, replace
from functools import cache, cached_property, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from landscape.analyses import accuracy, pooled, row_numbers
from landscape.analyses import samples as of_samples
from landscape.analyses.options import (
    Options,
    Trace,
    Way,
    all_rows,
    has_beyond,
    sample_by_sample,
    trace_of,
    way_of_trace,
)  # fmt: skip
from landscape.analyses.room import is_ample, needs_all, room_of, rows_beside
from landscape.analyses.run_costs import Runs, runs_of
from landscape.autodiff import distributed, memory
from landscape.autodiff.costs import Work, sizes, warming
from landscape.autodiff.distributed import ALONE, Team
from landscape.curvature import extremes, inner_products, places, probing, rows, trace_probes, traces
from landscape.curvature.algebra import Operator
from landscape.curvature.forms import forms_along, quadratic_forms
from landscape.curvature.kinds import KINDS, Kind
from landscape.curvature.lanczos import lanczos, probe
from landscape.curvature.places import Place, Room
from landscape.curvature.rows import Lengths
from landscape.errors import InputError, arg
from landscape.objective import jobs, pilot
from landscape.objective.objective import Objective

_COLUMNS = 2**18  # of the rows whose inner products are timed
_ROWS = 128
_FEW = 512  # rows; what follows from the products of fewer takes less time than the rows
_PILOT = 32  # samples of the run that shows how many products are needed
_DRAWN = 2  # pilot draws of each part with an accuracy: one, and one of the number that it asks for


@dataclass(frozen=True)
class _Rows:
    """What later steps need to know of the rows of a part of few samples."""

    number: int | None  # that are kept; None for none
    members: np.ndarray  # positions of the samples
    lengths: Lengths
    guess: Tensor | None  # of the eigenvector of lambda_max
    error: float | None  # of lambda_max over samples, as a fraction of it


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
            cache_bytes: for rows, and for what products keep.
            memory_bytes: of this process; None for most of what is free.
            overlap: whether vectors are also multiplied by the matrices of other parts.
        """
        self.objective, self.kind, self.options, self.overlap = objective, kind, options, overlap
        self.cache_bytes, self.memory_bytes = cache_bytes, memory_bytes
        world, in_order = distributed.world(), sorted(map(len, objective.members), reverse=True)
        self.all_processes, self.is_shared = Team(0, world), jobs.n_shared(in_order, world) > 0  # the largest part
        of_rows = row_numbers.row_bytes(objective.device, cache_bytes, memory_bytes)
        own = np.array([*places.free(objective.device, memory_bytes), of_rows])
        with distributed.together():
            least, most = distributed.team().least(own), -distributed.team().least(-own)
        self.lack, self.row_bytes = (own - least)[:2], int(least[2])  # bytes that another process has less
        self.gain = (most - own)[:2]  # and more
        self.all = pilot.mean_count(objective), max(map(len, objective.members))
        self.samples, self.most = (min(n, options.samples or n) for n in self.all)
        self.pieces = len(objective.partition)
        self.counts = sizes(self.samples, objective.batch_size, self.most)
        of_all = sizes(self.all[0], objective.batch_size, self.all[1]) if overlap else ()
        self.parts = (*self.counts, *of_all, warming(self.samples), min(_PILOT, self.samples))
        self.small = pilot.few(objective, self.parts)
        self.operator: Callable[[], Operator] = cache(partial(make, self.small))
        self.rows: Callable[[int], _Rows] = cache(self._rows)
        self.by_samples = sample_by_sample(self.small, kind, options)
        self.complete = all_rows(self.small, kind, options)
        self.vector = objective.layout.size * objective.dtype.itemsize  # bytes of one
        self.drawn = [n for n in map(len, objective.members) if accuracy.WORTH * n > accuracy.PILOT]
        self.begun = self.after_rows = memory.peak()

    @property
    def works(self) -> Generator[Work, None, None]:
        """All steps."""
        options = self.options
        yield pilot.evaluation(self.objective)
        if self._is_drawn:
            yield Work(
                what="pilot draws for the accuracy",
                prepare=lambda n: partial(self._drawn, n),
                times=_DRAWN,
                pieces=len(self.drawn),
                samples=accuracy.PILOT,
                batch=self.objective.batch_size,
            )
        tracing = Work(what="tracing of the product, with its checks", prepare=lambda n: self.operator, divided=False)
        if not self.complete:
            yield tracing
            _ = self._free  # before there are rows, whose memory would hide that of a product
        if self.by_samples:
            yield self._work("passes for single samples' gradients and curvatures", self._of_samples, 1.0)
        if self._by_rows and self._n_rows > _FEW:
            tiles = (self._n_rows / _ROWS) ** 2 / 2 * self.objective.layout.size / self._columns
            alike: dict[str, Any] = {"pieces": self.pieces, "halve": arg("samples", self.samples // 2)}
            yield Work(what="inner products of the rows of a part", prepare=self._tile, times=tiles, **alike)
            cubes = (self._n_rows / _FEW) ** 3
            yield Work(what="eigenvalues of these", prepare=lambda n: _eigen, times=cubes, divided=False, **alike)
        if not self._by_rows:
            if self.complete:
                yield tracing
            yield from self._products()
            way = self._way
            if not self.by_samples and way != "probes":
                yield self._work(
                    f"{way} traces",
                    lambda n: partial(trace_of, self.operator(), self._part(n), way, options.seed),
                    1.0,
                    arg("trace", "sampled" if way == "exact" else "probes"),
                )
        if self.by_samples and not self._by_rows and has_beyond(self.small, self.kind, options, self._way):
            what = "curvature of the network itself, for single samples"
            yield self._work(what, self._beyond, 1.0, arg("sampling_errors", False))
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
        """Bytes of rows, of a basis, and of what products keep, as far as a few samples have not needed them too."""
        rows, pooled = (min(n * self.row, self.row_bytes) for n in (self._n_rows, self._pooled))
        later = min(pooled, self.row_bytes // 2)
        needed = [self.begun + later + 2 * pooled]
        if self.by_samples:
            timed = (self.rows(len(self.counts) - 1).number or 0) * self.vector
            needed.append(self.after_rows + max(0, 2 * (rows - timed)) + later)  # some rows are copied
        if not self._by_rows:
            of_products = self._kept_by_products(self.team) - self._timed.keeps
            needed.append(self._after_product + rows + later + self._lanczos.kept * self.vector + of_products)
        return max(0, max(needed) - memory.peak())

    @property
    def note(self) -> str:
        """What the estimate cannot know."""
        if not self._is_drawn:
            return ""
        return f"an upper bound: how many samples {arg('accuracy')} draws is known only after a pilot"

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
    def _is_drawn(self) -> bool:
        """Whether an accuracy decides how many samples are drawn, and draws are worth it."""
        return self.options.accuracy is not None and self.by_samples and bool(self.drawn)

    def _drawn(self, n: int) -> object:
        """Measure the rows of a pilot draw."""
        given: dict[str, Any] = {"tol": of_samples.GGN_TOL, "trace_tol": None, "complete": False}
        few = pilot.few(self.objective, [n])
        return accuracy.of_draw(of_samples.samples(few, self.kind, 0, cache_bytes=self.row_bytes, **given))

    @cached_property
    def _timed(self) -> Operator:
        """The operator of the largest part whose products are timed."""
        return self.operator()[self._part(self.counts[-1])]

    @cached_property
    def team(self) -> Team:
        """The processes that compute the largest part together."""
        if self.is_shared:
            return self.all_processes
        if self.all_processes.size == 1 or self.options.method == "rows":
            return ALONE
        size, row_bytes = self.objective.layout.size, self.row_bytes * self.by_samples
        rows = rows_beside(self.options, row_bytes, self.vector, self.most, complete=self.complete)
        if self.memory_bytes is None:
            free = np.array(places.free(self.objective.device, None)) - self.lack
            if is_ample(self.options, size, self.vector, free, self.cache_bytes + rows):
                return ALONE

        def beside(team: Team) -> int:
            return self._kept_by_products(team) + rows // team.size

        share = needs_all(self.options, size, self.vector, self._free, beside, self.all_processes)
        return self.all_processes if share else ALONE

    @property
    def row(self) -> int:
        """Bytes that this process keeps of a row."""
        return self.team.largest(self.objective.layout.size) * self.objective.dtype.itemsize

    @cached_property
    def _free(self) -> np.ndarray:
        """Bytes for vectors on the device and on the host, as `RoomOnce` finds them before the first part."""
        _ = self._after_product  # it shows how much memory a product needs for a moment
        free: np.ndarray = np.array(places.free(self.objective.device, self.memory_bytes)) - self.lack
        return free

    def _keepable(self, team: Team) -> float:
        """Bytes that the products of the largest part would keep without a limit, if those of the timed part do."""
        return self._timed.keeps * team.largest(self.most) / self.counts[-1]

    def _kept_by_products(self, team: Team) -> int:
        return min(self.cache_bytes, int(self._keepable(team)))

    @cached_property
    def _lanczos(self) -> Runs:
        """The Lanczos runs of a part."""
        own = replace(self._timed, cached=self._timed.cached and self._keepable(self.team) <= self.cache_bytes)
        room = self._room(self._free, self.team)
        if self.options.way(room, self.objective.layout.size) is Way.NONE:  # only others have the memory, by themselves
            room = self._room(self._free + self.lack + self.gain, ALONE)
        return runs_of(own, self.options, room, self._of_ends, self._restarted)

    def _room(self, free: np.ndarray, team: Team) -> Room:
        rows = self._n_rows * team.largest(self.objective.layout.size) * self.objective.dtype.itemsize
        return room_of(free - [self._kept_by_products(team) + rows, 0], self.vector, team)

    @cached_property
    def _after_product(self) -> int:
        """The peak of memory after a product, before there is a basis."""
        self._timed.matvec(self._vector()[None, None])
        return memory.peak()

    @property
    def _by_rows(self) -> bool:
        return self.by_samples and self.complete and self.options.method != "lanczos" and self._n_rows > 0

    @property
    def _way(self) -> Trace:
        refusal = partial(traces.of_bends, self.small, self.kind) if self.by_samples else None
        return way_of_trace(self.operator(), self.options, refusal)

    def _part(self, n: int) -> str:
        return str(self.parts.index(n))

    def _per_sample(self, part: int, cache_bytes: int) -> of_samples.Samples:
        given: dict[str, Any] = self.options.of_samples | {"cache_bytes": cache_bytes, "complete": self.complete}
        return of_samples.samples(self.small, self.kind, part, **given)

    @property
    def _n_rows(self) -> int:
        """Number of rows kept of a part, extrapolated from the few samples; 0 for none or too many.

        Raises:
            InputError: there are too many, but the options require rows.
        """
        if not self.by_samples:
            return 0
        last = len(self.counts) - 1
        found, most = self.rows(last).number, self._most_rows
        if found is None and self.options.method == "rows":
            largest = max(range(self.pieces), key=lambda p: len(self.objective.members[p]))
            name = self.objective.partition.names[largest]
            row_numbers.refuse_number(self.objective, name, self.row_bytes, self.cache_bytes)
        if found is None:
            return 0
        number, products = round(found * self.samples / self.counts[last]), self.options.of_samples["products"]
        given = self.objective, self.samples, number, products, self.row_bytes
        if number <= most and (not self.complete or row_numbers.are_worth_it(*given)):
            return number
        return most * (self.options.method == "rows" or not self.complete)

    @property
    def _most_rows(self) -> int:
        """Number of rows of a part at most; all eigenvalues need the columns of one tensor at a time."""
        return row_numbers.most_rows(self.objective, self.row_bytes, stored=not self.complete, team=self.team)

    def _rows(self, part: int) -> _Rows:
        found = self._per_sample(part, self.row_bytes)
        number = None if found.kept is None else len(found.kept.rows.sample)
        self.after_rows = memory.peak()
        return _Rows(number, found.members, found.lengths, found.guess, found.relative_error)

    def _of_samples(self, n: int) -> Callable[[], object]:
        part = self.parts.index(n)
        top, value = self._sharpest(part) if self.options.sampling_errors else (None, 0.0)
        few, rows = self.rows(part).number or 0, self._n_rows
        is_apart = self.complete and few < rows and rows * self.row > self.row_bytes
        # Rows of few samples are computed in as many pieces as all.
        cache_bytes = max(self.row_bytes * few // rows, few * max(self.objective.layout.sizes) * self.vector
                          // self.objective.layout.size) if is_apart else self.row_bytes  # fmt: skip

        def once() -> None:
            per_sample = self._per_sample(part, cache_bytes)
            if top is None:
                return
            if per_sample.kept is not None and self.complete:
                of_samples.along_rows(per_sample, per_sample.kept)
            else:
                in_all = self.samples * self.pieces
                of_samples.along_vector(per_sample, top, value, in_all=in_all)
                for _ in range(self.options.vectors):
                    of_samples.along_vector(per_sample, top, value, folds=False, in_all=in_all)

        return once

    def _beyond(self, n: int) -> Callable[[], object]:
        return partial(
            quadratic_forms, self.small, KINDS["residual"], self.small.members[self.parts.index(n)], self._vector()
        )

    def _sharpest(self, part: int) -> tuple[Tensor, float]:
        """Return a unit vector that is close to that of lambda_max, and the curvature along it."""
        found = self.rows(part)
        if found.guess is None or self.kind.has_rows:
            return self._vector(), 0.0
        top = found.guess / found.guess.norm()
        (curvatures,) = forms_along(self.small, self.kind, [(found.members, top)])
        return top, float(found.lengths.weights @ curvatures)

    def _vector(self) -> Tensor:
        v = probe(self.small.layout.size, seed=0, number=0).to(self.small.device, self.small.dtype)
        unit: Tensor = v / v.norm()
        return unit

    def _products(self) -> Generator[Work, None, None]:
        """Return the products of each part, and the work on their vectors."""
        options, block, runs = self.options, 1, self._lanczos
        halve = f"{arg('tol', 0.01)} or {arg('samples', self.samples // 2)}"
        if options.has_density:
            block = 1 if self.operator().cached else options.n_probes
            halve = f"{arg('steps', options.n_steps // 2)} or {arg('probes', options.n_probes // 2)}"
        times = runs.products + self._n_of_trace
        yield self._multiplied(f"products with the {self.kind.name}", times, block, halve)
        steps = min(runs.steps, self.objective.layout.size)
        start = self._vector()[None, None]
        values = torch.linspace(1, 2, start.shape[-1]).to(start)  # with equal ones a run would end after a step
        yield Work(
            what="runs of Lanczos beside their products",
            prepare=lambda n: lambda: lanczos(lambda V: V * values, start, steps),
            times=runs.products / steps,
            pieces=self.pieces,
        )

    @property
    def _n_of_trace(self) -> int:
        """Number of probes for the trace alone; more are drawn where the pilot asks for more."""
        if self._way != "probes":
            return 0
        pilots = 0 if self.options.of_trace is None else trace_probes.PILOT
        if self.options.place_of_ends(Room(2**62)) is None:
            return max(0, pilots - self.options.n_probes)
        return pilots or extremes.TRACE_PROBES

    def _of_ends(self) -> int:
        """Return the number of products for both ends of a part, as a run on a few samples needs."""
        options, last = self.options, len(self.parts) - 1
        own = self.operator()[str(last)]
        found = self.rows(last) if self.by_samples else None
        guess, error = (None, None) if found is None else (found.guess, found.error)
        given: dict[str, Any] = {"seed": options.seed, "tol": options.residual, "gap": options.gap_for(error)}
        given |= {"sought": options.sought, "max_products": options.most}
        return len(extremes.ends(own, guess, **given).alpha)

    def _restarted(self, plan: probing.Plan, place: Place) -> int:
        """Return the number of products of the restarted run of a part, as a run on a few samples needs."""
        own, room = self.operator()[str(len(self.parts) - 1)], plan.room or Room(0)
        alone, by_itself = replace(place, team=ALONE), replace(plan, room=replace(room, team=ALONE))
        try:
            return probing.deflated(own, by_itself, alone, lambda done: None).pairs.products
        except InputError:  # only several processes together have the memory
            return plan.max_steps or 4 * plan.steps

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
        most = min(pooled.MOST_ROWS, self._most_rows)
        if not self.complete:
            most = min(most, self.pieces * max(of_samples.DIRECTION_ROWS, self.samples))
        last = len(self.counts) - 1
        scale = self.pieces * self.samples / self.counts[last]
        numbers = [round(scale * len(self.rows(last).lengths.longest(tol)[0])) for tol in pooled.LEFT_OUT]
        return next((n for n in numbers if n <= most), 0)

    def _rows_again(self, n: int) -> Callable[[], object]:
        part, factors = self.parts.index(n), self.kind.factors
        lengths = self.rows(part).lengths
        most = self._pooled * n / (self.pieces * self.samples)
        tol = next((t for t in pooled.LEFT_OUT if len(lengths.longest(t)[0]) <= most), pooled.LEFT_OUT[-1])
        return lambda: factors is not None and rows.rows(self.small, factors, part, lengths, tol)

    @property
    def _columns(self) -> int:
        return min(self.objective.layout.size, _COLUMNS)

    def _tile(self, n: int) -> Callable[[], object]:
        some = torch.ones(_ROWS, self._columns, dtype=self.small.dtype, device=self.small.device)
        return lambda: inner_products.products(some, some)

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


def _eigen() -> object:
    """Compute the eigenvectors of a matrix of the products of a few rows."""
    some = np.random.default_rng(0).standard_normal((_FEW, _FEW))
    return np.linalg.eigh(some + some.T)
