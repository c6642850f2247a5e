"""Traces without probes, against dense matrices."""

from functools import partial

import pytest
import torch
from cases import CASES, Case, Residual, concave, mlp
from exact import dense
from refusals import refused
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F

import landscape as ls
from landscape.autodiff import piecewise
from landscape.curvature import traces
from landscape.curvature.kinds import KINDS
from landscape.errors import InputError
from landscape.networks import models

RELU = ("mlp-relu", "residual-relu", "residual-inplace")
FIRST = ("ggn", "fisher", "empirical-fisher")


@pytest.mark.parametrize("name", RELU)
@pytest.mark.parametrize("loss", ["ce", "logit-adjust", concave])
def test_the_hessians_trace_of_a_network_of_relus_is_exact(name, loss):
    objective = Case(CASES[name].make, loss=loss).objective(weight_decay=0.01)
    assert traces.refusal(objective, KINDS["hessian"]) is None
    for part in range(3):
        expected = dense(objective, part).trace() + 0.01 * objective.layout.size
        assert traces.trace(objective, KINDS["hessian"], part) == pytest.approx(expected.item(), rel=1e-9)


@pytest.mark.parametrize("kind", FIRST)
@pytest.mark.parametrize("name", ["mlp-tanh", "residual-gelu", "residual-inplace", "features", "balanced"])
def test_the_other_matrices_have_exact_traces_for_any_activation(name, kind):
    objective = CASES[name].objective()
    assert traces.refusal(objective, KINDS[kind]) is None
    for part in range(3):
        expected = dense(objective, part, kind).trace().item()
        assert traces.trace(objective, KINDS[kind], part) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("kind", ["hessian", "residual"])
@pytest.mark.parametrize("name", ["mlp-tanh", "residual-gelu", "attention", "mlp-norm"])
def test_a_network_with_smooth_activations_is_not_taken_for_piecewise_linear(name, kind):
    objective = CASES[name].objective()
    assert "not known to be piecewise linear" in traces.refusal(objective, KINDS[kind])


def test_chosen_parameters_alone_count_and_stay_without_gradients():
    objective = CASES["residual-relu"].objective(params="conv2,fc.bias")
    expected = dense(objective, 0).trace().item()
    assert traces.trace(objective, KINDS["hessian"], 0) == pytest.approx(expected, rel=1e-9)
    assert not any(p.requires_grad for p in objective.model.parameters())


class Shared(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.out = nn.Linear(18, 18), nn.Linear(18, 3)

    def forward(self, x):
        return self.out(torch.relu(self.inner(torch.relu(self.inner(x.flatten(1))))))


class Squares(nn.Module):
    def __init__(self):
        super().__init__()
        self.out = nn.Linear(18, 3)

    def forward(self, x):
        z = self.out(x.flatten(1))
        return z * z


class Divides(nn.Module):
    def __init__(self):
        super().__init__()
        self.out = nn.Linear(18, 3)

    def forward(self, x):
        return x.flatten(1)[:, :3] / (2 + self.out.bias) + self.out(x.flatten(1))


class NormedByItself(nn.Module):
    """One parameter makes the inputs of a batch norm and is its factor."""

    def __init__(self):
        super().__init__()
        self.weight, self.out = nn.Parameter(torch.full((18,), 2.0)), nn.Linear(18, 3)

    def forward(self, x):
        zeros = torch.zeros_like(self.weight)
        return self.out(F.batch_norm(x.flatten(1) * self.weight, zeros, zeros + 1, self.weight))


class Changes(nn.Module):
    """Two layers whose results meet in place, as in the residual blocks of torchvision and timm."""

    def __init__(self, meet):
        super().__init__()
        self.first, self.second, self.out = nn.Linear(18, 4), nn.Linear(4, 4), nn.Linear(4, 3)
        self.meet = meet

    def forward(self, x):
        identity = F.relu_(self.first(x.flatten(1)))
        return self.out(F.relu_(self.meet(self.second(identity), identity)))


def adds(out, identity):
    out += identity
    return out


def adds_a_slice(out, identity):
    out[:, 1:] += identity[:, :-1]
    return out


def replaces_a_column(out, identity):
    out[:, 0] = identity[:, 3]
    return out


IN_PLACE = [
    (adds, True),
    (lambda out, identity: out.add_(identity, alpha=0.5), True),
    (lambda out, identity: out.sub_(identity), True),
    (lambda out, identity: identity.clone().add_(out).div_(2), True),
    (lambda out, identity: out.clamp_(min=-1) + identity, True),
    (adds_a_slice, True),
    (replaces_a_column, True),
    (lambda out, identity: out.mul_(out), False),
    (lambda out, identity: out.tanh_(), False),
    (lambda out, identity: out.addcmul_(out, identity), False),
]


NETWORKS = [
    *((partial(Changes, meet), expected) for meet, expected in IN_PLACE),
    (partial(mlp, nn.ReLU()), True),
    (partial(mlp, nn.LeakyReLU()), True),
    (partial(Residual, nn.Hardtanh()), True),
    (lambda: nn.Sequential(nn.Conv2d(2, 3, 2), nn.MaxPool2d(2), nn.AdaptiveAvgPool2d(1), nn.Flatten()), True),
    (Shared, False),
    (Squares, False),
    (Divides, False),
    (NormedByItself, False),
    (lambda: nn.Sequential(nn.Flatten(), nn.Linear(18, 5), nn.LayerNorm(5), nn.ReLU(), nn.Linear(5, 3)), False),
]


@pytest.mark.parametrize(("make", "expected"), NETWORKS)
def test_what_counts_as_piecewise_linear_has_logits_without_second_derivatives_on_the_diagonal(make, expected):
    """The diagonal itself, by two backward passes, which no kink disturbs, is zero where the answer is yes."""
    torch.manual_seed(0)
    model = make().double().eval()
    names = [n for n, _ in model.named_parameters()]
    theta = [p.detach() for p in model.parameters()]
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(3, 2, 3, 3, dtype=torch.float64, generator=generator)

    def logits(theta, x):
        return functional_call(model, dict(zip(names, theta, strict=True)), (x,))

    assert (piecewise.obstacle(logits, theta, x) is None) is expected
    weights = torch.randn(logits(theta, x).shape, dtype=torch.float64, generator=generator)
    sizes = [t.numel() for t in theta]

    def weighted(flat):
        return (weights * logits([f.view_as(t) for f, t in zip(flat.split(sizes), theta, strict=True)], x)).sum()

    # Some changes in place make a backward pass impossible, and slices that change cannot be made functional.
    plain = weighted if expected else torch.func.functionalize(weighted)
    diagonal = torch.autograd.functional.hessian(plain, torch.cat([t.reshape(-1) for t in theta])).diagonal()
    assert (diagonal.abs().max().item() < 1e-12) is expected


@pytest.mark.parametrize("meet", [meet for meet, expected in IN_PLACE if expected])
def test_what_is_changed_in_place_keeps_the_exact_trace(meet):
    objective = Case(partial(Changes, meet)).objective()
    assert traces.refusal(objective, KINDS["hessian"]) is None
    for part in range(3):
        expected = dense(objective, part).trace().item()
        assert traces.trace(objective, KINDS["hessian"], part) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: mlp(nn.GELU()), "gelu in 2 (GELU)"),
        (partial(Residual, nn.Tanh()), "tanh in activation (Tanh)"),
        (partial(Changes, lambda out, identity: out.tanh_() + identity), "tanh in Changes"),
        (Squares, "mul in Squares"),
    ],
)
def test_the_operation_that_keeps_the_trace_from_being_exact_is_named_with_its_place(make, words):
    objective = Case(make).objective()
    assert traces.refusal(objective, KINDS["hessian"]).endswith(words)
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in objective.model.modules())


