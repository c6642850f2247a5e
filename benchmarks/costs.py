"""What `ls.estimate` says that jobs take, beside what they take: seconds of the process's CPU time, and memory.

    python benchmarks/costs.py [--what hessian,density,ggn,...] [--memory hessian,rows,...] [--json costs.json]
    python benchmarks/costs.py --tiny                             the same on a few samples, to see that it runs

Time: a small-resnet with random weights on digits-lt, class by class; estimate and job follow each other in one
process, after a tiny job of the same kind, since what is imported at the first use is no part of a job.

Memory: a wide network, whose vectors and rows take far more memory than its samples. Estimate and job are each made in
a process of their own, which begins with the network loaded. The table has the peaks beyond this, and their ratio.
"""

import argparse
import json
import os
import pickle
import statistics
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

import landscape as ls
from landscape.analyses.between import Run
from landscape.autodiff import costs, memory
from landscape.data import datasets
from landscape.networks import models
from landscape.objective import points
from trainers import methods, train

KEYS = ("asking", "estimate", "truth", "ratio")
OF_MEMORY = ("loaded", "estimate", "truth", "ratio")


def jobs(objective: Any, epochs: int) -> dict[str, Callable[[], object]]:
    """Return the jobs by their names; trainings are of so many epochs."""
    plane, line = ls.directions.random(objective, 2), ls.directions.random(objective, 1)
    grid = [-1.0, -0.5, 0.0, 0.5, 1.0]
    origin = points.origin(objective)
    found = {f"epoch-{k}": (points.Point(origin.theta * (1 + 0.01 * k), origin.buffers), float(k)) for k in range(3)}
    run = Run(name="run", points=found, start=origin)
    path = {name: (points.Point(point.theta + 0.01 * epoch**2, point.buffers), epoch)
            for name, (point, epoch) in found.items()}  # fmt: skip

    def training(method: str) -> object:
        recipe = methods.recipe(method, dataset="digits-lt", model="small-resnet", epochs=epochs, warmup_epochs=0)
        return train(None, None, recipe)

    return {
        "hessian": lambda: ls.spectrum(objective),
        "density": lambda: ls.spectrum(objective, steps=20, probes=2, sampling_errors=False),
        "ggn": lambda: ls.spectrum(objective, operator="ggn"),
        "samples": lambda: ls.spectrum(objective, samples=16),
        "surface2d": lambda: ls.surface(objective, plane, grid, grid),
        "surface1d": lambda: ls.surface(objective, line, grid),
        "sharpness": lambda: ls.sharpness(objective, draws=4),
        "gradients": lambda: ls.gradients(objective, sampling_errors=True),
        "features": lambda: ls.features(objective),
        "distances": lambda: ls.distances(objective, [run], source="points", over="all", barrier_points=5),
        "trajectory": lambda: ls.trajectory(objective, {"run": path}, n=5),
        "sensitivity": lambda: ls.sensitivity(objective, of="0", n=2, draws=4),
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


def jobs_in_memory(objective: Any) -> dict[str, Callable[[], object]]:
    """Return the jobs whose memory is measured, by their names."""
    limit = memory.most_so_far() + 110 * objective.layout.size * objective.dtype.itemsize
    bare: dict[str, Any] = {"sampling_errors": False, "trace": "probes"}
    return {
        "hessian": lambda: ls.spectrum(objective),
        "density": lambda: ls.spectrum(objective, steps=20, probes=2, sampling_errors=False),
        "rows": lambda: ls.spectrum(objective, operator="ggn"),
        "restarted": lambda: ls.spectrum(objective, memory_bytes=limit, cache_bytes=0, **bare),
        "gradients": lambda: ls.gradients(objective, sampling_errors=True),
        "sharpness": lambda: ls.sharpness(objective, draws=2),
    }


def wide(width: int) -> Any:
    """Return the objective of a network with a hidden layer of this width, on a few random samples of three classes."""
    labels = torch.arange(24) % 3
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(24, 1000, generator=generator)
    with torch.random.fork_rng(devices=[]):
        torch.random.manual_seed(0)
        model = nn.Sequential(nn.Linear(1000, width), nn.Tanh(), nn.Linear(width, 3))
    return ls.make_objective(model, (inputs, labels), parts="class", device="cpu")


def peaks(width: int, name: str) -> dict[str, float]:
    """Return the peaks of memory of a job beyond that of its network: as estimated, and as they are."""

    def loaded() -> tuple[int, Callable[[], object]]:
        objective = wide(width)
        return memory.most_so_far(), jobs_in_memory(objective)[name]

    def estimated() -> tuple[int, int]:
        begun, job = loaded()
        return begun, ls.estimate(job).memory

    def taken() -> tuple[int, int]:
        begun, job = loaded()
        job()
        return begun, memory.most_so_far()

    (begun, said), (_, took) = apart(estimated), apart(taken)
    return dict(zip(OF_MEMORY, (begun, said - begun, took - begun, (said - begun) / (took - begun)), strict=True))


def apart(action: Callable[[], Any]) -> Any:
    """Return the value of a function that runs in a copy of this process, whose memory is its own."""
    read, write = os.pipe()
    if (child := os.fork()) == 0:
        try:
            with os.fdopen(write, "wb") as out:
                pickle.dump(action(), out)
        except BaseException:
            traceback.print_exc()
        os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as found:
        data = found.read()
    os.waitpid(child, 0)
    return pickle.loads(data)


def main() -> None:
    """Parse, measure, print tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--what", default=None, help="jobs whose time is measured; all by default")
    parser.add_argument("--memory", default=None, help="jobs whose memory is measured; all by default")
    parser.add_argument("--width", type=int, default=1000, help="of the network whose memory is measured")
    parser.add_argument("--tiny", action="store_true", help="few samples, one round, one epoch")
    parser.add_argument("--epochs", type=int, default=6, help="of the trainings")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", default="costs.json")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rounds, epochs = (1, 5) if args.tiny else (args.rounds, args.epochs)
    of_memory = chosen(args.memory, jobs_in_memory(wide(1)))
    document: dict[str, Any] = {"torch": torch.__version__, "threads": args.threads}
    if of_memory:  # first, while this process has computed nothing
        print(f"{'job':<14}{'loaded':>10}{'estimate':>10}{'truth':>10}{'ratio':>8}   peaks beyond loading, MB")
    document["memory"] = {}
    for name in of_memory:
        one = document["memory"][name] = peaks(args.width, name)
        loaded, said, took, ratio = (one[key] for key in OF_MEMORY)
        print(f"{name:<14}{loaded / 1e6:10.0f}{said / 1e6:10.0f}{took / 1e6:10.0f}{ratio:8.2f}", flush=True)
    whole, tiny = jobs(load(2 if args.tiny else None), epochs), jobs(load(2), epochs)
    found: dict[str, list[dict[str, float]]] = {}
    of_time = chosen(args.what, whole)
    if of_time:
        print(f"{'job':<14}{'asking':>9}{'estimate':>10}{'truth':>9}{'ratio':>8}   medians of {rounds}")
    for name in of_time:
        tiny[name]()
        found[name] = [compared(whole[name]) for _ in range(rounds)]
        asking, said, took, ratio = (statistics.median(one[key] for one in found[name]) for key in KEYS)
        print(f"{name:<14}{asking:8.1f} s{said:8.1f} s{took:7.1f} s{ratio:8.2f}", flush=True)
    Path(args.json).write_text(json.dumps(document | {"jobs": found}, indent=2))


def chosen(names: str | None, known: dict[str, Any]) -> list[str]:
    """Return the jobs that are named, separated by commas; all if none are, and none for an empty text."""
    return list(known) if names is None else [name for name in names.split(",") if name]


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
