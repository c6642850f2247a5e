"""`landscape compare`: the numbers of several files side by side."""

import dataclasses
import json
import re
from functools import partial

import numpy as np
import pytest
from fitted import network, six_classes
from foreign_files import goldstein
from surfaces import plane_of_two, three_classes, three_lines
from synthetic import classes
from torch import nn

import landscape as ls
from landscape.cli.latex import siunitx
from landscape.results import columns, matched, store, written
from landscape.results.regroup import regroup


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
        assert "trace of H ± s.e. at most" in out
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
    assert columns(a, a) == ["a", "a"]  # no name could tell a file from itself
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


def test_compare_says_that_parts_of_one_name_are_of_other_classes_or_samples(run, save):
    """Head and tail go by the training counts: networks may have been trained with other orders of the classes."""
    base = dataclasses.replace(classes(2, steps=3), parts=("head", "tail"))
    about = {"data_sha256": "abc", "split": "test"}
    a = save("a.h5", base, provenance=about | {"partition": {"head": [0, 1], "tail": [9]}, "partition_sha256": "1"})
    b = save("b.h5", base, provenance=about | {"partition": {"head": [9], "tail": [0, 1]}, "partition_sha256": "2"})
    c = save("c.h5", base, provenance=about | {"partition": {"head": [1, 0], "tail": [8]}, "partition_sha256": "3"})
    d, e = (
        save(f"{n}.h5", base, provenance=about | {"partition": ["head", "tail"], "partition_sha256": n}) for n in "de"
    )

    def notes(*files):
        lines = run("compare", *files)[1].splitlines()
        return [line.removeprefix("note: the files differ in ") for line in lines if line.startswith("note")]

    assert notes(a, b) == ["the classes of head: 0, 1 in a; 9 in b (and so in 1 more)"]
    assert notes(a, c) == ["the classes of tail: 9 in a; 8 in c"]
    assert notes(d, e) == ["the samples in each part (SHA-256): d in d; e in e"]
    assert notes(a, a) == notes(d, d) == notes(a, d) == []


def test_compare_tells_losses_of_one_name_by_their_values(run, save):
    abouts = [("focal", ["1.014", "5.37"]), ("focal", ["0.5", "2"]), ("focal", []), ("focal", None), ("ce", None)]
    files = [
        save(f"{k}.h5", provenance={"loss": name} | ({} if values is None else {"loss_values": values}))
        for k, (name, values) in enumerate(abouts)
    ]

    def notes(*chosen):
        return json.loads(run("compare", *(files[k] for k in chosen), "--json")[1])["notes"]

    of = "focal (at drawn outputs {})".format
    assert notes(0, 1, 2, 3, 4) == [
        f"note: the files differ in loss: {of('1.014 and 5.37')} in 0; {of('0.5 and 2')} in 1; "
        f"{of('unknown')} in 2, 3; ce in 4"
    ]
    assert notes(0, 4) == ["note: the files differ in loss: focal in 0; ce in 4"]
    assert notes(0, 0) == []


