"""Small commands that write files, each in a child process of its own, and what they leave."""

import dataclasses
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

import landscape.cli
from landscape.networks import checkpoints
from landscape.results import disk, store

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


def made(folder: Path) -> Path:
    """Fill a folder with a short run, which the analyses read."""
    (folder / "toy.py").write_text(MODULE)
    assert ended(started(folder, (*TRAIN, "made")), 600) == 0, (folder / "said").read_text()
    return folder


def place(base: Path, label: str, made: Path) -> Path:
    """Make a folder anew in which a command may run."""
    shutil.rmtree(base / label, ignore_errors=True)
    (base / label).mkdir()
    for name in ("made", "toy.py"):
        (base / label / name).symlink_to(made / name)
    return base / label


def started(folder: Path, words: tuple[str, ...], prepare: Callable[[], None] = lambda: None) -> int:
    """Begin a command in a child process, in a folder; its process id. `prepare` is called in the child."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        os.chdir(folder)
        with open("said", "a") as said:
            os.dup2(said.fileno(), 2)
        prepare()
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


def left_over(folder: Path, *, partial: bool = True) -> list[str]:
    """List unfinished files, and the folders of unfinished runs where there should be none."""
    folders = [str(p) for p in folder.rglob("*.partial")] if partial else []
    return folders + [str(p) for p in folder.rglob(f"{disk.ASIDE}*") if p.stat().st_size]
