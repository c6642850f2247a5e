"""Figures: a result in, matplotlib's Axes or Figure out. Nothing here computes, shows or needs torch."""

from collections.abc import Callable, Mapping

from matplotlib.figure import Figure

from landscape.plots.density import densities, density
from landscape.plots.summary import summary
from landscape.plots.theme import write

__all__ = ["KIND_FIGURES", "densities", "density", "summary", "write"]

KIND_FIGURES: Mapping[str, Callable[..., Figure]] = {"density": densities, "summary": summary}
"""What `landscape plot --kind` draws: (spectrum, parts) -> Figure."""
