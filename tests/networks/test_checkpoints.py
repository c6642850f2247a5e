"""Checkpoints of every layout in use are read, nothing in them is run, and what is wrong is said in one line."""

import argparse
import collections
import hashlib
import json
import os
import pathlib
import pickle
import resource
import signal
import warnings
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from refusals import refused
from torch import nn

from landscape.errors import InputError, StoreError
from landscape.networks import checkpoints

STATE = {"conv1.weight": torch.arange(4.0).view(2, 2), "bn1.num_batches_tracked": torch.tensor(3)}
EMA = {name: tensor + 1 for name, tensor in STATE.items()}


class Unknown:
    """What a training script may pickle beside its weights."""


class Writes:
    """A pickle that makes a folder when it is read."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.fixture(params=["zip", "legacy"])
def saved(request, tmp_path):
    """Saves an object in torch's format of today, and in that before 1.6; returns the path."""

    def save(content, name="ckpt.pth"):
        torch.save(content, tmp_path / name, _use_new_zipfile_serialization=request.param == "zip")
        return tmp_path / name

    return save


def prefixed(prefix, state=STATE):
    return collections.OrderedDict((prefix + name, tensor) for name, tensor in state.items())


def refusal(path, **options):
    with pytest.raises(InputError) as caught:
        checkpoints.read(path, **options)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    return str(caught.value)


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


LAYOUTS = {
    "bare": (STATE, "", {}),
    "bare with prefix": (prefixed("module."), "", {}),
    "akamaster": ({"state_dict": prefixed("module."), "best_prec1": 92.5}, "state_dict", {"best_prec1": 92.5}),
    "Goldstein": ({"state_dict": STATE, "acc": 93, "epoch": 300}, "state_dict", {"acc": 93, "epoch": 300}),
    "Saddle-LongTail": (
        {
            "epoch": 7,
            "arch": "resnet32",
            "state_dict": STATE,
            "best_acc1": torch.tensor(80.5),
            "optimizer": {"state": {}},
        },
        "state_dict",
        {"epoch": 7, "best_acc1": 80.5},
    ),
    "gkp-gsa": ({"state_dict": STATE, "best_acc1": np.float64(80.5)}, "state_dict", {"best_acc1": 80.5}),
    "mode connectivity": ({"epoch": 2, "model_state": STATE, "optimizer_state": {}}, "model_state", {"epoch": 2}),
    "kuangliu": ({"net": STATE, "acc": 95.5, "epoch": 1}, "net", {"acc": 95.5, "epoch": 1}),
    "torchvision": ({"model": STATE, "epoch": 1, "scaler": None}, "model", {"epoch": 1}),
    "model's name beside": ({"model": "resnet32", "net": STATE}, "net", {}),
    "model_state_dict": ({"model_state_dict": STATE}, "model_state_dict", {}),
    "nested": ({"model": {"state_dict": STATE, "name": "resnet32"}}, "model.state_dict", {}),
    "average alone": ({"model_ema": STATE}, "model_ema", {}),
    "not finite": ({"net": STATE, "acc": float("nan"), "val_accuracy": 0.5}, "net", {"val_accuracy": 0.5}),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_weights_are_found_in_each_layout_with_what_stands_beside(layout, saved):
    content, key, beside = LAYOUTS[layout]
    path = saved(content)
    found = checkpoints.read(path)
    assert_same(found.state, prefixed("module.") if "module." in next(iter(found.state)) else STATE)
    assert (found.key, found.found, found.meta, found.path) == (key, beside, {}, str(path))
    json.dumps(found.found, allow_nan=False)
    assert found.notes == (("the weights of 'model_ema' are an average over training",) if key == "model_ema" else ())


def test_the_two_halves_of_a_decoupled_model_are_joined(saved):
    halves = {"feat_model": prefixed("module."), "classifier": {"module.fc.weight": torch.eye(2)}}
    found = checkpoints.read(saved({"state_dict_best": halves, "best_acc": 0.5}))
    assert_same(found.state, {**halves["feat_model"], **halves["classifier"]})
    assert (found.key, found.found) == ("state_dict_best", {"best_acc": 0.5})


def test_halves_that_share_a_name_are_not_joined(saved):
    assert "no weights" in refusal(saved({"state_dict_best": {"feat_model": STATE, "classifier": STATE}}))


def test_the_average_is_left_aside_and_the_notes_say_so(saved):
    path = saved({"state_dict_ema": EMA, "state_dict": STATE})
    found = checkpoints.read(path)
    assert_same(found.state, STATE)
    assert found.notes == ("weights taken from 'state_dict'; 'state_dict_ema' holds an average over training",)
    chosen = checkpoints.read(path, key="state_dict_ema")
    assert_same(chosen.state, EMA)
    assert "'state_dict_ema' are an average" in chosen.notes[0]


def test_a_key_may_go_into_nested_mappings_and_prefixes(saved):
    path = saved({"a": {"b.c": {**prefixed("encoder_q."), "queue": torch.zeros(3)}}, "state_dict": EMA})
    found = checkpoints.read(path, key="a.b.c.encoder_q")
    assert_same(found.state, STATE)
    assert found.key == "a.b.c.encoder_q"


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("states", ("states", "state_dict", "epoch")),
        ("epoch.x", ("x",)),
        ("epoch", ("ckpt_key", "epoch")),
    ],
)
def test_a_key_that_leads_nowhere_says_what_is_there(key, message, saved):
    path = saved({"state_dict": STATE, "epoch": 3})
    with refused(InputError, *message):
        checkpoints.read(path, key=key)


