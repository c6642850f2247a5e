"""Sharpness figures against closed forms: paraboloids in skewed coordinates, lines, holes, adaptive and tiny grids."""

import numpy as np
import pytest
from surfaces import COSINE, UNITS, grid, paraboloid, squared_distance

from landscape.errors import InputError
from landscape.results.grid import barrier, doubling_radius, lowest, summary, worst_rise
from landscape.results.mesh import smooth

CENTRE = np.array([0.3])


def skewed(n, *, computed=None, x=1.0, y=3.0):
    return grid(np.linspace(-x, x, n), np.linspace(-y, y, n), computed=computed)


def test_distances_are_those_of_the_vectors_themselves():
    """In three dimensions, two directions with the lengths and the angle of the Gram matrix."""
    first, second = UNITS[0] * np.array([1.0, 0, 0]), UNITS[1] * np.array([COSINE, 0, np.sqrt(1 - COSINE**2)])
    at = np.array([[1.0, 0], [0, 1], [0.3, -2], [-1, -1]])
    positions = skewed(3).euclidean(at)
    vectors = at @ np.stack([first, second])
    np.testing.assert_allclose(np.linalg.norm(positions, axis=1), np.linalg.norm(vectors, axis=1), rtol=1e-14)
    between = np.linalg.norm(positions[0] - positions[2]), np.linalg.norm(vectors[0] - vectors[2])
    assert between[0] == pytest.approx(between[1], rel=1e-14)


# Doubling radius: 0.3 + c r^2 reaches 0.6 at r = sqrt(0.3 / c).


def test_the_doubling_radius_of_a_paraboloid_converges_with_the_square_of_the_step():
    """Between points that are h apart, linear interpolation of r^2 is at most h^2 / 4 too high: r is too small."""
    misses = []
    for n in (17, 33, 65, 129):
        of = skewed(n)
        edge = np.linalg.norm([2 / (n - 1) * UNITS[0], 6 / (n - 1) * UNITS[1]])  # longer than any edge but a diagonal
        (radius,) = doubling_radius(of, paraboloid(of), CENTRE)
        misses.append(np.sqrt(0.3) - radius)
        assert 0 <= misses[-1] <= (2 * edge) ** 2 / 4 / np.sqrt(0.3)
    ratios = np.array(misses[:-1]) / misses[1:]
    assert (ratios > 3).all()


def test_on_a_line_it_is_where_the_nearer_side_crosses():
    """1 + |x| to the right and 1 + 2 |x| to the left of 0, in units of 3: doubled at x = -1/2, 1.5 away."""
    of = grid([-1.0, -0.7, -0.2, 0.0, 0.9, 2.0], units=[3.0])
    x = of.xcoordinates
    loss = np.where(x < 0, 1 - 2 * x, 1 + x)[None, None]
    assert doubling_radius(of, loss, np.array([1.0])) == pytest.approx([1.5], rel=1e-12)


def test_what_lies_within_the_first_step_is_not_read_off():
    """0.3 + r^2 and the step 1: on the straight line to the first point it would double at 0.3 instead of 0.55."""
    of = grid(np.linspace(-3, 3, 7), units=[1.0])
    loss = np.concatenate([[paraboloid(of)[0]], [paraboloid(of, curvature=0.2)[0]]])
    assert np.isnan(doubling_radius(of, loss, np.full(2, 0.3))).tolist() == [True, False]
    assert np.isnan(worst_rise(of, loss, np.full(2, 0.3), 0.9)).all()
    np.testing.assert_allclose(worst_rise(of, loss, np.full(2, 0.3), 1.0), [1.0, 0.2])
    only_one_side = loss[:1].copy()
    only_one_side[0, 0, :3] = 0.3  # and a loss that does not rise on the other
    assert np.isnan(doubling_radius(of, only_one_side, np.full(1, 0.3)))


def test_the_nearest_crossing_may_lie_within_a_triangle():
    """A half plane x + y >= 1 in orthonormal units: its nearest point to 0 is (1/2, 1/2), on no edge of a grid."""
    of = grid(np.linspace(-2, 2, 6), np.linspace(-2, 2, 6), units=[1, 1], cosine=0.0)
    x, y = np.meshgrid(of.xcoordinates, of.ycoordinates)
    assert doubling_radius(of, (1 + x + y)[None], np.array([1.0])) == pytest.approx([np.sqrt(0.5)], rel=1e-12)


