"""Batches of any structure: a tensor, or tuples, lists and dicts of tensors, nested as one likes.

Every tensor has the samples along its first axis. How a model is called follows from the outermost structure:
`model(tensor)`, `model(*tuple)`, `model(**dict)`; one argument that is itself a tuple or a dict stands in a tuple of
one.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_map_only, tree_unflatten

Tree: TypeAlias = Any
"""A tensor, or tuples, lists and dicts of them."""


def leaves(tree: Tree) -> list[Tensor]:
    """Return the tensors of a tree, in a fixed order."""
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def size(tree: Tree) -> int:
    """Return the number of samples."""
    return len(leaves(tree)[0])


def device(tree: Tree) -> torch.device:
    """Return where the tensors are."""
    return leaves(tree)[0].device


def mapped(function: Callable[[Tensor], Tensor], tree: Tree) -> Tree:
    """Return the tree with a function applied to each tensor."""
    if isinstance(tree, Tensor):
        return function(tree)
    return tree_map_only(Tensor, function, tree)


def take(tree: Tree, index: Any) -> Tree:
    """Return some of the samples: those of a slice or of an index tensor."""
    return mapped(lambda t: t[index], tree)


def one(tree: Tree, i: int) -> Tree:
    """Return a sample as a batch of one."""
    return take(tree, slice(i, i + 1))


def each(tree: Tree) -> Iterator[Tree]:
    """Yield the samples, each as a batch of one."""
    return (one(tree, i) for i in range(size(tree)))


def clone(tree: Tree) -> Tree:
    """Return a copy, for models that overwrite their inputs."""
    return mapped(Tensor.clone, tree)


def to(tree: Tree, where: torch.device | str | None, dtype: torch.dtype) -> Tree:
    """Return the tree on a device, with floating-point numbers of a dtype; integers keep their own."""
    return mapped(lambda t: t.to(where, dtype) if t.is_floating_point() else t.to(where), tree)


def n_bytes(tree: Tree) -> int:
    """Return the memory that the tensors take."""
    return sum(t.numel() * t.element_size() for t in leaves(tree))


def shape(tree: Tree) -> Any:
    """Return the structure with the dtype and the shape of each tensor, without the axis of the samples."""
    found, structure = tree_flatten(tree)
    return str(structure), tuple((t.dtype, tuple(t.shape[1:])) if isinstance(t, Tensor) else t for t in found)


def shown(tree: Tree) -> str:
    """Return the shapes for a message, as `(8, 3)` or `{'ids': (8, 12), 'mask': (8, 12)}`."""
    if isinstance(tree, Tensor):
        return str(tuple(tree.shape))
    return str(tree_map(lambda t: tuple(t.shape) if isinstance(t, Tensor) else type(t).__name__, tree))


def join(trees: Sequence[Tree]) -> Tree:
    """Return the samples of several trees of one structure, one after the other."""
    if isinstance(trees[0], Tensor):
        return torch.cat(list(trees))
    structure = tree_flatten(trees[0])[1]
    columns = zip(*(tree_leaves(tree) for tree in trees), strict=True)
    return tree_unflatten([torch.cat(column) for column in columns], structure)
