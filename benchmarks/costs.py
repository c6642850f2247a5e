"""What `ls.estimate` says that jobs take, beside what they take: seconds of the process's CPU time, and their ratio.

    python benchmarks/costs.py [--what hessian,density,ggn,...] [--json costs.json]

A small-resnet with random weights on digits-lt, class by class; estimate and job follow each other in one process,
after a tiny job of the same kind, since what is imported at the first use is no part of a job.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import landscape as ls
from landscape.analyses.distances import Run
from landscape.autodiff import costs
from landscape.data import datasets
from landscape.networks import models
from landscape.objective import points
from trainers import methods, train

KEYS = ("asking", "estimate", "truth", "ratio")


def jobs(objective: Any, epochs: int) -> dict[str, Callable[[], object]]:
    """Return the jobs by their names; trainings are of so many epochs."""
    plane, line = ls.directions.random(objective, 2), ls.directions.random(objective, 1)
    grid = [-1.0, -0.5, 0.0, 0.5, 1.0]
    origin = points.origin(objective)
    found = {f"epoch-{k}": (points.Point(origin.theta * (1 + 0.01 * k), origin.buffers), float(k)) for k in range(3)}
    run = Run(name="run", points=found, start=origin)

    def training(method: str) -> object:
        recipe = methods.recipe(method, dataset="digits-lt", model="small-resnet", epochs=epochs, warmup_epochs=0)
        return train(None, None, recipe)

    return {
        "hessian": lambda: ls.spectrum(objective),
        "density": lambda: ls.spectrum(objective, steps=20, probes=2, sampling_errors=False),
        "ggn": lambda: ls.spectrum(objective, operator="ggn"),
        "surface2d": lambda: ls.surface(objective, plane, grid, grid),
        "surface1d": lambda: ls.surface(objective, line, grid),
        "sharpness": lambda: ls.sharpness(objective, draws=4),
        "gradients": lambda: ls.gradients(objective, sampling_errors=True),
        "features": lambda: ls.features(objective),
        "distances": lambda: ls.distances(objective, [run], source="points", over="all", barrier_points=5),
        "train ce": lambda: training("ce"),
        "train gsa-gkp": lambda: training("gsa-gkp"),
    }


def load(samples_per_class: int | None) -> Any:
    """Return the objective of digits-lt, of some samples of each class or of all."""
    with torch.random.fork_rng(devices=[]):
        torch.random.manual_seed(0)
        model = models.build("small-resnet", 10, in_channels=1)
    samples = datasets.load("digits-lt")
    samples = samples if samples_per_class is None else samples.subsample(samples_per_class)
    return ls.Objective.build(model, samples, partition="class", device="cpu", batch_size=64)


def main() -> None:
    """Parse, measure, print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--what", default=",".join(jobs(load(2), 1)))
    parser.add_argument("--epochs", type=int, default=6, help="of the trainings")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", default="costs.json")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    whole, tiny = jobs(load(None), args.epochs), jobs(load(2), args.epochs)
    found: dict[str, list[dict[str, float]]] = {}
    print(f"{'job':<14}{'asking':>9}{'estimate':>10}{'truth':>9}{'ratio':>8}   medians of {args.rounds}")
    for name in args.what.split(","):
        tiny[name]()
        found[name] = [compared(whole[name]) for _ in range(args.rounds)]
        asking, said, took, ratio = (statistics.median(one[key] for one in found[name]) for key in KEYS)
        print(f"{name:<14}{asking:8.1f} s{said:8.1f} s{took:7.1f} s{ratio:8.2f}", flush=True)
    document = {"torch": torch.__version__, "threads": args.threads, "jobs": found}
    Path(args.json).write_text(json.dumps(document, indent=2))


def compared(job: Callable[[], object]) -> dict[str, float]:
    """Ask for the costs of a job, then do it; return the seconds of both."""
    begun = time.process_time()
    with costs.asking() as plans:
        job()
    said = costs.measured(plans, clock=time.process_time).seconds
    asked = time.process_time()
    job()
    took = time.process_time() - asked
    return dict(zip(KEYS, (asked - begun, said, took, said / took), strict=True))


if __name__ == "__main__":
    main()
