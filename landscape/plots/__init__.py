"""Figures: a result in, matplotlib's Axes or Figure out. Nothing here computes, shows or needs torch."""

from collections.abc import Callable, Mapping

from matplotlib.figure import Figure

from landscape.plots.density import densities, density
from landscape.plots.features import class_angles, class_quality, neural_collapse
from landscape.plots.history import cosines, quality, training
from landscape.plots.summary import summary
from landscape.plots.theme import write

__all__ = [
    "KIND_FIGURES", "class_angles", "class_quality", "cosines", "densities", "density", "neural_collapse", "quality",
    "summary", "training", "write",
]  # fmt: skip

KIND_FIGURES: Mapping[str, Mapping[str, Callable[..., Figure]]] = {
    "spectrum": {"density": densities, "summary": summary},
    "history": {"training": training, "quality": quality, "cosines": cosines},
    "features": {"quality": class_quality, "angles": class_angles, "collapse": neural_collapse},
}
"""What `landscape plot --kind` draws of each kind of result, the default first: (result, parts) -> Figure."""
