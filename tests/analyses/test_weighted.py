"""Weighted draws in every analysis that sums over samples: what enters a sum is the sample's value times its factor."""

import dataclasses

import numpy as np
import pytest
import torch
from fitted import network
from matplotlib.collections import PolyCollection
from refusals import refused

import landscape as ls
from landscape import plots
from landscape.analyses.between import Run
from landscape.errors import InputError
from landscape.objective import draws, points
from landscape.results import inference

SEEDS = 300


def moved(objective, size=0.3):
    """A point away from the network's own weights."""
    origin = points.origin(objective)
    random = torch.Generator().manual_seed(3)
    step = torch.randn(len(origin.theta), generator=random, dtype=origin.theta.dtype)
    return points.Point(origin.theta + size * step, origin.buffers)


def of_each(objective, point):
    """Losses of all samples at a point, and which are right."""
    theta = objective.layout.tensors(point.theta)
    inputs, labels = objective.samples.batch(np.arange(len(objective.samples)), dtype=objective.dtype)
    with torch.no_grad():
        logits = objective.logits(theta, inputs)
        return objective.loss(logits, labels).numpy(), (logits.argmax(1) == labels).numpy()


def error_of_draw(drawn, part, x):
    """The standard error of the mean of a part's values, each times its factor, by Hajek's formula."""
    left, n = 1 - drawn.draws.chances[drawn.members[part]], len(x)
    if np.isnan(left).all():  # all samples of the part
        return x.std(ddof=1) / np.sqrt(n)
    centre = (np.sqrt(left) * x).sum() / np.sqrt(left).sum()
    m = np.count_nonzero(left)
    return np.sqrt(m / (m - 1) * (left * (x - centre) ** 2).sum()) / n


def line(objective):
    return ls.directions.towards(objective, [moved(objective)], ["moved"])


@pytest.fixture(scope="module")
def objective():
    return network()


@pytest.fixture(scope="module")
def drawn(objective):
    found = draws.draw_samples(objective, 12, seed=1)
    assert found.draws.factors.max() <= 1 / draws.AWAY
    assert np.ptp(found.draws.factors[:12]) > 0.5
    return found


def test_a_surface_weighs_each_draw_and_states_the_error(objective, drawn):
    found = ls.surface(drawn, line(drawn), [0.0, 1.0])
    index, factors = drawn.draws.index, drawn.draws.factors
    assert found.n_samples.tolist() == [60, 5]
    for k, point in enumerate((points.origin(objective), moved(objective))):
        loss, right = of_each(objective, point)
        for p, own in enumerate(drawn.members):
            weighed = factors[own] * loss[index[own]]
            assert found.loss[p, 0, k] == pytest.approx(weighed.mean(), rel=1e-9)
            assert found.loss_stderr[p, 0, k] == pytest.approx(error_of_draw(drawn, p, weighed), rel=1e-6)
            wrong = factors[own] * ~right[index[own]]
            assert found.accuracy[p, 0, k] == pytest.approx(1 - wrong.mean(), abs=1e-12)
            if 0 < wrong.mean() < 0.5 and p == 0:  # beside which one more draw on each side adds
                assert found.accuracy_stderr[p, 0, k] > 0.9 * error_of_draw(drawn, p, wrong)


def test_losses_at_the_checkpoint_state_the_error_of_the_draw_where_they_are_of_one(objective, drawn):
    found, (loss, right) = ls.sensitivity(drawn, n=1, draws=1), of_each(objective, points.origin(objective))
    line_of_one = ls.surface(drawn, line(drawn), [0.0])
    for p, own in enumerate(drawn.members):
        weighed = drawn.draws.factors[own] * loss[drawn.draws.index[own]]
        assert found.loss[p] == pytest.approx(weighed.mean(), rel=1e-9)
        assert found.loss_stderr[p] == pytest.approx(error_of_draw(drawn, p, weighed), rel=1e-6)
        assert found.accuracy_stderr[p] == pytest.approx(line_of_one.accuracy_stderr[p, 0, 0], rel=1e-9)
    for result in (ls.sharpness(drawn, draws=1, ascent_steps=1), ls.spectrum(drawn, operator="ggn")):
        assert result.loss_stderr[0] == pytest.approx(loss[:60].std(ddof=1) / np.sqrt(60), rel=1e-9)  # of all samples
        assert result.accuracy_stderr[0] == pytest.approx(inference.share_stderr(right[:60].mean(), 60), rel=1e-9)


