"""Losses of training against their equations written out in plain loops, and what their equations imply."""

import math

import numpy as np
import pytest
import torch
from refusals import refused
from torch import nn
from torch.nn import functional as F

from landscape.errors import InputError
from landscape.networks import losses
from trainers.loop import seeded
from trainers.losses import (
    BCL,
    ContrastiveHead,
    balanced_contrastive,
    effective_number_weights,
    reweighted,
)

CPU = torch.device("cpu")
LABELS = torch.tensor([0, 2, 0, 0, 2])  # of four classes, two of which have no sample


def on_sphere(*shape, seed=0, dtype=torch.float64):
    return F.normalize(torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed)), dim=-1)


def head(n_features=6, n_projected=5):
    with seeded(CPU, 0):
        return ContrastiveHead(n_features, 7, n_projected)


def by_the_equation(projections, labels, prototypes, temperature):
    """Transcribe: a list of (view, class, is anchor) and sums over it."""
    n_views, n_samples, _ = projections.shape
    points = [(projections[v, b].tolist(), int(labels[b])) for v in range(n_views) for b in range(n_samples)]
    points += [(prototypes[c].tolist(), c) for c in range(len(prototypes))]
    found = [0.0] * n_samples
    for i in range(n_views * n_samples):
        z, y = points[i]
        similarity = [sum(a * b for a, b in zip(z, other, strict=True)) / temperature for other, _ in points]
        of_class = {j: [k for k, (_, c) in enumerate(points) if c == j and k != i] for j in range(len(prototypes))}
        total = 0.0
        for members in of_class.values():
            total += sum(math.exp(similarity[k]) for k in members) / len(members)
        logs = [math.log(math.exp(similarity[p]) / total) for p in of_class[y]]
        found[i % n_samples] -= sum(logs) / len(logs) / n_views
    return torch.tensor(found, dtype=torch.float64)


# Re-weighting ---------------------------------------------------------------------------------------------------------


def test_a_class_of_one_weighs_as_the_effective_number_says():
    """beta 1/2: 1 - beta^n is 1/2, 3/4 and 7/8 for 1, 2, 3 samples, so weights go as 1, 2/3, 4/7, of sum 47/21."""
    found = effective_number_weights(np.array([1, 2, 3]), beta=0.5)
    expected = torch.tensor([1, 2 / 3, 4 / 7], dtype=torch.float64) * 3 * 21 / 47
    torch.testing.assert_close(found, expected)


def test_weights_are_equal_for_beta_0_and_go_as_1_over_n_towards_1():
    counts = np.array([50, 5, 1])
    torch.testing.assert_close(effective_number_weights(counts, beta=0.0), torch.ones(3, dtype=torch.float64))
    inverse = torch.from_numpy(1 / counts)
    near_1 = effective_number_weights(counts, beta=1 - 1e-9)
    torch.testing.assert_close(near_1, 3 * inverse / inverse.sum(), rtol=1e-6, atol=0)


def test_a_million_samples_weigh_1_minus_beta():
    found = effective_number_weights(np.array([10**6, 1]))
    torch.testing.assert_close(found[0] / found[1], torch.tensor(1e-4, dtype=torch.float64))


def test_a_class_without_samples_has_no_weight():
    with refused(InputError, 1, reweight="drw"):
        effective_number_weights(np.array([3, 0, 0]))


@pytest.mark.parametrize("beta", [-0.1, 1.0, math.nan])
def test_beta_out_of_its_range_is_refused(beta):
    with pytest.raises(InputError, match="at least 0 and below 1"):
        effective_number_weights(np.array([3, 1]), beta=beta)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_batch_mean_is_torchs_weighted_cross_entropy(dtype):
    weights = effective_number_weights(np.array([90, 9, 3, 1]))
    logits = on_sphere(5, 4, dtype=dtype)
    found = reweighted(losses.cross_entropy, weights)(logits, LABELS)
    assert found.shape == (5,)
    torch.testing.assert_close(found.mean(), F.cross_entropy(logits, LABELS, weight=weights.to(dtype)))


def test_by_itself_a_sample_has_the_plain_loss():
    logits, label = on_sphere(1, 4), torch.tensor([3])
    weighted = reweighted(losses.cross_entropy, torch.tensor([1.0, 1.0, 1.0, 7.0]))
    torch.testing.assert_close(weighted(logits, label), losses.cross_entropy(logits, label))


def test_ranks_that_share_a_batch_weigh_by_the_mean_over_all_of_it():
    weights, logits = torch.tensor([0.2, 1.0, 3.0, 7.0]), on_sphere(5, 4)
    expected = reweighted(losses.cross_entropy, weights)(logits, LABELS)
    parts = [slice(0, 2), slice(2, 5)]
    totals = [torch.stack([weights[LABELS[p]].sum(), torch.tensor(float(len(LABELS[p])))]) for p in parts]
    found = [
        reweighted(losses.cross_entropy, weights, lambda t, other=other: t.add_(other))(logits[p], LABELS[p])
        for p, other in zip(parts, reversed(totals), strict=True)
    ]
    torch.testing.assert_close(torch.cat(found), expected)


