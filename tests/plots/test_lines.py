"""Lines: a curve for each part, barriers, ends with names."""

import dataclasses

import numpy as np
import pytest
from drawn import above, below, inside
from matplotlib.collections import PolyCollection
from matplotlib.colors import to_rgb
from refusals import refused
from surfaces import UNITS, grid, paraboloid, surface, three_lines

from landscape import plots
from landscape.errors import InputError
from landscape.plots.layout import theme
from landscape.results import columns, written
from landscape.results.regroup import regroup

# Lines.


def curves(ax):
    return {line.get_label(): line for line in ax.lines if line.get_linestyle() == "-" and len(line.get_xdata()) > 2}


def test_a_line_is_drawn_for_each_part_with_its_accuracy_below():
    found = three_lines()
    fig = plots.surface_lines(found)
    loss, accuracy = fig.axes
    for p, line in enumerate(curves(loss).values()):
        np.testing.assert_array_equal(line.get_data(), [found.xcoordinates, found.loss[p, 0]])
    np.testing.assert_array_equal([c.get_ydata() for c in curves(accuracy).values()], found.accuracy[:, 0])
    assert loss.get_yscale() == "linear"
    assert loss.get_xlim() == accuracy.get_xlim()
    assert accuracy.get_xlabel() == "random"
    assert next(t.get_text() for t in loss.get_legend().get_texts()) == "class 0 (500)\nno barrier"


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("euclidean", [False, True])
def test_the_arrow_of_a_barrier_is_as_long_as_the_barrier(log, euclidean):
    found = three_lines()
    fig = plots.surface_lines(found, log=log, euclidean=euclidean)
    ax = fig.axes[0]
    arrows = [text for text in ax.texts if getattr(text, "arrow_patch", None)]
    assert len(arrows) == 2  # class 0 has no barrier
    unit = UNITS[0] if euclidean else 1
    for arrow, p in zip(arrows, (1, 2), strict=True):
        (x, top), (x_below, bottom) = arrow.xy, arrow.xyann
        assert x == x_below
        assert top - bottom == pytest.approx(found.barrier[p])
        assert top == pytest.approx(np.interp(x / unit, found.xcoordinates, found.loss[p, 0]))
        assert x / unit == pytest.approx({1: 0.3, 2: 0.7}[p], abs=0.03)
    assert {written.number(b) for b in found.barrier[1:]} <= {text.get_text() for text in ax.texts}
    chords = [line for line in ax.lines if line.get_linestyle() == ":"]
    np.testing.assert_allclose([c.get_ydata()[[0, -1]] for c in chords], [[1, 1.5], [1, 1.5]], atol=1e-3)


def test_of_many_curves_only_the_highest_barrier_has_an_arrow():
    base = three_lines()
    found = surface(
        grid(base.xcoordinates),
        np.concatenate([base.loss, base.loss[1:2] * 1.1]),
        between=True,
        train_counts=np.arange(4),
    )
    ax = plots.surface_lines(found).axes[0]
    (arrow,) = [text for text in ax.texts if getattr(text, "arrow_patch", None)]
    assert arrow.xy[1] - arrow.xyann[1] == pytest.approx(found.barrier.max())


def test_what_has_no_colour_is_seen_on_dark_ground_too():
    with theme.styled(dark=True):
        ax = plots.surface_lines(three_lines()).axes[0]
    arrow = next(text.arrow_patch for text in ax.texts if getattr(text, "arrow_patch", None))
    assert np.mean(arrow.get_edgecolor()[:3]) > 0.8
    assert np.mean(ax.get_facecolor()[:3]) < 0.2
    checkpoint = next(line for line in ax.lines if line.get_linestyle() == "--")
    assert np.mean(to_rgb(checkpoint.get_color())) > 0.8


