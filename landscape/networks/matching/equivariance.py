"""For each operation of a network, the equations between the channels of its operands and of its result.

An operation is equivariant to a permutation of channels if permuting those of its operands permutes those of its result
and nothing else. Then it only says which channels are one: an addition those that it adds, a matrix product the
columns of one factor and the rows of the other, batch norm each of the input's and one of each weight's. Operations
stand here as torch executes them (ATen), so a layer, a function and a method are one entry.

What an operation treats unequally (a channel that is picked, those that are cut into heads or into the groups of a
convolution) is held: these permutations are not used. What is not known at all is refused.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from landscape.errors import InputError, arg
from landscape.networks.matching.identities import Axes, Classes, still

Call = Mapping[str, Any]
"""The arguments of an operation by name, each tensor replaced by its axes."""

Rule = Callable[[Classes, Call, Any], Any]
"""(classes, call, shape of the result) -> axes of the result; both are lists if there are several results."""


def name_of(node: fx.Node) -> str:
    """Return the name of a node's operation, such as "convolution"; "add" also where it is done in place."""
    target: Any = node.target
    name = (
        target._schema.name if isinstance(target, torch._ops.OpOverload) else getattr(target, "__name__", str(target))
    )
    return name.removeprefix("aten::").rstrip("_")


def is_pointwise(node: fx.Node) -> bool:
    """Say whether an operation treats all entries of its operands alike, each for itself."""
    return torch.Tag.pointwise in getattr(node.target, "tags", ())


def axes_of(node: fx.Node, known: Mapping[fx.Node, Any], classes: Classes) -> Any:
    """Add the equations of an operation.

    Args:
        node: the operation.
        known: the axes of all tensors before it.
        classes: the object to which the equations are added.

    Returns:
        The axes of its result; a list if there are several results.

    Raises:
        InputError: the effect of the operation on channels is not known.
    """
    value = node.meta.get("val")
    shape = [_shape(v) for v in value] if isinstance(value, list | tuple) else _shape(value)
    operands = [known[used] for used in node.all_input_nodes]
    name = classes.operation = name_of(node)
    if is_pointwise(node):
        result: Any = _pointwise(classes, *operands)
    elif name in _RULES:
        arguments = node.target._schema.arguments  # type: ignore[union-attr]  # all rules are for ATen's operations
        call = {a.name: a.default_value if a.has_default_value() else None for a in arguments}
        call |= {**dict(zip(call, node.args, strict=False)), **node.kwargs}
        result = _RULES[name](classes, fx.map_arg(call, known.__getitem__), shape)
    elif not classes.cautious or all(classes.fixed(ids).all() for ids in _flat(operands)):
        result = _still(shape)
    else:
        raise InputError(
            f"the channels cannot be matched: the network uses the operation {name!r}, and what it does to channels is "
            f"not known; leave out {arg('match')}"
        )
    return [result, *_still(shape[1:])] if isinstance(shape, list) and not isinstance(result, list) else result


def _flat(axes: Any) -> list[np.ndarray]:
    """Return the axes of one or several tensors in one list."""
    return [axes] if isinstance(axes, np.ndarray) else [ids for inner in axes for ids in _flat(inner)]


def _shape(value: Any) -> tuple[int, ...]:
    return tuple(value.shape) if isinstance(value, Tensor) else ()


def _still(shape: Any) -> Any:
    return [_still(s) for s in shape] if isinstance(shape, list) else tuple(still(n) for n in shape)


def _pointwise(classes: Classes, *operands: Axes) -> Axes:
    """Broadcast: positions that are combined are one channel; a position that is combined with many is fixed."""
    result = []
    for axis in range(-max(map(len, operands), default=0), 0):
        meeting = [axes[axis] for axes in operands if len(axes) >= -axis]
        size = max(map(len, meeting))
        first, *others = (ids for ids in meeting if len(ids) == size)
        classes.hold(*(ids for ids in meeting if len(ids) < size))
        for ids in others:
            classes.unite(first, ids)
        result.append(first)
    return tuple(result)


