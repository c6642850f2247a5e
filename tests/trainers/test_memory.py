"""Memory bank, groups and convergence points."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from banks import NAMES, divided, encoder_of, filled, network
from refusals import refused

from landscape.errors import InputError, StoreError
from landscape.networks import checkpoints
from trainers import memory


def stored(folder):
    return sorted(path.name for path in folder.iterdir())


def in_memory(epochs, vectors):
    """What `group_classes` asks of a bank, without files."""
    return SimpleNamespace(epochs=np.array(epochs), read=lambda epoch, names: (vectors[epoch], {}))


# Bank -----------------------------------------------------------------------------------------------------------------


def test_the_bank_keeps_each_classs_best_epoch_and_one_snapshot_for_all_who_share_it(tmp_path):
    bank = memory.Bank(tmp_path / "bank", 3)
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


def test_a_class_whose_features_are_as_good_as_before_keeps_its_epoch(tmp_path):
    bank = filled(tmp_path, [[1, 1], [1, 2]])
    assert bank.epochs.tolist() == [1, 2]
    assert not bank.update(3, np.array([1.0, 2.0]), network().state_dict(), {}).size


def test_snapshots_that_no_class_needs_go_one_update_later(tmp_path):
    """Until then the state that was kept before this epoch still refers to them."""
    bank = filled(tmp_path, [[1, 1], [2, 2]])
    assert stored(tmp_path) == ["epoch-0001.pt", "epoch-0002.pt"]
    bank.update(3, np.array([3.0, 0]), network().state_dict(), {})
    assert stored(tmp_path) == ["epoch-0002.pt", "epoch-0003.pt"]


def test_there_are_never_more_snapshots_than_classes_and_one(tmp_path):
    bank, rng = memory.Bank(tmp_path, 3), np.random.default_rng(0)
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
    again = memory.Bank(tmp_path / "a", 2)
    again.restore(kept)
    assert again.epochs.tolist() == [2, 2]
    np.testing.assert_array_equal(again.best, [2, np.nan])
    again.read(2, NAMES)
    again.update(3, np.array([3.0, 1.0]), network(3).state_dict(), {})
    straight = filled(tmp_path / "b", [[1, 1], [2, np.nan], [3, 1]])
    assert again.state() == straight.state()
    assert stored(tmp_path / "a") == stored(tmp_path / "b")


def test_an_empty_bank_can_be_kept_and_files_of_others_stay(tmp_path):
    bank = memory.Bank(tmp_path, 2)
    again = memory.Bank(tmp_path, 2)
    again.restore(bank.state())
    (tmp_path / "epoch-0007.pt").touch()
    (tmp_path / "epoch-best.pt").touch()
    with refused(InputError, "empty"):
        _ = again.epochs
    again.update(1, np.ones(2), network().state_dict(), {})
    assert stored(tmp_path) == ["epoch-0001.pt", "epoch-best.pt"]


def test_what_does_not_fit_the_bank_is_refused(tmp_path):
    bank = filled(tmp_path, [[1, 1], [2, 0]])
    for quality, epoch, message in (([1], 3, "2 classes"), ([np.inf, 1], 3, "one number"), ([1, 1], 2, "epoch 2 alr")):
        with pytest.raises(InputError, match=message):
            bank.update(epoch, np.array(quality, dtype=float), {}, {})
    with refused(InputError, "classes", 2, 3):
        memory.Bank(tmp_path, 3).restore(bank.state())
    with refused(InputError, "epoch-0001.pt", "9.weight"):
        bank.read(1, ["9.weight"])
    (tmp_path / "epoch-0001.pt").unlink()
    with refused(StoreError, "epoch-0001.pt", overwrite=True):
        memory.Bank(tmp_path, 2).restore(bank.state())
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="cannot be written"):
        memory.Bank(tmp_path / "file" / "bank", 1).update(1, np.ones(1), {}, {})


# Groups ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("centre", [False, True])
@pytest.mark.parametrize("block", [1, 2**31])  # snapshots are read one by one, or all at once
def test_similarity_is_the_cosine_of_stored_encoders(centre, block, monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "_BLOCK", block)
    monkeypatch.setattr(memory, "_PIECE", 5)
    bank = filled(tmp_path, [[1, 1, 1, 0], [0, 2, 0, 2], [0, 0, 3, 0], [0, 0, 0, 1]])
    assert bank.epochs.tolist() == [1, 2, 3, 2]
    rows = torch.stack([encoder_of(network(epoch)) for epoch in (1, 2, 3, 2)]).numpy()
    rows = rows - rows.mean(0) if centre else rows
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    found = memory.group_classes(bank, NAMES, 2, centre=centre)
    np.testing.assert_allclose(found.similarity, (1 + rows @ rows.T) / 2, atol=1e-12)


@pytest.mark.parametrize("centre", [False, True])
def test_classes_whose_best_epochs_lie_together_are_grouped(centre):
    """Three stations far apart on a run, at each of them a few epochs; all raw similarities are above 0.99."""
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(500, generator=generator)
    stations = [start + 0.1 * torch.randn(500, generator=generator) for _ in range(3)]
    vectors = {e: stations[e % 3] + 0.01 * torch.randn(500, generator=generator) for e in range(9)}
    epochs = [1, 4, 0, 3, 6, 2, 5, 8, 7, 1, 2]
    found = memory.group_classes(in_memory(epochs, vectors), [], 3, centre=centre, seed=3)
    assert found.n_groups == 3
    assert found.group_of.tolist() == [{0: 0, 1: 1, 2: 2}[e % 3] for e in epochs]  # mean indices 3, 4.5 and 7.3
    assert centre or found.similarity.min() > 0.99
    again = memory.group_classes(in_memory(epochs, vectors), [], 3, centre=centre, seed=4)
    assert again.group_of.tolist() == found.group_of.tolist()


def test_a_graph_that_falls_apart_is_divided_along_its_gap():
    """Centred points on a line have cosines of 1 and -1: similarities of 0 join nothing."""
    vectors = {e: torch.tensor([v]) for e, v in enumerate((-3.0, -2.0, -1.0, 6.0))}
    found = memory.group_classes(in_memory([3, 0, 1, 2], vectors), [], 2, centre=True)
    assert found.group_of.tolist() == [0, 1, 1, 1]
    assert not found.similarity[0, 1:].any()


@pytest.mark.parametrize("n_groups", [3, 4, 5])
def test_there_are_no_more_groups_than_distinct_snapshots(n_groups):
    vectors = {e: torch.eye(3)[e] for e in range(3)}
    found = memory.group_classes(in_memory([2, 0, 1, 2, 0], vectors), [], n_groups)
    assert found.n_groups == 3
    assert found.group_of.tolist() == [0, 2, 1, 0, 2]  # mean indices 1.5, 2 and 2.5


@pytest.mark.parametrize("centre", [False, True])
def test_one_group_and_one_snapshot_work(centre):
    vectors = {e: torch.randn(4, generator=torch.Generator().manual_seed(e)) for e in range(3)}
    for epochs, n_groups in (([0, 1, 2], 1), ([1, 1, 1], 2)):
        found = memory.group_classes(in_memory(epochs, vectors), [], n_groups, centre=centre)
        assert found.group_of.tolist() == [0, 0, 0]
        assert found.n_groups == 1
        assert np.isfinite(found.similarity).all()


def test_any_seed_of_a_run_is_one_of_the_groups():
    """scikit-learn takes 32 bits, a run any number from 0 on."""
    vectors = {e: torch.randn(4, generator=torch.Generator().manual_seed(e)) for e in range(4)}
    found = memory.group_classes(in_memory([0, 1, 2, 3], vectors), [], 2, seed=2**40 + 3)
    assert found.n_groups == 2
    assert (
        found.group_of.tolist()
        == memory.group_classes(in_memory([0, 1, 2, 3], vectors), [], 2, seed=3).group_of.tolist()
    )


@pytest.mark.parametrize("n_groups", [0, 4])
def test_another_number_of_groups_is_refused(n_groups):
    with refused(InputError, "groups", 1, 3):
        memory.group_classes(in_memory([0, 1, 2], {}), [], n_groups)


# Convergence points ---------------------------------------------------------------------------------------------------


def test_centres_are_means_over_classes_of_their_encoders(tmp_path):
    bank = filled(tmp_path, [[1, 1, 1, 1], [0, 2, 0, 2], [0, 0, 0, 3]])
    assert bank.epochs.tolist() == [1, 2, 1, 3]
    found = memory.group_centres(bank, divided(0, 0, 0, 1), NAMES)
    one, two, three = (network(e) for e in (1, 2, 3))
    expected = torch.stack([(2 * encoder_of(one) + encoder_of(two)) / 3, encoder_of(three)])
    torch.testing.assert_close(found, expected, rtol=1e-14, atol=1e-14)
