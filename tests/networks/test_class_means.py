"""Statistics of features class by class, against closed forms, plain loops in float64 and dense matrices."""

import numpy as np
import pytest
import torch
from refusals import refused

from landscape.errors import InputError, NumericalError
from landscape.networks import class_means
from landscape.networks.class_means import Means, Scatter, Sums


def measured(features, labels, classifier, batch=1000):
    """Both passes and what follows from them."""
    features, labels = torch.as_tensor(features), torch.as_tensor(labels)
    pairs = list(zip(torch.split(features, batch), torch.split(labels, batch), strict=True))
    sums = Sums(len(classifier))
    for some, of in pairs:
        sums.add(some, of)
    means = sums.means()
    directions, sizes = means.between()
    scatter = Scatter(means, directions)
    for some, of in pairs:
        scatter.add(some, of)
    return class_means.geometry(means, scatter, sizes, torch.as_tensor(classifier)), means, scatter


def simplex(n_classes, n_features, seed=0):
    """An equiangular tight frame: C unit vectors with cosines of -1 / (C - 1), turned at random."""
    frame = np.eye(n_classes) - 1 / n_classes
    frame /= np.linalg.norm(frame, axis=1, keepdims=True)
    turn, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(n_features, n_features)))
    return frame @ turn[:n_classes]


