"""Spectra by rows, and what single samples tell of a part, against dense matrices."""

import dataclasses
import logging

import h5py
import numpy as np
import pytest
import torch
from cases import CASES, CLASS_SIZES, Case, concave, mlp
from exact import dense
from refusals import refused
from torch import nn
from torch.nn import functional as F

import landscape as ls
from landscape.analyses import row_numbers, samples
from landscape.errors import InputError
from landscape.results import inference, over_samples, quadrature

DECAY = 0.01
REVERSE = {"backend": "reverse"}  # without the time to trace a network


def eigenvalues(objective, part, kind):
    return torch.linalg.eigvalsh(dense(objective, part, kind)).numpy()[::-1]


@pytest.mark.parametrize("kind", ["ggn", "fisher", "empirical-fisher"])
def test_all_eigenvalues_come_without_a_probe_and_are_within_their_bound(kind):
    objective = CASES["residual-relu"].objective(weight_decay=DECAY)
    found = ls.spectrum(objective, operator=kind, vectors=2, ggn_tol=1e-3)
    decay = 0 if kind == "empirical-fisher" else DECAY
    assert found.steps is None
    for p in range(3):
        expected = eigenvalues(objective, p, kind) + decay
        rows = found.eigenvalues[p][np.isfinite(found.eigenvalues[p])]
        ours = np.append(rows, np.full(found.size - len(rows), found.eigenvalue_rest[p]))
        off = expected - np.sort(ours)[::-1]
        assert -found.eigenvalue_below[p] <= off.min()
        assert off.max() <= found.eigenvalue_above[p]
        assert found.trace[p] == pytest.approx(expected.sum(), rel=1e-10)
        assert (found.lambda_max[p], found.ritz_values[p, 0]) == (rows[0], rows[0])
        assert found.lambda_max_residual[p] <= 1.1e-3 * found.lambda_max[p]
        assert found.lambda_min[p] == decay
        product = dense(objective, p, kind).numpy() @ found.ritz_vectors[p, 0]
        expected_product = (rows[0] - decay) * found.ritz_vectors[p, 0]
        np.testing.assert_allclose(product, expected_product, atol=2 * found.eigenvalue_above[p])
    assert (found.negative_mass == 0).all()
    assert found.converged.all()


def test_eigenvalues_of_both_signs_give_what_dense_ones_do():
    """With so large a `negative_tol` that some negative eigenvalues count as zero."""
    objective = Case(lambda: mlp(nn.Tanh()), loss=concave).objective(weight_decay=DECAY)
    found = ls.spectrum(objective, operator="ggn", ggn_tol=0, negative_tol=0.2)
    for p in range(3):
        exact = eigenvalues(objective, p, "ggn") + DECAY
        scale = np.abs(exact).max()
        assert (exact < -0.2 * scale).sum() < (exact < 0).sum() or p == 2  # a class of one sample
        assert found.negative_mass[p] == pytest.approx((exact < -0.2 * scale).mean())
        assert found.negative_curvature[p] == pytest.approx(-exact[exact < 0].sum() / np.abs(exact).sum(), rel=1e-9)
        assert found.saddle_ratio[p] == pytest.approx(-exact.min() / exact.max(), rel=1e-9)
        assert (found.lambda_max[p], found.lambda_min[p]) == pytest.approx((exact.max(), exact.min()), rel=1e-9)
    some = ls.spectrum(objective, operator="ggn", ggn_tol=0.01)
    for p in range(2):
        own = some.eigenvalues[p][np.isfinite(some.eigenvalues[p])]
        ours = np.sort(np.append(own, np.full(some.size - len(own), DECAY)))[::-1]
        off = eigenvalues(objective, p, "ggn") + DECAY - ours
        assert 0 < -off.min() <= some.eigenvalue_below[p]
        assert 0 < off.max() <= some.eigenvalue_above[p]
        # What is left out above and below adds up to what the trace lacks.
        assert off.sum() == pytest.approx(some.eigenvalue_above[p] - some.eigenvalue_below[p], rel=1e-6)


def test_bounds_know_of_the_rounding_of_rows():
    objective = CASES["residual-relu"].objective(dtype=torch.float32)
    found = ls.spectrum(objective, operator="ggn", ggn_tol=0)
    exact = CASES["residual-relu"].objective()
    for p in range(2):
        off = eigenvalues(exact, p, "ggn")[0] - found.lambda_max[p]
        assert 0 < abs(off) <= found.eigenvalue_above[p] < 1e-4 * found.lambda_max[p]
        assert found.eigenvalue_below[p] == found.eigenvalue_above[p] == found.lambda_max_residual[p]
        assert found.eigenvalue_rounding[p] == found.eigenvalue_above[p]  # no row is left out


