"""The results of analyses, and everything that needs no torch: files, figures and tables are built on this room.

`axes` defines how a result declares its arrays, `base` what all results can do. `spectrum`, `surface`, `sharpness`,
`sensitivity`, `distances`, `gradients`, `features` and `history` define the kinds of results: frozen dataclasses of
NumPy arrays with named axes and units. `tables` declares the columns of their tables, which `columns` makes; `stack`
combines several results. `store` and `journal` write and read them in HDF5, `disk` writes files and reads small ones,
`hdf5` and `pickles` read files that are not trusted. `quadrature`, `grid`, `mesh`, `gram`, `pool`, `inference` and
`regroup` compute numbers from results; `foreign/` reads and writes files of other programs. The room imports no other
room. Begin with `axes`, then `spectrum`.
"""

from typing import TypeVar

from landscape.results.base import Result
from landscape.results.distances import Displacements, Distances, Tuned
from landscape.results.features import Features
from landscape.results.gradients import Gradients
from landscape.results.history import History
from landscape.results.sensitivity import Sensitivity
from landscape.results.series import SERIES, Series
from landscape.results.sharpness import Sharpness
from landscape.results.spectrum import Spectrum
from landscape.results.stages import Overlap, Pilots, RowProducts
from landscape.results.surface import Plane, Points, Surface, Trajectory
from landscape.results.traces import Traces

__all__ = [
    "KINDS", "Displacements", "Distances", "Features", "Gradients", "History", "Overlap", "Pilots", "Plane", "Points",
    "R", "Result", "RowProducts", "Sensitivity", "Series", "Sharpness", "Spectrum", "Surface", "Traces", "Trajectory",
    "Tuned",
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
    Tuned,
    Displacements,
    Gradients,
    Features,
    *SERIES.values(),
)
KINDS: dict[str, type[Result]] = {kind.kind: kind for kind in _ALL}
