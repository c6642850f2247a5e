"""Several parts on one axes, and surfaces of several files beside each other."""

import dataclasses

import numpy as np
import pytest
from drawn import above, below, fills, inside
from matplotlib.contour import ContourSet
from planes import many
from refusals import refused
from surfaces import grid, paraboloid, squared_distance, surface, three_classes, three_lines

from landscape import plots
from landscape.errors import InputError
from landscape.results.regroup import regroup, verdict_of

# On one another and side by side.


def test_an_overlay_has_lines_of_each_part_at_shared_levels_and_its_own_lowest_point():
    of = grid(np.linspace(-1, 1, 9), np.linspace(-2, 2, 9))
    x, y = np.meshgrid(of.xcoordinates, of.ycoordinates)
    loss = np.stack([0.3 + squared_distance(x, y), 0.5 + squared_distance(x - 0.5, y + 1)])
    found = surface(of, loss)
    fig = plots.surface_overlay(found)
    ax = fig.axes[0]
    first, second = [c for c in ax.collections if isinstance(c, ContourSet)]
    np.testing.assert_array_equal(first.levels, second.levels)
    assert first.get_edgecolor().tolist() != second.get_edgecolor().tolist()
    assert [line.get_data() for line in ax.lines if line.get_marker() == "v"] == [([0], [0]), ([0.5], [-1])]
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["class 0 (500)", "class 1 (50)"]
    with refused(InputError, "overlay"):
        plots.surface_overlay(found, ["class 0"])


def test_an_overlay_of_many_parts_is_of_the_most_frequent_and_the_rarest():
    fig = plots.surface_overlay(many(7))
    names = [text.get_text() for text in fig.axes[0].get_legend().get_texts()]
    assert names == ["class 0 (500)", "class 6 (5)"]
    assert "of 7 parts the most frequent and the rarest" in above(fig)


def test_compared_surfaces_share_levels_and_each_has_its_verdict():
    flat, steep = many(3), dataclasses.replace(many(3), loss=many(3).loss * 4)
    steep = dataclasses.replace(steep, verdict=f"{regroup(steep, 'class').verdict}; another")
    fig = plots.compare_surfaces({"ce": flat, "sam $": steep}, ["class 1"])
    left, right, _ = fig.axes
    np.testing.assert_array_equal(fills(left).levels, fills(right).levels)
    assert fills(left).levels[-1] >= steep.loss[1].max()
    assert [left.get_title(), right.get_title()] == ["ce", "sam $"]
    lengths = "one unit is 2 long in x, 0.5 in y, the angle between them is 53°"
    assert f"ce: {lengths}. Verdict: {verdict_of(flat, [1])}" in below(fig)
    assert f"sam $: {lengths}. Verdict: {verdict_of(steep, [1])}" in below(fig)
    assert below(fig).endswith("; another")
    assert inside(fig)


def test_compared_planes_have_their_errors_in_place_of_the_losses_on_one_scale():
    flat, steep = (
        dataclasses.replace(many(3), loss_stderr=scale * many(3).loss, centre_loss_stderr=scale * many(3).centre_loss)
        for scale in (0.1, 0.02)
    )
    left, right, bar = plots.compare_surfaces({"ce": flat, "sam": steep}, ["class 1"], errors=True).axes
    np.testing.assert_array_equal(fills(left).levels, fills(right).levels)
    low, *_, high = fills(left).levels
    assert low <= steep.loss_stderr[1].min() < flat.loss_stderr[1].max() <= high < flat.loss[1].max()
    assert bar.get_ylabel() != plots.compare_surfaces({"ce": flat, "sam": steep}, ["class 1"]).axes[-1].get_ylabel()
    assert not any(line.get_marker() == "v" for ax in (left, right) for line in ax.lines)
    rows = plots.compare_surfaces({"ce": flat, "sam": steep}, ["class 0", "class 1"], errors=True)
    assert len([ax for ax in rows.axes if ax.get_title()]) == 4
    whole = plots.compare_surfaces({"ce": flat, "sam": steep}, errors=True).axes[0]
    assert fills(whole).levels[0] <= regroup(flat, "all").loss_stderr.max() <= fills(whole).levels[-1]
    with refused(InputError, "errors"):
        plots.compare_surfaces({"ce": flat, "sam": many(3)}, ["class 1"], errors=True)


def test_compared_surfaces_without_a_part_are_means_over_all_samples():
    found = three_classes()
    fig = plots.compare_surfaces({"a": found, "b": three_classes(nx=5)}, log=False)
    whole = np.tensordot(found.n_samples / found.n_samples.sum(), found.loss, 1)
    assert fills(fig.axes[0]).levels[-1] >= whole.max() > fills(fig.axes[0]).levels[-2]


def test_compared_surfaces_to_scale_have_the_same_axes():
    wide = surface(grid([-3.0, 0, 3], [-1.0, 0, 1]), paraboloid(grid([-3.0, 0, 3], [-1.0, 0, 1])))
    narrow = surface(grid([-1.0, 0, 1], [-1.0, 0, 1]), paraboloid(grid([-1.0, 0, 1], [-1.0, 0, 1])))
    fig = plots.compare_surfaces({"wide": wide, "narrow": narrow}, ["class 0"], euclidean=True)
    assert fig.axes[0].get_xlim() == fig.axes[1].get_xlim() == pytest.approx((-6.3, 6.3))
    assert fig.axes[0].get_ylim() == fig.axes[1].get_ylim()


def test_of_several_parts_each_surface_has_a_row_and_all_share_levels():
    flat, steep = many(3), dataclasses.replace(many(3), loss=many(3).loss * 4)
    fig = plots.compare_surfaces({"ce": flat, "sam": steep}, ["class 2", "class 0"])
    *panels, _ = fig.axes
    counts = {p: f"{p} ({int(flat.train_counts[flat.parts.index(p)]):,})" for p in flat.parts}
    assert [ax.get_title() for ax in panels] == [
        f"{name}\n{counts[part]}" for name in ("ce", "sam") for part in ("class 2", "class 0")
    ]
    x, y = np.array([ax.get_position().min for ax in panels]).round(6).reshape(2, 2, 2).transpose(2, 0, 1)
    assert (np.ptp(x, axis=0) == 0).all()
    assert (np.ptp(y, axis=1) == 0).all()
    assert x[0, 0] < x[0, 1]
    assert y[0, 0] > y[1, 0]
    for ax in panels[1:]:
        np.testing.assert_array_equal(fills(ax).levels, fills(panels[0]).levels)
    assert [bool(ax.get_xlabel()) for ax in panels] == [False, False, True, True]
    assert below(fig).count("Verdict") == 2
    assert inside(fig)


def test_what_cannot_be_compared_is_refused():
    with refused(InputError, "surface"):
        plots.compare_surfaces({})
    with refused(InputError, "cat", 0):
        plots.compare_surfaces({"ce": three_classes()}, ["cat"])
    with pytest.raises(InputError, match="lines and planes cannot be compared"):
        plots.compare_surfaces({"a": three_classes(), "b": three_lines()}, ["class 0"])
    with pytest.raises(InputError, match="lines are compared one part at a time, these are 2: name one"):
        plots.compare_surfaces({"a": three_lines()}, ["class 0", "class 1"])
    with refused(InputError, "line"):
        plots.surface(three_lines())
    with refused(InputError, "plane"):
        plots.surface_lines(three_classes())
