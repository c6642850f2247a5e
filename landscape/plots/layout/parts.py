"""Which parts a figure of a surface shows, in which order and colours, and what it says of them in words."""

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, TypeAlias, TypeVar

import numpy as np
from matplotlib.axes import Axes

from landscape.errors import InputError, position
from landscape.plots.layout import theme
from landscape.results import (
    Distances,
    Features,
    Gradients,
    Result,
    Sensitivity,
    Sharpness,
    Spectrum,
    Surface,
    Trajectory,
    written,
)
from landscape.results.grouping import FEW, MANY
from landscape.results.regroup import regroup, verdict_of

S = TypeVar("S", bound=Surface)
Counted: TypeAlias = Distances | Features | Gradients | Sensitivity | Sharpness | Spectrum | Surface
"""Results whose parts have training samples, as far as these are known."""

MOST_PARTS = 12
"""More parts than this are joined into groups, unless they are asked for."""
_LAST = 3  # the hue of the last part
_COUNTS = {"many": f"many (over {MANY} training samples each)", "few": f"few (under {FEW})"}


def joined(surface: S, parts: Sequence[str] | None) -> tuple[S, list[int], str]:
    """Choose what is drawn: the parts asked for, or all, or groups of classes where there are too many parts.

    Args:
        surface: the result.
        parts: names in the order of the drawing; None for all, from the most frequent to the rarest. More than twelve
            that were not grouped before become many, medium and few, or the whole, the most frequent and the rarest.

    Returns:
        The surface that has these parts, with the verdict on them; their numbers; and what was joined, in words.

    Raises:
        InputError: no such part.
    """
    if parts is not None:
        chosen = positions(surface, parts)
        return replace(surface, verdict=verdict_of(surface, chosen)), chosen, ""
    words = ""
    if len(surface.parts) > MOST_PARTS and "regrouped" not in surface.provenance:
        n = len(surface.parts)
        surface = _groups(surface)
        words = f"{n} parts joined: " + ", ".join(_COUNTS.get(name, name) for name in surface.parts)
    return surface, by_count(surface, range(len(surface.parts))), words


def colours(result: Result, chosen: Sequence[int]) -> list[str]:
    """Return the colours of parts, the same in all figures of results that have the same parts.

    A part has the hue of its position among the result's parts; the last one's is farthest from the first one's, so
    that the most frequent and the rarest differ most. Of more parts than there are hues, those that are drawn have the
    hues by their training samples if they are few, and otherwise shades in the order of the drawing. Groups that were
    added to the parts, with which they overlap, have the colour of letters, and then hues from the last on.

    Args:
        result: has the parts.
        chosen: positions of those that are drawn.

    Returns:
        A colour for each chosen part.
    """
    names, hues = getattr(result, "parts", ()), theme.palette()
    groups = [p for p, name in enumerate(names) if name in added(result)]
    own = [p for p in range(len(names)) if p not in groups]
    drawn = [p for p in chosen if p not in groups]
    if len(own) > len(hues):
        own = by_count(result, sorted(set(drawn)))
    many = len(own) > len(hues)
    ordered = [*[hues[i] for i in range(len(hues)) if i != _LAST][: max(1, len(own) - 1)], hues[_LAST]]
    found = dict(zip(drawn, theme.shades(len(drawn)), strict=True) if many else zip(own, ordered, strict=False))
    found |= dict(zip(groups, itertools.cycle([theme.ink(), *reversed(hues)]), strict=False))
    return [found[p] for p in chosen]


def colours_by_name(drawn: Iterable[tuple[Result, Sequence[int]]]) -> dict[str, str]:
    """Return the colours of the parts of several results by name, of each the one it has in the first result with it.

    Args:
        drawn: results with the positions of the parts that are drawn.

    Returns:
        Name of a part -> its colour; other colours where two names would have the same one.
    """
    found: dict[str, str] = {}
    for result, chosen in drawn:
        for p, colour in zip(chosen, colours(result, chosen), strict=True):
            found.setdefault(getattr(result, "parts", ())[p], colour)
    if len(set(found.values())) < len(found):
        return dict(zip(found, theme.hues(len(found)), strict=True))
    return found


def added(result: Result) -> list[str]:
    """Return the names of groups that were added to the parts of a result, such as all samples."""
    return [str(name) for name in result.stated("options", "with_parts", of=list) or []]


def positions(result: Result, parts: Sequence[str] | None, what: str = "part") -> list[int]:
    """Return where parts stand in a result.

    Args:
        result: has names of `parts`.
        parts: names, in any order; None for all.
        what: what a part of this result is called.

    Returns:
        Their positions, in the order given.

    Raises:
        InputError: no such part, or none at all.
    """
    known: tuple[str, ...] = getattr(result, "parts", ())
    found = [position(name, known, what) for name in (known if parts is None else parts)]
    if not found:
        raise InputError(f"there is no {what} to draw: name at least one")
    return found


