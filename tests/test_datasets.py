"""Samples: what is read is what the files hold, long tails follow the formula, users' data arrive unchanged."""

import io
import os
import pickle
import struct
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset

from landscape import datasets
from landscape.datasets import from_dataset, load, long_tailed_counts
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


def test_steps_halve_the_classes():
    assert long_tailed_counts(100, 5, 10, "step").tolist() == [100, 100, 10, 10, 10]


def test_one_class_keeps_all():
    assert long_tailed_counts(7, 1, 10).tolist() == [7]


@pytest.mark.parametrize("ratio", [0, -1, float("nan"), float("inf")])
def test_a_ratio_that_is_no_positive_number_is_refused(ratio):
    with pytest.raises(InputError, match="--imbalance must be a positive number"):
        long_tailed_counts(10, 2, ratio)


def test_an_unknown_kind_of_tail_is_refused():
    with pytest.raises(InputError, match="must be exp or step, got 'linear'"):
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
    with pytest.raises(InputError, match=r"--imbalance 500 leaves class 7 \(7\) no sample: the largest class has 124"):
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
    datasets._normalised(colours, "none").batch(index)
    assert torch.equal(colours.inputs, before)


def test_bytes_without_normalisation_stay_bytes(colours):
    assert colours.batch(np.array([0]))[0].dtype == torch.uint8


def test_normalisation_none_divides_by_255(colours):
    inputs, _ = datasets._normalised(colours, "none").batch(np.array([5]))
    torch.testing.assert_close(inputs[0], colours.inputs[5] / 255)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("imagnet", "must be imagenet, none or m,m,m/s,s,s; got 'imagnet'"),
        ("0.5,0.5/0.1,x", "must be imagenet, none or"),
        ("1,1/1,1/1,1", "must be imagenet, none or"),
        ("0.5/0.1", "dataset has 2 channels"),
        ("imagenet", "dataset has 2 channels"),
        ("0.5,0.5/0.1,0", "standard deviations positive"),
        ("0.5,nan/0.1,0.1", "means must be finite"),
    ],
)
def test_a_normalisation_that_does_not_fit_is_refused(colours, text, message):
    with pytest.raises(InputError, match=message):
        datasets._normalised(colours, text)


def test_floats_are_not_normalised():
    samples = from_dataset((torch.rand(4, 3, 2, 2), torch.tensor([0, 1, 0, 1])))
    with pytest.raises(InputError, match=r"is for uint8 images .*has float32 inputs \(3, 2, 2\)"):
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
        (lambda s: s.select([0, 6]), InputError, "samples are 0 to 5, asked for 0 to 6"),
        (lambda s: s.select([-1]), InputError, "asked for -1 to -1"),
        (lambda s: s.select([]), DataError, r"no sample of dataset \(train\) is selected"),
        (lambda s: s.subsample(0), InputError, "at least 1, got 0"),
        (lambda s: s.subsample(1, seed=-1), InputError, "--seed must not be negative, got -1"),
    ],
)
def test_a_selection_that_cannot_be_made_is_refused(colours, make, error, message):
    with pytest.raises(error, match=message):
        make(colours)


def test_the_fingerprint_changes_with_pixels_labels_order_and_normalisation(colours):
    pixels = colours.inputs.clone()
    pixels[3, 1, 2, 2] += 1
    changed = [
        colours,
        from_dataset((pixels, torch.from_numpy(colours.labels))),
        from_dataset((colours.inputs, torch.tensor([2, 0, 1, 0, 0, 2]))),
        colours.select([1, 0, 2, 3, 4, 5]),
        colours.select([0, 1, 2, 3, 4]),
        datasets._normalised(colours, "none"),
        from_dataset((colours.inputs.reshape(6, 3, 2, 3), torch.from_numpy(colours.labels))),
    ]
    assert len({samples.fingerprint for samples in changed}) == len(changed)
    assert colours.select(range(6)).fingerprint == colours.fingerprint


