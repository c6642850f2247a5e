"""Small data and models to train on."""

import torch
from torch import nn

from landscape.data import datasets
from trainers import data, methods, run
from trainers.loop import seeded

CPU = torch.device("cpu")


def blobs(n_per_class=(9, 5, 1), seed=0, split="train"):
    """Three classes around three corners; separable, ragged, and the last has one sample."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.cat([torch.full((n,), c) for c, n in enumerate(n_per_class)])
    inputs = 3 * torch.eye(4)[labels] + 0.3 * torch.randn((len(labels), 4), generator=generator)
    return datasets.from_dataset((inputs, labels), name="blobs", split=split, class_counts=[9, 5, 1])


def linear(n_classes=3):
    """The plainest model: all of it is its classifier."""
    with seeded(CPU, 0):
        return nn.Linear(4, n_classes)


def layered():
    """An encoder with batch norm and dropout, and a classifier."""
    with seeded(CPU, 0):
        return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 3))


def untracked():
    """An encoder whose batch norm has no running statistics, so that samples meet in eval mode too."""
    model = layered()
    model[1] = nn.BatchNorm1d(8, track_running_stats=False)
    return model


def batched():
    """An encoder with batch norm, without dropout, and a classifier."""
    with seeded(CPU, 0):
        return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))


def vectors(split):
    """A user's data set, by name."""
    samples = blobs(seed=int(split == "test"))
    return samples.inputs, torch.from_numpy(samples.labels)


def lone(split):
    """A single sample of the last of three classes."""
    return torch.ones(1, 4), torch.tensor([2])


def convolutional():
    """For images of three channels and any size."""
    with seeded(CPU, 0):
        first = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        return nn.Sequential(*first, nn.Linear(4, 3))


def mean_loss(logits, labels):
    """A loss as it must not be."""
    return nn.functional.cross_entropy(logits, labels)


def recipe(**options):
    """A short recipe for the blobs."""
    plain = {"dataset": "toys:vectors", "model": "toys:layered", "epochs": 2, "batch_size": 4, "augment": "none"}
    return methods.compose(plain | options)


def begin(out, **options):
    """A run on the blobs in a folder."""
    about = {name: options.pop(name) for name in ("overwrite", "tensorboard", "monitor") if name in options}
    chosen, loaded = data.load(recipe(**options))
    return run.Run(chosen, loaded, out, method=methods.label(chosen), device="cpu", **about)


def finish(out, **options):
    """Train a run on the blobs to its end; its history."""
    this = begin(out, **options)
    try:
        this.train()
        return this.history()
    finally:
        this.close()


def smooth():
    """A model in which samples do not meet."""
    with seeded(CPU, 0):
        return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))


class Bare(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(4, 3))

    def forward(self, x):
        return x @ self.weight


def bare():
    return Bare()
