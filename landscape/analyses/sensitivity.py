"""Which classes depend on which directions: the change of each part's loss and accuracy along eigenvectors.

With v_k a unit eigenvector of the Hessian of all samples (or of one part) and r the length of the step,

    change[k, s, p] = L_p(theta + s r v_k) - L_p(theta),   s = 1, -1

and the same for random directions of the same length, isotropic in the chosen parameters, as a control: a class depends
on a direction if its loss changes far more than along random ones. The mean over both signs is the effect of curvature,
half of their difference is the effect of the slope; the sign of an eigenvector is arbitrary.

Errors are over samples. A sample's losses at the end of the step and at the checkpoint are correlated, so the error is
that of the mean of their differences, which is far smaller than the errors of the two means would suggest.

Source: the sensitivity matrix of "Hessian Surgery" (arXiv 2605.07790), there for accuracies.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from landscape.analyses import directions, eigenvectors
from landscape.autodiff import costs
from landscape.callables import checked
from landscape.curvature.lanczos import probe
from landscape.errors import InputError, arg
from landscape.objective import jobs, pilot
from landscape.objective.evaluator import Evaluator
from landscape.objective.objective import Objective
from landscape.objective.provenance import fingerprint, provenance
from landscape.results import Sensitivity
from landscape.results.journal import Journal
from landscape.results.quadrature import mean_and_stderr

SIGNS = np.array([1, -1])


@dataclass(frozen=True, kw_only=True)
class Options:
    """The options that determine the numbers; see `sensitivity`."""

    of: str
    n: int
    rho: float
    draws: int
    seed: int


@checked
def sensitivity(
    objective: Objective,
    *,
    of: str = "all",
    n: int = 5,
    rho: float = 0.05,
    draws: int = 8,
    seed: int = 0,
    memory_bytes: int | None = None,
    out: str | Path | None = None,
    overwrite: bool = False,
    progress: jobs.Progress | None = None,
) -> Sensitivity:
    """Measure how the loss and the accuracy of each part change along the sharpest directions of a Hessian.

    Args:
        objective: model, loss and data in parts.
        of: part of the Hessian: a part of the objective, or "all", "head", "tail", "many", "medium" or "few" of all
            the data.
        n: number of eigenvectors, those of the largest eigenvalues.
        rho: Euclidean length of each step.
        draws: number of random directions for comparison.
        seed: of the Lanczos starting vector, which determines the eigenvectors' signs, and of the random directions.
        memory_bytes: bytes that this process may use in all, of the GPU's memory if it computes on one; None means
            four fifths of the free memory. If a Lanczos basis does not fit, processes divide it, or a restarted run
            needs fewer vectors.
        out: result file to write; finished work is kept beside it until it is complete, and a repeated call with the
            same options continues from it.
        overwrite: replace an existing result file.
        progress: called with (done, total, text).

    Returns:
        The changes of all parts along all directions. If a loss is not finite, its change is inf or nan.

    Raises:
        InputError: an option out of its range, no such part, a Hessian with fewer eigenvalues, or too little memory.
        NumericalError: the loss at the checkpoint is not finite, or it has no second derivative.
        StoreError: the result file cannot be written, or an unfinished run beside it had other options.
    """
    if n < 1 or draws < 1:
        raise InputError(f"{arg('n')} and {arg('draws')} must be at least 1, got {n} and {draws}")
    if not 0 < rho < np.inf:
        raise InputError(f"{arg('rho')} must be a number above 0, got {rho:g}")
    options = Options(of=of, n=n, rho=rho, draws=draws, seed=seed)
    costs.noted(lambda: eigenvectors.work(objective, [of], n, eigenvectors.STEPS, memory_bytes=memory_bytes))
    jobs.declare(lambda: _costs(objective, options), out)
    if out is None:
        return _run(objective, options, memory_bytes, None, progress)
    with jobs.open_journal(out, fingerprint(objective, vars(options)), overwrite=overwrite) as journal:
        result = _run(objective, options, memory_bytes, journal, progress)
        journal.finish(result)
    return result


def _run(
    objective: Objective,
    options: Options,
    memory_bytes: int | None,
    journal: Journal | None,
    progress: jobs.Progress | None,
) -> Sensitivity:
    here = objective.evaluation
    vectors, values, residuals = eigenvectors.eigenpairs(
        objective, options.of, options.n, seed=options.seed, memory_bytes=memory_bytes
    )
    evaluator = Evaluator(objective, batch_norm="keep")
    centre = evaluator.each(evaluator.centre)
    names = [f"eigenvector {k + 1}" for k in range(options.n)]
    names += [f"random {k + 1} (seed {options.seed})" for k in range(options.draws)]

    def compute(unit: str, report: Callable[[float], None]) -> Sensitivity:
        k = names.index(unit)
        drawn = k >= options.n
        direction = _random(objective, k - options.n, options.seed) if drawn else vectors[k]
        along = directions.of_vectors(objective, direction[None], [unit])
        differences = []
        for i, sign in enumerate(SIGNS):
            found = evaluator.each(along.at(sign * options.rho), partial(_half, report, i))
            differences.append(_less(found, centre))
        losses, hits = zip(*differences, strict=True)
        return Sensitivity(
            parts=objective.partition.names,
            n_samples=objective.population,
            train_counts=objective.trained,
            **here.fields(),
            directions=(unit,),
            control=np.array([drawn]),
            eigenvalue=np.array([np.nan if drawn else values[k]]),
            eigenvalue_residual=np.array([np.nan if drawn else residuals[k]]),
            sign=SIGNS,
            **_changes("loss_change", losses, objective),
            **({} if here.accuracy is None else _changes("accuracy_change", hits, objective)),
            rho=options.rho,
            of=options.of,
            provenance=provenance(objective, vars(options)),
        )

    found = jobs.run(names, compute, journal, progress)
    objective.verify()
    return found


def _costs(objective: Objective, options: Options) -> costs.Known:
    """Return the cost of the steps; the eigenvectors declare their own cost."""
    ends = pilot.at_points(objective, "points at the ends of steps", 1 + len(SIGNS) * (options.n + options.draws))
    return costs.Known(
        works=(pilot.evaluation(objective), ends),
        keeps=8 * objective.layout.size * (options.n + 4),
        disk=2**14 + 2 * 8 * 12 * len(objective.partition) * (options.n + options.draws),
    )


def _random(objective: Objective, number: int, seed: int) -> Tensor:
    z = probe(objective.layout.size, seed=seed, number=number, distribution="gaussian", stream="direction").double()
    unit: Tensor = z / z.norm()
    return unit


def _half(report: Callable[[float], None], sign: int, share: float) -> None:
    report((sign + share) / len(SIGNS))


def _less(end: tuple[np.ndarray, np.ndarray | None], start: tuple[np.ndarray, np.ndarray | None]) -> tuple[Any, Any]:
    """Return the differences of losses, and of correct predictions, sample by sample."""
    hits = None if end[1] is None or start[1] is None else end[1] - start[1]
    with np.errstate(invalid="ignore"):  # of infinite losses
        return end[0] - start[0], hits


def _changes(name: str, of_signs: tuple[np.ndarray, ...], objective: Objective) -> dict[str, np.ndarray]:
    """Return the mean differences of each part, for each sign and for both, with their standard errors."""
    rows = np.stack([*of_signs, np.mean(of_signs, axis=0)])  # (3, N)
    of_parts = np.split(rows, np.cumsum(objective.counts)[:-1], axis=1)
    with np.errstate(invalid="ignore"):  # the mean of infinite losses is infinite, its error nan
        found = np.array([
            [mean_and_stderr(row) for row in objective.as_drawn(p, own)] for p, own in enumerate(of_parts)
        ])  # (P, 3, 2)
    return {
        name: found[None, :, :-1, 0].swapaxes(1, 2),
        f"{name}_stderr": found[None, :, :-1, 1].swapaxes(1, 2),
        f"mean_{name}": found[None, :, -1, 0],
        f"mean_{name}_stderr": found[None, :, -1, 1],
    }
