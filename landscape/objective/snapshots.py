"""Several checkpoints of one network, such as the snapshots of a run, and the network at each of them."""

import math
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from torch import nn

from landscape.errors import InputError, LandscapeError
from landscape.networks import checkpoints, weights
from landscape.networks.copies import copied
from landscape.objective.objective import Objective

File: TypeAlias = str | Path | tuple[str | Path, float]
"""A checkpoint, or a checkpoint and its epoch if the file does not contain it."""


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """One of the checkpoints."""

    name: str  # short, and unlike the others
    epoch: float  # nan where it is unknown
    path: str | None = None  # None for the objective's own model
    sha256: str = ""


def find(
    objective: Objective, files: Sequence[File] | None, *, key: str | None = None, trust_pickle: bool = False
) -> list[Snapshot]:
    """Read all checkpoints once, so that an unsuitable one is refused before anything is computed.

    Args:
        objective: of the network.
        files: the checkpoints; None means only the objective's own model.
        key: key of the weights in the files, as for `checkpoints.read`.
        trust_pickle: let the files run code, as for `checkpoints.read`.

    Returns:
        The checkpoints in the given order; their names are the file names without folder and suffix if these differ.

    Raises:
        InputError: there is no checkpoint, one is given twice, or one cannot be read or does not fit the network.
        NumericalError: a weight is not finite.
    """
    if files is None:
        source = objective.source
        epoch = (source.get("checkpoint_found") or {}).get("epoch", math.nan)
        return [Snapshot(name=Path(source.get("checkpoint") or "model").stem, epoch=float(epoch))]
    if not files:
        raise InputError("there is no checkpoint: give at least one file")
    pairs = [(str(f[0]), float(f[1])) if isinstance(f, tuple) else (str(f), math.nan) for f in files]
    paths = [path for path, _ in pairs]
    for path in paths:
        if paths.count(path) > 1:
            raise InputError(f"{path} is given twice: name each checkpoint once")
    stems = [Path(path).stem for path in paths]
    names = stems if len(set(stems)) == len(stems) else paths
    model, found = copied(objective.model), []
    for name, (path, epoch) in zip(names, pairs, strict=True):
        file = checkpoints.read(path, key=key, trust_pickle=trust_pickle)
        with named(path):
            weights.load_weights(model, file.state, key=file.key)
        stated = float(file.found.get("epoch", math.nan)) if math.isnan(epoch) else epoch
        found.append(Snapshot(name=name, epoch=stated, path=path, sha256=file.sha256))
    return found


def network(
    objective: Objective, snapshot: Snapshot, *, key: str | None = None, trust_pickle: bool = False
) -> nn.Module:
    """Return the objective's network with a checkpoint's weights, in eval mode.

    Args:
        objective: of the network, which is not changed.
        snapshot: from `find`.
        key: key of the weights in the file, as for `find`.
        trust_pickle: let the file run code, as for `find`.

    Returns:
        A copy; for the objective's own model, that model itself.

    Raises:
        InputError: the file has changed since `find` read it.
    """
    if snapshot.path is None:
        return objective.model
    file = checkpoints.read(snapshot.path, key=key, trust_pickle=trust_pickle)
    if file.sha256 != snapshot.sha256:
        raise InputError(
            f"{snapshot.path} changed during the run: repeat the command when the training that writes it has ended"
        )
    model = copied(objective.model)
    weights.load_weights(model, file.state, key=file.key)
    return model


def objective_at(
    objective: Objective, snapshot: Snapshot, *, key: str | None = None, trust_pickle: bool = False
) -> Objective:
    """Return an objective of the same data, parts and loss with a checkpoint's weights and running statistics.

    Args:
        objective: of the network, which is not changed.
        snapshot: from `find`.
        key: key of the weights in the file, as for `find`.
        trust_pickle: let the file run code, as for `find`.

    Returns:
        The objective at that checkpoint.

    Raises:
        InputError: the file has changed since `find` read it.
    """
    return objective.of_network(network(objective, snapshot, key=key, trust_pickle=trust_pickle))


@contextmanager
def named(path: str | None) -> Generator[None, None, None]:
    """Add the path of a checkpoint to errors that are raised inside the block.

    Args:
        path: of the checkpoint; None for the objective's own model, which adds nothing.

    Yields:
        Nothing.

    Raises:
        LandscapeError: the error of the block, of the same kind, with the path at the beginning of its message.
    """
    try:
        yield
    except LandscapeError as error:
        if path is None or str(error).startswith(path):
            raise
        raise type(error)(f"{path}: {error}") from error
