"""`--dry-run` and `--threads` of every command that computes, and what of it the command then does."""

import json

import pytest
import torch
from torch import nn

from landscape.autodiff import costs
from landscape.cli import dry, main
from landscape.networks import checkpoints
from landscape.objective.evaluator import Evaluator
from landscape.results.hdf5 import SIGNATURE

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
    "distances": [*ONE, "--finetune", "1", "--points", "points"],
    "evaluate": ONE,
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


@pytest.mark.parametrize("command", [name for name in COMMANDS if name != "evaluate"])
def test_files_that_the_command_would_replace_do_not_hinder_it(command, here, monkeypatch):
    shown = []
    monkeypatch.setattr(dry, "show", lambda console, found: shown.append(found))
    monkeypatch.setattr(costs, "measured", lambda plans, ranks: plans)
    (here / "run").mkdir()
    (here / "points").mkdir()
    taken = [here / name for name in ("out.h5", "plane.h5", "run/last.pt", "points/last.pt")]
    for file in taken[:2]:
        file.write_bytes(SIGNATURE)
    for file in taken[2:]:
        file.write_bytes((here / "net-1.pt").read_bytes())
    before = [file.read_bytes() for file in taken]
    words = [command, *COMMANDS[command], "-o", "run" if command == "train" else "out.h5"]
    words += ["--save-plane", "plane.h5"] if command in {"surface1d", "surface2d", "trajectory"} else []
    assert main([*words, "--dry-run"]) == 0
    assert len(shown) == 1
    assert [file.read_bytes() for file in taken] == before


@pytest.mark.parametrize("command", [name for name in COMMANDS if name not in {"train", "evaluate"}])
@pytest.mark.parametrize(
    ("out", "more", "match"),
    [
        ("net-1.pt", [], "is a file of another kind and is kept"),
        ("gone/out.h5", [], "gone/out.h5 cannot be written: No such file or directory"),
        (".", ["--overwrite"], "is a folder"),
    ],
    ids=str,
)
def test_a_file_that_the_command_would_refuse_with_overwrite_is_refused_before_anything_is_timed(
    command, out, more, match, here, capsys, monkeypatch
):
    monkeypatch.setattr(dry, "show", None)
    files = sorted(here.iterdir())
    assert main([command, *COMMANDS[command], "--dry-run", "-o", out, *more]) == 2
    assert match in " ".join(capsys.readouterr().err.split())
    assert [f for f in sorted(here.iterdir()) if f.name != "__pycache__"] == files


@pytest.mark.parametrize(
    ("command", "more", "match"),
    [
        ("hessian", ["--steps", "1000000000"], "--steps must be at most"),
        ("hessian", ["--probes", "1000000000"], "--probes must be at most"),
        ("surface1d", ["--x=-1:1:1000000000"], "at most 10,000,000"),
        ("surface2d", ["--x=-1:1:5000", "--y=-1:1:5000"], "5,000 x 5,000 points"),
        ("trajectory", ["--grid", "100000"], "must be at most 3,162"),
        ("sharpness", ["--along", "eigen", "--memory", "1MB"], "raise --memory"),
        ("surface1d", ["--directions", "eigen", "--of", "all", "--memory", "1MB"], "raise --memory"),
        ("surface1d", ["--memory", "1MB"], "--memory goes with --directions eigen"),
    ],
    ids=str,
)
def test_more_than_memory_could_hold_is_refused_before_it_is_taken(command, more, match, capsys):
    kept = [word for word in COMMANDS[command] if not word.startswith("--x")]
    if command == "hessian":
        kept = ONE
    if command == "trajectory":
        kept = ["--ckpt", "net-*.pt", *DATA]
    if command == "sharpness":
        kept = ONE
    assert main([command, *kept, *more, "--dry-run"]) == 2
    assert match in " ".join(capsys.readouterr().err.split())
