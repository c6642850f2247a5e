"""Networks with the parameter names of public checkpoints, and the logits in a network's output.

The CIFAR networks have 6n + 2 layers and shortcuts without parameters (He et al. 2016, "Deep residual learning",
section 4.2, option A), named so that the public weights of akamaster/pytorch_resnet_cifar10 and of the long-tailed
literature fit, as do those of other repositories with convolutions as shortcuts (option B). The ImageNet networks use
torchvision's names.
"""

import inspect
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from landscape.autodiff import trees
from landscape.autodiff.trees import Tree
from landscape.callables import failures_of, resolve_call
from landscape.errors import InputError, arg, unknown
from landscape.networks.libraries import LIBRARIES

COSINE_SCALE = 30.0
"""Factor of cosine logits where none is given: the s of Cao et al. 2019, "Learning imbalanced datasets with
label-distribution-aware margin loss" (LDAM). Their code multiplies within the loss, ours within the network."""

_SHOWN = 3  # number of names of each kind in a message


class NormedLinear(nn.Module):
    """Cosine classifier: logit c is `scale` times the cosine between the features and column c of the weight.

    The weight has the shape (features, classes), as in LDAM's checkpoints: transposed compared with `nn.Linear`.
    """

    def __init__(self, n_features: int, n_classes: int, scale: float = COSINE_SCALE):
        super().__init__()
        self.scale = scale
        self.weight = nn.Parameter(F.normalize(torch.randn(n_features, n_classes), dim=0))

    def forward(self, features: Tensor) -> Tensor:
        """Return logits (B, C) within [-scale, scale] for features (B, F)."""
        return self.scale * F.normalize(features, dim=1) @ F.normalize(self.weight, dim=0)


class CifarBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut: subsampling and zero-padded channels or, if named, a convolution."""

    def __init__(self, n_in: int, n_out: int, stride: int, shortcut: str | None = None):
        super().__init__()
        self.stride = stride
        self.padding = ((n_out - n_in) // 2, n_out - n_in - (n_out - n_in) // 2)
        self.conv1 = nn.Conv2d(n_in, n_out, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(n_out)
        self.conv2 = nn.Conv2d(n_out, n_out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(n_out)
        self.shortcut_name = shortcut if stride > 1 or n_in != n_out else None
        if self.shortcut_name is not None:
            convolution = nn.Conv2d(n_in, n_out, 1, stride, bias=False)
            self.add_module(self.shortcut_name, nn.Sequential(convolution, nn.BatchNorm2d(n_out)))

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, n_in, H, W) to (B, n_out, H / stride, W / stride)."""
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.shortcut_name is not None:
            x = self.get_submodule(self.shortcut_name)(x)
        elif self.stride > 1 or any(self.padding):
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, *self.padding))
        return F.relu(x + y)


class CifarResNet(nn.Module):
    """Residual network for small images: three stages of `n_blocks` blocks, then the classifier `linear`."""

    def __init__(
        self,
        n_classes: int,
        *,
        n_blocks: int,
        widths: tuple[int, int, int] = (16, 32, 64),
        in_channels: int = 3,
        scale: float | None = None,
        shortcut: str | None = None,
    ):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, widths[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.layer1 = self._stage(n_blocks, widths[0], widths[0], 1, shortcut)
        self.layer2 = self._stage(n_blocks, widths[0], widths[1], 2, shortcut)
        self.layer3 = self._stage(n_blocks, widths[1], widths[2], 2, shortcut)
        self.linear = _classifier(widths[2], n_classes, scale)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)

    @staticmethod
    def _stage(n_blocks: int, n_in: int, n_out: int, stride: int, shortcut: str | None) -> nn.Sequential:
        first = CifarBlock(n_in, n_out, stride, shortcut)
        return nn.Sequential(first, *(CifarBlock(n_out, n_out, 1) for _ in range(n_blocks - 1)))

    def forward(self, images: Tensor) -> Tensor:
        """Map images (B, in_channels, H, W) to logits (B, C)."""
        x = F.relu(self.bn1(self.conv1(images)))
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: Tensor = self.linear(x.mean((2, 3)))
        return logits


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions; if sizes change, the shortcut is a 1x1 convolution (option B)."""

    def __init__(self, n_in: int, n_inner: int, n_out: int, stride: int, groups: int):
        super().__init__()
        self.conv1 = nn.Conv2d(n_in, n_inner, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(n_inner)
        self.conv2 = nn.Conv2d(n_inner, n_inner, 3, stride, padding=1, groups=groups, bias=False)
        self.bn2 = nn.BatchNorm2d(n_inner)
        self.conv3 = nn.Conv2d(n_inner, n_out, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(n_out)
        self.downsample: nn.Module | None = None
        if stride > 1 or n_in != n_out:
            self.downsample = nn.Sequential(nn.Conv2d(n_in, n_out, 1, stride, bias=False), nn.BatchNorm2d(n_out))

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, n_in, H, W) to (B, n_out, H / stride, W / stride)."""
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        return F.relu(self.bn3(self.conv3(y)) + (x if self.downsample is None else self.downsample(x)))


