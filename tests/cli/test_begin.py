"""Which checkpoints one word of the command line means, in which order, and where the result goes."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from refusals import refused

from landscape.cli.begin import begin, result_path, told_draws
from landscape.errors import InputError
from landscape.networks import checkpoints, models
from landscape.objective.objective import Objective
from landscape.objective.runs import checkpoint_list, path_of_training


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """Writes a checkpoint by its name below an empty current folder; `epoch` is what it says of itself."""
    monkeypatch.chdir(tmp_path)

    def keep(name, epoch=None, weight=None):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        number.append(1)
        weights = {"weight": torch.full((2,), float(len(number) if weight is None else weight))}
        checkpoints.write(name, weights, {} if epoch is None else {"epoch": epoch})

    number = []

    return keep


def named(text):
    return [(str(path), epoch) for path, epoch in checkpoint_list(text)]


def test_what_a_checkpoint_says_of_itself_wins_over_its_name(kept):
    for name, epoch in (("run/epoch-0003.pt", 1), ("run/epoch-0001.pt", 2), ("run/first.pt", 0)):
        kept(name, epoch)
    assert named("run/*.pt") == [("run/first.pt", 0), ("run/epoch-0003.pt", 1), ("run/epoch-0001.pt", 2)]


def test_numbers_in_names_are_epochs_in_their_natural_order(kept):
    for name in ("net-10.pt", "net-9.pt", "net-100.pt"):
        kept(name)
    assert named("net-*.pt") == [("net-9.pt", 9), ("net-10.pt", 10), ("net-100.pt", 100)]
    torch.save({"weight": torch.ones(2)}, "model_epoch7_acc76.pth.tar")
    assert named("model_epoch7_acc76.pth.tar") == [("model_epoch7_acc76.pth.tar", 7)]


def test_the_number_of_a_single_file_is_no_epoch_and_unknown_epochs_come_last(kept):
    kept("resnet-32.pt")
    ((_, epoch),) = checkpoint_list("resnet-32.pt")
    assert math.isnan(epoch)
    for name in ("w10-a.pt", "w9-a.pt"):
        kept(name)
    assert [name for name, _ in named("w*.pt")] == ["w9-a.pt", "w10-a.pt"]
    kept("a-final.pt")
    kept("b-2.pt", 2)
    assert [name for name, _ in named("[ab]-*.pt")] == ["b-2.pt", "a-final.pt"]


def test_the_folder_of_a_run_means_its_snapshots_or_else_its_last_checkpoint(kept):
    kept("run/last.pt", 2)
    kept("run/state.pt", 2)
    assert named("run") == [("run/last.pt", 2)]
    for epoch in range(3):
        kept(f"run/snapshots/epoch-{epoch:04d}.pt", epoch)
    Path("run/snapshots/.landscape-1.pt").write_text("a file in work")
    expected = [(f"run/snapshots/epoch-{epoch:04d}.pt", epoch) for epoch in range(3)]
    assert named("run") == named("run/snapshots") == named("run/**/epoch-*.pt") == expected


@pytest.mark.parametrize("best", ["model_best.pt", "a_best.pt", "zz.pt", "checkpoint_best.pt", "last.pt"])
@pytest.mark.parametrize("epoch", [None, 4])
def test_a_copy_of_another_checkpoint_is_left_out(kept, best, epoch):
    for e in (0, 2, 4, 6):
        kept(f"run/checkpoint_{e:04d}.pt", e, weight=e)
    kept(f"run/{best}", epoch, weight=4)
    expected = [(f"run/checkpoint_{e:04d}.pt", e) for e in (0, 2, 4, 6)]
    if best == "last.pt":  # of a folder without snapshots it is what is meant
        assert len(named("run")) == 1
    else:
        assert named("run") == expected
    assert named("run/*.pt") == expected
    assert [(str(p), e) for p, e in path_of_training("run/*.pt")] == expected


def test_equal_weights_of_two_epochs_are_two_checkpoints(kept):
    for e in (0, 1, 2):
        kept(f"run/net-{e}.pt", e, weight=1)
    assert [e for _, e in named("run/*.pt")] == [0, 1, 2]


def test_what_has_no_epoch_has_no_place_on_a_path(kept):
    for e in (0, 1, 2):
        kept(f"run/net-{e}.pt", e)
    kept("run/ema.pt")
    assert [e for _, e in named("run/*.pt")][:3] == [0, 1, 2]
    with refused(InputError, "run/ema.pt"):
        path_of_training("run/*.pt")
    kept("other/a.pt")
    kept("other/b.pt")
    assert len(path_of_training("other/*.pt")) == 2  # none says: the order of names


def test_a_name_with_brackets_is_a_name_first(kept):
    kept("net[1].pt", 5)
    assert named("net[1].pt") == [("net[1].pt", 5)]
    assert result_path(None, "net[1].pt", "features") == Path("net[1].features.h5")


def test_what_matches_nothing_is_refused_in_one_line(kept, tmp_path):
    with refused(InputError, "run/*.pt"):
        checkpoint_list("run/*.pt")
    with refused(InputError, "absent.pt"):
        checkpoint_list("absent.pt")
    (tmp_path / "empty").mkdir()
    with refused(InputError, "empty"):
        checkpoint_list("empty")
    (tmp_path / "empty" / "notes.pt").write_text("not a checkpoint")
    with refused(InputError, "notes.pt"):
        checkpoint_list("empty")


def test_a_result_lies_beside_what_it_is_of(kept):
    kept("run/last.pt", 2)
    assert result_path(None, "run/last.pt", "features") == Path("run/last.features.h5")
    assert result_path(None, "run", "features") == Path("run/features.h5")
    assert result_path(None, "run/snap*/*.pt", "features") == Path("run/features.h5")
    assert result_path(None, "*.pt", "features") == Path("features.h5")
    assert result_path("x.h5", "run", "features") == Path("x.h5")


@pytest.mark.parametrize(
    ("used", "there", "absent"),
    [
        ((64, 50, 3), ["117", "177", "a (64 of 124)"], ["b", "c"]),
        ((64, 25, 1), ["90", "177", "each part"], ["(64"]),
        ((124, 50, 3), ["all 177"], ["rawn"]),
    ],
)
def test_samples_that_are_used_are_told_apart_from_those_that_were_drawn(used, there, absent):
    told = told_draws(("a", "b", "c"), np.array(used), np.array([124, 50, 3]), "by lot")
    words = told.replace(";", " ").replace(".", " ").split()
    assert all(text in told for text in there)
    assert not any(text in words or (len(text) > 1 and text in told) for text in absent)


def test_drawing_samples_takes_no_further_pass_over_all_of_them(tmp_path, monkeypatch):
    torch.manual_seed(0)
    torch.save(models.build("small-resnet", 10, in_channels=1).state_dict(), tmp_path / "net.pt")
    passed, logits = [], Objective.logits

    def counted(self, theta, inputs, fixed=None):
        passed.append(len(inputs))
        return logits(self, theta, inputs, fixed)

    monkeypatch.setattr(Objective, "logits", counted)
    given = {"ckpt": str(tmp_path / "net.pt"), "model": "small-resnet", "dataset": "digits-lt", "device": "cpu"}
    numbers = []
    for samples in (None, 20):
        passed.clear()
        with begin(**given, samples=samples, quiet=True, threads=1) as (objective, _):
            numbers.append(sum(passed))
        assert objective.counts.sum() == (417 if samples is None else 20)
    assert numbers[0] == numbers[1] >= 417
