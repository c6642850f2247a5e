"""`landscape gradients` from end to end: a checkpoint or a run goes in, a table, a file and figures come out."""

import csv
import json

import numpy as np
import pytest
import torch

import landscape as ls
from landscape.cli import main
from landscape.data import datasets
from landscape.networks import checkpoints, models
from landscape.results import columns, store
from landscape.results.written import percent


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A user's folder: the snapshots of a run on digits-lt, and its last checkpoint."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run" / "snapshots").mkdir(parents=True)
    meta = {"model": "small-resnet", "n_classes": 10, "dataset": datasets.load("digits-lt").options, "method": "ce"}
    with torch.random.fork_rng():
        for epoch in (0, 2, 10):
            torch.default_generator.manual_seed(epoch)
            state = models.build("small-resnet", 10, in_channels=1).state_dict()
            checkpoints.write(f"run/snapshots/epoch-{epoch:04d}.pt", state, meta | {"epoch": epoch})
    checkpoints.write("run/last.pt", state, meta | {"epoch": 10})
    return tmp_path


QUICK = ["--samples-per-class", "4"]


def test_a_checkpoint_gives_a_table_of_its_classes_a_file_and_figures(here, capsys):
    assert main(["gradients", "--ckpt", "run/last.pt", *QUICK]) == 0
    out, err = capsys.readouterr()
    assert err.startswith("small-resnet on digits-lt, train split, 40 samples in 10 parts")
    assert "last (epoch 10), gradients by 19,074 parameters, exact; |g| = " in out
    assert "figure: landscape plot run/last.gradients.h5\n" in out
    found = ls.load("run/last.gradients.h5")
    assert found.parts == tuple("0123456789")
    expected = ls.gradients(ls.load_objective("run/last.pt", partition="class", samples_per_class=4))
    np.testing.assert_array_equal(found.between, expected.between)
    line = next(line for line in out.splitlines() if line.startswith("  3 "))
    conflicts = int(found.conflict[0, 3].sum())
    assert f"{found.cosine[0, 3]:.3f}" in line
    assert f"{found.specific[0, 3]:.3g}" in line
    assert line.split()[-4:] == [f"{100 * found.contribution[0, 3]:.1f}", str(conflicts), "of", "9"]
    table = out[out.index("g by layers") :].splitlines()
    assert " ".join(table[2].split()) == "layer |g| % from 0 % from 1 % from 8 % from 9"
    shares = [f"{100 * found.layer_contribution[0, -1, p]:.1f}" for p in (0, 1, 8, 9)]
    assert next(line for line in table if "linear" in line).split() == [
        "linear", f"{found.layer_whole_norm[0, -1]:.4g}", *shares
    ]  # fmt: skip
    for kind in ("cosines", "decomposition", "norms", "layers"):
        assert main(["plot", "run/last.gradients.h5", "--kind", kind, "--parts", "0,9"]) == 0
        assert (here / "run" / f"last.gradients.{kind}.png").stat().st_size > 10_000
    assert main(["info", "run/last.gradients.h5"]) == 0
    assert main(["plot", "run/last.gradients.h5", "--kind", "epochs"]) == 2
    assert "one checkpoint shows no course over epochs" in capsys.readouterr().err


def test_layers_have_their_errors_over_samples_in_table_and_document(here, capsys):
    command = ["gradients", "--ckpt", "run/last.pt", *QUICK, "--sampling-errors"]
    assert main(command) == 0
    table = capsys.readouterr().out.partition("g by layers")[2].splitlines()
    found = ls.load("run/last.gradients.h5")
    errors = found.layer_contribution_sampling_stderr[0, -1]
    shares = [f"{100 * found.layer_contribution[0, -1, p]:.1f} ± {percent(errors[p])}" for p in (0, 1, 8, 9)]
    line = " ".join(next(line for line in table if "linear" in line).split())
    assert line.endswith(" ".join(shares))
    assert main([*command, "--overwrite", "--json"]) == 0
    last = json.loads(capsys.readouterr().out)["checkpoints"][0]
    for name in ("layer_norm", "layer_cosine", "layer_contribution", "layer_whole_norm"):
        assert last[f"{name}_sampling_stderr"] == getattr(found, f"{name}_sampling_stderr")[0].tolist()


