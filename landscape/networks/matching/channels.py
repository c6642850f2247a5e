"""Which channels of a network may change places without changing its function.

The network is traced into the operations that torch executes, with its weights as inputs, and the positions on all axes
of all tensors are followed from the weights to the logits: `identities.py` has the equations, `equivariance.py` what
each operation says. What is left are classes of positions that must move together. Two classes are interchangeable if
they stand in the same tensors, on the same axes, at the same places: then nothing in the network tells them apart, and
a permutation of them that is applied to all parameters and buffers changes nothing but the order of sums. Where a
residual stream is padded with channels (option A), those that come from the narrower stage stand in more tensors than
those that join them, and the two kinds are groups of their own.
"""

import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from landscape.autodiff.called import functional_call
from landscape.autodiff.tracing import graph_of
from landscape.errors import InputError, LandscapeError, arg, one_line
from landscape.networks.matching import equivariance
from landscape.networks.matching.identities import FIXED, Classes, still


@dataclass(frozen=True, eq=False)
class Slot:
    """Where the channels of a group stand on one axis of a tensor."""

    name: str  # of a parameter or buffer, or of a node of the graph
    axis: int
    positions: np.ndarray  # (size, k) the positions of each channel; k > 1 if the axis was flattened


@dataclass(frozen=True, eq=False)
class Group:
    """Channels that are interchangeable."""

    slots: tuple[Slot, ...]  # the parameters and buffers that follow a permutation, each under all of its names
    reads: tuple[Slot, ...]  # the nodes whose values activation functions and products read

    @property
    def size(self) -> int:
        """Number of channels."""
        return len(self.slots[0].positions)


@dataclass(frozen=True, eq=False)
class Channels:
    """A network as a graph of operations, and its channels."""

    module: fx.GraphModule  # (tensors, inputs) -> outputs
    names: tuple[str, ...]  # of the tensors; a shared tensor has its first name
    groups: tuple[Group, ...]
    held: tuple[str, ...]  # operations that fix the positions of channels

    def values(self, state: Mapping[str, Tensor], inputs: Tensor) -> Iterator[tuple[str, Any]]:
        """Run the network operation by operation, and free values that are no longer needed.

        Args:
            state: parameters and buffers by name. Inputs and buffers may be overwritten, if the network does that.
            inputs: inputs with the traced shape, dtype and device.

        Yields:
            A node's name and its value. The next operation may overwrite it.
        """
        leaves = iter([*(state[name] for name in self.names), inputs])
        nodes = list(self.module.graph.nodes)
        last = {used: node for node in nodes for used in node.all_input_nodes}
        values: dict[fx.Node, Any] = {}
        for node in nodes:
            if node.op == "output":
                return
            if node.op == "placeholder":
                values[node] = next(leaves)
            elif node.op == "get_attr":
                values[node] = getattr(self.module, node.target)
            else:
                args, kwargs = fx.map_arg((node.args, node.kwargs), values.__getitem__)
                values[node] = node.target(*args, **kwargs)
            yield node.name, values[node]
            for used in {*node.all_input_nodes, node}:
                if last.get(used, node) is node:
                    del values[used]


def channels_of(model: nn.Module, inputs: Tensor, logits: Callable[[Any], Any] | None = None) -> Channels:
    """Trace a network in eval mode and find its interchangeable channels.

    Args:
        model: a copy of the network in eval mode, see `networks.copies`.
        inputs: (B, ...) an example batch, with the network's dtype and on its device.
        logits: returns those of the network's outputs that have channels with a fixed meaning; None for all outputs.

    Returns:
        The graph and the groups.

    Raises:
        InputError: the network cannot be traced, or the effect of one of its operations on channels is not known.
        LandscapeError: an error of `logits`.
    """
    aliases: dict[int, list[str]] = {}
    tensors: list[Tensor] = []
    for name, tensor in model.state_dict(keep_vars=True).items():
        if isinstance(tensor, Tensor):
            if id(tensor) not in aliases:
                tensors.append(tensor.detach())
            aliases.setdefault(id(tensor), []).append(name)
    names = tuple(found[0] for found in aliases.values())

    def function(tensors: Sequence[Tensor], inputs: Tensor) -> list[Tensor]:
        output = functional_call(model, dict(zip(names, tensors, strict=True)), (inputs,))
        return outputs(output if logits is None else logits(output))

    try:
        with torch.no_grad():
            module = graph_of(function, tensors, inputs.clone())
    except LandscapeError:
        raise
    except Exception as error:  # a user's model may raise any error when it is traced
        raise InputError(
            f"the network cannot be traced to match its channels: {one_line(error)}; leave out {arg('match')}"
        ) from error
    weights = dict(zip((n for n in module.graph.nodes if n.op == "placeholder"), aliases.values(), strict=False))
    rough, classes = Classes(cautious=False), Classes()
    found = _follow(module.graph, rough, {})
    fixed = {node: [rough.fixed(ids) for ids in found[node]] for node in weights}
    axes = _follow(module.graph, classes, fixed)
    return Channels(module, names, _groups(classes, axes, weights, _reads(module.graph)), tuple(sorted(classes.held)))


