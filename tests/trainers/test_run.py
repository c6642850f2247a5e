"""A run's folder: what it holds, how it goes on after an interruption, and what it refuses."""

import csv
import dataclasses
import errno
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from ranks import variables
from toys import CPU, batched, begin, blobs, finish, recipe, vectors

from landscape.cli import main
from landscape.data import datasets
from landscape.errors import DataError, InputError, NumericalError, StoreError
from landscape.networks import checkpoints, class_means, models
from landscape.objective.loading import load_objective
from landscape.results import History, store
from trainers import batches, commands, evaluation, gkp, loop, methods, recipes

GROUPED = {"groups": 2, "epochs": 6, "group_after": 0.4, "regroup_every": 0.3, "warmup_epochs": 0}
METHODS = {
    "ce": {},
    "sam": {"sharpness": "sam"},
    "gsa-gkp": {"sharpness": "gsa", "gkp": True, **GROUPED},
    "drw": {"reweight": "drw"},
}
HERE = Path(__file__).parents[1]
WITH_TOYS = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE.parent), str(HERE)]), "OMP_NUM_THREADS": "1"}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def files(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file() and p.name != ".lock")


def state(folder, name="state.pt"):
    return checkpoints.read(folder / name).state


def command(*words):
    return main(["train", *map(str, words)])


def digits(out, *words):
    epochs = () if "--epochs" in words else ("--epochs", 1)
    return command("ce", "--dataset", "digits-lt", *epochs, "-o", out, *words)


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
        assert objective.partition.counts.tolist() == [9, 5, 1]


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


def test_weights_that_are_not_finite_are_found_in_an_epoch_that_measures_nothing(tmp_path, monkeypatch):
    run_epoch = loop.Trainer.run_epoch

    def ruined(self, progress):
        row = run_epoch(self, progress)
        if self.epoch == 2:
            with torch.no_grad():
                next(self.model.parameters()).fill_(float("nan"))
        return row

    monkeypatch.setattr(loop.Trainer, "run_epoch", ruined)
    with pytest.raises(NumericalError, match="weights are not finite after epoch 2 of 5"):
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
    history = finish(tmp_path, model=f"{__name__}:bare")
    assert np.isnan(history.quality).all()
    assert np.isfinite(history.eval_loss_per_class).all()


class Bare(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(4, 3))

    def forward(self, x):
        return x @ self.weight


def bare():
    return Bare()


# Going on ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("after", [1, 3])
def test_an_interrupted_run_goes_on_bit_for_bit(tmp_path, name, after, monkeypatch):
    options = {"epochs": 6, "snapshot_every": 2, "cosines_every": 2, **METHODS[name]}
    whole = finish(tmp_path / "whole", **options)
    run_epoch = loop.Trainer.run_epoch

    def cut(self, progress):
        if self.epoch == after:
            self.model(blobs().inputs)  # the middle of an epoch: something has changed already
            raise KeyboardInterrupt
        return run_epoch(self, progress)

    monkeypatch.setattr(loop.Trainer, "run_epoch", cut)
    with pytest.raises(KeyboardInterrupt, match=f"interrupted after {after} of 6 epochs: the same command goes on"):
        finish(tmp_path / "cut", **options)
    monkeypatch.undo()
    again = begin(tmp_path / "cut", **options)
    assert (again.resumed, again.trainer.epoch) == (True, after)
    again.train()
    found = again.history()
    again.close()
    assert files(tmp_path / "cut") == files(tmp_path / "whole")
    for file in files(tmp_path / "whole"):
        if file.endswith(".pt") and file != "state.pt":
            assert same(state(tmp_path / "cut", file), state(tmp_path / "whole", file)), file
    for field in ("train_loss", "test_accuracy_per_class", "quality", "bank_epoch", "group", "gradient_cosine"):
        np.testing.assert_array_equal(getattr(found, field), getattr(whole, field))


