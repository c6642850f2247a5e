"""Output of `landscape compare --match-samples`: parts at equal numbers of samples, models on the same images."""

import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from landscape.cli.console import Console
from landscape.errors import InputError
from landscape.results import Spectrum, matched, over_samples, permutation, same_images, written
from landscape.results.pool import decay_of, without_samples

HEADS = [
    "part", "samples", "number", "of", "value", "as many of both, 5 to 95 %", "p", f"finds {permutation.RATIO:g} x",
]  # fmt: skip
PAIRED_HEADS = ["part", "samples", "number", "of", "difference", "p"]
_SHOWN = 5e-4  # of a number with four digits, a smaller error is not seen


def check(files: Sequence[Path], results: Sequence[Spectrum], places: Sequence[str]) -> None:
    """Refuse files that cannot be compared sample by sample.

    Args:
        files: files of the results.
        results: spectra.
        places: names of their checkpoints where they are of a series, else "".

    Raises:
        InputError: one keeps nothing of its samples; or the parts of the only one cannot be compared.
    """
    for file, found, place in zip(files, results, places, strict=True):
        if found.sample_trace is None:
            raise InputError(f"{file}: {without_samples(found, place)}")
    if len(results) == 1 and (why := matched.refusal(results[0])) is not None:
        raise InputError(why)


def document(names: Sequence[str], results: Sequence[Spectrum]) -> dict[str, Any]:
    """Return the comparisons as plain values."""
    return {
        "against_largest": [
            {"column": name, "reference": found.parts[matched.reference(found)], **asdict(one)}
            for name, found in zip(names, results, strict=True)
            for one in ([] if _left_out(found, results) else matched.against_largest(found))
        ],
        "paired": [
            {"first": names[0], "second": name, **asdict(one)}
            for name, found in zip(names[1:], results[1:], strict=True)
            for one in same_images.paired(results[0], found)
        ],
    }


def show(console: Console, names: Sequence[str], results: Sequence[Spectrum]) -> None:
    """Print a table for each file, and one for each pair of files of the same images."""
    for name, found in zip(names, results, strict=True):
        if (why := _left_out(found, results)) is not None:
            console.say(f"{name}: parts are not compared with each other: {why}")
        else:
            _show_parts(console, name, found)
    for name, found in zip(names[1:], results[1:], strict=True):
        _show_pair(console, (names[0], name), (results[0], found))


def _show_parts(console: Console, name: str, found: Spectrum) -> None:
    tests = matched.against_largest(found)
    rows = [
        [
            one.part,
            f"{one.n:,}",
            one.number,
            written.matrix(one.matrix),
            written.number(one.test.value) + _larger(one.test.above, one.test.value),
            f"{written.short(one.test.low)} to {written.short(one.test.high)}"
            + _larger(one.test.range_above, one.test.median),
            _p(one.p),
            f"{one.test.power:.0%}",
        ]
        for one in tests
    ]
    largest = found.parts[matched.reference(found)]
    console.table(HEADS, rows, title=f"{name}: each part against {largest} at the part's own number of samples")
    if found.operator == "hessian":
        of_g = over_samples.of_gauss_newton(found)
        alike = "Trace and lambda_max of H are others" if of_g else "It has the trace of H, but another lambda_max"
        console.say(f"G is the Gauss-Newton part of the Hessian H. {alike}, which few samples do not show")
    if decay := decay_of(found):
        console.say(
            f"numbers leave out the weight decay, which adds {decay:.4g} to each lambda_max of the first table and "
            f"{decay * found.size:.4g} to each trace"
        )
    if any("larger" in cell for row in rows for cell in row[4:6]):
        console.say(
            "(at most ... larger) lambda_max is that of the longest rows, which the file keeps: with the others it is "
            "at most so much larger, and so are the ends of the range. p is of the kept rows"
        )
    if any("?" in cell for row in rows for cell in row[4:6]):
        console.say(
            "(at most ? larger) that is unknown: rows of both signs (of a loss that is not convex in the logits) give "
            "no bound on those that are left out"
        )
    least = min(one.test.resolution for one in tests)
    console.say(
        f"p is two-sided, for {len(tests)} tests together (Holm); one test gives at least {least:.2g}, the "
        f"smallest of all at least {min(1, len(tests) * least):.2g}. The last column is how often one test alone "
        f"would find a true ratio of {permutation.RATIO:g} at 5 %: a large p is no equality"
    )
    compared = {one.part for one in tests if one.number == "lambda_max"}
    if len(compared) < len({one.part for one in tests}):
        but = f", but for {', '.join([largest, *sorted(compared)])}" if compared else ""
        console.say(f"lambda_max is not compared: the file keeps no rows of its parts{but}")


def _show_pair(console: Console, names: tuple[str, str], results: tuple[Spectrum, Spectrum]) -> None:
    rows = [
        [
            one.part,
            f"{one.n:,}",
            one.number,
            written.matrix(one.matrix),
            written.with_error(one.difference, one.stderr),
            _p(one.p),
        ]
        for one in same_images.paired(*results)
    ]
    if rows:
        console.table(PAIRED_HEADS, rows, title=f"{names[1]} less {names[0]}, over the same images")
        if any(map(over_samples.of_gauss_newton, results)):
            console.say(
                "traces are of G, the Gauss-Newton part of the Hessian H: those of H are not known image by image. "
                "lambda_max is of H"
            )
        first, second = map(decay_of, results)
        of_top, of_trace = second - first, second * results[1].size - first * results[0].size
        if of_top or of_trace:
            console.say(
                f"differences leave out the weight decay, {second:.4g} less {first:.4g}, which adds {of_top:.4g} to "
                f"that of lambda_max and {of_trace:.4g} to that of the trace"
            )
    reasons = same_images.unpaired(*results)
    for reason in dict.fromkeys(reasons.values()):
        parts = ", ".join(part for part, own in reasons.items() if own == reason)
        console.say(f"{names[1]} and {names[0]} are not compared image by image for {parts}: {reason}")


def _left_out(found: Spectrum, results: Sequence[Spectrum]) -> str | None:
    """Say why parts of a file are not compared with each other, if it can be compared with other files."""
    return matched.refusal(found) if len(results) > 1 else None


def _larger(above: float, value: float) -> str:
    """Write by how much a number is at most larger, where that is seen."""
    if math.isnan(above):
        return " (at most ? larger)"
    return f" (at most {written.short(above)} larger)" if above > _SHOWN * abs(value) else ""


def _p(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.2g}" if value >= 1e-4 else "< 1e-4"
