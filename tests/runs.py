"""Runs of the trainers on tiny data, and what they leave."""

import torch

from landscape.cli import main
from landscape.networks import checkpoints

GROUPED = {"groups": 2, "epochs": 6, "group_after": 0.4, "regroup_every": 0.3, "warmup_epochs": 0}
METHODS = {
    "ce": {},
    "sam": {"sharpness": "sam"},
    "gsa-gkp": {"sharpness": "gsa", "gkp": True, **GROUPED},
    "drw": {"reweight": "drw"},
}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def files(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file() and p.name != ".lock")


def state(folder, name="state.pt"):
    return checkpoints.read(folder / name).state


def command(*words):
    return main(["train", *map(str, words)])
