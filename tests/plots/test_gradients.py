"""Figures of gradients, looked at through the artists they hold."""

import dataclasses
import itertools

import numpy as np
import pytest
from made import THREE, gradients, many
from matplotlib.collections import PathCollection
from refusals import refused

from landscape import plots
from landscape.errors import InputError


def drawn(fig):
    fig.draw_without_rendering()
    return fig


def values(ax):
    (mesh,) = ax.collections
    return mesh.get_array().reshape(len(mesh.get_coordinates()) - 1, -1)


def test_the_map_puts_the_most_frequent_part_first_and_zero_in_the_middle_of_its_colours():
    found = gradients(THREE, [5, 20, 10])
    strip, image, bar = drawn(plots.cosine_map(found)).axes
    order = [1, 2, 0]
    np.testing.assert_array_equal(values(image), found.between[0][np.ix_(order, order)])
    np.testing.assert_array_equal(values(strip)[:, 0], found.cosine[0][order])
    assert [t.get_text() for t in strip.get_yticklabels()] == ["class 1 (20)", "class 2 (10)", "class 0 (5)"]
    assert [t.get_text() for t in image.get_xticklabels()] == ["class 1", "class 2", "class 0"]
    for ax in (strip, image):
        norm = ax.collections[0].norm
        assert norm.vmin == -norm.vmax
        # The strongest pair, or agreement with the whole, and not a part with itself, sets the scale.
        off = np.abs(np.concatenate([found.between[0][~np.eye(3, dtype=bool)], found.cosine[0]])).max()
        assert off <= norm.vmax < off + 0.1
    assert {t.get_text() for t in image.texts} >= {"1.00", "-0.58"}
    assert "epoch 3; exact gradients" in image.get_title()
    assert bar.get_ylabel() == "cosine of the gradients"


def test_parts_without_a_gradient_are_holes_in_the_map():
    found = gradients([[1.0, 0], [0, 0], [0, 1]], [3, 2, 1])
    _, image, _ = drawn(plots.cosine_map(found)).axes
    assert np.isnan(np.ma.filled(values(image), np.nan)[1]).all()
    assert "grey: no gradient" in image.get_title()
    assert "nan" not in {t.get_text() for t in image.texts}
    drawn(plots.decomposition(found))
    sizes, _ = drawn(plots.gradient_norms(found)).axes
    assert sizes.get_title() == "not drawn: 1 without a gradient above rounding"


def test_gradients_that_are_only_rounding_are_not_drawn():
    """As `landscape gradients` writes them: the last part, and the whole within the first layer."""
    rounded = gradients([[1e-9, 3.0], [2e-9, 4], [0, 1e-9]], [3, 2, 1])
    fields = {name: getattr(rounded, name).copy() for name in ("cosine", "projected", "specific", "radius", "between")}
    for numbers in fields.values():
        numbers[0, 2] = np.nan
    fields["between"][0, :, 2] = np.nan
    for name in ("layer_cosine", "layer_contribution"):
        fields[name] = getattr(rounded, name).copy()
        fields[name][0, 0] = np.nan
    fields |= {name: 0 * getattr(rounded, name.removesuffix("_rounding")) + 1e-9 for name in (
        "norm_rounding", "whole_norm_rounding", "layer_norm_rounding", "layer_whole_norm_rounding"
    )}  # fmt: skip
    found = dataclasses.replace(rounded, **fields)
    assert found.only_rounding("norm").tolist() == [[False, False, True]]
    assert found.only_rounding("layer_whole_norm").tolist() == [[True, False]]
    sizes, _ = drawn(plots.gradient_norms(found)).axes
    marks = np.concatenate([c.get_offsets()[:, 1] for c in sizes.collections if isinstance(c, PathCollection)])
    assert np.ma.filled(marks, np.nan)[np.isfinite(marks)].min() > 1e-8
    assert sizes.get_title() == "not drawn: 1 without a gradient above rounding"
    first, _, last = drawn(plots.decomposition(found)).axes
    assert "cos" in " ".join(text.get_text() for text in first.texts)
    assert [text.get_text() for text in last.texts] == ["no gradient above rounding"]
    shares, *_ = drawn(plots.gradient_layers(found)).axes
    assert [t.get_text() for t in shares.get_yticklabels()] == ["conv (rounding)", "fc (100 %)"]
    assert np.isnan(np.ma.filled(values(shares), np.nan)[0]).all()


