"""Derivatives that are wrong without an error are seen before they become numbers, and right ones are let through."""

import logging
from functools import partial

import numpy as np
import pytest
import torch
from cases import CASES
from hard import Applied, Bag, by_rows, layers, matrix, objective_of, product, relative, some
from refusals import refused
from torch import nn
from torch.nn import functional as F

import landscape as ls
from landscape.autodiff import differentiable
from landscape.curvature import products
from landscape.curvature.checks import fault_of_second_derivative, some_of
from landscape.curvature.kinds import KINDS, Functions
from landscape.curvature.lanczos import lanczos
from landscape.errors import InputError, NumericalError


class KeepsTanh(torch.autograd.Function):
    """Its backward uses an intermediate result, which a second backward takes for constant."""

    @staticmethod
    def forward(ctx, x):
        t = torch.tanh(x)
        ctx.save_for_backward(x, t)
        return x * t

    @staticmethod
    def backward(ctx, g):
        x, t = ctx.saved_tensors
        return g * (t + x * (1 - t * t))


class KeepsInPython(torch.autograd.Function):
    """Its backward uses a tensor that autograd was not told of."""

    @staticmethod
    def forward(ctx, x):
        ctx.x = x.detach()
        return x.square()

    @staticmethod
    def backward(ctx, g):
        return 2 * g * ctx.x


def detached_norm(x):
    return x / x.norm(dim=1, keepdim=True).detach()


def detached_statistics(x):
    centred = x - x.mean(1, keepdim=True).detach()
    return centred / centred.var(1, keepdim=True).detach().add(1e-3).sqrt()


def detached_gate(x):
    return x * torch.sigmoid(x).data


WRONG = {
    "kept": KeepsTanh.apply,
    "in python": KeepsInPython.apply,
    "norm": detached_norm,
    "statistics": detached_statistics,
    "gate": detached_gate,
}


@pytest.mark.parametrize(
    ("name", "kind", "backend", "dtype"),
    [
        *((name, "hessian", "auto", torch.float32) for name in WRONG),
        *((name, "hessian", "reverse", torch.float64) for name in ("kept", "gate")),
        *((name, "residual", "reverse", torch.float32) for name in ("in python", "norm")),
    ],
)
def test_a_second_derivative_that_is_not_the_losss_is_refused(name, kind, backend, dtype):
    objective = objective_of(partial(layers, Applied(WRONG[name])), dtype=dtype)
    with refused(NumericalError, 0):
        product(objective, kind, backend)
    for first, how in (("ggn", backend), ("empirical-fisher", "reverse")):  # one of them traced, if either is
        exact = some(objective) @ by_rows(objective, 0, first)
        assert relative(product(objective, first, how)[0], exact) < 1e-5


def test_a_wrong_second_derivative_is_refused_in_every_product_and_not_only_in_the_first():
    operator = ls.hessian(objective_of(partial(layers, Applied(WRONG["kept"]))))
    v = torch.ones(operator.size, dtype=torch.float64)
    for again in (operator, operator, operator["0"], operator["0"]):
        with refused(NumericalError, 0):
            again @ v


def weighted(z, y):
    """A focal loss whose weights carry no gradient."""
    values = F.cross_entropy(z, y, reduction="none")
    return (1 - torch.exp(-values)).detach().square() * values


def through_function(z, y):
    return F.cross_entropy(KeepsTanh.apply(z), y, reduction="none")


@pytest.mark.parametrize("loss", [weighted, through_function])
@pytest.mark.parametrize("kind", ["hessian", "ggn"])
def test_a_loss_with_a_wrong_second_derivative_is_refused_with_advice_that_works(loss, kind):
    objective = objective_of(partial(layers, nn.Tanh()), loss=loss)
    with refused(NumericalError, "empirical-fisher"):
        product(objective, kind)
    exact = some(objective) @ by_rows(objective, 1, "empirical-fisher")
    assert relative(product(objective, "empirical-fisher")[1], exact) < 1e-12


