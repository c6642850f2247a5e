"""Whether a network's logits are piecewise linear in each single parameter; then the Hessian's trace is exact.

For the loss l_i of sample i with logits z_i,

    tr H = 1/n sum_i [ tr(J_i^T (d^2 l_i / d z^2) J_i) + sum_c (d l_i / d z_c) sum_k d^2 z_c / d theta_k^2 ].

A network of convolutions, linear maps, batch norm in eval mode, ReLU, pooling and sums is linear in each parameter on
its own, between the kinks: it multiplies a parameter by others, never by itself. Then the last sum is zero, and the
trace of the Hessian is that of the Gauss-Newton matrix, which needs no random probes. This does not hold with smooth
activations, attention, layer norm, shared parameters or a normalised classifier, and it is not assumed for any network
for which it cannot be shown.
"""

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._python_dispatch import TorchDispatchMode

from landscape.autodiff.tracing import graph_of
from landscape.autodiff.trees import Tree
from landscape.errors import is_of_memory, one_line

_ATEN = torch.ops.aten

_LINEAR = {  # linear in all their tensors together, except at kinks
    _ATEN.relu, _ATEN.leaky_relu, _ATEN.hardtanh, _ATEN.threshold, _ATEN.abs, _ATEN.neg, _ATEN.clamp, _ATEN.clamp_min,
    _ATEN.view, _ATEN._unsafe_view, _ATEN.reshape, _ATEN.permute, _ATEN.transpose, _ATEN.t, _ATEN.expand, _ATEN.flatten,
    _ATEN.unsqueeze, _ATEN.squeeze, _ATEN.slice, _ATEN.select, _ATEN.narrow, _ATEN.split, _ATEN.split_with_sizes,
    _ATEN.chunk, _ATEN.cat, _ATEN.stack, _ATEN.clone, _ATEN.contiguous, _ATEN.alias, _ATEN.detach, _ATEN._to_copy,
    _ATEN.constant_pad_nd, _ATEN.reflection_pad2d, _ATEN.add, _ATEN.sub, _ATEN.sum, _ATEN.mean, _ATEN.avg_pool2d,
    _ATEN._adaptive_avg_pool2d, _ATEN.max_pool2d_with_indices, _ATEN.max, _ATEN.amax, _ATEN.maximum, _ATEN.minimum,
    _ATEN.upsample_nearest2d, _ATEN.embedding, _ATEN.copy, _ATEN.slice_scatter, _ATEN.select_scatter,
}  # fmt: skip
_PRODUCTS: dict[Any, tuple[int, int]] = {  # positions of two factors; the other arguments are added
    _ATEN.mul: (0, 1),
    _ATEN.mm: (0, 1),
    _ATEN.bmm: (0, 1),
    _ATEN.matmul: (0, 1),
    _ATEN.addmm: (1, 2),
    _ATEN.baddbmm: (1, 2),
    _ATEN.linear: (0, 1),
    _ATEN.convolution: (0, 1),
}
_NORMS: dict[Any, tuple[int, ...]] = {  # positions of mean and variance in eval mode, after input, weight and bias
    _ATEN._native_batch_norm_legit_no_training: (3, 4),
    _ATEN.native_batch_norm: (3, 4),
    _ATEN.cudnn_batch_norm: (3, 4),
}
_NORM_TRAINS = {_ATEN.native_batch_norm: 5, _ATEN.cudnn_batch_norm: 5}


