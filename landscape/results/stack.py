"""Several results of one kind together, with methods, epochs or seeds as one more axis."""

import html
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np

from landscape.callables import checked
from landscape.errors import InputError, arg, unknown
from landscape.results.base import Result

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

R = TypeVar("R", bound=Result)


class Stack(Mapping[str, R], Generic[R]):
    """Results by their names, in order: a mapping, which figures of several results accept directly.

    The results are not changed: their parts, steps and points may differ. `to_xarray` joins their arrays; values that a
    result does not have are nan.
    """

    @checked
    def __init__(self, along: str, labels: Sequence[str | int | float], results: Sequence[R]) -> None:
        """Store results of one kind; `concat` checks them."""
        self.along, self.labels = along, tuple(labels)
        self._results = dict(zip(map(str, labels), results, strict=True))

    @checked
    def __getitem__(self, name: str | int | float) -> R:
        if str(name) not in self._results:
            raise InputError(unknown(name, self._results, self.along))
        return self._results[str(name)]

    def __contains__(self, name: object) -> bool:
        return str(name) in self._results

    def __iter__(self) -> Iterator[str]:
        return iter(self._results)

    def __len__(self) -> int:
        return len(self._results)

    def __repr__(self) -> str:
        kind = type(next(iter(self.values()))).__name__
        shown = ", ".join(list(self)[:10]) + (", ..." if len(self) > 10 else "")
        return f"{len(self)} results of the kind {kind} along {self.along!r}: {shown}"

    def _repr_html_(self) -> str:
        return "".join(f"<h4>{html.escape(f'{self.along} {name}')}</h4>{r._repr_html_()}" for name, r in self.items())

    def to_dataframe(self, *, long: bool = False) -> "pd.DataFrame":
        """Return the numbers of all results as one pandas data frame.

        Args:
            long: as for `Result.to_dataframe`.

        Returns:
            The frames of the results, one below the other. The name of the result is the first column or, if rows are
            parts, the first level of the index.
        """
        import pandas as pd

        frames = dict(zip(self.labels, (result.to_dataframe(long=long) for result in self.values()), strict=True))
        whole = pd.concat(frames, names=[self.along])
        return whole.reset_index(level=0).reset_index(drop=True) if long else whole

    def to_xarray(self) -> "xr.Dataset":
        """Return all arrays as one xarray data set with one more dimension.

        Returns:
            The data set. Parts are aligned by their names, other axes by their coordinates or positions; missing
            numbers are nan. It has the attributes that are equal in all results.

        Raises:
            InputError: the package xarray is not installed.
        """
        sets = [result.to_xarray() for result in self.values()]
        import xarray as xr

        sizes: dict[Any, int] = {}
        for found in sets:
            for dim, size in found.sizes.items():
                sizes[dim] = max(size, sizes.get(dim, 0))
        padded = [
            found.pad({d: (0, sizes[d] - n) for d, n in found.sizes.items() if d not in found.coords and n < sizes[d]})
            for found in sets
        ]
        return xr.concat(
            padded,
            xr.DataArray(np.asarray(self.labels), dims=self.along, name=self.along),
            data_vars="all",
            coords="minimal",
            join="outer",
            combine_attrs="drop_conflicts",
            compat="override",
        )


@checked
def concat(
    results: Sequence[R] | Mapping[str, R], along: str = "method", names: Sequence[str | int | float] | None = None
) -> Stack[R]:
    """Combine results of one kind along a new axis.

    Args:
        results: a list of at least one result, or a mapping of names to results.
        along: name of the new axis: "method", "epoch", "seed", or any other name that is not an axis of the results.
        names: the position of each result along the new axis, all different; None uses the names of a mapping, or the
            entry `along` in the provenance of each result, such as the method of training.

    Returns:
        The results by their names. It is a mapping, which figures of several results accept:
        `ls.plots.density_grid(ls.concat(spectra))`; and it has `to_dataframe` and `to_xarray`.

    Raises:
        InputError: no results, results of several kinds, names that do not fit, or an axis that the results already
            have.
    """
    found = list(results.values()) if isinstance(results, Mapping) else list(results)
    if not found or not all(isinstance(result, Result) for result in found):
        raise InputError(f"{arg('results')} must be at least one result, got {type(results).__name__}")
    kinds = list(dict.fromkeys(type(result) for result in found))
    if len(kinds) > 1:
        raise InputError(f"a {kinds[0].kind} and a {kinds[1].kind} cannot be combined: give results of one kind")
    if any(along in result.lengths for result in found):
        raise InputError(f"{arg('along', along)} is already an axis of a {kinds[0].kind}: choose another name")
    labels: list[Any] = list(names) if names is not None else list(results) if isinstance(results, Mapping) else []
    labels = labels or [result.provenance.get(along) for result in found]
    if None in labels:
        raise InputError(f"the provenance of a result does not say its {along}: pass {arg('names')}")
    if len(labels) != len(found) or len(set(map(str, labels))) != len(labels):
        raise InputError(f"{arg('names')} must be {len(found)} names that differ, got {', '.join(map(str, labels))}")
    return Stack(along, labels, found)