def by_name(result: Any, parts: Sequence[str] | None, what: str = "part") -> list[int]:
    """Return the positions of parts, see `positions`, from the most frequent to the rarest."""
    return by_count(result, positions(result, parts, what))


def by_count(result: Any, chosen: Iterable[int]) -> list[int]:
    """Order parts from the most training samples to the fewest, or leave them in order where the counts are unknown."""
    return sorted(chosen, key=lambda p: -np.nan_to_num(float(result.train_counts[p])))


def named(result: Counted, p: int, length: int = 18) -> str:
    """Write the name of a part with its training samples, "few (1,234)"; the name alone where they are not known."""
    trained = result.train_counts[p]
    return written.shorten(result.parts[p], length) + (f" ({int(trained):,})" if np.isfinite(trained) else "")


def places(result: Counted, chosen: Sequence[int]) -> tuple[np.ndarray, bool]:
    """Return the places of parts along an axis of training samples.

    Args:
        result: has the parts.
        chosen: their positions.

    Returns:
        Their training samples, or an index if these are unknown or all equal; and whether it is an index.
    """
    counts = result.train_counts[list(chosen)].astype(float)
    beside = not np.isfinite(counts).all() or (len(counts) > 1 and len(set(counts)) == 1)
    return (np.arange(len(counts), dtype=float), True) if beside else (counts, False)


def name_places(ax: Axes, result: Counted, chosen: Sequence[int]) -> None:
    """Scale and label the x axis along which parts stand at their `places`."""
    x, beside = places(result, chosen)
    if not beside:
        theme.log_scale(ax.xaxis, x)
        ax.set_xlabel("training samples of the part")
        return
    ax.set_xticks([])
    counts = result.train_counts[list(chosen)]
    if np.isfinite(counts).all():
        ax.set_xlabel(f"parts, each with {int(counts[0]):,} training samples")
    else:
        ax.set_xlabel("parts" if np.isfinite(result.n_samples[list(chosen)]).any() else "matrices")


def title(surface: Surface, p: int, length: int) -> str:
    """Write the title of a part's panel: its shortened name, and below it its numbers of samples."""
    n, trained = surface.n_samples[p], surface.train_counts[p]
    counts = [f"n = {int(n):,}"] if np.isfinite(n) else []
    if np.isfinite(trained) and trained != n:  # in brackets, because after a comma it would look like more digits of n
        known = f"{int(trained):,} in training" if length > 22 else f"train {int(trained):,}"
        counts.append(f"({known})" if counts else known)
    return "\n".join([written.shorten(surface.parts[p], length), " ".join(counts)]).rstrip()


def heading(surface: Surface, joining: str = "") -> str:
    """Write the title of a figure: network, data, and how classes were joined.

    Args:
        surface: the result.
        joining: what `joined` says.

    Returns:
        A line or two, or nothing.
    """
    source = surface.provenance
    data = source.get("data")
    on = f"on {data['name']}" if isinstance(data, dict) and data.get("name") else ""
    method = None if isinstance(surface, Trajectory) else source.get("method")  # its runs may have several methods
    words = [str(w) for w in (method, source.get("model"), on) if w]
    split = f"{source['split']} samples" if source.get("split") else ""
    first = written.shorten(", ".join(w for w in (" ".join(words), split) if w), 80)
    return "\n".join(w for w in (first, ", ".join(w for w in (joining, weighting(surface)) if w)) if w)


def weighting(surface: Surface) -> str:
    """Write how the parts of each group are weighted; nothing where all samples count alike."""
    weights = (surface.stated("regrouped", of=dict) or {}).get("weights")
    return "" if weights in (None, "natural") else f"{weights if isinstance(weights, str) else 'given'} weights"


def _groups(surface: S) -> S:
    try:
        groups = regroup(surface, "many-medium-few")
        if len(groups.parts) > 1:
            return groups
    except InputError:
        pass  # the parts are no classes, or their training samples are not known
    counts = np.where(surface.n_samples > 0, surface.train_counts, np.nan)
    members = {"all": list(surface.parts)}
    if np.isfinite(counts).any() and np.nanmax(counts) > np.nanmin(counts):
        for which, p in (("most frequent", np.nanargmax(counts)), ("rarest", np.nanargmin(counts))):
            members[f"{which}: {surface.parts[p]}"] = [surface.parts[p]]
    return regroup(surface, members)
