"""The command: what it prints, refuses and leaves."""

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from runs import command, files, same, state

from landscape.data import datasets
from landscape.networks import checkpoints, models
from landscape.objective.loading import load_objective
from landscape.results import History, store
from trainers import batches, commands, evaluation, loop, methods


def digits(out, *words):
    epochs = () if "--epochs" in words else ("--epochs", 1)
    return command("ce", "--dataset", "digits-lt", *epochs, "-o", out, *words)


# The command ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "ce"
    assert digits(folder, "--epochs", 2, "--seed", 3, "--imbalance", 10, "--data-seed", 1, "-q") == 0
    return folder


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
    assert {"epochs": 2, "batch_size": 32, "lr": 0.1, "augment": "none"}.items() <= meta["options"].items()
    assert meta["versions"].keys() == {"landscape", "torch", "numpy", "python"}


def test_the_draw_of_a_run_is_that_of_its_analyses(tmp_path):
    words = tmp_path, "--imbalance", 10, "--imbalance-draw", "ldam", "-q"
    assert digits(*words) == 0
    expected = datasets.load("digits-lt", imbalance=10, imbalance_draw="ldam").fingerprint
    assert checkpoints.read(tmp_path / "last.pt").meta["dataset"]["imbalance_draw"] == "ldam"
    assert load_objective(tmp_path / "last.pt").source["data_sha256"] == expected
    other = load_objective(tmp_path / "last.pt", imbalance_draw="own").source["data_sha256"]
    assert other == datasets.load("digits-lt", imbalance=10).fingerprint != expected
    assert digits(tmp_path, "--imbalance", 10, "-q") == 2  # of another draw
    assert digits(*words) == 0


def test_a_training_by_hand_gives_the_commands_weights(run_folder):
    samples = datasets.load("digits-lt", imbalance=10, seed=1)
    chosen = methods.compose({}, config=run_folder / "config.toml")
    with loop.seeded(torch.device("cpu"), 3, loop.FIRST):
        model = models.build("small-resnet", 10, in_channels=1)
    trainer = loop.Trainer(chosen, model, samples, device=torch.device("cpu"))
    for _ in range(2):
        trainer.run_epoch()
    assert same(model.state_dict(), state(run_folder, "last.pt"))


def test_a_run_without_its_configuration_is_known_by_its_state(tmp_path):
    words = ["ce", "--dataset", "toys:vectors", "--model", "toys:linear", "--warmup-epochs", 0, "--epochs", 1, "-q"]
    assert command(*words, "-o", tmp_path) == 0
    (tmp_path / "config.toml").unlink()
    assert command(*words, "--lr", 0.2, "-o", tmp_path) == 2
    assert command(*words, "-o", tmp_path) == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--dataset", "digits"], "no data set 'digits'"),
        ([], "there is no data: pass --dataset or --preset"),
        (["sgd", "--dataset", "digits-lt"], "no method 'sgd': choose ce, sam, gsa-gkp"),
        (["--preset", "mnist"], "no preset 'mnist': choose digits-lt, cifar10-lt"),
        (["--dataset", "digits-lt", "--model", "resnet33"], "no model 'resnet33'"),
        (["--dataset", "digits-lt", "--epochs", "0"], "--epochs must be at least 1, got 0"),
        (["ce", "--dataset", "digits-lt", "--rho", "0.1"], "--rho changes nothing without --sharpness sam"),
        (["--dataset", "digits-lt", "--imbalance", "-3"], "--imbalance must be a positive number"),
        (
            ["--dataset", "toys:vectors", "--imbalance-draw", "ldam"],
            "--imbalance-draw ldam is of the tail",
        ),
        (["--dataset", "digits-lt", "--augment", "crop-flop"], "crop-flop"),
        (["--dataset", "digits-lt", "--device", "abacus"], "--device abacus cannot be used here"),
        (["--dataset", "digits-lt", "--milestones", "a,b"], "'a,b' is not a list of numbers"),
        (["--dataset", "digits-lt", "--threads", "1000000000"], "1000000000 is not in the range 1<=x<=1024"),
        (["--dataset", "toys:vectors"], "--model small-resnet is for images (channels, height, width)"),
    ],
)
def test_a_wrong_option_ends_in_one_line_and_no_folder(words, message, tmp_path, capsys):
    assert command(*words, "-o", tmp_path / "run") == 2
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("landscape: error")]
    assert len(error) == 1
    assert message in error[0]
    assert not (tmp_path / "run").exists()


def test_a_folder_without_a_name_is_refused_which_would_be_the_current_one(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert digits("") == 2
    assert "the name of the folder is empty: pass a name, or . for the current folder" in capsys.readouterr().err
    assert files(tmp_path) == []


def test_a_dry_run_counts_the_steps_of_a_single_sample(tmp_path, capsys):
    words = ["ce", "--dataset", "toys:lone", "--model", "toys:linear", "--epochs", 2, "--warmup-epochs", 0]
    assert command(*words, "--dry-run", "-o", tmp_path / "run") == 0
    assert "nothing is written" in capsys.readouterr().out


def test_a_finished_run_is_refused_before_anything_is_read(tmp_path, capsys):
    (tmp_path / "last.pt").write_bytes(b"precious")
    assert command("ce", "--dataset", "no-such-data", "-o", tmp_path) == 2
    assert f"{tmp_path / 'last.pt'} exists: pass --overwrite" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "cause"),
    [
        ("file", "file is a file"),
        ("file/run", "Not a directory"),
        ("loop", "Too many levels of symbolic links"),
        ("loop/run", "Too many levels of symbolic links"),
        ("nowhere/run", "No such file or directory"),
        ("x" * 300, "File name too long"),
        ("a\0b", "no file has such a name"),
    ],
)
@pytest.mark.parametrize("more", [[], ["--overwrite"], ["--dry-run"]])
def test_a_run_folder_that_cannot_be_made_is_refused_before_the_data_are_read(tmp_path, capsys, name, cause, more):
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "nowhere").symlink_to("absent")
    assert command("ce", "--dataset", "digits-lt", *more, "-o", tmp_path / name) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "cannot be the folder of a run" in said
    assert cause in said


