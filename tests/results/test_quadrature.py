"""Quadrature, density and what follows from them, against eigenvalues."""

import numpy as np
import pytest
from refusals import refused
from scipy.integrate import trapezoid
from scipy.linalg import eigh_tridiagonal

from landscape.errors import InputError
from landscape.results import quadrature


def tridiagonal(m=30, seed=0, probes=3):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(probes, m)), rng.uniform(0.5, 1.5, size=(probes, m)), np.full(probes, m)


def test_quadrature_is_exact_for_polynomials_up_to_degree_2m_minus_1():
    alpha, beta, _ = tridiagonal(m=30, probes=1)
    full = np.diag(alpha[0]) + np.diag(beta[0, :-1], 1) + np.diag(beta[0, :-1], -1)
    m = 4  # the first m steps of the same run
    found = quadrature.ritz(alpha[0], beta[0], m)
    for degree in range(2 * m):
        assert found.weights @ found.values**degree == pytest.approx(
            np.linalg.matrix_power(full, degree)[0, 0], rel=1e-10
        )
    assert found.weights @ found.values ** (2 * m) != pytest.approx(np.linalg.matrix_power(full, 2 * m)[0, 0], rel=1e-6)


def test_nodes_beyond_a_runs_steps_do_not_exist():
    alpha, beta, steps = tridiagonal(m=6)
    steps[1] = 2
    nodes, weights = quadrature.nodes_and_weights(alpha, beta, steps)
    assert np.isfinite(nodes).sum(axis=1).tolist() == [6, 2, 6]
    assert np.allclose(np.nansum(weights, axis=1), 1)
    assert np.allclose(nodes[1, :2], eigh_tridiagonal(alpha[1, :2], beta[1, :1])[0])


@pytest.mark.parametrize("axis", ["linear", "symlog"])
@pytest.mark.parametrize("width", ["auto", *quadrature.WIDTHS, 0.02, "0.3"])
def test_every_density_integrates_to_one(axis, width):
    nodes, weights = quadrature.nodes_and_weights(*tridiagonal())
    found = quadrature.density(30 * nodes, weights, width=width, axis=axis)
    assert np.allclose(trapezoid(found.curves, found.position, axis=1), 1, atol=1e-8)


def test_density_moments_are_those_of_the_quadrature_plus_the_broadening():
    nodes, weights = quadrature.nodes_and_weights(*tridiagonal())
    found = quadrature.density(nodes, weights, width=0.1)
    mean = trapezoid(found.curves * found.position, found.position, axis=1)
    second = trapezoid(found.curves * found.position**2, found.position, axis=1)
    assert np.allclose(mean, (weights * nodes).sum(1), atol=1e-6)
    assert np.allclose(second, (weights * nodes**2).sum(1) + 0.1**2, atol=1e-5)


def test_pyhessian_width_is_a_variance_and_its_grid_gives_its_curve():
    """PyHessian's get_esd_plot: Gaussians of variance 1e-5 max(1, range) on 10000 points, then normalised."""
    nodes, weights = quadrature.nodes_and_weights(*tridiagonal(probes=1))
    low, high = nodes.min() - 0.01, nodes.max() + 0.01
    grid = np.linspace(low, high, 10000)
    variance = 1e-5 * max(1, high - low)
    theirs = (weights[0] * np.exp(-((grid[:, None] - nodes[0]) ** 2) / (2 * variance))).sum(1) / np.sqrt(
        2 * np.pi * variance
    )
    theirs /= theirs.sum() * (grid[1] - grid[0])
    ours = quadrature.density(nodes, weights, width="pyhessian", grid=grid)
    # Their range includes the margin of 0.01 on each side: 0.02 of about 5 in the variance.
    assert np.abs(ours.mean - theirs).max() < 0.01 * theirs.max()


def test_symlog_and_its_inverse():
    x = np.array([-100.0, -1e-3, 0, 1e-9, 3, 1e6])
    assert np.allclose(quadrature.symlog_inverse(quadrature.symlog(x, 0.1), 0.1), x, rtol=1e-9, atol=1e-15)


def test_a_spectrum_of_one_value_has_a_density():
    found = quadrature.density(np.zeros((2, 1)), np.ones((2, 1)))
    assert np.allclose(trapezoid(found.mean, found.position), 1, atol=1e-8)


