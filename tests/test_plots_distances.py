"""Figures of distances, looked at through the artists they hold."""

import dataclasses

import numpy as np
import pytest
from results_of_all_kinds import distances

from landscape import plots

LINE = np.abs(np.subtract.outer(np.arange(3.0), np.arange(3.0)))


def of_fisher(matrix):
    """Distances of one run with these Fisher-weighted ones, whose points stay in their order."""
    found = distances(runs=1)
    return dataclasses.replace(found, fisher=np.array([matrix]), euclidean=LINE[None])


def images(fig):
    return {ax.get_title().split("\n")[0]: ax.images[0] for ax in fig.axes if ax.images}


def test_a_row_of_fisher_weighted_distances_has_colours_of_its_own_and_its_numbers():
    matrix = [[0, 0.3, 0.6], [4e-9, 0, 2e-9], [0, 0, 0]]
    fig = plots.distance_maps(of_fisher(matrix))
    image = images(fig)["Fisher-weighted distance"]
    order = np.ix_(*[plots.distances.clustered(LINE)] * 2)
    np.testing.assert_allclose(image.get_array(), np.array([[0, 0.5, 1], [1, 0, 0.5], [0, 0, 0]])[order])
    assert image.get_clim() == (0, 1)
    assert [text.get_text() for text in image.axes.texts] == [f"{v:.3g}" for v in np.array(matrix)[order].ravel()]
    np.testing.assert_allclose(images(fig)["Euclidean distance"].get_array(), LINE)


def test_each_bar_of_colours_has_a_name():
    found = dataclasses.replace(distances(), barrier=np.ones((2, 3, 3, 3)))
    names = [ax.get_ylabel() for ax in plots.distance_maps(found).axes if not ax.images]
    assert names == ["distance", "distance", "share of the row's largest", "cosine"]
    assert [ax.get_ylabel() for ax in plots.cross_losses(found).axes[2:]] == ["mean loss", "rise of the loss"]


def test_rows_and_columns_say_in_brackets_how_often_a_part_was_trained_on():
    ax = plots.cross_losses(distances()).axes[0]
    assert [t.get_text() for t in ax.get_xticklabels()] == ["class 0 (500)", "class 1 (50)", "class 2 (5)"]
    assert [t.get_text() for t in ax.get_yticklabels()] == ["class 0 (500)", "class 2 (5)", "last"]


def test_curves_that_lie_on_one_another_are_all_seen():
    found = distances(runs=1)
    same = np.repeat(found.along_training[:, :, :1], 3, axis=2)
    fig = plots.distances_along(dataclasses.replace(found, along_training=same))
    lines = fig.axes[0].lines
    np.testing.assert_array_equal(lines[0].get_ydata(), lines[2].get_ydata())
    assert lines[0].get_linestyle() == "-"  # below the others, which leave gaps
    assert len({line.get_linestyle() for line in lines}) == 3
    assert [line.get_zorder() for line in lines] == sorted(line.get_zorder() for line in lines)
    assert [t.get_text() for t in fig.legends[0].get_texts()] == [line.get_label() for line in lines]


@pytest.mark.parametrize("value", [0.0, np.nan])
def test_rows_without_a_distance_are_drawn(value):
    fig = plots.distance_maps(of_fisher(np.full((3, 3), value)))
    fig.draw_without_rendering()
    assert np.ma.getmaskarray(images(fig)["Fisher-weighted distance"].get_array()).all() == np.isnan(value)
