"""The command line as its users meet it: what it prints, where, and its exit code."""

import csv
import dataclasses
import json
import logging
import subprocess
import sys
from importlib import metadata

import click
import h5py
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from foreign_files import directions, goldstein, plane_npz, tensors_of
from made import features, history
from matplotlib.figure import Figure
from surfaces import three_classes, three_lines
from synthetic import classes, spectrum_of

from landscape import cli, plots
from landscape.cli import inspect, show
from landscape.cli.console import Console, error, strict_json
from landscape.errors import DataError
from landscape.objective.jobs import Interrupted
from landscape.plots.layout import theme
from landscape.results import Plane, Trajectory, quadrature, store
from landscape.results.foreign import interop, surface_files
from landscape.results.regroup import regroup


@pytest.fixture
def run(capsys):
    """Run a command line; return its exit code, stdout and the lines of stderr."""

    def run(*words):
        code = cli.main([str(w) for w in words])
        out, err = capsys.readouterr()
        return code, out, err.splitlines()

    return run


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "spectrum.h5"
    store.save(path, classes(3, steps=8))
    return path


@pytest.fixture
def save(tmp_path):
    def save(name, spectrum=None, **changes):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        store.save(path, dataclasses.replace(spectrum or classes(3, steps=8), **changes))
        return path

    return save


# The group and its error boundary.


@pytest.fixture
def failing(monkeypatch):
    """Let the command "fail" raise an exception."""

    def arrange(exception):
        def body():
            raise exception

        entry = metadata.EntryPoint("fail", "nowhere:command", "landscape.commands")
        monkeypatch.setattr(cli, "_plugins", lambda: {"fail": entry})
        monkeypatch.setattr(metadata.EntryPoint, "load", lambda self: click.Command("fail", callback=body))

    return arrange


@pytest.mark.parametrize(
    ("exception", "code", "line"),
    [
        (DataError("class 7 has\n no samples"), 2, "landscape: error: class 7 has no samples"),
        (KeyboardInterrupt(), 130, "landscape: error: interrupted"),
        (Interrupted("interrupted: 3 of 9"), 130, "landscape: error: interrupted: 3 of 9"),
        (click.UsageError("no\nsuch thing"), 2, "landscape: error: no such thing"),
        (MemoryError("12 GiB"), 2, "landscape: error: out of memory: lower --batch-size or --cache"),
        (type("OutOfMemoryError", (RuntimeError,), {})("CUDA"), 2, "landscape: error: out of memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), 2, "landscape: error: out of memory"),
        (
            EOFError("ended early"),
            1,
            "landscape: error: this is a fault of landscape, not yours: EOFError: ended early",
        ),
        (
            ValueError("a\nb"),
            1,
            "landscape: error: this is a fault of landscape, not yours: ValueError: a b; `landscape -v ...` shows",
        ),
    ],
)
def test_every_error_is_one_line_on_stderr_and_an_exit_code(run, failing, exception, code, line):
    failing(exception)
    found, out, err = run("fail")
    assert (found, out) == (code, "")
    assert [text for text in err if text] == [err[-1]]  # click ends the line of ^C before it
    assert err[-1].startswith(line)


@pytest.mark.parametrize("words", [["-v", "fail"], ["fail", "-v"], ["fail", "--verbose"]])
def test_verbose_shows_the_traceback_before_the_line(run, failing, words):
    failing(ValueError("broken"))
    code, _, err = run(*words)
    assert code == 1
    assert err[0].startswith("Traceback")
    assert err[-1].startswith("landscape: error:")
    assert not logging.getLogger("landscape").isEnabledFor(logging.INFO)  # not for the next command


def test_verbose_shows_the_log_and_without_it_only_warnings(run, monkeypatch):
    def body():
        logging.getLogger("landscape.room").info("a detail")
        logging.getLogger("landscape.room").warning("a [warning]")

    monkeypatch.setitem(cli.COMMANDS, "log", ("x:y", ""))
    monkeypatch.setattr(cli, "import_module", lambda name: type("M", (), {"y": click.Command("log", callback=body)}))
    _, out, err = run("log")
    assert out == ""
    assert "a [warning]" in " ".join(err)
    assert "a detail" not in " ".join(err)
    assert "a detail" in " ".join(run("log", "-v")[2])


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["plto"], "No such command 'plto'"),
        (["plot"], "Missing argument 'FILES...'. See landscape plot -h."),
        (["plot", "--kind", "pie", "x.h5"], "'pie' is not one of"),
        (["info", "--colour", "x.h5"], "No such option"),
    ],
)
def test_wrong_usage_is_one_line(run, words, line):
    code, out, err = run(*words)
    assert (code, out, len(err)) == (2, "", 1)
    assert line in err[0]