# CIFAR ----------------------------------------------------------------------------------------------------------


def python2_pickle(content):
    """Write a dict as Python 2 with an old numpy did: byte strings, protocol 2, numpy.core.multiarray."""

    def text(value):
        return b"U" + bytes([len(value)]) + value

    def number(value):
        return b"J" + struct.pack("<i", value)

    out = b"\x80\x02}("
    for key, value in content.items():
        out += text(key.encode())
        if isinstance(value, np.ndarray):
            out += (
                b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n" + number(0) + b"\x85" + text(b"b") + b"tR"
            )
            out += b"(K\x01(" + b"".join(number(n) for n in value.shape) + b"t"
            out += b"cnumpy\ndtype\n(" + text(b"u1") + b"K\x00K\x01tR(K\x03" + text(b"|") + b"NNN"
            out += number(-1) + number(-1) + b"K\x00tb\x89T" + struct.pack("<i", value.nbytes) + value.tobytes() + b"tb"
        else:
            out += b"](" + b"".join(text(v) if isinstance(v, bytes) else number(v) for v in value) + b"e"
    return out + b"u."


def python3_pickle(content):
    return pickle.dumps({k.encode(): v for k, v in content.items()}, protocol=2)


def cifar_files(name, dump=python3_pickle, counts=(6, 3)):
    """A data set of two classes in the official layout: file name -> content."""
    layout = datasets.CIFAR_LAYOUT[name]
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], counts)
    files = {layout.meta: dump({layout.class_names: [b"cat", b"dog"]})}
    for parts, of_split in ((layout.train, labels), (layout.test, np.array([1, 0, 1]))):
        for part, chunk in zip(parts, np.array_split(of_split, len(parts)), strict=True):
            pixels = rng.integers(0, 256, (len(chunk), 3072), dtype=np.uint8)
            files[part] = dump({"data": pixels, layout.labels: chunk.tolist()})
    return files


@pytest.fixture
def write(tmp_path):
    """Write the files of a set below a root of its own."""

    def written(name, files):
        folder = tmp_path / datasets.CIFAR_LAYOUT[name].folder
        folder.mkdir(exist_ok=True)
        for file, content in files.items():
            (folder / file).write_bytes(content)
        return tmp_path

    return written


@pytest.mark.parametrize("dump", [python2_pickle, python3_pickle])
@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_cifar_batches_of_either_python_are_read_in_order(write, name, dump):
    files = cifar_files(name, dump)
    root = write(name, files)
    samples = load(name, root=root)
    parts = [pickle.loads(cifar_files(name)[f], encoding="bytes") for f in datasets.CIFAR_LAYOUT[name].train]
    pixels = np.concatenate([part[b"data"] for part in parts])
    np.testing.assert_array_equal(samples.inputs.numpy().reshape(9, 3072), pixels)
    assert samples.labels.tolist() == [0] * 6 + [1] * 3
    assert samples.class_names == ("cat", "dog")
    assert samples.labels.dtype == np.int64


def test_the_test_split_knows_the_training_counts(write):
    samples = load("cifar10", root=write("cifar10", cifar_files("cifar10")), split="test")
    assert len(samples) == 3
    assert samples.class_counts.tolist() == [6, 3]


