"""Paths on a plane: projections, true losses, several runs, chosen checkpoints."""

import dataclasses

import numpy as np
import pytest
import torch
from cases import CASES
from interruptions import Interrupting
from refusals import refused
from torch import nn

import landscape as ls
from landscape.analyses import directions
from landscape.errors import InputError, StoreError
from landscape.objective import points
from landscape.objective.evaluator import Evaluator
from landscape.objective.points import Point


def path_of(objective, seed, n=4):
    """Checkpoints that come nearer and nearer to the objective's own weights."""
    centre = points.origin(objective)
    generator = torch.Generator().manual_seed(seed)
    step = torch.randn(len(centre.theta), 2, generator=generator, dtype=torch.float64)
    return {
        f"epoch-{k}": (
            Point(
                centre.theta + step @ torch.tensor([(n - 1 - k) / n, 0.2 * k * (n - 1 - k)]).double(), centre.buffers
            ),
            float(k),
        )
        for k in range(n)
    }


def test_losses_are_those_of_the_checkpoints_and_not_of_their_shadows():
    objective = CASES["residual-relu"].objective()
    paths = {"a": path_of(objective, 0), "b": path_of(objective, 1)}
    found = ls.trajectory(objective, paths, n=5)
    assert found.runs == ("a", "b")
    assert found.batch_norm == "reestimate"  # statistics do not move along principal components
    assert found.marks[:2] == ("a/epoch-0", "a/epoch-1")
    assert found.mark_run.tolist() == [0] * 4 + [1] * 4
    assert found.mark_epoch.tolist() == [0, 1, 2, 3] * 2
    evaluator = Evaluator(objective)
    everything = [point for path in paths.values() for point, _ in path.values()]
    plane = directions.principal(objective, everything)
    np.testing.assert_allclose(found.explained, plane.explained)
    for m, point in enumerate(everything):
        np.testing.assert_allclose(found.mark_loss[m], evaluator(point)[0], rtol=1e-12)
        coordinates, distance = plane.project(point)
        np.testing.assert_allclose(found.mark_position[m], coordinates, atol=1e-9)
        assert found.mark_distance[m] == pytest.approx(distance, abs=1e-9)
        away = (point.theta - points.origin(objective).theta).norm().item()
        assert np.hypot(np.linalg.norm(coordinates), distance) == pytest.approx(away, abs=1e-9)
    assert found.mark_distance.max() > 0.1  # four dimensions do not fit two
    for k, axis in enumerate((found.xcoordinates, found.ycoordinates)):
        assert axis[0] < found.mark_position[:, k].min() <= found.mark_position[:, k].max() < axis[-1]


def test_a_path_in_a_plane_has_the_losses_of_the_surface_under_it():
    objective = CASES["mlp-tanh"].objective()
    path = path_of(objective, 0)  # two dimensions and the centre itself
    found = ls.trajectory(objective, {"run": path}, n=3)
    assert found.batch_norm == "none"  # there are no statistics
    assert found.mark_distance.max() < 1e-9
    assert found.explained.sum() == pytest.approx(1)
    assert found.marks == tuple(path)
    along = directions.principal(objective, [p for p, _ in path.values()])
    evaluator = Evaluator(objective)
    for m in range(4):
        np.testing.assert_allclose(found.mark_loss[m], evaluator(along.at(*found.mark_position[m]))[0], rtol=1e-9)


def test_a_plane_through_chosen_checkpoints_holds_them():
    """Figure 1: start, an optimum of the tail, an optimum of all."""
    objective, tail = (CASES["residual-relu"].objective(seed=s) for s in (0, 1))
    path = path_of(objective, 0)
    anchors = {"start": path["epoch-0"][0], "tail": points.origin(tail)}
    found = ls.trajectory(objective, {"run": path}, anchors=anchors, n=3)
    assert found.batch_norm == "log-interpolate"
    assert found.marks[-2:] == ("start", "tail")
    assert found.mark_run.tolist() == [0, 0, 0, 0, -1, -1]
    assert np.isnan(found.mark_epoch[-2:]).all()
    np.testing.assert_allclose(found.mark_distance[[0, -2, -1]], 0, atol=1e-9)
    assert abs(found.cosine) < 1e-12
    expected, _ = Evaluator(objective)(points.origin(tail))
    np.testing.assert_allclose(found.mark_loss[-1], expected, rtol=1e-12)