def test_bands_of_weighted_accuracies_are_not_those_of_all_samples(objective, drawn):
    """These would be too narrow by the root of how many samples a draw stands for."""

    def bands(of, **changed):
        found = dataclasses.replace(ls.surface(of, line(of), [-1.0, 0.0, 1.0]), **changed)
        figure = plots.surface_lines(found, errors=True)
        return [[c for c in ax.collections if isinstance(c, PolyCollection)] for ax in figure.axes[:2]]

    def heights(collections):
        return [np.ptp(path.vertices[:, 1]) for c in collections for path in c.get_paths() if len(path.vertices)]

    assert [bool(heights(own)) for own in bands(objective)] == [True, True]
    assert heights(bands(drawn)[1])[0] > heights(bands(objective)[1])[0]
    earlier = {"accuracy_stderr": None}  # files of earlier versions
    assert [bool(heights(own)) for own in bands(objective, **earlier)] == [True, True]
    assert [bool(heights(own)) for own in bands(drawn, **earlier)] == [True, False]


def test_losses_and_accuracies_away_from_the_checkpoint_are_unbiased_and_their_errors_hold(objective):
    point, n = moved(objective), 12
    loss, right = of_each(objective, point)
    losses, errors, accuracies = [], [], []
    amount = draws.uncertainty(objective, 0)
    for seed in range(SEEDS):
        picked = draws.pick(objective, 0, n, seed=seed, amount=amount, even=draws.AWAY)
        weighed = picked.factors * loss[picked.index]
        losses.append(weighed.mean())
        errors.append(inference.stderr(weighed) ** 2)
        accuracies.append(1 - (picked.factors * ~right[picked.index]).mean())
    for found, whole in ((losses, loss[:60].mean()), (accuracies, right[:60].mean())):
        assert abs(np.mean(found) - whole) < 4 * np.std(found) / np.sqrt(SEEDS)
    assert np.mean(errors) == pytest.approx(np.var(losses), rel=0.25)  # a variance of 300 draws is known to 8 %


@pytest.mark.parametrize("analysis", ["surface", "gradients", "sharpness", "features", "distances", "spectrum"])
def test_a_draw_of_all_samples_gives_what_all_samples_give(objective, analysis):
    whole = draws.draw_samples(objective, 60)
    assert whole.draws.whole.all()
    for mine, theirs in zip(computed(whole, analysis), computed(objective, analysis), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-9, atol=1e-12)


def computed(objective, analysis):
    """Main numbers of each analysis."""
    if analysis == "surface":
        found = ls.surface(objective, line(objective), [0.0, 1.0])
        return found.loss, found.accuracy, found.loss_stderr
    if analysis == "gradients":
        found = ls.gradients(objective, sampling_errors=True)
        return found.norm, found.cosine, found.whole_norm, found.radius, found.norm_sampling_stderr
    if analysis == "sharpness":
        found = ls.sharpness(objective, draws=2, ascent_steps=2)
        return found.first_order_rise, found.worst_rise, found.noise_rise, found.noise_rise_sampling_stderr
    if analysis == "features":
        found = ls.features(objective)
        return found.quality, found.distance, found.variance, found.within_between, found.accuracy
    if analysis == "distances":
        found = distances(objective)
        return found.loss, found.fisher, found.barrier, found.barrier_stderr, found.hessian_rise
    found = ls.spectrum(objective, backend="reverse")
    return found.lambda_max, found.trace, found.trace_sampling_stderr


def distances(objective):
    names = {"class": "0"}
    own, other = points.origin(objective), moved(objective)
    run = Run(name="run", points={names["class"]: (own, 1.0), "final": (other, 2.0)}, start=own)
    return ls.distances(objective, [run], source="test", over="all", barrier_points=1, curvature=True)