def test_a_centre_between_the_points_takes_part():
    """The plane 1 + |x| of a grid without x = 0; its lowest computed point has 1.5."""
    of = grid([-1.5, -0.5, 0.5, 1.5], [-1, 1], units=[1, 1], cosine=0.0)
    loss = np.broadcast_to(1 + np.abs(of.xcoordinates), (1, 2, 4))
    assert doubling_radius(of, loss, np.array([1.0])) == pytest.approx([1.0], rel=1e-12)
    assert doubling_radius(of, loss, np.array([0.75])) == pytest.approx([0.5], rel=1e-12)


def test_an_adaptive_grid_differs_from_the_full_one_by_its_own_step():
    """Every fourth point of a grid, and all within the middle: as good as the full grid where the loss doubles."""
    of = skewed(41)
    computed = np.zeros((41, 41), dtype=bool)
    computed[::4, ::4] = True
    computed[8:33, 8:33] = True
    loss = paraboloid(of)
    sparse = skewed(41, computed=computed)
    hidden = np.where(computed, loss, np.nan)
    found = doubling_radius(sparse, hidden, CENTRE), doubling_radius(of, loss, CENTRE)
    assert found[0] == pytest.approx(found[1], abs=2e-3)
    coarse = doubling_radius(skewed(17), paraboloid(skewed(17)), CENTRE)
    assert abs(coarse - found[1]) > 0.02
    assert worst_rise(sparse, hidden, CENTRE, 0.5) == pytest.approx(worst_rise(of, loss, CENTRE, 0.5), abs=5e-3)


@pytest.mark.parametrize("centre", [0.0, -1.0, np.nan, np.inf])
def test_a_loss_that_cannot_double_has_no_radius(centre):
    of = skewed(5)
    assert np.isnan(doubling_radius(of, paraboloid(of), np.array([centre])))
    plain = grid(np.linspace(-3, 3, 7), units=[1.0])
    level = np.where(np.abs(plain.xcoordinates) > 1.5, 1.0, 0.0)[None, None]  # flat around the centre
    assert np.isnan(doubling_radius(plain, level, np.array([centre])))
    assert "more than doubles" not in said(plain, np.abs(plain.xcoordinates)[None, None], [centre])


def test_a_radius_is_unknown_where_the_loss_never_doubles_or_the_units_are_unknown_or_the_centre_is_outside():
    of = skewed(5)
    assert np.isinf(doubling_radius(of, 0.3 + 0 * paraboloid(of), CENTRE))
    hole = 0.3 + 0 * paraboloid(of)
    hole[0, 0, 0] = np.nan
    assert np.isnan(doubling_radius(of, hole, CENTRE))  # it may lie there
    unknown = grid(of.xcoordinates, of.ycoordinates, units=[np.nan, np.nan], cosine=np.nan)
    assert np.isnan(doubling_radius(unknown, paraboloid(of), CENTRE))
    assert np.isnan(worst_rise(unknown, paraboloid(of), CENTRE, 0.5))
    beside = grid(of.xcoordinates + 2, of.ycoordinates)
    assert np.isnan(doubling_radius(beside, paraboloid(beside), CENTRE))


def test_a_nan_that_was_computed_makes_unknown_what_it_could_change_and_nothing_else():
    of = skewed(21)
    loss = paraboloid(of)
    far, near = loss.copy(), loss.copy()
    far[0, 0, 0] = np.nan
    near[0, 10, 11] = np.nan  # one step from the centre
    both = np.concatenate([loss, far, near])
    centre = np.repeat(CENTRE, 3)
    radii, rises = doubling_radius(of, both, centre), worst_rise(of, both, centre, 0.5)
    assert radii[0] == radii[1]
    assert rises[0] == rises[1]
    assert np.isnan([radii[2], rises[2]]).all()
    np.testing.assert_array_equal(lowest(of, both)[0], [0.3, 0.3, 0.3])


def test_an_infinite_loss_counts_at_its_own_point_and_is_not_spread_over_its_triangles():
    of = grid([-2, -1, 0, 1, 2], [-2, -1, 0, 1, 2], units=[1, 1], cosine=0.0)
    loss = np.ones((1, 5, 5))
    loss[0, 2, 4] = np.inf
    assert doubling_radius(of, loss, np.ones(1)) == pytest.approx([2.0])
    assert worst_rise(of, loss, np.ones(1), 1.9) == [0.0]
    assert worst_rise(of, loss, np.ones(1), 2.0) == [np.inf]


