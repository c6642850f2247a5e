"""Points of parameter space: from networks and checkpoints, on the way between two of them, and gradients there."""

import contextlib
import math

import numpy as np
import pytest
import torch
from cases import CASES, moved
from refusals import refused
from torch import nn

import landscape as ls
from landscape.errors import InputError
from landscape.networks import checkpoints
from landscape.objective import points, snapshots


def test_gradients_are_those_of_the_mean_loss():
    objective = CASES["residual-gelu"].objective()
    theta = moved(objective).theta
    for part in range(3):
        inputs, labels = objective.samples.batch(objective.members[part], objective.device, objective.dtype)
        leaf = theta.clone().requires_grad_()
        value = objective.losses(objective.layout.tensors(leaf), inputs, labels).mean()
        (expected,) = torch.autograd.grad(value, leaf)
        loss, found = points.gradient(objective, theta, part)
        assert loss == pytest.approx(value.item(), rel=1e-12)
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


def test_another_checkpoint_is_the_point_of_its_weights(tmp_path):
    objective = CASES["residual-relu"].objective()
    other = CASES["residual-relu"].objective(seed=1)
    checkpoints.write(tmp_path / "other.pt", other.model.state_dict(), {"model": "case"})
    (snapshot,) = snapshots.find(objective, [tmp_path / "other.pt"])
    point = points.of(objective, snapshot)
    assert torch.equal(point.theta, points.origin(other).theta)
    assert torch.equal(point.buffers, points.origin(other).buffers)


def test_a_file_and_a_model_of_the_same_weights_are_the_same_point(tmp_path):
    objective = CASES["residual-relu"].objective()
    other = CASES["residual-relu"].objective(seed=1)
    torch.save({"a": other.model.state_dict(), "b": objective.model.state_dict()}, tmp_path / "other.pt")
    own = other.model.train()
    before = {name: t.clone() for name, t in own.state_dict().items()}
    found = [ls.point(objective, tmp_path / "other.pt", ckpt_key="a"), ls.point(objective, own)]
    for point in found:
        assert torch.equal(point.theta, points.origin(other).theta)
        assert torch.equal(point.buffers, points.origin(other).buffers)
    assert own.training
    assert all(torch.equal(t, before[name]) for name, t in own.state_dict().items())
    with refused(ls.InputError, "other.pt"):
        ls.point(objective, tmp_path / "other.pt")
    with refused(ls.InputError, "weight"):
        ls.point(objective, nn.Linear(4, 3))


def test_a_path_has_the_checkpoints_of_a_run_in_the_order_of_their_epochs(tmp_path):
    objective = CASES["mlp-tanh"].objective()
    (tmp_path / "snapshots").mkdir()
    for epoch, seed in ((10, 1), (9, 2)):
        state = CASES["mlp-tanh"].objective(seed=seed).model.state_dict()
        checkpoints.write(tmp_path / "snapshots" / f"epoch-{epoch}.pt", state, {"epoch": epoch})
    found = ls.path(objective, tmp_path)
    assert [(name, epoch) for name, (_, epoch) in found.items()] == [("epoch-9", 9), ("epoch-10", 10)]
    for (point, _), seed in zip(found.values(), (2, 1), strict=True):
        assert torch.equal(point.theta, points.origin(CASES["mlp-tanh"].objective(seed=seed)).theta)
    assert list(ls.path(objective, str(tmp_path / "snapshots" / "*.pt"))) == list(found)


def test_a_checkpoint_that_differs_in_parameters_that_do_not_vary_is_refused(tmp_path):
    objective = CASES["residual-relu"].objective(params="fc")
    other, mixed = CASES["residual-relu"].objective(seed=1).model.state_dict(), objective.model.state_dict()
    mixed |= {name: t for name, t in other.items() if name.startswith("fc.") or "running" in name}
    for name, state in (("other", other), ("mixed", mixed)):
        checkpoints.write(tmp_path / f"{name}.pt", state, {"model": "case"})
    snapshots_of = snapshots.find(objective, [tmp_path / "other.pt", tmp_path / "mixed.pt"])
    with refused(InputError, tmp_path / "other.pt", "params", "fc"):
        points.of(objective, snapshots_of[0])
    assert torch.equal(points.of(objective, snapshots_of[1]).theta[-3:], other["fc.bias"])
    with refused(InputError, "network", "params"):
        ls.point(objective, CASES["residual-relu"].objective(seed=1).model)


class Fixed(nn.Module):
    """Has a buffer whose numbers cannot lie between those of two networks, and a counter."""

    def __init__(self, value, *, counted=0.0):
        super().__init__()
        self.fc, self.counted = nn.Linear(4, 3), counted
        self.register_buffer("fixed", value.clone())
        self.register_buffer("n_steps", torch.tensor(0))
        self.register_buffer("num_batches_tracked", torch.tensor(0))

    def forward(self, x):
        return (self.fc(x) * self.fixed).real.double() * (1 + self.counted * self.n_steps)


