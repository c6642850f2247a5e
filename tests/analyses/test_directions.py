"""Directions: norms, angles and ends that are known beforehand."""

import numpy as np
import pytest
import torch
from cases import CASES
from refusals import refused
from scipy.stats import chi
from sklearn.decomposition import PCA
from torch import nn

from landscape.analyses import directions
from landscape.data import datasets
from landscape.errors import InputError
from landscape.networks import filters, models
from landscape.objective import points
from landscape.objective.objective import Objective
from landscape.objective.points import Point
from tests.exact import dense


def tensors(objective, row):
    return dict(zip(objective.layout.names, objective.layout.tensors(row), strict=True))


def test_random_filters_have_the_networks_lengths_and_biases_rest():
    objective = CASES["residual-relu"].objective()
    found = directions.random(objective, 2)
    weights = tensors(objective, points.origin(objective).theta)
    for row in found.theta:
        for name, d in tensors(objective, row).items():
            if d.ndim == 1:
                assert not d.any(), name
            else:
                torch.testing.assert_close(d.flatten(1).norm(dim=1), weights[name].flatten(1).norm(dim=1))
    assert not found.buffers.any()
    assert (found.normalisation, found.ignored) == ("filter", "biasbn")


def test_a_cosine_classifiers_filters_are_its_columns():
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 5), models.NormedLinear(5, 3))
    data = torch.randn(6, 4, generator=torch.Generator().manual_seed(0)), torch.arange(6) % 3
    objective = Objective.build(model, datasets.from_dataset(data), device="cpu")
    row = tensors(objective, directions.random(objective, 1).theta[0])
    torch.testing.assert_close(row["1.weight"].norm(dim=0), model[1].weight.detach().double().norm(dim=0))
    assert filters.groups(model) == {"1.weight": 1}


@pytest.mark.parametrize("normalisation", ["layer", "weight", "none"])
def test_other_normalisations_do_what_they_say(normalisation):
    objective = CASES["residual-relu"].objective()
    raw = directions.random(objective, 1, normalisation="none", ignored="none").theta[0]
    found = directions.random(objective, 1, normalisation=normalisation, ignored="none").theta[0]
    for (name, d), r, w in zip(
        tensors(objective, found).items(),
        objective.layout.tensors(raw),
        objective.layout.tensors(points.origin(objective).theta),
        strict=True,
    ):
        expected = {"none": r, "layer": r * w.norm() / r.norm(), "weight": r.sign() * w.abs()}[normalisation]
        torch.testing.assert_close(d, expected, msg=name)


def test_random_directions_are_gaussian_nearly_orthogonal_and_their_cosine_is_stated():
    """Elsewhere "orthogonal" directions had a cosine of 0.98, or all their entries were positive."""
    objective = CASES["residual-relu"].objective()
    found = directions.random(objective, 2, normalisation="none", ignored="none")
    first, second = found.theta.numpy()
    n = len(first)
    assert found.cosine == pytest.approx(first @ second / np.linalg.norm(first) / np.linalg.norm(second), rel=1e-12)
    assert abs(found.cosine) < 5 / np.sqrt(n)  # five standard deviations of the cosine of independent vectors
    low, high = chi.ppf([1e-6, 1 - 1e-6], n)
    assert low < np.linalg.norm(first) < high
    assert 0.2 < (first > 0).mean() < 0.8


def test_the_draw_depends_on_the_seed_alone():
    one, other = CASES["residual-relu"].objective(), CASES["residual-relu"].objective(batch_size=1000)
    assert torch.equal(directions.random(one, 2).theta, directions.random(other, 2).theta)
    assert torch.equal(directions.random(one, 1).theta[0], directions.random(one, 2).theta[0])
    assert not torch.equal(directions.random(one, 1).theta, directions.random(one, 1, seed=1).theta)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_one_whole_step_arrives_at_the_other_checkpoint_to_the_bit(dtype):
    objective, other = (CASES["residual-relu"].objective(dtype=dtype, seed=s) for s in (0, 1))
    end = points.origin(other)
    found = directions.towards(objective, [end], ["other"])
    arrived = found.at(1.0)
    assert torch.equal(arrived.theta, end.theta)
    # Of variances a power of a ratio is taken, in float64, which rounds.
    torch.testing.assert_close(arrived.buffers, end.buffers, rtol=0 if dtype == torch.float32 else 1e-14, atol=0)
    assert torch.equal(found.at(1.0, moves=points.straight).buffers, end.buffers)
    assert torch.equal(found.at(0.0).theta, points.origin(objective).theta)
    assert found.axes == ("towards other",)
    assert np.isnan(found.cosine)


def test_there_is_no_way_to_itself():
    objective = CASES["mlp-tanh"].objective()
    with refused(InputError, "me"):
        directions.towards(objective, [points.origin(objective)], ["me"])


def test_orthogonalised_planes_hold_the_same_points():
    objective, a, b = (CASES["residual-relu"].objective(seed=s) for s in (0, 1, 2))
    skewed = directions.towards(objective, [points.origin(a), points.origin(b)], ["a", "b"])
    square = skewed.orthogonalised()
    assert abs(square.cosine) < 1e-12
    for other in (a, b):
        coordinates, distance = square.project(points.origin(other))
        assert distance < 1e-10
        found = square.at(*coordinates)
        torch.testing.assert_close(found.theta, points.origin(other).theta, rtol=0, atol=1e-12)
        torch.testing.assert_close(found.buffers, points.origin(other).buffers, rtol=0, atol=1e-12)
    with refused(InputError, "towards a"):
        directions.towards(objective, [points.origin(a)] * 2, ["a", "a"]).orthogonalised()


