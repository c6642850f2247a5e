"""Filters: the numbers of a weight that compute one output.

Directions, noise and distances are all measured by filter and use this module. For most weights a filter is a slice
along the first axis. A cosine classifier has its outputs along the second axis; so has a transposed convolution, and if
this has groups, the filter of an output covers only the inputs of its own group.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from landscape.networks.models import NormedLinear

_SECOND = (NormedLinear, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def groups(model: nn.Module) -> dict[str, int]:
    """Find the weights that have their outputs along the second axis.

    Args:
        model: the network.

    Returns:
        Name -> number of groups into which the first axis, of inputs, is divided; weights inside a parametrisation,
        such as the v of weight norm, are included.
    """
    found: dict[str, int] = {}
    for prefix, m in model.named_modules():
        if isinstance(m, _SECOND):
            n = m.groups if isinstance(m, nn.modules.conv._ConvTransposeNd) else 1
            own = (name for name, p in m.named_parameters() if p.shape == m.weight.shape)
            found |= {f"{prefix}.{name}" if prefix else name: n for name in own}
    return found


def rows(tensor: Tensor, name: str, of: Mapping[str, int]) -> Tensor:
    """Arrange a parameter as a matrix with one row per filter.

    Args:
        tensor: the parameter, or a tensor of its shape.
        name: the parameter's name.
        of: what `groups` returned.

    Returns:
        (filters, numbers in each); of a parameter with one axis, each number is a filter.
    """
    if name not in of:
        n = len(tensor) if tensor.ndim else 1
        return tensor.reshape(n, math.prod(tensor.shape[1:]))  # -1 is ambiguous where there are no numbers
    n = of[name]
    each = tensor.reshape(n, len(tensor) // n, tensor.shape[1], -1)  # groups, inputs, outputs of a group, kernel
    return each.transpose(1, 2).reshape(n * tensor.shape[1], -1)


def from_rows(filters: Tensor, shape: torch.Size, name: str, of: Mapping[str, int]) -> Tensor:
    """Return the parameter of a given shape from its filters: the inverse of `rows`."""
    if name not in of:
        return filters.reshape(shape)
    n = of[name]
    return filters.reshape(n, shape[1], shape[0] // n, -1).transpose(1, 2).reshape(shape)
