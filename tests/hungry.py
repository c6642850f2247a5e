"""A network that has memory for some samples at a time only."""

import torch
from torch import nn

from landscape.data import datasets
from landscape.objective.objective import Objective


class Hungry(nn.Module):
    """Has memory for some samples at a time only, once `most` says so."""

    def __init__(self, outputs=2):
        super().__init__()
        self.first, self.last = nn.Linear(3, 4), nn.Linear(4, outputs)
        self.most = 100

    def forward(self, x):
        if len(x) > self.most:
            raise torch.OutOfMemoryError(f"no memory for {len(x)} samples")
        return self.last(torch.tanh(self.first(x)))


def objective(most, outputs=2, partition="class"):
    """Thirteen samples, in two parts of seven and six, taken eight at a time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, data = Hungry(outputs), (torch.randn(13, 3, dtype=torch.float64), torch.arange(13) % outputs)
    samples = datasets.from_dataset(data)
    found = Objective.build(model, samples, partition=partition, dtype=torch.float64, device="cpu", batch_size=8)
    found.model.most = most
    return found
