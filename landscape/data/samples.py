"""N labelled samples in a fixed order, in memory or in a data set that reads them one by one."""

import dataclasses
import hashlib
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch.utils.data import Subset

from landscape import callables
from landscape.autodiff.wide import sent
from landscape.data import images, items
from landscape.errors import DataError, InputError, arg

Stats = tuple[float, ...]
"""Mean or standard deviation of each channel."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Samples:
    """N labelled samples in a fixed order, either in `inputs` or in `dataset`.

    `load(**options)` loads the set again, without the effect of `select`, which only the fingerprint includes.
    """

    name: str
    split: str
    inputs: torch.Tensor | None  # (N, ...) in memory; images are uint8 (N, channels, height, width)
    dataset: Any | None  # map-style, items (input, label), for what does not fit in memory
    labels: np.ndarray  # (N,) int64
    class_names: tuple[str, ...]  # (C,)
    class_counts: np.ndarray  # (C,) int64, TRAINING samples of each class, whichever split this is
    counts_known: bool = True  # False: those are counts of these samples, of another split than that of training
    mean: Stats | None = None  # per channel, for uint8 images; None leaves the inputs unchanged
    std: Stats | None = None
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()  # sentences about what was changed or left out

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        classes = f" of {len(self.class_names)} classes" if self.class_names else ""
        return f"<{type(self).__name__}: {self.name}, {self.split} split, {len(self):,} samples{classes}>"

    @property
    def trained(self) -> np.ndarray:
        """Training samples of each class, (C,); nan where they are unknown."""
        return self.class_counts if self.counts_known else np.full(len(self.class_counts), np.nan)

    @property
    def in_channels(self) -> int | None:
        """Number of channels of the images; None if the inputs are no images (channels, height, width)."""
        inputs: object = self.batch(np.zeros(1, dtype=np.int64))[0]  # of a subclass, a tree
        return inputs.shape[1] if isinstance(inputs, torch.Tensor) and inputs.ndim == 4 else None

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the inputs, labels and normalisation.

        For inputs in memory it includes all bytes; for image files the paths below the root, the sizes and the crop;
        for users' data that do not fit in memory the first eight inputs, because reading all would take too long.
        """
        digest = hashlib.sha256(repr((self.mean, self.std)).encode())
        digest.update(np.ascontiguousarray(self.labels).data)
        if self.inputs is not None:
            digest.update(items.described(self.inputs))
        elif isinstance(self.dataset, images.ImageFiles):
            digest.update(self.dataset.description().encode())
        else:
            for value in items.inputs(self.dataset, range(min(items.FIRST_FEW, len(self)))):
                digest.update(items.described(value))
        return digest.hexdigest()

    @callables.checked
    def batch(
        self,
        indices: np.ndarray | torch.Tensor,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return some samples, normalised, on a device.

        Args:
            indices: (B,) positions of the samples.
            device: of the returned tensors; None keeps the device of the inputs, also for the labels.
            dtype: of floating-point inputs and normalised images; integers, such as tokens, keep their own dtype.

        Returns:
            Inputs (B, ...) and labels (B,) int64.

        Raises:
            DataError: a sample cannot be read, or its shape differs from the others'.
        """
        order = positions(indices)
        if self.inputs is not None:
            inputs = self.inputs.index_select(0, torch.from_numpy(order).to(self.inputs.device))
        else:
            inputs = items.stack(order.tolist(), items.inputs(self.dataset, order.tolist()))
        inputs = inputs if device is None else sent(inputs, torch.device(device))
        if self.mean is not None and self.std is not None:
            shape = (-1, *[1] * (inputs.ndim - 2))
            mean = torch.tensor(self.mean, dtype=dtype, device=inputs.device).view(shape)
            std = torch.tensor(self.std, dtype=dtype, device=inputs.device).view(shape)
            inputs = inputs.to(dtype).div_(255).sub_(mean).div_(std)
        elif inputs.is_floating_point():
            inputs = inputs.to(dtype)
        return inputs, torch.from_numpy(self.labels[order]).to(inputs.device)

    @callables.checked
    def select(self, indices: np.ndarray | torch.Tensor | Sequence[int]) -> "Samples":
        """Return some of the samples, in the given order; the classes and their training counts do not change.

        Args:
            indices: positions of the samples.

        Returns:
            Samples that share no memory with these, except for decoded images.

        Raises:
            InputError: a position does not exist.
            DataError: nothing is selected.
        """
        order = self.checked(indices)
        inputs, dataset = self.inputs, self.dataset
        if inputs is not None:
            inputs = inputs.index_select(0, torch.from_numpy(order).to(inputs.device))
        elif isinstance(dataset, images.ImageFiles):
            dataset = dataset.select(order)
        else:
            dataset = Subset(dataset, order.tolist())  # type: ignore[arg-type]  # a list will do as well
        return dataclasses.replace(self, inputs=inputs, dataset=dataset, labels=self.labels[order])

    def checked(self, indices: np.ndarray | torch.Tensor | Sequence[int]) -> np.ndarray:
        """Return positions as an array.

        Args:
            indices: positions of samples.

        Returns:
            The same, (B,) int64.

        Raises:
            InputError: a position does not exist.
            DataError: there are no positions.
        """
        order = positions(indices)
        if not order.size:
            raise DataError(f"no sample of {self.name} ({self.split}) is selected")
        if order.min() < 0 or order.max() >= len(self):
            raise InputError(f"samples are 0 to {len(self) - 1}, asked for {order.min()} to {order.max()}")
        return order

    def on(self, device: torch.device) -> "Samples":
        """Return the samples with their tensors on a device."""
        return self if self.inputs is None else dataclasses.replace(self, inputs=sent(self.inputs, device))

    @callables.checked
    def subsample(self, per_class: int, seed: int = 0) -> "Samples":
        """Draw at most `per_class` samples of each class; smaller classes keep all their samples.

        Args:
            per_class: at least 1. A larger number with the same seed draws a superset.
            seed: of the draw.

        Returns:
            The drawn samples, in their original order.

        Raises:
            InputError: `per_class` is below 1, the seed is negative, or the samples have no classes.
        """
        if per_class < 1:
            raise InputError(f"{arg('samples_per_class')} must be at least 1, got {per_class}")
        check_classes(self, "samples_per_class", per_class)
        wanted = np.full(len(self.class_names), per_class)
        return self.select(draw(self.labels, wanted, seed))


def check_classes(samples: Samples, name: str, value: object) -> None:
    """Raise InputError if samples have no classes, of which an argument draws some of each."""
    if not samples.class_names:
        raise InputError(f"{arg(name, value)} draws samples of each class, and those of {samples.name} have none")


def check_counts(samples: Samples, name: str, value: object) -> None:
    """Raise InputError if the training samples of each class are unknown, by which an argument goes."""
    if not samples.counts_known:
        raise InputError(
            f"{arg(name, value)} goes by the training samples of each class, which {samples.name} ({samples.split} "
            "split) does not state: give class_counts, as an argument or an attribute of the data set"
        )


def positions(indices: np.ndarray | torch.Tensor | Sequence[int]) -> np.ndarray:
    """Return positions as an array of integers."""
    return np.asarray(indices.cpu() if isinstance(indices, torch.Tensor) else indices, dtype=np.int64)


def draw(labels: np.ndarray, wanted: np.ndarray, seed: int) -> np.ndarray:
    """Return the positions, in ascending order, of up to wanted[c] samples drawn of each class c."""
    if seed < 0:
        raise InputError(f"{arg('data_seed')} must not be negative, got {seed}")
    drawn = [
        # one generator per class, and the first entries of a permutation: draws of different sizes are nested
        np.random.default_rng([seed, c]).permutation(np.flatnonzero(labels == c))[:n]
        for c, n in enumerate(wanted)
    ]
    return np.sort(np.concatenate(drawn))


def draw_as_ldam(labels: np.ndarray, wanted: np.ndarray, seed: int) -> np.ndarray:
    """Return positions as `draw` does, but of the samples that the code of LDAM-DRW keeps with rand_number=seed.

    Args:
        labels: (N,), in the original order of the data set.
        wanted: (C,) samples to keep of each class.
        seed: from 0 to 2^32 - 1.

    Returns:
        Positions in ascending order; their code returns class after class.

    Raises:
        InputError: a seed that their generator does not accept.

    Source: imbalance_cifar.py of kaidic/LDAM-DRW, which many repositories for long tails contain.
    """
    if not 0 <= seed < 2**32:
        raise InputError(f"{arg('data_seed')} must be from 0 to {2**32 - 1} for the draw of LDAM, got {seed}")
    rng = np.random.RandomState(seed)  # one for all classes, which draw from it in their order
    drawn = []
    for c, n in enumerate(wanted):
        own = np.flatnonzero(labels == c)
        rng.shuffle(own)
        drawn.append(own[:n])
    return np.sort(np.concatenate(drawn))


def split_validation(samples: Samples, share: float, seed: int) -> tuple[Samples, Samples]:
    """Hold out a fraction of each class for validation.

    Args:
        samples: a training set.
        share: fraction of each class, between 0 and 1; the number is rounded. From a class with several samples, at
            least one is held out and at least one remains; a single sample remains.
        seed: of the draw, at least 0.

    Returns:
        The remaining training samples and the validation samples, in their original order; the class counts of both
        are those of the remaining training samples.

    Raises:
        InputError: the share or the seed does not fit.
        DataError: no class has two samples.
    """
    if not 0 < share < 1:
        raise InputError(f"{arg('validation')} must be a share between 0 and 1, got {share}")
    if seed < 0:
        raise InputError(f"{arg('data_seed')} must not be negative, got {seed}")
    held = []
    for c in range(len(samples.class_names)):
        members = np.flatnonzero(samples.labels == c)
        n = min(max(round(share * len(members)), 1), len(members) - 1)
        held.append(np.random.default_rng([seed, c]).permutation(members)[: max(n, 0)])
    chosen = np.sort(np.concatenate(held))
    if not chosen.size:
        raise DataError(f"no class of {samples.name} has two samples: there is nothing to hold out")
    kept = np.setdiff1d(np.arange(len(samples)), chosen)
    counts = np.bincount(samples.labels[kept], minlength=len(samples.class_names))
    train, validation = (dataclasses.replace(samples.select(of), class_counts=counts) for of in (kept, chosen))
    return train, validation
