"""The loop: its steps to the bit, what it draws, and what its errors say."""

import functools

import numpy as np
import pytest
import torch
from torch import nn
from toys import CPU, batched, blobs, layered, linear, recipe, smooth

from landscape.data import datasets
from landscape.errors import InputError, NumericalError
from landscape.networks import models
from trainers import evaluation, gkp, loop, methods, recipes
from trainers.loop import Trainer


def trained(model, **options):
    chosen = recipe(**options)
    trainer = Trainer(chosen, model, blobs(), device=CPU)
    rows = [trainer.run_epoch() for _ in range(chosen.epochs)]
    return model.state_dict(), rows


GSA = {"sharpness": "gsa", "groups": 2, "epochs": 4}  # the shortest run that comes to groups


def same(a, b):
    return all(torch.equal(a[name], b[name]) for name in a)


def test_a_step_is_the_textbook_step_on_the_mean_loss():
    """One batch of all samples, twice: velocity v <- mu v + g + wd theta, theta <- theta - rate v, done by hand."""
    samples, model = blobs(), linear()
    x, y = samples.inputs.double(), torch.from_numpy(samples.labels)
    theta = torch.cat([model.weight, model.bias[:, None]], dim=1).detach().double()
    velocity = torch.zeros_like(theta)
    for rate in (0.2, 0.1):  # the cosine from 0.2: (1 + cos 0) / 2 = 1, (1 + cos(pi / 2)) / 2 = 1/2
        residual = torch.softmax(x @ theta[:, :4].T + theta[:, 4], dim=1) - torch.eye(3, dtype=torch.float64)[y]
        gradient = residual.T @ torch.cat([x, torch.ones(len(x), 1)], dim=1) / len(x)
        velocity = 0.9 * velocity + gradient + 0.01 * theta
        theta -= rate * velocity
    trained(model, batch_size=15, lr=0.2, weight_decay=0.01, warmup_epochs=0)
    np.testing.assert_allclose(model.weight.detach(), theta[:, :4], rtol=0, atol=2e-6)  # float32 of values below 1
    np.testing.assert_allclose(model.bias.detach(), theta[:, 4], rtol=0, atol=2e-6)


def test_the_rate_of_each_epochs_last_step_is_reported():
    """15 samples in batches of 5: three steps an epoch; two epochs of warm-up, then (1 + cos(pi k / 3)) / 2 of it."""
    _, rows = trained(linear(), epochs=3, batch_size=5, lr=0.2, warmup_epochs=2)
    np.testing.assert_allclose([row["learning_rate"] for row in rows], [0.2 * 3 / 6, 0.2, 0.2 / 4], rtol=1e-12)


def test_a_multistep_run_falls_at_its_milestones():
    _, rows = trained(linear(), epochs=4, schedule="multistep", milestones=(2, 3), warmup_epochs=0)
    np.testing.assert_allclose([row["learning_rate"] for row in rows], [0.1, 0.1, 0.01, 0.001], rtol=1e-12)


@pytest.mark.parametrize("options", [{}, {"sharpness": "sam"}, GSA])
def test_the_same_seed_gives_the_same_weights_to_the_bit_and_another_seed_does_not(options):
    (first, one), (again, two) = trained(layered(), **options), trained(layered(), **options)
    assert same(first, again)
    assert one == two
    assert not same(first, trained(layered(), seed=1, **options)[0])


def test_global_random_state_neither_matters_nor_changes():
    first, _ = trained(layered())
    torch.rand(3)
    before = torch.get_rng_state()
    again, _ = trained(layered())
    assert same(first, again)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("batch_size", [2, 7, 14, 1000])  # 15 samples; of batches of 14, one would be left
