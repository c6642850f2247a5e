"""The one loop: what is finished is skipped, what is missing is computed, kept at once and joined at the end.

An analysis says what its units are and how to compute one; resuming, progress, interruption and how ranks share the
work are the same for all and live here.

Where an analysis says what its units cost, the largest may be shared: all ranks compute one together, each on its share
of the samples. A unit that is shared by R ranks is taken to last 1 / (0.8 R) of its own time, since ranks wait for each
other at every sum. With units in the order of their costs, the k largest are shared and the others dealt, the largest
first, with the k by which all are done soonest. So one large part is always shared, and many alike are dealt.

A unit for which memory runs out begins again with half as many samples at a time, unless it is shared: the other ranks
would not wait.
"""

import heapq
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias, cast

import numpy as np

from landscape.autodiff import devices, distributed, memory
from landscape.autodiff.costs import refuse_undeclared
from landscape.errors import InputError, arg
from landscape.results import R, store
from landscape.results.axes import concatenate
from landscape.results.journal import Journal

Progress: TypeAlias = Callable[[float, int, str], None]
"""Called with how many units are done, shares included, how many there are, and the one in work ("" at the end)."""

Destination: TypeAlias = str | Path | Journal
"""The file that a result goes to, or the journal of a run that it is a piece of."""

EFFICIENCY = 0.8
"""Share of the speed of R ranks that R ranks reach on one unit."""


class Interrupted(KeyboardInterrupt):
    """Ctrl-C during a run; the message says what is kept and how to go on."""


def open_journal(out: Destination, fingerprint: Mapping[str, Any], *, overwrite: bool = False) -> Journal:
    """Open one journal on all ranks: first on the main rank, which owns the folder, then on the others.

    Args:
        out: the file that the result will go to; or the journal of a run that this is a piece of, which then has units
            of its own in there, and whose result is left to the whole run.
        fingerprint: everything that changes the numbers, as for `Journal.open`.
        overwrite: begin anew, and replace `out` when the new result is complete.

    Returns:
        The open journal.

    Raises:
        StoreError: as for `Journal.open`.
    """
    distributed.refuse_disagreement(fingerprint)
    if isinstance(out, Journal):
        return out.within(store.to_json(fingerprint, "the fingerprint of the run"))
    try:
        if distributed.is_main():
            return Journal.open(out, fingerprint, overwrite=overwrite)
    finally:
        distributed.barrier()
    return Journal.open(out, fingerprint, owner=False)


@devices.full_precision()
def run(
    units: Sequence[str],
    compute: Callable[[str, Callable[[float], None]], R],
    journal: Journal | None = None,
    progress: Progress | None = None,
    *,
    costs: Sequence[float] | None = None,
) -> R:
    """Compute the units that are not finished and join them all.

    With several ranks every rank must call this, with the same units; each draws units as it becomes free, after those
    that all compute together. Units are computed in full precision, see `devices.full_precision`.

    Args:
        units: at least one name; no two alike.
        compute: returns the result of a unit; it is given the unit and a function to report the fraction of it that is
            done. It must depend on the unit alone, not on the units before it: after
            an interruption those are not computed again.
        journal: keeps each finished unit and knows those of earlier attempts. None keeps nothing.
        progress: called before each unit and at the end. With several ranks it counts what all have finished.
        costs: what the units take, in any measure; None for units that cannot be shared. `compute` of a unit that can
            asks `distributed.team` for its share, and its sums are those of all ranks.

    Returns:
        One result with the parts of all units, in the order of `units`; on every rank the same.

    Raises:
        InputError: no units, two of one name, or several ranks without a journal, through which they share.
        Interrupted: Ctrl-C; finished units stay in the journal. The same holds when `compute` raises.
    """
    refuse_undeclared()
    if not units or len(set(units)) < len(units):
        raise InputError(f"a run needs units that all differ, got {', '.join(map(repr, units)) or 'none'}")
    if journal is None:
        return _run_alone(units, compute, progress)

    missing, n_shared = _in_order(units, journal, costs)

    def found(unit: str) -> R:
        return compute(unit, _reporter(progress, sum(map(journal.has, units)), len(units), unit))

    def found_alone(unit: str) -> R:
        return memory.halving(partial(found, unit))

    try:
        with distributed.together():
            for unit in missing[:n_shared]:
                result = found(unit)
                if distributed.is_main():
                    journal.write(unit, result)
        dealt = missing[n_shared:]
        for i in distributed.deal(len(dealt), journal.folder):
            journal.write(dealt[i], found_alone(dealt[i]))
        if progress:
            progress(len(units), len(units), "")
        result = cast(R, journal.merge(units))
        distributed.barrier()  # the owner may now finish the journal: no rank reads it any more
    except KeyboardInterrupt as error:
        kept = len(journal.done().intersection(units))
        again = f"repeat the command, without {arg('overwrite', True)}, to go on from there"
        advice = again if kept or journal.in_work() else "nothing is kept"
        raise Interrupted(f"interrupted: {kept} of {len(units)} units are finished; {advice}") from error
    return result


def _in_order(units: Sequence[str], journal: Journal, costs: Sequence[float] | None) -> tuple[list[str], int]:
    """Return the units that are not finished, the same on all ranks, and how many of the first are shared."""
    finished = journal.done()
    with distributed.together():  # a file may be seen by one rank before the others
        is_missing = distributed.team().agreed(np.array([unit not in finished for unit in units]))
    missing = [i for i, missed in enumerate(is_missing) if missed]
    if costs is None or distributed.world() == 1:
        return [units[i] for i in missing], 0
    missing.sort(key=lambda i: -costs[i])
    return [units[i] for i in missing], n_shared([costs[i] for i in missing], distributed.world())


def n_shared(costs: Sequence[float], ranks: int) -> int:
    """Return how many of the largest units are computed by all ranks together, so that all are done soonest.

    Args:
        costs: of the units, descending.
        ranks: how many there are.

    Returns:
        The number; the rule is at the head of this file.
    """
    if ranks == 1:
        return 0
    times = [sum(costs[:k]) / (EFFICIENCY * ranks) + _last_end(costs[k:], ranks) for k in range(len(costs) + 1)]
    return times.index(min(times))


def _last_end(costs: Sequence[float], ranks: int) -> float:
    """Return when the last rank is done, where each that is free takes the next unit."""
    ends = [0.0] * ranks
    for cost in costs:
        heapq.heapreplace(ends, ends[0] + cost)
    return max(ends)


def _run_alone(
    units: Sequence[str], compute: Callable[[str, Callable[[float], None]], R], progress: Progress | None
) -> R:
    if distributed.world() > 1:
        raise InputError(f"{distributed.world()} processes share their work through a journal: give {arg('out')}")
    results: list[R] = []
    for i, unit in enumerate(units):
        try:
            results.append(memory.halving(partial(compute, unit, _reporter(progress, i, len(units), unit))))
        except KeyboardInterrupt as error:
            raise Interrupted(f"interrupted: {i} of {len(units)} units were finished; nothing is kept") from error
    if progress:
        progress(len(units), len(units), "")
    return concatenate(results)


def _reporter(progress: Progress | None, done: int, total: int, unit: str) -> Callable[[float], None]:
    def report(share: float) -> None:
        distributed.alive()
        if progress:
            progress(done + share, total, unit)

    report(0)
    return report
