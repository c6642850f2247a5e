"""Figures of features, looked at through the artists they hold."""

import numpy as np
import pytest
from made import features
from refusals import refused

from landscape import plots
from landscape.errors import InputError
from landscape.results import written


def drawn(fig):
    fig.draw_without_rendering()
    return fig


def coloured(ax):
    return [line for line in ax.lines if line.get_color() != "0.6"]


def legend(fig):
    return [text.get_text() for text in fig.legends[0].get_texts()]


def test_quality_of_one_checkpoint_stands_against_the_training_samples():
    found = features()
    fig = plots.class_quality(found)
    for ax, name in zip(fig.axes, ("quality", "quality_inverse", "distance", "variance"), strict=True):
        points = {line.get_xdata()[0]: line.get_ydata()[0] for line in ax.lines}
        assert points == dict(zip(found.train_counts, getattr(found, name)[0], strict=True)), name
    assert legend(fig) == ["class 3 (8)", "class 2 (7)", "class 1 (6)", "class 0 (5)"]
    assert fig.get_suptitle() == "ce net, features of train samples of cifar10, epoch-0000, epoch 0"
    assert "0.5 log Var" in fig.axes[0].get_title()


@pytest.mark.parametrize("n_classes", [12, 13])
def test_bars_are_the_errors_over_samples_of_any_number_of_classes(n_classes):
    errors = np.linspace(0.1, 0.2, n_classes)
    found = features(n_classes, quality_stderr=errors[None])
    ax = plots.class_quality(found).axes[0]
    bars = [segment for bar in ax.containers for segment in bar.lines[2][0].get_segments()]
    ends = {round(bar[0][0]): bar[:, 1] for bar in bars}  # by the training samples
    assert len(ends) == n_classes
    for c, n in enumerate(found.train_counts):
        np.testing.assert_allclose(ends[n], found.quality[0, c] + np.array([-1, 1]) * errors[c])


def test_along_a_run_the_most_frequent_and_the_rarest_class_stand_out():
    found = features(n_points=3, epoch=np.array([20.0, 0.0, 10.0]))  # in any order
    fig = plots.class_quality(found)
    head, tail = coloured(fig.axes[0])
    assert [line.get_label() for line in (head, tail)] == ["class 3 (8)", "class 0 (5)"]
    assert head.get_xdata().tolist() == [0, 10, 20]
    np.testing.assert_array_equal(head.get_ydata(), found.quality[[1, 2, 0], 3])
    assert len(fig.axes[0].lines) == 4
    assert legend(fig)[-1] == "the other classes"


def test_a_tail_without_quality_leaves_its_place_to_the_rarest_class_that_has_one():
    quality = features(n_points=2).quality
    quality[:, 0] = np.nan
    fig = plots.class_quality(features(n_points=2, quality=quality))
    assert [line.get_label() for line in coloured(fig.axes[0])] == ["class 3 (8)", "class 1 (6)"]
    assert "unknown for 1 of 4 classes" in fig.axes[0].get_title()
    assert "unknown" not in fig.axes[2].get_title()


def test_checkpoints_of_unknown_or_equal_epochs_stand_in_their_order():
    for epoch in ([5.0, np.nan, 7.0], [5.0, 5.0, 7.0]):
        fig = plots.class_quality(features(n_points=3, epoch=np.array(epoch)))
        assert coloured(fig.axes[0])[0].get_xdata().tolist() == [0, 1, 2]
        assert fig.axes[0].get_xlabel() == "checkpoint, in order"


def test_classes_of_equal_size_stand_side_by_side_and_none_stands_out():
    counts = np.full(4, 50)
    fig = plots.class_quality(features(train_counts=counts))
    assert [line.get_xdata()[0] for line in fig.axes[0].lines] == [0, 1, 2, 3]
    assert fig.axes[0].get_xlabel() == "classes, each with 50 training samples"
    fig = plots.class_quality(features(train_counts=counts, n_points=2))
    assert len(coloured(fig.axes[0])) == 4
    fig = plots.class_quality(features(30, 2, train_counts=np.full(30, 50)))
    assert not coloured(fig.axes[0])
    assert legend(fig) == ["all classes"]


