"""What one process of a run does; `results` is also what a process alone computes."""

import contextvars
import os
import signal
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import TypeVar
from unittest import mock

import hungry
import numpy as np
import torch

import landscape as ls
from landscape.analyses import convergence, eigenvectors
from landscape.analyses.between import Run
from landscape.analyses.convergence import Tuning
from landscape.autodiff import dealing, distributed, memory
from landscape.curvature import products
from landscape.errors import InputError
from landscape.objective import points
from landscape.objective.draws import draw_samples
from landscape.objective.objective import Objective
from landscape.objective.points import Point
from tests.cases import CASES
from tests.fitted import network

T = TypeVar("T")
ANALYSES = (ls.spectrum, ls.gradients, ls.features, ls.sharpness, ls.surface1d)  # imported before processes are forked
ONE = {"rare": [2]}  # one sample, which most processes have none of


def results(folder: Path, *, few: bool = False) -> None:
    """Compute all analyses of tiny networks, most of them in several ways or in one; each leaves a file."""

    def objective(name="mlp-tanh", partition="all", **options):
        found = CASES[name].objective(partition=partition, **options)
        with distributed.together():
            found.evaluate()
        return found

    short = {"steps": 5, "probes": 2, "backend": "reverse"}
    whole, classes = objective(), objective(partition="class")
    ls.spectrum(whole, **short, vectors=2, trace="probes", trace_tol=0.9, out=folder / "hessian.h5")
    ls.spectrum(objective(partition=ONE), **short, out=folder / "rare.h5")
    # private: rows are exchanged two at a time
    with mock.patch.object(distributed, "_AT_ONCE", 2 * whole.layout.size):
        ls.spectrum(whole, operator="ggn", method="rows", ggn_tol=0, out=folder / "rows.h5")
    divided(whole, folder)
    if not few:
        divided_otherwise(whole, folder)
    ls.features(classes, out=folder / "features.h5")
    ls.gradients(classes, sampling_errors=True, out=folder / "gradients.h5")
    ls.sharpness(classes, draws=2, ascent_steps=3, out=folder / "sharpness.h5")
    ls.surface2d(classes, n=3, out=folder / "plane.h5")
    ends = path(classes)
    ls.trajectory(classes, {"run": ends}, n=3, out=folder / "trajectory.h5")
    run = Run(name="run", points=ends, start=points.origin(classes))
    ls.distances(
        classes, [run], source="test", over="all", barrier_points=2, curvature=True, out=folder / "distances.h5"
    )
    after_training_on_parts(classes, folder)
    ls.sensitivity(classes, of="0", n=1, draws=1, out=folder / "sensitivity.h5")
    along_training(classes, folder)
    fewer_than_processes(objective(partition=ONE), folder)
    ls.surface1d(classes, ls.directions.random(classes, 1), n=5, out=folder / "surface.h5")
    ls.spectrum(classes, **short, vectors=2, overlap=True, out=folder / "classes.h5")
    fitted = network(sizes=(400, 40))
    with distributed.together():
        fitted.evaluate()
    ls.spectrum(fitted, accuracy=0.3, out=folder / "accuracy.h5")
    ls.spectrum(fitted, operator="ggn", samples=30, vectors=2, overlap=True, out=folder / "drawn.h5")
    if few:
        return
    ls.spectrum(hungry.objective(100, outputs=6, partition="all"), out=folder / "tails.h5")
    seen = CASES["mlp-tanh"].objective(partition="all")
    if distributed.is_main():
        assert seen.evaluation.loss > 0  # one process has looked at it, the others compute it later
    ls.spectrum(seen, **short, out=folder / "seen.h5")
    # All probes in lock-step, by the traced product.
    ls.spectrum(whole, steps=5, probes=2, cache_bytes=0, out=folder / "traced.h5")
    ls.spectrum(objective("mlp-relu"), **short, out=folder / "exact-trace.h5")
    ls.spectrum(objective("mlp-relu"), trace="sampled", sampling_errors=False, out=folder / "sampled-trace.h5")
    ls.spectrum(classes, operator="empirical-fisher", out=folder / "empirical.h5")
    ls.spectrum(ls.hessian(whole) - 0.5 * ls.ggn(whole), steps=5, probes=1, out=folder / "sum.h5")
    ls.gradients(classes, batches=3, samples_per_batch=6, out=folder / "batches.h5")
    uneven = 0 if is_last() else 2**30  # so that the product is kept in some processes only
    ls.spectrum(
        whole, steps=5, probes=2, cache_bytes=uneven, sampling_errors=False, trace="probes", out=folder / "uneven.h5"
    )
    scarce(folder)
    each = ls.features(fitted, out=folder / "features-errors.h5").n_features * fitted.dtype.itemsize
    ls.features(fitted, cache_bytes=300 * each, out=folder / "features-apart.h5")  # each process keeps its own 220
    few_drawn = draw_samples(fitted, 30)
    ls.surface1d(few_drawn, ls.directions.random(few_drawn, 1), n=3, out=folder / "drawn-surface.h5")
    ls.gradients(few_drawn, sampling_errors=True, out=folder / "drawn-gradients.h5")
    ls.features(few_drawn, out=folder / "drawn-features.h5")
    ls.sharpness(few_drawn, draws=1, ascent_steps=2, out=folder / "drawn-sharpness.h5")
    ls.gradients(fitted, sampling_errors=True, cache_bytes=0, out=folder / "gradients-in-blocks.h5")


