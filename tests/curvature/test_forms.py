"""Quadratic forms of single samples, against dense matrices of single samples."""

from functools import partial

import numpy as np
import pytest
import torch
from cases import CASES, Case, concave
from exact import dense, differences
from hard import Applied, Bag, Softsign, by_rows, layers, objective_of
from refusals import refused

from landscape.autodiff.differentiable import differentiable_attention
from landscape.curvature import forms
from landscape.curvature.kinds import HESSIAN, KINDS, Kind
from landscape.errors import InputError


def vector(objective, seed=0):
    return torch.randn(objective.layout.size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("kind", ["hessian", "ggn", "fisher", "empirical-fisher"])
@pytest.mark.parametrize("name", ["mlp-tanh", "residual-gelu", "residual-inplace", "features", "attention", "smoothed"])
def test_the_mean_over_samples_is_that_of_the_matrix(name, kind):
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
def test_each_samples_form_is_the_second_derivative_of_its_own_loss(name):
    objective = CASES[name].objective(batch_size=9)
    index = objective.members[0]
    v = vector(objective)
    found = forms.quadratic_forms(objective, HESSIAN, index, v)
    for i, one in enumerate(index):
        alone = forms.quadratic_forms(objective, HESSIAN, np.array([one]), v)
        assert found[i] == pytest.approx(alone[0], rel=1e-10)
    parts = sum(forms.quadratic_forms(objective, KINDS[kind], index, v) for kind in ("ggn", "residual"))
    np.testing.assert_allclose(parts, found, rtol=1e-10)


@pytest.mark.parametrize("name", ["mlp-tanh", "residual-inplace", "attention", "balanced"])
def test_backward_passes_alone_give_the_same(name, monkeypatch):
    objective = CASES[name].objective(batch_size=9)
    v = vector(objective)
    expected = forms.quadratic_forms(objective, HESSIAN, objective.members[0], v)

    # private: a forward derivative that is absent or wrong, as in another version of PyTorch
    forward = forms._slope

    def refuse(*_):
        raise NotImplementedError("no forward derivative")

    for slope in (refuse, lambda *given: 1.001 * forward(*given)):  # none, and a wrong one
        monkeypatch.setattr(forms, "_slope", slope)
        found = forms.quadratic_forms(objective, HESSIAN, objective.members[0], v)
        np.testing.assert_allclose(found, expected, rtol=1e-10)


def test_a_wrong_forward_derivative_is_seen_in_float32_too(monkeypatch):
    single, double = (
        CASES["mlp-tanh"].objective(dtype=dtype, batch_size=9) for dtype in (torch.float32, torch.float64)
    )
    # private: a forward derivative that is wrong, as in another version of PyTorch
    v, forward = vector(double), forms._slope
    expected = forms.quadratic_forms(double, HESSIAN, double.members[0], v)
    monkeypatch.setattr(forms, "_slope", lambda *given: 1.01 * forward(*given))
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
    right, forward = forms._right_one, forms._forward
    monkeypatch.setattr(forms, "_right_one", lambda *given: compared.append(1) or right(*given))
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