def test_a_run_gives_its_course_in_batches(here, capsys):
    words = [
        "gradients",
        "--ckpt",
        "run",
        "--partition",
        "many-medium-few",
        "--batches",
        "3",
        "--samples-per-batch",
        "20",
    ]
    assert main([*words, "--seed", "5", *QUICK]) == 0
    out, err = capsys.readouterr()
    assert "40 samples in 3 parts" in err
    found = ls.load("run/gradients.h5")
    assert found.points == ("epoch-0000", "epoch-0002", "epoch-0010")
    assert found.epoch.tolist() == [0, 2, 10]
    assert found.batch_size == 20
    assert (found.cosine_stderr > 0).all()
    assert found.provenance["options"] == {"batches": 3, "samples_per_batch": 20, "seed": 5}
    assert "means over batches of 20" in out
    assert f"{found.cosine[2, 0]:.3f} ± {found.cosine_stderr[2, 0]:.3f}" in out
    course = out[out.index("along the run") :]
    assert [line.split()[1] for line in course.splitlines() if line.startswith("  epoch-")] == ["0", "2", "10"]
    assert main(["plot", "run/gradients.h5", "--kind", "epochs"]) == 0
    assert (here / "run" / "gradients.epochs.png").stat().st_size > 10_000
    assert main([*words, "--seed", "5", *QUICK]) == 2  # the file is there
    assert "run/gradients.h5 exists" in capsys.readouterr().err


