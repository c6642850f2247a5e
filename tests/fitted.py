"""A small network that has fitted most samples of a class, so that few are uncertain."""

import torch
from torch import nn

from landscape.data import datasets
from landscape.objective.objective import Objective


def network(*, scale=8.0, sizes=(60, 5), **options):
    """Classes of so many samples; the logits are the larger the larger the scale."""
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)).double()
    for p in model.parameters():
        p.data = torch.randn(p.shape, generator=generator, dtype=p.dtype)
    model[2].weight.data *= scale
    labels = torch.cat([torch.full((n,), c) for c, n in enumerate(sizes)])
    inputs = torch.randn(len(labels), 4, generator=generator, dtype=torch.float64)
    samples = datasets.from_dataset((inputs, labels), name="case")
    return Objective.build(
        model, samples, partition="class", dtype=torch.float64, batch_size=16, device="cpu", **options
    )
