"""Data of any structure: what is taken of loaders and items, what is left out, and what is refused."""

import numpy as np
import pytest
import torch
from refusals import refused
from task_cases import LONG, padded
from torch import nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

import landscape as ls
from landscape.data import loaders, records, taking
from landscape.errors import DataError, InputError

X = torch.arange(20.0).reshape(10, 2)
Y = torch.arange(10) % 3


def read(data, **options):
    return records.read(loaders.opened(data), **options)


def test_a_loader_gives_its_items_in_their_order_whatever_it_does_itself():
    plain = TensorDataset(X, Y)
    for loader, note in (
        (DataLoader(plain, batch_size=4, shuffle=True, drop_last=True), "shuffling is undone"),
        (DataLoader(plain, batch_size=4, drop_last=True), "drop_last is undone"),
        (
            DataLoader(plain, batch_size=4, sampler=WeightedRandomSampler([1.0] * 10, 30)),
            "WeightedRandomSampler is undone",
        ),
        (DataLoader(plain, batch_size=5), None),
    ):
        for found in (read(loader), taking.taken(loader)):
            inputs, targets = found.batch(np.arange(10))
            assert torch.equal(inputs, X)
            assert torch.equal(targets, Y)
            assert any(note in n for n in found.notes) if note else not found.notes
    objective = ls.make_objective(nn.Linear(2, 3), DataLoader(plain, batch_size=4, drop_last=True))
    assert objective.batch_size == 4
    assert objective.counts.tolist() == [10]


@pytest.mark.parametrize(
    ("options", "chosen"),
    [
        ({"sampler": SubsetRandomSampler([7, 2, 5])}, [2, 5, 7]),
        ({"sampler": [7, 2, 5]}, [2, 5, 7]),
        ({"sampler": torch.tensor([7, 2, -1, 2])}, [2, 2, 7, 9]),
        ({"sampler": range(4), "batch_size": 3, "drop_last": True}, [0, 1, 2, 3]),
        ({"sampler": SequentialSampler(range(4))}, [0, 1, 2, 3]),
        ({"sampler": RandomSampler(range(4))}, [0, 1, 2, 3]),
        ({"batch_sampler": [[5, 1], [3]]}, [1, 3, 5]),
        ({"batch_sampler": BatchSampler(SubsetRandomSampler([6, 1]), 1, drop_last=False)}, [1, 6]),
    ],
)
@pytest.mark.parametrize("targets", [Y, Y.double()])
def test_a_sampler_of_fixed_positions_chooses_the_samples(targets, options, chosen):
    found = taking.taken(DataLoader(TensorDataset(X, targets), **options))
    inputs, taken = found.batch(np.arange(len(found)))
    assert torch.equal(inputs, X[chosen])
    assert torch.equal(taken, targets[chosen])
    assert found.notes[0] == f"the sampler's {len(chosen)} samples are used, in ascending order"
    assert len(found.notes) == 1 + ("drop_last" in options)


def test_a_sampler_of_positions_that_are_not_there_is_refused():
    for position in (10, -11):
        with pytest.raises(DataError, match=f"has position {position}, and the data set has 10 samples"):
            taking.taken(DataLoader(TensorDataset(X, Y), sampler=[0, position]))


def test_a_subset_without_the_last_class_has_the_classes_of_the_model_or_of_its_whole():
    chosen = [i for i in range(10) if Y[i] < 2]

    class Named(TensorDataset):
        classes = ("a", "b", "c")

    named = ls.make_objective(nn.Linear(2, 3), Subset(Named(X, Y), chosen), parts=[i % 2 for i in range(7)])
    assert named.samples.class_names == ("a", "b", "c")
    counted = ls.make_objective(nn.Linear(2, 3), Subset(TensorDataset(X, Y), chosen))
    assert counted.samples.class_names == ("0", "1", "2")
    assert counted.samples.class_counts.tolist() == [4, 3, 0]


