"""NumPy's own files, .npy and .npz, read without pickle and with checks of their sizes."""

import math
import tokenize
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from landscape.errors import StoreError, one_line
from landscape.results import disk

_DAMAGE = (
    OSError, ValueError, EOFError, LookupError, TypeError, ArithmeticError, SyntaxError, RuntimeError,
    tokenize.TokenError, zipfile.BadZipFile, zlib.error,
)  # fmt: skip
"""Errors of NumPy and zipfile on damaged files; NotImplementedError is a RuntimeError."""


def array(path: Path) -> np.ndarray:
    """Read the array of an .npy file.

    Args:
        path: the file.

    Returns:
        The array, of any type except objects.

    Raises:
        StoreError: the file is missing, damaged, or not an array.
    """
    try:
        with open(path, "rb") as file:
            return _array(file, path.stat().st_size)
    except FileNotFoundError:
        raise StoreError(f"there is no file {path}") from None
    except _DAMAGE as error:
        raise StoreError(f"{path} cannot be read as a NumPy array of numbers ({one_line(error)})") from None


def archive(path: Path) -> dict[str, np.ndarray]:
    """Read the arrays of numbers in an .npz file; arguments and errors are those of `array`.

    Args:
        path: the file.

    Returns:
        The arrays as float64, by name; entries that are no arrays of real numbers are left out.

    Raises:
        StoreError: the file is missing, damaged, or not an archive of arrays.
    """
    arrays: dict[str, np.ndarray] = {}
    claimed = 0
    try:
        with zipfile.ZipFile(path) as members:
            for member in members.infolist():
                if not member.filename.endswith(".npy"):
                    continue
                claimed += member.file_size
                disk.claim(claimed, f"its array {member.filename!a:.60}", held=path.stat().st_size)
                with members.open(member) as file:
                    arrays[member.filename.removesuffix(".npy")] = _array(file, member.file_size)
    except FileNotFoundError:
        raise StoreError(f"there is no file {path}") from None
    except _DAMAGE as error:
        raise StoreError(f"{path} cannot be read as an archive of NumPy arrays ({one_line(error)})") from None
    return {name: values.astype(np.float64) for name, values in arrays.items() if values.dtype.kind in "iuf"}


def _array(file: Any, held: int) -> np.ndarray:
    """Read an array from at most `held` bytes."""
    version = np.lib.format.read_magic(file)
    headers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in headers:
        raise ValueError(f"its format has version {version}, 1.0 and 2.0 are read")
    shape, fortran, dtype = headers[version](file)
    if dtype.hasobject or dtype.itemsize == 0 or min(shape, default=0) < 0:
        raise ValueError(f"it holds {dtype} of shape {shape}")
    n_bytes = math.prod(shape) * dtype.itemsize
    disk.claim(n_bytes, "it", held=held, ratio=1)
    content = file.read(n_bytes)
    if len(content) != n_bytes:
        raise EOFError("it is cut short")
    file.read(1)  # at the end of a member of an archive, its checksum is verified
    flat = np.frombuffer(bytearray(content), dtype=dtype)
    return flat.reshape(shape[::-1]).transpose() if fortran else flat.reshape(shape)
