"""Samples: long tails follow the formula, batches hold what was asked for, options load the same again."""

from functools import partial

import numpy as np
import pytest
import torch
from refusals import refused

from landscape.data import datasets, taking
from landscape.data.datasets import from_dataset, load, long_tailed_counts
from landscape.data.samples import split_validation
from landscape.errors import DataError, InputError

PAPER_COUNTS = [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50]


# Long tails -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ratio", [100, 0.01])
def test_the_formula_gives_the_counts_of_the_literature_for_cifar10(ratio):
    assert long_tailed_counts(5000, 10, ratio).tolist() == PAPER_COUNTS


def test_the_formula_gives_10847_samples_for_cifar100():
    counts = long_tailed_counts(500, 100, 100)
    assert counts.sum() == 10847
    assert (counts[0], counts[-1]) == (500, 5)


def test_whole_numbers_do_not_lose_one_to_rounding():
    """In floating point 4900 * (1 / 49) is 99.99999999999999."""
    assert [int(long_tailed_counts(100 * r, 2, r)[1]) for r in range(2, 500)] == [100] * 498


def kept_by_ldam(labels, imb_type, imb_factor, rand_number):
    """The positions that a data set of LDAM-DRW keeps, written out with the global generator as there."""
    n_classes = labels.max() + 1
    n_max = int(len(labels) / n_classes)
    counts = [int(n_max * imb_factor ** (c / (n_classes - 1.0))) for c in range(n_classes)]
    if imb_type == "step":
        counts = [n_max if c < n_classes // 2 else int(n_max * imb_factor) for c in range(n_classes)]
    np.random.seed(rand_number)  # ruff: ignore[numpy-legacy-random]
    kept = []
    for c, n in enumerate(counts):
        own = np.where(labels == c)[0]
        np.random.shuffle(own)  # ruff: ignore[numpy-legacy-random]
        kept += own[:n].tolist()
    return sorted(kept)


@pytest.mark.parametrize("imb_type", ["exp", "step"])
@pytest.mark.parametrize(("ratio", "seed"), [(49, 0), (7, 123)])
def test_the_draw_of_ldam_keeps_the_samples_of_its_code(own, imb_type, ratio, seed):
    """Its counts too: of 4900 samples a 49th is 99 there."""
    everything = load(f"{own}:even").labels
    options = {"imbalance": ratio, "imbalance_type": imb_type, "seed": seed}
    found, ours = (load(f"{own}:even", **options, imbalance_draw=draw) for draw in ("ldam", "own"))
    expected = kept_by_ldam(everything, imb_type, 1 / ratio, seed)
    assert found.inputs.long().tolist() == expected
    assert found.class_counts.tolist() == np.bincount(everything[expected]).tolist()
    assert ours.inputs.long().tolist() != expected
    assert load(**found.options).fingerprint == found.fingerprint
    if ratio == 49:
        assert (found.class_counts[-1], ours.class_counts[-1]) == (99, 100)


def test_steps_halve_the_classes():
    assert long_tailed_counts(100, 5, 10, "step").tolist() == [100, 100, 10, 10, 10]


def test_one_class_keeps_all():
    assert long_tailed_counts(7, 1, 10).tolist() == [7]


@pytest.mark.parametrize("ratio", [0, -1, float("nan"), float("inf")])
def test_a_ratio_that_is_no_positive_number_is_refused(ratio):
    with refused(InputError, "imbalance"):
        long_tailed_counts(10, 2, ratio)


def test_an_unknown_kind_of_tail_is_refused():
    with refused(InputError, "linear"):
        long_tailed_counts(10, 2, 10, "linear")


# Digits ---------------------------------------------------------------------------------------------------------


def test_digits_train_on_a_long_tail_of_20_and_test_on_balanced_classes():
    train, test = load("digits-lt"), load("digits-lt", split="test")
    assert np.bincount(train.labels).tolist() == long_tailed_counts(124, 10, 20).tolist()
    assert np.bincount(test.labels).tolist() == [50] * 10
    assert test.class_counts.tolist() == train.class_counts.tolist() == np.bincount(train.labels).tolist()
    assert train.inputs.shape[1:] == (1, 8, 8)


def test_digits_for_training_and_testing_share_no_image():
    from sklearn.datasets import load_digits

    everything = load("digits-lt", imbalance=1), load("digits-lt", split="test")
    rows = [tuple(image.flatten().tolist()) for samples in everything for image in samples.inputs]
    scans = [tuple(np.round(image.ravel() * 255 / 16).astype(int).tolist()) for image in load_digits().images]
    assert len(rows) == 10 * 174
    assert len(set(rows)) == len(rows)
    assert set(rows) <= set(scans)


def test_the_statistics_of_the_digits_are_those_of_all_images():
    from sklearn.datasets import load_digits

    pixels = np.round(load_digits().images * 255 / 16) / 255
    np.testing.assert_allclose(
        [pixels.mean(), pixels.std()], [datasets.DIGITS[0][0], datasets.DIGITS[1][0]], rtol=0, atol=5e-5
    )


def test_a_ratio_that_empties_a_class_is_refused():
    with refused(InputError, 7, 124, imbalance=500):
        load("digits-lt", imbalance=500)


def test_options_load_the_same_samples_again():
    first = load("digits-lt", imbalance=0.1, imbalance_type="step", seed=3, normalize="none")
    again = load(**first.options)
    assert again.fingerprint == first.fingerprint
    assert again.options == first.options
    assert first.options["imbalance"] == 10


def test_the_seed_decides_which_samples_stay():
    assert load("digits-lt", seed=1).fingerprint != load("digits-lt", seed=2).fingerprint
    assert load("digits-lt", seed=1, split="test").fingerprint == load("digits-lt", seed=2, split="test").fingerprint


def test_a_longer_tail_is_a_subset_of_a_shorter_one():
    rows = [{tuple(i.flatten().tolist()) for i in load("digits-lt", imbalance=r).inputs} for r in (50, 10)]
    assert rows[0] < rows[1]


# Batches, selections, fingerprints ------------------------------------------------------------------------------


@pytest.fixture
def colours():
    """Six uint8 images of two channels, three classes."""
    inputs = torch.arange(6 * 2 * 3 * 3, dtype=torch.uint8).view(6, 2, 3, 3)
    return from_dataset((inputs, torch.tensor([2, 0, 1, 0, 0, 1])), class_names=["a", "b", "c"])


def test_a_batch_is_normalised_per_channel_and_in_the_order_asked_for(colours):
    # private: two channels, which none of the data sets by name has
    samples = datasets._normalised(colours, "0.5,0.25/0.1,0.2")
    inputs, labels = samples.batch(np.array([4, 0]), dtype=torch.float64)
    raw = colours.inputs.numpy()[[4, 0]] / 255
    expected = (raw - np.array([0.5, 0.25]).reshape(2, 1, 1)) / np.array([0.1, 0.2]).reshape(2, 1, 1)
    np.testing.assert_allclose(inputs.numpy(), expected, rtol=1e-14)
    assert inputs.dtype == torch.float64
    assert labels.tolist() == [0, 2]


@pytest.mark.parametrize("index", [np.array([5, 1]), torch.tensor([5, 1])], ids=["array", "tensor"])
def test_a_batch_leaves_the_samples_as_they_were(colours, index):
    before = colours.inputs.clone()
    # private: as above
    datasets._normalised(colours, "none").batch(index)
    assert torch.equal(colours.inputs, before)


def test_bytes_without_normalisation_stay_bytes(colours):
    assert colours.batch(np.array([0]))[0].dtype == torch.uint8


def test_normalisation_none_divides_by_255(colours):
    # private: as above
    inputs, _ = datasets._normalised(colours, "none").batch(np.array([5]))
    torch.testing.assert_close(inputs[0], colours.inputs[5] / 255)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("imagnet", ("imagnet",)),
        ("0.5,0.5/0.1,x", ("imagenet", "none")),
        ("1,1/1,1/1,1", ("imagenet", "none")),
        ("0.5/0.1", (2,)),
        ("imagenet", (2,)),
        ("0.5,0.5/0.1,0", ("positive",)),
        ("0.5,nan/0.1,0.1", ("means",)),
    ],
)
def test_a_normalisation_that_does_not_fit_is_refused(colours, text, message):
    with refused(InputError, *message):
        # private: as above
        datasets._normalised(colours, text)


