"""What `landscape compare` says of the results of one kind: a cell for each part and file, and what else differs."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from landscape.errors import InputError
from landscape.results import Result, Sharpness, Spectrum, Surface, Traces
from landscape.results.written import number, with_error

SHARED = ("loss", "params", "split", "weight_decay", "data_sha256", "normalisation")
"""Entries of provenance that make numbers differ for other reasons than the model."""


@dataclass(frozen=True)
class Comparison:
    """How results of one kind are compared."""

    title: Callable[[Sequence[Any]], str]  # what stands in a cell
    numbers: tuple[str, ...]  # fields of each part, for JSON
    cell: Callable[[Any, int, bool], str]  # of a result and the position of a part; whether any file has a barrier
    looks: Mapping[str, Callable[[Any], Any]]  # what could explain a difference
    counts: Mapping[str, str]  # fields with numbers of samples, and what they are called
    marks: Mapping[str, str]  # a sign that may stand in a cell, and what it means
    remarks: Callable[[Any], str]  # a line about one file, or none


def comparison(files: Sequence[Path], results: Sequence[Result]) -> Comparison:
    """Find how these results are compared.

    Args:
        files: where they are from.
        results: at least one.

    Returns:
        What is said of their kind.

    Raises:
        InputError: results of different kinds, or of a kind that is not compared.
    """
    kinds = [Surface.kind if isinstance(r, Surface) else r.kind for r in results]
    for file, kind in zip(files, kinds, strict=True):
        if kind not in KINDS:
            raise InputError(
                f"{file} is a {kind}: give results of landscape hessian, of sharpness, or of surface1d and surface2d"
            )
        if kind != kinds[0]:
            raise InputError(f"{files[0]} is a {kinds[0]}, {file} a {kind}: compare results of one kind")
    return KINDS[kinds[0]]


def column_names(files: Sequence[Path], results: Sequence[Any]) -> list[str]:
    """Return the shortest names that differ: the methods of training, the files' stems, or their paths."""
    methods = [str(r.provenance.get("method") or "") for r in results]
    stems = [f.stem for f in files]
    for names in (methods, stems):
        if all(names) and len(set(names)) == len(names):
            return names
    return [str(f) for f in files]


def numbers(how: Comparison, result: Any, part: str) -> dict[str, Any] | None:
    """Return the numbers of a part by their field names, or None where a result has no such part."""
    if part not in result.parts:
        return None
    p = result.parts.index(part)
    values = {name: getattr(result, name) for name in how.numbers}
    return {name: None if value is None else value[p] for name, value in values.items()}


def cells(how: Comparison, results: Sequence[Any], parts: Sequence[str]) -> list[list[str]]:
    """Return a row for each part with a cell for each result."""
    barrier = any(getattr(r, "barrier", None) is not None for r in results)
    return [[how.cell(r, r.parts.index(part), barrier) if part in r.parts else "-" for r in results] for part in parts]