def test_each_part_is_looked_at_and_none_that_was_not_asked_for():
    """Only the second class has samples that the faulty branch sees."""

    def branch(x):
        return torch.where(x[:, :1] > 5, KeepsTanh.apply(x), x.tanh())

    objective = objective_of(lambda: nn.Sequential(Applied(branch), nn.Linear(3, 2)), shift=10)
    operator = ls.hessian(objective)
    assert torch.isfinite(operator["0"] @ torch.ones(operator.size, dtype=torch.float64)).all()
    inner = objective_of(lambda: nn.Sequential(Far(), nn.Linear(3, 2)), shift=10)
    good, bad = (ls.hessian(inner)[name] for name in ("0", "1"))
    assert torch.isfinite(good @ torch.ones(good.size, dtype=torch.float64)).all()
    with refused(NumericalError, 1):
        bad @ torch.ones(bad.size, dtype=torch.float64)


class Far(nn.Module):
    """Takes another way for samples far away."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(3, 3)

    def forward(self, x):
        h = self.inner(x)
        return torch.where(x[:, :1] > 5, KeepsTanh.apply(h), h.tanh())


class ZeroStart(nn.Module):
    """A branch that begins at zero: half of the units behind it stand exactly at the kink of their ReLU."""

    def __init__(self, last=None):
        super().__init__()
        self.first, self.branch, self.out = nn.Linear(3, 8), nn.Linear(8, 8), nn.Linear(8, 2)
        nn.init.zeros_(self.branch.weight)
        nn.init.zeros_(self.branch.bias)
        self.last = nn.Identity() if last is None else Applied(last)

    def forward(self, x):
        h = F.relu(self.first(x))
        return self.out(self.last(F.relu(h + self.branch(h))))


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_refused_at_kinks_too(name):
    def half(x):
        return x + WRONG[name](x)

    objective = objective_of(partial(ZeroStart, half))
    with pytest.raises(NumericalError, match="second derivative of this model and loss is wrong"):
        product(objective)


def test_what_is_right_is_let_through_behind_kinks_too():
    assert torch.isfinite(product(objective_of(partial(ZeroStart, F.silu)))).all()


class Rough(torch.autograd.Function):
    """The identity, whose gradient changes at random from one point to the next."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.clone()

    @staticmethod
    def backward(ctx, g):
        return g * (1 + 0.1 * torch.cos(1e10 * ctx.saved_tensors[0].detach()))


