"""Loss and accuracy of all parts at any point, against a plain loop over each part."""

import copy
import dataclasses

import numpy as np
import pytest
import torch
from cases import CASES, CLASS_SIZES, Case, Overwrites, Shifts, moved

from landscape.errors import StoreError
from landscape.objective import evaluator, points
from landscape.objective.evaluator import Evaluator, evaluate
from landscape.objective.points import Point
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


@pytest.mark.parametrize("traced", [False, True])
def test_a_model_may_overwrite_its_inputs(traced):
    """The inputs of the first point are kept for the second."""
    objective, plain = Case(Overwrites).objective(), Case(Shifts).objective()
    found, expected = Evaluator(objective, plain=not traced), Evaluator(plain)
    assert found.traced is traced
    for seed in range(2):
        np.testing.assert_allclose(found(moved(objective, seed))[0], expected(moved(plain, seed))[0], rtol=1e-12)


def test_a_loss_that_is_not_finite_stays_so_and_counts_as_wrong():
    objective = CASES["mlp-tanh"].objective()
    centre = points.origin(objective)
    loss, accuracy = Evaluator(objective)(Point(centre.theta * torch.nan, centre.buffers))
    assert np.isnan(loss).all()
    assert (accuracy == 0).all()


def test_inputs_beyond_the_memory_limit_are_made_anew(monkeypatch):
    objective = CASES["residual-relu"].objective()
    kept, point = Evaluator(objective), moved(objective)
    expected = kept(point)[0]
    assert kept._kept
    monkeypatch.setattr(evaluator, "INPUT_BYTES", 0)
    fresh = Evaluator(objective)
    np.testing.assert_array_equal(fresh(point)[0], expected)
    assert not fresh._kept
    sizes = [inputs.nbytes for inputs, _ in kept._kept.values()]
    limit = sizes[0] + sizes[1] - 1
    monkeypatch.setattr(evaluator, "INPUT_BYTES", limit)
    some = Evaluator(objective)
    np.testing.assert_array_equal(some(point)[0], expected)
    assert 0 < sum(inputs.nbytes for inputs, _ in some._kept.values()) <= limit


def test_keep_leaves_the_statistics_of_the_centre():
    objective = CASES["residual-relu"].objective()
    centre, point = points.origin(objective), moved(objective)
    kept = Evaluator(objective, batch_norm="keep")(point)[0]
    np.testing.assert_array_equal(kept, Evaluator(objective)(Point(point.theta, centre.buffers))[0])
    assert not np.allclose(kept, Evaluator(objective)(point)[0])
    as_it_is = Evaluator(objective, batch_norm="keep")(point, as_it_is=True)[0]
    np.testing.assert_array_equal(as_it_is, Evaluator(objective)(point)[0])


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
            evaluate(evaluator, numbers, failing, journal=kept, block=3)
        calls.clear()
        found = evaluate(evaluator, numbers, point_of, journal=kept, block=3)
    assert calls == [15, 9, 2, 6]
    assert found.point.tolist() == numbers
    np.testing.assert_array_equal(found.loss, expected)


@pytest.mark.parametrize(("before", "after"), [(1, 4), (4, 1), (2, 3)])
def test_another_number_of_processes_keeps_all_finished_points(tmp_path, monkeypatch, before, after):
    objective = CASES["mlp-tanh"].objective()
    of_a_unit, calls, numbers = evaluator.of_a_unit, [], list(range(17))
    evaluates = Evaluator(objective)

    def point_of(number):
        if len(calls) == 16:
            raise RuntimeError("as a kill would")
        calls.append(number)
        return moved(objective, number)

    def attempt(ranks):
        monkeypatch.setattr(evaluator, "of_a_unit", lambda n, most, _: of_a_unit(n, most, ranks))
        return evaluate(evaluates, numbers, point_of, journal=kept)

    with journal.Journal.open(tmp_path / "out.h5", {}) as kept:
        with pytest.raises(RuntimeError, match="as a kill would"):
            attempt(before)
        finished = sum(len(kept.read(unit).point) for unit in kept.done())
        calls.clear()
        found = attempt(after)
    assert finished > 0
    assert calls == numbers[finished:]
    assert found.point.tolist() == numbers
    np.testing.assert_array_equal(found.loss, evaluate(evaluates, numbers, lambda n: moved(objective, n)).loss)


def test_a_finished_block_of_other_points_is_refused(tmp_path):
    """Or a loss would stand at a point that it is not of."""
    objective = CASES["mlp-tanh"].objective()
    evaluator = Evaluator(objective)
    with journal.Journal.open(tmp_path / "out.h5", {}) as kept:
        evaluate(evaluator, [0, 1, 2], lambda number: moved(objective, number), journal=kept)
        block = kept.read("points 0 to 2")
        kept.write("points 0 to 2", dataclasses.replace(block, point=np.array([0, 1, 1])))
        with pytest.raises(StoreError, match="is damaged: pass overwrite=True to begin anew"):
            evaluate(evaluator, [0, 1, 2], lambda number: moved(objective, number), journal=kept)


@pytest.mark.parametrize(
    ("n", "ranks", "expected"),
    [
        (9, 1, 8),  # a process alone stores eight at a time
        (8, 4, 2),  # one rung of eight directions
        (9, 2, 5),
        (3, 4, 1),
        (51, 4, 7),  # in two rounds; of blocks of eight, one process would have one and the others two
        (0, 4, 8),
    ],
)
def test_few_points_are_divided_between_all_processes(n, ranks, expected):
    assert evaluator.of_a_unit(n, 8, ranks) == expected
