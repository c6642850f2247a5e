"""The loss of a model on each part of the data, as a function of its parameters.

For part p with n_p samples, L_p(theta) = 1/n_p * sum of loss(f(theta, x_i), y_i) over its samples: a sum over samples
divided once by their count, never a mean of batch means. The model is in eval mode (batch norm uses its running
statistics), data come in a fixed order and without augmentation, so L_p is one fixed function.
"""

import hashlib
import math
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from landscape.autodiff import devices, distributed, memory, trees
from landscape.autodiff.called import call, functional_call
from landscape.autodiff.known import Known
from landscape.autodiff.trees import Tree
from landscape.autodiff.wide import place
from landscape.callables import checked
from landscape.data import items
from landscape.data.datasets import Samples
from landscape.data.partition import Partition
from landscape.data.records import Records
from landscape.errors import InputError, arg, position, unknown
from landscape.networks.arguments import arguments
from landscape.networks.copies import alike, converted, copied, unwrapped
from landscape.networks.losses import cross_entropy
from landscape.networks.outputs import Outputs
from landscape.networks.params import Layout, layout
from landscape.networks.tasks import Task
from landscape.objective import contract, evaluation, measured, precise
from landscape.objective.contract import Kept
from landscape.objective.evaluation import Evaluation
from landscape.objective.parts import GROUPS, Parts, chosen_parts, make_partition, refuse_empty
from landscape.objective.weighing import Draws, weighed_right
from landscape.results import inference
from landscape.results.grouping import ENDS, FEW, MANY

Loss = Callable[[Any, Tree], Tensor]
"""(the model's output, targets) -> one value per sample (B,)."""


