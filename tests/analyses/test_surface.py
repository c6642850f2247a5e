"""Surfaces: exact paraboloids, the plain loop, refinement, interruption."""

import copy
import dataclasses
import inspect

import numpy as np
import pytest
import torch
from cases import CASES, CLASS_SIZES
from interruptions import Interrupting
from refusals import refused
from torch import nn

import landscape as ls
from landscape.analyses import directions, refinement
from landscape.analyses import surface as surfaces
from landscape.data import datasets
from landscape.errors import InputError, StoreError
from landscape.objective import points
from landscape.objective.batch_norm import POLICIES, Policy
from landscape.objective.evaluator import Evaluator
from landscape.objective.objective import Objective
from landscape.results import grid
from landscape.results.regroup import grid_of, regroup


class Quadratic(nn.Module):
    """Its "logits" are its parameters, so that a loss of them is any function of theta one likes."""

    def __init__(self):
        super().__init__()
        self.theta = nn.Parameter(torch.zeros(3, dtype=torch.float64))

    def forward(self, x):
        return self.theta.expand(len(x), 3) + 0 * x


HESSIANS = np.array([[[2.0, 0.5, 0], [0.5, 1, 0], [0, 0, 3]], [[8.0, 0, 1], [0, 4, 0], [1, 0, 2]]])
OFFSETS = np.array([0.5, 2.0])


def paraboloid(logits, labels):
    """1 + theta^T H theta / 2 for label 0; other H and offset for label 1."""
    h, c = torch.from_numpy(HESSIANS)[labels % 2], torch.from_numpy(OFFSETS)[labels % 2]
    return c + torch.einsum("bi,bij,bj->b", logits, h, logits) / 2


def quadratic():
    data = torch.zeros(4, 3, dtype=torch.float64), torch.tensor([0, 0, 1, 2])
    samples = datasets.from_dataset(data, name="quadratic")
    return Objective.build(
        Quadratic(), samples, loss=paraboloid, partition="class", dtype=torch.float64, device="cpu", batch_size=4
    )


def axes_of(objective, *rows):
    names = [f"d{k}" for k in range(len(rows))]
    return directions.of_vectors(objective, torch.tensor(rows, dtype=torch.float64), names)


def test_a_quadratic_gives_the_exact_paraboloid_and_its_figures():
    objective = quadratic()
    rows = np.array([[1.0, 0, 0], [1.0, 2.0, 0]])  # skewed, and not of unit length
    x, y = np.linspace(-0.8, 0.8, 41), np.linspace(-0.4, 0.4, 29)
    found = ls.surface(objective, axes_of(objective, *rows.tolist()), x, y, radius=0.4)
    for p in range(2):
        theta = x[None, :, None] * rows[0] + y[:, None, None] * rows[1]
        expected = OFFSETS[p] + np.einsum("yxi,ij,yxj->yx", theta, HESSIANS[p], theta) / 2
        np.testing.assert_allclose(found.loss[p], expected, rtol=1e-13)
    np.testing.assert_allclose(found.centre_loss[:2], OFFSETS)
    np.testing.assert_allclose(found.lowest_position[:2], 0, atol=1e-12)
    # In an orthonormal frame of the plane the largest curvature decides: rise of r^2 lambda / 2, doubled at
    # r = sqrt(2 L0 / lambda). Linear interpolation errs by the squared grid step.
    frame = np.linalg.qr(rows.T)[0]
    top = [np.linalg.eigvalsh(frame.T @ h @ frame)[-1] for h in HESSIANS]
    for p in range(2):
        assert found.worst_rise[p] == pytest.approx(top[p] * 0.4**2 / 2, rel=0.01)
        assert found.doubling_radius[p] == pytest.approx(np.sqrt(2 * OFFSETS[p] / top[p]), rel=0.01)
    np.testing.assert_allclose(found.unit_length, np.linalg.norm(rows, axis=1))
    assert found.cosine == pytest.approx(1 / np.sqrt(5))


