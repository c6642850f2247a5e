"""Training batches, in one or several views, augmented and normalised on the device.

Images in memory are moved to the device once, as bytes. Worker processes read image files and return the deterministic
part: the central square of the image, resized so that its shorter side is size * 256 / 224. The random crops to `size`
are made from this square on the device; its central crop is the image that analyses use. All random draws are made in
the main process, so results do not depend on the number of workers.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from landscape.autodiff.wide import sent
from landscape.data import items
from landscape.data.datasets import Samples
from landscape.data.images import ImageFiles, resized
from landscape.errors import DataError, InputError, arg
from trainers import augment


class Batches:
    """N training samples in batches.

    A batch is (views, labels): for each augmentation a tensor (B, ...), and (B,) int64, all on the device. The view
    "none" is `Samples.batch`, bit for bit.
    """

    def __init__(
        self,
        samples: Samples,
        views: Sequence[str],
        device: torch.device,
        dtype: torch.dtype = torch.float32,
        workers: int = 0,
    ) -> None:
        """Move samples in memory to the device.

        Args:
            samples: the training samples.
            views: names of `augment.names()`, at least one; all except "none" need square images of bytes.
            device: of the batches.
            dtype: of floating-point inputs and normalised images.
            workers: number of processes that read image files, or users' data that do not fit in memory; 0 reads them
                in this process.

        Raises:
            InputError: no view, an augmentation that does not exist or does not fit the samples, or a negative number
                of workers.
            DataError: the first sample cannot be read.
        """
        if workers < 0:
            raise InputError(f"{arg('workers')} must not be negative, got {workers}")
        if not views:
            raise InputError("batches need at least one view, such as none")
        self.class_counts = samples.class_counts
        self._device, self._dtype, self._workers = device, dtype, workers
        self._labels = torch.from_numpy(samples.labels).to(device)
        self._inputs = None if samples.inputs is None else sent(samples.inputs, device)
        source = samples.dataset
        self._reader = _Reader(_Squares(source) if isinstance(source, ImageFiles) else source)
        self._changes = [_change(name, samples) for name in views]
        self._scale: tuple[Tensor, Tensor] | None = None
        if samples.mean is not None and samples.std is not None:
            mean, std = (
                torch.tensor(v, dtype=dtype, device=device)[:, None, None] for v in (samples.mean, samples.std)
            )
            self._scale = mean, std

    def __len__(self) -> int:
        return len(self._labels)

    def get(self, indices: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
        """Return one batch.

        Args:
            indices: (B,) positions of the samples.

        Returns:
            The views, each (B, ...), and the labels (B,) int64.

        Raises:
            DataError: a sample cannot be read.
            InputError: the images do not fit an augmentation.
        """
        place = indices.to(self._device, non_blocking=True)
        if self._inputs is not None:
            inputs = self._inputs.index_select(0, place)
        else:
            inputs = self._received(self._reader[indices.tolist()])
        return self._views(inputs), self._labels.index_select(0, place)

    def epoch(self, pieces: Sequence[Tensor]) -> Iterator[tuple[tuple[Tensor, ...], Tensor, Tensor]]:
        """Yield batch after batch; workers read files ahead.

        Args:
            pieces: for each batch, the positions of its samples, (B,).

        Yields:
            The views and the labels, as from `get`, and the positions.

        Raises:
            DataError: a sample cannot be read.
            InputError: the images do not fit an augmentation.
        """
        if self._inputs is not None:
            for indices in pieces:
                yield *self.get(indices), indices
            return
        loader: DataLoader[Tensor | DataError] = DataLoader(
            self._reader,  # type: ignore[arg-type]  # has what a data set has
            batch_size=None,  # the items are whole batches
            sampler=[indices.tolist() for indices in pieces],
            num_workers=self._workers,
            pin_memory=self._device.type == "cuda",
            generator=torch.Generator(),  # otherwise it would draw from the global generator
        )
        for indices, read in zip(pieces, loader, strict=True):
            labels = self._labels.index_select(0, indices.to(self._device, non_blocking=True))
            yield self._views(self._received(read)), labels, indices

    def _received(self, read: Tensor | DataError) -> Tensor:
        if isinstance(read, DataError):
            raise read
        return read.to(self._device, non_blocking=True)

    def _views(self, inputs: Tensor) -> tuple[Tensor, ...]:
        if self._scale is None:
            inputs = inputs.to(self._dtype) if inputs.is_floating_point() else inputs
            return (inputs,) * len(self._changes)
        mean, std = self._scale
        images = inputs.to(self._dtype).div_(255)
        return tuple((change(images) - mean).div_(std) for change in self._changes)


def _change(name: str, samples: Samples) -> augment.Augmentation:
    """Return an augmentation for these samples; without augmentation, any inputs are allowed."""
    if isinstance(samples.dataset, ImageFiles):
        return augment.build(name, samples.dataset.size)
    if name == "none":
        return lambda images: images
    example = samples.inputs[0] if samples.inputs is not None else items.inputs(samples.dataset, [0])[0]
    kind, shape = str(example.dtype).removeprefix("torch."), tuple(example.shape)
    if example.dtype != torch.uint8 or example.ndim != 3 or shape[1] != shape[2]:
        raise InputError(
            f"{arg('augment', name)} is for square uint8 images (channels, size, size); "
            f"{samples.name} has {kind} inputs {shape}: use {arg('augment', 'none')}"
        )
    if samples.mean is None:
        raise InputError(
            f"{arg('augment', name)} of {samples.name} needs {arg('normalize')}, such as {arg('normalize', 'none')}"
        )
    return augment.build(name, shape[1])


@dataclasses.dataclass(frozen=True)
class _Reader:
    """Reads whole batches. An error is returned, not raised: from a worker it would arrive as a long traceback."""

    dataset: Any

    def __getitem__(self, order: list[int]) -> Tensor | DataError:
        try:
            return items.stack(order, items.inputs(self.dataset, order))
        except DataError as error:
            return error


@dataclasses.dataclass(frozen=True)
class _Squares:
    """The items of `ImageFiles` with a margin: squares with the whole shorter side of the resized image."""

    files: ImageFiles

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        path, size = self.files.root / self.files.paths[i], self.files.size
        image = resized(path, size)
        shorter = min(image.size)
        margin = round((shorter - size) / 2)  # because the square is cropped again: its centre is that of `ImageFiles`
        left, top = (round((side - size) / 2) - margin for side in image.size)
        square = image.crop((left, top, left + shorter, top + shorter))
        return torch.from_numpy(np.array(square)).permute(2, 0, 1).contiguous(), int(self.files.labels[i])
