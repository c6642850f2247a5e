"""`landscape features` from end to end: a checkpoint or a run goes in, a table, a file and figures come out."""

import json
import os

import numpy as np
import pytest
import torch
import toys

import landscape as ls
from landscape.cli import main
from landscape.data import datasets
from landscape.networks import checkpoints, models
from landscape.results import written

USER = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, n_classes=5):
        super().__init__()
        self.encoder, self.fc = nn.Linear(6, 4), nn.Linear(4, n_classes)
    def forward(self, x):
        return self.fc(torch.tanh(self.encoder(x)))

class Named(torch.utils.data.TensorDataset):
    classes = ["zero", "one", "two", "three", "four"]

def hole(split):
    g = torch.Generator().manual_seed(0)
    return Named(torch.randn(10, 6, generator=g), torch.tensor([0] * 6 + [2] * 3 + [4]))

def constant(): return nn.Sequential(nn.Flatten(), nn.Linear(6, 5, bias=False), nn.BatchNorm1d(5))
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A user's folder: the snapshots of a run on digits-lt, and a checkpoint of a user's own model."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "mynet.py").write_text(USER)
    (tmp_path / "run" / "snapshots").mkdir(parents=True)
    samples = datasets.load("digits-lt")
    meta = {"model": "small-resnet", "n_classes": 10, "dataset": samples.options, "method": "ce"}
    with torch.random.fork_rng():
        for epoch in (0, 2, 10):
            torch.default_generator.manual_seed(epoch)
            state = models.build("small-resnet", 10, in_channels=1).state_dict()
            checkpoints.write(f"run/snapshots/epoch-{epoch:04d}.pt", state, meta | {"epoch": epoch})
    checkpoints.write("run/last.pt", state, meta | {"epoch": 10})
    import mynet

    torch.save({"state_dict": mynet.Net().state_dict()}, "foreign.pt")
    (tmp_path / "notes.txt").write_text("not a checkpoint")
    return tmp_path


QUICK = ["--samples-per-class", "4"]
FOREIGN = ["--ckpt", "foreign.pt", "--model", "mynet:Net", "--dataset", "mynet:hole"]


def test_a_checkpoint_gives_a_table_a_file_and_three_figures(here, capsys):
    assert main(["features", "--ckpt", "run/last.pt", "--per-class", *QUICK]) == 0
    out, err = capsys.readouterr()
    assert err.startswith("small-resnet on digits-lt, train split, 40 samples, normalised")
    assert "last (epoch 10), 32 features, Q = Dis - 0.5 log Var" in out
    assert "neural collapse, where all of these are 0: NC1 " in out
    found = ls.load("run/last.features.h5")
    assert found.n_samples.tolist() == [4] * 10
    assert found.train_counts.tolist() == [124, 88, 63, 45, 32, 23, 16, 12, 8, 6]
    assert written.with_error(found.quality[0, 3], found.quality_stderr[0, 3]) in next(
        line for line in out.splitlines() if line.startswith("  3 ")
    )
    for kind in ("quality", "angles", "collapse"):
        assert main(["plot", "run/last.features.h5", "--kind", kind, "--parts", "0,9"]) == 0
        assert (here / "run" / f"last.features.{kind}.png").stat().st_size > 10_000
    assert main(["info", "run/last.features.h5"]) == 0


def test_a_folder_or_a_glob_gives_the_snapshots_in_their_order(here, capsys):
    assert main(["features", "--ckpt", "run", *QUICK]) == 0
    out, err = capsys.readouterr()
    rows = [line.split() for line in out.splitlines() if line.startswith("  epoch-")]
    assert [row[:2] for row in rows] == [["epoch-0000", "0"], ["epoch-0002", "2"], ["epoch-0010", "10"]]
    assert "measured it itself" not in err
    found = ls.load("run/features.h5")
    assert found.epoch.tolist() == [0, 2, 10]
    assert [f"{q:.3f}" for q in found.quality[:, 0]] == [row[2] for row in rows]
    assert main(["features", "--ckpt", "run/snapshots/epoch-00*0.pt", "--out", "two.h5", *QUICK]) == 0
    np.testing.assert_array_equal(ls.load("two.h5").quality, found.quality[[0, 2]])
    assert main(["features", "--ckpt", "run/last.pt", "--out", "one.h5", *QUICK]) == 0
    np.testing.assert_array_equal(ls.load("one.h5").quality[0], found.quality[2])


