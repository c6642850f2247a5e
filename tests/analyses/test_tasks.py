"""Every analysis of a task without classes: numbers or a reason, and no accuracy."""

import copy

import numpy as np
import pytest
import torch
from task_cases import cases

import landscape as ls
from landscape.analyses.distances import Run
from landscape.errors import InputError
from landscape.objective.points import Point, of_network, origin

CASES = cases()


def objective_of(case):
    return ls.make_objective(case.model, case.data, parts=[i % 2 for i in range(9)], dtype="float64", **case.options)


def loss_at(case, objective, point):
    """Return the mean loss of both parts of the case's own model at a point, by the loss written out by hand."""
    model = copy.deepcopy(case.model)
    torch.nn.utils.vector_to_parameters(point, model.parameters())
    values = case.loss(model(*case.args, **case.kwargs), case.targets).detach().numpy()
    return np.array([values[::2].mean(), values[1::2].mean()])


@pytest.mark.parametrize("name", ["regression, one output", "multi-label, dict", "the model's own loss"])
def test_analyses_of_points_have_the_losses_of_the_networks_there_and_no_accuracy(name, tmp_path):
    case = CASES[name]
    objective = objective_of(case)
    plane = ls.directions.random(objective, 2)
    surface = ls.surface(objective, plane, [-1.0, 0.0, 1.0], [-1.0, 0.5])
    theta = objective.layout.flat(objective.theta)
    step = torch.from_numpy(np.asarray(plane.theta if hasattr(plane, "theta") else plane.directions)).double()
    expected = loss_at(case, objective, theta + step[0] - step[1])
    np.testing.assert_allclose(surface.loss[:, 0, 2], expected, rtol=1e-9)
    assert surface.accuracy is None
    assert surface.centre_accuracy is None
    ls.save(tmp_path / "surface.h5", surface)
    assert ls.load(tmp_path / "surface.h5").accuracy is None
    assert not any("accuracy" in name for name in surface.to_dataframe().columns)
    ls.plots.surface(surface)
    with pytest.raises(InputError, match="no accuracy"):
        ls.plots.surface_accuracy(surface)
    moved = {
        str(k): (Point(theta + k * step[0] + k * k * step[1], origin(objective).buffers), float(k)) for k in range(3)
    }
    trajectory = ls.trajectory(objective, {"run": moved}, n=3)
    np.testing.assert_allclose(trajectory.mark_loss[1], loss_at(case, objective, theta + step[0] + step[1]), rtol=1e-9)
    assert trajectory.mark_accuracy is None
    ls.plots.trajectory(trajectory)
    sharpness = ls.sharpness(objective, draws=2)
    assert sharpness.accuracy is None
    assert np.isfinite(sharpness.worst_rise).all()
    with pytest.raises(InputError, match="have no classes"):
        ls.features(objective)


@pytest.mark.parametrize("name", ["tokens, embedding and attention", "triplets, a tuple in and out"])
def test_gradients_and_distances_take_any_loss(name):
    case = CASES[name]
    objective = objective_of(case)
    for p in case.model.parameters():
        p.grad = None
    values = case.loss(case.model(*case.args, **case.kwargs), case.targets)
    g = torch.cat([t.reshape(-1) for t in torch.autograd.grad(values[::2].mean(), tuple(case.model.parameters()))])
    assert ls.gradients(objective).norm[-1, 0] == pytest.approx(g.norm().item(), rel=1e-9)
    assert np.isfinite(ls.gradients(objective, batches=2).norm).all()
    other = copy.deepcopy(objective.model)
    with torch.no_grad():
        next(iter(other.parameters())).add_(0.1)
    runs = [
        Run(
            name="r",
            points={"0": (origin(objective), 0.0), "1": (of_network(objective, other), 0.0)},
            start=origin(objective),
        )
    ]
    apart = ls.distances(objective, runs, source="by hand", over="all", barrier_points=1)
    assert apart.accuracy is None
    np.testing.assert_allclose(apart.loss[0, 0], [values[::2].mean().item(), values[1::2].mean().item()], rtol=1e-9)


def test_draws_with_weights_stand_for_all_samples_of_a_regression():
    """With as many draws as samples none is left out: the numbers are those of all."""
    case = CASES["regression, several outputs"]
    objective = objective_of(case)
    whole, drawn = (ls.spectrum(objective, steps=60, samples=n) for n in (None, 9))
    np.testing.assert_allclose(drawn.lambda_max, whole.lambda_max, rtol=1e-6)
