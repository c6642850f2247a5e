"""Rows of the Gauss-Newton and Fisher matrices, against dense matrices in float64."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from cases import CASES, CLASS_SIZES, Case, concave, mlp, smoothed
from exact import dense
from torch import nn
from torch.nn import functional as F

import landscape as ls
from landscape.autodiff.differentiable import differentiable_attention
from landscape.curvature import inner_products, kinds, rows
from landscape.curvature.kinds import KINDS
from landscape.curvature.outputs import Keep, largest
from landscape.networks import losses

EPS = 2.0**-52


def squared(logits, labels):
    return (logits - torch.eye(3, dtype=logits.dtype)[labels]).square().sum(1)


def kept(objective, kind, part, tol):
    """Lengths and rows, of which some are kept beside their lengths and the others computed afterwards."""
    known = rows.lengths(objective, KINDS[kind].factors, part, keep=Keep(tol=tol, most=5))
    found = rows.rows(objective, KINDS[kind].factors, part, known, tol)
    return known, found, found.gram.eigen(known.weights)


def spectrum(values, size):
    """All eigenvalues, with the zeros, descending."""
    return np.sort(np.append(values, np.zeros(max(0, size - len(values)))))[::-1][:size]


OF_ROWS = [name for name, kind in KINDS.items() if kind.has_rows]


@pytest.mark.parametrize(
    ("name", "kind"), sorted({(name, "ggn") for name in CASES} | {("residual-gelu", kind) for kind in OF_ROWS})
)
def test_all_rows_together_are_the_matrix(name, kind):
    objective = CASES[name].objective()
    for part in range(3):
        with differentiable_attention():
            matrix = dense(objective, part, kind)
        expected = torch.linalg.eigvalsh(matrix).numpy()[::-1]
        known, found, solved = kept(objective, kind, part, 0.0)
        scale = np.abs(expected).max()
        np.testing.assert_allclose(spectrum(solved.values, len(matrix)), expected, atol=1e-12 * scale)
        assert known.weights @ known.traces == pytest.approx(matrix.trace().item(), rel=1e-12)
        assert (found.tau_plus, found.tau_minus) == (0, 0)
        large = np.flatnonzero(np.abs(solved.values) > 1e-6 * scale)
        v = solved.combinations[:, large].T @ found.vectors.numpy()
        np.testing.assert_allclose(v @ v.T, np.eye(len(large)), atol=1e-9)  # rounding times 1e6, the least kept
        np.testing.assert_allclose(v @ matrix.numpy(), v * solved.values[large, None], atol=1e-11 * scale)


@pytest.mark.parametrize("loss", ["ce", "focal", smoothed, squared, concave])
def test_no_eigenvalue_is_farther_off_than_what_is_left_out(loss):
    objective = Case(lambda: mlp(nn.Tanh()), loss=loss).objective()
    for part in range(3):
        expected = torch.linalg.eigvalsh(dense(objective, part, "ggn")).numpy()[::-1]
        slack = 1e-13 * np.abs(expected).max()
        for tol in (0.5, 0.1, 1e-2, 1e-4):
            known, found, solved = kept(objective, "ggn", part, tol)
            off = expected - spectrum(solved.values, len(expected))
            assert -found.tau_minus - slack <= off.min()
            assert off.max() <= found.tau_plus + slack
            assert found.tau_plus + found.tau_minus <= tol * np.abs(known.squares).sum() / len(known.squares)
            # What is left out and what is kept add up: the bound is no wider than it must be.
            assert off.sum() == pytest.approx(found.tau_plus - found.tau_minus, abs=1e-12 * np.abs(expected).sum())


def test_fewest_rows_are_kept_whose_rest_is_within_the_tolerance():
    known = rows.Lengths(
        squares=np.array([[8.0, -1.0], [0.5, 0.25], [0.25, 0.0]]),
        uncertainty=np.zeros(3),
        weights=np.array([0.5, 0.25, 0.25]),
        logits=torch.zeros(3, 2),
        targets=torch.zeros(3),
    )  # weighted: 4, 0.5, 0.125, 0.0625, 0.0625, 0; in all 4.75
    for tol, pairs in {
        0.5: [(0, 0)],
        0.158: [(0, 0)],  # 0.75 of 4.75
        0.157: [(0, 0), (0, 1)],
        0.0: [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0)],
    }.items():
        sample, row = known.longest(tol)
        assert list(zip(sample, row, strict=True)) == pairs


@pytest.mark.parametrize("trimmed", [False, True])
def test_rows_that_were_kept_are_taken_and_the_others_computed(trimmed):
    objective, factors = CASES["residual-relu"].objective(), KINDS["ggn"].factors
    plain = rows.lengths(objective, factors, 0)
    every = rows.rows(objective, factors, 0, plain, 0.0)
    order = {pair: i for i, pair in enumerate(zip(every.sample, every.row, strict=True))}
    missing = set()
    for most in (*range(0, len(order), 4), len(order)):
        whole = rows.lengths(objective, factors, 0, keep=Keep(tol=0.0, most=most))
        for tol in np.geomspace(1e-6, 0.5, 5):
            known = replace(whole, kept=replace(whole.kept, vectors=whole.kept.vectors.clone()))
            if trimmed:
                before = known.kept.vectors.nbytes
                known = rows.trimmed(known, tol)
                assert known.kept.vectors.untyped_storage().nbytes() <= max(before, 1)
            needed = set(zip(*plain.longest(tol), strict=True))
            kept = set(zip(known.kept.sample, known.kept.row, strict=True))
            assert not trimmed or kept <= needed
            missing.add(len(needed - kept))
            found = rows.rows(objective, factors, 0, known, tol)
            assert found.vectors.nbytes <= found.n_bytes <= 2 * found.vectors.nbytes
            pairs = list(zip(found.sample, found.row, strict=True))
            assert pairs == sorted(needed)
            same = [order[pair] for pair in pairs]
            torch.testing.assert_close(found.vectors, every.vectors[same], rtol=1e-12, atol=1e-14)
            left = np.abs(known.squares).sum() - np.abs(known.squares[found.sample, found.row]).sum()
            assert found.tau_plus + found.tau_minus == pytest.approx(left / len(known.weights), rel=1e-9, abs=1e-15)
    assert missing >= {0, 1, 2}  # both cases are met


def test_each_samples_trace_is_that_of_its_own_matrix():
    objective = CASES["residual-relu"].objective()
    known = rows.lengths(objective, KINDS["ggn"].factors, 0)
    for i, index in enumerate(objective.members[0]):
        x, _ = objective.samples.batch(np.array([index]), objective.device, objective.dtype)

        def logits(theta, x=x):
            return objective.logits(theta, x)[0]

        p = logits(objective.theta).softmax(0)
        assert known.uncertainty[i] == pytest.approx((1 - p.square().sum()).item(), rel=1e-12)
        J = torch.cat([t.flatten(1) for t in torch.func.jacrev(logits)(objective.theta)], 1)
        expected = torch.einsum("cd,ce,ed->", J, torch.diag(p) - torch.outer(p, p), J)
        assert known.traces[i] == pytest.approx(expected.item(), rel=1e-12)


@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_equal_eigenvalues_in_the_logits_do_not_mix_up_rows(batch_size):
    """At p = 1/3 two eigenvalues are equal and their vectors arbitrary: lengths and rows must be of the same ones."""
    objective = CASES["mlp-tanh"].objective(batch_size=batch_size)
    for t in objective.theta[-2:]:
        t.zero_()
    with torch.no_grad():
        for t in objective.theta[-2:-1]:
            t.copy_(1e-12 * torch.randn(t.shape, generator=torch.Generator().manual_seed(0), dtype=t.dtype))
    for tol in (0.5, 0.1):
        known, found, solved = kept(objective, "ggn", 0, tol)
        assert solved.values.sum() + found.tau_plus == pytest.approx(known.weights @ known.traces, rel=1e-12)


def test_float32_rows_are_right_to_its_rounding_and_leave_the_model_as_it_was():
    objective = CASES["residual-relu"].objective(dtype=torch.float32)
    expected = torch.linalg.eigvalsh(dense(CASES["residual-relu"].objective(), 0, "ggn")).numpy()[::-1]
    _, found, solved = kept(objective, "ggn", 0, 0.0)
    assert found.vectors.dtype == torch.float32
    np.testing.assert_allclose(spectrum(solved.values, len(expected)), expected, atol=10 * 2.0**-23 * expected[0])
    assert not any(p.requires_grad for p in objective.model.parameters())


def test_inner_products_go_on_in_float64_from_one_piece_of_the_columns_to_the_next():
    """2^24 + 1 + 1: in float32 the ones would be lost, one after the other."""
    a = torch.zeros(1, 4000)
    a[0, 0], a[0, 1500], a[0, 3999] = 2.0**12, 1.0, 1.0
    assert inner_products.products(a, a).tolist() == [[2.0**24 + 2]]


def test_inner_products_of_many_rows_with_themselves():
    a = torch.randn(300, 700, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    np.testing.assert_allclose(inner_products.products(a, a), (a @ a.T).numpy(), rtol=1e-12, atol=1e-10)
    np.testing.assert_allclose(inner_products.products(a, a[:5]), (a @ a[:5].T).numpy(), rtol=1e-12, atol=1e-10)


def test_a_fitted_samples_curvature_keeps_its_digits():
    """1 - p is 1e-14 here: taken as a difference it would have two digits left."""
    z = torch.tensor([[32.0, 0.0, -1.0]], dtype=torch.float64)
    middle = kinds.between(losses.cross_entropy, z, torch.tensor([0]))[0]
    others = np.exp(-32.0) + np.exp(-33.0)
    p = np.array([1.0, np.exp(-32.0), np.exp(-33.0)]) / (1 + others)
    expected = np.diag([p[0] * (p[1] + p[2]), p[1] * (p[0] + p[2]), p[2] * (p[0] + p[1])])
    expected = expected - (np.outer(p, p) - np.diag(p * p))
    np.testing.assert_allclose(middle, expected, rtol=1e-14)


def test_sizes_of_the_parts_are_those_of_the_cases():
    objective = CASES["mlp-tanh"].objective()
    assert [len(rows.lengths(objective, KINDS["ggn"].factors, p).squares) for p in range(3)] == list(CLASS_SIZES)


def test_numbers_that_cannot_be_chosen_use_up_what_may_be_left_out():
    sizes = np.array([[4.0, 1.0], [3.0, 2.0]])
    assert np.transpose(largest(sizes, 0.4)).tolist() == [[0, 0], [1, 0]]  # 3 of 10 are left
    assert np.transpose(largest(sizes, 0.4, 5.0)).tolist() == [[0, 0], [1, 0], [1, 1]]  # 1 + 5 of 15
    assert len(largest(sizes, 0.3, 5.0)[0]) == 4  # 5 of 15 are more, so all others are kept


def test_samples_without_curvature_in_their_outputs_have_rows_of_length_zero():
    """Errors beyond the delta of a Huber loss: it is linear for all samples but the last."""
    y = torch.full((40, 2), 1e3, dtype=torch.float64)
    y[39] = 0
    objective = ls.make_objective(
        nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double(),
        (torch.randn(40, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64), y),
        loss=lambda out, y: F.huber_loss(out, y, reduction="none", delta=10).sum(1),
        dtype="float64",
    )
    known, found, solved = kept(objective, "ggn", 0, 0.0)
    assert not known.traces[:39].any()
    expected = torch.linalg.eigvalsh(dense(objective, 0, "ggn")).numpy()[::-1]
    np.testing.assert_allclose(spectrum(solved.values, len(expected)), expected, atol=1e-12 * expected[0])
    assert set(found.sample) == {39}


def test_products_of_long_rows_with_a_vector_keep_their_digits():
    vectors = torch.randn(2, 2**20, generator=torch.Generator().manual_seed(0))
    facts = {"sample": np.arange(2), "row": np.zeros(2, dtype=int), "sign": np.ones(2), "n": 2}
    found = rows.Stored(**facts, tau_plus=0.0, tau_minus=0.0, vectors=vectors).along(vectors[0])
    expected = vectors.double() @ vectors[0].double()
    np.testing.assert_allclose(found, expected.numpy(), rtol=0, atol=1e-5 * 2**20)
