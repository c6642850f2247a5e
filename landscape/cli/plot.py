"""`landscape plot`: a result file becomes a figure. It reads files and never torch."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import cloup

from landscape import plots
from landscape.cli import compared
from landscape.cli.console import Console
from landscape.cli.drawing import DRAWING, check_drawing, take_drawing
from landscape.cli.opened import FILE, FOREIGN, REGROUP, open_result, refuse_twice
from landscape.cli.options import Choice, Command, command, listed, option
from landscape.errors import InputError, unknown
from landscape.plots.layout.theme import STYLES
from landscape.plots.several import common
from landscape.results import Result, Spectrum, Traces, columns


class _Plot(Command):
    """A command whose help ends with a table of the figures of each kind of result."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the table, then the examples."""
        width = 2 + max(map(len, plots.KIND_FIGURES))
        rows = [(f"{'RESULT':<{width}}KIND", "FIGURE; the first kind of each result is the default")]
        for result, figures in plots.KIND_FIGURES.items():
            for kind, figure in figures.items():
                first = " ".join((figure.__doc__ or "").split("\n\n")[0].split())
                several = " Takes several files." if kind in plots.SEVERAL_FIGURES.get(result, ()) else ""
                rows.append((f"{result:<{width}}{kind}", first + several))
        with formatter.section("Figures that --kind names"):
            formatter.write_dl(rows)
        super().format_epilog(ctx, formatter)


@command(
    "landscape plot run/last.hessian.h5 --parts head,tail",
    "landscape plot ce.h5 sam.h5 --names 'CE,CE + SAM' --columns 2 -o figure9.pdf",
    kind=_Plot,
)
@cloup.argument("files", type=FILE, nargs=-1, required=True, help="Result files, or surfaces of other programs.")
@cloup.option_group(
    "Figure",
    option(
        "--kind",
        type=Choice(list(dict.fromkeys(kind for kinds in plots.KIND_FIGURES.values() for kind in kinds))),
        metavar="KIND",
        help="Draw this kind of figure; the table below lists them.",
        show_default="the first kind of the result; summary for a spectrum without a density",
    ),
    option(
        "--parts", metavar="LIST", help="Draw these parts, by name or position: head,tail or 0,9.", show_default="all"
    ),
    option(
        "--names",
        metavar="LIST",
        help="Name the files in the figure: 'CE,CE + SAM'.",
        show_default="their training methods, or the files' names",
    ),
    option(
        "--style", type=Choice(STYLES), default="paper", show_default=True, help="Scale letters and lines for this use."
    ),
    option("--dark", is_flag=True, help="Draw light letters on a dark background."),
    option(
        "--columns",
        type=int,
        metavar="1|2",
        help="Make the figure as wide as one column (3.25 in) or two columns (6.875 in) of a paper, with letters of 6 "
        "to 9 pt. Include it in LaTeX without width=.",
        show_default="as wide as the figure needs",
    ),
    option(
        "--title", metavar="TEXT", help="Write this title above the figure.", show_default="a description of the figure"
    ),
    option(
        "--no-caption",
        is_flag=True,
        help="Leave out the descriptions above and below the panels, as for a paper.",
    ),
    option(
        "-o",
        "--out",
        type=FILE,
        metavar="FILE",
        help="Write the figure to this .png, .pdf or .svg file. A file of that name is replaced.",
        show_default="FILE.KIND.png; KIND.png for several files",
    ),
)
@DRAWING
@REGROUP
@FOREIGN
def plot(
    files: tuple[Path, ...],
    kind: str | None,
    out: Path | None,
    parts: str | None,
    names: str | None,
    style: str,
    dark: bool,
    columns: int | None,
    title: str | None,
    no_caption: bool,
    **given: Any,
) -> None:
    """Draw a figure of a result file, or one figure of several files on shared axes.

    A figure of several spectra has a row for each part and a column for each file. A figure of several surfaces has a
    column for each part and a row for each file, with the same levels and colours. Several lines share one pair of
    axes.

    More than 24 densities are drawn as a map with a row for each part. More than 12 classes of a surface are joined
    into groups, unless --groups or --parts chooses what to draw. The command recognises surfaces of
    tomgoldstein/loss-landscape (.h5), dnn-mode-connectivity and Landscaper (.npz) by their content.
    """
    drawing = take_drawing(given)
    refuse_twice(files)
    results = [open_result(file, **given) for file in files]
    several = len(results) > 1
    drawn_as = _drawn_as(files, results)
    kind = _kind_of_several(drawn_as, kind) if several else _kind(drawn_as, results[0], kind)
    check_drawing(drawn_as, kind, drawing)
    called = _names(names, files, results)
    out = out or (Path(f"{kind}.png") if several else files[0].with_suffix(f".{kind}.png"))
    with plots.styled(style, dark=dark, columns=columns, title=title, caption=not no_caption):
        if several:
            figure = plots.SEVERAL_FIGURES[drawn_as][kind]
            chosen = figure.default(results) if parts is None else _select(common(results), parts)
            for line in compared.members(called, results, chosen or common(results)):
                Console().note(line)
            fig = figure.draw(dict(zip(called, results, strict=True)), chosen, **drawing)
        else:
            chosen = None if parts is None else _select(getattr(results[0], "parts", ()), parts)
            fig = plots.KIND_FIGURES[drawn_as][kind](results[0], chosen, **drawing)
        plots.write(fig, out)
    Console().say(str(out))


