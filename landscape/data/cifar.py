"""The official python version of CIFAR-10 and CIFAR-100, read as arrays from its folder or its archive.

Its files are pickles, and a pickle can run any code when it is read. These are read by an unpickler that knows
arrays of bytes, lists, numbers and strings; a file that asks for anything else is refused.
"""

import io
import pickle
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from landscape.errors import DataError, arg


@dataclass(frozen=True)
class Layout:
    """Which file of a set holds what."""

    folder: str
    archive: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    meta: str
    labels: str
    class_names: str


LAYOUTS = {
    "cifar10": Layout(
        folder="cifar-10-batches-py",
        archive="cifar-10-python.tar.gz",
        train=tuple(f"data_batch_{k}" for k in range(1, 6)),
        test=("test_batch",),
        meta="batches.meta",
        labels="labels",
        class_names="label_names",
    ),
    "cifar100": Layout(
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
        root: the folder that holds the unpacked folder or the .tar.gz, or the unpacked folder itself.
        split: "train" or "test".

    Returns:
        Its images and labels.

    Raises:
        DataError: files are missing, or are not what the official ones are.
    """
    layout = LAYOUTS[name]
    parts = layout.train if split == "train" else layout.test
    files = _files(name, root, {layout.meta, *layout.train, *parts})
    batches = {file: _unpickled(file, content) for file, content in files.items()}
    class_names = tuple(
        n.decode() if isinstance(n, bytes) else str(n)
        for n in _entry(layout.meta, batches[layout.meta], layout.class_names, list)
    )
    labels = {
        file: _labels(f"{name}: {file}", _entry(file, batches[file], layout.labels, list), len(class_names))
        for file in dict.fromkeys((*layout.train, *parts))
    }
    pixels = {file: _entry(file, batches[file], "data", _PickledArray).value for file in parts}
    for file, of_file in pixels.items():
        if of_file.shape != (len(labels[file]), 3072):
            raise DataError(f"{name}: {file} has {len(labels[file])} labels but pixels of shape {of_file.shape}")
    train = np.concatenate([labels[file] for file in layout.train])
    return Split(
        pixels=np.concatenate([pixels[file] for file in parts]).reshape(-1, 3, 32, 32),
        labels=np.concatenate([labels[file] for file in parts]),
        class_names=class_names,
        train_counts=np.bincount(train, minlength=len(class_names)),
    )


def _labels(where: str, values: list[Any], n_classes: int) -> np.ndarray:
    if not values or not all(isinstance(v, int) for v in values):
        raise DataError(f"{where}: the labels are not a list of integers; unpack the archive again")
    for i, value in enumerate(values):
        if not 0 <= value < n_classes:
            raise DataError(f"{where}: sample {i} has label {value}, classes are 0 to {n_classes - 1}")
    return np.array(values, dtype=np.int64)


def _files(name: str, root: Path, wanted: set[str]) -> dict[str, bytes]:
    layout = LAYOUTS[name]
    for folder in (root / layout.folder, root):
        if (folder / layout.meta).is_file():
            missing = sorted(f for f in wanted if not (folder / f).is_file())
            if missing:
                raise DataError(f"{name}: {folder} lacks {', '.join(missing)}; unpack {layout.archive} again")
            return {f: (folder / f).read_bytes() for f in wanted}
    if not (root / layout.archive).is_file():
        raise DataError(
            f"{name}: neither {layout.folder}/{layout.meta} nor {layout.archive} is in {root}; pass "
            f"{arg('data_root')}, the folder that holds {layout.folder} (nothing is downloaded)"
        )
    return _archived(name, root / layout.archive, wanted)


def _archived(name: str, archive: Path, wanted: set[str]) -> dict[str, bytes]:
    folder = LAYOUTS[name].folder
    found: dict[str, bytes] = {}
    try:
        with tarfile.open(archive) as members:
            for member in members:  # in the archive's order: going back in a .gz means to unpack it anew
                inside, _, file = member.name.removeprefix("./").rpartition("/")
                content = members.extractfile(member) if inside == folder and file in wanted else None
                if content is not None:
                    found[file] = content.read()
    except (tarfile.TarError, OSError, EOFError) as error:
        raise DataError(f"{name}: cannot read {archive}: {error}; fetch it again") from error
    if missing := sorted(wanted - set(found)):
        raise DataError(f"{name}: {archive} lacks {folder}/{', '.join(missing)}; fetch it again")
    return found


def _entry(file: str, batch: Any, key: str, kind: type) -> Any:
    value = batch.get(key.encode(), batch.get(key)) if isinstance(batch, dict) else None  # written by Python 2, 3
    if not isinstance(value, kind):
        raise DataError(f"{file} is no CIFAR batch: it has no {key!r}; unpack the archive again")
    return value


class _PickledArray:
    """Stands in for an array while a batch is unpickled; only bytes get through."""

    value: np.ndarray = np.empty(0, dtype=np.uint8)

    def __init__(self, *_: Any) -> None:
        pass

    def __setstate__(self, state: tuple[int, tuple[int, ...], "_PickledType", bool, bytes]) -> None:
        _, shape, dtype, fortran, content = state
        if not isinstance(dtype, _PickledType):
            raise pickle.UnpicklingError("an array without a type")
        flat = np.frombuffer(bytearray(content), dtype=np.uint8)
        self.value = flat.reshape(shape, order="F" if fortran else "C")


class _PickledType:
    """Stands in for the type of an array, which must be uint8."""

    def __init__(self, name: str | bytes, *_: Any) -> None:
        if name not in {"u1", b"u1"}:
            raise pickle.UnpicklingError(f"pixels must be uint8, got {name!r}")

    def __setstate__(self, _: Any) -> None:
        pass


def _latin1(text: str, _: str) -> bytes:
    return text.encode("latin1")  # the way in which Python 3 writes bytes to a pickle of protocol 2


_KNOWN: dict[tuple[str, str], Callable[..., Any]] = {
    ("numpy.core.multiarray", "_reconstruct"): _PickledArray,
    ("numpy._core.multiarray", "_reconstruct"): _PickledArray,
    ("numpy", "ndarray"): _PickledArray,
    ("numpy", "dtype"): _PickledType,
    ("_codecs", "encode"): _latin1,
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _KNOWN:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no CIFAR batch does")
        return _KNOWN[module, name]


def _unpickled(file: str, content: bytes) -> Any:
    try:
        return _Unpickler(io.BytesIO(content), encoding="bytes").load()
    except Exception as error:  # a broken pickle can raise anything
        raise DataError(f"{file} is no CIFAR batch: {error}; unpack the archive again") from error
