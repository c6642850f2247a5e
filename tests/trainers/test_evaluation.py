"""Evaluation of each class, and cosines of gradients."""

import numpy as np
import pytest
import torch
from torch import nn
from toys import CPU, blobs, layered, linear, recipe, smooth, untracked

from landscape.data import datasets
from trainers import evaluation, gkp
from trainers.loop import Trainer, seeded

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
        own = values[labels == c]
        if len(own) > 1:
            assert found.loss_per_class_stderr[c] == pytest.approx(own.std().item() / len(own) ** 0.5, rel=1e-5)
    assert found.loss == pytest.approx(values.mean().item(), rel=1e-6)
    assert found.loss_stderr == pytest.approx(values.std().item() / len(labels) ** 0.5, rel=1e-5)
    torch.testing.assert_close(found.features, features)


def test_each_module_keeps_its_own_mode():
    """Batch norm may be frozen within a network that is trained."""
    model, samples = layered(), blobs()
    model[1].eval()
    modes = [m.training for m in model.modules()]
    evaluation.evaluate(model, samples, classifier="4")
    assert [m.training for m in model.modules()] == modes
    evaluation.gradient_cosines(model, samples, batch_size=15, seed=0)
    assert [m.training for m in model.modules()] == modes


def test_a_class_without_samples_has_nan():
    found = evaluation.evaluate(linear(), blobs(n_per_class=(2, 1, 0)))
    assert np.isnan(found.accuracy_per_class).tolist() == [False, False, True]
    assert np.isnan(found.loss_per_class_stderr).tolist() == [False, True, True]  # one sample has no known spread
    assert np.isfinite([found.accuracy, found.loss_stderr]).all()


@pytest.mark.parametrize("make", [layered, untracked])
def test_cosines_of_class_and_batch_gradients_are_those_of_a_loop(make):
    """Also through the statistics of the batch, where batch norm has no others."""
    model, samples = make(), blobs()
    found = evaluation.gradient_cosines(model, samples, batch_size=15, seed=0)
    assert model.training
    model.eval()
    labels = torch.from_numpy(samples.labels)

    def gradient(mask):
        loss = nn.functional.cross_entropy(model(samples.inputs)[mask], labels[mask])
        return torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, list(model.parameters()))])

    whole = gradient(labels >= 0)
    expected = [torch.cosine_similarity(gradient(labels == c), whole, dim=0).item() for c in range(3)]
    np.testing.assert_allclose(found, expected, atol=1e-5)


class TimeFirst(nn.Module):
    """Five steps of three numbers, time before samples."""

    def __init__(self):
        super().__init__()
        self.step, self.out = nn.Linear(3, 4), nn.Linear(4, 3)

    def forward(self, x):
        return self.out(torch.tanh(self.step(x.movedim(1, 0))).mean(0))


class Sorting(TimeFirst):
    """Samples in the order of a number, and back again."""

    def forward(self, x):
        order = x[:, 0, 0].argsort()
        return self.out(torch.tanh(self.step(x[order].mean(1)))[order.argsort()])


@pytest.mark.parametrize("make", [TimeFirst, Sorting])
@pytest.mark.parametrize("batch_size", [4, 5, 15])
def test_cosines_do_not_depend_on_where_a_model_has_its_samples(make, batch_size):
    with seeded(CPU, 0):
        model, inputs = make(), torch.randn(15, 5, 3)
    labels = torch.tensor([0, 1, 0, 2, 0] * 3)
    samples = datasets.from_dataset((inputs, labels), name="steps", split="train")
    found = evaluation.gradient_cosines(model, samples, batch_size=batch_size, seed=3)
    rows = [[], [], []]
    for b in np.array_split(np.random.default_rng(3).permutation(15), -(-15 // batch_size)):
        values = nn.functional.cross_entropy(model(inputs[b]), labels[b], reduction="none")

        def gradient(values):
            parts = torch.autograd.grad(values.mean(), list(model.parameters()), retain_graph=True)
            return torch.cat([g.reshape(-1) for g in parts])

        for c in labels[b].unique():
            ours = gradient(values[labels[b] == c])
            rows[c].append(torch.cosine_similarity(ours, gradient(values), dim=0).item())
    np.testing.assert_allclose(found, [np.mean(row) for row in rows], atol=1e-5)


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
