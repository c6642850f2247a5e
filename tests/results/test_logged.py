"""Numbers of results in the clients by which people watch trainings: recorders of their documented calls, and the real.

The recorders take what the clients take, by the signatures of their documentation, and refuse what they refuse. Where a
client is installed, its signature is compared, and it is used offline.
"""

import dataclasses
import glob
import importlib
import inspect
import re

import numpy as np
import pytest
from refusals import refused
from results_of_all_kinds import all_kinds, sensitivity, sharpness, spectrum

from landscape.errors import InputError
from landscape.results import logged
from landscape.results.foreign import tidy
from landscape.results.series import joined, of_one


class Recorder:
    def __init__(self):
        self.calls = []

    def kept(self, data, step):
        assert type(step) is int
        assert all(type(name) is str and type(value) is float for name, value in data.items())
        self.calls.append((data, step))


class Run(Recorder):
    """A run of wandb, which drops a step that is before an earlier one, with a warning."""

    def log(self, data, step=None, commit=None):
        assert not self.calls or step >= self.calls[-1][1]
        self.kept(data, step)


class TrackioRun(Recorder):
    def log(self, metrics, step=None):
        self.kept(metrics, step)


class Metrics(Recorder):
    """The module mlflow, which refuses names with other signs."""

    def log_metrics(self, metrics, step=None, synchronous=None, run_id=None, timestamp=None):
        assert all(re.fullmatch(r"[\w\-./: ]+", name, re.ASCII) for name in metrics)
        self.kept(metrics, step)


class LightningLogger(Recorder):
    def log_metrics(self, metrics, step=None):
        self.kept(metrics, step)


class Writer(Recorder):
    """TensorBoard's, which takes one number at a time."""

    def add_scalar(self, tag, scalar_value, global_step=None, walltime=None):
        self.kept({tag: scalar_value}, global_step)


CLIENTS = {  # the recorder's method, the module, and the call in it
    "wandb": (Run.log, "wandb", "Run.log"),
    "trackio": (TrackioRun.log, "trackio.run", "Run.log"),
    "mlflow": (Metrics.log_metrics, "mlflow", "log_metrics"),
    "lightning": (LightningLogger.log_metrics, "lightning.pytorch.loggers", "Logger.log_metrics"),
    "tensorboard": (Writer.add_scalar, "torch.utils.tensorboard", "SummaryWriter.add_scalar"),
}


@pytest.mark.filterwarnings("ignore")  # of what the clients import
@pytest.mark.parametrize(
    "client", [*sorted(CLIENTS.keys() - {"lightning"}), pytest.param("lightning", marks=pytest.mark.slow)]
)
def test_a_recorder_has_the_signature_of_the_client(client):
    recorder, module, words = CLIENTS[client]
    pytest.importorskip(client, reason=f"{client} is not installed")
    call = importlib.import_module(module)
    for word in words.split("."):
        call = getattr(call, word)
    real = [p for p in inspect.signature(call).parameters.values() if p.name != "self"]
    ours = [p for p in inspect.signature(recorder).parameters.values() if p.name != "self"]
    assert [(p.name, p.kind, p.default) for p in real[: len(ours)]] == [(p.name, p.kind, p.default) for p in ours]


@pytest.mark.parametrize("make", [Run, TrackioRun, Metrics, LightningLogger, Writer])
def test_every_client_is_given_the_numbers_of_a_result_and_of_a_series(make):
    writer, found = make(), spectrum()
    found.log(writer, 5)
    told = {name: value for data, _ in writer.calls for name, value in data.items()}
    assert {step for _, step in writer.calls} == {5}
    assert told == logged.numbers(found)
    writer = make()
    series = joined([of_one(found, f"net-{k}", epoch=3 * k) for k in range(3)])
    series.log(writer)
    assert list(dict.fromkeys(step for _, step in writer.calls)) == [0, 3, 6]
    assert sum(len(data) for data, _ in writer.calls) == 3 * len(logged.numbers(found))


@pytest.mark.parametrize(
    ("epochs", "steps", "expected"),
    [
        ([0.1, 0.2, 1.4], [10, 20, 140], [10, 20, 140]),  # of a monitor
        ([0.1, 0.2, 1.4], [np.nan] * 3, [0, 1, 2]),
        ([1, np.nan, 2], [5, np.nan, 6], [0, 1, 2]),
        ([1, 2, 3], [7, 7, 8], [1, 2, 3]),
    ],
)
def test_no_two_checkpoints_are_logged_at_one_step(epochs, steps, expected):
    one, run = spectrum(), Run()
    joined([
        of_one(one, f"{k}", epoch=e, training_step=s) for k, (e, s) in enumerate(zip(epochs, steps, strict=True))
    ]).log(run)
    assert [step for _, step in run.calls] == expected


@pytest.mark.parametrize("step", [-1, 1.5, np.nan, "x", True])
def test_a_step_that_is_no_whole_number_is_refused(step):
    run = Run()
    with refused(InputError, step=step):
        spectrum().log(run, step)
    assert run.calls == []


