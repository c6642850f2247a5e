"""Distances between convergence points: clustered maps, the loss of each part at each point, and curves over training.

For several runs, maps and curves show the mean; if there are few enough points for numbers, these include the standard
deviation over runs. For one run, numbers that are means over samples include their standard error over samples.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize, SymLogNorm, TwoSlopeNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from scipy.cluster.hierarchy import leaves_list, linkage
from scipy.spatial.distance import squareform

from landscape.errors import InputError, arg, position
from landscape.plots.layout import grids, theme
from landscape.plots.layout.drawable import figure
from landscape.plots.layout.parts import by_count, colours, named
from landscape.results import Distances, written

MOST_NUMBERS = 12
"""The largest number of rows of a map with numbers in its cells."""
MOST_NAMES = 60
MATRICES = {
    "euclidean": "Euclidean distance",
    "filter_normalised": "filter-normalised distance",
    "fisher": "Fisher-weighted distance\n(rows: whose Fisher)",
    "cosine": "cosine of displacements",
}
_BARS = {"fisher": "share of the row's largest", "cosine": "cosine"}
_STYLES = ("-", "--", "-.", ":")  # so that curves on top of each other are visible


@figure
def distance_maps(distances: Distances, parts: Sequence[str] | None = None) -> Figure:
    """Draw the four distances as maps with clustered rows, so that nearby points are next to each other.

    The order is that of average-linkage clustering of the Euclidean distances, the same in all maps. Fisher-weighted
    distances compare within a row, so that colours are shares of the row's largest there; the numbers are distances.

    Args:
        distances: the result.
        parts: draw only the points of these parts, and all other models; None for all.

    Returns:
        A new figure.

    Raises:
        InputError: no such part.
    """
    chosen = _points(distances, parts)
    order = [chosen[i] for i in clustered(distances.euclidean.mean(0)[np.ix_(chosen, chosen)])]
    names = [_label(distances, i) for i in order]
    size = max(3.2, min(7.0, 0.42 * len(order) + 1.6))
    with theme.theme():
        inches = 2 * size, 2 * size * 0.92
        fig, panels, _ = grids.grid(4, 2, *inches, ratio=1.0, **grids.shared("x", "y"))
        for ax, (field, title) in zip(panels, MATRICES.items(), strict=True):
            values = getattr(distances, field)[:, order][:, :, order]
            mean = values.mean(0)
            signed = field == "cosine"
            shades = _of_rows(mean) if field == "fisher" else mean
            norm: Normalize = TwoSlopeNorm(0, -1, 1) if signed else _from_zero(shades)
            colours, label = "PuOr_r" if signed else "viridis", _BARS.get(field, "distance")
            errors = distances.fisher_stderr if field == "fisher" else None
            spread = _spread(values, None if errors is None else errors[:, order][:, :, order])
            _map(fig, ax, mean, spread, names, names, norm, label, colours=colours, shades=shades)
            ax.set_title(title)
        fig.suptitle(_about(distances, distances.fisher_stderr), fontsize="medium", parse_math=False)
    return fig


@figure
def cross_losses(distances: Distances, parts: Sequence[str] | None = None) -> Figure:
    """Draw the loss of every part at every point, and the worst barrier that a part meets between two points.

    Args:
        distances: the result.
        parts: names of the columns to draw; None for all.

    Returns:
        A new figure, with a second map if barriers were computed.

    Raises:
        InputError: no such part.
    """
    columns = _parts(distances, parts)
    rows = list(range(len(distances.points)))
    names = [_label(distances, i) for i in rows]
    heads = [named(distances, p, 20) for p in columns]
    barriers = np.isfinite(distances.barrier).any()
    width = max(4.0, min(9.0, 0.45 * len(columns) + 2.6))
    with theme.theme():
        inches = width * (1 + barriers), max(3.2, min(9.0, 0.34 * len(rows) + 1.8))
        n = 1 + int(barriers)
        fig, axes, _ = grids.grid(n, n, *inches, least=grids.LEAST_MAP, **grids.shared("y"))
        loss, errors = distances.loss[:, :, columns], distances.loss_stderr
        beside = _spread(loss, None if errors is None else errors[:, :, columns])
        mean = loss.mean(0)
        positive = mean[np.isfinite(mean) & (mean > 0)]
        low, high = (positive.min(), positive.max()) if len(positive) else (1e-3, 1.0)
        norm: Normalize = LogNorm(low, high * 1.0001) if high > 10 * low else Normalize(0, high)
        _map(fig, axes[0], mean, beside, names, heads, norm, "mean loss")
        axes[0].set_title("loss of the part (column)\nat the point (row)")
        if barriers:
            barrier, errors = distances.barrier[:, :, :, columns], distances.barrier_stderr
            errors = None if errors is None else errors[:, :, :, columns]
            worst, of_worst = _worst(barrier, errors)
            mean, beside = worst.mean(0), _spread(worst, of_worst)
            _map(fig, axes[1], mean, beside, names, heads, _from_zero(mean), "rise of the loss")
            axes[1].set_title("highest barrier of the part (column)\non the way to any other point")
        fig.suptitle(_about(distances, distances.loss_stderr), fontsize="medium", parse_math=False)
    return fig


@figure
def barrier_maps(distances: Distances, parts: Sequence[str] | None = None) -> Figure:
    """Draw for each part the barriers between all pairs of points, and the rises that the points' Hessians predict.

    Args:
        distances: the result.
        parts: names of parts; None means all, of which the twelve with the most training samples are drawn.

    Returns:
        A new figure with a panel for each part on one scale, and a last panel for predicted rises if there are any.

    Raises:
        InputError: no such part, or neither barriers nor rises were computed.
    """
    chosen = by_count(distances, _parts(distances, parts))[:MOST_NUMBERS]
    barriers, rises = np.isfinite(distances.barrier).any(), distances.hessian_rise
    if not barriers and rises is None:
        raise InputError(
            f"the file holds neither barriers nor predicted rises: compute it with {arg('barrier_points')} or "
            f"{arg('curvature')}"
        )
    order = clustered(distances.euclidean.mean(0))
    names = [_label(distances, i) for i in order]
    maps: list[tuple[str, np.ndarray, np.ndarray | None, Normalize, str]] = []
    if barriers:
        shared = _from_zero(distances.barrier[..., chosen].mean(0))
        for p in chosen:
            title = f"barrier of {named(distances, p, 20)}"
            errors = None if distances.barrier_stderr is None else distances.barrier_stderr[..., p]
            maps.append((title, distances.barrier[..., p], errors, shared, "viridis"))
    if rises is not None:
        most = float(np.abs(rises.mean(0)).max()) or 1.0
        norm: Normalize = SymLogNorm(most / 10, vmin=-most, vmax=most)
        title = "rise that the Hessian of the row's part\npredicts towards the column"
        maps.append((title, rises, distances.hessian_rise_stderr, norm, "PuOr_r"))
    side, n_columns = max(3.2, min(6.0, 0.42 * len(order) + 1.6)), min(len(maps), 3)
    with theme.theme():
        inches = n_columns * side, -(-len(maps) // n_columns) * side * 0.92
        asked = {"least": grids.LEAST_MAP, "ratio": 1.0, **grids.shared("x", "y")}
        fig, axes, _ = grids.grid(len(maps), n_columns, *inches, **asked)
        for ax, (title, values, errors, norm, colours) in zip(axes, maps, strict=False):
            mean, beside = values.mean(0)[np.ix_(order, order)], _spread(values, errors)
            beside = None if beside is None else beside[np.ix_(order, order)]
            _map(fig, ax, mean, beside, names, names, norm, "rise of the loss", colours=colours)
            ax.set_title(title, parse_math=False)
        fig.suptitle(
            _about(distances, distances.barrier_stderr if barriers else None), fontsize="medium", parse_math=False
        )
    return fig


@figure
def point_map(distances: Distances, parts: Sequence[str] | None = None) -> Figure:
    """Draw the points on a plane so that their distances there approximate the Euclidean distances.

    Coinciding points are drawn as concentric rings.

    The plane comes from classical scaling (Torgerson 1952): the two leading eigenvectors of the doubly centred squared
    distances. The labels of the axes state the fraction of these that each axis explains; points that are close on the
    plane may be far apart in other dimensions.

    Args:
        distances: the result; for several runs, the mean distance is used.
        parts: draw only the points of these parts, and all other models; None means all parts.

    Returns:
        A new figure.

    Raises:
        InputError: no such part, or fewer than three points.
    """
    chosen = _points(distances, parts)
    if len(chosen) < 3:
        raise InputError(f"a map needs at least three points, these are {len(chosen)}: choose another kind of figure")
    places, shares = scaled(distances.euclidean.mean(0)[np.ix_(chosen, chosen)])
    own = sorted((i for i in chosen if distances.points[i] in distances.parts), key=lambda i: -_count(distances, i))
    with theme.theme():
        fig, (ax,), _ = grids.grid(1, 1, 6.6, 4.8, ratio=1.0)
        positions = [distances.parts.index(distances.points[i]) for i in own]
        shades = dict(zip(own, colours(distances, positions), strict=True))
        near = 0.02 * np.ptp(places, axis=0).max()
        for k, (i, place) in enumerate(zip(chosen, places, strict=True)):
            sign, colour = ("o", shades[i]) if i in shades else ("D", theme.muted())
            below = int((np.linalg.norm(places[:k] - place, axis=1) <= near).sum())  # rings around those drawn already
            face = "none" if below else colour
            size = 6 + 3.5 * below
            label = _label(distances, i)
            ax.plot(*place, sign, color=colour, markerfacecolor=face, markersize=size, markeredgewidth=1.5, label=label)
        ax.margins(0.12)
        ax.set_aspect("equal", adjustable="datalim")
        for k, name in enumerate("xy"):
            ax.set(**{f"{name}label": f"Euclidean distance ({100 * shares[k]:.3g} % of the squares)"})
        handles = ax.get_legend_handles_labels()[0]
        grids.legend(fig, [Line2D([], [], **_sign(h)) for h in handles])
        fig.suptitle(_about(distances).replace("; over", ";\nover"), fontsize="medium", parse_math=False)
    return fig


def _sign(line: Line2D) -> dict[str, Any]:
    """Return the legend's sign for a point, independent of the size of its ring."""
    face = line.get_markerfacecolor()
    return {
        "linestyle": "none",
        "marker": line.get_marker(),
        "color": line.get_color(),
        "markerfacecolor": face,
        "markersize": 6,
        "label": line.get_label(),
    }