def test_classes_without_samples_in_a_subset_are_no_parts_and_are_named(caplog):
    some = Subset(TensorDataset(X, Y), [i for i in range(10) if Y[i] != 1])
    made = ls.make_objective(nn.Linear(2, 3), some, parts="class")
    assert made.partition.names == ("0", "2")
    assert [Y[some.indices[int(own[0])]].item() for own in made.members] == [0, 2]
    assert "classes without samples: 1" in caplog.text


def test_batches_that_differ_in_shape_are_collated_one_by_one_and_others_are_kept():
    ragged = read(DataLoader(LONG, collate_fn=padded))
    assert ragged.ragged
    inputs, targets = ragged.batch(np.array([3, 0]))
    assert inputs["tokens"].shape == (2, 2)  # padded to the longest of these
    assert targets.tolist() == [3, 0]
    assert not read(DataLoader([item for item in LONG if len(item[0]) == 3], collate_fn=padded)).ragged
    some = ragged.select([3, 7])
    assert some.batch(np.array([1]))[1].tolist() == [LONG[7][1]]
    assert len(some) == 2


@pytest.mark.usefixtures("read_late")
def test_large_data_stay_where_they_are():
    found = read([{"x": x, "y": y} for x, y in zip(X, Y.double(), strict=True)])
    assert found.held is None
    inputs, targets = found.batch(np.array([9, 1]), dtype=torch.float64)
    assert torch.equal(inputs["x"], X[[9, 1]].double())
    assert torch.equal(targets, Y[[9, 1]].double())
    model = nn.Sequential(nn.Linear(2, 1))
    kept, lazy = (
        ls.make_objective(model, data, target="y", task="regression")
        for data in ([{"input": x, "y": y} for x, y in zip(X, Y.double(), strict=True)],) * 2
    )
    assert kept.evaluation.loss == pytest.approx(lazy.evaluation.loss)


class Augmented(Dataset):
    def __len__(self):
        return 6

    def __getitem__(self, i):
        return {"x": torch.randn(2), "label": i % 2}


class Endless(IterableDataset):
    def __iter__(self):
        yield from zip(X, Y, strict=True)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (Augmented(), "differ each time"),
        (DataLoader(Endless()), "iterator Endless"),
        ([], "empty"),
        ([{"x": X[0], "label": 1}, {"x": X[0, :1], "label": 1}], "make no batch"),
        ([(X[0], X[0], 1)] * 4, "say which is the target by target"),
        ([{"x": X[0], "z": 1}] * 4, "say which is the target by target"),
        ([{"x": X[0], "label": 1, "labels": 2}] * 4, "say which is the target by target"),
        ((X, Y[:4]), r"needs a row for each sample"),
        (([X[:3]], Y), r"needs a row for each sample"),
        ({"x": X}, "cannot be read in any order"),
        ([("text", 1)] * 4, "hold no tensor"),
    ],
)
def test_what_cannot_be_used_is_refused(data, message):
    with pytest.raises(DataError, match=message):
        read(data)


@pytest.mark.parametrize("label", [2, 2**40, -1])
def test_a_label_that_is_no_class_is_refused_before_memory_is_taken_for_its_classes(label):
    class Named(list):
        classes = ("a", "b")

    with refused(DataError, 1, label):
        read(Named([{"x": X[0], "label": 0}, {"x": X[0], "label": label}]))


@pytest.mark.parametrize("counts", [[1.5, 1, 1], [-1, 2, 2], [4, 3]])
def test_class_counts_that_are_no_counts_of_the_classes_are_refused(counts):
    class Named(list):
        classes = ("a", "b", "c")
        class_counts = counts

    with pytest.raises(DataError):
        read(Named([{"x": X[0], "label": 0}] * 2))


class Broken(Dataset):
    """A data set whose own code fails."""

    def __len__(self):
        return 4

    def __getitem__(self, i):
        raise OSError("the drive is gone")


