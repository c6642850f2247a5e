"""What batch norm does at a point of parameter space: the policies for its statistics, and those that measure them.

The policies also apply to instance norm with running statistics.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from landscape.autodiff.batch_statistics import running
from landscape.autodiff.called import call, first_of
from landscape.autodiff.differentiable import differentiable_attention
from landscape.autodiff.trees import Tree
from landscape.data.datasets import Samples
from landscape.data.records import Records
from landscape.errors import InputError, arg, check_choice
from landscape.networks.arguments import arguments
from landscape.networks.copies import copied
from landscape.networks.models import failures_named
from landscape.objective.objective import Objective
from landscape.objective.points import Moves, Point, buffer_layout, by_log, origin, set_point, straight

NORM_BATCH = 256
"""Samples per batch where the statistics depend on the batch, as in training; `batch_size` does not change this."""

SURFACES = ("surface1d", "surface2d", "trajectory", "distances")


Statistics: TypeAlias = Callable[[Point], Point]
"""Return a point with other running statistics in place of its own."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Training:
    """The network, and the training samples on which a policy may estimate statistics."""

    objective: Objective
    samples: Samples
    most: int  # the largest number of samples, of all or of each part
    seed: int

    @property
    def drawn(self) -> np.ndarray:
        """The positions of all samples, in random order."""
        return np.random.default_rng(self.seed).permutation(len(self.samples))


@dataclass(frozen=True, kw_only=True)
class Policy:
    """Which statistics batch norm uses at a point: exactly one of `moves`, `replaces` and `batches`.

    With `moves`, each checkpoint keeps its own statistics; other policies change them at a checkpoint too, and its loss
    is computed in both ways.

    All code reads these fields; none depends on the policy's name.
    """

    does: str  # the help of --bn
    commands: tuple[str, ...] = SURFACES  # that accept it as --bn
    moves: Moves | None = None  # interpolate between the checkpoints' statistics, in this way
    replaces: Callable[[Training], list[Statistics]] | None = None  # others at each point: for all parts, or for each
    trains: bool = False  # `replaces` estimates them on training samples
    batches: bool = False  # use those of each batch

    def __post_init__(self) -> None:
        """Refuse a policy that sets none of the three, or several.

        Raises:
            ValueError: the number of fields that are set is not one, or `trains` is set without `replaces`.
        """
        if sum(map(bool, (self.moves, self.replaces, self.batches))) != 1 or (self.trains and not self.replaces):
            raise ValueError("a policy sets exactly one of moves, replaces and batches; trains goes with replaces")

    @property
    def movement(self) -> Moves:
        """How statistics move in a plane: by `moves`, or by their logarithm if the policy replaces them."""
        return self.moves or by_log


def kept(given: Training) -> list[Statistics]:
    """Use the statistics of the checkpoint at the origin everywhere."""
    buffers = origin(given.objective).buffers
    return [lambda point: Point(point.theta, buffers)]


def estimated(given: Training) -> list[Statistics]:
    """Estimate the statistics on samples of all parts together."""
    return [Reestimation(given.objective, given.samples, given.drawn[: given.most])]


def estimated_of_parts(given: Training) -> list[Statistics]:
    """Estimate the statistics of each part on its own samples."""
    parts = of_parts(given.objective.undrawn, given.samples, given.drawn)
    return [Reestimation(given.objective, given.samples, own[: given.most]) for own in parts]


BatchNorm: TypeAlias = Literal["log-interpolate", "interpolate", "keep", "reestimate", "per-part", "batch"]

POLICIES: dict[BatchNorm, Policy] = {
    "log-interpolate": Policy(
        does="interpolate between those of the checkpoints, variances by their logarithm", moves=by_log
    ),
    "interpolate": Policy(
        does="interpolate all of them linearly; beyond the checkpoints a variance may become negative, and the loss "
        "undefined there",
        moves=straight,
    ),
    "keep": Policy(does="use those of the checkpoint everywhere", replaces=kept, commands=(*SURFACES, "sharpness")),
    "reestimate": Policy(does="estimate them on training samples at each point", replaces=estimated, trains=True),
    "per-part": Policy(
        does="the same, but for each part on its own training samples", replaces=estimated_of_parts, trains=True
    ),
    "batch": Policy(does="use those of each batch of 256 samples, as in training", batches=True),
}


DEFAULT: BatchNorm = "log-interpolate"
"""On planes between checkpoints it is closer to estimated statistics than linear interpolation (docs/surfaces.md)."""


def policies(command: str) -> dict[BatchNorm, Policy]:
    """Return the policies that a command accepts."""
    return {name: policy for name, policy in POLICIES.items() if command in policy.commands}


def check(name: BatchNorm, command: str = "surface2d") -> Policy:
    """Return a policy by its name.

    Raises:
        InputError: the command accepts no policy of this name.
    """
    check_choice("batch_norm", name, tuple(policies(command)))
    return POLICIES[name]