@pytest.mark.parametrize(
    ("content", "shown"),
    [
        ({"epoch": 3, "optimizer": {}}, "'epoch' (int), 'optimizer' (dict)"),
        ({}, "nothing"),
        (torch.zeros(2), "one Tensor"),
        ({"w": torch.zeros(2), "step": 3}, "'w' (Tensor), 'step' (int)"),
        ({"two\nlines": 3}, r"'two\nlines' (int)"),
    ],
)
def test_a_file_without_weights_says_what_it_holds(content, shown, saved):
    assert f"which holds {shown}: say where with ckpt_key" in refusal(saved(content))


INERT = {
    "Namespace": argparse.Namespace(lr=0.1, kind=int, gpus=[0]),
    "path": pathlib.PurePosixPath("/data"),
    "own path": Path("/data"),
    "Windows path": pathlib.PureWindowsPath("C:/data"),
    "defaultdict": collections.defaultdict(list, {"loss": [1.0]}),
    "defaultdict of numbers": collections.defaultdict(float, {"loss": 1.0}),
    "Counter": collections.Counter("aab"),
    "array": np.arange(3),
    "array of text": np.array(["cat", "dog"]),
    "array of bytes": np.array([b"cat", b"dog"]),
    "strided array": np.arange(6.0).reshape(2, 3)[:, ::2],
    "dtype": np.dtype("float32"),
    "dates": np.array(["2020-01-01"], dtype="datetime64[D]"),
    **{f"numpy {kind}": np.array(1).astype(kind)[()] for kind in "?bhilqBHILQefdgFD"},
    "numpy text": np.str_("cat"),
}


@pytest.mark.parametrize("kind", INERT)
def test_what_cannot_act_may_stand_beside_the_weights(kind, saved):
    found = checkpoints.read(saved({"state_dict": STATE, "extra": {"deep": [INERT[kind]]}}))
    assert_same(found.state, STATE)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"numpy._core.multiarray", b"numpy.core.multiarray"),
        (b"numpy.core.multiarray", b"numpy._core.multiarray"),
        (b"pathlib\nPosixPath", b"pathlib._local\nPosixPath"),
        (b"pathlib\nPosixPath", b"pathlib\nWindowsPath"),
    ],
)
def test_names_of_other_versions_and_systems_are_read_too(old, new, tmp_path):
    content = {"state_dict": STATE, "best_acc1": np.float64(80.5), "sizes": np.arange(3), "root": Path("/data")}
    torch.save(content, tmp_path / "ckpt.pth", _use_new_zipfile_serialization=False)
    # the old format has no lengths or checksums around its pickle, so that names can be exchanged in place
    path = tmp_path / "other.pth"
    path.write_bytes((tmp_path / "ckpt.pth").read_bytes().replace(old, new))
    found = checkpoints.read(path)
    assert_same(found.state, STATE)
    assert found.found == {"best_acc1": 80.5}


