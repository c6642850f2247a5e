"""The two ends of a spectrum and the trace from few products, against matrices whose eigenvalues are known."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from cases import CASES
from exact import dense
from scipy import stats

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


@pytest.mark.parametrize("scale", [None, 1.0, 7.0])
def test_what_is_ruled_out_is_as_much_as_chance_allows(scale):
    """After one step on a matrix of rank one an eigenvalue is ruled out where it would weigh more than the least share.

    Along any direction that is the 1 % quantile of a unit vector's component, which a guess of whatever length halves.
    """
    size = 400
    own, turn = operator(np.eye(size)[0])
    least = (stats.norm.ppf(0.5 + (1 - extremes.SURE) / 2)) ** 2 / size
    seen = set()
    for seed in range(3):
        found = extremes.ends(own, None if scale is None else scale * turn[:, 1], seed=seed, tol=0.5, max_products=1)
        share = found.beta[0] ** 2 / ((found.above - found.alpha[0]) ** 2 + found.beta[0] ** 2)
        assert share == pytest.approx(least if scale is None else least / 2, rel=1e-3 if scale is None else 0.15)
        seen.add(found.alpha[0])
    assert len(seen) == 3


def test_as_many_vectors_converge_as_are_asked_for():
    own, turn = operator(eigenvalues([9.0, 8.0, 5.0, 3.0, -4.0]))
    found = extremes.ends(own, turn[:, 0], seed=0, tol=1e-4, vectors=4)
    assert (found.ritz.residuals[-4:] <= 9e-4).all()
    overlaps = (found.vectors[:4] @ turn[:, :4]).abs()
    torch.testing.assert_close(overlaps, torch.eye(4, dtype=torch.float64), atol=1e-3, rtol=0)


def test_a_gap_that_is_not_resolved_is_told():
    found = extremes.ends(operator(eigenvalues([1.2, 1.0]))[0], None, seed=0, tol=1e-3, max_products=3)
    assert len(found.ritz.values) == 3
    assert found.above > found.ritz.values[-1] * (1 + extremes.GAP)


def test_a_wider_gap_takes_fewer_products_and_its_bound_still_holds():
    own, _ = operator(eigenvalues([2.0, 1.5]))
    products = []
    for gap in (0.01, extremes.GAP, 0.3):
        runs = [extremes.ends(own, None, seed=seed, tol=0.5, gap=gap) for seed in range(8)]
        for found in runs:
            assert 2.0 <= found.above <= (1 + gap) * found.ritz.values[-1] + 1e-9
        products.append(np.mean([len(found.alpha) for found in runs]))
    assert products[0] > products[1] > products[2]


@pytest.mark.parametrize("values", [np.zeros(SIZE), np.full(SIZE, 2.0), np.array([3.0]), np.array([-1.0, 2.0])])
def test_matrices_that_end_the_run_early(values):
    found = extremes.ends(operator(values)[0], None, seed=0, tol=1e-3)
    assert found.ritz.values[-1] == pytest.approx(values.max(), abs=1e-12)
    assert found.ritz.values[0] == pytest.approx(values.min(), abs=1e-12)
    assert values.max() <= found.above <= values.max() + 1e-5
    assert values.min() - 1e-5 <= found.below <= values.min()


def test_the_trace_is_unbiased_and_its_error_no_smaller_than_the_scatter():
    values = eigenvalues([9.0, 8.0, 5.0, -4.0])
    own, _ = operator(values)
    found = extremes.ends(own, None, seed=0, tol=1e-3)
    drawn = [extremes.trace(own, found, seed=s, distribution="rademacher", tol=None) for s in range(200)]
    traces, errors = np.array(drawn).T
    assert abs(traces.mean() - values.sum()) < 4 * traces.std() / np.sqrt(200)
    assert traces.std() < 1.1 * errors.mean()
    assert errors.mean() < 4 * traces.std()
    for steps in (4, 6):  # what few steps leave is known to be there
        few = extremes.ends(own, None, seed=0, tol=1e-3, max_products=steps)
        least = np.sqrt(2 * few.deflation.left / extremes.TRACE_PROBES)
        errors = [extremes.trace(own, few, seed=s, distribution="rademacher", tol=None)[1] for s in range(20)]
        assert min(errors) >= 0.999 * least > 1
    trace, error = extremes.trace(own, found, seed=0, distribution="rademacher", tol=0.02)
    assert error <= 1.5 * 0.02 * abs(trace)


def concave(logits, labels):
    return torch.sin(2 * logits).sum(-1) + 0.0 * labels


def test_a_diagonal_is_traced_by_signs_without_an_error():
    own = matrix(torch.diag(torch.as_tensor(eigenvalues([1.2, 1.0]))))
    found = extremes.ends(own, None, seed=0, tol=1e-3, max_products=2)
    assert len(found.deflation.values) == 0
    exact = eigenvalues([1.2, 1.0]).sum()
    traces = {d: extremes.trace(own, found, seed=0, distribution=d, tol=None)[0] for d in ("rademacher", "gaussian")}
    assert traces["rademacher"] == pytest.approx(exact, rel=1e-12)
    assert traces["gaussian"] != pytest.approx(exact, rel=1e-3)


@pytest.mark.parametrize(("name", "loss"), [("mlp-tanh", "ce"), ("mlp-tanh", concave), ("residual-relu", "ce")])
def test_the_ends_of_h_less_g_have_the_residuals_of_the_dense_matrix(name, loss):
    """After all steps no residual is left, but what the rows leave out."""
    decay = 0.01
    objective = replace(CASES[name], loss=loss).objective(weight_decay=decay)
    own = hessian(objective)[objective.partition.names[0]]
    known = lengths(objective, KINDS["ggn"].factors, 0)
    difference = dense(objective, 0, "hessian") - dense(objective, 0, "ggn")
    exact = torch.linalg.eigvalsh(difference).numpy()
    few = extremes.ends(own, None, seed=0, tol=1e-14, max_products=4)
    runs = [(0.0, few), (1e-2, few)]
    if (name, loss) == ("mlp-tanh", "ce"):  # seconds
        whole = extremes.ends(own, None, seed=0, tol=1e-14, vectors=objective.layout.size, max_products=10**6)
        runs += [(0.3, whole), (0.0, whole)]
    for tol, found in runs:
        kept = rows(objective, KINDS["ggn"].factors, 0, known, tol)
        values, errors = extremes.beyond_gauss_newton(found, kept, known.weights, decay)
        for value, error in zip(values, errors, strict=True):
            assert np.abs(exact - value).min() <= error
        tau = max(kept.tau_plus, kept.tau_minus)
        assert tau > 0.1 or tol < 0.1
        assert exact[0] - tau - 1e-9 <= values[0] <= values[1] <= exact[-1] + tau + 1e-9
        if tol == 0:
            within, turned = torch.linalg.eigh(found.basis @ difference @ found.basis.mT)
            ends = found.basis.mT @ turned[:, [0, -1]]
            residuals = torch.linalg.vector_norm(difference @ ends - ends * within[[0, -1]], dim=0)
            np.testing.assert_allclose(values, within[[0, -1]], atol=1e-9)
            np.testing.assert_allclose(errors, residuals, atol=1e-9)
