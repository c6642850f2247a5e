"""What a figure shows: the artists of its axes."""

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.contour import ContourSet


def fills(ax):
    """The filled contours of an axes."""
    (found,) = [c for c in ax.collections if isinstance(c, ContourSet) and c.filled]
    return found


def below(fig):
    """The words below a figure, on one line."""
    return " ".join(fig.get_supxlabel().split())


def above(fig):
    return " ".join(fig.get_suptitle().split())


def inside(fig):
    """Nothing is drawn beyond the edges of the figure."""
    fig.set_dpi(200)  # as it is written
    box = fig.get_tightbbox(FigureCanvasAgg(fig).get_renderer())
    width, height = fig.get_size_inches()
    return box.x0 >= -0.01 and box.y0 >= -0.01 and box.x1 <= width + 0.01 and box.y1 <= height + 0.01
