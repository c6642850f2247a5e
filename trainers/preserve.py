"""Knowledge preservation in your own training loop: the memory bank, the groups, and GKP's penalty."""

import shutil
import tempfile
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from landscape.callables import checked
from landscape.data.datasets import Samples
from landscape.errors import InputError, StoreError, arg
from landscape.networks import class_means, classifiers, losses
from landscape.networks.class_means import Quality
from trainers import evaluation, gkp, memory
from trainers.evaluation import Scores, classifier_of
from trainers.gkp import GKP
from trainers.memory import Bank, Groups
from trainers.schedule import needed
from trainers.settled import settled_statistics


def settled_quality(
    model: nn.Module,
    samples: Samples,
    classifier: str,
    *,
    beta: float = 0.5,
    form: str = "paper",
    seed: int = 0,
    workers: int = 0,
    bf16: bool = False,
    keep: Callable[[Scores, Quality], Any] = lambda scores, quality: None,
) -> Quality:
    """Measure the quality of each class's features with re-estimated batch-norm statistics.

    Args:
        model: inputs (B, ...) -> logits (B, C); it is restored.
        samples: the training set.
        classifier: name of the classifier, whose inputs are the features.
        beta: weight of the variance in the paper's form.
        form: of the quality; see `class_means.feature_quality`.
        seed: of the draw of samples for the statistics.
        workers: number of processes that read images from files.
        bf16: run the forward passes in bfloat16 with autocast.
        keep: called with the scores and the quality while the model has these statistics.

    Returns:
        The quality.

    Raises:
        InputError: the model does not fit.
        DataError: a sample cannot be read.
    """
    with settled_statistics(model, samples, seed=seed, workers=workers, bf16=bf16):
        scores = evaluation.evaluate(model, samples, classifier=classifier, bf16=bf16, workers=workers)
        if scores.features is None:
            raise InputError(f"{classifier} was not reached in a forward pass: it cannot be the classifier")
        labels, n_classes = torch.from_numpy(samples.labels), len(samples.class_names)
        quality = class_means.feature_quality(scores.features, labels, n_classes, beta=beta, form=form)
        keep(scores, quality)
    return quality


class Memory:
    """Everything that GKP and GSA need in your own training loop.

        memory = Memory(model, samples, n_groups=4)
        for epoch in range(1, 41):
            for inputs, labels in batches:
                loss = F.cross_entropy(model(inputs), labels)
                if memory.gkp:
                    loss = 0.8 * loss + 0.2 * memory.gkp(model, labels)
                ...
            if epoch > warm_up:
                memory.update(epoch)
            if epoch % 4 == 0 and memory.n_banked >= 4:
                memory.regroup()

    For GSA, `memory.group_of[labels]` are the groups of a batch and `memory.counts` those of `GSA.regroup`.
    """

    @checked
    def __init__(
        self,
        model: nn.Module,
        samples: Samples,
        *,
        n_groups: int = 4,
        folder: str | Path | None = None,
        loss: Callable[[Tensor, Tensor], Tensor] = losses.cross_entropy,
        strength: float = 100.0,
        form: str = "paper",
        beta: float = 0.5,
        max_samples: int | None = None,
        seed: int = 0,
    ) -> None:
        """Start with an empty bank, without writing files.

        Args:
            model: inputs (B, ...) -> logits (B, C); its last linear layer is the classifier.
            samples: the training set, without augmentation.
            n_groups: G.
            folder: of the bank's snapshots and of nothing else; None means a temporary folder, which is deleted with
                this object.
            loss: for the Fisher information: (logits (B, C), labels (B,)) -> (B,).
            strength: lambda.
            form: of the feature quality; see `class_means.feature_quality`.
            beta: weight of the variance in it.
            max_samples: the largest number of samples of a group for its Fisher information; None uses all.
            seed: of all random draws.

        Raises:
            InputError: the classifier is not found, or there are more groups than classes.
            StoreError: the folder has snapshots, which an empty bank would delete.
        """
        n_classes = len(samples.class_names)
        if not 1 <= n_groups <= n_classes:
            raise InputError(f"n_groups must be from 1 to the number of classes, {n_classes}, got {n_groups}")
        self.gkp: GKP | None = None
        self.group_of: Tensor | None = None  # number of each class's group, (C,), once there are groups
        self.counts: list[int] = []  # training samples of each group
        self.classifier = classifier_of(model, samples)
        self._names = classifiers.encoder(model, self.classifier)
        self._model, self._samples, self._n_groups = model, samples, n_groups
        self.loss = loss
        self._strength, self._max_samples = strength, max_samples
        self._quality: dict[str, Any] = {"form": form, "beta": beta, "seed": seed}
        self._seed, self._banked = seed, 0
        if folder is None:
            folder = tempfile.mkdtemp(prefix="bank-")
            weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        self._bank = Bank(Path(folder), n_classes)
        for file in self._bank.files():
            raise StoreError(
                f"{file} exists, and a new bank would delete it: choose another {arg('folder')}, or remove all like it"
            )

    @property
    def n_banked(self) -> int:
        """Number of epochs that the bank has seen; groups need several, see `schedule.needed`."""
        return self._banked

    @checked
    def update(self, epoch: int) -> Quality:
        """Measure the features after an epoch, and store the network for the classes with their best features so far.

        Args:
            epoch: number of finished epochs, from 1; larger than in earlier calls.

        Returns:
            The quality of each class's features.

        Raises:
            InputError: the epoch is not later, or the model does not fit.
            StoreError: the snapshot cannot be written.
        """

        def keep(scores: Scores, quality: Quality) -> None:
            self._bank.update(epoch, quality.quality, self._model.state_dict(), {"epoch": epoch})

        quality = settled_quality(self._model, self._samples, self.classifier, keep=keep, **self._quality)
        self._banked += 1
        return quality

    def regroup(self) -> Groups:
        """Group the classes by their best networks, and measure convergence points and Fisher information.

        Returns:
            The groups; from now on `group_of`, `counts` and `gkp` belong to them.

        Raises:
            InputError: the bank has seen too few epochs.
            NumericalError: the Fisher information is not finite.
        """
        if self._banked < needed(self._n_groups):
            raise InputError(
                f"{self._banked} epochs are banked, {self._n_groups} groups need {needed(self._n_groups)}: update first"
            )
        groups = memory.group_classes(self._bank, self._names, self._n_groups, seed=self._seed)
        centres = memory.group_centres(self._bank, groups, self._names)
        fisher = gkp.group_fisher(
            self._model,
            self._samples,
            groups,
            centres,
            self._names,
            loss=self.loss,
            max_samples=self._max_samples,
            seed=self._seed,
        )
        members = torch.from_numpy(groups.group_of)
        counts = torch.bincount(members[torch.from_numpy(self._samples.labels)], minlength=groups.n_groups)
        self.group_of, self.counts = members, counts.tolist()
        self.gkp = GKP(
            centres.to(fisher.device),
            fisher,
            counts.numpy(),
            strength=self._strength,
            group_of=groups.group_of,
            names=self._names,
        )
        return groups
