"""Figures for a paper: every kind is as wide as its columns, and all that it says can be read."""

import dataclasses
import functools
import itertools
import re

import numpy as np
import pytest
from made import THREE, features, gradients, history, many
from matplotlib.image import imread
from matplotlib.text import Text
from matplotlib.ticker import FixedLocator
from refusals import refused
from results_of_all_kinds import all_kinds, distances
from surfaces import three_classes
from synthetic import classes

from landscape import cli, plots
from landscape.errors import InputError
from landscape.plots.layout import fitting, grids, panels, paper, theme
from landscape.results import store

WIDTHS = {1: 3.25, 2: 6.875}
LONG = tuple(f"an endless name of class {c}" for c in range(10))


@functools.cache
def results():
    """Results of all kinds."""
    rng = np.random.default_rng(0)
    made = {name.removesuffix(".h5"): result for name, result in all_kinds().items()}
    square = {name: rng.random((3, 3)) - 0.3 for name in ("overlap", "gradient_curvature")}
    square |= {"subspace_overlap": rng.random((3, 3)), "principal_angles": 90 * rng.random((3, 3, 2))}
    each = {f"sample_{name}": rng.random((3, 8)) for name in ("curvature", "trace", "weight", "uncertainty", "loss")}
    each |= {f"sample_{name}": np.tile(np.arange(8.0), (3, 1)) for name in ("index", "label", "prediction")}
    each |= {"image_sample": each["sample_index"], "images": rng.integers(256, size=(3, 8, 32, 32, 3))}
    made["spectrum"] = dataclasses.replace(made["spectrum"], **square, **each)
    made["history"] = history(10, gradient_cosine=rng.random((4, 10)), parts=LONG)
    made["gradients"] = gradients(THREE, [500, 50, 5], epochs=(0, 5, 10))
    made["features"] = features(10, 4, parts=LONG)
    made["distances"] = dataclasses.replace(distances(), barrier=rng.random((2, 3, 3, 3)))
    return made


def kinds():
    """Each function that draws a kind, by the name of a result and of the kind."""
    found = {
        draw: (name, kind)
        for name, result in results().items()
        for kind, draw in plots.KIND_FIGURES[drawn_as(result)].items()
    }
    return sorted(found.values())


def drawn_as(result):
    return "line" if getattr(result, "is_line", False) else result.kind


def laid_out(draw, columns):
    """The figure with all in its place, at 100 pixels an inch."""
    with plots.styled(columns=columns):
        fig = draw()
        fig = getattr(fig, "figure", fig)
        with theme.theme():
            fig.draw_without_rendering()
    return fig


def texts(fig):
    """Texts that are seen: at the ticks of each axis, around panels, and in panels."""
    at_ticks, never = {}, set()
    for ax in fig.axes:
        for axis in fitting.axes_of(ax):
            ticks = axis.get_major_ticks() + axis.get_minor_ticks()
            never |= {label for tick in ticks for label in (tick.label1, tick.label2)}
            at_ticks[axis] = [tick.label1 for tick in fitting.labelled(axis)] if ax.axison else []
    seen = [text for text in fig.findobj(Text) if text.get_visible() and text.get_text().strip() and text not in never]
    inside = {text for ax in fig.axes for text in ax.texts}
    return at_ticks, [text for text in seen if text not in inside], [text for text in seen if text in inside]


def overlapping(found):
    """Pairs of texts whose boxes share more than a pixel in either direction."""
    boxes = [(text.get_text(), text.get_window_extent()) for text in found]
    return [
        (a, b)
        for (a, one), (b, other) in itertools.combinations(boxes, 2)
        if min(one.x1, other.x1) - max(one.x0, other.x0) > 1 and min(one.y1, other.y1) - max(one.y0, other.y0) > 1
    ]