@pytest.mark.parametrize("name", ["mlp-relu", "residual-inplace", "attention", "features"])
def test_grid_values_are_those_of_a_plain_loop_over_a_rectangle(name):
    objective = CASES[name].objective()
    along = directions.random(objective, 2)
    x, y = np.array([-0.3, 0.0, 0.5, 1.0]), np.array([-0.2, 0.0, 0.4])
    found = ls.surface(objective, along, x, y)
    for iy, v in enumerate(y):
        for ix, u in enumerate(x):
            theta = objective.layout.tensors(along.at(u, v).theta)
            for p in range(3):
                with torch.no_grad():
                    losses = [objective.losses(theta, *batch) for batch in objective.batches(p)]
                assert found.loss[p, iy, ix] == pytest.approx(torch.cat(losses).mean().item(), rel=1e-11), (iy, ix)
    np.testing.assert_allclose(found.loss[:, 1, 1], objective.evaluation.loss, rtol=1e-12)
    np.testing.assert_array_equal(found.accuracy[:, 1, 1], objective.evaluation.accuracy)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_batch_size_and_the_order_of_points_change_nothing_and_classes_sum_to_the_whole(dtype):
    case = CASES["residual-relu"]
    tol = 1e-5 if dtype == torch.float32 else 1e-12
    one = ls.surface1d(case.objective(dtype=dtype), n=3)
    shares = np.array(CLASS_SIZES) / sum(CLASS_SIZES)
    for batch_size in (1, 7, 1000):
        other = ls.surface1d(case.objective(dtype=dtype, batch_size=batch_size), n=3)
        np.testing.assert_allclose(other.loss, one.loss, rtol=tol)
    whole = ls.surface1d(case.objective(dtype=dtype, partition="all"), n=3)
    np.testing.assert_allclose(np.tensordot(shares, one.loss, 1), whole.loss[0], rtol=tol)
    regrouped = regroup(one, "all")
    np.testing.assert_allclose(regrouped.loss, whole.loss, rtol=tol)
    assert one.is_line
    assert one.ycoordinates.tolist() == [0.0]


def test_a_line_to_another_checkpoint_ends_there_with_its_barrier():
    objective, other = (CASES["residual-relu"].objective(seed=s) for s in (0, 1))
    end = points.origin(other)
    along = directions.towards(objective, [end], ["other"])
    t = np.linspace(0, 1, 9)
    found = ls.surface(objective, along, t, marks={"other": end}, between=True)
    np.testing.assert_allclose(found.loss[:, 0, -1], found.mark_loss[0], rtol=1e-12)
    np.testing.assert_allclose(found.mark_position, [[1.0]], rtol=1e-12)
    line = (1 - t) * found.loss[:, 0, :1] + t * found.loss[:, 0, -1:]
    np.testing.assert_allclose(found.barrier, np.maximum(found.loss[:, 0] - line, 0).max(1), atol=1e-12)
    assert (found.mark_distance < 1e-10).all()


def test_statistics_of_batch_norm_follow_the_policy():
    objective, other = (CASES["residual-relu"].objective(seed=s) for s in (0, 1))
    along = directions.towards(objective, [points.origin(other)], ["other"])
    losses = {
        bn: ls.surface(objective, along, [0.0, 1.0], batch_norm=bn, training_samples=15).loss[:, 0] for bn in POLICIES
    }
    np.testing.assert_allclose(losses["keep"][:, 0], objective.evaluation.loss, rtol=1e-12)
    for bn in ("interpolate", "log-interpolate"):
        np.testing.assert_allclose(losses[bn][:, 1], Evaluator(objective)(points.origin(other))[0], rtol=1e-12)
        assert not np.allclose(losses["keep"][:, 1], losses[bn][:, 1])
    for bn in ("reestimate", "per-part", "batch"):
        assert not np.allclose(losses[bn][:, 0], losses["keep"][:, 0])
    found = ls.surface(objective, along, [0.0, 1.0], batch_norm="reestimate", training_samples=15)
    np.testing.assert_allclose(found.centre_loss, objective.evaluation.loss, rtol=1e-12)  # the checkpoint as it is
    assert found.batch_norm == "reestimate"
    assert "batch norm: reestimate" in found.verdict


