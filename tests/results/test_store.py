"""The store: a result comes back to the bit, and a file is whole or not there."""

import json
import os
from pathlib import Path

import h5py
import numpy as np
import pytest
from made import spectrum
from refusals import refused
from results_of_all_kinds import trajectory
from stored import assert_same, one_line, run_python

from landscape.errors import StoreError
from landscape.results.store import is_result, load, save


def test_a_result_comes_back_to_the_bit(tmp_path):
    odd = np.array([np.nan, np.inf, -np.inf, -0.0, 5e-324])
    odd.view(np.uint64)[0] |= np.uint64(7)  # a nan with a payload
    result = spectrum(
        *("airplane", "Ära/日本", "", "tail, few", "e"),
        loss=odd,
        accuracy=odd.astype(np.float32),
        converged=odd > 0,
        n_samples=np.array([0, 1, 2**62, 3, 4]),
        provenance={"seed": 3, "command": "hessian --ckpt é.pt", "counts": [5, 2], "resumed": None, "share": np.inf},
    )
    save(tmp_path / "out.h5", result)
    assert_same(load(tmp_path / "out.h5"), result)


@pytest.mark.parametrize("parts", [(), ("only",)])
def test_a_result_without_optional_arrays_comes_back(tmp_path, parts):
    result = spectrum(*parts, ritz_vectors=None)
    save(tmp_path / "out.h5", result)
    assert_same(load(tmp_path / "out.h5"), result)


def test_a_file_explains_itself_without_this_package(tmp_path):
    provenance = {"seed": 3, "dtype": "float32", "amp": False, "counts": [5], "none": None, "big": 2**70, "a\0": 1}
    save(tmp_path / "out.h5", spectrum("a", "b", provenance=provenance))
    with h5py.File(tmp_path / "out.h5") as file:
        assert (file.attrs["format"], file.attrs["kind"], file.attrs["version"]) == ("landscape", "spectrum", 4)
        assert [dim.label for dim in file["alpha"].dims] == ["part", "probe", "step"]
        assert file["alpha"].attrs["unit"] == "loss"
        assert file["alpha"].attrs["description"] == "diagonal of the tridiagonal matrix"
        assert file["parts"].asstr()[...].tolist() == ["a", "b"]
        assert file.attrs["operator"] == "hessian"
        assert json.loads(file.attrs["provenance"]) == provenance
        assert dict(file["provenance"].attrs) == {"seed": 3, "dtype": "float32", "amp": False}


def test_a_provenance_of_numpy_numbers_and_paths_is_kept_as_json(tmp_path):
    provenance = {"seed": np.int64(3), "counts": np.array([5, 2]), "ckpt": Path("run/last.pt"), "long": "x" * 100_000}
    save(tmp_path / "out.h5", spectrum("a", provenance=provenance))
    expected = {"seed": 3, "counts": [5, 2], "ckpt": "run/last.pt", "long": "x" * 100_000}
    assert load(tmp_path / "out.h5").provenance == expected


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"provenance": {"model": object()}}, "provenance cannot be stored as JSON: it holds <object"),
        ({"parts": ("a\0b",)}, "parts 'a\\x00b' holds NUL"),
        ({"operator": "\udcff"}, "operator '\\udcff' holds NUL or half a surrogate pair"),
        ({"size": 2**70}, "size 1180591620717411303424 cannot be stored"),
        ({"loss": np.array(["x"])}, "loss is an array of <U1: only numbers and booleans"),
    ],
)
def test_what_the_format_cannot_hold_is_named_and_leaves_no_file(tmp_path, values, message):
    with pytest.raises(StoreError) as caught:
        save(tmp_path / "out.h5", spectrum("a", **values))
    assert one_line(caught).startswith(message)
    assert list(tmp_path.iterdir()) == []


def test_an_existing_file_is_replaced_only_with_overwrite(tmp_path):
    path = tmp_path / "out.h5"
    save(path, spectrum("old"))
    before = path.read_bytes()
    with pytest.raises(StoreError) as caught:
        save(path, spectrum("new"))
    assert one_line(caught) == f"{path} exists: pass overwrite=True to replace it, or choose another file"
    assert path.read_bytes() == before
    save(path, spectrum("new"), overwrite=True)
    assert load(path).parts == ("new",)


