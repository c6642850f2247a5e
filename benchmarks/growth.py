"""How time and memory of a spectrum grow with samples, classes, parameters, Lanczos steps and processes, as a figure.

    python benchmarks/growth.py --measure samples,classes,steps
    python benchmarks/growth.py --measure parameters,processes --large large.jsonl --processes processes.json
    python benchmarks/growth.py --figure docs/scale.png

The first measures on one thread and writes growth.json beside this file; the second adds what `large.py` and
`processes.py` have measured; the third draws the file. Seconds are CPU time, the least of several: other work on the
machine can only add to it. Lines have the slope that docs/scale.md states, through the last point: what lies above them
at the left is what does not grow. Those of processes are 1 / R.
"""

import argparse
import datetime
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter
from torch import nn

HERE = Path(__file__).resolve().parent
FILE = HERE / "growth.json"
SAMPLES, CLASSES, STEPS = (16, 32, 64, 128), (2, 4, 8, 16), (5, 10, 20, 40, 80)
PANELS = {  # name: label of its axis, labels and slopes of its curves
    "samples": ("samples of a part", {"seconds of a product": 1, "GB kept": 1}),
    "classes": ("classes, 8 samples each", {"seconds of all ends": 1, "of them exact traces": 2}),
    "steps": ("Lanczos steps", {"seconds of a density": 1, "GB of the basis": 1}),
    "parameters": ("parameters", {"seconds of a product": 1, "GB at the peak": 1}),
    "processes": ("processes", {"time of a product, of one's": -1, "time of both ends": -1}),
}


def least(action: Callable[[], object], repeats: int = 3) -> float:
    """Return the least CPU time of an action, the first call excluded."""
    action()
    found = []
    for _ in range(repeats):
        begun = time.process_time()
        action()
        found.append(time.process_time() - begun)
    return min(found)


def samples() -> dict[str, list[float]]:
    """Measure products of a small-resnet on images of 16 pixels, and what they keep."""
    import landscape as ls
    from landscape.data import datasets
    from landscape.networks import models

    torch.manual_seed(0)
    model = models.build("small-resnet", 10, in_channels=3)
    seconds, kept = [], []
    for n in SAMPLES:
        data = datasets.from_dataset((torch.randn(n, 3, 16, 16), torch.arange(n) % 10))
        operator = ls.curvature_operator(ls.Objective.build(model, data, device="cpu"))
        v = torch.ones(1, 1, operator.size)
        seconds.append(least(lambda operator=operator, v=v: operator.matvec(v)))
        kept.append(operator.keeps / 1e9)
    return {"x": list(SAMPLES), "seconds of a product": seconds, "GB kept": kept}


def perceptron(n_classes: int, per_class: int, width: int = 256) -> Any:
    """Return the objective of a perceptron on random points, class by class."""
    import landscape as ls
    from landscape.data import datasets

    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(64, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, n_classes)
    )
    n = n_classes * per_class
    data = datasets.from_dataset((torch.randn(n, 64), torch.arange(n) % n_classes))
    return ls.Objective.build(model, data, partition="class", device="cpu")


def classes() -> dict[str, list[float]]:
    """Measure lambda_max and trace of every class by backward passes, and exact traces alone."""
    import landscape as ls

    ends, traces = [], []
    for n in CLASSES:
        objective = perceptron(n, 8)
        operator = ls.curvature_operator(objective, backend="reverse")
        options: dict[str, Any] = {"backend": "reverse", "sampling_errors": False, "trace": "exact"}
        ends.append(least(lambda o=objective, k=options: ls.spectrum(o, **k), 1))
        traces.append(least(lambda o=operator: [o.exact.trace(part) for part in o.parts], 2))
    return {"x": list(CLASSES), "seconds of all ends": ends, "of them exact traces": traces}


def steps() -> dict[str, list[float]]:
    """Measure densities of one probe."""
    import landscape as ls

    objective = perceptron(2, 64).alone("all")
    options: dict[str, Any] = {"probes": 1, "backend": "reverse", "sampling_errors": False, "trace": "probes"}
    seconds = [least(lambda m=m: ls.spectrum(objective, steps=m, **options), 2) for m in STEPS]
    basis = [(m + 1) * 4 * objective.layout.size / 1e9 for m in STEPS]
    return {"x": list(STEPS), "seconds of a density": seconds, "GB of the basis": basis}


def parameters(file: Path) -> dict[str, list[float]]:
    """Read what large.py has measured."""
    rows = sorted((json.loads(line) for line in file.read_text().splitlines()), key=lambda row: row["parameters"])
    return {
        "x": [row["parameters"] for row in rows],
        "seconds of a product": [row["seconds"]["product"] for row in rows],
        "GB at the peak": [row["peak"] / 1e9 for row in rows],
    }


def processes(file: Path) -> dict[str, list[float]]:
    """Read what processes.py has measured, as shares of the time of one process."""
    seconds = json.loads(file.read_text())["seconds"]
    found = {"x": [1.0, 2.0]}
    for label, job in (("time of a product, of one's", "product"), ("time of both ends", "ends")):
        ratios = [b / a for a, b in zip(seconds[job]["alone"], seconds[job]["together"], strict=True)]
        found[label] = [1.0, float(np.median(ratios))]
    return found


def draw(found: dict[str, Any]) -> Figure:
    """Draw a panel for each thing that grows."""
    from landscape.plots.layout import theme

    with theme.theme():
        shown = [name for name in PANELS if name in found]
        figure = Figure(figsize=(2.5 * len(shown), 3.0), layout="constrained")
        for ax, name in zip(figure.subplots(1, len(shown)), shown, strict=True):
            label, curves = PANELS[name]
            x = np.array(found[name]["x"], dtype=float)
            for k, (curve, slope) in enumerate(curves.items()):
                y = np.array(found[name][curve])
                end = 0 if slope < 0 else -1
                ax.plot(x, y[end] * (x / x[end]) ** slope, color=f"C{k}", lw=0.8, ls="--")
                ax.plot(x, y, "os"[k], color=f"C{k}", ms=4, label=curve, alpha=0.8)
            ax.set(xscale="log", yscale="log", xlabel=label)
            ax.set_xticks(x, [f"{n:,.0f}" if n < 1e5 else f"{n / 1e6:.3g} M" for n in x])
            if slope < 0:
                ax.set_yticks([1, 0.75, 0.5], ["1", "0.75", "0.5"])
            ax.xaxis.set_minor_formatter(NullFormatter())
            ax.yaxis.set_minor_formatter(NullFormatter())
            ax.tick_params(labelsize=7)
            ax.xaxis.label.set_size(8)
            ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), frameon=False, fontsize=7)
        return figure


def main() -> None:
    """Parse, measure or draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", help="panels of the figure, such as samples,classes,steps")
    parser.add_argument("--large", type=Path, help="what large.py has written")
    parser.add_argument("--processes", type=Path, help="what processes.py has written")
    parser.add_argument("--figure", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, Any] = json.loads(FILE.read_text()) if FILE.exists() else {}
    sections: dict[str, Callable[[], dict[str, list[float]]]] = {"samples": samples, "classes": classes, "steps": steps}
    if args.large is not None:
        sections["parameters"] = lambda: parameters(args.large)
    if args.processes is not None:
        sections["processes"] = lambda: processes(args.processes)
    for name in args.measure.split(",") if args.measure else ():
        found |= {"torch": torch.__version__, "date": str(datetime.date.today()), name: sections[name]()}
        FILE.write_text(json.dumps(found, indent=1))
    if args.figure is not None:
        draw(found).savefig(args.figure, dpi=150)


if __name__ == "__main__":
    main()
