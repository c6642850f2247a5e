"""Rows of which only some columns are in memory, against the same rows in memory."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from cases import CASES
from refusals import refused

import landscape as ls
from landscape.analyses import row_numbers
from landscape.curvature import rows, rows_apart
from landscape.curvature.kinds import KINDS
from landscape.errors import InputError

FACTORS = KINDS["ggn"].factors


def room_for(objective, n_rows):
    """Bytes for the columns of the largest tensor, of a number of rows."""
    return n_rows * max(objective.layout.sizes) * objective.dtype.itemsize


@pytest.mark.parametrize("loss", ["ce", "focal"])
@pytest.mark.parametrize("case", ["residual-relu", "mlp-tanh"])
def test_products_combinations_and_projections_are_those_of_stored_rows(case, loss):
    objective = replace(CASES[case], loss=loss).objective()
    known = rows.lengths(objective, FACTORS, 0)
    stored = rows.rows(objective, FACTORS, 0, known, 1e-3)
    n_rows = len(stored.sample)
    apart = rows_apart.apart(objective, FACTORS, 0, known, 1e-3, room_for(objective, n_rows))
    assert len(objective.layout.pieces(n_rows * objective.dtype.itemsize, apart.cache_bytes)) > 1
    for name in ("sample", "row", "sign", "tau_plus", "tau_minus"):
        np.testing.assert_array_equal(getattr(apart, name), getattr(stored, name))
    np.testing.assert_allclose(apart.products, stored.products, rtol=1e-10, atol=1e-12 * stored.products.max())
    random = torch.Generator().manual_seed(0)
    factors = torch.randn(n_rows, generator=random, dtype=torch.float64)
    v = torch.randn(objective.layout.size, generator=random, dtype=torch.float64)
    torch.testing.assert_close(apart.combined(factors.numpy()), stored.combined(factors.numpy()), rtol=1e-9, atol=1e-11)
    np.testing.assert_allclose(apart.along(v), stored.along(v), rtol=1e-8, atol=1e-10)
    assert apart.n_bytes == 0 < stored.n_bytes


@pytest.mark.parametrize("operator", ["ggn", "fisher", "empirical-fisher"])
def test_a_spectrum_of_rows_that_do_not_fit_is_the_same(operator):
    objective = CASES["residual-relu"].objective()
    options = {"operator": operator, "method": "rows", "vectors": 2}
    whole = ls.spectrum(objective, **options)
    n_rows = int(np.isfinite(whole.eigenvalues).sum())
    found = ls.spectrum(objective, cache_bytes=room_for(objective, n_rows), **options)
    for name in ("eigenvalues", "trace", "lambda_max_sampling_stderr", "lambda_max_crossfit", "sample_curvature"):
        np.testing.assert_allclose(getattr(found, name), getattr(whole, name), rtol=1e-8, err_msg=name)
    np.testing.assert_allclose(np.abs(found.ritz_vectors), np.abs(whole.ritz_vectors), rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(found.gram, whole.gram, rtol=1e-8, atol=1e-10 * whole.gram.max())
    np.testing.assert_array_equal(found.gram_part, whole.gram_part)


def test_rows_of_which_no_tensor_fits_are_refused():
    objective = CASES["residual-relu"].objective()
    few = room_for(objective, 3)
    assert row_numbers.most_rows(objective, few) == 3 > row_numbers.most_rows(objective, few, stored=True)
    with refused(InputError, "cache_bytes", "3", method="lanczos"):
        ls.spectrum(objective, operator="ggn", method="rows", cache_bytes=few)
