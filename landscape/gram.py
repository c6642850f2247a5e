"""Inner products of the gradients of parts: one small matrix holds all that is said of their sizes and angles.

Row and column p belong to g_p, the gradient of part p's mean loss; the last ones to g = sum over parts of share times
g_p. The gradients are rows of D numbers that come and go; their products are summed up in float64.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from landscape import models
from landscape.errors import NumericalError
from landscape.objective import Objective, copied, differentiable_attention
from landscape.params import Layout
from landscape.per_sample import group_gradients

Report: TypeAlias = Callable[[float], None]
"""Is told the share that is done."""

_ENTRIES = 2**22  # numbers that are taken to float64 at a time: 32 MiB
_ADD_UP = 0.02  # how far gradients of groups may be from adding up, relative to their sizes; room for float32


def exact(objective: Objective, cache_bytes: int, report: Report) -> tuple[np.ndarray, np.ndarray]:
    """Return each part's mean loss and the inner products of the gradients over all samples.

    Each batch of a part takes one backward pass. Where the gradients of all parts do not fit, those of a block of parts
    are kept and the later ones computed again beside it: with room for a k-th of the parts, (k + 1) / 2 passes.

    Args:
        objective: model, loss and data in P parts.
        cache_bytes: for the gradients that are kept; at least one always is.
        report: told the share of the samples that is done.

    Returns:
        Losses (P,) and products (P + 1, P + 1), the last of the whole.
    """
    counts, shares, n_parts = objective.counts, objective.partition.shares, len(objective.partition)
    size = objective.layout.size
    held = min(n_parts, max(1, cache_bytes // (size * objective.dtype.itemsize)))
    kept = torch.empty(held, size, dtype=objective.dtype, device=objective.device)
    whole = torch.zeros(size, dtype=torch.float64, device=objective.device)
    loss, gram = np.zeros(n_parts), np.zeros((n_parts + 1, n_parts + 1))
    starts = range(0, n_parts, held)
    done, total = 0, sum(int(counts[start:].sum()) for start in starts)
    for start in starts:
        stop = min(start + held, n_parts)
        rows = kept[: stop - start]
        for p in range(start, n_parts):
            summed, gradient = _summed(objective, objective.batches(p))
            row = (gradient / counts[p]).to(objective.dtype)
            if start == 0:
                loss[p] = summed / counts[p]
                whole += shares[p] * row.double()
            if p < stop:
                rows[p - start] = row
            else:
                gram[start:stop, p] = _products(rows, row[None])[:, 0]
            done += int(counts[p])
            report(min(0.99, done / total))
        gram[start:stop, start:stop] = _products(rows, rows)
        gram[start:stop, -1] = _products(rows, whole[None])[:, 0]
    gram[-1, -1] = float(whole.dot(whole))
    return loss, np.triu(gram) + np.triu(gram, 1).T


def of_batch(
    objective: Objective, model: nn.Module, index: np.ndarray, groups: np.ndarray, cache_bytes: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the summed loss of each group of a batch and the inner products of the groups' gradients.

    All gradients come from one backward pass, or from one for each piece of the parameters by which they fit.

    Args:
        objective: loss, data, and how many samples at a time.
        model: what `trainable` returned for it.
        index: (B,) positions of the samples.
        groups: (B,) group of each, 0 to G - 1, each of which has a sample.
        cache_bytes: for the gradients; those by one parameter tensor are not divided.

    Returns:
        Sums of the losses (G,) and products (G + 1, G + 1), the last of the batch.
    """
    counts = np.bincount(groups)
    shares = torch.from_numpy(counts / counts.sum()).to(objective.device)
    n_groups = len(counts)
    loss, gram = np.zeros(n_groups), np.zeros((n_groups + 1, n_groups + 1))
    cuts = range(objective.batch_size, len(index), objective.batch_size)
    chunks = list(zip(np.split(index, cuts), np.split(groups, cuts), strict=True))
    pieces = _pieces(objective.layout, n_groups * objective.dtype.itemsize, cache_bytes)
    for names in pieces:
        rows = None
        for samples, here in chunks:
            values, found = _of_groups(objective, model, samples, here, n_groups, names)
            loss += np.bincount(here, values.double().cpu().numpy(), minlength=n_groups) / len(pieces)
            found *= torch.from_numpy(np.bincount(here, minlength=n_groups) / counts).to(found)[:, None]
            rows = found if rows is None else rows.add_(found)
        for x in () if rows is None else torch.split(rows, max(1, _ENTRIES // (n_groups + 1)), dim=1):
            wide = torch.cat([x.double(), (shares @ x.double())[None]])
            gram += (wide @ wide.T).cpu().numpy()
    return loss, gram


def check(objective: Objective, model: nn.Module, index: np.ndarray) -> None:
    """Make sure on some samples that the gradients of groups add up to autograd's.

    They do not where the first axis within the model is not the batch and happens to be as long.

    Args:
        objective: loss and data.
        model: what `trainable` returned for it.
        index: (B,) positions of the samples.

    Raises:
        NumericalError: they do not.
    """
    n = len(index)
    groups = (np.arange(n) >= n // 3).astype(np.int64)  # of different sizes: an error in equal shares would cancel
    _, rows = _of_groups(objective, model, index, groups, 2, objective.layout.names)
    sizes = torch.from_numpy(np.bincount(groups, minlength=2)).to(rows)
    expected = _summed(objective, [objective.samples.batch(index, objective.device, objective.dtype)])[1]
    # Gradients that are not finite pass: they add up to nothing, and whoever uses them says which they are.
    if float((sizes @ rows - expected).norm()) > _ADD_UP * float(sizes @ rows.norm(dim=1)):
        raise NumericalError(
            f"gradients of groups of {n} samples do not add up to that of all: within the model an axis that is not "
            "the batch has as many entries; choose another --batch-size or --samples-per-batch"
        )


def trainable(model: nn.Module, layout: Layout) -> nn.Module:
    """Return a copy of a model in which the parameters that vary, and no others, require a gradient.

    Args:
        model: of an objective; it is not touched.
        layout: the parameters that vary.

    Returns:
        The copy.
    """
    own = copied(model)
    for name, parameter in own.named_parameters():
        parameter.requires_grad_(name in layout.names)
    return own


def _summed(objective: Objective, batches: Iterable[tuple[Tensor, Tensor]]) -> tuple[float, Tensor]:
    """Return the sum of the losses over some samples and its gradient, (D,) float64."""
    theta = [t.detach().requires_grad_() for t in objective.theta]
    loss, total = 0.0, torch.zeros(objective.layout.size, dtype=torch.float64, device=objective.device)
    for inputs, labels in batches:
        with differentiable_attention():
            value = objective.losses(theta, inputs, labels).double().sum()
            found = torch.autograd.grad(value, theta, materialize_grads=True)
        loss += value.item()
        total += objective.layout.flat(found)
    return loss, total


def _of_groups(
    objective: Objective, model: nn.Module, index: np.ndarray, groups: np.ndarray, n_groups: int, names: Sequence[str]
) -> tuple[Tensor, Tensor]:
    """Return the losses of some samples, (B,), and the gradients of their groups' means, (G, D)."""
    inputs, labels = objective.samples.batch(index, objective.device, objective.dtype)
    n_classes = len(objective.samples.class_names)

    def losses() -> Tensor:
        return objective.loss(models.logits_of(model(inputs), n_classes, objective.logits_index), labels)

    with differentiable_attention():
        return group_gradients(model, losses, torch.from_numpy(groups), n_groups, names)


def _products(a: Tensor, b: Tensor) -> np.ndarray:
    """Return the inner products of rows (A, D) with rows (B, D), (A, B), summed up in float64."""
    columns = max(1, _ENTRIES // max(len(a), len(b)))
    found = torch.zeros(len(a), len(b), dtype=torch.float64, device=a.device)
    for x, y in zip(torch.split(a, columns, dim=1), torch.split(b, columns, dim=1), strict=True):
        found += x.double() @ y.double().T
    return found.cpu().numpy()


def _pieces(layout: Layout, entry_bytes: int, cache_bytes: int) -> list[list[str]]:
    """Divide the parameters into pieces that fit, of one tensor at least, where each entry takes so many bytes."""
    pieces: list[list[str]] = []
    room = 0
    for name, size in zip(layout.names, layout.sizes, strict=True):
        if not pieces or size * entry_bytes > room:
            pieces.append([])
            room = cache_bytes
        pieces[-1].append(name)
        room -= size * entry_bytes
    return pieces
