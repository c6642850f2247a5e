"""The points of a line or a grid, their distances in parameter space, and the triangles between them.

A point with coordinates (x, y) is displaced by x d1 + y d2 from the centre. Its Euclidean distance r from the centre
follows from the Gram matrix of the two directions,

    r^2 = (x |d1|)^2 + 2 x y |d1| |d2| cos(d1, d2) + (y |d2|)^2.

On a full grid with a point at the centre, each cell is divided into two triangles, along its two diagonals in turn.
Otherwise the triangles are a Delaunay triangulation of the computed points and the centre, which also covers adaptive
grids. On a line there are segments from point to point instead.
"""

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.interpolate import CloughTocher2DInterpolator
from scipy.spatial import Delaunay, QhullError

from landscape.errors import InputError

SAME = 1e-9
"""A point that is nearer to the centre than this fraction of the grid's extent is the centre."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Grid:
    """The points of a surface: coordinates, their units, and which points were computed."""

    xcoordinates: np.ndarray  # (nx,)
    ycoordinates: np.ndarray  # (ny,); one 0 for a line
    unit_length: np.ndarray  # (A,) Euclidean length of each direction, A = 1 for a line; nan if unknown
    cosine: float  # of the two directions; nan for a line
    computed: np.ndarray  # (ny, nx) bool

    def __post_init__(self) -> None:
        shape = len(self.ycoordinates), len(self.xcoordinates)
        if self.computed.shape != shape or self.computed.dtype != bool:
            raise InputError(f"computed must be booleans {shape}, got {self.computed.dtype} {self.computed.shape}")
        if self.unit_length.shape not in {(1,), (2,)}:
            raise InputError(f"unit_length must be of one or two directions, got shape {self.unit_length.shape}")
        if len(self.unit_length) == 1 and np.any(self.ycoordinates != 0):
            raise InputError("a line has one y, 0: give unit_length for both directions of a plane")
        for name in ("xcoordinates", "ycoordinates"):
            values = getattr(self, name)
            if not len(values) or not np.isfinite(values).all():
                raise InputError(f"{name} must be finite numbers, at least one")

    @cached_property
    def coordinates(self) -> np.ndarray:
        """Coordinates (x, y) of the points that were computed, row by row, (N, 2)."""
        y, x = np.nonzero(self.computed)
        return np.stack([self.xcoordinates[x], self.ycoordinates[y]], axis=1)

    @cached_property
    def holds_centre(self) -> bool:
        """Whether the centre is in the range of both coordinates."""
        axes = (self.xcoordinates, self.ycoordinates)
        return all(bool(axis.min() <= 0 <= axis.max()) for axis in axes)

    @cached_property
    def _here(self) -> np.ndarray:
        """The number of the computed point that is the centre, or nothing."""
        extent = max(np.ptp(self.xcoordinates), np.ptp(self.ycoordinates))
        return np.flatnonzero(np.abs(self.coordinates).max(axis=1, initial=0.0) <= SAME * extent)[:1]

    @property
    def adds_centre(self) -> bool:
        """Whether the centre is an additional vertex: within the range, but not one of the computed points."""
        return self.holds_centre and not len(self._here)

    @cached_property
    def around(self) -> np.ndarray:
        """Numbers of the vertices next to the centre; none if the range does not contain it."""
        if not self.holds_centre:
            return np.zeros(0, dtype=np.intp)
        centre = len(self.coordinates) if self.adds_centre else self._here[0]
        ends = self.edges[(self.edges == centre).any(axis=1)]
        beside: np.ndarray = ends[ends != centre]
        return beside

    def at_centre(self, values: np.ndarray) -> np.ndarray:
        """Return the values that were computed at the centre.

        Args:
            values: (P, ny, nx).

        Returns:
            (P,); nan if the centre is not a computed point.
        """
        return values[:, self.computed][:, self._here[0]] if len(self._here) else np.full(len(values), np.nan)

    @cached_property
    def vertices(self) -> np.ndarray:
        """Coordinates of the vertices, (V, 2): the computed points, and the centre last if `adds_centre`."""
        return np.vstack([self.coordinates, np.zeros((int(self.adds_centre), 2))])

    @cached_property
    def simplices(self) -> np.ndarray:
        """Numbers of the vertices of each triangle, (M, 3), or of each segment if all points are on a line, (M, 2).

        The triangulation uses coordinates in grid steps, so that units and numbers of points cause no thin triangles.
        """
        if self._is_full:
            return _halved(*self.computed.shape)
        scaled = self.vertices / [step_of(self.xcoordinates), step_of(self.ycoordinates)]
        if len(scaled) < 2:
            return np.zeros((0, 2), dtype=np.intp)
        _, sizes, axes = np.linalg.svd(scaled - scaled.mean(axis=0), full_matrices=False)
        if sizes[-1] <= SAME * sizes[0]:
            order = np.argsort(scaled @ axes[0])
            return np.stack([order[:-1], order[1:]], axis=1)
        with spanning():
            triangles: np.ndarray = Delaunay(scaled).simplices
        return triangles

    @property
    def _is_full(self) -> bool:
        steps = np.diff(self.xcoordinates), np.diff(self.ycoordinates)
        in_order = all(len(step) and (np.all(step > 0) or np.all(step < 0)) for step in steps)
        return bool(in_order and self.computed.all() and not self.adds_centre)

    @cached_property
    def edges(self) -> np.ndarray:
        """Numbers of the two vertices of each edge of the simplices, each edge once, (E, 2)."""
        ends = self.simplices
        pairs = ends if ends.shape[1] == 2 else np.concatenate([ends[:, [i, i - 1]] for i in range(3)])
        low, high = pairs.min(axis=1, initial=len(self.vertices)), pairs.max(axis=1, initial=0)
        once = np.unique(low.astype(np.int64) * len(self.vertices) + high)
        return np.stack(np.divmod(once, max(1, len(self.vertices))), axis=1)

    def euclidean(self, coordinates: np.ndarray) -> np.ndarray:
        """Map coordinates to an orthonormal frame of the plane.

        Args:
            coordinates: (..., 2).

        Returns:
            Positions (..., 2), with the same Euclidean lengths as in parameter space; nan if units are unknown.
        """
        x, y = coordinates[..., 0], coordinates[..., 1]
        if len(self.unit_length) == 1:
            return np.stack([x * self.unit_length[0], np.zeros_like(x)], axis=-1)
        first, second = self.unit_length
        along = x * first + y * second * self.cosine
        return np.stack([along, y * second * np.sqrt(max(0.0, 1 - self.cosine**2))], axis=-1)

    def values(self, loss: np.ndarray, centre_loss: np.ndarray) -> np.ndarray:
        """Return the losses at the vertices.

        Args:
            loss: (P, ny, nx).
            centre_loss: (P,).

        Returns:
            (P, V).
        """
        return np.concatenate([loss[:, self.computed], *[centre_loss[:, None]] * self.adds_centre], axis=1)


@contextmanager
def spanning() -> Generator[None, None, None]:
    """Refuse points that Qhull cannot triangulate although they are not on a line.

    Raises:
        InputError: Qhull fails inside the block.
    """
    try:
        yield
    except QhullError as error:
        raise InputError(
            "the coordinates of the points differ by too many orders of magnitude, or are too near to a line, for "
            "triangles between them: compute the grid again"
        ) from error


def step_of(axis: np.ndarray) -> float:
    """Return the typical distance between neighbours along an axis.

    Args:
        axis: coordinates, in any order.

    Returns:
        The median over neighbours; 1 for a single coordinate.
    """
    distances = np.diff(np.unique(axis))
    return float(np.median(distances)) if len(distances) else 1.0


def smooth(known: np.ndarray, values: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Interpolate values between points that span a plane: piecewise cubic in the logarithm, without kinks.

    Around a minimum a loss spans decades, for which linear interpolation would need far smaller steps. For a row with
    zeros, its smallest positive value is added before the logarithm and subtracted after the interpolation.

    Args:
        known: (N, 2) places, in steps of the grid.
        values: (K, N), finite and not negative.
        wanted: (M, 2) places.

    Returns:
        (K, M); nan outside the hull of the known places.

    Source: Clough and Tocher 1965, in SciPy's implementation.
    """
    raised = floor_of(values)
    heights = CloughTocher2DInterpolator(known, np.log(values + raised).T)(wanted).T
    found: np.ndarray = np.maximum(np.exp(heights) - raised, 0.0)
    return found


