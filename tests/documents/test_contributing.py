"""The recipes of docs/contributing.md: each diff applies to the packages as they are, and does what the page says."""

import re
import shutil
import subprocess
from pathlib import Path

import fresh
import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "contributing.md").read_text(encoding="utf-8")
RECIPES = dict(
    re.findall(r"^## (Add [^\n]*)\n(.*?)(?=^## |\Z)", PAGE, flags=re.MULTILINE | re.DOTALL),
)


def block(language, text):
    (found,) = re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    return found


@pytest.fixture
def copy(tmp_path):
    """The packages alone, without a repository around them."""
    for package in ("landscape", "trainers"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def test_there_are_the_recipes_that_the_readme_promises():
    assert set(RECIPES) >= {
        "Add a loss",
        "Add a matrix",
        "Add a figure",
        "Add a column",
        "Add a measure of sharpness",
        "Add a data set",
        "Add a training method",
    }


@pytest.mark.parametrize("title", RECIPES)
def test_a_recipe_applies_to_a_copy_and_works(copy, title):
    diff = block("diff", RECIPES[title])
    changed = [
        line for line in diff.splitlines() if line.startswith(("+", "-")) and not line.startswith(("+++", "---"))
    ]
    assert 1 <= len(changed) <= 20
    apply = ["git", "apply", "-"]
    done = subprocess.run(apply, cwd=copy, input=diff, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    where = f"import landscape\nassert landscape.__file__.startswith({str(copy)!r})\n"
    fresh.run(where + block("python", RECIPES[title]), cwd=copy, path=(copy,))
