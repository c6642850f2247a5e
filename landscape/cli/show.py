"""Commands that show results: `plot`, `compare`, `export`. They read files and never torch."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from landscape import interop, quadrature, store
from landscape.cli.console import Console, strict_json
from landscape.errors import InputError, StoreError
from landscape.results import Result, Spectrum

FILE = click.Path(path_type=Path)

FIGURES = {
    "spectrum": ("density", "summary"),
    "history": ("training", "quality", "cosines"),
    "features": ("quality", "angles", "collapse"),
}
"""Kinds of figures of each kind of result, the default first; those of `plots.KIND_FIGURES`."""


@click.command()
@click.argument("file", type=FILE)
@click.option(
    "--kind",
    type=click.Choice(list(dict.fromkeys(kind for kinds in FIGURES.values() for kind in kinds))),
    help="Of a spectrum: density (default), the spectrum of each part, or summary, lambda_max and trace against "
    "training samples. Of a history: training (default), loss and accuracy; quality, of the features; cosines, of "
    "class and batch gradients. Of features: quality (default), of each class; angles, between class means; "
    "collapse, the four signs of neural collapse.",
)
@click.option("-o", "--out", type=FILE, help="Figure to write, .png, .pdf or .svg. [default: FILE.KIND.png]")
@click.option("--parts", help='Parts to draw, by name or position, as in "head,tail" or "0,9". [default: all]')
@click.option("--axis", type=click.Choice(quadrature.AXES), help="Axis of the eigenvalues. [default: symlog]")
@click.option(
    "--width",
    help="Standard deviation of the Gaussians on the axis: a number, or one of "
    f"{', '.join(quadrature.WIDTHS)}. [default: auto]",
)
def plot(
    file: Path, kind: str | None, out: Path | None, parts: str | None, axis: str | None, width: str | None
) -> None:
    """Draw a figure of the result in FILE.

    More than 24 densities become a map with a row for each part. A figure of the same name is replaced.
    """
    result = store.load(file)
    kind = _kind(result, kind)
    options = _density_options(kind, axis, width)
    from landscape import plots  # matplotlib takes its time, which a wrong file or option need not wait for

    chosen = None if parts is None else _select(getattr(result, "parts", ()), parts)
    fig = plots.KIND_FIGURES[result.kind][kind](result, chosen, **options)
    out = out or file.with_suffix(f".{kind}.png")
    plots.write(fig, out)
    Console().say(str(out))


@click.command()
@click.argument("files", type=FILE, nargs=-1, required=True)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--latex", is_flag=True, help="Print a LaTeX table; it needs the package booktabs.")
def compare(files: tuple[Path, ...], as_json: bool, latex: bool) -> None:
    """Print lambda_max and trace of each part, one column for each of FILES.

    Errors behind ± are residual bounds of lambda_max and standard errors of the trace. Options that differ between
    the files, and could explain a difference, are named below the table.
    """
    _exclude({"--json": as_json, "--latex": latex})
    spectra = _load(files)
    names = _column_names(files, spectra)
    parts = list(dict.fromkeys(part for s in spectra for part in s.parts))
    notes = _differences(names, spectra, parts)
    console = Console(json=as_json)
    if as_json:
        values = [{"part": part, "values": [_numbers(s, part) for s in spectra]} for part in parts]
        columns = [{"name": n, "file": str(f)} for n, f in zip(names, files, strict=True)]
        console.json({"kind": spectra[0].kind, "columns": columns, "rows": values, "notes": notes})
        return
    cells = [[_cell(s, part) for s in spectra] for part in parts]
    marks = _footnotes(cells)
    if latex:
        console.say(_latex(names, parts, cells, [*marks, *notes]))
        return
    rows = [[part, *row] for part, row in zip(parts, cells, strict=True)]
    console.table(["part", *names], rows, title="lambda_max ± residual / trace ± standard error")
    for line in [*marks, *notes]:
        console.say(line)


@click.command()
@click.argument("file", type=FILE)
@click.option(
    "--to",
    "form",
    type=click.Choice(["csv", "json", "pyhessian"]),
    required=True,
    help="csv, json: the numbers of each part; pyhessian: for each part the two lists that PyHessian's "
    "density() returns, as JSON.",
)
@click.option("-o", "--out", type=FILE, help="File to write. [default: FILE.csv, FILE.json or FILE.pyhessian.json]")
@click.option("--overwrite", is_flag=True, help="Replace an existing file.")
def export(file: Path, form: str, out: Path | None, overwrite: bool) -> None:
    """Write the result in FILE in another format."""
    (spectrum,) = _load([file])
    out = out or file.with_suffix(".pyhessian.json" if form == "pyhessian" else f".{form}")
    if form == "csv":
        interop.to_csv(spectrum, out, overwrite=overwrite)
    else:
        _write(out, interop.to_json(spectrum) if form == "json" else _pyhessian(spectrum), overwrite)
    Console().say(str(out))


def _density_options(kind: str, axis: str | None, width: str | None) -> dict[str, str]:
    given = {name: value for name, value in (("axis", axis), ("width", width)) if value is not None}
    if given and kind != "density":
        raise InputError(f"--{next(iter(given))} is for --kind density; leave it out for --kind {kind}")
    return given


def _kind(result: Result, kind: str | None) -> str:
    if kind is not None and kind not in FIGURES[result.kind]:
        raise InputError(f"--kind {kind} is not for a {result.kind}: choose {' or '.join(FIGURES[result.kind])}")
    return kind or FIGURES[result.kind][0]


def _exclude(flags: Mapping[str, bool]) -> None:
    if all(flags.values()):
        raise InputError(f"{' and '.join(flags)} exclude each other: choose one")


def _load(files: Sequence[Path]) -> list[Spectrum]:
    spectra = []
    for file in files:
        result = store.load(file)
        if not isinstance(result, Spectrum):
            raise InputError(f"{file} is a {result.kind}: give results of landscape hessian")
        spectra.append(result)
    return spectra


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


def _column_names(files: Sequence[Path], spectra: Sequence[Spectrum]) -> list[str]:
    """Return the shortest names that differ: the methods of training, the files' stems, or their paths."""
    methods = [str(s.provenance.get("method") or "") for s in spectra]
    stems = [f.stem for f in files]
    for names in (methods, stems):
        if all(names) and len(set(names)) == len(names):
            return names
    return [str(f) for f in files]


