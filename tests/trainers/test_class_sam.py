"""Focal-SAM, ImbSAM and CC-SAM against their formulas written out."""

import copy
import math

import numpy as np
import pytest
import torch
from refusals import refused
from torch import nn
from torch.nn import functional as F
from toys import CPU, batched, blobs, recipe

from landscape.errors import InputError
from landscape.networks.models import NormedLinear
from trainers.class_sam import ClassSAM, class_conditional, focal_weights, tail_weights
from trainers.loop import Trainer
from trainers.sam import SAM

COUNTS = np.array([50, 9, 2])


def network():
    with torch.random.fork_rng():
        torch.random.default_generator.manual_seed(0)
        layers = nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 3)
        return nn.Sequential(*layers).double()


def batch():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(11, 4, generator=generator, dtype=torch.float64), torch.tensor([0, 0, 1, 2, 0, 1, 1, 0, 0, 2, 0])


def cross_entropy(logits, labels):
    return F.cross_entropy(logits, labels, reduction="none")


def gradient(loss, model):
    return torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, list(model.parameters()), retain_graph=True)])


def moved(model, by):
    other = copy.deepcopy(model)
    torch.nn.utils.vector_to_parameters(
        torch.nn.utils.parameters_to_vector(other.parameters()) + by, other.parameters()
    )
    return other


@pytest.mark.parametrize("weights", [focal_weights(COUNTS, 0.5, 3.0), tail_weights(COUNTS, 9), tail_weights(COUNTS, 1)])
def test_a_step_is_its_formula(weights):
    """Two parts, each as a mean over the batch; where no class has a weight, the plain gradient."""
    model, (inputs, labels) = network(), batch()
    plain, c = copy.deepcopy(model), weights[labels]
    values = F.cross_entropy(plain(inputs), labels, reduction="none")
    v = gradient((c * values).mean(), plain)
    there = moved(plain, 0.3 * v / v.norm() if v.norm() > 0 else 0 * v)
    again = F.cross_entropy(there(inputs), labels, reduction="none")
    expected = gradient(((1 - c) * values).mean(), plain) + gradient((c * again).mean(), there)
    optimizer = ClassSAM(model.parameters(), torch.optim.SGD, weights=weights, rho=0.3, model=model, lr=0.1)
    before, statistics = model[0].weight.clone(), plain[1].running_mean
    found = optimizer.gradients(lambda: F.cross_entropy(model(inputs), labels, reduction="none"), labels)
    torch.testing.assert_close(found, values)
    torch.testing.assert_close(
        torch.cat([p.grad.reshape(-1) for p in model.parameters()]), expected, rtol=0, atol=1e-13
    )
    assert torch.equal(model[0].weight, before)
    torch.testing.assert_close(model[1].running_mean, statistics)  # of the first pass alone
    if weights.any():
        assert (expected - gradient(values.mean(), plain)).norm() > 1e-3


def test_all_classes_alike_are_sam():
    ends = []
    for by_class in (True, False):
        model, (inputs, labels) = network(), batch()
        options = {"rho": 0.3, "model": model, "lr": 0.1}
        weights = focal_weights(COUNTS, 1.0, 0.0)
        optimizer = (
            ClassSAM(model.parameters(), torch.optim.SGD, weights=weights, **options)
            if by_class
            else SAM(model.parameters(), torch.optim.SGD, **options)
        )

        def losses(model=model, inputs=inputs, labels=labels):
            return cross_entropy(model(inputs), labels)

        optimizer.step(losses, labels) if by_class else optimizer.step(losses)
        ends.append(model[3].weight.detach())
    torch.testing.assert_close(*ends, rtol=0, atol=1e-14)


