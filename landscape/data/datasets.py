"""Samples in a fixed order with their labels: built-in data sets, files of images, and users' own data.

The analysis needs a loss that is one fixed function of the parameters, so reading is never random: no augmentation, no
shuffling. Images are stored as bytes in memory and become floats when they are used,

    float = (byte / 255 - mean) / std        per channel.

Long-tailed training sets follow Cao et al. 2019 (LDAM): class k of C keeps int(n_max * r^(-k / (C - 1))) of its
samples, with r = n_max / n_min. Nothing is ever downloaded.
"""

import dataclasses
import inspect
import math
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch

from landscape.callables import failures_of, resolve_call
from landscape.data import cifar, images, items
from landscape.data.records import Records
from landscape.data.samples import Samples as Samples
from landscape.data.samples import Stats, check_classes, draw, draw_as_ldam
from landscape.errors import DataError, InputError, arg, check_choice, unknown

IMAGENET: tuple[Stats, Stats] = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# Cao et al. 2019 (LDAM-DRW) normalise both CIFAR sets so, and the papers that compare with it do the same.
CIFAR: tuple[Stats, Stats] = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
DIGITS: tuple[Stats, Stats] = (0.3053,), (0.3759,)  # over all 1,797 images
IMBALANCE: Mapping[str, Callable[[int], np.ndarray]] = {
    "exp": lambda n_classes: np.arange(n_classes) / max(1, n_classes - 1),
    "step": lambda n_classes: (np.arange(n_classes) >= n_classes // 2).astype(float),
}
"""Shapes of the long tail: the exponent of 1 / ratio of each class, from 0 to 1."""
DRAWS: Mapping[str, Callable[[np.ndarray, np.ndarray, int], np.ndarray]] = {"own": draw, "ldam": draw_as_ldam}
"""Draws of a long tail: (labels, number of samples of each class, seed) -> positions."""
DIGITS_IMBALANCE = 20.0
DIGITS_TEST = 50  # test images of each class


def names() -> tuple[str, ...]:
    """Return the names that `load` knows, besides users' own package.module:callable."""
    return tuple(DATASETS)


def load(
    name: str,
    *,
    root: str | os.PathLike[str] | None = None,
    split: str = "train",
    imbalance: float | None = None,
    imbalance_type: str = "exp",
    imbalance_draw: str = "own",
    seed: int = 0,
    normalize: str | None = None,
    image_size: int | None = None,
    train_list: str | os.PathLike[str] | None = None,
    test_list: str | os.PathLike[str] | None = None,
    take: Callable[..., Samples] | None = None,
) -> Samples:
    """Load one split of a data set.

    Args:
        name: one of `names()`, or package.module:callable. The callable returns a map-style data set. If it has an
            argument `split`, it gets the split, and for a split other than "train" the training counts come from the
            data's `class_counts` or else from the split "train".
        root: folder of the data. For cifar10 and cifar100 it contains the official python batches or their .tar.gz.
        split: "train" or "test"; for image-folder any folder below the root; for users' data any split they define.
        imbalance: n_max / n_min of the training set; 100 and 0.01 mean the same. None changes nothing, but digits-lt
            then has 20. Test samples are never left out.
        imbalance_type: "exp", or "step" for two levels.
        imbalance_draw: "own", or "ldam" for the samples that LDAM-DRW, and code that is built on it, keeps.
        seed: of the choice of samples for the long-tailed training set.
        normalize: "imagenet", "none" (byte / 255 only) or "m,m,m/s,s,s"; None means the data set's own.
        image_size: for image-list and image-folder, side of the cropped square in pixels; None means 224.
        train_list: for image-list, a file with a line `path label` for each training image, with paths below root.
        test_list: for image-list, a file with a line `path label` for each test image.
        take: makes samples from a user's data; None means `from_dataset`.

    Returns:
        The samples.

    Raises:
        InputError: an option that does not fit.
        DataError: files or samples that are missing or cannot be used.
    """
    given = {"root": root, "image_size": image_size, "train_list": train_list, "test_list": test_list}
    if ":" in name:
        source = Source(read=partial(_own, name, take=take or from_dataset))
    elif name in DATASETS:
        source = DATASETS[name]
    else:
        raise InputError(unknown(name, DATASETS, "data set", more=" or package.module:callable"))
    imbalance = source.imbalance if imbalance is None else imbalance
    for of_tail, chosen, default in (
        ("imbalance_type", imbalance_type, "exp"),
        ("imbalance_draw", imbalance_draw, "own"),
    ):
        if imbalance is None and chosen != default:
            raise InputError(f"{arg(of_tail, chosen)} is of the tail of {arg('imbalance')}: pass that too")
    for option, value in given.items():
        if value is not None and option not in (*source.takes, "root"):
            raise InputError(f"{arg(option, value)} does not apply to {name}: leave it out")
    samples = source.read(split, **{option: given[option] for option in source.takes})
    options = dict(samples.options)
    if normalize is not None:
        options["normalize"] = normalize
        samples = _normalised(samples, normalize)
    if imbalance is not None:
        options |= {"imbalance": _ratio(imbalance), "imbalance_type": imbalance_type, "seed": seed}
        options |= {} if imbalance_draw == "own" else {"imbalance_draw": imbalance_draw}  # older files do not have it
        samples = _long_tailed(samples, imbalance, imbalance_type, imbalance_draw, seed)
    return dataclasses.replace(samples, options=options)


def from_dataset(
    dataset: Any,
    *,
    name: str = "dataset",
    split: str = "train",
    class_names: Sequence[str] | None = None,
    class_counts: Sequence[int] | np.ndarray | None = None,
) -> Samples:
    """Make samples from a user's own data, unchanged.

    Data below 1 GiB are read once and kept in memory. For larger data only the labels are: from `dataset.targets` or
    `dataset.labels` if these agree with the items, otherwise by reading every item once.

    Args:
        dataset: a map-style data set of items (input, label), a TensorDataset, or a tuple (inputs, labels) of
            tensors. Inputs are tensors or arrays of one shape; integers, such as tokens, remain integers.
        name: for messages and results.
        split: for messages and results.
        class_names: (C,); None means `dataset.classes` or `dataset.class_names`, or else "0", "1", ...
        class_counts: (C,) training samples of each class; None means `dataset.class_counts`, or else the counts of
            these labels. For another split than "train" they are unknown then, see `Samples.counts_known`.

    Returns:
        The samples.

    Raises:
        DataError: no samples, no random access, random items, an item that is not a pair, an input that is not
            a tensor or array, or a label that is not an integer from 0 to C - 1.
    """
    inputs, lazy, labels = items.collect(dataset)
    declared = class_names if class_names is not None else items.attribute(dataset, "classes", "class_names")
    counts = class_counts if class_counts is not None else items.attribute(dataset, "class_counts")
    known = split == "train" or counts is not None
    names, counts = items.classes(labels, declared, counts, name)
    return Samples(
        name=name,
        split=split,
        inputs=inputs,
        dataset=lazy,
        labels=labels,
        class_names=names,
        class_counts=counts,
        counts_known=known,
        options={"name": name, "split": split},
    )


def long_tailed_counts(
    n_max: int, n_classes: int, imbalance: float, kind: str = "exp", drawn: str = "own"
) -> np.ndarray:
    """Return the number of samples of each class in a long-tailed training set.

    "exp": n_k = int(n_max * r^(-k / (C - 1))); "step": n_max in the first C // 2 classes, int(n_max / r) after.

    Args:
        n_max: samples of class 0.
        n_classes: C.
        imbalance: r = n_max / n_min, or its inverse.
        kind: "exp" or "step".
        drawn: a name of `DRAWS`. With "ldam" a class can have one sample fewer, where their code loses it to rounding.

    Returns:
        Counts, (C,) int64.

    Raises:
        InputError: a ratio that is not a positive number, or an unknown kind or draw.

    Source: Cao et al. 2019, "Learning imbalanced datasets with label-distribution-aware margin loss"; Buda et
    al. 2018 for the steps.
    """
    check_choice("imbalance_type", kind, IMBALANCE)
    check_choice("imbalance_draw", drawn, DRAWS)
    ratio, exponents = _ratio(imbalance), IMBALANCE[kind](n_classes)
    if drawn == "ldam":  # with Python's numbers, as NumPy's powers may differ from them in the last digit
        return np.array([int(n_max * (1 / ratio) ** x) for x in exponents.tolist()], dtype=np.int64)
    exact = n_max * ratio**-exponents
    return np.floor(exact * (1 + 1e-12)).astype(np.int64)  # 4900 / 49 must not become 99 by rounding


def _ratio(imbalance: float) -> float:
    if not (math.isfinite(imbalance) and imbalance > 0):
        raise InputError(f"{arg('imbalance')} must be a positive number, such as 100 or 0.01, got {imbalance}")
    return float(imbalance) if imbalance >= 1 else 1 / imbalance


def _long_tailed(samples: Samples, imbalance: float, kind: str, drawn: str, seed: int) -> Samples:
    check_classes(samples, "imbalance", imbalance)
    if samples.split == "train":  # the data may have fewer samples than the owner's training set
        available = np.bincount(samples.labels, minlength=len(samples.class_names))
    else:
        available = samples.class_counts
    wanted = long_tailed_counts(int(available.max()), len(available), imbalance, kind, drawn)
    for c in np.flatnonzero(wanted == 0)[:1]:
        raise InputError(
            f"{arg('imbalance', imbalance)} leaves class {c} ({samples.class_names[c]}) no sample: "
            f"the largest class has {available.max()}; choose a ratio below that"
        )
    for c in np.flatnonzero(available < wanted)[:1]:
        raise DataError(
            f"class {c} ({samples.class_names[c]}) has {available[c]} training samples, {arg('imbalance', imbalance)} "
            f"needs {wanted[c]}: leave out {arg('imbalance')} if {samples.name} is long-tailed already"
        )
    if samples.split == "train":
        samples = samples.select(DRAWS[drawn](samples.labels, wanted, seed))
    return dataclasses.replace(samples, class_counts=wanted)


def _normalised(samples: Samples, text: str) -> Samples:
    if isinstance(samples, Records):  # of which a batch is returned as the data set's own code made it
        raise InputError(
            f"{arg('normalize', text)} is for images with one class each: let {samples.name} normalise its items, and "
            f"leave out {arg('normalize')}"
        )
    first, _ = dataclasses.replace(samples, mean=None, std=None).batch(np.zeros(1, dtype=np.int64))
    if first.dtype != torch.uint8 or first.ndim != 4:
        raise InputError(
            f"{arg('normalize', text)} is for uint8 images (channels, height, width); "
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
            raise InputError(f"{arg('normalize')} must be imagenet, none or m,m,m/s,s,s; got {text!r}") from None
    if not len(mean) == len(std) == channels:
        raise InputError(
            f"{arg('normalize', text)} has {len(mean)} means and {len(std)} standard deviations, {samples.name} has "
            f"{channels} channels: give one of each for each channel"
        )
    if not all(math.isfinite(v) for v in mean + std) or min(std) <= 0:
        raise InputError(f"{arg('normalize', text)}: means must be finite and standard deviations positive")
    return dataclasses.replace(samples, mean=mean, std=std)


def _known(split: str) -> str:
    if split not in {"train", "test"}:
        raise InputError(f"{arg('split')} must be train or test, got {split!r}")
    return split


# Digits ----------------------------------------------------------------------------------------------------------


def _digits(split: str) -> Samples:
    split = _known(split)
    # The file that sklearn.datasets.load_digits reads; reading it directly takes a twentieth of the time of that
    # import.
    file = metadata.distribution("scikit-learn").locate_file("sklearn/datasets/data/digits.csv.gz")
    table = np.loadtxt(str(file), delimiter=",")
    labels = table[:, -1].astype(np.int64)
    smallest = np.bincount(labels).min()  # 174: with this number in every class, the formula works for any seed
    order = np.random.default_rng(0).permutation(len(labels))
    rank = np.empty(len(labels), dtype=np.int64)
    for c in range(10):
        members = order[labels[order] == c]
        rank[members] = np.arange(len(members))
    inside = rank < DIGITS_TEST if split == "test" else (rank >= DIGITS_TEST) & (rank < smallest)
    scans = np.round(table[inside, :-1].reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)  # from levels 0 to 16
    return Samples(
        name="digits-lt",
        split=split,
        inputs=torch.from_numpy(scans)[:, None],
        dataset=None,
        labels=labels[inside],
        class_names=tuple(str(c) for c in range(10)),
        class_counts=np.full(10, smallest - DIGITS_TEST),
        mean=DIGITS[0],
        std=DIGITS[1],
        options={"name": "digits-lt", "split": split},
    )


# Files -----------------------------------------------------------------------------------------------------------


def _folder(name: str, root: str | os.PathLike[str] | None, held: str) -> Path:
    if root is None:
        raise DataError(f"{name} needs {arg('data_root')}, the folder that holds {held} (nothing is downloaded)")
    if not Path(root).is_dir():
        raise DataError(f"{name}: {arg('data_root', os.fspath(root))} is not a folder")
    return Path(root)


def _cifar(name: str, split: str, root: str | os.PathLike[str] | None) -> Samples:
    folder = _folder(name, root, cifar.RELEASES[name].folder)
    found = cifar.read(name, folder, _known(split))
    return Samples(
        name=name,
        split=split,
        inputs=torch.from_numpy(found.pixels),
        dataset=None,
        labels=found.labels,
        class_names=found.class_names,
        class_counts=found.train_counts,
        mean=CIFAR[0],
        std=CIFAR[1],
        options={"name": name, "split": split, "root": os.path.abspath(folder)},
    )


def _images(
    name: str,
    split: str,
    root: str | os.PathLike[str] | None,
    image_size: int | None,
    train_list: str | os.PathLike[str] | None = None,
    test_list: str | os.PathLike[str] | None = None,
) -> Samples:
    folder = _folder(name, root, "the images")
    size = 224 if image_size is None else image_size
    if size < 1:
        raise InputError(f"{arg('image_size')} must be at least 1 pixel, got {size}")
    lists = images.find_lists(folder, _known(split), train_list, test_list) if name == "image-list" else {}
    others: dict[str, Path] = {}
    if lists and test_list is not None:  # which a checkpoint states, although training images do not need it
        with suppress(DataError):
            others = images.find_lists(folder, "test", train_list, test_list)
    found = images.read_lists(folder, split, size, lists) if lists else images.read_folder(folder, split, size)
    return Samples(
        name=name,
        split=split,
        inputs=None,
        dataset=found.files,
        labels=found.files.labels,
        class_names=found.class_names,
        class_counts=found.train_counts,
        mean=IMAGENET[0],
        std=IMAGENET[1],
        options={
            "name": name,
            "split": split,
            "root": os.path.abspath(folder),
            "image_size": size,
            **{option: str(file) for option, file in {**others, **lists}.items()},
        },
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """A data set that `load` can load by name."""

    read: Callable[..., Samples]  # of the split and of the options that it takes
    takes: tuple[str, ...] = ()  # options of `load` that are passed to it, by name
    imbalance: float | None = None  # of the training set if `load` is called without one
    mirrors: bool = True  # a mirrored image has the same label, unlike that of a digit: training may mirror it


DATASETS: dict[str, Source] = {
    "digits-lt": Source(read=_digits, imbalance=DIGITS_IMBALANCE),
    **{name: Source(read=partial(_cifar, name), takes=("root",)) for name in cifar.RELEASES},
    "image-list": Source(read=partial(_images, "image-list"), takes=("root", "image_size", "train_list", "test_list")),
    "image-folder": Source(read=partial(_images, "image-folder"), takes=("root", "image_size")),
}
"""The data sets by name; help and errors read the names here."""


# Users' own ------------------------------------------------------------------------------------------------------


def _own(name: str, split: str, *, take: Callable[..., Samples]) -> Samples:
    build, args, kwargs = resolve_call(name, "dataset")
    try:
        parameters = list(inspect.signature(build).parameters.values())
    except ValueError:  # some callables written in C have no signature
        parameters = []
    takes_split = any(p.name == "split" or p.kind is p.VAR_KEYWORD for p in parameters)
    if split != "train" and not takes_split:
        raise InputError(
            f"{arg('split', split)}: {name} has no argument 'split'; give it one, or leave out {arg('split')}"
        )

    def built(of: str) -> Any:
        with failures_of(lambda: f"{arg('dataset', name)} fails"):
            return build(*args, **(kwargs | ({"split": of} if takes_split else {})))

    dataset = built(split)
    if split == "train" or items.attribute(dataset, "class_counts") is not None:
        return take(dataset, name=name, split=split)
    train = take(built("train"), name=name)
    if not train.class_names:
        return take(dataset, name=name, split=split)
    return take(dataset, name=name, split=split, class_names=train.class_names, class_counts=train.class_counts)