def test_a_reader_that_goes_away_is_no_error(file):
    script = "import sys; from landscape.cli import main; sys.exit(main(sys.argv[1:]))"
    command = f"{sys.executable} -c '{script}' info {file} | head -c 1 >/dev/null; exit ${{PIPESTATUS[0]}}"
    found = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert found.returncode in {0, 1}
    assert found.stderr == ""


@pytest.mark.parametrize("words", [[], ["-h"], ["--help"]])
def test_help_names_every_command(run, words):
    code, out, err = run(*words)
    assert (code, err) == (0, [])
    for name, (_, line) in cli.COMMANDS.items():
        assert name in out
        assert line in out


def test_commands_of_other_packages_are_listed_without_being_loaded(run, monkeypatch):
    entries = {"theirs": metadata.EntryPoint("theirs", "not.installed:command", "landscape.commands")}
    monkeypatch.setattr(cli, "_plugins", lambda: entries)
    assert "theirs" in run("-h")[1]
    code, _, err = run("theirs")
    assert code == 1
    assert "ModuleNotFoundError" in err[0]


def test_our_commands_win_over_those_of_other_packages(run, monkeypatch):
    entries = {"plot": metadata.EntryPoint("plot", "not.installed:command", "landscape.commands")}
    monkeypatch.setattr(cli, "_plugins", lambda: entries)
    code, out, _ = run("plot", "-h")
    assert code == 0
    assert "Draw a figure" in out


def test_version(run, monkeypatch):
    monkeypatch.setattr(metadata, "version", {cli.PACKAGE: "1.2.3"}.__getitem__)
    assert run("--version") == (0, "landscape 1.2.3\n", [])


def test_help_and_what_shows_results_start_without_torch(tmp_path, file):
    script = (
        "import sys; from landscape.cli import main\n"
        "f, s = sys.argv[1:]\n"
        "for words in (['-h'], ['plot', f], ['compare', f, f], ['export', f, '--to', 'csv'], ['info', f, '--json'],\n"
        "    ['compare', s, s, '--groups', 'head-tail'], *(['export', s, '--to', form] for form in ('vtk', 'npz')),\n"
        "    ['export', s, '--to', 'goldstein']):\n"
        "    assert main(words) == 0, words\n"
        "assert 'torch' not in sys.modules\n"
    )
    store.save(tmp_path / "surface.h5", three_classes())
    command = [sys.executable, "-c", script, str(file), str(tmp_path / "surface.h5")]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


# plot


@pytest.mark.parametrize("kind", plots.KIND_FIGURES["spectrum"])
def test_plot_writes_beside_the_file_and_says_where(run, save, kind):
    file = save("spectrum.h5", **dict.fromkeys(("overlap", "subspace_overlap", "gradient_curvature"), np.eye(3)))
    code, out, err = run("plot", file, "--kind", kind)
    path = file.with_suffix(f".{kind}.png")
    assert (code, out, err) == (0, f"{path}\n", [])
    assert path.read_bytes().startswith(b"\x89PNG")


def test_plot_offers_every_kind_of_figure():
    assert {kind: list(figures) for kind, figures in show.FIGURES.items()} == {
        kind: list(figures) for kind, figures in plots.KIND_FIGURES.items()
    }


