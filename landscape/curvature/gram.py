"""Inner products of the gradients of parts: one small matrix determines all their lengths and angles.

Row and column p belong to g_p, the gradient of part p's mean loss; the last ones to g, the mean of the g_p weighted by
the parts' numbers of samples. The gradients, rows of D numbers, are not stored; their products are summed in float64,
layer by layer.
"""

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from landscape.autodiff import recording
from landscape.autodiff.differentiable import differentiable_attention
from landscape.autodiff.per_sample import group_gradients
from landscape.autodiff.trees import Tree
from landscape.autodiff.wide import place, wide, zeros
from landscape.errors import NumericalError, arg
from landscape.networks.copies import copied
from landscape.networks.params import Layout
from landscape.objective.objective import Objective

Report: TypeAlias = Callable[[float], None]
"""Is called with the fraction that is done."""

_ENTRIES = 2**22  # numbers that are taken to float64 at a time: 32 MiB
_ADD_UP = 0.02  # how far gradients of groups may be from adding up, relative to their sizes; room for float32


@dataclass(frozen=True, kw_only=True)
class Products:
    """Inner products of the gradients of G parts and, last, of all samples: over all parameters and over each layer."""

    matrix: np.ndarray  # (G + 1, G + 1)
    squares: np.ndarray  # (L, G + 1) <g_p, g_p> within the layer; these add up to the matrix's diagonal
    along: np.ndarray  # (L, G + 1) <g_p, g> within the layer; these add up to its last column


