"""Commands killed at random moments and given again: the same numbers at the end as without, and nothing left over.

Each attempt is a child process that is forked, so that it need not import anything; SIGKILL comes at a random moment of
the time that the command takes. A command is killed up to KILLS times, then it may end.

The campaign: LANDSCAPE_KILLS=500 pytest -m campaign tests/campaigns/test_kills.py
"""

import dataclasses
import os
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import landscape.cli
from landscape.networks import checkpoints
from landscape.results import disk, store

CAMPAIGN = int(os.environ.get("LANDSCAPE_KILLS", "500"))
KILLS = 5  # of one command, before it may end

MODULE = """
import torch

def net():
    return torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.Tanh(), torch.nn.Linear(5, 3))

def data(split):
    draw = torch.Generator().manual_seed(len(split))
    labels = torch.tensor([0] * 12 + [1] * 6 + [2] * 3)
    return torch.utils.data.TensorDataset(torch.randn(21, 4, generator=draw) + labels[:, None], labels)
"""
TRAIN = ("train", "ce", "--dataset", "toy:data", "--model", "toy:net", "--epochs", "4", "--batch-size", "8",
         "--snapshot-every", "1", "--workers", "0", "--device", "cpu", "-q", "-o")  # fmt: skip
LAST = ("--ckpt", "made/last.pt", "--device", "cpu", "--out", "out.h5", "-q")
COMMANDS = {
    "train": (*TRAIN, "run"),
    "hessian": ("hessian", *LAST, "--per-class", "--steps", "4", "--probes", "2"),
    "surface2d": ("surface2d", *LAST, "--per-class", "--x", "-1:1:5"),
    "distances": ("distances", *LAST, "--finetune", "3"),
    "trajectory": ("trajectory", "--ckpt", "made", *LAST[2:], "--grid", "5"),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A folder with a short run, which the analyses read."""
    folder = tmp_path_factory.mktemp("kills")
    (folder / "toy.py").write_text(MODULE)
    child = started(folder, (*TRAIN, "made"))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    return folder


def started(folder: Path, words: tuple[str, ...]) -> int:
    """Begin a command in a child process, in a folder; its process id."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        os.chdir(folder)
        with open("said", "a") as said:
            os.dup2(said.fileno(), 2)
        code = landscape.cli.main(list(words))
    finally:
        os._exit(code)


def ended(child: int, seconds: float) -> int | None:
    """Wait for a child; its exit code, or None where it had to be killed after some time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status)
        time.sleep(min(0.002, seconds))
    os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    return None if os.WIFSIGNALED(status) else os.waitstatus_to_exitcode(status)


def numbers(folder: Path) -> dict[str, bytes]:
    """All numbers that a command leaves, bit by bit, but the seconds that it took."""
    found = {}
    for path in [*folder.glob("out.h5"), *folder.glob("run/history.h5")]:
        result = store.load(path)
        for item in dataclasses.fields(result):
            value = getattr(result, item.name)
            if item.name not in {"provenance", "seconds"} and value is not None:
                found[f"{path.name}:{item.name}"] = np.asarray(value).tobytes()
    for path in [*folder.glob("run/*.pt"), *folder.glob("run/snapshots/*.pt")]:
        state: dict[str, torch.Tensor] = checkpoints.read(path).state
        names = [name for name in state if name != "history.seconds"]
        found |= {f"{path.name}:{name}": state[name].numpy().tobytes() for name in names}
    return found


def left_over(folder: Path) -> list[str]:
    partial = [str(p) for p in folder.rglob("*.partial")]
    return partial + [str(p) for p in folder.rglob(f"{disk.ASIDE}*") if p.stat().st_size]


def kill_and_repeat(made: Path, tmp_path: Path, name: str, n_kills: int) -> int:
    """Kill a command at least `n_kills` times in all; how many rounds came to an end."""
    rng = np.random.default_rng([n_kills, *name.encode()])

    def folder(label: str) -> Path:
        shutil.rmtree(tmp_path / label, ignore_errors=True)
        (tmp_path / label).mkdir()
        for name_of in ("made", "toy.py"):
            (tmp_path / label / name_of).symlink_to(made / name_of)
        return tmp_path / label

    whole = folder("whole")
    before = time.monotonic()
    assert ended(started(whole, COMMANDS[name]), 600) == 0, (whole / "said").read_text()
    seconds = time.monotonic() - before
    expected = numbers(whole)
    assert expected
    killed = rounds = 0
    while killed < n_kills:
        place, of_this = folder("killed"), 0
        while True:
            again = of_this < min(KILLS, n_kills - killed)
            code = ended(started(place, COMMANDS[name]), rng.uniform(0, seconds) if again else 600)
            if code is None:
                of_this += 1
                continue
            assert code == 0, f"round {rounds} after {of_this} kills: {(place / 'said').read_text()}"
            break
        killed += of_this
        rounds += 1
        assert numbers(place) == expected, f"other numbers in round {rounds}, after {of_this} kills"
        assert left_over(place) == []
    print(f"{name}: {killed} kills in {rounds} rounds, each with the numbers of {seconds:.1f} s without")
    return rounds


@pytest.mark.parametrize("name", ["hessian"])
def test_a_killed_command_given_again_comes_to_the_same_numbers(made, tmp_path, name):
    assert kill_and_repeat(made, tmp_path, name, 3) >= 1


@pytest.mark.campaign
@pytest.mark.timeout(36_000)
@pytest.mark.parametrize("name", COMMANDS)
def test_killed_commands_given_again_come_to_the_same_numbers(made, tmp_path, name):
    kill_and_repeat(made, tmp_path, name, CAMPAIGN // len(COMMANDS))
