"""The directions of a surface, as options choose them, and the checkpoints that are marked on it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from landscape.analyses import directions
from landscape.analyses.directions import Directions, Ignored, Normalisation
from landscape.cli.around import AROUND, around
from landscape.cli.console import Console
from landscape.cli.options import refuse_typed
from landscape.cli.planes import stored_plane
from landscape.errors import InputError, nearest
from landscape.networks.matching import matching
from landscape.objective import points, snapshots
from landscape.objective.objective import Objective
from landscape.objective.points import Point
from landscape.objective.runs import path_of_training

DIRECTIONS = ("random", "ckpt", "pca", "eigen", "gradient")
"""The names that --directions accepts; a file with a stored plane is the other choice."""
_SQUARED = ("ckpt", "eigen", "gradient")  # kinds whose directions are made orthogonal


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """The values of the options that choose directions and marks."""

    kind: str
    ckpt_to: tuple[str, ...]
    trajectory: str | None
    of: str | None
    norm: Normalisation
    ignore: Ignored
    orthogonal: bool
    plane_origin: bool
    mark: tuple[str, ...]
    match: bool
    memory: int | None
    seed: int

    @classmethod
    def taken(cls, given: dict[str, Any]) -> "Chosen":
        """Take these options out of all that are given, and choose the kind of directions where none is."""
        found = {field.name: given.pop(field.name) for field in fields(cls)}
        default = "ckpt" if found["ckpt_to"] else "pca" if found["trajectory"] else "random"
        return cls(**found | {"kind": found["kind"] or default})

    def refuse(self, n_axes: int) -> None:
        """Refuse options that would be ignored, and name those that are missing, before anything is loaded."""
        kind, stored = self.kind, self.kind not in DIRECTIONS
        if stored and Path(kind).suffix != ".h5":
            near = nearest(kind, DIRECTIONS)
            raise InputError(
                f"--directions {kind!r} is unknown: {near}choose {', '.join(DIRECTIONS)} or the .h5 of a stored plane"
            )
        needs = {"ckpt": "ckpt_to", "pca": "trajectory"}
        if kind in needs and not getattr(self, needs[kind]):
            raise InputError(f"--directions {kind} needs --{needs[kind].replace('_', '-')}")
        belongs = {"ckpt_to": ("ckpt",), "trajectory": ("pca",), "of": ("eigen", "gradient"), "match": ("ckpt",),
                   "memory": ("eigen",)}  # fmt: skip
        for name, kinds in belongs.items():
            if getattr(self, name) and kind not in kinds:
                option = f"--{name.replace('_', '-')}"
                raise InputError(f"{option} goes with --directions {' or '.join(kinds)}, not with {kind}")
        if kind != "random" and not (kind == "ckpt" and len(self.ckpt_to) < n_axes):
            refuse_typed(("norm", "ignore"), f"is for random directions, not for --directions {kind}: leave it out")
        if n_axes == 1 or kind not in _SQUARED:
            refuse_typed(["orthogonal"], f"has no effect on a surface{n_axes}d with --directions {kind}: leave it out")
        if self.plane_origin and not stored:
            raise InputError("--plane-origin goes with --directions FILE.h5, the plane of another run")
        if len(self.ckpt_to) > n_axes:
            raise InputError(
                f"--ckpt-to is given {len(self.ckpt_to)} times, a surface{n_axes}d has {n_axes} direction(s)"
            )


def directed(
    objective: Objective, n_axes: int, chosen: Chosen, console: Console, reading: Mapping[str, Any]
) -> tuple[Directions, dict[str, Point]]:
    """Return the directions, and the marks by their names.

    Args:
        objective: at the checkpoint.
        n_axes: number of directions.
        chosen: the options.
        console: prints what a matching of channels found.
        reading: how checkpoints are read: `key` and `trust_pickle`.
    """
    kind = chosen.kind
    others = _others(objective, chosen, console, reading)
    marks = points.joined(others if kind == "ckpt" else {}, read(objective, chosen.mark, reading))
    if kind in AROUND:
        found = around(
            objective,
            n_axes,
            kind=kind,
            of=chosen.of,
            seed=chosen.seed,
            norm=chosen.norm,
            ignore=chosen.ignore,
            memory=chosen.memory,
        )
    elif kind == "ckpt":
        found = _towards(objective, others, n_axes, chosen)
    elif kind == "pca":
        files = path_of_training(
            chosen.trajectory or "", ckpt_key=reading["key"], trust_pickle=bool(reading["trust_pickle"])
        )
        path = read(objective, files, reading)
        found = directions.principal(objective, list(path.values()), n_axes)
        marks = points.joined(marks, path)
    else:
        found = stored_plane(objective, kind, n_axes, own_origin=not chosen.plane_origin)
    square = found.orthogonalised()  # which refuses parallel directions
    return square if chosen.orthogonal and kind in _SQUARED else found, marks


def read(objective: Objective, files: Sequence[Any], reading: Mapping[str, Any]) -> dict[str, Point]:
    """Read checkpoints, by names that differ."""
    return {name: point for name, (point, _) in points.read(objective, files, **reading).items()}


def _others(objective: Objective, chosen: Chosen, console: Console, reading: Mapping[str, Any]) -> dict[str, Point]:
    """Return the checkpoints of --ckpt-to; with --match, the one after its channels have changed places."""
    if not chosen.match:
        return read(objective, chosen.ckpt_to, reading)
    (snapshot,) = snapshots.find(objective, list(chosen.ckpt_to), **reading)
    network = snapshots.network(objective, snapshot, **reading)
    n_parts = len(objective.partition)
    inputs = (objective.batch(p, b)[0] for p in range(n_parts) for b in range(objective.n_batches(p)))
    found = matching.match(objective.model, network, inputs)
    console.note(
        f"matching: {found.moved:,} of {found.n_channels:,} channels change places; mean correlation "
        f"{found.correlation_before:.3f} before, {found.correlation:.3f} after"
    )
    network.load_state_dict(found.state)
    points.refuse_other_fixed(objective, network, chosen.ckpt_to[0])
    matched = points.of_network(objective, network)
    if matched.theta.equal(points.origin(objective).theta):
        raise InputError(
            f"{chosen.ckpt_to[0]} is this very network with its channels in another order: after --match nothing lies "
            "between them, and every barrier is 0"
        )
    return {f"{snapshot.name} (matched)": matched}


def _towards(objective: Objective, others: Mapping[str, Point], n_axes: int, chosen: Chosen) -> Directions:
    """Return directions to checkpoints; if a plane lacks one, it is a random one of the length of the other."""
    found = directions.towards(objective, list(others.values()), list(others))
    if len(others) == n_axes:
        return found
    other = directions.random(objective, 1, seed=chosen.seed, normalisation=chosen.norm, ignored=chosen.ignore)
    return found.joined(other, length=float(found.unit_length[0]))