def test_what_is_logged_is_the_table_with_its_errors_and_nothing_that_is_not_finite():
    found = sharpness()
    found = dataclasses.replace(found, doubling_radius=np.array([0.5, np.inf, np.nan]))
    numbers = logged.numbers(found)
    assert numbers["sharpness/worst_rise/class 1"] == pytest.approx(found.worst_rise[1])
    assert numbers["sharpness/noise_rise_error/class 2"] == found.noise_rise_stderr[2]
    assert numbers["sharpness/loss/class 0"] == found.loss[0]
    assert [name for name in numbers if "doubling_radius/" in name] == ["sharpness/doubling_radius/class 0"]
    assert all(np.isfinite(value) for value in numbers.values())
    assert numbers["sharpness/accuracy/class 2"] == found.accuracy[2]  # a share, not per cent


@pytest.mark.parametrize("kind", [name for name in all_kinds() if name != "series.h5"])
def test_every_kind_is_logged(kind):
    run = Run()
    all_kinds()[kind].log(run, 3)
    (data, step), *more = run.calls
    assert (step, more) == (3, [])
    assert data


def test_each_checkpoint_of_a_series_is_logged_and_listed_at_its_own_place():
    about = {"learning_rate": 0.1, "edge": 20.0, "edge_rule": "2 / lr"}
    series = joined([of_one(sharpness(rho=0.05), f"net-{k}", epoch=5 * k, **about) for k in range(2)])
    run = Run()
    series.log(run)
    assert [step for _, step in run.calls] == [0, 5]
    assert run.calls[1][0]["sharpness/loss/class 0"] == series.loss[1, 0]
    with refused(InputError, "step"):
        series.log(run, 3)
    with refused(InputError, "step"):
        sharpness().log(run)
    rows = [dict(zip(tidy.COLUMNS, row, strict=True)) for row in tidy.rows({"s.h5": series})]
    losses = [row for row in rows if row["quantity"] == "loss" and row["part"] == "class 1"]
    assert [(row["checkpoint"], row["epoch"]) for row in losses] == [("net-0", 0.0), ("net-1", 5.0)]
    assert [row["value"] for row in losses] == series.loss[:, 1].tolist()


def test_metrics_have_names_that_mlflow_takes_and_never_two_alike():
    found = dataclasses.replace(sharpness(), parts=("a b", "Ärger & co", "c(1)"))
    metrics = Metrics()
    found.log(metrics, 7)
    assert metrics.calls[0][1] == 7
    assert metrics.calls[0][0]["sharpness/loss/_rger _ co"] == found.loss[1]
    with refused(InputError, "MLflow"):
        dataclasses.replace(found, parts=("a&", "a%", "b")).log(metrics, 7)


def test_other_writers_and_results_without_numbers_are_refused():
    with pytest.raises(InputError, match="list does not log numbers"):
        sharpness().log([], 0)
    empty = dataclasses.replace(sensitivity(), parts=("a",) * 3)
    changes = {f.name: np.full_like(getattr(empty, f.name), np.nan, dtype=float) for f in dataclasses.fields(empty)
               if isinstance(getattr(empty, f.name), np.ndarray) and f.name not in {"control", "sign"}}  # fmt: skip
    with pytest.raises(InputError, match="no finite numbers"):
        dataclasses.replace(empty, **changes).log(Run(), 0)


def test_tensorboard_shows_the_numbers_at_their_step(tmp_path):
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    from torch.utils.tensorboard import SummaryWriter

    found = spectrum()
    with SummaryWriter(tmp_path) as writer:
        found.log(writer, 5)
    read = events.EventAccumulator(str(tmp_path)).Reload()
    (event,) = read.Scalars("spectrum/lambda_max/class 2")
    assert (event.step, event.value) == (5, np.float32(found.lambda_max[2]))


def test_wandb_keeps_the_numbers_offline(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb", reason="pip install wandb to test it offline")
    monkeypatch.setenv("WANDB_MODE", "offline")
    found = spectrum()
    with wandb.init(project="p", dir=str(tmp_path)) as run:
        found.log(run, 5)
        found.log(run, 6)  # by which the row of step 5 is complete
        assert run.summary["spectrum/lambda_max/class 2"] == pytest.approx(found.lambda_max[2])
    assert glob.glob(f"{tmp_path}/wandb/offline-run-*/*.wandb")


@pytest.mark.filterwarnings("ignore")  # of what mlflow itself imports
def test_mlflow_keeps_the_numbers_in_a_folder(tmp_path):
    mlflow = pytest.importorskip("mlflow", reason="pip install mlflow to test it offline")
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/m.db")
    found = spectrum()
    with mlflow.start_run() as run:
        found.log(mlflow, 5)
    (metric,) = mlflow.MlflowClient().get_metric_history(run.info.run_id, "spectrum/lambda_max/class 2")
    assert (metric.step, metric.value) == (5, found.lambda_max[2])


def test_trackio_keeps_the_numbers_in_a_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path))
    trackio = pytest.importorskip("trackio", reason="pip install trackio to test it offline")
    found = spectrum()
    run = trackio.init(project="p", name="r")
    found.log(run, 5)
    trackio.finish()
    assert glob.glob(f"{tmp_path}/**/*.db", recursive=True)
