"""Gradients of groups of samples at the cost of one backward pass.

The gradient of a layer's weight is a sum over samples. For a linear layer a -> W a it is sum_i d_i a_iᵀ, where a_i
entered the layer and d_i is the gradient at what left it. One backward pass that computes gradients at the layers'
outputs only gives all d_i; the sum may then run over any part of the batch. Seeds 1 / n_g(i) make it the gradient of
each group's mean loss. In units of a forward pass: forward 1, d_i 1, weights 1, as in an ordinary training step.

Convolutions, linear layers and batch norm are treated so where their parameters are used nowhere else, which the graph
of the losses tells, and where their inputs have the batch along the first axis. Another axis may be as long as the
batch by chance (`recording.batch_first` looks at two sizes, `SampleRows` at gradients). All other parameters (of other
layers, shared or used by name) get a backward pass for each group. Samples must not influence each other: batch norm
runs in eval mode, or within `batch_statistics_constant`. Where they do, all parameters need a pass for each group.

Source: Goodfellow 2015, "Efficient per-example gradient computations", for linear layers; Rochette et al. 2019 for
convolutions.
"""

from collections.abc import Collection, Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from landscape.autodiff.batch_statistics import kept_statistics
from landscape.autodiff.recording import (
    NORMS,
    SEPARABLE,
    Call,
    Losses,
    at_outputs,
    parameters_of,
    recorded,
    used_otherwise,
)
from landscape.autodiff.sample_rows import SampleRows
from landscape.autodiff.wide import wide
from landscape.errors import InputError, NumericalError, arg


def group_gradients(
    model: nn.Module,
    losses: Losses,
    groups: Tensor,
    n_groups: int,
    params: Sequence[str] | None = None,
    *,
    first: Collection[nn.Module] | SampleRows | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the gradient of each group's mean loss over a batch.

    The mean over rows, weighted by the groups' numbers of samples, is the batch's gradient.

    Args:
        model: the model; its samples must not influence each other, unless `first` is empty.
        losses: runs the model on the batch, once.
        groups: group of each sample, (B,) integers from 0 to n_groups - 1; on the CPU they need no wait for a GPU.
        n_groups: G.
        params: names of parameters; None for all trainable ones, in the order of `model.named_parameters()`.
        first: layers with the batch along their first axis, as `batch_first` finds them. `SampleRows` finds them in the
            batches themselves, and all other layers get a backward pass for each group; without any layers, the whole
            model gets these. None uses all layers with a first axis as long as the batch, which `check` must then
            confirm.

    Returns:
        The losses without their graph, (B,), and the gradients, (G, D), flat in the order of the parameters. The row of
        a group without samples in the batch is zero.

    Raises:
        InputError: batch norm couples the samples, a group or parameter does not exist, or the losses do not fit.
    """
    chosen = parameters_of(model, params)
    layers = None if isinstance(first, SampleRows) else first
    values, calls = recorded(model, losses, SEPARABLE if layers is None or layers else (), layers)
    calls = first.among(values, calls) if isinstance(first, SampleRows) else calls
    return values.detach(), _rows(values, calls, chosen, groups, n_groups)


def check(model: nn.Module, losses: Losses, *, tolerance: float = 0.02) -> None:
    """Check on one batch that the gradients of groups add up to the gradient of the batch by autograd.

    They do not if the samples influence each other, or if the first axis within the network is not the batch.
    Running statistics of batch norm are not changed.

    Args:
        model: as for `group_gradients`.
        losses: runs the model on a batch of at least three samples, once.
        tolerance: of |difference| / |gradient|; room for bfloat16.

    Raises:
        InputError: the batch is too small, or as for `group_gradients`.
        NumericalError: they do not add up.
    """
    chosen = parameters_of(model, None)
    with kept_statistics(model):
        values, calls = recorded(model, losses, SEPARABLE)
    n = len(values)
    if n < 3:
        raise InputError(f"gradients of groups are checked on a batch of at least 3 samples, got {n}")
    groups = (torch.arange(n) >= n // 3).long()  # of different sizes: an error in equal shares would cancel
    counts = torch.bincount(groups).to(values)
    whole = torch.autograd.grad(values.mean(), list(chosen.values()), retain_graph=True, materialize_grads=True)
    expected = torch.cat([g.reshape(-1) for g in whole])
    found = (counts / n).to(expected) @ _rows(values, calls, chosen, groups, 2)
    found, expected = wide(found), wide(expected)  # squares of small or large gradients leave float32
    if not (found.isfinite().all() and expected.isfinite().all()):
        narrow = str(next(iter(chosen.values())).dtype).removeprefix("torch.")
        raise NumericalError(f"the gradient of a batch is not finite in {narrow}: try {arg('dtype', 'float64')}")
    error = float((found - expected).norm() / expected.norm().clamp(min=torch.finfo(expected.dtype).tiny))
    if not error <= tolerance:
        raise NumericalError(
            f"gradients of groups add up to another gradient than the batch's ({error:.1%} off): within this model, "
            "samples of a batch influence each other or change their order"
        )


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
    device, example = values.device, next(iter(chosen.values()))  # losses may be on the host, for float64
    counts = torch.bincount(groups, minlength=n_groups)
    present = counts.nonzero().flatten().tolist()
    split = counts[present].tolist()
    sorted_already = bool((groups[1:] >= groups[:-1]).all())  # needs no copies
    order = None if sorted_already else groups.argsort(stable=True).to(example.device, non_blocking=True)
    member = F.one_hot(groups, n_groups).T.to(device, non_blocking=True)  # (G, B)
    seeds = (1 / counts[groups].double()).to(device, values.dtype, non_blocking=True)

    sizes = [p.numel() for p in chosen.values()]
    rows = torch.zeros(n_groups, sum(sizes), dtype=example.dtype, device=example.device)
    places = dict(zip(chosen, torch.split(rows, sizes, dim=1), strict=True))
    rest = used_otherwise(values, calls, chosen)
    own = {id(p): places[name] for name, p in chosen.items() if name not in rest}
    taken = [c for c in calls if any(id(p) in own for p in c.module.parameters())]
    for call, d in at_outputs(values, taken, seeds, keep=bool(rest)):
        into = {kind: own[id(p)] for kind, p in call.module.named_parameters() if id(p) in own}
        pair = [t.to(d.dtype) for t in (call.inputs, d)]
        xs, ds = (torch.split(t if order is None else t.index_select(0, order), split) for t in pair)
        for g, x, d_g in zip(present, xs, ds, strict=True):
            for kind, gradient in _summed(call, x, d_g, into).items():
                into[kind][g] += gradient.reshape(-1)
    for g in present if rest else ():
        seeds_g = seeds * member[g]
        found = torch.autograd.grad(
            [values], [chosen[name] for name in rest], [seeds_g], retain_graph=g != present[-1], materialize_grads=True
        )
        for name, gradient in zip(rest, found, strict=True):
            places[name][g] = gradient.reshape(-1)
    return rows


def _summed(call: Call, x: Tensor, d: Tensor, kinds: Iterable[str]) -> dict[str, Tensor]:
    """Return the gradients of a layer's parameters, summed over samples."""
    module = call.module
    if isinstance(module, NORMS):
        _, weight, bias = torch.ops.aten.native_batch_norm_backward(
            d, x, module.weight.detach(), *call.statistics, None, None, False, module.eps, (False, True, True)
        )
        return {kind: weight if kind == "weight" else bias for kind in kinds}
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
