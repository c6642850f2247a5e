"""`landscape evaluate`: its numbers are those of the samples of each part."""

import json

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from landscape.cli import main

COUNTS = {"train": (9, 5, 1), "test": (4, 4, 4)}
WORDS = ["evaluate", "--ckpt", "net.pt", "--model", "evaluated:net", "--device", "cpu", "--dataset"]


def data(split):
    labels = torch.cat([torch.full((n,), c) for c, n in enumerate(COUNTS[split])])
    return torch.randn(len(labels), 4, generator=torch.Generator().manual_seed(len(labels))), labels


@pytest.fixture
def weights(tmp_path, monkeypatch):
    """The weights of a checkpoint in the current folder, with code for its network and data."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "evaluated.py").write_text(
        "import torch\n"
        "from torch.utils.data import TensorDataset\n"
        f"COUNTS = {COUNTS}\n"
        "def net(): return torch.nn.Linear(4, 3)\n"
        "def data(split):\n"
        "    labels = torch.cat([torch.full((n,), c) for c, n in enumerate(COUNTS[split])])\n"
        "    generator = torch.Generator().manual_seed(len(labels))\n"
        "    return TensorDataset(torch.randn(len(labels), 4, generator=generator), labels)\n"
        "def numbers(split):\n"
        "    return TensorDataset(data(split).tensors[0], torch.ones(sum(COUNTS[split]), 3))\n"
    )
    drawn = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    torch.save({"weight": drawn, "bias": torch.zeros(3)}, "net.pt")
    return drawn


def expected(part, weights, which):
    """What a part of the test data has, written out."""
    inputs, labels = data("test")
    inputs, labels = inputs[which], labels[which]
    loss = F.cross_entropy(inputs @ weights.T, labels, reduction="none").double().numpy()
    right, n = (inputs @ weights.T).argmax(1).eq(labels).sum().item(), len(labels)
    shrunk = (right + 1) / (n + 2)
    return {
        "part": part, "samples": n, "loss": loss.mean(), "loss_stderr": loss.std(ddof=1) / np.sqrt(n),
        "accuracy": right / n, "accuracy_stderr": np.sqrt(shrunk * (1 - shrunk) / (n - 1)),
    }  # fmt: skip


def test_the_numbers_are_those_of_the_samples_and_the_groups_those_of_training(weights, capsys):
    options = ["--split", "test", "--partition", "many-medium-few", "--many", "8", "--few", "2", "--batch-size", "3"]
    assert main([*WORDS, "evaluated:data", *options, "--json"]) == 0
    found, labels = json.loads(capsys.readouterr().out), data("test")[1]
    assert found["split"] == "test"
    rows = [expected(part, weights, labels == c) for c, part in enumerate(("many", "medium", "few"))]
    rows.append(expected("all parts", weights, labels >= 0))
    for row, wanted in zip([*found["parts"], found["all_parts"]], rows, strict=True):
        assert row.pop("part") == wanted.pop("part")
        assert row == pytest.approx(wanted, rel=1e-5)
    assert main([*WORDS, "evaluated:data", *options]) == 0
    table = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [words[0] for words in table[-5:] if words] == ["many", "medium", "few", "all"]


def test_an_only_part_is_one_row_and_one_sample_has_no_error(weights, capsys):
    assert main([*WORDS, "evaluated:data", "--classes", "2", "--per-class", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)["parts"]
    assert (row["samples"], row["loss_stderr"], row["accuracy_stderr"]) == (1, None, None)
    assert main([*WORDS, "evaluated:data"]) == 0
    assert len([line for line in capsys.readouterr().out.splitlines() if "15" in line]) == 1


def test_a_task_without_accuracy_has_its_own_measure(weights, capsys, tmp_path):
    files = sorted(tmp_path.iterdir())
    assert main([*WORDS, "evaluated:numbers", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)["parts"]
    inputs = data("train")[0]
    each = (inputs @ weights.T - 1).square().mean(1)
    assert row["mean squared error"] == pytest.approx(each.mean().item(), rel=1e-5)
    assert row["mean squared error_stderr"] == pytest.approx(each.std().item() / np.sqrt(len(each)), rel=1e-5)
    assert "accuracy" not in row
    assert main([*WORDS, "evaluated:numbers"]) == 0
    table = capsys.readouterr().out
    assert table.count("±") == 3  # in the title, of the loss and of the measure
    assert "stderr" not in table
    assert [f for f in sorted(tmp_path.iterdir()) if f.name != "__pycache__"] == files
