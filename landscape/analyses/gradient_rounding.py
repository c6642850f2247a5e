"""How much of the gradients of parts may be rounding, measured where a few samples are computed in float32 and float64.

A gradient is only rounding if it is zero in exact arithmetic, as that of a bias before a normalisation, or far smaller
than the numbers that it is made of, as that of a class that is fitted to the last digit. Let s_i be the gradient of
sample i, and d_i the length by which it differs within a layer between float32 and float64. Some errors grow with the
gradient, as where its factors are rounded; others do not, as where 1 - p is computed in the model's dtype. So the
gradient g_p of a part of n samples, of the size S = max(mean |s_i|, |g_p|), may be wrong within the layer by

    u (q + S r + S m / sqrt(n)) + min(l f, c)                               u = 1 in float32, 2^-28 in float64

q is the upper quartile of the d_i of samples whose gradients are at most about as long as S. Of samples whose gradients
are at least about as long, r = sum d_i / sum |s_i| is what most have and may have alike, and m^2 = sum d_i^2 /
sum |s_i|^2 counts what few have, as where one of many ReLUs is on the other side of its kink. If r is not small, these
errors do not grow with the gradients, and in place of r and m only the part's own samples count, with sum d_i / sum
|s_i| times mean |s_i|. q, r and m are of samples of all parts, S is of samples of the part: if few of its samples have
most of its gradient, |g_p| is the length that theirs contribute.

The loss of given outputs is computed in float64 (objective/precise.py), unless it casts them itself, and d is without
its rounding: 1 - p of a fitted sample is a multiple of 1e-16. If the loss depends on differences of outputs only, its
slopes in them add up to zero, and what they do add up to is rounding of the slope in the largest output. Along this, l
is the mean length of the gradients, which grows with them by f = |g_p| / mean |s_i|. No sample has more of it than a
unit of rounding of the slopes that badly fitted outputs have, along which c is the mean length.
"""

import logging
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from landscape.autodiff.differentiable import differentiable_attention
from landscape.autodiff.trees import Tree
from landscape.autodiff.wide import wide
from landscape.errors import LandscapeError, one_line
from landscape.objective import precise
from landscape.objective.objective import Objective

log = logging.getLogger(__name__)

_COMPARED = 16  # samples of all parts, at most, that are computed in both dtypes
_EACH, _ALL = 8, 32  # samples of each part and, if there are no more parts, of all that are computed in one
_UNIT = 2.0**-28  # rounding of float64, in that of float32: 2^-29, and twice that as sums may have another order
_FITTED = 0.01  # units of rounding of the slopes: if they add up to less, what the loss rounds does not matter
_ALIKE = 10  # gradients of at most, or at least, this ratio to another are about as long
_COARSE = 0.05  # relative errors of gradients above this one do not grow with these
_OTHER = 0.01  # outputs of one sample that differ by this fraction are those of two networks


