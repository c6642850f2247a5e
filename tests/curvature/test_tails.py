"""Estimates of the rows that are not measured, against all rows in float64."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from cases import Case, concave, mlp, smoothed
from torch import nn

from landscape.curvature import rows, tails
from landscape.curvature.kinds import KINDS
from landscape.curvature.outputs import Keep

FACTORS = KINDS["hessian"].factors
SEEDS = range(24)


def squared(logits, labels):
    return (logits - torch.eye(3, dtype=logits.dtype)[labels]).square().sum(1)


@pytest.fixture(scope="module", params=["ce", "focal", smoothed, squared, concave])
def objective(request):
    return Case(lambda: mlp(nn.Tanh()), loss=request.param).objective()


@pytest.mark.parametrize("most", [0, 7])
def test_the_mean_over_all_signs_is_the_sum_of_the_other_rows_squared_lengths(objective, most, monkeypatch):
    monkeypatch.setattr(tails, "_WHOLE", 0.0)  # no sample is left out
    exact = rows.lengths(objective, FACTORS, 1)
    found = [tails.lengths(objective, FACTORS, 1, Keep(tol=1e-9, most=most), seed=seed) for seed in SEEDS]
    measured = found[0].squares != 0
    assert measured.sum() == min(most, np.count_nonzero(exact.squares))
    equal = np.isclose(
        np.abs(exact.squares).max(), np.abs(exact.squares[:, 0]).min()
    )  # no order among equal eigenvalues
    if not equal:
        size = np.abs(exact.squares).max()
        np.testing.assert_allclose(found[0].squares[measured], exact.squares[measured], rtol=1e-9, atol=1e-12 * size)
    left = np.where(measured, 0, exact.squares)
    of_sign = np.stack([np.maximum(left, 0).sum(1), np.maximum(-left, 0).sum(1)], axis=1)
    estimates = np.stack([one.tails for one in found])
    for sample, side in np.ndindex(of_sign.shape):
        # Two rows have two outcomes, three rows four, all equally likely.
        outcomes = np.unique(estimates[:, sample, side].round(10))
        assert len(outcomes) == {0: 1, 1: 1, 2: 2, 3: 4}[np.count_nonzero(side_of(left[sample], side))]
        assert outcomes.mean() == pytest.approx(of_sign[sample, side], abs=1e-9)


def side_of(values, side):
    return values[values > 0] if side == 0 else values[values < 0]


def test_the_stated_error_of_the_trace_is_at_least_its_spread(objective):
    objective = replace(objective, batch_size=5)
    exact = rows.lengths(objective, FACTORS, 1)
    found = [tails.lengths(objective, FACTORS, 1, Keep(tol=1e-9, most=0), seed=seed) for seed in SEEDS]
    off = np.array([one.weights @ one.traces for one in found]) - exact.weights @ exact.traces
    stated = np.sqrt(np.mean([one.trace_stderr**2 for one in found]))
    assert np.sqrt(np.mean(off**2)) <= 1.3 * stated  # 24 draws know their spread to 15 %
    assert np.abs(off).max() > 0


def test_what_is_left_out_counts_in_the_choice_of_rows_and_in_the_bound(objective):
    known = tails.lengths(objective, FACTORS, 1, Keep(tol=1e-9, most=7), seed=0)
    found = rows.rows(objective, FACTORS, 1, known, 0.0)
    assert len(found.sample) == np.count_nonzero(known.squares)
    assert found.tau_plus == pytest.approx(known.weights @ known.tails[:, 0], rel=1e-12)
    assert found.tau_minus == pytest.approx(known.weights @ known.tails[:, 1], rel=1e-12)
    total = known.weights @ (np.abs(known.squares).sum(1) + known.tails.sum(1))
    fewer = len(known.longest((known.weights @ known.tails.sum(1) / total + 1) / 2)[0])
    assert 0 < fewer < len(found.sample)
    again = rows.rows(objective, FACTORS, 1, rows.Lengths(**{**vars(known), "kept": None}), 0.0)
    torch.testing.assert_close(found.vectors.abs(), again.vectors.abs(), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(
        found.vectors.square().sum(1), np.abs(known.squares[found.sample, _row(known)]), rtol=1e-9
    )


def _row(known):
    return known.longest(0.0)[1]


def test_every_row_is_measured_if_there_is_room():
    objective = Case(lambda: mlp(nn.Tanh())).objective()
    exact = rows.lengths(objective, FACTORS, 0)
    found = tails.lengths(objective, FACTORS, 0, Keep(tol=0.0, most=1000), seed=0)
    np.testing.assert_allclose(found.squares, exact.squares, rtol=1e-9, atol=1e-14)
    assert (found.tails == 0).all()
    assert found.trace_stderr == 0
    np.testing.assert_array_equal(found.uncertainty, exact.uncertainty)


def test_the_expected_number_of_combinations_is_that_asked_for_and_none_is_more_than_certain():
    # private: a network gives no sizes whose probabilities are known in a closed form.
    sizes = np.array([0.0, 5.0, 1.0, 1.0, 1.0, 0.5, 0.5, 0.0])
    for share, expected in ((0.0, 2), (0.05, 4)):
        chance = tails._probabilities(sizes, share)
        assert chance[sizes > 0].sum() == pytest.approx(expected)
        assert chance[1] == 1
        np.testing.assert_allclose(chance[2:7] / sizes[2:7], chance[2], rtol=1e-12)
        assert chance.max() == 1
    for share, of in ((0.1, sizes), (0.0, np.zeros(8)), (0.0, np.eye(8)[0])):
        assert (tails._probabilities(of, share) == 1).all()


def test_combinations_of_some_samples_have_no_bias_and_a_stated_error(monkeypatch):
    monkeypatch.setattr(tails, "_WHOLE", 10.0)
    objective = Case(lambda: mlp(nn.Tanh())).objective()
    exact = rows.lengths(objective, FACTORS, 0)
    keep = Keep(tol=0.0, most=0)
    found = [tails.lengths(objective, FACTORS, 0, keep, seed=seed) for seed in range(100)]
    assert 0 < np.mean([np.count_nonzero(one.tails[:, 0]) for one in found]) < 0.6 * len(exact.squares)
    off = np.array([one.weights @ one.traces for one in found]) - exact.weights @ exact.traces
    stated = np.sqrt(np.mean([one.trace_stderr**2 for one in found]))
    assert abs(off.mean()) <= 3 * off.std() / 10
    assert 0.3 * stated < off.std() <= 1.15 * stated  # 100 draws know their spread to 7 %


def test_the_signs_are_those_of_the_part_also_where_it_is_measured_alone():
    objective = Case(lambda: mlp(nn.Tanh())).objective()
    alone = objective.alone(objective.partition.names[1])
    for seed in range(4):
        given = {"keep": Keep(tol=0.0, most=0), "seed": seed}
        found, expected = tails.lengths(alone, FACTORS, 0, **given), tails.lengths(objective, FACTORS, 1, **given)
        np.testing.assert_allclose(found.tails, expected.tails, rtol=1e-9)
