"""Programs in processes of their own, which take a tenth of a second: other libraries are loaded once for all of them.

They are forked from a process that has imported those libraries and nothing of this repository.
"""

import multiprocessing
import os
import signal
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LIBRARIES = ["pytest", "torch", "torch._dynamo", "scipy.stats", "h5py", "seaborn", "sklearn.datasets", "rich", "cloup"]
"""Among them what torch itself loads when it traces for the first time."""


class Program:
    """A Python program that runs beside the test."""

    def __init__(
        self,
        code: str,
        *words: object,
        cwd: Path | None = None,
        path: tuple[Path, ...] = (ROOT, ROOT / "tests"),
        env: dict[str, str] | None = None,
    ) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="program-"))
        given = (code, [str(w) for w in words], str(cwd or Path.cwd()), [str(p) for p in path], env or {}, self.folder)
        self.process = context().Process(target=_run, args=given, daemon=True)
        self.process.start()

    def said(self, line: str, timeout: float = 200) -> bool:
        """Wait until a line is in the output."""
        end = time.monotonic() + timeout
        while self.process.is_alive() and time.monotonic() < end and f"{line}\n" not in self.output:
            time.sleep(0.01)
        return f"{line}\n" in self.output

    def send(self, sign: signal.Signals) -> None:
        os.kill(self.process.pid, sign)

    def ended(self, timeout: float = 200) -> tuple[int, str, str]:
        """Wait for the end, and return the exit code, the output and the errors."""
        self.process.join(timeout)
        assert not self.process.is_alive(), self.errors
        return self.process.exitcode, self.output.strip(), self.errors.strip()

    @property
    def output(self) -> str:
        return self._read("out")

    @property
    def errors(self) -> str:
        return self._read("err")

    def _read(self, name: str) -> str:
        file = self.folder / name
        return file.read_text() if file.exists() else ""


def run(code: str, *words: object, **how: object) -> str:
    """Run a program to its end, which must be a good one, and return its output."""
    status, output, errors = Program(code, *words, **how).ended()
    assert status == 0, errors
    return output


def context() -> multiprocessing.context.ForkServerContext:
    found = multiprocessing.get_context("forkserver")
    found.set_forkserver_preload(LIBRARIES)
    return found


def _run(code: str, words: list[str], cwd: str, path: list[str], env: dict[str, str], folder: Path) -> None:
    """Be the program, as `python -c` would."""
    for name, number in (("out", 1), ("err", 2)):
        os.dup2(os.open(folder / name, os.O_WRONLY | os.O_CREAT, 0o600), number)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # shells let background jobs ignore it
    os.environ.update(env)
    os.chdir(cwd)
    sys.path[:0] = path
    sys.argv = ["-c", *words]
    exec(compile(code, "<program>", "exec"), {"__name__": "__main__"})
