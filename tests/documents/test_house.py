"""The house itself: what is imported is ours, what the face shows is there and typed, and what the docs name exists."""

import ast
import functools
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import fresh
import pytest
from mypy import api

import landscape
import trainers
from landscape.cli import root

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted(set((ROOT / "docs").glob("*.md")) - {ROOT / "docs" / "contributing.md"})]
"""Not the recipes for contributors, whose code runs where it has been applied."""

OURS = {"landscape", "trainers"}

PRELUDE = """
# mypy: disable-error-code="no-untyped-def, no-untyped-call, import-not-found, no-redef"
import landscape as ls
import torch
import matplotlib.pyplot as plt
from pathlib import Path
from typing import Any
from torch.utils.data import DataLoader
import numpy as np
from torch import nn
model: Any; loader: Any; texts: Any; collate: Any; documents: Any; inputs: Any; targets: Any
labels: Any; optimizer: Any; data: Any; other: nn.Module
objective: ls.Objective
spectrum: ls.Spectrum
surface: ls.Surface
def get_esd_plot(eigenvalues: object, weights: object) -> None: ...
"""
"""What snippets of the pages take from those before them, and what users' own functions and modules may lack."""

MISTAKES = """
import landscape as ls
import torch
objective = ls.load_objective("run/last.pt", dtype=torch.float64, device=torch.device("cpu"), classes=["truck"])
ls.load_objective("run/last.pt", dtyp="float64")  # refused: call-arg
ls.load_objective("run/last.pt", dtype="half")  # refused: arg-type
ls.load("spectrum.h5").parts  # refused: attr-defined
ls.load("spectrum.h5", ls.Spectrum).parts
ls.load(["a.h5", "b.h5"], kind=ls.Surface)[0].lambda_max  # refused: attr-defined
ls.load_objective("run/last.pt", batch_size="128")  # refused: arg-type
spectrum = ls.spectrum(objective, steps=40)
ls.spectrum(objective, step=40)  # refused: call-arg
ls.spectrum(objective, steps="40")  # refused: arg-type
ls.spectrum(objective, trace="often")  # refused: arg-type
ls.spectrum(objective, operator="hesian")  # refused: arg-type
ls.spectrum(objective, distribution="cauchy")  # refused: arg-type
ls.surface2d(objective, batch_norm="train")  # refused: arg-type
ls.surface1d(objective, refin=0.1)  # refused: call-arg
ls.directions.random(objective, 2, normalisation="filters")  # refused: arg-type
ls.sharpness(objective, rho="0.1")  # refused: arg-type
ls.gradients(objective, samples_per_batch=1.5)  # refused: arg-type
ls.regroup(spectrum, "head-tail").lambda_min  # refused: attr-defined
ls.regroup(spectrum, "head-tail").trace
ls.density(spectrum.alpha, spectrum.beta, axis="log")  # refused: arg-type
ls.plots.density(spectrum, prt="truck")  # refused: call-arg
ls.plots.density(spectrum, axis="log")  # refused: arg-type
ls.plots.surface(spectrum)  # refused: arg-type
spectrum.lambda_max.append(1.0)  # refused: attr-defined
[*(part.upper() for part in spectrum)]
spectrum["truck"].lambda_max
spectrum["truck"].lambda_maximum  # refused: attr-defined
ls.concat([spectrum], along=3)  # refused: arg-type
ls.concat([spectrum])["ce"].lambda_max
spectrum.lambda_maximum  # refused: attr-defined
ls.spectra(objective)  # refused: attr-defined
import trainers
model = torch.nn.Linear(2, 2)
trainers.train(model, None, trainers.recipe("ce"), device=torch.device("cpu"))
trainers.train(model, None, trainers.recipe("ce"), devise="cpu")  # refused: call-arg
trainers.train(model, None, 3)  # refused: arg-type
trainers.SAM(model.parameters(), torch.optim.SGD, rho="0.1", lr=0.1)  # refused: arg-type
trainers.Sam  # refused: attr-defined
"""


