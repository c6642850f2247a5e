"""The room for vectors beside each part of a spectrum, and the parts whose vectors only all processes together keep.

A part that is dealt to one process has its vectors there. If a Lanczos basis does not fit, the part takes up to four
times as many products and loses vectors (curvature/bounded.py), or cannot be computed at all. If all processes compute
the part together, they divide the vectors; so a part is shared if that is enough, whatever the times say. Each of them
needs some whole vectors; where a process has no room for these, the others compute the part, each by itself.
"""

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch

from landscape.analyses import samples as of_samples
from landscape.analyses.options import Options, Way
from landscape.analyses.pooled import MOST_ROWS
from landscape.autodiff import distributed
from landscape.autodiff.distributed import ALONE, Team
from landscape.curvature import places, probing
from landscape.curvature.algebra import Operator
from landscape.curvature.places import Room
from landscape.objective import jobs
from landscape.objective.objective import Objective


class RoomOnce:
    """Says how many vectors fit into the memory of each process of a team, as it was when it was first asked.

    Later the basis of another part may lie there, whose place is free again when it is needed.
    """

    def __init__(self, memory_bytes: int | None) -> None:
        """Measure nothing yet; `memory_bytes` is as for `spectrum`."""
        self.memory_bytes = memory_bytes
        self.known: np.ndarray | None = None  # bytes on the device and on the host, as of `places.free`

    def __call__(self, operator: Operator, rows: int = 0, trial: Operator | None = None) -> Room:
        """Return the room beside an operator.

        Args:
            operator: of one part.
            rows: bytes of the rows that are kept beside it.
            trial: the operator of which one product shows how much memory products need for a moment; None means
                this one.

        Returns:
            The room, for the operator's team.
        """
        if not operator.team.all(self.known is not None):  # memory may have run out in one process only
            self.known = None
        own = self.bytes(trial or operator, rows) - [operator.keeps + rows, 0]
        return room_of(operator.team.least(own), operator.size * operator.dtype.itemsize, operator.team)

    def bytes(self, trial: Operator, rows: int = 0) -> np.ndarray:
        """Return the free memory on the device and on the host; arguments as for a call, the trial is required."""
        if self.known is None:
            if self.memory_bytes is not None:
                trial.matvec(torch.ones(1, 1, trial.size, dtype=trial.dtype, device=trial.device))
            on_device, on_host = places.free(trial.device, self.memory_bytes)
            self.known = np.array([on_device + rows, on_host])
        return self.known


