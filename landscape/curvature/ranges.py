"""The sizes of products with which a dtype can compute: others are refused, as digits would be lost in silence.

A matrix in float32 may have products so small that their entries lose digits, and then vanish. Lengths and spreads are
sums of squares in float64, so those of float64 products vanish or overflow when the products themselves do not yet.
"""

import math
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from landscape.autodiff import memory
from landscape.errors import NumericalError, arg

_SQUARES = 2.0**450
"""The largest size, and the inverse of the smallest, of numbers whose squares have their digits in float64, also those
of a fraction 2^-50 of them."""


@runtime_checkable  # arguments are checked by their types
class Subject(Protocol):
    """What messages say of an operator."""

    @property
    def name(self) -> str:
        """Name of the matrix."""

    @property
    def parts(self) -> Sequence[str]:
        """Names of the parts."""

    @property
    def objective(self) -> object | None:
        """The objective that the matrices are of; None if they are the user's."""


def named(of: Subject | None, row: int, n_rows: int) -> str:
    """Name the matrix of a vector in words.

    Args:
        of: whose products the vectors are; None if that is not known.
        row: position of the vector.
        n_rows: number of vectors, the same for each part.

    Returns:
        Such as "the hessian of truck".
    """
    if of is None or (of.objective is None and len(of.parts) == 1):
        return "the matrix"
    return f"the {of.name} of {of.parts[row * len(of.parts) // n_rows]}"


def limits(dtype: torch.dtype) -> tuple[float, float]:
    """Return the smallest and the largest size of products that keep their digits.

    Args:
        dtype: of the products.

    Returns:
        Both, as absolute values of the largest entry.
    """
    info = torch.finfo(dtype)
    return max(info.tiny / info.eps, 1 / _SQUARES), min(info.max * info.eps, _SQUARES)


def refuse(products: Tensor, of: Subject | None = None) -> None:
    """Refuse products with vectors of a usual size, if their squares or their digits leave the range of numbers.

    Args:
        products: (n, D), the same number of each part; a product that is zero passes.
        of: whose products they are, for the message.

    Raises:
        NumericalError: a product is too small, too large or not finite.
    """
    least, most = limits(products.dtype)
    for k, size in enumerate(products.abs().amax(-1).tolist()):
        if size == 0 or least <= size <= most:
            continue
        kind, narrow = str(products.dtype).removeprefix("torch."), products.dtype == torch.float32
        own = of is not None and of.objective is not None
        what = ("small" if size < least else "large") + f" for {'' if narrow else 'their squares in '}{kind}"
        wide = f"use {arg('dtype', 'float64') if own else 'float64'}, or " if narrow else ""
        raise NumericalError(
            f"products of size {size:.1g} with {named(of, k, len(products))} are too {what}: {wide}multiply the "
            f"{'loss' if own else 'matrix'} by a number"
        )


def refuse_squares(total: float, dtype: torch.dtype, device: torch.device, what: str) -> None:
    """Refuse a sum of squared gradients, in float64, if the gradients or it leave the range of numbers.

    Args:
        total: the sum; zero passes.
        dtype: of the gradients.
        device: on which they were squared, see autodiff/squares.py.
        what: the matrix and its part.

    Raises:
        NumericalError: it is too small or not finite.
    """
    info, wide = torch.finfo(dtype), torch.finfo(torch.float64)
    use = f"use {arg('dtype', 'float64')}, or " * (dtype != torch.float64) + "multiply the loss by a number"
    if not math.isfinite(total):
        raise NumericalError(f"a gradient of a sample, or its square, for the {what} is not finite: {use}")
    least = info.tiny / info.eps
    if 0 < total < max(least if memory.is_apart(device) else least**2, wide.tiny / wide.eps):
        kind = str(dtype).removeprefix("torch.")
        raise NumericalError(f"squared gradients of size {total:.1g} for the {what} are too small for {kind}: {use}")
