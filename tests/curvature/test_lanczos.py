"""Lanczos on matrices of known spectrum."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from refusals import refused

import landscape as ls
from landscape.curvature.lanczos import lanczos, probe, unconverged
from landscape.errors import InputError, NumericalError
from landscape.results import quadrature


def with_spectrum(values, seed=0, dtype=torch.float64):
    values = torch.as_tensor(values, dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    q, _ = torch.linalg.qr(torch.randn(len(values), len(values), generator=generator, dtype=torch.float64))
    return ((q * values) @ q.T).to(dtype)


def run(matrix, steps, probes=1, seed=0, **options):
    z = torch.stack([probe(len(matrix), seed=seed, number=k) for k in range(probes)])[None].to(matrix.dtype)
    return lanczos(lambda V: V @ matrix, z, steps, **options), z


def dense_tridiagonal(runs, k=0):
    m = int(runs.steps[0, k])
    off = runs.beta[0, k, : m - 1]
    return np.diag(runs.alpha[0, k, :m]) + np.diag(off, 1) + np.diag(off, -1)


def test_full_order_gives_the_matrix_back():
    matrix = with_spectrum(np.linspace(-2, 5, 40))
    runs, _ = run(matrix, 40)
    V = runs.basis[0, 0, :40]
    T = torch.as_tensor(dense_tridiagonal(runs))
    assert torch.allclose(V.T @ T @ V, matrix, atol=1e-10)


def test_the_three_term_relation_holds_with_the_remainder():
    matrix = with_spectrum(np.linspace(-2, 5, 60))
    runs, _ = run(matrix, 20)
    V, m = runs.basis[0, 0], 20
    T = torch.as_tensor(dense_tridiagonal(runs))
    left = V[:m] @ matrix
    right = T @ V[:m]
    right[m - 1] += runs.beta[0, 0, m - 1] * V[m]
    assert torch.allclose(left, right, atol=1e-11)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_converged_eigenvalue_is_found_once(dtype):
    """Without re-orthogonalisation 100 steps find copies of 100 six times or more in float32."""
    rng = np.random.default_rng(0)
    matrix = with_spectrum(np.concatenate([[100, 50, 20], rng.uniform(0, 1, 997)]), dtype=dtype)
    runs, _ = run(matrix, 100)
    found = quadrature.ritz(runs.alpha[0, 0], runs.beta[0, 0], 100)
    assert np.allclose(found.values[-3:], [100, 50, 20][::-1], rtol=1e-5)
    assert found.values[-4] < 1.01
    V = runs.basis[0, 0, :100]
    assert (V @ V.T - torch.eye(100)).abs().max() < 50 * torch.finfo(dtype).eps


def test_residual_bounds_contain_an_eigenvalue():
    exact = np.sort(np.random.default_rng(1).normal(size=200))
    matrix = with_spectrum(exact)
    for steps in (3, 10, 40):
        runs, _ = run(matrix, steps, seed=steps)
        found = quadrature.ritz(runs.alpha[0, 0], runs.beta[0, 0], steps)
        distance = np.abs(found.values[:, None] - exact).min(axis=1)
        assert (distance <= found.residuals).all()


def test_a_converged_value_in_float32_is_off_by_no_more_than_its_bound_which_knows_of_rounding():
    """Where beta_m |s_m| has gone, what is left is rounding of the products: a few units of it times |A|."""
    beyond = 0
    for seed in range(20):
        matrix = with_spectrum([100.0, 50, 20, *np.linspace(-1, 1, 57)], seed=seed, dtype=torch.float32)
        exact = torch.linalg.eigvalsh(matrix.double()).numpy()
        runs, _ = run(matrix, 30, seed=seed)
        found = runs.solved(0, 0)
        missed = np.abs(found.values[-1] - exact).min()
        assert missed <= found.residuals[-1] <= 2e-4
        without = quadrature.ritz(runs.alpha[0, 0], runs.beta[0, 0], int(runs.steps[0, 0]), eps=0.0)
        beyond += missed > without.residuals[-1]
    assert beyond >= 10  # so that the bound without rounding is untrue


@pytest.mark.parametrize("n", [1, 3])
def test_the_rule_goes_on_until_each_of_the_largest_values_has_converged(n):
    matrix = with_spectrum([100.0, 99, 98, *np.linspace(0, 90, 60)])
    runs, _ = run(matrix, 5, probes=2, more=unconverged(1e-6, n), max_steps=63)
    residuals = np.array([runs.solved(0, k).residuals[-3:] for k in range(2)])
    assert (residuals[:, -n:] <= 1e-6 * 100).all()
    assert n > 1 or (residuals[:, 0] > 1e-6 * 100).any()  # one value takes fewer steps than three
    assert not unconverged(1e-6, n)(runs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_invariant_subspace_ends_the_run_with_the_exact_spectrum(dtype):
    matrix = with_spectrum([3.0] * 10 + [1.0] * 20 + [-2.0] * 5 + [0.0] * 15, dtype=dtype)
    runs, _ = run(matrix, 30)
    assert runs.steps[0, 0] == 4
    found = quadrature.ritz(runs.alpha[0, 0], runs.beta[0, 0], 4)
    assert np.allclose(found.values, [-2, 0, 1, 3], atol=1e-5)
    assert found.weights.sum() == pytest.approx(1)


def test_a_run_that_ends_early_does_not_disturb_its_neighbours():
    matrix = with_spectrum(np.linspace(1, 2, 30))
    values, vectors = torch.linalg.eigh(matrix)
    z = torch.stack([vectors[:, 3] + vectors[:, 7], torch.ones(30, dtype=torch.float64)])[None]
    runs = lanczos(lambda V: V @ matrix, z, 12)
    alone = lanczos(lambda V: V @ matrix, z[:, 1:], 12)
    assert runs.steps.tolist() == [[2, 12]]
    assert np.isnan(runs.alpha[0, 0, 2:]).all()
    assert np.allclose(runs.alpha[0, 1], alone.alpha[0, 0], rtol=1e-12)
    assert np.allclose(quadrature.ritz(runs.alpha[0, 0], runs.beta[0, 0], 2).values, values[[3, 7]])


def test_zero_and_identity_matrices_take_one_step():
    for matrix, value in ((torch.zeros(5, 5), 0.0), (torch.eye(5), 1.0)):
        runs, _ = run(matrix, 5)
        assert runs.steps[0, 0] == 1
        assert runs.alpha[0, 0, 0] == pytest.approx(value)


def test_a_matrix_of_order_one():
    runs, _ = run(torch.tensor([[-3.0]]), 10)
    assert (runs.steps[0, 0], runs.alpha[0, 0, 0]) == (1, -3.0)


def test_more_steps_continue_the_same_run():
    matrix = with_spectrum(np.linspace(-1, 4, 90))
    asked = []

    def more(runs):
        asked.append(int(runs.steps.max()))
        return True

    continued, _ = run(matrix, 10, more=more, max_steps=22)
    straight, _ = run(matrix, 22)
    assert asked == [10, 15, 20]
    assert np.array_equal(continued.alpha, straight.alpha)
    assert np.array_equal(continued.beta, straight.beta)


def test_probes_depend_on_their_name_alone():
    assert torch.equal(probe(7, seed=3, number=1), probe(7, seed=3, number=1))
    others = [probe(64, seed=s, number=n, stream=t) for s, n, t in ((3, 1, "a"), (3, 2, "a"), (4, 1, "a"), (3, 1, "b"))]
    assert all(not torch.equal(a, b) for i, a in enumerate(others) for b in others[:i])
    assert set(others[0].tolist()) == {-1.0, 1.0}


@pytest.mark.parametrize("distribution", ["rademacher", "gaussian"])
def test_probes_are_isotropic(distribution):
    """4000 draws of z z^T: each entry of the mean has a standard error of at most sqrt(2 / 4000)."""
    z = torch.stack([probe(6, seed=0, number=n, distribution=distribution) for n in range(4000)])
    assert (z.T @ z / 4000 - torch.eye(6)).abs().max() < 5 * (2 / 4000) ** 0.5


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: run(torch.eye(3), 0), ("steps",)),
        (lambda: probe(3, seed=0, number=0, distribution="cauchy"), ("rademacher", "gaussian")),
        (lambda: probe(3, seed=-1, number=0), ("seed",)),
        (lambda: lanczos(lambda V: V, torch.zeros(1, 1, 3), 2), ("zero",)),
    ],
)
def test_bad_input_is_named(call, words):
    with refused(InputError, *words):
        call()


def test_a_matrix_of_numbers_without_digits_is_refused():
    A = torch.diag(torch.arange(1.0, 31.0, dtype=torch.float64)) * 1e-42
    with pytest.raises(NumericalError, match="too small for float32: use float64"):
        ls.spectrum(A.float())
    assert ls.spectrum(A).lambda_max[0] == pytest.approx(30e-42, rel=1e-12)


def test_the_basis_of_millions_of_parameters_is_orthonormal_in_float32():
    """Nearly all eigenvalues are equal, as by weight decay, so each product is nearly parallel to its vector."""
    size = 2**22
    values = torch.full((size,), 0.1)
    values[:: size // 50] += torch.linspace(0.5, 8, len(values[:: size // 50]))
    V = lanczos(lambda V: V * values, probe(size, seed=0, number=0)[None, None], 3).basis[0, 0].double()
    torch.testing.assert_close(V @ V.T, torch.eye(4, dtype=torch.float64), rtol=0, atol=1e-6)


class Slightly:
    """A user's matrix that is not symmetric by less than is seen when it is taken."""

    shape = (60, 60)
    matrix = with_spectrum(np.linspace(-2, 5, 60)).numpy()
    matrix[0, 1] += 0.05

    def matvec(self, v):
        return self.matrix @ v


def test_a_matrix_of_the_user_that_is_not_symmetric_is_to_be_made_symmetric():
    given = ls.matrix(Slightly())
    with pytest.raises(NumericalError, match=r"not symmetric: .*; give \(A \+ A\^T\) / 2$"):
        ls.spectrum(given, steps=60, probes=2)


def test_wrong_products_of_an_objective_are_named_with_their_part_and_what_may_be_the_cause():
    data = torch.randn(12, 4, generator=torch.Generator().manual_seed(0)), torch.arange(12) % 3
    operator = ls.hessian(ls.make_objective(torch.nn.Linear(4, 3), data, parts="class"))["1"]
    shear = torch.triu(torch.ones(15, 15))
    wrong = replace(operator, matvec=lambda V: V @ shear, restrict=lambda parts: wrong)
    words = "the hessian of 1 is not symmetric", "so small", "dtype='float64' or backend='reverse'"
    with refused(NumericalError, *words):
        ls.spectrum(wrong, steps=10, probes=2)
