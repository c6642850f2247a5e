"""What each part of a recipe does to a step."""

import functools

import numpy as np
import pytest
import torch
from torch import nn
from toys import CPU, batched, blobs, layered, linear, recipe
from trained import same, trained

from landscape.data import datasets
from landscape.networks import models
from trainers import gkp, loop, methods, recipes
from trainers.loop import Trainer

GSA = {"sharpness": "gsa", "groups": 2, "epochs": 4}  # the shortest run that comes to groups


# The parts of a recipe --------------------------------------------------------------------------------------------


def test_deferred_weights_enter_at_80_percent_of_the_run():
    """Until then the two recipes are one; afterwards they part."""
    states = []
    for reweight in ("none", "drw"):
        trainer = Trainer(recipe(epochs=5, reweight=reweight), layered(), blobs(), device=CPU)
        states.append([])
        for _ in range(5):
            trainer.run_epoch()
            states[-1].append({name: t.clone() for name, t in trainer.model.state_dict().items()})
    assert [same(a, b) for a, b in zip(*states, strict=True)] == [True] * 4 + [False]


@pytest.mark.parametrize("gsa", [False, True])
def test_preservation_mixes_the_gradients_of_data_and_penalty_by_alpha(gsa):
    """One step of plain gradient descent from theta: theta - lr (alpha g + (1 - alpha) g_gkp), g_gkp by autograd."""
    options = {"epochs": 3, "batch_size": 15, "momentum": 0.0, "weight_decay": 0.0, "warmup_epochs": 0, "gkp": True}
    options |= {"groups": 2}
    options |= {"sharpness": "gsa", "radius_scale": 0.0} if gsa else {}
    chosen = recipe(model="toys:linear", alpha_start=0.7, alpha_end=0.7, lr=0.1, **options)

    def make():
        with loop.seeded(CPU, 0):
            return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))

    model, samples, generator = make(), blobs(), torch.Generator().manual_seed(0)
    trainer = Trainer(chosen, model, samples, device=CPU)
    size = 4 * 8 + 8
    centres, fisher = (torch.rand((2, size), generator=generator) for _ in range(2))
    group_of, counts = np.array([0, 1, 1]), np.array([9, 6])
    trainer.regroup(group_of, gkp.GKP(centres, fisher, counts, strength=50.0))
    row = trainer.run_epoch()

    plain = make()
    encoder = list(plain[0].parameters())
    theta = torch.cat([p.reshape(-1) for p in encoder])
    share = torch.tensor([9 / 15, 6 / 15])
    pull = sum(
        share[g] * 50 / 2 * (fisher[j] / counts[j] * (theta - centres[j]) ** 2).sum()
        for g in range(2)
        for j in range(2)
        if j != g
    )
    data = nn.functional.cross_entropy(plain(samples.inputs), torch.from_numpy(samples.labels))
    pulls = torch.autograd.grad(0.3 * pull, encoder, retain_graph=True)
    lengths = [
        float(torch.cat([g.reshape(-1) for g in gradients]).norm())
        for gradients in (pulls, torch.autograd.grad(0.7 * data, plain.parameters(), retain_graph=True))
    ]
    assert row["pull_share"] == pytest.approx(lengths[0] / sum(lengths), rel=1e-5)
    (0.7 * data + 0.3 * pull).backward()
    for p, q in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(p.detach(), (q - 0.1 * q.grad).detach(), rtol=0, atol=1e-6)


