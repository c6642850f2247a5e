"""Spectra of small networks against their exact eigenvalues, and each stated error against what it claims."""

import copy
from functools import cache

import numpy as np
import pytest
import torch
from interruptions import Interrupting
from lanczos_runs import runs_on
from refusals import refused
from scipy.sparse.linalg import eigsh
from scipy.stats import binom, t
from torch import nn

import landscape as ls
from landscape.errors import InputError, NumericalError, StoreError
from tests.cases import CASES, Case, mlp
from tests.exact import dense

PLAIN = {"backend": "reverse", "sampling_errors": False}
"""For what a run finds whatever computes its products, without errors over samples: no network is traced."""


def exact_eigenvalues(objective, part):
    return torch.linalg.eigvalsh(dense(objective, part)).numpy()


@pytest.mark.parametrize("name", ["mlp-tanh", "mlp-norm"])
def test_as_many_steps_as_parameters_give_the_exact_spectrum(name):
    objective = CASES[name].objective()
    size = objective.layout.size
    found = ls.spectrum(objective, steps=size, probes=2, top=5, **PLAIN)
    for part in range(3):
        exact = exact_eigenvalues(objective, part)
        scale = np.abs(exact).max()
        assert np.allclose(found.ritz_values[part], exact[::-1][:5], atol=1e-9 * scale)
        assert found.lambda_min[part] == pytest.approx(exact[0], abs=1e-9 * scale)
        nodes, weights = ls.nodes_and_weights(found.alpha[part], found.beta[part], found.steps[part])
        # Every node with weight is an eigenvalue, whatever the multiplicities.
        seen = nodes[weights > 1e-8]
        assert np.abs(seen[:, None] - exact).min(axis=1).max() < 1e-7 * scale


def test_the_largest_eigenvalues_that_are_asked_for_are_computed():
    objective = CASES["mlp-tanh"].objective()
    found = ls.spectrum(objective, top=8, **PLAIN)
    for part in range(3):
        exact = exact_eigenvalues(objective, part)[::-1][:8]
        assert (found.ritz_residuals[part] <= found.tol * found.lambda_max[part]).all()
        np.testing.assert_allclose(found.ritz_values[part], exact, atol=1.5 * found.tol * exact[0])
    assert found.ritz_vectors is None


def test_ritz_values_that_nobody_asks_for_take_no_product():
    objective = CASES["mlp-tanh"].objective()
    plain, one = (ls.spectrum(objective, top=top, **PLAIN) for top in (None, 1))
    np.testing.assert_array_equal(plain.ritz_values[:, 0], one.ritz_values[:, 0])
    assert (plain.ritz_values.shape[1], one.ritz_values.shape[1]) == (10, 1)


def test_more_eigenvalues_than_a_matrix_has_are_all_of_them():
    found = ls.spectrum(np.diag([3.0, 2.0, -1.0]), density=False, top=5)
    np.testing.assert_allclose(found.ritz_values[0], [3, 2, -1, np.nan, np.nan], atol=1e-12)


def test_density_moments_are_the_moments_of_the_eigenvalues():
    """Mean over K probes of D * sum w t^p estimates trace(H^p); for signs its variance is at most 2 |H^p|_F^2."""
    objective = CASES["mlp-tanh"].objective(partition="all", batch_size=15)
    exact = exact_eigenvalues(objective, 0)
    probes = 100
    found = ls.spectrum(objective, steps=8, probes=probes, **PLAIN)
    nodes, weights = ls.nodes_and_weights(found.alpha[0], found.beta[0], found.steps[0])
    for power in (1, 2, 3, 4):
        estimate = found.size * (weights * nodes**power).sum(axis=1).mean()
        error = np.sqrt(2 * (exact ** (2 * power)).sum() / probes)
        assert abs(estimate - (exact**power).sum()) < 5 * error


def test_a_float32_run_gives_the_float64_numbers():
    both = [
        ls.spectrum(
            CASES["residual-gelu"].objective(dtype=d, partition="all", batch_size=8), steps=12, probes=2, **PLAIN
        )
        for d in (torch.float32, torch.float64)
    ]
    for name in ("lambda_max", "lambda_min", "trace"):
        a, b = (getattr(s, name) for s in both)
        assert np.allclose(a, b, rtol=1e-4, atol=1e-4 * both[1].lambda_max)