def test_a_disk_that_fills_up_leaves_the_old_file_and_nothing_else(tmp_path, full_disk):
    path = tmp_path / "out.h5"
    save(path, spectrum("old"))
    before = path.read_bytes()

    with refused(StoreError, path, "No space left on device"), full_disk():
        save(path, spectrum("new"), overwrite=True)
    assert [p.name for p in tmp_path.iterdir()] == ["out.h5"]
    assert path.read_bytes() == before


FULL = """
import resource, sys
from landscape.errors import StoreError
from landscape.results.store import save
from made import spectrum
resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))
try:
    save(sys.argv[1], spectrum(*"abcdefgh", lengths={"parameter": 700}), overwrite=True)
except StoreError as error:
    print(error)
"""


def test_a_write_that_the_system_cuts_short_is_one_line_and_no_crash(tmp_path):
    """HDF5's own driver ends the interpreter with a segmentation fault here, after the error was caught."""
    save(tmp_path / "out.h5", spectrum("old"))
    found = run_python(FULL, tmp_path / "out.h5")
    assert found.returncode == 0, found.stderr
    expected = "out.h5 cannot be written: File too large; free some space, or choose another file"
    assert found.stdout.strip() == f"{tmp_path}/{expected}"
    assert [p.name for p in tmp_path.iterdir()] == ["out.h5"]
    assert load(tmp_path / "out.h5").parts == ("old",)


@pytest.mark.parametrize(
    ("name", "cause"),
    [
        ("none/out.h5", "No such file or directory"),
        ("file/out.h5", "Not a directory"),
        ("o" * 300, "File name too long"),
    ],
)
def test_a_place_that_cannot_be_written_is_said_with_the_cause(tmp_path, name, cause):
    (tmp_path / "file").touch()
    with pytest.raises(StoreError) as caught:
        save(tmp_path / name, spectrum("a"))
    remedy = "check its folder, or choose another file"
    assert one_line(caught) == f"{tmp_path / name} cannot be written: {cause}; {remedy}"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_said(tmp_path):
    tmp_path.chmod(0o500)
    with refused(StoreError, "Permission denied"):
        save(tmp_path / "out.h5", spectrum("a"))
    tmp_path.chmod(0o700)


def test_a_folder_is_never_replaced_by_a_file(tmp_path):
    (tmp_path / "out.h5").mkdir()
    with refused(StoreError, "out.h5"):
        save(tmp_path / "out.h5", spectrum("a"), overwrite=True)


def test_a_link_is_followed(tmp_path):
    (tmp_path / "far").mkdir()
    (tmp_path / "link.h5").symlink_to(tmp_path / "far" / "out.h5")
    for part in ("a", "b"):
        save(tmp_path / "link.h5", spectrum(part), overwrite=True)
    assert (tmp_path / "link.h5").is_symlink()
    assert load(tmp_path / "far" / "out.h5").parts == ("b",)


# What is read


def test_a_file_that_is_not_there_is_named(tmp_path):
    with refused(StoreError, "none.h5"):
        load(tmp_path / "none.h5")
    with refused(StoreError, "Is a directory"):
        load(tmp_path)
    assert not is_result(tmp_path / "none.h5")


def test_a_file_that_is_not_hdf5_is_told_apart(tmp_path):
    (tmp_path / "a.h5").write_text("epoch,loss\n")
    (tmp_path / "empty.h5").touch()
    for name in ("a.h5", "empty.h5"):
        with pytest.raises(StoreError, match="is not an HDF5 file"):
            load(tmp_path / name)
        assert not is_result(tmp_path / name)


