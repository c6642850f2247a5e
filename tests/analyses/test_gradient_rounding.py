"""Gradients that are only rounding: which ones are found, and that all others are as exact as is said."""

import copy
import dataclasses

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import landscape as ls
from landscape.objective import draws
from landscape.results.gradients import CLEAR
from tests.cases import CASES, Case, mlp

DTYPES = [torch.float32, torch.float64]
OF_PARTS = ("cosine", "projected", "specific", "radius", "between", "conflict")


class Shifted(nn.Module):
    """All logits have a common bias, of which no softmax depends."""

    def __init__(self):
        super().__init__()
        self.inner = mlp(nn.Tanh())
        self.nothing = nn.Parameter(torch.zeros(()))

    def forward(self, x):
        return self.inner(x) + self.nothing


class Normalised(nn.Module):
    """A bias before a normalisation, which removes it."""

    def __init__(self):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(2, 3, 3, padding=1, bias=False), nn.Linear(27, 3)
        self.nothing = nn.Parameter(torch.tensor([0.5, -1.0, 2.0]).view(3, 1, 1))

    def forward(self, x):
        return self.fc(F.instance_norm(self.conv(x) + self.nothing).tanh().flatten(1))


class Dead(nn.Module):
    """A layer behind a ReLU that no sample passes."""

    def __init__(self):
        super().__init__()
        self.inner, self.nothing = mlp(nn.Tanh()), nn.Linear(18, 3)

    def forward(self, x):
        return self.inner(x) + torch.relu(self.nothing(x.flatten(1)) - 1e6)


def of_layers(objective, part):
    """The gradient of a part within each layer, in float64, by autograd over one sample after the other."""
    exact, total = objective.in_dtype(torch.float64), 0.0
    for i in exact.members[part]:
        theta = [t.clone().requires_grad_() for t in exact.theta]
        losses = exact.losses(theta, *exact.samples.batch(np.array([i]), exact.device, exact.dtype))
        total = total + exact.layout.flat(torch.autograd.grad(losses.sum(), theta, materialize_grads=True))
    named = dict(zip(exact.layout.names, torch.split(total / exact.counts[part], exact.layout.sizes), strict=True))
    return [torch.cat([named[name] for name in own]) for own in exact.layout.layers.values()]


@pytest.mark.parametrize("options", [{}, {"batches": 3, "samples_per_batch": 8}, {"sampling_errors": True}])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("make", [Shifted, Normalised])
def test_a_layer_whose_gradient_is_rounding_has_no_shares_and_no_cosines(make, dtype, options):
    found = ls.gradients(Case(make).objective(dtype=dtype), **options)
    at = found.layers.index("nothing")
    others = np.arange(len(found.layers)) != at
    assert found.only_rounding("layer_whole_norm")[0].tolist() == (~others).tolist()
    rounded = found.only_rounding("layer_norm")[0]
    assert not rounded[others].any()
    assert (rounded[at] | (found.layer_norm[0, at] == 0)).all()
    assert 0 < found.layer_whole_norm[0, at] < (1e-6 if dtype == torch.float32 else 1e-14)
    for field in ("layer_cosine", "layer_contribution"):
        values = getattr(found, field)[0]
        assert np.isnan(values[at]).all(), field
        assert np.isfinite(values[others]).all(), field
        for error in ("stderr", "sampling_stderr"):
            if (errors := getattr(found, f"{field}_{error}")) is not None:
                assert np.isnan(errors[0, at]).all(), (field, error)
    assert not found.only_rounding("norm").any()
    assert np.isfinite(found.cosine).all()


@pytest.mark.parametrize("draw", [False, True])
def test_norms_are_as_exact_as_is_said(draw):
    whole = Case(Shifted).objective(dtype=torch.float32, batch_size=5)
    objective = draws.draw_samples(whole, 6, seed=1) if draw else whole
    found = ls.gradients(objective)
    assert found.only_rounding("layer_whole_norm")[0].tolist() == [True, False, False]
    for p in range(len(found.parts)):
        expected = [float(g.norm()) for g in of_layers(objective, p)]
        rounding = found.layer_norm_rounding[0, :, p]
        assert (np.abs(found.layer_norm[0, :, p] - expected) <= CLEAR * rounding + 1e-15).all()
        assert (rounding[1:] < 1e-5 * found.layer_norm[0, 1:, p]).all()  # and nothing is said to be less exact


