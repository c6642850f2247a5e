"""Rows of the Gauss-Newton and Fisher matrices: all their eigenvalues above a bound, from gradients of single samples.

Let M_i be the matrix between the Jacobians of sample i (the Hessian of its loss in the logits, or diag(p) - p p^T),
with eigenvalues mu_ik and unit eigenvectors u_ik. Then with weights w_i (1/n where all samples of a part count alike)

    G = sum_i w_i J_i^T M_i J_i = sum_ik sign(mu_ik) w_i a_ik a_ik^T,      a_ik = sqrt|mu_ik| J_i^T u_ik,

and the nonzero eigenvalues of G are those of the small matrix K of inner products of the rows sqrt(w_i) a_ik. Nearly
all rows are nearly nothing. The lengths of *all* rows are computed (that is the exact trace, sample by sample), and the
longest are kept until the left-out ones sum to at most a share of it. What is left out is positive semidefinite (minus
another such matrix where a loss is not convex in the logits), so that by Weyl's inequality, for every j,

    lambda_j(kept) - tau_minus <= lambda_j(G) <= lambda_j(kept) + tau_plus

with tau the traces of what is left out. Rounding of float32 adds some 10 units of it times |G|. The same K and the
lengths hold every statistic over samples, see results/gram.py. Sources: Horn and Johnson 2013, theorem 4.3.1
(Weyl); Dangel et al. 2022, "ViViT"; Papyan 2020 on the rows of the cross-entropy.
"""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from landscape.autodiff import single_samples
from landscape.autodiff.backward import second_of_each
from landscape.autodiff.differentiable import differentiable_attention
from landscape.autodiff.single_samples import Recorded
from landscape.networks import losses, models
from landscape.objective.objective import Objective
from landscape.results.gram import Gram

KINDS = ("ggn", "fisher", "empirical-fisher")
"""Matrices that have rows. Those of the empirical Fisher are the gradients of the losses."""

_CHUNK = 32  # samples
_COLUMNS = 512  # columns of the rows that are multiplied in the model's dtype before the sum goes on in float64

Report: TypeAlias = Callable[[float], None]
"""Is told the share that is done."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Lengths:
    """The squared lengths of all rows of a part, with the sign of each row's eigenvalue."""

    squares: np.ndarray  # (n, R) float64: sign(mu_ik) |a_ik|^2, k by descending |mu_ik|
    uncertainty: np.ndarray  # (n,) tr M_i
    weights: np.ndarray  # (n,) w_i
    logits: Tensor  # (n, C) float64 on the CPU; for the empirical Fisher there is no column
    labels: Tensor  # (n,) on the CPU

    @property
    def traces(self) -> np.ndarray:
        """The trace of each sample's matrix J_i^T M_i J_i, (n,)."""
        traces: np.ndarray = self.squares.sum(axis=1)
        return traces

    def longest(self, tol: float) -> tuple[np.ndarray, np.ndarray]:
        """Choose the fewest rows whose rest sums to at most a share of the sum of all weighted squared lengths.

        Args:
            tol: that share; 0 keeps every row that is not zero.

        Returns:
            Positions of the samples and of their rows, (m,) each, in the order of the samples.
        """
        sizes = (self.weights[:, None] * np.abs(self.squares)).ravel()
        order = np.argsort(-sizes, kind="stable")
        # Summed up from the smallest: the rest must not drown in the rounding of the whole.
        rest = np.append(np.cumsum(sizes[order][::-1])[::-1], 0.0)
        n_kept = int(np.flatnonzero(rest <= tol * rest[0])[0])
        sample, row = np.unravel_index(np.sort(order[:n_kept]), self.squares.shape)
        return sample, row


@dataclass(frozen=True, kw_only=True, eq=False)
class Rows:
    """The rows of a part that are kept, and what the others sum up to."""

    vectors: Tensor  # (m, D) a_ik, without weights and signs
    sample: np.ndarray  # (m,) position of each row's sample in the part
    sign: np.ndarray  # (m,) 1 or -1
    n: int  # samples of the part
    tau_plus: float  # trace of the left-out rows with a positive sign
    tau_minus: float  # and minus that of the others

    @property
    def gram(self) -> Gram:
        """The inner products of the rows."""
        return Gram(products=products(self.vectors, self.vectors), sign=self.sign, sample=self.sample, n=self.n)