@pytest.mark.parametrize("bn", ["reestimate", "per-part", "batch"])
def test_rises_are_above_the_centre_with_the_statistics_of_the_surface(bn):
    objective = CASES["residual-relu"].objective()
    line = directions.random(objective, 1, seed=0)
    x = np.linspace(-0.5, 0.5, 7)
    for at in (x, x + 0.02):  # with the centre, and without it
        found = ls.surface(objective, line, at, batch_norm=bn, training_samples=15)
        own = ls.surface(objective, line, [0.0], batch_norm=bn, training_samples=15).loss[:, 0, 0]
        np.testing.assert_allclose(found.centre_policy_loss, own, rtol=1e-12)
        assert not np.allclose(own, found.centre_loss)
        near = np.abs(at) <= found.radius / line.unit_length[0] * (1 + 1e-9)
        rise = np.maximum(found.loss[:, 0, near].max(axis=1) - own, 0)
        assert (found.worst_rise >= rise - 1e-12).all()
        assert (found.worst_rise <= rise + np.abs(np.diff(found.loss[:, 0])).max(axis=1)).all()
    assert "the running statistics of the checkpoint differ from the surface's" in found.verdict
    groups = regroup(found, {"a": [0, 1], "b": [2]})
    shares = found.n_samples[:2] / found.n_samples[:2].sum()
    assert groups.centre_policy_loss[0] == pytest.approx(shares @ own[:2])
    assert groups.worst_rise[1] == pytest.approx(found.worst_rise[2])
    kept = ls.surface(objective, line, x, batch_norm="keep")
    assert kept.centre_policy_loss is None


def test_no_policy_is_named_for_a_network_without_running_statistics():
    objective = CASES["mlp-tanh"].objective()
    found = ls.surface(objective, directions.random(objective, 1, seed=0), [-1.0, 0.0, 1.0])
    assert found.batch_norm == "none"
    assert "batch norm" not in found.verdict
    assert "batch norm" not in regroup(found, "all").verdict


@pytest.mark.parametrize("bn", POLICIES)
def test_a_policy_does_what_its_entry_says_whatever_its_name(monkeypatch, bn):
    """No code goes by names: line, holes, barriers and losses are those of the policy that does the same."""
    same_of = "keep" if bn == "interpolate" else "interpolate"
    own = POLICIES[bn]
    objective, other = with_variances(1.0, torch.float64), with_variances(0.3, torch.float64, stretch=2.0)
    end = points.origin(other)
    start = points.origin(objective)
    ends = {"a": (end, 1.0), "b": (points.between(objective, start, end, 0.5), 1.0)}
    run = ls.Run(name="run", points=ends, start=start)
    lines, barriers = [], []
    for name in (bn, same_of):
        monkeypatch.setitem(POLICIES, name, own)
        along = directions.towards(objective, [end], ["other"])
        options = {"batch_norm": name, "training_samples": 15}
        lines.append(ls.surface(objective, along, [0.0, 0.5, 2.0], marks={"other": end}, **options))
        barriers.append(ls.distances(objective, [run], source="test", barrier_points=1, **options).barrier)
    for field in ("loss", "mark_loss", "mark_policy_loss", "variance_invalid"):
        one, same = (getattr(found, field) for found in lines)
        assert (one is None) == (same is None)
        assert one is None or np.array_equal(one, same, equal_nan=True)
    np.testing.assert_array_equal(*barriers)
    monkeypatch.setitem(POLICIES, "own", own)
    with refused(InputError, batch_norm="own"):  # until the type of the argument names it
        ls.surface(objective, along, [0.0, 0.5], batch_norm="own")


