"""The spectrum without a density: lambda_max, lambda_min and trace of each part, against dense matrices."""

import numpy as np
import pytest
import torch
from cases import CASES
from exact import dense
from refusals import refused

import landscape as ls
from landscape.analyses import summaries
from landscape.autodiff import memory
from landscape.errors import InputError
from landscape.objective import jobs
from landscape.plots.figures.density import densities

DECAY = 0.01
ABSENT = ("alpha", "beta", "steps", "probe_norm2", "trace_samples", *summaries.OF_ALL_EIGENVALUES)


def exact(objective, part, kind="hessian"):
    return torch.linalg.eigvalsh(dense(objective, part, kind)).numpy()


@pytest.mark.parametrize("name", ["residual-relu", "mlp-tanh"])
def test_the_ends_and_the_trace_are_those_of_the_dense_matrix_and_nothing_else_is_there(name, tmp_path):
    objective = CASES[name].objective(weight_decay=DECAY)
    path, parts = tmp_path / "a.h5", []
    options = {"vectors": 1, "gap": 0.05, "backend": "reverse", "out": path}
    found = ls.spectrum(objective, **options, finished=lambda one: parts.append(one.parts[0]))
    assert parts == list(objective.partition.names)
    assert [f for f in ABSENT if getattr(found, f) is not None] == []
    for p in range(3):
        H = dense(objective, p)
        expected = torch.linalg.eigvalsh(H).numpy() + DECAY
        assert found.lambda_max[p] == pytest.approx(expected[-1], abs=found.lambda_max_residual[p])
        assert found.lambda_max_residual[p] <= 1e-3 * found.lambda_max[p]
        assert np.abs(expected - found.lambda_min[p]).min() <= found.lambda_min_residual[p]
        assert found.smallest_at_least[p] <= expected[0]
        assert expected[-1] <= found.largest_at_most[p] <= 1.05 * expected[-1]
        assert abs(found.trace[p] - expected.sum()) <= 4 * found.trace_stderr[p] + 1e-9 * abs(expected.sum())
        beyond = np.linalg.eigvalsh((H - dense(objective, p, "ggn")).numpy())
        assert np.abs(beyond - found.beyond_max[p]).min() <= found.beyond_max_error[p]
        assert np.abs(beyond - found.beyond_min[p]).min() <= found.beyond_min_error[p]
    assert found.converged.all()
    assert found.vectors_converged.all()
    assert (found.trace_stderr == 0).all() == (name == "residual-relu")
    assert not found.has_density
    again = ls.load(path)
    assert again.alpha is None
    np.testing.assert_array_equal(again.lambda_max, found.lambda_max)
    with refused(InputError, density=True):
        densities(again)


def test_steps_or_probes_ask_for_the_density():
    objective = CASES["mlp-tanh"].objective()
    for options in ({"steps": 5}, {"probes": 1}, {"density": True, "steps": 5}):
        found = ls.spectrum(objective, **options, sampling_errors=False, backend="reverse")
        assert found.has_density
        assert found.negative_mass is not None
        assert found.largest_at_most is None
    with refused(InputError, density=False):
        ls.spectrum(objective, density=False, steps=5)
    with refused(InputError, 48, vectors=49):
        ls.spectrum(objective, vectors=49)


def test_parts_with_too_many_rows_have_no_negative_mass_and_no_density():
    objective = CASES["mlp-tanh"].objective()
    three_rows = 3 * objective.layout.size * objective.dtype.itemsize
    found = ls.spectrum(objective, operator="ggn", cache_bytes=three_rows, backend="reverse")
    by_rows = np.isfinite(found.eigenvalues).any(axis=1)
    assert by_rows.tolist() == [False, False, True]  # a class of one sample has two rows
    assert np.isfinite(found.negative_mass).tolist() == by_rows.tolist()
    assert found.steps is None
    assert not found.has_density
    for p in range(3):
        expected = exact(objective, p, "ggn")
        assert found.lambda_max[p] == pytest.approx(expected[-1], abs=found.lambda_max_residual[p])
        assert found.trace[p] == pytest.approx(expected.sum(), rel=1e-10)
        assert found.largest_at_most[p] >= expected[-1]
    densities(found, [found.parts[2]])


@pytest.mark.parametrize("operator", ["hessian", "ggn"])
def test_a_run_goes_on_with_less_memory_and_the_rest_has_no_bound(operator, tmp_path, monkeypatch):
    """The basis of the first part fits into memory, that of the second does not."""
    objective = CASES["mlp-tanh"].objective()
    vector = objective.layout.size * objective.dtype.itemsize
    monkeypatch.setattr(memory, "room", lambda device, limit: limit)
    options = {"operator": operator, "backend": "reverse", "cache_bytes": 3 * vector, "out": tmp_path / "a.h5"}
    options |= {"sampling_errors": False}

    def stop(found):
        if found.parts == ("1",):
            raise KeyboardInterrupt

    with pytest.raises(jobs.Interrupted):
        ls.spectrum(objective, **options, memory_bytes=1000 * vector, finished=stop)
    found = ls.spectrum(objective, **options, memory_bytes=30 * vector)
    by_rows = operator == "ggn"  # the class of one sample
    assert np.isfinite(found.largest_at_most).tolist() == [True, False, by_rows]
    assert found.steps is None
    for p in range(3):
        assert found.lambda_max[p] == pytest.approx(exact(objective, p, operator)[-1], rel=2e-3)


def test_a_matrix_without_data_has_a_density_unless_it_is_left_out():
    values = np.diag([5.0, 3.0, 1.0, -2.0])
    assert ls.spectrum(values).has_density
    found = ls.spectrum(values, density=False)
    assert found.lambda_max[0] == pytest.approx(5, rel=1e-6)
    assert found.lambda_min[0] == pytest.approx(-2, rel=1e-6)
    assert found.alpha is None


def test_the_smallest_bound_is_that_of_the_products_where_they_end_early():
    objective = CASES["residual-relu"].objective()
    found = ls.spectrum(objective, tol=1e-9, max_steps=2, sampling_errors=False, backend="reverse")
    for p in range(3):
        expected = exact(objective, p)
        assert found.lambda_max[p] <= expected[-1] + 1e-12
        assert found.largest_at_most[p] >= expected[-1]
    assert not found.converged[:2].any()
