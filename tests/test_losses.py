"""Losses against closed forms, and under the transforms that the analysis applies to them."""

import numpy as np
import pytest
import torch
from torch.func import functional_call, grad, hessian, jvp, vmap

from landscape import losses
from landscape.errors import InputError

# torch itself compiles its forward-mode rules with torch.jit.script when the first of them is needed
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")

COUNTS = np.array([90, 9, 1])
LABELS = torch.tensor([0, 0, 1, 2, 1])


@pytest.fixture
def logits():
    return torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", losses.names())
def test_a_uniform_prior_leaves_cross_entropy(name, logits):
    expected = -torch.log_softmax(logits, dim=1)[torch.arange(5), LABELS]
    torch.testing.assert_close(losses.build(name, np.full(3, 7))(logits, LABELS), expected)


def test_cross_entropy_of_equal_logits_is_log_c():
    value = losses.build("ce", COUNTS)(torch.full((2, 3), 4.0), torch.tensor([0, 2]))
    torch.testing.assert_close(value, torch.full((2,), np.log(3), dtype=torch.float32))


def test_logit_adjusted_loss_of_equal_logits_is_the_negative_log_prior():
    value = losses.build("logit-adjust", COUNTS)(torch.zeros(3, 3, dtype=torch.float64), torch.arange(3))
    torch.testing.assert_close(value, -torch.log(torch.tensor([0.90, 0.09, 0.01], dtype=torch.float64)))


def test_balanced_loss_averages_to_the_mean_of_class_means(logits):
    counts = np.bincount(LABELS, minlength=3)  # 2, 2, 1
    per_sample = losses.build("ce", counts)(logits, LABELS)
    class_means = torch.stack([per_sample[c == LABELS].mean() for c in range(3)])
    torch.testing.assert_close(losses.build("balanced", counts)(logits, LABELS).mean(), class_means.mean())


@pytest.mark.parametrize("name", losses.names())
@pytest.mark.parametrize("label", [0, 2])
def test_hessian_in_the_logits_is_the_weighted_softmax_covariance(name, label, logits):
    share = torch.tensor(COUNTS / COUNTS.sum())
    p = torch.softmax(logits[0] + (torch.log(share) if name == "logit-adjust" else 0), dim=0)
    weight = 1 / (3 * share[label]) if name == "balanced" else 1
    loss = losses.build(name, COUNTS)
    found = hessian(lambda z: loss(z[None], torch.tensor([label]))[0])(logits[0])
    torch.testing.assert_close(found, weight * (torch.diag(p) - torch.outer(p, p)))


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


@pytest.mark.parametrize("name", ["logit-adjust", "balanced"])
def test_a_class_without_training_samples_is_named(name):
    with pytest.raises(InputError, match=f"--loss {name} needs .* class 1 has none"):
        losses.build(name, np.array([5, 0, 3]))


@pytest.mark.parametrize("name", ["logit-adjust", "balanced"])
def test_a_model_with_other_classes_is_refused(name):
    with pytest.raises(InputError, match="4 outputs, the data 3 classes"):
        losses.build(name, COUNTS)(torch.zeros(2, 4), torch.tensor([0, 1]))


def test_an_unknown_loss_is_refused_with_the_choices():
    with pytest.raises(InputError, match="no loss 'focal'; choose from ce, logit-adjust, balanced"):
        losses.build("focal", COUNTS)


def test_a_users_loss_is_taken_as_it_is(tmp_path, monkeypatch):
    (tmp_path / "own_loss.py").write_text("def hinge(outputs, labels):\n    return outputs[:, 0]\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    assert losses.build("own_loss:hinge", COUNTS)(torch.ones(4, 3), None).tolist() == [1.0] * 4
