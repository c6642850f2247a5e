"""Models and losses whose derivatives PyTorch has in part, or has wrong: a right matrix, or its true obstacle."""

from functools import cache, partial

import numpy as np
import pytest
import torch
from hard import (
    Applied,
    Bag,
    Softsign,
    by_differences,
    by_rows,
    layers,
    matrix,
    objective_of,
    product,
    product_by_differences,
    relative,
    some,
)
from refusals import refused
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

import landscape as ls
from landscape.analyses import directions
from landscape.autodiff import backward
from landscape.curvature.forms import quadratic_forms
from landscape.curvature.kinds import KINDS
from landscape.errors import InputError, NumericalError

FIRST = ("ggn", "fisher", "empirical-fisher")
BACKENDS = ("auto", "reverse")


@pytest.mark.parametrize(
    ("padding", "batch_size", "backend"), [(0, 3, "auto"), (-6, 11, "auto"), (0, 11, "reverse"), (-6, 3, "reverse")]
)
def test_padding_is_a_constant_in_every_matrix(padding, batch_size, backend):
    """Each value of one argument is met with each value of another."""
    objective = objective_of(partial(Bag, padding_idx=padding), tokens=True, batch_size=batch_size)
    found = matrix(objective, backend=backend)
    varying = torch.arange(objective.layout.size) >= 3  # all but the padding's vector
    for part in range(2):
        exact = by_differences(objective, part)
        exact[:3] = exact[:, :3] = 0
        assert relative(found[part], exact) < 1e-8
        assert exact[varying][:, varying].norm() > 0.1
    for kind in FIRST:
        found = product(objective, kind, backend)
        for part in range(2):
            assert relative(found[part], some(objective) @ by_rows(objective, part, kind)) < 1e-12


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("options", [{"scale_grad_by_freq": True}, {"sparse": True}])
def test_how_gradients_are_scaled_or_stored_changes_no_second_derivative(options, backend):
    plain, other = (objective_of(partial(Bag, **o), tokens=True) for o in ({}, options))
    assert relative(product(other, backend=backend), product(plain, backend="reverse")) < 1e-12


class Pooled(nn.Module):
    def __init__(self, how, bag):
        super().__init__()
        self.words = nn.EmbeddingBag(6, 3, mode=how) if bag else nn.Embedding(6, 3)
        self.out, self.how = nn.Linear(3, 2), how

    def forward(self, tokens):
        h = self.words(tokens)
        if isinstance(self.words, nn.Embedding):
            h = h.amax(1) if self.how == "max" else getattr(h, self.how)(1)
        return self.out(h.tanh())


@pytest.mark.parametrize("how", ["mean", "sum"])
def test_a_bag_of_embeddings_has_the_second_derivative_of_its_parts(how):
    bag, parts = (objective_of(partial(Pooled, how, bag), tokens=True) for bag in (True, False))
    assert relative(product(bag), product(parts, backend="reverse")) < 1e-12


def test_the_greatest_of_a_bag_is_differentiated_where_it_stands():
    objective = objective_of(partial(Pooled, "max", True), tokens=True)
    assert relative(product(objective)[0], product_by_differences(objective, 0)) < 1e-8


