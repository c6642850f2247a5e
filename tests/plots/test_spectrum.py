"""Figures, looked at through the artists they hold."""

import dataclasses
import itertools
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import seaborn
from matplotlib import rcParams
from matplotlib.figure import Figure
from matplotlib.image import imread
from matplotlib.mathtext import MathTextParser
from refusals import refused
from scipy.integrate import trapezoid
from synthetic import bulk, classes, spectrum_of

from landscape import plots
from landscape.errors import InputError, StoreError
from landscape.plots.figures.broadened import FLOOR
from landscape.plots.layout import theme
from landscape.plots.layout.symbols import matrix
from landscape.results import quadrature, written
from landscape.results.column import Column


def curve(ax):
    (line,) = ax.lines
    return line.get_xdata(), line.get_ydata()


def corner(ax):
    (text,) = ax.texts
    return text.get_text()


def drawn(fig):
    """Render everything, so that what only fails there fails here."""
    fig.draw_without_rendering()
    return fig


@pytest.mark.parametrize("axis", ["linear", "symlog"])
def test_the_area_under_the_curve_is_one_in_the_unit_that_the_label_names(axis):
    ax = plots.density(classes(1), axis=axis, width=0.05)
    x, y = curve(ax)
    position = np.sign(x) * np.log10(1 + np.abs(x)) if axis == "symlog" else x
    assert trapezoid(y, position) == pytest.approx(1, abs=1e-6)
    assert ax.get_ylabel() == {"linear": r"density per unit of $\lambda$", "symlog": "density per unit of $s$"}[axis]
    assert (r"\log_{10}(1 + |\lambda|)" in ax.get_xlabel()) == (axis == "symlog")


def test_the_symlog_axis_puts_eigenvalues_where_the_label_says():
    ax = plots.density(classes(1), linear=0.5)
    assert r"|\lambda| / 0.5" in ax.get_xlabel()
    u = ax.transData.transform([[x, 1] for x in (0.0, 0.5, 4.5)])[:, 0]
    assert (u[1] - u[0]) / (u[2] - u[0]) == pytest.approx(np.log10(2))


def test_the_band_is_one_standard_deviation_and_ends_at_the_floor():
    spectrum = classes(1, probes=3)
    ax = plots.density(spectrum)
    (band,) = ax.collections
    _, y = curve(ax)
    nodes, weights = quadrature.nodes_and_weights(spectrum.alpha[0], spectrum.beta[0], spectrum.steps[0])
    expected = quadrature.density(nodes, weights, axis="symlog")
    edges = band.get_paths()[0].vertices[:, 1]
    assert np.allclose(y, expected.mean)
    assert edges.max() == pytest.approx((expected.mean + expected.spread).max())
    assert edges.min() == ax.get_ylim()[0] == FLOOR


def test_one_probe_has_no_band_and_no_error_of_the_trace():
    ax = plots.density(classes(1, probes=1))
    assert not ax.collections
    assert corner(ax).endswith("± ?")


def test_the_floor_lets_one_eigenvalue_of_many_be_seen():
    spectrum = dataclasses.replace(classes(1), size=10**12)
    peak = 1e-12 / (0.1 * np.sqrt(2 * np.pi))
    assert plots.density(spectrum, width=0.1).get_ylim()[0] < peak < 1e-7


def test_the_corner_says_when_lambda_max_has_not_converged():
    spectrum = classes(2)
    first = corner(plots.density(spectrum, "class 0"))
    assert first.startswith("$\\lambda_{\\max}$ = 2.000\nTr($H$) = ")
    unsure = dataclasses.replace(
        spectrum, converged=np.array([False, True]), lambda_max_residual=np.array([0.03, 0]), operator="ggn", symbol="G"
    )
    text = corner(plots.density(unsure, "class 0"))
    assert "2.000 ± 0.030, not converged" in text
    assert "Tr($G$)" in text


@pytest.mark.parametrize(
    ("symbol", "shown"),
    [
        ("H - 2 G", "(H - 2 G)"),
        (r"J^\top J", r"(J^\top J)"),
        (r"G_\gamma", r"{G_\gamma}"),
        (r"\hat{F}", r"{\hat{F}}"),
        *((wrong, "A") for wrong in ("", "H^", r"\evil{x}", "H$ $G", "H\nG{", "H" * 81)),
    ],
)
def test_a_symbol_is_drawn_as_it_is_given_and_what_is_no_formula_as_a(symbol, shown):
    found = dataclasses.replace(classes(1), symbol=symbol)
    assert matrix(found) == shown
    assert f"Tr(${shown}$)" in corner(plots.density(found))
    MathTextParser("path").parse(f"${matrix(found)}_b$")  # maps give it an index


