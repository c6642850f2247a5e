"""Wrong numbers that other tools are known to give, each as a case that our default path must get right.

The rules are written anew, as the sources of these tools state them. docs/mathematics.md shows what they give beside
the exact value and ours; each number there is compared with what is computed here.
"""

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from lanczos_runs import runs_on
from matplotlib.text import Text
from torch import nn
from torch.nn import functional as F
from torch.utils.data import Dataset

import landscape as ls
from landscape.analyses import directions
from landscape.errors import DataError
from landscape.networks import checkpoints, models
from landscape.objective.evaluator import Evaluator
from landscape.results import grid
from tests.exact import flat_function

PAGE = Path(__file__).resolve().parents[2] / "docs" / "mathematics.md"
SIZES = (32, 32, 32, 4)
"""Of the batches of 100 samples."""


@cache
def regression_of_the_fault(n_samples=100, n_classes=4, seed=0):
    """A network of 92 parameters, trained a little, and its samples: as large as in the reports of these faults."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(n_samples, 6, generator=generator, dtype=torch.float64)
    labels = torch.arange(n_samples) % n_classes
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(seed)
        model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, n_classes)).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    for _ in range(200):
        optimizer.zero_grad()
        F.cross_entropy(model(inputs), labels).backward()
        optimizer.step()
    return model, (inputs, labels)


def objective_of(**options):
    model, data = regression_of_the_fault()
    return ls.load_objective(model=model, dataset=data, device="cpu", dtype="float64", **options)


@cache
def hessian(*rows):
    """Exact: the dense Hessian of the mean loss of some samples, of all if none are named."""
    objective = objective_of()
    outputs, _, theta, labels = flat_function(objective, 0)
    rows = list(rows or range(len(labels)))
    return torch.func.hessian(lambda t: objective.loss(outputs(t)[rows], labels[rows]).mean())(theta).numpy()


def batch_means(sizes):
    """The Hessians of the mean loss of each batch."""
    ends = np.cumsum(sizes)
    return [hessian(*range(end - size, end)) for size, end in zip(sizes, ends, strict=True)]


def page(fault):
    """What the page says of a fault: what the rule gives, what is exact, what we give."""
    (row,) = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith(f"| {fault}")]
    return tuple(cell.strip() for cell in row.strip("|").split("|")[2:])


def test_a_short_last_batch_weighs_what_its_samples_weigh():
    """hessian-eigenthings and google/spectral-density average the means of batches."""
    theirs, v = np.mean(batch_means(SIZES), axis=0), np.ones(92)
    off = np.linalg.norm((theirs - hessian()) @ v) / np.linalg.norm(hessian() @ v)
    ours = ls.hessian(objective_of(batch_size=32)).matvec(torch.ones(1, 1, 92, dtype=torch.float64))[0, 0].numpy()
    assert np.linalg.norm(ours - hessian() @ v) / np.linalg.norm(hessian() @ v) < 1e-12
    assert page("mean of batch means") == (f"{100 * off:.0f} % off", "0", "0")


def test_eigenvalues_do_not_grow_with_the_number_of_batches():
    """tomgoldstein/loss-landscape sums the Hessians of batch means and never divides."""
    exact = np.linalg.eigvalsh(hessian())[-1]
    theirs = [np.linalg.eigvalsh(np.sum(batch_means([b] * (100 // b)), axis=0))[-1] for b in (100, 20, 10)]
    for b in (100, 20, 10):
        found = ls.spectrum(objective_of(batch_size=b), probes=1, steps=30, backend="reverse", sampling_errors=False)
        assert found.lambda_max[0] == pytest.approx(exact, rel=1e-9)
    assert page("sum of batch means") == (", ".join(f"{t:.3f}" for t in theirs), f"{exact:.3f}", f"{exact:.3f}")


def test_the_trace_of_thirty_seeds_is_as_good_as_it_says():
    """PyHessian's trace stops by chance, and gives no error."""
    exact, stopped, taken, ours = hessian().trace(), [], [], []
    for seed in range(30):
        rng, samples, before = np.random.default_rng(seed), [], 0.0
        while len(samples) < 100:
            z = rng.choice([-1.0, 1.0], 92)
            samples.append(z @ hessian() @ z)
            if abs(np.mean(samples) - before) < 1e-3 * (abs(before) + 1e-6):
                break
            before = np.mean(samples)
        stopped.append(np.mean(samples))
        taken.append(len(samples))
        found = runs_on(hessian(), probes=4, steps=20, seed=seed, trace_tol=0.02).trace_samples
        ours.append((found.mean(), found.std(ddof=1) / np.sqrt(len(found)), len(found)))
    means, errors, probes = np.array(ours).T
    # Student's t with 32 degrees of freedom exceeds 2.74 in 1 % of runs; 5 of 30 such happen once in 10^5.
    assert np.sum(np.abs(means - exact) > 2.74 * errors) < 5
    assert page("a trace that stops") == (
        f"{min(stopped):.2f} to {max(stopped):.2f}, after {min(taken)} to {max(taken)} probes, without an error",
        f"{exact:.2f}",
        f"{means.min():.2f} to {means.max():.2f}, standard errors {errors.min():.2f} to {errors.max():.2f} "
        f"({probes.min():.0f} to {probes.max():.0f} probes)",
    )


