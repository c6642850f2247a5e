"""Time of a training step by each method, as multiples of plain cross-entropy, interleaved in one run.

    python benchmarks/training.py --data-root DIR [--device cuda]

ResNet-32 on CIFAR-10-LT (imbalance 100), batches of 256, crop and flip. Each round makes one step by every method, in
turn; printed are the medians and the ratios of same-round pairs. Groups are G = 4 by class frequency, GKP's tensors are
random: their values change no time. Also printed: how far the perturbation of the decoupled first pass, which takes
batch norm's statistics of the batch as constants, agrees with the exact one; and the exact group gradients by repeated
against batched backward passes.
"""

import argparse
import copy
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from landscape.data import datasets
from landscape.networks import models
from trainers import methods
from trainers.gkp import GKP
from trainers.gsa import GSA
from trainers.loop import FIRST, Trainer, seeded

GSA_OPTIONS = {"sharpness": "gsa", "groups": 4}
RECIPES = {
    "ce": {},
    "sam": {"sharpness": "sam"},
    "gsa": GSA_OPTIONS,
    "gsa-gkp": {**GSA_OPTIONS, "gkp": True},
    "gsa, decoupled": {**GSA_OPTIONS, "first_pass": "decoupled"},
    "gsa-gkp, decoupled": {**GSA_OPTIONS, "gkp": True, "first_pass": "decoupled"},
    "gsa, per group": {**GSA_OPTIONS, "perturb": "per-group"},
}


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", required=True)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--model", default="resnet32")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--warm-up-steps", type=int, default=20, help="plain steps before agreement is measured")
    args = parser.parse_args()
    device = torch.device(args.device)
    samples = datasets.load("cifar10", root=args.data_root, imbalance=100)
    with seeded(torch.device("cpu"), 0, FIRST):
        model = models.build(args.model, 10)
    print(f"{args.model}, batches of {args.batch_size}, torch {torch.__version__}, {device}")
    trainers = {name: make(copy.deepcopy(model), samples, device, args.batch_size, r) for name, r in RECIPES.items()}
    batches = [torch.randperm(len(samples))[: args.batch_size] for _ in range(args.rounds + 1)]
    seconds: dict[str, list[float]] = {name: [] for name in trainers}
    for round_, indices in enumerate(batches):
        for name, trainer in trainers.items():
            taken = clock(lambda trainer=trainer, indices=indices: step(trainer, indices), device)
            if round_:  # the first warms caches up
                seconds[name].append(taken)
    print(f"\none step, {args.rounds} rounds")
    for name, values in seconds.items():
        ratios = [v / c for v, c in zip(values, seconds["ce"], strict=True)]
        span = f"({min(ratios):.2f} to {max(ratios):.2f})"
        print(f"  {name:<22}{statistics.median(values):8.3f} s   {statistics.median(ratios):5.2f} x ce   {span}")
    ce = trainers["ce"]
    for _ in range(args.warm_up_steps):
        step(ce, torch.randperm(len(samples))[: args.batch_size])
    agreement(ce.model, ce, batches)
    backward(ce.model, ce, batches[0], device)


def make(
    model: nn.Module, samples: datasets.Samples, device: torch.device, batch_size: int, parts: dict[str, object]
) -> Trainer:
    """Return a trainer in its first epoch, with groups where the recipe has them."""
    recipe = methods.compose({"dataset": "cifar10", "augment": "crop-flip", "batch_size": batch_size, **parts})
    trainer = Trainer(recipe, model, samples, device=device)
    if recipe.grouped:
        group_of = np.array([0, 0, 1, 1, 1, 2, 2, 3, 3, 3])
        size = sum(dict(model.named_parameters())[n].numel() for n in trainer.encoder)
        tensors = (torch.rand(4, size, device=device) for _ in range(2))
        counts = np.bincount(group_of, samples.class_counts)
        trainer.regroup(group_of, GKP(*tensors, counts, strength=100.0) if recipe.gkp else None)
    return trainer


def step(trainer: Trainer, indices: Tensor) -> None:
    """Make one step on a batch."""
    trainer.model.train()
    views, labels = trainer.batches.get(indices)
    trainer.step(views, labels, trainer.train.labels[indices])


def clock(action: Callable[[], object], device: torch.device) -> float:
    """Return the seconds that an action takes."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    started = time.perf_counter()
    action()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


def agreement(model: nn.Module, trainer: Trainer, batches: list[Tensor]) -> None:
    """Print the cosine of the decoupled perturbation and the exact one over some batches."""
    cosines = []
    group_of = torch.tensor([0, 0, 1, 1, 1, 2, 2, 3, 3, 3])
    for indices in batches:
        (inputs,), labels = trainer.batches.get(indices)
        found = []
        for first_pass in ("exact", "decoupled"):
            own = copy.deepcopy(model).train()
            optimizer = GSA(
                own.parameters(), torch.optim.SGD, counts=[7997, 3518, 619, 272], first_pass=first_pass,
                average=0, model=own, lr=0.1,
            )  # fmt: skip
            optimizer.gradients(
                lambda own=own, x=inputs, y=labels: F.cross_entropy(own(x), y, reduction="none"),
                group_of[torch.from_numpy(trainer.train.labels[indices])],
            )
            found.append(optimizer.perturbation)
        cosines.append(torch.cosine_similarity(*found, dim=0).item())
    print(f"\ncosine of the decoupled and the exact perturbation: median {statistics.median(cosines):.3f}, ", end="")
    print(f"{min(cosines):.3f} to {max(cosines):.3f} over {len(cosines)} batches")


def backward(model: nn.Module, trainer: Trainer, indices: Tensor, device: torch.device) -> None:
    """Print the time of four groups' gradients by repeated and by batched backward passes."""
    (inputs,), labels = trainer.batches.get(indices)
    weights = torch.eye(4, device=device)[torch.arange(len(labels), device=device) % 4].T
    parameters = list(model.parameters())
    for name, batched in (("repeated", False), ("batched", True)):

        def run(batched: bool = batched) -> None:
            losses = F.cross_entropy(model(inputs), labels, reduction="none")
            if batched:
                torch.autograd.grad(losses, parameters, weights, is_grads_batched=True)
            else:
                for k in range(4):
                    torch.autograd.grad(losses, parameters, weights[k], retain_graph=True)

        run()
        taken = statistics.median(clock(run, device) for _ in range(3))
        print(f"forward and four backward passes, {name}: {taken:.3f} s")


if __name__ == "__main__":
    main()
