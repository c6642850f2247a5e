"""Points of parameter space, and the loss and accuracy of every part at any of them from one pass over the data.

A point is the parameters that vary, as one flat vector, and the network's floating-point buffers (the running
statistics of batch norm) as another. A pass mixes the samples of all parts in its batches and adds each sample's loss
to its own part, so a per-class surface costs no more than that of the whole. What depends on the weights alone is
computed once for each point (forward.py), normalised inputs are kept.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from landscape.autodiff.forward import Forward, forward
from landscape.data.datasets import Samples
from landscape.errors import InputError, arg, check_choice
from landscape.networks import models
from landscape.networks.params import Layout
from landscape.objective import jobs, snapshots
from landscape.objective.objective import Objective, copied, differentiable_attention
from landscape.objective.snapshots import Snapshot
from landscape.results import Points
from landscape.results.journal import Journal

BATCH_NORM = ("interpolate", "keep", "reestimate", "per-part", "batch")
"""What batch norm does at a point: its running statistics move with it, stay the centre's, are measured anew on
training data, or for each part on its own training data; or each batch is normalised by itself, as in training."""

NORM_BATCH = 256
"""Samples of one batch where statistics depend on it, as they do in training; `batch_size` has no say there."""
INPUT_BYTES = 2**30
"""Normalised inputs that are kept between points; what is beyond is made anew for each."""


@dataclass(frozen=True, eq=False)
class Point:
    """A network's weights as vectors."""

    theta: Tensor  # (D,) the parameters of the objective's layout
    buffers: Tensor  # (B,) all floating-point buffers


def buffer_layout(model: nn.Module) -> Layout:
    """Return names and shapes of a network's real floating-point buffers, in its own order."""
    found = {name: b for name, b in model.named_buffers() if b.is_floating_point()}
    return Layout(names=tuple(found), shapes=tuple(b.shape for b in found.values()))


def origin(objective: Objective) -> Point:
    """Return the point that an objective's own weights are."""
    return of_network(objective, objective.model)


def of(objective: Objective, snapshot: Snapshot, *, key: str | None = None, trust_pickle: bool = False) -> Point:
    """Return the point of another checkpoint of an objective's network.

    Args:
        objective: whose network it is.
        snapshot: what `snapshots.find` returned.
        key: where in the file the weights are.
        trust_pickle: let the file run code when it is read.

    Returns:
        The point, of the parameters of the objective's layout.

    Raises:
        InputError: the file is not the one any more that was found.
    """
    return of_network(objective, snapshots.network(objective, snapshot, key=key, trust_pickle=trust_pickle))


def of_network(objective: Objective, model: nn.Module) -> Point:
    """Return the point that another network of an objective's kind is."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    buffers = buffer_layout(model)
    empty = torch.empty(0, device=objective.device, dtype=objective.dtype)
    return Point(
        theta=objective.layout.flat([tensors[n].detach() for n in objective.layout.names]),
        buffers=buffers.flat([tensors[n].detach().to(objective.dtype) for n in buffers.names] or [empty]),
    )


def network_at(objective: Objective, point: Point) -> nn.Module:
    """Return a copy of an objective's network with the weights and running statistics of a point."""
    model = copied(objective.model)
    _set(model, objective.layout, point)
    return model


def objective_at(objective: Objective, point: Point) -> Objective:
    """Return an objective of the same data, parts and loss at a point."""
    return snapshots.of_network(objective, network_at(objective, point))


def digest(some: Iterable[Point]) -> str:
    """Return a SHA-256 of the vectors of points, for fingerprints."""
    found = hashlib.sha256()
    for point in some:
        for t in (point.theta, point.buffers):
            found.update(t.detach().cpu().numpy().tobytes())
    return found.hexdigest()


