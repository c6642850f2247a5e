"""Change along eigenvectors: a squared loss of a linear model has it in closed form, sample by sample."""

import numpy as np
import pytest
import torch
from torch import nn

import landscape as ls
from landscape.analyses.eigenvectors import eigenpairs
from landscape.errors import InputError

SIZES = (9, 5, 1)
SCALE = np.array([1.0, 2.0, 3.3])  # of the outputs, so that no eigenvalue has several vectors


@pytest.fixture(scope="module")
def quadratic():
    """Inputs, labels, and an objective whose loss is half the squared error of W x, scaled, against one-hot labels."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.cat([torch.full((n,), c) for c, n in enumerate(SIZES)])
    inputs = torch.randn(15, 4, generator=generator, dtype=torch.float64) * torch.tensor([3.0, 2.0, 1.0, 0.5])
    model = nn.Linear(4, 3, bias=False).double()
    model.weight.data = torch.randn(3, 4, generator=generator, dtype=torch.float64)

    def squared(z, y):
        return 0.5 * (torch.from_numpy(SCALE) * (z - nn.functional.one_hot(y, 3).to(z)).square()).sum(1)

    # A batch that is no divisor of any part, so that parts and batches cross.
    objective = ls.make_objective(
        model, (inputs, labels), loss=squared, parts="class", dtype="float64", batch_size=4, device="cpu"
    )
    return inputs.numpy(), labels.numpy(), objective


def by_hand(quadratic, theta):
    """Loss of each sample and whether it is right, at weights written as a vector."""
    inputs, labels, _ = quadratic
    z = inputs @ theta.reshape(3, 4).T
    return 0.5 * (SCALE * (z - np.eye(3)[labels]) ** 2).sum(1), (z.argmax(1) == labels).astype(float)


def test_changes_and_their_paired_errors_are_those_of_the_samples(quadratic):
    inputs, labels, objective = quadratic
    found = ls.sensitivity(objective, n=2, rho=0.7, draws=3, seed=4)
    vectors, values, _ = eigenpairs(objective, "all", 2, seed=4)
    H = np.kron(np.diag(SCALE), inputs.T @ inputs / 15)
    for v, value in zip(vectors.double().numpy(), values, strict=True):
        np.testing.assert_allclose(H @ v, value * v, atol=1e-6 * values[0])
    np.testing.assert_allclose(values, np.linalg.eigvalsh(H)[:-3:-1], rtol=1e-9)
    np.testing.assert_array_equal(found.eigenvalue[:2], values)
    theta = objective.model.weight.detach().numpy().ravel()
    start, right = by_hand(quadratic, theta)
    for k, v in enumerate(vectors.double().numpy()):
        ends = [by_hand(quadratic, theta + s * 0.7 * v) for s in (1, -1)]
        for p in range(3):
            own = labels == p
            of_loss = [(loss - start)[own] for loss, _ in ends]
            hits = [(hit - right)[own] for _, hit in ends]
            for i in range(2):
                assert found.loss_change[k, i, p] == pytest.approx(of_loss[i].mean(), rel=1e-10, abs=1e-13)
                assert found.accuracy_change[k, i, p] == pytest.approx(hits[i].mean(), abs=1e-13)
            # The mean over both signs is what curvature makes of the step: half its square times v H_p v.
            X = inputs[own]
            curvature = np.einsum("i,ij,j", v, np.kron(np.diag(SCALE), X.T @ X / own.sum()), v)
            assert found.mean_loss_change[k, p] == pytest.approx(0.5 * 0.7**2 * curvature, rel=1e-9)
            if own.sum() > 1:
                for i in range(2):
                    paired = of_loss[i].std(ddof=1) / np.sqrt(own.sum())
                    assert found.loss_change_stderr[k, i, p] == pytest.approx(paired, rel=1e-9)
                both = (of_loss[0] + of_loss[1]) / 2
                expected = both.std(ddof=1) / np.sqrt(own.sum())
                assert found.mean_loss_change_stderr[k, p] == pytest.approx(expected, rel=1e-9)
                expected = np.mean(hits, axis=0).std(ddof=1) / np.sqrt(own.sum())
                assert found.mean_accuracy_change_stderr[k, p] == pytest.approx(expected, abs=1e-13)
    assert np.isnan(found.mean_loss_change_stderr[:, 2]).all()  # of one sample


def test_random_directions_have_the_same_length_and_change_by_the_mean_curvature(quadratic):
    inputs, _, objective = quadratic
    found = ls.sensitivity(objective, n=1, rho=0.5, draws=64)
    assert found.control.tolist() == [False] + [True] * 64
    mean, spread = found.of_control(found.mean_loss_change)
    expected = 0.5 * 0.5**2 * SCALE.sum() * np.square(inputs[:9]).sum() / 9 / 12  # rho^2 / 2 times trace / dimension
    assert abs(mean[0] - expected) < 4 * spread[0] / 8  # four standard errors of 64 directions
    assert found.mean_loss_change[0].max() > mean.max()
    assert found.strongest().tolist() == [0, 0, 0]


def test_a_repeated_call_takes_up_what_is_finished_and_files_hold_all(quadratic, tmp_path):
    objective, out = quadratic[2], tmp_path / "a.h5"

    def stop(done, total, text):
        if done > 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ls.sensitivity(objective, n=2, draws=2, out=out, progress=stop)
    seen = []
    found = ls.sensitivity(objective, n=2, draws=2, out=out, progress=lambda done, total, text: seen.append(done))
    assert min(seen) == 2
    loaded = ls.load(out, ls.Sensitivity)
    whole = ls.sensitivity(objective, n=2, draws=2)
    for name in ("loss_change", "mean_accuracy_change_stderr", "eigenvalue"):
        np.testing.assert_array_equal(getattr(loaded, name), getattr(whole, name))
        np.testing.assert_array_equal(getattr(found, name), getattr(whole, name))


def test_eigenvectors_of_a_part_are_taken_and_wrong_options_refused(quadratic):
    objective = quadratic[2]
    found = ls.sensitivity(objective, of="1", n=1, draws=1)
    X = quadratic[0][9:14]
    assert found.eigenvalue[0] == pytest.approx(3.3 * np.linalg.eigvalsh(X.T @ X / 5)[-1], rel=1e-9)
    for options, message in (
        ({"n": 0}, "at least 1"),
        ({"rho": 0.0}, "above 0"),
        ({"of": "truck"}, "no part 'truck'"),
        ({"n": 13}, "fewer than 13 distinct eigenvalues"),
    ):
        with pytest.raises(InputError, match=message):
            ls.sensitivity(objective, **options)
