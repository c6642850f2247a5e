"""The figures of `landscape plot` as images inside the page, each with a caption, and maps as tables of numbers."""

import base64
import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from landscape.errors import InputError
from landscape.plots import KIND_FIGURES
from landscape.plots.figures.distances import MATRICES
from landscape.plots.layout import theme
from landscape.results import Distances, Features, Gradients, Result, Spectrum
from landscape.results.columns import drawn_as

MOST_NUMBERS = 20
"""Rows of a map that is repeated in numbers."""

_DPI, _SHOWN_DPI = 200, 120  # pixels of a picture and of the page for an inch of the figure

LEFT_OUT = ("3d", "heat", "overlay", "map", "barriers")
"""Kinds of figures that would repeat the table, the rotating surfaces, or another figure of the page."""


def caption(figure: Callable[..., Any]) -> str:
    """Return a figure's caption: the first sentence of its function's docstring, without "Draw"."""
    words = " ".join((figure.__doc__ or "").split("\n\n")[0].split()).removeprefix("Draw ").removesuffix(".")
    return words[:1].upper() + words[1:]


SHOWN: Mapping[str, Mapping[str, str]] = {
    of: {name: caption(figure) for name, figure in figures.items() if name not in LEFT_OUT}
    for of, figures in KIND_FIGURES.items()
}
"""Figures of each kind of result, by their names in `plots.KIND_FIGURES`, and what they show."""


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A figure in the page."""

    uri: str
    words: str  # what it shows
    width: int  # in pixels of the page
    height: int


@dataclass(frozen=True, kw_only=True)
class Matrix:
    """A map in numbers."""

    title: str
    names: tuple[str, ...]  # of rows and columns
    cells: list[list[str]]


def pictures(result: Result) -> tuple[list[Picture], list[str]]:
    """Draw the figures of a result.

    Args:
        result: a result of a kind in `sources.SECTIONS`.

    Returns:
        The pictures, and for each figure that this result does not have, a sentence with the reason.
    """
    kind = drawn_as(result)
    drawn, missing = [], []
    for name, words in SHOWN[kind].items():
        if name == "summary" and (not isinstance(result, Spectrum) or result.sample_trace is None):
            continue  # without errors over samples it would repeat the table
        try:
            figure = KIND_FIGURES[kind][name](result, None)
        except InputError as error:
            missing.append(f"{words}: {error}")
            continue
        content = io.BytesIO()
        with theme.theme():
            # Half as large as PNG, without loss.
            figure.savefig(content, format="webp", dpi=_DPI, pil_kwargs={"lossless": True})
        width, height = (round(inches * _SHOWN_DPI) for inches in figure.get_size_inches())
        uri = f"data:image/webp;base64,{base64.b64encode(content.getvalue()).decode()}"
        drawn.append(Picture(uri=uri, words=words, width=width, height=height))
    return drawn, missing


def matrices(result: Any) -> list[Matrix]:
    """Return the maps of a result as numbers: the mean over runs, or the last checkpoint.

    Args:
        result: a result of any kind.

    Returns:
        The maps that have at most `MOST_NUMBERS` rows.
    """
    maps: dict[str, np.ndarray | None] = {}
    errors: np.ndarray | None = None
    if isinstance(result, Distances):
        maps = {title.replace("\n", " "): getattr(result, name).mean(axis=0) for name, title in MATRICES.items()}
    elif isinstance(result, Gradients):
        errors = None if result.between_sampling_stderr is None else result.between_sampling_stderr[-1]
        about = "" if errors is None else " ± standard error over samples"
        maps = {f"cosine of the gradients{about}": result.between[-1]}
    elif isinstance(result, Features) and result.mean_cosine is not None:
        maps = {"cosine of the class means": result.mean_cosine[-1]}
    elif isinstance(result, Spectrum):
        maps = {
            "overlap (rows: whose directions, columns: whose matrix)": result.overlap,
            "curvature along gradients (rows: whose gradient, columns: whose matrix)": result.gradient_curvature,
        }
    names = result.points if isinstance(result, Distances) else result.parts
    return [
        Matrix(title=title, names=names, cells=_written(values, errors))
        for title, values in maps.items()
        if values is not None and len(names) <= MOST_NUMBERS
    ]


def _written(values: np.ndarray, errors: np.ndarray | None) -> list[list[str]]:
    beside = np.zeros_like(values) if errors is None else errors
    return [
        [f"{value:.3g}".replace("-", "\N{MINUS SIGN}") + _beside(error) for value, error in zip(*both, strict=True)]
        for both in zip(values.tolist(), beside.tolist(), strict=True)
    ]


def _beside(error: float) -> str:
    return "" if error == 0 else f" ± {error:.1g}" if error > 0 else " ± ?"