def scaled(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return positions on a plane that approximate a matrix of distances.

    Args:
        matrix: (Q, Q) distances.

    Returns:
        The positions, (Q, 2), centred, and the fraction of the squared distances that each axis explains, (2,).
    """
    centring = np.eye(len(matrix)) - 1 / len(matrix)
    values, vectors = np.linalg.eigh(-centring @ matrix**2 @ centring / 2)
    values, vectors = np.maximum(values[::-1], 0), vectors[:, ::-1]
    places = vectors[:, :2] * np.sqrt(values[:2])
    places *= np.where(places[np.abs(places).argmax(0), (0, 1)] < 0, -1.0, 1.0)
    return places, values[:2] / (values.sum() or 1.0)


@figure
def distances_along(distances: Distances, parts: Sequence[str] | None = None) -> Figure:
    """Draw the distance of the training from each convergence point over the epochs; a band is the spread over runs.

    Args:
        distances: the result.
        parts: draw only the points of these parts, and all other models; None means all parts.

    Returns:
        A new figure.

    Raises:
        InputError: no such part, or the result has no snapshots along training.
    """
    if not len(distances.epoch):
        raise InputError(f"the file holds no distances along training: compute it with {arg('along')}")
    chosen = _points(distances, parts)
    counts = [_count(distances, i) for i in chosen]
    with theme.theme():
        fig, (ax,), _ = grids.grid(1, 1, 6.2, 3.8)
        few = len(chosen) <= len(theme.palette())
        shades = theme.shades(len(chosen))
        for k, i in enumerate(sorted(chosen, key=lambda i: -counts[chosen.index(i)])):
            colour = theme.palette()[k] if few else shades[k]
            values = distances.along_training[:, :, i]
            label = written.shorten(distances.points[i], 24) if few or k in (0, len(chosen) - 1) else None
            style = _STYLES[k % len(_STYLES)] if few else "-"
            ax.plot(distances.epoch, values.mean(0), style, color=colour, label=label, linewidth=1.2)
            if len(values) > 1:
                mean, spread = values.mean(0), values.std(0, ddof=1)
                ax.fill_between(distances.epoch, mean - spread, mean + spread, color=colour, alpha=0.2, linewidth=0)
        ax.set_xlabel("epoch")
        ax.set_ylabel(f"distance to the convergence point\n({distances.parameters}, Euclidean)")
        ax.set_ylim(bottom=0)
        grids.legend(fig, ax.get_legend_handles_labels()[0])
        fig.suptitle(_about(distances).replace("; over", ";\nover"), fontsize="medium", parse_math=False)
    return fig


def clustered(matrix: np.ndarray) -> list[int]:
    """Return an order in which points that are close to each other are neighbours.

    Args:
        matrix: (Q, Q) distances.

    Returns:
        Q positions, by average-linkage clustering; the given order for at most two points.
    """
    if len(matrix) < 3 or not np.isfinite(matrix).all():
        return list(range(len(matrix)))
    symmetric = (matrix + matrix.T) / 2
    np.fill_diagonal(symmetric, 0.0)
    return [int(i) for i in leaves_list(linkage(squareform(symmetric, checks=False), "average", optimal_ordering=True))]


def _map(
    fig: Figure,
    ax: Axes,
    values: np.ndarray,
    spread: np.ndarray | None,
    rows: Sequence[str],
    columns: Sequence[str],
    norm: Normalize,
    label: str,
    *,
    colours: str = "viridis",
    shades: np.ndarray | None = None,
) -> None:
    """Draw a map with its colour bar; `shades` are the values for the colours, if these are not `values`."""
    shades = values if shades is None else shades
    cmap = colormaps[colours].with_extremes(bad="0.8")
    image = ax.imshow(np.ma.masked_invalid(shades), cmap=cmap, norm=norm, aspect="auto")
    ax.grid(visible=False)
    for axis, names, rotation in ((ax.xaxis, columns, 90), (ax.yaxis, rows, 0)):
        step = -(-len(names) // MOST_NAMES)
        ticks = list(range(0, len(names), step))
        axis.set_ticks(ticks, labels=[names[i] for i in ticks], rotation=rotation, parse_math=False)
        axis.set_tick_params(labelsize=7 if len(names) <= 30 else 5)
    digits, longest = (3, 7) if max(values.shape) <= 4 else (2, 5)  # and letters of a number
    if max(values.shape) <= MOST_NUMBERS:
        for i, j in np.ndindex(*values.shape):
            if not np.isfinite(values[i, j]):
                continue
            text = _short(float(values[i, j]), digits, longest)
            beside = np.nan if spread is None else float(spread[i, j])
            text += "" if np.isnan(beside) else f"\n±{_short(beside, 1, longest - 1)}"
            bright = np.dot(cmap(norm(shades[i, j]))[:3], (0.3, 0.6, 0.1)) > 0.55
            ax.text(j, i, text, ha="center", va="center", fontsize=6.5, color="0.1" if bright else "0.95")
    fig.colorbar(image, ax=ax, shrink=0.8, label=label, **grids.bar_place())


def _short(value: float, digits: int, longest: int) -> str:
    """Write a number for a cell of a map, "0.0851" or "8.1e-5"."""
    text = f"{value:.{digits}g}"
    if "e" not in text and len(text) <= longest:
        return text
    factor, power = f"{value:.{min(digits, 2) - 1}e}".split("e")
    return f"{factor.removesuffix('.0')}e{int(power)}"


def _from_zero(values: np.ndarray) -> Normalize:
    return Normalize(0, float(np.nanmax(values, initial=0.0)) or 1.0)


def _of_rows(values: np.ndarray) -> np.ndarray:
    """Return values as fractions of the largest in their row; rows of zeros and unknown rows are not changed."""
    largest = np.nan_to_num(values).max(axis=1, keepdims=True)
    shares: np.ndarray = np.divide(values, largest, out=values.copy(), where=largest > 0)
    return shares


def _spread(values: np.ndarray, errors: np.ndarray | None = None) -> np.ndarray | None:
    """Return the standard deviation over runs; of one run its errors over samples, nan for 0, if they are known."""
    if len(values) > 1:
        return np.asarray(values.std(0, ddof=1))
    return None if errors is None else np.where(errors[0] > 0, errors[0], np.nan)


def _worst(barrier: np.ndarray, errors: np.ndarray | None) -> tuple[np.ndarray, np.ndarray | None]:
    """Return the highest barrier from each point to another one, with its error; of equal ones the largest error."""
    itself = np.eye(barrier.shape[1], dtype=bool)[:, :, None]  # a point has no barrier, and no error, to itself
    others, last = (
        np.where(itself, -np.inf, barrier),
        np.zeros_like(barrier) if errors is None else np.nan_to_num(errors),
    )
    highest = np.lexsort((last, others), axis=2)[:, :, -1:]
    worst = np.take_along_axis(barrier, highest, 2)[:, :, 0]
    return worst, None if errors is None else np.take_along_axis(errors, highest, 2)[:, :, 0]


def _points(distances: Distances, parts: Sequence[str] | None) -> list[int]:
    """Return the points to draw: those of the chosen parts, and those that belong to no part."""
    wanted = {distances.parts[p] for p in _parts(distances, parts)}
    kept = [i for i, name in enumerate(distances.points) if name in wanted or name not in distances.parts]
    if not kept:
        raise InputError("there is no point to draw: name at least one part")
    return kept


def _parts(distances: Distances, parts: Sequence[str] | None) -> list[int]:
    chosen = distances.parts if parts is None else parts
    return sorted(position(name, distances.parts) for name in dict.fromkeys(chosen))


def _count(distances: Distances, point: int) -> int:
    """Return the training samples of a point's part; -1 for other points, and where they are unknown."""
    name = distances.points[point]
    if name not in distances.parts:
        return -1
    return int(np.nan_to_num(float(distances.train_counts[distances.parts.index(name)]), nan=-1.0))


def _label(distances: Distances, point: int) -> str:
    """Return the name of a point, with the training samples of its part or its epoch."""
    name, count = distances.points[point], _count(distances, point)
    epoch = distances.point_epoch[:, point].mean()
    words = [f"{count:,}"] if count >= 0 else []
    words += [f"epoch {epoch:g}"] if np.isfinite(epoch) else []
    return written.shorten(name, 20) + (f" ({', '.join(words)})" if words else "")


def _about(distances: Distances, errors: np.ndarray | None = None) -> str:
    several = len(distances.runs) > 1
    runs = f", mean of {len(distances.runs)} runs" if several else ""
    over_samples = "" if errors is None or several else "\n±: one standard error over samples"
    about = f"points: {distances.source}; over {distances.size:,} parameters ({distances.parameters})"
    return about + runs + over_samples