class Turning(torch.autograd.Function):
    """Half the square of each row's length, with a gradient that turns: the derivative of no function."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.square().sum(1, keepdim=True) / 2

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return g * (x + x.roll(1, dims=1))


def test_where_differences_scatter_everywhere_a_matrix_that_is_not_symmetric_is_refused(caplog):
    def rough(x):
        return Rough.apply(x)

    def turning(x):
        return Turning.apply(Rough.apply(x)).expand(-1, 3)

    with caplog.at_level(logging.INFO, logger="landscape"):
        assert torch.isfinite(matrix(objective_of(partial(layers, Applied(rough))), backend="reverse")).all()
    assert "scatter too much to tell" in caplog.text
    with pytest.raises(NumericalError, match=r"u\.Hv = .*, but v\.Hu = "):
        matrix(objective_of(lambda: nn.Sequential(nn.Linear(3, 3), Applied(turning), nn.Linear(3, 2))))


# What is right is let through -----------------------------------------------------------------------------------------


class InSingle(nn.Module):
    """Computes in float32, whatever it is given."""

    def __init__(self):
        super().__init__()
        self.inner = layers(nn.Tanh())

    def forward(self, x):
        h = x.float() @ self.inner[0].weight.float().T
        return self.inner[4]((h.tanh()).to(x.dtype))


class Frozen(nn.Module):
    """Takes no gradient through its first layer."""

    def __init__(self):
        super().__init__()
        self.first, self.out = nn.Linear(3, 4), layers(nn.Softplus())

    def forward(self, x):
        with torch.no_grad():
            h = self.first(x)[:, :3]
        return self.out(h)


def with_weights(z, y):
    return F.cross_entropy(z, y, weight=torch.tensor([1.0, 3.0]), reduction="none")


def clamped(z, y):
    return F.cross_entropy(z, y, reduction="none").clamp(max=0.5)


def picked(z, y):
    """Linear in the outputs."""
    return z[torch.arange(len(y)), y]


RIGHT = {
    "zero start": ZeroStart,
    "in single": InSingle,
    "frozen": Frozen,
    "relu": partial(layers, nn.ReLU()),
    "hardtanh": partial(layers, nn.Hardtanh()),
    "leaky relu": partial(layers, nn.LeakyReLU()),
    "hardshrink": lambda: nn.Sequential(nn.Linear(3, 2), nn.Hardshrink(0.3)),
}
LOSSES = {"ce": "ce", "clamped": clamped, "with weights": with_weights, "picked": picked}
PAIRS = [
    pytest.param(make, loss, (1.0, 30.0)[(i + j) % 2], id=f"{name}-{of}")
    for i, (name, make) in enumerate(RIGHT.items())
    for j, (of, loss) in enumerate(LOSSES.items())
]
"""Each model with each loss; each of either with inputs of both scales."""


@pytest.mark.parametrize(("make", "loss", "scale"), PAIRS)
def test_kinks_single_precision_and_constants_are_no_faults(make, loss, scale):
    objective = objective_of(make, loss=loss, dtype=torch.float32, scale=scale)
    for kind in ("hessian", "ggn", "residual"):
        if kind == "ggn" and loss is picked:  # zero, and refused
            continue
        assert torch.isfinite(product(objective, kind, "reverse")).all()


def test_a_matrix_that_is_zero_for_every_model_is_refused():
    """By outputs of their own: where cross-entropy is fitted, its curvature is zero at the model's."""
    with pytest.raises(NumericalError, match="second derivative of the loss in the model's outputs is zero"):
        ls.curvature_operator(objective_of(partial(layers, nn.ReLU()), loss=picked), "ggn")
    ls.curvature_operator(objective_of(partial(layers, nn.ReLU()), loss="ce", scale=1e3), "ggn")
    far = torch.randn(9, 3, generator=torch.Generator().manual_seed(0)), torch.full((9,), 1e3)

    def robust(out, y, loss=F.huber_loss):
        return loss(out[:, 0], y, reduction="none")

    ls.curvature_operator(ls.make_objective(nn.Sequential(nn.Linear(3, 1)), far, loss=robust), "ggn")
    absolute = partial(robust, loss=F.l1_loss)
    with pytest.raises(NumericalError, match="is zero"):
        ls.curvature_operator(ls.make_objective(nn.Sequential(nn.Linear(3, 1)), far, loss=absolute), "ggn")