def test_the_whole_is_no_less_exact_than_its_parts():
    found = ls.gradients(CASES["residual-relu"].objective(dtype=torch.float32))
    shares = found.n_samples / found.n_samples.sum()
    np.testing.assert_allclose(found.layer_whole_norm_rounding, found.layer_norm_rounding @ shares)
    for of_layers, of_all in (
        ("layer_norm_rounding", "norm_rounding"),
        ("layer_whole_norm_rounding", "whole_norm_rounding"),
    ):
        squares = (getattr(found, of_layers) ** 2).sum(axis=1)
        np.testing.assert_allclose(getattr(found, of_all) ** 2, squares, err_msg=of_all)


@pytest.mark.parametrize("dtype", DTYPES)
def test_zeros_that_are_certain_are_not_marked(dtype):
    found = ls.gradients(Case(Dead).objective(dtype=dtype))
    at = found.layers.index("nothing")
    for field in ("layer_norm", "layer_norm_rounding"):
        assert (getattr(found, field)[0, at] == 0).all(), field
    assert not found.only_rounding("layer_norm").any()
    assert np.isnan(found.layer_cosine[0, at]).all()


def exactly(logits, labels):
    """The cross-entropy, with all digits for a fitted sample too."""
    own = F.one_hot(labels, logits.shape[1]).bool()
    apart = logits - logits.gather(1, labels[:, None])
    return torch.log1p(apart.exp().masked_fill(own, 0).sum(1))


def fitted(scale):
    """Four classes of which the network is the surer, the larger the scale; weights and data that float32 has."""
    random = torch.Generator().manual_seed(0)
    labels = torch.cat([torch.full((n,), c) for c, n in enumerate((60, 20, 9, 2))])
    inputs = 3 * F.one_hot(labels, 4) + 0.3 * torch.randn(len(labels), 4, generator=random)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 4, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.randn(6, 4, generator=random))
        model[0].bias.copy_(torch.randn(6, generator=random))
        features = torch.tanh(model[0](3 * torch.eye(4)))
        model[2].weight.copy_(scale * torch.linalg.pinv(features).T)  # logits of a class's centre: scale, 0, 0, 0
    return model, inputs, labels


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [5, 15, 30, 45, 100])
def test_a_fitted_class_has_numbers_as_long_as_its_loss_has_digits(scale, dtype):
    model, inputs, labels = fitted(scale)
    found = ls.gradients(
        ls.make_objective(
            model.to(dtype), (inputs.to(dtype), labels), parts="class", dtype=str(dtype)[6:], device="cpu"
        )
    )
    rounded = found.only_rounding("norm")[0]
    for c in range(4):
        own = copy.deepcopy(model).double()
        loss = exactly(own(inputs[labels == c].double()), labels[labels == c]).mean()
        loss.backward()
        norm = float(torch.cat([p.grad.flatten() for p in own.parameters()]).norm())
        off = abs(found.norm[0, c] - norm)
        assert off <= CLEAR * found.norm_rounding[0, c] or norm < 1e-40  # which float32 does not have
        assert off <= (1e-5 if dtype == torch.float32 else 1e-12) * norm
        assert not rounded[c]  # the cross-entropy keeps its digits, unlike the losses below
    for field in OF_PARTS:
        values = getattr(found, field)[0]
        assert np.isnan(values[rounded]).all(), field
    resolved = ~rounded & ~found.only_rounding("whole_norm")
    assert np.isfinite(found.cosine[0][resolved]).all()
    assert (np.isfinite(found.contribution[0]).all()) == (not found.only_rounding("whole_norm")[0])


def nll(values, labels):
    return F.nll_loss(values, labels, reduction="none")


@pytest.mark.parametrize("scale", [5, 10, 20])
def test_a_part_that_is_not_fitted_keeps_its_numbers_beside_parts_of_which_nothing_has_digits(scale):
    """1 - p is computed in float32, so that its error does not depend on how well a sample is fitted."""
    model, inputs, labels = fitted(scale)
    inputs[labels == 3] = inputs[labels == 0][:2]  # which are classified as another class
    model = nn.Sequential(model, nn.LogSoftmax(1))
    objective = ls.make_objective(model, (inputs, labels), loss=nll, task="classification", parts="class", device="cpu")
    found = ls.gradients(objective)
    assert not found.only_rounding("norm")[0, 3]
    assert np.isfinite(found.cosine[0, 3])
    for p in range(4):
        expected = float(torch.cat(of_layers(objective, p)).norm())
        assert abs(found.norm[0, p] - expected) <= CLEAR * found.norm_rounding[0, p]
    assert found.norm_rounding[0, 3] < 1e-5 * found.norm[0, 3]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [5, 16, 22])