def test_an_interruption_before_the_first_epoch_leaves_nothing(tmp_path, monkeypatch):
    def cut(self, progress):
        raise KeyboardInterrupt

    monkeypatch.setattr(loop.Trainer, "run_epoch", cut)
    with pytest.raises(KeyboardInterrupt, match="before the first epoch was done: nothing is kept"):
        finish(tmp_path)
    assert files(tmp_path) == []


def test_an_interrupted_replacement_goes_on_without_overwrite_as_it_says(tmp_path, monkeypatch):
    finish(tmp_path, lr=0.2)
    run_epoch = loop.Trainer.run_epoch

    def cut(self, progress):
        if self.epoch == 1:
            raise KeyboardInterrupt
        return run_epoch(self, progress)

    monkeypatch.setattr(loop.Trainer, "run_epoch", cut)
    with pytest.raises(KeyboardInterrupt, match="1 of 2 epochs: the same command without overwrite=True goes on"):
        finish(tmp_path, overwrite=True)
    monkeypatch.undo()
    assert finish(tmp_path).epoch.tolist() == [1, 2]


@pytest.mark.parametrize("name", ["last.pt", "history.h5", "state.pt"])
def test_a_full_disk_loses_the_epoch_only(tmp_path, name, monkeypatch):
    whole = finish(tmp_path / "whole", epochs=4)
    replace, writes = os.replace, []

    def full(source, target):
        if Path(target).name == name:
            writes.append(target)
            if len(writes) == 3:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return replace(source, target)

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(StoreError, match=r"cannot be written: No space left"):
        finish(tmp_path / "cut", epochs=4)
    monkeypatch.undo()
    assert checkpoints.read(tmp_path / "cut" / "state.pt").meta["epoch"] == 2
    found = finish(tmp_path / "cut", epochs=4)
    np.testing.assert_array_equal(found.train_loss, whole.train_loss)
    assert same(state(tmp_path / "cut", "last.pt"), state(tmp_path / "whole", "last.pt"))


HALTING = """
import sys, time
from landscape.cli import main
from trainers import loop

run_epoch = loop.Trainer.run_epoch

def halting(self, progress):
    if self.epoch == 3:
        print("three epochs are done", flush=True)
        time.sleep(300)
    return run_epoch(self, progress)

loop.Trainer.run_epoch = halting
sys.exit(main())
"""


