"""Every write of a command fails once for want of space: one line, and the same command goes on when there is room.

In a child process each system call that makes, fills, syncs or renames a file is counted, and one of them fails with
ENOSPC. The campaign lets every one fail, one run for each:

    pytest -m campaign tests/campaigns/test_full_disks.py
"""

import errno
import io
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from campaigns import commands

from landscape.results import disk

MOST = int(os.environ.get("LANDSCAPE_FULL", "1000000"))  # writes of a command that fail, evenly spread


def full_at(n: int, count: Path) -> Callable[[], None]:
    """Return what lets the n-th write of this process below its folder fail, and writes down how many there are."""
    seen = 0
    real_write, real_open, real_os_open, real_mkdir = os.write, io.open, os.open, os.mkdir

    def tick() -> None:
        nonlocal seen
        seen += 1
        descriptor = real_os_open(count, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        real_write(descriptor, str(seen).encode())
        os.close(descriptor)
        if seen == n:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def here(path: str | Path) -> bool:
        """Say whether a file is the command's own; PyTorch has a folder of its own for what it compiles."""
        return (Path.cwd() / path).is_relative_to(Path.cwd())

    class Raw(io.FileIO):
        def write(self, piece):
            tick()
            return super().write(piece)

    def opened(path, mode="r", *args, **kwargs):
        if "b" in mode and "x" in mode:
            tick()
            return io.BufferedRandom(Raw(path, mode.replace("b", "")))
        if set(mode) & set("wxa") and here(path):
            tick()
        return real_open(path, mode, *args, **kwargs)

    def os_opened(path, flags, *args, **kwargs):
        if flags & os.O_CREAT and here(path):
            tick()
        return real_os_open(path, flags, *args, **kwargs)

    def counted(call: Callable) -> Callable:
        def counting(first, *args, **kwargs):
            if isinstance(first, int) or here(first):
                tick()
            return call(first, *args, **kwargs)

        return counting

    def made(folder, *args, **kwargs):
        if here(folder) and not os.path.isdir(folder):
            tick()
        return real_mkdir(folder, *args, **kwargs)

    def prepare() -> None:
        disk.open = opened  # the name that the module looks up
        io.open = opened  # that of pathlib
        os.open = os_opened  # that of locks
        os.mkdir = made
        for name in ("fsync", "replace"):
            setattr(os, name, counted(getattr(os, name)))

    return prepare


def fail_and_repeat(made: Path, tmp_path: Path, name: str, most: int) -> int:
    """Let writes of a command fail, each in a run of its own; how many did."""
    words = commands.COMMANDS[name]
    whole = commands.place(tmp_path, "whole", made)
    code = commands.ended(commands.started(whole, words, full_at(0, tmp_path / "count")), 600)
    assert code == 0, (whole / "said").read_text()
    expected, n = commands.numbers(whole), int((tmp_path / "count").read_text())
    failing = np.unique(np.linspace(1, n, min(n, most)).astype(int)).tolist()
    for k in failing:
        place = commands.place(tmp_path, "full", made)
        code = commands.ended(commands.started(place, words, full_at(k, tmp_path / "count")), 600)
        said = (place / "said").read_text()
        errors = [line for line in said.splitlines() if "error:" in line]
        said = " ".join(said.split())  # warnings are wrapped
        where = f"write {k} of {n}: exit code {code}, {said}"
        assert said.count("No space left on device") == 1, where
        assert commands.left_over(place, partial=code == 0) == [], where
        if code != 0:  # where the file is whole and only its folder cannot be synced there is a warning
            assert code == 2, where
            assert len(errors) == 1, where
            again = commands.ended(commands.started(place, words), 600)
            assert again == 0, f"{where}; then {(place / 'said').read_text()}"
        assert commands.numbers(place) == expected, where
        assert commands.left_over(place) == [], where
    print(f"{name}: {len(failing)} of {n} writes failed, each in a run of its own")
    return n


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    return commands.made(tmp_path_factory.mktemp("full"))


@pytest.mark.parametrize("name", ["train", "surface2d", "export goldstein"])
def test_a_write_that_fails_is_one_line_and_the_command_goes_on(made, tmp_path, name):
    assert fail_and_repeat(made, tmp_path, name, 3) > 3


@pytest.mark.campaign
@pytest.mark.timeout(36_000)
@pytest.mark.parametrize("name", commands.COMMANDS)
def test_every_write_may_fail(made, tmp_path, name):
    fail_and_repeat(made, tmp_path, name, MOST)
