"""Memory-based grouping: the models in which classes had their best features, and groups of classes based on these.

Equations of "Reframing Long-Tailed Learning via Loss Landscape Geometry" (CVPR 2026), for classes c and groups g:

    Q(c)      = Dis(c) - beta log Var(c)                       `class_means.feature_quality`           (S17-S19)
    theta*_c  = the encoder at the epoch of the best Q(c)                                              (1)
    groups    = normalised cuts of the classes by the similarity of their theta*_c                     (2)
    theta*_g  = mean of theta*_c over the group's classes, its convergence point                       (3)

Only the encoder is compared: all trainable parameters before the classifier, E entries in all.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from landscape.autodiff.wide import wide
from landscape.errors import InputError, StoreError, arg
from landscape.networks import checkpoints
from landscape.results import disk
from trainers.passes import flat

_BLOCK = 2**31  # bytes of snapshots that are compared at a time
_PIECE = 2**20  # entries of a vector that become float64 at a time
_WEAKEST_EDGE = 1e-6  # with edges of weight zero, the spectrum of the graph could show only its components

# The memory bank ------------------------------------------------------------------------------------------------------


class Bank:
    """The epoch in which each class had its best features, and a snapshot of the model for each such epoch.

    Classes share snapshots: a folder with `epoch-0012.pt`, ..., plain checkpoints that every analysis reads, instead of
    C copies of the encoder. There are at most C + 1 of them: a snapshot that is no longer needed is deleted only at the
    next `update`, so that a run that is killed before it has stored `state()` can return to the previous state.
    """

    def __init__(self, folder: Path, n_classes: int) -> None:
        """Begin empty; nothing is written or deleted yet.

        Args:
            folder: of the snapshots, and of nothing else.
            n_classes: C.
        """
        self._folder = Path(folder)
        self._epochs = np.empty(0, dtype=np.int64)
        self._best = np.full(n_classes, np.nan)

    @property
    def epochs(self) -> np.ndarray:
        """The epoch of each class's snapshot, (C,) int64.

        Raises:
            InputError: nothing was stored yet.
        """
        if self.empty:
            raise InputError("the memory bank is empty: update it after an epoch first")
        return self._epochs.copy()

    @property
    def empty(self) -> bool:
        """Say whether nothing was stored yet."""
        return not self._epochs.size

    @property
    def best(self) -> np.ndarray:
        """The quality of each class in its epoch, (C,); nan where it had none."""
        return self._best.copy()

    def update(
        self, epoch: int, quality: np.ndarray, state: Mapping[str, Tensor], meta: Mapping[str, Any]
    ) -> np.ndarray:
        """Store the model for the classes with their best features so far; it is written once, or not at all.

        A class without a quality (nan) cannot be compared and uses the newest epoch.

        Args:
            epoch: of the model, later than all earlier ones.
            quality: (C,), from `class_means.feature_quality`.
            state: the model's `state_dict()`.
            meta: description of the checkpoint; see `checkpoints.write`.

        Returns:
            The classes with their best features in this epoch.

        Raises:
            InputError: the epoch or the qualities do not fit.
            StoreError: the snapshot cannot be written.
        """
        quality = np.asarray(quality, dtype=np.float64)
        if quality.shape != self._best.shape or np.isinf(quality).any():
            raise InputError(f"quality must be one number for each of {len(self._best)} classes, got {quality}")
        if self._epochs.size and epoch <= self._epochs.max():
            raise InputError(f"the memory bank has epoch {self._epochs.max()} already, got epoch {epoch}")
        self._prune()
        improved = np.isnan(quality) | np.isnan(self._best) | (quality > self._best)
        if improved.any():
            with disk.writing(self._folder):
                self._folder.mkdir(parents=True, exist_ok=True)
            checkpoints.write(self._path(epoch), state, meta)
            self._best = np.where(improved, quality, self._best)
            before = self._epochs if self._epochs.size else epoch  # the first time, all classes use it
            self._epochs = np.where(improved, epoch, before).astype(np.int64)
        return np.flatnonzero(improved)

    def read(self, epoch: int, names: Sequence[str]) -> tuple[Tensor, dict[str, Tensor]]:
        """Read the model that was stored after an epoch.

        Args:
            epoch: one of `epochs`.
            names: of parameters, E entries in all.

        Returns:
            These parameters as one vector, (E,), and the whole `state_dict()`, on the CPU.

        Raises:
            InputError: the snapshot cannot be read, or has no such parameter.
        """
        state = checkpoints.read(self._path(epoch)).state
        for name in names:
            if name not in state:
                raise InputError(f"{self._path(epoch)} has no parameter {name}: it is of another model")
        return flat(state[name] for name in names), state

    def state(self) -> dict[str, Any]:
        """Return the epoch and the quality of each class, as JSON, for `restore`."""
        best = [None if np.isnan(q) else q for q in self._best.tolist()]
        return {"epochs": self._epochs.tolist(), "best": best}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restore a state; snapshots of later epochs have no effect.

        Args:
            state: from `state`.

        Raises:
            InputError: the number of classes differs.
            StoreError: a snapshot is missing.
        """
        epochs = np.asarray(state["epochs"], dtype=np.int64)
        best = np.array([np.nan if q is None else q for q in state["best"]], dtype=np.float64)
        if best.shape != self._best.shape or epochs.size not in {0, len(best)}:
            raise InputError(f"the memory bank was kept for {len(best)} classes, now there are {len(self._best)}")
        for epoch in np.unique(epochs).tolist():
            if not self._path(epoch).is_file():
                raise StoreError(
                    f"{self._path(epoch)} is missing, which classes need: start again with {arg('overwrite', True)}"
                )
        self._epochs, self._best = epochs, best

    def files(self) -> list[Path]:
        """List the snapshots in the folder, whoever wrote them."""
        return sorted(p for p in self._folder.glob("epoch-*.pt") if re.fullmatch(r"epoch-\d{4,}\.pt", p.name))

    def _path(self, epoch: int) -> Path:
        return self._folder / f"epoch-{epoch:04d}.pt"

    def _prune(self) -> None:
        """Delete the snapshots that no class refers to."""
        needed = {self._path(epoch).name for epoch in self._epochs.tolist()}
        with disk.writing(self._folder):
            for path in self.files():
                if path.name not in needed:
                    path.unlink(missing_ok=True)


