"""A basis that is divided among processes, or kept on the host: the same numbers, and the memory that they say."""

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import pytest
import stand_in
import torch

import landscape as ls
from landscape.autodiff import distributed, memory
from landscape.autodiff.distributed import ALONE, Team
from landscape.curvature import extremes, pairs, places, probing, restarted, rows
from landscape.curvature.lanczos import lanczos, probe
from landscape.curvature.matrices import matrix
from landscape.curvature.places import WHOLE, Place, Room
from tests.cases import CASES

SIZE = 157  # which neither 2 nor 3 nor 4 divides
LARGE = (40.0, 25.0, 11.0, -6.0)


def symmetric(seed=0):
    """A few large eigenvalues and a bulk within [-1, 1]."""
    generator = torch.Generator().manual_seed(seed)
    bulk = 2 * torch.rand(SIZE - len(LARGE), generator=generator, dtype=torch.float64) - 1
    Q, _ = torch.linalg.qr(torch.randn(SIZE, SIZE, generator=generator, dtype=torch.float64))
    A = Q @ torch.diag(torch.cat([torch.tensor(LARGE).double(), bulk])) @ Q.T
    return (A + A.T) / 2


@dataclass(frozen=True)
class Threads(Team):
    """Threads in place of processes: each brings its tensor, and all leave with the sum or with all rows."""

    shared: tuple = ()  # a barrier and a list with a place for each

    def _all(self, own):
        barrier, brought = self.shared
        brought[self.rank] = own.clone()
        barrier.wait()
        found = [some.clone() for some in brought]
        barrier.wait()
        return found

    def total(self, part):
        return torch.stack(self._all(part.double())).sum(0).to(part)

    def gathered(self, rows):
        return torch.cat(self._all(rows))

    def agreed(self, numbers):
        return self._all(torch.as_tensor(np.array(numbers)))[0].numpy()

    def least(self, numbers):
        return torch.stack(self._all(torch.as_tensor(np.array(numbers)))).amin(0).numpy()


