"""Read the official python version of CIFAR-10 and CIFAR-100 as arrays, from its folder or its archive.

The files are pickles, which `results.pickles` reads without running them; it returns the shape, type and bytes of an
array. The sizes of the archive's members are checked before they are unpacked.
"""

import gzip
import io
import math
import os
import tarfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np

from landscape.errors import DataError, arg, one_line
from landscape.results import disk, pickles

_PIECE = 2**20  # bytes that are read at once
_GZIP = b"\x1f\x8b"  # with which a .gz begins


@dataclass(frozen=True)
class Release:
    """The files of a data set as its authors release it, and the names in them."""

    folder: str
    archive: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    meta: str
    labels: str
    class_names: str


RELEASES = {
    "cifar10": Release(
        folder="cifar-10-batches-py",
        archive="cifar-10-python.tar.gz",
        train=tuple(f"data_batch_{k}" for k in range(1, 6)),
        test=("test_batch",),
        meta="batches.meta",
        labels="labels",
        class_names="label_names",
    ),
    "cifar100": Release(
        folder="cifar-100-python",
        archive="cifar-100-python.tar.gz",
        train=("train",),
        test=("test",),
        meta="meta",
        labels="fine_labels",
        class_names="fine_label_names",
    ),
}


@dataclass(frozen=True, kw_only=True, eq=False)
class Split:
    """One split of a set, in the order of its files."""

    pixels: np.ndarray  # (N, 3, 32, 32) uint8
    labels: np.ndarray  # (N,) int64
    class_names: tuple[str, ...]  # (C,)
    train_counts: np.ndarray  # (C,) int64, training samples of each class, whichever split this is


def read(name: str, root: Path, split: str) -> Split:
    """Read a split.

    Args:
        name: "cifar10" or "cifar100".
        root: the folder that contains the unpacked folder or the .tar.gz, or the unpacked folder itself.
        split: "train" or "test".

    Returns:
        Its images and labels.

    Raises:
        DataError: files are missing, or differ from the official ones in form.
    """
    release = RELEASES[name]
    parts = release.train if split == "train" else release.test
    files = _files(name, root, {release.meta, *release.train, *parts})
    batches = {file: _unpickled(file, content) for file, content in files.items()}
    class_names = tuple(
        _class_name(release.meta, n) for n in _entry(release.meta, batches[release.meta], release.class_names, list)
    )
    labels = {
        file: _labels(f"{name}: {file}", _entry(file, batches[file], release.labels, list), len(class_names))
        for file in dict.fromkeys((*release.train, *parts))
    }
    pixels = {file: _pixels(file, _entry(file, batches[file], "data", pickles.Foreign)) for file in parts}
    for file, of_file in pixels.items():
        if of_file.shape != (len(labels[file]), 3072):
            raise DataError(f"{name}: {file} has {len(labels[file])} labels but pixels of shape {of_file.shape}")
    train = np.concatenate([labels[file] for file in release.train])
    return Split(
        pixels=np.concatenate([pixels[file] for file in parts]).reshape(-1, 3, 32, 32),
        labels=np.concatenate([labels[file] for file in parts]),
        class_names=class_names,
        train_counts=np.bincount(train, minlength=len(class_names)),
    )


def _class_name(file: str, name: Any) -> str:
    try:
        text = name.decode() if isinstance(name, bytes) else name
    except UnicodeDecodeError:
        text = None
    if not isinstance(text, str):
        raise DataError(f"{file}: a class name is no text in UTF-8; unpack the archive again")
    disk.check_name(text, f"{file}: the class name", DataError)
    return text


def _labels(where: str, values: list[Any], n_classes: int) -> np.ndarray:
    if not values or not all(type(v) is int for v in values):
        raise DataError(f"{where}: the labels are not a list of integers; unpack the archive again")
    for i, value in enumerate(values):
        if not 0 <= value < n_classes:
            shown = value if abs(value) < 2**63 else "beyond 64 bits"
            raise DataError(f"{where}: sample {i} has label {shown}, classes are 0 to {n_classes - 1}")
    return np.array(values, dtype=np.int64)


