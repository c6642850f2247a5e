"""Output of `landscape compare --match-samples`: parts at equal numbers of samples, models on the same images."""

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from landscape.cli.console import Console
from landscape.results import Spectrum, matched, over_samples, permutation, written

HEADS = [
    "part", "samples", "number", "of", "value", "as many of both, 5 to 95 %", "p", f"finds {permutation.RATIO:g} x",
]  # fmt: skip
PAIRED_HEADS = ["part", "samples", "number", "of", "difference", "p"]


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
            for one in matched.paired(results[0], found)
        ],
    }


def show(console: Console, names: Sequence[str], results: Sequence[Spectrum]) -> None:
    """Print a table for each file, and one for each pair of files of the same images."""
    for name, found in zip(names, results, strict=True):
        if (why := _left_out(found, results)) is not None:
            console.say(f"{name}: parts are not compared with each other: {why}")
            continue
        tests = matched.against_largest(found)
        rows = [
            [
                one.part,
                f"{one.n:,}",
                one.number,
                _letters(one.matrix),
                written.number(one.test.value),
                f"{written.short(one.test.low)} to {written.short(one.test.high)}",
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
    for name, found in zip(names[1:], results[1:], strict=True):
        pairs = matched.paired(results[0], found)
        rows = [
            [
                one.part,
                f"{one.n:,}",
                one.number,
                _letters(one.matrix),
                written.with_error(one.difference, one.stderr),
                _p(one.p),
            ]
            for one in pairs
        ]
        if rows:
            console.table(PAIRED_HEADS, rows, title=f"{name} less {names[0]}, over the same images")
            if any(map(over_samples.of_gauss_newton, (results[0], found))):
                console.say(
                    "traces are of G, the Gauss-Newton part of the Hessian H: those of H are not known image by image. "
                    "lambda_max is of H"
                )
        reasons = matched.unpaired(results[0], found)
        for reason in dict.fromkeys(reasons.values()):
            parts = ", ".join(part for part, own in reasons.items() if own == reason)
            console.say(f"{name} and {names[0]} are not compared image by image for {parts}: {reason}")


def _left_out(found: Spectrum, results: Sequence[Spectrum]) -> str | None:
    """Say why parts of a file are not compared with each other, if it can be compared with other files."""
    return matched.refusal(found) if len(results) > 1 else None


def _letters(matrix: str) -> str:
    """Write the matrices that a comparison names, with a letter for the Hessian and for its Gauss-Newton part."""
    return matrix.replace("hessian", "H").replace("ggn", "G")


def _p(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.2g}" if value >= 1e-4 else "< 1e-4"
