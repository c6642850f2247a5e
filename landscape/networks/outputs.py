"""A model's output as a matrix with a row z for each sample, the numbers that the loss depends on; and back.

Curvature matrices use rows z (B, K) for any output: logits of classes unchanged, any other tensor flattened, several
tensors concatenated. A loss receives the output as the model returned it.
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
    """The logits of classes, possibly among other outputs."""

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
        """Return z, (B, K), of a model's output; only shapes are used, so this can be traced."""
        return models.logits_of(output, self.n_classes, self.index)

    def restore(self, z: Tensor) -> Any:
        """Return the outputs in the form that the loss accepts."""
        return z


@dataclass(frozen=True)
class One:
    """One tensor (B, ...); its second axis may have another length in each batch, such as the length of sequences."""

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
                f"the model returned {tuple(found.shape)}, but {self.shape} for an earlier sample: all axes after the "
                "second must have the same length for all samples"
            )
        return found.flatten(1) if self.shape else found[:, None]

    def restore(self, z: Tensor) -> Any:
        """See `Logits.restore`."""
        if not self.shape:
            return z[:, 0]
        return z.reshape(len(z), -1, *self.shape[1:]) if len(self.shape) > 1 else z


@dataclass(frozen=True)
class Several:
    """All floating-point tensors of a tuple, a dict or a `ModelOutput`; a loss gets None for the other elements."""

    spec: TreeSpec
    shapes: tuple[tuple[int, ...] | None, ...]  # of a sample; None for an entry that is left out
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
            raise InputError(f"the model returned {spec}, but {self.spec} for an earlier sample")
        chosen = [(t, shape) for t, shape in zip(found, self.shapes, strict=True) if shape is not None]
        for t, shape in chosen:
            if tuple(t.shape[1:]) != shape:
                raise InputError(
                    f"the model returned {tuple(t.shape[1:])}, but {shape} for an earlier sample: with several "
                    "tensors, each must have the same shape for all samples"
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
    """The loss that a model computes itself: a mean over its inputs, so it gets one sample at a time."""

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
                f"the model did not return a loss ({_shown(output)}): for a batch of one sample it must return one "
                f"number, alone, first in a tuple, or as `.loss`; or choose another {arg('loss')}"
            )
        return found.reshape(1, 1)

    def restore(self, z: Tensor) -> Any:
        """See `Logits.restore`."""
        return z[:, 0]


Outputs: TypeAlias = Logits | One | Several | OwnLoss


def main_tensor(output: Any, index: int | None = None) -> Tensor:
    """Return the tensor of outputs in what a model returned.

    Args:
        output: a tensor, or a tuple, list or mapping that contains one.
        index: position of the tensor; None for the one called "logits", or the only one.

    Returns:
        The tensor.

    Raises:
        InputError: there is none, or there are several and the index does not choose one.
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
    """Return the layout of a model's whole output, for a user's loss that accepts it unchanged.

    Args:
        output: the output for a batch.
        n: number of samples in the batch.

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
    """Return the layout of the tensor of outputs, for the losses that have a name.

    Args:
        output: of a batch.
        n: samples of the batch.
        index: see `main_tensor`.

    Returns:
        The layout.

    Raises:
        InputError: there is no such tensor, or it does not have a row for each sample.
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
