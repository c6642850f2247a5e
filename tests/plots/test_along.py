"""Curves along training: what is drawn is what the series holds, with its errors and the edge of stability."""

from dataclasses import replace

import numpy as np
import pytest
from matplotlib import pyplot as plt
from refusals import refused
from results_of_all_kinds import sharpness, spectrum
from surfaces import three_lines

import landscape as ls
from landscape.errors import InputError
from landscape.results.series import joined, of_one


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def along(result, n=3, scale=1.0, **about):
    """A series in which lambda_max and worst_rise are 1, 2, 3 times those of a result."""
    made = []
    for k in range(n):
        name = "lambda_max" if hasattr(result, "lambda_max") else "worst_rise"
        own = replace(result, **{name: scale * (k + 1) * getattr(result, name)})
        made.append(of_one(own, f"net-{k}", epoch=5 * k, provenance={"options": {"with_parts": []}}, **about))
    return joined(made)


def curves(ax):
    return [line for line in ax.lines if line.get_linestyle() == "-" and len(line.get_xdata())]


def test_each_part_has_its_curve_and_its_band():
    series = along(spectrum(), edge=20.0, edge_rule="2 / lr")
    fig = ls.plots.along(series)
    first = fig.axes[0]
    drawn = curves(first)
    assert len(drawn) == 3
    for p in range(3):  # the most frequent is drawn last, on top
        np.testing.assert_array_equal(drawn[2 - p].get_ydata(), series.lambda_max[:, p])
        np.testing.assert_array_equal(drawn[2 - p].get_xdata(), [0, 5, 10])
    (edge,) = [line for line in first.lines if line.get_linestyle() == "--"]
    assert edge.get_ydata().tolist() == [20, 20, 20]
    assert [ax.get_xlabel() for ax in fig.axes] == ["epoch"] * len(fig.axes)
    assert "edge: 2 / lr" in [text.get_text() for text in fig.legends[0].get_texts()]
    half = first.collections[-1].get_paths()[0].get_extents()
    assert half.y0 <= series.lambda_max[0, 0] <= half.y1


def test_a_band_is_one_standard_error_to_each_side():
    series = along(sharpness())
    ax = ls.plots.along(series, ["class 1"]).axes[1]
    (band,) = ax.collections
    y, e = series.noise_rise[0, 1], series.noise_rise_stderr[0, 1]
    assert sorted(set(np.round(band.get_paths()[0].vertices[:, 1], 12))) == pytest.approx([y - e, y + e])


def test_the_bands_of_rises_have_the_errors_over_samples():
    errors = {"worst_rise_sampling_stderr": np.full(3, 0.3), "noise_rise_sampling_stderr": np.full(3, 0.4)}
    series = along(sharpness(**errors))
    worst, noise = ls.plots.along(series, ["class 1"]).axes[:2]
    for ax, error in ((worst, 0.3), (noise, np.hypot(0.4, series.noise_rise_stderr[0, 1]))):
        (line,), (band,) = curves(ax), ax.collections
        ends = np.add.outer([-error, error], line.get_ydata())
        assert set(np.round(band.get_paths()[0].vertices[:, 1], 12)) == set(np.round(ends, 12).ravel())


def test_the_title_says_of_what_the_bands_are_errors():
    def said(series):
        return ls.plots.along(series, ["class 1"]).get_suptitle().replace("\n", " ")

    assert said(along(spectrum())).endswith("band: s.e. of the estimate")
    assert "band: s.e. of the estimate or half the interquartile range" in said(along(sharpness()))
    errors = {"worst_rise_sampling_stderr": np.full(3, 0.3), "noise_rise_sampling_stderr": np.full(3, 0.4)}
    bands = "band: s.e. over samples or s.e. over samples, of the estimate or half the"
    assert bands in said(along(sharpness(**errors)))


def test_a_learning_rate_that_is_given_wins_and_one_that_is_unknown_draws_nothing():
    unknown = along(spectrum())
    assert not [line for line in ls.plots.along(unknown).axes[0].lines if line.get_linestyle() == "--"]
    for options, value in (({"lr": 0.5}, 4.0), ({"lr": 0.5, "momentum": 0.9}, 7.6)):
        for series in (unknown, along(spectrum(), edge=20.0, edge_rule="2 / lr")):
            (edge,) = [x for x in ls.plots.along(series, **options).axes[0].lines if x.get_linestyle() == "--"]
            np.testing.assert_allclose(edge.get_ydata(), value)
    for options, match in (({"momentum": 0.9}, "goes with lr"), ({"lr": -1.0}, "must be positive")):
        with pytest.raises(InputError, match=match):
            ls.plots.along(unknown, **options)