def test_the_pull_at_the_perturbed_weights_is_that_of_theta_plus_epsilon():
    """One plain step: theta - lr (alpha g + (1 - alpha) g_gkp(theta + eps)), eps as GSA says it was."""
    options = {**GSA, "gkp": True, "momentum": 0.0, "weight_decay": 0.0, "warmup_epochs": 0, "batch_size": 15}
    ends, eps = [], []
    for place in ("theta", "perturbed"):
        with loop.seeded(CPU, 0):
            model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
        chosen = recipe(model="toys:smooth", alpha_start=0.5, alpha_end=0.5, pull_at=place, **options)
        trainer = Trainer(chosen, model, blobs(), device=CPU)
        fisher = torch.ones(2, 40)
        trainer.regroup(np.array([0, 1, 1]), gkp.GKP(0 * fisher, fisher, np.array([9, 6]), strength=1.0))
        trainer.run_epoch()
        ends.append(torch.cat([p.detach().reshape(-1) for p in model.parameters()]))
        eps.append(trainer.optimizer.perturbation[:40])
    torch.testing.assert_close(*eps)
    weight = (1 - 9 / 15) / 9 + (1 - 6 / 15) / 6  # of sum_j (1 - w_j) / |G_j|
    moved_by = torch.cat([-0.1 * 0.5 * weight * eps[0], torch.zeros(27)])
    assert moved_by.abs().max() > 1e-6
    torch.testing.assert_close(ends[1] - ends[0], moved_by, rtol=0, atol=1e-7)


def test_gsa_takes_plain_steps_until_there_are_groups():
    plain, _ = trained(layered(), epochs=4)
    found, _ = trained(layered(), **GSA)
    assert same(plain, found)


@pytest.mark.parametrize("name", methods.METHODS)
def test_every_method_makes_steps_on_images(name):
    samples = datasets.load("digits-lt").subsample(3)
    short = {"dataset": "digits-lt", "augment": None, "epochs": 4, "groups": 2, "batch_size": 10}
    chosen = methods.compose(short, method=name)
    views = "crop,crop,crop" if chosen.loss == "bcl" else "none"
    chosen = methods.compose({**recipes.plain(chosen), "milestones": None, "augment": views})
    with loop.seeded(CPU, 0):
        model = models.build("small-resnet", 10, cosine=bool(chosen.cosine))
    trainer = Trainer(chosen, model, samples, device=CPU)
    if chosen.grouped:
        size = sum(dict(model.named_parameters())[n].numel() for n in trainer.encoder)
        penalty = gkp.GKP(torch.zeros(2, size), torch.ones(2, size), np.array([15, 15]), strength=1.0)
        trainer.regroup(np.arange(10) % 2, penalty if chosen.gkp else None)
    before = {name: t.clone() for name, t in model.state_dict().items()}
    for _ in range(2):
        row = trainer.run_epoch()
    assert np.isfinite([row["train_loss"], row["learning_rate"]]).all()
    assert np.isfinite(row["pull_share"]) == chosen.gkp
    assert np.isfinite(row["clipped_share"]) == (chosen.sharpness == "gsa")
    assert not same(before, model.state_dict())


def still(model, samples=None, **options):
    """The losses of epochs in which nothing moves."""
    chosen = recipe(lr=1e-30, batch_size=15, **options)
    trainer = Trainer(chosen, model, blobs() if samples is None else samples, device=CPU)
    return [trainer.run_epoch()["train_loss"] for _ in range(chosen.epochs)]


@pytest.mark.parametrize(
    ("loss", "neutral"),
    [("focal", "gamma=0"), ("ldam", "max_margin=0"), ("logit-adjust", "tau=0"), ("vs", "gamma=0,tau=0")],
)
def test_options_of_a_loss_reach_it(loss, neutral):
    """With these it is the cross-entropy, without them it is not."""
    plain = still(linear())
    assert still(linear(), loss=loss, loss_options=neutral) == pytest.approx(plain, rel=1e-6)
    assert still(linear(), loss=loss) != pytest.approx(plain, rel=1e-3)


def test_the_weights_and_the_temperature_of_bcl_are_options():
    """Its first part alone is the cross-entropy; the second, when nothing is near or far, log C for each view."""
    views = {"loss": "bcl", "augment": "none,none,none", "epochs": 1}
    first = "ce_weight=1,contrast_weight=0,tau=0"
    assert still(batched(), loss_options=first, **views) == pytest.approx(still(batched(), epochs=1), rel=1e-5)
    second = "ce_weight=0,contrast_weight=2,temperature=1e6"
    assert still(batched(), loss_options=second, **views) == pytest.approx([2 * np.log(3)], rel=1e-4)