def test_runs_side_by_side_share_one_scale_and_name_both_ends():
    results = {"CE": features(4, 3), "CE + $x": features(4, 2, quality=np.full((2, 4), 7.0))}
    fig = drawn(plots.compare_quality(results))
    assert [ax.get_title() for ax in fig.axes] == list(results)
    assert fig.axes[0].get_ylim() == fig.axes[1].get_ylim()
    head, tail = coloured(fig.axes[0])
    np.testing.assert_array_equal(head.get_ydata(), results["CE"].quality[:, 3])
    np.testing.assert_array_equal(tail.get_ydata(), results["CE"].quality[:, 0])
    assert legend(fig) == ["class 3 (8)", "class 0 (5)", "the other classes"]
    fig = plots.compare_quality(results, ["class 1"], form="inverse")
    np.testing.assert_array_equal(fig.axes[0].lines[0].get_ydata(), results["CE"].quality_inverse[:, 1])
    with refused(InputError, "run"):
        plots.compare_quality({})
    with refused(InputError, "epochs"):
        plots.compare_quality({"a": features()})
    with refused(InputError, form="s19"):
        plots.compare_quality(results, form="s19")


def test_a_class_has_one_colour_in_all_runs_and_in_the_legend():
    counts, unmeasured = np.full(4, 50), features(4, 3).quality
    unmeasured[:, 0] = np.nan
    found, balanced = features(4, 3), features(4, 3, train_counts=counts)
    for other, first in ((features(4, 3, quality=unmeasured), found), (balanced[list(balanced.parts[::-1])], balanced)):
        fig = plots.compare_quality({"a": first, "b": other})
        shown = {h.get_label(): h.get_color() for h in fig.legends[0].legend_handles}
        for ax in fig.axes:
            assert shown.items() >= {line.get_label(): line.get_color() for line in coloured(ax)}.items()
        named = [colour for label, colour in shown.items() if label.startswith("class")]
        assert len(set(named)) == len(named)


def test_qualities_with_several_beta_have_no_common_axis():
    results = {"a": features(4, 2), "b": features(4, 2, beta=0.1)}
    with refused(InputError, "beta", 0.5, 0.1, form="inverse"):
        plots.compare_quality(results)
    assert len(plots.compare_quality(results, form="inverse").axes) == 2


def test_angles_are_sorted_by_frequency_and_white_where_all_are_widest():
    found = features()
    fig = plots.class_angles(found)
    (image,) = fig.axes[0].images
    cosine = found.mean_cosine[0, ::-1, ::-1].copy()
    np.fill_diagonal(cosine, np.nan)
    np.testing.assert_array_equal(np.ma.filled(image.get_array(), np.nan), cosine)
    assert (image.norm.vmin + image.norm.vmax) / 2 == pytest.approx(-1 / 3)
    assert image.norm.vmax - image.norm.vmin == pytest.approx(2 * np.nanmax(np.abs(cosine + 1 / 3)))
    assert [t.get_text() for t in fig.axes[0].get_yticklabels()] == [f"class {c} ({5 + c})" for c in (3, 2, 1, 0)]
    assert len(fig.axes[0].texts) == 12  # pairs, not the classes themselves
    assert fig.axes[1].get_title() == "white: -0.333"


def test_the_widest_angle_is_that_of_the_classes_that_have_samples():
    fig = plots.class_angles(features(n_samples=np.array([5, 0, 7, 8])))
    norm = fig.axes[0].images[0].norm
    assert (norm.vmin + norm.vmax) / 2 == pytest.approx(-1 / 2)


