"""Loss and accuracy of all parts at any point, against a plain loop over each part."""

import copy

import numpy as np
import pytest
import torch
from cases import CASES, CLASS_SIZES
from torch import nn

from landscape.data import datasets
from landscape.data.partition import Partition
from landscape.errors import InputError
from landscape.networks import checkpoints
from landscape.objective import points, snapshots
from landscape.objective.objective import Objective
from landscape.objective.points import Evaluator, Point
from landscape.results import journal


def plain(objective, point):
    """Set the weights, evaluate sample by sample."""
    model = copy.deepcopy(objective.model)
    named = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    with torch.no_grad():
        for name, t in zip(objective.layout.names, objective.layout.tensors(point.theta), strict=True):
            named[name].copy_(t)
        buffers = points.buffer_layout(objective.model)
        for name, t in zip(buffers.names, buffers.tensors(point.buffers), strict=True):
            named[name].copy_(t)
        loss, right = [], []
        for part in objective.members:
            inputs, labels = objective.samples.batch(part, objective.device, objective.dtype)
            logits = model(inputs)
            logits = logits[1] if isinstance(logits, tuple) else logits
            values = [objective.loss(z[None], y[None]).item() for z, y in zip(logits, labels, strict=True)]
            loss.append(np.mean(values))
            right.append((logits.argmax(1) == labels).double().mean().item())
    return np.array(loss), np.array(right)


def moved(objective, seed=0):
    centre = points.origin(objective)
    generator = torch.Generator().manual_seed(seed)
    step = torch.randn(len(centre.theta), generator=generator, dtype=torch.float64)
    return Point(centre.theta + 0.1 * step.to(centre.theta), centre.buffers * 1.1)


@pytest.mark.parametrize("name", CASES)
def test_every_part_is_what_a_plain_loop_gives(name):
    objective = CASES[name].objective()
    for point in (points.origin(objective), moved(objective)):
        loss, accuracy = Evaluator(objective)(point)
        expected, right = plain(objective, point)
        np.testing.assert_allclose(loss, expected, rtol=1e-12)
        np.testing.assert_array_equal(accuracy, right)


@pytest.mark.parametrize("batch_size", [1, 7, 15, 1000])
def test_batch_size_changes_nothing_and_the_whole_is_the_weighted_mean(batch_size):
    case = CASES["residual-relu"]
    per_class = case.objective(batch_size=batch_size)
    whole = case.objective(batch_size=batch_size, partition="all")
    point = moved(per_class)
    loss, accuracy = Evaluator(per_class)(point)
    np.testing.assert_allclose(loss, Evaluator(case.objective())(point)[0], rtol=1e-12)
    shares = np.array(CLASS_SIZES) / sum(CLASS_SIZES)
    total, right = Evaluator(whole)(point)
    assert shares @ loss == pytest.approx(total[0], rel=1e-12)
    assert shares @ accuracy == pytest.approx(right[0], rel=1e-12)


def test_the_objectives_model_is_left_as_it_was():
    objective = CASES["residual-inplace"].objective(dtype=torch.float32)
    before = {n: t.clone() for n, t in objective.model.state_dict().items()}
    Evaluator(objective, batch_norm="reestimate", training_samples=8)(moved(objective))
    assert all(torch.equal(t, before[n]) for n, t in objective.model.state_dict().items())
    assert not objective.model.training


def test_a_loss_that_is_not_finite_stays_so_and_counts_as_wrong():
    objective = CASES["mlp-tanh"].objective()
    centre = points.origin(objective)
    loss, accuracy = Evaluator(objective)(Point(centre.theta * torch.nan, centre.buffers))
    assert np.isnan(loss).all()
    assert (accuracy == 0).all()


def test_inputs_beyond_the_memory_limit_are_made_anew(monkeypatch):
    objective = CASES["residual-relu"].objective()
    kept = Evaluator(objective)
    monkeypatch.setattr(points, "INPUT_BYTES", 0)
    fresh = Evaluator(objective)
    point = moved(objective)
    np.testing.assert_array_equal(kept(point)[0], fresh(point)[0])
    assert kept._kept
    assert not fresh._kept


def test_keep_leaves_the_statistics_of_the_centre():
    objective = CASES["residual-relu"].objective()
    centre, point = points.origin(objective), moved(objective)
    kept = Evaluator(objective, batch_norm="keep")(point)[0]
    np.testing.assert_array_equal(kept, Evaluator(objective)(Point(point.theta, centre.buffers))[0])
    assert not np.allclose(kept, Evaluator(objective)(point)[0])
    as_it_is = Evaluator(objective, batch_norm="keep")(point, as_it_is=True)[0]
    np.testing.assert_array_equal(as_it_is, Evaluator(objective)(point)[0])


