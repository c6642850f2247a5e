"""The history of a training: curves over epochs, for all samples and for each class, the most frequent first."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from landscape.errors import InputError, arg
from landscape.plots.layout import grids, theme
from landscape.plots.layout.drawable import figure
from landscape.plots.layout.parts import by_name, colours
from landscape.plots.layout.scales import spans_decades
from landscape.results import History, written

MOST_NAMES = 12


@figure
def training(history: History, parts: Sequence[str] | None = None, *, errors: bool = False) -> Figure:
    """Draw loss, accuracy and the accuracy of each class over the epochs.

    Args:
        history: the result.
        parts: names of the classes to draw; None for all.
        errors: draw a band of one standard error over the test samples around each curve of test losses and accuracies.

    Returns:
        A new figure with three axes.

    Raises:
        InputError: no such class.
    """
    chosen = by_name(history, parts, "class")
    with theme.theme():
        fig, (loss, accuracy, classes), _ = grids.grid(3, 3, 11, 3.4)
        hues = theme.palette()
        for ax, what in ((loss, "loss"), (accuracy, "accuracy")):
            for colour, split in zip(hues, ("train", "test"), strict=False):
                _line(ax, history.epoch, getattr(history, f"{split}_{what}"), color=colour, label=split)
            ax.set_ylabel({"loss": "mean loss", "accuracy": "accuracy"}[what])
            ax.legend(frameon=False, fontsize="small")
        _per_class(fig, classes, history, history.test_accuracy_per_class, chosen)
        if errors:
            every = history.test_accuracy_per_class.T, history.test_accuracy_per_class_stderr.T
            if history.test_loss_stderr is not None:  # a run of an earlier version has none
                _band(loss, history.epoch, history.test_loss, history.test_loss_stderr, hues[1])
            _band(accuracy, history.epoch, history.test_accuracy, history.test_accuracy_stderr, hues[1])
            for shade, c in zip(colours(history, chosen), chosen, strict=True):
                _band(classes, history.epoch, every[0][c], every[1][c], shade)
        classes.set_ylabel("test accuracy of the class")
        for ax in (accuracy, classes):
            ax.set_ylim(-0.02, 1.02)
        _epochs(loss, accuracy, classes)
        loss.set_title(f"{history.method}; test: cross-entropy", parse_math=False)
    return fig


@figure
def quality(history: History, parts: Sequence[str] | None = None) -> Figure:
    """Draw the feature quality of each class over the epochs, with its two components (the paper's Figure 2).

    Args:
        history: the result.
        parts: names of the classes to draw; None for all.

    Returns:
        A new figure with three axes.

    Raises:
        InputError: no such class, or the run did not measure feature quality.
    """
    chosen = by_name(history, parts, "class")
    _measured(history, history.quality, "feature quality", "statistics_every")
    with theme.theme():
        fig, panels, _ = grids.grid(3, 3, 11, 3.4)
        for ax, name, label in (
            (panels[0], "quality", "feature quality $Q$"),
            (panels[1], "distance", "distance to the nearest class mean"),
            (panels[2], "variance", "variance within the class"),
        ):
            values = getattr(history, name)
            _per_class(fig if ax is panels[2] else None, ax, history, values, chosen)
            known = values[:, chosen]
            if name == "variance" and np.isfinite(known).any():
                theme.log_scale(ax.yaxis, known[np.isfinite(known)])
            ax.set_ylabel(label)
        _epochs(*panels)
        panels[0].set_title(history.method, parse_math=False)
    return fig


@figure
def cosines(history: History, parts: Sequence[str] | None = None) -> Figure:
    """Draw the cosine of class and batch gradients over the epochs (the paper's Figure 6).

    Args:
        history: the result.
        parts: names of the classes to draw; None for all.

    Returns:
        A new figure with one axes.

    Raises:
        InputError: no such class, or the run did not measure the cosines.
    """
    chosen = by_name(history, parts, "class")
    _measured(history, history.gradient_cosine, "gradient cosines", "cosines_every")
    with theme.theme():
        fig, (ax,), _ = grids.grid(1, 1, 5.5, 3.8)
        _per_class(fig, ax, history, history.gradient_cosine, chosen)
        ax.set_ylabel("cosine of class and batch gradient")
        ax.set_title(history.method, parse_math=False)
        _epochs(ax)
    return fig


@figure
def bank(history: History, parts: Sequence[str] | None = None) -> Figure:
    """Draw the effect of GSA and GKP over the epochs: the memory bank, the groups, and their share of the steps.

    Args:
        history: the result.
        parts: names of the classes to draw; None for all.

    Returns:
        A new figure with three axes: the epoch in which each class had its best features; the number of epochs in the
        bank, and of groups; the share of GKP's pull in the gradient, and the fraction of GSA's radii that were clipped.

    Raises:
        InputError: no such class, or the run has no memory bank or did not store these numbers.
    """
    chosen = by_name(history, parts, "class")
    _measured(history, history.bank_epoch, "a memory bank", f"{arg('gkp')} or {arg('sharpness', 'gsa')}")
    numbers = (history.n_banked, history.n_groups, history.pull_share, history.clipped_share)
    if any(values is None for values in numbers):
        raise InputError("the history is of an older version, which did not count groups: train again")
    with theme.theme():
        fig, (epochs, counts, shares), _ = grids.grid(3, 3, 11, 3.4)
        _per_class(fig, epochs, history, history.bank_epoch, chosen)
        epochs.set_ylabel("epoch of the class's best features")
        epochs.yaxis.set_major_locator(MaxNLocator(6, integer=True))
        labels = ("epochs in the bank", "groups", "pull of GKP", "clipped radii of GSA")
        places = (counts, counts, shares, shares)
        colours = [*theme.palette()[:2]] * 2
        for ax, values, label, colour in zip(places, numbers, labels, colours, strict=True):
            if values is not None and np.isfinite(values).any():
                _line(ax, history.epoch, values, color=colour, label=label)
        counts.set_ylabel("number")
        counts.yaxis.set_major_locator(MaxNLocator(5, integer=True))
        counts.set_ylim(bottom=0)
        shares.set_ylabel("share")
        shares.set_ylim(-0.02, 1.02)
        for ax in (counts, shares):
            if ax.lines:
                ax.legend(frameon=False, fontsize="small")
        _epochs(epochs, counts, shares)
        epochs.set_title(history.method, parse_math=False)
    return fig


@figure
def sweep(settings: Mapping[str, Mapping[float, Sequence[History]]]) -> Figure:
    """Draw the final test accuracy against an option of the training (the paper's Figures 5, 7 and 8).

    Args:
        settings: name of the option -> its value -> the runs with it, which differ only in their seed.

    Returns:
        A new figure with an axes for each option: the mean over seeds, and a band of one sample standard deviation
        if there are several.

    Raises:
        InputError: no option, or a value without runs.
    """
    if not settings or not all(runs for values in settings.values() for runs in (values, *values.values())):
        raise InputError("a sweep needs an option, values of it, and a run for each value")
    with theme.theme():
        n = len(settings)
        fig, panels, _ = grids.grid(n, n, max(4.5, 3.6 * n), 3.4, sharey=True)
        for ax, (name, values) in zip(panels, settings.items(), strict=True):
            x = np.array(sorted(values))
            found = [np.array([100 * run.test_accuracy[-1] for run in values[v]]) for v in x]
            mean = np.array([v.mean() for v in found])
            spread = np.array([v.std(ddof=1) if len(v) > 1 else 0.0 for v in found])
            colour = theme.palette()[0]
            ax.plot(x, mean, marker="o", markersize=4, linewidth=1.2, color=colour)
            ax.fill_between(x, mean - spread, mean + spread, color=colour, alpha=0.3, linewidth=0)
            if spans_decades(x):
                theme.log_scale(ax.xaxis, x)
            else:
                ax.set_xticks(x, labels=[f"{value:g}" for value in x])
            ax.set_xlabel(name, parse_math=False)
            ax.set_title(_seeds(found))
        panels[0].set_ylabel("test accuracy after the last epoch (%)")
    return fig


def _seeds(found: Sequence[np.ndarray]) -> str:
    few, many = (of(len(v) for v in found) for of in (min, max))
    if many == 1:
        return "one seed"
    return f"band: standard deviation of {few if few == many else f'{few} to {many}'} seeds"


def _measured(history: History, values: np.ndarray, what: str, name: str) -> None:
    if not np.isfinite(values).any():
        raise InputError(f"the run of {history.method} did not measure {what}: train with {arg(name)}")


def _line(ax: Axes, epochs: np.ndarray, values: np.ndarray, **style: object) -> None:
    known = np.isfinite(values)  # epochs between two measurements are joined by a line
    marker = "o" if known.sum() < 20 else ""
    ax.plot(epochs[known], values[known], marker=marker, markersize=3, linewidth=1.2, **style)  # type: ignore[arg-type]


def _band(ax: Axes, epochs: np.ndarray, values: np.ndarray, errors: np.ndarray, colour: Any) -> None:
    known = np.isfinite(values) & np.isfinite(errors)
    low, high = values[known] - errors[known], values[known] + errors[known]
    ax.fill_between(epochs[known], low, high, color=colour, alpha=0.25, linewidth=0)


def _per_class(fig: Figure | None, ax: Axes, history: History, values: np.ndarray, chosen: Sequence[int]) -> None:
    """Draw a line for each class and name it beside the figure; of many, dark for the most frequent, show a bar."""
    for shade, c in zip(colours(history, chosen), chosen, strict=True):
        label = f"{written.shorten(history.parts[c], 20)} ({history.train_counts[c]:,})"
        _line(ax, history.epoch, values[:, c], color=shade, label=label)
    if fig is None:
        return
    if len(chosen) <= MOST_NAMES:
        handles, _ = ax.get_legend_handles_labels()
        grids.legend(fig, handles, "class (training samples)")
        return
    bar = ScalarMappable(Normalize(1, len(chosen)), ListedColormap(theme.shades(256)))
    label = "rank of the class by training samples, 1 the most frequent"
    fig.colorbar(bar, ax=ax, label=label, **grids.bar_place())


def _epochs(*panels: Axes) -> None:
    for ax in panels:
        ax.set_xlabel("epoch")
        ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
