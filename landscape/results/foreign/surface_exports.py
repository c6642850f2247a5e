"""Surfaces for other programs: VTK's XML for ParaView, and NumPy archives.

A VTK file is a structured grid of nx x ny points, with loss and accuracy of every part at each point. The height of the
grid is one of the losses, or its logarithm. Points that were not computed, and those without a finite height, are
marked as hidden (`vtkGhostType`), so that they are holes; their values are nan. Numbers are 64-bit binary, because
VTK's reader of text stops at a nan. Marks, such as the checkpoints of a path, are in a separate file, as polylines at
their own losses.
"""

import base64
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, BinaryIO
from xml.sax.saxutils import quoteattr

import numpy as np

from landscape.errors import StoreError
from landscape.results import Surface, Trajectory, disk, store
from landscape.results.regroup import regroup

_HIDDEN = 2  # of vtkGhostType: this point is not drawn, nor are the cells around it
_TYPES = {"f": ("Float64", "<f8"), "i": ("Int64", "<i8"), "u": ("UInt8", "u1"), "b": ("UInt8", "u1")}
"""VTK's name of a type and NumPy's, by NumPy's kind."""


def write_vtk(
    path: str | Path, surface: Surface, *, part: str | None = None, log: bool = False, overwrite: bool = False
) -> Path | None:
    """Write a surface as a VTK structured grid, and its marks beside it.

    Args:
        path: the file; ParaView recognises the suffix .vts. Marks are written to a file .marks.vtp of this name.
        surface: the result, a plane or a line.
        part: the loss of this part is the height; None means the mean over all samples of all parts or, if numbers of
            samples are unknown, the first part.
        log: the height is log10 of the loss, for surfaces over several orders of magnitude.
        overwrite: replace files of these names.

    Returns:
        The path of the file with marks; None without marks.

    Raises:
        InputError: there is no such part.
        StoreError: a file exists or cannot be written.
    """
    path = Path(path)
    heights, mark_heights = _heights(surface, part, log)
    marks = path.with_suffix(".marks.vtp") if surface.marks else None
    with disk.writing(path):
        for target in filter(None, (path, marks)):
            disk.refuse_taken(target, overwrite=overwrite, signature=b"<")
        disk.write_aside(path, lambda file: _grid(file, surface, heights))
        if marks is not None:
            disk.write_aside(marks, lambda file: _polylines(file, surface, mark_heights))
    return marks


def write_npz(path: str | Path, surface: Surface, *, overwrite: bool = False) -> None:
    """Write a surface as a NumPy archive that needs no pickle: each field under its name, provenance as JSON.

    Args:
        path: the file.
        surface: the result.
        overwrite: replace a file of this name.

    Raises:
        StoreError: the file exists or cannot be written.
    """
    path = Path(path)
    arrays: dict[str, Any] = {
        item.name: np.asarray(getattr(surface, item.name)) for item in fields(surface) if _held(surface, item.name)
    }
    arrays["provenance"] = np.asarray(store.to_json(dict(surface.provenance), "provenance"))
    arrays["kind"], arrays["version"] = np.asarray(surface.kind), np.asarray(surface.version)
    with disk.writing(path):
        disk.refuse_taken(path, overwrite=overwrite, signature=b"PK")
        if path.exists() and path.stat().st_size and not _is_npz(path):
            raise StoreError(f"{path} is a file of another kind and is kept: choose another file, or remove it")
        disk.write_aside(path, lambda file: np.savez_compressed(file, **arrays))


def _is_npz(path: Path) -> bool:
    """Say whether an archive holds arrays alone: a checkpoint is an archive too."""
    try:
        with zipfile.ZipFile(path) as archive:
            return all(name.endswith(".npy") for name in archive.namelist())
    except zipfile.BadZipFile:
        return False


def _held(surface: Surface, name: str) -> bool:
    return name != "provenance" and getattr(surface, name) is not None