def test_the_title_counts_samples_and_does_not_read_names_as_formulas():
    spectrum = dataclasses.replace(
        classes(2), parts=("a $x$ $ b", "z" * 200), n_samples=np.array([1000, 7]), n_used=np.array([812, 7])
    )
    ax = plots.density(spectrum, "a $x$ $ b")
    assert ax.get_title() == "a $x$ $ b\nn = 1,000 (5,000 in training)\n812 summed over"
    assert not ax.title.get_parse_math()
    drawn(ax.figure)
    assert len(plots.density(spectrum, "z" * 200).get_title().split("\n")[0]) == 56


def test_density_draws_on_the_axes_it_is_given():
    ax = theme.figure(3, 3).subplots()
    assert plots.density(classes(1), ax=ax) is ax


def test_panels_share_width_and_axes():
    spectrum = classes(5)
    fig = drawn(plots.densities(spectrum))
    assert len(fig.axes) == 5
    assert len({ax.get_xlim() for ax in fig.axes}) == len({ax.get_ylim() for ax in fig.axes}) == 1
    # class 0 ends at 2, class 4 at 63: with its own width the first peak would be higher
    _, together = curve(fig.axes[0])
    _, alone = curve(plots.density(spectrum, "class 0"))
    assert together.max() < 0.9 * alone.max()


@pytest.mark.parametrize("axis", ["linear", "symlog"])
def test_a_part_with_hardly_any_curvature_is_drawn_with_the_width_of_all(axis):
    spectrum = spectrum_of({"fitted": bulk(1e-5, size=60), "tail": bulk(50.0, size=60, seed=1)}, steps=5)
    figures = plots.densities(spectrum, axis=axis), plots.density_grid({"a": spectrum}, spectrum.parts, axis=axis)
    for fig in figures:
        x, y = curve(fig.axes[0])
        position = quadrature.symlog(x) if axis == "symlog" else x
        assert trapezoid(y, position) == pytest.approx(1, abs=1e-6)
    for width in (1e-9, 1e6):  # which show nothing of any part
        with refused(InputError, "width"):
            plots.densities(spectrum, axis=axis, width=width)
        with refused(InputError, "width"):
            plots.density_grid({"a": spectrum}, spectrum.parts, axis=axis, width=width)


def test_parts_are_drawn_in_the_order_asked_for():
    fig = plots.densities(classes(5), ["class 3", "class 1"], columns=1)
    assert [ax.get_title().split("\n")[0] for ax in fig.axes] == ["class 3", "class 1"]
    assert fig.axes[0].get_gridspec().ncols == 1


@pytest.mark.parametrize("columns", [None, 5])
def test_many_parts_become_a_map_unless_columns_are_asked_for(columns):
    fig = plots.densities(classes(25, steps=5), columns=columns)
    assert len(fig.axes) == (25 if columns else 4)  # map, lambda_max, trace, colour bar


def test_the_map_has_the_frequent_classes_on_top_and_its_numbers_beside():
    spectrum = classes(30, steps=6)
    rng = np.random.default_rng(0)
    counts = rng.permutation(30) + 1
    spectrum = dataclasses.replace(spectrum, train_counts=counts, converged=counts > 3)
    fig = drawn(plots.densities(spectrum))
    image, top, _, _ = fig.axes
    order = np.argsort(-counts)
    labels = [text.get_text() for text in image.get_yticklabels()]
    assert labels == [f"class {p} ({counts[p]})" for p in order]
    assert image.get_ylim() == (29.5, -0.5)
    (mesh,) = image.collections
    values = mesh.get_array().reshape(30, -1)
    middle = np.array([values[row] @ np.arange(values.shape[1]) / values[row].sum() for row in range(30)])
    assert np.corrcoef(middle, order)[0, 1] > 0.5  # curvature grows with the class, so its mass lies further right
    _, sure, unsure = top.collections
    assert np.allclose(sure.get_offsets()[:, 0], spectrum.lambda_max[order[:-3]])
    assert np.allclose(unsure.get_offsets()[:, 0], spectrum.lambda_max[order[-3:]])
    assert "hollow: not converged" in top.get_xlabel()


def test_a_width_that_a_map_cannot_show_is_refused():
    with refused(InputError, 30, width=0.0001):
        plots.densities(classes(30, steps=3), width=1e-4)