def test_the_packages_are_ours_and_not_another_programs():
    assert Path(landscape.__file__).parent == ROOT / "landscape"
    assert Path(trainers.__file__).parent == ROOT / "trainers"


@pytest.mark.parametrize("name", landscape.__all__)
def test_every_public_name_exists_twice_in_a_row(name):
    """The second access would find a module of that name, if there were one."""
    first = getattr(landscape, name)
    assert getattr(landscape, name) is first
    assert callable(first) or name in {"plots", "directions", "distributed", "Result"}


def test_type_checkers_see_the_names_that_are_there_at_run_time():
    tree = ast.parse(Path(landscape.__file__).read_text())
    (block,) = (n for n in tree.body if isinstance(n, ast.If) and ast.unparse(n.test) == "TYPE_CHECKING")
    seen = {}
    for line in block.body:
        (alias,) = line.names
        assert alias.name == alias.asname  # or else the name is not public
        seen[alias.name] = line.module
    assert seen == landscape._WHERE  # private: where each name is
    assert sorted(seen) == landscape.__all__ == dir(landscape)


FRESH = """
import landscape as ls
first = {{name: getattr(ls, name) for name in {names}}}
assert all(first[name] is getattr(ls, name) for name in ls.__all__)
"""


@pytest.mark.parametrize("order", [1, -1])
def test_names_are_there_from_the_first_import_in_whatever_order_they_are_asked_for(order):
    fresh.run(FRESH.format(names=landscape.__all__[::order]))