def in_threads(size, work):
    """Call work(team) in each thread of a team; return what they return."""
    shared = threading.Barrier(size, timeout=30), [None] * size
    with ThreadPoolExecutor(size) as pool:
        return [found.result() for found in [pool.submit(work, Threads(r, size, shared)) for r in range(size)]]


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("rows", [1, 2])
def test_a_divided_basis_gives_the_coefficients_and_the_vectors_of_a_whole_one(size, rows):
    A = symmetric()
    z = torch.stack([probe(SIZE, seed=0, number=k) for k in range(rows)])[None].double()
    options = {"steps": 8, "more": lambda runs: True, "max_steps": 30}  # the basis grows
    whole = lanczos(lambda V: V @ A, z, **options)
    tops = [whole.solved(0, k).vectors[:, -2:] for k in range(rows)]

    def work(team):
        runs = lanczos(lambda V: V @ A, z, **options, team=team, place=Place(team))
        return runs, [runs.ritz_vectors(0, k, top) for k, top in enumerate(tops)]

    found, pieces = zip(*in_threads(size, work), strict=True)
    for k, top in enumerate(tops):
        vectors = torch.cat([of_process[k] for of_process in pieces], dim=1)
        torch.testing.assert_close(vectors, whole.ritz_vectors(0, k, top), rtol=0, atol=1e-11)
    kept = [runs.basis.shape[-1] for runs in found]
    assert sum(kept) == SIZE
    assert max(kept) == -(-SIZE // size)
    torch.testing.assert_close(torch.cat([runs.basis for runs in found], dim=-1), whole.basis, rtol=0, atol=1e-10)
    for runs in found:
        np.testing.assert_allclose(runs.alpha, whole.alpha, rtol=0, atol=1e-12 * 40)
        np.testing.assert_allclose(runs.beta, whole.beta, rtol=0, atol=1e-12 * 40)


def test_divided_restarts_find_the_pairs_of_whole_ones():
    A, start = symmetric(), probe(SIZE, seed=1, number=0).double()
    options = {"wanted": 3, "capacity": 9, "tol": 1e-6, "most": 200}
    whole = restarted.largest(lambda v: A @ v, start, **options)
    found = in_threads(
        3, lambda team: restarted.largest(lambda v: A @ v, start, **options, team=team, place=Place(team))
    )
    assert {one.products for one in found} == {whole.products}
    for one in found:
        np.testing.assert_allclose(one.values[:3], whole.values[:3], rtol=1e-12)
    vectors = torch.cat([one.vectors[:3] for one in found], dim=1)
    torch.testing.assert_close(vectors, whole.vectors[:3], rtol=0, atol=1e-6)
    off = A @ vectors.T - vectors.T * torch.tensor(found[0].values[:3])
    off -= torch.outer(torch.cat([one.next for one in found]), torch.tensor(found[0].remainder[:3]))
    assert off.abs().max() < 1e-11


def same(ours, theirs):
    """Compare the runs of a matrix."""
    for name in ("alpha", "beta", "steps", "norm2", "trace_samples", "trace"):
        np.testing.assert_allclose(getattr(ours, name), getattr(theirs, name), rtol=1e-11, atol=1e-11 * 40)
    same_vectors(ours.extremes[:3], theirs.extremes[:3])


def same_vectors(ours, theirs):
    """Compare unit vectors, whose signs are free."""
    signs = torch.sign((ours * theirs).sum(1, keepdim=True))
    torch.testing.assert_close(signs * ours, theirs, rtol=0, atol=1e-9)


def plan(room, **options):
    given = {"steps": 30, "probes": 2, "seed": 0, "vectors": 2, "trace_tol": 0.9}
    return probing.Plan(**given | options, room=room)


BESIDE = 2 + 14  # whole vectors of each process: those that are asked for, and those of a run
KEPT = 2 * probing.DEFLATED + 2 + 31  # vectors that may be divided: for traces, of probes, of the basis


@pytest.mark.parametrize(
    ("fit", "size", "words"),
    [
        (BESIDE + KEPT, 2, None),
        (BESIDE + KEPT - 1, 2, "divided among 2 processes"),
        (BESIDE + -(-KEPT // 2), 2, "divided among 2 processes"),
        (BESIDE + -(-KEPT // 2) - 1, 2, "not kept"),
        (BESIDE + -(-KEPT // 3), 3, "divided among 3 processes"),
    ],
)
def test_the_first_place_that_has_room_is_taken_and_the_numbers_stay(fit, size, words):
    operator = matrix(symmetric())
    whole = probing.run(operator, plan(None), lambda share: None)
    bounded = probing.run(operator, plan(Room(fit)), lambda share: None)

    def work(team):
        own = replace(operator, team=team)
        return probing.run(own, plan(Room(fit, team=team)), lambda share: None)

    for found in in_threads(size, work):
        if words == "not kept":
            assert found.basis.startswith(words)
            assert abs(found.trace[0] - whole.trace[0]) < 3 * np.hypot(found.trace[1], whole.trace[1])
            np.testing.assert_allclose(found.ritz[0].values[-3:], whole.ritz[0].values[-3:], rtol=1e-4)
            # The vectors of the restarted run are divided: there is room for more of them than for one process.
            numbers = [int(runs.basis.split()[-10]) for runs in (found, bounded)]
            assert numbers[0] == min(size * (fit - 8), 48 + 3) > numbers[1] == min(fit - 8, 48 + 3)
            continue
        assert found.basis == words
        same(found, whole)


def test_vectors_that_were_taken_out_stay_out_where_they_are_divided():
    """All eigenvalues are negative: 0, that of the vectors that were taken out, would be the largest."""
    A = symmetric() - 100 * torch.eye(SIZE)
    exact = torch.linalg.eigvalsh(A).numpy()

    def work(team):
        own = replace(matrix(A), team=team)
        return probing.run(own, plan(Room(BESIDE, team=team), steps=60), lambda share: None)

    for found in in_threads(2, work):
        assert found.basis.startswith("not kept")
        for run in found.ritz:
            assert (np.abs(run.values[:, None] - exact).min(axis=1) <= run.residuals).all()


def test_the_ends_of_a_divided_run_are_those_of_a_whole_one():
    operator = matrix(symmetric())

    def ends(own, place):
        found = extremes.ends(own, None, seed=0, tol=1e-3, vectors=2, place=place)
        return found, extremes.trace(own, found, seed=0, distribution="rademacher", tol=0.9)

    whole, trace = ends(operator, WHOLE)
    for found, other in in_threads(2, lambda team: ends(replace(operator, team=team), Place(team))):
        assert found.basis.shape[1] < SIZE
        np.testing.assert_allclose((found.above, found.below), (whole.above, whole.below), rtol=1e-11)
        np.testing.assert_allclose(other, trace, rtol=1e-10)
        same_vectors(found.vectors[:2], whole.vectors[:2])


@pytest.mark.parametrize(
    ("fit", "capacity"),
    [
        (8 + 2 + 120, None),  # of 60 steps, twice where the basis grows; and two vectors that are found
        (8 + 2 + 60, None),
        (8 + 2 + 59, 2 * 59),
        (8 + 2 + 5, 2 * 5),
    ],
)
def test_eigenvectors_are_those_of_a_process_alone_where_another_has_less_memory(fit, capacity, monkeypatch):
    operator, start = matrix(symmetric()), probe(SIZE, seed=0, number=0).double()
    options = {"tol": 1e-6, "steps": 10, "max_steps": 60}
    values, _, vectors = pairs.largest(operator, start, 2, **options)
    mine, places_of = threading.local(), []
    ways = {"lanczos": pairs.lanczos, "restarted": pairs.restarted.largest}

    def way(name, *args, **given):
        places_of.append((given["place"].team.size, given.get("capacity")))
        return ways[name](*args, **given)

    monkeypatch.setattr(memory, "room", lambda device, limit: (1000 if mine.rank else fit) * 8 * SIZE)
    monkeypatch.setattr(pairs, "lanczos", partial(way, "lanczos"))
    monkeypatch.setattr(pairs.restarted, "largest", partial(way, "restarted"))

    def work(team):
        mine.rank = team.rank
        return pairs.largest(replace(operator, team=team), start, 2, **options)

    for found, _, own in in_threads(2, work):
        np.testing.assert_allclose(found, values, rtol=1e-10)
        torch.testing.assert_close(own, vectors, rtol=0, atol=1e-5)
    most = None if capacity is None else min(capacity, 48 + 2)
    assert places_of == [(2 if fit < 130 else 1, most)] * 2


def test_a_device_that_is_too_small_leaves_the_basis_to_the_host(monkeypatch):
    A = symmetric()
    operator = matrix(A)
    whole = probing.run(operator, plan(None), lambda share: None)
    seen = []
    with stand_in.entered():
        there = A.to(stand_in.NAME)
        own = replace(operator, device=torch.device(stand_in.NAME), matvec=lambda V: V @ there)
        monkeypatch.setattr(places, "dots", lambda a, b, real=places.dots: seen.append(a.device.type) or real(a, b))
        found = probing.run(own, plan(Room(BESIDE, on_host=KEPT)), lambda share: None)
        extreme = found.extremes.cpu()
    assert found.basis == "on the host"
    assert "cpu" in seen
    same(replace(found, extremes=extreme), whole)
    with stand_in.entered():
        assert probing.at_a_time(own, plan(Room(BESIDE - 1, on_host=KEPT))) == (0, Place(on_host=True))
        assert probing.at_a_time(own, plan(Room(BESIDE, on_host=KEPT - 1)))[0] == 0


def test_room_is_counted_in_vectors_of_the_device_and_of_the_host(monkeypatch):
    operator = replace(matrix(symmetric()), keeps=1000)
    asked = []
    monkeypatch.setattr(memory, "room", lambda device, limit: asked.append((device.type, limit)) or 1000 + 80 * SIZE)
    assert Room.beside(operator, 7) == Room(10, 0, ALONE)
    assert Room.beside(replace(operator, device=torch.device("meta")), 7) == Room(10, 10, ALONE)
    assert asked == [("cpu", 7), ("meta", 7), ("cpu", None)]
    assert [place.note for place in Room(1, 1, Team(0, 4)).places] == [
        None, "divided among 4 processes", "divided among 4 processes on the host"
    ]  # fmt: skip


@pytest.mark.parametrize("partition", ["all", "class"])  # parts of classes are dealt, unless they need all processes
@pytest.mark.parametrize(("fit", "expected"), [(BESIDE + KEPT, 31 + 30), (BESIDE + KEPT // 2 + 1, 31)])
def test_an_estimate_counts_the_share_of_a_basis_that_would_be_divided(fit, expected, partition, monkeypatch):
    objective = CASES["mlp-tanh"].objective(partition=partition)
    entry = objective.layout.size * 8
    alone = []

    @contextmanager
    def apart():
        alone.append(True)
        try:
            yield
        finally:
            alone.pop()

    monkeypatch.setattr(distributed, "world", lambda: 1 if alone else 2)
    monkeypatch.setattr(distributed, "apart", apart)  # in which steps are timed
    monkeypatch.setattr(distributed, "of_main", lambda value: value)
    monkeypatch.setattr(distributed.Team, "least", lambda team, numbers: numbers)
    monkeypatch.setattr(memory, "room", lambda device, limit: fit * entry)
    monkeypatch.setattr(memory, "peak", lambda: 10**6)
    found = ls.estimate(
        ls.spectrum, objective, steps=30, probes=2, vectors=2, cache_bytes=0, backend="reverse", memory_bytes=1,
        sampling_errors=False,
    )  # fmt: skip
    assert found.memory - 10**6 == expected * entry


def test_rows_are_combined_with_the_factors_of_the_first_process():
    """Another process may find an eigenvector with the other sign: their entries would not fit together."""
    random = np.random.default_rng(0)
    vectors, factors = torch.from_numpy(random.normal(size=(5, SIZE))), random.normal(size=5)
    given = {"sample": np.arange(5), "row": np.zeros(5, int), "sign": np.ones(5), "n": 5, "tau_plus": 0, "tau_minus": 0}

    def work(team):
        own = rows.Stored(**given, vectors=vectors[:, team.share(SIZE)], place=Place(team))
        return own.combined(factors if team.rank == 0 else -factors)

    for found in in_threads(2, work):
        torch.testing.assert_close(found, torch.from_numpy(factors) @ vectors)


def test_ritz_vectors_are_combined_with_the_coefficients_of_the_first_process():
    A = symmetric()
    z = probe(SIZE, seed=0, number=0)[None, None].double()

    def work(team):
        run = lanczos(lambda V: V @ A, z, 20, team=team, place=Place(team))
        y = run.solved(0, 0).vectors[:, -1:]
        return Place(team).whole(run.ritz_vectors(0, 0, y if team.rank == 0 else -y), torch.device("cpu"))[0]

    for v in in_threads(2, work):
        assert float((A @ v - LARGE[0] * v).norm()) < 1e-6
