"""A network's forward pass, with everything that depends only on its weights moved out of the loop over batches.

The pass is traced once as a function of (parameters and running statistics, inputs) and divided in two (tracing.py):
operations that depend only on the weights, such as folding batch norm into convolutions, run once for each point of
parameter space; the others run for each batch. Memory is reused in place, and on a CPU a convolution is fused with the
ReLU or the sum after it (oneDNN's fused operations, through a private interface of PyTorch: if it is missing or its
results differ, the separate operations run).

oneDNN's own ReLU makes 0 of nan, and a network that has no value would get one. Its leaky ReLU keeps nan, and with a
slope of 1e-30 is a ReLU to all digits of float32, unless weights are so large that what it leaves of a negative number
is a number again: then the plain pass runs. Behind a sum it has the former only: there the ReLU runs separately.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from landscape.autodiff import trees
from landscape.autodiff.tracing import NotTraceableError, channels_last, graph_for_batches, reuse_memory, stages
from landscape.autodiff.trees import Tree
from landscape.errors import InputError, arg, one_line

log = logging.getLogger(__name__)

Logits = Callable[[tuple[Tensor, ...], Tree], Tensor]
"""(tensors of the state, inputs) -> logits (B, C)."""

_ATEN = torch.ops.aten


@dataclass(frozen=True)
class Forward:
    """A forward pass for many batches at each of many points."""

    _logits: Logits
    _graphs: tuple[fx.GraphModule, fx.GraphModule] | None  # parts for the weights and for a batch; None if not traced
    _dtype: torch.dtype  # of what runs for each batch
    _shape: Any = None  # of the inputs that were traced
    _largest: float = torch.inf  # the traced pass is for weights up to this size

    @property
    def traced(self) -> bool:
        """Say whether this is the fast pass, not the plain one."""
        return self._graphs is not None

    def at(self, state: Sequence[Tensor]) -> Callable[[Tree], Tensor]:
        """Fix the weights.

        Args:
            state: tensors in the order in which they were passed to `forward`.

        Returns:
            A function of inputs that returns logits (B, C). It uses the plain pass if a weight, or a value computed
            from the weights, is not finite or too large, and for inputs of other shapes than the traced ones.
        """
        given = tuple(state)
        if self._graphs is None:
            return lambda inputs: self._logits(given, inputs)
        folded = self._graphs[0].forward(*given)
        if not all(self._fits(t) for t in (*given, *folded) if isinstance(t, Tensor)):
            return lambda inputs: self._logits(given, inputs)  # what becomes of inf depends on the order of operations
        fixed = [_convolved(_cast(t, self._dtype)) for t in folded]
        batch = self._graphs[1]

        def logits(inputs: Tree) -> Tensor:
            if trees.shape(inputs) != self._shape:
                return self._logits(given, inputs)
            found: list[Tensor] = batch.forward(*fixed, *(_cast(t, self._dtype) for t in trees.leaves(inputs)))
            return found[0].to(given[0].dtype)

        return logits

    def _fits(self, tensor: Tensor) -> bool:
        """Say whether all numbers are finite and not too large; nan is not."""
        if not tensor.numel() or tensor.dtype == torch.bool:
            return True
        size = tensor.abs().max()
        return bool(size.isfinite() & (size <= self._largest))


@torch.no_grad()
def forward(logits: Logits, state: Sequence[Tensor], inputs: Tree, *, bf16: bool = False) -> Forward:
    """Prepare the forward pass of a network.

    Args:
        logits: the network in eval mode, as a function of its state.
        state: its parameters and floating-point buffers at some point.
        inputs: an example, by which the traced pass is checked against the plain one.
        bf16: run batches in bfloat16; before, batch norm is folded in the weights' precision. On a CPU with native
            bfloat16 this is twice as fast, and losses have a relative error of about 1e-3.

    Returns:
        The pass; the plain one if the network cannot be traced, or if the traced pass gives other logits.

    Raises:
        InputError: bfloat16 was requested for a network that cannot be traced.
    """
    given = tuple(state)
    expected = logits(given, inputs)
    short_inputs = all(t.is_floating_point() for t in trees.leaves(inputs))
    reason = "its inputs are not floating-point numbers" if bf16 and not short_inputs else ""
    for fuse in (True, False) if not reason else ():
        try:
            graphs = _graphs(logits, given, inputs, fuse=fuse)
            largest = _LARGEST if fuse else torch.inf
            found = Forward(logits, graphs, given[0].dtype, trees.shape(inputs), largest)
            if not _agree(found.at(given)(inputs), expected, given[0].dtype):
                reason = "the traced pass gives other logits"
                continue
            if not _keeps_holes(found, given, inputs):
                reason = "the traced pass gives logits where the plain one has nan"
                continue
            if not bf16:
                return found
            short = Forward(logits, graphs, torch.bfloat16, trees.shape(inputs), largest)
            if _agree(short.at(given)(inputs), expected, torch.bfloat16):
                return short
            reason = "logits in bfloat16 are far off"
        except NotTraceableError as error:
            reason = str(error)
            break
        except Exception as error:  # an operation that this device lacks, or a trace for one batch size only
            reason = one_line(error)
    if bf16:
        raise InputError(f"{arg('bf16', True)} cannot be used here ({reason}): leave it out")
    log.info("the plain forward pass is used, because %s", reason)
    return Forward(logits, None, given[0].dtype)


_TOLERANCE = {torch.bfloat16: 0.1, torch.float32: 1e-4, torch.float64: 1e-9}
"""Of logits, relative to the largest: what rounding does to deep networks, and no more."""


def _agree(found: Tensor, expected: Tensor, dtype: torch.dtype) -> bool:
    if found.shape != expected.shape:
        return False
    scale = 1 + expected.abs().max()
    return bool((found - expected).abs().max() <= _TOLERANCE[dtype] * scale)


def _keeps_holes(found: Forward, state: tuple[Tensor, ...], inputs: Tree) -> bool:
    """Say whether, for inputs that are nan, the logits are nan wherever those of the plain pass are."""
    if not all(t.is_floating_point() for t in trees.leaves(inputs)):
        return True
    holes = trees.mapped(lambda t: torch.full_like(t, torch.nan), inputs)
    return bool((found.at(state)(holes).isnan() | ~found._logits(state, holes).isnan()).all())


def _cast(t: Any, dtype: torch.dtype) -> Any:
    return t.to(dtype) if isinstance(t, Tensor) and t.is_floating_point() else t


def _convolved(t: Any) -> Any:
    return channels_last(t) if isinstance(t, Tensor) else t


def _graphs(
    logits: Logits, state: tuple[Tensor, ...], inputs: Tree, *, fuse: bool
) -> tuple[fx.GraphModule, fx.GraphModule]:
    def function(state: tuple[Tensor, ...], inputs: Tree) -> Tensor:  # a method has one argument too many for fx
        return logits(state, inputs)

    weights, batch = stages(graph_for_batches(function, state, (inputs,)), (len(state), len(trees.leaves(inputs))))
    if fuse and trees.device(inputs).type == "cpu" and state[0].dtype == torch.float32:
        _fuse(batch.graph)
    reuse_memory(batch.graph)
    batch.recompile()
    return weights, batch


_SLOPE = 1e-30
"""Of the leaky ReLU that stands for a ReLU: what it leaves of a negative number is lost in the next sum."""
_LARGEST = 1e6
"""Weights beyond this may make negative numbers of which it leaves too much."""


def _fuse(graph: fx.Graph) -> None:
    """Merge a ReLU, or a sum before a ReLU, into the convolution whose result only it reads."""
    pointwise = torch.ops.mkldnn._convolution_pointwise.default
    onto = torch.ops.mkldnn._convolution_pointwise_.binary
    for relu in list(graph.nodes):
        if relu.target is not _ATEN.relu.default:
            continue
        (made,) = relu.args
        if len(made.users) > 1:
            continue
        if _is_convolution(made):
            with graph.inserting_before(relu):
                new = graph.call_function(pointwise, (*_geometry(made), "leaky_relu", [_SLOPE], ""))
            _replace(relu, new)
        elif made.target is _ATEN.add.Tensor and len(made.args) == 2 and not made.kwargs:
            pair = _sum_of_convolution(made)
            if pair is not None:
                convolution, other = pair
                with graph.inserting_before(made):
                    new = graph.call_function(onto, (other, *_geometry(convolution), "add", 1.0, None, [], ""))
                _replace(made, new)
                relu.target = _ATEN.relu_.default
    graph.eliminate_dead_code()


def _is_convolution(node: Any) -> bool:
    return (
        isinstance(node, fx.Node)
        and node.target is _ATEN.convolution.default
        and len(node.users) == 1
        and node.args[6] is False  # not transposed
        and len(node.args[3]) == 2  # type: ignore[arg-type]  # stride
    )


def _geometry(node: fx.Node) -> tuple[Any, ...]:
    x, weight, bias, stride, padding, dilation, _, _, groups = node.args
    return x, weight, bias, padding, stride, dilation, groups


def _sum_of_convolution(node: fx.Node) -> tuple[fx.Node, fx.Node] | None:
    """Return the convolution of a sum and the operand that may be overwritten by it."""
    for convolution, other in (node.args, node.args[::-1]):
        if (
            _is_convolution(convolution)
            and isinstance(other, fx.Node)
            and other.op == "call_function"
            and _last_read(other, node)
            and _shape(other) == _shape(convolution)
        ):
            return convolution, other  # type: ignore[return-value]  # _is_convolution has looked
    return None


def _last_read(operand: fx.Node, user: fx.Node) -> bool:
    """Say whether nothing reads a tensor, or a view of it, after a node."""
    own = operand.target in _OWN
    order = {node: i for i, node in enumerate(user.graph.nodes)}
    return own and all(order[u] <= order[user] and u.target in (*_READS, user.target) for u in operand.users)


_OWN = (
    _ATEN.relu.default,
    _ATEN.relu_.default,  # of a sum that no other node reads
    _ATEN.convolution.default,
    torch.ops.mkldnn._convolution_pointwise.default,
    torch.ops.mkldnn._convolution_pointwise_.binary,
    _ATEN.constant_pad_nd.default,
)
"""Operations whose result has memory that nothing else uses."""
_READS = (_ATEN.convolution.default, torch.ops.mkldnn._convolution_pointwise.default)
"""Operations that read an operand and keep no view of it."""


def _shape(node: Any) -> Any:
    meta = node.meta.get("tensor_meta") if isinstance(node, fx.Node) else None
    return None if meta is None else (meta.shape, meta.dtype)


def _replace(old: fx.Node, new: fx.Node) -> None:
    new.meta = dict(old.meta)
    old.replace_all_uses_with(new)