class ImageNetResNet(nn.Module):
    """Residual network of 3 + 4 + 6 + 3 bottlenecks for images of about 224 pixels, then the classifier `fc`.

    Source: He et al. 2016, table 1; with groups, Xie et al. 2017, "Aggregated residual transformations", table 1.
    """

    def __init__(
        self,
        n_classes: int,
        *,
        groups: int = 1,
        group_width: int = 64,
        in_channels: int = 3,
        scale: float | None = None,
    ):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        width = groups * group_width
        self.layer1 = self._stage(3, 64, width, 256, 1, groups)
        self.layer2 = self._stage(4, 256, 2 * width, 512, 2, groups)
        self.layer3 = self._stage(6, 512, 4 * width, 1024, 2, groups)
        self.layer4 = self._stage(3, 1024, 8 * width, 2048, 2, groups)
        self.fc = _classifier(2048, n_classes, scale)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    @staticmethod
    def _stage(n_blocks: int, n_in: int, n_inner: int, n_out: int, stride: int, groups: int) -> nn.Sequential:
        first = Bottleneck(n_in, n_inner, n_out, stride, groups)
        return nn.Sequential(first, *(Bottleneck(n_out, n_inner, n_out, 1, groups) for _ in range(n_blocks - 1)))

    def forward(self, images: Tensor) -> Tensor:
        """Map images (B, in_channels, H, W) to logits (B, C)."""
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(images))), 3, stride=2, padding=1)
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        logits: Tensor = self.fc(x.mean((2, 3)))
        return logits


def _classifier(n_features: int, n_classes: int, scale: float | None) -> nn.Module:
    return nn.Linear(n_features, n_classes) if scale is None else NormedLinear(n_features, n_classes, scale)


NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "small-resnet": partial(CifarResNet, n_blocks=1, widths=(8, 16, 32), in_channels=1),  # 19,074 for ten classes
    **{f"resnet{6 * n + 2}": partial(CifarResNet, n_blocks=n) for n in (3, 5, 7, 9, 18)},
    "resnet50": ImageNetResNet,
    "resnext50_32x4d": partial(ImageNetResNet, groups=32, group_width=4),
}


def names() -> tuple[str, ...]:
    """Return the names that `build` knows, besides users' own package.module:callable."""
    return tuple(NETWORKS)


def convolved_shortcut(name: str, state: Iterable[str]) -> str | None:
    """Determine whether weights for a CIFAR network have convolutions in their shortcuts (option B).

    Args:
        name: the network's name.
        state: names of the entries of its state_dict, with any prefix.

    Returns:
        The blocks' name of the shortcut, such as "downsample"; None for shortcuts without parameters and for other
        networks.
    """
    if not isinstance(network := NETWORKS.get(name), partial) or network.func is not CifarResNet:
        return None
    found = (re.search(r"(?:^|\.)layer2\.0\.(downsample|shortcut)\.0\.weight$", entry) for entry in state)
    return next((match[1] for match in found if match), None)


def build(
    name: str,
    n_classes: int,
    *,
    in_channels: int | None = None,
    cosine: bool = False,
    scale: float | None = None,
    shortcut: str | None = None,
) -> nn.Module:
    """Make a network with random weights from torch's global generator.

    Args:
        name: one of `names()`; timm:NAME; hf:FOLDER, the configuration of a transformers model; or
            package.module:callable, with arguments as in `mymodel:ResNet(width=16)`. If it is written without
            positional arguments and has a parameter n_classes or num_classes, this gets the number of classes.
        n_classes: C, the number of logits.
        in_channels: channels of the images; None for the network's default: 1 for small-resnet, 3 for the others. It is
            not passed to a user's callable.
        cosine: end with a `NormedLinear` instead of a linear layer.
        scale: factor of the cosine classifier; None for `COSINE_SCALE`.
        shortcut: for a CIFAR network with convolutions as shortcuts, the blocks' name of the shortcut, see
            `convolved_shortcut`; None for shortcuts without parameters.

    Returns:
        The network, in training mode.

    Raises:
        InputError: an unknown name, an option that does not fit, or a user's callable that does not return a module.
    """
    if ":" in name:
        if cosine or scale is not None:
            raise InputError(
                f"{arg('cosine', True)} is for the models {', '.join(names())}; {name} has its own classifier"
            )
        return _own(name, n_classes)
    if name not in NETWORKS:
        raise InputError(unknown(name, NETWORKS, "model", more=" or package.module:callable"))
    if n_classes < 1 or (in_channels is not None and in_channels < 1):
        raise InputError(f"a model needs at least one class and one channel, got {n_classes} and {in_channels}")
    if scale is not None and not cosine:
        raise InputError(f"scale {scale:g} belongs to a cosine classifier: pass {arg('cosine', True)} too")
    if scale is not None and not 0 < scale < math.inf:
        raise InputError(f"the scale of a cosine classifier must be positive and finite, got {scale:g}")
    options: dict[str, Any] = {} if in_channels is None else {"in_channels": in_channels}
    if cosine:
        options["scale"] = COSINE_SCALE if scale is None else scale
    if shortcut is not None:
        options["shortcut"] = shortcut
    return NETWORKS[name](n_classes, **options)