@pytest.mark.parametrize("name", ["resnet20", "resnet50", "small-resnet"])
def test_the_networks_of_the_toolkit_are_piecewise_linear_without_the_cosine_classifier(name):
    for cosine in (False, True)[: 1 + (name == "small-resnet")]:  # one classifier is that of all networks
        model = models.build(name, 4, in_channels=3, cosine=cosine).eval()
        names = [n for n, _ in model.named_parameters()]

        def logits(theta, x, model=model, names=names):
            return functional_call(model, dict(zip(names, theta, strict=True)), (x,))

        theta = [p.detach() for p in model.parameters()]
        assert (piecewise.obstacle(logits, theta, torch.randn(2, 3, 32, 32)) is None) is not cosine


def test_a_spectrum_takes_the_exact_trace_where_it_can_and_says_so():
    objective = CASES["residual-relu"].objective()
    found = ls.spectrum(objective, steps=8, probes=2, trace_tol=0.01, backend="reverse")
    for part in range(3):
        assert found.trace[part] == pytest.approx(dense(objective, part).trace().item(), rel=1e-9)
    assert found.trace_stderr.tolist() == [0, 0, 0]
    assert found.trace_samples.shape[1] == 2  # none was drawn for the trace alone
    estimated = ls.spectrum(objective, steps=8, probes=2, trace="probes", backend="reverse", sampling_errors=False)
    assert (estimated.trace_stderr > 0).all()


def test_many_classes_and_few_steps_leave_the_trace_to_the_probes():
    objective = CASES["residual-relu"].objective()
    assert (ls.spectrum(objective, steps=1, probes=2, sampling_errors=False).trace_stderr > 0).any()
    assert (
        ls.spectrum(objective, steps=1, probes=2).trace_stderr == 0
    ).all()  # from rows that errors over samples need


def test_an_exact_trace_that_cannot_be_had_is_refused():
    with refused(InputError, trace="exact"):
        ls.spectrum(CASES["mlp-tanh"].objective(), steps=4, trace="exact")
    with refused(InputError, trace="often"):
        ls.spectrum(CASES["mlp-tanh"].objective(), steps=4, trace="often")


def test_memory_that_runs_out_says_nothing_about_the_model():
    def outputs(theta, inputs):
        raise torch.OutOfMemoryError("no memory")

    with pytest.raises(torch.OutOfMemoryError):
        piecewise.obstacle(outputs, [torch.ones(2)], torch.ones(3))
