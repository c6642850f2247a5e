"""The notebooks: they run from a fresh folder, show figures, and their numbers are those of the result files."""

import asyncio
import base64
import io
import logging
import re
import shutil
from pathlib import Path

import matplotlib.image
import nbformat
import numpy as np
import pytest
from jupyter_client import AsyncKernelManager
from nbclient import NotebookClient

import landscape as ls
from trainers import recipe, train

FOLDER = Path(__file__).resolve().parents[2] / "notebooks"
NAMES = [
    "01_eigenvalue_density", "02_trajectories", "03_feature_quality", "04_gradient_decomposition",
    "05_groups_and_radius", "06_your_own_model",
]  # fmt: skip
NUMBER = r"([-+]?\d+\.\d+(?:e[-+]\d+)?)"
METHODS = {"CE": "ce", "CE + SAM": "sam", "CE + GSA + GKP": "gsa-gkp"}
FRESH = """
%reset -f
import os
os.chdir({folder!r})
os.environ.update(EPOCHS="5", SEEDS="1", RUNS="runs")
%config InlineBackend.print_figure_kwargs = {{"bbox_inches": None, "dpi": 60}}
"""
"""Figures are drawn once and coarsely: with a tight box each is laid out twice."""
SMALLER = {
    "snapshot_every=2": "snapshot_every=4",
    # In so few steps a trace does not pay; figures of errors over samples are drawn from the files of CIFAR-10.
    "steps=60": 'steps=4, probes=2, backend="reverse", sampling_errors=False',
    'partition="head-tail"),': 'partition="head-tail", samples_per_class=4),',
    "steps=40, probes=4": 'steps=4, probes=2, backend="reverse", sampling_errors=False',
    '(spectra, ("head", "tail"), limits': '(spectra, ("tail",), limits',
    "densities(found)": 'densities(found, ["airplane", "truck"])',
    "n=15": "n=3",
    "0.5, 15)": "0.5, 3)",
    "epochs=20, lr": "epochs=2, lr",
    'epochs=2 * DATA["epochs"]': "epochs=2",
    "batches=12": "batches=2",
    "samples_per_batch=64": "samples_per_batch=4",
    'partition="class"),\n        checkpoints': 'partition="head-tail"),\n        checkpoints',
    """.glob("*.pt")),\n        batches""": """.glob("*.pt"))[::2],\n        batches""",
    "(1, 2, 4, 6, 8, 10), (1e-4, 1e-3, 1e-2, 1e-1)": "(1, 4), (1e-1,)",
}
"""What a notebook says, and what is run in its place."""


def figures(notebook):
    """The pictures among the outputs, as arrays."""
    found = []
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            png = output.get("data", {}).get("image/png")
            if png:
                found.append(matplotlib.image.imread(io.BytesIO(base64.b64decode(png)), format="png"))
    return found


def first_code(notebook):
    return next(k for k, cell in enumerate(notebook.cells) if cell["cell_type"] == "code")


def printed(notebook):
    return "".join(o.get("text", "") for c in notebook.cells for o in c.get("outputs", []) if o.get("name") == "stdout")


def check(notebook):
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            assert output["output_type"] != "error", output
    shown = figures(notebook)
    assert shown
    for picture in shown:
        assert picture.shape[0] > 100
        assert picture.std() > 0.02  # an empty figure is of one colour


@pytest.mark.parametrize("name", NAMES)
def test_what_is_stored_was_executed_and_shows_figures(name):
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", 4)
    assert all(c["execution_count"] for c in notebook.cells if c["cell_type"] == "code")
    outputs = str([c.get("outputs") for c in notebook.cells])
    assert not re.search(r"UserWarning|Traceback|\\x1b|WARNING", outputs)
    check(notebook)


def setup():
    """What the notebooks but the last begin with, as Python."""
    books = [nbformat.read(FOLDER / f"{n}.ipynb", 4) for n in NAMES[:-1]]
    (found,) = {book.cells[first_code(book)].source for book in books}
    return found.removeprefix("%matplotlib inline\n")


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_calls_the_toolkit_and_starts_no_process(name):
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", 4)
    source = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "code")
    assert "import landscape as ls" in source
    assert not re.search(r"subprocess|os\.system|^!|Popen", source, re.MULTILINE)


