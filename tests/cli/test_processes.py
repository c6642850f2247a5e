"""Several processes of one machine: who speaks, how all end, and with which exit code."""

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time

import pytest
import torch
from torch import nn

from landscape.cli import main, processes
from landscape.results.journal import Journal


def run(script, n=2):
    """Run a Python script in processes; `rank` is the position of each."""
    head = "import os, sys, time; rank = int(os.environ['RANK'])\n"
    return processes.run([sys.executable, "-c", head + textwrap.dedent(script)], n)


def test_processes_know_each_other_and_divide_the_cores(capfd, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(processes.threads, "cores", lambda: 7)
    names = ("WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "OMP_NUM_THREADS")
    code = run(f"""
        assert os.environ["LOCAL_RANK"] == str(rank) and int(os.environ["MASTER_PORT"]) > 0
        print(*(os.environ[name] for name in {names}))
        print("log", rank, file=sys.stderr)
    """, 3)  # fmt: skip
    out, err = capfd.readouterr()
    assert code == 0
    assert out.splitlines() == ["3 3 127.0.0.1 2"] * 3
    assert err.splitlines() == ["log 0"]


def test_a_closed_output_is_no_fault(monkeypatch):
    """As that of a process that a daemon starts, for which Python has none."""
    monkeypatch.setattr(sys, "stdout", None)
    assert main(["--version"]) == 0
    assert run("sys.exit(0)") == 0


@pytest.mark.parametrize(
    ("script", "code", "lines"),
    [
        ("print('bad input', file=sys.stderr); sys.exit(2)", 2, ["bad input"]),
        ("time.sleep(0.2 * (rank == 0)); print(rank, file=sys.stderr); sys.exit(2 + rank)", 2, ["0"]),
        ("rank and sys.exit(f'only {rank}')", 1, ["only 1"]),
        ("rank or sys.exit(3)", 3, []),
        ("time.sleep(30) if rank == 0 else sys.exit('alone')", 1, ["alone"]),
        ("sys.exit(75 if rank == 0 else 'why')", 1, ["why"]),  # the first has only lost the other
        ("os.kill(os.getpid(), 9) if rank == 0 else sys.exit(75)", 137,
         ["landscape: error: process 1 of 2 has ended by signal 9; what was finished is kept"]),
        ("os.kill(os.getpid(), 9) if rank else time.sleep(30)", 137,
         ["landscape: error: process 2 of 2 has ended by signal 9; what was finished is kept"]),
    ],
)  # fmt: skip
def test_a_process_that_fails_ends_all_with_its_words_once(capfd, monkeypatch, script, code, lines):
    monkeypatch.setattr(processes, "_GRACE", 0.4)  # private: how long the others may take
    began = time.monotonic()
    assert run(script) == code
    assert time.monotonic() - began < 10
    assert capfd.readouterr().err.splitlines() == lines


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_are_passed_on_once(capfd, tmp_path, signum):
    def send():
        """Send it as soon as both processes can hear it."""
        end = time.monotonic() + 60
        while len(os.listdir(tmp_path)) < 2 and time.monotonic() < end:
            time.sleep(0.01)
        os.kill(os.getpid(), signum)

    outside = signal.signal(signum, signal.SIG_DFL)  # tests may run where it is ignored, and then it is not passed on
    sender = threading.Thread(target=send)
    sender.start()
    code = run(f"""
        import signal
        got = []
        for s in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(s, lambda s, frame: got.append(s))
        open({str(tmp_path)!r} + f"/{{rank}}", "w").close()
        while not got:
            time.sleep(0.01)
        time.sleep(0.3)
        sys.exit(100 + 10 * len(got))
    """)
    sender.join()
    assert code == 110
    assert signal.signal(signum, outside) is signal.SIG_DFL


def test_the_program_is_started_as_it_was(monkeypatch):
    words = ["hessian", "--ckpt", "a.pt", "--processes", "2"]
    ran = []
    monkeypatch.setattr(processes, "run", lambda command, n: ran.append(command) or 0)
    monkeypatch.setattr(processes.threads, "cores", lambda: 2)
    for begun in (["python", "-X", "dev", "/bin/landscape"], ["python", "-m", "landscape"]):
        monkeypatch.setattr(sys, "orig_argv", [*begun, *words])
        assert main(words) == 0
        assert ran.pop() == [sys.executable, *begun[1:], *words[:3]]
    monkeypatch.setattr(sys, "orig_argv", ["python", "program.py"])
    assert main(words) == 0
    assert ran.pop() == [sys.executable, "-P", "-m", "landscape", *words[:3]]


PROGRAM = """
import os, pathlib, time
import torch
from torch.nn import functional as F

def network():
    pathlib.Path(os.environ["RANK"]).write_text(str(os.getpid()))
    return torch.nn.Linear(2, 3)

def slow(logits, labels):
    time.sleep(0.02)
    return F.cross_entropy(logits, labels, reduction="none")

def data(split):
    return torch.utils.data.TensorDataset(torch.ones(6, 2), torch.arange(6) % 3)
"""


@pytest.mark.slow
def test_processes_end_if_the_one_that_started_them_is_killed(tmp_path):
    (tmp_path / "mine.py").write_text(PROGRAM)
    torch.save(nn.Linear(2, 3).state_dict(), tmp_path / "net.pt")
    words = "surface1d --ckpt net.pt --model mine:network --dataset mine:data --loss mine:slow --x=-1:1:20001 -o s.h5"
    command = [sys.executable, "-m", "landscape", *words.split(), "--device", "cpu", "--processes", "2"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    starter = subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    kept, end = tmp_path / "s.h5.partial", time.monotonic() + 120
    while len(list(kept.glob("unit-*.h5"))) < 2 and starter.poll() is None and time.monotonic() < end:
        time.sleep(0.05)
    starter.kill()
    try:
        _, errors = starter.communicate(timeout=10)  # to the end of what is written, which comes when all have ended
    except subprocess.TimeoutExpired:
        for rank in "01":
            os.kill(int((tmp_path / rank).read_text()), signal.SIGKILL)
        raise
    assert starter.returncode == -signal.SIGKILL, errors
    assert {"0", "1"} <= {file.name for file in tmp_path.iterdir()}
    assert len(Journal(tmp_path / "s.h5", None).done()) >= 2
    assert "landscape: error: " in errors
