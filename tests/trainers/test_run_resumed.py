"""Runs that were interrupted, killed, or met a full disk go on as if nothing had happened."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from runs import METHODS, WITH_TOYS, files, same, state
from toys import begin, blobs, finish

from landscape.cli import main
from landscape.errors import StoreError
from landscape.networks import checkpoints
from trainers import loop

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
