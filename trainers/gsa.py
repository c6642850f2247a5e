"""Grouped sharpness-aware minimisation (GSA): perturb along the specific gradient component of each group of classes.

Equations of "Reframing Long-Tailed Learning via Loss Landscape Geometry" (CVPR 2026), for groups g = 1..G with n_g
training samples, theta of d entries, g_g the gradient of the mean loss over the group's samples in the batch:

    h_g   = g_g - (<g_g, g> / ||g||^2) g                                              (12)
    rho_g = (||theta|| / (2 ||h_g||))^(1/2) d^(-1/4) (n_g - 1)^(-1/4)                  (13)
    eps_g = Z sqrt(d) rho_g h_g / ||h_g||                                             (14)
    loss of the group = L_g(theta + eps_g) + ||theta|| / (2 sqrt(n_g - 1) rho_g)      (15)

The gradients of groups are exact: batch norm's statistics couple the samples of a batch, so each group needs its own
backward pass through the graph of the first forward pass.
"""

import dataclasses
import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from landscape.autodiff import per_sample
from landscape.autodiff.batch_statistics import batch_statistics_constant
from landscape.autodiff.sample_rows import SampleRows
from landscape.autodiff.wide import place
from landscape.callables import checked
from landscape.errors import InputError, arg
from trainers.passes import (
    Losses,
    Reduce,
    alone,
    base_optimizer,
    flat,
    full_precision,
    gradient,
    hand_over,
    kept_statistics,
    length,
    moved,
    trainable,
    unit,
)
from trainers.sam import perturbation

DIRECTIONS = ("specific", "projected", "difference")
FIRST_PASSES = ("exact", "decoupled", "shared")


@dataclasses.dataclass(frozen=True)
class Radii:
    """The numbers of equations 12 to 15 for one batch, (G,) tensors each; zero for a group without a direction."""

    share: Tensor  # of the batch's samples
    gradient_norm: Tensor  # ||g_g||
    specific_norm: Tensor  # ||h_g||
    rho: Tensor  # rho_g of equation 13
    radius: Tensor  # ||eps_g|| up to rounding, in units of |theta| if adaptive
    clipped: Tensor  # 1 if Z rho_g was outside the bounds of `clip`; the bound is then the radius, whatever n_g is


@dataclasses.dataclass(frozen=True)
class _Piece:
    """Samples of a batch that the model evaluates together."""

    losses: Losses
    groups: Tensor  # of each sample, on the CPU
    where: Tensor  # the same on the device


def _pieces(losses: Losses | Sequence[Losses], groups: Tensor | Sequence[Tensor], device: torch.device) -> list[_Piece]:
    if callable(losses) and isinstance(groups, Tensor):
        losses, groups = [losses], [groups]
    if callable(losses) or isinstance(groups, Tensor) or not 0 < len(losses) == len(groups):
        raise InputError("a batch in pieces needs a list of losses, and of groups one for each")
    on_host = [g.cpu() for g in groups]
    for g in on_host:
        if g.dim() != 1 or g.is_floating_point() or g.is_complex() or g.dtype == torch.bool:
            raise InputError(f"groups must be integers, one for each sample, got {g.dtype} of shape {tuple(g.shape)}")
        if len(g) and g.min() < 0:
            raise InputError(f"groups begin with 0, the batch has group {g.min()}: leave its samples out of the batch")
    return [_Piece(f, g, g.to(device, non_blocking=True)) for f, g in zip(losses, on_host, strict=True)]


