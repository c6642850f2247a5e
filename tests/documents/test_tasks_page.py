"""docs/tasks.md: its tables say what there is, and its workflows run in three lines beside a user's own code."""

import ast
import re
from pathlib import Path

import pytest
from task_cases import cases

from landscape.networks.tasks import TASKS

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "tasks.md").read_text(encoding="utf-8")
WORKFLOWS = {
    title: re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    for title, text in re.findall(r"\n### (.*?)\n(.*?)(?=\n##|\Z)", PAGE, flags=re.DOTALL)
}


@pytest.mark.filterwarnings("ignore")  # of transformers while it loads
@pytest.mark.parametrize("title", WORKFLOWS)
def test_a_workflow_runs_with_at_most_three_lines_of_glue(title, capsys):
    own, glue = WORKFLOWS[title]
    glue = glue.replace("probes=1", 'probes=1, backend="reverse"')  # in so few steps a trace does not pay
    if "transformers" in own:
        pytest.importorskip("transformers", reason="transformers is not installed")
    assert len(ast.parse(glue).body) <= 3
    names = {}
    exec(compile(own, title, "exec"), names)
    exec(compile(glue, title, "exec"), names)
    assert "Spectrum (part: " in capsys.readouterr().out
    assert len(names["objective"].partition) >= 2


def test_the_tables_name_every_task_and_every_case_that_is_tested():
    rows = re.findall(r"^\| ([^|]+?) \| ([^|]+?) \| ([^|]+?) \|", PAGE, flags=re.MULTILINE)
    of_tasks = {first.strip("`"): third for first, _, third in rows if first.startswith("`") and first != "`task`"}
    assert set(of_tasks) == set(TASKS)
    for name, task in TASKS.items():
        assert task.values is None or f"`{task.loss}`" in of_tasks[name]
    found = cases()
    assert set(found) <= {first for first, *_ in rows}
    for name, case in found.items():
        cells = re.search(rf"^\| {re.escape(name)} \|(.*)\|$", PAGE, flags=re.MULTILINE)[1].split("|")
        assert ("=" in cells[2].split()) == case.ggn
        assert (cells[4].strip() == "=") == case.fisher
        assert case.traced is None or (cells[6].strip() == "traced") == case.traced