@pytest.mark.parametrize("n", [1, 12, 13, 121])
def test_any_number_of_parts_can_be_drawn(n):
    found = many(n)
    fig = plots.cosine_map(found)
    assert values(fig.axes[1]).shape == (n, n)
    assert len(fig.axes[1].texts) == (n * n if n <= 12 else 0)
    assert len(fig.axes[0].get_yticklabels()) == (n if n <= 120 else 61)  # every other one
    assert len(plots.decomposition(found).axes) == min(n, 12)
    plots.gradient_norms(found)


@pytest.mark.parametrize("n", [1, 60])
def test_names_of_parts_do_not_run_into_each_other(n):
    strip, *_ = drawn(plots.cosine_map(many(n))).axes
    boxes = [label.get_window_extent() for label in strip.get_yticklabels()]
    for above, below in itertools.pairwise(boxes):
        assert above.y0 >= below.y1 - 0.25 * above.height  # a line's box has room above its letters


def test_layers_stand_in_the_order_of_the_network_and_parts_in_that_of_their_samples():
    found = gradients(THREE, [5, 20, 10])
    shares, cosines, *_ = drawn(plots.gradient_layers(found)).axes
    for ax, field in ((shares, found.layer_contribution), (cosines, found.layer_cosine)):
        np.testing.assert_array_equal(values(ax), field[0][:, [1, 2, 0]])
        assert ax.get_ylim() == (1.5, -0.5)  # the first layer above
        assert [t.get_text() for t in ax.get_xticklabels()] == ["class 1 (20)", "class 2 (10)", "class 0 (5)"]
        assert ax.collections[0].norm.vmin == -ax.collections[0].norm.vmax
    whole = found.layer_whole_norm[0] ** 2 / found.whole_norm[0] ** 2
    assert [t.get_text() for t in shares.get_yticklabels()] == [
        f"conv ({100 * whole[0]:.0f} %)", f"fc ({100 * whole[1]:.0f} %)"
    ]  # fmt: skip
    assert {t.get_text() for t in shares.texts} == {f"{v:.2f}" for v in found.layer_contribution[0].ravel()}


def test_a_share_beyond_one_is_beyond_the_scale_and_a_part_without_a_gradient_a_hole():
    found = gradients([[-1.0, 1], [1.01, 1], [0, 0]], [5, 5, 5])  # parts that cancel, and one without a gradient
    assert abs(found.layer_contribution).max() > 10
    fig = drawn(plots.gradient_layers(found))
    assert fig.axes[0].collections[0].norm.vmax == 1
    assert np.isnan(np.ma.filled(values(fig.axes[1]), np.nan)[:, 2]).all()
    assert "grey: no gradient" in fig.get_suptitle()


@pytest.mark.parametrize(("n_layers", "n_parts"), [(1, 1), (70, 100), (300, 3)])
def test_names_of_many_layers_and_parts_do_not_run_into_each_other(n_layers, n_parts):
    found = many(n_parts)
    layered = {
        f.name: np.repeat(getattr(found, f.name)[:, :1], n_layers, axis=1)
        for f in dataclasses.fields(found)
        if f.name.startswith("layer_") and getattr(found, f.name) is not None
    }
    named = tuple(f"layer{k}.{k}.conv" for k in range(n_layers))
    ax, *_ = drawn(plots.gradient_layers(dataclasses.replace(found, layers=named, **layered))).axes
    for axis in (ax.xaxis, ax.yaxis):
        boxes = sorted((box.x0, box.x1) if axis is ax.xaxis else (box.y0, box.y1) for box in (
            label.get_window_extent() for label in axis.get_ticklabels()
        ))  # fmt: skip
        assert len(boxes) >= min(len(found.parts) if axis is ax.xaxis else n_layers, 25)
        for before, after in itertools.pairwise(boxes):
            assert after[0] >= before[1] - 0.25 * (before[1] - before[0])  # a line's box has room above its letters


