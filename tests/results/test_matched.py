"""Parts compared at equal size and models by the same images, where the truth is known."""

import dataclasses
from functools import cache
from itertools import combinations

import exact
import numpy as np
import pytest
import torch
from fitted import six_classes
from refusals import refused
from sampled import made, of_rows, rows
from scipy.stats import kstest, ttest_rel
from scipy.stats import t as student
from torch import nn

import landscape as ls
from landscape.errors import InputError, arg
from landscape.objective import draws
from landscape.results import matched, same_images


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
    assert ratio.test.power > 0.9 > by_number["trace"].test.power


def test_parts_of_one_population_are_seldom_told_apart():
    rng = np.random.default_rng(1)
    hits = 0
    for seed in range(60):
        (a, u), (b, v) = skewed(rng, 100), skewed(rng, 25)
        found = matched.against_largest(made([a, b], [u, v]), repetitions=100, trials=0, seed=seed)
        hits += min(one.p for one in found) <= 0.05
    assert hits <= 9  # 3 in the mean; more than 9 happen once in a thousand times


def test_models_are_compared_image_by_image():
    rng = np.random.default_rng(2)
    a, u = skewed(rng, 40)
    first = made([a], [u])
    second = made([1.2 * a], [u])
    found = same_images.paired(first, second)
    assert [one.number for one in found] == list(matched.NUMBERS)
    trace, ratio = found[:2]
    assert np.isnan([one.p for one in found[2:]]).all()  # no curvature of single samples
    assert trace.difference == pytest.approx(0.2 * a.mean())
    assert trace.stderr == pytest.approx(0.2 * a.std(ddof=1) / np.sqrt(40))
    assert ratio.difference == pytest.approx(0.2 * a.mean() / u.mean())
    assert ratio.p < trace.p < 0.05
    q = rng.lognormal(size=40)
    first, second = (dataclasses.replace(f, sample_curvature=s * q[None]) for f, s in ((first, 1.0), (second, 1.5)))
    one, below = same_images.paired(first, second)[2:]
    assert (one.difference, one.stderr) == pytest.approx((0.5 * q.mean(), 0.5 * q.std(ddof=1) / np.sqrt(40)))
    assert below.difference == pytest.approx(0.5 * q.mean() / u.mean())
    left = [np.delete(q, i).mean() / np.delete(u, i).mean() for i in range(40)]
    assert below.stderr == pytest.approx(0.5 * np.sqrt(39 / 40 * np.square(left - np.mean(left)).sum()))
    assert same_images.unpaired(first, second) == {}
    for changed in (
        {"provenance": {"data_sha256": "b"}},
        {"sample_index": second.sample_index + 1},
        {"sample_weight": np.arange(1, 41)[None] / 820},
    ):
        other = dataclasses.replace(second, **changed)
        assert same_images.paired(first, other) == []
        assert list(same_images.unpaired(first, other)) == ["part 0"]


@pytest.mark.parametrize(("dtype", "units"), [("float32", 1.0), ("float64", 2.0**-29)])
def test_images_that_differ_by_rounding_are_ties(dtype, units):
    """All differences have one sign, as those of two ways to compute the same numbers may have."""
    rng = np.random.default_rng(3)
    a, u = skewed(rng, 40)
    ulp = units * float(np.finfo(np.float32).eps)
    about = {"data_sha256": "a", "dtype": dtype}
    first, rounded, apart = (
        dataclasses.replace(made([a * (1 - by * ulp)], [u]), provenance=about, sample_curvature=2 * a[None])
        for by in (0, 3, 1e5)
    )
    for one in same_images.paired(first, rounded):
        assert (one.difference, one.stderr, one.p) == (0, 0, 1)
    trace, ratio, *of_top = same_images.paired(first, apart)
    assert trace.difference == pytest.approx(-1e5 * ulp * a.mean(), rel=1e-2)
    assert max(trace.p, ratio.p) < 1
    assert [one.p for one in of_top] == [1, 1]


