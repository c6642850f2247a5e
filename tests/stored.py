"""What tests of files share."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from landscape.results import Spectrum, store


def assert_same(found: Spectrum, expected: Spectrum) -> None:
    for item in dataclasses.fields(expected):
        a, b = getattr(found, item.name), getattr(expected, item.name)
        if isinstance(b, np.ndarray):
            assert (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes()), item.name
        else:
            assert a == b, item.name


def one_line(caught: pytest.ExceptionInfo) -> str:
    message = str(caught.value)
    assert "\n" not in message
    return message


def run_python(code: str, *arguments: object) -> subprocess.CompletedProcess:
    path = os.pathsep.join([str(Path(store.__file__).parents[2]), str(Path(__file__).parent)])
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, timeout=60)
