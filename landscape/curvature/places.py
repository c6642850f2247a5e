"""Where the vectors of a Lanczos basis are kept: on the device, divided among processes, or in the memory of the host.

A product needs whole vectors. All else that is computed of the basis, inner products and combinations of its vectors,
needs only some entries of each: processes that compute products together each keep the same D / R entries of all
vectors, add up their terms of the inner products, and join the entries of a new vector before the next product.

If a basis does not fit on a GPU, the host keeps it and orthogonalises against it, so that only single vectors are sent.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn

import numpy as np
import torch
from torch import Tensor

from landscape.autodiff import memory
from landscape.autodiff.distributed import ALONE, Team
from landscape.autodiff.wide import products, wide
from landscape.errors import InputError, arg

if TYPE_CHECKING:
    from landscape.curvature.algebra import Operator

PIECE = 2**22
"""Numbers that are converted to float64 at a time."""


@dataclass(frozen=True)
class Place:
    """The entries of vectors that this process keeps, and on which device."""

    team: Team = ALONE  # the processes that divide the entries
    on_host: bool = False  # not on the device of the products

    @property
    def is_whole(self) -> bool:
        """Whether vectors are kept as products need them."""
        return self.team.size == 1 and not self.on_host

    def kept(self, vectors: Tensor) -> Tensor:
        """Return the entries of vectors that this process keeps, (..., D) -> (..., d); a view where possible."""
        own = vectors[..., self.team.share(vectors.shape[-1])]
        return own.cpu() if self.on_host else own

    def whole(self, kept: Tensor, device: torch.device) -> Tensor:
        """Return whole vectors on a device, from what the processes keep of them, (..., d) -> (..., D)."""
        return self.team.gathered(kept.movedim(-1, 0)).movedim(0, -1).contiguous().to(device)

    def dots(self, a: Tensor, b: Tensor) -> Tensor:
        """Return inner products in float64.

        Args:
            a: (n, d), as they are kept.
            b: (n, d), or (d,) for the same vector with each of a.

        Returns:
            (n,) float64, the same on each process.
        """
        return self.team.total(dots(a, b))

    def products(self, a: Tensor, b: Tensor) -> Tensor:
        """Return the inner products of many vectors with others in float64; see `wide.products`.

        Args:
            a: (A, d) or (n, A, d), as they are kept.
            b: (B, d) or (n, B, d), as they are kept.

        Returns:
            (A, B) or (n, A, B) float64, the same on each process.
        """
        return self.team.total(products(a, b))

    @property
    def note(self) -> str | None:
        """The place in words; None for the usual one."""
        divided = f"divided among {self.team.size} processes" if self.team.size > 1 else ""
        return " ".join(filter(None, (divided, "on the host" if self.on_host else ""))) or None


WHOLE = Place()


@dataclass(frozen=True)
class Room:
    """How many vectors fit into the memory of each process, in addition to the model and what products keep."""

    on_device: int
    on_host: int = 0  # 0 if the device uses the host's memory
    team: Team = ALONE  # the processes that compute each product together

    @classmethod
    def beside(cls, operator: "Operator", limit: int | None) -> "Room":
        """Return what fits beside an operator.

        Args:
            operator: any; a first product shows how much memory products need for a moment.
            limit: bytes that this process may use on the operator's device; None for most of the free memory.

        Returns:
            The numbers, for the operator's team: the least of its processes.
        """
        bytes_left = np.array(free(operator.device, limit)) - [operator.keeps, 0]
        found = operator.team.least(bytes_left // (operator.size * operator.dtype.itemsize))
        return cls(int(found[0]), int(found[1]), operator.team)

    @property
    def places(self) -> Iterator[Place]:
        """The possible places, the fastest first."""
        yield WHOLE
        if self.team.size > 1:
            yield Place(self.team)
        if self.on_host:
            yield Place(self.team, on_host=True)

    def fits(self, place: Place, beside: int) -> int:
        """Return how many vectors can be kept at a place.

        Args:
            place: one of `places`.
            beside: vectors that each process needs whole, on the device.

        Returns:
            The number.
        """
        left = self.on_device - beside
        return 0 if left < 0 else place.team.size * (self.on_host if place.on_host else left)

    def place(self, number: int, beside: int) -> Place | None:
        """Return the first place at which some vectors fit; None if there is none."""
        return next((place for place in self.places if self.fits(place, beside) >= number), None)

    @property
    def largest(self) -> Place:
        """The place where the largest number of vectors fits, which is the last one."""
        return list(self.places)[-1]


def free(device: torch.device, limit: int | None) -> tuple[int, int]:
    """Return how much memory there is for vectors, and for what products keep.

    Args:
        device: of the products.
        limit: bytes that this process may use on it; None for most of the free memory.

    Returns:
        Bytes on the device, and bytes on the host, 0 if the device uses the host's memory.
    """
    on_device = memory.room(device, limit)
    return on_device, memory.room(torch.device("cpu"), None) if memory.is_apart(device) else 0


def refuse(
    room: Room, size: int, dtype: torch.dtype, needed: int, lower: str, *, part: str = "", process: int | None = None
) -> NoReturn:
    """Refuse a computation for which too few vectors fit into memory.

    Args:
        room: for vectors.
        size: D.
        dtype: of the vectors.
        needed: number of vectors.
        lower: the options that leave more memory to vectors.
        part: the part of the data, if others are not refused.
        process: number of the process with the least memory, if there are several.

    Raises:
        InputError: always.
    """
    of = "memory" if process is None else f"the memory of process {process}"
    raise InputError(
        f"{f'part {part}: ' if part else ''}{max(room.on_device, 0)} vectors of {size:,} parameters "
        f"({size * dtype.itemsize / 1e9:.3g} GB each) fit into {of} beside the model, and {needed} are needed: raise "
        f"{arg('memory_bytes')}, lower {lower}, or choose some {arg('params')}"
    )


def dots(a: Tensor, b: Tensor) -> Tensor:
    """Return inner products in float64, without a second copy of all vectors.

    Args:
        a: (n, D).
        b: (n, D), or (D,) for the same vector with each of a.

    Returns:
        (n,) float64.
    """
    pieces = zip(*(torch.split(t, max(1, PIECE // len(a)), dim=-1) for t in (a, b)), strict=True)
    found = [wide(x) @ wide(y) if y.ndim == 1 else torch.linalg.vecdot(wide(x), wide(y)) for x, y in pieces]
    return torch.stack(found).sum(0)
