"""Output of `--dry-run`: the costs of a command."""

from landscape.autodiff.costs import Estimate
from landscape.cli.console import Console, duration

_UNITS = ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"))
_LEAST = 0.1  # share of the seconds below which no advice is given


def show(console: Console, found: Estimate) -> None:
    """Print the steps of a run and their total costs.

    Args:
        console: the console to print to.
        found: the estimate.
    """
    rows = [
        [cost.what, f"{cost.times:,.0f}" if cost.times >= 1 else "<1", duration(cost.seconds)] for cost in found.costs
    ]
    console.table(["steps", "number", "time"], rows, title="what this command would take; nothing is written")
    console.say(f"in all {duration(found.seconds)}, {size(found.memory)} of memory, {size(found.disk)} on the disk")
    if found.note:
        console.say(found.note)
    for cost in sorted(found.costs, key=lambda c: -c.seconds):
        if cost.halve and cost.seconds > _LEAST * found.seconds:
            console.say(f"fewer {cost.what}: {cost.halve}")
    if found.spare:
        console.say(f"less memory: lower {found.spare}")
    console.document({
        "seconds": found.seconds,
        "memory": found.memory,
        "disk": found.disk,
        "note": found.note,
        "steps": [vars(cost) for cost in found.costs],
    })


def size(n_bytes: float) -> str:
    """Write a number of bytes in the unit that fits."""
    for length, unit in _UNITS:
        if n_bytes >= length:
            return f"{n_bytes / length:.3g} {unit}"
    return f"{n_bytes:.0f} B"
