"""Directions for which one checkpoint is enough, for one surface or for each surface in a series."""

from typing import Any

import numpy as np

from landscape.analyses import directions
from landscape.analyses import surface as surfaces
from landscape.analyses.directions import Directions, Ignored, Normalisation
from landscape.errors import InputError
from landscape.objective.objective import Objective
from landscape.objective.parts import GROUPS
from landscape.results import Surface

AROUND = ("random", "eigen", "gradient")
"""Their kinds, as --directions names them."""


def around(
    objective: Objective,
    n_axes: int,
    *,
    kind: str,
    of: str | None,
    seed: int,
    norm: Normalisation,
    ignore: Ignored,
    memory: int | None,
) -> Directions:
    """Return directions that depend on one checkpoint only."""
    if kind == "random":
        return directions.random(objective, n_axes, seed=seed, normalisation=norm, ignored=ignore)
    parts = _parts(objective, of, n_axes, kind)
    if kind == "eigen":
        return directions.eigen(objective, parts, n_axes, seed=seed, memory_bytes=memory)
    return directions.gradients(objective, parts)


def line(
    objective: Objective,
    *,
    kind: str,
    of: str | None,
    norm: Normalisation,
    ignore: Ignored,
    seed: int,
    memory: int | None = None,
    **more: Any,
) -> Surface:
    """Compute the line around one checkpoint of a series, as `surface1d` does for a single checkpoint."""
    directed = around(objective, 1, kind=kind, of=of, seed=seed, norm=norm, ignore=ignore, memory=memory)
    return surfaces.surface(objective, directed, seed=seed, **more)


def _parts(objective: Objective, of: str | None, n_axes: int, kind: str) -> list[str]:
    """Return the parts of which the eigenvectors or gradients are used; by default the largest and the smallest."""
    names = objective.partition.names
    if of is not None:
        found = [_named(objective, word.strip()) for word in of.split(",")]
        if kind == "gradient" and len(found) != n_axes:
            many = {1: "one part, as head", 2: "two parts, as head,tail"}[n_axes]
            raise InputError(f"--of {of} is {len(found)} of --directions gradient: a surface{n_axes}d needs {many}")
        return found
    if kind == "eigen" or n_axes == 1:
        raise InputError(f"--directions {kind} needs --of: one of {', '.join(names[:10])}, or of {', '.join(GROUPS)}")
    order = np.argsort(-objective.population, kind="stable")
    return [names[order[0]], names[order[-1]]]


def _named(objective: Objective, word: str) -> str:
    names = objective.partition.names
    return names[int(word)] if word not in names and word.isdecimal() and int(word) < len(names) else word
