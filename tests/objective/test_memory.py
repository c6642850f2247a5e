"""Where memory runs out the samples at a time are halved, and the numbers stay."""

import contextvars
import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

import landscape as ls
from landscape.autodiff import memory
from landscape.data import datasets
from landscape.errors import is_of_memory
from landscape.objective.objective import Objective


class Hungry(nn.Module):
    """Has memory for some samples at a time only, once `most` says so."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(3, 4), nn.Linear(4, 2)
        self.most = 100

    def forward(self, x):
        if len(x) > self.most:
            raise torch.OutOfMemoryError(f"no memory for {len(x)} samples")
        return self.last(torch.tanh(self.first(x)))


def objective(most):
    """Two parts of seven and six samples, taken eight at a time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, data = Hungry(), (torch.randn(13, 3, dtype=torch.float64), torch.arange(13) % 2)
    samples = datasets.from_dataset(data)
    found = Objective.build(model, samples, partition="class", dtype=torch.float64, device="cpu", batch_size=8)
    found.model.most = most
    return found


ANALYSES = {
    "hessian": lambda o: ls.spectrum(o, steps=3, probes=1, backend="reverse"),
    "rows": lambda o: ls.spectrum(o, operator="ggn", ggn_tol=0),
    "surface": lambda o: ls.surface1d(o, n=3),
    "gradients": lambda o: ls.gradients(o, sampling_errors=True),
    "features": ls.features,
    "sharpness": lambda o: ls.sharpness(o, draws=1, ascent_steps=2),
    "evaluation": lambda o: o.evaluate(),
}


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
        memory._most.set(3)
        assert o.batch_size == 3
        return operator.matvec(V)

    torch.testing.assert_close(contextvars.copy_context().run(work), expected, rtol=0, atol=0)


@pytest.mark.parametrize("cause", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")])
def test_an_error_that_memory_is_the_cause_of_is_one_too(cause):
    error = ValueError()
    error.__cause__ = cause
    assert is_of_memory(error)
    assert not is_of_memory(ValueError("other"))
