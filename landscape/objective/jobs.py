"""The loop over units of work: finished units are skipped, the others computed, stored at once and joined at the end.

An analysis defines its units and how to compute one. Resuming, progress, interruption and the division of work among
ranks are the same for all analyses and are implemented here.

If an analysis states the costs of its units, the largest may be shared: all ranks compute one unit together, each for
some of the samples. A unit that R ranks share is assumed to need 1 / (0.8 R) of its own time, because ranks wait for
each other at every sum. Units are sorted by their costs; the k largest are shared and the others dealt, the largest
first, with the k for which all units are done soonest. So a single large part is always shared, and many parts of
similar size are dealt. Units that need the memory of all ranks are shared in any case. Units for which some ranks have
too little memory even then are dealt to the others.

If memory runs out, a unit is computed again with half as many samples at a time; a shared one by all ranks, if memory
runs out in one of them. The `batch_size` in the provenance is then the smaller number. If a rank has no memory for the
fewest samples of a unit that was dealt to it, that unit is dealt again, to the other ranks.
"""

import heapq
import logging
from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias, cast

import numpy as np
import torch

from landscape.autodiff import dealing, devices, distributed, memory
from landscape.autodiff.costs import Plan, refuse_undeclared, wanted
from landscape.autodiff.costs import declare as costs_declared
from landscape.errors import InputError, StoreError, arg, is_of_memory, one_line
from landscape.results import R, Result, store
from landscape.results.axes import concatenate
from landscape.results.journal import Journal

log = logging.getLogger(__name__)

Progress: TypeAlias = Callable[[float, int, str], None]
"""Called with the number of finished units (with fractions), the number of all units, and the current unit or ""."""

Destination: TypeAlias = str | Path | Journal
"""The file for a result, or the journal of a larger run of which the result is a piece."""


@dataclass(frozen=True)
class Large:
    """Units for which some ranks, each by itself, have too little memory."""

    together: Collection[str] = ()  # that all ranks must compute together
    of_some: Mapping[str, Collection[int]] = field(
        default_factory=dict
    )  # that only these ranks can compute, by themselves


TooLarge: TypeAlias = Callable[[Sequence[str]], Large]
"""Says for which of some units there is too little memory, or refuses what no rank has it for. All ranks call it
together, or one that is alone; it returns the same on all."""


class Interrupted(KeyboardInterrupt):
    """Ctrl-C during a run; the message says what is stored and how to continue."""


def declare(plan: Callable[[], Plan], out: Destination | None) -> None:
    """Declare the costs of a run, as `costs.declare`; if they are wanted, a file that no run can write is refused.

    Args:
        plan: returns the plan of the run.
        out: as for `open_journal`; None for no file.

    Raises:
        Declared: only the costs are wanted.
        StoreError: and the file cannot be written, even if an existing result may be replaced.
    """
    if wanted() and isinstance(out, str | Path):
        Journal.refuse(out)
    costs_declared(plan)


