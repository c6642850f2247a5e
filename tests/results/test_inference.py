"""Errors, intervals and tests over samples, where the truth is known."""

import numpy as np
import pytest
from scipy.special import stdtrit
from scipy.stats import binom

from landscape.objective import draws
from landscape.results import inference


def test_a_plain_mean_has_its_plain_standard_error():
    y = np.array([1.0, 2.0, 4.0, 9.0])
    x = inference.draws(y, np.full(4, 0.25))
    np.testing.assert_array_equal(x, y)
    assert inference.stderr(x) == pytest.approx(np.std(y, ddof=1) / 2)
    assert np.isnan(inference.stderr(y[:1]))


def test_draws_without_replacement_are_unbiased_and_know_their_error():
    """2,000 draws of 20 from a skewed population of 100: mean and spread are as stated."""
    rng = np.random.default_rng(0)
    y = rng.lognormal(sigma=1.5, size=100)
    chances = draws.inclusion(y * rng.lognormal(sigma=0.3, size=100), 20, 0.05)
    assert np.count_nonzero(chances == 1) >= 3
    means, errors = [], []
    for _ in range(2000):
        drawn = draws.systematic(chances, rng)
        weights = 1 / (100 * chances[drawn])
        x = inference.draws(y[drawn], weights, chances[drawn])
        assert x.mean() == pytest.approx(weights @ y[drawn], rel=1e-12)
        means.append(x.mean())
        errors.append(inference.stderr(x))
    spread = np.std(means)
    assert abs(np.mean(means) - y.mean()) < 4 * spread / np.sqrt(2000)
    assert np.sqrt(np.mean(np.square(errors))) == pytest.approx(spread, rel=0.1)
    assert spread < 0.2 * y.std() / np.sqrt(20)  # what the weights are for


def test_draws_that_count_alike_have_the_error_of_a_finite_population():
    y = np.random.default_rng(3).normal(size=(2, 12))
    x = inference.draws(y, np.full(12, 1 / 12), np.full(12, 0.25))
    np.testing.assert_allclose(x.mean(axis=1), y.mean(axis=1), rtol=1e-12)
    np.testing.assert_allclose(x.std(axis=1, ddof=1), np.sqrt(0.75) * y.std(axis=1, ddof=1), rtol=1e-12)


def test_certain_draws_alone_say_nothing_of_another_draw():
    y, chances = np.arange(4.0), np.array([1, 1, 1, 0.5])
    np.testing.assert_array_equal(inference.draws(y, np.full(4, 0.25), chances), y)


def sums(x, left):
    with np.errstate(invalid="ignore"):
        return np.stack([left @ x**2, left @ x, np.sqrt(left) @ x])[:, None]


@pytest.mark.parametrize(
    "chances",
    [
        None,
        np.full(9, np.nan),  # all samples of a part
        np.full(9, 0.4),
        np.linspace(0.1, 1.0, 9),
        np.array([1, 1, *np.linspace(0.1, 0.9, 7)]),
        np.array([1, 1, 1, 1, *np.linspace(0.1, 0.9, 5)]),  # too few are uncertain
        np.ones(9),
        np.array([0.4]),
    ],
)
def test_errors_from_sums_are_those_of_single_draws(chances):
    n = 9 if chances is None else len(chances)
    x = np.random.default_rng(5).lognormal(size=n)
    left = inference.left(chances, n)
    scatter = inference.Scatter.of([left], [np.ones(n)])
    expected = inference.stderr(inference.draws(x, np.full(n, 1 / n), chances))
    assert scatter.stderr(sums(x, left))[0] == pytest.approx(expected, rel=1e-9, abs=1e-15, nan_ok=True)
    if chances is not None and (chances == 1).all():
        assert expected == 0
        assert scatter.share_stderr(sums(0 * x, left))[0] == 0
    assert np.isnan(scatter.stderr(sums(np.full(n, np.inf), left))[0]) or expected == 0


@pytest.mark.parametrize("wrong", [0, 1, 4, 12])
def test_shares_of_draws_that_count_alike_are_those_of_a_finite_population(wrong):
    n, x = 12, np.repeat([1.0, 0.0], [wrong, 12 - wrong])
    for chances, factor in ((None, 1.0), (np.full(n, 0.25), np.sqrt(0.75))):
        left = inference.left(chances, n)
        found = inference.Scatter.of([left], [np.ones(n)]).share_stderr(sums(x, left))[0]
        assert found == pytest.approx(factor * inference.share_stderr(x.mean(), n), rel=1e-12)