def test_floats_are_not_normalised():
    samples = from_dataset((torch.rand(4, 3, 2, 2), torch.tensor([0, 1, 0, 1])))
    with pytest.raises(InputError, match=r"is for uint8 images .*has float32 inputs \(3, 2, 2\)"):
        # private: as above
        datasets._normalised(samples, "imagenet")


def test_a_selection_keeps_classes_and_training_counts(colours):
    chosen = colours.select([2, 1])
    assert torch.equal(chosen.inputs, colours.inputs[[2, 1]])
    assert chosen.labels.tolist() == [1, 0]
    assert chosen.class_names == ("a", "b", "c")
    assert chosen.class_counts.tolist() == [3, 2, 1]


def test_a_subsample_has_at_most_n_of_a_class_in_the_order_they_had(colours):
    chosen = colours.subsample(2, seed=0)
    assert np.bincount(chosen.labels).tolist() == [2, 2, 1]
    positions = [int(image[0, 0, 0]) for image in chosen.inputs]
    assert positions == sorted(positions)
    assert chosen.fingerprint == colours.subsample(2, seed=0).fingerprint


def test_subsamples_differ_by_seed():
    samples = from_dataset((torch.arange(100.0), torch.zeros(100, dtype=torch.int64)))
    assert samples.subsample(10, seed=0).fingerprint != samples.subsample(10, seed=1).fingerprint


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda s: s.select([0, 6]), InputError, (0, 5, 6)),
        (lambda s: s.select([-1]), InputError, (-1,)),
        (lambda s: s.select([]), DataError, ("dataset", "train")),
        (lambda s: s.subsample(0), InputError, (1, 0)),
        (lambda s: s.subsample(1, seed=-1), InputError, ("data_seed", -1)),
    ],
)
def test_a_selection_that_cannot_be_made_is_refused(colours, make, error, message):
    with refused(error, *message):
        make(colours)


