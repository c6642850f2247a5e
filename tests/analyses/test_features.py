"""Features of a network, class by class, at one or several checkpoints, against plain loops over its own features."""

import copy
import math

import numpy as np
import pytest
import torch
from cases import CASES, CLASS_SIZES
from interruptions import Interrupting
from refusals import refused
from torch import nn
from torch.nn import functional as F

import landscape as ls
from landscape.analyses import features
from landscape.data import datasets
from landscape.errors import InputError, NumericalError, StoreError
from landscape.networks import checkpoints
from landscape.objective import jobs
from landscape.objective.objective import Objective
from landscape.results import inference

NETWORKS = ["mlp-relu", "residual-relu", "features", "attention"]


def encoded(objective):
    """Features, labels and logits of all samples at once, by the classifier's own input."""
    entered = []
    linear = [m for m in objective.model.modules() if isinstance(m, nn.Linear)][-1]
    handle = linear.register_forward_hook(lambda _, inputs, output: entered.append((inputs[0], output)))
    everything = np.arange(len(objective.samples))
    inputs, labels = objective.samples.batch(everything, objective.device, objective.dtype)
    with torch.no_grad():
        objective.model(inputs)
    handle.remove()
    ((values, logits),) = entered
    return values.numpy(), labels.numpy(), logits, linear.weight.detach().numpy()


