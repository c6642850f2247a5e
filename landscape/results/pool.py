"""Samples of several parts together, and their rows: any weighting of the samples is a small eigenvalue problem.

A spectrum stores the inner products of the longest rows of all its parts (`gram`). With the matrix
G = sum_j sign_j w_s(j) a_j a_j^T for weights w of the samples, the file gives the largest eigenvalue of a class, of any
group of classes, and of any sub-sample or pool of them, and the curvature of one part along the sharpest directions of
another, without another pass over the data. The rows leave out the trace t_i - sum_j sign_j |a_j|^2 of sample i (sum
over its own rows, with t_i its whole trace), which bounds the error of the eigenvalues for any weighting.

All this is of the data: the matrices of a spectrum with weight decay have it on each eigenvalue besides (`decay_of`).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from landscape.errors import InputError, arg
from landscape.results.gram import Gram
from landscape.results.spectrum import Spectrum

MOST_RESAMPLED = 512
"""Eigenvalues of bootstrap draws are computed for parts with at most so many stored rows; for more they take long."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Pool:
    """The samples of some parts of a spectrum, part by part."""

    part: np.ndarray  # (n,) position of each sample's part among those of the pool
    weights: np.ndarray  # (n,) of each sample in the sums of its own part
    chances: np.ndarray  # (n,) probability with which each was drawn; nan where a part has all its samples
    traces: np.ndarray  # (n,) trace of each sample's Gauss-Newton or Fisher matrix
    uncertainty: np.ndarray  # (n,) tr M
    beyond: np.ndarray | None = None  # (n,) estimates of the traces of H - G; 0 for parts without them
    negative: np.ndarray | None = None  # (parts,) what rows with a negative sign that are left out take away, at most
    gram: Gram | None  # the rows; None for a spectrum that keeps none

    @property
    def whole(self) -> np.ndarray:
        """The traces of each sample's matrix, (n,): with the estimates for Hessians."""
        return self.traces if self.beyond is None else self.traces + self.beyond

    def of(self, p: int) -> np.ndarray:
        """Return the weights of a part's own samples, and zero for the others, (n,)."""
        weights: np.ndarray = np.where(self.part == p, self.weights, 0.0)
        return weights

    def left_out(self, weights: np.ndarray) -> float:
        """Return by how much each eigenvalue of the rows is at most too small: the trace that they leave out.

        Args:
            weights: (n,) of the samples.

        Returns:
            The trace; zero if the rows leave out nothing. nan without rows, and if some of them have a negative sign,
            as for a loss that is not convex in the logits: then their traces may cancel, and the file does not hold
            those of each sign. If only rows that are left out are negative, what they take away is added.
        """
        if self.gram is None or (self.gram.sign < 0).any():
            return float("nan")
        net = max(0.0, float(weights @ (self.traces - self.gram.traces)))  # values below zero are rounding
        if self.negative is None or not self.negative.any():
            return net
        times = np.divide(weights, self.weights, out=np.zeros_like(weights), where=self.weights > 0)
        most = np.zeros(len(self.negative))
        np.maximum.at(most, self.part, times)
        return net + float(most @ self.negative)


def pool(found: Spectrum, parts: Sequence[int]) -> Pool:
    """Combine the samples of some parts.

    Args:
        found: a spectrum with the fields of single samples.
        parts: positions of the parts.

    Returns:
        The pool.

    Raises:
        InputError: the spectrum has no fields of single samples.
    """
    if found.sample_trace is None or found.sample_uncertainty is None or found.sample_weight is None:
        raise InputError(without_samples(found))
    own = np.isfinite(found.sample_trace[list(parts)])
    part, first = np.nonzero(own)[0], np.append(0, own.sum(axis=1).cumsum())
    chances = np.full(own.shape, np.nan) if found.sample_chance is None else found.sample_chance[list(parts)]
    weights, traces, uncertainty = (
        values[list(parts)][own] for values in (found.sample_weight, found.sample_trace, found.sample_uncertainty)
    )
    beyond = None if found.sample_beyond is None else np.nan_to_num(found.sample_beyond[list(parts)][own])
    negative = np.zeros(len(parts))
    if found.eigenvalue_below is not None:
        negative = np.maximum(np.nan_to_num(found.eigenvalue_below[list(parts)]), 0)
    gram = None
    if (
        found.gram is not None
        and found.gram_part is not None
        and found.gram_sample is not None
        and found.gram_sign is not None
    ):
        place = np.full(len(found.parts), -1)
        place[list(parts)] = np.arange(len(parts))
        rows = np.flatnonzero(place[found.gram_part] >= 0)
        has_rows = np.isin(np.arange(len(parts)), place[found.gram_part[rows]])
        if has_rows[part[traces != 0]].all():  # a copy of a file may keep those of some parts
            gram = Gram(
                products=found.gram[np.ix_(rows, rows)],
                sign=found.gram_sign[rows],
                sample=first[place[found.gram_part[rows]]] + found.gram_sample[rows],
                n=len(part),
            )
    return Pool(
        part=part,
        weights=weights,
        chances=chances[own],
        traces=traces,
        uncertainty=uncertainty,
        beyond=beyond,
        negative=negative,
        gram=gram,
    )