def test_ends_of_a_line_have_names_and_further_marks_are_counted():
    at = {"mark_position": np.array([[1.0]]), "marks": ("sam/last $x$.pt",)}
    fig = plots.surface_lines(three_lines(**at))
    named = {t.get_text(): t.get_position()[0] for t in fig.axes[0].texts}
    assert named["checkpoint"] == 0
    assert named["sam/last $x$.pt"] == 1
    verticals = [line.get_xdata()[0] for line in fig.axes[1].lines if line.get_linestyle() == "--"]
    assert verticals == [0, 1]
    crowd = plots.surface_lines(three_lines(marks=tuple(f"m{i}" for i in range(9))))
    assert not [t for t in crowd.axes[0].texts if t.get_text().startswith("m")]
    assert "9 marks without names" in below(crowd)


def test_a_line_leaves_out_what_was_not_computed_and_breaks_where_it_is_not_finite():
    computed = np.ones((1, 9), dtype=bool)
    computed[0, 4] = False
    of = grid(np.linspace(1, -1, 9), computed=computed)  # somebody else's file may descend
    loss = paraboloid(of)
    loss[0, 0, 6] = np.nan
    found = surface(of, loss, centre_loss=np.array([0.3]))
    fig = plots.surface_lines(found)
    (line,) = curves(fig.axes[0]).values()
    assert (np.diff(line.get_xdata()) > 0).all()
    assert len(line.get_xdata()) == 8
    assert np.isnan(line.get_ydata()).sum() == 1
    crosses = [line for line in fig.axes[0].lines if line.get_marker() == "x"]
    assert [x for line in crosses for x in line.get_xdata()] == [-0.5]
    assert "\N{MULTIPLICATION SIGN} not finite" in below(fig)
    assert "8 of 9 points computed" in below(fig)


def test_a_line_of_decades_is_logarithmic_and_clipping_is_stated():
    found = surface(grid(np.linspace(-1, 1, 21)), np.geomspace(0.01, 90, 21)[None, None])
    assert plots.surface_lines(found).axes[0].get_yscale() == "log"
    fig = plots.surface_lines(found, vmin=0.1, vmax=10)
    assert fig.axes[0].get_ylim() == (0.1, 10)
    assert "clipped: loss above 10 (up to 90)" in below(fig)
    assert plots.surface_lines(found, log=False).axes[0].get_yscale() == "linear"


def test_a_line_of_one_point_and_one_without_accuracies_are_drawn():
    one = surface(grid([0.0]), np.array([[[0.4]]]))
    assert len(plots.surface_lines(one).axes) == 2
    foreign = dataclasses.replace(one, accuracy=np.full((1, 1, 1), np.nan), unit_length=np.array([np.nan]))
    fig = plots.surface_lines(foreign)
    assert len(fig.axes) == 1
    assert "lengths of the directions are unknown" in below(fig)
    with refused(InputError, "euclidean"):
        plots.surface_lines(foreign, euclidean=True)


def lines_of_classes(n):
    of = grid(np.linspace(-1, 1, 5))
    loss = np.concatenate([paraboloid(of, 0.1 + 0.01 * p) for p in range(n)])
    counts = np.linspace(500, 5, n).astype(int)
    return surface(of, loss, parts=tuple(f"class {p}" for p in range(n)), n_samples=counts, train_counts=counts)


def test_many_lines_become_groups_and_as_classes_get_a_bar_with_their_training_samples():
    fig = plots.surface_lines(lines_of_classes(100))
    many_samples = sum(n for n in lines_of_classes(100).train_counts if n > 100)
    names = [t.get_text() for t in fig.axes[0].get_legend().get_texts()]
    assert names[0] == f"many ({many_samples:,})"
    assert len(names) == 3
    assert "100 parts joined" in above(fig)
    fig = plots.surface_lines(regroup(lines_of_classes(100), "class"))
    assert len(curves(fig.axes[0])) == 100
    labels = [t.get_text() for t in fig.axes[-1].get_yticklabels()]
    assert (labels[0], labels[-1]) == ("class 0 (500)", "class 99 (5)")
    assert inside(fig)
    shades = [line.get_color() for line in curves(fig.axes[0]).values()]
    brightness = [np.dot(to_rgb(shade), (0.2, 0.7, 0.1)) for shade in shades]
    assert (np.diff(brightness) > 0).all()  # from dark, the most frequent, to light, in grey too


