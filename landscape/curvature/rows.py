"""Rows of the Gauss-Newton and Fisher matrices: all their eigenvalues above a bound, from gradients of single samples.

Let M_i be the matrix between the Jacobians of sample i (the Hessian of its loss in the logits, or diag(p) - p p^T),
with eigenvalues mu_ik and unit eigenvectors u_ik. Then with weights w_i (1/n where all samples of a part count alike)

    G = sum_i w_i J_i^T M_i J_i = sum_ik sign(mu_ik) w_i a_ik a_ik^T,      a_ik = sqrt|mu_ik| J_i^T u_ik,

and the nonzero eigenvalues of G are those of the small matrix K of inner products of the rows sqrt(w_i) a_ik. Nearly
all rows are close to zero. The lengths of *all* rows are computed (their squares give the exact trace of each sample),
and the longest are kept until the squared lengths of the others sum to at most a given fraction of the trace. The
omitted part is positive semidefinite (minus another such matrix if the loss is not convex in the logits). By Weyl's
inequality, for every j,

    lambda_j(kept) - tau_minus <= lambda_j(G) <= lambda_j(kept) + tau_plus

with tau the traces of the omitted part, in exact arithmetic. Rounding adds up to some hundred units of rounding of |G|,
of which analyses/sample_fields.py knows the number. The same K and lengths determine every statistic over samples, see
results/gram.py. Sources: Horn and Johnson 2013, theorem 4.3.1 (Weyl); Dangel et al. 2022, "ViViT"; Papyan 2020 on the
rows of the cross-entropy.
"""

import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from landscape.autodiff import per_sample, single_samples, trees
from landscape.autodiff.differentiable import differentiable_attention
from landscape.autodiff.single_samples import Recorded
from landscape.autodiff.trees import Tree
from landscape.autodiff.wide import zeros
from landscape.curvature import inner_products
from landscape.curvature.checks import refuse_zero, some_of
from landscape.curvature.functions import functions_of
from landscape.curvature.kinds import Factors
from landscape.curvature.middles import Middle
from landscape.curvature.outputs import Keep, chunks, largest, outputs, split
from landscape.curvature.places import WHOLE, Place
from landscape.data.records import Records
from landscape.errors import LandscapeError, is_of_memory
from landscape.networks.outputs import OwnLoss
from landscape.objective.draws import MOST_OUTPUTS
from landscape.objective.objective import Objective
from landscape.results.gram import Gram

_CHECKED = 13  # samples on which gradients are checked; few layers have an axis of this length beside the batch
_PAIRS = 512  # pairs of a sample and a row, whose gradients at all layers' outputs are kept at a time

Report: TypeAlias = Callable[[float], None]
"""Is called with the fraction that is done."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Lengths:
    """The squared lengths of all rows of a part, with the sign of each row's eigenvalue."""

    squares: np.ndarray  # (n, R) float64: sign(mu_ik) |a_ik|^2, k in the order of `Middle`
    uncertainty: np.ndarray  # (n,) tr M_i
    weights: np.ndarray  # (n,) w_i
    logits: Tensor  # (n, C) float64 on the CPU; (n,) losses where the factors are gradients of these
    targets: Tree  # of the n samples, on the CPU
    kept: "Found | None" = None  # rows that were found beside their lengths
    tails: np.ndarray | None = None
    """If only some rows were measured (tails.py): estimates of the sums of squared lengths of each sample's other rows,
    (n, 2), of those with a positive and with a negative sign. In `squares` the others are then zero."""
    trace_stderr: float = 0.0
    """The standard error of the weighted sum of `traces` if there are `tails`, or a bound on it in expectation."""

    @property
    def traces(self) -> np.ndarray:
        """The trace of each sample's matrix J_i^T M_i J_i, (n,); with `tails` an estimate without bias."""
        traces: np.ndarray = self.squares.sum(axis=1)
        return traces if self.tails is None else traces + self.tails[:, 0] - self.tails[:, 1]

    @property
    def tail(self) -> np.ndarray:
        """The weighted sums of `tails`, (2,)."""
        return np.zeros(2) if self.tails is None else self.weights @ self.tails

    def exact_to(self, trace_tol: float | None) -> bool:
        """Say whether the standard error of the trace is at most this fraction of it; None for no limit."""
        return trace_tol is None or self.trace_stderr <= trace_tol * abs(float(self.weights @ self.traces))

    def longest(self, tol: float) -> tuple[np.ndarray, np.ndarray]:
        """Choose the fewest rows such that the others hold at most a fraction of all weighted squared lengths.

        Args:
            tol: this fraction; 0 keeps every row that is not zero.

        Returns:
            Positions of the samples and of their rows, (m,) each, in the order of the samples; all rows that were
            measured if these do not suffice.
        """
        return largest(self.weights[:, None] * np.abs(self.squares), tol, float(self.tail.sum()))


