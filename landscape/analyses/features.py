"""What a network's features say of each class: how far it stands apart, and how its mean lies among the others'.

A pass over the data takes the sums of each class's features, a second one the scatter about their means; formulas are
those of class_means.py. Features stay in memory between the passes where they fit; where they do not, the network runs
twice, so that memory does not grow with the data. At several checkpoints of a run the numbers are curves over epochs.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from landscape.analyses.at_checkpoints import Report, at_checkpoints
from landscape.autodiff import costs, distributed
from landscape.autodiff.wide import wide
from landscape.callables import checked
from landscape.errors import InputError, arg
from landscape.networks import class_means, classifiers
from landscape.objective import jobs, pilot
from landscape.objective.objective import Objective
from landscape.objective.snapshots import File
from landscape.results import Features

CACHE_BYTES = 2**31
"""Memory for features that are kept between the passes."""

MOST_ANGLES = 1000
"""Classes of which all pairs of angles are kept: of 8,142 they would take half a gigabyte for each checkpoint."""


@checked
def features(
    objective: Objective,
    *,
    checkpoints: Sequence[File] | None = None,
    beta: float = 0.5,
    cache_bytes: int = CACHE_BYTES,
    ckpt_key: str | None = None,
    trust_pickle: bool = False,
    out: str | Path | None = None,
    overwrite: bool = False,
    progress: jobs.Progress | None = None,
) -> Features:
    """Measure feature quality and the geometry of the class means, at one or several checkpoints.

    The parts are always the classes, and all samples count: a class's quality depends on where the others lie. The
    model is in eval mode, without augmentation. On the training split these are the features by which GKP fills its
    memory bank; those of test samples tell how much of it holds for new images.

    Args:
        objective: model and data; its partition and its choice of parameters play no part.
        checkpoints: files whose weights take the place of the model's, one after the other, as the snapshots of a
            run; or pairs of a file and its epoch, for files that do not say it. None takes the model as it is.
        beta: weight of the variance in Q = Dis - beta log Var.
        cache_bytes: memory for features that are kept between the two passes; the network runs again where they do not
            fit. It changes no result.
        ckpt_key: where in the files of `checkpoints` the weights are; None to find them.
        trust_pickle: let these files run code when they are read. Only for files that you made.
        out: result file to write; finished checkpoints are kept beside it until it is complete, and a repeated
            call with the same options takes them up.
        overwrite: replace an existing result file.
        progress: called with (done, total, text).

    Returns:
        Quality and geometry at all checkpoints, in the order given.

    Raises:
        InputError: a task without classes, an option out of its range, a checkpoint that does not fit, or a model
            without a linear layer with an output for each class.
        NumericalError: a feature is not finite.
        StoreError: the result file cannot be written, or an unfinished run beside it had other options.

    Source: equations S17 to S19 of "Reframing Long-Tailed Learning via Loss Landscape Geometry" (CVPR 2026); Papyan,
    Han and Donoho 2020.
    """
    if objective.task.name != "classification":
        raise InputError(
            f"features are compared class by class, and samples of the task {objective.task.name} have no classes"
        )
    if not 0 <= beta < math.inf:
        raise InputError(f"{arg('beta')} must be a finite number, at least 0, got {beta:g}")
    if cache_bytes < 0:
        raise InputError(f"{arg('cache_bytes')} must not be negative, got {cache_bytes / 2**30:g} GiB")
    costs.declare(lambda: _costs(objective, len(checkpoints or [None]), cache_bytes))

    def measure(network: nn.Module, report: Report) -> dict[str, Any]:
        # So few samples that a process would have none are taken whole by each.
        own = objective if len(objective.samples) < distributed.world() else objective.shared()
        found, n_features = _measure(own, network, cache_bytes, report)
        inverse = class_means.quality(found["distance"], found["variance"], form="inverse")
        numbers = {name: None if value is None else np.asarray(value)[None] for name, value in found.items()}
        return {
            **numbers,
            "quality": class_means.quality(found["distance"], found["variance"], beta=beta)[None],
            "quality_inverse": inverse[None],
            "parts": objective.samples.class_names,
            "n_samples": np.bincount(objective.samples.labels, minlength=len(inverse)),
            "train_counts": objective.samples.class_counts,
            "beta": float(beta),
            "n_features": n_features,
        }

    return at_checkpoints(
        Features,
        objective,
        checkpoints,
        measure,
        options={"beta": beta},
        ckpt_key=ckpt_key,
        trust_pickle=trust_pickle,
        out=out,
        overwrite=overwrite,
        progress=progress,
    )


def _costs(objective: Objective, n_points: int, cache_bytes: int) -> costs.Known:
    """Return what the features of so many checkpoints take."""
    n_samples, model = len(objective.samples), objective.model
    head = classifiers.find(model, len(objective.samples.class_names))
    width = classifiers.class_weights(model, head).shape[1]
    kept = n_samples * width * objective.dtype.itemsize

    def prepare(n: int) -> Callable[[], object]:
        small = pilot.few(objective, [n])
        room = cache_bytes if kept <= cache_bytes else 0
        return lambda: _measure(small, model, room, lambda share: None)

    work = costs.Work(
        what="measurements of the features of a checkpoint",
        prepare=prepare,
        pieces=n_points,
        samples=n_samples,
        batch=objective.batch_size,
        halve=arg("samples_per_class", max(1, n_samples // (2 * len(objective.samples.class_names)))),
    )
    return costs.Known(
        works=(pilot.evaluation(objective), work),
        keeps=kept if kept <= cache_bytes else 0,
        disk=2 * 8 * n_points * len(objective.samples.class_names) ** 2,
        spare=arg("cache_bytes"),
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class _Batch:
    """What the network makes of some samples."""

    features: Tensor  # (B, F)
    labels: Tensor  # (B,)
    predicted: Tensor  # (B,) classes
    loss: Tensor  # (B,)


@torch.no_grad()
def _measure(objective: Objective, model: nn.Module, cache_bytes: int, report: Report) -> tuple[dict[str, Any], int]:
    """Return the numbers of one checkpoint by the names of `Features`, and the number of features."""
    n_classes, team = len(objective.samples.class_names), objective.team
    n_samples = len(_own(objective))
    n_batches = -(-n_samples // objective.batch_size)
    classifier = classifiers.find(model, n_classes)
    sums = class_means.Sums(n_classes)
    loss, right, apart = (np.zeros(n_classes) for _ in range(3))
    kept: list[_Batch] = []
    with classifiers.Tap(model, classifier) as tap:
        for k, batch in enumerate(_batches(objective, model, tap)):
            keep = batch.features[0].nbytes * n_samples <= cache_bytes
            if keep:
                kept.append(batch)
            sums.add(batch.features, batch.labels)
            _count(loss, batch.labels, batch.loss)
            _count(right, batch.labels, batch.predicted == batch.labels)
            report((0.9 if keep else 0.5) * (k + 1) / n_batches)
        sums.add_up(team)
        means = sums.means()
        directions, sizes = means.between()
        scatter = class_means.Scatter(means, directions)
        for k, batch in enumerate(kept or _batches(objective, model, tap)):
            scatter.add(batch.features, batch.labels)
            _count(apart, batch.labels, means.classify(batch.features) != batch.predicted)
            report(0.99 - (0.09 if kept else 0.49) * (1 - (k + 1) / n_batches))
    scatter.add_up(team)
    loss, right, apart = team.total(torch.from_numpy(np.stack([loss, right, apart]))).numpy()
    distance, nearest = means.nearest()
    counts = np.bincount(objective.samples.labels, minlength=n_classes)
    known = np.where(counts > 0, counts, np.nan)
    found = class_means.geometry(means, scatter, sizes, classifiers.class_weights(model, classifier))
    numbers: dict[str, Any] = {"loss": loss / known, "accuracy": right / known, "disagreement": apart / known}
    numbers |= {"distance": distance, "nearest": nearest, "variance": scatter.variance}
    numbers |= vars(found) | {"mean_disagreement": np.nanmean(apart / known)}
    if n_classes > MOST_ANGLES:
        numbers["mean_cosine"] = None
    return numbers, means.values.shape[1]


def _batches(objective: Objective, model: nn.Module, tap: classifiers.Tap) -> Iterator[_Batch]:
    """Run the network over all samples, whatever parts they are in."""
    for index in torch.split(_own(objective), objective.batch_size):
        inputs, labels = objective.samples.batch(index, objective.device, objective.dtype)
        logits = objective.logits_of(model, inputs)
        yield _Batch(
            features=tap.features.clone(),  # it may be a view that keeps all activations in memory
            labels=labels,
            predicted=logits.argmax(1),
            loss=objective.loss(logits, labels),
        )


def _own(objective: Objective) -> Tensor:
    """Return the positions of the samples that this process takes."""
    n_samples = len(objective.samples)
    return torch.arange(n_samples)[objective.team.share(n_samples)]


def _count(totals: np.ndarray, labels: Tensor, values: Tensor) -> None:
    """Add the samples' values to the totals of their classes."""
    totals += np.bincount(labels.cpu().numpy(), wide(values).cpu().numpy(), minlength=len(totals))
