"""A part's curvature from single samples: all eigenvalues from rows, and how much another draw would change them.

The Gauss-Newton and Fisher matrices have few rows that matter (curvature/rows.py); if these fit into memory, they
replace Lanczos. The Hessian has no rows, but its Gauss-Newton part does: it gives the traces of single samples, the
directions for cross-fitting, and nearly all of lambda_max. Curvature along a vector is that of the Hessian itself.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import torch
from torch import Tensor

from landscape.analyses.row_numbers import are_worth_it, most_rows
from landscape.autodiff import trees
from landscape.autodiff.differentiable import differentiable_attention
from landscape.autodiff.wide import wide
from landscape.curvature import ranges, rows, rows_apart, tails
from landscape.curvature.forms import forms_along
from landscape.curvature.kinds import KINDS, Factors, Kind
from landscape.curvature.lanczos import probe
from landscape.curvature.operators import curvature_operator
from landscape.curvature.outputs import Keep, largest
from landscape.curvature.rows import Found, Lengths, Rows, Stored
from landscape.errors import InputError
from landscape.objective.objective import Objective
from landscape.results import inference
from landscape.results.gram import Eigen, Gram

log = logging.getLogger(__name__)

Method: TypeAlias = Literal["auto", "rows", "lanczos"]
METHODS: tuple[Method, ...] = get_args(Method)
LENGTHS = 0.7
"""Fraction of the time of many rows that their lengths take, about."""
GGN_TOL = 1e-4
LEFT_OUT = 1e-3
"""The largest fraction of lambda_max that rows which give eigenvalues leave out."""
DIRECTION_TOLS = (1e-3, 1e-2, 0.1)
"""Fractions of the trace that the rows for a Hessian's directions may leave out; the first cheap one is used."""
DIRECTION_ROWS, DIRECTION_ROWS_EACH = 64, 1.0
"""Rows are cheap if there are at most this many, or this many per sample; a row per sample costs about a product."""
FEW_OUTPUTS = 4
"""With at most this many outputs, all rows are measured: their number is that of the outputs, or one less."""
NEAR = 0.1
"""If rows miss at most this fraction of lambda_max along its vector, they tell the curvature of most samples."""
SLOPES = 0.05, 0.01
"""Fraction of the slopes of the loss that samples have whose curvature along a vector is that of their rows: if these
are `NEAR`, and otherwise."""
MISSING = 0.02, 0.01
"""Fraction of lambda_max that may be missing then, and is divided among these samples: in the same two cases."""
BEYOND = 4
"""Random vectors for the traces of samples' H - G."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Kept:
    """The stored rows of one part, and what follows from them."""

    rows: Rows
    gram: Gram
    eigen: Eigen

    def direction(self, combination: np.ndarray) -> Tensor:
        """Return a linear combination of the rows, (D,)."""
        return self.rows.combined(combination)


@dataclass(frozen=True, kw_only=True, eq=False)
class Samples:
    """The numbers of single samples of one part."""

    objective: Objective
    part: int
    kind: Kind  # of matrix; the rows are those of its factors
    lengths: Lengths
    kept: Kept | None  # None where there are too many rows
    complete: bool  # the rows are those of the matrix, all were measured, and those kept give its eigenvalues
    needed: int = 0  # rows, where these are too many

    @property
    def stored(self) -> Stored | None:
        """The rows if all of their columns are in memory."""
        return self.kept.rows if self.kept is not None and isinstance(self.kept.rows, Stored) else None

    @property
    def members(self) -> np.ndarray:
        """Positions of the samples in the objective's data, (n,)."""
        return self.objective.members[self.part]

    @property
    def index(self) -> np.ndarray:
        """Positions of the samples in the data from which they come or were drawn, (n,)."""
        draws = self.objective.draws
        return self.members if draws is None else draws.index[self.members]

    @property
    def labels(self) -> np.ndarray:
        """Classes of the samples, (n,)."""
        of_part: np.ndarray = self.objective.samples.labels[self.members]
        return of_part

    @property
    def factors(self) -> np.ndarray:
        """The factor of each sample's loss, (n,): 1, or the inverse of the expected number of times it is drawn."""
        draws = self.objective.draws
        return np.ones(len(self.members)) if draws is None else draws.factors[self.members]

    @property
    def weighted(self) -> bool:
        """Whether the samples are draws with different weights."""
        return bool(np.ptp(self.factors) > 0)

    @property
    def uncertainty(self) -> float:
        """Mean tr M of these samples; for weighted draws, which need it of all samples of the part, of all of them."""
        draws = self.objective.draws
        known = np.nan if draws is None else float(draws.uncertainty[self.part])
        return known if np.isfinite(known) else float(self.lengths.weights @ self.lengths.uncertainty)

    @property
    def chances(self) -> np.ndarray:
        """The probability with which each sample was drawn, (n,); nan where the part has all its samples."""
        draws = self.objective.draws
        return np.full(len(self.members), np.nan) if draws is None else draws.chances[self.members]

    def stderr(self, values: np.ndarray) -> float:
        """Return the standard error of a weighted sum of values, (n,); nan for one sample."""
        return inference.stderr(inference.draws(values, self.lengths.weights, self.chances))

    @property
    def guess(self) -> Tensor | None:
        """An estimate of the eigenvector of lambda_max from the rows, (D,); None without rows."""
        if self.kept is None or not len(self.kept.eigen.values):
            return None
        return self.kept.direction(self.kept.eigen.combinations[:, 0])

    @property
    def relative_error(self) -> float | None:
        """The standard error of lambda_max over samples as a fraction of it, of the rows; None without rows."""
        if self.kept is None:
            return None
        weights = self.lengths.weights
        value, combination = self.kept.gram.top(weights)
        return self.stderr(self.kept.gram.curvatures(combination)) / value if value > 0 else None

    @property
    def trace(self) -> tuple[float, float]:
        """The trace of the rows' matrix, including the weight decay; and its standard error if rows were estimated."""
        decay = self.objective.weight_decay if self.kind.decays else 0.0
        value = float(self.lengths.weights @ self.lengths.traces) + decay * self.objective.layout.size
        return value, self.lengths.trace_stderr


