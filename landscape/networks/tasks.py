"""Tasks: defaults for the loss and for other measures of a model's outputs.

The contract is one line: *a loss is a function of (the model's output, the target) with one value per sample*. A task
defines defaults: the loss, the distribution of which it is the negative log-likelihood, whether a sample has one class,
and which other measures are printed. A new task is one more entry of `TASKS`.

A sample of several tokens or pixels has the mean over its own: every sample counts alike, however long it is. Tokens
with the target -100 are left out; a sample that has no others has loss 0.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeAlias

import torch
from torch import Tensor

from landscape.autodiff import softmax, trees
from landscape.autodiff.trees import Tree
from landscape.errors import DataError
from landscape.networks import losses
from landscape.results.measures import F1, PERPLEXITY, SQUARED_ERROR, TOKEN_ACCURACY, Measure

Values: TypeAlias = Callable[[Tensor, Tree], Tensor]
"""(outputs, targets) -> one value per sample, (B,)."""

IGNORED = -100
"""The target of tokens and pixels that do not count, as PyTorch and Hugging Face write it."""


@dataclass(frozen=True)
class Measured:
    """A measure of how well a part of the data is predicted, and the sums that it is computed from."""

    measure: Measure
    sums: Callable[[Tensor, Tree], Tensor]  # (outputs, targets) -> (B, 2), the summands and the numbers of units


@dataclass(frozen=True, kw_only=True)
class Task:
    """Defaults around a loss."""

    name: str
    about: str  # of outputs and targets, for help and the documentation
    loss: str  # name of the loss
    values: Values | None = None  # the loss; None for those of `losses.LOSSES`, or of the user
    likelihood: Values | None = None  # -log p(target), for the Fisher matrix; with any loss for classes
    has_classes: bool = False  # a sample has one class: parts may be classes
    correct: Values | None = None  # whether a sample is predicted correctly, for the accuracy
    measures: tuple[Measured, ...] = field(default=())


def squared_error(outputs: Tensor, targets: Tree) -> Tensor:
    """Squared error of each sample, mean over its outputs.

    Args:
        outputs: (B, ...).
        targets: as many numbers.

    Returns:
        (B,).

    Raises:
        DataError: outputs and targets differ in number.
    """
    return _mean((outputs - _alike(outputs, targets)).square())


def binary_cross_entropy(outputs: Tensor, targets: Tree) -> Tensor:
    """Cross-entropy of yes/no labels, -y log s(z) - (1 - y) log s(-z) with the sigmoid s, mean over a sample's labels.

    Args:
        outputs: logits z, (B, ...).
        targets: y, as many numbers, 0 to 1.

    Returns:
        (B,), in nats.

    Raises:
        DataError: outputs and targets differ in number.
    """
    y = _alike(outputs, targets)
    return _mean(-y * softmax.log_sigmoid(outputs) - (1 - y) * softmax.log_sigmoid(-outputs))


def tokens(outputs: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of tokens: the mean over those tokens of a sample that are not ignored.

    Args:
        outputs: logits, (B, ..., C).
        targets: classes, (B, ...) integers, `IGNORED` for tokens that do not count.

    Returns:
        (B,), in nats.

    Raises:
        DataError: outputs and targets do not fit.
    """
    values, kept = token_losses(outputs, targets)
    return values.sum(1) / kept.sum(1).clamp(min=1)


def pixels(outputs: Tensor, targets: Tensor) -> Tensor:
    """Do the same as `tokens` for logits (B, C, ...) with classes along the second axis, as from convolutions."""
    return tokens(outputs.movedim(1, -1), targets)


def next_tokens(outputs: Tensor, targets: Tensor) -> Tensor:
    """Do the same as `tokens` for language models: the outputs at a token predict the next token."""
    return tokens(outputs[:, :-1], targets[:, 1:])