# Worst rise: c r^2 on the circle.


def test_the_worst_rise_of_a_paraboloid_converges_with_the_square_of_the_step():
    misses = []
    for n in (11, 21, 41, 81):
        of = skewed(n)
        (rise,) = worst_rise(of, paraboloid(of, curvature=2.0), CENTRE, 0.7)
        misses.append(rise - 2 * 0.49)
    assert (np.array(misses) >= -1e-12).all()  # what is convex lies below its interpolation
    assert misses[-1] < 1e-2
    assert misses[0] / misses[-1] > 3**3


def test_the_worst_rise_takes_the_steepest_way():
    """1 + 3 x + 4 y in orthonormal units rises by 5 r in the direction (3, 4); edges find it up to their spacing."""
    of = grid(np.linspace(-1, 1, 81), np.linspace(-1, 1, 81), units=[1, 1], cosine=0.0)
    x, y = np.meshgrid(of.xcoordinates, of.ycoordinates)
    (rise,) = worst_rise(of, (1 + 3 * x + 4 * y)[None], np.ones(1), 0.6)
    assert 3.0 * (1 - (0.025 / 0.6) ** 2 / 2) <= rise <= 3.0 + 1e-12


def test_the_radius_of_a_rise_may_be_anything():
    of = grid([-1.0, 0.0, 1.0], units=[2.0])
    loss = np.array([[[3.0, 1.0, 2.0]]])
    assert worst_rise(of, loss, np.ones(1), 2.0) == [2.0]
    assert worst_rise(of, loss, np.ones(1), 100.0) == [2.0]
    assert worst_rise(of, 0 * loss, np.ones(1), 2.0) == [0.0]  # the centre's own rise, where all others fall
    for radius, centre in ((np.nan, 1.0), (1.9, 1.0), (0.0, 1.0), (-1.0, 1.0), (2.0, np.nan)):
        assert np.isnan(worst_rise(of, loss, np.full(1, centre), radius))
    longer = grid([-1.0, 0.0, 1.0, 2.0], units=[2.0])
    assert worst_rise(longer, np.array([[[1.0, 1.0, 2.0, 6.0]]]), np.ones(1), 3.0) == pytest.approx([3.0])
    left = grid([-2.0, -1.0, 0.0, 1.0], units=[2.0])
    assert worst_rise(left, np.array([[[6.0, 2.0, 1.0, 1.0]]]), np.ones(1), 3.0) == pytest.approx([3.0])


def test_the_longer_of_two_steps_counts():
    """Steps of 1 and 3: within 2 of the centre there are points of one axis only."""
    of = grid([-2, -1, 0, 1, 2], [-6, -3, 0, 3, 6], units=[1, 1], cosine=0.0)
    assert np.isnan(worst_rise(of, paraboloid(of), CENTRE, 2.0))
    assert worst_rise(of, paraboloid(of), CENTRE, np.sqrt(10)) == pytest.approx([10.0], abs=10 / 4)
    assert "no largest rise: its radius 2 is less than a step, 3" in said(of, paraboloid(of), radius=2.0)


def test_units_that_differ_a_millionfold_change_nothing():
    """The same paraboloid, its second coordinate in other units."""
    one = skewed(21)
    other = grid(one.xcoordinates, one.ycoordinates * 1e6, units=UNITS * [1, 1e-6])
    loss = paraboloid(one)
    assert doubling_radius(other, loss, CENTRE) == pytest.approx(doubling_radius(one, loss, CENTRE), rel=1e-9)
    assert worst_rise(other, loss, CENTRE, 0.6) == pytest.approx(worst_rise(one, loss, CENTRE, 0.6), rel=1e-9)


def test_points_of_a_line_may_come_in_any_order():
    x = np.linspace(-1, 1, 21)
    order = np.random.default_rng(0).permutation(21)
    sorted_, shuffled = grid(x), grid(x[order])
    for figure in (
        lambda of: doubling_radius(of, paraboloid(of), CENTRE),
        lambda of: worst_rise(of, paraboloid(of), CENTRE, 0.7),
    ):
        assert np.isfinite(figure(sorted_)).all()
        np.testing.assert_allclose(figure(shuffled), figure(sorted_), rtol=1e-12)


