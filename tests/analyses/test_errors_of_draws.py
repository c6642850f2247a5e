"""Errors of draws from a known part: as large as the numbers of many draws scatter."""

import copy

import numpy as np
import pytest
import torch
from fitted import network
from scipy.special import stdtrit

import landscape as ls
from landscape.data import datasets
from landscape.objective import draws, points
from landscape.objective.evaluator import Evaluator
from landscape.objective.objective import Objective
from landscape.results import inference

SIZES = (240, 160)


def population(wrong=0.1, **options):
    """Two classes that a network has fitted but for a fraction of wrong labels."""
    model = network(scale=3.0).model
    random = torch.Generator().manual_seed(4)
    inputs = torch.randn(3000, 4, generator=random, dtype=torch.float64)
    with torch.no_grad():
        labels = model(inputs).argmax(1)
    labels = torch.where(torch.rand(len(labels), generator=random) < wrong, 1 - labels, labels)
    chosen = torch.cat([(labels == c).nonzero().flatten()[:n] for c, n in enumerate(SIZES)])
    samples = datasets.from_dataset((inputs[chosen], labels[chosen]), name="case")
    return Objective.build(
        copy.deepcopy(model).requires_grad_(), samples, partition="class", dtype=torch.float64, device="cpu",
        batch_size=512, **options,
    )  # fmt: skip


@pytest.fixture(scope="module")
def whole():
    return population()


def away(objective, size):
    origin = points.origin(objective)
    step = torch.randn(len(origin.theta), generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    return points.Point(origin.theta + size * step, origin.buffers)


def of_draws(objective, point, n, repetitions):
    """Loss, accuracy and their errors of many draws, (4, repetitions, P)."""
    drawn = (ls.draw_samples(objective, n, seed=seed) for seed in range(repetitions))
    return np.array([Evaluator(one, plain=True).measure(point) for one in drawn]).swapaxes(0, 1)


def held(found, errors):
    """Stated errors over the scatter of the numbers of many draws: the root of the mean of squares, to 7 % of 100."""
    return np.sqrt(np.square(errors).mean(axis=0)) / found.std(axis=0)


@pytest.mark.parametrize("size", [0.0, 0.5])
def test_losses_and_accuracies_scatter_as_stated(whole, size):
    """120 of 240 and of 160 samples: errors of independent draws are 1.3 to 2 times as large."""
    point = away(whole, size)
    loss, accuracy, loss_error, accuracy_error = of_draws(whole, point, 120, 100)
    truth = Evaluator(whole, plain=True).measure(point)
    for found, errors, true in ((loss, loss_error, truth[0]), (accuracy, accuracy_error, truth[1])):
        assert (abs(found.mean(axis=0) - true) < 4 * found.std(axis=0) / np.sqrt(len(found))).all()
        ratio = held(found, errors)
        assert ((ratio > 0.8) & (ratio < 1.25)).all()


@pytest.mark.parametrize(("wrong", "n"), [(0.0, 30), (0.02, 30), (0.02, 100)])
def test_intervals_of_accuracies_of_fitted_classes_are_not_absurd(wrong, n):
    """Where nearly all are right, no draw states the error 0, and none much more than that of a single wrong sample."""
    objective = population(wrong)
    _, accuracy, _, errors = of_draws(objective, points.origin(objective), n, 100)
    truth = Evaluator(objective, plain=True)(points.origin(objective))[1]
    off = stdtrit(n - 1, 0.95) * errors
    assert (abs(accuracy - truth) <= off).mean() > 0.8
    assert (errors > 0).all()
    assert errors[accuracy == 1].max() < 2 / n


def test_an_accuracy_of_all_samples_stands_for_others_of_their_kind(whole):
    drawn = ls.draw_samples(whole, 200)
    assert drawn.draws.whole.tolist() == [False, True]
    found = Evaluator(drawn, plain=True).measure(points.origin(whole))
    assert found[3][1] == pytest.approx(inference.share_stderr(found[1][1], 160), rel=1e-12)


def test_features_scatter_as_stated(whole):
    """As above; what jumps from one group to the next has a jackknife that is too large."""
    found = [ls.features(ls.draw_samples(whole, 120, seed=seed)) for seed in range(40)]
    for name in ("loss", "accuracy", "distance", "variance", "quality", "mean_norm", "alignment", "within_between"):
        values, errors = (np.array([getattr(one, of)[0] for one in found]) for of in (name, f"{name}_stderr"))
        ratio = held(values, errors)
        assert np.all((ratio > 0.75) & (ratio < 1.3)), (name, ratio)


def test_features_of_draws_that_are_all_right_state_an_error(whole):
    objective = population(0.0)
    for one in (objective, ls.draw_samples(objective, 60)):
        found = ls.features(one)
        assert (found.accuracy == 1).all()
        expected = Evaluator(one, plain=True).measure(points.origin(one))[3]
        np.testing.assert_allclose(found.accuracy_stderr[0], expected, rtol=1e-12)
        assert (expected > 0).all()


def test_measures_of_tokens_scatter_as_stated():
    """The tokens of a sample are alike, so that an error over tokens would be too small by a fifth."""
    random = torch.Generator().manual_seed(0)
    inputs = torch.randn(200, 1, 3, generator=random) + 0.3 * torch.randn(200, 8, 3, generator=random)
    model = torch.nn.Linear(3, 4)
    torch.nn.init.normal_(model.weight, std=12.0, generator=random)
    targets = (model(inputs) + 6 * torch.randn(200, 8, 4, generator=random)).argmax(-1)
    targets[torch.rand(200, 8, generator=random) < 0.4] = -100
    objective = ls.make_objective(model, (inputs, targets), task="tokens", dtype="float64")
    amount = draws.uncertainty(objective, 0)
    assert draws.varies(amount)
    found = []
    for seed in range(100):
        picked = draws.pick(objective, 0, 80, seed=seed, amount=amount, even=draws.AWAY)
        found.append(draws.gathered(objective, [picked], {}).evaluation.predicted())
    truth = objective.evaluation.predicted()
    for name in ("perplexity", "token_accuracy"):
        values, errors = (np.array([one[of] for one in found]) for of in (name, f"{name}_stderr"))
        assert abs(values.mean() - truth[name][0]) < 6 * values.std() / np.sqrt(len(values))  # a ratio has some bias
        assert 0.8 < held(values, errors)[0] < 1.25
