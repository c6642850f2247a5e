"""The traced forward pass: the same logits as the plain one, at every point and for every batch size."""

import pytest
import torch
from cases import CASES
from refusals import refused
from torch import nn
from torch.nn import functional as F

from landscape.autodiff.forward import Forward, forward
from landscape.errors import InputError
from landscape.networks import models
from landscape.objective import points
from landscape.objective.evaluator import Evaluator


def prepared(objective, **options):
    evaluator = Evaluator(objective, plain=True)
    state = evaluator._state(evaluator.centre)
    return evaluator._logits, state, forward(evaluator._logits, state, objective.batch(0, 0)[0], **options)


NETWORKS = [name for name in CASES if name != "balanced"]  # whose network another loss has too


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_logits_are_those_of_the_plain_pass_at_other_points_and_batch_sizes(name, dtype):
    objective = CASES[name].objective(dtype=dtype)
    logits, state, fast = prepared(objective)
    assert fast.traced
    moved = tuple(t + 0.1 * torch.rand_like(t, dtype=dtype) for t in state)  # variances of batch norm stay positive
    inputs = torch.cat([x for p in range(3) for x, _ in objective.batches(p)])
    tol = 1e-5 if dtype == torch.float32 else 1e-12
    for weights in (state, moved):
        at = fast.at(weights)
        for n in (1, 2, 11, len(inputs)):
            torch.testing.assert_close(at(inputs[:n]), logits(weights, inputs[:n]), rtol=tol, atol=tol)


def test_inputs_are_not_changed_though_the_model_works_in_place():
    objective = CASES["residual-inplace"].objective(dtype=torch.float32)
    _, state, fast = prepared(objective)
    inputs, _ = objective.batch(0, 0)
    before = inputs.clone()
    at = fast.at(state)
    first = at(inputs).clone()
    assert torch.equal(at(inputs), first)
    assert torch.equal(inputs, before)


class Twice(nn.Module):
    """Its shortcut is read again after the sum: it must not be overwritten."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 3, padding=1)
        self.fc = nn.Linear(4, 3)

    def forward(self, x):
        a = F.relu(self.conv(x))
        b = F.relu(self.conv(a) + a)
        return self.fc(torch.cat([a.mean((2, 3)), b.mean((2, 3))], 1))


def test_a_value_that_is_read_later_is_not_overwritten():
    model = Twice()
    x = torch.randn(5, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    names = [n for n, _ in model.named_parameters()]

    def logits(state, inputs):
        return torch.func.functional_call(model, dict(zip(names, state, strict=True)), (inputs,))

    state = tuple(p.detach() for p in model.parameters())
    fast = forward(logits, state, x)
    assert fast.traced
    torch.testing.assert_close(fast.at(state)(x), logits(state, x))


def test_a_resnet_is_traced_with_its_convolutions_fused():
    model = models.build("resnet20", 10).eval().requires_grad_(False)
    named = {**dict(model.named_parameters()), **{n: b for n, b in model.named_buffers() if b.is_floating_point()}}

    def logits(state, inputs):
        return torch.func.functional_call(model, dict(zip(named, state, strict=True)), (inputs,))

    state = tuple(named.values())
    x = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    fast = forward(logits, state, x)
    targets = [str(n.target) for n in fast._graphs[1].graph.nodes if n.op == "call_function"]
    assert not [t for t in targets if "batch_norm" in t]
    assert targets.count("mkldnn._convolution_pointwise.default") == 10  # with their ReLU: the first, nine of blocks
    assert (
        targets.count("mkldnn._convolution_pointwise_.binary") == 9
    )  # with the sum, behind which a ReLU runs in place
    assert [t for t in targets if t.startswith("aten.relu")] == ["aten.relu_.default"] * 9
    torch.testing.assert_close(fast.at(state)(x), model(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("eps", [1e-12, 1e-5, 1e-3, 0.5, 3.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_batch_norm_is_folded_with_an_eps_of_its_own(eps, dtype):
    """Behind a convolution and behind a linear map, each with another eps; the traced pass is the one that is used."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4, eps=eps), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(4, 5), nn.BatchNorm1d(5, eps=2 * eps), nn.Linear(5, 3),
    ).to(dtype).eval().requires_grad_(False)  # fmt: skip
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d | nn.BatchNorm1d):
            m.running_var.uniform_(0.01, 0.5)
            m.running_mean.normal_()
    named = {**dict(model.named_parameters()), **{n: b for n, b in model.named_buffers() if b.is_floating_point()}}

    def logits(state, inputs):
        return torch.func.functional_call(model, dict(zip(named, state, strict=True)), (inputs,))

    x = torch.randn(7, 2, 5, 5, generator=torch.Generator().manual_seed(1), dtype=dtype)
    state = tuple(named.values())
    fast = forward(logits, state, x[:3])
    assert fast.traced
    assert "batch_norm" not in fast._graphs[0].code + fast._graphs[1].code
    tol = 1e-5 if dtype == torch.float32 else 1e-12
    for weights in (state, tuple(t * 1.3 for t in state)):
        torch.testing.assert_close(fast.at(weights)(x), logits(weights, x), rtol=tol, atol=tol)