class GSA(torch.optim.Optimizer):
    """A wrapper that makes any optimizer sharpness-aware, separately for each group of classes.

        optimizer = GSA(
            model.parameters(), torch.optim.SGD, counts=[8000, 3000, 1000, 406], model=model, lr=0.1, momentum=0.9
        )
        for inputs, labels in batches:
            groups = group_of_class[labels]
            optimizer.step(lambda: F.cross_entropy(model(inputs), labels, reduction="none"), groups)

    The options of the base optimizer, such as lr, are in `param_groups`, which schedulers change. `state_dict()` has
    the state of the base optimizer and the average gradient; the caller stores the groups.

    By default the perturbations of the groups are added, weighted by their shares w_g of the batch, and there is one
    second pass for all. With the batch's own gradient as the global direction g, the weighted h_g cancel,
    sum_g w_g h_g = g - g = 0, and the joint perturbation comes only from their different lengths. An average over past
    steps (`average`, the default) avoids this, and is a better estimate of the gradient of the whole set.
    """

    @checked
    def __init__(
        self,
        params: Iterable[Any],
        base: type[torch.optim.Optimizer],
        *,
        counts: Sequence[int],
        scale: float = 1e-2,
        direction: str = "specific",
        average: float = 0.9,
        perturb: str = "joint",
        first_pass: str = "exact",
        adaptive: bool = False,
        clip: Sequence[float] | None = (0.0, 1e-3),
        norm_term: bool = False,
        model: nn.Module | None = None,
        reduce: Reduce = alone,
        **options: Any,
    ) -> None:
        """Wrap an optimizer.

        Args:
            params: parameters, or groups of them, as for every optimizer.
            base: class of the base optimizer.
            counts: n_g, training samples of each group, (G,). A group of one sample has the radius of a group of two,
                because equation 13 is infinite for one.
            scale: Z of equation 14.
            direction: "specific" perturbs along h_g; "projected" along the component that equation 12 removes, the
                ablation of the paper's Table 5; "difference" along g_g - g without a projection, as the authors' code.
            average: decay of the exponential average of batch gradients, which is the global direction g; 0 uses the
                batch's own gradient.
            perturb: "joint" has one second pass at theta + sum_g w_g eps_g; "per-group" has one for each group at
                theta + eps_g, as in equation 15.
            first_pass: "exact" has a backward pass for each group; "decoupled" (needs `model`) treats batch norm's
                statistics of the batch as constants, so that one backward pass gives the gradients of all groups.
                Layers in which samples influence each other, change their order or are not along the first axis are
                found in the first batch of each size, and get a backward pass for each group. "shared" has one backward
                pass and uses the batch's gradient for every group, as the authors' code.
            adaptive: scale the perturbation of each parameter by its size, as adaptive SAM does.
            clip: smallest and largest Z rho_g; None means no clipping of equation 13, which has no bound when a group
                is fitted and h_g vanishes. The authors' code uses 2e-3 and 3e-3, with adaptive scaling.
            norm_term: add the second term of equation 15, with rho_g as a constant.
            model: its batch norm updates running statistics in the first pass only; None without batch norm.
            reduce: sums a tensor over all ranks, in place.
            options: of the base optimizer.

        Raises:
            InputError: an option does not fit.
        """
        for fits, message in (
            (0 <= scale < math.inf, f"{arg('scale')} must be a finite number, at least 0, got {scale}"),
            (direction in DIRECTIONS, f"{arg('direction')} must be one of {', '.join(DIRECTIONS)}, got {direction!r}"),
            (0 <= average < 1, f"{arg('average')} must be at least 0 and below 1, got {average}"),
            (perturb in {"joint", "per-group"}, f"{arg('perturb')} must be joint or per-group, got {perturb!r}"),
            (
                first_pass in FIRST_PASSES,
                f"{arg('first_pass')} must be one of {', '.join(FIRST_PASSES)}, got {first_pass!r}",
            ),
            (first_pass != "decoupled" or model is not None, "first_pass='decoupled' needs model="),
            (
                clip is None or (len(clip) == 2 and 0 <= clip[0] <= clip[1]),
                f"{arg('clip')} must be two numbers in ascending order, got {clip}",
            ),
        ):
            if not fits:
                raise InputError(message)
        self.base = base_optimizer(base, params, options)
        # who reads the options, also in a checkpoint, sees by the scale that these steps are not those of the base
        super().__init__(self.base.param_groups, self.base.defaults | {"radius_scale": scale})
        self.param_groups = self.base.param_groups
        self.average = None
        self.radii: Radii | None = None  # of the latest step
        self.perturbation: Tensor | None = None  # sum_g w_g eps_g of the latest step, (D,)
        self._scale = scale
        self._direction = direction
        self._decay = average
        self._joint = perturb == "joint"
        self._first_pass = first_pass
        self._sample_rows = SampleRows()
        self._adaptive = adaptive
        self._clip = None if clip is None else tuple(clip)
        self._norm_term = norm_term
        self._model = model
        self._reduce = reduce
        self.regroup(counts)

    @property
    def average(self) -> Tensor | None:
        """The exponential average of the batches' gradients, (D,); None before the first step.

        Setting one of other parameters than those that require a gradient now raises InputError.
        """
        return self._average

    @average.setter
    def average(self, average: Tensor | None) -> None:
        parameters = trainable(self.param_groups)
        if average is not None and len(average) != (size := sum(p.numel() for p in parameters)):
            raise InputError(f"the average gradient has {len(average)} entries, and {size} require a gradient here")
        self._average = None if average is None else average.to(parameters[0])
        self._averaged = parameters

    @checked
    def regroup(self, counts: Sequence[int]) -> None:
        """Change the groups from the next step on.

        Args:
            counts: n_g, training samples of each group, (G,).

        Raises:
            InputError: there is no group, or one without training samples.
        """
        if not len(counts) or min(counts) < 1:
            raise InputError(
                f"each group needs training samples, got counts {list(counts)}: choose fewer {arg('groups')}"
            )
        spare = torch.tensor([max(int(n) - 1, 1) for n in counts], dtype=torch.float64)
        self._spare = spare.to(place(trainable(self.param_groups)[0].device))

    @checked
    def gradients(self, losses: Losses | Sequence[Losses], groups: Tensor | Sequence[Tensor]) -> Tensor:
        """Write the gradient of equation 15's sum into the parameters' `.grad`, without changing the parameters.

        Groups are weighted by their share of the batch, so that without perturbation this is the batch's gradient.

        Args:
            losses: runs the model on the batch; called twice, or 1 + G times with perturb="per-group". For a batch that
                does not fit in memory, a list of such functions, one for each piece; batch norm uses the statistics of
                each piece.
            groups: of each sample, (B,) integers from 0 to G - 1; on the CPU, to avoid waiting for a GPU. For a batch
                in pieces, a list with one tensor for each piece.

        Returns:
            The losses of the first pass, (B,), without a graph.

        Raises:
            InputError: the losses are not one number for each sample, or a group does not exist.
        """
        parameters = trainable(self.param_groups)
        theta = flat(parameters)
        n_groups = len(self._spare)
        pieces = _pieces(losses, groups, theta.device)
        local = torch.bincount(torch.cat([piece.groups for piece in pieces]), minlength=n_groups)
        if len(local) > n_groups:
            raise InputError(f"groups are 0 to {n_groups - 1}, the batch has group {len(local) - 1}")
        present = local.nonzero().flatten().tolist()
        counts = local.to(theta.device, theta.dtype, non_blocking=True)
        self._reduce(counts)

        rows = torch.zeros(n_groups, len(theta), dtype=theta.dtype, device=theta.device)
        values = torch.cat([self._add_group_gradients(piece, rows, parameters) for piece in pieces])
        self._reduce(rows)
        share = counts / counts.sum()
        if self._first_pass == "shared":
            rows = share[:, None] * rows[0]
        whole = rows.sum(0) / counts.sum()
        rows /= counts.clamp(min=1)[:, None]
        with full_precision(theta.device):
            radii, eps = self._perturbations(theta, rows, self._global(whole, parameters), share)
            self.radii, self.perturbation = radii, share @ eps

        sample = 1 / counts.sum()
        total = torch.zeros_like(theta)
        if self._joint:
            with moved(parameters, theta, self.perturbation), kept_statistics(self._model):
                for piece in pieces:
                    total += gradient(piece.losses(), sample.expand(piece.where.shape), parameters)
        else:
            for g in range(n_groups) if self._reduce is not alone else present:
                with moved(parameters, theta, eps[g]), kept_statistics(self._model):
                    for piece in pieces:
                        total += gradient(piece.losses(), (piece.where == g) * sample, parameters)
        self._reduce(total)
        if self._norm_term:
            total += self._norm_gradient(theta, radii)
        hand_over(total, parameters)
        return values

    @checked
    def step(  # type: ignore[override]  # a closure of another kind
        self, closure: Losses | Sequence[Losses], groups: Tensor | Sequence[Tensor]
    ) -> Tensor:
        """Make one step; `closure` is the argument `losses` of `gradients`."""
        values = self.gradients(closure, groups)
        self.base.step()
        return values

    def __getstate__(self) -> dict[str, Any]:
        """Return all attributes, for copies; those of other optimizers have parameters and options alone."""
        return vars(self)

    def state_dict(self) -> dict[str, Any]:
        """Return the base optimizer's state and the average gradient, for `load_state_dict`."""
        return {**self.base.state_dict(), "average": self.average}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore a state from `state_dict`.

        Raises:
            InputError: other parameters require a gradient.
        """
        self.average = state_dict["average"]  # refuses that of other parameters before anything changes
        self.base.load_state_dict({name: value for name, value in state_dict.items() if name != "average"})
        self.param_groups = self.base.param_groups  # loading has replaced them
        for group in self.param_groups:
            group["radius_scale"] = self._scale

    def _add_group_gradients(self, piece: _Piece, rows: Tensor, parameters: list[Tensor]) -> Tensor:
        """Add the gradients of the groups' SUMS over a piece's samples to (G, D); return the losses, (B,).

        If all groups share the first pass, the sum over all samples is added to the first row.

        Returns:
            The losses, without their graph.
        """
        sizes = torch.bincount(piece.groups, minlength=len(rows))
        present = sizes.nonzero().flatten().tolist()
        if self._first_pass == "decoupled" and self._model is not None:
            names = _names(self._model, parameters)
            with batch_statistics_constant(self._model):
                values, means = per_sample.group_gradients(
                    self._model, piece.losses, piece.groups, len(rows), names, first=self._sample_rows
                )
            rows += means.mul_(sizes.to(rows.device, rows.dtype, non_blocking=True)[:, None])
            return values
        values = piece.losses()
        if self._first_pass == "shared":
            rows[0] += gradient(values, torch.ones_like(piece.where, dtype=values.dtype), parameters)
            return values.detach()
        for g in present:
            rows[g] += gradient(values, (piece.where == g).to(values), parameters, keep=g != present[-1])
        return values.detach()

    def _global(self, whole: Tensor, parameters: list[Tensor]) -> Tensor:
        """Return the direction g, (D,): the batch's gradient or its average, which begins anew for new parameters."""
        if not self._decay:
            return whole
        previous = whole if self._average is None else self._average
        if self._average is not None and list(map(id, parameters)) != list(map(id, self._averaged)):
            known = dict(zip(map(id, self._averaged), _entries(self._average, self._averaged), strict=True))
            pieces = zip(parameters, _entries(whole, parameters), strict=True)
            previous = torch.cat([known.get(id(p), own) for p, own in pieces])
        self._average, self._averaged = torch.lerp(whole, previous, self._decay), parameters
        return self._average

    def _perturbations(self, theta: Tensor, rows: Tensor, whole: Tensor, share: Tensor) -> tuple[Radii, Tensor]:
        """Return the radii and eps_g, (G, D), by equations 12 to 14."""
        d = len(theta)
        norms = torch.stack([length(row) for row in rows])
        if self._direction == "difference":
            h = rows - whole
        else:
            axis = unit(whole)
            projected = (rows * axis).sum(1, keepdim=True) * axis
            h = rows - projected if self._direction == "specific" else projected
        h_norm = torch.stack([length(row) for row in h])
        # If a gradient is parallel to g, only rounding remains, which has no direction; with one group this is always
        # so. A group without samples in the batch has no gradient, though 0 - g is one.
        real = (share > 0) & (h_norm > norms * torch.finfo(h.dtype).eps ** 0.5)
        safe = torch.where(real, h_norm, 1.0)
        rho = length(theta).sqrt() * (2 * safe).rsqrt() * d**-0.25 * self._spare.to(theta) ** -0.25
        wanted = self._scale * rho
        scaled = wanted if self._clip is None else wanted.clamp(*self._clip)
        radius = scaled * math.sqrt(d)
        eps = torch.stack([perturbation(theta, row, self._adaptive) for row in h])
        eps *= torch.where(real, radius, 0.0)[:, None]
        nothing = torch.zeros_like(h_norm)
        found = (torch.where(real, value, nothing) for value in (h_norm, rho, radius, (scaled != wanted).to(h)))
        return Radii(share, norms, *found), eps

    def _norm_gradient(self, theta: Tensor, radii: Radii) -> Tensor:
        """Return the gradient of sum_g w_g ||theta|| / (2 sqrt(n_g - 1) rho_g), with rho_g as a constant."""
        slope = radii.share / (2 * self._spare.to(theta).sqrt() * radii.rho)
        total: Tensor = torch.where(radii.rho > 0, slope, 0.0).sum()
        return theta.mul(total / length(theta))


def _entries(vector: Tensor, parameters: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Return the entries (D,) of each parameter."""
    return torch.split(vector, [p.numel() for p in parameters])


def _names(model: nn.Module, parameters: Sequence[Tensor]) -> list[str]:
    """Return the names that parameters have in a model, in the order of the parameters, which groups of them change."""
    known = {id(p): name for name, p in model.named_parameters()}
    if not all(id(p) in known for p in parameters):
        raise InputError("first_pass='decoupled' finds gradients by layers: model= must hold all of the parameters")
    return [known[id(p)] for p in parameters]
