"""How a result declares its arrays: each field states its axes and its unit once, in its declaration.

Validation, the dimension labels of HDF5 and `landscape info` read the declarations. Axes have names; axes of the same
name have the same length in all fields, and a matrix over pairs of parts has the axis "part" twice. Results are joined
along the axis that their class names as `along`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import field, fields
from typing import Any, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from landscape.errors import InputError

Floats: TypeAlias = NDArray[np.float64]
Bools: TypeAlias = NDArray[np.bool_]
Counts: TypeAlias = NDArray[Any]
"""Whole numbers: integers, or floats if some may be unknown, which is nan."""

T = TypeVar("T", bound=Any)

SECOND = "_2"
"""Suffix of the second name of an axis that an array has twice."""


def array(
    *axes: str,
    unit: str = "",
    doc: str = "",
    optional: bool = False,
    joins: bool = True,
    places: str = "",
    least: int = 0,
) -> Any:
    """Declare a field that is an array with named axes.

    Args:
        axes: one name per axis; axes of the same name have the same length in all fields.
        unit: the unit of the values, empty for pure numbers.
        doc: one line of description for the reader of a file.
        optional: the field may be None.
        joins: False for an optional field that becomes None when results are joined, because it describes a result as a
            whole.
        places: name of the axis along which the values are positions; empty for other values.
        least: the smallest position; -1 if some values are none.

    Returns:
        A dataclass field with this metadata.
    """
    metadata = {"axes": axes, "unit": unit, "doc": doc, "optional": optional, "joins": joins}
    metadata |= {"places": places, "least": least}
    return field(default=None, metadata=metadata) if optional else field(metadata=metadata)


def scalar(unit: str = "", doc: str = "", **default: Any) -> Any:
    """Declare a field that is one number or string.

    Args:
        unit: the unit of the value, empty for pure numbers.
        doc: one line of description for the reader of a file.
        default: `default=` or `default_factory=`, as in `dataclasses.field`. A file may lack a field with a `default`.

    Returns:
        A dataclass field with this metadata.
    """
    return field(metadata={"axes": None, "unit": unit, "doc": doc, "optional": "default" in default}, **default)


def check_axes(result: Any) -> None:
    """Check that every array has its named axes, that axes of one name have one length, and that positions exist.

    Args:
        result: an instance of a dataclass whose fields are declared with `array` and `scalar`.

    Raises:
        InputError: an array has the wrong number of axes, two arrays disagree on the length of an axis, or a position
            along an axis does not exist.
    """
    lengths: dict[str, tuple[int, str]] = {}
    for item in fields(result):
        value = getattr(result, item.name)
        axes = item.metadata.get("axes")
        if axes is None or (value is None and item.metadata["optional"]):
            continue
        shape = np.shape(value)
        if len(shape) != len(axes):
            raise InputError(f"{item.name} must have axes {axes}, got shape {shape}")
        for axis, length in zip(axes, shape, strict=True):
            known, owner = lengths.setdefault(axis, (length, item.name))
            if known != length:
                raise InputError(f"{item.name} has {length} along {axis!r}, but {owner} has {known}")
    for item in fields(result):
        axis, found = item.metadata.get("places"), np.asarray(getattr(result, item.name))
        if axis not in lengths or found.dtype == object or not found.size:
            continue
        n, least = lengths[axis][0], item.metadata["least"]
        if found.dtype.kind not in "iu" or found.min() < least or found.max() >= n:
            raise InputError(f"{item.name} must be positions along {axis!r}, whole numbers from {least} to {n - 1}")


def distinct(axes: Sequence[str]) -> list[str]:
    """Return distinct names of axes: the second axis of a matrix over pairs gets its own name.

    Args:
        axes: as declared, such as ("part", "part").

    Returns:
        The names, such as "part" and "part_2".
    """
    return [axis + (SECOND if axis in axes[:i] else "") for i, axis in enumerate(axes)]


def labels_of(result: Any) -> dict[str, tuple[str, np.ndarray]]:
    """Return the labels along each axis that a field provides.

    Such a field has strings or coordinates, or the name of the axis itself, such as "epoch". It is not used if two of
    its values are equal.

    Args:
        result: an instance of a dataclass whose fields are declared with `array`.

    Returns:
        For each such axis, the field and its values.
    """
    found: dict[str, tuple[str, np.ndarray]] = {}
    for item in fields(result):
        value, axes = getattr(result, item.name), item.metadata["axes"]
        if axes is None or len(axes) != 1 or value is None:
            continue
        named = isinstance(value, tuple) or item.name in {axes[0], f"{axes[0]}coordinates"}
        if named and len(set(np.asarray(value).tolist())) == len(value):
            found.setdefault(axes[0], (item.name, np.asarray(value)))
    return found


def concatenate(results: Sequence[T]) -> T:
    """Join results of one kind along the axis `along` of the kind, such as "part" for a spectrum.

    What a result does not have is nan if others have it, or 0 for integers: a part by rows has runs without steps
    beside parts with runs. Other axes that differ in length (steps, trace probes) are padded with nan at their end; for
    integers, which have no nan, a difference in length is an error. Scalars and arrays without the axis must be equal.
    The provenance is that of the first result, with the smallest batch size and all that differs in what became of the
    Lanczos basis.

    Args:
        results: at least one result, all of one kind.

    Returns:
        One result with all the parts, in order.

    Raises:
        InputError: no results, different kinds, values that disagree, or an array over pairs of parts, because no
            result has the pairs of parts from different results.
    """
    if not results:
        raise InputError("nothing to join: there are no results")
    first = results[0]
    for other in results:
        if type(other) is not type(first):
            raise InputError(f"a {first.kind} and a {other.kind} cannot be joined: give results of one kind")
    joined: dict[str, Any] = {}
    for item in fields(first):
        values = [getattr(r, item.name) for r in results]
        axes = item.metadata.get("axes")
        if len(results) > 1 and not item.metadata.get("joins", True):
            joined[item.name] = None
        elif axes is None or first.along not in axes:
            if item.name != "provenance" and not all(_same(v, values[0]) for v in values):
                shown = "" if axes else f": {values[0]!r} and others"
                raise InputError(f"the results differ in {item.name}{shown}: join results that were computed alike")
            joined[item.name] = values[0] if item.name != "provenance" else _provenance(values)
        elif all(v is None for v in values):
            joined[item.name] = None
        elif len(results) > 1 and axes.count(first.along) > 1:
            raise InputError(f"{item.name} is over pairs along {first.along!r} and does not join")
        elif isinstance(values[0], tuple):
            joined[item.name] = tuple(name for v in values for name in v)
        else:
            joined[item.name] = np.concatenate(_padded(_filled(results, item.name), item.name))
    whole: T = type(first)(**joined)
    return whole


def _provenance(values: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Join what depends on the memory of each process, which may differ from part to part."""
    found = dict(values[0])
    if sizes := [size for one in values if isinstance(size := one.get("batch_size"), int)]:
        found["batch_size"] = min(sizes)
    if notes := dict.fromkeys(note for one in values if isinstance(note := one.get("basis"), str)):
        found["basis"] = "; or ".join(notes)
    return found


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        return a.shape == b.shape and bool(np.all((a == b) | ((a != a) & (b != b))))
    return bool(a == b or (a != a and b != b))  # true for nan, which is not equal to itself