def check(fig, columns):
    assert (fig.get_figwidth(), fig.dpi) == (WIDTHS[columns], 100)
    assert fig.get_figheight() <= 8.875, "higher than the page"
    ticks, around, inside = texts(fig)
    labels = [label for several in ticks.values() for label in several]
    sizes = {text.get_fontsize() for text in (*labels, *around, *inside)}
    assert 6 <= min(sizes) <= max(sizes) <= 9
    for axis, several in ticks.items():
        assert not overlapping(several), axis.axes.get_title()
    flat = [text for text in (*labels, *around) if getattr(text.axes, "name", "") != "3d"]
    assert not overlapping(flat)
    width, height = 100 * fig.get_figwidth(), 100 * fig.get_figheight()
    for text in (*labels, *around, *inside):
        box = text.get_window_extent()
        assert min(box.x0, box.y0) > -1, text.get_text()
        assert box.x1 < width + 1, text.get_text()
        assert box.y1 < height + 1, text.get_text()


IN_TWO = [("spectrum", "density"), ("history", "training"), ("sharpness", "rises"), ("distances", "matrix")]
"""In two columns: panels of parts, of numbers, with a legend among them, and maps; others only become wider."""


@functools.cache
def of_kind(name, kind, columns):
    result = results()[name]
    return laid_out(lambda: plots.KIND_FIGURES[drawn_as(result)][kind](result, None), columns)


@pytest.mark.parametrize(
    ("name", "kind", "columns"), [*((*both, 1) for both in kinds()), *((*both, 2) for both in IN_TWO)]
)
def test_every_kind_is_as_wide_as_its_columns_and_can_be_read(name, kind, columns):
    check(of_kind(name, kind, columns), columns)


def with_errors(found):
    """Gradients with errors over samples, which their figures have a longer title for."""
    names = [field.name for field in dataclasses.fields(found) if field.name.endswith("_sampling_stderr")]
    values = {name: getattr(found, name.removesuffix("_sampling_stderr")) for name in names}
    known = {name: 0.1 * np.abs(value) for name, value in values.items() if value is not None}
    return dataclasses.replace(found, **known)


SPECTRA = {name: classes(2, steps=8, probes=1) for name in ("CE", "CE + SAM", "CE + GSA + GKP")}
NAMES = tuple(f"{name} {k}" for k in range(10) for name in LONG)
MANY = {"parts": LONG * 10, "train_counts": np.linspace(5000, 5, 100).astype(int)}
OTHERS = {
    "panels": lambda: plots.densities(classes(5, steps=8, probes=1)),
    "map": lambda: plots.densities(dataclasses.replace(classes(100, steps=8, probes=1), parts=NAMES)),
    "one density": lambda: plots.density(classes(1)),
    "grid": lambda: plots.density_grid(SPECTRA, ("class 0", "class 1")),
    "cosines of many": lambda: plots.cosine_map(many(30)),
    "angles of many": lambda: plots.class_angles(dataclasses.replace(features(100), **MANY)),
    "contours": lambda: plots.contours(three_classes(5, 5), "class 0"),
    "surfaces side by side": lambda: plots.compare_surfaces(dict.fromkeys("abc", three_classes(5, 5)), ["class 0"]),
    "parts of several surfaces": lambda: plots.compare_surfaces(
        dict.fromkeys("ab", three_classes(5, 5)), ["class 0", "class 2"]
    ),
    "qualities side by side": lambda: plots.compare_quality(dict.fromkeys("ab", results()["features"])),
    "sweep": lambda: plots.sweep({"groups G": {g: [history()] for g in range(1, 11)}, "Z": {1e-4: [history()]}}),
    "norms with errors": lambda: plots.gradient_norms(with_errors(results()["gradients"])),
    "runs side by side": lambda: plots.gradient_cosines(dict.fromkeys("abc", results()["gradients"])),
}


@functools.cache
def other(name):
    return laid_out(OTHERS[name], 1)


@pytest.mark.parametrize("name", OTHERS)
def test_figures_beside_the_kinds_fit_one_column_too(name):
    check(other(name), 1)


