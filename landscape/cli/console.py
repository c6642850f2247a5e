"""The only place that prints: results to stdout, everything else to stderr."""

import json
import logging
import math
import time
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Literal, TypeAlias

import click
import numpy as np
import rich.cells
import rich.console
import rich.progress
import rich.table
import rich.text
from rich.logging import RichHandler

Progress: TypeAlias = Callable[[float, int, str], None]
"""Called with what is done, with the number of all units, and with the unit in work."""

_WIDE = 10_000  # columns of a file or pipe, where a table must not be folded
_LEAST_NAME = 8  # columns of the first column, where another one needs the room
_MOST_OF_TEXT = 24  # columns to which a name or another text may be narrowed, even within a word
_DAY = 86_400.0
LOG_EVERY = 60.0
"""Seconds between two lines of progress in a log."""


class Console:
    """The output of one command: text, one JSON document, or nothing."""

    def __init__(self, *, quiet: bool = False, json: bool = False) -> None:
        """Choose the kind of output.

        Args:
            quiet: print only errors, and JSON if requested.
            json: print no text, because stdout contains one JSON document.
        """
        self._text = not (quiet or json)
        self._json = json

    def say(self, text: str) -> None:
        """Print a line of the result."""
        if self._text:
            click.echo(text)

    def note(self, text: str) -> None:
        """Print a line that is not part of the result, to stderr."""
        if self._text:
            click.echo(text, err=True)

    def table(
        self,
        columns: Sequence[str],
        rows: Sequence[Sequence[str]],
        *,
        title: str | None = None,
        align: str | None = None,
    ) -> None:
        """Print a table.

        Args:
            columns: headings of the columns.
            rows: rows with one cell for each column.
            title: a line above the table.
            align: a letter for each column, "l" or "r"; None for a column of names and then numbers.

        On a terminal that is too narrow the columns follow in blocks, each of which begins with the first column: a
        number is never divided between lines, as headings and texts are.
        """
        if not self._text:
            return
        out = rich.console.Console(highlight=False)
        if not out.is_terminal:
            out = rich.console.Console(highlight=False, width=_WIDE)
        sides = align or "l" + "r" * (len(columns) - 1)
        cells = [list(column) for column in zip(columns, *rows, strict=True)]
        for first, widths in enumerate(_blocks(cells, sides, out.width)):
            # Text objects, since a name such as "[red]" is no markup.
            text = rich.text.Text(title) if title and not first else None
            table = rich.table.Table(title=text, box=rich.box.SIMPLE_HEAD, title_justify="left")
            for column, width in widths.items():
                side: Literal["left", "right"] = "left" if sides[column] == "l" else "right"
                table.add_column(rich.text.Text(columns[column]), justify=side, overflow="fold", width=width)
            for row in rows:
                table.add_row(*(rich.text.Text(row[column]) for column in widths))
            out.print(table)

    def json(self, value: Any) -> None:
        """Print a JSON document, whether quiet or not."""
        click.echo(strict_json(value))

    def document(self, value: Any) -> None:
        """Print a JSON document if it was requested instead of text."""
        if self._json:
            self.json(value)

    @contextmanager
    def progress(self) -> Generator[Progress, None, None]:
        """Show a bar and the remaining time on stderr; if stderr is not a terminal, print a line from time to time.

        Yields:
            A function to call with (done, total, text).
        """
        err = rich.console.Console(stderr=True)
        if not self._text:
            yield lambda done, total, text: None
            return
        if not err.is_terminal:
            yield _lines(self.note)
            return
        columns = (
            rich.progress.TextColumn("{task.description}", markup=False),
            rich.progress.BarColumn(),
            rich.progress.TaskProgressColumn(),
            rich.progress.TimeRemainingColumn(),
        )
        # Units take minutes: the speed of the last 30 seconds, which is the default, would be unknown most of the time.
        with rich.progress.Progress(*columns, console=err, transient=True, speed_estimate_period=_DAY) as bar:
            task = bar.add_task("", total=None)
            yield lambda done, total, text: bar.update(task, completed=done, total=total, description=text)


