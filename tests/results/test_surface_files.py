"""Other programs' surfaces: files of each layout, made here from their documented names, are read and repaired."""

import dataclasses

import h5py
import numpy as np
import pytest
from foreign_files import directions, goldstein, plane_npz, tensors_of
from refusals import refused
from surfaces import squared_distance, three_classes, three_lines

from landscape.errors import InputError, StoreError
from landscape.results import Trajectory, store
from landscape.results.foreign import surface_files
from landscape.results.regroup import regroup, verdict_of

X, Y = np.linspace(-1, 1, 5), np.linspace(-2, 2, 9)


# tomgoldstein/loss-landscape, read


@pytest.mark.parametrize("y", [X, Y, X[:2], X[:1]], ids=["square", "tall", "flat", "one row"])
def test_a_plane_of_theirs_has_its_values_where_they_were_computed(tmp_path, y):
    found = surface_files.read(goldstein(tmp_path / "s.h5", X, y))
    x_of, y_of = np.meshgrid(found.xcoordinates, found.ycoordinates)
    np.testing.assert_allclose(found.loss[0], 0.5 + x_of**2 + 3 * y_of**2, rtol=1e-15)
    np.testing.assert_allclose(found.accuracy[0], 1 / (1.5 + x_of**2 + 3 * y_of**2), rtol=1e-15)
    assert found.computed.all()
    assert found.parts == ("train",)
    assert not found.is_line


def test_a_line_of_theirs_with_both_splits(tmp_path):
    found = surface_files.read(goldstein(tmp_path / "s.h5", X, splits=("train", "test")))
    assert found.is_line
    assert found.parts == ("train", "test")
    assert found.loss.shape == (2, 1, 5)
    np.testing.assert_array_equal(found.centre_loss, [0.5, 0.5])
    np.testing.assert_allclose(found.centre_accuracy, [1 / 1.5, 1 / 1.5])
    assert found.axes == ("x",)


def test_the_verdict_on_one_of_their_splits_keeps_what_was_remarked_on_the_file(tmp_path):
    found = surface_files.read(goldstein(tmp_path / "s.h5", X, splits=("train", "test")))
    found = dataclasses.replace(found, verdict=f"{found.verdict}; another remark")
    of_one = verdict_of(found, [0])
    assert of_one.endswith("; another remark")
    assert "augmentation unknown" in of_one


def test_what_they_had_not_computed_is_left_out_and_no_value(tmp_path):
    found = surface_files.read(goldstein(tmp_path / "s.h5", X, Y, left=(0, 7, 44)))
    assert np.argwhere(~found.computed).tolist() == [[0, 0], [1, 2], [8, 4]]
    np.testing.assert_array_equal(np.isnan(found.loss[0]), ~found.computed)
    np.testing.assert_array_equal(np.isnan(found.accuracy[0]), ~found.computed)
    assert "93.3 % of the points were computed" in found.verdict


def test_a_split_that_was_never_begun_is_no_part_and_a_loss_of_zero_is_a_loss(tmp_path):
    path = goldstein(tmp_path / "s.h5", X, loss=lambda x: x**2, test_loss=-np.ones(5), test_acc=-np.ones(5))
    found = surface_files.read(path)
    assert found.parts == ("train",)
    assert found.computed.all()
    assert found.lowest_loss == [0.0]


def test_a_point_counts_as_computed_where_all_its_splits_are(tmp_path):
    test_loss = np.array([1.0, 2, -1, 4, 5])
    found = surface_files.read(goldstein(tmp_path / "s.h5", X, test_loss=test_loss, test_acc=0 * test_loss))
    np.testing.assert_array_equal(found.computed[0], test_loss != -1)
    assert np.isnan(found.loss[:, 0, 2]).all()


