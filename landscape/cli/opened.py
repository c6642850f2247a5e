"""How commands that show results open a file: this package's by its kind, another program's surface by its content."""

from collections.abc import Sequence
from pathlib import Path

import click
import cloup

from landscape.cli.options import BY_COUNT, option, refuse_typed
from landscape.errors import InputError
from landscape.networks.checkpoint_folders import SUFFIXES
from landscape.results import Result, Spectrum, Surface, grouping, regroup, store
from landscape.results.foreign import surface_files
from landscape.results.grouping import ENDS, FEW, MANY

FILE = click.Path(path_type=Path)

REGROUP = cloup.option_group(
    "Groups of classes",
    option(
        "--groups",
        metavar="NAME",
        help=f"Join the classes into these groups: {', '.join(grouping.NAMES)}, or a JSON file {{name: [class, ...]}}.",
        show_default="as stored; all with --weights",
    ),
    option(
        "--weights",
        metavar="NAME",
        help="Weight the classes of a group by evaluated samples (natural), equally (balanced), by training samples "
        "(training), by the effective number of samples (drw), or by a JSON file {class: weight}.",
        show_default="natural",
    ),
    *BY_COUNT,
    help="Surfaces and the traces of spectra can be joined without a new computation.",
)

FOREIGN = cloup.option_group(
    "Surfaces of tomgoldstein/loss-landscape",
    option(
        "--dir-file",
        "--dir_file",
        type=FILE,
        metavar="FILE",
        help="Read the lengths of the directions from this file.",
        show_default="the file that the surface names",
    ),
    option("--proj-file", "--proj_file", type=FILE, metavar="FILE", help="Draw this projected path on the surface."),
)


def refuse_twice(files: Sequence[Path]) -> None:
    """Refuse a file that is named more than once.

    Args:
        files: as given.

    Raises:
        InputError: there is one.
    """
    resolved = [file.resolve() for file in files]
    twice = next((file for i, file in enumerate(files) if resolved[i] in resolved[:i]), None)
    if twice is not None:
        raise InputError(f"{twice} is given twice: name each file once")


def open_result(
    file: Path,
    *,
    groups: str | None = None,
    weights: str | None = None,
    many: int = MANY,
    few: int = FEW,
    ends: int = ENDS,
    dir_file: Path | None = None,
    proj_file: Path | None = None,
) -> Result:
    """Read a result or the surface of another program, and regroup it if groups or weights are given.

    Args:
        file: the file.
        groups: as for `regroup.regroup`; None keeps the parts of the file, unless weights are given.
        weights: as for `regroup.regroup`; None means "natural".
        many: as for `regroup.regroup`.
        few: as for `regroup.regroup`.
        ends: as for `regroup.regroup`.
        dir_file: file with the directions, for a surface of another program.
        proj_file: file with a projected path to draw on such a surface.

    Returns:
        The result.

    Raises:
        InputError: an option that does not apply to this file, or a file that is a checkpoint.
        StoreError: a file cannot be read.
    """
    result: Result
    if file.suffix.lower() in SUFFIXES and file.is_file() and not store.is_result(file):
        raise InputError(
            f"{file} is a checkpoint, not a result: landscape info {file} says what it holds, and landscape hessian "
            f"--ckpt {file} --per-class analyses it into a result"
        )
    if surface_files.is_foreign(file):
        result = surface_files.read(file, directions=dir_file)
        if proj_file is not None:
            result = surface_files.with_path(result, proj_file)
    else:
        result = store.load(file)
        for option, value in (("--dir-file", dir_file), ("--proj-file", proj_file)):
            if value is not None:
                raise InputError(f"{option} is for surfaces of {surface_files.GOLDSTEIN}, {file} is a {result.kind}")
    if groups is None and weights is None:
        refuse_typed(("many", "few", "ends"), "is for --groups and --weights: give one of these too, or leave it out")
        return result
    chosen = groups or "all", weights or "natural"
    if not isinstance(result, Surface | Spectrum):
        option = "--weights" if groups is None else "--groups"
        raise InputError(f"{option} is for surfaces and spectra, {file} is a {result.kind}: leave it out")
    return regroup.regroup(result, *chosen, many=many, few=few, ends=ends)
