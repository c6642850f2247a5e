"""Running statistics measured anew, against those of one batch of all samples."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from landscape.data import datasets
from landscape.errors import InputError
from trainers import settled
from trainers.settled import settled_statistics

MOMENTUM = 0.25


def network():
    with torch.random.fork_rng():
        torch.random.default_generator.manual_seed(0)
        layers = nn.Linear(3, 5), nn.BatchNorm1d(5, momentum=MOMENTUM), nn.Dropout(0.5), nn.ReLU(), nn.Linear(5, 2)
        return nn.Sequential(*layers).double()


def points(n):
    inputs = torch.randn(n, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 4 + 2
    return datasets.from_dataset((inputs, torch.arange(n) % 2))


def test_statistics_of_one_batch_are_exact_and_the_networks_own_come_back():
    model, samples = network(), points(200)
    model.train()
    model[1].eval()  # modes of their own
    before, modes = copy.deepcopy(model.state_dict()), [m.training for m in model.modules()]
    hidden = model[0](samples.inputs)
    with settled_statistics(model, samples):
        torch.testing.assert_close(model[1].running_mean, hidden.mean(0), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(model[1].running_var, hidden.var(0), rtol=1e-12, atol=1e-12)
        assert [m.training for m in model.modules()] == modes
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    assert model[1].momentum == MOMENTUM


@pytest.mark.parametrize("n", [257, 1000])
def test_statistics_of_several_batches_are_those_of_all_to_the_scatter_between_batches(n):
    """Means are exact; the mean of a batch is off by a standard error, whose square, 1 / 128, its variance lacks."""
    model, samples = network(), points(n)
    hidden = model[0](samples.inputs).detach()
    with settled_statistics(model, samples):
        torch.testing.assert_close(model[1].running_mean, hidden.mean(0), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(model[1].running_var, hidden.var(0), rtol=5 / 128, atol=0)


@pytest.mark.parametrize("n", [200, 600])
def test_instance_norm_has_the_mean_of_the_statistics_of_all_samples(n):
    model, samples = network(), points(n)
    norm = nn.InstanceNorm1d(1, momentum=MOMENTUM, track_running_stats=True).double()
    model[1] = nn.Sequential(nn.Unflatten(1, (1, 5)), norm, nn.Flatten())
    hidden = model[0](samples.inputs).detach()
    with settled_statistics(model, samples):
        torch.testing.assert_close(norm.running_mean, hidden.mean()[None], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(norm.running_var, hidden.var(1).mean()[None], rtol=1e-12, atol=1e-12)
    assert norm.running_mean.tolist() == [0]
    assert norm.running_var.tolist() == [1]
    assert norm.momentum == MOMENTUM


def test_they_are_of_so_many_samples_at_most_drawn_by_the_seed():
    n = settled.BATCH * settled.BATCHES
    samples, found = points(n + 1000), []
    for seed in (0, 0, 1):
        model = network()
        with settled_statistics(model, samples, seed=seed):
            found.append(model[1].running_mean.clone())
    drawn = samples.inputs[np.random.default_rng(0).permutation(n + 1000)[:n]]
    torch.testing.assert_close(found[0], model[0](drawn).mean(0), rtol=1e-12, atol=1e-12)
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_a_network_without_running_statistics_is_not_run():
    class Untouched(nn.Linear):
        def forward(self, x):
            raise AssertionError

    with settled_statistics(Untouched(3, 2), points(4)):
        pass


def test_a_single_sample_is_refused_and_the_network_comes_back():
    model = network()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(InputError, match=r"running statistics cannot be estimated from 1 sample\(s\)"):
        settled_statistics(model, points(1)).__enter__()
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    assert model[1].momentum == MOMENTUM
