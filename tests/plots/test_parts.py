"""Parts whose training samples are not known, as of data without classes, are drawn as all others are."""

import dataclasses

import numpy as np
import pytest
from made import THREE, features, gradients, history
from matplotlib.colors import to_hex, to_rgba
from matplotlib.text import Text
from results_of_all_kinds import PARTS, distances, sensitivity, sharpness, spectrum

from landscape import plots
from landscape.plots.layout import parts, theme
from landscape.results.series import joined, of_one

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


CLASSES = tuple(f"class {c}" for c in range(3))
ORDER = np.array([5, 50, 500])


def same_classes():
    """Figures of results that have the same classes."""
    fields = {"parts": CLASSES, "train_counts": ORDER}
    one = dataclasses.replace(spectrum(), **fields)
    return {
        "summary": plots.summary(one),
        "series": plots.along(joined([of_one(one, f"net-{k}", epoch=k) for k in range(2)])),
        "sharpness": plots.rises(dataclasses.replace(sharpness(CLASSES), **fields)),
        "quality": plots.class_quality(features(3, parts=CLASSES, train_counts=ORDER)),
        "quality over epochs": plots.class_quality(features(3, 3, parts=CLASSES, train_counts=np.full(3, 5))),
        "cosines": plots.gradient_epochs(gradients(THREE, ORDER, epochs=(0, 5), parts=CLASSES)),
        "history": plots.training(history(3, parts=CLASSES, train_counts=ORDER)),
    }


def test_a_part_has_one_colour_in_all_figures():
    hues = dict(zip(CLASSES, (theme.palette()[i] for i in (0, 1, 3)), strict=True))
    for name, fig in same_classes().items():
        found = {}
        for legend in (*fig.legends, *(ax.get_legend() for ax in fig.axes if ax.get_legend())):
            for text, handle in zip(legend.get_texts(), legend.legend_handles, strict=True):
                line = handle.get_children()[0] if hasattr(handle, "has_yerr") else handle
                colour = line.get_color() if hasattr(line, "get_color") else line.get_edgecolor()
                found[text.get_text().split(" (")[0]] = to_hex(np.ravel(to_rgba(colour)))
        assert {part: found.get(part) for part in CLASSES} == hues, name


def test_a_few_of_many_parts_have_hues_and_added_groups_the_colour_of_letters():
    many = spectrum(15)
    assert parts.colours(many, [12, 3]) == parts.colours(many, [3, 12])[::-1]
    assert set(parts.colours(many, [12, 3])) == {theme.palette()[0], theme.palette()[3]}
    assert len(set(parts.colours(many, range(15)))) == 15
    grouped = dataclasses.replace(spectrum(3), provenance={"options": {"with_parts": ["class 1"]}})
    assert parts.colours(grouped, [0, 1, 2]) == [theme.palette()[0], theme.ink(), theme.palette()[3]]


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


def test_figures_of_sharpness_say_how_many_numbers_are_not_finite():
    whole = sharpness()
    rise = np.array([np.nan, 0.1, np.inf])
    fig = plots.rises(dataclasses.replace(whole, worst_rise=rise, noise_rise=np.array([np.nan, 0.1, 0.2])))
    assert [ax.get_title().split("\n")[-1] for ax in fig.axes[:2]] == [
        "of 3, 2 are not finite",
        "of 3, 1 is not finite",
    ]
    assert not any("finite" in ax.get_title() for ax in plots.rises(whole).axes)
