"""`landscape sharpness`: its table, its files, its document, and what it refuses."""

import dataclasses
import json
import re

import pytest
import torch
from cases import CASES
from torch import nn

import landscape as ls
from landscape.cli import main
from landscape.cli import sharpness as cli_sharpness
from landscape.networks import checkpoints
from landscape.results import columns
from landscape.results.written import with_error


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "mysharp.py").write_text(
        "import torch\n"
        "def net(): return torch.nn.Linear(4, 3)\n"
        "def data(split):\n"
        "    inputs = torch.randn(9, 4, generator=torch.Generator().manual_seed(0))\n"
        "    return torch.utils.data.TensorDataset(inputs, torch.tensor([0] * 5 + [1] * 3 + [2]))\n"
        "def flat(z, y): return torch.where(y == 1, 1 + 0.1 * z[:, 0].tanh(), z.square().sum(1))\n"
    )
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(0)
        checkpoints.write("net.pt", nn.Linear(4, 3).state_dict(), {})
    return tmp_path


COMMAND = ["sharpness", "--ckpt", "net.pt", "--model", "mysharp:net", "--dataset", "mysharp:data", "--per-class"]


def test_the_command_prints_a_table_writes_a_file_and_its_figure(here, capsys):
    assert main([*COMMAND, "--loss", "mysharp:flat", "--draws", "2", "--ascent-steps", "3"]) == 0
    out, err = capsys.readouterr()
    assert "within rho = 0.05, and under noise of 0.1 of each filter" in out
    assert re.search(r"no doubling radius for (0, )?1[:,]", err)
    found = ls.load("net.sharpness.h5")
    row = next(line.split() for line in out.splitlines() if line.split()[:1] == ["0"])
    assert row == " ".join(columns.table(found)[1][0]).split()
    assert row[:2] == ["0", "5"]
    assert " ".join(row[2:5]) == with_error(found.loss[0], found.loss_stderr[0])
    assert main(["plot", "net.sharpness.h5"]) == 0
    assert (here / "net.sharpness.rises.png").stat().st_size > 10_000
    for command in (["info", "net.sharpness.h5"], ["export", "net.sharpness.h5", "--to", "csv"]):
        assert main(command) == 0
    assert main(COMMAND) == 2
    assert "net.sharpness.h5 exists: pass --overwrite" in capsys.readouterr().err


def test_an_error_that_is_unknown_is_explained(here, capsys):
    assert main([*COMMAND, "--draws", "2"]) == 0  # the last class has one sample
    assert "± ? the error is unknown" in capsys.readouterr().err
    assert main([*COMMAND, "--draws", "2", "--classes", "0,1", "--overwrite"]) == 0
    assert "unknown" not in capsys.readouterr().err


def test_along_eigenvectors_the_command_prints_the_changes_and_writes_its_own_file(here, capsys):
    along = [*COMMAND, "--along", "eigen", "--draws", "2", "--rho", "0.5"]
    assert main([*along, "--vectors", "2", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    found = ls.load("net.sensitivity.h5", ls.Sensitivity)
    assert document["arrays"]["mean_loss_change"]["values"] == found.mean_loss_change.tolist()
    assert main([*along, "--of", "1", "--vectors", "1", "-o", "of.h5"]) == 0
    out = capsys.readouterr().out
    assert "1 eigenvectors of 1, 2 random directions; steps of length 0.5" in out
    assert "figure: landscape plot of.h5" in out
    for options, message in (
        ([*along, "--sigma", "0.1"], "--sigma is not for --along eigen"),
        ([*COMMAND, "--of", "1"], "--of is for --along eigen"),
    ):
        assert main(options) == 2
        assert message in capsys.readouterr().err


def test_the_document_holds_every_number_and_null_where_there_is_none(here, capsys):
    options = ["--loss", "mysharp:flat", "--draws", "1", "--adaptive", "--rho", "0.5", "--json", "-o", "a.h5"]
    assert main([*COMMAND, *options]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["adaptive"], document["rho"], document["draws"]) == (True, 0.5, 1)
    assert [p["n_samples"] for p in document["parts"]] == [5, 3, 1]
    assert document["parts"][1]["doubling_radius"] is None
    assert document["parts"][0]["noise_rise_stderr"] is None
    assert document["parts"][0]["worst_rise"] == ls.load("a.h5").worst_rise[0]


def test_the_document_has_null_for_the_accuracy_where_there_are_no_classes():
    found = dataclasses.replace(
        ls.sharpness(CASES["residual-relu"].objective(), draws=1, ascent_steps=1), accuracy=None
    )
    # private: the command makes no network whose samples lack classes
    document = cli_sharpness._document(found, "a.h5")
    assert [part["accuracy"] for part in document["parts"]] == [None] * len(found.parts)
    assert [part["loss"] for part in document["parts"]] == found.loss.tolist()


def test_two_files_are_compared_and_what_differs_beside_the_network_is_told(here, capsys):
    assert main([*COMMAND, "-o", "a.h5", "-q", "--draws", "2"]) == 0
    assert main([*COMMAND, "-o", "b.h5", "-q", "--draws", "1", "--rho", "0.1", "--ascent-steps", "3"]) == 0
    assert main(["compare", "a.h5", "b.h5"]) == 0
    out = capsys.readouterr().out
    assert "rise under noise of 0.1 ± samples" in out
    assert "(s.e. ?)" in out
    assert "± ? the error is unknown: one draw" in out
    for line in ("rho: 0.05 in a; 0.1 in b", "draws: 2 in a; 1 in b", "ascent steps: 20 in a; 3 in b"):
        assert f"note: the files differ in {line}" in out
    assert main(["compare", "a.h5", "a.h5", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["rows"][2]["values"][0]["worst_rise"] == ls.load("a.h5").worst_rise[2]
    assert not document["notes"]


@pytest.mark.parametrize(
    ("options", "words"),
    [(["--rho", "0"], "--rho"), (["--draws", "0"], "--draws"), (["--weight-decay", "1"], "weight-decay")],
)
def test_bad_input_to_the_command_is_one_line_and_leaves_nothing(here, capsys, options, words):
    assert main([*COMMAND, *options]) == 2
    out, err = capsys.readouterr()
    assert words in err.splitlines()[-1]
    assert not out
    assert not list(here.glob("*.h5*"))
