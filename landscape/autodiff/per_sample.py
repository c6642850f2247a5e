"""Gradients of groups of samples for the price of one backward pass.

The gradient of a layer's weight is a sum over samples. For a linear layer a -> W a it is sum_i d_i a_iᵀ, where a_i
entered the layer and d_i is the gradient at what left it. One backward pass that computes gradients at the layers'
outputs only gives all d_i; the sum may then run over any part of the batch. Seeds 1 / n_g(i) make it the gradient of
each group's mean loss. In units of a forward pass: forward 1, d_i 1, weights 1, as in an ordinary training step.

Convolutions, linear layers and batch norm are treated so where their parameters are used nowhere else, which the graph
of the losses tells, and where their inputs have the batch along the first axis. Another axis may be as long as the
batch by chance (`batch_first` looks at two sizes). All other parameters (other layers,
shared or used by name) get a backward pass for each group.
Samples must not influence each other: batch norm runs in eval mode, or within `batch_statistics_constant`.

Source: Goodfellow 2015, "Efficient per-example gradient computations", for linear layers; Rochette et al. 2019 for
convolutions.
"""

from collections.abc import Callable, Collection, Generator, Iterable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, Node, get_gradient_edge
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from landscape.errors import InputError, NumericalError, arg

Losses = Callable[[], Tensor]
"""Runs the model on a batch; returns the loss of each sample, (B,)."""

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_GROUPS = (*_CONVOLUTIONS, nn.Linear, *NORMS)  # layers whose gradients can be taken over any part of a batch


