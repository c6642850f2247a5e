"""Samples in a fixed order with their labels: built-in data sets, files of images, and users' own data.

The analysis needs a loss that is one fixed function of the parameters, so nothing here is random at reading
time: no augmentation, no shuffling. Images stay bytes in memory and become floats where they are used,

    float = (byte / 255 - mean) / std        per channel.

Long-tailed training sets follow Cao et al. 2019 (LDAM): class k of C keeps int(n_max * r^(-k / (C - 1))) of
its samples, r = n_max / n_min. Nothing is ever downloaded.
"""

import dataclasses
import hashlib
import inspect
import io
import math
import operator
import os
import pickle
import tarfile
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset, IterableDataset, Subset, TensorDataset

from landscape.callables import resolve
from landscape.errors import DataError, InputError

Stats = tuple[float, ...]

NAMES = ("digits-lt", "cifar10", "cifar100", "image-list", "image-folder")
IMAGENET: tuple[Stats, Stats] = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# Cao et al. 2019 (LDAM-DRW) normalise both CIFAR sets so, and the papers that compare with it do the same.
CIFAR: tuple[Stats, Stats] = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
DIGITS: tuple[Stats, Stats] = (0.3053,), (0.3759,)  # over all 1,797 images
DIGITS_IMBALANCE = 20.0
DIGITS_TEST = 50  # test images of each class
IN_MEMORY = 2**30  # bytes; users' data below this are read once and kept
FIRST_FEW = 8  # inputs that stand for a user's data set where it does not fit in memory
IMAGE_SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"})


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Samples:
    """N labelled samples in a fixed order; either `inputs` or `dataset` holds them.

    `options` load the set again with `load(**options)`; what `select` left out is known to the fingerprint only.
    """

    name: str
    split: str
    inputs: torch.Tensor | None  # (N, ...) in memory; images are uint8 (N, channels, height, width)
    dataset: Any | None  # map-style, items (input, label), for what does not fit in memory
    labels: np.ndarray  # (N,) int64
    class_names: tuple[str, ...]  # (C,)
    class_counts: np.ndarray  # (C,) int64, TRAINING samples of each class, whichever split this is
    mean: Stats | None = None  # per channel, for uint8 images; None hands the inputs out as they are
    std: Stats | None = None
    options: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the inputs, labels and normalisation.

        In memory, the inputs' bytes count; of image files their paths below the root, sizes and the crop; of
        users' data that do not fit in memory the first eight inputs, as reading them all would take too long.
        """
        digest = hashlib.sha256(repr((self.mean, self.std)).encode())
        digest.update(np.ascontiguousarray(self.labels).data)
        if self.inputs is not None:
            digest.update(_described(self.inputs))
        elif isinstance(self.dataset, _Images):
            digest.update(self.dataset.description().encode())
        else:
            first = range(min(FIRST_FEW, len(self)))
            for i, (value, _) in zip(first, _items(self.dataset, first), strict=True):
                digest.update(_described(_tensor(value, i)))
        return digest.hexdigest()

    def batch(
        self,
        indices: np.ndarray | torch.Tensor,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Hand out some samples, normalised, on a device.

        Args:
            indices: (B,) positions of the samples.
            device: where the tensors go; None leaves the inputs where they are, the labels with them.
            dtype: of floating-point inputs and normalised images; integers, as tokens are, keep their own.

        Returns:
            Inputs (B, ...) and labels (B,) int64.

        Raises:
            DataError: a sample cannot be read, or its shape differs from the others'.
        """
        order = np.asarray(indices.cpu() if isinstance(indices, torch.Tensor) else indices, dtype=np.int64)
        if self.inputs is not None:
            inputs = self.inputs.index_select(0, torch.from_numpy(order).to(self.inputs.device))
        else:
            inputs = _stack(order.tolist(), [value for value, _ in _items(self.dataset, order.tolist())])
        inputs = inputs.to(device)
        if self.mean is not None and self.std is not None:
            shape = (-1, *[1] * (inputs.ndim - 2))
            mean = torch.tensor(self.mean, dtype=dtype, device=inputs.device).view(shape)
            std = torch.tensor(self.std, dtype=dtype, device=inputs.device).view(shape)
            inputs = inputs.to(dtype).div_(255).sub_(mean).div_(std)
        elif inputs.is_floating_point():
            inputs = inputs.to(dtype)
        return inputs, torch.from_numpy(self.labels[order]).to(inputs.device)

    def select(self, indices: np.ndarray | torch.Tensor | Sequence[int]) -> "Samples":
        """Take some of the samples, in the order given; the classes and their training counts stay.

        Args:
            indices: positions of the samples.

        Returns:
            Samples that share no memory with these, except for files.

        Raises:
            InputError: a position does not exist.
            DataError: nothing is selected.
        """
        order = np.asarray(indices.cpu() if isinstance(indices, torch.Tensor) else indices, dtype=np.int64)
        if not order.size:
            raise DataError(f"no sample of {self.name} ({self.split}) is selected")
        if order.min() < 0 or order.max() >= len(self):
            raise InputError(f"samples are 0 to {len(self) - 1}, asked for {order.min()} to {order.max()}")
        inputs, dataset = self.inputs, self.dataset
        if inputs is not None:
            inputs = inputs.index_select(0, torch.from_numpy(order).to(inputs.device))
        elif isinstance(dataset, _Images):
            dataset = dataset.select(order)
        else:
            dataset = Subset(dataset, order.tolist())  # type: ignore[arg-type]  # a list will do as well
        return dataclasses.replace(self, inputs=inputs, dataset=dataset, labels=self.labels[order])

    def subsample(self, per_class: int, seed: int = 0) -> "Samples":
        """Draw at most `per_class` samples of each class; smaller classes keep all of theirs.

        Args:
            per_class: at least 1. A larger number with the same seed draws a superset.
            seed: of the draw.

        Returns:
            The samples drawn, in the order they had.

        Raises:
            InputError: `per_class` is below 1 or the seed is negative.
        """
        if per_class < 1:
            raise InputError(f"--samples-per-class must be at least 1, got {per_class}")
        wanted = np.full(len(self.class_names), per_class)
        return self.select(_draw(self.labels, wanted, seed))


