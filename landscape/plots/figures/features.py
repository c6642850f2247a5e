"""Features of each class: their quality, the angles between class means, and measures of neural collapse.

Classes are sorted by their training samples, the most frequent first.
"""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from landscape.errors import InputError, arg, check_choice, said
from landscape.plots.layout import grids, theme
from landscape.plots.layout.drawable import figure
from landscape.plots.layout.panels import ink
from landscape.plots.layout.parts import by_name, colours, colours_by_name, named, places
from landscape.results import Features, written
from landscape.results.features import QUALITY

MOST_NAMES = 12  # classes that are named one by one
MOST_LABELS = 120  # rows and columns of a map that are labelled
_MARKERS = "os"  # a second shape where the ten colours are used up

_QUALITY = (
    ("quality", r"$Q$ = Dis $-$ {beta:g} log Var"),
    ("quality_inverse", r"$-$1 / Dis $-$ log Var"),
    ("distance", "Dis: distance to the nearest class mean"),
    ("variance", "Var: variance within the class"),
)
_COLLAPSE = (
    ("NC1: within over between classes", {"within_between": ""}),
    (
        "NC2: class means of equal norms and angles",
        {"norm_variation": "norms: spread over mean", "angle_deviation": r"angles: |cos + 1 / ($C-$1)|"},
    ),
    ("NC3: classifier against class means", {"duality": ""}),
    ("NC4: share not of the nearest mean", {"mean_disagreement": ""}),
)


@figure
def class_quality(features: Features, parts: Sequence[str] | None = None) -> Figure:
    """Draw feature quality, in both forms, and its two components (the paper's Figure 2).

    For several checkpoints, the figure has curves over the epochs, with the most frequent and the rarest class in
    colour; for one checkpoint, it has points against the training samples. Bars, and bands around coloured lines, are
    standard errors over samples, if the file has them.

    Args:
        features: the result.
        parts: names of the classes to draw; None for all.

    Returns:
        A new figure with four axes.

    Raises:
        InputError: no such class.
    """
    chosen = by_name(features, parts, "class")
    with theme.theme():
        fig, panels, _ = grids.grid(4, 4, 12.6, 3.2)
        shades = _colours([features], parts)
        for ax, (name, label) in zip(panels, _QUALITY, strict=True):
            values, errors = getattr(features, name), _errors(features, name)
            if len(features.points) > 1:
                _curves(ax, features, values, chosen, shades, errors)
            else:
                _points(ax, features, values[0], chosen, errors[0])
            known = values[:, chosen][np.isfinite(values[:, chosen])]
            if name == "variance" and known.size:
                theme.log_scale(ax.yaxis, known)
            unknown = int(np.isnan(values[-1, chosen]).sum())
            missing = f"\nunknown for {unknown} of {len(chosen)} classes" if unknown else ""
            ax.set_title(label.format(beta=features.beta) + missing)
        _legend(fig, panels[0])
        fig.suptitle(_about(features), fontsize=9, parse_math=False)
    return fig


@figure
def compare_quality(
    results: Mapping[str, Features], parts: Sequence[str] | None = None, *, form: str = "paper"
) -> Figure:
    """Draw the feature quality of several runs side by side, on one scale (the paper's Figure 2).

    Args:
        results: name of the run, for its title -> its features at several checkpoints.
        parts: names of classes, which each run must have; None means all.
        form: "paper", Dis - beta log Var, or "inverse", -1 / Dis - log Var.

    Returns:
        A new figure with an axes for each run.

    Raises:
        InputError: no runs, no such class, fewer than two checkpoints, an unknown form, or the paper's form with
            several beta.
    """
    if not results:
        raise InputError("there is no run to draw")
    check_choice("form", form, QUALITY)
    for name, features in results.items():
        if len(features.points) < 2:
            raise InputError(
                f"{name}: one checkpoint shows no course over epochs: analyse "
                f"{said('several checkpoints', 'by --ckpt the folder of a run, or a glob')}"
            )
    betas = dict.fromkeys(features.beta for features in results.values())
    if form == "paper" and len(betas) > 1:
        known = ", ".join(f"{beta:g}" for beta in betas)
        raise InputError(
            f"the quality of the runs has several {arg('beta')}, {known}: analyse all with one, or draw "
            f"{arg('form', 'inverse')}, which has none"
        )
    field = QUALITY[form]
    with theme.theme():
        n = len(results)
        fig, axes, _ = grids.grid(n, n, max(5.5, 3.4 * n + 1.6), 3.4, sharey=True)
        shades = _colours(results.values(), parts)
        for ax, (name, features) in zip(axes, results.items(), strict=True):
            _curves(ax, features, getattr(features, field), by_name(features, parts, "class"), shades)
            ax.set_title(name, parse_math=False)
        axes[0].set_ylabel("feature quality\n" + dict(_QUALITY)[field].format(beta=next(iter(betas))))
        labelled = {h.get_label(): h for ax in axes for h in ax.get_legend_handles_labels()[0]}
        grids.legend(fig, list(labelled.values()), "class (training samples)")
    return fig