def outputs(output: Any) -> list[Tensor]:
    """List the tensors in a network's output.

    Args:
        output: a tensor, or tuples, lists and mappings of them.

    Returns:
        The tensors, in their order.

    Raises:
        InputError: there is none.
    """
    found: list[Tensor] = []
    waiting = [output]
    while waiting:
        element = waiting.pop(0)
        if isinstance(element, Tensor):
            found.append(element)
        elif isinstance(element, Mapping | tuple | list):
            waiting[:0] = element.values() if isinstance(element, Mapping) else element
    if not found:
        raise InputError(f"the network returned {type(output).__name__}, expected a tensor: leave out {arg('match')}")
    return found


def _follow(graph: fx.Graph, classes: Classes, fixed: Mapping[fx.Node, Sequence[np.ndarray]]) -> dict[fx.Node, Any]:
    """Assign identities to the axes of all tensors of a graph; `fixed` lists the positions that cannot move."""
    axes: dict[fx.Node, Any] = {}
    inputs = [node for node in graph.nodes if node.op == "placeholder"][-1]
    for node in graph.nodes:
        if node.op == "output":
            for used in node.all_input_nodes:
                classes.fix(*axes[used])
        elif node.op == "call_function" and node.target is not operator.getitem:
            axes[node] = equivariance.axes_of(node, axes, classes)
        elif node.op == "call_function":
            axes[node] = axes[node.args[0]][node.args[1]]
        else:
            make = still if node is inputs or node.op == "get_attr" else classes.new
            axes[node] = tuple(make(n) for n in node.meta["val"].shape)
            for ids, known in zip(axes[node], fixed.get(node, ()), strict=False):
                ids[known] = FIXED
    return axes


def _reads(graph: fx.Graph) -> set[fx.Node]:
    """Return the tensors that depend on the inputs and are read by an activation function or a product.

    Before an activation function a channel that is dead for these inputs can still be told from others; after it, a
    product reads what the next layer sees. Values in between differ by a factor and an offset for each channel.
    """
    moving = {[node for node in graph.nodes if node.op == "placeholder"][-1]}
    reads = set()
    for node in graph.nodes:
        used = moving.intersection(node.all_input_nodes)
        if used:
            moving.add(node)
            alone = len(node.all_input_nodes) == 1
            if equivariance.name_of(node) in equivariance.PRODUCTS or (alone and equivariance.is_pointwise(node)):
                reads |= used
    return reads


def _groups(
    classes: Classes, axes: Mapping[fx.Node, Any], weights: Mapping[fx.Node, Sequence[str]], reads: set[fx.Node]
) -> tuple[Group, ...]:
    """Gather the classes that are interchangeable."""
    arrays: dict[int, tuple[np.ndarray, list[tuple[fx.Node, int]]]] = {}  # most tensors have their operand's axes
    for node, found in axes.items():
        for axis, ids in enumerate(() if isinstance(found, list) else found):
            arrays.setdefault(id(ids), (ids, []))[1].append((node, axis))
    where: dict[int, dict[tuple[int, tuple[int, ...]], list[int]]] = {}  # class -> (array, place) -> positions
    for a, (ids, _) in enumerate(arrays.values()):
        for position, i in enumerate(ids.tolist()):
            root, path = classes.find(i)
            if root != FIXED:
                where.setdefault(root, {}).setdefault((a, path), []).append(position)
    alike: dict[Any, list[dict[tuple[int, tuple[int, ...]], list[int]]]] = {}
    for found in where.values():
        alike.setdefault(tuple(sorted((key, len(positions)) for key, positions in found.items())), []).append(found)
    groups = []
    for signature, members in alike.items():
        slots, read = [], []
        for a, (_, tensors) in enumerate(arrays.values()):
            keys = [key for key, _ in signature if key[0] == a]
            if keys:
                positions = np.array([[p for key in keys for p in member[key]] for member in members])
                slots += [Slot(name, axis, positions) for node, axis in tensors for name in weights.get(node, ())]
                read += [Slot(node.name, axis, positions) for node, axis in tensors if node in reads]
        if len(members) > 1 and slots and read:
            groups.append(Group(tuple(slots), tuple(read)))
    return tuple(groups)