def fewer_than_processes(one: Objective, folder: Path) -> None:
    """Compute what is divided sample by sample, with too few samples."""
    ls.gradients(one, sampling_errors=True, out=folder / "gradients-of-one.h5")
    ls.sharpness(one, draws=1, ascent_steps=1, out=folder / "sharpness-of-one.h5")
    ls.features(network(sizes=(2, 1)), out=folder / "features-of-three.h5")


def evaluated(objective: Objective) -> None:
    with distributed.together():
        objective.evaluate()


def begin_anew(work: Callable[..., T], *words: object, **options: object) -> T:
    """Call a function with the requested batch size, whatever has fitted before."""
    return contextvars.copy_context().run(work, *words, **options)


def scarce(folder: Path) -> None:
    """Compute what several processes share, with memory for three samples at a time in the last one."""
    analyses = {
        "hessian": lambda o, out: ls.spectrum(o, steps=3, probes=1, backend="reverse", out=out),
        "rows": lambda o, out: ls.spectrum(o, operator="ggn", ggn_tol=0, out=out),
        "gradients": lambda o, out: ls.gradients(o, sampling_errors=True, out=out),
        "features": lambda o, out: ls.features(o, out=out),
        "sharpness": lambda o, out: ls.sharpness(o, draws=1, ascent_steps=2, out=out),
    }

    most = 3 if is_last() and distributed.world() > 1 else 100
    for name, analysis in analyses.items():
        outputs = 6 if name == "hessian" else 2  # six: not all rows are measured
        objective = hungry.objective(most, outputs, "all")
        begin_anew(evaluated, objective)
        begin_anew(analysis, objective, folder / f"scarce-{name}.h5")
    surface = folder / "scarce-surface.h5"
    found = begin_anew(ls.surface1d, hungry.objective(most, 2, "all"), n=5, out=surface)
    distributed.barrier()  # the main process writes the file
    assert found.provenance["batch_size"] == ls.load(surface).provenance["batch_size"]
    real = products.by_reverse

    def of_few(problem, kind, batch, vs):
        if len(batch[1]) > most:
            raise torch.OutOfMemoryError
        return real(problem, kind, batch, vs)

    with mock.patch.object(products, "by_reverse", of_few):  # so that products alone take fewer samples
        begin_anew(analyses["hessian"], hungry.objective(100, 6, "all"), folder / "scarce-products.h5")


SPLIT = {"cache_bytes": 0, "backend": "reverse", "vectors": 2, "memory_bytes": 1}