def test_a_file_without_layers_says_how_to_get_them():
    found = gradients(THREE, [5, 20, 10])
    without = {f.name: None for f in dataclasses.fields(found) if f.name.startswith("layer")}
    with pytest.raises(InputError, match="compute it again by landscape gradients"):
        plots.gradient_layers(dataclasses.replace(found, **without))


def arrows(ax):
    """Start and end of each arrow, in the order they were drawn."""
    return [(note.xyann, note.xy) for note in ax.texts if getattr(note, "arrow_patch", None) is not None]


def test_the_decomposition_is_drawn_to_scale():
    found = gradients(THREE, [5, 20, 10])
    fig = drawn(plots.decomposition(found))
    assert [ax.get_title() for ax in fig.axes] == ["class 1", "class 2", "class 0"]
    for ax, p in zip(fig.axes, [1, 2, 0], strict=True):
        foot, tip = (found.projected[0, p], 0), (found.projected[0, p], found.specific[0, p])
        assert arrows(ax) == [((0, 0), foot), (foot, tip), ((0, 0), tip)]
        assert np.hypot(*tip) == pytest.approx(found.norm[0, p])
        assert np.ptp(ax.get_xlim()) == pytest.approx(np.ptp(ax.get_ylim()))  # one scale, on a square
        assert ax.get_box_aspect() == 1
        for x, y in ((0, 0), foot, tip):
            assert ax.get_xlim()[0] < x < ax.get_xlim()[1]
            assert ax.get_ylim()[0] < y < ax.get_ylim()[1]
        words = " ".join(t.get_text() for t in ax.texts)
        assert f"cos = {found.cosine[0, p]:.2f}" in words
        assert r"$\rho_p$ = 0.25" in words
    assert found.projected[0].min() < 0  # one of them points against the whole


def test_of_many_parts_the_decomposition_shows_both_ends():
    titles = [ax.get_title() for ax in plots.decomposition(many(40)).axes]
    assert titles == [f"class {p}" for p in (39, 38, 37, 36, 35, 34, 5, 4, 3, 2, 1, 0)]
    assert len(plots.decomposition(many(40), [f"class {p}" for p in range(20)]).axes) == 20


def test_where_the_gradients_cancel_there_is_nothing_to_decompose():
    found = gradients([[1.0, 0], [0, 1]], [2, 1])
    nothing = {n: np.full((1, 2), np.nan) for n in ("cosine", "projected", "specific", "radius", "contribution")}
    found = dataclasses.replace(found, **nothing)
    fig = drawn(plots.decomposition(found))
    assert all(ax.texts[0].get_text() == "no gradient of the whole" for ax in fig.axes)
    drawn(plots.gradient_norms(found))
    drawn(plots.cosine_map(found))


def test_norms_of_no_gradient_at_all_are_an_empty_panel(tmp_path):
    names = ("norm", "cosine", "projected", "specific", "contribution")
    fields = {n: np.full((1, 2), np.nan if n != "norm" else 0.0) for n in names}
    fields |= {f"{n}_sampling_stderr": np.full((1, 2), np.nan) for n in names}
    found = dataclasses.replace(gradients([[1.0, 0], [0, 1]], [200, 10]), **fields)
    plots.write(plots.gradient_norms(found), tmp_path / "norms.png")