@pytest.mark.parametrize("operator", ["ggn", "hessian", "empirical-fisher"])
def test_weight_decay_is_in_the_cross_fitted_value_as_it_is_in_the_matrix(operator):
    plain, decayed = (
        ls.spectrum(CASES["mlp-tanh"].objective(weight_decay=w), operator=operator, steps=12, probes=1, **REVERSE)
        for w in (0.0, DECAY)
    )
    by = 0 if operator == "empirical-fisher" else DECAY
    np.testing.assert_allclose((decayed.lambda_max - plain.lambda_max)[:2], by, rtol=1e-6, atol=1e-12)
    gap = (decayed.lambda_max_crossfit - plain.lambda_max_crossfit)[:2]
    np.testing.assert_allclose(gap, by, rtol=1e-6, atol=1e-12)


def test_the_quadrature_of_rows_is_the_spectrum_itself():
    objective = CASES["mlp-tanh"].objective(weight_decay=DECAY)
    found = ls.spectrum(objective, operator="ggn", ggn_tol=0)
    nodes, weights = quadrature.of_part(found, 0)
    assert nodes.shape[0] == 1
    assert weights.sum() == pytest.approx(1, rel=1e-12)
    expected = eigenvalues(objective, 0, "ggn") + DECAY
    for power in (1, 2, 3):
        assert found.size * (weights * nodes**power).sum() == pytest.approx((expected**power).sum(), rel=1e-9)