@pytest.mark.parametrize(
    ("edges", "style"),
    [
        ([np.nan, 20.0, 20.0, 20.0, 200.0, 200.0], "steps-mid"),
        ([20.0, 21.0, 25.0, 40.0, 90.0, 200.0], "default"),  # as under a cosine schedule
    ],
)
def test_the_edge_jumps_where_the_learning_rate_does(edges, style):
    series = replace(along(spectrum(), n=len(edges)), edge=np.array(edges), edge_rule="2 / lr")
    (line,) = [x for x in ls.plots.along(series).axes[0].lines if x.get_linestyle() == "--"]
    assert line.get_drawstyle() == style


def test_an_edge_far_above_the_curves_does_not_flatten_them():
    top = ls.plots.along(along(spectrum(), edge=1e9, edge_rule="2 / lr")).axes[0].get_ylim()[1]
    assert top < 1e3 * along(spectrum()).lambda_max.max()


@pytest.mark.parametrize(("result", "n"), [(spectrum, 2), (sharpness, 3), (three_lines, 3)])
def test_every_kind_of_series_has_its_panels(result, n):
    assert len(ls.plots.along(along(result())).axes) >= n


@pytest.mark.parametrize("edge", [20.0, None])
def test_a_critical_sharpness_that_no_drawn_part_has_gets_no_panel(edge):
    about = {"edge": edge, "edge_rule": "2 / lr"}
    plain = along(spectrum(), **about)
    sharp = along(spectrum(), **about, critical_sharpness=np.array([0.0, np.inf, 2.0]))
    label = "critical sharpness"
    for parts, there in ((["class 0"], False), (["class 0", "class 1"], False), (["class 0", "class 2"], True)):
        labels = [ax.get_ylabel() for ax in ls.plots.along(sharp, parts).axes]
        assert (label in labels) == there
        assert [name for name in labels if name != label] == [
            ax.get_ylabel() for ax in ls.plots.along(plain, parts).axes
        ]


def test_a_line_stops_at_values_that_are_infinite_or_unknown_and_signs_say_which_are_infinite():
    series = along(spectrum(), n=6)
    values = np.full((6, 3), 2.0)
    values[2, 1] = np.inf
    values[2:4, 2] = np.nan, np.inf
    values[2, 0] = np.inf
    fig = ls.plots.along(replace(series, critical_sharpness=values))
    (ax,) = [ax for ax in fig.axes if ax.get_ylabel() == "critical sharpness"]
    for line, own in zip(curves(ax), values.T[::-1], strict=True):
        np.testing.assert_array_equal(np.isnan(line.get_ydata()), ~np.isfinite(own))
    signs = {(line.get_xdata()[0], round(line.get_ydata()[0], 2)) for line in ax.lines if line.get_marker() == "^"}
    assert signs == {(10, 0.97), (10, 0.92), (15, 0.97)}
    assert fig.legends[0].get_texts()[-1].get_text() == "infinite"
    assert "infinite" not in [text.get_text() for text in ls.plots.along(series).legends[0].get_texts()]


def test_a_single_value_between_unknown_ones_has_a_point_however_many_there_are():
    values = along(spectrum(), n=30).lambda_max.copy()
    values[[9, 11], 0] = np.nan
    for line in curves(ls.plots.along(replace(along(spectrum(), n=30), lambda_max=values), ["class 0"]).axes[0]):
        assert line.get_markevery() == [10]


def test_axes_are_named_where_they_have_numbers():
    measured = {"critical_sharpness": np.full(3, 2.0), "alignment": np.full(3, 0.5)}
    fig = ls.plots.along(along(spectrum(), **measured))
    panels = fig.axes[:4]
    numbered = [any(label.get_visible() for label in ax.get_xticklabels()) for ax in panels]
    assert [bool(ax.get_xlabel()) for ax in panels] == numbered
    assert any(numbered)
    assert not all(numbered)


def test_groups_that_overlap_are_thick_and_many_parts_have_a_bar():
    series = along(spectrum(15))
    fig = ls.plots.along(replace(series, provenance={"options": {"with_parts": ["class 3"]}}))
    widths = sorted(line.get_linewidth() for line in curves(fig.axes[0]))
    assert widths[-1] > 1.5 * widths[-2]
    assert any("rank of the part" in ax.get_ylabel() for ax in fig.axes)
    assert [text.get_text().split(" (")[0] for text in fig.legends[0].get_texts()] == ["class 3"]


def test_one_checkpoint_or_none_of_the_parts_is_refused():
    with pytest.raises(InputError, match="shows no course of training"):
        ls.plots.along(along(spectrum(), n=1))
    with refused(InputError, "x"):
        ls.plots.along(along(spectrum()), ["x"])
    with pytest.raises(InputError, match="no part to draw"):
        ls.plots.along(along(spectrum()), [])
