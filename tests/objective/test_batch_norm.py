"""Policies for batch norm: what is measured, against closed forms and PyTorch's own re-estimation."""

import copy

import numpy as np
import pytest
import torch
from cases import CASES, moved
from refusals import refused
from torch import nn

from landscape.data import datasets, items
from landscape.data.partition import Partition
from landscape.data.taking import taken
from landscape.errors import InputError
from landscape.objective import batch_norm, points
from landscape.objective.evaluator import Evaluator
from landscape.objective.objective import Objective


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


def test_instance_norm_is_estimated_and_normalises_as_in_training_where_batch_norm_does():
    inputs, labels = torch.randn(600, 4, generator=torch.Generator().manual_seed(0)).double(), torch.arange(600) % 3
    norm = nn.InstanceNorm1d(1, track_running_stats=True)
    model = nn.Sequential(nn.Linear(4, 5), nn.Unflatten(1, (1, 5)), norm, nn.Flatten(), nn.Linear(5, 3)).double()
    samples = datasets.from_dataset((inputs, labels))
    objective = Objective.build(model, samples, dtype=torch.float64, device="cpu")
    hidden, centre = model[0](inputs).detach(), points.origin(objective)
    for policy, expected in (
        ("reestimate", (hidden - hidden.mean()) / (hidden.var(1).mean() + norm.eps).sqrt()),
        ("batch", (hidden - hidden.mean(1, keepdim=True)) / (hidden.var(1, False, keepdim=True) + norm.eps).sqrt()),
    ):
        (loss,), _ = Evaluator(objective, batch_norm=policy)(centre)
        assert loss == pytest.approx(nn.functional.cross_entropy(model[4](expected), labels).item(), rel=1e-9)


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
    monkeypatch.setattr(batch_norm, "NORM_BATCH", 9)
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


@pytest.mark.parametrize("policy", ["reestimate", "per-part"])
def test_statistics_are_those_of_so_many_samples_drawn_by_the_seed_from_the_training_data(policy):
    objective = CASES["residual-relu"].objective()
    training = CASES["residual-relu"].objective(seed=1).samples  # in another order, with other inputs
    point = moved(objective)
    found = {}
    for seed in (0, 3):
        loss, _ = Evaluator(objective, batch_norm=policy, training=training, training_samples=4, seed=seed)(point)
        order, expected = np.random.default_rng(seed).permutation(len(training)), []
        for p, members in enumerate(objective.members):
            own = order if policy == "reestimate" else [i for i in order if training.labels[i] == p]
            model = points.network_at(objective, point)
            with torch.no_grad():  # the samples that are drawn are one batch here, whose statistics normalise it
                for m in model.modules():
                    m.train(isinstance(m, nn.BatchNorm2d))
                    m.momentum = 1.0
                model(training.batch(np.array(own[:4]), objective.device, objective.dtype)[0])
                x, y = objective.samples.batch(members, objective.device, objective.dtype)
                expected.append(nn.functional.cross_entropy(model.eval()(x), y).item())
        np.testing.assert_allclose(loss, expected, rtol=1e-9)
        found[seed] = loss
    assert not np.allclose(found[0], found[3])


def test_statistics_of_parts_need_training_samples_by_classes():
    objective = CASES["residual-relu"].objective()
    parts = Partition.from_index(objective.partition.part_of, ("a", "b", "c"))
    objective = CASES["residual-relu"].objective(partition=parts)
    Evaluator(objective, batch_norm="per-part")
    with refused(InputError, batch_norm="per-part"):
        Evaluator(objective, batch_norm="per-part", training=CASES["residual-relu"].objective().samples)


class OfDict(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 3))

    def forward(self, x):
        return self.layers(x)


def test_training_data_may_have_more_entries_than_the_model_takes():
    x, y = torch.randn(12, 4, generator=torch.Generator().manual_seed(0)), torch.arange(12) % 3
    objective = Objective.build(OfDict(), taken(({"x": x}, y)), device="cpu")
    training = taken(({"x": x, "name": torch.arange(12)}, y))
    found, expected = (Evaluator(objective, batch_norm="reestimate", training=t) for t in (training, None))
    centre = points.origin(objective)
    np.testing.assert_array_equal(found(centre)[0], expected(centre)[0])
    short = Evaluator(objective, batch_norm="reestimate", training=taken(({"x": x[:, :3]}, y)))
    with refused(InputError, "(12, 3)"):
        short(centre)


class OfBatch(OfDict):
    def forward(self, batch):
        return self.layers(batch["x"])


