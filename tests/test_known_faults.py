"""Wrong numbers that other tools are known to give, each as a case that our default path must get right."""

import numpy as np
import pytest
import torch
from torch import nn

import landscape as ls
from landscape import checkpoints, models
from tests.exact import dense


def regression_of_the_fault(n_samples=100, n_classes=3, seed=0):
    """A network of 75 parameters and its samples, about as large as in the reports of these faults."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(n_samples, 5, generator=generator)
    labels = torch.arange(n_samples) % n_classes
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(seed)
        model = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, n_classes))
    return model, (inputs, labels)


def test_a_short_last_batch_weighs_what_its_samples_weigh():
    """hessian-eigenthings averages batch means: 100 samples in batches of 32 are 48 % off."""
    model, data = regression_of_the_fault()
    objective = ls.load_objective(model=model, dataset=data, batch_size=32, device="cpu")
    exact = torch.linalg.eigvalsh(dense(objective, 0)).numpy()
    found = ls.spectrum(objective)
    assert found.lambda_max[0] == pytest.approx(exact[-1], rel=1e-4)
    assert abs(found.trace[0] - exact.sum()) < 6 * found.trace_stderr[0] + 1e-4


def test_eigenvalues_do_not_grow_with_the_number_of_batches():
    """tomgoldstein/loss-landscape sums the Hessians of batch means and never divides."""
    model, data = regression_of_the_fault()
    found = [
        ls.spectrum(ls.load_objective(model=model, dataset=data, batch_size=b, device="cpu"), probes=1, steps=20)
        for b in (100, 10, 1)
    ]
    tops = [spectrum.lambda_max[0] for spectrum in found]
    assert np.allclose(tops, tops[0], rtol=1e-5)


def test_the_trace_of_thirty_seeds_is_as_good_as_it_says():
    """PyHessian's trace stops by chance: 30 seeds gave 14.7 to 20.8 for 19.06 and no error."""
    model, data = regression_of_the_fault()
    objective = ls.load_objective(model=model, dataset=data, device="cpu")
    exact = dense(objective, 0).trace().item()
    off = []
    for seed in range(30):
        found = ls.spectrum(objective, steps=20, probes=4, seed=seed)
        off.append(abs(found.trace[0] - exact) / found.trace_stderr[0])
    # Student's t with 3 degrees of freedom exceeds 5.84 in 1 % of runs; 5 of 30 such happen once in 10^5.
    assert np.sum(np.array(off) > 5.84) < 5


def test_quadrature_weights_are_real_and_one_per_node():
    """PyHessian returns complex64 weights, Landscaper the whole squared eigenvector matrix."""
    model, data = regression_of_the_fault()
    found = ls.spectrum(ls.load_objective(model=model, dataset=data, device="cpu"), steps=30, probes=2)
    nodes, weights = ls.nodes_and_weights(found.alpha[0], found.beta[0], found.steps[0])
    assert weights.dtype == np.float64
    assert weights.shape == nodes.shape == (2, 30)
    assert np.allclose(weights.sum(axis=1), 1)
    assert (weights >= 0).all()


def test_any_number_of_classes():
    """Saddle-LongTail's class Hessians know ten classes."""
    model, data = regression_of_the_fault(n_samples=39, n_classes=13)
    found = ls.spectrum(
        ls.load_objective(model=model, dataset=data, partition="class", device="cpu"), steps=3, probes=2
    )
    assert len(found.parts) == 13
    assert found.n_samples.tolist() == [3] * 13


def test_the_operator_is_the_same_at_every_step():
    """Saddle-LongTail augments inside every product, so that Lanczos sees a matrix that changes."""
    model, data = regression_of_the_fault()
    operator = ls.hessian(ls.load_objective(model=model, dataset=data, device="cpu"))
    v = torch.ones(1, 1, operator.size)
    assert torch.equal(operator.matvec(v), operator.matvec(v))


def test_a_numpy_scalar_beside_the_weights_is_read(tmp_path):
    """gkp-gsa's own checkpoints fail torch.load since 2.6: best_acc1 is a numpy float."""
    model = models.build("small-resnet", 10, in_channels=1)
    torch.save({"epoch": 3, "state_dict": model.state_dict(), "best_acc1": np.float64(52.6)}, tmp_path / "ckpt.pth.tar")
    found = checkpoints.read(tmp_path / "ckpt.pth.tar")
    assert found.state.keys() == model.state_dict().keys()
