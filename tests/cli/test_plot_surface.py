"""The command that draws a surface."""

import json
from pathlib import Path

import numpy as np
import pytest
from surfaces import grid, paraboloid, surface, three_classes, three_lines

from landscape import cli, plots
from landscape.results import store

# The command.


@pytest.fixture
def plot(tmp_path, capsys):
    """Run `landscape plot` on a result; return its exit code, what it wrote, and the lines of stderr."""

    def run(result, *words):
        path = tmp_path / "result.h5"
        store.save(path, result, overwrite=True)
        code = cli.main(["plot", str(path), *map(str, words)])
        out, err = capsys.readouterr()
        return code, out.strip(), err.splitlines()

    return run


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        *((kind, ()) for kind in plots.KIND_FIGURES["surface"]),
        ("contour", ("--groups", "head-tail", "--weights", "balanced")),
        ("3d", ("--groups", "head-tail", "--weights", "own.json")),
    ],
)
def test_plot_draws_each_kind_of_a_surface(plot, tmp_path, kind, words, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("own.json").write_text('{"class 0": 1, "class 1": 2, "class 2": 0.5}')
    code, out, err = plot(three_classes(), "--kind", kind, *words)
    assert (code, err) == (0, [])
    assert out == str(tmp_path / f"result.{kind}.png")
    assert (tmp_path / f"result.{kind}.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--levels", "4"], {"levels": 4}),
        (["--log"], {"log": True}),
        (["--linear"], {"log": False}),
        (["--vmin", "0.2", "--vmax", "3"], {"vmin": 0.2, "vmax": 3}),
        (["--euclidean"], {"euclidean": True}),
        (["--kind", "3d", "--zmax", "2"], {"zmax": 2}),
        ([], {}),
    ],
)
def test_plot_passes_on_what_is_given_and_nothing_else(plot, asked, words, expected):
    assert plot(three_classes(), *words)[0] == 0
    assert [options for *_, options in asked] == [expected]


def test_plot_draws_a_line_as_a_line(plot, tmp_path):
    assert plot(three_lines(), "--log", "--vmax", "9")[:2] == (0, str(tmp_path / "result.line.png"))
    code, _, err = plot(three_lines(), "--kind", "contour")
    assert (code, err) == (2, ["landscape: error: --kind contour is not for a line: choose line"])


def test_plot_groups_by_a_file(plot, tmp_path, asked):
    groups = tmp_path / "groups.json"
    groups.write_text(json.dumps({"tail": [1, 2], "all": [0, 1, 2]}))
    assert plot(three_classes(), "--groups", groups, "--parts", "tail,1")[0] == 0
    assert [(result.parts, parts) for result, parts, _ in asked] == [(("tail", "all"), ["tail", "all"])]


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--groups", "heads"], "--groups heads is unknown"),
        (["--groups", "none.json"], "none.json cannot be read: No such file"),
        (["--weights", "heavy"], "--weights heavy is unknown: choose natural, balanced, training, drw or a .json file"),
        (["--parts", "cat"], "'cat' for --parts: choose class 0, class 1, class 2, or"),
        (["--groups", "all", "--parts", "class 0"], "'class 0' for --parts: choose all, or"),
        (["--levels", "1"], "--levels must be 2 to 60, got 1"),
        (["--levels", "many"], "Invalid value for '--levels'"),
        (["--vmin", "nan"], "--vmin must be a finite number, got nan"),
        (["--vmin", "-1", "--log"], "--vmin -1: a logarithmic scale begins above zero"),
        (["--vmin", "2", "--vmax", "1"], "--vmin 2 is not below --vmax 1: the first is the lower end"),
        (["--vmax", "0.01", "--linear"], "--vmax 0.01 leaves nothing"),
        (["--zmax", "3"], "--zmax is for --kind 3d; leave it out for --kind contour"),
        (["--kind", "heat", "--levels", "5"], "--levels is for --kind contour, accuracy, overlay, path; leave it out"),
        (["--kind", "accuracy", "--linear"], "--linear is for --kind contour, 3d, heat"),
        (["--kind", "3d", "--errors"], "heat, accuracy, line, path, along; leave it out for --kind 3d"),
        (["--kind", "heat", "--errors"], "--errors"),  # of a surface that has none
        (["--kind", "3d", "--zmax", "0.0001"], "--zmax 0.0001 leaves nothing"),
        (["--kind", "3d", "--zmax", "nan"], "--zmax nan leaves nothing"),
        (["--kind", "path"], "--kind path is not for a surface: choose contour, 3d"),
        (["--width", "1"], "--width is for --kind density"),
        (["-o", "figure.gif"], "end the name in .png, .pdf or .svg"),
    ],
)
def test_plot_refuses_what_makes_no_figure(plot, tmp_path, words, line):
    code, out, err = plot(three_classes(), *words)
    assert (code, out) == (2, "")
    assert len(err) == 1
    assert line in err[0]
    assert [path.name for path in tmp_path.iterdir()] == ["result.h5"]


@pytest.mark.parametrize("kind", [kind for kind in plots.KIND_FIGURES["surface"] if kind != "heat"])
def test_a_surface_of_one_row_is_refused_in_one_line_that_names_what_draws_it(plot, kind):
    of = grid(np.linspace(-1, 1, 5), [0.0])
    code, out, err = plot(surface(of, paraboloid(of)), "--kind", kind)
    line = "contours need points that span a plane, those of this grid of 5 x 1 do not: draw it by --kind heat"
    assert (code, out, err) == (2, "", [f"landscape: error: {line}"])