def test_json_is_one_document_with_every_number(here, capsys):
    assert main(["features", *FOREIGN, "--json", "--beta", "2", "--cache", "0"]) == 0
    out, err = capsys.readouterr()
    assert not err
    document = json.loads(out)
    (checkpoint,) = document["checkpoints"]
    assert (document["beta"], document["features"], checkpoint["epoch"]) == (2, 4, None)
    found = ls.load("foreign.features.h5")
    assert checkpoint["within_between"] == found.within_between[0]
    assert [c["n_samples"] for c in checkpoint["classes"]] == [6, 0, 3, 0, 1]
    assert [c["quality"] is None for c in checkpoint["classes"]] == [False, True, False, True, True]
    assert checkpoint["classes"][0]["quality"] == pytest.approx(
        checkpoint["classes"][0]["distance"] - 2 * np.log(checkpoint["classes"][0]["variance"])
    )


def test_empty_classes_have_dashes_not_errors(here, capsys):
    assert main(["features", *FOREIGN]) == 0
    out, _ = capsys.readouterr()
    row = next(line for line in out.splitlines() if line.startswith("  one "))
    assert row.split()[1:] == ["0", *["-"] * 10]
    assert main(["features", *FOREIGN, "-q", "--out", "q.h5"]) == 0
    assert capsys.readouterr() == ("", "")


def test_a_run_that_measured_its_own_quality_is_mentioned(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    toys.finish(tmp_path / "run", snapshot_every=1)
    assert main(["features", "--ckpt", "run"]) == 0
    _, err = capsys.readouterr()
    assert "the run measured it itself after 2 epochs: landscape plot run/history.h5 --kind quality" in err
    found, history = ls.load("run/features.h5"), ls.load("run/history.h5")
    assert found.epoch.tolist() == [0, 1, 2]
    assert found.quality[1:].shape == history.quality.shape  # measured there with batch norm's statistics taken anew
    (tmp_path / "run" / "history.h5").write_bytes(b"damaged")
    assert main(["features", "--ckpt", "run", "--overwrite"]) == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--ckpt", "absent.pt"], "absent.pt cannot be read"),
        (["--ckpt", "absent/*.pt"], "absent/*.pt matches no file"),
        (["--ckpt", "notes.txt"], "not a checkpoint"),
        (["--ckpt", "run/.."], "--dataset"),
        (["--ckpt", "run", "--beta", "-1"], "'--beta': -1.0 is not in the range"),
        (["--ckpt", "run", "--beta", "half"], "half"),
        (["--ckpt", "run", "--cache", "-1"], "'--cache': -1.0 is not in the range"),
        (["--ckpt", "run", "--cache", "nan"], "'--cache': nan is not a number"),
        (["--ckpt", "run", "--classes", "0"], "--classes"),
        (["--ckpt", "run", "--weight-decay", "1"], "--weight-decay"),
        (["--ckpt", "run", "--model", "resnet20"], "does not fit the model"),
        (["--ckpt", "foreign.pt"], "--dataset"),
        ([*FOREIGN[:3], "mynet:constant", *FOREIGN[4:]], "does not fit the model"),
        (["--ckpt", "run", "--out", "absent/f.h5"], "absent"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line_and_leaves_nothing(here, capsys, arguments, words):
    before = {p: os.stat(p).st_mtime_ns for p in os.listdir() if p != "__pycache__"}
    assert main(["features", *arguments]) == 2
    out, err = capsys.readouterr()
    errors = [line for line in err.splitlines() if line.startswith("landscape: error: ")]
    assert len(errors) == 1
    assert errors[0] == err.splitlines()[-1]
    assert words in errors[0]
    assert not out
    assert before == {p: os.stat(p).st_mtime_ns for p in os.listdir() if p != "__pycache__"}


def test_a_result_is_not_replaced_without_being_told(here, capsys):
    assert main(["features", "--ckpt", "run/last.pt", "-q", *QUICK]) == 0
    assert main(["features", "--ckpt", "run/last.pt", "-q", *QUICK]) == 2
    assert "last.features.h5 exists" in capsys.readouterr().err
    assert main(["features", "--ckpt", "run/last.pt", "-q", "--overwrite", *QUICK]) == 0


def test_one_snapshot_that_does_not_fit_stops_all_before_anything_is_computed(here, capsys):
    checkpoints.write("run/snapshots/epoch-0001.pt", {"weight": torch.ones(3)}, {"epoch": 1})
    assert main(["features", "--ckpt", "run", *QUICK]) == 2
    assert "run/snapshots/epoch-0001.pt: the checkpoint does not fit the model" in capsys.readouterr().err
    assert not list((here / "run").glob("features*"))