def gradient(objective: Objective, theta: Tensor, part: int) -> tuple[float, Tensor]:
    """Return a part's mean loss and its gradient at any parameters, with the objective's own running statistics.

    Args:
        objective: model, loss and data in parts.
        theta: (D,).
        part: position of the part.

    Returns:
        The loss and the gradient, (D,), in the objective's dtype; sums over samples, divided once.
    """
    leaf = theta.detach().to(objective.dtype).requires_grad_()
    total, loss = torch.zeros_like(leaf, dtype=torch.float64), 0.0
    with differentiable_attention():
        for inputs, labels in objective.batches(part):
            value = objective.losses(objective.layout.tensors(leaf), inputs, labels).double().sum()
            total += torch.autograd.grad(value, leaf)[0].double()
            loss += value.item()
    count = len(objective.members[part])
    return loss / count, (total / count).to(objective.dtype)


class Evaluator:
    """Loss and accuracy of every part of an objective at any point."""

    def __init__(
        self,
        objective: Objective,
        *,
        bf16: bool = False,
        plain: bool = False,
        batch_norm: str = "interpolate",
        training: Samples | None = None,
        training_samples: int = 2048,
        seed: int = 0,
    ) -> None:
        """Prepare a pass.

        Args:
            objective: model, loss and data in parts.
            bf16: run the network in bfloat16; see `forward.forward`.
            plain: leave out the traced pass.
            batch_norm: one of `BATCH_NORM`.
            training: what running statistics are measured on, with "reestimate" and "per-part"; None takes the
                objective's data.
            training_samples: at most so many of them, or of each part, drawn with `seed`.
            seed: of that draw, and of the order of the samples with "batch".

        Raises:
            InputError: an unknown policy for batch norm, one without batch norm to apply it to, or bfloat16 for a
                network that cannot be traced.
        """
        check_choice("batch_norm", batch_norm, BATCH_NORM)
        self.objective = objective
        self.batch_norm = batch_norm
        self.centre = origin(objective)
        self._buffers = buffer_layout(objective.model)
        self._order = np.concatenate(objective.members)
        sizes = [len(m) for m in objective.members]
        self.counts = np.array(sizes)
        self._part = torch.from_numpy(np.repeat(np.arange(len(sizes)), sizes)).to(objective.device)
        self._kept: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}
        self._bytes = 0
        self._names = (*objective.layout.names, *self._buffers.names)
        everything = (0, len(self._order))
        self._passes: list[tuple[_Reestimation | None, tuple[int, int]]] = [(None, everything)]
        if batch_norm in ("reestimate", "per-part"):
            samples = training or objective.samples
            drawn = np.random.default_rng(seed).permutation(len(samples))
            if batch_norm == "reestimate":
                self._passes = [(_Reestimation(objective, samples, drawn[:training_samples]), everything)]
            else:
                ends = np.cumsum(sizes).tolist()
                self._passes = [
                    (_Reestimation(objective, samples, own[:training_samples]), (end - size, end))
                    for own, size, end in zip(_of_parts(objective, samples, drawn), sizes, ends, strict=True)
                ]
        self._by_batch = _ByBatch(objective, self._order, seed) if batch_norm == "batch" else None
        inputs = self._batch(0, len(self._order))[0][:8]
        with differentiable_attention(), torch.no_grad():
            self._forward = (
                Forward(self._logits, None, objective.dtype)
                if plain
                else forward(self._logits, self._state(self.centre), inputs, bf16=bf16)
            )

    @property
    def traced(self) -> bool:
        """Say whether the fast pass is used."""
        return self._forward.traced

    def __call__(
        self, point: Point, report: Callable[[float], None] | None = None, *, as_it_is: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        """Evaluate a point.

        Args:
            point: the weights.
            report: called with the share of the pass that is done.
            as_it_is: take the point's own running statistics, whatever the policy for batch norm.

        Returns:
            Mean loss and accuracy of each part, (P,) and (P,). A loss that is not finite stays so; a sample whose
            logits are nan is not classified correctly.
        """
        objective, done = self.objective, 0
        loss = torch.zeros(len(self.counts), dtype=torch.float64, device=objective.device)
        correct = torch.zeros_like(loss)

        def add(logits: Tensor, labels: Tensor, part: Tensor) -> None:
            nonlocal done
            top = logits.max(1)
            loss.index_add_(0, part, objective.loss(logits, labels).double())
            correct.index_add_(0, part, ((top.indices == labels) & ~top.values.isnan()).double())
            done += len(labels)
            if report is not None:
                report(done / len(self._order))

        with differentiable_attention(), torch.no_grad():
            if self._by_batch is not None and not as_it_is:
                for logits, labels, where in self._by_batch(point):
                    add(logits, labels, self._part[where])
            else:
                for reestimation, (begin, end) in [(None, (0, len(self._order)))] if as_it_is else self._passes:
                    logits_of = self._forward.at(self._state(self._moved(point, reestimation, as_it_is)))
                    for first in range(begin, end, objective.batch_size):
                        inputs, labels = self._batch(first, end)
                        add(logits_of(inputs), labels, self._part[first : first + len(labels)])
        return loss.cpu().numpy() / self.counts, correct.cpu().numpy() / self.counts

    def _moved(self, point: Point, reestimation: "_Reestimation | None", as_it_is: bool) -> Point:
        """Return a point with the running statistics that the policy for batch norm gives it."""
        if as_it_is:
            return point
        if reestimation is not None:
            return reestimation(point)
        return Point(point.theta, self.centre.buffers) if self.batch_norm == "keep" else point

    def _state(self, point: Point) -> list[Tensor]:
        return [*self.objective.layout.tensors(point.theta), *self._buffers.tensors(point.buffers)]

    def _logits(self, state: Sequence[Tensor], inputs: Tensor) -> Tensor:
        varying = dict(zip(self._names, state, strict=True))
        output = functional_call(self.objective.model, varying, (inputs,))
        return models.logits_of(output, len(self.objective.samples.class_names), self.objective.logits_index)

    def _batch(self, begin: int, end: int) -> tuple[Tensor, Tensor]:
        objective = self.objective
        end = min(end, begin + objective.batch_size)
        if (begin, end) in self._kept:
            return self._kept[begin, end]
        some = self._order[begin:end]
        batch = objective.samples.batch(some, objective.device, objective.dtype)
        size = batch[0].numel() * batch[0].element_size()
        if self._bytes + size <= INPUT_BYTES:
            self._bytes += size
            self._kept[begin, end] = batch
        return batch


class _Reestimation:
    """Running statistics of batch norm measured on training data, at any point.

    Means and variances of batches are averaged with the weights of their samples, in one pass in which batch norm
    normalises by its batch: what a long training at this point with an ever slower average would arrive at.
    """

    def __init__(self, objective: Objective, samples: Samples, drawn: np.ndarray) -> None:
        self._objective, self._samples = objective, samples
        self._model, self._norms = _training_norms(objective)
        if not len(drawn):
            raise InputError(
                f"running statistics take training samples, and a part has none: leave it out by {arg('classes')}"
            )
        self._pieces = _pieces(drawn)

    @torch.no_grad()
    def __call__(self, point: Point) -> Point:
        objective, buffers = self._objective, buffer_layout(self._model)
        _set(self._model, objective.layout, point)
        seen = 0
        with differentiable_attention(), torch.no_grad():
            for piece in self._pieces:
                seen += len(piece)
                for m in self._norms:
                    m.momentum = len(piece) / seen
                try:
                    self._model(self._samples.batch(piece, objective.device, objective.dtype)[0])
                except ValueError as error:  # one value per channel has no variance
                    raise InputError(f"running statistics cannot be had of {len(piece)} sample(s): {error}") from None
        named = dict(self._model.named_buffers())
        return Point(point.theta, buffers.flat([named[n] for n in buffers.names]))


class _ByBatch:
    """Passes in which batch norm normalises every batch by itself, in mixed batches as training has them."""

    def __init__(self, objective: Objective, order: np.ndarray, seed: int) -> None:
        self._objective, self._order = objective, order
        self._model, norms = _training_norms(objective)
        for m in norms:
            m.momentum = 0.0  # running statistics are neither used nor changed
        self._pieces = _pieces(np.random.default_rng(seed).permutation(len(order)))

    def __call__(self, point: Point) -> Iterator[tuple[Tensor, Tensor, np.ndarray]]:
        """Yield logits and labels of each batch, and where its samples stand in the order."""
        objective, samples = self._objective, self._objective.samples
        _set(self._model, objective.layout, point)
        for piece in self._pieces:
            inputs, labels = samples.batch(self._order[piece], objective.device, objective.dtype)
            output = self._model(inputs)
            yield models.logits_of(output, len(samples.class_names), objective.logits_index), labels, piece


def _training_norms(objective: Objective) -> tuple[nn.Module, list[nn.modules.batchnorm._BatchNorm]]:
    """Return a copy of the network in which batch norm alone is in training mode, and its layers."""
    model = copied(objective.model)
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
    if not norms:
        raise InputError(f"the model has no batch norm with running statistics: leave {arg('batch_norm')} out")
    for m in norms:
        m.train()
    return model, norms


def _set(model: nn.Module, layout: Layout, point: Point) -> None:
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    with torch.no_grad():
        for vectors, values in ((layout, point.theta), (buffer_layout(model), point.buffers)):
            for name, t in zip(vectors.names, vectors.tensors(values), strict=True):
                tensors[name].copy_(t)


def _pieces(order: np.ndarray) -> list[np.ndarray]:
    return np.array_split(order, max(1, -(-len(order) // NORM_BATCH)))


def _of_parts(objective: Objective, samples: Samples, drawn: np.ndarray) -> list[np.ndarray]:
    """Return the training samples of each part, in the order of a draw."""
    parts = objective.partition
    if parts.classes:
        return [drawn[np.isin(samples.labels[drawn], classes)] for classes in parts.classes]
    if samples is not objective.samples:
        raise InputError(
            f"{arg('batch_norm', 'per-part')} needs parts that are classes or groups of them, or "
            f"{arg('split', 'train')}"
        )
    return [drawn[parts.part_of[drawn] == p] for p in range(len(parts))]


def evaluate(
    evaluator: Evaluator,
    points: Sequence[int],
    point_of: Callable[[int], Point],
    *,
    journal: Journal | None = None,
    progress: jobs.Progress | None = None,
    name: str = "points",
    block: int = 8,
    as_it_is: bool = False,
) -> Points:
    """Evaluate a list of points by the one loop: resumable, with progress, dealt to ranks.

    Args:
        evaluator: of the parts.
        points: numbers of the points, no two alike.
        point_of: makes the point of a number; it must depend on the number alone.
        journal: keeps finished blocks; see `jobs.run`.
        progress: see `jobs.run`.
        name: tells the blocks of this list from those of others in the same journal.
        block: points of one unit of work.
        as_it_is: take each point's own running statistics, whatever the policy for batch norm.

    Returns:
        Loss and accuracy of each part at each point, in the order of `points`.
    """
    blocks = {
        f"{name} {some[0]} to {some[-1]}": some
        for some in (list(points[i : i + block]) for i in range(0, len(points), block))
    }

    def compute(unit: str, report: Callable[[float], None]) -> Points:
        some, found = blocks[unit], []
        for i, number in enumerate(some):
            advance = partial(_advance, report, i, len(some))
            found.append(evaluator(point_of(number), advance, as_it_is=as_it_is))
        return Points(
            parts=evaluator.objective.partition.names,
            n_samples=evaluator.counts,
            point=np.array(some),
            loss=np.stack([loss for loss, _ in found]),
            accuracy=np.stack([accuracy for _, accuracy in found]),
        )

    return jobs.run(list(blocks), compute, journal, progress)


def _advance(report: Callable[[float], None], done: int, total: int, share: float) -> None:
    report((done + share) / total)