@cache
def of_network(activation, kind, epochs):
    """The objective and the spectrum of the smallest part of a network."""
    objective = six_classes(activation, epochs=epochs, classes=[3])
    return objective, ls.spectrum(objective, operator=kind, trace="auto")


@pytest.mark.parametrize(
    ("one", "other", "of_trace", "of_top"),
    [
        ((nn.Tanh, "hessian"), (nn.Tanh, "hessian"), "ggn", "hessian"),
        ((nn.ReLU, "hessian"), (nn.Tanh, "hessian"), "ggn", "hessian"),
        ((nn.ReLU, "hessian"), (nn.ReLU, "hessian"), "hessian", "hessian"),
        ((nn.Tanh, "ggn"), (nn.Tanh, "ggn"), "ggn", "ggn"),
        ((nn.Tanh, "hessian"), (nn.Tanh, "ggn"), "ggn", "ggn less hessian"),
        ((nn.ReLU, "hessian"), (nn.ReLU, "ggn"), "ggn", "ggn less hessian"),
        ((nn.Tanh, "ggn"), (nn.Tanh, "fisher"), "fisher less ggn", "fisher less ggn"),
    ],
)
def test_pairs_name_the_matrix_of_each_number(one, other, of_trace, of_top):
    """The differences are those of the named matrices, by dense ones; no name is shared by two matrices."""
    objectives, files = zip(of_network(*one, 200), of_network(*other, 20), strict=True)
    found = {p.number: p for p in same_images.paired(*files)}
    for number, names in (("trace", of_trace), ("lambda_max", of_top)):
        assert found[number].matrix == found[f"{number} per uncertainty"].matrix == names
        second, _, first = names.partition(" less ")
        ends = [exact.dense(o, 0, kind) for o, kind in zip(objectives, (first or second, second), strict=True)]
        values = [m.trace() if number == "trace" else torch.linalg.eigvalsh(m)[-1] for m in ends]
        assert found[number].difference == pytest.approx((values[1] - values[0]).item(), rel=0.06)


@pytest.mark.parametrize("activation", [nn.Tanh, nn.ReLU])
def test_numbers_at_equal_size_are_those_of_g_and_say_so(activation):
    objective = six_classes(activation)
    found = ls.spectrum(objective)
    own = matched.own_numbers(found)
    tests = matched.against_largest(found, repetitions=20, trials=0)
    assert {t.matrix for t in tests} == {"ggn"}
    dense = {p: exact.dense(objective, p, "ggn") for p in range(1, 4)}
    for t in tests:
        p = found.parts.index(t.part)
        assert t.test.value == own[t.number][p]
        G = dense[p]
        value = torch.linalg.eigvalsh(G)[-1] if t.number.startswith("lambda_max") else G.trace()
        below = found.uncertainty[p] if t.number.endswith("per uncertainty") else 1.0
        assert t.test.value == pytest.approx(value.item() / below, rel=0.06)
    assert all(np.isnan(values[0]) for values in own.values())  # the largest part
    fisher = matched.against_largest(ls.spectrum(objective, operator="fisher"), repetitions=20, trials=0)
    assert {t.matrix for t in fisher} == {"fisher"}
    with pytest.raises(InputError, match="one part"):
        matched.own_numbers(found[["0"]])


@pytest.mark.parametrize("n", [6, 25])
def test_pairs_of_models_with_equal_numbers_per_uncertainty_are_seldom_told_apart(n):
    """Nominal 5 %: Student's t of n - 1 degrees of freedom, with errors by linearisation, rejects 16 to 21 %."""
    rng, rejected = np.random.default_rng(n), 0
    for _ in range(500):
        u = rng.lognormal(sigma=1.5, size=n)
        v = 0.5 * u**0.8 * rng.lognormal(sigma=0.9, size=n)
        one, other = ((w * rng.lognormal(sigma=0.2, size=n), w, w) for w in (u, v))
        rejected += same_images.difference(one, other, "trace per uncertainty")[2] <= 0.05
    assert rejected / 500 <= 0.07