def test_training_data_may_be_those_of_an_objective(monkeypatch):
    """Which the model takes as one argument already, here read batch by batch."""
    monkeypatch.setattr(items, "IN_MEMORY", 0)
    x, y = torch.randn(12, 4, generator=torch.Generator().manual_seed(0)), torch.arange(12) % 3
    data = [{"x": one, "label": int(label)} for one, label in zip(x, y, strict=True)]
    objective = Objective.build(OfBatch(), taken(data), device="cpu")
    found, expected = (
        Evaluator(objective, batch_norm="reestimate", training=t) for t in (objective.samples, taken(data))
    )
    np.testing.assert_array_equal(found(points.origin(objective))[0], expected(points.origin(objective))[0])


def test_reestimation_needs_batch_norm_and_samples():
    with pytest.raises(InputError, match="the model has no batch norm with running statistics"):
        Evaluator(CASES["mlp-tanh"].objective(), batch_norm="reestimate")
    one_value = CASES["mlp-norm"].objective()
    for policy in ("reestimate", "per-part"):
        with pytest.raises(InputError, match="cannot be estimated from 1 sample"):
            Evaluator(one_value, batch_norm=policy, training_samples=1)(points.origin(one_value))
    with refused(InputError, "log-interpolate", batch_norm="frozen"):
        Evaluator(CASES["mlp-tanh"].objective(), batch_norm="frozen")


class Recurrent(nn.Module):
    """One batch norm that is used twice in each pass, on inputs of other statistics."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.norm = nn.Linear(4, 5), nn.Linear(5, 5), nn.BatchNorm1d(5)
        self.fc = nn.Linear(5, 3)

    def forward(self, x):
        return self.fc(self.norm(self.second(self.norm(self.first(x)).relu())))


@pytest.mark.parametrize(
    "make", [Recurrent, lambda: nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 3))]
)
@pytest.mark.parametrize("broken", [False, True])
def test_each_use_of_a_layer_counts_as_in_torchs_own_reestimation(make, broken):
    """Batches of equal sizes, as update_bn weighs batches alike; what statistics were there before plays no part."""
    generator = torch.Generator().manual_seed(0)
    inputs, labels = torch.randn(512, 4, generator=generator, dtype=torch.float64), torch.arange(512) % 3
    torch.manual_seed(0)
    model = make().double()
    if broken:
        next(m for m in model.modules() if isinstance(m, nn.BatchNorm1d)).running_mean.fill_(torch.nan)
    objective = Objective.build(
        make_finite(model), datasets.from_dataset((inputs, labels)), partition="all", dtype=torch.float64, device="cpu"
    )
    evaluator = Evaluator(objective, batch_norm="reestimate", training_samples=512)
    centre = points.of_network(objective, model)
    ((reestimation, _),) = evaluator._passes
    found = reestimation(centre)
    order = np.random.default_rng(0).permutation(512)
    other = copy.deepcopy(model)
    torch.optim.swa_utils.update_bn([inputs[piece] for piece in np.array_split(order, 2)], other)
    torch.testing.assert_close(found.buffers, points.of_network(objective, other).buffers, rtol=1e-12, atol=1e-12)
    other.eval()
    expected = nn.functional.cross_entropy(other(inputs), labels).item()
    assert evaluator(centre)[0][0] == pytest.approx(expected, rel=1e-12)


def make_finite(model):
    """A copy whose statistics are numbers, as an objective takes it."""
    own = copy.deepcopy(model)
    for m in own.modules():
        if isinstance(m, nn.BatchNorm1d):
            m.reset_running_stats()
    return own


@pytest.mark.parametrize(
    "does", [{}, {"moves": points.by_log, "replaces": batch_norm.kept}, {"trains": True, "batches": True}]
)
def test_a_policy_that_does_nothing_or_two_things_is_refused(does):
    with pytest.raises(ValueError, match="exactly one of moves, replaces and batches"):
        batch_norm.Policy(does="something", **does)


def test_every_policy_is_known_to_the_commands_that_take_it():
    for command in batch_norm.SURFACES:
        assert set(batch_norm.policies(command)) == set(batch_norm.POLICIES)
    assert set(batch_norm.policies("sharpness")) == {"keep"}
    with refused(InputError, batch_norm="batch"):
        batch_norm.check("batch", "sharpness")


class ByName(nn.Sequential):
    """Calls batch norm by keyword."""

    def forward(self, x):
        return self[2](self[1](input=self[0](x)))


@pytest.mark.parametrize("policy", ["reestimate", "per-part", "batch"])
def test_batch_norm_may_be_called_by_keyword(policy):
    torch.manual_seed(0)
    layers = nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 3)
    data = datasets.from_dataset((torch.randn(60, 4), torch.arange(60) % 3))
    found = []
    for model in (ByName(*layers), nn.Sequential(*copy.deepcopy(layers))):
        objective = Objective.build(model, data, partition="class", dtype=torch.float64, device="cpu")
        found.append(Evaluator(objective, batch_norm=policy)(points.origin(objective))[0])
    np.testing.assert_allclose(*found, rtol=1e-12)
