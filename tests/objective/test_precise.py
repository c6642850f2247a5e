"""Losses and gradients of fitted samples in float32, against float64."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

import landscape as ls
from landscape.objective import points
from landscape.objective.evaluator import Evaluator


def fitted(margin):
    """A network that classifies all samples with about this margin in the logits, and its data."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(24) % 3
    inputs = 2 * torch.eye(6)[labels] + 0.3 * torch.randn(24, 6, generator=generator)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
    steps = torch.optim.Adam(model.parameters(), 0.05)
    for _ in range(60):
        steps.zero_grad()
        nn.functional.cross_entropy(model(inputs), labels).backward()
        steps.step()
    with torch.no_grad():
        z = model(inputs)
        own = z.gather(1, labels[:, None])
        least = (own - z.scatter(1, labels[:, None], -torch.inf).max(1, keepdim=True).values).mean()
        for p in model[2].parameters():
            p.mul_(margin / least)
    return model, (inputs, labels)


def both(margin):
    """The objective in float32, and the same numbers in float64."""
    model, (inputs, labels) = fitted(margin)
    single = ls.make_objective(copy.deepcopy(model), (inputs, labels), parts="class", device="cpu")
    data = inputs.double(), labels
    return single, ls.make_objective(model.double(), data, parts="class", device="cpu", dtype="float64")


@pytest.mark.parametrize("margin", [12, 16, 20])
def test_losses_and_gradients_of_fitted_classes_have_the_digits_of_their_logits(margin):
    """In float32 a loss of 1e-7 was a multiple of 6e-8, and its gradient was off by as much."""
    single, double = both(margin)
    expected, tolerance = double.evaluation.loss, {"rtol": 3e-5}
    assert expected.max() < 1e-3
    np.testing.assert_allclose(single.evaluation.loss, expected, **tolerance)
    np.testing.assert_allclose(Evaluator(single)(points.origin(single))[0], expected, **tolerance)
    found, exact = (ls.gradients(objective, sampling_errors=True) for objective in (single, double))
    for name in ("norm", "cosine", "loss_sampling_stderr", "norm_sampling_stderr", "layer_norm"):
        np.testing.assert_allclose(getattr(found, name), getattr(exact, name), err_msg=name, rtol=1e-4)
    found, exact = (ls.sharpness(objective, draws=2, ascent_steps=3) for objective in (single, double))
    for name in ("first_order_rise", "noise_rise"):
        np.testing.assert_allclose(getattr(found, name), getattr(exact, name), err_msg=name, rtol=2e-3)
    found, exact = (ls.features(objective) for objective in (single, double))
    np.testing.assert_allclose(found.loss, exact.loss, **tolerance)


def test_a_loss_with_float32_numbers_of_its_own_is_computed_as_before():
    model, (inputs, labels) = fitted(12)
    weight = torch.tensor([1.0, 2.0, 3.0])

    def weighted(z, targets):
        return nn.functional.cross_entropy(z, targets, weight=weight, reduction="none")

    objective = ls.make_objective(model, (inputs, labels), loss=weighted, parts="class", device="cpu")
    with torch.no_grad():
        expected = [weighted(model(inputs[labels == c]), labels[labels == c]).mean() for c in range(3)]
    np.testing.assert_allclose(objective.evaluation.loss, expected, rtol=1e-6)