def test_a_full_grid_and_its_triangulation_by_delaunay_tile_the_same_rectangle():
    """Areas sum to that of the rectangle, each cell has one diagonal, and mirror images of a grid give one radius."""
    of = grid(np.linspace(-1, 1, 5), np.linspace(2, -2, 9))
    corners = of.vertices[of.simplices]
    first, second = corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
    areas = np.abs(first[:, 0] * second[:, 1] - first[:, 1] * second[:, 0]) / 2
    np.testing.assert_allclose(areas, 0.125)
    assert len(areas) == 2 * 4 * 8
    assert len(of.edges) == 5 * 8 + 4 * 9 + 4 * 8
    straight = grid(np.linspace(-1, 1, 9), np.linspace(-1, 1, 9), units=[1, 1], cosine=0.0)
    x, y = np.meshgrid(straight.xcoordinates, straight.ycoordinates)
    loss = np.stack([0.3 + sign * 0.1 * x + (x + sign * 0.5 * y) ** 2 for sign in (1, -1)])
    radii = doubling_radius(straight, loss, np.full(2, 0.3))
    assert radii[0] == pytest.approx(radii[1], rel=1e-12)


def test_reversed_axes_and_parallel_directions_are_a_grid_too():
    of, turned = skewed(9), grid(np.linspace(1, -1, 9), np.linspace(-3, 3, 9))
    np.testing.assert_allclose(
        doubling_radius(turned, paraboloid(turned), CENTRE), doubling_radius(of, paraboloid(of), CENTRE)
    )
    parallel = grid(np.linspace(-1, 1, 21), np.linspace(-1, 1, 21), units=[1, 1], cosine=1.0)
    (radius,) = doubling_radius(parallel, paraboloid(parallel), CENTRE)
    assert radius == pytest.approx(np.sqrt(0.3), abs=0.1**2 / np.sqrt(0.3))


@pytest.mark.parametrize(("nx", "ny"), [(1, 1), (1, 5), (5, 1), (2, 2)])
def test_grids_of_one_point_and_one_row_are_grids(nx, ny):
    of = grid(np.linspace(0, nx - 1.0, nx), np.linspace(0, ny - 1.0, ny), units=[1, 1], cosine=0.0)
    x, y = np.meshgrid(of.xcoordinates, of.ycoordinates)
    loss = (1 + x + y)[None]
    radius, rise = doubling_radius(of, loss, np.ones(1)), worst_rise(of, loss, np.ones(1), 2.0)
    if max(nx, ny) < 5:
        assert np.isnan(radius)
    else:
        assert radius == pytest.approx([1.0])
    expected = {1: np.nan, 2: 2.0, 5: 2.0}[max(nx, ny)]
    assert rise == pytest.approx([expected], nan_ok=True)
    assert lowest(of, loss)[0] == [1.0]
    assert said(of, loss, [1.0])


def test_coordinates_that_make_no_triangles_are_refused_in_a_line():
    """Of a damaged file: two coordinates are a hundred orders of magnitude larger than the others."""
    of = grid([-0.6, 2.3e112, 0.8, 2.2], [1.5e-304, 0.5, 1.5, -1.1e113])
    with pytest.raises(InputError, match="differ by too many orders of magnitude"):
        assert of.simplices is None


def test_nothing_computed_is_nothing_known():
    of = skewed(3, computed=np.zeros((3, 3), dtype=bool))
    loss = np.full((2, 3, 3), np.nan)
    low, position = lowest(of, loss)
    assert np.isnan(low).all()
    assert np.isnan(position).all()
    assert np.isnan(doubling_radius(of, loss, np.ones(2))).all()
    assert np.isnan(worst_rise(of, loss, np.ones(2), 1.0)).all()
    assert "0 % of the points were computed" in said(of, loss, [1.0, 1.0])


# Lowest point.


def test_the_lowest_point_is_found_in_coordinates_and_of_equal_ones_the_one_nearest_to_the_centre():
    of = grid([-2, -1, 0, 1], [-1, 0, 3])
    loss = np.ones((3, 3, 4))
    loss[0, 2, 1] = 0.5
    loss[1, :, :] = 0.0  # a class that is fitted to zero everywhere
    loss[2] = np.nan
    low, position = lowest(of, loss)
    np.testing.assert_array_equal(low, [0.5, 0.0, np.nan])
    np.testing.assert_array_equal(position, [[-1, 3], [0, 0], [np.nan, np.nan]])
    assert lowest(grid([1.0, 2.0]), np.array([[[3.0, 2.0]]]))[1].tolist() == [[2.0]]


# Barrier.