def changed(objective, seed):
    """The network's weights after a step at random."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: t + 0.3 * torch.randn(t.shape, generator=generator, dtype=t.dtype) * t.is_floating_point()
        if name.endswith(("weight", "bias"))
        else t
        for name, t in objective.model.state_dict().items()
    }


@pytest.mark.parametrize("name", NETWORKS)
def test_every_number_equals_a_loop_over_the_classifiers_inputs(name):
    objective = CASES[name].objective()
    found = ls.features(objective, beta=0.7)
    a, labels, logits, weight = encoded(objective)
    clouds = [a[labels == c] for c in range(3)]
    mu = np.array([cloud.mean(0) for cloud in clouds])
    apart = np.linalg.norm(mu[:, None] - mu, axis=2) + np.diag([np.inf] * 3)
    variance = np.array([((cloud - m) ** 2).sum(1).mean() for cloud, m in zip(clouds, mu, strict=True)])
    variance[2] = np.nan  # the class of one sample
    np.testing.assert_allclose(found.distance[0], apart.min(1), rtol=1e-10)
    assert found.nearest[0].tolist() == apart.argmin(1).tolist()
    np.testing.assert_allclose(found.variance[0], variance, rtol=1e-10)
    np.testing.assert_allclose(found.quality[0], apart.min(1) - 0.7 * np.log(variance), rtol=1e-10)
    np.testing.assert_allclose(found.quality_inverse[0], -1 / apart.min(1) - np.log(variance), rtol=1e-10)
    losses = F.cross_entropy(logits, torch.from_numpy(labels), reduction="none").numpy()
    predicted = logits.argmax(1).numpy()
    nearest = np.linalg.norm(a[:, None] - mu, axis=2).argmin(1)
    for c in range(3):
        own = labels == c
        assert found.loss[0, c] == pytest.approx(losses[own].mean(), rel=1e-10)
        assert found.accuracy[0, c] == pytest.approx((predicted[own] == c).mean())
        assert found.disagreement[0, c] == pytest.approx((nearest[own] != predicted[own]).mean())
    assert found.mean_disagreement[0] == pytest.approx(found.disagreement[0].mean())
    centred, rows = mu - mu.mean(0), weight - weight.mean(0)
    within = np.mean([np.cov(cloud.T, bias=True) for cloud in clouds[:2]], axis=0)
    several = mu[:2] - mu[:2].mean(0)
    expected = np.trace(within @ np.linalg.pinv(several.T @ several / 2, rcond=1e-10)) / 2
    assert found.within_between[0] == pytest.approx(expected, rel=1e-8)
    duality = np.linalg.norm(rows / np.linalg.norm(rows) - centred / np.linalg.norm(centred))
    assert found.duality[0] == pytest.approx(duality, rel=1e-10)
    assert found.n_samples.tolist() == found.train_counts.tolist() == list(CLASS_SIZES)
    assert found.n_features == a.shape[1]


def test_samples_with_shares_of_the_classes_belong_to_the_most_probable():
    generator = torch.Generator().manual_seed(0)
    x, labels = torch.randn(15, 4, generator=generator), torch.arange(15) % 3
    shares = 0.8 * F.one_hot(labels).float() + 0.2 * torch.rand(15, 3, generator=generator).softmax(1)
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))
    soft = ls.features(ls.make_objective(model, (x, shares), task="classification"))
    hard = ls.features(ls.make_objective(model, (x, labels)))
    np.testing.assert_allclose(soft.quality, hard.quality)
    np.testing.assert_allclose(soft.accuracy, hard.accuracy)
    losses = F.cross_entropy(model(x), shares, reduction="none")
    np.testing.assert_allclose(soft.loss[0], [losses[labels == c].mean().item() for c in range(3)], rtol=1e-5)


@pytest.mark.parametrize("batch_size", [1, 4, 1000])
@pytest.mark.parametrize("cache_bytes", [0, 2**20])
def test_batches_and_memory_change_no_number(batch_size, cache_bytes):
    expected = ls.features(CASES["residual-relu"].objective())
    found = ls.features(CASES["residual-relu"].objective(batch_size=batch_size), cache_bytes=cache_bytes)
    for name in ("quality", "loss", "accuracy", "mean_cosine", "within_between", "disagreement", "duality"):
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), rtol=1e-8, err_msg=name)


def test_features_that_do_not_fit_the_memory_are_made_twice_and_not_kept(monkeypatch):
    objective = CASES["mlp-relu"].objective()
    passes = []
    # private: the passes over the data are counted where they begin
    run = features._batches
    monkeypatch.setattr(features, "_batches", lambda *given: passes.append(1) or run(*given))
    needed = len(objective.samples) * 5 * 8  # F = 5 in float64
    ls.features(objective, cache_bytes=needed)
    assert len(passes) == 1
    ls.features(objective, cache_bytes=needed - 1)
    assert len(passes) == 3


def test_parts_are_the_classes_whatever_the_partition_and_the_parameters():
    expected = ls.features(CASES["mlp-relu"].objective())
    for options in ({"partition": "all"}, {"partition": "head-tail"}, {"classes": "0"}, {"params": "1.weight"}):
        found = ls.features(CASES["mlp-relu"].objective(**options))
        assert found.parts == ("0", "1", "2")
        np.testing.assert_array_equal(found.quality, expected.quality)


def test_the_angles_of_very_many_classes_are_measured_but_not_kept(monkeypatch, tmp_path):
    expected = ls.features(CASES["mlp-relu"].objective())
    monkeypatch.setattr(features, "MOST_ANGLES", 2)
    found = ls.features(CASES["mlp-relu"].objective(), out=tmp_path / "f.h5")
    assert found.mean_cosine is None
    assert ls.load(tmp_path / "f.h5").mean_cosine is None
    np.testing.assert_array_equal(found.angle_deviation, expected.angle_deviation)


def test_an_empty_class_has_no_numbers_and_a_lonely_one_no_variance():
    inputs = torch.randn(9, 4, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 0, 0, 1, 1, 1, 1, 3, 0])
    samples = datasets.from_dataset((inputs, labels), class_counts=[4, 4, 7, 1], split="test")
    found = ls.features(Objective.build(nn.Linear(4, 4), samples, device="cpu"))
    assert found.n_samples.tolist() == [4, 4, 0, 1]
    assert found.train_counts.tolist() == [4, 4, 7, 1]
    for name in ("loss", "accuracy", "distance", "mean_norm", "alignment", "disagreement"):
        assert np.isnan(getattr(found, name)[0]).tolist() == [False, False, True, False], name
    for name in ("quality", "quality_inverse", "variance"):
        assert np.isnan(getattr(found, name)[0]).tolist() == [False, False, True, True], name
    assert found.nearest[0, 2] == -1
    assert 2 not in found.nearest[0]
    assert np.isfinite([found.within_between[0], found.duality[0], found.mean_disagreement[0]]).all()


def test_one_class_has_no_geometry():
    samples = datasets.from_dataset((torch.randn(5, 4), torch.zeros(5, dtype=torch.int64)), class_counts=[5, 3])
    found = ls.features(Objective.build(nn.Linear(4, 2), samples, device="cpu"))
    assert np.isnan([found.within_between[0], found.duality[0], found.quality[0, 0], found.mean_norm[0, 0]]).all()
    assert np.isfinite([found.variance[0, 0], found.loss[0, 0], found.disagreement[0, 0]]).all()


def some_classes(scale=1.0):
    """A network in float64 and its samples, in classes of 60 to 1, as tensors class by class."""
    n = (60, 20, 12, 4, 2, 1)
    labels = torch.repeat_interleave(torch.arange(len(n)), torch.tensor(n))
    inputs = torch.randn(len(labels), 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    samples, options = datasets.from_dataset((inputs, labels)), {"partition": "class", "device": "cpu"}
    torch.manual_seed(0)
    model = nn.Linear(4, len(n))
    model.weight.data *= scale
    objective = Objective.build(model, samples, dtype=torch.float64, **options)
    return objective, inputs.split(n), labels.split(n)


def test_errors_of_losses_and_accuracies_are_those_of_means():
    objective, inputs, labels = some_classes()
    found = ls.features(objective)
    logits = [objective.model(x).detach() for x in inputs]
    losses = [F.cross_entropy(z, y, reduction="none") for z, y in zip(logits, labels, strict=True)]
    own = [x.std() / len(x) ** 0.5 for x in losses[:-1]]
    np.testing.assert_allclose(found.loss_stderr[0, :-1], own, rtol=1e-12)
    shares = [(z.argmax(1) == y).double().mean().item() for z, y in zip(logits, labels, strict=True)]
    shrunk = [(share * len(x) + 1) / (len(x) + 2) for share, x in zip(shares, inputs, strict=True)]
    own = [(p * (1 - p) / (len(x) - 1)) ** 0.5 for p, x in zip(shrunk[:-1], inputs, strict=False)]
    np.testing.assert_allclose(found.accuracy_stderr[0, :-1], own, rtol=1e-12)
    assert np.isnan([found.loss_stderr[0, -1], found.accuracy_stderr[0, -1]]).all()
    of_loss = objective.evaluation  # which other analyses show
    np.testing.assert_allclose(found.loss_stderr[0], of_loss.loss_stderr, rtol=1e-12)
    np.testing.assert_allclose(found.accuracy_stderr[0], of_loss.accuracy_stderr, rtol=1e-12)


def test_errors_of_losses_and_accuracies_of_draws_that_count_alike_are_those_of_other_analyses():
    objective, _, _ = some_classes()
    alike = ls.draw_samples(objective, 15, even=1.0)
    assert alike.draws.factors.max() == 1
    found, other = ls.features(alike), ls.surface1d(alike, n=1, x=[0.0])
    np.testing.assert_allclose(found.loss_stderr[0, :-1], other.loss_stderr[:-1, 0, 0], rtol=1e-6)
    np.testing.assert_allclose(found.accuracy_stderr[0, :-1], other.accuracy_stderr[:-1, 0, 0], rtol=1e-6)


def test_errors_of_means_of_weighted_draws_are_not_those_of_the_deviations_which_are_too_small():
    objective, _, _ = some_classes(scale=20.0)  # so that tr M varies
    stated, linear = [], []
    for seed in range(20):
        drawn = ls.draw_samples(objective, 15, even=0.1, seed=seed)
        index, factors, chances = drawn.draws.index, drawn.draws.factors, drawn.draws.chances
        own = objective.samples.labels[index] == 0
        assert np.ptp(factors[own]) > 0
        x, y = objective.samples.batch(index[own], torch.device("cpu"), torch.float64)
        losses = F.cross_entropy(objective.model(x).detach(), y, reduction="none").numpy()
        off = losses - np.average(losses, weights=factors[own])
        weights = factors[own] / own.sum()
        linear.append(inference.stderr(inference.draws(off, weights, chances[own])))
        stated.append(ls.features(drawn).loss_stderr[0, 0])
    assert np.mean(stated) > 1.1 * np.mean(linear)


def test_errors_of_small_classes_are_those_without_each_sample():
    """Classes of at most as many samples as groups: each group has one of them, or none."""
    objective, inputs, _ = some_classes()
    found = ls.features(objective)
    for c in (1, 2, 3):
        x, n = inputs[c], len(inputs[c])
        kept = [torch.cat([x[:i], x[i + 1 :]]) for i in range(n)]
        without = np.array([(some - some.mean(0)).square().sum(1).mean().item() for some in kept])
        # The change without a sample is scaled where the groups are more: exact only for what is linear in the weights.
        np.testing.assert_allclose(
            found.variance_stderr[0, c], ((n - 1) * without.var()) ** 0.5, rtol=1e-9 if n == 20 else 0.05
        )


class Whole(nn.Module):
    """Its features are a view of activations that are much larger."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 3)

    def forward(self, x):
        return self.fc(x.flatten(1)[:, None, :4].expand(-1, 1000, -1).contiguous()[:, 0])


