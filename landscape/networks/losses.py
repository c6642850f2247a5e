"""Losses of single samples: `loss(logits (B, C), labels (B,)) -> (B,)`, built by name.

An analysis sums these over any part of the data, so a loss must not average, nor couple the samples of a batch. All
losses are smooth in the logits and use only operations that `torch.func` can differentiate twice and under vmap.
"""

import inspect
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from landscape.autodiff import softmax
from landscape.autodiff.wide import wide
from landscape.callables import failures_of, resolve_call
from landscape.errors import InputError, arg, unknown

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def names() -> tuple[str, ...]:
    """Return the names that `build` accepts, besides a user's package.module:callable."""
    return tuple(LOSSES)


def build(name: str, class_counts: np.ndarray, **options: float) -> Callable[..., Any]:
    """Make a loss that returns one value per sample.

    Args:
        name: one of `names()`, or package.module:callable, which is used unchanged.
        class_counts: (C,) number of training samples of each class.
        options: options of the loss, such as tau=1.5; others have the defaults of the function that makes it.

    Returns:
        A function of logits (B, C) and labels (B,) that returns (B,) values.

    Raises:
        InputError: an unknown name or option; or the loss needs training samples of every class, and a class has none.
    """
    if ":" in name:
        if options:
            raise InputError(f"{arg('loss', name)} accepts no options, got {', '.join(options)}: leave them out")
        return own(name)
    if name not in LOSSES:
        raise InputError(unknown(name, LOSSES, "loss", more=" or package.module:callable"))
    make = LOSSES[name]
    known = list(inspect.signature(make).parameters)
    arguments = [class_counts] if takes_counts(name) else []
    for option in options:
        if option not in known:
            choice = ", ".join(known[len(arguments) :]) or "none"
            raise InputError(f"{arg('loss', name)} has no option {option}; its options: {choice}")
    return make(*arguments, **options)


def takes_counts(name: str) -> bool:
    """Say whether a loss is made of the training samples of each class."""
    return name in LOSSES and "class_counts" in inspect.signature(LOSSES[name]).parameters


def of_classes(loss: Callable[..., Any], targets: Any) -> bool:
    """Say whether a loss is the cross-entropy of classes, whose second derivative in the logits is diag(p) - p p^T."""
    return loss is cross_entropy and not targets.is_floating_point()


def uncertainty(z: torch.Tensor) -> torch.Tensor:
    """Return tr (diag(p) - p p^T) = 1 - sum p^2 for the probabilities of logits: (B, C) -> (B,), as float64."""
    p = wide(z).softmax(1)
    return (p * softmax.others(p)).sum(1)


def is_plain(loss: object) -> bool:
    """Say whether a loss is PyTorch's module for the cross-entropy of each sample, with no option that changes it."""
    if type(loss) is not torch.nn.CrossEntropyLoss:
        return False
    return loss.reduction == "none" and loss.weight is None and loss.label_smoothing == 0 and loss.ignore_index < 0


def own(name: str) -> Callable[..., Any]:
    """Return a user's loss by its name; with arguments, as in `mine:focal(gamma=2)`, the result of calling it."""
    function, args, kwargs = resolve_call(name, "loss")
    if "(" not in name:
        return function
    with failures_of(lambda: f"{arg('loss', name)} fails"):
        made: Callable[..., Any] = function(*args, **kwargs)
    return made


def cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of each sample: -log softmax(z)_y = log sum_c exp(z_c) - z_y.

    Args:
        logits: z, (B, C).
        labels: y, (B,) integers.

    Returns:
        Losses, (B,), in nats.
    """
    return softmax.cross_entropy(logits, labels)


def plain() -> Loss:
    """Make the cross-entropy, -log softmax(z)_y."""
    return cross_entropy


def focal(*, gamma: float = 2.0) -> Loss:
    """Make the focal loss, which gives less weight to well-classified samples: -(1 - p_y)^gamma log p_y.

    Args:
        gamma: at least 0; with 0 the loss is the cross-entropy. The authors use 2.

    Returns:
        The loss of each sample.

    Raises:
        InputError: gamma is negative or not finite.

    Source: Lin et al. 2017, "Focal loss for dense object detection", equation 4.
    """
    _check_not_negative("focal", gamma=gamma)

    def loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        others = logits.masked_fill(_is_own(logits, labels), -math.inf).logsumexp(dim=-1)
        lead = logits.gather(-1, labels[..., None]).squeeze(-1) - others
        # p_y = sigmoid(lead), so both logarithms are accurate near 0 and near 1
        return -torch.exp(gamma * softmax.log_sigmoid(-lead)) * softmax.log_sigmoid(lead)

    return loss


def ldam(class_counts: np.ndarray, *, max_margin: float = 0.5, scale: float = 30.0) -> Loss:
    """Make the cross-entropy of cosine logits with a margin that is larger for rare classes: CE(z - s m_y e_y, y).

    m_c = max_margin * n_c^(-1/4) / max_k n_k^(-1/4): the rarest class has the margin max_margin. The logits z = s cos
    come from `models.NormedLinear`, so margins are in units of the cosine. The authors' code multiplies by s in the
    loss instead.

    Args:
        class_counts: n, (C,).
        max_margin: in units of the cosine, at least 0.
        scale: s, the scale of the cosine classifier.

    Returns:
        The loss of each sample.

    Raises:
        InputError: a class has no training samples, or an option is negative or not finite.

    Source: Cao et al. 2019, "Learning imbalanced datasets with label-distribution-aware margin loss", section 3,
    and the released kaidic/LDAM-DRW, losses.py.
    """
    _check_not_negative("ldam", max_margin=max_margin, scale=scale)
    counts = _positive(class_counts, "ldam")
    shift = torch.from_numpy(scale * max_margin * (counts.min() / counts) ** 0.25)

    def loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return cross_entropy(logits - _like(shift, logits) * _is_own(logits, labels), labels)

    return loss


def logit_adjusted(class_counts: np.ndarray, *, tau: float = 1.0) -> Loss:
    """Make the cross-entropy of logits that are shifted by the log prior: CE(z + tau log pi, y).

    pi_c = n_c / N is the frequency of class c in the training data. The shift requires a margin for the logits of rare
    classes, so that z itself estimates class-balanced scores.

    Args:
        class_counts: n, (C,).
        tau: at least 0; with 1, z estimates class-balanced scores.

    Returns:
        The loss of each sample.

    Raises:
        InputError: a class has no training samples, so its log prior is not finite; or tau is negative or not finite.

    Source: Menon et al. 2021, "Long-tail learning via logit adjustment", equation 10.
    """
    _check_not_negative("logit-adjust", tau=tau)
    shift = torch.from_numpy(tau * _log_prior(class_counts, "logit-adjust"))

    def loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return cross_entropy(logits + _like(shift, logits), labels)

    return loss


def vector_scaling(class_counts: np.ndarray, *, gamma: float = 0.15, tau: float = 1.25) -> Loss:
    """Make the cross-entropy of logits that are scaled and shifted class by class: CE(Delta z + iota, y).

    Delta_c = (n_c / n_max)^gamma and iota_c = tau log(n_c / N). The shift has an effect early in training; when the
    training data are fitted perfectly, only the factors move the boundaries between classes. With gamma = 0 the loss is
    the logit adjustment.

    Args:
        class_counts: n, (C,).
        gamma: at least 0. The defaults of gamma and tau are the paper's values for long-tailed CIFAR-10
            (n_max / n_min = 100); the authors tune both for each data set, and the defaults of their code are 0.3 and
            1.
        tau: at least 0.

    Returns:
        The loss of each sample.

    Raises:
        InputError: a class has no training samples, or an option is negative or not finite.

    Source: Kini et al. 2021, "Label-imbalanced and group-sensitive classification under overparameterization",
    and the released orparask/VS-Loss, class_imbalance/losses.py.
    """
    _check_not_negative("vs", gamma=gamma, tau=tau)
    shift = torch.from_numpy(tau * _log_prior(class_counts, "vs"))
    counts = _positive(class_counts, "vs")
    factor = torch.from_numpy((counts / counts.max()) ** gamma)

    def loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return cross_entropy(_like(factor, logits) * logits + _like(shift, logits), labels)

    return loss


def balanced(class_counts: np.ndarray) -> Loss:
    """Make the cross-entropy times w_y = N / (C n_y), so that all classes have the same total weight.

    Its mean over the long-tailed training set is the mean over classes of their mean cross-entropy.

    Args:
        class_counts: n, (C,).

    Returns:
        The loss of each sample.

    Raises:
        InputError: a class has no training samples, so its weight is not finite.

    Source: Cui et al. 2019, "Class-balanced loss based on effective number of samples", the limit beta -> 1.
    """
    counts = _positive(class_counts, "balanced")
    weights = torch.from_numpy(counts.sum() / (len(counts) * counts))

    def loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return _like(weights, logits)[labels] * cross_entropy(logits, labels)

    return loss


LOSSES: dict[str, Callable[..., Loss]] = {
    "ce": plain,
    "focal": focal,
    "ldam": ldam,
    "logit-adjust": logit_adjusted,
    "vs": vector_scaling,
    "balanced": balanced,
}
"""Each loss's name, and the function that makes it: of the class counts, if it has an argument `class_counts`, and of
its options. Help, errors and the reference read the names here and the first sentence of each function."""


def _check_not_negative(name: str, **options: float) -> None:
    for option, value in options.items():
        if not 0 <= value < math.inf:
            raise InputError(f"{option} of {arg('loss', name)} must be a finite number of at least 0, got {value:g}")


def _positive(class_counts: np.ndarray, name: str) -> np.ndarray:
    counts = np.asarray(class_counts, dtype=np.float64)
    for c in np.flatnonzero(counts <= 0)[:1]:
        raise InputError(
            f"{arg('loss', name)} needs training samples of every class, class {c} has none; try {arg('loss', 'ce')}"
        )
    return counts


def _log_prior(class_counts: np.ndarray, name: str) -> np.ndarray:
    counts = _positive(class_counts, name)
    log_prior: np.ndarray = np.log(counts / counts.sum())
    return log_prior


def _is_own(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Mark the logit of each sample's label, (B, C)."""
    return labels[..., None] == torch.arange(logits.shape[-1], device=logits.device)


def _like(per_class: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    if logits.shape[-1] != len(per_class):
        raise InputError(f"the model has {logits.shape[-1]} outputs, the data {len(per_class)} classes")
    # Copied each time, because a copy made within a transform of torch.func is invalid after it.
    return per_class.to(device=logits.device, dtype=logits.dtype, non_blocking=True)
