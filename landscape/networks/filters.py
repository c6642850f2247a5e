"""What a filter is: the numbers of a weight that make one output, whose length scales it as a whole.

Directions, noise and distances all measure by filters, and all ask here. Of most weights a filter is a slice along the
first axis. A cosine classifier holds its outputs along the second; so does a transposed convolution, and where it has
groups, an output takes its slice from the inputs of its own group alone.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from landscape.networks.models import NormedLinear

_SECOND = (NormedLinear, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def groups(model: nn.Module) -> dict[str, int]:
    """Find the weights whose outputs are along the second axis.

    Args:
        model: the network.

    Returns:
        Name -> number of groups that the first axis, of inputs, is divided into; weights that stand behind a
        parametrisation, such as the v of weight norm, are among them.
    """
    found: dict[str, int] = {}
    for prefix, m in model.named_modules():
        if isinstance(m, _SECOND):
            n = m.groups if isinstance(m, nn.modules.conv._ConvTransposeNd) else 1
            own = (name for name, p in m.named_parameters() if p.shape == m.weight.shape)
            found |= {f"{prefix}.{name}" if prefix else name: n for name in own}
    return found


def rows(tensor: Tensor, name: str, of: Mapping[str, int]) -> Tensor:
    """Lay a parameter out by its filters.

    Args:
        tensor: the parameter, or anything of its shape.
        name: of the parameter.
        of: what `groups` returned.

    Returns:
        (filters, numbers in each); a parameter with one axis is all filters of one number.
    """
    if name not in of:
        n = len(tensor) if tensor.ndim else 1
        return tensor.reshape(n, math.prod(tensor.shape[1:]))  # -1 is ambiguous where there are no numbers
    n = of[name]
    each = tensor.reshape(n, len(tensor) // n, tensor.shape[1], -1)  # groups, inputs, outputs of a group, kernel
    return each.transpose(1, 2).reshape(n * tensor.shape[1], -1)


def from_rows(filters: Tensor, shape: torch.Size, name: str, of: Mapping[str, int]) -> Tensor:
    """Return the parameter of a shape whose filters these are: the inverse of `rows`."""
    if name not in of:
        return filters.reshape(shape)
    n = of[name]
    return filters.reshape(n, shape[1], shape[0] // n, -1).transpose(1, 2).reshape(shape)