def test_numbers_do_not_depend_on_the_batch_size():
    reference, *others = (
        ls.spectrum(CASES["mlp-tanh"].objective(batch_size=n), steps=12, probes=2, sampling_errors=False)
        for n in (4, 1, 7, 1000)
    )
    for found in others:
        assert np.allclose(found.alpha, reference.alpha, rtol=1e-9, atol=1e-12, equal_nan=True)
        assert np.allclose(found.trace_samples, reference.trace_samples, rtol=1e-9)


def test_blocks_in_lock_step_give_what_single_probes_give():
    objective = CASES["mlp-tanh"].objective()
    alone = ls.spectrum(objective, steps=12, probes=3, vectors=2, **PLAIN)
    together = ls.spectrum(objective, steps=12, probes=3, vectors=2, cache_bytes=0, **PLAIN)
    for name in ("alpha", "beta", "trace_samples", "ritz_vectors"):
        assert np.allclose(getattr(alone, name), getattr(together, name), rtol=1e-7, atol=1e-9)


def runs_of(values, **options):
    generator = torch.Generator().manual_seed(7)
    q, _ = torch.linalg.qr(torch.randn(len(values), len(values), generator=generator, dtype=torch.float64))
    return runs_on((q * torch.as_tensor(values)) @ q.T, **options)


HEAVY = np.concatenate([[100.0, 60, 30, 20, 10, 8, -5], np.linspace(-0.5, 1, 93)])
MULTIPLE = np.concatenate([[50.0] * 6, [20.0] * 3, np.linspace(-0.5, 1, 91)])


@cache
def traces_of_seeds(multiple, probes, trace_tol):
    """The estimates of the trace of 100 seeds, each after as many steps as its large eigenvalues take to converge."""
    values, options = MULTIPLE if multiple else HEAVY, {"steps": 16, "trace_tol": trace_tol}
    return [runs_of(values, probes=probes, seed=seed, **options).trace_samples for seed in range(100)]


@pytest.mark.parametrize(
    ("multiple", "probes", "trace_tol"),
    [
        pytest.param(False, 2, None, id="simple, two probes"),
        pytest.param(True, 4, None, id="multiple, four probes"),
        pytest.param(False, 1, 0.05, id="simple, drawn to a tolerance"),
        pytest.param(True, 1, 0.1, id="multiple, drawn to a tolerance"),
    ],
)
def test_the_trace_misses_by_its_own_error_as_seldom_as_it_says(multiple, probes, trace_tol):
    """100 seeds; the estimate over its standard error is Student's t, nearly: beyond its 1 % quantile in 1 % of runs.

    The few estimates share deflations, so twice that share is allowed, and as many as happen once in a million runs.
    """
    exact, misses, every = (MULTIPLE if multiple else HEAVY).sum(), 0, traces_of_seeds(multiple, probes, trace_tol)
    for found in every:
        error = found.std(ddof=1) / np.sqrt(len(found))
        misses += abs(found.mean() - exact) > t.ppf(0.995, len(found) - 1) * error
    assert misses <= binom.ppf(1 - 1e-6, len(every), 0.02)


def test_the_trace_is_unbiased_where_eigenvalues_are_multiple():
    """Ritz vectors of a probe's own run would count each multiple eigenvalue once: 70 instead of 360."""
    samples = np.stack(traces_of_seeds(True, 4, None))
    off = abs(samples.mean(axis=0) - MULTIPLE.sum())
    assert (off < 5 * samples.std(axis=0) / len(samples) ** 0.5).all()  # independent runs


def test_deflation_reduces_the_spread_of_the_trace():
    """Plain estimates spread by up to sqrt(2) |H|_F = 173; without the seven large values that is 7."""
    plain = np.sqrt(2 * (HEAVY**2).sum())
    samples = np.concatenate([runs_of(HEAVY, probes=4, steps=16, seed=s).trace_samples for s in range(15)])
    assert samples.std() < 0.1 * plain


