"""One traced graph for all weights of a network: the numbers are those of a fresh trace, bit for bit."""

import copy
from dataclasses import replace

import pytest
import torch
from cases import CASES, Case, Residual, mlp
from exact import dense
from torch import nn

import landscape as ls
from landscape.autodiff import piecewise
from landscape.curvature import products, rows, traces
from landscape.curvature.kinds import KINDS
from landscape.curvature.operators import curvature_operator
from landscape.errors import NumericalError
from landscape.networks.copies import alike
from landscape.objective.draws import draw_samples


@pytest.fixture
def traced(monkeypatch):
    """Count the traces."""
    seen = []

    def counted(*given, plain=products.linearize):
        seen.append(len(given))
        return plain(*given)

    monkeypatch.setattr(products, "linearize", counted)
    return seen


def elsewhere(model):
    """Return a copy with other parameters, and with other running statistics."""
    other, generator = copy.deepcopy(model), torch.Generator().manual_seed(7)
    with torch.no_grad():
        for tensor in other.state_dict().values():
            if tensor.is_floating_point():
                tensor.mul_(1 + torch.rand(tensor.shape, generator=generator).to(tensor))
    return other


def products_of(objective, **options):
    operator = curvature_operator(objective, **options)
    v = torch.randn(operator.size, generator=torch.Generator().manual_seed(0)).to(operator.dtype)
    return operator.matvec(v.expand(len(operator.parts), 1, -1))


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.gru, self.fc = nn.Embedding(5, 3), nn.GRU(3, 3, batch_first=True), nn.Linear(3, 3)

    def forward(self, tokens):
        return self.fc(self.gru(self.embed(tokens))[0][:, -1])


@pytest.mark.parametrize(
    ("name", "kind", "dtype"),
    [
        ("residual-gelu", "hessian", torch.float32),
        ("mlp-norm", "hessian", torch.float64),
        ("attention", "ggn", torch.float64),
        ("balanced", "residual", torch.float32),
    ],
)
def test_another_checkpoint_takes_the_graph_and_has_the_numbers_of_a_fresh_one(traced, name, kind, dtype):
    first = CASES[name].objective(dtype=dtype, partition="all")
    before = products_of(first, kind=kind)
    model = elsewhere(first.model)
    shared, fresh = first.at(model), CASES[name].objective(dtype=dtype, partition="all").at(model)
    found = products_of(shared, kind=kind)
    assert len(traced) == 1
    assert torch.equal(found, products_of(fresh, kind=kind, backend="linearized"))
    assert len(traced) == 2
    assert (found - before).norm() > 0.1 * before.norm()
    assert torch.equal(products_of(first, kind=kind), before)


def test_a_copy_of_a_recurrence_is_not_traced_again_and_right(traced):
    first = Case(Recurrent, tokens=True).objective()
    products_of(first)
    other = first.of_network(elsewhere(first.model))  # what `at` cannot tell: a GRU holds its weights in a list too
    found = products_of(other)
    assert len(traced) == 1
    exact = torch.stack([dense(other, part) for part in range(3)])
    v = torch.randn(len(exact[0]), generator=torch.Generator().manual_seed(0)).double()
    assert torch.allclose(found[:, 0], exact @ v, rtol=1e-9, atol=1e-12)


def test_frozen_parameters_are_no_constants_of_the_graph(traced):
    first = CASES["residual-gelu"].objective(params="conv2,fc.bias")
    products_of(first)
    model = elsewhere(first.model)
    found = products_of(first.at(model))
    fresh = CASES["residual-gelu"].objective(params="conv2,fc.bias").at(model)
    assert torch.equal(found, products_of(fresh, backend="linearized"))
    assert len(traced) == 2


class Switch(nn.Module):
    """Looks into a buffer, which no graph can."""

    def __init__(self):
        super().__init__()
        self.body = mlp(nn.Tanh())
        self.register_buffer("temperature", torch.tensor(1.0))

    def forward(self, x):
        return self.body(x) / (self.temperature if self.temperature > 1.5 else 1.0)


def test_a_network_that_looks_into_a_buffer_has_no_graph_and_is_right_at_each_point(traced):
    first = Case(Switch).objective()
    model = copy.deepcopy(first.model)
    model.temperature.fill_(2.0)
    other = first.at(model)
    for objective in (first, other):
        v = torch.randn(objective.layout.size, generator=torch.Generator().manual_seed(0)).double()
        found = products_of(objective)[0, 0]
        assert torch.allclose(found, dense(objective, 0) @ v, rtol=1e-9, atol=1e-12)
    assert len(traced) == 1