@dataclass(frozen=True, kw_only=True, eq=False)
class Rounding:
    """What was measured at a checkpoint, for L layers, P parts and K compared samples; nan where it is unknown."""

    errors: np.ndarray  # (K, L) d_i
    lengths: np.ndarray  # (K,) |s_i|
    owners: np.ndarray  # (K,) positions of the samples' parts, as float64
    loss: np.ndarray  # (L, P) l
    most: np.ndarray  # (L, P) c
    size: np.ndarray  # (L, P) mean length of the samples' gradients within the layer
    length: np.ndarray  # (P,) mean |s_i|
    unit: float  # u
    eps: float  # unit of rounding of the objective's dtype

    def of(self, norm: np.ndarray, parts: np.ndarray, counts: np.ndarray) -> np.ndarray:
        """Return by how much gradients may be wrong.

        Args:
            norm: (L, G) of the gradients of G parts within the layers.
            parts: (G,) positions of these parts.
            counts: (G,) samples of which they are means.

        Returns:
            (L, G); 0 for a gradient that is zero for certain, nan where it is unknown.
        """
        loss, most, size = (x[:, parts] for x in (self.loss, self.most, self.size))
        length, whole = self.length[parts], np.linalg.norm(norm, axis=0)
        each = zip(parts, length, np.fmax(length, whole), counts, strict=True)
        network, seen = np.swapaxes([self._of_network(*one) for one in each], 0, 1)
        network = np.where(norm > 0, np.maximum(self.unit * network.T, self.eps * norm), self.unit * seen.T)
        factor = np.fmax(1, np.fmax(_ratio(whole, length), _ratio(norm, size)))
        found: np.ndarray = network + np.fmin(loss * factor, most)
        return found

    def _of_network(self, part: int, length: float, size: float, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Return q + S r + S m / sqrt(n) of a part within each layer, and the largest d_i of its own samples."""
        own = self.owners == part
        near, far = self.errors[self.lengths <= _ALIKE * size], self.lengths * _ALIKE >= size
        found = np.quantile(near, 0.75, axis=0) if len(near) else np.zeros(self.errors.shape[1])
        far = far if far.any() else np.ones(len(far), dtype=bool)
        errors, lengths = self.errors[far], self.lengths[far]
        relative = _ratio(errors.sum(axis=0), lengths.sum(), 0.0)
        if not np.linalg.norm(relative) > _COARSE:
            seldom = np.sqrt(_ratio((errors**2).sum(axis=0), (lengths**2).sum(), 0.0))
            found = found + size * (relative + seldom / np.sqrt(count))
        else:
            found = np.fmax(found, length * _ratio(self.errors[own].sum(axis=0), self.lengths[own].sum(), 0.0))
        return found, self.errors[own].max(axis=0, initial=0)


def computed(objective: Objective) -> int:
    """Return how often a sample is computed: those that are compared, once more in both dtypes."""
    n = len(_chosen(objective))
    return n + 2 * min(n, _COMPARED)


def once(objective: Objective) -> object:
    """Compute what is computed of each sample."""
    return [_norms(objective, tensors) for tensors in _gradients(objective, int(objective.members[0][0]))[1]]


def _chosen(objective: Objective) -> list[tuple[int, int]]:
    """Return parts and positions in the data of the samples that are computed, evenly spaced in each part."""
    each = max(1, min(_EACH, _ALL // len(objective.partition)))
    found = list[tuple[int, int]]()
    for p, members in enumerate(objective.members):
        places = np.linspace(0, len(members) - 1, min(each, len(members))).astype(int)
        found += [(p, i) for i in members[places].tolist()]
    return found


def measured(objective: Objective) -> Rounding:
    """Measure the rounding of gradients with some samples of each part.

    If a model cannot be computed in both dtypes its rounding is unknown, which is logged once for all checkpoints.

    Args:
        objective: model, loss and data in parts.

    Returns:
        The rounding, the same in all processes of a team.
    """
    n_layers, n_parts = len(objective.layout.layers), len(objective.partition)
    n = min(_COMPARED, len(_chosen(objective)))
    errors, of_parts = np.full((n, n_layers + 2), np.nan), np.full((3, n_parts, n_layers + 1), np.nan)
    try:
        errors, of_parts = _measured(objective)
        reason = "" if np.isfinite(errors).all() and np.isfinite(of_parts).all() else "gradients are not finite"
    except Exception as error:  # a model may be written for one dtype only, and then raise any error
        reason = one_line(error)
    if reason and objective.known.first("rounding of gradients"):
        log.warning(
            "the rounding of gradients is not measured, so numbers that are only rounding are not marked: in "
            "float32 or float64, %s",
            reason,
        )
    errors, of_parts = objective.team.agreed(errors), objective.team.agreed(of_parts)
    if not (np.isfinite(errors).all() and np.isfinite(of_parts).all()):
        errors, of_parts = np.full_like(errors, np.nan), np.full_like(of_parts, np.nan)
    loss, most, size = of_parts[:, :, :-1].swapaxes(1, 2)
    return Rounding(
        errors=errors[:, :-2],
        lengths=errors[:, -2],
        owners=errors[:, -1],
        loss=loss,
        most=most,
        size=size,
        length=of_parts[2, :, -1],
        unit=1.0 if objective.dtype == torch.float32 else _UNIT,
        eps=torch.finfo(objective.dtype).eps,
    )


def _measured(objective: Objective) -> tuple[np.ndarray, np.ndarray]:
    """Return d_i of each layer, |s_i| and the part, (K, L + 2), and l, c and lengths of parts in layers and in all."""
    other = objective.in_dtype(torch.float64 if objective.dtype == torch.float32 else torch.float32)
    chosen, n_layers = _chosen(objective), len(objective.layout.layers)
    lengths, of_parts = list[float](), np.zeros((3, len(objective.partition), n_layers + 1))
    counts = np.bincount([p for p, _ in chosen])
    for p, i in chosen:
        _, (own, *of_loss) = _gradients(objective, i)
        norms = np.stack([_norms(objective, tensors) for tensors in (*of_loss, own)])
        of_parts[:, p] += norms / counts[p]
        lengths.append(norms[-1, -1])
    largest, errors, apart = 0.0, list[np.ndarray](), list[float]()
    for k in np.argsort(lengths, kind="stable")[
        np.linspace(0, len(chosen) - 1, min(_COMPARED, len(chosen))).astype(int)
    ]:
        (z, (own, *_)), (exact_z, (exact, *_)) = (_gradients(of, chosen[k][1]) for of in (objective, other))
        apart.append(float((wide(z).cpu() - wide(exact_z).cpu()).abs().max()))
        largest = max(largest, float(wide(exact_z).abs().max()))
        off = _norms(objective, [wide(a) - wide(b).to(wide(a).device) for a, b in zip(own, exact, strict=True)])
        errors.append(np.array([*off[:-1], lengths[k], chosen[k][0]]))
    if (different := float(np.median(apart))) > _OTHER * largest:
        raise LandscapeError(f"its outputs differ by {different:.2g} where the largest is {largest:.2g}")
    return np.stack(errors), of_parts


def _gradients(objective: Objective, sample: int) -> tuple[Tensor, list[list[Tensor]]]:
    """Return outputs and gradients of a sample: of its loss without the loss's rounding, along that, and its bound."""
    inputs, targets = objective.samples.batch(np.array([sample]), objective.device, objective.dtype)
    theta = [t.detach().requires_grad_() for t in objective.theta]
    with differentiable_attention():
        z = objective.logits(theta, inputs)
        return z.detach(), [
            list(torch.autograd.grad(z, theta, along.to(z), retain_graph=True, materialize_grads=True))
            if along.any()
            else [torch.zeros_like(t) for t in theta]
            for along in _slopes(objective, z.detach(), targets)
        ]


def _slopes(objective: Objective, z: Tensor, targets: Tree) -> tuple[Tensor, Tensor, Tensor]:
    """Return the slopes of a sample's loss in its outputs without their rounding, this rounding, and its bound."""

    def at(outputs: Tensor) -> tuple[Tensor, Tensor]:
        leaf = outputs.detach().requires_grad_()
        values = objective.values(leaf, targets)
        return values.detach(), torch.autograd.grad(values.sum(), leaf)[0]

    z = wide(z) if precise.widens(objective) else z
    _, slopes = at(z)
    none = torch.zeros_like(z)
    if objective.task.name != "classification" or z.ndim != 2:
        return slopes, none, none
    off = slopes.sum()
    badly, steep = at(-z)  # outputs that are far from fitted, of which the loss has all digits
    is_narrow = torch.equal(badly.float().to(badly), badly)  # the loss casts what it is given, or what it returns
    eps = torch.finfo(torch.float32 if is_narrow else z.dtype).eps
    matters = abs(off) > _FITTED * torch.finfo(objective.dtype).eps * slopes.norm()
    if not matters or not torch.allclose(badly, at(1 - z)[0], rtol=100 * eps, atol=0):
        return slopes, none, none
    largest = torch.nn.functional.one_hot(z.argmax(1), z.shape[1])
    return slopes - off * largest, off * largest, eps * steep.abs().max() * largest


def _norms(objective: Objective, tensors: list[Tensor]) -> np.ndarray:
    """Return the norm of a gradient within each layer and, last, in all, (L + 1,)."""
    layout = objective.layout
    square = {name: float(wide(t).square().sum()) for name, t in zip(layout.names, tensors, strict=True)}
    within = [sum(square[name] for name in own) for own in layout.layers.values()]
    found: np.ndarray = np.sqrt([*within, sum(within)])
    return found


def _ratio(a: np.ndarray, b: np.ndarray, otherwise: float = 1.0) -> np.ndarray:
    """Divide, with another number where the divisor is zero or unknown."""
    found: np.ndarray = np.divide(a, b, out=np.full_like(a, otherwise), where=b > 0)
    return found
