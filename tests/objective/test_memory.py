"""Where memory runs out the samples at a time are halved, and the numbers stay."""

import contextvars
import dataclasses
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hungry import Hungry, objective
from together import path

import landscape as ls
from landscape.analyses.between import Run
from landscape.autodiff import distributed, memory
from landscape.curvature import products
from landscape.data import datasets
from landscape.errors import RankError, is_of_memory
from landscape.objective import points
from landscape.objective.objective import Objective

ANALYSES = {
    "hessian": lambda o: ls.spectrum(o, steps=3, probes=1, backend="reverse"),
    "rows": lambda o: ls.spectrum(o, operator="ggn", ggn_tol=0),
    "surface": lambda o: ls.surface1d(o, n=3),
    "gradients": lambda o: ls.gradients(o, sampling_errors=True),
    "features": ls.features,
    "sharpness": lambda o: ls.sharpness(o, draws=1, ascent_steps=2),
    "evaluation": lambda o: o.evaluate(),
    "lambda_max": ls.spectrum,
    "overlap": lambda o: ls.spectrum(o, steps=3, probes=1, vectors=1, overlap=True, backend="reverse"),
    "plane": lambda o: ls.surface2d(o, n=3, refine=0.01),
    "batches": lambda o: ls.gradients(o, batches=2, samples_per_batch=5),
    "trajectory": lambda o: ls.trajectory(o, {"run": path(o)}, n=3),
    "distances": lambda o: ls.distances(
        o, [Run(name="run", points=path(o), start=points.origin(o))], source="x", over="all", barrier_points=1
    ),
    "sensitivity": lambda o: ls.sensitivity(o, of="0", n=1, draws=1),
    "series": lambda o: ls.series(ls.surface1d, o, checkpoints_of(o), n=3),
    "monitor": lambda o: watched(o),
}


def checkpoints_of(o):
    """Two checkpoints of a network."""
    folder = Path(tempfile.mkdtemp())
    for k in range(2):
        torch.save({n: t + 0.1 * k for n, t in o.model.state_dict().items()}, folder / f"epoch-{k}.pt")
    return sorted(folder.iterdir())


def watched(o):
    """Return the series of a monitor after one step."""
    optimizer = torch.optim.SGD(o.model.parameters(), lr=0.1)
    monitor = ls.Monitor(o, optimizer, model=o.model, every=1, batch_size=8, backend="reverse")
    monitor.step()
    return monitor.series


def test_after_what_fits_in_no_way_others_take_as_many_samples_as_before():
    subject, tried = objective(100), []

    def in_vain():
        tried.append(subject.batch_size)
        raise MemoryError

    def both():
        with pytest.raises(MemoryError):
            memory.halving(in_vain)
        return subject.batch_size

    assert contextvars.copy_context().run(both) == 8
    assert tried == [8, 4, 2, 1]


@pytest.mark.parametrize("analysis", ANALYSES.values(), ids=ANALYSES)
def test_numbers_are_those_of_enough_memory(analysis, caplog):
    expected, hungry = analysis(objective(100)), objective(4)
    found = contextvars.copy_context().run(analysis, hungry)
    assert "memory has run out" in caplog.text
    assert "4 samples" in caplog.text
    for field in dataclasses.fields(expected):
        a, b = getattr(found, field.name), getattr(expected, field.name)
        assert (a is None) == (b is None)
        if isinstance(b, np.ndarray) and b.dtype.kind == "f":
            size = np.abs(b[np.isfinite(b)]).max(initial=1e-12)
            np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-11 * size, err_msg=field.name)  # float64, other sums
    assert hungry.batch_size == 8  # outside of that run
    if analysis not in (ANALYSES["evaluation"], ANALYSES["monitor"]):  # a monitor may take more at another step
        assert (expected.provenance["batch_size"], found.provenance["batch_size"]) == (8, 4)


