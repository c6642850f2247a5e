"""Eigenvalues and curvature of samples from inner products, against the matrices themselves."""

import numpy as np
import pytest

from landscape.results.gram import Gram


def problem(seed=0, signs=True, n=6, size=9):
    """Rows (m, D) of n samples, of which some have several rows and one has none."""
    rng = np.random.default_rng(seed)
    sample = np.array([0, 0, 1, 2, 2, 2, 3, 4])
    A = rng.normal(size=(len(sample), size))
    A[3] = A[0] + A[1]  # rows that depend on each other
    sign = np.where(rng.random(len(sample)) < 0.3, -1.0, 1.0) if signs else np.ones(len(sample))
    return A, Gram(products=A @ A.T, sign=sign, sample=sample, n=n)


def dense(A, gram, weights):
    return (A.T * (gram.sign * weights[gram.sample])) @ A


@pytest.mark.parametrize("signs", [False, True])
@pytest.mark.parametrize("seed", range(10))
def test_eigenvalues_and_vectors_are_those_of_the_weighted_matrix(seed, signs):
    A, gram = problem(seed, signs)
    weights = np.random.default_rng(seed).random(gram.n)
    matrix = dense(A, gram, weights)
    found = gram.eigen(weights)
    expected = np.linalg.eigvalsh(matrix)[::-1]
    ours = np.sort(np.append(found.values, np.zeros(len(matrix) - len(found.values))))[::-1]
    np.testing.assert_allclose(ours, expected, atol=1e-12 * np.abs(expected).max())
    value, combination = gram.top(weights)
    v = combination @ A
    assert value == pytest.approx(max(0, expected[0]), rel=1e-12)
    np.testing.assert_allclose(matrix @ v, value * v, atol=1e-11 * np.abs(expected).max())
    assert v @ v == pytest.approx(1, rel=1e-10)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_curvatures_and_traces_of_samples_are_those_of_their_own_matrices_and_add_up(seed):
    A, gram = problem(seed)
    weights = np.array([0.3, 0.1, 0.2, 0.2, 0.1, 0.1])
    value, combination = gram.top(weights)
    v = combination @ A
    each = [v @ dense(A, gram, np.eye(gram.n)[i]) @ v for i in range(gram.n)]
    np.testing.assert_allclose(gram.curvatures(combination), each, atol=1e-12 * value)
    traces = [np.trace(dense(A, gram, np.eye(gram.n)[i])) for i in range(gram.n)]
    assert (gram.sign < 0).any()
    np.testing.assert_allclose(gram.traces, traces, rtol=1e-12)
    assert weights @ gram.curvatures(combination) == pytest.approx(value, rel=1e-10)


@pytest.mark.parametrize("n", [1, 256, 257, 300])
def test_many_rows_take_another_way_to_the_same_largest_eigenvalue_and_vector(n):
    rng = np.random.default_rng(n)
    A = rng.normal(size=(n, 12)) * rng.lognormal(size=(n, 1))
    gram = Gram(products=A @ A.T, sign=np.ones(n), sample=np.arange(n), n=n)
    weights = rng.random(n)
    expected, vectors = np.linalg.eigh((A.T * weights) @ A)
    value, combination = gram.top(weights)
    assert value == pytest.approx(expected[-1], rel=1e-10)
    assert abs(combination @ A @ vectors[:, -1]) == pytest.approx(1, rel=1e-10)


@pytest.mark.parametrize("n", [3, 300])
def test_rows_of_length_zero_have_no_curvature(n):
    gram = Gram(products=np.zeros((n, n)), sign=np.ones(n), sample=np.arange(n), n=n)
    value, combination = gram.top(np.ones(n))
    assert value == 0
    assert not combination.any()


def test_samples_without_weight_count_no_more_than_absent_ones():
    A, gram = problem()
    weights = np.array([0.5, 0.0, 0.5, 0.0, 0.0, 0.0])
    expected = np.linalg.eigvalsh(dense(A, gram, weights))[-1]
    assert gram.top(weights)[0] == pytest.approx(expected, rel=1e-12)
    assert gram.top(np.zeros(6)) == (0.0, pytest.approx(np.zeros(8)))


def test_a_sample_does_not_see_itself_in_its_cross_fitted_curvature():
    A, gram = problem(signs=False)
    weights = np.full(6, 1 / 6)
    found = gram.crossfitted(weights, folds=6)
    for i in range(6):
        _, vectors = np.linalg.eigh(dense(A, gram, np.where(np.arange(6) == i, 0, weights)))
        v = vectors[:, -1]
        assert found[i] == pytest.approx(v @ dense(A, gram, np.eye(6)[i]) @ v, rel=1e-9, abs=1e-12)
    five = gram.crossfitted(weights)
    assert not np.allclose(five, found)  # two samples share a fold
    assert np.isnan(
        Gram(products=np.ones((1, 1)), sign=np.ones(1), sample=np.zeros(1, int), n=1).crossfitted(np.ones(1))
    )


def test_the_seed_divides_the_samples_into_folds():
    _, gram = problem(signs=False)
    weights = np.full(6, 1 / 6)
    divided = [[sorted(members) for members, _ in gram.folds(weights, folds=2, seed=seed)] for seed in range(8)]
    assert len({str(sorted(one)) for one in divided}) > 1
    assert all(sorted(np.concatenate(one)) == list(range(6)) for one in divided)


def test_where_all_curvature_is_negative_the_largest_eigenvalue_is_zero():
    """There are more parameters than rows: the zeros beyond the rank are eigenvalues too."""
    A = np.random.default_rng(0).normal(size=(3, 9))
    gram = Gram(products=A @ A.T, sign=-np.ones(3), sample=np.arange(3), n=3)
    assert gram.eigen(np.ones(3)).values.max() < 0
    assert gram.top(np.ones(3))[0] == 0


def test_the_plug_in_is_too_large_and_the_cross_fitted_value_too_small_on_average():
    """One heavy direction in 30; 15 samples of one row each; truth: the population's matrix."""
    rng = np.random.default_rng(0)
    scales = np.sqrt(np.append(4.0, np.ones(29)))
    plug_in, crossfit = [], []
    for _ in range(100):
        A = rng.normal(size=(15, 30)) * scales
        gram = Gram(products=A @ A.T, sign=np.ones(15), sample=np.arange(15), n=15)
        plug_in.append(gram.top(np.full(15, 1 / 15))[0])
        crossfit.append(gram.crossfitted(np.full(15, 1 / 15)).mean())
    error = [np.std(x) / 10 for x in (plug_in, crossfit)]
    assert np.mean(plug_in) - 3 * error[0] > 4 > np.mean(crossfit) + 3 * error[1]


def test_samples_without_rows_have_numbers_that_are_not_whole():
    gram = Gram(products=np.zeros((0, 0)), sign=np.zeros(0), sample=np.zeros(0, dtype=np.int64), n=3)
    for found in (gram.traces, gram.along(np.zeros(0)), gram.curvatures(np.zeros(0))):
        assert (found.dtype, found.tolist()) == (np.float64, [0, 0, 0])