def test_validation_takes_a_share_of_each_class_and_leaves_one():
    """Counts 10, 4, 2, 1 and a share of 0.3: 3, round(1.2), round(0.6) but at most one, and none."""
    labels = np.repeat([0, 1, 2, 3], [10, 4, 2, 1])
    samples = from_dataset((torch.arange(17).view(17, 1), torch.from_numpy(labels)))
    train, held = split_validation(samples, 0.3, seed=0)
    assert np.bincount(held.labels, minlength=4).tolist() == [3, 1, 1, 0]
    assert np.bincount(train.labels, minlength=4).tolist() == [7, 3, 1, 1]
    assert train.class_counts.tolist() == held.class_counts.tolist() == [7, 3, 1, 1]
    assert sorted(torch.cat([train.inputs, held.inputs])[:, 0].tolist()) == list(range(17))
    assert samples.class_counts.tolist() == [10, 4, 2, 1]
    assert split_validation(samples, 0.9, seed=0)[0].class_counts.tolist() == [1, 1, 1, 1]
    assert split_validation(samples, 0.01, seed=0)[0].class_counts.tolist() == [9, 3, 1, 1]


def test_validation_is_drawn_by_its_seed():
    samples = from_dataset((torch.arange(60).view(60, 1), torch.arange(60) % 3))
    once, again, other = (split_validation(samples, 0.2, seed)[1].inputs for seed in (0, 0, 1))
    assert torch.equal(once, again)
    assert not torch.equal(once, other)


@pytest.mark.parametrize(
    ("share", "seed", "error", "message"),
    [
        (0.0, 0, InputError, ("validation", 0.0)),
        (1.0, 0, InputError, (0, 1, 1.0)),
        (float("nan"), 0, InputError, (0, 1)),
        (0.5, -1, InputError, ("data_seed", -1)),
        (0.5, 0, DataError, ("dataset", "two")),
    ],
)
def test_validation_that_cannot_be_held_out_is_refused(share, seed, error, message):
    with refused(error, *message):
        split_validation(from_dataset((torch.zeros(3, 1), torch.arange(3))), share, seed)


def test_the_fingerprint_changes_with_pixels_labels_order_and_normalisation(colours):
    pixels = colours.inputs.clone()
    pixels[3, 1, 2, 2] += 1
    changed = [
        colours,
        from_dataset((pixels, torch.from_numpy(colours.labels))),
        from_dataset((colours.inputs, torch.tensor([2, 0, 1, 0, 0, 2]))),
        colours.select([1, 0, 2, 3, 4, 5]),
        colours.select([0, 1, 2, 3, 4]),
        # private: as above
        datasets._normalised(colours, "none"),
        from_dataset((colours.inputs.reshape(6, 3, 2, 3), torch.from_numpy(colours.labels))),
    ]
    assert len({samples.fingerprint for samples in changed}) == len(changed)
    assert colours.select(range(6)).fingerprint == colours.fingerprint


# Users' own -----------------------------------------------------------------------------------------------------


