"""The longest rows of a part, and one random combination of each sample's other rows: its trace from two passes.

All rows of a sample (rows.py) take as many backward passes as there are classes. But nearly all of the trace is in a
few of them, and a forward pass says in which: the length of J_i^T u_ik varies little, while the eigenvalues of the
logits' matrix vary by orders of magnitude. So the rows with the largest eigenvalues are computed one by one, at most as
many as there are samples. The others of each sample are added with random signs e_k, in a single row:

    E |sum_k e_k a_ik|^2 = sum_k |a_ik|^2 =: t,      Var = 2 sum_{k != l} (a_ik . a_il)^2 <= 2 t^2

If these rows hold little of the sum of all eigenvalues, only the combinations of some samples are computed, each with a
probability p in proportion to its sample's eigenvalues, and divided by p (Poisson sampling). The estimate x of every
sample's sum then still has no bias, and all are independent. Since E x^2 <= 3 t^2 / p,

    Var x = E x^2 - t^2 <= (1 - p / 3) E x^2,

so the sum of w_i^2 (1 - p / 3) x_i^2 is in expectation at least the variance of the sum of w_i x_i. Sources: Hutchinson
1990; Horvitz and Thompson 1952.
"""

import zlib

import numpy as np
import torch
from torch import Tensor

from landscape.autodiff import trees
from landscape.autodiff.differentiable import differentiable_attention
from landscape.autodiff.wide import zeros
from landscape.curvature.kinds import Factors
from landscape.curvature.outputs import Keep, chunks, outputs, split
from landscape.curvature.rows import Found, Lengths, recorded
from landscape.objective.draws import proportional
from landscape.objective.objective import Objective

_LEAST, _WHOLE = 0.25, 0.1
"""Fraction of the samples with a combination that is computed, at least; and the other rows' share of all eigenvalues
from which on all are. Between, the fraction grows in proportion to the share."""


def lengths(objective: Objective, factors: Factors, part: int, keep: Keep, *, seed: int) -> Lengths:
    """Measure some rows of a part, and estimate the sums of squared lengths of the others.

    Processes that work together divide the passes, and all return the same.

    Args:
        objective: model, loss and data in parts, as for `rows.lengths`.
        factors: of a kind of matrix; between Jacobians of logits.
        part: position of the part.
        keep: the rows that are measured and kept.
        seed: of the signs, which also depend on the name of the part but not on its position.

    Returns:
        The lengths, with `tails`, and the rows.
    """
    members = objective.members[part]
    found = outputs(objective, factors, part)
    wanted, sizes = keep.chosen(found.sizes), found.sizes
    random = np.random.default_rng([seed, zlib.crc32(objective.partition.names[part].encode())])
    seeds: list[Tensor] = []
    others: tuple[list[Tensor], list[Tensor]] = ([], [])
    signs = np.zeros(sizes.shape)
    for chunk in chunks(objective, len(members))[0]:
        # In the pieces of `rows`: within equal eigenvalues the eigenvectors depend on the last digit.
        middle = split(objective, factors, found.logits[chunk], trees.take(found.targets, chunk))
        own, kept = middle.signs, torch.from_numpy(wanted[chunk])
        signs[chunk] = own.numpy()
        seeds.append(middle.vectors(*torch.nonzero(kept, as_tuple=True)))
        random_signs = torch.from_numpy(random.integers(0, 2, own.shape) * 2.0 - 1)
        for sign, side in zip((1, -1), others, strict=True):
            side.append(middle.combined(torch.where((own == sign) & ~kept, random_signs, 0)))
    sample, row = np.nonzero(wanted)
    # Within equal eigenvalues another process may have other vectors; all must measure the same combinations.
    plus, minus = torch.from_numpy(objective.team.agreed(torch.stack([*map(torch.cat, others)]).numpy()))
    left = np.where(wanted, 0, sizes).sum(axis=1)
    chance = _probabilities(left, float(left.sum() / sizes.sum()) if sizes.any() else 0.0)
    drawn = random.random(len(members)) < chance
    tailed = [np.flatnonzero((side.abs().amax(1).numpy() > 0) & drawn) for side in (plus, minus)]
    squares, vectors = _square_norms(
        objective,
        factors,
        members[np.concatenate([sample, *tailed])],
        torch.cat([*seeds, plus[tailed[0]], minus[tailed[1]]]),
        len(sample),
    )
    first, *rest = np.split(squares, np.cumsum([len(sample), len(tailed[0])]))
    measured, tails = np.zeros(sizes.shape), np.zeros((len(members), 2))
    measured[sample, row] = signs[sample, row] * first
    for k, (where, values) in enumerate(zip(tailed, rest, strict=True)):
        tails[where, k] = values / chance[where]
    weights = np.full(len(members), 1 / objective.counts[part])
    return Lengths(
        squares=measured,
        uncertainty=found.uncertainty,
        weights=weights,
        logits=found.logits,
        targets=found.targets,
        kept=Found(vectors=vectors, sample=sample, row=row),
        tails=tails,
        trace_stderr=float(np.sqrt(((1 - chance / 3) * weights**2) @ np.square(tails).sum(axis=1))),
    )


def _probabilities(sizes: np.ndarray, share: float) -> np.ndarray:
    """Return the probability of each sample's combination, (n,), given the sums of its eigenvalues, (n,)."""
    if share >= _WHOLE:
        return np.ones(len(sizes))
    # Nothing is computed for samples without other rows, whatever their probability is.
    return np.where(sizes > 0, proportional(sizes, len(sizes) * max(_LEAST, share / _WHOLE)), 1.0)


def _square_norms(
    objective: Objective, factors: Factors, index: np.ndarray, seeds: Tensor, n_kept: int
) -> tuple[np.ndarray, Tensor]:
    """Return |J_i^T s|^2 of pairs of a sample and a combination of its outputs, and the first of these rows.

    Args:
        objective: as for `lengths`.
        factors: as for `lengths`.
        index: positions of the samples in the data, (m,).
        seeds: s, (m, C).
        n_kept: number of the first pairs with rows to be returned.

    Returns:
        (m,) and (n_kept, d), see `rows.Rows`.
    """
    team, example = objective.team, objective.theta[0]
    own = team.share(len(index))
    ends = np.minimum([own.start, own.stop], n_kept)
    shape = int(ends[1] - ends[0]), objective.layout.size
    vectors = torch.zeros(shape, dtype=example.dtype, device=example.device)
    found = zeros(own.stop - own.start, example.device)
    with differentiable_attention(), objective.trainable():
        for start in range(own.start, own.stop, objective.batch_size):
            here = slice(start, min(start + objective.batch_size, own.stop))
            inputs, targets = objective.samples.batch(index[here], objective.device, objective.dtype)
            run = recorded(objective, factors, inputs, targets)
            kept = torch.arange(here.start, here.stop)[None] < n_kept
            into = vectors[min(here.start, n_kept) - ends[0] : min(here.stop, n_kept) - ends[0]]
            norms, _ = run.square_norms(seeds[here].reshape(1, *run.values.shape).to(run.values), kept, into)
            found[here.start - own.start : here.stop - own.start] = norms[0]
    return team.gathered(found.cpu()).numpy(), team.by_columns(vectors)
