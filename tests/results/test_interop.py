"""Other people's formats: what goes out comes back, and what cannot be nodes and weights is refused."""

import csv
import dataclasses
import json

import numpy as np
import pytest
import torch
from made import spectrum
from refusals import refused
from results_of_all_kinds import all_kinds

from landscape.errors import InputError, StoreError
from landscape.results.foreign.interop import from_pyhessian, read_saddle_longtail, to_csv, to_json, to_pyhessian


def pyhessian_density(*matrices):
    """Nodes and weights of tridiagonal matrices, by the lines with which PyHessian's density() ends."""
    eigen_list_full, weight_list_full = [], []
    for matrix in matrices:
        values, vectors = torch.linalg.eig(torch.tensor(matrix, dtype=torch.float32))
        eigen_list_full.append(list(values.real.numpy()))
        weight_list_full.append(list((vectors[0, :] ** 2).numpy()))
    return eigen_list_full, weight_list_full


def test_pyhessians_complex_lists_become_real_nodes_and_weights():
    """The matrix [[2, 1], [1, 2]] has eigenvalues 1 and 3, and both eigenvectors have first component 1/√2."""
    eigenvalues, weights = pyhessian_density([[2.0, 1.0], [1.0, 2.0]], [[2.0, 0.0], [0.0, 5.0]])
    assert weights[0][0].dtype == np.complex64
    nodes, found = from_pyhessian(eigenvalues, weights)
    assert nodes.dtype == found.dtype == np.float64
    order = np.argsort(nodes, axis=1)
    np.testing.assert_allclose(np.take_along_axis(nodes, order, 1), [[1, 3], [2, 5]], rtol=1e-6)
    np.testing.assert_allclose(np.take_along_axis(found, order, 1), [[0.5, 0.5], [1, 0]], rtol=1e-6)


def test_what_goes_to_pyhessian_comes_back_with_runs_of_different_lengths():
    nodes = np.array([[-1.0, 0.5, 2.0], [1.0, 3.0, np.nan]])
    weights = np.array([[0.25, 0.5, 0.25], [0.5, 0.5, np.nan]])
    lists = to_pyhessian(nodes, weights, np.array([3, 2]))
    assert lists == ([[-1.0, 0.5, 2.0], [1.0, 3.0]], [[0.25, 0.5, 0.25], [0.5, 0.5]])
    assert type(lists[0][0][0]) is float
    for found, expected in zip(from_pyhessian(*lists), (nodes, weights), strict=True):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    ("nodes", "weights", "steps", "message"),
    [
        ([[1.0, 2.0]], [[0.5, 0.4]], [2], "the weights of probe 0 sum to 0.9, they must sum to 1"),
        ([[1.0, np.nan]], [[0.5, 0.5]], [2], "probe 0 has an eigenvalue that is not finite"),
        ([[1.0, 2.0]], [[0.5, np.nan]], [2], "the weights of probe 0 sum to nan, they must sum to 1"),
        ([[1.0, 2.0]], [[0.5, 0.5]], [2, 2], "got shapes (1, 2), (1, 2) and (2,)"),
        ([1.0, 2.0], [0.5, 0.5], [2], "got shapes (2,), (2,) and (1,)"),
    ],
)
def test_arrays_that_are_no_quadrature_do_not_go_out(nodes, weights, steps, message):
    with pytest.raises(InputError) as caught:
        to_pyhessian(np.array(nodes), np.array(weights), np.array(steps))
    assert str(caught.value).endswith(message)


@pytest.mark.parametrize(
    ("eigenvalues", "weights", "message"),
    [
        ([[1.0, 3.0]], [[0.5, 0.5], [1.0]], "there are eigenvalues of 1 probes and weights of 2"),
        ([], [], "there are eigenvalues of 0 probes and weights of 0"),
        ([[1.0, 3.0]], [[1.0]], "probe 0 has 2 eigenvalues and 1 weights"),
        ([[1.0, 3.0]], [[0.5 + 0.1j, 0.5 - 0.1j]], "weights of probe 0 have imaginary parts up to 0.1"),
        ([[1.0 + 1j, 1.0 - 1j]], [[0.5, 0.5]], "eigenvalues of probe 0 have imaginary parts up to 1"),
        ([1.0, 3.0], [0.5, 0.5], "eigenvalues must be one list of numbers for each probe, got float64 () at probe 0"),
        ([["a"]], [[1.0]], "eigenvalues must be one list of numbers for each probe, got <U1 (1,) at probe 0"),
        # The whole squared eigenvector matrix instead of its first row, as PyHessian once returned it.
        (
            [[1.0, 3.0]],
            np.full((1, 2, 2), 0.5),
            "weights must be one list of numbers for each probe, got float64 (2, 2)",
        ),
    ],
)
def test_lists_that_are_no_quadrature_do_not_come_in(eigenvalues, weights, message):
    with pytest.raises(InputError) as caught:
        from_pyhessian(eigenvalues, weights)
    assert str(caught.value).startswith(message)