def test_named_widths_are_those_of_their_authors():
    for low, high, steps in ((-1.0, 3.0, 80), (0.0, 0.5, 20)):
        span = high - low
        expected = {
            "auto": span / 200,
            "pyhessian": np.sqrt(1e-5 * max(1, span)),
            "papyan": span / (90 * 3),  # kappa = 3 standard deviations in a ninetieth, as at 100 steps
            "eigenthings": span / steps,
        }
        assert set(expected) == set(quadrature.WIDTHS)
        for name, width in expected.items():
            assert quadrature.width_of(name, low, high, steps) == pytest.approx(width, rel=2e-3)


def test_mean_spread_and_standard_error_over_probes_by_hand():
    nodes, weights = np.array([[0.0, 1.0], [0.0, 1.0], [0.0, 1.0]]), np.array([[0.5, 0.5], [0.2, 0.8], [0.8, 0.2]])
    found = quadrature.density(nodes, weights, width=0.1, grid=np.array([0.0]))
    peak = 1 / (0.1 * np.sqrt(2 * np.pi))  # the other node is ten widths away
    assert found.mean == pytest.approx(0.5 * peak)
    assert found.spread == pytest.approx(0.3 * peak)
    assert quadrature.mean_and_stderr(np.array([1.0, 2, 6])) == (3.0, pytest.approx(np.sqrt(7 / 3)))
    assert np.isnan(quadrature.mean_and_stderr(np.ones(1))[1])


def test_spread_of_one_probe_is_unknown():
    nodes, weights = quadrature.nodes_and_weights(*tridiagonal(probes=1))
    assert np.isnan(quadrature.density(nodes, weights).spread).all()


def test_negative_mass_is_relative_to_the_largest_node_in_size_whichever_end_it_is_at():
    """-0.005 lies within 1e-3 of -10, and beyond 1e-3 of 1."""
    nodes, weights = np.array([[-10, -0.005, 1.0]]), np.array([[0.1, 0.2, 0.7]])
    assert np.allclose(quadrature.negative_mass(nodes, weights, tol=1e-3), [0.1])
    assert np.allclose(quadrature.negative_mass(-nodes, weights, tol=1e-3), [0.7])


def test_negative_mass_and_curvature_by_hand():
    nodes = np.array([[-4.0, -0.01, 1.0, 10.0], [0.0, 0.0, 0.0, np.nan]])
    weights = np.array([[0.1, 0.2, 0.3, 0.4], [0.5, 0.25, 0.25, np.nan]])
    assert np.allclose(quadrature.negative_mass(nodes, weights, tol=0.01), [0.1, 0])
    assert np.allclose(quadrature.negative_mass(nodes, weights, tol=0), [0.3, 0])


def test_negative_curvature_is_the_ratio_of_means_over_probes():
    """Not the mean of ratios: with outliers that is too large by a fifth, whatever the number of probes."""
    rng = np.random.default_rng(0)
    bulk, outliers = rng.normal(0.01, 0.02, 1980), np.geomspace(1, 60, 18)
    values = np.concatenate([bulk, outliers, [-2, -4]])
    truth = -values[values < 0].sum() / np.abs(values).sum()
    for n, repetitions in ((400, 20), (10, 100)):
        z = []
        for _ in range(repetitions):
            weights = rng.standard_normal((n, 2000)) ** 2
            weights /= weights.sum(1, keepdims=True)
            share, error = quadrature.negative_curvature(np.tile(values, (n, 1)), weights)
            z.append((share - truth) / error)
            assert quadrature.negative_curvature(np.tile(values, (n, 1)) * 1e-9, weights)[0] == pytest.approx(share)
        assert abs(np.mean(z)) < 0.5 + 3 / np.sqrt(repetitions)
        assert np.std(z) < 1.5


def test_negative_curvature_of_one_probe_has_no_error_and_that_of_nothing_is_not_defined():
    nodes, weights = np.array([[-2.0, -0.01, 5.0, np.nan]]), np.array([[0.2, 0.2, 0.6, np.nan]])
    share, error = quadrature.negative_curvature(nodes, weights)
    assert share == pytest.approx(0.402 / 3.402)
    assert np.isnan(error)
    assert np.isnan(quadrature.negative_curvature(0 * nodes, weights)).all()
    assert quadrature.negative_curvature(np.array([[1.0], [2.0]]), np.ones((2, 1))) == (0.0, 0.0)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"axis": "log"}, ("axis",)),
        ({"width": "wide"}, ("width", "wide")),
        ({"width": 0}, ("positive",)),
        ({"width": np.nan}, ("positive",)),
    ],
)
def test_bad_options_are_named(options, words):
    with refused(InputError, *words):
        quadrature.density(np.zeros((1, 2)), np.ones((1, 2)), **options)
