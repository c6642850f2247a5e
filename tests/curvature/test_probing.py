"""What probes tell of known matrices: the deflated trace against its dense formula, errors against their claims."""

import numpy as np
import pytest
import torch
from lanczos_runs import runs_on
from scipy.stats import binom

from landscape.curvature import probing, trace_probes
from landscape.curvature.lanczos import lanczos, probe

SIZE = 60


def with_eigenvalues(values):
    generator = torch.Generator().manual_seed(7)
    q, _ = torch.linalg.qr(torch.randn(len(values), len(values), generator=generator, dtype=torch.float64))
    return (q * torch.as_tensor(values)) @ q.T


OUTLIERS = with_eigenvalues(np.concatenate([[100.0, 60, 30, 20, -15], np.linspace(-0.5, 1, SIZE - 5)]))
MATRICES = {
    "outliers": OUTLIERS,
    "multiple": with_eigenvalues([50.0] * 6 + [20.0] * 3 + list(np.linspace(-0.5, 1, SIZE - 9))),
    "one direction": with_eigenvalues([10.0] + [0.0] * (SIZE - 1)),
    "no outliers": with_eigenvalues(np.random.default_rng(0).normal(size=SIZE)),
}


def deflated(matrix, steps):
    """A deflation by few steps, whose vectors have not converged, and the same as dense matrices Q and P."""
    z = probe(SIZE, seed=1, number=0).to(matrix.dtype)[None, None]
    runs = lanczos(lambda V: V @ matrix, z, steps)
    found = probing.deflation(runs, 0, runs.solved(0, 0))
    Q = found.vectors.T
    return found, Q, torch.eye(SIZE, dtype=matrix.dtype) - Q @ Q.T


@pytest.mark.parametrize("steps", [6, 9, 30])
def test_a_deflated_sample_and_its_rest_are_what_dense_matrices_give(steps):
    """Alone: in a whole run an error of the remainder would hide in the spread of the trace."""
    found, Q, P = deflated(OUTLIERS, steps)
    assert 0 < Q.shape[1] <= probing.DEFLATED
    for number in range(5):
        z = probe(SIZE, seed=2, number=number).double()
        form, product = (z @ OUTLIERS @ z).item(), OUTLIERS @ z
        expected = torch.trace(Q.T @ OUTLIERS @ Q) + (P @ z) @ OUTLIERS @ (P @ z)
        assert found.sample(z, form) == pytest.approx(expected.item(), rel=1e-10)
        rest = (P @ OUTLIERS @ P @ z).square().sum().item()
        assert found.rest(z, product) == pytest.approx(rest, rel=1e-8)
    norm2 = (P @ OUTLIERS @ P).square().sum().item()
    assert 0 <= found.left <= norm2 * (1 + 1e-12)
    assert (found.left > 0) == (Q.shape[1] < steps)
    if steps == 6:  # the remainder is there: without it the sample is off by far more than rounding
        without = probing.Deflation(**vars(found) | {"remainder": np.zeros_like(found.remainder)})
        assert abs(without.sample(z, form) - found.sample(z, form)) > 1e-3


def test_the_product_of_a_runs_own_probe_follows_from_its_first_coefficients():
    z = probe(SIZE, seed=1, number=0, distribution="gaussian").double()
    runs = lanczos(lambda V: V @ OUTLIERS, z[None, None], 5)
    # private: an identity between coefficients that saves a product
    assert torch.allclose(probing._product(runs, 0), OUTLIERS @ z, atol=1e-10)


@pytest.mark.parametrize("name", MATRICES)
@pytest.mark.parametrize("probes", [1, 2, 4])
def test_the_trace_lies_within_two_standard_errors_nine_times_of_ten(name, probes):
    """40 seeds; 10 % of misses are allowed, and as many as happen once in a million runs at that rate."""
    matrix, misses = MATRICES[name], 0
    for seed in range(40):
        mean, error = runs_on(matrix, probes=probes, steps=8, seed=seed).trace
        misses += abs(mean - matrix.trace().item()) > 2 * error
    assert misses <= binom.ppf(1 - 1e-6, 40, 0.1)


def test_the_bound_is_the_standard_deviation_where_the_diagonal_is_small():
    """Var(z^T A z) = 2 (|A|_F^2 - sum of A_ii^2) for signs: the bound leaves the second term out."""
    matrix = MATRICES["no outliers"]
    errors = [runs_on(matrix, probes=1, steps=3, seed=seed).trace[1] for seed in range(40)]
    assert np.mean(errors) == pytest.approx(np.sqrt(2 * matrix.square().sum().item()), rel=0.1)
    fewer, more = (np.mean([runs_on(matrix, probes=k, steps=3, seed=s).trace[1] for s in range(10)]) for k in (2, 8))
    assert more == pytest.approx(fewer / 2, rel=0.2)