def _meet(left: str, right: str) -> Rule:
    """Make the rule of an operation that is pointwise in these two arguments."""
    return lambda classes, call, shape: _pointwise(classes, call[left], call[right])


def _convolution(classes: Classes, call: Call, shape: Any) -> Axes:
    x, weight, bias, n_groups = call["input"], call["weight"], call["bias"], call["groups"]
    read, made = weight[:2] if call["transposed"] else weight[1::-1]
    if n_groups == 1:
        classes.unite(x[1], read)
    elif len(read) == 1 and not call["transposed"]:  # depthwise: the outputs of a channel move with it
        classes.unite(classes.places(x[1], len(made) // n_groups), made)
    else:
        classes.hold(x[1], read, made, *(bias or ()), why="convolution in groups")
        made = classes.unclear(shape[1])
    if bias is not None:
        classes.unite(made, bias[0])
    classes.fix(*x[2:], *weight[2:])
    return (x[0], made, *_still(shape[2:]))


def _product(left: str, right: str, added: str = "") -> Rule:
    """Make the rule of a product of matrices, of batches of them or of vectors, under the names of its arguments."""

    def rule(classes: Classes, call: Call, shape: Any) -> Axes:
        a, b = call[left], call[right]
        n_batch = max(0, len(b) - 2)
        classes.unite(a[-1], b[n_batch])
        for mine, yours in zip(a[:n_batch], b[:n_batch], strict=True):
            classes.unite(mine, yours)
        result = (*a[:-1], *b[n_batch + 1 :])
        return _pointwise(classes, result, call[added]) if added else result

    return rule


def _norm(classes: Classes, call: Call, shape: Any) -> Axes:
    """Batch, group, layer and root-mean-square norm; the weights of the last two belong to the last axes."""
    x = call["input"]
    first = len(x) - len(call["normalized_shape"]) if "normalized_shape" in call else 1
    if call.get("group", 1) not in {1, len(x[1])}:
        classes.hold(x[1], why="group norm")
    for name in ("weight", "bias", "running_mean", "running_var"):
        for mine, own in zip(x[first:], call.get(name) or (), strict=False):
            classes.unite(mine, own)
    return x  # type: ignore[no-any-return]


def _reduce(classes: Classes, call: Call, shape: Any) -> Any:
    x, dim = call["self"], call.get("dim")
    dims = {d % len(x) for d in ([dim] if isinstance(dim, int) else dim or range(len(x)))}
    several = isinstance(shape, list)
    if several and classes.operation in {"max", "min"}:  # these come with their positions, numbers of channels
        classes.hold(*(x[d] for d in dims))
    keep = len(shape[0] if several else shape) == len(x)
    result = tuple(still(1) if d in dims else ids for d, ids in enumerate(x) if keep or d not in dims)
    return [result for _ in shape] if several else result


def _spatial(classes: Classes, call: Call, shape: Any) -> Axes:
    """Pooling, padding and interpolation of the last axes, as many as the name says."""
    n = int(re.findall(r"(\d)d", classes.operation)[0])
    x, sizes = call["self"], (shape[0] if isinstance(shape, list) else shape)[-n:]
    return (*x[:-n], *_mixed(classes, x[-n:], sizes))


def _mixed(classes: Classes, axes: Axes, sizes: Sequence[int]) -> Axes:
    """Return the axes of a result whose positions are made of several positions of these axes, which are held."""
    found = tuple(
        still(size) if classes.fixed(ids).all() else classes.unclear(size)
        for ids, size in zip(axes, sizes, strict=True)
    )
    classes.hold(*axes)
    return found


def _same(classes: Classes, call: Call, shape: Any) -> Axes:
    return call["self"]  # type: ignore[no-any-return]


def _made(classes: Classes, call: Call, shape: Any) -> Axes:
    """A constant tensor: it does not change under permutations."""
    return tuple(classes.new(n) for n in shape)


def _permute(classes: Classes, call: Call, shape: Any) -> Axes:
    x = call["self"]
    order = list(call.get("dims", range(len(x))))
    if "dims" not in call and x:
        one, two = call.get("dim0", 0), call.get("dim1", -1)
        order[one], order[two] = order[two], order[one]
    return tuple(x[d] for d in order)


def _reshape(classes: Classes, call: Call, shape: Any) -> Axes:
    """The axes before and after are matched in the smallest blocks of equal size, from the left."""
    x = call["self"]
    if 0 in shape:
        classes.hold(*x)
        return _still(shape)  # type: ignore[no-any-return]
    classes.hold(*(ids for ids in x if len(ids) == 1))
    before, after = [ids for ids in x if len(ids) > 1], [n for n in shape if n > 1]
    found: list[np.ndarray] = []
    while before:
        block, sizes = [before.pop(0)], [after.pop(0)]
        while (n_before := math.prod(map(len, block))) != (n_after := math.prod(sizes)):
            if n_before < n_after:
                block.append(before.pop(0))
            else:
                sizes.append(after.pop(0))
        found += classes.split(classes.merge(block), sizes)
    return tuple(found.pop(0) if n > 1 else still(1) for n in shape)


def _expand(classes: Classes, call: Call, shape: Any) -> Axes:
    x = call["self"]
    result = [classes.new(n) for n in shape[: len(shape) - len(x)]]
    for ids, n in zip(x, shape[len(result) :], strict=True):
        if len(ids) == 1 < n:
            classes.hold(ids)
            result.append(classes.new(n))
        else:  # unchanged, or repeated
            result.append(classes.places(ids, n // len(ids)).reshape(len(ids), -1).T.ravel() if n > len(ids) else ids)
    return tuple(result)


def _cat(classes: Classes, call: Call, shape: Any) -> Axes:
    dim = call["dim"] % len(shape)
    first, *others = call["tensors"]
    for axes in others:
        for d in set(range(len(shape))) - {dim}:
            classes.unite(first[d], axes[d])
    joined = np.concatenate([axes[dim] for axes in call["tensors"]])
    return (*first[:dim], joined, *first[dim + 1 :])


def _stack(classes: Classes, call: Call, shape: Any) -> Axes:
    dim = call["dim"] % len(shape)
    axes = _pointwise(classes, *call["tensors"])
    return (*axes[:dim], still(shape[dim]), *axes[dim:])


def _pieces(classes: Classes, call: Call, shape: Any) -> list[Axes]:
    x = call["self"]
    dim = call["dim"] % len(x)
    ends = np.cumsum([s[dim] for s in shape])[:-1]
    return [(*x[:dim], ids, *x[dim + 1 :]) for ids in np.split(x[dim], ends)]


def _glu(classes: Classes, call: Call, shape: Any) -> Axes:
    """One half of the channels times the sigmoid of the other."""
    x = call["self"]
    dim = call["dim"] % len(x)
    half, gate = np.split(x[dim], 2)
    classes.unite(half, gate)
    return (*x[:dim], half, *x[dim + 1 :])


def _slice(classes: Classes, call: Call, shape: Any) -> Axes:
    x = call["self"]
    dim = call["dim"] % len(x)
    return (*x[:dim], x[dim][call["start"] : call["end"] : call["step"]], *x[dim + 1 :])


def _select(classes: Classes, call: Call, shape: Any) -> Any:
    """One position of an axis, or each position separately: the positions are distinguished, so they are fixed."""
    x = call["self"]
    dim = call["dim"] % len(x)
    classes.hold(np.atleast_1d(x[dim][call.get("index", slice(None))]))
    result = (*x[:dim], *x[dim + 1 :])
    return [result for _ in shape] if isinstance(shape, list) else result


def _pad(classes: Classes, call: Call, shape: Any) -> Axes:
    """Padding adds channels; a negative width removes channels."""
    result = list(call["self"])
    for k, (before, after) in enumerate(zip(call["pad"][::2], call["pad"][1::2], strict=True)):
        ids = result[-1 - k]
        kept = ids[max(0, -before) : len(ids) - max(0, -after)]
        n_before, n_after = max(0, before), max(0, after)
        added = (still if classes.fixed(ids).all() else classes.new)(n_before + n_after)
        result[-1 - k] = np.concatenate([added[:n_before], kept, added[n_before:]])
    return tuple(result)


def _restride(classes: Classes, call: Call, shape: Any) -> Axes:
    """Pooling to one pixel in the memory format channels_last, if the size does not change; otherwise anything."""
    if [len(ids) for ids in call["self"]] == list(shape):
        return call["self"]  # type: ignore[no-any-return]
    classes.hold(*call["self"])
    return tuple(classes.unclear(n) for n in shape)


def _resampled(classes: Classes, call: Call, shape: Any) -> Axes:
    """Upsampling as some versions of PyTorch write it: x[None, None, rows, columns]."""
    x, indices = call["self"], call["indices"]
    n_kept = next((n for n, axes in enumerate(indices) if axes is not None), len(x))
    if len(indices) != len(x) or None in indices[n_kept:]:  # the result may have its axes in another order
        classes.hold(*x)
        return tuple(classes.unclear(n) for n in shape)
    return (*x[:n_kept], *_mixed(classes, x[n_kept:], shape[n_kept:]))


def _embedding(classes: Classes, call: Call, shape: Any) -> Axes:
    rows, columns = call["weight"]
    classes.fix(rows)
    return (*call["indices"], columns)


PRODUCTS: dict[str, Rule] = {
    "convolution": _convolution,
    "mm": _product("self", "mat2"),
    "addmm": _product("mat1", "mat2", "self"),
    "bmm": _product("self", "mat2"),
    "baddbmm": _product("batch1", "batch2", "self"),
    "mv": _product("self", "vec"),
    "addmv": _product("mat", "vec", "self"),
    "dot": _product("self", "tensor"),
    "vdot": _product("self", "other"),
}
"""Operations in which a weight meets channels and sums over them."""

_NORMS = (
    "native_batch_norm _native_batch_norm_legit _native_batch_norm_legit_no_training _batch_norm_no_update "
    "cudnn_batch_norm native_group_norm native_layer_norm _fused_rms_norm"
)
_REDUCTIONS = "sum mean prod amax amin max min var std var_mean std_mean linalg_vector_norm norm logsumexp"
_SPATIAL = (
    "avg_pool1d avg_pool2d avg_pool3d max_pool2d_with_indices max_pool3d_with_indices _adaptive_avg_pool2d "
    "_adaptive_avg_pool3d adaptive_avg_pool1d adaptive_max_pool2d adaptive_max_pool3d reflection_pad1d "
    "reflection_pad2d reflection_pad3d replication_pad1d replication_pad2d replication_pad3d "
    "upsample_nearest1d upsample_nearest2d upsample_nearest3d upsample_linear1d upsample_bilinear2d upsample_bicubic2d "
    "upsample_trilinear3d"
)
_SAME = (
    "alias detach contiguous _to_copy lift_fresh lift_fresh_copy zero fill _softmax _log_softmax hardswish "
    "log_sigmoid_forward rrelu_with_noise"
)
_MADE = "zeros ones full empty new_zeros new_ones new_full new_empty zeros_like ones_like full_like empty_like"

_RULES: dict[str, Rule] = {
    **PRODUCTS,
    **dict.fromkeys(_NORMS.split(), _norm),
    **dict.fromkeys(_REDUCTIONS.split(), _reduce),
    **dict.fromkeys(_SPATIAL.split(), _spatial),
    **dict.fromkeys(_SAME.split(), _same),
    **dict.fromkeys(_MADE.split(), _made),
    **dict.fromkeys(["view", "_unsafe_view", "squeeze", "unsqueeze"], _reshape),
    **dict.fromkeys(["permute", "transpose", "t"], _permute),
    **dict.fromkeys(["split", "split_with_sizes", "unsafe_split"], _pieces),
    **dict.fromkeys(["select", "unbind"], _select),
    **dict.fromkeys(["expand", "repeat"], _expand),
    "_unsafe_index": _resampled,
    "slice": _slice,
    "glu": _glu,
    "cat": _cat,
    "stack": _stack,
    "constant_pad_nd": _pad,
    "as_strided": _restride,
    "embedding": _embedding,
    "copy": _meet("self", "src"),
    "_prelu_kernel": _meet("self", "weight"),
    "_weight_norm_interface": _meet("v", "g"),
}