def test_of_several_checkpoints_the_first_and_the_last_angles_share_one_scale():
    found = features(n_points=5)
    fig = plots.class_angles(found)
    first, last = (ax.images[0] for ax in fig.axes[:2])
    assert [ax.get_title() for ax in fig.axes[:2]] == ["epoch-0000, epoch 0", "epoch-0040, epoch 40"]
    assert (first.norm.vmin, first.norm.vmax) == (last.norm.vmin, last.norm.vmax)
    assert last.get_array()[0, 1] == found.mean_cosine[4, 3, 2]


def test_collapse_along_a_run_and_class_by_class():
    found = features(n_points=3)
    fig = plots.neural_collapse(found)
    names = ("within_between", "norm_variation", "angle_deviation", "duality", "mean_disagreement")
    lines = [line for ax in fig.axes for line in ax.lines]
    for line, name in zip(lines, names, strict=True):
        np.testing.assert_array_equal(line.get_ydata(), getattr(found, name))
    found = features()
    fig = plots.neural_collapse(found)
    heights = [[bar.get_height() for bar in ax.patches] for ax in fig.axes]
    order = [3, 2, 1, 0]
    np.testing.assert_allclose(heights[0], found.variance[0, order] / (found.mean_norm[0] ** 2).mean())
    np.testing.assert_allclose(heights[1], found.mean_norm[0, order] / found.mean_norm[0].mean())
    np.testing.assert_allclose(heights[2], found.alignment[0, order])
    np.testing.assert_allclose(heights[3], found.disagreement[0, order])
    assert [ax.get_title()[:3] for ax in fig.axes] == ["NC1", "NC2", "NC3", "NC4"]
    assert written.number(found.duality[0]) in fig.axes[2].get_title()
    against = plots.neural_collapse(features(alignment=np.full((1, 4), -0.5))).axes[2]
    assert [bar.get_height() for bar in against.patches] == [-0.5] * 4
    assert against.get_ylim()[0] < -0.5


@pytest.mark.parametrize(("n_classes", "n_points"), [(1, 3), (13, 1), (130, 2)])
def test_any_number_of_classes_can_be_drawn(n_classes, n_points):
    found = features(n_classes, n_points)
    for kind, figure in plots.KIND_FIGURES["features"].items():
        if (n_classes, kind) != (1, "angles"):
            drawn(figure(found))
    with refused(InputError, "angles"):
        plots.class_angles(found, ["class 0"])
    with refused(InputError, n_classes):
        plots.class_angles(features(n_classes, n_points, mean_cosine=None))


@pytest.mark.parametrize("n_points", [1, 2])
def test_figures_without_any_known_number_are_empty_and_not_an_error(n_points):
    nothing = np.full((n_points, 4), np.nan)
    names = ("quality", "quality_inverse", "distance", "variance", "mean_norm", "alignment", "disagreement")
    numbers = ("within_between", "norm_variation", "angle_deviation", "duality", "mean_disagreement")
    changed = dict.fromkeys(names, nothing) | dict.fromkeys(numbers, nothing[:, 0])
    changed |= {"mean_cosine": np.full((n_points, 4, 4), np.nan), "epoch": nothing[:, 0], "provenance": {}}
    for figure in plots.KIND_FIGURES["features"].values():
        drawn(figure(features(n_points=n_points, **changed)))


def test_parts_are_chosen_by_name_and_names_are_no_markup():
    found = features(parts=("a $_b", "<c>", "d_e", "f"))
    fig = drawn(plots.class_quality(found, ["a $_b", "f"]))
    assert legend(fig) == ["f (8)", "a $_b (5)"]
    assert plots.class_angles(found, ["a $_b", "f"]).axes[0].images[0].get_array().shape == (2, 2)
    for figure in plots.KIND_FIGURES["features"].values():
        with refused(InputError, "cat"):
            figure(found, ["cat"])
        with refused(InputError, "class"):
            figure(found, [])
