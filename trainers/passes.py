"""Common functions for steps with several passes over one batch: gradients as vectors, moved parameters, batch norm.

The contract of every optimizer here: `losses() -> (B,)` runs the model on the batch and returns one loss for each
sample, without a backward pass. It is called once for each forward pass that the method needs.
"""

import inspect
import math
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from landscape.autodiff.batch_statistics import kept_statistics
from landscape.autodiff.recording import Losses
from landscape.errors import InputError, arg, literal, one_line

__all__ = [
    "Losses", "Reduce", "alone", "base_optimizer", "flat", "full_precision", "gradient", "hand_over", "kept_statistics",
    "length", "moved", "put", "trainable", "unit",
]  # fmt: skip

Reduce = Callable[[Tensor], None]
"""Adds a tensor up over all ranks, in place."""


def alone(_: Tensor) -> None:
    """Add up over one rank: nothing to do."""


_NOT_NEGATIVE = ("lr", "momentum", "weight_decay")
"""Options that almost every optimizer has. PyTorch refuses negative ones of a whole optimizer, but not those of a group
of parameters, and it accepts nan and infinity."""


def base_optimizer(
    base: type[torch.optim.Optimizer], params: Iterable[Any], options: Mapping[str, Any]
) -> torch.optim.Optimizer:
    """Make an optimizer.

    Args:
        base: its class.
        params: parameters, or groups of them with their own options.
        options: for all groups.

    Returns:
        The optimizer.

    Raises:
        InputError: it refuses an option, one of `_NOT_NEGATIVE` is negative or not finite, or its steps evaluate the
            loss themselves.
    """
    if inspect.signature(base.step).parameters["closure"].default is inspect.Parameter.empty:
        raise InputError(f"{base.__name__} evaluates the loss in its steps: choose a base that only reads gradients")
    given = list(params)
    for some in (options, *(group for group in given if isinstance(group, Mapping))):
        for name in _NOT_NEGATIVE:
            if isinstance(some.get(name), int | float | Tensor) and not 0 <= some[name] < math.inf:
                raise InputError(f"{arg(name)} must be a finite number, at least 0, got {some[name]}")
    try:
        return base(given, **options)
    except (TypeError, ValueError) as error:
        shown = ", ".join(["its parameters", *(f"{name}={literal(value)}" for name, value in options.items())])
        raise InputError(f"{base.__name__} refuses {shown}: {one_line(error)}") from error


def gradient(losses: Tensor, weights: Tensor, parameters: Sequence[Tensor], *, keep: bool = False) -> Tensor:
    """Return the gradient of a weighted sum of losses, as one vector.

    Args:
        losses: (B,), with their graph.
        weights: (B,).
        parameters: tensors with D entries in total.
        keep: keep the graph for another call.

    Returns:
        (D,); zero for parameters that the losses do not depend on.

    Raises:
        InputError: the losses are not one number for each sample.
    """
    if losses.ndim == 1 and losses.shape != weights.shape:
        raise InputError(f"losses() returned {len(losses)} values for groups or first losses of {len(weights)} samples")
    if losses.shape != weights.shape:
        raise InputError(
            f"losses() returned shape {tuple(losses.shape)} for a batch of {len(weights)}: it must return one value "
            'per sample; use reduction="none"'
        )
    found = torch.autograd.grad(losses, parameters, weights.to(losses), retain_graph=keep, allow_unused=True)
    # an embedding may have a sparse gradient
    return flat([torch.zeros_like(p) if g is None else g.to_dense() for p, g in zip(parameters, found, strict=True)])


def flat(tensors: Iterable[Tensor]) -> Tensor:
    """Join tensors into one vector; it shares no memory with them."""
    return torch.cat([t.detach().reshape(-1) for t in tensors])


def length(vector: Tensor) -> Tensor:
    """Return the length of a vector of any shape, (); its squares may be too small or too large for its dtype."""
    found: Tensor = _norm(_at_most_one(vector)) * torch.linalg.vector_norm(vector, math.inf)
    return found


def unit(vector: Tensor) -> Tensor:
    """Return a vector of any shape divided by its length; zero for zero."""
    scaled = _at_most_one(vector)
    size = _norm(scaled)
    return scaled.div_(torch.where(size > 0, size, 1.0))


def _norm(vector: Tensor) -> Tensor:
    """Return the length of a vector; `sum` adds up in a tree, `vector_norm` loses digits of long vectors on the CPU."""
    return vector.square().sum().sqrt()


def _at_most_one(vector: Tensor) -> Tensor:
    """Return a vector divided by its largest absolute value; one that is not finite remains so."""
    largest = torch.linalg.vector_norm(vector, math.inf)
    return vector / torch.where(largest > 0, largest, 1.0)


def put(vector: Tensor, parameters: Sequence[Tensor]) -> None:
    """Set parameters, (D,) in all, to the entries of a vector, in place.

    An autocast around the caller keeps casts of weights until it ends, and does not notice that these have changed.
    """
    pieces = torch.split(vector, [p.numel() for p in parameters])
    with torch.no_grad():
        torch._foreach_copy_(
            [p.data for p in parameters], [piece.view_as(p) for piece, p in zip(pieces, parameters, strict=True)]
        )
    torch.clear_autocast_cache()


def hand_over(vector: Tensor, parameters: Sequence[Tensor]) -> None:
    """Write the entries of a vector (D,) into the parameters' `.grad`, which an optimizer reads."""
    pieces = torch.split(vector, [p.numel() for p in parameters])
    for piece, p in zip(pieces, parameters, strict=True):
        p.grad = piece.view_as(p).to(p.dtype)


@contextmanager
def moved(parameters: Sequence[Tensor], theta: Tensor, by: Tensor) -> Generator[None, None, None]:
    """Move parameters inside the block; afterwards they have their old values, bitwise.

    Args:
        parameters: tensors with D entries in total.
        theta: their values, (D,).
        by: the vector to add, (D,).

    Yields:
        Nothing.
    """
    put(theta + by, parameters)
    try:
        yield
    finally:
        put(theta, parameters)


def full_precision(place: torch.device) -> torch.autocast:
    """Return a context in which products of weights and gradients keep their dtype, despite a caller's autocast."""
    return torch.autocast(place.type, enabled=False)


def trainable(groups: Iterable[dict[str, object]]) -> list[Tensor]:
    """List the parameters of an optimizer's groups that require a gradient."""
    return [p for group in groups for p in group["params"] if p.requires_grad]  # type: ignore[attr-defined]