@pytest.fixture
def gone(monkeypatch):
    """Let a class of this file be one that cannot be imported."""
    return lambda kind: monkeypatch.delattr(f"{__name__}.{kind.__name__}")


def test_objects_of_unknown_classes_are_passed_over(saved, gone):
    path = saved({"state_dict": STATE, "extra": [Unknown()], "epoch": 3, "kind": nn.ReLU})
    gone(Unknown)
    found = checkpoints.read(path)
    assert_same(found.state, STATE)
    assert found.found == {"epoch": 3}


def test_nothing_is_run_where_the_weights_are_found_without(saved, tmp_path):
    path = saved({"state_dict": STATE, "extra": Writes(tmp_path / "made")})
    assert_same(checkpoints.read(path).state, STATE)
    assert_same(checkpoints.read(path, trust_pickle=True).state, STATE)
    assert not (tmp_path / "made").exists()


def test_weights_that_only_code_makes_are_read_if_it_is_trusted(saved, tmp_path):
    path = saved({"state_dict": Made(STATE)})
    advice = "'state_dict' (__builtin__.eval): say where with ckpt_key='a.b', or, if they are made by code"
    assert advice in refusal(path)
    assert_same(checkpoints.read(path, trust_pickle=True).state, STATE)


class Made:
    """Weights that come into being when the pickle is run."""

    def __init__(self, state):
        self.state = state

    def __reduce__(self):
        return eval, ("dict(state)", {"state": self.state})


def test_trust_is_not_used_where_it_is_not_needed(saved, monkeypatch):
    path = saved({"state_dict": STATE})
    monkeypatch.setattr(torch, "load", None)
    assert_same(checkpoints.read(path, trust_pickle=True).state, STATE)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.nothing = nn.BatchNorm1d(3), None
        self.register_buffer("passing", torch.zeros(2), persistent=False)
        self.register_parameter("absent", None)


@pytest.mark.parametrize(("wrap", "key"), [(lambda m: m, ""), (lambda m: {"net": m, "epoch": 3}, "net")])
def test_a_whole_module_is_read_without_its_code(wrap, key, saved, gone):
    model = nn.Sequential(nn.Linear(2, 3), Block(), nn.ReLU())
    path, expected = saved(wrap(model)), model.state_dict()
    gone(Block)
    found = checkpoints.read(path)
    assert_same(found.state, expected)
    assert found.key == key
    assert not any(t.requires_grad for t in found.state.values())


def test_a_trusted_file_whose_code_is_missing_says_what_is_missing(saved, gone):
    path = saved({"extra": Unknown()})
    gone(Unknown)
    assert "code that cannot be imported (AttributeError: " in refusal(path, trust_pickle=True)


@pytest.mark.parametrize("protocol", [1, 2, 3, 4, 5])
def test_all_pickle_protocols_are_read(saved, protocol, tmp_path):
    content = {"state_dict": STATE, "epoch": 3, "extra": [Unknown(), {1, 2}, frozenset("ab"), b"bytes", 10**30, -1.5]}
    torch.save(content, tmp_path / "ckpt.pth", pickle_protocol=protocol)
    found = checkpoints.read(tmp_path / "ckpt.pth")
    assert_same(found.state, STATE)
    assert found.found == {"epoch": 3}


def test_weights_in_tuples_and_lists_are_found_and_can_be_named(saved):
    assert_same(checkpoints.read(saved((STATE, 12))).state, STATE)
    both = saved([{"net": STATE}, {"net": EMA}])
    assert "which holds '0' (dict), '1' (dict): say where" in refusal(both)
    assert_same(checkpoints.read(both, key="1").state, EMA)
    assert_same(checkpoints.read(both, key="0.net").state, STATE)


