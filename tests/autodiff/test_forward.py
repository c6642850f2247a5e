"""The traced forward pass: the same logits as the plain one, at every point and for every batch size."""

import pytest
import torch
from cases import CASES
from torch import nn
from torch.nn import functional as F

from landscape.autodiff.forward import Forward, forward
from landscape.errors import InputError
from landscape.networks import models
from landscape.objective import points


def prepared(objective, **options):
    evaluator = points.Evaluator(objective, plain=True)
    state = evaluator._state(evaluator.centre)
    return evaluator._logits, state, forward(evaluator._logits, state, objective.batch(0, 0)[0], **options)


@pytest.mark.parametrize("name", CASES)
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
    assert not [t for t in targets if t.startswith("aten.relu")]  # each runs within a convolution
    torch.testing.assert_close(fast.at(state)(x), model(x), rtol=1e-4, atol=1e-4)


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
    with pytest.raises(InputError, match="bf16=True cannot be used here"):
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
