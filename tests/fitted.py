"""A small network that has fitted most samples of a class, so that few are uncertain."""

import torch
from torch import nn

import landscape as ls
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


def six_classes(activation, *, epochs=200, classes=(0, 1, 2, 3), **options):
    """Six classes of 120 to 1 samples, trained for so many epochs; the parts are the first four, or those given."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    labels = torch.cat([torch.full((n,), c) for c, n in enumerate((120, 60, 30, 12, 8, 1))])
    inputs = 1.2 * normal(6, 8)[labels] + normal(len(labels), 8)
    model = nn.Sequential(nn.Linear(8, 12), activation(), nn.Linear(12, 6)).double()
    for p in model.parameters():
        p.data = 0.3 * normal(*p.shape)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(epochs):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), labels).backward()
        optimizer.step()
    return ls.make_objective(
        model, (inputs, labels), parts="class", classes=list(classes), dtype="float64", device="cpu", **options
    )
