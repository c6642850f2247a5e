"""What a trace refuses, and what it folds."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

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


def assigned(y, x):
    y[x[:, :1].expand_as(y) > 1] = 0.5


@torch.jit.script
def capped(y: torch.Tensor) -> None:
    y.clamp_(max=0.1)


def doubled(y, x):
    torch.ops.aten._foreach_mul_.Scalar([y], 2.0)


CHANGES = {
    "script": lambda y, x: capped(y),
    "overload": doubled,
    "relu": lambda y, x: F.relu(y, inplace=True),
    "a relu of a view": lambda y, x: F.relu(y[:, :2], True),
    "data": lambda y, x: setattr(y, "data", y.data * 2),
    "clamp": lambda y, x: y.clamp_(max=0.1),
    "sum": lambda y, x: y.add_(x[:, :1]),
    "view": lambda y, x: y.view(-1).clamp_(max=0.1),
    "assignment": assigned,
    "fill": lambda y, x: y.masked_fill_(x[:, :1] > 1, 0.5),
    "input": lambda y, x: x.mul_(2),
    "none": lambda y, x: None,
    "none of it": lambda y, x: (y + 1).relu_(),
    "none, which returns it": lambda y, x: F.dropout(y, 0.5, training=False).contiguous(),
}


class ChangedBeforeTheNorm(nn.Module):
    """Changes what a convolution made, or what it was given, before batch norm."""

    def __init__(self, change):
        super().__init__()
        self.change, self.conv, self.norm = change, nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.norm.running_mean.uniform_(-1, 1)
        self.norm.running_var.uniform_(0.5, 2)

    def forward(self, x):
        x = x + 0
        y = self.conv(x)
        self.change(y, x)
        return self.norm(y).tanh().flatten(1)[:, :5]


@pytest.mark.parametrize("change", CHANGES)
def test_batch_norm_is_folded_only_into_what_nothing_has_changed_since(change):
    torch.manual_seed(0)
    model, x = ChangedBeforeTheNorm(CHANGES[change]).double().eval(), torch.randn(7, 3, 5, 5, dtype=torch.float64)
    state = dict(model.named_parameters())

    def function(state, x):
        return torch.func.functional_call(model, dict(zip(dict(model.named_parameters()), state, strict=True)), (x,))

    given, some = tuple(t.detach() for t in state.values()), x[:1].expand(11, -1, -1, -1)
    for gradients in (True, False):
        with torch.set_grad_enabled(gradients):
            graph = tracing.graph_for_batches(function, given, (x,))
        torch.testing.assert_close(graph(given, some)[:1], model(x[:1]).detach(), rtol=1e-12, atol=1e-12)
        norms = [node for node in graph.graph.nodes if "batch_norm" in str(node.target)]
        assert bool(norms) == (not change.startswith("none"))


def test_one_changed_sample_of_many_is_seen_where_the_compared_ones_are_not_changed():
    """It was one of a part's samples that were not compared, and its error had no message."""
    torch.manual_seed(0)
    x = torch.randn(60, 3, 5, 5, dtype=torch.float64).clamp(max=0.9)
    x[7] += 1
    model = ChangedBeforeTheNorm(CHANGES["fill"]).double()
    objective = ls.make_objective(model, (x, torch.arange(60) % 5), device="cpu", dtype="float64")
    found, expected = (
        ls.spectrum(objective, steps=70, probes=1, backend=backend) for backend in ("linearized", "reverse")
    )
    np.testing.assert_allclose(found.lambda_max, expected.lambda_max, rtol=1e-9)
    assert ls.surface1d(objective, n=1, x=[0.0]).loss.ravel() == pytest.approx(objective.evaluation.loss, rel=1e-12)
