"""What figures of spectra show of other samples: errors, bands and tests at equal size."""

import dataclasses
import functools

import exact
import numpy as np
import pytest
import torch
from fitted import six_classes
from made import THREE, features, gradients
from matplotlib.collections import LineCollection, PolyCollection
from results_of_all_kinds import sharpness
from sampled import of_rows, rows
from torch import nn

import landscape as ls
from landscape import plots
from landscape.report.figures import SHOWN, matrices, pictures
from landscape.report.rows import rows_of
from landscape.report.sources import Source
from landscape.results import columns, matched, over_samples
from landscape.results.features import WITH_ERRORS
from landscape.results.pool import pool, resampled


def sampled_parts(seed=0):
    """A large part and a small one of three times the curvature, one row a sample."""
    rng = np.random.default_rng(seed)
    found = of_rows(rows(rng, 60), rows(rng, 12, scale=3.0))
    curvature = np.where(np.isfinite(found.sample_trace), 0.5 * found.sample_trace, np.nan)
    sizes = np.array([60, 12])
    return dataclasses.replace(
        found,
        sample_curvature=curvature,
        train_counts=sizes,
        n_used=sizes,
        lambda_max=np.nanmean(curvature, axis=1),
        trace=np.nanmean(found.sample_trace, axis=1),
        converged=np.full(2, True),
        eigenvalue_rest=np.zeros(2),
        size=12,
    )


def bars(ax):
    """The wide lines among others, such as those of errors."""
    return [c for c in ax.collections if isinstance(c, LineCollection) and c.get_linewidth()[0] > 5]


def test_summary_shows_errors_over_samples_both_factors_and_the_largest_part_at_the_others_sizes():
    spectrum = sampled_parts()
    fig = plots.summary(spectrum)
    top, trace, uncertainty, ratio = fig.axes
    one = over_samples.of_part(spectrum, 1)
    names = ("lambda_max", "trace", "uncertainty", "trace_ratio")
    for ax, name in zip((top, trace, uncertainty, ratio), names, strict=True):
        value, error = getattr(one, name)
        low, high = ax.containers[1].lines[2][0].get_segments()[0][:, 1]  # the rarer part comes second
        assert (low, high) == pytest.approx((value - error, value + error))
    band = matched.as_many_of_both(spectrum)["lambda_max"][1]
    ((ends,),) = (shade.get_segments() for shade in bars(top))  # between one place and itself no area would be seen
    assert (ends[:, 1].min(), ends[:, 1].max()) == pytest.approx((band[0], band[2]))
    assert not bars(uncertainty)


def diamonds(ax):
    """The numbers that are drawn beside the points, from the largest part to the smallest."""
    return [line.get_ydata()[0] for line in ax.lines if line.get_marker() == "D"]


def distances(ax, values, others):
    """Distances on an axis, as fractions of it."""
    places = [
        ax.transLimits.transform(ax.transScale.transform([(1.0, y) for y in ys]))[:, 1] for ys in (values, others)
    ]
    return np.abs(np.subtract(*places))


@functools.cache
def small_parts_of_g(activation):
    """G of the three parts that are compared with the largest, as dense matrices."""
    objective = six_classes(activation, epochs=20)
    return [exact.dense(objective, p, "ggn") for p in (1, 2, 3)]