# The contrastive loss -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n_views", "temperature"), [(1, 0.1), (2, 0.1), (3, 0.7)])
def test_the_loss_is_its_equation(n_views, temperature):
    projections, prototypes = on_sphere(n_views, 5, 3), on_sphere(4, 3, seed=1)
    found = balanced_contrastive(projections, LABELS, prototypes, temperature)
    torch.testing.assert_close(found, by_the_equation(projections, LABELS, prototypes, temperature))


def test_one_view_of_one_sample_has_the_cross_entropy_of_its_prototypes():
    """The only positive is its prototype, and each class is its prototype alone."""
    projections, prototypes = on_sphere(1, 1, 3), on_sphere(4, 3, seed=1)
    found = balanced_contrastive(projections, torch.tensor([2]), prototypes)
    torch.testing.assert_close(found, F.cross_entropy(projections[0] @ prototypes.T / 0.1, torch.tensor([2]))[None])


@pytest.mark.parametrize("labels", [[0, 1, 2], [0, 0, 0, 0, 1], [2]])
def test_where_each_class_is_one_point_its_size_does_not_matter(labels):
    """Class averaging: with simplex corners at cosine -1/2, L = log(1 + 2 exp(-3/2 / t)) for whatever batch."""
    angles = torch.arange(3, dtype=torch.float64) * 2 * math.pi / 3
    corners = torch.stack([angles.cos(), angles.sin()], dim=1)
    found = balanced_contrastive(corners[torch.tensor(labels)].repeat(2, 1, 1), torch.tensor(labels), corners, 0.5)
    expected = math.log(1 + 2 * math.exp(-3))
    torch.testing.assert_close(found, torch.full((len(labels),), expected, dtype=torch.float64))


def test_the_order_of_samples_and_of_views_does_not_matter():
    projections, prototypes = on_sphere(2, 5, 3), on_sphere(4, 3, seed=1)
    order = torch.tensor([3, 1, 4, 0, 2])
    expected = balanced_contrastive(projections, LABELS, prototypes)
    torch.testing.assert_close(
        balanced_contrastive(projections.flip(0)[:, order], LABELS[order], prototypes), expected[order]
    )


def test_renaming_the_classes_does_not_matter():
    projections, prototypes = on_sphere(2, 5, 3), on_sphere(4, 3, seed=1)
    new_name = torch.tensor([2, 0, 3, 1])
    renamed = torch.empty_like(prototypes).index_copy(0, new_name, prototypes)
    expected = balanced_contrastive(projections, LABELS, prototypes)
    torch.testing.assert_close(balanced_contrastive(projections, new_name[LABELS], renamed), expected)


def test_an_absent_class_adds_the_term_of_its_prototype():
    """With one view, exp(L) = S / exp(mean attraction): a fifth class adds exp(z.c5 / t) to S and nothing else."""
    projections, prototypes = on_sphere(1, 5, 3), on_sphere(5, 3, seed=1)
    without, with_it = (balanced_contrastive(projections, LABELS, prototypes[:c], 0.5) for c in (4, 5))
    z = projections[0]
    for i in range(5):
        positives = [z[k] for k in range(5) if LABELS[k] == LABELS[i] and k != i] + [prototypes[LABELS[i]]]
        attraction = sum(z[i] @ p for p in positives) / len(positives) / 0.5
        expected = torch.exp(z[i] @ prototypes[4] / 0.5 - attraction)
        torch.testing.assert_close(with_it[i].exp() - without[i].exp(), expected)


def test_derivatives_are_those_of_the_values():
    projections, prototypes = on_sphere(2, 5, 3).requires_grad_(), on_sphere(4, 3, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda z, c: balanced_contrastive(z, LABELS, c, 0.5), (projections, prototypes), fast_mode=False
    )


@pytest.mark.parametrize("temperature", [0.1, 1e-3])
def test_values_and_gradients_stay_finite_in_float32(temperature):
    """Views that coincide, and a prototype opposite to them: exponents up to 2 / t = 2000."""
    point = on_sphere(1, 3, dtype=torch.float32)
    projections = point.expand(2, 5, 3).clone().requires_grad_()
    prototypes = torch.cat([-point, point, -point, point]).requires_grad_()
    values = balanced_contrastive(projections, LABELS, prototypes, temperature)
    double = balanced_contrastive(projections.double(), LABELS, prototypes.double(), temperature)
    assert values.dtype == torch.float32
    torch.testing.assert_close(values.double(), double, rtol=1e-5, atol=1e-5)
    for gradient in torch.autograd.grad(values.sum(), (projections, prototypes)):
        assert gradient.isfinite().all()