@figure
def class_angles(features: Features, parts: Sequence[str] | None = None) -> Figure:
    """Draw the cosines between centred class means as a map; for several checkpoints, at the first and the last one.

    White is the cosine of neural collapse, -1 / (C - 1), at which all pairs have the largest possible equal angle. The
    classes of red pairs are closer to each other, those of blue pairs further apart. The pair that is furthest from
    white determines the scale.

    Args:
        features: the result.
        parts: names of the classes to draw; None for all.

    Returns:
        A new figure with a map for each of the checkpoints and a colour bar.

    Raises:
        InputError: no such class, fewer than two classes, or so many that their angles were not stored.
    """
    chosen = by_name(features, parts, "class")
    if features.mean_cosine is None:
        raise InputError(
            f"the angles between {len(features.parts):,} classes were not stored: draw "
            f"{said('class_quality() or neural_collapse()', '--kind quality or collapse')}"
        )
    if len(chosen) < 2:
        raise InputError("there are no angles between fewer than two classes")
    shown = sorted({0, len(features.points) - 1})
    maps = features.mean_cosine[shown][:, chosen][:, :, chosen]
    maps[:, np.arange(len(chosen)), np.arange(len(chosen))] = np.nan  # a class with itself
    widest = -1 / max(1, int((features.n_samples > 0).sum()) - 1)
    limit = max(0.05, float(np.nanmax(np.abs(maps - widest), initial=0)))
    few = len(chosen) <= MOST_NAMES
    size = 0.36 if few else max(0.09, 4.5 / len(chosen))  # inches of one class
    with theme.theme():
        side = size * min(len(chosen), MOST_LABELS)
        inches = max(3.4, side + 0.6) * len(shown) + 2.0, max(3.2, side + 1.4)
        fig, panels, _ = grids.grid(len(shown), len(shown), *inches, least=grids.LEAST_MAP, ratio=1.0, sharey=True)
        for ax, k, values in zip(panels, shown, maps, strict=True):
            mesh = ax.imshow(
                values,
                norm=Normalize(widest - limit, widest + limit),
                cmap=colormaps["RdBu_r"].with_extremes(bad="0.75"),
                interpolation="none",
                aspect="auto",
            )
            ax.grid(visible=False)
            for (i, j), value in np.ndenumerate(values) if few else ():
                light = abs(value - widest) > 0.6 * limit
                if np.isfinite(value):
                    ax.text(j, i, f"{value:.2f}", ha="center", va="center", fontsize=6, color="w" if light else "k")
            _names(ax, features, chosen, font=min(8.0, 0.8 * 72 * size))
            ax.set_title(_point(features, k) if len(shown) > 1 else "", parse_math=False)
        place = grids.bar_place()
        bar = fig.colorbar(mesh, ax=panels, label="cosine of the centred class means", aspect=30, pad=0.02, **place)
        (bar.ax.axvline if place else bar.ax.axhline)(widest, color="k", linewidth=0.8)
        ends = bar.ax.set_xlim if place else bar.ax.set_ylim
        ends(max(-1, widest - limit), min(1, widest + limit))  # white is not in the middle of all cosines
        bar.ax.set_title(f"white: {widest:.3g}", fontsize=7)
        fig.suptitle(_about(features), fontsize=9, parse_math=False)
    return fig


@figure
def neural_collapse(features: Features, parts: Sequence[str] | None = None) -> Figure:
    """Draw NC1 to NC4: over the epochs or, for one checkpoint, the contribution of each class.

    Args:
        features: the result.
        parts: names of the classes that are drawn for one checkpoint; None means all. Numbers are those of all classes.

    Returns:
        A new figure with four axes.

    Raises:
        InputError: no such class.
    """
    chosen = by_name(features, parts, "class")
    with theme.theme():
        fig, panels, _ = grids.grid(4, 4, 12.6, 3.2 if len(features.points) > 1 else 3.5)
        if len(features.points) > 1:
            _collapse_curves(list(panels), features)
        else:
            _collapse_bars(list(panels), features, chosen)
        fig.suptitle(_about(features), fontsize=9, parse_math=False)
    return fig