def test_the_legend_has_the_errors_of_barriers():
    found = three_lines()
    known = dataclasses.replace(found, barrier_stderr=np.full(3, 0.1))
    entries = [t.get_text() for t in plots.surface_lines(known).axes[0].get_legend().get_texts()]
    assert entries[0].endswith(f"barrier {written.with_error(0.0, 0.1)}")
    assert entries[2].endswith(f"barrier {written.with_error(found.barrier[2], 0.1)}")
    heads, rows = columns.table(known)
    assert rows[2][heads.index("barrier ± samples at most")] == written.with_error(found.barrier[2], 0.1)


def test_compared_lines_are_on_one_axes():
    found, other = three_lines(), three_lines(axes=("another",))
    fig = plots.compare_surfaces({"ce": found, "sam": other}, ["class 2"])
    for names in (["class 2"], None):
        ours, theirs = (
            dataclasses.replace(s, provenance={"partition": {f"class {c}": [c + off] for c in range(3)}})
            for s, off in ((found, 0), (other, 1))
        )
        titles = [above(plots.compare_surfaces({"ce": ours, "sam": s}, names)) for s in (ours, theirs)]
        one = names[0] if names else "all samples"
        assert [one in t for t in titles] == [True, True]
        assert ["of each file" in t for t in titles] == [False, True]
    assert list(curves(fig.axes[0])) == [f"ce\nbarrier {written.number(found.barrier[2])}",
                                         f"sam\nbarrier {written.number(found.barrier[2])}"]  # fmt: skip
    assert fig.axes[1].get_xlabel() == "coordinate"
    assert below(fig).count("Verdict") == 2


def bands(ax):
    return [c.get_paths()[0].vertices for c in ax.collections if isinstance(c, PolyCollection) and c.get_paths()]


@pytest.mark.parametrize("log", [False, True])
def test_bands_are_within_the_axis_unless_its_ends_were_given(log):
    base = three_lines()
    found = dataclasses.replace(base, loss_stderr=0.6 * base.loss)
    for draw in (
        plots.surface_lines,
        lambda s, **given: plots.compare_surfaces({"a": s, "b": s}, ["class 2"], **given),
    ):
        fig = draw(found, errors=True, log=log)
        drawn = np.concatenate([band[:, 1] for band in bands(fig.axes[0])])
        low, high = fig.axes[0].get_ylim()
        assert low <= drawn.min() < drawn.max() <= high
        assert "clipped" not in below(fig)
        for cut in ({"vmax": 3.0}, {"vmin": 0.5}):
            assert "clipped: bands" in below(draw(found, errors=True, log=log, **cut))
    below_zero = dataclasses.replace(base, loss_stderr=2 * base.loss)
    assert ("clipped: bands" in below(plots.surface_lines(below_zero, errors=True, log=log))) == log


def test_a_group_of_weighted_parts_has_a_band_of_its_loss_alone():
    """The accuracy's error would count all samples of the group alike."""
    found = three_lines()
    found = dataclasses.replace(found, loss_stderr=np.full_like(found.loss, 0.1), n_samples=np.array([5000, 500, 50]))
    for weights, n in (("natural", 1), ("balanced", 0), ({name: 1.0 for name in found.parts}, 0)):
        loss, accuracy = plots.surface_lines(regroup(found, "all", weights), errors=True).axes
        assert len(bands(loss)) == 1
        assert len(bands(accuracy)) == n, weights


def test_the_other_end_of_compared_lines_is_named_where_all_of_them_end_there():
    found = three_lines()
    longer = dataclasses.replace(found, unit_length=2 * found.unit_length)
    for other, euclidean, named in ((found, True, True), (longer, True, False), (longer, False, True)):
        fig = plots.compare_surfaces({"a": found, "b": other}, ["class 2"], euclidean=euclidean)
        assert ("the other end" in {t.get_text() for t in fig.axes[0].texts}) == named
