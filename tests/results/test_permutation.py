"""Parts of different size at equal numbers of samples: p and power, where the truth is known."""

import numpy as np
import pytest
from refusals import refused
from scipy.stats import kstest

from landscape.errors import InputError
from landscape.results import permutation


def matched(y, size, **options):
    """The test of the mean of the first of some values."""
    first = np.arange(len(y)) < size
    (found,) = permutation.matched(lambda w, f: np.array([w @ (f * y)]), first, np.ones(len(y)), **options)
    return found


@pytest.mark.parametrize("larger", [20, 200])
def test_p_is_uniform_where_both_parts_are_of_one_population(larger):
    rng = np.random.default_rng(larger)
    found = [
        matched(rng.lognormal(sigma=1.5, size=20 + larger), 20, repetitions=99, trials=0, seed=s).p for s in range(300)
    ]
    # p takes steps of 0.02, within which it is spread evenly
    assert kstest(np.array(found) - 0.02 * rng.random(300), "uniform").pvalue > 1e-3


def test_a_large_difference_is_found():
    y = np.append(np.full(20, 20.0), np.random.default_rng(0).normal(10, 1, size=200))
    result = matched(y, 20)
    assert result.value == 20
    assert (result.p, result.resolution) == pytest.approx((2 / 1001, 2 / 1001))
    assert result.low < 11 < result.high
    with refused(InputError, 220):
        next(permutation.drawn(np.ones(220), 221, 1, 0))


@pytest.mark.parametrize(("size", "other", "sigma"), [(25, 25, 1.5), (25, 100, 1.5), (10, 300, 1.0), (20, 20, 0.7)])
def test_the_stated_power_is_that_which_is_had_whatever_share_of_the_pool_the_part_has(size, other, sigma):
    """A part that is twice as large is in the pool too: at equal sizes its test finds it less often."""
    rng = np.random.default_rng(size + other)
    stated, had = [], []
    for seed in range(60):
        y = rng.lognormal(sigma=sigma, size=size + other)
        if seed < 5:
            stated.append(matched(y, size, repetitions=1, seed=seed).power)
        y[:size] *= 2
        had.append(matched(y, size, repetitions=99, trials=0, seed=seed).p <= 0.05)
    assert abs(np.mean(had) - np.mean(stated)) < 3 * np.sqrt(0.25 / 60)


@pytest.mark.parametrize(("size", "other", "least"), [(1, 10, 2 / 11), (2, 2, 2 / 6), (10, 90, 2 / 1001)])
def test_few_samples_have_few_draws_so_that_no_p_is_small_and_nothing_is_found(size, other, least):
    y = np.append(np.full(size, 100.0), np.arange(other))
    result = matched(y, size)
    assert result.resolution == pytest.approx(least)
    assert result.p >= 0.8 * least  # it is estimated by a thousand draws
    assert (result.power == 0) == (least > 0.05)


def test_holms_p_values_are_those_of_his_rule():
    p = np.array([0.01, 0.04, np.nan, 0.03, 0.5])
    np.testing.assert_allclose(permutation.adjusted(p), [0.04, 0.09, np.nan, 0.09, 0.5])


def test_the_seed_decides_on_draws():
    y = np.random.default_rng(2).lognormal(size=40)
    a, b, c = (matched(y, 10, repetitions=50, trials=0, seed=seed).median for seed in (0, 0, 1))
    assert a == b != c