@pytest.mark.parametrize("axis", ["linear", "symlog"])
@pytest.mark.parametrize("n", [1, 2, 25])
def test_a_zero_hessian_is_drawn(n, axis):
    spectrum = spectrum_of({f"part {i}": np.zeros(9) for i in range(n)}, steps=4)
    drawn(plots.densities(spectrum, axis=axis))
    drawn(plots.summary(spectrum))


@pytest.mark.parametrize("top", [1e-9, 1e-3, 1.0, 1e9])
def test_ticks_are_readable_at_any_scale(top):
    ax = plots.density(spectrum_of({"part": bulk(top)}))
    drawn(ax.figure)
    low, high = ax.get_xlim()
    ticks = [text for text in ax.get_xticklabels() if low <= text.get_position()[0] <= high]
    assert len(ticks) >= 3
    boxes = sorted((text.get_window_extent() for text in ticks), key=lambda box: box.x0)
    assert all(a.x1 < b.x0 for a, b in itertools.pairwise(boxes))


def test_summary_puts_each_value_over_its_training_samples():
    spectrum = classes(3)
    top, trace = drawn(plots.summary(spectrum)).axes
    for ax, values, errors in (
        (top, spectrum.lambda_max, spectrum.lambda_max_residual),
        (trace, spectrum.trace, spectrum.trace_stderr),
    ):
        for p, container in enumerate(ax.containers):
            point, _, (bar,) = container
            assert point.get_xydata().tolist() == [[spectrum.train_counts[p], values[p]]]
            assert np.allclose(np.ptp(bar.get_segments()[0][:, 1]), 2 * errors[p])
        assert ax.get_yscale() == "log"


def test_summary_names_up_to_twelve_parts():
    assert [t.get_text() for t in plots.summary(classes(12, steps=3)).legends[0].get_texts()][-1] == "class 11"
    assert not plots.summary(classes(13, steps=3)).legends


def test_summary_sets_parts_of_equal_counts_side_by_side():
    spectrum = dataclasses.replace(classes(3), train_counts=np.full(3, 50))
    ax = plots.summary(spectrum).axes[0]
    assert [c[0].get_xdata()[0] for c in ax.containers] == [0, 1, 2]
    assert "each with 50 training samples" in ax.get_xlabel()


def test_summary_is_linear_where_a_value_is_not_positive():
    spectrum = classes(2)
    spectrum = dataclasses.replace(spectrum, trace=np.array([-1.0, 5.0]), train_counts=np.array([0, 50]))
    _, trace = drawn(plots.summary(spectrum)).axes
    assert (trace.get_xscale(), trace.get_yscale()) == ("linear", "linear")


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda s: plots.density(s), (3, 0)),
        (lambda s: plots.density(s, "cat"), ("cat",)),
        (lambda s: plots.densities(s, ["class 1", "cat"]), ("cat",)),
        (lambda s: plots.densities(s, []), ("part",)),
        (lambda s: plots.summary(s, []), ("part",)),
        (lambda s: plots.densities(s, columns=0), ("columns", 0)),
        (lambda s: plots.densities(s, axis="log"), ("axis", "log")),
        (lambda s: plots.densities(s, width="wide"), ("width", "wide")),
        (lambda s: plots.density(s, "class 0", linear=0), (0,)),
    ],
)
def test_bad_options_are_named(call, words):
    with refused(InputError, *words):
        call(classes(3, steps=3))


def test_one_figure_gives_the_same_bytes_twice(tmp_path):
    begin = {"a.png": b"\x89PNG", "a.pdf": b"%PDF", "a.svg": b"<?xml", "b.PNG": b"\x89PNG"}
    for folder in ("first", "second"):
        (tmp_path / folder).mkdir()
        fig = plots.densities(classes(2, steps=4))
        for name in begin:
            plots.write(fig, tmp_path / folder / name)
    for name, letters in begin.items():
        first, second = ((tmp_path / folder / name).read_bytes() for folder in ("first", "second"))
        assert first == second, name
        assert first.startswith(letters)
    for folder in ("first", "second"):
        assert {path.name for path in (tmp_path / folder).iterdir()} == set(begin)  # nothing is left aside


class Failing(Figure):
    """Fails when half of it is written."""

    def savefig(self, file, **_):
        file.write(b"half")
        raise ZeroDivisionError