def test_what_is_kept_are_the_features_alone_and_the_model_is_left_as_it_was():
    objective = Objective.build(Whole(), CASES["mlp-relu"].objective().samples, device="cpu")
    # private: the memory of one batch, which no result shows
    with features.classifiers.Tap(objective.model, "fc") as tap:
        for batch in features._batches(objective, objective.model, tap):
            assert batch.features.untyped_storage().nbytes() == batch.features.nbytes
    before = copy.deepcopy(objective.model.state_dict())
    assert torch.is_grad_enabled()
    ls.features(objective)
    assert torch.is_grad_enabled()
    assert not objective.model.fc._forward_pre_hooks
    assert all(torch.equal(t, before[name]) for name, t in objective.model.state_dict().items())


def test_a_loss_may_have_parameters_of_its_own():
    scale = nn.Parameter(torch.tensor(3.0))
    objective = CASES["mlp-relu"].objective()
    options = {"device": "cpu", "dtype": torch.float64}
    scaled = Objective.build(
        objective.model.requires_grad_(),
        objective.samples,
        loss=lambda logits, labels: scale * F.cross_entropy(logits, labels, reduction="none"),
        **options,
    )
    np.testing.assert_allclose(ls.features(scaled).loss, 3 * ls.features(objective).loss, rtol=1e-10)