def test_quadrature_weights_are_real_and_one_per_node():
    """Landscaper counts all Ritz values alike; PyHessian returns complex64 weights."""
    found = ls.spectrum(objective_of(), steps=30, probes=4)
    nodes, weights = ls.nodes_and_weights(found.alpha[0], found.beta[0], found.steps[0])
    assert weights.dtype == np.float64
    assert weights.shape == nodes.shape == (4, 30)
    assert np.allclose(weights.sum(axis=1), 1)
    assert (weights >= 0).all()
    exact = np.linalg.eigvalsh(hessian())
    theirs, truth = (100 * (values > exact[-1] / 10).mean() for values in (nodes, exact))
    shares = 100 * (weights * (nodes > exact[-1] / 10)).sum(axis=1)
    ours = f"{shares.mean():.0f} ± {shares.std(ddof=1) / 2:.0f} %"
    assert abs(shares.mean() - truth) < 5.84 * shares.std(ddof=1) / 2  # Student's t with 3 degrees of freedom, 1 %
    assert page("nodes without weights") == (f"{theirs:.0f} %", f"{truth:.0f} %", ours)


@cache
def plane(nx, ny):
    """The loss of 100 samples on a plane of random directions, point by point, (ny, nx), and the surface of it."""
    objective = objective_of()
    along = directions.random(objective, 2)
    _, loss, _, _ = flat_function(objective, 0)
    x, y = np.linspace(-1, 1, nx), np.linspace(-1, 1, ny)
    exact = np.array([[loss(along.at(u, v).theta).item() for u in x] for v in y])
    found = ls.surface(objective, along, x, y)
    np.testing.assert_allclose(found.loss[0], exact, rtol=1e-12)
    return exact, found


def test_a_plane_that_is_not_square_has_its_values_in_their_cells():
    """tomgoldstein/loss-landscape declares (nx, ny), and fills it in the order of (ny, nx)."""
    exact, found = plane(9, 5)
    theirs = np.empty((9, 5))
    theirs.ravel()[:] = exact.ravel()
    wrong = [(values != exact).sum() for values in (theirs.T, found.loss[0].round(12))]
    assert page("a plane that is not square") == (f"{wrong[0]} of 45 values", "0", "0")


def test_rows_of_a_plane_are_not_shifted():
    """loss-landscapes walks there and back, and steps before it evaluates."""
    exact, _ = plane(6, 5)  # the walk reaches a sixth column
    theirs = np.stack([row[1:] if i % 2 == 0 else row[:-1] for i, row in enumerate(exact)])
    wrong = (theirs != exact[:, :-1]).sum()
    assert page("a plane that is walked there and back") == (f"{wrong} of 25 values", "0", "0")


def over_three(logits, labels):
    """A loss that is exactly 0 where the cross-entropy is below 3."""
    return (F.cross_entropy(logits, labels, reduction="none") - 3).clamp(min=0)


