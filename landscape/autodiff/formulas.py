"""Gradients of single samples with respect to one use of a parameter, by a formula for each kind of layer."""

import itertools
from collections.abc import Generator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from landscape.autodiff.recording import NORMS, Call

_WIDE = 2.5  # how much longer a multiplication takes in float64, with what is beside it
ENTRIES = 2**25
"""Numbers that the gradients of single samples may take at a time: 128 MiB in float32."""


@dataclass(frozen=True, eq=False)
class Use:
    """One use of a parameter, with the gradient at the output of the call."""

    call: Call
    d: Tensor  # gradient at the call's output, (B, ...)
    kind: str  # "weight" or "bias"


def is_linear(use: Use) -> bool:
    """Say whether the layer is linear."""
    return isinstance(use.call.module, nn.Linear)


def by_pieces(uses: Sequence[Use]) -> Generator[tuple[slice, Tensor], None, None]:
    """Yield some samples and their gradients of one parameter, to which all of its uses contribute, (b, numel)."""
    size = max(1, ENTRIES // max(_entries(use) for use in uses))
    for start in range(0, len(uses[0].d), size):
        piece = slice(start, start + size)
        each = _each(uses[0], piece)
        for use in uses[1:]:
            each = each + _each(use, piece)
        yield piece, each


def laid_out(call: Call, d: Tensor) -> tuple[Tensor, Tensor]:
    """Return x (B, groups, p, T) and d (B, K, groups, c, T), whose products d x^T are K gradients of a layer's weight.

    T are the positions of the output, p the entries of the input that each sees, c the channels of a group.

    Args:
        call: of a linear layer or a convolution.
        d: gradients at its output, (B, K, ...).
    """
    m, x = call.module, call.inputs.to(d.dtype)
    if isinstance(m, nn.Linear):
        return x.reshape(len(x), 1, -1, x.shape[-1]).mT, d.reshape(*d.shape[:2], 1, -1, d.shape[-1]).mT
    seen = F.unfold(x, m.kernel_size, m.dilation, m.padding, m.stride)
    seen = seen.reshape(len(x), m.groups, -1, seen.shape[-1])
    return seen, d.reshape(*d.shape[:2], m.groups, -1, seen.shape[-1])


def of_convolution(call: Call, d: Tensor) -> Generator[tuple[slice, Tensor], None, None]:
    """Yield some samples and their K gradients of a kernel, (b, groups, K, numel / groups), from d (B, K, C, h, w)."""
    x, d = laid_out(call, d)
    n_seeds, d = d.shape[1], d.transpose(1, 2)
    size = max(1, ENTRIES // (d[0, :, :, :, 0].numel() * x.shape[2]))
    for start in range(0, len(x), size):
        piece = slice(start, start + size)
        each = d[piece].flatten(2, 3) @ x[piece].mT
        yield piece, each.reshape(len(each), x.shape[1], n_seeds, -1)


def is_less_by_positions(use: Use, wanted: float) -> bool:
    """Say whether `by_positions` is less work than the gradients of a weight, of which a fraction is wanted too.

    Args:
        use: of the weight, with gradients (K, B, ...) at the output.
        wanted: the fraction.

    Returns:
        Whether it is, on a CPU; other devices may be slow in float64.
    """
    if use.d.device.type != "cpu":
        return False
    weight: Tensor = use.call.module.get_parameter("weight")
    groups = use.call.module.groups if isinstance(use.call.module, nn.Conv2d) else 1
    c, p = len(weight) // groups, weight[0].numel()
    positions = use.d[0, 0].numel() // len(weight)
    return positions * (p + len(use.d) * c) * _WIDE < (1 - wanted) * len(use.d) * c * p


def by_positions(x: Tensor, d: Tensor) -> Tensor:
    """Return |d x^T|^2 of each gradient, (B, K), as the sum of (x^T x) * (d^T d) over all pairs of positions.

    Its terms may cancel, so it is computed in float64.

    Args:
        x: (B, groups, p, T) of `laid_out`.
        d: (B, K, groups, c, T) of the same.
    """
    found = []
    for start in range(0, len(x), size := max(1, ENTRIES // (x[0].numel() + 2 * d[0].numel()))):
        wide_x, wide_d = x[start : start + size].double(), d[start : start + size].double()
        across = wide_d @ (wide_x.mT @ wide_x)[:, None]
        found.append((across * wide_d).sum(dim=(2, 3, 4)).clamp(min=0))
    return torch.cat(found)


def _entries(use: Use) -> int:
    """Return the largest number of intermediate values for the gradient of one sample."""
    own = int(use.call.module.get_parameter(use.kind).numel())
    if use.kind == "bias" or not isinstance(use.call.module, nn.Conv2d):
        return own
    return max(2 * own, use.call.inputs.shape[1] * use.d[0, 0].numel())


def _each(use: Use, piece: slice) -> Tensor:
    """Return the gradient of a parameter by each sample of a piece, (b, numel)."""
    m, x, d = use.call.module, use.call.inputs[piece], use.d[piece]
    if isinstance(m, NORMS):
        return _of_norm(use.call, x, d, use.kind)
    if isinstance(m, nn.Linear):
        d = d.reshape(len(d), -1, d.shape[-1])
        return d.sum(1) if use.kind == "bias" else (d.mT @ x.reshape(len(x), -1, x.shape[-1])).flatten(1)
    if use.kind == "bias":
        return d.flatten(2).sum(2)
    # One entry of the kernel at a time: F.unfold does the same for all entries and takes two to three times as long.
    (rows, columns), (height, width) = d.shape[2:], m.kernel_size
    padded = F.pad(x, (m.padding[1], m.padding[1], m.padding[0], m.padding[0]))
    d = d.reshape(len(d), m.groups, -1, rows * columns)
    found = []
    for i, j in itertools.product(range(height), range(width)):
        top, left = i * m.dilation[0], j * m.dilation[1]
        bottom, right = top + (rows - 1) * m.stride[0] + 1, left + (columns - 1) * m.stride[1] + 1
        seen = padded[:, :, top : bottom : m.stride[0], left : right : m.stride[1]]
        found.append(d @ seen.reshape(len(x), m.groups, -1, rows * columns).mT)
    return torch.stack(found, dim=-1).flatten(1)


def _of_norm(call: Call, x: Tensor, d: Tensor, kind: str) -> Tensor:
    """Return the gradient of batch norm's gamma or beta by each sample, (B, C), from its input and d, (B, C, ...)."""
    beyond = list(range(2, x.ndim))
    dtype: torch.dtype = call.module.weight.dtype
    if kind == "bias":
        return d.sum(beyond, dtype=dtype) if beyond else d.to(dtype)
    mean, variance = call.statistics
    product = (x - mean.view(-1, *[1] * len(beyond))) * d
    scale = torch.rsqrt(variance + call.module.eps)
    return (product.sum(beyond) if beyond else product) * scale
