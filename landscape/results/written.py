"""Write numbers and names in little space: numbers with the digits that are significant given their errors."""

import math
from collections.abc import Sequence


def number(value: float) -> str:
    """Write a number with four digits, "38.15"; beyond a million or below a thousandth with three, "2.17e+06".

    Args:
        value: any number.

    Returns:
        The text.
    """
    return f"{value:.{_decimals(value)}f}" if _plain(value) else f"{value:.3g}"


def short(value: float) -> str:
    """Write a number with three digits, or all digits before the point from a thousand to a million: "0.0382", "1216".

    Args:
        value: any number.

    Returns:
        The text.
    """
    return f"{value:.0f}" if 1e3 <= abs(value) < 1e6 else f"{value:.3g}"


def with_error(value: float, error: float) -> str:
    """Write a number with its error, "38.15 ± 0.02": at most four digits, and none below the error.

    Args:
        value: any number.
        error: at least 0; nan if it is unknown. Invalid values of a damaged file count as unknown.

    Returns:
        The text; it has "± ?" for an unknown error, and no error for 0.
    """
    if not 0 <= error < math.inf:
        return f"{number(value)} ± ?"
    if error == 0:
        return number(value)
    size = value or error  # for a value of zero the error determines the digits
    if not _plain(size):
        return f"{value:.3g} ± {error:.1g}"
    decimals = min(_decimals(size), max(0, 1 - math.floor(math.log10(error))))
    void = error < 0.5 * 10**-decimals  # far smaller than the last digit of the value
    return f"{value:.{decimals}f} ± {f'{error:.0e}' if void else f'{error:.{decimals}f}'}"


def percent(error: float) -> str:
    """Write an error that is at least 0 in percent: with one digit, or in whole percent from 10 on."""
    shown = 100 * error
    return f"{shown:.1g}" if shown < 9.5 else f"{shown:.0f}"


def share_with_error(share: float, error: float) -> str:
    """Write a share in percent with its error, "87.5 ± 4".

    Args:
        share: a fraction.
        error: as for `with_error`.

    Returns:
        The text, without the sign of percent; errors are shown as by `with_error`.
    """
    known = 0 <= error < math.inf
    return f"{100 * share:.1f}" + ("" if error == 0 else f" ± {percent(error) if known else '?'}")


def _plain(value: float) -> bool:
    return 1e-3 <= abs(value) < 1e6


def _decimals(value: float) -> int:
    return max(0, 3 - math.floor(math.log10(abs(value))))


def matrix(name: str) -> str:
    """Write the name of a matrix, with the letters of the Hessian H and its Gauss-Newton part G.

    Args:
        name: as results state it, or two of them, such as "hessian less ggn".

    Returns:
        The text.
    """
    return " ".join({"hessian": "H", "ggn": "G"}.get(word, word) for word in name.split())


def few(names: Sequence[str]) -> str:
    """Write the first five of some names, and how many more there are.

    Args:
        names: any number of them.

    Returns:
        The text, such as "a, b, c, d, e and 7 more".
    """
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def shorten(name: str, length: int) -> str:
    """Shorten a name in its middle, because long names differ at their ends.

    Args:
        name: any text; white space becomes single blanks.
        length: the largest number of characters, at least 3.

    Returns:
        The name on one line, with an ellipsis in place of the removed part.
    """
    name = " ".join(name.split())
    if len(name) <= length:
        return name
    tail = (length - 1) // 2
    return f"{name[: length - 1 - tail]}…{name[-tail:]}".replace("……", "…")