def test_every_epoch_sees_each_sample_once_in_batches_that_differ_by_one_at_most(batch_size):
    class Watched(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.seen = linear(), []

        def forward(self, x):
            self.seen.append(x)
            return self.inner(x)

    model = Watched()
    trained(model, batch_size=batch_size)
    del model.seen[0]  # the trial before the first epoch
    sizes = [len(x) for x in model.seen]
    assert max(sizes) <= batch_size
    assert max(sizes) - min(sizes) <= 1
    half = len(sizes) // 2
    first, second, everything = torch.cat(model.seen[:half]), torch.cat(model.seen[half:]), blobs().inputs
    assert sorted(first.tolist()) == sorted(second.tolist()) == sorted(everything.tolist())
    assert not torch.equal(first, second)


def test_the_losses_and_accuracies_are_those_of_a_model_that_stands_still():
    """With lr = 1e-30 nothing moves: every epoch shows the first model, whatever the batches."""
    model, samples = linear(), blobs()
    with torch.no_grad():
        logits = model(samples.inputs)
    labels = torch.from_numpy(samples.labels)
    _, rows = trained(model, lr=1e-30)
    expected = nn.functional.cross_entropy(logits, labels).item()
    np.testing.assert_allclose([row["train_loss"] for row in rows], [expected] * 2, rtol=1e-6)
    np.testing.assert_allclose([row["train_accuracy"] for row in rows], (logits.argmax(1) == labels).float().mean())


def test_a_warm_up_by_epochs_has_one_rate_in_each():
    """15 samples in batches of 5: of two epochs of warm-up each has its last step's rate, from the first step on."""
    trainer = Trainer(
        recipe(epochs=4, batch_size=5, lr=0.2, warmup_epochs=2, warmup_by="epoch"), linear(), blobs(), device=CPU
    )
    rates = []
    step = trainer.step
    trainer.step = lambda *given: (rates.append(trainer._base.param_groups[0]["lr"]), step(*given))[1]
    for _ in range(2):
        trainer.run_epoch()
    np.testing.assert_allclose(rates, [0.1] * 3 + [0.2] * 3, rtol=1e-12)


def test_without_the_last_batch_all_are_full_and_losses_are_means_over_what_was_seen():
    """15 samples in batches of 4: twelve are seen, by a model that stands still."""
    model = linear()
    trainer = Trainer(recipe(lr=1e-30, drop_last=True), model, blobs(), device=CPU)
    seen, step = [], trainer.step

    def watched(views, labels, classes):
        seen.append((views[0], labels))
        return step(views, labels, classes)

    trainer.step = watched
    row = trainer.run_epoch()
    assert [len(labels) for _, labels in seen] == [4, 4, 4]
    inputs, labels = (torch.cat(parts) for parts in zip(*seen, strict=True))
    with torch.no_grad():
        assert row["train_loss"] == pytest.approx(nn.functional.cross_entropy(model(inputs), labels).item(), rel=1e-6)
    with pytest.raises(InputError, match="drop_last=True leaves no batch of batch_size=16: 15 samples"):
        Trainer(recipe(drop_last=True, batch_size=16), linear(), blobs(), device=CPU)


def test_separable_classes_are_learnt():
    model = linear()
    trained(model, epochs=30, lr=0.5)
    assert evaluation.evaluate(model, blobs(seed=1)).accuracy == 1


def test_a_loss_that_is_not_finite_stops_the_training():
    with pytest.raises(NumericalError, match=r"not finite in epoch 1 of 2 .*lower lr, now 1e\+30"):
        trained(linear(), lr=1e30, warmup_epochs=0)


@pytest.mark.parametrize(
    ("options", "remedy"),
    [
        ({"sharpness": "sam", "rho": 1e30}, r"or rho, now 1e\+30,"),
        (GSA, "or radius_scale, now 0.01"),
    ],
)
def test_what_diverges_by_its_radius_is_told_to_lower_it(options, remedy):
    trainer = Trainer(recipe(**options), layered(), blobs(), device=CPU)
    if options["sharpness"] == "gsa":
        trainer.model[0].weight.data[0, 0] = np.nan
    with pytest.raises(NumericalError, match=rf"lower lr, now 0.1, {remedy}"):
        trainer.run_epoch()


def undefined(logits, labels):
    return nn.functional.cross_entropy(logits, labels, reduction="none") * np.nan


def test_a_loss_that_is_not_finite_from_the_start_is_no_matter_of_the_learning_rate():
    with pytest.raises(NumericalError, match=r"not finite before the first step \(nan\): look at the data, the loss"):
        Trainer(recipe(loss=f"{__name__}:undefined"), linear(), blobs(), device=CPU)


def test_a_model_with_other_classes_than_the_data_is_refused():
    with pytest.raises(InputError, match=r"returned .*expected logits \(batch, 3\)"):
        trained(linear(n_classes=4))


def test_a_model_that_returns_features_and_logits_is_trained_by_its_logits():
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = linear()

        def forward(self, x):
            return x, self.inner(x)

    pair, plain = Both(), linear()
    trained(pair)
    trained(plain)
    assert same(pair.inner.state_dict(), plain.state_dict())


def test_a_model_with_nothing_to_train_is_refused():
    with pytest.raises(InputError, match="no parameters to train"):
        trained(linear().requires_grad_(False))


def test_a_loss_that_averages_is_refused():
    with pytest.raises(InputError, match=r'shape \(\) for a batch of 3: .*reduction="none"'):
        trained(linear(), loss="toys:mean_loss")


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


@pytest.mark.parametrize("name", ["ce", "sam", "gsa-gkp", "bcl-gsa"])
def test_a_compiled_model_learns_what_the_plain_one_does(name, monkeypatch):
    """All of torch.compile but its code generator, which takes a compiler and a quarter of a minute."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    states = []
    for on in (False, True):
        short = {"dataset": "toys:vectors", "model": "toys:batched", "groups": 2, "epochs": 4}
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


# What does not fit ------------------------------------------------------------------------------------------------


def broken(logits, labels):
    raise RuntimeError("no\nway")


def blind(logits, labels):
    return nn.functional.cross_entropy(logits.detach(), labels, reduction="none")


class Centred(nn.Module):
    """Subtracts the mean of the batch: its samples influence each other."""

    def __init__(self):
        super().__init__()
        self.inner = linear()

    def forward(self, x):
        logits = self.inner(x)
        return logits - logits.mean(0)


class Narrow(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(5, 3)

    def forward(self, x):
        return self.inner(x)


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        (Narrow, {}, r"fails on inputs of shape \(3, 4\): RuntimeError: mat1 and mat2 shapes cannot be multiplied"),
        (layered, {"loss": f"{__name__}:broken"}, r"fails on inputs of shape \(3, 4\): RuntimeError: no way$"),
        (layered, {"loss": f"{__name__}:blind"}, "no gradient reaches them"),
        (layered, {"batch_size": 1}, r"Expected more than 1 value .*batches of 1 leave .*raise batch_size"),
        (layered, {"batch_size": 2}, r"Expected more than 1 value .*batches of 2 leave .*raise batch_size"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_the_first_epoch(model, options, message):
    with pytest.raises(InputError, match=message) as error:
        Trainer(recipe(**options), model(), blobs(), device=CPU)
    assert "\n" not in str(error.value)


def test_bytes_that_are_not_normalised_are_refused_with_the_remedy():
    samples = datasets.from_dataset((torch.zeros(4, 4, dtype=torch.uint8), torch.tensor([0, 1, 2, 2])))
    with pytest.raises(InputError, match="these are bytes: pass normalize"):
        Trainer(recipe(), linear(), samples, device=CPU)


def test_samples_that_influence_each_other_are_refused_where_they_must_not():
    options = {**GSA, "batch_size": 15}
    Trainer(recipe(**options), Centred(), blobs(), device=CPU)
    with pytest.raises(NumericalError, match="influence each other in this model; use first_pass='exact'"):
        Trainer(recipe(first_pass="decoupled", **options), Centred(), blobs(), device=CPU)


def test_the_trial_before_the_first_epoch_leaves_no_trace():
    model = layered()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    state = torch.get_rng_state()
    Trainer(recipe(), model, blobs(), device=CPU)
    assert same(before, model.state_dict())
    assert torch.equal(torch.get_rng_state(), state)
    assert all(p.grad is None for p in model.parameters())


# Evaluation -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 7, 1000])
def test_evaluation_is_per_class_and_does_not_depend_on_the_batch_size(batch_size):
    model, samples = layered(), blobs()
    found = evaluation.evaluate(model, samples, classifier="4", batch_size=batch_size)
    assert model.training
    model.eval()
    with torch.no_grad():
        features = model[:4](samples.inputs)
        logits = model[4](features)
    labels = torch.from_numpy(samples.labels)
    values = nn.functional.cross_entropy(logits, labels, reduction="none")
    right = logits.argmax(1) == labels
    for c in range(3):
        assert found.loss_per_class[c] == pytest.approx(values[labels == c].mean().item(), rel=1e-6)
        assert found.accuracy_per_class[c] == right[labels == c].float().mean()
    assert found.loss == pytest.approx(values.mean().item(), rel=1e-6)
    torch.testing.assert_close(found.features, features)


def test_a_class_without_samples_has_nan():
    found = evaluation.evaluate(linear(), blobs(n_per_class=(2, 2, 0)))
    assert np.isnan(found.accuracy_per_class).tolist() == [False, False, True]
    assert np.isfinite(found.accuracy)


def test_cosines_of_class_and_batch_gradients_are_those_of_a_loop():
    model, samples = layered(), blobs()
    found = evaluation.gradient_cosines(model, samples, batch_size=15, seed=0)
    assert model.training
    model.eval()
    labels = torch.from_numpy(samples.labels)

    def gradient(mask):
        loss = nn.functional.cross_entropy(model(samples.inputs[mask]), labels[mask])
        return torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, list(model.parameters()))])

    whole = gradient(labels >= 0)
    expected = [torch.cosine_similarity(gradient(labels == c), whole, dim=0).item() for c in range(3)]
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_batch_in_which_a_classs_gradient_is_zero_does_not_spoil_the_cosine_of_the_others():
    """One sample a batch: its gradient is the batch's, but for samples that are fitted beyond float32."""
    model = linear()
    with torch.no_grad():
        model.weight.copy_(torch.eye(3, 4))
    inputs = torch.tensor([[1000.0, 0, 0, 0], [1, 0, 0, 0], [0, 1000, 0, 0], [0, 0, 1, 0]])
    samples = datasets.from_dataset((inputs, torch.tensor([0, 0, 1, 2])), name="fitted", split="train")
    found = evaluation.gradient_cosines(model, samples, batch_size=1, seed=0)
    np.testing.assert_allclose(found, [1, np.nan, 1], rtol=1e-6)
    with torch.no_grad():
        model.bias.fill_(np.nan)
    assert np.isnan(evaluation.gradient_cosines(model, samples, batch_size=1, seed=0)).all()


@pytest.mark.parametrize("options", [{"sharpness": "gsa", "groups": 2}, {"sharpness": "gsa", "gkp": True, "groups": 2}])
def test_a_step_of_one_sample_is_grouped_as_any_other(options):
    """15 samples in batches of two: the last step has one."""
    trainer = Trainer(recipe(batch_size=2, epochs=10, **options), smooth(), blobs(), device=CPU)
    zero = torch.zeros(2, sum(p.numel() for n, p in trainer.model.named_parameters() if n in trainer.encoder))
    trainer.regroup(np.array([0, 1, 1]), gkp.GKP(zero, zero, np.array([9, 6])) if "gkp" in options else None)
    assert np.isfinite(trainer.run_epoch()["train_loss"])