def names() -> tuple[str, ...]:
    """Return the names that `load` knows, besides users' own package.module:callable."""
    return NAMES


def load(
    name: str,
    *,
    root: str | os.PathLike[str] | None = None,
    split: str = "train",
    imbalance: float | None = None,
    imbalance_type: str = "exp",
    seed: int = 0,
    normalize: str | None = None,
    image_size: int | None = None,
    train_list: str | os.PathLike[str] | None = None,
    test_list: str | os.PathLike[str] | None = None,
) -> Samples:
    """Load one split of a data set.

    Args:
        name: one of `names()`, or package.module:callable. The callable returns a map-style data set; where it
            has an argument `split`, it is called with it, and a split other than "train" takes its training
            counts from the data's `class_counts` or else from the split "train".
        root: folder of the data. cifar10 and cifar100 want the official python batches or their .tar.gz in it.
        split: "train" or "test"; for image-folder any folder below the root, for users' data what they know.
        imbalance: n_max / n_min of the training set, 100 and 0.01 meaning the same; None changes nothing, except
            that digits-lt has 20. Test samples are never left out.
        imbalance_type: "exp", or "step" for two levels.
        seed: of the samples that the long-tailed training set keeps.
        normalize: "imagenet", "none" (byte / 255 only) or "m,m,m/s,s,s"; None is the data set's own.
        image_size: for image-list and image-folder, pixels of the square that is cut out; None is 224.
        train_list: for image-list, a file with a line `path label` for each training image, paths below root.
        test_list: the same for the test images.

    Returns:
        The samples.

    Raises:
        InputError: an option that does not fit.
        DataError: files or samples that are missing or cannot be used.
    """
    of_images = {"image_size": image_size, "train_list": train_list, "test_list": test_list}
    takes = {"image-list": set(of_images), "image-folder": {"image_size"}}.get(name, set())
    for option, value in of_images.items():
        if value is not None and option not in takes:
            raise InputError(f"--{option.replace('_', '-')} {value} does not apply to {name}: leave it out")
    if name == "digits-lt" and imbalance is None:
        imbalance = DIGITS_IMBALANCE
    options: dict[str, Any] = {"name": name, "split": split}
    if ":" in name:
        samples = _own(name, split)
    elif name not in NAMES:
        raise InputError(f"no data set {name!r}; choose from {', '.join(NAMES)} or package.module:callable")
    elif name == "digits-lt":
        samples = _digits(_known(split))
    else:
        folder = _folder(name, root)
        options["root"] = os.path.abspath(folder)
        if name in CIFAR_LAYOUT:
            samples = _cifar(name, folder, _known(split))
        else:
            options["image_size"] = size = 224 if image_size is None else image_size
            if size < 1:
                raise InputError(f"--image-size must be at least 1 pixel, got {size}")
            if name == "image-list":
                lists = {"train_list": _list_file(folder, "train", train_list)}
                if _known(split) == "test":
                    lists["test_list"] = _list_file(folder, "test", test_list)
                options |= {key: str(path) for key, path in lists.items()}
                samples = _image_list(folder, lists["train_list"], lists[f"{split}_list"], split, size)
            else:
                samples = _image_folder(folder, split, size)
    if normalize is not None:
        options["normalize"] = normalize
        samples = _normalised(samples, normalize)
    if imbalance is not None:
        options |= {"imbalance": _ratio(imbalance), "imbalance_type": imbalance_type, "seed": seed}
        samples = _long_tailed(samples, imbalance, imbalance_type, seed)
    return dataclasses.replace(samples, options=options)