def _drawn_as(files: Sequence[Path], results: Sequence[Result]) -> str:
    """Return the kind of result as which all results are drawn."""
    kinds = [columns.drawn_as(r) for r in results]
    for file, kind in zip(files, kinds, strict=True):
        if kind == Traces.kind:
            raise InputError(
                "only the traces of a spectrum can be joined: use --groups and --weights with landscape compare"
            )
        if kind != kinds[0]:
            raise InputError(f"{files[0]} is a {kinds[0]}, {file} a {kind}: draw files of one kind together")
    return kinds[0]


def _kind(drawn_as: str, result: Result, kind: str | None) -> str:
    if drawn_as not in plots.KIND_FIGURES:
        raise InputError(f"there is no figure of a {drawn_as}: choose a file of {listed(plots.KIND_FIGURES)}")
    figures = plots.KIND_FIGURES[drawn_as]
    if kind is not None and kind not in figures:
        raise InputError(f"--kind {kind} is not for a {drawn_as}: choose {listed(figures)}")
    if kind is None and isinstance(result, Spectrum) and not result.has_density:
        return "summary"
    return kind or next(iter(figures))


def _kind_of_several(drawn_as: str, kind: str | None) -> str:
    figures = plots.SEVERAL_FIGURES.get(drawn_as)
    if figures is None:
        raise InputError(f"there is no figure of several files of a {drawn_as}: draw them one by one")
    if kind is not None and kind not in figures:
        raise InputError(
            f"--kind {kind} is of one file: draw them one by one, or all of them by --kind {listed(figures)}"
        )
    return kind or next(iter(figures))


def _names(text: str | None, files: Sequence[Path], results: Sequence[Any]) -> list[str]:
    """Return the names of the files in the figure."""
    if text is None:
        return compared.column_names(files, results)
    if len(files) == 1:
        raise InputError("--names is for several files: leave it out for one")
    names = [word.strip() for word in text.split(",")]
    if len(names) != len(files) or len(set(names)) < len(names) or not all(names):
        raise InputError(f"--names {text!r}: give {len(files)} names that differ, with commas between them")
    return names


def _select(parts: Sequence[str], text: str) -> list[str]:
    """Return the names of the parts that the text lists by name or position, separated by commas."""
    if text in parts:  # it may have a comma itself
        return [text]
    chosen = []
    for word in (w.strip() for w in text.split(",")):
        by_position = word not in parts and word.isdecimal() and int(word) < len(parts)
        name = parts[int(word)] if by_position else word
        if name not in parts:
            raise InputError(
                unknown(word, parts, where=" for --parts", more=f", or a position from 0 to {len(parts) - 1}")
            )
        if name in chosen:
            raise InputError(f"--parts: {word!r} is named twice in {text!r}")
        chosen.append(name)
    return chosen
