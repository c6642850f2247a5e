"""Memory bank, groups, convergence points, Fisher information and the penalty of GKP."""

import copy
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from landscape import checkpoints, datasets
from landscape.errors import DataError, InputError, NumericalError, StoreError
from trainers import gkp

NAMES = ["0.weight", "0.bias", "1.weight", "1.bias"]


def network(seed=0):
    with torch.random.fork_rng():
        torch.random.default_generator.manual_seed(seed)
        model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 4)).double()
        model(torch.randn(20, 3, dtype=torch.float64) * (1 + seed))  # running statistics of its own
    return model


def filled(folder, qualities):
    """A bank after an epoch for each row of qualities, the model of epoch e being `network(e)`."""
    bank = gkp.Bank(folder, len(qualities[0]))
    for epoch, quality in enumerate(qualities, start=1):
        bank.update(epoch, np.array(quality, dtype=float), network(epoch).state_dict(), {"epoch": epoch})
    return bank


def stored(folder):
    return sorted(path.name for path in folder.iterdir())


def in_memory(epochs, vectors):
    """What `group_classes` asks of a bank, without files."""
    return SimpleNamespace(epochs=np.array(epochs), read=lambda epoch, names: (vectors[epoch], {}))


def encoder_of(model):
    return torch.cat([dict(model.named_parameters())[name].detach().reshape(-1) for name in NAMES])


# Bank -----------------------------------------------------------------------------------------------------------------


def test_the_bank_keeps_each_classs_best_epoch_and_one_snapshot_for_all_who_share_it(tmp_path):
    bank = gkp.Bank(tmp_path / "bank", 3)
    model = network()
    for epoch, quality, improved in ((1, [1, 1, 1], [0, 1, 2]), (2, [2, 0, 2], [0, 2]), (4, [2, 0, 3], [2])):
        found = bank.update(epoch, np.array(quality, dtype=float), model.state_dict(), {"epoch": epoch})
        assert found.tolist() == improved
    assert bank.epochs.tolist() == [2, 1, 4]
    assert bank.best.tolist() == [2, 1, 3]
    assert not bank.update(5, np.zeros(3), model.state_dict(), {}).size
    assert stored(tmp_path / "bank") == ["epoch-0001.pt", "epoch-0002.pt", "epoch-0004.pt"]
    read = checkpoints.read(tmp_path / "bank" / "epoch-0002.pt")
    assert read.meta == {"epoch": 2}
    assert read.state.keys() == model.state_dict().keys()


def test_snapshots_that_no_class_needs_go_one_update_later(tmp_path):
    """Until then the state that was kept before this epoch still refers to them."""
    bank = filled(tmp_path, [[1, 1], [2, 2]])
    assert stored(tmp_path) == ["epoch-0001.pt", "epoch-0002.pt"]
    bank.update(3, np.array([3.0, 0]), network().state_dict(), {})
    assert stored(tmp_path) == ["epoch-0002.pt", "epoch-0003.pt"]


def test_there_are_never_more_snapshots_than_classes_and_one(tmp_path):
    bank, rng = gkp.Bank(tmp_path, 3), np.random.default_rng(0)
    for epoch in range(1, 40):
        bank.update(epoch, rng.normal(size=3) + epoch / 10, {"w": torch.zeros(1)}, {})
        assert len(stored(tmp_path)) <= 4
        assert {f"epoch-{e:04d}.pt" for e in bank.epochs} <= set(stored(tmp_path))


def test_a_class_without_quality_takes_the_newest_epoch(tmp_path):
    bank = filled(tmp_path, [[1, np.nan], [0, np.nan], [0, 5], [0, 4]])
    assert bank.epochs.tolist() == [1, 3]
    bank.update(5, np.array([0, np.nan]), network().state_dict(), {})
    assert bank.epochs.tolist() == [1, 5]


def test_a_cut_epoch_leaves_files_that_do_no_harm(tmp_path):
    bank = filled(tmp_path / "a", [[1, 1], [2, np.nan]])
    kept = json.loads(json.dumps(bank.state()))
    bank.update(3, np.array([3.0, 3.0]), network(3).state_dict(), {})  # the run is cut before it keeps this state
    again = gkp.Bank(tmp_path / "a", 2)
    again.restore(kept)
    assert again.epochs.tolist() == [2, 2]
    np.testing.assert_array_equal(again.best, [2, np.nan])
    again.read(2, NAMES)
    again.update(3, np.array([3.0, 1.0]), network(3).state_dict(), {})
    straight = filled(tmp_path / "b", [[1, 1], [2, np.nan], [3, 1]])
    assert again.state() == straight.state()
    assert stored(tmp_path / "a") == stored(tmp_path / "b")