def from_dataset(
    dataset: Any,
    *,
    name: str = "dataset",
    split: str = "train",
    class_names: Sequence[str] | None = None,
    class_counts: Sequence[int] | np.ndarray | None = None,
) -> Samples:
    """Take a user's own data, unchanged.

    Data below 1 GiB are read once and kept in memory. Of larger ones only the labels are: from `dataset.targets`
    or `dataset.labels` where these agree with the items, otherwise by reading every item once.

    Args:
        dataset: a map-style data set of items (input, label), a TensorDataset, or a tuple (inputs, labels) of
            tensors. Inputs are tensors or arrays of one shape; integers, as tokens are, stay integers.
        name: for messages and results.
        split: for messages and results.
        class_names: (C,); None takes `dataset.classes` or `dataset.class_names`, or else "0", "1", ...
        class_counts: (C,) training samples of each class; None takes `dataset.class_counts`, or else counts
            these labels, which is right for the training split only.

    Returns:
        The samples.

    Raises:
        DataError: no samples, no random access, random items, an item that is not a pair, an input that is not
            a tensor or array, or a label that is not an integer from 0 to C - 1.
    """
    inputs, lazy, labels = _collect(dataset)
    found = class_names if class_names is not None else _attribute(dataset, "classes", "class_names")
    counts = class_counts if class_counts is not None else _attribute(dataset, "class_counts")
    n_classes = int(labels.max()) + 1
    if counts is not None:
        counts = np.asarray(counts)
        if counts.ndim != 1 or not np.issubdtype(counts.dtype, np.integer) or counts.min(initial=0) < 0:
            raise DataError(f"class_counts of {name} must be one count per class, got {counts.tolist()}")
        n_classes = len(counts)
    if found is not None:
        if isinstance(found, str) or not isinstance(found, Iterable):
            raise DataError(f"classes of {name} must be a list of names, got {found!r}")
        found = tuple(str(n) for n in found)
        if counts is not None and len(found) != n_classes:
            raise DataError(f"{name} has {len(found)} class names but {n_classes} class counts")
        n_classes = len(found)
    _check_labels(labels, n_classes, name)
    if counts is None:
        counts = np.bincount(labels, minlength=n_classes)
    return Samples(
        name=name,
        split=split,
        inputs=inputs,
        dataset=lazy,
        labels=labels,
        class_names=found if found is not None else tuple(str(c) for c in range(n_classes)),
        class_counts=counts.astype(np.int64),
        options={"name": name, "split": split},
    )


