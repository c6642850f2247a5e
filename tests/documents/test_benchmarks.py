"""The script for a machine with a GPU: rows that the time cuts go on in the next call, and are printed when done."""

import importlib.util
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from landscape import cli
from landscape.networks import checkpoints
from landscape.results import store

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "paper.py"
SMALL = ["--steps", "4", "--probes", "1", "--samples-per-class", "8", "--backend", "reverse"]


@pytest.fixture
def paper():
    spec = importlib.util.spec_from_file_location("paper", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow  # a process that imports torch
def test_the_papers_rows_are_trained_in_pieces_and_printed(paper, tmp_path, monkeypatch, capfd):
    """The time is up as soon as an epoch is kept; the second call goes on from there, the third has nothing to do."""
    started = []

    class Cut(subprocess.Popen):
        """A process whose time is up when its run has an epoch."""

        def __init__(self, words):
            super().__init__(words, preexec_fn=with_interrupts)

        def wait(self, timeout=None):
            if timeout == paper.STARTING:
                return super().wait(timeout)
            while not state.exists():
                assert self.poll() is None
                time.sleep(0.02)
            raise subprocess.TimeoutExpired(self.args, timeout)

    class Done:
        """A command that has all the time it needs, within this process."""

        def __init__(self, words):
            assert words[:3] == [sys.executable, "-m", "landscape"]
            self.code = cli.main([*words[3:], *(SMALL if words[3] == "hessian" else [])])

        def wait(self, timeout):
            return self.code

    def start(words):
        started.append(words[3])
        return Done(words) if len(started) > 1 else Cut(words)

    def main():
        options = "--epochs 8 --statistics-every 0 --device cpu"
        words = ["--datasets", "digits-lt", "--methods", "ce", "--options", options, "--minutes", "5"]
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), *words, "--out", str(tmp_path)])
        paper.main()
        return capfd.readouterr().out.splitlines()

    folder = tmp_path / "digits-lt-100-ce-0"
    state = folder / "state.pt"
    monkeypatch.setattr(paper.subprocess, "Popen", start)
    assert main()[-1].split()[0] == folder.name
    done = checkpoints.read(state).meta["epoch"]
    assert 1 <= done < 8
    shown = main()
    assert store.load(folder / "history.h5").epoch.tolist() == list(range(1, 9))
    assert started == ["train", "train", "hessian"]
    assert shown[1].split()[:2] == [folder.name, "8"]
    assert [line.split()[0] for line in shown[2:]] == ["head", "tail"]
    found = store.load(folder / "ends.h5")
    assert f"lambda_max {found.lambda_max[0]:9.2f}, trace {found.trace[0]:9.2f}" in shown[2]
    assert main() == shown
    assert len(started) == 3


def test_only_runs_of_the_papers_imbalance_stand_beside_its_numbers(paper, tmp_path, capsys):
    history = SCRIPT.parents[1] / "figures" / "data" / "cifar10-long.ce-0.history.h5"
    last = []
    for imbalance in ("100", "50"):
        (tmp_path / f"cifar10-{imbalance}-ce-0").mkdir()
        shutil.copy(history, tmp_path / f"cifar10-{imbalance}-ce-0" / "history.h5")
        paper.show(tmp_path, [("cifar10", "ce", "0")], imbalance)
        last.append(capsys.readouterr().out.split()[-1])
    assert last == ["70.4", "-"]


def with_interrupts():
    """Hear SIGINT, which a shell lets its background jobs ignore."""

    signal.signal(signal.SIGINT, signal.default_int_handler)
