"""The groups of classes of a run: the bank that they are made from, the files that hold them, and GKP's penalty."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from landscape.autodiff import distributed
from landscape.errors import arg
from landscape.networks import checkpoints, losses
from trainers import gkp, memory, rules, schedule
from trainers.loop import Trainer

log = logging.getLogger(__name__)


class Grouping:
    """Groups the classes during a training, if its recipe has groups."""

    def __init__(self, out: Path, trainer: Trainer, workers: int) -> None:
        """Open the bank.

        Args:
            out: folder of the run.
            trainer: gets the groups and the penalty.
            workers: number of processes that read images from files.
        """
        self._out, self._trainer, self._workers = out, trainer, workers
        self.bank = memory.Bank(out / "bank", len(trainer.train.class_names))
        self.file: str | None = None  # name of the file of the latest groups

    def row(self) -> dict[str, Any]:
        """Return what a row of the history says of the bank and the groups."""
        nothing, group_of = np.full(len(self._trainer.train.class_names), np.nan), self._trainer.group_of
        banked = None if self.bank.empty else self.bank.epochs
        return {
            "bank_epoch": nothing if banked is None else banked.astype(float),
            "n_banked": np.nan if banked is None else float(len(np.unique(banked))),
            "group": nothing if group_of is None else group_of.numpy().astype(float),
            "n_groups": np.nan if group_of is None else float(group_of.max() + 1),
        }

    def regroup(self) -> None:
        """Group the classes again if the recipe says so; the first rank does so and sends the groups to the others."""
        r, epoch = self._trainer.recipe, self._trainer.epoch
        if not r.grouped or not (rules.groups_after(r)(epoch) or self._missed()):
            return
        found: dict[str, Tensor] = {}
        if distributed.is_main():
            groups = memory.group_classes(self.bank, self._trainer.encoder, r.groups, centre=r.centre, seed=r.seed)
            if groups.n_groups < r.groups:
                log.warning(
                    f"after epoch {epoch} the classes fall into {groups.n_groups} of {arg('groups', r.groups)}: "
                    "those whose features were best in the same epoch share their encoder, and so their group"
                )
            found["group_of"] = torch.from_numpy(np.asarray(groups.group_of, dtype=np.int64))
            if r.gkp:
                found |= self._convergence_points(groups)
            self.file = f"groups-{epoch:04d}.pt"
            checkpoints.write(self._out / self.file, found, {"epoch": epoch})
        self.use(self._broadcast(found))

    def _missed(self) -> bool:
        """Say whether the only grouping found a single group, and an epoch remains for another grouping."""
        r, group_of = self._trainer.recipe, self._trainer.group_of
        found_one = group_of is not None and r.groups > 1 and int(group_of.max()) == 0
        return found_one and r.regroup_every == 0 and self._trainer.epoch < r.epochs

    def _convergence_points(self, groups: memory.Groups) -> dict[str, Tensor]:
        centres = memory.group_centres(self.bank, groups, self._trainer.encoder)
        fisher = gkp.group_fisher(
            self._trainer.model,
            self._trainer.train,
            groups,
            centres,
            self._trainer.encoder,
            loss=self._trainer.criterion if self._trainer.recipe.fisher_loss == "run" else losses.cross_entropy,
            max_samples=self._trainer.recipe.fisher_samples,
            seed=self._trainer.recipe.seed,
            workers=self._workers,
        )
        return {"centres": centres, "fisher": fisher.cpu()}

    def _broadcast(self, found: dict[str, Tensor]) -> dict[str, Tensor]:
        """Send what the first rank found to every rank, and return it."""
        if distributed.world() == 1:
            return found
        named = dict(self._trainer.model.named_parameters())
        size = sum(named[n].numel() for n in self._trainer.encoder)
        n_groups = torch.zeros((), dtype=torch.int64)
        if distributed.is_main():
            n_groups += int(found["group_of"].max()) + 1
        distributed.barrier(patient=True)  # the first rank has passed over the data
        distributed.broadcast([n_groups])
        if not distributed.is_main():
            found = {"group_of": torch.zeros(len(self._trainer.train.class_names), dtype=torch.int64)}
            if self._trainer.recipe.gkp:
                kind = named[self._trainer.encoder[0]].dtype
                found |= {name: torch.zeros(int(n_groups), size, dtype=kind) for name in ("centres", "fisher")}
        distributed.broadcast(found[name] for name in sorted(found))
        return found

    def use(self, found: dict[str, Tensor]) -> None:
        """Pass groups to the trainer."""
        group_of = found["group_of"].numpy()
        recipe, penalty = self._trainer.recipe, None
        if recipe.gkp:
            counts = self._trainer.train.class_counts if recipe.divide_by == "samples" else np.ones(len(group_of))
            penalty = gkp.GKP(
                found["centres"].to(self._trainer.device),
                found["fisher"].to(self._trainer.device),
                np.bincount(group_of, counts),
                strength=recipe.preservation,
            )
            self._warn_of(penalty, np.bincount(group_of, self._trainer.train.class_counts))
        self._trainer.regroup(group_of, penalty)

    def _warn_of(self, penalty: gkp.GKP, counts: np.ndarray) -> None:
        """Say if SGD diverges on GKP's parabola: its curvature is above `steepest`."""
        r, (group, *_) = self._trainer.recipe, self._trainer.base.param_groups
        alpha = schedule.mixing(self._trainer.epoch, r.epochs, r.alpha_start, r.alpha_end)
        shares = torch.from_numpy(counts / counts.sum()).to(penalty.centres)
        found = (1 - alpha) * penalty.curvature(shares)
        most = steepest(group["lr"], r.momentum, nesterov=r.nesterov)
        if found > most and distributed.is_main():
            log.warning(
                f"after epoch {self._trainer.epoch} GKP's pull has a curvature of {found:.3g}, above the "
                f"{most:.3g} that steps of {group['lr']:.3g} with momentum can follow, so the weights may diverge: "
                f"lower {arg('preservation')}, now {r.preservation:g}, or {arg('groups')}; the smallest group has "
                f"{counts.min():.0f} training samples"
            )


def steepest(lr: float, momentum: float, *, nesterov: bool) -> float:
    """Return the curvature of a parabola above which SGD on it diverges.

    With a = lr times the curvature, the distance x_t from the minimum follows x_{t+1} = (1 + m - a) x_t - m x_{t-1},
    and with Nesterov's momentum in torch's form x_{t+1} = (1 + m)(1 - a) x_t - m (1 - a) x_{t-1}. At the bound one
    root is -1.

    Args:
        lr: the learning rate.
        momentum: m, from 0 to 1.
        nesterov: with Nesterov's momentum.

    Returns:
        2 (1 + m) / lr, or 2 (1 + m) / ((1 + 2m) lr) with Nesterov's momentum.
    """
    return 2 * (1 + momentum) / (lr * (1 + 2 * momentum * nesterov))