def test_a_chosen_checkpoint_with_the_name_of_another_is_drawn_too():
    objective = CASES["mlp-tanh"].objective()
    path, other = path_of(objective, 0), path_of(objective, 1)
    anchors = {"epoch-0": other["epoch-0"][0], "epoch-1": path["epoch-1"][0]}
    found = ls.trajectory(objective, {"run": path}, anchors=anchors, n=2)
    assert found.marks == (*path, "epoch-0 (2)")
    assert found.mark_run.tolist() == [0, 0, 0, 0, -1]
    np.testing.assert_allclose(found.mark_loss[4], Evaluator(objective)(other["epoch-0"][0])[0], rtol=1e-12)


@pytest.mark.parametrize("margin", [0.0, 0.5])
def test_the_grid_reaches_around_all_checkpoints_and_the_origin_by_the_margin(margin):
    """Checkpoints all on one side of the origin, on two coordinates of which both are positive."""
    objective = CASES["mlp-tanh"].objective()
    plane = directions.random(objective, 2, normalisation="none", ignored="none").orthogonalised()
    places = np.array([[1.0, 2.0], [3.0, 1.5], [2.0, 5.0]])
    path = {f"epoch-{k}": (plane.at(*place), float(k)) for k, place in enumerate(places)}
    found = ls.trajectory(objective, {"run": path}, plane=plane, n=4, margin=margin)
    np.testing.assert_allclose(found.mark_position, places, atol=1e-9)
    for axis, last in ((found.xcoordinates, 3.0), (found.ycoordinates, 5.0)):
        np.testing.assert_allclose(axis, np.linspace(-margin * last, last * (1 + margin), 4), atol=1e-9)


def test_without_a_grid_there_is_the_path_alone(tmp_path):
    objective = CASES["mlp-tanh"].objective()
    with refused(InputError, "n", 2):
        ls.trajectory(objective, {"run": path_of(objective, 0)}, n=1)
    with refused(InputError, "refine", 2):
        ls.trajectory(objective, {"run": path_of(objective, 0)}, n=3, refine=2.0)
    found = ls.trajectory(objective, {"run": path_of(objective, 0)}, n=2, out=tmp_path / "t.h5")
    back = ls.load(tmp_path / "t.h5")
    assert type(back).__name__ == "Trajectory"
    np.testing.assert_array_equal(back.loss, found.loss)
    assert back.loss.shape == (3, 2, 2)


def test_a_path_goes_on_where_rounding_has_changed_its_plane(tmp_path, monkeypatch):
    objective, real = CASES["residual-relu"].objective(), directions.principal
    paths, out = {"a": path_of(objective, 0)}, tmp_path / "t.h5"
    with pytest.raises(KeyboardInterrupt):
        ls.trajectory(objective, paths, n=4, out=out, progress=Interrupting(3))

    def rounded(*given):
        found = real(*given)
        return dataclasses.replace(found, theta=found.theta * (1 + 1e-15))

    monkeypatch.setattr(directions, "principal", rounded)
    with refused(StoreError, 5, n=4):
        ls.trajectory(objective, paths, n=5, out=out)
    progress = Interrupting()
    found = ls.trajectory(objective, paths, n=4, out=out, progress=progress)
    assert progress.units == ["points 0 to 7", "points 8 to 15"]  # those at the marks were done
    np.testing.assert_allclose(found.loss, ls.trajectory(objective, paths, n=4).loss, rtol=1e-9)


def test_one_checkpoint_is_no_path():
    objective = CASES["mlp-tanh"].objective()
    one = dict([next(iter(path_of(objective, 0).items()))])
    with refused(InputError, 2, 3, 1):
        ls.trajectory(objective, {"run": one})
    with pytest.raises(InputError, match="needs two of them besides the origin"):
        ls.trajectory(objective, {"run": one}, anchors={"a": one["epoch-0"][0]})


def test_a_buffer_that_is_no_running_statistic_needs_no_new_estimate():
    class Centred(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("mean", torch.full((4,), 0.5))
            self.line = nn.Linear(4, 3)

        def forward(self, x):
            return self.line(x - self.mean)

    objective = ls.make_objective(Centred(), (torch.randn(12, 4), torch.arange(12) % 3))
    assert ls.trajectory(objective, {"run": path_of(objective, 0)}, n=2).batch_norm == "none"
