"""Training batches: what the analysis sees where nothing is augmented, the same from any number of workers."""

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image
from refusals import refused

from landscape.data.datasets import CIFAR, Samples, from_dataset, load
from landscape.errors import DataError, InputError
from trainers.batches import Batches

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _seeded():
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        yield


def samples_of(inputs, labels=None, stats=CIFAR):
    labels = np.arange(len(inputs)) % 3 if labels is None else np.asarray(labels)
    n_classes = int(labels.max()) + 1
    return Samples(
        name="made",
        split="train",
        inputs=inputs,
        dataset=None,
        labels=labels,
        class_names=tuple(str(c) for c in range(n_classes)),
        class_counts=np.bincount(labels, minlength=n_classes),
        mean=stats and stats[0],
        std=stats and stats[1],
    )


@pytest.fixture
def pictures():
    pixels = torch.randint(256, (11, 3, 8, 8), generator=torch.Generator().manual_seed(0))
    return samples_of(pixels.to(torch.uint8))


@pytest.fixture
def files(tmp_path):
    """Eleven images of three classes and many shapes."""
    rng = np.random.default_rng(0)
    for i in range(11):
        folder = tmp_path / "train" / "abc"[i % 3]
        folder.mkdir(parents=True, exist_ok=True)
        shape = (int(rng.integers(9, 30)), int(rng.integers(9, 30)), 3)
        Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)).save(folder / f"{i}.png")
    return tmp_path


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_none_is_the_batch_of_the_analysis_bit_for_bit(pictures, dtype):
    batches = Batches(pictures, ["none", "crop", "none"], CPU, dtype)
    indices = torch.tensor([3, 0, 9, 3])
    (first, cropped, again), labels = batches.get(indices)
    expected, expected_labels = pictures.batch(indices, dtype=dtype)
    assert torch.equal(first, expected)
    assert torch.equal(again, expected)
    assert torch.equal(labels, expected_labels)
    assert labels.dtype == torch.int64
    assert cropped.dtype == dtype
    assert not torch.equal(cropped, expected)
    assert len(batches) == 11
    assert batches.class_counts.tolist() == [4, 4, 3]


@pytest.mark.parametrize("size", range(7, 20))
def test_none_of_image_files_is_the_batch_of_the_analysis_bit_for_bit(files, size):
    """The square that the workers hand out is larger; its middle is the analysis's, whatever has to be rounded."""
    samples = load("image-folder", root=files, image_size=size)
    indices = torch.arange(11)
    (found,), labels = Batches(samples, ["none"], CPU).get(indices)
    expected, expected_labels = samples.batch(indices)
    assert torch.equal(found, expected)
    assert torch.equal(labels, expected_labels)


def test_crops_of_image_files_see_the_margin_that_the_analysis_cuts_off(tmp_path):
    """White in the middle, black around: at size 14 of 16 pixels, each is white but for a frame of one pixel."""
    (tmp_path / "train" / "a").mkdir(parents=True)
    pixels = np.zeros((16, 16, 3), dtype=np.uint8)
    pixels[1:-1, 1:-1] = 255
    Image.fromarray(pixels).save(tmp_path / "train" / "a" / "x.png")
    samples = load("image-folder", root=tmp_path, image_size=14, normalize="none")
    (middle, cropped), _ = Batches(samples, ["none", "imagenet"], CPU).get(torch.zeros(50, dtype=torch.int64))
    assert (middle == 1).all()
    assert (cropped.flatten(1).amin(dim=1) < 0.6 * cropped.flatten(1).amax(dim=1)).any()
    assert cropped.shape == (50, 3, 14, 14)


@pytest.mark.parametrize("views", [["none"], ["imagenet", "crop-flip", "none"]])
def test_the_number_of_workers_does_not_matter(files, views):
    samples = load("image-folder", root=files, image_size=7)
    order = torch.randperm(11)
    state = torch.get_rng_state()
    epochs, states = [], []
    for workers in (0, 2):
        torch.set_rng_state(state)
        epochs.append(list(Batches(samples, views, CPU, workers=workers).epoch(order.tensor_split(4))))
        states.append(torch.get_rng_state())
    assert torch.equal(*states)
    assert torch.equal(states[0], state) == (views == ["none"])
    assert [len(labels) for _, labels, _ in epochs[0]] == [3, 3, 3, 2]
    for (views_0, labels_0, indices_0), (views_2, labels_2, indices_2) in zip(*epochs, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(views_0, views_2, strict=True))
        assert torch.equal(labels_0, labels_2)
        assert torch.equal(indices_0, indices_2)
        assert torch.equal(labels_0, torch.from_numpy(samples.labels)[indices_0])


