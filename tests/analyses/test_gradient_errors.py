"""Errors over samples of the numbers of gradients, against changed weights of samples and repeated draws."""

import dataclasses

import gradient_numbers
import numpy as np
import pytest
import torch
from cases import CASES
from fitted import network
from torch.nn import functional as F

import landscape as ls
from landscape.analyses import gradient_errors, gradient_rounding
from landscape.data import datasets
from landscape.errors import InputError
from landscape.objective import draws
from landscape.objective.draws import Picked, gathered
from landscape.objective.objective import Objective

OF_PARTS = (
    "loss", "norm", "cosine", "projected", "specific", "radius", "contribution", "between", "whole_norm",
)  # fmt: skip
NAMES = (*OF_PARTS, *gradient_numbers.LAYERS)


def of_each(objective):
    """Losses and gradients of single samples, part by part, in the plainest way; of draws with their factors."""
    found = []
    for members in objective.members:
        theta = [t.detach().clone().requires_grad_() for t in objective.theta]
        losses = objective.losses(theta, *objective.samples.batch(members, objective.device, objective.dtype))
        rows = [torch.autograd.grad(loss, theta, retain_graph=True, materialize_grads=True) for loss in losses]
        found.append((losses.detach().numpy(), np.array([objective.layout.flat(row).numpy() for row in rows])))
    return found


def numbers(objective, means, theta_norm):
    """All numbers, one after the other, from each part's mean loss and gradient."""
    rows, layers = np.array([row for _, row in means]), gradient_numbers.layers_of(objective)
    one = gradient_numbers.numbers(rows, objective.shares, objective.population, theta_norm, layers)
    one["loss"] = [loss for loss, _ in means]
    return np.concatenate([np.ravel(one[name]) for name in NAMES])


def stated(found):
    """The same of a result, and their errors over samples."""
    return [
        np.concatenate([np.ravel(getattr(found, name + end)) for name in NAMES]) for end in ("", "_sampling_stderr")
    ]


def variance_of_mean(objective, part, x):
    """Of values of a part's samples in columns: of independent samples, or of a draw by Hajek's formula."""
    n, chances = len(x), None if objective.draws is None else objective.draws.chances[objective.members[part]]
    if chances is None or np.isnan(chances).all():
        return x.var(axis=0, ddof=1) / n
    left = 1 - chances
    m, roots = np.count_nonzero(left), np.sqrt(left)
    return m / (m - 1) / n**2 * (left @ (x - roots @ x / roots.sum()) ** 2)


def uneven(scale=1.0, sizes=(24, 12, 7), **options):
    """A small network that is not fitted; parts of different size."""
    random = torch.Generator().manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Tanh(), torch.nn.Linear(3, len(sizes))).double()
    for p in model.parameters():
        p.data = torch.randn(p.shape, generator=random, dtype=p.dtype)
    model[2].weight.data *= scale
    return around(model, sizes=sizes, random=random, **options)


def around(model, sizes, random=None, **options):
    """The objective of a model of four inputs; parts of different size."""
    random = torch.Generator().manual_seed(0) if random is None else random
    labels = torch.cat([torch.full((n,), c) for c, n in enumerate(sizes)])
    inputs = torch.randn(len(labels), 4, generator=random, dtype=torch.float64) + F.one_hot(labels, 4)
    samples = datasets.from_dataset((inputs, labels), name="case")
    return Objective.build(
        model, samples, partition="class", dtype=torch.float64, device="cpu", **{"batch_size": 16} | options
    )


