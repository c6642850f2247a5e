"""Figures of distances, looked at through the artists they hold."""

import dataclasses

import numpy as np
import pytest
from results_of_all_kinds import distances

from landscape import plots
from landscape.errors import InputError
from landscape.plots.figures import distances as distances_figures

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
    order = np.ix_(*[distances_figures.clustered(LINE)] * 2)
    np.testing.assert_allclose(image.get_array(), np.array([[0, 0.5, 1], [1, 0, 0.5], [0, 0, 0]])[order])
    assert image.get_clim() == (0, 1)
    written = ["0", "0.3", "0.6", "4e-9", "0", "2e-9", "0", "0", "0"]
    assert [text.get_text() for text in image.axes.texts] == np.array(written).reshape(3, 3)[order].ravel().tolist()
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


def test_a_plane_of_points_keeps_distances_that_a_plane_can_have():
    rng = np.random.default_rng(0)
    places = rng.normal(size=(6, 2)) * [3, 1]
    between = np.linalg.norm(places[:, None] - places, axis=-1)
    found, shares = distances_figures.scaled(between)
    np.testing.assert_allclose(np.linalg.norm(found[:, None] - found, axis=-1), between, atol=1e-12)
    assert shares.sum() == pytest.approx(1)
    assert shares[0] > shares[1]
    in_three = rng.normal(size=(6, 3))
    in_three -= in_three.mean(0)
    squares = np.linalg.svd(in_three, compute_uv=False) ** 2  # principal components, another way to the same plane
    _, shares = distances_figures.scaled(np.linalg.norm(in_three[:, None] - in_three, axis=-1))
    np.testing.assert_allclose(shares, squares[:2] / squares.sum())


def test_points_in_one_place_are_rings_around_each_other():
    matrix = np.array([[[0.0, 0.0, 5.0], [0.0, 0.0, 5.0], [5.0, 5.0, 0.0]]])
    fig = plots.point_map(dataclasses.replace(distances(runs=1), euclidean=matrix))
    first, second, third = fig.axes[0].lines
    assert second.get_markersize() > first.get_markersize() == third.get_markersize()
    assert second.get_markerfacecolor() == "none"
    assert np.abs(first.get_xdata()[0] - third.get_xdata()[0]) == pytest.approx(5)


def test_barriers_between_all_points_and_predicted_rises_have_maps():
    found = distances()
    with pytest.raises(InputError, match="neither barriers nor predicted rises"):
        plots.barrier_maps(dataclasses.replace(found, barrier=found.barrier * np.nan))
    barrier = np.arange(54.0).reshape(2, 3, 3, 3)
    rise = np.array([[[0, -1, 2], [3, 0, 4], [5, 6, 0]]] * 2, dtype=float)
    fig = plots.barrier_maps(dataclasses.replace(found, barrier=barrier, hessian_rise=rise))
    order = np.ix_(*[distances_figures.clustered(found.euclidean.mean(0))] * 2)
    maps = {ax.get_title(): ax.images[0] for ax in fig.axes if ax.images}
    assert len(maps) == 4
    for title, image in maps.items():
        values = (
            rise
            if "Hessian" in title
            else barrier[..., found.parts.index(title.removeprefix("barrier of ").rsplit(" (", 1)[0])]
        )
        np.testing.assert_allclose(image.get_array(), values.mean(0)[order])
    assert len({image.get_clim() for title, image in maps.items() if "barrier" in title}) == 1


def test_maps_of_one_run_have_the_errors_over_samples_of_losses_and_barriers():
    barrier = np.arange(27.0).reshape(1, 3, 3, 3) * (1 - np.eye(3))[..., None]
    plain = dataclasses.replace(distances(runs=1), barrier=barrier)
    errors = np.array([[[0.125, 0.25, np.nan]] * 3])
    found = dataclasses.replace(plain, loss_stderr=errors, barrier_stderr=barrier / 4)
    losses, worst = (ax for ax in plots.cross_losses(found).axes if ax.images)
    assert [t.get_text().partition("\n")[2] for t in losses.texts] == ["±0.1", "±0.2", ""] * 3
    highest = 0.25 * barrier[0].max(axis=1)
    assert [t.get_text().partition("\n")[2] for t in worst.texts] == [f"±{v:.1g}" for v in highest.ravel()]
    first = plots.barrier_maps(found, ["class 0"]).axes[0]
    written = [t.get_text().partition("\n")[2] for t in first.texts]
    assert sorted(written) == sorted(f"±{v / 4:.1g}" if v else "" for v in barrier[0, ..., 0].ravel())
    assert not any("±" in t.get_text() for ax in plots.cross_losses(plain).axes for t in ax.texts)
    several = dataclasses.replace(distances(), loss_stderr=np.ones((2, 3, 3)))
    spread = several.loss.std(axis=0, ddof=1).ravel()
    texts = [t.get_text().partition("\n")[2] for t in plots.cross_losses(several).axes[0].texts]
    assert [float(text.removeprefix("±")) for text in texts] == pytest.approx(spread, rel=0.5)


def test_a_barrier_of_zero_to_all_other_points_has_the_largest_of_their_errors():
    errors = np.array([[0, 1, 2], [1, 0, 4], [2, 4, 0]]) / 8
    found = dataclasses.replace(
        distances(runs=1), barrier=np.zeros((1, 3, 3, 3)), barrier_stderr=np.repeat(errors[None, ..., None], 3, axis=-1)
    )
    ax = [ax for ax in plots.cross_losses(found).axes if ax.images][1]
    assert [t.get_text() for t in ax.texts] == [f"0\n±{v:.1g}" for v in (0.25, 0.5, 0.5) for _ in range(3)]


def test_a_map_of_one_run_has_the_errors_over_samples_of_fisher_weighted_distances():
    plain = distances(runs=1)
    found = dataclasses.replace(plain, fisher_stderr=np.full((1, 3, 3), 0.25) * (1 - np.eye(3)))
    fig = plots.distance_maps(found)
    (ax,) = (ax for ax in fig.axes if ax.get_title().startswith("Fisher-weighted"))
    written = [t.get_text().partition("\n")[2] for t in ax.texts]
    assert sorted(written) == [""] * 3 + ["±0.2"] * 6
    assert "one standard error over samples" in fig.get_suptitle()
    assert "standard error" not in plots.distance_maps(plain).get_suptitle()