def clouds(seed=0, sizes=(40, 20, 9, 1), n_features=6, shift=0.0):
    """Ragged classes, the last of one sample."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(len(sizes)), sizes)
    centres = 3 * rng.normal(size=(len(sizes), n_features))
    features = centres[labels] + rng.normal(size=(len(labels), n_features)) + shift
    order = rng.permutation(len(labels))
    return features[order], labels[order], rng.normal(size=(len(sizes), n_features))


# Quality --------------------------------------------------------------------------------------------------------------


def test_quality_of_three_known_clouds():
    """Means (0, 0), (3, 4) and (3, 0), each with samples 0.5 left and right: Var = 0.25."""
    centres = torch.tensor([[0.0, 0.0], [3.0, 4.0], [3.0, 0.0]])
    features = torch.cat([centres + torch.tensor([d, 0.0]) for d in (-0.5, 0.5)])
    found = class_means.feature_quality(features, torch.tensor([0, 1, 2] * 2), 3)
    np.testing.assert_allclose(found.distance, [3, 4, 3], rtol=1e-12)
    np.testing.assert_allclose(found.variance, [0.25] * 3, rtol=1e-12)
    np.testing.assert_allclose(found.quality, np.array([3, 4, 3]) - 0.5 * np.log(0.25), rtol=1e-12)
    inverse = class_means.feature_quality(features, torch.tensor([0, 1, 2] * 2), 3, form="inverse")
    np.testing.assert_allclose(inverse.quality, -1 / np.array([3, 4, 3]) - np.log(0.25), rtol=1e-12)


def test_quality_equals_a_plain_loop_in_float64_over_a_long_tail(monkeypatch):
    monkeypatch.setattr(class_means, "_PIECE", 24)  # a few samples at a time
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(5), [40, 20, 9, 3, 2])
    features = (rng.normal(size=(len(labels), 6)) + 100).astype(np.float32)  # far from the origin
    found = class_means.feature_quality(torch.from_numpy(features), torch.from_numpy(labels), 5, beta=0.7)
    clouds = [features[labels == c].astype(np.float64) for c in range(5)]
    for c, cloud in enumerate(clouds):
        others = [np.linalg.norm(cloud.mean(0) - other.mean(0)) for k, other in enumerate(clouds) if k != c]
        variance = ((cloud - cloud.mean(0)) ** 2).sum(1).mean()
        np.testing.assert_allclose(found.quality[c], min(others) - 0.7 * np.log(variance), rtol=1e-10)


def test_nearest_means_of_many_classes_equal_all_differences():
    """More than 25 points far from the origin, where distances by products are lost, and more than one block."""
    features = torch.randn(1100, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 1e5
    found = class_means.feature_quality(features, torch.arange(1100), 1100)
    apart = (features[:, None] - features).norm(dim=2).fill_diagonal_(torch.inf).min(1).values
    np.testing.assert_allclose(found.distance, apart, rtol=1e-8)


def test_classes_that_cannot_be_compared_have_no_quality():
    features = torch.tensor([[0.0, 0], [2, 0], [5, 0], [9, 1], [9, 1]])  # a pair, one sample, none, two equal ones
    found = class_means.feature_quality(features, torch.tensor([0, 0, 1, 3, 3]), 4)
    np.testing.assert_array_equal(np.isnan(found.quality), [False, True, True, True])
    np.testing.assert_array_equal(np.isnan(found.distance), [False, False, True, False])
    np.testing.assert_allclose(found.variance, [1, np.nan, np.nan, 0])
    assert found.distance[0] == pytest.approx(4)  # the class of one sample is a neighbour, the empty one is not
    alone = class_means.feature_quality(features[:2], torch.tensor([2, 2]), 4)
    assert np.isnan(alone.quality).all()


def test_features_that_do_not_fit_are_refused():
    x, y = torch.zeros(4, 2), torch.tensor([0, 1, 0, 1])
    with refused(InputError, "quality_form"):
        class_means.feature_quality(x, y, 2, form="other")
    with pytest.raises(InputError, match=r"must be \(N, F\)"):
        class_means.feature_quality(x, y[:3], 2)
    with pytest.raises(InputError, match="labels are 0 to 0"):
        class_means.feature_quality(x, y, 1)
    with refused(NumericalError, "finite"):
        class_means.feature_quality(x.index_fill(0, torch.tensor(1), torch.nan), y, 2)


# Geometry -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n_classes", "n_features"), [(2, 3), (4, 4), (10, 64)])
def test_a_simplex_frame_has_collapsed_in_every_sense(n_classes, n_features):
    frame = simplex(n_classes, n_features)
    labels = np.repeat(np.arange(n_classes), 3)
    # Whatever is added to all features or to all rows of the classifier, and whatever the scale: collapse is relative.
    found, means, _ = measured(5 * frame[labels] + 7, labels, 0.1 * frame - 2)
    assert found.within_between == pytest.approx(0, abs=1e-25)
    np.testing.assert_allclose(found.mean_norm, 5, rtol=1e-12)
    for value in (found.norm_variation, found.angle_deviation, found.duality):
        assert value == pytest.approx(0, abs=1e-12)
    np.testing.assert_allclose(found.alignment, 1, rtol=1e-12)
    off = found.mean_cosine[~np.eye(n_classes, dtype=bool)]
    np.testing.assert_allclose(off, -1 / (n_classes - 1), rtol=1e-12)
    assert (means.classify(torch.as_tensor(5 * frame + 7)).numpy() == np.arange(n_classes)).all()


def test_within_over_between_of_noise_along_a_simplex_is_known():
    """Samples mu_c +- h u along a unit u in the span of the means: S_W = h^2 u u^T, all s_k alike.

    C vectors of length r on a simplex have S_B = r^2 / (C - 1) times the identity on their span of C - 1 dimensions, so
    NC1 = h^2 (C - 1) / (r^2 C).
    """
    n_classes, r, h = 5, 3.0, 0.25
    frame = r * simplex(n_classes, 7)
    step = h * frame[0] / r
    labels = np.tile(np.arange(n_classes), 2)
    found, _, scatter = measured(np.concatenate([frame - step, frame + step]), labels, frame)
    assert found.within_between == pytest.approx(h**2 * (n_classes - 1) / (r**2 * n_classes), rel=1e-12)
    np.testing.assert_allclose(scatter.variance, h**2, rtol=1e-12)
    across = np.linalg.svd(frame)[2][-1] * h  # a direction in which no means differ adds nothing
    found, _, _ = measured(np.concatenate([frame - across, frame + across]), labels, frame)
    assert found.within_between == pytest.approx(0, abs=1e-25)


@pytest.mark.parametrize("batch", [1, 7, 1000])
@pytest.mark.parametrize("n_features", [2, 6, 30])  # fewer and more than the classes
def test_all_numbers_equal_dense_float64_loops_whatever_the_batches(batch, n_features):
    features, labels, classifier = clouds(n_features=n_features)
    found, means, scatter = measured(features, labels, classifier, batch)
    groups = [features[labels == c] for c in range(4)]
    mu = np.array([g.mean(0) for g in groups])
    centred = mu - mu.mean(0)
    within = np.mean([np.cov(g.T, bias=True) for g in groups if len(g) > 1], axis=0)
    several = mu[:3] - mu[:3].mean(0)  # the class of one sample has no scatter, within or between
    between = several.T @ several / 3
    assert found.within_between == pytest.approx(np.trace(within @ np.linalg.pinv(between, rcond=1e-10)) / 3, rel=1e-9)
    kept = labels != 3
    without, _, _ = measured(features[kept], labels[kept], classifier[:3])
    assert found.within_between == pytest.approx(without.within_between, rel=1e-10)
    norms = np.linalg.norm(centred, axis=1)
    assert found.norm_variation == pytest.approx(norms.std() / norms.mean(), rel=1e-10)
    cosines = [centred[a] @ centred[b] / norms[a] / norms[b] for a in range(4) for b in range(4)]
    np.testing.assert_allclose(found.mean_cosine.ravel(), cosines, rtol=1e-10)
    pairs = [abs(cosines[4 * a + b] + 1 / 3) for a in range(4) for b in range(a)]
    assert found.angle_deviation == pytest.approx(np.mean(pairs), rel=1e-10)
    rows = classifier - classifier.mean(0)
    unlike = rows / np.linalg.norm(rows) - centred / np.linalg.norm(centred)
    assert found.duality == pytest.approx(np.linalg.norm(unlike), rel=1e-10)
    np.testing.assert_allclose(found.alignment, (rows * centred).sum(1) / np.linalg.norm(rows, axis=1) / norms)
    nearest = [int(np.argmin(np.linalg.norm(a - mu, axis=1))) for a in features]
    assert means.classify(torch.as_tensor(features)).tolist() == nearest
    variances = [((g - g.mean(0)) ** 2).sum(1).mean() for g in groups[:3]]
    np.testing.assert_allclose(scatter.variance, [*variances, np.nan], rtol=1e-12)


def test_float32_features_far_from_the_origin_keep_their_digits():
    """E[a^2] - E[a]^2 in float32 would have no digit left: 1e4 squared against variances of 1."""
    features, labels, classifier = clouds(shift=1e4)
    near, _, _ = measured(features.astype(np.float32).astype(np.float64), labels, classifier)
    found, _, scatter = measured(features.astype(np.float32), labels, classifier)
    assert found.within_between == pytest.approx(near.within_between, rel=1e-10)
    exact = [features[labels == c].var(0).sum() for c in range(3)]
    np.testing.assert_allclose(scatter.variance[:3], exact, rtol=1e-3)  # the rounding of the features themselves


def test_classes_without_samples_take_no_part():
    """As if there were only the others: the means' mean, the pairs and the frame's angle are theirs."""
    features, labels, classifier = clouds()
    found, means, _ = measured(features, labels, classifier)
    wide = np.zeros((6, 6))
    place = np.array([0, 2, 3, 5])
    wide[place] = classifier
    wide[[1, 4]] = 99
    holes, sparse, _ = measured(features, place[labels], wide)
    for name in ("within_between", "norm_variation", "angle_deviation", "duality"):
        assert getattr(holes, name) == pytest.approx(getattr(found, name), rel=1e-12), name
    np.testing.assert_allclose(holes.mean_norm[place], found.mean_norm)
    assert np.isnan(holes.alignment[[1, 4]]).all()
    assert np.isnan(holes.mean_cosine[1]).all()
    assert np.isnan(holes.mean_cosine[:, 4]).all()
    distance, neighbour = sparse.nearest()
    expected, of = means.nearest()
    np.testing.assert_array_equal(neighbour, [place[of[0]], -1, place[of[1]], place[of[2]], -1, place[of[3]]])
    np.testing.assert_allclose(distance[place], expected)
    assert set(sparse.classify(torch.as_tensor(features)).tolist()) <= set(place.tolist())


def test_what_is_not_defined_is_nan():
    x = np.random.default_rng(0).normal(size=(5, 3))
    alone, means, _ = measured(x, np.full(5, 1), np.eye(3))  # one class has no geometry
    values = [alone.within_between, alone.norm_variation, alone.angle_deviation, alone.duality]
    assert np.isnan(values).all()
    assert np.isnan(alone.mean_norm).all()
    assert means.nearest()[1].tolist() == [-1, -1, -1]
    single, _, scatter = measured(x[:3], np.arange(3), np.eye(3))  # one sample each: means, but no scatter
    assert np.isnan(single.within_between)
    pair, _, _ = measured(x, np.array([0, 0, 0, 1, 2]), np.eye(3))  # one class with a scatter, and none to be between
    assert np.isnan(pair.within_between)
    assert np.isnan(scatter.variance).all()
    assert np.isfinite([single.norm_variation, single.angle_deviation, single.duality]).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_classes_whose_means_differ_by_rounding_only_have_no_geometry(dtype):
    """A dead network: its features differ in their last digits, but that is no distance between classes."""
    labels = np.repeat(np.arange(3), [4, 2, 1])
    digits = np.random.default_rng(0).integers(0, 4, size=(7, 3))
    features = dtype(0.1) * (1 + digits.astype(dtype) * np.finfo(dtype).eps)
    found, _, _ = measured(features, labels, np.eye(3))
    assert (found.mean_norm > 0).all()
    values = [found.within_between, found.norm_variation, found.angle_deviation, found.duality]
    assert np.isnan(values).all(), values
    assert np.isnan(found.mean_cosine).all()
    assert np.isnan(found.alignment).all()


def test_a_direction_of_rounding_is_not_divided_by():
    """Features of rank 2 in float32: the third direction of the means is rounding, and counted it would be NC1."""
    rng = np.random.default_rng(0)
    flat = rng.normal(size=(4, 2))
    labels = np.repeat(np.arange(4), 50)
    features = (flat[labels] + 0.1 * rng.normal(size=(200, 2))) @ rng.normal(size=(2, 8))
    exact, _, _ = measured(features, labels, np.eye(4, 8))
    found, _, _ = measured(features.astype(np.float32), labels, np.eye(4, 8))
    assert found.within_between == pytest.approx(exact.within_between, rel=1e-4)


def test_passes_that_do_not_fit_are_refused():
    with refused(InputError, "features"):
        Sums(3).means()
    with pytest.raises(InputError, match="labels are 0 to 2, got -1"):
        class_means.feature_quality(torch.ones(1, 2), torch.tensor([-1]), 3)
    features, labels, _ = clouds()
    with refused(InputError, 4, 5, 6):
        measured(features, labels, np.ones((4, 5)))
    means = Means(
        counts=torch.tensor([1]),
        weights=torch.ones(1, dtype=torch.float64),
        values=torch.ones(1, 2, dtype=torch.float64),
        eps=0.0,
    )
    assert means.nearest()[0].shape == (1,)
