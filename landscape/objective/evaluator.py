"""The loss and accuracy of every part at any point of parameter space, from one pass over the data.

A pass mixes the samples of all parts in its batches and adds each sample's loss to its own part, so a per-class surface
costs no more than one of all samples together. Values that depend only on the weights are computed once for each point
(forward.py), and normalised inputs are kept.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from landscape.autodiff import distributed, memory, trees
from landscape.autodiff.called import functional_call
from landscape.autodiff.differentiable import differentiable_attention
from landscape.autodiff.forward import Forward, forward
from landscape.autodiff.trees import Tree
from landscape.autodiff.wide import place, wide, zeros
from landscape.data.datasets import Samples
from landscape.errors import InputError, StoreError, arg
from landscape.networks.outputs import OwnLoss
from landscape.objective import batch_norm as norms
from landscape.objective import jobs, weighing
from landscape.objective.batch_norm import ByBatch, Statistics
from landscape.objective.objective import Objective
from landscape.objective.points import Point, buffer_layout, origin
from landscape.results import Points
from landscape.results.journal import Journal

Measured: TypeAlias = tuple[np.ndarray, np.ndarray | None, np.ndarray, np.ndarray | None]
"""Losses, accuracies, and the standard errors of both, as `Evaluator.measure` returns them."""
Where: TypeAlias = slice | np.ndarray
"""Positions of the samples of a batch, in the order of the parts."""

INPUT_BYTES = 2**30
"""Memory for normalised inputs that are kept between points; other inputs are normalised again for each point."""


class Evaluator:
    """Loss and accuracy of every part of an objective at any point."""

    def __init__(
        self,
        objective: Objective,
        *,
        bf16: bool = False,
        plain: bool = False,
        batch_norm: norms.BatchNorm = norms.DEFAULT,
        training: Samples | None = None,
        training_samples: int = 2048,
        seed: int = 0,
    ) -> None:
        """Prepare a pass.

        Args:
            objective: model, loss and data in parts.
            bf16: run the network in bfloat16; see `forward.forward`.
            plain: leave out the traced pass.
            batch_norm: one of `batch_norm.POLICIES`.
            training: data for running statistics, with "reestimate" and "per-part"; None means the objective's data.
            training_samples: the largest number of samples of `training`, or of each part, drawn with `seed`.
            seed: of that draw, and of the order of the samples with "batch".

        Raises:
            InputError: an unknown policy for batch norm, one without batch norm to apply it to, or bfloat16 for a
                network that cannot be traced.
        """
        policy = norms.check(batch_norm)
        if policy.batches and objective.draws is not None:
            raise InputError(
                f"{arg('batch_norm', batch_norm)} normalises each batch by itself, and batches of samples that were "
                f"drawn in proportion to uncertainty do not represent the data: leave {arg('samples')} out"
            )
        self.objective = objective
        self.policy = policy
        self.centre = origin(objective)
        self._buffers = buffer_layout(objective.model)
        self._order = np.concatenate(objective.members)
        sizes = [len(m) for m in objective.members]
        self.counts = np.array(sizes)
        self._part = torch.from_numpy(np.repeat(np.arange(len(sizes)), sizes)).to(place(objective.device))
        self._scatter, left = weighing.scatter(objective.draws, objective.members)
        self._left = torch.from_numpy(left).to(self._part.device)
        self._kept: dict[tuple[int, int], tuple[Tree, Tree]] = {}
        self._bytes = 0
        self._names = (*objective.layout.names, *self._buffers.names)
        everything = (0, len(self._order))
        self._passes: list[tuple[Statistics | None, tuple[int, int]]] = [(None, everything)]
        if policy.replaces:
            samples = training or objective.undrawn.samples
            given = norms.Training(objective=objective, samples=samples, most=training_samples, seed=seed)
            found = policy.replaces(given)
            ends = np.cumsum(sizes).tolist()
            of_each = [(end - size, end) for size, end in zip(sizes, ends, strict=True)]
            self._passes = list(zip(found, [everything] if len(found) == 1 else of_each, strict=True))
        self._by_batch = ByBatch(objective, self._order, seed) if policy.batches else None
        self._forward = memory.halving(partial(self._prepared, plain=plain, bf16=bf16))

    def _prepared(self, *, plain: bool, bf16: bool) -> Forward:
        """Return the pass, traced if that is possible."""
        objective = self.objective
        inputs = trees.take(self._batch(0, len(self._order))[0], slice(8))
        with differentiable_attention(), torch.no_grad():
            if plain or isinstance(objective.outputs, OwnLoss):
                return Forward(self._logits, None, objective.dtype)
            return forward(self._logits, self._state(self.centre), inputs, bf16=bf16)

    @property
    def traced(self) -> bool:
        """Say whether the fast pass is used."""
        return self._forward.traced

    def __call__(
        self, point: Point, report: Callable[[float], None] | None = None, *, as_it_is: bool = False
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Evaluate a point: the first two of what `measure` returns."""
        return self.measure(point, report, as_it_is=as_it_is)[:2]

    def measure(
        self, point: Point, report: Callable[[float], None] | None = None, *, as_it_is: bool = False
    ) -> Measured:
        """Evaluate a point.

        Args:
            point: the weights.
            report: called with the fraction of the pass that is done.
            as_it_is: use the point's own running statistics, whatever the policy for batch norm.

        Returns:
            Mean loss and accuracy of each part, (P,) and (P,), and their standard errors over samples, (P,) and (P,).
            Accuracies are None if they are not defined; errors are nan for a part of one sample. A loss that is not
            finite is returned as such; a sample with nan logits counts as not classified correctly.
        """
        objective, is_correct = self.objective, self.objective.correct
        sums = zeros((1 if is_correct is None else 2, 4, len(self.counts)), objective.device)

        def see(logits: Tensor, targets: Tree, where: Where) -> None:
            values = [wide(objective.values(logits, targets))]
            if is_correct is not None:
                values.append(1 - wide(is_correct(logits, targets)))
            sums.index_add_(2, self._part[where], weighing.terms(torch.stack(values), self._left[where]))

        self._visit(point, see, report, as_it_is)
        return self._measured(sums.cpu().numpy())

    def _measured(self, sums: np.ndarray) -> Measured:
        """Return what `measure` returns, from the sums over the samples of each part, (1 or 2, 4, P)."""
        mean, stderr = sums[0, 0] / self.counts, self._scatter.stderr(sums[0, 1:])
        if len(sums) == 1:
            return mean, None, stderr, None
        return mean, (self.counts - sums[1, 0]) / self.counts, stderr, self._scatter.share_stderr(sums[1, 1:])

    def each(
        self, point: Point, report: Callable[[float], None] | None = None, *, as_it_is: bool = False
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Evaluate a point sample by sample.

        Args:
            point: the weights.
            report: called with the fraction of the pass that is done.
            as_it_is: as for `measure`.

        Returns:
            The loss of each sample, (N,), in the order of the parts; and whether it is predicted correctly, 0 or 1,
            (N,), or None if that is not defined. For draws, both are weighted.
        """
        loss = zeros(len(self._order), self.objective.device)
        correct, is_correct = torch.zeros_like(loss), self.objective.correct

        def see(logits: Tensor, targets: Tree, where: Where) -> None:
            loss[where] = wide(self.objective.values(logits, targets))
            if is_correct is not None:
                correct[where] = wide(is_correct(logits, targets))

        self._visit(point, see, report, as_it_is)
        return loss.cpu().numpy(), None if is_correct is None else correct.cpu().numpy()

    def means(self, each: np.ndarray, right: np.ndarray | None) -> Measured:
        """Return what `measure` returns, computed from the return value of `each`."""
        values = torch.from_numpy(np.stack([each] if right is None else [each, 1 - right])).to(self._part.device)
        sums = torch.zeros(len(values), 4, len(self.counts), dtype=values.dtype, device=values.device)
        sums.index_add_(2, self._part, weighing.terms(values, self._left))
        return self._measured(sums.cpu().numpy())

    def _visit(
        self,
        point: Point,
        see: Callable[[Tensor, Tree, Where], None],
        report: Callable[[float], None] | None,
        as_it_is: bool,
    ) -> None:
        """Pass over the data, and call `see` with outputs, targets and the positions of their samples in the order."""
        done = 0

        def advance(logits: Tensor, targets: Tree, where: Where) -> None:
            nonlocal done
            see(logits, targets, where)
            done += len(logits)
            if report is not None:
                report(done / len(self._order))

        with differentiable_attention(), torch.no_grad():
            if self._by_batch is not None and not as_it_is:
                for logits, targets, where in self._by_batch(point):
                    advance(logits, targets, where)
                return
            for statistics, (begin, end) in [(None, (0, len(self._order)))] if as_it_is else self._passes:
                logits_of = self._forward.at(self._state(statistics(point) if statistics else point))
                for first in range(begin, end, self.objective.batch_size):
                    inputs, targets = self._batch(first, end)
                    advance(logits_of(inputs), targets, slice(first, min(first + self.objective.batch_size, end)))

    def with_statistics(self, point: Point) -> list[Point]:
        """Return the point with the running statistics that the policy uses there: one for all parts, or for each."""
        return [statistics(point) if statistics else point for statistics, _ in self._passes]

    def _state(self, point: Point) -> list[Tensor]:
        return [*self.objective.layout.tensors(point.theta), *self._buffers.tensors(point.buffers)]

    def _logits(self, state: Sequence[Tensor], inputs: Tree) -> Tensor:
        varying = dict(zip(self._names, state, strict=True))
        run = partial(functional_call, self.objective.model, varying)
        return self.objective.outputs.of(run, trees.clone(inputs))  # a model may overwrite what is kept

    def _batch(self, begin: int, end: int) -> tuple[Tree, Tree]:
        objective = self.objective
        end = min(end, begin + objective.batch_size)
        if (begin, end) in self._kept:
            return self._kept[begin, end]
        some = self._order[begin:end]
        batch = objective.samples.batch(some, objective.device, objective.dtype)
        size = trees.n_bytes(batch)
        if self._bytes + size <= INPUT_BYTES:
            self._bytes += size
            self._kept[begin, end] = batch
        return batch


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
    """Evaluate a list of points by `jobs.run`: resumable, with progress, divided among ranks.

    Args:
        evaluator: of the parts.
        points: numbers of the points, no two alike.
        point_of: makes the point of a number; it must depend on the number alone.
        journal: keeps finished blocks; see `jobs.run`.
        progress: see `jobs.run`.
        name: distinguishes the blocks of this list from others in the same journal.
        block: points of one unit of work at most; with several ranks fewer, where all then have about as many. Where
            the journal has units of another size, it is theirs, so that another number of ranks keeps all points.
        as_it_is: use each point's own running statistics, whatever the policy for batch norm.

    Returns:
        Loss and accuracy of each part at each point, with their standard errors over samples, in the order of `points`.

    Raises:
        StoreError: a finished block in the journal is of other points.
    """
    blocks = _blocks(name, points, of_a_unit(len(points), block, distributed.world()))
    if journal is not None and points:
        blocks = _begun(journal, [blocks, *(_blocks(name, points, size) for size in range(block, 0, -1))])

    def compute(unit: str, report: Callable[[float], None]) -> Points:
        some, found = blocks[unit], []
        for i, number in enumerate(some):
            advance = partial(_advance, report, i, len(some))
            found.append(evaluator.measure(point_of(number), advance, as_it_is=as_it_is))
        return Points(
            parts=evaluator.objective.partition.names,
            n_samples=evaluator.objective.population,
            point=np.array(some),
            loss=np.stack([loss for loss, *_ in found]),
            accuracy=_stacked([accuracy for _, accuracy, *_ in found]),
            loss_stderr=np.stack([error for _, _, error, _ in found]),
            accuracy_stderr=_stacked([error for *_, error in found]),
        )

    result = jobs.run(list(blocks), compute, journal, progress)
    if not np.array_equal(result.point, points):  # a value would stand at another point than its own
        where = "its blocks" if journal is None else journal.folder
        raise StoreError(f"{where} is damaged: pass {arg('overwrite', True)} to begin anew, or choose another file")
    return result


def _blocks(name: str, points: Sequence[int], size: int) -> dict[str, list[int]]:
    """Return the units of work, each of so many points, by their names."""
    each = (list(points[i : i + size]) for i in range(0, len(points), size))
    return {f"{name} {some[0]} to {some[-1]}": some for some in each}


def _begun(journal: Journal, divisions: Sequence[dict[str, list[int]]]) -> dict[str, list[int]]:
    """Return the division of which most points are finished, the same on all ranks; the first one if none are."""
    kept = [sum(len(some) for unit, some in blocks.items() if journal.has(unit)) for blocks in divisions]
    with distributed.together():  # a file may be seen by one rank before the others
        agreed = distributed.team().agreed(np.array(kept))
    return divisions[int(agreed.argmax())]


def of_a_unit(n: int, most: int, ranks: int) -> int:
    """Return how many of n points one unit of work has at most, so that all ranks have about as many.

    Args:
        n: number of points.
        most: the largest number of a unit, which a process alone takes.
        ranks: number of processes.

    Returns:
        The number, at least 1.
    """
    rounds = -(-n // (ranks * most))
    return most if ranks == 1 or not rounds else -(-n // (ranks * rounds))


def _stacked(accuracies: Sequence[np.ndarray | None]) -> np.ndarray | None:
    known = [accuracy for accuracy in accuracies if accuracy is not None]
    return np.stack(known) if known else None


def _advance(report: Callable[[float], None], done: int, total: int, share: float) -> None:
    report((done + share) / total)
