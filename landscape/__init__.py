"""The geometry of a neural network's loss, per class and per group of classes.

    import landscape as ls

    objective = ls.load_objective("run/last.pt", partition="class")
    spectrum = ls.spectrum(objective, steps=80, probes=4, seed=0)
    ls.plots.density(spectrum, part="truck")

Names are loaded when they are first used, so that importing this package costs nothing and drawing needs no torch.
Type checkers read the imports below; at run time `_FROM` says where a name is. A test compares the two.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from landscape import plots as plots
    from landscape.analyses import directions as directions
    from landscape.analyses.between import Run as Run
    from landscape.analyses.distances import distances as distances
    from landscape.analyses.features import features as features
    from landscape.analyses.gradients import gradients as gradients
    from landscape.analyses.monitor import Monitor as Monitor
    from landscape.analyses.overlap import overlap as overlap
    from landscape.analyses.sensitivity import sensitivity as sensitivity
    from landscape.analyses.series import series as series
    from landscape.analyses.sharpness import sharpness as sharpness
    from landscape.analyses.spectrum import spectrum as spectrum
    from landscape.analyses.surface import surface as surface
    from landscape.analyses.surface import surface1d as surface1d
    from landscape.analyses.surface import surface2d as surface2d
    from landscape.analyses.trajectory import trajectory as trajectory
    from landscape.autodiff import distributed as distributed
    from landscape.autodiff.costs import estimate as estimate
    from landscape.curvature.lanczos import lanczos as lanczos
    from landscape.curvature.matrices import matrix as matrix
    from landscape.curvature.operators import curvature_operator as curvature_operator
    from landscape.curvature.operators import fisher as fisher
    from landscape.curvature.operators import ggn as ggn
    from landscape.curvature.operators import hessian as hessian
    from landscape.curvature.operators import residual as residual
    from landscape.data.datasets import Samples as Samples
    from landscape.data.partition import Partition as Partition
    from landscape.errors import DataError as DataError
    from landscape.errors import InputError as InputError
    from landscape.errors import LandscapeError as LandscapeError
    from landscape.errors import NumericalError as NumericalError
    from landscape.errors import StoreError as StoreError
    from landscape.objective.draws import draw_samples as draw_samples
    from landscape.objective.from_data import make_objective as make_objective
    from landscape.objective.loading import load_objective as load_objective
    from landscape.objective.objective import Objective as Objective
    from landscape.objective.points import path as path
    from landscape.objective.points import point as point
    from landscape.results import Distances as Distances
    from landscape.results import Features as Features
    from landscape.results import Gradients as Gradients
    from landscape.results import History as History
    from landscape.results import Overlap as Overlap
    from landscape.results import Plane as Plane
    from landscape.results import Points as Points
    from landscape.results import Result as Result
    from landscape.results import Sensitivity as Sensitivity
    from landscape.results import Series as Series
    from landscape.results import Sharpness as Sharpness
    from landscape.results import Spectrum as Spectrum
    from landscape.results import Surface as Surface
    from landscape.results import Traces as Traces
    from landscape.results import Trajectory as Trajectory
    from landscape.results.foreign.interop import from_pyhessian as from_pyhessian
    from landscape.results.foreign.interop import to_pyhessian as to_pyhessian
    from landscape.results.quadrature import density as density
    from landscape.results.quadrature import nodes_and_weights as nodes_and_weights
    from landscape.results.regroup import regroup as regroup
    from landscape.results.stack import Stack as Stack
    from landscape.results.stack import concat as concat
    from landscape.results.store import load as load
    from landscape.results.store import save as save

_FROM = {
    "": "plots",
    "analyses": "directions",
    "analyses.between": "Run",
    "analyses.distances": "distances",
    "analyses.features": "features",
    "analyses.gradients": "gradients",
    "analyses.monitor": "Monitor",
    "analyses.overlap": "overlap",
    "analyses.sensitivity": "sensitivity",
    "analyses.series": "series",
    "analyses.sharpness": "sharpness",
    "analyses.spectrum": "spectrum",
    "analyses.surface": "surface surface1d surface2d",
    "analyses.trajectory": "trajectory",
    "autodiff": "distributed",
    "autodiff.costs": "estimate",
    "curvature.lanczos": "lanczos",
    "curvature.matrices": "matrix",
    "curvature.operators": "curvature_operator fisher ggn hessian residual",
    "data.datasets": "Samples",
    "data.partition": "Partition",
    "errors": "DataError InputError LandscapeError NumericalError StoreError",
    "objective.draws": "draw_samples",
    "objective.from_data": "make_objective",
    "objective.loading": "load_objective",
    "objective.objective": "Objective",
    "objective.points": "path point",
    "results": "Distances Features Gradients History Overlap Plane Points Result Sensitivity Series Sharpness "
    "Spectrum Surface Traces Trajectory",
    "results.foreign.interop": "from_pyhessian to_pyhessian",
    "results.quadrature": "density nodes_and_weights",
    "results.regroup": "regroup",
    "results.stack": "Stack concat",
    "results.store": "load save",
}
_MODULES = {"directions", "distributed", "plots"}  # these names are modules, which need no attribute of their package
_WHERE = {name: f"{__name__}.{place}".rstrip(".") for place, names in _FROM.items() for name in names.split()}

__all__ = sorted(_WHERE)


if not TYPE_CHECKING:  # with it a type checker would accept any name

    def __getattr__(name: str) -> Any:
        if name not in _WHERE:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        module = import_module(_WHERE[name])
        return import_module(f"{_WHERE[name]}.{name}") if name in _MODULES else getattr(module, name)


def __dir__() -> list[str]:
    return __all__
