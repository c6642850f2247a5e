"""The loop: its steps to the bit, what it draws, and what its errors say."""

import numpy as np
import pytest
import torch
from refusals import refused
from torch import nn
from toys import CPU, blobs, layered, linear, recipe, smooth
from trained import same, trained

from landscape.data import datasets
from landscape.errors import InputError, NumericalError
from landscape.networks import losses
from trainers import evaluation
from trainers.loop import Trainer, seeded

GSA = {"sharpness": "gsa", "groups": 2, "epochs": 4}  # the shortest run that comes to groups


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
    with refused(InputError, 15, drop_last=True, batch_size=16):
        Trainer(recipe(drop_last=True, batch_size=16), linear(), blobs(), device=CPU)


def test_separable_classes_are_learnt():
    model = linear()
    trained(model, epochs=30, lr=0.5)
    assert evaluation.evaluate(model, blobs(seed=1)).accuracy == 1


def test_a_loss_that_is_not_finite_stops_the_training():
    with refused(NumericalError, 1, 2, "1e+30"):
        trained(linear(), lr=1e30, warmup_epochs=0)


@pytest.mark.parametrize(
    ("options", "remedy"),
    [
        ({"sharpness": "sam", "rho": 1e30}, {"rho": 1e30}),
        (GSA, {"radius_scale": 0.01}),
    ],
)
def test_what_diverges_by_its_radius_is_told_to_lower_it(options, remedy):
    trainer = Trainer(recipe(**options), layered(), blobs(), device=CPU)
    if options["sharpness"] == "gsa":
        trainer.model[0].weight.data[0, 0] = np.nan
    with refused(NumericalError, lr=0.1, **remedy):
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
    with refused(InputError, "parameters"):
        trained(linear().requires_grad_(False))


def test_a_loss_that_averages_is_refused():
    with refused(InputError, 3, reduction="none"):
        trained(linear(), loss="toys:mean_loss")


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
        (Narrow, {}, (3, 4, "RuntimeError")),
        (layered, {"loss": f"{__name__}:broken"}, (3, 4, "RuntimeError")),
        (layered, {"loss": f"{__name__}:blind"}, ("gradient",)),
        (layered, {"batch_size": 1}, (1, "batch_size")),
        (layered, {"batch_size": 2}, (1, 2, "batch_size")),
    ],
)
def test_what_cannot_be_trained_is_refused_before_the_first_epoch(model, options, message):
    with refused(InputError, *message) as error:
        Trainer(recipe(**options), model(), blobs(), device=CPU)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("loss", ["logit-adjust", "vs", "ldam", "balanced"])
def test_selected_samples_count_by_their_labels(loss):
    """Of 9, 5 and 1 samples 3, 2 and 1; what `select` returns still states the counts of its set."""
    samples = blobs().select([0, 1, 2, 9, 10, 14])
    assert samples.class_counts.tolist() == [9, 5, 1]
    options = {"loss": loss, "reweight": "drw", **GSA}
    found = Trainer(recipe(**options), smooth(), samples, device=CPU)
    fresh = datasets.from_dataset((samples.inputs, torch.from_numpy(samples.labels)))
    expected = Trainer(recipe(**options), smooth(), fresh, device=CPU)
    logits, labels = torch.eye(3), torch.arange(3)
    assert torch.equal(found.criterion(logits, labels), losses.build(loss, [3, 2, 1])(logits, labels))
    assert found.train.class_counts.tolist() == [3, 2, 1]  # by which GKP divides
    states = []
    for trainer in (found, expected):
        trainer.regroup(np.array([0, 1, 1]), None)
        trainer.epoch = 3  # re-weighted
        trainer.run_epoch()
        states.append(torch.cat([p.detach().flatten() for p in trainer.model.parameters()]))
    assert torch.equal(*states)


def test_bytes_that_are_not_normalised_are_refused_with_the_remedy():
    samples = datasets.from_dataset((torch.zeros(4, 4, dtype=torch.uint8), torch.tensor([0, 1, 2, 2])))
    with refused(InputError, "normalize"):
        Trainer(recipe(), linear(), samples, device=CPU)


def test_samples_that_influence_each_other_are_refused_where_they_must_not():
    options = {**GSA, "batch_size": 15}
    Trainer(recipe(**options), Centred(), blobs(), device=CPU)
    with refused(NumericalError, first_pass="exact"):
        Trainer(recipe(first_pass="decoupled", **options), Centred(), blobs(), device=CPU)


class TimeFirst(nn.Module):
    """Four steps of one number, time before samples."""

    def __init__(self):
        super().__init__()
        self.step, self.out = nn.Linear(1, 5), nn.Linear(5, 3)

    def forward(self, x):
        return self.out(torch.tanh(self.step(x.T[:, :, None])).mean(0))


@pytest.mark.parametrize(("n", "batch_size"), [(15, 4), (4, 4), (4, 2)])  # in the steps, and in the trial
def test_a_decoupled_run_is_the_exact_one_where_another_axis_is_as_long_as_a_batch(n, batch_size):
    states = []
    samples = blobs().select(np.arange(0, 15)[-n:])
    for first_pass in ("exact", "decoupled"):
        with seeded(CPU, 0):
            model = TimeFirst()
        options = GSA | {"batch_size": batch_size, "first_pass": first_pass}
        trainer = Trainer(recipe(**options), model, samples, device=CPU)
        trainer.regroup(np.array([0, 0, 1]), None)
        trainer.run_epoch()
        states.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    torch.testing.assert_close(*states, rtol=0, atol=1e-6)


@pytest.mark.parametrize("instances", [False, True])
def test_the_trial_before_the_first_epoch_leaves_no_trace(instances):
    model = layered()
    if instances:
        norm = nn.InstanceNorm1d(1, track_running_stats=True)
        model[1] = nn.Sequential(nn.Unflatten(1, (1, 8)), norm, nn.Flatten())
    before = {name: t.clone() for name, t in model.state_dict().items()}
    state = torch.get_rng_state()
    Trainer(recipe(), model, blobs(), device=CPU)
    assert same(before, model.state_dict())
    assert torch.equal(torch.get_rng_state(), state)
    assert all(p.grad is None for p in model.parameters())