def test_reestimated_statistics_are_those_of_the_samples():
    """One layer of batch norm right behind a linear map: its statistics follow in closed form, whatever the batches."""
    generator = torch.Generator().manual_seed(0)
    inputs, labels = torch.randn(600, 4, generator=generator, dtype=torch.float64), torch.arange(600) % 3
    model = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 3)).double()
    objective = Objective.build(
        model, datasets.from_dataset((inputs, labels)), partition="class", dtype=torch.float64, device="cpu"
    )
    evaluator = Evaluator(objective, batch_norm="reestimate", training_samples=600)
    (reestimation, _), *others = evaluator._passes
    assert not others
    found = reestimation(points.origin(objective))
    hidden = model[0](inputs).detach()
    layout = points.buffer_layout(model)
    mean, variance = layout.tensors(found.buffers)
    torch.testing.assert_close(mean, hidden.mean(0), rtol=1e-12, atol=1e-12)
    order = np.random.default_rng(0).permutation(600)
    pieces = [hidden[p] for p in np.array_split(order, 3)]
    expected = sum(len(p) * p.var(0) for p in pieces) / 600
    torch.testing.assert_close(variance, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("partition", ["class", {"a": [2], "b": [0, 1]}, "all"])
def test_each_part_may_have_statistics_of_its_own(partition):
    objective = CASES["residual-relu"].objective(partition=partition)
    point = moved(objective)
    loss, accuracy = Evaluator(objective, batch_norm="per-part")(point)
    for p, name in enumerate(objective.partition.names):
        own = objective.alone(name)
        rows = own.samples.batch(own.members[0], own.device, own.dtype)
        model = points.network_at(own, point)
        with torch.no_grad():  # all samples of a part are one batch here, whose statistics normalise it
            for m in model.modules():
                m.train(isinstance(m, nn.BatchNorm2d))
                m.momentum = 1.0
            model(rows[0])
            logits = model.eval()(rows[0])
        assert loss[p] == pytest.approx(nn.functional.cross_entropy(logits, rows[1]).item(), rel=1e-9)
        assert accuracy[p] == pytest.approx((logits.argmax(1) == rows[1]).double().mean().item())
    shared = Evaluator(objective, batch_norm="reestimate")(point)[0]
    assert np.allclose(loss, shared) == (partition == "all")


def test_batches_may_be_normalised_by_themselves(monkeypatch):
    objective = CASES["residual-relu"].objective()
    monkeypatch.setattr(points, "NORM_BATCH", 9)
    point, order = moved(objective), np.concatenate(objective.members)
    loss, _ = Evaluator(objective, batch_norm="batch", seed=3)(point)
    model = points.network_at(objective, point)
    for m in model.modules():
        m.train(isinstance(m, nn.BatchNorm2d))
    shuffled = order[np.random.default_rng(3).permutation(len(order))]
    sums = np.zeros(3)
    with torch.no_grad():
        for piece in np.array_split(shuffled, -(-len(order) // 9)):
            x, y = objective.samples.batch(piece, objective.device, objective.dtype)
            np.add.at(sums, y.numpy(), nn.functional.cross_entropy(model(x), y, reduction="none").numpy())
    np.testing.assert_allclose(loss, sums / objective.counts, rtol=1e-12)
    for size in (2, 5):
        other = CASES["residual-relu"].objective(batch_size=size)
        np.testing.assert_array_equal(Evaluator(other, batch_norm="batch", seed=3)(point)[0], loss)
    as_it_is = Evaluator(objective, batch_norm="batch")(point, as_it_is=True)[0]
    np.testing.assert_array_equal(as_it_is, Evaluator(objective)(point)[0])


def test_statistics_of_parts_need_training_samples_by_classes():
    objective = CASES["residual-relu"].objective()
    parts = Partition.from_index(objective.partition.part_of, ("a", "b", "c"))
    objective = CASES["residual-relu"].objective(partition=parts)
    Evaluator(objective, batch_norm="per-part")
    with pytest.raises(InputError, match="batch_norm='per-part' needs parts that are classes"):
        Evaluator(objective, batch_norm="per-part", training=CASES["residual-relu"].objective().samples)


def test_reestimation_needs_batch_norm_and_samples():
    with pytest.raises(InputError, match="the model has no batch norm with running statistics"):
        Evaluator(CASES["mlp-tanh"].objective(), batch_norm="reestimate")
    one_value = CASES["mlp-norm"].objective()
    for policy in ("reestimate", "per-part"):
        with pytest.raises(InputError, match="cannot be had of 1 sample"):
            Evaluator(one_value, batch_norm=policy, training_samples=1)(points.origin(one_value))
    with pytest.raises(InputError, match="batch_norm='frozen' is unknown: choose interpolate, keep, reestimate"):
        Evaluator(CASES["mlp-tanh"].objective(), batch_norm="frozen")


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


def test_points_come_back_in_order_and_only_the_missing_are_computed(tmp_path):
    objective = CASES["mlp-tanh"].objective()
    evaluator, calls = Evaluator(objective), []

    def point_of(number):
        calls.append(number)
        return moved(objective, number)

    def failing(number):
        if number == 9:
            raise RuntimeError("as a kill would")
        return point_of(number)

    numbers = [3, 1, 4, 15, 9, 2, 6]
    expected = np.stack([evaluator(moved(objective, n))[0] for n in numbers])
    with journal.Journal.open(tmp_path / "out.h5", {}) as kept:
        with pytest.raises(RuntimeError, match="as a kill would"):
            points.evaluate(evaluator, numbers, failing, journal=kept, block=3)
        calls.clear()
        found = points.evaluate(evaluator, numbers, point_of, journal=kept, block=3)
    assert calls == [15, 9, 2, 6]
    assert found.point.tolist() == numbers
    np.testing.assert_array_equal(found.loss, expected)
