"""Which epoch each class would be banked in, by features with batch norm's statistics of training and measured anew.

    python benchmarks/bank.py [--method bcl] [--part 0.04 --data-root DIR]

Trains plainly, on digits-lt or on a part of CIFAR-10-LT (see ablation.py), and measures feature quality Q after each
epoch both ways. Printed are, for the epochs after the warm-up, the epochs that the bank would hold at the end and how
many they are along the way; and for each way and a form of Q without scale, log Dis - log Var / 2, the same.
"""

import argparse
import os
from collections.abc import Sequence

import numpy as np
import torch

from landscape.networks import class_means
from trainers import data, evaluation, recipe
from trainers.loop import Trainer
from trainers.preserve import settled_quality


def main() -> None:
    """Train, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", default="ce")
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--part", type=float, default=0.0, help="of CIFAR-10-LT; 0: digits-lt")
    parser.add_argument("--data-root", default="")
    args = parser.parse_args()
    os.environ |= {"ABLATION_ROOT": args.data_root, "ABLATION_PART": str(args.part)}
    fields = {"dataset": "digits-lt"}
    if args.part:
        fields = {"dataset": "ablation:part", "model": "resnet20", "batch_size": 64, "augment": "crop-flip"}
        fields |= {"normalize": "0.4914,0.4822,0.4465/0.2023,0.1994,0.2010", "warmup_epochs": 1}
    chosen, loaded = data.load(recipe(args.method, epochs=args.epochs, **fields))
    model, _ = data.build(chosen, loaded.whole)
    trainer = Trainer(chosen, model, loaded.train, device=torch.device("cpu"))
    labels, n_classes = torch.from_numpy(loaded.train.labels), len(loaded.train.class_names)
    found: dict[str, list[np.ndarray]] = {"of training": [], "measured anew": [], "anew, without scale": []}
    for epoch in range(1, args.epochs + 1):
        row = trainer.run_epoch()
        own = evaluation.evaluate(model, loaded.train, classifier=trainer.classifier)
        as_it_is = class_means.feature_quality(own.features, labels, n_classes).quality
        accuracy: list[float] = []
        anew = settled_quality(
            model, loaded.train, trainer.classifier, keep=lambda scores, _, a=accuracy: a.append(scores.accuracy)
        )
        found["of training"].append(as_it_is)
        found["measured anew"].append(anew.quality)
        found["anew, without scale"].append(np.log(anew.distance) - np.log(anew.variance) / 2)
        print(
            f"epoch {epoch:3}, accuracy in training {row['train_accuracy']:.0%}, in eval mode {own.accuracy:.0%}, with "
            f"statistics measured anew {accuracy[0]:.0%}; Q {short(as_it_is)} and {short(anew.quality)}",
            flush=True,
        )
    for name, qualities in found.items():
        banked = best(np.array(qualities)[chosen.warmup_epochs :], chosen.warmup_epochs + 1)
        counts = [len(set(row.tolist())) for row in banked]
        print(
            f"{name}: epochs of the classes {banked[-1].tolist()}, distinct ones {counts[::4]}, in the end {counts[-1]}"
        )


def best(qualities: np.ndarray, first: int) -> np.ndarray:
    """Return the epoch of each class's best quality so far, (E, C); a class without one takes the newest."""
    known = np.where(np.isfinite(qualities), qualities, np.inf)
    return np.array([
        known[: e + 1].shape[0] - 1 - known[: e + 1][::-1].argmax(axis=0) + first for e in range(len(known))
    ])


def short(values: np.ndarray | Sequence[float]) -> str:
    """Return the range of some numbers."""
    return f"{np.nanmin(values):.1f} to {np.nanmax(values):.1f}"


if __name__ == "__main__":
    main()