def test_a_loss_that_casts_to_float32_has_its_rounding(scale, dtype):
    def narrow(logits, labels):
        return F.cross_entropy(logits.float(), labels, reduction="none")

    model, inputs, labels = fitted(scale)
    found = ls.gradients(
        ls.make_objective(
            model.to(dtype), (inputs.to(dtype), labels), loss=narrow, task="classification", parts="class",
            dtype=str(dtype)[6:], device="cpu",
        )
    )  # fmt: skip
    for c in range(4):
        own = copy.deepcopy(model).double()
        exactly(own(inputs[labels == c].double()), labels[labels == c]).mean().backward()
        norm = float(torch.cat([p.grad.flatten() for p in own.parameters()]).norm())
        assert abs(found.norm[0, c] - norm) <= CLEAR * found.norm_rounding[0, c]
    assert found.only_rounding("norm").any() == (scale == 22)


def test_many_classes_of_which_some_are_fitted_have_their_numbers():
    random = torch.Generator().manual_seed(0)
    labels = torch.arange(40).repeat_interleave(3)
    model = nn.Sequential(nn.Linear(40, 40, bias=False), nn.LogSoftmax(1))
    inputs = F.one_hot(labels, 40) + 0.02 * torch.randn(len(labels), 40, generator=random)
    inputs[labels % 3 == 2] = inputs[labels % 3 == 2].roll(3, dims=1)  # which the network takes for other classes
    with torch.no_grad():
        model[0].weight.copy_(18 * torch.eye(40))
    found = ls.gradients(
        ls.make_objective(model, (inputs, labels), loss=nll, task="classification", parts="class", device="cpu")
    )
    assert not found.only_rounding("whole_norm")[0]
    assert not found.only_rounding("norm")[0, 2::3].any()
    assert np.isfinite(found.contribution).all()


class Narrow(nn.Module):
    """Accepts float32 only."""

    def __init__(self):
        super().__init__()
        self.inner = mlp(nn.Tanh())
        self.scale = torch.ones(3)

    def forward(self, x):
        return self.inner(x) @ torch.diag(self.scale)


class Noisy(nn.Module):
    """Adds noise of a seed, which is other noise in another dtype."""

    def __init__(self):
        super().__init__()
        self.inner = mlp(nn.Tanh())

    def forward(self, x):
        random = torch.Generator().manual_seed(0)
        return self.inner(x + torch.randn(x.shape[1:], generator=random, dtype=x.dtype))


class Steep(nn.Module):
    """Has numbers between that float32 does not have."""

    def __init__(self):
        super().__init__()
        self.inner = mlp(nn.Tanh())

    def forward(self, x):
        high = torch.exp(100 + self.inner(x))
        return torch.log(high / high.sum(1, keepdim=True))


@pytest.mark.parametrize(("make", "dtype"), [(Narrow, torch.float32), (Noisy, torch.float32), (Steep, torch.float64)])
def test_a_model_that_has_one_dtype_keeps_its_numbers_and_says_so_once(make, dtype, caplog):
    objective = Case(make).objective(dtype=dtype)
    found = [ls.gradients(objective) for _ in range(2)]
    for one in found:
        assert np.isnan(one.layer_norm_rounding).all()
        assert np.isnan(one.whole_norm_rounding).all()
        assert np.isfinite(one.layer_cosine).all()
        assert not one.only_rounding("norm").any()
    assert sum("rounding of gradients" in record.message for record in caplog.records) == 1


def test_a_loss_that_gives_a_part_nothing_is_certain():
    def half(logits, labels):
        return F.cross_entropy(logits, labels, reduction="none") * (labels != 2)

    found = ls.gradients(Case(Shifted, loss=half).objective(dtype=torch.float32))
    assert found.norm[0, 2] == found.norm_rounding[0, 2] == found.projected[0, 2] == found.contribution[0, 2] == 0


def test_results_of_earlier_versions_know_of_no_rounding():
    found = ls.gradients(Case(Shifted).objective())
    earlier = dataclasses.replace(found, **dict.fromkeys(
        ("norm_rounding", "whole_norm_rounding", "layer_norm_rounding", "layer_whole_norm_rounding")
    ))  # fmt: skip
    for norm in ("norm", "whole_norm", "layer_norm", "layer_whole_norm"):
        values = earlier.only_rounding(norm)
        assert values.shape == getattr(found, norm).shape
        assert not values.any()
