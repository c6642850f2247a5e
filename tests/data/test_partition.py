"""Partitions: who is in which part, and that coarser ones agree with finer ones."""

from functools import partial

import numpy as np
import pytest
from refusals import refused

from landscape.data.partition import LEFT_OUT, Partition
from landscape.errors import DataError, InputError

LABELS = np.array([2, 0, 0, 1, 0, 3, 1, 0])  # class 4 has no sample
NAMES = ("ant", "bee", "cat", "dog", "eel")
TRAIN_COUNTS = np.array([500, 101, 100, 20, 19])
frequency = partial(Partition.by_frequency, LABELS, TRAIN_COUNTS)


def test_by_class_finds_the_samples_of_each_class():
    parts = Partition.by_class(LABELS, NAMES)
    assert parts.names == NAMES
    assert parts.counts.tolist() == [4, 2, 1, 1, 0]
    assert parts.indices(1).tolist() == [3, 6]
    assert parts.classes == ((0,), (1,), (2,), (3,), (4,))


def test_an_empty_class_keeps_its_part():
    parts = Partition.by_class(LABELS, NAMES)
    assert len(parts) == 5
    assert parts.indices(4).size == 0


def test_the_whole_is_one_part():
    parts = Partition.whole(8)
    assert parts.names == ("all",)
    assert parts.indices(0).tolist() == list(range(8))


@pytest.mark.parametrize(
    "parts",
    [
        Partition.whole(8),
        Partition.by_class(LABELS, NAMES),
        Partition.by_groups(LABELS, {"a": [0, 4], "b": [2]}, 5),
        Partition.from_index(np.array([0, LEFT_OUT, 1, 1, 0, 0, LEFT_OUT, 2]), ("x", "y", "z")),
    ],
    ids=["whole", "class", "groups", "index"],
)
def test_the_mean_over_the_samples_is_the_sum_over_parts_of_share_times_part_mean(parts):
    values = np.random.default_rng(0).normal(size=8)
    means = [values[parts.indices(p)].mean() if parts.counts[p] else 0.0 for p in range(len(parts))]
    inside = values[parts.part_of != LEFT_OUT]
    np.testing.assert_allclose(parts.shares @ means, inside.mean())


def test_shares_of_no_samples_are_zero():
    assert Partition.from_index(np.array([LEFT_OUT, LEFT_OUT]), ("x",)).shares.tolist() == [0.0]


def test_classes_in_no_group_are_left_out():
    parts = Partition.by_groups(LABELS, {"odd": [3, 1], "zero": [0]}, 5)
    assert parts.part_of.tolist() == [-1, 1, 1, 0, 1, 0, 0, 1]
    assert parts.classes == ((3, 1), (0,))


def test_many_medium_and_few_split_at_more_than_100_and_fewer_than_20():
    parts = Partition.by_frequency(LABELS, TRAIN_COUNTS, "many-medium-few")
    assert parts.names == ("many", "medium", "few")
    assert parts.classes == ((0, 1), (2, 3), (4,))


def test_a_group_by_count_without_classes_is_not_a_part():
    assert Partition.by_frequency(LABELS, np.full(5, 50), "many-medium-few").names == ("medium",)


def test_head_and_tail_follow_the_training_counts_not_the_labels():
    parts = Partition.by_frequency(LABELS, np.array([5, 9, 1, 9, 2]), "head-tail", ends=2)
    assert parts.classes == ((1, 3), (2, 4))
    assert parts.part_of.tolist() == [1, -1, -1, 0, -1, 0, 0, -1]


def test_of_equal_counts_the_lower_label_is_the_head():
    counts = np.random.default_rng(0).integers(0, 3, 20)  # a sort that is not stable takes others
    head, tail = np.flatnonzero(counts == 2)[0], np.flatnonzero(counts == 0)[-1]
    assert Partition.by_frequency(LABELS, counts, "head-tail").classes == ((head,), (tail,))


def test_selection_keeps_the_order_asked_for_and_leaves_the_rest_out():
    parts = Partition.by_class(LABELS, NAMES).select("dog, 0")
    assert parts.names == ("dog", "ant")
    assert parts.part_of.tolist() == [-1, 1, 1, -1, 1, 0, -1, 1]
    assert parts.classes == ((3,), (0,))