def test_a_figure_that_fails_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(b"old")
    with pytest.raises(ZeroDivisionError):
        plots.write(Failing(), path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_figure_replaces_what_a_link_points_to(tmp_path):
    (tmp_path / "link.png").symlink_to(tmp_path / "real.png")
    plots.write(theme.figure(1, 1), tmp_path / "link.png")
    assert (tmp_path / "link.png").is_symlink()
    assert (tmp_path / "real.png").read_bytes().startswith(b"\x89PNG")


def test_where_a_figure_cannot_go_is_said(tmp_path):
    fig = theme.figure(1, 1)
    with refused(InputError, "fig.jpg"):
        plots.write(fig, "fig.jpg")
    with refused(StoreError, "none/fig.png"):
        plots.write(fig, tmp_path / "none" / "fig.png")


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (38.1512, 0.0213, "38.15 ± 0.02"),
        (196.49, 2.9, "196.5 ± 2.9"),
        (5021.4, 312.0, "5021 ± 312"),
        (2.0, 4e-15, "2.000 ± 4e-15"),
        (2.17e6, 2e4, "2.17e+06 ± 2e+04"),
        (-1e-5, 3e-7, "-1e-05 ± 3e-07"),
        (196.49, np.nan, "196.5 ± ?"),
        (0.0, 0.0, "0"),
        (0.0, 0.02, "0.000 ± 0.020"),
        (12.0, 0.0, "12.00"),
        (np.nan, np.nan, "nan ± ?"),
        (np.inf, 1.0, "inf ± 1"),
        (2.0, -4e-15, "2.000 ± ?"),
        (2.0, np.inf, "2.000 ± ?"),
    ],
)
def test_numbers_are_written_with_the_digits_their_errors_leave(value, error, text):
    assert written.with_error(value, error) == text


@pytest.mark.parametrize(
    ("share", "error", "text"),
    [
        (0.875, 0.04, "87.5 ± 4"),
        (0.875, 0.0, "87.5"),
        (0.0, np.nan, "0.0 ± ?"),
        (0.0, np.inf, "0.0 ± ?"),
        (0.0, -0.1, "0.0 ± ?"),
    ],
)
def test_shares_have_their_errors_in_percent_and_say_which_are_unknown(share, error, text):
    assert written.share_with_error(share, error) == text
    assert Column(head="x", field="x", form="percent").written(share, error) == text


def test_names_are_cut_in_the_middle():
    assert written.shorten("short\nname", 10) == "short name"
    assert written.shorten("abcdefghijkl", 7) == "abc…jkl"
    assert len(written.shorten("x" * 99, 28)) == 28


def test_plots_leave_matplotlibs_defaults_and_need_neither_torch_nor_pyplot_figures():
    script = (
        "import sys, matplotlib; before = dict(matplotlib.rcParams)\n"
        "sys.path.insert(0, sys.argv[1])\n"
        "from synthetic import classes; from landscape import plots\n"
        "plots.densities(classes(2)); plots.summary(classes(2))\n"
        "from matplotlib import pyplot\n"
        "assert 'torch' not in sys.modules\n"
        "assert not pyplot.get_fignums()\n"
        "assert dict(matplotlib.rcParams) == before\n"
    )
    folder = str(Path(__file__).parents[1])
    subprocess.run([sys.executable, "-c", script, folder], check=True)


def test_a_grid_has_a_row_for_each_part_and_one_width_for_all():
    """The layout of the paper's Figure 9."""
    spectra = {
        name: spectrum_of({"head": bulk(top), "tail": bulk(4 * top, seed=1)}, steps=8)
        for name, top in (("CE", 20.0), ("SAM", 5.0), ("GSA", 4.0))
    }
    fig = drawn(plots.density_grid(spectra, ("head", "tail")))
    assert [ax.get_title().split("\n")[0] for ax in fig.axes] == [
        f"{name}: {part}" for part in ("head", "tail") for name in spectra
    ]
    assert len({ax.get_xlim() for ax in fig.axes}) == len({ax.get_ylim() for ax in fig.axes}) == 1
    spectrum = spectra["CE"]
    corner = fig.axes[3].texts[0].get_text()
    assert f"{spectrum.lambda_max[1]:.2f}" in corner
    x, y = fig.axes[3].lines[0].get_data()
    assert trapezoid(y, quadrature.symlog(x)) == pytest.approx(1, rel=0.01)
    for few, rows in (({}, ("head",)), (spectra, ())):
        with pytest.raises(InputError, match="needs at least one spectrum and one part"):
            plots.density_grid(few, rows)
    with refused(InputError, "x"):
        plots.density_grid(spectra, ("x",))


