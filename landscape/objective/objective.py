"""The loss of a model on each part of the data, as a function of its parameters.

For part p with n_p samples, L_p(theta) = 1/n_p * sum of loss(f(theta, x_i), y_i) over its samples: a sum over samples
divided once by their count, never a mean of batch means. The model is in eval mode (batch norm uses its running
statistics), data come in a fixed order and without augmentation, so L_p is one fixed function.
"""

import copy
import hashlib
import math
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from landscape.autodiff import devices
from landscape.callables import checked
from landscape.data import items
from landscape.data.datasets import Samples
from landscape.data.partition import Partition
from landscape.errors import DataError, InputError, NumericalError, arg
from landscape.networks import losses, models
from landscape.networks.models import failures_named
from landscape.networks.params import Layout, layout
from landscape.results import disk

Loss = Callable[[Tensor, Tensor], Tensor]
"""(logits (B, C), labels (B,)) -> one value per sample (B,)."""

RESIDUAL_LOSSES = ("ce", "logit-adjust")
"""Losses of the form -log p(label), for which 1 - exp(-loss) is the residual mass of a sample."""

GROUPS = {"all": "all", "head": "head-tail", "tail": "head-tail"} | dict.fromkeys(
    ("many", "medium", "few"), "many-medium-few"
)
"""Groups of classes that have a name of their own, and the partition that each is a part of."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Evaluation:
    """Mean loss and accuracy of each part."""

    parts: tuple[str, ...]
    counts: np.ndarray  # (P,)
    loss: np.ndarray  # (P,) mean over the part's samples
    accuracy: np.ndarray  # (P,) share of the samples whose largest logit is the label's

    @property
    def overall(self) -> tuple[float, float]:
        """Mean loss and accuracy over the samples of all parts together."""
        shares = self.counts / self.counts.sum()
        return float(shares @ self.loss), float(shares @ self.accuracy)


@dataclass(frozen=True, kw_only=True, eq=False)
class Objective:
    """A model, a loss and data in parts. Make one with `Objective.build` or `landscape.load_objective`."""

    model: nn.Module  # a copy of the caller's, in eval mode
    loss: Loss
    samples: Samples
    partition: Partition
    layout: Layout  # the parameters that vary, in this order in every flat vector
    members: tuple[np.ndarray, ...]  # for each part, the samples that are summed over
    device: torch.device
    dtype: torch.dtype
    batch_size: int  # samples that are pushed through the model at a time; it changes no result
    weight_decay: float  # adds weight_decay / 2 * |theta|^2 to every part's loss, in curvature only
    logits_index: int | None
    source: Mapping[str, Any]  # what makes the numbers: checkpoint, data, loss, partition
    thresholds: Mapping[str, int]  # many, few and ends, which the names of groups go by
    _fixed: dict[str, Tensor] = field(repr=False)  # parameters and buffers that do not vary
    theta: tuple[Tensor, ...] = field(repr=False)

    @classmethod
    @checked
    @torch.enable_grad()
    def build(
        cls,
        model: nn.Module,
        samples: Samples,
        *,
        loss: str | Loss = "ce",
        partition: str | PathLike[str] | Partition | Mapping[str, Sequence[int]] = "all",
        classes: str | Sequence[str | int] | None = None,
        params: str | None = None,
        device: str | torch.device | None = None,
        dtype: torch.dtype = torch.float32,
        batch_size: int = 128,
        weight_decay: float = 0.0,
        logits_index: int | None = None,
        many: int = 100,
        few: int = 20,
        ends: int = 1,
        source: Mapping[str, Any] | None = None,
    ) -> "Objective":
        """Join a model, data and a loss, and check on a few samples that they fit together.

        Args:
            model: returns logits (B, C), or a tuple with them. It is copied; the caller's is not touched.
            samples: the data.
            loss: "ce", "logit-adjust", "balanced", `package.module:callable`, or a function
                (logits (B, C), labels (B,)) -> (B,).
            partition: "all", "class", "many-medium-few", "head-tail", a JSON file of groups, a mapping of groups,
                or a `Partition`.
            classes: keep these parts only, as in "0,9", "head,tail" or ["truck", 3].
            params: globs of the parameters that vary; None for all that require a gradient.
            device: "cpu", "cuda", "cuda:1"; None takes a GPU where there is one.
            dtype: torch.float32, or torch.float64 for the last digits.
            batch_size: samples at a time; a matter of speed and memory alone.
            weight_decay: coefficient of |theta|^2 / 2 in the curvature; 0 leaves it out.
            logits_index: which element of a model's tuple holds the logits, where that is ambiguous.
            many: "many" classes have more training samples than this.
            few: "few" classes have fewer training samples than this.
            ends: number of classes in each end of "head-tail".
            source: where model and data came from, for the result's provenance.

        Returns:
            The objective.

        Raises:
            InputError: model, loss, device or partition do not fit; the message says which and what to do.
            DataError: a part without samples.
            NumericalError: the loss is not finite.
        """
        place = devices.choose(device)
        if dtype not in {torch.float32, torch.float64}:
            raise InputError(f"{arg('dtype', dtype)} is unknown: choose float32 or float64")
        if batch_size < 1:
            raise InputError(f"{arg('batch_size')} must be at least 1, got {batch_size}")
        if not 0 <= weight_decay < math.inf:
            raise InputError(f"{arg('weight_decay')} must be a finite number, at least 0, got {weight_decay:g}")
        parts = make_partition(samples, partition, many=many, few=few, ends=ends)
        if classes is not None:
            parts = parts.select(classes)
        _refuse_empty(parts, samples)
        own = copied(model)
        varying = layout(own, params)
        own = _converted(own.eval().requires_grad_(False), place, dtype)
        fingerprint = samples.fingerprint
        if samples.inputs is not None:
            samples = replace(samples, inputs=samples.inputs.to(place))
        tensors: dict[str, Tensor] = {**dict(own.named_parameters()), **dict(own.named_buffers())}
        objective = cls(
            model=own,
            loss=losses.build(loss, samples.class_counts) if isinstance(loss, str) else loss,
            samples=samples,
            partition=parts,
            layout=varying,
            members=tuple(parts.indices(p) for p in range(len(parts))),
            device=place,
            dtype=dtype,
            batch_size=batch_size,
            weight_decay=weight_decay,
            logits_index=logits_index,
            thresholds={"many": many, "few": few, "ends": ends},
            source={
                "data": dict(samples.options),
                "data_sha256": fingerprint,
                "split": samples.split,
                "normalisation": [samples.mean, samples.std],
                **(source or {}),
                "weights_sha256": _digest(items.described(t) for t in tensors.values()),
                "loss": loss if isinstance(loss, str) else getattr(loss, "__qualname__", type(loss).__name__),
                "partition": {n: c for n, c in zip(parts.names, parts.classes, strict=False)} or list(parts.names),
                "partition_sha256": _digest([parts.part_of.tobytes()]),
                "params": params or "all trainable",
                "weight_decay": weight_decay,
            },
            _fixed={name: t for name, t in tensors.items() if name not in varying.names},
            theta=tuple(tensors[name].detach() for name in varying.names),
        )
        _check_contract(objective)
        return objective

    @property
    def counts(self) -> np.ndarray:
        """Samples of each part, (P,): what its sums are divided by, whether or not all are summed over."""
        return self.partition.counts

    def part(self, name: str) -> int:
        """Return the position of a part by its name, or raise InputError."""
        if name not in self.partition.names:
            raise InputError(f"no part {name!r}; there are {', '.join(self.partition.names)}")
        return self.partition.names.index(name)

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
        if not own and name not in GROUPS:
            shown = ", ".join(self.partition.names[:10]) + (", ..." if len(self.partition) > 10 else "")
            raise InputError(f"no part {name!r}; there are {shown}, and the groups {', '.join(GROUPS)}")
        found = self.partition if own else make_partition(self.samples, GROUPS[name], **self.thresholds)
        if name not in found.names:
            raise InputError(f"no class is among the {name}: {arg('many')} and {arg('few')} say which are")
        one = found.coarsen({name: [name]})
        _refuse_empty(one, self.samples)
        return replace(self, partition=one, members=(self.members[self.part(name)] if own else one.indices(0),))

    def n_batches(self, part: int) -> int:
        """Return the number of batches that a part is summed over in."""
        return -(-len(self.members[part]) // self.batch_size)

    def batch(self, part: int, number: int) -> tuple[Tensor, Tensor]:
        """Return some samples of a part; batch after batch they are all of it, in a fixed order.

        Args:
            part: position of the part.
            number: which batch.

        Returns:
            Inputs and labels of at most `batch_size` samples on the device; the last batch may be shorter.
        """
        begin = number * self.batch_size
        return self.samples.batch(self.members[part][begin : begin + self.batch_size], self.device, self.dtype)

    def batches(self, part: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield all batches of a part."""
        for number in range(self.n_batches(part)):
            yield self.batch(part, number)

    def logits(self, theta: Sequence[Tensor], inputs: Tensor) -> Tensor:
        """Evaluate the model at a point.

        Args:
            theta: tensors of `layout`'s shapes.
            inputs: (B, ...).

        Returns:
            The logits, (B, C).
        """
        state = {**self._fixed, **dict(zip(self.layout.names, theta, strict=True))}
        output = functional_call(self.model, state, (inputs,))
        return models.logits_of(output, len(self.samples.class_names), self.logits_index)

    def losses(self, theta: Sequence[Tensor], inputs: Tensor, labels: Tensor) -> Tensor:
        """Evaluate the loss of each sample at a point.

        Args:
            theta: tensors of `layout`'s shapes.
            inputs: (B, ...).
            labels: (B,).

        Returns:
            One value per sample, (B,).
        """
        return self.loss(self.logits(theta, inputs), labels)

    @cached_property
    def evaluation(self) -> Evaluation:
        """Loss and accuracy of each part at the model's own parameters; NumericalError where a loss is not finite."""
        return self.evaluate()

    def evaluate(self, progress: Callable[[float, int, str], None] | None = None) -> Evaluation:
        """Compute `evaluation`, which keeps it.

        Args:
            progress: called with (samples done, all samples, text).

        Returns:
            Loss and accuracy of each part.

        Raises:
            NumericalError: a loss is not finite.
        """
        n_parts = len(self.partition)
        done, total = 0, sum(len(m) for m in self.members)
        loss, correct = np.zeros(n_parts), np.zeros(n_parts)
        # Not in inference mode: what a model keeps for later from there cannot take part in a derivative.
        with differentiable_attention(), torch.no_grad():
            for part in range(n_parts):
                for inputs, labels in self.batches(part):
                    with failures_named(inputs):
                        logits = self.logits(self.theta, inputs)
                        loss[part] += self.loss(logits, labels).double().sum().item()
                    correct[part] += (logits.argmax(1) == labels).sum().item()
                    done += len(labels)
                    if progress is not None:
                        progress(done, total, "loss and accuracy")
                if not np.isfinite(loss[part]):
                    raise NumericalError(
                        f"the loss of part {self.partition.names[part]} is {loss[part]}: look at the checkpoint's "
                        f"weights, the normalisation of the data and {arg('dtype')}"
                    )
        counts = np.array([len(m) for m in self.members])
        found = Evaluation(parts=self.partition.names, counts=counts, loss=loss / counts, accuracy=correct / counts)
        self.__dict__["evaluation"] = found  # where cached_property looks; the class itself is frozen
        return found

    def truncated(self, mass: float) -> "Objective":
        """Keep only the samples that hold a given share of each part's residual mass.

        For the cross-entropy the Hessian of sample i scales with r_i = 1 - p(true class), so where the network fits
        its data a few samples hold nearly all of it. Sums run over the kept samples, divisors stay what they were.

        Args:
            mass: share of the sum of r that is kept in each part, in (0, 1].

        Returns:
            An objective on fewer samples.

        Raises:
            InputError: the share is out of range, or the loss is not of the form -log p(true class).
        """
        if not 0 < mass <= 1:
            raise InputError(f"{arg('residual_mass')} must lie in (0, 1], got {mass:g}")
        if self.source["loss"] not in RESIDUAL_LOSSES:
            raise InputError(f"{arg('residual_mass')} is defined for the losses {' and '.join(RESIDUAL_LOSSES)} only")
        kept = []
        for part, index in enumerate(self.members):
            with differentiable_attention(), torch.no_grad():
                values = [self.losses(self.theta, x, y).double().cpu() for x, y in self.batches(part)]
            residual = -np.expm1(-torch.cat(values).numpy())
            order = np.argsort(-residual, kind="stable")
            covered = np.cumsum(residual[order])
            n_kept = int(np.searchsorted(covered, mass * covered[-1])) + 1
            kept.append(np.sort(index[order[:n_kept]]))
        return replace(self, members=tuple(kept))