def _numbers(spectrum: Spectrum, part: str) -> dict[str, Any] | None:
    if part not in spectrum.parts:
        return None
    p = spectrum.index(part)
    fields = ("n_samples", "n_used", "lambda_max", "lambda_max_residual", "converged", "trace", "trace_stderr")
    return {name: getattr(spectrum, name)[p] for name in fields}


def _cell(spectrum: Spectrum, part: str) -> str:
    from landscape.plots.theme import with_error

    if part not in spectrum.parts:
        return "-"
    p = spectrum.index(part)
    top = with_error(spectrum.lambda_max[p], spectrum.lambda_max_residual[p])
    mark = "" if spectrum.converged[p] else "*"
    return f"{top}{mark} / {with_error(spectrum.trace[p], spectrum.trace_stderr[p])}"


def _footnotes(cells: Sequence[Sequence[str]]) -> list[str]:
    text = "".join(cell for row in cells for cell in row)
    explained = {
        "*": "* lambda_max has not converged: more --steps, or --tol, at the analysis",
        "?": "± ? the error is unknown: one probe cannot tell its own spread",
    }
    return [line for mark, line in explained.items() if mark in text]


def _differences(names: Sequence[str], spectra: Sequence[Spectrum], parts: Sequence[str]) -> list[str]:
    """Return a line for each thing that makes the numbers of the files differ for other reasons than the model."""
    looks: dict[str, Callable[[Spectrum], Any]] = {
        "operator": lambda s: s.operator,
        "parameters": lambda s: s.size,
        "residual mass": lambda s: s.residual_mass,
    }
    for key in ("loss", "params", "split", "weight_decay", "data_sha256", "normalisation"):
        looks[key.replace("_", " ")] = lambda s, key=key: _words(s.provenance.get(key))  # type: ignore[misc]
    notes = []
    for what, look in looks.items():
        notes += _difference(what, names, [look(s) for s in spectra])
    for field, what in (("n_samples", "samples"), ("n_used", "samples summed over")):
        found = []
        for part in parts:
            having = [
                (n, int(getattr(s, field)[s.index(part)]))
                for n, s in zip(names, spectra, strict=True)
                if part in s.parts
            ]
            found += _difference(f"{what} of {part}", *zip(*having, strict=True))
        if found:
            others = f" (and so in {len(found) - 1} more)" if len(found) > 1 else ""
            return [*notes, found[0] + others]  # what is summed over differs with the samples
    return notes


def _difference(what: str, names: Sequence[str], values: Sequence[Any]) -> list[str]:
    """Return one line that says which value is whose, or none if all are alike."""
    if len(set(values)) <= 1:
        return []
    groups: dict[Any, list[str]] = {}
    for name, value in zip(names, values, strict=True):
        groups.setdefault(value, []).append(name)
    return [
        f"note: the files differ in {what}: "
        + "; ".join(f"{value} in {', '.join(who)}" for value, who in groups.items())
    ]


def _words(value: Any) -> str:
    text = value if isinstance(value, str) else "unknown" if value is None else json.dumps(value)
    return text if len(text) <= 40 else text[:12] + "..."


def _latex(names: Sequence[str], parts: Sequence[str], cells: Sequence[Sequence[str]], notes: Sequence[str]) -> str:
    lines = [f"% {note}" for note in ["lambda_max +- residual / trace +- standard error", *notes]]
    lines += [rf"\begin{{tabular}}{{l{'r' * len(names)}}}", r"\toprule"]
    lines += [" & ".join(["", *map(_tex, names)]) + r" \\", r"\midrule"]
    for part, row in zip(parts, cells, strict=True):
        lines.append(" & ".join([_tex(part), *map(_tex, row)]) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"])


_TEX = {c: rf"\{c}" for c in "&%$#_{}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "*": r"$^*$",
}


def _tex(text: str) -> str:
    return "".join(_TEX.get(c, c) for c in text)


def _pyhessian(spectrum: Spectrum) -> str:
    lists = {}
    for p, part in enumerate(spectrum.parts):
        nodes, weights = quadrature.nodes_and_weights(spectrum.alpha[p], spectrum.beta[p], spectrum.steps[p])
        eigen, weight = interop.to_pyhessian(nodes, weights, spectrum.steps[p])
        lists[part] = {"eigen_list_full": eigen, "weight_list_full": weight}
    return strict_json(lists)


def _write(path: Path, text: str, overwrite: bool) -> None:
    try:
        with open(path, "w" if overwrite else "x", encoding="utf-8") as file:
            file.write(text + "\n")
    except FileExistsError:
        raise StoreError(f"{path} exists: pass --overwrite to replace it, or choose another --out") from None
    except OSError as error:
        raise StoreError(f"{path} cannot be written: {error.strerror}; choose another --out") from None
