"""Image files: lists and folders hold the same, a square from the centre is what the network sees."""

from contextlib import contextmanager

import numpy as np
import pytest
import torch
from PIL import Image
from refusals import refused

from landscape.data import images
from landscape.data.datasets import load
from landscape.errors import DataError, InputError


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


def test_training_images_state_where_the_test_images_are_if_they_are_there(pictures):
    lists = {"train_list": "train.txt", "test_list": "test.txt"}
    training = load("image-list", root=pictures, **lists)
    assert load(**{**training.options, "split": "test"}).labels.tolist() == [1, 0]
    (pictures / "test.txt").unlink()
    assert load("image-list", root=pictures, **lists).fingerprint == training.fingerprint


@pytest.mark.parametrize(
    ("shape", "longer"), [((103, 206), 512), ((309, 103), 768), ((107, 214), 512), ((100, 333), 852)]
)
def test_the_longer_side_is_the_whole_number_below_the_exact_length(tmp_path, shape, longer):
    Image.new("RGB", shape).save(tmp_path / "x.png")
    assert sorted(images.resized(tmp_path / "x.png", 224).size) == [256, longer]


def test_a_selection_of_files_has_its_own_fingerprint(pictures):
    samples = load("image-folder", root=pictures, image_size=14)
    chosen = samples.select([2, 0])
    assert torch.equal(chosen.batch(np.array([0, 1]))[0], samples.batch(np.array([2, 0]))[0])
    assert chosen.fingerprint != samples.fingerprint
    assert load("image-folder", root=pictures, image_size=15).fingerprint != samples.fingerprint


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({}, DataError, ("image-list", "train_list", "path label")),
        ({"train_list": "none.txt"}, DataError, ("train_list", "none.txt")),
        ({"train_list": "train.txt", "split": "test"}, DataError, ("image-list", "test_list")),
        ({"train_list": "train.txt", "split": "val"}, InputError, ("split", "val")),
        ({"train_list": "train.txt", "image_size": 0}, InputError, ("image_size", 0)),
        ({"train_list": "bad.txt"}, DataError, ("bad.txt", 2, "path label", "x.png dog")),
        ({"train_list": "empty.txt"}, DataError, ("empty.txt",)),
        (
            {"train_list": "train.txt", "test_list": "other.txt", "split": "test"},
            DataError,
            ("other.txt", 0, 7, 1),
        ),
    ],
)
def test_a_list_that_does_not_fit_is_refused(pictures, options, error, message):
    (pictures / "bad.txt").write_text("a.png 0\nx.png dog\n")
    (pictures / "empty.txt").write_text("\n")
    (pictures / "other.txt").write_text("a.png 7\n")
    with refused(error, *message):
        load("image-list", root=pictures, **options)


def test_a_folder_that_is_not_there_names_those_that_are(pictures):
    with pytest.raises(DataError, match=r"val does not exist; .* holds test, train"):
        load("image-folder", root=pictures, split="val")
    (pictures / "val").mkdir()
    with refused(DataError, "val/CLASS/IMAGE.jpg"):
        load("image-folder", root=pictures, split="val")
    (pictures / "val" / "fox").mkdir()
    Image.new("RGB", (4, 4)).save(pictures / "val" / "fox" / "x.png")
    with refused(DataError, "fox"):
        load("image-folder", root=pictures, split="val")


FILES = ["cat/a.png", "cat/b.jpg", "dog/c.JPEG"]


@contextmanager
def only(pictures, *kept):
    """Make a `with` block in which the files of these samples are there and no others."""
    away = [pictures / "train" / FILES[i] for i in range(3) if i not in kept]
    for path in away:
        path.rename(path.with_suffix(".away"))
    try:
        yield
    finally:
        for path in away:
            path.with_suffix(".away").rename(path)


def opened_again(pictures, samples):
    """The samples whose files are read when they are asked for."""
    found = []
    for i in range(3):
        with only(pictures):
            try:
                samples.batch(np.array([i]))
            except DataError:
                found.append(i)
    return found


