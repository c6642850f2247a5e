"""Reading HDF5 files that are not trusted.

An HDF5 file may claim arrays that it does not contain (chunks never written, or compressed to almost nothing), repeat
one long text a million times by reference, and refer to other files of the reader's machine (external storage, external
links, virtual datasets). `disk.claim` checks sizes before data are read; references to other files are refused.
"""

import math
import mmap
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import h5py
import numpy as np

from landscape.errors import StoreError, one_line
from landscape.results import disk

SIGNATURE = b"\x89HDF\r\n\x1a\n"
"""The first bytes of HDF5 files."""

_BLOCK = 64  # number of texts that are read at a time

_HEAP = b"GCOL\x01\0\0\0"


@contextmanager
def opened(path: Path) -> Generator[h5py.File, None, None]:
    """Return a context with the root of a file; inside, errors of h5py become a StoreError with the path."""
    with _file(path) as file:
        try:
            if file.read(len(SIGNATURE)) != SIGNATURE:
                raise StoreError(f"{path} is not an HDF5 file: give a result file, whose name ends in .h5")
            _refuse_broken_heaps(file, path)
            with h5py.File(file, "r") as root:
                yield root
        except disk.ClaimError as error:
            raise StoreError(f"{path}: {error}") from None
        # Errors of h5py on damaged files.
        except (OSError, RuntimeError, LookupError, ValueError, TypeError, ArithmeticError, AttributeError) as error:
            raise StoreError(f"{path} is damaged ({one_line(error)}): get or compute it again") from error


def _refuse_broken_heaps(file: BinaryIO, path: Path) -> None:
    """Check the heaps with a file's text; HDF5 would read an object of size zero in an endless loop.

    A heap is `_HEAP`, its size, and objects: index and count in 8 bytes, the size in 8, the content to a multiple of 8.
    Index 0 is free space, whose size includes its head. (HDF5 File Format Specification, III.E)

    Args:
        file: open, longer than its signature.
        path: of the file, for messages.

    Raises:
        StoreError: an object has no room, or more than there is.
    """
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        if content[14 if content[8] < 2 else 10] != 8:
            return  # sizes have another width, which no current program writes
        at = -1
        while (at := content.find(_HEAP, at + 1)) >= 0:
            size = int.from_bytes(content[at + 8 : at + 16], "little")
            place, room = 16, at + size <= len(content)
            while room and place + 16 <= size:
                index, claim = content[at + place : at + place + 2], content[at + place + 8 : at + place + 16]
                n = int.from_bytes(claim, "little")
                step = 16 + 8 * -(-n // 8) if any(index) else n
                place += step
                room = step >= 16 and place <= size
            if not room:
                raise StoreError(f"{path} is damaged (a heap of its text claims what it does not hold): get it again")


def _file(path: Path) -> BinaryIO:
    try:
        return open(path, "rb")
    except FileNotFoundError:
        raise StoreError(f"there is no file {path}") from None
    except OSError as error:
        if is_unfinished(path):
            raise StoreError(f"{path} is an unfinished result: repeat the command that began it") from None
        raise StoreError(f"{path} cannot be read: {error.strerror}") from None


def is_unfinished(path: Path) -> bool:
    """Say whether a path is the folder OUT.partial of a result that is not complete."""
    return path.suffix == ".partial" and (path / "run.json").is_file()


def attribute(place: Any, name: str) -> Any:
    """Return an attribute of a group if it exists and is a single value, else None."""
    if name not in place.attrs or place.attrs.get_id(name).shape != ():
        return None
    value = place.attrs[name]
    return value.item() if isinstance(value, np.generic) else value


def numbers(group: Any, name: str, path: Path) -> np.ndarray:
    """Read an array of numbers or booleans from a group.

    Args:
        group: an open group.
        name: of the dataset.
        path: of the file, for messages.

    Returns:
        The array, as it is stored.

    Raises:
        StoreError: it is no array of numbers, or refers to another file.
        ClaimError: it claims more data than the file can contain.
    """
    data = _dataset(group, name, path)
    if data.dtype.kind not in "biuf":
        raise StoreError(f"{path}:/{name} must be an array of numbers, got {data.dtype} {data.shape}")
    return np.asarray(data[()])


def texts(group: Any, name: str, path: Path) -> tuple[str, ...]:
    """Read a list of texts from a group; arguments and errors are those of `numbers`."""
    data = _dataset(group, name, path)
    if not h5py.check_string_dtype(data.dtype) or data.ndim != 1:
        raise StoreError(f"{path}:/{name} must be a list of strings, got {data.dtype} {data.shape}")
    found: list[str] = []
    letters = 0
    for start in range(0, len(data), _BLOCK):  # each entry is a reference, and many may share one long text
        block = data.asstr()[start : start + _BLOCK]
        letters += sum(map(len, block))
        disk.claim(letters, f"the list {name}", held=_size(data))
        found += map(str, block)
    return tuple(found)


def text(group: Any, name: str, path: Path) -> str:
    """Read one text from a group; arguments and errors are those of `numbers`."""
    data = _dataset(group, name, path)
    if not h5py.check_string_dtype(data.dtype) or data.shape != ():
        raise StoreError(f"{path}:/{name} must be a string, got {data.dtype} {data.shape}")
    found = data[()]
    return found.decode("utf-8", "replace") if isinstance(found, bytes) else str(found)


def group(root: Any, name: str, path: Path) -> h5py.Group:
    """Return a group that has entries; arguments and errors are those of `numbers`."""
    found = root[name] if isinstance(root.get(name, getlink=True), h5py.HardLink) else None
    if not isinstance(found, h5py.Group) or not len(found):
        raise StoreError(f"{path}: {name} must be a group of arrays")
    return found


def _dataset(group: Any, name: str, path: Path) -> h5py.Dataset:
    where = f"{path}:/{name}"
    link = group.get(name, getlink=True)
    data = group[name] if isinstance(link, h5py.HardLink) else None
    if isinstance(link, h5py.ExternalLink) or (isinstance(data, h5py.Dataset) and (data.external or data.is_virtual)):
        raise StoreError(f"{where} lies in another file of this machine, and is not read: ask for a whole file")
    if not isinstance(data, h5py.Dataset):
        raise StoreError(f"{where} must be a dataset: get or compute the file again")
    if data.shape is None:
        raise StoreError(f"{where} is empty, without a shape")
    held = min(data.id.get_storage_size(), _size(data))
    for shape in (data.shape, data.chunks or ()):  # one chunk is unpacked at a time, and may be larger than the array
        disk.claim(math.prod(shape) * data.dtype.itemsize, f"the array {name}", held=held)
    return data


def _size(data: h5py.Dataset) -> int:
    size: int = data.file.id.get_filesize()
    return size