def test_a_figure_of_another_kind_of_result_is_refused(run, file):
    code, _, err = run("plot", file, "--kind", "quality")
    line = "--kind quality is not for a spectrum: choose density, summary, overlap, gradients, subspaces"
    assert (code, err) == (2, [f"landscape: error: {line}"])


def test_plot_passes_its_options_on(run, file, tmp_path, monkeypatch):
    asked = []
    real = plots.KIND_FIGURES["spectrum"]["density"]
    recorded = {"density": lambda *args, **options: asked.append((args[1], options)) or real(*args, **options)}
    monkeypatch.setattr(plots, "KIND_FIGURES", {"spectrum": recorded})
    out = tmp_path / "figure.svg"
    assert run("plot", file, "--parts", "class 2, 0", "--axis", "linear", "--width", "papyan", "-o", out)[0] == 0
    assert asked == [(["class 2", "class 0"], {"axis": "linear", "width": "papyan"})]
    assert out.read_bytes().startswith(b"<?xml")


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["-o", "figure.jpg"], "'figure.jpg': end the name in .png, .pdf or .svg"),
        (["--parts", "cat"], "--parts: no part 'cat'; choose from class 0, class 1, class 2 or 0 to 2"),
        (["--parts", "0,class 0"], "'class 0' is named twice in '0,class 0'"),
        (["--kind", "summary", "--width", "1"], "--width is for --kind density"),
        (["--width", "wide"], "--width 'wide' is neither a number nor one of"),
    ],
)
def test_plot_refuses_what_does_not_fit(run, file, words, line):
    code, out, err = run("plot", file, *words)
    assert (code, out, len(err)) == (2, "", 1)
    assert line in err[0]


@pytest.fixture
def drawn(monkeypatch):
    """The results that figures of surfaces and trajectories are asked for."""
    asked = []

    def draw(result, parts, **options):
        asked.append(result)
        return Figure()

    names = {kind: {"contour": draw} for kind in ("surface", "trajectory")}
    monkeypatch.setattr(plots, "KIND_FIGURES", names)
    monkeypatch.setattr(show, "FIGURES", {kind: tuple(figures) for kind, figures in names.items()})
    return asked


def test_a_surface_of_another_program_is_drawn_as_it_is(run, tmp_path, drawn):
    x, y = np.linspace(-1, 1, 5), np.linspace(-2, 2, 9)
    named = tmp_path / "net.t7_weights.h5_[-1.0,1.0,5]x[-2.0,2.0,9].h5"
    goldstein(named, x, y, dir_file="net.t7_weights.h5")
    for file in (named, plane_npz(tmp_path / "plane.npz")):
        assert run("plot", file) == (0, f"{file.with_suffix('.contour.png')}\n", [])
    np.testing.assert_array_equal(drawn[0].loss, surface_files.read(named).loss)
    assert drawn[1].runs == ("curve", "bend")
    directions(tmp_path / "d.h5", tensors_of(2.0), tensors_of(0.5, seed=1))
    with h5py.File(tmp_path / "path_proj_lstsq.h5", "w") as root:
        root["proj_xcoord"], root["proj_ycoord"] = [0.0, 1.0], [0.0, -1.0]
    words = ["--dir_file", tmp_path / "d.h5", "--proj-file", tmp_path / "path_proj_lstsq.h5"]
    assert run("plot", named, *words)[0] == 0
    np.testing.assert_allclose(drawn[2].unit_length, [2.0, 0.5])
    np.testing.assert_array_equal(drawn[2].mark_position, [[0, 0], [1, -1]])


def test_a_surface_is_drawn_for_any_grouping_and_weighting(run, tmp_path, drawn):
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
    for words, asked in cases.items():
        assert run("plot", path, *words)[0] == 0
        assert drawn[-1].parts == regroup(ours, *asked).parts
        np.testing.assert_array_equal(drawn[-1].loss, regroup(ours, *asked).loss)
    assert run("plot", path, "--groups", "many-medium-few", "--many", "499", "--few", "51")[0] == 0
    assert drawn[-1].parts == ("many", "few")