def _own(name: str, n_classes: int) -> nn.Module:
    if name.partition(":")[0] in LIBRARIES:
        return LIBRARIES[name.partition(":")[0]](name, n_classes)
    make, args, kwargs = resolve_call(name, "model")
    try:
        parameters = set(inspect.signature(make).parameters)
    except (TypeError, ValueError):  # some callables written in C have no signature
        parameters = set()
    counts = {word: n_classes for word in ("n_classes", "num_classes") if n_classes and word in parameters}
    with failures_of(lambda: f"{arg('model', name)} fails"):
        model = make(*args, **(({} if args else counts) | kwargs))
    if not isinstance(model, nn.Module):
        raise InputError(f"{arg('model', name)} returned {type(model).__name__}: it must return a torch.nn.Module")
    return model


def failures_named(inputs: Tree, remedy: str = "") -> AbstractContextManager[None]:
    """Raise errors of the user's model or loss inside the block as an error of one line, which ends with `remedy`."""
    return failures_of(lambda: f"the model or the loss fails on inputs of shape {trees.shown(inputs)}", remedy=remedy)


def logits_of(output: Any, n_classes: int, logits_index: int | None = None) -> Tensor:
    """Return the logits in a model's output; only shapes are used, so this can be traced.

    Args:
        output: a tensor, or a tuple, list or mapping that contains one, such as (features, logits).
        n_classes: C.
        logits_index: position of the logits in the tuple, list or mapping; None for the only element that is a floating
            tensor of shape (B, C).

    Returns:
        The logits, (B, C).

    Raises:
        InputError: no element fits, or several fit and `logits_index` does not choose one.
    """
    if isinstance(output, Tensor):
        if logits_index is not None:
            raise InputError(f"{arg('logits_index', logits_index)} was given, but the model returns a single tensor")
        if not _are_logits(output, n_classes):
            raise InputError(
                f"the model returned {_shape(output)}: expected logits (batch, {n_classes}), one for each class of the "
                "data; if the data contain no samples of the last classes, set `classes` of the data set to all names"
            )
        return output
    elements = elements_of(output)
    if elements is None:
        raise InputError(
            f"the model returned {_shape(output)}: expected logits (batch, {n_classes}) or a tuple with them"
        )
    found, fitting = chosen(elements, lambda element: _are_logits(element, n_classes), logits_index)
    if found is not None:
        return found
    shapes = ", ".join(f"{i}: {_shape(element)}" for i, element in enumerate(elements)) or "nothing"
    if not fitting:
        raise InputError(
            f"the model returned {shapes}: none is logits (batch, {n_classes}), as the data set has classes"
        )
    choice = " or ".join(str(i) for i in fitting)
    given = "" if logits_index is None else f", not {logits_index}"
    raise InputError(f"the model returned {shapes}: choose the logits by {arg('logits_index')}, {choice}{given}")


def elements_of(output: Any) -> list[Any] | None:
    """Return the elements of a model's output if it is a tuple, list or mapping; None for anything else."""
    if isinstance(output, Mapping):
        return list(output.values())
    return list(output) if isinstance(output, tuple | list) else None


def chosen(elements: Sequence[Any], fits: Callable[[Any], bool], index: int | None) -> tuple[Tensor | None, list[int]]:
    """Choose a tensor among the elements of a model's output.

    Args:
        elements: the elements of the output.
        fits: returns whether an element may be chosen.
        index: position of the element; None for the only one that fits.

    Returns:
        The tensor, None if the choice is not unique; and the positions of all elements that fit.
    """
    fitting = [i for i, element in enumerate(elements) if fits(element)]
    if index is None and len(fitting) == 1:
        index = fitting[0]
    return (elements[index] if index in fitting else None), fitting


def _are_logits(element: Any, n_classes: int) -> bool:
    return (
        isinstance(element, Tensor)
        and element.is_floating_point()
        and element.ndim == 2
        and element.shape[1] == n_classes
    )


def _shape(element: Any) -> str:
    return str(tuple(element.shape)) if isinstance(element, Tensor) else type(element).__name__