def test_p_values_of_pairs_are_those_of_students_test_adjusted_for_both_numbers():
    rng = np.random.default_rng(4)
    (a, u), (b, v) = skewed(rng, 30), skewed(rng, 30)
    trace, ratio = same_images.paired(made([a], [u]), made([b], [v]))[:2]
    of_trace = ttest_rel(b, a).pvalue
    known = min(w.sum() ** 2 / (w @ w) for w in (u, v))
    of_ratio = 2 * student.sf(abs(ratio.difference) / ratio.stderr, known - 1)
    assert ratio.difference == pytest.approx(b.mean() / v.mean() - a.mean() / u.mean())
    smaller, larger = sorted((of_trace, of_ratio))
    expected = {smaller: min(1, 2 * smaller), larger: min(1, max(2 * smaller, larger))}
    assert (trace.p, ratio.p) == pytest.approx((expected[of_trace], expected[of_ratio]), rel=1e-9)


def test_p_values_against_the_largest_part_are_adjusted_for_all_tests_of_the_file():
    rng = np.random.default_rng(5)
    parts = [skewed(rng, n) for n in (60, 12, 9)]
    found = matched.against_largest(made(*zip(*parts, strict=True)), repetitions=99, trials=0)
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


def test_p_values_of_lambda_max_are_uniform_and_a_true_ratio_is_found():
    """Sizes far apart, rows of one population: 120 repetitions of 99 draws; scaled rows of the smaller part."""
    rng = np.random.default_rng(4)
    p, found, stated = {name: [] for name in matched.NUMBERS}, 0, []
    for seed in range(120):
        small, large = 5, (5, 20, 100)[seed % 3]
        parts = rows(rng, small), rows(rng, large)
        for one in matched.against_largest(of_rows(*parts), repetitions=99, trials=0, seed=seed):
            p[one.number].append(one.test.p - 0.02 * rng.random())  # whose steps are 0.02 wide
        if seed < 4:
            even = matched.against_largest(of_rows(rows(rng, 20), rows(rng, 40)), repetitions=1, seed=seed)
            stated.append(even[2].test.power)
        if seed < 40:
            sharper = matched.against_largest(
                of_rows(rows(rng, 20, scale=2.0), rows(rng, 40)), repetitions=99, trials=0
            )
            found += sharper[2].test.p <= 0.05
    for name, values in p.items():
        assert kstest(values, "uniform").pvalue > 0.001, name
    assert abs(found / 40 - np.mean(stated)) < 3 * np.sqrt(0.25 / 40)  # the power that is stated is that which is had


def test_lambda_max_and_its_pool_are_those_of_the_dense_matrices():
    rng = np.random.default_rng(5)
    A, B = rows(rng, 4), rows(rng, 9)
    spectrum = of_rows(B, A)
    (_, ratio, top, _) = matched.against_largest(spectrum, repetitions=400, trials=0, seed=1)
    assert (top.part, top.n) == ("part 1", 4)
    assert top.test.value == pytest.approx(np.linalg.eigvalsh(A.T @ A / 4)[-1], rel=1e-10)
    both = np.vstack([A, B])
    drawn = np.array([np.linalg.eigvalsh(both[list(s)].T @ both[list(s)] / 4)[-1] for s in combinations(range(13), 4)])
    ranks = [np.mean(drawn <= end * (1 + 1e-9)) for end in (top.test.low, top.test.median, top.test.high)]
    assert ranks == pytest.approx([0.05, 0.5, 0.95], abs=0.075)  # three standard errors of the median's
    tail = min(np.mean(drawn >= top.test.value), np.mean(drawn <= top.test.value))
    assert top.test.p == pytest.approx(2 * tail, abs=0.15)
    assert ratio.test.value == pytest.approx((A**2).sum() / np.abs(A).max(axis=1).sum())