# Groups ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, eq=False)
class Groups:
    """A division of C classes into G groups, none of which is empty."""

    group_of: np.ndarray  # (C,) int64, 0 to G - 1
    n_groups: int  # G
    similarity: np.ndarray  # (C, C), from 0 to 1


def group_classes(bank: Bank, names: Sequence[str], n_groups: int, *, centre: bool = False, seed: int = 0) -> Groups:
    """Group the classes by the similarity of their stored encoders, by normalised cuts.

    similarity = (1 + cosine) / 2. Groups are numbered by the mean index of their classes.

    Snapshots of one run are very similar. Centring spreads their similarities but hardly changes the groups: on
    synthetic trajectories through four phases (40 classes, 100 epochs, 2,000 parameters, 20 seeds), raw similarities
    above 0.999 recovered the phases with an adjusted Rand index of 0.78, centred similarities from 0.02 on with 0.79
    (spread 0.11 each).

    Args:
        bank: of the classes' snapshots, which are read a few at a time.
        names: of the encoder's parameters.
        n_groups: G. If there are fewer distinct snapshots, there is one group for each.
        centre: subtract the classes' mean vector before the cosine is computed.
        seed: of the k-means step.

    Returns:
        The groups.

    Raises:
        InputError: G is below 1 or above the number of classes, or a snapshot does not fit.

    Source: Shi and Malik 2000, "Normalized cuts and image segmentation"; Ng, Jordan and Weiss 2001.
    """
    epochs, of_class = np.unique(bank.epochs, return_inverse=True)
    n_classes = len(of_class)
    if not 1 <= n_groups <= n_classes:
        raise InputError(f"{arg('groups')} must be from 1 to the number of classes, {n_classes}, got {n_groups}")
    gram = _gram(bank, epochs.tolist(), names)
    if centre:  # <a - m, b - m> from inner products alone; m weighs a snapshot by its classes
        share = np.bincount(of_class) / n_classes
        along = gram @ share
        gram = gram - along[:, None] - along[None, :] + share @ along
    norm = np.sqrt(np.clip(np.diag(gram), 0, None))
    scale = np.outer(norm, norm)
    cosine = np.divide(gram, scale, out=np.zeros_like(gram), where=scale > 0)  # the mean itself has no direction
    np.fill_diagonal(cosine, 1.0)
    similarity = ((1 + np.clip(cosine, -1, 1)) / 2)[np.ix_(of_class, of_class)]
    found = np.zeros(n_classes, dtype=np.int64)
    if n_groups >= len(epochs):
        found = of_class
    elif n_groups > 1:
        from sklearn.cluster import SpectralClustering  # takes a second or two, and most runs have no groups

        start = seed % 2**32  # scikit-learn takes no larger one
        cluster = SpectralClustering(n_groups, affinity="precomputed", assign_labels="kmeans", random_state=start)
        found = cluster.fit_predict(np.maximum(similarity, _WEAKEST_EDGE))
    group_of = _numbered(found)
    return Groups(group_of=group_of, n_groups=int(group_of.max()) + 1, similarity=similarity)


