"""How often the errors over samples of all analyses but spectra hold the truth, by simulation.

    python benchmarks/coverage_analyses.py --ckpt run/last.pt --model resnet20 --dataset cifar10 --data-root DIR \
        --classes 0,3,7 --population 1000 --split train

The population are real images, seen as the features that a trained network has of them. On these, two small networks
(one hidden layer) are trained, each from a start of its own: that is quick enough to compute every analysis hundreds of
times. The truth is what an analysis gives of the whole population. Samples are drawn from each class alike, or in
proportion to tr M_i with weights. Printed for each number and size: estimate / truth (mean and standard deviation over
draws and classes), and how often value ± Student's t times the stated error holds the truth, nominally at 90 %.
"""

import argparse
import copy
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy.stats import t as student
from torch import nn
from torch.func import grad, vmap

import landscape as ls
from landscape.data import datasets
from landscape.objective import points
from landscape.objective.draws import Picked, draw_samples, gathered
from landscape.objective.objective import Objective
from landscape.results import grid, inference

SIZES = (6, 10, 25, 50, 100, 200)
HIDDEN = 16
LINE = np.linspace(0, 1, 9)
Numbers = dict[str, tuple[np.ndarray, np.ndarray]]
"""By name: values and their standard errors, of the classes or of the whole."""


