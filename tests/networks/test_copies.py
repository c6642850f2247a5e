"""Networks that differ in the values of their weights alone, and all that must not pass for it."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from landscape.networks.copies import alike


class Scaled(nn.Module):
    """A layer with attributes of a user's own."""

    def __init__(self, **own):
        super().__init__()
        self.layer = nn.Linear(2, 2)
        vars(self).update(own)


class Silent:
    """An attribute that refuses to be compared."""

    def __eq__(self, other):
        raise RuntimeError("not to be compared")

    __hash__ = None


ATTRIBUTES = {"scale": 2.0, "factor": torch.tensor([1.0, 2.0]), "name": "a"}


def test_other_weights_and_statistics_make_no_other_network():
    first = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), Scaled(**ATTRIBUTES))
    second = copy.deepcopy(first)
    with torch.no_grad():
        for t in (*second.parameters(), *second.buffers()):
            t.add_(1)
    assert alike(first, second)


@pytest.mark.parametrize(
    "own",
    [
        {"scale": 3.0},
        {"scale": 2},
        {"factor": torch.tensor([1.0, 3.0])},
        {"factor": torch.tensor([1.0, 2.0], dtype=torch.float64)},
        {"factor": torch.empty(2, device="meta")},
        {"factor": np.ones(2)},
        {"more": 1},
        {"training": False},
    ],
)
def test_another_attribute_makes_another_network(own):
    assert not alike(Scaled(**ATTRIBUTES), Scaled(**ATTRIBUTES | own))


@pytest.mark.parametrize("held", [Silent(), np.arange(2), [torch.ones(2)]])
def test_what_cannot_be_compared_is_not_alike(held):
    assert not alike(Scaled(held=held), Scaled(held=copy.deepcopy(held)))


def test_other_modules_make_another_network():
    assert not alike(nn.Sequential(nn.Linear(2, 2), nn.ReLU()), nn.Sequential(nn.Linear(2, 2), nn.Tanh()))
    assert not alike(nn.Sequential(nn.Linear(2, 2)), nn.Sequential(nn.Linear(2, 2), nn.ReLU()))