def _blocks(cells: Sequence[Sequence[str]], sides: str, room: int) -> list[dict[int, int]]:
    """Divide the columns of a table such that each block, of the first column and of others, fits into the room.

    Args:
        cells: of each column, its heading and then its cells.
        sides: as for `Console.table`.
        room: in characters.

    Returns:
        Positions of each block's columns, with their widths: those of the longest cells if there is room, otherwise
        at least that of the longest word, and of each number.
    """
    least = [_least(own, side) for own, side in zip(cells, sides, strict=True)]
    groups: list[dict[int, int]] = []
    for column, own in enumerate(cells):
        if column > 1 and own[0].startswith("±"):  # the error of the number before it
            groups[-1][column] = least[column]
        else:
            groups.append({column: least[column]})
    blocks = [groups[0]]
    for group in groups[1:]:
        if len(blocks[-1]) > 1 and _width([*blocks[-1].values(), *group.values()]) > room:
            blocks.append(groups[0])
        blocks[-1] = blocks[-1] | group
    for block in blocks:
        block[0] = max(min(_LEAST_NAME, block[0]), block[0] - max(0, _width(block.values()) - room))
        for column in block:
            longest = max(map(rich.cells.cell_len, cells[column]))
            block[column] += max(0, min(longest - block[column], room - _width(block.values())))
    return blocks


def _least(cells: Sequence[str], side: str) -> int:
    """Return the width that a column needs at least: that of its words, and of its cells if these are numbers."""
    words = max((rich.cells.cell_len(word) for cell in cells for word in cell.split()), default=1)
    return min(_MOST_OF_TEXT, words) if side == "l" else max([words, *map(rich.cells.cell_len, cells[1:])])


def _width(columns: Iterable[int]) -> int:
    """Return the width of a table: two blanks beside each column, one between two, and one at each edge."""
    return 1 + sum(width + 3 for width in columns)


def _lines(say: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> Progress:
    """Return a progress that says a line after `LOG_EVERY` seconds, and then each time that these have passed again."""
    begin = said = clock()
    first: tuple[float, float] | None = None  # work that an earlier call has done took no time of this one

    def progress(done: float, total: int, text: str) -> None:
        nonlocal said, first
        now = clock()
        first = first or (now, done)
        if now - said < LOG_EVERY:
            return
        said = now
        here = done - first[1]
        left = f", about {duration((now - first[0]) * (total - done) / here)} left" if here > 0 else ""
        say(f"{100 * done / max(total, 1):.0f} % of {total}, {duration(now - begin)}{left}{text and ': ' + text}")

    return progress


def duration(seconds: float) -> str:
    """Write a time in the unit that fits: "4.2 s", "3.1 min", "2.5 h"."""
    for length, unit in ((_DAY, "d"), (3600.0, "h"), (60.0, "min")):
        if seconds >= 1.5 * length:
            return f"{seconds / length:.2g} {unit}"
    return f"{seconds:.2g} s"


def error(text: str) -> None:
    """Print a text on one line to stderr; line breaks in it become spaces."""
    with suppress(OSError):  # the disk behind stderr may be full; the exit code remains
        click.echo(f"landscape: error: {' '.join(text.split())}", err=True)


def log_handler() -> logging.Handler:
    """Return a handler that shows log records on stderr, beside a progress bar if there is one."""
    err = rich.console.Console(stderr=True)
    return RichHandler(console=err, show_time=False, show_path=False, markup=False, highlighter=None)


def strict_json(value: Any) -> str:
    """Write any result as JSON that every reader accepts.

    Args:
        value: mappings, sequences, NumPy arrays and numbers, strings; anything else is written as its text.

    Returns:
        JSON text in which nan and infinities are null.
    """
    return json.dumps(_plain(value), indent=2, ensure_ascii=False, allow_nan=False)


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str | int):
        return value
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(v) for v in value]
    return str(value)
