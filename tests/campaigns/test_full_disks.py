"""Every write of a command fails once for want of space: one line, and the same command goes on when there is room.

In a child process each system call that makes, fills, syncs or renames a file is counted, and one of them fails with
ENOSPC, one run for each. Calls with the same stack of Python lines are one place of the code: a checkpoint is written
in dozens of pieces by one line. Of every place the first and the last call fail, and a few at random between them;
of places that an earlier command has shown already, as one method of training does for another, a few calls in all:

    pytest -m campaign tests/campaigns/test_full_disks.py

LANDSCAPE_FULL=1000000 lets every call fail.
"""

import errno
import io
import os
import traceback
import zlib
from collections.abc import Callable
from itertools import takewhile
from pathlib import Path

import numpy as np
import pytest
from campaigns import commands

from landscape.results import disk

BETWEEN = int(os.environ.get("LANDSCAPE_FULL", "2"))  # calls of one place that fail, beside its first and its last
SHOWN: set[str] = set()  # places of which calls have failed in an earlier command


def full_at(n: int, places: Path) -> Callable[[], None]:
    """Return what lets the n-th write of this process below its folder fail, and writes down the place of each."""
    seen = 0
    book = -1
    real_write, real_open, real_os_open, real_mkdir = os.write, io.open, os.open, os.mkdir

    def tick() -> None:
        nonlocal seen
        seen += 1
        stack = [(frame.f_code.co_filename, line) for frame, line in traceback.walk_stack(None)]
        own = list(takewhile(lambda place: place[0] != commands.__file__, stack))  # without the campaign
        real_write(book, f"{zlib.crc32(repr(own).encode()):08x}\n".encode())
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
        nonlocal book
        book = real_os_open(places, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        disk.open = opened  # the name that the module looks up
        io.open = opened  # that of pathlib
        os.open = os_opened  # that of locks
        os.mkdir = made
        for name in ("fsync", "replace"):
            setattr(os, name, counted(getattr(os, name)))

    return prepare


def chosen(places: list[str], shown: set[str], between: int) -> list[int]:
    """Choose calls, counted from 1: of each place the first, the last and some between them; a few of shown ones."""
    rng = np.random.default_rng(len(places))
    again = [k for k, place in enumerate(places, 1) if place in shown]
    found: set[int] = set(rng.permutation(again)[: 2 * between].tolist())
    for place in set(places) - shown:
        calls = [k for k, other in enumerate(places, 1) if other == place]
        found |= {calls[0], calls[-1], *rng.permutation(calls[1:-1])[:between].tolist()}
    return sorted(found)


def fail_and_repeat(made: Path, tmp_path: Path, name: str, most: int | None = None) -> tuple[int, int]:
    """Let writes of a command fail, each in a run of its own; how many did, and how many there are."""
    words = commands.COMMANDS[name]
    whole = commands.place(tmp_path, "whole", made)
    code = commands.ended(commands.started(whole, words, full_at(0, tmp_path / "places")), 600)
    assert code == 0, (whole / "said").read_text()
    expected, places = commands.numbers(whole), (tmp_path / "places").read_text().split()
    failing = chosen(places, SHOWN, BETWEEN)
    if most is not None:
        failing = [failing[i] for i in np.unique(np.linspace(0, len(failing) - 1, most).astype(int))]
    faults: list[str] = []
    for k in failing:
        try:
            _fail(made, tmp_path, words, k, places, expected)
        except AssertionError as fault:
            faults.append(str(fault).splitlines()[0])
            print(f"{name}: {faults[-1]}", flush=True)
    n, n_places, n_shown = len(places), len(set(places)), len(SHOWN & set(places))
    more = f", {n_shown} of them shown before" if n_shown else ""
    print(f"{name}: {len(failing)} of {n} writes at {n_places} places{more} failed, {len(faults)} faults", flush=True)
    if most is None:
        SHOWN.update(places)
    assert not faults, "\n".join(faults)
    return len(failing), n


def _fail(
    made: Path, tmp_path: Path, words: tuple[str, ...], k: int, places: list[str], expected: dict[str, bytes]
) -> None:
    place, book = commands.place(tmp_path, "full", made), tmp_path / "places-now"
    code = commands.ended(commands.started(place, words, full_at(k, book)), 600)
    said = (place / "said").read_text()
    errors = [line for line in said.splitlines() if "error:" in line]
    said = " ".join(said.split())  # warnings are wrapped
    where = f"write {k} of {len(places)}: exit code {code}, {said}"
    assert book.read_text().split()[k - 1] == places[k - 1], f"{where}: at another place of the code"
    assert said.count("No space left on device") == 1, where
    assert commands.left_over(place, partial=code == 0) == [], where
    if code != 0:  # where the file is whole and only its folder cannot be synced there is a warning
        assert code == 2, where
        assert len(errors) == 1, where
        again = commands.ended(commands.started(place, words), 600)
        assert again == 0, f"{where}; then {(place / 'said').read_text()}"
    assert commands.numbers(place) == expected, where
    assert commands.left_over(place) == [], where


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    return commands.made(tmp_path_factory.mktemp("full"))


@pytest.mark.parametrize("name", ["train", "surface2d", "export goldstein"])
def test_a_write_that_fails_is_one_line_and_the_command_goes_on(made, tmp_path, name):
    failed, n = fail_and_repeat(made, tmp_path, name, 3)
    assert 3 == failed < n


@pytest.mark.parametrize("name", ["info", "compare"])
def test_a_command_that_only_shows_writes_nothing(made, tmp_path, name):
    assert fail_and_repeat(made, tmp_path, name) == (0, 0)


@pytest.mark.campaign
@pytest.mark.timeout(36_000)
@pytest.mark.parametrize("name", commands.COMMANDS)
def test_every_write_may_fail(made, tmp_path, name):
    fail_and_repeat(made, tmp_path, name)
