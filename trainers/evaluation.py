"""Evaluation of a network on samples, for each class: loss, accuracy, features, agreement of gradients."""

import dataclasses
import math
from collections.abc import Collection
from contextlib import AbstractContextManager, nullcontext
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from landscape.autodiff import per_sample
from landscape.autodiff.batch_statistics import coupling
from landscape.autodiff.called import evaluating
from landscape.autodiff.sample_rows import SampleRows
from landscape.autodiff.wide import wide
from landscape.data.datasets import Samples
from landscape.networks import classifiers, losses, models
from landscape.results import History
from landscape.results.grouping import GROUPINGS, Thresholds
from trainers.batches import Batches

BY_COUNT = GROUPINGS["many-medium-few"]
"""The groups of classes for which accuracies are reported."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Scores:
    """Sums over the samples of each class; C classes, N samples."""

    loss_sums: np.ndarray  # (C,) of cross-entropies, float64
    loss_squares: np.ndarray  # (C,) of the squares of their differences from the class's mean
    correct: np.ndarray  # (C,) int64
    counts: np.ndarray  # (C,) int64
    features: Tensor | None  # (N, F) on the CPU, if asked for

    @property
    def loss(self) -> float:
        """Mean over the samples."""
        return float(self.loss_sums.sum() / self.counts.sum())

    @property
    def accuracy(self) -> float:
        """Share of the samples."""
        return float(self.correct.sum() / self.counts.sum())

    @property
    def loss_per_class(self) -> np.ndarray:
        """Mean over each class's samples, (C,); nan for a class without samples."""
        return np.asarray(self.loss_sums / self._known)

    @property
    def loss_stderr(self) -> float:
        """Standard error of `loss` over the samples; nan for one sample."""
        between = np.nansum(self.counts * (self.loss_per_class - self.loss) ** 2)
        return float(_stderr(self.loss_squares.sum() + between, self.counts.sum()))

    @property
    def loss_per_class_stderr(self) -> np.ndarray:
        """Standard errors of `loss_per_class` over the samples, (C,); nan for a class of fewer than two."""
        return _stderr(self.loss_squares, self.counts)

    @property
    def accuracy_per_class(self) -> np.ndarray:
        """Accuracy on each class's samples, (C,); nan for a class without samples."""
        return np.asarray(self.correct / self._known)

    @property
    def _known(self) -> np.ndarray:
        return np.where(self.counts > 0, self.counts, np.nan)


