"""Commands on several checkpoints: one file, a row for each checkpoint, and one line where that cannot be."""

import json

import numpy as np
import pytest
import torch
import toys

import landscape as ls
from landscape.cli import main
from landscape.results import columns

QUICK = ["--steps", "3", "--probes", "1", "--trace", "probes", "--backend", "reverse"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    for epoch in range(2):
        weights = {name: (1 + epoch) * t for name, t in toys.linear().state_dict().items()}
        torch.save({"state_dict": weights, "epoch": epoch}, folder / f"net-{epoch}.pt")
    return folder


def called(command, *words):
    shared = ["--model", "toys:linear", "--dataset", "toys:vectors", "--device", "cpu"]
    return main([command, *map(str, words), *shared])


def test_a_folder_a_pattern_and_several_files_are_the_same_series(run, capsys):
    own = [run / "net-1.pt", run / "net-0.pt"]
    for words, out in ((["--ckpt", run], "a.h5"), (["--ckpt", own[0], "--ckpt", own[1]], "b.h5")):
        shown = "--json" if out == "b.h5" else "--per-class"
        code = called("hessian", *words, "--per-class", shown, "--with-parts", "all", "-o", run / out, *QUICK)
        assert code == 0
    told = capsys.readouterr()
    assert "net-0" in told.out
    document = json.loads(told.out[told.out.index("{") :])
    assert [c["checkpoint"] for c in document["checkpoints"]] == ["net-0", "net-1"]
    assert [part["part"] for part in document["checkpoints"][1]["parts"]] == ["all", "0", "1", "2"]
    a, b = ls.load([run / "a.h5", run / "b.h5"])
    np.testing.assert_array_equal(a.lambda_max, b.lambda_max)
    assert a.epoch.tolist() == [0, 1]
    assert main(["compare", str(run / "a.h5"), str(run / "b.h5")]) == 0
    told = capsys.readouterr().out
    assert "a, net-1" in told
    assert columns.compared([a.last])[0].text(a.last, 0).split()[0] in told
    assert main(["compare", str(run / "a.h5"), "--at", "0,net-1"]) == 0
    told = capsys.readouterr().out
    assert "a, net-0" in told
    for own in (a.at(0), a.last):
        assert columns.compared([own])[0].text(own, 0).split()[0] in told
    assert main(["compare", str(run / "a.h5"), "--at", "7"]) == 2
    assert "choose epoch 0, epoch 1, or a name such as net-1" in capsys.readouterr().err
    assert main(["export", str(run / "a.h5"), "--to", "csv"]) == 0
    assert len((run / "a.csv").read_text().splitlines()) == 1 + 2 * 4


@pytest.mark.parametrize(
    ("command", "options"),
    [("sharpness", ["--draws", "1", "--ascent-steps", "1"]), ("surface1d", ["--x=-1:1:3"])],
)
def test_sharpness_and_lines_along_training_lie_beside_the_checkpoints(run, capsys, command, options):
    assert called(command, "--ckpt", str(run / "net-*.pt"), *options) == 0
    found = ls.load(run / f"{command}.h5")
    assert found.checkpoints == ("net-0", "net-1")
    assert "net-1" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("command", "options", "message"),
    [
        ("hessian", ["--ckpt", "net-0.pt", "--with-parts", "all"], "--with-parts is for a series"),
        ("hessian", ["--ckpt", "net-0.pt", "--extend"], "--extend is for a series"),
        ("surface1d", ["--ckpt", "net-0.pt", "--extend"], "--extend is for a series"),
        ("hessian", ["--ckpt", ".", "--verify", "pyhessian"], "--verify runs PyHessian on one checkpoint"),
        ("hessian", ["--ckpt", ".", "--with-parts", "heads"], "no part 'heads'"),
        ("surface1d", ["--ckpt", ".", "--ckpt-to", "net-0.pt"], "leave out what leads to other checkpoints"),
        ("hessian", ["--ckpt", "none-*.pt"], r"none-*.pt matches no file"),
    ],
)
def test_what_a_series_has_not_is_refused_in_one_line(run, monkeypatch, capsys, command, options, message):
    monkeypatch.chdir(run)
    assert called(command, *options) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
    assert message in line


def test_checkpoints_without_a_place_in_training_are_refused_by_the_option(tmp_path, capsys):
    for name in "ab":
        torch.save(toys.linear().state_dict(), tmp_path / f"{name}.pt")
    assert called("hessian", "--ckpt", tmp_path / "a.pt", "--ckpt", tmp_path / "b.pt") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "--ckpt: " in line
    assert str(tmp_path / "a.pt") in line
    assert not list(tmp_path.glob("*.h5*"))


def test_a_series_is_extended_by_the_checkpoints_that_have_come_since(run, tmp_path, capsys):
    for epoch in range(2):
        (tmp_path / f"net-{epoch}.pt").write_bytes((run / f"net-{epoch}.pt").read_bytes())
    words = ["sharpness", "--ckpt", tmp_path, "--draws", "1", "--ascent-steps", "1"]
    assert called(*words) == 0
    torch.save({"state_dict": toys.linear().state_dict(), "epoch": 5}, tmp_path / "net-5.pt")
    assert called(*words) == 2
    capsys.readouterr()
    assert called(*words, "--extend") == 0
    told = capsys.readouterr().err
    assert "net-5: " in told
    assert "net-0: " not in told
    assert ls.load(tmp_path / "sharpness.h5").epoch.tolist() == [0, 1, 5]


def test_checkpoints_are_named_of_series_alone(tmp_path, capsys):
    ls.save(tmp_path / "one.h5", ls.spectrum(np.eye(3), steps=2, probes=1))
    assert main(["compare", str(tmp_path / "one.h5"), "--at", "0"]) == 2
    assert "no file is one: leave it out" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "quick"),
    [("sharpness", ["--draws", "1", "--ascent-steps", "1"]), ("surface1d", ["--x=-1:1:2"])],
)
def test_a_series_that_is_extended_keeps_its_draw_of_samples(run, tmp_path, monkeypatch, command, quick):
    for path in run.glob("net-*.pt"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    words = ["--ckpt", tmp_path, "--per-class", "--samples", "3", "-q", *quick]
    assert called(command, *words, "-o", tmp_path / "a.h5") == 0
    weights = {name: -3 * t for name, t in toys.linear().state_dict().items()}
    torch.save({"state_dict": weights, "epoch": 2}, tmp_path / "net-2.pt")
    monkeypatch.chdir(tmp_path)
    assert called(command, *words, "--extend", "-o", "a.h5") == 0
    found = ls.load(tmp_path / "a.h5")
    assert found.epoch.tolist() == [0, 1, 2]
    options = {"model": "toys:linear", "dataset": "toys:vectors", "partition": "class", "device": "cpu"}
    at = ls.load_objective(tmp_path / "net-1.pt", **options)
    assert found.provenance["draws"]["at"] == at.source["checkpoint_sha256"]
