"""Numbers that no axis has room for are refused by name, by each figure."""

import dataclasses

import numpy as np
import pytest
import results_of_all_kinds

from landscape import plots
from landscape.errors import InputError
from landscape.plots.layout import drawable
from landscape.results.columns import drawn_as

RESULTS = results_of_all_kinds.all_kinds()
FIGURES = [(name, kind) for name, result in RESULTS.items() for kind in plots.KIND_FIGURES.get(drawn_as(result), {})]


@pytest.mark.parametrize(("name", "kind"), FIGURES)
def test_a_figure_refuses_numbers_that_overflow_when_they_are_drawn(name, kind):
    result = RESULTS[name]
    values = {f.name: getattr(result, f.name) for f in dataclasses.fields(result)}
    arrays = {f: v for f, v in values.items() if isinstance(v, np.ndarray) and v.dtype.kind == "f" and v.size}
    field, values = next(iter(arrays.items()))
    values = values.copy()
    values.flat[0] = 10 * drawable.LARGEST
    with pytest.raises(InputError, match=rf"{field} has the number 1e\+151"):
        plots.KIND_FIGURES[drawn_as(result)][kind](dataclasses.replace(result, **{field: values}))


def test_the_largest_number_is_drawn(tmp_path):
    result = RESULTS["sharpness.h5"]
    rises = np.full_like(result.worst_rise, drawable.LARGEST)
    plots.write(plots.rises(dataclasses.replace(result, worst_rise=rises)), tmp_path / "rises.png")


def test_results_among_several_and_under_names_are_looked_at():
    result = RESULTS["sharpness.h5"]
    large = dataclasses.replace(result, worst_rise=np.full_like(result.worst_rise, 1e200))

    @drawable.figure
    def shown(results: object) -> str:
        return "drawn"

    for several in ([result, large], {"a": result, "b": large}, (large,)):
        with pytest.raises(InputError, match=r"worst_rise has the number 1e\+200"):
            shown(several)
        with pytest.raises(InputError, match="worst_rise"):
            shown(results=several)
    assert shown([result, "text", 1e200]) == "drawn"