def test_saddle_longtails_arrays_are_read(tmp_path):
    eigenvalues, weights = pyhessian_density([[2.0, 1.0], [1.0, 2.0]], [[2.0, 0.0], [0.0, 5.0]])
    np.save(tmp_path / "7_density_eigen", eigenvalues)
    np.save(tmp_path / "7_density_weights", weights)
    found = read_saddle_longtail(tmp_path / "7_density_eigen.npy", tmp_path / "7_density_weights.npy")
    for a, b in zip(found, from_pyhessian(eigenvalues, weights), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_npy_file_that_would_run_code_or_is_none_is_refused(tmp_path):
    np.save(tmp_path / "pickle.npy", np.array([{}], dtype=object))
    (tmp_path / "text.npy").write_text("1, 2")
    for name, message in [
        ("pickle", "it holds object"),
        ("text", "cannot be read as a NumPy array"),
        ("none", "no file"),
    ]:
        with pytest.raises(StoreError, match=message):
            read_saddle_longtail(tmp_path / f"{name}.npy", tmp_path / "none.npy")


def test_the_table_has_a_row_for_each_part_and_all_digits(tmp_path):
    result = spectrum("cat, small", "Ära", loss=np.array([0.1 + 0.2, np.nan]), n_samples=np.array([5, 0]))
    to_csv(result, tmp_path / "out.csv")
    with open(tmp_path / "out.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["part"] for row in rows] == ["cat, small", "Ära"]
    assert [row["loss"] for row in rows] == ["0.30000000000000004", "nan"]
    assert [row["n_samples"] for row in rows] == ["5", "0"]
    assert rows[1]["lambda_max"] == repr(result.lambda_max.tolist()[1])
    assert "alpha" not in rows[0]


def test_the_table_of_a_surface_has_a_row_for_each_part_at_each_point_and_mark(tmp_path):
    found = all_kinds()["path.h5"]
    found = dataclasses.replace(found, mark_distance=np.arange(len(found.marks)) / 4.0)
    to_csv(found, tmp_path / "out.csv")
    with open(tmp_path / "out.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    n_marks, (n_parts, ny, nx) = len(found.marks), found.loss.shape
    assert len(rows) == n_parts * (ny * nx + n_marks)
    own = [row for row in rows if row["part"] == found.parts[1]]
    for k, row in enumerate(own[: ny * nx]):
        i, j = divmod(k, nx)
        assert (row["mark"], float(row["x"]), float(row["y"])) == ("", found.xcoordinates[j], found.ycoordinates[i])
        assert (float(row["loss"]), float(row["accuracy"])) == (found.loss[1, i, j], found.accuracy[1, i, j])
    for m, row in enumerate(own[ny * nx :]):
        assert (row["mark"], float(row["distance"])) == (found.marks[m], m / 4)
        assert [float(row["x"]), float(row["y"])] == found.mark_position[m].tolist()
        assert (float(row["loss"]), float(row["accuracy"])) == (found.mark_loss[m, 1], found.mark_accuracy[m, 1])


def test_a_table_is_replaced_only_with_overwrite(tmp_path):
    path = tmp_path / "out.csv"
    path.write_text("mine")
    with refused(StoreError, "out.csv", overwrite=True):
        to_csv(spectrum("a"), path)
    assert path.read_text() == "mine"
    to_csv(spectrum("a"), path, overwrite=True)
    assert path.read_text().startswith("part,")
    with refused(StoreError, "No such file or directory"):
        to_csv(spectrum("a"), tmp_path / "none" / "out.csv")


def test_json_is_strict_and_has_null_where_there_is_no_number():
    def refuse(constant):
        raise ValueError(constant)

    result = spectrum("Ära", "b", loss=np.array([0.1 + 0.2, np.nan]), converged=np.array([True, False]), tol=np.inf)
    found = json.loads(to_json(result), parse_constant=refuse)
    assert (found["kind"], found["version"], found["operator"], found["tol"]) == ("spectrum", 4, "hessian", None)
    assert [part["part"] for part in found["parts"]] == ["Ära", "b"]
    assert [part["loss"] for part in found["parts"]] == [0.1 + 0.2, None]
    assert [part["converged"] for part in found["parts"]] == [True, False]
    assert "alpha" not in found["parts"][0]
    assert {"alpha", "trace_samples", "ritz_vectors"}.isdisjoint(found["arrays"])  # of probes, steps and parameters
