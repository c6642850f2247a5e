"""Eigenvalues beyond the largest: their vectors and their errors over samples, against dense matrices of samples."""

from functools import cache

import numpy as np
import pytest
import torch
from cases import CASES, concave
from exact import dense, dense_of_samples
from torch import nn

import landscape as ls
from landscape.objective import draws

DECAY = 0.01


@cache
def exact(part, kind):
    """The matrices of the samples of a part, and that of the part, without weight decay."""
    objective = CASES["residual-gelu"].objective()
    return dense_of_samples(objective, part, kind), dense(objective, part, kind)


@pytest.mark.parametrize(("options", "decay"), [
    ({"operator": "hessian"}, 0.0), ({"operator": "hessian", "steps": 40, "probes": 1}, DECAY),
    ({"operator": "ggn"}, 0.0), ({"operator": "ggn"}, DECAY), ({"operator": "ggn", "method": "lanczos"}, DECAY),
], ids=str)  # fmt: skip
def test_errors_over_samples_are_those_of_the_curvatures_along_each_vector(options, decay):
    objective = CASES["residual-gelu"].objective(weight_decay=decay)
    found = ls.spectrum(objective, vectors=3, tol=1e-9, ggn_tol=0, backend="reverse", **options)
    for p in range(2):  # the third part has one sample
        each, mean = exact(p, options["operator"])
        assert torch.allclose(each.mean(0), mean)
        for r in range(3):
            v = torch.from_numpy(found.ritz_vectors[p, r])
            expected = ((each @ v) @ v).numpy().std(ddof=1) / len(each) ** 0.5
            assert found.ritz_sampling_stderr[p, r] == pytest.approx(expected, rel=1e-6)
        assert found.ritz_sampling_stderr[p, 0] == pytest.approx(found.lambda_max_sampling_stderr[p], rel=1e-6)
        assert np.isfinite(found.ritz_sampling_stderr[p, 3:]).any() == (options == {"operator": "ggn"})
    assert np.isnan(found.ritz_sampling_stderr[2]).all()


def test_errors_of_draws_are_those_of_the_draw():
    objective = draws.draw_samples(CASES["mlp-tanh"].objective(batch_size=7), 6, seed=1)
    found, by_rows = (
        ls.spectrum(objective, operator=kind, vectors=2, tol=1e-9, backend="reverse") for kind in ("hessian", "ggn")
    )
    for result in (found, by_rows):
        np.testing.assert_allclose(result.ritz_sampling_stderr[:2, 0], result.lambda_max_sampling_stderr[:2], rtol=1e-6)
        assert (result.ritz_sampling_stderr[:2, 1] > 0).all()


def test_there_are_none_without_errors_over_samples_and_none_of_a_hessian_without_its_vectors():
    objective = CASES["mlp-tanh"].objective()
    assert ls.spectrum(objective, backend="reverse").ritz_sampling_stderr is None
    options = {"vectors": 2, "sampling_errors": False, "backend": "reverse"}
    for kind in ("hessian", "ggn"):
        assert ls.spectrum(objective, operator=kind, **options).ritz_sampling_stderr is None


def test_vectors_stand_beside_their_values_where_rows_are_more_than_parameters_and_some_values_negative():
    """The vector of a negative eigenvalue was that of a rounding error."""
    x = torch.randn(30, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        model = nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 3)).double()
    data = (x, torch.arange(30) % 3)
    objective = ls.make_objective(model, data, parts="all", loss=concave, dtype="float64", device="cpu")
    size = objective.layout.size
    found = ls.spectrum(objective, operator="ggn", ggn_tol=0, vectors=size)
    G, V = dense(objective, 0, "ggn").numpy(), found.ritz_vectors[0]
    real = np.isfinite(V).all(axis=1)
    assert found.ritz_values[0, real].min() < -1e-3
    np.testing.assert_allclose(G @ V[real].T, V[real].T * found.ritz_values[0, real], atol=1e-7)
    np.testing.assert_allclose(V[real] @ V[real].T, np.eye(real.sum()), atol=1e-7)
    np.testing.assert_allclose(found.ritz_values[0], np.linalg.eigvalsh(G)[::-1], atol=1e-10)


def test_an_eigenvalue_that_is_rounding_has_no_vector_and_no_error():
    x = torch.randn(12, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x[1] = x[0]
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    labels = torch.tensor([0, 0] + [1] * 10)
    objective = ls.make_objective(model, (x, labels), parts="class", dtype="float64", device="cpu")
    found = ls.spectrum(objective, operator="ggn", vectors=2)
    assert np.isfinite(found.ritz_vectors[1]).all()
    assert np.isfinite(found.ritz_vectors[0, 0]).all()
    assert np.isnan(found.ritz_vectors[0, 1]).all()  # two equal samples of two classes have one row
    assert np.isnan(found.ritz_sampling_stderr[0, 1])


def brier(z, labels):
    return (z.softmax(1) - nn.functional.one_hot(labels, z.shape[1])).square().sum(1)


def test_vectors_of_rounding_are_absent_where_rows_have_both_signs():
    """Two samples, each three times: their vectors had lengths of 1e-23."""
    x = torch.randn(2, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64).repeat(3, 1)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(1)
        model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    data = (x, torch.tensor([0, 1] * 3))
    objective = ls.make_objective(model, data, parts="all", loss=brier, dtype="float64", device="cpu")
    found = ls.spectrum(objective, operator="ggn", vectors=8, ggn_tol=0)
    lengths = np.linalg.norm(found.ritz_vectors[0], axis=1)
    known = np.isfinite(lengths)
    assert 2 <= known.sum() <= 4  # two rows of each of two samples
    np.testing.assert_allclose(lengths[known], 1, rtol=1e-7)
    assert (np.abs(found.ritz_values[0, :8][~known]) < 1e-12).all()
