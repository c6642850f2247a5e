"""Figures: a result in, matplotlib's Axes or Figure out. Nothing here computes, shows or needs torch."""

from collections.abc import Callable, Mapping

from matplotlib.figure import Figure

from landscape.plots.density import densities, density
from landscape.plots.history import cosines, quality, training
from landscape.plots.summary import summary
from landscape.plots.theme import write

__all__ = ["KIND_FIGURES", "cosines", "densities", "density", "quality", "summary", "training", "write"]

KIND_FIGURES: Mapping[str, Mapping[str, Callable[..., Figure]]] = {
    "spectrum": {"density": densities, "summary": summary},
    "history": {"training": training, "quality": quality, "cosines": cosines},
}
"""What `landscape plot --kind` draws of each kind of result, the default first: (result, parts) -> Figure."""
