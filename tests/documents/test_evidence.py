"""The page on evidence: its tables are those of the committed files, and the script goes on where it was cut."""

import argparse
import importlib
import math
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import pytest
from refusals import refused

import landscape as ls
from trainers import recipe, train

ROOT = Path(__file__).parents[2]


@pytest.fixture
def evidence(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    yield importlib.import_module("evidence")
    for name in ("evidence", "ablation"):
        sys.modules.pop(name)


def test_the_tables_of_the_page_are_those_of_the_files(evidence, tmp_path):
    page = tmp_path / "evidence.md"
    before = evidence.PAGE.read_text(encoding="utf-8")
    page.write_text(before.replace("| CE, seed 0 |", "| another |"), encoding="utf-8")
    evidence.write_tables(evidence.DATA, page)
    assert page.read_text(encoding="utf-8") == before, "run python benchmarks/evidence.py --tables"


def test_a_page_without_a_place_for_a_table_is_refused(evidence, tmp_path):
    page = tmp_path / "evidence.md"
    page.write_text("# Evidence\n", encoding="utf-8")
    with refused(SystemExit, "accuracy", 0):
        evidence.write_tables(evidence.DATA, page)


def test_what_is_copied_names_no_folder_of_this_machine(evidence):
    came_from = {
        "command": "landscape hessian --ckpt /home/me/runs/ce-0/last.pt",
        "checkpoint": "/home/me/runs/ce-0/last.pt",
        "checkpoints": {"/home/me/runs/ce-0/snapshots/epoch-0005.pt": "ab"},
        "data": {"name": "cifar10", "root": "/home/me/data"},
        "recipe": {"data_root": "/home/me/data", "lr": 0.15, "milestones": [160, 180]},
        "device": "cpu",
    }
    assert evidence.portable(came_from) == {
        "checkpoint": "runs/ce-0/last.pt",
        "checkpoints": {"runs/ce-0/snapshots/epoch-0005.pt": "ab"},
        "data": {"name": "cifar10", "root": "DIR"},
        "recipe": {"data_root": "DIR", "lr": 0.15, "milestones": [160, 180]},
        "device": "cpu",
    }


def test_committed_files_name_no_folder_of_a_machine(evidence):
    for file in sorted(evidence.DATA.glob("*.h5")):
        assert "'/" not in str(dict(ls.load(file).provenance)), file.name


def test_a_result_is_computed_once_and_while_there_is_time(evidence, tmp_path):
    file, asked = tmp_path / "epoch-0012.ends.h5", []

    def analysis(objective, *, out, progress):
        asked.append(objective)
        progress(1, 2, "half")
        found = ls.load(ROOT / "figures" / "data" / "cifar10.ce.ends.h5")
        ls.save(out, found)
        return found

    def once(until):
        return evidence.once(file, lambda: "objective", analysis, until)

    with pytest.raises(evidence.TimeIsUpError):
        once(time.monotonic() - 1)
    assert asked == []
    for _ in range(2):
        assert once(math.inf).parts == ("head", "tail")
        assert asked == ["objective"]


def test_a_result_of_other_options_is_refused(evidence, tmp_path):
    file, found = tmp_path / "epoch-0012.ends.h5", ls.load(ROOT / "figures" / "data" / "cifar10.ce.ends.h5")
    ls.save(file, found)
    steps = found.provenance["options"]["steps"]
    assert evidence.once(file, None, ls.spectrum, math.inf, steps=steps).parts == found.parts
    with refused(SystemExit, file, "steps", steps, steps + 1):
        evidence.once(file, None, ls.spectrum, math.inf, steps=steps + 1)


@pytest.mark.parametrize(("names", "planes"), [(["sam-0"], []), (["ce-0", "sam-0"], [["ce-0", "sam-0"]])])
def test_the_plane_is_left_as_it_is_without_the_run_whose_end_it_contains(
    evidence, tmp_path, monkeypatch, capsys, names, planes
):
    drawn = []
    monkeypatch.setattr(sys, "argv", ["evidence.py", "--runs", str(tmp_path)])
    monkeypatch.setattr(evidence, "runs_in", lambda folder: [folder / name for name in names])
    monkeypatch.setattr(evidence, "finished", lambda run: True)
    monkeypatch.setattr(evidence, "plane", lambda runs, *rest: drawn.append([run.name for run in runs]))
    for name in ("measure", "write_tables"):
        monkeypatch.setattr(evidence, name, lambda *arguments: None)
    evidence.main()
    assert drawn == planes
    assert ("ce-0" in capsys.readouterr().out) == (not planes)


@pytest.mark.slow
def test_a_run_is_measured_and_shown_as_far_as_it_has_come(evidence, tmp_path, monkeypatch):
    """On three classes, after 3 of 4 epochs and after all; then there is nothing left to compute."""
    plain = {"dataset": "toys:vectors", "model": "toys:batched", "augment": "none", "batch_size": 4}
    chosen, data = recipe("ce", **plain, snapshot_every=2, epochs=4, cosines_every=2), tmp_path / "data"
    args = argparse.Namespace(data_root=None, samples=2, steps=4, every=4, batches=1)
    monkeypatch.setattr(evidence, "DATA", data)
    data.mkdir()

    def cut(done, total, text):
        if done > 3:
            raise KeyboardInterrupt

    def column(table, k):
        return [row.split("|")[k].strip() for row in evidence.tables(data)[table][2:]]

    for progress, reached, newest in ((cut, "3", "2"), (None, "4", "4")):
        with pytest.raises(KeyboardInterrupt) if progress else nullcontext():
            train(None, None, chosen, out=tmp_path / "ce-0", device="cpu", progress=progress)
        evidence.measure(tmp_path / "ce-0", args, math.inf)
        assert column("accuracy", 2) == [reached]
        assert column("ends", 2) == [newest] * 2
        assert column("along", 2) == ["0", "4"][: 1 + int(newest) // 4]
        assert len(column("classes", 1)) == 3
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "ce-0" / "evidence").iterdir()}
    evidence.measure(tmp_path / "ce-0", args, math.inf)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "ce-0" / "evidence").iterdir()} == written