def test_a_folder_of_a_run_suggests_a_file_that_analyses_read(tmp_path):
    (tmp_path / "state.pt").touch()
    assert "state.pt" not in refusal(tmp_path)
    for name in ("best.pt", "last.pt", "z.pt"):
        (tmp_path / name).touch()
    assert refusal(tmp_path).endswith(f"such as {tmp_path / 'last.pt'}")


def test_a_folder_says_what_it_is(tmp_path):
    assert "is a folder: set ckpt to a file in it" in refusal(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "epoch=3.ckpt").touch()
    assert "such as " in refusal(tmp_path)
    for name, words in {
        ".metadata": "dcp_to_torch",
        "zero_pp_rank_0.pt": "zero_to_fp32.py",
    }.items():
        folder = tmp_path / words.split(".")[0].replace(" ", "-")
        folder.mkdir()
        (folder / name).touch()
        assert words in refusal(folder)
    folder = tmp_path / "shards"
    folder.mkdir()
    (folder / "model.safetensors.index.json").touch()
    assert "cannot be read" in refusal(folder)


def test_torchscript_is_read_if_it_is_trusted(tmp_path):
    model = nn.Linear(2, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.trace(model, torch.zeros(1, 2)).save(tmp_path / "scripted.pt")
    assert "TorchScript archive, which contains code" in refusal(tmp_path / "scripted.pt")
    assert_same(checkpoints.read(tmp_path / "scripted.pt", trust_pickle=True).state, model.state_dict())


def test_safetensors_are_read(tmp_path):
    path = tmp_path / "model.safetensors"
    safetensors.torch.save_file(prefixed("model."), path)
    assert_same(checkpoints.read(path).state, prefixed("model."))
    assert_same(checkpoints.read(path, key="model").state, STATE)
    path.write_bytes(path.read_bytes()[:-3])
    assert "truncated, damaged or not a safetensors file" in refusal(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n", "fetch them with git lfs pull"),
        (b"\x89HDF\r\n\x1a\n" + bytes(100), "is a result file (HDF5), not a checkpoint"),
        (
            b"<!DOCTYPE html>\n<html>",
            "is not a checkpoint: no file of torch.save or safetensors begins with b'<!DOCTYPE ht'",
        ),
        (np.random.default_rng(0).bytes(500), "is not a checkpoint"),
        (pickle.dumps({"w": 1}), "is not a checkpoint"),
        (b"PK\x03\x04" + bytes(100), "is truncated or damaged"),
    ],
)
def test_what_is_no_checkpoint_is_refused_for_what_it_is(content, message, tmp_path):
    path = tmp_path / "last.pt"
    path.write_bytes(content)
    assert message in refusal(path)
    assert message in refusal(path, trust_pickle=True)


def test_archives_of_others_are_refused(tmp_path):
    np.savez(tmp_path / "arrays.npz", w=np.ones(3))
    assert "is a zip archive, but not of torch.save" in refusal(tmp_path / "arrays.npz")


@pytest.mark.parametrize("trust", [False, True])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_a_file_that_was_cut_off_is_damaged(share, trust, saved):
    path = saved({"state_dict": {"w": torch.zeros(1000)}})
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    assert "is truncated or damaged" in refusal(path, trust_pickle=trust)


def test_missing_files_and_folders_are_named(tmp_path):
    assert "cannot be read: No such file or directory" in refusal(tmp_path / "last.pt")
    assert "is a folder" in refusal(tmp_path)


def test_what_is_written_is_read_again(tmp_path):
    meta = {"model": "resnet32", "n_classes": 10, "dataset": {"name": "cifar10", "imbalance": 0.01}, "epoch": 3}
    path = tmp_path / "last.pt"
    checkpoints.write(path, STATE, meta)
    found = checkpoints.read(path)
    assert_same(found.state, STATE)
    assert (found.meta, found.key, found.found, found.notes) == (meta, "state_dict", {"epoch": 3}, ())
    assert torch.load(path, weights_only=True)["format"] == "landscape-checkpoint"
    assert os.listdir(tmp_path) == ["last.pt"]


