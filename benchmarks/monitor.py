"""What a monitor costs: the same epochs of training with and without one, in one process.

    python benchmarks/monitor.py --epochs 12 --samples 6000

A small residual network is trained on random images of CIFAR's size, in ten classes that fall off by a factor of ten.
The monitor has its defaults: all numbers, 256 samples of each part, 5 % of the time. Printed are the seconds of all
epochs, those within measurements, their share with and without the first one, and how many there were. On a busy
machine compare the shares only: both clocks run in one process.
"""

import argparse
import time

import torch
from torch.nn import functional as F

import landscape as ls
from landscape.networks import models


def train(epochs: int, samples: int, *, watched: bool) -> tuple[float, float, int, float]:
    """Train for some epochs; return all seconds, those of measurements, how many these were and those of the first."""
    generator = torch.Generator().manual_seed(0)
    counts = [int(samples * 10 ** (-c / 9) / 3.9) + 1 for c in range(10)]
    labels = torch.cat([torch.full((n,), c) for c, n in enumerate(counts)])
    means = torch.randn(10, 3, 32, 32, generator=generator)
    images = means[labels] + torch.randn(len(labels), 3, 32, 32, generator=generator)
    model = models.build("small-resnet", 10, in_channels=3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    monitor = ls.Monitor(ls.make_objective(model, (images, labels), parts="class"), optimizer) if watched else None
    first = 0.0
    began = time.perf_counter()
    for _ in range(epochs):
        model.train()
        for some in torch.randperm(len(labels), generator=generator).split(128):
            optimizer.zero_grad()
            F.cross_entropy(model(images[some]), labels[some]).backward()
            optimizer.step()
            if monitor is not None:
                monitor.step()
                first = first or monitor.seconds[0]
    seconds = time.perf_counter() - began
    spent, n = (monitor.seconds[0], len(monitor.series.checkpoints)) if monitor is not None else (0.0, 0)
    return seconds, spent, n, first


def main() -> None:
    """Print a row with and a row without a monitor."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--samples", type=int, default=6000)
    given = parser.parse_args()
    print(
        f"{'':10} {'seconds':>9} {'measuring':>9} {'of them first':>14} {'measurements':>13} {'share':>7} {'later':>7}"
    )
    for watched in (False, True):
        seconds, spent, n, first = train(given.epochs, given.samples, watched=watched)
        later = (spent - first) / max(seconds - first, 1e-9)
        name = "watched" if watched else "plain"
        print(f"{name:10}{seconds:14.1f}{spent:14.1f}{first:14.1f}{n:14}{spent / seconds:14.1%}{later:14.1%}")


if __name__ == "__main__":
    main()
