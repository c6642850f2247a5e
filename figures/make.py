"""Draw the gallery from the result files in figures/data: `make figures`, or `python figures/make.py --check`.

Every figure is a function of one file (or of a few, side by side), drawn on light and on dark ground as PNG and, for
papers, as PDF. `shown.json` says what each shows. With --check nothing is written; it fails if a figure of the files
would show anything else, or a picture is missing.
"""

import argparse
import itertools
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.colors import to_hex
from matplotlib.contour import ContourSet
from matplotlib.figure import Figure

import landscape as ls
from landscape.results.regroup import regroup

HERE = Path(__file__).resolve().parent
DATA = HERE / "data"
SHOWN = HERE / "shown.json"
GROUNDS = {"light": False, "dark": True}

METHODS = {"CE": "ce", "CE + SAM": "sam", "CE + GSA + GKP": "gsa-gkp"}


def of(name: str, draw: Callable[..., Figure], **options: object) -> Callable[[], Figure]:
    """Return what draws one file."""
    return lambda: draw(ls.load(DATA / name), **options)


def ends(data: str) -> Figure:
    """Figure 9: head and tail by the three methods."""
    spectra = {name: ls.load(DATA / f"{data}.{method}.ends.h5") for name, method in METHODS.items()}
    return ls.plots.density_grid(spectra, ("head", "tail"))


def long(kind: str) -> dict[str, Any]:
    """Return the results of a kind of the networks that were trained for 200 epochs, by method."""
    files = {name: DATA / f"cifar10-long.{method}-0.{kind}.h5" for name, method in METHODS.items()}
    return {name: ls.load(file) for name, file in files.items() if file.exists()}


def long_ends() -> Figure:
    """Figure 9 on CIFAR-10-LT after 200 epochs: the most frequent class and the rarest."""
    return ls.plots.density_grid(long("classes"), ("airplane", "truck"))


def long_plane() -> Figure:
    """Figure 1 on CIFAR-10-LT: the losses of the rarest class and of all samples."""
    found = ls.load(DATA / "cifar10-long.plane.h5")
    ends = {f"{method}-0/epoch-0200": name for name, method in METHODS.items()}
    names = ends | {"start": "start", "truck alone": "truck alone"}
    return ls.plots.trajectory(regroup(found, DATA / "tail-full.json"), ["tail", "full"], names=names)


def plane() -> Figure:
    """Figure 1: the losses of the tail and of all classes on the plane of three checkpoints, with both ends."""
    found = ls.load(DATA / "digits.figure1.h5")
    rarest = found.parts[int(found.train_counts.argmin())]
    names = {
        "ce/epoch-0020": "CE",
        "gsa-gkp/epoch-0020": "CE + GSA + GKP",
        "start": "start",
        "tail alone": "tail alone",
    }
    return ls.plots.trajectory(regroup(found, {"tail": [rarest], "full": found.parts}), ["tail", "full"], names=names)


def cosines() -> Figure:
    """Figure 6: the cosines of class and batch gradients over 200 epochs, of two head and two tail classes."""
    found = long("gradients")
    parts = found["CE"].parts
    return ls.plots.gradient_cosines(found, [*parts[:2], *parts[-2:]])


def qualities() -> Figure:
    """Figure 2: feature quality over the epochs of two methods."""
    methods = {name: METHODS[name] for name in ("CE", "CE + GSA + GKP")}
    return ls.plots.compare_quality({n: ls.load(DATA / f"digits.{m}.features.h5") for n, m in methods.items()})


def figures() -> Iterator[tuple[str, Callable[[], Figure]]]:
    """Yield the name of each figure and what draws it."""
    plots = ls.plots
    yield "figure1-digits", plane
    yield "figure2-digits", qualities
    yield "figure9-digits", lambda: ends("digits")
    if (DATA / "cifar10.gsa-gkp.ends.h5").exists():
        yield "figure9-cifar10", lambda: ends("cifar10")
    yield "figure1-long", long_plane
    yield "figure2-long", lambda: plots.compare_quality(long("features"))
    yield "figure4-long", of("cifar10-long.ce-0.gradients.h5", plots.decomposition)
    yield "figure9-long", long_ends
    yield "training-long", of("cifar10-long.ce-0.history.h5", plots.training)
    yield "quality-long", of("cifar10-long.ce-0.history.h5", plots.quality)
    yield "collapse-long", of("cifar10-long.ce-0.features.h5", plots.neural_collapse)
    yield "figure6-long", cosines
    yield "densities", of("digits.ce.classes.h5", plots.densities)
    yield "summary", of("digits.ce.classes.h5", plots.summary)
    yield "overlap", of("digits.ce.classes.h5", plots.overlap_map)
    yield "surface", lambda: plots.surface(regroup(ls.load(DATA / "digits.ce.surface.h5"), "head-tail"))
    yield "surface-3d", lambda: plots.surface_3d(regroup(ls.load(DATA / "digits.ce.surface.h5"), "head-tail"))
    yield "trajectory", of("digits.paths.h5", plots.trajectory)
    yield "trajectory-along", of("digits.paths.h5", plots.trajectory_along)
    yield "quality", of("digits.ce.features.h5", plots.class_quality)
    yield "collapse", of("digits.ce.features.h5", plots.neural_collapse)
    yield "gradients", of("digits.ce.early.h5", plots.cosine_map)
    yield "decomposition", of("digits.ce.early.h5", plots.decomposition)
    yield "distances", of("digits.points.h5", plots.distance_maps)


