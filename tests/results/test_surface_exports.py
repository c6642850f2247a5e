"""Surfaces as VTK grids, archives and tables."""

import csv
import dataclasses
import json
import xml.etree.ElementTree as ElementTree
from base64 import b64decode

import numpy as np
import pytest
from refusals import refused
from surfaces import UNITS, grid, paraboloid, surface, three_classes, three_lines

from landscape.errors import InputError
from landscape.results import Distances, Surface, Trajectory
from landscape.results.foreign import interop, surface_exports, surface_files
from landscape.results.regroup import regroup

X, Y = np.linspace(-1, 1, 5), np.linspace(-2, 2, 9)


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


@pytest.mark.parametrize("dtype", [np.float32, ">f8", np.int16, np.uint32, np.bool_])
def test_a_vtk_grid_says_of_which_type_its_numbers_are(tmp_path, dtype):
    ours = three_classes(5, 4)
    ours = dataclasses.replace(ours, loss=ours.loss.astype(dtype))
    surface_exports.write_vtk(tmp_path / "s.vts", ours)
    _, data = arrays_of(tmp_path / "s.vts", "PointData")
    np.testing.assert_array_equal(data["loss class 0"][:, 0], ours.loss[0].ravel())
    np.testing.assert_array_equal(data["computed"][:, 0], ours.computed.ravel())
    assert set(data["vtkGhostType"][:, 0]) == {0}


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
    with refused(InputError, "cat", 0, 1, 2):
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
    off = dataclasses.replace(ours, mark_run=np.array([0, -1, 0, -1, -1]))  # three on no run
    path = surface_exports.write_vtk(tmp_path / "o.vts", off)
    assert arrays_of(path, "Lines")[1]["connectivity"][:, 0].tolist() == [0, 2]
    verts = arrays_of(path, "Verts")[1]
    assert (verts["connectivity"][:, 0].tolist(), verts["offsets"][:, 0].tolist()) == ([1, 3, 4], [1, 2, 3])
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
