"""Gradients of parts: which ones agree, the specific component of each, and how this changes during training.

Parts are sorted by their training samples, the most frequent first.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from landscape.errors import InputError, position, said
from landscape.plots.layout import fitting, grids, paper, theme
from landscape.plots.layout.drawable import figure
from landscape.plots.layout.panels import ground, ink
from landscape.plots.layout.parts import by_name, colours_by_name, name_places, named, places
from landscape.results import Gradients, written

MOST_NUMBERS = 12  # parts whose cosines are written into the map
MOST_LABELS = 120  # rows and columns that are labelled one by one
ENDS = 6  # of more parts than twice this, the decomposition shows so many at each end
HIGHLIGHTED = 2  # head and tail parts that stand out over the epochs, as in the paper's Figure 6


@figure
def cosine_map(gradients: Gradients, parts: Sequence[str] | None = None, *, point: str | None = None) -> Figure:
    """Draw the cosines between the gradients of parts as a map, and beside it those with the whole gradient.

    The gradients of red pairs have similar directions, those of blue pairs opposite ones. The strongest pair determines
    the scale. The cosine of a part with itself is 1. For few parts, the map has the cosines as numbers, with their
    errors over samples if these are known.

    Args:
        gradients: the result.
        parts: names of the parts to draw; None for all.
        point: name of the checkpoint; None for the last.

    Returns:
        A new figure with the whole, the map and a colour bar.

    Raises:
        InputError: no such part or checkpoint.
    """
    chosen, k = by_name(gradients, parts), _point(gradients, point)
    between = gradients.between[k][np.ix_(chosen, chosen)]
    whole = gradients.cosine[k][chosen][:, None]
    of_pairs = _over_samples(gradients, "between", k)[np.ix_(chosen, chosen)]
    of_whole = _over_samples(gradients, "cosine", k)[chosen][:, None]
    others = np.abs(np.concatenate([between[~np.eye(len(chosen), dtype=bool)], whole.ravel()]))
    limit = max(0.1, math.ceil(10 * np.nanmax(others, initial=0)) / 10)
    norm = Normalize(-limit, limit)
    colours = colormaps["RdBu_r"].with_extremes(bad="0.6")
    few = len(chosen) <= MOST_NUMBERS
    size = 0.42 if few else min(0.3, max(0.105, 6 / len(chosen))) if len(chosen) <= MOST_LABELS else 12.6 / len(chosen)
    with theme.theme():
        side = size * len(chosen)
        room = paper.Room(ratio=1.0, most=min(side, paper.LONGEST_MAP))
        fig = theme.figure(max(4.2, side + 2.6 + size), max(3.2, side + 1.6), room)
        strip, image = fig.subplots(1, 2, sharey=True, width_ratios=[1, max(3, len(chosen))])
        for ax, values, errors in ((strip, whole, of_whole), (image, between, of_pairs)):
            theme.keep_ticks(ax)
            rows, columns = (np.arange(n + 1) - 0.5 for n in values.shape)
            mesh = ax.pcolormesh(columns, rows, values, norm=norm, cmap=colours, rasterized=True)
            ax.grid(visible=False)
            for (i, j), value in np.ndenumerate(values) if few else ():
                shade = "w" if abs(value) > 0.6 * limit else "k"
                text = "" if np.isnan(value) else f"{value:.2f}" + _beside(float(errors[i, j]), "\n±")
                ax.text(j, i, text, ha="center", va="center", fontsize=6.5, color=shade)
        shown = slice(None, None, -(-len(chosen) // MOST_LABELS))
        names = [written.shorten(gradients.parts[p], 24) for p in chosen]
        counted = [named(gradients, p, 24) for p in chosen]
        font = min(8.0, 0.8 * 72 * size * shown.step)
        places = np.arange(len(chosen))[shown]
        strip.set_yticks(places, labels=counted[shown], fontsize=font, parse_math=False)
        strip.set_ylim(len(chosen) - 0.5, -0.5)
        strip.set_xticks([0], labels=["the whole"], fontsize=min(8.0, 1.3 * font), rotation=90)
        image.set_xticks(places, labels=names[shown], fontsize=font, rotation=90, parse_math=False)
        image.tick_params(labelleft=False)
        unknown = ";\ngrey: no gradient above rounding" if np.isnan(between).any() else ""
        image.set_title(f"{_about(gradients, k)}{unknown}", parse_math=False)
        image.title.set_gid(paper.CAPTION)
        about: dict[str, Any] = {
            "label": "cosine of the gradients",
            "extend": "max" if limit < 1 else "neither",
            "fraction": 0.05,
            "pad": 0.02,
        }
        fig.colorbar(mesh, ax=image, **about, **grids.bar_place())
    return fig


@figure
def decomposition(gradients: Gradients, parts: Sequence[str] | None = None, *, point: str | None = None) -> Figure:
    """Draw each part's gradient, its projection on the whole gradient and the remainder (the paper's Figure 4).

    A panel is the plane of g and h_p, which contains g_p; each panel has its own scale, equal on both axes. If errors
    over samples are known, bars at the tip are those of the two components.

    Args:
        gradients: the result; for means over batches, the means of the two components are drawn.
        parts: names of parts; None means all or, if there are more than twelve, the six most frequent and the six
            rarest.
        point: name of the checkpoint; None for the last.

    Returns:
        A new figure with an axes for each part.

    Raises:
        InputError: no such part or checkpoint.
    """
    chosen, k = by_name(gradients, parts), _point(gradients, point)
    if parts is None and len(chosen) > 2 * ENDS:
        chosen = [*chosen[:ENDS], *chosen[-ENDS:]]
    n_columns = min(len(chosen), max(3, math.isqrt(len(chosen) - 1) + 1))
    n_rows = -(-len(chosen) // n_columns)
    with theme.theme():
        inches = max(4.5, 2.1 * n_columns), 2.45 * n_rows + (0.7 if n_columns > 2 else 1.2)
        fig, panels, n_columns = grids.grid(len(chosen), n_columns, *inches, ratio=1.0)
        for ax, p in zip(panels, chosen, strict=True):
            _plane(ax, gradients, k, p)
        colours = _colours()
        handles = [
            Line2D([], [], color=colours["norm"], label="$g_p$, gradient of the part"),
            Line2D([], [], color=colours["projected"], label="its projection on $g$, of all samples"),
            Line2D([], [], color=colours["specific"], label="$h_p$, its own"),
        ]
        fig.legend(handles=handles, loc="outside lower center", ncols=1 if n_columns < 3 else 3, frameon=False)
        fig.suptitle(f"{_about(gradients, k)}; units of the loss", fontsize=9, parse_math=False)
    return fig


@figure
def gradient_norms(gradients: Gradients, parts: Sequence[str] | None = None, *, point: str | None = None) -> Figure:
    """Draw norms, their two components and the parts' shares of the whole gradient against the training samples.

    Args:
        gradients: the result.
        parts: names of the parts to draw; None for all.
        point: name of the checkpoint; None for the last.

    Returns:
        A new figure with two axes.

    Raises:
        InputError: no such part or checkpoint.
    """
    chosen, k = by_name(gradients, parts), _point(gradients, point)
    x, beside = places(gradients, chosen)
    colours, rounded = _colours(), gradients.only_rounding("norm")[k][chosen]
    with theme.theme():
        fig, (sizes, shares), _ = grids.grid(2, 2, 8.6, 3.6)
        drawn = []
        kinds = (
            ("projected", "along $g$ (hollow: against it)", "^"),
            ("norm", "$|g_p|$", "o"),
            ("specific", "$|h_p|$, its own", "s"),
        )
        for shift, (name, label, marker) in enumerate(kinds, -1):
            values, errors = getattr(gradients, name)[k][chosen], _errors(gradients, name)[k][chosen]
            known = (np.abs(values) > 0) & ~rounded  # a logarithmic axis has no place for zero
            size = np.where(known, np.abs(values), np.nan)
            drawn.append(size[np.isfinite(size)])
            place = x + 0.15 * shift if beside else x * 1.04**shift
            _marks(sizes, place, size, errors, values < 0, marker, colours[name], label)
        values = np.concatenate(drawn)
        missing = int((rounded | ~(gradients.norm[k][chosen] > 0)).sum())
        sizes.set_ylabel("size (units of the loss)")
        sizes.set_title(f"not drawn: {missing} without a gradient above rounding" if missing else "")
        if values.size:
            theme.log_scale(sizes.yaxis, values)
        share = gradients.n_samples[chosen] / gradients.n_samples.sum()
        shares.axhline(0, color=theme.muted(), linewidth=0.8)
        _marks(shares, x, share, np.zeros(len(x)), np.full(len(x), True), "D", ink(), "share of the samples")
        contribution, error = gradients.contribution[k][chosen], _errors(gradients, "contribution")[k][chosen]
        _marks(shares, x, contribution, error, np.full(len(x), False), "o", colours["norm"], "share of the gradient")
        shares.set_ylabel("share of the whole")
        where: dict[str, Any] = {}
        if len(chosen) > MOST_NUMBERS:  # there is no place between the points
            where = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.18), "ncols": 1 if paper.is_narrow() else 3}
        for ax in (sizes, shares):
            ax.legend(frameon=False, fontsize="small", **where).set_gid(fitting.BELOW if where else None)
            name_places(ax, gradients, chosen)
        sizes.set_xlim(shares.get_xlim())  # without any gradient it has no limits of its own
        fig.suptitle(_about(gradients, k), fontsize=9, parse_math=False)
    return fig


@figure
def gradient_layers(gradients: Gradients, parts: Sequence[str] | None = None, *, point: str | None = None) -> Figure:
    """Draw each part's share of the gradient of each layer, and its cosine with it: two maps of layers and parts.

    Layers are in the order of the network. The shares of a layer sum to 1 over all parts; if one exceeds 1, the shares
    of others are negative.

    Args:
        gradients: the result.
        parts: names of the parts to draw; None for all.
        point: name of the checkpoint; None for the last.

    Returns:
        A new figure with two maps, each with a colour bar.

    Raises:
        InputError: no such part or checkpoint, or a result without numbers for layers.
    """
    chosen, k = by_name(gradients, parts), _point(gradients, point)
    layers, whole, cosine = gradients.layers, gradients.layer_whole_norm, gradients.layer_cosine
    if layers is None or whole is None or cosine is None:
        raise InputError("the file has no values of single layers: compute it again by landscape gradients")
    names, brackets = [written.shorten(name, 28) for name in layers], "the part's training samples"
    if not paper.is_narrow():
        squares = whole[k] ** 2
        shares = 100 * squares / (squares.sum() or 1)
        rounded = gradients.only_rounding("layer_whole_norm")[k]
        written_shares = ["rounding" if r else f"{share:.0f} %" for share, r in zip(shares, rounded, strict=True)]
        names = [f"{name} ({share})" for name, share in zip(names, written_shares, strict=True)]
        brackets = f"the layer's share of |g|² and {brackets}"
    heads = [named(gradients, p, 24) for p in chosen]
    wide, high = min(5.0, max(1.2, 0.42 * len(heads))), min(9.0, max(1.2, 0.2 * len(names)))
    few = max(len(heads), len(names) / 2) <= MOST_NUMBERS
    with theme.theme():
        n_columns = min(2, grids.most_columns(grids.LEAST_MAP))
        n_rows = 2 // n_columns
        on_page = min(paper.LONGEST_MAP / (1.0 if n_rows == 1 else 2.2), max(1.2, 0.12 * len(names)))
        fig = theme.figure(2 * wide + 4.2, high + 2, paper.Room(rows=n_rows, least=on_page, most=on_page))
        axes = fig.subplots(n_rows, n_columns, sharex=True, sharey=True, squeeze=False).ravel()
        for ax, field, what in zip(axes, ("contribution", "cosine"), ("share of $g$", "cosine with $g$"), strict=True):
            theme.keep_ticks(ax)
            values = getattr(gradients, f"layer_{field}")[k][:, chosen]
            largest = np.abs(np.nan_to_num(values)).max()
            limit = min(1.0, max(0.1, math.ceil(10 * largest) / 10))
            norm, colours = Normalize(-limit, limit), colormaps["RdBu_r"].with_extremes(bad="0.6")
            rows, columns = (np.arange(n + 1) - 0.5 for n in values.shape)
            mesh = ax.pcolormesh(columns, rows, values, norm=norm, cmap=colours, rasterized=True)
            ax.grid(visible=False)
            ax.set_title(f"{what} within the layer")
            extend = "both" if largest > limit else "neither"
            fig.colorbar(mesh, ax=ax, extend=extend, fraction=0.05, pad=0.02, **grids.bar_place())
            for (i, j), value in np.ndenumerate(values) if few else ():
                shade = "w" if abs(value) > 0.6 * limit else "k"
                text = "" if np.isnan(value) else f"{value:z.2f}"
                ax.text(j, i, text, ha="center", va="center", fontsize=6.5, color=shade)
            ax.tick_params("x", rotation=90)
            for axis, labels, inches in ((ax.xaxis, heads, wide), (ax.yaxis, names, high)):
                step = math.ceil(0.12 * len(labels) / inches)
                axis.set_ticks(range(0, len(labels), step), labels=labels[::step], fontsize=7, parse_math=False)
        axes[0].set_ylim(len(names) - 0.5, -0.5)
        unknown = "; grey: no gradient above rounding" if np.isnan(cosine[k][:, chosen]).any() else ""
        fig.suptitle(f"{_about(gradients, k)}; in brackets {brackets}{unknown}", fontsize=9, parse_math=False)
    return fig


@figure
def gradient_epochs(gradients: Gradients, parts: Sequence[str] | None = None) -> Figure:
    """Draw the cosine of each part's gradient and the whole gradient over the epochs (the paper's Figure 6).

    Args:
        gradients: the result, of the checkpoints of one run.
        parts: names of parts, which are all highlighted; None means all, with the two most frequent and the two rarest
            ones highlighted.

    Returns:
        A new figure with one axes.

    Raises:
        InputError: no such part, fewer than two checkpoints, or several of one epoch.
    """
    return gradient_cosines({str(gradients.provenance.get("method") or ""): gradients}, parts)


@figure
def gradient_cosines(results: Mapping[str, Gradients], parts: Sequence[str] | None = None) -> Figure:
    """Draw the cosines of part and whole over the epochs of several runs side by side, on one scale.

    Args:
        results: name of the run, for its title -> its gradients.
        parts: as for `gradient_epochs`; each run must have them.

    Returns:
        A new figure with an axes for each run.

    Raises:
        InputError: no runs, no such part, fewer than two checkpoints, or several of one epoch.
    """
    if not results:
        raise InputError("there is no run to draw")
    with theme.theme():
        n = len(results)
        fig, panels, _ = grids.grid(n, n, max(5.5, 3.4 * n + 1.6), 3.8, sharey=True)
        colours = colours_by_name((g, _highlighted(by_name(g, parts), parts)) for g in results.values())
        for ax, (name, gradients) in zip(panels, results.items(), strict=True):
            _course(ax, gradients, parts, colours)
            ax.set_title("\n".join(filter(None, [name, _how(gradients)])), parse_math=False)
        panels[0].set_ylabel("cosine of the part's and the whole gradient")
        labelled = {h.get_label(): h for ax in panels for h in ax.get_legend_handles_labels()[0]}
        grids.legend(fig, list(labelled.values()), "part (training samples)")
    return fig


def _point(gradients: Gradients, name: str | None) -> int:
    if name is None:
        return len(gradients.points) - 1
    return position(name, gradients.points, "checkpoint")


def _about(gradients: Gradients, k: int) -> str:
    epoch = "" if np.isnan(gradients.epoch[k]) else f", epoch {gradients.epoch[k]:g}"
    return f"{written.shorten(gradients.points[k], 40)}{epoch}; {_how(gradients)}"


def _how(gradients: Gradients) -> str:
    if not gradients.batch_size:
        known = gradients.norm_sampling_stderr is not None
        return "exact gradients" + (" ± one standard error over samples" if known else "")
    return f"means over batches of {gradients.batch_size:,}"


def _errors(gradients: Gradients, name: str) -> np.ndarray:
    """Return standard errors of a number: over samples if the result has them, else over batches."""
    over_samples = getattr(gradients, f"{name}_sampling_stderr")
    errors: np.ndarray = getattr(gradients, f"{name}_stderr") if over_samples is None else over_samples
    return errors


def _over_samples(gradients: Gradients, name: str, k: int) -> np.ndarray:
    """Return standard errors over samples of a number at a checkpoint; nan if the result does not have them."""
    found = getattr(gradients, f"{name}_sampling_stderr")
    errors: np.ndarray = np.full(getattr(gradients, name)[k].shape, np.nan) if found is None else found[k]
    return errors


def _beside(error: float, sign: str = " ± ") -> str:
    """Return the text for an error that stands behind a number; none for an unknown error and for 0."""
    return f"{sign}{error:.1g}" if error > 0 else ""


def _colours() -> dict[str, str]:
    palette = theme.palette()
    return {"norm": palette[7], "projected": palette[0], "specific": palette[3]}


def _plane(ax: Axes, gradients: Gradients, k: int, p: int) -> None:
    along, own, size = (float(getattr(gradients, f)[k, p]) for f in ("projected", "specific", "norm"))
    across, up, of_cosine, of_radius = (
        float(np.nan_to_num(_over_samples(gradients, name, k)[p]))
        for name in ("projected", "specific", "cosine", "radius")
    )
    name = written.shorten(gradients.parts[p], 24)
    ax.set_box_aspect(1)
    ax.set_title(name, parse_math=False, pad=26 if of_radius else 16)
    numbers: dict[str, Any] = {
        "x": 0.5,
        "y": 1.02,
        "transform": ax.transAxes,
        "ha": "center",
        "va": "bottom",
        "fontsize": 7.5,
    }
    if not (size > 0 and math.isfinite(along)):
        nothing = "no gradient" if not size > 0 else "no gradient above rounding"
        of_part = not size > 0 or gradients.only_rounding("norm")[k, p]
        ax.text(s=nothing if of_part else "no gradient of the whole", **numbers)
        ax.set_xticks([])
        ax.set_yticks([])
        return
    half = max(0.75 * max(abs(along), own), 0.55 * abs(along) + 1.1 * across, 0.55 * own + 1.1 * up)
    ax.set_xlim(along / 2 - half, along / 2 + half)
    ax.set_ylim(own / 2 - half, own / 2 + half)
    ax.axhline(0, color=theme.muted(), linewidth=0.8, linestyle="--")
    ax.annotate("$g$", (1, 0), (-2, 2), ax.get_yaxis_transform(), "offset points", ha="right", va="bottom", alpha=0.7)
    colours = _colours()
    for start, end, kind in (
        ((0, 0), (along, 0), "projected"),
        ((along, 0), (along, own), "specific"),
        ((0, 0), (along, own), "norm"),
    ):
        style = {"arrowstyle": "-|>", "color": colours[kind], "linewidth": 1.6, "shrinkA": 0, "shrinkB": 0}
        ax.annotate("", end, start, arrowprops=style | {"mutation_scale": 9})
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(MaxNLocator(3, steps=theme.STEPS))
    ax.tick_params(labelsize=6.5)
    if across or up:
        ax.errorbar(along, own, xerr=across, yerr=up, fmt="none", ecolor=colours["norm"], elinewidth=1, capsize=2)
    rho = gradients.radius[k, p]
    radius = [rf"$\rho_p$ = {rho:.2g}{_beside(of_radius)}"] if np.isfinite(rho) else []
    lines = [f"cos = {gradients.cosine[k, p]:.2f}{_beside(of_cosine)}", *radius]
    ax.text(s=("\n" if of_radius else ", ").join(lines), **numbers)


def _marks(
    ax: Axes,
    x: np.ndarray,
    values: np.ndarray,
    errors: np.ndarray,
    hollow: np.ndarray,
    marker: str,
    colour: str,
    label: str,
) -> None:
    errors = np.nan_to_num(errors)
    if errors.any():
        ax.errorbar(x, values, yerr=errors, fmt="none", ecolor=colour, elinewidth=1, capsize=2)
    filled = not hollow.all()
    ax.scatter(x[~hollow], values[~hollow], s=22, marker=marker, color=colour, label=label if filled else None)
    style: dict[str, Any] = {"facecolor": ground(), "edgecolor": colour, "linewidth": 1, "zorder": 3}
    ax.scatter(x[hollow], values[hollow], s=22, marker=marker, label=None if filled else label, **style)


def _highlighted(chosen: Sequence[int], parts: Sequence[str] | None) -> Sequence[int]:
    """Return the chosen parts that have a colour: those that were asked for, or the most frequent and the rarest."""
    if parts is not None or len(chosen) <= 2 * HIGHLIGHTED:
        return chosen
    return [*chosen[:HIGHLIGHTED], *chosen[-HIGHLIGHTED:]]


def _course(ax: Axes, gradients: Gradients, parts: Sequence[str] | None, colours: Mapping[str, str]) -> None:
    """Draw the cosines of a run; `colours` are those of parts by their names."""
    if len(gradients.points) < 2:
        raise InputError(
            "one checkpoint shows no course over epochs: analyse "
            f"{said('several checkpoints', 'by --ckpt the folder of a run, or a glob')}"
        )
    chosen = by_name(gradients, parts)
    known = np.isfinite(gradients.epoch).all()
    x = gradients.epoch if known else np.arange(len(gradients.points))
    if len(set(x.tolist())) < len(x):
        raise InputError("several checkpoints are of one epoch: analyse one run at a time")
    order = np.argsort(x)
    highlighted = _highlighted(chosen, parts)
    for p in chosen:
        cosine, error = gradients.cosine[order, p], np.nan_to_num(_errors(gradients, "cosine")[order, p])
        if p not in highlighted:
            ax.plot(x[order], cosine, color=theme.muted(), linewidth=0.7, zorder=1)
            continue
        tail = gradients.train_counts[p] < gradients.train_counts[chosen].mean()
        ax.errorbar(
            x[order],
            cosine,
            yerr=error if error.any() else None,
            color=colours[gradients.parts[p]],
            marker="s" if tail else "o",
            markersize=3.5,
            linewidth=1.2,
            elinewidth=1,
            capsize=2,
            label=named(gradients, p, 20),
        )
    ax.axhline(0, color=theme.muted(), linewidth=0.8)
    ax.set_xlabel("epoch" if known else "checkpoint, in order")
    ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
