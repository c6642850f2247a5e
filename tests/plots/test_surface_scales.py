"""Levels, colours and cells of surfaces: their scales hold all that is not clipped, and what is clipped is said."""

import dataclasses

import numpy as np
import pytest
from drawn import below, fills
from matplotlib.collections import QuadMesh
from planes import is_grey, pixel
from refusals import refused
from surfaces import grid, paraboloid, surface, three_classes

from landscape import plots
from landscape.errors import InputError
from landscape.plots.layout.scales import scale

# Scales.


def test_levels_are_logarithmic_where_the_loss_spans_decades():
    spread = np.geomspace(0.02, 20, 50)
    found = scale(spread)
    assert found.log
    np.testing.assert_allclose(found.levels, [0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20])
    linear = scale(np.linspace(1, 6, 9))
    assert not linear.log
    np.testing.assert_allclose(linear.levels, np.arange(1, 6.1, 0.5))
    assert not scale(spread, log=False).log
    assert scale(np.array([0.1, 2.9])).log is False  # 29 times
    assert scale(np.array([0.1, 3.1])).log is True


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("values", [[2.0, 2.0], [1e-9, 1e-9], [1.0, 1.1], [3e-7, 8e4], [0.017, 13.3], [999.9, 1e3]])
@pytest.mark.parametrize("n", [2, 7, 10, 60])
def test_levels_ascend_and_hold_all_that_is_not_clipped(values, n, log):
    found = scale(np.array(values), levels=n, log=log)
    assert len(found.levels) >= 2
    assert (np.diff(found.levels) > 0).all()
    assert found.high >= values[1]
    if not log or values[0] > 1e-4 * min(1, values[1]):
        assert found.low <= values[0]
        assert found.notes == []
    assert len(found.levels) <= max(2.5 * n, 4)
    assert (found.levels > 0).all() or not log


@pytest.mark.parametrize(
    "values", [(np.nextafter(0.1, 0), np.nextafter(0.7, 1)), (0.1 * (1 - 1e-12), 10 * (1 + 1e-12))]
)
def test_a_loss_that_misses_the_last_level_by_rounding_is_not_called_clipped(values):
    found = scale(np.array(values))
    assert found.low <= values[0] < values[1] <= found.high
    assert found.extend == "neither"


@pytest.mark.parametrize(
    ("values", "low"),
    [([0, 1e-12, 0.3, 20], 1e-4), ([0, 1e-9, 1e-3], 1e-7), ([2e-5, 3e8], 1e-4), ([0.004, 3e8], 0.004)],
)
def test_a_logarithmic_scale_of_zeros_begins_where_losses_are_nothing_and_says_so(values, low):
    """Below 1e-4, and 1e-4 of the highest; a loss that explodes elsewhere hides none at the minimum."""
    found = scale(np.array(values))
    assert found.log
    assert 0.1 * low <= found.low <= low
    assert found.low > 0
    assert (found.extend, len(found.notes)) == (("min", 1) if found.low > values[0] else ("neither", 0))
    if found.notes:
        assert found.notes == [f"clipped: loss below {found.low:.4g} (down to {values[0]:.3g})"]


def test_clipping_is_stated_and_seen():
    found = three_classes()
    fig = plots.surface(found, vmin=0.5, vmax=2)
    fill = fills(fig.axes[0])
    assert (fill.levels[0], fill.levels[-1], fill.extend) == (0.5, 2, "both")
    assert f"clipped: loss above 2 (up to {found.loss.max():.3g})" in below(fig)
    assert f"clipped: loss below 0.5 (down to {found.loss.min():.3g})" in below(fig)
    assert not is_grey(pixel(fig.axes[2], 0.98, 1.9))  # what is clipped is filled all the same
    assert "clipped" not in below(plots.surface(found))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"levels": 1}, "levels must be 2 to 60, got 1"),
        ({"levels": 1000}, "levels must be 2 to 60, got 1000"),
        ({"levels": [1.0]}, "levels must be at least two finite numbers that ascend"),
        ({"levels": [1.0, 1.0]}, "levels must be at least two finite numbers that ascend"),
        ({"levels": [1.0, np.nan]}, "levels must be at least two finite numbers that ascend"),
        ({"vmin": np.nan}, "vmin must be a finite number, got nan"),
        ({"vmax": np.inf}, "vmax must be a finite number, got inf"),
        ({"vmin": 3.0, "vmax": 2.0}, "vmin=3.0 is not below vmax=2.0: the first is the lower end"),
        ({"vmax": 0.5, "log": False}, "vmax=0.5 leaves nothing to draw: the loss is between 1 and 50"),
        ({"vmin": 0.0}, "vmin=0.0: a logarithmic scale begins above zero; give a positive one, or log=False"),
    ],
)
def test_options_that_leave_nothing_are_refused(options, message):
    with pytest.raises(InputError) as caught:
        scale(np.array([1.0, 50.0]), **options)
    assert str(caught.value) == message


