"""A function of (state, batch, ...) as a graph of tensor operations, divided by the arguments that each depends on.

The graph is traced once at a prime batch size; integers in it that are multiples of that prime stand for the batch size
and follow the actual one. Meanwhile batch norm in eval mode is folded into the convolution or linear map before it. It
is a fixed affine map, z -> (z - mean) * gamma / s + beta with s = sqrt(var + eps), so W' = W gamma / s and
b' = (b - mean) gamma / s + beta give the same function of the same parameters and running statistics.
"""

import operator
import re
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, TypeAlias

import torch
from torch import Tensor, fx
from torch._functorch.compile_utils import fx_graph_cse
from torch._guards import TracingContext, tracing
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from landscape.autodiff import trees
from landscape.autodiff.trees import Tree
from landscape.errors import one_line

TRACE_SIZES = (11, 13, 17, 19, 23, 29)
"""Batch sizes to trace at: primes, so that the integers in a graph that stand for the batch size can be told."""


class NotTraceableError(Exception):
    """The model cannot be traced into a graph; the plain function can be used."""


def graph_for_batches(
    function: Callable[..., Any], state: tuple[Tensor, ...], batch: tuple[Tree, ...], *rest: Any
) -> fx.GraphModule:
    """Convert a function into a graph that accepts batches of any size.

    The graph converts images to the memory format that is fastest for convolutions, unless the function needs them
    unchanged.

    Args:
        function: a function of the state, the elements of the batch, and the rest.
        state: tensors that do not depend on the batch.
        batch: an example with at least one sample, inputs first; each of any structure, see trees.py.
        rest: further arguments, independent of the batch size.

    Returns:
        The graph; its placeholders are the tensors among its arguments, in order.

    Raises:
        NotTraceableError: the model has control flow or shapes that depend on data, an operation that cannot be
            traced, or in-place changes that cannot be undone.
    """
    inputs = batch[0]
    size = _trace_size(state, batch)
    repeat = torch.arange(size, device=trees.device(inputs)) % trees.size(inputs)
    example = (state, *(trees.take(t, repeat) for t in batch), *rest)

    def laid_out(state: tuple[Tensor, ...], inputs: Tensor, *others: Any) -> Any:
        return function(state, channels_last(inputs), *others)

    if not isinstance(inputs, Tensor) or inputs.ndim != 4:
        traced = _graph(function, example)
    else:
        try:
            traced = _graph(laid_out, example)
        except NotTraceableError:  # for example, `x.view(len(x), -1)` after a convolution needs the plain layout
            traced = _graph(function, example)
    _free_batch_size(traced.graph, size, n_state=len(state))
    return traced


def graph_of(function: Callable[..., Any], *example: Any) -> fx.GraphModule:
    """Record the operations that torch executes in a function.

    Args:
        function: a function of tensors, or tuples and lists of tensors.
        example: its arguments.

    Returns:
        The graph; its placeholders are the tensors among the arguments, in order.
    """
    described: Any = _Described()  # in place of a FakeTensorMode
    with tracing(TracingContext(described)), _NoMemory():
        traced: fx.GraphModule = make_fx(function)(*example)
    return traced


class _Described(TorchFunctionMode):
    """Represents each result by a tensor on the meta device, which has shape and dtype but no memory.

    make_fx would use fake tensors, which know devices and aliases too: nothing here asks for these, and they take half
    of the time of a trace.
    """

    shape_env = None  # make_fx asks for it: no sizes are symbols

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        options = dict(kwargs or {})
        if func is torch.empty_strided:
            options["device"] = "meta"
        return func(*args, **options)


