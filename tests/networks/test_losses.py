"""Losses against closed forms, and under the transforms that the analysis applies to them."""

import math

import numpy as np
import pytest
import torch
from refusals import refused
from torch.func import functional_call, grad, hessian, jacrev, jvp, vmap

from landscape.errors import InputError
from landscape.networks import losses, models

COUNTS = np.array([90, 9, 1])
LABELS = torch.tensor([0, 0, 1, 2, 1])


@pytest.fixture
def logits():
    return torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", ["ce", "logit-adjust", "vs", "balanced"])
def test_a_uniform_prior_leaves_cross_entropy(name, logits):
    expected = -torch.log_softmax(logits, dim=1)[torch.arange(5), LABELS]
    torch.testing.assert_close(losses.build(name, np.full(3, 7))(logits, LABELS), expected)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("focal", {"gamma": 0}),
        ("ldam", {"max_margin": 0}),
        ("logit-adjust", {"tau": 0}),
        ("vs", {"gamma": 0, "tau": 0}),
    ],
)
def test_options_of_0_leave_cross_entropy(name, options, logits):
    expected = -torch.log_softmax(logits, dim=1)[torch.arange(5), LABELS]
    torch.testing.assert_close(losses.build(name, COUNTS, **options)(logits, LABELS), expected)


def test_cross_entropy_of_equal_logits_is_log_c():
    value = losses.build("ce", COUNTS)(torch.full((2, 3), 4.0), torch.tensor([0, 2]))
    torch.testing.assert_close(value, torch.full((2,), np.log(3), dtype=torch.float32))


def test_logit_adjusted_loss_of_equal_logits_is_the_negative_log_prior():
    value = losses.build("logit-adjust", COUNTS)(torch.zeros(3, 3, dtype=torch.float64), torch.arange(3))
    torch.testing.assert_close(value, -torch.log(torch.tensor([0.90, 0.09, 0.01], dtype=torch.float64)))


def test_the_shift_by_the_log_prior_is_tau_times_as_long():
    """Equal logits, tau = 1/2, shares 0.9, 0.09, 0.01: scores go as their roots."""
    value = losses.build("logit-adjust", COUNTS, tau=0.5)(torch.zeros(3, 3, dtype=torch.float64), torch.arange(3))
    roots = torch.tensor([0.90, 0.09, 0.01], dtype=torch.float64).sqrt()
    torch.testing.assert_close(value, torch.log(roots.sum() / roots))


def test_focal_loss_is_the_cross_entropy_times_a_power_of_the_miss():
    """p_y = 1/4: 2.5 powers of 3/4."""
    logits = torch.log(torch.tensor([[0.25, 0.6, 0.15]], dtype=torch.float64))
    value = losses.build("focal", COUNTS, gamma=2.5)(logits, torch.tensor([0]))
    torch.testing.assert_close(value, torch.tensor([0.75**2.5 * math.log(4)], dtype=torch.float64))


def test_focal_loss_keeps_its_digits_where_the_label_is_almost_certain():
    """In float32 1 - p_y has no digit left beyond a lead of 17, the loss of about (2 exp(-lead))^3 has all."""
    lead = torch.tensor([12.0, 17.0, 20.0])
    logits = torch.stack([lead, torch.zeros(3), torch.zeros(3)], dim=1)
    loss, labels = losses.build("focal", COUNTS), torch.zeros(3, dtype=torch.long)
    found = loss(logits, labels).double()
    rest = 2 / (lead.double().exp() + 2)
    torch.testing.assert_close(found, -(rest**2) * torch.log1p(-rest), rtol=1e-5, atol=0)


