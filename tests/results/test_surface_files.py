"""Other programs' surfaces: files of each layout, made here from their documented names, are read and repaired."""

import csv
import dataclasses
import errno
import json
import xml.etree.ElementTree as ElementTree
from base64 import b64decode

import h5py
import numpy as np
import pytest
from foreign_files import directions, goldstein, plane_npz, tensors_of
from surfaces import UNITS, grid, paraboloid, squared_distance, surface, three_classes, three_lines

from landscape.errors import InputError, StoreError
from landscape.results import Distances, Surface, Trajectory, disk, store
from landscape.results.foreign import interop, surface_exports, surface_files
from landscape.results.foreign.surface_arrays import read_npz
from landscape.results.regroup import regroup

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
    with pytest.raises(InputError, match=r"s\.h5 is a plane, and its directions are one"):
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
    with pytest.raises(InputError, match=r"has 5 tensors, the network 3 parameters; pass order= for a file of states"):
        surface_files.read_plane(path, NET)
    with pytest.raises(InputError, match="3 parameters and 2 entries in its state_dict"):
        surface_files.read_plane(path, NET, order=STATES[:2])


def test_directions_of_another_network_are_refused(tmp_path):
    path = directions(tmp_path / "d.h5", tensors_of(1.0))
    with pytest.raises(InputError, match=r"conv\.weight has shape \(2, 3\), in the network \(3, 2\)"):
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
    with pytest.raises(StoreError, match=r"holds a projected path .* give the surface, and this file to with_path\(\)"):
        surface_files.read(tmp_path / "d.h5_proj_cos.h5")
    with pytest.raises(StoreError, match="holds directions of tomgoldstein/loss-landscape, no surface"):
        surface_files.read(tmp_path / "d.h5")
    (tmp_path / "d.h5").unlink()
    with pytest.raises(InputError, match="holds lengths, and the surface does not tell its own"):
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
    with pytest.raises(StoreError, match=r"loss has shape \(3, 3, 3\) .* lines and square planes are read"):
        surface_files.read(tmp_path / "s.npz")


# Damaged files and files of other kinds


def test_files_of_other_kinds_say_what_they_are(tmp_path):
    for name, write, line in (
        ("none.h5", lambda p: None, "there is no file"),
        ("text.h5", lambda p: p.write_text("x"), "is neither HDF5 nor .npz"),
        ("empty.h5", lambda p: p.touch(), "is neither HDF5 nor .npz"),
        ("folder.h5", lambda p: p.mkdir(), "cannot be read: Is a directory"),
        ("other.h5", lambda p: h5py.File(p, "w").close(), "is an HDF5 file of another program"),
        ("zip.npz", lambda p: np.savez(p, a=np.ones(2), b=np.ones(2)), "holds a, b: a plane of dnn-mode"),
        ("pickle.npz", lambda p: np.savez(p, a=np.array([{}], dtype=object)), "it holds object"),
    ):
        path = tmp_path / name
        write(path)
        with pytest.raises(StoreError, match=line) as caught:
            surface_files.read(path)
        assert name in str(caught.value)
    assert not surface_files.is_foreign(tmp_path / "text.h5")
    assert not surface_files.is_foreign(tmp_path / "none.h5")
    assert surface_files.is_foreign(tmp_path / "other.h5")
    store.save(tmp_path / "ours.h5", three_classes())
    assert not surface_files.is_foreign(tmp_path / "ours.h5")


def test_a_checkpoint_is_an_archive_but_no_surface(tmp_path):
    import torch

    torch.save({"w": torch.zeros(3)}, tmp_path / "model.pt")
    with pytest.raises(StoreError, match=r"model\.pt "):
        surface_files.read(tmp_path / "model.pt")