OBJECTIVES = {
    "parts": uneven,
    "layers": lambda: CASES["residual-relu"].objective(classes="0,1"),
    "weighted": lambda: draws.draw_samples(network(scale=4.0), 12, seed=1),
    "drawn alike": lambda: draws.draw_samples(uneven(scale=0.1), 9, seed=1),
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_errors_are_those_of_changing_the_weight_of_each_sample(name):
    """The infinitesimal jackknife: all numbers are computed anew with a little more, or less, of one sample."""
    objective = OBJECTIVES[name]()
    found = ls.gradients(objective, sampling_errors=True)
    each, theta_norm, step = of_each(objective), float(found.theta_norm[0]), 1e-4
    if objective.draws is not None:
        assert (np.ptp(objective.draws.factors) > 0.5) == (name == "weighted")
        assert not objective.draws.whole.all()
    means = [(losses.mean(), rows.mean(axis=0)) for losses, rows in each]
    values, errors = stated(found)
    np.testing.assert_allclose(values, numbers(objective, means, theta_norm), rtol=1e-7)
    variance = 0.0
    for q, own in enumerate(each):
        moves = []
        for i in range(len(own[0])):
            sides = [[m + s * step * (x[i] - m) for x, m in zip(own, means[q], strict=True)] for s in (1, -1)]
            changed = [numbers(objective, [*means[:q], side, *means[q + 1 :]], theta_norm) for side in sides]
            moves.append((changed[0] - changed[1]) / (2 * step))
        variance = variance + variance_of_mean(objective, q, np.array(moves))
    np.testing.assert_allclose(errors, np.sqrt(variance), rtol=1e-6, atol=1e-10)


@pytest.mark.parametrize("weighted", [False, True])
def test_repeated_draws_scatter_as_one_of_them_says(weighted, monkeypatch):
    """400 draws without replacement know a standard deviation to 4 %, the stated errors of 25 to at most 9 %."""
    n = 60
    whole = network(scale=3.0, sizes=(300, 150)) if weighted else uneven(sizes=(300, 150, 100))
    whole = dataclasses.replace(whole, batch_size=64)  # a draw is one batch
    each, theta_norm = of_each(whole), float(ls.gradients(whole).theta_norm[0])
    amounts = [draws.uncertainty(whole, p) for p in range(len(each))]
    rounding = gradient_rounding.measured(whole)  # once: that of each draw is about the same, and no matter here
    monkeypatch.setattr(gradient_rounding, "measured", lambda objective: rounding)

    def drawn(seed):
        random = np.random.default_rng([7, seed])
        if weighted:
            return [draws.pick(whole, p, n, seed=seed, amount=a, even=draws.AWAY) for p, a in enumerate(amounts)]
        return [Picked(random.choice(own, n, replace=False), np.ones(n)) for own in whole.members]

    scattered = []
    for seed in range(400):
        means = []
        for own, (losses, rows), picked in zip(whole.members, each, drawn(seed), strict=True):
            at = np.searchsorted(own, picked.index)
            means.append((picked.factors @ losses[at] / n, picked.factors @ rows[at] / n))
        scattered.append(numbers(whole, means, theta_norm))
    squares = []
    for seed in range(25):
        values, errors = stated(ls.gradients(gathered(whole, drawn(seed), {}), sampling_errors=True))
        np.testing.assert_allclose(values, scattered[seed], rtol=1e-7)
        squares.append(errors**2)
    ratio = np.sqrt(np.mean(squares, axis=0)[errors > 0] / np.var(scattered, axis=0)[errors > 0])
    assert (np.abs(ratio - 1) < 0.25).all(), ratio


@pytest.mark.parametrize("vectors", [0, 3])
@pytest.mark.parametrize("make", ["parts", "weighted"])
def test_gradients_that_do_not_fit_together_have_the_same_errors(vectors, make, monkeypatch):
    of_five = [0] * 4 + [1] * 3 + [2] * 2 + [3] * 3 + [4] * 3
    objective = OBJECTIVES[make]() if make == "weighted" else CASES["mlp-tanh"].objective(partition=of_five)
    whole = ls.gradients(objective, sampling_errors=True)
    most, real = [], gradient_errors.of_samples
    monkeypatch.setattr(gradient_errors, "of_samples", lambda o, p, v, n: most.append(len(v)) or real(o, p, v, n))
    slopes = (1 + len(objective.layout.layers)) * max(map(len, objective.members))
    found = ls.gradients(objective, sampling_errors=True, cache_bytes=8 * vectors * (objective.layout.size + slopes))
    assert max(most) == max(2, vectors)  # one of them the whole gradient
    np.testing.assert_allclose(stated(found)[1], stated(whole)[1], rtol=1e-9, atol=1e-12)


def test_they_are_of_exact_gradients_only_and_on_request():
    objective = uneven()
    plain = ls.gradients(objective)
    assert [getattr(plain, f"{name}_sampling_stderr") for name in NAMES] == [None] * len(NAMES)
    with pytest.raises(InputError, match="exact gradients"):
        ls.gradients(objective, sampling_errors=True, batches=2)


def test_a_part_of_one_sample_leaves_unknown_what_contains_it():
    found = ls.gradients(CASES["mlp-tanh"].objective(), sampling_errors=True)
    for name in ("layer_cosine", "layer_contribution", "layer_whole_norm"):
        assert np.isnan(getattr(found, f"{name}_sampling_stderr")).all()
    assert np.isnan(found.layer_norm_sampling_stderr[0]).tolist() == [[False, False, True]] * len(found.layers)
    for name in ("loss", "norm"):
        assert np.isnan(getattr(found, f"{name}_sampling_stderr")[0]).tolist() == [False, False, True]
    for name in ("cosine", "projected", "specific", "radius", "contribution", "whole_norm"):
        assert np.isnan(getattr(found, f"{name}_sampling_stderr")).all()
    unknown = np.isnan(found.between_sampling_stderr[0])
    assert unknown.tolist() == [[False, False, True], [False, False, True], [True, True, True]]
    assert found.between_sampling_stderr[0].diagonal()[:2].tolist() == [0, 0]


def test_the_only_part_is_the_whole():
    found = ls.gradients(CASES["mlp-tanh"].objective(partition="all"), sampling_errors=True)
    of_norm = found.norm_sampling_stderr[0]
    assert of_norm > 0
    assert [*found.whole_norm_sampling_stderr, *found.projected_sampling_stderr[0]] == pytest.approx([*of_norm] * 2)
    for name in ("cosine", "contribution", "between"):
        assert getattr(found, f"{name}_sampling_stderr").item() == pytest.approx(0, abs=1e-12)
    assert np.isnan([found.specific_sampling_stderr, found.radius_sampling_stderr]).all()


@pytest.mark.parametrize("without", [1, None])
def test_what_is_not_defined_has_no_error(without):
    """A part whose loss is constant has no gradient; if all are, there is no gradient of the whole."""

    def loss(logits, labels):
        own = F.cross_entropy(logits, labels, reduction="none")
        return own * (labels != without) if without is not None else 0 * own

    found = ls.gradients(uneven(loss=loss), sampling_errors=True)
    for name in NAMES:
        value, error = getattr(found, name), getattr(found, f"{name}_sampling_stderr")
        known = np.isfinite(value) & (value != 0 if "norm" in name or name == "specific" else True)
        np.testing.assert_array_equal(np.isfinite(error), known, err_msg=name)
    assert np.isfinite(found.projected_sampling_stderr[0]).all() == (without is not None)


@pytest.mark.parametrize("by", [1e-13, 1e-40])
def test_tiny_gradients_have_the_errors_of_large_ones(by):
    def loss(logits, labels):
        return by * F.cross_entropy(logits, labels, reduction="none")

    found, expected = (ls.gradients(uneven(**own), sampling_errors=True) for own in ({"loss": loss}, {}))
    scaled = {"loss", "norm", "whole_norm", "projected", "specific", "layer_norm", "layer_whole_norm"}
    for name in set(NAMES) - {"radius"}:  # which depends on the length of the gradient
        factor = by if name in scaled else 1
        field = f"{name}_sampling_stderr"
        np.testing.assert_allclose(getattr(found, field), factor * getattr(expected, field), rtol=1e-6, err_msg=name)


class Pooled(torch.nn.Module):
    """Sorts its batch and puts it back: nothing couples, but layers see the samples in another order."""

    def __init__(self):
        super().__init__()
        self.inner = torch.nn.Linear(4, 3)

    def forward(self, x):
        order = x[:, 0].argsort()
        return torch.tanh(self.inner(x[order]))[order.argsort()]


def test_where_layers_do_not_keep_the_order_of_samples_the_other_errors_stay(caplog):
    """Their slopes then come from forward tangents; numbers of layers have no errors, and the log says why."""
    torch.manual_seed(0)
    sorted_, plain = Pooled().double(), torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Tanh()).double()
    plain[0].load_state_dict(sorted_.inner.state_dict())
    found, expected = (
        ls.gradients(around(model, sizes=(24, 12, 7)), sampling_errors=True) for model in (sorted_, plain)
    )
    for name in OF_PARTS:
        field = f"{name}_sampling_stderr"
        np.testing.assert_allclose(getattr(found, field), getattr(expected, field), rtol=1e-9, err_msg=name)
    assert found.layer_norm_sampling_stderr is None
    assert expected.layer_norm_sampling_stderr is not None
    assert "numbers of layers have no errors" in caplog.text


