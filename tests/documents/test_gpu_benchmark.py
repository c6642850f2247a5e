"""The script for a machine with a GPU runs through where there is none, on a few samples."""

import importlib.util
import json
import sys
from pathlib import Path

from trainers import methods

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu.py"


def test_every_section_gives_numbers(tmp_path, monkeypatch):
    spec = importlib.util.spec_from_file_location("gpu", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    out = tmp_path / "gpu.json"
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), "--device", "cpu", "--tiny", "--json", str(out)])
    module.main()
    found = json.loads(out.read_text())
    sections = {name: part for name, part in found.items() if isinstance(part, dict)}
    assert set(sections) == {"products", "10 classes", "100 classes", "surface", "training", "profile"}
    assert 0 < sections["products"]["hessian, linearized"] < 100
    assert sections["10 classes"]["classes timed"] == 2
    assert sections["profile"]["operations"] > 0
    assert sections["10 classes"]["ls.spectrum, default, seconds"] > 0
    assert {f"{method}, seconds a step" for method in methods.METHODS} == set(sections["training"])
    assert all(seconds > 0 for seconds in sections["training"].values())
