"""The matrix M_i between the Jacobians of each sample's outputs, as a sum of signed squares.

    M_i = sum_k sign_ik s_ik s_ik^T

In general s_ik = sqrt|mu_ik| u_ik, with the eigenvalues mu_ik and unit eigenvectors u_ik of M_i. For the cross-entropy
of many classes, eigenvectors would take longer than the network. There M_i is the covariance of e_c for a class c that
is drawn with the probabilities p_i,

    diag(p_i) - p_i p_i^T = sum_c p_ic (e_c - p_i)(e_c - p_i)^T,

so that s_ic = sqrt(p_ic) (e_c - p_i). These C vectors are not orthogonal, and one more than necessary; but only the sum
of their squares matters.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from landscape.autodiff.softmax import others


@dataclass(frozen=True, kw_only=True, eq=False)
class Middle(ABC):
    """The matrices of a batch of B samples with C outputs, each as a sum of R signed squares; float64, on the CPU."""

    signs: Tensor  # (B, R) 1, -1, or 0 for rounding
    traces: Tensor  # (B,) tr M_i

    @property
    @abstractmethod
    def sizes(self) -> Tensor:
        """|s_ik|^2, (B, R)."""

    @abstractmethod
    def vectors(self, sample: Tensor, row: Tensor) -> Tensor:
        """Return some of the s_ik.

        Args:
            sample: positions in the batch, of any shape.
            row: k, of a shape that broadcasts with this.

        Returns:
            The vectors, with C as the last axis.
        """

    @abstractmethod
    def combined(self, factors: Tensor) -> Tensor:
        """Return sum_k factors_ik s_ik, (B, C), for factors (B, R)."""

    @abstractmethod
    def along(self, z: Tensor) -> Tensor:
        """Return the inner products of s_ik with a vector z_i of each sample, (B, R), for z (B, C)."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Eigenvectors(Middle):
    """All s_ik, by descending size for each sample."""

    s: Tensor  # (B, R, C)

    @classmethod
    def of(cls, matrices: Tensor) -> "Eigenvectors":
        """Decompose matrices, (B, C, C) float64."""
        matrices = matrices.cpu()
        values, vectors = torch.linalg.eigh(matrices)
        order = values.abs().argsort(dim=1, descending=True, stable=True)
        values = values.gather(1, order)
        vectors = vectors.mT.gather(1, order[:, :, None].expand_as(vectors))
        # Rounding in a sample's matrix: for the cross-entropy, the direction in which all logits change equally.
        noise = values.shape[1] * torch.finfo(values.dtype).eps * values.abs().amax(1, keepdim=True)
        values = torch.where(values.abs() > noise, values, 0)
        return cls(
            signs=values.sign(),
            traces=matrices.diagonal(dim1=1, dim2=2).sum(1),
            s=values.abs().sqrt()[:, :, None] * vectors,
        )

    @classmethod
    def of_losses(cls, n: int) -> "Eigenvectors":
        """Return M_i = 1 for n samples with the loss as their output; its trace says nothing, and is nan."""
        ones = torch.ones(n, 1, dtype=torch.float64)
        return cls(signs=ones, traces=torch.full_like(ones[:, 0], torch.nan), s=ones[:, :, None])

    @property
    def sizes(self) -> Tensor:
        """See `Middle.sizes`."""
        return self.s.square().sum(2)

    def vectors(self, sample: Tensor, row: Tensor) -> Tensor:
        """See `Middle.vectors`."""
        return self.s[sample, row]

    def combined(self, factors: Tensor) -> Tensor:
        """See `Middle.combined`."""
        return torch.einsum("br,brc->bc", factors, self.s)

    def along(self, z: Tensor) -> Tensor:
        """See `Middle.along`."""
        return torch.einsum("brc,bc->br", self.s, z)


@dataclass(frozen=True, kw_only=True, eq=False)
class Probabilities(Middle):
    """s_ic = sqrt(w_i p_ic) (e_c - p_i), from the probabilities alone."""

    p: Tensor  # (B, C)
    weights: Tensor  # (B,) w_i, factors of the matrices

    @classmethod
    def of(cls, z: Tensor, weights: Tensor | None = None) -> "Probabilities":
        """Return the matrices of the cross-entropy.

        Args:
            z: logits, (B, C) float64.
            weights: factors of the matrices, (B,); None for 1.

        Returns:
            Their squares.
        """
        p = z.softmax(1).cpu()
        w = torch.ones_like(p[:, 0]) if weights is None else weights.cpu().double()
        signs = (w[:, None] * p > 0).double()
        return cls(signs=signs, traces=w * (p * others(p)).sum(1), p=p, weights=w)

    @cached_property
    def _roots(self) -> Tensor:
        return (self.weights[:, None] * self.p).sqrt()

    @property
    def sizes(self) -> Tensor:
        """See `Middle.sizes`."""
        return self._roots.square() * (others(self.p).square() + others(self.p.square()))

    def vectors(self, sample: Tensor, row: Tensor) -> Tensor:
        """See `Middle.vectors`."""
        sample = sample + torch.zeros_like(row)  # of the shape to which both broadcast
        found = -self.p[sample]
        found.scatter_(-1, row.expand_as(sample)[..., None], others(self.p)[sample, row][..., None])
        return self._roots[sample, row][..., None] * found

    def combined(self, factors: Tensor) -> Tensor:
        """See `Middle.combined`."""
        f = factors * self._roots
        return f - f.sum(1, keepdim=True) * self.p

    def along(self, z: Tensor) -> Tensor:
        """See `Middle.along`."""
        return self._roots * (z - (self.p * z).sum(1, keepdim=True))