def test_norms_show_components_with_errors_and_hollow_where_a_part_points_against_the_whole():
    found = gradients(THREE, [5, 20, 10], stderr=0.1, batch_size=8)
    sizes, shares = drawn(plots.gradient_norms(found)).axes
    labels = [t.get_text() for t in sizes.get_legend().get_texts()]
    assert labels == ["along $g$ (hollow: against it)", "$|g_p|$", "$|h_p|$, its own"]
    order = [1, 2, 0]
    against = found.projected[0, order] < 0
    marks = [c.get_offsets()[:, 1] for c in sizes.collections if isinstance(c, PathCollection)]
    size = np.abs(found.projected[0, order])
    for expected in (size[~against], size[against], found.norm[0, order], found.specific[0, order]):
        assert sum(m.shape == expected.shape and np.allclose(m, expected) for m in marks) == 1
    assert len(sizes.containers) == 3  # error bars
    points = np.concatenate([c.get_offsets()[:, 1] for c in shares.collections if isinstance(c, PathCollection)])
    assert set(np.round(points, 9)) >= set(np.round([*found.contribution[0], 5 / 35, 20 / 35, 10 / 35], 9))
    exact = gradients(THREE, [5, 20, 10])
    assert not drawn(plots.gradient_norms(exact)).axes[0].containers


def with_errors(found, errors):
    """The result with these errors over samples of each part, and some of each pair."""
    names = ("loss", "norm", "cosine", "projected", "specific", "radius", "contribution")
    known = {f"{name}_sampling_stderr": np.array([errors]) for name in names}
    return dataclasses.replace(found, **known, between_sampling_stderr=np.add.outer(errors, errors)[None])


def test_errors_over_samples_stand_beside_the_numbers():
    found = with_errors(gradients(THREE, [5, 20, 10]), [0.1, 0.2, np.nan])
    sizes, shares = drawn(plots.gradient_norms(found)).axes
    for bars in (*sizes.containers, *shares.containers):
        low, high = bars.lines[2][0].get_segments()[0][:, 1]
        assert (high - low) / 2 == pytest.approx(0.2)  # of the most frequent part, which is the second
    assert (len(sizes.containers), len(shares.containers)) == (3, 1)
    frequent, unknown, _ = drawn(plots.decomposition(found)).axes
    words = "".join(text.get_text() for text in frequent.texts)
    assert f"cos = {found.cosine[0, 1]:.2f} ± 0.2" in words
    assert r"$\rho_p$ = 0.25 ± 0.2" in words
    (bars,) = frequent.containers
    for k, segments in enumerate(of.get_segments()[0] for of in bars.lines[2]):
        assert np.ptp(segments[:, k]) == pytest.approx(0.4)
        assert segments[:, k].mean() == pytest.approx([found.projected[0, 1], found.specific[0, 1]][k])
    assert not unknown.containers
    strip, image, _ = drawn(plots.cosine_map(found)).axes
    assert [t.get_text().partition("\n")[2] for t in strip.texts] == ["±0.2", "", "±0.1"]
    texts = {t.get_text() for t in image.texts}
    assert texts >= {f"{found.between[0, 0, 1]:.2f}\n±0.3", f"{found.between[0, 0, 2]:.2f}"}
    assert not drawn(plots.decomposition(gradients(THREE, [5, 20, 10]))).axes[0].containers


def test_parts_of_equal_counts_stand_side_by_side():
    sizes, _ = drawn(plots.gradient_norms(gradients(THREE, [7, 7, 7]))).axes
    assert sizes.get_xlabel() == "parts, each with 7 training samples"


def test_over_the_epochs_two_parts_at_each_end_stand_out_with_their_errors():
    found = many(9, epochs=(20, 0, 5), stderr=0.02, batch_size=64)
    found = dataclasses.replace(found, cosine=found.cosine * np.array([[1.0], [2], [3]]))
    fig = drawn(plots.gradient_epochs(found))
    (ax,) = fig.axes
    assert ax.get_title() == "ce\nmeans over batches of 64"
    labels = [t.get_text() for t in fig.legends[0].get_texts()]
    assert labels == ["class 8 (13)", "class 7 (12)", "class 1 (6)", "class 0 (5)"]
    assert len(ax.containers) == 4
    line = ax.containers[0].lines[0]
    np.testing.assert_array_equal(line.get_xdata(), [0, 5, 20])  # in the order of the epochs, not of the file
    np.testing.assert_allclose(line.get_ydata(), found.cosine[[1, 2, 0], 8])
    assert sum(line.get_color() == "0.6" for line in ax.lines) == 5 + 1  # the others, and zero
    chosen = drawn(plots.gradient_epochs(found, ["class 4", "class 5"]))
    assert [t.get_text() for t in chosen.legends[0].get_texts()] == ["class 5 (10)", "class 4 (9)"]