def test_folder_root_and_archive_hold_the_same_samples(write, tmp_path):
    files = cifar_files("cifar10")
    unpacked = load("cifar10", root=write("cifar10", files))
    inside = load("cifar10", root=tmp_path / "cifar-10-batches-py")
    archived = tmp_path / "archived"
    archived.mkdir()
    with tarfile.open(archived / "cifar-10-python.tar.gz", "w:gz") as archive:
        for file, content in files.items():
            member = tarfile.TarInfo(f"cifar-10-batches-py/{file}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    assert load("cifar10", root=archived).fingerprint == inside.fingerprint == unpacked.fingerprint


class Malicious:
    def __reduce__(self):
        return os.mkdir, ("was-here",)


def test_a_batch_that_wants_to_run_code_is_refused_and_does_not(write, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    root = write("cifar10", cifar_files("cifar10") | {"data_batch_2": pickle.dumps({b"data": Malicious()})})
    with pytest.raises(DataError, match=r"data_batch_2 is no CIFAR batch: it asks for posix.mkdir"):
        load("cifar10", root=root)
    assert not (tmp_path / "was-here").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"garbage", "data_batch_1 is no CIFAR batch"),
        (pickle.dumps([1, 2], protocol=2), "data_batch_1 is no CIFAR batch: it has no 'labels'"),
        (python3_pickle({"labels": [0], "data": np.zeros((1, 3072), dtype=np.float32)}), "pixels must be uint8"),
        (python3_pickle({"labels": [0], "data": [0]}), "it has no 'data'"),
        (
            python3_pickle({"labels": [0, 1], "data": np.zeros((1, 3072), dtype=np.uint8)}),
            "2 labels but pixels of",
        ),
        (python3_pickle({"labels": [0, 2], "data": np.zeros((2, 3072), dtype=np.uint8)}), "sample 1 has label 2"),
        (python3_pickle({"labels": [0.5], "data": np.zeros((1, 3072), dtype=np.uint8)}), "not a list of integers"),
        (python2_pickle({"labels": [0], "data": np.zeros((1, 3072), dtype=np.uint8)})[:-200], "no CIFAR batch"),
    ],
)
def test_a_broken_batch_is_refused_in_one_line(write, content, message):
    with pytest.raises(DataError, match=message) as caught:
        load("cifar10", root=write("cifar10", cifar_files("cifar10") | {"data_batch_1": content}))
    assert "\n" not in str(caught.value)


def test_a_missing_batch_is_named(write):
    files = cifar_files("cifar10")
    root = write("cifar10", files)
    (root / "cifar-10-batches-py" / "data_batch_3").unlink()
    with pytest.raises(DataError, match=r"cifar-10-batches-py lacks data_batch_3; unpack cifar-10-python.tar.gz again"):
        load("cifar10", root=root)


def test_a_broken_archive_is_refused(tmp_path):
    (tmp_path / "cifar-100-python.tar.gz").write_bytes(b"\x1f\x8bnot an archive")
    with pytest.raises(DataError, match=r"cifar100: cannot read .*cifar-100-python.tar.gz"):
        load("cifar100", root=tmp_path)


def test_missing_data_are_looked_for_by_name_and_place(tmp_path):
    with pytest.raises(DataError, match="cifar10 needs --data-root DIR, the folder that holds cifar-10-batches-py"):
        load("cifar10")
    with pytest.raises(DataError, match=r"--data-root .*/none is not a folder"):
        load("cifar10", root=tmp_path / "none")
    with pytest.raises(DataError, match=rf"neither cifar-10-batches-py/batches.meta nor cifar-10-.* is in {tmp_path}"):
        load("cifar10", root=tmp_path)


def test_a_long_tail_is_cut_from_the_training_split_only(write):
    root = write("cifar10", cifar_files("cifar10", counts=(6, 6)))
    train, test = (load("cifar10", root=root, imbalance=3, split=split) for split in ("train", "test"))
    assert np.bincount(train.labels).tolist() == [6, 2]
    assert len(test) == 3
    assert train.class_counts.tolist() == test.class_counts.tolist() == [6, 2]


def test_data_that_have_the_long_tail_asked_for_pass_unchanged(write):
    root = write("cifar10", cifar_files("cifar10", counts=(6, 3)))
    assert load("cifar10", root=root, imbalance=2).fingerprint == load("cifar10", root=root).fingerprint


@pytest.mark.parametrize("split", ["train", "test"])
def test_too_few_samples_for_a_long_tail_name_class_and_counts(write, split):
    root = write("cifar10", cifar_files("cifar10", counts=(6, 3)))
    message = r"class 1 \(dog\) has 3 training samples, --imbalance 1.5 wants 4: drop --imbalance"
    with pytest.raises(DataError, match=message):
        load("cifar10", root=root, imbalance=1.5, split=split)