# Several checkpoints --------------------------------------------------------------------------------------------------


@pytest.fixture
def kept(tmp_path):
    """An objective and three checkpoints of its network, of which two say their epoch."""
    objective = CASES["residual-relu"].objective()
    files = [tmp_path / f"epoch-{k}.pt" for k in range(3)]
    for k, file in enumerate(files):
        checkpoints.write(file, changed(objective, k), {"epoch": 10 * k} if k < 2 else {})
    return objective, files


def test_at_each_checkpoint_the_numbers_are_those_of_its_own_weights(kept):
    objective, files = kept
    found = ls.features(objective, checkpoints=files)
    assert found.points == ("epoch-0", "epoch-1", "epoch-2")
    np.testing.assert_array_equal(found.epoch, [0, 10, np.nan])
    for k, file in enumerate(files):
        model = copy.deepcopy(objective.model).requires_grad_()
        model.load_state_dict(checkpoints.read(file).state)
        alone = ls.features(Objective.build(model, objective.samples, dtype=torch.float64, batch_size=4, device="cpu"))
        for name in ("quality", "variance", "accuracy", "mean_cosine", "duality", "within_between"):
            np.testing.assert_array_equal(getattr(found, name)[k], getattr(alone, name)[0], err_msg=name)
    assert len(set(found.within_between)) == 3
    assert set(found.provenance["checkpoints"]) == {str(file) for file in files}
    named = ls.features(objective, checkpoints=[(files[2], 20.0)])
    assert named.epoch.tolist() == [20]


