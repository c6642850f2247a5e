"""Where in training checkpoints were written, and with which learning rate: what files, names and runs say."""

import dataclasses
import json
import math
from pathlib import Path

import pytest
import torch
from made import history
from refusals import refused

from landscape.errors import InputError
from landscape.networks import checkpoint_folders, checkpoints
from landscape.objective import runs
from landscape.results import store


@pytest.fixture
def keep(tmp_path, monkeypatch):
    """Writes a file of torch.save below an empty current folder; each has other weights."""
    monkeypatch.chdir(tmp_path)
    number = []

    def write(name, **beside):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        number.append(1)
        torch.save({"state_dict": {"weight": torch.full((2,), float(len(number)))}, **beside}, name)
        return name

    return write


def found(words, **options):
    return [(str(s.path), s.epoch, s.step) for s in runs.stages(words, **options)]


def test_epochs_order_a_series_whatever_the_words(keep):
    names = [keep(f"run/{name}.pt", epoch=epoch) for name, epoch in (("b", 10), ("a", 2), ("c", 1))]
    expected = [("run/c.pt", 1), ("run/a.pt", 2), ("run/b.pt", 10)]
    for words in ("run", "run/*.pt", names, tuple(names), [*names, "run"], [Path(name) for name in names]):
        assert [f[:2] for f in found(words)] == expected
    assert [f[1] for f in found([("run/b.pt", 3), ("run/a.pt", 4.5)])] == [3, 4.5]
    assert [f[1] for f in found(("run/b.pt", 3))] == [3]


def test_a_pickle_beside_checkpoints_is_none_and_a_name_like_an_optimizers_is_better_than_nothing(keep):
    keep("run/epoch-0001.pt")
    Path("run/args.pkl").write_bytes(b"anything")
    assert checkpoint_folders.named(Path("run")) == [Path("run/epoch-0001.pt")]
    keep("opts/opt-125m.pt")
    assert checkpoint_folders.named(Path("opts")) == [Path("opts/opt-125m.pt")]


@pytest.mark.parametrize("suffix", ["t7", "pkl", "T7"])
def test_a_folder_holds_checkpoints_by_their_names_and_states_of_optimizers_are_none(keep, suffix):
    for epoch in (0, 10):
        keep(f"run/model_{epoch}.{suffix}")
        torch.save({"optimizer": {"param_groups": []}}, f"run/opt_state_{epoch}.{suffix}")
    for name in ("opt.pt", "optim-10.pt", "Optimizer.pth", "optimiser_10.bin"):
        torch.save({}, f"run/{name}")
    assert [f[:2] for f in found("run")] == [(f"run/model_{epoch}.{suffix}", epoch) for epoch in (0, 10)]
    keep(f"run/optimal_20.{suffix}")
    assert found("run")[-1][:2] == (f"run/optimal_20.{suffix}", 20)


def test_steps_order_what_has_one_epoch_and_a_step_in_a_name_is_no_epoch(keep):
    for step in (200, 50, 1000):
        keep(f"lightning/epoch=0-step={step}.ckpt", epoch=0, global_step=step)
        keep(f"own/step_{step}.pt")
    for folder in ("lightning", "own"):
        assert [f[2] for f in found(folder)] == [50, 200, 1000]
    assert math.isnan(found("own")[0][1])


def test_the_folders_of_hugging_face_are_checkpoints_of_their_steps(keep):
    for step in (500, 1500):
        folder = Path(f"out/checkpoint-{step}")
        keep(str(folder / "pytorch_model.bin"))
        (folder / "config.json").write_text("{}")
        (folder / "trainer_state.json").write_text(json.dumps({"epoch": step / 1000, "global_step": step}))
    assert found("out") == found("out/checkpoint-*") == [
        ("out/checkpoint-500", 0.5, 500), ("out/checkpoint-1500", 1.5, 1500),
    ]  # fmt: skip
    assert runs.is_single("out/checkpoint-500")
    assert not runs.is_single("out")


def test_a_series_without_an_order_is_refused_in_one_line(keep):
    keep("run/net.pt")
    keep("run/epoch-1.pt")
    with refused(InputError, "run/net.pt"):
        runs.stages("run")
    keep("two/a.pt", epoch=3)
    keep("two/b.pt", epoch=3)
    with refused(InputError, "two/a.pt", "two/b.pt", 3):
        runs.stages("two")
    keep("mixed/a.pt", epoch=3)
    keep("mixed/b.pt", step=3)
    with refused(InputError, "mixed/a.pt"):
        runs.stages("mixed")
    with refused(InputError, "checkpoint"):
        runs.stages([])