@pytest.mark.parametrize(
    ("activation", "decay", "apart"), [(nn.Tanh, 0.0, True), (nn.ReLU, 0.0, False), (nn.ReLU, 0.01, True)]
)  # a piecewise linear network has the trace of G
def test_beside_a_band_of_g_stands_the_number_of_g_that_the_test_compares(activation, decay, apart):
    dense = small_parts_of_g(activation)
    spectrum = ls.spectrum(six_classes(activation, epochs=20, weight_decay=decay))
    fig = plots.summary(spectrum)
    top, trace, _, ratio = fig.axes
    tests = matched.against_largest(spectrum, repetitions=1000, trials=0)
    expected = {
        "lambda_max": (top, [torch.linalg.eigvalsh(G)[-1].item() for G in dense], spectrum.lambda_max, True),
        "trace": (trace, [G.trace().item() for G in dense], spectrum.trace, apart),
    }
    for name, (ax, values, points, differ) in expected.items():
        own = [t.test for t in tests if t.number == name]
        compared = np.array([t.value for t in own])
        assert compared == pytest.approx(values, rel=0.06)  # some rows are left out; traces are estimates
        beside = np.isin(compared, diamonds(ax))
        assert len(diamonds(ax)) == beside.sum() > 0 if differ else not diamonds(ax)
        off = distances(ax, compared, points[1:])
        crosses = [
            (t.value > end) != (point > end)
            for t, point in zip(own, points[1:], strict=True)
            for end in (t.low, t.high)
        ]
        crosses = np.reshape(crosses, (-1, 2)).any(axis=1)
        assert ((off > 0.01) | crosses)[beside].all()
        assert (off[~beside] < 0.02).all()  # it would be drawn over the point
        (shade,) = [c for c in ax.collections if isinstance(c, PolyCollection)]
        ends = shade.get_paths()[0].vertices
        for p, t in enumerate(own, start=1):
            there = ends[np.isclose(ends[:, 0], spectrum.train_counts[p]), 1]
            assert (there.min(), there.max()) == pytest.approx((t.low, t.high))
    assert diamonds(ratio) == []
    larger = max(t.test.above / t.test.value for t in tests if t.number == "lambda_max")
    without, kept = ", without decay" * bool(decay), f", lambda_max of kept rows: at most {larger:.0%} larger"
    label = fig.legends[0].get_texts()[-1].get_text()
    assert " ".join(label.split()) == f"G, which the band is of{without}{kept}"
    assert fig.get_suptitle() == f"grey: G of as many samples of the part and 0{without}"
    assert ratio.get_ylabel().startswith("Tr($G$)" if activation is nn.Tanh else "trace")
    bars = [trace.containers[i].lines[2][0].get_segments()[0][:, 1] for i in range(4)]
    both = np.hypot(spectrum.trace_sampling_stderr, spectrum.trace_stderr if activation is nn.Tanh else 0)
    assert np.ptp(bars, axis=1) / 2 == pytest.approx(both)
    assert ("estimate" in trace.get_ylabel()) == (activation is nn.Tanh)


@pytest.mark.parametrize(("factor", "there"), [(1.0, False), (1.005, False), (0.9, True), (1.1, True)])
def test_a_number_of_g_is_drawn_where_the_point_is_another(factor, there):
    spectrum = sampled_parts()
    own = matched.own_numbers(spectrum)["lambda_max"][1]
    for operator in ("hessian", "ggn"):
        found = dataclasses.replace(spectrum, lambda_max=np.array([1.0, factor * own]), operator=operator)
        fig = plots.summary(found)
        assert diamonds(fig.axes[0]) == pytest.approx([own] * there)
        names = [t.get_text() for t in fig.legends[0].get_texts()]
        assert (
            names[2:] == ["G, which the band is of" if operator == "hessian" else "as compared with the band"] * there
        )
        assert (": G of as many" in fig.get_suptitle()) == (operator == "hessian")


def test_a_number_of_g_on_the_other_side_of_an_end_is_drawn_however_near(monkeypatch):
    spectrum = sampled_parts()
    own = matched.own_numbers(spectrum)["lambda_max"][1]
    band = {"lambda_max": np.array([[np.nan] * 3, [0.5 * own, 0.8 * own, 1.001 * own]])}
    monkeypatch.setattr(matched, "as_many_of_both", lambda spectrum: band)
    for factor, there in ((1.0005, False), (1.0015, True)):
        found = dataclasses.replace(spectrum, lambda_max=np.array([1.0, factor * own]))
        assert diamonds(plots.summary(found).axes[0]) == pytest.approx([own] * there)


@pytest.mark.parametrize(("points", "scale"), [((1.0, 10.0), "log"), ((8.0, 10.0), "linear")])
def test_the_axis_shows_points_and_bars_and_a_band_that_reaches_zero_goes_to_its_lower_edge(monkeypatch, points, scale):
    band = {"lambda_max": np.array([[np.nan] * 3, [0.0, 0.0, 20.0]])}
    monkeypatch.setattr(matched, "as_many_of_both", lambda spectrum: band)
    errors = np.array([points[0], 1.0])
    found = dataclasses.replace(sampled_parts(), lambda_max=np.array(points), lambda_max_residual=errors)
    ax = plots.summary(found).axes[0]
    low, high = ax.get_ylim()
    ((ends,),) = (shade.get_segments() for shade in bars(ax))
    assert ax.get_yscale() == scale
    if scale == "log":
        assert 0.01 < low < 1
        assert ends[:, 1].min() == pytest.approx(low)
    else:
        assert low < 0
        assert ends[:, 1].min() == 0
    assert 20 < high < 50