def test_the_kind_of_figure_of_several_files_is_one_that_there_is():
    assert set(show.SEVERAL) == set(plots.SEVERAL_FIGURES)
    assert all(kind in plots.KIND_FIGURES[of] for of, kind in show.SEVERAL.items())


@pytest.fixture
def together(monkeypatch):
    """What figures of several results are asked for: names, parts, options; nothing is drawn."""
    asked = []

    def draw(results, parts, **options):
        asked.append((results, parts, options))
        return Figure()

    monkeypatch.setattr(plots, "SEVERAL_FIGURES", dict.fromkeys(plots.SEVERAL_FIGURES, draw))
    return asked


def test_several_files_become_one_figure_of_the_parts_that_all_have(run, save, tmp_path, monkeypatch, together):
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
    assert [(list(results), parts, options) for results, parts, options in together] == [
        (["ce", "sam"], ["class 0", "class 1"], {}),
        (["CE", "CE + SAM"], ["class 1"], {"limits": (-100, 100)}),
        ([str(p) for p in planes], ["head", "tail"], {"vmin": 0.1}),
        ([str(p) for p in lines], None, {"log": False}),  # the mean over all samples
        ([str(p) for p in lines], ["all"], {}),
        ([str(p) for p in runs], None, {}),
    ]
    np.testing.assert_array_equal(together[0][0]["sam"].alpha, three.alpha)


@pytest.mark.parametrize("made", [lambda: classes(2, steps=8), lambda: three_classes(5, 5)])
def test_several_files_are_drawn(run, save, tmp_path, made):
    files = [save(f"{name}.h5", made()) for name in ("one", "two")]
    assert run("plot", *files, "-o", tmp_path / "both.png")[0] == 0
    assert (tmp_path / "both.png").read_bytes().startswith(b"\x89PNG")


def test_several_files_that_are_no_figure_are_refused_in_one_line(run, save, together):
    a, b, plane, line_of = save("a.h5"), save("b.h5"), save("p.h5", three_classes()), save("l.h5", three_lines())
    nine = [save(f"{k}.h5") for k in range(9)]
    other = save("o.h5", parts=("x", "y", "z"))
    for words, line in (
        ([a, plane], f"{a} is a spectrum, {plane} a surface: draw files of one kind together"),
        ([plane, line_of], f"{plane} is a surface, {line_of} a line: draw files of one kind together"),
        ([a, b, a], f"{a} is given twice: name each file once"),
        ([a, b, "--kind", "summary"], "--kind summary is of one file: draw them one by one, or all of them by --kind"),
        ([save("h.h5", history()), save("i.h5", history())], "there is no figure of several files that are a history"),
        ([a, other], "the files have no part in common: analyse them with one --partition, or join by --groups"),
        ([a, b, "--parts", "cat"], "--parts: no part 'cat'; choose from class 0, class 1, class 2 or 0 to 2"),
        (nine, "27 panels are too many for a figure: choose by --parts class 0,class 2"),
        ([a, b, "--names", "one"], "--names 'one': give 2 names that differ, with commas between them"),
        ([a, b, "--names", "one,one"], "--names 'one,one': give 2 names that differ"),
        ([a, "--names", "one"], "--names is for several files: leave it out for one"),
        ([a, b, "--levels", "5"], "--levels is for --kind contour"),
        ([plane, "--limits=0:1"], "--limits is for --kind density; leave it out for --kind contour"),
        ([a, "--limits=1"], "'1' is not of the form MIN:MAX, as in --limits=-100:100"),
        ([a, "--limits=2:1"], "the axis of the eigenvalues cannot go from 2 to 1"),
    ):
        code, out, err = run("plot", *words)
        assert (code, out, len(err)) == (2, "", 1), words
        assert line in err[0]
    assert not together


@pytest.mark.parametrize("command", ["plot", "compare", "report", "export --to csv"])
def test_a_checkpoint_is_called_one_and_a_result_is_read_whatever_it_is_called(run, save, tmp_path, command):
    path = tmp_path / "last.pt"
    torch.save({"w": torch.zeros(2)}, path)
    code, out, (line,) = run(*command.split(), path)
    assert (code, out) == (2, "")
    assert f"{path} is a checkpoint, no result: landscape info {path} says what it holds" in line
    assert f"landscape hessian --ckpt {path} --per-class" in line
    assert run("compare", save("result.pt"))[0] == 0


