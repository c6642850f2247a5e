"""`landscape report`: one HTML page of many results. It reads files and never torch."""

from collections.abc import Sequence
from pathlib import Path

import cloup

from landscape.cli.console import Console
from landscape.cli.opened import FILE, open_result, refuse_twice
from landscape.cli.options import OVERWRITE, command, option
from landscape.errors import InputError
from landscape.results import disk

_SUFFIXES = (".html", ".htm")


@command(
    "landscape report runs/*/*.h5",
    "landscape report ce.h5 sam.h5 --title 'CE and SAM' -o ce-sam.html",
)
@cloup.argument("files", type=FILE, nargs=-1, required=True, help="Result files of any kinds.")
@cloup.option_group(
    "Output",
    option(
        "-o",
        "--out",
        type=FILE,
        metavar="FILE.html",
        default=Path("report.html"),
        show_default=True,
        help="Write the page to this file.",
    ),
    option(
        "--names",
        metavar="LIST",
        help="Name the models, in the order of their first files: 'CE,CE + SAM'.",
        show_default="their training methods, checkpoints or files",
    ),
    option("--title", default="Loss landscape", show_default=True, metavar="TEXT", help="Use this title for the page."),
    OVERWRITE,
)
def report(files: tuple[Path, ...], out: Path, names: str | None, title: str, overwrite: bool) -> None:
    """Write one HTML page with the tables and figures of many results.

    The page opens in any browser without a network. Its readers can sort the tables, rotate the surfaces, and choose
    the part and the width of a density. The page states how each file was made. Files of the same checkpoint, data and
    loss share their rows in the table. Results of surface2d and trajectory need plotly.
    """
    _check(files, out)
    with disk.writing(out):
        disk.refuse_taken(out, overwrite=overwrite, signature=b"")
    results = {file: open_result(file) for file in files}
    from landscape.report import open_sources, page  # after the files are read: importing matplotlib is slow

    called = None if names is None else [word.strip() for word in names.split(",")]
    content = page(open_sources(results, called), title).encode()
    with disk.writing(out):
        disk.refuse_taken(out, overwrite=overwrite, signature=b"")
        disk.write_aside(out, lambda file: file.write(content))
    Console().say(f"{out}  ({len(content) / 1e6:.1f} MB)")


def _check(files: Sequence[Path], out: Path) -> None:
    if out.suffix.lower() not in _SUFFIXES:
        raise InputError(f"a report cannot be written as {str(out)!r}: end the name in .html")
    refuse_twice(files)