def _about(features: Features) -> str:
    about = features.provenance
    network = " ".join(str(about[key]) for key in ("method", "model") if about.get(key))
    data = features.stated("data", "name", of=str)
    samples = f"features of {about.get('split')} samples of {data}" if data else ""
    return ", ".join(filter(None, [network, samples, _point(features, 0) if len(features.points) == 1 else ""]))


def _point(features: Features, k: int) -> str:
    epoch = "" if np.isnan(features.epoch[k]) else f", epoch {features.epoch[k]:g}"
    return f"{written.shorten(features.points[k], 32)}{epoch}"


def _errors(features: Features, name: str) -> np.ndarray:
    """Return the standard errors over samples of a number; zeros if the file has none."""
    found = getattr(features, f"{name}_stderr")
    errors: np.ndarray = np.nan_to_num(np.zeros_like(getattr(features, name)) if found is None else found)
    return errors


def _course(features: Features) -> tuple[np.ndarray, np.ndarray, str]:
    """Return the order of the checkpoints, their positions on the x axis, and the label of this axis."""
    known = np.isfinite(features.epoch).all() and len(set(features.epoch.tolist())) == len(features.epoch)
    x = features.epoch if known else np.arange(len(features.points), dtype=float)
    order = np.argsort(x)
    return order, x[order], "epoch" if known else "checkpoint, in order"


def _line(ax: Axes, x: np.ndarray, values: np.ndarray, **style: object) -> None:
    marker = "o" if len(x) < 20 else ""
    ax.plot(x, values, marker=marker, markersize=2.5, linewidth=1.4, **style)  # type: ignore[arg-type]


def _shade(ax: Axes, x: np.ndarray, values: np.ndarray, errors: np.ndarray, colour: str) -> None:
    if errors.any():
        ax.fill_between(x, values - errors, values + errors, color=colour, alpha=0.2, linewidth=0)


def _ends(features: Features, chosen: Sequence[int]) -> Sequence[int]:
    """Return the classes that are drawn in colour: the most frequent and the rarest, or all where none stands out."""
    measured = [c for c in chosen if np.isfinite(features.quality[:, c]).any()]
    if len(measured) > 2 and not places(features, measured)[1]:
        return [measured[0], measured[-1]]
    return chosen if len(chosen) <= MOST_NAMES else []


def _colours(results: Iterable[Features], parts: Sequence[str] | None) -> dict[str, str]:
    """Return the colour of each class that is drawn in colour, by its name, so that all runs have the same ones."""
    return colours_by_name((f, _ends(f, by_name(f, parts, "class"))) for f in results)


def _curves(
    ax: Axes,
    features: Features,
    values: np.ndarray,
    chosen: Sequence[int],
    shades: Mapping[str, str],
    errors: np.ndarray | None = None,
) -> None:
    """Draw a line for each class; those that are drawn in colour have the one of their name."""
    order, x, label = _course(features)
    ends = _ends(features, chosen)
    for c in ends:
        colour = shades[features.parts[c]]
        _line(ax, x, values[order, c], color=colour, label=named(features, c, 20))
        if errors is not None:
            _shade(ax, x, values[order, c], errors[order, c], colour)
    others = [c for c in chosen if c not in ends]
    if others:
        lines = ax.plot(x, values[order][:, others], color=theme.muted(), linewidth=0.6, zorder=1)
        lines[0].set_label("the other classes" if ends else "all classes")
    ax.set_xlabel(label)
    ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))


