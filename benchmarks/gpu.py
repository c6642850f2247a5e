"""All that is to be measured where a GPU is at hand, in at most eight minutes, as one JSON document.

    python benchmarks/gpu.py --json gpu.json
    python benchmarks/gpu.py --device cpu --tiny --json gpu.json       the same on a few samples, to see that it runs

    products   one gradient, and products with the Hessian and the Gauss-Newton matrix in units of it: ours, PyHessian's
               and curvlinops'. Goals: Hessian at most 2.2 gradients, Gauss-Newton 1.5
    classes    spectra of ten classes of 128 samples, and of a hundred of which most have few: `ls.spectrum` with its
               tracing, by the same number of steps and by default, and bare Lanczos with our product and with the
               peers'. Goals: 15 and 40 times PyHessian
    surface    points a second, against the plain loop that loads the parameters and runs the data
    profile    kernels that one product launches, their time on the device, and how often the host waits
    training   seconds of a step of every method, as many methods as there is time for

Images are random and so are the weights of the ResNet-32: what is measured is time, which does not depend on either. A
section that begins after the time is up is left out, and the document says so. Sections that fail say why.

Analyses compute in full float32. So do the peers and the plain loops here, without the TF32 that is PyTorch's default;
training has the default.
"""

import argparse
import json
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import landscape as ls
from landscape.autodiff import devices
from landscape.curvature.lanczos import lanczos, probe
from landscape.data import datasets
from landscape.networks import models
from trainers import gkp, methods
from trainers.loop import Trainer

BUDGET = 480.0
"""Seconds after which no section, class or method begins; a section takes about one minute on a GPU."""


class Bench:
    """Sizes and the device, and how time is taken there."""

    def __init__(self, device: torch.device, *, tiny: bool) -> None:
        """Choose the sizes."""
        self.device, self.tiny = device, tiny
        self.end = time.perf_counter() + BUDGET
        self.network = "small-resnet" if tiny else "resnet32"
        self.side, self.each, self.repeats, self.steps = (8, 4, 1, 3) if tiny else (32, 128, 10, 20)
        self.many = 6 if tiny else 100

    def seconds(self, action: Callable[[], object], repeats: int | None = None) -> float:
        """Return the median time of an action, the first call excluded where it is a measurement."""
        if not self.tiny:
            action()
        found = []
        for _ in range(repeats or self.repeats):
            self.wait()
            begun = time.perf_counter()
            action()
            self.wait()
            found.append(time.perf_counter() - begun)
        return statistics.median(found)

    @property
    def is_late(self) -> bool:
        """Say whether the time is up."""
        return time.perf_counter() > self.end

    def wait(self) -> None:
        """Wait until the device has done what it was asked for."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def samples(self, counts: list[int]) -> Any:
        """Return random images of classes."""
        generator = torch.Generator().manual_seed(0)
        inputs = torch.randn(sum(counts), 3, self.side, self.side, generator=generator)
        return datasets.from_dataset((inputs, torch.from_numpy(np.repeat(np.arange(len(counts)), counts))))

    def model(self, n_classes: int) -> nn.Module:
        """Return a network with random weights, always the same."""
        with torch.random.fork_rng(devices=[]):
            torch.random.manual_seed(0)
            return models.build(self.network, n_classes, in_channels=3)

    def objective(self, counts: list[int], chosen: list[int] | None = None) -> Any:
        """Return the objective of classes of so many samples, of some of them if these are given."""
        samples = self.samples(counts)
        model, classes = self.model(len(counts)), None if chosen is None else [str(p) for p in chosen]
        options: dict[str, Any] = {"device": self.device, "batch_size": 128, "classes": classes}
        return ls.Objective.build(model, samples, partition="class", **options)


def peers(objective: Any, part: int) -> dict[str, Callable[[torch.Tensor], torch.Tensor]]:
    """Return the peers' products with the Hessian of a part, as far as they are installed."""
    model = objective.model.requires_grad_(True)
    batches, layout, found = list(objective.batches(part)), objective.layout, {}
    try:
        from pyhessian import hessian

        cuda = objective.device.type == "cuda"
        theirs = hessian(model, nn.CrossEntropyLoss(), dataloader=batches, cuda=cuda)
        found["PyHessian"] = lambda v: layout.flat(theirs.dataloader_hv_product(layout.tensors(v))[1])
    except ImportError:
        pass
    try:
        from curvlinops import HessianLinearOperator

        parameters = list(model.parameters())
        operator = HessianLinearOperator(model, nn.CrossEntropyLoss(), parameters, batches, check_deterministic=False)
        found["curvlinops"] = lambda v: operator @ v
    except ImportError:
        pass
    return found