def test_as_many_samples_of_both_are_sharper_than_all_of_them():
    spectrum = sampled_parts()
    found = matched.as_many_of_both(spectrum, repetitions=300)
    assert np.isnan(found["trace"][0]).all()
    own = pool(spectrum, (0, 1))
    weights = np.full(len(own.part), 1 / len(own.part))
    assert found["trace"][1, 1] == pytest.approx(weights @ own.traces, rel=0.3)
    assert found["lambda_max"][1, 1] > own.gram.top(weights)[0]
    test = next(one.test for one in matched.against_largest(spectrum, repetitions=300) if one.number == "lambda_max")
    assert found["lambda_max"][1] == pytest.approx([test.low, test.median, test.high])


def test_the_density_by_rows_has_a_band_over_samples():
    spectrum = dataclasses.replace(
        sampled_parts(),
        steps=np.zeros((2, 2), dtype=int),
        eigenvalues=np.sort(np.random.default_rng(0).random((2, 12)), axis=1)[:, ::-1],
    )
    nodes, weights = resampled(spectrum, 1, repetitions=20)
    assert weights.sum(axis=1) == pytest.approx(1)
    assert (np.diff(nodes, axis=1) >= 0).all()
    traces = 12 * (nodes * weights).sum(axis=1)  # of bootstrap draws around the trace
    assert abs(traces.mean() - spectrum.trace[1]) < 4 * traces.std() / np.sqrt(20)
    assert traces.std() == pytest.approx(over_samples.of_part(spectrum, 1).trace[1], rel=0.6)
    assert resampled(spectrum, 1, most=5) is None
    ax = plots.density(spectrum, "part 1")
    assert [c for c in ax.collections if isinstance(c, PolyCollection)]


def test_the_density_of_one_probe_has_no_band_of_the_rows_that_are_stored_beside_it():
    found = ls.spectrum(six_classes(nn.Tanh, epochs=2), steps=6, probes=1)
    assert resampled(found, 0) is not None
    assert not [c for c in plots.density(found, found.parts[0]).collections if isinstance(c, PolyCollection)]


def test_panels_and_reports_show_the_larger_error_and_the_factors():
    spectrum = dataclasses.replace(
        sampled_parts(),
        lambda_max_residual=np.full(2, 1e-6),
        trace_stderr=np.full(2, 1e3),
        trace_sampling_stderr=np.array([0.1, 0.2]),
        lambda_max_sampling_stderr=np.array([0.3, 0.4]),
        n_used=np.array([30, 12]),
        provenance={},
    )
    (corner,) = plots.density(spectrum, "part 0").texts
    first, second, third = corner.get_text().splitlines()
    assert first.endswith(f"± {0.3:.2f} (draw)")
    assert second.endswith(" (estimate)")
    assert third == "± samples"
    (row, _) = rows_of([Source(file="a.h5", sha256="", result=spectrum, model="a")])
    assert row.cells["lambda_max"].error == pytest.approx(0.3)
    assert row.cells["trace"].error == pytest.approx(1e3)
    one = over_samples.of_part(spectrum, 0)
    for name in ("uncertainty", "trace_ratio", "lambda_max_ratio"):
        assert (row.cells[name].value, row.cells[name].error) == getattr(one, name)
    unknown = dataclasses.replace(spectrum, lambda_max_sampling_stderr=np.full(2, np.nan))
    assert plots.density(unknown, "part 0").texts[0].get_text().splitlines()[0].endswith("± ? (draw)")
    bare = dataclasses.replace(spectrum, sample_trace=None, lambda_max_sampling_stderr=None, trace_sampling_stderr=None)
    (row, _) = rows_of([Source(file="a.h5", sha256="", result=bare, model="a")])
    assert row.cells["lambda_max"].error == pytest.approx(1e-6)
    assert "trace_ratio" not in row.cells
    assert "samples" not in plots.density(bare, "part 0").texts[0].get_text()


def test_a_report_has_the_factors_where_there_are_errors_over_samples():
    spectrum = dataclasses.replace(sampled_parts(), n_used=np.array([30, 12]), provenance={})
    for found, there in ((spectrum, True), (dataclasses.replace(spectrum, sample_trace=None, gram=None), False)):
        drawn, _ = pictures(found)
        assert (SHOWN["spectrum"]["summary"] in [picture.words for picture in drawn]) == there
    names = [t.get_text() for t in plots.summary(spectrum).legends[0].get_texts()]
    assert [name.endswith("(draw)") for name in names[:2]] == [True, False]


