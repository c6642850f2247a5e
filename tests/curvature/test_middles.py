"""Matrices between Jacobians as sums of squares, against dense matrices in float64."""

from functools import cache

import numpy as np
import pytest
import torch
from torch import nn

import landscape as ls
from landscape.curvature import rows, tails
from landscape.curvature.kinds import KINDS, between
from landscape.curvature.middles import Eigenvectors, Probabilities
from landscape.curvature.outputs import Keep
from landscape.networks import losses
from landscape.objective import draws

WEIGHTS = torch.tensor([1.0, 3.0, 0.5, 1.0], dtype=torch.float64)


def logits(scale):
    return scale * torch.randn(4, 7, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("scale", [0.0, 1.0, 30.0])
@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_both_ways_give_the_matrix(scale, weights):
    z = logits(scale)
    dense = between(losses.cross_entropy, z, torch.arange(4))
    dense = dense if weights is None else weights[:, None, None] * dense
    v = torch.randn(4, 7, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    every = torch.arange(4)[:, None], torch.arange(7)[None]
    for middle in (Eigenvectors.of(dense), Probabilities.of(z, weights)):
        s = middle.vectors(*every)
        torch.testing.assert_close(
            torch.einsum("br,brc,brd->bcd", middle.signs, s, s), dense, rtol=1e-12, atol=1e-15 * dense.max().item()
        )
        torch.testing.assert_close(middle.sizes, s.square().sum(2), rtol=1e-12, atol=0)
        torch.testing.assert_close(middle.traces, dense.diagonal(dim1=1, dim2=2).sum(1), rtol=1e-12, atol=0)
        torch.testing.assert_close(middle.along(v), (s * v[:, None]).sum(2), rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(middle.combined(v), (s * v[:, :, None]).sum(1), rtol=1e-10, atol=1e-12)
        some = torch.tensor([3, 0]), torch.tensor([6, 2])
        torch.testing.assert_close(middle.vectors(*some), s[some])
        torch.testing.assert_close(
            middle.vectors(torch.arange(4), torch.tensor([[5], [1]])), s[:, [5, 1]].transpose(0, 1)
        )


def test_a_fitted_sample_keeps_its_digits():
    z = torch.tensor([[0.0, -60.0, -70.0]], dtype=torch.float64)
    small = torch.tensor([-60.0, -70.0], dtype=torch.float64).exp()
    middle = Probabilities.of(z)
    assert middle.traces.item() == pytest.approx(2 * small.sum().item(), rel=1e-12)
    others = small.sum().item()  # of the class that is predicted
    assert middle.sizes[0, 0].item() == pytest.approx(others**2 + small.square().sum().item(), rel=1e-12)
    np.testing.assert_allclose(middle.sizes[0, 1:], 2 * small, rtol=1e-12)


class Wide(nn.Module):
    """600 classes, of which the last layer is fixed, so that dense matrices stay small."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(4, 5)
        self.register_buffer("last", torch.randn(5, 600, generator=torch.Generator().manual_seed(0)))

    def forward(self, x):
        return 2 * torch.tanh(self.first(x)) @ self.last


@pytest.fixture(scope="module")
def wide():
    torch.manual_seed(3)
    inputs, labels = torch.randn(24, 4).double(), torch.arange(24) % 3 * 200
    model = Wide().double()
    return model, ls.make_objective(model, (inputs, labels), parts="class", dtype=torch.float64)


@cache
def dense(wide, part):
    """Return H, G and the traces of single samples' G."""
    model, objective = wide
    x, y = objective.samples.batch(objective.members[part])
    names = [name for name, _ in model.named_parameters()]
    sizes = [p.numel() for p in model.parameters()]
    flat = torch.cat([p.detach().reshape(-1) for p in model.parameters()])

    def z(flat):
        values = {n: v.reshape(p.shape) for n, v, p in zip(names, flat.split(sizes), model.parameters(), strict=True)}
        return torch.func.functional_call(model, values, x.double())

    H = torch.func.hessian(lambda flat: torch.nn.functional.cross_entropy(z(flat), y))(flat)
    J = torch.func.jacrev(z)(flat)
    p = z(flat).softmax(1)
    each = torch.einsum("bcd,bc,bce->bde", J, p, J) - torch.einsum("bcd,bc,be,bef->bdf", J, p, p, J)
    return H.numpy(), each.mean(0).numpy(), each.diagonal(dim1=1, dim2=2).sum(1).numpy()


@pytest.mark.parametrize("part", [0, 2])
def test_lengths_of_six_hundred_classes_are_those_of_the_dense_matrix(wide, part):
    _, G, traces = dense(wide, part)
    objective, factors = wide[1], KINDS["ggn"].factors
    known = rows.lengths(objective, factors, part, keep=Keep(tol=1e-3, most=100))
    np.testing.assert_allclose(known.traces, traces, rtol=1e-10)
    vectors = rows.rows(objective, factors, part, known, 0.0).vectors.numpy()
    np.testing.assert_allclose(vectors.T @ vectors / len(traces), G, rtol=1e-9, atol=1e-12 * G.max())
    assert tails.lengths(objective, factors, part, Keep(tol=0.0, most=4), seed=0).trace_stderr > 0


def test_sums_over_draws_of_six_hundred_classes_have_their_weights(wide):
    objective, factors, weights = wide[1], KINDS["ggn"].factors, np.array([0.5, 3.0, 1.0, 2.0, 1.5])
    picked = [draws.Picked(own[:5], weights) for own in objective.members]
    drawn = draws.gathered(objective, picked, {})
    known, alone = rows.lengths(drawn, factors, 0), rows.lengths(objective, factors, 0)
    np.testing.assert_allclose(known.traces, weights * alone.traces[:5], rtol=1e-10)


@pytest.mark.parametrize("operator", ["hessian", "ggn", "fisher"])
def test_a_spectrum_of_six_hundred_classes_has_errors_over_samples(wide, operator):
    found = ls.spectrum(wide[1], operator=operator)
    for part in range(3):
        H, G, traces = dense(wide, part)
        truth = H if operator == "hessian" else G
        exact = np.linalg.eigvalsh(truth)[-1]
        assert found.lambda_max[part] <= exact * (1 + 1e-12) <= found.largest_at_most[part]
        assert abs(found.lambda_max[part] - exact) <= found.lambda_max_residual[part]
        assert abs(found.trace[part] - np.trace(truth)) <= 4 * found.trace_stderr[part]
        if operator != "hessian":  # whose trace is that of probes, because the network is not piecewise linear
            assert 0 < found.trace_stderr[part] < np.sqrt(2 / 3 / 8) * 1.2 * found.trace[part]  # of eight samples
        spread = traces.std(ddof=1) / np.sqrt(len(traces))
        assert spread / 2 < found.trace_sampling_stderr[part] < 2 * spread
