"""Figures of trajectories, looked at through the artists they hold."""

import dataclasses

import numpy as np
import pytest
from drawn import above, below, fills, inside
from matplotlib.colors import to_hex
from matplotlib.contour import ContourSet
from refusals import refused
from surfaces import grid, surface

from landscape import cli, plots
from landscape.errors import InputError
from landscape.plots.layout.marks import run_colours
from landscape.results import Trajectory, store
from landscape.results.regroup import regroup

A, B = [[-2.0, 1.0], [-1.0, 0.5], [-0.5, 0.0], [0.0, 0.0]], [[-2.0, 1.0], [-1.0, -0.5], [1.0, -0.75]]
"""Two runs with one start; the first ends at the centre."""


def path(*, extra=(), n_parts=3, **about):
    """Two runs over losses that are planes, so that interpolation is exact: p + 3 + x + 2 y."""
    of = grid(np.linspace(-2.5, 2, 7), np.linspace(-1, 1.5, 6), units=(1, 1), cosine=0.0)
    x, y = np.meshgrid(of.xcoordinates, of.ycoordinates)
    loss = np.stack([p + 5.0 + x + y for p in range(n_parts)])
    positions = np.array([*A, *B, *[position for position in extra]])
    n = len(positions)
    fields = {
        "kind": Trajectory,
        "centre_loss": np.arange(n_parts) + 5.0,
        "axes": ("principal component 1", "principal component 2"),
        "explained": np.array([0.6621, 0.1204]),
        "runs": ("ce", "gsa-gkp"),
        "marks": (*[f"ce/{i}" for i in range(4)], *[f"gsa-gkp/{i}" for i in range(3)], *"tu"[: len(extra)]),
        "mark_run": np.array([0] * 4 + [1] * 3 + [-1] * len(extra)),
        "mark_epoch": np.array([0, 10, 20, 40, 0, 20, 40.0] + [np.nan] * len(extra)),
        "mark_position": positions,
        "mark_distance": np.array([3, 2, 1, 0, 3, 2.5, 0.5] + [0.0] * len(extra)),
        "mark_loss": np.linspace(1, 9, n * n_parts).reshape(n, n_parts),
        "mark_accuracy": np.linspace(0, 1, n * n_parts).reshape(n, n_parts),
    }
    return surface(of, loss, **fields | about)


def paths(ax):
    """The path of each run by its name."""
    return {line.get_label(): line for line in ax.lines if line.get_label() in {"ce", "gsa-gkp"}}


def signs(ax, marker):
    return [
        np.ravel(line.get_data()).tolist()
        for line in ax.lines
        if line.get_marker() == marker and len(line.get_xdata()) == 1
    ]


# On the plane.


def test_each_panel_has_the_contours_of_its_part_under_the_paths_of_all_runs():
    found = path()
    fig = plots.trajectory(found)
    *panels, bar, _ = fig.axes
    assert len(panels) == 3
    assert [ax.get_title().split("\n")[0] for ax in panels] == ["(a) class 0", "(b) class 1", "(c) class 2"]
    for ax in panels:
        np.testing.assert_array_equal(fills(ax).levels, fills(panels[0]).levels)
        drawn = paths(ax)
        np.testing.assert_array_equal(np.transpose(drawn["ce"].get_data()), A)
        np.testing.assert_array_equal(np.transpose(drawn["gsa-gkp"].get_data()), B)
        assert signs(ax, "o") == [[-2, 1], [-2, 1]]
        assert signs(ax, "s") == [[0, 0], [1, -0.75]]
        dots = [line for line in ax.lines if line.get_marker() == "o" and len(line.get_xdata()) > 1]
        assert [len(line.get_xdata()) for line in dots] == [4, 3]
    assert bar.get_ylabel() == "mean loss"
    assert inside(fig)


def test_axes_say_what_principal_components_explain():
    assert plots.trajectory(path()).axes[0].get_xlabel() == "PC 1 (66.2 %)"
    named = path(axes=("PC 1 (66.2 %)", "PC 2 (12.0 %)"))
    assert plots.trajectory(named).axes[0].get_ylabel() == "PC 2 (12.0 %)"
    towards = path(axes=("towards t1", "towards t2"), explained=np.full(2, np.nan))
    assert plots.trajectory(towards).axes[0].get_xlabel() == "towards t1"


