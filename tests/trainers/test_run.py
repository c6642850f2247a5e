"""A run's folder: what it holds, how it goes on after an interruption, and what it refuses."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from refusals import refused
from runs import METHODS, files, same, state
from toys import batched, blobs, finish, recipe

from landscape.cli.surface import training_samples
from landscape.errors import NumericalError
from landscape.networks import checkpoints, models
from landscape.objective.loading import load_objective
from landscape.results import store
from trainers import loop, methods, recipes

# What a run leaves ------------------------------------------------------------------------------------------------


def test_a_plain_run_leaves_a_checkpoint_a_history_and_what_it_needs_to_go_on(tmp_path):
    history = finish(tmp_path)
    assert files(tmp_path) == ["config.toml", "history.csv", "history.h5", "last.pt", "state.pt"]
    stored = store.load(tmp_path / "history.h5")
    assert stored.method == "ce"
    assert stored.epoch.tolist() == [1, 2]
    np.testing.assert_array_equal(stored.test_loss, history.test_loss)
    assert stored.train_counts.tolist() == [9, 5, 1]
    assert stored.provenance["recipe"] == recipes.plain(recipe())


def test_the_configuration_that_is_left_repeats_the_run(tmp_path):
    finish(tmp_path / "a", lr=0.03, sharpness="sam")
    again = methods.compose({}, config=tmp_path / "a" / "config.toml")
    assert again == recipe(lr=0.03, sharpness="sam")


def test_the_history_as_a_table_has_a_row_for_each_epoch_and_a_column_for_each_class(tmp_path):
    history = finish(tmp_path)
    with open(tmp_path / "history.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["1", "2"]
    for c in range(3):
        assert rows[-1][f"test_accuracy of {c}"] == str(history.test_accuracy_per_class[-1, c])


def test_the_trajectory_begins_before_the_first_step(tmp_path):
    finish(tmp_path, epochs=5, snapshot_every=2)
    assert files(tmp_path / "snapshots") == [f"epoch-000{e}.pt" for e in (0, 2, 4, 5)]
    first = checkpoints.read(tmp_path / "snapshots" / "epoch-0000.pt")
    with loop.seeded(torch.device("cpu"), 0, loop.FIRST):
        fresh = models.build("toys:layered", 3)
    assert same(first.state, fresh.state_dict())
    assert first.meta["epoch"] == 0
    assert same(state(tmp_path / "snapshots", "epoch-0005.pt"), state(tmp_path, "last.pt"))


def test_every_checkpoint_is_read_by_the_analysis_without_options(tmp_path):
    finish(tmp_path, snapshot_every=1, validation=0.3, **METHODS["gsa-gkp"])
    found = [f for f in files(tmp_path) if f.endswith(".pt") and not f.startswith(("state", "groups"))]
    assert {Path(f).parts[0] for f in found} == {"bank", "best.pt", "last.pt", "snapshots"}
    for name in found:
        objective = load_objective(str(tmp_path / name), partition="class")
        assert objective.partition.counts.tolist() == [6, 3, 1]


def test_a_run_with_held_out_samples_and_the_analysis_of_its_checkpoint_count_the_same(tmp_path):
    """Of 9, 5 and 1 samples 4, 2 and 0 are held out; the bounds of the groups lie between."""
    history = finish(tmp_path, validation=0.4, loss="logit-adjust")
    assert history.train_counts.tolist() == [5, 3, 1]
    assert checkpoints.read(tmp_path / "last.pt").meta["class_counts"] == [5, 3, 1]
    prior = torch.log(torch.tensor([5, 3, 1]) / 9)
    bounds = {"partition": "many-medium-few", "many": 6, "few": 2}
    for given in ({}, {"dataset": blobs()}, {"dataset": blobs(split="test"), "split": "test"}, {"split": "test"}):
        objective = load_objective(tmp_path / "last.pt", loss="logit-adjust", **bounds, **given)
        assert objective.partition.names == ("medium", "few")
        values = objective.loss(torch.zeros(3, 3), torch.arange(3))
        torch.testing.assert_close(values, -prior, check_dtype=False)
    other = {"dataset": (blobs().inputs, blobs().labels), "class_counts": [9, 9, 1]}  # what is given has priority
    objective = load_objective(tmp_path / "last.pt", **bounds, **other)
    assert objective.partition.names == ("many", "few")


@pytest.mark.parametrize(
    ("given", "trained"),
    [
        ({}, True),
        ({"dataset": "toys:vectors"}, True),
        ({"dataset": blobs()}, True),
        ({"dataset": blobs(seed=1)}, False),
        ({"split": "test"}, False),
    ],
)
def test_what_a_run_held_out_is_in_no_analysis_of_its_training_split(tmp_path, given, trained):
    history = finish(tmp_path, validation=0.4, data_seed=3)
    objective = load_objective(tmp_path / "last.pt", partition="class", **given)
    assert objective.samples.class_counts.tolist() == [5, 3, 1]
    assert objective.partition.counts.tolist() == ([5, 3, 1] if trained else [9, 5, 1])
    if trained:
        np.testing.assert_allclose(objective.evaluation.loss, history.eval_loss_per_class[-1], rtol=1e-5)


def test_statistics_are_estimated_again_without_what_a_run_held_out(tmp_path):
    finish(tmp_path, validation=0.4)
    given = {"samples_per_class": 2, "loss": None, "task": None, "target": None}
    for split in ("train", "test"):
        objective = load_objective(tmp_path / "last.pt", split=split)
        training = training_samples(objective, "reestimate", given)
        assert np.bincount(training.labels).tolist() == [5, 3, 1]


def test_the_accuracy_in_the_checkpoint_is_that_of_the_analysis(tmp_path):
    finish(tmp_path)
    objective = load_objective(str(tmp_path / "last.pt"))
    assert objective.evaluation.overall[1] == pytest.approx(
        checkpoints.read(tmp_path / "last.pt").meta["train_accuracy"]
    )


def test_the_best_checkpoint_is_that_of_the_held_out_samples_never_of_the_test_set(tmp_path):
    history = finish(tmp_path, validation=0.4, epochs=6, lr=0.3)
    assert not (tmp_path / "none").exists()
    best = checkpoints.read(tmp_path / "best.pt").meta["epoch"]
    assert best == 1 + int(np.argmax(history.validation_accuracy))
    assert history.train_counts.tolist() == [5, 3, 1]


def measured(values):
    return (np.flatnonzero(np.isfinite(values).any(axis=1)) + 1).tolist()


def test_statistics_come_as_often_as_asked(tmp_path):
    history = finish(tmp_path, epochs=5, statistics_every=2, cosines_every=3)
    assert measured(history.eval_loss_per_class) == [1, 2, 4, 5]
    assert measured(history.quality[:, :2]) == [1, 2, 4, 5]
    assert measured(history.gradient_cosine) == [1, 3]


def test_test_samples_are_measured_as_often_as_asked_and_in_the_last_epoch(tmp_path):
    every = finish(tmp_path / "1", epochs=5, validation=0.4)
    third = finish(tmp_path / "3", epochs=5, validation=0.4, evaluate_every=3)
    assert measured(third.test_accuracy_per_class) == [1, 3, 5]
    for name in ("test_loss", "test_accuracy", "validation_accuracy"):
        np.testing.assert_array_equal(getattr(third, name)[[0, 2, 4]], getattr(every, name)[[0, 2, 4]])
        assert np.isnan(getattr(third, name)[[1, 3]]).all()
    np.testing.assert_array_equal(third.train_loss, every.train_loss)  # the training is the same


def test_weights_that_are_not_finite_are_found_in_an_epoch_that_measures_nothing(tmp_path, epochs):
    def ruin(trainer):
        if trainer.epoch == 2:
            torch.nn.init.constant_(next(trainer.model.parameters()), float("nan"))

    with epochs(after=ruin), refused(NumericalError, 2, 5):
        finish(tmp_path, epochs=5, evaluate_every=5, statistics_every=0)
    assert checkpoints.read(tmp_path / "last.pt").meta["epoch"] == 1


def test_groups_and_memory_bank_are_in_the_history(tmp_path):
    history = finish(tmp_path, **METHODS["gsa-gkp"])
    assert np.isnan(history.group[0]).all()  # the first grouping is after epoch 2
    assert set(history.group[1].tolist()) <= {0.0, 1.0}
    assert history.n_groups[1:].tolist() == (history.group[1:].max(axis=1) + 1).tolist()
    assert history.n_banked.tolist() == [len(set(row)) for row in history.bank_epoch.tolist()]
    assert np.isnan(history.pull_share[:2]).all()
    assert np.isfinite(history.pull_share[2:]).all()
    assert ((history.clipped_share[2:] >= 0) & (history.clipped_share[2:] <= 1)).all()
    assert (history.bank_epoch <= history.epoch[:, None]).all()
    kept = {int(Path(f).stem.split("-")[1]) for f in files(tmp_path / "bank")}
    assert kept >= set(history.bank_epoch[-1].astype(int))  # what was left last goes at the next update
    assert len(kept) <= 3 + 1


def test_the_bank_takes_no_epoch_of_the_warm_up(tmp_path):
    history = finish(tmp_path, **{**METHODS["gsa-gkp"], "epochs": 8, "warmup_epochs": 3})
    assert np.isnan(history.bank_epoch[:3]).all()
    assert (history.bank_epoch[3:] >= 4).all()
    assert np.isnan(history.group[3]).all()
    assert np.isfinite(history.group[4]).all()  # two epochs are banked


def test_what_is_banked_has_the_running_statistics_of_its_weights(tmp_path):
    """They are those of all training samples in one batch, as plain PyTorch has them; the run's own are not."""
    finish(tmp_path, model="toys:batched", **METHODS["gsa-gkp"], snapshot_every=1)
    samples = blobs()
    for path in (tmp_path / "bank").iterdir():
        model = batched()
        model.load_state_dict(state(tmp_path / "bank", path.name))
        hidden = model[0](samples.inputs)
        torch.testing.assert_close(model[1].running_mean, hidden.mean(0), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(model[1].running_var, hidden.var(0), rtol=1e-5, atol=1e-6)
        own = state(tmp_path / "snapshots", path.name)
        assert torch.equal(own["0.weight"], model[0].weight)
        assert not torch.allclose(own["1.running_var"], model[1].running_var, rtol=0.01)


def test_without_a_linear_layer_at_the_end_the_history_has_no_feature_quality(tmp_path):
    history = finish(tmp_path, model="toys:bare")
    assert np.isnan(history.quality).all()
    assert np.isfinite(history.eval_loss_per_class).all()


def test_a_monitor_writes_a_series_beside_the_run_and_changes_nothing_of_it(tmp_path, monkeypatch):
    plain = finish(tmp_path / "plain")
    finish(tmp_path / "short", monitor=True)
    assert store.load(tmp_path / "short" / "monitor.h5").epoch.tolist() == [0]  # it ends before the twentieth epoch
    monkeypatch.setattr("landscape.analyses.monitor.EPOCHS", 1)
    finish(tmp_path / "watched", monitor=True)
    for name in ("last.pt", "state.pt"):
        a, b = (checkpoints.read(tmp_path / run / name).state for run in ("plain", "watched"))
        for key in (key for key in a if "seconds" not in key):
            np.testing.assert_array_equal(a[key], b[key], err_msg=f"{name}: {key}")
    found = store.load(tmp_path / "watched" / "monitor.h5")
    assert found.parts == ("all", *plain.parts)
    assert found.epoch.tolist() == [0, 1, 2]
    assert found.training_step.tolist() == [0, 4, 8]
    np.testing.assert_array_equal(found.learning_rate[1:], plain.learning_rate)