def test_a_class_larger_than_the_integers_of_bfloat16_is_counted_right():
    """600 views of class 0, which all coincide with its prototype, in a format that cannot count beyond 256."""
    corners = torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=torch.bfloat16)
    found = balanced_contrastive(corners[:1].expand(2, 300, 2), torch.zeros(300, dtype=torch.long), corners, 1.0)
    expected = torch.full((300,), math.log(1 + math.exp(-1)), dtype=torch.bfloat16)
    torch.testing.assert_close(found, expected, rtol=0, atol=0.05)


@pytest.mark.parametrize(
    ("n_labels", "shape", "message"),
    [
        (4, (4, 3), (2, 5, 3, 4)),
        (5, (4, 2), (4, 2)),
    ],
)
def test_shapes_that_do_not_fit_are_refused(n_labels, shape, message):
    with refused(InputError, *message):
        balanced_contrastive(on_sphere(2, 5, 3), LABELS[:n_labels], on_sphere(*shape))


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.inf, math.nan])
def test_a_temperature_that_is_not_positive_is_refused(temperature):
    with pytest.raises(InputError, match=r"temperature .* must be positive"):
        balanced_contrastive(on_sphere(2, 5, 3), LABELS, on_sphere(4, 3), temperature)


# The head -------------------------------------------------------------------------------------------------------------


def test_samples_and_classes_go_through_two_networks_of_one_form():
    module = head().eval()
    features, weights = on_sphere(7, 6, dtype=torch.float32), on_sphere(4, 6, seed=1, dtype=torch.float32)
    for found, network, rows in zip(
        module(features, weights), (module.of_samples, module.of_classes), (features, weights), strict=True
    ):
        first, norm, _, last = network
        hidden = torch.clamp((rows @ first.weight.T + first.bias) / math.sqrt(1 + norm.eps), min=0)
        expected = hidden @ last.weight.T + last.bias
        torch.testing.assert_close(found, expected / expected.norm(dim=1, keepdim=True))
    assert [p.shape for p in module.of_samples.parameters()] == [p.shape for p in module.of_classes.parameters()]
    assert not {id(p) for p in module.of_samples.parameters()} & {id(p) for p in module.of_classes.parameters()}


@pytest.mark.parametrize("n_classes", [2, 3])
def test_a_step_on_few_classes_has_finite_gradients_everywhere(n_classes):
    module, labels = head(), torch.tensor([0, 1, 1])
    features = on_sphere(6, 6, dtype=torch.float32).requires_grad_()
    with seeded(CPU, 1):
        classifier = nn.Linear(6, n_classes)
    projections, prototypes = module(features, classifier.weight)
    plain = losses.build("logit-adjust", np.array([2] * n_classes))(classifier(features[:3]), labels)
    contrast = balanced_contrastive(projections.view(2, 3, 5), labels, prototypes)
    (BCL().ce_weight * plain + BCL().contrast_weight * contrast).mean().backward()
    gradients = [features.grad, classifier.weight.grad, *(p.grad for p in module.parameters())]
    assert all(g.isfinite().all() for g in gradients)
    assert prototypes.shape == (n_classes, 5)


def test_classes_without_samples_are_moved_too():
    prototypes = on_sphere(4, 3, seed=1).requires_grad_()
    balanced_contrastive(on_sphere(2, 5, 3), LABELS, prototypes).sum().backward()
    assert (prototypes.grad.norm(dim=1) > 0).all()


@pytest.mark.parametrize(
    ("features", "weights", "message"),
    [
        ((5, 6), (6, 4), ("loss", "bcl", 6, 4)),
        ((5, 3, 6), (4, 6), (5, 3, 6)),
        ((1, 6), (4, 6), (1, "batch_size")),
        ((5, 6), (1, 6), (1,)),
    ],
)
def test_what_the_head_cannot_take_is_refused(features, weights, message):
    with refused(InputError, *message):
        head()(torch.zeros(features), torch.zeros(weights))


def test_nothing_is_read_back_from_a_device():
    """Tensors of torch's meta device have no values: whatever would wait for them, or mix devices, raises."""
    meta = torch.device("meta")
    labels = LABELS.to(meta)
    projections, prototypes = head().to(meta)(torch.empty(10, 6, device=meta), torch.empty(4, 6, device=meta))
    assert balanced_contrastive(projections.view(2, 5, 5), labels, prototypes).shape == (5,)
    for name in losses.names():
        loss = reweighted(losses.build(name, np.array([4, 3, 2, 1])), torch.ones(4))
        assert loss(torch.empty(5, 4, device=meta), labels).device == meta