def open_journal(
    out: Destination, fingerprint: Mapping[str, Any], *, overwrite: bool = False, replaces: bool = False
) -> Journal:
    """Open one journal on all ranks: first on the main rank, which owns the folder, then on the others.

    Args:
        out: the file for the result; or the journal of a larger run, in which this piece stores its own units and which
            writes the result.
        fingerprint: everything that changes the numbers, as for `Journal.open`.
        overwrite: restart, and replace `out` when the new result is complete.
        replaces: only the latter.

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
            return Journal.open(out, fingerprint, overwrite=overwrite, replaces=replaces)
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
    too_large: TooLarge | None = None,
) -> R:
    """Compute the units that are not finished and join them all.

    With several ranks, every rank must call this with the same units. After the shared units, each rank takes the next
    unit as soon as it is free. Units are computed in full precision, see `devices.full_precision`.

    Args:
        units: at least one name; names must be distinct.
        compute: returns the result of a unit, given the unit and a function that reports the completed fraction of it.
            It must depend only on the unit, not on earlier units: after an interruption these are not computed again.
        journal: stores each finished unit and has those of earlier attempts. None stores nothing.
        progress: called before each unit and at the end. With several ranks it counts the units that all have finished.
        costs: of the units, in any unit of measure; None if they cannot be shared. `compute` of a unit that can be
            shared asks `distributed.team` for its samples, and its sums are those of all ranks.
        too_large: of the units; None means that none is.

    Returns:
        One result with the parts of all units, in the order of `units`; on every rank the same.

    Raises:
        InputError: no units, two units of one name, or several ranks without a journal, which they need to share work.
        Interrupted: Ctrl-C; finished units stay in the journal. They also stay there if `compute` raises.
    """
    refuse_undeclared()
    memory.begin()
    if not units or len(set(units)) < len(units):
        raise InputError(f"a run needs units that all differ, got {', '.join(map(repr, units)) or 'none'}")
    if journal is None:
        return _run_alone(units, compute, progress, too_large)

    missing, n_shared, of_some = _in_order(units, journal, costs, too_large)

    def found(unit: str) -> R:
        report = _reporter(progress, sum(map(journal.has, units)), len(units), unit)
        return memory.halving(partial(_marked(compute), unit, report))

    try:
        with distributed.together():
            for unit in missing[:n_shared]:
                result = found(unit)
                if distributed.is_main():
                    journal.write(unit, result)
        with _owner_may_be_lost(journal):
            _deal(missing[n_shared:], of_some, journal, found)
        if progress:
            progress(len(units), len(units), "")
        result = cast(R, journal.merge(units))
        with distributed.together():  # also, the owner may now finish the journal: no rank reads it any more
            memory.agree()  # as what is computed after this run states the samples at a time
    except KeyboardInterrupt as error:
        kept = len(journal.done().intersection(units))
        raise Interrupted(f"interrupted: {kept} of {len(units)} units are finished; {journal.advice()}") from error
    return result


def _deal(
    units: Sequence[str], of_some: Mapping[str, Collection[int]], journal: Journal, found: Callable[[str], Result]
) -> None:
    """Deal units to the ranks, and those for which memory has run out in a rank to the others, until all are stored.

    All ranks leave together, also if there is no unit.

    Args:
        units: their names, the same on all ranks.
        of_some: those that only some ranks draw, with the numbers of these.
        journal: stores their results.
        found: computes the result of a unit.

    Raises:
        RankError: another rank has failed; also if memory has run out in all ranks for a unit, and in that one last.
    """
    able = {unit: set(of_some.get(unit, range(distributed.world()))) for unit in units}
    while True:
        only = {i: able[unit] for i, unit in enumerate(units) if len(able[unit]) < distributed.world()}
        scarce: set[str] = set()  # units for which this rank has no memory
        for i in dealing.deal(len(units), journal.folder, only):
            with _begun(units[i], journal):
                try:
                    result = found(units[i])
                except Exception as error:
                    if len(able[units[i]]) == 1 or not is_of_memory(error):
                        raise
                    scarce.add(units[i])
                    log.warning("%s: memory has run out, another process computes it: %s", units[i], one_line(error))
                    continue
                journal.write(units[i], result)
        if units:
            with distributed.together():
                of_ranks = distributed.team().gathered(torch.tensor([[unit in scarce for unit in units]])).numpy()
            for unit, failed in zip(units, of_ranks.T, strict=True):
                able[unit] -= set(np.flatnonzero(failed).tolist())
            units = [unit for unit, failed in zip(units, of_ranks.T, strict=True) if failed.any()]
        if not units:
            return


@contextmanager
def _owner_may_be_lost(journal: Journal) -> Generator[None, None, None]:
    """Turn errors after the owner of a journal has ended, and removed its folder, into one line that says so."""
    try:
        yield
    except (OSError, RuntimeError, StoreError) as error:
        if distributed.world() == 1 or journal.folder.exists():
            raise
        raise distributed.lost(error) from error


@contextmanager
def _begun(unit: str, journal: Journal) -> Generator[None, None, None]:
    """Mark a unit as begun while it is computed, so that an owner of the journal that ends leaves the folder to it."""
    mark = journal.work(f"{unit}, begun")
    if distributed.world() > 1:
        mark.touch()
    try:
        yield
    finally:
        mark.unlink(missing_ok=True)


def _marked(compute: Callable[[str, Callable[[float], None]], R]) -> Callable[[str, Callable[[float], None]], R]:
    """Return the function with results that state the samples at a time, which are fewer if memory has run out."""

    def marked(unit: str, report: Callable[[float], None]) -> R:
        result = compute(unit, report)
        size = result.provenance.get("batch_size")
        fewest = size and memory.fewest(size)
        return result if fewest == size else replace(result, provenance={**result.provenance, "batch_size": fewest})

    return marked


def _in_order(
    units: Sequence[str],
    journal: Journal,
    costs: Sequence[float] | None,
    too_large: TooLarge | None,
) -> tuple[list[str], int, Mapping[str, Collection[int]]]:
    """Return the unfinished units, the number of the first ones that are shared, and those that only some ranks draw.

    All ranks return the same.
    """
    finished = journal.done()
    with distributed.together():  # a file may be seen by one rank before the others
        is_missing = distributed.team().agreed(np.array([unit not in finished for unit in units]))
    missing = [unit for unit, missed in zip(units, is_missing, strict=True) if missed]
    if missing and too_large is not None and distributed.world() == 1:
        memory.halving(partial(too_large, missing))
    if costs is None or distributed.world() == 1:
        return missing, 0, {}
    of_missing = {unit: cost for unit, cost in zip(units, costs, strict=True) if unit in missing}
    large = Large()
    if missing and too_large is not None:
        with distributed.together():
            large = memory.halving(partial(too_large, missing))
    return *shared_first(of_missing, large, distributed.world()), large.of_some


def shared_first(costs: Mapping[str, float], large: Large, ranks: int) -> tuple[list[str], int]:
    """Return units in the order in which they are computed, and the number of the first ones that are shared.

    Args:
        costs: of the units, by their names.
        large: units that are shared, or dealt, in any case.
        ranks: number of ranks.

    Returns:
        The names, and the number; see `n_shared`.
    """
    order = sorted(costs, key=lambda unit: (unit in large.of_some, unit not in large.together, -costs[unit]))
    n, of_rule = len(large.together), order[len(large.together) : len(order) - len(large.of_some)]
    return order, n + n_shared([costs[unit] for unit in of_rule], ranks)


def n_shared(costs: Sequence[float], ranks: int) -> int:
    """Return the number of the largest units that all ranks compute together, so that all units are done soonest.

    Args:
        costs: of the units, descending.
        ranks: number of ranks.

    Returns:
        The number; the docstring of this module states the rule.
    """
    if ranks == 1:
        return 0
    sooner = distributed.EFFICIENCY * ranks
    times = [sum(costs[:k]) / sooner + _last_end(costs[k:], ranks) for k in range(len(costs) + 1)]
    return times.index(min(times))


def _last_end(costs: Sequence[float], ranks: int) -> float:
    """Return when the last rank is done if each free rank takes the next unit."""
    ends = [0.0] * ranks
    for cost in costs:
        heapq.heapreplace(ends, ends[0] + cost)
    return max(ends)


def _run_alone(
    units: Sequence[str],
    compute: Callable[[str, Callable[[float], None]], R],
    progress: Progress | None,
    too_large: TooLarge | None,
) -> R:
    if distributed.world() > 1:
        raise InputError(f"{distributed.world()} processes share their work through a journal: give {arg('out')}")
    if too_large is not None:
        memory.halving(partial(too_large, units))
    results: list[R] = []
    for i, unit in enumerate(units):
        try:
            results.append(memory.halving(partial(_marked(compute), unit, _reporter(progress, i, len(units), unit))))
        except KeyboardInterrupt as error:
            raise Interrupted(f"interrupted: {i} of {len(units)} units were finished; nothing is kept") from error
    if progress:
        progress(len(units), len(units), "")
    return concatenate(results)


def _reporter(progress: Progress | None, done: int, total: int, unit: str) -> Callable[[float], None]:
    def report(share: float) -> None:
        dealing.alive()
        if progress:
            progress(done + share, total, unit)

    report(0)
    return report