def without_samples(found: Spectrum, checkpoint: str = "") -> str:
    """Say why a spectrum has no numbers of single samples, and what to do.

    Args:
        found: such a spectrum.
        checkpoint: its name, if it is known to be that of a checkpoint of a series.

    Returns:
        One line.
    """
    hessian, ggn = arg("operator", "hessian"), arg("operator", "ggn")
    if found.operator == "residual":
        why = f"the residual H - G has no rows: compute {hessian} or {ggn} in its place"
    elif checkpoint or found.stated("checkpoints", of=dict) is not None:
        name = found.stated("checkpoint", of=str) or checkpoint or "the checkpoint"
        why = f"it is of a series along training, which leaves them out: analyse {name} alone"
    elif np.isnan(found.n_samples).all():
        why = f"it is of a matrix without data: compute {hessian} or {ggn} of a network"
    elif found.stated("options", "sampling_errors", of=bool) is False:
        why = f"it was computed with {arg('sampling_errors', False)}: compute it again without"
    else:
        why = "it is of an earlier version, or of a network that is not evaluated sample by sample: compute it again"
    return f"a spectrum keeps nothing of its samples: {why}"


def decay_of(found: Spectrum) -> float:
    """Return what the weight decay adds to each eigenvalue of a spectrum's matrices; rows and samples are without it.

    Args:
        found: the spectrum.

    Returns:
        The multiple of the identity in these matrices; 0 for those that do not have it.
    """
    if found.operator == "residual":  # it is in H and in G
        return 0.0
    rest = np.empty(0) if found.eigenvalue_rest is None else found.eigenvalue_rest[np.isfinite(found.eigenvalue_rest)]
    if found.operator == "empirical-fisher" or (len(rest) and not rest.any()):
        return 0.0
    stated = found.stated("weight_decay", of=float) or found.stated("weight_decay", of=int) or 0.0
    return float(stated) if math.isfinite(stated) else 0.0


def resampled(
    found: Spectrum, p: int, *, repetitions: int = 50, most: int = MOST_RESAMPLED, seed: int = 0
) -> tuple[np.ndarray, np.ndarray] | None:
    """Return the eigenvalues of a part from rows, for bootstrap draws of its samples.

    Args:
        found: a spectrum.
        p: position of the part.
        repetitions: number of draws.
        most: the largest number of rows.
        seed: of the draws.

    Returns:
        Nodes and weights of the density, (R, m + 1) each, ascending; the last one represents all other eigenvalues.
        None without rows, or with too many.
    """
    if found.gram is None or found.sample_trace is None or not 1 <= np.count_nonzero(found.gram_part == p) <= most:
        return None
    together, random = pool(found, (p,)), np.random.default_rng(seed)
    gram, n = together.gram, len(together.weights)
    if gram is None:
        return None
    counts = random.multinomial(n, np.full(n, 1 / n), size=repetitions)
    factors = 1 + np.sqrt(1 - np.nan_to_num(together.chances)) * (counts - 1)  # see `inference.draws`
    values = np.array([gram.eigen(together.weights * own).values[: found.size] for own in factors])
    rest = 0.0 if found.eigenvalue_rest is None else np.nan_to_num(float(found.eigenvalue_rest[p]))
    nodes = np.column_stack([values + rest, np.full(repetitions, rest)])
    shares = np.full(nodes.shape, 1 / found.size)
    shares[:, -1] = 1 - values.shape[1] / found.size
    order = np.argsort(nodes, axis=1, kind="stable")
    return np.take_along_axis(nodes, order, axis=1), np.take_along_axis(shares, order, axis=1)


def overlap(found: Spectrum, *, vectors: int = 1) -> np.ndarray:
    """Return the curvature of each part along the sharpest directions of each other part, from rows.

    Args:
        found: a spectrum with rows.
        vectors: number of the sharpest directions of each part.

    Returns:
        (P, P): [a, b] is the trace of part b's Gauss-Newton or Fisher matrix on the directions of a, divided by the
        trace on its own directions; nan where that is zero. Weight decay is in both.

    Raises:
        InputError: the spectrum has no rows.
    """
    together = pool(found, range(len(found.parts)))
    if together.gram is None:
        raise InputError("the spectrum keeps no rows of its parts: compute it again")
    gram, n_parts, decay = together.gram, len(found.parts), decay_of(found)
    shares = np.zeros((n_parts, n_parts))
    for a in range(n_parts):
        directions = gram.restricted(gram.with_weight(together.of(a)))
        combinations = directions.eigen(together.of(a)).combinations[:, :vectors]
        for combination in combinations.T:
            whole = np.zeros(len(gram.sample))
            whole[gram.with_weight(together.of(a))] = combination
            curvature = together.weights * gram.curvatures(whole)
            shares[a] += np.bincount(together.part, curvature, minlength=n_parts) + decay * combination.any()
    own = shares.diagonal()
    found_shares: np.ndarray = np.divide(shares, own, out=np.full_like(shares, np.nan), where=own > 0)
    return found_shares