def test_importing_loads_nothing_and_drawing_no_torch():
    program = (
        "import sys, landscape\n"
        "assert not {'torch', 'matplotlib', 'numpy'} & sys.modules.keys()\n"
        "landscape.plots; landscape.load; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def snippets():
    """The Python blocks of the pages that speak of the face, each as a file of its own."""
    for page in PAGES:
        found = re.findall(r"^```python\n(.*?)^```$", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
        for number, text in enumerate(found):
            if re.search(r"\bls\.", text):
                yield f"{page.stem}_{number}.py", text


@pytest.fixture(scope="module")
def refusals(tmp_path_factory):
    """What mypy --strict says of the snippets and of the mistakes: (file, line) -> error code."""
    folder = tmp_path_factory.mktemp("typed")
    files = {"mistakes.py": MISTAKES} | {name: PRELUDE + text for name, text in snippets()}
    assert len(files) > 4
    for name, text in files.items():
        (folder / name).write_text(text)
    # Worker processes are not heard of in time on a busy machine.
    options = [
        "--strict",
        "--num-workers=0",
        "--config-file",
        str(ROOT / "pyproject.toml"),
        "--cache-dir",
        str(ROOT / ".mypy_cache"),
    ]
    out, err, _ = api.run([*options, "--no-error-summary", *(str(folder / name) for name in files)])
    assert not err
    found = re.findall(r"^(\S+?)([^/\s]+\.py):(\d+): error: .*\[([a-z-]+)\]$", out, flags=re.MULTILINE)
    return {(name, int(line)): code for _, name, line, code in found}, out


def test_a_type_checker_passes_every_snippet_of_the_pages(refusals):
    found, out = refusals
    assert {place for place in found if place[0] != "mistakes.py"} == set(), out


def test_a_type_checker_refuses_misspelt_and_mistyped_arguments(refusals):
    wanted = {
        ("mistakes.py", number): line.split("# refused: ")[1]
        for number, line in enumerate(MISTAKES.splitlines(), 1)
        if "# refused" in line
    }
    found = {place: code for place, code in refusals[0].items() if place[0] == "mistakes.py"}
    assert found == wanted, refusals[1]


def test_versions_agree():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert f"version: {project['version']}" in (ROOT / "CITATION.cff").read_text()


@pytest.mark.parametrize("name", root.list_commands(None))
def test_help_is_for_users(name):
    command = root.get_command(None, name)
    assert command.help
    assert "Raises:" not in command.help


def test_the_top_level_holds_what_it_should_and_nothing_that_a_run_has_left():
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode or not listed.stdout:
        pytest.skip("not a checkout")
    assert {path.partition("/")[0] for path in listed.stdout.splitlines()} == {
        ".ci", ".github", ".gitignore", "CHANGELOG.md", "CITATION.cff", "LICENSE", "Makefile", "README.md",
        "benchmarks", "constraints.txt", "docs", "figures", "landscape", "mkdocs.yml", "notebooks", "pyproject.toml",
        "tests", "trainers",
    }  # fmt: skip


def test_a_page_and_the_rooms_themselves_agree_on_where_to_begin():
    page = (ROOT / "docs/design.md").read_text()
    begins = dict(re.findall(r"^\| `(\w+)` \| [^|]+ \| `([^`]+)` \|$", page, re.MULTILINE))
    rooms = {file.parent.name: file for file in (ROOT / "landscape").glob("*/__init__.py")}
    assert set(begins) == set(rooms)
    for room, file in rooms.items():
        told = ast.get_docstring(ast.parse(file.read_text())).partition("Begin with ")[2]
        assert (ROOT / "landscape" / begins[room]).is_file()
        assert told.startswith(f"`{Path(begins[room]).relative_to(room).with_suffix('')}"), room


def test_where_to_change_what_leads_to_files_that_hold_it():
    """What a row of the table names in code stands in the row's file, or in another file that the row names."""
    page = (ROOT / "docs/design.md").read_text()
    section = page.partition("## To change something, open")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| ([^|]+) \| `([^`]+)` \| ([^|]+) \|$", section, re.MULTILINE)
    assert len(rows) >= 30
    for change, path, words in rows:
        file = ROOT / path if path.startswith("trainers/") else ROOT / "landscape" / path
        assert file.is_file(), f"{change}: {path}"
        names = [name for name in re.findall(r"`([^`]+)`", words) if not re.search(r"(^| )--", name)]
        near, texts = file.parent, [file.read_text()]
        for name in (name for name in names if "/" in name or name.endswith(".py")):
            other = next((p for p in (ROOT / name, ROOT / "landscape" / name, near / name) if p.exists()), None)
            assert other, f"{change}: {name}"
            if other.is_file():
                near, texts = other.parent, [*texts, other.read_text()]
        for name in (name for name in names if "/" not in name and not name.endswith(".py")):
            holds = re.compile(rf"\b{re.escape(name.rpartition('.')[2])}\b")
            assert any(holds.search(text) for text in texts), f"{change}: {name}"


@functools.cache
def parsed(file):
    """The text of a test file and its tree."""
    text = file.read_text(encoding="utf-8")
    return text, ast.parse(text)


def test_no_test_stands_on_another_and_none_is_too_long_to_read():
    for file in (ROOT / "tests").rglob("test_*.py"):
        text, tree = parsed(file)
        assert text.count("\n") <= 500, f"{file} is long: divide it by subject"
        for node in ast.walk(tree):
            names = (
                [a.name for a in node.names] if isinstance(node, ast.Import) else [getattr(node, "module", "") or ""]
            )
            imported = isinstance(node, ast.Import | ast.ImportFrom)
            assert not imported or not any(n.split(".")[-1].startswith("test_") for n in names), file


def test_a_test_of_a_private_name_says_why():
    """In the same function, or beside the import, by a comment that begins with "private:"."""
    for file in (ROOT / "tests").rglob("*.py"):
        text, tree = parsed(file)
        imports = [n for n in ast.walk(tree) if isinstance(n, ast.ImportFrom | ast.Import)]
        ours = [n for n in imports if (getattr(n, "module", "") or n.names[0].name).split(".")[0] in OURS]
        names = {alias.asname or alias.name.split(".")[0] for n in ours for alias in n.names}
        lines = text.splitlines()
        for node in tree.body:
            words = "\n".join(lines[node.lineno - 1 : node.end_lineno])
            used = [n for n in ast.walk(node) if isinstance(n, ast.Attribute) and re.match(r"_(?!_)", n.attr)]
            private = any(getattr(n.value, "id", "") in names for n in used)
            private |= any(n in ours and any(a.name.startswith("_") for a in n.names) for n in ast.walk(node))
            assert not private or "# private: " in words, f"{file}:{node.lineno}"
