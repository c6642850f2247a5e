"""One part on one process and on two of one thread each: seconds of the same jobs, in turn, and their ratios.

    python benchmarks/processes.py [--model resnet20] [--samples 256] [--what product,ends,density,rows] [--rounds 3]

Both runs have loaded their network and data and wait while the other works, so that only one computes at a time. A job
is a whole analysis of one part: what it prepares is in its time, the import of PyTorch is not. Seconds are those of the
clock until the last process is done: they mean something only where as many cores are free as there are processes. The
ratio of CPU times, of the busiest of several processes by the one alone, says how evenly work is shared. Images and
weights are random, since time depends on neither.
"""

import argparse
import json
import multiprocessing
import os
import socket
import statistics
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import torch


def jobs(objective: Any, folder: Path, repeats: int) -> dict[str, Callable[[int], object]]:
    """Return the jobs by their names; each is told a number that is new, for its file."""
    import landscape as ls
    from landscape.autodiff import distributed

    made: list[Any] = []
    v = torch.ones(1, 1, objective.layout.size) / objective.layout.size**0.5

    def products(number: int) -> None:
        with distributed.together():
            if not made:
                made.append(ls.curvature_operator(objective).shared())
                made[0].matvec(v)
            for _ in range(repeats):
                made[0].matvec(v)

    def file(name: str, number: int) -> Path:
        return folder / f"{name}-{number}.h5"

    return {
        "product": products,
        "ends": lambda n: ls.spectrum(objective, out=file("ends", n)),
        "density": lambda n: ls.spectrum(objective, steps=20, probes=1, out=file("density", n)),
        "rows": lambda n: ls.spectrum(objective, operator="ggn", out=file("rows", n)),
        "sharpness": lambda n: ls.sharpness(objective, draws=4, out=file("sharpness", n)),
        "gradients": lambda n: ls.gradients(objective, out=file("gradients", n)),
        "features": lambda n: ls.features(objective, out=file("features", n)),
    }


def work(own: dict[str, str], words: Connection, args: argparse.Namespace, folder: Path) -> None:
    """Be one process: load, then do what one is told to until nothing more is said."""
    os.environ.update(own)
    torch.set_num_threads(1)
    import landscape as ls
    from landscape.autodiff import distributed
    from landscape.data import datasets
    from landscape.networks import models

    distributed.start()
    torch.manual_seed(0)
    model = models.build(args.model, 10, in_channels=3)
    images = torch.randn(args.samples, 3, args.side, args.side)
    samples = datasets.from_dataset((images, torch.from_numpy(np.arange(args.samples) % 10)))
    objective = ls.Objective.build(model, samples, device="cpu", batch_size=args.batch_size)
    _ = objective.evaluation
    known = jobs(objective, folder, args.repeats)
    words.send(None)
    while (told := heard(words)) is not None:
        name, number = told
        begun = time.process_time()
        known[name](number)
        words.send(time.process_time() - begun)
    distributed.stop()


def heard(words: Connection) -> Any:
    """Return what is said; None where nobody speaks any more."""
    try:
        return words.recv()
    except EOFError:
        return None


class Run:
    """Processes that do the same jobs together."""

    def __init__(self, world: int, args: argparse.Namespace, folder: Path) -> None:
        """Start them, and wait until all have loaded."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        shared = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        if world > 1:
            shared |= {"WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        context = multiprocessing.get_context("spawn")
        self.processes: list[BaseProcess] = []
        self.words: list[Connection] = []
        for rank in range(world):
            ours, theirs = context.Pipe()
            own = shared | ({"RANK": str(rank), "LOCAL_RANK": str(rank)} if world > 1 else {})
            process = context.Process(target=work, args=(own, theirs, args, folder), daemon=True)
            process.start()
            self.processes.append(process)
            self.words.append(ours)
        self._heard()

    def seconds(self, name: str, number: int) -> tuple[float, list[float]]:
        """Do a job; return the time until all are done, and the CPU time of each."""
        begun = time.perf_counter()
        for words in self.words:
            words.send((name, number))
        spent = self._heard()
        return time.perf_counter() - begun, spent

    def end(self) -> None:
        """Say that nothing more is to be done."""
        for words in self.words:
            words.send(None)
        for process in self.processes:
            process.join(60)

    def _heard(self) -> list[Any]:
        return [words.recv() for words in self.words]


def main() -> None:
    """Parse, measure in turn, print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet20")
    parser.add_argument("--samples", type=int, default=256, help="of the one part")
    parser.add_argument("--side", type=int, default=32, help="pixels of an image")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--what", default="product,ends,density,rows")
    parser.add_argument("--repeats", type=int, default=4, help="products of the job of that name")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", default="processes.json")
    args = parser.parse_args()
    found: dict[str, dict[str, list[float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        alone, together = (Run(world, args, Path(folder)) for world in (1, args.processes))
        for run in (alone, together):
            run.seconds("product", 0)  # what the first job of all prepares is no part of another
        print("loaded", flush=True)
        for name in args.what.split(","):
            one, several, spent = [], [], []  # seconds of the clock alone and together, share of the CPU time
            for number in range(args.rounds):
                ours, cpu = alone.seconds(name, number)
                theirs, cpus = together.seconds(name, args.rounds + number)
                one.append(ours)
                several.append(theirs)
                spent.append(max(cpus) / cpu[0])
                shown = f"{ours:8.2f} s ({cpu[0]:.2f} CPU){theirs:8.2f} s ({max(cpus):.2f} CPU)"
                print(f"{name:<12}{shown}{theirs / ours:8.2f} ({spent[-1]:.2f})", flush=True)
            found[name] = {"alone": one, "together": several, "of CPU time": spent}
        alone.end()
        together.end()
    print(f"\n{'job':<12}{'one':>9}{args.processes:>9}{'ratio':>8}   medians")
    for name, values in found.items():
        ratios = [b / a for a, b in zip(values["alone"], values["together"], strict=True)]
        one, several = (statistics.median(values[which]) for which in ("alone", "together"))
        print(f"{name:<12}{one:8.2f}s{several:8.2f}s{statistics.median(ratios):8.2f}")
    about = {name: value for name, value in vars(args).items() if name != "json"}
    Path(args.json).write_text(json.dumps({"torch": torch.__version__, **about, "seconds": found}, indent=2))


if __name__ == "__main__":
    main()
