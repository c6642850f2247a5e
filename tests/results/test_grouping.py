"""Groups of classes by their numbers of training samples, at the thresholds themselves."""

import numpy as np

from landscape.results.grouping import Thresholds, head_tail, many_medium_few


def test_default_thresholds_are_those_of_open_long_tailed_recognition():
    """Liu et al. 2019: many-shot classes have more than 100 training images, few-shot ones fewer than 20."""
    found = many_medium_few(np.array([19, 101, 100, 20, 0, 21]), Thresholds())
    assert {name: classes.tolist() for name, classes in found.items()} == {
        "many": [1],
        "medium": [2, 3, 5],
        "few": [0, 4],
    }
    assert list(many_medium_few(np.array([5, 7]), Thresholds())) == ["few"]


def test_of_classes_with_equal_counts_the_lower_label_is_nearer_the_head():
    counts = np.array([3, 9, 9, 1, 1, 5])
    for ends, head, tail in ((1, [1], [4]), (2, [1, 2], [3, 4]), (3, [1, 2, 5], [0, 3, 4])):
        found = head_tail(counts, Thresholds(ends=ends))
        assert (found["head"].tolist(), found["tail"].tolist()) == (head, tail)
    assert [classes.tolist() for classes in head_tail(counts, Thresholds()).values()] == [[1], [4]]
