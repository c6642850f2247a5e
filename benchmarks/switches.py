"""What each choice of the paper, its released code and this package changes in one epoch of training.

    python benchmarks/switches.py [--method gsa-gkp] [--epoch 8]

A run on digits-lt comes to its groups. From there one epoch is made anew with each choice of `--as paper` and
`--as released` in turn, and with all of them. Printed are the distance of the weights that it ends at from those of the
default, as a share of the way that the default's epoch goes; the epoch's training loss; the share of GKP's pull in the
gradient and of clipped radii; and how many classes are in another group where a choice concerns the groups.
"""

import argparse
import dataclasses
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trainers import Memory, data, recipe
from trainers.gkp import GKP
from trainers.loop import Trainer
from trainers.recipes import Recipe
from trainers.variants import fields_of

CPU = torch.device("cpu")


def main() -> None:
    """Come to the groups, then make one epoch after the other from there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", default="bcl-gsa-gkp")
    parser.add_argument("--epoch", type=int, default=8, help="plain epochs before the groups")
    args = parser.parse_args()
    chosen, loaded = data.load(recipe(args.method, dataset="digits-lt", seed=0))
    model, _ = data.build(chosen, loaded.whole)
    trainer = Trainer(chosen, model, loaded.train, device=CPU)
    forms = {form: Memory(model, loaded.train, form=form) for form in ("paper", "inverse")}
    for epoch in range(1, args.epoch + 1):
        trainer.run_epoch()
        for memory in forms.values() if epoch > chosen.warmup_epochs else ():
            memory.update(epoch)
    state = {name: t.clone() for name, t in trainer.state().items()}
    start = weights(trainer)
    default = ended(chosen, loaded, args.epoch, state, forms)
    print("| choice | | distance | loss | pull | clipped | classes moved |\n|---|---|---|---|---|---|---|")
    show("default", "", default, default, start)
    for variant in ("paper", "released"):
        fields = {k: v for k, v in fields_of(variant, chosen).items() if v != getattr(chosen, k)}
        for name, value in fields.items():
            if name == "pull_at" and variant == "paper":
                continue
            show(name, value, ended(changed(chosen, {name: value}), loaded, args.epoch, state, forms), default, start)
        show(f"--as {variant}", "", ended(changed(chosen, fields), loaded, args.epoch, state, forms), default, start)


def changed(chosen: Recipe, fields: dict[str, Any]) -> Recipe:
    """Return a recipe with other fields."""
    return dataclasses.replace(chosen, **fields)


def weights(trainer: Trainer) -> Tensor:
    """Return all of a model's parameters as one vector."""
    return torch.cat([p.detach().reshape(-1) for p in trainer.model.parameters()]).clone()


def ended(
    chosen: Recipe, loaded: data.Data, epoch: int, state: dict[str, Tensor], forms: dict[str, Memory]
) -> tuple[Tensor, dict[str, float], np.ndarray]:
    """Return the weights after one epoch from a state, what the epoch says, and the groups."""
    model, _ = data.build(chosen, loaded.whole)
    trainer = Trainer(chosen, model, loaded.train, device=CPU)
    trainer.restore(epoch, {name: t.clone() for name, t in state.items()})
    memory = forms[chosen.quality_form]
    memory.loss = trainer.criterion if chosen.fisher_loss == "run" else torch.nn.CrossEntropyLoss(reduction="none")
    groups = memory.regroup()
    counts = loaded.train.class_counts if chosen.divide_by == "samples" else np.ones(len(groups.group_of))
    found = memory.gkp
    sizes = np.bincount(groups.group_of, counts)
    penalty = GKP(found.centres, found.fisher, sizes, strength=chosen.preservation) if chosen.gkp and found else None
    trainer.regroup(groups.group_of, penalty)
    row = trainer.run_epoch()
    return weights(trainer), row, groups.group_of


def show(name: str, value: Any, found: tuple[Any, ...], default: tuple[Any, ...], start: Tensor) -> None:
    """Print a row."""
    theta, row, group_of = found
    distance = float((theta - default[0]).norm() / (default[0] - start).norm())
    moved = int((group_of != default[2]).sum())
    shares = "".join(f" {row[key]:.3g} |" for key in ("train_loss", "pull_share", "clipped_share"))
    print(f"| `{name}` | {value} | {distance:.3f} |{shares} {moved} |", flush=True)


if __name__ == "__main__":
    main()