def test_figure_9_says_below_its_panels_what_is_left_at_equal_size():
    spectrum = sampled_parts()
    fig = plots.density_grid({"CE": spectrum}, ("part 0", "part 1"))
    head, tail = (ax.get_xlabel() for ax in fig.axes)
    assert head == ""
    tests = {one.number: one for one in matched.against_largest(spectrum)}
    one = tests["trace"]
    assert "at equal n, of G, with part 0" in tail
    assert f"trace {one.test.value / one.test.median:.2g} times, p = {one.p:.2g}" in tail
    assert tail.count("p ") == 3
    (alone,) = plots.density_grid({"CE": spectrum}, ("part 1",)).axes
    assert alone.get_xlabel() == tail  # also if the largest part of the file is not drawn


def test_a_panel_by_rows_says_why_it_has_no_band(monkeypatch):
    spectrum = dataclasses.replace(
        sampled_parts(),
        steps=np.zeros((2, 2), dtype=int),
        eigenvalues=np.sort(np.random.default_rng(0).random((2, 12)), axis=1)[:, ::-1],
    )
    words = plots.density(spectrum, "part 1").texts[0].get_text()
    bare = dataclasses.replace(spectrum, gram=None, gram_part=None, gram_sample=None, gram_sign=None)
    assert plots.density(bare, "part 1").texts[0].get_text().splitlines()[:-1] == words.splitlines()
    monkeypatch.setattr("landscape.plots.figures.density.MOST_RESAMPLED", 5)
    ax = plots.density(spectrum, "part 1")
    assert "12 rows" in ax.texts[0].get_text()
    assert not [c for c in ax.collections if isinstance(c, PolyCollection)]


def test_errors_of_other_analyses_say_where_they_are_those_of_a_draw():
    """Twenty samples are drawn of each part that has more."""
    names = [f"{name}_sampling_stderr" for name in ("first_order_rise", "worst_rise", "noise_rise", "doubling_radius")]
    found = dataclasses.replace(sharpness(), **dict.fromkeys(names, np.full(3, 1e6)), provenance={})
    found = dataclasses.replace(found, n_samples=np.array([500, 20, 5]))
    drawn = dataclasses.replace(found, provenance={"draws": {"samples": 20}})
    of_rise = [c for result in (found, drawn) for c in columns.compared([result]) if c.field == "noise_rise"]
    beside = [c for c in columns.of_kind(found) if c.head == "± samples"]
    assert len(beside) == 4
    for column in (*beside, *of_rise):
        assert ["(draw)" in column.text(drawn, p) for p in range(3)] == [True, False, False]
        assert not any("(draw)" in column.text(found, p) for p in range(3))


def test_errors_of_gradients_stand_beside_the_numbers_and_say_where_they_are_those_of_a_draw():
    plain = gradients(THREE, [500, 20, 5])
    names = ("loss", "norm", "cosine", "projected", "specific", "radius", "contribution")
    known = {f"{name}_sampling_stderr": np.array([[0.5, 0.25, np.nan]]) for name in names}
    found = dataclasses.replace(plain, **known, between_sampling_stderr=np.full((1, 3, 3), 0.125))
    drawn = dataclasses.replace(found, provenance={"draws": {"samples": 20}})
    for head in ("loss", "along g", "|h_p|", "rho_p", "of g"):
        (column,) = (c for c in columns.of_kind(found) if c.head == head)
        assert column.heading(found).endswith("± samples")
        assert "±" not in column.heading(plain) + column.text(plain, 0)
        assert "±" in column.text(found, 0)
        assert ["(draw)" in column.text(drawn, p) for p in range(3)] == [True, False, False]
    for row in rows_of([Source(file="a.h5", sha256="", result=found, model="net")]):
        p = found.parts.index(row.part)
        for key in ("loss", "gradient", "agreement"):
            assert row.cells[key].error == pytest.approx([0.5, 0.25, np.nan][p], nan_ok=True)
    assert matrices(found)[0].cells[0] == [f"{v:.3g} ± 0.1".replace("-", "\N{MINUS SIGN}") for v in found.between[0, 0]]
    assert "±" not in "".join(matrices(plain)[0].cells[0])


def test_every_number_of_features_in_the_table_has_its_error():
    plain = features(3)
    known = {f"{name}_stderr": np.full(getattr(plain, name).shape, 0.125) for name in WITH_ERRORS}
    found = dataclasses.replace(plain, **known)
    heads, (row, *_) = columns.table(found)
    with_errors = {head for head, cell in zip(heads, row, strict=True) if "±" in cell}
    assert len(with_errors) == 9
    assert all(head.endswith("± samples") for head in with_errors)
    assert not any("±" in text for text in (*columns.table(plain)[0], *columns.table(plain)[1][0]))