_AT_A_TIME = memory.AtATime()


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Objective:
    """A model, a loss and data in parts. Make one with `Objective.build` or `landscape.load_objective`."""

    model: nn.Module  # a copy of the caller's model, in eval mode
    task: Task
    outputs: Outputs  # what the model returns as rows z (B, K), and back
    loss: Callable[[Tensor, Tree], Tensor]  # (z, targets) -> (B,)
    likelihood: Callable[[Tensor, Tree], Tensor] | None  # -log p(target) of z, where the task knows a distribution
    samples: Samples
    partition: Partition
    layout: Layout  # the parameters that vary, in this order in every flat vector
    members: tuple[np.ndarray, ...]  # for each part, the samples that are summed over
    device: torch.device
    dtype: torch.dtype
    batch_size: memory.AtATime = _AT_A_TIME  # samples that go through the model at a time; it changes no result
    weight_decay: float  # adds weight_decay / 2 * |theta|^2 to every part's loss, in curvature only
    source: Mapping[str, Any]  # what makes the numbers: checkpoint, data, loss, partition
    thresholds: Mapping[str, int]  # many, few and ends, which the names of groups go by
    _fixed: dict[str, Tensor] = field(repr=False)  # parameters and buffers that do not vary
    theta: tuple[Tensor, ...] = field(repr=False)
    _theirs: contract.Origin | None = field(repr=False, default=None)  # the caller's model, whose copy it is
    _kept: Kept | None = field(repr=False, default=None)  # of the network as it was when this was made
    draws: Draws | None = None  # what the samples are, where they stand for those of another objective
    known: Known = field(repr=False, default_factory=Known)  # of the network's code; shared by objectives of that
    team: distributed.Team = distributed.ALONE  # the processes that take each part's sums together, see `shared`

    def __repr__(self) -> str:
        parts = [f"{name} ({n:,})" for name, n in zip(self.partition.names[:4], self.counts, strict=False)]
        shown = ", ".join([*parts, *["..."] * (len(self.partition) > 4)])
        dtype = str(self.dtype).removeprefix("torch.")
        return (
            f"<Objective: {self.source.get('loss')} of {type(self.model).__name__}, {self.layout.size:,} parameters, "
            f"on {self.samples.name}: {shown}; {dtype} on {self.device}>"
        )

    @classmethod
    @checked
    @torch.enable_grad()
    def build(
        cls,
        model: nn.Module,
        samples: Samples,
        *,
        loss: str | Loss | None = None,
        task: str | None = None,
        partition: Parts = "all",
        classes: str | Sequence[str | int] | None = None,
        params: str | None = None,
        device: str | torch.device | None = None,
        dtype: torch.dtype = torch.float32,
        batch_size: int = 128,
        weight_decay: float = 0.0,
        logits_index: int | None = None,
        many: int = MANY,
        few: int = FEW,
        ends: int = ENDS,
        source: Mapping[str, Any] | None = None,
    ) -> "Objective":
        """Combine a model, data and a loss, and check on a few samples that they fit together.

        Args:
            model: any network. It is copied; the caller's model is not changed.
            samples: the data.
            loss: a function (the model's output, targets) -> (B,), one value for each sample, or its name as
                `package.module:callable`, or a name of `tasks.loss_names()`. None means the task's own. For
                classification, a function gets the logits (B, C), whatever else the model returns.
            task: a name of `tasks.names()`; None infers it from the loss or the targets.
            partition: how samples are divided, see `parts.make_partition`.
            classes: keep only these parts, as in "0,9", "head,tail" or ["truck", 3].
            params: patterns for the parameters that vary; None means all that require a gradient.
            device: "cpu", "cuda", "cuda:1"; None means a GPU if there is one.
            dtype: torch.float32, or torch.float64 for full precision.
            batch_size: samples at a time; it affects only speed and memory.
            weight_decay: coefficient of |theta|^2 / 2 in the curvature; 0 leaves it out.
            logits_index: which element of the model's output tuple to use, if that is ambiguous.
            many: "many" classes have more training samples than this.
            few: "few" classes have fewer training samples than this.
            ends: number of classes in each end of "head-tail".
            source: origin of model and data, for the result's provenance.

        Returns:
            The objective.

        Raises:
            InputError: model, loss, device or partition do not fit; the message says which and what to do.
            DataError: a part without samples.
            NumericalError: the loss is not finite.
        """
        where = devices.choose_for(device, dtype)
        if batch_size < 1:
            raise InputError(f"{arg('batch_size')} must be at least 1, got {batch_size}")
        if not 0 <= weight_decay < math.inf:
            raise InputError(f"{arg('weight_decay')} must be a finite number, at least 0, got {weight_decay:g}")
        thresholds = {"many": many, "few": few, "ends": ends}
        parts = chosen_parts(samples, partition, classes, thresholds)
        own = copied(model)
        varying = layout(own, params)
        own = converted(own.eval().requires_grad_(False), where, dtype)
        fingerprint = samples.fingerprint
        samples = samples.on(where)
        if isinstance(samples, Records):
            samples = samples.taken_by(partial(arguments, own))
        tensors = _tensors(own)
        found = measured.settle(own, samples, loss, task, logits_index, where, dtype)
        of_user = found.loss is not cross_entropy and (callable(loss) or (loss is not None and ":" in loss))
        objective = cls(
            model=own,
            task=found.task,
            outputs=found.outputs,
            loss=found.loss,
            likelihood=found.likelihood,
            samples=samples,
            partition=parts,
            layout=varying,
            members=tuple(parts.indices(p) for p in range(len(parts))),
            device=where,
            dtype=dtype,
            batch_size=batch_size,
            weight_decay=weight_decay,
            thresholds=thresholds,
            source={
                "data": dict(samples.options),
                "data_sha256": fingerprint,
                "split": samples.split,
                "normalisation": [samples.mean, samples.std],
                **(source or {}),
                "weights_sha256": _digest(items.described(t) for t in tensors.values()),
                "task": found.task.name,
                "loss": found.name,
                **({"loss_values": measured.at_drawn_outputs(found, samples, dtype)} if of_user else {}),
                "partition": {n: c for n, c in zip(parts.names, parts.classes, strict=False)} or list(parts.names),
                "partition_sha256": _digest([parts.part_of.tobytes()]),
                "params": params or "all trainable",
                "weight_decay": weight_decay,
            },
            _fixed={name: t for name, t in tensors.items() if name not in varying.names},
            theta=tuple(tensors[name].detach() for name in varying.names),
        )
        kept = contract.check(objective, unwrapped(model))
        return replace(objective, _kept=kept, _theirs=contract.Origin.of(unwrapped(model)))

    @checked
    def at(self, model: nn.Module) -> "Objective":
        """Return the objective of the same data, parts and loss with the current weights of a model.

        Args:
            model: the same network, for example the original one after further training. It is copied.

        Returns:
            The objective; its source names no checkpoint.

        Raises:
            InputError: tensors have different names or shapes, or the loss is not one fixed number for each sample.
            NumericalError: the loss is not finite.
        """
        own = converted(copied(model).eval().requires_grad_(False), self.device, self.dtype)
        for one, other in ((own, self.model), (self.model, own)):
            shapes = {name: t.shape for name, t in _tensors(other).items()}
            for name, t in _tensors(one).items():
                if shapes.get(name) != t.shape:
                    raise InputError(f"{name} differs from that of the objective's model: give the same architecture")
        found = self.of_network(own)
        if not alike(own, self.model):
            found = replace(found, known=Known())
        about = {"checkpoint": None, "weights_sha256": _digest(items.described(t) for t in _tensors(own).values())}
        dropped = {name for name in self.source if name.startswith("checkpoint")}
        found = replace(found, source={n: v for n, v in self.source.items() if n not in dropped} | about)
        kept = contract.check(found, unwrapped(model))
        return replace(found, _kept=kept, _theirs=contract.Origin.of(unwrapped(model)))

    def of_network(self, model: nn.Module) -> "Objective":
        """Return the objective of the same data, parts and loss with another network of the same kind, not copied.

        Args:
            model: in eval mode, on the objective's device and in its dtype; a copy of the objective's, with other
                tensors.

        Returns:
            The objective, with the same source.
        """
        tensors = _tensors(model)
        varying = self.layout.names
        return replace(
            self,
            model=model,
            theta=tuple(tensors[name].detach() for name in varying),
            _fixed={name: t for name, t in tensors.items() if name not in varying},
            _theirs=None,
            _kept=None,
            draws=None if self.draws is None else replace(self.draws, of=self.draws.of.of_network(model)),
        )

    def in_dtype(self, dtype: torch.dtype) -> "Objective":
        """Return the same objective in float32 or float64; the model's own tensors are not changed and not used."""
        if self.dtype == dtype:
            return self
        device = place(self.device) if dtype == torch.float64 else self.device

        def taken(t: Tensor) -> Tensor:
            return t.to(device).to(dtype) if t.is_floating_point() else t.to(device)

        fixed = {name: taken(t) for name, t in self._fixed.items()}
        return replace(self, device=device, dtype=dtype, theta=tuple(map(taken, self.theta)), _fixed=fixed)

    def refuse_stale(self) -> None:
        """Raise InputError if the caller's model has changed since this objective copied its weights."""
        if self._theirs is not None:
            self._theirs.refuse_change(self.model)

    def verify(self, model: nn.Module | None = None) -> None:
        """Raise InputError if the losses of a few samples have changed since this objective was made.

        Args:
            model: a copy of the objective's network that was evaluated instead; None means its own network.
        """
        if self._kept is not None:
            contract.verify(self if model is None else self.of_network(model), self._kept)
        elif self.draws is not None:
            self.draws.of.verify(model)

    @property
    def counts(self) -> np.ndarray:
        """Number of summands of each part, (P,), by which its sums are divided; each draw counts as one."""
        return self.partition.counts

    @property
    def population(self) -> np.ndarray:
        """Number of samples of each part, (P,); for draws, of the part from which they were drawn."""
        return self.counts if self.draws is None else self.draws.population

    def as_drawn(self, part: int, values: np.ndarray) -> np.ndarray:
        """Return values of a part's summands, (..., n), whose mean has the standard error over samples.

        Without draws these are the given values; see `inference.draws`.
        """
        n = len(self.members[part])
        chances = None if self.draws is None else self.draws.chances[self.members[part]]
        return inference.draws(values, np.full(n, 1 / n), chances)

    @property
    def shares(self) -> np.ndarray:
        """Share of each part in the samples of all parts, (P,)."""
        found: np.ndarray = self.population / self.population.sum()
        return found

    @property
    def undrawn(self) -> "Objective":
        """The objective of all samples, from which draws were made; without draws, this objective."""
        return self if self.draws is None else self.draws.of

    @property
    def trained(self) -> np.ndarray:
        """Training samples of each part's classes, (P,); nan for parts or samples without classes, or if unknown."""
        counts, parts = self.samples.trained, self.partition
        if self.samples.class_names and parts.classes:
            return np.array([counts[list(own)].sum() for own in parts.classes])
        if self.samples.class_names and parts.names == ("all",):
            return np.array([counts.sum()])
        return np.full(len(parts), np.nan)

    @checked
    def part(self, name: str) -> int:
        """Return the position of a part by its name, or raise InputError."""
        return position(name, self.partition.names)

    @checked
    def alone(self, name: str) -> "Objective":
        """Return the objective of one part, or of a group that need not be a part.

        Args:
            name: of a part, or "all", "head", "tail", "many", "medium" or "few" of all the data.

        Returns:
            An objective with this one part.

        Raises:
            InputError: there is neither a part nor a group of this name.
            DataError: the group has no samples.
        """
        own = name in self.partition.names
        if not own and self.draws is not None:  # a group that is no part needs its own draws
            return self.undrawn.alone(name)
        if not own and name not in GROUPS:
            raise InputError(unknown(name, self.partition.names, more=f", or a group: {', '.join(GROUPS)}"))
        found = self.partition if own else make_partition(self.samples, GROUPS[name], **self.thresholds)
        if name not in found.names:
            raise InputError(f"no class belongs to {name!r}: change the limits {arg('many')} and {arg('few')}")
        one = found.coarsen({name: [name]})
        refuse_empty(one, self.samples)
        draws = None
        if self.draws is not None:
            chosen = [self.part(name)]
            draws = replace(
                self.draws,
                of=self.draws.of.alone(name),
                whole=self.draws.whole[chosen],
                population=self.draws.population[chosen],
                uncertainty=self.draws.uncertainty[chosen],
            )
        members = self.members[self.part(name)] if own else one.indices(0)
        return replace(self, partition=one, members=(members,), draws=draws)

    def shared(self) -> "Objective":
        """Return the objective with this process's batches, if all ranks compute one part together.

        Sums over its batches must be added over its `team`. Otherwise it is this objective itself.
        """
        team = distributed.team()
        return self if team == self.team else replace(self, team=team)

    def own(self, part: int) -> np.ndarray:
        """Return the positions in the data of the samples of a part over which this process sums."""
        return self.members[part][self.team.share(len(self.members[part]))]

    def n_batches(self, part: int) -> int:
        """Return the number of batches of a part."""
        return -(-len(self.own(part)) // self.batch_size)

    def batch(self, part: int, number: int, size: int | None = None) -> tuple[Tree, Tree]:
        """Return one batch of a part; its batches together contain all samples, in a fixed order.

        If a team of processes computes the sums, the batches contain the samples of this process.

        Args:
            part: position of the part.
            number: number of the batch.
            size: samples per batch; None means `batch_size`, which becomes smaller if memory runs out.

        Returns:
            Inputs and targets of at most `size` samples on the device; the last batch may be shorter.
        """
        size = self.batch_size if size is None else size
        return self.samples.batch(self.own(part)[number * size : (number + 1) * size], self.device, self.dtype)

    def example(self, part: int) -> tuple[Tree, Tree]:
        """Return the first batch of a part, the same in all processes."""
        return self.samples.batch(self.members[part][: self.batch_size], self.device, self.dtype)

    def batches(self, part: int) -> Iterator[tuple[Tree, Tree]]:
        """Yield all batches of a part."""
        for number in range(self.n_batches(part)):
            yield self.batch(part, number)

    @property
    def fixed(self) -> tuple[Tensor, ...]:
        """The model's parameters and buffers that do not vary."""
        return tuple(self._fixed.values())

    def logits(self, theta: Sequence[Tensor], inputs: Tree, fixed: Sequence[Tensor] | None = None) -> Tensor:
        """Evaluate the model at a point.

        Args:
            theta: tensors of `layout`'s shapes.
            inputs: of B samples; the model, which may overwrite them, gets a copy.
            fixed: what does not vary, in the order of `fixed`; None for the model's own.

        Returns:
            The arguments of the loss, (B, K): the logits, for classes.
        """
        others = self._fixed if fixed is None else dict(zip(self._fixed, fixed, strict=True))
        state = {**others, **dict(zip(self.layout.names, theta, strict=True))}
        return self.outputs.of(lambda some: functional_call(self.model, state, some), trees.clone(inputs))

    def read(self, outputs: Any) -> Tensor:
        """Return the arguments of the loss, (B, K), from the model's output."""
        return self.outputs.read(outputs)

    def logits_of(self, model: nn.Module, inputs: Tree) -> Tensor:
        """Evaluate another network of the model's kind; see `logits`."""
        return self.outputs.of(partial(call, model), trees.clone(inputs))

    def losses(self, theta: Sequence[Tensor], inputs: Tree, targets: Tree) -> Tensor:
        """Evaluate the loss of each sample at a point.

        Args:
            theta: tensors of `layout`'s shapes.
            inputs: of B samples.
            targets: theirs.

        Returns:
            One value per sample, (B,).
        """
        return self.values(self.logits(theta, inputs), targets)

    def values(self, z: Tensor, targets: Tree) -> Tensor:
        """Evaluate the loss of each sample's arguments z, (B, K), in float64 where it accepts that; see precise.py."""
        return precise.values(self.loss, z, targets) if precise.widens(self) else self.loss(z, targets)

    @contextmanager
    def trainable(self) -> Generator[None, None, None]:
        """Make the parameters that vary require a gradient inside the block, for gradients of single samples."""
        chosen = [p for name, p in self.model.named_parameters() if name in self.layout.names]
        try:
            for p in chosen:
                p.requires_grad_(True)
            yield
        finally:
            for p in chosen:
                p.requires_grad_(False)

    @property
    def evaluation(self) -> Evaluation:
        """Loss and measures of each part at the model's own parameters; computed once, by all processes of a team."""
        known = self.evaluated
        return known if distributed.team().all(known is not None) and known is not None else self.evaluate()

    @property
    def evaluated(self) -> Evaluation | None:
        """The evaluation if it has been computed."""
        return vars(self).get("evaluation")

    def evaluate(self, progress: Callable[[float, int, str], None] | None = None) -> Evaluation:
        """Compute `evaluation`, and store it.

        Args:
            progress: called with (samples done, all samples, text).

        Returns:
            Loss and measures of each part. Within `distributed.together` each rank takes some of the samples.

        Raises:
            NumericalError: a loss is not finite.
        """
        found = evaluation.evaluate(self, progress)
        vars(self)["evaluation"] = found  # the class itself is frozen
        return found

    @property
    def correct(self) -> Callable[[Tensor, Tree], Tensor] | None:
        """(z, targets) -> whether each sample is predicted correctly, (B,); None if that is not defined."""
        of_task, outputs = self.task.correct, self.outputs
        if of_task is None or not outputs.measurable:
            return None
        return lambda z, targets: weighed_right(of_task, self.draws)(outputs.restore(z), targets)


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def _digest(pieces: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece)
    return digest.hexdigest()