def test_an_interrupted_run_goes_on_with_what_is_missing(kept, tmp_path):
    objective, files = kept
    expected = ls.features(objective, checkpoints=files)
    out = tmp_path / "f.h5"
    with refused(jobs.Interrupted, 1, 3):
        ls.features(objective, checkpoints=files, out=out, progress=Interrupting(1))
    with refused(StoreError, 0.6, beta=0.5):
        ls.features(objective, checkpoints=files, out=out, beta=0.6)
    missing = Interrupting()
    found = ls.features(objective, checkpoints=files, out=out, progress=missing)
    assert len(missing.units) == 2
    stored = ls.load(out)
    for name in ("quality", "mean_cosine", "duality", "nearest", "epoch"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
        np.testing.assert_array_equal(getattr(stored, name), getattr(expected, name))


def test_a_run_goes_on_with_the_same_weights_only(kept, tmp_path):
    objective, files = kept
    with pytest.raises(KeyboardInterrupt):
        ls.features(objective, checkpoints=files, out=tmp_path / "f.h5", progress=Interrupting(1))
    checkpoints.write(files[2], changed(objective, 7), {})
    with refused(StoreError, "f.h5"):
        ls.features(objective, checkpoints=files, out=tmp_path / "f.h5")


def test_a_file_that_changes_while_others_are_measured_is_refused(kept):
    objective, files = kept
    with refused(InputError, "epoch-1.pt"):
        ls.features(
            objective,
            checkpoints=files,
            progress=lambda *told: checkpoints.write(files[1], changed(objective, 9), {}),
        )


def test_checkpoints_that_do_not_fit_are_named(kept, tmp_path):
    objective, files = kept
    with refused(InputError, "checkpoint"):
        ls.features(objective, checkpoints=[])
    with refused(InputError, "epoch-0.pt"):
        ls.features(objective, checkpoints=[files[0], files[0]])
    other = tmp_path / "other.pt"
    checkpoints.write(other, nn.Linear(4, 3).state_dict(), {})
    with refused(InputError, "other.pt"):
        ls.features(objective, checkpoints=[*files, other])
    huge = changed(objective, 0) | {"bn1.weight": torch.full((3,), 1e300, dtype=torch.float64)}
    huge |= {"bn1.running_var": torch.full((3,), 1e-300, dtype=torch.float64)}
    huge |= {"conv2.weight": 1e10 * huge["conv2.weight"]}
    checkpoints.write(other, huge, {})
    with refused(NumericalError, "other.pt"):
        ls.features(objective, checkpoints=[files[0], other])


@pytest.mark.parametrize("options", [{"beta": -1.0}, {"beta": math.nan}, {"beta": math.inf}, {"cache_bytes": -1}])
def test_options_out_of_their_range_are_refused(options):
    with pytest.raises(InputError, match=r"(beta must be a finite number|cache_bytes must not be negative)"):
        ls.features(CASES["mlp-relu"].objective(), **options)


def test_a_model_without_a_classifier_is_refused():
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(18, 6), nn.Unflatten(1, (3, 2)), nn.AdaptiveAvgPool1d(1), nn.Flatten()
    )
    objective = Objective.build(model, CASES["mlp-relu"].objective().samples, device="cpu")
    with refused(InputError, "linear", 3):
        ls.features(objective)
