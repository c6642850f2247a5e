"""Squared lengths of gradients whose squares leave the range of their dtype: in float32, below 1e-19 or above 1e19.

To know whether they do, the host looks at numbers of each batch, for which it would have to wait for a GPU. There
squares are computed as they are, and `curvature.ranges` refuses their sum if it is too small.
"""

import math

import torch
from torch import Tensor

from landscape.autodiff import memory
from landscape.autodiff.wide import wide

_ENTRIES = 2**21  # numbers that are copied to float64 at a time


def lengths(rows: Tensor) -> Tensor:
    """Return squared lengths, added up in the rows' dtype; in float64 where squares of float32 vanish or overflow.

    Args:
        rows: (n, d), or (n, K, groups, d / groups) for n K vectors.

    Returns:
        (n,) or (n, K) float64, at the `place` of the device.
    """
    plain = rows.ndim == 2
    squares = torch.linalg.vecdot(rows, rows) if plain else torch.linalg.vector_norm(rows, dim=(2, 3)).square()
    found, info = wide(squares), torch.finfo(rows.dtype)
    if rows.dtype == torch.float64 or not rows.numel() or memory.is_apart(rows.device):
        return found
    size = rows.shape[1 if plain else 2 :].numel()
    lost = ~((squares > size * info.tiny / info.eps) & squares.isfinite())
    if lost.any():
        # Some at a time, because the copies are twice as large.
        pieces = torch.split(rows[lost].reshape(-1, size), max(1, _ENTRIES // size))
        found[lost.to(found.device)] = torch.cat([torch.linalg.vecdot(w, w) for w in map(wide, pieces)])
    return found


def power(tensor: Tensor) -> float:
    """Return a power of two, times which products of a tensor's entries stay in the range of its dtype; 1 as a rule."""
    if not tensor.numel() or memory.is_apart(tensor.device):
        return 1.0
    low, high = torch.aminmax(tensor)
    size = float(torch.maximum(-low, high))
    if 2.0**-40 < size < 2.0**40 or not 0 < size < math.inf:
        return 1.0
    most = 126 if tensor.dtype == torch.float32 else 1000  # the power itself is a number of this dtype
    return float(2.0 ** max(-most, min(most, -math.frexp(size)[1])))


def scaled(tensor: Tensor) -> tuple[Tensor, float]:
    """Return a tensor times the power of two of `power`, and this."""
    by = power(tensor)
    return (tensor if by == 1 else tensor * by), by


def summed(rows: Tensor) -> Tensor:
    """Return the sum over rows (n, d) of their squares, (d,) float64, added up in the rows' dtype."""
    rows, by = scaled(rows)
    return wide(rows.square().sum(0)) / by / by
