"""Figures of a training, looked at through the artists they hold."""

import dataclasses

import numpy as np
import pytest
from made import history
from refusals import missing, refused

from landscape import plots
from landscape.errors import InputError
from landscape.results import columns, inference


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


def test_test_accuracies_have_the_errors_of_their_samples_in_the_table_and_as_bands_on_demand():
    found = history(test_accuracy=np.array([0.5, 0.0, np.nan, 0.9]), test_counts=np.array([100, 10, 1]))
    assert found.test_accuracy_stderr[[0, 3]] == pytest.approx([0.0477, 0.0294], rel=0.01)
    whole, rare = (inference.share_stderr(found.test_accuracy_per_class[-1], n) for n in (100, 10))
    heads, rows = columns.table(found)
    at = heads.index("test accuracy % ± samples")
    expected = [f"± {100 * whole[0]:.1g}", f"± {100 * rare[1]:.0f}", "± ?"]
    assert [row[at].partition(" ")[2] for row in rows] == expected  # one sample has no known spread
    loss, accuracy, classes = plots.training(found, errors=True).axes
    (of_loss,) = loss.collections
    assert of_loss.get_paths()[0].vertices[:, 1].max() == pytest.approx(
        (found.test_loss + found.test_loss_stderr).max()
    )
    (band,) = accuracy.collections
    ends = band.get_paths()[0].vertices
    assert ends[ends[:, 0] == 1, 1].max() == pytest.approx(0.5 + found.test_accuracy_stderr[0])
    assert set(ends[:, 0]) == {1, 2, 4}
    assert len(classes.collections) == 3
    assert not any(ax.collections for ax in plots.training(found).axes)
    before = dataclasses.replace(found, test_loss_stderr=None)
    assert not plots.training(before, errors=True).axes[0].collections


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
    with refused(InputError, "gsa-gkp", "cosines_every"):
        plots.cosines(history())


def test_the_bank_shows_best_epochs_numbers_and_shares():
    numbers = {
        "n_banked": np.array([np.nan, 1, 2, 3]),
        "n_groups": np.array([np.nan, np.nan, 2, 2]),
        "pull_share": np.array([np.nan, np.nan, np.nan, 0.25]),
        "clipped_share": np.full(4, np.nan),
    }
    epochs = np.array([[np.nan] * 3, [2, 2, 2], [3, 2, 2], [3, 4, 2]])
    fig = plots.bank(history(bank_epoch=epochs, **numbers), ["class 0", "class 1"])
    best, counts, shares = fig.axes
    assert [line.get_ydata().tolist() for line in best.lines] == [[2, 2, 4], [2, 3, 3]]
    assert {line.get_label(): line.get_ydata().tolist() for line in counts.lines} == {
        "epochs in the bank": [1, 2, 3],
        "groups": [2, 2],
    }
    assert [line.get_label() for line in shares.lines] == ["pull of GKP"]
    with refused(InputError, sharpness="gsa"):
        plots.bank(history(bank_epoch=epochs * np.nan, **numbers))
    with pytest.raises(InputError, match="of an older version, which did not count groups"):
        plots.bank(history(bank_epoch=epochs, **dict.fromkeys(numbers)))


IDLE = {
    "n_groups": np.array([np.nan, 2, 2, 2]),
    "pull_share": np.array([np.nan, np.nan, 0, 0.1]),
    "clipped_share": np.array([np.nan, np.nan, 1, 0.9]),
}


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({}, []),
        ({"n_groups": np.array([np.nan, 2, 1, 1])}, ["all classes are in one group"]),
        ({"pull_share": np.array([np.nan, np.nan, 0, 0])}, ["GKP did nothing"]),
        (
            {"pull_share": np.array([np.nan, np.nan, 0, 0.004])},
            ["GKP did little: the share of its pull"],
        ),
        ({"clipped_share": np.array([np.nan, np.nan, 1, 1])}, ["clip set the radii of GSA in all epochs"]),
    ],
)
def test_a_run_in_which_a_part_did_nothing_says_so(changed, said):
    recipe = {"recipe": {"sharpness": "gsa", "gkp": True}}
    found = history(**IDLE | changed, provenance=recipe).idle
    assert [text[: len(start)] for text, start in zip(found, said, strict=True)] == said
    assert history(**IDLE | changed, provenance={"recipe": {"sharpness": "sam", "gkp": False}}).idle == ()
    recipe["recipe"]["alpha_end"] = 0.6
    found = history(**IDLE | changed, provenance=recipe).idle
    weighed = [text.endswith("; alpha still weighed the data's loss, by 0.6 at the end") for text in found]
    assert weighed == [text.startswith("GKP did") for text in said]


def test_a_run_that_ends_before_it_weighs_the_classes_says_so():
    recipe = {"reweight": "drw", "drw_start": 0.8, "epochs": 4}
    (sentence,) = history(provenance={"recipe": recipe}).idle
    assert missing(sentence, "drw_start=0.8", "epochs=4") == []
    assert history(provenance={"recipe": recipe | {"epochs": 6}}).idle == ()


def test_a_class_that_does_not_exist_is_named():
    with refused(InputError, "cat", 0, 1, 2):
        plots.quality(history(), ["cat"])
