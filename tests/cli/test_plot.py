"""`landscape plot`: which figure is drawn of which files, and what is refused."""

import h5py
import numpy as np
import pytest
import torch
from foreign_files import directions, goldstein, plane_npz, tensors_of
from made import features, history
from refusals import missing
from surfaces import plane_of_two, three_classes, three_lines
from synthetic import classes

from landscape import plots
from landscape.cli import plot
from landscape.results import Trajectory, store
from landscape.results.foreign import surface_files
from landscape.results.regroup import regroup


@pytest.mark.parametrize("kind", plots.KIND_FIGURES["spectrum"])
def test_plot_writes_beside_the_file_and_says_where(run, save, kind):
    each = dict.fromkeys(("curvature", "trace", "weight", "index", "label", "prediction", "loss"), np.full((3, 1), 1.0))
    images = {"image_sample": np.zeros((3, 1)), "images": np.zeros((3, 1, 4, 4, 1), dtype=np.int64)}
    squares = dict.fromkeys(("overlap", "subspace_overlap", "gradient_curvature"), np.eye(3))
    file = save("spectrum.h5", **squares, **images, **{f"sample_{name}": values for name, values in each.items()})
    code, out, err = run("plot", file, "--kind", kind)
    path = file.with_suffix(f".{kind}.png")
    assert (code, out, err) == (0, f"{path}\n", [])
    assert path.read_bytes().startswith(b"\x89PNG")


def test_a_figure_of_another_kind_of_result_is_refused(run, file):
    code, _, err = run("plot", file, "--kind", "quality")
    line = "--kind quality is not for a spectrum: choose density, summary, images, overlap, gradients or subspaces"
    assert (code, err) == (2, [f"landscape: error: {line}"])


def test_plot_passes_its_options_on(run, file, tmp_path, asked):
    out = tmp_path / "figure.svg"
    assert run("plot", file, "--parts", "class 2, 0", "--axis", "linear", "--width", "papyan", "-o", out)[0] == 0
    assert [given for _, *given in asked] == [[["class 2", "class 0"], {"axis": "linear", "width": "papyan"}]]
    assert out.read_bytes().startswith(b"<?xml")


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["-o", "figure.jpg"], ["'figure.jpg'", ".png, .pdf or .svg"]),
        (["--parts", "cat"], ["--parts", "'cat'", "class 0, class 1, class 2", "0 to 2"]),
        (["--parts", "0,class 0"], ["'class 0'", "'0,class 0'"]),
        (["--kind", "summary", "--width", "1"], ["--width", "--kind density"]),
        (["--width", "wide"], ["--width wide", "papyan"]),
        (["--limits=2:1"], [2, 1]),
    ],
)
def test_plot_refuses_what_does_not_fit(run, file, words, named):
    code, out, err = run("plot", file, *words)
    assert (code, out, len(err)) == (2, "", 1)
    assert missing(err[0], *named) == []


def test_a_surface_of_another_program_is_drawn_as_it_is(run, tmp_path, asked):
    x, y = np.linspace(-1, 1, 5), np.linspace(-2, 2, 9)
    named = tmp_path / "net.t7_weights.h5_[-1.0,1.0,5]x[-2.0,2.0,9].h5"
    goldstein(named, x, y, dir_file="net.t7_weights.h5")
    for file, kind in ((named, "contour"), (plane_npz(tmp_path / "plane.npz"), "path")):
        assert run("plot", file) == (0, f"{file.with_suffix(f'.{kind}.png')}\n", [])
    np.testing.assert_array_equal(asked[0][0].loss, surface_files.read(named).loss)
    assert asked[1][0].runs == ("curve", "bend")
    directions(tmp_path / "d.h5", tensors_of(2.0), tensors_of(0.5, seed=1))
    with h5py.File(tmp_path / "path_proj_lstsq.h5", "w") as root:
        root["proj_xcoord"], root["proj_ycoord"] = [0.0, 1.0], [0.0, -1.0]
    words = ["--dir_file", tmp_path / "d.h5", "--proj-file", tmp_path / "path_proj_lstsq.h5"]
    assert run("plot", named, *words)[0] == 0
    np.testing.assert_allclose(asked[2][0].unit_length, [2.0, 0.5])
    np.testing.assert_array_equal(asked[2][0].mark_position, [[0, 0], [1, -1]])


