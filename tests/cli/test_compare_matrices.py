"""`landscape compare` of spectra by samples and groups: whose numbers they are, and what they leave out."""

import json
import re
from functools import partial

import pytest
from fitted import six_classes
from torch import nn

import landscape as ls
from landscape.analyses import pooled
from landscape.results import matched, series


def cells_of(line):
    return [cell.strip() for cell in line.split("  ") if cell.strip()]


@pytest.mark.parametrize("decays", [(0.0, 0.0), (0.2, 0.2), (0.0, 0.2)])
def test_comparisons_say_which_weight_decay_they_leave_out(run, tmp_path, decays, monkeypatch):
    few = partial(matched.against_largest, repetitions=50, trials=0)
    monkeypatch.setattr(matched, "against_largest", few)
    files = [str(tmp_path / f"{name}.h5") for name in "ab"]
    for file, decay in zip(files, decays, strict=True):
        ls.save(file, ls.spectrum(six_classes(nn.ReLU, epochs=20, weight_decay=decay), operator="ggn"))
    size = ls.load(files[0]).size
    _, out, _ = run("compare", *files, "--match-samples")
    words = " ".join(out.split())
    of_decay = f"which adds 0.2 to each lambda_max of the first table and {0.2 * size:.4g} to each trace"
    assert words.count(of_decay) == sum(decay > 0 for decay in decays)
    of_pair = f"0.2 less 0, which adds 0.2 to that of lambda_max and {0.2 * size:.4g} to that of the trace"
    assert (of_pair in words) == (decays[0] != decays[1])
    assert words.count("decay, which") + words.count("decay, 0") == len(set(decays)) - 1 + sum(d > 0 for d in decays)
    found = json.loads(run("compare", *files, "--match-samples", "--json")[1])["matched"]
    assert {(t["column"], t["decay_left_out"]) for t in found["against_largest"]} == set(zip("ab", decays, strict=True))
    assert {tuple(pair["decay_left_out"]) for pair in found["paired"]} == {decays}


def test_rows_that_are_left_out_are_stated_beside_lambda_max(run, tmp_path, monkeypatch):
    monkeypatch.setattr(pooled, "LEFT_OUT", (0.2,))
    file = str(tmp_path / "a.h5")
    ls.save(file, ls.spectrum(six_classes(nn.ReLU, epochs=20), operator="ggn"))
    _, out, _ = run("compare", file, "--match-samples")
    rows = [cells_of(line) for line in out.splitlines() if re.match(r"\s+[123]\s+\d+\s", line)]
    found = json.loads(run("compare", file, "--match-samples", "--json")[1])["matched"]["against_largest"]
    larger = re.compile(r"(\S+) \(at most (\S+) larger\)")
    for row, one in zip(rows, found, strict=True):
        test = one["test"]
        if not one["number"].startswith("lambda_max"):
            assert "larger" not in " ".join(row)
            assert (test["above"], test["range_above"]) == (0, 0)
            continue
        value, above = larger.fullmatch(row[4]).groups()
        assert (float(value), float(above)) == pytest.approx((test["value"], test["above"]), rel=0.01)
        assert float(larger.search(row[5])[2]) == pytest.approx(test["range_above"], rel=0.01)
    whole = ls.load(file).lambda_max[1:]
    tops = [one["test"] for one in found if one["number"] == "lambda_max"]
    assert all(t["value"] <= true <= t["value"] + t["above"] for t, true in zip(tops, whole, strict=True))
    assert sum(line.startswith("(at most ... larger)") for line in out.splitlines()) == 1


def test_what_cannot_be_matched_is_refused_before_anything_is_printed(run, save, tmp_path):
    """A series and a residual keep no samples, and the file of one part has no other."""
    one = six_classes(nn.ReLU, epochs=2)
    files = [tmp_path / f"{name}.h5" for name in ("residual", "series", "part", "plain")]
    residual, whole = ls.spectrum(one, operator="residual"), ls.spectrum(one, operator="ggn")
    parts = [series.of_one(whole, name, epoch=k) for k, name in enumerate(("a.pt", "b.pt"))]
    for file, found in zip(files, (residual, series.joined(parts), whole["0"], whole), strict=True):
        ls.save(file, found)
    reasons = (
        "residual H - G has no rows",
        "a series along training, which leaves them out: analyse b.pt alone",
        "there is one part",
    )
    for file, reason in zip(files, reasons, strict=False):
        for more in ((), ("--json",)):
            code, out, err = run("compare", file, "--match-samples", *more)
            assert (code, out, len(err)) == (2, "", 1)
            assert reason in err[0]
    code, out, err = run("compare", files[3], files[0], "--match-samples")
    assert (code, out) == (2, "")
    assert f"{files[0]}: a spectrum keeps nothing" in err[0]


def test_groups_name_the_matrix_of_each_number(run, tmp_path):
    files = {}
    for kind in ("hessian", "ggn", "empirical-fisher"):
        files[kind] = tmp_path / f"{kind}.h5"
        ls.save(files[kind], ls.spectrum(six_classes(nn.ReLU, epochs=2), operator=kind))
    of_each = {"hessian": ("H", "G"), "ggn": ("G", "G"), "empirical-fisher": ("empirical-fisher",) * 2}
    for kind, file in files.items():
        _, out, _ = run("compare", file, "--groups", "all")
        names = re.findall(r"(trace|lambda_max) of (\S+)", out.splitlines()[0])
        assert names == list(zip(("trace", "lambda_max"), of_each[kind], strict=True))
        (column,) = json.loads(run("compare", file, "--groups", "all", "--json")[1])["columns"]
        assert (column["operator"], column["lambda_max_matrix"]) == (kind, "ggn" if kind == "hessian" else kind)
        assert "of G" not in run("compare", files["empirical-fisher"], "--groups", "all", "--latex")[1]
    _, out, _ = run("compare", files["hessian"], files["ggn"], "--groups", "all")
    assert "trace ± samples / lambda_max of G ± samples" in out
    assert "matrix of lambda_max" not in out
    _, out, _ = run("compare", files["hessian"], files["empirical-fisher"], "--groups", "all")
    assert "the files differ in matrix of lambda_max: ggn in hessian; empirical-fisher in empirical-fisher" in out