def test_a_network_is_loaded_with_memory_for_few_samples(caplog):
    def build():
        samples = datasets.from_dataset((torch.randn(13, 3, dtype=torch.float64), torch.arange(13) % 2))
        model = Hungry().double()
        model.most = 2
        made = Objective.build(model, samples, partition="class", dtype=torch.float64, device="cpu", batch_size=8)
        assert made.batch_size <= 2
        assert np.isfinite(made.evaluate().loss).all()

    contextvars.copy_context().run(build)
    assert "memory has run out" in caplog.text


def test_no_memory_for_one_sample_is_an_error_and_so_is_any_other(caplog):
    def work():
        o = objective(0)
        with pytest.raises(torch.OutOfMemoryError, match="1 samples"):
            o.evaluate()

    contextvars.copy_context().run(work)
    assert [r.getMessage().split(": ")[1].split()[0] for r in caplog.records] == ["4", "2", "1"]
    with pytest.raises(KeyError):
        memory.halving(lambda: {}["a"])


def test_products_keep_their_batches_when_others_become_smaller():
    o = objective(100)
    operator = ls.curvature_operator(o, backend="reverse")
    V = torch.ones(2, 1, operator.size, dtype=torch.float64)
    expected = operator.matvec(V)

    def work():
        memory.halving(lambda: None)
        # private: memory that runs out in the midst of a product
        memory._most.set(3)
        assert o.batch_size == 3
        return operator.matvec(V)

    torch.testing.assert_close(contextvars.copy_context().run(work), expected, rtol=0, atol=0)


def test_a_product_that_took_fewer_samples_is_recorded(monkeypatch):
    real = products.by_reverse

    def scarce(problem, kind, batch, vs):
        if len(batch[1]) > 2:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes")
        return real(problem, kind, batch, vs)

    given = {"steps": 3, "probes": 1, "backend": "reverse"}
    expected = ls.spectrum(objective(100), **given)
    monkeypatch.setattr(products, "by_reverse", scarce)
    found = ls.spectrum(objective(100), **given)
    assert (expected.provenance["batch_size"], found.provenance["batch_size"]) == (8, 2)
    np.testing.assert_allclose(found.alpha, expected.alpha, rtol=1e-9)
    monkeypatch.undo()
    assert ls.spectrum(objective(100), **given).provenance["batch_size"] == 8  # the next run begins anew


@pytest.mark.parametrize("cause", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")])
def test_an_error_that_memory_is_the_cause_of_is_one_too(cause):
    error = ValueError()
    error.__cause__ = cause
    assert is_of_memory(error)
    assert not is_of_memory(ValueError("other"))


def test_no_memory_for_one_sample_in_another_process_is_an_error_too(monkeypatch):
    taken, left = [], [8, 4, 0]

    class WithoutRoom(distributed.Team):
        """Processes of which another one has no memory for a single sample."""

        def least(self, numbers):
            return np.minimum(numbers, left.pop(0))

        def finished(self):
            raise distributed.ScarceElsewhereError

    hungry = objective(100)
    monkeypatch.setattr(distributed, "team", lambda: WithoutRoom(0, 2))
    with pytest.raises(RankError):
        contextvars.copy_context().run(memory.halving, lambda: taken.append(hungry.batch_size))
    assert taken == [8, 4]


@pytest.mark.parametrize("where", ["within", "after"])
def test_an_attempt_within_another_does_not_end_it_early(where):
    hungry, taken = objective(100), []

    def outer():
        taken.append(hungry.batch_size)

        def inner():
            if where == "within" and taken[-1] > 2:
                raise torch.OutOfMemoryError(f"none for {hungry.batch_size} samples beside {taken[-1]}")

        memory.halving(inner)
        if taken[-1] > 2:
            raise torch.OutOfMemoryError
        return taken[-1]

    assert contextvars.copy_context().run(memory.halving, outer) == 2
    assert taken == [8, 4, 2]