def test_another_network_with_the_same_tensors_shares_nothing(traced):
    first = Case(lambda: mlp(nn.Tanh())).objective()
    products_of(first)
    other = first.at(mlp(nn.Softplus(beta=1.001)).double())
    nearly = other.at(mlp(nn.Softplus(beta=1.002)).double())
    products_of(other)
    products_of(nearly)
    assert len(traced) == 3


def test_what_modules_hold_beside_tensors_of_their_own_must_be_equal():
    model = Residual(nn.ReLU())
    assert alike(model, elsewhere(model))
    for change in (
        lambda m: setattr(m.bn1, "eps", 1e-4),
        lambda m: setattr(m, "activation", nn.GELU()),
        lambda m: setattr(m, "mask", torch.ones(2)),
        lambda m: m.fc.register_forward_hook(lambda *_: None),
        lambda m: m.add_module("more", nn.Identity()),
    ):
        other = copy.deepcopy(model)
        change(other)
        assert not alike(model, other)


def test_whether_a_network_is_piecewise_linear_is_found_once(monkeypatch):
    seen, plain = [], piecewise.obstacle
    monkeypatch.setattr(traces, "obstacle", lambda *given: seen.append(1) or plain(*given))
    for name in ("residual-relu", "residual-gelu"):
        objective = CASES[name].objective()
        words = {traces.refusal(o, KINDS["hessian"]) for o in (objective, objective.at(elsewhere(objective.model)))}
        assert len(words) == 1
        assert (words == {None}) is (name == "residual-relu")
    assert len(seen) == 2


def test_whether_there_are_rows_is_found_once_for_a_loss_and_shapes_of_inputs(monkeypatch):
    tried, record = [], rows.recorded
    monkeypatch.setattr(rows, "recorded", lambda *given: tried.append(1) or record(*given))
    objective, factors = CASES["residual-relu"].objective(), KINDS["ggn"].factors
    others = objective, objective.alone("0"), objective.at(elsewhere(objective.model))
    assert [rows.refusal(o, factors) for o in others] == [None] * 3
    assert len(tried) == 1
    assert rows.refusal(draw_samples(objective, 4), factors) is None
    assert len(tried) == 2  # the losses of draws have factors
    assert rows.refusal(objective, KINDS["empirical-fisher"].factors) is None
    assert len(tried) == 3
    other = replace(objective, loss=lambda z, targets: 2 * objective.loss(z, targets))
    assert rows.refusal(other, factors) is None
    assert len(tried) == 4


class Sorted(nn.Module):
    """Sorts its batch on the way, as models that pack sequences do; while the head is zero, nothing shows it."""

    def __init__(self):
        super().__init__()
        self.first, self.middle, self.head = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        nn.init.zeros_(self.head.weight)

    def forward(self, x):
        order = x[:, 0].argsort()
        h = torch.tanh(self.middle(torch.tanh(self.first(x))[order]))
        return self.head(h[order.argsort()])


def test_rows_are_checked_at_each_weights_because_zero_ones_hide_a_wrong_order():
    model = Sorted().double()
    generator = torch.Generator().manual_seed(0)
    data = torch.randn(24, 6, generator=generator, dtype=torch.float64), torch.arange(24) % 3
    objective = ls.load_objective(model=model, dataset=data, partition="all", dtype="float64")
    assert rows.refusal(objective, KINDS["ggn"].factors) is None
    nn.init.normal_(model.head.weight, generator=generator)
    later = objective.at(model)
    assert rows.refusal(later, KINDS["ggn"].factors) is not None
    fresh = ls.load_objective(model=model, dataset=data, partition="all", dtype="float64")
    found, expected = (ls.spectrum(o, operator="ggn") for o in (later, fresh))
    assert found.lambda_max == pytest.approx(expected.lambda_max)


def test_a_reason_against_rows_is_found_again(monkeypatch):
    def fail(*given):
        raise NumericalError("another gradient")

    objective = CASES["residual-relu"].objective()
    with monkeypatch.context() as patched:
        patched.setattr(rows.per_sample, "check", fail)
        assert [rows.refusal(objective, KINDS["ggn"].factors) for _ in range(2)] == ["another gradient"] * 2
    assert rows.refusal(objective, KINDS["ggn"].factors) is None