def test_lanczos_takes_over_where_rows_are_too_many_and_says_so(monkeypatch, caplog):
    objective = CASES["mlp-tanh"].objective()
    expected = ls.spectrum(objective, operator="ggn", method="lanczos", steps=20, probes=2, **REVERSE)
    monkeypatch.setattr(samples, "are_worth_it", lambda objective, n, n_rows, *_: n_rows <= 3)
    reported, options = [], {"operator": "ggn", "steps": 20, "probes": 2, **REVERSE}
    with caplog.at_level(logging.INFO):
        found = ls.spectrum(objective, **options, progress=lambda *told: reported.append(told))
    of_parts = [done for done, total, _ in reported if total == 3]
    assert of_parts == sorted(of_parts)
    assert len(of_parts) > 10
    assert "longer work than 40 products" in caplog.text
    by_rows = np.isfinite(found.eigenvalues).any(axis=1)
    assert by_rows.tolist() == [False, False, True]  # a class of one sample has two rows
    assert found.steps.any(axis=1).tolist() == [True, True, False]
    np.testing.assert_allclose(found.lambda_max, expected.lambda_max, rtol=1e-3)
    np.testing.assert_allclose(found.trace, expected.trace, rtol=1e-10)
    assert np.isfinite(found.lambda_max_sampling_stderr[:2]).all()
    for few in (0, objective.layout.size * 8 * 2):  # memory for no row, or for two
        monkeypatch.setattr(row_numbers, "FEW_ROWS", few // 10**6)
        assert ls.spectrum(objective, **options, cache_bytes=few).steps[:2].all()


def test_many_rows_are_taken_where_products_would_be_more_work(monkeypatch):
    objective = CASES["mlp-tanh"].objective()
    monkeypatch.setattr(row_numbers, "FEW_ROWS", 3)
    whole, one = 2**30, objective.layout.size * 8
    assert row_numbers.are_worth_it(objective, 5, 3, 0, whole)  # few
    assert row_numbers.are_worth_it(objective, 5, 4, None, whole)  # required
    assert not row_numbers.are_worth_it(objective, 5, 4, 0, whole)
    size, m = objective.layout.size, 40
    forward = size  # a perceptron multiplies by each weight once, and by no bias
    for cache_bytes, passes in ((whole, 1), (one * m // 4, 4)):
        of_rows = 3 * passes * m * forward + m**2 * size / 2 + 7 * m**3
        enough = int(np.ceil(of_rows / (4 * 5 * forward)))
        assert row_numbers.are_worth_it(objective, 5, m, enough, cache_bytes)
        assert not row_numbers.are_worth_it(objective, 5, m, enough - 1, cache_bytes)


def test_many_rows_give_the_eigenvalues_that_few_give(monkeypatch):
    objective = CASES["residual-relu"].objective()
    expected = ls.spectrum(objective, operator="ggn")
    monkeypatch.setattr(row_numbers, "FEW_ROWS", 1)
    counted = []
    monkeypatch.setattr(row_numbers, "work_of", lambda of: counted.append(of) or 10**9)
    found = ls.spectrum(objective, operator="ggn")
    assert len(counted) > 1  # once for each part with more than one row
    np.testing.assert_array_equal(found.eigenvalues, expected.eigenvalues)
    monkeypatch.setattr(row_numbers, "work_of", lambda of: -(10**9))
    required = ls.spectrum(objective, operator="ggn", method="rows")  # which no number of operations forbids
    np.testing.assert_array_equal(required.eigenvalues, expected.eigenvalues)


@pytest.mark.parametrize("name", ["residual-relu", "mlp-tanh"])
def test_a_hessians_errors_are_those_of_its_samples(name):
    objective = CASES[name].objective(weight_decay=DECAY)
    found = ls.spectrum(objective, steps=25, probes=1, **REVERSE)
    for p, n in enumerate(CLASS_SIZES):
        own = np.isfinite(found.sample_curvature[p])
        curvature = found.sample_curvature[p][own]
        assert own.sum() == n
        # v^T H v of the samples is lambda_max of the part, without the weight decay
        assert curvature.mean() == pytest.approx(found.lambda_max[p] - DECAY, rel=1e-6)
        np.testing.assert_array_equal(found.sample_index[p][own], objective.members[p])
        np.testing.assert_array_equal(found.sample_label[p][own], objective.samples.labels[objective.members[p]])
        assert found.sample_loss[p][own].mean() == pytest.approx(found.loss[p], rel=1e-10)
        right = found.sample_prediction[p][own] == found.sample_label[p][own]
        assert right.mean() == found.accuracy[p]
        traces = found.sample_trace[p][own]
        assert traces.mean() == pytest.approx(np.trace(dense(objective, p, "ggn").numpy()), rel=1e-10)
        if n > 1:
            whole = traces + (0 if found.sample_beyond is None else found.sample_beyond[p][own])  # of H - G
            assert found.trace_sampling_stderr[p] == pytest.approx(whole.std(ddof=1) / np.sqrt(n), rel=1e-10)
            assert found.lambda_max_sampling_stderr[p] == pytest.approx(curvature.std(ddof=1) / np.sqrt(n), rel=1e-10)
            assert found.lambda_max_crossfit[p] <= found.lambda_max[p]
        else:
            assert np.isnan(found.trace_sampling_stderr[p])
            assert np.isnan(found.lambda_max_crossfit[p])
    plain = ls.spectrum(objective, steps=25, probes=1, sampling_errors=False, **REVERSE)
    assert plain.sample_trace is None
    np.testing.assert_array_equal(plain.lambda_max, found.lambda_max)


def test_numbers_over_samples_follow_from_the_file(tmp_path):
    objective = CASES["mlp-tanh"].objective(partition="all")
    path = tmp_path / "a.h5"
    ls.spectrum(objective, operator="ggn", out=path)
    found = ls.load(path)
    one = over_samples.of_part(found, 0)
    traces, uncertainty = found.sample_trace[0], found.sample_uncertainty[0]
    assert one.n == sum(CLASS_SIZES)
    assert one.trace == pytest.approx((found.trace[0], traces.std(ddof=1) / np.sqrt(one.n)), rel=1e-10)
    assert np.isnan(one.trace_interval).all()  # 15 samples are too few
    assert one.trace_ratio[0] == pytest.approx(found.trace[0] / found.uncertainty[0], rel=1e-10)
    assert one.uncertainty[0] == pytest.approx(found.uncertainty[0])

    assert one.trace_ratio[1] / one.trace_ratio[0] < 3 * uncertainty.std() / uncertainty.mean()


@pytest.mark.parametrize("level", [0.9, 0.7])
def test_intervals_lie_around_the_parts_own_numbers(level):
    """A Hessian's trace may hold more than those of its samples' Gauss-Newton parts: the interval moves along."""
    rng = np.random.default_rng(0)
    n = 30
    made = ls.spectrum(CASES["mlp-tanh"].objective(partition="all"), operator="ggn")
    u = rng.lognormal(size=n)
    traces, curvatures = (u * rng.lognormal(sigma=0.3, size=n) for _ in range(2))
    found = dataclasses.replace(
        made,
        trace=np.array([traces.mean() + 5]),
        lambda_max=np.array([curvatures.mean() + 2]),
        lambda_max_crossfit=np.array([curvatures.mean()]),
        lambda_max_crossfit_stderr=np.array([0.1]),
        **{f.name: np.full((1, n), np.nan) for f in dataclasses.fields(made) if f.name.startswith("sample_")}
        | {
            "sample_weight": np.full((1, n), 1 / n),
            "sample_trace": traces[None],
            "sample_curvature": curvatures[None],
            "sample_uncertainty": u[None],
        },
    )
    one = over_samples.of_part(found, 0, level=level)
    error = curvatures.std(ddof=1) / np.sqrt(n)
    assert one.lambda_max == pytest.approx((curvatures.mean() + 2, error))
    assert one.trace == pytest.approx((traces.mean() + 5, traces.std(ddof=1) / np.sqrt(n)))
    assert one.trace_interval == pytest.approx(np.array(inference.interval(traces, level=level)) + 5)
    bracket = inference.bracket(curvatures.mean() + 2, error, curvatures.mean(), 0.1, n, level=level)
    assert one.lambda_max_interval == pytest.approx(bracket)
    assert one.trace_ratio == pytest.approx(inference.ratio(traces, u))
    assert one.lambda_max_ratio == pytest.approx(inference.ratio(curvatures, u))


def test_files_from_before_are_read_and_what_they_do_not_know_is_unknown(tmp_path):
    objective = CASES["mlp-tanh"].objective()
    path = tmp_path / "a.h5"
    ls.spectrum(objective, steps=5, probes=1, out=path, **REVERSE)
    with h5py.File(path, "r+") as file:
        file.attrs["version"] = np.int64(1)
        for name in list(file):
            if name.startswith(("sample_", "eigenvalue", "uncertainty")) or "sampling" in name or "crossfit" in name:
                del file[name]
    found = ls.load(path)
    assert found.sample_trace is None
    assert found.uncertainty is None
    assert over_samples.of_part(found, 0) is None
    quadrature.of_part(found, 0)


def test_few_samples_and_large_errors_are_marked():
    objective = CASES["mlp-tanh"].objective()
    found = ls.spectrum(objective, operator="ggn")
    assert not any(over_samples.of_part(found, p).resolved for p in range(3))  # at most 9 samples
    even = np.full((3, 25), 2.0)
    found = dataclasses.replace(
        found,
        **{n: even for n in dir(found) if n.startswith("sample_") and getattr(found, n) is not None}
        | {"sample_index": np.arange(75.0).reshape(3, 25), "sample_chance": None},
    )
    assert over_samples.of_part(found, 0).resolved
    one = dataclasses.replace(over_samples.of_part(found, 0), lambda_max=(1.0, 0.33), trace=(-1.0, 0.33))
    assert one.resolved
    assert not dataclasses.replace(one, trace=(1.0, 0.34)).resolved
    assert not dataclasses.replace(one, lambda_max=(1.0, 0.34)).resolved
    assert not dataclasses.replace(one, n_random=24).resolved


def test_rows_are_refused_where_they_cannot_be_had():
    objective = CASES["mlp-tanh"].objective()
    with refused(InputError, "rows"):
        ls.spectrum(objective, operator="residual", method="rows")
    with refused(InputError, "method"):
        ls.spectrum(objective, method="exact")
    with refused(InputError, "ggn_tol"):
        ls.spectrum(objective, ggn_tol=1.0)


@pytest.mark.parametrize(("kind", "outputs"), [("ggn", 6), ("hessian", 2), ("hessian", 6)])
def test_a_loss_that_is_linear_at_all_samples_has_a_spectrum(kind, outputs):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(12, 3, generator=generator, dtype=torch.float64)
    objective = ls.make_objective(
        mlp_of(outputs),
        (x, torch.full((12, outputs), 1e3, dtype=torch.float64)),
        loss=lambda out, y: F.huber_loss(out, y, reduction="none").sum(1),
        dtype="float64",
    )
    found = ls.spectrum(objective, operator=kind, tol=1e-8, **REVERSE)
    expected = eigenvalues(objective, 0, kind)
    assert found.lambda_max[0] == pytest.approx(expected[0], rel=1e-6)
    assert found.trace[0] == pytest.approx(expected.sum(), abs=4 * found.trace_stderr[0] + 1e-12)


def mlp_of(outputs):
    with torch.random.fork_rng():
        torch.random.manual_seed(0)
        return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, outputs)).double()


def test_rows_that_are_asked_for_and_do_not_fit_are_refused():
    """Only the default takes products in their place."""
    objective = CASES["mlp-tanh"].objective()
    options = {"operator": "ggn", "cache_bytes": 3 * objective.layout.size * objective.dtype.itemsize}
    with refused(InputError, "0", "cache_bytes", "method='lanczos'", method="rows"):
        ls.spectrum(objective, **options, method="rows")
    assert ls.spectrum(objective.alone("2"), **options, method="rows").steps is None  # a class of one sample


def test_a_caller_may_have_switched_gradients_off():
    objective = CASES["mlp-relu"].objective()
    expected = ls.spectrum(objective)
    with torch.no_grad():
        found = ls.spectrum(objective.at(objective.model))
    np.testing.assert_array_equal(found.lambda_max, expected.lambda_max)
    np.testing.assert_array_equal(found.lambda_max_sampling_stderr, expected.lambda_max_sampling_stderr)


@pytest.mark.parametrize(("loss", "grows"), [("mse", False), ("ce", True)])
def test_rounding_of_large_outputs_counts_where_the_curvature_of_the_loss_depends_on_them(loss, grows):
    def units(shift):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 2))
        x = torch.randn(20, 5)
        with torch.no_grad():
            model[2].bias += shift
            y = model(x) + 1 if loss == "mse" else torch.arange(20) % 2
        found = ls.spectrum(ls.make_objective(model, (x, y), parts=["a"] * 20, loss=loss), operator="ggn")
        return found.eigenvalue_rounding[0] / (found.lambda_max[0] * np.finfo(np.float32).eps)

    assert units(1e4) == pytest.approx(1e5 if grows else 100, rel=0.01)