def test_compare_notes_long_values_that_differ_at_their_end_only(run, save):
    statistics = [[[0.4914, 0.4822, 0.4465], [0.2023, 0.1994, last]] for last in (0.201, 0.202)]
    about = [
        {"normalisation": of, "params": "a" * 50 + str(k), "data_sha256": f"{k}" * 64}
        for k, of in enumerate(statistics)
    ]
    files = [save(f"{k}.h5", provenance=of) for k, of in enumerate(about)]
    notes = json.loads(run("compare", *files, "--json")[1])["notes"]
    assert notes == [
        f"note: the files differ in params: {about[0]['params']} in 0; {about[1]['params']} in 1",
        "note: the files differ in data sha256: 000000000000... in 0; 111111111111... in 1",
        f"note: the files differ in normalisation: {statistics[0]} in 0; {statistics[1]} in 1",
    ]


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
    first, *cells = row.removesuffix(r" \\").split(" & ")
    assert first == r"50\% \$\_\textbackslash{}\textasciicircum{}\textasciitilde{}"
    assert r"\multicolumn{4}{c}{a\_b}" in out
    assert r"\begin{tabular}{lSSSS}" in out
    assert " & {samples} & {loss} & {lambda\\_max, $\\pm$ residual} & {trace, $\\pm$ estimate}" in out
    found = store.load(file)
    assert cells[0] == str(int(found.n_samples[0]))
    for cell, value in zip(cells[1:], (found.loss, found.lambda_max, found.trace), strict=True):
        assert float(cell.split(" +- ")[0].split("{")[0]) == pytest.approx(value[0], rel=5e-3)
    assert run("compare", file, "--latex", "--json")[0] == 2
    brackets = save("range.h5", classes(1, steps=3), parts=("[10, 20)",))
    assert "\n{}[10, 20) & " in run("compare", brackets, "--latex")[1]  # not an argument of the line break before


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("38.15 ± 0.02", "38.15 +- 0.02"),
        ("38.15 ± 0.02*", "38.15 +- 0.02{$^*$}"),
        ("2.17e+06 ± 3e+04", "2.17 +- 0.03 e6"),
        ("-2.17e-05 ± 3e-07", "-2.17 +- 0.03 e-5"),
        ("38.15 ± 2e-07", "3.815 +- 0.00000002 e1"),
        ("2.17e+06", "2.17e+06"),
        ("1,234", "1234"),
        ("0.5 ± ?", "0.5{ $\\pm$ ?}"),
        ("none", "{none}"),
        ("-", "{-}"),
    ],
)
def test_numbers_are_written_as_siunitx_reads_them(text, written):
    assert siunitx(text) == written


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
    assert row[2].split(" / ")[1] == "unknown"
    assert row[1].split(" / ")[3] == written.number(ce.barrier[1])
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


def test_a_network_without_batch_norm_does_not_differ_in_it(run, save):
    former, now = three_lines(batch_norm="log-interpolate"), three_lines(batch_norm="none")
    code, out, _ = run("compare", save("a.h5", former), save("b.h5", now))
    assert code == 0
    assert "batch norm" not in out.replace(former.verdict, "")


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
    assert next(cells_of(line) for line in out.splitlines() if "train" in line)[2] == "0.5000 / unknown / -"


def of_samples(factor):
    """Fields of two parts, of 40 and of 10 samples, the second of `factor` times the curvature per uncertainty."""
    rng = np.random.default_rng(0)
    uncertainty = rng.lognormal(size=(2, 40))
    uncertainty[1, 10:] = np.nan
    there = np.where(np.isfinite(uncertainty), 1.0, np.nan)
    names = ("sample_label", "sample_prediction", "sample_loss", "sample_curvature")
    return {
        "n_samples": np.array([40, 10]),
        "sample_uncertainty": uncertainty,
        "sample_trace": uncertainty * np.array([[1.0], [factor]]) * rng.lognormal(sigma=0.1, size=(2, 40)),
        "sample_weight": there / np.array([[40], [10]]),
        "sample_index": there * np.arange(40.0),
        **dict.fromkeys(names, there),
    }


def test_compare_shows_errors_over_samples_where_they_are_larger_and_says_which_there_are(run, save):
    common = {
        "lambda_max": np.array([2.0, 3.0]),
        "converged": np.array([True, True]),
        "trace": np.array([5.0, 6.0]),
        "trace_stderr": np.array([0.0, 0.5]),
        "lambda_max_residual": np.array([1e-6, 0.4]),
    }
    unknown = {"trace_stderr": np.array([np.nan, 0.5])}
    errors = {
        "lambda_max_sampling_stderr": np.array([0.2, 0.3]),
        "trace_sampling_stderr": np.array([0.7, np.nan]),
        "n_samples": np.array([40, 10]),
        "n_used": np.array([20, 10]),
    }
    with_them = save("a.h5", classes(2, steps=3), **common, **errors)
    without = save("b.h5", classes(2, steps=3), **common)
    _, out, _ = run("compare", with_them, without)
    first, second = (cells_of(line) for line in out.splitlines() if "class " in line and " / " in line)
    assert out.splitlines()[0].strip() == "lambda_max ± samples / trace ± samples"
    assert first[1] == "2.00 ± 0.20 (draw) / 5.00 ± 0.70 (draw)"
    assert first[2] == "2.000 ± 1e-06 (residual) / 5.000 (estimate)"
    assert second[1] == "3.00 ± 0.40 (residual) / 6.000 ± ?"
    for mark in ("(draw)", "(residual)", "(estimate)", "?"):
        assert sum(line.startswith(f"{mark} ") or line.startswith(f"± {mark} ") for line in out.splitlines()) == 1
    _, out, _ = run("compare", save("c.h5", classes(2, steps=3), **common | errors | unknown))
    assert "5.00 ± 0.70 (draw) (estimate ?)" in out
    _, out, _ = run("compare", without)
    assert "± residual" in out
    assert "(residual)" not in out
    assert "2.00 +- 0.20{ (draw)}" in run("compare", with_them, "--latex")[1]


