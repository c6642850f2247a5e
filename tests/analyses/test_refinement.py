"""Surfaces of which only some points are computed, against the whole ones."""

import numpy as np
import pytest
import torch
from torch import nn

import landscape as ls
from landscape.plots.layout import planes


def trained(seed):
    """A small network that has learned three overlapping classes, and its data."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(300) % 3
    inputs = torch.randn(300, 5, generator=generator, dtype=torch.float64) + 0.7 * labels[:, None]
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model = nn.Sequential(nn.Linear(5, 6), nn.ReLU() if seed % 2 else nn.Tanh(), nn.Linear(6, 3)).double()
    steps = torch.optim.Adam(model.parameters(), 0.02)
    for _ in range(100):
        steps.zero_grad()
        nn.functional.cross_entropy(model(inputs), labels).backward()
        steps.step()
    return model, (inputs, labels)


@pytest.mark.parametrize(("seed", "reach"), [(1, 1.0), (1, 4.0), (2, 4.0)])
def test_refinement_meets_its_tolerance_also_far_from_the_checkpoint(seed, reach):
    """There the loss bends within a step of the coarse grid, and interpolation was off by up to six tolerances."""
    model, data = trained(seed)
    objective = ls.make_objective(model, data, parts="class", dtype="float64", device="cpu", batch_size=300)
    along, axis = ls.directions.random(objective, 2, seed=seed), np.linspace(-reach, reach, 33)
    whole, found = (ls.surface(objective, along, axis, axis, refine=tol) for tol in (None, 0.05))
    assert found.computed.mean() < 0.5
    heights, expected = (np.tensordot([1 / 3] * 3, values, 1) for values in (planes.filled(found), whole.loss))
    off = np.abs(heights - expected) / expected
    assert np.nanquantile(off, 0.99) < 0.06
    assert np.nanmax(off) < 0.12
    for name in ("doubling_radius", "worst_rise"):
        np.testing.assert_allclose(getattr(found, name), getattr(whole, name), rtol=0.15, err_msg=name)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_line_of_few_points_has_the_radii_of_the_whole_line(seed):
    """Points that were skipped counted as a grid that is too coarse, and radii were nan."""
    model, data = trained(seed)
    objective = ls.make_objective(model, data, parts="class", dtype="float64", device="cpu", batch_size=300)
    along, axis = ls.directions.random(objective, 1, seed=seed), np.linspace(-8, 8, 65)
    whole, found = (ls.surface(objective, along, axis, refine=tol) for tol in (None, 0.02))
    assert found.computed.mean() < 0.7
    assert np.isfinite(whole.doubling_radius).any()
    np.testing.assert_allclose(found.doubling_radius, whole.doubling_radius, rtol=0.03)
    assert (np.abs(found.worst_rise - whole.worst_rise) < 0.03 * whole.centre_loss).all()
