"""Figures: functions from a result to matplotlib's Axes or Figure. They do not compute, open windows or need torch.

`figures/` has one file for each kind of result; `layout/` has page, theme, panels, scales and marks. `KIND_FIGURES`
lists the figures. The room imports only `results`. Begin with `figures/sharpness`.
"""

from collections.abc import Callable, Mapping

from matplotlib.figure import Figure

from landscape.plots import several
from landscape.plots.figures.along import along
from landscape.plots.figures.density import densities, density, density_grid
from landscape.plots.figures.distances import barrier_maps, cross_losses, distance_maps, distances_along, point_map
from landscape.plots.figures.features import class_angles, class_quality, compare_quality, neural_collapse
from landscape.plots.figures.gradients import (
    cosine_map,
    decomposition,
    gradient_cosines,
    gradient_epochs,
    gradient_layers,
    gradient_norms,
)
from landscape.plots.figures.history import bank, cosines, quality, sweep, training
from landscape.plots.figures.images import images
from landscape.plots.figures.lines import surface_lines
from landscape.plots.figures.overlap import gradient_map, overlap_map, subspace_map
from landscape.plots.figures.overlays import compare_surfaces, surface_overlay
from landscape.plots.figures.sensitivity import changes
from landscape.plots.figures.sharpness import rises
from landscape.plots.figures.summary import summary
from landscape.plots.figures.surface import contours, surface, surface_accuracy, surface_heat
from landscape.plots.figures.surface3d import surface_3d
from landscape.plots.figures.trajectory import trajectory, trajectory_along
from landscape.plots.layout.theme import styled, write
from landscape.plots.several import Several

__all__ = [
    "KIND_FIGURES", "SEVERAL_FIGURES", "along", "bank", "barrier_maps", "changes", "class_angles", "class_quality",
    "compare_quality", "compare_surfaces", "contours", "cosine_map", "cosines", "cross_losses", "decomposition",
    "densities", "density", "density_grid", "distance_maps", "distances_along", "gradient_cosines", "gradient_epochs",
    "gradient_layers", "gradient_map", "gradient_norms", "images", "neural_collapse", "overlap_map", "point_map",
    "quality", "rises", "styled", "subspace_map", "summary", "surface", "surface_3d", "surface_accuracy",
    "surface_heat", "surface_lines", "surface_overlay", "sweep", "training", "trajectory", "trajectory_along", "write",
]  # fmt: skip

KIND_FIGURES: Mapping[str, Mapping[str, Callable[..., Figure]]] = {
    "spectrum": {
        "density": densities,
        "summary": summary,
        "images": images,
        "overlap": overlap_map,
        "gradients": gradient_map,
        "subspaces": subspace_map,
    },
    "history": {"training": training, "quality": quality, "cosines": cosines, "bank": bank},
    "features": {"quality": class_quality, "angles": class_angles, "collapse": neural_collapse},
    "gradients": {
        "cosines": cosine_map,
        "decomposition": decomposition,
        "epochs": gradient_epochs,
        "norms": gradient_norms,
        "layers": gradient_layers,
    },
    "sharpness": {"rises": rises},
    "sensitivity": {"changes": changes},
    "distances": {
        "matrix": distance_maps,
        "map": point_map,
        "losses": cross_losses,
        "barriers": barrier_maps,
        "epochs": distances_along,
    },
    "surface": {
        "contour": surface,
        "3d": surface_3d,
        "heat": surface_heat,
        "accuracy": surface_accuracy,
        "overlay": surface_overlay,
    },
    "line": {"line": surface_lines},
    "trajectory": {
        "path": trajectory,
        "along": trajectory_along,
        "3d": surface_3d,
        "heat": surface_heat,
        "accuracy": surface_accuracy,
        "overlay": surface_overlay,
    },
    "spectrum-series": {"along": along},
    "sharpness-series": {"along": along},
    "surface-series": {"along": along},
}
"""The figures of `landscape plot --kind` for each kind of result, the default first: (result, parts) -> Figure.

The help consists of these names and the first sentence of each function. The arguments of a function determine which
options of `landscape plot` it has. A surface over one direction is a "line".
"""

SEVERAL_FIGURES: Mapping[str, Mapping[str, Several]] = {
    "spectrum": {"density": Several(density_grid, default=several.a_panel_each)},
    "features": {"quality": Several(compare_quality)},
    "gradients": {"epochs": Several(gradient_cosines)},
    "surface": {"contour": Several(compare_surfaces, default=several.a_panel_each)},
    "line": {"line": Several(compare_surfaces, default=several.only_one)},
}
"""The figures of `landscape plot` for several results of one kind, by their names.

`default` says which parts a figure has if --parts is left out; by default the figure chooses them itself.
"""