def test_a_training_that_was_cut_goes_on_and_what_is_there_is_not_made_anew(tmp_path, monkeypatch):
    monkeypatch.setenv("EPOCHS", "2")
    monkeypatch.setenv("RUNS", str(tmp_path / "runs"))
    told, names = logging.getLogger("trainers").level, {}
    exec(setup(), names)
    logging.getLogger("trainers").setLevel(told)

    def cut(done, total, text):
        if done > 1:
            raise KeyboardInterrupt

    chosen, folder = recipe("ce", **names["DATA"], snapshot_every=2), tmp_path / "runs" / "ce"
    with pytest.raises(KeyboardInterrupt):
        train(None, None, chosen, out=folder, progress=cut)
    assert ls.load(folder / "history.h5").epoch.tolist() == [1]
    assert names["trained"]("ce") == folder
    assert ls.load(folder / "history.h5").epoch.tolist() == [1, 2]
    written = (folder / "last.pt").stat().st_mtime_ns
    assert names["trained"]("ce") == folder
    assert (folder / "last.pt").stat().st_mtime_ns == written

    made = []

    def analysis(given, *, out):
        made.append(given)
        shutil.copy(folder / "history.h5", out)
        return ls.load(out)

    for k in (1, 2):
        assert names["once"]("new.h5", analysis, k).epoch.tolist() == [1, 2]
    assert made == [1]


@pytest.fixture(scope="module")
def kernel():
    """One for all notebooks of a worker: most take less time than a kernel that imports torch."""
    manager = AsyncKernelManager(kernel_name="python3")
    yield manager
    asyncio.run(manager.shutdown_kernel(now=True))


@pytest.fixture(scope="module")
def trained(made_once):
    """The folder of the networks that the notebooks share."""

    def make(folder):
        for method in METHODS.values():
            chosen = recipe(method, dataset="digits-lt", epochs=5, snapshot_every=4)
            train(None, None, chosen, out=folder / method)

    return made_once("notebooks", make)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.filterwarnings("ignore")  # of the machinery that runs notebooks