@dataclass(frozen=True, kw_only=True, eq=False)
class Found:
    """Some rows of a part."""

    vectors: Tensor  # (m, d) a_ik, as `Stored` keeps them
    sample: np.ndarray  # (m,)
    row: np.ndarray  # (m,)


@dataclass(frozen=True, kw_only=True, eq=False)
class Rows(ABC):
    """The longest rows of a part, and the sums over the others."""

    sample: np.ndarray  # (m,) position of each row's sample in the part
    row: np.ndarray  # (m,) which of the sample's rows it is
    sign: np.ndarray  # (m,) 1 or -1
    n: int  # samples of the part
    tau_plus: float  # trace of the left-out rows with a positive sign; estimated if these were not all measured
    tau_minus: float  # and minus that of the others

    @property
    def gram(self) -> Gram:
        """The inner products of the rows."""
        return Gram(products=self.products, sign=self.sign, sample=self.sample, n=self.n)

    @property
    @abstractmethod
    def products(self) -> np.ndarray:
        """The inner products of the rows, without weights and signs, (m, m) float64."""

    @property
    @abstractmethod
    def n_bytes(self) -> int:
        """Memory that the rows take."""

    @abstractmethod
    def combined(self, factors: np.ndarray) -> Tensor:
        """Return the sum of the rows times factors, (m,) -> (D,).

        Processes that work together use the factors of the first one: the sign of an eigenvector depends on rounding,
        as does its direction where eigenvalues are nearly equal.
        """

    @abstractmethod
    def along(self, vector: Tensor) -> np.ndarray:
        """Return the inner products of the rows with a vector, (D,) -> (m,) float64."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Stored(Rows):
    """Rows in memory; processes that work together each keep the same entries of all rows (places.py)."""

    vectors: Tensor  # (m, d) a_ik, without weights and signs; d = D for one process
    place: Place = WHOLE  # which entries are kept

    @property
    def products(self) -> np.ndarray:
        """See `Rows.products`."""
        return inner_products.products(self.vectors, self.vectors, self.place.team)

    @property
    def n_bytes(self) -> int:
        """See `Rows.n_bytes`."""
        return self.vectors.untyped_storage().nbytes()  # more than `nbytes` after `trimmed`

    def combined(self, factors: np.ndarray) -> Tensor:
        """See `Rows.combined`."""
        own = torch.from_numpy(self.place.team.agreed(factors)).to(self.vectors) @ self.vectors
        return self.place.whole(own, self.vectors.device)

    def along(self, vector: Tensor) -> np.ndarray:
        """See `Rows.along`."""
        own = self.place.kept(vector.to(self.vectors))
        return self.place.products(self.vectors, own[None])[:, 0].cpu().numpy()


def refusal(objective: Objective, factors: Factors) -> str | None:
    """Say why gradients of single samples cannot be computed.

    Args:
        objective: model, loss and data in parts.
        factors: of a kind of matrix.

    Returns:
        The reason, or None.

    Raises:
        RuntimeError: memory has run out.
        LandscapeError: caused by the same.
    """
    size = objective.outputs.size
    if size > MOST_OUTPUTS and not factors.is_closed(objective, objective.example(0)[1]):
        what = "classes" if objective.task.name == "classification" else "outputs of a sample"
        return f"{size} {what} are more than {MOST_OUTPUTS}"
    if isinstance(objective.outputs, OwnLoss):
        return "the model computes its loss itself"
    if isinstance(objective.samples, Records) and objective.samples.ragged:
        return "batches are collated one by one, and may differ in shape"
    batch = objective.example(0)
    key = objective.layout.names, objective.dtype, objective.device, trees.shape(batch[0])
    with differentiable_attention(), objective.trainable():
        try:
            every = _of_all_parts(objective)
            if trees.size(every) >= 3:  # at all weights: where some are zero, a wrong order makes no difference
                per_sample.check(objective.model, partial(_losses, objective, *every))
            few = some_of(batch, 4)
            refuse_zero(objective, factors, objective.logits(objective.theta, few[0]), few[1])
            attempt = partial(_try, objective, factors, trees.one(batch, 0))
            objective.known.once(("rows", key), (objective.loss, factors), attempt)
        except (LandscapeError, RuntimeError) as error:
            if is_of_memory(error):  # which does not concern the rows
                raise
            return (str(error).splitlines() or [type(error).__name__])[0]
    return None


def _of_all_parts(objective: Objective) -> tuple[Tree, Tree]:
    """Return a few samples of all parts: those of one may be too few to show a wrong order."""
    members = np.concatenate(objective.members)
    n = min(len(members), _CHECKED, max(3, objective.batch_size))
    index = members[np.linspace(0, len(members) - 1, n).round().astype(int)]
    return objective.samples.batch(index, objective.device, objective.dtype)


def _try(objective: Objective, factors: Factors, one: tuple[Tree, Tree]) -> None:
    """Take the steps that rows need with one sample."""
    run = recorded(objective, factors, *one)
    factors.split(objective, run.values.detach(), one[1])
    for _ in run.squares(torch.ones_like(run.values)):
        pass


def lengths(
    objective: Objective, factors: Factors, part: int, report: Report | None = None, *, keep: Keep | None = None
) -> Lengths:
    """Compute the squared lengths of all rows of a part: one forward pass, and a backward pass for each class but one.

    Args:
        objective: model, loss and data in parts; `refusal` must return None for it.
        factors: of a kind of matrix.
        part: position of the part.
        report: called with the finished fraction of the part.
        keep: rows to keep for a later call of `rows`, at the cost of another forward pass; None keeps none.

    Returns:
        The lengths.
    """
    members, team = objective.members[part], objective.team
    pieces = chunks(objective, len(members), team)
    own = pieces[team.rank]
    wanted = None if keep is None else _likely(objective, factors, part, keep)
    squares, uncertainty, logits, targets_of = [], [], [], []
    mine = own or [slice(0, 1)]  # a process without samples uses one to get the shapes
    ends = [0] * (len(mine) + 1) if wanted is None else np.cumsum([0, *(wanted[c].sum() for c in mine)]).tolist()
    vectors = torch.zeros(ends[-1], objective.layout.size, dtype=objective.dtype, device=objective.device)
    with differentiable_attention(), objective.trainable():
        for chunk, first, last in zip(mine, ends[:-1], ends[1:], strict=True):
            inputs, targets = objective.samples.batch(members[chunk], objective.device, objective.dtype)
            run = recorded(objective, factors, inputs, targets)
            z = run.values.detach().cpu().double()
            middle = factors.split(objective, run.values.detach(), targets)
            kept = None if wanted is None else torch.from_numpy(wanted[chunk])
            squares.append(middle.signs * _square_norms(run, middle, kept, vectors[first:last]).cpu())
            uncertainty.append(middle.traces)
            logits.append(z)
            targets_of.append(trees.mapped(Tensor.cpu, targets))
            if report is not None:
                report(min(chunk.stop, len(members)) / len(members))

    def joined(found: Tensor) -> Tensor:
        return team.gathered(found if own else found[:0])

    rows_found = None
    if wanted is not None:
        sample, row = np.nonzero(wanted)
        rows_found = Found(vectors=team.by_columns(vectors if own else vectors[:0]), sample=sample, row=row)
    return Lengths(
        kept=rows_found,
        squares=joined(torch.cat(squares)).numpy(),
        uncertainty=joined(torch.cat(uncertainty)).numpy(),
        weights=np.full(len(members), 1 / objective.counts[part]),
        logits=joined(torch.cat(logits)),
        targets=trees.mapped(joined, trees.join(targets_of)),
    )


def _square_norms(run: Recorded, middle: Middle, wanted: Tensor | None, into: Tensor) -> Tensor:
    """Return the squared lengths of a batch's rows, (B, R), and write the wanted rows, (m, D), sample by sample."""
    found = zeros(middle.signs.shape, run.values.device)
    used = middle.signs.abs().amax(0) > 0
    if wanted is not None:
        used |= wanted.any(0)
    if not used.any():  # a loss that is linear in the outputs of each of these samples
        return found
    sample, groups = torch.arange(len(found)), torch.split(torch.nonzero(used)[:, 0], max(1, _PAIRS // len(found)))
    for some in groups:
        along = middle.vectors(sample, some[:, None]).reshape(-1, *run.values.shape).to(run.values)
        if wanted is None or len(groups) == 1:
            norms, _ = run.square_norms(along, None if wanted is None else wanted[:, some].T, into)
        else:
            norms, of_group = run.square_norms(along, wanted[:, some].T)
            into[torch.isin(torch.nonzero(wanted)[:, 1], some)] = of_group
        found[:, some] = norms.T
    return found


def rows(objective: Objective, factors: Factors, part: int, known: Lengths, tol: float) -> Stored:
    """Compute the longest rows of a part.

    Args:
        objective: as for `lengths`.
        factors: as for `lengths`.
        part: position of the part.
        known: the result of `lengths` for them.
        tol: fraction of the sum of all squared lengths that may be left out; 0 keeps every row that is not zero.

    Returns:
        The rows, in the order of the samples.
    """
    sample, row = known.longest(tol)
    have, where = _known(known, sample, row)

    def compute(sample: np.ndarray, row: np.ndarray) -> Tensor:
        return computed(objective, factors, part, sample, seeds_of(objective, factors, known, sample, row))

    if known.kept is None:
        vectors = compute(sample, row)
    elif have.all() and len(known.kept.sample) == len(sample):
        vectors = known.kept.vectors
    else:
        missing = compute(sample[~have], row[~have])
        vectors = missing.new_empty(len(sample), missing.shape[1])
        for at, row_of in zip(np.flatnonzero(have), where, strict=True):  # one by one: they are large
            vectors[at] = known.kept.vectors[row_of]
        vectors[torch.from_numpy(~have)] = missing
    return Stored(**facts(known, sample, row), vectors=vectors, place=Place(objective.team))


def trimmed(known: Lengths, tol: float) -> Lengths:
    """Return the same lengths, with only those of the kept rows that `rows` needs for this tolerance.

    The rows that stay move forward in place, because they may take most of the memory: `known` cannot be used again.

    Args:
        known: the lengths, perhaps with rows.
        tol: as for `rows`.

    Returns:
        The lengths; the rows that stay have the memory of all that were kept, unless they are less than half of these.
    """
    if known.kept is None:
        return known
    sample, row = known.longest(tol)
    have, where = _known(known, sample, row)
    vectors = known.kept.vectors
    for at, row_of in enumerate(where):  # which ascend, so that no row is overwritten before it has moved
        if at != row_of:
            vectors[at] = vectors[row_of]
    few = 2 * len(where) < len(vectors)
    vectors = vectors[: len(where)].clone() if few else vectors[: len(where)]
    return replace(known, kept=Found(vectors=vectors, sample=sample[have], row=row[have]))


def facts(known: Lengths, sample: np.ndarray, row: np.ndarray) -> dict[str, Any]:
    """Return the fields of `Rows` for the chosen rows of a part."""
    left_out = known.weights[:, None] * known.squares
    left_out[sample, row] = 0
    return {
        "sample": sample,
        "row": row,
        "sign": np.sign(known.squares[sample, row]),
        "n": len(known.weights),
        "tau_plus": float(np.maximum(left_out, 0).sum() + known.tail[0]),
        "tau_minus": float(np.maximum(-left_out, 0).sum() + known.tail[1]),
    }


def seeds_of(objective: Objective, factors: Factors, known: Lengths, sample: np.ndarray, row: np.ndarray) -> Tensor:
    """Return s_ik of some rows, (m, C) float64 on the CPU, such that a_ik = J_i^T s_ik."""
    seeds = known.logits.new_empty(len(sample), known.logits[0].numel())
    for chunk in itertools.chain.from_iterable(chunks(objective, len(known.squares), objective.team)):
        inside = np.flatnonzero((sample >= chunk.start) & (sample < chunk.stop))
        if not len(inside):
            continue
        # In the pieces of `lengths`: within equal eigenvalues the eigenvectors depend on the last digit.
        middle = split(objective, factors, known.logits[chunk], trees.take(known.targets, chunk))
        seeds[inside] = middle.vectors(*map(torch.from_numpy, (sample[inside] - chunk.start, row[inside])))
    # Within equal eigenvalues another process may have other vectors, and several compute the rows of a sample.
    return torch.from_numpy(objective.team.agreed(seeds.numpy()))


def computed(
    objective: Objective,
    factors: Factors,
    part: int,
    sample: np.ndarray,
    seeds: Tensor,
    names: Sequence[str] | None = None,
) -> Tensor:
    """Compute some rows of a part by a forward and a backward pass for each.

    Args:
        objective: as for `lengths`.
        factors: as for `lengths`.
        part: position of the part.
        sample: (m,) positions of samples in the part.
        seeds: (m, C) as of `seeds_of`.
        names: of parameters; None for all.

    Returns:
        (m, d), with the columns of these parameters, or this process's share of them.
    """
    example, team = objective.theta[0], objective.team
    own, index = team.share(len(sample)), objective.members[part][sample]
    size_of = dict(zip(objective.layout.names, objective.layout.sizes, strict=True))
    width = sum(size_of[name] for name in (size_of if names is None else names))
    vectors = torch.empty(own.stop - own.start, width, dtype=example.dtype, device=example.device)
    with differentiable_attention(), objective.trainable():
        for start in range(own.start, own.stop, objective.batch_size):
            here = slice(start, min(start + objective.batch_size, own.stop))
            inputs, targets = objective.samples.batch(index[here], objective.device, objective.dtype)
            run = recorded(objective, factors, inputs, targets, names)
            found = run.rows(seeds[here].reshape(run.values.shape).to(run.values))
            vectors[here.start - own.start : here.stop - own.start] = found
    return team.by_columns(vectors)


def _known(known: Lengths, sample: np.ndarray, row: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Say which rows were kept and not only measured, (m,), and return their positions among the kept rows."""
    if known.kept is None:
        return np.zeros(len(sample), dtype=bool), np.empty(0, dtype=np.int64)
    width = known.squares.shape[1]
    wanted, kept = sample * width + row, known.kept.sample * width + known.kept.row  # both ascend
    have = np.isin(wanted, kept)
    return have, np.searchsorted(kept, wanted[have])


def _likely(objective: Objective, factors: Factors, part: int, keep: Keep) -> np.ndarray:
    """Say which rows are likely to be among the longest, by their sizes in the logits, (n, R)."""
    return keep.chosen(outputs(objective, factors, part).sizes)


def _losses(objective: Objective, inputs: Tree, targets: Tree) -> Tensor:
    return objective.values(objective.logits_of(objective.model, inputs), targets)


def recorded(
    objective: Objective, factors: Factors, inputs: Tree, targets: Tree, names: Sequence[str] | None = None
) -> Recorded:
    """Run the model on a batch and keep what the rows of its samples need.

    Args:
        objective: the objective with this model and loss, within its `trainable`.
        factors: as for `lengths`.
        inputs: inputs of B samples.
        targets: targets of the same samples.
        names: of parameters; None for all.

    Returns:
        The forward pass; its values are the outputs (logits or losses) of which the factors need the Jacobians.
    """

    def read(outputs: Any, targets: Tree) -> Tensor:
        return factors.outputs(functions_of(objective), objective.outputs.read(outputs), targets)

    return single_samples.record(objective.model, inputs, targets, read, names or objective.layout.names)