@pytest.mark.parametrize("make", [lambda p: goldstein(p / "f", X, Y), lambda p: plane_npz(p / "f.npz")])
def test_a_file_that_ends_too_early_or_has_a_wrong_byte_is_refused_or_read_but_never_crashes(tmp_path, make):
    whole = make(tmp_path).read_bytes()
    path = tmp_path / "damaged"
    refused = []
    for cut in range(9, len(whole), max(1, len(whole) // 40)):
        damaged = bytearray(whole)
        damaged[cut] ^= 0xFF
        for content in (whole[:cut], bytes(damaged)):
            path.write_bytes(content)
            try:
                surface_files.read(path)
            except (StoreError, InputError) as error:
                refused.append(str(error))
    assert len(refused) > 30
    assert not any("\n" in line for line in refused)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"train_loss": np.ones((5, 8))}, r"train_loss has \(5, 8\) values, its coordinates ask for 9 rows of 5"),
        ({"xcoordinates": np.ones((5, 1))}, "xcoordinates must be finite numbers in one row"),
        ({"xcoordinates": np.array([0, 1, np.nan, 2, 3])}, "xcoordinates must be finite numbers in one row"),
        ({"ycoordinates": np.zeros(0)}, "ycoordinates must be finite numbers in one row"),
        ({"train_loss": "text"}, "train_loss must be an array of numbers"),
        ({"train_acc": np.ones(3)}, r"train_acc has \(3,\) values"),
    ],
)
def test_arrays_that_do_not_fit_each_other_are_refused(tmp_path, changes, line):
    path = goldstein(tmp_path / "s.h5", X, Y)
    with h5py.File(path, "a") as root:
        for name, values in changes.items():
            del root[name]
            root[name] = values
    with pytest.raises(StoreError, match=line):
        surface_files.read(path)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"grid": np.zeros((4, 3, 2))}, r"grid has shape \(4, 3, 2\), alphas and betas ask for \(4, 4, 2\)"),
        ({"tr_nll": None, "te_nll": None}, "has neither tr_nll nor te_nll"),
        ({"tr_acc": None}, "tr_acc is missing"),
        ({"te_nll": np.zeros((4, 3))}, r"te_nll has shape \(4, 3\)"),
        ({"curve_coordinates": np.zeros(3)}, "curve_coordinates must be pairs of numbers"),
    ],
)
def test_a_plane_whose_arrays_do_not_fit_is_refused(tmp_path, changes, line):
    with pytest.raises(StoreError, match=line):
        read_npz(plane_npz(tmp_path / "plane.npz", **changes))


@pytest.mark.parametrize(
    ("axes", "extra", "line"),
    [
        ((), {"x": 1.0}, "has no group xdirection"),
        ((tensors_of(1.0), tensors_of(1.0)[:2]), {}, "xdirection and ydirection are not of one network"),
        ((["text"],), {}, "0 must be an array of numbers"),
        ((tensors_of(1.0), tensors_of(1.0)), {"explained_variance_ratio_": [1.0]}, "not of one network"),
    ],
)
def test_directions_that_cannot_be_used_are_refused(tmp_path, axes, extra, line):
    with pytest.raises(StoreError, match=line):
        surface_files.read_directions(directions(tmp_path / "d.h5", *axes, **extra))


# What goes out


WRITERS = {
    "goldstein": surface_files.write_goldstein,
    "vtk": surface_exports.write_vtk,
    "npz": surface_exports.write_npz,
    "csv": lambda path, result, overwrite=False: interop.to_csv(result, path, overwrite=overwrite),
}


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_a_file_is_replaced_only_when_told_and_never_half_written(tmp_path, write):
    path = tmp_path / "out"
    write(path, three_classes())
    first = path.read_bytes()
    path.write_bytes(first + b" ")
    with pytest.raises(StoreError, match="exists: pass overwrite=True"):
        write(path, three_classes())
    assert path.read_bytes() == first + b" "
    write(path, three_classes(), overwrite=True)
    assert not path.read_bytes().endswith(b" ")
    with pytest.raises(StoreError, match="cannot be written: No such file or directory"):
        write(tmp_path / "none" / "out", three_classes())
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_a_file_of_another_kind_is_kept_even_when_told_to_replace(tmp_path, write):
    path = tmp_path / "thesis"
    path.write_bytes(b"my work\0")
    with pytest.raises(StoreError, match="thesis is a file of another kind and is kept: choose another file"):
        write(path, three_classes(), overwrite=True)
    assert path.read_bytes() == b"my work\0"


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_a_folder_that_is_read_only_is_named(tmp_path, monkeypatch, write):
    def refuse(path, mode="r"):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(disk, "open", refuse, raising=False)  # root writes into any folder
    with pytest.raises(StoreError, match=r"out cannot be written: Permission denied; check its folder"):
        write(tmp_path / "out", surface(grid(X), np.ones((1, 1, 5))))
    assert list(tmp_path.iterdir()) == []


def decoded(array):
    """A DataArray of VTK's XML: base64 of the length in bytes and the numbers."""
    content = b64decode(array.text)
    assert int.from_bytes(content[:8], "little") == len(content) - 8
    kind = {"Float64": "<f8", "Int64": "<i8", "UInt8": "u1"}[array.get("type")]
    values = np.frombuffer(content[8:], dtype=kind)
    return values.reshape(-1, int(array.get("NumberOfComponents", 1)))


