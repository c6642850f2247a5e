"""Random small networks, losses and tolerances: no eigenvalue is farther from its value by rows than the bound.

The campaign: LANDSCAPE_BOUNDS=3000 pytest -m campaign tests/campaigns/test_row_bound.py
"""

import os

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import hessian, jacrev
from torch.nn import functional as F

from landscape.curvature import rows
from landscape.curvature.kinds import KINDS
from landscape.data import datasets
from landscape.objective.objective import Objective

CAMPAIGN = int(os.environ.get("LANDSCAPE_BOUNDS", "3000"))
EPS = 2.0**-52
ACTIVATIONS = (nn.ReLU, nn.Tanh, nn.GELU)


def smoothed(logits, labels):
    return F.cross_entropy(logits, labels, reduction="none", label_smoothing=0.1)


def squared(logits, labels):
    return (logits - torch.eye(logits.shape[-1], dtype=logits.dtype)[labels]).square().sum(-1)


def concave(logits, labels):
    return torch.sin(2 * logits).sum(-1) + 0.0 * labels


LOSSES = ("ce", "focal", smoothed, squared, concave)


def problem(rng):
    n_classes, n = int(rng.integers(2, 6)), int(rng.integers(1, 12))
    n_inputs, n_hidden = (int(k) for k in rng.integers(1, 5, size=2))
    model = nn.Sequential(
        nn.Linear(n_inputs, n_hidden), ACTIVATIONS[rng.integers(3)](), nn.Linear(n_hidden, n_classes)
    ).double()
    for p in model.parameters():
        p.data = torch.from_numpy(rng.normal(scale=10 ** rng.uniform(-1, 1), size=p.shape))
    labels = np.append(np.arange(n_classes), rng.integers(n_classes, size=n))
    inputs = torch.from_numpy(rng.normal(size=(len(labels), n_inputs)))
    return Objective.build(
        model,
        datasets.from_dataset((inputs, torch.from_numpy(labels)), name="case"),
        loss=LOSSES[rng.integers(len(LOSSES))],
        dtype=torch.float64,
        batch_size=int(rng.integers(1, 20)),
        device="cpu",
    )


def exact(objective):
    """All eigenvalues of the Gauss-Newton matrix, descending, from its dense factors; and their rounding.

    Within a loss probabilities of order one cancel, so that its second derivatives are right to eps, however small.
    """
    inputs, labels = objective.samples.batch(objective.members[0], "cpu", torch.float64)
    found = jacrev(lambda theta: objective.logits(theta, inputs))(objective.theta)
    J = torch.cat([t.flatten(2) for t in found], dim=2)
    z = objective.logits(objective.theta, inputs).detach()
    middle = [
        hessian(lambda z, y=y: objective.loss(z[None], y[None])[0])(row) for row, y in zip(z, labels, strict=True)
    ]
    matrix = torch.einsum("ncd,nce,nef->df", J, torch.stack(middle), J) / len(labels)
    values = torch.linalg.eigvalsh(matrix.detach()).numpy()[::-1]
    return values, 1e-12 * np.abs(values).max() + 10 * EPS * float(J.square().sum()) / len(labels)


def check(seed):
    rng = np.random.default_rng(seed)
    objective = problem(rng)
    tol = float(rng.choice([0.0, 10 ** rng.uniform(-8, -0.1)]))
    known = rows.lengths(objective, KINDS["ggn"].factors, 0)
    kept = rows.rows(objective, KINDS["ggn"].factors, 0, known, tol)
    values = kept.gram.eigen(known.weights).values
    expected, slack = exact(objective)
    padded = np.append(values, np.zeros(max(0, len(expected) - len(values))))
    # beyond the number of parameters there are zeros alone, of either sign in rounding
    ours = np.sort(padded[np.argsort(-np.abs(padded), kind="stable")[: len(expected)]])[::-1]
    off = expected - ours
    assert -kept.tau_minus - slack <= off.min(), (seed, tol)
    assert off.max() <= kept.tau_plus + slack, (seed, tol)
    assert kept.tau_plus + kept.tau_minus <= tol * np.abs(known.squares).sum() / len(known.squares) + slack


def test_the_bound_holds_for_a_few_random_problems():
    for seed in range(20):
        check(seed)


@pytest.mark.campaign
@pytest.mark.timeout(7200)
def test_the_bound_holds_for_thousands_of_random_problems():
    for seed in range(CAMPAIGN):
        check(seed)