def test_lambda_max_lies_within_its_residual_of_an_eigenvalue_in_every_run():
    exact = np.sort(HEAVY)
    for seed in range(50):
        runs = runs_of(HEAVY, probes=1, steps=6, seed=seed)
        top = runs.ritz[0]
        assert np.abs(exact - top.values[-1]).min() <= top.residuals[-1]


def test_extreme_values_are_those_of_the_run_that_saw_the_most():
    """By few steps each run sees another smallest and largest value, of its own tridiagonal matrix."""
    found = ls.spectrum(CASES["residual-gelu"].objective(), method="lanczos", steps=3, probes=5, **PLAIN)
    for p in range(2):
        values = [
            np.linalg.eigvalsh(np.diag(a) + np.diag(b[:-1], 1) + np.diag(b[:-1], -1))
            for a, b in zip(found.alpha[p], found.beta[p], strict=True)
        ]
        assert len({round(v[0], 9) for v in values}) == 5
        assert found.lambda_min[p] == pytest.approx(min(v[0] for v in values), rel=1e-9)
        assert found.lambda_max[p] == pytest.approx(max(v[-1] for v in values), rel=1e-9)
        ratios = [abs(v[0] / v[-1]) for v in values]
        assert found.saddle_ratio[p] == pytest.approx(np.mean(ratios), rel=1e-9)
        assert found.saddle_ratio_stderr[p] == pytest.approx(np.std(ratios, ddof=1) / np.sqrt(5), rel=1e-9)


def test_lambda_max_has_converged_where_its_residual_is_within_the_tolerance():
    objective, shares = CASES["mlp-tanh"].objective(partition="all", batch_size=15), []
    options = {"method": "lanczos", "probes": 1, "trace": "probes", "sampling_errors": False, "backend": "reverse"}
    for steps in range(10, 26, 2):
        found = ls.spectrum(objective, steps=steps, **options)
        shares.append(found.lambda_max_residual[0] / abs(found.lambda_max[0]) / found.tol)
        assert found.converged[0] == (shares[-1] <= 1)
    assert min(shares) <= 1
    assert any(1 < share < 10 for share in shares)


def test_tol_goes_on_until_lambda_max_has_converged():
    objective = CASES["mlp-tanh"].objective()
    short = ls.spectrum(objective, steps=3, probes=1, **PLAIN)
    assert not short.converged.all()
    longer = ls.spectrum(objective, steps=3, probes=1, tol=1e-6, max_steps=60, **PLAIN)
    assert longer.converged.all()
    assert (longer.lambda_max_residual <= 1e-6 * longer.lambda_max).all()
    for part in range(3):
        assert longer.lambda_max[part] == pytest.approx(exact_eigenvalues(objective, part)[-1], rel=1e-6)
    given_up = ls.spectrum(objective, steps=2, probes=1, tol=1e-12, max_steps=4, **PLAIN)
    assert given_up.steps.max() == 4
    assert not given_up.converged.all()


def test_ritz_vectors_are_unit_eigenvectors():
    objective = CASES["mlp-tanh"].objective()
    found = ls.spectrum(objective, steps=60, probes=1, vectors=3, **PLAIN)
    for part in range(3):
        V = torch.as_tensor(found.ritz_vectors[part])
        H = dense(objective, part)
        assert torch.allclose(V @ V.T, torch.eye(3, dtype=torch.float64), atol=1e-9)
        residual = (H @ V.T - V.T * torch.as_tensor(found.ritz_values[part, :3])).norm(dim=0)
        assert (residual.numpy() <= found.ritz_residuals[part, :3] + 1e-9).all()


def test_a_zero_hessian_has_a_spectrum_of_zeros():
    linear = Case(lambda: nn.Sequential(nn.Flatten(), nn.Linear(18, 3)), loss=lambda z, y: z[torch.arange(len(y)), y])
    found = ls.spectrum(linear.objective(), steps=10, probes=2, trace_tol=0.02, **PLAIN)
    for name in ("lambda_max", "lambda_min", "trace", "trace_stderr", "negative_mass"):
        assert (getattr(found, name) == 0).all(), name
    assert found.converged.all()
    assert found.steps.max() == 1
    assert np.isnan(found.saddle_ratio).all()