def exact(objective: Objective, cache_bytes: int, report: Report) -> tuple[np.ndarray, Products]:
    """Return each part's mean loss and the inner products of the gradients over all samples.

    Each batch of a part needs one backward pass. If the gradients of all parts do not fit into memory, those of a block
    of parts are kept, and the later ones are computed again for each block: with memory for 1/k of the parts, (k + 1) /
    2 passes.

    Args:
        objective: model, loss and data in P parts.
        cache_bytes: memory for the gradients that are kept, in bytes; at least one gradient is always kept.
        report: called with the finished fraction of the samples.

    Returns:
        Losses (P,) and products.
    """
    counts, shares, n_parts = objective.counts, objective.shares, len(objective.partition)
    size = objective.layout.size
    held = min(n_parts, max(1, cache_bytes // (size * objective.dtype.itemsize)))
    kept = torch.empty(held, size, dtype=objective.dtype, device=objective.device)
    whole = zeros(size, objective.device)
    loss, gram = np.zeros(n_parts), np.zeros((n_parts + 1, n_parts + 1))
    squares, along = np.zeros((2, len(objective.layout.layers), n_parts + 1))
    starts = range(0, n_parts, held)
    done, total = 0, sum(int(counts[start:].sum()) for start in starts)
    for start in starts:
        stop = min(start + held, n_parts)
        rows = kept[: stop - start]
        for p in range(start, n_parts):
            summed, gradient = _of_part(objective, p)
            row = (gradient / counts[p]).to(objective.device, objective.dtype)
            if start == 0:
                loss[p] = summed / counts[p]
                whole += shares[p] * wide(row)
            if p < stop:
                rows[p - start] = row
            else:
                gram[start:stop, p] = _products(rows, row[None])[:, 0]
            done += int(counts[p])
            report(min(0.99, done / total))
        found = _with_whole(rows, whole, objective.layout, objective.layout.names)
        here = [*range(start, stop), n_parts]
        gram[np.ix_(here, here)] = found.matrix
        squares[:, here], along[:, here] = found.squares, found.along
    matrix = np.triu(gram) + np.triu(gram, 1).T
    return loss, Products(matrix=matrix, squares=squares, along=along)


def of_batch(
    objective: Objective,
    model: nn.Module,
    index: np.ndarray,
    groups: np.ndarray,
    cache_bytes: int,
    first: Collection[nn.Module],
) -> tuple[np.ndarray, Products]:
    """Return the summed loss of each group of a batch and the inner products of the groups' gradients.

    All gradients come from one backward pass. If they do not fit into memory, the parameters are divided into pieces,
    with one backward pass for each.

    Args:
        objective: loss, data and batch size.
        model: what `trainable` returned for it.
        index: (B,) positions of the samples.
        groups: (B,) group of each sample, 0 to G - 1; each group has a sample.
        cache_bytes: memory for the gradients, in bytes; a parameter tensor is not divided.
        first: what `batch_first` returned for it.

    Returns:
        Sums of the losses (G,) and products, the last of the batch.
    """
    counts = np.bincount(groups)
    shares = torch.from_numpy(counts / counts.sum()).to(place(objective.device))
    n_groups = len(counts)
    loss, found = np.zeros(n_groups), list[Products]()
    cuts = range(objective.batch_size, len(index), objective.batch_size)
    chunks = list(zip(np.split(index, cuts), np.split(groups, cuts), strict=True))
    pieces = objective.layout.pieces(n_groups * objective.dtype.itemsize, cache_bytes)
    for names in pieces:
        rows = None
        for samples, here in chunks:
            values, means = _of_groups(objective, model, samples, here, n_groups, names, first)
            loss += np.bincount(here, wide(values).cpu().numpy(), minlength=n_groups) / len(pieces)
            means *= torch.from_numpy(np.bincount(here, minlength=n_groups) / counts).to(means)[:, None]
            rows = means if rows is None else rows.add_(means)
        if rows is not None:
            whole = torch.cat([shares @ wide(x) for x in torch.split(rows, _columns(n_groups), dim=1)])
            found.append(_with_whole(rows, whole, objective.layout, names))
    sums = {name: sum(getattr(one, name) for one in found) for name in ("matrix", "squares", "along")}
    return loss, Products(**sums)


def batch_first(objective: Objective, model: nn.Module) -> frozenset[nn.Module]:
    """Find the layers with inputs that have the batch along their first axis.

    Args:
        objective: loss and data.
        model: what `trainable` returned for it.

    Returns:
        The layers.
    """

    def values(n: int) -> Tensor:
        index = np.resize(np.concatenate(objective.members), n)
        return _losses(objective, model, *objective.samples.batch(index, objective.device, objective.dtype))

    with differentiable_attention():
        return recording.batch_first(model, values)


def check(objective: Objective, model: nn.Module, index: np.ndarray, first: Collection[nn.Module]) -> None:
    """Check on some samples that the gradients of groups add up to the gradient by autograd.

    They do not if samples influence each other, or if a layer has the samples in another order.

    Args:
        objective: loss and data.
        model: what `trainable` returned for it.
        index: (B,) positions of the samples.
        first: what `batch_first` returned for it.

    Raises:
        NumericalError: they do not add up.
    """
    n = len(index)
    groups = (np.arange(n) >= n // 3).astype(np.int64)  # of different sizes: an error in equal shares would cancel
    _, rows = _of_groups(objective, model, index, groups, 2, objective.layout.names, first)
    sizes = torch.from_numpy(np.bincount(groups, minlength=2)).to(rows)
    expected = _summed(objective, [objective.samples.batch(index, objective.device, objective.dtype)])[1]
    # Gradients that are not finite pass this test; the code that uses them names them.
    if float((wide(sizes @ rows) - expected).norm()) > _ADD_UP * float(sizes @ rows.norm(dim=1)):
        raise NumericalError(
            f"gradients of groups of {n} samples do not add up to that of all: samples of a batch influence each other "
            f"in this model; leave {arg('batches')} out, which takes each part by itself"
        )


def direction(objective: Objective, part: int) -> Tensor:
    """Return the normalised gradient of a part's loss.

    Args:
        objective: model, loss and data in parts.
        part: position of the part.

    Returns:
        (D,) of the objective's dtype; zeros where the gradient is zero.
    """
    gradient = _of_part(objective, part)[1]
    length = gradient.norm()
    return (gradient / length if length > 0 else gradient).to(objective.device, objective.dtype)


def trainable(model: nn.Module, layout: Layout) -> nn.Module:
    """Return a copy of a model in which only the parameters that vary require a gradient.

    Args:
        model: the model of an objective; it is not changed.
        layout: the parameters that vary.

    Returns:
        The copy.
    """
    own = copied(model)
    for name, parameter in own.named_parameters():
        parameter.requires_grad_(name in layout.names)
    return own


def _of_part(objective: Objective, part: int) -> tuple[float, Tensor]:
    """Return the sum of the losses over a part and its gradient, (D,) float64."""
    loss, gradient = _summed(objective, objective.batches(part))
    return float(objective.team.total(loss)), objective.team.total(gradient)


def _summed(objective: Objective, batches: Iterable[tuple[Tree, Tree]]) -> tuple[Tensor, Tensor]:
    """Return the sum of the losses over some samples, (), and its gradient, (D,), both float64."""
    theta = [t.detach().requires_grad_() for t in objective.theta]
    loss, total = zeros((), objective.device), zeros(objective.layout.size, objective.device)
    for inputs, targets in batches:
        with differentiable_attention():
            value = wide(objective.losses(theta, inputs, targets)).sum()
            found = torch.autograd.grad(value, theta, materialize_grads=True)
        loss += value.detach()
        total += objective.layout.flat(found).to(total.device)
    return loss, total


def _of_groups(
    objective: Objective,
    model: nn.Module,
    index: np.ndarray,
    groups: np.ndarray,
    n_groups: int,
    names: Sequence[str],
    first: Collection[nn.Module],
) -> tuple[Tensor, Tensor]:
    """Return the losses of some samples, (B,), and the gradients of their groups' means, (G, D)."""
    losses = partial(_losses, objective, model, *objective.samples.batch(index, objective.device, objective.dtype))
    with differentiable_attention():
        return group_gradients(model, losses, torch.from_numpy(groups), n_groups, names, first=first)


def _losses(objective: Objective, model: nn.Module, inputs: Tree, targets: Tree) -> Tensor:
    return objective.values(objective.logits_of(model, inputs), targets)


def _products(a: Tensor, b: Tensor) -> np.ndarray:
    """Return the inner products of rows (A, D) with rows (B, D), (A, B), summed up in float64."""
    columns = _columns(max(len(a), len(b)))
    found = zeros((len(a), len(b)), a.device)
    for x, y in zip(torch.split(a, columns, dim=1), torch.split(b, columns, dim=1), strict=True):
        found += wide(x) @ wide(y).T
    return found.cpu().numpy()


def _with_whole(rows: Tensor, whole: Tensor, layout: Layout, names: Sequence[str]) -> Products:
    """Return inner products of the groups' gradients (G, d) and the whole gradient (d,), over named parameters."""
    size_of = dict(zip(layout.names, layout.sizes, strict=True))
    layer_of = {name: layer for layer, own in enumerate(layout.layers.values()) for name in own}
    n = len(rows) + 1
    matrix = zeros((n, n), rows.device)
    squares, along = zeros((2, len(layout.layers), n), rows.device)
    sizes = [size_of[name] for name in names]
    for name, own, g in zip(names, torch.split(rows, sizes, dim=1), torch.split(whole, sizes), strict=True):
        for x, y in zip(*(torch.split(t, _columns(n), dim=-1) for t in (own, g)), strict=True):
            both = torch.cat([wide(x), y[None]])
            found = both @ both.T
            matrix += found
            squares[layer_of[name]] += found.diagonal()
            along[layer_of[name]] += found[:, -1]
    return Products(matrix=matrix.cpu().numpy(), squares=squares.cpu().numpy(), along=along.cpu().numpy())


def _columns(n_rows: int) -> int:
    """Return how many columns of this many rows are converted to float64 at a time."""
    return max(1, _ENTRIES // n_rows)