def test_files_of_other_programs_are_told_apart(tmp_path):
    with h5py.File(tmp_path / "keras.h5", "w") as file:
        file["weights"] = [1.0]
        file.attrs["format"] = [1, 2]
    with h5py.File(tmp_path / "surface.h5", "w") as file:
        file["xcoordinates"] = [-1.0, 1.0]
    with refused(StoreError, "keras.h5"):
        load(tmp_path / "keras.h5")
    with refused(StoreError, "surface.h5", "loss-landscape"):
        load(tmp_path / "surface.h5")
    assert not is_result(tmp_path / "keras.h5")


def change(file: h5py.File, what: str) -> None:
    if what == "missing array":
        del file["lambda_max"]
    elif what == "missing scalar":
        del file.attrs["tol"]
    elif what == "misshapen":
        del file["loss"]
        file["loss"] = np.zeros(5)
    elif what == "group":
        del file["loss"]
        file.create_group("loss")
    elif what == "text":
        del file["loss"]
        file["loss"] = ["a", "b"]
    elif what == "numbers":
        del file["parts"]
        file["parts"] = [0.0, 1.0]
    elif what == "scalar":
        file.attrs["size"] = "large"
    elif what == "newer":
        file.attrs["version"] = 5
    elif what == "kind":
        file.attrs["kind"] = "torus"
    elif what == "no version":
        del file.attrs["version"]
    elif what == "provenance":
        file.attrs["provenance"] = "{"
    elif what == "negative error":
        file["trace_stderr"][0] = -0.5


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("missing array", ":/lambda_max is missing, a spectrum needs it: compute the file again"),
        ("missing scalar", ":/tol is missing, a spectrum needs it: compute the file again"),
        ("misshapen", ": loss has 5 along 'part', but parts has 2; compute the file again"),
        ("group", ":/loss must be a dataset: get or compute the file again"),
        ("text", ":/loss must be an array of numbers, got object (2,)"),
        ("numbers", ":/parts must be a list of strings, got float64 (2,)"),
        ("scalar", ":/size must be of type int, got 'large': compute the file again"),
        ("newer", " holds spectrum version 5, this landscape reads up to 4: upgrade"),
        ("kind", " holds a torus, this landscape reads spectrum, "),
        ("no version", " does not say of which kind and version it is: compute it again"),
        ("negative error", ":/trace_stderr has -0.5, but an error is at least zero: compute the file again"),
        ("provenance", " is damaged (JSONDecodeError: Expecting property name enclosed in double quotes"),
    ],
)
def test_a_file_that_does_not_fit_says_where(tmp_path, what, message):
    path = tmp_path / "out.h5"
    save(path, spectrum("a", "b"))
    with h5py.File(path, "r+") as file:
        change(file, what)
    with pytest.raises(StoreError) as caught:
        load(path)
    assert one_line(caught).startswith(f"{path}{message}")
    assert is_result(path)


def test_unknown_entries_are_ignored(tmp_path):
    path = tmp_path / "out.h5"
    save(path, spectrum("a"))
    with h5py.File(path, "r+") as file:
        file["extra"] = [1]
        file.attrs["extra"] = 1
        del file["provenance"]  # the group is a courtesy, the attribute counts
    assert_same(load(path), spectrum("a"))


def test_a_file_cut_off_anywhere_is_an_error_in_one_line(tmp_path):
    path = tmp_path / "out.h5"
    save(path, spectrum("a"))
    whole = path.read_bytes()
    for length in range(8, len(whole), 97):
        path.write_bytes(whole[:length])
        with pytest.raises(StoreError, match="is damaged") as caught:
            load(path)
        one_line(caught)


@pytest.mark.parametrize(
    ("result", "name", "value"),
    [(spectrum("a"), "steps", 0), (spectrum("a"), "alpha", np.nan), (trajectory(), "mark_run", 9)],
    ids=["steps", "alpha", "mark_run"],
)
def test_numbers_of_a_file_that_cannot_be_are_refused_when_it_is_read(tmp_path, result, name, value):
    path = tmp_path / "out.h5"
    save(path, result)
    with h5py.File(path, "r+") as file:
        values = file[name][...]
        values.flat[0] = value
        file[name][...] = values
    with refused(StoreError, "out.h5", name):
        load(path)
