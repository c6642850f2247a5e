"""What a model returns, and the numbers in it that the loss is a function of: a row z for each sample, and back.

Matrices are made of rows z (B, K), whatever the outputs are: logits of classes as they are, any other tensor laid out
flat, several tensors side by side. A loss sees what the model returned.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from landscape.autodiff import trees
from landscape.autodiff.trees import Tree
from landscape.errors import InputError, arg
from landscape.networks import models

Run: TypeAlias = Callable[[Tree], Any]
"""Inputs -> what the model returns."""


@dataclass(frozen=True)
class Logits:
    """The logits of classes, among whatever else is returned."""

    n_classes: int
    index: int | None = None
    measurable: bool = field(default=True, init=False)  # the task's measures apply

    @property
    def size(self) -> int:
        """K."""
        return self.n_classes

    def of(self, run: Run, inputs: Tree) -> Tensor:
        """Return z, (B, K), of a batch."""
        return self.read(run(inputs))

    def read(self, output: Any) -> Tensor:
        """Return z, (B, K), of what a model returned; only shapes are looked at, so this may be traced."""
        return models.logits_of(output, self.n_classes, self.index)

    def restore(self, z: Tensor) -> Any:
        """Return what the loss takes."""
        return z


@dataclass(frozen=True)
class One:
    """One tensor (B, ...); its axis after the samples may differ from batch to batch, as lengths of sequences do."""

    shape: tuple[int, ...]  # of a sample
    index: int | None = None
    measurable: bool = field(default=True, init=False)  # the task's measures apply

    @property
    def size(self) -> int:
        """K, of the sample that was looked at first."""
        return math.prod(self.shape)

    def of(self, run: Run, inputs: Tree) -> Tensor:
        """See `Logits.of`."""
        return self.read(run(inputs))

    def read(self, output: Any) -> Tensor:
        """See `Logits.read`."""
        found = main_tensor(output, self.index)
        if found.ndim != 1 + len(self.shape) or found.shape[2:] != self.shape[1:]:
            raise InputError(
                f"the model returned {tuple(found.shape)}, and {self.shape} for a sample before: axes behind the "
                "second must keep their length"
            )
        return found.flatten(1) if self.shape else found[:, None]

    def restore(self, z: Tensor) -> Any:
        """See `Logits.restore`."""
        if not self.shape:
            return z[:, 0]
        return z.reshape(len(z), -1, *self.shape[1:]) if len(self.shape) > 1 else z


@dataclass(frozen=True)
class Several:
    """All floating-point tensors of a tuple, a dict or a `ModelOutput`; a loss sees None for what else is there."""

    spec: TreeSpec
    shapes: tuple[tuple[int, ...] | None, ...]  # of a sample, None for what is left out
    measurable: bool = field(default=False, init=False)

    @property
    def size(self) -> int:
        """See `Logits.size`."""
        return sum(math.prod(shape) for shape in self.shapes if shape is not None)

    def of(self, run: Run, inputs: Tree) -> Tensor:
        """See `Logits.of`."""
        return self.read(run(inputs))

    def read(self, output: Any) -> Tensor:
        """See `Logits.read`."""
        found, spec = tree_flatten(output)
        if spec != self.spec:
            raise InputError(f"the model returned {spec}, and {self.spec} for a sample before")
        chosen = [(t, shape) for t, shape in zip(found, self.shapes, strict=True) if shape is not None]
        for t, shape in chosen:
            if tuple(t.shape[1:]) != shape:
                raise InputError(
                    f"the model returned {tuple(t.shape[1:])}, and {shape} for a sample before: of several tensors "
                    "all must keep their shape"
                )
        return torch.cat([t.reshape(len(t), -1) for t, _ in chosen], dim=1)

    def restore(self, z: Tensor) -> Any:
        """See `Logits.restore`."""
        sizes = [math.prod(shape) for shape in self.shapes if shape is not None]
        pieces = iter(torch.split(z, sizes, dim=1))
        return tree_unflatten(
            [None if shape is None else next(pieces).reshape(len(z), *shape) for shape in self.shapes], self.spec
        )


@dataclass(frozen=True)
class OwnLoss:
    """The loss that a model computes itself: a mean over what it is given, so it is given one sample at a time."""

    size: int = field(default=1, init=False)
    measurable: bool = field(default=False, init=False)

    def of(self, run: Run, inputs: Tree) -> Tensor:
        """See `Logits.of`."""
        return torch.cat([self.read(run(one)) for one in trees.each(inputs)])

    def read(self, output: Any) -> Tensor:
        """See `Logits.read`."""
        found = output.get("loss") if isinstance(output, Mapping) else getattr(output, "loss", None)
        if found is None:
            first = output[0] if isinstance(output, tuple | list) and output else output
            found = first if isinstance(first, Tensor) else None
        if found is None or found.numel() != 1:
            raise InputError(
                f"the model returned no loss of its own ({_shown(output)}): it must return one number for a batch of "
                f"one, alone, first in a tuple, or as `.loss`; or choose another {arg('loss')}"
            )
        return found.reshape(1, 1)

    def restore(self, z: Tensor) -> Any:
        """See `Logits.restore`."""
        return z[:, 0]


Outputs: TypeAlias = Logits | One | Several | OwnLoss


def main_tensor(output: Any, index: int | None = None) -> Tensor:
    """Return the tensor of outputs among what a model returned.

    Args:
        output: a tensor, or a tuple, list or mapping that holds one.
        index: position of the tensor; None to take that which is called "logits", or the only one.

    Returns:
        The tensor.

    Raises:
        InputError: there is none, or several and the index does not say which.
    """
    if isinstance(output, Tensor) and index is None:
        return output
    if isinstance(output, Mapping) and index is None and isinstance(output.get("logits"), Tensor):
        named: Tensor = output["logits"]
        return named
    found, fitting = models.chosen(models.elements_of(output) or [], _is_output, index)
    if found is not None:
        return found
    choice = f"choose one by {arg('logits_index')}, {' or '.join(map(str, fitting))}" if fitting else "none is a tensor"
    raise InputError(f"the model returned {_shown(output)}: {choice}")


def whole(output: Any, n: int) -> Outputs:
    """Return how all of what a model returned is laid out, for a loss of the user that takes it as it is.

    Args:
        output: of a batch.
        n: samples of the batch.

    Returns:
        The layout.

    Raises:
        InputError: there is no tensor with a row for each sample.
    """
    if isinstance(output, Tensor):
        return One(_of_sample(output, n))
    found, spec = tree_flatten(output)
    shapes = tuple(
        tuple(t.shape[1:]) if isinstance(t, Tensor) and t.is_floating_point() and t.ndim and len(t) == n else None
        for t in found
    )
    if all(shape is None for shape in shapes):
        raise InputError(f"the model returned {_shown(output)}: a tensor with a row for each sample is needed")
    return Several(spec, shapes)


def main(output: Any, n: int, index: int | None) -> Outputs:
    """Return how the tensor of outputs is laid out, for the losses that have a name.

    Args:
        output: of a batch.
        n: samples of the batch.
        index: see `main_tensor`.

    Returns:
        The layout.

    Raises:
        InputError: there is no such tensor, or it has not a row for each sample.
    """
    return One(_of_sample(main_tensor(output, index), n), index)


def _is_output(element: Any) -> bool:
    return isinstance(element, Tensor) and element.is_floating_point() and element.ndim > 0


def _of_sample(output: Tensor, n: int) -> tuple[int, ...]:
    if not output.ndim or len(output) != n:
        raise InputError(
            f"the model returned {tuple(output.shape)} for {n} samples: a row for each sample is needed, along the "
            "first axis"
        )
    return tuple(output.shape[1:])


def _shown(output: Any) -> str:
    if isinstance(output, Mapping):
        return str({name: _shown(value) for name, value in output.items()})
    if isinstance(output, tuple | list):
        return f"({', '.join(map(_shown, output))})"
    return str(tuple(output.shape)) if isinstance(output, Tensor) else type(output).__name__
