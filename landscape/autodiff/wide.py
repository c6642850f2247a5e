"""Float64, on the device where it has float64 and on the host where it has none, as Apple's.

Networks run in float32. What is added up over samples or parameters, and what is small but must be exact (Lanczos
coefficients, inner products, eigenvalues of small matrices), is float64. All of that goes through this file, so
that a device without float64 needs no rule anywhere else. On a device that has it, `wide(t)` is `t.double()`.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

WITHOUT_FLOAT64 = frozenset({"mps"})
"""Types of devices that have no float64."""

COLUMNS = 2**17
"""Entries of vectors that are multiplied and added up in the vectors' own dtype, at most; what follows is float64. In
float32 a sum of millions of squares may be wrong in the third digit."""


def place(device: torch.device) -> torch.device:
    """Return the device on which float64 numbers of a device are kept: itself, or the host where it has no float64."""
    return torch.device("cpu") if device.type in WITHOUT_FLOAT64 else device


def wide(tensor: Tensor) -> Tensor:
    """Return a tensor in float64, at the `place` of its device. Derivatives flow through it."""
    return tensor.to(place(tensor.device)).double()  # moved first: otherwise the device would have to convert


def products(a: Tensor, b: Tensor) -> Tensor:
    """Return the inner products of vectors with vectors, without a copy in float64: some `COLUMNS` at a time.

    Args:
        a: (A, d), or (n, A, d) for n sets of vectors.
        b: (B, d), or (n, B, d), of the same dtype and on the same device.

    Returns:
        (A, B), or (n, A, B), float64, at the `place` of the device.
    """
    found = zeros((*a.shape[:-1], b.shape[-2]), a.device)
    for x, y in zip(*(torch.split(t, COLUMNS, dim=-1) for t in (a, b)), strict=True):
        found += (torch.bmm(x, y.mT) if x.ndim == 3 else x @ y.mT).to(found.device)  # `@` of three axes is slower
    return found


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """Return data on a device; float64 becomes float32 before it is sent to a device that has no float64."""
    narrow = tensor.dtype == torch.float64 and place(device) != device
    return (tensor.float() if narrow else tensor).to(device)


def zeros(shape: int | Sequence[int], device: torch.device) -> Tensor:
    """Return float64 zeros to add to, at the `place` of a device."""
    return torch.zeros(shape, dtype=torch.float64, device=place(device))
