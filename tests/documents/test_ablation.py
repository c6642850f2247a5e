"""The script of the ablation: what it draws, and how it takes differences."""

import runpy
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[2]
SCRIPT = runpy.run_path(str(ROOT / "benchmarks" / "ablation.py"))


def rows(**accuracies):
    """One run of each seed, equal but for its accuracy."""
    return [
        {"method": method, "seed": seed, **dict.fromkeys(SCRIPT["COLUMNS"], 1.0), "accuracy": value}
        for method, values in accuracies.items()
        for seed, value in enumerate(values)
    ]


def test_differences_are_taken_run_by_run(capsys):
    """0.1, 0.2 and 0.6 more than CE with the same seed: 0.3 on average, of standard error sqrt(0.07 / 3)."""
    SCRIPT["show"](rows(ce=[0.1, 0.3, 0.2], sam=[0.2, 0.5, 0.8]))
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].startswith("| `ce` | 0.2 |")
    assert lines[3].startswith("| `sam` | 0.5 |")
    assert lines[4].startswith(f"| `sam` - `ce` | +0.3 ± {np.sqrt(0.07 / 3):.2g} | +0 ± 0 |")


def test_seeds_that_a_method_lacks_are_left_out_for_all(capsys):
    SCRIPT["show"](rows(ce=[0.1, 0.3, 0.2], sam=[0.2, 0.5]))
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].startswith("| `ce` | 0.2 |")  # of the first two
    assert lines[4].startswith("| `sam` - `ce` | +0.15 ± 0.05 |")


def test_a_part_keeps_two_images_of_each_class_at_least(monkeypatch):
    samples = type("Samples", (), {})()
    samples.class_names, samples.labels = ["a", "b"], np.array([0] * 50 + [1] * 3)
    samples.inputs = SCRIPT["torch"].arange(53)
    monkeypatch.setattr(SCRIPT["datasets"], "load", lambda name, root, split: samples)
    monkeypatch.setenv("ABLATION_ROOT", "there")
    monkeypatch.setenv("ABLATION_PART", "0.1")
    inputs, labels = SCRIPT["part"]("train")
    assert np.bincount(labels).tolist() == [5, 2]
    assert (labels == (inputs >= 50)).all()
    assert len(SCRIPT["part"]("test")[1]) == 53
