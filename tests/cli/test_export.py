"""`landscape export`: results in the formats of other programs."""

import csv
import dataclasses
import json
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from fitted import network
from foreign_files import goldstein
from made import THREE, gradients, history
from results_of_all_kinds import sensitivity, sharpness
from surfaces import plane_of_two, three_classes, three_lines

import landscape as ls
from landscape.results import Trajectory, quadrature, store
from landscape.results.foreign import interop, tidy


def test_export_writes_csv_json_and_pyhessians_lists(run, file):
    spectrum = store.load(file)
    for form, suffix in (("csv", ".csv"), ("json", ".json"), ("pyhessian", ".pyhessian.json")):
        assert run("export", file, "--to", form) == (0, f"{file.with_suffix(suffix)}\n", [])
    with open(file.with_suffix(".csv"), encoding="utf-8") as text:
        rows = list(csv.DictReader(text))
    assert [float(row["trace"]) for row in rows] == spectrum.trace.tolist()
    assert json.loads(file.with_suffix(".json").read_text())["parts"][2]["part"] == "class 2"
    lists = json.loads(file.with_suffix(".pyhessian.json").read_text())["class 1"]
    nodes, weights = interop.from_pyhessian(lists["eigen_list_full"], lists["weight_list_full"])
    expected = quadrature.nodes_and_weights(spectrum.alpha[1], spectrum.beta[1], spectrum.steps[1])
    assert np.array_equal(nodes, expected[0])
    assert np.array_equal(weights, expected[1])


def test_many_files_become_one_tidy_table(run, save, tmp_path):
    exact = {"trace_stderr": np.zeros(3), "converged": np.array([True, False, True])}
    exact |= {"ritz_values": np.array([[9.0, 2.0]] * 3), "ritz_residuals": np.array([[0.0, 1e3]] * 3)}
    about = {"checkpoint": "runs/a.pt", "method": "ce", "epoch": 3, "split": "train", "data": {"name": "digits"}}
    a = save("a.h5", provenance=about, **exact)
    b = save("b.h5", sharpness(), doubling_radius=np.array([np.nan, np.inf, 1.0]))
    out = tmp_path / "all.csv"
    assert run("export", a, b, "--to", "tidy", "-o", out) == (0, f"{out}\n", [])
    with open(out, encoding="utf-8") as text:
        rows = list(csv.DictReader(text))
    assert tuple(rows[0]) == tidy.COLUMNS
    found = {(row["file"], row["part"], row["quantity"]): row for row in rows}
    assert len(found) == len(rows)  # tidy: one row for each number
    spectrum = store.load(a)
    top = found[str(a), "class 1", "lambda_max"]
    assert (top["value"], top["error"]) == (str(spectrum.lambda_max[1]), str(spectrum.lambda_max_residual[1]))
    told = ("checkpoint", "epoch", "method", "data", "split", "matrix", "of_error", "exactness")
    assert [top[name] for name in told] == [
        "runs/a.pt", "3", "ce", "digits", "train", "hessian", "residual", "not converged",
    ]  # fmt: skip
    assert found[str(a), "class 0", "lambda_max"]["exactness"] == "converged"
    assert found[str(a), "class 0", "trace"]["exactness"] == "exact"
    assert found[str(a), "class 0", "loss"]["exactness"] == "exact"
    second = found[str(a), "class 2", "eigenvalue 2"]
    assert (second["value"], second["n_samples"]) == ("2.0", str(spectrum.n_samples[2]))
    assert second["exactness"] == "not converged"
    assert found[str(a), "class 2", "eigenvalue 1"]["exactness"] == "exact"
    noise = found[str(b), "class 0", "noise_rise"]
    assert (noise["exactness"], noise["of_error"], noise["kind"]) == ("estimated", "s.e.", "sharpness")
    assert found[str(b), "class 0", "worst_rise"]["exactness"] == ""  # a lower bound
    assert (str(b), "class 0", "doubling_radius") not in found
    assert found[str(b), "class 1", "doubling_radius"]["value"] == "inf"
    code, _, (line,) = run("export", a, b, "--to", "csv")
    assert code == 2
    assert "2 files become one table by --to tidy; --to csv is for one file" in line