def _stderr(squares: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return standard errors of means of `counts` values from the sums of squares of their differences from these."""
    return np.sqrt(squares / np.where(counts > 1, counts * (counts - 1.0), np.nan))


@torch.no_grad()
def evaluate(
    model: nn.Module,
    samples: Samples,
    *,
    classifier: str | None = None,
    batch_size: int = 256,
    bf16: bool = False,
    workers: int = 0,
) -> Scores:
    """Evaluate a model in eval mode, without augmentation; the modes of its modules are restored.

    Args:
        model: inputs (B, ...) -> logits (B, C).
        samples: the data.
        classifier: name of the classifier, whose inputs are the features; None leaves these out.
        batch_size: samples per pass; it affects memory, and the result only by rounding.
        bf16: run the forward passes in bfloat16 with autocast.
        workers: number of processes that read images from files.

    Returns:
        The scores.

    Raises:
        InputError: the model fails, or its outputs do not fit the classes.
        DataError: a sample cannot be read.
    """
    place = next(model.parameters()).device
    n_classes = len(samples.class_names)
    failed = partial(models.failures_named, remedy=f"; it is given {samples.split} samples of {samples.name}")
    values, hits, features = [], [], []
    tapped: AbstractContextManager[classifiers.Tap | None] = (
        nullcontext() if classifier is None else classifiers.Tap(model, classifier)
    )
    with evaluating(model), tapped as tap:
        pieces = torch.arange(len(samples)).tensor_split(math.ceil(len(samples) / batch_size))
        for (inputs,), labels, _ in Batches(samples, ["none"], place, workers=workers).epoch(pieces):
            with torch.autocast(place.type, torch.bfloat16, enabled=bf16), failed(inputs):
                logits = models.logits_of(model(inputs), n_classes)
            values.append(losses.cross_entropy(logits.float(), labels))
            hits.append(logits.argmax(dim=1) == labels)
            if tap is not None:
                features.append(tap.features.float())
    right, each = torch.cat(hits).cpu().numpy(), wide(torch.cat(values)).cpu().numpy()
    sums, counts = (np.bincount(samples.labels, of, minlength=n_classes) for of in (each, None))
    with np.errstate(invalid="ignore", over="ignore"):  # of losses that are not finite
        off = each - (sums / np.maximum(counts, 1))[samples.labels]
        squares = np.bincount(samples.labels, off**2, minlength=n_classes)
    return Scores(
        loss_sums=sums,
        loss_squares=squares,
        correct=np.bincount(samples.labels[right], minlength=n_classes),
        counts=counts,
        features=torch.cat(features).cpu() if tap is not None else None,
    )


def classifier_of(model: nn.Module, samples: Samples) -> str:
    """Return the name of the classifier, of a network that runs on samples; see `classifiers.find`."""
    n_classes, few = len(samples.class_names), torch.arange(min(4, len(samples)))

    def run() -> Tensor:
        (inputs,), *_ = next(iter(Batches(samples, ["none"], next(model.parameters()).device).epoch([few])))
        with evaluating(model):
            return models.logits_of(model(inputs), n_classes)

    return classifiers.find(model, n_classes, run)


def gradient_cosines(
    model: nn.Module, samples: Samples, *, batch_size: int, seed: int, n_batches: int = 8
) -> np.ndarray:
    """Measure the cosine between each class's gradient and that of its batch (the paper's Figure 6).

    Batches are drawn at random; gradients are those of the cross-entropy in eval mode, over all trainable parameters.
    A batch norm without running statistics normalises by the batch in eval mode too: gradients then pass through the
    statistics, as in training, and each class of a batch takes a backward pass.

    Args:
        model: inputs (B, ...) -> logits (B, C); it is not changed.
        samples: the data from which batches are drawn.
        batch_size: samples per batch.
        seed: of the draw.
        n_batches: the largest number of batches, without repetition.

    Returns:
        (C,) the cosine between the mean gradient of the class's samples and that of the batch, mean over the batches
        with samples of the class. Batches with a zero gradient are left out; nan for a class without other batches.
    """
    place = next(model.parameters()).device
    n_classes = len(samples.class_names)
    order = np.random.default_rng(seed).permutation(len(samples))
    batches = np.array_split(order, math.ceil(len(order) / batch_size))[:n_batches]
    sums, times = np.zeros(n_classes), np.zeros(n_classes)
    with evaluating(model):
        separate: Collection[nn.Module] | SampleRows = () if coupling(model) else SampleRows()
        for indices in batches:
            inputs, labels = samples.batch(indices, place)
            present, group = torch.unique(labels, return_inverse=True)
            counts = wide(torch.bincount(group))

            def batch(inputs: Tensor = inputs, labels: Tensor = labels) -> Tensor:
                return losses.cross_entropy(models.logits_of(model(inputs), n_classes), labels)

            _, rows = per_sample.group_gradients(model, batch, group, len(present), first=separate)
            rows = wide(rows)
            whole = (counts / counts.sum()) @ rows
            lengths = rows.norm(dim=1) * whole.norm()
            defined = lengths != 0  # a gradient of zero has no direction
            here = present[defined.to(place)].cpu().numpy()
            sums[here] += ((rows @ whole)[defined] / lengths[defined]).cpu().numpy()
            times[here] += 1
    return np.asarray(sums / np.where(times > 0, times, np.nan))


def by_frequency(history: History) -> tuple[float, ...]:
    """Return the test accuracy over all samples, and over those of each group of `BY_COUNT`.

    Args:
        history: of a run; the last measured epoch is used.

    Returns:
        Accuracies, 1 + the number of groups; nan for a group without classes or test samples.
    """
    n_test = history.test_counts
    last = np.flatnonzero(np.isfinite(history.test_accuracy))[-1]  # the first epoch is always measured
    right = np.nan_to_num(history.test_accuracy_per_class[last]) * n_test
    found = BY_COUNT.make(history.train_counts, Thresholds())
    members = [np.arange(len(n_test)), *(found.get(name, np.array([], int)) for name in BY_COUNT.groups)]
    return tuple(float(right[m].sum() / n_test[m].sum()) if n_test[m].sum() else math.nan for m in members)