def _filled(results: Sequence[Any], name: str) -> list[np.ndarray]:
    """Return a field of all results, with nan or 0 for those that do not have it."""
    values = [getattr(r, name) for r in results]
    known = next(v for v in values if v is not None)
    none = np.nan if np.issubdtype(known.dtype, np.floating) else 0
    return [
        np.full((_length(r), *known.shape[1:]), none, known.dtype) if value is None else value
        for r, value in zip(results, values, strict=True)
    ]


def _length(result: Any) -> int:
    """Return the number of entries along the axis along which results are joined."""
    of_axis = (item.name for item in fields(result) if (item.metadata.get("axes") or ())[:1] == (result.along,))
    return next(len(value) for name in of_axis if (value := getattr(result, name)) is not None)


def _padded(values: list[np.ndarray], name: str) -> list[np.ndarray]:
    shape = np.max([v.shape[1:] for v in values], axis=0) if values[0].ndim > 1 else ()
    padded = []
    for value in values:
        missing = [(0, 0)] + [(0, int(n - m)) for n, m in zip(shape, value.shape[1:], strict=True)]
        if any(after for _, after in missing):
            if not np.issubdtype(value.dtype, np.floating):
                raise InputError(f"{name} has different lengths in different parts")
            value = np.pad(value, missing, constant_values=np.nan)
        padded.append(value)
    return padded
