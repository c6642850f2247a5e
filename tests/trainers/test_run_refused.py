"""What a run cannot be made of, and what it says of what it could not do."""

import contextlib
import dataclasses
import re

import numpy as np
import pytest
import torch
import toys
from refusals import refused
from runs import METHODS, files
from toys import begin, blobs, finish

from landscape.cli import main
from landscape.errors import DataError, InputError, NumericalError
from landscape.networks import checkpoints, models
from trainers import data, gkp, grouped, run

# What is refused --------------------------------------------------------------------------------------------------


def test_a_diverged_run_leaves_the_earlier_one_as_it_was(tmp_path):
    (tmp_path / "last.pt").write_bytes(b"precious")
    with refused(NumericalError, 1, 2):
        finish(tmp_path, lr=1e30, warmup_epochs=0, overwrite=True)
    assert files(tmp_path) == ["last.pt"]
    assert (tmp_path / "last.pt").read_bytes() == b"precious"


def test_a_run_that_diverges_late_keeps_its_last_good_epoch(tmp_path, epochs):
    def ruin(trainer):
        if trainer.epoch == 2:
            torch.nn.init.constant_(next(trainer.model.parameters()), float("nan"))

    with epochs(after=ruin), refused(NumericalError, 2, 3):
        finish(tmp_path, epochs=3)
    assert checkpoints.read(tmp_path / "last.pt").meta["epoch"] == 1


def test_test_samples_of_another_shape_are_refused_before_the_first_step(tmp_path):
    longer = blobs((4, 4, 1), seed=1, split="test")
    longer = dataclasses.replace(longer, inputs=torch.zeros(9, 6))
    recipe, loaded = data.fitted(toys.recipe(), blobs(), longer)
    with refused(InputError, "(2, 6)", "test samples of blobs"):
        run.Run(recipe, loaded, tmp_path, method="ce", model=toys.layered(), device="cpu")


def test_more_groups_than_classes_are_refused(tmp_path):
    with refused(InputError, 3, groups=4):
        begin(tmp_path, gkp=True, epochs=8)


def test_a_model_whose_samples_meet_in_eval_mode_is_refused_for_gkp_before_the_first_step(tmp_path):
    with refused(InputError, "1", "track_running_stats", gkp=True):
        begin(tmp_path, model="toys:untracked", **METHODS["gsa-gkp"])
    assert files(tmp_path) == []


@pytest.mark.parametrize("groups", [1, 3])
def test_one_group_and_as_many_as_classes_work_with_a_class_of_one_sample(tmp_path, groups, qualities):
    """Class c is best in epoch c."""
    qualities(np.eye(8, 3))
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
    with refused(InputError, sharpness="gsa", gkp=True):
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


def test_fewer_groups_than_asked_for_are_said(tmp_path, qualities, caplog):
    """Every class is best in the latest epoch: all share one encoder."""
    qualities(np.outer(np.arange(100), np.ones(3)))
    history = finish(tmp_path, **METHODS["gsa-gkp"])
    assert (history.group[-1] == 0).all()
    assert history.n_banked.tolist() == [1] * 6
    assert history.n_groups[1:].tolist() == [1] * 5
    assert history.pull_share[2:].tolist() == [0] * 4
    assert "after epoch 2 the classes fall into 1 of groups=2" in caplog.messages[0]


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("preservation", [1.0, 1e12])
def test_a_pull_that_is_too_steep_for_the_learning_rate_is_said(tmp_path, qualities, caplog, preservation, nesterov):
    """Each class is best in an epoch of its own."""
    qualities([*np.eye(3), *np.zeros((9, 3))])
    steep = preservation > 1e6
    with refused(NumericalError, "preservation") if steep else contextlib.nullcontext():
        finish(tmp_path, **METHODS["gsa-gkp"], preservation=preservation, nesterov=nesterov)
    told = [m for m in caplog.messages if f"preservation, now {preservation:g}" in m]
    assert len(told) >= 1 if steep else told == []
    for message in told:
        rate = float(re.search(r"steps of (\S+) with", message)[1])
        most = float(re.search(r"above the (\S+) that", message)[1])
        assert most == pytest.approx(3.8 / rate / (2.8 if nesterov else 1), rel=0.01)


@pytest.mark.parametrize("momentum", [0.3, 0.9])
@pytest.mark.parametrize("nesterov", [False, True])
def test_the_steepest_parabola_is_that_on_which_sgd_begins_to_diverge(momentum, nesterov):
    lengths = []
    for factor in (0.9, 1.1):
        x = torch.ones((), dtype=torch.float64, requires_grad=True)
        sgd = torch.optim.SGD([x], lr=0.2, momentum=momentum, nesterov=nesterov)
        curvature = factor * grouped.steepest(0.2, momentum, nesterov=nesterov)
        for _ in range(300):
            sgd.zero_grad()
            (curvature / 2 * x**2).backward()
            sgd.step()
        lengths.append(x.detach().abs().item())
    assert lengths[0] < 1e-5
    assert lengths[1] > 1e5


def test_the_only_grouping_is_repeated_until_there_are_several_groups(tmp_path, qualities):
    """All classes are best in epochs 1 to 4, the first alone in epoch 5, the second alone in epoch 6."""
    qualities([*np.outer(np.arange(1, 5), np.ones(3)), [9, 0, 0], [0, 9, 0], *np.zeros((2, 3))])
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
    with pytest.raises(InputError, match="three augmented views"):
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
    with refused(DataError, 1, 15, 3):
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


@pytest.mark.parametrize(("model", "said"), [("toys:layered", 1), ("toys:bare", 1), (f"{__name__}:of_angles", 0)])
def test_margins_between_angles_on_logits_that_may_be_none_are_said(tmp_path, model, said, caplog):
    begin(tmp_path, loss="ldam", model=model).close()
    found = [m for m in caplog.messages if "loss='ldam' expects logits that are scaled cosines" in m]
    assert len(found) == said


def test_splits_with_other_classes_are_refused(tmp_path):
    with refused(DataError, "both"):
        begin(tmp_path, dataset=f"{__name__}:renamed")


def test_tensorboard_that_is_not_installed_is_named(tmp_path, without):
    without("torch.utils.tensorboard")
    with refused(InputError, tensorboard=True):
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
