"""The option that runs a command in several processes of this machine, with one line and one exit code for all.

torchrun is for several machines; a command that fails there ends with a traceback of torchrun's and the exit code 1.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from types import FrameType
from typing import IO, TypeAlias

import click

from landscape.autodiff import distributed, threads
from landscape.cli import console
from landscape.cli.options import BEFORE, COUNT, option
from landscape.cli.started import LOST, STARTED
from landscape.errors import InputError, arg

_GRACE = 20.0  # seconds for the others to end by themselves after one has failed, and once more after SIGTERM
_STEP = 0.05

Process: TypeAlias = subprocess.Popen[bytes]


def _later(ctx: click.Context, param: click.Parameter, n: int | None) -> None:
    if n is not None:
        ctx.meta.setdefault(BEFORE, []).append(partial(_start, n, ctx.find_root().obj))


def _start(n: int, words: Sequence[str]) -> None:
    """Run the command line in n processes and end with their exit code; for n = 1 there is no need.

    Args:
        n: number of processes.
        words: all words after "landscape".

    Raises:
        InputError: there are several processes already, or they would be too many.
        click.exceptions.Exit: the processes have ended.
    """
    if distributed.is_of_several():
        raise InputError(f"{arg('processes', n)} starts processes, but torchrun or srun has started them: leave it out")
    if n > (most := threads.places()):
        raise InputError(f"{arg('processes', n)} is more than this machine has cores or GPUs: it has {most}")
    if n == 1:
        return
    at = next(k for k, word in enumerate(words) if word.partition("=")[0] == "--processes")
    rest = [*words[:at], *words[at + (1 if "=" in words[at] else 2) :]]
    raise click.exceptions.Exit(run([*_program(words), *rest], n))


def _program(words: Sequence[str]) -> list[str]:
    """Return the program that has been given these words, which it is started as anew."""
    begun = sys.orig_argv
    if begun[len(begun) - len(words) :] == list(words):
        return [sys.executable, *begun[1 : len(begun) - len(words)]]
    return [sys.executable, "-P", "-m", "landscape"]  # called by another; -P: not modules of the current folder


def run(command: Sequence[str], n: int) -> int:
    """Run a command in n processes that work together.

    SIGINT, SIGTERM and SIGHUP are passed on to all. If this process is killed, a pipe closes of which only it holds the
    other end; commands of this package then end by themselves. What the first process writes to stderr is seen; what
    another has written is seen if the first has not failed by itself. Without OMP_NUM_THREADS the processes divide the
    cores.

    Args:
        command: the program and its arguments.
        n: number of processes.

    Returns:
        The exit code: 0 if all have succeeded, otherwise that of the first process, or if it has not failed by itself
        that of another which has.
    """
    if sys.stdout is not None:
        sys.stdout.flush()
    together = {
        "WORLD_SIZE": str(n),
        "LOCAL_WORLD_SIZE": str(n),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(_free_port()),
    }
    environment = {"OMP_NUM_THREADS": str(max(1, threads.cores() // n))} | os.environ | together
    with ExitStack() as stack:
        logs: list[IO[bytes] | None] = [None, *(stack.enter_context(tempfile.TemporaryFile()) for _ in range(1, n))]
        processes: list[Process] = []
        watched, held = os.pipe()
        for descriptor in (watched, held):
            stack.callback(os.close, descriptor)
        stack.enter_context(_passed_on(processes))
        for rank, log in enumerate(logs):
            own = environment | {"RANK": str(rank), "LOCAL_RANK": str(rank), STARTED: str(watched)}
            processes.append(subprocess.Popen(command, env=own, stderr=log, pass_fds=(watched,)))
        _wait(processes, lambda: any(process.returncode for process in processes))
        if not any(process.returncode for process in processes):
            return 0
        _wait(processes, _after(_GRACE))
        codes = [process.returncode for process in processes]
        by_itself = [rank for rank, code in enumerate(codes) if code not in {None, 0, LOST}]
        if by_itself[:1] != [0] or codes[0] < 0:
            for rank in by_itself:
                _tell(rank, n, codes[rank], logs[rank])
        for end in (subprocess.Popen.terminate, subprocess.Popen.kill):
            for process in processes:
                end(process)  # nothing happens to one that has ended
            _wait(processes, _after(_GRACE))
        code = codes[by_itself[0]] if by_itself else 2
        return int(code) if code > 0 else 128 - int(code)


def _wait(processes: Sequence[Process], stop: Callable[[], bool]) -> None:
    """Wait until all processes have ended, or `stop()` is true."""
    while None in [process.poll() for process in processes] and not stop():
        time.sleep(_STEP)


def _after(seconds: float) -> Callable[[], bool]:
    end = time.monotonic() + seconds
    return lambda: time.monotonic() > end


def _tell(rank: int, n: int, code: int, log: IO[bytes] | None) -> None:
    """Show what a process has written that failed without the first one, or how it has ended."""
    if log is not None and log.seek(0, os.SEEK_END):
        log.seek(0)
        shutil.copyfileobj(log, sys.stderr.buffer)
        sys.stderr.flush()
    else:
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        console.error(f"process {rank + 1} of {n} has ended by {how}; what was finished is kept")


@contextmanager
def _passed_on(processes: Sequence[Process]) -> Generator[None, None, None]:
    """Pass signals that end a command on to the processes; only the main thread can. Ctrl-C reaches them twice."""

    def passed(signum: int, frame: FrameType | None) -> None:
        for process in processes:
            process.send_signal(signum)

    before = {}
    if threading.current_thread() is threading.main_thread():
        known = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
        before = {s: signal.signal(s, passed) for s in known if signal.getsignal(s) != signal.SIG_IGN}
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


PROCESSES = option(
    "--processes",
    type=COUNT,
    metavar="N",
    callback=_later,
    expose_value=False,
    help="Divide the work among N processes on this machine, each with its own GPU if there are GPUs.",
    show_default="1",
)
