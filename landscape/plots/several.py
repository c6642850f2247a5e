"""A figure of several results, and the parts that it has unless the user chooses some."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from matplotlib.figure import Figure

from landscape.errors import InputError, arg, said

MOST_PANELS = 24
"""The largest number of panels in a figure of several results."""

Default: TypeAlias = Callable[[Sequence[Any]], list[str] | None]
"""Return the parts of a figure of some results if the user chooses none; None leaves the choice to the figure."""


def common(results: Sequence[Any]) -> list[str]:
    """Return the parts that all results have, in the order of the first result."""
    return [part for part in results[0].parts if all(part in result.parts for result in results)]


def own_choice(results: Sequence[Any]) -> None:
    """Leave the choice to the figure, whatever parts the results have."""


def a_panel_each(results: Sequence[Any]) -> list[str]:
    """Return the parts that all results have, for a figure with one panel for each part of each result.

    Raises:
        InputError: the results have no part in common, or there would be more than `MOST_PANELS` panels.
    """
    parts = _some_common(results)
    panels = len(parts) * len(results)
    if panels > MOST_PANELS:
        join = f", or join them by {said('ls.regroup', '--groups head-tail')}" if results[0].kind == "surface" else ""
        choice = arg("parts", f"{parts[0]},{parts[-1]}")
        raise InputError(f"{panels} panels are too many for a figure: choose by {choice}{join}")
    return parts


def only_one(results: Sequence[Any]) -> list[str] | None:
    """Return the part that all results have, if there is exactly one; otherwise leave the choice to the figure.

    Raises:
        InputError: the results have no part in common.
    """
    parts = _some_common(results)
    return parts if len(parts) == 1 else None


def _some_common(results: Sequence[Any]) -> list[str]:
    parts = common(results)
    if not parts:
        raise InputError(
            f"the files have no part in common: analyse them with one {arg('partition')}, or join by "
            f"{said('ls.regroup', '--groups')}"
        )
    return parts


@dataclass(frozen=True)
class Several:
    """A figure of several results of one kind."""

    draw: Callable[..., Figure]  # (name -> result, parts) -> the figure
    default: Default = own_choice
