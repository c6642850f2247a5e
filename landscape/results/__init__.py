"""What an analysis leaves, and all that needs no torch: the room on which files, figures and tables stand.

`axes` says how a result declares its arrays, `base` what all results can do; `spectrum`, `surface`, `sharpness`,
`sensitivity`, `distances`, `gradients`, `features` and `history` are the kinds of results, frozen dataclasses of NumPy
arrays with named axes and units: the dictionary of the toolkit. `columns` says what their tables show, `stack` puts
results side by side. `store` and `journal` keep them in HDF5, `disk` writes files and reads what is small, `hdf5` and
`pickles` read what is not trusted; `quadrature`, `grid`, `mesh`, `gram`, `pool`, `inference` and `regroup` take numbers
from them; `foreign/` reads and writes other programs' files. It imports no other room. Begin with `axes`, then
`spectrum`.
"""

from typing import TypeVar

from landscape.results.base import Result
from landscape.results.distances import Distances
from landscape.results.features import Features
from landscape.results.gradients import Gradients
from landscape.results.history import History
from landscape.results.sensitivity import Sensitivity
from landscape.results.series import SERIES, Series
from landscape.results.sharpness import Sharpness
from landscape.results.spectrum import Overlap, Pilots, RowProducts, Spectrum, Traces
from landscape.results.surface import Plane, Points, Surface, Trajectory

__all__ = [
    "KINDS", "Distances", "Features", "Gradients", "History", "Overlap", "Pilots", "Plane", "Points", "R", "Result",
    "RowProducts", "Sensitivity", "Series", "Sharpness", "Spectrum", "Surface", "Traces", "Trajectory",
]  # fmt: skip

R = TypeVar("R", bound=Result)

_ALL: tuple[type[Result], ...] = (
    Spectrum,
    Traces,
    Overlap,
    RowProducts,
    Pilots,
    History,
    Points,
    Plane,
    Surface,
    Trajectory,
    Sharpness,
    Sensitivity,
    Distances,
    Gradients,
    Features,
    *SERIES.values(),
)
KINDS: dict[str, type[Result]] = {kind.kind: kind for kind in _ALL}
