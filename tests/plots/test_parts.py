"""Parts whose training samples are not known, as of data without classes, are drawn as all others are."""

import dataclasses

import numpy as np
import pytest
from made import THREE, gradients, history
from matplotlib.text import Text
from results_of_all_kinds import PARTS, distances, sensitivity, sharpness, spectrum

from landscape import plots

DISTANCES = dataclasses.replace(distances(), barrier=np.ones((2, 3, 3, 3)))
GRADIENTS = gradients(THREE, [5, 20, 10], epochs=(0, 5))
FIGURES = {
    plots.rises: sharpness(),
    **dict.fromkeys((plots.densities, plots.summary), spectrum()),
    **dict.fromkeys((plots.cross_losses, plots.barrier_maps, plots.point_map), DISTANCES),
    **dict.fromkeys((plots.cosine_map, plots.gradient_norms, plots.gradient_layers, plots.gradient_epochs), GRADIENTS),
}


@pytest.mark.parametrize("draw", FIGURES, ids=lambda draw: draw.__name__)
def test_a_figure_names_parts_without_counts_that_are_not_known(draw):
    fig = draw(dataclasses.replace(FIGURES[draw], train_counts=np.full(3, np.nan)))
    assert not [text.get_text() for text in fig.findobj(Text) if "nan" in text.get_text()]


@pytest.mark.parametrize("n", [1, 3])
def test_parts_without_known_counts_stand_side_by_side(n):
    unknown = np.full(n, np.nan)
    for fig in (
        plots.rises(dataclasses.replace(sharpness(PARTS[:n]), train_counts=unknown)),
        plots.gradient_norms(dataclasses.replace(gradients(THREE[:n], [5, 20, 10][:n]), train_counts=unknown)),
    ):
        for ax in fig.axes:
            assert ax.get_xlabel() == "parts"
            drawn = [*(line.get_xdata() for line in ax.lines), *(c.get_offsets()[:, 0] for c in ax.collections)]
            assert {round(float(x)) for xs in drawn for x in np.asarray(xs)} >= set(range(n))


@pytest.mark.parametrize(
    ("draw", "result"),
    [
        (plots.changes, sensitivity(of="US$ or C$")),
        *((draw, history(method="US$ or C$", gradient_cosine=np.ones((4, 3))))
          for draw in plots.KIND_FIGURES["history"].values()),
    ],
)  # fmt: skip
def test_a_title_with_dollars_is_no_formula(draw, result):
    titles = [text for text in draw(result).findobj(Text) if "US$" in text.get_text()]
    assert titles
    assert not any(text.get_parse_math() for text in titles)