class Distances(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.centres = nn.Linear(3, 4), nn.Parameter(torch.randn(2, 4))

    def forward(self, x):
        return -torch.cdist(self.first(x), self.centres)


ONCE = {
    "once": partial(layers, Applied(Softsign.apply)),
    "cdist": Distances,
    "hardsigmoid": partial(layers, nn.Hardsigmoid()),
    "weighted bag": lambda: nn.Sequential(Applied(lambda x: x), Weighted()),
}


class Weighted(nn.Module):
    """A bag whose words have weights: its gradient has no derivative."""

    def __init__(self):
        super().__init__()
        self.words, self.out = nn.EmbeddingBag(5, 3, mode="sum"), nn.Linear(3, 2)

    def forward(self, x):
        tokens = torch.arange(3).expand(len(x), -1)
        return self.out(torch.tanh(self.words(tokens, per_sample_weights=x)))


@pytest.mark.parametrize("kind", FIRST)
@pytest.mark.parametrize("name", ONCE)
def test_matrices_of_first_derivatives_need_no_second_ones(name, kind):
    objective = objective_of(ONCE[name])
    found, exact = product(objective, kind), [by_rows(objective, part, kind) for part in range(2)]
    for part in range(2):
        assert relative(found[part], some(objective) @ exact[part]) < 1e-12
    spectrum = ls.spectrum(objective, operator=kind, steps=4, probes=1, backend="reverse")
    assert spectrum.trace == pytest.approx([m.trace().item() for m in exact], rel=1e-10)


@pytest.mark.parametrize("name", ["once", "cdist"])
def test_where_there_is_no_second_derivative_the_hessian_is_refused_with_a_remedy_that_works(name):
    objective = objective_of(ONCE[name])
    with refused(NumericalError, operator="ggn"):
        matrix(objective)


def test_a_jacobian_that_loses_terms_is_computed_row_by_row(monkeypatch):
    """The check itself: of the two ways, the one without second derivatives is left where they disagree."""
    objective = objective_of(partial(layers, nn.Tanh()))
    exact = by_rows(objective, 0, "ggn")
    rows = []
    # private: which of two ways is taken, whose numbers are equal
    real = backward._push_by_rows
    monkeypatch.setattr(backward, "_push_by_rows", lambda *a: rows.append(1) or real(*a))
    assert relative(matrix(objective, "ggn", "reverse")[0], exact) < 1e-12
    assert not rows
    once = objective_of(ONCE["once"])
    matrix(once, "ggn", "reverse")
    assert len(rows) == 11  # each sample once


# Losses ---------------------------------------------------------------------------------------------------------------


def one_hot(z, y):
    return (z - F.one_hot(y, 2).to(z.dtype)).abs().pow(3).sum(1)


def squared(z, y):
    return F.mse_loss(z.softmax(1), torch.eye(2, dtype=z.dtype)[y], reduction="none").sum(1)


def squared_by_sample(z, y):
    return torch.stack([F.mse_loss(a, torch.eye(2, dtype=z.dtype)[b]) for a, b in zip(z, y, strict=True)])


def masked(z, y):
    values = F.cross_entropy(z, y, reduction="none")
    values[y == 0] = values[y == 0] ** 2
    return values


def split(z, y):
    """Boolean masks, and a branch on values."""
    out = z.new_zeros(len(z))
    for c in (0, 1):
        if (y == c).any():
            out[y == c] = (1 + c) * F.softplus(-(z[y == c, c] - z[y == c, 1 - c]))
    return out


def hinge(z, y):
    return (1 + z - z.gather(1, y[:, None])).clamp(min=0).square().sum(1)


def by_label(z, y):
    return torch.stack([-row.log_softmax(0)[int(label)] for row, label in zip(z, y, strict=True)])


def soft_margin(z, y):
    return F.soft_margin_loss(z, 2 * torch.eye(2, dtype=z.dtype)[y] - 1, reduction="none").sum(1)


def gaussian(z, y):
    return F.gaussian_nll_loss(z, torch.eye(2, dtype=z.dtype)[y], torch.ones_like(z), reduction="none").sum(1)


@pytest.mark.parametrize(
    "loss", [one_hot, squared, squared_by_sample, masked, split, hinge, by_label, soft_margin, gaussian]
)
def test_a_loss_need_not_be_vectorised(loss):
    """The network is piecewise linear: the trace needs the loss's second derivatives sample by sample."""
    objective = objective_of(partial(layers, nn.ReLU()), loss=loss)
    spectrum = ls.spectrum(objective, steps=3, probes=1, backend="reverse", sampling_errors=False)
    assert spectrum.trace_stderr.tolist() == [0, 0]
    found = product(objective)
    for part in range(2):
        exact = by_differences(objective, part)
        assert relative(found[part], some(objective) @ exact) < 1e-7
        assert spectrum.trace[part] == pytest.approx(exact.trace().item(), rel=1e-7)


class Cubed(torch.autograd.Function):
    @staticmethod
    def forward(ctx, z):
        ctx.save_for_backward(z)
        return z.pow(3).sum(1)

    @staticmethod
    @once_differentiable
    def backward(ctx, g):
        return 3 * ctx.saved_tensors[0].square() * g[:, None]


@pytest.mark.parametrize(
    "loss", [lambda z, y: F.multi_margin_loss(z, y, reduction="none"), lambda z, y: Cubed.apply(z)]
)
def test_a_loss_without_a_second_derivative_is_named_and_the_advice_works(loss):
    objective = objective_of(partial(layers, nn.Tanh()), loss=loss)
    for kind in ("hessian", "ggn"):
        with refused(NumericalError, "empirical-fisher"):
            ls.spectrum(objective, operator=kind, steps=3, probes=1)
    for kind in ("empirical-fisher", "fisher"):
        exact = some(objective) @ by_rows(objective, 0, kind)
        assert relative(product(objective, kind)[0], exact) < 1e-12


# Models that do more than compute -------------------------------------------------------------------------------------


class Checkpointed(nn.Module):
    def __init__(self, how):
        super().__init__()
        self.how = how
        self.first, self.middle, self.out = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x):
        h = torch.tanh(self.first(x))
        if self.how == "sequential":
            h = checkpoint_sequential([self.middle, nn.Tanh()], 2, h, use_reentrant=False)
        elif self.how == "plain":
            h = torch.tanh(self.middle(h))
        else:
            h = checkpoint(lambda h: torch.tanh(self.middle(h)), h, use_reentrant=self.how == "reentrant")
        return self.out(h)


