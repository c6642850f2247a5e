"""`--dry-run` and `--threads` of every command that computes, and what of it the command then does."""

import json

import pytest
import torch
from torch import nn

from landscape.cli import main
from landscape.networks import checkpoints
from landscape.objective.evaluator import Evaluator

DATA = ["--model", "mydry:net", "--dataset", "mydry:data"]
ONE, TWO = ["--ckpt", "net-1.pt", *DATA], ["--ckpt", "net-*.pt", *DATA]
COMMANDS = {
    "hessian": [*ONE, "--per-class", "--steps", "3", "--probes", "2", "--trace", "probes", "--backend", "reverse"],
    "gradients": ONE,
    "features": ONE,
    "sharpness": [*ONE, "--draws", "1", "--ascent-steps", "1"],
    "surface1d": [*ONE, "--x=-1:1:3"],
    "surface2d": [*ONE, "--x=-1:1:3"],
    "trajectory": [*TWO, "--grid", "3"],
    "distances": [*ONE, "--finetune", "1"],
    "train": ["ce", *DATA, "--epochs", "2", "--batch-size", "4", "--device", "cpu"],
}


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """A folder with two checkpoints, and code for their network and data."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    (tmp_path / "mydry.py").write_text(
        "import torch\n"
        "def net(): return torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.Tanh(), torch.nn.Linear(5, 3))\n"
        "def data(split):\n"
        "    inputs = torch.randn(9, 4, generator=torch.Generator().manual_seed(0))\n"
        "    return torch.utils.data.TensorDataset(inputs, torch.tensor([0] * 5 + [1] * 3 + [2]))\n"
    )
    for epoch in range(3):
        with torch.random.fork_rng():
            torch.default_generator.manual_seed(epoch)
            net = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
            checkpoints.write(f"net-{epoch}.pt", net.state_dict(), {"epoch": epoch})
    return tmp_path


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_says_what_it_would_take_with_the_threads_that_are_asked_for(command, here, capsys, monkeypatch):
    before, real, seen = torch.get_num_threads(), torch.set_num_threads, []
    monkeypatch.setattr(torch, "set_num_threads", lambda n: seen.append(n) or real(n))
    files = sorted(here.iterdir())
    out = ["-o", "run"] if command == "train" else []
    assert main([command, *COMMANDS[command], *out, "--dry-run", "--threads", "2"]) == 0
    printed = capsys.readouterr().out
    assert "what this command would take; nothing is written" in printed
    assert " of memory, " in printed
    assert " on the disk" in printed
    assert [f for f in sorted(here.iterdir()) if f.name != "__pycache__"] == files
    assert seen == [2, before]
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("command", ["surface1d", "surface2d", "trajectory"])
def test_as_many_points_are_announced_as_are_computed(command, capsys, monkeypatch):
    assert main([command, *COMMANDS[command], "--dry-run", "--json"]) == 0
    steps = json.loads(capsys.readouterr().out)["steps"]
    announced = sum(step["times"] for step in steps if step["what"].startswith("points"))
    measured, real = [], Evaluator.measure
    monkeypatch.setattr(Evaluator, "measure", lambda *a, **k: measured.append(1) or real(*a, **k))
    assert main([command, *COMMANDS[command], "-q"]) == 0
    assert announced == len(measured) >= 3