def test_a_part_whose_name_has_a_comma_is_selected_by_it():
    assert Partition.by_class(np.array([0, 1]), ("red, round", "blue")).select("red, round").names == ("red, round",)


def test_a_selection_of_a_selection_keeps_left_out_samples_out():
    assert Partition.by_class(LABELS, NAMES).select("0,1").select("1").part_of.tolist() == [
        *(-1, -1, -1, 0, -1, -1, 0, -1)
    ]


def test_a_name_wins_over_a_position():
    assert Partition.from_index(np.array([0, 1]), ("1", "0")).select("0").part_of.tolist() == [-1, 0]


def test_coarsening_classes_equals_grouping_them():
    coarse = Partition.by_class(LABELS, NAMES).coarsen({"x": ["ant", "dog"], "y": ["cat"]})
    direct = Partition.by_groups(LABELS, {"x": [0, 3], "y": [2]}, 5)
    assert coarse.part_of.tolist() == direct.part_of.tolist()
    assert (coarse.names, coarse.classes) == (direct.names, direct.classes)


def test_coarsening_keeps_left_out_samples_out():
    parts = Partition.from_index(np.array([LEFT_OUT, 0, 1]), ("x", "y")).coarsen({"both": ["x", "y"]})
    assert parts.part_of.tolist() == [LEFT_OUT, 0, 0]
    assert parts.classes == ()


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Partition.by_class(np.array([0, 5]), NAMES), DataError, (0, 4, 5)),
        (lambda: Partition.by_class(np.array([-1, 0]), NAMES), DataError, (0, 4, -1)),
        (lambda: Partition.by_class(np.array([0.0]), NAMES), DataError, ("labels", "float64")),
        (lambda: Partition.by_class(LABELS, ["a"] * 5), InputError, ("parts",)),
        (lambda: Partition.from_index(np.array([0, 2]), ("x", "y")), InputError, (-1, 1, 0, 2)),
        (lambda: Partition.from_index(np.array([-2]), ("x",)), InputError, (-2,)),
        (
            lambda: Partition.from_index(np.array([0.0, 1.0]), ("x", "y")),
            InputError,
            ("integers", "float64"),
        ),
        (lambda: Partition.from_index(np.array([[0]]), ("x",)), InputError, ("integers",)),
        (lambda: Partition.by_groups(LABELS, {}, 5), InputError, ("groups",)),
        (lambda: Partition.by_groups(LABELS, {"x": []}, 5), InputError, ("x",)),
        (lambda: Partition.by_groups(LABELS, {"x": [5]}, 5), InputError, (5, 0, 4)),
        (lambda: Partition.by_groups(LABELS, {"x": [True]}, 5), InputError, (True,)),
        (lambda: Partition.by_groups(LABELS, {"x": [1], "y": [1]}, 5), InputError, (1,)),
        (lambda: frequency("many-medium-few", many=10, few=12), InputError, ("many",)),
        (lambda: frequency("head-tail", ends=3), InputError, (1, 2, 5)),
        (lambda: frequency("head-tail", ends=0), InputError, (1, 2)),
        (lambda: Partition.by_class(LABELS, NAMES).select("fox"), InputError, ("fox",)),
        (lambda: Partition.by_class(LABELS, NAMES).select("5"), InputError, (5,)),
        (lambda: Partition.by_class(LABELS, NAMES).select("-1"), InputError, (-1,)),
        (lambda: Partition.by_class(LABELS, NAMES).select("0,ant"), InputError, ("ant",)),
        (lambda: Partition.by_class(LABELS, NAMES).coarsen({"x": ["fox"]}), InputError, ("fox",)),
        (
            lambda: Partition.by_class(LABELS, NAMES).coarsen({"x": ["bee"], "y": ["bee"]}),
            InputError,
            ("bee",),
        ),
        (lambda: Partition.by_class(LABELS, NAMES).coarsen({"x": []}), InputError, ("x",)),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(make, error, message):
    with refused(error, *message) as caught:
        make()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["a\0b", "half \ud83d"])
def test_a_group_whose_name_no_file_can_hold_is_refused_before_anything_is_computed(name):
    with pytest.raises(InputError, match=r"the name of a part .* holds NUL or half a surrogate pair"):
        Partition.by_groups(np.array([0, 1]), {name: [0], "rest": [1]}, 2)
