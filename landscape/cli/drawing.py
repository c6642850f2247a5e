"""Options of `landscape plot` that only some kinds of figures have."""

from collections.abc import Mapping
from typing import Any

import click

from landscape.errors import InputError
from landscape.results import quadrature


def _ends(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[float, float] | None:
    """Take two numbers from "MIN:MAX"."""
    if value is None:
        return None
    try:
        low, high = (float(word) for word in value.split(":"))
    except ValueError:
        raise click.BadParameter(f"{value!r} is not of the form MIN:MAX, as in --limits=-100:100", ctx, param) from None
    return low, high


DRAWING = (
    click.option("--axis", type=click.Choice(quadrature.AXES), help="Axis of the eigenvalues. [default: symlog]"),
    click.option(
        "--width",
        help="Standard deviation of the Gaussians on the axis: a number, or one of "
        f"{', '.join(quadrature.WIDTHS)}. [default: auto]",
    ),
    click.option(
        "--limits",
        metavar="MIN:MAX",
        callback=_ends,
        help="Of a density: eigenvalues at the ends of the axis; --limits=-100:100 in the paper's Figure 9. "
        "[default: where they end]",
    ),
    click.option(
        "--log/--linear",
        "log",
        default=None,
        help="Of a surface: scale of the loss. [default: logarithmic where the loss spans decades]",
    ),
    click.option("--vmin", type=float, help="Of a surface: lowest loss that is told apart; what is lower is clipped."),
    click.option(
        "--vmax", type=float, help="Of a surface: highest loss that is told apart; what is higher is clipped."
    ),
    click.option("--levels", type=int, metavar="N", help="Of contours: about so many levels. [default: 12]"),
    click.option("--zmax", type=float, help="Of --kind 3d: loss at which the surface is cut off."),
    click.option(
        "--euclidean",
        is_flag=True,
        default=None,
        help="Of a surface: draw lengths to scale, as they are in parameter space, and not coordinates.",
    ),
)
"""Those that are not given are None."""

_CONTOURS = ("contour", "accuracy", "overlay", "path")
_LOSSES = ("contour", "3d", "heat", "overlay", "line", "path", "along")
_KINDS = {
    "axis": ("density",),
    "width": ("density",),
    "limits": ("density",),
    "log": _LOSSES,
    "vmin": (*_LOSSES, "accuracy"),
    "vmax": (*_LOSSES, "accuracy"),
    "levels": _CONTOURS,
    "zmax": ("3d",),
    "euclidean": ("contour", "3d", "heat", "accuracy", "overlay", "line", "path"),
}


def take_drawing(given: dict[str, Any]) -> dict[str, Any]:
    """Take the options of `DRAWING` out of a command's.

    Args:
        given: the command's options, which lose these.

    Returns:
        Those that were given, by their names.
    """
    taken = {name: given.pop(name) for name in _KINDS}
    return {name: value for name, value in taken.items() if value is not None}


def check_drawing(kind: str, drawing: Mapping[str, Any]) -> None:
    """Refuse options that a kind of figure does not have.

    Args:
        kind: of figure.
        drawing: from `take_drawing`.

    Raises:
        InputError: the kind does not have one of them.
    """
    for name, value in drawing.items():
        if kind not in _KINDS[name]:
            option = "--linear" if name == "log" and not value else f"--{name}"
            kinds = ", ".join(_KINDS[name])
            raise InputError(f"{option} is for --kind {kinds}; leave it out for --kind {kind}")
