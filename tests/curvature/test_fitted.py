"""Products in float32 where the loss is nearly zero, so that its derivatives are small differences of large numbers.

The truth is the dense matrix of the same weights and images in float64.
"""

import math
from functools import cache

import numpy as np
import pytest
import torch
from exact import dense
from torch import nn
from torch.nn import functional as F

import landscape as ls
from landscape.curvature import functions
from landscape.curvature.operators import curvature_operator
from landscape.objective import precise

KINDS = ("hessian", "ggn", "residual", "fisher", "empirical-fisher")
MARGINS = (8.0, 12.0, 16.0)  # losses of some 1e-4, 1e-6 and 1e-8


@cache
def problem(margin, activation=nn.Tanh):
    """A network, and the samples that it classifies with at least this margin."""
    generator = torch.Generator().manual_seed(3)
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(3)
        model = nn.Sequential(nn.Linear(6, 8), activation(), nn.Linear(8, 3)).double()
    x = torch.randn(30, 6, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        top = model(x).topk(2, 1).values
        lead = top[:, 0] - top[:, 1]
        x = x[lead > lead.median()]
        for t in model[2].parameters():
            t.mul_(margin / lead[lead > lead.median()].min())
        model, x = model.float(), x.float()
        return model, x, model(x).argmax(1)


def objective(margin, dtype=torch.float32, **options):
    model, x, y = problem(margin)
    return ls.make_objective(model, (x, y), dtype=dtype, device="cpu", **options)


@cache
def exact_of(margin, kind):
    return dense(objective(margin, torch.float64), 0, kind)


@pytest.mark.parametrize("backend", ["reverse", "linearized"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("margin", MARGINS)
def test_products_are_as_exact_for_a_fitted_class_as_for_any_other(margin, kind, backend):
    operator = curvature_operator(objective(margin), kind, backend=backend)
    V = torch.randn(12, operator.size, generator=torch.Generator().manual_seed(0))
    found, exact = operator.matvec(V[None])[0].double(), V.double() @ exact_of(margin, kind)
    assert (found - exact).norm() < 2e-5 * exact.norm()
    forms, wanted = found @ V.double().T, exact @ V.double().T
    assert (forms - forms.T).norm() < 2e-5 * wanted.norm()


@pytest.mark.parametrize("options", [{}, {"method": "lanczos", "density": True, "steps": 20, "probes": 1}])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("margin", MARGINS)
def test_the_eigenvalues_of_a_fitted_class_are_within_their_bounds(margin, kind, options):
    if kind in ("hessian", "residual"):
        options = {name: value for name, value in options.items() if name != "method"}
    exact = np.linalg.eigvalsh(exact_of(margin, kind).numpy())
    found = ls.spectrum(objective(margin), operator=kind, backend="reverse", sampling_errors=False, **options)
    # The logits themselves have rounding errors, by which the matrix of the network in float32 is another one.
    logits = 5 * torch.finfo(torch.float32).eps * 2 * margin * np.abs(exact).max()
    assert np.abs(exact - found.lambda_max[0]).min() <= found.lambda_max_residual[0] + logits
    assert np.abs(exact - found.lambda_min[0]).min() <= found.lambda_min_residual[0] + logits
    assert found.lambda_max[0] == pytest.approx(exact[-1], rel=1e-3)


def test_a_loss_with_numbers_of_its_own_in_float32_is_taken_in_float32():
    weights = torch.tensor([1.0, 2, 3])
    own = nn.CrossEntropyLoss(weight=weights, reduction="none")
    narrow = objective(4.0, loss=own)
    assert not functions.functions_of(narrow).widens
    assert functions.functions_of(objective(4.0)).widens
    assert not functions.functions_of(objective(4.0, torch.float64)).widens
    same = objective(
        4.0, torch.float64, loss=lambda z, y: F.cross_entropy(z, y, weight=weights.double(), reduction="none")
    )
    for kind in KINDS[:3]:
        exact = dense(same, 0, kind)
        operator = curvature_operator(narrow, kind)
        found = operator.matvec(torch.eye(operator.size)[None])[0].double()
        assert (found - exact).norm() < 1e-3 * exact.norm()


def test_outputs_that_are_very_many_keep_their_precision(monkeypatch):
    monkeypatch.setattr(precise, "MOST_OUTPUTS", 2)
    assert not functions.functions_of(objective(4.0)).widens


def test_a_loss_is_asked_once_when_its_objective_is_made(monkeypatch):
    asked = []
    first = objective(4.0, loss=lambda z, y: asked.append(z.dtype) or F.cross_entropy(z, y, reduction="none"))
    assert torch.float64 in asked
    asked.clear()
    for _ in range(3):
        assert functions.functions_of(first).widens
    assert asked == []
    assert math.isfinite(float(ls.hessian(first).matvec(torch.ones(1, 1, first.layout.size)).norm()))
