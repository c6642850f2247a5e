"""Commands that show results: `plot`, `compare`, `export`. They read files and never torch."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from landscape.cli import compared
from landscape.cli.console import Console, strict_json
from landscape.cli.drawing import DRAWING, check_drawing, take_drawing
from landscape.cli.opened import FILE, FOREIGN, REGROUP, open_result, refuse_twice
from landscape.cli.options import options
from landscape.errors import InputError
from landscape.results import Result, Spectrum, Surface, Traces, disk, quadrature
from landscape.results.foreign import interop, surface_exports, surface_files

FIGURES = {
    "spectrum": ("density", "summary", "overlap", "gradients", "subspaces"),
    "history": ("training", "quality", "cosines", "bank"),
    "features": ("quality", "angles", "collapse"),
    "gradients": ("cosines", "decomposition", "epochs", "norms", "layers"),
    "sharpness": ("rises",),
    "distances": ("matrix", "map", "losses", "barriers", "epochs"),
    "surface": ("contour", "3d", "heat", "accuracy", "overlay"),
    "line": ("line",),
    "trajectory": ("path", "along", "3d", "heat", "accuracy", "overlay"),
}
"""Kinds of figures of each kind of result, the default first; those of `plots.KIND_FIGURES`."""

SEVERAL = {
    "spectrum": "density",
    "features": "quality",
    "gradients": "epochs",
    "surface": "contour",
    "line": "line",
}
"""The kind of figure that several results of one kind have; those of `plots.SEVERAL_FIGURES`."""

MOST_PANELS = 24
"""Of a figure of several results."""


@click.command()
@click.argument("files", type=FILE, nargs=-1, required=True)
@click.option(
    "--kind",
    type=click.Choice(list(dict.fromkeys(kind for kinds in FIGURES.values() for kind in kinds))),
    help="Of a spectrum: density (default), the spectrum of each part; summary, lambda_max and trace against "
    "training samples; of hessian --overlap also overlap, how sharp the sharpest directions of each part are for the "
    "others, gradients, how sharp their gradients are, and subspaces, how alike the directions are. "
    "Of a history: training (default), loss and accuracy; quality, of the "
    "features; cosines, of class and batch gradients; bank, what GKP and GSA did. Of features: quality (default), of "
    "each class; angles, between class means; collapse, the four signs of neural collapse. Of gradients: cosines "
    "(default), a map of all pairs of parts; decomposition, along the whole gradient and off it; epochs, agreement "
    "with the whole along a run; norms; layers, shares and cosines of each layer. "
    "Of sharpness: rises, of each part against training samples. Of distances: matrix (default), clustered maps of "
    "four distances; map, the points laid out on a plane; losses, of each part at each point; barriers, between all "
    "pairs of points, with the rises that Hessians predict; epochs, from the points along training. Of a surface: "
    "contour (default), a panel for each part with the same levels; 3d, as heights; heat, the points as they were "
    "computed; accuracy; overlay, the contours of head and tail on one another; over a line: line. Of a trajectory "
    "also path (default), the runs over the contours; along, the true losses beside those of the surface.",
)
@click.option(
    "-o",
    "--out",
    type=FILE,
    help="Figure to write, .png, .pdf or .svg. [default: FILE.KIND.png; of several files KIND.png]",
)
@click.option("--parts", help='Parts to draw, by name or position, as in "head,tail" or "0,9". [default: all]')
@click.option(
    "--names",
    help='What several files are called: "CE,CE + SAM". [default: their methods of training, or their names]',
)
@click.option("--style", default="paper", show_default=True, help="Sizes of letters and lines: paper, talk or web.")
@click.option("--dark", is_flag=True, help="Light letters on a dark ground.")
@click.option(
    "--columns",
    type=int,
    metavar="1|2",
    help="Width of a paper: 3.25 in for one column or 6.875 in for two, with letters of 6 to 9 pt and fewer panels in "
    "a row. LaTeX includes the figure as it is, without width=. [default: as wide as the figure likes]",
)
@options(DRAWING, REGROUP, FOREIGN)
def plot(
    files: tuple[Path, ...],
    kind: str | None,
    out: Path | None,
    parts: str | None,
    names: str | None,
    style: str,
    dark: bool,
    columns: int | None,
    **given: Any,
) -> None:
    """Draw a figure of the result in a file, or of a surface of another program; of several files one on shared axes.

    Of several spectra a column for each, with a row for each part; of several surfaces a row for each, with a column
    for each part and the same levels and colours; lines on the same axes; quality of features, and agreement of
    gradients, over the epochs of several runs side by side.

    More than 24 densities become a map with a row for each part; more than 12 classes of a surface are joined into
    groups, unless --groups or --parts says which to draw. Surfaces of tomgoldstein/loss-landscape (.h5),
    dnn-mode-connectivity and Landscaper (.npz) are known by their content. A figure of the same name is replaced.
    """
    drawing = take_drawing(given)
    refuse_twice(files)
    results = [open_result(file, **given) for file in files]
    several = len(results) > 1
    drawn_as = _drawn_as(files, results)
    kind = _kind_of_several(drawn_as, kind) if several else _kind(drawn_as, kind)
    check_drawing(kind, drawing)
    called = _names(names, files, results)
    chosen = _parts_of_several(drawn_as, results, parts) if several else _parts(results[0], parts)
    from landscape import plots  # matplotlib takes its time, which a wrong file or option need not wait for

    out = out or (Path(f"{kind}.png") if several else files[0].with_suffix(f".{kind}.png"))
    with plots.styled(style, dark=dark, columns=columns):
        if several:
            fig = plots.SEVERAL_FIGURES[drawn_as](dict(zip(called, results, strict=True)), chosen, **drawing)
        else:
            fig = plots.KIND_FIGURES[drawn_as][kind](results[0], chosen, **drawing)
        plots.write(fig, out)
    Console().say(str(out))


@click.command()
@click.argument("files", type=FILE, nargs=-1, required=True)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--latex", is_flag=True, help="Print a LaTeX table; it needs the package booktabs.")
@options(REGROUP)
def compare(files: tuple[Path, ...], as_json: bool, latex: bool, **opening: Any) -> None:
    """Print the numbers of each part, one column for each of FILES.

    Of spectra lambda_max and trace: errors behind ± are residual bounds of lambda_max and standard errors of the trace.
    Of spectra with --groups or --weights the trace of the weighted loss, which is linear in the parts.
    Of sharpness the loss, its rises within rho and under noise, and the noise that doubles it. Of surfaces the loss at
    the centre, the distance at which it has doubled, its largest rise within a radius, and the barrier on a line
    between checkpoints; below the table the verdict on each surface. Options that differ between the files, and could
    explain a difference, are named below the table.
    """
    _exclude({"--json": as_json, "--latex": latex})
    results: list[Any] = [open_result(file, **opening) for file in files]
    how = compared.comparison(files, results)
    names = compared.column_names(files, results)
    parts = list(dict.fromkeys(part for r in results for part in r.parts))
    differing = compared.differences(how, names, results, parts)
    console = Console(json=as_json)
    if as_json:
        values = [{"part": p, "values": [compared.numbers(how, r, p) for r in results]} for p in parts]
        columns = [
            {"name": n, "file": str(f)} | ({"remark": how.remarks(r)} if how.remarks(r) else {})
            for n, f, r in zip(names, files, results, strict=True)
        ]
        console.json({"kind": results[0].kind, "columns": columns, "rows": values, "notes": differing})
        return
    cells = compared.cells(how, results, parts)
    title, lines = how.title(results), [*compared.notes(how, names, results, cells), *differing]
    if latex:
        console.say(compared.latex(names, parts, cells, [title.replace("±", "+-"), *lines]))
        return
    rows = [[part, *row] for part, row in zip(parts, cells, strict=True)]
    console.say(title)
    console.table(["part", *names], rows)
    for line in lines:
        console.say(line)


@click.command()
@click.argument("file", type=FILE)
@click.option(
    "--to",
    "form",
    type=click.Choice(["csv", "json", "pyhessian", "goldstein", "vtk", "npz"]),
    required=True,
    help="csv: of a spectrum a row for each part, of a surface for each part and point, of another result for each "
    "number. json: all of these numbers. Of a spectrum, pyhessian: for each part the two lists that PyHessian's "
    "density() returns, as JSON. Of a surface, goldstein: HDF5 that the plotters of tomgoldstein/loss-landscape read, "
    "and this command too; vtk: for ParaView, the marks beside it; npz: for NumPy.",
)
@click.option("-o", "--out", type=FILE, help="File to write. [default: FILE with a suffix for the format]")
@click.option("--overwrite", is_flag=True, help="Replace an existing file.")
@click.option(
    "--part", help="Of vtk: the part whose loss is the height. [default: the mean over all samples, if known]"
)
@click.option("--log", is_flag=True, help="Of vtk: the height is log10 of the loss.")
@options(REGROUP, FOREIGN)
def export(
    file: Path, form: str, out: Path | None, overwrite: bool, part: str | None, log: bool, **opening: Any
) -> None:
    """Write the result in FILE, or the surface of another program, in another format.

    A surface of tomgoldstein/loss-landscape whose sides differ in length has its values in the wrong cells; read and
    written again by `--to goldstein` it is right.
    """
    _refuse_unless_vtk(form, {"--part": part is not None, "--log": log})
    result = open_result(file, **opening)
    out = out or file.with_suffix(_SUFFIXES[form])
    if form == "csv":
        interop.to_csv(result, out, overwrite=overwrite)
    elif form == "json":
        _write(out, interop.to_json(result), overwrite)
    elif form == "pyhessian":
        _write(out, _pyhessian(_of(Spectrum, result, file, form, "hessian")), overwrite)
    else:
        surface = _of(Surface, result, file, form, "surface1d, surface2d and trajectory")
        if form == "vtk":
            marks = surface_exports.write_vtk(out, surface, part=part, log=log, overwrite=overwrite)
            Console().say(str(out) if marks is None else f"{out}\n{marks}")
            return
        write = surface_exports.write_npz if form == "npz" else surface_files.write_goldstein
        write(out, surface, overwrite=overwrite)
    Console().say(str(out))


_SUFFIXES = {
    "csv": ".csv",
    "json": ".json",
    "pyhessian": ".pyhessian.json",
    "goldstein": ".goldstein.h5",
    "vtk": ".vts",
    "npz": ".npz",
}
R = TypeVar("R", bound=Result)


def _refuse_unless_vtk(form: str, given: Mapping[str, bool]) -> None:
    for option, is_given in given.items():
        if is_given and form != "vtk":
            raise InputError(f"{option} is for --to vtk; leave it out for --to {form}")


def _of(kind: type[R], result: Result, file: Path, form: str, command: str) -> R:
    if not isinstance(result, kind):
        raise InputError(f"{file} is a {result.kind}; --to {form} is for results of landscape {command}")
    return result


def _drawn_as(files: Sequence[Path], results: Sequence[Result]) -> str:
    """Return what all results are drawn as."""
    kinds = ["line" if isinstance(r, Surface) and r.is_line else r.kind for r in results]
    for file, kind in zip(files, kinds, strict=True):
        if kind == Traces.kind:
            raise InputError("--groups and --weights of spectra are for landscape compare: only traces can be joined")
        if kind != kinds[0]:
            raise InputError(f"{files[0]} is a {kinds[0]}, {file} a {kind}: draw files of one kind together")
    return kinds[0]


def _kind(drawn_as: str, kind: str | None) -> str:
    if drawn_as not in FIGURES:
        raise InputError(f"there is no figure of a {drawn_as}: choose a file of {', '.join(FIGURES)}")
    if kind is not None and kind not in FIGURES[drawn_as]:
        raise InputError(f"--kind {kind} is not for a {drawn_as}: choose {', '.join(FIGURES[drawn_as])}")
    return kind or FIGURES[drawn_as][0]


def _kind_of_several(drawn_as: str, kind: str | None) -> str:
    if drawn_as not in SEVERAL:
        raise InputError(f"there is no figure of several files that are a {drawn_as}: draw them one by one")
    only = SEVERAL[drawn_as]
    if kind not in (None, only):
        raise InputError(f"--kind {kind} is of one file: draw them one by one, or all of them by --kind {only}")
    return only


def _parts(result: Any, text: str | None) -> list[str] | None:
    return None if text is None else _select(getattr(result, "parts", ()), text)


def _parts_of_several(drawn_as: str, results: Sequence[Any], text: str | None) -> list[str] | None:
    """Return the parts that are asked for, or all that the results have in common; None leaves it to the figure."""
    common = [part for part in results[0].parts if all(part in r.parts for r in results)]
    if text is not None:
        return _select(common, text)
    if drawn_as in ("features", "gradients"):
        return None
    if not common:
        raise InputError("the files have no part in common: analyse them with one --partition, or join by --groups")
    if drawn_as == "line":
        return common if len(common) == 1 else None
    panels = len(common) * len(results)
    if panels > MOST_PANELS:
        join = ", or join them by --groups head-tail" if drawn_as == "surface" else ""
        raise InputError(f"{panels} panels are too many for a figure: choose by --parts {common[0]},{common[-1]}{join}")
    return common


def _names(text: str | None, files: Sequence[Path], results: Sequence[Any]) -> list[str]:
    """Return what the files are called."""
    if text is None:
        return compared.column_names(files, results)
    if len(files) == 1:
        raise InputError("--names is for several files: leave it out for one")
    names = [word.strip() for word in text.split(",")]
    if len(names) != len(files) or len(set(names)) < len(names) or not all(names):
        raise InputError(f"--names {text!r}: give {len(files)} names that differ, with commas between them")
    return names


def _exclude(flags: Mapping[str, bool]) -> None:
    if all(flags.values()):
        raise InputError(f"{' and '.join(flags)} exclude each other: choose one")


def _select(parts: Sequence[str], text: str) -> list[str]:
    """Return the names of parts that are asked for by name or position, separated by commas."""
    if text in parts:  # it may have a comma itself
        return [text]
    chosen = []
    for word in (w.strip() for w in text.split(",")):
        by_position = word not in parts and word.isdecimal() and int(word) < len(parts)
        name = parts[int(word)] if by_position else word
        if name not in parts:
            shown = ", ".join(parts[:10]) + (", ..." if len(parts) > 10 else "")
            raise InputError(f"--parts: no part {word!r}; choose from {shown} or 0 to {len(parts) - 1}")
        if name in chosen:
            raise InputError(f"--parts: {word!r} is named twice in {text!r}")
        chosen.append(name)
    return chosen


def _pyhessian(spectrum: Spectrum) -> str:
    lists = {}
    for p, part in enumerate(spectrum.parts):
        nodes, weights = quadrature.nodes_and_weights(spectrum.alpha[p], spectrum.beta[p], spectrum.steps[p])
        eigen, weight = interop.to_pyhessian(nodes, weights, spectrum.steps[p])
        lists[part] = {"eigen_list_full": eigen, "weight_list_full": weight}
    return strict_json(lists)


def _write(path: Path, text: str, overwrite: bool) -> None:
    with disk.writing(path):
        disk.refuse_taken(path, overwrite=overwrite, signature=b"")
        disk.write_aside(path, lambda file: file.write(f"{text}\n".encode()))
