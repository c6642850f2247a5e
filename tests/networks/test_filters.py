"""Filters against what autograd says: the numbers of a weight that one output depends on."""

import pytest
import torch
from cases import Case
from torch import nn
from torch.nn.utils import parametrizations

from landscape.analyses import directions
from landscape.networks import filters
from landscape.networks.models import NormedLinear

LAYERS = {
    "linear": (lambda: nn.Linear(3, 4, bias=False), (3,)),
    "cosine": (lambda: NormedLinear(3, 4), (3,)),
    "square cosine": (lambda: NormedLinear(4, 4), (4,)),
    "convolution": (lambda: nn.Conv2d(4, 6, 3, padding=1, bias=False), (4, 5, 5)),
    "grouped": (lambda: nn.Conv2d(4, 6, 3, padding=1, groups=2, bias=False), (4, 5, 5)),
    "depthwise": (lambda: nn.Conv1d(4, 4, 3, padding=1, groups=4, bias=False), (4, 5)),
    "transposed": (lambda: nn.ConvTranspose2d(4, 6, 3, padding=1, bias=False), (4, 5, 5)),
    "transposed, grouped": (lambda: nn.ConvTranspose2d(4, 6, 3, padding=1, groups=2, bias=False), (4, 5, 5)),
    "transposed, depthwise": (lambda: nn.ConvTranspose1d(4, 4, 3, padding=1, groups=4, bias=False), (4, 5)),
    "transposed, multiplied": (lambda: nn.ConvTranspose3d(2, 6, 2, padding=1, groups=2, bias=False), (2, 4, 4, 4)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_a_filter_is_what_one_output_depends_on(name):
    make, shape = LAYERS[name]
    torch.manual_seed(0)
    layer, x = make(), torch.randn(2, *shape)
    key, weight = max(layer.named_parameters(), key=lambda pair: pair[1].numel())
    out = layer(x)
    number = torch.arange(weight.numel(), dtype=torch.float64).reshape(weight.shape)
    of = filters.groups(layer)
    laid_out = filters.rows(number, key, of)
    assert torch.equal(filters.from_rows(laid_out, number.shape, key, of), number)
    used = []
    for channel in range(out.shape[1]):
        (g,) = torch.autograd.grad(out[:, channel].square().sum(), weight, retain_graph=True)
        used.append(set(number[g != 0].tolist()))
    assert [set(row.tolist()) for row in laid_out] == used


def test_weights_behind_a_parametrisation_have_the_filters_of_their_layer():
    layer = nn.ConvTranspose2d(4, 6, 3, groups=2, bias=False)
    number = torch.arange(layer.weight.numel()).reshape(layer.weight.shape)
    plain = filters.rows(number, "0.weight", filters.groups(nn.Sequential(layer)))
    of = filters.groups(nn.Sequential(parametrizations.weight_norm(layer)))
    assert of == {"0.parametrizations.weight.original1": 2}
    assert torch.equal(filters.rows(number, "0.parametrizations.weight.original1", of), plain)


@pytest.mark.parametrize("name", [n for n in LAYERS if n.startswith(("trans", "depth", "conv", "group"))])
def test_noise_is_as_long_as_each_filter_however_small(name):
    """One output's filter is a hundredth of the others: the direction's is as short."""
    make, shape = LAYERS[name]

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.fc = make(), nn.Linear(make()(torch.zeros(1, *shape)).shape[1], 3)

        def forward(self, x):
            x = x.flatten(1).repeat(1, 8)[:, : torch.Size(shape).numel()]
            return self.fc(self.layer(x.reshape(-1, *shape)).flatten(2).mean(2))

    objective = Case(Net).objective(params="layer")
    weight = objective.theta[0]
    of = filters.groups(objective.model)
    with torch.no_grad():
        small = filters.rows(weight, "layer.weight", of).clone()
        small[-1] /= 100
        weight.copy_(filters.from_rows(small, weight.shape, "layer.weight", of))
    (drawn,) = directions.random(objective, 1).theta
    found = filters.rows(objective.layout.tensors(drawn)[0], "layer.weight", of).norm(dim=1)
    torch.testing.assert_close(found, small.norm(dim=1), rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("shape", "laid_out"), [((), (1, 1)), ((3,), (3, 1)), ((0,), (0, 1)), ((0, 3), (0, 3)), ((3, 0, 2), (3, 0))]
)
def test_parameters_without_axes_or_without_numbers_have_filters_too(shape, laid_out):
    found = filters.rows(torch.ones(shape), "w", {})
    assert found.shape == laid_out
    assert filters.from_rows(found, torch.Size(shape), "w", {}).shape == shape
