"""The second table of `landscape hessian`: how much the numbers would change with another draw of samples."""

import math

from landscape.cli.console import Console
from landscape.results import Spectrum, written
from landscape.results.inference import LEAST, LEAST_WEIGHTED
from landscape.results.over_samples import RESOLVED, estimate_error, of_gauss_newton, of_part

TITLE = "over samples: what other samples of the same class would change"
FEW = f"{LEAST} samples ({LEAST_WEIGHTED} if they were drawn in proportion to uncertainty)"
OF_DRAW = "; where the part is marked (draw), what another draw from its samples would change"
HEADS = [
    "part", "lambda_max, 90 %", "trace, 90 %", "uncertainty, 90 %", "trace / unc., 90 %", "lambda_max / unc., 90 %",
]  # fmt: skip


def show(console: Console, found: Spectrum) -> None:
    """Print the numbers of each part with their errors over samples, and mark unresolved ones."""
    known = [(part, of_part(found, p)) for p, part in enumerate(found.parts)]
    rows = []
    for p, (part, one) in enumerate(known):
        if one is None:
            return
        rows.append([
            part + (" (draw)" if found.drawn[p] else "") + ("" if one.resolved else " ?"),
            _interval(one.lambda_max_interval),
            _interval(one.trace_interval),
            _within(one.uncertainty[0], one.uncertainty_interval),
            _within(one.trace_ratio[0], one.trace_ratio_interval),
            _within(one.lambda_max_ratio[0], one.lambda_max_ratio_interval),
        ])
    of_g = of_gauss_newton(found)
    heads = [head.replace("trace /", "tr G /") if of_g else head for head in HEADS]
    console.table(heads, rows, title=TITLE + (OF_DRAW if found.drawn.any() else ""))
    if any(one is not None and not one.resolved for _, one in known):
        console.note(
            f"? not resolved: fewer than {FEW}, or a standard error above {RESOLVED:.0%} of "
            "lambda_max or trace; lambda_max of few samples is too large on average"
        )
    if by_few := [part for part, one in known if one is not None and one.of_few]:
        console.note(
            f"few samples have most of the uncertainty of {written.few(by_few)}: for such a class intervals of "
            "lambda_max and trace may hold in 75 to 89 % of cases, not in 90 %"
        )
    if any(estimate_error(found, p) > 0 for p in range(len(found.parts))):
        console.note("trace, 90 %: with the error of the estimate, which the first table has")
    if of_g:
        console.note(
            "tr G / unc.: of the Gauss-Newton matrix G, whose trace no probe estimates; times the uncertainty it gives "
            "tr G, not the trace of H, which is that of G and of H - G"
        )
    if any("(?)" in cell for row in rows for cell in row):
        console.note(
            f"(?) no interval: fewer than {FEW} for that of the uncertainty; for the others, one sample has "
            "nearly all uncertainty of the part"
        )


def _within(value: float, ends: tuple[float, float]) -> str:
    if ends == (value, value):  # known exactly
        return written.number(value)
    known = not all(map(math.isnan, ends))
    return "-" if math.isnan(value) else f"{written.number(value)} ({_interval(ends) if known else '?'})"


def _interval(ends: tuple[float, float]) -> str:
    if all(map(math.isnan, ends)):
        return "-"
    return " to ".join("?" if math.isnan(end) else written.short(end) for end in ends)
