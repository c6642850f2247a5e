"""Feature quality: how well a network's features separate each class, and the geometry of the class means.

A first pass over the data computes the sum of each class's features, a second one the scatter about their means;
class_means.py has the formulas. If the features fit into memory, they are kept between the passes; otherwise the
network runs twice, so that memory does not grow with the data. For several checkpoints of a run, the numbers are curves
over epochs.

Losses and accuracies are means, whose errors over samples are known (`_of_means`). Those of the other numbers come from
a jackknife: the samples of each class are divided into groups, all numbers are computed without each group in turn, and
their scatter gives the error (Quenouille 1956; Efron and Tibshirani 1993, chapter 11). A class of fewer samples than
groups counts with as many groups as it has samples (`_changes`). If the features are kept, this needs no further pass
of the network; otherwise it is left out. Of draws without replacement, a group is left out only as far as another draw
would differ: each weight changes by the root of 1 - pi_i times its change in the jackknife (`_Batch.without`). To first
order, the squares then add up to those of Hajek's variance in inference.py, also for weighted draws (Rao and Wu 1988).
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from landscape.analyses.at_checkpoints import Report, at_checkpoints
from landscape.autodiff import costs, distributed, trees
from landscape.autodiff.wide import wide, zeros
from landscape.callables import checked
from landscape.errors import InputError, arg
from landscape.networks import class_means, classifiers
from landscape.objective import jobs, pilot, weighing
from landscape.objective.objective import Objective
from landscape.objective.snapshots import File
from landscape.results import Features
from landscape.results.features import WITH_ERRORS

CACHE_BYTES = 2**31
"""Default memory for features that are kept between the passes."""

MOST_ANGLES = 1000
"""The largest number of classes for which the angles of all pairs are stored: for 8,142 classes they would need half a
gigabyte per checkpoint."""

GROUPS = 20
"""Number of groups of the jackknife."""


@checked
def features(
    objective: Objective,
    *,
    checkpoints: Sequence[File] | None = None,
    beta: float = 0.5,
    sampling_errors: bool = True,
    cache_bytes: int = CACHE_BYTES,
    ckpt_key: str | None = None,
    trust_pickle: bool = False,
    out: str | Path | None = None,
    overwrite: bool = False,
    progress: jobs.Progress | None = None,
) -> Features:
    """Measure feature quality and the geometry of the class means, at one or several checkpoints.

    The parts are always the classes. The objective must have all classes, because the quality of a class depends on the
    positions of the others; its samples may be a draw from each class. The model is in eval mode, without augmentation.
    GKP fills its memory bank by these features on the training split; those of test samples show how well the quality
    generalises to new images.

    Args:
        objective: model and data; its partition and its choice of parameters have no effect.
        checkpoints: files with weights that replace those of the model, one after the other, such as the snapshots of a
            run; or pairs of a file and its epoch, for files that do not store their epoch. None uses the model itself.
        beta: weight of the variance in Q = Dis - beta log Var.
        sampling_errors: also compute how much another draw of the samples would change the numbers, if the features fit
            into memory.
        cache_bytes: memory for features that are kept between the two passes; if they do not fit, the network runs
            twice. It changes no result.
        ckpt_key: key of the weights in the files of `checkpoints`; None finds them automatically.
        trust_pickle: let these files run code when they are read. Use it only for files that you made.
        out: result file to write; finished checkpoints are kept beside it until it is complete, and a repeated
            call with the same options continues from them.
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
    _refuse_other_draws(objective)
    jobs.declare(lambda: _costs(objective, len(checkpoints or [None]), beta, cache_bytes), out)

    def measure(network: nn.Module, report: Report) -> dict[str, Any]:
        # With so few samples that a process would have none, each process uses all of them.
        own = objective if len(objective.samples) < distributed.world() else objective.shared()
        found, n_features = _measure(own, network, beta, cache_bytes, report, sampling_errors=sampling_errors)
        names = objective.samples.class_names
        numbers = {name: None if value is None else np.asarray(value)[None] for name, value in found.items()}
        return {
            **numbers,
            "parts": names,
            "n_samples": np.bincount(objective.undrawn.samples.labels, minlength=len(names)),
            "train_counts": objective.samples.trained,
            "beta": float(beta),
            "n_features": n_features,
        }

    return at_checkpoints(
        Features,
        objective,
        checkpoints,
        measure,
        options={"beta": beta} | ({} if sampling_errors else {"sampling_errors": False}),
        ckpt_key=ckpt_key,
        trust_pickle=trust_pickle,
        out=out,
        overwrite=overwrite,
        progress=progress,
    )