def test_a_loss_of_zero_is_finished(tmp_path, monkeypatch):
    """tomgoldstein/loss-landscape takes what is not above 0 as not yet computed."""
    objective = objective_of(loss=over_three)
    line = directions.random(objective, 1)
    x = np.linspace(-0.5, 0.5, 17)
    reference = ls.surface(objective, line, x)
    theirs = (reference.loss <= 0).sum()
    real, calls = Evaluator.measure, []

    def counted(self, *args, **options):
        calls.append(1)
        return real(self, *args, **options)

    def interrupted(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(Evaluator, "measure", counted)
    with monkeypatch.context() as patch:
        patch.setattr(grid, "summary", interrupted)  # all points are computed
        with pytest.raises(KeyboardInterrupt):
            ls.surface(objective, line, x, out=tmp_path / "s.h5")
    calls.clear()
    found = ls.surface(objective, line, x, out=tmp_path / "s.h5")
    np.testing.assert_array_equal(found.loss, reference.loss)
    assert page("a loss of zero") == (f"{theirs} of 17 points", "0", f"{len(calls)}")


def bounded(logits, labels):
    """A loss that is infinite where logits are long."""
    return (150 - logits.square().sum(dim=1)).clamp(min=0).reciprocal()


def test_a_loss_that_is_not_finite_stays_so_and_is_counted(tmp_path):
    """Landscaper puts the largest finite value in its place, and adds noise to that."""
    objective, x = objective_of(loss=bounded), np.linspace(-1, 1, 5)
    ls.surface(objective, directions.random(objective, 2), x, x, out=tmp_path / "s.h5")
    found = ls.load(tmp_path / "s.h5")
    _, loss, _, _ = flat_function(objective, 0)
    exact = np.array([[loss(directions.random(objective, 2).at(u, v).theta).item() for u in x] for v in x])
    np.testing.assert_allclose(found.loss[0], exact, rtol=1e-9)
    infinite = np.isinf(exact)
    assert 0 < infinite.sum() < 25
    said = f"{100 * infinite.mean():.3g} % of the computed losses are not finite"
    assert said in found.verdict
    texts = [text.get_text() for text in ls.plots.surface(found).findobj(Text)]
    assert any("hatched: not finite" in text for text in texts)
    theirs = f"{infinite.sum()} of 25 points at {exact[~infinite].max():.3f}"
    assert page("infinity becomes the maximum") == (theirs, "infinite", f'infinite, "{said}"')


class Flipped(Dataset):
    """Samples whose inputs are turned round at random whenever they are read."""

    def __init__(self):
        self.inputs, self.labels = regression_of_the_fault()[1]
        self.generator = torch.Generator().manual_seed(0)

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, i):
        flip = torch.rand((), generator=self.generator) < 0.5
        return self.inputs[i].flip(0) if flip else self.inputs[i], int(self.labels[i])


def test_augmentation_is_refused():
    """Saddle-LongTail augments inside every product, so that Lanczos sees a matrix that changes."""
    model, _ = regression_of_the_fault()
    products = []
    for _ in range(2):
        samples = Flipped()
        samples.generator.manual_seed(len(products))
        data = tuple(torch.stack(column) for column in zip(*((x, torch.tensor(y)) for x, y in samples), strict=True))
        objective = ls.load_objective(model=model, dataset=data, device="cpu", dtype="float64")
        operator = ls.hessian(objective)
        v = torch.ones(1, 1, 92, dtype=torch.float64)
        products.append(operator.matvec(v))
        assert torch.equal(operator.matvec(v), products[-1])
    apart = (products[1] - products[0]).norm() / products[0].norm()
    with pytest.raises(DataError) as refused:
        ls.load_objective(model=model, dataset=Flipped(), device="cpu", dtype="float64")
    theirs = f"two products {100 * apart:.0f} % apart"
    assert page("augmentation in every product") == (theirs, "0", f'"{refused.value}"')


def test_any_number_of_classes():
    """Saddle-LongTail's class Hessians know ten classes."""
    model, data = regression_of_the_fault(n_samples=39, n_classes=13)
    found = ls.spectrum(
        ls.load_objective(model=model, dataset=data, partition="class", device="cpu"), steps=3, probes=2
    )
    assert len(found.parts) == 13
    assert found.n_samples.tolist() == [3] * 13


def test_a_numpy_scalar_beside_the_weights_is_read(tmp_path):
    """gkp-gsa's own checkpoints fail torch.load since 2.6: best_acc1 is a numpy float."""
    model = models.build("small-resnet", 10, in_channels=1)
    torch.save({"epoch": 3, "state_dict": model.state_dict(), "best_acc1": np.float64(52.6)}, tmp_path / "ckpt.pth.tar")
    found = checkpoints.read(tmp_path / "ckpt.pth.tar")
    assert found.state.keys() == model.state_dict().keys()