def test_groups_with_parts_that_were_drawn_say_so(run, save):
    spectrum = dataclasses.replace(classes(3, steps=3), n_used=np.array([20, 2500, 1666]))
    groups = {"a": ["class 0"], "b": ["class 0", "class 1"], "c": ["class 1", "class 2"]}
    found = regroup(spectrum, groups)
    assert found.provenance["regrouped"]["drawn"] == {"a": "all", "b": "some"}
    (column,) = [c for c in columns.of_kind(found) if c.field == "trace_sampling_stderr"]
    found = dataclasses.replace(found, trace_sampling_stderr=np.full(3, 0.1))
    assert [column.text(found, p).partition(" ")[2] for p in range(3)] == ["(draw)", "(partly draw)", ""]


@pytest.mark.parametrize("options", [(), ("--groups", "all"), ("--groups", "class")])
def test_an_error_over_samples_that_is_unknown_is_not_replaced_by_a_smaller_one(run, tmp_path, options):
    one = network(sizes=(60, 1))
    for samples, name in ((8, "drawn.h5"), (None, "whole.h5")):
        ls.spectrum(one, operator="ggn", samples=samples, out=tmp_path / name)
    _, out, _ = run("compare", tmp_path / "drawn.h5", tmp_path / "whole.h5", *options)
    row = [line for line in out.splitlines() if " / " in line][-1]  # of all, or of the class of one sample
    cells = [cell.split(" / ") for cell in cells_of(row)[1:]]
    errors = [text.partition("± ")[2] for cell in cells for text in cell]
    unknown = ["? (partly draw)"] * 2 if "all" in options else ["?"] * 4
    assert errors[: len(unknown)] == unknown
    assert all(float(error) > 0 for error in errors[len(unknown) :])  # of 61 samples that count alike


def test_a_surface_of_draws_says_so_alone_in_comparisons_and_in_groups(run, tmp_path):
    one = network(sizes=(60, 5))
    for samples, name in ((8, "drawn.h5"), (None, "whole.h5")):
        given = one if samples is None else ls.draw_samples(one, samples)
        ls.surface(given, ls.directions.random(given, 1), [0.0, 1.0], out=tmp_path / name)
    drawn, whole = tmp_path / "drawn.h5", tmp_path / "whole.h5"
    heads, rows = columns.table(store.load(drawn))
    at = [heads.index(head) for head in heads if head.startswith(("loss", "accuracy"))]
    assert [["(draw)" in row[k] for k in at] for row in rows] == [[True, True], [False, False]]
    for options, marks in (((), ["(draw)", ""]), (("--groups", "all"), ["(partly draw)"])):
        _, out, _ = run("compare", drawn, whole, *options)
        cells = [cells_of(line) for line in out.splitlines() if " / " in line[9:]][-len(marks) :]
        assert [cell[1].partition(" / ")[0].partition("(")[2] for cell in cells] == [m.lstrip("(") for m in marks]
        assert ["(" in cell[2].partition(" / ")[0] for cell in cells] == [False] * len(marks)
        assert any(line.startswith("(draw)") for line in out.splitlines())
        assert any("SHA-256" in line and "all in whole" in line for line in out.splitlines())
    small = store.load(drawn)
    assert regroup(small, {"b": [small.parts[1]]}).provenance["regrouped"]["drawn"] == {}
    again = regroup(regroup(small, "all"), {"x": ["all"]})
    assert again.provenance["regrouped"]["drawn"] == {"x": "all"}


