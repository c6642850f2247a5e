"""Maps of the change of each part along the sharpest directions, and along random directions of the same length."""

from collections.abc import Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from landscape.plots.layout import grids, theme
from landscape.plots.layout.drawable import figure
from landscape.plots.layout.parts import by_name, named
from landscape.results import Sensitivity

MOST_NUMBERS = 12  # rows and columns of a map whose numbers are written into it
MOST_LABELS = 60  # rows that are labelled one by one
_CELL = 0.42  # inches
_ZERO = 1e-6  # of the largest change: what is less is rounding


@figure
def changes(sensitivity: Sensitivity, parts: Sequence[str] | None = None) -> Figure:
    """Draw how each part's loss and accuracy change along each eigenvector in both signs, and along random directions.

    Parts are sorted by their training samples, the most frequent first. The last column is the control: the mean over
    random directions of the same length and both signs. Red is worse: a higher loss, or a lower accuracy.

    Args:
        sensitivity: the result.
        parts: names of the parts to draw; None for all.

    Returns:
        A new figure with a map for the loss, and one for the accuracy if there is one.

    Raises:
        InputError: no such part.
    """
    chosen = by_name(sensitivity, parts)
    maps = [("change of the loss", _matrix(sensitivity, sensitivity.loss_change)[chosen], "RdBu_r", 1.0)]
    if sensitivity.accuracy_change is not None:
        accuracy = _matrix(sensitivity, sensitivity.accuracy_change)[chosen]
        maps.append(("change of the accuracy (%)", accuracy, "RdBu", 100.0))
    n_rows, n_columns = maps[0][1].shape
    with theme.theme():
        width = len(maps) * (_CELL * n_columns + 1.2) + 1.6
        height = max(2.8, min(_CELL, 7 / n_rows) * n_rows + 1.7)
        fig, axes, _ = grids.grid(
            len(maps), len(maps), width, height, least=grids.LEAST_MAP, ratio=n_rows / n_columns, **grids.shared("y")
        )
        for ax, (label, values, colours, scale) in zip(axes, maps, strict=True):
            _map(fig, ax, scale * values, label, colours)
            _name(ax, sensitivity, chosen)
        about = f"eigenvectors of the Hessian of {sensitivity.of}, steps of length {sensitivity.rho:g}"
        control = f"last column: mean over {int(sensitivity.control.sum())} random directions"
        fig.suptitle(f"{about}\n{control}", fontsize=9, parse_math=False)
    return fig


def _matrix(sensitivity: Sensitivity, changes: np.ndarray) -> np.ndarray:
    """Return a column for each eigenvector and sign, minus first, and one for all random directions, (P, 2 n + 1)."""
    by_sign = changes[:, np.argsort(sensitivity.sign)]  # (D, 2, P)
    drawn = by_sign[sensitivity.control].reshape(-1, changes.shape[-1])
    control = drawn.mean(axis=0) if len(drawn) else np.full(changes.shape[-1], np.nan)
    return np.vstack([by_sign[~sensitivity.control].reshape(-1, changes.shape[-1]), control]).T


def _map(fig: Figure, ax: Axes, values: np.ndarray, label: str, colours: str) -> None:
    limit = float(np.abs(values[np.isfinite(values)]).max(initial=0.0)) or 1.0
    places = [np.arange(n) for n in values.shape[::-1]]
    mesh = ax.pcolormesh(
        *places,
        values,
        norm=Normalize(-limit, limit),
        cmap=colormaps[colours].with_extremes(bad="0.6"),
        shading="nearest",
        rasterized=True,
    )
    ax.grid(visible=False)
    few = values.shape[0] <= MOST_NUMBERS and values.shape[1] <= MOST_NUMBERS
    for (i, j), value in np.ndenumerate(values) if few else ():
        if np.isfinite(value):
            colour = "w" if abs(value) > 0.6 * limit else "k"
            text = f"{value:.2g}" if abs(value) > _ZERO * limit else "0"
            ax.text(j, i, text, ha="center", va="center", fontsize=6, color=colour)
    ax.axvline(values.shape[1] - 1.5, color="k", linewidth=0.8)
    fig.colorbar(mesh, ax=ax, label=label, fraction=0.05, pad=0.02, **grids.bar_place())


def _name(ax: Axes, sensitivity: Sensitivity, chosen: Sequence[int]) -> None:
    """Label rows by parts, and columns by eigenvectors with their eigenvalues and the sign of the step."""
    every = -(-len(chosen) // MOST_LABELS)
    rows = [named(sensitivity, p, 24) for p in chosen]
    size = min(8.0, 480 / len(rows))
    ax.set_yticks(range(0, len(chosen), every), labels=rows[::every], fontsize=size, parse_math=False)
    ax.set_ylim(len(chosen) - 0.5, -0.5)
    signs = ["\N{MINUS SIGN}" if sign < 0 else "+" for sign in sorted(sensitivity.sign)]
    values = sensitivity.eigenvalue[~sensitivity.control]
    names = [f"{sign} {k + 1} ({value:.3g})" for k, value in enumerate(values) for sign in signs]
    ax.set_xticks(range(len(names) + 1), labels=[*names, "random"], rotation=90, fontsize=7, parse_math=False)
    ax.set_xlabel("sign of the step, eigenvector (eigenvalue)")
