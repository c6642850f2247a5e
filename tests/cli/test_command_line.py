"""`landscape hessian` from end to end: what a user types, what a user sees, what is left on the disk."""

import json
import os
import re
import runpy
import shutil
import signal
import sys

import numpy as np
import pytest
import torch
from fresh import Program

import landscape as ls
from landscape.cli import main
from landscape.curvature import probing, verify
from landscape.data import datasets
from landscape.errors import InputError
from landscape.networks import checkpoints, models

USER = """
import torch
from torch import nn
from torch.nn import functional as F

class Net(nn.Module):
    def __init__(self, n_classes=3):
        super().__init__()
        self.encoder, self.fc = nn.Linear(6, 4), nn.Linear(4, n_classes)
    def forward(self, x):
        features = torch.tanh(self.encoder(x))
        return features, self.fc(features)

def data(split):
    g = torch.Generator().manual_seed(0)
    return torch.utils.data.TensorDataset(torch.randn(10, 6, generator=g), torch.tensor([0] * 6 + [1] * 3 + [2]))

def hole(split):
    dataset = data(split)
    return Named(dataset.tensors[0], dataset.tensors[1] * 2)

class Named(torch.utils.data.TensorDataset):
    classes = ["zero", "one", "two", "three", "four"]

def net5(): return Net(5)
def smoothed(z, y): return F.cross_entropy(z, y, reduction="none", label_smoothing=0.1)
def mean(z, y): return F.cross_entropy(z, y)
def nan(z, y): return F.cross_entropy(z, y, reduction="none") * float("nan")
"""


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A user's folder: a checkpoint of the toolkit's own, a foreign one, and a module."""
    folder = tmp_path_factory.mktemp("user")
    (folder / "mymodule.py").write_text(USER)
    samples = datasets.load("digits-lt")
    net = runpy.run_path(str(folder / "mymodule.py"))["Net"]
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(0)
        model = models.build("small-resnet", 10, in_channels=1)
        torch.save({"state_dict": net().state_dict()}, folder / "foreign.pt")
        torch.save({"state_dict": net(5).state_dict()}, folder / "foreign5.pt")
    meta = {"model": "small-resnet", "n_classes": 10, "dataset": samples.options, "method": "ce"}
    checkpoints.write(folder / "own.pt", model.state_dict(), meta)
    broken = {k: v * np.nan if k == "linear.weight" else v for k, v in model.state_dict().items()}
    checkpoints.write(folder / "nan.pt", broken, meta)
    (folder / "notes.txt").write_text("not a checkpoint")
    (folder / "groups.json").write_text('{"low": [0, 1], "high": [8, 9]}')
    (folder / "bad.json").write_text('{"low": [0, 1')
    return folder


@pytest.fixture
def here(files, tmp_path, monkeypatch):
    """A copy of the user's folder, in which the user is."""
    shutil.copytree(files, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    sys.modules.pop("mymodule", None)
    return tmp_path


QUICK = ["--steps", "3", "--probes", "2", "--samples-per-class", "4", "--backend", "reverse"]
"""Few steps and samples, for which a trace of the network does not pay."""
FOREIGN = ["hessian", "--ckpt", "foreign.pt", "--model", "mymodule:Net", "--dataset", "mymodule:data"]


def test_a_checkpoint_of_our_own_needs_no_other_option(here, capsys):
    less = ["--trace", "probes", "--no-sampling-errors", *QUICK[:4], *QUICK[6:]]  # of all samples
    assert main(["hessian", "--ckpt", "own.pt", "--per-class", *less]) == 0
    out, err = capsys.readouterr()
    assert err.startswith("small-resnet on digits-lt, train split, 417 samples in 10 parts")
    assert "accuracy" in err.splitlines()[1]
    assert "lambda_max" in out
    found = ls.load(here / "own.hessian.h5")
    assert found.n_samples.tolist() == [124, 88, 63, 45, 32, 23, 16, 12, 8, 6]
    for command in (["info"], ["plot"], ["compare"], ["export", "--to", "csv"]):
        assert main([command[0], "own.hessian.h5", *command[1:]]) == 0
    assert (here / "own.hessian.density.png").stat().st_size > 10_000


def test_a_users_model_data_and_loss(here, capsys):
    assert (
        main([*FOREIGN, "--loss", "mymodule:smoothed", "--per-class", "--dtype", "float64", "--json", *QUICK[:4]]) == 0
    )
    out, err = capsys.readouterr()
    document = json.loads(out)
    assert not err
    assert [p["n_samples"] for p in document["parts"]] == [6, 3, 1]


@pytest.mark.parametrize("parts", [["0", "1", "2"], ["all"]])
def test_the_numbers_of_each_part_are_printed_before_the_table(here, capsys, parts):
    assert main([*FOREIGN, "--out", "a.h5", *["--per-class"] * (len(parts) > 1), *QUICK]) == 0
    found, lines = ls.load(here / "a.h5"), capsys.readouterr().err.splitlines()
    for p, part in enumerate(parts):
        (line,) = [line for line in lines if line.startswith(f"{part}: lambda_max ")]
        printed = [float(word) for word in re.findall(r"(?:lambda_max|trace) (\S+)", line)]
        assert printed == pytest.approx([found.lambda_max[p], found.trace[p]], rel=0.1)  # two digits


def test_quiet_says_nothing_and_verify_shows_both(here, capsys):
    assert main([*FOREIGN, "-q", "--out", "a.h5", *QUICK[:4]]) == 0
    assert capsys.readouterr() == ("", "")
    assert main([*FOREIGN, "--out", "b.h5", "--steps", "30", "--verify", "pyhessian"]) == 0
    assert "PyHessian's own eigenvalues() and trace()" in capsys.readouterr().out


def test_data_that_pyhessian_does_not_take_are_refused_before_the_spectrum(here, capsys, monkeypatch):
    def refuse(objective):
        raise InputError(f"{len(objective.partition)} part")

    monkeypatch.setattr(verify, "refuse_data", refuse)
    refused([*FOREIGN, "--out", "c.h5", *QUICK[:4], "--verify", "pyhessian"], capsys, "1 part")


@pytest.mark.parametrize(
    ("partition", "parts"),
    [("head-tail", ("head", "tail")), ("groups.json", ("low", "high")), ("many-medium-few", ("many", "medium", "few"))],
)
def test_partitions(here, partition, parts):
    words = ["hessian", "--ckpt", "own.pt", "--partition", partition, "--out", "p.h5", "-q", *QUICK]
    assert main([*words, "--trace", "probes", "--no-sampling-errors"]) == 0
    assert ls.load("p.h5").parts == parts


@pytest.mark.parametrize("size", ["inf", "1e300", "0"])
def test_a_cache_may_have_any_size(here, size):
    assert main([*FOREIGN, "--cache", size, "--out", "a.h5", "-q", *QUICK]) == 0


def refused(arguments, capsys, words):
    """Check for one line that says why, exit code 2, and nothing on the disk."""
    before = {p: os.stat(p).st_mtime_ns for p in os.listdir() if p != "__pycache__"}
    capsys.readouterr()
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    errors = [line for line in err.splitlines() if line.startswith("landscape: error: ")]
    assert len(errors) == 1
    assert errors[0] == err.splitlines()[-1]
    assert words in errors[0]
    assert "lambda_max" not in out
    assert before == {p: os.stat(p).st_mtime_ns for p in os.listdir() if p != "__pycache__"}


OWN = ["hessian", "--ckpt", "own.pt"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["hessian", "--ckpt", "absent.pt"], "absent.pt"),
        (["hessian", "--ckpt", "notes.txt"], "not a checkpoint"),
        (["hessian", "--ckpt", "foreign.pt"], "--dataset"),
        (["hessian", "--ckpt", "nan.pt"], "linear.weight"),
        ([*OWN, "--model", "resnet20"], "does not fit the model"),
        (["hessian", "--ckpt", "foreign5.pt", *FOREIGN[3:]], "5 classes"),
        (["hessian", "--per-class", "--ckpt", "foreign5.pt", "--model", "mymodule:net5", "--dataset", "mymodule:hole",
          "--classes", "one"], "part one has no samples"),
        ([*FOREIGN, "--loss", "mymodule:mean"], 'reduction="none"'),
        ([*FOREIGN, "--loss", "mymodule:nan"], "loss of the first samples is"),
        ([*FOREIGN, "--loss", "mymodule:absent"], "absent"),
        ([*OWN, "--operator", "laplacian"], "laplacian"),
        ([*OWN, "--loss", "hinge"], "hinge"),
        ([*OWN, "--partition", "halves"], "halves"),
        ([*OWN, "--partition", "bad.json"], "bad.json"),
        ([*OWN, "--partition", "absent.json"], "absent.json"),
        ([*OWN, "--dtype", "float16"], "float16"),
        ([*OWN, "--device", "abacus"], "abacus"),
        ([*OWN, "--distribution", "cauchy"], "cauchy"),
        ([*OWN, "--backend", "magic"], "magic"),
        ([*OWN, "--verify", "me"], "me"),
        ([*OWN, "--split", "validation"], "validation"),
        ([*OWN, "--dataset", "mnist"], "mnist"),
        ([*OWN, "--model", "vgg"], "vgg"),
        ([*OWN, "--normalize", "0.5"], "0.5"),
        ([*OWN, "--classes", "eleven"], "eleven"),
        ([*OWN, "--params", "absent.*"], "absent.*"),
        ([*OWN, "--steps", "0"], "--steps"),
        ([*OWN, "--batch-size", "0"], "--batch-size"),
        ([*OWN, "--per-class", "--partition", "all"], "--per-class"),
        ([*OWN, "--verify", "pyhessian", "--operator", "ggn"], "--verify"),
        ([*OWN, "--verify", "pyhessian", "--weight-decay", "0.1"], "PyHessian knows none"),
        ([*OWN, "--verify", "pyhessian", "--samples", "9"], "--samples"),
        ([*OWN, "--verify", "pyhessian", "--accuracy", "0.1"], "--accuracy"),
        ([*OWN, "--verify", "pyhessian", "--dry-run"], "--dry-run"),
        ([*OWN, "--operator", "residual", "--weight-decay", "0.1"], "--weight-decay"),
        ([*OWN, "--operator", "empirical-fisher", "--weight-decay", "0.1"], "--weight-decay"),
        ([*OWN, "--out", "own.pt", "--overwrite"], "own.pt is a file of another kind and is kept"),
        ([*OWN, "--out", "absent/out.h5"], "absent"),
        ([*OWN, "--out", "."], "."),
        ([*OWN, "--steps", "many"], "many"),
    ],
    ids=lambda value: " ".join(value[-2:]) if isinstance(value, list) else "",
)  # fmt: skip
def test_bad_input_is_one_line_and_leaves_nothing(here, capsys, arguments, words):
    refused(arguments, capsys, words)