def test_a_policy_may_use_other_statistics_than_a_checkpoints_own_at_that_checkpoint(monkeypatch):
    def halved(given):
        return [lambda point: points.Point(point.theta, point.buffers / 2)]

    monkeypatch.setitem(POLICIES, "keep", Policy(does="halve them", replaces=halved))
    objective, other = with_variances(1.0, torch.float64), with_variances(0.3, torch.float64, stretch=2.0)
    end = points.origin(other)
    along = directions.towards(objective, [end], ["other"])
    found = ls.surface(objective, along, [0.0, 1.0, 4.0], marks={"other": end}, batch_norm="keep")
    evaluator = Evaluator(objective)
    expected = evaluator(points.Point(end.theta, end.buffers / 2))[0]
    np.testing.assert_allclose(found.mark_loss[0], evaluator(end)[0], rtol=1e-12)
    np.testing.assert_allclose(found.mark_policy_loss[0], expected, rtol=1e-12)
    np.testing.assert_allclose(found.loss[:, 0, 1], expected, rtol=1e-12)
    assert not np.allclose(expected, found.mark_loss[0])


def with_variances(value, dtype, stretch=1.0):
    """A network whose running variances have one value; a first layer times another number gives a line its length."""
    objective = CASES["residual-relu"].objective(dtype=dtype)
    model = copy.deepcopy(objective.model)
    for name, buffer in model.named_buffers():
        if name.endswith("running_var"):
            buffer.fill_(value)
    model.conv1.weight.mul_(stretch)
    return objective.at(model)


@pytest.mark.parametrize("kind", ["float32", "bfloat16", "float64"])
def test_a_line_beyond_a_checkpoint_has_holes_where_variances_end_below_zero_and_by_logarithm_none(kind):
    """From 0.3 to 1 the variance is 0.3 + 0.7 t: below zero left of -3/7, where its root is no number."""
    dtype = torch.float64 if kind == "float64" else torch.float32
    objective, other = with_variances(0.3, dtype), with_variances(1.0, dtype, stretch=1.01)
    t = np.linspace(-1, 1.5, 11)
    along = directions.towards(objective, [points.origin(other)], ["other"])
    straight = ls.surface(objective, along, t, batch_norm="interpolate", bf16=kind == "bfloat16")
    holes = t < -3 / 7
    assert np.isnan(straight.loss[:, 0, holes]).all()
    assert np.isfinite(straight.loss[:, 0, ~holes]).all()
    np.testing.assert_array_equal(straight.variance_invalid[0], holes)
    assert "running variances are below zero or not finite at 27.3 % of the points" in straight.verdict
    assert "running variances are below zero" in regroup(straight, "all").verdict
    found = ls.surface(objective, along, t, bf16=kind == "bfloat16")
    assert np.isfinite(found.loss).all()
    assert not found.variance_invalid.any()
    assert "variances" not in found.verdict
    np.testing.assert_allclose(found.loss[..., [4, 8]], straight.loss[..., [4, 8]], rtol=1e-5)  # at 0 and 1


def test_a_plane_of_another_program_moves_statistics_as_it_does():
    """Its file has straight steps only; where they lead variances below zero there is no loss, and that is said."""
    objective, other = with_variances(0.3, torch.float64), with_variances(1.0, torch.float64, stretch=1.01)
    along = directions.towards(objective, [points.origin(other)], ["other"])
    plane = directions.to_plane(objective, along, {})
    kept = directions.from_plane(objective, plane)
    theirs = directions.from_plane(objective, dataclasses.replace(plane, buffer_log_directions=None))
    for t in (-1.0, -0.5, 0.5, 2.0):
        for found in (kept, theirs):
            assert torch.equal(found.at(t).buffers, along.at(t).buffers)
            assert torch.equal(found.at(t, moves=points.straight).buffers, along.at(t, moves=points.straight).buffers)