def unit(objective: Any) -> torch.Tensor:
    """Return a unit vector."""
    v = probe(objective.layout.size, seed=0, number=0).to(objective.device)
    return v / v.norm()


@devices.full_precision()
def products(bench: Bench) -> dict[str, Any]:
    """Time a gradient and products, in units of it."""
    objective = bench.objective([bench.each] * 2)
    inputs, targets = objective.batch(0, 0)
    theta = [t.detach().requires_grad_() for t in objective.theta]
    gradient = bench.seconds(lambda: torch.autograd.grad(objective.losses(theta, inputs, targets).sum(), theta))
    v, found = unit(objective), {"gradient, seconds": gradient}
    for kind in ("hessian", "ggn"):
        for backend in ("linearized", "reverse"):
            operator = ls.curvature_operator(objective, kind, backend=backend).restrict([0])
            taken = bench.seconds(lambda operator=operator: operator.matvec(v[None, None]))
            found[f"{kind}, {backend}"] = taken / gradient
            block = v.expand(1, 4, -1)
            taken = bench.seconds(lambda operator=operator, block=block: operator.matvec(block))
            found[f"{kind}, {backend}, each of four"] = taken / gradient / 4
    for name, product in peers(objective, 0).items():
        found[f"hessian, {name}"] = bench.seconds(lambda product=product: product(v)) / gradient
    return found


@devices.full_precision()
def classes(bench: Bench, counts: list[int], of: int) -> dict[str, Any]:
    """Time the analysis of some classes, and Lanczos runs of these with our product and with those of the peers."""
    chosen = np.linspace(0, len(counts) - 1, of).round().astype(int).tolist()
    objective = bench.objective(counts, chosen)
    operator = ls.curvature_operator(objective)
    z = probe(objective.layout.size, seed=0, number=0).to(objective.device)[None, None]

    def run(product: Callable[[torch.Tensor], torch.Tensor]) -> float:
        return bench.seconds(lambda: lanczos(lambda V: product(V[0, 0])[None, None], z, bench.steps), 1)

    plain: dict[str, Any] = {"steps": bench.steps, "probes": 1, "sampling_errors": False}
    ways: dict[str, dict[str, Any]] = {"as many steps": plain, "default": {}}
    found: dict[str, Any] = {
        f"ls.spectrum, {name}, seconds": bench.seconds(lambda given=given: ls.spectrum(objective, **given), 1)
        for name, given in ways.items()
        if not bench.is_late
    }
    seconds: dict[str, list[float]] = {}
    for part in range(len(objective.partition)):
        if bench.is_late:
            break
        own = operator.restrict([part])
        everyone = {"ours": lambda v, own=own: own.matvec(v[None, None])[0, 0], **peers(objective, part)}
        for name, product in everyone.items():
            seconds.setdefault(name, []).append(run(product))
    found |= {f"{name}, seconds": sum(values) for name, values in seconds.items()}
    timed = len(seconds.get("ours", []))
    for name, values in seconds.items():
        if name != "ours":
            found[f"{name} / ours"] = sum(values) / sum(seconds["ours"])
            if timed == len(chosen):
                found[f"{name} / ls.spectrum"] = sum(values) / found["ls.spectrum, as many steps, seconds"]
    return found | {"classes": len(chosen), "classes timed": timed, "steps": bench.steps, "samples": counts}


@devices.full_precision()
def surface(bench: Bench) -> dict[str, Any]:
    """Time points of a surface, against the plain loop."""
    objective = bench.objective([bench.each] * 10)
    line = ls.directions.random(objective, 1)
    n = 5
    ours = bench.seconds(lambda: ls.surface1d(objective, line, n=n), 1) / n
    model, loss = bench.model(10).to(bench.device).eval(), nn.CrossEntropyLoss(reduction="sum")
    state = {name: t.clone() for name, t in model.state_dict().items()}
    batches = [batch for part in range(10) for batch in objective.batches(part)]

    @torch.no_grad()
    def plain() -> float:
        model.load_state_dict(state)
        return sum(loss(model(x), y).item() for x, y in batches)

    theirs = bench.seconds(plain)
    return {"points a second": 1 / ours, "plain loop, points a second": 1 / theirs, "plain / ours": theirs / ours}


