"""Figures of surfaces, looked at through the artists they hold and the pixels they become."""

import dataclasses

import numpy as np
import pytest
from drawn import above, below, fills, inside
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PolyCollection, QuadMesh
from matplotlib.contour import ContourSet
from mpl_toolkits.mplot3d.art3d import Poly3DCollection
from planes import is_grey, many, pixel, with_hole
from refusals import refused
from surfaces import COSINE, UNITS, grid, paraboloid, squared_distance, surface, three_classes, three_lines

from landscape import plots
from landscape.errors import InputError
from landscape.plots.layout import scales, theme
from landscape.plots.layout.drawable import LARGEST
from landscape.plots.layout.fitting import touch
from landscape.plots.layout.parts import joined
from landscape.plots.layout.planes import filled
from landscape.results.regroup import regroup, verdict_of


def lines_of(ax):
    """The contour lines of an axes: level -> its vertices."""
    (found,) = [c for c in ax.collections if isinstance(c, ContourSet) and not c.filled]
    return {level: path.vertices for level, path in zip(found.levels, found.get_paths(), strict=True)}


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
    with refused(InputError, "euclidean"):
        plots.surface(unknown, euclidean=True)
    for flat in ({"cosine": -1.0}, {"unit_length": np.array([1.0, 0])}):
        with refused(InputError, "euclidean"):
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


def test_the_largest_loss_that_is_drawn_has_levels():
    of = grid(np.linspace(-1, 1, 5), np.linspace(-1, 1, 5))
    loss = paraboloid(of)
    loss[0, 4, 4] = LARGEST
    plots.surface(surface(of, loss)).draw_without_rendering()
    loss[0, 4, 4] = np.nextafter(LARGEST, np.inf)
    with pytest.raises(InputError, match="can be drawn"):
        plots.surface(surface(of, loss))


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


def test_errors_of_a_plane_are_drawn_in_place_of_its_losses_on_a_scale_of_their_own():
    plain = three_classes()
    found = dataclasses.replace(plain, loss_stderr=plain.loss / 8, centre_loss_stderr=plain.centre_loss / 8)
    *panels, bar = plots.surface(found, errors=True).axes
    levels = fills(panels[0]).levels
    assert levels[0] <= found.loss_stderr.min() < found.loss_stderr.max() <= levels[-1] < found.loss.max()
    assert bar.get_ylabel() != plots.surface(found).axes[-1].get_ylabel()
    assert not any(line.get_marker() == "v" for ax in panels for line in ax.lines)  # the lowest loss is not of errors
    with refused(InputError, "errors"):
        plots.surface(plain, errors=True)
    found.loss_stderr[2] = np.nan  # of a part of one sample
    assert "hatched: unknown" in below(plots.surface(found, errors=True))
    assert "hatched" not in below(plots.surface(found))


@pytest.mark.parametrize("what", ["loss", "accuracy"])
def test_cells_and_accuracies_have_errors_in_their_place_too(what):
    draw, plain = {"loss": plots.surface_heat, "accuracy": plots.surface_accuracy}[what], three_classes()
    errors = getattr(plain, what) / 8
    centre = {f"centre_{what}_stderr": errors[:, 0, 0]}
    found = dataclasses.replace(plain, **{f"{what}_stderr": errors}, **centre)
    *panels, bar = draw(found, errors=True).axes
    if what == "loss":
        (cells,) = [c for c in panels[1].collections if isinstance(c, QuadMesh)]
        np.testing.assert_array_equal(cells.get_array(), errors[1])
        assert not any(line.get_marker() == "v" for ax in panels for line in ax.lines)
    else:
        assert fills(panels[1]).levels[-1] < plain.accuracy.max() / 4
    assert bar.get_ylabel() != draw(found).axes[-1].get_ylabel()
    assert f"clipped: s.e. of the {what}" in below(draw(found, errors=True, vmax=float(np.median(errors))))
    with refused(InputError, "errors"):
        draw(plain, errors=True)


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
    with refused(InputError, 3, 0, "surface"):
        plots.contours(found)
    with refused(InputError, "cat", 0):
        plots.contours(found, "cat")
    with refused(InputError, what="error"):
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
    with refused(InputError, "part"):
        plots.surface(found, [])


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
