"""A Hessian's trace by probes beside the traces of its samples, which are those of G: errors, factors and names."""

import dataclasses
from functools import cache

import exact
import numpy as np
import pytest
import torch
from fitted import six_classes
from torch import nn

import landscape as ls
from landscape.cli import over_samples as table
from landscape.report.rows import rows_of
from landscape.report.sources import Source
from landscape.results import columns, inference, over_samples

DRAWS = 12
REVERSE = {"backend": "reverse"}  # without the time to trace a network


@cache
def objective(activation):
    return six_classes(activation)


@cache
def whole(activation):
    return ls.spectrum(objective(activation), **REVERSE)


@cache
def trace(activation, part, kind="hessian"):
    return torch.trace(exact.dense(objective(activation), part, kind)).item()


@pytest.mark.parametrize(
    ("activation", "samples", "parts", "blind"),
    [(nn.Tanh, 40, (0, 1), 0.5), (nn.ReLU, 110, (0,), 0.75)],
    ids=["probes", "estimates of samples that are always drawn"],
)
def test_intervals_of_traces_of_draws_hold_the_error_of_the_estimate(activation, samples, parts, blind):
    """Nominal 90 %. The spread over samples alone, from which earlier versions took them, gives 10 to 65 %."""
    held, alone, drawn_from = [], [], six_classes(activation, classes=parts)
    for seed in range(DRAWS):
        found = ls.spectrum(drawn_from, samples=samples, seed=seed, **REVERSE)
        for p in parts:
            one, true = over_samples.of_part(found, p), trace(activation, p)
            low, high = one.trace_interval
            held.append(low <= true <= high)
            assert one.trace[1] == pytest.approx(np.hypot(found.trace_sampling_stderr[p], found.trace_stderr[p]))
            alone.append(abs(found.trace[p] - true) <= 1.75 * found.trace_sampling_stderr[p])  # Student's t
    assert np.mean(held) >= 0.8
    assert np.mean(alone) < blind


def test_a_widened_interval_of_a_skewed_mean_holds_as_often_as_it_says():
    """The sum of the mean of 30 skewed values and an estimate of known error; 400 repetitions, nominal 90 %."""
    rng, held, alone, sides = np.random.default_rng(0), 0, 0, []
    for _ in range(400):
        x, off = rng.lognormal(size=30), rng.normal(scale=0.4)
        ends = inference.interval(x, repetitions=200)
        value, true = x.mean() + off, np.exp(0.5)
        moved = ends[0] + off, ends[1] + off
        low, high = inference.widened(moved, value, 0.4)
        sides.append((value - low, high - value))
        held += low <= true <= high
        alone += moved[0] <= true <= moved[1]
    assert 0.87 <= held / 400 <= 0.97
    assert alone / 400 < 0.75
    assert np.median([above - below for below, above in sides]) > 0  # it stays skewed
    assert inference.widened((1.0, 3.0), 1.5, 0.0) == (1.0, 3.0)
    assert inference.widened((1.0, 3.0), 1.5, 0.1, least=1.2) == pytest.approx((1.2, 3.0), abs=0.05)
    assert np.isnan([inference.widened((np.nan, np.nan), 1.0, 0.1), inference.widened((0.0, 2.0), 1.0, np.nan)]).all()


def test_a_trace_that_only_its_probes_leave_open_is_not_resolved():
    found = ls.spectrum(six_classes(nn.Tanh, epochs=20), **REVERSE)
    assert over_samples.of_part(found, 0).resolved
    loose = dataclasses.replace(found, trace_stderr=0.4 * found.trace)
    assert not over_samples.of_part(loose, 0).resolved
    assert not over_samples.of_part(dataclasses.replace(found, trace_stderr=np.full(4, np.nan)), 0).resolved


@pytest.mark.parametrize("activation", [nn.Tanh, nn.ReLU])
def test_a_trace_per_uncertainty_times_the_uncertainty_is_the_trace_that_is_named(activation):
    found, smooth = whole(activation), activation is nn.Tanh
    assert over_samples.of_gauss_newton(found) == smooth
    numbers = columns.derived(found)
    name, other = ("ggn_trace_ratio", "trace_ratio")[:: 1 if smooth else -1]
    assert other not in numbers
    products = numbers[name] * numbers["uncertainty"]
    assert products == pytest.approx([trace(activation, p, "ggn") for p in range(4)], rel=0.06)  # estimates
    if not smooth:
        assert products == pytest.approx(found.trace, rel=1e-12)
    else:
        assert abs(trace(activation, 0) - trace(activation, 0, "ggn")) > 0.2 * trace(activation, 0)
    (row, *_) = rows_of([Source(file="a.h5", sha256="", result=found, model="a")])
    assert row.cells[name].value == pytest.approx(numbers[name][0])
    assert other not in row.cells
    console = Said()
    table.show(console, found)
    assert ("tr G / unc., 90 %" if smooth else "trace / unc., 90 %") in console.heads
    assert ("tr G, not the trace of H" in " ".join(console.notes)) == smooth
    assert any(note.startswith("trace, 90 %") for note in console.notes) == smooth


class Said:
    """A console that keeps what it is given."""

    def __init__(self):
        self.heads, self.notes = [], []

    def table(self, heads, rows, title):
        self.heads = heads

    def note(self, text):
        self.notes.append(text)


def test_the_spread_over_all_samples_of_a_piecewise_linear_network_holds_the_error_of_their_estimates():
    found = whole(nn.ReLU)
    assert (found.trace_stderr[:2] > 0).all()
    for p in range(3):
        one = over_samples.of_part(found, p)
        assert one.trace == pytest.approx((found.trace[p], found.trace_sampling_stderr[p]), rel=1e-12)
        assert over_samples.estimate_error(found, p) == 0


@pytest.mark.parametrize(
    ("operator", "decay"),
    [("hessian", 0.0), ("hessian", 0.5), ("hessian", 1), ("ggn", 0.5), ("fisher", 0.5), ("empirical-fisher", 0.5)],
)
def test_the_weight_decay_makes_no_other_trace(operator, decay):
    found = ls.spectrum(six_classes(nn.ReLU, epochs=2, weight_decay=decay), operator=operator, **REVERSE)
    assert not over_samples.of_gauss_newton(found)
    assert [over_samples.estimate_error(found, p) for p in range(4)] == [0] * 4


def test_a_gauss_newton_matrix_by_probes_has_their_error_and_the_ratio_of_its_samples():
    found = ls.spectrum(objective(nn.Tanh), operator="ggn", trace="probes", method="lanczos", **REVERSE)
    one = over_samples.of_part(found, 0)
    assert found.trace_stderr[0] > 0
    assert one.trace[1] == pytest.approx(np.hypot(found.trace_sampling_stderr[0], found.trace_stderr[0]))
    assert not over_samples.of_gauss_newton(found)
    assert one.trace_ratio[0] * one.uncertainty[0] == pytest.approx(trace(nn.Tanh, 0, "ggn"), rel=1e-6)


def test_the_ratio_of_draws_has_the_error_of_the_estimates_of_its_samples():
    found = ls.spectrum(objective(nn.ReLU), samples=110, **REVERSE)
    one = over_samples.of_part(found, 0)
    assert one.weighted
    assert found.trace_stderr[0] > found.trace_sampling_stderr[0] > 0
    assert np.array(one.trace_ratio) * one.uncertainty[0] == pytest.approx(one.trace, rel=1e-9)
    assert np.array(one.trace_ratio_interval) * one.uncertainty[0] == pytest.approx(one.trace_interval, rel=1e-9)