SGD = {"lr": 0.2, "momentum": 0.9, "dampening": 0, "nesterov": False, "params": [0]}


@pytest.mark.parametrize(
    ("beside", "edge", "rate"),
    [
        ({"optimizer": {"state": {}, "param_groups": [SGD]}}, 19.0, 0.2),
        ({"optimizer_states": [{"state": {}, "param_groups": [SGD, SGD]}]}, 19.0, 0.2),
        ({"optimizer_state_dict": {"param_groups": [SGD | {"nesterov": True}]}}, 19 / 2.8, 0.2),
        ({"optimizer": {"param_groups": [SGD | {"dampening": 0.5}]}}, 38.0, 0.2),
        ({"optimizer": {"param_groups": [{"lr": 1e-3, "betas": (0.9, 0.999)}]}}, math.nan, 1e-3),
        ({"optimizer": {"param_groups": [SGD | {"rho": 0.05}]}}, math.nan, 0.2),
        ({"optimizer": {"param_groups": [SGD, SGD | {"lr": 0.1}]}}, None, None),
        ({"optimizer": {"param_groups": [SGD | {"lr": torch.tensor(0.25)}]}}, 15.2, 0.25),
        ({"optimizer": {"param_groups": [SGD | {"lr": 10**400}]}}, None, None),
        ({"optimizer": {"param_groups": [SGD | {"lr": math.nan}]}}, None, None),
        ({"optimizer": {"param_groups": []}}, None, None),
        ({"optimizer": "sgd"}, None, None),
        ({}, None, None),
    ],
)
def test_the_state_of_an_optimizer_tells_rate_and_edge(keep, beside, edge, rate):
    keep("run/net-1.pt", **beside)
    keep("run/net-2.pt")
    optimizer = runs.stages("run")[0].optimizer
    if rate is None:
        assert optimizer is None
    else:
        assert optimizer.rate == pytest.approx(rate, rel=1e-15)
        assert optimizer.edge[0] == pytest.approx(edge, rel=1e-12, nan_ok=True)
        assert bool(optimizer.edge[1]) == math.isfinite(edge)


def test_the_history_of_a_run_tells_the_rate_after_each_epoch(keep):
    course = history()
    course.provenance["recipe"] = {"momentum": 0.5, "nesterov": False}
    for epoch in (0, *course.epoch[:2].astype(int)):
        checkpoints.write(
            keep(f"run/snapshots/epoch-{epoch}.pt"), {"w": torch.full((2,), epoch + 0.5)}, {"epoch": int(epoch)}
        )
    store.save("run/history.h5", course)
    first, *others = runs.stages("run")
    assert first.optimizer is None  # no step was taken
    assert [s.optimizer.rate for s in others] == course.learning_rate[:2].tolist()
    assert others[0].optimizer.edge[0] == pytest.approx(3 / course.learning_rate[0])
    for sharpness, known in (("none", True), ("sam", False), ("cc-sam", False)):
        course.provenance["recipe"] |= {"sharpness": sharpness, "rho": 0.05, "alpha_start": 0.9}
        store.save("run/history.h5", course, overwrite=True)
        edge, rule = runs.stages("run")[1].optimizer.edge
        assert math.isfinite(edge) is bool(rule) is known


@pytest.mark.parametrize(
    "recipe",
    [
        "x",
        [1],
        5,
        {"momentum": "x"},
        {"momentum": None},
        {"momentum": [1]},
        {"momentum": 10**400},
        {"momentum": math.inf},
    ],
    ids=str,
)
def test_a_recipe_without_a_momentum_that_is_a_number_tells_no_edge(keep, recipe):
    course = history()
    keep("run/other.pt", epoch=int(course.epoch[0]))
    store.save("run/history.h5", dataclasses.replace(course, provenance={"recipe": recipe}))
    (stage,) = runs.stages("run/other.pt")
    assert stage.optimizer is None or stage.optimizer.edge[1] == "2 / lr"


def test_a_link_to_nowhere_is_no_file_that_may_be_missing(keep):
    keep("run/epoch-1.pt")
    Path("run/epoch-2.pt").symlink_to("gone.pt")
    for word in ("run", "run/*.pt"):
        with refused(InputError, "epoch-2.pt is a link, and cannot be read: No such file"):
            runs.stages(word)
    with refused(InputError, "no name of a file"):
        runs.stages("run/a\0b.pt")
