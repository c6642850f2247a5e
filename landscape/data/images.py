"""Image files: their lists, from text files and folders, and their pixels, decoded when they are needed.

The shorter side is resized to size * 256 / 224 and a square of size x size is cropped at the centre, as in the usual
evaluation on ImageNet.

A Lanczos run passes over the images of one part hundreds of times, and decoding an image can cost more than the
network does. So the most recently used squares are kept in memory, up to `KEPT_BYTES` for each data set and process;
at 224 pixels these are 14,266 images. A larger part is decoded again in every pass.
"""

import io
import math
import os
import struct
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from landscape.data import items
from landscape.errors import DataError, arg, one_line
from landscape.results import disk

SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"})
KEPT_BYTES = 2**31

_DIGITS = 18  # of a label in 64 bits

LARGEST = 2**28
"""The largest size of a decoded image, at four bytes per pixel; several are decoded at once."""

_DAMAGE = (
    OSError, ValueError, SyntaxError, EOFError, TypeError, LookupError, ArithmeticError, RuntimeError, AttributeError,
    struct.error, zlib.error, Image.DecompressionBombError, Image.DecompressionBombWarning,
)  # fmt: skip
"""Errors of Pillow on damaged files."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ImageFiles:
    """A map-style data set of image files; its items are (uint8 (3, size, size), label) and must not be changed."""

    root: Path
    paths: tuple[str, ...]  # (N,) below the root
    labels: np.ndarray  # (N,) int64
    size: int  # pixels
    _kept: dict[str, torch.Tensor] = field(default_factory=dict, repr=False)  # by path; shared with selections

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
        return self.__getitems__([i])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[torch.Tensor, int]]:
        wanted = dict.fromkeys(self.paths[i] for i in indices)
        found = {path: self._kept.pop(path) for path in wanted if path in self._kept}
        missing = [path for path in wanted if path not in found]
        with ThreadPoolExecutor(os.cpu_count()) as pool:  # Pillow decodes outside Python's lock
            found.update(zip(missing, pool.map(self._decoded, missing), strict=True))
        self._kept.update(found)  # moved to the end: the least recently used ones are first
        surplus = len(self._kept) - KEPT_BYTES // (3 * self.size**2)
        for path in list(islice(self._kept, max(0, surplus))):
            del self._kept[path]
        return [(found[self.paths[i]], int(self.labels[i])) for i in indices]

    def _decoded(self, path: str) -> torch.Tensor:
        image = resized(self.root / path, self.size)
        left, top = (round((side - self.size) / 2) for side in image.size)
        square = image.crop((left, top, left + self.size, top + self.size))
        return torch.from_numpy(np.array(square)).permute(2, 0, 1).contiguous()

    def select(self, order: np.ndarray) -> "ImageFiles":
        """Return some of the images, in the given order; both data sets share the images in memory."""
        return replace(self, paths=tuple(self.paths[i] for i in order), labels=self.labels[order])

    def description(self) -> str:
        """Return paths, file sizes and the size of the square, for a fingerprint; DataError if a file is missing."""
        try:
            sizes = [(self.root / path).stat().st_size for path in self.paths]
        except (OSError, ValueError) as error:
            raise DataError(f"an image cannot be read: {one_line(error)}; is {arg('data_root')} right?") from error
        return repr((self.size, list(zip(self.paths, sizes, strict=True))))


def resized(path: Path, size: int) -> Image.Image:
    """Decode an image file, with its shorter side resized to size * 256 / 224.

    Args:
        path: the file.
        size: side of the square that will be cropped, in pixels.

    Returns:
        The image, in RGB.

    Raises:
        DataError: the file cannot be decoded, or the image needs too much memory.
    """
    try:
        with Image.open(path) as file:
            disk.claim(4 * math.prod(file.size), "the image", budget=LARGEST)
            shorter = round(size * 256 / 224)
            width, height = (side * shorter // min(file.size) for side in file.size)
            # In a narrow image, the longer side becomes far longer than the cropped square.
            disk.claim(3 * width * height, f"the image at {width} x {height} pixels", held=3 * math.prod(file.size))
            return file.convert("RGB").resize((width, height), Image.Resampling.BILINEAR)
    except _DAMAGE as error:
        raise DataError(f"cannot decode {path}: {one_line(error)}") from error


@dataclass(frozen=True, kw_only=True, eq=False)
class Split:
    """The images of one split, with their labels."""

    files: ImageFiles
    class_names: tuple[str, ...]  # (C,)
    train_counts: np.ndarray  # (C,) int64, training images of each class, whichever split this is


def find_lists(
    root: Path, split: str, train_list: str | os.PathLike[str] | None, test_list: str | os.PathLike[str] | None
) -> dict[str, Path]:
    """Find the lists that a split needs: its own, and that of the training images, which defines the classes.

    Args:
        root: the folder of the images.
        split: "train" or "test".
        train_list: path below the current folder, or else below the root.
        test_list: the same for the test images; only the split "test" uses it.

    Returns:
        The files, as absolute paths, by the names of these arguments.

    Raises:
        DataError: a list is not given, or there is no such file.
    """
    given = {"train": train_list} if split == "train" else {"train": train_list, "test": test_list}
    return {f"{of}_list": _found(root, of, path) for of, path in given.items()}


def _found(root: Path, split: str, path: str | os.PathLike[str] | None) -> Path:
    if path is None:
        raise DataError(
            f"image-list needs {arg(f'{split}_list')}, a file with a line 'path label' for each {split} image"
        )
    for candidate in (Path(path), root / path):
        if candidate.is_file():
            return candidate.absolute()
    raise DataError(f"{arg(f'{split}_list', path)} is neither in the current folder nor in {root}")


def read_lists(root: Path, split: str, size: int, lists: dict[str, Path]) -> Split:
    """Read the images of a split from lists.

    Args:
        root: the paths in the lists are relative to this folder.
        split: "train" or "test".
        size: side of the square in pixels.
        lists: text files with a line `path label` for each image, from `find_lists`. Empty lines are ignored.

    Returns:
        The images, in the order of the list. The name of a class is its number.

    Raises:
        DataError: a line has another form, there are no lines, or a label is no class of the training images.
    """
    _, train_labels = _read_list(lists["train_list"])
    n_classes = items.count_classes(train_labels, str(lists["train_list"]))
    paths, labels = _read_list(lists[f"{split}_list"])
    for i in np.flatnonzero(labels >= n_classes)[:1]:
        where = lists[f"{split}_list"]
        raise DataError(f"{where}: sample {i} has label {labels[i]}, classes are 0 to {n_classes - 1}")
    return Split(
        files=ImageFiles(root=root, paths=paths, labels=labels, size=size),
        class_names=tuple(str(c) for c in range(n_classes)),
        train_counts=np.bincount(train_labels),
    )


def _read_list(file: Path) -> tuple[tuple[str, ...], np.ndarray]:
    paths, labels = [], []
    for number, line in enumerate(io.StringIO(disk.read_text(file, DataError), newline=None), start=1):
        words = line.rsplit(maxsplit=1)
        if not words:
            continue
        if len(words) != 2 or not words[1].isdecimal() or len(words[1]) > _DIGITS:
            raise DataError(f"{file}, line {number}: expected 'path label', got {line.strip()[:100]!r}")
        paths.append(words[0])
        labels.append(int(words[1]))
    if not paths:
        raise DataError(f"{file} lists no image")
    return tuple(paths), np.array(labels, dtype=np.int64)


def read_folder(root: Path, split: str, size: int) -> Split:
    """Find the images root/split/CLASS/**/IMAGE.

    Args:
        root: the folder that contains "train" and the split's folder.
        split: name of the split's folder.
        size: side of the square in pixels.

    Returns:
        The images, sorted by path. Classes are the folders below "train", sorted by name.

    Raises:
        DataError: there is no such folder, no image in it, or a class that is not among the training images.
    """
    train_paths, train_classes = _read_folder(root, "train")
    paths, classes = (train_paths, train_classes) if split == "train" else _read_folder(root, split)
    class_names = tuple(sorted(set(train_classes)))
    label_of = {name: c for c, name in enumerate(class_names)}
    for name in classes:
        if name not in label_of:
            raise DataError(f"{root / split / name}: there is no folder of training images of the class {name!r}")
    labels, train_labels = (
        np.array([label_of[name] for name in of], dtype=np.int64) for of in (classes, train_classes)
    )
    return Split(
        files=ImageFiles(root=root, paths=paths, labels=labels, size=size),
        class_names=class_names,
        train_counts=np.bincount(train_labels),
    )


def _read_folder(root: Path, split: str) -> tuple[tuple[str, ...], list[str]]:
    folder = root / split
    if not folder.is_dir():
        there = ", ".join(sorted(p.name for p in root.iterdir() if p.is_dir())) or "no folders"
        raise DataError(
            f"image-folder: {folder} does not exist; {root} holds {there}: see {arg('split')}, {arg('data_root')}"
        )
    files = sorted(p for p in folder.glob("*/**/*") if p.suffix.lower() in SUFFIXES and p.is_file())
    if not files:
        raise DataError(f"image-folder: {folder} holds no images; expected {folder}/CLASS/IMAGE.jpg")
    return tuple(str(p.relative_to(root)) for p in files), [p.relative_to(folder).parts[0] for p in files]
