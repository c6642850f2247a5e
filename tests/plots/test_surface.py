"""Figures of surfaces, looked at through the artists they hold and the pixels they become."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from drawn import above, below, fills, inside
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PolyCollection, QuadMesh
from matplotlib.colors import to_rgb
from matplotlib.contour import ContourSet
from mpl_toolkits.mplot3d.art3d import Poly3DCollection
from surfaces import COSINE, UNITS, grid, paraboloid, squared_distance, surface, three_classes, three_lines

from landscape import cli, plots
from landscape.errors import InputError
from landscape.plots.layout import scales, theme
from landscape.plots.layout.fitting import labelled, touch
from landscape.plots.layout.parts import joined
from landscape.plots.layout.planes import filled
from landscape.plots.layout.scales import scale
from landscape.results import store, written
from landscape.results.regroup import regroup, verdict_of


def lines_of(ax):
    """The contour lines of an axes: level -> its vertices."""
    (found,) = [c for c in ax.collections if isinstance(c, ContourSet) and not c.filled]
    return {level: path.vertices for level, path in zip(found.levels, found.get_paths(), strict=True)}


def pixel(ax, x, y):
    """The colour that a figure has at a point of an axes, 0 to 255."""
    canvas = FigureCanvasAgg(ax.figure)
    canvas.draw()
    column, row = ax.transData.transform((x, y))
    image = np.asarray(canvas.buffer_rgba())[::-1]
    return image[int(row), int(column), :3].astype(int)


def is_grey(colour):
    return np.ptp(colour) <= 8


def many(n, nx=5, ny=5, counts=None, **about):
    """A paraboloid for each of n classes, steeper towards the rarest."""
    of = grid(np.linspace(-1, 1, nx), np.linspace(-1, 1, ny))
    loss = np.concatenate([paraboloid(of, 0.1 + 0.01 * p, 1 + p / n) for p in range(n)])
    counts = np.linspace(500, 5, n).astype(int) if counts is None else np.asarray(counts)
    return surface(
        of, loss, parts=tuple(f"class {p}" for p in range(n)), n_samples=counts, train_counts=counts, **about
    )


def with_hole(hole=(slice(2, 5), slice(5, 8)), nx=11, ny=11, computed=None):
    """A paraboloid whose loss is nan in some rows and columns."""
    of = grid(np.linspace(-1, 1, nx), np.linspace(-1, 1, ny), computed=computed)
    loss = paraboloid(of)
    loss[0][hole] = np.nan
    return surface(of, loss, centre_loss=np.array([0.3]))


# Contours.


def test_panels_share_levels_that_hold_every_loss_and_one_colour_bar_names_them():
    found = three_classes()
    fig = plots.surface(found)
    *panels, bar = fig.axes
    assert len(panels) == 3
    levels = fills(panels[0]).levels
    for ax in panels:
        np.testing.assert_array_equal(fills(ax).levels, levels)
        assert list(lines_of(ax)) == levels.tolist()
    assert levels[0] <= found.loss.min()
    assert levels[-1] >= found.loss.max()
    assert bar.get_ylabel() == "mean loss (logarithmic)"
    assert bar.get_ylim() == (levels[0], levels[-1])
    assert next(text.get_text() for text in bar.get_yticklabels()) == scales.label(levels[0])
    assert [ax.get_title() for ax in panels] == ["class 0\nn = 9 (500 in training)", "class 1\nn = 5 (50 in training)",
                                                 "class 2\nn = 1 (5 in training)"]  # fmt: skip


@pytest.mark.parametrize("euclidean", [False, True])
def test_contours_of_a_paraboloid_are_where_they_must_be(euclidean):
    """A line crosses an edge of the grid where linear interpolation puts it, above the convex loss by f'' h^2 / 8."""
    nx, ny = 21, 17
    of = grid(np.linspace(-1, 1, nx), np.linspace(-2, 2, ny))
    ax = plots.contours(surface(of, paraboloid(of)), log=False, euclidean=euclidean)
    bound = max(2 * (UNITS[0] * 2 / (nx - 1)) ** 2, 2 * (UNITS[1] * 4 / (ny - 1)) ** 2) / 8
    checked = 0
    for level, (x, y) in ((level, vertices.T) for level, vertices in lines_of(ax).items()):
        if euclidean:
            assert (0.3 + x**2 + y**2 <= level + 1e-9).all()
            y = y / (UNITS[1] * np.sqrt(1 - COSINE**2))
            x = (x - y * UNITS[1] * COSINE) / UNITS[0]
        true = 0.3 + squared_distance(x, y)
        assert (true <= level + 1e-9).all()
        on_edges = np.isclose(np.round((x + 1) * 10), (x + 1) * 10) | np.isclose(np.round((y + 2) * 4), (y + 2) * 4)
        assert (true[on_edges] >= level - bound - 1e-9).all()  # lines end beside their numbers, off the edges
        checked += on_edges.sum()
    assert checked > 100


def test_euclidean_panels_are_to_scale_and_others_say_how_long_a_unit_is():
    found = three_classes()
    fig = plots.surface(found, ["class 0"], euclidean=True)
    ax = fig.axes[0]
    assert ax.get_aspect() == 1
    assert ax.get_xlabel() == "along random"
    assert ax.get_ylabel() == "at right angles to it"
    widest = UNITS[0] * 1 + UNITS[1] * 2 * COSINE  # of the corner (1, 2)
    assert ax.get_xlim() == pytest.approx((-widest, widest))
    assert ax.get_ylim() == pytest.approx((-0.8, 0.8))  # 2 |d2| sin of the angle
    assert "lengths are to scale" in below(fig)
    assert "one unit is 2 long in x, 0.5 in y, the angle between them is 53°" in below(plots.surface(found))
    unknown = dataclasses.replace(found, unit_length=np.full(2, np.nan), cosine=np.nan)
    assert "lengths of the directions are unknown" in below(plots.surface(unknown))
    with pytest.raises(InputError, match="leave euclidean out"):
        plots.surface(unknown, euclidean=True)
    for flat in ({"cosine": -1.0}, {"unit_length": np.array([1.0, 0])}):
        with pytest.raises(InputError, match="parallel or one has no length: leave euclidean out"):
            plots.surface(dataclasses.replace(found, **flat), euclidean=True)


def test_a_hole_is_hatched_and_not_filled():
    found = with_hole()
    fig = plots.surface(found)
    ax = fig.axes[0]
    assert is_grey(pixel(ax, 0.2, -0.4))
    assert not is_grey(pixel(ax, -0.6, 0.4))
    (hatched,) = [c for c in ax.collections if isinstance(c, PolyCollection)]
    assert hatched.get_hatch()
    assert len(hatched.get_paths()) == 16  # 3 x 3 points touch 4 x 4 cells
    assert "hatched: not finite" in below(fig)
    whole = plots.surface(surface(grid([-1.0, 0, 1], [-1.0, 0, 1]), paraboloid(grid([-1.0, 0, 1], [-1.0, 0, 1]))))
    assert "hatched" not in below(whole)


def test_an_infinite_loss_is_a_hole_too():
    of = grid(np.linspace(-1, 1, 5), np.linspace(-1, 1, 5))
    loss = paraboloid(of)
    loss[0, 4, 4] = np.inf
    fig = plots.surface(surface(of, loss))
    assert is_grey(pixel(fig.axes[0], 0.9, 0.9))
    assert "hatched: not finite" in below(fig)


def test_a_loss_near_the_largest_number_has_levels():
    of = grid(np.linspace(-1, 1, 5), np.linspace(-1, 1, 5))
    loss = paraboloid(of)
    loss[0, 4, 4] = 1e307
    plots.surface(surface(of, loss)).draw_without_rendering()


def test_points_that_were_not_computed_are_interpolated_and_the_others_are_dots():
    """Interpolation is exact for planes: of the logarithm of a loss, an accuracy, a loss that may be negative."""
    computed = np.zeros((9, 9), dtype=bool)
    computed[::4, ::4] = computed[4:, 4:] = True
    of = grid(np.linspace(-1, 1, 9), np.linspace(0, 4, 9), computed=computed)
    x, y = np.meshgrid(of.xcoordinates, of.ycoordinates)
    plane = (2 + 0.5 * x + 0.25 * y)[None]
    found = surface(of, np.exp(plane), centre_loss=np.exp([2.0]), accuracy=plane / 4)
    assert np.isnan(found.loss[0][~computed]).all()
    np.testing.assert_allclose(filled(found), np.exp(plane), rtol=1e-5)  # slopes are found by iteration
    np.testing.assert_allclose(filled(found, "accuracy")[:, ~computed], plane[:, ~computed] / 4, rtol=1e-12)
    negative = surface(of, plane - 3, centre_loss=np.array([-1.0]))
    np.testing.assert_allclose(filled(negative), plane - 3, rtol=1e-12)
    fig = plots.surface(found)
    dots = next(line for line in fig.axes[0].lines if line.get_label() == "computed")
    drawn = set(zip(*dots.get_data(), strict=True))
    assert drawn == set(zip(x[computed], y[computed], strict=True))
    assert f"{computed.sum()} of 81 points computed, the others interpolated" in below(fig)
    assert not any(line.get_label() == "computed" for line in plots.surface(three_classes()).axes[0].lines)


def test_a_hole_of_an_adaptive_grid_is_not_bridged():
    computed = np.zeros((9, 9), dtype=bool)
    computed[::2, ::2] = True
    of = grid(np.linspace(-1, 1, 9), np.linspace(-1, 1, 9), computed=computed)
    for lowered in (0.0, 10.0):  # cubic, and linear where a loss is negative
        loss = paraboloid(of) - lowered
        loss[0, 6, 6] = np.nan
        heights = filled(surface(of, loss))[0]
        around = np.isnan(heights[5:8, 5:8])
        assert around.sum() >= 5  # itself and all beside it; of the corners those whose edge is to it
        assert around[[0, 1, 1, 2], [1, 0, 2, 1]].all()
        elsewhere = np.ones((9, 9), dtype=bool)
        elsewhere[5:8, 5:8] = False
        assert np.isfinite(heights[elsewhere]).all()
    # on an edge between two known points the third corner of its triangle has no weight
    assert heights[6, 3] == pytest.approx((heights[6, 2] + heights[6, 4]) / 2)


@pytest.mark.parametrize("hole", [False, True])
def test_what_was_not_computed_beyond_all_points_is_neither_filled_nor_a_hole(hole):
    computed = np.zeros((7, 7), dtype=bool)
    computed[1:4, 1:4] = True
    of = grid(np.linspace(-1, 1, 7), np.linspace(-1, 1, 7), computed=computed)
    loss = paraboloid(of)
    loss[0, 1, 1] = np.nan if hole else loss[0, 1, 1]
    fig = plots.surface(surface(of, loss))
    ax = fig.axes[0]
    hatched = [c for c in ax.collections if isinstance(c, PolyCollection)]
    assert [len(c.get_paths()) for c in hatched] == [4] * hole  # the cells around it
    np.testing.assert_allclose(pixel(ax, 0.8, 0.8), [234, 234, 242])  # the ground of the axes
    assert ("hatched" in below(fig)) == hole


def test_the_checkpoint_lowest_points_and_other_checkpoints_are_marked_by_name():
    found = three_classes(marks=("a $x$ $ b", "last.pt"))
    ax = plots.surface(found, ["class 2"]).axes[0]
    signs = {line.get_marker(): np.ravel(line.get_data()).tolist() for line in ax.lines}
    assert signs["+"] == [0, 0]
    assert signs["v"] == found.lowest_position[2].tolist()
    named = {text.get_text(): text for text in ax.texts if text.get_text() in found.marks}
    assert [tuple(text.xy) for text in named.values()] == [tuple(p) for p in found.mark_position]
    assert not named["a $x$ $ b"].get_parse_math()


def test_marks_beyond_the_grid_are_counted_and_too_many_are_not_named():
    found = three_classes(marks=tuple("abc"))
    far = dataclasses.replace(found, mark_position=np.array([[0.1, 0.1], [5, 0], [0, -9.0]]))
    fig = plots.surface(far, ["class 0"])
    assert "2 of 3 marks lie outside" in below(fig)
    assert fig.axes[0].get_xlim() == (-1, 1)
    assert [text.get_text() for text in fig.axes[0].texts if text.get_text() in "abc"] == ["a"]
    crowd = three_classes(marks=tuple(f"m{i}" for i in range(13)))
    fig = plots.surface(crowd, ["class 0"])
    assert not [text for text in fig.axes[0].texts if text.get_text().startswith("m")]
    assert "13 other checkpoints" in below(fig)


def test_the_verdict_stands_below_and_network_data_and_weights_above():
    found = three_classes()
    about = {"model": "resnet32", "method": "sam", "data": {"name": "cifar10"}, "split": "test"}
    found = dataclasses.replace(found, provenance={**found.provenance, **about})
    fig = plots.surface(found)
    assert f"Verdict: {found.verdict}" in below(fig)
    assert above(fig) == "sam resnet32 on cifar10, test samples"
    assert above(plots.surface(regroup(found, "all", "balanced"))).endswith("test samples balanced weights")
    own = dict(zip(found.parts, (1.0, 2.0, 3.0), strict=True))
    assert above(plots.surface(regroup(found, "all", own))).endswith("test samples given weights")


def test_the_verdict_names_no_part_that_is_not_drawn():
    """Of three paraboloids one lies lowest beside the centre; a figure of the others says nothing of it."""
    found = three_classes()
    loss = found.loss.copy()
    loss[1, 0, 0] = 0.001
    moved = regroup(dataclasses.replace(found, loss=loss), "class")
    assert "class 1" in moved.verdict
    for draw in (plots.surface, plots.surface_heat, plots.surface_3d, plots.surface_overlay):
        assert "class 1" not in below(draw(moved, ["class 0", "class 2"])), draw
        assert "class 1" in below(draw(moved, ["class 0", "class 1"])), draw
    assert "class 1" not in below(plots.contours(moved, "class 0").figure)
    both = {"a": moved, "b": moved}
    assert "class 1" not in below(plots.compare_surfaces(both, ["class 2"]))
    remarked = dataclasses.replace(moved, verdict=f"{moved.verdict}; read from elsewhere")
    assert below(plots.surface(remarked, ["class 0"])).endswith("read from elsewhere")
    assert verdict_of(moved, [2, 0, 1]) == moved.verdict


def test_samples_and_training_samples_cannot_be_read_as_one_number():
    found = dataclasses.replace(three_classes(), n_samples=np.array([9, 9, 9]), train_counts=np.array([645, 9, 12345]))
    titles = [ax.get_title() for ax in plots.surface(found).axes[:3]]
    assert any(t.endswith(("n = 9 (645 in training)", "n = 9 (train 645)")) for t in titles)
    assert not any("9, " in t for t in titles)


def test_long_names_and_dollar_signs_break_nothing():
    names = ("$" * 60, "a very long name of a class that goes on to sixty characters!", "\\frac{1}$x$ _^")
    found = three_classes(parts=names, marks=("$\\", "x_$^"))
    for figure in (plots.surface, plots.surface_heat, plots.surface_accuracy, plots.surface_overlay, plots.surface_3d):
        fig = figure(found)
        assert inside(fig), figure
    lines = plots.surface_lines(three_lines(parts=names))
    assert inside(lines)


def test_contours_draws_on_the_axes_it_is_given_and_one_part_needs_no_name():
    found = three_classes()
    ax = theme.figure(3, 3).subplots()
    assert plots.contours(found, "class 1", ax=ax, levels=[0.5, 1, 2, 4], bar=False) is ax
    assert fills(ax).levels.tolist() == [0.5, 1, 2, 4]
    assert len(ax.figure.axes) == 1
    plots.contours(found, "class 1", ax=ax)
    assert len(ax.figure.axes) == 2  # with a colour bar
    assert plots.contours(regroup(found, "all")).get_title().startswith("all")
    with pytest.raises(InputError, match=r"there are 3 parts: name one of class 0, .* or draw all by surface\(\)"):
        plots.contours(found)
    with pytest.raises(InputError, match="no part 'cat'; there are class 0"):
        plots.contours(found, "cat")
    with pytest.raises(InputError, match="what must be loss or accuracy, got 'error'"):
        plots.contours(found, "class 0", what="error")


def test_names_of_marks_that_lie_together_do_not_cover_each_other():
    places = np.array([[0.1, 0.1], [0.12, 0.11], [0.9, 0.98], [0.88, 0.97], [-0.98, -0.9], [-0.97, -0.88]])
    names = tuple(f"checkpoint {k}" for k in range(len(places)))
    of = grid(np.linspace(-1, 1, 5), np.linspace(-1, 1, 5))
    found = dataclasses.replace(surface(of, paraboloid(of), marks=names), mark_position=places)
    for n in (1, 4):
        fig = plots.surface(dataclasses.replace(many(n), **{f: getattr(found, f) for f in ("marks", "mark_position")},
                            mark_distance=found.mark_distance, mark_loss=np.ones((6, n)),
                            mark_accuracy=np.ones((6, n))))  # fmt: skip
        FigureCanvasAgg(fig).draw()
        ax = fig.axes[0]
        texts = [text for text in ax.texts if text.get_text() in names]
        assert len(texts) == 6
        boxes = [text.get_window_extent() for text in texts]
        assert not touch(boxes)
        assert all(ax.bbox.x0 <= box.x0 and box.x1 <= ax.bbox.x1 for box in boxes)


def test_contours_call_marks_as_the_reader_is_told_to():
    ax = plots.contours(three_classes(marks=("a", "b")), "class 0", names={"a": "θ(t₀)"})
    texts = {text.get_text() for text in ax.texts}
    assert {"θ(t₀)", "b"} <= texts
    assert "a" not in texts


# Many classes.


def test_many_classes_become_many_medium_and_few_and_the_title_says_so():
    fig = plots.surface(many(100))
    *panels, _ = fig.axes
    assert [ax.get_title().split("\n")[0] for ax in panels] == ["many", "medium", "few"]
    assert above(fig).endswith("100 parts joined: many (over 100 training samples each), medium, few (under 20)")
    assert inside(fig)


def test_classes_without_rare_ones_become_the_whole_and_both_ends():
    balanced = many(20, counts=np.full(20, 500))
    assert joined(balanced, None)[0].parts == ("all",)
    frequent = many(20, counts=np.arange(520, 500, -1))
    assert joined(frequent, None)[0].parts == ("all", "most frequent: class 0", "rarest: class 19")
    unknown = dataclasses.replace(many(20), train_counts=np.full(20, np.nan))
    assert joined(unknown, None)[0].parts == ("all",)
    coarse = many(20)
    pairs = {name: [2 * p, 2 * p + 1] for p, name in enumerate(coarse.parts)}
    coarse = dataclasses.replace(coarse, provenance={"partition": pairs})
    assert joined(coarse, None)[0].parts == ("all", "most frequent: class 0", "rarest: class 19")


def test_an_empty_class_is_no_end():
    counts = np.array([0, *range(520, 501, -1)])
    found = many(20, counts=np.arange(520, 500, -1))
    found = dataclasses.replace(found, n_samples=counts, loss=np.where(counts[:, None, None] == 0, np.nan, found.loss))
    assert joined(found, None)[0].parts == ("all", "most frequent: class 1", "rarest: class 19")


def test_twelve_parts_and_parts_that_were_asked_for_are_drawn_one_by_one():
    assert len(plots.surface(many(12)).axes) == 13
    assert len(plots.surface(many(14), [f"class {p}" for p in range(14)]).axes) == 15
    grouped = plots.surface(regroup(many(14), "class"))
    assert len(grouped.axes) == 15
    assert inside(grouped)
    boxes = [ax.get_position() for ax in grouped.axes]
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


def test_parts_stand_from_the_most_frequent_to_the_rarest_unless_they_are_named():
    found = many(3, counts=[5, 500, 50])
    titles = [ax.get_title().split("\n")[0] for ax in plots.surface(found).axes[:3]]
    assert titles == ["class 1", "class 2", "class 0"]
    titles = [ax.get_title().split("\n")[0] for ax in plots.surface(found, ["class 0", "class 1"]).axes[:2]]
    assert titles == ["class 0", "class 1"]
    with pytest.raises(InputError, match="there is no part to draw"):
        plots.surface(found, [])


# Scales.


def test_levels_are_logarithmic_where_the_loss_spans_decades():
    spread = np.geomspace(0.02, 20, 50)
    found = scale(spread)
    assert found.log
    np.testing.assert_allclose(found.levels, [0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20])
    linear = scale(np.linspace(1, 6, 9))
    assert not linear.log
    np.testing.assert_allclose(linear.levels, np.arange(1, 6.1, 0.5))
    assert not scale(spread, log=False).log
    assert scale(np.array([0.1, 2.9])).log is False  # 29 times
    assert scale(np.array([0.1, 3.1])).log is True


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("values", [[2.0, 2.0], [1e-9, 1e-9], [1.0, 1.1], [3e-7, 8e4], [0.017, 13.3], [999.9, 1e3]])
@pytest.mark.parametrize("n", [2, 7, 10, 60])
def test_levels_ascend_and_hold_all_that_is_not_clipped(values, n, log):
    found = scale(np.array(values), levels=n, log=log)
    assert len(found.levels) >= 2
    assert (np.diff(found.levels) > 0).all()
    assert found.high >= values[1]
    if not log or values[0] > 1e-4 * min(1, values[1]):
        assert found.low <= values[0]
        assert found.notes == []
    assert len(found.levels) <= max(2.5 * n, 4)
    assert (found.levels > 0).all() or not log


@pytest.mark.parametrize(
    "values", [(np.nextafter(0.1, 0), np.nextafter(0.7, 1)), (0.1 * (1 - 1e-12), 10 * (1 + 1e-12))]
)
def test_a_loss_that_misses_the_last_level_by_rounding_is_not_called_clipped(values):
    found = scale(np.array(values))
    assert found.low <= values[0] < values[1] <= found.high
    assert found.extend == "neither"


@pytest.mark.parametrize(
    ("values", "low"),
    [([0, 1e-12, 0.3, 20], 1e-4), ([0, 1e-9, 1e-3], 1e-7), ([2e-5, 3e8], 1e-4), ([0.004, 3e8], 0.004)],
)
def test_a_logarithmic_scale_of_zeros_begins_where_losses_are_nothing_and_says_so(values, low):
    """Below 1e-4, and 1e-4 of the highest; a loss that explodes elsewhere hides none at the minimum."""
    found = scale(np.array(values))
    assert found.log
    assert 0.1 * low <= found.low <= low
    assert found.low > 0
    assert (found.extend, len(found.notes)) == (("min", 1) if found.low > values[0] else ("neither", 0))
    if found.notes:
        assert found.notes == [f"clipped: loss below {found.low:.4g} (down to {values[0]:.3g})"]


def test_clipping_is_stated_and_seen():
    found = three_classes()
    fig = plots.surface(found, vmin=0.5, vmax=2)
    fill = fills(fig.axes[0])
    assert (fill.levels[0], fill.levels[-1], fill.extend) == (0.5, 2, "both")
    assert f"clipped: loss above 2 (up to {found.loss.max():.3g})" in below(fig)
    assert f"clipped: loss below 0.5 (down to {found.loss.min():.3g})" in below(fig)
    assert not is_grey(pixel(fig.axes[2], 0.98, 1.9))  # what is clipped is filled all the same
    assert "clipped" not in below(plots.surface(found))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"levels": 1}, "levels must be 2 to 60, got 1"),
        ({"levels": 1000}, "levels must be 2 to 60, got 1000"),
        ({"levels": [1.0]}, "levels must be at least two finite numbers that ascend"),
        ({"levels": [1.0, 1.0]}, "levels must be at least two finite numbers that ascend"),
        ({"levels": [1.0, np.nan]}, "levels must be at least two finite numbers that ascend"),
        ({"vmin": np.nan}, "vmin must be a finite number, got nan"),
        ({"vmax": np.inf}, "vmax must be a finite number, got inf"),
        ({"vmin": 3.0, "vmax": 2.0}, "vmin=3.0 is not below vmax=2.0: the first is the lower end"),
        ({"vmax": 0.5, "log": False}, "vmax=0.5 leaves nothing: the loss is between 1 and 50"),
        ({"vmin": 0.0}, "vmin=0.0: a logarithmic scale begins above zero; give a positive one, or log=False"),
    ],
)
def test_options_that_leave_nothing_are_refused(options, message):
    with pytest.raises(InputError) as caught:
        scale(np.array([1.0, 50.0]), **options)
    assert str(caught.value) == message


def test_losses_that_no_scale_can_show_are_refused():
    with pytest.raises(InputError, match="there is no finite loss to draw"):
        scale(np.array([np.nan, np.inf]))
    with pytest.raises(InputError, match="log=True: the loss is -1 at its lowest"):
        scale(np.array([-1.0, 2]), log=True)
    assert not scale(np.array([-1.0, 200])).log


def test_a_flat_surface_and_a_part_without_samples_are_drawn():
    of = grid(np.linspace(-1, 1, 4), np.linspace(-1, 1, 4))
    flat = np.concatenate([np.full((1, 4, 4), 0.7), np.full((1, 4, 4), np.nan)])
    found = surface(of, flat, centre_loss=np.array([0.7, np.nan]), n_samples=np.array([3, 0]))
    fig = plots.surface(found)
    assert not is_grey(pixel(fig.axes[0], 0.1, 0.1))
    assert is_grey(pixel(fig.axes[1], 0.1, 0.1))
    with pytest.raises(InputError, match="there is no finite loss to draw"):
        plots.surface(found, ["class 1"])


# Cells, accuracy, heights.


def test_cells_are_the_losses_as_they_were_computed():
    computed = np.ones((5, 4), dtype=bool)
    computed[1, 2] = False
    of = grid(np.array([-1.0, -0.5, 0, 2]), np.linspace(-1, 1, 5), computed=computed)
    loss = paraboloid(of)
    loss[0, 3, 3] = np.nan
    found = surface(of, loss)
    fig = plots.surface_heat(found)
    ax = fig.axes[0]
    (cells,) = [c for c in ax.collections if isinstance(c, QuadMesh)]
    shown = cells.get_array().reshape(5, 4)
    np.testing.assert_array_equal(shown.mask, ~computed | np.isnan(found.loss[0]))
    np.testing.assert_array_equal(shown[~shown.mask], found.loss[0][~shown.mask])
    np.testing.assert_allclose(cells.get_coordinates()[0, :, 0], [-1.25, -0.75, -0.25, 1, 3])
    assert is_grey(pixel(ax, 2, 0.5))
    np.testing.assert_allclose(pixel(ax, 0, -0.5), [234, 234, 242])  # not computed: the ground of the axes
    assert "empty: not computed (19 of 20 were)" in below(fig)


def test_a_grid_of_one_point_is_a_cell_and_has_no_contours():
    found = surface(grid([0.0], [0.0]), np.array([[[0.4]]]))
    fig = plots.surface_heat(found)
    assert not is_grey(pixel(fig.axes[0], 0.1, 0.1))
    row = surface(grid([-1.0, 0, 1], [0.0]), np.array([[[0.4, 0.3, 0.4]]]))
    diagonal = grid([-1.0, 0, 1], [-1.0, 0, 1], computed=np.eye(3, dtype=bool))
    for narrow in (found, row, surface(diagonal, paraboloid(diagonal))):
        plots.surface_heat(narrow)
        for figure in (plots.surface, plots.surface_3d, plots.surface_accuracy):
            with pytest.raises(
                InputError, match=r"contours need points that span a plane, .* draw it by surface_heat\(\)"
            ):
                figure(narrow)


def test_accuracy_has_levels_of_its_own_that_are_never_logarithmic():
    found = three_classes()
    fig = plots.surface_accuracy(found)
    levels = fills(fig.axes[0]).levels
    np.testing.assert_allclose(np.diff(levels), 0.1)
    assert levels[0] <= found.accuracy.min()
    assert fig.axes[-1].get_ylabel() == "accuracy"
    assert "lowest loss" not in below(fig)
    foreign = dataclasses.replace(found, accuracy=np.full_like(found.accuracy, np.nan))
    with pytest.raises(InputError, match="there is no finite accuracy to draw"):
        plots.surface_accuracy(foreign)


def heights(ax):
    (relief,) = [c for c in ax.collections if isinstance(c, Poly3DCollection)]
    return relief._faces  # (cells, 4, 3): what matplotlib projects


def test_heights_are_the_losses_and_their_logarithms():
    found = three_classes()
    fig = plots.surface_3d(found, ["class 1"], log=False)
    assert heights(fig.axes[0])[..., 2].max() == pytest.approx(found.loss[1].max())
    assert heights(fig.axes[0])[..., 2].min() == pytest.approx(found.loss[1].min())
    fig = plots.surface_3d(found, ["class 1"], log=True)
    assert heights(fig.axes[0])[..., 2].max() == pytest.approx(np.log10(found.loss[1].max()))
    ticks = [text.get_text() for text in fig.axes[0].get_zticklabels()]
    places = fig.axes[0].get_zticks()
    assert [scales.label(10**z) for z in places] == ticks


def test_colours_of_heights_are_those_of_the_bar_and_no_light_falls_on_them():
    found = three_classes(7, 7)
    fig = plots.surface_3d(found, ["class 1"])
    loss, shared = found.loss[1], scale(found.loss[1])
    of_cells = (loss[:-1, :-1] + loss[:-1, 1:] + loss[1:, 1:] + loss[1:, :-1]) / 4
    (relief,) = [c for c in fig.axes[0].collections if isinstance(c, Poly3DCollection)]
    fig.draw_without_rendering()
    painted = {tuple(colour) for colour in relief.get_facecolor().round(6)}
    assert painted == {tuple(c) for c in colormaps["viridis"](shared.continuous(of_cells)).reshape(-1, 4).round(6)}


def test_numbers_of_two_axes_do_not_meet_in_the_corner():
    for n in (1, 3):
        fig = plots.surface_3d(many(n))
        FigureCanvasAgg(fig).draw()
        ax = fig.axes[0]
        boxes = [t.label1.get_window_extent() for axis in (ax.xaxis, ax.yaxis, ax.zaxis) for t in labelled(axis)]
        assert len(boxes) >= 6
        assert not touch(boxes)


def test_heights_end_at_zmax_which_is_stated():
    found = three_classes()
    fig = plots.surface_3d(found, log=False, zmax=3)
    assert max(heights(ax)[..., 2].max() for ax in fig.axes[:3]) == 3
    assert f"cut off: loss above 3 is the grey plateau (up to {found.loss.max():.3g})" in below(fig)
    assert "cut off" not in below(plots.surface_3d(found, zmax=1000))
    assert fig.axes[-1].get_ylim()[1] == 3  # colours end there, too
    with pytest.raises(InputError, match=r"zmax=0\.01 leaves nothing: the lowest loss is 0\.1"):
        plots.surface_3d(found, zmax=0.01)


def test_a_hole_has_no_heights():
    fig = plots.surface_3d(with_hole())
    assert len(heights(fig.axes[0])) == 100 - 16
    assert "holes: not finite" in below(fig)


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
    with pytest.raises(InputError, match="an overlay needs two parts or more"):
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
    with pytest.raises(InputError, match="there is no surface"):
        plots.compare_surfaces({})
    with pytest.raises(InputError, match="ce has no part 'cat'; it has class 0"):
        plots.compare_surfaces({"ce": three_classes()}, ["cat"])
    with pytest.raises(InputError, match="lines and planes cannot be compared"):
        plots.compare_surfaces({"a": three_classes(), "b": three_lines()}, ["class 0"])
    with pytest.raises(InputError, match="lines are compared one part at a time, these are 2: name one"):
        plots.compare_surfaces({"a": three_lines()}, ["class 0", "class 1"])
    with pytest.raises(InputError, match="this surface is a line"):
        plots.surface(three_lines())
    with pytest.raises(InputError, match="this surface is a plane"):
        plots.surface_lines(three_classes())


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
    with pytest.raises(InputError, match="leave euclidean out"):
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


def test_compared_lines_are_on_one_axes():
    found, other = three_lines(), three_lines(axes=("another",))
    fig = plots.compare_surfaces({"ce": found, "sam": other}, ["class 2"])
    assert list(curves(fig.axes[0])) == [f"ce\nbarrier {written.number(found.barrier[2])}",
                                         f"sam\nbarrier {written.number(found.barrier[2])}"]  # fmt: skip
    assert fig.axes[1].get_xlabel() == "coordinate"
    assert below(fig).count("Verdict") == 2


# The command.


@pytest.fixture
def plot(tmp_path, capsys):
    """Run `landscape plot` on a result; return its exit code, what it wrote, and the lines of stderr."""

    def run(result, *words):
        path = tmp_path / "result.h5"
        store.save(path, result, overwrite=True)
        code = cli.main(["plot", str(path), *map(str, words)])
        out, err = capsys.readouterr()
        return code, out.strip(), err.splitlines()

    return run


@pytest.mark.parametrize("kind", plots.KIND_FIGURES["surface"])
@pytest.mark.parametrize(
    "words",
    [(), ("--groups", "head-tail", "--weights", "balanced"), ("--groups", "head-tail", "--weights", "own.json")],
)
def test_plot_draws_each_kind_of_a_surface(plot, tmp_path, kind, words, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("own.json").write_text('{"class 0": 1, "class 1": 2, "class 2": 0.5}')
    code, out, err = plot(three_classes(), "--kind", kind, *words)
    assert (code, err) == (0, [])
    assert out == str(tmp_path / f"result.{kind}.png")
    assert (tmp_path / f"result.{kind}.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--levels", "4"], {"levels": 4}),
        (["--log"], {"log": True}),
        (["--linear"], {"log": False}),
        (["--vmin", "0.2", "--vmax", "3"], {"vmin": 0.2, "vmax": 3}),
        (["--euclidean"], {"euclidean": True}),
        (["--kind", "3d", "--zmax", "2"], {"zmax": 2}),
        ([], {}),
    ],
)
def test_plot_passes_on_what_is_given_and_nothing_else(plot, monkeypatch, words, expected):
    asked = []
    kinds = {k: lambda *a, k=k, **o: asked.append(o) or plots.surface(a[0]) for k in plots.KIND_FIGURES["surface"]}
    monkeypatch.setattr(plots, "KIND_FIGURES", {"surface": kinds})
    assert plot(three_classes(), *words)[0] == 0
    assert asked == [expected]


def test_plot_draws_a_line_as_a_line(plot, tmp_path):
    assert plot(three_lines(), "--log", "--vmax", "9")[:2] == (0, str(tmp_path / "result.line.png"))
    code, _, err = plot(three_lines(), "--kind", "contour")
    assert (code, err) == (2, ["landscape: error: --kind contour is not for a line: choose line"])


def test_plot_groups_by_a_file(plot, tmp_path, monkeypatch):
    groups = tmp_path / "groups.json"
    groups.write_text(json.dumps({"tail": [1, 2], "all": [0, 1, 2]}))
    asked = []
    monkeypatch.setattr(
        plots,
        "KIND_FIGURES",
        {"surface": {"contour": lambda *a: asked.append((a[0].parts, a[1])) or plots.surface(*a)}},
    )
    assert plot(three_classes(), "--groups", groups, "--parts", "tail,1")[0] == 0
    assert asked == [(("tail", "all"), ["tail", "all"])]


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--groups", "heads"], "groups 'heads' are unknown"),
        (["--groups", "none.json"], "none.json cannot be read: No such file"),
        (
            ["--weights", "heavy"],
            "weights 'heavy' are unknown: choose natural, balanced, training, drw or a .json file",
        ),
        (["--parts", "cat"], "--parts: no part 'cat'"),
        (["--groups", "all", "--parts", "class 0"], "--parts: no part 'class 0'; choose from all"),
        (["--levels", "1"], "--levels must be 2 to 60, got 1"),
        (["--levels", "many"], "Invalid value for '--levels'"),
        (["--vmin", "nan"], "--vmin must be a finite number, got nan"),
        (["--vmin", "-1", "--log"], "--vmin -1: a logarithmic scale begins above zero"),
        (["--vmin", "2", "--vmax", "1"], "--vmin 2 is not below --vmax 1: the first is the lower end"),
        (["--vmax", "0.01", "--linear"], "--vmax 0.01 leaves nothing"),
        (["--zmax", "3"], "--zmax is for --kind 3d; leave it out for --kind contour"),
        (["--kind", "heat", "--levels", "5"], "--levels is for --kind contour, accuracy, overlay, path; leave it out"),
        (["--kind", "accuracy", "--linear"], "--linear is for --kind contour, 3d, heat"),
        (["--kind", "3d", "--zmax", "0.0001"], "--zmax 0.0001 leaves nothing"),
        (["--kind", "3d", "--zmax", "nan"], "--zmax nan leaves nothing"),
        (["--kind", "path"], "--kind path is not for a surface: choose contour, 3d"),
        (["--width", "1"], "--width is for --kind density"),
        (["-o", "figure.gif"], "end the name in .png, .pdf or .svg"),
    ],
)
def test_plot_refuses_what_makes_no_figure(plot, tmp_path, words, line):
    code, out, err = plot(three_classes(), *words)
    assert (code, out) == (2, "")
    assert len(err) == 1
    assert line in err[0]
    assert [path.name for path in tmp_path.iterdir()] == ["result.h5"]


@pytest.mark.parametrize("kind", [kind for kind in plots.KIND_FIGURES["surface"] if kind != "heat"])
def test_a_surface_of_one_row_is_refused_in_one_line_that_names_what_draws_it(plot, kind):
    of = grid(np.linspace(-1, 1, 5), [0.0])
    code, out, err = plot(surface(of, paraboloid(of)), "--kind", kind)
    line = "contours need points that span a plane, this grid of 5 x 1 does not: draw it by --kind heat"
    assert (code, out, err) == (2, "", [f"landscape: error: {line}"])


def test_figures_are_the_same_bytes_each_time(tmp_path):
    found = with_hole()
    for name in ("a", "b"):
        plots.write(plots.surface(found), tmp_path / f"{name}.svg")
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


def test_a_loss_of_zero_is_drawn_in_the_lowest_colour_and_is_no_hole():
    loss = np.geomspace(1e-3, 10, 25).reshape(1, 5, 5)
    loss[0, 2, 2] = 0
    found = surface(grid(np.linspace(-1, 1, 5), np.linspace(-1, 1, 5)), loss)
    (cells,) = [c for c in plots.surface_heat(found).axes[0].collections if isinstance(c, QuadMesh)]
    assert not np.ma.getmaskarray(cells.get_array()).any()
    figure = plots.surface_3d(found)
    FigureCanvasAgg(figure).draw()
    (relief,) = [c for c in figure.axes[0].collections if isinstance(c, Poly3DCollection)]
    assert (relief.get_facecolor()[:, 3] == 1).all()
