"""Which samples an objective has that is loaded from a checkpoint of a run."""

import pytest
import torch
from PIL import Image
from toys import finish

from landscape.data import datasets
from landscape.networks import checkpoints, models
from landscape.objective.loading import load_objective

RUN = {"imbalance": 10, "seed": 3}


@pytest.fixture
def ckpt(tmp_path):
    """A checkpoint of a run on a long tail of digits, with a seed of its own."""
    samples = datasets.load("digits-lt", **RUN)
    meta = {"model": "small-resnet", "dataset": samples.options, "data_sha256": samples.fingerprint}
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(0)
        model = models.build("small-resnet", 10, in_channels=1)
    checkpoints.write(tmp_path / "last.pt", model.state_dict(), meta)
    return tmp_path / "last.pt"


@pytest.mark.parametrize("dataset", [None, "digits-lt"])
def test_the_seed_of_a_draw_leaves_the_long_tail_of_the_run_as_it_is(ckpt, dataset, caplog):
    run = datasets.load("digits-lt", **RUN)
    given = {"ckpt": ckpt, "dataset": dataset, "data_seed": 1}
    assert load_objective(**given).source["data_sha256"] == run.fingerprint
    few = load_objective(**given, samples_per_class=4).source["data_sha256"]
    assert few == run.subsample(4, seed=1).fingerprint != run.subsample(4, seed=0).fingerprint
    assert caplog.text == ""


@pytest.mark.parametrize("anew", [{"imbalance": 10}, {"imbalance_draw": "own"}])
def test_the_seed_is_that_of_a_long_tail_that_is_asked_for(ckpt, anew, caplog):
    found = load_objective(ckpt, data_seed=1, **anew).source["data_sha256"]
    assert found == datasets.load("digits-lt", imbalance=10, seed=1).fingerprint
    assert caplog.text == ""


def test_data_of_the_run_that_have_changed_are_told_in_one_warning(tmp_path, monkeypatch, caplog):
    finish(tmp_path, epochs=1)
    caplog.clear()
    for split in ("train", "test"):
        load_objective(tmp_path / "last.pt", split=split)
    assert caplog.records == []
    monkeypatch.setattr("toys.vectors", lambda split: (torch.zeros(15, 4), torch.arange(15) % 3))
    load_objective(tmp_path / "last.pt", split="test")
    load_objective(tmp_path / "last.pt", dataset=(torch.zeros(15, 4), torch.arange(15) % 3))
    assert caplog.records == []
    load_objective(tmp_path / "last.pt")
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "toys:vectors" in caplog.text


def test_a_network_has_the_channels_of_images_that_are_not_in_memory(tmp_path):
    """small-resnet takes images of one channel unless it is told otherwise."""
    for c in range(2):
        (tmp_path / "train" / str(c)).mkdir(parents=True)
        for i in range(2):
            Image.new("RGB", (16, 16), (40 * i, 90 * c, 7)).save(tmp_path / "train" / str(c) / f"{i}.png")
    samples = datasets.load("image-folder", root=tmp_path, image_size=14)
    meta = {"model": "small-resnet", "dataset": samples.options, "data_sha256": samples.fingerprint}
    model = models.build("small-resnet", 2, in_channels=3)
    checkpoints.write(tmp_path / "last.pt", model.state_dict(), meta)
    found = load_objective(tmp_path / "last.pt")
    images, _ = samples.batch(torch.tensor([0, 3]))
    torch.testing.assert_close(found.model(images), model.eval()(images))
