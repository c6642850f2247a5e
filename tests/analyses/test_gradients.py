"""Gradients of parts: closed forms, a loop over parts by another route, and what each number claims of itself."""

import dataclasses

import numpy as np
import pytest
import torch
from gradient_numbers import NUMBERS, agree, layers_of, numbers
from refusals import refused
from torch import nn

import landscape as ls
from landscape.analyses import part_losses
from landscape.autodiff import distributed
from landscape.autodiff.distributed import Team
from landscape.curvature import gram
from landscape.data.datasets import from_dataset
from landscape.errors import InputError, NumericalError
from landscape.objective.objective import Objective
from tests.cases import CASES, CLASS_SIZES, Case, mlp
from tests.exact import flat_function

SHARES = np.array(CLASS_SIZES) / sum(CLASS_SIZES)


def of_parts(objective):
    """The gradient of each part's mean loss, (P, D), by torch.func.grad on all of its samples at once, in float64."""
    found = [flat_function(objective, p)[1:3] for p in range(len(objective.partition))]
    return np.stack([torch.func.grad(loss)(point).numpy() for loss, point in found])


def softmax_classifier(C=4, F=3, n_per_class=(5, 3, 2, 1)):
    """A linear model without bias, data, and the closed form of its class gradients: mean of (p - e_y) x^T."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn((sum(n_per_class), F), generator=generator, dtype=torch.float64)
    y = torch.cat([torch.full((n,), c) for c, n in enumerate(n_per_class)])
    model = nn.Linear(F, C, bias=False).double()
    with torch.no_grad():
        model.weight.normal_(generator=generator)
    objective = Objective.build(model, from_dataset((x, y)), partition="class", dtype=torch.float64, batch_size=4)
    W = model.weight.detach().numpy()
    z = x.numpy() @ W.T
    p = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
    error = p - np.eye(C)[y.numpy()]
    rows = [(error[y == c].T @ x.numpy()[y == c]).ravel() / n for c, n in enumerate(n_per_class)]
    return objective, np.stack(rows), np.array(n_per_class), np.linalg.norm(W)


def test_a_softmax_classifier_has_the_gradients_of_the_closed_form():
    objective, rows, counts, length = softmax_classifier()
    found = ls.gradients(objective)
    agree(found, numbers(rows, counts / counts.sum(), counts, length, {"weight": np.arange(12)}))
    assert found.layers == ("weight",)  # the model itself holds it
    assert found.theta_norm[0] == pytest.approx(length)
    assert found.size == 12
    assert np.isnan(found.radius[0, 3])  # one sample


@pytest.mark.parametrize("name", list(CASES))
def test_all_numbers_are_those_of_the_vectors_themselves(name):
    objective = CASES[name].objective()
    rows = of_parts(objective)
    length = float(torch.cat([t.reshape(-1) for t in objective.theta]).norm())
    found = ls.gradients(objective)
    layers = layers_of(objective)
    agree(found, numbers(rows, SHARES, np.array(CLASS_SIZES), length, layers))
    assert found.layers == tuple(layers)
    assert found.loss[0] == pytest.approx(objective.evaluation.loss)
    for field in dataclasses.fields(found):
        if field.name.endswith("_stderr"):
            error = getattr(found, field.name)  # absent where it was not asked for
            assert error is None or (np.nan_to_num(error) == 0).all(), field.name
    assert (found.batches == 0).all()
    assert found.batch_size == 0


def test_the_group_specific_part_is_orthogonal_and_the_two_make_up_the_gradient():
    objective = CASES["residual-relu"].objective()
    found = ls.gradients(objective)
    assert np.allclose(found.projected**2 + found.specific**2, found.norm**2, rtol=1e-12)
    rows = of_parts(objective)
    g = SHARES @ rows
    h = rows - np.outer(found.projected[0] / found.whole_norm[0], g)
    assert np.abs(h @ g).max() < 1e-12 * (g @ g)
    assert np.allclose(np.linalg.norm(h, axis=1), found.specific[0], rtol=1e-7)


def test_the_whole_is_the_share_weighted_sum_of_the_parts():
    parts = ls.gradients(CASES["mlp-tanh"].objective())
    whole = ls.gradients(CASES["mlp-tanh"].objective(partition="all"))
    assert whole.norm[0, 0] == pytest.approx(parts.whole_norm[0], rel=1e-12)
    assert SHARES @ parts.projected[0] == pytest.approx(parts.whole_norm[0], rel=1e-12)
    assert parts.contribution.sum() == pytest.approx(1, rel=1e-12)
    # Shared norms: |sum of share_p g_p|^2 from the cosines between the parts alone.
    weights = SHARES * parts.norm[0]
    assert weights @ parts.between[0] @ weights == pytest.approx(parts.whole_norm[0] ** 2, rel=1e-9)


@pytest.mark.parametrize("options", [{}, {"batches": 1, "samples_per_batch": 6}])
def test_layers_add_up_to_the_whole(options):
    found = ls.gradients(CASES["residual-gelu"].objective(), **options)
    known = found.norm[0] > 0  # in the batch
    squares, products = found.layer_whole_norm**2, found.layer_contribution * found.layer_whole_norm[..., None] ** 2
    for value, expected in (
        ((found.layer_norm**2).sum(axis=1)[:, known], found.norm[:, known] ** 2),
        (squares.sum(axis=1), found.whole_norm**2),
        (products.sum(axis=1), found.contribution * found.whole_norm**2),
        ((found.layer_cosine * found.layer_norm * found.layer_whole_norm[..., None]).sum(axis=1)[:, known],
         (found.projected * found.whole_norm)[:, known]),
        (found.layer_contribution.sum(axis=2), np.ones((1, 5))),
    ):  # fmt: skip
        np.testing.assert_allclose(value, expected, rtol=1e-12, atol=1e-12 * np.abs(expected).max())


def test_samples_in_no_part_are_not_in_the_whole():
    two = ls.gradients(CASES["mlp-tanh"].objective(classes="2,0"))
    rows = of_parts(CASES["mlp-tanh"].objective())[[2, 0]]
    assert two.whole_norm[0] == pytest.approx(np.linalg.norm(np.array([0.1, 0.9]) @ rows), rel=1e-9)
    assert two.n_samples.tolist() == [1, 9]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_one_part_has_nothing_of_its_own(dtype):
    for seed in range(8):  # the root of a difference that rounding leaves is not zero for each of them
        found = ls.gradients(CASES["mlp-tanh"].objective(partition="all", dtype=dtype, seed=seed))
        assert found.specific[0, 0] == 0
        assert np.isnan(found.radius[0, 0])
        assert found.cosine[0, 0] == pytest.approx(1, abs=1e-12)
        assert found.contribution[0, 0] == pytest.approx(1, abs=1e-6)


def test_float32_agrees_with_float64_and_the_batch_size_changes_nothing():
    reference = ls.gradients(CASES["residual-gelu"].objective())
    expected = {name: getattr(reference, name)[0] for name in NUMBERS}
    for size in (1, 7, 1000):
        agree(ls.gradients(CASES["residual-gelu"].objective(batch_size=size)), expected)
    agree(ls.gradients(CASES["residual-gelu"].objective(dtype=torch.float32)), expected, rel=1e-4)


@pytest.mark.parametrize("rows_that_fit", [0, 1, 2])
def test_gradients_that_do_not_fit_together_give_the_same(rows_that_fit):
    objective = CASES["residual-gelu"].objective()
    reference = ls.gradients(objective)
    found = ls.gradients(objective, cache_bytes=rows_that_fit * 8 * objective.layout.size)
    agree(found, {name: getattr(reference, name)[0] for name in NUMBERS}, rel=1e-9)


def test_parameters_are_those_that_were_chosen():
    whole = CASES["mlp-tanh"].objective()
    found = ls.gradients(CASES["mlp-tanh"].objective(params="3"))
    last = sum(t.numel() for n, t in zip(whole.layout.names, whole.theta, strict=True) if n.startswith("3."))
    assert found.size == last
    length = float(torch.cat([t.reshape(-1) for t in whole.theta])[-last:].norm())
    layers = {"3": np.arange(last)}
    agree(found, numbers(of_parts(whole)[:, -last:], SHARES, np.array(CLASS_SIZES), length, layers))
    assert found.layers == ("3",)
    both = [ls.gradients(CASES["mlp-tanh"].objective(params="3"), **o) for o in ({}, {"batches": 1})]
    agree(both[1], {name: getattr(both[0], name)[0] for name in NUMBERS})


def no_loss_for_the_last(logits, labels):
    return nn.functional.cross_entropy(logits, labels, reduction="none") * (labels != 2)


@pytest.mark.parametrize("batches", [None, 1])
def test_a_gradient_of_zero_has_no_cosine(batches):
    found = ls.gradients(Case(mlp_of_tanh, loss=no_loss_for_the_last).objective(), batches=batches)
    assert found.norm[0].tolist()[2] == found.specific[0, 2] == found.projected[0, 2] == 0
    for name in ("cosine", "cosine_stderr", "radius"):
        assert np.isnan(getattr(found, name)[0, 2]), name
    for name in ("between", "conflict"):
        assert np.isnan(getattr(found, name)[0, 2]).all(), name
        assert np.isnan(getattr(found, name)[0, :, 2]).all(), name
        assert np.isfinite(getattr(found, name)[0, :2, :2]).all(), name
    assert found.contribution[0, 2] == 0
    assert np.isfinite(found.cosine[0, :2]).all()


def mlp_of_tanh():
    return mlp(nn.Tanh())


@pytest.mark.parametrize("batches", [None, 1])
@pytest.mark.parametrize("C", [2, 7])
def test_gradients_that_cancel_leave_no_direction(batches, C):
    """One sample x = 1 a class and weights 0: g_c = 1/C - e_c, whose mean is zero, or 1e-17 as 7/7 is rounded."""
    model = nn.Linear(1, C, bias=False).double()
    nn.init.zeros_(model.weight)
    samples = from_dataset((torch.ones((C, 1), dtype=torch.float64), torch.arange(C)))
    objective = Objective.build(model, samples, partition="class", dtype=torch.float64)
    found = ls.gradients(objective, batches=batches)
    assert found.norm[0] == pytest.approx(np.full(C, np.sqrt(1 - 1 / C)))
    assert (found.whole_norm[0] > 0) == (C == 7)
    assert found.whole_norm[0] == pytest.approx(0, abs=1e-15)
    for name in ("cosine", "projected", "specific", "radius", "contribution"):
        assert np.isnan(getattr(found, name)).all(), name
    others = ~np.eye(C, dtype=bool)
    assert found.between[0][others] == pytest.approx(np.full(C * (C - 1), -1 / (C - 1)))
    np.testing.assert_array_equal(found.conflict[0], others)


# Batches


@pytest.mark.parametrize(
    ("name", "batch_size", "options"),
    [
        ("residual-inplace", 4, {}),
        ("residual-inplace", 100, {}),
        ("attention", 100, {}),
        ("features", 4, {"cache_bytes": 500}),
        ("balanced", 4, {}),
    ],
)
def test_one_batch_of_all_samples_gives_the_exact_numbers(name, batch_size, options):
    objective = CASES[name].objective(batch_size=batch_size)
    exact = ls.gradients(objective)
    found = ls.gradients(objective, batches=1, samples_per_batch=15, **options)
    agree(found, {n: getattr(exact, n)[0] for n in NUMBERS})
    assert found.loss == pytest.approx(exact.loss)
    assert found.batches.tolist() == [[1, 1, 1]]
    assert found.batch_size == 15
    for n in ("cosine_stderr", "norm_stderr", "between_stderr", "whole_norm_stderr"):
        assert np.isnan(getattr(found, n)).all()  # one batch cannot tell its own spread


class Overflowing(torch.autograd.Function):
    """Finite values whose gradient is not."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, g):
        return g * np.inf


