"""The notebooks: they run from a fresh folder, show figures, and their numbers are those of the result files."""

import base64
import io
import re
from pathlib import Path

import matplotlib.image
import nbformat
import pytest
from nbclient import NotebookClient

import landscape as ls

FOLDER = Path(__file__).resolve().parent.parent / "notebooks"
NAMES = [
    "01_eigenvalue_density", "02_trajectories", "03_feature_quality", "04_gradient_decomposition",
    "05_groups_and_radius", "06_your_own_model",
]  # fmt: skip
NUMBER = r"([-+]?\d+\.\d+(?:e[-+]\d+)?)"
AS_WRITTEN = "03_feature_quality"
SMALLER = """
from landscape.cli import main

def run(*words):
    small = {"--steps": "8", "--grid": "5"}
    words = [small.get(str(before), str(word)) for before, word in zip((None, *words), words)]
    assert main(words) == 0
"""


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
    assert not re.search(r"UserWarning|Traceback", str([c.get("outputs") for c in notebook.cells]))
    check(notebook)


@pytest.mark.parametrize("name", NAMES[:-1])
def test_commands_are_started_alike_in_all_notebooks(name):
    """So that the one that is run as it is written speaks for the others."""
    first, other = (nbformat.read(FOLDER / f"{n}.ipynb", 4) for n in (AS_WRITTEN, name))
    assert other.cells[first_code(other)].source == first.cells[first_code(first)].source


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.filterwarnings("ignore")  # of the machinery that runs notebooks
def test_it_runs_on_a_small_setting_and_shows_what_the_files_hold(name, tmp_path, monkeypatch):
    monkeypatch.setenv("EPOCHS", "2")
    monkeypatch.setenv("SEEDS", "1")
    monkeypatch.setenv("RUNS", str(tmp_path / "runs"))
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", 4)
    if name != AS_WRITTEN:
        notebook.cells.insert(first_code(notebook) + 1, nbformat.v4.new_code_cell(SMALLER))
    NotebookClient(notebook, timeout=500, kernel_name="python3", resources={"metadata": {"path": tmp_path}}).execute()
    check(notebook)
    text = printed(notebook)
    if name.startswith("01"):
        rows = re.findall(rf"^(CE.*?) +(head|tail) +lambda_max +{NUMBER}.*trace +{NUMBER} +loss {NUMBER}", text, re.M)
        assert len(rows) == 6
        methods = {"CE": "ce", "CE + SAM": "sam", "CE + GSA + GKP": "gsa-gkp"}
        for method, part, top, trace, loss in rows:
            spectrum = ls.load(tmp_path / "runs" / f"{methods[method]}.ends.h5")
            p = spectrum.index(part)
            assert float(top) == pytest.approx(spectrum.lambda_max[p], abs=6e-4)
            assert float(trace) == pytest.approx(spectrum.trace[p], abs=6e-4)
            assert float(loss) == pytest.approx(spectrum.loss[p], abs=6e-5)
        rows = re.findall(r"^(head|tail) +(CE.*?) +([\d.]+) / ([\d.]+) .* ([\d.]+)$", text, re.M)
        assert len(rows) == 6
        for part, method, top, trace, loss in rows:
            spectrum = ls.load(FOLDER.parent / "figures" / "data" / f"cifar10.{methods[method]}.ends.h5")
            p = spectrum.index(part)
            assert float(top) == pytest.approx(spectrum.lambda_max[p], abs=0.06)
            assert float(trace) == pytest.approx(spectrum.trace[p], abs=0.06)
            assert float(loss) == pytest.approx(spectrum.loss[p], abs=6e-5)
    if name.startswith("03"):
        features = ls.load(tmp_path / "runs" / "ce.features.h5")
        rows = re.findall(rf"^(\d+): +(\d+) training samples, Q = {NUMBER}", text, re.M)
        assert len(rows) == 4
        for part, count, quality in rows:
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
        rows = re.findall(rf"^(G|Z) = (\S+) +{NUMBER} %", text, re.M)
        assert len(rows) == 8
        for kind, value, accuracy in rows:
            run = tmp_path / "runs" / "sweeps" / f"{kind.lower()}{value}-0" / "history.h5"
            assert float(accuracy) == pytest.approx(100 * ls.load(run).test_accuracy[-1], abs=6e-3)