def test_limits_are_the_ends_of_the_axis_and_what_lies_beyond_is_said():
    spectrum = spectrum_of({"head": bulk(20.0), "tail": bulk(80.0, seed=1)}, steps=8)
    free = drawn(plots.density_grid({"CE": spectrum}, ("head", "tail")))
    within = drawn(plots.density_grid({"CE": spectrum}, ("head", "tail"), limits=(-100, 100)))
    assert [ax.get_xlim() for ax in within.axes] == [pytest.approx((-100, 100))] * 2
    for ax, other in zip(within.axes, free.axes, strict=True):  # nothing else changes
        np.testing.assert_array_equal(ax.lines[0].get_data(), other.lines[0].get_data())
        assert ax.get_ylim() == other.get_ylim()
    assert "beyond" not in within.get_supxlabel()
    for fig in (
        plots.density_grid({"CE": spectrum}, ("head", "tail"), limits=(-100, 40)),
        plots.densities(spectrum, limits=(-100, 40)),
    ):
        assert f"beyond the axis: up to {written.number(spectrum.lambda_max[1])}" in fig.get_supxlabel()
    linear = plots.density(spectrum, "head", axis="linear", limits=(0.5, 10))
    assert linear.get_xlim() == pytest.approx((0.5, 10))
    nodes = quadrature.nodes_and_weights(spectrum.alpha[0], spectrum.beta[0], spectrum.steps[0])[0]
    ends = [written.number(value).replace("-", "\N{MINUS SIGN}") for value in (np.nanmin(nodes), np.nanmax(nodes))]
    assert linear.get_xlabel().endswith(f"beyond the axis: down to {ends[0]} and up to {ends[1]}")
    image = plots.densities(classes(30, steps=6), limits=(-10, 2000)).axes[0]
    assert image.get_xlim() == pytest.approx((-10, 2000))
    for limits in ((1, 1), (2, 1), (0, np.inf), (np.nan, 1)):
        with pytest.raises(InputError, match="the axis of the eigenvalues cannot go from"):
            plots.density(spectrum, "head", limits=limits)


def test_all_colours_of_curves_are_seen_on_dark_ground_and_those_on_light_ground_stay():
    light = theme.palette()
    with plots.styled(dark=True), theme.theme():
        ground = rcParams["axes.facecolor"]
        dark = theme.palette()
        for colour in (*dark, *theme.shades(100), theme.muted()):
            assert theme.contrast(colour, ground) >= 3
    assert theme.contrast("white", "black") == pytest.approx(21)  # the guidelines' own examples
    assert theme.contrast("#767676", "white") == pytest.approx(4.54, abs=0.005)
    assert light == theme.palette() == list(seaborn.color_palette("colorblind").as_hex())
    kept = [a for a, b in zip(light, dark, strict=True) if a == b]
    assert 5 <= len(kept) < 10  # only those that need it


def test_a_style_holds_within_its_block_and_on_the_written_ground(tmp_path):
    spectrum = classes(2, steps=5)
    plain = plots.density(spectrum, "class 0")
    with plots.styled("talk", dark=True):
        ax = plots.density(spectrum, "class 0")
        plots.write(ax.figure, tmp_path / "dark.png")
    assert ax.title.get_fontsize() == pytest.approx(1.25 * plain.title.get_fontsize())
    assert plots.density(spectrum, "class 0").title.get_fontsize() == plain.title.get_fontsize()
    assert imread(tmp_path / "dark.png")[0, 0, :3].max() < 0.2
    plots.write(plain.figure, tmp_path / "light.png")
    assert imread(tmp_path / "light.png")[0, 0, :3].min() > 0.9
    with (
        refused(InputError, style="poster"),
        plots.styled("poster"),
    ):
        pass


def test_a_figure_of_another_kind_of_result_is_refused_by_the_name_of_the_argument():
    with refused(InputError, "surface"):
        plots.surface(classes(2, steps=3))
    with refused(InputError, "linear", 1):
        plots.density(classes(2, steps=3), linear="1")


def test_eigenvalues_of_a_matrix_without_data_have_no_unit_of_a_loss():
    found = spectrum_of({"a": np.linspace(1, 2, 30)})
    without = dataclasses.replace(found, n_samples=np.array([np.nan]))
    assert "units of the loss" in plots.density(found).get_xlabel()
    assert "units of the loss" not in plots.density(without).get_xlabel()
