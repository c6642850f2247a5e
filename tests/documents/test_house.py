"""The house itself: what is imported is ours, and what the docs name exists."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import landscape
import trainers
from landscape.cli import root

ROOT = Path(__file__).resolve().parents[2]


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


@pytest.mark.parametrize("name", root.list_commands(None))
def test_help_is_for_users(name):
    command = root.get_command(None, name)
    assert command.help
    assert "Raises:" not in command.help