def long_tailed_counts(n_max: int, n_classes: int, imbalance: float, kind: str = "exp") -> np.ndarray:
    """Number of samples that each class of a long-tailed training set keeps.

    "exp": n_k = int(n_max * r^(-k / (C - 1))); "step": n_max in the first C // 2 classes, int(n_max / r) after.

    Args:
        n_max: samples of class 0.
        n_classes: C.
        imbalance: r = n_max / n_min, or its inverse.
        kind: "exp" or "step".

    Returns:
        Counts, (C,) int64.

    Raises:
        InputError: a ratio that is not a positive number, or an unknown kind.

    Source: Cao et al. 2019, "Learning imbalanced datasets with label-distribution-aware margin loss"; Buda et
    al. 2018 for the steps.
    """
    if kind == "exp":
        exponent = np.arange(n_classes) / max(1, n_classes - 1)
    elif kind == "step":
        exponent = (np.arange(n_classes) >= n_classes // 2).astype(float)
    else:
        raise InputError(f"--imbalance-type must be exp or step, got {kind!r}")
    exact = n_max * _ratio(imbalance) ** -exponent
    return np.floor(exact * (1 + 1e-12)).astype(np.int64)  # 4900 / 49 must not become 99 for a lost last bit


def _ratio(imbalance: float) -> float:
    if not (math.isfinite(imbalance) and imbalance > 0):
        raise InputError(f"--imbalance must be a positive number, such as 100 or 0.01, got {imbalance}")
    return float(imbalance) if imbalance >= 1 else 1 / imbalance


def _long_tailed(samples: Samples, imbalance: float, kind: str, seed: int) -> Samples:
    if samples.split == "train":  # the data may be fewer than those that their owner trained on
        available = np.bincount(samples.labels, minlength=len(samples.class_names))
    else:
        available = samples.class_counts
    wanted = long_tailed_counts(int(available.max()), len(available), imbalance, kind)
    for c in np.flatnonzero(wanted == 0)[:1]:
        raise InputError(
            f"--imbalance {imbalance} leaves class {c} ({samples.class_names[c]}) no sample: "
            f"the largest class has {available.max()}; choose a ratio below that"
        )
    for c in np.flatnonzero(available < wanted)[:1]:
        raise DataError(
            f"class {c} ({samples.class_names[c]}) has {available[c]} training samples, --imbalance {imbalance} "
            f"wants {wanted[c]}: drop --imbalance if {samples.name} is long-tailed already"
        )
    if samples.split == "train":
        samples = samples.select(_draw(samples.labels, wanted, seed))
    return dataclasses.replace(samples, class_counts=wanted)


def _draw(labels: np.ndarray, wanted: np.ndarray, seed: int) -> np.ndarray:
    """Draw up to wanted[c] samples of each class c; their positions, ascending."""
    if seed < 0:
        raise InputError(f"--seed must not be negative, got {seed}")
    drawn = [
        # a generator a class and the head of a permutation: draws of different sizes are nested
        np.random.default_rng([seed, c]).permutation(np.flatnonzero(labels == c))[:n]
        for c, n in enumerate(wanted)
    ]
    return np.sort(np.concatenate(drawn))


def _normalised(samples: Samples, text: str) -> Samples:
    first, _ = dataclasses.replace(samples, mean=None, std=None).batch(np.zeros(1, dtype=np.int64))
    if first.dtype != torch.uint8 or first.ndim != 4:
        raise InputError(
            f"--normalize {text} is for uint8 images (channels, height, width); "
            f"{samples.name} has {str(first.dtype).removeprefix('torch.')} inputs {tuple(first.shape[1:])}"
        )
    channels = first.shape[1]
    if text == "none":
        mean, std = (0.0,) * channels, (1.0,) * channels
    elif text == "imagenet":
        mean, std = IMAGENET
    else:
        try:
            mean, std = (tuple(float(word) for word in part.split(",")) for part in text.split("/"))
        except ValueError:
            raise InputError(f"--normalize must be imagenet, none or m,m,m/s,s,s; got {text!r}") from None
    if not len(mean) == len(std) == channels:
        raise InputError(f"--normalize {text}: {samples.name} has {channels} channels, and so many means and stds")
    if not all(math.isfinite(v) for v in mean + std) or min(std) <= 0:
        raise InputError(f"--normalize {text}: means must be finite and standard deviations positive")
    return dataclasses.replace(samples, mean=mean, std=std)


def _known(split: str) -> str:
    if split not in {"train", "test"}:
        raise InputError(f"--split must be train or test, got {split!r}")
    return split


def _check_labels(labels: np.ndarray, n_classes: int, where: object) -> None:
    for i in np.flatnonzero((labels < 0) | (labels >= n_classes))[:1]:
        raise DataError(f"{where}: sample {i} has label {labels[i]}, classes are 0 to {n_classes - 1}")


# Digits ----------------------------------------------------------------------------------------------------------


def _digits(split: str) -> Samples:
    from sklearn.datasets import load_digits  # takes a second, and nothing else here needs it

    bunch = load_digits()
    labels = bunch.target.astype(np.int64)
    smallest = np.bincount(labels).min()  # 174: with as many of every class, the formula fits from any seed on
    order = np.random.default_rng(0).permutation(len(labels))
    rank = np.empty(len(labels), dtype=np.int64)
    for c in range(10):
        members = order[labels[order] == c]
        rank[members] = np.arange(len(members))
    inside = rank < DIGITS_TEST if split == "test" else (rank >= DIGITS_TEST) & (rank < smallest)
    images = np.round(bunch.images[inside] * (255 / 16)).astype(np.uint8)  # the scans have levels 0 to 16
    return Samples(
        name="digits-lt",
        split=split,
        inputs=torch.from_numpy(images)[:, None],
        dataset=None,
        labels=labels[inside],
        class_names=tuple(str(c) for c in range(10)),
        class_counts=np.full(10, smallest - DIGITS_TEST),
        mean=DIGITS[0],
        std=DIGITS[1],
    )


# CIFAR -----------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Layout:
    """Where the official python version of a CIFAR set keeps what."""

    folder: str
    archive: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    meta: str
    labels: str
    class_names: str


CIFAR_LAYOUT = {
    "cifar10": _Layout(
        folder="cifar-10-batches-py",
        archive="cifar-10-python.tar.gz",
        train=tuple(f"data_batch_{k}" for k in range(1, 6)),
        test=("test_batch",),
        meta="batches.meta",
        labels="labels",
        class_names="label_names",
    ),
    "cifar100": _Layout(
        folder="cifar-100-python",
        archive="cifar-100-python.tar.gz",
        train=("train",),
        test=("test",),
        meta="meta",
        labels="fine_labels",
        class_names="fine_label_names",
    ),
}


def _cifar(name: str, root: Path, split: str) -> Samples:
    layout = CIFAR_LAYOUT[name]
    parts = layout.train if split == "train" else layout.test
    files = _cifar_files(name, root, {layout.meta, *layout.train, *parts})
    batches = {file: _unpickle(file, content) for file, content in files.items()}
    class_names = tuple(
        n.decode() if isinstance(n, bytes) else str(n)
        for n in _entry(layout.meta, batches[layout.meta], layout.class_names, list)
    )
    labels: dict[str, np.ndarray] = {}
    for file in dict.fromkeys((*layout.train, *parts)):
        values = _entry(file, batches[file], layout.labels, list)
        if not values or not all(isinstance(v, int) for v in values):
            raise DataError(f"{name}: the {layout.labels} of {file} are not a list of integers")
        labels[file] = np.asarray(values)
        _check_labels(labels[file], len(class_names), f"{name}: {file}")
    pixels = {f: _entry(f, batches[f], "data", _PickledArray).value for f in parts}
    for file, of_file in pixels.items():
        if of_file.shape != (len(labels[file]), 3072):
            raise DataError(f"{name}: {file} has {len(labels[file])} labels but pixels of shape {of_file.shape}")
    train = np.concatenate([labels[f] for f in layout.train])
    return Samples(
        name=name,
        split=split,
        inputs=torch.from_numpy(np.concatenate([pixels[f] for f in parts]).reshape(-1, 3, 32, 32)),
        dataset=None,
        labels=np.concatenate([labels[f] for f in parts]).astype(np.int64),
        class_names=class_names,
        class_counts=np.bincount(train, minlength=len(class_names)),
        mean=CIFAR[0],
        std=CIFAR[1],
    )


def _cifar_files(name: str, root: Path, wanted: set[str]) -> dict[str, bytes]:
    """Read files from the unpacked folder, from the root if it is that folder, or from the archive."""
    layout = CIFAR_LAYOUT[name]
    archive = root / layout.archive
    for folder in (root / layout.folder, root):
        if (folder / layout.meta).is_file():
            missing = sorted(f for f in wanted if not (folder / f).is_file())
            if missing:
                raise DataError(f"{name}: {folder} lacks {', '.join(missing)}; unpack {layout.archive} again")
            return {f: (folder / f).read_bytes() for f in wanted}
    if not archive.is_file():
        raise DataError(
            f"{name}: neither {layout.folder}/{layout.meta} nor {layout.archive} is in {root}; pass the "
            f"--data-root DIR that holds {layout.folder} (nothing is downloaded)"
        )
    found: dict[str, bytes] = {}
    try:
        with tarfile.open(archive) as members:
            for member in members:  # in the archive's order: going back in a .gz means to unpack it anew
                folder_name, _, file = member.name.removeprefix("./").rpartition("/")
                content = members.extractfile(member) if folder_name == layout.folder and file in wanted else None
                if content is not None:
                    found[file] = content.read()
    except (tarfile.TarError, OSError, EOFError) as error:
        raise DataError(f"{name}: cannot read {archive}: {error}; fetch it again") from error
    if missing := sorted(wanted - set(found)):
        raise DataError(f"{name}: {archive} lacks {layout.folder}/{', '.join(missing)}; fetch it again")
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


UNPICKLED: dict[tuple[str, str], Callable[..., Any]] = {
    ("numpy.core.multiarray", "_reconstruct"): _PickledArray,
    ("numpy._core.multiarray", "_reconstruct"): _PickledArray,
    ("numpy", "ndarray"): _PickledArray,
    ("numpy", "dtype"): _PickledType,
    ("_codecs", "encode"): _latin1,
}


class _Unpickler(pickle.Unpickler):
    """Unpickles arrays of bytes and plain values; a data file may come from anyone, and may not run code."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in UNPICKLED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no CIFAR batch does")
        return UNPICKLED[module, name]


def _unpickle(file: str, content: bytes) -> Any:
    try:
        return _Unpickler(io.BytesIO(content), encoding="bytes").load()
    except Exception as error:  # a broken pickle can raise anything
        raise DataError(f"{file} is no CIFAR batch: {error}; unpack the archive again") from error


# Image files -----------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, eq=False)
class _Images(Dataset[tuple[torch.Tensor, int]]):
    """Image files, decoded when they are asked for: shorter side resized, square cut from the centre."""

    root: Path
    paths: tuple[str, ...]
    labels: np.ndarray
    size: int

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
        path = self.root / self.paths[i]
        try:
            with Image.open(path) as file:
                image = file.convert("RGB")
        except (OSError, ValueError, Image.DecompressionBombError) as error:
            raise DataError(f"cannot decode {path}: {error}") from error
        shorter = round(self.size * 256 / 224)
        scale = shorter / min(image.size)
        width, height = (max(shorter, int(side * scale)) for side in image.size)
        image = image.resize((width, height), Image.Resampling.BILINEAR)
        left, top = round((width - self.size) / 2), round((height - self.size) / 2)
        square = image.crop((left, top, left + self.size, top + self.size))
        return torch.from_numpy(np.array(square)).permute(2, 0, 1).contiguous(), int(self.labels[i])

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[torch.Tensor, int]]:
        with ThreadPoolExecutor(os.cpu_count()) as pool:  # Pillow decodes outside Python's lock
            return list(pool.map(self.__getitem__, indices))

    def select(self, order: np.ndarray) -> "_Images":
        return _Images(self.root, tuple(self.paths[i] for i in order), self.labels[order], self.size)

    def description(self) -> str:
        try:
            sizes = [(self.root / path).stat().st_size for path in self.paths]
        except OSError as error:
            raise DataError(f"an image of the list cannot be read: {error}; is --data-root right?") from error
        return repr((self.size, list(zip(self.paths, sizes, strict=True))))


def _of_images(
    name: str, split: str, images: _Images, class_names: tuple[str, ...], train_labels: np.ndarray
) -> Samples:
    return Samples(
        name=name,
        split=split,
        inputs=None,
        dataset=images,
        labels=images.labels,
        class_names=class_names,
        class_counts=np.bincount(train_labels, minlength=len(class_names)),
        mean=IMAGENET[0],
        std=IMAGENET[1],
    )


def _folder(name: str, root: str | os.PathLike[str] | None) -> Path:
    if root is None:
        held = CIFAR_LAYOUT[name].folder if name in CIFAR_LAYOUT else "the images"
        raise DataError(f"{name} needs --data-root DIR, the folder that holds {held} (nothing is downloaded)")
    if not Path(root).is_dir():
        raise DataError(f"{name}: --data-root {os.fspath(root)} is not a folder")
    return Path(root)


def _list_file(root: Path, split: str, path: str | os.PathLike[str] | None) -> Path:
    if path is None:
        raise DataError(f"image-list needs --{split}-list FILE with a line 'path label' for each {split} image")
    for candidate in (Path(path), root / path):
        if candidate.is_file():
            return candidate.absolute()
    raise DataError(f"--{split}-list {os.fspath(path)} is neither in the current folder nor in {root}")


def _image_list(root: Path, train: Path, chosen: Path, split: str, size: int) -> Samples:
    _, train_labels = _read_list(train)
    n_classes = int(train_labels.max()) + 1
    paths, labels = _read_list(chosen)
    _check_labels(labels, n_classes, chosen)
    images = _Images(root, paths, labels, size)
    return _of_images("image-list", split, images, tuple(str(c) for c in range(n_classes)), train_labels)


def _read_list(file: Path) -> tuple[tuple[str, ...], np.ndarray]:
    paths, labels = [], []
    with file.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            words = line.rsplit(maxsplit=1)
            if not words:
                continue
            if len(words) != 2 or not words[1].isdecimal():
                raise DataError(f"{file}, line {number}: expected 'path label', got {line.strip()!r}")
            paths.append(words[0])
            labels.append(int(words[1]))
    if not paths:
        raise DataError(f"{file} lists no image")
    return tuple(paths), np.array(labels, dtype=np.int64)


def _image_folder(root: Path, split: str, size: int) -> Samples:
    train_paths, train_classes = _read_folder(root, "train")
    paths, classes = (train_paths, train_classes) if split == "train" else _read_folder(root, split)
    class_names = tuple(sorted(set(train_classes)))
    label_of = {name: c for c, name in enumerate(class_names)}
    for name in classes:
        if name not in label_of:
            raise DataError(f"{root / split / name}: there is no training class {name!r}")
    labels = np.array([label_of[name] for name in classes], dtype=np.int64)
    train_labels = np.array([label_of[name] for name in train_classes], dtype=np.int64)
    return _of_images("image-folder", split, _Images(root, paths, labels, size), class_names, train_labels)


def _read_folder(root: Path, split: str) -> tuple[tuple[str, ...], list[str]]:
    folder = root / split
    if not folder.is_dir():
        there = ", ".join(sorted(p.name for p in root.iterdir() if p.is_dir())) or "no folders"
        raise DataError(f"image-folder: {folder} does not exist; {root} holds {there}: see --split, --data-root")
    files = sorted(p for p in folder.glob("*/**/*") if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file())
    if not files:
        raise DataError(f"image-folder: {folder} holds no images; expected {folder}/CLASS/IMAGE.jpg")
    return tuple(str(p.relative_to(root)) for p in files), [p.relative_to(folder).parts[0] for p in files]


# Users' own ------------------------------------------------------------------------------------------------------


def _own(name: str, split: str) -> Samples:
    build = resolve(name, "dataset")
    try:
        parameters = list(inspect.signature(build).parameters.values())
    except ValueError:  # some callables written in C do not tell
        parameters = []
    takes_split = any(p.name == "split" or p.kind is p.VAR_KEYWORD for p in parameters)
    if split != "train" and not takes_split:
        raise InputError(f"--split {split}: {name} has no argument 'split'; give it one, or leave out --split")

    def built(of: str) -> Any:
        try:
            return build(split=of) if takes_split else build()
        except Exception as error:  # the user's code; the traceback stays attached
            raise InputError(f"--dataset {name} failed with {_line(error)}") from error

    dataset = built(split)
    if split == "train" or _attribute(dataset, "class_counts") is not None:
        return from_dataset(dataset, name=name, split=split)
    train = from_dataset(built("train"), name=name)
    return from_dataset(dataset, name=name, split=split, class_names=train.class_names, class_counts=train.class_counts)


def _attribute(dataset: Any, *choices: str) -> Any:
    found = (getattr(dataset, name, None) for name in choices)
    return next((value for value in found if value is not None), None)


def _collect(dataset: Any) -> tuple[torch.Tensor | None, Any | None, np.ndarray]:
    """Return the inputs where they fit in memory, otherwise the data set, and all labels."""
    if isinstance(dataset, TensorDataset):
        dataset = dataset.tensors
    if isinstance(dataset, tuple) and all(isinstance(t, torch.Tensor | np.ndarray) for t in dataset):
        return _collect_tensors(dataset)
    if isinstance(dataset, IterableDataset) or not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")):
        raise DataError(
            f"{type(dataset).__name__} cannot be read in any order, as the analysis needs: give a map-style data "
            "set with __len__ and __getitem__ (of a DataLoader its .dataset; of an iterator list(...))"
        )
    n = len(dataset)
    if not n:
        raise DataError("the data set is empty")
    first = range(min(FIRST_FEW, n))
    for i, once, again in zip(first, _items(dataset, first), _items(dataset, first), strict=True):
        if _described(_tensor(once[0], i)) != _described(_tensor(again[0], i)):
            raise DataError(f"sample {i} differs each time it is read: switch the data set's augmentation off")
    size = _tensor(_items(dataset, [0])[0][0], 0)
    if n * size.numel() * size.element_size() < IN_MEMORY:
        items = _items(dataset, range(n))
        labels = np.array([_label(label, i) for i, (_, label) in enumerate(items)], dtype=np.int64)
        return _stack(range(n), [value for value, _ in items]), None, labels
    declared = _declared_labels(dataset)
    if declared is not None:
        return None, dataset, declared
    labels = np.array([_label(_items(dataset, [i])[0][1], i) for i in range(n)], dtype=np.int64)
    return None, dataset, labels


def _declared_labels(dataset: Any) -> np.ndarray | None:
    """Take `targets` or `labels` of a data set, if that is what its items say."""
    try:
        labels = np.array([operator.index(v) for v in _attribute(dataset, "targets", "labels")], dtype=np.int64)
    except TypeError:  # no such attribute, or not integers
        return None
    if len(labels) != len(dataset):
        return None
    # one item a class: a data set that maps labels on reading does not hand out what it declares
    _, positions = np.unique(labels, return_index=True)
    read = [_label(label, i) for i, (_, label) in zip(positions, _items(dataset, positions.tolist()), strict=True)]
    return labels if np.array_equal(read, labels[positions]) else None


def _collect_tensors(tensors: tuple[Any, ...]) -> tuple[torch.Tensor, None, np.ndarray]:
    if len(tensors) != 2:
        raise DataError(f"a data set of tensors has two, inputs and labels; got {len(tensors)}")
    inputs, labels = (torch.as_tensor(t).detach() for t in tensors)
    if labels.ndim != 1 or labels.is_floating_point() or labels.is_complex():
        raise DataError(f"labels must be a vector of integers, got {labels.dtype} {tuple(labels.shape)}")
    if inputs.ndim == 0 or len(inputs) != len(labels):
        raise DataError(f"there are {len(labels)} labels for inputs of shape {tuple(inputs.shape)}")
    if not len(labels):
        raise DataError("the data set is empty")
    return inputs, None, labels.cpu().numpy().astype(np.int64)


def _items(dataset: Any, indices: Sequence[int]) -> list[tuple[Any, Any]]:
    """Read some items, in one go where the data set can; each must be a pair."""
    fetch = getattr(dataset, "__getitems__", None)
    try:
        items = list(fetch(list(indices))) if callable(fetch) else [dataset[i] for i in indices]
    except DataError:
        raise
    except Exception as error:  # the user's code; the traceback stays attached
        raise DataError(f"the data set cannot be read: {_line(error)}") from error
    for i, item in zip(indices, items, strict=True):
        if not isinstance(item, tuple | list) or len(item) != 2:
            length = f" of {len(item)}" if isinstance(item, tuple | list) else ""
            raise DataError(f"sample {i} must be a pair (input, label), got {type(item).__name__}{length}")
    return items


def _tensor(value: Any, i: int) -> torch.Tensor:
    if isinstance(value, torch.Tensor):
        return value.detach()
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
        return torch.tensor(value)
    raise DataError(
        f"the input of sample {i} must be a tensor or an array of numbers, got {type(value).__name__}: "
        "let the data set convert it"
    )


def _stack(indices: Sequence[int], values: list[Any]) -> torch.Tensor:
    tensors = [_tensor(value, i) for i, value in zip(indices, values, strict=True)]
    for i, tensor in zip(indices, tensors, strict=True):
        if tensor.shape != tensors[0].shape or tensor.dtype != tensors[0].dtype:
            raise DataError(
                f"inputs must agree in shape and type: sample {indices[0]} is {tensors[0].dtype} "
                f"{tuple(tensors[0].shape)}, sample {i} is {tensor.dtype} {tuple(tensor.shape)}"
            )
    return torch.stack(tensors)


def _label(value: Any, i: int) -> int:
    try:
        return operator.index(value)
    except TypeError:
        shown = f"a tensor {tuple(value.shape)}" if getattr(value, "ndim", 0) else repr(value)
        raise DataError(f"the label of sample {i} must be an integer, got {shown}") from None


def _line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())


def _described(tensor: torch.Tensor) -> bytes:
    """Type, shape and content of a tensor, as one string of bytes."""
    content = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return f"{tensor.dtype} {tuple(tensor.shape)}".encode() + hashlib.sha256(content.data).digest()