def test_rows_that_are_not_stored_bound_lambda_max_and_its_range():
    """Against the same draws of a file that stores all rows; half of the samples' rows are not stored in the other."""
    rng = np.random.default_rng(14)
    A, B = rows(rng, 8), rows(rng, 24)
    whole = of_rows(B, A)
    lengths = np.concatenate([whole.sample_trace[0], whole.sample_trace[1][:8]])
    kept = np.concatenate([lengths[:24] > np.median(lengths[:24]), lengths[24:] > np.median(lengths[24:])])
    of_kept = {name: getattr(whole, name)[kept] for name in ("gram_part", "gram_sample", "gram_sign")}
    some = dataclasses.replace(whole, gram=whole.gram[np.ix_(kept, kept)], **of_kept)
    every, few = (matched.against_largest(s, repetitions=300, trials=0) for s in (whole, some))
    for one, other in zip(every, few, strict=True):
        assert (one.test.above, one.test.range_above) == pytest.approx((0, 0), abs=1e-9)
        if not one.number.startswith("lambda_max"):
            assert dataclasses.astuple(one.test) == pytest.approx(dataclasses.astuple(other.test), nan_ok=True)
            continue
        below = 1 if one.number == "lambda_max" else np.abs(A).max(axis=1).mean()
        assert other.test.above == pytest.approx(lengths[24:][~kept[24:]].sum() / 8 / below)
        for end, most in (
            ("value", "above"),
            ("low", "range_above"),
            ("median", "range_above"),
            ("high", "range_above"),
        ):
            off = getattr(one.test, end) - getattr(other.test, end)
            assert -1e-9 <= off <= getattr(other.test, most) + 1e-9
        assert one.test.value - other.test.value > 0.001 * one.test.value  # what is not stored is seen
    assert matched.own_above(some)[1] == few[2].test.above
    assert np.isnan(matched.own_above(some)[0])
    signs = dataclasses.replace(some, gram_sign=np.where(np.arange(kept.sum()) == 0, -1.0, 1.0))
    of_both_signs = matched.against_largest(signs, repetitions=20, trials=0)[2].test
    assert np.isnan([of_both_signs.above, of_both_signs.range_above]).all()


@pytest.mark.parametrize(("kind", "added"), [("hessian", 0.2), ("ggn", 0.2), ("empirical-fisher", 0.0)])
def test_comparisons_leave_the_weight_decay_out_and_state_it(kind, added):
    plain, decayed = (
        ls.spectrum(six_classes(nn.ReLU, epochs=20, weight_decay=w), operator=kind, trace="exact") for w in (0.0, 0.2)
    )
    tests = [matched.against_largest(s, repetitions=20, trials=0) for s in (plain, decayed)]
    for one, other in zip(*tests, strict=True):
        assert other.test.value == pytest.approx(one.test.value, rel=1e-6)
        assert (one.decay_left_out, other.decay_left_out) == (0, added)
    for one in same_images.paired(plain, decayed):
        assert not abs(one.difference) > 1e-3 * plain.trace.max()  # nan per uncertainty of the empirical Fisher
        assert one.decay_left_out == (0, added)
    np.testing.assert_allclose(decayed.trace - plain.trace, added * plain.size, rtol=1e-9, atol=1e-12)


def test_more_tests_take_more_draws_so_that_the_smallest_p_stays_small():
    rng = np.random.default_rng(7)
    few, many = ([skewed(rng, n) for n in (9, *[5] * others)] for others in (1, 6))
    for parts, tells in ((few, 1000), (many, 1200)):  # 100 for each of two numbers of each part but the largest
        found = matched.against_largest(made(*zip(*parts, strict=True)), trials=0)
        assert {one.test.resolution for one in found} == {2 / (1 + tells)}


def drawn_head(rng, head, n):
    """Traces, uncertainty, weights and chances of n draws in proportion to uncertainty, and that of the whole."""
    chances = draws.inclusion(head[1], n, draws.AT)
    own = draws.systematic(chances, rng)
    return head[0][own], head[1][own], 1 / (len(chances) * chances[own]), chances[own], head[1].mean()