def test_gradients_weigh_each_draw_and_each_part_by_all_its_samples(objective, drawn):
    found = ls.gradients(drawn, sampling_errors=True)
    theta = [t.clone().requires_grad_() for t in objective.theta]
    inputs, labels = objective.samples.batch(drawn.draws.index, dtype=objective.dtype)
    losses = torch.from_numpy(drawn.draws.factors) * objective.losses(theta, inputs, labels)
    each = torch.stack([objective.layout.flat(torch.autograd.grad(v, theta, retain_graph=True)) for v in losses])
    own = [each[torch.from_numpy(members)].mean(0) for members in drawn.members]
    whole = (60 * own[0] + 5 * own[1]) / 65
    for p, g in enumerate(own):
        assert found.norm[0, p] == pytest.approx(float(g.norm()), rel=1e-9)
        assert found.cosine[0, p] == pytest.approx(float(g @ whole / g.norm() / whole.norm()), rel=1e-9)
        slopes = (each[torch.from_numpy(drawn.members[p])] @ g / g.norm()).numpy()
        assert found.norm_sampling_stderr[0, p] == pytest.approx(error_of_draw(drawn, p, slopes), rel=1e-6)
    assert found.whole_norm[0] == pytest.approx(float(whole.norm()), rel=1e-9)


def test_the_fisher_distance_weighs_squares_of_gradients_once(objective, drawn):
    found, p = distances(drawn), 0
    theta = [t.clone().requires_grad_() for t in objective.theta]
    index = drawn.draws.index[drawn.members[p]]
    losses = objective.losses(theta, *objective.samples.batch(index, dtype=objective.dtype))
    each = torch.stack([objective.layout.flat(torch.autograd.grad(v, theta, retain_graph=True)) for v in losses])
    diagonal = torch.from_numpy(drawn.draws.factors[drawn.members[p]]) @ each.square() / len(index)
    step = moved(objective).theta - points.origin(objective).theta
    assert found.fisher[0, 0, 1] == pytest.approx(float((diagonal @ step.square()).sqrt()), rel=1e-9)


def test_noise_and_its_error_over_samples_weigh_each_draw(objective, drawn):
    found = ls.sharpness(drawn, draws=1, ascent_steps=0, sigma=0.2)
    (direction,) = [ls.directions.random(objective, 1, seed=0)]
    ends = [of_each(objective, direction.at(s * 0.2))[0] for s in (1, -1)]
    rise = (ends[0] + ends[1]) / 2 - of_each(objective, points.origin(objective))[0]
    own = drawn.members[0]
    weighed = drawn.draws.factors[own] * rise[drawn.draws.index[own]]
    assert found.noise_rise[0] == pytest.approx(weighed.mean(), rel=1e-9)
    assert found.noise_rise_sampling_stderr[0] == pytest.approx(error_of_draw(drawn, 0, weighed), rel=1e-9)


def test_features_count_each_draw_as_often_as_it_stands_for(objective, drawn):
    found = ls.features(drawn)
    index, factors = drawn.draws.index, drawn.draws.factors
    with torch.no_grad():
        features = objective.model[:2](objective.samples.inputs[index]).numpy()
    for c, own in enumerate(drawn.members):
        share = factors[own] / factors[own].sum()
        mean = share @ features[own]
        assert found.variance[0, c] == pytest.approx(share @ np.square(features[own] - mean).sum(1), rel=1e-9)
    with refused(InputError, partition="class"):
        ls.features(draws.draw_samples(network(), 12).alone("0"))


def test_what_cannot_take_weights_says_why(objective, drawn):
    with pytest.raises(InputError, match="batches"):
        ls.gradients(drawn, batches=2)
    with refused(InputError, "samples", "fisher", operator="ggn"):
        ls.curvature_operator(drawn, "fisher")
    with pytest.raises(InputError, match="are draws already"):
        draws.draw_samples(drawn, 5)
    assert drawn.alone("head").draws is None  # a group of classes that are no parts takes all samples
    np.testing.assert_array_equal(drawn.alone("1").population, [5])