def infinite_for_the_last(logits, labels):
    values = nn.functional.cross_entropy(logits, labels, reduction="none")
    return torch.where(labels == 2, Overflowing.apply(values), values)


@pytest.mark.parametrize("batches", [None, 1])
def test_a_gradient_that_is_not_finite_is_refused(batches):
    objective = Case(mlp_of_tanh, loss=infinite_for_the_last).objective()
    with pytest.raises(NumericalError, match="the gradient of part"):
        ls.gradients(objective, batches=batches)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"batches": 0}, ("batches", 0)),
        ({"batches": 2, "samples_per_batch": 0}, ("samples_per_batch", 1)),
        ({"batches": 2, "seed": -1}, ("seed", 0)),
        ({"cache_bytes": -1}, ("cache_bytes",)),
        ({"checkpoints": []}, ("checkpoint",)),
        ({"checkpoints": ["absent.pt"]}, ("absent.pt",)),
    ],
)
def test_options_out_of_range_are_named(options, words):
    with refused(InputError, *words):
        ls.gradients(CASES["mlp-tanh"].objective(), **options)


def test_weight_decay_is_refused_as_it_is_in_curvature_only():
    with refused(InputError, weight_decay=0.01):
        ls.gradients(CASES["mlp-tanh"].objective(weight_decay=0.01))


