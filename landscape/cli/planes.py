"""Planes that a command reads from a file: a plane stored by --save-plane, or another program's directions."""

from landscape.analyses import directions
from landscape.analyses.directions import Directions
from landscape.errors import InputError
from landscape.objective import points
from landscape.objective.objective import Objective
from landscape.results import Plane, store
from landscape.results.foreign import surface_files


def stored_plane(objective: Objective, file: str, n_axes: int, *, own_origin: bool) -> Directions:
    """Read a plane stored by --save-plane, or the directions of tomgoldstein/loss-landscape.

    Args:
        objective: an objective with a network of the same shapes.
        file: the result file.
        n_axes: number of directions to read.
        own_origin: use the objective's weights as the origin instead of the plane's; a file of directions has no
        origin.

    Returns:
        The directions.

    Raises:
        InputError: the file contains something else, or fewer directions.
    """
    plane = _foreign_plane(objective, file) if surface_files.is_foreign(file) else store.load(file)
    if not isinstance(plane, Plane):
        raise InputError(f"{file} is a {plane.kind}: a plane is what --save-plane wrote")
    if len(plane.axes) < n_axes:
        raise InputError(f"{file} holds a line: a plane has two directions")
    return directions.from_plane(objective, plane, own_origin=own_origin).first(n_axes)


def _foreign_plane(objective: Objective, file: str) -> Plane:
    model, names = objective.model, (objective.layout.names, points.buffer_layout(objective.model).names)
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    parameters, buffers = ({name: tensors[name].detach().cpu().numpy() for name in some} for some in names)
    return surface_files.read_plane(file, parameters, buffers, list(model.state_dict()))
