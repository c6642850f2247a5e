"""The benchmark of estimates runs through on a few samples, and estimates of memory are about what is taken."""

import json
from pathlib import Path

import fresh
import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "costs.py"


@pytest.mark.slow  # a process, and copies of it
def test_estimates_stand_beside_what_is_taken(tmp_path):
    out = tmp_path / "costs.json"
    words = ["--tiny", "--what", "trajectory", "--memory", "rows"]
    script = f"import runpy; runpy.run_path({str(SCRIPT)!r}, run_name='__main__')"
    shown = fresh.run(script, *words, "--width", "300", "--json", out)
    found = json.loads(out.read_text())
    assert set(found["jobs"]) == {"trajectory"}
    assert all(one["estimate"] > 0 and one["truth"] > 0 for rounds in found["jobs"].values() for one in rounds)
    assert set(found["memory"]) == {"rows"}
    for name, one in found["memory"].items():
        assert 0.65 < one["ratio"] < 1.5, (name, one)
    assert all(name in shown for name in (*found["jobs"], *found["memory"]))
