"""The geometry of a neural network's loss, per class and per group of classes.

    import landscape as ls

    objective = ls.load_objective("run/last.pt", partition="class")
    spectrum = ls.spectrum(objective, steps=80, probes=4, seed=0)
    ls.plots.density(spectrum, part="truck")

Names are loaded when they are first used, so that importing this package costs nothing and drawing needs no torch.
"""

from importlib import import_module
from typing import Any

_WHERE = {
    "load_objective": "landscape.loading",
    "Objective": "landscape.objective",
    "Partition": "landscape.partition",
    "Samples": "landscape.datasets",
    "curvature": "landscape.operators",
    "hessian": "landscape.operators",
    "ggn": "landscape.operators",
    "fisher": "landscape.operators",
    "matrix": "landscape.operators",
    "spectrum": "landscape.spectra",
    "Spectrum": "landscape.results",
    "surface": "landscape.surfaces",
    "surface1d": "landscape.surfaces",
    "surface2d": "landscape.surfaces",
    "Surface": "landscape.results",
    "trajectory": "landscape.trajectories",
    "convergence_distances": "landscape.distances",
    "curvature_overlap": "landscape.overlaps",
    "decompose_gradients": "landscape.gradients",
    "feature_quality": "landscape.features",
    "sharpness_figures": "landscape.sharpness",
    "density": "landscape.quadrature",
    "nodes_and_weights": "landscape.quadrature",
    "to_pyhessian": "landscape.interop",
    "from_pyhessian": "landscape.interop",
    "save": "landscape.store",
    "load": "landscape.store",
    "LandscapeError": "landscape.errors",
    "InputError": "landscape.errors",
    "DataError": "landscape.errors",
    "StoreError": "landscape.errors",
    "NumericalError": "landscape.errors",
}

__all__ = sorted([*_WHERE, "plots"])


def __getattr__(name: str) -> Any:
    if name == "plots":
        return import_module("landscape.plots")
    if name in _WHERE:
        return getattr(import_module(_WHERE[name]), name)
    raise AttributeError(f"module 'landscape' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