def _costs(objective: Objective, n_points: int, beta: float, cache_bytes: int) -> costs.Known:
    """Return the cost of the features of a number of checkpoints."""
    n_samples, model = len(objective.samples), objective.model
    width = classifiers.class_weights(model, _classifier(objective, model)).shape[1]
    kept = n_samples * width * objective.dtype.itemsize

    def prepare(n: int) -> Callable[[], object]:
        small = pilot.few(objective, [n])
        room = cache_bytes if kept <= cache_bytes else 0
        return lambda: _measure(small, model, beta, room, lambda share: None, sampling_errors=True)

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


def _refuse_other_draws(objective: Objective) -> None:
    """Refuse draws that were not made for every class separately."""
    if objective.draws is None:
        return
    alone = all(len(own) == 1 for own in objective.partition.classes) and objective.partition.classes
    if not alone or objective.population.sum() != len(objective.undrawn.samples):
        raise InputError(
            f"features are compared class by class, and {arg('samples')} draws from each part: use "
            f"{arg('partition', 'class')} and leave {arg('classes')} out"
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class _Batch:
    """The features and outputs of the network for some samples."""

    features: Tensor  # (B, F)
    labels: Tensor  # (B,)
    predicted: Tensor  # (B,) classes
    loss: Tensor  # (B,)
    weights: Tensor  # (B,) how often each counts: once, or as often as a draw does
    group: Tensor  # (B,) of the jackknife
    root: Tensor  # (B,) root of the fraction of a sample's variance that other draws would show

    def without(self, group: int, changes: np.ndarray) -> "_Batch":
        """Return the batch without the samples of a group, whose weight the others of their classes get.

        Of draws, each weight changes by `root` times this change: those that are certain to be drawn keep theirs.

        Args:
            group: the group.
            changes: from `_changes`.
        """
        lost, got = torch.from_numpy(changes[:, :, group]).to(self.root)[:, self.labels]
        change = torch.where(self.group == group, lost, got)
        return replace(self, weights=self.weights * (1 + self.root * change).to(self.weights))


@torch.no_grad()
def _measure(
    objective: Objective,
    model: nn.Module,
    beta: float,
    cache_bytes: int,
    report: Report,
    *,
    sampling_errors: bool,
) -> tuple[dict[str, Any], int]:
    """Return the numbers of one checkpoint by the names of `Features`, and the number of features."""
    n_classes, n_samples = len(objective.samples.class_names), len(_own(objective))
    n_batches = -(-n_samples // objective.batch_size)
    classifier = _classifier(objective, model)
    rows = classifiers.class_weights(model, classifier)
    kept: list[_Batch] = []
    with classifiers.Tap(model, classifier) as tap:

        def first() -> Iterator[_Batch]:
            for k, batch in enumerate(_batches(objective, model, tap)):
                keep = batch.features[0].nbytes * n_samples <= cache_bytes
                if keep:
                    kept.append(batch)
                yield batch
                report((0.9 if keep else 0.5) * (k + 1) / n_batches)

        def second() -> Iterator[_Batch]:
            for k, batch in enumerate(kept or _batches(objective, model, tap)):
                yield batch
                report(0.95 - (0.05 if kept else 0.45) * (1 - (k + 1) / n_batches))

        numbers, n_features = _numbers(first, second, rows, beta, objective.team)
    team, few = objective.team, len(objective.samples) < 2 * GROUPS
    if sampling_errors and not few and team.total_of(bool(kept)) == team.size:
        all_fit = kept[0].features[0].nbytes * len(objective.samples) <= cache_bytes
        changes = _changes(objective.samples.labels, _left(objective), n_classes)
        joined = 1 < team.size <= GROUPS and team.total_of(all_fit) == team.size
        numbers |= _jackknife(kept, rows, beta, team, report, changes, joined=joined)
        numbers |= _of_means(objective, kept, numbers)
    if n_classes > MOST_ANGLES:
        numbers["mean_cosine"] = None
    return numbers, n_features


def _numbers(
    first: Callable[[], Iterable[_Batch]],
    second: Callable[[], Iterable[_Batch]],
    rows: Tensor,
    beta: float,
    team: distributed.Team,
) -> tuple[dict[str, Any], int]:
    """Make the two passes over all samples, and return the numbers and the number of features.

    Args:
        first: returns the batches for the first pass.
        second: returns the batches for the second pass.
        rows: of the classifier, (C, F).
        beta: weight of the variance in the quality.
        team: the processes among which the samples are divided.

    Returns:
        Fields of `Features` for one checkpoint, by their names; F.
    """
    n_classes = len(rows)
    sums = class_means.Sums(n_classes)
    totals = zeros((4, n_classes), rows.device)  # read once: the host waits for each read
    for batch in first():
        sums.add(batch.features, batch.labels, batch.weights)
        _count(totals[0], batch, torch.ones_like(batch.weights))
        _count(totals[1], batch, batch.loss)
        _count(totals[2], batch, batch.predicted == batch.labels)
    sums.add_up(team)
    means = sums.means()
    directions, sizes = means.between()
    scatter = class_means.Scatter(means, directions)
    for batch in second():
        scatter.add(batch.features, batch.labels, batch.weights)
        _count(totals[3], batch, means.classify(batch.features) != batch.predicted)
    scatter.add_up(team)
    weight, loss, right, apart = team.total(totals).cpu().numpy()
    known = np.where(weight > 0, weight, np.nan)
    distance, nearest = means.nearest()
    numbers: dict[str, Any] = {"loss": loss / known, "accuracy": right / known, "disagreement": apart / known}
    numbers |= {"distance": distance, "nearest": nearest, "variance": scatter.variance}
    numbers |= {
        "quality": class_means.quality(distance, scatter.variance, beta=beta),
        "quality_inverse": class_means.quality(distance, scatter.variance, form="inverse"),
    }
    numbers |= vars(class_means.geometry(means, scatter, sizes, rows))
    numbers["mean_disagreement"] = np.nanmean(numbers["disagreement"])
    return numbers, means.values.shape[1]


def _jackknife(
    kept: Sequence[_Batch],
    rows: Tensor,
    beta: float,
    team: distributed.Team,
    report: Report,
    changes: np.ndarray,
    *,
    joined: bool,
) -> dict[str, np.ndarray]:
    """Return standard errors over samples, from the numbers without each group of samples in turn.

    Args:
        kept: of the samples of this process.
        rows: of the classifier, (C, F).
        beta: weight of the variance in the quality.
        team: the processes among which the samples are divided.
        report: called with the finished fraction of the analysis.
        changes: from `_changes`.
        joined: let each process take all samples, and some of the groups; otherwise each takes its own samples, for
            all groups.

    Returns:
        Standard errors by the names of fields.
    """
    groups, together = range(GROUPS), team
    if joined:
        kept, groups, together = [_of_all(kept, team)], groups[team.share(GROUPS)], distributed.ALONE
    again: list[dict[str, Any]] = []
    for g in groups:

        def some(g: int = g) -> Iterator[_Batch]:
            return (batch.without(g, changes) for batch in kept)

        again.append(_numbers(some, some, rows, beta, together)[0])
        report(0.95 + 0.04 * len(again) / len(groups))
    found = {name: np.stack([np.asarray(numbers[name], dtype=np.float64) for numbers in again]) for name in WITH_ERRORS}
    if together is not team:
        found = {name: team.gathered(torch.from_numpy(values)).numpy() for name, values in found.items()}
    with np.errstate(invalid="ignore"):  # of infinite losses
        return {f"{name}_stderr": np.sqrt((GROUPS - 1) * np.var(values, axis=0)) for name, values in found.items()}


def _of_all(kept: Sequence[_Batch], team: distributed.Team) -> _Batch:
    """Join the samples of all processes, each of which has some."""
    names = [field.name for field in fields(_Batch)]
    return _Batch(**{name: team.gathered(torch.cat([getattr(batch, name) for batch in kept])) for name in names})


def _classifier(objective: Objective, model: nn.Module) -> str:
    run = partial(objective.logits_of, model, trees.take(objective.example(0)[0], slice(4)))
    return classifiers.find(model, len(objective.samples.class_names), run)


def _batches(objective: Objective, model: nn.Module, tap: classifiers.Tap) -> Iterator[_Batch]:
    """Run the network over all samples, independently of their parts."""
    left = _left(objective)
    groups = torch.from_numpy(_groups(objective.samples.labels, left))
    roots = torch.from_numpy(np.sqrt(left)).to(objective.dtype)
    loss = objective.undrawn.values  # of which each draw's weight stands beside it
    for index in torch.split(_own(objective), objective.batch_size):
        inputs, targets = objective.samples.batch(index, objective.device, objective.dtype)
        targets, weights = targets if objective.draws is not None else (targets, torch.ones(len(index)))
        logits = objective.logits_of(model, inputs)
        labels = torch.from_numpy(objective.samples.labels[index.numpy()]).to(logits.device)
        yield _Batch(
            features=tap.features.clone(),  # a copy: a view could keep all activations in memory
            labels=labels,
            predicted=logits.argmax(1),
            loss=loss(logits, targets),
            weights=weights.to(labels.device),
            group=groups[index].to(labels.device),
            root=roots[index].to(labels.device),
        )


def _left(objective: Objective) -> np.ndarray:
    """Return the fraction of the variance of each sample that other draws would show, (N,)."""
    found = np.ones(len(objective.samples))
    for own in objective.members if objective.draws is not None else ():  # only the parts of draws are the classes
        found[own] = weighing.left(objective.draws, own)
    return found


def _groups(labels: np.ndarray, left: np.ndarray) -> np.ndarray:
    """Return the jackknife group of each sample, (N,): random within each class, with a fixed seed.

    Samples that another draw would have too, whose `left` is 0, are divided separately: all groups have about as many
    of the others.
    """
    found = np.empty(len(labels), dtype=np.int64)
    for c in np.unique(labels):
        own, random = np.flatnonzero(labels == c), np.random.default_rng(int(c))
        order = np.lexsort((random.permutation(len(own)), left[own] == 0))  # the others first
        found[own[order]] = (np.arange(len(own)) + random.integers(GROUPS)) % GROUPS
    return found


def _changes(labels: np.ndarray, left: np.ndarray, n_classes: int) -> np.ndarray:
    """Return by which fraction weights change without a group, of its own samples and of the others, (2, C, GROUPS).

    A class with fewer samples than groups has none in some groups, without which nothing of it changes. Its changes are
    scaled, so that the common formula for the error is that for as many groups as it has samples: the error of a mean
    is s / sqrt(n).
    """
    n, groups, uncertain = np.zeros((n_classes, GROUPS)), _groups(labels, left), left > 0
    np.add.at(n, (labels[uncertain], groups[uncertain]), 1)
    m = n.sum(axis=1, keepdims=True)
    few = (m > 1) & (m < GROUPS)
    m = np.where(few, m, GROUPS)
    scale = np.sqrt(GROUPS * (m - 1) / ((GROUPS - 1) * m))
    got = np.where(few, n, 1) / (m - 1)
    changes: np.ndarray = scale * np.stack([np.full_like(got, -1), got])
    return changes


def _of_means(objective: Objective, kept: Sequence[_Batch], numbers: dict[str, Any]) -> dict[str, np.ndarray]:
    """Return the standard errors of the classes' losses and accuracies.

    Where the samples of a class count alike, they are those that all analyses give (`inference.Scatter`). Means of
    draws with different weights are ratios of sums. These keep the error of the jackknife, because that of the
    deviations from the mean is too small for few draws (`inference.ratio`); but where all draws of a class are right,
    or all wrong, the jackknife says nothing.

    Args:
        objective: model and data.
        kept: of the samples of this process.
        numbers: of all samples, with the errors of the jackknife, by the names of fields.

    Returns:
        Standard errors by the names of fields.
    """
    draws, labels, n_classes = objective.draws, objective.samples.labels, len(numbers["loss"])
    members = [np.flatnonzero(labels == c) for c in range(n_classes)]
    scatter, _ = weighing.scatter(draws, members)
    sums = zeros((2, 4, n_classes), kept[0].loss.device)
    for batch in kept:
        values = torch.stack([wide(batch.loss), wide(batch.predicted != batch.labels)])
        terms = weighing.terms(wide(batch.weights) * values, wide(batch.root).square())
        sums.index_add_(2, batch.labels.to(sums.device), terms)
    found = objective.team.total(sums)[:, 1:].cpu().numpy()
    alike = np.array([len(own) == 0 or np.ptp(weighing.factors(draws, own)) == 0 for own in members])
    same = np.isin(numbers["accuracy"], [0.0, 1.0])
    of_shares, least = scatter.share_stderr(found[1]), scatter.share_stderr(np.zeros_like(found[1]))
    return {
        "loss_stderr": np.where(alike, scatter.stderr(found[0]), numbers["loss_stderr"]),
        "accuracy_stderr": np.where(alike, of_shares, np.where(same, least, numbers["accuracy_stderr"])),
    }


def _own(objective: Objective) -> Tensor:
    """Return the positions of the samples of this process."""
    n_samples = len(objective.samples)
    return torch.arange(n_samples)[objective.team.share(n_samples)]


def _count(totals: Tensor, batch: _Batch, values: Tensor) -> None:
    """Add the samples' values, times their weights, to the totals of their classes, (C,) float64."""
    totals.index_add_(0, batch.labels.to(totals.device), wide(batch.weights) * wide(values))