@pytest.mark.parametrize("form", ["csv", "json", "pyhessian"])
def test_export_replaces_a_file_only_when_told(run, file, tmp_path, form):
    out = tmp_path / "out"
    out.write_text("mine")
    code, _, err = run("export", file, "--to", form, "-o", out)
    assert (code, out.read_text()) == (2, "mine")
    assert "exists: pass --overwrite" in err[0]
    assert run("export", file, "--to", form, "-o", out, "--overwrite")[0] == 0
    assert out.read_text() != "mine"
    code, _, err = run("export", file, "--to", form, "-o", tmp_path / "none" / "out")
    assert code == 2
    assert "cannot be written: No such file" in err[0]


@pytest.mark.parametrize(
    ("form", "suffix"),
    [("csv", ".csv"), ("json", ".json"), ("goldstein", ".goldstein.h5"), ("vtk", ".vts"), ("npz", ".npz")],
)
def test_surfaces_go_out_in_every_format_and_never_over_another_file(run, save, form, suffix):
    path = save("s.h5", three_classes())
    out = path.with_suffix(suffix)
    assert run("export", path, "--to", form) == (0, f"{out}\n", [])
    before = out.read_bytes()
    code, _, err = run("export", path, "--to", form)
    assert (code, len(err)) == (2, 1)
    assert "exists: pass --overwrite" in err[0]
    assert run("export", path, "--to", form, "--overwrite", "--weights", "balanced")[0] == 0
    assert out.read_bytes() != before


def test_a_surface_of_unequal_sides_is_repaired_by_reading_and_writing_it(run, tmp_path):
    theirs = goldstein(tmp_path / "theirs.h5", np.linspace(-1, 1, 5), np.linspace(-2, 2, 9))
    assert run("export", theirs, "--to", "goldstein", "-o", tmp_path / "ours.h5")[0] == 0
    with h5py.File(tmp_path / "ours.h5") as root:
        x, y = np.meshgrid(root["xcoordinates"], root["ycoordinates"])
        np.testing.assert_allclose(root["train_loss"], 0.5 + x**2 + 3 * y**2)


def test_the_marks_of_a_trajectory_lie_beside_its_grid_for_vtk(run, save):
    path = save("s.h5", three_classes(kind=Trajectory, marks=("a", "b")))
    words = ["--part", "class 2", "--log"]
    out = path.with_suffix(".vts"), path.with_suffix(".marks.vtp")
    assert run("export", path, "--to", "vtk", *words) == (0, f"{out[0]}\n{out[1]}\n", [])
    out[0].unlink()
    assert "s.marks.vtp exists" in run("export", path, "--to", "vtk")[2][0]
    assert not out[0].exists()


def test_results_without_parts_of_their_own_go_out_as_long_tables(run, save):
    path = save("p.h5", plane_of_two())
    assert run("export", path, "--to", "csv")[0] == 0
    lines = path.with_suffix(".csv").read_text().splitlines()
    assert lines[:3] == ["field,axis,tensor,value", "unit_length,0,,1.0", "unit_length,1,,1.0"]  # both are "random"
    assert lines[-1] == "sizes,,w,3"
    assert run("export", path, "--to", "json")[0] == 0
    assert "origin" not in json.loads(path.with_suffix(".json").read_text())["arrays"]


def test_neither_a_checkpoint_nor_the_file_itself_is_written_over(run, save, tmp_path):
    file, checkpoint = save("plane.h5", three_classes()), tmp_path / "last.pt"
    torch.save({"w": torch.ones(2)}, checkpoint)  # an archive, as .npz is
    (tmp_path / "link.h5").symlink_to(file)
    before = file.read_bytes(), checkpoint.read_bytes()
    for form, out, text in (
        ("npz", checkpoint, "a file of another kind"),
        ("goldstein", file, "is the file that is exported"),
        ("goldstein", tmp_path / "link.h5", "is the file that is exported"),
    ):
        code, _, (line,) = run("export", file, "--to", form, "-o", out, "--overwrite")
        assert (code, text in line) == (2, True), line
    assert before == (file.read_bytes(), checkpoint.read_bytes())
    assert run("export", file, "--to", "npz", "-o", tmp_path / "a.npz")[0] == 0
    assert run("export", file, "--to", "npz", "-o", tmp_path / "a.npz", "--overwrite")[0] == 0