def room_of(free: np.ndarray, entry: int, team: Team) -> Room:
    """Return how many vectors of `entry` bytes fit into the free bytes on the device and on the host, (2,)."""
    on_device, on_host = (int(n) // entry for n in free)
    return Room(on_device, on_host, team)


def trial_of(sizes: Sequence[int], batch_size: int) -> int:
    """Return the position of the smallest part whose products need as much memory for a moment as those of any part.

    Args:
        sizes: numbers of samples of the parts.
        batch_size: samples at a time.
    """
    enough = min(batch_size, max(sizes))
    return min((p for p, n in enumerate(sizes) if n >= enough), key=lambda p: sizes[p])


def sizes_of(parts: Sequence[str], objective: Objective) -> list[int]:
    """Return the numbers of samples of some of an objective's parts, by their names."""
    return [len(objective.members[objective.part(name)]) for name in parts]


def rows_beside(options: Options, row_bytes: int, entry: int, n: int, *, complete: bool) -> int:
    """Return a bound on the memory of the rows of single samples that are kept beside the vectors of a part.

    Args:
        options: of the spectrum.
        row_bytes: memory for rows, see `row_numbers.row_bytes`; 0 without rows.
        entry: bytes of one row.
        n: number of samples.
        complete: whether all rows are measured, which makes vectors needless unless there are too many.

    Returns:
        Bytes.
    """
    later = min(row_bytes // 2, MOST_ROWS * entry) if options.sampling_errors else 0
    if complete:
        return later + (row_bytes if options.method == "lanczos" else 0)
    return later + min(row_bytes, max(of_samples.DIRECTION_ROWS, n) * entry)


def is_ample(options: Options, size: int, entry: int, free: np.ndarray, beside: int) -> bool:
    """Say whether one process certainly keeps the basis of a part.

    Args:
        options: of the spectrum.
        size: D.
        entry: bytes of one vector.
        free: bytes on the device and on the host.
        beside: the most bytes that are needed on the device beside the basis.

    Returns:
        Whether it does.
    """
    return options.way(room_of(free - [beside, 0], entry, ALONE), size) is Way.BASIS


def needs_all(
    options: Options, size: int, entry: int, free: np.ndarray, beside: Callable[[Team], int], team: Team
) -> bool:
    """Say whether all processes must compute a part together, because one alone has too little room for its vectors.

    Args:
        options: of the spectrum.
        size: D.
        entry: bytes of one vector.
        free: bytes on the device and on the host, the least of all processes.
        beside: returns the bytes that each process of a team needs on the device beside the part's vectors.
        team: all processes.

    Returns:
        Whether these can keep a basis, or at least the vectors of a restarted run, and one alone cannot.
    """
    alone, together = (options.way(room_of(free - [beside(of), 0], entry, of), size) for of in (ALONE, team))
    return together > alone


def too_large(
    names: Sequence[str],
    operator: Operator,
    options: Options,
    room: RoomOnce,
    rows: Callable[[str], int] = lambda name: 0,
    *,
    has_vectors: bool = True,
) -> jobs.Large:
    """Return the parts for whose vectors some processes have too little memory; all call this, as a team.

    Args:
        names: of the parts in question.
        operator: of all parts of an objective.
        options: of the spectrum.
        room: measures the room before the first part.
        rows: returns a bound on the bytes of the rows beside the vectors of a part.
        has_vectors: the parts have vectors in any case, also if all rows are kept.

    Returns:
        The parts that all must compute together, see `needs_all`; and those for which one has too little memory even
        then, with the processes that can compute them by themselves, and in the best way.

    Raises:
        InputError: on all processes, if there is no such process.
    """
    team, entry, objective = distributed.team(), operator.size * operator.dtype.itemsize, operator.objective
    if objective is None:
        return jobs.Large()
    sizes = sizes_of(names, objective)
    if team.size > 1 and jobs.n_shared(sorted(sizes, reverse=True), team.size) == len(names):
        trial = operator[names[int(np.argmax(sizes))]].shared()  # the first one that all compute
    else:
        trial = operator.restrict([trial_of(sizes_of(operator.parts, objective), objective.batch_size)])
    of_processes = team.gathered(torch.as_tensor(room.bytes(trial))[None]).numpy()
    free, process = of_processes.min(axis=0), int(of_processes[:, 0].argmin()) if team.size > 1 else None

    def kept(name: str, of: Team) -> int:
        own = operator[name]
        return (own.shared() if of.size > 1 else own).keeps

    def beside(name: str, of: Team) -> int:
        return kept(name, of) + rows(name) // of.size

    of_some: dict[str, list[int]] = {}
    of_products = team.agreed(np.array([(kept(name, team), kept(name, ALONE)) for name in names]))
    for name, (keeps, alone) in zip(names, of_products, strict=True) if has_vectors else ():
        most = room_of(free - [keeps, 0], entry, team)  # without any row
        if options.way(most, operator.size) is Way.NONE:
            of_some[name] = _able(options, operator.size, entry, of_processes, (alone + rows(name), alone))
            if not of_some[name]:
                probing.refuse_restart(operator, options.plan(most), part=name, process=process)

    found = [needs_all(options, operator.size, entry, free, partial(beside, name), team) for name in names]
    is_large = team.agreed(np.array(found))
    together = [name for name, large in zip(names, is_large, strict=True) if large and name not in of_some]
    return jobs.Large(together, of_some)


def _able(options: Options, size: int, entry: int, of_processes: np.ndarray, beside: Sequence[float]) -> list[int]:
    """Return the processes that can compute a part by themselves, those in the best way of all.

    Args:
        options: of the spectrum.
        size: D.
        entry: bytes of one vector.
        of_processes: bytes on the device and on the host of each process, (R, 2).
        beside: bytes that a process needs on the device beside the part's vectors, then fewer that may be enough.

    Returns:
        Their numbers; none if no process can.
    """
    for n_bytes in beside:
        ways = [options.way(room_of(own - [n_bytes, 0], entry, ALONE), size) for own in of_processes]
        if max(ways) is not Way.NONE:
            return [number for number, way in enumerate(ways) if way is max(ways)]
    return []
