"""`landscape compare`: the numbers of several result files side by side. It reads files and never torch."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cloup

from landscape.cli import compared, matched
from landscape.cli.console import Console
from landscape.cli.latex import latex_table
from landscape.cli.opened import FILE, REGROUP, open_result
from landscape.cli.options import JSON, command, option
from landscape.errors import InputError
from landscape.results import Series, Spectrum
from landscape.results.foreign import interop


@command(
    "landscape compare runs/ce/last.hessian.h5 runs/sam/last.hessian.h5",
    "landscape compare runs/ce/hessian.h5 --at 0,40,200",
    "landscape compare ce.surface2d.h5 sam.surface2d.h5 --groups head-tail --latex",
)
@cloup.argument("files", type=FILE, nargs=-1, required=True, help="Result files of one kind.")
@REGROUP
@cloup.option_group(
    "Comparison",
    option(
        "--at",
        metavar="LIST",
        help="For series along training, compare these checkpoints, by epoch, step or name: 0,40,200.",
        show_default="the last",
    ),
    option(
        "--match-samples",
        is_flag=True,
        help="Compare lambda_max and trace of parts at equal numbers of samples, and of models on the same images.",
    ),
)
@cloup.option_group(
    "Output",
    JSON,
    option("--latex", is_flag=True, help="Print a LaTeX table; it needs the packages booktabs and siunitx."),
)
def compare(
    files: Sequence[Path], at: str | None, match_samples: bool, as_json: bool, latex: bool, **opening: Any
) -> None:
    """Print the numbers of each part, with a column for each file.

    For spectra, the table has lambda_max and trace, each with the larger one of its errors: over samples, or of the
    computation; with --groups or --weights it has the trace, and lambda_max of the Gauss-Newton or Fisher matrix. For
    sharpness, it has the loss, its rise within rho and under noise, and the noise that doubles it. For surfaces, it has
    the loss at the centre, the distance at which it doubles, its largest rise within a radius, and the barrier on a
    line between checkpoints. A series along training is represented by its last checkpoint, or by those that --at
    names. Lines below the table name the differences between the files other than the model.

    Raises:
        InputError: files that cannot be compared, --at without a series or for a checkpoint that it does not contain,
            or --json and --latex together.
    """
    if as_json and latex:
        raise InputError("--json and --latex exclude each other: choose one")
    files, results, places = _taken(files, [open_result(file, **opening) for file in files], at)
    how = compared.comparison(files, results)
    names = compared.column_names(files, results, places)
    if match_samples and not all(isinstance(r, Spectrum) for r in results):
        raise InputError("--match-samples compares spectra of landscape hessian, without --groups and --weights")
    if match_samples:
        matched.check(files, results, places)
    parts = list(dict.fromkeys(part for r in results for part in r.parts))
    differing = compared.differences(how, names, results, parts)
    console = Console(json=as_json)
    if as_json:
        values = [{"part": p, "values": [compared.numbers(r, p) for r in results]} for p in parts]
        columns = [
            {"name": n, "file": str(f)} | interop.matrices(r) | ({"remark": how.remarks(r)} if how.remarks(r) else {})
            for n, f, r in zip(names, files, results, strict=True)
        ]
        document = {"kind": results[0].kind, "columns": columns, "rows": values, "notes": differing}
        console.json(document | ({"matched": matched.document(names, results)} if match_samples else {}))
        return
    cells = compared.cells(results, parts)
    title, lines = compared.title(results), [*compared.notes(how, names, results, cells), *differing]
    if latex:
        console.say(latex_table(names, results, parts, lines))
        return
    rows = [[part, *row] for part, row in zip(parts, cells, strict=True)]
    console.say(title)
    console.table(["part", *names], rows)
    for line in lines:
        console.say(line)
    if match_samples:
        matched.show(console, names, results)


def _taken(files: Sequence[Path], results: Sequence[Any], at: str | None) -> tuple[list[Path], list[Any], list[str]]:
    """Return what is compared: files, their results, and the checkpoints where they are of a series, else ""."""
    if at is not None and not any(isinstance(result, Series) for result in results):
        raise InputError("--at names checkpoints of a series along training, and no file is one: leave it out")
    found: list[tuple[Path, Any, str]] = []
    for file, result in zip(files, results, strict=True):
        if not isinstance(result, Series):
            found.append((file, result, ""))
            continue
        words = [] if at is None else [word.strip() for word in at.split(",")]
        for k in [result.position(word) for word in words] or [len(result.checkpoints) - 1]:
            found.append((file, result.at(k), result.checkpoints[k]))
    return [f for f, _, _ in found], [r for _, r, _ in found], [c for _, _, c in found]
