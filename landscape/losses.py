"""Losses of single samples: `loss(logits (B, C), labels (B,)) -> (B,)`, built by name.

The analysis adds these up over any part of the data, so a loss may not average, nor couple the samples of a batch.
All are smooth in the logits and made of operations that `torch.func` differentiates, twice and under vmap.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from landscape.callables import resolve
from landscape.errors import InputError

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def names() -> tuple[str, ...]:
    """Return the names that `build` knows, besides users' own package.module:callable."""
    return ("ce", "logit-adjust", "balanced")


def build(name: str, class_counts: np.ndarray) -> Callable[..., Any]:
    """Make a loss that gives one value per sample.

    Args:
        name: one of `names()`, or package.module:callable, which is taken as it is.
        class_counts: (C,) training samples of each class.

    Returns:
        A function of logits (B, C) and labels (B,) that returns (B,) values.

    Raises:
        InputError: an unknown name, or a loss that needs training samples of every class where one has none.
    """
    if ":" in name:
        return resolve(name, "loss")
    if name == "ce":
        return cross_entropy
    if name == "logit-adjust":
        return logit_adjusted(class_counts)
    if name == "balanced":
        return balanced(class_counts)
    raise InputError(f"no loss {name!r}; choose from {', '.join(names())} or package.module:callable")


def cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of each sample: -log softmax(z)_y = log sum_c exp(z_c) - z_y.

    Args:
        logits: z, (B, C).
        labels: y, (B,) integers.

    Returns:
        Losses, (B,), in nats.
    """
    return F.cross_entropy(logits, labels, reduction="none")


def logit_adjusted(class_counts: np.ndarray) -> Loss:
    """Make the cross-entropy of logits that are shifted by the log prior: CE(z + tau log pi, y), tau = 1.

    pi_c = n_c / N is the share of class c in the training data. The shift asks the logits of rare classes for a
    margin, so that z itself estimates class-balanced scores.

    Args:
        class_counts: n, (C,).

    Returns:
        The loss of each sample.

    Raises:
        InputError: a class has no training samples; its log prior is not finite.

    Source: Menon et al. 2021, "Long-tail learning via logit adjustment", equation 10.
    """
    counts = _positive(class_counts, "logit-adjust")
    log_prior = torch.from_numpy(np.log(counts / counts.sum()))

    def loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return cross_entropy(logits + _like(log_prior, logits), labels)

    return loss


def balanced(class_counts: np.ndarray) -> Loss:
    """Make the cross-entropy times w_y = N / (C n_y), so that every class weighs the same.

    The mean over the long-tailed training set is then the mean over classes of their mean cross-entropy.

    Args:
        class_counts: n, (C,).

    Returns:
        The loss of each sample.

    Raises:
        InputError: a class has no training samples; its weight is not finite.

    Source: Cui et al. 2019, "Class-balanced loss based on effective number of samples", the limit beta -> 1.
    """
    counts = _positive(class_counts, "balanced")
    weights = torch.from_numpy(counts.sum() / (len(counts) * counts))

    def loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return _like(weights, logits)[labels] * cross_entropy(logits, labels)

    return loss


def _positive(class_counts: np.ndarray, name: str) -> np.ndarray:
    counts = np.asarray(class_counts, dtype=np.float64)
    for c in np.flatnonzero(counts <= 0)[:1]:
        raise InputError(f"--loss {name} needs training samples of every class, class {c} has none; try --loss ce")
    return counts


def _like(per_class: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    if logits.shape[-1] != len(per_class):
        raise InputError(f"the model has {logits.shape[-1]} outputs, the data {len(per_class)} classes")
    return per_class.to(device=logits.device, dtype=logits.dtype)