def test_what_is_for_surfaces_only_is_refused_elsewhere(run, file, save):
    surface = save("s.h5", three_classes())
    for words, line in (
        (["plot", file, "--groups", "all"], "--groups and --weights of spectra are for landscape compare"),
        (["compare", file, "--weights", "drv"], "weights 'drv' are unknown: choose natural, balanced, training, drw"),
        (
            ["plot", surface, "--dir-file", file],
            f"--dir-file is for surfaces of tomgoldstein/loss-landscape, {surface}",
        ),
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
        (["plot", surface, "--groups", "thirds"], "groups 'thirds' are unknown: choose all, class, head-tail"),
        (["plot", save("p.h5", plane_of_two())], "there is no figure of a plane: choose a file of spectrum"),
    ):
        code, out, err = run(*words)
        assert (code, out, len(err)) == (2, "", 1)
        assert line in err[0]


def plane_of_two():
    return Plane(
        axes=("random", "random"),
        directions=np.eye(2, 3),
        buffer_directions=np.zeros((2, 0)),
        origin=np.arange(3.0),
        buffer_origin=np.zeros(0),
        unit_length=np.ones(2),
        explained=np.full(2, np.nan),
        tensors=("w",),
        sizes=np.array([3]),
        cosine=0.0,
        normalisation="none",
        ignored="none",
    )


def test_a_part_whose_name_has_a_comma_can_be_asked_for():
    parts = ("fox, red", "1")
    assert show._select(parts, "fox, red") == ["fox, red"]
    assert show._select(parts, "1") == ["1"]  # a name wins over a position


@pytest.mark.parametrize("command", ["plot", "compare", "info", "export --to csv"])
def test_a_missing_file_is_named(run, command):
    code, _, err = run(*command.split(), "none.h5")
    assert (code, err) == (2, ["landscape: error: there is no file none.h5"])


# compare


def test_compare_shows_each_number_with_its_error(run, save):
    spectrum = classes(1, steps=3)
    numbers = {
        "lambda_max": np.array([38.1512]),
        "lambda_max_residual": np.array([0.42]),
        "converged": np.array([False]),
        "trace": np.array([196.49]),
        "trace_stderr": np.array([2.9]),
    }
    other = classes(2, steps=3, probes=1)
    code, out, err = run("compare", save("ce.h5", spectrum, **numbers), save("sam.h5", other))
    assert (code, err) == (0, [])
    head, first, second = (
        [cell for cell in line.split("  ") if cell]
        for line in out.splitlines()
        if line[:2] == "  " and line[2:3].isalpha()
    )
    assert [cell.strip() for cell in head] == ["part", "ce", "sam"]
    assert first[1].strip() == "38.15 ± 0.42* / 196.5 ± 2.9"
    assert first[2].endswith(" ± ?")
    assert [cell.strip() for cell in second[:2]] == ["class 1", "-"]
    assert "* lambda_max has not converged" in out
    assert "one probe cannot tell" in out


def test_compare_joins_the_traces_of_spectra_by_groups_and_weights(run, save, tmp_path):
    spectrum = classes(3, steps=3)
    trace = {"trace": np.array([1.0, 2.0, 6.0]), "trace_stderr": np.array([0.1, 0.2, 0.3])}
    file = save("s.h5", spectrum, **trace)
    (tmp_path / "w.json").write_text('{"class 0": 1, "class 1": 1, "class 2": 0}')
    for weights, expected in (("balanced", "3.00 ± 0.20"), (str(tmp_path / "w.json"), "1.50 ± 0.15")):
        code, out, err = run("compare", file, file, "--weights", weights)
        assert (code, err) == (0, [])
        assert "trace of the weighted loss ± standard error at most" in out
        assert out.count(expected) == 2
    found = json.loads(run("compare", file, file, "--groups", "head-tail", "--json")[1])
    assert [row["part"] for row in found["rows"]] == ["head", "tail"]
    assert run("export", file, "--to", "csv", "--weights", "balanced", "-o", tmp_path / "t.csv")[0] == 0
    assert (tmp_path / "t.csv").read_text().splitlines()[1].startswith("all,")


