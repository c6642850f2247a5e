"""`landscape report`: the page that it writes, and what it refuses."""

import re
from pathlib import Path

import numpy as np
import pytest
from made import features
from results_of_all_kinds import sharpness, spectrum
from surfaces import three_classes, three_lines

from landscape.results import Plane, store


def test_the_command_writes_a_page(run, tmp_path, monkeypatch, no_figures):
    monkeypatch.chdir(tmp_path)
    store.save("a.h5", sharpness())
    code, out, err = run("report", "a.h5", "--title", "Mine")
    assert (code, err) == (0, [])
    assert re.fullmatch(r"report\.html  \(0\.\d MB\)\n", out)
    assert Path("report.html").read_text().startswith("<!DOCTYPE html>\n")
    assert "<h1>Mine</h1>" in Path("report.html").read_text()
    code, _, (line,) = run("report", "a.h5")
    assert code == 2
    assert "report.html exists: pass --overwrite" in line
    assert run("report", "a.h5", "--overwrite", "--names", "Mine & yours")[0] == 0
    assert "Mine &amp; yours" in Path("report.html").read_text()
    code, _, (line,) = run("report", "a.h5", "--overwrite", "--names", "a,b")
    assert code == 2
    assert "--names: give 1 names that differ, for a" in line
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.h5", "report.html"]


def test_without_plotly_there_are_pages_of_everything_else(run, tmp_path, monkeypatch, without, no_figures):
    monkeypatch.chdir(tmp_path)
    without("plotly", "plotly.offline")
    store.save("plane.h5", three_classes(5, 5))
    store.save("line.h5", three_lines())
    store.save("spectrum.h5", spectrum())
    code, out, (line,) = run("report", "spectrum.h5", "plane.h5")
    assert (code, out) == (2, "")
    assert "rotating surfaces need plotly: run pip install 'plotly>=5'" in line
    assert not Path("report.html").exists()
    assert run("report", "spectrum.h5", "line.h5")[0] == 0


def a_plane():
    return Plane(
        axes=("x",), directions=np.ones((1, 2)), buffer_directions=np.ones((1, 0)), origin=np.ones(2),
        buffer_origin=np.ones(0), unit_length=np.ones(1), explained=np.full(1, np.nan), tensors=("w",),
        sizes=np.array([2]), cosine=np.nan, normalisation="none", ignored="none",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["absent.h5"], "there is no file absent.h5"),
        (["notes.h5"], "notes.h5 is not an HDF5 file"),
        (["plane.h5"], "plane.h5 is a plane, which a report does not show: give files of spectrum, surface,"),
        (["good.h5", "good.h5"], "good.h5 is given twice"),
        (["good.h5", "./good.h5"], "good.h5 is given twice"),
        (["good.h5", "-o", "good.h5"], "a report cannot be written as 'good.h5': end the name in .html"),
        (["good.h5", "-o", "nowhere/x.html"], "nowhere/x.html cannot be written: No such file or directory"),
        (["good.h5", "-o", "folder.html", "--overwrite"], "folder.html is a folder"),
        ([], "Missing argument 'FILES...'"),
    ],
)
def test_what_cannot_be_shown_is_refused_in_one_line(run, tmp_path, monkeypatch, no_figures, words, line):
    monkeypatch.chdir(tmp_path)
    store.save("good.h5", features(3))
    store.save("plane.h5", a_plane())
    Path("notes.h5").write_text("notes")
    Path("folder.html").mkdir()
    code, out, err = run("report", *words)
    assert (code, out, len(err)) == (2, "", 1)
    assert line in err[0]
    assert not [p for p in tmp_path.rglob("*") if p.is_file() and p.suffix != ".h5"]
