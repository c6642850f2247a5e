"""The memory bank, groups and GKP's penalty in a loop of one's own."""

import numpy as np
import pytest
import torch
from refusals import refused
from torch.nn import functional as F
from toys import batched, blobs

from landscape.errors import InputError, StoreError
from landscape.networks import class_means
from trainers import GSA, Memory, gkp
from trainers.gkp import GKP
from trainers.preserve import settled_quality
from trainers.settled import settled_statistics


def trained(epochs, **options):
    """A plain loop of full-batch steps, with the penalty once there is one."""
    model, samples = batched(), blobs()
    inputs, labels = samples.inputs, torch.from_numpy(samples.labels)
    memory = Memory(model, samples, n_groups=2, **options)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for epoch in range(1, epochs + 1):
        loss = F.cross_entropy(model(inputs), labels)
        if memory.gkp:
            loss = 0.5 * loss + 0.5 * memory.gkp(model, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        memory.update(epoch)
        if epoch == 4:
            memory.regroup()
    return model, memory


def test_a_plain_loop_groups_its_classes_and_is_pulled():
    model, memory = trained(6)
    assert memory.group_of.shape == (3,)
    assert sum(memory.counts) == 15
    assert len(memory.counts) == memory.group_of.max() + 1
    assert memory.n_banked == 6
    labels = torch.tensor([0, 1, 2, 2])
    found = memory.gkp(model, labels)
    named = dict(model.named_parameters())
    theta = torch.cat([named[n].detach().reshape(-1) for n in ("0.weight", "0.bias", "1.weight", "1.bias")]).double()
    expected = 0.0
    for g in range(len(memory.counts)):  # equation 4, groups weighted by their share of the batch
        share = float((memory.group_of[labels] == g).double().mean())
        for j in range(len(memory.counts)):
            apart = (theta - memory.gkp.centres[j].double()).square() @ memory.gkp.fisher[j].double()
            expected += share * 100 / 2 * float(apart) / memory.counts[j] * (j != g)
    assert len(memory.counts) == 2
    assert expected > 0
    assert float(found.detach()) == pytest.approx(expected, rel=1e-5)
    gradients = torch.autograd.grad(
        found, [named["0.weight"], named["4.weight"] if "4.weight" in named else named["3.weight"]], allow_unused=True
    )
    assert gradients[1] is None  # the classifier is free


def test_its_groups_are_those_that_gsa_takes():
    model, memory = trained(4)
    optimizer = GSA(model.parameters(), torch.optim.SGD, counts=memory.counts, model=model, lr=0.1)
    samples = blobs()
    labels = torch.from_numpy(samples.labels)
    optimizer.step(lambda: F.cross_entropy(model(samples.inputs), labels, reduction="none"), memory.group_of[labels])
    assert optimizer.radii.share.tolist() == pytest.approx(np.array(memory.counts) / 15)


def test_its_bank_is_plain_checkpoints_where_a_folder_is_given(tmp_path):
    trained(4, folder=tmp_path)
    assert {path.suffix for path in tmp_path.iterdir()} == {".pt"}


def test_options_are_those_of_the_quality_the_fisher_information_and_the_penalty():
    model, memory = trained(3, form="inverse", beta=0.25, max_samples=1, strength=7.0, seed=2)
    samples = blobs()
    labels = torch.from_numpy(samples.labels)
    quality = memory.update(5)
    with settled_statistics(model, samples, seed=2):
        features = model.eval()[:3](samples.inputs).detach()
    expected = class_means.feature_quality(features, labels, 3, beta=0.25, form="inverse")
    np.testing.assert_allclose(quality.quality, expected.quality, rtol=1e-5)
    plain = settled_quality(model, samples, memory.classifier, beta=0.25, seed=2)
    expected = class_means.feature_quality(features, labels, 3, beta=0.25)
    assert not np.allclose(expected.quality[:2], class_means.feature_quality(features, labels, 3).quality[:2])
    np.testing.assert_allclose(plain.quality, expected.quality, rtol=1e-5)
    groups = memory.regroup()
    names = [name for name, _ in model.named_parameters() if not name.startswith(memory.classifier)]
    fisher = gkp.group_fisher(model, samples, groups, memory.gkp.centres, names, max_samples=1, seed=2)
    torch.testing.assert_close(memory.gkp.fisher, fisher)
    theta = torch.cat([p.detach().reshape(-1) for n, p in model.named_parameters() if n in names])
    other = GKP(memory.gkp.centres, fisher, np.array(memory.counts), strength=7.0)
    shares = torch.tensor(memory.counts) / 15
    torch.testing.assert_close(memory.gkp.value(theta, shares), other.value(theta, shares))


def test_groups_before_the_bank_has_them_are_refused():
    memory = Memory(batched(), blobs(), n_groups=3)
    memory.update(1)
    with refused(InputError, "update", 1, 3):
        memory.regroup()
    with refused(InputError, n_groups=4):
        Memory(batched(), blobs(), n_groups=4)


def test_a_folder_with_snapshots_is_refused_and_left_as_it_is(tmp_path):
    """An empty bank refers to none of them, and would delete all."""
    file = tmp_path / "epoch-0005.pt"
    file.touch()
    with refused(StoreError, file, "folder"):
        Memory(batched(), blobs(), n_groups=2, folder=tmp_path)
    assert file.exists()
