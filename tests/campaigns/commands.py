"""Small commands that write files, each in a child process of its own, and what they leave.

All that a command imports is imported here, so that a child begins with the command itself: half a second, not five.
"""

import contextlib
import dataclasses
import os
import shutil
import signal
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import click
import numpy as np
import torch

import landscape.cli
from landscape.networks import checkpoints
from landscape.results import disk, store
from trainers.methods import METHODS

MODULE = """
import torch

def net():
    return torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.Tanh(), torch.nn.Linear(5, 3))

def data(split):
    draw = torch.Generator().manual_seed(len(split))
    labels = torch.tensor([0] * 12 + [1] * 6 + [2] * 3)
    return torch.utils.data.TensorDataset(torch.randn(21, 4, generator=draw) + labels[:, None], labels)

def seen():
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 5), torch.nn.Tanh(), torch.nn.Linear(5, 3))

def images(split):
    pixels = torch.randint(256, (21, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(len(split)))
    return torch.utils.data.TensorDataset(pixels, data(split).tensors[1])
"""
TRAIN = ("train", "ce", "--dataset", "toy:data", "--model", "toy:net", "--epochs", "4", "--batch-size", "8",
         "--snapshot-every", "1", "--workers", "0", "--device", "cpu", "-q", "-o")  # fmt: skip
LAST = ("--ckpt", "made/last.pt", "--device", "cpu", "--out", "out.h5", "-q")
KILLED = {
    "train": (*TRAIN, "run"),
    "hessian": ("hessian", *LAST, "--per-class", "--steps", "4", "--probes", "2"),
    "surface2d": ("surface2d", *LAST, "--per-class", "--x", "-1:1:5"),
    "distances": ("distances", *LAST, "--finetune", "3"),
    "trajectory": ("trajectory", "--ckpt", "made", *LAST[2:], "--grid", "5"),
}
"""Commands that are killed, by a name."""


def _trained(method: str, values: dict[str, object]) -> tuple[str, ...]:
    """Return the training of a method, which may need groups, or images to augment."""
    given = dict(zip(TRAIN[2:12:2], TRAIN[3:13:2], strict=True))
    if values.get("gkp") or values.get("sharpness") == "gsa":
        given |= {"--epochs": "6", "--warmup-epochs": "0", "--group-after": "0.9", "--groups": "2"}
    if values.get("loss") == "bcl":
        given |= {"--dataset": "toy:images", "--model": "toy:seen", "--normalize": "none"}
    return ("train", method, *(word for pair in given.items() for word in pair), *TRAIN[12:], "run")


COMMANDS = KILLED | {
    **{f"train {method}": _trained(method, values) for method, values in METHODS.items() if method != "ce"},
    "train --monitor": (*TRAIN, "run", "--monitor"),
    "hessian of a series": ("hessian", "--ckpt", "made", *KILLED["hessian"][3:]),
    "hessian --vectors": (*KILLED["hessian"], "--operator", "ggn", "--vectors", "1", "--overlap"),
    "distances --points": (*KILLED["distances"], "--points", "points"),
    "sharpness --along": ("sharpness", *LAST, "--per-class", "--along", "eigen", "--vectors", "2"),
    "info": ("info", "plane.h5"),
    "compare": ("compare", "plane.h5", "plane.h5"),
    "surface1d": ("surface1d", *LAST, "--per-class", "--x", "-1:1:5"),
    "gradients": ("gradients", *LAST),
    "features": ("features", *LAST),
    "sharpness": ("sharpness", *LAST),
    "plot": ("plot", "plane.h5", "-o", "out.png"),
    "report": ("report", "plane.h5", "-o", "out.html"),
    **{
        f"export {form}": ("export", "plane.h5", "--to", form, "-o", f"out.{suffix}")
        for form, suffix in (("csv", "csv"), ("json", "json"), ("goldstein", "g.h5"), ("vtk", "vts"), ("npz", "npz"))
    },
}
"""Commands that write files, by a name."""

for _words in COMMANDS.values():
    landscape.cli.root.get_command(click.Context(landscape.cli.root), _words[0])
for _name in ("torch._decomp.decompositions_for_jvp", "torch._dynamo", "landscape.plots", "landscape.report"):
    import_module(_name)


def made(folder: Path) -> Path:
    """Fill a folder with a short run, which the analyses read, and a plane, which is shown."""
    (folder / "toy.py").write_text(MODULE)
    plane = tuple("plane.h5" if word == "out.h5" else word for word in COMMANDS["surface2d"])
    for words in ((*TRAIN, "made"), plane):
        assert ended(started(folder, words), 600) == 0, (folder / "said").read_text()
    return folder


def place(base: Path, label: str, made: Path) -> Path:
    """Make a folder anew in which a command may run."""
    shutil.rmtree(base / label, ignore_errors=True)
    (base / label).mkdir()
    for name in ("made", "toy.py", "plane.h5"):
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
        with open("said", "a") as said, contextlib.redirect_stderr(said):  # pytest has put something else in its place
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
    found = {path.name: path.read_bytes() for path in folder.glob("out.*") if path.suffix != ".h5"}
    for path in [*folder.glob("out*.h5"), *folder.glob("run/history.h5")]:
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