class _NoMemory(TorchFunctionMode):
    """Refuses what reads the memory of a tensor past PyTorch: in a trace a tensor has none of its own."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in _OF_MEMORY:
            raise NotTraceableError(f"it reads the memory of a tensor by {getattr(func, '__name__', func)}")
        return func(*args, **(kwargs or {}))


_OF_MEMORY = (Tensor.numpy, Tensor.__array__, Tensor.data_ptr, Tensor.tolist, Tensor.__dlpack__)


def _graph(function: Callable[..., Any], example: tuple[Any, ...]) -> fx.GraphModule:
    try:
        with _FoldBatchNorm():
            # Nearly all products change tensors in place, for example the derivative of the cross-entropy.
            traced = graph_of(torch.func.functionalize(function), *example)
    except Exception as error:
        # A user's model may raise anything when it is traced; the plain function does not need the trace.
        raise NotTraceableError(one_line(error)) from error
    if any(_mutates(node) for node in traced.graph.nodes):
        raise NotTraceableError("it changes tensors in place")
    _drop_aliases(traced.graph)
    traced.graph.eliminate_dead_code()
    for node in traced.graph.nodes:
        if _has_shape_of_data(node):
            raise NotTraceableError(f"the shape of what {node.target} returns depends on data")
    return traced


def without_repeats(traced: fx.GraphModule) -> fx.GraphModule:
    """Return the graph with each operation on the same tensors once.

    Two tangents along the same vector repeat a third of their operations.
    """
    return fx.GraphModule(traced, fx_graph_cse(traced.graph))


def stages(traced: fx.GraphModule, groups: Sequence[int]) -> list[fx.GraphModule]:
    """Divide a graph by the arguments that its operations depend on.

    Args:
        traced: the graph.
        groups: numbers of placeholders: those of the state, then those of each later stage.

    Returns:
        A graph for each stage. Its arguments are all values that earlier stages pass to later ones, stage after stage,
        and then its own placeholders; its results are the values that it passes to later stages, or, for the last
        stage, the results of the whole graph.
    """
    nodes = list(traced.graph.nodes)
    placeholders = [n for n in nodes if n.op == "placeholder"]
    stage: dict[fx.Node, int] = {}
    given: list[list[fx.Node]] = []
    for number, count in enumerate(groups):
        begin = sum(groups[:number])
        given.append(placeholders[begin : begin + count])
        stage |= dict.fromkeys(given[-1], number)
    for node in nodes:
        if node not in stage:
            stage[node] = max((stage[n] for n in node.all_input_nodes), default=0)
    (output,) = (n for n in nodes if n.op == "output")
    last = len(groups) - 1
    stage[output] = last
    needed = [n for n in nodes if any(stage[user] > stage[n] for user in n.users)]
    left = [[n for n in needed if stage[n] == number] for number in range(last)]

    def build(number: int) -> fx.GraphModule:
        graph = fx.Graph()
        arguments = [n for earlier in left[:number] for n in earlier] + given[number]
        copies = {n: graph.placeholder(n.name) for n in arguments}
        for node in nodes:
            if stage[node] == number and node not in copies and node.op != "output":
                copies[node] = graph.node_copy(node, copies.__getitem__)
        results = output.args[0] if number == last else tuple(left[number])
        graph.output(fx.node.map_arg(results, copies.__getitem__))
        graph.eliminate_dead_code()
        return fx.GraphModule(traced, graph)

    return [build(number) for number in range(len(groups))]


class _FoldBatchNorm(TorchFunctionMode):
    """Fold batch norm in eval mode into the convolution or linear map whose output it takes."""

    def __init__(self) -> None:
        super().__init__()
        self._made_by: dict[int, tuple[list[_Value], Callable[..., Tensor], dict[str, Any]]] = {}

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        named = {**dict(zip(_ARGUMENTS.get(func, ()), args, strict=False)), **(kwargs or {})}
        if func is F.batch_norm and not named.get("training") and named.get("running_var") is not None:
            made = self._made_by.get(id(named["input"]))
            # What has changed in place since, such as by a ReLU or through a view, is no longer what the layer made.
            if made is not None and all(map(_is_unchanged, made[0])):
                return _folded(made[1], made[2], named)
        output = func(*args, **(kwargs or {}))
        if func in _AFFINE and len(args) + len(kwargs or {}) == len(named) and _has_channels(output, named["weight"]):
            tensors = [t for t in (output, *named.values()) if isinstance(t, Tensor)]
            self._made_by[id(output)] = [_value(t) for t in tensors], func, named  # kept, so that ids stay their own
        return output


_Value: TypeAlias = tuple[Tensor, Tensor, int]  # a tensor, its present value, and how often this was changed in place
_torch: Any = torch  # whose private functions have no types


def _value(tensor: Tensor) -> _Value:
    """Return a tensor with its present value; within `functionalize`, a change in place makes a new value."""
    inner: Tensor = tensor
    functorch = _torch._C._functorch
    while functorch.is_functorch_wrapped_tensor(inner):
        if functorch.is_functionaltensor(inner):
            _torch._sync(inner)  # with changes through views
        inner = functorch.get_unwrapped(inner)
    return tensor, inner, -1 if inner.is_inference() else inner._version


def _is_unchanged(before: _Value) -> bool:
    """Say whether the tensor has the same value as before."""
    _, value, version = before
    _, now, changes = _value(before[0])
    return now is value and changes == version


def _has_channels(output: Tensor, weight: Tensor) -> bool:
    """Say whether an affine layer's output has its channels along the second axis: not if it has no batch, or more."""
    return output.ndim == weight.ndim