def notes(how: Comparison, names: Sequence[str], results: Sequence[Any], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return lines that explain the signs in the cells, what is known of each file, and what differs between them."""
    text = "".join(cell for row in rows for cell in row)
    lines = [line for mark, line in how.marks.items() if mark in text]
    lines += [f"{name}: {line}" for name, r in zip(names, results, strict=True) if (line := how.remarks(r))]
    return lines


def differences(how: Comparison, names: Sequence[str], results: Sequence[Any], parts: Sequence[str]) -> list[str]:
    """Return a line for each thing that makes the numbers of the files differ for other reasons than the model."""
    looks = dict(how.looks)
    for key in SHARED:
        looks[key.replace("_", " ")] = partial(_entry, key)
    lines = []
    for what, look in looks.items():
        lines += _difference(what, names, [look(r) for r in results])
    lines += _classifiers(names, results)
    for field, what in how.counts.items():
        found = []
        for part in parts:
            having = [
                (n, _count(getattr(r, field)[r.parts.index(part)]))
                for n, r in zip(names, results, strict=True)
                if part in r.parts
            ]
            found += _difference(f"{what} of {part}", *zip(*having, strict=True))
        if found:
            others = f" (and so in {len(found) - 1} more)" if len(found) > 1 else ""
            return [*lines, found[0] + others]  # what is summed over differs with the samples
    return lines


def latex(names: Sequence[str], parts: Sequence[str], rows: Sequence[Sequence[str]], lines: Sequence[str]) -> str:
    """Return a LaTeX table, for the package booktabs, with lines before it as comments."""
    table = [f"% {line}" for line in lines]
    table += [rf"\begin{{tabular}}{{l{'r' * len(names)}}}", r"\toprule"]
    table += [" & ".join(["", *map(_tex, names)]) + r" \\", r"\midrule"]
    for part, row in zip(parts, rows, strict=True):
        table.append(" & ".join([_tex(part), *map(_tex, row)]) + r" \\")
    return "\n".join([*table, r"\bottomrule", r"\end{tabular}"])


def _spectrum_cell(spectrum: Spectrum, p: int, barrier: bool) -> str:
    top = with_error(spectrum.lambda_max[p], spectrum.lambda_max_residual[p])
    mark = "" if spectrum.converged[p] else "*"
    return f"{top}{mark} / {with_error(spectrum.trace[p], spectrum.trace_stderr[p])}"


def _traces_cell(traces: Traces, p: int, barrier: bool) -> str:
    return with_error(traces.trace[p], traces.trace_stderr[p])


def _surface_cell(surface: Surface, p: int, barrier: bool) -> str:
    values = [surface.centre_loss[p], surface.doubling_radius[p], surface.worst_rise[p]]
    if barrier:
        values.append(math.nan if surface.barrier is None else surface.barrier[p])
    texts = ["-" if math.isnan(value) else number(value) for value in values]
    return " / ".join([texts[0], "none" if math.isinf(values[1]) else texts[1], *texts[2:]])


def _surface_title(surfaces: Sequence[Surface]) -> str:
    radii = {s.radius for s in surfaces if not math.isnan(s.radius)}
    within = f" within {radii.pop():.4g}" if len(radii) == 1 else ""
    barrier = " / barrier" if any(s.barrier is not None for s in surfaces) else ""
    return f"loss at the centre / doubling radius / worst rise{within}{barrier}"


def _sharpness_cell(sharpness: Sharpness, p: int, barrier: bool) -> str:
    values = [sharpness.loss[p], sharpness.worst_rise[p], sharpness.doubling_radius[p]]
    loss, worst, radius = ("-" if math.isnan(value) else number(value) for value in values)
    radius = "none" if math.isinf(values[2]) else radius
    noise = with_error(sharpness.noise_rise[p], sharpness.noise_rise_stderr[p])
    return f"{loss} / {worst} / {noise} / {radius}"


def _sharpness_title(found: Sequence[Sharpness]) -> str:
    balls, noises = {(s.rho, s.adaptive) for s in found}, {s.sigma for s in found}
    rho = f" within {'adaptive ' * found[0].adaptive}rho {found[0].rho:g}" if len(balls) == 1 else ""
    sigma = f" of {found[0].sigma:g}" if len(noises) == 1 else ""
    return f"loss / worst rise{rho} / rise under noise{sigma} ± standard error / doubling radius"


def _range(coordinates: Any) -> str:
    return f"{coordinates[0]:g}:{coordinates[-1]:g}:{len(coordinates)}"


KINDS: Mapping[str, Comparison] = {
    "spectrum": Comparison(
        title=lambda spectra: "lambda_max ± residual / trace ± standard error",
        numbers=("n_samples", "n_used", "lambda_max", "lambda_max_residual", "converged", "trace", "trace_stderr"),
        cell=_spectrum_cell,
        looks={
            "operator": lambda s: s.operator,
            "parameters": lambda s: s.size,
            "residual mass": lambda s: s.residual_mass,
        },
        counts={"n_samples": "samples", "n_used": "samples summed over"},
        marks={
            "*": "* lambda_max has not converged: more --steps, or --tol, at the analysis",
            "?": "± ? the error is unknown: one probe cannot tell its own spread",
        },
        remarks=lambda spectrum: "",
    ),
    "traces": Comparison(
        title=lambda traces: "trace of the weighted loss ± standard error at most",
        numbers=("n_samples", "loss", "accuracy", "trace", "trace_stderr"),
        cell=_traces_cell,
        looks={"operator": lambda t: t.operator, "parameters": lambda t: t.size},
        counts={"n_samples": "samples"},
        marks={"?": "± ? the error is unknown: one probe cannot tell its own spread"},
        remarks=lambda traces: "",
    ),
    "sharpness": Comparison(
        title=_sharpness_title,
        numbers=(
            "n_samples",
            "loss",
            "accuracy",
            "first_order_rise",
            "worst_rise",
            "noise_rise",
            "noise_rise_stderr",
            "doubling_radius",
            "doubling_radius_spread",
        ),
        cell=_sharpness_cell,
        looks={
            "rho": lambda s: f"{s.rho:g}",
            "the ball": lambda s: "adaptive" if s.adaptive else "Euclidean",
            "sigma": lambda s: f"{s.sigma:g}",
            "draws": lambda s: s.draws,
            "ascent steps": lambda s: _words(s.provenance.get("options", {}).get("ascent_steps")),
        },
        counts={"n_samples": "samples"},
        marks={"?": "± ? the error is unknown: one draw cannot tell its own spread"},
        remarks=lambda sharpness: "",
    ),
    "surface": Comparison(
        title=_surface_title,
        numbers=(
            "n_samples",
            "centre_loss",
            "centre_accuracy",
            "lowest_loss",
            "doubling_radius",
            "worst_rise",
            "barrier",
        ),
        cell=_surface_cell,
        looks={
            "directions": lambda s: ", ".join(s.axes),
            "x": lambda s: _range(s.xcoordinates),
            "y": lambda s: _range(s.ycoordinates),
            "unit lengths": lambda s: ", ".join(f"{u:.4g}" for u in s.unit_length),
            "radius of the worst rise": lambda s: f"{s.radius:.4g}",
            "batch norm": lambda s: s.batch_norm,
        },
        counts={"n_samples": "samples"},
        marks={},
        remarks=lambda surface: surface.verdict,
    ),
}
"""How each kind of result is compared; a trajectory is compared as the surface under it."""


def _count(value: Any) -> Any:
    return "unknown" if math.isnan(value) else int(value)


def _difference(what: str, names: Sequence[str], values: Sequence[Any]) -> list[str]:
    """Return one line with the value of each file, or none if all values are equal."""
    if len(set(values)) <= 1:
        return []
    groups: dict[Any, list[str]] = {}
    for name, value in zip(names, values, strict=True):
        groups.setdefault(value, []).append(name)
    return [
        f"note: the files differ in {what}: "
        + "; ".join(f"{value} in {', '.join(who)}" for value, who in groups.items())
    ]


def _classifiers(names: Sequence[str], results: Sequence[Any]) -> list[str]:
    """Return one line where the classifiers of the files differ: linear, or cosine with a scale."""
    known = [(n, c) for n, r in zip(names, results, strict=True) if (c := r.provenance.get("classifier")) is not None]
    return [
        f"{line}; curvature grows with the scale s of cosine logits, the Gauss-Newton matrix by s squared: compare "
        "shapes, and ratios between parts of one file, not sizes"
        for line in _difference("classifier", [n for n, _ in known], [c for _, c in known])
    ]


def _entry(key: str, result: Any) -> str:
    return _words(result.provenance.get(key))


def _words(value: Any) -> str:
    text = value if isinstance(value, str) else "unknown" if value is None else json.dumps(value)
    return text if len(text) <= 40 else text[:12] + "..."


_TEX = {c: rf"\{c}" for c in "&%$#_{}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "*": r"$^*$",
}


def _tex(text: str) -> str:
    return "".join(_TEX.get(c, c) for c in text)
