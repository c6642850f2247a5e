"""Small copies of samples that are images, for figures."""

from collections.abc import Sequence

import numpy as np
import torch
from torch.nn import functional

from landscape.data import items
from landscape.data.records import Records
from landscape.data.samples import Samples

SIDE = 48
"""Pixels of the longer side; larger images are averaged down to it."""


def thumbnails(samples: Samples, indices: Sequence[int]) -> np.ndarray | None:
    """Return small copies of images, before normalisation.

    Args:
        samples: the data.
        indices: positions of the images.

    Returns:
        uint8 (n, height, width, channels) with one channel or three; None if the samples are no images. Float images
        are scaled from their smallest to their largest value, with the same scale for all.
    """
    if samples.inputs is not None:
        raw = samples.inputs[torch.as_tensor(indices, dtype=torch.int64)]
    elif isinstance(samples, Records):
        raw = samples.batch(np.asarray(indices))[0]
        if not isinstance(raw, torch.Tensor):
            return None
    else:
        found = items.inputs(samples.dataset, indices)
        if any(one.shape != found[0].shape for one in found):
            return None
        raw = torch.stack(found)
    if raw.ndim != 4 or raw.shape[1] not in {1, 3} or raw.dtype in {torch.bool, torch.int64, torch.int32}:
        return None
    pixels = raw.float().cpu()
    if raw.dtype != torch.uint8:
        low, high = pixels.min(), pixels.max()
        if not torch.isfinite(high - low):
            return None
        pixels = (pixels - low) * (255 / (high - low) if high > low else 0.0)
    longest = max(pixels.shape[2:])
    if longest > SIDE:
        height, width = (max(1, round(side * SIDE / longest)) for side in pixels.shape[2:])
        pixels = functional.interpolate(pixels, size=(height, width), mode="area")
    return pixels.round().clamp(0, 255).byte().permute(0, 2, 3, 1).contiguous().numpy()
