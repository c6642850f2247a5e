"""What a monitor costs: seconds of its measurements, and of an epoch of training, in one process.

    python benchmarks/monitor.py --model resnet20 --samples 12406

A network is trained for a few steps on random images of CIFAR's size, in ten classes that fall off by a factor of 100,
and measured twice by a monitor with its defaults, between steps. Printed are the processor seconds of an epoch, by its
steps; those of the first measurement, which traces the network, and of a later one; and what all measurements of a
training of 200 epochs take, the first one included, as a share of its epochs.
"""

import argparse
import time

import torch
from torch.nn import functional as F

import landscape as ls
from landscape.analyses.monitor import EPOCHS
from landscape.networks import models


def seconds(model: str, samples: int, steps: int) -> tuple[float, float, float]:
    """Return the processor seconds of an epoch, of the first measurement and of the second."""
    torch.manual_seed(0)
    counts = [int(samples * 100 ** (-c / 9) / 2.482) + 1 for c in range(10)]
    labels = torch.cat([torch.full((n,), c) for c, n in enumerate(counts)])
    images = torch.randn(10, 3, 32, 32)[labels] / 10 + torch.randn(len(labels), 3, 32, 32)
    network = models.build(model, 10, in_channels=3)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9)
    monitor = ls.Monitor(ls.make_objective(network, (images, labels), parts="class"), optimizer)

    def step() -> float:
        began = time.process_time()
        some = torch.randint(len(labels), (128,))
        optimizer.zero_grad()
        F.cross_entropy(network.train()(images[some]), labels[some]).backward()
        optimizer.step()
        return time.process_time() - began

    def measured() -> float:
        began = time.process_time()
        monitor.measure()
        return time.process_time() - began

    step()
    taken, found = [], []
    for _ in range(2):
        taken += [step() for _ in range(steps)]
        found.append(measured())
    return sum(taken) / len(taken) * len(labels) / 128, found[0], found[1]


def main() -> None:
    """Print a row."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="small-resnet")
    parser.add_argument("--samples", type=int, default=12406, help="Of an epoch.")
    parser.add_argument("--steps", type=int, default=4, help="Of training, before each of the two measurements.")
    parser.add_argument("--epochs", type=int, default=200, help="Of the training.")
    given = parser.parse_args()
    epoch, first, later = seconds(given.model, given.samples, given.steps)
    of_run = (first + later * (given.epochs // EPOCHS)) / (epoch * given.epochs)
    print(f"{'epoch':>9} {'first':>9} {'later':>9} {'of the training':>16}")
    print(f"{epoch:7.1f} s {first:7.1f} s {later:7.1f} s {of_run:16.1%}")


if __name__ == "__main__":
    main()