def group_gradients(
    model: nn.Module,
    losses: Losses,
    groups: Tensor,
    n_groups: int,
    params: Sequence[str] | None = None,
    *,
    first: Collection[nn.Module] | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the gradient of each group's mean loss over a batch.

    The mean over rows weighted by the groups' shares of the batch is the batch's gradient.

    Args:
        model: whose parameters it is; its samples do not influence each other.
        losses: runs the model on the batch, once.
        groups: of each sample, (B,) integers from 0 to n_groups - 1; on the CPU no GPU has to be waited for.
        n_groups: G.
        params: names of parameters; None for all trainable ones, in the order of `model.named_parameters()`.
        first: layers with the batch along their first axis, as `batch_first` finds them; None takes all that are as
            long as the batch there, which `check` then has to confirm.

    Returns:
        The losses without their graph, (B,), and the gradients, (G, D), flat in the order of the parameters. The row of
        a group that the batch does not have is zero.

    Raises:
        InputError: batch norm couples the samples, a group or parameter does not exist, or the losses do not fit.
    """
    chosen = parameters_of(model, params)
    values, calls = recorded(model, losses, _GROUPS, first)
    return values.detach(), _rows(values, calls, chosen, groups, n_groups)


def check(model: nn.Module, losses: Losses, *, tolerance: float = 0.02) -> None:
    """Make sure, on one batch, that the gradients of groups add up to that of the batch, as autograd has it.

    They do not if the samples influence each other, or if the first axis within the network is not the batch.
    Running statistics of batch norm stay as they are.

    Args:
        model: as for `group_gradients`.
        losses: runs the model on a batch of at least three samples, once.
        tolerance: of |difference| / |gradient|; room for bfloat16.

    Raises:
        InputError: the batch is too small, or what `group_gradients` refuses.
        NumericalError: they do not.
    """
    chosen = parameters_of(model, None)
    with kept_statistics(model):
        values, calls = recorded(model, losses, _GROUPS)
    n = len(values)
    if n < 3:
        raise InputError(f"gradients of groups are checked on a batch of at least 3 samples, got {n}")
    groups = (torch.arange(n) >= n // 3).long()  # of different sizes: an error in equal shares would cancel
    counts = torch.bincount(groups).to(values)
    whole = torch.autograd.grad(values.mean(), list(chosen.values()), retain_graph=True, materialize_grads=True)
    expected = torch.cat([g.reshape(-1) for g in whole])
    found = (counts / n).to(expected) @ _rows(values, calls, chosen, groups, 2)
    error = float((found - expected).norm() / expected.norm().clamp(min=torch.finfo(expected.dtype).tiny))
    if not error <= tolerance:
        raise NumericalError(
            f"gradients of groups add up to another gradient than the batch's ({error:.1%} off): samples of a batch "
            f"influence each other in this model; use {arg('first_pass', 'exact')}"
        )


@contextmanager
def kept_statistics(model: nn.Module | None) -> Generator[None, None, None]:
    """Let batch norm normalise by the batch inside the block without counting it in its running statistics.

    The second pass of a step sees the batch at other parameters; its statistics are not those of the model.

    Args:
        model: whose batch norm it is; None does nothing.

    Yields:
        Nothing.
    """
    norms = [] if model is None else [m for m in model.modules() if isinstance(m, _BatchNorm)]
    tracking = [m.track_running_stats for m in norms]
    buffers = [(m.running_mean, m.running_var) for m in norms]
    try:
        for m in norms:
            if m.training:  # without buffers a layer in training mode normalises by the batch and records nothing
                m.track_running_stats = False
                m.running_mean = m.running_var = None
        yield
    finally:
        for m, before, (mean, var) in zip(norms, tracking, buffers, strict=True):
            m.track_running_stats, m.running_mean, m.running_var = before, mean, var


@contextmanager
def batch_statistics_constant(model: nn.Module) -> Generator[None, None, None]:
    """Let batch norm in training mode take its batch's statistics for constants: its samples are then independent.

    Outputs and running statistics are those of training; the gradient does not pass through mean and variance.

    Args:
        model: whose batch norm it is.

    Yields:
        Nothing.

    Raises:
        InputError: the model has a SyncBatchNorm, whose statistics are not this batch's.
    """
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm)]
    if any(isinstance(m, nn.SyncBatchNorm) for m in norms):
        raise InputError("SyncBatchNorm takes statistics over all ranks: build the model with BatchNorm2d")
    before = [m.__dict__.get("forward") for m in norms]
    try:
        for m in norms:
            m.__dict__["forward"] = _Constant(m)
        yield
    finally:
        for m, forward in zip(norms, before, strict=True):
            m.__dict__.pop("forward", None)
            if forward is not None:
                m.__dict__["forward"] = forward


class _Constant:
    """Stands in for the forward of one batch norm."""

    def __init__(self, module: _BatchNorm) -> None:
        self._module = module
        self.statistics: tuple[Tensor, ...] = ()  # of the latest batch: mean and biased variance, (C,)

    def __call__(self, x: Tensor) -> Tensor:
        m = self._module
        self.statistics = ()
        if not _by_batch(m):
            return type(m).forward(m, x)
        m._check_input_dim(x)  # type: ignore[no-untyped-call]
        n = x.numel() // x.shape[1]
        if n < 2:
            raise InputError(f"batch norm got one value per channel, shape {tuple(x.shape)}: raise {arg('batch_size')}")
        with torch.no_grad():
            wide = x.float() if x.dtype in {torch.float16, torch.bfloat16} else x
            # on a CPU twice as fast as torch.var_mean, which is a sixth of the pass
            _, mean, inverse = torch.native_batch_norm(wide, None, None, None, None, True, 0.0, 0.0)
            variance = torch.where(inverse > 0, inverse**-2, 0.0)  # torch has 0 for the inverse of 0
            if m.training and m.track_running_stats and m.running_mean is not None and m.running_var is not None:
                rate: Any = m.momentum
                if m.num_batches_tracked is not None:
                    m.num_batches_tracked.add_(1)
                    rate = (1 / m.num_batches_tracked).to(mean) if rate is None else rate
                m.running_mean.lerp_(mean.to(m.running_mean), rate)
                m.running_var.lerp_((variance * (n / (n - 1))).to(m.running_var), rate)
        self.statistics = mean, variance
        return F.batch_norm(x, mean, variance, m.weight, m.bias, training=False, eps=m.eps)


@dataclass(frozen=True, eq=False)
class Call:
    """One use of a layer in a forward pass."""

    module: Any
    inputs: Tensor  # (B, ...)
    source: Node | None  # where the inputs come from in the graph
    output: GradientEdge
    statistics: tuple[Tensor, ...]  # of batch norm: mean and variance, (C,)


def _by_batch(module: _BatchNorm) -> bool:
    return module.training or module.running_mean is None


def parameters_of(model: nn.Module, params: Sequence[str] | None) -> dict[str, Tensor]:
    """Return the parameters to differentiate by.

    Args:
        model: whose they are.
        params: their names; None for all trainable ones.

    Returns:
        The parameters by name, in the order asked for or else the model's.

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
    """Say whether a layer is exactly what its type says; a subclass may compute anything."""
    if type(module) not in kinds or not {name for name, _ in module.named_parameters(recurse=False)} <= {
        "weight",
        "bias",
    }:
        return False
    if not isinstance(module.weight, nn.Parameter):  # none, or made of others by a parametrization
        return False
    return not isinstance(module, _CONVOLUTIONS) or (
        module.padding_mode == "zeros" and not isinstance(module.padding, str)
    )


def batch_first(
    model: nn.Module, losses: Callable[[int], Tensor], kinds: tuple[type[nn.Module], ...] = _GROUPS
) -> frozenset[nn.Module]:
    """Find the layers that have the batch along the first axis of their inputs, in its own order, whatever its size.

    Args:
        model: as for `group_gradients`.
        losses: runs the model on the first so many of three samples that differ, once, and returns a value or a row of
            them for each.
        kinds: types of layers.

    Returns:
        The layers; one that is not used in these batches is none of them.
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
        model: whose calls they are; its samples do not influence each other.
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
    for name, m in model.named_modules():
        if isinstance(m, _BatchNorm) and _by_batch(m) and not isinstance(m.__dict__.get("forward"), _Constant):
            raise InputError(
                f"{name or 'the model'} is a batch norm that normalises by its batch, so that samples influence each "
                "other: call model.eval(), or use batch_statistics_constant(model)"
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
            statistics = constant.statistics if isinstance(constant, _Constant) else ()
            statistics = statistics or (module.get_buffer("running_mean"), module.get_buffer("running_var"))
        source = get_gradient_edge(x).node if x.requires_grad else None
        calls.append(Call(module, x.detach(), source, get_gradient_edge(output), statistics))

    # First of all hooks: the output is the layer's own, whatever others make of it.
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
    """Go back from the values to the outputs of the recorded calls.

    Args:
        values: with their graph.
        calls: the recorded calls.
        seeds: what each value is multiplied by, of their shape.
        keep: the graph, for another pass.

    Returns:
        The calls that the values depend on, with the gradient at the output of each.
    """
    if not calls:
        return []
    # Of all backward steps, autograd makes only those that lead to these outputs: no gradients of weights.
    found = torch.autograd.grad([values], [c.output for c in calls], [seeds], retain_graph=keep, allow_unused=True)
    return [(call, d) for call, d in zip(calls, found, strict=True) if d is not None]


# Groups ---------------------------------------------------------------------------------------------------------------


def _rows(values: Tensor, calls: list[Call], chosen: dict[str, Tensor], groups: Tensor, n_groups: int) -> Tensor:
    groups = groups.cpu()
    if values.ndim != 1:
        raise InputError(
            f'losses() returned shape {tuple(values.shape)}: it must return one value per sample; use reduction="none"'
        )
    if groups.shape != values.shape:
        raise InputError(f"losses() returned {len(values)} values for groups of shape {tuple(groups.shape)}")
    if int(groups.min()) < 0 or int(groups.max()) >= n_groups:
        raise InputError(f"groups are 0 to {n_groups - 1}, got {int(groups.min())} to {int(groups.max())}")
    device = values.device
    counts = torch.bincount(groups, minlength=n_groups)
    present = counts.nonzero().flatten().tolist()
    split = counts[present].tolist()
    order = groups.argsort(stable=True).to(device, non_blocking=True)
    member = F.one_hot(groups, n_groups).T.to(device, non_blocking=True)  # (G, B)
    seeds = (1 / counts[groups].double()).to(device, values.dtype, non_blocking=True)

    example = next(iter(chosen.values()))
    sizes = [p.numel() for p in chosen.values()]
    rows = torch.zeros(n_groups, sum(sizes), dtype=example.dtype, device=example.device)
    places = dict(zip(chosen, torch.split(rows, sizes, dim=1), strict=True))
    rest = used_otherwise(values, calls, chosen)
    own = {id(p): places[name] for name, p in chosen.items() if name not in rest}
    taken = [c for c in calls if any(id(p) in own for p in c.module.parameters())]
    for call, d in at_outputs(values, taken, seeds, keep=bool(rest)):
        into = {kind: own[id(p)] for kind, p in call.module.named_parameters() if id(p) in own}
        if isinstance(call.module, NORMS):
            for kind, place in into.items():
                each = of_norm(call, call.inputs, d, kind)
                place += member.to(each) @ each
            continue
        xs, ds = (torch.split(t.to(d.dtype).index_select(0, order), split) for t in (call.inputs, d))
        for g, x, d_g in zip(present, xs, ds, strict=True):
            for kind, gradient in _summed(call.module, x, d_g, into).items():
                into[kind][g] += gradient.reshape(-1)
    for g in present if rest else ():
        seeds_g = seeds * member[g]
        found = torch.autograd.grad(
            [values], [chosen[name] for name in rest], [seeds_g], retain_graph=g != present[-1], materialize_grads=True
        )
        for name, gradient in zip(rest, found, strict=True):
            places[name][g] = gradient.reshape(-1)
    return rows


def _summed(module: Any, x: Tensor, d: Tensor, kinds: Iterable[str]) -> dict[str, Tensor]:
    """Return the gradients of a convolution's or linear layer's parameters, summed over samples."""
    if isinstance(module, nn.Linear):
        d = d.reshape(-1, d.shape[-1])
        return {kind: d.sum(0) if kind == "bias" else d.T @ x.reshape(-1, x.shape[-1]) for kind in kinds}
    _, weight, bias = torch.ops.aten.convolution_backward(
        d,
        x,
        d.new_empty(1).expand(module.weight.shape),  # only its shape matters
        [module.out_channels],
        module.stride,
        module.padding,
        module.dilation,
        False,
        [0] * len(module.stride),
        module.groups,
        (False, "weight" in kinds, "bias" in kinds),
    )
    return {kind: weight if kind == "weight" else bias for kind in kinds}


def of_norm(call: Call, x: Tensor, d: Tensor, kind: str) -> Tensor:
    """Return the gradient of batch norm's gamma or beta by each sample.

    Args:
        call: of a batch norm.
        x: what entered it, (B, C, ...).
        d: gradient at what left it, (B, C, ...).
        kind: "weight" for gamma, "bias" for beta.

    Returns:
        Gradients, (B, C).
    """
    beyond = list(range(2, x.ndim))
    wide: torch.dtype = call.module.weight.dtype
    if kind == "bias":
        return d.sum(beyond, dtype=wide) if beyond else d.to(wide)
    mean, variance = call.statistics
    product = (x - mean.view(-1, *[1] * len(beyond))) * d
    scale = torch.rsqrt(variance + call.module.eps)
    return (product.sum(beyond) if beyond else product) * scale