def make_partition(
    samples: Samples,
    spec: str | PathLike[str] | Partition | Mapping[str, Sequence[int]],
    *,
    many: int = 100,
    few: int = 20,
    ends: int = 1,
) -> Partition:
    """Divide samples into parts by a name, a file or a mapping.

    Args:
        samples: the data.
        spec: "all", "class", "many-medium-few", "head-tail", a JSON file {"name": [class, ...]}, the same as a
            mapping, or a finished partition.
        many: "many" classes have more training samples than this.
        few: "few" classes have fewer training samples than this.
        ends: number of classes in each end of "head-tail".

    Returns:
        The partition.

    Raises:
        InputError: an unknown name, an unreadable file, or groups that do not fit the classes.
    """
    labels, counts = samples.labels, samples.class_counts
    if isinstance(spec, Partition):
        if len(spec.part_of) != len(labels):
            raise InputError(f"the partition is of {len(spec.part_of)} samples, the data has {len(labels)}")
        return spec
    if isinstance(spec, Mapping):
        return Partition.by_groups(labels, spec, len(counts))
    if spec == "all":
        return Partition.whole(len(labels))
    if spec == "class":
        return Partition.by_class(labels, samples.class_names)
    if spec == "many-medium-few":
        return Partition.by_count(labels, counts, many=many, few=few)
    if spec == "head-tail":
        return Partition.head_tail(labels, counts, n_classes=ends)
    path = Path(spec)
    if path.suffix != ".json":
        raise InputError(
            f"{arg('partition', spec)} is unknown: choose all, class, many-medium-few, head-tail or a .json file "
            "of groups"
        )
    groups = disk.read_json(path, InputError)
    if not isinstance(groups, dict) or not all(isinstance(g, list) for g in groups.values()):
        raise InputError(f'{spec} must hold {{"name": [class, ...]}}')
    return Partition.by_groups(labels, groups, len(counts))


