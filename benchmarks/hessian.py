"""Per-class spectra of a ResNet-20 on CIFAR-10 images, beside three peers in the same run.

    python benchmarks/hessian.py --ckpt RESNET20_OR_32 --model resnet20 --data-root DIR

Measures, interleaved by class, medians over classes and rounds:
  products   one Hessian-vector product of one class (128 images, batches of 128), first call excluded
  spectra    Lanczos of `--steps` steps with full re-orthogonalisation, all classes
  three      lambda_max, trace (exact where it can be had, else with a standard error of at most 2 %) and density of
             `--density-steps` steps, against PyHessian's three calls with their defaults: eigenvalues(), trace(), and
             its density() algorithm with 100 steps, written out below because the released one calls a function that
             PyTorch no longer has; and what the steps that were saved would have changed in the density
  first      lambda_max and trace of each class as `landscape hessian` takes them by default, with the errors over
             samples, against PyHessian's eigenvalues() and trace() with their defaults; CPU time
  head       lambda_max and trace of all images of the first class to `--accuracy`, everything included, against
             PyHessian's two calls with their defaults on all images: its time for one product, measured, times the
             number of products that the two calls take for `--per-class` images of the class; CPU time
  rows       all eigenvalues of the Gauss-Newton matrices, in one call by rows, against `--ggn-steps` Lanczos steps with
             curvlinops' product and with our own; CPU time
  errors     the default and the Gauss-Newton matrix with and without errors over samples; CPU time
  memory     peak resident memory of one class's spectrum, each tool in a process of its own

Without --ckpt the network has random weights, whose curvature is not that of a trained one: use that for products only.
"""

import argparse
import datetime
import json
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import wasserstein_distance
from torch import nn

import landscape as ls
from landscape.curvature import lanczos as lanczos_module

ROUND = {"products": 3, "spectra": 1, "three": 1}


def main() -> None:
    """Parse, measure, print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ckpt")
    parser.add_argument("--model", default="resnet20")
    parser.add_argument("--data-root", required=True)
    parser.add_argument("--normalize", default="imagenet")
    parser.add_argument("--split", default="test")
    parser.add_argument("--per-class", type=int, default=128)
    parser.add_argument("--classes", default="0,1,2,3,4,5,6,7,8,9")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--density-steps", type=int, default=60)
    parser.add_argument("--ggn-steps", type=int, default=80)
    parser.add_argument("--rounds", type=int, default=3, help="of the section on errors over samples")
    parser.add_argument("--accuracy", type=float, default=0.05)
    parser.add_argument("--what", default="products,spectra,three,first,head,rows,errors,memory")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--alone", help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    warnings.simplefilter("ignore")
    if args.alone:
        measure_memory(args)
        return
    objective = load(args, args.classes)
    _, accuracy = objective.evaluation.overall
    print(
        f"{args.model}, {len(objective.partition)} classes of {args.per_class}, accuracy {accuracy:.3f}, ",
        end="",
    )
    packages = ("torch", "PyHessian", "curvlinops-for-pytorch", "hessian-eigenthings")
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in packages)
    print(f"{versions}, {args.threads} threads, {objective.device}, {datetime.date.today()}")
    started = time.perf_counter()
    operator = ls.curvature_operator(objective)
    print(f"tracing took {time.perf_counter() - started:.1f} s, once for all classes; not in the figures below")
    for what in args.what.split(","):
        sections = {"products": products, "spectra": spectra, "three": three, "first": first, "head": head}
        (sections | {"rows": rows, "errors": errors, "memory": memory})[what](args, objective, operator)


def load(args: argparse.Namespace, classes: str) -> Any:
    """Return the objective of the chosen classes."""
    return ls.load_objective(
        args.ckpt,
        model=args.model if args.ckpt else built(args.model),
        dataset="cifar10",
        data_root=args.data_root,
        normalize=args.normalize,
        split=args.split,
        samples_per_class=args.per_class,
        partition="class",
        classes=classes,
    )


def built(name: str) -> nn.Module:
    """Return a network with random weights, always the same."""
    from landscape.networks import models

    with torch.random.fork_rng():
        torch.random.manual_seed(0)
        return models.build(name, 10)


def peers(objective: Any, part: int) -> tuple[nn.Module, list[Any], list[torch.Tensor]]:
    """Return what the peers need: a model that requires gradients, batches, parameters."""
    model = objective.model
    model.requires_grad_(True)
    return model, list(objective.batches(part)), list(model.parameters())


def pyhessian_product(objective: Any, part: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """PyHessian's loader mode, its own code."""
    from pyhessian import hessian

    model, batches, _ = peers(objective, part)
    theirs = hessian(model, nn.CrossEntropyLoss(), dataloader=batches, cuda=False)
    return lambda v: objective.layout.flat(theirs.dataloader_hv_product(objective.layout.tensors(v))[1])


