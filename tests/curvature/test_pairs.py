"""The largest eigenpairs with any room for vectors: the same pairs, fewer vectors, or an error that says what helps."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from refusals import refused

import landscape as ls
from landscape.analyses.eigenvectors import eigenpairs
from landscape.autodiff import memory
from landscape.curvature import lanczos, pairs
from landscape.curvature.matrices import matrix
from landscape.errors import InputError
from tests.cases import CASES

SIZE = 200
LARGE = (40.0, 25.0, 11.0)


@pytest.fixture(scope="module")
def operator():
    generator = torch.Generator().manual_seed(0)
    values = torch.cat([torch.tensor(LARGE), 2 * torch.rand(SIZE - len(LARGE), generator=generator) - 1]).double()
    Q, _ = torch.linalg.qr(torch.randn(SIZE, SIZE, generator=generator, dtype=torch.float64))
    return matrix(Q @ torch.diag(values) @ Q.T)


def room_for(monkeypatch, vectors, size):
    monkeypatch.setattr(memory, "room", lambda device, limit: vectors * 8 * size)


@pytest.mark.parametrize("fit", [1000, 30, 8 + 2 + 8])
def test_whatever_fits_gives_the_pairs(fit, operator, monkeypatch, caplog):
    room_for(monkeypatch, fit, SIZE)
    found = operator.top(2, tol=1e-4, max_steps=60)
    np.testing.assert_allclose(found.values, LARGE[:2], rtol=1e-6)
    assert (found.residuals <= 1e-4 * LARGE[0]).all()
    off = operator @ found.vectors - found.vectors * found.values
    assert np.linalg.norm(off, axis=0).max() <= 2e-4 * LARGE[0]
    assert ("does not fit" in caplog.text) == (fit < 1000)


def test_no_more_vectors_are_kept_than_fit(operator, monkeypatch):
    kept, real = [], pairs.restarted.largest
    monkeypatch.setattr(pairs.restarted, "largest", lambda *a, **k: kept.append(k["capacity"]) or real(*a, **k))
    room_for(monkeypatch, 25, SIZE)
    operator.top(2, tol=1e-3, max_steps=60)
    assert kept == [25 - 8]


def test_too_little_memory_is_refused_with_what_would_help(operator, monkeypatch):
    room_for(monkeypatch, 17, SIZE)
    with refused(InputError, 17, 18, "memory_bytes", "batch_size", "params"):
        operator.top(2, max_steps=60)


def test_a_limit_counts_what_a_product_takes(operator, monkeypatch):
    asked, taken = [], []
    monkeypatch.setattr(memory, "room", lambda device, limit: asked.append((limit, len(taken))) or 10**9)
    counting = replace(operator, matvec=lambda V: taken.append(1) or operator.matvec(V))
    start = lanczos.probe(SIZE, seed=0, number=0).double()
    pairs.largest(counting, start, 1, tol=1e-3, steps=10, max_steps=40, memory_bytes=7)
    assert asked == [(7, 1)]


def test_eigenvectors_of_a_part_come_from_restarts_where_no_basis_fits(monkeypatch):
    objective = CASES["mlp-tanh"].objective()
    vectors, values, _ = eigenpairs(objective, "0", 2)
    room_for(monkeypatch, 2 * 24, objective.layout.size)  # half of it for what products keep
    again, others, residuals = eigenpairs(objective, "0", 2)
    np.testing.assert_allclose(others, values, rtol=1e-3)
    assert (residuals <= 1e-3 * values[0]).all()
    assert (vectors * again).sum(1).min() > 0.99  # with the same signs
    said = ls.estimate(ls.sensitivity, objective, of="0", n=2, draws=1)
    assert said.memory > 0
    room_for(monkeypatch, 10, objective.layout.size)
    for ask in (ls.estimate, lambda analysis, *a, **k: analysis(*a, **k)):
        with refused(InputError, "memory_bytes"):
            ask(ls.sensitivity, objective, of="0", n=2, draws=1)
