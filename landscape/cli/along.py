"""Several checkpoints given by --ckpt: runs an analysis on them as a series, and prints the results."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from landscape.analyses.series import series
from landscape.autodiff import distributed
from landscape.cli.begin import result_path
from landscape.cli.console import Console
from landscape.cli.options import Decorator, option
from landscape.errors import InputError
from landscape.objective import runs
from landscape.objective.objective import Objective
from landscape.objective.runs import Stage
from landscape.results import Result, Series, Spectrum, Surface, columns, store
from landscape.results.column import Column
from landscape.results.written import number

MOST_PARTS = 6
"""If there are more parts, the table shows only the most frequent and the rarest ones."""

WITH_PARTS: Decorator[Any] = option(
    "--with-parts",
    metavar="LIST",
    help="In a series, also analyse these groups, which may overlap with the parts: all, head, tail, many, medium or "
    "few.",
)


EXTEND: Decorator[Any] = option(
    "--extend",
    is_flag=True,
    help="For a series: keep the checkpoints that an existing file contains, and compute only the new ones.",
)


def listed(ckpt: Sequence[str], given: Mapping[str, Any]) -> tuple[str, list[Stage]]:
    """Determine whether --ckpt names one checkpoint or several.

    Args:
        ckpt: all values of --ckpt.
        given: options of the command, with those of `options.READING`.

    Returns:
        The first checkpoint, and the stages of the series; no stages for a single checkpoint.
    """
    if len(ckpt) == 1 and runs.is_single(ckpt[0]):
        return ckpt[0], []
    stages = runs.stages(ckpt, ckpt_key=given["ckpt_key"], trust_pickle=given["trust_pickle"])
    return str(stages[-1].path), stages if len(stages) > 1 or len(ckpt) > 1 else []


def path_of(out: str | None, ckpt: Sequence[str], stages: Sequence[Stage], command: str) -> Path:
    """Return the path of the result: as `begin.result_path`; for several --ckpt, in the folder of the first one."""
    if len(ckpt) > 1 and not out:
        return stages[0].path.parent / f"{command}.h5"
    return result_path(out, ckpt[0], command)


def drawn_at(first: str, stages: Sequence[Stage], path: Path, *, extend: bool, given: Mapping[str, Any]) -> str:
    """Return the checkpoint to load, at which samples are drawn: for a file that is extended, the one of its draw.

    Args:
        first: the checkpoint otherwise, the last one.
        stages: of the series.
        path: of the result.
        extend: whether the checkpoints of an existing file are kept.
        given: options of the command, of which `samples` is the number that is drawn.

    Returns:
        The checkpoint.
    """
    if not extend or given["samples"] is None or not path.exists():
        return first
    file = store.load(path)
    at, read_from = file.stated("draws", "at", of=str), file.stated("checkpoints", of=dict) or {}
    names = {Path(name).resolve() for name, sha256 in read_from.items() if sha256 == at}
    return next((str(stage.path) for stage in stages if stage.path.resolve() in names), first)


def refuse_single(stages: Sequence[Stage], *, extend: bool, with_parts: str | None = None) -> None:
    """Refuse the options of a series for a single checkpoint."""
    if with_parts and not stages:
        raise InputError("--with-parts is for a series: give several checkpoints, or --partition for one")
    if extend and not stages:
        raise InputError("--extend is for a series: give several checkpoints, or --overwrite for one")


def run(
    console: Console,
    analysis: Callable[..., Result],
    objective: Objective,
    stages: Sequence[Stage],
    *,
    with_parts: str | None = None,
    given: Mapping[str, Any],
    out: Path,
    overwrite: bool,
    extend: bool,
    **options: Any,
) -> Series:
    """Run an analysis as a series, and print each checkpoint as soon as it is finished."""
    words = [] if with_parts is None else [word.strip() for word in with_parts.split(",")]
    with console.progress() as progress:
        return series(
            analysis,
            objective,
            [stage.path for stage in stages],
            with_parts=words,
            ckpt_key=given["ckpt_key"],
            trust_pickle=given["trust_pickle"],
            out=out,
            overwrite=overwrite,
            extend=extend,
            progress=progress,
            finished=partial(_finished, console),
            **options,
        )


def _finished(console: Console, found: Series) -> None:
    own = found.at(0)
    column = _column([own])
    shown = ", ".join(f"{part} {column.text(own, p)}" for p, part in _shown(own))
    console.note(f"{found.checkpoints[0]}: {column.heading(own)}: {shown}")


def _column(results: Sequence[Any]) -> Column:
    """Return the column that a line shows: the first compared one that is not the loss."""
    some = columns.compared(results)
    return next((c for c in some if "loss" not in (c.key, c.field)), some[0])


def _shown(result: Any) -> list[tuple[int, str]]:
    """Return the positions of the parts that a line shows."""
    n = len(result.parts)
    chosen = range(n) if n <= MOST_PARTS else [*range(MOST_PARTS // 2), *range(n - MOST_PARTS // 2, n)]
    return [(p, result.parts[p]) for p in chosen]


def conclude(
    console: Console,
    found: Series,
    path: Path,
    of_one: Callable[[Any, Path], Mapping[str, Any]],
    *,
    as_json: bool,
) -> None:
    """Print a row for each checkpoint and the path of the file, or one JSON document with all checkpoints."""
    if not distributed.is_main():
        return
    if as_json:
        console.json(_document(found, path, of_one))
    own = [found.at(k) for k in range(len(found.checkpoints))]
    column = _column(own)
    place, unit = found.place
    known = isinstance(own[0], Spectrum) and np.isfinite(found.edge).any()
    heads = ["checkpoint", unit, *(part for _, part in _shown(own[0])), *(["edge"] if known else [])]
    rows = [
        [
            name,
            f"{place[k]:.12g}",
            *(column.text(own[k], p) for p, _ in _shown(own[k])),
            *(["-" if np.isnan(found.edge[k]) else number(found.edge[k])] if known else []),
        ]
        for k, name in enumerate(found.checkpoints)
    ]
    about = own[-1].titled(own) if isinstance(own[-1], Surface) else own[-1].title
    console.table(heads, rows, title=f"{column.heading(*own)} along training; {about}")
    if isinstance(own[-1], Surface) and own[-1].verdict:
        console.note(f"{found.checkpoints[-1]}: {own[-1].verdict}")
    left = len(found.parts) - len(_shown(own[0]))
    if left:
        console.note(f"and {left} more parts in the file")
    if known:
        console.note(f"edge: {found.edge_rule}, the largest lambda_max at which the optimizer is stable")
    console.say(f"result: {path}\nfigure: landscape plot {path}")


def _document(found: Series, path: Path, of_one: Callable[[Any, Path], Mapping[str, Any]]) -> dict[str, Any]:
    own = [dict(of_one(found.at(k), path)) for k in range(len(found.checkpoints))]
    about = ("epoch", "training_step", "learning_rate", "edge")
    checkpoints = [
        {"checkpoint": name, **{field: getattr(found, field)[k] for field in about}, "parts": own[k]["parts"]}
        for k, name in enumerate(found.checkpoints)
    ]
    shared = {name: value for name, value in own[-1].items() if name not in ("parts", "verify")}
    return shared | {"edge_rule": found.edge_rule, "checkpoints": checkpoints}
