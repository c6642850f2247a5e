"""The symbols of matrices in figures."""

from functools import lru_cache

from matplotlib.mathtext import MathTextParser

from landscape.results import Spectrum

LONGEST_SYMBOL = 80  # characters of the mathtext of a matrix


def matrix(spectrum: Spectrum) -> str:
    """Return the symbol of the matrix, ready for an index: a sum in brackets, and A for what is no formula."""
    symbol = spectrum.symbol if _is_formula(spectrum.symbol) else "A"
    if " " in symbol:
        return f"({symbol})"
    return symbol if symbol.isalnum() else f"{{{symbol}}}"


@lru_cache
def _is_formula(symbol: str) -> bool:
    if not symbol or len(symbol) > LONGEST_SYMBOL or "$" in symbol:
        return False
    try:
        MathTextParser("path").parse(f"${{{symbol}}}$")
    except ValueError:  # Matplotlib's own error for text that cannot be parsed
        return False
    return True
