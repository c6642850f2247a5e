"""docs/along.md: its two workflows run, with at most three lines of glue beside a user's own code."""

import ast
import re
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest

import landscape as ls

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "along.md").read_text(encoding="utf-8")
WORKFLOWS = {
    title: re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    for title, text in re.findall(r"\n### (.*?)\n(.*?)(?=\n##|\Z)", PAGE, flags=re.DOTALL)
}


def statements(glue):
    """Those in which this package has a part."""
    nodes = [n for n in ast.walk(ast.parse(glue)) if isinstance(n, ast.stmt) and not isinstance(n, ast.For)]
    return [n for n in nodes if re.search(r"\b(ls|monitor)\b", ast.unparse(n))]


@pytest.mark.parametrize("title", WORKFLOWS)
def test_a_workflow_runs_with_at_most_three_lines_of_glue(title, tmp_path, monkeypatch):
    own, glue = WORKFLOWS[title]
    monkeypatch.chdir(tmp_path)
    assert len(statements(glue)) == 3
    names = {}
    exec(compile(own.replace("range(30)", "range(2)"), title, "exec"), names)
    exec(compile(glue.replace("every=10", "every=10, backend='reverse'"), title, "exec"), names)
    plt.close("all")
    series = names["series"] if "series" in names else ls.load("monitor.h5")
    assert series.parts == ("all", "0", "1", "2")
    np.testing.assert_allclose(series.edge, 4.0)
    assert len(list(tmp_path.glob("*.png"))) == 1
