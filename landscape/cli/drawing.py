"""Options of `landscape plot` that only some kinds of figures have: those that the figure's function takes."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import click
import cloup

from landscape import plots
from landscape.cli.options import POSITIVE, Choice, Decorator, listed, option
from landscape.errors import InputError
from landscape.results import quadrature


def _ends(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[float, float] | None:
    """Read two numbers from "MIN:MAX"."""
    if value is None:
        return None
    try:
        low, high = (float(word) for word in value.split(":"))
    except ValueError:
        raise click.BadParameter(f"{value!r} is not of the form MIN:MAX, as in --limits=-100:100", ctx, param) from None
    return low, high


_OPTIONS: dict[str, Decorator[Any]] = {
    "axis": option(
        "--axis",
        type=Choice(quadrature.AXES),
        help="Scale the axis of the eigenvalues linearly, or logarithmically away from zero.",
        show_default="symlog",
    ),
    "width": option(
        "--width",
        metavar="WIDTH",
        help="Smooth a density with Gaussians of this standard deviation on the axis: "
        f"{listed(quadrature.WIDTHS, 'a number')}.",
        show_default="auto",
    ),
    "limits": option(
        "--limits",
        metavar="MIN:MAX",
        callback=_ends,
        help="Draw eigenvalues from MIN to MAX, such as --limits=-100:100 in the paper's Figure 9.",
        show_default="all",
    ),
    "log": option(
        "--log/--linear",
        "log",
        default=None,
        help="Draw the loss on a logarithmic or a linear scale.",
        show_default="logarithmic where the loss spans decades",
    ),
    "vmin": option("--vmin", type=float, metavar="LOSS", help="Draw losses below this value as this value."),
    "vmax": option("--vmax", type=float, metavar="LOSS", help="Draw losses above this value as this value."),
    "levels": option("--levels", type=int, metavar="N", help="Draw about N contour levels.", show_default="12"),
    "zmax": option("--zmax", type=float, metavar="LOSS", help="Cut off a surface in three dimensions at this loss."),
    "errors": option(
        "--errors",
        is_flag=True,
        default=None,
        help="Draw a band of one standard error over samples around each curve; of planes, draw the standard errors "
        "in place of the losses or accuracies.",
    ),
    "lr": option(
        "--lr",
        type=POSITIVE,
        metavar="RATE",
        help="Draw the edge of stability for this learning rate.",
        show_default="the rate that each checkpoint states",
    ),
    "momentum": option("--momentum", type=float, metavar="BETA", help="Use this momentum for the edge of --lr."),
    "euclidean": option(
        "--euclidean",
        is_flag=True,
        default=None,
        help="Scale the axes by distances in parameter space instead of coordinates.",
    ),
}
DRAWING = cloup.option_group(
    "Kinds of figures",
    *_OPTIONS.values(),
    help="Only some kinds of figures have these options; other kinds refuse them.",
)
"""Options that are not given are None. Each has the name of an argument of figure functions."""


def take_drawing(given: dict[str, Any]) -> dict[str, Any]:
    """Take the options of `DRAWING` out of a command's.

    Args:
        given: the command's options; these are removed from it.

    Returns:
        Those that were given, by their names.
    """
    taken = {name: given.pop(name) for name in _OPTIONS}
    return {name: value for name, value in taken.items() if value is not None}


def check_drawing(drawn_as: str, kind: str, drawing: Mapping[str, Any]) -> None:
    """Refuse options that a kind of figure does not have.

    Args:
        drawn_as: the kind of result.
        kind: of figure.
        drawing: from `take_drawing`.

    Raises:
        InputError: the kind does not have one of them.
    """
    for name, value in drawing.items():
        if not _takes(plots.KIND_FIGURES[drawn_as][kind], name):
            every = (item for figures in plots.KIND_FIGURES.values() for item in figures.items())
            kinds = dict.fromkeys(known for known, figure in every if _takes(figure, name))
            option = "--linear" if name == "log" and not value else f"--{name}"
            raise InputError(f"{option} is for --kind {', '.join(kinds)}; leave it out for --kind {kind}")


def _takes(figure: Callable[..., Any], name: str) -> bool:
    parameters = inspect.signature(figure).parameters.values()
    return any(p.name == name or p.kind is p.VAR_KEYWORD for p in parameters)