def test_the_error_of_a_trace_that_is_deflated_to_nothing_is_the_rounding_of_its_terms():
    """These are of the size of z^T |A| z, which cancel: ten units of rounding, or what the Ritz values have."""
    values = np.array([100.0, 60, 30, 20, -15] + [0.0] * (SIZE - 5))
    matrix, size = with_eigenvalues(values).float(), with_eigenvalues(np.abs(values))
    for seed in range(10):
        mean, error = runs_on(matrix, probes=2, steps=30, seed=seed).trace
        z = torch.stack([probe(SIZE, seed=seed, number=k) for k in range(2)]).double()
        largest = max(100, (z @ size * z).sum(1).max().item())
        assert error == pytest.approx(10 * 2.0**-23 * largest, rel=0.01)
        assert abs(mean - matrix.double().trace().item()) <= 2 * error


def test_many_samples_tell_their_spread_themselves():
    found = runs_on(MATRICES["no outliers"], probes=1, steps=8, seed=0, trace_tol=0.1)
    assert len(found.trace_samples) >= trace_probes.OWN_SPREAD
    spread = found.trace_samples.std(ddof=1) / np.sqrt(len(found.trace_samples))
    assert found.trace == (pytest.approx(found.trace_samples.mean()), pytest.approx(spread))


def test_a_tolerance_out_of_reach_ends_after_four_times_the_steps_or_those_that_were_named():
    for options, taken in (({}, 12), ({"max_steps": 7}, 7), ({"tol": None}, 3)):
        found = runs_on(MATRICES["no outliers"], probes=1, seed=0, **{"steps": 3, "tol": 1e-30} | options)
        assert found.steps.tolist() == [taken]


@pytest.mark.parametrize("tol", [0.3, 0.1, 0.05])
@pytest.mark.parametrize("name", MATRICES)
def test_the_error_of_a_trace_is_the_one_asked_for_or_a_warning_says_that_it_is_not(name, tol, caplog):
    """Whatever chance gives the first probes: means of these that are near zero, or errors that are small."""
    most = trace_probes.MOST_TRACE_PROBES
    for seed in range(8):
        caplog.clear()
        found = runs_on(MATRICES[name], probes=2, steps=4, seed=seed, trace_tol=tol)
        (value, error), n = found.trace, len(found.trace_samples)
        reached = error <= tol * abs(value) * (1 + 1e-12)
        assert reached or n == most
        assert ("above the requested" in caplog.text) is not reached
        assert trace_probes.PILOT <= n <= most


def test_no_more_probes_are_drawn_than_the_error_needs():
    """The error falls with the root of their number; the last stage has what the one before predicted."""
    matrix = MATRICES["no outliers"]
    matrix = matrix + 0.5 * torch.eye(SIZE, dtype=matrix.dtype)  # so that the mean is not near zero
    numbers = []
    for seed in range(12):
        found = runs_on(matrix, probes=2, steps=4, seed=seed, trace_tol=0.05)
        (value, error), n = found.trace, len(found.trace_samples)
        assert n <= trace_probes.PILOT or error > 0.6 * 0.05 * abs(value)
        numbers.append(n)
    assert len(set(numbers)) > 5


def test_probes_of_the_trace_are_others_than_those_of_the_runs_and_follow_seed_and_distribution():
    matrix = MATRICES["no outliers"]
    found = {}
    for seed, distribution in ((0, "rademacher"), (1, "rademacher"), (0, "gaussian")):
        runs = runs_on(matrix, probes=2, steps=4, seed=seed, distribution=distribution, trace_tol=0.5)
        found[seed, distribution] = runs.trace_samples
        z = [probe(SIZE, seed=seed, number=k, distribution=distribution) for k in range(2)]
        assert runs.norm2 == pytest.approx([float(one.double().square().sum()) for one in z])
        assert len(set(np.round(runs.trace_samples, 9))) == len(runs.trace_samples)
    samples = list(found.values())
    assert all(not np.allclose(a[:6], b[:6]) for i, a in enumerate(samples) for b in samples[:i])


def test_a_deflated_sample_of_many_parameters_keeps_the_digits_of_its_probe():
    """The probe is along the only Ritz vector: z'Hz = |z|^2, all of which the eigenvalue 1 stands for."""
    z = torch.randn(2**20, generator=torch.Generator().manual_seed(0))
    square = float(z.double() @ z.double())
    vector = (z.double() / square**0.5).float()
    found = probing.Deflation(
        vectors=vector[None], values=np.ones(1), remainder=np.zeros(1), next=torch.zeros_like(z), left=0.0
    )
    assert found.sample(z, square) == pytest.approx(1, abs=2e-5 * square)