def broken_states(objective, **options):
    """Yield the traced and the plain pass with a state or inputs of which one number is not finite."""
    logits, state, fast = prepared(objective, **options)
    assert fast.traced
    inputs = torch.cat([x for p in range(3) for x, _ in objective.batches(p)])
    for bad in (torch.nan, torch.inf, -torch.inf):
        for i, t in enumerate(state):
            broken = t.clone()
            broken.view(-1)[-1] = bad
            yield fast, logits, (*state[:i], broken, *state[i + 1 :]), inputs
        some = inputs.clone()
        some[2].view(-1)[0] = bad
        yield fast, logits, state, some
    buffers = points.buffer_layout(objective.model).names
    negative = [n.endswith("running_var") for n in (*objective.layout.names, *buffers)]
    yield fast, logits, tuple(t - 4 * n for t, n in zip(state, negative, strict=True)), inputs


@pytest.mark.parametrize("name", [n for n in NETWORKS if not CASES[n].tokens])
@pytest.mark.parametrize("kind", ["float32", "bfloat16", "float64"])
def test_what_is_no_number_stays_none(name, kind):
    """Logits are nan where the plain pass has nan, for every weight, statistic and input that is not finite."""
    objective = CASES[name].objective(dtype=torch.float64 if kind == "float64" else torch.float32)
    seen = 0
    for fast, logits, state, inputs in broken_states(objective, bf16=kind == "bfloat16"):
        expected, found = logits(state, inputs), fast.at(state)(inputs)
        assert bool((found.isnan() | ~expected.isnan()).all())
        finite = expected.isfinite().all(1)
        if kind != "bfloat16":
            tol = 1e-5 if kind == "float32" else 1e-12
            torch.testing.assert_close(found[finite], expected[finite], rtol=tol, atol=tol)
        seen += int(expected.isnan().any())
    assert seen >= 3


@pytest.mark.parametrize("size", [1.0, 1e10, 1e25, 1e35])
def test_huge_negative_numbers_are_zero_behind_a_relu(size):
    """The fused ReLU leaves a fraction of 1e-30 of them, of which 1e5 would be left."""
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    names = [n for n, _ in model.requires_grad_(False).named_parameters()]

    def logits(state, inputs):
        return torch.func.functional_call(model, dict(zip(names, state, strict=True)), (inputs,))

    x = torch.randn(5, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    state = tuple(p.detach() for p in model.parameters())
    fast = forward(logits, state, x)
    assert "mkldnn._convolution_pointwise.default" in {str(n.target) for n in fast._graphs[1].graph.nodes}
    there = (state[0], torch.full((4,), -size), *state[2:])
    torch.testing.assert_close(fast.at(there)(x), logits(there, x))


def test_activations_that_overflow_do_not_come_back_as_numbers():
    """Finite weights and inputs, a convolution beyond the range of float32: the next one has inf - inf."""
    encoder = nn.Sequential(nn.Conv2d(1, 4, 3, bias=False), nn.ReLU(), nn.Conv2d(4, 4, 3, bias=False), nn.ReLU())
    model = nn.Sequential(encoder, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)).requires_grad_(False)
    names = [n for n, _ in model.named_parameters()]

    def logits(state, inputs):
        return torch.func.functional_call(model, dict(zip(names, state, strict=True)), (inputs,))

    generator = torch.Generator().manual_seed(0)
    x = torch.randn(5, 1, 6, 6, generator=generator)
    state = tuple(torch.randn(p.shape, generator=generator) for p in model.parameters())
    fast = forward(logits, state, x)
    assert "mkldnn._convolution_pointwise.default" in {str(n.target) for n in fast._graphs[1].graph.nodes}
    large = (state[0] * 1e38, state[1] * 100, *state[2:])
    assert torch.isnan(logits(large, x)).all()
    assert torch.isnan(fast.at(large)(x)).all()


def test_a_fused_operation_that_makes_numbers_of_nan_is_left_out(monkeypatch):
    """As oneDNN's own ReLU does, for which it takes a leaky one without a slope."""
    monkeypatch.setattr("landscape.autodiff.forward._SLOPE", 0.0)
    _, _, fast = prepared(CASES["residual-relu"].objective(dtype=torch.float32))
    assert fast.traced
    assert "mkldnn" not in fast._graphs[1].code


class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 3)

    def forward(self, x):
        return self.fc(x) if x.sum() > 0 else self.fc(-x)


def test_a_model_that_cannot_be_traced_runs_plainly_but_not_in_bfloat16():
    model, x = Branching(), torch.ones(3, 4)

    def logits(state, inputs):
        return torch.func.functional_call(model, {"fc.weight": state[0], "fc.bias": state[1]}, (inputs,))

    state = (model.fc.weight.detach(), model.fc.bias.detach())
    fast = forward(logits, state, x)
    assert not fast.traced
    torch.testing.assert_close(fast.at(state)(-x), model(-x))
    with refused(InputError, "bf16"):
        forward(logits, state, x, bf16=True)


def test_bfloat16_is_near_and_answers_in_the_models_own_type():
    objective = CASES["mlp-tanh"].objective(dtype=torch.float32)
    logits, state, fast = prepared(objective, bf16=True)
    inputs, _ = objective.batch(0, 0)
    found, exact = fast.at(state)(inputs), logits(state, inputs)
    assert found.dtype == torch.float32
    error = (found - exact).abs().max()
    assert 0 < error < 0.05  # bfloat16 has eight bits, the logits are of size one


def test_the_plain_pass_is_the_function_itself():
    assert not Forward(lambda s, x: x, None, torch.float32).traced
