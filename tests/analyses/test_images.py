"""The images that make a part sharp: which they are, their small copies, and how much they hold."""

import dataclasses

import numpy as np
import pytest
import torch
from refusals import refused
from torch import nn

import landscape as ls
from landscape.data import datasets
from landscape.data.thumbnails import SIDE, thumbnails
from landscape.errors import InputError
from landscape.objective.objective import Objective
from landscape.plots.figures.images import images
from landscape.results import over_samples


def data(n=(30, 12), side=4, channels=3, dtype=torch.uint8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (sum(n), channels, side, side), generator=generator, dtype=torch.uint8)
    labels = torch.cat([torch.full((k,), c) for c, k in enumerate(n)])
    return datasets.from_dataset((pixels.to(dtype), labels), name="dots", split="test", class_counts=list(n))


@pytest.fixture(scope="module")
def case():
    samples = dataclasses.replace(data(), mean=(0.5,) * 3, std=(0.3,) * 3)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 4), nn.Tanh(), nn.Linear(4, 2))
    objective = Objective.build(model, samples, partition="class", dtype=torch.float64, device="cpu")
    return objective, ls.spectrum(objective, operator="ggn")


def test_the_images_are_those_of_largest_curvature_and_hold_their_shares(case):
    objective, found = case
    for p, members in enumerate(objective.members):
        q, t = (values[p][: len(members)] for values in (found.sample_curvature, found.sample_trace))
        sharpest = np.argsort(-q)[:8]
        np.testing.assert_array_equal(found.image_sample[p], sharpest)
        expected = objective.samples.inputs[members[sharpest]].permute(0, 2, 3, 1).numpy()
        np.testing.assert_array_equal(found.images[p], expected)
        held = over_samples.held(found, p)
        np.testing.assert_array_equal(held.place[:8], sharpest)
        np.testing.assert_allclose(held.lambda_max[:8], q[sharpest] / q.sum())
        assert held.by(0.01) == pytest.approx((q.max() / q.sum(), t[sharpest[0]] / t.sum()))  # one image at least
        assert held.by(0.5) == pytest.approx((np.sort(q)[::-1][: len(q) // 2].sum() / q.sum(), held.by(0.5)[1]))
        assert held.by(1.0) == pytest.approx((1, 1))


def test_the_figure_says_that_traces_beside_a_hessian_of_another_trace_are_those_of_g(case):
    objective, found = case
    for spectrum, name in ((found, "of the trace;"), (ls.spectrum(objective), "of tr G;")):
        assert name in images(spectrum).get_suptitle()


def test_an_image_that_was_drawn_twice_counts_once(case):
    objective, _ = case
    found = ls.spectrum(objective, operator="ggn", samples=9)
    held = over_samples.held(found, 0)
    assert len(held.place) == len(np.unique(found.sample_index[0]))
    assert held.weight.sum() == pytest.approx(found.sample_weight[0].sum())
    shown = found.sample_index[0][found.image_sample[0][np.isfinite(found.image_sample[0])].astype(int)]
    assert len(set(shown)) == len(shown)
    for place, pixels in zip(shown.astype(int), found.images[0], strict=False):
        np.testing.assert_array_equal(pixels, objective.samples.inputs[place].permute(1, 2, 0).numpy())


def test_a_part_with_fewer_images_leaves_places_empty_and_other_samples_have_none(case):
    objective, _ = case
    few = dataclasses.replace(objective, members=(objective.members[0][:3], objective.members[1]))
    found = ls.spectrum(few, operator="ggn")
    assert np.isnan(found.image_sample[0]).tolist() == [False] * 3 + [True] * 5
    assert not found.images[0, 3:].any()
    vectors = datasets.from_dataset((torch.rand(6, 4), torch.arange(6) % 2), name="v", split="test")
    assert thumbnails(vectors, [0]) is None


def test_small_copies_keep_shape_and_range():
    large = data(n=(3, 3), side=100)
    found = thumbnails(large, [0, 2])
    assert found.shape == (2, SIDE, SIDE, 3)
    assert found.mean() == pytest.approx(large.inputs[[0, 2]].float().mean().item(), abs=1)
    floats = data(n=(3, 3), channels=1, dtype=torch.float32)
    grey = thumbnails(floats, [1, 3])
    assert (grey.shape, grey.dtype) == ((2, 4, 4, 1), np.uint8)
    expected = floats.inputs[[1, 3]]
    expected = (expected - expected.min()) / (expected.max() - expected.min()) * 255
    np.testing.assert_allclose(grey, expected.permute(0, 2, 3, 1).numpy(), atol=0.51)


def test_the_figure_names_what_the_network_takes_an_image_for(case, tmp_path):
    _, found = case
    ls.save(tmp_path / "a.h5", found)
    found = ls.load(tmp_path / "a.h5")
    wrong = found.sample_label.copy()
    wrong[0] = 1 - found.sample_prediction[0]
    fig = images(dataclasses.replace(found, sample_label=wrong))
    first = fig.axes[0]
    assert len([ax for ax in fig.axes if ax.images]) == 16
    sample = int(found.image_sample[0, 0])
    label, taken = (found.parts[int(of[0, sample])] for of in (wrong, found.sample_prediction))
    assert (first.get_title(), first.title.get_color()) == (f"{label}\nas {taken}", "#d62728")
    held = over_samples.held(found, 0)
    assert f"{held.lambda_max[0]:.0%} / {held.trace[0]:.0%}" in first.get_xlabel()
    unknown = images(dataclasses.replace(found, sample_label=np.full_like(wrong, np.nan), sample_prediction=None))
    assert unknown.axes[0].get_title() == "no class"
    with refused(InputError, "images"):
        images(dataclasses.replace(found, images=None))