def test_compare_matches_parts_by_size_and_models_by_images(run, save):
    one, two = (save(f"{n}.h5", classes(2, steps=3), **of_samples(factor)) for n, factor in (("a", 1.0), ("b", 4.0)))
    code, out, err = run("compare", one, two, "--match-samples")
    assert (code, err) == (0, [])
    assert "b: each part against class 0" in out
    assert "b less a, over the same images" in out
    assert "a large p is no equality" in " ".join(out.split())
    found = json.loads(run("compare", one, two, "--match-samples", "--json")[1])["matched"]
    p = {(test["column"], test["number"]): test["p"] for test in found["against_largest"]}
    assert p["b", "trace per uncertainty"] < 0.05 < p["a", "trace per uncertainty"]
    assert {test["reference"] for test in found["against_largest"]} == {"class 0"}
    pairs = {(test["part"], test["number"]): test["p"] for test in found["paired"]}
    assert pairs["class 1", "trace per uncertainty"] < 0.05
    weights = of_samples(1.0)["sample_weight"]
    weights[0] *= np.where(np.arange(40) % 2, 1.5, 0.5)
    drawn = [save(f"{n}.h5", classes(2, steps=3), **of_samples(2.0) | {"sample_weight": weights}) for n in "de"]
    _, out, _ = run("compare", *drawn, "--match-samples")
    assert [name in out.split("parts are not compared")[0] for name in ("d: ", "e: ")] == [True, False]  # 40 draws
    assert "image by image for class 0" in out
    assert "e less d, over the same images" in out  # class 1 has all its samples
    for other, what in ((save("c.h5", classes(2, steps=3)), "keeps nothing of its samples"), (one, "--groups")):
        options = ("--groups", "head-tail") if other == one else ()
        code, _, err = run("compare", other, "--match-samples", *options)
        assert code == 2
        assert what in err[0]


@pytest.mark.parametrize("smooth", [True, False])
def test_comparisons_at_equal_size_say_whose_numbers_they_are(run, tmp_path, smooth, monkeypatch):
    few = partial(matched.against_largest, repetitions=50, trials=0)  # whose numbers they are needs no precision
    monkeypatch.setattr(matched, "against_largest", few)
    files = [str(tmp_path / f"{name}.h5") for name in "ab"]
    for file, epochs in zip(files, (200, 20), strict=True):
        ls.save(file, ls.spectrum(six_classes(nn.Tanh if smooth else nn.ReLU, epochs=epochs)))
    _, out, _ = run("compare", *files, "--match-samples")
    rows = [cells_of(line) for line in out.splitlines() if re.match(r"\s+[123]\s+\d+\s", line)]
    letters = [{(row[2], row[3]) for row in rows if len(row) == n} for n in (8, 6)]
    own = "G" if smooth else "H"
    names = ("trace", "trace per uncertainty", "lambda_max", "lambda_max per uncertainty")
    assert letters[0] == {(name, "G") for name in names}
    assert letters[1] == {(name, own if name.startswith("trace") else "H") for name in names}
    words = " ".join(out.split())
    assert ("Trace and lambda_max of H are others" in words) == smooth
    assert ("It has the trace of H, but another lambda_max" in words) != smooth
    assert ("those of H are not known image by image" in words) == smooth
    found = json.loads(run("compare", *files, "--match-samples", "--json")[1])
    assert {test["matrix"] for test in found["matched"]["against_largest"]} == {"ggn"}
    assert {pair["matrix"] for pair in found["matched"]["paired"]} == ({"ggn", "hessian"} if smooth else {"hessian"})
    keys = found["rows"][0]["values"][0]
    assert ("ggn_trace_ratio" in keys, "trace_ratio" in keys) == (smooth, not smooth)


@pytest.mark.parametrize("first", [0, 1])
def test_groups_of_a_file_with_rows_and_of_one_without_stand_side_by_side(run, tmp_path, first):
    whole = ls.spectrum(network(), operator="ggn")
    without = dataclasses.replace(whole, gram=None, gram_part=None, gram_sample=None, gram_sign=None)
    files = [str(tmp_path / f"{name}.h5") for name in ("rows", "none")]
    for file, found in zip(files, (whole, without), strict=True):
        ls.save(file, found)
    code, out, err = run("compare", "--groups", "all", files[first], files[1 - first])
    assert (code, err) == (0, [])
    cells = [
        cell.strip() for line in out.splitlines() if line.startswith("  all ") for cell in line.split("  ") if cell
    ]
    assert len(cells) == 3
    assert cells[2 - first].endswith(" / -")
    assert "±" in cells[1 + first].partition(" / ")[2]
