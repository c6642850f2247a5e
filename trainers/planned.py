"""The costs of a training, estimated from a few timed steps; see `landscape.autodiff.costs`."""

import io
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from landscape.autodiff.costs import Known, Work
from landscape.autodiff.single_samples import squared_gradients
from landscape.data.datasets import Samples
from landscape.errors import arg
from landscape.networks import models
from landscape.networks.copies import copied
from landscape.results import store
from trainers import evaluation, gkp, records, rules, schedule
from trainers.data import Data
from trainers.loop import Trainer
from trainers.passes import flat
from trainers.recipes import Recipe
from trainers.settled import BATCH, BATCHES, settled_statistics

MONITORED = 20
"""Epochs between measurements of the curvature, as in `landscape.analyses.monitor`."""


def plan(
    recipe: Recipe,
    data: Data,
    model: nn.Module,
    device: torch.device,
    *,
    epoch: int = 0,
    workers: int = 0,
    monitor: bool = False,
) -> Known:
    """Return the plan of a training: its steps, measurements and files.

    Args:
        recipe: the settings of the training.
        data: the data, on the device.
        model: the model; it is not changed.
        device: the device.
        epoch: number of finished epochs.
        workers: processes that read images from files.
        monitor: the curvature of every class is measured, too.

    Returns:
        The plan.
    """
    r, train = recipe, data.train
    left = range(epoch + 1, r.epochs + 1)
    first = next((e for e in range(1, r.epochs) if rules.groups_after(r)(e)), r.epochs) if r.grouped else r.epochs
    n_batches = len(train) // r.batch_size if r.drop_last else -(-len(train) // r.batch_size)
    size = min(r.batch_size, len(train))

    def steps(n: int, *, grouped: bool) -> Callable[[], object]:
        trainer = Trainer(r, copied(model), train, device=device, workers=workers)
        trainer.model.train()
        if grouped:
            _group(trainer, first)
        places = torch.arange(max(2, n)) % len(train)

        def once() -> None:
            views, labels = trainer.batches.get(places)
            trainer.step(views, labels, train.labels[places.numpy()])

        return once

    works = []
    for what, grouped in (("steps", False), ("steps with groups", True)):
        epochs = sum((e > first) == grouped for e in left)
        if epochs:
            works.append(
                Work(
                    what=what,
                    prepare=partial(steps, grouped=grouped),
                    times=epochs * n_batches,
                    samples=size,
                    batch=size,
                    halve=arg("epochs", r.epochs // 2),
                )
            )
    measured = _measurements(r, data, model, left, workers)
    if monitor:

        def curvature(n: int) -> Callable[[], object]:
            optimizer = Trainer(r, copied(model), train, device=device).base
            watch = records.monitor(
                model, train, optimizer, out=None, done=0, of_epoch=n_batches, batch_size=r.batch_size
            )
            return lambda: watch.measure()

        times = sum(e % MONITORED == 0 for e in left) + (epoch == 0)
        measured.append(Work(what="measurements of the curvature", prepare=curvature, times=times))
    works += [replace(work, divided=False) for work in measured]
    weights = sum(t.nbytes for t in model.state_dict().values())
    snapshots = r.epochs // r.snapshot_every + 1 if r.snapshot_every else 0
    stored = sum(schedule.banking(e, r.warmup_epochs, r.statistics_every) for e in range(1, r.epochs + 1) if r.grouped)
    banked = min(len(train.class_names) + 1, stored)
    groups = 2 * r.groups if r.gkp else 0
    return Known(
        works=works,
        keeps=weights * groups,
        disk=weights * (1 + bool(r.validation) + 2 + snapshots + banked + groups),
        spare=arg("batch_size"),
    )


def _group(trainer: Trainer, epoch: int) -> None:
    """Put the classes of a trainer into groups, as they might be after an epoch."""
    r, named = trainer.recipe, dict(trainer.model.named_parameters())
    group_of = np.arange(trainer.n_classes) % r.groups
    penalty = None
    if r.gkp:
        centres = flat([named[name] for name in trainer.encoder]).detach().repeat(r.groups, 1)
        penalty = gkp.GKP(centres, torch.ones_like(centres), np.bincount(group_of), strength=r.preservation)
    trainer.epoch = min(epoch, r.epochs - 1)
    trainer.regroup(group_of, penalty)


def _measurements(r: Recipe, data: Data, model: nn.Module, left: range, workers: int) -> list[Work]:
    """Return what the first process measures after epochs, and what writing the files takes."""

    def some(samples: Samples, n: int) -> Samples:
        return samples.select(np.linspace(0, len(samples) - 1, n).round().astype(np.int64))

    def scores(samples: Samples) -> Callable[[int], Callable[[], object]]:
        def prepare(n: int) -> Callable[[], object]:
            chosen = some(samples, n)
            return lambda: evaluation.evaluate(model, chosen, bf16=r.bf16, workers=workers)

        return prepare

    def settled(n: int) -> Callable[[], object]:
        chosen = some(data.train, max(2, n))

        def once() -> None:
            with settled_statistics(model, chosen, seed=r.seed, workers=workers, bf16=r.bf16):
                pass

        return once

    def often(every: int) -> int:
        return sum(e % every == 0 or e in {1, r.epochs} for e in left) if every else 0

    tests, statistics = often(r.evaluate_every), often(r.statistics_every)
    found = [
        _pass("measurements of the test set", scores(data.test), tests, len(data.test), arg("evaluate_every")),
    ]
    if data.validation is not None:
        found.append(_pass("measurements of validation samples", scores(data.validation), tests, len(data.validation)))
    if statistics:
        n, halve = len(data.train), arg("statistics_every")
        found.append(_pass("measurements of the training set", scores(data.train), 2 * statistics, n, halve))
        found.append(_pass("running statistics", settled, statistics, min(n, BATCH * BATCHES), halve))
    if r.cosines_every:
        times = sum(e % r.cosines_every == 0 or e == 1 for e in left)

        def cosines(n: int) -> Callable[[], object]:
            return lambda: evaluation.gradient_cosines(model, data.train, batch_size=r.batch_size, seed=r.seed)

        found.append(Work(what="gradient cosines", prepare=cosines, times=times, halve=arg("cosines_every")))
    if r.gkp:
        regrouped = sum(map(rules.groups_after(r), left))
        found.append(_pass("squared gradients for the Fisher information", _fisher(r, data, model), regrouped,
                           min(len(data.train), (r.fisher_samples or len(data.train)) * r.groups),
                           arg("fisher_samples")))  # fmt: skip

    history = records.blank(data.train.class_names, r.epochs)

    def files(n: int) -> Callable[[], object]:
        def once() -> None:
            for _ in range(3):
                torch.save(model.state_dict(), io.BytesIO())
            store.fill(io.BytesIO(), history)

        return once

    return [*found, Work(what="checkpoints and the history", prepare=files, times=len(left))]


def _fisher(r: Recipe, data: Data, model: nn.Module) -> Callable[[int], Callable[[], object]]:
    """Return passes for gradients of single samples."""

    def prepare(n: int) -> Callable[[], object]:
        own = copied(model)
        trainer = Trainer(r, own, data.train, device=next(own.parameters()).device)
        batch = trainer.batches.get(torch.arange(max(2, n)))

        def loss(outputs: Any, labels: torch.Tensor) -> torch.Tensor:
            return trainer.criterion(models.logits_of(outputs, trainer.n_classes), labels)

        def once() -> None:
            squared_gradients(own, [(batch[0][0], batch[1])], loss, trainer.encoder)

        return once

    return prepare


def _pass(what: str, prepare: Callable[[int], Callable[[], object]], times: int, samples: int, halve: str = "") -> Work:
    return Work(what=what, prepare=prepare, times=times, samples=samples, batch=256, halve=halve)