def test_values_that_are_not_finite_stay_as_they_are(tmp_path):
    path = goldstein(tmp_path / "s.h5", X, loss=lambda x: {-1.0: np.nan, 1.0: np.inf}.get(x, 1.0))
    found = surface_files.read(path)
    np.testing.assert_array_equal(found.loss[0, 0], [np.nan, 1, 1, 1, np.inf])
    assert found.computed.all()
    assert "40 % of the computed losses are not finite" in found.verdict


def test_lengths_are_unknown_without_directions_and_known_with_them(tmp_path):
    """The file with the directions lies beside the surface under its own name, as theirs do, or is given."""
    fine = np.linspace(-1, 1, 21)
    path = goldstein(tmp_path / "s.h5", fine, fine, dir_file="elsewhere/net_weights_xnorm=filter.h5")
    bare = surface_files.read(path)
    assert np.isnan(bare.unit_length).all()
    assert np.isnan([bare.cosine, *bare.doubling_radius, *bare.worst_rise]).all()
    first, second = tensors_of(2.0), tensors_of(0.5, seed=1)
    directions(tmp_path / "net_weights_xnorm=filter.h5", first, second)
    found = surface_files.read(path, radius=0.75)
    flat = [np.concatenate([a.ravel() for a in axis if a.ndim]) for axis in (first, second)]
    np.testing.assert_allclose(found.unit_length, [2.0, 0.5], rtol=1e-12)
    assert found.cosine == pytest.approx(flat[0] @ flat[1], rel=1e-12)
    assert np.isfinite([*found.doubling_radius, *found.worst_rise]).all()
    assert found.radius == pytest.approx(0.75)
    other = directions(tmp_path / "other.h5", tensors_of(4.0), second)
    np.testing.assert_allclose(surface_files.read(path, directions=other).unit_length, [4.0, 0.5], rtol=1e-12)
    one = directions(tmp_path / "one.h5", first)
    with refused(InputError, "s.h5"):
        surface_files.read(path, directions=one)
    (tmp_path / "net_weights_xnorm=filter.h5").write_text("damaged")
    assert np.isnan(surface_files.read(path).unit_length).all()  # it was not asked for


@pytest.mark.parametrize(
    ("name", "policy"),
    [("a/m.t7_weights_xnorm=filter.h5", "keep"), ("m.t7_states.h5", "interpolate"), ("", "unknown"), ("x", "unknown")],
)
def test_what_was_done_with_running_statistics_is_in_the_name_of_their_directions(tmp_path, name, policy):
    assert surface_files.read(goldstein(tmp_path / "s.h5", X, dir_file=name)).batch_norm == policy


def test_eigenvalues_have_two_signs_for_not_computed(tmp_path):
    high = np.arange(45.0).reshape(5, 9)
    low = -high
    high.ravel()[3], low.ravel()[3] = -1, 1
    path = goldstein(tmp_path / "s.h5", X, Y, splits=(), min_eig=low, max_eig=high)
    found_low, found_high = surface_files.read_eigenvalues(path)
    expected = np.where(np.arange(45) == 3, np.nan, np.arange(45.0)).reshape(9, 5)
    np.testing.assert_array_equal(found_high, expected)
    np.testing.assert_array_equal(found_low, -expected)
    with pytest.raises(StoreError, match="with Hessian eigenvalues only: nothing to draw as a surface"):
        surface_files.read(path)


# tomgoldstein/loss-landscape, directions and paths

NET = {"conv.weight": np.arange(6.0).reshape(2, 3), "conv.bias": np.ones(3), "scale": np.array(2.0)}
STATES = ("conv.weight", "conv.bias", "bn.running_mean", "bn.num_batches_tracked", "scale")


def test_directions_of_weights_are_a_plane_through_the_networks_parameters(tmp_path):
    axes = tensors_of(2.0), tensors_of(1.0, seed=1)
    plane = surface_files.read_plane(directions(tmp_path / "m_weights_xnorm=filter.h5", *axes), NET)
    np.testing.assert_array_equal(plane.directions[0], np.concatenate([a.ravel() for a in axes[0]]))
    np.testing.assert_array_equal(plane.origin, [0, 1, 2, 3, 4, 5, 1, 1, 1, 2])
    assert plane.tensors == tuple(NET)
    assert plane.sizes.tolist() == [6, 3, 1]
    assert (plane.normalisation, plane.ignored) == ("filter", "none")
    assert plane.buffer_directions.shape == (2, 0)
    np.testing.assert_allclose(plane.unit_length, np.linalg.norm(plane.directions, axis=1))
    store.save(tmp_path / "plane.h5", plane)


