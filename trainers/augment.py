"""Random augmentation of training images, on their device and before normalisation.

Each image of a batch has its own random draws; only the order of the four steps of a colour jitter is common to a
batch. All draws come from torch's global generator on the CPU, on whatever device the images are: with the same state
of the generator, the images are the same, bit for bit.

kornia has AutoAugment and RandAugment too, but it draws one policy for the whole batch, shears by an angle of up to 54
degrees where the paper says 0.3 (17 degrees), weakens solarisation where it should strengthen it, and adds where
Pillow, with which the policies were found, multiplies. So the operations below are those of Pillow; kornia computes the
more complex ones.
"""

import functools
import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from landscape.errors import InputError, arg, unknown

Augmentation = Callable[[Tensor], Tensor]
"""(B, channels, H, W) in [0, 1] -> (B, channels, size, size) in [0, 1], of the same type."""

Operation = Callable[[Tensor, Tensor], Tensor]
"""Changes images (B, 3, size, size) by signed strengths (B,) from -1 to 1, which stay on the CPU."""

Change = tuple[str, float, int]
"""Name of an operation, its probability, and its magnitude from 0 to 9."""

Policy = Sequence[tuple[Change, Change]]
"""Pairs of operations, of which each image draws one pair."""

_ANY_CHANNELS = ("none", "crop", "crop-flip")
_COLOURED = ("autoaugment", "autoaugment-released", "simclr", "imagenet", "imagenet-randaugment", "simclr-imagenet")

# Cubuk et al. 2019, "AutoAugment", appendix: the 25 policies found on CIFAR-10, each of two operations.
CIFAR10_POLICY: Policy = (
    (("invert", 0.1, 7), ("contrast", 0.2, 6)),
    (("rotate", 0.7, 2), ("translate_x", 0.3, 9)),
    (("sharpness", 0.8, 1), ("sharpness", 0.9, 3)),
    (("shear_y", 0.5, 8), ("translate_y", 0.7, 9)),
    (("auto_contrast", 0.5, 8), ("equalize", 0.9, 2)),
    (("shear_y", 0.2, 7), ("posterize", 0.3, 7)),
    (("color", 0.4, 3), ("brightness", 0.6, 7)),
    (("sharpness", 0.3, 9), ("brightness", 0.7, 9)),
    (("equalize", 0.6, 5), ("equalize", 0.5, 1)),
    (("contrast", 0.6, 7), ("sharpness", 0.6, 5)),
    (("color", 0.7, 7), ("translate_x", 0.5, 8)),
    (("equalize", 0.3, 7), ("auto_contrast", 0.4, 8)),
    (("translate_y", 0.4, 3), ("sharpness", 0.2, 6)),
    (("brightness", 0.9, 6), ("color", 0.2, 8)),
    (("solarize", 0.5, 2), ("invert", 0.0, 3)),
    (("equalize", 0.2, 0), ("auto_contrast", 0.6, 0)),
    (("equalize", 0.2, 8), ("equalize", 0.6, 4)),
    (("color", 0.9, 9), ("equalize", 0.6, 6)),
    (("auto_contrast", 0.8, 4), ("solarize", 0.2, 8)),
    (("brightness", 0.1, 3), ("color", 0.7, 0)),
    (("solarize", 0.4, 5), ("auto_contrast", 0.9, 3)),
    (("translate_y", 0.9, 9), ("translate_y", 0.7, 9)),
    (("auto_contrast", 0.9, 2), ("solarize", 0.8, 3)),
    (("equalize", 0.8, 8), ("invert", 0.1, 3)),
    (("translate_y", 0.7, 9), ("auto_contrast", 0.9, 1)),
)

GEOMETRIC = ("shear_x", "shear_y", "translate_x", "translate_y", "rotate")


def names() -> tuple[str, ...]:
    """Return the names that `build` knows."""
    return _ANY_CHANNELS + _COLOURED


