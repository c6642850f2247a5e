"""Finite weights whose outputs, or whose squares, are not: each is refused with the layer and the cause."""

import warnings

import pytest
import torch
from refusals import refused
from torch import nn
from torch.nn import functional as F

from landscape.analyses.features import features
from landscape.data import datasets
from landscape.errors import NumericalError
from landscape.networks import overflow, weights
from landscape.objective.objective import Objective

HUGE = {torch.float32: 1e38, torch.float64: 1e149}


def network(dtype=torch.float64):
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(0)
        layers = (nn.Linear(4, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 5), nn.ReLU(), nn.Linear(5, 3))
        return nn.Sequential(*layers).to(dtype).eval()


def objective_of(model, dtype, **options):
    inputs = torch.randn(9, 4, generator=torch.Generator().manual_seed(1))
    data = datasets.from_dataset((inputs, torch.tensor([0] * 4 + [1] * 3 + [2] * 2)))
    return Objective.build(model, data, dtype=dtype, device="cpu", partition="class", **options)


def scaled(*names):
    def change(state, huge):
        for name in names:
            state[name].mul_(huge / state[name].abs().max())

    return change


def filled(name, value):
    return lambda state, huge: state[name].fill_(value(huge))


def both(*changes):
    return lambda state, huge: [change(state, huge) for change in changes]


def opposite(state, huge):
    state["5.bias"].copy_(torch.tensor([1.0, -1.0, 1.0]).to(state["5.bias"]) * torch.finfo(state["5.bias"].dtype).max)


KINDS = {
    "weights of all layers": scaled("0.weight", "3.weight", "5.weight"),
    "weights of two layers": scaled("3.weight", "5.weight"),
    "weights and a bias": scaled("0.bias", "3.weight", "5.weight"),
    "a running mean": filled("1.running_mean", lambda huge: -huge),
    "a running mean and a weight": both(filled("1.running_mean", lambda huge: -huge), scaled("3.weight", "5.weight")),
    "a scale of batch norm": scaled("1.weight", "3.weight", "5.weight"),
    "a shift of batch norm": filled("1.bias", lambda huge: huge),
    "a huge variance": filled("1.running_var", lambda huge: huge),
    "a negative variance": filled("1.running_var", lambda huge: -1.0),
    "biases that are far apart": opposite,
    "logits that are all the same": filled("5.bias", lambda huge: huge),
}


def layer_that_overflows(model, x):
    """Go through the layers one by one; the first whose outputs are not finite."""
    for number, layer in enumerate(model):
        x = layer(x)
        if not x.isfinite().all():
            return f"the outputs of layer {number} ({type(layer).__name__}) are the first"
    return None


@pytest.mark.parametrize("dtype", HUGE)
@pytest.mark.parametrize("kind", KINDS)
def test_what_overflows_is_refused_with_its_layer_and_the_rest_is_right(kind, dtype):
    model = network(dtype)
    with torch.no_grad():
        KINDS[kind](model.state_dict(), HUGE[dtype])
        inputs = torch.randn(9, 4, generator=torch.Generator().manual_seed(1)).to(dtype)
        logits = model(inputs).double()  # whose loss is computed in float64
        loss = F.cross_entropy(logits, torch.tensor([0] * 4 + [1] * 3 + [2] * 2), reduction="none")
        layer = layer_that_overflows(model, inputs)
    own = [float(p.detach().abs().max()) for p in model.parameters()]
    if float(loss.abs().max()) < overflow.LARGEST and max(own) < overflow.LARGEST:
        found = objective_of(model, dtype).evaluation.loss
        assert found[1] == pytest.approx(float(loss[4:7].double().mean()), rel=1e-5)
        return
    with pytest.raises(NumericalError) as caught:
        objective_of(model, dtype).evaluate()
    said = str(caught.value)
    if max(own) > overflow.LARGEST:
        assert "5.bias has values up to" in said
    elif layer is not None:
        assert layer in said
    else:
        assert "squares of losses beyond" in said or "look at the loss" in said
    remedy = "did the training diverge?" if dtype == torch.float64 else "dtype='float64'"
    assert said.endswith("is the checkpoint damaged?" if kind == "a negative variance" else remedy)


def test_weights_whose_squares_overflow_are_refused_by_name():
    state = network().state_dict()
    state["3.weight"][1, 2] = -1e151
    with refused(NumericalError, "3.weight has values up to 1e+151"):
        weights.load_weights(network(), state)
    model = network()
    model.load_state_dict(state)
    with refused(NumericalError, "3.weight has values up to 1e+151"):
        objective_of(model, torch.float64)


def test_a_buffer_may_hold_the_largest_number_as_masks_do():
    model = network()
    model.register_buffer("mask", torch.full((3,), torch.finfo(torch.float64).min, dtype=torch.float64))
    weights.load_weights(network_with_mask := model, model.state_dict())
    assert objective_of(network_with_mask, torch.float64).layout.size


def test_losses_whose_squares_overflow_are_refused_with_their_part():
    def loss(z, y):
        return F.cross_entropy(z, y, reduction="none") * (1 + 1e200 * (y == 2).double())

    objective = objective_of(network(), torch.float64, loss=loss)
    with refused(NumericalError, "part 2", "squares"):
        objective.evaluate()


def test_a_later_sample_is_looked_at_where_its_loss_is_not_finite():
    model = network()
    inputs = torch.randn(9, 4, dtype=torch.float64)
    inputs[8] = 1e305
    data = datasets.from_dataset((inputs, torch.tensor([0] * 4 + [1] * 3 + [2] * 2)))
    model[0].weight.data.mul_(1e10)
    objective = Objective.build(model, data, dtype=torch.float64, device="cpu", partition="class", batch_size=2)
    with refused(NumericalError, "part 2", "layer 0 (Linear)", "inputs up to 1e+305"):
        objective.evaluate()


def test_features_whose_squares_overflow_are_refused():
    class Far(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.fc = nn.Linear(4, 5), nn.Linear(5, 3)

        def forward(self, x):
            return self.fc(self.body(x) * 1e160)

    model = Far().double()
    model.fc.weight.data.mul_(1e-160)
    with refused(NumericalError, "features of a class"):
        features(objective_of(model, torch.float64))


@pytest.mark.parametrize(
    ("module", "inputs", "words"),
    [
        (nn.Identity(), torch.tensor([[torch.nan]]), "the data have values that are not finite"),
        (nn.Identity(), torch.tensor([[2.0]]), "finite outputs, up to 2: look at the loss"),
        (nn.Sequential(nn.Threshold(0, torch.inf)), torch.tensor([[-1.0]]), "layer 0 (Threshold)"),
    ],
)
def test_a_pass_is_explained(module, inputs, words):
    assert words in overflow.explained(module, inputs, lambda: module(inputs), torch.float32)
    assert not module._forward_hooks


def test_what_lies_between_layers_is_named_by_the_layer_that_receives_it():
    class Rooted(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(2, 2), nn.Linear(2, 2)

        def forward(self, x):
            return self.last(self.first(x).exp().exp().exp())

    model, inputs = Rooted(), 9 * torch.ones(1, 2)
    with warnings.catch_warnings(), torch.no_grad():
        model.first.weight.fill_(1.0)
        found = overflow.explained(model, inputs, lambda: model(inputs), torch.float32)
    assert "the inputs of layer last (Linear) are not finite" in found
