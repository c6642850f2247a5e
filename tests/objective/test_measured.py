"""What tells a user's loss from others of its name, and from the losses of this package."""

from functools import partial

import pytest
import torch
from interruptions import Interrupting
from refusals import refused
from torch import nn
from torch.nn import functional as F

import landscape as ls
from landscape.errors import StoreError

X = torch.randn(12, 4, generator=torch.Generator().manual_seed(0))
TARGETS = {
    "classes": torch.arange(12) % 3,
    "numbers": torch.randn(12, 3, generator=torch.Generator().manual_seed(1)),
    "shares": torch.rand(12, 3, generator=torch.Generator().manual_seed(2)),
}


def objective(loss, kind="classes", seed=0, **options):
    torch.manual_seed(seed)
    layers = [nn.Linear(4, 3)] + [nn.Sigmoid()] * (kind == "shares")
    return ls.make_objective(nn.Sequential(*layers), (X, TARGETS[kind]), loss=loss, **options)


def focal(gamma):
    def loss(z, y):
        values = F.cross_entropy(z, y, reduction="none")
        return (1 - torch.exp(-values)) ** gamma * values

    return loss


class Huber:
    def __init__(self, delta):
        self.delta = delta

    def __call__(self, z, y):
        return F.huber_loss(z, y, reduction="none", delta=self.delta).mean(1)


def weighted(z, y, weight):
    return weight * F.binary_cross_entropy(z, y, reduction="none").mean(1)


LOSSES = {
    "a closure": (focal, "classes"),
    "an object": (Huber, "numbers"),
    "of probabilities": (lambda weight: partial(weighted, weight=weight), "shares"),
}


@pytest.mark.parametrize("name", LOSSES)
def test_losses_of_one_name_that_differ_are_told_apart_and_the_same_loss_is_known_again(name):
    make, kind = LOSSES[name]
    one, again, other = (objective(make(number), kind, seed=k) for k, number in enumerate((1.0, 1.0, 2.0)))
    assert one.source["loss"] == again.source["loss"] == other.source["loss"]
    assert one.source["loss_values"] == again.source["loss_values"] != other.source["loss_values"]
    assert objective(make(1.0), kind, dtype="float64").source["loss_values"] == one.source["loss_values"]


def test_a_loss_that_accepts_no_other_outputs_has_its_name_alone():
    def picky(z, y):
        if z.min() >= 0 and len(z) == 3:
            raise ValueError("these are not of the model")
        return F.cross_entropy(z, y, reduction="none")

    assert objective(picky).source["loss_values"] == []
    assert "loss_values" not in objective(None).source  # which no user wrote


@pytest.mark.parametrize(
    "loss", [nn.CrossEntropyLoss(reduction="none"), "torch.nn:CrossEntropyLoss(reduction='none', ignore_index=-1)"]
)
def test_the_module_of_the_cross_entropy_is_the_loss_that_classes_have_by_default(loss):
    found, default = objective(loss), objective(None)
    assert found.loss is default.loss
    assert found.source == default.source


class Halved(nn.CrossEntropyLoss):
    def forward(self, z, y):
        return super().forward(z, y) / 2


@pytest.mark.parametrize(
    "loss",
    [
        nn.CrossEntropyLoss(reduction="none", weight=torch.ones(3)),
        nn.CrossEntropyLoss(reduction="none", label_smoothing=0.1),
        nn.CrossEntropyLoss(reduction="none", ignore_index=1),
        Halved(reduction="none"),
    ],
)
def test_another_cross_entropy_is_the_users_own_loss(loss):
    found = objective(loss)
    assert found.loss is loss
    assert found.source["loss"] == type(loss).__name__


def test_the_module_of_the_cross_entropy_of_shares_keeps_its_targets():
    loss = nn.CrossEntropyLoss(reduction="none")
    found = objective(loss, "shares")
    assert found.source["loss"] == "CrossEntropyLoss"
    assert found.evaluation.loss[0] == pytest.approx(loss(found.model(X), TARGETS["shares"]).mean().item(), rel=1e-6)


def test_an_unfinished_run_with_another_loss_of_the_name_is_not_continued(tmp_path):
    options = {"steps": 3, "probes": 1, "out": tmp_path / "out.h5"}
    with pytest.raises(KeyboardInterrupt):
        ls.spectrum(objective(focal(1), parts="class"), **options, progress=Interrupting(1))
    with refused(StoreError, "loss_values"):
        ls.spectrum(objective(focal(2), parts="class"), **options)
    assert len(ls.spectrum(objective(focal(1), parts="class"), **options).parts) == 3
