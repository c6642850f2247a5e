"""The one loop: what is finished is skipped, what is missing is computed, kept at once and joined at the end.

An analysis says what its units are and how to compute one; resuming, progress, interruption and the dealing of
units to ranks are the same for all and live here.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias, cast

from landscape.autodiff import devices, distributed
from landscape.errors import InputError, arg
from landscape.results import R
from landscape.results.axes import concatenate
from landscape.results.journal import Journal

Progress: TypeAlias = Callable[[float, int, str], None]
"""Called with how many units are done, shares included, how many there are, and the one in work ("" at the end)."""


class Interrupted(KeyboardInterrupt):
    """Ctrl-C during a run; the message says what is kept and how to go on."""


def open_journal(out: str | Path, fingerprint: Mapping[str, Any], *, overwrite: bool = False) -> Journal:
    """Open one journal on all ranks: the main one first, as the owner of the folder, then the others.

    Args:
        out: the file that the result will go to.
        fingerprint: everything that changes the numbers, as for `Journal.open`.
        overwrite: begin anew, and replace `out` when the new result is complete.

    Returns:
        The open journal.

    Raises:
        StoreError: as for `Journal.open`.
    """
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
) -> R:
    """Compute the units that are not finished and join them all.

    With several ranks every rank must call this, with the same units; each draws units as it becomes free. Units are
    computed in full precision, see `devices.full_precision`.

    Args:
        units: at least one name; no two alike.
        compute: returns the result of a unit; it is given the unit and a function to report the share of it that is
            done. It must depend on the unit alone, not on the units before it: after
            an interruption those are not computed again.
        journal: keeps each finished unit and knows those of earlier attempts. None keeps nothing.
        progress: is told before each unit and at the end. With several ranks it counts what all have finished.

    Returns:
        One result with the parts of all units, in the order of `units`; on every rank the same.

    Raises:
        InputError: no units, two of one name, or several ranks without a journal, through which they share.
        Interrupted: Ctrl-C; finished units stay in the journal. The same holds when `compute` raises.
    """
    if not units or len(set(units)) < len(units):
        raise InputError(f"a run needs units that all differ, got {', '.join(map(repr, units)) or 'none'}")
    if journal is None:
        return _run_alone(units, compute, progress)

    finished = journal.done()
    try:
        for i in distributed.deal(len(units), journal.folder):
            if units[i] in finished:
                continue
            report = _reporter(progress, sum(map(journal.has, units)), len(units), units[i])
            journal.write(units[i], compute(units[i], report))
        if progress:
            progress(len(units), len(units), "")
        result = cast(R, journal.merge(units))
        distributed.barrier()  # the owner may now finish the journal: no rank reads it any more
    except KeyboardInterrupt as error:
        kept = len(journal.done().intersection(units))
        advice = (
            f"repeat the command, without {arg('overwrite', True)}, to go on from there" if kept else "nothing is kept"
        )
        raise Interrupted(f"interrupted: {kept} of {len(units)} units are finished; {advice}") from error
    return result


def _run_alone(
    units: Sequence[str], compute: Callable[[str, Callable[[float], None]], R], progress: Progress | None
) -> R:
    if distributed.world() > 1:
        raise InputError(f"{distributed.world()} processes share their work through a journal: give {arg('out')}")
    results: list[R] = []
    for i, unit in enumerate(units):
        try:
            results.append(compute(unit, _reporter(progress, i, len(units), unit)))
        except KeyboardInterrupt as error:
            raise Interrupted(f"interrupted: {i} of {len(units)} units were finished; nothing is kept") from error
    if progress:
        progress(len(units), len(units), "")
    return concatenate(results)


def _reporter(progress: Progress | None, done: int, total: int, unit: str) -> Callable[[float], None]:
    def report(share: float) -> None:
        if progress:
            progress(done + share, total, unit)

    report(0)
    return report