@pytest.mark.parametrize(
    "words",
    [
        ["hessian", "--ckpt", "a.pt", "--model", "a:b", "--model", "c:d"],
        ["hessian", "--ckpt", "a.pt", "--steps=3", "--steps=4"],
        ["gradients", "--ckpt", "a.pt", "-o", "a.h5", "--out", "b.h5"],
        ["features", "--ckpt", "a.pt", "--split", "test", "--split", "test"],
        ["sharpness", "--ckpt", "a.pt", "--rho", "1", "--rho", "2"],
        ["surface1d", "--ckpt", "a.pt", "--x=0:1:3", "--x=0:1:5"],
        ["surface2d", "--ckpt", "a.pt", "--y=0:1:3", "--y=0:1:5"],
        ["trajectory", "--ckpt", "a", "--ckpt", "b"],
        ["distances", "--ckpt", "a", "--only", "a", "--only", "b"],
        ["plot", "a.h5", "--kind", "heat", "--kind", "3d"],
        ["compare", "a.h5", "b.h5", "--weights", "drw", "--weights", "balanced"],
        ["report", "a.h5", "--title", "a", "--title", "b"],
        ["export", "a.h5", "--to", "csv", "--to", "json"],
        ["train", "ce", "--epochs", "1", "--epochs", "2"],
    ],
)
def test_an_option_given_twice_is_refused_where_it_has_one_value(capsys, words):
    """Otherwise the first value would be dropped in silence."""
    assert main(words) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "is given 2 times: give it once" in error
    option = next(w.partition("=")[0] for w in reversed(words) if w.startswith("-"))
    assert f"{'-o' if option == '--out' else option} is given" in error