def test_losses_that_no_scale_can_show_are_refused():
    with pytest.raises(InputError, match="there is no finite loss to draw"):
        scale(np.array([np.nan, np.inf]))
    with refused(InputError, -1, log=True):
        scale(np.array([-1.0, 2]), log=True)
    assert not scale(np.array([-1.0, 200])).log


def test_a_flat_surface_and_a_part_without_samples_are_drawn():
    of = grid(np.linspace(-1, 1, 4), np.linspace(-1, 1, 4))
    flat = np.concatenate([np.full((1, 4, 4), 0.7), np.full((1, 4, 4), np.nan)])
    found = surface(of, flat, centre_loss=np.array([0.7, np.nan]), n_samples=np.array([3, 0]))
    fig = plots.surface(found)
    assert not is_grey(pixel(fig.axes[0], 0.1, 0.1))
    assert is_grey(pixel(fig.axes[1], 0.1, 0.1))
    with pytest.raises(InputError, match="there is no finite loss to draw"):
        plots.surface(found, ["class 1"])


# Cells, accuracy, heights.


def test_cells_are_the_losses_as_they_were_computed():
    computed = np.ones((5, 4), dtype=bool)
    computed[1, 2] = False
    of = grid(np.array([-1.0, -0.5, 0, 2]), np.linspace(-1, 1, 5), computed=computed)
    loss = paraboloid(of)
    loss[0, 3, 3] = np.nan
    found = surface(of, loss)
    fig = plots.surface_heat(found)
    ax = fig.axes[0]
    (cells,) = [c for c in ax.collections if isinstance(c, QuadMesh)]
    shown = cells.get_array().reshape(5, 4)
    np.testing.assert_array_equal(shown.mask, ~computed | np.isnan(found.loss[0]))
    np.testing.assert_array_equal(shown[~shown.mask], found.loss[0][~shown.mask])
    np.testing.assert_allclose(cells.get_coordinates()[0, :, 0], [-1.25, -0.75, -0.25, 1, 3])
    assert is_grey(pixel(ax, 2, 0.5))
    np.testing.assert_allclose(pixel(ax, 0, -0.5), [234, 234, 242])  # not computed: the ground of the axes
    assert "empty: not computed (19 of 20 were)" in below(fig)


def test_a_grid_of_one_point_is_a_cell_and_has_no_contours():
    found = surface(grid([0.0], [0.0]), np.array([[[0.4]]]))
    fig = plots.surface_heat(found)
    assert not is_grey(pixel(fig.axes[0], 0.1, 0.1))
    row = surface(grid([-1.0, 0, 1], [0.0]), np.array([[[0.4, 0.3, 0.4]]]))
    diagonal = grid([-1.0, 0, 1], [-1.0, 0, 1], computed=np.eye(3, dtype=bool))
    for narrow in (found, row, surface(diagonal, paraboloid(diagonal))):
        plots.surface_heat(narrow)
        for figure in (plots.surface, plots.surface_3d, plots.surface_accuracy):
            with refused(InputError, "surface_heat"):
                figure(narrow)


def test_accuracy_has_levels_of_its_own_that_are_never_logarithmic():
    found = three_classes()
    fig = plots.surface_accuracy(found)
    levels = fills(fig.axes[0]).levels
    np.testing.assert_allclose(np.diff(levels), 0.1)
    assert levels[0] <= found.accuracy.min()
    assert fig.axes[-1].get_ylabel() == "accuracy"
    assert "lowest loss" not in below(fig)
    foreign = dataclasses.replace(found, accuracy=np.full_like(found.accuracy, np.nan))
    with pytest.raises(InputError, match="there is no finite accuracy to draw"):
        plots.surface_accuracy(foreign)
