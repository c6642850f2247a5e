"""The demo."""

import subprocess
import sys
from types import SimpleNamespace

from click.testing import CliRunner

from landscape.cli import main
from landscape.results import store
from trainers import commands

# The demo ---------------------------------------------------------------------------------------------------------


def test_the_demo_leaves_a_result_and_a_figure_of_each_method_in_place_of_older_ones(tmp_path, monkeypatch):
    """Its commands run within this process here; that each has its own is what the next test is about."""

    def run(words, *, check):
        assert words[:3] == [sys.executable, "-m", "landscape"]
        less = ["--samples-per-class", "4", "--probes", "1", "--trace", "probes", "--backend", "reverse"]
        less += ["--no-sampling-errors"]
        return subprocess.CompletedProcess(words, main(words[3:] + less * (words[3] == "hessian")))

    monkeypatch.setattr(commands, "subprocess", SimpleNamespace(run=run))
    folder = tmp_path / "my demo"
    (folder / "ce").mkdir(parents=True)
    older = {"ce/last.pt": b"old", "ce.h5": b"\x89HDF\r\n\x1a\nold", "ce.png": b"\x89PNG\r\n\x1a\nold"}
    for name, content in older.items():
        (folder / name).write_bytes(content)
    found = CliRunner().invoke(
        commands.demo, ["--out", str(folder), "--epochs", "1", "--steps", "2", "--methods", "ce,sam"]
    )
    assert found.exit_code == 0, found.output
    assert found.output.count("$ landscape") == 7
    assert store.load(folder / "ce.h5").parts == tuple("0123456789")
    assert store.load(folder / "sam.h5").provenance["method"] == "sam"
    assert all((folder / name).read_bytes() != content for name, content in older.items())


def test_the_demo_stops_where_a_command_fails_and_passes_its_exit_code_on(tmp_path):
    (tmp_path / "ce").touch()  # where the folder of the run should be
    found = CliRunner().invoke(commands.demo, ["--out", str(tmp_path)])
    assert found.exit_code == 2
    assert found.output.count("$ landscape") == 1
