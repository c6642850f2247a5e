"""What `ls.estimate` says that jobs take, beside what they take: seconds of the process's CPU time, and their ratio.

    python benchmarks/costs.py [--what hessian,density,rows,surface,...] [--json costs.json]

A small-resnet with random weights on digits-lt, class by class; estimate and job follow each other in one process,
after a tiny job of the same kind, since what is imported at the first use is no part of a job.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import landscape as ls
from landscape.autodiff import costs
from landscape.data import datasets
from landscape.networks import models
from trainers import methods, train


def jobs(objective: Any) -> dict[str, Callable[[], object]]:
    """Return the jobs by their names."""
    plane, line = ls.directions.random(objective, 2), ls.directions.random(objective, 1)
    recipe = methods.recipe("sam", dataset="digits-lt", model="small-resnet", epochs=6, warmup_epochs=0)
    grid = [-1.0, -0.5, 0.0, 0.5, 1.0]
    return {
        "hessian": lambda: ls.spectrum(objective),
        "density": lambda: ls.spectrum(objective, steps=20, probes=2, sampling_errors=False),
        "rows": lambda: ls.spectrum(objective, operator="ggn"),
        "surface": lambda: ls.surface(objective, plane, grid, grid),
        "line": lambda: ls.surface(objective, line, grid),
        "sharpness": lambda: ls.sharpness(objective, draws=4),
        "gradients": lambda: ls.gradients(objective, sampling_errors=True),
        "features": lambda: ls.features(objective),
        "train": lambda: train(None, None, recipe),
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
    parser.add_argument("--what", default="hessian,density,rows,surface,sharpness,gradients,features,train")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", default="costs.json")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    whole, tiny = jobs(load(None)), jobs(load(2))
    found = {}
    print(f"{'job':<12}{'asking':>9}{'estimate':>10}{'truth':>9}{'ratio':>8}")
    for name in args.what.split(","):
        tiny[name]()
        begun = time.process_time()
        with costs.asking() as plans:
            whole[name]()
        said = costs.measured(plans, clock=time.process_time).seconds
        asked = time.process_time()
        whole[name]()
        took = time.process_time() - asked
        found[name] = {"asking": asked - begun, "estimate": said, "truth": took, "ratio": said / took}
        print(f"{name:<12}{asked - begun:8.1f} s{said:8.1f} s{took:7.1f} s{said / took:8.2f}", flush=True)
    Path(args.json).write_text(
        json.dumps({"torch": torch.__version__, "threads": args.threads, "jobs": found}, indent=2)
    )


if __name__ == "__main__":
    main()
