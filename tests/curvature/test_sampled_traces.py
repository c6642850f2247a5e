"""Traces that are estimated from randomly drawn rows, against dense matrices."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from cases import CASES, Case, mlp
from exact import dense
from fitted import network
from torch import nn

import landscape as ls
from landscape.curvature import rows, traces
from landscape.curvature.kinds import KINDS
from landscape.errors import InputError
from landscape.objective import draws

SEEDS = 40


def mse(z, targets):
    return (z - nn.functional.one_hot(targets, 3)).square().sum(1)


def both_signs(z, targets):
    """A loss whose second derivatives in the logits are between -4 and 14."""
    return (torch.sin(3 * z) + 2.5 * z.square()).sum(1) + 0.0 * targets


@pytest.fixture(autouse=True)
def few(request, monkeypatch):
    """Draw eight rows at least, so that the smallest parts are drawn too."""
    if "exactly" not in request.node.name:
        monkeypatch.setattr(traces, "_LEAST_DRAWS", 8)  # private: there is no public number of draws
        monkeypatch.setattr(traces, "_ALL", 1)  # private: nor of rows


def estimates(objective, kind="hessian", part=0, seeds=SEEDS):
    """Estimates of a trace and their standard errors, (seeds, 2)."""
    return np.array([traces.sampled(objective, KINDS[kind], part, seed) for seed in range(seeds)])


@pytest.mark.parametrize(
    ("make", "kind", "loss", "decay"),
    [
        (CASES["residual-relu"].make, "hessian", "ce", 0.01),
        (CASES["mlp-relu"].make, "hessian", both_signs, 0.0),
        (CASES["mlp-tanh"].make, "ggn", mse, 0.0),  # all eigenvalues are equal
        (CASES["features"].make, "fisher", "ce", 0.0),
        (CASES["residual-gelu"].make, "empirical-fisher", "ce", 0.0),
    ],
)
def test_the_mean_over_draws_is_the_trace_of_the_dense_matrix(make, kind, loss, decay):
    objective = Case(make, loss=loss).objective(weight_decay=decay, batch_size=9)
    expected = dense(objective, 0, kind).trace().item() + decay * objective.layout.size
    found, errors = estimates(objective, kind).T
    scatter = found.std(ddof=1)
    assert abs(found.mean() - expected) < 4 * scatter / np.sqrt(SEEDS)
    assert scatter < 0.6 * abs(expected)  # else the bound above shows nothing
    # A variance from n draws has a relative error of about sqrt(2 / n), for a normal distribution.
    assert np.mean(errors**2) == pytest.approx(scatter**2, rel=5 * np.sqrt(2 / SEEDS))


def test_draws_of_one_row_of_several_say_nothing_of_the_others():
    """One sample whose probabilities are far apart: nearly all draws are of its first row, which is not all of it."""
    model = nn.Linear(2, 3, dtype=torch.float64)
    model.weight.data = torch.tensor([[9.0, 0.0], [0.0, 1.0], [0.0, -9.0]], dtype=torch.float64)
    objective = ls.make_objective(model, (torch.ones(1, 2, dtype=torch.float64), torch.zeros(1, dtype=torch.long)))
    found, errors = estimates(objective).T
    one = np.isnan(errors)
    assert 0 < one.sum() <= SEEDS
    assert len(np.unique(found[one])) == 1
    two = ls.make_objective(nn.Linear(2, 2), (torch.ones(1, 2), torch.zeros(1, dtype=torch.long)))
    assert (estimates(two, seeds=3)[:, 1] == 0).all()  # there is no other row


def test_rows_of_one_length_have_no_error():
    """Of a linear map of inputs of one length, |J^T u| is the same for all rows."""
    inputs, labels = torch.randn(15, 6, generator=torch.Generator().manual_seed(0)), torch.arange(15) % 3
    model = nn.Linear(6, 3, bias=False, dtype=torch.float64)
    objective = ls.make_objective(
        model, (nn.functional.normalize(inputs.double()), labels), parts="class", dtype="float64"
    )
    for seed in range(3):
        found, error = traces.sampled(objective, KINDS["hessian"], 1, seed)
        assert found == pytest.approx(dense(objective, 1).trace().item(), rel=1e-12)
        assert error < 1e-12 * found


def test_a_part_of_one_sample_is_drawn_often_enough_for_an_error():
    objective = CASES["residual-relu"].objective()
    assert len(objective.members[2]) == 1
    expected = dense(objective, 2).trace().item()
    found, errors = estimates(objective, part=2).T
    known = np.isfinite(errors)
    assert known.mean() > 0.8  # the others drew one row eight times
    assert abs(found.mean() - expected) < 4 * found.std() / np.sqrt(SEEDS)
    assert (np.abs(found - expected) < 4 * errors + 1e-12)[known].mean() > 0.95


def test_rows_of_uncertain_samples_are_drawn_more_often():
    """Most samples are fitted, and their J^T u is longer: equal draws would be too large by a factor of 2.7."""
    objective = network()
    expected = dense(objective, 0, "ggn").trace().item()
    found = estimates(objective, "ggn")[:, 0]
    assert abs(found.mean() - expected) < 4 * found.std() / np.sqrt(SEEDS)
    assert found.std() < 0.3 * expected


def test_draws_with_weights_have_the_trace_of_the_weighted_loss():
    drawn = draws.draw_samples(network(), 8, seed=3, even=draws.AT)
    factors = drawn.draws.factors[drawn.members[0]]
    assert factors.max() > 2 * factors.min()
    expected = rows.lengths(drawn, KINDS["ggn"].factors, 0).traces.mean()
    assert traces.trace(drawn, KINDS["ggn"], 0) == pytest.approx(expected, rel=1e-9)  # as for products, see test_draws
    found = estimates(drawn, "ggn")[:, 0]
    assert abs(found.mean() - expected) < 4 * found.std() / np.sqrt(SEEDS)
    assert found.std() < 0.6 * expected


def test_the_seed_decides_and_the_number_of_samples_at_a_time_does_not():
    objective = CASES["residual-relu"].objective()
    first, second = (traces.sampled(objective, KINDS["hessian"], 0, seed) for seed in (0, 1))
    assert first == traces.sampled(objective, KINDS["hessian"], 0, 0)
    assert first != second
    assert traces.sampled(replace(objective, batch_size=2), KINDS["hessian"], 0, 0) == pytest.approx(first, rel=1e-9)


def test_float32_draws_the_same_rows_as_float64():
    double, single = (CASES["residual-relu"].objective(dtype=d) for d in (torch.float64, torch.float32))
    for part in range(3):
        expected = traces.sampled(double, KINDS["hessian"], part, 0)
        assert traces.sampled(single, KINDS["hessian"], part, 0) == pytest.approx(expected, rel=1e-4)


def test_a_loss_without_curvature_has_no_trace_but_that_of_the_decay():
    objective = Case(CASES["mlp-relu"].make, loss=lambda z, y: z.sum(1) + 0.0 * y).objective(weight_decay=0.5)
    assert traces.sampled(objective, KINDS["hessian"], 0, 0) == (0.5 * objective.layout.size, 0.0)


def test_a_spectrum_takes_drawn_rows_only_where_it_has_nothing_better(caplog):
    objective = CASES["residual-relu"].objective()
    how = {"trace": "sampled", "sampling_errors": False, "seed": 5, "backend": "reverse"}
    found = ls.spectrum(objective, **how)
    expected = [traces.sampled(objective, KINDS["hessian"], part, 5) for part in range(3)]
    np.testing.assert_array_equal(np.stack([found.trace, found.trace_stderr], axis=1), expected)
    dense_traces = [dense(objective, part).trace().item() for part in range(3)]
    exact = ls.spectrum(objective, trace="sampled", backend="reverse")  # errors over samples need all rows anyway
    np.testing.assert_allclose(exact.trace, dense_traces, rtol=1e-9)
    assert not exact.trace_stderr.any()
    assert sum("sampling_errors" in record.message for record in caplog.records) == 1
    with_density = ls.spectrum(objective, steps=3, probes=1, **how)
    np.testing.assert_array_equal(with_density.trace, found.trace)


def test_where_rows_have_no_trace_it_is_refused():
    smooth = Case(lambda: mlp(nn.Tanh())).objective()
    with pytest.raises(InputError, match="piecewise linear"):
        ls.spectrum(smooth, trace="sampled", sampling_errors=False)
    with pytest.raises(InputError, match="piecewise linear"):
        ls.spectrum(smooth, trace="sampled")
    objective = CASES["residual-relu"].objective()
    with pytest.raises(InputError, match="has no rows"):
        ls.spectrum(ls.hessian(objective) - ls.ggn(objective), trace="sampled", steps=2, probes=1)


@pytest.mark.parametrize("kind", ["hessian", "ggn", "fisher"])
def test_all_rows_are_computed_exactly_where_they_are_few(kind):
    """Few draws, most of one row, understate their own error."""
    objective = CASES["mlp-relu"].objective(weight_decay=0.01)
    part = objective.part("2")
    assert len(objective.members[part]) == 1
    expected = dense(objective, part, kind).trace().item() + 0.01 * objective.layout.size
    found, errors = estimates(objective, kind, part, seeds=3).T
    np.testing.assert_allclose(found, expected, rtol=1e-10)
    assert (errors == 0).all()