def test_head_and_tail_stand_beside_the_papers_numbers(evidence):
    spectrum = ls.load(ROOT / "figures" / "data" / "cifar10.sam.ends.h5")
    _, _, head, tail = evidence.ends({"sam-0": spectrum})
    assert head == "| CE + SAM, seed 0 | 12 | head (5,000) | 0.2434 | 124.3 | 7.42 | 368.3 | 36.96 |"
    assert tail == "| CE + SAM, seed 0 | 12 | tail (50) | 3.6815 | 527.1 | 35.19 | 1292 | 251.15 |"


@pytest.mark.parametrize(
    ("number", "error", "shown"),
    [
        (1067.5, 203.0, "1,100 ± 200"),
        (140.24, 17.2, "140 ± 20"),
        (0.42064, 0.0312, "0.42 ± 0.03"),
        (5.5, 1.4, "6 ± 1"),
        (393.7, math.nan, "393.7"),
        (393.7, 0.0, "393.7"),
    ],
)
def test_numbers_have_as_many_digits_as_their_errors_allow(evidence, number, error, shown):
    assert evidence.value(number, error) == shown


def test_runs_are_found_by_method_and_seed(evidence, tmp_path):
    for name in ("sam-1", "sam-0", "ce-0", "gsa-gkp-0", "gkp-0", "ce-1", "sam-2"):
        (tmp_path / name / "snapshots").mkdir(parents=True)
        (tmp_path / name / "history.h5").touch()
        if name != "ce-1":
            (tmp_path / name / "snapshots" / "epoch-0005.pt").touch()
    (tmp_path / "sam-2" / "history.h5").unlink()
    assert [p.name for p in evidence.runs_in(tmp_path)] == ["ce-0", "sam-0", "sam-1", "gsa-gkp-0"]
