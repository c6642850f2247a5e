"""`landscape surface1d`, `surface2d`, `trajectory` and `distances` from end to end, good words and bad."""

import dataclasses
import errno
import json
import shutil

import h5py
import numpy as np
import pytest
import torch
from refusals import missing
from results_of_all_kinds import distances

import landscape as ls
from landscape.analyses import directions
from landscape.cli import main
from landscape.cli.distances import Finetuning, _highest  # private: a run with a barrier of exactly zero takes long
from landscape.cli.surface import parse_range
from landscape.data import datasets
from landscape.errors import InputError
from landscape.networks import checkpoints, models
from landscape.results import inference
from landscape.results.written import with_error


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Checkpoints of a small network on digits: four of a path, another network, and one of another shape."""
    folder = tmp_path_factory.mktemp("path")
    samples = datasets.load("digits-lt")
    meta = {"model": "small-resnet", "n_classes": 10, "dataset": samples.options, "method": "ce"}
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(0)
        one, two = (models.build("small-resnet", 10, in_channels=1) for _ in range(2))
        wide = models.build("resnet20", 10)
        (folder / "snapshots").mkdir()
        for epoch in range(4):
            checkpoints.write(folder / "snapshots" / f"epoch-{epoch:04d}.pt", one.state_dict(), meta | {"epoch": epoch})
            with torch.no_grad():
                for p in one.parameters():
                    p += 0.02 * torch.randn(p.shape)
        checkpoints.write(folder / "last.pt", one.state_dict(), meta)
        checkpoints.write(folder / "other.pt", two.state_dict(), meta)
        torch.save({"state_dict": wide.state_dict()}, folder / "wide.pt")
    (folder / "notes.txt").write_text("no checkpoint")
    return folder


@pytest.fixture
def here(files, monkeypatch, tmp_path):
    monkeypatch.chdir(files)
    return tmp_path


FEW = ["--samples-per-class", "3"]


def test_a_checkpoint_of_our_own_needs_no_other_option(here, capsys):
    out = str(here / "s.h5")
    assert main(["surface2d", "--ckpt", "last.pt", "--x=-1:1:3", "--y=0:1:2", "-o", out, *FEW]) == 0
    text, _ = capsys.readouterr()
    assert "verdict:" in text
    found = ls.load(out)
    assert found.loss.shape == (10, 2, 3)
    objective = ls.load_objective("last.pt", partition="class", samples_per_class=3)
    np.testing.assert_allclose(found.loss[:, 0, 1], objective.evaluation.loss, rtol=1e-5)
    assert found.provenance["options"]["directions"] == ["random 1 (seed 0)", "random 2 (seed 0)"]
    for command in (["info", out], ["plot", out, "--groups", "head-tail"], ["export", out, "--to", "vtk"]):
        assert main(command) == 0


@pytest.mark.parametrize("samples", [None, 2])
def test_a_line_of_draws_says_so_below_its_table(here, capsys, samples):
    words = ["surface1d", "--ckpt", "last.pt", "--x=0:1:2", "-o", str(here / "d.h5"), "--partition", "head-tail", *FEW]
    assert main([*words, *([] if samples is None else ["--samples", str(samples)])]) == 0
    text, notes = capsys.readouterr()
    rows = [line for line in text.splitlines() if line.split()[:1] in (["head"], ["tail"])]
    assert ["(draw)" in row for row in rows] == [samples is not None] * 2
    assert ("(draw) ± samples" in text + notes) == (samples is not None)


def test_a_line_to_another_checkpoint_states_the_barrier(here, capsys):
    out = str(here / "b.h5")
    (here / "else").mkdir()
    mark = shutil.copy("snapshots/epoch-0000.pt", here / "else" / "other.pt")
    words = ["surface1d", "--ckpt", "last.pt", "--ckpt-to", "other.pt", "--x=0:1:5", "-o", out, "--json", *FEW]
    assert main([*words, "--mark", str(mark)]) == 0
    document = json.loads(capsys.readouterr().out)
    found = ls.load(out)
    assert [p["barrier"] for p in document["parts"]] == pytest.approx(found.barrier.tolist())
    assert found.marks == ("other", "other (2)")
    assert found.mark_position[1, 0] != pytest.approx(1)
    assert main([*words[:5], "--x=0:1:3", "--match", "-o", str(here / "m.h5"), *FEW]) == 0
    assert "matching:" in capsys.readouterr().err


def test_nothing_lies_between_a_network_and_its_permuted_copy_after_matching(here, capsys):
    state = dict(checkpoints.read("last.pt").state)
    order = torch.arange(len(state["layer1.0.conv1.weight"])).flip(0)
    for name in ("conv1.weight", "bn1.weight", "bn1.bias", "bn1.running_mean", "bn1.running_var"):
        state[f"layer1.0.{name}"] = state[f"layer1.0.{name}"][order]
    state["layer1.0.conv2.weight"] = state["layer1.0.conv2.weight"][:, order]
    torch.save(state, here / "copy.pt")
    words = ["surface1d", "--ckpt", "last.pt", "--ckpt-to", str(here / "copy.pt"), "--x=0:1:3", "--bn", "keep", *FEW]
    assert main([*words, "-o", str(here / "before.h5")]) == 0
    assert (ls.load(here / "before.h5").barrier > 1e-3).any()
    assert main([*words, "--match", "-o", str(here / "after.h5")]) == 2
    assert "after --match nothing lies between them, and every barrier is 0" in capsys.readouterr().err


def test_planes_of_many_kinds_and_one_plane_for_two_networks(here):
    plane = str(here / "plane.h5")
    base = ["--x=-0.1:0.1:2", "-q", "--partition", "head-tail", *FEW]
    kinds = [
        ["--trajectory", "snapshots"],
        ["--ckpt-to", "other.pt"],
        ["--ckpt-to", "other.pt", "--ckpt-to", "snapshots/epoch-0000.pt"],
        ["--directions", "gradient", "--of", "head,tail"],
        ["--directions", "eigen", "--of", "tail", "--save-plane", plane],
    ]
    for i, kind in enumerate(kinds):
        assert main(["surface2d", "--ckpt", "last.pt", *kind, *base, "-o", str(here / f"{i}.h5")]) == 0, kind
    refused = ["surface2d", "--ckpt", "last.pt", *base, "--bn", "freeze", "--save-plane", str(here / "none.h5")]
    assert main([*refused, "-o", str(here / "none.result.h5")]) == 2
    assert not (here / "none.h5").exists()
    words = ["surface2d", "--ckpt", "other.pt", "--directions", plane, *base]
    assert main([*words, "-o", str(here / "a.h5")]) == 0
    assert main([*words, "--plane-origin", "-o", str(here / "b.h5")]) == 0
    there, own = ls.load(here / "b.h5"), ls.load(here / "4.h5")
    np.testing.assert_allclose(there.loss, own.loss, rtol=1e-5)
    np.testing.assert_allclose(there.unit_length, own.unit_length)


@pytest.mark.parametrize("kind", [[], ["--ckpt-to", "other.pt", "--ckpt-to", "snapshots/epoch-0000.pt", "--skewed"]])
def test_a_plane_that_is_read_is_the_plane_that_was_stored(here, kind):
    plane = str(here / "plane.h5")
    words = ["surface2d", "--ckpt", "last.pt", "--x=0:1:2", "-q", "--partition", "all", *FEW]
    assert main([*words, *kind, "--save-plane", plane, "-o", str(here / "a.h5")]) == 0
    stored = ls.load(here / "a.h5")
    assert abs(stored.cosine) > 1e-4
    for more in ([], ["--plane-origin"]):
        assert main([*words, "--directions", plane, *more, "-o", str(here / "b.h5"), "--overwrite"]) == 0
        found = ls.load(here / "b.h5")
        assert (found.unit_length.tolist(), found.cosine) == (stored.unit_length.tolist(), stored.cosine)
        np.testing.assert_array_equal(found.loss, stored.loss)


def test_a_stored_plane_whose_directions_are_parallel_is_refused(here, capsys):
    objective = ls.load_objective("last.pt", samples_per_class=3)
    twice = directions.random(objective, 1)
    twice = twice.joined(twice, length=1.0)
    ls.save(here / "plane.h5", directions.to_plane(objective, twice, {}))
    words = ["surface2d", "--ckpt", "last.pt", "--directions", str(here / "plane.h5"), "--x=0:1:2", *FEW]
    assert main([*words, "-o", str(here / "s.h5")]) == 2
    assert "are parallel" in capsys.readouterr().err


def test_a_direction_file_of_goldsteins_spans_the_same_plane(here):
    objective = ls.load_objective("last.pt", samples_per_class=3)
    axes = directions.random(objective, 2, seed=4)
    with h5py.File(here / "last_weights.h5", "w") as file:
        for name, flat in zip(("xdirection", "ydirection"), axes.theta, strict=True):
            for i, tensor in enumerate(objective.layout.tensors(flat)):
                file[f"{name}/{i}"] = tensor.numpy()
    words = ["surface2d", "--ckpt", "last.pt", "--x=-1:1:3", "-q", *FEW]
    assert main([*words, "--directions", str(here / "last_weights.h5"), "-o", str(here / "theirs.h5")]) == 0
    assert main([*words, "--seed", "4", "-o", str(here / "ours.h5")]) == 0
    theirs, ours = ls.load(here / "theirs.h5"), ls.load(here / "ours.h5")
    np.testing.assert_allclose(theirs.loss, ours.loss, rtol=1e-5)
    np.testing.assert_allclose(theirs.unit_length, ours.unit_length)


def test_a_trajectory_of_two_runs_and_a_plane_through_checkpoints(here, capsys):
    out = str(here / "t.h5")
    words = ["trajectory", "--ckpt", ".", "--grid", "2", "--bn-samples", "16", "--partition", "head-tail", *FEW]
    assert main([*words, "-o", out]) == 0
    found = ls.load(out)
    assert found.mark_epoch.tolist() == [0, 1, 2, 3]
    printed = " ".join(capsys.readouterr().out.split())
    for losses, errors in zip(found.mark_loss, found.mark_loss_stderr, strict=True):
        assert " ".join(map(with_error, losses, errors)) in printed
    last = ls.load_objective("snapshots/epoch-0003.pt", partition="head-tail", samples_per_class=3).evaluation
    error = inference.joined_stderr(last.loss, last.loss_stderr, last.counts, last.counts / last.counts.sum())
    each = (last.overall[0], error), (found.mark_loss[-1, 0], found.mark_loss_stderr[-1, 0])
    assert " ".join(with_error(*own) for own in each) in printed
    assert main(["plot", out]) == 0
    through = ["--through", "other.pt", "--through", "snapshots/epoch-0000.pt", "-o", str(here / "u.h5"), "--json"]
    capsys.readouterr()
    assert main([*words, *through]) == 0
    document = json.loads(capsys.readouterr().out)
    chosen = ls.load(here / "u.h5")
    for mark, errors in zip(document["checkpoints"], chosen.mark_loss_stderr, strict=True):
        assert [mark["loss_stderr"][part] for part in chosen.parts] == pytest.approx(errors)
    assert chosen.mark_distance[0] == pytest.approx(0, abs=1e-3)
    assert (found.batch_norm, chosen.batch_norm) == ("reestimate", "log-interpolate")
    assert found.mark_policy_loss.shape == (4, 2)
    assert main(["plot", out, "--kind", "along"]) == 0


OWN = """
import torch
from torch import nn