def test_directions_of_states_move_running_statistics_and_no_counters(tmp_path):
    shapes = ((2, 3), (3,), (3,), (), ())
    axes = tensors_of(2.0, shapes=shapes), tensors_of(1.0, seed=1, shapes=shapes)
    path = directions(tmp_path / "m_states.h5", *axes)
    plane = surface_files.read_plane(path, NET, {"bn.running_mean": np.zeros(3)}, STATES)
    np.testing.assert_array_equal(plane.buffer_directions, [axis[2] for axis in axes])
    np.testing.assert_array_equal(plane.directions[1], np.concatenate([axes[1][i].ravel() for i in (0, 1, 4)]))
    with refused(InputError, 5, 3, "order"):
        surface_files.read_plane(path, NET)
    with refused(InputError, 3, 2, "state_dict"):
        surface_files.read_plane(path, NET, order=STATES[:2])


def test_directions_of_another_network_are_refused(tmp_path):
    path = directions(tmp_path / "d.h5", tensors_of(1.0))
    with refused(InputError, "conv.weight", 2, 3):
        surface_files.read_plane(path, NET | {"conv.weight": np.ones((3, 2))})


def test_principal_components_tell_the_variance_that_they_explain_and_what_they_ignore(tmp_path):
    axes = [[a if a.ndim > 1 else 0 * a for a in tensors_of(1.0, seed=s)] for s in (0, 1)]
    path = directions(
        tmp_path / "directions.h5", *axes, explained_variance_ratio_=[0.6, 0.3], singular_values_=[2.0, 1.0]
    )
    plane = surface_files.read_plane(path, NET)
    assert plane.axes == ("principal component 1", "principal component 2")
    assert plane.explained.tolist() == [0.6, 0.3]
    assert (plane.normalisation, plane.ignored) == ("none", "biasbn")
    surface = surface_files.read(goldstein(tmp_path / "s.h5", X, Y, dir_file="directions.h5"))
    assert surface.explained.tolist() == [0.6, 0.3]
    assert surface.axes == plane.axes


def test_a_path_in_their_lengths_is_laid_in_the_surfaces_coordinates(tmp_path):
    """Points x d1 + y d2; "cos" stores their inner products with d1 / |d1| and d2 / |d2|, "lstsq" x and y."""
    first, second = tensors_of(2.0), tensors_of(0.5, seed=1)
    directions(tmp_path / "d.h5", first, second)
    path = goldstein(tmp_path / "s.h5", X, Y, dir_file="d.h5")
    flat = [np.concatenate([a.ravel() for a in axis if a.ndim]) for axis in (first, second)]
    at = np.array([[1.0, -2.0], [0.5, 0.25], [0, 0]])
    points = at @ np.stack(flat)
    for name, x, y in (
        ("d.h5_proj_cos.h5", points @ flat[0] / 2.0, points @ flat[1] / 0.5),
        ("d.h5_proj_lstsq.h5", *at.T),
    ):
        with h5py.File(tmp_path / name, "w") as root:
            root["proj_xcoord"], root["proj_ycoord"] = x, y
        found = surface_files.with_path(surface_files.read(path), tmp_path / name)
        assert isinstance(found, Trajectory)
        np.testing.assert_allclose(found.mark_position, at, atol=1e-12)
        assert found.runs == (name.removesuffix(".h5"),)
        assert np.isnan(found.mark_loss).all()
        store.save(tmp_path / f"{name}.result.h5", found)
    with refused(StoreError, "with_path"):
        surface_files.read(tmp_path / "d.h5_proj_cos.h5")
    with refused(StoreError, "loss-landscape"):
        surface_files.read(tmp_path / "d.h5")
    (tmp_path / "d.h5").unlink()
    with refused(InputError, tmp_path / "d.h5_proj_cos.h5", "lengths"):
        surface_files.with_path(surface_files.read(path), tmp_path / "d.h5_proj_cos.h5")
    line = surface_files.read(goldstein(tmp_path / "line.h5", X))
    with pytest.raises(InputError, match="is a path in a plane, the surface is a line"):
        surface_files.with_path(line, tmp_path / "d.h5_proj_lstsq.h5")