def test_marks_have_their_losses_by_the_policy_of_the_surface_too():
    objective, other = (CASES["residual-relu"].objective(seed=s) for s in (0, 1))
    end = points.origin(other)
    along, marks = directions.towards(objective, [end], ["other"]), {"other": end}
    found = ls.surface(objective, along, [0.0, 1.0], marks=marks, batch_norm="keep")
    np.testing.assert_allclose(found.mark_loss[0], Evaluator(objective)(end)[0], rtol=1e-12)
    np.testing.assert_allclose(found.mark_policy_loss[0], found.loss[:, 0, 1], rtol=1e-12)
    assert "the running statistics of other differ from the surface's: the loss of" in found.verdict
    halves = regroup(found, {"a": [0, 1], "b": [2]})
    shares = found.n_samples[:2] / found.n_samples[:2].sum()
    assert halves.mark_policy_loss[0, 0] == pytest.approx(shares @ found.mark_policy_loss[0, :2])
    assert "the running statistics of other differ from the surface's" in halves.verdict
    same = ls.surface(objective, along, [0.0, 1.0], marks=marks)
    assert same.mark_policy_loss is None
    assert "the running statistics of" not in same.verdict


def test_the_rise_is_looked_for_as_near_as_the_grid_can_tell():
    objective = CASES["mlp-tanh"].objective()
    plane = directions.random(objective, 2)
    found = ls.surface(objective, plane, np.linspace(-1, 1, 5), np.linspace(-1, 1, 5))
    gram = np.array([[1, plane.cosine], [plane.cosine, 1]]) * np.outer(plane.unit_length, plane.unit_length)
    corners = [np.array(c) for c in ((0.5, 0), (0, 0.5), (0.5, 0.5), (-0.5, 0.5))]
    assert found.radius == pytest.approx(max(np.sqrt(c @ gram @ c) for c in corners))
    assert np.isfinite(found.worst_rise).all()
    nearest = found.loss[:, 1:4, 1:4].reshape(3, -1).max(1) - found.centre_loss
    assert (found.worst_rise >= nearest - 1e-12).all()


def test_a_nan_is_kept_where_it_is():
    """A variance that a straight line leads below zero has no loss."""
    objective, other = (CASES["residual-relu"].objective(seed=s) for s in (0, 1))
    along = directions.towards(objective, [points.origin(other)], ["other"])
    found = ls.surface(objective, along, [-60.0, 0.0, 1.0], batch_norm="interpolate")
    assert np.isnan(found.loss[:, 0, 0]).all()
    assert (found.accuracy[:, 0, 0] == 0).all()
    assert found.computed.all()
    assert np.isfinite(found.loss[:, 0, 1:]).all()
    assert "not finite" in found.verdict


@pytest.mark.parametrize("shape", [(25, 25), (30, 17), (33, 1), (1, 1), (2, 3)])
def test_refinement_computes_fewer_points_and_the_rest_by_interpolation(shape):
    objective = CASES["mlp-tanh"].objective(batch_size=15)
    nx, ny = shape
    x = np.linspace(-1, 1, nx) if nx > 1 else np.zeros(1)
    y = np.linspace(-1, 1, ny) if ny > 1 else np.zeros(1)
    along = directions.random(objective, 2)
    exact = ls.surface(objective, along, x, y)
    found = ls.surface(objective, along, x, y, refine=0.01)
    np.testing.assert_array_equal(found.loss[:, found.computed], exact.loss[:, found.computed])
    assert np.isnan(found.loss[:, ~found.computed]).all()
    assert found.computed[[0, 0, -1, -1], [0, -1, 0, -1]].all()
    if nx * ny > 500:
        assert found.computed.mean() < 0.25  # linear interpolation takes more than half of the points
        filled, shares = grid.filled(grid_of(found), found.loss, found.centre_loss), objective.partition.shares
        off = np.abs(np.tensordot(shares, filled, 1) / np.tensordot(shares, exact.loss, 1) - 1)
        assert np.quantile(off, 0.95) < 0.01
        assert off.max() < 0.03  # the estimate from coarser cells is not a bound
        # Of single parts, whereas it is their mean that is followed to 1 %.
        np.testing.assert_allclose(found.worst_rise, exact.worst_rise, rtol=0.05)
        np.testing.assert_allclose(found.doubling_radius, exact.doubling_radius, rtol=0.05)
        assert found.radius == pytest.approx(exact.radius)


