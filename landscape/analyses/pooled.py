"""Inner products of the rows of all parts, which replace another pass over the data for later questions.

When all parts are done, the longest rows of each part's Gauss-Newton or Fisher matrix (curvature/rows.py) are computed
once more: as many as have 99 % of every part's trace or, if these are too many, as few as have 80 %. results/pool.py
computes what follows from their products.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch

from landscape.analyses import row_numbers
from landscape.analyses import samples as of_samples
from landscape.curvature import inner_products, rows, rows_apart
from landscape.curvature.kinds import Factors
from landscape.curvature.outputs import Keep
from landscape.curvature.rows import Lengths
from landscape.objective import jobs
from landscape.objective.objective import Objective
from landscape.results import RowProducts, Spectrum
from landscape.results.journal import Journal

log = logging.getLogger(__name__)

LEFT_OUT = (0.01, 0.02, 0.05, 0.1, 0.2)
"""Fractions of each part's trace that may be left out; the first that fits is used."""
MOST_ROWS = 768
"""The largest number of rows of all parts together; their products need 4.5 MiB in the file."""


def to_keep(objective: Objective, cache_bytes: int) -> Keep:
    """Return which rows of each part are worth being kept until all parts are done.

    Args:
        objective: model, loss and data in parts.
        cache_bytes: memory for the rows of all parts.

    Returns:
        The choice, by their lengths.
    """
    return Keep(tol=LEFT_OUT[0], most=_fitting(objective, cache_bytes, stored=True) // len(objective.members))


def row_products(
    objective: Objective,
    spectrum: Spectrum,
    factors: Factors,
    known: Mapping[int, Lengths],
    measure: Callable[[Objective, int], Lengths],
    *,
    cache_bytes: int,
    journal: Journal | None = None,
    progress: jobs.Progress | None = None,
) -> Spectrum:
    """Compute the inner products of the longest rows of all parts.

    Args:
        objective: has the samples of the spectrum; if these are weighted draws, the objective of the draws.
        spectrum: with the fields of single samples.
        factors: of its matrix.
        known: the norms of the rows of parts, by the positions of the parts, as far as they are known.
        measure: computes them for a part, in the way of the others: also the same rows are then kept beside them, so
            that a run that goes on after an interruption gives the same numbers.
        cache_bytes: memory for the rows.
        journal: keeps what is finished; see `jobs.run`.
        progress: called with (done, total, text).

    Returns:
        The spectrum with `gram` and the fields that belong to it; unchanged if there are too many rows.
    """
    parts = spectrum.parts

    def compute(unit: str, report: object) -> RowProducts:
        shared = objective.shared()
        here = torch.tensor([float(p in known) for p in range(len(parts))])
        by_all = shared.team.total(here) == shared.team.size  # parts may have been dealt
        lengths = [known[p] if by_all[p] else measure(shared, p) for p in range(len(parts))]
        stored = _fitting(shared, cache_bytes, stored=True)
        most = _fitting(shared, cache_bytes)
        if spectrum.eigenvalues is None:  # a Hessian, which itself needs about ten products: these rows add about two
            most = min(stored, sum(max(of_samples.DIRECTION_ROWS, len(own.weights)) for own in lengths))
        tol = _share(lengths, most)
        if tol is None:
            log.info("products of rows are left out: there are too many that hold %.0f %%", 100 * (1 - LEFT_OUT[-1]))
            nothing, none = np.empty(0), np.empty(0, dtype=np.int64)
            return RowProducts(parts=parts, gram=np.empty((0, 0)), gram_part=none, gram_sample=none, gram_sign=nothing)
        log.info("rows of all parts that hold all but %.3g of each one's trace are kept", tol)
        found: Sequence[rows.Rows]
        if sum(len(own.longest(tol)[0]) for own in lengths) <= stored:
            found = kept = [rows.rows(shared, factors, p, own, tol) for p, own in enumerate(lengths)]
            vectors = kept[0].vectors if len(kept) == 1 else torch.cat([of.vectors for of in kept])
            products = inner_products.products(vectors, vectors, shared.team)
        else:
            found = apart = [
                rows_apart.apart(shared, factors, p, own, tol, cache_bytes) for p, own in enumerate(lengths)
            ]
            products = rows_apart.products_of(apart, cache_bytes)
        part = np.repeat(np.arange(len(parts)), [len(of.sample) for of in found])
        sample = np.concatenate([of.sample for of in found])
        roots = np.ones(len(part))
        if objective.draws is not None:  # the loss of a draw has its weight in it
            members = np.concatenate([objective.members[p][of.sample] for p, of in enumerate(found)])
            roots = np.sqrt(objective.draws.factors[members])
        return RowProducts(
            parts=parts,
            gram=products / np.outer(roots, roots),
            gram_part=part,
            gram_sample=sample,
            gram_sign=np.concatenate([of.sign for of in found]),
        )

    found = jobs.run(["products of the rows of all parts"], compute, journal, progress, costs=[1.0])
    if not len(found.gram_part):
        return spectrum
    return replace(
        spectrum,
        gram=found.gram,
        gram_part=found.gram_part,
        gram_sample=found.gram_sample,
        gram_sign=found.gram_sign,
    )


def _fitting(objective: Objective, cache_bytes: int, *, stored: bool = False) -> int:
    """Return how many rows of all parts together fit, at most `MOST_ROWS`; see `row_numbers.most_rows`."""
    return min(MOST_ROWS, row_numbers.most_rows(objective, cache_bytes, stored=stored))


def _share(lengths: list[Lengths], most: int) -> float | None:
    """Return the smallest fraction of the traces that must be left out for the rows to fit; None if they never fit."""
    for tol in LEFT_OUT:
        if sum(len(own.longest(tol)[0]) for own in lengths) <= most:
            return tol
    return None
