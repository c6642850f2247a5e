"""Quadratic forms of single samples, against dense matrices of single samples."""

import copy
import logging
from functools import partial

import numpy as np
import pytest
import torch
from cases import CASES, Case, concave
from exact import dense, differences
from hard import Applied, Bag, Softplus, Softsign, by_rows, layers, objective_of
from refusals import refused
from torch import nn
from torch.utils.data import DataLoader

import landscape as ls
from landscape.analyses import samples
from landscape.autodiff import linearize
from landscape.autodiff.differentiable import differentiable_attention
from landscape.curvature import forms, functions, kinds
from landscape.curvature.kinds import HESSIAN, KINDS, Kind
from landscape.errors import InputError, NumericalError
from landscape.objective import draws


@pytest.fixture(params=[0, np.inf], ids=["traced", "plain"])
def both_ways(request, monkeypatch):
    # private: the work from which on a trace is worth its time
    monkeypatch.setattr(forms, "_WORTH", request.param)


def vector(objective, seed=0):
    return torch.randn(objective.layout.size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


NAMES = ("mlp-tanh", "residual-gelu", "residual-inplace", "features", "attention", "smoothed")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.usefixtures("both_ways")
def test_the_mean_over_samples_is_that_of_the_hessian(name):
    of_mean(name, "hessian")


@pytest.mark.parametrize("kind", ["ggn", "fisher", "empirical-fisher"])
@pytest.mark.parametrize("name", NAMES)
def test_the_mean_over_samples_is_that_of_matrices_of_first_derivatives(name, kind):
    """Their forms are never traced."""
    of_mean(name, kind)


def of_mean(name, kind):
    objective = CASES[name].objective(batch_size=9)
    v = vector(objective)
    for part in range(3):
        found = forms.quadratic_forms(objective, KINDS[kind], objective.members[part], v)
        assert found.shape == objective.members[part].shape
        with differentiable_attention():
            # torch.func's own Hessian of attention is wrong
            by_differences = (name, kind) == ("attention", "hessian")
            product = differences(objective, part, v) if by_differences else dense(objective, part, kind) @ v
        assert found.mean() == pytest.approx((v @ product).item(), rel=1e-6 if by_differences else 1e-10)


def test_a_loss_that_is_not_convex_in_the_logits_has_forms_of_both_signs():
    objective = Case(CASES["mlp-tanh"].make, loss=concave).objective(batch_size=9)
    v = vector(objective)
    found = forms.quadratic_forms(objective, KINDS["ggn"], objective.members[0], v)
    assert (found < 0).any()
    assert found.mean() == pytest.approx((v @ dense(objective, 0, "ggn") @ v).item(), rel=1e-10)


@pytest.mark.parametrize("name", ["mlp-tanh", "residual-inplace", "attention"])
@pytest.mark.usefixtures("both_ways")
def test_each_samples_form_is_the_second_derivative_of_its_own_loss(name):
    objective = CASES[name].objective(batch_size=9)
    index = objective.members[0]
    v = vector(objective)
    found = forms.quadratic_forms(objective, HESSIAN, index, v)
    for i, one in list(enumerate(index))[::4]:
        alone = forms.quadratic_forms(objective, HESSIAN, np.array([one]), v)
        assert found[i] == pytest.approx(alone[0], rel=1e-10)
    parts = sum(forms.quadratic_forms(objective, KINDS[kind], index, v) for kind in ("ggn", "residual"))
    np.testing.assert_allclose(parts, found, rtol=1e-10)


@pytest.fixture
def traces(monkeypatch):
    """A trace is worth its time for any work; the list grows with each."""
    # private: the work from which on it is, and where it is made
    made, trace = [], forms.linearize
    monkeypatch.setattr(forms, "_WORTH", 0)
    monkeypatch.setattr(forms, "linearize", lambda *given, **options: made.append(1) or trace(*given, **options))
    return made


def test_one_trace_serves_all_parts_points_and_sizes_of_batches(traces):
    objective = CASES["residual-gelu"].objective(batch_size=9)
    model = copy.deepcopy(objective.model)
    for p in model.parameters():
        p.data *= 1.1
    for here in (objective, objective.at(model)):
        v = vector(here)
        for part, members in enumerate(here.members):
            found = forms.quadratic_forms(here, HESSIAN, members, v)
            assert found.mean() == pytest.approx((v @ dense(here, part, "hessian") @ v).item(), rel=1e-10)
    assert len(traces) == 1
    forms.quadratic_forms(objective, KINDS["residual"], objective.members[0], v)
    assert len(traces) == 2


class Lengths(nn.Module):
    """A sum over tokens, of which a batch has as many as its longest sample."""

    def __init__(self, activation):
        super().__init__()
        self.word, self.fc, self.activation = nn.Embedding(7, 4), nn.Linear(4, 3), activation

    def forward(self, x):
        return self.fc(self.activation((self.word(x) * (x > 0)[..., None]).sum(1)))


def ragged(activation=torch.tanh):
    """12 samples of which the eighth is longer than the others."""
    torch.manual_seed(0)
    data = [(torch.randint(1, 7, (2 + (i == 7),)), i % 3) for i in range(12)]

    def collate(batch):
        tokens, labels = zip(*batch, strict=True)
        return nn.utils.rnn.pad_sequence(list(tokens), batch_first=True), torch.tensor(labels)

    loader = DataLoader(data, batch_size=12, collate_fn=collate)
    return ls.make_objective(Lengths(activation), loader, dtype="float64", device="cpu")


def test_samples_of_another_shape_than_the_traced_ones_are_right(traces):
    objective = ragged()
    v, index = vector(objective), np.arange(12)
    found = forms.quadratic_forms(objective, HESSIAN, index, v)
    assert traces
    alone = [forms.quadratic_forms(objective, HESSIAN, index[i : i + 1], v)[0] for i in index]
    assert max(map(abs, found)) > 0
    # private: the reference. A padded sample has a token more, and is compared in the batch in which it is padded.
    together = objective.samples.batch(index, torch.device("cpu"), torch.float64)
    expected = forms._backward(
        HESSIAN, functions.functions_of(objective), objective.theta, objective.layout.tensors(v), *together
    )
    np.testing.assert_allclose(found, expected.detach(), rtol=1e-10)
    assert found[7] == pytest.approx(alone[7], rel=1e-10)


class Normed(nn.Module):
    """Calls a function of PyTorch."""

    def __init__(self, call):
        super().__init__()
        self.call = call

    def forward(self, x):
        return self.call(x)


@pytest.mark.usefixtures("both_ways")
@pytest.mark.parametrize(
    "norm",
    [
        nn.LayerNorm(4),
        nn.LayerNorm((3, 4), elementwise_affine=False),
        nn.InstanceNorm1d(3, affine=True),
        Normed(lambda x: torch.instance_norm(x, None, None, None, None, True, 0.1, 1e-5, False)),
        Normed(lambda x: nn.functional.batch_norm(x.reshape(1, -1, 4), None, None, training=True).view_as(x)),
    ],
    ids=["layer", "layer of two axes", "instance", "instance of torch", "batch of one"],
)
def test_norms_whose_second_forward_derivative_is_wrong_in_pytorch_are_right(norm, caplog):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.norm, self.out = nn.Linear(4, 4), norm, nn.Linear(12, 3)

        def forward(self, x):
            return self.out(self.norm(self.fc(x)).sin().flatten(1))

    torch.manual_seed(0)
    data = torch.randn(12, 3, 4), torch.arange(12) % 3
    objective = ls.make_objective(Net(), data, dtype="float64", device="cpu")
    v, index = vector(objective), np.arange(12)
    with caplog.at_level(logging.INFO):
        found = forms.quadratic_forms(objective, HESSIAN, index, v)
    assert "another way" not in caplog.text
    # private: the reference
    given = objective.layout.tensors(v), *objective.samples.batch(index, torch.device("cpu"), torch.float64)
    expected = forms._backward(HESSIAN, functions.functions_of(objective), objective.theta, *given)
    np.testing.assert_allclose(found, expected.detach(), rtol=1e-9)


def test_no_trace_is_made_for_batches_that_take_backward_passes_at_once(traces):
    objective = CASES["mlp-tanh"].objective(batch_size=4)
    forms.quadratic_forms(objective, HESSIAN, objective.members[0], vector(objective))
    assert not traces


def test_samples_that_were_compared_in_longer_ones_are_compared_again(traces, monkeypatch):
    objective = ragged()
    v, index = vector(objective), np.arange(12)
    shorter = np.delete(index, 7)
    expected = forms.quadratic_forms(objective, HESSIAN, shorter, v)
    # private: the stage of the trace that each vector runs through, which only the shorter ones take
    product = linearize.Linearized.product
    monkeypatch.setattr(linearize.Linearized, "product", lambda *given: [1.01 * t for t in product(*given)])
    found = forms.forms_along(objective, HESSIAN, [(index, v), (shorter, v)])
    np.testing.assert_allclose(found[1], expected, rtol=1e-10)


@pytest.mark.parametrize("kind", ["hessian", "residual"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("drawn", [False, True], ids=["all", "drawn"])
def test_second_derivatives_suffice_where_the_third_is_cut_off(kind, dtype, drawn, caplog):
    def objective(activation, dtype):
        made = objective_of(partial(layers, Applied(activation)), batch_size=6, dtype=dtype, scale=2)
        return draws.draw_samples(made, 6, seed=1, even=draws.AT) if drawn else made

    own, same = objective(Softplus.apply, dtype), objective(nn.functional.softplus, torch.float64)
    assert own.members[0].size == 6 + (not drawn)
    for seed in range(2):
        v = vector(same, seed)
        pieces = [(index, v) for index in (np.concatenate(same.members), *same.members, same.members[1][:1])]
        expected = forms.forms_along(same, KINDS[kind], pieces)
        assert "one by one" not in caplog.text
        found = [forms.quadratic_forms(own, KINDS[kind], *piece) for piece in pieces]
        found += forms.forms_along(own, KINDS[kind], pieces)
        for ours, theirs in zip(found, 2 * expected, strict=True):
            atol = (1e-11 if dtype == torch.float64 else 1e-5) * np.abs(expected[0]).max()
            np.testing.assert_allclose(ours, theirs, atol=atol)
        product = ls.curvature_operator(same, kind).matvec(v.expand(2, 1, -1).contiguous())[0, 0]
        assert found[1].mean() == pytest.approx((v @ product).item(), rel=1e-8 if dtype == torch.float64 else 1e-4)
        assert caplog.text.count("one by one") == 1
        caplog.clear()
        own = objective(Softplus.apply, dtype)  # another one, of which nothing has been said


def test_second_derivatives_suffice_for_longer_samples_too(caplog):
    own, same = ragged(Softplus.apply), ragged(nn.functional.softplus)
    pieces = [(index, vector(same)) for index in (np.arange(12), np.delete(np.arange(12), 7))]
    found, expected = (forms.forms_along(o, HESSIAN, pieces) for o in (own, same))
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-10)
    assert caplog.text.count("one by one") == 1


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("kind", ["hessian", "residual"])
@pytest.mark.usefixtures("both_ways")
def test_an_operation_whose_third_backward_pass_fails_has_forms(kind, dtype, caplog):
    torch.manual_seed(2)
    data = torch.randn(12, 2, 6, 6), torch.arange(12) % 3
    conv, up = nn.Conv2d(2, 4, 3, stride=2), nn.ConvTranspose2d(4, 2, 3, stride=2, output_padding=1)
    model = nn.Sequential(conv, nn.Softplus(), up, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 3))
    objective = ls.make_objective(model, data, parts="all", dtype=dtype, device="cpu")
    v, rel = vector(objective), 1e-9 if dtype == torch.float64 else 1e-4
    found = forms.quadratic_forms(objective, KINDS[kind], np.arange(12), v)
    few = forms.quadratic_forms(objective, KINDS[kind], np.arange(3), v)
    np.testing.assert_allclose(found[:3], few, atol=rel * np.abs(found).max())
    product = ls.curvature_operator(objective, kind).matvec(v.to(dtype).expand(1, 1, -1).contiguous())[0, 0]
    assert found.mean() == pytest.approx((v @ product.double()).item(), rel=rel)
    assert "one by one" not in caplog.text


def test_only_samples_that_were_not_compared_are_taken_alone(monkeypatch):
    objective = CASES["mlp-tanh"].objective(partition="all", batch_size=11)  # 11 + 4
    index, v, alone = objective.members[0], vector(objective), []
    # private: the products of single samples
    one_by_one = forms._one_by_one
    monkeypatch.setattr(forms, "_one_by_one", lambda *given: alone.append(len(given[-1])) or one_by_one(*given))
    first, last, other = forms.forms_along(objective, HESSIAN, [(index, v), (index[-4:], v), (index[:3], v)])
    assert alone == [4, 4]
    np.testing.assert_allclose(last, first[-4:], rtol=1e-10)
    np.testing.assert_allclose(other, first[:3], rtol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("nats", [22, 30, 40])
def test_rounding_in_the_loss_of_fitted_samples_is_no_error(nats, dtype, caplog):
    torch.manual_seed(0)
    model, x = layers(nn.Tanh()), torch.randn(3) + 1e-2 * torch.randn(12, 3)
    with torch.no_grad():
        z = model(x)
        for p in model[-1].parameters():
            p *= nats / (z[0, 0] - z[0, 1]).abs()
    objective = ls.make_objective(model, (x, z.argmax(1)), parts="all", dtype=dtype, device="cpu")
    with caplog.at_level(logging.INFO):
        for seed in range(5):
            forms.quadratic_forms(objective, HESSIAN, np.arange(12), vector(objective, seed))
    assert "another way" not in caplog.text


@pytest.mark.parametrize("batch_size", [4, 9])
@pytest.mark.parametrize("kind", ["hessian", "residual"])
def test_where_there_is_no_second_derivative_forms_are_refused(kind, batch_size):
    objective = objective_of(partial(layers, Applied(Softsign.apply)), batch_size=batch_size)
    with refused(NumericalError, "once_differentiable", operator="ggn"):
        forms.quadratic_forms(objective, KINDS[kind], objective.members[0], vector(objective))


def test_a_loss_without_a_second_derivative_is_named():
    def margin(z, labels):
        return nn.functional.multi_margin_loss(z, labels, p=2, reduction="none")

    data = torch.randn(12, 4), torch.arange(12) % 3
    objective = ls.make_objective(nn.Linear(4, 3), data, loss=margin, device="cpu")
    with refused(NumericalError, "second derivative"):
        forms.quadratic_forms(objective, HESSIAN, np.arange(12), vector(objective))


def test_samples_whose_values_do_not_fit_are_taken_one_by_one(traces, monkeypatch):
    objective = CASES["residual-gelu"].objective(batch_size=9)
    index, v = objective.members[0], vector(objective)
    expected, taken, run = forms.quadratic_forms(objective, HESSIAN, index, v), [], linearize.Linearized.residuals
    # private: the samples that go through the graph at a time, and the memory for them
    monkeypatch.setattr(
        linearize.Linearized,
        "residuals",
        lambda own, inputs, *given: taken.append(len(inputs)) or run(own, inputs, *given),
    )
    monkeypatch.setattr(forms, "_BYTES", 1)
    np.testing.assert_allclose(forms.quadratic_forms(objective, HESSIAN, index, v), expected, rtol=1e-12)
    assert taken == [4, *[1] * (4 + len(index))]  # of an example, of the samples that are compared, of all


def test_a_trace_is_made_where_all_forms_together_are_worth_it(traces, monkeypatch):
    objective = CASES["mlp-tanh"].objective(batch_size=9)
    index, v = objective.members[0], vector(objective)
    # private: as above
    monkeypatch.setattr(forms, "_WORTH", 100 * functions.work_of(objective))
    expected = forms.forms_along(objective, HESSIAN, [(index, v)])
    forms.forms_along(objective, HESSIAN, [(index, v)], in_all=99)
    assert not traces
    found = forms.forms_along(objective, HESSIAN, [(index, v)], in_all=100)
    assert len(traces) == 1
    np.testing.assert_allclose(found, expected, rtol=1e-10)


def test_other_parts_are_expected_to_need_as_many_forms_of_each_sample(monkeypatch):
    objective = CASES["mlp-tanh"].objective()
    told, run = [], samples.forms_along
    # private: how many forms are expected

    def forms_along(objective, kind, pieces, *, in_all):
        told.append((np.concatenate([index for index, _ in pieces]), in_all))
        return run(objective, kind, pieces, in_all=in_all)

    monkeypatch.setattr(samples, "forms_along", forms_along)
    ls.spectrum(objective, steps=60, probes=1)
    assert told
    n = sum(map(len, objective.members))
    for index, in_all in told:
        (part,) = (members for members in objective.members if np.isin(index, members).any())
        assert in_all == int(np.ceil(len(index) * n / len(part)))


class Twofold(nn.Module):
    """Its output for a large batch is computed otherwise than that for a few samples, which a trace cannot know."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 3)

    def forward(self, x):
        z = self.fc(x.flatten(1)[:, :4]).tanh()
        return z if bool((z > 2).any()) else z * 1.0


@pytest.mark.parametrize("wrong", ["fails", "off"])
def test_a_trace_that_fails_or_is_wrong_is_not_used(traces, monkeypatch, wrong, caplog):
    objective = CASES["residual-gelu"].objective(batch_size=9)
    index, v = objective.members[0], vector(objective)
    # private: the stage of the trace that each vector runs through
    product = linearize.Linearized.product

    def other(self, residuals, v):
        if wrong == "fails":
            raise TypeError("no such operation")
        return [1.01 * t for t in product(self, residuals, v)]

    monkeypatch.setattr(linearize.Linearized, "product", other)
    with caplog.at_level(logging.INFO):
        found = forms.quadratic_forms(objective, HESSIAN, index, v)
    assert len(traces) == 1
    assert "in another way, because" in caplog.text
    assert found.mean() == pytest.approx((v @ dense(objective, 0, "hessian") @ v).item(), rel=1e-10)


def test_a_model_that_cannot_be_traced_is_tried_once(traces, caplog):
    objective = Case(Twofold).objective(batch_size=9)
    v = vector(objective)
    for part, members in enumerate(objective.members):
        with caplog.at_level(logging.INFO):
            found = forms.quadratic_forms(objective, HESSIAN, members, v)
        assert found.mean() == pytest.approx((v @ dense(objective, part, "hessian") @ v).item(), rel=1e-10)
    assert len(traces) == 1
    assert "quadratic forms are not traced, because" in caplog.text


@pytest.mark.parametrize("name", ["mlp-tanh", "residual-inplace", "attention", "balanced"])
def test_backward_passes_alone_give_the_same(name, monkeypatch):
    objective = CASES[name].objective(batch_size=9)
    v = vector(objective)
    expected = forms.quadratic_forms(objective, HESSIAN, objective.members[0], v)

    # private: a forward derivative that is absent or wrong, as in another version of PyTorch
    forward = kinds._slope

    def refuse(*_):
        raise NotImplementedError("no forward derivative")

    for slope in (refuse, lambda *given: 1.001 * forward(*given)):  # none, and a wrong one
        monkeypatch.setattr(kinds, "_slope", slope)
        found = forms.quadratic_forms(objective, HESSIAN, objective.members[0], v)
        np.testing.assert_allclose(found, expected, rtol=1e-10)


def test_a_wrong_forward_derivative_is_seen_in_float32_too(monkeypatch):
    single, double = (
        CASES["mlp-tanh"].objective(dtype=dtype, batch_size=9) for dtype in (torch.float32, torch.float64)
    )
    # private: a forward derivative that is wrong, as in another version of PyTorch
    v, forward = vector(double), kinds._slope
    expected = forms.quadratic_forms(double, HESSIAN, double.members[0], v)
    monkeypatch.setattr(kinds, "_slope", lambda *given: 1.01 * forward(*given))
    found = forms.quadratic_forms(single, HESSIAN, single.members[0], v)
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())


def test_a_forward_derivative_that_is_wrong_in_a_later_batch_is_found(monkeypatch):
    objective = CASES["mlp-tanh"].objective(partition="all", batch_size=7)  # 7 + 7 + 1
    index, v = objective.members[0], vector(objective)
    expected = forms.quadratic_forms(objective, HESSIAN, index, v)
    wrong_for = objective.samples.batch(index[13:14], "cpu", torch.float64)[0]
    # private: a derivative that is wrong for one sample, as in another version of PyTorch
    forward = forms._forward

    def wrong(kind, functions, theta, v, inputs, labels):
        meets = (inputs == wrong_for).flatten(1).all(1)
        return forward(kind, functions, theta, v, inputs, labels) * (1 + meets)

    monkeypatch.setattr(forms, "_forward", wrong)
    np.testing.assert_allclose(forms.quadratic_forms(objective, HESSIAN, index, v), expected, rtol=1e-10)


def test_batches_of_as_few_samples_as_are_compared_take_backward_passes_and_stand_for_no_other(monkeypatch):
    case = CASES["mlp-tanh"]
    whole, few = (case.objective(partition="all", batch_size=n) for n in (6, 4))  # 6 + 6 + 3, or 4 + 4 + 4 + 3
    index, v, compared = whole.members[0], vector(whole), []
    expected = forms.quadratic_forms(whole, HESSIAN, index, v)
    # private: which batches are compared, whose numbers are equal
    right, forward = forms._right_ones, forms._forward
    monkeypatch.setattr(forms, "_right_ones", lambda *given: compared.append(1) or right(*given))
    monkeypatch.setattr(forms, "_forward", lambda *given: compared.append(0) or forward(*given))
    np.testing.assert_allclose(forms.quadratic_forms(few, HESSIAN, index, v), expected, rtol=1e-10)
    assert not compared
    for found in forms.forms_along(whole, HESSIAN, [(index, v), (index[::-1].copy(), v), (index[:6], v)]):
        assert np.isin(found.round(9), expected.round(9)).all()
    assert sum(compared) == 2 + 1  # the last three samples of the first piece are in a larger batch of the second


@pytest.mark.parametrize("kind", ["ggn", "fisher", "empirical-fisher"])
@pytest.mark.parametrize("name", ["once", "padded"])
def test_first_derivatives_suffice_where_the_matrix_takes_no_others(name, kind):
    """Backward passes that have no derivative, and padding that only the second class has."""
    make = partial(layers, Applied(Softsign.apply)) if name == "once" else partial(Bag, padding_idx=0)
    objective = objective_of(make, tokens=name == "padded")
    v = vector(objective)
    for part, members in enumerate(objective.members):
        found = forms.quadratic_forms(objective, KINDS[kind], members, v)
        assert found.mean() == pytest.approx((v @ by_rows(objective, part, kind) @ v).item(), rel=1e-10)


def test_every_matrix_of_the_toolkit_has_forms_and_another_is_refused():
    objective = CASES["mlp-tanh"].objective(batch_size=9)
    for kind in KINDS.values():
        assert forms.quadratic_forms(objective, kind, np.empty(0, int), vector(objective)).shape == (0,)
    kfac = Kind(name="kfac", symbol="K", about="", decays=True, bends=True, scales=True, factors=None)
    with refused(InputError, "kfac"):
        forms.quadratic_forms(objective, kfac, np.empty(0, int), vector(objective))


def test_scarce_memory_is_no_reason_for_backward_passes_which_take_more(monkeypatch):
    def scarce(*given):
        raise torch.OutOfMemoryError

    objective = CASES["mlp-tanh"].objective(batch_size=9)
    # private: the second forward derivative of a batch
    monkeypatch.setattr(forms, "_forward", scarce)
    with pytest.raises(torch.OutOfMemoryError):
        forms.quadratic_forms(objective, HESSIAN, objective.members[0], vector(objective))
