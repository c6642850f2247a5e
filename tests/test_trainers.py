"""Training: the recipe to the bit, what its errors say, and the checkpoint that needs no further options."""

import csv
import dataclasses
import math

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import nn

from landscape import checkpoints, datasets, losses, models
from landscape.cli import main
from landscape.errors import DataError, InputError, NumericalError
from landscape.loading import load_objective
from landscape.store import load
from trainers import commands, loop

CPU = torch.device("cpu")


def blobs(n_per_class=(9, 5, 1), seed=0, split="train"):
    """Three classes around three corners; separable, ragged, and the last has one sample."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.cat([torch.full((n,), c) for c, n in enumerate(n_per_class)])
    inputs = 3 * torch.eye(4)[labels] + 0.3 * torch.randn((len(labels), 4), generator=generator)
    return datasets.from_dataset((inputs, labels), name="blobs", split=split, class_counts=[9, 5, 1])


def linear(n_classes=3):
    with loop.seeded(0, CPU):
        return nn.Linear(4, n_classes)


def with_dropout():
    with loop.seeded(0, CPU):
        return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 3))


def trained(model, seed=0, **options):
    history = loop.train(
        model, blobs(), blobs(seed=1, split="test"), **{"epochs": 2, "batch_size": 4} | options, seed=seed
    )
    return model.state_dict(), history


def same(a, b):
    return all(torch.equal(a[name], b[name]) for name in a)


def run(*words):
    """The command as `landscape` runs it, with no progress to show."""
    return main(["train", "ce", *map(str, words)])


def digits(out, *words):
    return run("--dataset", "digits-lt", "--epochs", 1, "-o", out, *words)


# The loop ---------------------------------------------------------------------------------------------------------


def test_a_step_is_the_textbook_step_on_the_mean_loss():
    """One batch of all samples, twice: velocity v <- mu v + g + wd theta, theta <- theta - rate v, done by hand."""
    samples, model = blobs(), linear()
    x, y = samples.inputs.double(), torch.from_numpy(samples.labels)
    theta = torch.cat([model.weight, model.bias[:, None]], dim=1).detach().double()
    velocity = torch.zeros_like(theta)
    for rate in (0.2, 0.1):  # the cosine from 0.2: (1 + cos 0) / 2 = 1, (1 + cos(pi / 2)) / 2 = 1/2
        residual = torch.softmax(x @ theta[:, :4].T + theta[:, 4], dim=1) - torch.eye(3, dtype=torch.float64)[y]
        gradient = residual.T @ torch.cat([x, torch.ones(len(x), 1)], dim=1) / len(x)
        velocity = 0.9 * velocity + gradient + 0.01 * theta
        theta -= rate * velocity
    trained(model, epochs=2, batch_size=15, lr=0.2, momentum=0.9, weight_decay=0.01, warmup_epochs=0)
    np.testing.assert_allclose(model.weight.detach(), theta[:, :4], rtol=0, atol=2e-6)  # float32 of values below 1
    np.testing.assert_allclose(model.bias.detach(), theta[:, 4], rtol=0, atol=2e-6)


def test_the_learning_rate_rises_along_a_line_and_falls_along_half_a_cosine():
    shares = [loop.schedule(step, steps=8, warmup=4) for step in range(8)]
    root = math.sqrt(0.5)
    np.testing.assert_allclose(shares, [0.25, 0.5, 0.75, 1, 1, (1 + root) / 2, 0.5, (1 - root) / 2], atol=1e-15)


def test_a_warm_up_as_long_as_the_run_never_falls():
    assert [loop.schedule(step, steps=2, warmup=2) for step in range(2)] == [0.5, 1]


def test_the_history_shows_the_rate_of_each_epochs_last_step():
    """15 samples in batches of 5: three steps an epoch; two epochs of warm-up, then (1 + cos(pi k / 3)) / 2 of it."""
    _, history = trained(linear(), epochs=3, batch_size=5, lr=0.2, warmup_epochs=2)
    np.testing.assert_allclose(history.learning_rate, [0.2 * 3 / 6, 0.2, 0.2 / 4], rtol=1e-12)


@pytest.mark.parametrize("make", [linear, with_dropout])
def test_the_same_seed_gives_the_same_weights_to_the_bit_and_another_seed_does_not(make):
    (first, one), (again, two), (other, _) = trained(make()), trained(make()), trained(make(), seed=1)
    assert same(first, again)
    assert np.array_equal(one.train_loss, two.train_loss)
    assert not same(first, other)


def test_global_random_state_neither_matters_nor_changes():
    first, _ = trained(with_dropout())
    torch.rand(3)
    before = torch.get_rng_state()
    again, _ = trained(with_dropout())
    assert same(first, again)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("batch_size", [2, 7, 14, 1000])  # 15 samples; of batches of 14, one would be left
def test_every_epoch_sees_each_sample_once_in_batches_that_differ_by_one_at_most(batch_size):
    class Watched(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.seen = linear(), []

        def forward(self, x):
            if self.training:
                self.seen.append(x)
            return self.inner(x)

    model = Watched()
    trained(model, batch_size=batch_size)
    sizes = [len(x) for x in model.seen]
    assert max(sizes) <= batch_size
    assert max(sizes) - min(sizes) <= 1
    half = len(sizes) // 2
    first, second, everything = torch.cat(model.seen[:half]), torch.cat(model.seen[half:]), blobs().inputs
    assert sorted(first.tolist()) == sorted(second.tolist()) == sorted(everything.tolist())
    assert not torch.equal(first, second)


def test_history_holds_the_losses_and_accuracies_of_a_model_that_stands_still():
    """With lr = 1e-30 nothing moves: every epoch shows the first model, whatever the batches."""
    model = linear()
    samples, test = blobs(), blobs(seed=1, split="test")
    with torch.no_grad():
        logits = model(samples.inputs)
        expected = nn.functional.cross_entropy(logits, torch.from_numpy(samples.labels)).item()
        right = model(test.inputs).argmax(1).numpy() == test.labels
        accuracy = float(np.mean(logits.argmax(1).numpy() == samples.labels))
    _, history = trained(model, lr=1e-30, batch_size=4)
    np.testing.assert_allclose(history.train_loss, [expected] * 2, rtol=1e-6)
    np.testing.assert_allclose(history.train_accuracy, [accuracy] * 2)
    assert history.test_correct.tolist() == [[right[test.labels == c].sum() for c in range(3)]] * 2
    np.testing.assert_allclose(history.test_accuracy, [right.mean()] * 2)
    assert history.test_counts.tolist() == [9, 5, 1]


def test_a_class_without_test_samples_has_accuracy_nan():
    test = blobs(n_per_class=(2, 2, 0), split="test")
    history = loop.train(linear(), blobs(), test, epochs=1)
    assert np.isnan(history.test_accuracy_per_class[0]).tolist() == [False, False, True]
    assert np.isfinite(history.test_accuracy).all()


def test_separable_classes_are_learnt():
    model = linear()
    _, history = trained(model, epochs=30, lr=0.5)
    assert history.test_accuracy[-1] == 1
    assert not model.training


@pytest.mark.parametrize("batch_size", [1, 7, 1000])
def test_evaluation_does_not_depend_on_the_batch_size(batch_size):
    model, samples = with_dropout(), blobs()
    loss, correct = loop.evaluate(model, samples, losses.cross_entropy, batch_size=batch_size)
    model.eval()
    with torch.no_grad():
        logits = model(samples.inputs)
    expected = nn.functional.cross_entropy(logits, torch.from_numpy(samples.labels)).item()
    assert loss == pytest.approx(expected, rel=1e-6)
    assert correct.sum() == (logits.argmax(1).numpy() == samples.labels).sum()


def test_a_loss_that_is_not_finite_stops_the_training():
    with pytest.raises(NumericalError, match=r"not finite in epoch 1 of 2 .*lower --lr, now 1e\+30"):
        trained(linear(), lr=1e30, warmup_epochs=0)


def test_a_last_step_that_ruins_the_weights_is_noticed_too():
    """One step: its loss was finite before it, and only the test loss can tell."""
    with pytest.raises(NumericalError, match=r"train 1\.\d+, test (nan|inf)"):
        trained(linear(), epochs=1, batch_size=15, lr=1e38, warmup_epochs=0, weight_decay=1e10)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, "--epochs must be at least 1, got 0"),
        ({"batch_size": 0}, "--batch-size must be at least 1, got 0"),
        ({"lr": 0.0}, "--lr must be a positive number, got 0.0"),
        ({"lr": math.nan}, "--lr must be a positive number, got nan"),
        ({"momentum": 1.0}, "--momentum must be at least 0 and below 1, got 1.0"),
        ({"momentum": 0.0, "nesterov": True}, "--nesterov needs a --momentum above 0"),
        ({"weight_decay": -1.0}, "--weight-decay must not be negative, got -1.0"),
        ({"warmup_epochs": 3}, "--warmup-epochs must be from 0 to --epochs 2, got 3"),
        ({"seed": -1}, "--seed must not be negative, got -1"),
        ({"device": "abacus"}, "--device abacus cannot be used here"),
        ({"loss": "no-such"}, "no loss 'no-such'"),
    ],
)
def test_an_option_that_does_not_fit_is_named_with_its_value(options, message):
    with pytest.raises(InputError) as error:
        trained(linear(), **options)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


def test_a_model_with_other_classes_than_the_data_is_refused():
    with pytest.raises(InputError, match=r"returned .*expected logits \(batch, 3\)"):
        trained(linear(n_classes=4))


def test_a_model_that_returns_features_and_logits_is_trained_by_its_logits():
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = linear()

        def forward(self, x):
            return x, self.inner(x)

    pair, plain = Both(), linear()
    trained(pair)
    trained(plain)
    assert same(pair.inner.state_dict(), plain.state_dict())


def test_a_model_with_nothing_to_train_is_refused():
    with pytest.raises(InputError, match="no parameters to train"):
        trained(linear().requires_grad_(False))


def mean_loss(logits, labels):
    return nn.functional.cross_entropy(logits, labels)


def test_a_loss_that_averages_is_refused():
    with pytest.raises(InputError, match=r'shape \(\) for a batch of 4: .*reduction="none"'):
        trained(linear(), loss=f"{__name__}:mean_loss")


def test_splits_with_other_classes_are_refused():
    test = dataclasses.replace(blobs(split="test"), class_names=("a", "b", "c"))
    with pytest.raises(DataError, match="both must have the same"):
        loop.train(linear(), blobs(), test, epochs=1)


# The command ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "ce"
    assert digits(folder, "--epochs", 2, "--seed", 3, "--imbalance", 10, "--data-seed", 1, "-q") == 0
    return folder


def test_the_checkpoint_says_all_that_an_analysis_needs(run_folder):
    objective = load_objective(str(run_folder / "last.pt"), partition="class")
    meta = checkpoints.read(run_folder / "last.pt").meta
    assert objective.samples.fingerprint == meta["data_sha256"]
    assert objective.partition.names == tuple("0123456789")
    assert objective.partition.counts.tolist() == meta["class_counts"]
    assert objective.evaluation.overall[1] == pytest.approx(meta["train_accuracy"], abs=1e-12)


def test_the_checkpoint_describes_its_run(run_folder):
    meta = checkpoints.read(run_folder / "last.pt").meta
    samples = datasets.load(**meta["dataset"])
    expected = {
        "model": "small-resnet",
        "n_classes": 10,
        "in_channels": 1,
        "cosine": False,
        "data_sha256": samples.fingerprint,
        "normalisation": [list(samples.mean), list(samples.std)],
        "class_counts": datasets.long_tailed_counts(124, 10, 10).tolist(),
        "class_names": list("0123456789"),
        "method": "ce",
        "loss": "ce",
        "epoch": 2,
        "seed": 3,
    }
    assert {name: meta[name] for name in expected} == expected
    assert {"imbalance": 10.0, "seed": 1}.items() <= meta["dataset"].items()
    assert meta["options"] == {
        "epochs": 2, "batch_size": 64, "lr": 0.1, "warmup_epochs": 1, "momentum": 0.9, "nesterov": False,
        "weight_decay": 5e-4, "seed": 3,
    }  # fmt: skip
    assert meta["versions"].keys() == {"landscape", "torch", "numpy", "python"}


def test_the_command_trains_as_the_function_does(run_folder):
    data = {"imbalance": 10, "seed": 1}
    with loop.seeded(3, CPU):
        model = models.build("small-resnet", 10, in_channels=1)
    history = loop.train(
        model, datasets.load("digits-lt", **data), datasets.load("digits-lt", split="test", **data), epochs=2, seed=3
    )
    found = checkpoints.read(run_folder / "last.pt")
    assert same(model.state_dict(), found.state)
    assert found.meta["test_accuracy"] == history.test_accuracy[-1]


def test_the_history_has_a_row_for_each_epoch_and_a_column_for_each_class(run_folder):
    with open(run_folder / "history.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["1", "2"]
    of_classes = [float(rows[-1][f"test_accuracy of {c}"]) for c in range(10)]
    assert np.mean(of_classes) == pytest.approx(float(rows[-1]["test_accuracy"]))  # 50 test samples of each class


def test_a_finished_run_is_replaced_only_on_demand_and_refused_before_anything_is_read(tmp_path, capsys):
    (tmp_path / "last.pt").write_bytes(b"precious")
    assert run("--dataset", "no-such-data", "-o", tmp_path) == 2
    error = capsys.readouterr().err
    assert f"{tmp_path / 'last.pt'} exists: pass --overwrite" in error
    assert error.count("\n") == 1
    assert (tmp_path / "last.pt").read_bytes() == b"precious"
    assert digits(tmp_path, "--overwrite", "-q") == 0
    assert checkpoints.read(tmp_path / "last.pt").meta["method"] == "ce"


def test_a_diverged_run_leaves_the_earlier_one_as_it_was(tmp_path, capsys):
    for name in ("last.pt", "history.csv"):
        (tmp_path / name).write_bytes(b"precious")
    assert digits(tmp_path, "--lr", 1e30, "--overwrite") == 2
    assert "not finite in epoch 1 of 1" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {
        "last.pt": b"precious",
        "history.csv": b"precious",
    }


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--dataset", "digits"], "no data set 'digits'"),
        (["--dataset", "digits-lt", "--model", "resnet33"], "no model 'resnet33'"),
        (["--dataset", "digits-lt", "--epochs", "0"], "--epochs must be at least 1, got 0"),
        (["--dataset", "digits-lt", "--imbalance", "-3"], "--imbalance must be a positive number"),
        (["--dataset", f"{__name__}:vectors"], "--model small-resnet is for images (channels, height, width)"),
    ],
)
def test_a_wrong_option_ends_in_one_line_and_no_file(words, message, tmp_path, capsys):
    assert run(*words, "-o", tmp_path / "run") == 2
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("landscape: error")]
    assert len(error) == 1
    assert message in error[0]
    assert list((tmp_path / "run").iterdir()) == []


def test_a_run_folder_that_cannot_be_made_is_refused_before_training(tmp_path, capsys):
    (tmp_path / "file").touch()
    assert digits(tmp_path / "file") == 2
    assert "cannot be the folder of a run" in capsys.readouterr().err


def vectors(split):
    samples = blobs(seed=int(split == "test"))
    return samples.inputs, torch.from_numpy(samples.labels)


def test_a_users_own_model_and_data_are_trained(tmp_path):
    own = ["--dataset", f"{__name__}:vectors", "--model", f"{__name__}:linear"]
    assert run(*own, "--epochs", 1, "-o", tmp_path, "-q") == 0
    assert checkpoints.read(tmp_path / "last.pt").meta["in_channels"] is None
    assert len(load_objective(str(tmp_path / "last.pt"), partition="class").partition.names) == 3


def test_the_summary_names_the_accuracies_and_the_next_command(tmp_path):
    found = CliRunner().invoke(
        commands.train, ["ce", "--dataset", "digits-lt", "--epochs", "1", "-o", str(tmp_path)], catch_exceptions=False
    )
    meta = checkpoints.read(tmp_path / "last.pt").meta
    assert (
        f"accuracy {100 * meta['train_accuracy']:.2f} % train, {100 * meta['test_accuracy']:.2f} % test" in found.output
    )
    assert f"landscape hessian --ckpt {tmp_path / 'last.pt'} --per-class" in found.output


def test_quiet_prints_nothing(tmp_path, capfd):
    assert digits(tmp_path, "-q") == 0
    assert capfd.readouterr() == ("", "")


# The demo ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow  # four processes, each of which imports what it needs
def test_the_demo_leaves_a_result_and_a_figure_in_place_of_older_ones(tmp_path):
    folder = tmp_path / "my demo"
    (folder / "ce").mkdir(parents=True)
    files = [folder / name for name in ("ce/last.pt", "ce.h5", "ce.png")]
    for file in files:
        file.write_bytes(b"old")
    found = CliRunner().invoke(commands.demo, ["--out", str(folder), "--epochs", "1", "--steps", "2"])
    assert found.exit_code == 0, found.output
    assert found.output.count("$ landscape") == 4
    assert load(folder / "ce.h5").parts == tuple("0123456789")
    assert all(file.read_bytes() != b"old" for file in files)


def test_the_demo_stops_where_a_command_fails_and_passes_its_exit_code_on(tmp_path):
    (tmp_path / "ce").touch()  # where the folder of the run should be
    found = CliRunner().invoke(commands.demo, ["--out", str(tmp_path)])
    assert found.exit_code == 2
    assert found.output.count("$ landscape") == 1