def test_draws_of_which_all_are_right_have_the_error_of_one_that_is_wrong():
    """By the average over the draws of what a wrong one adds; those that are certain add nothing."""
    factors, chances = np.array([0.2, 0.3, 0.5, 0.5, 1, 1, 2, 2]), np.array([1, 1, 0.4, 0.4, 0.2, 0.2, 0.1, 0.1])
    left, n, m = inference.left(chances, 8), 8, 6
    found = inference.Scatter.of([left], [factors]).share_stderr(np.zeros((3, 1)))[0]
    means = [(left @ factors**2) / m, (left @ factors) / m, (np.sqrt(left) @ factors) / m]
    more = (m + 2) / m
    centre = means[2] / (more * np.sqrt(left).sum())
    squares = means[0] - 2 * centre * means[1] + centre**2 * more * left.sum()
    assert found == pytest.approx(np.sqrt(m / (m - 1) / n**2 * m / (m + 2) * squares))
    assert 0.05 < found < 2 / 8  # below that of one with the largest factor


def test_a_ratio_of_means_has_the_spread_of_its_draws():
    rng = np.random.default_rng(1)
    found = []
    for _ in range(1000):
        y = rng.lognormal(sigma=0.5, size=50)
        found.append(inference.ratio(y * rng.lognormal(sigma=0.2, size=50), y))
    values, errors = np.array(found).T
    assert np.mean(errors) == pytest.approx(values.std(), rel=0.15)
    assert all(np.isnan(inference.ratio(np.ones(3), np.zeros(3))))


@pytest.mark.parametrize(("n", "sigma"), [(6, 1.5), (10, 1.5), (25, 2.0)])
def test_intervals_of_ratios_hold_the_truth_where_few_samples_have_most_of_what_is_below(n, sigma):
    """Nominal 90 %: Student's t times the error by linearisation holds it in 60 to 75 %."""
    rng, runs, hits, linear, given = np.random.default_rng(n), 800, 0, 0, 0
    for _ in range(runs):
        y = rng.lognormal(sigma=sigma, size=n)
        x = y * rng.lognormal(mean=-0.02, sigma=0.2, size=n)  # the true ratio is 1
        value, _ = inference.ratio(x, y)
        linear += abs(value - 1) <= stdtrit(n - 1, 0.95) * inference.stderr((x - value * y) / y.mean())
        low, high = inference.ratio_interval(x, y)
        given += np.isfinite(low)
        hits += low <= 1 <= high
    assert linear / runs < 0.8
    assert given > 0.4 * runs
    assert hits / given > 0.86


def test_a_ratio_that_one_sample_decides_has_no_interval():
    y = np.array([10.0, 0.1, 0.2, 0.1])
    assert inference.effective(y) < 2 < inference.effective(np.ones(3)) == 3
    assert np.isnan(inference.ratio_interval(y, y)).all()
    assert np.isnan(inference.ratio_interval(np.ones(9), np.ones(9), tell=np.arange(9) == 0)).all()
    assert np.isnan(inference.ratio(np.ones(1), np.ones(1))[1])


def test_the_jackknife_of_a_mean_is_its_plain_standard_error():
    x = np.random.default_rng(0).lognormal(size=12)
    assert inference.ratio(x, np.ones(12)) == pytest.approx((x.mean(), inference.stderr(x)), rel=1e-12)


def test_bootstrap_t_covers_better_than_students_t_where_values_are_skewed():
    """Log-normal, n = 25, nominal 90 %: Student's t covers some 80 %."""
    rng = np.random.default_rng(2)
    truth, n, runs = np.exp(0.5), 25, 400
    hits = {"t": 0, "bootstrap-t": 0}
    for seed in range(runs):
        x = rng.lognormal(size=n)
        low, high = inference.interval(x, repetitions=400, seed=seed)
        hits["bootstrap-t"] += low <= truth <= high
        hits["t"] += abs(x.mean() - truth) <= 1.711 * inference.stderr(x)
    assert hits["bootstrap-t"] > hits["t"]
    assert hits["bootstrap-t"] >= binom.ppf(1e-3, runs, 0.86)


