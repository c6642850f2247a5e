"""Output of `landscape compare` for results of one kind: a cell for each part and file, and other differences."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from landscape.errors import InputError
from landscape.results import Result, Surface, columns, groups
from landscape.results.verdict import NO_STATISTICS

SHARED = ("params", "split", "weight_decay", "data_sha256", "normalisation")
"""Entries of provenance that make numbers differ for other reasons than the model."""
_LONGEST = 40  # letters of a word, such as a digest, that are all shown


@dataclass(frozen=True)
class Comparison:
    """Rules for comparing results of one kind."""

    looks: Mapping[str, Callable[[Any], Any]]  # facts that could explain a difference; None where a file has none
    counts: Mapping[str, str]  # fields with numbers of samples, and what they are called
    marks: Mapping[str, str]  # a sign in a cell, and its meaning
    remarks: Callable[[Any], str]  # a line about one file, or none


def comparison(files: Sequence[Path], results: Sequence[Result]) -> Comparison:
    """Return the rules for comparing these results.

    Args:
        files: files of the results.
        results: at least one.

    Returns:
        The rules for their kind.

    Raises:
        InputError: results of different kinds, or of a kind that cannot be compared.
    """
    kinds = [Surface.kind if isinstance(r, Surface) else r.kind for r in results]
    for file, kind in zip(files, kinds, strict=True):
        if kind not in COMPARISONS:
            raise InputError(
                f"{file} is a {kind}: give results of landscape hessian, of sharpness, or of surface1d and surface2d"
            )
        if kind != kinds[0]:
            raise InputError(f"{files[0]} is a {kinds[0]}, {file} a {kind}: compare results of one kind")
    return COMPARISONS[kinds[0]]


def column_names(files: Sequence[Path], results: Sequence[Any], places: Sequence[str] = ()) -> list[str]:
    """Return the shortest names that differ: the methods of training, the files' stems, or their paths.

    Args:
        files: files of the results.
        results: one for each file.
        places: for results of a series, names of the checkpoints, which are added to the names; "" for the others.
    """
    of_file = {file: str(r.provenance.get("method") or "") for file, r in zip(files, results, strict=True)}
    for called in (of_file, {file: file.stem for file in files}, {file: str(file) for file in files}):
        if all(called.values()) and len(set(called.values())) == len(called):
            break
    names = [called[file] for file in files]
    return [f"{n}, {c}" if c else n for n, c in zip(names, places or [""] * len(names), strict=True)]


def title(results: Sequence[Any]) -> str:
    """Return the headings of the numbers in a cell."""
    return " / ".join(column.heading(*results) for column in columns.compared(results))


def numbers(result: Any, part: str) -> dict[str, Any] | None:
    """Return the numbers of a part by the names of fields and of columns, or None where a result has no such part."""
    if part not in result.parts:
        return None
    p = result.parts.index(part)
    values = {name: getattr(result, name) for name in columns.fields_of(columns.drawn_as(result))}
    values |= columns.derived(result)
    return {name: None if value is None else value[p] for name, value in values.items()}


def cells(results: Sequence[Any], parts: Sequence[str]) -> list[list[str]]:
    """Return a row for each part with a cell for each result."""
    chosen = columns.compared(results)
    return [
        [" / ".join(c.text(r, r.parts.index(part)) for c in chosen) if part in r.parts else "-" for r in results]
        for part in parts
    ]


def notes(how: Comparison, names: Sequence[str], results: Sequence[Any], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return lines that explain the signs in the cells, what is known of each file, and what differs between them."""
    text = "".join(cell for row in rows for cell in row)
    lines = [line for mark, line in how.marks.items() if mark in text]
    lines += [f"{name}: {line}" for name, r in zip(names, results, strict=True) if (line := how.remarks(r))]
    return lines


def differences(how: Comparison, names: Sequence[str], results: Sequence[Any], parts: Sequence[str]) -> list[str]:
    """Return a line for each difference between the files, other than the model, that can change the numbers."""
    lines = []
    for what, look in how.looks.items():
        lines += _difference_of_known(what, names, [look(r) for r in results])
    lines += _difference("loss", names, _losses(results))
    for key in SHARED:
        lines += _difference(key.replace("_", " "), names, [_entry(key, r) for r in results])
    lines += _classifiers(names, results)
    lines += members(names, results, parts)
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
            return [*lines, *_first(found)]  # the samples that are summed over also differ
    return lines


def _first(found: Sequence[str]) -> list[str]:
    """Return the first of several lines, with the number of the others."""
    return [line + f" (and so in {len(found) - 1} more)" * (len(found) > 1) for line in found[:1]]


def members(names: Sequence[str], results: Sequence[Any], parts: Sequence[str]) -> list[str]:
    """Return a line if parts have other classes in some files or, where these are unknown, other samples."""
    found = []
    for part in parts:
        known = [(n, groups.classes_of(r, part)) for n, r in zip(names, results, strict=True) if part in r.parts]
        of_part = [(n, ", ".join(map(str, classes))) for n, classes in known if classes is not None]
        if of_part:
            found += _difference(f"the classes of {part}", *zip(*of_part, strict=True))
    samples = [r.stated("partition_sha256", of=str) for r in results if r.stated("partition", of=list)]
    alike = len({_entry("data_sha256", r) for r in results}) == 1
    if len(samples) == len(results) and alike:
        found += _difference_of_known("the samples in each part (SHA-256)", names, samples)
    return _first(found)


def _range(coordinates: Any) -> str:
    return f"{coordinates[0]:g}:{coordinates[-1]:g}:{len(coordinates)}"