@pytest.mark.parametrize("kill", [signal.SIGINT, signal.SIGKILL])
def test_a_killed_process_goes_on(tmp_path, kill):
    words = [
        "train", "gsa-gkp", "--dataset", "toys:vectors", "--model", "toys:layered", "--epochs", "6", "--groups", "2",
        "--group-after", "0.4", "--batch-size", "4", "--augment", "none", "--device", "cpu", "-o",
        str(tmp_path / "cut"),
    ]  # fmt: skip
    started = subprocess.Popen(
        [sys.executable, "-c", HALTING, *words],
        env=WITH_TOYS,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    said = started.stdout.readline()
    started.send_signal(kill)
    _, error = started.communicate(timeout=60)
    assert said == "three epochs are done\n", error
    assert started.returncode == (130 if kill == signal.SIGINT else -9)
    assert kill != signal.SIGINT or "interrupted after 3 of 6 epochs" in error.splitlines()[-1]
    assert main([*words, "-q"]) == 0
    words[-1] = str(tmp_path / "whole")
    assert main([*words, "-q"]) == 0
    assert same(state(tmp_path / "cut", "last.pt"), state(tmp_path / "whole", "last.pt"))


# What is refused --------------------------------------------------------------------------------------------------


def test_a_diverged_run_leaves_the_earlier_one_as_it_was(tmp_path):
    (tmp_path / "last.pt").write_bytes(b"precious")
    with pytest.raises(NumericalError, match="not finite in epoch 1 of 2"):
        finish(tmp_path, lr=1e30, warmup_epochs=0, overwrite=True)
    assert files(tmp_path) == ["last.pt"]
    assert (tmp_path / "last.pt").read_bytes() == b"precious"


def test_a_run_that_diverges_late_keeps_its_last_good_epoch(tmp_path, monkeypatch):
    run_epoch = loop.Trainer.run_epoch

    def ruined(self, progress):
        row = run_epoch(self, progress)
        if self.epoch == 2:
            with torch.no_grad():
                next(self.model.parameters()).fill_(float("nan"))
        return row

    monkeypatch.setattr(loop.Trainer, "run_epoch", ruined)
    with pytest.raises(NumericalError, match="the test loss is not finite after epoch 2 of 3"):
        finish(tmp_path, epochs=3)
    assert checkpoints.read(tmp_path / "last.pt").meta["epoch"] == 1


def test_more_groups_than_classes_are_refused(tmp_path):
    with pytest.raises(InputError, match="groups=4 are more than the 3 classes of"):
        begin(tmp_path, gkp=True, epochs=8)


@pytest.mark.parametrize("groups", [1, 3])
def test_one_group_and_as_many_as_classes_work_with_a_class_of_one_sample(tmp_path, groups, monkeypatch):
    """Class c is best in epoch c."""
    measure, best = class_means.feature_quality, iter(np.eye(8, 3))

    def peaks(*arguments, **options):
        return dataclasses.replace(measure(*arguments, **options), quality=next(best))

    monkeypatch.setattr(class_means, "feature_quality", peaks)
    history = finish(tmp_path, **{**METHODS["gsa-gkp"], "groups": groups, "epochs": 8, "batch_size": 3})
    assert np.isfinite(history.train_loss).all()
    assert history.group[-1].max() == groups - 1


def with_a_gap(split):
    """The second of three classes has no training samples, the third none that are tested."""
    samples = blobs((9, 0, 5) if split == "train" else (4, 4, 0), seed=int(split == "test"))
    pairs = Pairs(zip(samples.inputs, samples.labels.tolist(), strict=True))
    pairs.classes, pairs.class_counts = ["a", "b", "c"], [9, 0, 5]
    return pairs


def without_the_last(split):
    pairs = with_a_gap("test")
    pairs.class_counts = [4, 4, 0]
    return pairs


@pytest.mark.parametrize("dataset", [with_a_gap, without_the_last])
def test_a_class_without_training_samples_is_trained_around_but_cannot_be_grouped(tmp_path, dataset):
    options = {"dataset": f"{__name__}:{dataset.__name__}", "model": "toys:smooth"}
    history = finish(tmp_path / "ce", **options)
    assert (history.train_counts == 0).sum() == 1
    right = (
        history.eval_accuracy_per_class[-1][history.train_counts > 0] @ history.train_counts[history.train_counts > 0]
    )
    expected = right / history.train_counts.sum()
    assert checkpoints.read(tmp_path / "ce" / "last.pt").meta["train_accuracy"] == pytest.approx(expected)
    with pytest.raises(
        InputError, match=r"class \d \([bc]\) of .* has no training samples: sharpness='gsa' and gkp=True"
    ):
        begin(tmp_path / "gsa", sharpness="gsa", groups=2, epochs=6, **options)
    assert not (tmp_path / "gsa").exists()


@pytest.mark.parametrize(("fisher_loss", "tau"), [("run", 1.0), ("ce", 0.0)])
def test_the_fisher_information_is_of_the_loss_of_the_run(tmp_path, fisher_loss, tau, monkeypatch):
    """Logit adjustment: the logits plus tau times the logarithm of each class's share."""
    taken = []
    measure = gkp.group_fisher

    def watched(*arguments, **options):
        taken.append(options["loss"])
        return measure(*arguments, **options)

    monkeypatch.setattr(gkp, "group_fisher", watched)
    finish(tmp_path, loss="logit-adjust", fisher_loss=fisher_loss, **METHODS["gsa-gkp"])
    logits, labels = torch.randn(4, 3), torch.tensor([0, 1, 2, 2])
    shares = torch.tensor([9.0, 5, 1]) / 15
    expected = torch.nn.functional.cross_entropy(logits + tau * shares.log(), labels, reduction="none")
    torch.testing.assert_close(taken[-1](logits, labels), expected)


def test_fewer_groups_than_asked_for_are_said(tmp_path, monkeypatch, caplog):
    """Every class is best in the latest epoch: all share one encoder."""
    rising = iter(range(100))
    measure = class_means.feature_quality

    def rises(*arguments, **options):
        return dataclasses.replace(measure(*arguments, **options), quality=np.full(3, float(next(rising))))

    monkeypatch.setattr(class_means, "feature_quality", rises)
    history = finish(tmp_path, **METHODS["gsa-gkp"])
    assert (history.group[-1] == 0).all()
    assert history.n_banked.tolist() == [1] * 6
    assert history.n_groups[1:].tolist() == [1] * 5
    assert history.pull_share[2:].tolist() == [0] * 4
    assert "after epoch 2 the classes fall into 1 of groups=2" in caplog.messages[0]


def test_the_only_grouping_is_repeated_until_there_are_several_groups(tmp_path, monkeypatch):
    """All classes are best in epochs 1 to 4, the first alone in epoch 5, the second alone in epoch 6."""
    rows = iter([*np.outer(np.arange(1, 5), np.ones(3)), [9, 0, 0], [0, 9, 0], *np.zeros((2, 3))])
    measure = class_means.feature_quality

    def settles(*arguments, **options):
        return dataclasses.replace(measure(*arguments, **options), quality=np.array(next(rows), dtype=float))

    monkeypatch.setattr(class_means, "feature_quality", settles)
    history = finish(tmp_path, **{**METHODS["gsa-gkp"], "epochs": 8, "group_after": 0.0, "regroup_every": 0.0})
    assert history.n_groups.tolist()[1:] == [1, 1, 1, 2, 2, 2, 2]
    assert history.group[4:].tolist() == [history.group[4].tolist()] * 4  # once there are several they are kept
    assert history.group[4, 0] != history.group[4, 1]


def test_a_run_whose_gkp_did_nothing_says_so_at_its_end_and_in_info(tmp_path, capsys):
    words = ["train", "gsa-gkp", "--dataset", "toys:vectors", "--model", "toys:layered", "--groups", "1", "--augment"]
    words += ["none", "--epochs", "5", "--batch-size", "4", "--device", "cpu", "-o", str(tmp_path)]
    assert main(words) == 0
    ended = capsys.readouterr().out
    assert main(["info", str(tmp_path / "history.h5")]) == 0
    for text in (ended, capsys.readouterr().out):
        assert "attention: all classes are in one group at the end" in text
        assert "attention: GKP did nothing: the share of its pull in the gradient was 0 in all epochs" in text


def test_bcl_needs_images(tmp_path):
    with pytest.raises(InputError, match="has no uint8 images to augment"):
        begin(tmp_path, loss="bcl", augment=None)


def renamed(split):
    samples = blobs()
    pairs = Pairs(zip(samples.inputs, samples.labels.tolist(), strict=True))
    pairs.class_counts = [9, 5, 1]
    pairs.classes = ["a", "b", "c"] if split == "test" else ["a", "b", "d"]
    return pairs


class Pairs(list):
    """A data set that may bear names."""


def with_a_hole(split):
    samples = blobs()
    if split == "test":
        samples.inputs[3, 1] = float("nan")
    return samples.inputs, torch.from_numpy(samples.labels)


def test_inputs_that_are_not_finite_are_named(tmp_path):
    with pytest.raises(
        DataError, match=r"1 of 15 samples of .* \(test\) hold what is not finite, first sample 3: leave"
    ):
        begin(tmp_path, dataset=f"{__name__}:with_a_hole")


def numbers(split):
    """Inputs of no axis but that of the samples."""
    return blobs().inputs[:, 0], torch.from_numpy(blobs().labels)


def test_inputs_that_are_single_numbers_are_looked_through_too(tmp_path):
    begin(tmp_path, dataset=f"{__name__}:numbers", model=f"{__name__}:of_numbers").close()


def of_numbers():
    return torch.nn.Sequential(torch.nn.Unflatten(0, (-1, 1)), torch.nn.Linear(1, 3))


def of_angles():
    return torch.nn.Sequential(torch.nn.Linear(4, 8), models.NormedLinear(8, 3))


@pytest.mark.parametrize(
    ("model", "said"), [("toys:layered", 1), (f"{__name__}:bare", 1), (f"{__name__}:of_angles", 0)]
)
def test_margins_between_angles_on_logits_that_may_be_none_are_said(tmp_path, model, said, caplog):
    begin(tmp_path, loss="ldam", model=model).close()
    found = [m for m in caplog.messages if "loss='ldam' expects logits that are scaled cosines" in m]
    assert len(found) == said


def test_splits_with_other_classes_are_refused(tmp_path):
    with pytest.raises(DataError, match="both must have the same"):
        begin(tmp_path, dataset=f"{__name__}:renamed")


def test_tensorboard_that_is_not_installed_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(InputError, match="tensorboard=True needs the package tensorboard: pip install tensorboard"):
        begin(tmp_path, tensorboard=True)


def test_tensorboard_gets_each_epochs_scalars(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    history = finish(tmp_path, tensorboard=True)
    read = EventAccumulator(str(tmp_path / "tensorboard"))
    read.Reload()
    for name in ("train_loss", "test_accuracy", "learning_rate"):
        found = read.Scalars(name)
        assert [event.step for event in found] == [1, 2]
        np.testing.assert_allclose([event.value for event in found], getattr(history, name), rtol=1e-6)  # float32
    assert "validation_accuracy" not in read.Tags()["scalars"]  # nan: there is no validation


# The command ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "ce"
    assert digits(folder, "--epochs", 2, "--seed", 3, "--imbalance", 10, "--data-seed", 1, "-q") == 0
    return folder


def test_the_checkpoint_describes_its_run(run_folder):
    meta = checkpoints.read(run_folder / "last.pt").meta
    samples = datasets.load(**meta["dataset"])
    expected = {
        "model": "small-resnet",
        "n_classes": 10,
        "in_channels": 1,
        "cosine": False,
        "data_sha256": samples.fingerprint,
        "normalisation": [list(samples.mean), list(samples.std)],
        "class_counts": datasets.long_tailed_counts(124, 10, 10).tolist(),
        "class_names": list("0123456789"),
        "method": "ce",
        "loss": "ce",
        "epoch": 2,
        "seed": 3,
    }
    assert {name: meta[name] for name in expected} == expected
    assert {"imbalance": 10.0, "seed": 1}.items() <= meta["dataset"].items()
    assert {"epochs": 2, "batch_size": 32, "lr": 0.1, "augment": "none"}.items() <= meta["options"].items()
    assert meta["versions"].keys() == {"landscape", "torch", "numpy", "python"}


def test_a_training_by_hand_gives_the_commands_weights(run_folder):
    samples = datasets.load("digits-lt", imbalance=10, seed=1)
    chosen = methods.compose({}, config=run_folder / "config.toml")
    with loop.seeded(torch.device("cpu"), 3, loop.FIRST):
        model = models.build("small-resnet", 10, in_channels=1)
    trainer = loop.Trainer(chosen, model, samples, device=torch.device("cpu"))
    for _ in range(2):
        trainer.run_epoch()
    assert same(model.state_dict(), state(run_folder, "last.pt"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--dataset", "digits"], "no data set 'digits'"),
        ([], "there is no data: pass --dataset or --preset"),
        (["sgd", "--dataset", "digits-lt"], "no method 'sgd'; choose from ce, sam, gsa-gkp"),
        (["--preset", "mnist"], "no preset 'mnist'; choose from digits-lt, cifar10-lt"),
        (["--dataset", "digits-lt", "--model", "resnet33"], "no model 'resnet33'"),
        (["--dataset", "digits-lt", "--epochs", "0"], "--epochs must be at least 1, got 0"),
        (["ce", "--dataset", "digits-lt", "--rho", "0.1"], "--rho changes nothing without --sharpness sam"),
        (["--dataset", "digits-lt", "--imbalance", "-3"], "--imbalance must be a positive number"),
        (["--dataset", "digits-lt", "--augment", "crop-flop"], "crop-flop"),
        (["--dataset", "digits-lt", "--device", "abacus"], "--device abacus cannot be used here"),
        (["--dataset", "digits-lt", "--milestones", "a,b"], "'a,b' is not a list of numbers"),
        (["--dataset", "toys:vectors"], "--model small-resnet is for images (channels, height, width)"),
    ],
)
def test_a_wrong_option_ends_in_one_line_and_no_folder(words, message, tmp_path, capsys):
    assert command(*words, "-o", tmp_path / "run") == 2
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("landscape: error")]
    assert len(error) == 1
    assert message in error[0]
    assert not (tmp_path / "run").exists()


def test_a_folder_without_a_name_is_refused_which_would_be_the_current_one(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert digits("") == 2
    assert "the name of the folder is empty: pass a name, or . for the folder where you are" in capsys.readouterr().err
    assert files(tmp_path) == []


def test_a_finished_run_is_refused_before_anything_is_read(tmp_path, capsys):
    (tmp_path / "last.pt").write_bytes(b"precious")
    assert command("ce", "--dataset", "no-such-data", "-o", tmp_path) == 2
    assert f"{tmp_path / 'last.pt'} exists: pass --overwrite" in capsys.readouterr().err


def test_a_run_folder_that_cannot_be_made_is_refused_before_training(tmp_path, capsys):
    (tmp_path / "file").touch()
    assert digits(tmp_path / "file") == 2
    assert "cannot be the folder of a run" in capsys.readouterr().err


def test_the_summary_names_the_accuracies_and_the_next_command(tmp_path):
    found = CliRunner().invoke(
        commands.train, ["ce", "--dataset", "digits-lt", "--epochs", "1", "-o", str(tmp_path)], catch_exceptions=False
    )
    meta = checkpoints.read(tmp_path / "last.pt").meta
    assert f"test accuracy {100 * meta['test_accuracy']:.2f} %: many " in found.output
    assert f"landscape hessian --ckpt {tmp_path / 'last.pt'} --per-class" in found.output


def test_quiet_prints_nothing(tmp_path, capfd):
    assert digits(tmp_path, "-q") == 0
    assert capfd.readouterr() == ("", "")


def test_accuracies_by_frequency_weigh_samples():
    history = History(
        **{name: np.zeros(1) for name in SINGLE},
        **{name: np.zeros((1, 4)) for name in PER_CLASS},
        parts=tuple("abcd"),
        train_counts=np.array([500, 101, 100, 5]),
        test_counts=np.array([10, 30, 20, 0]),
        test_accuracy_per_class=np.array([[0.5, 1.0, 0.25, np.nan]]),
        method="ce",
    )
    found = evaluation.by_frequency(history)
    assert found[:3] == pytest.approx([40 / 60, 35 / 40, 0.25])
    assert np.isnan(found[3])


SINGLE = (
    "epoch", "seconds", "learning_rate", "train_loss", "train_accuracy", "test_loss", "test_accuracy",
    "validation_accuracy",
)  # fmt: skip
PER_CLASS = (
    "test_loss_per_class", "eval_loss_per_class", "eval_accuracy_per_class", "quality", "distance", "variance",
    "gradient_cosine", "bank_epoch", "group",
)  # fmt: skip


# Image files ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["ce", "gsa-gkp"])
def test_image_files_are_read_by_the_workers_in_training_and_out_of_it(tmp_path, method, monkeypatch):
    """Training, evaluations, settled statistics and Fisher information; the number of workers changes no bit."""
    rng = np.random.default_rng(0)
    for split, n in (("train", 14), ("test", 5)):
        for i in range(n):
            folder = tmp_path / "images" / split / "abc"[min(i // 5, 2) if n == 14 else i % 3]
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (9 + i, 12, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    asked = []
    loader = batches.DataLoader

    def watched(*arguments, **options):
        asked.append(options["num_workers"])
        return loader(*arguments, **options)

    monkeypatch.setattr(batches, "DataLoader", watched)
    words = [method, "--dataset", "image-folder", "--data-root", tmp_path / "images", "--image-size", 8, "--model"]
    words += ["toys:convolutional", "--epochs", 3, "--warmup-epochs", 0, "--batch-size", 5, "--seed", 1, "-q"]
    words += ["--groups", 2] if method == "gsa-gkp" else []
    for workers in (0, 2):
        asked.clear()
        assert command(*words, "--workers", workers, "-o", tmp_path / str(workers)) == 0
        history = store.load(tmp_path / str(workers) / "history.h5")
        of_groups = 2 * int(history.n_groups[-1]) if method == "gsa-gkp" else 0  # statistics, squared gradients
        assert asked == [workers] * (3 * 5 + of_groups)
    assert same(state(tmp_path / "0", "last.pt"), state(tmp_path / "2", "last.pt"))


# Ranks ------------------------------------------------------------------------------------------------------------

SHARED = {
    "ldam-drw": ["ldam-drw", "--model", "toys:smooth"],
    "sam": ["sam", "--model", "toys:smooth"],
    "gsa-gkp": ["gsa-gkp", "--model", "toys:smooth", "--groups", "2", "--group-after", "0.5"],
    "batch-norm": ["ce", "--model", "toys:batched", "--schedule", "constant", "--warmup-epochs", "0"],
}
OF_ALL = ["--dataset", "toys:vectors", "--epochs", "5", "--batch-size", "6", "--device", "cpu", "-q", "-o"]
RANK = """
import os, sys
import torch
from landscape.cli import main
from trainers import run

close = run.Run.close

def kept(self):
    torch.save(self.trainer.model.state_dict(), f"{self.out}-{os.environ['RANK']}.pt")
    close(self)

run.Run.close = kept
for line in sys.argv[1:]:
    os.environ["MASTER_PORT"], *words = line.split()
    if main(words):
        sys.exit(f"failed: {line}")
"""


@pytest.fixture(scope="module")
def two_ranks(made_once):
    """The folder in which two processes have trained all of `SHARED`, and left the model of each rank."""

    def train(folder):
        lines = [
            " ".join([variables()[0]["MASTER_PORT"], "train", *words, *OF_ALL, str(folder / name)])
            for name, words in SHARED.items()
        ]
        command = [sys.executable, "-c", RANK, *lines]
        pipes = {"stderr": subprocess.PIPE, "text": True}
        started = [subprocess.Popen(command, env=WITH_TOYS | own, **pipes) for own in variables()]
        for rank in started:
            _, error = rank.communicate(timeout=120)
            assert rank.returncode == 0, error

    return made_once("ranks", train)


@pytest.mark.slow  # two processes that import torch
@pytest.mark.parametrize("name", ["ldam-drw", "sam", "gsa-gkp"])
def test_two_ranks_do_what_one_does(two_ranks, tmp_path, name):
    """Without batch norm and dropout a batch is the sum of its halves, whoever computes them."""
    assert main(["train", *SHARED[name], *OF_ALL, str(tmp_path)]) == 0
    one, two = state(tmp_path, "last.pt"), state(two_ranks / name, "last.pt")
    for tensor in one:
        torch.testing.assert_close(one[tensor], two[tensor], rtol=1e-4, atol=1e-5)
    assert files(tmp_path) == files(two_ranks / name)


@pytest.mark.slow
@pytest.mark.parametrize("name", SHARED)
def test_both_ranks_end_with_the_checkpoint(two_ranks, name):
    for rank in range(2):
        assert same(torch.load(two_ranks / f"{name}-{rank}.pt"), state(two_ranks / name, "last.pt"))


@pytest.mark.slow
def test_batch_norm_sees_its_ranks_slice_and_keeps_the_statistics_of_the_first(two_ranks):
    """Two copies in one process: shared weights, a slice of each batch and running statistics for each copy."""
    chosen = recipe(model="toys:batched", epochs=5, batch_size=6)
    inputs, labels = vectors("train")
    first, second = batched().train(), batched().train()
    weights = dict(first.named_parameters())
    options = {name: getattr(chosen, name) for name in ("lr", "momentum", "weight_decay")}
    optimizer = torch.optim.SGD(weights.values(), **options)
    apart = 0.0
    for epoch in range(5):
        with loop.seeded(CPU, chosen.seed, loop.SHUFFLE, epoch):
            order = torch.randperm(15)
        for batch in order.tensor_split(3):
            optimizer.zero_grad()
            for copy, mine in zip((first, second), batch.tensor_split(2), strict=True):
                logits = torch.func.functional_call(copy, weights, inputs[mine])
                (torch.nn.functional.cross_entropy(logits, labels[mine], reduction="sum") / len(batch)).backward()
            optimizer.step()
        theirs, ours = dict(second.named_buffers()), dict(first.named_buffers())
        apart = max(apart, max((ours[n] - b).abs().max().item() for n, b in theirs.items()))
        for name, buffer in theirs.items():
            buffer.copy_(ours[name])
    assert apart > 0.1  # the second rank's statistics were others
    found = state(two_ranks / "batch-norm", "last.pt")
    for name, expected in first.state_dict().items():
        torch.testing.assert_close(found[name], expected, rtol=1e-4, atol=1e-5)


# The demo ---------------------------------------------------------------------------------------------------------


def test_the_demo_leaves_a_result_and_a_figure_of_each_method_in_place_of_older_ones(tmp_path, monkeypatch):
    """Its commands run within this process here; that each has its own is what the next test is about."""

    def run(words, *, check):
        assert words[:3] == [sys.executable, "-m", "landscape"]
        less = ["--samples-per-class", "4", "--probes", "1", "--trace", "probes", "--backend", "reverse"]
        return subprocess.CompletedProcess(words, main(words[3:] + less * (words[3] == "hessian")))

    monkeypatch.setattr(commands, "subprocess", SimpleNamespace(run=run))
    folder = tmp_path / "my demo"
    (folder / "ce").mkdir(parents=True)
    older = {"ce/last.pt": b"old", "ce.h5": b"\x89HDF\r\n\x1a\nold", "ce.png": b"\x89PNG\r\n\x1a\nold"}
    for name, content in older.items():
        (folder / name).write_bytes(content)
    found = CliRunner().invoke(
        commands.demo, ["--out", str(folder), "--epochs", "1", "--steps", "2", "--methods", "ce,sam"]
    )
    assert found.exit_code == 0, found.output
    assert found.output.count("$ landscape") == 7
    assert store.load(folder / "ce.h5").parts == tuple("0123456789")
    assert store.load(folder / "sam.h5").provenance["method"] == "sam"
    assert all((folder / name).read_bytes() != content for name, content in older.items())


def test_the_demo_stops_where_a_command_fails_and_passes_its_exit_code_on(tmp_path):
    (tmp_path / "ce").touch()  # where the folder of the run should be
    found = CliRunner().invoke(commands.demo, ["--out", str(tmp_path)])
    assert found.exit_code == 2
    assert found.output.count("$ landscape") == 1