def test_negative_curvature_and_saddle_ratio_agree_with_the_eigenvalues():
    objective = CASES["mlp-tanh"].objective(batch_size=9)
    found = ls.spectrum(objective, steps=40, probes=6, **PLAIN)
    for part in range(3):
        exact = exact_eigenvalues(objective, part)
        ratio = abs(exact[0] / exact[-1])
        assert found.saddle_ratio[part] == pytest.approx(ratio, rel=1e-6)
        share = -exact[exact < 0].sum() / np.abs(exact).sum()
        assert abs(found.negative_curvature[part] - share) < 5 * found.negative_curvature_stderr[part] + 0.02
        mass = (exact < -1e-3 * np.abs(exact).max()).mean()
        assert abs(found.negative_mass[part] - mass) < 5 * found.negative_mass_stderr[part] + 1e-9


def test_a_result_file_is_resumed_part_by_part(tmp_path):
    objective = CASES["mlp-tanh"].objective()
    reference = ls.spectrum(objective, steps=10, probes=2, **PLAIN)
    out = tmp_path / "out.h5"
    with refused(KeyboardInterrupt, 1, 3):
        ls.spectrum(objective, steps=10, probes=2, **PLAIN, out=out, progress=Interrupting(1))
    assert not out.exists()
    with refused(StoreError, steps=10):
        ls.spectrum(objective, steps=11, probes=2, **PLAIN, out=out)
    missing = Interrupting()
    found = ls.spectrum(objective, steps=10, probes=2, **PLAIN, out=out, progress=missing)
    assert missing.units[:2] == ["1", "2"]
    for s in (found, ls.load(out)):
        assert np.array_equal(s.alpha, reference.alpha)
        assert np.array_equal(s.trace_samples, reference.trace_samples)
        assert s.parts == reference.parts


def test_a_run_of_another_method_is_not_continued(tmp_path):
    """Also if the checkpoint states the method of its training, which has the same name."""
    objective = CASES["mlp-tanh"].objective(source={"method": "ce"})
    options = {"operator": "ggn", "steps": 5, "probes": 1, **PLAIN, "out": tmp_path / "out.h5"}
    with pytest.raises(KeyboardInterrupt):
        ls.spectrum(objective, **options, method="lanczos", progress=Interrupting(1))
    with refused(StoreError, "rows", method="lanczos"):
        ls.spectrum(objective, **options, method="rows")


def test_provenance_says_how_to_do_it_again(tmp_path):
    ls.spectrum(CASES["mlp-tanh"].objective(), steps=5, probes=1, seed=3, out=tmp_path / "a.h5", **PLAIN)
    found = ls.load(tmp_path / "a.h5").provenance
    assert found["options"]["seed"] == 3
    assert found["options"]["steps"] == 5
    assert len(found["data_sha256"]) == 64
    assert {"torch", "numpy", "python", "landscape"} <= set(found["versions"])
    assert found["dtype"] == "float64"
    assert found["loss"] == "ce"


def test_a_nan_in_the_weights_is_named():
    def broken():
        model = mlp(nn.Tanh())
        model[1].weight.data[0, 0] = np.nan
        return model

    with pytest.raises(NumericalError, match="loss of the first samples"):
        Case(broken).objective()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"steps": 0}, "steps must be at least 1"),
        ({"probes": 0}, "probes"),
        ({"top": 0}, "top"),
        ({"vectors": -1}, "vectors"),
        ({"vectors": 50, "steps": 10}, "vectors must be at most 10"),
        ({"tol": 0.0}, "tol"),
        ({"max_steps": 100}, "max_steps=100 goes with tol"),
        ({"max_steps": 10, "steps": 20, "tol": 0.1}, "max_steps=10"),
        ({"trace_tol": 2.0}, "trace_tol"),
        ({"gap": 1.0}, "gap"),
        ({"negative_tol": -1.0}, "negative_tol"),
        ({"seed": -1}, "seed"),
        ({"distribution": "cauchy"}, "distribution"),
        ({"operator": "laplacian"}, "operator"),
    ],
)
def test_options_out_of_range_are_named(options, words):
    with pytest.raises(InputError, match=words):
        ls.spectrum(CASES["mlp-tanh"].objective(), **options)