def main() -> None:
    """Write the gallery, or compare what its figures show with what the files give."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    if parser.parse_args().check:
        check(json.loads(SHOWN.read_text(encoding="utf-8")))
        return
    found = {}
    for name, draw in figures():
        for ground, dark in GROUNDS.items():
            with ls.plots.styled("web", dark=dark):
                ls.plots.write(draw(), HERE / f"{name}-{ground}.png")
        found[name] = shown(draw())
        ls.plots.write(draw(), HERE / f"{name}.pdf")
    SHOWN.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def check(before: dict[str, list[str]]) -> None:
    """Leave with the figures that would now show something else, each with the first difference, and those missing."""
    now = {name: shown(draw()) for name, draw in figures()}
    wrong = []
    for name in sorted(before.keys() | now.keys()):
        pairs = itertools.zip_longest(before.get(name, []), now.get(name, []))
        wrong += [f"{name}: {old!r} before, {new!r} now" for old, new in pairs if old != new][:1]
        files = (*(f"{name}-{ground}.png" for ground in GROUNDS), f"{name}.pdf")
        wrong += [f"{file} is missing" for file in files if not (HERE / file).exists()]
    if wrong:
        sys.exit("\n".join(["the gallery is not what the files give: run `make figures` and look at it", *wrong]))


def shown(fig: Figure) -> list[str]:
    """Say what a figure shows: words, ends of axes, and colours and numbers of each artist, on a line each."""
    width, height = fig.get_size_inches()
    lines = [f"{width:g} by {height:g} inches: {fig.get_suptitle()} / {fig.get_supxlabel()} / {fig.get_supylabel()}"]
    lines += [f"legend: {words(legend)}" for legend in fig.legends]
    for ax in fig.axes:
        lines += of_axes(ax)
    return lines


def of_axes(ax: Any) -> Iterator[str]:
    """Yield what an axes shows."""
    axes = [ax.xaxis, ax.yaxis, *([ax.zaxis] if ax.name == "3d" else [])]
    ends = (f"{axis.get_label_text()} {axis.get_scale()} {rounded(axis.get_view_interval())}" for axis in axes)
    yield " | ".join([ax.get_title(), *ends])
    for line in ax.lines:
        yield f"{named(line)} {to_hex(line.get_color())} {' '.join(map(numbers, line.get_data(orig=False)))}"
    for drawn in (*ax.collections, *ax.images):
        values = drawn.get_array()
        if isinstance(drawn, ContourSet):
            yield f"{named(drawn)} {rounded(drawn.levels)}"
        elif values is not None:
            yield f"{named(drawn)} {values.shape} {numbers(values)}"
        else:
            colours = [to_hex(colour) for colour in drawn.get_facecolor()]
            outlines = [drawn.get_offsets(), *(path.vertices for path in drawn.get_paths())]
            yield f"{named(drawn)} {' '.join(colours[:3])} {' '.join(map(numbers, np.concatenate(outlines).T))}"
    for patch in ax.patches:
        yield f"{named(patch)} {to_hex(patch.get_facecolor())} {' '.join(map(numbers, patch.get_path().vertices.T))}"
    for text in ax.texts:
        yield f"{text.get_text()} at {rounded(text.get_position())}"
    if (legend := ax.get_legend()) is not None:
        yield f"legend: {words(legend)}"


def named(artist: Any) -> str:
    """Return the class of an artist, and its name where it was given one."""
    label = str(artist.get_label())
    return type(artist).__name__ + ("" if label.startswith("_") else f" {label}")


def words(legend: Any) -> str:
    """Return the names in a legend."""
    return ", ".join(text.get_text() for text in legend.get_texts())


def numbers(values: Any) -> str:
    """Describe an array: how many numbers are known, the least, the largest and the mean."""
    known = np.ma.masked_invalid(values).compressed()
    return f"{known.size} ({rounded((known.min(), known.max(), known.mean())) if known.size else ''})"


def rounded(values: Any) -> str:
    """Write numbers with the digits that every processor has alike."""
    return " ".join(f"{value + 0.0:.4g}" for value in np.round(np.asarray(values, dtype=float), 12))


if __name__ == "__main__":
    main()