def _files(name: str, root: Path, wanted: set[str]) -> dict[str, bytes]:
    release = RELEASES[name]
    for folder in (root / release.folder, root):
        if (folder / release.meta).is_file():
            missing = sorted(f for f in wanted if not (folder / f).is_file())
            if missing:
                raise DataError(f"{name}: {folder} lacks {', '.join(missing)}; unpack {release.archive} again")
            try:
                disk.claim(sum((folder / f).stat().st_size for f in wanted), "the data set")
                return {f: (folder / f).read_bytes() for f in wanted}
            except (disk.ClaimError, OSError) as error:
                raise DataError(f"{name}: cannot read {folder}: {one_line(error)}") from error
    if not (root / release.archive).is_file():
        raise DataError(
            f"{name}: neither {release.folder}/{release.meta} nor {release.archive} is in {root}; pass "
            f"{arg('data_root')}, the folder that holds {release.folder} (nothing is downloaded)"
        )
    return _archived(name, root / release.archive, wanted)


def _unpacked(archive: Path) -> BinaryIO:
    """Open an archive; some browsers unpack a .gz as they fetch it."""
    with open(archive, "rb") as file:
        packed = file.read(len(_GZIP)) == _GZIP
    return cast(BinaryIO, gzip.open(archive)) if packed else open(archive, "rb")


def _archived(name: str, archive: Path, wanted: set[str]) -> dict[str, bytes]:
    """Read the wanted files of an archive; only their plain headers, because `tarfile` reads others without a limit."""
    folder = RELEASES[name].folder
    found: dict[str, bytes] = {}
    held, claimed = archive.stat().st_size, 0
    try:
        with _unpacked(archive) as unpacked:
            while any(block := unpacked.read(tarfile.BLOCKSIZE)):  # zeros are the end
                member = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
                if member.size < 0:
                    raise tarfile.HeaderError("a size is negative")
                empty = member.isdir() or member.issym() or member.islnk() or member.isdev()
                size = 0 if empty else math.ceil(member.size / tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
                claimed += len(block) + size
                disk.claim(claimed, f"member {member.name!a:.60}", held=held)
                inside, _, file = member.name.removeprefix("./").rpartition("/")
                if inside != folder or file not in wanted or not member.isreg():
                    unpacked.seek(size, os.SEEK_CUR)
                    continue
                found[file] = unpacked.read(size)[: member.size]
                if len(found[file]) < member.size:
                    raise EOFError(f"{file} is cut short")
            while rest := unpacked.read(_PIECE):  # the checksum is behind it
                claimed += len(rest)
                disk.claim(claimed, "its end", held=held)
    except (tarfile.TarError, zlib.error, OSError, EOFError, ValueError) as error:
        raise DataError(f"{name}: cannot read {archive}: {one_line(error)}; it is damaged, fetch it again") from error
    if missing := sorted(wanted - set(found)):
        raise DataError(f"{name}: {archive} lacks {folder}/{', '.join(missing)}; fetch it again")
    return found


def _entry(file: str, batch: Any, key: str, kind: type) -> Any:
    value = batch.get(key.encode(), batch.get(key)) if isinstance(batch, dict) else None  # written by Python 2, 3
    if not isinstance(value, kind):
        raise DataError(f"{file} is no CIFAR batch: it has no {key!r}; unpack the archive again")
    return value


def _pixels(file: str, array: pickles.Foreign) -> np.ndarray:
    """Return an array from its pickled state: a version, the shape, the type, the order of axes, the bytes."""
    state = array.state if isinstance(array.state, tuple) and len(array.state) == 5 else (None,) * 5
    _, shape, kind, fortran, content = state
    content = content.encode("latin1") if isinstance(content, str) else content  # by Python 2
    if not isinstance(kind, pickles.Foreign) or kind.arguments[:1] not in (("u1",), (b"u1",)):
        raise DataError(f"{file} is no CIFAR batch: pixels must be uint8; unpack the archive again")
    if not isinstance(shape, tuple) or not all(type(n) is int and n >= 0 for n in shape) or len(shape) > 4:
        raise DataError(f"{file} is no CIFAR batch: its pixels have no shape; unpack the archive again")
    if not isinstance(content, bytes) or len(content) != math.prod(shape):
        raise DataError(f"{file} is no CIFAR batch: its pixels are cut short; unpack the archive again")
    return np.frombuffer(bytearray(content), dtype=np.uint8).reshape(shape, order="F" if fortran else "C")


def _unpickled(file: str, content: bytes) -> Any:
    try:
        return pickles.load(io.BytesIO(content))
    except ValueError as error:
        raise DataError(f"{file} is no CIFAR batch: {error}; unpack the archive again") from error
