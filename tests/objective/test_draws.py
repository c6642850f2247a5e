"""Weighted draws stand for all samples: unbiased, with the weights in every product, and reproducible."""

import dataclasses
import logging

import numpy as np
import pytest
import torch
from fitted import network
from refusals import refused
from torch import nn

import landscape as ls
from landscape.curvature import forms, rows
from landscape.curvature.kinds import KINDS
from landscape.data import datasets
from landscape.data.partition import Partition
from landscape.errors import InputError
from landscape.objective import draws
from landscape.objective.objective import Objective
from landscape.results import inference, over_samples
from landscape.results.regroup import regroup


def test_means_over_draws_are_those_over_samples_on_average():
    objective = network()
    traces = rows.lengths(objective, KINDS["ggn"].factors, 0).traces
    found = []
    for seed in range(100):
        drawn = draws.draw_samples(objective, 12, seed=seed)
        known = rows.lengths(drawn, KINDS["ggn"].factors, 0)
        assert len(known.traces) == 12
        found.append(known.traces.mean())
    error = np.std(found) / np.sqrt(len(found))
    assert abs(np.mean(found) - traces.mean()) < 4 * error
    assert np.std(found) < 0.7 * traces.std() / np.sqrt(12)  # what weights are for


@pytest.mark.parametrize(
    ("loss", "kind", "backend"),
    [
        *((loss, kind, "reverse") for loss in ("ce", "focal") for kind in ("hessian", "ggn", "residual")),
        *(("ce", kind, "auto") for kind in ("hessian", "residual")),
        ("focal", "ggn", "auto"),
    ],
)
def test_products_weigh_each_draw(loss, kind, backend):
    objective = network(loss=loss)
    drawn = draws.draw_samples(objective, 12, seed=1, even=draws.AT)
    index, factors = drawn.draws.index, drawn.draws.factors
    v = torch.randn(objective.layout.size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    operator = ls.curvature_operator(drawn, kind, backend=backend)
    product = operator.matvec(v.expand(2, 1, -1).contiguous())[:, 0]
    for part, members in enumerate(drawn.members):
        each = forms.quadratic_forms(objective, KINDS[kind], index[members], v)
        assert float(product[part] @ v) == pytest.approx((factors[members] * each).mean(), rel=1e-9)
    assert len(drawn.members[1]) == 5  # a part of fewer samples is taken whole
    np.testing.assert_array_equal(factors[12:], np.ones(5))
    np.testing.assert_array_equal(drawn.samples.labels, objective.samples.labels[index])


def test_uncertainty_is_the_trace_in_the_logits_for_any_loss():
    for loss in ("ce", "focal", "logit-adjust"):
        objective = network(loss=loss)
        known = rows.lengths(objective, KINDS["ggn"].factors, 0)
        np.testing.assert_allclose(draws.uncertainty(objective, 0), known.uncertainty, atol=1e-12)


def test_the_evaluation_gives_the_uncertainty_without_another_pass(monkeypatch):
    objective = network()
    apart = [draws.uncertainty(objective, p) for p in range(2)]
    assert network(loss="focal").evaluation.uncertainty is None
    objective.evaluate()
    monkeypatch.setattr(Objective, "logits", None)
    for p in range(2):
        np.testing.assert_array_equal(draws.uncertainty(objective, p), apart[p])


def test_uncertainty_of_a_loss_that_cannot_be_vectorised():
    """For the sum of squares to a one-hot target the Hessian in C logits is 2 I."""

    def squares(z, y):
        return (z - nn.functional.one_hot(y, z.shape[1]).to(z.dtype)).square().sum(1)

    objective = network(loss=squares)
    np.testing.assert_allclose(draws.uncertainty(objective, 0), 2.0 * len(objective.samples.class_names), rtol=1e-12)


def test_where_it_varies_little_samples_are_drawn_alike_and_each_once(caplog):
    objective = network(scale=0.01)
    with caplog.at_level(logging.INFO):
        drawn = draws.draw_samples(objective, 12)
    assert "varies little, 12 of 60" in caplog.text
    assert len(set(drawn.draws.index[:12])) == 12
    np.testing.assert_array_equal(drawn.draws.factors, np.ones(17))


def test_no_weight_is_beyond_twenty_and_the_seed_decides():
    objective = network(scale=50.0)
    one, same, other = (draws.draw_samples(objective, 30, seed=seed, even=draws.AT).draws for seed in (3, 3, 4))
    assert one.factors.max() <= 20
    np.testing.assert_array_equal(one.index, same.index)
    assert (one.index[:30] != other.index[:30]).any()
    with refused(InputError, "samples"):
        draws.draw_samples(objective, 1)


def test_a_part_of_as_many_samples_as_are_drawn_is_taken_whole():
    drawn = draws.draw_samples(network(sizes=(60, 12)), 12)
    np.testing.assert_array_equal(drawn.draws.index[12:], np.arange(60, 72))
    np.testing.assert_array_equal(drawn.draws.factors[12:], np.ones(12))


def test_parts_are_drawn_from_streams_of_their_own():
    """Two parts of the same inputs: the same draws in both would make errors of their difference too small."""
    objective = network()
    inputs = torch.cat([objective.samples.inputs[:60]] * 2)
    twice = datasets.from_dataset((inputs, torch.arange(120) % 2), name="twice")
    parts = Partition.from_index(np.repeat([0, 1], 60), ("first", "second"))
    both = Objective.build(objective.model.requires_grad_(), twice, partition=parts, dtype=torch.float64, device="cpu")
    drawn = draws.draw_samples(both, 20)
    assert (drawn.draws.index[:20] != drawn.draws.index[20:] - 60).any()


def test_a_spectrum_of_draws_states_their_error_and_keeps_what_they_are_of():
    objective = network()
    found = ls.spectrum(objective, operator="ggn", samples=40)
    whole = ls.spectrum(objective, operator="ggn")
    assert found.n_used.tolist() == [40, 5]
    assert found.n_samples.tolist() == [60, 5]
    assert abs(found.trace[0] - whole.trace[0]) < 4 * found.trace_sampling_stderr[0]
    assert found.trace_sampling_stderr[0] < 0.7 * whole.trace_sampling_stderr[0]
    for name in ("lambda_max", "trace", "uncertainty", "trace_sampling_stderr", "lambda_max_crossfit"):
        assert getattr(found, name)[1] == pytest.approx(getattr(whole, name)[1], rel=1e-9)  # the part taken whole
    own = np.isfinite(found.sample_weight[0])
    index = found.sample_index[0][own].astype(int)
    np.testing.assert_array_equal(found.sample_label[0][own], objective.samples.labels[index])
    place = {int(i): k for k, i in enumerate(whole.sample_index[0])}
    there = [place[i] for i in index]
    for name in ("sample_trace", "sample_uncertainty", "sample_loss", "sample_prediction"):
        ours, theirs = getattr(found, name)[0][own], getattr(whole, name)[0][there]
        np.testing.assert_allclose(ours, theirs, rtol=1e-8, atol=1e-14)
    assert found.sample_weight[0][own] @ found.sample_trace[0][own] == pytest.approx(found.trace[0], rel=1e-9)
    hessian = ls.spectrum(objective, samples=40, steps=25, probes=1)
    assert np.isnan([found.lambda_max_crossfit[0], hessian.lambda_max_crossfit[0]]).all()
    mean = hessian.sample_weight[0][:40] @ hessian.sample_curvature[0][:40]
    assert mean == pytest.approx(hessian.lambda_max[0], rel=1e-6)
    with refused(InputError, "samples"):
        ls.spectrum(objective, operator="fisher", samples=40)


def test_many_classes_are_no_hindrance_where_the_trace_has_a_formula(monkeypatch, caplog):
    monkeypatch.setattr(draws, "MOST_OUTPUTS", 1)
    assert np.ptp(draws.pick(network(), 0, 12).factors) > 0
    with caplog.at_level(logging.INFO):
        assert np.ptp(draws.pick(network(loss="focal"), 0, 12).factors) == 0
    assert "more than 1 outputs, 12 of 60 are drawn alike" in caplog.text


AMOUNTS = {
    "zero": (np.zeros(60), True),
    "alike": (np.full(60, 0.3), True),
    "alike and huge": (np.full(60, 1e300), True),
    "not a number": (np.r_[np.nan, np.ones(59)], True),
    "infinite": (np.r_[np.inf, np.ones(59)], True),
    "all infinite": (np.full(60, np.inf), True),
    "one has all": (np.eye(1, 60)[0], False),
    "one has all, and it is huge": (1e308 * np.eye(1, 60)[0], False),
    "one has all, and it is the least number": (5e-324 * np.eye(1, 60)[0], False),
    "two have all": (np.eye(1, 60)[0] + np.eye(1, 60, 7)[0], False),
    "half": (np.arange(60) % 2 * 1.0, False),
    "many sizes": (np.logspace(-300, 300, 60), False),
    "small sizes": (np.logspace(-320, -310, 60), False),
}


@pytest.mark.parametrize("even", [draws.AT, draws.AWAY])
@pytest.mark.parametrize("n", [2, 12])
@pytest.mark.parametrize("kind", AMOUNTS)
def test_samples_are_drawn_by_any_uncertainty(kind, n, even, caplog):
    objective, (amount, alike) = network(), AMOUNTS[kind]
    members = objective.members[0]
    with caplog.at_level(logging.INFO), np.errstate(all="raise", under="ignore"):
        found = [draws.pick(objective, 0, n, amount=amount, seed=seed, even=even) for seed in range(20)]
    assert ("drawn alike" in caplog.text) == alike
    assert ("is not finite" in caplog.text) == (not np.isfinite(amount).all())
    of_each = None if alike else chances(amount, n, even)
    for one in found:
        assert len(set(one.index)) == n
        expected = np.ones(n)
        if not alike:
            expected = n / (len(members) * of_each[np.searchsorted(members, one.index)])
        np.testing.assert_allclose(one.factors, expected.astype(float), rtol=1e-12)


def chances(amount, n, even):
    """min(1, c s) for the factor c with the sum n, by bisection; longdouble goes beyond the range of float64."""
    amount = amount.astype(np.longdouble)
    size = (1 - even) * amount / amount.sum() + np.longdouble(even) / len(amount)
    low, high = np.longdouble(0), 1 / size.min()
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if np.minimum(1, middle * size).sum() < n else (low, middle)
    return np.minimum(1, high * size)


def test_each_sample_is_drawn_as_often_as_its_probability_says():
    random = np.random.default_rng(0)
    expected = draws.inclusion(random.lognormal(sigma=1.5, size=40), 15, 0.05)
    assert expected.sum() == pytest.approx(15, rel=1e-12)
    assert 2 <= np.count_nonzero(expected == 1) < 15
    found, both = np.zeros(40), np.zeros((40, 40))
    for _ in range(4000):
        index = draws.systematic(expected, random)
        assert len(set(index)) == 15
        drawn = np.isin(np.arange(40), index)
        found += drawn
        both += np.outer(drawn, drawn)
    spread = np.sqrt(expected * (1 - expected) / 4000)
    assert (np.abs(found / 4000 - expected) <= 4.5 * spread).all()
    assert (both > 0).all()  # a fixed order would never draw some pairs together


def test_the_error_of_a_draw_is_that_of_all_samples_of_the_part_and_holds():
    """Over 300 draws, the stated error is the spread; samples that are always drawn add nothing to it."""
    objective = network()
    traces = rows.lengths(objective, KINDS["ggn"].factors, 0).traces
    amount, found = draws.uncertainty(objective, 0), []
    for seed in range(300):
        one = draws.pick(objective, 0, 20, seed=seed, amount=amount)
        drawn = draws.gathered(objective.alone("0"), [one], {})
        assert (drawn.draws.chances == 1).sum() >= 3
        x = drawn.as_drawn(0, one.factors * traces[np.searchsorted(objective.members[0], one.index)])
        found.append((x.mean(), inference.stderr(x), inference.stderr(one.factors * traces[one.index])))
    values, errors, independent = np.array(found).T
    assert abs(values.mean() - traces.mean()) < 4 * values.std() / np.sqrt(300)
    assert np.sqrt(np.mean(errors**2)) == pytest.approx(values.std(), rel=0.15)
    assert np.sqrt(np.mean(independent**2)) > 1.5 * values.std()  # what drawing each sample once is for


def test_draws_of_one_sample_in_a_file_of_an_earlier_version_leave_errors_unknown():
    found = ls.spectrum(network(), operator="ggn", samples=12)
    again = np.where(np.isfinite(found.sample_index), found.sample_index[:, :1], np.nan)
    found = dataclasses.replace(found, sample_index=again, sample_chance=None)
    one = over_samples.of_part(found, 0)
    groups = regroup(found, {"one": ["0"], "both": ["0", "1"]})
    assert np.isnan(groups.trace_sampling_stderr).all()
    assert np.isnan(groups.lambda_max_sampling_stderr).all()
    assert np.isnan([one.trace[1], one.lambda_max[1], *one.trace_interval, *one.trace_ratio[1:]]).all()


def test_other_draws_of_the_same_options_are_told_apart():
    """Processes draw by themselves, from probabilities of which the last digits may differ."""
    objective = network()
    about = {"samples": 5, "seed": 0}
    of = [
        draws.gathered(objective, [draws.Picked(index, np.ones(5)), draws.Picked(np.arange(60, 65), np.ones(5))], about)
        for index in (np.arange(5), np.arange(1, 6), np.arange(5))
    ]
    assert of[0].source["draws"] == of[2].source["draws"] != of[1].source["draws"]
    assert about.items() <= of[0].source["draws"].items()


def test_few_weighted_draws_have_intervals_and_few_samples_have_none():
    objective = network()
    drawn, alike = (ls.spectrum(subject, operator="ggn", samples=12) for subject in (objective, network(scale=0.01)))
    one, other = (over_samples.of_part(found, 0) for found in (drawn, alike))
    assert (one.weighted, other.weighted) == (True, False)
    value, error = one.lambda_max
    low, high = one.lambda_max_interval
    assert value - low == pytest.approx(high - value)
    assert error < high - value < 3 * error
    assert np.isfinite([one.trace_interval, one.uncertainty_interval]).all()
    assert np.isnan([other.trace_interval, other.uncertainty_interval, other.lambda_max_interval]).all()
    assert not other.resolved


def test_the_uncertainty_of_weighted_draws_is_that_of_all_samples():
    """The draws know it: those of small tr M, on which its estimate depends, are hardly ever among few."""
    objective = network()
    found, whole = (ls.spectrum(objective, operator="ggn", samples=n) for n in (12, None))
    assert found.uncertainty[0] == pytest.approx(whole.uncertainty[0], rel=1e-12)
    one = over_samples.of_part(found, 0)
    assert one.uncertainty == (pytest.approx(whole.uncertainty[0], rel=1e-12), 0)
    for ratio, ends, number, own in (
        (one.trace_ratio, one.trace_ratio_interval, one.trace, one.trace_interval),
        (one.lambda_max_ratio, one.lambda_max_ratio_interval, one.lambda_max, one.lambda_max_interval),
    ):
        np.testing.assert_allclose(np.array([*ratio, *ends]) * one.uncertainty[0], [*number, *own], rtol=1e-9)


def test_intervals_ask_for_draws_that_could_have_been_others():
    objective = network(sizes=(60, 7))
    found = ls.spectrum(objective, operator="ggn", samples=6)
    one = over_samples.of_part(found, 1)
    assert one.n == 6 > one.n_random
    assert np.isnan([one.trace_interval, one.lambda_max_interval]).all()
    assert not one.resolved


def test_few_random_draws_state_the_error_of_independent_ones():
    """Two of 100, one of them nearly certain: the other alone has all of the variance, and seldom shows it."""
    random = np.random.default_rng(0)
    y, chances = random.lognormal(sigma=1, size=100), np.r_[0.95, np.full(99, 1.05 / 99)]
    means, errors = [], []
    for _ in range(2000):
        drawn = draws.systematic(chances, random)
        x = inference.draws(y[drawn], 1 / (100 * chances[drawn]), chances[drawn])
        means.append(x.mean())
        errors.append(inference.stderr(x))
    assert np.sqrt(np.mean(np.square(errors))) > 0.95 * np.std(means)


def test_the_error_of_lambda_max_of_a_smooth_network_is_not_that_of_its_rows_alone():
    """H - G has most of this curvature; the trace of H has no rows, and the error of its draw is that over samples."""
    objective = network(sizes=(200, 5), scale=8.0)
    found = ls.spectrum(objective, accuracy=0.1, seed=2)
    assert found.n_used[0] < 200
    assert found.lambda_max_error[0] >= found.lambda_max_sampling_stderr[0]
    assert found.trace_error[0] == pytest.approx(np.hypot(found.trace_stderr[0], found.trace_sampling_stderr[0]))
    assert np.isnan(ls.spectrum(objective, accuracy=0.1, seed=2, sampling_errors=False).trace_error[0])


def test_the_mean_of_tr_m_has_its_sign_where_a_loss_is_not_convex_in_the_logits():
    def loss(logits, labels):
        return 1 - logits.softmax(1).gather(1, labels[:, None])[:, 0]

    objective = network(loss=loss)
    whole = ls.spectrum(objective, operator="ggn")
    of_samples = whole.sample_uncertainty[np.isfinite(whole.sample_uncertainty)]
    assert of_samples.min() < 0 < of_samples.max()
    drawn = ls.draw_samples(objective, 12)
    expected = np.nanmean(whole.sample_uncertainty, axis=1)
    known = np.isfinite(drawn.draws.uncertainty)
    assert known.any()
    np.testing.assert_allclose(drawn.draws.uncertainty[known], expected[known], rtol=1e-10)