def _heights(surface: Surface, part: str | None, log: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return the heights of the grid, (ny, nx), and of the marks, (M,)."""
    if part is None and np.isfinite(surface.n_samples).all():
        surface = regroup(surface, "all")
    p = 0 if part is None else surface.index(part)
    found = surface.loss[p], surface.mark_loss[:, p]
    if not log:
        return found
    with np.errstate(divide="ignore", invalid="ignore"):  # a loss of 0 has no logarithm: a hole
        return np.log10(found[0]), np.log10(found[1])


def _grid(file: BinaryIO, surface: Surface, heights: np.ndarray) -> None:
    ny, nx = surface.computed.shape
    hidden = ~np.isfinite(heights)
    data = {f"loss {part}": surface.loss[p].ravel() for p, part in enumerate(surface.parts)}
    if surface.accuracy is not None:
        data |= {f"accuracy {part}": surface.accuracy[p].ravel() for p, part in enumerate(surface.parts)}
    data["computed"] = surface.computed.ravel()
    data["vtkGhostType"] = np.where(hidden, _HIDDEN, 0).astype(np.uint8).ravel()
    x, y = np.meshgrid(surface.xcoordinates, surface.ycoordinates)
    points = np.stack([x, y, _drawable(heights)], axis=-1).reshape(-1, 3)
    extent = f"0 {nx - 1} 0 {ny - 1} 0 0"
    _write(
        file,
        "StructuredGrid",
        f'<StructuredGrid WholeExtent="{extent}"><Piece Extent="{extent}">',
        [_section("PointData", data), _points(points)],
        "</Piece></StructuredGrid>",
    )


def _polylines(file: BinaryIO, surface: Surface, heights: np.ndarray) -> None:
    """Write each run of a trajectory as a line through its marks; marks that are on no run are single points."""
    n = len(surface.marks)
    run_of = surface.mark_run if isinstance(surface, Trajectory) else np.arange(n)
    lines = [np.flatnonzero(run_of == run) for run in np.unique(run_of[run_of >= 0])]
    lines += [np.array([m]) for m in np.flatnonzero(run_of < 0)]
    data: dict[str, np.ndarray] = {f"loss {part}": surface.mark_loss[:, p] for p, part in enumerate(surface.parts)}
    data |= {"distance": surface.mark_distance, "run": np.asarray(run_of, dtype=np.int64)}
    if isinstance(surface, Trajectory):
        data["epoch"] = surface.mark_epoch
    position = np.zeros((n, 3))
    position[:, : surface.mark_position.shape[1]] = surface.mark_position
    position[:, 2] = _drawable(heights)
    longer, single = [line for line in lines if len(line) > 1], [line for line in lines if len(line) == 1]
    counts = f'NumberOfPoints="{n}" NumberOfVerts="{len(single)}" NumberOfLines="{len(longer)}"'
    _write(
        file,
        "PolyData",
        f'<PolyData><Piece {counts} NumberOfStrips="0" NumberOfPolys="0">',
        [_section("PointData", data), _points(position), _cells("Verts", single), _cells("Lines", longer)],
        "</Piece></PolyData>",
    )


def _drawable(heights: np.ndarray) -> np.ndarray:
    """Put hidden points at the lowest height: with a nan coordinate, the grid would have no bounds for the camera."""
    finite = np.isfinite(heights)
    return np.where(finite, heights, heights[finite].min(initial=np.inf) if finite.any() else 0.0)


def _write(file: BinaryIO, kind: str, begin: str, sections: Sequence[str], end: str) -> None:
    head = f'<VTKFile type="{kind}" version="1.0" byte_order="LittleEndian" header_type="UInt64">'
    file.write("\n".join(['<?xml version="1.0"?>', head, begin, *sections, end, "</VTKFile>", ""]).encode())


def _section(name: str, arrays: Mapping[str, np.ndarray]) -> str:
    return "\n".join([f"<{name}>", *[_array(label, values) for label, values in arrays.items()], f"</{name}>"])


def _points(points: np.ndarray) -> str:
    return _section("Points", {"Points": points})


def _cells(name: str, lines: Sequence[np.ndarray]) -> str:
    ends = np.cumsum([len(line) for line in lines], dtype=np.int64)
    joined = np.concatenate([np.zeros(0, dtype=np.int64), *lines]).astype(np.int64)
    return _section(name, {"connectivity": joined, "offsets": ends})


def _array(name: str, values: np.ndarray) -> str:
    """Return an array with its length in bytes before it, both in base64 together."""
    kind, dtype = _TYPES["i" if values.dtype.kind == "u" and values.dtype.itemsize > 1 else values.dtype.kind]
    plain = np.ascontiguousarray(values, dtype=dtype).tobytes()
    text = base64.b64encode(len(plain).to_bytes(8, "little") + plain).decode()
    components = f' NumberOfComponents="{values.shape[1]}"' if values.ndim == 2 else ""
    label = quoteattr(name)
    return f'<DataArray type="{kind}" Name={label}{components} format="binary">{text}</DataArray>'