def population(options: argparse.Namespace) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the features of all images, (N, F), and their classes from 0 on, (N,)."""
    if options.features is not None and options.features.exists():
        kept = np.load(options.features)
        return torch.from_numpy(kept["features"]), torch.from_numpy(kept["labels"])
    objective = ls.load_objective(
        options.ckpt, model=options.model, dataset=options.dataset, data_root=options.data_root,
        normalize=options.normalize, split=options.split, samples_per_class=options.population,
        partition="class", classes=options.classes,
    )  # fmt: skip
    last = [m for m in objective.model.modules() if isinstance(m, nn.Linear)][-1]
    seen: list[torch.Tensor] = []
    handle = last.register_forward_pre_hook(lambda module, args: seen.append(args[0].detach().double()))
    with torch.no_grad():
        for part in range(len(objective.partition)):
            for inputs, _ in objective.batches(part):
                objective.model(inputs)
    handle.remove()
    features = torch.cat(seen)[-sum(map(len, objective.members)) :]
    labels = torch.cat([torch.full((len(own),), part) for part, own in enumerate(objective.members)])
    if options.features is not None:
        np.savez(options.features, features=features.numpy(), labels=labels.numpy())
    return features, labels


def network(features: torch.Tensor, labels: torch.Tensor, seed: int, steps: int) -> nn.Module:
    """Train a small network on half of the features, the odd ones, so that not all are fitted."""
    n_classes = int(labels.max()) + 1
    generator = torch.Generator().manual_seed(seed)
    model = nn.Sequential(nn.Linear(features.shape[1], HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, n_classes)).double()
    with torch.no_grad():
        for p in model.parameters():
            fan = p.shape[1] if p.ndim == 2 else 1
            p.copy_(torch.randn(p.shape, generator=generator, dtype=p.dtype) * (2 / fan) ** 0.5 * (p.ndim == 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    x, y = features[1::2], labels[1::2]
    for _ in range(steps):
        some = torch.randint(len(x), (128,), generator=generator)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x[some]), y[some]).backward()
        optimizer.step()
    return model.eval()


def objective_of(model: nn.Module, features: torch.Tensor, labels: torch.Tensor) -> Objective:
    """Return the objective of some samples."""
    samples = datasets.from_dataset((features, labels), name="features")
    return Objective.build(model, samples, partition="class", dtype=torch.float64, device="cpu", batch_size=len(labels))


@dataclass(frozen=True, kw_only=True, eq=False)
class Known:
    """What single samples add to losses and gradients, by class: draws then take no network."""

    losses: list[np.ndarray]  # (N, T) at points of the line to the other network
    right: list[np.ndarray]  # (N,) whether half way
    gradients: list[np.ndarray]  # (N, D)


def known(whole: Objective, other: torch.Tensor) -> Known:
    """Compute losses and gradients of all samples."""
    start = points.origin(whole).theta
    losses, right, gradients = [], [], []
    for members in whole.members:
        x, y = whole.samples.batch(members, dtype=torch.float64)
        with torch.no_grad():
            z = [whole.logits(whole.layout.tensors(torch.lerp(start, other, float(t))), x) for t in LINE]
        losses.append(torch.stack([whole.loss(each, y) for each in z], 1).numpy())
        right.append((z[len(z) // 2].argmax(1) == y).numpy().astype(float))

        def one(theta: tuple[torch.Tensor, ...], x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return whole.loss(whole.logits(theta, x[None]), y[None])[0]

        each = vmap(grad(one), in_dims=(None, 0, 0))(whole.theta, x, y)
        gradients.append(torch.cat([g.flatten(1) for g in each], 1).numpy())
    return Known(losses=losses, right=right, gradients=gradients)


@dataclass(frozen=True, kw_only=True, eq=False)
class Chosen:
    """The draws from one class."""

    index: np.ndarray  # (n,) positions in the class
    factors: np.ndarray  # (n,)
    chances: np.ndarray | None = None  # (n,) with which each was drawn; None for all samples

    def stderr(self, x: np.ndarray) -> float:
        """Return the standard error of the mean of values, (n,)."""
        return inference.stderr(inference.draws(x, np.full(len(x), 1 / len(x)), self.chances))

    def share_stderr(self, wrong: np.ndarray) -> float:
        """Return the standard error of an accuracy; the wrong samples have their factors as values, (n,)."""
        left = inference.left(self.chances, len(wrong))
        sums = np.stack([left @ wrong**2, left @ wrong, np.sqrt(left) @ wrong])[:, None]
        return float(inference.Scatter.of([left], [self.factors]).share_stderr(sums)[0])


def by_sums(found: Known, chosen: list[Chosen]) -> Numbers:
    """Return the numbers that follow from sums over samples, by the formulas of the analyses.

    Args:
        found: of all samples.
        chosen: the draws of each class.
    """
    losses = [of.factors[:, None] * own[of.index] for own, of in zip(found.losses, chosen, strict=True)]
    wrong = [of.factors * (1 - own[of.index]) for own, of in zip(found.right, chosen, strict=True)]
    half = len(LINE) // 2
    mean = np.array([own.mean(axis=0) for own in losses])
    error = np.array([[of.stderr(x) for x in own.T] for own, of in zip(losses, chosen, strict=True)])
    barrier = grid.barrier(LINE, mean)
    tops = []
    for own, of in zip(losses, chosen, strict=True):
        rises = own - (1 - LINE) * own[:, :1] - LINE * own[:, -1:]
        tops.append(of.stderr(rises[:, rises.mean(axis=0).argmax()]))
    right = 1 - np.array([own.mean() for own in wrong])
    right_error = np.array([of.share_stderr(own) for own, of in zip(wrong, chosen, strict=True)])
    each = [of.factors[:, None] * own[of.index] for own, of in zip(found.gradients, chosen, strict=True)]
    g = np.array([own.mean(axis=0) for own in each])
    share = np.array([len(own) for own in found.losses]) / sum(map(len, found.losses))
    whole, norm = share @ g, np.linalg.norm(g, axis=1)
    size = np.linalg.norm(whole)
    cosine = g @ whole / (norm * size)
    variance = np.zeros(len(g))
    for q, own in enumerate(each):
        off = own - g[q]  # what a sample's weight changes in the mean, and so in each cosine
        for p in range(len(g)):
            moved = share[q] * (off @ g[p] / norm[p] - cosine[p] * (off @ whole) / size) / size
            if p == q:
                moved = moved + (off @ whole / size - cosine[p] * (off @ g[p]) / norm[p]) / norm[p]
            variance[p] += chosen[q].stderr(moved) ** 2
    return {
        "loss at the checkpoint": (mean[:, 0], error[:, 0]),
        "loss half way to another network": (mean[:, half], error[:, half]),
        "accuracy there": (right, right_error),
        "barrier on the line": (barrier, grid.barrier_stderr(LINE, mean, error)),
        "barrier of distances": (barrier, np.array(tops)),
        "gradient norm": (norm, np.array([of.stderr(own @ u) for of, own, u in zip(chosen, each, g / norm[:, None],
                                                                                   strict=True)])),
        "cosine with the whole": (cosine, np.sqrt(variance)),
    }  # fmt: skip


def by_analyses(objective: Objective, names: str) -> Numbers:
    """Run what is no sum over samples: sharpness, gradients and features."""
    found: Numbers = {}
    if "gradients" in names:
        slopes = ls.gradients(objective, sampling_errors=True)
        for name in ("norm", "cosine", "projected", "specific", "radius", "contribution"):
            found[f"gradients: {name}"] = getattr(slopes, name)[0], getattr(slopes, f"{name}_sampling_stderr")[0]
        pairs = np.triu_indices(len(slopes.parts), 1)
        found["gradients: between"] = slopes.between[0][pairs], slopes.between_sampling_stderr[0][pairs]
    if "sharpness" in names:
        sharp = ls.sharpness(objective, draws=4, ascent_steps=10)
        for name in ("first_order_rise", "worst_rise", "noise_rise", "doubling_radius"):
            found[name.replace("_", " ")] = getattr(sharp, name), getattr(sharp, f"{name}_sampling_stderr")
    if "features" in names:
        features = ls.features(objective)
        if features.quality_stderr is None:  # too few samples for its groups
            return found
        for name in ("quality", "distance", "variance", "alignment"):
            found[f"features: {name}"] = getattr(features, name)[0], getattr(features, f"{name}_stderr")[0]
        for name in ("within_between", "norm_variation", "angle_deviation", "duality"):
            found[f"features: {name}"] = getattr(features, name)[:1], getattr(features, f"{name}_stderr")[:1]
    return found


def check(whole: Objective, found: Known, other: torch.Tensor) -> None:
    """Make sure that the formulas here give what the analyses give."""
    part = draw_samples(whole, 50)
    ours = by_sums(found, chosen_of(whole, part))
    there = points.Point(other, points.origin(whole).buffers)
    line = ls.surface(part, ls.directions.towards(part, [there], ["other"]), LINE, between=True)
    slopes = ls.gradients(part, sampling_errors=True)
    theirs = {
        "loss half way to another network": (line.loss[:, 0, len(LINE) // 2], line.loss_stderr[:, 0, len(LINE) // 2]),
        "accuracy there": (line.accuracy[:, 0, len(LINE) // 2], line.accuracy_stderr[:, 0, len(LINE) // 2]),
        "barrier on the line": (line.barrier, line.barrier_stderr),
        "gradient norm": (slopes.norm[0], slopes.norm_sampling_stderr[0]),
        "cosine with the whole": (slopes.cosine[0], slopes.cosine_sampling_stderr[0]),
    }
    for name, pair in theirs.items():
        np.testing.assert_allclose(ours[name], pair, rtol=1e-6, atol=1e-9, err_msg=name)


def chosen_of(whole: Objective, part: Objective) -> list[Chosen]:
    """Return which samples of the whole are in a draw."""
    draws = part.draws
    if draws is None:
        return [Chosen(index=np.arange(len(own)), factors=np.ones(len(own))) for own in whole.members]
    return [
        Chosen(index=np.searchsorted(own, draws.index[i]), factors=draws.factors[i], chances=draws.chances[i])
        for own, i in zip(whole.members, part.members, strict=True)
    ]


def drawn(whole: Objective, n: int, seed: int, *, weighted: bool, sums: bool) -> Objective:
    """Draw n samples of each class; for what is a sum, as positions in the whole."""
    if weighted:
        return draw_samples(whole, n, seed=seed)
    random = np.random.default_rng([seed, n])
    chosen = [random.choice(own, n, replace=False) for own in whole.members]
    if sums:
        return gathered(whole, [Picked(own, np.ones(n)) for own in chosen], {})
    features, labels = whole.samples.batch(np.concatenate(chosen), dtype=torch.float64)
    return objective_of(copy.deepcopy(whole.model).requires_grad_(), features, labels)


def table(whole: Objective, found: Known, repetitions: int, names: str, *, weighted: bool) -> None:
    """Print one table for one way to draw."""

    def numbers(objective: Objective) -> Numbers:
        if names != "sums":
            return by_analyses(objective, names)
        return by_sums(found, chosen_of(whole, objective))

    truth = {name: value for name, (value, _) in numbers(whole).items()}
    sizes = [n for n in SIZES if 5 * n <= whole.counts.min()]
    print("| number | truth | " + " | ".join(f"n = {n}" for n in sizes) + " |")
    print("|---|---|" + "---|" * len(sizes))
    cells: dict[str, list[str]] = defaultdict(list)
    for n in sizes:
        ratios, holds = defaultdict(list), defaultdict(list)
        t = student.ppf(0.95, n - 1)
        for seed in range(repetitions):
            part = drawn(whole, n, seed, weighted=weighted, sums=names in {"sums", "gradients"})
            for name, (value, error) in numbers(part).items():
                sure = np.isfinite(error) & np.isfinite(truth[name]) & (truth[name] != 0)  # else there is no ratio
                ratios[name] += list(value[sure] / truth[name][sure])
                holds[name] += list(np.abs(value - truth[name])[sure] <= t * error[sure])
        for name in truth:
            if name not in ratios:
                cells[name].append("not given")
                continue
            some = np.array(ratios[name])
            cells[name].append(f"{some.mean():.2f} ({some.std():.2f}), {np.mean(holds[name]):.0%}")
    for name, row in cells.items():
        shown = ", ".join(f"{v:.3g}" for v in truth[name])
        print(f"| {name} | {shown} | " + " | ".join(row) + " |", flush=True)


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("ckpt", "model", "dataset", "data-root", "normalize"):
        parser.add_argument(f"--{name}")
    parser.add_argument("--split", default="train")
    parser.add_argument("--classes", default="0,3,7")
    parser.add_argument("--population", type=int, default=1000, help="samples of each class")
    parser.add_argument("--repetitions", type=int, default=500, help="of sums and gradients; a tenth of the others")
    parser.add_argument("--what", default="sums,features,sharpness,gradients")
    parser.add_argument("--steps", type=int, default=400, help="of training")
    parser.add_argument("--features", type=Path, help="a .npz to keep the features in")
    options = parser.parse_args()
    features, labels = population(options)
    model, other = (network(features, labels, seed, options.steps) for seed in (0, 1))
    whole = objective_of(model, features, labels)
    far = torch.cat([p.detach().reshape(-1) for p in other.parameters()])
    _, accuracy = whole.evaluation.overall
    print(f"{len(labels)} samples of {len(whole.counts)} classes, accuracy {accuracy:.3f}")
    found = known(whole, far)
    check(whole, found, far)
    for names in options.what.split(","):
        for weighted in (False, True):
            print(f"\n{names}, drawn " + ("in proportion to tr M" if weighted else "alike"))
            many = options.repetitions if names in {"sums", "gradients"} else options.repetitions // 10
            table(whole, found, many, names, weighted=weighted)


if __name__ == "__main__":
    main()