def test_below_the_panels_stands_how_far_each_checkpoint_is_from_the_plane():
    found = path()
    ax = plots.trajectory(found, ["class 1"]).axes[-1]
    first, second = ax.lines
    np.testing.assert_array_equal(first.get_data(), [[0, 10, 20, 40], [3, 2, 1, 0]])
    np.testing.assert_array_equal(second.get_data(), [[0, 20, 40], [3, 2.5, 0.5]])
    assert ax.get_ylabel() == "distance\nfrom the plane"
    assert ax.get_xlabel() == "epoch"
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["ce", "gsa-gkp"]


def test_a_run_has_one_colour_in_all_axes_and_its_own():
    fig = plots.trajectory(path(), ["class 0"])
    on_plane = [line.get_color() for line in paths(fig.axes[0]).values()]
    assert on_plane == [line.get_color() for line in fig.axes[-1].lines]
    assert len({to_hex(colour) for colour in on_plane}) == 2
    many = dataclasses.replace(path(), runs=tuple(f"run {r}" for r in range(9)))
    assert len(set(run_colours(many))) == 9


def test_checkpoints_without_epochs_are_in_their_order():
    found = path(mark_epoch=np.array([0, 10, 20, 40, 0, np.nan, 40]))
    ax = plots.trajectory(found, ["class 0"]).axes[-1]
    assert [line.get_xdata().tolist() for line in ax.lines] == [[0, 1, 2, 3], [0, 1, 2]]
    assert ax.get_xlabel() == "checkpoint, in order"
    backwards = path(mark_epoch=np.array([0, 10, 5, 40, 0, 20, 40.0]))
    assert plots.trajectory(backwards, ["class 0"]).axes[-1].get_xlabel() == "checkpoint, in order"


def test_checkpoints_on_no_path_are_named_and_those_on_one_where_the_reader_asks():
    found = path(extra=[[1, 1], [-1, -0.9]])
    ax = plots.trajectory(found, ["class 0"]).axes[0]
    assert signs(ax, "D") == [[1, 1], [-1, -0.9]]
    assert [text.get_text() for text in ax.texts if text.get_text() in found.marks] == ["t", "u"]
    named = {"ce/0": "θ(t₀)", "t": "θ(t₁)"}
    ax = plots.trajectory(found, ["class 0"], names=named).axes[0]
    places = {text.get_text(): tuple(text.xy) for text in ax.texts if hasattr(text, "xy")}
    assert (places["θ(t₀)"], places["θ(t₁)"], places["u"]) == ((-2, 1), (1, 1), (-1, -0.9))
    assert "ce/1" not in places
    through = dataclasses.replace(found, axes=("towards t", "towards ce/1"), explained=np.full(2, np.nan))
    ax = plots.trajectory(through, ["class 0"], names=named).axes[0]
    assert [ax.get_xlabel(), ax.get_ylabel()] == ["towards θ(t₁)", "towards ce/1"]


def test_a_run_of_one_checkpoint_has_no_path_but_a_name():
    found = path(mark_run=np.array([0, 0, 0, 0, 0, 0, 1]), marks=(*"abcdef", "best of the tail"))
    ax = plots.trajectory(found, ["class 0"]).axes[0]
    assert list(paths(ax)) == ["ce"]
    assert signs(ax, "D") == [[1, -0.75]]
    assert "best of the tail" in [text.get_text() for text in ax.texts]


def test_the_checkpoint_has_a_cross_unless_a_path_ends_there():
    assert not signs(plots.trajectory(path(), ["class 0"]).axes[0], "+")
    elsewhere = path(mark_position=np.array([*A, *B]) + 0.1)
    fig = plots.trajectory(elsewhere, ["class 0"])
    assert signs(fig.axes[0], "+") == [[0, 0]]
    assert below(fig).startswith("+ checkpoint")


def test_a_path_beyond_the_grid_is_cut_off_and_counted():
    fig = plots.trajectory(path(mark_position=np.array([*A, *B]) * 1.4), ["class 0"])
    assert "3 of 7 marks lie outside" in below(fig)
    assert fig.axes[0].get_xlim() == (-2.5, 2)


def test_paths_of_unknown_distance_have_no_axes_for_it_and_a_legend_of_their_own():
    fig = plots.trajectory(path(mark_distance=np.full(7, np.nan)), ["class 0"])
    assert len(fig.axes) == 2
    assert [text.get_text() for text in fig.axes[0].get_legend().get_texts()] == ["ce", "gsa-gkp"]