OTHERS = {
    "mask": torch.tensor([True, False, True]),
    "zero point": torch.tensor([1, 3, 2]),
    "complex": torch.tensor([1 + 1j, 2, 1j]),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_a_network_with_another_mask_or_whole_number_is_refused(kind, tmp_path):
    """Its points would be those of a network that does not exist: the weights of one, the mask of the other."""
    own, other = Fixed(torch.ones_like(OTHERS[kind])).double(), Fixed(OTHERS[kind]).double()
    objective = ls.make_objective(own, (torch.randn(9, 4), torch.arange(9) % 3), device="cpu", dtype="float64")
    torch.save(other.state_dict(), tmp_path / "other.pt")
    for network in (other, tmp_path / "other.pt"):
        with pytest.raises(InputError, match="the buffer fixed"):
            ls.point(objective, network)
    other.fixed.copy_(own.fixed)
    other.num_batches_tracked += 5
    assert ls.point(objective, other).buffers.numel() == 0
    again = ls.make_objective(other, objective.samples, device="cpu", dtype="float64")
    assert points.fixed_digest(objective) == points.fixed_digest(again)
    other.fixed.copy_(OTHERS[kind])
    again = ls.make_objective(other, objective.samples, device="cpu", dtype="float64")
    assert points.fixed_digest(objective) != points.fixed_digest(again)


@pytest.mark.parametrize("counted", [0.0, 0.1])
def test_a_counter_may_differ_if_the_outputs_do_not_depend_on_it(counted):
    own, other = (Fixed(torch.ones(3, dtype=torch.int64), counted=counted).double() for _ in range(2))
    other.n_steps += 7
    objective = ls.make_objective(own, (torch.randn(9, 4), torch.arange(9) % 3), device="cpu", dtype="float64")
    if counted:
        with pytest.raises(InputError, match="n_steps"):
            ls.point(objective, other)
    else:
        assert torch.equal(ls.point(objective, other).theta[:12], other.fc.weight.flatten())


class Limited(nn.Module):
    """A limit that rises with a counter: it changes the outputs of large inputs only."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 3)
        self.register_buffer("n_steps", torch.tensor(1))
        self.register_buffer("mask", torch.tensor([True, True, True]))

    def forward(self, x):
        return self.fc(x.clamp(max=self.n_steps)) * self.mask


@pytest.mark.parametrize("largest", [0.9, 5.0])
def test_a_counter_that_changes_the_outputs_of_one_sample_is_refused(largest):
    inputs = torch.rand(30, 4, generator=torch.Generator().manual_seed(0))
    inputs[-2] = largest
    own, other = Limited(), Limited()
    other.n_steps += 1
    objective = ls.make_objective(own, (inputs, torch.arange(30) % 3), parts="class", device="cpu", batch_size=4)
    with refused(InputError, "n_steps") if largest > 1 else contextlib.nullcontext():
        ls.point(objective, other)
    other.mask[1] = False
    with refused(InputError, "mask"):
        ls.point(objective, other)


def test_on_the_way_variances_move_by_their_logarithm_and_all_else_straight():
    a = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3, eps=0.5), nn.BatchNorm1d(3, affine=False))
    a.register_buffer("other", torch.tensor([1.0]))
    eps = points.variance_eps(a)
    statistics = ("1.running_mean", "1.running_var", "2.running_mean", "2.running_var")
    assert points.buffer_layout(a).names == ("other", *statistics)
    assert eps.isnan().tolist() == [True] * 4 + [False] * 3 + [True] * 3 + [False] * 3
    assert eps[4:7].tolist() == [0.5] * 3
    assert eps[10:].tolist() == [1e-5] * 3
    start, end = (torch.rand(13, generator=torch.Generator().manual_seed(s), dtype=torch.float64) for s in (0, 1))
    step = points.log_step(eps, start, end)
    assert torch.equal(points.at_log_step(eps, start, 0 * step), start)
    torch.testing.assert_close(points.at_log_step(eps, start, step), end, rtol=1e-14, atol=1e-15)
    for t in (-2.0, 0.5, 3.0):
        found = points.at_log_step(eps, start, t * step)
        for k, e in enumerate(eps.tolist()):
            v, w = start[k].item(), end[k].item()
            expected = v + t * (w - v) if math.isnan(e) else max((v + e) ** (1 - t) * (w + e) ** t - e, 0.0)
            assert found[k].item() == pytest.approx(expected, rel=1e-12, abs=1e-14)


def test_a_share_of_the_way_to_another_network_is_that_share_of_each_number():
    objective = CASES["residual-relu"].objective()
    a, b = points.origin(objective), points.origin(CASES["residual-relu"].objective(seed=1))
    variance = ~points.variance_eps(objective.model).isnan()
    by_log = (a.buffers + 1e-5) ** 0.75 * (b.buffers + 1e-5) ** 0.25 - 1e-5
    straight = 0.75 * a.buffers + 0.25 * b.buffers
    expected = {
        points.by_log: torch.where(variance, by_log, straight),
        points.straight: straight,
        halfway: 0.5 * a.buffers + 0.5 * b.buffers,
    }
    for moves, buffers in expected.items():
        found = points.between(objective, a, b, 0.25, moves=moves)
        torch.testing.assert_close(found.theta, 0.75 * a.theta + 0.25 * b.theta)
        torch.testing.assert_close(found.buffers, buffers)


def halfway(steps, coordinates):
    """A way of one's own: the mean of both ends, wherever the point is."""
    return (steps.start + 0.5 * steps.straight[0]).to(steps.start)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_variances_stay_in_their_range_however_far_the_line_is_drawn(dtype):
    """From a variance of zero, as a dead channel has it, to one, and the other way."""
    eps = torch.tensor([1e-5, 1e-5, 1e-12], dtype=torch.float64)
    start, end = torch.tensor([0.0, 1.0, 0.0], dtype=dtype), torch.tensor([1.0, 0.0, 2.0], dtype=dtype)
    step = points.log_step(eps, start, end)
    for t in np.linspace(-3, 3, 25):
        assert points.variances_valid(eps, points.at_log_step(eps, start, t * step))
    assert not points.variances_valid(eps, torch.tensor([0.0, -1e-9, 1.0]))
    assert not points.variances_valid(eps, torch.tensor([0.0, torch.inf, 1.0]))
    below = torch.tensor([-0.1, 1.0, 1.0], dtype=dtype)
    assert points.at_log_step(eps, below, points.log_step(eps, below, end)).isnan().tolist() == [True, False, False]
