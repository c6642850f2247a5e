"""The images that contribute most to the sharpness of each part, with the network's predictions."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from landscape.errors import InputError
from landscape.plots.layout import grids, paper, theme
from landscape.plots.layout.drawable import figure
from landscape.plots.layout.parts import by_count, named, positions
from landscape.results import Spectrum, over_samples, written

MOST_PARTS = 10
MOST_NARROW = 4
"""Number of images of a part in one column of a page."""
_WRONG = "#d62728"


@figure
def images(spectrum: Spectrum, parts: Sequence[str] | None = None) -> Figure:
    """Draw the images that contribute most to each part's largest eigenvalue.

    The text at each image states its class (in red, with the predicted class, if that differs), its loss, and its
    shares of lambda_max and of the trace. The text beside a row states the shares of the sharpest 1 % of the part's
    images. Up to ten parts are drawn; if there are more, the most frequent and the rarest ones.

    Args:
        spectrum: the result, with small copies of images.
        parts: names of the parts to draw; None for all.

    Returns:
        A new figure with a row of images for each part.

    Raises:
        InputError: no such part, or a spectrum without images.
    """
    chosen = positions(spectrum, parts)
    if spectrum.images is None or spectrum.image_sample is None:
        raise InputError(
            "the spectrum has no images: its samples are no images, or it is of an earlier version or was computed "
            "without errors over samples"
        )
    order = by_count(spectrum, chosen)
    if len(order) > MOST_PARTS:
        order = order[: MOST_PARTS // 2] + order[-(MOST_PARTS // 2) :]
    n_images = min(spectrum.images.shape[1], MOST_NARROW if paper.is_narrow() else spectrum.images.shape[1])
    with theme.theme():
        fig, axes, _ = grids.grid(
            n_images * len(order), n_images, 0.95 * n_images + 1.6, 1.35 * len(order) + 0.4, least=0.6, ratio=1.0
        )
        for row, p in enumerate(order):
            _row(axes[row * n_images : (row + 1) * n_images], spectrum, p)
        trace = "tr G" if over_samples.of_gauss_newton(spectrum) else "the trace"
        fig.suptitle(rf"shares of $\lambda_{{\max}}$ / of {trace}; red: taken for another class", fontsize=8)
    return fig


def _row(axes: np.ndarray, spectrum: Spectrum, p: int) -> None:
    for ax in axes:
        ax.set_xticks([])
        ax.set_yticks([])
        ax.grid(visible=False)
        ax.set_facecolor("none")
    held = over_samples.held(spectrum, p)
    lines = [named(spectrum, p, 14)]
    if held is not None:
        top, trace = held.by(0.01)
        n = len(held.place)
        who = "sharpest 1 %" if n >= 100 else f"sharpest of {n}"
        lines += [f"{who}:", f"{top:.0%} / {trace:.0%}"]
    axes[0].set_ylabel("\n".join(lines), fontsize=7, rotation=0, ha="right", va="center", parse_math=False)
    shares = {} if held is None else {s: k for k, s in enumerate(held.place)}
    for ax, pixels, sample in zip(
        axes, np.asarray(spectrum.images)[p], np.asarray(spectrum.image_sample)[p], strict=False
    ):
        if not np.isfinite(sample) or int(sample) not in shares or held is None:
            continue
        shown = np.repeat(pixels, 3, axis=-1) if pixels.shape[-1] == 1 else pixels  # grey
        ax.imshow(shown, interpolation="nearest")
        _words(ax, spectrum, p, int(sample), (held.lambda_max[shares[int(sample)]], held.trace[shares[int(sample)]]))


def _words(ax: Axes, spectrum: Spectrum, p: int, sample: int, shares: tuple[float, float]) -> None:
    label, prediction, loss = (
        float(values[p, sample]) if values is not None else np.nan
        for values in (spectrum.sample_label, spectrum.sample_prediction, spectrum.sample_loss)
    )
    wrong = np.isfinite(prediction) and prediction != label
    words = written.shorten(_class_name(spectrum, label), 12)
    if wrong:
        words += f"\nas {written.shorten(_class_name(spectrum, prediction), 12)}"
    title = ax.set_title(words, fontsize=6, pad=2, parse_math=False)
    if wrong:
        title.set_color(_WRONG)
    ax.set_xlabel(f"loss {loss:.2g}\n{shares[0]:.0%} / {shares[1]:.0%}", fontsize=6, labelpad=1, parse_math=False)


def _class_name(spectrum: Spectrum, label: float) -> str:
    """Return the name of a class: that of the part that consists of this class, else its number, if it is known."""
    if not np.isfinite(label):
        return "no class"
    for part, classes in (spectrum.stated("partition", of=dict) or {}).items():
        if classes == [int(label)]:
            return str(part)
    return f"class {int(label)}"