def test_paths_without_a_surface_are_drawn_and_said_to_be():
    nothing = {"xcoordinates": np.zeros(0), "ycoordinates": np.zeros(0), "computed": np.zeros((0, 0), dtype=bool)}
    nothing |= {name: np.zeros((3, 0, 0)) for name in ("loss", "accuracy")}
    found = dataclasses.replace(path(), **nothing)
    fig = plots.trajectory(found)
    assert not [c for c in fig.axes[0].collections if isinstance(c, ContourSet)]
    assert list(paths(fig.axes[0])) == ["ce", "gsa-gkp"]
    left, right = fig.axes[0].get_xlim()
    assert left < -2 < 1 < right
    assert "the loss on the plane was not computed" in below(fig)
    dashed = [line for line in plots.trajectory_along(found).axes[0].lines if line.get_linestyle() == "--"]
    assert all(np.isnan(line.get_ydata()).all() for line in dashed)


def test_a_trajectory_is_drawn_to_scale_where_that_is_asked_for():
    ax = plots.trajectory(path(), ["class 0"], euclidean=True).axes[0]
    assert ax.get_aspect() == 1
    box = ax.get_window_extent()
    assert box.height / box.width == pytest.approx(2.5 / 4.5, rel=0.02)


def test_the_title_names_no_method_where_runs_may_be_of_several():
    source = {"method": "ce", "model": "resnet32", "split": "train"}
    assert above(plots.trajectory(path(provenance=source), ["class 0"])) == "resnet32, train samples"


def test_long_names_and_many_classes_break_nothing():
    found = path(runs=("$" * 60, "a run $with$ a name of sixty characters or more, and then some"))
    assert inside(plots.trajectory(found))
    assert inside(plots.trajectory_along(found))
    counts = np.linspace(500, 5, 100).astype(int)
    names = tuple(f"class {p}" for p in range(100))
    many = path(n_parts=100, parts=names, n_samples=counts, train_counts=counts)
    fig = plots.trajectory(many)
    assert [ax.get_title().split("\n")[0] for ax in fig.axes[:3]] == ["(a) many", "(b) medium", "(c) few"]
    assert inside(fig)
    grouped = plots.trajectory_along(many)
    assert len([line for line in grouped.axes[0].lines if line.get_linestyle() == "-"]) == 3
    each = plots.trajectory_along(regroup(many, "class"))
    assert next(text.get_text() for text in each.axes[-1].get_yticklabels()) == "class 0 (500)"
    assert inside(each)


# Along the paths.


def test_true_losses_are_solid_and_those_of_the_surface_at_the_projections_dashed():
    found = path()
    fig = plots.trajectory_along(found)
    assert len(fig.axes) == 6  # loss, accuracy and distance of two runs
    for k, (own, epochs, positions) in enumerate(((range(4), [0, 10, 20, 40], A), (range(4, 7), [0, 20, 40], B))):
        loss, accuracy, distance = fig.axes[k::2]
        solid = [line for line in loss.lines if line.get_linestyle() == "-"]
        dashed = [line for line in loss.lines if line.get_linestyle() == "--"]
        for p in range(3):
            np.testing.assert_array_equal(solid[p].get_data(), [epochs, found.mark_loss[own, p]])
            expected = [p + 5 + x + y for x, y in positions]
            np.testing.assert_allclose(dashed[p].get_ydata(), expected, rtol=1e-12)
            assert solid[p].get_color() == dashed[p].get_color()
        np.testing.assert_array_equal(accuracy.lines[0].get_ydata(), found.mark_accuracy[own, 0])
        np.testing.assert_array_equal(distance.lines[0].get_ydata(), found.mark_distance[own])
        assert loss.get_title() == found.runs[k]
    assert fig.axes[0].get_ylim() == fig.axes[1].get_ylim()
    assert fig.axes[0].get_xlim() == fig.axes[5].get_xlim()
    assert [text.get_text() for text in fig.axes[1].get_legend().get_texts()] == [
        "class 0 (500)", "class 1 (50)", "class 2 (5)",
    ]  # fmt: skip
    assert inside(fig)