def test_projections_are_least_squares():
    objective, a, b, c = (CASES["mlp-tanh"].objective(seed=s) for s in range(4))
    plane = directions.towards(objective, [points.origin(a), points.origin(b)], ["a", "b"])
    away = (points.origin(c).theta - points.origin(objective).theta).numpy()
    expected, residual, *_ = np.linalg.lstsq(plane.theta.numpy().T, away, rcond=None)
    coordinates, distance = plane.project(points.origin(c))
    np.testing.assert_allclose(coordinates, expected, rtol=1e-10)
    assert distance == pytest.approx(np.sqrt(residual[0]), rel=1e-10)


def test_principal_components_are_scikit_learns():
    objective = CASES["residual-gelu"].objective()
    centre = points.origin(objective)
    rng = np.random.default_rng(0)
    steps = rng.normal(size=(7, len(centre.theta))) * np.linspace(3, 0.5, 7)[:, None]
    path = [Point(centre.theta + torch.from_numpy(s), centre.buffers) for s in steps]
    found = directions.principal(objective, path)
    expected = PCA(2, svd_solver="full").fit(steps)
    np.testing.assert_allclose(found.explained, expected.explained_variance_ratio_, rtol=1e-10)
    for row, component in zip(found.theta.numpy(), expected.components_, strict=True):
        assert abs(row @ component) == pytest.approx(1, abs=1e-10)
        assert row @ steps[0] >= 0
    np.testing.assert_allclose(found.unit_length, 1)


def test_too_few_or_equal_checkpoints_span_no_plane():
    objective = CASES["mlp-tanh"].objective()
    centre = points.origin(objective)
    with pytest.raises(InputError, match="2 principal components need at least 3 checkpoints, got 2"):
        directions.principal(objective, [centre, centre])
    moved = Point(centre.theta + 1, centre.buffers)
    with pytest.raises(InputError, match="span fewer than 2 dimensions"):
        directions.principal(objective, [centre, moved, centre, moved])


def test_eigenvectors_are_those_of_the_dense_hessian():
    objective = CASES["mlp-tanh"].objective()
    found = directions.eigen(objective, ["0"], 2)
    values, vectors = torch.linalg.eigh(dense(objective, 0))
    for k in range(2):
        assert abs(found.theta[k] @ vectors[:, -1 - k]).item() == pytest.approx(1, abs=1e-5)
    assert found.axes[0] == f"eigenvector 1 of 0 ({values[-1]:.4g})"
    each = directions.eigen(objective, ["0", "1"], 2)
    other = torch.linalg.eigh(dense(objective, 1))[1][:, -1]
    assert abs(each.theta[1] @ other).item() == pytest.approx(1, abs=1e-5)
    with refused(InputError, of=3):
        directions.eigen(objective, ["0", "1", "2"], 2)


def test_groups_that_are_no_parts_have_directions_too():
    by_class = CASES["mlp-tanh"].objective()
    grouped = CASES["mlp-tanh"].objective(partition="head-tail")
    for make in (lambda o, names: directions.eigen(o, names, 2), directions.gradients):
        found = make(by_class, ["tail", "0"])
        torch.testing.assert_close(found.theta[0], make(grouped, ["tail", "head"]).theta[0])
        assert "of tail" in found.axes[0]
    whole = CASES["mlp-tanh"].objective(partition="all")
    torch.testing.assert_close(directions.gradients(grouped, ["all"]).theta, directions.gradients(whole, ["all"]).theta)
    with refused(InputError, "x", 0, 1, 2):
        directions.gradients(by_class, ["x"])
    with refused(InputError, "'many'", "few"):
        directions.gradients(by_class, ["many"])


def test_descent_is_against_the_gradient():
    objective = CASES["mlp-tanh"].objective()
    found = directions.gradients(objective, ["2"])
    _, g = points.gradient(objective, points.origin(objective).theta, 2)
    torch.testing.assert_close(found.theta[0], -g / g.norm())


def test_a_stored_plane_is_the_same_plane_for_another_network():
    objective, other = (CASES["residual-relu"].objective(seed=s) for s in (0, 1))
    plane = directions.to_plane(objective, directions.random(objective, 2), {"seed": 0})
    again = directions.from_plane(other, plane)
    assert torch.equal(again.theta, directions.random(objective, 2).theta)
    assert torch.equal(again.origin.theta, points.origin(other).theta)
    there = directions.from_plane(other, plane, own_origin=False)
    assert torch.equal(there.origin.theta, points.origin(objective).theta)
    assert again.first(1).axes == again.axes[:1]
    with pytest.raises(InputError, match="the same model and params are needed"):
        directions.from_plane(CASES["mlp-tanh"].objective(), plane)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"normalisation": "filters"},
            ("normalisation", "filters"),
        ),
        ({"ignored": "bias"}, ("ignored", "bias")),
    ],
)
def test_unknown_conventions_are_refused(options, message):
    with refused(InputError, *message):
        directions.random(CASES["mlp-tanh"].objective(), 1, **options)


def test_nothing_to_vary_is_refused():
    objective = CASES["mlp-tanh"].objective(params="1.bias")
    with refused(InputError, ignored="biasbn"):
        directions.random(objective, 1)
    assert directions.random(objective, 1, ignored="none").theta.any()


def test_the_origin_of_a_plane_is_refused_for_a_network_with_other_fixed_parameters():
    one, other, same = (CASES["residual-relu"].objective(seed=s, params="fc") for s in (0, 1, 0))
    plane = directions.to_plane(one, directions.random(one, 2), {})
    assert torch.equal(directions.from_plane(same, plane, own_origin=False).origin.theta, points.origin(one).theta)
    assert torch.equal(directions.from_plane(other, plane).origin.theta, points.origin(other).theta)
    with refused(InputError, "params"):
        directions.from_plane(other, plane, own_origin=False)