def test_an_epoch_hands_out_the_order_in_pieces(pictures):
    order = torch.randperm(11)[:10]
    found = list(Batches(pictures, ["none"], CPU).epoch(order.tensor_split(3)))
    assert [len(indices) for *_, indices in found] == [4, 3, 3]
    assert torch.equal(torch.cat([indices for *_, indices in found]), order)
    for (view,), labels, indices in found:
        expected, expected_labels = pictures.batch(indices)
        assert torch.equal(view, expected)
        assert torch.equal(labels, expected_labels)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "inputs",
    [torch.rand(5, 7), torch.rand(5, 3, 8, 8), torch.arange(15).view(5, 3), torch.zeros(5, 3, 8, 9, dtype=torch.uint8)],
    ids=["vectors", "floats", "tokens", "bytes"],
)
def test_inputs_of_any_kind_are_handed_out_as_the_analysis_does(inputs, dtype):
    samples = from_dataset((inputs, torch.arange(5)))
    (found,), _ = Batches(samples, ["none"], CPU, dtype).get(torch.tensor([4, 1]))
    expected, _ = samples.batch(torch.tensor([4, 1]), dtype=dtype)
    assert found.dtype == expected.dtype
    assert torch.equal(found, expected)
    with refused(InputError, "none", augment="crop"):
        Batches(samples, ["none", "crop"], CPU)


def test_images_that_are_not_square_need_no_augmentation(pictures):
    wide = dataclasses.replace(pictures, inputs=pictures.inputs[:, :, :6])
    (found,), _ = Batches(wide, ["none"], CPU).get(torch.arange(4))
    assert torch.equal(found, wide.batch(torch.arange(4))[0])


class Users:
    """A map-style data set of someone else's."""

    def __init__(self, pixels, broken=None):
        self.pixels, self.broken = pixels, broken

    def __len__(self):
        return len(self.pixels)

    def __getitem__(self, i):
        if i == self.broken:
            raise RuntimeError("the disk\nis gone")
        return self.pixels[i], int(i) % 3


@pytest.mark.usefixtures("read_late")
@pytest.mark.parametrize("workers", [0, 2])
def test_users_data_that_do_not_fit_in_memory_are_read_by_the_workers(pictures, workers):
    samples = from_dataset(Users(pictures.inputs))
    assert samples.inputs is None
    with refused(InputError, augment="crop"):
        Batches(samples, ["crop"], CPU)
    samples = dataclasses.replace(samples, mean=CIFAR[0], std=CIFAR[1])
    for (plain, cropped), labels, indices in Batches(samples, ["none", "crop"], CPU, workers=workers).epoch(
        torch.randperm(11).tensor_split(2)
    ):
        assert torch.equal(plain, pictures.batch(indices)[0])
        assert torch.equal(labels, indices % 3)
        assert cropped.shape == plain.shape


@pytest.mark.usefixtures("read_late")
@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_of_users_data_is_one_line(pictures, workers):
    samples = from_dataset(Users(pictures.inputs))
    samples.dataset.broken = 10
    with pytest.raises(DataError) as caught:
        list(Batches(samples, ["none"], CPU, workers=workers).epoch(torch.arange(11).tensor_split(3)))
    assert str(caught.value) == "the data set cannot be read: RuntimeError: the disk is gone"


@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_image_is_named_in_one_line(files, workers):
    samples = load("image-folder", root=files, image_size=7)
    path = files / "train" / "b" / "4.png"
    path.write_bytes(path.read_bytes()[:60])
    batches = Batches(samples, ["imagenet"], CPU, workers=workers)
    with pytest.raises(DataError) as caught:
        list(batches.epoch(torch.arange(11).tensor_split(3)))
    assert str(caught.value).startswith(f"cannot decode {path}: ")
    assert "\n" not in str(caught.value)
    with pytest.raises(DataError, match="cannot decode"):
        batches.get(torch.arange(11))


@pytest.mark.parametrize(
    ("views", "workers", "message"),
    [
        ([], 0, ("view",)),
        (["none"], -1, ("workers", -1)),
        (["cutmix"], 0, ("cutmix",)),
    ],
)
def test_what_does_not_fit_is_refused(pictures, views, workers, message):
    with refused(InputError, *message):
        Batches(pictures, views, CPU, workers=workers)