@contextmanager
def differentiable_attention() -> Generator[None, None, None]:
    """Return a context for second derivatives: gradients are on, attention and weight norm use plain operations.

    And in full precision, see `devices.full_precision`.
    """
    with devices.full_precision(), torch.enable_grad(), sdpa_kernel(SDPBackend.MATH), _PlainWeightNorm():
        yield


class _PlainWeightNorm(TorchFunctionMode):
    """Write weight norm out: PyTorch's own operation has a wrong second derivative (torch 2.13: off by its size)."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch._weight_norm:
            return _weight_norm(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    return v * (g / torch.norm_except_dim(v, 2, dim))


def copied(model: nn.Module) -> nn.Module:
    """Copy a model, without what DataParallel or torch.compile have put around it.

    Args:
        model: the caller's, which is not touched.

    Returns:
        A copy of the network inside.

    Raises:
        InputError: it cannot be copied, or its weights have no values or no real ones.
    """
    while isinstance(inner := _inside(model), nn.Module):
        model = inner
    if isinstance(model, torch.jit.ScriptModule):
        raise InputError("a TorchScript module does not let its parameters vary: give the nn.Module it was made of")
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if nn.parameter.is_lazy(tensor):
            raise InputError(f"{name} of the model has no shape yet: pass a batch through it once")
        if tensor.is_meta:
            raise InputError(f"{name} of the model is on the meta device and has no values: load its weights first")
    for name, parameter in model.named_parameters():
        if parameter.is_complex():
            raise InputError(f"{name} of the model is complex: hold its real and imaginary part as real parameters")
    # What a forward pass left behind is no leaf, and deepcopy takes leaves only; old weight_norm leaves weights so.
    left = [t for m in model.modules() for t in vars(m).values() if isinstance(t, Tensor) and not t.is_leaf]
    try:
        return copy.deepcopy(model, {id(t): t.detach().clone() for t in left})
    except Exception as error:  # what a user's model holds may refuse in any way
        raise InputError(
            f"the model cannot be copied: {type(error).__name__}: {(str(error).splitlines() or [''])[0]}; "
            "take out of it what is no part of the network"
        ) from error


def _inside(model: nn.Module) -> Any:
    if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
        return model.module
    return getattr(model, "_orig_mod", None)


def _converted(model: nn.Module, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """Move a model and take its real numbers to a type, its complex ones to the complex type of that precision."""

    def convert(t: Tensor) -> Tensor:
        wanted = dtype.to_complex() if t.is_complex() else dtype if t.is_floating_point() else t.dtype
        return t.to(device, wanted)

    model._apply(convert)  # type: ignore[no-untyped-call]  # as Module.to does, which drops imaginary parts
    return model


def _digest(pieces: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece)
    return digest.hexdigest()


def _refuse_empty(parts: Partition, samples: Samples) -> None:
    for part, count in enumerate(parts.counts):
        if count == 0:
            name = parts.names[part]
            other = "test" if samples.split == "train" else "train"
            raise DataError(
                f"part {name} has no samples in the {samples.split} split of {samples.name}; "
                f"choose others with {arg('classes')} or pass {arg('split', other)}"
            )


def _check_contract(objective: Objective) -> None:
    """Run a few samples through model and loss, and refuse what cannot be analysed with a line that says why."""
    index = np.concatenate(objective.members)[: min(4, objective.batch_size + 1)]
    inputs, labels = objective.samples.batch(index, objective.device, objective.dtype)
    theta = [t.clone().requires_grad_() for t in objective.theta]

    def losses_of(some: slice) -> Tensor:
        with failures_named(inputs[some]), differentiable_attention():
            return objective.losses(theta, inputs[some].clone(), labels[some])  # models may overwrite their inputs

    values = losses_of(slice(None))
    if not isinstance(values, Tensor) or values.shape != (len(index),):
        shape = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
        raise InputError(
            f"the loss returned {shape} for a batch of {len(index)}: it must return one value per sample, "
            f'({len(index)},); use reduction="none"'
        )
    if not torch.isfinite(values).all():
        raise NumericalError(
            f"the loss of the first samples is {values.detach().tolist()}: look at the checkpoint's weights, "
            f"the normalisation of the data and {arg('dtype')}"
        )
    if not torch.equal(values, losses_of(slice(None))):
        raise InputError(
            "the loss differs between two runs on the same samples: is there dropout or noise in eval mode?"
        )
    # Not the first sample alone: a recurrent layer that takes the batch axis for time gives that one the right loss.
    alone = [losses_of(slice(i, i + 1)) for i in range(len(index))]
    spread = 1e-3 * (1 + values.abs().max())
    if (values - torch.stack([v.sum() for v in alone])).abs().max() > spread:
        raise InputError(
            "the loss of a sample depends on the other samples of its batch (batch norm without running statistics, "
            "or a contrastive loss): the loss of a part is then not a sum over its samples"
        )
    if not values.requires_grad or all(g is None for g in torch.autograd.grad(values.sum(), theta, allow_unused=True)):
        raise InputError("the loss does not depend on the chosen parameters: no gradient reaches them")