def test_the_model_that_gradients_are_taken_of_is_a_copy():
    objective = CASES["mlp-tanh"].objective(params="3")
    model = gram.trainable(objective.model, objective.layout)
    assert [n for n, p in model.named_parameters() if p.requires_grad] == ["3.weight", "3.bias"]
    assert not any(p.requires_grad for p in objective.model.parameters())
    assert not model.training


def test_two_processes_divide_the_slopes_of_single_samples(monkeypatch):
    objective, whole = CASES["mlp-tanh"].objective(), part_losses.with_slopes
    seen = []

    class FirstOfTwo(Team):
        """The first of two processes, for which the other one's numbers are zero."""

        def total(self, part):
            return part

        def gathered(self, rows):
            return torch.cat([rows, rows.new_zeros(CLASS_SIZES[len(seen) - 1] - len(rows), *rows.shape[1:])])

        def least(self, numbers):
            return numbers

        def agreed(self, numbers):
            return numbers

        def finished(self):
            pass

    def slopes(*given):
        found = whole(*given)
        seen.append(found.shape[1])
        return found

    monkeypatch.setattr(part_losses, "with_slopes", slopes)
    monkeypatch.setattr(distributed, "team", lambda: FirstOfTwo(0, 2))
    ls.gradients(objective, sampling_errors=True)
    assert seen == [n // 2 for n in CLASS_SIZES]