@pytest.fixture
def unfitted(monkeypatch):
    """Let figures be as they are before their letters and height are fitted, which takes most of the time."""
    monkeypatch.setattr(fitting, "fit", lambda fig, room: None)


def test_more_parts_than_a_page_has_room_for_become_a_map(unfitted):
    spectrum = classes(13, steps=8, probes=1)
    with plots.styled(columns=1):
        assert len(plots.densities(spectrum).axes) == 4  # the map, its bar, lambda_max and the trace
    with plots.styled(columns=2):
        assert len(plots.densities(spectrum).axes) == 13


def test_figures_are_as_high_as_their_panels_need():
    for columns, highest in ((1, 4.0), (2, 2.5)):
        fig = of_kind("history", "training", columns)
        box = fig.axes[0].get_window_extent()
        assert 0.95 <= box.height / fig.dpi <= 1.3
        assert fig.get_figheight() < highest


def test_panels_keep_their_size_beside_long_titles_and_legends():
    fig = other("norms with errors")
    assert all(ax.get_window_extent().height > 0.95 * fig.dpi for ax in fig.axes)
    legends = [ax.get_legend().get_window_extent() for ax in fig.axes]
    assert all(legend.y1 < ax.get_window_extent().y0 for legend, ax in zip(legends, fig.axes, strict=True))


def test_numbers_stand_only_in_cells_that_hold_them():
    for n, columns, there in ((8, 1, False), (3, 2, True)):
        fig = laid_out(lambda n=n: plots.cosine_map(with_errors(many(n))), columns)
        for ax in fig.axes[:2]:
            cell = np.abs(np.diff(ax.transData.transform([(0, 0), (1, 1)]), axis=0)[0])
            assert bool(ax.texts) == there
            assert all(text.get_window_extent().width <= cell[0] for text in ax.texts)


def test_words_in_a_corner_stay_within_their_panel():
    fig = laid_out(lambda: plots.densities(classes(4, steps=8, probes=3)), 1)
    for ax in fig.axes:
        ax.texts[0].set_text("Tr($H$) = 163 ± 27 (estimate of a trace)")
    with plots.styled(columns=1), theme.theme():
        fitting.fit(fig, paper.Room(rows=2))
    for ax in fig.axes:
        assert ax.texts[0].get_window_extent().x0 >= ax.get_window_extent().x0


def test_titles_where_there_is_no_room_for_further_lines_are_shortened():
    with plots.styled(columns=1), theme.theme():
        _, axes = panels.small_multiples(9, heading="", caption=())
        for ax in axes:
            ax.set_title("domestic short-haired cat\nn = 16")
    assert {ax.get_title().count("\n") for ax in axes} == {1}
    assert all("…" in ax.get_title() and ax.get_title().endswith("\nn = 16") for ax in axes)


def test_names_of_axes_stay_below_the_title_of_the_figure():
    with plots.styled(columns=1), theme.theme():
        fig, axes, _ = grids.grid(2, 2, 8, 3)
        axes[1].set_ylabel("Tr(H) ± samples, estimate (units of the loss) and more of it")
        fig.suptitle("a title of the whole figure that stands in two lines above all of its panels")
    fig.draw_without_rendering()
    title = next(text for text in fig.texts if text.get_text().startswith("a title"))
    assert axes[1].yaxis.label.get_window_extent().y1 <= title.get_window_extent().y0 + 1


def test_methods_become_rows_where_they_have_no_room_side_by_side(unfitted):
    titles = {}
    for columns in WIDTHS:
        with plots.styled(columns=columns):
            fig = plots.density_grid(SPECTRA, ("class 0", "class 1"))
        titles[columns] = [ax.get_title().split("\n")[0] for ax in fig.axes]
        assert fig.axes[0].get_gridspec().ncols == {1: 2, 2: 3}[columns]
    assert titles[1][:3] == ["CE: class 0", "CE: class 1", "CE + SAM: class 0"]
    assert titles[2][:3] == ["CE: class 0", "CE + SAM: class 0", "CE + GSA + GKP: class 0"]