def test_an_empty_bank_can_be_kept_and_files_of_others_stay(tmp_path):
    bank = gkp.Bank(tmp_path, 2)
    again = gkp.Bank(tmp_path, 2)
    again.restore(bank.state())
    (tmp_path / "epoch-0007.pt").touch()
    (tmp_path / "epoch-best.pt").touch()
    with pytest.raises(InputError, match="empty"):
        _ = again.epochs
    again.update(1, np.ones(2), network().state_dict(), {})
    assert stored(tmp_path) == ["epoch-0001.pt", "epoch-best.pt"]


def test_what_does_not_fit_the_bank_is_refused(tmp_path):
    bank = filled(tmp_path, [[1, 1], [2, 0]])
    for quality, epoch, message in (([1], 3, "2 classes"), ([np.inf, 1], 3, "one number"), ([1, 1], 2, "epoch 2 alr")):
        with pytest.raises(InputError, match=message):
            bank.update(epoch, np.array(quality, dtype=float), {}, {})
    with pytest.raises(InputError, match="kept for 2 classes, now there are 3"):
        gkp.Bank(tmp_path, 3).restore(bank.state())
    with pytest.raises(InputError, match=r"epoch-0001.pt has no parameter 9.weight"):
        bank.read(1, ["9.weight"])
    (tmp_path / "epoch-0001.pt").unlink()
    with pytest.raises(StoreError, match=r"epoch-0001.pt is missing.*--overwrite"):
        gkp.Bank(tmp_path, 2).restore(bank.state())
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="cannot be written"):
        gkp.Bank(tmp_path / "file" / "bank", 1).update(1, np.ones(1), {}, {})


# Groups ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("centre", [False, True])
@pytest.mark.parametrize("block", [1, 2**31])  # snapshots are read one by one, or all at once
def test_similarity_is_the_cosine_of_stored_encoders(centre, block, monkeypatch, tmp_path):
    monkeypatch.setattr(gkp, "_BLOCK", block)
    monkeypatch.setattr(gkp, "_PIECE", 5)
    bank = filled(tmp_path, [[1, 1, 1, 0], [0, 2, 0, 2], [0, 0, 3, 0], [0, 0, 0, 1]])
    assert bank.epochs.tolist() == [1, 2, 3, 2]
    rows = torch.stack([encoder_of(network(epoch)) for epoch in (1, 2, 3, 2)]).numpy()
    rows = rows - rows.mean(0) if centre else rows
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    found = gkp.group_classes(bank, NAMES, 2, centre=centre)
    np.testing.assert_allclose(found.similarity, (1 + rows @ rows.T) / 2, atol=1e-12)


@pytest.mark.parametrize("centre", [False, True])
def test_classes_whose_best_epochs_lie_together_are_grouped(centre):
    """Three stations far apart on a run, at each of them a few epochs; all raw similarities are above 0.99."""
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(500, generator=generator)
    stations = [start + 0.1 * torch.randn(500, generator=generator) for _ in range(3)]
    vectors = {e: stations[e % 3] + 0.01 * torch.randn(500, generator=generator) for e in range(9)}
    epochs = [1, 4, 0, 3, 6, 2, 5, 8, 7, 1, 2]
    found = gkp.group_classes(in_memory(epochs, vectors), [], 3, centre=centre, seed=3)
    assert found.n_groups == 3
    assert found.group_of.tolist() == [{0: 0, 1: 1, 2: 2}[e % 3] for e in epochs]  # mean indices 3, 4.5 and 7.3
    assert centre or found.similarity.min() > 0.99
    again = gkp.group_classes(in_memory(epochs, vectors), [], 3, centre=centre, seed=4)
    assert again.group_of.tolist() == found.group_of.tolist()


def test_a_graph_that_falls_apart_is_divided_along_its_gap():
    """Centred points on a line have cosines of 1 and -1: similarities of 0 join nothing."""
    vectors = {e: torch.tensor([v]) for e, v in enumerate((-3.0, -2.0, -1.0, 6.0))}
    found = gkp.group_classes(in_memory([3, 0, 1, 2], vectors), [], 2, centre=True)
    assert found.group_of.tolist() == [0, 1, 1, 1]
    assert not found.similarity[0, 1:].any()