def test_the_digest_is_of_the_file(saved):
    path = saved({"state_dict": STATE})
    assert checkpoints.read(path).sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_only_the_weights_themselves_are_written(tmp_path):
    flat = torch.zeros(100_000)
    checkpoints.write(tmp_path / "last.pt", {"w": flat[:10].view(2, 5).requires_grad_()}, {})
    assert (tmp_path / "last.pt").stat().st_size < 10_000
    assert not torch.load(tmp_path / "last.pt", weights_only=True)["state_dict"]["w"].requires_grad


def test_parameters_are_read_as_plain_tensors(saved):
    path = saved({"state_dict": dict(nn.Linear(2, 3).named_parameters())})
    assert not any(t.requires_grad for t in checkpoints.read(path).state.values())


@pytest.mark.parametrize(
    ("meta", "message"),
    [
        ({"counts": {"train": [1, np.int64(2)]}}, ("counts", "train", 1, 2)),
        ({"loss": float("nan")}, ("loss",)),
        ({"counts": {0: 3}}, ("counts", 0, 3)),
    ],
)
def test_meta_that_json_cannot_hold_is_refused_with_its_place(meta, message, tmp_path):
    with refused(InputError, *message):
        checkpoints.write(tmp_path / "last.pt", STATE, meta)
    assert os.listdir(tmp_path) == []


def test_a_failed_write_leaves_the_old_file(tmp_path, full_disk):
    path = tmp_path / "last.pt"
    checkpoints.write(path, STATE, {"epoch": 1})

    with refused(StoreError, "last.pt", "No space left on device"), full_disk():
        checkpoints.write(path, EMA, {"epoch": 2})
    assert checkpoints.read(path).meta == {"epoch": 1}
    assert os.listdir(tmp_path) == ["last.pt"]


def test_a_disk_that_fills_while_tensors_are_written_is_said_with_its_remedy(tmp_path, monkeypatch):
    """A limit on the size of files does what a full disk does: a write in the middle of the archive fails."""
    path = tmp_path / "last.pt"
    checkpoints.write(path, STATE, {"epoch": 1})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, limits[1]))
    try:
        with refused(StoreError, "last.pt", "File too large"):
            checkpoints.write(path, {f"{i}.weight": torch.zeros(2**14) for i in range(4)}, {"epoch": 2})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    assert checkpoints.read(path).meta == {"epoch": 1}
    assert os.listdir(tmp_path) == ["last.pt"]


def test_a_folder_that_is_missing_cannot_be_written_to(tmp_path):
    with refused(StoreError, "No such file or directory"):
        checkpoints.write(tmp_path / "runs" / "last.pt", STATE, {})


def test_files_of_newer_versions_are_refused_by_their_version(saved):
    own = {"format": "landscape-checkpoint", "version": 2, "state_dict": STATE, "meta": {}}
    found = refusal(saved(own))
    assert "checkpoint 2, this one reads up to 1" in found
    assert "pip install" not in found  # a package index has none of this name
    assert "it is damaged" in refusal(saved({**own, "version": 1, "meta": None}))


def test_the_public_resnet32_is_read():
    root = os.environ.get("LANDSCAPE_TEST_DATA")
    if root is None:
        pytest.skip("LANDSCAPE_TEST_DATA is unset: no public checkpoint to read")
    found = checkpoints.read(Path(root) / "checkpoints" / "resnet32-d509ac18.th")
    assert found.sha256.startswith("d509ac18")  # the name carries the digest, as torch.hub's files do
    assert found.key == "state_dict"
    assert found.found["best_prec1"] == pytest.approx(92.78, abs=0.01)
    assert found.state["module.linear.weight"].shape == (10, 64)
