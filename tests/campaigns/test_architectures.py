"""Random small architectures x losses x matrices x dtypes, each against a dense matrix of first derivatives alone.

The Hessian acts by central differences of the gradient in float64; the other matrices are made of rows of the Jacobian,
sample by sample. None of them takes a second derivative of PyTorch's. Cases are drawn by hypothesis. In the daily test
a failure is shrunk to the smallest network that fails; the campaign draws each case from its number, and tells all
that fail.

The campaign: LANDSCAPE_ARCHITECTURES=2000 pytest -s -m campaign tests/campaigns/test_architectures.py
LANDSCAPE_FIRST=1000 begins with case 1000.
"""

import os
import time
import traceback
from dataclasses import dataclass

import pytest
import torch
from exact import differences
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

import landscape as ls
from landscape.curvature.kinds import KINDS
from landscape.data import datasets
from landscape.errors import InputError
from landscape.objective.objective import Objective

CAMPAIGN = int(os.environ.get("LANDSCAPE_ARCHITECTURES", "2000"))
FIRST = int(os.environ.get("LANDSCAPE_FIRST", "0"))
COUNTS = (6, 3)
ACTIVATIONS = {
    "tanh": torch.tanh, "relu": F.relu, "relu_": F.relu_, "gelu": F.gelu, "silu": F.silu, "softplus": F.softplus,
    "elu": F.elu, "leaky": F.leaky_relu, "hardtanh": F.hardtanh, "mish": F.mish, "sigmoid": torch.sigmoid,
    "hardswish": F.hardswish, "square": torch.square,
}  # fmt: skip


def squared(z, y):
    return F.mse_loss(z, torch.eye(2, dtype=z.dtype)[y], reduction="none").sum(1)


def one_hot(z, y):
    return (z - F.one_hot(y, 2).to(z.dtype)).square().sum(1)


def hinge(z, y):
    return (1 + z - z.gather(1, y[:, None])).clamp(min=0).square().sum(1)


def masked(z, y):
    values = F.cross_entropy(z, y, reduction="none")
    values[y == 1] = values[y == 1].square()
    return values


def smoothed(z, y):
    return F.cross_entropy(z, y, reduction="none", label_smoothing=0.2)


LOSSES = ("ce", "logit-adjust", "balanced", squared, one_hot, hinge, masked, smoothed)


@dataclass(frozen=True)
class Plan:
    """What a network is made of."""

    inputs: str  # vectors, images, tokens, padded tokens
    blocks: tuple[tuple[str, str, str, str], ...]  # kind, activation, norm, shortcut
    shared: bool  # all blocks have the weights of the first
    pool: str
    head: str


BLOCKS = {
    "vectors": ["linear", "weight norm"],
    "images": ["conv", "depthwise", "dilated"],
    "tokens": ["linear", "attention", "lstm", "gru", "rnn", "conv1d"],
}
NORMS = {"vectors": ["none", "layer", "batch"], "images": ["none", "batch", "group"], "tokens": ["none", "layer"]}


@st.composite
def plans(draw):
    inputs = draw(st.sampled_from(["vectors", "images", "tokens", "padded tokens"]))
    about = inputs.removeprefix("padded ")
    block = st.tuples(
        st.sampled_from(BLOCKS[about]),
        st.sampled_from(list(ACTIVATIONS)),
        st.sampled_from(NORMS[about]),
        st.sampled_from(["none", "plus", "in place", "times"]),
    )
    blocks = draw(st.sampled_from([1, 1, 1, 2, 2, 3]).flatmap(lambda n: st.tuples(*[block] * n)))
    return Plan(
        inputs, blocks, draw(st.booleans()), draw(st.sampled_from(["mean", "max", "last"])),
        draw(st.sampled_from(["plain", "no bias", "tied", "cosine"])),
    )  # fmt: skip


W = 4  # width of all layers


def layer(kind):
    match kind:
        case "weight norm":
            return nn.utils.parametrizations.weight_norm(nn.Linear(W, W))
        case "conv":
            return nn.Conv2d(W, W, 3, padding=1)
        case "depthwise":
            return nn.Conv2d(W, W, 3, padding=1, groups=W, bias=False)
        case "dilated":
            return nn.Conv2d(W, W, 2, dilation=2, padding=1)
        case "attention":
            return nn.MultiheadAttention(W, 2, batch_first=True)
        case "lstm" | "gru" | "rnn":
            return getattr(nn, kind.upper())(W, W, batch_first=True)
        case "conv1d":
            return nn.Conv1d(W, W, 3, padding=1)
    return nn.Linear(W, W)