def test_the_surface_tells_nothing_outside_its_grid_or_in_a_hole():
    found = path(mark_position=np.array([*A, *B]) * 1.4)
    dashed = next(line for line in plots.trajectory_along(found).axes[0].lines if line.get_linestyle() == "--")
    assert np.isnan(dashed.get_ydata()).tolist() == [True, False, False, False]
    hole = path()
    hole = dataclasses.replace(hole, loss=np.where(hole.xcoordinates < -1.5, np.nan, hole.loss))
    dashed = next(line for line in plots.trajectory_along(hole).axes[0].lines if line.get_linestyle() == "--")
    assert np.isnan(dashed.get_ydata()).tolist() == [True, False, False, False]


def test_errors_are_bands_along_the_paths_and_a_map_below_them():
    plain = path()
    errors = {
        f"{what}_stderr": getattr(plain, what) / 8 for what in ("loss", "centre_loss", "mark_loss", "mark_accuracy")
    }
    found = dataclasses.replace(plain, **errors)
    loss, _, accuracy, *_ = plots.trajectory_along(found, ["class 1"], errors=True).axes
    for ax, values in ((loss, found.mark_loss[:4, 1]), (accuracy, found.mark_accuracy[:4, 1])):
        (band,) = ax.collections
        ends = band.get_paths()[0].vertices
        for epoch, value in zip((0, 10, 20, 40), values, strict=True):
            own = ends[ends[:, 0] == epoch, 1]
            assert (own.min(), own.max()) == pytest.approx((value * 7 / 8, value * 9 / 8))
    assert not plots.trajectory_along(found).axes[0].collections
    *panels, bar, _ = plots.trajectory(found, errors=True).axes
    assert fills(panels[0]).levels[-1] < found.loss.min()
    assert bar.get_ylabel() != "mean loss"
    assert paths(panels[0]).keys() == {"ce", "gsa-gkp"}
    for figure in (plots.trajectory, plots.trajectory_along):
        with refused(InputError, "errors"):
            figure(plain, errors=True)


def test_paths_of_unknown_losses_show_those_of_the_surface():
    foreign = path(mark_loss=np.full((7, 3), np.nan), mark_accuracy=np.full((7, 3), np.nan))
    fig = plots.trajectory_along(foreign, ["class 0"])
    assert np.isfinite(fig.axes[0].lines[1].get_ydata()).all()


def test_what_has_no_path_or_no_part_is_refused():
    lonely = path(mark_run=np.array([0, 1, -1, -1, -1, -1, -1]))
    with pytest.raises(InputError, match="no run has two checkpoints, so that there is no path to draw"):
        plots.trajectory_along(lonely)
    for figure in (plots.trajectory, plots.trajectory_along):
        with refused(InputError, "cat", 0):
            figure(path(), ["cat"])
        with refused(InputError, vmin=5, vmax=4):
            figure(path(), vmin=5, vmax=4)


# The command.


@pytest.mark.parametrize("kind", plots.KIND_FIGURES["trajectory"])
def test_plot_draws_each_kind_of_a_trajectory(tmp_path, capsys, kind):
    file = tmp_path / "path.h5"
    store.save(file, path())
    assert cli.main(["plot", str(file), "--kind", kind, "--groups", "head-tail"]) == 0
    assert capsys.readouterr().out == f"{tmp_path / f'path.{kind}.png'}\n"
    assert (tmp_path / f"path.{kind}.png").read_bytes().startswith(b"\x89PNG")


def test_the_default_figure_of_a_trajectory_is_its_path(tmp_path, capsys):
    file = tmp_path / "path.h5"
    store.save(file, path())
    assert cli.main(["plot", str(file), "--levels", "5", "--euclidean", "--linear", "--vmax", "6"]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'path.path.png'}\n"


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--kind", "along", "--levels", "5"], "--levels is for --kind contour, accuracy, overlay, path; leave it out"),
        (["--kind", "along", "--euclidean"], "--euclidean is for --kind contour"),
        (["--kind", "contour"], "--kind contour is not for a trajectory: choose path, along"),
        (["--vmin", "9", "--vmax", "1"], "--vmin 9 is not below --vmax 1"),
        (["--zmax", "1"], "--zmax is for --kind 3d; leave it out for --kind path"),
    ],
)
def test_plot_refuses_what_a_path_does_not_have(tmp_path, capsys, words, line):
    file = tmp_path / "path.h5"
    store.save(file, path())
    assert cli.main(["plot", str(file), *words]) == 2
    assert line in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["path.h5"]