def estimated_on(name: BatchNorm, objective: Objective, training: Samples | None) -> dict[str, str]:
    """Say on which data a policy estimates statistics, as an entry of a fingerprint; nothing if it estimates none.

    Args:
        name: of the policy.
        objective: of the surface.
        training: data for the statistics; None means the objective's own.

    Returns:
        The entry.
    """
    if not POLICIES[name].trains:
        return {}
    own = objective.undrawn
    some, sha256 = (own.samples, own.source["data_sha256"]) if training is None else (training, training.fingerprint)
    return {"statistics estimated on": f"{len(some):,} samples of {some.name}, {some.split} split, SHA-256 {sha256}"}


class Reestimation:
    """Estimate the running statistics of batch norm and instance norm on training data, at any point.

    One pass, in which these layers normalise as in training, averages the means and variances of batches, weighted by
    their numbers of samples. If the network uses a layer several times, each use counts, as in
    `torch.optim.swa_utils.update_bn`.
    """

    def __init__(self, objective: Objective, samples: Samples, drawn: np.ndarray) -> None:
        self._objective = objective
        self._model, self._norms = _training_norms(objective)
        taken = partial(arguments, self._model)
        self._samples = samples.taken_by(taken) if isinstance(samples, Records) else samples
        if not len(drawn):
            raise InputError(
                f"running statistics need training samples, but a part has none: leave it out with {arg('classes')}"
            )
        self._pieces = _pieces(drawn)
        self._seen = dict.fromkeys(self._norms, 0)  # samples, those of several uses several times
        for norm in self._norms:
            norm.register_forward_pre_hook(self._weigh, with_kwargs=True)

    def _weigh(self, norm: Any, args: tuple[Any, ...], named: dict[str, Any]) -> None:
        n = len(first_of(args, named))
        self._seen[norm] += n
        norm.momentum = n / self._seen[norm]

    @torch.no_grad()
    def __call__(self, point: Point) -> Point:
        """Return the point with the statistics that were estimated at it."""
        objective, buffers = self._objective, buffer_layout(self._model)
        set_point(self._model, objective.layout, point)
        for norm in self._norms:
            norm.reset_running_stats()
            self._seen[norm] = 0
        with differentiable_attention(), torch.no_grad():
            for piece in self._pieces:
                inputs = self._samples.batch(piece, objective.device, objective.dtype)[0]
                with failures_named(inputs):
                    try:
                        call(self._model, inputs)
                    except ValueError as error:  # one value per channel has no variance
                        raise InputError(
                            f"running statistics cannot be estimated from {len(piece)} sample(s): {error}"
                        ) from None
        named = dict(self._model.named_buffers())
        return Point(point.theta, buffers.flat([named[n] for n in buffers.names]))


class ByBatch:
    """Passes in which batch norm uses the statistics of each batch; batches are random, as in training."""

    def __init__(self, objective: Objective, order: np.ndarray, seed: int) -> None:
        self._objective, self._order = objective, order
        self._model, norms = _training_norms(objective)
        for m in norms:
            m.momentum = 0.0  # running statistics are neither used nor changed
        self._pieces = _pieces(np.random.default_rng(seed).permutation(len(order)))

    def __call__(self, point: Point) -> Iterator[tuple[Tensor, Tree, np.ndarray]]:
        """Yield logits and targets of each batch, and the positions of its samples in the order."""
        objective, samples = self._objective, self._objective.samples
        set_point(self._model, objective.layout, point)
        for piece in self._pieces:
            inputs, targets = samples.batch(self._order[piece], objective.device, objective.dtype)
            yield objective.logits_of(self._model, inputs), targets, piece


def _training_norms(objective: Objective) -> tuple[nn.Module, list[_NormBase]]:
    """Return a copy of the network in which only layers with running statistics are in training mode, and these."""
    model = copied(objective.model)
    norms = running(model)
    if not norms:
        raise InputError(f"the model has no batch norm with running statistics: leave {arg('batch_norm')} out")
    for m in norms:
        m.train()
    return model, norms


def _pieces(order: np.ndarray) -> list[np.ndarray]:
    return np.array_split(order, max(1, -(-len(order) // NORM_BATCH)))


def of_parts(objective: Objective, samples: Samples, drawn: np.ndarray) -> list[np.ndarray]:
    """Return the training samples of each part, in the order of a draw."""
    parts = objective.partition
    if parts.classes:
        return [drawn[np.isin(samples.labels[drawn], classes)] for classes in parts.classes]
    if samples is not objective.samples:
        raise InputError(
            f"{arg('batch_norm', 'per-part')} needs parts that are classes or groups of them, or "
            f"{arg('split', 'train')} without {arg('samples_per_class')}"
        )
    return [drawn[parts.part_of[drawn] == p] for p in range(len(parts))]
