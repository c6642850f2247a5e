"""What several rooms' tests share."""

import errno
import gc
import os
import subprocess
import sys
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import pytest
from filelock import FileLock

# Tests run side by side, and their networks are tiny: threads that wait for each other cost five times what they gain.
os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported, here and in the processes that tests start


def has_room(folder: str) -> bool:
    """Say whether a folder in memory is large enough for all that tests write, and programs in it may run."""
    if not os.path.isdir(folder):
        return False
    found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize > 4 * 2**30 and not found.f_flag & os.ST_NOEXEC


# Every file is synced when it is written, which takes a disk some ten milliseconds, and tests write tens of thousands.
if has_room("/dev/shm"):
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", "/dev/shm")


def pytest_collection_modifyitems(items):
    """Begin with what takes long, so that no worker is left alone with it at the end."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


def pytest_collection_finish():
    """Let no collection of garbage look through what stays to the end: modules, and the tests themselves."""
    gc.freeze()


def pytest_sessionfinish():
    gc.unfreeze()  # libraries that are loaded at the end may ask who refers to an object


@pytest.fixture(scope="session", autouse=True)
def temporary(tmp_path_factory):
    """Let the toolkit's own temporary folders, and those of processes that tests start, lie beside those of tests."""
    folder = str(tmp_path_factory.mktemp("t", numbered=False))  # short: sockets have names of a hundred letters
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", folder)
        patch.setattr(tempfile, "tempdir", folder)
        yield


@pytest.fixture
def full_disk(monkeypatch):
    """Make a `with` block in which the disk is full: what a file was given does not get there, or it gets no name."""

    def fails(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    @contextmanager
    def full(call: str = "fsync") -> Generator[None, None, None]:
        with monkeypatch.context() as patch:
            patch.setattr(os, call, fails)
            yield

    return full


@pytest.fixture
def without(monkeypatch):
    """Let packages be as if they were not installed."""

    def hidden(*names):
        for name in names:
            monkeypatch.setitem(sys.modules, name, None)

    return hidden


@pytest.fixture
def no_figures(monkeypatch):
    """Let reports hold no pictures, which take their time to draw."""
    monkeypatch.setattr("landscape.report.figures.pictures", lambda result: ([], []))


@pytest.fixture
def read_late(monkeypatch):
    """Let no data set be small enough to be kept: items are read when they are asked for."""
    monkeypatch.setattr("landscape.data.items.IN_MEMORY", 1)


@pytest.fixture(scope="session")
def made_once(tmp_path_factory):
    """Make a folder once for all workers: give it a name, and a function that fills an empty folder."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base

    def made(name, fill) -> Path:
        folder = shared / name
        with FileLock(f"{folder}.lock"):
            if not folder.exists():
                aside = tmp_path_factory.mktemp(name)
                fill(aside)
                aside.rename(folder)
        return folder

    return made


@pytest.fixture(scope="session")
def cifar_root(made_once) -> Path:
    """A data root with the real CIFAR-10: the long-tailed training images (ratio 100), all test images."""
    source = os.environ.get("LANDSCAPE_TEST_DATA")
    if source is None:
        pytest.skip("LANDSCAPE_TEST_DATA is unset: no real CIFAR-10 to read")
    data = Path(source) / "data"

    def unpack(folder):
        command = [sys.executable, str(data / "unpack.py"), str(data / "cifar10-lt-r100.zip"), str(folder)]
        subprocess.run(command, check=True, capture_output=True)

    return made_once("cifar", unpack)