def _draw(result: Result) -> str:
    """Name the draw of samples that the numbers of a result are of."""
    n = result.stated("draws", "samples", of=int)
    if n is None:
        return "all"
    seed, digest = result.stated("draws", "seed", of=int), result.stated("draws", "sha256", of=str)
    return f"{n} by seed {seed}, SHA-256 {digest or 'unknown':.8}"


OF_DRAW = (
    "(draw) ± samples is the error of the draw, against all samples of the part; elsewhere it is what other samples of "
    "the same class would change"
)
"""What errors over samples mean where only some samples of a part were drawn."""

COMPARISONS: Mapping[str, Comparison] = {
    "spectrum": Comparison(
        looks={
            "operator": lambda s: s.operator,
            "parameters": lambda s: s.size,
        },
        counts={"n_samples": "samples", "n_used": "samples summed over"},
        marks={
            "*": "* lambda_max has not converged: more --steps, or --tol, at the analysis",
            "?": "± ? the error is unknown: one probe cannot tell its own spread, nor can one sample",
            "(residual)": "(residual) that is larger than the error over samples, or the file has none",
            "(estimate)": "(estimate) the error of the estimate is larger than that over samples, or the file has none",
            "(draw)": OF_DRAW,
        },
        remarks=lambda spectrum: "",
    ),
    "traces": Comparison(
        looks={
            "operator": lambda t: t.operator,
            "matrix of lambda_max": lambda t: t.lambda_max_matrix,
            "parameters": lambda t: t.size,
        },
        counts={"n_samples": "samples"},
        marks={
            "?": "± ? the error is unknown: one probe cannot tell its own spread, nor can one sample, and rows of both "
            "signs (of a loss that is not convex in the logits) give no bound on those that are left out",
            "(s.e. at most)": "(s.e. at most) of the estimate, larger than the error over samples",
            "(rows left out)": "(rows left out) lambda_max is at most so much larger",
            "draw)": OF_DRAW,
        },
        remarks=lambda traces: "",
    ),
    "sharpness": Comparison(
        looks={
            "rho": lambda s: f"{s.rho:g}",
            "the ball": lambda s: "adaptive" if s.adaptive else "Euclidean",
            "sigma": lambda s: f"{s.sigma:g}",
            "draws": lambda s: s.draws,
            "ascent steps": lambda s: _words(s.stated("options", "ascent_steps", of=object)),
            "samples drawn of each part": _draw,
        },
        counts={"n_samples": "samples"},
        marks={
            "?": "± ? the error is unknown: one draw cannot tell its own spread, nor can one sample",
            "(s.e.)": "(s.e.) over the random directions, larger than the error over samples, or the file has none",
            "(spread)": "(spread) over the random directions, larger than the error over samples, or the file has none",
            "(draw)": OF_DRAW,
        },
        remarks=lambda sharpness: "",
    ),
    "surface": Comparison(
        looks={
            "directions": lambda s: ", ".join(s.axes),
            "x": lambda s: _range(s.xcoordinates),
            "y": lambda s: _range(s.ycoordinates),
            "unit lengths": lambda s: ", ".join(f"{u:.4g}" for u in s.unit_length),
            "cosine of the directions": lambda s: f"{s.cosine:z.2f}",
            "radius of the worst rise": lambda s: f"{s.radius:.4g}",
            "batch norm": lambda s: None if s.batch_norm == NO_STATISTICS else s.batch_norm,
            "samples drawn of each part": _draw,
        },
        counts={"n_samples": "samples"},
        marks={"draw)": OF_DRAW},
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
    having: dict[Any, list[str]] = {}
    for name, value in zip(names, values, strict=True):
        having.setdefault(value, []).append(name)
    texts = [str(value) for value in having]
    short = [text if len(text) <= _LONGEST or " " in text else f"{text[:12]}..." for text in texts]
    shown = short if len(set(short)) == len(short) else texts
    each = (f"{text} in {', '.join(who)}" for text, who in zip(shown, having.values(), strict=True))
    return [f"note: the files differ in {what}: {'; '.join(each)}"]


def _difference_of_known(what: str, names: Sequence[str], values: Sequence[Any]) -> list[str]:
    """Return `_difference` of those files whose value is not None."""
    known = [k for k, value in enumerate(values) if value is not None]
    return _difference(what, [names[k] for k in known], [values[k] for k in known])


def _losses(results: Sequence[Any]) -> list[str]:
    """Name the loss of each file; losses of one name that differ, such as closures, with their values."""
    named = [(_entry("loss", r), _means(r.provenance.get("loss_values"))) for r in results]
    differ = {name: len({means for other, means in named if other == name}) > 1 for name, _ in named}
    return [f"{name} (at drawn outputs {means})" if differ[name] else name for name, means in named]


def _means(values: Any) -> str:
    return (" and ".join(map(_words, values)) if isinstance(values, list) else "") or "unknown"


def _classifiers(names: Sequence[str], results: Sequence[Any]) -> list[str]:
    """Return one line if the classifiers of the files differ: linear, or cosine with a scale."""
    found = [_entry("classifier", r) for r in results]
    return [
        f"{line}; curvature grows with the scale s of cosine logits, the Gauss-Newton matrix by s squared: compare "
        "shapes, and ratios between parts of one file, not sizes"
        for line in _difference_of_known("classifier", names, [None if c == "unknown" else c for c in found])
    ]


def _entry(key: str, result: Any) -> str:
    return _words(result.provenance.get(key))


def _words(value: Any) -> str:
    return value if isinstance(value, str) else "unknown" if value is None else json.dumps(value)