def test_lambda_max_and_trace_match_pyhessian():
    from landscape.curvature import verify

    objective = CASES["residual-gelu"].objective(dtype=torch.float32)
    found = ls.spectrum(objective, steps=20, probes=2, **PLAIN)
    for p in (0, 2):
        theirs = verify.pyhessian(objective, found.parts[p], seed=0)
        # It finds the largest magnitude and stops at a relative change of 1e-3 a step, which bounds no error.
        assert theirs.top == pytest.approx(max(found.lambda_max[p], found.lambda_min[p], key=abs), rel=0.02)
        error = np.hypot(theirs.trace_stderr, found.trace_stderr[p])
        assert abs(theirs.trace - found.trace[p]) < 6 * error


def test_pyhessian_sees_the_chosen_parameters_alone_and_its_error_is_that_of_its_mean():
    import pyhessian

    from landscape.curvature import verify

    objective = CASES["mlp-tanh"].objective(dtype=torch.float32, partition="all", params="3.*", batch_size=100)
    found = verify.pyhessian(objective, "all", seed=1)
    values = exact_eigenvalues(CASES["mlp-tanh"].objective(partition="all", params="3.*"), 0)
    assert found.top == pytest.approx(values[np.abs(values).argmax()], rel=0.02)
    assert abs(found.trace - values.sum()) < 6 * found.trace_stderr
    model = copy.deepcopy(objective.model).requires_grad_(False)
    model[3].requires_grad_(True)
    with torch.random.fork_rng():
        torch.random.default_generator.manual_seed(1)
        criterion = torch.nn.CrossEntropyLoss()
        theirs = pyhessian.hessian(model, criterion, dataloader=list(objective.batches(0)), cuda=False)
        theirs.eigenvalues()
        samples = np.array(theirs.trace())
    assert found.n_probes == len(samples)
    assert found.trace == pytest.approx(samples.mean(), rel=1e-4)
    assert found.trace_stderr == pytest.approx(samples.std(ddof=1) / np.sqrt(len(samples)), rel=1e-3)


def test_lambda_max_and_trace_match_curvlinops_with_scipys_solver():
    curvlinops = pytest.importorskip("curvlinops", reason="curvlinops is not installed: see README, peers")
    objective = CASES["mlp-tanh"].objective(partition="all", batch_size=8)
    found = ls.spectrum(objective, steps=60, probes=2, trace_tol=0.02, **PLAIN)
    parameters = list(objective.model.parameters())
    for p in parameters:
        p.requires_grad_(True)
    theirs = curvlinops.HessianLinearOperator(
        objective.model, nn.CrossEntropyLoss(), parameters, list(objective.batches(0)), check_deterministic=False
    )
    top = eigsh(theirs.to_scipy(), k=1, which="LA", return_eigenvectors=False)[0]
    assert found.lambda_max[0] == pytest.approx(top, rel=1e-6)
    trace = (theirs @ torch.eye(objective.layout.size, dtype=torch.float64)).trace().item()
    assert abs(found.trace[0] - trace) < max(6 * found.trace_stderr[0], 1e-9 * abs(trace))


def test_quadrature_in_pyhessians_form_has_its_types():
    found = ls.spectrum(CASES["mlp-tanh"].objective(), steps=7, probes=2, **PLAIN)
    eigenvalues, weights = ls.to_pyhessian(
        *ls.nodes_and_weights(found.alpha[0], found.beta[0], found.steps[0]), found.steps[0]
    )
    assert [len(e) for e in eigenvalues] == [7, 7]
    assert all(type(x) is float for x in eigenvalues[0] + weights[0])
    assert sum(weights[1]) == pytest.approx(1)