def test_without_columns_figures_have_the_sizes_they_like():
    made = results()
    sizes = {
        plots.training: (made["history"], (11, 3.4)),
        plots.class_quality: (made["features"], (12.6, 3.2)),
        plots.rises: (made["sharpness"], (11.4, 3.5)),
        plots.summary: (made["spectrum"], (8, 3.4)),
        plots.gradient_norms: (made["gradients"], (8.6, 3.6)),
        plots.distances_along: (made["distances"], (6.2, 3.8)),
    }
    for draw, (result, size) in sizes.items():
        assert tuple(draw(result).get_size_inches()) == size
    assert plots.surface(made["surface"]).get_figwidth() == pytest.approx(7.16)


def test_axes_of_the_callers_own_keep_their_figure_and_its_letters():
    fig = theme.figure(9, 3)
    ax, other = fig.subplots(1, 2)
    other.set_title("a title in large letters", fontsize=20)
    with plots.styled(columns=1):
        plots.density(classes(1), ax=ax)
    assert tuple(fig.get_size_inches()) == (9, 3)
    assert other.title.get_fontsize() == 20


def test_columns_are_for_papers_and_there_are_one_or_two():
    for style in ("talk", "web"):
        wrong = refused(InputError, columns=1, style=style)
        with wrong, plots.styled(style, columns=1):
            pass
    with refused(InputError, columns=3), plots.styled(columns=3):
        pass
    assert paper.page() is None


def test_a_page_of_a_file_is_as_wide_as_the_columns(tmp_path):
    for columns, width in WIDTHS.items():
        with plots.styled(columns=columns):
            fig = plots.density(classes(1, steps=8, probes=1)).figure
            plots.write(fig, tmp_path / "a.pdf")
            plots.write(fig, tmp_path / "a.png")
        (box,) = re.findall(rb"/MediaBox \[ ?0 0 ([\d.]+) ", (tmp_path / "a.pdf").read_bytes())
        assert box.decode() == f"{72 * width:g}"
        assert imread(tmp_path / "a.png").shape[1] == 200 * width


def test_the_command_line_writes_columns_and_refuses_what_is_no_paper(tmp_path, capsys):
    file, picture = tmp_path / "a.h5", tmp_path / "a.png"
    store.save(file, results()["sharpness"])
    for words in (["--columns", "1", "--style", "talk"], ["--columns", "3"]):
        assert cli.main(["plot", str(file), "-o", str(picture), *words]) == 2
        assert "--columns" in capsys.readouterr().err
        assert not picture.exists()
    assert cli.main(["plot", str(file), "-o", str(picture), "--columns", "1", "--dark"]) == 0
    assert imread(picture).shape[1] == 650


def test_labels_that_touch_are_left_out_evenly_whatever_letters_they_have():
    spectrum = dataclasses.replace(classes(60, steps=8, probes=1), parts=tuple(f"{'gay'[c % 3]}{c}" for c in range(60)))
    with plots.styled(columns=1):
        fig = plots.densities(spectrum)
    kept = [tick.get_loc() for tick in fitting.labelled(fig.axes[0].yaxis)]
    assert len(set(np.diff(kept))) == 1


def test_names_leave_room_for_what_they_name_and_keep_their_ends():
    for fig in (other("map"), other("angles of many")):
        image = fig.axes[0]
        assert image.get_window_extent().width > 0.4 * fig.bbox.width
        first = fitting.labelled(image.yaxis)[0].label1.get_text()
        assert first.startswith("an")
        assert first.count("…") == 1
        assert first.endswith("(5,000)")


def test_letters_become_smaller_before_a_word_is_torn():
    fig = theme.figure(0.75, 2)
    text = fig.suptitle("unfathomable", fontsize=9)
    with theme.theme():
        fig.subplots()
        fitting.fit(fig, paper.Room())
    assert text.get_text() == "unfathomable"
    assert 6 <= text.get_fontsize() < 9


