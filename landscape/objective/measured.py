"""Choose the task and the loss of a model on data, and express the loss as a function of rows z of outputs."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from landscape.autodiff import trees
from landscape.autodiff.called import call
from landscape.autodiff.differentiable import differentiable_attention
from landscape.autodiff.trees import Tree
from landscape.autodiff.wide import wide
from landscape.data.samples import Samples, check_counts
from landscape.errors import InputError, arg, check_choice, unknown
from landscape.networks import losses, outputs, tasks
from landscape.networks.models import failures_named
from landscape.networks.outputs import Logits, Outputs
from landscape.networks.tasks import TASKS, Task

_EXAMPLES = 2  # number of samples for a test of the model's outputs: the axis of this length is the axis of samples
_CLASSES = 64  # the most at which a user's loss is evaluated to tell it from others of its name


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A loss, its task, and the layout of the model's output."""

    task: Task
    outputs: Outputs
    loss: Callable[[Tensor, Tree], Tensor]  # (z, targets) -> (B,)
    likelihood: Callable[[Tensor, Tree], Tensor] | None
    name: str  # of the loss


@dataclass(frozen=True)
class _Restored:
    """A loss of the model's outputs, as a function of rows z."""

    loss: Callable[[Any, Tree], Tensor]
    outputs: Outputs

    def __call__(self, z: Tensor, targets: Tree) -> Tensor:
        return self.loss(self.outputs.restore(z), targets)


def settle(
    model: nn.Module,
    samples: Samples,
    loss: str | Callable[[Any, Tree], Tensor] | None,
    task: str | None,
    index: int | None,
    device: torch.device,
    dtype: torch.dtype,
) -> Measured:
    """Choose task, loss and layout of the outputs.

    Args:
        model: in eval mode, on the device.
        samples: the data.
        loss: see `Objective.build`.
        task: see `Objective.build`.
        index: which of several outputs to use.
        device: of the model.
        dtype: of the model.

    Returns:
        Task and loss.

    Raises:
        InputError: they do not fit each other, the outputs or the targets; or the loss takes training samples of each
            class, which the data do not state.
    """
    chosen = _task(samples, loss, task)
    if loss is None and chosen.name == "own":
        raise InputError(f"the task own needs a {arg('loss')}, a function of (output, target)")
    name = loss if isinstance(loss, str) else getattr(loss, "__qualname__", type(loss).__name__)
    name = chosen.loss if loss is None else name
    if name == tasks.OWN_LOSS:
        own = outputs.OwnLoss()
        return Measured(task=chosen, outputs=own, loss=lambda z, _: z[:, 0], likelihood=None, name=name)
    if chosen.name == "classification":
        found: Outputs = outputs.Logits(len(samples.class_names), index)
        if isinstance(loss, str) or loss is None:
            if losses.takes_counts(name):
                check_counts(samples, "loss", name)
            function = losses.build(name, samples.class_counts)
        else:
            function = loss
        if losses.is_plain(function):
            function, name = losses.cross_entropy, chosen.loss
        return Measured(task=chosen, outputs=found, loss=function, likelihood=chosen.likelihood, name=name)
    output, n = _example(model, samples, device, dtype)
    if loss is None or (isinstance(loss, str) and tasks.of_loss(loss) is not None):
        found = outputs.main(output, n, index)
        function = chosen.values or losses.cross_entropy
        of_rows = _Restored(function, found)
        return Measured(task=chosen, outputs=found, loss=of_rows, likelihood=of_rows, name=name)
    function = losses.own(loss) if isinstance(loss, str) else loss
    found = outputs.whole(output, n)
    return Measured(task=chosen, outputs=found, loss=_Restored(function, found), likelihood=None, name=name)


def at_drawn_outputs(found: Measured, samples: Samples, dtype: torch.dtype) -> list[str]:
    """Return two means of a loss, which tell it from others of its name, as those of closures.

    They have digits that rounding does not change, and do not depend on the data. The first outputs are between 0 and
    1, as a loss of probabilities needs them. What a loss does not accept is left out. All is on the CPU: on a GPU an
    output that a loss does not accept may end every later computation.

    Args:
        found: a user's loss.
        samples: the data, which show the form of the targets.
        dtype: of the outputs.

    Returns:
        The means that there are.
    """
    targets = samples.batch(np.arange(min(_EXAMPLES, len(samples))), torch.device("cpu"), dtype)[1]
    generator = torch.Generator().manual_seed(0)

    def drawn(t: Tensor) -> Tensor:
        return torch.rand(t.shape, generator=generator, dtype=torch.float64).to(t)

    if isinstance(found.outputs, Logits) and isinstance(targets, Tensor) and targets.ndim == 1:
        targets = torch.arange(min(_CLASSES, found.outputs.size))
    else:
        targets = trees.mapped(lambda t: drawn(t) if t.is_floating_point() else torch.zeros_like(t), targets)
    example, means = torch.empty(trees.size(targets), found.outputs.size, dtype=dtype), list[str]()
    for scale in (1, 10):
        z = scale * drawn(example)
        with suppress(Exception), differentiable_attention():
            means.append(f"{wide(found.loss(z, targets)).mean().item():.4g}")
    return means


def _task(samples: Samples, loss: str | Callable[..., Any] | None, task: str | None) -> Task:
    """Return the given task, or infer it from loss and targets."""
    named = tasks.of_loss(loss) if isinstance(loss, str) else None
    if isinstance(loss, str) and ":" not in loss and loss not in tasks.loss_names():
        raise InputError(unknown(loss, tasks.loss_names(), "loss", more=" or package.module:callable"))
    if task is not None:
        check_choice("task", task, TASKS)
        if named is not None and named.name != task:
            raise InputError(f"{arg('loss', loss)} is that of the task {named.name}: leave {arg('task', task)} out")
        if isinstance(loss, str) and loss in losses.names() and task != "classification":
            raise InputError(f"{arg('loss', loss)} is for classes: leave {arg('task', task)} out, or the loss")
        if TASKS[task].has_classes and not samples.class_names:
            raise InputError(f"the task {task} needs targets that are classes, one for each sample")
        return TASKS[task]
    if named is not None:
        return named
    if loss == tasks.OWN_LOSS:
        return TASKS["own"]
    if samples.class_names:
        return TASKS["classification"]
    if loss is not None and not (isinstance(loss, str) and loss in losses.names()):
        return TASKS["own"]
    if isinstance(loss, str):
        raise InputError(f"{arg('loss', loss)} is for classes, and the data have none: choose another loss")
    targets = trees.leaves(samples.batch(np.zeros(1, dtype=np.int64))[1])
    if len(targets) == 1 and targets[0].is_floating_point():
        return TASKS["regression"]
    raise InputError(
        f"the targets do not determine the task: pass {arg('task')}, one of {', '.join(TASKS)}, or {arg('loss')}"
    )


def _example(model: nn.Module, samples: Samples, device: torch.device, dtype: torch.dtype) -> tuple[Any, int]:
    """Return the model's output for a few samples, and their number."""
    n = min(_EXAMPLES, len(samples))
    inputs = samples.batch(np.arange(n), device, dtype)[0]
    with failures_named(inputs), differentiable_attention(), torch.no_grad():
        return call(model, trees.clone(inputs)), n