def obstacle(
    function: Callable[[Sequence[Tensor], Tree], Tensor],
    theta: Sequence[Tensor],
    inputs: Tree,
    model: nn.Module | None = None,
) -> str | None:
    """Return the reason why a function is not known to be piecewise linear in each entry of its parameters.

    Changes in place, such as `out += identity`, are traced as operations that return new tensors.

    Args:
        function: (theta, inputs) -> logits, such as `Objective.logits`.
        theta: the parameters.
        inputs: inputs of an example batch.
        model: the model that the function calls, to name the module of the operation.

    Returns:
        None if every operation between a parameter and the logits is piecewise linear. Otherwise the first one that is
        not, with its place in the model, or the reason why the function cannot be traced.
    """
    try:
        # A plain function of two arguments: the tracer counts those of methods and defaults wrongly.
        plain = torch.func.functionalize(lambda theta, inputs: function(theta, inputs))
        graph = graph_of(plain, tuple(theta), inputs).graph
    except Exception as error:  # a user's model may raise anything when it is traced
        if is_of_memory(error):  # which says nothing about the model
            raise
        return f"they cannot be traced ({one_line(error)})"
    node = _first_misfit(graph, len(theta))
    if node is None:
        return None
    same = [n for n in graph.nodes if n.op == "call_function" and _name(n.target) == _name(node.target)]
    return f"{_name(node.target)}{_place(function, theta, inputs, model, _name(node.target), same.index(node))}"


def _first_misfit(graph: fx.Graph, n_theta: int) -> fx.Node | None:
    nodes: list[fx.Node] = list(graph.nodes)
    placeholders = [node for node in nodes if node.op == "placeholder"]
    depends: dict[fx.Node, frozenset[int]] = {}
    for node in nodes:
        if node.op == "placeholder":
            k = placeholders.index(node)
            depends[node] = frozenset({k} if k < n_theta else ())
        elif node.op == "call_function":
            found = frozenset().union(*(depends[n] for n in node.all_input_nodes))
            if found and not _fits(node, depends):
                return node
            depends[node] = found
        else:
            depends[node] = frozenset()
    return None


def _name(target: Any) -> str:
    """Return an operation's name, the same for the one that changes its tensor in place."""
    name = target.overloadpacket.__name__ if isinstance(target, torch._ops.OpOverload) else target.__name__
    return str(name).rstrip("_") or str(name)


def _place(
    function: Callable[[Sequence[Tensor], Tree], Tensor],
    theta: Sequence[Tensor],
    inputs: Tree,
    model: nn.Module | None,
    name: str,
    number: int,
) -> str:
    """Name the module in which an operation of this name is called for the `number`-th time."""
    if model is None:
        return ""
    calls = _Calls()
    calls.name, calls.inside, calls.places = name, [], []
    with torch.no_grad(), _entered(dict(model.named_modules()), calls.inside), calls:
        function(theta, inputs)
    places = [p for p in calls.places[number : number + 1] if p]
    return f" in {places[0]}" if places else ""


class _Calls(TorchDispatchMode):
    """The innermost module at each call of an operation."""

    name: str  # of the operation
    inside: list[str]  # the modules that are being called, the innermost last
    places: list[str]

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if _name(func) == self.name:
            self.places.append(self.inside[-1] if self.inside else "")
        return func(*args, **(kwargs or {}))


@contextmanager
def _entered(modules: Mapping[str, nn.Module], inside: list[str]) -> Generator[None, None, None]:
    """Record the names of the modules that are being called, the innermost last."""
    handles = []
    for name, module in modules.items():
        label = f"{name} ({type(module).__name__})" if name else type(module).__name__
        handles.append(module.register_forward_pre_hook(lambda *_, label=label: inside.append(label)))
        handles.append(module.register_forward_hook(lambda *_: inside.pop() and None))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _fits(node: fx.Node, depends: dict[fx.Node, frozenset[int]]) -> bool:
    if not isinstance(node.target, torch._ops.OpOverload):
        return getattr(node.target, "__name__", "") == "getitem"
    packet = node.target.overloadpacket

    def parameters(position: int) -> frozenset[int]:
        argument = node.args[position] if position < len(node.args) else None
        return depends[argument] if isinstance(argument, fx.Node) else frozenset()

    if packet in _LINEAR:
        return True
    if packet in _PRODUCTS:
        first, second = _PRODUCTS[packet]
        return not parameters(first) & parameters(second)
    if packet is _ATEN.div:
        return not parameters(1)
    if packet in _NORMS:
        fixed = not any(parameters(position) for position in _NORMS[packet])
        trains = packet in _NORM_TRAINS and bool(node.args[_NORM_TRAINS[packet]])
        return fixed and not trains and not parameters(0) & parameters(1)
    return False