def norm(kind):
    if kind == "batch":
        return nn.BatchNorm1d(W), nn.BatchNorm2d(W)
    return {"layer": nn.LayerNorm(W), "group": nn.GroupNorm(2, W)}.get(kind, nn.Identity())


class Network(nn.Module):
    def __init__(self, plan):
        super().__init__()
        self.plan = plan
        if "tokens" in plan.inputs:
            self.first = nn.Embedding(6, W, padding_idx=0 if "padded" in plan.inputs else None)
            nn.init.normal_(self.first.weight)
        else:
            self.first = nn.Conv2d(2, W, 3, padding=1) if plan.inputs == "images" else nn.Linear(3, W)
        self.layers, self.norms = nn.ModuleList(), nn.ModuleList()
        for number, (kind, _, normed, _) in enumerate(plan.blocks):
            again = plan.shared and number and kind == plan.blocks[0][0]
            self.layers.append(self.layers[0] if again else layer(kind))
            found = norm(normed)
            self.norms.append(found[plan.inputs == "images"] if isinstance(found, tuple) else found)
        self.out = nn.Linear(W, 2, bias=plan.head == "plain")

    def forward(self, x):
        h = self.first(x)
        for (kind, activation, _, shortcut), one, normed in zip(self.plan.blocks, self.layers, self.norms, strict=True):
            if kind == "attention":
                out, _ = one(h, h, h)
            elif kind in {"lstm", "gru", "rnn"}:
                out, _ = one(h)
            elif kind == "conv1d":
                out = one(h.transpose(1, 2)).transpose(1, 2)
            else:
                out = one(h)
            out = normed(out)
            if shortcut == "plus":
                out = out + h
            elif shortcut == "in place":
                out += h
            elif shortcut == "times":
                out = out * h
            h = ACTIVATIONS[activation](out)
        return self.logits(self.pooled(h))

    def pooled(self, h):
        if h.ndim == 2:
            return h
        h = h.flatten(2) if h.ndim == 4 else h.transpose(1, 2)  # (B, W, places)
        return {"mean": h.mean(2), "max": h.amax(2), "last": h[..., -1]}[self.plan.pool]

    def logits(self, h):
        if self.plan.head == "tied" and self.plan.inputs == "vectors":
            return h @ self.first.weight[:, :2]
        if self.plan.head == "cosine":
            return 3 * F.linear(F.normalize(h, dim=1, eps=1e-3), F.normalize(self.out.weight, dim=1))
        return self.out(h)


def objective_of(plan, loss, dtype, batch_size, seed):
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(seed)
        model = Network(plan)
        for m in model.modules():
            if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d):
                m.running_mean.normal_(0, 0.3)
                m.running_var.uniform_(0.5, 2)
    labels = torch.arange(2).repeat_interleave(torch.tensor(COUNTS))
    n = len(labels)
    if "tokens" in plan.inputs:
        inputs = torch.randint(1, 6, (n, 3), generator=generator)
        if "padded" in plan.inputs:
            inputs[labels == 1, 2:] = 0
    else:
        inputs = torch.randn((n, 2, 3, 3) if plan.inputs == "images" else (n, 3), generator=generator)
    return Objective.build(
        model, datasets.from_dataset((inputs, labels)), loss=loss, partition="class", dtype=dtype, device="cpu",
        batch_size=batch_size,
    )  # fmt: skip


def curved(objective, z, y):
    """Return the second derivative of a sample's loss in its logits, by differences of its gradient."""

    def slope(at):
        at = at.clone().requires_grad_()
        return torch.autograd.grad(objective.loss(at[None], y[None]).sum(), at)[0]

    eye = 1e-6 * torch.eye(len(z), dtype=z.dtype)
    return torch.stack([(slope(z + e) - slope(z - e)) / 2e-6 for e in eye])


def between(objective, kind, z, y):
    p = z.softmax(0)
    return torch.diag(p) - torch.outer(p, p) if kind == "fisher" else curved(objective, z, y)