def test_the_barrier_is_the_rise_above_the_straight_line_between_0_and_1():
    """sin^2(pi t) + t: 1 at t = 1/2. Beyond 0 and 1 the line may do what it likes."""
    t = np.linspace(-0.5, 1.5, 401)
    loss = np.stack([np.sin(np.pi * t) ** 2 + t, 2 * t - 1, -(np.sin(np.pi * t) ** 2), np.where(t > 1.2, 50.0, 0.0)])
    np.testing.assert_allclose(barrier(t, loss), [1, 0, 0, 0], atol=1e-12)
    shuffled = np.random.default_rng(0).permutation(len(t))
    np.testing.assert_allclose(barrier(t[shuffled], loss[:, shuffled]), barrier(t, loss), rtol=1e-12)


def test_losses_of_a_plane_are_interpolated_smoothly_over_decades_and_zeros():
    x = np.linspace(-1, 1, 9)
    places = np.array([(a, b) for a in range(9) for b in range(9)], dtype=float)
    wanted = places[:-9] + np.array([0.5, 0.0])
    steep = np.exp(6 * np.add.outer(x**2, x**2).ravel())
    between = np.exp(6 * ((x[:-1] + 0.125)[:, None] ** 2 + x**2).ravel())
    zeros = np.where(steep > 50, steep, 0.0)
    found = smooth(places, np.stack([steep, zeros]), wanted)
    inside = np.abs(wanted - 4).max(axis=1) < 3
    np.testing.assert_allclose(found[0, inside], between[inside], rtol=0.02)  # straight lines are off by up to 100 %
    assert (found[1] >= 0).all()
    at_zero = smooth(places, zeros[None], places)[0]
    np.testing.assert_allclose(at_zero, zeros, rtol=1e-12, atol=1e-12)
    np.testing.assert_array_equal(smooth(places, np.zeros((1, 81)), wanted), 0)


def test_ends_that_are_no_points_are_interpolated():
    """Points at -1, 1/2, 2: L(0) = 4/3 and L(1) = 7/3 of the values 0, 2, 3, so the rise at 1/2 is 2 - 11/6."""
    assert barrier(np.array([-1.0, 0.5, 2.0]), np.array([[0.0, 2.0, 3.0]])) == pytest.approx([1 / 6], rel=1e-12)
    assert barrier(np.array([-1.0, 0.5, 2.0]), np.array([[2.0, 0.0, 2.0]])) == [0.0]


def test_a_barrier_needs_the_whole_way_and_knows_no_more_than_its_points():
    t = np.linspace(0, 1, 5)
    assert np.isnan(barrier(t[1:], np.ones((1, 4))))
    assert np.isnan(barrier(t[:-1], np.ones((1, 4))))
    assert np.isnan(barrier(np.zeros(0), np.ones((1, 0))))
    assert np.isnan(barrier(t, np.array([[1, 1, np.nan, 1, 1]])))
    assert barrier(t, np.array([[1, 1, np.inf, 1, 1]])) == [np.inf]
    assert barrier(np.array([*t, 2.0]), np.array([[1, 1, 1, 1, 1, np.nan]])) == [0.0]


# Verdict.


def said(of, loss, centre=None, **about):
    loss = np.asarray(loss, dtype=float)
    centre = of.at_centre(loss) if centre is None else np.asarray(centre, dtype=float)
    parts = [f"class {p}" for p in range(len(loss))]
    about = {"batch_norm": "keep", "radius": np.nan} | about
    return summary(of, parts=parts, loss=loss, centre_loss=centre, **about)["verdict"]


def test_a_good_picture_has_no_fault_and_still_says_how_it_was_made():
    of = skewed(21)
    assert said(of, paraboloid(of), n_classes=10) == "no problem found; batch norm: keep; augmentation off"
    assert said(of, paraboloid(of), augmented=None, batch_norm="unknown").endswith(
        "batch norm: unknown; augmentation unknown"
    )
    assert said(of, paraboloid(of), batch_norm="none") == "no problem found; augmentation off"


def test_a_lower_point_is_named_with_its_place_and_its_depth():
    of = skewed(21)
    loss = np.concatenate([paraboloid(of), paraboloid(of), paraboloid(of)])
    loss[1, 12, 15], loss[2, 0, 0] = 0.2, 0.29
    assert said(of, loss).startswith(
        "the centre is not the lowest point of class 1 and another: the loss falls from 0.3 to 0.2 at (0.5, 0.6);"
    )
    loss[1, 12, 15] = loss[2, 0, 0] = 0.2995  # within a hundredth of the centre's
    assert said(of, loss).startswith("no problem")


