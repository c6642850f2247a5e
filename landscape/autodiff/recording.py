"""Records the layers used in a forward pass and their inputs, and differentiates back to their outputs.

If the parameters of a layer are used nowhere else, and its inputs have the batch along the first axis, the gradient of
each sample is a function of the layer's input and of the gradient at its output. `recorded` finds the calls of such
layers, `used_otherwise` finds the other parameters, `at_outputs` makes the backward pass to the outputs.
"""

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, Node, get_gradient_edge

from landscape.autodiff.batch_statistics import Constant, coupling
from landscape.errors import InputError, is_of_memory

Losses = Callable[[], Tensor]
"""Runs the model on a batch; returns the loss of each sample, (B,)."""

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
SEPARABLE = (*_CONVOLUTIONS, nn.Linear, *NORMS)
"""Layers whose gradients can be taken over any part of a batch."""


@dataclass(frozen=True, eq=False)
class Call:
    """One use of a layer in a forward pass."""

    module: Any
    inputs: Tensor  # (B, ...)
    source: Node | None  # origin of the inputs in the graph
    output: GradientEdge
    statistics: tuple[Tensor, ...]  # of batch norm: mean and variance, (C,)


def parameters_of(model: nn.Module, params: Sequence[str] | None) -> dict[str, Tensor]:
    """Return the parameters with respect to which to differentiate.

    Args:
        model: the model that has them.
        params: their names; None for all trainable ones.

    Returns:
        The parameters by name, in the order of `params`, or in the model's order for None.

    Raises:
        InputError: a parameter does not exist, or there are none.
    """
    trainable: dict[str, Tensor] = {name: p for name, p in model.named_parameters() if p.requires_grad}
    for name in params or ():
        if name not in trainable:
            raise InputError(f"the model has no trainable parameter {name!r}; it has {', '.join(list(trainable)[:6])}")
    chosen = trainable if params is None else {name: trainable[name] for name in params}
    if not chosen:
        raise InputError("there are no parameters to differentiate by: leave requires_grad on, and name at least one")
    return chosen


def _separable(module: nn.Module, kinds: tuple[type[nn.Module], ...]) -> bool:
    """Say whether a layer has exactly a known type; a subclass may compute anything."""
    if type(module) not in kinds or not {name for name, _ in module.named_parameters(recurse=False)} <= {
        "weight",
        "bias",
    }:
        return False
    if not isinstance(module.weight, nn.Parameter):  # none, or computed from others by a parametrization
        return False
    return not isinstance(module, _CONVOLUTIONS) or (
        module.padding_mode == "zeros" and not isinstance(module.padding, str)
    )


def batch_first(
    model: nn.Module, losses: Callable[[int], Tensor], kinds: tuple[type[nn.Module], ...] = SEPARABLE
) -> frozenset[nn.Module]:
    """Find the layers with inputs that have the batch, in the same order, along their first axis, for any batch size.

    Args:
        model: as for `group_gradients`.
        losses: runs the model once on the first n of three different samples, and returns a value or a row of values
            for each.
        kinds: types of layers.

    Returns:
        The layers; a layer that is not used in these batches is not included.
    """
    two, three = (_recorded(model, partial(losses, n), kinds)[1] for n in (2, 3))
    if [c.module for c in two] != [c.module for c in three]:
        return frozenset()
    pairs = list(zip(two, three, strict=True))
    other = {
        a.module
        for a, b in pairs
        if (len(a.inputs), len(b.inputs)) != (2, 3) or not torch.allclose(a.inputs, b.inputs[:2], rtol=0.01, atol=1e-4)
    }
    return frozenset({call.module for call in two} - other)


def recorded(
    model: nn.Module,
    losses: Losses,
    kinds: tuple[type[nn.Module], ...],
    first: Collection[nn.Module] | None = None,
) -> tuple[Tensor, list[Call]]:
    """Run the model and record the calls of layers of some kinds that have the batch along their first axis.

    Args:
        model: the model; its samples must not influence each other, unless there are no kinds.
        losses: runs the model on a batch, once, and returns one value or one row of values for each sample.
        kinds: types of layers.
        first: as for `group_gradients`.

    Returns:
        The values with their graph, (B,) or (B, C), and the calls.

    Raises:
        InputError: batch norm couples the samples, or the values are not one or one row per sample.
    """
    values, calls = _recorded(model, losses, kinds)
    return values, [c for c in calls if len(c.inputs) == len(values) and (first is None or c.module in first)]