def squares(objective, part, kind):
    """Return J^T M J from rows of each sample's Jacobian."""
    theta = [t.clone().requires_grad_() for t in objective.theta]
    total = 0
    for x, y in zip(*objective.samples.batch(objective.members[part], objective.device, objective.dtype), strict=True):
        z = objective.logits(theta, x[None])
        if kind == "empirical-fisher":
            values, middle = objective.loss(z, y[None]), torch.ones(1, 1, dtype=z.dtype)
        else:
            values, middle = z[0], between(objective, kind, z[0].detach(), y)
        rows = [torch.autograd.grad(v, theta, retain_graph=True, materialize_grads=True) for v in values]
        J = torch.stack([objective.layout.flat(row) for row in rows])
        total = total + J.T @ middle @ J
    return total / len(objective.members[part])


def acting(objective, part, kind, V):
    """Return what the matrix makes of the columns of V."""
    if kind == "hessian":
        return torch.stack([differences(objective, part, v / v.norm(), step=1e-6) * v.norm() for v in V.T], dim=1)
    if kind == "residual":
        return acting(objective, part, "hessian", V) - squares(objective, part, "ggn") @ V
    return squares(objective, part, kind) @ V


def check(plan, loss, kind, dtype, batch_size, seed, backend):
    """Compare products with four vectors and, where it can be had, the exact trace of each part."""
    try:
        objective = objective_of(plan, loss, dtype, batch_size, seed)
    except InputError as error:
        if "modified by an inplace operation" not in str(error):
            raise
        return  # it could not be trained either
    reference = objective_of(plan, loss, torch.float64, batch_size, seed)
    operator = ls.curvature_operator(objective, kind, backend=backend)
    V = torch.randn(operator.size, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    if "padded" in plan.inputs:
        V[:W] = 0  # the padding's vector is a constant to the gradient
    found = operator.matvec(V.T.to(dtype).expand(2, -1, -1)).mT.double()
    room, floor = (2e-3, 1e-4) if dtype == torch.float32 else (1e-5, 1e-6)
    exact = operator.exact.refusal() is None
    for part, name in enumerate(operator.parts):
        expected = acting(reference, part, kind, V)
        assert (found[part] - expected).norm().item() <= room * expected.norm().item() + floor
        if exact:
            eye = torch.eye(operator.size, dtype=torch.float64)
            eye[:, :W] *= "padded" not in plan.inputs
            matrix = acting(reference, part, kind, eye)
            apart = abs(operator.exact.trace(name) - matrix.trace().item())
            assert apart <= room * matrix.diagonal().abs().sum().item() + floor


ARGUMENTS = {
    "plan": plans(),
    "loss": st.sampled_from(LOSSES),
    "kind": st.sampled_from(list(KINDS)),
    "dtype": st.sampled_from([torch.float64, torch.float32]),
    "batch_size": st.sampled_from([2, 4, 128]),
    "backend": st.sampled_from(["auto", "reverse"]),
    "seed": st.integers(0, 2**16),
}
OPTIONS = {"deadline": None, "database": None, "suppress_health_check": list(HealthCheck), "print_blob": True}


@settings(max_examples=8, derandomize=True, **OPTIONS)
@given(**ARGUMENTS)
def test_matrices_of_some_architectures_are_the_dense_ones(**case):
    check(**case)


def drawn(number):
    """Return the case of a number. hypothesis draws the simplest one first, and after a random one some like it."""
    cases = []

    @seed(number)
    @settings(max_examples=2, phases=[Phase.generate], **OPTIONS)
    @given(**ARGUMENTS)
    def draw(**case):
        cases.append(case)

    draw()
    return cases[-1]


def test_cases_of_other_numbers_are_others():
    assert len({str(drawn(number)) for number in range(10)}) == 10
    assert str(drawn(3)) == str(drawn(3))


@pytest.mark.campaign
@pytest.mark.timeout(0)
def test_matrices_of_many_architectures_are_the_dense_ones(monkeypatch):
    # What PyTorch notes of each value in a graph takes half of the time of a trace, and nothing here reads it.
    monkeypatch.setattr("torch.fx.experimental.proxy_tensor.extract_val", lambda value, include_real=False: None)
    failed = []
    for n, number in enumerate(range(FIRST, FIRST + CAMPAIGN), 1):
        case = drawn(number)
        try:
            check(**case)
        except Exception:  # whatever it is, it is printed, and the campaign fails at its end
            failed.append(number)
            print(f"case {number}: {case}\n{traceback.format_exc(limit=-3)}")
        if n % 10 == 0:
            print(f"cases {FIRST} to {number}: {len(failed)} fail, {time.process_time() / n:.2f} s each", flush=True)
    assert not failed
