"""Sharpness-aware minimisation: descend along the gradient taken at the worst point nearby.

Foret et al. 2021, "Sharpness-aware minimization for efficiently improving generalization", equations 2 and 3; the
adaptive form is Kwon et al. 2021, "ASAM", equation 6, with T = |theta|:

    eps = rho * g / ||g||                      SAM
    eps = rho * T^2 g / ||T g||                adaptive
    step along grad L(theta + eps), from theta
"""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from landscape.callables import checked
from landscape.errors import InputError, arg
from trainers.passes import Losses, Reduce, alone, flat, gradient, hand_over, kept_statistics, moved, put, trainable


class SAM(torch.optim.Optimizer):
    """Any optimizer, made sharpness-aware.

        optimizer = SAM(model.parameters(), torch.optim.SGD, rho=0.05, model=model, lr=0.1, momentum=0.9)
        for inputs, labels in batches:
            optimizer.step(lambda: F.cross_entropy(model(inputs), labels, reduction="none"))

    or in two steps, with gradients of one's own:

        loss(model(inputs), labels).backward()
        optimizer.first_step()
        with kept_statistics(model):
            loss(model(inputs), labels).backward()
        optimizer.second_step()

    which also serves where gradients are added up over the pieces of a batch, in both passes.

    The learning rate and what else belongs to the base optimizer is in `param_groups`, which schedulers change;
    `state_dict()` is the base optimizer's.
    """

    @checked
    def __init__(
        self,
        params: Iterable[Any],
        base: type[torch.optim.Optimizer],
        *,
        rho: float = 0.05,
        adaptive: bool = False,
        model: nn.Module | None = None,
        reduce: Reduce = alone,
        **options: Any,
    ) -> None:
        """Wrap an optimizer.

        Args:
            params: parameters, or groups of them, as every optimizer takes them.
            base: the optimizer's class.
            rho: length of the perturbation, in units of the parameters (of |theta| if adaptive); at least 0.
            adaptive: scale the perturbation of each parameter by its size.
            model: whose batch norm counts the first pass only; None where there is no batch norm.
            reduce: adds a tensor up over all ranks, in place.
            options: of the base optimizer, such as lr.

        Raises:
            InputError: rho is negative or not finite.
        """
        check_rho(rho)
        self.base = base(params, **options)
        super().__init__(self.base.param_groups, self.base.defaults)
        self.param_groups = self.base.param_groups
        self.rho = rho
        self.adaptive = adaptive
        self._model = model
        self._reduce = reduce
        self._before: Tensor | None = None

    @checked
    def gradients(self, losses: Losses) -> Tensor:
        """Leave the gradient at theta + eps in the parameters' `.grad`; the parameters stay where they are.

        Args:
            losses: runs the model on the batch; called twice.

        Returns:
            The losses of the first pass, (B,), without a graph.

        Raises:
            InputError: the losses are not one number for each sample.
        """
        parameters = trainable(self.param_groups)
        theta = flat(parameters)
        first = losses()
        weights = shares(first, self._reduce)
        g = gradient(first, weights, parameters)
        self._reduce(g)
        with moved(parameters, theta, self._perturbation(theta, g)), kept_statistics(self._model):
            g = gradient(losses(), weights, parameters)
        self._reduce(g)
        hand_over(g, parameters)
        return first.detach()

    @checked
    def step(self, closure: Losses) -> Tensor:  # type: ignore[override]  # a closure of another kind
        """Make one step; see `gradients`, whose `losses` are called as every optimizer calls them here."""
        values = self.gradients(closure)
        self.base.step()
        return values

    def first_step(self) -> None:
        """Move to theta + eps by the gradients in `.grad`, and clear these."""
        parameters = trainable(self.param_groups)
        self._before = flat(parameters)
        g = flat([torch.zeros_like(p) if p.grad is None else p.grad for p in parameters])
        put(self._before + self._perturbation(self._before, g), parameters)
        self.zero_grad()

    def second_step(self) -> None:
        """Move back to theta, make the base optimizer's step by the gradients in `.grad`, and clear these.

        Raises:
            InputError: there was no first step.
        """
        if self._before is None:
            raise InputError("second_step() without first_step(): call them in turn")
        put(self._before, trainable(self.param_groups))
        self._before = None
        self.base.step()
        self.zero_grad()

    def state_dict(self) -> dict[str, Any]:
        """Return the base optimizer's state, for `load_state_dict`; SAM itself has none."""
        return self.base.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.base.load_state_dict(state_dict)
        self.param_groups = self.base.param_groups  # loading has made them anew

    def _perturbation(self, theta: Tensor, g: Tensor) -> Tensor:
        return perturbation(theta, g, self.adaptive).mul_(self.rho)


def perturbation(theta: Tensor, g: Tensor, adaptive: bool) -> Tensor:
    """Return the direction of a perturbation, to be multiplied by its radius.

    Args:
        theta: parameters, (D,).
        g: the direction in which to go, (D,).
        adaptive: scale each entry by its parameter.

    Returns:
        g / ||g||, or theta^2 g / ||theta g|| if adaptive, (D,); zero where g is.
    """
    scaled = theta.abs() * g if adaptive else g
    norm = scaled.norm()
    unit = scaled * torch.where(norm > 0, 1 / norm, 0.0)
    return unit.mul_(theta.abs()) if adaptive else unit


def shares(losses: Tensor, reduce: Reduce) -> Tensor:
    """Return the weight of each sample in the mean over the samples of all ranks, (B,) for losses (B,)."""
    count = torch.tensor(float(losses.numel()), dtype=losses.dtype, device=losses.device)
    reduce(count)
    return (1 / count).expand(losses.shape)


def check_rho(rho: float) -> None:
    """Raise InputError if a radius is not a finite number from 0 on."""
    if not 0 <= rho < math.inf:
        raise InputError(f"{arg('rho')} must be a finite number, at least 0, got {rho}")
