"""Gradients at the checkpoints of a run."""

import dataclasses

import numpy as np
import pytest
import torch
from gradient_numbers import NUMBERS, weights
from interruptions import Interrupting
from refusals import refused

import landscape as ls
from landscape.errors import InputError, NumericalError, StoreError
from landscape.networks import checkpoints
from tests.cases import CASES

# Checkpoints


@pytest.fixture
def run(tmp_path):
    """Three snapshots of a run; the middle one does not say its epoch."""
    paths = []
    for epoch in range(3):
        model = CASES["mlp-norm"].objective(seed=epoch).model
        paths.append(tmp_path / "run" / f"epoch-{epoch}.pt")
        paths[-1].parent.mkdir(exist_ok=True)
        checkpoints.write(paths[-1], model.state_dict(), {} if epoch == 1 else {"epoch": 10 * epoch})
    return paths


@pytest.mark.parametrize(("params", "options"), [(None, {}), ("4", {}), (None, {"batches": 2, "samples_per_batch": 6})])
def test_over_training_each_checkpoint_gives_what_its_weights_give(run, options, params):
    objective = CASES["mlp-norm"].objective(params=params)
    before = weights(objective)
    found = ls.gradients(objective, checkpoints=run, **options)
    assert found.points == ("epoch-0", "epoch-1", "epoch-2")
    np.testing.assert_array_equal(found.epoch, [0, np.nan, 20])
    for seed in range(3):
        # The case's data depend on the seed too: the weights of one in the objective of the other.
        one = CASES["mlp-norm"].objective(params=params).at(CASES["mlp-norm"].objective(seed=seed).model)
        alone = ls.gradients(one, **options)
        for name in (*NUMBERS, "theta_norm", "loss", "cosine_stderr"):
            np.testing.assert_array_equal(getattr(found, name)[seed], getattr(alone, name)[0], err_msg=name)
    for name, tensor in objective.model.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_an_epoch_can_be_given_and_wins(run):
    found = ls.gradients(CASES["mlp-norm"].objective(), checkpoints=[(run[1], 5), (run[2], 6.0)])
    assert found.epoch.tolist() == [5, 6]


def test_runs_of_the_same_file_names_are_told_apart(run, tmp_path):
    other = tmp_path / "other" / "epoch-0.pt"
    other.parent.mkdir()
    other.write_bytes(run[0].read_bytes())
    found = ls.gradients(CASES["mlp-norm"].objective(), checkpoints=[run[0], other])
    assert found.points == (str(run[0]), str(other))
    np.testing.assert_array_equal(found.norm[0], found.norm[1])


@pytest.mark.parametrize("options", [{}, {"batches": 2}])
def test_an_interrupted_run_goes_on_where_it_was(run, tmp_path, options):
    objective = CASES["mlp-norm"].objective()
    reference = ls.gradients(objective, checkpoints=run, **options)
    out = tmp_path / "out.h5"
    with refused(KeyboardInterrupt, 1, 3):
        ls.gradients(objective, checkpoints=run, out=out, **options, progress=Interrupting(1))
    assert not out.exists()
    with pytest.raises(StoreError, match=r"was begun (with batches=2|with batches=None), now with batches=7"):
        ls.gradients(objective, checkpoints=run, out=out, batches=7)
    with pytest.raises(StoreError, match="was begun with the weights of"):
        ls.gradients(objective, checkpoints=run[:2], out=out, **options)
    missing = Interrupting()
    found = ls.gradients(objective, checkpoints=run, out=out, **options, progress=missing)
    assert len(missing.units) == 2
    for result in (found, ls.load(out)):
        for field in dataclasses.fields(result):
            if field.name != "provenance":
                np.testing.assert_array_equal(getattr(result, field.name), getattr(reference, field.name))
    told = ls.load(out).provenance
    assert list(told["checkpoints"]) == [str(p) for p in run]
    assert told["options"]["batches"] == options.get("batches")
    with pytest.raises(StoreError, match="exists"):
        ls.gradients(objective, checkpoints=run, out=out, **options)


def test_progress_ends_with_all_that_there_is(run):
    told = []
    ls.gradients(CASES["mlp-norm"].objective(), checkpoints=run[:2], progress=lambda *a: told.append(a))
    assert told[0] == (0, 2, str(run[0]))
    assert told[-1] == (2, 2, "")
    assert [done for done, _, _ in told] == sorted(done for done, _, _ in told)


def test_a_checkpoint_that_does_not_fit_is_named_before_anything_is_computed(run, tmp_path):
    checkpoints.write(tmp_path / "other.pt", CASES["mlp-tanh"].objective().model.state_dict(), {})
    told = []
    with refused(InputError, "other.pt"):
        ls.gradients(
            CASES["mlp-norm"].objective(),
            checkpoints=[run[0], tmp_path / "other.pt"],
            progress=lambda *a: told.append(a),
        )
    assert told == []


def test_a_checkpoint_that_changes_meanwhile_is_named(run):
    def change(done, total, text):
        run[1].write_bytes(run[0].read_bytes())

    with refused(InputError, "epoch-1.pt"):
        ls.gradients(CASES["mlp-norm"].objective(), checkpoints=run, progress=change)


def test_a_checkpoint_with_nan_is_named(run, tmp_path):
    state = CASES["mlp-norm"].objective().model.state_dict()
    checkpoints.write(run[1], state | {"1.weight": state["1.weight"] * np.nan}, {})
    with refused(NumericalError, "epoch-1.pt", 90, "1.weight"):
        ls.gradients(CASES["mlp-norm"].objective(), checkpoints=run)


def test_a_checkpoint_that_is_given_twice_is_named(run):
    with refused(InputError, "epoch-0.pt"):
        ls.gradients(CASES["mlp-norm"].objective(), checkpoints=[run[0], run[0]])