def _recorded(model: nn.Module, losses: Losses, kinds: tuple[type[nn.Module], ...]) -> tuple[Tensor, list[Call]]:
    for name in coupling(model) if kinds else ():
        raise InputError(
            f"{name} is a batch norm that normalises by its batch, so that samples influence each other: call "
            "model.eval(), or use batch_statistics_constant(model)"
        )
    calls: list[Call] = []

    def record(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        x = args[0] if len(args) == 1 else None
        if (
            not isinstance(x, Tensor)
            or not output.requires_grad
            or x.ndim < max(2, module.get_parameter("weight").ndim)
        ):
            return  # unbatched, given by keyword, or without a gradient
        statistics: tuple[Tensor, ...] = ()
        if isinstance(module, NORMS):
            constant = module.__dict__.get("forward")
            statistics = constant.statistics if isinstance(constant, Constant) else ()
            statistics = statistics or (module.get_buffer("running_mean"), module.get_buffer("running_var"))
        source = get_gradient_edge(x).node if x.requires_grad else None
        calls.append(Call(module, x.detach(), source, get_gradient_edge(output), statistics))

    # Before all other hooks, which may change the layer's output.
    handles = [m.register_forward_hook(record, prepend=True) for m in model.modules() if _separable(m, kinds)]
    try:
        values = losses()
    finally:
        for handle in handles:
            handle.remove()
    if values.ndim not in {1, 2}:
        raise InputError(
            f'losses() returned shape {tuple(values.shape)}: it must return one value per sample; use reduction="none"'
        )
    if not values.requires_grad:
        raise InputError("losses() returned values without a graph: do not call it under torch.no_grad()")
    return values, calls


def used_otherwise(values: Tensor, calls: Iterable[Call], chosen: dict[str, Tensor]) -> list[str]:
    """Name the parameters that the values depend on along a path that does not pass through a recorded call.

    Args:
        values: with their graph.
        calls: the recorded calls.
        chosen: parameters by name.

    Returns:
        Names of those that the calls alone do not account for.
    """
    leaves = {name: get_gradient_edge(p).node for name, p in chosen.items()}
    source = {call.output.node: call.source for call in calls}
    seen: set[Node] = set()
    ahead: list[Node | None] = [values.grad_fn]
    while ahead:
        node = ahead.pop()
        if node is not None and node not in seen:
            seen.add(node)
            ahead.extend([source[node]] if node in source else [n for n, _ in node.next_functions])
    return [name for name, leaf in leaves.items() if leaf in seen]


def at_outputs(values: Tensor, calls: Sequence[Call], seeds: Tensor, *, keep: bool) -> list[tuple[Call, Tensor]]:
    """Differentiate the values with respect to the outputs of the recorded calls.

    Args:
        values: with their graph.
        calls: the recorded calls.
        seeds: factors of the values, of their shape.
        keep: keep the graph for another pass.

    Returns:
        The calls that the values depend on, with the gradient at the output of each.
    """
    if not calls:
        return []
    # Autograd computes only the backward steps that lead to these outputs, so no gradients of weights.
    found = torch.autograd.grad([values], [c.output for c in calls], [seeds], retain_graph=keep, allow_unused=True)
    return [(call, d) for call, d in zip(calls, found, strict=True) if d is not None]


def at_outputs_of_all(values: Tensor, calls: Sequence[Call], seeds: Tensor) -> list[tuple[Call, Tensor]]:
    """Do the same as `at_outputs` for several seeds, all at once if the operations allow it.

    Args:
        values: with their graph, which stays.
        calls: the recorded calls.
        seeds: (K, ...), each of the shape of the values.

    Returns:
        The calls that the values depend on, with the gradients at the output of each, (K, B, ...).

    Raises:
        RuntimeError: memory has run out.
    """
    if not calls:
        return []
    if len(seeds) == 1:  # vectorised steps of one are slower than plain ones
        return [(call, d[None]) for call, d in at_outputs(values, calls, seeds[0], keep=True)]
    outputs = [c.output for c in calls]
    found: Sequence[Tensor | None]
    try:
        found = torch.autograd.grad(
            [values], outputs, [seeds], retain_graph=True, allow_unused=True, is_grads_batched=True
        )
    except RuntimeError as error:  # an operation whose derivative cannot be vectorised
        if is_of_memory(error):
            raise
        each = [torch.autograd.grad([values], outputs, [seed], retain_graph=True, allow_unused=True) for seed in seeds]
        of_calls = ([d for d in of_one if d is not None] for of_one in zip(*each, strict=True))
        found = tuple(torch.stack(rows) if rows else None for rows in of_calls)
    return [(call, d) for call, d in zip(calls, found, strict=True) if d is not None]
