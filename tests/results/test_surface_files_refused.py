"""Files of other programs that cannot be read or written."""

import errno

import h5py
import numpy as np
import pytest
from foreign_files import directions, goldstein, plane_npz, tensors_of
from refusals import refused
from surfaces import grid, surface, three_classes

from landscape.errors import InputError, StoreError
from landscape.results import disk, store
from landscape.results.foreign import interop, surface_exports, surface_files
from landscape.results.foreign.surface_arrays import read_npz

X, Y = np.linspace(-1, 1, 5), np.linspace(-2, 2, 9)


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
    with refused(StoreError, "model.pt"):
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
        ({"train_loss": np.ones((5, 8))}, ("train_loss", 5, 8, 9)),
        ({"xcoordinates": np.ones((5, 1))}, ("xcoordinates",)),
        ({"xcoordinates": np.array([0, 1, np.nan, 2, 3])}, ("xcoordinates",)),
        ({"ycoordinates": np.zeros(0)}, ("ycoordinates",)),
        ({"train_loss": "text"}, ("train_loss",)),
        ({"train_acc": np.ones(3)}, ("train_acc", 3)),
    ],
)
def test_arrays_that_do_not_fit_each_other_are_refused(tmp_path, changes, line):
    path = goldstein(tmp_path / "s.h5", X, Y)
    with h5py.File(path, "a") as root:
        for name, values in changes.items():
            del root[name]
            root[name] = values
    with refused(StoreError, *line):
        surface_files.read(path)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"grid": np.zeros((4, 3, 2))}, (4, 3, 2)),
        ({"tr_nll": None, "te_nll": None}, ("tr_nll", "te_nll")),
        ({"tr_acc": None}, ("tr_acc",)),
        ({"te_nll": np.zeros((4, 3))}, ("te_nll", 4, 3)),
        ({"curve_coordinates": np.zeros(3)}, ("curve_coordinates",)),
    ],
)
def test_a_plane_whose_arrays_do_not_fit_is_refused(tmp_path, changes, line):
    with refused(StoreError, *line):
        read_npz(plane_npz(tmp_path / "plane.npz", **changes))


@pytest.mark.parametrize(
    ("axes", "extra", "line"),
    [
        ((), {"x": 1.0}, ("xdirection",)),
        ((tensors_of(1.0), tensors_of(1.0)[:2]), {}, ("xdirection", "ydirection")),
        ((["text"],), {}, (0,)),
        ((tensors_of(1.0), tensors_of(1.0)), {"explained_variance_ratio_": [1.0]}, ("network",)),
    ],
)
def test_directions_that_cannot_be_used_are_refused(tmp_path, axes, extra, line):
    with refused(StoreError, *line):
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
    with refused(StoreError, overwrite=True):
        write(path, three_classes())
    assert path.read_bytes() == first + b" "
    write(path, three_classes(), overwrite=True)
    assert not path.read_bytes().endswith(b" ")
    with refused(StoreError, "No such file or directory"):
        write(tmp_path / "none" / "out", three_classes())
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_a_file_of_another_kind_is_kept_even_when_told_to_replace(tmp_path, write):
    path = tmp_path / "thesis"
    path.write_bytes(b"my work\0")
    with refused(StoreError, "thesis"):
        write(path, three_classes(), overwrite=True)
    assert path.read_bytes() == b"my work\0"


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_a_folder_that_is_read_only_is_named(tmp_path, monkeypatch, write):
    def refuse(path, mode="r"):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(disk, "open", refuse, raising=False)  # root writes into any folder
    with refused(StoreError, "Permission denied"):
        write(tmp_path / "out", surface(grid(X), np.ones((1, 1, 5))))
    assert list(tmp_path.iterdir()) == []