_CONV = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
_AFFINE = (torch.conv1d, torch.conv2d, torch.conv3d, F.linear)
_ARGUMENTS: dict[Callable[..., Any], tuple[str, ...]] = {
    torch.conv1d: _CONV,
    torch.conv2d: _CONV,
    torch.conv3d: _CONV,
    F.linear: ("input", "weight", "bias"),
    F.batch_norm: ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps"),
}


def _folded(affine: Callable[..., Tensor], arguments: dict[str, Any], norm: dict[str, Any]) -> Tensor:
    scale = torch.rsqrt(norm["running_var"] + norm.get("eps", 1e-5))
    if norm.get("weight") is not None:
        scale = scale * norm["weight"]
    weight, bias = arguments["weight"], arguments.get("bias")
    shift = -norm["running_mean"] if bias is None else bias - norm["running_mean"]
    shift = shift * scale
    if norm.get("bias") is not None:
        shift = shift + norm["bias"]
    folded = weight * scale.view(-1, *[1] * (weight.ndim - 1))
    return affine(**{**arguments, "weight": folded, "bias": shift})


def channels_last(inputs: Tensor) -> Tensor:
    """Convert images (B, C, H, W) to the memory format channels_last; other inputs are returned unchanged."""
    # Convolutions on a CPU need no reordering then (measured: 5 to 10 % faster).
    return inputs.contiguous(memory_format=torch.channels_last) if inputs.ndim == 4 else inputs


def _trace_size(state: Sequence[Tensor], batch: tuple[Tree, ...]) -> int:
    taken = [n for t in state for n in t.shape] + [n for t in trees.leaves(batch) for n in t.shape[1:]]
    for size in TRACE_SIZES:
        if all(n % size for n in taken):
            return size
    raise NotTraceableError(f"every batch size of {TRACE_SIZES} divides some dimension of the model")


