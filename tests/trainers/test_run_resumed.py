"""Runs that were interrupted, killed, or met a full disk go on as if nothing had happened."""

import errno
import os
import signal
from pathlib import Path

import numpy as np
import pytest
from fresh import Program
from refusals import refused
from runs import METHODS, files, same, state
from toys import begin, blobs, finish

from landscape.analyses.monitor import Monitor
from landscape.cli import main
from landscape.errors import StoreError
from landscape.networks import checkpoints
from landscape.results import store

# Going on ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "after"), [("ce", 1), ("sam", 3), ("gsa-gkp", 1), ("gsa-gkp", 3), ("drw", 3)])
def test_an_interrupted_run_goes_on_bit_for_bit(tmp_path, name, after, epochs):
    options = {"epochs": 6, "snapshot_every": 2, "cosines_every": 2, **METHODS[name]}
    whole = finish(tmp_path / "whole", **options)

    def cut(trainer):
        if trainer.epoch == after:
            trainer.model(blobs().inputs)  # the middle of an epoch: something has changed already
            raise KeyboardInterrupt

    with epochs(before=cut), refused(KeyboardInterrupt, after, 6):
        finish(tmp_path / "cut", **options)
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


@pytest.fixture(scope="module")
def monitored(tmp_path_factory):
    """A run that nothing cuts, whose curvature is measured after each epoch: its folder and its history."""
    folder = tmp_path_factory.mktemp("monitored")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("landscape.analyses.monitor.EPOCHS", 1)
        return folder, finish(folder, monitor=True, warmup_epochs=1)


@pytest.mark.parametrize("at", [1, 2])
def test_a_measurement_of_the_curvature_that_was_cut_is_made_when_the_run_goes_on(at, monitored, tmp_path, monkeypatch):
    """The epoch is kept before it is measured."""
    monkeypatch.setattr("landscape.analyses.monitor.EPOCHS", 1)
    folder, whole = monitored
    step = Monitor.step

    def cut(self, steps, *, epoch):
        if epoch == at:
            raise KeyboardInterrupt
        return step(self, steps, epoch=epoch)

    monkeypatch.setattr(Monitor, "step", cut)
    with pytest.raises(KeyboardInterrupt):
        finish(tmp_path / "cut", monitor=True, warmup_epochs=1)
    monkeypatch.setattr(Monitor, "step", step)
    found = finish(tmp_path / "cut", monitor=True, warmup_epochs=1)
    np.testing.assert_array_equal(found.train_loss, whole.train_loss)
    series, expected = (store.load(run / "monitor.h5") for run in (tmp_path / "cut", folder))
    assert series.epoch.tolist() == expected.epoch.tolist() == [0, 1, 2]
    steps = series.training_step[1]  # of the warm-up; before the first one the rate is its own
    np.testing.assert_allclose(series.learning_rate, [whole.learning_rate[0] / steps, *whole.learning_rate])
    np.testing.assert_array_equal(series.lambda_max, expected.lambda_max)
    np.testing.assert_array_equal(series.learning_rate, expected.learning_rate)
    np.testing.assert_array_equal(series.edge, expected.edge)


def test_a_run_of_a_version_without_errors_of_losses_goes_on(tmp_path, epochs):
    whole = finish(tmp_path / "whole", epochs=3)

    def cut(trainer):
        if trainer.epoch == 2:
            raise KeyboardInterrupt

    with epochs(before=cut), pytest.raises(KeyboardInterrupt):
        finish(tmp_path / "cut", epochs=3)
    found = checkpoints.read(tmp_path / "cut" / "state.pt")
    known = {name: value for name, value in found.state.items() if not name.endswith("_stderr")}
    assert len(known) == len(found.state) - 3
    checkpoints.write(tmp_path / "cut" / "state.pt", known, found.meta)
    again = finish(tmp_path / "cut", epochs=3)
    for name in ("test_loss_stderr", "test_loss_per_class_stderr", "eval_loss_per_class_stderr"):
        errors = getattr(again, name)
        assert np.isnan(errors[:2]).all()
        np.testing.assert_array_equal(errors[2], getattr(whole, name)[2])
    np.testing.assert_array_equal(again.test_loss, whole.test_loss)


def test_an_interruption_before_the_first_epoch_leaves_nothing(tmp_path, epochs):
    def cut(trainer):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), epochs(before=cut):
        finish(tmp_path)
    assert files(tmp_path) == []


def test_an_interrupted_replacement_goes_on_without_overwrite_as_it_says(tmp_path, epochs):
    finish(tmp_path, lr=0.2)

    def cut(trainer):
        if trainer.epoch == 1:
            raise KeyboardInterrupt

    with epochs(before=cut), refused(KeyboardInterrupt, 1, 2, overwrite=True):
        finish(tmp_path, overwrite=True)
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
    started = Program(HALTING, *words)
    assert started.said("three epochs are done"), started.errors
    started.send(kill)
    code, _, error = started.ended()
    assert code == (130 if kill == signal.SIGINT else -9)
    assert kill != signal.SIGINT or "interrupted after 3 of 6 epochs" in error.splitlines()[-1]
    assert main([*words, "-q"]) == 0
    words[-1] = str(tmp_path / "whole")
    assert main([*words, "-q"]) == 0
    assert same(state(tmp_path / "cut", "last.pt"), state(tmp_path / "whole", "last.pt"))


@pytest.mark.parametrize("damage", ["missing", "random bytes"])
@pytest.mark.parametrize("name", ["last.pt", "history.csv", "history.h5"])
def test_a_file_that_was_lost_is_written_again(tmp_path, name, damage, caplog):
    finish(tmp_path, epochs=2)
    file = tmp_path / name
    before = file.read_bytes()
    file.unlink()
    if damage == "random bytes":
        file.write_bytes(bytes(range(256)))
    finish(tmp_path, epochs=2)
    assert f"{file} is written again from state.pt: " in caplog.text
    caplog.clear()
    if name != "history.h5":
        assert file.read_bytes() == before
    assert store.load(tmp_path / "history.h5").train_loss.shape == (2,)
    finish(tmp_path, epochs=2)
    assert not caplog.text