def curvlinops_product(objective: Any, part: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """Curvlinops' Hessian, its own code."""
    from curvlinops import HessianLinearOperator

    model, batches, parameters = peers(objective, part)
    theirs = HessianLinearOperator(model, nn.CrossEntropyLoss(), parameters, batches, check_deterministic=False)
    return lambda v: theirs @ v


def eigenthings_product(objective: Any, part: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """Hessian-eigenthings' Hessian, its own code; it takes the mean over batches, which are to be of one size."""
    from hessian_eigenthings.loss_fns import supervised_loss
    from hessian_eigenthings.operators import HessianOperator

    model, batches, _ = peers(objective, part)
    return HessianOperator(model, batches, supervised_loss(nn.CrossEntropyLoss())).matvec


PEERS = {
    "PyHessian, loader": pyhessian_product,
    "curvlinops": curvlinops_product,
    "hessian-eigenthings": eigenthings_product,
}


def ours_product(operator: Any, part: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """Ours, as `landscape hessian` runs it."""
    restricted = operator.restrict([part])
    return lambda v: restricted.matvec(v[None, None])[0, 0]


def clock(action: Callable[[], Any]) -> tuple[float, Any]:
    """Return seconds and result."""
    started = time.perf_counter()
    result = action()
    return time.perf_counter() - started, result


def cpu(action: Callable[[], Any]) -> tuple[float, Any]:
    """Return seconds of CPU time and result."""
    started = time.process_time()
    result = action()
    return time.process_time() - started, result


def report(title: str, seconds: dict[str, list[float]]) -> None:
    """Print medians and the ratios of same-round pairs."""
    print(f"\n{title}")
    for name, values in seconds.items():
        ratios = [v / o for v, o in zip(values, seconds["landscape"], strict=True)]
        span = f"({min(ratios):.2f} to {max(ratios):.2f})"
        print(f"  {name:<24}{statistics.median(values):9.3f} s   {statistics.median(ratios):6.2f} x ours   {span}")


def products(args: argparse.Namespace, objective: Any, operator: Any) -> None:
    """Time single products."""
    seconds: dict[str, list[float]] = {"landscape": [], **{name: [] for name in PEERS}}
    v = lanczos_module.probe(objective.layout.size, seed=0, number=0)
    v /= v.norm()
    off = []
    for part in range(len(objective.partition)):
        makers = (ours_product(operator, part), *(make(objective, part) for make in PEERS.values()))
        found = [make(v) for make in makers]
        off += [((found[0] - f).norm() / f.norm()).item() for f in found[1:]]
        for _ in range(ROUND["products"]):
            for name, make in zip(seconds, makers, strict=True):
                seconds[name].append(clock(lambda make=make: make(v))[0])
    report(f"one product; ours is off by at most {max(off):.1e} of theirs", seconds)


def spectra(args: argparse.Namespace, objective: Any, operator: Any) -> None:
    """Time Lanczos runs of `--steps` steps for every class."""
    seconds: dict[str, list[float]] = {"landscape": [], **{name: [] for name in PEERS}}
    tops = []
    for part in range(len(objective.partition)):
        found = []
        makers = (partial(ours_product, operator), *(partial(make, objective) for make in PEERS.values()))
        for name, make in zip(seconds, makers, strict=True):
            run = lanczos_ours if name == "landscape" else lanczos_by_tensor
            started = time.perf_counter()
            found.append(run(make(part), objective, args.steps))
            seconds[name].append(time.perf_counter() - started)
        tops.append(max(abs(f - found[1]) / abs(found[1]) for f in found))
    report(f"spectra, {args.steps} steps a class; top Ritz values agree to {max(tops):.1e}", seconds)
    total = {name: sum(values) for name, values in seconds.items()}
    print("  all classes: " + ", ".join(f"{n} {t:.1f} s" for n, t in total.items()))


def lanczos_ours(product: Callable[[torch.Tensor], torch.Tensor], objective: Any, steps: int) -> float:
    """Our Lanczos."""
    z = lanczos_module.probe(objective.layout.size, seed=0, number=0)
    runs = lanczos_module.lanczos(lambda V: product(V[0, 0])[None, None], z[None, None], steps)
    nodes, _ = ls.nodes_and_weights(runs.alpha[0], runs.beta[0], runs.steps[0])
    return float(nodes.max())


def lanczos_by_tensor(product: Callable[[torch.Tensor], torch.Tensor], objective: Any, steps: int) -> float:
    """PyHessian's density(): re-orthogonalised against all earlier vectors, tensor by tensor."""
    layout = objective.layout
    z = lanczos_module.probe(layout.size, seed=0, number=0)
    basis = [[t.clone() for t in layout.tensors(z / z.norm())]]
    alphas: list[float] = []
    betas: list[float] = []
    previous = None
    for step in range(steps):
        v = basis[-1]
        w = [t.clone() for t in layout.tensors(product(layout.flat(v)))]
        alpha = inner(w, v)
        alphas.append(alpha)
        w = [a - alpha * b for a, b in zip(w, v, strict=True)]
        if previous is not None:
            w = [a - betas[-1] * b for a, b in zip(w, previous, strict=True)]
        if step == steps - 1:
            break
        betas.append(inner(w, w) ** 0.5)
        for u in basis:
            overlap = inner(w, u)
            w = [a - overlap * b for a, b in zip(w, u, strict=True)]
        norm = inner(w, w) ** 0.5
        previous = v
        basis.append([a / norm for a in w])
    T = np.diag(alphas) + np.diag(betas, 1) + np.diag(betas, -1)
    return float(np.linalg.eigvalsh(T)[-1])


def inner(a: list[torch.Tensor], b: list[torch.Tensor]) -> float:
    """Inner product of two lists of tensors."""
    return sum(torch.sum(x * y) for x, y in zip(a, b, strict=True)).item()  # type: ignore[union-attr]


def three(args: argparse.Namespace, objective: Any, operator: Any) -> None:
    """Time lambda_max, trace and density together against PyHessian's three calls."""
    from pyhessian import hessian

    seconds: dict[str, list[float]] = {"landscape": [], "PyHessian, three calls": []}
    lines = []
    for part, name in enumerate(objective.partition.names):
        alone = load(args, name)
        taken, found = clock(lambda alone=alone: ls.spectrum(alone, steps=args.density_steps, probes=1, trace_tol=0.02))
        seconds["landscape"].append(taken)
        model, batches, _ = peers(objective, part)
        with torch.random.fork_rng():
            torch.random.manual_seed(part)
            theirs = hessian(model, nn.CrossEntropyLoss(), dataloader=batches, cuda=False)
            first, (values, _) = clock(theirs.eigenvalues)
            second, samples = clock(theirs.trace)
        product = pyhessian_product(objective, part)
        third, _ = clock(lambda product=product: lanczos_by_tensor(product, objective, 100))
        seconds["PyHessian, three calls"].append(first + second + third)
        lines.append(
            f"  {name:<12} ours {found.lambda_max[0]:8.2f}, {found.trace[0]:9.1f} +- {found.trace_stderr[0]:.1f};  "
            f"PyHessian {values[0]:8.2f}, {np.mean(samples):9.1f} ({len(samples)} probes; "
            f"{first:.0f} + {second:.0f} + {third:.0f} s)"
        )
    report(f"lambda_max, trace and density of {args.density_steps} steps", seconds)
    print("\n".join(lines))
    saved(args, load(args, objective.partition.names[0]))


def first(args: argparse.Namespace, objective: Any, operator: Any) -> None:
    """Time the first numbers of each class, as one call computes them, against PyHessian's two calls, in CPU time."""
    from pyhessian import hessian

    seconds: dict[str, list[float]] = {"landscape": [], "PyHessian, two calls": []}
    lines = []
    mark = time.process_time()

    def compare(found: ls.results.Spectrum) -> None:
        nonlocal mark
        seconds["landscape"].append(time.process_time() - mark)
        part = len(lines)
        model, batches, _ = peers(objective, part)
        with torch.random.fork_rng():
            torch.random.manual_seed(part)
            theirs = hessian(model, nn.CrossEntropyLoss(), dataloader=batches, cuda=False)
            one, (values, _) = cpu(theirs.eigenvalues)
            two, samples = cpu(theirs.trace)
        seconds["PyHessian, two calls"].append(one + two)
        lines.append(
            f"  {found.parts[0]:<12} ours {found.lambda_max[0]:8.2f} +- {found.lambda_max_residual[0]:.1g}, "
            f"{found.trace[0]:9.1f} +- {found.trace_stderr[0]:.1f};  PyHessian {values[0]:8.2f}, "
            f"{np.mean(samples):9.1f} ({len(samples)} probes)"
        )
        mark = time.process_time()

    ls.spectrum(load(args, args.classes), finished=compare)
    seconds["landscape"][-1] += time.process_time() - mark  # products between the parts
    report("lambda_max and trace, CPU time; the first class has the tracing of all in ours", seconds)
    ours, others = (sum(values) for values in seconds.values())
    print(f"  all classes: {ours:.1f} s against {others:.1f} s, {others / ours:.2f} x ours")
    print("\n".join(lines))


def head(args: argparse.Namespace, objective: Any, operator: Any) -> None:
    """Time the numbers of a whole class to an accuracy against PyHessian's two calls on all its images, in CPU time."""
    name = objective.partition.names[0]
    products = pyhessian_products(objective, 0)
    args.per_class = None
    whole = load(args, name)
    product = pyhessian_product(whole, 0)
    v = lanczos_module.probe(whole.layout.size, seed=0, number=0)
    one, _ = cpu(lambda: product(v / v.norm()))
    taken, found = cpu(lambda: ls.spectrum(load(args, name), accuracy=args.accuracy))
    theirs = products * one
    print(
        f"\n{name}, {int(found.n_samples[0])} images, to {args.accuracy:g} with all that it takes: {taken:.1f} s of CPU"
    )
    for number in ("lambda_max", "trace"):
        value, error = (getattr(found, field)[0] for field in (number, f"{number}_error"))
        print(f"  {number} {value:.2f} +- {error:.2f} from {int(found.n_used[0])} draws")
    print(f"  PyHessian {products} products of {one:.1f} s = {theirs:.0f} s, {theirs / taken:.0f} x ours")


def pyhessian_products(objective: Any, part: int) -> int:
    """Count the products that PyHessian's eigenvalues() and trace() take with their defaults."""
    from pyhessian import hessian

    model, batches, _ = peers(objective, part)
    theirs = hessian(model, nn.CrossEntropyLoss(), dataloader=batches, cuda=False)
    multiply, count = theirs.dataloader_hv_product, 0

    def counted(v: Any) -> Any:
        nonlocal count
        count += 1
        return multiply(v)

    theirs.dataloader_hv_product = counted
    with torch.random.fork_rng():
        torch.random.manual_seed(0)
        theirs.eigenvalues()
        theirs.trace()
    return count


def rows(args: argparse.Namespace, objective: Any, operator: Any) -> None:
    """Time all eigenvalues of the Gauss-Newton matrices, as one call takes them by rows, against Lanczos; CPU time."""
    from curvlinops import GGNLinearOperator

    seconds: dict[str, list[float]] = {"landscape": [], "our product, Lanczos": [], "curvlinops, Lanczos": []}
    whole, tops = ls.ggn(objective), list[float]()
    mark = time.process_time()

    def compare(found: ls.results.Spectrum) -> None:
        nonlocal mark
        seconds["landscape"].append(time.process_time() - mark)
        part = len(seconds["landscape"]) - 1
        model, batches, parameters = peers(objective, part)
        theirs = GGNLinearOperator(model, nn.CrossEntropyLoss(), parameters, batches, check_deterministic=False)
        products = {"our product, Lanczos": ours_product(whole, part), "curvlinops, Lanczos": lambda v: theirs @ v}
        for label, product in products.items():
            taken, top = cpu(lambda product=product: lanczos_ours(product, objective, args.ggn_steps))
            seconds[label].append(taken)
            tops.append(abs(top - found.lambda_max[0]) / found.lambda_max[0])
        mark = time.process_time()

    ls.spectrum(load(args, args.classes), operator="ggn", sampling_errors=False, finished=compare)
    report(f"all eigenvalues of G by rows, CPU time; lambda_max is off by at most {max(tops):.1e}", seconds)
    ours, *others = (sum(values) for values in seconds.values())
    print(f"  all classes: {ours:.1f} s, and " + ", ".join(f"{t:.1f} s ({t / ours:.1f} x ours)" for t in others))


def errors(args: argparse.Namespace, objective: Any, operator: Any) -> None:
    """Time the default and the Gauss-Newton matrix with and without errors over samples, in turn, in CPU time."""
    for matrix in ("hessian", "ggn"):
        taken: dict[bool, list[float]] = {False: [], True: []}
        for _ in range(args.rounds):
            for given, values in taken.items():
                whole = load(args, args.classes)
                options: dict[str, Any] = {"operator": matrix, "sampling_errors": given}
                values.append(cpu(lambda whole=whole, options=options: ls.spectrum(whole, **options))[0])
        without, beside = (statistics.median(values) for values in taken.values())
        ratio = statistics.median(b / a for a, b in zip(*taken.values(), strict=True))
        print(f"\n{matrix}: {without:.1f} s without errors over samples, {beside:.1f} s with them, {ratio:.2f} times")


def saved(args: argparse.Namespace, alone: Any) -> None:
    """Print how far fewer steps and another probe move the density of the first class."""
    found = ls.spectrum(alone, steps=100, probes=2, trace="probes")
    alpha, beta = found.alpha[0], found.beta[0]

    def atoms(probe: int, steps: int) -> tuple[np.ndarray, np.ndarray]:
        cut = slice(probe, probe + 1), slice(None, steps)
        nodes, weights = ls.nodes_and_weights(alpha[cut], beta[cut], np.array([steps]))
        return np.ravel(nodes), np.ravel(weights)

    def distance(a: tuple[np.ndarray, np.ndarray], b: tuple[np.ndarray, np.ndarray]) -> float:
        return wasserstein_distance(a[0], b[0], a[1], b[1]) / (found.lambda_max[0] - found.lambda_min[0])

    fewer, other = (distance(atoms(0, 100), x) for x in (atoms(0, args.density_steps), atoms(1, 100)))
    print(
        f"  density of {found.parts[0]}, Wasserstein distance over its range: {args.density_steps} for 100 steps ",
        end="",
    )
    print(f"{fewer:.1e}, one probe for another {other:.1e}")


def memory(args: argparse.Namespace, objective: Any, operator: Any) -> None:
    """Compare peak memory of one class's spectrum, each tool in a process of its own."""
    print("\npeak resident memory, one class, 100 steps, above that of the loaded objective")
    found = {}
    for tool in ("landscape", "pyhessian"):
        command = [sys.executable, *sys.argv, "--alone", tool]
        found[tool] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        print(f"  {tool:<24}{found[tool]:9.0f} MiB   {found[tool] / found['landscape']:6.2f} x ours")


def measure_memory(args: argparse.Namespace) -> None:
    """Run one tool on the first class and print what its peak adds."""
    objective = load(args, args.classes.split(",")[0])
    _ = objective.evaluation
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far is that of reading the data: forget it (Linux)
    before = resident("VmRSS")
    if args.alone == "landscape":
        ls.spectrum(objective, steps=100, probes=1)
    else:
        lanczos_by_tensor(pyhessian_product(objective, 0), objective, 100)
    print(json.dumps(resident("VmHWM") - before))


def resident(which: str) -> float:
    """Return the process's resident memory now or at its peak, in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(which)).split()[1]) / 1024


if __name__ == "__main__":
    main()
