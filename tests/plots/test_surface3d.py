"""Heights over a plane."""

import dataclasses

import numpy as np
import pytest
from drawn import below
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from mpl_toolkits.mplot3d.art3d import Poly3DCollection
from planes import heights, many, with_hole
from refusals import refused
from surfaces import three_classes

from landscape import plots
from landscape.errors import InputError
from landscape.plots.layout import scales
from landscape.plots.layout.fitting import labelled, touch
from landscape.plots.layout.scales import scale


def test_heights_are_the_losses_and_their_logarithms():
    found = three_classes()
    fig = plots.surface_3d(found, ["class 1"], log=False)
    assert heights(fig.axes[0])[..., 2].max() == pytest.approx(found.loss[1].max())
    assert heights(fig.axes[0])[..., 2].min() == pytest.approx(found.loss[1].min())
    fig = plots.surface_3d(found, ["class 1"], log=True)
    assert heights(fig.axes[0])[..., 2].max() == pytest.approx(np.log10(found.loss[1].max()))
    ticks = [text.get_text() for text in fig.axes[0].get_zticklabels()]
    places = fig.axes[0].get_zticks()
    assert [scales.label(10**z) for z in places] == ticks


def test_colours_of_heights_are_those_of_the_bar_and_no_light_falls_on_them():
    found = three_classes(7, 7)
    fig = plots.surface_3d(found, ["class 1"])
    loss, shared = found.loss[1], scale(found.loss[1])
    of_cells = (loss[:-1, :-1] + loss[:-1, 1:] + loss[1:, 1:] + loss[1:, :-1]) / 4
    (relief,) = [c for c in fig.axes[0].collections if isinstance(c, Poly3DCollection)]
    fig.draw_without_rendering()
    painted = {tuple(colour) for colour in relief.get_facecolor().round(6)}
    assert painted == {tuple(c) for c in colormaps["viridis"](shared.continuous(of_cells)).reshape(-1, 4).round(6)}


def test_numbers_of_two_axes_do_not_meet_in_the_corner():
    for n in (1, 3):
        fig = plots.surface_3d(many(n))
        FigureCanvasAgg(fig).draw()
        ax = fig.axes[0]
        boxes = [t.label1.get_window_extent() for axis in (ax.xaxis, ax.yaxis, ax.zaxis) for t in labelled(axis)]
        assert len(boxes) >= 6
        assert not touch(boxes)


@pytest.mark.parametrize("n", [1, 3, 4])
def test_the_colour_bar_stands_clear_of_the_numbers_of_heights(n):
    found = many(n)
    fig = plots.surface_3d(dataclasses.replace(found, loss=found.loss / 10**4), log=False)
    FigureCanvasAgg(fig).draw()
    *_, ax, bar = fig.axes
    numbers = [tick.label1.get_window_extent() for tick in labelled(ax.zaxis)]
    assert len(numbers) >= 2
    assert max(box.x1 for box in numbers) < bar.get_window_extent().x0


def test_heights_end_at_zmax_which_is_stated():
    found = three_classes()
    fig = plots.surface_3d(found, log=False, zmax=3)
    assert max(heights(ax)[..., 2].max() for ax in fig.axes[:3]) == 3
    assert f"cut off: loss above 3 is the grey plateau (up to {found.loss.max():.3g})" in below(fig)
    assert "cut off" not in below(plots.surface_3d(found, zmax=1000))
    assert fig.axes[-1].get_ylim()[1] == 3  # colours end there, too
    with refused(InputError, 0.1, zmax=0.01):
        plots.surface_3d(found, zmax=0.01)


def test_a_hole_has_no_heights():
    fig = plots.surface_3d(with_hole())
    assert len(heights(fig.axes[0])) == 100 - 16
    assert "holes: not finite" in below(fig)