# tomgoldstein/loss-landscape, written


def as_their_plotters_read(path, name):
    """Coordinates and values as plot_2D.py and plot_1D.py take them from a file."""
    with h5py.File(path, "r") as f:
        x, z = np.array(f["xcoordinates"][:]), np.array(f[name][:])
        if z.ndim == 1:
            return x, None, z
        x, y = np.meshgrid(x, np.array(f["ycoordinates"][:]))
        return x, y, z


@pytest.mark.parametrize(("nx", "ny"), [(5, 5), (9, 4)])
def test_their_plotters_find_our_whole_loss_in_the_right_cells(tmp_path, nx, ny):
    from matplotlib.figure import Figure

    ours = three_classes(nx, ny)
    surface_files.write_goldstein(tmp_path / "s.h5", ours)
    x, y, z = as_their_plotters_read(tmp_path / "s.h5", "train_loss")
    each = [0.1 * (p + 1) + (p + 1) * squared_distance(x, y) for p in range(3)]
    np.testing.assert_allclose(z, np.average(each, axis=0, weights=[9, 5, 1]), rtol=1e-12)
    Figure().subplots().contour(x, y, z)  # which refuses shapes that do not fit
    _, _, percent = as_their_plotters_read(tmp_path / "s.h5", "train_acc")
    np.testing.assert_allclose(percent, 100 * regroup(ours, "all").accuracy[0], rtol=1e-12)
    with h5py.File(tmp_path / "s.h5", "r") as root:
        assert "rows of y" in root["train_loss"].attrs["array_order"]
        assert root["dir_file"][()] == b""


def test_their_file_read_written_and_read_again_is_the_same_and_repaired(tmp_path):
    first = surface_files.read(goldstein(tmp_path / "theirs.h5", X, Y, splits=("train", "test"), left=(3, 20)))
    surface_files.write_goldstein(tmp_path / "ours.h5", first)
    again = surface_files.read(tmp_path / "ours.h5")
    assert again.parts == first.parts
    np.testing.assert_array_equal(again.loss, first.loss)
    np.testing.assert_allclose(again.accuracy, first.accuracy, rtol=1e-15)
    np.testing.assert_array_equal(again.computed, first.computed)
    _, _, z = as_their_plotters_read(tmp_path / "theirs.h5", "train_loss")
    _, _, repaired = as_their_plotters_read(tmp_path / "ours.h5", "train_loss")
    assert (z.shape, repaired.shape) == ((5, 9), (9, 5))
    np.testing.assert_array_equal(repaired == -1, ~first.computed)


def test_one_file_serves_both_and_keeps_every_class(tmp_path):
    ours = three_classes(kind=Trajectory, marks=("a", "b"))
    surface_files.write_goldstein(tmp_path / "s.h5", ours)
    assert not surface_files.is_foreign(tmp_path / "s.h5")
    again = store.load(tmp_path / "s.h5")
    assert isinstance(again, Trajectory)
    for item in dataclasses.fields(ours):
        np.testing.assert_array_equal(getattr(again, item.name), getattr(ours, item.name), err_msg=item.name)


