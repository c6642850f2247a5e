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
    "load_objective": "landscape.objective.loading",
    "Objective": "landscape.objective.objective",
    "Partition": "landscape.data.partition",
    "Samples": "landscape.data.datasets",
    "curvature_operator": "landscape.curvature.operators",
    "hessian": "landscape.curvature.operators",
    "ggn": "landscape.curvature.operators",
    "fisher": "landscape.curvature.operators",
    "residual": "landscape.curvature.operators",
    "matrix": "landscape.curvature.matrices",
    "spectrum": "landscape.analyses.spectrum",
    "Spectrum": "landscape.results",
    "surface": "landscape.analyses.surface",
    "surface1d": "landscape.analyses.surface",
    "surface2d": "landscape.analyses.surface",
    "Surface": "landscape.results",
    "trajectory": "landscape.analyses.trajectory",
    "distances": "landscape.analyses.distances",
    "overlap": "landscape.analyses.overlap",
    "gradients": "landscape.analyses.gradients",
    "features": "landscape.analyses.features",
    "sharpness": "landscape.analyses.sharpness",
    "density": "landscape.results.quadrature",
    "nodes_and_weights": "landscape.results.quadrature",
    "to_pyhessian": "landscape.results.foreign.interop",
    "from_pyhessian": "landscape.results.foreign.interop",
    "save": "landscape.results.store",
    "load": "landscape.results.store",
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
