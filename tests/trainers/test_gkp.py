"""Fisher information and the penalty of GKP."""

import copy

import numpy as np
import pytest
import torch
from banks import NAMES, divided, filled, network
from refusals import refused
from torch.nn import functional as F

from landscape.data import datasets
from landscape.errors import DataError, InputError, NumericalError
from trainers import gkp, memory
from trainers.passes import put
from trainers.settled import settled_statistics

# Fisher information ---------------------------------------------------------------------------------------------------


def points(counts=(7, 4, 3, 2)):
    labels = torch.arange(4).repeat_interleave(torch.tensor(counts))
    inputs = torch.randn(len(labels), 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return datasets.from_dataset((inputs, labels), class_names=[*"abcd"]), inputs, labels


@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_fisher_is_the_mean_of_squared_gradients_of_single_samples_at_the_centre(tmp_path, batch_size):
    bank = filled(tmp_path, [[1, 1, 1, 1], [0, 2, 0, 2]])
    groups = divided(0, 1, 0, 1)
    centres = memory.group_centres(bank, groups, NAMES)
    model = network(7)
    model[2].eval()  # a mode of its own
    before = copy.deepcopy(model)
    samples, inputs, labels = points()
    found = gkp.group_fisher(model, samples, groups, centres, NAMES, batch_size=batch_size)
    for g, epoch in ((0, 1), (1, 2)):
        there = network(epoch).eval()
        hidden = there[0](inputs)  # batch norm by the statistics of all training samples, in one batch
        there[1].running_mean, there[1].running_var = hidden.mean(0).detach(), hidden.var(0).detach()
        there[3].load_state_dict(model[3].state_dict())  # the current classifier
        rows = []
        for i in np.flatnonzero(groups.group_of[labels.numpy()] == g):
            loss = F.cross_entropy(there(inputs[i : i + 1]), labels[i : i + 1])
            grads = torch.autograd.grad(loss, [dict(there.named_parameters())[name] for name in NAMES])
            rows.append(torch.cat([x.reshape(-1) for x in grads]) ** 2)
        torch.testing.assert_close(found[g], torch.stack(rows).mean(0), rtol=1e-10, atol=1e-14)
    assert all(torch.equal(t, before.state_dict()[name]) for name, t in model.state_dict().items())
    assert [m.training for m in model.modules()] == [m.training for m in before.modules()]
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


def test_fisher_of_drawn_samples_is_that_of_some_of_the_group_and_repeats(tmp_path):
    bank, groups = filled(tmp_path, [[1, 1, 1, 1]]), divided(0, 1, 1, 1)
    centres, (samples, inputs, labels) = memory.group_centres(bank, groups, NAMES), points()
    model = network(1)
    drawn = gkp.group_fisher(model, samples, groups, centres, NAMES, max_samples=1, seed=5)
    again = gkp.group_fisher(model, samples, groups, centres, NAMES, max_samples=1, seed=5)
    assert torch.equal(drawn, again)
    single = []
    put(centres[0], [dict(model.named_parameters())[name] for name in NAMES])  # both groups have the one epoch
    with settled_statistics(model.eval(), samples):
        for x, y in zip(inputs, labels, strict=True):
            loss = F.cross_entropy(model(x[None]), y[None])
            grads = torch.autograd.grad(loss, [dict(model.named_parameters())[name] for name in NAMES])
            single.append(torch.cat([g.reshape(-1) for g in grads]).square())
    for g in (0, 1):
        fitting = [i for i, row in enumerate(single) if torch.allclose(row, drawn[g], rtol=1e-10, atol=0)]
        assert len(fitting) == 1
        assert groups.group_of[labels[fitting[0]]] == g
    others = [gkp.group_fisher(model, samples, groups, centres, NAMES, max_samples=1, seed=s)[1] for s in range(6)]
    assert len({int(np.argmin([(row - other).norm().item() for row in single])) for other in others}) > 1
    whole = gkp.group_fisher(model, samples, groups, centres, NAMES, max_samples=9)
    assert torch.equal(whole, gkp.group_fisher(model, samples, groups, centres, NAMES))


def test_fisher_that_cannot_be_is_refused_and_the_model_comes_back(tmp_path):
    bank, groups = filled(tmp_path, [[1, 1, 1, 1]]), divided(0, 0, 0, 1)
    centres, (samples, *_) = memory.group_centres(bank, groups, NAMES), points((3, 2, 2, 0))
    model = network(4)
    before = copy.deepcopy(model.state_dict())
    with refused(DataError, 1):
        gkp.group_fisher(model, samples, groups, centres, NAMES)
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    with refused(InputError, "fisher_samples"):
        gkp.group_fisher(model, samples, groups, centres, NAMES, max_samples=0)
    centres[0, 0] = torch.nan
    with refused(NumericalError, "finite"):
        gkp.group_fisher(model, points()[0], groups, centres, NAMES)


# GKP --------------------------------------------------------------------------------------------------------------


def penalty(n_groups, dtype=torch.float64):
    generator = torch.Generator().manual_seed(n_groups)
    centres, theta, other = (torch.randn(n_groups, 6, generator=generator, dtype=dtype) for _ in range(3))
    counts = np.array([50, 9, 2, 1])[:n_groups]
    shares = torch.rand(n_groups, generator=generator, dtype=dtype)
    return gkp.GKP(centres, other.square(), counts, strength=10.0), theta[0], shares / shares.sum(), counts


@pytest.mark.parametrize("n_groups", [1, 2, 4])
def test_the_penalty_is_equation_4_added_up_by_a_plain_loop(n_groups):
    found, theta, shares, counts = penalty(n_groups)
    expected = 0.0
    for g in range(n_groups):
        for j in range(n_groups):
            for i in range(6):
                term = found.fisher[j, i] * (theta[i] - found.centres[j, i]) ** 2 / counts[j]
                expected += float(shares[g]) * 10.0 / 2 * float(term) * (j != g)
    assert float(found.value(theta, shares)) == pytest.approx(expected, rel=1e-12, abs=1e-14)


@pytest.mark.parametrize("n_groups", [1, 2, 4])
def test_the_penaltys_gradient_is_that_of_its_value(n_groups):
    found, theta, shares, _ = penalty(n_groups)
    theta.requires_grad_()
    (expected,) = torch.autograd.grad(found.value(theta, shares), theta)
    gradient = found.gradient(theta, shares)
    torch.testing.assert_close(gradient, expected, rtol=1e-12, atol=1e-14)
    assert not gradient.requires_grad


@pytest.mark.parametrize("n_groups", [1, 2, 4])
def test_the_penaltys_curvature_is_the_largest_eigenvalue_of_its_hessian(n_groups):
    found, theta, shares, _ = penalty(n_groups)
    hessian = torch.autograd.functional.hessian(lambda t: found.value(t, shares), theta)
    assert found.curvature(shares) == pytest.approx(float(torch.linalg.eigvalsh(hessian)[-1]), rel=1e-12, abs=1e-14)


def test_the_penalty_works_in_float32_and_leaves_its_arguments_alone():
    found, theta, shares, _ = penalty(4, torch.float32)
    before = [t.clone() for t in (theta, shares, found.centres, found.fisher)]
    gradient = found.gradient(theta, shares).mul_(2)
    assert gradient.dtype == torch.float32
    assert all(torch.equal(a, b) for a, b in zip(before, (theta, shares, found.centres, found.fisher), strict=True))


def test_a_penalty_that_does_not_fit_is_refused():
    rows = torch.ones(2, 3)
    for arguments, message in (
        ((rows, rows[:1], np.ones(2)), r"\(2, 3\), \(1, 3\) and \(2,\)"),
        ((rows, rows, np.ones(3)), "counts"),
        ((rows, rows, np.array([4, 0])), r"got \[4, 0\]"),
    ):
        with pytest.raises(InputError, match=message):
            gkp.GKP(*arguments)
    with refused(InputError, "strength"):
        gkp.GKP(rows, rows, np.ones(2), strength=-1.0)