def test_a_line_and_the_test_split_are_written_under_their_names(tmp_path):
    lines = three_lines(9, provenance={"split": "test"})
    surface_files.write_goldstein(tmp_path / "s.h5", lines)
    _, y, z = as_their_plotters_read(tmp_path / "s.h5", "test_loss")
    assert y is None
    np.testing.assert_array_equal(z, regroup(lines, "all").loss[0, 0])
    with h5py.File(tmp_path / "s.h5", "r") as root:
        assert "train_loss" not in root


def test_a_surface_that_does_not_tell_its_samples_has_no_whole(tmp_path):
    unknown = three_classes(n_samples=np.full(3, np.nan))
    with pytest.raises(InputError, match="natural weights need the samples of each part"):
        surface_files.write_goldstein(tmp_path / "s.h5", unknown)
    assert list(tmp_path.iterdir()) == []


# dnn-mode-connectivity and Landscaper


@pytest.mark.parametrize("ny", [4, 6])
def test_the_plane_of_a_curve_is_a_trajectory_in_lengths(tmp_path, ny):
    found = surface_files.read(plane_npz(tmp_path / "plane.npz", ny=ny))
    assert isinstance(found, Trajectory)
    x, y = np.meshgrid(found.xcoordinates, found.ycoordinates)
    np.testing.assert_allclose(found.loss, [0.1 + x**2 + 2 * y, 0.2 + 2 * x**2 + 4 * y], rtol=1e-12)
    np.testing.assert_allclose(found.accuracy[0], 1 / (1 + x**2), rtol=1e-12)
    assert found.parts == ("train", "test")
    assert (found.unit_length.tolist(), found.cosine, found.batch_norm) == ([1, 1], 0, "reestimate")
    assert found.runs == ("curve", "bend")
    assert found.marks[:2] == ("curve 0", "curve 1")
    np.testing.assert_array_equal(found.mark_position[found.mark_run == 1], [[0, 0], [1.5, 2], [3, 0]])
    assert (found.mark_distance == 0).all()
    store.save(tmp_path / "plane.h5", found)


def test_of_more_than_three_control_points_the_distance_from_the_plane_is_unknown(tmp_path):
    path = plane_npz(tmp_path / "plane.npz", bend_coordinates=np.zeros((4, 2)))
    assert np.isnan(surface_files.read(path).mark_distance).all()


def test_the_losses_along_a_curve_are_a_line_with_a_barrier(tmp_path):
    t = np.linspace(0, 1, 11)
    nll = 1 + t + 4 * t * (1 - t)
    arrays = {"ts": t, "dl": np.r_[0, np.full(10, 0.5)], "tr_nll": nll, "tr_acc": 100 * t, "tr_loss": nll + 1}
    np.savez(tmp_path / "curve.npz", **arrays, tr_loss_min=1.0)
    found = surface_files.read(tmp_path / "curve.npz")
    assert found.is_line
    assert found.barrier == pytest.approx([1.0])
    assert found.provenance["length"] == pytest.approx(5.0)
    np.testing.assert_allclose(found.accuracy[0, 0], t, rtol=1e-15)


@pytest.mark.parametrize("line", [False, True])
def test_landscapers_first_direction_is_x(tmp_path, line):
    a, b = np.linspace(-1, 1, 5), np.linspace(-2, 2, 5)
    values = a**2 if line else a[:, None] ** 2 + 3 * b
    np.savez(tmp_path / "s.npz", loss=values, coordinates=[a] if line else [a, b])
    found = surface_files.read(tmp_path / "s.npz")
    x, y = np.meshgrid(found.xcoordinates, found.ycoordinates)
    np.testing.assert_allclose(found.loss[0], x**2 + 3 * y, atol=1e-15)
    assert found.is_line == line
    assert found.verdict.endswith("steps short of the coordinates that it writes")
    assert np.isnan(found.accuracy).all()


def test_three_directions_are_not_drawn(tmp_path):
    np.savez(tmp_path / "s.npz", loss=np.zeros((3, 3, 3)), coordinates=np.zeros((3, 3)))
    with refused(StoreError, 3):
        surface_files.read(tmp_path / "s.npz")
