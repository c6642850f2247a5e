"""The plane under a figure: what lies between the points that were computed, and where a position is drawn.

What was not computed is interpolated between the points that were; a hole, where the network's loss is not finite, is
never bridged. Positions are coordinates, or Euclidean in an orthonormal frame of the plane, in
which the grid of two directions that are not orthogonal is a parallelogram.
"""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from landscape.errors import InputError, arg, said
from landscape.plots.layout import theme
from landscape.results import Surface, grid, written
from landscape.results.grid import Grid, interpolate
from landscape.results.regroup import grid_of


def check_plane(surface: Surface, *, cells: bool = False) -> None:
    """Refuse what has no contours.

    Args:
        surface: a surface or trajectory.
        cells: cells are drawn, for which one point is enough.

    Raises:
        InputError: a line, or for contours fewer than 2 x 2 points, or computed points that all lie on a line.
    """
    if surface.is_line:
        raise InputError(f"this surface is a line: draw it by {said('surface_lines()', '--kind line')}")
    ny, nx = surface.computed.shape
    if cells:
        return
    if min(ny, nx) < 2 or grid_of(surface).simplices.shape[1] < 3:
        raise InputError(
            f"contours need points that span a plane, those of this grid of {nx} x {ny} do not: draw it by "
            f"{said('surface_heat()', '--kind heat')}"
        )


def without_errors() -> str:
    """Return what is wrong where errors of a surface are to be drawn that it does not have."""
    return f"this surface has no errors over samples: compute it again, or leave {arg('errors')} out"


def stored(surface: Surface, what: str = "loss") -> np.ndarray:
    """Return values at the points that were computed.

    Args:
        surface: a plane.
        what: "loss", "accuracy", or the standard error of either over samples: "loss_stderr", "accuracy_stderr".

    Returns:
        (P, ny, nx), nan in holes and at other points.

    Raises:
        InputError: the surface was made without these values.
    """
    values: np.ndarray | None = getattr(surface, what)
    if values is None:
        of = what.removesuffix("_stderr")
        known = getattr(surface, of) is not None
        raise InputError(without_errors() if known else f"this surface has no {of}: draw its loss")
    return values


def filled(surface: Surface, what: str = "loss") -> np.ndarray:
    """Return values at all points of the grid, interpolated where none was computed; see `stored` and `grid.filled`.

    Args:
        surface: a plane.
        what: as for `stored`.

    Returns:
        (P, ny, nx), nan in holes and beyond the computed points.

    Raises:
        InputError: the surface was made without these values.
    """
    values = stored(surface, what)
    return grid.filled(grid_of(surface), values, getattr(surface, f"centre_{what}"), cubic=what == "loss")


def place(surface: Surface, coordinates: np.ndarray, *, euclidean: bool) -> np.ndarray:
    """Return where coordinates (..., 2) are drawn."""
    if not euclidean:
        return coordinates
    frame = Grid(
        xcoordinates=np.zeros(1),  # of paths without a surface there are none
        ycoordinates=np.zeros(1),
        unit_length=surface.unit_length,
        cosine=surface.cosine,
        computed=np.zeros((1, 1), dtype=bool),
    )
    return frame.euclidean(coordinates)


def mesh(surface: Surface, *, euclidean: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return where the points of the grid are drawn, two arrays (ny, nx).

    Raises:
        InputError: Euclidean lengths are asked for and unknown, or the directions span no plane.
    """
    if euclidean and not (np.isfinite(surface.unit_length).all() and np.isfinite(surface.cosine)):
        raise InputError(f"the lengths of this surface's directions are unknown: leave {arg('euclidean')} out")
    if euclidean and not surface.unit_length.prod() * (1 - surface.cosine**2) > 0:
        raise InputError(f"the two directions are parallel or one has no length: leave {arg('euclidean')} out")
    corners = np.stack(np.meshgrid(surface.xcoordinates, surface.ycoordinates), axis=-1)
    x, y = np.moveaxis(place(surface, corners, euclidean=euclidean), -1, 0)
    return x, y


def aspect(surface: Surface) -> float:
    """Return height over width of the plane in the Euclidean frame, within what a panel can be."""
    x, y = mesh(surface, euclidean=True)
    return float(np.clip(np.ptp(y) / (np.ptp(x) or 1.0), 0.45, 2.0))


def label_axes(ax: Axes, surface: Surface, *, euclidean: bool) -> None:
    """Name the axes by their directions, and choose their ticks and aspect.

    Args:
        ax: where.
        surface: of which the axes are.
        euclidean: positions are Euclidean.
    """
    names = axis_labels(surface, euclidean=euclidean)
    ax.set_xlabel(names[0], parse_math=False)
    ax.set_ylabel(names[1], parse_math=False)
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(MaxNLocator(4, steps=theme.STEPS))
    ax.grid(visible=False)
    if euclidean:
        ax.set_aspect("equal")
    else:
        ax.set_box_aspect(1)


def axis_labels(surface: Surface, *, euclidean: bool = False) -> list[str]:
    """Return the names of the directions, with the fraction of the variance that principal components explain.

    Args:
        surface: of which the axes are.
        euclidean: positions are Euclidean.

    Returns:
        One or two names.
    """
    found = []
    for name, share in zip(surface.axes, surface.explained, strict=True):
        short = written.shorten(name.replace("principal component", "PC"), 26)
        said = np.isnan(share) or short.endswith("%)")
        found.append(short if said else f"{short} ({100 * share:.1f} %)")
    if euclidean and len(found) == 2 and abs(surface.cosine) >= 0.01:
        found = [f"along {found[0]}", "at right angles to it"]
    return found


def units(surface: Surface) -> str:
    """Say how long one unit of each coordinate is, and the angle between the directions; empty if unknown."""
    if not np.isfinite(surface.unit_length).all():
        return "lengths of the directions are unknown"
    lengths = [f"{length:.3g}" for length in surface.unit_length]
    if len(lengths) == 1:
        return f"one unit is {lengths[0]} long"
    angle = np.degrees(np.arccos(np.clip(surface.cosine, -1, 1)))
    alike = "one unit of either axis is {0} long" if lengths[0] == lengths[1] else "one unit is {0} long in x, {1} in y"
    return f"{alike.format(*lengths)}, the angle between them is {angle:.0f}°"


def holes(surface: Surface, values: np.ndarray) -> np.ndarray:
    """Say where values are unknown because a computed one is not finite.

    Args:
        surface: a plane.
        values: (ny, nx) of one part, from `filled`.

    Returns:
        (ny, nx); false beyond the computed points.
    """
    unknown = np.isnan(values)
    if surface.computed.all() or not (unknown & surface.computed).any():
        return np.asarray(unknown & surface.computed)
    grid = grid_of(surface)
    rows, columns = np.nonzero(unknown & ~surface.computed)
    places = np.stack([surface.xcoordinates[columns], surface.ycoordinates[rows]], axis=1)
    inside = np.isfinite(interpolate(grid, np.zeros((1, len(grid.vertices))), places)[0])
    found: np.ndarray = unknown & surface.computed
    found[rows, columns] = inside
    return found
