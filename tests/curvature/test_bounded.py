"""Runs that keep no basis, restarted runs, and spectra from both, against the full method and dense eigenvalues."""

from functools import partial

import hard
import numpy as np
import pytest
import torch
from refusals import refused
from torch import nn

import landscape as ls
from landscape.analyses.options import PROBES, SHORT
from landscape.autodiff import memory
from landscape.autodiff.linearize import Linearized
from landscape.curvature import probing, products, restarted, trace_probes
from landscape.curvature.lanczos import lanczos
from landscape.curvature.matrices import matrix
from landscape.curvature.places import Room
from landscape.errors import InputError
from landscape.results import quadrature
from tests.cases import CASES
from tests.exact import dense

OUTLIERS = (50.0, 30.0, 20.0, 12.0, 8.0, -5.0)
SIZE = 600


def symmetric(dtype=torch.float64, seed=0):
    """A few large eigenvalues, one of them negative, and a bulk within [-1, 1]; with all of them, ascending."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.cat([torch.tensor(OUTLIERS), 2 * torch.rand(SIZE - len(OUTLIERS), generator=generator) - 1]).double()
    Q, _ = torch.linalg.qr(torch.randn(SIZE, SIZE, generator=generator, dtype=torch.float64))
    A = Q @ torch.diag(values) @ Q.T
    return ((A + A.T) / 2).to(dtype), np.sort(values.numpy())


def signs(*shape, seed=3):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 2, shape, generator=generator).double() * 2 - 1


def area_between(nodes, weights, others, other_weights):
    """The Wasserstein-1 distance of two weighted spectra."""
    x = np.sort(np.concatenate([nodes, others]))
    cumulated = [np.array([w[n <= at].sum() for at in x[:-1]]) for n, w in ((nodes, weights), (others, other_weights))]
    return float(np.abs(cumulated[0] - cumulated[1]) @ np.diff(x))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("capacity", [6, 9, 40])
def test_restarts_find_the_largest_pairs_whatever_fits(dtype, capacity):
    A, exact = symmetric(dtype)
    taken = []
    found = restarted.largest(
        lambda v: A @ v, signs(SIZE)[0:].to(dtype), 3, capacity=capacity, tol=1e-5, most=200, progress=taken.append
    )
    assert np.abs(found.values[:3] - exact[::-1][:3]).max() <= found.residuals[:3].max() <= 1e-4 * 50
    assert taken == list(range(1, found.products + 1))
    assert found.products < 60
    Q = found.vectors.double()
    eps = torch.finfo(dtype).eps
    assert (Q @ Q.T - torch.eye(len(Q))).abs().max() < 100 * eps
    # A Q^T = Q^T diag(t) + next remainder^T
    off = A.double() @ Q.T - Q.T * torch.tensor(found.values)
    off -= torch.outer(found.next.double(), torch.tensor(found.remainder))
    assert off.abs().max() < 100 * eps * 50


def test_restarts_end_where_the_space_is_exhausted_or_products_are():
    zero = restarted.largest(lambda v: 0 * v, torch.ones(5), 1, capacity=4, tol=1e-3, most=10)
    assert (zero.values[0], zero.products) == (0, 1)
    small = restarted.largest(lambda v: v * torch.tensor([1.0, 2, 3, 4]), torch.ones(4), 1, capacity=4, tol=0, most=50)
    assert small.values == pytest.approx([4], rel=1e-6)
    assert small.products == 4
    A, _ = symmetric()
    given_up = restarted.largest(lambda v: A @ v, signs(SIZE), 3, capacity=8, tol=1e-12, most=5)
    assert given_up.products == 5
    assert given_up.residuals[2] > 1e-12 * 50
    with refused(InputError, 3, 6, 5):
        restarted.largest(lambda v: A @ v, signs(SIZE), 3, capacity=5, tol=1e-3, most=5)


def test_without_a_basis_copies_appear_and_the_weights_of_all_are_right():
    A, exact = symmetric(torch.float32)
    z = signs(1, 2, SIZE).float()
    full, plain = (lanczos(lambda V: V @ A, z, 40, keep=keep) for keep in (True, False))
    assert plain.basis.shape == (1, 2, 2, SIZE)
    for k in range(2):
        ours, theirs = plain.solved(0, k), full.solved(0, k)
        assert np.count_nonzero(np.abs(ours.values - 50) < 0.01) > 1  # else this matrix shows nothing
        for value in OUTLIERS:
            weight, expected = (r.weights[np.abs(r.values - value) < 0.01].sum() for r in (ours, theirs))
            assert weight == pytest.approx(expected, rel=1e-3)
        assert ours.values[-1] == pytest.approx(exact[-1], rel=1e-5)


def test_a_tridiagonal_matrix_of_nodes_and_weights_gives_them_back():
    rng = np.random.default_rng(0)
    nodes, weights = np.sort(rng.normal(size=30)), rng.dirichlet(np.ones(30))
    weights[3] = 1e-12
    weights /= weights.sum()
    alpha, beta = quadrature.jacobi(nodes, weights)
    found = quadrature.ritz(alpha, np.append(beta, 0), 30)
    assert np.allclose(found.values, nodes, atol=1e-13)
    assert np.allclose(found.weights, weights, atol=1e-13)
    assert (beta >= 0).all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_probes_without_a_basis_give_the_numbers_of_those_with_one(dtype):
    A, exact = symmetric(dtype)
    operator = matrix(A[None])
    plans = [probing.Plan(steps=40, probes=3, seed=0, room=n) for n in (None, Room(24))]
    full, ours = (probing.run(operator, plan, lambda share: None) for plan in plans)
    assert full.basis is None
    taken_out = len(ours.ritz[0].values) - 40
    assert ours.basis == (
        f"not kept: {taken_out} eigenvectors by restarts with 16 vectors; others are not known, and bounds are wider"
    )
    top = ours.ritz[ours.best]
    assert (np.abs(top.values[-5:] - exact[-5:]) <= top.residuals[-5:]).all()
    assert top.residuals[-3:].max() < 1e-3 * 50
    assert min(r.values[0] for r in ours.ritz) == pytest.approx(-5, abs=ours.ritz[0].residuals[0])
    assert (ours.extremes.double() @ A.double() @ ours.extremes.double().T).diagonal().numpy() == pytest.approx(
        exact[::-1][:3], rel=1e-4
    )
    assert abs(ours.trace[0] - exact.sum()) < 3 * ours.trace[1]
    assert 0.5 < ours.trace[1] / full.trace[1] < 2
    for k in range(3):
        nodes = [quadrature.ritz(r.alpha[k], r.beta[k], int(r.steps[k])) for r in (full, ours)]
        # Against the exact spectrum the two differ by far less than the probe and the steps themselves do.
        apart = area_between(nodes[0].values, nodes[0].weights, nodes[1].values, nodes[1].weights)
        noise = area_between(nodes[0].values, nodes[0].weights, exact, np.full(SIZE, 1 / SIZE))
        assert apart < 0.5 * noise


def test_trace_probes_without_a_basis_reach_what_is_asked():
    A, exact = symmetric()
    A = A + torch.eye(SIZE)  # a trace that is not small
    plan = probing.Plan(steps=30, probes=2, seed=0, room=Room(24), trace_tol=0.02)
    found = probing.run(matrix(A[None]), plan, lambda share: None)
    assert len(found.trace_samples) >= trace_probes.PILOT
    assert abs(found.trace[0] - exact.sum() - SIZE) < 3 * found.trace[1]


def test_too_little_memory_is_refused_with_what_would_help():
    A, _ = symmetric()
    with refused(InputError, 18, 600, 19):
        probing.run(matrix(A[None]), probing.Plan(steps=30, probes=1, seed=0, room=Room(18)), lambda share: None)


def test_runs_advance_together_as_far_as_they_fit():
    A, _ = symmetric()
    operator = matrix(A[None])
    object.__setattr__(operator, "cached", False)
    blocks = []
    matvec = operator.matvec
    object.__setattr__(operator, "matvec", lambda V: blocks.append(V.shape[1]) or matvec(V))
    spare = 2 * probing.DEFLATED + 4 + 14
    for runs_that_fit, expected in ((4, {4}), (3, {3, 1}), (1, {1})):
        plan = probing.Plan(steps=10, probes=4, seed=0, room=Room(spare + 11 * runs_that_fit))
        assert probing.run(operator, plan, lambda share: None).basis is None
        assert set(blocks) == expected
        blocks.clear()


def test_a_spectrum_says_that_its_basis_was_not_kept_and_agrees_with_the_full_one(monkeypatch, caplog):
    objective = CASES["mlp-tanh"].objective(partition="all")
    full = ls.spectrum(objective, steps=30, probes=2, vectors=2, sampling_errors=False)
    entry = objective.layout.size * 8
    monkeypatch.setattr(memory, "room", lambda device, limit: limit - 1000 * entry)
    found = ls.spectrum(
        objective, steps=30, probes=2, vectors=2, sampling_errors=False, cache_bytes=0, memory_bytes=1030 * entry
    )
    assert "the Lanczos basis takes" in caplog.text
    assert found.provenance["basis"].startswith("not kept")
    assert "basis" not in full.provenance
    exact = torch.linalg.eigvalsh(dense(objective, 0)).numpy()
    assert abs(found.lambda_max[0] - exact[-1]) <= found.lambda_max_residual[0] < 1e-2 * exact[-1]
    assert abs(found.lambda_min[0] - exact[0]) <= found.lambda_min_residual[0]
    assert np.abs(np.abs(np.sum(found.ritz_vectors * full.ritz_vectors, axis=2)) - 1).max() < 1e-3
    assert abs(found.trace[0] - full.trace[0]) <= 3 * np.hypot(found.trace_stderr[0], full.trace_stderr[0])


def test_ends_without_a_density_take_few_products_where_their_run_does_not_fit(monkeypatch):
    objective = CASES["mlp-tanh"].objective(partition="all")
    monkeypatch.setattr(memory, "room", lambda device, limit: limit)
    limit = 30 * objective.layout.size * 8
    taken, real = [], probing.run
    monkeypatch.setattr(probing, "run", lambda *a, **k: taken.append(real(*a, **k)) or taken[-1])
    found = ls.spectrum(objective, sampling_errors=False, trace="probes", cache_bytes=0, memory_bytes=limit)
    taken_out = int(found.provenance["basis"].split()[2])
    assert found.steps is None  # no density is asked for
    assert taken[0].steps.tolist() == [SHORT + taken_out] * PROBES  # where a density would take 80 and more
    exact = torch.linalg.eigvalsh(dense(objective, 0)).numpy()
    assert abs(found.lambda_max[0] - exact[-1]) <= found.lambda_max_residual[0] < 1e-3 * exact[-1]
    assert abs(found.lambda_min[0] - exact[0]) <= found.lambda_min_residual[0]
    assert abs(found.trace[0] - exact.sum()) <= 3 * found.trace_stderr[0]


def test_memory_is_measured_and_a_limit_counts_what_was_taken():
    cpu = torch.device("cpu")
    taken = memory.most_so_far()
    assert 2**26 < taken < 2**40  # Python and torch, in bytes
    assert memory.room(cpu, taken + 1000) <= 1000
    assert memory.room(cpu, 1) == 0
    assert memory.room(cpu, None) > 0


@pytest.mark.parametrize("backend", ["reverse", "linearized"])
def test_products_go_on_with_smaller_batches_where_memory_runs_out(backend, monkeypatch, caplog):
    objective = CASES["mlp-tanh"].objective(partition="all", batch_size=9)
    operator = ls.curvature_operator(objective, backend=backend)
    V = torch.stack([signs(operator.size), signs(operator.size, seed=4)])[None]
    expected = operator.matvec(V)
    real, sizes = products.by_reverse, []

    def scarce(problem, kind, batch, vs):
        sizes.append(len(batch[1]))
        if len(batch[1]) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(problem, kind, batch, vs)

    def never(*batch):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes")

    monkeypatch.setattr(products, "by_reverse", scarce)
    fresh = operator[["all"]]
    if backend == "linearized":
        monkeypatch.setattr(type(fresh.matvec._traced.linearized), "residuals", never)
    assert torch.allclose(fresh.matvec(V), expected, rtol=1e-12, atol=1e-14)
    assert "memory has run out: products take 3 samples at a time from now on" in caplog.text
    sizes.clear()
    fresh.matvec(V)  # 9 and 6 samples
    assert sizes == [3, 3, 3, 3, 3]

    def hopeless(problem, kind, batch, vs):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(products, "by_reverse", hopeless)
    with pytest.raises(torch.OutOfMemoryError):
        fresh.matvec(V)


class Scarce(torch.autograd.Function):
    """The identity, whose backward pass has memory for some samples only, once `most` says so."""

    most = 100

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, g):
        if len(g) > Scarce.most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return g.clone()


def test_memory_that_runs_out_within_a_derivative_makes_batches_smaller(monkeypatch, caplog):
    expected = hard.matrix(hard.objective_of(partial(hard.layers, nn.Tanh())), backend="reverse")
    scarce = hard.objective_of(partial(hard.layers, nn.Sequential(nn.Tanh(), hard.Applied(Scarce.apply))))
    monkeypatch.setattr(Scarce, "most", 2)
    torch.testing.assert_close(hard.matrix(scarce, backend="reverse"), expected, rtol=0, atol=1e-12)
    assert "products take 2 samples at a time from now on" in caplog.text


def test_memory_that_runs_out_in_a_traced_product_is_no_fault_of_the_trace(monkeypatch, caplog):
    objective = hard.objective_of(partial(hard.layers, nn.Tanh()))
    expected = hard.product(objective, backend="reverse")
    operator, residuals = ls.curvature_operator(objective, backend="linearized"), Linearized.residuals

    def scarce(graph, inputs, targets):
        if len(targets) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return residuals(graph, inputs, targets)

    def never(*given):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Linearized, "residuals", scarce)
    V = hard.some(objective).expand(2, -1, -1)
    torch.testing.assert_close(operator.matvec(V), expected, rtol=0, atol=1e-12)
    assert "products take 2 samples at a time from now on" in caplog.text
    fresh = ls.curvature_operator(hard.objective_of(partial(hard.layers, nn.Tanh())))  # compared on fewer samples
    assert "the traced product is compared on 2 samples" in caplog.text
    torch.testing.assert_close(fresh.matvec(V), expected, rtol=0, atol=1e-12)
    monkeypatch.setattr(Linearized, "residuals", never)
    with pytest.raises(torch.OutOfMemoryError):
        ls.curvature_operator(hard.objective_of(partial(hard.layers, nn.Tanh())))


def test_a_vector_stands_beside_the_eigenvalue_that_it_belongs_to(monkeypatch):
    """The largest eigenvalue is double: restarts find a vector of it, and runs without that find copies of it."""
    generator = torch.Generator().manual_seed(0)
    values = torch.cat([torch.tensor([10.0, 10, 5, 4]), 2 * torch.rand(SIZE - 4, generator=generator) - 1]).double()
    Q, _ = torch.linalg.qr(torch.randn(SIZE, SIZE, generator=generator, dtype=torch.float64))
    A = Q @ torch.diag(values) @ Q.T
    monkeypatch.setattr(memory, "room", lambda device, limit: 24 * 8 * SIZE)
    found = ls.spectrum(matrix(A), steps=40, probes=2, vectors=3)
    assert found.provenance["basis"].startswith("not kept")
    np.testing.assert_allclose(found.ritz_values[0, :3], [10, 5, 4], rtol=1e-3)
    assert (np.diff(found.ritz_values[0]) < -1e-3)[np.isfinite(found.ritz_values[0, 1:])].all()
    assert found.lambda_max[0] == pytest.approx(10, rel=1e-3)
    assert found.ritz_vectors.shape == (1, 3, SIZE)
    for r, v in enumerate(found.ritz_vectors[0]):
        assert np.linalg.norm(A.numpy() @ v - found.ritz_values[0, r] * v) <= found.ritz_residuals[0, r] + 1e-9


def test_as_many_eigenvalues_come_from_restarts_as_are_asked_for(monkeypatch):
    A, exact = symmetric()
    monkeypatch.setattr(memory, "room", lambda device, limit: 30 * 8 * SIZE)
    found = ls.spectrum(matrix(A), density=False, top=5)
    assert found.provenance["basis"].startswith("not kept")
    assert found.ritz_vectors is None
    np.testing.assert_allclose(found.ritz_values[0], exact[::-1][:5], atol=1.5e-3 * exact[-1])


def definite(name, dtype, size=300, seed=0):
    """A matrix without eigenvalues near 0, or one with an eigenspace of 0; with its eigenvalues, ascending."""
    rng = np.random.default_rng(seed)
    bulk = {
        "negative": -rng.uniform(1, 2, size),
        "positive": rng.uniform(0.5, 1, size),
        "with weight decay": 20 + np.append([130, 90, 60, 40, 20, 10, 5, 3], np.zeros(size - 8)),
        "multiple": np.repeat([10, 4, -1, -2.5], [3, 2, size - 105, 100]),
        "multiple and positive": np.append(np.repeat([10.0, 4], [6, 5]), rng.uniform(1, 2, size - 11)),
        "of low rank": np.append([9, 7, 5, 2, -4.0], np.zeros(size - 5)),
        "with a gap at 0": rng.choice([-1, 1], size) * rng.uniform(1, 2, size),
        "large and small": np.append([1e4, 1e3, 300], rng.uniform(1, 2, size - 3)),
    }[name]
    Q, _ = np.linalg.qr(rng.normal(size=(size, size)))
    A = torch.from_numpy(Q * bulk @ Q.T).to(dtype)
    A = (A + A.T) / 2
    return A, np.linalg.eigvalsh(A.double().numpy())


SHAPES = (
    "negative", "positive", "with weight decay", "multiple", "multiple and positive", "of low rank", "with a gap at 0",
    "large and small",
)  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", SHAPES)
def test_what_is_taken_out_leaves_no_eigenvalue_zero(name, dtype):
    """Every node lies within its bound of an eigenvalue, also where 0 is none and far from all."""
    seed = int(dtype == torch.float32)
    A, exact = definite(name, dtype, seed=seed)
    for steps, fit, vectors in ((20, 30, 0), (80, 20, 0), (120, 47, 4)):
        plan = probing.Plan(steps=steps, probes=2, seed=seed, vectors=vectors, room=Room(fit))
        found = probing.run(matrix(A[None]), plan, lambda share: None)
        assert found.basis.startswith("not kept")
        for run in found.ritz:
            apart = np.abs(run.values[:, None] - exact).min(axis=1)
            assert (apart <= run.residuals + 1e-15 * np.abs(exact).max()).all()
        assert abs(found.trace[0] - exact.sum()) <= 4 * found.trace[1]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", SHAPES)
def test_a_definite_matrix_has_the_ends_and_the_density_of_runs_with_a_whole_basis(name, dtype, monkeypatch):
    A, exact = definite(name, dtype)
    full = ls.spectrum(matrix(A), steps=80, probes=2)
    monkeypatch.setattr(memory, "room", lambda device, limit: 30 * A.element_size() * len(A))
    found = ls.spectrum(matrix(A), steps=80, probes=2)
    short = ls.spectrum(matrix(A), density=False, vectors=4)
    assert full.steps.max() <= 80
    assert "basis" not in full.provenance
    scale = np.abs(exact).max()
    for one in (found, short):
        assert one.provenance["basis"].startswith("not kept")
        assert np.abs(one.lambda_max[0] - exact).min() <= one.lambda_max_residual[0]
        assert np.abs(one.lambda_min[0] - exact).min() <= one.lambda_min_residual[0]
        assert exact[0] - 1e-5 * scale <= one.lambda_min[0] <= one.lambda_max[0] <= exact[-1] + 1e-5 * scale
    np.testing.assert_allclose([found.lambda_min[0], found.lambda_max[0]], exact[[0, -1]], rtol=0, atol=1e-3 * scale)
    assert found.saddle_ratio[0] == pytest.approx(abs(exact[0] / exact[-1]), abs=2e-3)
    assert abs(found.negative_mass[0] - full.negative_mass[0]) < 0.05
    for k in range(2):
        ours, theirs = (quadrature.of_part(one, 0) for one in (found, full))
        kept = [np.isfinite(nodes[k]) for nodes, _ in (ours, theirs)]
        apart = area_between(ours[0][k][kept[0]], ours[1][k][kept[0]], theirs[0][k][kept[1]], theirs[1][k][kept[1]])
        assert apart < 0.01 * (exact[-1] - exact[0])


def test_the_ggn_of_a_network_with_weight_decay_has_no_eigenvalue_below_it(monkeypatch):
    objective = CASES["mlp-tanh"].objective(partition="all", weight_decay=0.5)
    exact = 0.5 + torch.linalg.eigvalsh(dense(objective, 0, "ggn")).numpy()
    monkeypatch.setattr(memory, "room", lambda device, limit: 30 * objective.layout.size * 8)
    found = ls.spectrum(
        objective, operator="ggn", method="lanczos", steps=60, probes=2, density=True, cache_bytes=0, memory_bytes=1,
        sampling_errors=False,
    )  # fmt: skip
    assert found.provenance["basis"].startswith("not kept")
    assert abs(found.lambda_min[0] - exact[0]) <= found.lambda_min_residual[0] < 0.05
    assert found.saddle_ratio[0] == pytest.approx(exact[0] / exact[-1], rel=1e-3)