def arrays_of(path, section):
    piece = ElementTree.parse(path).getroot()[0][0]
    return piece, {a.get("Name"): decoded(a) for a in piece.find(section)}


@pytest.mark.parametrize(("nx", "ny"), [(5, 5), (9, 4), (1, 3)])
def test_a_vtk_grid_of_any_sides_holds_every_part(tmp_path, nx, ny):
    ours = three_classes(nx, ny, parts=('<a> & "b"', "b", "c"))
    assert surface_exports.write_vtk(tmp_path / "s.vts", ours) is None
    piece, data = arrays_of(tmp_path / "s.vts", "PointData")
    assert piece.get("Extent") == f"0 {nx - 1} 0 {ny - 1} 0 0"
    np.testing.assert_array_equal(data['loss <a> & "b"'][:, 0], ours.loss[0].ravel())
    np.testing.assert_array_equal(data["accuracy c"][:, 0], ours.accuracy[2].ravel())
    points = arrays_of(tmp_path / "s.vts", "Points")[1]["Points"].reshape(ny, nx, 3)
    np.testing.assert_array_equal(points[:, 0, 1], ours.ycoordinates)
    np.testing.assert_array_equal(points[0, :, 0], ours.xcoordinates)
    np.testing.assert_array_equal(points[:, :, 2], regroup(ours, "all").loss[0])


def test_holes_of_a_vtk_grid_are_nan_hidden_and_leave_it_its_bounds(tmp_path):
    computed = np.ones((4, 5), dtype=bool)
    computed[1, 2] = False
    of = grid(X, np.linspace(0, 3, 4), computed=computed)
    loss = paraboloid(of, lowest=0.0)
    loss[0, 0, 0], loss[0, 3, 3] = np.nan, np.inf
    ours = surface(of, loss)
    for log, holes in ((False, [0, 7, 18]), (True, [0, 2, 7, 18])):  # at the centre the loss is 0, whose log is none
        surface_exports.write_vtk(tmp_path / "s.vts", ours, log=log, overwrite=True)
        _, data = arrays_of(tmp_path / "s.vts", "PointData")
        assert np.flatnonzero(data["vtkGhostType"][:, 0]).tolist() == holes
        np.testing.assert_array_equal(data["loss class 0"][:, 0], ours.loss[0].ravel())
        heights = arrays_of(tmp_path / "s.vts", "Points")[1]["Points"][:, 2]
        shown = np.delete(ours.loss[0].ravel(), holes)
        np.testing.assert_array_equal(np.delete(heights, holes), np.log10(shown) if log else shown)
        assert np.isfinite(heights).all()


def test_the_height_may_be_one_parts_loss(tmp_path):
    ours = three_classes()
    surface_exports.write_vtk(tmp_path / "s.vts", ours, part="class 2")
    heights = arrays_of(tmp_path / "s.vts", "Points")[1]["Points"][:, 2]
    np.testing.assert_array_equal(heights, ours.loss[2].ravel())
    unknown = dataclasses.replace(ours, n_samples=np.full(3, np.nan))
    surface_exports.write_vtk(tmp_path / "u.vts", unknown)
    heights = arrays_of(tmp_path / "u.vts", "Points")[1]["Points"][:, 2]
    np.testing.assert_array_equal(heights, ours.loss[0].ravel())
    with pytest.raises(InputError, match="no part 'cat'; there are class 0, class 1, class 2"):
        surface_exports.write_vtk(tmp_path / "t.vts", ours, part="cat")


def test_the_marks_of_a_trajectory_are_a_line_for_each_run_at_their_own_losses(tmp_path):
    ours = three_classes(kind=Trajectory, marks=tuple("abcde"))
    path = surface_exports.write_vtk(tmp_path / "s.vts", ours, part="class 1")
    assert path == tmp_path / "s.marks.vtp"
    piece, data = arrays_of(path, "PointData")
    assert (piece.get("NumberOfPoints"), piece.get("NumberOfLines"), piece.get("NumberOfVerts")) == ("5", "2", "0")
    np.testing.assert_array_equal(data["loss class 0"][:, 0], ours.mark_loss[:, 0])
    np.testing.assert_array_equal(arrays_of(path, "Points")[1]["Points"][:, 2], ours.mark_loss[:, 1])
    lines = arrays_of(path, "Lines")[1]
    assert lines["connectivity"][:, 0].tolist() == [0, 2, 4, 1, 3]
    assert lines["offsets"][:, 0].tolist() == [3, 5]
    single = surface_exports.write_vtk(tmp_path / "m.vts", three_lines(5, marks=("a", "b")))
    assert arrays_of(single, "Verts")[1]["connectivity"][:, 0].tolist() == [0, 1]


