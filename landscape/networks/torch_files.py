"""The two formats of `torch.save`, read without executing their code.

Since torch 1.6 a file is a zip archive: `data.pkl` is a pickle, in which a tensor is a view of a storage, and the
storages lie beside it as `data/0`, `data/1`, ... Before, it was pickles one after the other and then the storages.
Here the pickle is read by `results.pickles`, so that objects of any package are passed over and nothing runs, and each
tensor is built from checked numbers: a storage is as long as its bytes in the file, and a view stays within it.
"""

import io
import mmap
import struct
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from landscape.results import disk, pickles
from landscape.results.pickles import Foreign, Global, PickleError

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_HEAD = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
"""The number with which torch.save began before torch 1.6, as a pickle has it."""

_PIECE = 2**24  # bytes that are read at once
_MOST_AXES = 64
_DTYPES = {str(d): d for d in vars(torch).values() if isinstance(d, torch.dtype)}
_STORAGES = {
    "Double": torch.float64, "Float": torch.float32, "Half": torch.float16, "BFloat16": torch.bfloat16,
    "Long": torch.int64, "Int": torch.int32, "Short": torch.int16, "Char": torch.int8, "Byte": torch.uint8,
    "Bool": torch.bool, "ComplexDouble": torch.complex128, "ComplexFloat": torch.complex64, "Untyped": torch.uint8,
}  # fmt: skip
_NUMPY_SCALARS = frozenset(["b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8"])


@dataclass(frozen=True)
class _Storage:
    """Bytes of a file of which tensors are views, and their type; None if the tensor names the type."""

    content: Tensor  # uint8
    dtype: torch.dtype | None


def read_zip(file: BinaryIO) -> Any:
    """Read a file of torch.save since torch 1.6.

    Args:
        file: the zip archive.

    Returns:
        The saved object; objects of unknown classes are `pickles.Foreign`.

    Raises:
        PickleError: the file is damaged, or contains something that no file of tensors has.
        ClaimError: it declares more data than it contains.
    """
    size = file.seek(0, io.SEEK_END)
    try:
        with zipfile.ZipFile(file) as archive:
            return _Archive(archive, size).load()
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, EOFError, OSError, RuntimeError, KeyError) as error:
        raise PickleError(f"its archive is damaged ({error!s:.100})") from error


class _Archive:
    def __init__(self, archive: zipfile.ZipFile, size: int) -> None:
        self._archive = archive
        self._size = size  # bytes of the file
        self._taken = 0  # bytes that were read
        self._storages: dict[str, Tensor] = {}
        names = [name for name in archive.namelist() if PurePosixPath(name).name == "data.pkl"]
        self._root = min(names, key=len).removesuffix("data.pkl")

    def load(self) -> Any:
        order = f"{self._root}byteorder"
        if order in self._archive.namelist() and bytes(self._member(order)) != b"little":
            raise PickleError("it was written on a big-endian machine")
        return pickles.load(io.BytesIO(self._member(f"{self._root}data.pkl")), _KNOWN, self._storage)

    def _member(self, name: str) -> bytearray:
        info = self._archive.getinfo(name)
        self._taken += info.file_size
        disk.claim(self._taken, "the archive", held=self._size, ratio=1)  # torch.save does not compress
        content, done = bytearray(info.file_size), 0
        with self._archive.open(info) as member:
            while piece := member.read(_PIECE):  # up to the end, where the checksum is verified
                content[done : done + len(piece)] = piece
                done += len(piece)
        if done != len(content):
            raise PickleError(f"{name} is cut short")
        return content

    def _storage(self, identifier: Any) -> _Storage:
        dtype, key, numel = _identified(identifier)
        if key not in self._storages:
            content = self._member(f"{self._root}data/{key}")
            self._storages[key] = _bytes(content)
        content_of = self._storages[key]
        if numel * (dtype or torch.uint8).itemsize != len(content_of):
            raise PickleError(f"storage {key} has {len(content_of)} bytes for {numel} numbers")
        return _Storage(content_of, dtype)


def read_legacy(file: BinaryIO) -> Any:
    """Read a file of torch.save before torch 1.6; arguments and errors are those of `read_zip`."""
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as whole:
        try:
            return _legacy(whole)
        except (struct.error, RuntimeError) as error:
            raise PickleError(f"it is cut short or damaged ({error!s:.100})") from error


def _legacy(whole: mmap.mmap) -> Any:
    stream: Any = whole  # has read, readline and tell of a file, which never take more memory than the file has bytes
    if pickles.load(stream) != _LEGACY_MAGIC:
        raise PickleError("it does not begin as a file of torch.save")
    pickles.load(stream)  # the version of the format
    about = pickles.load(stream)
    if isinstance(about, dict) and about.get("little_endian") is False:
        raise PickleError("it was written on a big-endian machine")
    storages: dict[str, tuple[Tensor, int]] = {}
    taken = 0

    def storage(identifier: Any) -> Any:
        nonlocal taken
        if isinstance(identifier, tuple) and len(identifier) > 1 and identifier[0] == "module":
            return identifier[1]  # the class of a module, next to its source in the file
        dtype, key, numel = _identified(identifier)
        itemsize = (dtype or torch.uint8).itemsize
        if key not in storages:
            taken += numel * itemsize
            disk.claim(taken, "its tensors", held=len(whole), ratio=1)
            storages[key] = torch.zeros(numel * itemsize, dtype=torch.uint8), itemsize
        content = storages[key][0]
        view = identifier[5] if len(identifier) > 5 else None
        if view is None:
            return _Storage(content, dtype)
        _, offset, length = view
        first, last = _counted(offset) * itemsize, (_counted(offset) + _counted(length)) * itemsize
        if last > len(content):
            raise PickleError(f"a view of storage {key} goes beyond its end")
        return _Storage(content[first:last], dtype)

    found = pickles.load(stream, _KNOWN, storage)
    keys = pickles.load(stream)
    if not isinstance(keys, list) or not all(isinstance(k, str | bytes) for k in keys):
        raise PickleError("it does not list the storages that its tensors are of")
    if {str(k) for k in keys} != set(storages) or len(keys) != len(storages):
        raise PickleError("it does not list the storages that its tensors are of")
    for key in keys:
        content, itemsize = storages[str(key)]
        (numel,) = struct.unpack("<q", whole.read(8))
        held = whole.read(len(content))
        if numel * itemsize != len(content) or len(held) != len(content):
            raise PickleError(f"storage {key} is cut short")
        content.copy_(_bytes(bytearray(held)))
    return found