def test_a_surface_is_drawn_for_any_grouping_and_weighting(run, tmp_path, asked):
    path, ours = tmp_path / "s.h5", three_classes(kind=Trajectory, marks=("a", "b"))
    store.save(path, ours)
    groups = tmp_path / "groups.json"
    groups.write_text('{"ends": [0, 2], "all": [0, 1, 2]}')
    cases = {
        ("--groups", "head-tail"): ("head-tail", "natural"),
        ("--weights", "drw"): ("all", "drw"),
        ("--groups", groups, "--weights", "balanced"): (str(groups), "balanced"),
        ("--groups", "many-medium-few"): ("many-medium-few", "natural"),
    }
    for words, groups in cases.items():
        assert run("plot", path, *words)[0] == 0
        assert asked[-1][0].parts == regroup(ours, *groups).parts
        np.testing.assert_array_equal(asked[-1][0].loss, regroup(ours, *groups).loss)
    assert run("plot", path, "--groups", "many-medium-few", "--many", "499", "--few", "51")[0] == 0
    assert asked[-1][0].parts == ("many", "few")


def test_the_kinds_of_figures_of_several_files_are_those_of_one():
    assert all(set(kinds) <= set(plots.KIND_FIGURES[of]) for of, kinds in plots.SEVERAL_FIGURES.items())


def test_several_files_become_one_figure_of_the_parts_that_all_have(run, save, tmp_path, monkeypatch, asked):
    monkeypatch.chdir(tmp_path)
    two, three = (classes(n, steps=8) for n in (2, 3))
    a, b = (save(f"{m}.h5", s, provenance={"method": m}) for m, s in (("ce", two), ("sam", three)))
    assert run("plot", a, b) == (0, "density.png\n", [])
    assert run("plot", a, b, "--parts", "1", "--names", "CE, CE + SAM", "-o", "9.pdf", "--limits=-100:1e2") == (
        0,
        "9.pdf\n",
        [],
    )
    planes = [save(f"{name}/plane.h5", three_classes()) for name in "xy"]
    assert run("plot", *planes, "--groups", "head-tail", "--vmin", "0.1")[:2] == (0, "contour.png\n")
    lines = [save(f"{name}/line.h5", three_lines()) for name in "xy"]
    assert run("plot", *lines, "--linear")[:2] == (0, "line.png\n")
    assert run("plot", *lines, "--groups", "all")[0] == 0
    runs = [save(f"{name}/f.h5", features(3, 2)) for name in "xy"]
    assert run("plot", *runs)[:2] == (0, "quality.png\n")
    assert [(list(results), parts, options) for results, parts, options in asked] == [
        (["ce", "sam"], ["class 0", "class 1"], {}),
        (["CE", "CE + SAM"], ["class 1"], {"limits": (-100, 100)}),
        ([str(p) for p in planes], ["head", "tail"], {"vmin": 0.1}),
        ([str(p) for p in lines], None, {"log": False}),  # the mean over all samples
        ([str(p) for p in lines], ["all"], {}),
        ([str(p) for p in runs], None, {}),
    ]
    np.testing.assert_array_equal(asked[0][0]["sam"].alpha, three.alpha)


@pytest.mark.parametrize("made", [lambda: classes(2, steps=8), lambda: three_classes(5, 5)])
def test_several_files_are_drawn(run, save, tmp_path, made):
    files = [save(f"{name}.h5", made()) for name in ("one", "two")]
    assert run("plot", *files, "-o", tmp_path / "both.png")[0] == 0
    assert (tmp_path / "both.png").read_bytes().startswith(b"\x89PNG")


def test_a_figure_of_files_whose_parts_are_of_other_classes_says_so(run, tmp_path):
    found = []
    for name, tail in (("a", 2), ("b", 3)):
        about = {"partition": {"class 0": [0], "class 1": [1], "class 2": [tail]}}
        store.save(tmp_path / f"{name}.h5", three_lines(provenance=about))
        found.append(tmp_path / f"{name}.h5")
    out = tmp_path / "f.png"
    said = ["note: the files differ in the classes of class 2: 2 in a; 3 in b"]
    assert run("plot", *found, "--parts", "class 2", "-o", out) == (0, f"{out}\n", said)
    assert run("plot", *found, "--parts", "class 1", "-o", out) == (0, f"{out}\n", [])