@pytest.mark.parametrize("margin", [15.0, 22.0, 25.0, 30.0])
def test_the_rounding_of_a_fitted_samples_slopes_is_no_fault(margin):
    """p differs from 1 by exp(-margin): of 1 - p few digits are left, and of its differences none."""
    functions = Functions(
        logits=lambda theta, inputs: theta[0], loss=lambda z, y: F.cross_entropy(z, y, reduction="none")
    )
    for seed in range(40):
        z = 2 * torch.randn(2, 10, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        z[:, 0] += margin
        for kind in ("hessian", "ggn"):
            batch = torch.zeros(2, 1).double(), torch.zeros(2, dtype=torch.long)
            assert fault_of_second_derivative(KINDS[kind], functions, (z,), batch) is None


@pytest.mark.parametrize("name", [name for name in CASES if name != "balanced"])
def test_what_is_right_is_known_to_be_right_and_not_only_not_known_to_be_wrong(name, caplog):
    """The check ends with agreement: it neither takes the model's own precision nor gives up because of scatter."""
    objective = CASES[name].objective(dtype=torch.float32)
    with caplog.at_level(logging.INFO, logger="landscape"):
        operator = ls.curvature_operator(objective, backend="reverse")  # a trace is compared with these products
        operator.matvec(torch.ones(3, 1, objective.layout.size))
    assert not [r for r in caplog.records if "second derivative" in r.message]


# Traces ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["hessian", "ggn", "empirical-fisher"])
def test_a_trace_that_is_wrong_for_later_batches_is_left_for_these(kind, caplog, monkeypatch):
    """Forward mode as PyTorch has it, for which padding is no constant; no sample of the first part is padded."""
    # private: PyTorch's own derivative, which the package replaces
    monkeypatch.delitem(differentiable._INSTEAD, F.embedding)
    objective = objective_of(partial(Bag, padding_idx=0), tokens=True, batch_size=3)
    with caplog.at_level(logging.INFO, logger="landscape"):
        found = product(objective, kind)
    for part, expected in enumerate(product(objective, kind, "reverse")):
        assert relative(found[part], expected) < 1e-12
    said = [r.message for r in caplog.records if "plain reverse mode" in r.message]
    assert [("batch of 1" in m, "off by" in m) for m in said] == [(True, True)] * 2
    with pytest.raises(InputError, match=r"linearized.*cannot be used: the traced product is off by .* batch of 1"):
        product(objective, kind, "linearized")


def test_batches_and_parts_are_looked_at_once(monkeypatch):
    objective = objective_of(partial(layers, nn.Tanh()), batch_size=3)
    looked = []
    for name in ("_disagreement", "fault_of_second_derivative"):
        real = getattr(products, name)
        monkeypatch.setattr(products, name, lambda *a, name=name, real=real: looked.append(name) or real(*a))
    operator = ls.hessian(objective)
    for _ in range(3):
        operator.restrict([1]).matvec(torch.ones(1, 1, operator.size, dtype=torch.float64))
        operator.matvec(torch.ones(2, 1, operator.size, dtype=torch.float64))
    assert sorted(looked) == ["_disagreement"] * (1 + 3 + 2) + ["fault_of_second_derivative"] * 2


@pytest.mark.parametrize(("n", "index"), [(1, [0]), (3, [0, 1, 2]), (8, [0, 2, 5, 7]), (128, [0, 42, 85, 127])])
def test_a_few_samples_are_from_all_over_the_batch(n, index):
    assert some_of((torch.arange(n), torch.arange(n)), 4)[0].tolist() == index


@pytest.mark.parametrize(("dtype", "share"), [(torch.float64, 1e-4), (torch.float32, 0.1)])
def test_lanczos_refuses_a_matrix_that_is_not_symmetric(dtype, share):
    generator = torch.Generator().manual_seed(0)
    A = torch.randn(2, 40, 40, generator=generator, dtype=dtype)
    symmetric = A + A.mT
    wrong = symmetric + share * torch.tensor([0.0, 1.0], dtype=dtype)[:, None, None] * A
    probes = torch.randn(2, 2, 40, generator=generator, dtype=dtype)
    assert np.isfinite(lanczos(lambda V: V @ symmetric, probes, 5).alpha).all()
    with refused(NumericalError, "symmetric", "(A + A^T) / 2"):
        lanczos(lambda V: V @ wrong.mT, probes, 5)


@pytest.mark.parametrize("keep", [True, False])
def test_a_probe_in_the_null_space_is_no_fault_of_the_matrix(keep):
    """Signs that are alike for both classes: the logits of a linear classifier move together, and their loss not."""
    generator = torch.Generator().manual_seed(0)
    x, p = torch.randn(30, 4, generator=generator), torch.rand(30, generator=generator)
    inner = (x.T * (p * (1 - p))) @ x
    matrix = torch.cat([torch.cat([inner, -inner], dim=1), torch.cat([-inner, inner], dim=1)])
    probe = torch.tensor([1.0, -1, -1, 1]).repeat(2)
    noisy = matrix + 1e-7 * torch.randn(8, 8, generator=generator)  # so that rounding is no exact zero
    found = lanczos(lambda V: V @ noisy.T, probe[None, None], 8, keep=keep)
    seen = np.linalg.eigvalsh(
        np.diag(found.alpha[0, 0]) + np.diag(found.beta[0, 0, :-1], 1) + np.diag(found.beta[0, 0, :-1], -1)
    )
    np.testing.assert_allclose(seen[-1], np.linalg.eigvalsh(matrix.double().numpy())[-1], rtol=1e-5)


@pytest.mark.parametrize("rank", [0, 1, 2, 30])
def test_rounding_is_no_asymmetry(rank):
    """A large eigenvalue and many small ones in float32."""
    generator = torch.Generator().manual_seed(0)
    Q = torch.linalg.qr(torch.randn(500, 500, generator=generator))[0][:, :rank]
    values = torch.logspace(4, -8, rank) if rank else torch.zeros(0)
    A = (Q * values) @ Q.T
    for seed in range(20):
        probes = torch.randn(1, 1, 500, generator=torch.Generator().manual_seed(seed))
        lanczos(lambda V: V @ A.T, probes, 5)