def _bytes(content: bytearray) -> Tensor:
    return torch.frombuffer(content, dtype=torch.uint8) if content else torch.zeros(0, dtype=torch.uint8)


def _identified(identifier: Any) -> tuple[torch.dtype | None, str, int]:
    """Decompose the name of a storage in a pickle: ("storage", class, key, device, number of elements, ...)."""
    if not isinstance(identifier, tuple) or len(identifier) < 5 or identifier[0] not in {"storage", b"storage"}:
        raise PickleError("it names an object outside of itself that is no storage")
    kind, key, numel = identifier[1], identifier[2], identifier[4]
    # Only of these types: lists that share their halves would take text without end.
    if not isinstance(key, str | bytes) or not isinstance(kind, Global):
        raise PickleError("it names a storage without a key or a type")
    module, _, name = kind.name.rpartition(".")
    name = name.removesuffix("Storage")
    if module.split(".")[0] != "torch" or name not in _STORAGES:
        raise PickleError(f"it holds numbers of an unknown type ({kind.name:.60})")
    return None if name == "Untyped" else _STORAGES[name], str(key), _counted(numel)


def _counted(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 2**62:
        raise PickleError("a size is no count")
    return value


# What stands for objects, of arguments that the file chooses ------------------------------------------------------


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> Tensor:
    if not isinstance(storage, _Storage):
        raise PickleError("a tensor is no view of a storage")
    return _view(storage.content, storage.dtype or torch.uint8, offset, size, stride)


def _typed_tensor(
    storage: Any, offset: Any, size: Any, stride: Any, _grad: Any, _hooks: Any, dtype: Any, *_: Any
) -> Tensor:
    if not isinstance(storage, _Storage) or not isinstance(dtype, Global) or dtype.name not in _DTYPES:
        raise PickleError("a tensor is no view of a storage, or its type is unknown")
    return _view(storage.content, _DTYPES[dtype.name], offset, size, stride)


def _view(content: Tensor, dtype: torch.dtype, offset: Any, size: Any, stride: Any) -> Tensor:
    if not isinstance(size, tuple) or not isinstance(stride, tuple) or len(size) != len(stride):
        raise PickleError("a tensor has no shape")
    if len(size) > _MOST_AXES or len(content) % dtype.itemsize:
        raise PickleError("a tensor has no shape")
    shape, steps = [_counted(n) for n in size], [_counted(n) for n in stride]
    numel = 1
    for n in shape:
        numel *= n
    last = _counted(offset) + sum((n - 1) * step for n, step in zip(shape, steps, strict=True)) if numel else 0
    if numel and last >= len(content) // dtype.itemsize:
        raise PickleError(f"a tensor of shape {tuple(shape)} goes beyond its storage of {len(content)} bytes")
    # A stride of 0 repeats one number; operations on such a tensor would take memory for all repetitions.
    disk.claim(numel * dtype.itemsize, f"a tensor of shape {tuple(shape)}", held=len(content))
    flat = content.view(dtype)
    return flat.as_strided(shape, steps, flat.storage_offset() + offset if numel else 0)


def _first(tensor: Any, *_: Any) -> Any:
    return tensor


def _of_a_subclass(function: Any, _kind: Any, arguments: Any, *_: Any) -> Any:
    if not isinstance(function, Global) or function.name not in _TENSORS or not isinstance(arguments, tuple):
        return Foreign("torch.Tensor")
    return _TENSORS[function.name](*arguments)


def _numpy_scalar(dtype: Any, content: Any = b"") -> Any:
    """Return a pickled NumPy number as a Python number; leave other scalars, such as dates and texts, unchanged."""
    code = dtype.arguments[0] if isinstance(dtype, Foreign) and dtype.arguments else None
    if not isinstance(code, str) or code not in _NUMPY_SCALARS or not isinstance(content, bytes):
        return Foreign("numpy.generic", (dtype, content))
    order = ">" if isinstance(dtype.state, tuple) and ">" in dtype.state[1:2] else "<"
    plain = np.dtype(order + code)
    if len(content) != plain.itemsize:
        raise PickleError("a number of numpy has too few bytes")
    return np.frombuffer(content, dtype=plain)[0].item()


def _shape(*arguments: Any) -> tuple[Any, ...]:
    return tuple(arguments[0]) if arguments and isinstance(arguments[0], tuple | list) else ()


_TENSORS: dict[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _typed_tensor,
    "torch._utils._rebuild_parameter": _first,
    "torch._utils._rebuild_parameter_with_state": _first,
}
_KNOWN: dict[str, Callable[..., Any]] = {
    **_TENSORS,
    "torch._tensor._rebuild_from_type": _of_a_subclass,
    "torch._tensor._rebuild_from_type_v2": _of_a_subclass,
    "torch.Size": _shape,
    "numpy.core.multiarray.scalar": _numpy_scalar,
    "numpy._core.multiarray.scalar": _numpy_scalar,
}
