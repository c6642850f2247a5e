"""Convergence points: of a memory bank, and by training on a part alone."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from cases import CASES
from refusals import refused
from torch import nn

import landscape as ls
from landscape.analyses import convergence
from landscape.data import datasets
from landscape.errors import InputError, NumericalError
from landscape.networks import checkpoints
from landscape.objective import points
from landscape.objective.evaluator import Evaluator
from landscape.objective.objective import Objective
from landscape.results import History, store


def _target(logits, labels):
    return torch.where(labels == 0, 1.0, -2.0)


def test_training_on_a_part_alone_arrives_at_its_optimum():
    """Logit of the label to a constant by a linear map of constant inputs: the optimum is known."""
    inputs = torch.ones(30, 2, dtype=torch.float64)
    labels = (torch.arange(30) >= 20).long()
    model = nn.Linear(2, 2, bias=False)

    def loss(logits, labels):
        return (logits[torch.arange(len(labels)), labels] - _target(logits, labels)).square()

    objective = Objective.build(
        model, datasets.from_dataset((inputs, labels)), loss=loss, partition="class", dtype=torch.float64, device="cpu"
    )
    point = convergence.finetuned(objective, "1", epochs=200, lr=0.1, batch_size=4)
    weight = point.theta.view(2, 2)
    assert weight[1].sum().item() == pytest.approx(-2, abs=1e-6)
    torch.testing.assert_close(weight[0], model.weight[0].detach().double())  # no sample of this part pulls at it
    again = convergence.finetuned(objective, "1", epochs=200, lr=0.1, batch_size=4)
    assert torch.equal(point.theta, again.theta)
    other = convergence.finetuned(objective, "1", epochs=2, lr=0.1, batch_size=4, seed=1)
    assert not torch.equal(point.theta, other.theta)


def test_training_lowers_the_parts_own_loss_and_leaves_the_model():
    objective = CASES["residual-relu"].objective()
    before = {n: t.clone() for n, t in objective.model.state_dict().items()}
    point = convergence.finetuned(objective, "2", epochs=20, lr=0.05)
    loss = Evaluator(objective)(point)[0]
    assert loss[2] < 0.5 * objective.evaluation.loss[2]
    assert all(torch.equal(t, before[n]) for n, t in objective.model.state_dict().items())
    assert torch.equal(point.buffers, points.origin(objective).buffers)


def test_training_that_cannot_be_is_refused():
    objective = CASES["residual-relu"].objective()
    with refused(NumericalError, "fine-tuning", 0):
        convergence.finetuned(objective, "0", epochs=50, lr=1e200)
    mixed = CASES["residual-relu"].objective(partition={"both": [0, 1]})
    with refused(NumericalError, "fine-tuning", "both", lr=100.0):
        convergence.finetuned(mixed, "both", epochs=1, lr=100.0, batch_size=4)
    with pytest.raises(InputError, match="must be at least 1, got 0"):
        convergence.finetuned(objective, "0", epochs=0)
    with refused(InputError, "lr"):
        convergence.finetuned(objective, "0", epochs=1, lr=0)


@pytest.fixture
def banked(tmp_path):
    """The folder of a run with a memory bank of three classes, as `landscape train` leaves it."""
    from made import example

    states = {e: CASES["residual-relu"].objective(seed=e) for e in (1, 4)}
    (tmp_path / "bank").mkdir()
    for epoch, objective in states.items():
        checkpoints.write(
            tmp_path / "bank" / f"epoch-{epoch:04d}.pt", objective.model.state_dict(), {"model": "m", "epoch": epoch}
        )
    history = example(History, n=3)
    n = len(history.epoch)
    history = dataclasses.replace(
        history,
        parts=("0", "1", "2"),
        bank_epoch=np.tile([1.0, 4.0, 4.0], (n, 1)),
        group=np.tile([0.0, 1.0, 1.0], (n, 1)),
    )
    store.save(tmp_path / "history.h5", history)
    return SimpleNamespace(folder=tmp_path, states=states, history=history)


def test_a_groups_point_is_the_mean_of_its_classes(banked):
    case = CASES["residual-relu"]
    found = convergence.from_bank(case.objective(partition={"early": [0], "late": [1, 2]}), banked.folder)
    first, second = (points.origin(o) for o in banked.states.values())
    assert torch.equal(found["early"][0].theta, first.theta)
    assert torch.equal(found["late"][0].theta, second.theta)
    found = convergence.from_bank(case.objective(partition={"mixed": [0, 1, 2]}), banked.folder)
    torch.testing.assert_close(found["mixed"][0].theta, (first.theta + 2 * second.theta) / 3)
    torch.testing.assert_close(found["mixed"][0].buffers, (first.buffers + 2 * second.buffers) / 3)
    assert found["mixed"][1] == pytest.approx(3)
    assert convergence.groups_of(banked.folder) == {"group 1": [0], "group 2": [1, 2]}
    whole = convergence.from_bank(case.objective(partition="all"), banked.folder)
    torch.testing.assert_close(whole["all"][0].theta, found["mixed"][0].theta)
    hard = case.objective(partition=np.arange(15) % 3, classes="1")  # one part, which is no class
    assert len(hard.partition) == 1
    with refused(InputError, "classes"):
        convergence.from_bank(hard, banked.folder)


def test_runs_without_a_memory_bank_say_so(banked, tmp_path):
    objective = CASES["residual-relu"].objective()
    with pytest.raises(InputError, match="is not the folder of a run: there is no file"):
        convergence.from_bank(objective, tmp_path / "bank")
    (banked.folder / "bank" / "epoch-0004.pt").unlink()
    with refused(InputError, "epoch-0004.pt"):
        convergence.from_bank(objective, banked.folder)
    without = dataclasses.replace(
        banked.history, bank_epoch=banked.history.bank_epoch * np.nan, group=banked.history.group * np.nan
    )
    store.save(banked.folder / "history.h5", without, overwrite=True)
    with refused(InputError, "gsa-gkp"):
        convergence.from_bank(objective, banked.folder)
    with pytest.raises(InputError, match="has no groups of classes"):
        convergence.groups_of(banked.folder)


def test_a_point_as_a_checkpoint_is_the_point(tmp_path):
    objective, other = (CASES["residual-relu"].objective(seed=s) for s in (0, 1))
    point = points.origin(other)
    state = convergence.state_of(objective, point)
    assert state.keys() == objective.model.state_dict().keys()
    for name, t in other.model.state_dict().items():
        assert torch.equal(state[name], t), name


@pytest.mark.parametrize("tied", ["weights", "modules"])
def test_a_point_as_a_checkpoint_has_one_value_for_what_is_shared(tied):
    """Such a file had the point's value under one name and that of the objective under the other."""

    def network(seed):
        torch.manual_seed(seed)
        norm = nn.BatchNorm1d(4)
        twice = [norm] if tied == "modules" else []
        model = nn.Sequential(nn.Linear(4, 4), norm, nn.Linear(4, 4), *twice, nn.Linear(4, 3)).double()
        if tied == "weights":
            model[2].weight = model[0].weight
        model[1].running_mean.normal_()
        return model

    data = torch.randn(12, 4), torch.arange(12) % 3
    objective = ls.make_objective(network(0), data, parts="class", device="cpu", dtype="float64")
    other = network(1)
    state = convergence.state_of(objective, ls.point(objective, other))
    assert state.keys() == other.state_dict().keys()
    for name, t in other.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            assert torch.equal(state[name], t), name