@pytest.mark.parametrize("lead", [-1e4, 0.0, 60.0, 1e4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_derivatives_of_the_focal_loss_stay_finite(lead, dtype):
    logits, label = torch.tensor([[lead, 0.0, 0.0]], dtype=dtype), torch.tensor([0])
    loss = losses.build("focal", COUNTS)
    for found in (jacrev(loss)(logits, label), hessian(loss)(logits, label)):
        assert found.isfinite().all()


@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_derivatives_of_the_focal_loss_are_those_of_the_chain_rule(gamma, logits):
    """With f(p) = -(1 - p)^gamma log p: gradient f' g and Hessian f'' g gT + f' (g gT / p - p C), g = p (e_y - p)."""
    p, y = torch.softmax(logits[0], dim=0), 1
    q, log_p = 1 - p[y], torch.log(p[y])
    first = gamma * q ** (gamma - 1) * log_p - q**gamma / p[y]
    second = (
        -gamma * (gamma - 1) * q ** (gamma - 2) * log_p + 2 * gamma * q ** (gamma - 1) / p[y] + q**gamma / p[y] ** 2
    )
    g = p[y] * (torch.eye(3, dtype=torch.float64)[y] - p)
    outer, covariance = torch.outer(g, g), torch.diag(p) - torch.outer(p, p)
    loss = losses.build("focal", COUNTS, gamma=gamma)

    def of(z):
        return loss(z[None], torch.tensor([y]))[0]

    torch.testing.assert_close(grad(of)(logits[0]), first * g)
    torch.testing.assert_close(hessian(of)(logits[0]), second * outer + first * (outer / p[y] - p[y] * covariance))


def test_ldam_asks_a_margin_of_the_fourth_root_of_the_count():
    """Counts 16 and 1: margins 1/4 and 1/2 of the cosine; equal logits and s = 2 then trail by 1/2 and 1."""
    value = losses.build("ldam", np.array([16, 1]), scale=2)(torch.zeros(2, 2, dtype=torch.float64), torch.arange(2))
    expected = [math.log(1 + math.exp(0.5)), math.log(1 + math.e)]
    torch.testing.assert_close(value, torch.tensor(expected, dtype=torch.float64))


def test_ldam_has_the_scale_of_the_cosine_classifier(logits):
    """The margin is subtracted from the cosine, before it is scaled, as Cao et al. write it."""
    classifier = models.NormedLinear(3, 3).double()
    found = losses.build("ldam", COUNTS)(classifier(logits), LABELS)
    weight = classifier.weight.detach()
    for i, y in enumerate(LABELS.tolist()):
        cosines = logits[i] @ weight / (logits[i].norm() * weight.norm(dim=0))
        cosines[y] -= 0.5 * COUNTS[y] ** -0.25 / 1**-0.25
        torch.testing.assert_close(found[i], -torch.log_softmax(30 * cosines, dim=0)[y])


def test_vector_scaling_multiplies_by_a_power_of_the_count_and_adds_the_log_prior():
    """Counts 16 and 1, gamma 1/4, tau 1: logits 0 and 2 log 3 become log 16/17 and log 3 + log 1/17."""
    logits = torch.tensor([[0, 2 * math.log(3)]] * 2, dtype=torch.float64)
    value = losses.build("vs", np.array([16, 1]), gamma=0.25, tau=1)(logits, torch.arange(2))
    torch.testing.assert_close(value, torch.tensor([math.log(19 / 16), math.log(19 / 3)], dtype=torch.float64))


@pytest.mark.parametrize(
    ("name", "defaults"),
    [
        ("focal", {"gamma": 2}),
        ("ldam", {"max_margin": 0.5, "scale": 30}),
        ("logit-adjust", {"tau": 1}),
        ("vs", {"gamma": 0.15, "tau": 1.25}),
    ],
)
def test_defaults_are_those_of_the_literature(name, defaults, logits):
    expected = losses.build(name, COUNTS, **defaults)(logits, LABELS)
    torch.testing.assert_close(losses.build(name, COUNTS)(logits, LABELS), expected, rtol=0, atol=0)


def test_balanced_loss_averages_to_the_mean_of_class_means(logits):
    counts = np.bincount(LABELS, minlength=3)  # 2, 2, 1
    per_sample = losses.build("ce", counts)(logits, LABELS)
    class_means = torch.stack([per_sample[c == LABELS].mean() for c in range(3)])
    torch.testing.assert_close(losses.build("balanced", counts)(logits, LABELS).mean(), class_means.mean())


@pytest.mark.parametrize("name", ["ce", "ldam", "logit-adjust", "vs", "balanced"])
@pytest.mark.parametrize("label", [0, 2])
def test_hessian_in_the_logits_is_the_weighted_softmax_covariance(name, label, logits):
    share = torch.tensor(COUNTS / COUNTS.sum())
    shift, factor = torch.zeros(3, dtype=torch.float64), torch.ones(3, dtype=torch.float64)
    if name == "ldam":
        shift[label] = -30 * 0.5 * (1 / COUNTS[label]) ** 0.25
    if name in {"logit-adjust", "vs"}:
        shift = (1.25 if name == "vs" else 1) * torch.log(share)
    if name == "vs":
        factor = (share / share[0]) ** 0.15
    p = torch.softmax(factor * logits[0] + shift, dim=0)
    weight = 1 / (3 * share[label]) if name == "balanced" else 1
    loss = losses.build(name, COUNTS)
    found = hessian(lambda z: loss(z[None], torch.tensor([label]))[0])(logits[0])
    torch.testing.assert_close(found, weight * torch.outer(factor, factor) * (torch.diag(p) - torch.outer(p, p)))


@pytest.mark.parametrize("name", losses.names())
def test_derivatives_are_those_of_the_values(name, logits):
    loss = losses.build(name, COUNTS)
    z = logits.requires_grad_()
    assert torch.autograd.gradcheck(lambda z: loss(z, LABELS), (z,))
    assert torch.autograd.gradgradcheck(lambda z: loss(z, LABELS), (z,))


@pytest.mark.parametrize("name", losses.names())
def test_reverse_over_reverse_equals_forward_over_reverse(name, logits):
    loss = losses.build(name, COUNTS)
    direction = torch.linspace(-1, 1, 15, dtype=torch.float64).view(5, 3)
    twice = logits.clone().requires_grad_()
    (first,) = torch.autograd.grad(loss(twice, LABELS).sum(), twice, create_graph=True)
    (expected,) = torch.autograd.grad(first, twice, direction)
    _, found = jvp(grad(lambda z: loss(z, LABELS).sum()), (logits,), (direction,))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("name", losses.names())
def test_gradients_per_sample_under_vmap_equal_a_loop(name, logits):
    loss = losses.build(name, COUNTS)
    model = torch.nn.Linear(3, 3, dtype=torch.float64)
    parameters = {n: p.detach() for n, p in model.named_parameters()}

    def of_one(theta, x, y):
        return loss(functional_call(model, theta, (x[None],)), y[None])[0]

    found = vmap(grad(of_one), in_dims=(None, 0, 0))(parameters, logits, LABELS)
    for i in range(5):
        expected = grad(of_one)(parameters, logits[i], LABELS[i])
        torch.testing.assert_close(found["weight"][i], expected["weight"])


@pytest.mark.parametrize("name", losses.names())
def test_the_loss_has_the_type_of_the_logits(name, logits):
    assert losses.build(name, COUNTS)(logits.float(), LABELS).dtype == torch.float32


@pytest.mark.parametrize("name", ["ldam", "logit-adjust", "vs", "balanced"])
def test_a_class_without_training_samples_is_named(name):
    with refused(InputError, 1, loss=name):
        losses.build(name, np.array([5, 0, 3]))


@pytest.mark.parametrize("name", ["ldam", "logit-adjust", "vs", "balanced"])
def test_a_model_with_other_classes_is_refused(name):
    with refused(InputError, "outputs", 4, "classes", 3):
        losses.build(name, COUNTS)(torch.zeros(2, 4), torch.tensor([0, 1]))


def test_an_unknown_loss_is_refused_with_the_choices():
    with refused(InputError, "hinge", "logit-adjust"):
        losses.build("hinge", COUNTS)


@pytest.mark.parametrize(
    ("name", "option", "choice"),
    [
        ("ce", "gamma", "none"),
        ("vs", "scale", "gamma, tau"),
        ("ldam", "tau", "max_margin, scale"),
        ("focal", "x", "gamma"),
    ],
)
def test_an_option_of_another_loss_is_refused(name, option, choice):
    with refused(InputError, option, choice, loss=name):
        losses.build(name, COUNTS, **{option: 1.0})


@pytest.mark.parametrize("value", [-0.5, math.inf, math.nan])
@pytest.mark.parametrize(
    ("name", "option"),
    [
        ("focal", "gamma"),
        ("ldam", "max_margin"),
        ("ldam", "scale"),
        ("logit-adjust", "tau"),
        ("vs", "gamma"),
        ("vs", "tau"),
    ],
)
def test_an_option_out_of_its_range_is_refused(name, option, value):
    with refused(InputError, option, 0, value, loss=name):
        losses.build(name, COUNTS, **{option: value})


def test_options_of_a_users_loss_are_refused():
    with refused(InputError, "tau"):
        losses.build("own_loss:hinge", COUNTS, tau=1.0)


def test_a_users_loss_is_taken_as_it_is(tmp_path, monkeypatch):
    (tmp_path / "own_loss.py").write_text("def hinge(outputs, labels):\n    return outputs[:, 0]\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    assert losses.build("own_loss:hinge", COUNTS)(torch.ones(4, 3), None).tolist() == [1.0] * 4