def _points(ax: Axes, features: Features, values: np.ndarray, chosen: Sequence[int], errors: np.ndarray) -> None:
    hues = theme.palette()
    x, alike = places(features, chosen)  # of a balanced data set: side by side
    if len(chosen) > MOST_NAMES:
        own = list(chosen)
        ax.errorbar(x, values[own], yerr=errors[own], fmt="o", markersize=3, color=hues[0], elinewidth=0.6)
    else:
        for i, (c, colour) in enumerate(zip(chosen, colours(features, chosen), strict=True)):
            marker = _MARKERS[i // len(hues)]
            ax.plot(x[i], values[c], marker, markersize=4.5, color=colour, label=named(features, c, 20))
            if errors[c] > 0:
                ax.errorbar(x[i], values[c], yerr=errors[c], fmt="none", ecolor=colour, elinewidth=1, capsize=2)
    if alike:
        ax.set_xticks([])
        count = features.train_counts[chosen[0]]
        ax.set_xlabel(f"classes, each with {int(count):,} training samples" if np.isfinite(count) else "classes")
    else:
        theme.log_scale(ax.xaxis, x)
        ax.set_xlabel("training samples of the class")


def _legend(fig: Figure, ax: Axes) -> None:
    handles, _ = ax.get_legend_handles_labels()
    if handles:
        grids.legend(fig, handles, "class (training samples)")


def _names(ax: Axes, features: Features, chosen: Sequence[int], font: float) -> None:
    """Label the rows and columns of a map: all, or as many as are readable."""
    ticks = range(0, len(chosen), -(-len(chosen) // MOST_LABELS))
    names = [written.shorten(features.parts[chosen[i]], 20) for i in ticks]
    counted = [named(features, chosen[i], 20) for i in ticks]
    ax.set_yticks(ticks, labels=counted, fontsize=max(2.5, font), parse_math=False)
    ax.set_xticks(ticks, labels=names, fontsize=max(2.5, font), rotation=90, parse_math=False)


def _collapse_curves(panels: Sequence[Axes], features: Features) -> None:
    order, x, label = _course(features)
    for ax, (title, lines) in zip(panels, _COLLAPSE, strict=True):
        for colour, (name, text) in zip(theme.palette(), lines.items(), strict=False):
            _line(ax, x, getattr(features, name)[order], color=colour, label=text)
            _shade(ax, x, getattr(features, name)[order], _errors(features, name)[order], colour)
        values = np.concatenate([getattr(features, name) for name in lines])
        known = values[np.isfinite(values)]
        if "within_between" in lines and known.size:
            theme.log_scale(ax.yaxis, known)
        if ax.get_yscale() == "linear":
            ax.set_ylim(0, max(0.05, 1.05 * known.max(initial=0)))
        if len(lines) > 1:
            ax.legend(frameon=False, fontsize="small")
        ax.set_title(title)
        ax.set_xlabel(label)
        ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))


def _collapse_bars(panels: Sequence[Axes], features: Features, chosen: Sequence[int]) -> None:
    """Draw four numbers of each class, which are 0, 1, 1 and 0 in complete neural collapse."""
    norms = features.mean_norm[0]
    known = norms[np.isfinite(norms)]
    square, mean = (known @ known / len(known), known.mean()) if known.size else (np.nan, np.nan)
    names = [name for _, lines in _COLLAPSE for name in lines]
    number = {n: written.with_error(float(getattr(features, n)[0]), float(_errors(features, n)[0])) for n in names}
    drawn = (
        (features.variance[0] / square, r"Var over mean $|\mu_c - \mu|^2$", "NC1 = {within_between}", 0),
        (
            norms / mean,
            r"$|\mu_c - \mu|$ over its mean",
            "NC2 = {norm_variation} (norms), {angle_deviation} (angles)",
            1,
        ),
        (features.alignment[0], r"cosine of $\mu_c - \mu$ and $w_c$", "NC3 = {duality}", 1),
        (features.disagreement[0], "share not of the nearest mean", "NC4 = {mean_disagreement}", 0),
    )
    few = len(chosen) <= MOST_NAMES
    for ax, (values, label, title, collapsed) in zip(panels, drawn, strict=True):
        shown = values[list(chosen)]
        ax.bar(np.arange(len(chosen)), shown, width=0.75 if few else 1.0, linewidth=0, color=theme.palette()[0])
        ax.axhline(collapsed, color=ink(), linewidth=0.9, linestyle="--")
        if not (shown < 0).any():
            ax.set_ylim(0, max(0.05, collapsed * 1.1, 1.05 * np.nanmax(shown, initial=0)))
        ax.set_ylabel(label)
        ax.set_title(title.format(**number))
        ax.yaxis.set_major_locator(MaxNLocator(5, steps=theme.STEPS))
        ax.grid(visible=False, axis="x")
        if few:
            labels = [named(features, c, 20) for c in chosen]
            ax.set_xticks(np.arange(len(chosen)), labels=labels, rotation=90, fontsize=7, parse_math=False)
        else:
            ax.set_xlabel("rank of the class by training samples")
