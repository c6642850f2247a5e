"""The check of numbers before they are drawn, in one place for all figures."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import ParamSpec, TypeVar

import numpy as np

from landscape.callables import checked
from landscape.errors import InputError
from landscape.results import Result

P = ParamSpec("P")
T = TypeVar("T")

LARGEST = 1e150
"""Size of the largest number that is drawn; differences, squares and margins of larger ones overflow in float64."""


def figure(function: Callable[P, T]) -> Callable[P, T]:
    """Make a function that draws results refuse arguments of another type, and numbers that cannot be drawn.

    Args:
        function: draws one result or several.

    Returns:
        The function; it raises InputError for a number larger than `LARGEST`.
    """
    draw = checked(function)

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        for value in (*args, *kwargs.values()):
            for result in _results(value):
                _refuse(result)
        return draw(*args, **kwargs)

    return call


def _results(value: object) -> Iterator[Result]:
    if isinstance(value, Result):
        yield value
    elif isinstance(value, Mapping):
        yield from (item for item in value.values() if isinstance(item, Result))
    elif isinstance(value, Sequence) and not isinstance(value, str):
        yield from (item for item in value if isinstance(item, Result))


def _refuse(result: Result) -> None:
    for field in dataclasses.fields(result):
        values = getattr(result, field.name)
        if not isinstance(values, np.ndarray) or values.dtype.kind != "f":
            continue
        finite = values[np.isfinite(values)]
        if finite.size and np.abs(finite).max() > LARGEST:
            raise InputError(
                f"{field.name} has the number {finite[np.abs(finite).argmax()]:.3g}, and none beyond {LARGEST:g} can "
                "be drawn: look at the checkpoint's weights, or at where the file comes from"
            )
