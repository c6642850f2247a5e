"""A small network with batch norm in float64, a batch, and gradients: what steps of SAM and GSA are tested on."""

import copy

import torch
from torch import nn
from torch.nn import functional as F

COUNTS = [40, 12, 1]


def network():
    with torch.random.fork_rng():
        torch.random.default_generator.manual_seed(0)
        layers = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Tanh(), nn.Flatten(), nn.Linear(64, 3)
        return nn.Sequential(*layers).double()


def batch(n=11):
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(n, 1, 6, 6, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, 3, (n,), generator=generator)
    groups = torch.tensor([0, 1, 0, 2, 0, 0, 1, 0, 0, 1, 0])[:n]
    return inputs, labels, groups


def flat(tensors):
    return torch.cat([t.detach().reshape(-1) for t in tensors])


def gradient(loss, model, **options):
    return flat(torch.autograd.grad(loss, list(model.parameters()), **options))


def shifted(model, by):
    """A copy of the model at theta + by."""
    moved = copy.deepcopy(model)
    with torch.no_grad():
        for p, piece in zip(moved.parameters(), by.split([p.numel() for p in moved.parameters()]), strict=True):
            p.add_(piece.view_as(p))
    return moved


def batch_gradient(model, inputs, labels):
    return gradient(F.cross_entropy(model(inputs), labels), model)


def closure(model, inputs, labels):
    return lambda: F.cross_entropy(model(inputs), labels, reduction="none")


def found_gradient(model):
    return flat([p.grad for p in model.parameters()])
