"""What a trace refuses."""

import numpy as np
import pytest
import torch
from torch import nn

import landscape as ls
from landscape.autodiff import tracing


class ReadsMemory(nn.Module):
    """Converts a tensor by NumPy, which a trace cannot follow: it has no memory of its own."""

    def __init__(self, way):
        super().__init__()
        self.way, self.fc, self.out = way, nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x):
        return self.out(torch.tanh(self.fc(x)) * float(self.way(self.fc.weight.detach().cpu())))


WAYS = {
    "asarray": lambda t: np.asarray(t).max(),
    "numpy": lambda t: t.numpy().max(),
    "tolist": lambda t: max(max(row) for row in t.tolist()),
    "dlpack": lambda t: np.from_dlpack(t).max(),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_model_that_reads_the_memory_of_a_tensor_is_not_traced(way):
    """The trace read memory of something else, and some processes crashed."""
    torch.manual_seed(0)
    model, x = ReadsMemory(WAYS[way]).double(), torch.randn(20, 4, dtype=torch.float64)
    labels = torch.arange(20) % 3
    with pytest.raises(tracing.NotTraceableError):
        tracing.graph_for_batches(lambda state, x: model(x), (), (x,))
    objective = ls.make_objective(model, (x, labels), device="cpu", dtype="float64")
    found = ls.surface1d(objective, ls.directions.random(objective, 1), x=[0.0, 1.0])
    assert found.provenance["fast_pass"] is False
    assert found.loss[0, 0, 0] == pytest.approx(nn.functional.cross_entropy(model(x), labels).item(), rel=1e-12)