class OutOfOrder(torch.nn.Module):
    """One layer sees the samples sorted, the next one as they came."""

    def __init__(self):
        super().__init__()
        self.first, self.last = torch.nn.Linear(4, 5), torch.nn.Linear(5, 3)

    def forward(self, x):
        order = x[:, 0].argsort()
        return self.last(torch.tanh(self.first(x[order]))[order.argsort()])


def test_why_layers_have_no_errors_is_said_once_for_all_checkpoints(tmp_path, caplog):
    model, files = OutOfOrder().double(), [tmp_path / f"{k}.pt" for k in range(3)]
    for file in files:
        torch.save({name: torch.randn_like(t) for name, t in model.state_dict().items()}, file)
    found = ls.gradients(around(model, sizes=(10, 8, 7)), checkpoints=files, sampling_errors=True)
    assert found.layer_norm_sampling_stderr is None
    assert caplog.text.count("numbers of layers have no errors") == 1


@pytest.mark.parametrize(
    ("sizes", "batch_size"), [((1, 14, 15), 2), ((2, 14, 14), 2), ((1, 14, 15), 16), ((12, 9, 9), 16)]
)
def test_a_wrong_order_is_noticed_whatever_the_first_part_and_the_batch_are(sizes, batch_size):
    """Rows too: the first part had to have three samples, and a batch had to hold as many."""
    torch.manual_seed(0)
    mixed, plain = (
        OutOfOrder().double(),
        torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.Tanh(), torch.nn.Linear(5, 3)).double(),
    )
    plain[0].load_state_dict(mixed.first.state_dict())
    plain[2].load_state_dict(mixed.last.state_dict())
    objectives = [around(model, sizes=sizes, batch_size=batch_size) for model in (mixed, plain)]
    found, expected = (ls.gradients(objective, sampling_errors=True) for objective in objectives)
    for name in OF_PARTS:
        field = f"{name}_sampling_stderr"
        np.testing.assert_allclose(getattr(found, field), getattr(expected, field), rtol=1e-9, err_msg=name)
    assert found.layer_norm_sampling_stderr is None
    spectra = [ls.spectrum(objective, operator="ggn") for objective in objectives]
    np.testing.assert_allclose(spectra[0].lambda_max, spectra[1].lambda_max, rtol=1e-4)


def test_layers_of_a_network_with_convolutions_and_batch_norm():
    """Against plain gradients of single samples; parameters of batch norm and shared layers are among them."""
    objective = CASES["residual-relu"].objective(classes="0,1")
    found = ls.gradients(objective, sampling_errors=True)
    rows = [row for _, row in of_each(objective)]
    for layer, at in enumerate(gradient_numbers.layers_of(objective).values()):
        for p, own in enumerate(rows):
            inside = own[:, at]
            mean = inside.mean(0)
            slopes = inside @ mean / np.linalg.norm(mean)
            expected = slopes.std(ddof=1) / np.sqrt(len(slopes))
            assert found.layer_norm_sampling_stderr[0, layer, p] == pytest.approx(expected, rel=1e-7)