def test_several_files_that_are_no_figure_are_refused_in_one_line(run, save, asked):
    a, b, plane, line_of = save("a.h5"), save("b.h5"), save("p.h5", three_classes()), save("l.h5", three_lines())
    nine = [save(f"{k}.h5") for k in range(9)]
    other = save("o.h5", parts=("x", "y", "z"))
    for words, line in (
        ([a, plane], f"{a} is a spectrum, {plane} a surface: draw files of one kind together"),
        ([plane, line_of], f"{plane} is a surface, {line_of} a line: draw files of one kind together"),
        ([a, b, a], f"{a} is given twice: name each file once"),
        ([a, b, "--kind", "summary"], "--kind summary is of one file: draw them one by one, or all of them by --kind"),
        ([save("h.h5", history()), save("i.h5", history())], "there is no figure of several files of a history"),
        ([a, other], "the files have no part in common: analyse them with one --partition, or join by --groups"),
        ([a, b, "--parts", "cat"], "'cat' for --parts: choose class 0, class 1, class 2, or a position from 0 to 2"),
        (nine, "27 panels are too many for a figure: choose by --parts 'class 0,class 2'"),
        ([a, b, "--names", "one"], "--names 'one': give 2 names that differ, with commas between them"),
        ([a, b, "--names", "one,one"], "--names 'one,one': give 2 names that differ"),
        ([a, "--names", "one"], "--names is for several files: leave it out for one"),
        ([a, b, "--levels", "5"], "--levels is for --kind contour"),
        ([plane, "--limits=0:1"], "--limits is for --kind density; leave it out for --kind contour"),
        ([a, "--limits=1"], "'1' is not of the form MIN:MAX, as in --limits=-100:100"),
    ):
        code, out, err = run("plot", *words)
        assert (code, out, len(err)) == (2, "", 1), words
        assert line in err[0]
    assert not asked


@pytest.mark.parametrize("command", ["plot", "compare", "report", "export --to csv"])
def test_a_checkpoint_is_called_one_and_a_result_is_read_whatever_it_is_called(run, save, tmp_path, command):
    path = tmp_path / "last.pt"
    torch.save({"w": torch.zeros(2)}, path)
    code, out, (line,) = run(*command.split(), path)
    assert (code, out) == (2, "")
    assert f"{path} is a checkpoint, not a result: landscape info {path} says what it holds" in line
    assert f"landscape hessian --ckpt {path} --per-class" in line
    assert run("compare", save("result.pt"))[0] == 0


def test_what_is_for_surfaces_only_is_refused_elsewhere(run, file, save, tmp_path):
    surface = save("s.h5", three_classes())
    for words, line in (
        (["plot", file, "--groups", "all"], "only the traces of a spectrum can be joined"),
        (["compare", file, "--weights", "drv"], "--weights drv is unknown: did you mean drw? choose natural"),
        (
            ["plot", surface, "--dir-file", file],
            f"--dir-file is for surfaces of tomgoldstein/loss-landscape, {surface}",
        ),
        (["plot", plane_npz(tmp_path / "plane.npz"), "--dir-file", file], "--dir-file is for surfaces of tomgoldstein"),
        (["plot", surface, "--many", "100"], "--many is for --groups and --weights"),
        (["compare", surface, "--few", "20"], "--few is for --groups and --weights"),
        (["export", surface, "--to", "csv", "--ends", "2"], "--ends is for --groups and --weights"),
        (["export", surface, "--to", "csv", "--proj-file", file], "--proj-file is for surfaces of tomgoldstein"),
        (["export", surface, "--to", "csv", "--log"], "--log is for --to vtk; leave it out for --to csv"),
        (["export", surface, "--to", "npz", "--part", "a"], "--part is for --to vtk; leave it out for --to npz"),
        (
            ["export", surface, "--to", "pyhessian"],
            f"{surface} is a surface; --to pyhessian is for results of landscape",
        ),
        (
            ["export", file, "--to", "vtk"],
            f"{file} is a spectrum; --to vtk is for results of landscape surface1d, surf",
        ),
        (["export", file, "--to", "goldstein"], f"{file} is a spectrum; --to goldstein is for results of"),
        (["plot", surface, "--groups", "thirds"], "--groups thirds is unknown: choose all, class, head-tail"),
        (["plot", save("p.h5", plane_of_two())], "there is no figure of a plane: choose a file of spectrum"),
    ):
        code, out, err = run(*words)
        assert (code, out, len(err)) == (2, "", 1)
        assert line in err[0]


def test_a_part_whose_name_has_a_comma_can_be_asked_for():
    parts = ("fox, red", "1")
    # private: no data set here has a comma in a name
    assert plot._select(parts, "fox, red") == ["fox, red"]
    assert plot._select(parts, "1") == ["1"]  # a name wins over a position


@pytest.mark.parametrize("command", ["plot", "compare", "info", "export --to csv"])
def test_a_missing_file_is_named(run, command):
    code, _, err = run(*command.split(), "none.h5")
    assert (code, err) == (2, ["landscape: error: there is no file none.h5"])
