"""Several processes of one machine: who speaks, how all end, and with which exit code."""

import os
import signal
import sys
import textwrap
import threading
import time

import pytest

from landscape.cli import main, processes


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


@pytest.mark.parametrize(
    ("script", "code", "lines"),
    [
        ("print('bad input', file=sys.stderr); sys.exit(2)", 2, ["bad input"]),
        ("time.sleep(0.3 * (rank == 0)); print(rank, file=sys.stderr); sys.exit(2 + rank)", 2, ["0"]),
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
    monkeypatch.setattr(processes, "_GRACE", 1.0)  # private: how long the others may take
    began = time.monotonic()
    assert run(script) == code
    assert time.monotonic() - began < 10
    assert capfd.readouterr().err.splitlines() == lines


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_are_passed_on_once(capfd, signum):
    outside = signal.signal(signum, signal.SIG_DFL)  # tests may run where it is ignored, and then it is not passed on
    timer = threading.Timer(1.5, os.kill, (os.getpid(), signum))
    timer.start()
    code = run("""
        import signal
        got = []
        for s in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(s, lambda s, frame: got.append(s))
        while not got:
            time.sleep(0.01)
        time.sleep(0.3)
        sys.exit(100 + 10 * len(got))
    """)
    timer.join()
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