def _numbered(found: np.ndarray) -> np.ndarray:
    """Number groups by the mean index of their classes, so that equal divisions have equal numbers."""
    labels = np.unique(found)
    means = [np.flatnonzero(found == g).mean() for g in labels]
    firsts = [np.flatnonzero(found == g)[0] for g in labels]
    place = np.empty(len(labels), dtype=np.int64)
    place[np.lexsort((firsts, means))] = np.arange(len(labels))
    return np.asarray(place[np.searchsorted(labels, found)])


def _gram(bank: Bank, epochs: list[int], names: Sequence[str]) -> np.ndarray:
    """Return the inner products of snapshots, (S, S), in float64: cosines within a run differ in late digits."""
    gram = np.zeros((len(epochs), len(epochs)))
    start = 0
    while start < len(epochs):
        first, _ = bank.read(epochs[start], names)
        stop = min(len(epochs), start + max(1, _BLOCK // (first.numel() * first.element_size())))
        block = torch.stack([first, *(bank.read(epoch, names)[0] for epoch in epochs[start + 1 : stop])])
        gram[start:stop, start:stop] = _products(block, block)
        for s in range(stop, len(epochs)):
            gram[start:stop, s] = _products(block, bank.read(epochs[s], names)[0][None])[:, 0]
            gram[s, start:stop] = gram[start:stop, s]
        start = stop
    return gram


def _products(a: Tensor, b: Tensor) -> np.ndarray:
    total = torch.zeros(len(a), len(b), dtype=torch.float64)
    for x, y in zip(torch.split(a, _PIECE, dim=1), torch.split(b, _PIECE, dim=1), strict=True):
        total += wide(x) @ wide(y).T
    return np.asarray(total.cpu().numpy())


# Convergence points ---------------------------------------------------------------------------------------------------


def group_centres(bank: Bank, groups: Groups, names: Sequence[str]) -> Tensor:
    """Average the stored encoders over the classes of each group (equation 3), reading one snapshot at a time.

    Args:
        bank: of the classes' snapshots.
        groups: of the classes.
        names: of the encoder's parameters.

    Returns:
        The convergence points theta*, (G, E), in the dtype of the snapshots, on the CPU. The running statistics of the
        averaged network are not known here; `settled` estimates them.

    Raises:
        InputError: a snapshot cannot be read or does not fit.
    """
    rows = []
    for g in range(groups.n_groups):
        epochs, counts = np.unique(bank.epochs[groups.group_of == g], return_counts=True)
        total, kind = torch.zeros((), dtype=torch.float64), torch.float64
        for epoch, count in zip(epochs.tolist(), counts.tolist(), strict=True):
            encoder, _ = bank.read(epoch, names)
            total, kind = total + wide(encoder) * (count / counts.sum()), encoder.dtype
        rows.append(total.to(kind))
    return torch.stack(rows)