def test_ticks_whose_labels_touch_are_left_out_evenly_and_zero_stays():
    ax = theme.figure(1.2, 1.2).subplots()
    ax.set_xlim(-3000, 4000)
    ax.xaxis.set_major_locator(FixedLocator(list(range(-3000, 4001, 1000))))
    ax.figure.draw_without_rendering()
    assert overlapping([tick.label1 for tick in fitting.labelled(ax.xaxis)])
    with theme.theme():
        fitting.fit(ax.figure, paper.Room())
    kept = [tick.get_loc() for tick in fitting.labelled(ax.xaxis)]
    assert 0 in kept
    assert len(set(np.diff(kept))) <= 1
    assert not overlapping([tick.label1 for tick in fitting.labelled(ax.xaxis)])


def test_lines_are_folded_between_words_but_not_in_formulas():
    text = r"eigenvalue $\lambda$ on $s = \mathrm{sign}(\lambda)\, \log(1 + |\lambda|)$ of the loss"
    lines = fitting.folded([text], 1.0, 8, math=True)
    assert len(lines) > 2
    assert " ".join(lines) == text
    assert all(line.count("$") % 2 == 0 for line in lines)
    assert all("\\" not in line for line in lines if "$" not in line)


def test_legends_stand_below_in_one_column_or_where_a_panel_is_missing():
    for name, kind, place in (("spectrum", "summary", "below"), ("sharpness", "rises", "in the grid")):
        fig = of_kind(name, kind, 1)
        empty = [ax for ax in fig.axes if not ax.axison]
        if place == "in the grid":
            (ax,) = empty
            assert len(ax.get_legend().get_texts()) == 3
        else:
            (legend,) = fig.legends
            assert not empty
            assert legend.get_window_extent().y1 <= min(ax.get_window_extent().y0 for ax in fig.axes)


def test_a_narrow_page_has_fewer_panels_in_a_row():
    with plots.styled(columns=1):
        assert grids.grid(4, 4, 12, 3)[2] == grids.grid(3, 3, 12, 3)[2] == 2
        assert grids.grid(2, 2, 8, 3, least=grids.LEAST_MAP)[2] == 1
    with plots.styled(columns=2):
        assert grids.grid(4, 4, 12, 3)[2] == 4
        assert grids.grid(5, 5, 12, 3)[2] == 3  # rows of like lengths
    assert grids.grid(5, 5, 12, 3)[2] == 5


@pytest.mark.parametrize(
    ("name", "columns"),
    [("surface.h5", None), ("sharpness.h5", None), ("gradients.h5", None), ("path.h5", None), ("path.h5", 1)],
)
def test_a_figure_has_the_title_that_is_asked_for_or_no_words_of_its_own(name, columns):
    result = all_kinds()[name]
    draw = next(iter(plots.KIND_FIGURES[drawn_as(result)].values()))

    def words(**style):
        with plots.styled(columns=columns, **style):
            fig = draw(result, None)
        texts = [*fig.texts, *(ax.title for ax in fig.axes)]
        return fig, [text.get_text() for text in texts if text.get_text()]

    (own, said), (named, titled), (bare, nothing) = words(), words(title="of $mine$"), words(caption=False)
    assert "of $mine$" in titled
    assert len(nothing) < len(said)
    assert [ax.get_xlabel() for ax in bare.axes] == [ax.get_xlabel() for ax in own.axes]
    assert not any("Verdict" in text for text in nothing)
    assert any("Verdict" in text for text in titled) == any("Verdict" in text for text in said)
    titles = [ax.get_title() for ax in own.axes if ax.title.get_gid() != "caption"]
    for fig in (named, bare):
        assert [ax.get_title() for ax in fig.axes if ax.title.get_gid() != "caption"] == titles
