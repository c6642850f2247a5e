"""Users' data arrive unchanged, whatever form they have, and what cannot be used is refused in one line."""

import numpy as np
import pytest
import torch
from PIL import Image
from refusals import refused
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset

from landscape.data.datasets import from_dataset
from landscape.errors import DataError


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


@pytest.mark.usefixtures("read_late")
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


@pytest.mark.usefixtures("read_late")
@pytest.mark.parametrize("attribute", ["targets", "labels"])
def test_declared_labels_of_large_data_spare_reading_them_all(attribute):
    pairs = PAIRS * 40
    dataset = Counting(pairs, **{attribute: torch.tensor(VECTOR_LABELS * 40)})
    assert from_dataset(dataset).labels.tolist() == VECTOR_LABELS * 40
    assert dataset.reads < 40


@pytest.mark.usefixtures("read_late")
@pytest.mark.parametrize(
    "declared", [[0, 1, 1, 2, 1], [1, 0], ["b", "a", "a", "c", "a"], 3], ids=["mapped", "short", "names", "number"]
)
def test_declared_labels_that_the_items_contradict_are_not_used(declared):
    assert from_dataset(Items(PAIRS, targets=declared)).labels.tolist() == VECTOR_LABELS


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        ([], ("empty",)),
        ((torch.zeros(0, 2), torch.zeros(0, dtype=torch.int64)), ("empty",)),
        (iter(PAIRS), ("list_iterator",)),
        (Stream(), ("Stream", "__len__", "__getitem__")),
        (DataLoader(Items(PAIRS)), ("DataLoader",)),
        (Noisy([0] * 3), (0,)),
        ([VECTORS[0]], (0,)),
        ([*PAIRS, (1, 2, 3)], (5, 3)),
        ([*PAIRS, (VECTORS[0], 0.5)], (5, 0.5)),
        ([(VECTORS[0], torch.zeros(3))], (0, 3)),
        ([*PAIRS, (VECTORS[0], -1)], (5, -1, 0, 2)),
        ([(Image.new("RGB", (2, 2)), 0)], (0,)),
        ([*PAIRS, (torch.zeros(3), 0)], (0, "torch.float32", 2, 5, 3)),
        (Items({1: 2}), ("KeyError", 0)),
        ((torch.zeros(3, 2), torch.zeros(2, dtype=torch.int64)), (2, 3)),
        ((torch.zeros(3, 2), torch.zeros(3)), ("labels", "torch.float32")),
        (TensorDataset(torch.zeros(3), torch.zeros(3), torch.zeros(3)), (3,)),
        (Items(PAIRS, classes=["x", "y"]), (3, 2, 0, 1)),
        (Items(PAIRS, classes=3), ("dataset", 3)),
        (Items(PAIRS, class_counts=[1.5, 1, 1]), ("class_counts", "dataset")),
        (Items(PAIRS, classes="xyz"), ("dataset", "xyz")),
        (Items(PAIRS, classes=["x"] * 3, class_counts=[1] * 4), (3, 4)),
    ],
)
def test_data_that_cannot_be_used_are_refused_in_one_line(dataset, message):
    with refused(DataError, *message) as caught:
        from_dataset(dataset)
    assert "\n" not in str(caught.value)
