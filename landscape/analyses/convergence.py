"""Convergence points: the parameters that are best for a class, or for a group of classes.

There are two sources. A run of group-wise knowledge preservation stores, for each class, the model of the epoch in
which the features of the class were best; the point of a group is the mean of the points of its classes (equation 3 of
"Reframing Long-Tailed Learning via Loss Landscape Geometry", CVPR 2026). Or the network is trained further on one part
alone, from a common start; batch norm keeps the running statistics of the start, so that L_p is one fixed function.
`distances` does these trainings by itself if a run has them as `Tuning`: processes divide them, and finished ones are
kept.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from landscape.autodiff import costs
from landscape.autodiff.differentiable import differentiable_attention
from landscape.autodiff.wide import wide
from landscape.errors import InputError, NumericalError, StoreError, arg, said
from landscape.networks.weights import tensors_of
from landscape.objective import pilot, points, snapshots
from landscape.objective.objective import Objective
from landscape.objective.points import Point
from landscape.results import History, store

_NOISE = 1e-3  # steps over batches may raise the loss of a fitted part by up to this much


def from_bank(objective: Objective, run: str | Path) -> dict[str, tuple[Point, float]]:
    """Read each part's convergence point from the memory bank of a run.

    Args:
        objective: of the network; its parts are classes or groups of classes.
        run: folder that `landscape train` wrote with `gkp` or `sharpness="gsa"`.

    Returns:
        For each part, the mean of the models of its classes, including running statistics, and the mean of their
        epochs.

    Raises:
        InputError: the folder has no memory bank, or one of another network, or the parts do not consist of classes.
    """
    run = Path(run)
    epochs = bank_epochs(run)
    classes = objective.partition.classes
    if not classes and objective.partition.names != ("all",):
        raise InputError("the memory bank has a model for each class: use parts that are classes or groups of them")
    classes = classes or (tuple(range(len(epochs))),)
    if max(max(c) for c in classes) >= len(epochs):
        raise InputError(f"{run} has {len(epochs)} classes, but the data have more: is this the right run?")
    wanted = sorted({int(epochs[c]) for part in classes for c in part})
    files = {epoch: run / "bank" / f"epoch-{epoch:04d}.pt" for epoch in wanted}
    for file in files.values():
        if not file.is_file():
            raise InputError(f"{file} is missing, which the history of {run} names: is the folder complete?")
    found = snapshots.find(objective, list(files.values()))
    of_epoch = dict(zip(wanted, (points.of(objective, s) for s in found), strict=True))
    result = {}
    for name, part in zip(objective.partition.names, classes, strict=True):
        stored = [of_epoch[int(epochs[c])] for c in part]
        mean = Point(
            torch.stack([wide(p.theta) for p in stored]).mean(0).to(stored[0].theta),
            torch.stack([wide(p.buffers) for p in stored]).mean(0).to(stored[0].buffers),
        )
        result[name] = mean, float(np.mean([epochs[c] for c in part]))
    return result


def bank_epochs(run: Path) -> np.ndarray:
    """Read the epoch of each class's snapshot in the memory bank of a run.

    Args:
        run: its folder.

    Returns:
        (C,) epochs.

    Raises:
        InputError: the run has no memory bank.
    """
    epochs: np.ndarray = _history(run).bank_epoch[-1]
    if not np.isfinite(epochs).all():
        raise InputError(
            f"{run} kept no memory bank: train with gsa-gkp, {arg('gkp', True)} or {arg('sharpness', 'gsa')}, or "
            f"use {said('finetuned()', '--finetune')}"
        )
    return epochs


def groups_of(run: Path) -> dict[str, list[int]]:
    """Read the groups that a run made of its classes.

    Args:
        run: its folder.

    Returns:
        The classes of each group by the group's name, as a partition accepts them.

    Raises:
        InputError: the run made no groups.
    """
    history = _history(run)
    group = history.group[-1]
    if not np.isfinite(group).all():
        raise InputError(
            f"{run} has no groups of classes: train with gsa-gkp, {arg('gkp', True)} or {arg('sharpness', 'gsa')}"
        )
    return {f"group {g + 1}": np.flatnonzero(group == g).tolist() for g in sorted(set(group.astype(int).tolist()))}


def _history(run: Path) -> History:
    try:
        history = store.load(run / "history.h5")
    except StoreError as error:
        raise InputError(
            f"{run} is not the folder of a run: {error}; name that folder, or use {said('finetuned()', '--finetune')}"
        ) from error
    if not isinstance(history, History) or not len(history.epoch):
        raise InputError(f"{run / 'history.h5'} is not the history of a run")
    return history


def finetuned(
    objective: Objective,
    part: str,
    *,
    epochs: int,
    lr: float = 0.01,
    momentum: float = 0.9,
    batch_size: int = 128,
    seed: int = 0,
    report: Callable[[float], None] = lambda share: None,
) -> Point:
    """Train the objective's network on one part alone, starting from its own weights.

    The training is stochastic gradient descent on L_p in eval mode, with a cosine schedule.

    Args:
        objective: has the initial weights; only its chosen parameters are trained.
        part: name of the part.
        epochs: passes over the part's samples.
        lr: initial learning rate; it falls to 0.
        momentum: momentum of SGD.
        batch_size: samples per step.
        seed: of the order of the samples.
        report: called with the completed fraction of the steps.

    Returns:
        The final weights, with the running statistics of the start.

    Raises:
        InputError: a number out of its range.
        NumericalError: the loss or a weight is no longer finite, or the loss is higher than at the start.
    """
    own = Tuning(start=objective, part=part, epochs=epochs, lr=lr, momentum=momentum, batch_size=batch_size, seed=seed)
    objective = objective.undrawn  # training uses all samples
    p = objective.part(part)
    members = objective.members[p]
    if costs.noted(own.plan):
        return points.origin(objective)
    begun = points.mean_loss(objective, objective.theta, p)
    theta = points.origin(objective).theta.clone()
    velocity = torch.zeros_like(theta)
    rng = np.random.default_rng([seed, p])
    per_epoch = -(-len(members) // batch_size)
    total = epochs * per_epoch
    for epoch in range(epochs):
        order = rng.permutation(members)
        for i in range(per_epoch):
            step = epoch * per_epoch + i
            inputs, labels = objective.samples.batch(
                order[i * batch_size : (i + 1) * batch_size], objective.device, objective.dtype
            )
            leaf = theta.detach().requires_grad_()
            with differentiable_attention():
                loss = objective.losses(objective.layout.tensors(leaf), inputs, labels).mean()
                (g,) = torch.autograd.grad(loss, leaf)
            velocity = momentum * velocity + g
            theta = theta - lr * 0.5 * (1 + np.cos(np.pi * step / total)) * velocity
            if not bool(torch.isfinite(loss)) or not bool(torch.isfinite(theta).all()):
                raise NumericalError(f"fine-tuning on {part} diverged at step {step + 1}: lower {arg('lr', lr)}")
            report((step + 1) / total)
    ended = points.mean_loss(objective, objective.layout.tensors(theta), p)
    if not ended <= begun + _NOISE * max(1.0, begun):
        raise NumericalError(
            f"fine-tuning on {part} ends at a loss of {ended:.3g}, above the {begun:.3g} it began with: lower "
            f"{arg('lr', lr)}"
        )
    return Point(theta.detach(), points.origin(objective).buffers)


@dataclass(frozen=True, kw_only=True, eq=False)
class Tuning:
    """A convergence point that is computed later, by `finetuned`, whose arguments these are."""

    start: Objective
    part: str
    epochs: int
    lr: float = 0.01
    momentum: float = 0.9
    batch_size: int = 128
    seed: int = 0

    def __post_init__(self) -> None:
        """Raise InputError for a number out of its range."""
        if self.epochs < 1 or self.batch_size < 1:
            numbers = f"{self.epochs} and {self.batch_size}"
            raise InputError(f"{arg('epochs')} and its batches must be at least 1, got {numbers}")
        if not (0 < self.lr < np.inf and 0 <= self.momentum < 1):
            numbers = f"{self.lr:g} and {self.momentum:g}"
            raise InputError(f"{arg('lr')} must be positive and the momentum between 0 and 1, got {numbers}")

    @property
    def options(self) -> dict[str, Any]:
        """All arguments but the first."""
        return {name: value for name, value in vars(self).items() if name != "start"}

    def point(self, report: Callable[[float], None]) -> Point:
        """Compute the point; `report` is as for `finetuned`."""
        return finetuned(self.start, **self.options, report=report)

    def plan(self, *, divided: bool = False) -> costs.Known:
        """Return the cost; `divided` says whether processes divide it with that of other points."""
        objective = self.start.undrawn
        n = len(objective.members[objective.part(self.part)])
        batch = min(self.batch_size, n)
        work = costs.Work(
            what="steps of the training on parts",
            prepare=pilot.gradient(objective),
            times=self.epochs * -(-n // self.batch_size),
            samples=batch,
            batch=batch,
            halve=arg("finetune"),
            divided=divided,
        )
        return costs.Known(works=(work,), keeps=6 * objective.layout.size * objective.dtype.itemsize)


def state_of(objective: Objective, point: Point) -> Mapping[str, Tensor]:
    """Return the complete state_dict of a point, as in a checkpoint."""
    model = points.network_at(objective, point)  # in which tensors of several names stay one
    return {name: t.detach().clone() for name, t in tensors_of(model).items()}