@pytest.mark.parametrize("n_groups", [3, 4, 5])
def test_there_are_no_more_groups_than_distinct_snapshots(n_groups):
    vectors = {e: torch.eye(3)[e] for e in range(3)}
    found = gkp.group_classes(in_memory([2, 0, 1, 2, 0], vectors), [], n_groups)
    assert found.n_groups == 3
    assert found.group_of.tolist() == [0, 2, 1, 0, 2]  # mean indices 1.5, 2 and 2.5


@pytest.mark.parametrize("centre", [False, True])
def test_one_group_and_one_snapshot_work(centre):
    vectors = {e: torch.randn(4, generator=torch.Generator().manual_seed(e)) for e in range(3)}
    for epochs, n_groups in (([0, 1, 2], 1), ([1, 1, 1], 2)):
        found = gkp.group_classes(in_memory(epochs, vectors), [], n_groups, centre=centre)
        assert found.group_of.tolist() == [0, 0, 0]
        assert found.n_groups == 1
        assert np.isfinite(found.similarity).all()


@pytest.mark.parametrize("n_groups", [0, 4])
def test_another_number_of_groups_is_refused(n_groups):
    with pytest.raises(InputError, match="--groups must be from 1 to the number of classes, 3"):
        gkp.group_classes(in_memory([0, 1, 2], {}), [], n_groups)


# Convergence points and Fisher information ----------------------------------------------------------------------------


def divided(*group_of):
    return gkp.Groups(group_of=np.array(group_of), n_groups=max(group_of) + 1, similarity=np.eye(len(group_of)))


def test_centres_are_means_over_classes_of_encoder_and_running_statistics(tmp_path):
    bank = filled(tmp_path, [[1, 1, 1, 1], [0, 2, 0, 2], [0, 0, 0, 3]])
    assert bank.epochs.tolist() == [1, 2, 1, 3]
    found = gkp.group_centres(bank, divided(0, 0, 0, 1), NAMES)
    one, two, three = (network(e) for e in (1, 2, 3))
    expected = torch.stack([(2 * encoder_of(one) + encoder_of(two)) / 3, encoder_of(three)])
    torch.testing.assert_close(found.parameters, expected, rtol=1e-14, atol=1e-14)
    assert found.buffers[0].keys() == {"1.running_mean", "1.running_var"}
    mean = (2 * one[1].running_mean + two[1].running_mean) / 3
    torch.testing.assert_close(found.buffers[0]["1.running_mean"], mean, rtol=1e-14, atol=1e-14)
    assert torch.equal(found.buffers[1]["1.running_var"], three[1].running_var)