def refusal(objective: Objective, kind: Kind) -> str | None:
    """Say why a matrix cannot be computed from single samples.

    Args:
        objective: model, loss and data in parts.
        kind: of matrix.

    Returns:
        The reason, or None.
    """
    if kind.factors is None:
        return "the traces of its samples are not those of rows"
    return rows.refusal(objective, kind.factors)


def samples(
    objective: Objective,
    kind: Kind,
    part: int,
    *,
    tol: float,
    left_out: float = LEFT_OUT,
    cache_bytes: int,
    seed: int = 0,
    trace_tol: float | None = 0.0,
    later: Keep | None = None,
    complete: bool = True,
    products: int | None = 0,
    report: rows.Report | None = None,
) -> Samples:
    """Compute the norms of the rows of a part, and the longest rows if they fit into memory.

    Args:
        objective: for which `refusal` returns None.
        kind: of matrix, one with factors; the rows of the Hessian are those of its Gauss-Newton part.
        part: position of the part.
        tol: fraction of the trace that the rows may leave out. For the Hessian's rows, which only give directions,
            `DIRECTION_TOLS` applies instead.
        left_out: if the rows leave out more than this fraction of lambda_max, rows are added.
        cache_bytes: memory for the rows.
        seed: of random signs.
        trace_tol: the Hessian's longest rows are measured, and the others estimated (curvature/tails.py), if the
            standard error of the trace is then at most this fraction of it; None for no limit, 0 measures all rows.
            For other matrices this applies if `complete` is false.
        later: the longest rows to keep beside their lengths for a later call of `rows.rows`; None for none.
        complete: measure all rows of a matrix that has rows, for its eigenvalues; otherwise they only give directions.
        products: that would give the eigenvalues in place of rows (`row_numbers.are_worth_it`); None to take all rows
            that fit.
        report: called with the fraction that is done, if all rows of a matrix that has rows are measured.

    Returns:
        The norms, and the rows if they fit.

    Raises:
        InputError: the matrix has no factors.
        NumericalError: gradients of the samples are too small or too large.
    """
    if kind.factors is None:
        raise InputError(f"the matrix {kind.name} has no rows")
    numbers = [most_rows(objective, cache_bytes, stored=True), most_rows(objective, cache_bytes)]
    stored, most = (int(n) for n in objective.team.least(np.array(numbers)))
    most = most if complete and kind.has_rows else stored
    cheap = _cheap(objective, part)
    complete = complete and kind.has_rows
    if complete:
        of_lengths = None if report is None else lambda done: report(LENGTHS * done)
        known = rows.lengths(objective, kind.factors, part, of_lengths, keep=Keep(tol=tol, most=stored // 2))
    else:
        keep = Keep(tol=DIRECTION_TOLS[0], most=min(cheap, stored // 2))
        if len(objective.members[part]) * objective.outputs.size <= keep.most:
            keep = replace(keep, tol=0.0)
        known = _lengths_for_directions(objective, kind.factors, part, keep, seed, trace_tol)
        tol = _tol_for_directions(objective, known, min(cheap, most))
    _refuse_vanished(objective, kind, part, known)
    kept, needed = None, 0
    for _ in range(2):
        n_rows, name = len(known.longest(tol)[0]), objective.partition.names[part]
        fit = n_rows <= most
        worth = fit and (not complete or are_worth_it(objective, len(known.weights), n_rows, products, cache_bytes))
        if not objective.team.all(worth):
            limit = f"longer work than {products} products" if fit else f"more than the {most} that fit into memory"
            log.info("%s: %d rows hold all but %.3g of the trace, %s", name, n_rows, tol, limit)
            kept, needed = None, n_rows
            break
        found: Rows
        if n_rows <= stored:
            known = rows.trimmed(known, tol)
            found = rows.rows(objective, kind.factors, part, known, tol)
        else:
            found = rows_apart.apart(objective, kind.factors, part, known, tol, cache_bytes)
        kept = _kept(found, known)
        top, left = np.abs(kept.eigen.values).max(initial=0), found.tau_plus + found.tau_minus
        top, left = objective.team.agreed(np.array([top, left])).tolist()  # of which the last digits may differ
        if left <= left_out * top or tol == 0 or not complete:
            break
        tol *= 0.5 * left_out * top / left
    given: dict[str, Any] = {"lengths": known, "kept": kept, "complete": complete, "needed": needed}
    made = Samples(objective=objective, part=part, kind=kind, **given)
    return with_rows_for_later(made, later)


def _refuse_vanished(objective: Objective, kind: Kind, part: int, known: Lengths) -> None:
    """Refuse rows whose squared lengths leave the range of numbers."""
    total = float(known.weights @ np.abs(known.squares).sum(axis=1)) + float(np.abs(known.tail).sum())
    what = f"{kind.name} of {objective.partition.names[part]}"
    ranges.refuse_squares(total, objective.dtype, objective.device, what)
    if total == 0 and objective.dtype != torch.float64:  # a product that is zero too is compared with float64
        z = probe(objective.layout.size, seed=0, number=0, distribution="gaussian", stream="vanished")
        operator = curvature_operator(objective, kind, backend="reverse").restrict([part])
        operator.matvec(z.to(objective.device, objective.dtype)[None, None])


def with_directions(found: Samples, cache_bytes: int) -> Samples:
    """Return the same with the longest rows, for directions, where there are too many for eigenvalues.

    Args:
        found: of a matrix with factors.
        cache_bytes: memory for the rows.

    Returns:
        The same if it has rows, or if too many are needed for directions, too.
    """
    objective, factors, known = found.objective, found.kind.factors, found.lengths
    if found.kept is not None or factors is None:
        return found
    (most,) = objective.team.least(np.array([most_rows(objective, cache_bytes, stored=True)])).astype(int).tolist()
    tol = _tol_for_directions(objective, known, min(_cheap(objective, found.part), most))
    if len(known.longest(tol)[0]) > most:
        return found
    kept = _kept(rows.rows(objective, factors, found.part, known, tol), known)
    return replace(found, kept=kept, complete=False)


def _cheap(objective: Objective, part: int) -> int:
    """Return how many rows of a part are cheap enough to be only directions."""
    return int(max(DIRECTION_ROWS, DIRECTION_ROWS_EACH * len(objective.members[part])))


def _tol_for_directions(objective: Objective, known: Lengths, fit: int) -> float:
    """Return the fraction of the trace that rows for directions leave out, so that there are at most `fit`, if any."""
    tol = next((t for t in DIRECTION_TOLS if len(known.longest(t)[0]) <= fit), DIRECTION_TOLS[-1])
    return float(objective.team.agreed(np.array([tol]))[0])


def _kept(found: Rows, known: Lengths) -> Kept:
    gram = found.gram
    return Kept(rows=found, gram=gram, eigen=gram.eigen(known.weights))


def with_rows_for_later(found: Samples, later: Keep | None) -> Samples:
    """Return the same, with the longest rows beside their lengths that `later` asks for, and no others."""
    stored, known = found.stored, found.lengths
    spare = None if stored is None or later is None else _longest(known, stored, later)
    return replace(found, lengths=replace(known, kept=spare))


def _longest(known: Lengths, found: Stored, keep: Keep) -> Found:
    """Return copies of the longest of some rows: those that `keep` asks for, by their lengths."""
    most = min(keep.most, len(known.longest(keep.tol)[0]))
    sizes = np.abs(known.squares[found.sample, found.row])
    chosen = np.sort(np.argsort(-sizes, kind="stable")[:most])
    vectors = found.vectors[torch.from_numpy(chosen).to(found.vectors.device)]
    return Found(vectors=vectors, sample=found.sample[chosen], row=found.row[chosen])


def _lengths_for_directions(
    objective: Objective, factors: Factors, part: int, keep: Keep, seed: int, trace_tol: float | None
) -> Lengths:
    """Return lengths of the rows of a matrix for which they are only directions, and parts of the trace."""
    if trace_tol != 0 and objective.outputs.size > FEW_OUTPUTS and factors.middle is not None:
        known = tails.lengths(objective, factors, part, keep, seed=seed)
        if objective.team.all(known.exact_to(trace_tol)):
            return known
        log.info("all rows are measured, because their estimate has an error above %g of the trace", trace_tol)
    return rows.lengths(objective, factors, part, keep=keep)


def along_rows(found: Samples, kept: Kept) -> tuple[np.ndarray, np.ndarray]:
    """Return each sample's curvature along the sharpest direction of all samples, and along that of the other folds.

    Args:
        found: of the part.
        kept: its rows.

    Returns:
        (n,) and (n,); the second is nan if there is one sample, or if the samples are weighted draws: without those of
        a fold that are certain to be drawn, the sharpest direction is another one.
    """
    weights = found.lengths.weights
    curvature = kept.gram.curvatures(kept.gram.top(weights)[1])
    return curvature, np.full(len(weights), np.nan) if found.weighted else kept.gram.crossfitted(weights)


def along_vector(
    found: Samples, top: Tensor, value: float, *, folds: bool = True, in_all: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Return the same as `along_rows`, for a matrix without rows or with too many.

    The Hessian of a sample is J^T M J + sum_c (dl / dz_c) d^2 z_c. Where a class is fitted, nearly all of these slopes
    of the loss are in some of its samples. For the others, with `SLOPES` of all slopes, the first term is taken from
    the rows; what they then miss of the known sum is divided among them in proportion to their slopes. If that is more
    than `MISSING` of it, they are computed too. Along the directions of folds the second term is always computed for
    these few samples: along the top one it is larger, because that one was chosen by it.

    Args:
        found: of the part.
        top: unit vector of its lambda_max or of another eigenvalue, (D,).
        value: the eigenvalue.
        folds: also compute the curvature along the sharpest directions of other folds.
        in_all: number of samples of all parts for which this is computed; None means those of the objective.

    Returns:
        (n,) and (n,); the directions of folds come from the Gauss-Newton part; without its rows, for weighted draws as
        in `along_rows`, and without `folds`, the second is nan.
    """
    weights, kept = found.lengths.weights, found.kept
    every, value = np.ones(len(weights), dtype=bool), value - (found.objective.weight_decay if found.kind.decays else 0)
    folds = folds and kept is not None and not found.weighted
    if kept is None or found.kind.has_rows:
        return _along(found, every, top=top, folds=folds, in_all=in_all)
    team = found.objective.team
    slopes = team.agreed(weights * _slopes(found))  # which decide on the samples that all pass over
    curvature = team.agreed(kept.gram.along(kept.rows.along(top)))
    crossfit = kept.gram.crossfitted(weights) if folds else np.full(len(weights), np.nan)
    far = not abs(value - float(weights @ curvature)) <= NEAR * abs(value)
    some = np.zeros(len(weights), dtype=bool)
    some[largest(slopes[:, None], SLOPES[far])[0]] = True

    def compute(some: np.ndarray) -> None:
        computed = _along(found, some, top=top, folds=folds, in_all=in_all)
        curvature[some], crossfit[some] = (values[some] for values in computed)

    compute(some)
    missing = value - float(weights @ curvature)
    if team.all(bool(abs(missing) <= MISSING[far] * abs(value) and slopes[~some].sum() > 0)):
        curvature[~some] += missing * (slopes / weights)[~some] / slopes[~some].sum()
    elif not some.all():
        compute(~some)
    return curvature, crossfit


def _along(
    found: Samples, some: np.ndarray, *, top: Tensor, folds: bool, in_all: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Return curvatures of some samples, (n,), along the top direction and, with `folds`, those of the other folds."""
    weights, kept = found.lengths.weights, found.kept
    owners, pieces = [some], [(found.members[some], top)]
    if folds and kept is not None:
        for members, combination in kept.gram.folds(weights):
            own = np.zeros(len(weights), dtype=bool)
            own[members] = some[members]
            owners.append(own)
            pieces.append((found.members[own], kept.direction(combination)))
    curvature, crossfit = (np.full(len(weights), np.nan) for _ in range(2))
    computed = _forms(found, found.kind, pieces, in_all)
    for into, own, values in zip([curvature, *[crossfit] * len(pieces[1:])], owners, computed, strict=True):
        into[own] = values
    return curvature, crossfit


def _forms(
    found: Samples, kind: Kind, pieces: Sequence[tuple[np.ndarray, Tensor]], in_all: int | None = None
) -> list[np.ndarray]:
    """Return quadratic forms as `forms_along`, where the other parts are expected to need as many of each sample."""
    samples = sum(map(len, found.objective.members)) if in_all is None else in_all
    n = sum(len(index) for index, _ in pieces)
    return forms_along(found.objective, kind, pieces, in_all=-(-n * samples // len(found.members)))


def beyond_traces(found: Samples, seed: int) -> np.ndarray:
    """Estimate the trace of each sample's H - G by z^T (H_i - G_i) z, with z of random signs.

    H_i - G_i is a sum over the logits, each weighted by the slope of the loss in it. Where few samples have nearly all
    slopes, each of these takes as many z, at most `BEYOND`, as cost one pass over all samples; the others have 0.

    For those samples the estimate has no bias, and the variance 2 sum (H_i - G_i)_ab^2 over all a and b that differ,
    divided by the number of z. The spread over samples contains it: an error of the mean is on average too large, not
    too small.

    Args:
        found: of the part, for the Hessian.
        seed: of the random signs.

    Returns:
        (n,), weighted as the losses of the samples are.
    """
    objective, values = found.objective, np.zeros(len(found.members))
    slopes = objective.team.agreed(found.lengths.weights * _slopes(found))
    some = largest(slopes[:, None], SLOPES[1])[0]
    times = min(BEYOND, len(values) // max(1, len(some)))
    size = objective.layout.size
    z = [probe(size, seed=seed, number=k, stream="beyond").to(torch.int8) for k in range(BEYOND)]
    for k in range(min(BEYOND, len(some))):  # not all samples have the same z
        own = some[k::BEYOND]
        pieces = [(found.members[own], z[(k + r) % BEYOND]) for r in range(times)]
        values[own] = np.mean(_forms(found, KINDS["residual"], pieces), axis=0)
    return values


def _slopes(found: Samples) -> np.ndarray:
    """Return the norm of the gradient of each sample's loss in its outputs, (n,)."""
    objective, known = found.objective, found.lengths
    z = known.logits.to(objective.device, objective.dtype).requires_grad_()
    targets = trees.to(known.targets, objective.device, objective.dtype)
    with differentiable_attention():
        (slopes,) = torch.autograd.grad(objective.values(z, targets).sum(), z)
    norms: np.ndarray = torch.linalg.vector_norm(wide(slopes).reshape(len(z), -1), dim=1).cpu().numpy()
    return norms
