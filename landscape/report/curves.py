"""Data for the page's script, as JSON: the quadratures of spectra, and surfaces as heights.

Nodes and weights have nine digits and losses six, more than a picture can show; the files have all digits.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from landscape.errors import InputError
from landscape.plots.figures.broadened import FLOOR
from landscape.plots.layout import planes
from landscape.plots.layout.parts import joined, named
from landscape.plots.layout.scales import Scale, label, scale
from landscape.plots.layout.symbols import matrix
from landscape.report.rows import Column, Row
from landscape.report.sources import Source
from landscape.results import Spectrum, Surface, Trajectory, groups, quadrature
from landscape.results.columns import drawn_as, with_larger_error

_DIGITS = {"spectrum": 9, "surface": 6}


def frequency(rows: Sequence[Row], columns: Sequence[Column]) -> dict[str, Any]:
    """Return each measure of each part with its number of training samples.

    Args:
        rows: rows of the summary.
        columns: columns of the summary.

    Returns:
        The measures for which some part has a number, and the rows with these, in percent where the heading says so.
    """
    measures = [column for column in columns if column.form != "count"]
    points: list[dict[str, Any]] = []
    for row in rows:
        values = {
            column.key: [_plain(value, factor) for value in (row.cells[column.key].value, row.cells[column.key].error)]
            for column in measures
            if column.key in row.cells
            for factor in [100 if column.form == "percent" else 1]
        }
        trained = row.cells["trained"].value
        points.append({"model": row.model, "part": row.part, "trained": _plain(trained), "values": values})
    drawn = [c for c in measures if any(p["values"].get(c.key, [None])[0] is not None for p in points)]
    first = next((c.key for c in drawn if c.key in _FIRST), drawn[0].key if drawn else None)
    return {"measures": [{"key": c.key, "name": c.heading} for c in drawn], "first": first, "points": points}


_FIRST = ("lambda_max", "doubling_radius", "ball_rise", "gradient", "quality")
"""Measures that are shown before the reader chooses, where they are known."""


def densities(sources: Sequence[Source]) -> dict[str, Any] | None:
    """Return the quadratures of all spectra, without parts that have no density.

    Args:
        sources: the results.

    Returns:
        None without a density. Otherwise the nodes and weights of each probe, part by part, and the limits of the axes:
        the smallest and the largest node, and the lowest density to show.
    """
    every = zip(sources, groups.labels([s.result for s in sources]), strict=True)
    spectra = [
        (source.model, source.result, labels)
        for source, labels in every
        if isinstance(source.result, Spectrum) and any(map(source.result.has_density_of, range(len(labels))))
    ]
    if not spectra:
        return None
    curves = [_quadratures(*found) for found in spectra]
    return {
        "spectra": curves,
        "parts": list(dict.fromkeys(part for curve in curves for part in curve["parts"])),
        "floor": FLOOR,
        "size": max(spectrum.size for _, spectrum, _ in spectra),
    }


def _quadratures(model: str, spectrum: Spectrum, labels: Mapping[str, str]) -> dict[str, Any]:
    parts = {}
    for p, part in enumerate(spectrum.parts):
        if not spectrum.has_density_of(p):
            continue
        nodes, weights = quadrature.of_part(spectrum, p)
        top, trace = (with_larger_error(spectrum, field).text(spectrum, p) for field in ("lambda_max", "trace"))
        parts[labels[part]] = {
            "nodes": [_rounded(row[np.isfinite(row)], "spectrum") for row in nodes],
            "weights": [_rounded(row[np.isfinite(row)], "spectrum") for row in weights],
            "samples": int(spectrum.n_samples[p]) if np.isfinite(spectrum.n_samples[p]) else None,
            "words": f"lambda_max {top}" + ("" if spectrum.converged[p] else ", not converged") + f", trace {trace}",
        }
    return {"model": model, "matrix": matrix(spectrum), "parts": parts}


def surfaces(sources: Sequence[Source]) -> dict[str, Any] | None:
    """Return the planes for drawing in three dimensions, with one scale for all.

    More than twelve parts are joined into groups, as in the other figures. Points between those of an adaptive grid are
    interpolated; a loss that is not finite appears as a hole.

    Args:
        sources: the results.

    Returns:
        None without planes that have a finite loss.
    """
    found = []
    for source in sources:
        if isinstance(source.result, Surface) and drawable(source):
            surface, chosen, joining = joined(source.result, None)
            found.append((source, surface, chosen, joining, planes.filled(surface)[chosen]))
    if not found:
        return None
    shared = scale(np.concatenate([values.ravel() for *_, values in found]))
    return {"surfaces": [_heights(*one) for one in found], "scale": _scale(shared)}


def drawable(source: Source) -> bool:
    """Say whether a result can be drawn in three dimensions: a plane with finite losses."""
    surface = source.result
    if not isinstance(surface, Surface) or drawn_as(surface) == "line" or not np.isfinite(surface.loss).any():
        return False
    try:
        planes.check_plane(surface)
    except InputError:
        return False
    return True


def _heights(
    source: Source, surface: Surface, chosen: Sequence[int], joining: str, values: np.ndarray
) -> dict[str, Any]:
    return {
        "name": f"{source.model} ({surface.kind})",
        "parts": [named(surface, p, 40) for p in chosen],
        "joining": joining,
        "x": _rounded(surface.xcoordinates, "surface"),
        "y": _rounded(surface.ycoordinates, "surface"),
        "axes": planes.axis_labels(surface),
        "units": planes.units(surface),
        "loss": [[_rounded(row, "surface") for row in heights] for heights in values],
        "marks": _marks(surface, chosen),
        "verdict": surface.verdict,
    }


def _marks(surface: Surface, chosen: Sequence[int]) -> list[dict[str, Any]]:
    """Return the marks, run by run, at their true losses."""
    on = np.full(len(surface.marks), -1)
    runs: tuple[str, ...] = ()
    if isinstance(surface, Trajectory):
        on, runs = surface.mark_run, surface.runs
    found = []
    for run in dict.fromkeys(on.tolist()):
        own = np.flatnonzero(on == run)
        found.append({
            "name": runs[run] if run >= 0 else "marked points",
            "path": run >= 0,
            "names": [surface.marks[i] for i in own],
            "x": _rounded(surface.mark_position[own, 0], "surface"),
            "y": _rounded(surface.mark_position[own, 1], "surface"),
            "loss": [_rounded(surface.mark_loss[own, p], "surface") for p in chosen],
        })
    return found


def _scale(shared: Scale) -> dict[str, Any]:
    ticks = shared.ticks(8)
    return {
        "log": shared.log,
        "low": shared.low,
        "high": shared.high,
        "ticks": [{"value": float(tick), "text": label(tick)} for tick in ticks],
    }


def _rounded(values: np.ndarray, kind: str) -> list[float | None]:
    digits = _DIGITS[kind]
    return [float(f"{value:.{digits}g}") if math.isfinite(value) else None for value in values.tolist()]


def _plain(value: float | None, factor: float = 1) -> float | None:
    return factor * value if value is not None and math.isfinite(value) else None