def build(name: str, size: int) -> Augmentation:
    """Return a random augmentation of images.

    "none" crops the square at the centre. "crop" pads with size // 8 black pixels and crops a random square;
    "crop-flip" also mirrors half of the images (He et al. 2016, section 4.2). "autoaugment" is crop-flip, then the
    policy for CIFAR-10 of Cubuk et al. 2019 and a black square of size // 2 (DeVries and Taylor 2017).
    "autoaugment-released" is the same as in the paper's code: it rotates in one direction only, shears with cubic
    interpolation (with torch's kernel, not Pillow's) and uses the nearest pixel for the other operations. "simclr" is a
    resized crop of 20 to 100 % of the area, mirroring, colour jitter and grey: the views of BCL (Zhu et al. 2022) on
    CIFAR. "imagenet" is a resized crop of 8 to 100 %, mirroring and colour jitter. "imagenet-randaugment" is the same
    with two operations of RandAugment (Cubuk et al. 2020) at full magnitude, as in BCL on ImageNet-LT;
    "simclr-imagenet" is simclr with crops of 8 to 100 %, for its other views.

    Resized crops are bilinear, without the smoothing that a strong reduction would need: images should not be much
    larger than `size`.

    Args:
        name: one of `names()`.
        size: side of the output images in pixels.

    Returns:
        The augmentation. It raises InputError for images that are smaller than `size`, or, if it changes colours, for
        images without three channels.

    Raises:
        InputError: there is no such augmentation, or the size is below 1.
    """
    if name not in names():
        raise InputError(unknown(name, names(), "augmentation", where=f" for {arg('augment')}"))
    if size < 1:
        raise InputError(f"images must have at least 1 pixel a side, got size {size}")
    steps = _steps(name, size)

    def augment(images: Tensor) -> Tensor:
        channels, height, width = images.shape[1:]
        if name in _COLOURED and channels != 3:
            raise InputError(
                f"{arg('augment', name)} changes colours and needs 3 channels, got {channels}: "
                f"choose from {', '.join(_ANY_CHANNELS)}"
            )
        if min(height, width) < size:
            raise InputError(f"images of {height} x {width} pixels are smaller than the size {size} that is cut out")
        with torch.no_grad():
            for step in steps:
                images = step(images)
            return images.clamp(0, 1)

    return augment