def token_losses(outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy of each token.

    Args:
        outputs: logits, (B, ..., C).
        targets: (B, ...) integers.

    Returns:
        (B, T) losses, 0 for ignored tokens; and (B, T), true for the others.

    Raises:
        DataError: outputs and targets do not fit.
    """
    if outputs.shape[:-1] != targets.shape:
        raise DataError(
            f"outputs {tuple(outputs.shape)} do not fit targets {tuple(targets.shape)}: there is a row of logits for "
            "each token, classes along the last axis (for classes along the second, as of pixels, take the task pixels)"
        )
    kept = targets != IGNORED
    found = softmax.log_softmax(outputs).gather(-1, targets.where(kept, 0)[..., None]).squeeze(-1)
    return torch.where(kept, -found, 0).flatten(1), kept.flatten(1)


def _mean(values: Tensor) -> Tensor:
    return values.flatten(1).mean(1) if values.ndim > 1 else values


def _alike(outputs: Tensor, targets: Tree) -> Tensor:
    """Return targets in the shape of the outputs; (B,) and (B, 1) would otherwise broadcast to (B, B)."""
    if not isinstance(targets, Tensor) or targets.numel() != outputs.numel():
        raise DataError(
            f"outputs {tuple(outputs.shape)} do not fit targets {trees.shown(targets)}: give one target for each "
            "output or, for classes, whole numbers"
        )
    return targets.reshape(outputs.shape).to(outputs.dtype)


def _right_class(outputs: Tensor, targets: Tensor) -> Tensor:
    top = outputs.max(1)
    labels = targets.argmax(1) if targets.is_floating_point() else targets
    return (top.indices == labels) & ~top.values.isnan()


def _right_side(outputs: Tensor, targets: Tensor) -> Tensor:
    return ((outputs > 0) == (_alike(outputs, targets) > 0.5)).flatten(1).all(1) & ~outputs.flatten(1).isnan().any(1)


def _found_labels(outputs: Tensor, targets: Tree) -> Tensor:
    """Return twice the number of true positives, and the number of true plus predicted labels, (B, 2)."""
    y, said = (t.reshape(len(outputs), -1) for t in (_alike(outputs, targets) > 0.5, outputs > 0))
    return torch.stack([2 * (said & y).sum(1), said.sum(1) + y.sum(1)], dim=1)


def _squares(outputs: Tensor, targets: Tree) -> Tensor:
    error = squared_error(outputs, targets)
    return torch.stack([error, torch.ones_like(error)], dim=1)


_SQUARED = Measured(SQUARED_ERROR, _squares)
_F1 = Measured(F1, _found_labels)


def _of_tokens(reach: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]) -> tuple[Measured, ...]:
    """Return perplexity and accuracy over all tokens, from the logits and targets that `reach` returns for a batch."""

    def losses_and_counts(outputs: Tensor, targets: Tensor) -> Tensor:
        values, kept = token_losses(*reach(outputs, targets))
        return torch.stack([values.sum(1), kept.sum(1)], dim=1)

    def hits_and_counts(outputs: Tensor, targets: Tensor) -> Tensor:
        logits, targets = reach(outputs, targets)
        kept = targets != IGNORED
        right = (logits.argmax(-1) == targets) & kept
        return torch.stack([right.flatten(1).sum(1), kept.flatten(1).sum(1)], dim=1)

    return Measured(PERPLEXITY, losses_and_counts), Measured(TOKEN_ACCURACY, hits_and_counts)


TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task(
            name="classification",
            about="logits (B, C); a class (B,), or shares of the classes (B, C)",
            loss="ce",
            likelihood=losses.cross_entropy,
            has_classes=True,
            correct=_right_class,
        ),
        Task(
            name="regression",
            about="outputs (B, ...); as many numbers",
            loss="mse",
            values=squared_error,
            likelihood=squared_error,
            measures=(_SQUARED,),
        ),
        Task(
            name="binary",
            about="one logit (B,) or (B, 1); 0 or 1",
            loss="bce",
            values=binary_cross_entropy,
            likelihood=binary_cross_entropy,
            has_classes=True,
            correct=_right_side,
            measures=(_F1,),
        ),
        Task(
            name="multilabel",
            about="logits (B, L); 0 or 1 for each label (B, L)",
            loss="bce-labels",
            values=binary_cross_entropy,
            likelihood=binary_cross_entropy,
            measures=(_F1,),
        ),
        Task(
            name="tokens",
            about="logits (B, T, C); a class of each token (B, T), -100 for none",
            loss="ce-tokens",
            values=tokens,
            likelihood=tokens,
            measures=_of_tokens(lambda outputs, targets: (outputs, targets)),
        ),
        Task(
            name="pixels",
            about="logits (B, C, H, W); a class of each pixel (B, H, W), -100 for none",
            loss="ce-pixels",
            values=pixels,
            likelihood=pixels,
            measures=_of_tokens(lambda outputs, targets: (outputs.movedim(1, -1), targets)),
        ),
        Task(
            name="next-token",
            about="logits (B, T, C); the tokens themselves (B, T), -100 for none",
            loss="ce-next-token",
            values=next_tokens,
            likelihood=next_tokens,
            measures=_of_tokens(lambda outputs, targets: (outputs[:, :-1], targets[:, 1:])),
        ),
        Task(name="own", about="anything that a loss function of (output, target) takes", loss="own"),
    )
}
"""By name, in the order in which help lists them."""

OWN_LOSS = "model"
"""The name of the loss that a model returns itself, sample by sample: `output.loss`."""


def names() -> tuple[str, ...]:
    """Return the names of the tasks."""
    return tuple(TASKS)


def loss_names() -> tuple[str, ...]:
    """Return the names of all losses: those for classes, those of other tasks, and that of the model itself."""
    return (*losses.names(), *(task.loss for task in TASKS.values() if task.values is not None), OWN_LOSS)


def of_loss(name: str) -> Task | None:
    """Return the task of a named loss; None if the loss is for classes or the user's."""
    return next((task for task in TASKS.values() if task.values is not None and task.loss == name), None)