def test_the_interval_is_that_of_the_textbook_for_the_same_draws():
    """Efron and Tibshirani, section 12.5, draw by draw; of B values the k-th smallest is taken, k = ceil(p (B - 1))."""
    x = np.random.default_rng(3).lognormal(size=30)
    for seed, level in ((0, 0.9), (1, 0.8)):
        t = []
        for chosen in np.random.default_rng(seed).integers(30, size=(200, 30)):
            again = x[chosen]
            t.append((again.mean() - x.mean()) / (np.std(again, ddof=1) / np.sqrt(30)))
        low, high = (sorted(t)[int(np.ceil(p * 199))] for p in ((1 - level) / 2, (1 + level) / 2))
        own = np.std(x, ddof=1) / np.sqrt(30)
        expected = x.mean() - high * own, x.mean() - low * own
        assert inference.interval(x, level=level, repetitions=200, seed=seed) == pytest.approx(expected, rel=1e-12)


def test_an_interval_of_draws_without_a_spread_has_an_open_end_and_is_never_nan():
    """Of 24 zeros and a one, a third of the draws are zeros alone: t is -inf, and no mean of inf with a number."""
    x = np.append(np.zeros(24), 1.0)
    empty = int((np.random.default_rng(0).integers(25, size=(400, 25)) < 24).all(axis=1).sum())
    for between in (empty - 0.5, empty + 0.5):  # ranks at which the quantile lies beside the last draw without a spread
        low, high = inference.interval(x, level=1 - 2 * between / 399, repetitions=400)
        assert low <= high
        assert np.isinf(high) == (between < empty - 1)
    assert np.isinf(inference.interval(x, repetitions=400)[1])


def test_the_seed_decides_on_draws():
    x = np.random.default_rng(3).lognormal(size=30)
    a, b, c = (inference.interval(x, repetitions=50, seed=seed) for seed in (0, 0, 1))
    assert a == b != c


def test_equal_values_have_an_interval_of_no_width_and_few_values_none():
    assert inference.interval(np.full(25, 3.0)) == (3.0, 3.0)
    assert all(np.isnan(inference.interval(np.arange(24.0))))
    assert all(np.isnan(inference.bracket(2, 0.1, 1, 0.1, 24)))
    assert np.isfinite(inference.bracket(2, 0.1, 1, 0.1, 25)).all()
    low, high = inference.bracket(2, 0.1, np.nan, np.nan, 25)  # without rows there is no cross-fit
    assert np.isnan(low)
    assert high > 2


def test_the_bracket_widens_both_ends_by_students_t():
    low, high = inference.bracket(2.0, 0.1, 1.0, 0.2, 26)
    assert (low, high) == pytest.approx((1 - 1.7081 * 0.2, 2 + 1.7081 * 0.1), rel=1e-4)
    assert inference.bracket(2.0, 0.1, 0.1, 0.2, 26)[0] == 0


def test_the_error_of_a_share_is_that_of_the_binomial_and_never_zero():
    share = np.array([0.3, 0.0, 1.0])
    found = inference.share_stderr(share, 1000)
    assert found[0] == pytest.approx(np.sqrt(0.3 * 0.7 / 1000), rel=3e-3)
    assert found[1:] == pytest.approx([np.sqrt(1001 / 1002**2 / 999)] * 2, rel=1e-12)
    assert np.isnan(inference.share_stderr(share, 1)).all()
    # 90 % of a share near 1 among few, of which all may be right
    right = np.random.default_rng(0).binomial(25, 0.98, 2000) / 25
    assert np.mean(np.abs(right - 0.98) <= 1.711 * inference.share_stderr(right, 25)) > 0.85


def test_an_interval_of_weighted_draws_is_around_the_value():
    low, high = inference.around(10.0, 1.0, 16)
    assert (low + high) / 2 == pytest.approx(10)
    assert high - low == pytest.approx(2 * 1.753, rel=1e-3)  # Student's t of 15 degrees of freedom at 95 %
    assert inference.around(1.0, 1.0, 16)[0] == 0
    assert np.isnan(inference.around(10.0, 1.0, inference.LEAST_WEIGHTED - 1)).all()