def _steps(name: str, size: int) -> Sequence[Augmentation]:
    crop = functools.partial(_crop, size=size, padding=size // 8)
    if name == "none":
        return (functools.partial(_centre, size=size),)
    if name == "crop":
        return (crop,)
    from kornia.augmentation import ColorJitter, RandomGrayscale, RandomHorizontalFlip, RandomResizedCrop  # a second

    def resized(smallest: float) -> Augmentation:
        draw = RandomResizedCrop((size, size), scale=(smallest, 1.0)).forward_parameters
        return functools.partial(_resized_crop, size=size, draw=draw)

    flip = RandomHorizontalFlip(p=0.5)
    jitter, cutout = ColorJitter(0.4, 0.4, 0.4), functools.partial(_cutout, side=size // 2)
    colours = ColorJitter(0.4, 0.4, 0.4, 0.1, p=0.8), RandomGrayscale(p=0.2)
    recipes: dict[str, Sequence[Augmentation]] = {
        "crop-flip": (crop, flip),
        "autoaugment": (crop, flip, _auto_augment, cutout),
        "autoaugment-released": (crop, flip, functools.partial(_auto_augment, released=True), cutout),
        "simclr": (resized(0.2), flip, *colours),
        "simclr-imagenet": (resized(0.08), flip, *colours),
        "imagenet": (resized(0.08), flip, jitter),
        "imagenet-randaugment": (resized(0.08), flip, jitter, _rand_augment),
    }
    return recipes[name]


# Squares ---------------------------------------------------------------------------------------------------------


def _centre(images: Tensor, size: int) -> Tensor:
    top, left = (round((side - size) / 2) for side in images.shape[2:])
    return images[:, :, top : top + size, left : left + size]


def _crop(images: Tensor, size: int, padding: int) -> Tensor:
    padded = F.pad(images, [padding] * 4)
    rows, columns = (
        (torch.randint(side - size + 1, (len(images), 1)) + torch.arange(size)).to(images.device, non_blocking=True)
        for side in padded.shape[2:]
    )
    sample, channel = (torch.arange(n, device=images.device) for n in images.shape[:2])
    return padded[sample[:, None, None, None], channel[:, None, None], rows[:, None, :, None], columns[:, None, None]]


def _resized_crop(images: Tensor, size: int, draw: Callable[[torch.Size], dict[str, Tensor]]) -> Tensor:
    """Resize a box of each image, drawn by kornia, to a square; unlike kornia, for all images at once."""
    corners = draw(images.shape)["src"]  # (B, 4, 2), the pixels (x, y) at the corners, clockwise
    first, last = corners[:, 0], corners[:, 2]
    sides = torch.tensor([images.shape[3], images.shape[2]])
    matrices = torch.diag_embed((last + 1 - first) / sides)  # of the map from the square to the image, both -1 to 1
    shift = (first + last + 1) / sides - 1
    return _looked_up(images, torch.cat([matrices, shift[:, :, None]], dim=2), size, beyond="border")


def _looked_up(images: Tensor, matrices: Tensor, size: int, beyond: str, between: str = "bilinear") -> Tensor:
    """Sample the images at squares mapped by affine maps (B, 2, 3); coordinates are from -1 to 1."""
    shape = [*images.shape[:2], size, size]
    grid = F.affine_grid(matrices.to(images.device, images.dtype, non_blocking=True), shape, align_corners=False)
    return F.grid_sample(images, grid, mode=between, padding_mode=beyond, align_corners=False)


def _cutout(images: Tensor, side: int) -> Tensor:
    """Blacken a square around a random pixel of each image; the square may extend beyond the border."""
    inside = []
    for length in images.shape[2:]:
        first = torch.randint(length, (len(images), 1)) - side // 2
        at = torch.arange(length)
        inside.append(((first <= at) & (at < first + side)).to(images.device, non_blocking=True))
    return images.masked_fill((inside[0][:, :, None] & inside[1][:, None])[:, None], 0)


# Policies --------------------------------------------------------------------------------------------------------


def _auto_augment(images: Tensor, policy: Policy = CIFAR10_POLICY, *, released: bool = False) -> Tensor:
    drawn = torch.randint(len(policy), (len(images),)).tolist()
    for turn in range(2):
        chosen, probabilities, magnitudes = zip(*(policy[i][turn] for i in drawn), strict=True)
        strengths = torch.tensor(magnitudes) / 9 * _signs(len(images))
        images = _operate(images, chosen, strengths, torch.tensor(probabilities), released=released)
    return images


def _rand_augment(images: Tensor) -> Tensor:
    count = len(images)
    # the operations of BCL's code; at its magnitude, solarisation does not change images: "identity"
    known = [name for name in operations() if name != "solarize"]
    for _ in range(2):
        chosen = [known[i] for i in torch.randint(len(known), (count,)).tolist()]
        strengths = (1 + 0.05 * torch.randn(count)).clamp(0, 1)  # magnitude 10 of 10, standard deviation 0.5
        turned = torch.tensor([name in GEOMETRIC for name in chosen])  # the other operations only become stronger
        strengths = torch.where(turned, strengths * _signs(count), strengths)
        images = _operate(images, chosen, strengths, torch.full((count,), 0.5))
    return images


def _signs(count: int) -> Tensor:
    return torch.randint(2, (count,)) * 2 - 1


def _operate(
    images: Tensor, chosen: Sequence[str], strengths: Tensor, probabilities: Tensor, *, released: bool = False
) -> Tensor:
    """Change each image by its own operation, or leave it; the images of one operation are changed together."""
    happens = (torch.rand(len(images)) < probabilities).tolist()
    members: dict[str, list[int]] = {}
    for i, name in enumerate(chosen):
        if happens[i]:
            members.setdefault(name, []).append(i)
    changed = images.clone()
    for name, rows in members.items():
        place = torch.tensor(rows)
        there = place.to(images.device, non_blocking=True)
        part = operations(released)[name](images.index_select(0, there), strengths[place])
        changed.index_copy_(0, there, part.clamp(0, 1))
    return changed


@functools.cache
def operations(released: bool = False) -> dict[str, Operation]:
    """Return the operations of the policies by name; strengths of those without a sign count by their size.

    With `released` rotations have none, and shapes are moved as in the authors' code; see `build`.

    At full strength: shear 0.3, translation by 150 / 331 of the side, rotation by 30 degrees, 4 of 8 bits kept, all
    levels solarised, and for "color", "contrast", "brightness" and "sharpness" the factor 1.9 or 0.1.
    """
    from kornia.enhance import (
        adjust_brightness_accumulative,
        adjust_contrast_with_mean_subtraction,
        adjust_saturation_with_gray_subtraction,
        equalize,
        sharpness,
    )

    far = 2 * 150 / 331  # sides are 2 long
    sheared, moved = (functools.partial(_moved, between=b if released else "bilinear") for b in ("bicubic", "nearest"))
    return {
        # Pillow shears about the corner in the upper left: the border stays where it is
        "shear_x": lambda images, v: sheared(images, v, [[0, 0.3, 0.3], [0, 0, 0]]),
        "shear_y": lambda images, v: sheared(images, v, [[0, 0, 0], [0.3, 0, 0.3]]),
        "translate_x": lambda images, v: moved(images, v, [[0, 0, far], [0, 0, 0]]),
        "translate_y": lambda images, v: moved(images, v, [[0, 0, 0], [0, 0, far]]),
        "rotate": lambda images, v: _warped(
            images,
            _rotations((v.abs() if released else v) * (math.pi / 6)),
            "nearest" if released else "bilinear",
        ),
        "color": lambda images, v: adjust_saturation_with_gray_subtraction(images, 1 + 0.9 * v),
        "contrast": lambda images, v: adjust_contrast_with_mean_subtraction(images, 1 + 0.9 * v),
        "brightness": lambda images, v: adjust_brightness_accumulative(images, 1 + 0.9 * v),
        # Pixels at the border do not change, and images of one or two rows have no others.
        "sharpness": lambda images, v: sharpness(images, 1 + 0.9 * v) if min(images.shape[-2:]) > 2 else images,
        "auto_contrast": lambda images, v: _stretched(images),
        "equalize": lambda images, v: equalize(images),
        "invert": lambda images, v: 1 - images,
        "posterize": lambda images, v: _posterized(images, _each(2 ** (4 * v.abs()).round(), images)),
        "solarize": lambda images, v: _solarized(images, _each((1 - v.abs()) * (256 / 255), images)),
        "solarize_add": lambda images, v: images + _each(v.abs() * (110 / 255), images) * (images < 0.5),
        "identity": lambda images, v: images,
    }


def _each(values: Tensor, images: Tensor) -> Tensor:
    """Convert one value for each image, (B,), to the images' device and type, with a shape that broadcasts."""
    return values.to(images.device, images.dtype, non_blocking=True)[:, None, None, None]


def _moved(images: Tensor, values: Tensor, per_unit: list[list[float]], *, between: str) -> Tensor:
    return _warped(images, torch.eye(2, 3) + values[:, None, None] * torch.tensor(per_unit), between)


def _rotations(angles: Tensor) -> Tensor:
    cosine, sine = angles.cos(), angles.sin()
    zero = torch.zeros_like(angles)
    return torch.stack([cosine, -sine, zero, sine, cosine, zero], dim=1).view(-1, 2, 3)


def _warped(images: Tensor, matrices: Tensor, between: str) -> Tensor:
    """Transform square images by affine maps (B, 2, 3); pixels from outside the image are grey."""
    return _looked_up(images - 0.5, matrices, images.shape[-1], beyond="zeros", between=between) + 0.5


def _stretched(images: Tensor) -> Tensor:
    """Stretch each channel to [0, 1]; a constant channel is not changed."""
    low, high = images.amin((2, 3), keepdim=True), images.amax((2, 3), keepdim=True)
    return torch.where(high > low, (images - low) / (high - low), images)


def _solarized(images: Tensor, threshold: Tensor) -> Tensor:
    return torch.where(images < threshold, images, 1 - images)


def _posterized(images: Tensor, step: Tensor) -> Tensor:
    """Round levels from 0 to 255 down to multiples of a step."""
    levels = (images * 255).round()  # bytes over 255, times 255, may miss the byte by a rounding
    return (levels / step).floor() * step / 255