def test_json_is_one_document_with_the_numbers_of_the_file(here, capsys):
    words = ["gradients", "--ckpt", "run/snapshots/*.pt", "--classes", "0,9", *QUICK, "--json", "-o", "x.h5"]
    assert main([*words, "--params", "linear", "--sampling-errors"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    document = json.loads(out)
    found = store.load("x.h5")
    assert document["result"] == "x.h5"
    assert document["parameters"] == found.size == 32 * 10 + 10
    assert document["samples_per_batch"] is None
    assert [c["epoch"] for c in document["checkpoints"]] == [0, 2, 10]
    last = document["checkpoints"][2]
    assert last["between"] == found.between[2].tolist()
    assert document["layers"] == ["linear"]
    assert last["layer_contribution"] == found.layer_contribution[2].tolist()
    assert last["layer_norm_stderr"] == [[0, 0]]
    assert [p["norm"] for p in last["parts"]] == found.norm[2].tolist()
    assert [p["n_samples"] for p in last["parts"]] == [4, 4]
    assert last["parts"][0]["cosine_stderr"] == 0
    for name in ("loss", "norm", "cosine", "projected", "specific", "radius", "contribution"):
        field = f"{name}_sampling_stderr"
        assert [p[field] for p in last["parts"]] == getattr(found, field)[2].tolist()
    assert last["between_sampling_stderr"] == found.between_sampling_stderr[2].tolist()
    assert last["whole_norm_sampling_stderr"] == found.whole_norm_sampling_stderr[2] > 0


def test_layers_whose_gradient_is_rounding_have_no_shares(here, capsys):
    """If all logits are the same function of the features, no probability and no loss depends on the features."""
    kept = checkpoints.read("run/last.pt")
    kept.state["linear.weight"][:] = kept.state["linear.weight"][0].clone()
    checkpoints.write("same.pt", kept.state, kept.meta)
    assert main(["gradients", "--ckpt", "same.pt", *QUICK]) == 0
    out, err = capsys.readouterr()
    found = ls.load("same.gradients.h5")
    assert found.only_rounding("layer_whole_norm")[0].tolist() == [name != "linear" for name in found.layers]
    table = out.partition("g by layers")[2].splitlines()
    line = next(line.split() for line in table if "conv1" in line)
    assert line[2:] == ["(rounding)", "-", "-", "-", "-"]
    assert "(rounding)" not in next(line for line in table if "linear" in line)
    assert "(rounding)" not in out.partition("g by layers")[0]  # no part and not the whole
    (note,) = (line for line in err.splitlines() if "(rounding)" in line)
    assert "the whole within" in note
    assert "--dtype float64" in note
    assert main(["gradients", "--ckpt", "same.pt", *QUICK, "--json", "--params", "conv1", "--overwrite"]) == 0
    document = json.loads(capsys.readouterr().out)["checkpoints"][0]
    assert document["layer_contribution"] == [[None] * 10]
    assert document["whole_norm"] < 4 * document["whole_norm_rounding"]
    for part in document["parts"]:
        assert part["norm"] <= 4 * part["norm_rounding"]
        assert part["cosine"] is None
    found = ls.load("same.gradients.h5")
    heads, rows = columns.table(found)
    at = next(k for k, head in enumerate(heads) if head.startswith("|g_p|"))
    assert all(row[at].endswith("(rounding)") for row in rows)
    assert found.title.endswith("(rounding)")
    assert main(["export", "same.gradients.h5", "--to", "tidy", "-o", "same.csv"]) == 0
    with open("same.csv", newline="") as file:
        of_norms = [row["exactness"] for row in csv.DictReader(file) if row["quantity"] == "norm"]
    assert of_norms == ["rounding"] * 10
    for kind in ("cosines", "decomposition", "norms", "layers"):
        assert main(["plot", "same.gradients.h5", "--kind", kind]) == 0


@pytest.mark.parametrize("drawn", [[], ["--samples", "20"]])
def test_samples_in_no_part_are_mentioned(here, capsys, drawn):
    assert main(["gradients", "--ckpt", "run/last.pt", "--partition", "head-tail", *drawn]) == 0
    err = capsys.readouterr().err
    assert "287 samples are in no part: g, the whole, is that of the 130 others" in err


def test_a_whole_gradient_of_noise_is_called_so(here, capsys, monkeypatch):
    words = ["gradients", "--ckpt", "run/last.pt", "--partition", "head-tail", *QUICK, "--overwrite"]
    assert main([*words, "--sampling-errors"]) == 0
    found = ls.load("run/last.gradients.h5")
    scatter = found.whole_norm_sampling_stderr[0] / found.whole_norm[0]
    capsys.readouterr()
    for off, said in ((1.01, False), (0.99, True)):
        monkeypatch.setattr("landscape.cli.gradients.RESOLVED", off * scatter)
        assert main([*words, "--sampling-errors"]) == 0
        assert ("nearly cancel" in capsys.readouterr().err) is said
    assert main(words) == 0  # without errors there is nothing to say
    assert "nearly cancel" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--ckpt", "absent"], "absent cannot be read: No such file"),
        (["--ckpt", "run/*.bin"], "run/*.bin matches no file"),
        (["--ckpt", "run", "--batches", "0"], "'--batches': 0 is not in the range x>=1"),
        (["--ckpt", "run", "--batches", "2", "--samples-per-batch", "0"], "'--samples-per-batch': 0 is not in"),
        (["--ckpt", "run", "--samples-per-batch", "64"], "--samples-per-batch needs --batches"),
        (["--ckpt", "run", "--cache", "-1"], "'--cache': -1.0 is not in the range x>=0"),
        (["--ckpt", "run", "--cache", "nan"], "'--cache': nan is not a number"),
        (["--ckpt", "run", "--weight-decay", "1"], "No such option '--weight-decay'"),
        (["--ckpt", "run", "--per-class", "--partition", "all"], "contradict each other"),
        (["--ckpt", "run", "--params", "head"], "--params head fits no trainable parameter"),
    ],
)
def test_what_is_wrong_is_one_line_and_leaves_nothing(here, capsys, words, line):
    before = sorted(here.rglob("*"))
    assert main(["gradients", *words, *QUICK]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert line in err.splitlines()[-1]
    assert sorted(here.rglob("*")) == before