def training(bench: Bench) -> dict[str, Any]:
    """Time a step of each method of training, until the time is up."""
    found: dict[str, Any] = {}
    samples = bench.samples([bench.each] * 10)
    places = torch.arange(min(128, len(samples)))
    for method in methods.METHODS:
        name = f"{method}, seconds a step"
        if bench.is_late:
            found[name] = "left out: the time was up"
            continue
        views = "none,none,none" if method.startswith("bcl") else "none"
        options = {"dataset": "own", "model": bench.network, "epochs": 5, "batch_size": len(places), "augment": views}
        recipe = methods.compose(options, method=method)
        model = models.build(bench.network, 10, in_channels=3, cosine=bool(recipe.cosine))
        trainer = Trainer(recipe, model, samples.on(bench.device), device=bench.device)
        trainer.epoch = 4  # with deferred re-weighting
        trainer.model.train()
        if recipe.grouped:
            group_of = np.arange(10) % recipe.groups
            trainer.regroup(group_of, penalty(trainer, group_of) if recipe.gkp else None)

        def step(trainer: Trainer = trainer) -> None:
            views, labels = trainer.batches.get(places)
            trainer.step(views, labels, samples.labels[places.numpy()])

        found[name] = bench.seconds(step)
    return found


def penalty(trainer: Trainer, group_of: np.ndarray) -> gkp.GKP:
    """Return a penalty of the right size, with centres at the encoder's own weights."""
    weights = dict(trainer.model.named_parameters())
    centre = torch.cat([weights[name].detach().reshape(-1) for name in trainer.encoder])
    rows = centre.expand(int(group_of.max()) + 1, -1).clone()
    return gkp.GKP(rows, rows.square(), np.bincount(group_of, trainer.train.class_counts))


def profile(bench: Bench) -> dict[str, Any]:
    """Count the kernels of one product."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiled

    objective = bench.objective([bench.each] * 2)
    operator, v = ls.curvature_operator(objective).restrict([0]), unit(objective)[None, None]
    operator.matvec(v)
    kinds = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if bench.device.type == "cuda" else [])
    with profiled(activities=kinds) as watched:
        operator.matvec(v)
        bench.wait()
    return counted(watched.key_averages())


def counted(events: Sequence[Any]) -> dict[str, Any]:
    """Return the numbers of a profile."""
    # An operation of the host also has the time of the kernels that it began, which are events of their own.
    on_device = [e for e in events if e.device_type.name != "CPU" and not e.is_user_annotation]
    calls = {e.key: e.count for e in events}
    longest = sorted(on_device or events, key=lambda e: -max(e.self_device_time_total, e.self_cpu_time_total))
    return {
        "kernels": sum(n for name, n in calls.items() if "LaunchKernel" in name),
        "operations": sum(n for name, n in calls.items() if name.startswith("aten::")),
        # Those for the whole device are the profiler's and those of `wait`.
        "waits of the host": sum(n for name, n in calls.items() if "Synchronize" in name and "Device" not in name),
        "time on the device, seconds": sum(e.self_device_time_total for e in on_device) / 1e6,
        "longest": [e.key for e in longest[:8]],
    }


def main() -> None:
    """Parse, measure, write the document."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="a few samples: nothing of it is a measurement")
    parser.add_argument("--json", default="gpu.json")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    bench, begun = Bench(torch.device(args.device), tiny=args.tiny), time.perf_counter()
    few = np.unique(np.geomspace(500 if not args.tiny else 5, 5 if not args.tiny else 2, bench.many).round()).astype(
        int
    )
    tail = np.resize(few[::-1], bench.many).tolist()
    sections: dict[str, Callable[[], dict[str, Any]]] = {
        "products": lambda: products(bench),
        "10 classes": lambda: classes(bench, [bench.each] * (3 if args.tiny else 10), 2 if args.tiny else 10),
        "100 classes": lambda: classes(bench, tail, 2 if args.tiny else 20),
        "surface": lambda: surface(bench),
        "profile": lambda: profile(bench),
        "training": lambda: training(bench),
    }
    document: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if bench.device.type == "cuda" else args.device,
        "torch": torch.__version__,
        "network": bench.network,
        "tiny": args.tiny,
    }
    for name, section in sections.items():
        if bench.is_late:
            document[name] = "left out: the time was up"
            continue
        try:
            document[name] = section()
        except Exception as error:  # the other sections are worth having
            document[name] = f"failed: {type(error).__name__}: {error}"
        print(f"{name}: {document[name]}", flush=True)
    document["seconds"] = time.perf_counter() - begun
    Path(args.json).write_text(json.dumps(document, indent=2))


if __name__ == "__main__":
    main()