def test_compare_says_that_curvature_grows_with_the_scale_of_a_cosine_classifier(run, save):
    heads = {"a": "linear", "b": "cosine, scale 30", "c": None, "d": "cosine, scale 30"}
    files = {n: save(f"{n}.h5", provenance={"method": n, "classifier": head}) for n, head in heads.items()}
    _, out, _ = run("compare", *files.values())
    (line,) = [line for line in out.splitlines() if "classifier" in line]
    assert "differ in classifier: linear in a; cosine, scale 30 in b, d; curvature grows with the scale" in line
    assert "the Gauss-Newton matrix by s squared: compare shapes, and ratios" in line
    assert line in json.loads(run("compare", *files.values(), "--json")[1])["notes"]
    for pair in ("bd", "ac"):  # alike, or one that does not say
        assert "classifier" not in run("compare", *(files[n] for n in pair))[1]


def test_compare_is_not_folded_in_a_pipe(run, save):
    names = [f"a-rather-long-name-of-a-run-{i}.h5" for i in range(9)]
    _, out, _ = run("compare", *(save(name) for name in names))
    (head,) = (line for line in out.splitlines() if "name-of-a-run" in line)
    assert all(name.removesuffix(".h5") in head for name in names)


def test_compare_names_columns_by_method_stem_or_path(run, save):
    def columns(*files):
        return [c["name"] for c in json.loads(run("compare", *files, "--json")[1])["columns"]]

    ce, sam = (save(f"{m}/s.h5", provenance={"method": m}) for m in ("ce", "sam"))
    assert columns(ce, sam) == ["ce", "sam"]
    a, b = save("a.h5"), save("b.h5")
    assert columns(a, b, ce) == ["a", "b", "s"]
    assert columns(a, a) == [str(a), str(a)]
    assert columns(ce, save("other/s.h5")) == [str(ce), str(ce).replace("/ce/", "/other/")]


def test_compare_notes_what_else_differs(run, save):
    base = classes(3, steps=8)
    a = save("a.h5", base)
    b = save("b.h5", base, operator="ggn", n_samples=np.array([9, 8, 7]), provenance={"loss": "balanced"})
    _, out, _ = run("compare", a, b)
    notes = [line.removeprefix("note: the files differ in ") for line in out.splitlines() if line.startswith("note")]
    assert notes == [
        "operator: hessian in a; ggn in b",
        "loss: ce in a; balanced in b",
        "params: all trainable in a; unknown in b",
        "split: train in a; unknown in b",
        "samples of class 0: 5000 in a; 9 in b (and so in 2 more)",
    ]
    assert "note" not in run("compare", a, save("c.h5", base))[1]


def test_compare_json_is_strict_and_complete(run, save):
    file = save("one.h5", classes(2, steps=3, probes=1))
    code, out, _ = run("compare", file, save("two.h5", classes(1, steps=3)), "--json")
    found = json.loads(out, parse_constant=pytest.fail)
    first, second = found["rows"]
    assert code == 0
    assert first["values"][0]["trace_stderr"] is None
    assert first["values"][0]["lambda_max"] == store.load(file).lambda_max[0]
    assert second["part"] == "class 1"
    assert second["values"][1] is None


def test_compare_latex_escapes_names(run, save):
    file = save("a_b.h5", classes(1, steps=3), parts=("50% $_\\^~",))
    code, out, _ = run("compare", file, "--latex")
    assert code == 0
    (row,) = (line for line in out.splitlines() if line.startswith("50"))
    assert row.startswith(r"50\% \$\_\textbackslash{}\textasciicircum{}\textasciitilde{} & ")
    assert r" $\pm$ " in row
    assert r"a\_b" in out
    assert run("compare", file, "--latex", "--json")[0] == 2


