"""Gradients of groups of a batch: one backward pass gives what a pass for each group gives."""

import dataclasses

import numpy as np
import pytest
import torch
from gradient_numbers import LAYERS, NUMBERS, agree, layers_of, numbers
from refusals import refused
from torch import nn

import landscape as ls
from landscape.errors import NumericalError
from tests.cases import CASES, CLASS_SIZES, Case
from tests.exact import flat_function


def drawn(seed, n_batches, size):
    """The batches, as they are promised: random epochs, each cut into pieces that differ by one sample at most."""
    generator = np.random.default_rng(seed)
    pieces = []
    while len(pieces) < n_batches:
        pieces += np.array_split(generator.permutation(15), -(-15 // size))
    return pieces[:n_batches]


@pytest.mark.parametrize("size", [2, 6])
def test_numbers_over_batches_are_means_over_those_that_have_the_part(size):
    objective = CASES["mlp-tanh"].objective(partition=ls.Partition.from_index(part_of := parts_of(), ("a", "b", "c")))
    found = ls.gradients(objective, batches=10, samples_per_batch=size, seed=3)
    _, _, point, _ = flat_function(objective, 0)
    x, y = objective.samples.batch(np.arange(15), "cpu", torch.float64)
    layout, model = objective.layout, objective.model

    def loss(theta, index):
        state = dict(zip(layout.names, layout.tensors(theta), strict=True))
        return objective.loss(torch.func.functional_call(model, state, (x[index],)), y[index]).mean()

    layers = layers_of(objective)
    values = {name: [] for name in NUMBERS}
    losses = {p: [] for p in range(3)}
    for index in drawn(3, 10, size):
        present = [p for p in range(3) if (part_of[index] == p).any()]
        rows = np.stack([torch.func.grad(loss)(point, index[part_of[index] == p]).numpy() for p in present])
        shares = np.array([(part_of[index] == p).mean() for p in present])
        with np.errstate(divide="ignore"):
            one = numbers(rows, shares, objective.counts[present], float(point.norm()), layers)
        for p in present:
            losses[p] += [float(loss(point, [i])) for i in index[part_of[index] == p]]
        alone = np.isclose(one["cosine"], 1)  # a batch of one part: nothing is left of h, and of its radius
        one["radius"] = np.where(alone, np.nan, one["radius"])
        one["specific"] = np.where(alone, 0, one["specific"])
        for name in NUMBERS:
            rows_of = {"between": (3,), "conflict": (3,)}.get(name, (len(layers),) if name in LAYERS else ())
            empty = np.full((*rows_of, 3), 0.0 if name.endswith("contribution") else np.nan)
            if name in {"between", "conflict"}:
                empty[np.ix_(present, present)] = one[name]
            elif not name.endswith("whole_norm"):
                empty[..., present] = one[name]
            values[name].append(one[name] if name.endswith("whole_norm") else empty)
    for name, each in values.items():
        each = np.array(each, dtype=float)
        n = np.isfinite(each).sum(axis=0)
        mean = np.where(n > 0, np.nansum(each, axis=0) / np.maximum(n, 1), np.nan)
        np.testing.assert_allclose(getattr(found, name)[0], mean, rtol=1e-7, atol=1e-9, err_msg=name)
        if name != "conflict":
            squares = np.nansum((each - mean) ** 2, axis=0)
            stderr = np.where(n > 1, np.sqrt(squares / np.maximum(n - 1, 1) / np.maximum(n, 1)), np.nan)
            np.testing.assert_allclose(getattr(found, f"{name}_stderr")[0], stderr, rtol=1e-6, atol=1e-9, err_msg=name)
    assert found.batches[0].tolist() == [np.isfinite(np.array(values["norm"])[:, p]).sum() for p in range(3)]
    assert found.loss[0] == pytest.approx([np.mean(losses[p]) for p in range(3)])


def parts_of():
    """Parts that cut across the classes: sizes 7, 7 and 1."""
    return np.array([0, 1] * 7 + [2])


def test_the_same_seed_draws_the_same_batches_and_another_does_not():
    objective = CASES["mlp-tanh"].objective()
    a, b, c = (ls.gradients(objective, batches=4, samples_per_batch=3, seed=s).norm for s in (0, 0, 1))
    np.testing.assert_array_equal(a, b)
    assert not np.array_equal(a, c, equal_nan=True)


def test_a_part_that_no_batch_has_is_unknown():
    """The class of one sample is in one of the five batches of an epoch: some first batch lacks it."""
    objective = CASES["mlp-tanh"].objective()
    found = next(
        f
        for s in range(20)
        if (f := ls.gradients(objective, batches=2, samples_per_batch=3, seed=s)).batches[0, 2] == 0
    )
    for name in ("norm", "cosine", "cosine_stderr", "specific", "loss"):
        assert np.isnan(getattr(found, name)[0, 2]), name
    assert np.isnan(found.between[0, 2]).all()
    assert found.contribution[0, 2] == 0  # what is absent adds nothing to the batch's gradient
    assert found.contribution.sum() == pytest.approx(1)
    everyone = ls.gradients(objective, batches=5, samples_per_batch=3)
    assert everyone.batches[0, 2] == 1
    assert everyone.n_samples.tolist() == list(CLASS_SIZES)


class TimeFirst(nn.Module):
    """A layer whose first axis is not the batch: samples are independent, but slices of that axis are not samples."""

    def __init__(self):
        super().__init__()
        self.inner, self.out = nn.Linear(2, 4), nn.Linear(4, 3)

    def forward(self, x):
        steps = x.flatten(2).permute(2, 0, 1)  # (9, B, 2)
        return self.out(torch.tanh(self.inner(steps)).sum(0))


@pytest.mark.parametrize("batch_size", [2, 3, 8, 9, 15])
def test_an_axis_as_long_as_the_batch_does_not_pass_for_it(batch_size):
    objective = Case(TimeFirst).objective(batch_size=batch_size)  # its layer has an axis of nine
    exact = ls.gradients(objective)
    found = ls.gradients(objective, batches=1, samples_per_batch=15)
    agree(found, {n: getattr(exact, n)[0] for n in NUMBERS})


class Reversed(nn.Module):
    """The samples change places within the model, which no size of an axis tells."""

    def __init__(self):
        super().__init__()
        self.inner, self.out = nn.Linear(18, 4), nn.Linear(4, 3)

    def forward(self, x):
        return self.out(torch.tanh(self.inner(x.flatten(1).flip(0))).flip(0))


def test_samples_that_change_places_are_told_apart():
    objective = Case(Reversed).objective(batch_size=15)
    exact = ls.gradients(objective)
    agree(ls.gradients(objective, batches=1, samples_per_batch=15), {n: getattr(exact, n)[0] for n in NUMBERS})


class Coupled(nn.Module):
    """Samples lose the mean of their batch, which no layer shows."""

    def __init__(self):
        super().__init__()
        self.inner, self.out = nn.Linear(18, 4), nn.Linear(4, 3)

    def forward(self, x):
        x = torch.tanh(self.inner(x.flatten(1)))
        return self.out(x - x.mean(0) * (len(x) > 4))


def test_samples_that_influence_each_other_are_noticed():
    objective = Case(Coupled).objective(batch_size=4)  # of few samples each is by itself
    with refused(NumericalError, 15):
        ls.gradients(dataclasses.replace(objective, batch_size=15), batches=1, samples_per_batch=15)