def test_epochs_that_are_unknown_are_numbered():
    found = many(3, epochs=(0, 1, 2))
    (ax,) = drawn(plots.gradient_epochs(dataclasses.replace(found, epoch=np.array([0, np.nan, 2])))).axes
    assert ax.get_xlabel() == "checkpoint, in order"


def test_two_runs_share_one_scale_and_one_legend():
    runs = {"CE": many(4, epochs=(0, 1)), "ours": many(4, epochs=(0, 2), stderr=0.1, batch_size=8)}
    fig = drawn(plots.gradient_cosines(runs, ["class 0", "class 3"]))
    left, right = fig.axes
    assert [ax.get_title().split("\n")[0] for ax in fig.axes] == ["CE", "ours"]
    assert left.get_ylim() == right.get_ylim()
    assert [t.get_text() for t in fig.legends[0].get_texts()] == ["class 3 (8)", "class 0 (5)"]


def test_a_part_has_one_colour_in_all_runs_and_in_the_legend():
    found = gradients(np.eye(4), [10] * 4, epochs=(1, 2))
    fig = plots.gradient_cosines({"a": found, "b": found[["class 3", "class 2", "class 1", "class 0"]]})
    (legend,) = fig.legends
    shown = {t.get_text(): h.get_color() for t, h in zip(legend.get_texts(), legend.legend_handles, strict=True)}
    assert len(set(shown.values())) == 4
    for ax in fig.axes:
        assert {h.get_label(): h.lines[0].get_color() for h in ax.get_legend_handles_labels()[0]} == shown


@pytest.mark.parametrize(
    ("draw", "words"),
    [
        (lambda g: plots.cosine_map(g, ["cat"]), ("cat", 0)),
        (lambda g: plots.decomposition(g, []), ("part",)),
        (lambda g: plots.gradient_norms(g, point="last"), ("last", "epoch-3")),
        (plots.gradient_epochs, ("epochs",)),
        (lambda g: plots.gradient_cosines({}), ("run",)),
        (lambda g: plots.gradient_epochs(many(3, epochs=(1, 1))), ("epoch",)),
    ],
)
def test_what_cannot_be_drawn_is_named(draw, words):
    with refused(InputError, *words):
        draw(many(3))


def test_a_checkpoint_is_drawn_by_its_name_or_else_the_last():
    found = many(3, epochs=(0, 7))
    assert "epoch 7" in plots.cosine_map(found).axes[1].get_title()
    assert "epoch 0" in plots.cosine_map(found, point="epoch-0").axes[1].get_title()


def test_the_colour_bar_of_cosines_ends_in_an_arrow_only_where_one_exceeds_it():
    near = gradients([[1.0, 0, 0], [-0.99, 0.05, 0], [0, 0, 1.0]], [5, 5, 5])
    far = gradients([[1.0, 0, 0], [0.1, 1.0, 0], [0.1, 0, 1.0]], [1, 10, 100])
    for found, extend in ((near, "neither"), (far, "neither" if abs(far.cosine).max() > 0.9 else "max")):
        mesh = plots.cosine_map(found).axes[1].collections[0]
        assert mesh.colorbar.extend == extend


def test_legends_of_many_norms_stand_below_their_axes():
    for columns in (None, 1, 2):
        with plots.styled(columns=columns):
            fig = plots.gradient_norms(many(30))
        fig.draw_without_rendering()
        for ax in fig.axes:
            assert ax.get_legend().get_window_extent().y1 < ax.get_window_extent().y0