def share_of_a_basis(objective: Objective) -> tuple[tuple[int, int], int]:
    """Return how many vectors the last process has memory for, in a density and for both ends; and bytes of one.

    The others have more than that.
    """
    few = 2 + 14 + -(-(2 * 24 + 2 + 6) // distributed.world()), 2 + 12 + -(-(72 + 24) // distributed.world())
    return few, objective.layout.size * 8 * (1 if is_last() else 100)


def divided(objective: Objective, folder: Path) -> None:
    """Compute a density and both ends with memory for the share of a basis that one of several processes has."""
    few, entry = share_of_a_basis(objective)
    with mock.patch.object(memory, "room", return_value=few[0] * entry):
        ls.spectrum(objective, steps=5, probes=2, trace="probes", trace_tol=0.9, **SPLIT, out=folder / "divided.h5")
    with mock.patch.object(memory, "room", return_value=few[1] * entry):
        ls.spectrum(objective, **SPLIT, trace="probes", out=folder / "divided-ends.h5")
    with mock.patch.object(memory, "room", return_value=(8 + 12 // distributed.world()) * entry):  # all too few
        ls.spectrum(objective, steps=8, probes=2, trace="probes", trace_tol=0.9, **SPLIT, out=folder / "not-kept.h5")
    n_vectors = 8 + 2 + -(-2 * objective.layout.size // distributed.world())
    with (
        mock.patch.object(memory, "room", return_value=n_vectors * entry),
        mock.patch.object(eigenvectors, "CACHE_BYTES", 0),
    ):
        ls.sensitivity(objective, n=2, draws=1, out=folder / "divided-eigen.h5")


def divided_otherwise(objective: Objective, folder: Path) -> None:
    """Compute several parts and sums of matrices in this way, and parts that only some processes have memory for."""
    few, entry = share_of_a_basis(objective)
    classes = CASES["mlp-tanh"].objective(partition="class")
    fits = 9 if is_last() and distributed.world() > 1 else 90  # vectors: only one of two processes can compute a part
    with mock.patch.object(memory, "room", return_value=fits * objective.layout.size * 8):
        for some, name in ((classes, "only-some"), (objective, "only-some-of-one")):
            options = {"steps": 5, "probes": 2, "trace": "probes", "trace_tol": 0.9, **SPLIT}
            assert ls.estimate(ls.spectrum, some, **options).seconds > 0
            assert ls.estimate(ls.spectrum, ls.hessian(some), steps=5, probes=2, memory_bytes=1).seconds > 0
            ls.spectrum(some, **options, out=folder / f"{name}.h5")
    with mock.patch.object(memory, "room", return_value=few[0] * entry):
        ls.spectrum(
            classes, steps=5, probes=2, trace="probes", trace_tol=0.9, **SPLIT, out=folder / "divided-classes.h5"
        )
    with mock.patch.object(memory, "room", return_value=few[1] * entry):
        two = (ls.curvature_operator(classes, k, backend="reverse", cache_bytes=0) for k in ("hessian", "ggn"))
        options = {"density": False, "vectors": 2, "memory_bytes": 1, "trace": "probes"}
        ls.spectrum(next(two) + 0.5 * next(two), **options, out=folder / "divided-sums.h5")


def along_training(objective: Objective, folder: Path) -> None:
    """Compute spectra at two checkpoints, and measure as a monitor does."""
    files = [folder / f"net-{epoch}.pt" for epoch in range(2)]
    if distributed.is_main():
        for epoch, file in enumerate(files):
            state = {name: value + 0.1 * epoch for name, value in objective.model.state_dict().items()}
            torch.save({"model": state, "epoch": epoch}, file)
    distributed.barrier()
    short = {"steps": 4, "probes": 1, "backend": "reverse", "sampling_errors": False}
    ls.series(ls.spectrum, objective, files, with_parts=["all"], **short, out=folder / "series.h5")
    monitor = ls.Monitor(objective, model=objective.model, every=2, what=["lambda_max"], out=folder / "monitor.h5")
    found = [monitor.step() for _ in range(2)]
    assert found[0] is None
    assert (found[1] is None) != distributed.is_main()
    distributed.barrier()


def after_training_on_parts(objective: Objective, folder: Path) -> None:
    """Compute the distances of points that are trained first; all processes end after that, and go on."""
    start = points.origin(objective)
    tuned = {part: Tuning(start=objective, part=part, epochs=2, lr=0.05) for part in objective.partition.names}
    run = Run(name="run", points={"start": (start, 0.0)}, start=start, tuned=tuned)
    given = {"source": "test", "over": "all", "barrier_points": 2, "out": folder / "tuned.h5"}
    try:
        ls.distances(objective, [run], **given, settled=mock.Mock(side_effect=InterruptedError))
    except InterruptedError:
        distributed.barrier()
    with mock.patch.object(convergence, "finetuned", side_effect=AssertionError):  # no part is trained on again
        ls.distances(objective, [run], **given)


def path(objective: Objective) -> dict[str, tuple[Point, float]]:
    """Three checkpoints that are not on one line."""
    here = points.origin(objective)
    steps = np.random.default_rng(0).normal(size=(3, len(here.theta)))
    return {
        f"epoch-{k}": (Point(here.theta + here.theta.new_tensor(step), here.buffers), float(k))
        for k, step in enumerate(steps)
    }


def disagree() -> list[str]:
    """Give the last process other data, then another option; return what each hears."""
    objective = CASES["mlp-tanh"].objective(seed=int(is_last()))
    heard = []
    for facts in (objective.source, {"steps": 7 + is_last()}):
        try:
            distributed.refuse_disagreement(facts)
        except InputError as error:
            heard.append(str(error))
    return heard


def is_last() -> bool:
    return distributed.rank() == distributed.world() - 1


def fail() -> list[str]:
    """Take a wrong step, or let the last process take another one; return what each hears."""
    heard = []
    for numbers in (torch.zeros(2, dtype=torch.int16), torch.zeros(2 + is_last())):
        try:
            with distributed.together():
                if numbers.dtype == torch.int16:  # for which gloo has no sum
                    distributed.all_reduce_sum(numbers)
                distributed.team().total(numbers)
        except Exception as error:  # whatever it is, the test shows it
            heard.append(f"{type(error).__name__}: {error}")
    return heard


def starve(folder: Path) -> list[str]:
    """Let memory run out in the last process, in an attempt within another; return what each hears.

    At last let it have too little for eigenvectors, and for parts.
    """
    heard = []
    for needed in (2, 0):  # samples of the outer attempt that leave memory to the inner one
        objective = CASES["mlp-tanh"].objective()

        def outer(o: Objective = objective, most: int = needed) -> int:
            taken = o.batch_size

            def inner() -> int:
                if is_last() and taken > most:
                    raise torch.OutOfMemoryError(f"none beside {taken} samples")
                return o.batch_size

            return memory.halving(inner)

        try:
            with distributed.together():
                heard.append(f"{contextvars.copy_context().run(memory.halving, outer)} samples")
        except Exception as error:  # whatever it is, the test shows it
            heard.append(f"{type(error).__name__}: {error}")
    with mock.patch.object(memory, "room", return_value=objective.layout.size * 8 * (12 if is_last() else 100)):
        try:
            ls.sensitivity(objective, n=2, draws=1, out=folder / "starved.h5")
        except Exception as error:  # whatever it is, the test shows it
            heard.append(f"{type(error).__name__}: {error}")
    with mock.patch.object(memory, "room", return_value=objective.layout.size * 8 * (9 if is_last() else 10)):
        try:  # parts that would be dealt
            ls.spectrum(objective, steps=30, probes=1, cache_bytes=0, out=folder / "starved-parts.h5")
        except Exception as error:  # whatever it is, the test shows it
            heard.append(f"{type(error).__name__}: {error}")
    return heard


def lose(folder: Path, ending: str) -> None:
    """Compute three parts; a process is slow, hangs or is killed in the second, or in the first dealt to it."""
    objective = CASES["mlp-tanh"].objective()
    how, _, where = ending.partition("-")
    dealt = where == "dealt"
    distributed.EFFICIENCY = 1e-3 if dealt else 10.0  # parts are dealt, or all are shared

    def told(done, total, text):
        lost = distributed.is_main() if where == "first" else is_last()
        if lost and text and (dealt or 1 < done < 1.5):
            if how == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep({"hung": 100, "slow": 0.2}[how])

    ls.spectrum(objective, steps=3, probes=1, backend="reverse", out=folder / f"{ending}.h5", progress=told)


def work(folder: Path, ending: str) -> None:
    """Do what a process does; what it says goes to a file of its own."""
    torch.set_num_threads(1)
    if ending in {"hung", "absent"}:
        distributed.TIMEOUT = timedelta(seconds=6)
    if ending == "hung-dealt":
        dealing.SILENCE = timedelta(seconds=3)
    said = []
    try:
        distributed.start()
        if ending in {"all", "few"}:
            results(folder, few=ending == "few")
        else:
            if ending == "killed":
                said += disagree() + fail()
                heard = starve(folder)  # in a file of its own, since the last process is killed
                (folder / f"starved-{distributed.rank()}").write_text("\n".join(heard))
                lose(folder, "slow")
            lose(folder, ending)
        said.append("done")
    except Exception as error:  # whatever it is, the test shows it
        said.append(f"{type(error).__name__}: {error}")
    finally:
        (folder / f"said-{distributed.rank()}").write_text("\n".join(said))
        distributed.stop()