def floor_of(values: np.ndarray) -> np.ndarray:
    """Return what is added to each row with zeros before its logarithm: its smallest positive value.

    Args:
        values: (K, N), not negative.

    Returns:
        (K, 1), 0 for rows without zeros and 1 for those of zeros only.
    """
    smallest = np.where(values > 0, values, np.inf).min(axis=1, keepdims=True)
    floor: np.ndarray = np.where(np.isfinite(smallest), smallest, 1.0)
    return np.where((values == 0).any(axis=1, keepdims=True), floor, 0.0)


def _halved(ny: int, nx: int) -> np.ndarray:
    """Return the two triangles of each cell of a full grid with points numbered row by row."""
    number = np.arange(ny * nx).reshape(ny, nx)
    corners = [c.ravel() for c in (number[:-1, :-1], number[:-1, 1:], number[1:, 1:], number[1:, :-1])]  # in a circle
    first = (np.add.outer(np.arange(ny - 1), np.arange(nx - 1)) % 2 == 0).ravel()
    a, b, c, d = (np.where(first, corners[i], corners[i - 3]) for i in range(4))  # the diagonal goes from a to c
    triangles: np.ndarray = np.concatenate([np.stack([a, b, c], axis=1), np.stack([a, c, d], axis=1)])
    return triangles
