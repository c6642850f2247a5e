"""Memory banks of small networks."""

import numpy as np
import torch
from torch import nn

from trainers import memory

NAMES = ["0.weight", "0.bias", "1.weight", "1.bias"]


def network(seed=0):
    """An encoder with batch norm and a classifier of four classes."""
    with torch.random.fork_rng():
        torch.random.default_generator.manual_seed(seed)
        model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 4)).double()
        model(torch.randn(20, 3, dtype=torch.float64) * (1 + seed))  # running statistics of its own
    return model


def filled(folder, qualities):
    """A bank after an epoch for each row of qualities, the model of epoch e being `network(e)`."""
    bank = memory.Bank(folder, len(qualities[0]))
    for epoch, quality in enumerate(qualities, start=1):
        bank.update(epoch, np.array(quality, dtype=float), network(epoch).state_dict(), {"epoch": epoch})
    return bank


def encoder_of(model):
    """The parameters before the classifier as one vector."""
    return torch.cat([dict(model.named_parameters())[name].detach().reshape(-1) for name in NAMES])


def divided(*group_of):
    """Groups by their number for each class."""
    return memory.Groups(group_of=np.array(group_of), n_groups=max(group_of) + 1, similarity=np.eye(len(group_of)))