def test_results_of_two_kinds_or_of_a_kind_that_is_not_compared_are_refused(run, save):
    spectrum, surface, plane = save("a.h5"), save("b.h5", three_classes()), save("c.h5", plane_of_two())
    for files, line in (
        ((spectrum, surface), f"{spectrum} is a spectrum, {surface} a surface: compare results of one kind"),
        ((spectrum, plane), f"{plane} is a plane: give results of landscape hessian, of sharpness, "),
    ):
        code, out, err = run("compare", *files)
        assert (code, out, len(err)) == (2, "", 1)
        assert err[0].startswith(f"landscape: error: {line}")


def cells_of(line):
    return [cell.strip() for cell in line.split("  ") if cell.strip()]


def test_surfaces_are_compared_by_loss_radius_rise_and_barrier(run, save):
    ce, sam = (
        three_lines(provenance={"method": "ce"}),
        three_lines(provenance={"method": "sam"}, batch_norm="reestimate"),
    )
    sam = dataclasses.replace(sam, doubling_radius=np.array([0.5, np.nan, 2.0]))
    files = save("a.h5", ce), save("b.h5", sam)
    code, out, err = run("compare", *files)
    lines = out.splitlines()
    assert (code, err) == (0, [])
    assert lines[0].strip() == "loss at the centre / doubling radius / worst rise within 0.5 / barrier"
    assert cells_of(lines[2]) == ["part", "ce", "sam"]
    row = next(cells_of(line) for line in lines if "class 1" in line)
    assert row[2].split(" / ")[1] == "-"
    assert row[1].split(" / ")[3] == theme.number(ce.barrier[1])
    assert f"ce: {ce.verdict}" in lines
    assert "note: the files differ in batch norm: keep in ce; reestimate in sam" in lines
    found = json.loads(run("compare", *files, "--json")[1], parse_constant=pytest.fail)
    assert found["kind"] == "surface"
    assert found["columns"][0]["remark"] == ce.verdict
    assert found["rows"][1]["values"][1]["doubling_radius"] is None
    assert found["rows"][2]["values"][0]["barrier"] == ce.barrier[2]
    assert r"\begin{tabular}" in run("compare", *files, "--latex")[1]
    _, out, _ = run("compare", files[0], save("c.h5", dataclasses.replace(ce, barrier=None)))
    assert cells_of(next(line for line in out.splitlines() if "class 1" in line))[2].endswith(" / -")


def test_surfaces_in_other_planes_or_units_say_so_and_a_plane_has_no_barrier(run, save):
    a, b = save("a.h5", three_classes()), save("b.h5", three_classes(nx=5, unit_length=np.array([1.0, 2.0])))
    _, out, _ = run("compare", a, b)
    assert "barrier" not in out
    assert "note: the files differ in x: -1:1:9 in a; -1:1:5 in b" in out
    assert "note: the files differ in unit lengths: 2, 0.5 in a; 1, 2 in b" in out


def test_surfaces_are_compared_after_regrouping_and_with_those_of_other_programs(run, save, tmp_path):
    ours = save("ours.h5", three_classes())
    _, out, _ = run("compare", ours, "--groups", "head-tail", "--weights", "balanced")
    assert [cells_of(line)[0] for line in out.splitlines()[4:6]] == ["head", "tail"]
    theirs = goldstein(tmp_path / "theirs.h5", np.linspace(-1, 1, 5), np.linspace(-1, 1, 5))
    code, out, _ = run("compare", ours, theirs)
    assert code == 0
    assert next(cells_of(line) for line in out.splitlines() if "train" in line)[2] == "0.5000 / - / -"


# export


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


# info


def test_info_tells_what_a_result_holds(run, file):
    code, out, err = run("info", file)
    assert (code, err) == (0, [])
    assert "spectrum, version 1, 3 parts" in out
    assert "class 2" in out
    assert "part 3 x probe 3 x step 8" in out
    assert "all trainable" in out  # of the provenance


