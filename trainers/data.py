"""The data and the model of a run, and the fields of a recipe that the data determine."""

import dataclasses

import numpy as np
import torch
from torch import nn

from landscape.autodiff.wide import sent
from landscape.data import datasets
from landscape.data.datasets import Samples
from landscape.data.samples import split_validation
from landscape.errors import DataError, InputError, arg
from landscape.networks import models
from trainers.loop import FIRST, seeded
from trainers.recipes import Recipe


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Data:
    """The data of a run: training, test and validation samples."""

    whole: Samples  # the training set as it can be loaded again
    train: Samples  # the training samples in it
    validation: Samples | None
    test: Samples

    def moved(self, device: torch.device) -> "Data":
        """Move the inputs that are in memory to a device; `whole` is not moved."""

        def move(samples: Samples) -> Samples:
            if samples.inputs is None or device.type == "cpu":
                return samples
            return dataclasses.replace(samples, inputs=sent(samples.inputs, device))

        validation = None if self.validation is None else move(self.validation)
        return dataclasses.replace(self, train=move(self.train), validation=validation, test=move(self.test))


def load(recipe: Recipe) -> tuple[Recipe, Data]:
    """Load the data and set the fields of a recipe that depend on them.

    Args:
        recipe: may have fields that the data determine.

    Returns:
        The recipe with its views set, and the data.

    Raises:
        InputError: the recipe does not fit the data.
        DataError: the data cannot be found or used, or have values that are not finite.
    """
    of_images = {name: getattr(recipe, name) for name in ("train_list", "test_list", "image_size")}
    whole, test = (
        datasets.load(
            recipe.dataset,
            root=recipe.data_root,
            split=split,
            imbalance=recipe.imbalance,
            imbalance_type=recipe.imbalance_type,
            imbalance_draw=recipe.imbalance_draw,
            seed=recipe.data_seed,
            normalize=recipe.normalize,
            **of_images,
        )
        for split in ("train", "test")
    )
    return fitted(recipe, whole, test)


def fitted(recipe: Recipe, whole: Samples, test: Samples) -> tuple[Recipe, Data]:
    """Set the fields of a recipe that depend on the data; see `load`."""
    if whole.class_names != test.class_names:
        raise DataError(
            f"{whole.name} has {len(whole.class_names)} classes in its train split and {len(test.class_names)} in its "
            "test split, or other names: both must have the same"
        )
    for samples in (whole, test):
        _refuse_not_finite(samples)
    n_classes = len(whole.class_names)
    if recipe.grouped and recipe.groups > n_classes:
        raise InputError(
            f"{arg('groups', recipe.groups)} are more than the {n_classes} classes of {whole.name}: lower it"
        )
    train, validation = whole, None
    if recipe.validation:
        train, validation = split_validation(whole, recipe.validation, recipe.data_seed)
    for c in np.flatnonzero(np.bincount(train.labels, minlength=n_classes) == 0) if recipe.grouped else ():
        raise InputError(
            f"class {c} ({whole.class_names[c]}) of {whole.name} has no training samples: "
            f"{arg('sharpness', 'gsa')} and {arg('gkp', True)} "
            "group classes by their samples; leave the class out"
        )
    return dataclasses.replace(recipe, augment=recipe.augment or _views(recipe, whole)), Data(
        whole=whole, train=train, validation=validation, test=test
    )


def _refuse_not_finite(samples: Samples) -> None:
    if samples.inputs is None or not samples.inputs.is_floating_point():
        return
    finite = samples.inputs.isfinite().reshape(len(samples), -1).all(dim=1)
    if not finite.all():
        bad = (~finite).nonzero().flatten()
        raise DataError(
            f"{len(bad)} of {len(finite)} samples of {samples.name} ({samples.split}) hold what is not finite, first "
            f"sample {int(bad[0])}: leave them out or mend them"
        )


def _views(recipe: Recipe, samples: Samples) -> str:
    """Choose the augmentations: crop and flip for small colour images, and strong augmentations for bcl."""
    n = 3 if recipe.loss == "bcl" else 1
    inputs, _ = samples.batch(np.zeros(1, dtype=np.int64))
    if samples.mean is None or inputs.ndim != 4:
        if n == 3:
            raise InputError(
                f"{arg('loss', 'bcl')} needs three augmented views, of uint8 images with a normalisation, which "
                f"{samples.name} has not: if its images are uint8, give {arg('normalize')}"
            )
        return "none"
    source = datasets.DATASETS.get(recipe.dataset)
    square = inputs.shape[1] == 3 and inputs.shape[2] == inputs.shape[3]
    if square and source is not None and not source.mirrors:  # all other views of colour images mirror half of them
        return ",".join(["crop"] * n)
    if not square:
        return "none" if n == 1 else "crop,crop,crop"
    if samples.inputs is None:
        return "imagenet" if n == 1 else "imagenet-randaugment,simclr-imagenet,simclr-imagenet"
    return "crop-flip" if n == 1 else "autoaugment,simclr,simclr"


def build(recipe: Recipe, samples: Samples, own: nn.Module | None = None) -> tuple[nn.Module, int | None]:
    """Build the model for the data, and return the number of channels of the images; None if they are no images.

    Args:
        recipe: of the run.
        samples: of the data.
        own: a model to use instead.

    Returns:
        The model with its initial weights, which depend only on the recipe's seed, and the number of channels.

    Raises:
        InputError: the model does not fit the data.
    """
    in_channels = samples.in_channels
    if own is not None:
        return own, in_channels
    if in_channels is None and ":" not in recipe.model:
        inputs, _ = samples.batch(np.zeros(1, dtype=np.int64))
        raise InputError(
            f"{arg('model', recipe.model)} is for images (channels, height, width), {samples.name} has inputs "
            f"{tuple(inputs.shape[1:])}: pass {arg('model', 'package.module:callable')}"
        )
    with seeded(torch.device("cpu"), recipe.seed, FIRST):
        n_classes = len(samples.class_names)
        model = models.build(recipe.model, n_classes, in_channels=in_channels, cosine=bool(recipe.cosine))
        return model, in_channels
