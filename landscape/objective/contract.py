"""Check that L_p is one fixed function of the parameters, on a few samples, before and after an analysis.

A loss that averages, samples that influence each other, dropout in eval mode, a counter that changes the output after
many calls: each of these makes the numbers meaningless, and the numbers themselves do not show it.
"""

import weakref
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from landscape.autodiff import memory, randomness, trees
from landscape.autodiff.differentiable import allow_gradients, differentiable_attention
from landscape.autodiff.trees import Tree
from landscape.errors import InputError, NumericalError, arg
from landscape.networks import overflow
from landscape.networks.models import failures_named

if TYPE_CHECKING:
    from landscape.objective.objective import Objective

_FEW = 8  # samples of the first and of a later batch that are evaluated again at the end
_REPEATS = 64  # evaluations of these by a model that draws random numbers, of which all must agree


@dataclass(frozen=True, eq=False)
class Kept:
    """Losses of a few samples at the time when the objective was made."""

    batches: tuple[np.ndarray, ...]  # positions of the first samples, and of some later ones
    losses: tuple[Tensor, ...]


@dataclass(frozen=True, eq=False)
class Origin:
    """The caller's model, which the objective copied, and its buffers at that time."""

    model: "weakref.ref[nn.Module]"
    buffers: dict[str, Tensor]

    @classmethod
    def of(cls, model: nn.Module) -> "Origin":
        """Store the present state of a model."""
        parameters = dict(model.named_parameters(remove_duplicate=False))
        state = {n: t for n, t in model.state_dict().items() if isinstance(t, Tensor) and n not in parameters}
        return cls(weakref.ref(model), {name: t.clone() for name, t in state.items()})

    def refuse_change(self, copy: nn.Module) -> None:
        """Refuse the model if it has changed since it was copied.

        Args:
            copy: has the parameters at that time. Its buffers may differ, because a forward pass may change them.

        Raises:
            InputError: a parameter, or a buffer that a checkpoint contains, has changed.
        """
        model = self.model()
        if model is None:
            return
        now, then = ({n: t for n, t in m.state_dict().items() if isinstance(t, Tensor)} for m in (model, copy))
        then |= self.buffers
        if now.keys() != then.keys() or not all(_same(t, then[name]) for name, t in now.items()):
            raise InputError(
                "the model has changed since the objective was made, which holds a copy of its old weights: take "
                "objective.at(model) for the present ones, or make the objective of a copy of the model to keep the old"
            )


def _same(now: Tensor, then: Tensor) -> bool:
    """Compare tensors in the dtype of `then`; nan is equal to nan."""
    if now.shape != then.shape:
        return False
    now = now.detach().to(then.device, then.dtype)
    return torch.equal(now, then) or bool(((now == then) | (now.isnan() & then.isnan())).all())


def check(objective: "Objective", origin: nn.Module) -> Kept:
    """Evaluate model and loss on a few samples, and refuse what cannot be analysed.

    Args:
        objective: model, loss and data.
        origin: the caller's model, of which the objective has a copy; it is not run.

    Returns:
        The losses with which `verify` compares at the end of an analysis.

    Raises:
        InputError: the loss is not one fixed number for each sample, or does not depend on the parameters, or a forward
            pass changes these.
        NumericalError: the loss is not finite.
    """
    return memory.halving(partial(_checked, objective, origin))


def reason(objective: "Objective", inputs: Tree) -> str:
    """Say why the losses of some samples are not finite, for a message."""
    return overflow.explained(
        objective.model, inputs, lambda: objective.logits(objective.theta, inputs), objective.dtype
    )


def _remedy(values: object, targets: Tree, n: int) -> str:
    """Say what the user can do so that a loss returns one value per sample."""
    flat = isinstance(targets, Tensor) and targets.ndim == 1
    if flat and isinstance(values, Tensor) and values.shape == (n, n) and n > 1:
        return f"targets ({n},) were broadcast against the output, each with all of it: give both one shape"
    if isinstance(values, Tensor) and values.dim() > 1 and len(values) == n:
        axes = ", ".join(map(str, range(1, values.dim())))
        return f"take the mean over the other axes, as by loss(output, target).mean(({axes},))"
    return 'use reduction="none"'


