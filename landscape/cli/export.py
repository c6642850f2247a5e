"""`landscape export`: a result in the formats of other programs. It reads files and never torch."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import cloup
import numpy as np

from landscape.cli.console import Console, strict_json
from landscape.cli.opened import FILE, FOREIGN, REGROUP, open_result, refuse_twice
from landscape.cli.options import OVERWRITE, Choice, command, option
from landscape.errors import InputError
from landscape.results import Result, Spectrum, Surface, disk, quadrature
from landscape.results.foreign import interop, surface_exports, surface_files, tidy

_SUFFIXES = {
    "csv": ".csv",
    "tidy": ".tidy.csv",
    "json": ".json",
    "pyhessian": ".pyhessian.json",
    "goldstein": ".goldstein.h5",
    "vtk": ".vts",
    "npz": ".npz",
}
"""How the files of each format end."""


@command(
    "landscape export run/last.hessian.h5 --to csv",
    "landscape export runs/*/last.*.h5 --to tidy -o all.csv",
    "landscape export run/last.surface2d.h5 --to vtk --part truck --log",
)
@cloup.argument("files", type=FILE, nargs=-1, required=True, help="Result files, or surfaces of other programs.")
@cloup.option_group(
    "Format",
    option(
        "--to",
        "form",
        type=Choice(list(_SUFFIXES)),
        required=True,
        help="Choose the format. csv: a table with a row for each part (spectra), for each part and point (surfaces), "
        "or for each number. tidy: a CSV table of one or many files with a row for each number of each part, at each "
        "checkpoint or epoch, and columns for file, checkpoint, epoch, method, part, quantity, value, error and "
        "exactness. json: every number. pyhessian: for each part of a spectrum, the two lists that PyHessian's "
        "density() returns. goldstein: the HDF5 "
        "surface of tomgoldstein/loss-landscape. vtk: a surface for ParaView. npz: a surface for NumPy.",
    ),
    option(
        "--part",
        metavar="NAME",
        help="Use the loss of this part as the height (vtk).",
        show_default="the mean over all samples",
    ),
    option("--log", is_flag=True, help="Use log10 of the loss as the height (vtk)."),
)
@REGROUP
@FOREIGN
@cloup.option_group(
    "Output",
    option(
        "-o",
        "--out",
        type=FILE,
        metavar="FILE",
        help="Write to this file.",
        show_default="FILE with the format's suffix; results.tidy.csv for several files",
    ),
    OVERWRITE,
)
def export(
    files: tuple[Path, ...],
    form: str,
    out: Path | None,
    overwrite: bool,
    part: str | None,
    log: bool,
    **opening: Any,
) -> None:
    """Write a result file, or a surface of another program, in another format, or many files as one table.

    If a surface of tomgoldstein/loss-landscape is not square, its file has the values in the wrong cells. This command
    reads such a file correctly, and --to goldstein writes a corrected one.

    Raises:
        InputError: several files for a format that holds one, or a file that the format cannot hold.
    """
    _refuse_unless_vtk(form, {"--part": part is not None, "--log": log})
    refuse_twice(files)
    file, several = files[0], len(files) > 1
    if several and form != "tidy":
        raise InputError(f"{len(files)} files become one table by --to tidy; --to {form} is for one file")
    out = out or (Path("results") if several else file).with_suffix(_SUFFIXES[form])
    for each in files:
        if out.exists() and out.samefile(each):
            raise InputError(f"{out} is the file that is exported, and is kept: choose another file with --out")
    if form == "tidy":
        results = {each: open_result(each, **opening) for each in files}
        interop.write_table(tidy.COLUMNS, tidy.rows(results), out, overwrite=overwrite)
        Console().say(str(out))
        return
    result = open_result(file, **opening)
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


R = TypeVar("R", bound=Result)


def _refuse_unless_vtk(form: str, given: Mapping[str, bool]) -> None:
    for name, is_given in given.items():
        if is_given and form != "vtk":
            raise InputError(f"{name} is for --to vtk; leave it out for --to {form}")


def _of(kind: type[R], result: Result, file: Path, form: str, command: str) -> R:
    if not isinstance(result, kind):
        raise InputError(f"{file} is a {result.kind}; --to {form} is for results of landscape {command}")
    return result


def _pyhessian(spectrum: Spectrum) -> str:
    lists = {}
    for p, part in enumerate(spectrum.parts):
        nodes, weights = quadrature.of_part(spectrum, p)
        eigen, weight = interop.to_pyhessian(nodes, weights, np.isfinite(nodes).sum(axis=1))
        lists[part] = {"eigen_list_full": eigen, "weight_list_full": weight}
    return strict_json(lists)


def _write(path: Path, text: str, overwrite: bool) -> None:
    with disk.writing(path):
        disk.refuse_taken(path, overwrite=overwrite, signature=b"")
        disk.write_aside(path, lambda file: file.write(f"{text}\n".encode()))