def points(counts=(7, 4, 3, 2)):
    labels = torch.arange(4).repeat_interleave(torch.tensor(counts))
    inputs = torch.randn(len(labels), 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return datasets.from_dataset((inputs, labels), class_names=[*"abcd"]), inputs, labels


@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_fisher_is_the_mean_of_squared_gradients_of_single_samples_at_the_centre(tmp_path, batch_size):
    bank = filled(tmp_path, [[1, 1, 1, 1], [0, 2, 0, 2]])
    groups = divided(0, 1, 0, 1)
    centres = gkp.group_centres(bank, groups, NAMES)
    model = network(7)
    model[2].eval()  # a mode of its own
    before = copy.deepcopy(model)
    samples, inputs, labels = points()
    found = gkp.group_fisher(model, samples, groups, centres, NAMES, batch_size=batch_size)
    for g, epoch in ((0, 1), (1, 2)):
        there = network(epoch).eval()
        there[3].load_state_dict(model[3].state_dict())  # the current classifier
        rows = []
        for i in np.flatnonzero(groups.group_of[labels.numpy()] == g):
            loss = F.cross_entropy(there(inputs[i : i + 1]), labels[i : i + 1])
            grads = torch.autograd.grad(loss, [dict(there.named_parameters())[name] for name in NAMES])
            rows.append(torch.cat([x.reshape(-1) for x in grads]) ** 2)
        torch.testing.assert_close(found[g], torch.stack(rows).mean(0), rtol=1e-10, atol=1e-14)
    assert all(torch.equal(t, before.state_dict()[name]) for name, t in model.state_dict().items())
    assert [m.training for m in model.modules()] == [m.training for m in before.modules()]
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


def test_fisher_of_drawn_samples_is_that_of_some_of_the_group_and_repeats(tmp_path):
    bank, groups = filled(tmp_path, [[1, 1, 1, 1]]), divided(0, 1, 1, 1)
    centres, (samples, _, labels) = gkp.group_centres(bank, groups, NAMES), points()
    model = network(1)
    drawn = gkp.group_fisher(model, samples, groups, centres, NAMES, max_samples=1, seed=5)
    again = gkp.group_fisher(model, samples, groups, centres, NAMES, max_samples=1, seed=5)
    assert torch.equal(drawn, again)
    single = [
        gkp.group_fisher(model, samples.select([i]), divided(0, 0, 0, 0), centres, NAMES)[0] for i in range(len(labels))
    ]
    for g in (0, 1):
        fitting = [i for i, row in enumerate(single) if torch.allclose(row, drawn[g], rtol=1e-10, atol=0)]
        assert len(fitting) == 1
        assert groups.group_of[labels[fitting[0]]] == g
    whole = gkp.group_fisher(model, samples, groups, centres, NAMES, max_samples=9)
    assert torch.equal(whole, gkp.group_fisher(model, samples, groups, centres, NAMES))


def test_fisher_that_cannot_be_is_refused_and_the_model_comes_back(tmp_path):
    bank, groups = filled(tmp_path, [[1, 1, 1, 1]]), divided(0, 0, 0, 1)
    centres, (samples, *_) = gkp.group_centres(bank, groups, NAMES), points((3, 2, 2, 0))
    model = network(4)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(DataError, match=r"group 1 has no samples of .*--groups"):
        gkp.group_fisher(model, samples, groups, centres, NAMES)
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    with pytest.raises(InputError, match="--fisher-samples"):
        gkp.group_fisher(model, samples, groups, centres, NAMES, max_samples=0)
    centres.parameters[0, 0] = torch.nan
    with pytest.raises(NumericalError, match="not finite"):
        gkp.group_fisher(model, points()[0], groups, centres, NAMES)


# Penalty --------------------------------------------------------------------------------------------------------------


def penalty(n_groups, dtype=torch.float64):
    generator = torch.Generator().manual_seed(n_groups)
    centres, theta, other = (torch.randn(n_groups, 6, generator=generator, dtype=dtype) for _ in range(3))
    counts = np.array([50, 9, 2, 1])[:n_groups]
    shares = torch.rand(n_groups, generator=generator, dtype=dtype)
    return gkp.Penalty(centres, other.square(), counts, strength=10.0), theta[0], shares / shares.sum(), counts


@pytest.mark.parametrize("n_groups", [1, 2, 4])
def test_the_penalty_is_equation_4_added_up_by_a_plain_loop(n_groups):
    found, theta, shares, counts = penalty(n_groups)
    expected = 0.0
    for g in range(n_groups):
        for j in range(n_groups):
            for i in range(6):
                term = found.fisher[j, i] * (theta[i] - found.centres[j, i]) ** 2 / counts[j]
                expected += float(shares[g]) * 10.0 / 2 * float(term) * (j != g)
    assert float(found.value(theta, shares)) == pytest.approx(expected, rel=1e-12, abs=1e-14)


@pytest.mark.parametrize("n_groups", [1, 2, 4])
def test_the_penaltys_gradient_is_that_of_its_value(n_groups):
    found, theta, shares, _ = penalty(n_groups)
    theta.requires_grad_()
    (expected,) = torch.autograd.grad(found.value(theta, shares), theta)
    gradient = found.gradient(theta, shares)
    torch.testing.assert_close(gradient, expected, rtol=1e-12, atol=1e-14)
    assert not gradient.requires_grad


def test_the_penalty_works_in_float32_and_leaves_its_arguments_alone():
    found, theta, shares, _ = penalty(4, torch.float32)
    before = [t.clone() for t in (theta, shares, found.centres, found.fisher)]
    gradient = found.gradient(theta, shares).mul_(2)
    assert gradient.dtype == torch.float32
    assert all(torch.equal(a, b) for a, b in zip(before, (theta, shares, found.centres, found.fisher), strict=True))


def test_a_penalty_that_does_not_fit_is_refused():
    rows = torch.ones(2, 3)
    for arguments, message in (
        ((rows, rows[:1], np.ones(2)), r"\(2, 3\), \(1, 3\) and \(2,\)"),
        ((rows, rows, np.ones(3)), "counts"),
        ((rows, rows, np.array([4, 0])), r"got \[4, 0\]"),
    ):
        with pytest.raises(InputError, match=message):
            gkp.Penalty(*arguments)
    with pytest.raises(InputError, match="--preservation"):
        gkp.Penalty(rows, rows, np.ones(2), strength=-1.0)