def test_info_json_holds_axes_and_units(run, file):
    found = json.loads(run("info", file, "--json")[1], parse_constant=pytest.fail)
    assert found["fields"]["alpha"]["axes"] == ["part", "probe", "step"]
    assert found["fields"]["alpha"]["shape"] == [3, 3, 8]
    assert found["fields"]["trace"]["unit"] == "loss"
    assert found["options"]["operator"] == "hessian"
    assert found["parts"][1] == {"name": "class 1", "n_samples": 2500, "n_used": 2500, "train_counts": 2500}
    assert found["provenance"]["loss"] == "ce"


def test_info_tells_what_a_checkpoint_holds(run, tmp_path):
    import torch

    path = tmp_path / "model.th"
    state = {"module.fc.weight": torch.zeros(3, 4), "module.bn.running_mean": torch.zeros(5)}
    torch.save({"state_dict": state, "best_prec1": 92.78}, path)
    code, out, _ = run("info", path, "--json")
    found = json.loads(out)
    assert code == 0
    assert (found["weights_at"], found["prefix"]) == ("state_dict", "module.")
    assert (found["tensors"], found["numbers"], found["of_which_batch_norm_statistics"]) == (2, 17, 5)
    assert found["beside_the_weights"] == {"best_prec1": 92.78}
    assert "92.78" in run("info", path)[1]


def test_info_explains_a_file_that_is_neither(run, tmp_path):
    (tmp_path / "notes.txt").write_text("not a result")
    (tmp_path / "broken.h5").write_text("not a result either")
    for name, words in (("notes.txt", "no checkpoint"), ("broken.h5", "not an HDF5 file"), ("none.pt", "no file")):
        code, _, err = run("info", tmp_path / name)
        assert (code, len(err)) == (2, 1)
        assert words in err[0]


@pytest.mark.parametrize(
    ("names", "prefix"),
    [(["module.a.w", "module.b"], "module."), (["a.w", "a.b"], "a."), (["w"], ""), (["a.x.w", "b.x.w"], "")],
)
def test_the_prefix_is_what_all_names_begin_with(names, prefix):
    assert inspect._common_prefix(names) == prefix


# The console.


def test_strict_json_has_no_nan_and_no_numpy():
    value = {"a": np.array([1.0, np.nan]), 2: (np.int64(3), np.bool_(True)), "b": float("inf"), "c": {"d"}}
    assert json.loads(strict_json(value)) == {"a": [1.0, None], "2": [3, True], "b": None, "c": ["d"]}


@pytest.mark.parametrize(("options", "spoken"), [({}, True), ({"quiet": True}, False), ({"json": True}, False)])
def test_text_is_printed_unless_quiet_or_json(capsys, options, spoken):
    console = Console(**options)
    console.say("result")
    console.note("remark")
    console.table(["name", "number"], [["[red]", "1"]])
    out, err = capsys.readouterr()
    assert ("result" in out) == ("[red]" in out) == ("remark" in err) == spoken
    console.json([1])
    assert json.loads(capsys.readouterr().out) == [1]


@pytest.mark.parametrize(
    ("terminal", "options", "shown"), [(True, {}, True), (False, {}, False), (True, {"json": True}, False)]
)
def test_progress_is_shown_on_a_terminal_only(capsys, monkeypatch, terminal, options, shown):
    monkeypatch.setenv("FORCE_COLOR" if terminal else "NO_COLOR", "1")
    with Console(**options).progress() as progress:
        progress(0, 4, "truck [1]")
        progress(1.5, 4, "frog [2]")
    out, err = capsys.readouterr()
    assert out == ""
    assert ("frog [2]" in err and " 38%" in err) == shown
    assert shown or err == ""


def test_error_is_one_line(capsys):
    error("a\n  b\tc")
    assert capsys.readouterr().err == "landscape: error: a b c\n"


def test_commands_also_run_inside_clicks_own_runner(file):
    assert CliRunner().invoke(cli.root, ["info", str(file)]).exit_code == 0


def test_a_spectrum_of_zeros_can_be_shown(run, save):
    file = save("zero.h5", spectrum_of({"zero": np.zeros(5)}, steps=3))
    assert run("plot", file)[0] == 0
    assert "0 / 0" in run("compare", file)[1]