def test_the_error_of_a_data_set_is_named_and_attached():
    with pytest.raises(DataError, match=r"cannot be read: .*the drive is gone") as caught:
        taking.taken(Broken())
    assert isinstance(caught.value.__cause__, OSError)


def test_entries_that_a_model_does_not_take_are_left_out_and_said():
    class Named(nn.Linear):
        def forward(self, x):
            return super().forward(x)

    data = [{"x": x, "length": torch.tensor(1.0), "text": "words", "label": y} for x, y in zip(X, Y, strict=True)]
    objective = ls.make_objective(Named(2, 3), data)
    assert objective.samples.notes == ("the model takes no length: left out of its inputs",)
    assert objective.evaluation.loss[0] == pytest.approx(
        nn.functional.cross_entropy(objective.model(X), Y).item(), rel=1e-5
    )


def test_lists_of_numbers_are_tensors_and_one_logit_is_a_yes_or_no():
    data = [{"input": [1.0, float(i)], "label": i % 2} for i in range(6)]
    objective = ls.make_objective(nn.Sequential(nn.Linear(2, 1)), data)
    assert objective.task.name == "binary"
    assert objective.evaluation.measures.keys() == {"F1 (micro)"}
    assert isinstance(taking.taken((X, Y)), ls.Samples)


# Parts ----------------------------------------------------------------------------------------------------------------


def test_samples_without_classes_are_divided_by_quantiles_columns_values_and_functions():
    data = [{"input": x, "y": float(i), "where": "web" if i < 3 else "book"} for i, x in enumerate(X)]
    model = nn.Sequential(nn.Linear(2, 1))

    def parts(spec):
        return ls.make_objective(model, data, task="regression", parts=spec).partition

    assert parts("quantiles:2").part_of.tolist() == [0] * 5 + [1] * 5
    assert parts("quantiles:4").names == ("q1", "q2", "q3", "q4")
    assert parts("quantiles:4").counts.tolist() == [3, 2, 2, 3]
    assert parts("column:where").names == ("book", "web")
    assert parts("column:where").part_of.tolist() == [1] * 3 + [0] * 7
    assert parts(lambda item, y: "low" if y < 2 else None).counts.tolist() == [2]
    assert parts(np.arange(10) % 3).names == ("0", "1", "2")
    assert parts(torch.arange(10) % 2).counts.tolist() == [5, 5]
    for spec, message in (
        ("class", "the data have none"),
        ({"a": [0]}, "the data have none"),
        ("quantiles:x", "quantiles:4"),
        ("quantiles:1", "at least 2"),
        ("quantiles:11", "10 values"),
        ("quantiles:1000000000000", "10 values"),
        (f"quantiles:{'9' * 5000}", "quantiles:4"),
        ([[0, 1]] * 10, "one value"),
        (torch.zeros(10, 2), "one value"),
        (np.zeros((10, 2)), "one value"),
        (torch.tensor(3), "values must be a list"),
        (lambda item, y: [0], "one value"),
        (lambda item, y: item, "one value"),
        ("column:absent", "no column 'absent'"),
        ([0, 1], "partition is of 2 samples"),
        (lambda item, y: 1 / 0, "ZeroDivisionError"),
    ):
        with pytest.raises((InputError, DataError), match=message):
            parts(spec)


def test_equal_values_are_in_one_quantile_and_too_many_of_them_are_refused():
    values = np.array([1.0, 1, 1, 2, 3, 4])
    assert ls.Partition.by_quantiles(values, 2).part_of.tolist() == [0, 0, 0, 1, 1, 1]
    with pytest.raises(InputError, match="repeat so often"):
        ls.Partition.by_quantiles(np.ones(6), 2)
    with refused(InputError, "sample", 1):
        ls.Partition.by_quantiles(np.array([0.0, np.nan]), 2)
