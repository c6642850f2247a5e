"""Maps of pairs of parts: curvature of one along sharpest directions or the gradient of the other, and their angles.

Parts are sorted by their training samples, the most frequent first.
"""

import math
from collections.abc import Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from landscape.errors import InputError, arg
from landscape.plots.layout import grids, paper, theme
from landscape.plots.layout.drawable import figure
from landscape.plots.layout.parts import by_count, named
from landscape.plots.layout.symbols import matrix
from landscape.results import Spectrum, written

MOST_NUMBERS = 12  # parts whose numbers are written into the map
MOST_LABELS = 120  # rows and columns that are labelled one by one


@figure
def overlap_map(spectrum: Spectrum, parts: Sequence[str] | None = None) -> Figure:
    """Draw each part's curvature along the sharpest directions of each other part, as a fraction of its own.

    A row has the directions of one part, a column the curvature of one part: a red entry in the row of a head class and
    the column of a tail class means that the head's sharp directions are sharp for the tail. Blue is negative
    curvature. Pairs of different parts determine the scale; the diagonal, which is 1, may exceed it.

    Args:
        spectrum: the result, with `overlap`.
        parts: names of the parts to draw; None for all.

    Returns:
        A new figure with the map and a colour bar.

    Raises:
        InputError: no such part, or a spectrum that was computed without the overlap.
    """
    symbol = matrix(spectrum)
    label = rf"$\mathrm{{tr}}(V_a {symbol}_b V_a^T)\,/\,\mathrm{{tr}}(V_b {symbol}_b V_b^T)$"
    return _map(spectrum, spectrum.overlap, parts, ("sharpest directions of a", "curvature of b"), label)


@figure
def gradient_map(spectrum: Spectrum, parts: Sequence[str] | None = None) -> Figure:
    """Draw each part's curvature along the gradient of each other part, as a fraction of its largest eigenvalue.

    A row has the gradient of one part, a column the curvature of one part: a red entry in the row of a head class and
    the column of a tail class means that the tail's loss is curved along the head's gradient. Blue is negative
    curvature. Pairs of different parts determine the scale.

    Args:
        spectrum: the result, with `gradient_curvature`.
        parts: names of the parts to draw; None for all.

    Returns:
        A new figure with the map and a colour bar.

    Raises:
        InputError: no such part, or a spectrum that was computed without the overlap.
    """
    symbol, share = matrix(spectrum), None
    if spectrum.gradient_curvature is not None:
        most = np.broadcast_to(spectrum.lambda_max, spectrum.gradient_curvature.shape)
        share = np.divide(spectrum.gradient_curvature, most, out=np.full(most.shape, np.nan), where=most > 0)
    label = rf"$u_a^T {symbol}_b u_a\,/\,\lambda_{{\max}}({symbol}_b)$"
    return _map(spectrum, share, parts, ("gradient of a", "curvature of b"), label, of_vectors=False)


@figure
def subspace_map(spectrum: Spectrum, parts: Sequence[str] | None = None) -> Figure:
    """Draw the similarity of the spaces of two parts' sharpest directions: the mean squared cosine of principal angles.

    If there is room for numbers, the smallest angle is written below each.

    Args:
        spectrum: the result, with `subspace_overlap`.
        parts: names of the parts to draw; None for all.

    Returns:
        A new figure with the map and a colour bar.

    Raises:
        InputError: no such part, or a spectrum that was computed without the overlap.
    """
    label = r"$|V_a V_b^T|_F^2\,/\,k$"
    axes = ("sharpest directions of a", "sharpest directions of b")
    angles = None if spectrum.principal_angles is None else spectrum.principal_angles[:, :, 0]
    return _map(spectrum, spectrum.subspace_overlap, parts, axes, label, signed=False, angles=angles)


