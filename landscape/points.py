"""Points of parameter space, and the loss and accuracy of every part at any of them from one pass over the data.

A point is the parameters that vary, as one flat vector, and the network's floating-point buffers (the running
statistics of batch norm) as another. A pass mixes the samples of all parts in its batches and adds each sample's loss
to its own part, so a per-class surface costs no more than that of the whole. What depends on the weights alone is
computed once for each point (forward.py), normalised inputs are kept.
"""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from landscape import jobs, models, snapshots
from landscape.datasets import Samples
from landscape.errors import InputError
from landscape.forward import Forward, forward
from landscape.journal import Journal
from landscape.objective import Objective, copied, differentiable_attention
from landscape.params import Layout
from landscape.results import Points
from landscape.snapshots import Snapshot

BATCH_NORM = ("interpolate", "keep", "reestimate")
"""What the running statistics do at a point: move with it, stay the centre's, or are measured anew on training data."""

REESTIMATE_BATCH = 256
"""Samples of one batch in a re-estimation, which depends on it as training does; `batch_size` has no say."""
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
            batch_norm: "interpolate", "keep" or "reestimate".
            training: what running statistics are measured on, with "reestimate"; None takes the objective's data.
            training_samples: at most so many of them, drawn with `seed`.
            seed: of that draw.

        Raises:
            InputError: an unknown policy for batch norm, one without batch norm to apply it to, or bfloat16 for a
                network that cannot be traced.
        """
        if batch_norm not in BATCH_NORM:
            raise InputError(f"--bn {batch_norm!r} is unknown: choose {', '.join(BATCH_NORM)}")
        self.objective = objective
        self.batch_norm = batch_norm
        self.centre = origin(objective)
        self._buffers = buffer_layout(objective.model)
        self._order = np.concatenate(objective.members)
        sizes = [len(m) for m in objective.members]
        self.counts = np.array(sizes)
        self._part = torch.from_numpy(np.repeat(np.arange(len(sizes)), sizes)).to(objective.device)
        self._kept: dict[int, tuple[Tensor, Tensor]] = {}
        self._bytes = 0
        self._names = (*objective.layout.names, *self._buffers.names)
        self._reestimation = (
            _Reestimation(objective, training or objective.samples, training_samples, seed)
            if batch_norm == "reestimate"
            else None
        )
        inputs = self._batch(0)[0][:8]
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

    @property
    def batches(self) -> int:
        """Number of batches in a pass."""
        return -(-len(self._order) // self.objective.batch_size)

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
        objective = self.objective
        if as_it_is:
            pass
        elif self._reestimation is not None:
            point = self._reestimation(point)
        elif self.batch_norm == "keep":
            point = Point(point.theta, self.centre.buffers)
        loss = torch.zeros(len(self.counts), dtype=torch.float64, device=objective.device)
        correct = torch.zeros_like(loss)
        with differentiable_attention(), torch.no_grad():
            logits_of = self._forward.at(self._state(point))
            for number in range(self.batches):
                inputs, labels = self._batch(number)
                begin = number * objective.batch_size
                part = self._part[begin : begin + len(labels)]
                logits = logits_of(inputs)
                top = logits.max(1)
                loss.index_add_(0, part, objective.loss(logits, labels).double())
                correct.index_add_(0, part, ((top.indices == labels) & ~top.values.isnan()).double())
                if report is not None:
                    report((number + 1) / self.batches)
        return loss.cpu().numpy() / self.counts, correct.cpu().numpy() / self.counts

    def _state(self, point: Point) -> list[Tensor]:
        return [*self.objective.layout.tensors(point.theta), *self._buffers.tensors(point.buffers)]

    def _logits(self, state: Sequence[Tensor], inputs: Tensor) -> Tensor:
        varying = dict(zip(self._names, state, strict=True))
        output = functional_call(self.objective.model, varying, (inputs,))
        return models.logits_of(output, len(self.objective.samples.class_names), self.objective.logits_index)

    def _batch(self, number: int) -> tuple[Tensor, Tensor]:
        if number in self._kept:
            return self._kept[number]
        objective, begin = self.objective, number * self.objective.batch_size
        some = self._order[begin : begin + objective.batch_size]
        batch = objective.samples.batch(some, objective.device, objective.dtype)
        size = batch[0].numel() * batch[0].element_size()
        if self._bytes + size <= INPUT_BYTES:
            self._bytes += size
            self._kept[number] = batch
        return batch


class _Reestimation:
    """Running statistics of batch norm measured on training data, at any point.

    Means and variances of batches are averaged with the weights of their samples, in one pass in which batch norm
    normalises by its batch: what a long training at this point with an ever slower average would arrive at.
    """

    def __init__(self, objective: Objective, samples: Samples, most: int, seed: int) -> None:
        self._objective, self._samples = objective, samples
        self._model = copied(objective.model)
        self._norms = [
            m for m in self._model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats
        ]
        if not self._norms:
            raise InputError("--bn reestimate: the model has no batch norm with running statistics; leave it out")
        if most < 2:
            raise InputError(f"--bn-samples must be at least 2, got {most}")
        order = np.random.default_rng(seed).permutation(len(samples))[:most]
        self._pieces = np.array_split(order, max(1, -(-len(order) // REESTIMATE_BATCH)))
        for m in self._norms:
            m.train()

    @torch.no_grad()
    def __call__(self, point: Point) -> Point:
        objective, buffers = self._objective, buffer_layout(self._model)
        named = {**dict(self._model.named_parameters()), **dict(self._model.named_buffers())}
        for names, tensors in (
            (objective.layout.names, objective.layout.tensors(point.theta)),
            (buffers.names, buffers.tensors(point.buffers)),
        ):
            for name, t in zip(names, tensors, strict=True):
                named[name].copy_(t)
        seen = 0
        with differentiable_attention(), torch.no_grad():
            for piece in self._pieces:
                seen += len(piece)
                for m in self._norms:
                    m.momentum = len(piece) / seen
                self._model(self._samples.batch(piece, objective.device, objective.dtype)[0])
        return Point(point.theta, buffers.flat([named[n] for n in buffers.names]))


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
