"""Points of a per-class loss surface per second, beside the plain loop that other tools run, in one run.

    python benchmarks/surface.py --model resnet20 --data-root DIR [--ckpt FILE]

The plain loop sets the parameters of a point by load_state_dict and evaluates a loader of batches of 128 normalised
images in eval mode without gradients, one loss for all classes. Ours gives the loss and accuracy of every class. Both
see the same images in memory; rounds are interleaved, medians of same-round ratios are printed. `--refine` also counts
what an adaptive grid saves, and how far the interpolation of its points is off at those that it left out.
"""

import argparse
import copy
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

import landscape as ls
from landscape.analyses import directions
from landscape.errors import InputError
from landscape.networks import models
from landscape.objective.evaluator import Evaluator
from landscape.objective.points import Point
from landscape.results import grid
from landscape.results.regroup import grid_of


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ckpt")
    parser.add_argument("--model", default="resnet20")
    parser.add_argument("--dataset", default="cifar10")
    parser.add_argument("--data-root")
    parser.add_argument("--split", default="test")
    parser.add_argument("--normalize", default="imagenet")
    parser.add_argument("--per-class", type=int, default=102)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--refine", type=float, help="also compute a grid of --grid points with this tolerance")
    parser.add_argument("--grid", type=int, default=51)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.random.manual_seed(0)
    objective = ls.load_objective(
        args.ckpt,
        model=args.model if args.ckpt else models.build(args.model, 10),
        dataset=args.dataset,
        data_root=args.data_root,
        split=args.split,
        normalize=args.normalize,
        samples_per_class=args.per_class,
        partition="class",
    )
    n = sum(len(m) for m in objective.members)
    print(f"{args.model}, {n} images, torch {torch.__version__}, {args.threads} threads, {objective.device}")
    speed(objective, args.rounds)
    if args.refine:
        refinement(objective, args.grid, args.refine)


def plain_loop(objective: ls.Objective) -> Callable[[Point], float]:
    """What other tools do at each point: load_state_dict, then the loader."""
    index = np.concatenate(objective.members)
    batches = [
        objective.samples.batch(index[i : i + 128], objective.device, objective.dtype)
        for i in range(0, len(index), 128)
    ]
    model: nn.Module = copy.deepcopy(objective.model)  # the loop leaves other weights in it
    layout = objective.layout

    def evaluate(point: Point) -> float:
        state = model.state_dict()
        for name, t in zip(layout.names, layout.tensors(point.theta), strict=True):
            state[name] = t
        model.load_state_dict(state)
        total, count = 0.0, 0
        with torch.no_grad():
            for inputs, labels in batches:
                logits = model(inputs)
                total += F.cross_entropy(logits, labels, reduction="sum").item()
                count += int((logits.argmax(1) == labels).sum())
        return total / len(index)

    return evaluate


def speed(objective: ls.Objective, rounds: int) -> None:
    """Print ratios to the plain loop."""
    along = directions.random(objective, 2)
    points = [along.at(0.05 * k, -0.03 * k) for k in range(rounds + 1)]
    shares = objective.partition.shares
    started = time.perf_counter()
    fast, slow = Evaluator(objective), Evaluator(objective, plain=True)
    print(f"tracing took {time.perf_counter() - started:.1f} s, once for a surface; not in the figures below")
    ways: dict[str, Callable[[Point], float]] = {
        "plain loop, one loss": plain_loop(objective),
        "all classes, as traced": lambda p: float(shares @ fast(p)[0]),
        "all classes, not traced": lambda p: float(shares @ slow(p)[0]),
    }
    try:
        short = Evaluator(objective, bf16=True)
        ways["all classes, bfloat16"] = lambda p: float(shares @ short(p)[0])
    except InputError as error:
        print(error)
    first = next(iter(ways))
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    errors = dict.fromkeys(ways, 0.0)
    for k, point in enumerate(points):  # the first round warms up
        found = {}
        for name, evaluate in ways.items():
            started = time.perf_counter()
            found[name] = evaluate(point)
            if k:
                seconds[name].append(time.perf_counter() - started)
        for name in ways:
            errors[name] = max(errors[name], abs(found[name] / found[first] - 1))
    for name in ways:
        ratios = [a / b for a, b in zip(seconds[first], seconds[name], strict=True)]
        rate, ratio = 1 / statistics.median(seconds[name]), statistics.median(ratios)
        print(f"{name:<26}{rate:8.2f} points/s   plain / this {ratio:5.2f} ", end="")
        print(f"({min(ratios):.2f} to {max(ratios):.2f})   loss off by {errors[name]:.1e}")


def refinement(objective: ls.Objective, n: int, tol: float) -> None:
    """Print what an adaptive grid saves, and its error."""
    along = directions.random(objective, 2)
    axis = np.linspace(-1, 1, n)
    found = ls.surface(objective, along, axis, axis, refine=tol)
    exact = ls.surface(objective, along, axis, axis)
    known, shares = found.computed, objective.partition.shares
    filled = grid.filled(grid_of(found), found.loss, found.centre_loss)
    off = np.abs(np.tensordot(shares, filled, 1)[~known] / np.tensordot(shares, exact.loss, 1)[~known] - 1)
    print(f"refinement {tol:g}: {known.sum():,} of {known.size:,} points, {known.size / known.sum():.1f} times fewer;")
    print(
        f"the others off by {np.median(off):.2%} (median), {np.quantile(off, 0.95):.2%} (95 %), {off.max():.2%} (most)"
    )


if __name__ == "__main__":
    main()