def test_an_archive_holds_every_field_and_needs_no_pickle(tmp_path):
    ours = three_lines(5, kind=Trajectory, marks=("a",))
    ours = dataclasses.replace(ours, mark_policy_loss=2 * ours.mark_loss)
    surface_exports.write_npz(tmp_path / "s.npz", ours)
    with np.load(tmp_path / "s.npz", allow_pickle=False) as archive:
        for item in dataclasses.fields(ours):
            value = getattr(ours, item.name)
            if value is None:
                assert item.name not in archive
            elif item.name != "provenance":
                np.testing.assert_array_equal(archive[item.name], value, err_msg=item.name)
        assert json.loads(str(archive["provenance"])) == ours.provenance
        assert str(archive["kind"]) == "trajectory"
    surface_exports.write_npz(tmp_path / "plain.npz", three_classes())
    with np.load(tmp_path / "plain.npz") as archive:
        assert "barrier" not in archive


def test_the_table_of_a_surface_has_a_row_for_each_part_and_point_and_mark(tmp_path):
    ours = three_classes(3, 3, kind=Trajectory, marks=("start, 0", "end"))
    interop.to_csv(ours, tmp_path / "s.csv")
    with open(tmp_path / "s.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3 * (9 + 2)
    row = next(r for r in rows if (r["part"], r["x"], r["y"]) == ("class 1", "1.0", "-2.0"))
    assert (float(row["loss"]), row["computed"], row["mark"]) == (ours.loss[1, 0, 2], "True", "")
    mark = next(r for r in rows if (r["part"], r["mark"]) == ("class 2", "start, 0"))
    assert (float(mark["loss"]), float(mark["x"])) == (ours.mark_loss[0, 2], -0.5)
    found = json.loads(interop.to_json(ours))
    assert found["parts"][1]["centre_loss"] == ours.centre_loss[1]
    assert found["parts"][1]["worst_rise"] is None  # nan, as the grid is too coarse
    assert found["arrays"]["loss"] == {"axes": ["part", "y", "x"], "values": ours.loss.tolist()}
    assert found["arrays"]["mark_epoch"]["values"] == [0.0, 1.0]


def test_pairs_and_their_names_are_told_apart_in_the_long_table(tmp_path):
    pairs = np.arange(4.0).reshape(1, 2, 2)
    result = Distances(
        runs=("seed 0",),
        points=("head", "tail"),
        parts=("a",),
        n_samples=np.array([3]),
        train_counts=np.array([9]),
        **dict.fromkeys(("euclidean", "cosine", "filter_normalised", "fisher"), pairs),
        barrier=pairs[..., None],
        **dict.fromkeys(("norm", "point_epoch"), np.ones((1, 2))),
        loss=np.full((1, 2, 1), np.nan),
        accuracy=np.ones((1, 2, 1)),
        epoch=np.array([5.0]),
        along_training=np.ones((1, 1, 2)),
        source="memory bank",
        parameters="encoder",
        size=7,
    )
    interop.to_csv(result, tmp_path / "d.csv")
    with open(tmp_path / "d.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    (row,) = (r for r in rows if r["field"] == "fisher" and (r["point"], r["point_2"]) == ("head", "tail"))
    assert (row["run"], row["value"], row["part"]) == ("seed 0", "1.0", "")
    (row,) = (r for r in rows if r["field"] == "along_training" and r["point"] == "tail")
    assert row["epoch"] == "5.0"
    assert json.loads(interop.to_json(result))["arrays"]["loss"]["values"] == [[[None], [None]]]


def test_huge_and_tiny_losses_survive_every_way_out(tmp_path):
    of = grid(X, X)
    loss = np.full((1, 5, 5), 1e300)
    loss[0, 0] = 5e-324
    ours = surface(of, loss)
    surface_files.write_goldstein(tmp_path / "g.h5", ours)
    again = surface_files.read(tmp_path / "g.h5")
    assert isinstance(again, Surface)
    np.testing.assert_array_equal(again.loss, loss)
    surface_exports.write_vtk(tmp_path / "s.vts", ours)
    np.testing.assert_array_equal(arrays_of(tmp_path / "s.vts", "PointData")[1]["loss class 0"][:, 0], loss.ravel())
    assert UNITS.shape == ours.unit_length.shape
