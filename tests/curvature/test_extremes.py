"""The two ends of a spectrum and the trace from few products, against matrices whose eigenvalues are known."""

import numpy as np
import pytest
import torch
from cases import CASES
from exact import dense

from landscape.curvature import extremes
from landscape.curvature.kinds import KINDS
from landscape.curvature.matrices import matrix
from landscape.curvature.operators import hessian
from landscape.curvature.rows import lengths, rows
from landscape.results import quadrature

SIZE = 120


def eigenvalues(top=(), seed=0, size=SIZE):
    bulk = np.random.default_rng(seed).normal(size=size - len(top)) * 0.1
    return np.concatenate([np.asarray(top, dtype=float), bulk])


def operator(values):
    random = torch.randn(len(values), len(values), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    turn = torch.linalg.qr(random)[0]
    return matrix((turn * torch.as_tensor(values)) @ turn.T), turn


def tridiagonal(values, start, steps):
    """Lanczos on a diagonal matrix in NumPy."""
    q, before, b = start / np.linalg.norm(start), np.zeros(len(values)), 0.0
    alpha, beta, basis = [], [], []
    for _ in range(steps):
        basis.append(q)
        w = values * q - b * before
        alpha.append(w @ q)
        w -= alpha[-1] * q
        for v in basis + basis:
            w -= (v @ w) * v
        b = np.linalg.norm(w)
        beta.append(b)
        before, q = q, w / b
    return np.array(alpha), np.array(beta)


@pytest.mark.parametrize("seed", range(5))
def test_beyond_is_sharp_of_a_measure_with_one_more_atom_than_steps(seed):
    """The heaviest mass that m steps leave room for at a point is that of the measure which has m + 1 atoms."""
    random = np.random.default_rng(seed)
    values, start = np.sort(random.normal(size=6)), random.uniform(0.2, 1, size=6)
    alpha, beta = tridiagonal(values, start, 5)
    mass = (start / np.linalg.norm(start)) ** 2
    assert quadrature.beyond(alpha, beta, mass[-1])[1] == pytest.approx(values[-1], abs=1e-5)
    assert quadrature.beyond(alpha, beta, mass[0])[0] == pytest.approx(values[0], abs=1e-5)
    low, high = quadrature.beyond(alpha, beta, min(mass[0], mass[-1]) / 100)
    assert low < values[0] - 1e-5
    assert high > values[-1] + 1e-5


def test_beyond_ends_at_the_nodes_where_the_space_is_invariant():
    assert quadrature.beyond(np.array([2.0, 1.0]), np.array([0.0, 0.0]), 1e-9) == (1.0, 2.0)
    assert quadrature.beyond(np.zeros(1), np.zeros(1), 1e-9) == (0.0, 0.0)


def test_the_largest_eigenvalue_is_found_though_the_guess_is_orthogonal_to_its_vector():
    values = eigenvalues([9.0, 8.0, 5.0, 3.0, -4.0])
    own, turn = operator(values)
    for column in (0, 1, 4):  # right, and orthogonal to what is sought
        found = extremes.ends(own, turn[:, column], seed=0, tol=1e-6)
        assert found.ritz.values[-1] == pytest.approx(9.0, rel=1e-9)
        assert found.ritz.residuals[-1] <= 9e-6
        assert 9.0 <= found.above <= 9.0 * (1 + extremes.GAP)
        assert found.below <= -4.0
        torch.testing.assert_close(found.vectors[0].abs(), turn[:, 0].abs(), atol=1e-4, rtol=0)


def test_what_is_ruled_out_holds_as_often_as_it_says():
    """Few products, so that the eigenvalue is not seen in each draw; the guess has no part of its vector."""
    values = eigenvalues([1.2, 1.0])
    own, turn = operator(values)
    runs = [extremes.ends(own, turn[:, 1], seed=s, tol=0.9, max_products=3) for s in range(300)]
    missed = [run.ritz.values[-1] < 1.19 for run in runs]
    assert sum(missed) > 30  # else nothing is tried
    broken = sum(run.above < 1.2 for run in runs)
    assert broken <= 9  # 3 expected at most; more has a probability of 0.4 %


def test_a_gap_that_is_not_resolved_is_told():
    found = extremes.ends(operator(eigenvalues([1.2, 1.0]))[0], None, seed=0, tol=1e-3, max_products=3)
    assert len(found.ritz.values) == 3
    assert found.above > found.ritz.values[-1] * (1 + extremes.GAP)


@pytest.mark.parametrize("values", [np.zeros(SIZE), np.full(SIZE, 2.0), np.array([3.0]), np.array([-1.0, 2.0])])
def test_matrices_that_end_the_run_early(values):
    found = extremes.ends(operator(values)[0], None, seed=0, tol=1e-3)
    assert found.ritz.values[-1] == pytest.approx(values.max(), abs=1e-12)
    assert found.ritz.values[0] == pytest.approx(values.min(), abs=1e-12)
    assert values.max() <= found.above <= values.max() + 1e-5


def test_the_trace_is_unbiased_and_its_error_no_smaller_than_the_scatter():
    values = eigenvalues([9.0, 8.0, 5.0, -4.0])
    own, _ = operator(values)
    found = extremes.ends(own, None, seed=0, tol=1e-3)
    drawn = [extremes.trace(own, found, seed=s, distribution="rademacher", tol=None) for s in range(200)]
    traces, errors = np.array(drawn).T
    assert abs(traces.mean() - values.sum()) < 4 * traces.std() / np.sqrt(200)
    assert traces.std() < 1.1 * errors.mean()
    assert errors.mean() < 4 * traces.std()
    trace, error = extremes.trace(own, found, seed=0, distribution="rademacher", tol=0.02)
    assert error <= 1.5 * 0.02 * abs(trace)


@pytest.mark.parametrize("name", ["mlp-tanh", "residual-relu"])
def test_the_ends_of_h_less_g_are_within_their_errors_of_eigenvalues(name):
    decay = 0.01
    objective = CASES[name].objective(weight_decay=decay)
    own = hessian(objective)[objective.partition.names[0]]
    known = lengths(objective, KINDS["ggn"].factors, 0)
    difference = dense(objective, 0, "hessian") - dense(objective, 0, "ggn")
    exact = torch.linalg.eigvalsh(difference).numpy()
    for tol, steps in ((0.0, 4), (1e-2, 8)):
        found = extremes.ends(own, None, seed=0, tol=1e-12, max_products=steps)
        values, errors = extremes.beyond_gauss_newton(
            found, rows(objective, KINDS["ggn"].factors, 0, known, tol), known.weights, decay
        )
        for value, error in zip(values, errors, strict=True):
            assert np.abs(exact - value).min() <= error
        assert exact[0] - errors[0] <= values[0] <= values[1] <= exact[-1] + errors[1]
    everything = extremes.ends(own, None, seed=0, tol=1e-14, vectors=objective.layout.size, max_products=10**6)
    values, errors = extremes.beyond_gauss_newton(
        everything, rows(objective, KINDS["ggn"].factors, 0, known, 0), known.weights, decay
    )
    if len(everything.ritz.values) == objective.layout.size:
        np.testing.assert_allclose(values, exact[[0, -1]], atol=1e-8)