def _map(
    spectrum: Spectrum,
    matrix: np.ndarray | None,
    parts: Sequence[str] | None,
    axes: tuple[str, str],
    label: str,
    *,
    signed: bool = True,
    of_vectors: bool = True,
    angles: np.ndarray | None = None,
) -> Figure:
    """Draw a map of pairs, with angles below the numbers; pairs of different parts determine the scale."""
    order = _chosen(spectrum, matrix, parts)
    values = np.asarray(matrix)[np.ix_(order, order)]
    pairs = values[~np.eye(len(order), dtype=bool)]
    largest = float(np.abs(pairs[np.isfinite(pairs)]).max(initial=0.0))
    limit = max(0.05, math.ceil(20 * min(largest, 1.0)) / 20)
    few = len(order) <= MOST_NUMBERS
    size = 0.42 if few else min(0.3, max(0.105, 6 / len(order))) if len(order) <= MOST_LABELS else 12.6 / len(order)
    colours = colormaps["RdBu_r" if signed else "Reds"].with_extremes(bad="0.6")
    with theme.theme():
        side = size * len(order)
        room = paper.Room(ratio=1.0, most=min(side, paper.LONGEST_MAP))
        fig = theme.figure(max(4.4, side + 2.8), max(3.4, side + 1.8), room)
        ax = fig.subplots()
        theme.keep_ticks(ax)
        norm = Normalize(-limit if signed else 0, limit)
        places = np.arange(len(order))
        mesh = ax.pcolormesh(places, places, values, norm=norm, cmap=colours, shading="nearest", rasterized=True)
        ax.grid(visible=False)
        for (i, j), value in np.ndenumerate(values) if few else ():
            light = abs(value) > 0.6 * limit
            if np.isfinite(value):
                below = "" if angles is None else f"\n{angles[order[i], order[j]]:.0f}°"
                text = f"{value:.2f}{below}"
                ax.text(j, i, text, ha="center", va="center", fontsize=6.5, color="w" if light else "k")
        shown = slice(None, None, -(-len(order) // MOST_LABELS))
        starred = [" *" if of_vectors and not sure else "" for sure in spectrum.vectors_converged[order]]
        names = [written.shorten(spectrum.parts[p], 24) + star for p, star in zip(order, starred, strict=True)]
        counted = [named(spectrum, p, 24) + star for p, star in zip(order, starred, strict=True)]
        font = min(8.0, 0.8 * 72 * size * shown.step)
        ax.set_yticks(places[shown], labels=counted[shown], fontsize=font, parse_math=False)
        ax.set_xticks(places[shown], labels=names[shown], fontsize=font, rotation=90, parse_math=False)
        ax.set_ylim(len(order) - 0.5, -0.5)
        ax.set_ylabel(axes[0])
        ax.set_xlabel(axes[1])
        ax.set_title(_about(spectrum, values, order, of_vectors, few and angles is not None), parse_math=False)
        ax.title.set_gid(paper.CAPTION)
        extend = "both" if signed else "max"
        fig.colorbar(mesh, ax=ax, label=label, extend=extend, fraction=0.05, pad=0.02, **grids.bar_place())
    return fig


def _chosen(spectrum: Spectrum, matrix: np.ndarray | None, parts: Sequence[str] | None) -> list[int]:
    if matrix is None:
        raise InputError(
            f"the overlap of parts was not computed: compute the spectrum with {arg('vectors', 5)} and "
            f"{arg('overlap', True)}"
        )
    chosen = [spectrum.index(name) for name in (spectrum.parts if parts is None else parts)]
    if len(chosen) < 2:
        raise InputError("there is no overlap of fewer than two parts: choose more")
    return by_count(spectrum, chosen)


def _about(spectrum: Spectrum, values: np.ndarray, order: Sequence[int], of_vectors: bool, angles: bool) -> str:
    k = None if spectrum.ritz_vectors is None else spectrum.ritz_vectors.shape[1]  # the file may lack them
    directions = "sharpest directions" if k is None else f"{k} direction{'s' * (k != 1)}"
    lines = [f"{directions if of_vectors else 'gradient'} of each part; in brackets its training samples"]
    if angles:
        lines.append("below: the smallest angle between the two spaces")
    if of_vectors and not spectrum.vectors_converged[list(order)].all():
        lines.append("*: directions that have not converged")
    if np.isnan(values).any():
        lines.append("grey: no positive curvature to compare with" + ("" if of_vectors else ", or no gradient"))
    return "\n".join(lines)