def test_it_runs_on_a_small_setting_and_shows_what_the_files_hold(name, kernel, trained, tmp_path):
    shutil.copytree(trained, tmp_path / "runs")
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", 4)
    for cell in notebook.cells:
        for said, taken in SMALLER.items():
            cell.source = cell.source.replace(said, taken)
    notebook.cells.insert(0, nbformat.v4.new_code_cell(FRESH.format(folder=str(tmp_path))))
    client = NotebookClient(notebook, km=kernel, timeout=500)
    try:
        client.execute()
    finally:
        client.kc.stop_channels()
    check(notebook)
    text = printed(notebook)
    if name.startswith("01"):
        rows = re.findall(rf"^(CE.*?) +(head|tail) +lambda_max +{NUMBER}.*trace +{NUMBER} +loss {NUMBER}", text, re.M)
        assert len(rows) == 6
        for method, part, top, trace, loss in rows:
            spectrum = ls.load(tmp_path / "runs" / f"{METHODS[method]}.ends.h5")
            p = spectrum.index(part)
            assert float(top) == pytest.approx(spectrum.lambda_max[p], abs=6e-4)
            assert float(trace) == pytest.approx(spectrum.trace[p], abs=6e-4)
            assert float(loss) == pytest.approx(spectrum.loss[p], abs=6e-5)
        rows = re.findall(r"^(head|tail) +(CE.*?) +([\d.]+) / ([\d.]+) .* ([\d.]+)$", text, re.M)
        assert len(rows) == 6
        for part, method, top, trace, loss in rows:
            spectrum = ls.load(FOLDER.parent / "figures" / "data" / f"cifar10.{METHODS[method]}.ends.h5")
            p = spectrum.index(part)
            assert float(top) == pytest.approx(spectrum.lambda_max[p], abs=0.06)
            assert float(trace) == pytest.approx(spectrum.trace[p], abs=0.06)
            assert float(loss) == pytest.approx(spectrum.loss[p], abs=6e-5)
    if name.startswith("02"):
        path = ls.load(tmp_path / "runs" / "paths.h5")
        shares = re.findall(r"^PC \d \(([\d.]+) %\)$", text, re.M)
        np.testing.assert_allclose([float(share) for share in shares], 100 * path.explained, atol=0.06)
        assert path.verdict in text
        plane = ls.load(tmp_path / "runs" / "figure1.h5")
        weights = plane.n_samples / plane.n_samples.sum()
        ends = {"CE": "ce/", "CE + GSA + GKP": "gsa-gkp/", "tail alone": "tail"}
        rows = re.findall(rf"^(\S.*?) +tail +{NUMBER} +full +{NUMBER} +off the plane {NUMBER}$", text, re.M)
        assert [row[0] for row in rows] == list(ends)
        for method, tail, full, distance in rows:
            k = max(k for k, mark in enumerate(plane.marks) if mark.startswith(ends[method]))
            assert float(tail) == pytest.approx(plane.mark_loss[k, plane.train_counts.argmin()], abs=6e-5)
            assert float(full) == pytest.approx(weights @ plane.mark_loss[k], abs=6e-5)
            assert float(distance) == pytest.approx(plane.mark_distance[k], abs=6e-4)
    if name.startswith("03"):
        rows = re.findall(rf"^(CE.*?) +(\d+): +(\d+) training samples, Q = {NUMBER}", text, re.M)
        assert len(rows) == 8
        for method, part, count, quality in rows:
            features = ls.load(tmp_path / "runs" / f"{METHODS[method]}.features.h5")
            p = features.parts.index(part)
            assert int(count) == features.train_counts[p]
            assert float(quality) == pytest.approx(features.quality[-1, p], abs=6e-4)
    if name.startswith("04"):
        gradients = ls.load(tmp_path / "runs" / "ce.early.h5")
        rows = re.findall(
            rf"class (\d+): \|g\| {NUMBER}, own part \|h\| {NUMBER}, cosine with the whole {NUMBER}", text
        )
        assert len(rows) == 4
        for part, norm, own, cosine in rows:
            p = gradients.parts.index(part)
            assert float(norm) == pytest.approx(gradients.norm[0, p], abs=6e-4)
            assert float(own) == pytest.approx(gradients.specific[0, p], abs=6e-4)
            assert float(cosine) == pytest.approx(gradients.cosine[0, p], abs=6e-4)
    if name.startswith("05"):
        rows = re.findall(rf"^(G|Z) = (\S+) +{NUMBER} % +groups at the end: (\d+)$", text, re.M)
        assert len(rows) == 3
        for kind, value, accuracy, groups in rows:
            run = ls.load(tmp_path / "runs" / "sweeps" / f"{kind.lower()}{value}-0" / "history.h5")
            assert float(accuracy) == pytest.approx(100 * run.test_accuracy[-1], abs=6e-3)
            assert int(groups) == run.group[-1].max() + 1
    if name.startswith("06"):
        spectrum, distances = (ls.load(tmp_path / "runs" / f"{kind}.h5") for kind in ("spectrum", "distances"))
        rows = re.findall(
            rf"^class (\d): +(\d+) samples, loss {NUMBER}, lambda_max {NUMBER} ± \S+, trace {NUMBER}", text, re.M
        )
        assert [row[0] for row in rows] == list(spectrum.parts)
        for p, (_, n, loss, top, trace) in enumerate(rows):
            assert int(n) == spectrum.n_samples[p]
            assert float(loss) == pytest.approx(spectrum.loss[p], abs=6e-5)
            assert float(top) == pytest.approx(spectrum.lambda_max[p], abs=6e-5)
            assert float(trace) == pytest.approx(spectrum.trace[p], abs=6e-4)
        rows = re.findall(rf"^optimum of class (\d): losses of the classes {', '.join([NUMBER] * 3)}$", text, re.M)
        assert [row[0] for row in rows] == list(distances.parts)
        for part, *losses in rows:
            k = distances.points.index(part)
            np.testing.assert_allclose([float(loss) for loss in losses], distances.loss[0, k], atol=6e-5)