def test_ranges_that_are_too_wide_or_too_narrow_or_too_coarse_are_called_so():
    wide = skewed(41, x=10, y=30)
    assert said(wide, paraboloid(wide), n_classes=10).startswith("range too wide: ")
    assert "more than 4 times the loss of guessing (log 10)" in said(wide, paraboloid(wide), n_classes=10)
    assert "guessing" not in said(wide, paraboloid(wide))
    broken = np.where(paraboloid(wide) > 10, np.inf, 0.3)
    share = 100 * np.isinf(broken).mean()
    assert f"range too wide: {share:.3g} % of the points" in said(wide, broken, n_classes=10)
    assert "too few points: within one step the loss of class 0 more than doubles" in said(wide, paraboloid(wide))
    unknown = grid(wide.xcoordinates, wide.ycoordinates, units=[np.nan, np.nan], cosine=np.nan)
    assert "within one step the loss of class 0 more than doubles" in said(unknown, paraboloid(wide))
    coarse = skewed(17)
    assert "where the loss is below twice the centre's is 4." in said(coarse, paraboloid(coarse))
    assert "largest rise" not in said(coarse, paraboloid(coarse), radius=1.0)
    assert "no largest rise: its radius 0.1 is less than a step, 0." in said(coarse, paraboloid(coarse), radius=0.1)
    narrow = skewed(21, x=1e-4, y=3e-4)
    assert said(narrow, paraboloid(narrow)).startswith("range too narrow")


def test_holes_points_left_out_and_a_centre_outside_are_told():
    computed = np.ones((5, 5), dtype=bool)
    computed[0] = False
    of = skewed(5, computed=computed)
    loss = paraboloid(of)
    loss[0, 1, :2] = np.nan
    text = said(of, loss)
    assert "80 % of the points were computed" in text
    assert "10 % of the computed losses are not finite" in text
    beside = grid([1.0, 2.0], [0.0, 1.0])
    assert said(beside, paraboloid(beside), [0.3]).startswith("the checkpoint (0) lies outside the range")


def test_a_verdict_is_one_line_whatever_happens():
    of = skewed(3)
    for value in (np.nan, np.inf, 0.0, 1e300, -1.0):
        assert "\n" not in said(of, np.full((2, 3, 3), value), n_classes=10)


def test_the_summary_has_the_fields_of_a_surface_and_a_barrier_only_between_checkpoints():
    of = grid(np.linspace(0, 1, 11))
    loss = (1 + np.sin(np.pi * of.xcoordinates))[None, None]
    found = summary(of, parts=["a"], loss=loss, centre_loss=np.ones(1), radius=0.2, batch_norm="keep", between=True)
    assert found["barrier"] == pytest.approx([1.0])
    assert found["radius"] == pytest.approx(0.2)
    plain = summary(of, parts=["a"], loss=loss, centre_loss=np.ones(1), radius=0.2, batch_norm="keep")
    assert plain["barrier"] is None
    assert set(plain) == {
        "lowest_loss", "lowest_position", "doubling_radius", "worst_rise", "barrier", "barrier_stderr", "radius",
        "verdict",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"computed": np.ones((2, 2), dtype=bool)}, "computed must be booleans (3, 3), got bool (2, 2)"),
        ({"computed": np.ones((3, 3))}, "got float64 (3, 3)"),
        ({"units": np.ones(3)}, "unit_length must be of one or two directions, got shape (3,)"),
        ({"units": np.ones(1)}, "a line has one y, 0"),
        ({"x": [0, np.nan, 1]}, "xcoordinates must be finite numbers"),
    ],
)
def test_arrays_that_are_no_grid_are_refused(change, line):
    fields = {"x": [-1, 0, 1], "y": [-1, 0, 1]} | change
    with pytest.raises(InputError) as caught:
        grid(fields.pop("x"), fields.pop("y"), **fields)
    assert line in str(caught.value)


def test_the_closed_form_of_the_tests_is_the_gram_matrix():
    gram = np.array([[UNITS[0] ** 2, UNITS.prod() * COSINE], [UNITS.prod() * COSINE, UNITS[1] ** 2]])
    at = np.array([0.7, -1.3])
    assert squared_distance(*at) == pytest.approx(at @ gram @ at, rel=1e-14)
