"""What a training step asks of a GPU, looked at on torch's meta device, whose tensors have no values to wait for."""

import contextlib

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from landscape.autodiff import distributed
from landscape.autodiff.sample_rows import SampleRows
from landscape.data import datasets
from landscape.networks import models
from trainers import gkp, methods, recipes
from trainers.loop import Trainer

META, ATEN = torch.device("meta"), torch.ops.aten


class Waits(TorchDispatchMode):
    """Notes what the host waits for: values that are read back, and copies that block."""

    def __init__(self):
        super().__init__()
        self.found, self.copies = [], 0

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        options = options or {}
        if function is ATEN._local_scalar_dense.default and arguments[0].device == META:
            self.found.append("a value is read back")
        if (
            function is ATEN._to_copy.default
            and arguments[0].device.type != (options.get("device") or arguments[0].device).type
        ):
            self.copies += 1
            if not options.get("non_blocking"):
                self.found.append(f"a copy of {tuple(arguments[0].shape)} blocks")
        return function(*arguments, **options)


@pytest.mark.parametrize(
    "options",
    [
        *({"method": name} for name in methods.METHODS if methods.METHODS[name].get("loss") != "bcl"),
        {"method": "gsa-gkp", "perturb": "per-group"},
        {"method": "gsa-gkp", "first_pass": "decoupled"},
        {"method": "gsa-gkp", "first_pass": "shared", "direction": "difference", "pull_at": "perturbed"},
        {"method": "bcl-gsa-gkp"},
    ],
    ids=str,
)
def test_no_step_waits_for_the_gpu(options, monkeypatch):
    monkeypatch.setattr(Trainer, "_try_out", lambda self: None)  # it reads back once, before the first step
    # It reads back once for each size of a batch.
    monkeypatch.setattr(SampleRows, "among", lambda self, values, calls: list(calls))
    monkeypatch.setattr(torch, "autocast", lambda *device, **options: contextlib.nullcontext())  # does not know meta
    options = dict(options)
    chosen = methods.compose(
        {"dataset": "digits-lt", "model": "small-resnet", "epochs": 5, "groups": 2}, method=options.pop("method")
    )
    views = "none,none,none" if chosen.loss == "bcl" else "none"
    chosen = methods.compose({**recipes.plain(chosen), "milestones": None, "augment": views, **options})
    samples = datasets.load("digits-lt").subsample(2)
    trainer = Trainer(chosen, models.build("small-resnet", 10, cosine=bool(chosen.cosine)), samples, device=META)
    trainer.epoch = 4  # with deferred re-weighting
    if chosen.grouped:
        group_of = np.arange(10) % 2
        rows = torch.empty(
            2, sum(dict(trainer.model.named_parameters())[n].numel() for n in trainer.encoder), device=META
        )
        penalty = gkp.GKP(rows, rows, np.bincount(group_of, samples.class_counts)) if chosen.gkp else None
        trainer.regroup(group_of, penalty)
    places = torch.arange(12)
    views, labels = trainer.batches.get(places)
    with Waits() as waits:
        trainer.step(views, labels, samples.labels[places])
    assert waits.found == []


def test_the_watch_sees_what_it_looks_for():
    with Waits() as waits:
        torch.ones(2).to(META)
        torch.ones(3).to(META, non_blocking=True)
        with pytest.raises(RuntimeError, match="meta"):
            torch.ones(1, device=META).item()
    assert waits.found == ["a copy of (2,) blocks", "a value is read back"]


@pytest.mark.parametrize(
    ("gpus", "ranks", "nccl", "backend"),
    [
        (0, 2, True, "gloo"),
        (2, 2, True, "cpu:gloo,cuda:nccl"),
        (8, 2, True, "cpu:gloo,cuda:nccl"),
        (1, 2, True, "gloo"),
        (2, 2, False, "gloo"),
    ],
)
def test_gradients_travel_by_nccl_where_each_rank_has_a_gpu(gpus, ranks, nccl, backend):
    # private: machines with several GPUs, which no test has
    own = {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": str(ranks)}
    assert distributed._transport(own, gpus, nccl=nccl) == (backend, 1 % gpus if gpus else None)
    on_two_machines = own | {"RANK": "9", "WORLD_SIZE": "16", "LOCAL_WORLD_SIZE": str(ranks)}
    assert distributed._transport(on_two_machines, gpus, nccl=nccl) == (backend, 1 % gpus if gpus else None)