def test_the_head_is_the_authors_and_projects_all_three_views():
    trainer = Trainer(
        recipe(loss="bcl", augment="none,none,none", batch_size=15, model="toys:batched"),
        batched(),
        blobs(),
        device=CPU,
    )
    shapes = [tuple(layer.weight.shape) for layer in trainer.head.of_samples if isinstance(layer, nn.Linear)]
    assert shapes == [(512, 8), (128, 512)]  # of 8 features
    assert trainer.head.of_samples[0].weight.std().item() == pytest.approx((2 / 8) ** 0.5, rel=0.05)  # 4,096 draws
    rows = []
    trainer.head.of_samples.register_forward_pre_hook(lambda module, inputs: rows.append(len(inputs[0])))
    trainer.run_epoch()
    assert rows == [3 * 15]
    narrow = recipe(loss="bcl", augment="none,none,none", loss_options="hidden=6,projected=5", model="toys:batched")
    shapes = [p.shape for p in Trainer(narrow, batched(), blobs(), device=CPU).head.of_classes.parameters()]
    assert shapes == [(6, 8), (6,), (6,), (6,), (5, 6), (5,)]


def test_deferred_re_weighting_begins_and_weighs_as_its_options_say():
    """w = (1 - beta) / (1 - beta^n) for 9, 5 and 1 samples, from half of the run on."""
    model, samples = linear(), blobs()
    labels = torch.from_numpy(samples.labels)
    with torch.no_grad():
        values = nn.functional.cross_entropy(model(samples.inputs), labels, reduction="none").double()
    w = (1 - 0.5) / (1 - 0.5 ** torch.tensor([9.0, 5, 1], dtype=torch.float64))[labels]
    found = still(model, reweight="drw", drw_start=0.5, drw_beta=0.5, epochs=4)
    plain, weighted = values.mean().item(), ((w * values).sum() / w.sum()).item()
    np.testing.assert_allclose(found, [plain, plain, weighted, weighted], rtol=1e-6)


def test_a_radius_of_sam_that_falls_to_zero_does():
    trainer = Trainer(
        recipe(sharpness="sam", rho_schedule="linear", rho_end=0.0, epochs=2), linear(), blobs(), device=CPU
    )
    trainer.run_epoch()
    trainer.run_epoch()
    assert trainer.optimizer.rho == 0


@pytest.mark.parametrize("option", ["bf16", "channels_last"])
def test_options_of_speed_change_the_numbers_a_little_only(option):
    samples = datasets.load("digits-lt").subsample(8)
    losses = []
    for on in (False, True):
        with loop.seeded(CPU, 0):
            model = models.build("small-resnet", 10)
        chosen = methods.compose({"dataset": "digits-lt", "epochs": 2, "augment": "none", option: on})
        losses.append(Trainer(chosen, model, samples, device=CPU).run_epoch()["train_loss"])
    assert losses[0] == pytest.approx(losses[1], rel=0.02 if option == "bf16" else 1e-4)


@pytest.mark.parametrize(
    ("name", "options"),
    [("ce", {}), ("sam", {}), ("gsa-gkp", {}), ("gsa-gkp", {"first_pass": "decoupled"}), ("bcl-gsa", {})],
)
def test_a_compiled_model_learns_what_the_plain_one_does(name, options, monkeypatch):
    """All of torch.compile but its code generator, which takes a compiler and a quarter of a minute."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    states = []
    for on in (False, True):
        short = {"dataset": "toys:vectors", "model": "toys:batched", "groups": 2, "epochs": 4, **options}
        plain = recipes.plain(methods.compose(short, method=name))
        views = "none,none,none" if "bcl" in name else "none"
        chosen = recipe(**plain | {"augment": views, "batch_size": 15, "compile": on})
        trainer = Trainer(chosen, batched(), blobs(), device=CPU)
        if chosen.grouped:
            group_of, rows = np.array([0, 1, 1]), torch.ones(2, 4 * 8 + 3 * 8)
            trainer.regroup(group_of, gkp.GKP(0 * rows, rows, np.array([9, 6])) if chosen.gkp else None)
        trainer.run_epoch()
        states.append(trainer.model.state_dict())
    for name, t in states[0].items():
        torch.testing.assert_close(t, states[1][name], rtol=1e-4, atol=1e-5)