def test_weights_are_those_of_the_papers():
    np.testing.assert_allclose(focal_weights(np.array([3, 1]), 0.8, 2.0), [0.8 / 16, 0.8 * 9 / 16])
    assert tail_weights(np.array([101, 100, 1]), 100).tolist() == [0, 1, 1]
    with refused(InputError, "Focal-SAM", 0, 1, 2):
        focal_weights(COUNTS, 2, 1)
    model = network()
    with refused(InputError, "labels"):
        ClassSAM(model.parameters(), torch.optim.SGD, weights=tail_weights(COUNTS, 9), lr=0.1).step(lambda: None)


@pytest.mark.parametrize("kind", ["linear", "cosine"])
def test_cc_sam_perturbs_the_classifier_for_each_class(kind):
    inputs, labels = batch()
    features = inputs.clone().requires_grad_()
    with torch.random.fork_rng():
        torch.random.default_generator.manual_seed(3)
        classifier = (nn.Linear(4, 3) if kind == "linear" else NormedLinear(4, 3)).double()
    values = cross_entropy(classifier(features), labels)
    about = {"scale": 0.1, "share": 0.3}
    found = class_conditional(cross_entropy, classifier, features, labels, values, torch.from_numpy(COUNTS), **about)
    d, expected = sum(p.numel() for p in classifier.parameters()), torch.zeros(11, dtype=torch.float64)
    for i, y in enumerate(labels.tolist()):
        own = copy.deepcopy(classifier)
        loss = cross_entropy(own(inputs[labels == y]), labels[labels == y]).mean()
        with torch.no_grad():
            for p, g in zip(own.parameters(), torch.autograd.grad(loss, list(own.parameters())), strict=True):
                rho = (p.norm() / (2 * g.norm())).sqrt() * d**-0.25 * max(COUNTS[y] - 1, 1) ** -0.25
                p += 0.1 * math.sqrt(d) * rho * g / g.norm()
            expected[i] = cross_entropy(own(inputs[i : i + 1]), labels[i : i + 1])[0]
    torch.testing.assert_close(found, 0.7 * values + 0.3 * expected, rtol=0, atol=1e-12)
    assert (expected - values).detach().abs().max() > 1e-3
    assert torch.autograd.grad(found.sum(), features)[0].isfinite().all()


def test_cc_sams_perturbation_does_not_depend_on_the_unit_of_the_loss():
    """Losses times 2^-80, whose gradients have no squares in float32; Z makes up for the radii, times 2^40."""
    inputs, labels = batch()
    features, classifier = inputs.float(), network()[3].float()
    features = torch.cat([features, features[:, :2]], dim=1)
    found = []
    for p in (0, -80):

        def criterion(logits, labels, p=p):
            return cross_entropy(logits, labels) * 2.0**p

        about = {"scale": 0.1 * 2 ** (p / 2), "share": 0.3}
        values = criterion(classifier(features), labels)
        counts = torch.from_numpy(COUNTS)
        found.append(class_conditional(criterion, classifier, features, labels, values, counts, **about) * 2.0**-p)
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["focal-sam", "imbsam", "cc-sam"])
def test_runs_differ_from_plain_ones_by_their_sharpness(name):
    ends = []
    for options in (
        {},
        {"sharpness": name, "tail_most": 5, "radius_scale": 0.1},
        {"sharpness": name, "compile": False},
    ):
        trainer = Trainer(recipe(batch_size=15, **options), batched(), blobs(), device=CPU)
        row = trainer.run_epoch()
        assert np.isfinite(row["train_loss"])
        ends.append(trainer.model[0].weight.detach().clone())
    assert not torch.allclose(ends[0], ends[1], rtol=0, atol=1e-6)


def test_imbsam_without_a_class_to_perturb_for_is_refused():
    """It would be the base optimizer at twice the cost."""
    samples = blobs(n_per_class=(9, 5, 3))
    with refused(InputError, 3, tail_most=2):
        Trainer(recipe(sharpness="imbsam", tail_most=2), batched(), samples, device=CPU)
    Trainer(recipe(sharpness="imbsam", tail_most=3), batched(), samples, device=CPU)