@pytest.mark.slow
def test_the_real_cifar10_long_tail_has_the_counts_of_the_literature(cifar_root):
    train, test = load("cifar10", root=cifar_root), load("cifar10", root=cifar_root, split="test")
    assert np.bincount(train.labels).tolist() == PAPER_COUNTS
    assert len(train) == 12406
    assert np.bincount(test.labels).tolist() == [1000] * 10
    assert test.class_counts.tolist() == PAPER_COUNTS
    assert train.class_names[:2] == ("airplane", "automobile")
    assert load("cifar10", root=cifar_root, imbalance=100).fingerprint == train.fingerprint
    inputs, _ = test.batch(np.arange(10000))
    # normalised pixels have a mean near 0 and a spread near 1 (the stds are means over images: 0.2 against 0.25)
    assert inputs.mean().abs() < 0.05
    assert 1.1 < inputs.std() < 1.4


# Image files ----------------------------------------------------------------------------------------------------


@pytest.fixture
def pictures(tmp_path):
    """Three training and two test images of two classes, of different sizes and modes."""
    rng = np.random.default_rng(0)
    shapes = {
        "train/cat/a.png": (30, 20, 3),
        "train/cat/b.jpg": (20, 30, 3),
        "train/dog/c.JPEG": (16, 16),
        "test/dog/d.png": (8, 64, 4),
        "test/cat/e.png": (16, 16, 3),
        "train/cat/notes.txt": None,
    }
    for path, shape in shapes.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        if shape is None:
            (tmp_path / path).write_text("not an image")
        else:
            Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)).save(tmp_path / path)
    (tmp_path / "train.txt").write_text("train/cat/a.png 0\ntrain/cat/b.jpg 0\n\ntrain/dog/c.JPEG 1\n")
    (tmp_path / "test.txt").write_text("test/dog/d.png 1\ntest/cat/e.png 0\n")
    return tmp_path


def test_a_folder_and_its_list_hold_the_same_images(pictures):
    listed = load("image-list", root=pictures, train_list="train.txt", image_size=14)
    folder = load("image-folder", root=pictures, image_size=14)
    index = np.arange(3)
    assert torch.equal(listed.batch(index)[0], folder.batch(index)[0])
    assert listed.labels.tolist() == folder.labels.tolist() == [0, 0, 1]
    assert folder.class_names == ("cat", "dog")
    assert listed.fingerprint == folder.fingerprint


