"""What a process knows that `--processes` has started: that it is one, and that it ends if its starter has ended."""

import os
import threading

from landscape.cli import console

STARTED = "LANDSCAPE_PROCESSES"
"""The variable that `--processes` sets for the processes that it starts: the number of a pipe that it holds open, or
nothing once the pipe is watched."""
LOST = 75
"""The exit code of a process that has ended only because another has."""


def watch() -> None:
    """Let this process end as soon as the one that started it has ended, in whatever way; do this once."""
    pipe = os.environ.get(STARTED)
    if pipe:
        os.environ[STARTED] = ""  # which programs that this one starts inherit, and the pipe not
        os.set_inheritable(int(pipe), False)
        threading.Thread(target=_end_with, args=(int(pipe),), daemon=True).start()


def _end_with(pipe: int) -> None:
    os.read(pipe, 1)  # nothing is ever written: it returns where no process holds the other end any more
    console.error("the process that started this one has ended; what was finished is kept: repeat the command")
    os._exit(LOST)