class Net(nn.Sequential):
    def forward(self, x):
        return super().forward(x)

def net():
    return Net(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2))

def items(split):
    n, seed = (12, 0) if split == "train" else (6, 1)
    x = torch.randn(n, 3, generator=torch.Generator().manual_seed(seed))
    return [{"x": x[i], "other": x[i, 0], "kind": i % 2} for i in range(n)]
"""


def test_statistics_of_dicts_are_estimated_on_their_training_split(tmp_path, monkeypatch):
    (tmp_path / "own_dicts.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    of_own = {"model": "own_dicts:net", "dataset": "own_dicts:items", "target": "kind"}
    torch.save(models.build("own_dicts:net", 2).state_dict(), "net.pt")
    words = [word for name, value in of_own.items() for word in (f"--{name}", value)]
    words += ["--partition", "all", "--bn", "reestimate", "--x=-1:1:3", "-q"]
    assert main(["surface1d", "--ckpt", "net.pt", *words, "--split", "test", "-o", "s.h5"]) == 0
    objective, other = (ls.load_objective("net.pt", split=split, **of_own) for split in ("test", "train"))
    along = directions.random(objective, 1, seed=0)
    expected = ls.surface(objective, along, [-1.0, 0.0, 1.0], batch_norm="reestimate", training=other.samples)
    np.testing.assert_allclose(ls.load("s.h5").loss, expected.loss, rtol=1e-5)


def test_statistics_are_of_the_whole_training_split_also_where_few_samples_of_each_class_are_analysed(here):
    words = ["surface1d", "--ckpt", "last.pt", "--bn", "reestimate", "--x=-1:1:2", "-q", "-o", str(here / "s.h5"), *FEW]
    assert main(words) == 0
    few, whole = (ls.load_objective("last.pt", partition="class", samples_per_class=n) for n in (3, None))
    along, found = directions.random(few, 1, seed=0), ls.load(here / "s.h5")
    options = {"batch_norm": "reestimate", "training": whole.samples}
    expected = ls.surface(few, along, [-1.0, 1.0], **options)
    np.testing.assert_allclose(found.loss, expected.loss, rtol=1e-5)
    known = found.provenance["options"]["statistics estimated on"]
    assert known == expected.provenance["options"]["statistics estimated on"]
    assert missing(known, whole.source["data_sha256"], "train", len(whole.samples)) == []
    own = ls.surface(whole, directions.random(whole, 1, seed=0), [0.0], batch_norm="reestimate")
    assert own.provenance["options"]["statistics estimated on"] == known
    kept = ls.surface(few, along, [0.0], batch_norm="keep", training=whole.samples)
    assert "statistics estimated on" not in kept.provenance["options"]


def test_points_of_a_run_that_was_cut_are_written_again_by_the_same_command(here, monkeypatch, capsys):
    words = ["distances", "--ckpt", "last.pt", "--finetune", "1", "--partition", "head-tail", "--only", "tail", *FEW]
    words += ["--points", str(here / "of-cut"), "-o", str(here / "cut.h5")]

    def full(*given, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as scarce:
        scarce.setattr("landscape.objective.evaluator.Evaluator.each", full)  # the first step after the training
        assert main(words) == 2
    assert (here / "of-cut" / "tail.pt").exists()
    assert main([*words[:-1], str(here / "other.h5")]) == 2  # which has not written them
    assert "holds checkpoints" in capsys.readouterr().err
    assert main(words) == 0
    assert ls.load(here / "cut.h5").points == ("tail", "start")
    assert main(words) == 2  # it is done
    assert main([str(here / "new") if word == str(here / "of-cut") else word for word in words]) == 2
    assert not (here / "new").exists()


def test_distances_after_training_on_parts_alone(here, capsys):
    out, points = str(here / "d.h5"), here / "points"
    words = ["distances", "--ckpt", "last.pt", "--finetune", "1", "--partition", "head-tail", "--also", "other.pt"]
    more = ["--barriers", "1", "--bn", "keep", "--curvature"]
    assert main([*words, "--points", str(points), *more, "-o", out, *FEW]) == 0
    found = ls.load(out)
    assert np.isfinite(found.barrier).all()
    assert np.isfinite(found.hessian_rise).all()
    assert found.points == ("head", "tail", "start", "other")
    assert (found.loss_stderr > 0).all()
    text = capsys.readouterr().out
    assert "Euclidean distance" in text
    assert with_error(found.loss[0, 3, 0], found.loss_stderr[0, 3, 0]) in text
    before = (points / "head.pt").read_bytes()
    assert main([*words, "--points", str(points), "-o", str(here / "again.h5"), *FEW]) == 2
    assert "holds checkpoints: choose another folder, or pass --overwrite" in capsys.readouterr().err
    assert (points / "head.pt").read_bytes() == before
    assert main([*words, "--points", out, "-o", str(here / "again.h5"), *FEW]) == 2
    assert "is a file: name a folder" in capsys.readouterr().err
    # The points are checkpoints, which span a plane.
    plane = ["--ckpt-to", str(points / "head.pt"), "--ckpt-to", str(points / "tail.pt"), "--x=0:1:2"]
    assert main(["surface2d", "--ckpt", "last.pt", *plane, "-q", "-o", str(here / "p.h5"), *FEW]) == 0
    surface = ls.load(here / "p.h5")
    assert surface.marks == ("head", "tail")


def test_the_highest_barrier_is_one_between_two_points_with_its_error():
    n = len(distances().points)
    barrier = np.zeros((1, n, n, 3))
    barrier[0, 1, 2, 1] = barrier[0, 2, 1, 1] = 0.5
    errors = np.full((1, n, n, 3), 0.1) * (1 - np.eye(n))[..., None]
    errors[0, 0, 2, 0] = errors[0, 2, 0, 0] = 0.3
    found = dataclasses.replace(distances(runs=1), barrier=barrier, barrier_stderr=errors)
    highest = _highest(found)
    sizes = [with_error(0.0, 0.3), with_error(0.5, 0.1), with_error(0.0, 0.1)]
    between = ["-", f"{found.points[1]} and {found.points[2]}", "-"]
    assert highest == [list(row) for row in zip(found.parts, sizes, between, strict=True)]


def test_a_checkpoint_with_the_name_of_a_part_takes_no_point_of_its_own_away(here):
    also = [here / name for name in ("tail.pt", "start.pt", "a b.pt", "a-b.pt")]
    for k, path in enumerate(also):
        shutil.copy(f"snapshots/epoch-000{k}.pt", path)
    words = ["distances", "--ckpt", "last.pt", "--finetune", "1", "--partition", "head-tail", "--only", "tail", *FEW]
    words += [word for path in also for word in ("--also", str(path))]
    assert main([*words, "--points", str(here / "points"), "-q", "-o", str(here / "d.h5")]) == 0
    found = ls.load(here / "d.h5")
    assert found.points == ("tail", "start", "tail (2)", "start (2)", "a b", "a-b")
    assert (found.euclidean[0] > 0).sum() == 6 * 5
    written = [checkpoints.read(file).meta["convergence_point"] for file in (here / "points").iterdir()]
    assert sorted(written) == sorted(found.points)


def test_a_part_called_start_stands_beside_the_start(files):
    objective = ls.load_objective(files / "last.pt", partition={"start": [0]}, samples_per_class=3)
    run = Finetuning(epochs=1, lr=0.01, only=None, seed=0).run("r", objective, {})
    assert run.names == ["start", "start (2)"]
    assert list(run.tuned) == ["start"]
    assert torch.equal(run.points["start (2)"][0].theta, run.start.theta)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["surface1d", "--ckpt", "last.pt", "--x=1:-1:5"], "--x=1:-1:5 runs backwards: write --x=-1:1:5"),
        (["surface1d", "--ckpt", "last.pt", "--x=0:1"], "is not of the form MIN:MAX:N"),
        (["surface1d", "--ckpt", "last.pt", "--weight-decay", "0.1"], "No such option '--weight-decay'"),
        (["trajectory", "--ckpt", ".", "--also", "."], "--also . is a run that is given already"),
        (["trajectory", "--ckpt", ".", "--weight-decay", "0.1"], "No such option '--weight-decay'"),
        (["surface1d", "--ckpt", "last.pt", "--x=0:1:1"], "for one point"),
        (["surface1d", "--ckpt", "last.pt", "--x=0:1:0"], "needs finite ends and at least one point"),
        (["surface2d", "--ckpt", "last.pt", "--directions", "ckpt"], "--directions ckpt needs --ckpt-to"),
        (["surface2d", "--ckpt", "last.pt", "--directions", "sideways"], "'sideways' is unknown: choose random"),
        (["surface2d", "--ckpt", "last.pt", "--of", "0"], "--of goes with --directions eigen or gradient"),
        (
            ["surface2d", "--ckpt", "last.pt", "--directions", "gradient", "--of", "head"],
            "--of head is 1 of --directions gradient: a surface2d needs two parts, as head,tail",
        ),
        (
            ["surface1d", "--ckpt", "last.pt", "--directions", "gradient", "--of", "0,1"],
            "--of 0,1 is 2 of --directions gradient: a surface1d needs one part, as head",
        ),
        (
            ["surface2d", "--ckpt", "last.pt", "--directions", "eigen", "--of", "head", "--norm", "layer"],
            "--norm is for random directions",
        ),
        (["surface1d", "--ckpt", "last.pt", "--ckpt-to", "other.pt", "--ignore", "none"], "--ignore is for random"),
        (["surface2d", "--ckpt", "last.pt", "--skewed"], "--skewed has no effect"),
        (["surface2d", "--ckpt", "last.pt", "--directions", "plane.h5", "--skewed"], "--skewed has no effect"),
        (["surface2d", "--ckpt", "last.pt", "--directions", "plane.h5", "--orthogonal"], "--orthogonal has no effect"),
        (["surface1d", "--ckpt", "last.pt", "--ckpt-to", "other.pt", "--skewed"], "--skewed has no effect"),
        (["surface1d", "--ckpt", "last.pt", "--ckpt-to", "wide.pt"], "does not fit the model"),
        (["surface1d", "--ckpt", "last.pt", "--ckpt-to", "other.pt", "--params", "conv1"], "leave --params out"),
        (["surface1d", "--ckpt", "last.pt", "--ckpt-to", "last.pt"], "has the same parameters as the checkpoint"),
        (["surface1d", "--ckpt", "last.pt", "--ckpt-to", "notes.txt"], "notes.txt"),
        (["surface2d", "--ckpt", "last.pt", "--bn", "freeze"], "'--bn': 'freeze' is not one of 'log-interpolate'"),
        (["surface2d", "--ckpt", "last.pt", "--norm", "filters"], "'--norm': 'filters' is not one of"),
        (["surface2d", "--ckpt", "last.pt", "--directions", "gone.h5"], "there is no file gone.h5"),
        (["trajectory", "--ckpt", "last.pt"], "a path needs at least three"),
        (["trajectory", "--ckpt", ".", "--through", "other.pt"], "--through is given 1 times"),
        (["trajectory", "--ckpt", ".", "--every", "9"], "--every 9 leaves 2 checkpoints: a path needs three"),
        (["trajectory", "--ckpt", ".", "--grid", "1"], "'--grid': 1 is not in the range x>=2"),
        (["trajectory", "--ckpt", "nowhere/*.pt"], "matches no file"),
        (["distances", "--ckpt", "last.pt"], "is not the folder of a run"),
        (["distances", "--ckpt", "last.pt", "--only", "0"], "--only needs --finetune"),
        (["distances", "--ckpt", "last.pt", "--finetune-lr", "0.1"], "--finetune-lr needs --finetune"),
        (["distances", "--ckpt", "last.pt", "--finetune", "1", "--only", "x"], "no part 'x'"),
        (
            ["distances", "--ckpt", "last.pt", "--finetune", "1", "--also-run", "other.pt", "--params", "conv1"],
            "leave --params out",
        ),
        (["distances", "--ckpt", "last.pt", "--finetune", "1", "--over", "x"], "'--over': 'x' is not one of"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(here, words, message, capsys):
    out = here / "out.h5"
    assert main([*words, "-o", str(out), *FEW]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("landscape: error: ")
    assert message in error
    assert list(here.iterdir()) == []


def test_ranges_are_evenly_spaced():
    np.testing.assert_array_equal(parse_range("-1:1:5", "--x"), [-1, -0.5, 0, 0.5, 1])
    assert parse_range("0:0:1", "--x").tolist() == [0]
    with pytest.raises(InputError, match="needs finite ends"):
        parse_range("0:inf:3", "--x")
