"""Sharpness-aware minimisation: descend along the gradient at the worst point of a neighbourhood.

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
from trainers.passes import (
    Losses,
    Reduce,
    alone,
    base_optimizer,
    flat,
    gradient,
    hand_over,
    kept_statistics,
    moved,
    put,
    trainable,
    unit,
)


class SAM(torch.optim.Optimizer):
    """A wrapper that makes any optimizer sharpness-aware.

        optimizer = SAM(model.parameters(), torch.optim.SGD, rho=0.05, model=model, lr=0.1, momentum=0.9)
        for inputs, labels in batches:
            optimizer.step(lambda: F.cross_entropy(model(inputs), labels, reduction="none"))

    or in two steps, with your own gradients:

        loss(model(inputs), labels).backward()
        optimizer.first_step()
        with kept_statistics(model):
            loss(model(inputs), labels).backward()
        optimizer.second_step()

    This form also allows gradient accumulation over the pieces of a batch, in both passes.

    The options of the base optimizer, such as the learning rate, are in `param_groups`, which schedulers change;
    `state_dict()` is that of the base optimizer.
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
            params: parameters, or groups of them, as for every optimizer.
            base: class of the base optimizer.
            rho: length of the perturbation, in units of the parameters (of |theta| if adaptive); at least 0.
            adaptive: scale the perturbation of each parameter by its size.
            model: its batch norm updates running statistics in the first pass only; None without batch norm.
            reduce: sums a tensor over all ranks, in place.
            options: of the base optimizer, such as lr.

        Raises:
            InputError: rho or an option of the base optimizer is negative, not finite, or refused.
        """
        check_rho(rho)
        self.base = base_optimizer(base, params, options)
        # who reads the options, also in a checkpoint, sees by rho that these steps are not those of the base
        super().__init__(self.base.param_groups, self.base.defaults | {"rho": rho})
        self.param_groups = self.base.param_groups
        self.adaptive = adaptive
        self._model = model
        self._reduce = reduce
        self._before: Tensor | None = None

    @property
    def rho(self) -> float:
        """Length of the perturbation."""
        found: float = self.param_groups[0]["rho"]
        return found

    @rho.setter
    def rho(self, rho: float) -> None:
        for group in self.param_groups:
            group["rho"] = rho

    @checked
    def gradients(self, losses: Losses) -> Tensor:
        """Write the gradient at theta + eps into the parameters' `.grad`, without changing the parameters.

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
        """Make one step; `closure` is the argument `losses` of `gradients`."""
        values = self.gradients(closure)
        self.base.step()
        return values

    def first_step(self) -> None:
        """Move to theta + eps, using the gradients in `.grad`, and clear these."""
        parameters = trainable(self.param_groups)
        self._before = flat(parameters)
        g = flat([torch.zeros_like(p) if p.grad is None else p.grad.to_dense() for p in parameters])
        put(self._before + self._perturbation(self._before, g), parameters)
        self.zero_grad()

    def second_step(self) -> None:
        """Move back to theta, make the base optimizer's step with the gradients in `.grad`, and clear these.

        Raises:
            InputError: there was no first step.
        """
        if self._before is None:
            raise InputError("second_step() without first_step(): call them in turn")
        put(self._before, trainable(self.param_groups))
        self._before = None
        self.base.step()
        self.zero_grad()

    def __getstate__(self) -> dict[str, Any]:
        """Return all attributes, for copies; those of other optimizers have parameters and options alone."""
        return vars(self)

    def state_dict(self) -> dict[str, Any]:
        """Return the base optimizer's state, for `load_state_dict`; SAM itself has no state but its rho."""
        return self.base.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore a state from `state_dict`; rho remains that of this optimizer."""
        rho = self.rho
        self.base.load_state_dict(state_dict)
        self.param_groups = self.base.param_groups  # loading has replaced them
        self.rho = rho

    def _perturbation(self, theta: Tensor, g: Tensor) -> Tensor:
        return perturbation(theta, g, self.adaptive).mul_(self.rho)


def perturbation(theta: Tensor, g: Tensor, adaptive: bool) -> Tensor:
    """Return the direction of a perturbation, which the caller multiplies by the radius.

    Args:
        theta: parameters, (D,).
        g: the gradient, (D,).
        adaptive: scale each entry by its parameter.

    Returns:
        g / ||g||, or theta^2 g / ||theta g|| if adaptive, (D,), however small g is; zero if g is zero.
    """
    # first to length one: the products with theta of a small gradient may vanish
    return unit(unit(g).mul_(theta.abs())).mul_(theta.abs()) if adaptive else unit(g)


def shares(losses: Tensor, reduce: Reduce) -> Tensor:
    """Return the weight of each sample in the mean over the samples of all ranks, (B,) for losses (B,)."""
    count = torch.full((), float(losses.numel()), dtype=losses.dtype, device=losses.device)  # no copy to wait for
    reduce(count)
    return (1 / count).expand(losses.shape)


def check_rho(rho: float) -> None:
    """Raise InputError if a radius is not finite or negative."""
    if not 0 <= rho < math.inf:
        raise InputError(f"{arg('rho')} must be a finite number, at least 0, got {rho}")