@pytest.mark.parametrize("option", [["--probes", "0"], ["--verify", "pyhessian", "--weight-decay", "0.1"]])
def test_what_can_be_refused_at_once_is_refused_before_the_data_are_read(here, capsys, option):
    assert main([*OWN, *option]) == 2
    assert "accuracy" not in capsys.readouterr().err


def test_it_is_said_which_entries_of_a_checkpoint_were_taken(here, capsys):
    model = models.build("small-resnet", 10, in_channels=1)
    torch.save({n.replace("linear.", "fc."): t for n, t in model.state_dict().items()}, "fc.pt")
    words = ["--model", "small-resnet", "--dataset", "digits-lt", "--device", "cpu", *QUICK]
    assert main(["hessian", "--ckpt", "fc.pt", *words]) == 0
    assert "weights: classifier 'fc' of the checkpoint taken as 'linear'" in capsys.readouterr().err


def test_an_existing_result_is_kept_unless_told(here, capsys):
    assert main([*FOREIGN, "-q", "--out", "out.h5", *QUICK]) == 0
    refused([*FOREIGN, "--out", "out.h5", *QUICK], capsys, "--overwrite")
    assert main([*FOREIGN, "-q", "--out", "out.h5", "--overwrite", *QUICK]) == 0


def test_a_result_of_another_schema_is_refused(here, capsys):
    import h5py

    assert main([*FOREIGN, "-q", "--out", "out.h5", *QUICK]) == 0
    with h5py.File("out.h5", "r+") as file:
        file.attrs["version"] = 99
    for command in ("plot", "info", "compare"):
        refused([command, "out.h5"], capsys, "99")