def _checked(objective: "Objective", origin: nn.Module) -> Kept:
    for name, t in zip(objective.layout.names, objective.theta, strict=True):
        overflow.refuse_huge(name, t)
    index = np.concatenate(objective.members)[: min(4, objective.batch_size + 1)]
    inputs, targets = objective.samples.batch(index, objective.device, objective.dtype)
    if _takes_gradients(objective, inputs):
        allow_gradients(objective.model)
    _refuse_moving(objective, origin, inputs)
    theta = [t.clone().requires_grad_() for t in objective.theta]

    def losses_of(some: slice) -> Tensor:
        with failures_named(trees.take(inputs, some)), differentiable_attention():
            return objective.losses(theta, trees.take(inputs, some), trees.take(targets, some))

    values = losses_of(slice(None))
    if not isinstance(values, Tensor) or values.shape != (len(index),):
        shape = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
        raise InputError(
            f"the loss returned {shape} for a batch of {len(index)}: it must return one value per sample, "
            f"({len(index)},); {_remedy(values, targets, len(index))}"
        )
    if not torch.isfinite(values).all():
        raise NumericalError(
            f"the loss of the first samples is {values.detach().tolist()}: {reason(objective, inputs)}"
        )
    # Not only the first sample: its loss is right even if a recurrent layer uses the batch axis as time.
    alone = [losses_of(slice(i, i + 1)) for i in range(len(index))]
    kept = _steady(objective)
    _refuse_mixed(values, torch.stack([v.sum() for v in alone]))
    for index, found in zip(kept.batches, kept.losses, strict=True):
        pieces = np.split(index, [len(index) * 3 // 8])  # of other sizes, so that other samples come together
        _refuse_mixed(found, torch.cat([_losses(objective, piece) for piece in pieces if len(piece)]))
    with failures_named(inputs), differentiable_attention():  # a model may overwrite what its backward pass needs
        slopes = torch.autograd.grad(values.sum(), theta, allow_unused=True) if values.requires_grad else ()
    if all(g is None for g in slopes):
        raise InputError(
            f"the loss does not depend on the chosen parameters: do not detach it, or change {arg('params')}"
        )
    return kept


def _refuse_moving(objective: "Objective", origin: nn.Module, inputs: Tree) -> None:
    """Refuse a model whose forward pass changes its parameters in place, so that its loss is no function of them.

    The objective's copy has run before, and what it changed may not change again: the caller's parameters are tried.

    Raises:
        InputError: it does.
    """
    embeddings = [(n, m) for n, m in origin.named_modules() if isinstance(m, nn.Embedding | nn.EmbeddingBag)]
    moved = next((f"{n}.weight" for n, m in embeddings if m.max_norm is not None), None)
    if moved is None:
        model, varying = objective.model, objective.layout.names
        others = [n for named in (model.named_parameters(), model.named_buffers()) for n, _ in named]
        own = dict(zip([n for n in others if n not in varying], objective.fixed, strict=True))
        own |= dict(zip(varying, objective.theta, strict=True))
        theirs = {n: t.detach() for n, t in origin.named_parameters() if n in own}
        taken = {n: theirs.get(n, t).to(t.device, t.dtype, copy=True) for n, t in own.items()}
        with failures_named(inputs), differentiable_attention():
            objective.logits([taken[n] for n in varying], inputs, [taken[n] for n in others if n not in varying])
        moved = next((n for n, t in theirs.items() if not _same(t, taken[n])), None)
    if moved is not None:
        raise InputError(
            f"the model's forward pass changes its parameter {moved.removeprefix('.')} in place, as max_norm does that "
            "renormalises an embedding, so that its loss is no function of its parameters: change the parameter once, "
            "and build the model without that, as by max_norm=None"
        )


def _refuse_mixed(together: Tensor, apart: Tensor) -> None:
    """Compare the losses of samples in one batch with those of the same samples in smaller batches."""
    if ((together - apart).abs() > 1e-3 * (1 + together.abs().nan_to_num(posinf=0).max())).any():
        raise InputError(
            "the loss of a sample depends on the other samples of its batch (batch norm without running statistics, a "
            "contrastive loss, targets (B,) that are broadcast against an output (B, 1), a choice by the sum of a "
            "batch), so that the loss of a part is not a sum over its samples: use a model and a loss that treat each "
            "sample alone"
        )


def _takes_gradients(objective: "Objective", inputs: Tree) -> bool:
    """Say whether the forward pass needs gradient mode, for example because it calls torch.autograd.grad."""
    try:
        with differentiable_attention(), torch.no_grad():
            objective.logits(objective.theta, inputs)
    except RuntimeError as error:
        return "require grad" in str(error)
    except (
        Exception
    ):  # a user's model may raise anything; `check` says it in a line where it raises it with gradients too
        return False
    return False


def verify(objective: "Objective", kept: Kept) -> None:
    """Evaluate the few samples again, and refuse the numbers if model, loss or data have changed in between.

    Args:
        objective: the argument of `check`.
        kept: the return value of `check`.

    Raises:
        InputError: a loss has changed.
    """
    eps = torch.finfo(objective.dtype).eps
    for index, before in zip(kept.batches, kept.losses, strict=True):
        now = memory.halving(partial(_losses, objective, index))
        off = (now - before).abs() > 1e3 * eps * (1 + before.abs())  # operations of a GPU may add up in any order
        if bool((off & ~(now.isnan() & before.isnan())).any()):
            raise InputError(
                f"the loss of sample {int(index[int(off.int().argmax())])} differs between the start and the end of "
                "the analysis: the data are random, or the model keeps a counter or a buffer that changes its output; "
                "make both deterministic"
            )


def _steady(objective: "Objective") -> Kept:
    """Evaluate a few samples twice, or many times if the model draws random numbers, whose effect may be rare."""
    everyone = np.concatenate(objective.members)
    later = everyone[min(_FEW, len(everyone)) :]
    some = np.random.default_rng(len(everyone)).choice(later, min(_FEW, len(later)), replace=False)
    batches = tuple(b for b in (everyone[:_FEW], np.sort(some)) if len(b))
    before = randomness.state()
    losses = tuple(_losses(objective, b) for b in batches)
    repeats = _REPEATS if randomness.state() != before else 1
    for _ in range(repeats):
        for b, first in zip(batches, losses, strict=True):
            if not torch.equal(_losses(objective, b).nan_to_num(), first.nan_to_num()):
                raise InputError(
                    "the loss differs between two runs on the same samples: is there dropout or noise in eval mode, or "
                    "augmentation in the data?"
                )
    return Kept(batches, losses)


def _losses(objective: "Objective", index: np.ndarray) -> Tensor:
    with differentiable_attention(), torch.no_grad():
        found = []
        for some in np.array_split(index, -(-len(index) // objective.batch_size)):
            inputs, targets = objective.samples.batch(some, objective.device, objective.dtype)
            with failures_named(inputs):
                found.append(objective.losses(objective.theta, inputs, targets).detach())
    return torch.cat(found)