class Masked(nn.Module):
    """A network with a class that is switched off."""

    def __init__(self, off):
        super().__init__()
        self.inner, self.off = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3)), off

    def forward(self, x):
        return torch.cat([self.inner(x), torch.full((len(x), 1), self.off, dtype=x.dtype)], dim=1)


@pytest.mark.parametrize("off", [-1e9, -float("inf")])
def test_rounding_of_outputs_without_probability_does_not_count(off):
    torch.manual_seed(0)
    model, x, y = Masked(off), torch.randn(20, 5), torch.arange(20) % 3
    found = ls.spectrum(ls.make_objective(model, (x, y), parts=["a"] * 20), operator="ggn")
    assert found.converged.all()
    assert 0 < found.eigenvalue_rounding[0] < 5e-5 * found.lambda_max[0]


def test_rounding_within_the_network_is_measured():
    """Inputs of a large mean, which a batch norm takes away, have lost some of their digits."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.BatchNorm1d(5, momentum=None), nn.Linear(5, 16), nn.ReLU(), nn.Linear(16, 3))
    x, y = torch.randn(40, 5) + 3e4, torch.randint(0, 3, (40,))
    model(x)
    model.eval()
    narrow, wide = (
        ls.spectrum(ls.make_objective(model, (x, y), parts=["a"] * 40, dtype=dtype), operator="ggn", ggn_tol=0.0)
        for dtype in (torch.float32, torch.float64)
    )
    off = np.abs(narrow.eigenvalues - wide.eigenvalues).max()
    assert off > 1e3 * np.finfo(np.float32).eps * wide.lambda_max[0]
    assert off < narrow.eigenvalue_rounding[0] < 100 * off
    assert narrow.lambda_max_residual[0] >= narrow.eigenvalue_rounding[0]


class OnlyFloat32(nn.Linear):
    """A layer that is written for float32."""

    def forward(self, x):
        if x.dtype != torch.float32:
            raise TypeError("float32 only")
        return super().forward(x)


def test_rounding_that_cannot_be_measured_is_told_once(caplog):
    torch.manual_seed(0)
    model, x, y = OnlyFloat32(5, 3), torch.randn(20, 5), torch.arange(20) % 3
    found = ls.spectrum(ls.make_objective(model, (x, y), parts=["a", "b"] * 10), operator="ggn")
    said = [record for record in caplog.records if "rounding of outputs is not measured" in record.getMessage()]
    assert [record.levelname for record in said] == ["WARNING"]
    assert (found.eigenvalue_rounding > 0).all()