def test_refinement_goes_along_the_border_of_a_hole_and_leaves_flat_ground_alone():
    y, x = np.mgrid[-1:1:33j, -1:1:33j]
    exact = np.maximum(x, 0.0) ** 4  # the left half is zero
    exact[(x > 0) & (y > 0)] = np.nan
    loss, computed = np.full((1, 33, 33), np.nan), np.zeros((33, 33), dtype=bool)

    def fill(numbers, name):
        at = np.unravel_index(numbers, exact.shape)
        loss[0][at], computed[at] = exact[at], True

    refinement.refine(fill, loss, computed, tol=0.01, weights=np.ones((1, 1)))
    assert computed[16:, 16:18].all()  # the last points before the hole, and the first in it
    assert computed[16:18, 16:].all()
    assert computed[25:, 25:].sum() == 4  # of 64: within the hole every fourth of a row and of a column
    assert computed[:, :8].mean() < 0.2
    assert not np.isnan(loss[0, computed & ~np.isnan(exact)]).any()


def test_an_interrupted_surface_resumes_and_gives_the_same(tmp_path, monkeypatch):
    objective = CASES["residual-relu"].objective()
    expected = ls.surface2d(objective, n=5, refine=0.05)
    real, calls = Evaluator.measure, []

    def failing(self, *args, **options):
        calls.append(1)
        if len(calls) == 7:
            raise KeyboardInterrupt
        return real(self, *args, **options)

    monkeypatch.setattr(Evaluator, "measure", failing)
    with pytest.raises(KeyboardInterrupt, match="interrupted"):
        ls.surface2d(objective, n=5, refine=0.05, out=tmp_path / "s.h5")
    assert not (tmp_path / "s.h5").exists()
    with refused(StoreError, 0.1, refine=0.05):
        ls.surface2d(objective, n=5, refine=0.1, out=tmp_path / "s.h5")
    found = ls.surface2d(objective, n=5, refine=0.05, out=tmp_path / "s.h5")
    np.testing.assert_array_equal(found.loss, expected.loss)
    back = ls.load(tmp_path / "s.h5")
    for item in dataclasses.fields(back):
        if item.name != "provenance":
            np.testing.assert_array_equal(getattr(back, item.name), getattr(found, item.name), item.name)
    assert back.provenance["options"]["vectors_sha256"]


ROUNDED = {
    "eigenvectors": (lambda own: directions.eigen(own, ["0", "1"], 2), 1e-3),
    "gradients": (lambda own: directions.gradients(own, ["0", "1"]), 1e-3),
    "random": (lambda own: directions.random(own, 2), 1e-15),
}


@pytest.mark.parametrize("kind", ROUNDED)
def test_a_surface_goes_on_with_the_directions_it_began_with_where_rounding_has_changed_them(kind, tmp_path):
    objective, x = CASES["mlp-tanh"].objective(), np.linspace(-1, 1, 5)
    make, size = ROUNDED[kind]
    along = make(objective)
    other = dataclasses.replace(along, theta=along.theta * (1 + size), axes=("1.001", "2"))
    with pytest.raises(KeyboardInterrupt):
        ls.surface(objective, along, x, x, out=tmp_path / "s.h5", progress=Interrupting(2))
    found = ls.surface(objective, other, x, x, out=tmp_path / "s.h5")
    expected = ls.surface(objective, along, x, x)
    if size > 1e-10:
        np.testing.assert_array_equal(found.loss, expected.loss)
        assert (found.axes, found.unit_length.tolist()) == (expected.axes, expected.unit_length.tolist())
    np.testing.assert_allclose(found.loss, expected.loss, rtol=1e-12)
    assert not list(tmp_path.glob("*.partial"))