def with_draws(head, n_head, tail):
    """A spectrum of draws from a larger part, and of a smaller part with all its samples."""
    fields = (
        ("sample_weight", np.full(len(tail[0]), 1 / len(tail[0]))),
        ("sample_chance", np.full(len(tail[0]), np.nan)),
    )
    width = max(len(head[0]), len(tail[0]))
    own = {
        name: np.array([np.append(v, np.full(width - len(v), np.nan)) for v in (of_head, of_tail)])
        for of_head, (name, of_tail) in zip(head[2:4], fields, strict=True)
    }
    n, known = np.array([n_head, len(tail[0])]), np.array([head[4], tail[1].mean()])
    return made([head[0], tail[0]], [head[1], tail[1]], n_samples=n, uncertainty=known, **own)


def test_draws_stand_for_all_samples_of_their_part():
    """60 of 1,000 samples: the pool's numbers at the size of the tail, and p of two parts of one population."""
    rng, p, ends = np.random.default_rng(6), [], []
    for seed in range(90):
        head, tail = skewed(rng, 1000), skewed(rng, 30)
        found = with_draws(drawn_head(rng, head, 60), 1000, tail)
        both = matched.against_largest(found, repetitions=99, trials=0, seed=seed)
        assert [one.n for one in both] == [30, 30]
        p.append([one.test.p - 0.02 * rng.random() for one in both])
        every = matched.against_largest(made(*zip(head, tail, strict=True)), repetitions=99, trials=0, seed=seed)
        ends.append([[(a := one.test).low, a.median, a.high] for part in (both, every) for one in part])
    for values in np.array(p).T:
        assert kstest(values, "uniform").pvalue > 0.001
        assert np.mean(values <= 0.05) < 0.11  # less than three standard errors above 5 %
    drawn, whole = np.array(ends).reshape(90, 2, 2, 3).mean(axis=0)
    np.testing.assert_allclose(drawn, whole, rtol=0.15)


def even(rng, n, scale=1.0):
    """A trace that depends little on tr M, of which draws in proportion to tr M know less than of `skewed` ones."""
    u = rng.beta(0.5, 3.0, size=n)
    return scale * (rng.uniform(size=n) + u), u


def both_drawn(rng, scale=1.0):
    """Sixty draws each from two parts of nearly equal size."""
    parts = [drawn_head(rng, even(rng, n, factor), 60) for n, factor in ((1000, 1.0), (900, scale))]
    names = ((2, "sample_weight"), (3, "sample_chance"), (4, "uncertainty"))
    fields = {name: np.array([part[k] for part in parts]) for k, name in names}
    return made(*zip(*(part[:2] for part in parts), strict=True), n_samples=np.array([1000, 900]), **fields)


def test_the_error_of_a_draw_is_added_to_the_pools_numbers(monkeypatch):
    """A tail as large as the head: what draws of both are off by is more than what as many samples scatter."""
    rng = np.random.default_rng(8)
    found = [both_drawn(rng) for _ in range(60)]

    def rejected():
        tests = [matched.against_largest(one, repetitions=99, trials=0, seed=k) for k, one in enumerate(found)]
        return np.mean([[one.test.p <= 0.05 for one in both] for both in tests], axis=0)

    assert (rejected() < 0.12).all()  # less than three standard errors above 5 %
    monkeypatch.setattr(matched, "_of_draw", lambda *given: np.zeros(2))
    assert (rejected() > 0.3).all()


def test_the_power_knows_that_a_sharper_part_has_a_larger_error_of_its_draw():
    rng = np.random.default_rng(10)
    stated = [matched.against_largest(both_drawn(rng), repetitions=1, seed=seed)[0].test.power for seed in range(8)]
    sharper = [matched.against_largest(both_drawn(rng, 2.0), repetitions=99, trials=0, seed=k) for k in range(60)]
    had = np.mean([trace.test.p <= 0.05 for trace, _ in sharper])
    assert 0.3 < had < 0.9
    assert abs(np.mean(stated) - had) < 3 * np.sqrt(had * (1 - had) * (1 / 60 + 1 / 20))