def test_images_are_squares_from_the_centre_with_imagenet_statistics(pictures):
    """A 16 x 16 image at size 14 is not resized (14 * 256 / 224 = 16) and loses a pixel on each side."""
    samples = load("image-folder", root=pictures, split="test", image_size=14)
    found, labels = samples.batch(np.array([0]), dtype=torch.float64)
    pixels = np.asarray(Image.open(pictures / "test/cat/e.png"))[1:-1, 1:-1] / 255
    expected = (pixels - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    np.testing.assert_allclose(found[0].numpy(), expected.transpose(2, 0, 1), rtol=1e-12)
    assert labels.tolist() == [0]


@pytest.mark.parametrize("shape", [(16, 32, 3), (32, 16, 3)], ids=["wide", "tall"])
def test_the_square_lies_in_the_middle_of_the_longer_side(tmp_path, shape):
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    (tmp_path / "train" / "a").mkdir(parents=True)
    Image.fromarray(pixels).save(tmp_path / "train" / "a" / "x.png")
    image, _ = load("image-folder", root=tmp_path, image_size=14).dataset[0]
    top, left = (shape[0] - 14) // 2, (shape[1] - 14) // 2
    np.testing.assert_array_equal(image.numpy().transpose(1, 2, 0), pixels[top : top + 14, left : left + 14])


def test_every_shape_and_mode_becomes_an_rgb_square(pictures):
    samples = load("image-folder", root=pictures, split="test")
    assert samples.batch(np.array([1, 0]))[0].shape == (2, 3, 224, 224)


def test_the_test_list_counts_the_training_list(pictures):
    samples = load("image-list", root=pictures, split="test", train_list="train.txt", test_list="test.txt")
    assert samples.labels.tolist() == [1, 0]
    assert samples.class_counts.tolist() == [2, 1]
    again = load(**samples.options)
    assert again.fingerprint == samples.fingerprint


def test_a_selection_of_files_has_its_own_fingerprint(pictures):
    samples = load("image-folder", root=pictures, image_size=14)
    chosen = samples.select([2, 0])
    assert torch.equal(chosen.batch(np.array([0, 1]))[0], samples.batch(np.array([2, 0]))[0])
    assert chosen.fingerprint != samples.fingerprint
    assert load("image-folder", root=pictures, image_size=15).fingerprint != samples.fingerprint


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({}, DataError, "image-list needs --train-list FILE with a line 'path label'"),
        ({"train_list": "none.txt"}, DataError, "--train-list none.txt is neither in the current folder nor in"),
        ({"train_list": "train.txt", "split": "test"}, DataError, "image-list needs --test-list"),
        ({"train_list": "train.txt", "split": "val"}, InputError, "--split must be train or test, got 'val'"),
        ({"train_list": "train.txt", "image_size": 0}, InputError, "--image-size must be at least 1 pixel, got 0"),
        ({"train_list": "bad.txt"}, DataError, r"bad.txt, line 2: expected 'path label', got 'x.png dog'"),
        ({"train_list": "empty.txt"}, DataError, "empty.txt lists no image"),
        (
            {"train_list": "train.txt", "test_list": "other.txt", "split": "test"},
            DataError,
            "other.txt: sample 0 has label 7, classes are 0 to 1",
        ),
    ],
)
def test_a_list_that_does_not_fit_is_refused(pictures, options, error, message):
    (pictures / "bad.txt").write_text("a.png 0\nx.png dog\n")
    (pictures / "empty.txt").write_text("\n")
    (pictures / "other.txt").write_text("a.png 7\n")
    with pytest.raises(error, match=message):
        load("image-list", root=pictures, **options)


def test_a_folder_that_is_not_there_names_those_that_are(pictures):
    with pytest.raises(DataError, match=r"val does not exist; .* holds test, train"):
        load("image-folder", root=pictures, split="val")
    (pictures / "val").mkdir()
    with pytest.raises(DataError, match=r"val holds no images; expected .*/val/CLASS/IMAGE.jpg"):
        load("image-folder", root=pictures, split="val")
    (pictures / "val" / "fox").mkdir()
    Image.new("RGB", (4, 4)).save(pictures / "val" / "fox" / "x.png")
    with pytest.raises(DataError, match="there is no training class 'fox'"):
        load("image-folder", root=pictures, split="val")


def test_an_image_that_cannot_be_read_is_named(pictures):
    samples = load("image-folder", root=pictures)
    (pictures / "train/cat/a.png").write_bytes(b"not a png")
    with pytest.raises(DataError, match=r"cannot decode .*/train/cat/a.png"):
        samples.batch(np.array([0]))
    (pictures / "train/cat/a.png").unlink()
    with pytest.raises(DataError, match=r"a.png.*is --data-root right"):
        _ = samples.fingerprint


# Users' own -----------------------------------------------------------------------------------------------------


class Items(Dataset):
    """Hands out what it is given."""

    def __init__(self, items, **attributes):
        self.items = items
        vars(self).update(attributes)

    def __len__(self):
        return len(self.items)

    def __getitem__(self, i):
        return self.items[i]


class Stream(IterableDataset):
    def __iter__(self):
        yield torch.zeros(1), 0


class Noisy(Items):
    def __getitem__(self, i):
        return torch.rand(2), 0


