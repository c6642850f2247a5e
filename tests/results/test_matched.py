"""Parts compared at equal size and models by the same images, where the truth is known."""

import dataclasses

import numpy as np
import pytest
from scipy.stats import ttest_rel

from landscape.errors import InputError
from landscape.results import matched
from tests.made import spectrum


def made(traces, uncertainty, **changed):
    """A spectrum of as many parts as there are arrays of traces."""
    width = max(map(len, traces))

    def padded(values):
        return np.array([np.append(v, np.full(width - len(v), np.nan)) for v in values])

    names = [f"part {p}" for p in range(len(traces))]
    fields = {
        "n_samples": np.array([len(t) for t in traces]),
        "sample_trace": padded(traces),
        "sample_uncertainty": padded(uncertainty),
        "sample_weight": padded([np.full(len(t), 1 / len(t)) for t in traces]),
        "sample_index": padded([np.arange(len(t), dtype=float) for t in traces]),
        **{
            name: np.full((len(traces), width), np.nan)
            for name in ("sample_label", "sample_prediction", "sample_loss", "sample_curvature")
        },
    }
    about = {"data_sha256": "a"}
    return dataclasses.replace(spectrum(*names, lengths={"sample": width}), provenance=about, **(fields | changed))


def skewed(rng, n, scale=1.0):
    u = rng.lognormal(sigma=1.5, size=n)
    return scale * u * rng.lognormal(sigma=0.2, size=n), u


def test_a_true_ratio_is_found_by_the_factor_that_is_resolved_and_not_by_the_trace():
    rng = np.random.default_rng(0)
    (a, u), (b, v) = skewed(rng, 400), skewed(rng, 30, scale=2.0)
    found = matched.against_largest(made([a, b], [u, v]), repetitions=300)
    by_number = {one.number: one for one in found}
    assert [one.part for one in found] == ["part 1", "part 1"]
    ratio = by_number["trace per uncertainty"]
    assert ratio.test.value == pytest.approx(b.mean() / v.mean())
    assert ratio.p <= 0.05
    assert ratio.test.power[1] > 0.9 > by_number["trace"].test.power[1]


def test_parts_of_one_population_are_seldom_told_apart():
    rng = np.random.default_rng(1)
    hits = 0
    for seed in range(60):
        (a, u), (b, v) = skewed(rng, 100), skewed(rng, 25)
        found = matched.against_largest(made([a, b], [u, v]), repetitions=100, seed=seed)
        hits += min(one.p for one in found) <= 0.05
    assert hits <= 9  # 3 in the mean; more than 9 happen once in a thousand times


def test_models_are_compared_image_by_image():
    rng = np.random.default_rng(2)
    a, u = skewed(rng, 40)
    first = made([a], [u])
    second = made([1.2 * a], [u])
    trace, ratio = matched.paired(first, second)
    assert trace.difference == pytest.approx(0.2 * a.mean())
    assert trace.stderr == pytest.approx(0.2 * a.std(ddof=1) / np.sqrt(40))
    assert ratio.difference == pytest.approx(0.2 * a.mean() / u.mean())
    assert ratio.p < trace.p < 0.05
    other = dataclasses.replace(second, provenance={"data_sha256": "b"})
    assert matched.paired(first, other) == []
    shifted = dataclasses.replace(second, sample_index=second.sample_index + 1)
    assert matched.paired(first, shifted) == []


def test_p_values_of_pairs_are_those_of_students_test_adjusted_for_both_numbers():
    rng = np.random.default_rng(4)
    (a, u), (b, v) = skewed(rng, 30), skewed(rng, 30)
    trace, ratio = matched.paired(made([a], [u]), made([b], [v]))
    of_trace = ttest_rel(b, a).pvalue
    r, s = a.mean() / u.mean(), b.mean() / v.mean()
    # The ratio's scatter is that of the mean of (trace - ratio u) / mean(u), by linearisation.
    of_ratio = ttest_rel((b - s * v) / v.mean() + s, (a - r * u) / u.mean() + r).pvalue
    assert ratio.difference == pytest.approx(s - r)
    smaller, larger = sorted((of_trace, of_ratio))
    expected = {smaller: min(1, 2 * smaller), larger: min(1, max(2 * smaller, larger))}
    assert (trace.p, ratio.p) == pytest.approx((expected[of_trace], expected[of_ratio]), rel=1e-9)


def test_p_values_against_the_largest_part_are_adjusted_for_all_tests_of_the_file():
    rng = np.random.default_rng(5)
    parts = [skewed(rng, n) for n in (60, 12, 9)]
    found = matched.against_largest(made(*zip(*parts, strict=True)), repetitions=99)
    raw = np.array([one.test.p for one in found])
    assert len(raw) == 4
    holm = [min(1, max((4 - k) * q for k, q in enumerate(np.sort(raw)) if q <= p)) for p in raw]
    assert [one.p for one in found] == pytest.approx(holm)
    assert [one.p for one in found] != pytest.approx(list(raw))


def test_each_sample_of_the_pool_is_drawn_as_often_as_its_part_has_samples():
    """The pool of 90 ones and 10 tens has the mean 1.9, whatever the weights within the parts are called."""
    ones, tens = np.ones(90), np.full(10, 10.0)
    found = matched.against_largest(made([ones, tens], [ones, np.ones(10)]), repetitions=400)
    trace = next(one for one in found if one.number == "trace")
    assert trace.test.median == pytest.approx(1.9, abs=0.5)  # ten draws of it take steps of 0.9


def test_what_cannot_be_compared_is_refused():
    rng = np.random.default_rng(3)
    a, u = skewed(rng, 10)
    with pytest.raises(InputError, match="one part"):
        matched.against_largest(made([a], [u]))
    with pytest.raises(InputError, match="nothing of its samples"):
        matched.against_largest(made([a, a], [u, u], sample_trace=None))