def test_few_draws_with_weights_are_refused():
    rng = np.random.default_rng(11)
    head = drawn_head(rng, skewed(rng, 1000), 49)
    for compared in (matched.against_largest, matched.as_many_of_both):
        with refused(InputError, 49, arg("samples", matched.LEAST_DRAWS)):
            compared(with_draws(head, 1000, skewed(rng, 30)), repetitions=9)


def test_the_range_of_the_summary_is_that_of_the_test():
    rng = np.random.default_rng(12)
    found = both_drawn(rng)
    (trace, _) = matched.against_largest(found, repetitions=99, trials=0)
    np.testing.assert_array_equal(
        matched.as_many_of_both(found, repetitions=99)["trace"][1], [trace.test.low, trace.test.median, trace.test.high]
    )


def test_the_power_of_draws_is_that_which_is_had():
    rng, stated, found = np.random.default_rng(9), [], 0
    for seed in range(30):
        head = drawn_head(rng, skewed(rng, 1000), 60)
        if seed < 4:
            one = matched.against_largest(with_draws(head, 1000, skewed(rng, 30)), repetitions=1, seed=seed)[1]
            stated.append(one.test.power)
        sharper = matched.against_largest(with_draws(head, 1000, skewed(rng, 30, scale=2.0)), repetitions=99, trials=0)
        found += sharper[1].test.p <= 0.05
    assert abs(found / 30 - np.mean(stated)) < 3 * np.sqrt(0.25 / 30)


def test_samples_that_were_drawn_alike_stand_for_themselves():
    rng = np.random.default_rng(6)
    (a, u), (b, v) = skewed(rng, 200), skewed(rng, 20)
    alike = made([a, b], [u, v], n_samples=np.array([5000, 90]))  # lambda_max of twenty is not that of ninety
    found = matched.against_largest(alike, repetitions=50)
    assert {one.n for one in found} == {20}
    whole = matched.against_largest(made([a, b], [u, v]), repetitions=50)
    assert [one.test for one in found] == [one.test for one in whole]  # whatever number they stand for


def test_what_cannot_be_compared_is_refused():
    rng = np.random.default_rng(3)
    a, u = skewed(rng, 10)
    with pytest.raises(InputError, match="one part"):
        matched.against_largest(made([a], [u]))


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"operator": "residual"}, ["H - G", arg("operator", "ggn")]),
        ({"provenance": {"checkpoints": {"a.pt": "0"}, "checkpoint": "a.pt"}}, ["series along training", "a.pt alone"]),
        ({"provenance": {"options": {"sampling_errors": False}}}, [arg("sampling_errors", False)]),
        ({"n_samples": np.full(2, np.nan)}, ["matrix without data"]),
        ({}, ["earlier version"]),
    ],
)
def test_a_spectrum_without_samples_is_refused_with_the_true_reason(changed, named):
    found = dataclasses.replace(made([np.ones(3)] * 2, [np.ones(3)] * 2, sample_trace=None), **changed)
    for compared in (matched.against_largest, matched.own_numbers, lambda s: same_images.paired(s, s)):
        with refused(InputError, "nothing of its samples", *named):
            compared(found)


@pytest.mark.parametrize("amount", [np.nan, -1.0, 0.0])
def test_numbers_per_uncertainty_need_one_that_is_known_and_positive(amount):
    rng = np.random.default_rng(13)
    traces, _, weights, chances, _ = drawn_head(rng, skewed(rng, 1000), 60)
    head = traces, np.full(60, amount), weights, chances, amount
    tail = skewed(rng, 30)[0], np.full(30, amount)
    (trace,) = matched.against_largest(with_draws(head, 1000, tail), repetitions=99)
    assert trace.number == "trace"
    assert np.isfinite([trace.p, trace.test.low, trace.test.power]).all()
