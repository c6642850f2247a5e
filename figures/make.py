"""Draw the gallery from the result files in figures/data: `make figures`, or `python figures/make.py --check`.

Every figure is a function of one file (or of a few, side by side), drawn on light and on dark ground as PNG and, for
papers, as PDF. The same files give the same pixels. With --check nothing is written; it fails if a picture differs.
"""

import argparse
import io
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.image import imread

import landscape as ls
from landscape.results.regroup import regroup

HERE = Path(__file__).resolve().parent
DATA = HERE / "data"
ROUNDING = 2 / 255
"""How far colours may be off where another processor draws."""

METHODS = {"CE": "ce", "CE + SAM": "sam", "CE + GSA + GKP": "gsa-gkp"}


def of(name: str, draw: Callable[..., Figure], **options: object) -> Callable[[], Figure]:
    """Return what draws one file."""
    return lambda: draw(ls.load(DATA / name), **options)


def ends(data: str) -> Figure:
    """Figure 9: head and tail by the three methods."""
    spectra = {name: ls.load(DATA / f"{data}.{method}.ends.h5") for name, method in METHODS.items()}
    return ls.plots.density_grid(spectra, ("head", "tail"))


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
    yield "training-long", of("cifar10-long.ce-0.history.h5", plots.training)
    yield "quality-long", of("cifar10-long.ce-0.history.h5", plots.quality)
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
    """Write the gallery, or compare it with what is there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    wrong = []
    with tempfile.TemporaryDirectory() as aside:
        for name, draw in figures():
            for ground, dark in (("light", False), ("dark", True)):
                path = HERE / f"{name}-{ground}.png"
                with ls.plots.styled("web", dark=dark):
                    fig = draw()
                    if not args.check:
                        ls.plots.write(fig, path)
                        continue
                    ls.plots.write(fig, Path(aside) / "new.png")
                if not same(path, Path(aside) / "new.png"):
                    wrong.append(path.name)
            if not args.check:
                ls.plots.write(draw(), HERE / f"{name}.pdf")
    if wrong:
        sys.exit(f"the gallery is not what the files give: {', '.join(wrong)}; run `make figures` and look at it")


def same(old: Path, new: Path) -> bool:
    """Say whether two pictures are alike up to rounding."""
    if not old.exists():
        return False
    a, b = (imread(io.BytesIO(p.read_bytes()), format="png") for p in (old, new))
    return a.shape == b.shape and bool(np.abs(a - b).max() <= ROUNDING)


if __name__ == "__main__":
    main()