@pytest.mark.parametrize(
    ("found", "field"), [(gradients(THREE, [9, 5, 1], epochs=(0, 10, np.nan)), "norm"), (history(epochs=4), "quality")]
)
def test_a_tidy_table_has_rows_for_each_checkpoint_and_each_epoch(found, field):
    rows = [dict(zip(tidy.COLUMNS, row, strict=True)) for row in tidy.rows({Path("a.h5"): found})]
    own = [(row["checkpoint"], row["epoch"], row["part"], row["value"]) for row in rows if row["quantity"] == field]
    names = found.points if field == "norm" else [""] * 4
    epochs = ["" if np.isnan(epoch) else epoch for epoch in found.epoch.tolist()]
    assert own == [
        (name, epoch, part, values[p])
        for name, epoch, values in zip(names, epochs, getattr(found, field), strict=True)
        for p, part in enumerate(found.parts)
    ]


def exactness(found, quantity):
    rows = [dict(zip(tidy.COLUMNS, row, strict=True)) for row in tidy.rows({Path("a.h5"): found})]
    return [row["exactness"] for row in rows if row["quantity"] == quantity]


def test_losses_over_all_samples_are_exact_also_where_another_sample_would_change_them():
    found = dataclasses.replace(three_lines(), centre_loss_stderr=np.full(3, 0.1))
    rows = [dict(zip(tidy.COLUMNS, row, strict=True)) for row in tidy.rows({Path("a.h5"): found})]
    own = [row for row in rows if row["quantity"] == "centre_loss"]
    assert [(row["error"], row["of_error"], row["exactness"]) for row in own] == [(0.1, "samples", "exact")] * 3
    assert exactness(dataclasses.replace(three_lines(), barrier_stderr=np.full(3, 0.1)), "barrier") == ["exact"] * 3


def test_changes_along_eigenvectors_are_exact_and_those_along_random_directions_are_not():
    found = sensitivity()
    for quantity in ("dependence", "accuracy_dependence"):
        assert exactness(found, quantity) == ["exact"] * 3
    assert exactness(found, "control") == ["estimated"] * 3
    drawn = dataclasses.replace(found, provenance={"draws": {"samples": 4}})
    assert exactness(drawn, "dependence") == ["estimated", "estimated", "exact"]  # of 9, 5 and 1 samples


def test_numbers_of_draws_and_of_batches_are_not_exact():
    objective = network(sizes=(60, 5))
    for samples in (None, 8):
        given = objective if samples is None else ls.draw_samples(objective, samples)
        of_first = ["exact"] if samples is None else [""]
        assert exactness(ls.features(given), "loss") == [*of_first, "exact"]
        assert exactness(ls.features(given), "accuracy") == [*of_first, "exact"]
        assert exactness(ls.gradients(given), "loss") == [*of_first, "exact"]
        assert exactness(ls.gradients(given), "projected") == [*of_first, "exact"]
        for errors in (True, False):
            found = ls.features(given, sampling_errors=errors)
            assert exactness(found, "variance") == [*of_first, "exact"]
        line = ls.surface(given, ls.directions.random(given, 1), [0.0, 1.0])
        assert exactness(line, "centre_loss") == ["exact" if samples is None else "estimated", "exact"]
        assert exactness(line, "centre_accuracy") == ["exact" if samples is None else "estimated", "exact"]
        assert exactness(ls.sharpness(given, ascent_steps=1, draws=2), "loss") == ["exact"] * 2
        spectrum = ls.spectrum(objective, operator="ggn", samples=samples)
        assert exactness(spectrum, "loss") == ["exact"] * 2
        assert exactness(spectrum, "trace") == [*of_first, "exact"]
        spectrum.lambda_max_residual[:] = spectrum.ritz_residuals[:] = 0
        for quantity in ("lambda_max", "eigenvalue 1"):
            assert exactness(spectrum, quantity) == ["exact" if samples is None else "converged", "exact"]
        assert exactness(ls.gradients(given), "norm") == [*of_first, "exact"]
    assert exactness(ls.gradients(objective, batches=2, samples_per_batch=8), "loss") == ["", ""]
