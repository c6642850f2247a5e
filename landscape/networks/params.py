"""The layout of the parameters: a flat vector of length D and the named tensors that form it."""

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import nn

from landscape.errors import InputError, arg


@dataclass(frozen=True)
class Layout:
    """Names and shapes of the parameters that vary, in the model's own order."""

    names: tuple[str, ...]
    shapes: tuple[torch.Size, ...]

    @property
    def sizes(self) -> list[int]:
        """Number of entries of each tensor."""
        return [shape.numel() for shape in self.shapes]

    @property
    def size(self) -> int:
        """D, the length of a flat vector."""
        return sum(self.sizes)

    @property
    def layers(self) -> dict[str, list[str]]:
        """Names of the tensors of each module that has some; a tensor of the model itself forms its own group."""
        found: dict[str, list[str]] = {}
        for name in self.names:
            found.setdefault(name.rpartition(".")[0] or name, []).append(name)
        return found

    def pieces(self, entry_bytes: int, cache_bytes: int) -> list[list[str]]:
        """Divide the names into pieces that fit into memory, of at least one tensor, given the bytes of each entry."""
        pieces: list[list[str]] = []
        room = 0
        for name, size in zip(self.names, self.sizes, strict=True):
            if not pieces or size * entry_bytes > room:
                pieces.append([])
                room = cache_bytes
            pieces[-1].append(name)
            room -= size * entry_bytes
        return pieces

    def tensors(self, vector: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Cut a flat vector (D,) into tensors of the parameters' shapes, as views."""
        pieces = torch.split(vector, self.sizes)
        return tuple(piece.view(shape) for piece, shape in zip(pieces, self.shapes, strict=True))

    def flat(self, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
        """Join tensors of the parameters' shapes into a flat vector (D,)."""
        return torch.cat([t.reshape(-1) for t in tensors])


def layout(model: nn.Module, globs: str | None = None) -> Layout:
    """Choose the parameters that vary: all trainable ones, or those with names that match a glob.

    Args:
        model: the network.
        globs: patterns separated by commas, as in "layer3.*,fc.weight". The name of a module stands for all of its
            parameters: "encoder" is "encoder.*". None chooses every parameter that requires a gradient.

    Returns:
        The layout, in the order of `model.named_parameters()`, each shared tensor once.

    Raises:
        InputError: a pattern matches no trainable parameter, or the model has none.
    """
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not trainable:
        raise InputError("the model has no trainable parameters: all have requires_grad=False")
    chosen = set(trainable)
    if globs is not None:
        chosen = set()
        for pattern in (g.strip() for g in globs.split(",")):
            found = {n for n in trainable if fnmatchcase(n, pattern) or fnmatchcase(n, f"{pattern}.*")}
            if not found:
                shown = ", ".join(list(trainable)[:6])
                raise InputError(f"{arg('params', pattern)} fits no trainable parameter; the first are {shown}")
            chosen |= found
    names = tuple(n for n in trainable if n in chosen)
    return Layout(names=names, shapes=tuple(trainable[n].shape for n in names))