def test_an_image_is_decoded_once(pictures):
    samples = load("image-folder", root=pictures, image_size=14)
    first, _ = samples.batch(np.array([0, 1]))
    with only(pictures, 2):
        again, _ = samples.batch(np.array([1, 2, 0, 0]))
    assert torch.equal(again[[3, 0]], first)
    with only(pictures):
        chosen, labels = samples.select([2, 0]).batch(np.array([0, 1]))
    assert torch.equal(chosen, again[[1, 2]])
    assert labels.tolist() == [1, 0]


@pytest.fixture(params=[0, 1, 2])
def n_kept(request, monkeypatch):
    """How many images of side 14 are kept."""
    monkeypatch.setattr(images, "KEPT_BYTES", request.param * 3 * 14 * 14)
    return request.param


def test_images_beyond_the_byte_budget_are_decoded_again(pictures, n_kept):
    samples = load("image-folder", root=pictures, image_size=14)
    first, _ = samples.batch(np.arange(3))
    assert opened_again(pictures, samples) == [[0, 1, 2], [0, 1], [0]][n_kept]
    again, _ = samples.batch(np.array([2, 1, 0]))
    assert torch.equal(again.flip(0), first)


@pytest.mark.parametrize("n_kept", [2], indirect=True)
def test_a_part_within_the_budget_is_kept_whichever_came_before_it(pictures, n_kept):
    samples = load("image-folder", root=pictures, image_size=14)
    samples.batch(np.arange(3))
    samples.batch(np.arange(n_kept))
    assert opened_again(pictures, samples) == list(range(n_kept, 3))


def test_an_image_that_cannot_be_read_is_named(pictures):
    samples = load("image-folder", root=pictures)
    (pictures / "train/cat/a.png").write_bytes(b"not a png")
    with refused(DataError, "train/cat/a.png"):
        samples.batch(np.array([0]))
    (pictures / "train/cat/a.png").unlink()
    with refused(DataError, "a.png", "data_root"):
        _ = samples.fingerprint


LISTS = {
    "an identifier": (b"train/cat/a.png 0\ntrain/cat/b.jpg 2000000000\n", "sample 1 has label 2000000000, of 2"),
    "a label of 23 digits": (b"train/cat/a.png " + b"9" * 23 + b"\n", "line 1: expected 'path label'"),
    "a label of 5,000 digits": (b"train/cat/a.png " + b"9" * 5000 + b"\n", "line 1: expected 'path label'"),
    "a name in Latin-1": (b"train/cat/a.png 0\ncaf\xe9.png 1\n", r"list.txt, line 2, is not UTF-8 \(byte 0xe9\)"),
    "NUL in a name": (b"train/cat/a\0.png 0\n", "list.txt, line 1, holds a NUL byte"),
}


@pytest.mark.parametrize("what", LISTS)
def test_a_damaged_list_is_refused_in_a_line_that_names_it(pictures, what):
    content, message = LISTS[what]
    (pictures / "list.txt").write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        load("image-list", root=pictures, train_list="list.txt", image_size=14)
    assert len(str(caught.value)) < 500


def test_a_list_with_a_byte_order_mark_is_read(pictures):
    (pictures / "list.txt").write_bytes(b"\xef\xbb\xbf" + (pictures / "train.txt").read_bytes())
    marked = load("image-list", root=pictures, train_list="list.txt", image_size=14)
    assert marked.fingerprint == load("image-list", root=pictures, train_list="train.txt", image_size=14).fingerprint


@pytest.mark.parametrize("size", [(1, 10_000), (65_000, 1)])
def test_a_thin_image_is_refused_before_it_is_resized(tmp_path, size):
    Image.new("RGB", size).save(tmp_path / "thin.png")
    with refused(DataError, "thin.png", "ClaimError"):
        images.resized(tmp_path / "thin.png", 224)


def test_an_image_of_more_pixels_than_there_is_room_for_is_refused(tmp_path, monkeypatch):
    Image.new("RGB", (64, 64)).save(tmp_path / "large.png")
    monkeypatch.setattr(images, "LARGEST", 64 * 64 * 4 - 1)
    with refused(DataError, "large.png", "ClaimError", "16.4 kB"):
        images.resized(tmp_path / "large.png", 16)