VECTORS = [torch.tensor([float(i), 0.5]) for i in range(5)]
VECTOR_LABELS = [1, 0, 0, 2, 0]
PAIRS = list(zip(VECTORS, VECTOR_LABELS, strict=True))


@pytest.mark.parametrize(
    "dataset",
    [
        PAIRS,
        Items(PAIRS),
        Items([(v.numpy(), np.int64(c)) for v, c in PAIRS]),
        Items([[v, torch.tensor(c)] for v, c in PAIRS]),
        TensorDataset(torch.stack(VECTORS), torch.tensor(VECTOR_LABELS)),
        (torch.stack(VECTORS), torch.tensor(VECTOR_LABELS, dtype=torch.int32)),
        (torch.stack(VECTORS).numpy(), np.array(VECTOR_LABELS, dtype=np.uint8)),
        Subset(Items([(torch.zeros(2), 9), *PAIRS], targets=[9, *VECTOR_LABELS]), range(1, 6)),
    ],
    ids=["list", "tensors", "arrays", "lists", "TensorDataset", "tuple", "tuple of arrays", "Subset"],
)
def test_every_form_of_the_same_data_gives_the_same_samples(dataset):
    samples = from_dataset(dataset)
    assert torch.equal(samples.inputs, torch.stack(VECTORS))
    assert samples.labels.tolist() == VECTOR_LABELS
    assert samples.labels.dtype == np.int64
    assert samples.class_names == ("0", "1", "2")
    assert samples.class_counts.tolist() == [3, 1, 1]


def test_tokens_stay_integers():
    samples = from_dataset((torch.arange(6).view(3, 2), torch.tensor([0, 1, 1])))
    inputs, _ = samples.batch(np.array([1]), dtype=torch.float64)
    assert (inputs.tolist(), inputs.dtype) == ([[2, 3]], torch.int64)


def test_the_datas_own_class_names_and_training_counts_are_taken():
    samples = from_dataset(Items(PAIRS, classes=["x", "y", "z", "w"], class_counts=[70, 8, 2, 0]))
    assert samples.class_names == ("x", "y", "z", "w")
    assert samples.class_counts.tolist() == [70, 8, 2, 0]


def test_arguments_win_over_the_datas_own_names():
    samples = from_dataset(Items(PAIRS, classes=["x", "y", "z"]), class_names=["a", "b", "c"])
    assert samples.class_names == ("a", "b", "c")


@pytest.fixture
def small_memory(monkeypatch):
    monkeypatch.setattr(datasets, "IN_MEMORY", 1)


@pytest.mark.usefixtures("small_memory")
def test_large_data_are_read_in_batches():
    samples = from_dataset(Items(PAIRS))
    assert samples.inputs is None
    inputs, labels = samples.batch(np.array([3, 0]), dtype=torch.float64)
    assert inputs.tolist() == [[3.0, 0.5], [0.0, 0.5]]
    assert labels.tolist() == [2, 1]
    chosen = samples.select([4, 3]).select([1])
    assert chosen.batch(np.array([0]))[0].tolist() == [[3.0, 0.5]]
    assert chosen.fingerprint != samples.fingerprint
    assert from_dataset(Items(PAIRS)).fingerprint == samples.fingerprint


class Counting(Items):
    reads = 0

    def __getitem__(self, i):
        self.reads += 1
        return self.items[i]


@pytest.mark.usefixtures("small_memory")
@pytest.mark.parametrize("attribute", ["targets", "labels"])
def test_declared_labels_of_large_data_spare_reading_them_all(attribute):
    pairs = PAIRS * 40
    dataset = Counting(pairs, **{attribute: torch.tensor(VECTOR_LABELS * 40)})
    assert from_dataset(dataset).labels.tolist() == VECTOR_LABELS * 40
    assert dataset.reads < 30