def test_the_summary_names_the_accuracies_and_the_next_command(tmp_path):
    found = CliRunner().invoke(
        commands.train, ["ce", "--dataset", "digits-lt", "--epochs", "1", "-o", str(tmp_path)], catch_exceptions=False
    )
    meta = checkpoints.read(tmp_path / "last.pt").meta
    assert f"test accuracy {100 * meta['test_accuracy']:.2f} %: many " in found.output
    assert f"landscape hessian --ckpt {tmp_path / 'last.pt'} --per-class" in found.output


def test_a_loss_of_the_users_is_named_on_the_command_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ownloss.py").write_text(
        "import torch\n\n\ndef twice(logits, labels):\n"
        "    return 2 * torch.nn.functional.cross_entropy(logits, labels, reduction='none')\n"
    )
    assert digits(tmp_path / "twice", "--loss", "ownloss:twice", "--lr", 0.05) == 0
    assert digits(tmp_path / "once", "--lr", 0.1, "--weight-decay", 5e-4) == 0
    recipe = checkpoints.read(tmp_path / "twice" / "last.pt").meta["options"]
    assert (recipe["loss"], recipe["sharpness"]) == ("ownloss:twice", "none")
    losses = [store.load(tmp_path / run / "history.h5").train_loss[0] for run in ("twice", "once")]
    assert losses[0] == pytest.approx(2 * losses[1], rel=0.02)  # but for the weight decay the steps are the same
    capsys.readouterr()
    assert digits(tmp_path / "none", "--loss", "ownlos") == 2
    assert "is not one of" in capsys.readouterr().err


def test_a_run_too_short_for_its_deferred_weights_says_so_before_and_after(tmp_path, capsys):
    assert command("ldam-drw", "--dataset", "digits-lt", "--epochs", 1, "-o", tmp_path) == 0
    assert [" ".join(text.split()).count("--drw-start 0.8 of --epochs 1") for text in capsys.readouterr()] == [1, 1]


def test_quiet_prints_nothing(tmp_path, capfd):
    assert digits(tmp_path, "-q") == 0
    assert capfd.readouterr() == ("", "")


def test_accuracies_by_frequency_weigh_samples():
    history = History(
        **{name: np.zeros(1) for name in SINGLE},
        **{name: np.zeros((1, 4)) for name in PER_CLASS},
        parts=tuple("abcd"),
        train_counts=np.array([500, 101, 100, 5]),
        test_counts=np.array([10, 30, 20, 0]),
        test_accuracy_per_class=np.array([[0.5, 1.0, 0.25, np.nan]]),
        method="ce",
    )
    found = evaluation.by_frequency(history)
    assert found[:3] == pytest.approx([40 / 60, 35 / 40, 0.25])
    assert np.isnan(found[3])


SINGLE = (
    "epoch", "seconds", "learning_rate", "train_loss", "train_accuracy", "test_loss", "test_accuracy",
    "validation_accuracy",
)  # fmt: skip
PER_CLASS = (
    "test_loss_per_class", "eval_loss_per_class", "eval_accuracy_per_class", "quality", "distance", "variance",
    "gradient_cosine", "bank_epoch", "group",
)  # fmt: skip


# Image files ------------------------------------------------------------------------------------------------------


def test_image_files_are_read_by_the_workers_in_training_and_out_of_it(tmp_path, monkeypatch):
    """Training, evaluations, settled statistics and Fisher information; the number of workers changes no bit."""
    rng = np.random.default_rng(0)
    for split, n in (("train", 14), ("test", 5)):
        for i in range(n):
            folder = tmp_path / "images" / split / "abc"[min(i // 5, 2) if n == 14 else i % 3]
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (9 + i, 12, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    asked = []
    loader = batches.DataLoader

    def watched(*arguments, **options):
        asked.append(options["num_workers"])
        return loader(*arguments, **options)

    monkeypatch.setattr(batches, "DataLoader", watched)
    words = ["gsa-gkp", "--dataset", "image-folder", "--data-root", tmp_path / "images", "--image-size", 8, "--model"]
    epochs = 3  # there are groups from the second on
    words += ["toys:convolutional", "--epochs", epochs, "--warmup-epochs", 0, "--batch-size", 5, "--seed", 1, "-q"]
    words += ["--groups", 2]
    for workers in (0, 2):
        asked.clear()
        assert command(*words, "--workers", workers, "-o", tmp_path / str(workers)) == 0
        history = store.load(tmp_path / str(workers) / "history.h5")
        of_groups = 2 * int(history.n_groups[-1])  # statistics, squared gradients
        assert asked == [0] + [workers] * (epochs * 5 + of_groups)  # two test samples are tried out first
    assert same(state(tmp_path / "0", "last.pt"), state(tmp_path / "2", "last.pt"))
