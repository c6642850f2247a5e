"""`train` as a function, recipes by name, and whose choices they follow."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from refusals import refused
from toys import batched, blobs, finish

from landscape.errors import InputError
from landscape.networks import checkpoints
from trainers import GKP, GSA, SAM, Memory, losses, methods, recipe, train
from trainers.variants import VARIANTS

SHORT = {"epochs": 5, "batch_size": 4, "augment": "none", "groups": 2, "warmup_epochs": 0}


def state(path):
    return checkpoints.read(path).state


def test_the_public_face_has_what_a_loop_of_ones_own_needs():
    assert all(callable(part) for part in (GKP, GSA, SAM, Memory, recipe, train, losses.balanced_contrastive))


def test_a_function_call_leaves_what_the_command_leaves(tmp_path):
    options = {**SHORT, "snapshot_every": 5}
    finish(tmp_path / "command", sharpness="gsa", gkp=True, **options)
    chosen = recipe("gsa-gkp", dataset="toys:vectors", model="toys:layered", **options)
    done = train(None, None, chosen, out=tmp_path / "call", device="cpu")
    assert done.folder == tmp_path / "call"
    for name in ("last.pt", "snapshots/epoch-0000.pt"):
        one, two = state(tmp_path / "command" / name), state(done.folder / name)
        assert all(torch.equal(t, two[key]) for key, t in one.items())
    assert done.history.method == "gsa-gkp"
    assert all(torch.equal(t, done.model.state_dict()[key]) for key, t in one.items()) is False  # of before the first
    assert all(torch.equal(t, done.model.state_dict()[key]) for key, t in state(done.folder / "last.pt").items())


def test_a_network_of_ones_own_is_trained_in_place_on_tensors_of_ones_own():
    training, test = ((s.inputs, torch.from_numpy(s.labels)) for s in (blobs(), blobs((4, 4, 4), seed=1)))
    model = batched()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    chosen = dataclasses.replace(recipe("sam", epochs=4, batch_size=4), augment="none")
    done = train(model, (training, test), chosen, device="cpu")
    assert done.model is model
    assert done.folder is None
    assert not torch.equal(before["0.weight"], model.state_dict()["0.weight"])
    assert done.history.train_counts.tolist() == [9, 5, 1]
    assert done.history.test_counts.tolist() == [4, 4, 4]
    with torch.no_grad():
        right = (model.eval()(test[0]).argmax(1) == test[1]).double().mean()
    assert done.history.test_accuracy[-1] == pytest.approx(float(right))


@pytest.mark.parametrize(
    ("field", "value"),
    [("lr", -1.0), ("momentum", math.nan), ("weight_decay", math.inf), ("rho", -1.0), ("lr", "fast"), ("epochs", 1.5)],
)
def test_a_field_that_was_replaced_is_checked_again(field, value):
    chosen = dataclasses.replace(recipe("sam", dataset="toys:vectors", model="toys:layered"), **{field: value})
    with refused(InputError, field, value):
        train(None, None, chosen)


def test_progress_is_told_and_a_name_is_a_recipe():
    told = []
    done = train(
        "toys:smooth",
        (blobs(), blobs(seed=1, split="test")),
        recipe("ce", epochs=2),
        progress=lambda *w: told.append(w),
    )
    assert told[-1][:2] == (2, 2)
    assert len(done.history.epoch) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((None, None, "ce"), ("samples", "dataset")),
        (("toys:smooth", blobs(), "ce"), ("samples",)),
        (("toys:smooth", (blobs(), blobs()), "adam"), ("adam",)),
    ],
)
def test_what_does_not_fit_is_refused(arguments, message):
    with refused(InputError, *message):
        train(*arguments)


def test_fields_that_are_unknown_or_change_nothing_are_refused():
    with refused(InputError, "epoch"):
        recipe("ce", epoch=3)
    with refused(InputError, sharpness="gsa"):
        recipe("ce", clip=(0.0, 1.0))


# Whose choices ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("method", methods.METHODS)
def test_every_variant_is_a_recipe_or_says_what_it_is_for(variant, method):
    grouped = "gsa" in method or "gkp" in method
    if (variant == "source") == grouped:
        with refused(InputError, variant):
            recipe(method, dataset="cifar10", variant=variant)
        return
    plain, found = recipe(method, dataset="cifar10"), recipe(method, dataset="cifar10", variant=variant)
    fields = {k: v for part in VARIANTS[variant].values() for k, v in part.items()}
    changed = {f.name for f in dataclasses.fields(plain) if getattr(plain, f.name) != getattr(found, f.name)}
    assert changed <= fields.keys()
    assert changed or method == "gkp"


def test_what_is_typed_wins_over_a_variant_and_a_variant_over_the_benchmark():
    found = recipe("gsa-gkp", dataset="cifar10", variant="released", clip=(0.0, 1.0))
    assert (found.clip, found.adaptive, found.direction, found.drop_last) == ((0.0, 1.0), True, "difference", True)
    for method, dataset, augment in (
        ("bcl-gsa-gkp", "cifar10", "autoaugment-released,simclr,simclr"),
        ("bcl-gsa-gkp", "digits-lt", None),
        ("gsa-gkp", "cifar10", None),
    ):
        assert recipe(method, dataset=dataset, variant="released").augment == augment
    ldam = recipe("ldam-drw", dataset="cifar100", variant="source")
    assert (ldam.lr, ldam.batch_size, ldam.weight_decay, ldam.gamma) == (0.1, 128, 2e-4, 0.01)
    assert recipe("focal", dataset="cifar10", variant="source").loss_options == "gamma=1"


@pytest.mark.parametrize("variant", ["paper", "released"])
def test_a_run_by_a_variant_is_a_run(variant, tmp_path):
    fields = {"radius_scale": 1e-4} if variant == "paper" else {}  # its radii have no bound
    chosen = recipe("gsa-gkp", dataset="toys:vectors", model="toys:batched", variant=variant, **SHORT, **fields)
    done = train(None, None, chosen, device="cpu")
    assert np.isfinite(done.history.train_loss).all()
    assert np.nanmax(done.history.pull_share) > 0
