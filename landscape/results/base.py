"""What all results have in common: access by part, a table in notebooks, conversion to pandas and xarray."""

import html
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar, Self, TypeVar

import numpy as np

from landscape.errors import InputError, position, positions
from landscape.results import columns
from landscape.results.axes import Floats, array, check_axes, scalar

T = TypeVar("T")

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

MOST_ROWS = 6
"""Rows of the table in a `repr`; if there are more parts, the first and the last are shown."""
MOST_HTML_ROWS = 60


@dataclass(frozen=True, kw_only=True, eq=False)
class Result:
    """The result of an analysis: arrays with named axes, scalars, and provenance."""

    kind: ClassVar[str]
    version: ClassVar[int]
    along: ClassVar[str]  # the axis along which results of this kind are joined

    provenance: Mapping[str, Any] = scalar(doc="how, when and from what this was computed", default_factory=dict)

    def __post_init__(self) -> None:
        check_axes(self)

    @property
    def title(self) -> str:
        """The line above the table of the numbers."""
        return ""

    @property
    def lengths(self) -> dict[str, int]:
        """The length of each axis, by its name."""
        return {
            axis: length
            for item in fields(self)
            if item.metadata["axes"] and getattr(self, item.name) is not None
            for axis, length in zip(item.metadata["axes"], np.shape(getattr(self, item.name)), strict=True)
        }

    def stated(self, *names: str, of: type[T]) -> T | None:
        """Return an entry of the provenance, which may come from any file.

        Args:
            names: of the entry; several lead to one inside others.
            of: its class.

        Returns:
            The entry, or None if it is missing or of another class.
        """
        found: Any = self.provenance
        for name in names:
            found = found.get(name) if isinstance(found, Mapping) else None
        return found if isinstance(found, of) and not (isinstance(found, bool) and of is not bool) else None

    def index(self, part: str) -> int:
        """Return the position of a part by its name.

        Args:
            part: one of `parts`.

        Returns:
            Its index along the axis "part".

        Raises:
            InputError: there is no such part.
        """
        return position(part, getattr(self, "parts", ()))

    def __getitem__(self, part: str | Sequence[str]) -> Self:
        """Return the result of one part, or of several.

        Args:
            part: a name, or a list of names in the desired order.

        Returns:
            A result with these parts only.

        Raises:
            InputError: there is no such part, or the list is empty.
        """
        chosen = positions(part, getattr(self, "parts", ()))
        if not chosen:
            raise InputError("no part is named: give the name of a part, or a list of names")
        changes: dict[str, Any] = {}
        for item in fields(self):
            axes, value = item.metadata["axes"] or (), getattr(self, item.name)
            if "part" not in axes or value is None:
                continue
            if isinstance(value, tuple):
                changes[item.name] = tuple(value[p] for p in chosen)
                continue
            for number, axis in enumerate(axes):
                value = np.take(value, chosen, axis=number) if axis == "part" else value
            changes[item.name] = value
        return replace(self, **self._chosen(chosen, changes))

    def only(self, place: int) -> Self:
        """Return the result at one position of the axis along which results are joined, such as one checkpoint."""
        changes = {
            item.name: value[place : place + 1]
            for item in fields(self)
            if (item.metadata["axes"] or ())[:1] == (self.along,) and (value := getattr(self, item.name)) is not None
        }
        return replace(self, **changes)

    def _chosen(self, chosen: Sequence[int], changes: dict[str, Any]) -> dict[str, Any]:
        """Return fields that change with a choice of parts; kinds with fields of part positions override it."""
        return changes

    def __iter__(self) -> Iterator[str]:
        """Return the names of the parts."""
        return iter(getattr(self, "parts", ()))

    def __repr__(self) -> str:
        heads, rows = columns.table(self)
        shape = ", ".join(f"{axis}: {length:,}" for axis, length in self.lengths.items())
        lines = [f"{type(self).__name__} ({shape})"[:120]]
        if self.title:
            lines.append(" ".join(self.title.split())[:120])
        if len(rows) > MOST_ROWS:
            half = (MOST_ROWS - 1) // 2
            rows = [*rows[: MOST_ROWS - 1 - half], ["..."] * len(heads), *rows[len(rows) - half :]]
        cells = [heads, *rows] if heads else []
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        for row in cells:
            lines.append("  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip())
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        heads, rows = columns.table(self)
        if not heads:
            return f"<pre>{html.escape(repr(self))}</pre>"
        left = len(rows) - MOST_HTML_ROWS
        shown = "".join(_row("td", row) for row in rows[:MOST_HTML_ROWS])
        more = f"<p>and {left:,} more parts</p>" if left > 0 else ""
        caption = f"<caption>{html.escape(f'{type(self).__name__}: {self.title}'.removesuffix(': '))}</caption>"
        return f"<table>{caption}<thead>{_row('th', heads)}</thead><tbody>{shown}</tbody></table>{more}"

    def to_dataframe(self, *, long: bool = False) -> "pd.DataFrame":
        """Return the numbers as a pandas data frame.

        Args:
            long: make a row for each number, with its field, its position along each axis (by name if there are
                names), and its value. Otherwise make a row for each part, with a column for each field that has one
                number per part.

        Returns:
            The frame. The wide frame is indexed by part, and for a series also by checkpoint. Arrays over parameters,
            probes and steps are left out.
        """
        import pandas as pd  # a second, which only this needs

        from landscape.results.foreign import interop

        names, rows = interop.long_table(self) if long else interop.part_table(self)
        frame = pd.DataFrame(list(rows), columns=names)
        frame = frame if long else frame.set_index(["checkpoint", "part"] if "checkpoint" in names else "part")
        frame.attrs = interop.matrices(self)
        return frame

    def to_xarray(self) -> "xr.Dataset":
        """Return all arrays as an xarray data set: dimensions are the axes, names along them are coordinates.

        The name of the second axis of a matrix over pairs ends in "_2". Units and descriptions are attributes of the
        variables; scalars and the provenance are attributes of the data set.

        Returns:
            The data set.

        Raises:
            InputError: the package xarray is not installed.
        """
        from landscape.results.foreign import interop

        return interop.to_xarray(self)

    def log(self, writer: Any, step: int | None = None) -> None:
        """Log the numbers of the result's table, for each part, with a client that tracks a training.

        Args:
            writer: a `SummaryWriter` of TensorBoard, a run of wandb or trackio (or their modules), the module mlflow,
                or a logger of Lightning. The caller makes and closes it.
            step: step of the training for these numbers; a series has its own steps or, if it does not know them,
                epochs.

        Raises:
            InputError: the writer is of another kind, the result has no finite numbers of parts, or no step is given
                that is a whole number.
        """
        from landscape.results import logged

        logged.log(self, writer, step)


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class OfPoints(Result):
    """Numbers of one or several checkpoints, which are the first axis of the arrays."""

    along: ClassVar[str] = "point"

    points: tuple[str, ...] = array("point", doc="names of the checkpoints")
    epoch: Floats = array("point", unit="epochs", doc="their epochs; nan if a checkpoint does not store it")

    def where(self, point: int) -> str:
        """Return the name of a checkpoint, with its epoch if that is known.

        Args:
            point: its position; -1 is the last.
        """
        epoch = self.epoch[point]
        return self.points[point] + ("" if np.isnan(epoch) else f" (epoch {epoch:g})")


def _row(tag: str, cells: Sequence[str]) -> str:
    first, *rest = (html.escape(cell) for cell in cells)
    return (
        f'<tr><{tag} style="text-align:left">{first}</{tag}>{"".join(f"<{tag}>{cell}</{tag}>" for cell in rest)}</tr>'
    )