OWN = """
import torch
from torch.utils.data import TensorDataset

def images(n):
    return torch.arange(n * 12, dtype=torch.uint8).view(n, 3, 2, 2)

def splits(split):
    if split == "train":
        return TensorDataset(images(5), torch.tensor([0, 0, 0, 1, 2]))
    return TensorDataset(images(2), torch.tensor([1, 0]))

def single():
    return splits("train")

def even():
    return torch.arange(9800.0), torch.arange(9800) // 2 % 2

class Named(list):
    class_counts = [3, 2, 1]

def named(split):
    labels = [0, 0, 0, 1, 1, 2] if split == "train" else [1, 0]
    return Named({"x": torch.zeros(2), "label": label} for label in labels)

def numbers():
    return [{"x": torch.zeros(2), "y": float(i)} for i in range(4)]

def tagged():
    return images(4), torch.eye(4)

def broken(split):
    raise ValueError("no\\n" + split)
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    (tmp_path / "own_data.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return "own_data"


def test_a_users_callable_is_asked_for_the_split(own):
    test = load(f"{own}:splits", split="test")
    assert test.labels.tolist() == [1, 0]
    assert test.class_counts.tolist() == [3, 1, 1]
    assert load(f"{own}:splits").labels.tolist() == load(f"{own}:single").labels.tolist() == [0, 0, 0, 1, 2]


def test_a_users_images_take_normalisation_and_a_long_tail(own):
    samples = load(f"{own}:splits", normalize="imagenet", imbalance=3)
    assert samples.labels.tolist() == [0, 0, 0, 1, 2]
    assert samples.batch(np.array([0]))[0].dtype == torch.float32
    assert load(**samples.options).fingerprint == samples.fingerprint


def test_a_users_callable_without_splits_has_no_test_split(own):
    with refused(InputError, "own_data", "split", split="test"):
        load(f"{own}:single", split="test")


def test_training_counts_that_dicts_state_are_those_of_each_split(own):
    samples = load(f"{own}:named", split="test", take=taking.taken)
    assert samples.labels.tolist() == [1, 0]
    assert samples.class_names == ("0", "1", "2")
    assert samples.class_counts.tolist() == [3, 2, 1]


def test_data_without_classes_have_no_tail_and_no_samples_of_each_class(own):
    take = partial(taking.taken, target="y")
    with refused(InputError, f"{own}:numbers", imbalance=10):
        load(f"{own}:numbers", take=take, imbalance=10)
    with refused(InputError, f"{own}:numbers", samples_per_class=100):
        load(f"{own}:numbers", take=take).subsample(100)


@pytest.mark.parametrize("name", ["named", "tagged"])
def test_a_normalisation_of_what_is_no_labelled_image_is_refused(own, name):
    with refused(InputError, f"{own}:{name}", normalize="imagenet"):
        load(f"{own}:{name}", take=taking.taken, normalize="imagenet")


def test_an_error_in_a_users_callable_is_quoted(own):
    with refused(InputError, "ValueError", dataset="own_data:broken"):
        load(f"{own}:broken")


# Options --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("mnist", {}, ("mnist", "digits-lt")),
        ("digits-lt", {"split": "val"}, ("split", "val")),
        ("digits-lt", {"image_size": 32}, ("image_size", 32, "digits-lt")),
        ("image-folder", {"train_list": "x"}, ("train_list", "x", "image-folder")),
        ("digits-lt", {"imbalance_type": "cliff"}, ("cliff",)),
        ("cifar10", {"root": "here", "imbalance_type": "step"}, ("imbalance_type", "step")),
        ("cifar10", {"root": "here", "imbalance_draw": "ldam"}, ("imbalance_draw", "ldam")),
        ("digits-lt", {"imbalance_draw": "cao"}, ("imbalance_draw", "cao")),
        ("digits-lt", {"seed": -1}, ("data_seed", -1)),
        ("digits-lt", {"seed": 2**32, "imbalance_draw": "ldam"}, ("data_seed", 2**32)),
    ],
)
def test_an_option_that_does_not_fit_is_refused(name, options, message):
    with refused(InputError, *message):
        load(name, **options)


@pytest.mark.parametrize("label", [2_000_000_000, 2**40])
def test_a_label_that_is_no_class_is_named_before_memory_is_taken_for_its_classes(label):
    pair = torch.zeros(4, 2), torch.tensor([0, 1, 2, label])
    message = f"sample 3 has label {label}, of 4 samples in all: labels must count the classes from 0"
    for dataset in (pair, list(zip(*pair, strict=True))):
        with pytest.raises(DataError, match=message):
            from_dataset(dataset)


@pytest.mark.parametrize("label", [2**63, -(2**70), 10**40])
def test_a_label_beyond_64_bits_is_refused(label):
    with refused(DataError, 1, 64):
        from_dataset([(torch.zeros(2), 0), (torch.zeros(2), label)])


def test_names_of_classes_that_no_file_can_hold_are_refused_at_once():
    with refused(DataError, r"a\x00b"):
        from_dataset((torch.zeros(2, 2), torch.tensor([0, 1])), class_names=["a\0b", "c"])
