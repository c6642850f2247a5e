"""Group-wise knowledge preservation (GKP): keep the parameters close to those that were best for each group of classes.

Equation of "Reframing Long-Tailed Learning via Loss Landscape Geometry" (CVPR 2026), for groups g and j:

    L_g = lambda/2 sum_i sum_{j != g} 1/|G^j| F_{j,i} (theta_i - theta*_{j,i})^2                       (4)

theta*_j is the convergence point of group j, from `memory`; F_j is the diagonal Fisher information of the group there,
with the current classifier. Only the encoder is preserved, E entries in all.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from landscape.autodiff.single_samples import squared_gradients
from landscape.callables import checked
from landscape.data.datasets import Samples
from landscape.errors import DataError, InputError, NumericalError, arg
from landscape.networks import losses, models
from trainers.batches import Batches
from trainers.memory import Groups
from trainers.passes import full_precision, put
from trainers.settled import settled_statistics


def group_fisher(
    model: nn.Module,
    samples: Samples,
    groups: Groups,
    centres: Tensor,
    names: Sequence[str],
    *,
    loss: Callable[[Tensor, Tensor], Tensor] = losses.cross_entropy,
    max_samples: int | None = None,
    batch_size: int = 256,
    seed: int = 0,
    workers: int = 0,
) -> Tensor:
    """Return the diagonal Fisher information of each group at its convergence point, with the current classifier.

    It is the mean over the group's samples of the squared gradient of each sample's loss, in eval mode. The running
    statistics of batch norm are re-estimated at the convergence point, because an average of networks has different
    ones than these networks.

    Args:
        model: inputs -> logits; it is restored exactly.
        samples: the training set.
        groups: of the classes.
        centres: the convergence points, (G, E).
        names: of the encoder's parameters.
        loss: (logits (B, C), labels (B,)) -> (B,).
        max_samples: draw at most this many samples of a group; None uses all.
        batch_size: samples per pass; it affects memory, and the result only by rounding.
        seed: of the draw.
        workers: number of processes that read images from files.

    Returns:
        (G, E), on the model's device.

    Raises:
        InputError: a number or a name does not fit.
        DataError: a group has no samples.
        NumericalError: a squared gradient is not finite.
    """
    if batch_size < 1 or (max_samples is not None and max_samples < 1):
        raise InputError(f"{arg('fisher_samples')} and batches must be at least 1, got {max_samples} and {batch_size}")
    named = dict(model.named_parameters())
    encoder = [named[name] for name in names]
    device, dtype = encoder[0].device, encoder[0].dtype
    of_sample = groups.group_of[samples.labels]
    reader = Batches(samples, ["none"], device, dtype, workers)

    def criterion(outputs: Any, labels: Tensor) -> Tensor:
        return loss(models.logits_of(outputs, len(groups.group_of)), labels)

    before = {name: t.detach().clone() for name, t in model.state_dict().items()}
    rows = torch.empty(groups.n_groups, sum(p.numel() for p in encoder), dtype=dtype, device=device)
    try:
        for g in range(groups.n_groups):
            members = np.flatnonzero(of_sample == g)
            if not members.size:
                raise DataError(
                    f"group {g} has no samples of {samples.name} ({samples.split}): choose fewer {arg('groups')}"
                )
            if max_samples is not None and len(members) > max_samples:
                members = np.sort(np.random.default_rng([seed, g]).permutation(members)[:max_samples])
            put(centres[g].to(device, dtype), encoder)
            pieces = torch.from_numpy(members).tensor_split(-(-len(members) // batch_size))
            batches = ((inputs, labels) for (inputs,), labels, _ in reader.epoch(pieces))
            with settled_statistics(model, samples, seed=seed, workers=workers):
                rows[g] = squared_gradients(model, batches, criterion, names) / len(members)
    finally:
        with torch.no_grad():
            for name, t in model.state_dict().items():
                t.copy_(before[name])
        torch.clear_autocast_cache()  # see `passes.put`
    if not bool(torch.isfinite(rows).all()):
        raise NumericalError(
            f"the Fisher information is not finite at the groups' convergence points: lower {arg('lr')}"
        )
    return rows


class GKP:
    """The loss of GKP, summed over groups weighted by their shares w of the batch, and its gradient.

    In sum_g w_g L_g, group j occurs in the loss of all other groups, which have the total share 1 - w_j:

        lambda/2 sum_j c_j sum_i F_{j,i} (theta_i - theta*_{j,i})^2,   c_j = (1 - w_j) / |G^j|
    """

    @checked
    def __init__(
        self,
        centres: Tensor,
        fisher: Tensor,
        counts: np.ndarray,
        *,
        strength: float = 100.0,
        group_of: np.ndarray | None = None,
        names: Sequence[str] = (),
    ) -> None:
        """Store the values that do not change between groupings.

        Args:
            centres: theta*, (G, E), on the device of the parameters.
            fisher: F, (G, E).
            counts: |G^j|, (G,): number of training samples of each group, or of its classes.
            strength: lambda.
            group_of: number of each class's group, (C,), for a call with labels.
            names: of the parameters that are preserved, E entries in all, for a call with a model.

        Raises:
            InputError: shapes do not fit, a count is not positive, or lambda is negative.
        """
        if centres.ndim != 2 or fisher.shape != centres.shape or len(counts) != len(centres):
            found = f"{tuple(centres.shape)}, {tuple(fisher.shape)} and {np.shape(counts)}"
            raise InputError(f"centres, fisher and counts must be (G, E), (G, E) and (G,), got {found}")
        if np.min(counts) <= 0:
            raise InputError(
                f"each group must count something, got {np.asarray(counts).tolist()}: lower {arg('groups')}"
            )
        if not 0 <= strength < np.inf:
            raise InputError(f"{arg('strength')} must be a finite number, at least 0, got {strength}")
        self.centres, self.fisher, self.names = centres, fisher, tuple(names)
        self.group_of = None if group_of is None else torch.from_numpy(np.asarray(group_of, dtype=np.int64))
        self._scale = strength / torch.as_tensor(np.asarray(counts, dtype=np.float64)).to(centres)

    @checked
    def __call__(self, model: nn.Module, labels: Tensor) -> Tensor:
        """Return the loss of a batch, which a training loop adds to its own loss.

        Args:
            model: its parameters are preserved.
            labels: of the batch, (B,); on the CPU, to avoid waiting for a GPU.

        Returns:
            A scalar; gradients flow through it to the parameters.

        Raises:
            InputError: groups or names were not given.
        """
        if self.group_of is None or not self.names:
            raise InputError("a call with a model needs GKP(..., group_of=, names=), as Memory.regroup makes it")
        shares = torch.bincount(self.group_of[labels.cpu()], minlength=len(self.centres)) / len(labels)
        named = dict(model.named_parameters())
        theta = torch.cat([named[name].reshape(-1) for name in self.names])
        return self.value(theta, shares.to(theta.device, theta.dtype, non_blocking=True))

    def value(self, theta: Tensor, shares: Tensor) -> Tensor:
        """Return the loss.

        Args:
            theta: parameters of the encoder, (E,).
            shares: w, each group's share of the batch, (G,), with sum 1.

        Returns:
            A scalar; gradients flow through it.
        """
        with full_precision(theta.device):
            apart = [(f * (theta - c).square()).sum() for f, c in zip(self.fisher, self.centres, strict=True)]
            return (self._scale * (1 - shares)) @ torch.stack(apart) / 2

    @torch.no_grad()
    def gradient(self, theta: Tensor, shares: Tensor) -> Tensor:
        """Return the gradient of `value` with respect to theta.

        Args:
            theta: parameters of the encoder, (E,).
            shares: w, each group's share of the batch, (G,), with sum 1.

        Returns:
            (E,); the caller may change it.
        """
        total = torch.zeros_like(theta)
        for coefficient, f, c in zip(self._scale * (1 - shares), self.fisher, self.centres, strict=True):
            total.addcmul_((theta - c).mul_(coefficient), f)
        return total

    @torch.no_grad()
    def curvature(self, shares: Tensor) -> float:
        """Return the largest second derivative of `value`; its matrix of second derivatives is diagonal.

        Args:
            shares: w, each group's share of the batch, (G,), with sum 1.

        Returns:
            The largest entry of the diagonal.
        """
        return float(((self._scale * (1 - shares)) @ self.fisher).max())
