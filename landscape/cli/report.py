"""`landscape report`: results of any kinds as one page, for reading and passing on. It reads files and never torch."""

from collections.abc import Sequence
from pathlib import Path

import click

from landscape.cli.console import Console
from landscape.cli.opened import FILE, open_result, refuse_twice
from landscape.errors import InputError
from landscape.results import disk

_SUFFIXES = (".html", ".htm")


@click.command()
@click.argument("files", type=FILE, nargs=-1, required=True)
@click.option("-o", "--out", type=FILE, default=Path("report.html"), show_default=True, help="Page to write, .html.")
@click.option("--title", default="Loss landscape", show_default=True, help="Heading of the page.")
@click.option("--overwrite", is_flag=True, help="Replace an existing file.")
def report(files: tuple[Path, ...], out: Path, title: str, overwrite: bool) -> None:
    """Write the results in FILES as one page that a browser opens without a network.

    A table of all parts, measures against frequency, densities whose part and width are chosen in the page, surfaces
    that turn, the figures of `landscape plot`, and how each file was made. Files of the same checkpoint, data and loss
    share their rows in the table. Files of surface2d and trajectory need plotly.
    """
    _check(files, out)
    with disk.writing(out):
        disk.refuse_taken(out, overwrite=overwrite, signature=b"")
    results = {file: open_result(file) for file in files}
    from landscape.report import open_sources, page  # matplotlib takes its time, which a wrong file need not wait for

    content = page(open_sources(results), title).encode()
    with disk.writing(out):
        disk.refuse_taken(out, overwrite=overwrite, signature=b"")
        disk.write_aside(out, lambda file: file.write(content))
    Console().say(f"{out}  ({len(content) / 1e6:.1f} MB)")


def _check(files: Sequence[Path], out: Path) -> None:
    if out.suffix.lower() not in _SUFFIXES:
        raise InputError(f"a report cannot be written as {str(out)!r}: end the name in .html")
    refuse_twice(files)