@cache
def of_plain():
    """Products of the network without checkpoints, and the trace of its Gauss-Newton matrix."""
    plain = objective_of(partial(Checkpointed, "plain"))
    products = {kind: product(plain, kind, "reverse") for kind in ("hessian", *FIRST)}
    return products, ls.spectrum(plain, steps=5, probes=1, operator="ggn", backend="reverse").trace


@pytest.mark.parametrize("how", ["reentrant", "not reentrant", "sequential"])
def test_checkpointing_changes_no_number(how):
    other = objective_of(partial(Checkpointed, how))
    products, trace = of_plain()
    for kind, expected in products.items():
        assert relative(product(other, kind), expected) < 1e-12
    found = ls.spectrum(other, steps=5, probes=1, operator="ggn", backend="reverse").trace
    assert found == pytest.approx(trace, rel=1e-12)


class Slopes(nn.Module):
    """Logits from the derivative of an energy by the inputs."""

    def __init__(self):
        super().__init__()
        self.energy, self.out = nn.Sequential(nn.Linear(3, 4), nn.Softplus(), nn.Linear(4, 1)), nn.Linear(3, 2)

    def forward(self, x):
        x = x.clone().requires_grad_()
        (slopes,) = torch.autograd.grad(self.energy(x).sum(), x, create_graph=True)
        return self.out(slopes)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_model_may_take_gradients_in_its_forward_pass(backend):
    objective = objective_of(Slopes)
    evaluation = objective.evaluation
    found = product(objective, backend=backend)
    for part in range(2):
        assert relative(found[part], product_by_differences(objective, part)) < 1e-8
    surface = ls.surface(objective, directions.random(objective, 1), np.array([-1.0, 0.0]))
    assert surface.loss.reshape(2, 2)[:, 1] == pytest.approx(evaluation.loss, rel=1e-12)
    logits = objective.logits(objective.theta, objective.batch(0, 0)[0])
    with torch.no_grad():
        assert torch.equal(objective.logits(objective.theta, objective.batch(0, 0)[0]), logits)
        assert not objective.logits(objective.theta, objective.batch(0, 0)[0]).requires_grad
        assert not torch.is_grad_enabled()


class Repeated(nn.Module):
    """One module in two places, by two names."""

    def __init__(self):
        super().__init__()
        self.first, one, self.out = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 2)
        self.blocks = nn.ModuleList([one, one])

    def forward(self, x):
        h = self.first(x)
        for block in self.blocks:
            h = torch.tanh(block(h))
        return self.out(h)


@pytest.mark.parametrize("kind", ["hessian", *FIRST])
def test_a_module_in_two_places_keeps_its_parameters(kind):
    objective = objective_of(Repeated)
    _ = objective.evaluation
    found = product(objective, kind)
    assert all(isinstance(p, nn.Parameter) for m in objective.model.modules() for p in m._parameters.values())
    spectrum = ls.spectrum(objective, operator=kind, steps=6, probes=2, backend="reverse")
    for part in range(2):
        if kind == "hessian":
            assert relative(found[part], product_by_differences(objective, part)) < 1e-8
        else:
            exact = by_rows(objective, part, kind)
            assert relative(found[part], some(objective) @ exact) < 1e-8
            assert spectrum.trace[part] == pytest.approx(exact.trace().item(), rel=1e-10)


def test_a_model_that_overwrites_what_its_backward_pass_needs_is_refused():
    def overwrite(h):
        out = torch.sigmoid(h)
        out += h
        return out

    with pytest.raises(InputError, match="modified by an inplace operation"):
        objective_of(partial(layers, Applied(overwrite)))


def overwriting(x):
    x -= 0.5
    x *= 2
    return x


@pytest.mark.parametrize("activation", [torch.tanh, Softsign.apply])
def test_a_model_may_overwrite_its_inputs_in_every_matrix(activation):
    """Those of Softsign take the network more than once: its gradient has no derivative."""

    def made(shift):
        return objective_of(lambda: nn.Sequential(Applied(shift), *layers(Applied(activation))))

    ours, theirs = made(overwriting), made(lambda x: 2 * (x - 0.5))
    v = some(theirs)[0]
    for kind in KINDS if activation is torch.tanh else FIRST:
        expected = product(theirs, kind, "reverse")
        for backend in BACKENDS:
            assert relative(product(ours, kind, backend), expected) < 1e-12
        found, forms = (quadratic_forms(o, KINDS[kind], o.members[0], v) for o in (ours, theirs))
        np.testing.assert_allclose(found, forms, rtol=1e-9)
        assert found.mean() == pytest.approx((v @ expected[0, 0]).item(), rel=1e-9)
