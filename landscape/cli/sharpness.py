"""`landscape sharpness`: how far the loss of each part rises around a checkpoint."""

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import cloup
import numpy as np

from landscape.analyses import sharpness as analysis
from landscape.autodiff import distributed
from landscape.cli import along, compared, sensitivity
from landscape.cli.analysis import checkpoint, numbers, output, parts, samples
from landscape.cli.begin import begin
from landscape.cli.console import Console
from landscape.cli.options import COUNT, POSITIVE, command, option, seeding
from landscape.errors import InputError
from landscape.results import Sharpness, columns
from landscape.results.written import few

SHARPNESS = cloup.option_group(
    "Sharpness",
    option(
        "--rho",
        type=POSITIVE,
        metavar="RADIUS",
        default=0.05,
        show_default=True,
        help="Search for the largest rise within this Euclidean radius. With --adaptive, 0.5 to 2 are usual.",
    ),
    option("--adaptive", is_flag=True, help="Scale the ball by |theta| in each coordinate, as adaptive SAM does."),
    option(
        "--ascent-steps",
        type=COUNT,
        default=20,
        show_default=True,
        metavar="N",
        help="Take N gradient steps in the search for the largest rise.",
    ),
    option(
        "--sigma",
        type=POSITIVE,
        metavar="FRACTION",
        default=0.1,
        show_default=True,
        help="Add noise of this size, as a fraction of each filter's norm.",
    ),
    option(
        "--draws",
        type=COUNT,
        default=8,
        show_default=True,
        metavar="K",
        help="Draw K random directions. Error bars are the spread between them.",
    ),
    seeding("the random directions"),
)

NAMES = [f.name for f in fields(Sharpness) if f.metadata.get("axes") == ("part",) and f.name != "parts"]
"""Fields of the JSON document for each part."""
OPTIONS = [item.name for item in fields(analysis.Options)]


@command(
    "landscape sharpness --ckpt run/last.pt --per-class",
    "landscape sharpness --ckpt run --partition head-tail --rho 1 --adaptive",
    "landscape sharpness --ckpt run/last.pt --per-class --along eigen --vectors 9",
)
@checkpoint(series=True)
@samples()
@parts(along.WITH_PARTS)
@SHARPNESS
@sensitivity.ALONG
@numbers()
@output(along.EXTEND)
def sharpness(
    *,
    ckpt: tuple[str, ...],
    per_class: bool,
    partition: str | None,
    with_parts: str | None,
    out: str | None,
    overwrite: bool,
    extend: bool,
    as_json: bool,
    quiet: bool,
    **given: Any,
) -> None:
    """Measure how much the loss of each part rises around a checkpoint.

    The command computes four measures: the rise of the loss after one step of SAM, the largest rise within a ball, the
    mean rise under noise, and the noise that doubles the loss. For several checkpoints, the result is a series along
    training. With --along eigen, the command instead computes how the loss and accuracy of each part change along the
    sharpest directions.

    Raises:
        InputError: options that do not go together.
    """
    ours = {name: given.pop(name) for name in OPTIONS}
    steps = sensitivity.take(given, ours)
    first, stages = along.listed(ckpt, given)
    along.refuse_single(stages, extend=extend, with_parts=with_parts)
    if steps and stages:
        raise InputError("--along eigen analyses one checkpoint: name one by --ckpt")
    path = along.path_of(out, ckpt, stages, "sensitivity" if steps else "sharpness")
    first = along.drawn_at(first, stages, path, extend=extend, given=given)
    with begin(ckpt=first, per_class=per_class, partition=partition, quiet=quiet, as_json=as_json, **given) as (
        objective,
        console,
    ):
        if stages:
            where: dict[str, Any] = {"out": path, "overwrite": overwrite, "extend": extend}
            where |= {"given": given, "with_parts": with_parts}
            course = along.run(console, analysis.sharpness, objective, stages, **where, **ours)
            along.conclude(console, course, path, _document, as_json=as_json)
            return
        if steps:
            sensitivity.run(console, objective, steps, path, overwrite=overwrite, as_json=as_json)
            return
        with console.progress() as progress:
            found = analysis.sharpness(objective, **ours, out=path, overwrite=overwrite, progress=progress)
        if not distributed.is_main():
            return
        _conclude(console, found, path)
        if as_json:
            console.json(_document(found, path))


def _conclude(console: Console, found: Sharpness, path: Path) -> None:
    """Print the table, and below it warnings about its numbers."""
    heads, rows = columns.table(found)
    console.table(heads, rows, title=found.title)
    _explain(console, found, [cell for _, *cells in rows for cell in cells])
    console.say(f"result: {path}\nfigure: landscape plot {path}")


def _explain(console: Console, found: Sharpness, cells: Sequence[str]) -> None:
    """Say why numbers are missing."""
    lost = np.isnan(found.worst_rise)
    if lost.any():
        who = _some(found, lost)
        console.note(f"a loss or gradient within rho is not finite for {who}: try a smaller --rho, or --dtype float64")
    unknown, beyond = np.isnan(found.doubling_radius), np.isinf(found.doubling_radius)
    without_loss, unknown = unknown & ~(found.loss > 0), unknown & (found.loss > 0)
    if without_loss.any():
        console.note(f"the loss of {_some(found, without_loss)} is not positive: twice that is no rise")
    if beyond.any():
        console.note(
            f"no doubling radius for {_some(found, beyond)}: on half of the directions the loss does not double up to "
            f"{found.limit:g} times the filters"
        )
    if unknown.any():
        console.note(f"the doubling radius of {_some(found, unknown)} is unknown: a loss on the way is nan")
    if found.draws == 1:
        console.note("one draw cannot tell its own spread: use --draws 8")
    elif any("?" in cell for cell in cells):
        console.note(compared.COMPARISONS[found.kind].marks["?"])


def _some(found: Sharpness, chosen: np.ndarray) -> str:
    return few([found.parts[p] for p in np.flatnonzero(chosen)])


def _document(found: Sharpness, path: Path) -> dict[str, Any]:
    known = {name: getattr(found, name) for name in NAMES} | columns.derived(found)
    parts = [
        {"part": part} | {name: None if values is None else values[p] for name, values in known.items()}
        for p, part in enumerate(found.parts)
    ]
    about = {name: getattr(found, name) for name in ("rho", "adaptive", "sigma", "draws", "limit")}
    return {"result": str(path), **about, "parts": parts}