def test_a_surface_of_other_directions_does_not_go_on_with_those_of_a_cut_one(tmp_path):
    objective, x = CASES["mlp-tanh"].objective(), np.linspace(-1, 1, 5)
    rows = torch.eye(objective.layout.size, dtype=torch.float64)
    made = {
        "of": [directions.eigen(objective, list(parts), 2) for parts in ("01", "10")],
        "ends": [directions.eigen(dataclasses.replace(objective, thresholds={"ends": n}), ["0"], 2) for n in (1, 2)],
        "directions": [directions.of_vectors(objective, rows[k : k + 2], ["a", "b"]) for k in (0, 2)],
    }
    for name, (along, other) in made.items():
        with pytest.raises(KeyboardInterrupt):
            ls.surface(objective, along, x, x, out=tmp_path / f"{name}.h5", progress=Interrupting(2))
        with refused(StoreError, name):
            ls.surface(objective, other, x, x, out=tmp_path / f"{name}.h5")


@pytest.mark.parametrize(
    ("x", "y", "options", "message"),
    [
        ([1.0, 0.0], [0.0], {}, ("x",)),
        ([0.0, np.nan], [0.0], {}, ("x",)),
        ([], [0.0], {}, ("x",)),
        ([0.0], None, {}, (2,)),
        ([0.0], [0.0], {"refine": 2.0}, (0, 1, 2)),
        ([0.0], [0.0], {"radius": -1.0}, ("radius", -1)),
        ([0.0], [0.0], {"batch_norm": "train"}, ("batch_norm", "train")),
    ],
)
def test_bad_coordinates_and_options_are_refused(x, y, options, message, tmp_path):
    objective = CASES["mlp-tanh"].objective()
    with refused(InputError, *message):
        ls.surface(objective, directions.random(objective, 2), x, y, out=tmp_path / "s.h5", **options)
    assert not (tmp_path / "s.h5").exists()


def test_the_origin_of_a_stored_plane_is_the_centre():
    objective, other = (CASES["residual-relu"].objective(seed=s) for s in (0, 1))
    plane = directions.to_plane(objective, directions.random(objective, 1), {})
    there = directions.from_plane(other, plane, own_origin=False)
    found = ls.surface(other, there, [0.0], marks={"here": points.origin(other)})
    expected, _ = Evaluator(other)(points.origin(objective))
    np.testing.assert_allclose(found.loss[:, 0, 0], expected, rtol=1e-12)
    np.testing.assert_allclose(found.centre_loss, expected, rtol=1e-12)
    np.testing.assert_allclose(found.mark_loss[0], other.evaluation.loss, rtol=1e-12)


def test_cells_cover_a_grid_of_any_size():
    for n in (1, 2, 7, 9, 50):
        # private: grids of all sizes, which as surfaces would take minutes
        rows = refinement._every(n, 8)
        assert rows[0] == 0
        assert rows[-1] == n - 1
        covered = {r for r0, r1, _, _ in refinement._cells(rows, [0]) for r in range(r0, r1 + 1)}
        assert covered == set(range(n))


def test_lines_and_planes_hand_on_every_option_of_a_surface():
    given = inspect.signature(surfaces.surface).parameters.values()
    assert set(surfaces.Keywords.__annotations__) == {p.name for p in given if p.kind is p.KEYWORD_ONLY}


def test_lines_and_planes_take_points_of_ones_own():
    objective = CASES["mlp-tanh"].objective()
    line = ls.surface1d(objective, x=[0, 0.5, 2])
    whole = ls.surface(objective, ls.directions.random(objective, 1), [0, 0.5, 2])
    np.testing.assert_array_equal(line.loss, whole.loss)
    plane = ls.surface2d(objective, x=[0, 1], y=[-1, 0, 3])
    assert plane.xcoordinates.tolist() == [0, 1]
    assert plane.ycoordinates.tolist() == [-1, 0, 3]
    square = ls.surface2d(objective, x=[0, 1])
    assert square.ycoordinates.tolist() == [0, 1]
