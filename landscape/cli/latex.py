"""Numbers of results as a LaTeX table, for the packages booktabs and siunitx (3 or later).

Numbers are in S columns, which align them at the decimal marker: "38.15 +- 0.02", and "2.17 +- 0.03 e6" with a power of
ten. Text that is not a number is in braces.
"""

import math
import re
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

from landscape.results import columns
from landscape.results.column import Column
from landscape.results.tables import LOSS, SAMPLES

_TEX = {c: rf"\{c}" for c in "&%$#_{}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "*": r"$^*$",
}
_NUMBER = re.compile(r"-?[\d.]+(e[+-]?\d+)?")


def latex_table(names: Sequence[str], results: Sequence[Any], parts: Sequence[str], lines: Sequence[str]) -> str:
    """Return a LaTeX table with a row for each part, and for each result its samples, loss and compared numbers.

    Args:
        names: names of the results.
        results: results of one kind.
        parts: the parts, one for each row.
        lines: notes about the numbers, as comments before the table.

    Returns:
        The text.
    """
    chosen = columns.compared(results)
    loss = [] if any(c.summary == "loss" for c in chosen) else [LOSS] * hasattr(results[0], "loss")
    groups = [SAMPLES, *loss, *chosen]
    n = len(groups)
    heads = [f"{{{_tex(column.heading(*results).replace(' ± ', ', ± '))}}}" for column in groups]
    spans = [rf"\multicolumn{{{n}}}{{c}}{{{_tex(name)}}}" for name in names]
    rules = [rf"\cmidrule(lr){{{2 + i * n}-{1 + (i + 1) * n}}}" for i in range(len(names))]
    table = [
        *(f"% {line.replace('±', '+-')}" for line in lines),
        rf"\begin{{tabular}}{{l{'S' * n * len(names)}}}",
        r"\toprule",
        " & ".join(["", *spans]) + r" \\",
        " ".join(rules),
        " & ".join(["", *(heads * len(names))]) + r" \\",
        r"\midrule",
    ]
    for part in parts:
        cells = [_cell(column, result, part) for result in results for column in groups]
        first = _tex(part)
        first = "{}" * first.startswith("[") + first  # else TeX takes it for an argument of the line break before
        table.append(" & ".join([first, *cells]) + r" \\")
    return "\n".join([*table, r"\bottomrule", r"\end{tabular}"])


def _cell(column: Column, result: Any, part: str) -> str:
    if part not in result.parts:
        return "{-}"
    return siunitx(column.text(result, result.parts.index(part)))


def siunitx(text: str) -> str:
    """Write a number of a table as siunitx reads it.

    Args:
        text: as `Column.text` writes it: "38.15 ± 0.02*", "2.17e+06 ± 3e+04", "1,234", "none";
            it may have a word in parentheses at its end, "38.15 ± 0.02 (draw)".

    Returns:
        The number for an S column; other text in braces.
    """
    written, _, word = text.partition(" (")
    star = "{$^*$}" * written.endswith("*") + f"{{ ({_tex(word)}}}" * bool(word)
    value, _, error = written.removesuffix("*").replace(",", "").partition(" ± ")
    if not _NUMBER.fullmatch(value):
        return f"{{{_tex(text)}}}"
    if not _NUMBER.fullmatch(error):
        return value + star + "{ $\\pm$ ?}" * bool(error)
    if "e" not in value + error:
        return f"{value} +- {error}{star}"
    number, spread = Decimal(value), Decimal(error)
    power = math.floor(math.log10(abs(float(number or spread))))
    return f"{_scaled(number, power)} +- {_scaled(spread, power)} e{power}{star}"


def _scaled(number: Decimal, power: int) -> str:
    return f"{number.scaleb(-power):f}"


def _tex(text: str) -> str:
    return "".join(_TEX.get(c, c) for c in text)