@pytest.mark.usefixtures("small_memory")
@pytest.mark.parametrize(
    "declared", [[0, 1, 1, 2, 1], [1, 0], ["b", "a", "a", "c", "a"], 3], ids=["mapped", "short", "names", "number"]
)
def test_declared_labels_that_the_items_contradict_are_not_used(declared):
    assert from_dataset(Items(PAIRS, targets=declared)).labels.tolist() == VECTOR_LABELS


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        ([], "the data set is empty"),
        ((torch.zeros(0, 2), torch.zeros(0, dtype=torch.int64)), "the data set is empty"),
        (iter(PAIRS), "list_iterator cannot be read in any order"),
        (Stream(), r"Stream cannot be read in any order.*__len__ and __getitem__"),
        (DataLoader(Items(PAIRS)), r"DataLoader cannot be read in any order.*of a DataLoader its .dataset"),
        (Noisy([0] * 3), "sample 0 differs each time it is read: switch the data set's augmentation off"),
        ([VECTORS[0]], r"sample 0 must be a pair \(input, label\), got Tensor"),
        ([*PAIRS, (1, 2, 3)], r"sample 5 must be a pair \(input, label\), got tuple of 3"),
        ([*PAIRS, (VECTORS[0], 0.5)], "label of sample 5 must be an integer, got 0.5"),
        ([(VECTORS[0], torch.zeros(3))], r"label of sample 0 must be an integer, got a tensor \(3,\)"),
        ([*PAIRS, (VECTORS[0], -1)], "dataset: sample 5 has label -1, classes are 0 to 2"),
        ([(Image.new("RGB", (2, 2)), 0)], "input of sample 0 must be a tensor or an array of numbers, got Image"),
        ([*PAIRS, (torch.zeros(3), 0)], r"sample 0 is torch.float32 \(2,\), sample 5 is torch.float32 \(3,\)"),
        (Items({1: 2}), "the data set cannot be read: KeyError: 0"),
        ((torch.zeros(3, 2), torch.zeros(2, dtype=torch.int64)), r"2 labels for inputs of shape \(3, 2\)"),
        ((torch.zeros(3, 2), torch.zeros(3)), "labels must be a vector of integers, got torch.float32"),
        (TensorDataset(torch.zeros(3), torch.zeros(3), torch.zeros(3)), "has two, inputs and labels; got 3"),
        (Items(PAIRS, classes=["x", "y"]), "sample 3 has label 2, classes are 0 to 1"),
        (Items(PAIRS, classes=3), "classes of dataset must be a list of names, got 3"),
        (Items(PAIRS, class_counts=[1.5, 1, 1]), "class_counts of dataset must be one count per class"),
        (Items(PAIRS, classes="xyz"), "classes of dataset must be a list of names, got 'xyz'"),
        (Items(PAIRS, classes=["x"] * 3, class_counts=[1] * 4), "3 class names but 4 class counts"),
    ],
)
def test_data_that_cannot_be_used_are_refused_in_one_line(dataset, message):
    with pytest.raises(DataError, match=message) as caught:
        from_dataset(dataset)
    assert "\n" not in str(caught.value)


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
    with pytest.raises(InputError, match="--split test: own_data:single has no argument 'split'"):
        load(f"{own}:single", split="test")


def test_an_error_in_a_users_callable_is_quoted(own):
    with pytest.raises(InputError, match="--dataset own_data:broken failed with ValueError: no train"):
        load(f"{own}:broken")


# Options --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("mnist", {}, "no data set 'mnist'; choose from digits-lt, cifar10"),
        ("digits-lt", {"split": "val"}, "--split must be train or test, got 'val'"),
        ("digits-lt", {"image_size": 32}, "--image-size 32 does not apply to digits-lt"),
        ("image-folder", {"train_list": "x"}, "--train-list x does not apply to image-folder"),
        ("digits-lt", {"imbalance_type": "cliff"}, "must be exp or step, got 'cliff'"),
        ("digits-lt", {"seed": -1}, "--seed must not be negative, got -1"),
    ],
)
def test_an_option_that_does_not_fit_is_refused(name, options, message):
    with pytest.raises(InputError, match=message):
        load(name, **options)
