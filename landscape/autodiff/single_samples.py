"""Gradients of single samples, layer by layer, of any combination of the model's outputs.

Row i of a batch is the gradient of sum_c s_ic f_c(theta, x_i) with respect to the parameters. One forward pass and one
backward pass to the layers' outputs give the data for all samples; recording.py stores them, and per_sample.py explains
the formulas. Layers without a formula, and parameters that are shared or used by name, need vectorised gradients of the
whole model.
"""

import logging
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.func import grad, vmap

from landscape.autodiff import called, formulas, recording, squares, trees
from landscape.autodiff.recording import (
    NORMS,
    Call,
    at_outputs,
    at_outputs_of_all,
    parameters_of,
    recorded,
    used_otherwise,
)
from landscape.autodiff.trees import Tree
from landscape.autodiff.wide import COLUMNS, products, wide, zeros
from landscape.errors import one_line

log = logging.getLogger(__name__)

Read: TypeAlias = Callable[[Any, Tree], Tensor]
"""(outputs of the model, targets) -> one value per sample, (B,), or several, (B, C)."""

_SINGLE = (nn.Conv2d, nn.Linear, *NORMS)  # layers with a formula for each sample


@dataclass(frozen=True, eq=False)
class Recorded:
    """One forward pass of a batch, from which gradients of single samples are computed. `record` returns it."""

    values: Tensor  # (B,) or (B, C), with their graph
    _model: nn.Module
    _inputs: Tree
    _targets: Tree
    _read: Read
    _chosen: dict[str, Tensor]
    _calls: list[Call]
    _rest: list[str]  # parameters that are used outside these calls

    def rows(self, seeds: Tensor, *, keep: bool = False) -> Tensor:
        """Return the gradient of each sample's combination of values.

        Args:
            seeds: s, of the shape of `values`.
            keep: keep the graph for another pass.

        Returns:
            (B, D), in the order of the parameters.
        """
        example, size = next(iter(self._chosen.values())), sum(p.numel() for p in self._chosen.values())
        found = torch.zeros(len(self.values), size, dtype=example.dtype, device=example.device)
        places = _by_names(self._chosen, found)
        for name, piece, each in self.pieces(seeds, keep=keep):
            places[name][piece] = each
        return found

    def square_norms(
        self, seeds: Tensor, kept: Tensor | None = None, into: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return squared lengths of gradients of several combinations of each sample's values, and some gradients.

        What a layer was given is laid out once for all combinations. Where its output has few positions, lengths come
        from inner products between these, and only the gradients to return are computed. Memory for K gradients at all
        layers' outputs of the batch is needed.

        Args:
            seeds: (K, ...), each of the shape of `values`.
            kept: (K, B) on the CPU, true for the gradients to return; None for none.
            into: (m, D) zeros to which these are written; None allocates memory.

        Returns:
            (K, B) float64; what does not come from positions is summed in the model's dtype for each parameter, of
            kernels `COLUMNS` entries at a time. And the chosen gradients, (m, D), in the order of `kept.T.nonzero()`:
            sample by sample.
        """
        found = zeros(seeds.shape[:2], self.values.device)
        rows = _Wanted(kept, self._chosen, len(self.values), into)
        uses = self._by_name(at_outputs_of_all(self.values, self._taken, seeds))
        for name in list(uses):
            of_name = uses.pop(name)  # popped, so that memory is freed early
            first = of_name[0]
            single = len(of_name) == 1 and first.kind == "weight" and not isinstance(first.call.module, NORMS)
            if single and formulas.is_less_by_positions(first, rows.share):
                x, d = formulas.laid_out(first.call, first.d.transpose(0, 1))
                found += formulas.by_positions(x, d).T.to(found.device)
                rows.of_chosen(name, x, d)
                continue
            if single and isinstance(first.call.module, nn.Conv2d) and len(seeds) > 1:  # for one, `_each` is faster
                for piece, each in formulas.of_convolution(first.call, first.d.transpose(0, 1)):
                    for some in torch.split(each, max(1, COLUMNS // each.shape[1]), dim=3):
                        found[:, piece] += squares.lengths(some.transpose(1, 2)).T
                    rows.of_all(name, piece, each)
                continue
            for k in range(len(seeds)):
                for piece, each in formulas.by_pieces([replace(use, d=use.d[k]) for use in of_name]):
                    found[k, piece] += squares.lengths(each)
                    rows.of(name, k, piece, each)
        for k, seed in enumerate(seeds):
            for name, piece, each in self._functional(seed):
                found[k, piece] += squares.lengths(each)
                rows.of(name, k, piece, each)
        return found, rows.vectors

    def squares(self, seeds: Tensor, *, keep: bool = False) -> Iterator[tuple[str, Tensor]]:
        """Yield names of parameters and their squared gradients, (numel,), summed over the samples of the batch."""
        for name, uses in self._uses(seeds, keep=keep).items():
            first = uses[0]
            if len(uses) == 1 and first.kind == "weight" and first.d.ndim == 2 and formulas.is_linear(first):
                a, (d, by) = first.call.inputs, squares.scaled(first.d)
                yield name, wide((d.square().T @ a.square()).reshape(-1)) / by / by  # without making d aᵀ
            else:
                yield from ((name, squares.summed(each)) for _, each in formulas.by_pieces(uses))
        yield from ((name, squares.summed(each)) for name, _, each in self._functional(seeds))

    def pieces(self, seeds: Tensor, *, keep: bool = False) -> Generator[tuple[str, slice, Tensor], None, None]:
        """Yield a parameter's name, some samples, and their gradients with respect to it, (b, numel), as for `rows`."""
        for name, uses in self._uses(seeds, keep=keep).items():
            yield from ((name, piece, each) for piece, each in formulas.by_pieces(uses))
        yield from self._functional(seeds)

    def _uses(self, seeds: Tensor, *, keep: bool) -> dict[str, list[formulas.Use]]:
        return self._by_name(at_outputs(self.values, self._taken, seeds, keep=keep))

    @property
    def _own(self) -> dict[int, str]:
        """Names of the parameters that the calls use, by their identity."""
        return {id(p): name for name, p in self._chosen.items() if name not in self._rest}

    @property
    def _taken(self) -> list[Call]:
        own = self._own
        return [c for c in self._calls if any(id(p) in own for p in c.module.parameters())]

    def _by_name(self, found: Iterable[tuple[Call, Tensor]]) -> dict[str, list[formulas.Use]]:
        own, uses = self._own, dict[str, list[formulas.Use]]()
        for call, d in found:
            for kind, p in call.module.named_parameters():
                if id(p) in own:
                    uses.setdefault(own[id(p)], []).append(formulas.Use(call, d, kind))
        return uses

    def _functional(self, seeds: Tensor) -> Generator[tuple[str, slice, Tensor], None, None]:
        """Do the same for the other parameters, by vectorised gradients of the whole model."""
        if not self._rest:
            return
        chosen = {name: self._model.get_parameter(name).detach() for name in self._rest}

        def one(values: dict[str, Tensor], x: Tree, y: Tree, seed: Tensor) -> Tensor:
            x, y = (trees.mapped(lambda t: t[None], tree) for tree in (x, y))
            return (self._read(called.functional_call(self._model, values, x), y)[0] * seed).sum()

        each = vmap(grad(one), in_dims=(None, 0, 0, 0))
        size = max(1, formulas.ENTRIES // sum(p.numel() for p in chosen.values()))
        for start in range(0, len(self.values), size):
            piece = slice(start, start + size)
            x, y = trees.clone(trees.take(self._inputs, piece)), trees.take(self._targets, piece)
            with torch.no_grad():
                try:
                    found: dict[str, Tensor] = each(chosen, x, y, seeds[piece])
                except Exception as error:  # recurrent layers and others for which vmap has no rule
                    log.info("gradients of samples are taken one by one, because %s", one_line(error))
                    found = self._one_by_one(piece, seeds)
            for name, gradients in found.items():
                yield (
                    name,
                    piece,
                    gradients.reshape(len(gradients), chosen[name].numel()),
                )  # of any shape, () and (0, 3) too

    @torch.enable_grad()
    def _one_by_one(self, piece: slice, seeds: Tensor) -> dict[str, Tensor]:
        """Return the gradients of some samples by each of the other parameters, by a backward pass for each sample."""
        chosen = [self._model.get_parameter(name) for name in self._rest]
        rows = []
        some = (trees.each(trees.clone(trees.take(tree, piece))) for tree in (self._inputs, self._targets))
        for x, y, seed in zip(*some, seeds[piece], strict=True):
            value = (self._read(called.call(self._model, x), y)[0] * seed).sum()
            rows.append(torch.autograd.grad(value, chosen, materialize_grads=True))
        return dict(zip(self._rest, map(torch.stack, zip(*rows, strict=True)), strict=True))


def record(
    model: nn.Module,
    inputs: Tree,
    targets: Tree,
    read: Read,
    params: Sequence[str] | None = None,
    *,
    first: Collection[nn.Module] | None = None,
) -> Recorded:
    """Run a model on a batch and keep the data that the gradients of its samples need.

    Args:
        model: inputs -> outputs, in eval mode; the parameters require a gradient.
        inputs: inputs of B samples, on the model's device.
        targets: targets of the samples, for `read`.
        read: returns values of each sample; they must depend on the parameters only through the outputs.
        params: names of parameters; None for all trainable ones, in the order of `model.named_parameters()`.
        first: layers with the batch along their first axis, as `batch_first` returns them; None searches for them.

    Returns:
        The forward pass.

    Raises:
        InputError: a parameter does not exist, a layer couples samples even in eval mode, or the values do not fit.
    """
    chosen = parameters_of(model, params)
    first = batch_first(model, inputs, targets, read) if first is None else first
    values, calls = recorded(model, lambda: read(called.call(model, trees.clone(inputs)), targets), _SINGLE, first)
    return Recorded(values, model, inputs, targets, read, chosen, calls, used_otherwise(values, calls, chosen))


def batch_first(model: nn.Module, inputs: Tree, targets: Tree, read: Read) -> frozenset[nn.Module]:
    """Find the layers with inputs that have the batch along their first axis; arguments as for `record`."""

    def values(n: int) -> Tensor:
        some = torch.arange(n, device=trees.device(inputs)) % trees.size(inputs)
        return read(called.call(model, trees.take(inputs, some)), trees.take(targets, some))

    return recording.batch_first(model, values, _SINGLE)


def squared_gradients(
    model: nn.Module, batches: Iterable[tuple[Tree, Tree]], loss: Read, params: Sequence[str] | None = None
) -> Tensor:
    """Return the sum over samples of the squared gradient: N times the diagonal of the empirical Fisher matrix.

    The model runs in eval mode; afterwards its modes are restored. Memory for gradients of single samples is bounded.

    Args:
        model: inputs -> outputs.
        batches: inputs and targets, on the model's device.
        loss: (outputs, targets) -> (B,); it must depend on the parameters only through the outputs.
        params: names of parameters; None for all trainable ones, in the order of `model.named_parameters()`.

    Returns:
        (D,) float64, in the order of the parameters; each batch is summed in the model's dtype.

    Raises:
        InputError: a parameter does not exist, a layer couples samples even in eval mode, or the losses do not fit.
    """
    chosen = parameters_of(model, params)
    total = zeros(sum(p.numel() for p in chosen.values()), next(iter(chosen.values())).device)
    places = _by_names(chosen, total)
    for run in _runs(model, batches, loss, params):
        for name, found in run.squares(torch.ones_like(run.values)):
            places[name] += found.to(total.device)
    return total


def weighted_squares(
    model: nn.Module,
    batches: Iterable[tuple[Tree, Tree]],
    loss: Read,
    weights: Tensor,
    params: Sequence[str] | None = None,
) -> Tensor:
    """Return sum_j w_kj g_ij^2 for each sample i, with g_i its gradient: what each adds to w^T diag(Fisher).

    The model runs as for `squared_gradients`.

    Args:
        model: as for `squared_gradients`.
        batches: as for `squared_gradients`, of n samples in all.
        loss: as for `squared_gradients`.
        weights: w, (K, D) in the order of the parameters.
        params: as for `squared_gradients`.

    Returns:
        (K, n) float64.

    Raises:
        InputError: as for `squared_gradients`.
    """
    chosen = parameters_of(model, params)
    example = next(iter(chosen.values()))
    of_names = _by_names(chosen, weights.to(example.device, example.dtype))
    found = [zeros((len(weights), 0), example.device)]
    for run in _runs(model, batches, loss, params):
        found.append(zeros((len(weights), len(run.values)), example.device))
        for name, piece, each in run.pieces(torch.ones_like(run.values)):
            each, by = squares.scaled(each)
            found[-1][:, piece] += products(of_names[name], each.square()) / by / by
    return torch.cat(found, dim=1)


def _by_names(chosen: dict[str, Tensor], flat: Tensor) -> dict[str, Tensor]:
    """Return the entries of each parameter in (..., D)."""
    return dict(zip(chosen, torch.split(flat, [p.numel() for p in chosen.values()], dim=-1), strict=True))


def _runs(
    model: nn.Module, batches: Iterable[tuple[Tree, Tree]], loss: Read, params: Sequence[str] | None
) -> Iterator[Recorded]:
    """Yield a forward pass of each batch in eval mode."""
    with called.evaluating(model):
        first: dict[Any, frozenset[nn.Module]] = {}
        for inputs, targets in batches:
            layers = first.get(trees.shape(inputs))
            if layers is None:
                layers = batch_first(model, inputs, targets, loss)
                if trees.size(inputs) > 2:  # different samples also show a wrong order
                    first[trees.shape(inputs)] = layers
            yield record(model, inputs, targets, loss, params, first=layers)


class _Wanted:
    """The requested gradients of some samples and combinations, computed parameter by parameter."""

    def __init__(self, kept: Tensor | None, chosen: dict[str, Tensor], n: int, into: Tensor | None) -> None:
        sizes = {name: p.numel() for name, p in chosen.items()}
        example = next(iter(chosen.values()))
        kept = torch.zeros(1, n, dtype=torch.bool) if kept is None else kept
        self._sample, self._k = kept.T.nonzero().T
        self._n = kept.numel()
        if into is None:
            into = torch.zeros(len(self._k), sum(sizes.values()), dtype=example.dtype, device=example.device)
        self.vectors = into
        self._places = dict(zip(sizes, torch.split(self.vectors, list(sizes.values()), dim=1), strict=True))

    @property
    def share(self) -> float:
        """The fraction of all gradients that is wanted."""
        return len(self._k) / self._n

    def of_chosen(self, name: str, x: Tensor, d: Tensor) -> None:
        """Compute what is wanted of the gradients by a weight, from `formulas.laid_out`."""
        into = self._places[name]
        for own in torch.split(torch.arange(len(self._k)), max(1, formulas.ENTRIES // into.shape[1])):
            sample, k = self._sample[own], self._k[own]
            into[own] = (d[sample, k] @ x[sample].mT).flatten(1)

    def of(self, name: str, k: int, piece: slice, each: Tensor) -> None:
        """Take what is wanted of one combination's gradients by a parameter, (b, numel)."""
        some = self._inside(piece, len(each)) & (self._k == k)
        self._places[name][some] = each[self._sample[some] - piece.start]

    def of_all(self, name: str, piece: slice, each: Tensor) -> None:
        """Take what is wanted of all combinations' gradients by a kernel, (b, groups, K, numel / groups)."""
        some = self._inside(piece, len(each))
        self._places[name][some] = each[self._sample[some] - piece.start, :, self._k[some]].flatten(1)

    def _inside(self, piece: slice, n: int) -> Tensor:
        found: Tensor = (self._sample >= piece.start) & (self._sample < piece.start + n)
        return found