def lengths(objective: Objective, kind: str, part: int, report: Report | None = None) -> Lengths:
    """Compute the squared lengths of all rows of a part: one forward pass, and a backward pass for each class but one.

    Args:
        objective: model, loss and data in parts; `traces.refusal` has nothing against the kind.
        kind: one of `KINDS`.
        part: position of the part.
        report: told the share of the part that is done.

    Returns:
        The lengths.
    """
    members = objective.members[part]
    squares, uncertainty, logits, labels_of = [], [], [], []
    with differentiable_attention(), trainable(objective):
        for chunk in _chunks(objective, len(members)):
            inputs, labels = objective.samples.batch(members[chunk], objective.device, objective.dtype)
            run = recorded(objective, kind, inputs, labels)
            z = run.values.detach().double().cpu()
            signs, seeds, middle = _factors(objective, kind, z, labels.cpu())
            found = torch.zeros(signs.shape, dtype=torch.float64)
            used = signs.abs().amax(0) > 0
            if used.any():
                along = seeds[:, used].transpose(0, 1).reshape(-1, *run.values.shape)
                found[:, used] = run.square_norms(along.to(run.values)).T.cpu()
            squares.append(signs * found)
            uncertainty.append(middle)
            logits.append(z)
            labels_of.append(labels.cpu())
            if report is not None:
                report(min(chunk.stop, len(members)) / len(members))
    return Lengths(
        squares=torch.cat(squares).numpy(),
        uncertainty=torch.cat(uncertainty).numpy(),
        weights=np.full(len(members), 1 / objective.counts[part]),
        logits=torch.cat(logits),
        labels=torch.cat(labels_of),
    )


def rows(objective: Objective, kind: str, part: int, known: Lengths, tol: float) -> Rows:
    """Compute the longest rows of a part.

    Args:
        objective: as for `lengths`.
        kind: one of `KINDS`.
        part: position of the part.
        known: what `lengths` returned for them.
        tol: share of the sum of all squared lengths that may be left out; 0 keeps every row that is not zero.

    Returns:
        The rows, in the order of the samples.
    """
    sample, row = known.longest(tol)
    left_out = known.weights[:, None] * known.squares
    left_out[sample, row] = 0
    seeds = known.logits.new_empty(len(sample), known.logits[0].numel())
    for chunk in _chunks(objective, len(known.squares)):
        # In the pieces of `lengths`: within equal eigenvalues the eigenvectors depend on the last digit.
        of_chunk = _factors(objective, kind, known.logits[chunk], known.labels[chunk])[1]
        own = np.flatnonzero((sample >= chunk.start) & (sample < chunk.stop))
        seeds[own] = of_chunk[sample[own] - chunk.start, row[own]]
    example = objective.theta[0]
    vectors = torch.empty(len(sample), objective.layout.size, dtype=example.dtype, device=example.device)
    members = objective.members[part]
    with differentiable_attention(), trainable(objective):
        for start in range(0, len(sample), objective.batch_size):
            here = slice(start, start + objective.batch_size)
            inputs, labels = objective.samples.batch(members[sample[here]], objective.device, objective.dtype)
            run = recorded(objective, kind, inputs, labels)
            vectors[here] = run.rows(seeds[here].reshape(run.values.shape).to(run.values))
    return Rows(
        vectors=vectors,
        sample=sample,
        sign=np.sign(known.squares[sample, row]),
        n=len(known.weights),
        tau_plus=float(np.maximum(left_out, 0).sum()),
        tau_minus=float(np.maximum(-left_out, 0).sum()),
    )


def products(a: Tensor, b: Tensor) -> np.ndarray:
    """Return the inner products of rows with rows.

    Args:
        a: (A, D).
        b: (B, D), of the same dtype.

    Returns:
        (A, B) float64; some hundred columns at a time are multiplied in the dtype of the rows.
    """
    found = torch.zeros(len(a), len(b), dtype=torch.float64, device=a.device)
    for x, y in zip(torch.split(a, _COLUMNS, dim=1), torch.split(b, _COLUMNS, dim=1), strict=True):
        found += x @ y.T
    return found.cpu().numpy()


