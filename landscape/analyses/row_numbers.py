"""How many rows of a part give its eigenvalues: as many as fit into memory, if they are less work than Lanczos."""

import math
from typing import NoReturn

import torch

from landscape.autodiff import memory
from landscape.autodiff.distributed import Team
from landscape.curvature.functions import work_of
from landscape.errors import InputError, arg
from landscape.objective.objective import Objective

FEW_ROWS = 2048
"""So many rows give the eigenvalues of a part also where the products of Lanczos are fewer operations."""
_PRODUCTS = 64
"""Bytes for each entry of the matrix of the rows' products: itself, copies with weights, eigenvectors, work space, and
what eigenvalues of both signs take."""
_BACKWARD, _PRODUCT, _EIGEN = 3, 4, 7
"""Operations for each of a forward pass: of a row, and of a product with a sample's matrix. And those of all
eigenvectors of m rows, over the third power of m, measured beside the products of the rows."""


def row_bytes(device: torch.device, cache_bytes: int, memory_bytes: int | None) -> int:
    """Return the memory for the rows of a part.

    Rows are in memory up to three times: those of the part twice while some are added, half as many beside their
    lengths, and half as many of all parts for later.

    Args:
        device: of the rows.
        cache_bytes: the most.
        memory_bytes: bytes that this process may use in all; None for most of the free memory.

    Returns:
        Bytes, for `samples`.
    """
    return min(cache_bytes, memory.room(device, memory_bytes) // 3)


def most_rows(objective: Objective, cache_bytes: int, *, stored: bool = False, team: Team | None = None) -> int:
    """Return how many rows of a part fit into memory, and so does what is computed of their inner products.

    Args:
        objective: model, loss and data in parts.
        cache_bytes: memory for rows, and as much again for the matrix of their products and its eigenvectors.
        stored: all of their columns are in memory at the same time; otherwise those of one tensor at least.
        team: processes that divide the columns; None means those of the objective.

    Returns:
        The number.
    """
    columns = objective.layout.size if stored else max(objective.layout.sizes)
    width = (objective.team if team is None else team).largest(columns)
    products = max(FEW_ROWS, math.isqrt(cache_bytes // _PRODUCTS))
    return min(products, cache_bytes // (width * objective.dtype.itemsize))


def are_worth_it(objective: Objective, n: int, n_rows: int, products: int | None, cache_bytes: int) -> bool:
    """Say whether rows whose lengths are known take fewer operations than Lanczos.

    Args:
        objective: model, loss and data in parts.
        n: number of samples of the part.
        n_rows: the number of its rows.
        products: that Lanczos would take; None if it is out of the question.
        cache_bytes: memory for rows.

    Returns:
        Whether they do, or are few.
    """
    if products is None or n_rows <= FEW_ROWS:
        return True
    size, forward = objective.layout.size, work_of(objective)
    passes = -(-n_rows * size * objective.dtype.itemsize // cache_bytes)
    of_rows = n_rows * (_BACKWARD * passes * forward + n_rows * size // 2 + _EIGEN * n_rows**2)
    return of_rows <= products * n * _PRODUCT * forward


def refuse_number(objective: Objective, name: str, cache_bytes: int, without_limit: int) -> NoReturn:
    """Refuse a part that needs more rows than are kept, although rows are required.

    Args:
        objective: model, loss and data in parts.
        name: of the part.
        cache_bytes: memory for rows, as of `row_bytes`.
        without_limit: the cache, before the limit on memory was applied.

    Raises:
        InputError: always.
    """
    most = most_rows(objective, cache_bytes)
    limit = arg("memory_bytes" if most < most_rows(objective, without_limit) else "cache_bytes")
    raise InputError(
        f"{arg('method', 'rows')} is not possible: {name} needs more than {most:,} rows, which are all that {limit} "
        f"holds: raise that, or use {arg('method', 'lanczos')}"
    )
