"""Figures of a training, looked at through the artists they hold."""

import numpy as np
import pytest
from made import history

from landscape import plots
from landscape.errors import InputError


def test_training_shows_losses_accuracies_and_classes_with_the_most_frequent_first():
    found = history()
    fig = plots.training(found)
    fig.draw_without_rendering()
    loss, accuracy, classes = fig.axes
    assert [line.get_label() for line in loss.lines] == ["train", "test"]
    np.testing.assert_array_equal(accuracy.lines[1].get_ydata(), found.test_accuracy)
    assert [line.get_label() for line in classes.lines] == ["class 2 (7)", "class 1 (6)", "class 0 (5)"]
    np.testing.assert_array_equal(classes.lines[0].get_ydata(), found.test_accuracy_per_class[:, 2])
    assert all(ax.get_xlabel() == "epoch" for ax in fig.axes)


def final(*accuracies):
    """Runs that end with these test accuracies."""
    return [history(test_accuracy=np.array([0.1, 0.2, 0.3, last])) for last in accuracies]


def test_a_sweep_has_the_mean_over_seeds_and_their_sample_standard_deviation():
    groups = {4: final(0.9, 0.8, 0.7), 1: final(0.5, 0.6, 0.7)}
    fig = plots.sweep({"groups G": groups, "$Z": {1e-4: final(0.9), 1e-1: final(0.7)}})
    fig.draw_without_rendering()
    left, right = fig.axes
    assert left.lines[0].get_xdata().tolist() == [1, 4]
    np.testing.assert_allclose(left.lines[0].get_ydata(), [60, 80])
    (band,) = left.collections
    np.testing.assert_allclose(np.unique(band.get_paths()[0].vertices[:, 1].round(9)), [50, 70, 90])  # 10 of three
    assert [ax.get_title() for ax in fig.axes] == ["band: standard deviation of 3 seeds", "one seed"]
    assert [ax.get_xscale() for ax in fig.axes] == ["linear", "log"]
    assert right.get_xlabel() == "$Z"
    uneven = plots.sweep({"G": {1: final(0.1, 0.2), 2: final(0.1, 0.2, 0.3)}})
    assert uneven.axes[0].get_title().endswith("of 2 to 3 seeds")
    for nothing in ({}, {"G": {}}, {"G": {1: []}}):
        with pytest.raises(InputError, match="a sweep needs an option, values of it, and a run for each value"):
            plots.sweep(nothing)


def test_epochs_that_measured_nothing_are_bridged():
    quality = np.full((4, 3), np.nan)
    quality[[0, 3]] = 1.5
    fig = plots.quality(history(quality=quality), ["class 1"])
    (line,) = fig.axes[0].lines
    assert line.get_xdata().tolist() == [1, 4]


def test_many_classes_get_a_bar_of_their_ranks():
    fig = plots.training(history(n_classes=20))
    fig.draw_without_rendering()
    assert fig.axes[-1].get_ylabel() == "rank of the class by training samples, 1 the most frequent"


def test_cosines_are_drawn_where_they_were_measured():
    cosine = np.full((4, 3), 0.3)
    assert len(plots.cosines(history(gradient_cosine=cosine)).axes[0].lines) == 3
    with pytest.raises(InputError, match="gsa-gkp did not measure gradient cosines: train with --cosines-every"):
        plots.cosines(history())


def test_a_class_that_does_not_exist_is_named():
    with pytest.raises(InputError, match="no class 'cat'; there are class 0, class 1, class 2"):
        plots.quality(history(), ["cat"])