def test_a_full_disk_is_said_in_a_line_and_keeps_what_was_there(here, capsys, full_disk):
    assert main([*FOREIGN, "-q", "--out", "out.h5", *QUICK]) == 0
    before = (here / "out.h5").read_bytes()

    capsys.readouterr()
    with full_disk():
        assert main([*FOREIGN, "--out", "out.h5", "--overwrite", *QUICK]) == 2
    assert "No space left" in capsys.readouterr().err.splitlines()[-1]
    assert (here / "out.h5").read_bytes() == before


PARTS = [*FOREIGN, "--per-class", "--steps", "6", "--probes", "2", "--device", "cpu"]
PARTS += ["--backend", "reverse", "--trace", "probes"]  # to begin at once: other processes do not trace the network
HALTING = """
import sys, time
from landscape.cli import main
from landscape.curvature import probing

real, calls = probing.run, []

def halting(*arguments, **named):
    calls.append(1)
    if len(calls) == 3:
        print("two parts are done", flush=True)
        time.sleep(300)
    return real(*arguments, **named)

probing.run = halting
sys.exit(main())
"""


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_run_goes_on_to_the_same_numbers(here, how):
    assert main([*PARTS, "-q", "--out", "straight.h5"]) == 0
    process = Program(HALTING, *PARTS, "-q", "--out", "out.h5")
    assert process.said("two parts are done"), process.errors
    process.send(how)
    code, _, err = process.ended()
    folder = here / "out.h5.partial"
    assert not (here / "out.h5").exists()
    if how == signal.SIGINT:
        assert code == 130
        assert "repeat the command" in err
    assert len(list(folder.glob("unit-*.h5"))) == 2
    assert main([*PARTS, "-q", "--out", "out.h5"]) == 0
    straight, resumed = ls.load("straight.h5"), ls.load("out.h5")
    assert not folder.exists()
    # What another process computed has its own threads: equal up to the order of float32 sums.
    for name in ("alpha", "beta", "trace_samples"):
        assert np.allclose(getattr(straight, name), getattr(resumed, name), rtol=1e-3, atol=1e-4, equal_nan=True)
    assert np.allclose(straight.lambda_max, resumed.lambda_max, rtol=1e-4)


def test_two_processes_share_the_parts(here):
    words = [*PARTS, "--no-sampling-errors"]  # which load much of torch
    assert main([*words, "--processes", "2", "--out", "two.h5"]) == 0
    assert main([*words, "-q", "--out", "one.h5"]) == 0
    one, two = ls.load("one.h5"), ls.load("two.h5")
    assert two.parts == one.parts
    assert np.allclose(one.lambda_max, two.lambda_max, rtol=1e-4)
    assert np.allclose(one.trace, two.trace, rtol=1e-3)


def test_the_public_resnet32_is_read_right(cifar_root):
    """akamaster's ResNet-32 on real CIFAR-10 test images: 92.6 % of all; 1,000 of them give 90 to 95 %."""
    objective = ls.load_objective(
        os.path.join(os.environ["LANDSCAPE_TEST_DATA"], "checkpoints", "resnet32-d509ac18.th"),
        model="resnet32",
        dataset="cifar10",
        data_root=str(cifar_root),
        normalize="imagenet",
        split="test",
        samples_per_class=100,
        device="cpu",
    )
    assert 0.90 < objective.evaluation.overall[1] < 0.955


def test_the_journal_is_resumed_within_one_process_bit_by_bit(here, monkeypatch):
    assert main([*PARTS, "-q", "--out", "straight.h5"]) == 0
    real, calls = probing.run, []

    def stopping(*arguments, **named):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*arguments, **named)

    monkeypatch.setattr(probing, "run", stopping)
    assert main([*PARTS, "-q", "--out", "out.h5"]) == 130
    assert main([*PARTS, "-q", "--out", "out.h5"]) == 0
    straight, resumed = ls.load("straight.h5"), ls.load("out.h5")
    assert np.array_equal(straight.alpha, resumed.alpha)
    assert np.array_equal(straight.trace_samples, resumed.trace_samples)
