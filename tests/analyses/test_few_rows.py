"""The default of a Hessian with more than four classes: few rows, few curvatures, few products; against all of them."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

import landscape as ls
from landscape.analyses import samples
from landscape.curvature import extremes
from landscape.curvature.forms import quadratic_forms
from landscape.curvature.kinds import HESSIAN
from landscape.curvature.outputs import Keep
from landscape.data import datasets
from landscape.objective.objective import Objective
from landscape.results import inference

N, CLASSES = 60, 6
GIVEN = {"tol": 1e-4, "cache_bytes": 2**30}


def case(labels_of):
    """A part of 60 samples, whose labels depend on what the network predicts."""
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 9), nn.ReLU(), nn.Linear(9, CLASSES)).double()
    for p in model.parameters():
        p.data = torch.randn(p.shape, generator=generator, dtype=p.dtype)
    model[2].weight.data *= 3
    inputs = torch.randn(N, 8, generator=generator, dtype=torch.float64)
    data = datasets.from_dataset((inputs, labels_of(model(inputs).argmax(1))), name="case")
    return Objective.build(model, data, dtype=torch.float64, batch_size=16, device="cpu")


@pytest.fixture(scope="module")
def fitted():
    """Nearly all samples are classified correctly, most of them with confidence."""
    return case(lambda predicted: torch.cat([(predicted[:2] + 1) % CLASSES, predicted[2:]]))


@pytest.fixture(scope="module")
def exact(fitted):
    return ls.spectrum(fitted, trace="exact", gap=0.05)


def test_the_trace_has_no_bias_and_states_its_error(fitted, exact):
    found = [samples.samples(fitted, HESSIAN, 0, **GIVEN, seed=seed, trace_tol=None) for seed in range(40)]
    values, errors = np.array([one.trace for one in found]).T
    assert 0 < errors.min() < errors.max() < 0.1 * exact.trace[0]
    off = values - exact.trace[0]
    stated = np.sqrt(np.mean(errors**2))
    assert abs(off.mean()) <= 3 * stated / np.sqrt(len(found))
    assert 0.05 * stated < np.sqrt(np.mean(off**2)) <= 1.3 * stated
    traces = np.mean([one.lengths.traces for one in found], axis=0)
    np.testing.assert_allclose(traces, exact.sample_trace[0], atol=5 * stated * N / np.sqrt(len(found)))


def test_a_small_error_of_the_trace_needs_all_rows(fitted, exact):
    found = ls.spectrum(fitted)
    assert 0 < found.trace_stderr[0] < 0.1 * found.trace[0]
    assert abs(found.trace[0] - exact.trace[0]) <= 4 * found.trace_stderr[0]
    assert exact.trace_stderr[0] == 0
    assert ls.spectrum(fitted, trace_tol=0.5).trace_stderr[0] == found.trace_stderr[0]
    within = ls.spectrum(fitted, trace_tol=1e-6)
    assert (within.trace[0], within.trace_stderr[0]) == (exact.trace[0], 0)


def top(found):
    v = found.direction(found.eigen.combinations[:, 0])
    return v / v.norm()


def test_curvatures_of_samples_without_slopes_are_those_of_rows(fitted):
    # private: which samples are computed one by one, and the values of all of them, are in no result.
    found = samples.samples(fitted, HESSIAN, 0, **GIVEN)
    v = top(found.kept)
    expected = quadratic_forms(fitted, HESSIAN, found.members, v)
    value = float(found.lengths.weights @ expected)
    computed, crossfit = samples.along_vector(found, v, value)
    own = samples._slopes(found)
    some = np.isclose(computed, expected, rtol=1e-12, atol=0)
    assert 2 <= some.sum() < N
    assert own[~some].max() <= own[some].min() + 1e-12
    np.testing.assert_allclose(computed, expected, atol=0.01 * np.abs(expected).max())
    assert found.lengths.weights @ computed == pytest.approx(value, rel=1e-12)
    whole = samples._along(found, np.ones(N, dtype=bool), top=v, folds=True)[1]
    np.testing.assert_allclose(crossfit, whole, atol=0.01 * np.abs(whole).max())
    assert not np.array_equal(crossfit, whole)
    assert inference.stderr(crossfit) == pytest.approx(inference.stderr(whole), rel=0.02)


def test_fewer_samples_are_those_of_rows_where_these_miss_much_of_lambda_max(monkeypatch):
    # private: as above.
    wrong = case(lambda predicted: (predicted + 1) % CLASSES)
    found = samples.samples(wrong, HESSIAN, 0, **GIVEN)
    v = ls.spectrum(wrong, operator="residual", vectors=1).ritz_vectors[0, 0]  # the rows know nothing of it
    v = torch.from_numpy(v / np.linalg.norm(v))
    expected, whole = samples._along(found, np.ones(N, dtype=bool), top=v, folds=True)
    value = float(found.lengths.weights @ expected)
    by_rows = found.kept.gram.along(found.kept.rows.along(v))
    assert abs(value - found.lengths.weights @ by_rows) > samples.NEAR * value
    computed, crossfit = samples.along_vector(found, v, value)
    np.testing.assert_allclose(computed, expected, atol=0.01 * expected.max())
    np.testing.assert_allclose(crossfit, whole, atol=0.01 * expected.max())
    monkeypatch.setattr(samples, "NEAR", 1.0)
    monkeypatch.setattr(samples, "SLOPES", (0.1, 0.01))
    monkeypatch.setattr(samples, "MISSING", (0.03, 0.01))
    assert not np.allclose(samples.along_vector(found, v, value)[0], expected, atol=0.01 * expected.max())


def test_all_curvatures_are_computed_if_the_known_sum_shows_that_rows_miss_some(fitted):
    found = samples.samples(fitted, HESSIAN, 0, **GIVEN)
    v = top(found.kept)
    expected = quadratic_forms(fitted, HESSIAN, found.members, v)
    value = float(found.lengths.weights @ expected)
    np.testing.assert_allclose(samples.along_vector(found, v, 1.05 * value)[0], expected, rtol=1e-10, atol=1e-12)
    without = dataclasses.replace(found, kept=None)
    np.testing.assert_array_equal(samples.along_vector(without, v, value)[0], expected)


def test_rows_for_later_are_the_longest(fitted):
    found = samples.samples(fitted, HESSIAN, 0, **GIVEN, trace_tol=None, later=Keep(tol=0.0, most=5))
    lengths = np.abs(found.lengths.squares)
    kept = found.lengths.kept
    np.testing.assert_allclose(kept.vectors.square().sum(1), lengths[kept.sample, kept.row], rtol=1e-9)
    assert lengths[kept.sample, kept.row].min() == np.sort(lengths.ravel())[-5]
    few = samples.samples(fitted, HESSIAN, 0, **GIVEN, trace_tol=None, later=Keep(tol=0.5, most=5)).lengths
    assert len(few.kept.sample) == len(few.longest(0.5)[0]) < 5


def test_products_stop_where_the_error_over_samples_is_larger_than_the_gap(fitted, exact):
    found = ls.spectrum(fitted)
    error = found.lambda_max_sampling_stderr[0] / found.lambda_max[0]
    assert error > extremes.GAP
    assert exact.largest_at_most[0] <= 1.05 * exact.lambda_max[0]
    widest = 1.05 * min(error, extremes.WIDEST_GAP)  # the error by rows is not quite that of the Hessian
    assert found.largest_at_most[0] <= (1 + widest) * found.lambda_max[0]
    assert found.lambda_max[0] == pytest.approx(exact.lambda_max[0], abs=found.lambda_max_residual[0])
    assert [extremes.gap_beside(e) for e in (0.01, 0.2, 2.0, np.nan)] == [0.05, 0.2, 0.3, 0.05]
    for options in ({"tol": 1e-3}, {"accuracy": 0.9}, {"gap": 0.05}, {"sampling_errors": False}):
        assert ls.spectrum(fitted, **options).largest_at_most[0] <= 1.05 * exact.lambda_max[0]


def test_all_rows_of_a_few_samples_are_measured(fitted):
    alone = dataclasses.replace(fitted, members=(fitted.members[0][:10],))
    found = samples.samples(alone, HESSIAN, 0, **GIVEN, trace_tol=None)
    assert found.lengths.trace_stderr == 0
    assert found.trace[0] == pytest.approx(samples.samples(alone, HESSIAN, 0, **GIVEN).trace[0], rel=1e-12)


def test_memory_for_few_rows_keeps_the_longest_of_them(fitted):
    """Whatever they leave out: they are directions only."""
    size = fitted.layout.size * fitted.dtype.itemsize
    needed = [len(samples.samples(fitted, HESSIAN, 0, **GIVEN).lengths.longest(t)[0]) for t in samples.DIRECTION_TOLS]
    assert needed[-1] < needed[0] <= samples.DIRECTION_ROWS
    found = samples.samples(fitted, HESSIAN, 0, **GIVEN | {"cache_bytes": needed[-1] * size})
    assert found.kept is not None
    assert len(found.kept.rows.sample) == needed[-1]