def _mutates(node: fx.Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable


def _has_shape_of_data(node: fx.Node) -> bool:
    """Say whether the shape of a result depends on values, so that the graph may be valid for one batch only."""
    if not isinstance(node.target, torch._ops.OpOverload) or torch.Tag.dynamic_output_shape not in node.target.tags:
        return False
    if node.target is not _ATEN.index.Tensor:
        return True
    # An index of integers has a shape of its own; a mask leaves as many entries as it has true ones.
    indices = [n.meta["tensor_meta"] for n in node.all_input_nodes[1:]]
    return any(i.dtype in (torch.bool, torch.uint8) for i in indices)


def _drop_aliases(graph: fx.Graph) -> None:
    """Drop what only names a tensor again, and copies of the same layout: nothing in the graph overwrites one."""
    for node in graph.nodes:
        if node.target in (_ATEN.alias.default, _ATEN.detach.default) or _is_mere_copy(node):
            node.replace_all_uses_with(node.args[0])


def _is_mere_copy(node: Any) -> bool:
    made = node.args[0].meta.get("tensor_meta") if node.target is _ATEN.clone.default and not node.kwargs else None
    return made is not None and made.memory_format is not None  # a dense tensor


def _free_batch_size(graph: fx.Graph, size: int, n_state: int) -> None:
    """Replace every size that is a multiple of the traced batch size by that multiple of the actual one."""
    placeholders = [n for n in graph.nodes if n.op == "placeholder"]
    inputs = placeholders[n_state]
    with graph.inserting_after(placeholders[-1]):
        actual = graph.call_function(torch.ops.aten.sym_size.int, (inputs, 0))
    multiples = {1: actual}

    def multiple(value: Any) -> Any:
        if isinstance(value, bool) or not isinstance(value, int) or value <= 0 or value % size or value > 2**40:
            return value
        if value // size not in multiples:
            with graph.inserting_after(actual):
                multiples[value // size] = graph.call_function(_multiply, (actual, value // size))
        return multiples[value // size]

    for node in list(graph.nodes):
        if isinstance(node.target, torch._ops.OpOverload) and node is not actual:
            sizes = _sizes(node.target)
            node.args = tuple(
                fx.node.map_aggregate(value, multiple) if argument.name in sizes else value
                for argument, value in zip(node.target._schema.arguments, node.args, strict=False)
            )
            node.kwargs = {
                name: fx.node.map_aggregate(value, multiple) if name in sizes else value
                for name, value in node.kwargs.items()
            }


@cache
def _sizes(target: torch._ops.OpOverload) -> frozenset[str]:
    """Return the names of the arguments that can be a number of samples: not factors, bounds, axes or windows."""
    if target.overloadpacket is _ATEN.arange:
        return frozenset({"start", "end"})
    # Only the schema's text distinguishes a size, SymInt, from other integers.
    return frozenset(re.findall(r"SymInt[\[\]?\d]* (\w+)", str(target._schema))) - {"padding_idx"}


def _multiply(n: int, factor: int) -> int:
    return n * factor


_ATEN = torch.ops.aten
_FRESH: tuple[Any, ...] = (
    _ATEN.convolution.default,
    _ATEN.add.Tensor,
    _ATEN.mul.Tensor,
    _ATEN.threshold_backward.default,
)


def reuse_memory(graph: fx.Graph) -> None:
    """Let sums, ReLUs and masks overwrite an operand that no other operation reads.

    New memory costs more than the sum itself: the system hands it out page by page (measured on a CPU: a product
    with a ResNet-20 is a tenth faster).
    """
    for node in graph.nodes:
        if node.target is _ATEN.add.Tensor and not node.kwargs and len(node.args) == 2:
            for mine, other in (node.args, node.args[::-1]):
                if _is_spare(mine, node) and isinstance(other, fx.Node):
                    node.target, node.args = _ATEN.add_.Tensor, (mine, other)
                    break
        elif node.target is _ATEN.relu.default and _is_spare(node.args[0], node):
            node.target = _ATEN.relu_.default
        elif node.target is _ATEN.threshold_backward.default and _is_spare(node.args[0], node):
            node.target, node.kwargs = _ATEN.threshold_backward.grad_input, {"grad_input": node.args[0]}


def _is_spare(operand: Any, user: fx.Node) -> bool:
    """Say whether a tensor has its own memory, with the shape of the result of the only node that reads it."""
    if not isinstance(operand, fx.Node) or len(operand.users) > 1 or sum(a is operand for a in user.args) > 1:
        return False
    made: Any = operand.args[0] if operand.target is operator.getitem else operand
    own = made.target in (*_FRESH, _ATEN.convolution_backward.default, _ATEN.add_.Tensor)
    mine, result = operand.meta.get("tensor_meta"), user.meta.get("tensor_meta")
    return own and mine is not None and result is not None and (mine.shape, mine.dtype) == (result.shape, result.dtype)
