"""Whether a network's logits are piecewise linear in each single parameter; then the Hessian's trace is exact.

For the loss l_i of sample i with logits z_i,

    tr H = 1/n sum_i [ tr(J_i^T (d^2 l_i / d z^2) J_i) + sum_c (d l_i / d z_c) sum_k d^2 z_c / d theta_k^2 ].

A network of convolutions, linear maps, batch norm in eval mode, ReLU, pooling and sums is linear in each parameter on
its own, between the kinks: it multiplies a parameter by others, never by itself. Then the last sum is zero, and the
trace of the Hessian is that of the Gauss-Newton matrix, which needs no random probes. Smooth activations, attention,
layer norm, shared parameters and a normalised classifier break this; whoever cannot be shown to fit counts as broken.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from landscape.autodiff.tracing import graph_of

_ATEN = torch.ops.aten

_LINEAR = {  # in all their tensors together, between kinks; in place only where a result depends on no other tensor
    _ATEN.relu, _ATEN.leaky_relu, _ATEN.hardtanh, _ATEN.threshold, _ATEN.abs, _ATEN.neg, _ATEN.clamp, _ATEN.clamp_min,
    _ATEN.view, _ATEN._unsafe_view, _ATEN.reshape, _ATEN.permute, _ATEN.transpose, _ATEN.t, _ATEN.expand, _ATEN.flatten,
    _ATEN.unsqueeze, _ATEN.squeeze, _ATEN.slice, _ATEN.select, _ATEN.narrow, _ATEN.split, _ATEN.split_with_sizes,
    _ATEN.chunk, _ATEN.cat, _ATEN.stack, _ATEN.clone, _ATEN.contiguous, _ATEN.alias, _ATEN.detach, _ATEN._to_copy,
    _ATEN.constant_pad_nd, _ATEN.reflection_pad2d, _ATEN.add, _ATEN.sub, _ATEN.sum, _ATEN.mean, _ATEN.avg_pool2d,
    _ATEN._adaptive_avg_pool2d, _ATEN.max_pool2d_with_indices, _ATEN.max, _ATEN.amax, _ATEN.maximum, _ATEN.minimum,
    _ATEN.upsample_nearest2d, _ATEN.embedding,
    _ATEN.relu_, _ATEN.leaky_relu_, _ATEN.hardtanh_, _ATEN.threshold_,
}  # fmt: skip
_PRODUCTS: dict[Any, tuple[int, int]] = {  # positions of two factors; what else there is, is added
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


def linear_in_each_parameter(
    function: Callable[[Sequence[Tensor], Tensor], Tensor], theta: Sequence[Tensor], inputs: Tensor
) -> bool:
    """Say whether a function is known to be piecewise linear in each entry of its parameters.

    Args:
        function: (theta, inputs) -> logits, such as `Objective.logits`.
        theta: the parameters.
        inputs: (B, ...) an example batch.

    Returns:
        True if every operation on the way from a parameter to the logits fits; False if one does not, is not known,
        or if the function cannot be traced.
    """
    try:
        # A plain function of two arguments: the tracer counts those of methods and defaults wrongly.
        traced = graph_of(lambda theta, inputs: function(theta, inputs), tuple(theta), inputs)
    except Exception:  # a user's model may raise anything when it is traced
        return False
    graph = traced.graph
    placeholders = [node for node in graph.nodes if node.op == "placeholder"]
    depends: dict[fx.Node, frozenset[int]] = {}
    for node in graph.nodes:
        if node.op == "placeholder":
            k = placeholders.index(node)
            depends[node] = frozenset({k} if k < len(theta) else ())
        elif node.op == "call_function":
            found = frozenset().union(*(depends[n] for n in node.all_input_nodes))
            if found and not _fits(node, depends):
                return False
            depends[node] = found
        else:
            depends[node] = frozenset()
    return True


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
