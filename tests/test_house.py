"""The house itself: what is imported is ours, and what the docs name exists."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import landscape
import trainers
from landscape.cli import COMMANDS, PLUGIN_HELP, root

ROOT = Path(__file__).resolve().parent.parent


def test_the_packages_are_ours_and_not_another_programs():
    assert Path(landscape.__file__).parent == ROOT / "landscape"
    assert Path(trainers.__file__).parent == ROOT / "trainers"


@pytest.mark.parametrize("name", landscape.__all__)
def test_every_public_name_exists_twice_in_a_row(name):
    """The second access would find a module of that name, if there were one."""
    first = getattr(landscape, name)
    assert getattr(landscape, name) is first
    assert callable(first) or name == "plots"


def test_importing_and_drawing_need_no_torch():
    program = "import sys, landscape; landscape.plots; landscape.load; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)


def test_versions_agree():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert f"version: {project['version']}" in (ROOT / "CITATION.cff").read_text()


@pytest.mark.parametrize("page", ["README.md", *(f"docs/{p.name}" for p in sorted((ROOT / "docs").glob("*.md")))])
def test_documents_name_commands_and_files_that_exist(page):
    text = (ROOT / page).read_text()
    commands = set(re.findall(r"^(?:\$ )?landscape ([a-z0-9]+)", text, flags=re.MULTILINE))
    assert commands <= set(COMMANDS) | set(PLUGIN_HELP)
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        assert (ROOT / page).parent.joinpath(target).exists(), target


def test_documents_name_options_that_exist():
    commands = [root.get_command(None, name) for name in root.list_commands(None)]
    known = {o for c in commands for p in c.params for o in (*p.opts, *p.secondary_opts)}
    known |= {"--help", "--no-deps", "--nproc-per-node"}  # of pip and of torchrun
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        used = set(re.findall(r"(?<![\w-])--[a-z][a-z0-9_-]+", page.read_text()))
        assert used <= known, (page.name, used - known)


@pytest.mark.parametrize("name", root.list_commands(None))
def test_help_is_for_users(name):
    command = root.get_command(None, name)
    assert command.help
    assert "Raises:" not in command.help