@contextmanager
def trainable(objective: Objective) -> Generator[None, None, None]:
    """Let the parameters that vary require a gradient inside the block, as gradients of single samples need it.

    Args:
        objective: whose model it is.

    Yields:
        Nothing.
    """
    chosen = [p for name, p in objective.model.named_parameters() if name in objective.layout.names]
    try:
        for p in chosen:
            p.requires_grad_(True)
        yield
    finally:
        for p in chosen:
            p.requires_grad_(False)


def _chunks(objective: Objective, n: int) -> list[slice]:
    """Divide n samples into pieces, of which the gradients of all classes at all layers' outputs are kept at a time."""
    size = min(objective.batch_size, _CHUNK)
    return [slice(start, start + size) for start in range(0, n, size)]


def recorded(objective: Objective, kind: str, inputs: Tensor, labels: Tensor) -> Recorded:
    """Run the model on a batch and keep what the rows of its samples need.

    Args:
        objective: whose model and loss it is, within `trainable`.
        kind: one of `KINDS`.
        inputs: (B, ...).
        labels: (B,).

    Returns:
        The forward pass; its values are the logits, for the empirical Fisher the losses.
    """
    n_classes = len(objective.samples.class_names)

    def read(outputs: Any, labels: Tensor) -> Tensor:
        z = models.logits_of(outputs, n_classes, objective.logits_index)
        return objective.loss(z, labels) if kind == "empirical-fisher" else z

    return single_samples.record(objective.model, inputs, labels, read, objective.layout.names)


@torch.no_grad()
def _factors(objective: Objective, kind: str, z: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return signs (B, R) and sqrt|mu_ik| u_ik (B, R, C) by descending |mu|, and the traces of M_i, (B,)."""
    if kind == "empirical-fisher":
        ones = torch.ones(len(z), 1, dtype=torch.float64)
        return ones, ones[:, :, None], torch.full((len(z),), torch.nan, dtype=torch.float64)
    # A user's loss may hold tensors of the objective's device; Apple's has no float64.
    device = torch.device("cpu") if objective.device.type == "mps" else objective.device
    middle = between_jacobians(objective.loss, kind, z.to(device), labels.to(device)).cpu()
    values, vectors = torch.linalg.eigh(middle)
    order = values.abs().argsort(dim=1, descending=True, stable=True)
    values = values.gather(1, order)
    vectors = vectors.mT.gather(1, order[:, :, None].expand_as(vectors))
    # What is rounding of a sample's own matrix: for the cross-entropy the direction in which all logits move alike.
    noise = values.shape[1] * torch.finfo(torch.float64).eps * values.abs().amax(1, keepdim=True)
    values = torch.where(values.abs() > noise, values, 0)
    return values.sign(), values.abs().sqrt()[:, :, None] * vectors, middle.diagonal(dim1=1, dim2=2).sum(1)


def between_jacobians(loss: Callable[[Tensor, Tensor], Tensor], kind: str, z: Tensor, labels: Tensor) -> Tensor:
    """Return the matrix between the Jacobians of each sample's logits: (B, C, C) float64.

    Args:
        loss: (logits, labels) -> (B,).
        kind: "ggn" for its Hessian in the logits, "fisher" for diag(p) - p p^T, p = softmax(z).
        z: logits, (B, C) float64.
        labels: (B,).

    Returns:
        The matrices.
    """
    if kind == "ggn" and loss is not losses.cross_entropy:
        return second_of_each(lambda z: loss(z, labels), z)
    p = z.softmax(1)
    # p_c (1 - p_c) by the sum over the others: 1 - p_c has no digits left where a sample is fitted.
    others = p @ (1 - torch.eye(p.shape[1], dtype=p.dtype, device=p.device))
    middle = -p[:, :, None] * p[:, None]
    middle.diagonal(dim1=1, dim2=2).copy_(p * others)
    return middle
