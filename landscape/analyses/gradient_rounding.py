"""How much of the gradients of parts may be rounding, measured where a few samples are computed in float32 and float64.

A gradient is only rounding if it is zero in exact arithmetic, as that of a bias before a normalisation, or far smaller
than the numbers that it is made of, as that of a class that is fitted to the last digit. Let s_i be the gradient of
sample i, and e_i the length by which it differs within a layer between float32 and float64, divided by |s_i|. The
gradient g_p of a part of n samples may be wrong within the layer by

    u S (q + m / sqrt(n)) + min(r f, c),    S = max(mean |s_i|, |g_p|)       u = 1 in float32, 2^-28 in float64

q is the upper quartile of the e_i, for what most samples have and may have alike, and m the root of their mean square,
for what few have, as where one of many ReLUs is on the other side of its kink; both are of samples of all parts. S is
of samples of the part: if few of its samples have most of its gradient, |g_p| is the length that theirs contribute.

The loss of given outputs is computed in float64 (objective/precise.py), and e is without its rounding: 1 - p of a
fitted sample is a multiple of 1e-16. If the loss depends on differences of outputs only, its slopes in them add up to
zero, and what they do add up to is rounding of the slope in the largest output. Along this, r is the mean length of the
gradients, which grows with them by f = |g_p| / mean |s_i|. No sample has more of it than a unit of rounding of the
slopes that badly fitted outputs have, along which c is the mean length.
"""

import logging
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from landscape.autodiff.differentiable import differentiable_attention
from landscape.autodiff.trees import Tree
from landscape.autodiff.wide import wide
from landscape.errors import one_line
from landscape.objective import precise
from landscape.objective.objective import Objective

log = logging.getLogger(__name__)

_COMPARED = 16  # samples of all parts, at most, that are computed in both dtypes
_EACH, _ALL = 8, 32  # samples of each part and, if there are no more parts, of all that are computed in one
_UNIT = 2.0**-28  # rounding of float64, in that of float32: 2^-29, and twice that as sums may have another order
_FITTED = 0.01  # units of rounding of the slopes: if they add up to less, what the loss rounds does not matter


@dataclass(frozen=True, kw_only=True, eq=False)
class Rounding:
    """What was measured at a checkpoint, for L layers and P parts; nan where it is unknown."""

    usual: np.ndarray  # (L,) u q
    seldom: np.ndarray  # (L,) u m
    seen: np.ndarray  # (L, P) largest error of a sample
    loss: np.ndarray  # (L, P) r
    most: np.ndarray  # (L, P) c
    size: np.ndarray  # (L, P) mean length of the samples' gradients within the layer
    length: np.ndarray  # (P,) mean |s_i|
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
        seen, loss, most, size = (x[:, parts] for x in (self.seen, self.loss, self.most, self.size))
        length, whole = self.length[parts], np.linalg.norm(norm, axis=0)
        network = np.fmax(length, whole) * (self.usual[:, None] + self.seldom[:, None] / np.sqrt(counts))
        network = np.where(norm > 0, np.maximum(network, self.eps * norm), seen)
        factor = np.fmax(1, np.fmax(_ratio(whole, length), _ratio(norm, size)))
        found: np.ndarray = network + np.fmin(loss * factor, most)
        return found


def compared(objective: Objective) -> int:
    """Return how many samples are computed in both dtypes."""
    return min(_COMPARED, len(_chosen(objective)))


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
    found = np.full((n_layers + 1, 4 * n_parts + 2), np.nan)
    try:
        found = _measured(objective)
    except Exception as error:  # a model may be written for one dtype only, and then raise any error
        if objective.known.first("rounding of gradients"):
            log.warning(
                "the rounding of gradients is not measured, so numbers that are only rounding are not marked: in "
                "float32 or float64, %s",
                one_line(error),
            )
    found = objective.team.agreed(found)
    of_all, of_parts = np.where(np.isfinite(found[:-1, :2]), found[:-1, :2], np.nan), found[:, 2:]
    seen, loss, most, size = np.split(of_parts, 4, axis=1)
    return Rounding(
        usual=of_all[:, 0],
        seldom=of_all[:, 1],
        seen=seen[:-1],
        loss=loss[:-1],
        most=most[:-1],
        size=size[:-1],
        length=size[-1],
        eps=torch.finfo(objective.dtype).eps,
    )


def _measured(objective: Objective) -> np.ndarray:
    """Return q and m, then, for each part, the largest error, r, c and lengths: within each layer and, last, in all."""
    other = objective.in_dtype(torch.float64 if objective.dtype == torch.float32 else torch.float32)
    unit = 1.0 if objective.dtype == torch.float32 else _UNIT
    chosen, n_layers = _chosen(objective), len(objective.layout.layers)
    step = -(-len(chosen) // _COMPARED)
    relative, of_parts = list[np.ndarray](), np.zeros((4, len(objective.partition), n_layers + 1))
    counts = np.bincount([p for p, _ in chosen])
    for k, (p, i) in enumerate(chosen):
        own, *of_loss = _gradients(objective, i)
        lengths = np.stack([_norms(objective, tensors) for tensors in (*of_loss, own)])
        of_parts[1:, p] += lengths / counts[p]
        if k % step == 0:
            pairs = zip(own, _gradients(other, i)[0], strict=True)
            error = unit * _norms(objective, [wide(a) - wide(b).to(wide(a).device) for a, b in pairs])
            of_parts[0, p] = np.maximum(of_parts[0, p], error)
            relative += [error / lengths[-1, -1]] if lengths[-1, -1] > 0 else []
    errors = np.stack(relative) if relative else np.zeros((1, n_layers + 1))
    of_all = [np.quantile(errors, 0.75, axis=0), np.sqrt(np.square(errors).mean(axis=0))]
    return np.concatenate([np.stack(of_all, axis=1), *of_parts.swapaxes(1, 2)], axis=1)


def _gradients(objective: Objective, sample: int) -> list[list[Tensor]]:
    """Return gradients of a sample: of its loss without the loss's own rounding, along this, and along its bound."""
    inputs, targets = objective.samples.batch(np.array([sample]), objective.device, objective.dtype)
    theta = [t.detach().requires_grad_() for t in objective.theta]
    with differentiable_attention():
        z = objective.logits(theta, inputs)
        return [
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
    loss, slopes = at(z)
    none = torch.zeros_like(z)
    if objective.task.name != "classification" or z.ndim != 2 or z.dtype != torch.float64:
        return slopes, none, none
    off = slopes.sum()
    matters = abs(off) > _FITTED * torch.finfo(objective.dtype).eps * slopes.norm()
    if not matters or not torch.allclose(loss, at(z + 1)[0], rtol=1e-8, atol=1e-8):
        return slopes, none, none
    largest = torch.nn.functional.one_hot(z.argmax(1), z.shape[1])
    return slopes - off * largest, off * largest, torch.finfo(z.dtype).eps * at(-z)[1].abs().max() * largest


def _norms(objective: Objective, tensors: list[Tensor]) -> np.ndarray:
    """Return the norm of a gradient within each layer and, last, in all, (L + 1,)."""
    layout = objective.layout
    square = {name: float(wide(t).square().sum()) for name, t in zip(layout.names, tensors, strict=True)}
    within = [sum(square[name] for name in own) for own in layout.layers.values()]
    found: np.ndarray = np.sqrt([*within, sum(within)])
    return found


def _ratio(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Divide, with 1 where the divisor is zero or unknown."""
    found: np.ndarray = np.divide(a, b, out=np.ones_like(a), where=b > 0)
    return found
