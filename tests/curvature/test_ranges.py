"""Products too small or too large for their dtype are refused, and those just within it give the right numbers."""

import numpy as np
import pytest
import torch
from refusals import refused
from torch import nn
from torch.nn import functional as F

import landscape as ls
from landscape.curvature import restarted
from landscape.errors import LandscapeError, NumericalError

A = np.random.default_rng(0).normal(size=(60, 60))
A = A + A.T
TOP = np.linalg.eigvalsh(A).max()


class Product:
    """A user's matrix."""

    shape = (60, 60)

    def __init__(self, matrix):
        self.matrix = matrix

    def matvec(self, v):
        return self.matrix @ v


FORMS = {"dense": np.asarray, "product": Product}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("factor", "what"), [(1e-165, "too small"), (1e155, "too large"), (1e300, "too large")])
def test_a_matrix_whose_squares_leave_float64_is_refused(form, factor, what):
    with refused(NumericalError, what, "squares", "multiply the matrix by a number"):
        ls.spectrum(FORMS[form](A * factor), steps=30, probes=3)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("factor", [1e-130, 1e130])
def test_smaller_and_larger_numbers_do_not_matter(form, factor):
    found, usual = (ls.spectrum(FORMS[form](A * k), steps=30, probes=3) for k in (factor, 1))
    assert found.lambda_max[0] == pytest.approx(factor * TOP, rel=1e-6)
    assert found.trace_stderr[0] == pytest.approx(factor * usual.trace_stderr[0], rel=1e-6)


@pytest.mark.parametrize("factor", [1e-34, 1e-28, 1e-20, 1e20, 1e28, 1e35])
def test_float32_gives_right_numbers_or_none(factor):
    narrow = (A * factor).astype(np.float32)
    if 1e-30 < factor < 1e30:
        assert ls.spectrum(narrow, steps=60, probes=2).lambda_max[0] == pytest.approx(factor * TOP, rel=1e-5)
    else:
        with refused(NumericalError, "float32: use float64"):
            ls.spectrum(narrow, steps=60, probes=2)


def test_restarts_and_estimates_of_the_diagonal_refuse_them_too():
    small = torch.tensor(A) * 1e-165
    with refused(NumericalError, "too small"):
        restarted.largest(lambda v: small @ v, torch.ones(60, dtype=torch.float64), 3, capacity=20, tol=1e-3, most=50)

    class Small(Product):
        def matvec(self, v):
            return self.matrix @ v * self.factor

    given = Small(A)
    given.factor = 1.0
    operator = ls.matrix(given)
    given.factor = 1e-165
    with refused(NumericalError, "too small"):
        operator.diagonal()


def of_loss(factor, dtype):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 3))
    data = torch.randn(20, 4), torch.arange(20) % 3
    return ls.make_objective(net, data, loss=lambda z, y: F.cross_entropy(z, y, reduction="none") * factor, dtype=dtype)


@pytest.mark.parametrize("kind", ["hessian", "ggn"])
@pytest.mark.parametrize(
    ("factor", "dtype", "words"),
    [
        (1e-170, "float64", ("too small", "squares")),
        (1e-33, "float32", ("too small", "dtype='float64'")),
        (1e-60, "float32", ("are zero in float32", "dtype='float64'")),
        (1e33, "float32", ("too large", "dtype='float64'")),
    ],
)
def test_losses_too_small_or_too_large_are_named_with_their_part(kind, factor, dtype, words):
    with refused(NumericalError, f"the {kind} of all", "multiply the loss", *words):
        ls.spectrum(of_loss(factor, dtype), operator=kind, method="lanczos", sampling_errors=False)


@pytest.mark.parametrize("factor", [1e-30, 1e-24, 1e-22, 1e19, 1e20, 1e30])
def test_rows_of_small_and_large_gradients_give_right_numbers_in_float32(factor):
    narrow, wide = (ls.spectrum(of_loss(factor, d), operator="empirical-fisher") for d in ("float32", "float64"))
    for name in ("lambda_max", "trace", "sample_trace", "sample_curvature", "trace_sampling_stderr"):
        assert np.allclose(getattr(narrow, name) / factor**2, getattr(wide, name) / factor**2, rtol=1e-4, atol=1e-7)
    n = min(len(one.eigenvalues[0]) for one in (narrow, wide))
    off = np.abs(narrow.eigenvalues[0, :n] - wide.eigenvalues[0, :n])
    assert (off <= narrow.eigenvalue_above[0]).all()
    assert narrow.eigenvalue_above[0] < 1e-3 * narrow.lambda_max[0]


@pytest.mark.parametrize("method", ["rows", "lanczos"])
@pytest.mark.parametrize(
    ("factor", "dtype", "words"),
    [
        (1e-34, "float32", ("too small for float32", "dtype='float64'")),
        (1e-50, "float32", ("zero in float32", "dtype='float64'")),
        (1e-160, "float64", ("too small", "float64", "multiply the loss")),
    ],
)
def test_gradients_without_digits_are_refused_with_their_part(method, factor, dtype, words):
    with refused(NumericalError, "the empirical-fisher of all", *words):
        ls.spectrum(of_loss(factor, dtype), operator="empirical-fisher", method=method)


@pytest.mark.parametrize(("method", "what"), [("auto", "of all"), ("lanczos", "of all"), ("rows", "gradient")])
def test_gradients_that_are_not_finite_are_refused(method, what):
    with refused(LandscapeError, "not finite", what, "dtype='float64'"):
        ls.spectrum(of_loss(1e39, "float32"), operator="empirical-fisher", method=method)


def test_traces_and_diagonals_of_small_gradients_are_right_in_float32():
    for factor in (1e-24, 1e20):
        narrow, wide = (ls.fisher(of_loss(factor, dtype), empirical=True) for dtype in ("float32", "float64"))
        assert narrow.trace().value == pytest.approx(wide.trace().value, rel=1e-5)
        assert np.allclose(narrow.diagonal().value / factor**2, wide.diagonal().value / factor**2, rtol=1e-4)
